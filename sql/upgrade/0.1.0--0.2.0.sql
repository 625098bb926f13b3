-- From 0.1.0 to 0.2.0. What exists since 0.1.0 is changed here; a file that is new in 0.2.0 is included whole (and 69_parallel.sql,
-- which has new functions to label).

-- As in 00_schema.sql.
SET LOCAL search_path TO pg_catalog, pg_temp;

-- Before anything is changed: the module of this version has to be there.
CREATE OR REPLACE FUNCTION distill._check_module() RETURNS void
LANGUAGE plpython3u AS $$
try:
    from pg_distill import sqlapi
except (ImportError, OSError) as error:
    plpy.error(f"Python module pg_distill cannot be imported: {error}", sqlstate="55000",
               hint="Install it for the server's Python (make install) and open a new session.")
sqlapi.check_module(plpy)
$$;
SELECT distill._check_module();

-- include 05_rights.sql

-- Rows of 0.1.0 were written by whoever had the GRANTs for it; from here on nobody has them.
ALTER TABLE distill.models ADD COLUMN attested boolean NOT NULL DEFAULT false;
ALTER TABLE distill.runs ADD COLUMN attested boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN distill.models.owner IS 'the role that registered it, for which its stored SQL may run; see distill.owners';
COMMENT ON COLUMN distill.models.attested IS 'whether this server has measured its figures; where not (a worker measured, a superuser wrote the row) they count for its owner, and for all where that is a superuser';
COMMENT ON COLUMN distill.runs.owner IS 'the role that ran it; see distill.owners';
COMMENT ON COLUMN distill.runs.attested IS 'whether this server has measured its figures; where not (a worker measured, a superuser wrote the row) they count for its owner, and for all where that is a superuser';
UPDATE distill.models SET attested = true;
UPDATE distill.runs SET attested = true;
INSERT INTO distill.owners (name, role)
SELECT r.rolname, r.oid FROM pg_catalog.pg_roles r
WHERE r.rolname::text IN (SELECT m.owner FROM distill.models m UNION SELECT n.owner FROM distill.runs n);

-- Several labels a row.
ALTER TABLE distill.models DROP CONSTRAINT models_task_check;
ALTER TABLE distill.models ADD CHECK (task IN ('binary', 'multiclass', 'regression', 'multilabel'));
COMMENT ON COLUMN distill.models.task IS 'binary, multiclass, multilabel (several labels a row) or regression';

-- Foreign keys between tables that pg_restore loads in parallel lose rows: triggers do what their ON DELETE did.
ALTER TABLE distill.runs DROP CONSTRAINT runs_teacher_id_fkey, DROP CONSTRAINT runs_student_id_fkey;
ALTER TABLE distill.candidates DROP CONSTRAINT candidates_run_id_fkey;
CREATE FUNCTION distill._forget_models() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE distill.runs r SET teacher_id = NULL WHERE r.teacher_id IN (SELECT d.id FROM deleted d);
    UPDATE distill.runs r SET student_id = NULL WHERE r.student_id IN (SELECT d.id FROM deleted d);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION distill._forget_models() IS 'internal: trigger by which runs forget the ids of models that are deleted';
CREATE TRIGGER forget_models AFTER DELETE ON distill.models
REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION distill._forget_models();
COMMENT ON TRIGGER forget_models ON distill.models IS 'a run outlives its models';

CREATE FUNCTION distill._drop_candidates() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM distill.candidates c WHERE c.run_id IN (SELECT d.run_id FROM deleted d);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION distill._drop_candidates() IS 'internal: trigger by which the candidates of a run are deleted with it';
CREATE TRIGGER drop_candidates AFTER DELETE ON distill.runs
REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION distill._drop_candidates();
COMMENT ON TRIGGER drop_candidates ON distill.runs IS 'candidates go with their run';

