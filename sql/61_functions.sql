CREATE FUNCTION distill.to_sql(model text, pgvector boolean DEFAULT NULL) RETURNS text
LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.to_sql(plpy, model, pgvector)
$$;
COMMENT ON FUNCTION distill.to_sql(text, boolean) IS 'the model as one SQL expression over columns that are named as its features: a probability or value; of a class compare it with the model''s class_threshold; of a network with pgvector: true, without: false, unless told otherwise where it is';

CREATE FUNCTION distill.create_function(
    model text, function_name text, as_sql boolean DEFAULT false, replace boolean DEFAULT false, keep_dependents boolean DEFAULT false,
    pgvector boolean DEFAULT NULL
) RETURNS regprocedure LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.create_function(plpy, model, function_name, as_sql, replace, keep_dependents, pgvector)
$$;
COMMENT ON FUNCTION distill.create_function(text, text, boolean, boolean, boolean, boolean) IS
    'make a function of the model with its features as named, typed arguments (over 100: as one row), of what predict gives: of a class compare it with the model''s class_threshold; as_sql: the student itself, IMMUTABLE, in SQL or PL/pgSQL and without the extension, pgvector as in to_sql; replace: one of your own, refused while an index or the like holds its results unless keep_dependents, which names what to renew';
