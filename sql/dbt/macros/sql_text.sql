{# A value as SQL text: a string is quoted, a list becomes text[], a relation its name as text. #}
{% macro sql_value(value) %}
    {%- if value is none -%} null
    {%- elif value is boolean or value is number -%} {{ value }}
    {%- elif value is string and "\\" in value -%} E'{{ value | replace("'", "''") | replace("\\", "\\\\") }}'
    {%- elif value is string -%} '{{ value | replace("'", "''") }}'
    {%- elif value.identifier is defined -%} '{{ (value ~ "") | replace("'", "''") }}'
    {%- elif value | length == 0 -%} array[]::text[]
    {%- else -%}
        array[{% for item in value %}{{ pg_distill.sql_value(item ~ "") }}{{ ", " if not loop.last }}{% endfor %}]
    {%- endif -%}
{% endmacro %}

{# Arguments in named notation; those that are none are left to the function's defaults. #}
{% macro sql_arguments(arguments) %}
    {%- set given = [] -%}
    {%- for name, value in arguments.items() if value is not none -%}
        {%- do given.append(name ~ " => " ~ (pg_distill.sql_value(value) | trim)) -%}
    {%- endfor -%}
    {{ given | join(", ") }}
{% endmacro %}
