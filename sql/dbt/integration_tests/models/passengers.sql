{{ config(post_hook=[
    {"sql": "{{ pg_distill.register('survival', path=var('teacher_file'), sample=this, label='survived') }}", "transaction": false},
    {"sql": "{{ pg_distill.distill('survival', min_accuracy=var('min_accuracy'), families=['tree', 'linear'], time_budget_s=4) }}",
     "transaction": false},
]) }}
select id, cabin, port, age, fare, survived from {{ source('raw', 'passengers') }}
