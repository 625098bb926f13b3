select id, prediction
from {{ pg_distill.score('survival_distilled', ref('passengers'), 'id', key_type='bigint') }} as s
