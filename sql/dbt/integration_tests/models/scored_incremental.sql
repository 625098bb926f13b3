{{ config(materialized='incremental', unique_key='id') }}
{% set rows %}
    select * from {{ ref('passengers') }}
    {% if is_incremental() %}where id > (select coalesce(max(id), 0) from {{ this }}){% endif %}
{% endset %}
select id, prediction, '{{ pg_distill.active_version("survival_distilled") }}' as student_version, statement_timestamp() as scored_at
from {{ pg_distill.score('survival_distilled', rows, 'id', key_type='bigint') }} as s
