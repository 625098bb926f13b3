{% macro distill(
    teacher, student_name=none, every=none, target_latency_ms=none, min_accuracy=none, metric=none, sample=none, label=none,
    max_rows=none, time_budget_s=none, families=none, group_column=none, time_column=none, weight_column=none,
    trained_on=none, temperature=none, epochs=none, seed=none, prefer=none, text_columns=none,
    patience=none, refit_on_all=none, monotone=none
) %}
    {%- if not execute -%}{{ return("") }}{%- endif -%}
    {%- set student = student_name or teacher.split(":")[0] ~ "_distilled" -%}
    {%- set present = pg_distill.active_version(student) -%}
    {%- if every is not none and present is not none -%}
        {%- set recent = run_query(
            "select r.started_at from distill.runs r join distill.models t on t.id = r.teacher_id"
            ~ " where r.student_name = " ~ pg_distill.sql_value(student)
            ~ " and (t.name || ':' || t.version = " ~ pg_distill.sql_value(teacher)
            ~ " or t.active and t.name = " ~ pg_distill.sql_value(teacher) ~ ")"
            ~ " and r.started_at > now() - interval " ~ pg_distill.sql_value(every) ~ " limit 1"
        ).rows -%}
        {%- if recent | length -%}
            {%- do log('student "' ~ student ~ ":" ~ present ~ '" was distilled less than ' ~ every ~ " ago", info=true) -%}
            {{ return("") }}
        {%- endif -%}
    {%- endif -%}
    {%- set monotone = tojson(monotone) if monotone is mapping else monotone -%}
    {%- set arguments = {
        "teacher": teacher, "student_name": student, "target_latency_ms": target_latency_ms, "min_accuracy": min_accuracy,
        "metric": metric, "sample": sample, "label": label, "max_rows": max_rows, "time_budget_s": time_budget_s,
        "families": families, "group_column": group_column, "time_column": time_column, "weight_column": weight_column,
        "trained_on": trained_on, "temperature": temperature, "epochs": epochs, "seed": seed, "prefer": prefer,
        "text_columns": text_columns, "patience": patience, "refit_on_all": refit_on_all,
        "monotone": monotone
    } -%}
    {# In the schema that CREATE EXTENSION named, which the search_path need not have. #}
    {%- set place = run_query(
        "select quote_ident(n.nspname) as name from pg_extension e"
        ~ " join pg_depend d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid"
        ~ " and d.classid = 'pg_proc'::regclass and d.deptype = 'e'"
        ~ " join pg_proc p on p.oid = d.objid join pg_namespace n on n.oid = p.pronamespace"
        ~ " where e.extname = 'pg_distill' and p.proname = 'distill_model'"
    ).rows[0]["name"] -%}
    {%- do run_query("select " ~ place ~ ".distill_model(" ~ pg_distill.sql_arguments(arguments) ~ ")") -%}
    {%- set run = run_query(
        "select r.accepted, r.student_version, r.summary from distill.runs r where r.student_name = "
        ~ pg_distill.sql_value(student) ~ " order by r.started_at desc limit 1"
    ).rows[0] -%}
    {# The same rows, seed and teacher make the same student, which the latency of another minute may let in as a version more. #}
    {%- set same = run["accepted"] and present is not none and run_query(
        "select count(distinct m.sha256) = 1 as same from distill.models m where m.name = " ~ pg_distill.sql_value(student)
        ~ " and m.version in (" ~ pg_distill.sql_value(present) ~ ", " ~ pg_distill.sql_value(run["student_version"]) ~ ")"
    ).rows[0]["same"] -%}
    {%- if same -%}
        {%- do run_query(
            "select distill.activate_model(" ~ pg_distill.sql_value(student) ~ ", " ~ pg_distill.sql_value(present) ~ "),"
            ~ " distill.drop_model(" ~ pg_distill.sql_value(student ~ ":" ~ run["student_version"]) ~ ")"
        ) -%}
        {%- do log('student "' ~ student ~ ":" ~ present ~ '" stays: the new one is the same', info=true) -%}
    {%- elif run["accepted"] -%}
        {%- do log(
            'student "' ~ student ~ ":" ~ run["student_version"] ~ '"'
            ~ (' replaces version "' ~ present ~ '"' if present is not none else "") ~ ": " ~ run["summary"], info=true
        ) -%}
    {%- elif present is not none -%}
        {%- do log('student "' ~ student ~ ":" ~ present ~ '" stays: ' ~ run["summary"], info=true) -%}
    {%- else -%}
        {%- do exceptions.raise_compiler_error('there is no student "' ~ student ~ '": ' ~ run["summary"]) -%}
    {%- endif -%}
    {{ return("") }}
{% endmacro %}
