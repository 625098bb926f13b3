CREATE FUNCTION distill._choose_model(name text, max_latency_ms float8, min_accuracy float8, snapshot bytea) RETURNS text
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.choose_model(plpy, name, max_latency_ms, min_accuracy, snapshot)
$$;
COMMENT ON FUNCTION distill._choose_model(text, float8, float8, bytea) IS 'internal: choose_model, given the statement''s snapshot';
CREATE FUNCTION distill.choose_model(name text, max_latency_ms float8 DEFAULT NULL, min_accuracy float8 DEFAULT NULL) RETURNS text
LANGUAGE sql STABLE
RETURN distill._choose_model(name, max_latency_ms, min_accuracy, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.choose_model(text, float8, float8) IS
    'the most accurate model within both bounds, as name:version. It is one of the name''s family: teacher, students, versions. An error where there is none';

CREATE FUNCTION distill.warm_up(models text[], OUT model text, OUT milliseconds float8) RETURNS SETOF record
LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.warm_up(plpy, models)
$$;
COMMENT ON FUNCTION distill.warm_up(text[]) IS 'open the sessions of models in this backend before the first prediction; how long each took';
