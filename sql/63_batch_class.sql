-- score and predict_batch for the most probable class, which models of more than two classes have instead of one number.

CREATE FUNCTION distill._predict_class_batch(model text, features bytea, snapshot bytea) RETURNS text[]
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_class_batch(plpy, model, features, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_class_batch(text, bytea, bytea) IS 'internal: predict_class_batch, given the bytes of the features and the statement''s snapshot';
CREATE FUNCTION distill.predict_class_batch(model text, features float8[][]) RETURNS text[]
LANGUAGE sql STABLE
RETURN distill._predict_class_batch(model, distill._array_bytes(pg_catalog.array_replace(features, NULL, 'NaN')),
                                    pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_class_batch(text, float8[]) IS 'the most probable class, or by the model''s class_threshold, for each row of a two-dimensional array, in order';

CREATE FUNCTION distill._score_class(
    model text, query text, key_column text, snapshot bytea,
    OUT keys text, OUT separator text, OUT null_key text, OUT classes text, OUT class_separator text
) RETURNS SETOF record LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.score_class(plpy, model, query, key_column, snapshot)
$$;
COMMENT ON FUNCTION distill._score_class(text, text, text, bytea) IS 'internal: score_class, in chunks of rows';
-- As score, in every respect.
CREATE FUNCTION distill.score_class(model text, query text, key_column text, OUT key text, OUT class text)
RETURNS SETOF record LANGUAGE sql STABLE ROWS 100000
BEGIN ATOMIC
    SELECT pg_catalog.unnest(CASE (s.c).keys
               WHEN '' THEN ARRAY[NULLIF('', (s.c).null_key)]
               ELSE pg_catalog.string_to_array((s.c).keys, (s.c).separator, (s.c).null_key) END),
           pg_catalog.unnest(CASE (s.c).classes
               WHEN '' THEN ARRAY['']
               ELSE pg_catalog.string_to_array((s.c).classes, (s.c).class_separator) END)
    FROM (SELECT distill._score_class(model, query, key_column, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot())) AS c) s;
END;
COMMENT ON FUNCTION distill.score_class(text, text, text) IS 'a key column, as text, and the most probable class, or by the model''s class_threshold, of every row of a relation or read-only query, in constant memory';
