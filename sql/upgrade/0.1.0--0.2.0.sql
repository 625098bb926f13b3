-- From 0.1.0 to 0.2.0. What exists since 0.1.0 is changed here; a file that is new in 0.2.0 is included whole (and 69_parallel.sql,
-- which has new functions to label).

-- Students in SQL form.
ALTER TABLE distill.models ADD COLUMN form text NOT NULL DEFAULT 'predict' CHECK (form IN ('predict', 'sql', 'cascade'));
ALTER TABLE distill.models ADD COLUMN threshold float8;
ALTER TABLE distill.models ADD CHECK ((form = 'cascade') = (threshold IS NOT NULL));
COMMENT ON COLUMN distill.models.form IS 'how it answers, which is what its latency is of: predict, its SQL expression in a query, or predict with its teacher behind it';
COMMENT ON COLUMN distill.models.threshold IS 'form cascade: the confidence of the student, its largest probability, from which its teacher is not asked';
CREATE OR REPLACE FUNCTION distill._protect_model() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (OLD.id, OLD.name, OLD.version, OLD.task, OLD.kind, OLD.artifact, OLD.expression, OLD.sha256, OLD.input_schema,
        OLD.output_schema, OLD.sample, OLD.label, OLD.teacher_id, OLD.created_at, OLD.form, OLD.threshold)
       IS DISTINCT FROM
       (NEW.id, NEW.name, NEW.version, NEW.task, NEW.kind, NEW.artifact, NEW.expression, NEW.sha256, NEW.input_schema,
        NEW.output_schema, NEW.sample, NEW.label, NEW.teacher_id, NEW.created_at, NEW.form, NEW.threshold)
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
       m.size_bytes, m.measured_at, m.form
FROM lineage l JOIN distill.models m USING (id);
CREATE OR REPLACE VIEW distill.frontier AS
SELECT a.*
FROM distill.families a
WHERE a.avg_latency_ms IS NOT NULL AND a.accuracy IS NOT NULL
  AND NOT EXISTS (
      SELECT FROM distill.families b
      WHERE b.family = a.family AND b.metric = a.metric
        AND b.avg_latency_ms <= a.avg_latency_ms AND b.accuracy >= a.accuracy
        AND (b.avg_latency_ms < a.avg_latency_ms OR b.accuracy > a.accuracy)
        AND (a.form = 'sql' OR b.form <> 'sql') -- an expression is no answer to who calls predict
  );

COMMENT ON COLUMN distill.runs.sample_digest IS 'digest of the sampled rows, their labels, splits and weights: run_rows warns where these have changed since';
COMMENT ON FUNCTION distill.run_rows(uuid) IS
    'the rows of a run''s sample and the split that each is in (fit, select, test, unlabelled; NULL for rows left out), so that its figures can be recomputed';

-- A comment on a function of another role stops nobody from dropping a model.
CREATE OR REPLACE FUNCTION distill._drop_functions() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    called record;
BEGIN
    FOR called IN
        SELECT DISTINCT p.oid::regprocedure AS signature, t.oid::regtype AS row_type,
               pg_has_role(p.proowner, 'USAGE') AND (t.oid IS NULL OR pg_has_role(t.typowner, 'USAGE')) AS own
        FROM deleted m
        JOIN pg_description d ON d.classoid = 'pg_proc'::regclass AND d.objsubid = 0
             AND (d.description = 'pg_distill model ' || m.name || ':' || m.version
                  OR d.description = 'pg_distill model ' || m.name
                     AND NOT EXISTS (SELECT FROM distill.models other WHERE other.name = m.name))
        JOIN pg_proc p ON p.oid = d.objoid AND p.prokind = 'f'
        LEFT JOIN pg_type t ON p.pronargs = 1 AND t.oid = p.proargtypes[0] AND t.typtype = 'c'
             AND obj_description(t.oid, 'pg_type') = d.description
    LOOP
        IF NOT called.own THEN
            RAISE WARNING 'function % of a dropped model stays, as another role owns it', called.signature;
            CONTINUE;
        END IF;
        EXECUTE format('DROP FUNCTION %s', called.signature);
        IF called.row_type IS NOT NULL THEN
            EXECUTE format('DROP TYPE %s', called.row_type);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- Views read as who asks, not as their owner.
ALTER VIEW distill.families SET (security_invoker = true);
ALTER VIEW distill.frontier SET (security_invoker = true);
ALTER VIEW distill.leaderboard SET (security_invoker = true);
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

-- include 51_predict_class_mixed.sql
-- include 63_batch_class.sql
-- include 64_prune.sql
-- include 65_guard.sql
-- include 69_parallel.sql
-- include 70_jobs.sql
-- include 71_watch.sql
-- include 80_view_columns.sql

-- As for all functions: nothing for PUBLIC.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA distill FROM PUBLIC;