-- Students in SQL form.
ALTER TABLE distill.models ADD COLUMN form text NOT NULL DEFAULT 'predict' CHECK (form IN ('predict', 'sql', 'cascade'));
ALTER TABLE distill.models ADD COLUMN threshold float8;
ALTER TABLE distill.models ADD CHECK ((form = 'cascade') = (threshold IS NOT NULL));
ALTER TABLE distill.models ADD COLUMN origin jsonb;
COMMENT ON COLUMN distill.models.origin IS 'who said what it is to predict (the library that it was converted from, or a column), on how many rows, and the largest difference; NULL where nobody did';
COMMENT ON COLUMN distill.models.form IS 'how it answers, which is what its latency is of: predict, its SQL expression in a query, or predict with its teacher behind it';
COMMENT ON COLUMN distill.models.threshold IS 'form cascade: the confidence of the student, its largest probability, from which its teacher is not asked';
CREATE OR REPLACE FUNCTION distill._protect_model() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (OLD.id, OLD.name, OLD.version, OLD.task, OLD.kind, OLD.artifact, OLD.expression, OLD.sha256, OLD.input_schema,
        OLD.output_schema, OLD.sample, OLD.label, OLD.teacher_id, OLD.created_at, OLD.form, OLD.threshold, OLD.learned_from,
        OLD.class_threshold)
       IS DISTINCT FROM
       (NEW.id, NEW.name, NEW.version, NEW.task, NEW.kind, NEW.artifact, NEW.expression, NEW.sha256, NEW.input_schema,
        NEW.output_schema, NEW.sample, NEW.label, NEW.teacher_id, NEW.created_at, NEW.form, NEW.threshold, NEW.learned_from,
        NEW.class_threshold)
    THEN
        RAISE EXCEPTION 'version "%" of model "%" cannot be edited', OLD.version, OLD.name
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Register another version.';
    END IF;
    IF NEW IS DISTINCT FROM OLD THEN -- a family is locked by writing its teacher's row as it is
        NEW.updated_at := now();
    END IF;
    RETURN NEW;
END
$$;
-- Which rows a student has learned from: of those of 0.1.0 nobody knows.
ALTER TABLE distill.models ADD COLUMN learned_from jsonb;
ALTER TABLE distill.runs ADD COLUMN learned_from jsonb;
ALTER TABLE distill.models ADD COLUMN class_threshold float8;
ALTER TABLE distill.candidates ADD COLUMN class_threshold float8;
COMMENT ON COLUMN distill.models.class_threshold IS 'of two classes: the probability of the last one from which predict_class names it, found by the run for its metric; NULL: where it is the more probable';
COMMENT ON COLUMN distill.candidates.class_threshold IS 'of two classes: the probability of the last one from which it is named, where that is better for the metric on the select rows than one half';
COMMENT ON FUNCTION distill.predict_class(text, float8[]) IS 'the most probable class, or by the model''s class_threshold, for a row of numeric features in order';
COMMENT ON FUNCTION distill.predict_class(text, jsonb) IS 'the most probable class, or by the model''s class_threshold, for a row of named columns';
COMMENT ON COLUMN distill.models.learned_from IS 'of a student: digests of the rows that it was fitted to, selected on or taught by its teacher, which never judge it; NULL: not known, as of older releases';
COMMENT ON COLUMN distill.runs.learned_from IS 'digests of the rows that its candidates learned from, as in distill.models';
COMMENT ON COLUMN distill.models.measured_on IS 'rows, predict path, machine and server of the figures; accuracy_run_id where the accuracy is another run''s, because the model learned from the rows of run_id; twin where the figures are of the file with that sha256, by whose recipe the model learned from the test rows too';
ALTER TABLE distill.candidates ADD COLUMN form text NOT NULL DEFAULT 'predict' CHECK (form IN ('predict', 'sql', 'cascade'));
ALTER TABLE distill.candidates ADD COLUMN statement_latency_ms float8;
ALTER TABLE distill.candidates ADD COLUMN threshold float8;
COMMENT ON COLUMN distill.candidates.artifact IS 'its ONNX file, kept for those on the frontier of the select or the test rows';
COMMENT ON COLUMN distill.candidates.form IS 'how it answers, which is what its latency is of: predict, its SQL expression in a query, or predict with its teacher behind it';
COMMENT ON COLUMN distill.candidates.statement_latency_ms IS 'form sql: median of a statement for one row, parsing and planning included';
COMMENT ON COLUMN distill.candidates.threshold IS 'form cascade: the confidence from which the teacher is not asked';
CREATE OR REPLACE VIEW distill.families AS
WITH RECURSIVE lineage(root, id) AS (
    SELECT m.name, m.id FROM distill.models m WHERE m.teacher_id IS NULL
    UNION
    SELECT l.root, m.id FROM lineage l JOIN distill.models m ON m.teacher_id = l.id
)
SELECT l.root AS family, m.id AS model_id, m.name, m.version, m.active, m.kind, m.teacher_id, m.metric, m.accuracy,
       m.accuracy_low, m.accuracy_high, m.avg_latency_ms, m.latency_low_ms, m.latency_high_ms, m.latency_declared,
       m.size_bytes, m.measured_at, m.form, m.measured_on ->> 'accuracy_run_id' AS accuracy_run_id,
       coalesce((m.measured_on ->> 'comparable_low')::float8, m.accuracy) AS comparable_low,
       coalesce((m.measured_on ->> 'comparable_high')::float8, m.accuracy) AS comparable_high,
       coalesce(m.measured_on ? 'twin', false) AS of_twin
