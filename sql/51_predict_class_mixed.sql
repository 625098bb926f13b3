-- predict_class for rows with strings, beside predict and predict_proba for them.

CREATE FUNCTION distill._predict_class(model text, numbers float8[], strings text[], snapshot bytea) RETURNS text
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_class_mixed(plpy, model, numbers, strings, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_class(text, float8[], text[], bytea) IS 'internal: predict_class, given the statement''s snapshot';
CREATE FUNCTION distill.predict_class(model text, numbers float8[], strings text[]) RETURNS text
LANGUAGE sql STABLE
RETURN distill._predict_class(model, numbers::distill._numbers, strings::distill._strings, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_class(text, float8[], text[]) IS 'the most probable class, or by the model''s class_threshold, for a row of numeric features in order and string features in order';
