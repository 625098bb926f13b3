{% macro register(
    name, path=none, expression=none, outputs=none, sample=none, label=none, features=none, version=none, task=none,
    classes=none, latency_ms=none, text_columns=none, tokenizer=none, max_tokens=none
) %}
    {%- if not execute -%}{{ return("") }}{%- endif -%}
    {%- set kinds = [path, expression, outputs] | reject("none") | list -%}
    {%- if kinds | length != 1 -%}
        {%- do exceptions.raise_compiler_error("register wants one of path, expression and outputs") -%}
    {%- endif -%}
    {%- if path is none and (tokenizer is not none or max_tokens is not none) -%}
        {%- do exceptions.raise_compiler_error("tokenizer and max_tokens go with path") -%}
    {%- endif -%}
    {%- if path is not none -%}
        {%- set function, own = "register_model_file", {"path": path, "tokenizer": tokenizer, "max_tokens": max_tokens} -%}
        {%- set content = "pg_read_binary_file(" ~ pg_distill.sql_value(path) ~ ")" -%}
    {%- elif expression is not none -%}
        {%- set function, own = "register_sql_model", {"expression": expression} -%}
        {%- set content = "convert_to(" ~ pg_distill.sql_value(expression) ~ ", 'UTF8')" -%}
    {%- else -%}
        {%- set function, own = "register_logged_model", {"outputs": outputs, "latency_ms": latency_ms} -%}
        {%- set content = "convert_to(" ~ pg_distill.sql_value(tojson(outputs)) ~ ", 'UTF8')" -%}
    {%- endif -%}
    {# The registry keeps a relation as a query, with its schema. A query has a blank in it, a relation's plain name has none. #}
    {%- if sample is string and not modules.re.search("\\s", sample) -%}
        {%- set stored = "(select format('SELECT * FROM %I.%I', n.nspname, c.relname) from pg_class c"
            ~ " join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass(" ~ pg_distill.sql_value(sample) ~ "))" -%}
    {%- elif sample.identifier is defined -%}
        {%- set stored = "format('SELECT * FROM %I.%I', " ~ pg_distill.sql_value(sample.schema) ~ ", "
            ~ pg_distill.sql_value(sample.identifier) ~ ")" -%}
    {%- else -%}
        {%- set stored = pg_distill.sql_value(sample) ~ "::text" -%}
    {%- endif -%}
    {%- set same = "m.sha256 = encode(sha256(" ~ content ~ "), 'hex')" -%}
    {%- if tokenizer is not none -%}
        {# The registry's file is the model's, and the tokenizer behind it. #}
        {%- set same = "exists (select from (select " ~ content ~ " as f, pg_read_binary_file(" ~ pg_distill.sql_value(tokenizer)
            ~ ") as t) c where substr(m.artifact, 1, octet_length(c.f)) = c.f"
            ~ " and substr(m.artifact, octet_length(m.artifact) - octet_length(c.t) + 1) = c.t"
            ~ " and octet_length(m.artifact) between octet_length(c.f) + octet_length(c.t) and octet_length(c.f) + octet_length(c.t) + 64)"
            ~ " and (m.input_schema ->> 'max_tokens')::int = " ~ (max_tokens if max_tokens is not none else 256) -%}
    {%- endif -%}
    {%- set present = run_query(
        "select m.version from distill.models m where m.active and m.name = " ~ pg_distill.sql_value(name)
        ~ " and " ~ same
        ~ " and m.label is not distinct from " ~ pg_distill.sql_value(label) ~ "::text"
        ~ " and m.sample is not distinct from " ~ stored
        ~ (" and m.version = " ~ pg_distill.sql_value(version) if version is not none else "")
    ).rows -%}
    {%- if present | length -%}
        {%- do log('model "' ~ name ~ ":" ~ present[0]["version"] ~ '" is registered already', info=true) -%}
        {{ return("") }}
    {%- endif -%}
    {%- do own.update(
        {"name": name, "sample": sample, "label": label, "features": features, "version": version, "task": task,
         "classes": classes, "text_columns": text_columns}
    ) -%}
    {%- do run_query("select distill." ~ function ~ "(" ~ pg_distill.sql_arguments(own) ~ ")") -%}
    {%- set made = pg_distill.active_version(name) -%}
    {%- do log('registered model "' ~ name ~ ":" ~ made ~ '"', info=true) -%}
    {{ return("") }}
{% endmacro %}

{% macro active_version(name) %}
    {%- if not execute -%}{{ return(none) }}{%- endif -%}
    {%- set rows = run_query(
        "select m.version from distill.models m where m.active and m.name = " ~ pg_distill.sql_value(name)
    ).rows -%}
    {{ return(rows[0]["version"] if rows | length else none) }}
{% endmacro %}
