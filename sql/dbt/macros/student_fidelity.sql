{% test student_fidelity(model, student, at_least, teacher=none, max_rows=1000, min_rows=1) %}
    {%- set found = none -%}
    {%- if execute -%}
        {%- set rows = run_query(
            "select m.task, t.name || ':' || t.version as teacher from distill.models m"
            ~ " left join distill.models t on t.id = m.teacher_id"
            ~ " where m.name || ':' || m.version = " ~ pg_distill.sql_value(student)
            ~ " or m.active and m.name = " ~ pg_distill.sql_value(student)
        ).rows -%}
        {%- if not rows | length -%}
            {%- do exceptions.raise_compiler_error('model "' ~ student ~ '" does not exist') -%}
        {%- endif -%}
        {%- set found = rows[0] -%}
        {%- if (teacher or found["teacher"]) is none -%}
            {%- do exceptions.raise_compiler_error('model "' ~ student ~ '" has no teacher') -%}
        {%- endif -%}
    {%- endif -%}
    {%- set of = pg_distill.sql_value(teacher or found["teacher"] if found else "") -%}
    {%- set is_value = found and found["task"] == "regression" -%}
    {%- set are_labels = found and found["task"] == "multilabel" -%}
    {%- set function = "distill.predict" if is_value else "distill.predict_classes" if are_labels else "distill.predict_class" -%}
with fresh as (
    select * from {{ model }}
),
-- the same rows draw the same sample
drawn as (
    select to_jsonb(fresh.*) as fields from fresh order by hashtextextended(to_jsonb(fresh.*)::text, 0) limit {{ max_rows }}
),
compared as (
    select {{ function }}({{ of }}, fields) as teacher, {{ function }}({{ pg_distill.sql_value(student) }}, fields) as student from drawn
),
measured as (
    select count(*) as rows,
        {{ "1 - sum((teacher - student) ^ 2) / nullif(regr_sxx(teacher, teacher), 0)" if is_value
           else "avg((teacher = student)::int)" }} as fidelity
    from compared
)
select rows, fidelity, {{ at_least }} as at_least
from measured
where rows < {{ min_rows }} or rows > 0 and (fidelity >= {{ at_least }}) is not true
{% endtest %}