FROM lineage l JOIN distill.models m USING (id)
WHERE m.teacher_id IS NULL OR m.attested OR distill._is_trusted(m.owner);
CREATE OR REPLACE VIEW distill.frontier AS
SELECT a.*
FROM distill.families a
WHERE a.avg_latency_ms IS NOT NULL AND a.accuracy IS NOT NULL
  AND NOT EXISTS (
      SELECT FROM distill.families b
      WHERE b.family = a.family AND b.metric = a.metric
        AND b.avg_latency_ms <= a.avg_latency_ms AND b.comparable_low >= a.comparable_high
        AND (b.avg_latency_ms < a.avg_latency_ms OR b.comparable_low > a.comparable_high)
        AND b.accuracy_run_id IS NOT DISTINCT FROM a.accuracy_run_id -- figures of other rows do not compare
        AND (a.form = 'sql' OR b.form <> 'sql') -- an expression is no answer to who calls predict
  );

COMMENT ON COLUMN distill.runs.sample_digest IS 'digest of the sampled rows, their labels, splits and weights: run_rows warns where these have changed since';
COMMENT ON FUNCTION distill.run_rows(uuid) IS
    'the rows of a run''s sample and the split of each, so that its figures can be recomputed. Splits are fit, select, test and unlabelled; NULL for rows left out';

-- Functions of dropped models are dropped by who drops the model, with that role's rights.
DROP TRIGGER drop_functions ON distill.models;
DROP FUNCTION distill._drop_functions();
-- A new argument makes another function.
DROP FUNCTION distill.create_function(text, text, boolean, boolean);
DROP FUNCTION distill.to_sql(text);
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

CREATE OR REPLACE VIEW distill.leaderboard AS
SELECT r.teacher_name, r.student_name, r.student_version, r.metric, r.teacher_accuracy, r.student_accuracy, r.lift,
       r.teacher_latency_ms, r.student_latency_ms, r.teacher_latency_ms / r.student_latency_ms AS speedup,
       r.pareto_score, r.latency_declared, r.summary, r.run_id, r.student_id, r.created_at
FROM distill.runs r
WHERE r.accepted AND (r.attested OR distill._is_trusted(r.owner))
ORDER BY r.pareto_score DESC NULLS LAST, r.created_at DESC;

-- Settings are checked however they come.
CREATE FUNCTION distill._check_setting() RETURNS trigger
LANGUAGE plpython3u SET search_path = pg_catalog, pg_temp AS $$
from pg_distill import sqlapi
sqlapi.check_changed_setting(plpy, TD["old"], TD["new"])
$$;
COMMENT ON FUNCTION distill._check_setting() IS 'internal: trigger that takes values of settings only, and from administrators none that makes a superuser of them';
CREATE TRIGGER check_setting BEFORE INSERT OR UPDATE OR DELETE ON distill.settings FOR EACH ROW EXECUTE FUNCTION distill._check_setting();
COMMENT ON TRIGGER check_setting ON distill.settings IS 'what change_setting refuses is refused however it comes';

