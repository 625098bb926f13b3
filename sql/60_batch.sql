-- Two built-in functions under other types, which cost nothing an element, where array_send or text take 20 ns. Both are safe
-- on every build: byteasend copies a value of variable length, compressed, in TOAST or expanded, which an array is as a bytea
-- is; int8up returns an int8, which every build passes as it passes a float8 (FLOAT8PASSBYVAL governs both). Neither reads
-- beyond its argument. A server without them refuses to install the extension (the validator of LANGUAGE internal looks them
-- up), and tests/sql/test_serving.py holds them to their bytes on every major version. Only a superuser can create such
-- functions, and only roles that were granted them can call these.
CREATE FUNCTION distill._array_bytes(numbers float8[]) RETURNS bytea
LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteasend';
COMMENT ON FUNCTION distill._array_bytes(float8[]) IS 'internal: an array as the server keeps it';
CREATE FUNCTION distill._float8_of_bits(bits int8) RETURNS float8
LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'int8up';
COMMENT ON FUNCTION distill._float8_of_bits(int8) IS 'internal: the float8 that has these bits';

CREATE FUNCTION distill._predict_batch(model text, features bytea, snapshot bytea) RETURNS float8[]
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_batch(plpy, model, features, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_batch(text, bytea, bytea) IS 'internal: predict_batch, given the bytes of the features and the statement''s snapshot';
CREATE FUNCTION distill.predict_batch(model text, features float8[][]) RETURNS float8[]
LANGUAGE sql STABLE
RETURN distill._predict_batch(model, distill._array_bytes(pg_catalog.array_replace(features, NULL, 'NaN')),
                              pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_batch(text, float8[]) IS 'the prediction of each row of a two-dimensional array, in order: probabilities of the last class, or values';

-- STABLE, so that the query sees what the statement sees that scores it. Read-only lasts until PL/Python ends the
-- subtransaction of the statement that called this.
CREATE FUNCTION distill._open_cursor(query text) RETURNS refcursor
LANGUAGE plpgsql STABLE AS $$
DECLARE
    cursor pg_catalog.refcursor;
BEGIN
    PERFORM pg_catalog.set_config('transaction_read_only', 'on', true);
    OPEN cursor NO SCROLL FOR EXECUTE query;
    RETURN cursor;
END
$$;
COMMENT ON FUNCTION distill._open_cursor(text) IS 'internal: a cursor over one query, in the statement''s snapshot';

CREATE FUNCTION distill._score(
    model text, query text, key_column text, snapshot bytea,
    OUT keys text, OUT separator text, OUT null_key text, OUT predictions text
) RETURNS SETOF record LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.score(plpy, model, query, key_column, snapshot)
$$;
COMMENT ON FUNCTION distill._score(text, text, text, bytea) IS 'internal: score, in chunks of rows';
-- The set-returning function stands in a select list and is called as its rows are asked for; in FROM it would be run to its end
-- first. The planner writes this function's query into the caller's, so that it streams there too.
CREATE FUNCTION distill.score(model text, query text, key_column text, OUT key text, OUT prediction float8)
RETURNS SETOF record LANGUAGE sql STABLE ROWS 100000
BEGIN ATOMIC
    -- In the select list, too: ROWS FROM would write each chunk into a store and read it back.
    SELECT pg_catalog.unnest(CASE (s.c).keys
               -- string_to_array makes no element of an empty text
               WHEN '' THEN ARRAY[NULLIF('', (s.c).null_key)]
               ELSE pg_catalog.string_to_array((s.c).keys, (s.c).separator, (s.c).null_key) END),
           distill._float8_of_bits(pg_catalog.unnest((s.c).predictions::int8[]))
    FROM (SELECT distill._score(model, query, key_column, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot())) AS c) s;
END;
COMMENT ON FUNCTION distill.score(text, text, text) IS 'a key column, as text, and the prediction of every row of a relation or read-only query, in constant memory';

-- since 0.2.0

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
COMMENT ON FUNCTION distill.score_class(text, text, text) IS 'a key column, as text, and the class of every row of a relation or read-only query, in constant memory. The most probable one, or by the model''s class_threshold';
