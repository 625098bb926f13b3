CREATE FUNCTION distill.to_sql(model text, pgvector boolean DEFAULT NULL, function_name text DEFAULT NULL) RETURNS text
LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.to_sql(plpy, model, pgvector, function_name)
$$;
COMMENT ON FUNCTION distill.to_sql(text, boolean, text) IS 'the model as one SQL expression over columns that are named as its features. It gives a probability or value; for a class compare it with the model''s class_threshold. pgvector: a network with pgvector where true, without where false; else with it where it is installed. function_name: a script instead, which makes a function of this name on any PostgreSQL, and the table that a student of texts reads';

CREATE FUNCTION distill.create_function(
    model text, function_name text, as_sql boolean DEFAULT false, replace boolean DEFAULT false, keep_dependents boolean DEFAULT false,
    pgvector boolean DEFAULT NULL
) RETURNS regprocedure LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.create_function(plpy, model, function_name, as_sql, replace, keep_dependents, pgvector)
$$;
COMMENT ON FUNCTION distill.create_function(text, text, boolean, boolean, boolean, boolean) IS
    'make a function that gives what predict gives, with the model''s features as named, typed arguments (over 100: as one row). For a class compare it with the model''s class_threshold. as_sql: the student itself, IMMUTABLE, in SQL or PL/pgSQL and without the extension; one of texts is STABLE, and its words stand in a table beside it, NAME_ngrams; pgvector as in to_sql. replace: one of your own. It is refused while an index or the like holds its results; keep_dependents allows it, and names what to renew';
