{{ config(materialized='view') }}
select
    id,
    {{ pg_distill.predict('survival_distilled', row='p') }} as probability,
    {{ pg_distill.predict_class('survival_distilled', row='p') }} as survived,
    {{ pg_distill.predict_proba('survival_distilled', row='p') }} as probabilities
from {{ ref('passengers') }} as p
