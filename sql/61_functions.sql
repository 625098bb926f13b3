CREATE FUNCTION distill.to_sql(model text) RETURNS text
LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.to_sql(plpy, model)
$$;
COMMENT ON FUNCTION distill.to_sql(text) IS 'the model as one SQL expression over columns that are named as its features: a probability or value; of a class compare it with the model''s class_threshold';

CREATE FUNCTION distill.create_function(
    model text, function_name text, as_sql boolean DEFAULT false, replace boolean DEFAULT false, keep_dependents boolean DEFAULT false
) RETURNS regprocedure LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.create_function(plpy, model, function_name, as_sql, replace, keep_dependents)
$$;
COMMENT ON FUNCTION distill.create_function(text, text, boolean, boolean, boolean) IS
    'make a function of the model with its features as named, typed arguments (over 100: as one row), of what predict gives: of a class compare it with the model''s class_threshold; as_sql: the student itself in plain SQL, IMMUTABLE; replace: one of your own, refused while an index or the like holds its results unless keep_dependents, which names what to renew';
