{% macro predict(model, features=none, row=none) %}
    {{- pg_distill.prediction("predict", model, features, row) -}}
{% endmacro %}

{% macro predict_class(model, features=none, row=none) %}
    {{- pg_distill.prediction("predict_class", model, features, row) -}}
{% endmacro %}

{% macro predict_classes(model, features=none, row=none) %}
    {{- pg_distill.prediction("predict_classes", model, features, row) -}}
{% endmacro %}

{% macro predict_proba(model, features=none, row=none) %}
    {{- pg_distill.prediction("predict_proba", model, features, row) -}}
{% endmacro %}

{% macro score(model, rows, key_column, key_type="text") %}
    {{- pg_distill._scored("score", "prediction", model, rows, key_column, key_type) -}}
{% endmacro %}

{% macro score_class(model, rows, key_column, key_type="text") %}
    {{- pg_distill._scored("score_class", "class", model, rows, key_column, key_type) -}}
{% endmacro %}

{# The rows of score or score_class, whose answer is in a column of another name. #}
{% macro _scored(function, answer, model, rows, key_column, key_type) %}
    {%- set query = "select * from " ~ rows if rows.identifier is defined else rows -%}
    (select s.key::{{ key_type }} as {{ adapter.quote(key_column) }}, s.{{ answer }}
     from distill.{{ function }}({{ pg_distill.sql_value(model) }}, {{ pg_distill.sql_value(query) }}, {{ pg_distill.sql_value(key_column) }}) as s)
{%- endmacro %}

{# One prediction, of an array of numeric columns or of a row with its column names. #}
{% macro prediction(function, model, features, row) %}
    {%- if (features is none) == (row is none) -%}
        {%- do exceptions.raise_compiler_error(function ~ " wants either features or row") -%}
    {%- endif -%}
    {%- if row is not none -%}
        {#- Of an alias all columns: alone it would be a column of that name, where the relation has one. -#}
        {%- set columns = row ~ ".*" if modules.re.fullmatch('[A-Za-z_][A-Za-z0-9_$]*|"([^"]|"")+"', row) else row -%}
        distill.{{ function }}({{ pg_distill.sql_value(model) }}, to_jsonb({{ columns }}))
    {%- else -%}
        distill.{{ function }}({{ pg_distill.sql_value(model) }}, array[{{ features | join(", ") }}]::float8[])
    {%- endif -%}
{% endmacro %}