-- Views read as who asks, not as their owner.
ALTER VIEW distill.families SET (security_invoker = true);
ALTER VIEW distill.frontier SET (security_invoker = true);
ALTER VIEW distill.leaderboard SET (security_invoker = true);
-- No temporary type stands in for the cursor's.
CREATE OR REPLACE FUNCTION distill._open_cursor(query text) RETURNS refcursor
LANGUAGE plpgsql STABLE AS $$
DECLARE
    cursor pg_catalog.refcursor;
BEGIN
    PERFORM pg_catalog.set_config('transaction_read_only', 'on', true);
    OPEN cursor NO SCROLL FOR EXECUTE query;
    RETURN cursor;
END
$$;
-- The set-returning function stands in a select list and is called as its rows are asked for; in FROM it would be run to its end
-- first. The planner writes this function's query into the caller's, so that it streams there too.
CREATE OR REPLACE FUNCTION distill.score(model text, query text, key_column text, OUT key text, OUT prediction float8)
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

-- Another argument, and another default of one.
DROP FUNCTION @extschema@.distill_model(text, float8, float8, float8, int, bigint, text, text, text, int, float8, text, text[], text, text, text, text);
-- include 41_distill_model.sql
REVOKE ALL ON FUNCTION @extschema@.distill_model(text, float8, float8, float8, int, bigint, text, text, text, int, float8, text, text[], text, text, text, text, text, text[], int, boolean, jsonb) FROM PUBLIC;
-- They have more arguments.
DROP FUNCTION distill.register_model(text, bytea, text[], text, text, text, text, text[]);
DROP FUNCTION distill.register_model_file(text, text, text[], text, text, text, text, text[]);
DROP FUNCTION distill.register_sql_model(text, text, text[], text, text, text, text, text[]);
DROP FUNCTION distill.register_logged_model(text, text[], text[], text, text, text, text, text[], float8);
-- include 11_registering.sql
-- Rows of more numbers than any model takes are refused before PL/Python reads them.
-- include 49_bounds.sql
CREATE OR REPLACE FUNCTION distill.predict(model text, features float8[]) RETURNS float8
LANGUAGE sql STABLE
RETURN distill._predict(model, features::distill._numbers, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
CREATE OR REPLACE FUNCTION distill.predict_proba(model text, features float8[]) RETURNS float8[]
LANGUAGE sql STABLE
RETURN distill._predict_proba(model, features::distill._numbers, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
CREATE OR REPLACE FUNCTION distill.predict_class(model text, features float8[]) RETURNS text
LANGUAGE sql STABLE
RETURN distill._predict_class(model, features::distill._numbers, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
CREATE OR REPLACE FUNCTION distill.predict(model text, numbers float8[], strings text[]) RETURNS float8
LANGUAGE sql STABLE
RETURN distill._predict(model, numbers::distill._numbers, strings::distill._strings, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
CREATE OR REPLACE FUNCTION distill.predict_proba(model text, numbers float8[], strings text[]) RETURNS float8[]
LANGUAGE sql STABLE
RETURN distill._predict_proba(model, numbers::distill._numbers, strings::distill._strings, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
-- include 50_predict.sql since 0.2.0
-- include 60_batch.sql since 0.2.0
-- include 64_prune.sql
-- include 65_guard.sql
-- include 69_parallel.sql
-- include 70_jobs.sql
-- include 71_watch.sql
-- include 72_doctor.sql
-- include 80_view_columns.sql

-- The same, in shorter sentences.
COMMENT ON FUNCTION distill.dominates_pareto(float8, float8, float8[]) IS
    'whether a point improves a frontier of {latency, accuracy} rows. None of them dominates or equals it; any point improves the empty frontier';
COMMENT ON FUNCTION distill.choose_model(text, float8, float8) IS
    'the most accurate model within both bounds, as name:version. It is one of the name''s family: teacher, students, versions. An error where there is none';
COMMENT ON FUNCTION distill.predict(text, float8[], text[]) IS 'the probability of the last class (binary) or the value (regression). The row: numeric features in order, then string features in order';

-- As for all functions: nothing for PUBLIC.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA distill FROM PUBLIC;
