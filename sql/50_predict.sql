-- A name is resolved once a statement. The wrappers are inlined, and hand on the snapshot in which it is resolved: what
-- was found under the same snapshot, role and command is found again without a query. STABLE: it is the statement's.

CREATE FUNCTION distill._predict(model text, features float8[], snapshot bytea) RETURNS float8
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict(plpy, model, features, snapshot)
$$;
COMMENT ON FUNCTION distill._predict(text, float8[], bytea) IS 'internal: predict, given the statement''s snapshot';
CREATE FUNCTION distill.predict(model text, features float8[]) RETURNS float8
LANGUAGE sql STABLE
RETURN distill._predict(model, features::distill._numbers, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict(text, float8[]) IS 'the probability of the last class (binary) or the value (regression) for a row of numeric features in order';

CREATE FUNCTION distill._predict(model text, "row" jsonb, snapshot bytea) RETURNS float8
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict(plpy, model, row, snapshot)
$$;
COMMENT ON FUNCTION distill._predict(text, jsonb, bytea) IS 'internal: predict, given the statement''s snapshot';
CREATE FUNCTION distill.predict(model text, "row" jsonb) RETURNS float8
LANGUAGE sql STABLE
RETURN distill._predict(model, "row", pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict(text, jsonb) IS 'the probability of the last class (binary) or the value (regression) for a row of named columns';

CREATE FUNCTION distill._predict_proba(model text, features float8[], snapshot bytea) RETURNS float8[]
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_proba(plpy, model, features, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_proba(text, float8[], bytea) IS 'internal: predict_proba, given the statement''s snapshot';
CREATE FUNCTION distill.predict_proba(model text, features float8[]) RETURNS float8[]
LANGUAGE sql STABLE
RETURN distill._predict_proba(model, features::distill._numbers, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_proba(text, float8[]) IS 'the probability of each class, in the order of the model''s classes for a row of numeric features in order';

CREATE FUNCTION distill._predict_proba(model text, "row" jsonb, snapshot bytea) RETURNS float8[]
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_proba(plpy, model, row, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_proba(text, jsonb, bytea) IS 'internal: predict_proba, given the statement''s snapshot';
CREATE FUNCTION distill.predict_proba(model text, "row" jsonb) RETURNS float8[]
LANGUAGE sql STABLE
RETURN distill._predict_proba(model, "row", pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_proba(text, jsonb) IS 'the probability of each class, in the order of the model''s classes for a row of named columns';

CREATE FUNCTION distill._predict_class(model text, features float8[], snapshot bytea) RETURNS text
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_class(plpy, model, features, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_class(text, float8[], bytea) IS 'internal: predict_class, given the statement''s snapshot';
CREATE FUNCTION distill.predict_class(model text, features float8[]) RETURNS text
LANGUAGE sql STABLE
RETURN distill._predict_class(model, features::distill._numbers, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_class(text, float8[]) IS 'the most probable class, or by the model''s class_threshold, for a row of numeric features in order';

CREATE FUNCTION distill._predict_class(model text, "row" jsonb, snapshot bytea) RETURNS text
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_class(plpy, model, row, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_class(text, jsonb, bytea) IS 'internal: predict_class, given the statement''s snapshot';
CREATE FUNCTION distill.predict_class(model text, "row" jsonb) RETURNS text
LANGUAGE sql STABLE
RETURN distill._predict_class(model, "row", pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_class(text, jsonb) IS 'the most probable class, or by the model''s class_threshold, for a row of named columns';

CREATE FUNCTION distill._predict(model text, numbers float8[], strings text[], snapshot bytea) RETURNS float8
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_mixed(plpy, model, numbers, strings, snapshot)
$$;
COMMENT ON FUNCTION distill._predict(text, float8[], text[], bytea) IS 'internal: predict, given the statement''s snapshot';
CREATE FUNCTION distill.predict(model text, numbers float8[], strings text[]) RETURNS float8
LANGUAGE sql STABLE
RETURN distill._predict(model, numbers::distill._numbers, strings::distill._strings, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict(text, float8[], text[]) IS 'the probability of the last class (binary) or the value (regression). The row: numeric features in order, then string features in order';

CREATE FUNCTION distill._predict_proba(model text, numbers float8[], strings text[], snapshot bytea) RETURNS float8[]
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_proba_mixed(plpy, model, numbers, strings, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_proba(text, float8[], text[], bytea) IS 'internal: predict_proba, given the statement''s snapshot';
CREATE FUNCTION distill.predict_proba(model text, numbers float8[], strings text[]) RETURNS float8[]
LANGUAGE sql STABLE
RETURN distill._predict_proba(model, numbers::distill._numbers, strings::distill._strings, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_proba(text, float8[], text[]) IS 'the probability of each class for a row of numeric features in order and string features in order';

-- since 0.2.0

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
COMMENT ON FUNCTION distill.predict_class(text, float8[], text[]) IS 'the most probable class, or by the model''s class_threshold. The row: numeric features in order, then string features in order';

-- A vector beside numbers and strings, of which Python reads the bytes at once: an array of 384 numbers takes 40 us to become a
-- list. See 60_batch.sql for why an array may be read as its bytes.

CREATE FUNCTION distill._vector_bytes(numbers float4[]) RETURNS bytea
LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteasend';
COMMENT ON FUNCTION distill._vector_bytes(float4[]) IS 'internal: an array as the server keeps it';

CREATE FUNCTION distill._predict(model text, numbers float8[], strings text[], vectors bytea[], snapshot bytea) RETURNS float8
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_vectors(plpy, model, numbers, strings, vectors, snapshot)
$$;
COMMENT ON FUNCTION distill._predict(text, float8[], text[], bytea[], bytea) IS 'internal: predict, given the bytes of vectors and the statement''s snapshot';
CREATE FUNCTION distill.predict(model text, numbers float8[], strings text[], vector float4[]) RETURNS float8
LANGUAGE sql STABLE
RETURN distill._predict(model, numbers::distill._numbers, strings::distill._strings, ARRAY[distill._vector_bytes(vector)], pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict(text, float8[], text[], float4[]) IS 'the probability of the last class (binary) or the value (regression) for a row of other numbers in order, strings in order, and one vector: the fastest way for it';

CREATE FUNCTION distill._predict_proba(model text, numbers float8[], strings text[], vectors bytea[], snapshot bytea) RETURNS float8[]
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_proba_vectors(plpy, model, numbers, strings, vectors, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_proba(text, float8[], text[], bytea[], bytea) IS 'internal: predict_proba, given the bytes of vectors and the statement''s snapshot';
CREATE FUNCTION distill.predict_proba(model text, numbers float8[], strings text[], vector float4[]) RETURNS float8[]
LANGUAGE sql STABLE
RETURN distill._predict_proba(model, numbers::distill._numbers, strings::distill._strings, ARRAY[distill._vector_bytes(vector)], pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_proba(text, float8[], text[], float4[]) IS 'the probability of each class for a row of other numbers in order, strings in order, and one vector: the fastest way for it';

CREATE FUNCTION distill._predict_class(model text, numbers float8[], strings text[], vectors bytea[], snapshot bytea) RETURNS text
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_class_vectors(plpy, model, numbers, strings, vectors, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_class(text, float8[], text[], bytea[], bytea) IS 'internal: predict_class, given the bytes of vectors and the statement''s snapshot';
CREATE FUNCTION distill.predict_class(model text, numbers float8[], strings text[], vector float4[]) RETURNS text
LANGUAGE sql STABLE
RETURN distill._predict_class(model, numbers::distill._numbers, strings::distill._strings, ARRAY[distill._vector_bytes(vector)], pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_class(text, float8[], text[], float4[]) IS 'the most probable class, or by the model''s class_threshold, for a row of other numbers in order, strings in order, and one vector: the fastest way for it';

-- Several labels a row: those that it has, as an array of names.

CREATE FUNCTION distill._predict_classes(model text, features float8[], snapshot bytea) RETURNS text[]
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_classes(plpy, model, features, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_classes(text, float8[], bytea) IS 'internal: predict_classes, given the statement''s snapshot';
CREATE FUNCTION distill.predict_classes(model text, features float8[]) RETURNS text[]
LANGUAGE sql STABLE
RETURN distill._predict_classes(model, features::distill._numbers, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_classes(text, float8[]) IS 'the classes that a row has, in the order of the model''s classes, of a model of several labels (task multilabel) for a row of numeric features in order';

CREATE FUNCTION distill._predict_classes(model text, "row" jsonb, snapshot bytea) RETURNS text[]
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_classes(plpy, model, row, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_classes(text, jsonb, bytea) IS 'internal: predict_classes, given the statement''s snapshot';
CREATE FUNCTION distill.predict_classes(model text, "row" jsonb) RETURNS text[]
LANGUAGE sql STABLE
RETURN distill._predict_classes(model, "row", pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_classes(text, jsonb) IS 'the classes that a row has, in the order of the model''s classes, of a model of several labels (task multilabel) for a row of named columns';

CREATE FUNCTION distill._predict_classes(model text, numbers float8[], strings text[], snapshot bytea) RETURNS text[]
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_classes_mixed(plpy, model, numbers, strings, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_classes(text, float8[], text[], bytea) IS 'internal: predict_classes, given the statement''s snapshot';
CREATE FUNCTION distill.predict_classes(model text, numbers float8[], strings text[]) RETURNS text[]
LANGUAGE sql STABLE
RETURN distill._predict_classes(model, numbers::distill._numbers, strings::distill._strings, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_classes(text, float8[], text[]) IS 'the classes that a row has, of a model of several labels (task multilabel). The row: numeric features in order, then string features in order';

CREATE FUNCTION distill._predict_classes(model text, numbers float8[], strings text[], vectors bytea[], snapshot bytea) RETURNS text[]
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_classes_vectors(plpy, model, numbers, strings, vectors, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_classes(text, float8[], text[], bytea[], bytea) IS 'internal: predict_classes, given the bytes of vectors and the statement''s snapshot';
CREATE FUNCTION distill.predict_classes(model text, numbers float8[], strings text[], vector float4[]) RETURNS text[]
LANGUAGE sql STABLE
RETURN distill._predict_classes(model, numbers::distill._numbers, strings::distill._strings, ARRAY[distill._vector_bytes(vector)], pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_classes(text, float8[], text[], float4[]) IS 'the classes that a row has, of a model of several labels (task multilabel), for a row of other numbers in order, strings in order, and one vector';
