\echo Use "CREATE EXTENSION pg_distill" to load this file. \quit

-- Everything but distill_model lives here. CREATE SCHEMA fails where the schema exists: nobody's objects are mixed with ours.
CREATE SCHEMA distill;
COMMENT ON SCHEMA distill IS 'pg_distill: model registry, distillation and prediction';

-- The module's version is checked before anything is created: an extension without its module is of no use.
CREATE FUNCTION distill._check_module() RETURNS void
LANGUAGE plpython3u AS $$
try:
    from pg_distill import sqlapi
except ImportError as error:
    plpy.error(f"Python module pg_distill cannot be imported: {error}", sqlstate="55000",
               hint="Install it for the server's Python (make install) and open a new session.")
sqlapi.check_module(plpy)
$$;
COMMENT ON FUNCTION distill._check_module() IS 'internal: error unless the Python module is there and of this version';
SELECT distill._check_module();

CREATE TABLE distill.settings (
    name       text PRIMARY KEY,
    value      text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    changed_by text NOT NULL DEFAULT current_user
);
SELECT pg_catalog.pg_extension_config_dump('distill.settings', '');
COMMENT ON TABLE distill.settings IS 'limits and settings that differ from their defaults; for administrators only, as any role can SET a GUC';
COMMENT ON COLUMN distill.settings.name IS 'setting, one of those that distill.show_settings() lists';
COMMENT ON COLUMN distill.settings.value IS 'its value, as text';
COMMENT ON COLUMN distill.settings.changed_at IS 'when it was set';
COMMENT ON COLUMN distill.settings.changed_by IS 'who set it';

CREATE FUNCTION distill.show_settings(OUT name text, OUT value text, OUT unit text, OUT is_default boolean, OUT description text)
RETURNS SETOF record LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.show_settings(plpy)
$$;
COMMENT ON FUNCTION distill.show_settings() IS 'every setting with its value in force, unit and meaning';

CREATE FUNCTION distill.change_setting(name text, value text) RETURNS void
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.change_setting(plpy, name, value)
$$;
COMMENT ON FUNCTION distill.change_setting(text, text) IS 'set a limit for the whole database; NULL takes it back to its default';

CREATE FUNCTION distill._run_pending() RETURNS void
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.run_pending(plpy)
$$;
COMMENT ON FUNCTION distill._run_pending() IS 'internal: runs what the calling function left to be run read-only; an error when called by anyone else';

-- Read-only ends with the subtransaction that it was set in, and PL/Python opens one for each statement: PL/pgSQL, which does not, is called
-- in that statement. A SET clause would be simpler, but PostgreSQL 16 and later refuse this parameter there.
CREATE FUNCTION distill._read_only() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.set_config('transaction_read_only', 'on', true);
    PERFORM distill._run_pending();
END
$$;
COMMENT ON FUNCTION distill._read_only() IS 'internal: distill._run_pending in which nothing can be written';
CREATE TABLE distill.models (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name             text NOT NULL CHECK (name <> '' AND octet_length(name) <= 63 AND name !~ '[:[:cntrl:]]'),
    version          text NOT NULL CHECK (version <> '' AND octet_length(version) <= 63 AND version !~ '[:[:cntrl:]]'),
    active           boolean NOT NULL,
    task             text NOT NULL CHECK (task IN ('binary', 'multiclass', 'regression')),
    kind             text NOT NULL CHECK (kind IN ('onnx', 'sql', 'logged')),
    artifact         bytea,
    expression       text,
    sha256           text NOT NULL,
    size_bytes       bigint NOT NULL,
    input_schema     jsonb NOT NULL,
    output_schema    jsonb NOT NULL,
    sample           text,
    label            text,
    metric           text,
    accuracy         float8,
    accuracy_low     float8,
    accuracy_high    float8,
    avg_latency_ms   float8,
    latency_low_ms   float8,
    latency_high_ms  float8,
    p50_latency_ms   float8,
    p95_latency_ms   float8,
    p99_latency_ms   float8,
    latency_declared boolean NOT NULL DEFAULT false,
    measured_on      jsonb,
    measured_at      timestamptz,
    teacher_id       uuid,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    owner            text NOT NULL DEFAULT current_user,
    UNIQUE (name, version),
    CHECK ((kind = 'onnx') = (artifact IS NOT NULL)),
    CHECK (kind <> 'sql' OR expression IS NOT NULL)
);
SELECT pg_catalog.pg_extension_config_dump('distill.models', '');
-- An artifact does not compress: TOAST would only lose time over it.
ALTER TABLE distill.models ALTER COLUMN artifact SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX models_active_idx ON distill.models (name) WHERE active;
CREATE INDEX models_teacher_id_idx ON distill.models (teacher_id);

COMMENT ON TABLE distill.models IS 'registry: one row a version of a model, teachers and students alike';
COMMENT ON COLUMN distill.models.id IS 'the version''s key';
COMMENT ON COLUMN distill.models.name IS 'model name, shared by its versions';
COMMENT ON COLUMN distill.models.version IS 'version within the name';
COMMENT ON COLUMN distill.models.active IS 'the version that the bare name means; one a name';
COMMENT ON COLUMN distill.models.task IS 'binary, multiclass or regression';
COMMENT ON COLUMN distill.models.kind IS 'onnx: an artifact; sql: an expression; logged: columns that hold its predictions';
COMMENT ON COLUMN distill.models.artifact IS 'the ONNX file, as registered';
COMMENT ON COLUMN distill.models.expression IS 'kind sql: the expression; kind onnx: the same student as one SQL expression where it has one; kind logged: its columns as a JSON array';
COMMENT ON COLUMN distill.models.sha256 IS 'digest of the artifact, or of the expression';
COMMENT ON COLUMN distill.models.size_bytes IS 'size of the artifact or expression in bytes';
COMMENT ON COLUMN distill.models.input_schema IS 'features in order, with kinds and how NULL is encoded, and the graph''s inputs';
COMMENT ON COLUMN distill.models.output_schema IS 'the graph''s output and its form, and the classes';
COMMENT ON COLUMN distill.models.sample IS 'relation or query where its rows come from';
COMMENT ON COLUMN distill.models.label IS 'column of the sample that holds the truth';
COMMENT ON COLUMN distill.models.metric IS 'what accuracy is measured in';
COMMENT ON COLUMN distill.models.accuracy IS 'the metric on held-out rows, higher is better';
COMMENT ON COLUMN distill.models.accuracy_low IS 'lower end of its 95 % bootstrap interval';
COMMENT ON COLUMN distill.models.accuracy_high IS 'upper end of its 95 % bootstrap interval';
COMMENT ON COLUMN distill.models.avg_latency_ms IS 'mean call latency: one row''s predict inside a running query, in milliseconds';
COMMENT ON COLUMN distill.models.latency_low_ms IS 'lower end of its 95 % interval over blocks';
COMMENT ON COLUMN distill.models.latency_high_ms IS 'upper end of its 95 % interval over blocks';
COMMENT ON COLUMN distill.models.p50_latency_ms IS 'median call latency; NULL where single calls are too short for the clock';
COMMENT ON COLUMN distill.models.p95_latency_ms IS '95th percentile of call latency';
COMMENT ON COLUMN distill.models.p99_latency_ms IS '99th percentile of call latency';
COMMENT ON COLUMN distill.models.latency_declared IS 'true where the latency was declared by the caller, not measured';
COMMENT ON COLUMN distill.models.measured_on IS 'rows, predict path, machine and server of the figures';
COMMENT ON COLUMN distill.models.measured_at IS 'when the figures were measured';
COMMENT ON COLUMN distill.models.teacher_id IS 'the teacher that this student was distilled from; no foreign key, as pg_dump warns of a table that references itself';
COMMENT ON COLUMN distill.models.created_at IS 'when it was registered';
COMMENT ON COLUMN distill.models.updated_at IS 'when its active flag or figures last changed';
COMMENT ON COLUMN distill.models.owner IS 'the role that registered it, for which its stored SQL may run';

-- What a model is never changes under its name and version; only its active flag and its figures do.
CREATE FUNCTION distill._protect_model() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (OLD.id, OLD.name, OLD.version, OLD.task, OLD.kind, OLD.artifact, OLD.expression, OLD.sha256, OLD.input_schema,
        OLD.output_schema, OLD.sample, OLD.label, OLD.teacher_id, OLD.created_at)
       IS DISTINCT FROM
       (NEW.id, NEW.name, NEW.version, NEW.task, NEW.kind, NEW.artifact, NEW.expression, NEW.sha256, NEW.input_schema,
        NEW.output_schema, NEW.sample, NEW.label, NEW.teacher_id, NEW.created_at)
    THEN
        RAISE EXCEPTION 'version "%" of model "%" cannot be edited', OLD.version, OLD.name
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Register another version.';
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION distill._protect_model() IS 'internal: trigger that keeps what a model is as it was registered';
CREATE TRIGGER protect_model BEFORE UPDATE ON distill.models FOR EACH ROW EXECUTE FUNCTION distill._protect_model();
COMMENT ON TRIGGER protect_model ON distill.models IS 'artifact, signature and lineage are never edited';

CREATE FUNCTION distill.register_model(
    name text, artifact bytea, features text[] DEFAULT NULL, sample text DEFAULT NULL, label text DEFAULT NULL,
    version text DEFAULT NULL, task text DEFAULT NULL, classes text[] DEFAULT NULL
) RETURNS uuid LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.register_model(plpy, name, artifact, features, sample, label, version, task, classes)
$$;
COMMENT ON FUNCTION distill.register_model(text, bytea, text[], text, text, text, text, text[]) IS
    'check an ONNX model, run it on rows of the sample, measure it and make it the active version of its name';

CREATE FUNCTION distill.register_model_file(
    name text, path text, features text[] DEFAULT NULL, sample text DEFAULT NULL, label text DEFAULT NULL,
    version text DEFAULT NULL, task text DEFAULT NULL, classes text[] DEFAULT NULL
) RETURNS uuid LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.register_model_file(plpy, name, path, features, sample, label, version, task, classes)
$$;
COMMENT ON FUNCTION distill.register_model_file(text, text, text[], text, text, text, text, text[]) IS
    'register_model for a file of the server, read by pg_read_binary_file under the caller''s rights';

CREATE FUNCTION distill.register_sql_model(
    name text, expression text, features text[], sample text, label text DEFAULT NULL,
    version text DEFAULT NULL, task text DEFAULT NULL, classes text[] DEFAULT NULL
) RETURNS uuid LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.register_sql_model(plpy, name, expression, features, sample, label, version, task, classes)
$$;
COMMENT ON FUNCTION distill.register_sql_model(text, text, text[], text, text, text, text, text[]) IS
    'register a SQL expression over the features as a model: a probability, an array of them, or a value';

CREATE FUNCTION distill.register_logged_model(
    name text, outputs text[], features text[], sample text, label text DEFAULT NULL,
    version text DEFAULT NULL, task text DEFAULT NULL, classes text[] DEFAULT NULL, latency_ms float8 DEFAULT NULL
) RETURNS uuid LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.register_logged_model(plpy, name, outputs, features, sample, label, version, task, classes, latency_ms)
$$;
COMMENT ON FUNCTION distill.register_logged_model(text, text[], text[], text, text, text, text, text[], float8) IS
    'register a teacher that runs elsewhere by the columns that hold its predictions; its latency is declared';

CREATE FUNCTION distill.activate_model(name text, version text) RETURNS uuid
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.activate_model(plpy, name, version)
$$;
COMMENT ON FUNCTION distill.activate_model(text, text) IS 'make another version the active one of its name';

CREATE FUNCTION distill.drop_model(model text) RETURNS void
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.drop_model(plpy, model)
$$;
COMMENT ON FUNCTION distill.drop_model(text) IS 'remove name:version, or every version of a name; refused while students depend on it';
CREATE TABLE distill.runs (
    run_id                uuid PRIMARY KEY,
    teacher_id            uuid REFERENCES distill.models ON DELETE SET NULL,
    student_id            uuid REFERENCES distill.models ON DELETE SET NULL,
    teacher_name          text NOT NULL,
    teacher_version       text NOT NULL,
    student_name          text NOT NULL,
    student_version       text,
    accepted              boolean NOT NULL,
    summary               text NOT NULL,
    requested             jsonb NOT NULL,
    resolved              jsonb NOT NULL,
    seed                  bigint NOT NULL,
    metric                text NOT NULL,
    teacher_accuracy      float8,
    teacher_accuracy_low  float8,
    teacher_accuracy_high float8,
    student_accuracy      float8,
    student_accuracy_low  float8,
    student_accuracy_high float8,
    teacher_latency_ms    float8,
    teacher_latency_low_ms  float8,
    teacher_latency_high_ms float8,
    student_latency_ms    float8,
    student_latency_low_ms  float8,
    student_latency_high_ms float8,
    latency_declared      boolean NOT NULL,
    pareto_score          float8,
    fidelity              float8,
    lift                  float8,
    majority_accuracy     float8,
    teacher_log_loss      float8,
    student_log_loss      float8,
    figures               jsonb NOT NULL,
    predict_path          text,
    rows_total            bigint NOT NULL,
    rows_fit              bigint NOT NULL,
    rows_select           bigint NOT NULL,
    rows_test             bigint NOT NULL,
    rows_unlabelled       bigint NOT NULL,
    sample_digest         text NOT NULL,
    machine               jsonb NOT NULL,
    timings               jsonb NOT NULL,
    started_at            timestamptz NOT NULL,
    created_at            timestamptz NOT NULL DEFAULT now(),
    owner                 text NOT NULL DEFAULT current_user
);
SELECT pg_catalog.pg_extension_config_dump('distill.runs', '');
CREATE INDEX runs_teacher_id_idx ON distill.runs (teacher_id);
CREATE INDEX runs_student_id_idx ON distill.runs (student_id);
CREATE INDEX runs_teacher_name_idx ON distill.runs (teacher_name, created_at);

COMMENT ON TABLE distill.runs IS 'one row a distillation, accepted or not';
COMMENT ON COLUMN distill.runs.run_id IS 'the run''s key';
COMMENT ON COLUMN distill.runs.teacher_id IS 'the teacher''s version';
COMMENT ON COLUMN distill.runs.student_id IS 'the student that was registered; NULL where none was accepted, or it was dropped';
COMMENT ON COLUMN distill.runs.teacher_name IS 'the teacher''s name at the time';
COMMENT ON COLUMN distill.runs.teacher_version IS 'the teacher''s version at the time';
COMMENT ON COLUMN distill.runs.student_name IS 'the name that a student was to get';
COMMENT ON COLUMN distill.runs.student_version IS 'the version that it got';
COMMENT ON COLUMN distill.runs.accepted IS 'whether a student met target and floor and improved the family''s frontier';
COMMENT ON COLUMN distill.runs.summary IS 'the result in a sentence';
COMMENT ON COLUMN distill.runs.requested IS 'the configuration as given';
COMMENT ON COLUMN distill.runs.resolved IS 'the configuration as carried out, the sample query included';
COMMENT ON COLUMN distill.runs.seed IS 'seed of sample, split, training and bootstrap';
COMMENT ON COLUMN distill.runs.metric IS 'what accuracy means in this run';
COMMENT ON COLUMN distill.runs.teacher_accuracy IS 'the teacher''s metric on the test rows';
COMMENT ON COLUMN distill.runs.teacher_accuracy_low IS 'lower end of its 95 % bootstrap interval';
COMMENT ON COLUMN distill.runs.teacher_accuracy_high IS 'upper end of its 95 % bootstrap interval';
COMMENT ON COLUMN distill.runs.student_accuracy IS 'the student''s metric on the test rows';
COMMENT ON COLUMN distill.runs.student_accuracy_low IS 'lower end of its 95 % bootstrap interval';
COMMENT ON COLUMN distill.runs.student_accuracy_high IS 'upper end of its 95 % bootstrap interval';
COMMENT ON COLUMN distill.runs.teacher_latency_ms IS 'the teacher''s mean call latency';
COMMENT ON COLUMN distill.runs.teacher_latency_low_ms IS 'lower end of its 95 % interval over blocks';
COMMENT ON COLUMN distill.runs.teacher_latency_high_ms IS 'upper end of its 95 % interval over blocks';
COMMENT ON COLUMN distill.runs.student_latency_ms IS 'the student''s mean call latency, interleaved with the teacher''s';
COMMENT ON COLUMN distill.runs.student_latency_low_ms IS 'lower end of its 95 % interval over blocks';
COMMENT ON COLUMN distill.runs.student_latency_high_ms IS 'upper end of its 95 % interval over blocks';
COMMENT ON COLUMN distill.runs.latency_declared IS 'true where the teacher''s latency was declared, not measured';
COMMENT ON COLUMN distill.runs.pareto_score IS '(teacher latency / student latency) * (student accuracy / teacher accuracy)';
COMMENT ON COLUMN distill.runs.fidelity IS 'agreement of student and teacher on the test rows';
COMMENT ON COLUMN distill.runs.lift IS '(student - majority) / (teacher - majority), in the run''s metric';
COMMENT ON COLUMN distill.runs.majority_accuracy IS 'the metric of always answering with the majority class or the mean';
COMMENT ON COLUMN distill.runs.teacher_log_loss IS 'the teacher''s log loss on the test rows';
COMMENT ON COLUMN distill.runs.student_log_loss IS 'the student''s log loss on the test rows';
COMMENT ON COLUMN distill.runs.figures IS 'further figures: other metrics, calibration, paired differences, percentiles, transfer set, labelling';
COMMENT ON COLUMN distill.runs.predict_path IS 'the predict form whose call latency was measured';
COMMENT ON COLUMN distill.runs.rows_total IS 'rows that the sample held';
COMMENT ON COLUMN distill.runs.rows_fit IS 'labelled rows that students were fitted to';
COMMENT ON COLUMN distill.runs.rows_select IS 'rows on which students were chosen';
COMMENT ON COLUMN distill.runs.rows_test IS 'rows of the reported figures, touched once';
COMMENT ON COLUMN distill.runs.rows_unlabelled IS 'further rows without a label that the teacher labelled';
COMMENT ON COLUMN distill.runs.sample_digest IS 'digest of the sampled rows'' hashes: run_rows warns where the rows have changed since';
COMMENT ON COLUMN distill.runs.machine IS 'processor, cores, memory, operating system, server and library versions';
COMMENT ON COLUMN distill.runs.timings IS 'seconds a stage';
COMMENT ON COLUMN distill.runs.started_at IS 'when it began';
COMMENT ON COLUMN distill.runs.created_at IS 'start of the transaction that recorded it';
COMMENT ON COLUMN distill.runs.owner IS 'the role that ran it';

CREATE TABLE distill.candidates (
    run_id           uuid NOT NULL REFERENCES distill.runs ON DELETE CASCADE,
    candidate        integer NOT NULL,
    family           text NOT NULL,
    configuration    jsonb NOT NULL,
    is_control       boolean NOT NULL,
    size_bytes       bigint,
    select_accuracy  float8,
    accuracy         float8,
    accuracy_low     float8,
    accuracy_high    float8,
    fidelity         float8,
    log_loss         float8,
    trainer_latency_ms float8,
    avg_latency_ms   float8,
    latency_low_ms   float8,
    latency_high_ms  float8,
    p50_latency_ms   float8,
    p95_latency_ms   float8,
    p99_latency_ms   float8,
    on_frontier      boolean NOT NULL,
    chosen           boolean NOT NULL,
    reason           text NOT NULL,
    seconds          float8,
    sha256           text,
    artifact         bytea,
    expression       text,
    input_schema     jsonb,
    output_schema    jsonb,
    PRIMARY KEY (run_id, candidate)
);
SELECT pg_catalog.pg_extension_config_dump('distill.candidates', '');
ALTER TABLE distill.candidates ALTER COLUMN artifact SET STORAGE EXTERNAL;

COMMENT ON TABLE distill.candidates IS 'every student that a run tried, with its figures and why it was or was not chosen';
COMMENT ON COLUMN distill.candidates.run_id IS 'the run';
COMMENT ON COLUMN distill.candidates.candidate IS 'number within the run';
COMMENT ON COLUMN distill.candidates.family IS 'student family';
COMMENT ON COLUMN distill.candidates.configuration IS 'sizes, temperature, alpha, transfer set and what else was searched';
COMMENT ON COLUMN distill.candidates.is_control IS 'true for a student trained on labels alone, without the teacher';
COMMENT ON COLUMN distill.candidates.size_bytes IS 'size of its ONNX file';
COMMENT ON COLUMN distill.candidates.select_accuracy IS 'the metric on the select rows, by which students are chosen';
COMMENT ON COLUMN distill.candidates.accuracy IS 'the metric on the test rows';
COMMENT ON COLUMN distill.candidates.accuracy_low IS 'lower end of its 95 % bootstrap interval';
COMMENT ON COLUMN distill.candidates.accuracy_high IS 'upper end of its 95 % bootstrap interval';
COMMENT ON COLUMN distill.candidates.fidelity IS 'agreement with the teacher on the test rows';
COMMENT ON COLUMN distill.candidates.log_loss IS 'log loss on the test rows';
COMMENT ON COLUMN distill.candidates.trainer_latency_ms IS 'median latency in the training process, which only orders candidates';
COMMENT ON COLUMN distill.candidates.avg_latency_ms IS 'mean call latency in the backend; NULL where it was not measured there';
COMMENT ON COLUMN distill.candidates.latency_low_ms IS 'lower end of its 95 % interval over blocks';
COMMENT ON COLUMN distill.candidates.latency_high_ms IS 'upper end of its 95 % interval over blocks';
COMMENT ON COLUMN distill.candidates.p50_latency_ms IS 'median call latency';
COMMENT ON COLUMN distill.candidates.p95_latency_ms IS '95th percentile of call latency';
COMMENT ON COLUMN distill.candidates.p99_latency_ms IS '99th percentile of call latency';
COMMENT ON COLUMN distill.candidates.on_frontier IS 'whether no other candidate of the run dominates it';
COMMENT ON COLUMN distill.candidates.chosen IS 'whether it is the run''s student';
COMMENT ON COLUMN distill.candidates.reason IS 'why it was chosen or not';
COMMENT ON COLUMN distill.candidates.seconds IS 'time that training took';
COMMENT ON COLUMN distill.candidates.sha256 IS 'digest of its ONNX file';
COMMENT ON COLUMN distill.candidates.artifact IS 'its ONNX file, kept for those on the frontier';
COMMENT ON COLUMN distill.candidates.expression IS 'the same student as one SQL expression, where it has one';
COMMENT ON COLUMN distill.candidates.input_schema IS 'what its ONNX file takes, as in distill.models';
COMMENT ON COLUMN distill.candidates.output_schema IS 'what its ONNX file gives, as in distill.models';
CREATE FUNCTION distill.dominates_pareto(latency float8, accuracy float8, frontier float8[][]) RETURNS boolean
LANGUAGE plpython3u IMMUTABLE PARALLEL SAFE AS $$
from pg_distill import sqlapi
return sqlapi.dominates_pareto(plpy, latency, accuracy, frontier)
$$;
COMMENT ON FUNCTION distill.dominates_pareto(float8, float8, float8[]) IS
    'whether a point improves a frontier of {latency, accuracy} rows: none of them dominates or equals it; the empty frontier is improved by any point';

-- A family is the root teacher, its versions, its students, theirs, and all of their versions.
CREATE VIEW distill.families AS
WITH RECURSIVE lineage(root, id) AS (
    SELECT m.name, m.id FROM distill.models m WHERE m.teacher_id IS NULL
    UNION
    SELECT l.root, m.id FROM lineage l JOIN distill.models m ON m.teacher_id = l.id
)
SELECT l.root AS family, m.id AS model_id, m.name, m.version, m.active, m.kind, m.teacher_id, m.metric, m.accuracy,
       m.accuracy_low, m.accuracy_high, m.avg_latency_ms, m.latency_low_ms, m.latency_high_ms, m.latency_declared,
       m.size_bytes, m.measured_at
FROM lineage l JOIN distill.models m USING (id);
COMMENT ON VIEW distill.families IS 'every model with the root teacher of its family';

CREATE VIEW distill.frontier AS
SELECT a.*
FROM distill.families a
WHERE a.avg_latency_ms IS NOT NULL AND a.accuracy IS NOT NULL
  AND NOT EXISTS (
      SELECT FROM distill.families b
      WHERE b.family = a.family AND b.metric = a.metric
        AND b.avg_latency_ms <= a.avg_latency_ms AND b.accuracy >= a.accuracy
        AND (b.avg_latency_ms < a.avg_latency_ms OR b.accuracy > a.accuracy)
  );
COMMENT ON VIEW distill.frontier IS 'models that no other of their family dominates: none is both no slower and no less accurate, and better in one';

CREATE VIEW distill.leaderboard AS
SELECT r.teacher_name, r.student_name, r.student_version, r.metric, r.teacher_accuracy, r.student_accuracy, r.lift,
       r.teacher_latency_ms, r.student_latency_ms, r.teacher_latency_ms / r.student_latency_ms AS speedup,
       r.pareto_score, r.latency_declared, r.summary, r.run_id, r.student_id, r.created_at
FROM distill.runs r
WHERE r.accepted
ORDER BY r.pareto_score DESC NULLS LAST, r.created_at DESC;
COMMENT ON VIEW distill.leaderboard IS 'accepted runs, best pareto score first';
-- The one object outside schema distill: it is created where CREATE EXTENSION says (public unless told otherwise).
CREATE FUNCTION @extschema@.distill_model(
    teacher text, target_latency_ms float8 DEFAULT 5.0, min_accuracy float8 DEFAULT 0.80, temperature float8 DEFAULT 4.0,
    epochs int DEFAULT 10, seed bigint DEFAULT 42, metric text DEFAULT NULL, sample text DEFAULT NULL, label text DEFAULT NULL,
    max_rows int DEFAULT 100000, time_budget_s float8 DEFAULT 120, student_name text DEFAULT NULL, families text[] DEFAULT NULL,
    group_column text DEFAULT NULL, time_column text DEFAULT NULL, weight_column text DEFAULT NULL, trained_on text DEFAULT NULL
) RETURNS uuid LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.distill_model(plpy, teacher, target_latency_ms, min_accuracy, temperature, epochs, seed, metric, sample, label,
                            max_rows, time_budget_s, student_name, families, group_column, time_column, weight_column, trained_on)
$$;
COMMENT ON FUNCTION @extschema@.distill_model(text, float8, float8, float8, int, bigint, text, text, text, int, float8, text, text[], text, text, text, text) IS
    'distil the teacher into a student that meets the latency target and improves the frontier; its id, or NULL with a warning';

CREATE FUNCTION distill.promote_candidate(run_id uuid, candidate int) RETURNS uuid
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.promote_candidate(plpy, run_id, candidate)
$$;
COMMENT ON FUNCTION distill.promote_candidate(uuid, int) IS
    'register another candidate of a run''s frontier as the next, active version of its student; its id';

CREATE FUNCTION distill.last_run(teacher text) RETURNS uuid
LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.last_run(plpy, teacher)
$$;
COMMENT ON FUNCTION distill.last_run(text) IS 'the latest run of a teacher''s name';

CREATE FUNCTION distill.run_report(
    INOUT run_id uuid, OUT teacher_name text, OUT student_name text, OUT student_model_id uuid, OUT teacher_latency_ms float8,
    OUT student_latency_ms float8, OUT teacher_accuracy float8, OUT student_accuracy float8, OUT pareto_score float8,
    OUT accepted boolean, OUT summary text, OUT metric text, OUT fidelity float8, OUT lift float8, OUT majority_accuracy float8,
    OUT teacher_log_loss float8, OUT student_log_loss float8,
    OUT teacher_latency_low_ms float8, OUT teacher_latency_high_ms float8, OUT student_latency_low_ms float8,
    OUT student_latency_high_ms float8, OUT teacher_accuracy_low float8, OUT teacher_accuracy_high float8,
    OUT student_accuracy_low float8, OUT student_accuracy_high float8, OUT latency_declared boolean,
    OUT rows_total bigint, OUT rows_fit bigint, OUT rows_select bigint, OUT rows_test bigint, OUT rows_unlabelled bigint,
    OUT seed bigint, OUT predict_path text, OUT requested jsonb, OUT resolved jsonb, OUT figures jsonb, OUT machine jsonb,
    OUT timings jsonb, OUT started_at timestamptz, OUT created_at timestamptz
) RETURNS record LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.run_report(plpy, run_id)
$$;
COMMENT ON FUNCTION distill.run_report(uuid) IS 'every figure of a run in one row';

CREATE FUNCTION distill.run_rows(run_id uuid, OUT split text, OUT "row" jsonb) RETURNS SETOF record
LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.run_rows(plpy, run_id)
$$;
COMMENT ON FUNCTION distill.run_rows(uuid) IS
    'the rows of a run''s sample and the split that each is in (fit, select, test, unlabelled), so that its figures can be recomputed';
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
RETURN distill._predict(model, features, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
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
RETURN distill._predict_proba(model, features, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
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
RETURN distill._predict_class(model, features, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_class(text, float8[]) IS 'the most probable class for a row of numeric features in order';

CREATE FUNCTION distill._predict_class(model text, "row" jsonb, snapshot bytea) RETURNS text
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_class(plpy, model, row, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_class(text, jsonb, bytea) IS 'internal: predict_class, given the statement''s snapshot';
CREATE FUNCTION distill.predict_class(model text, "row" jsonb) RETURNS text
LANGUAGE sql STABLE
RETURN distill._predict_class(model, "row", pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_class(text, jsonb) IS 'the most probable class for a row of named columns';

CREATE FUNCTION distill._predict(model text, numbers float8[], strings text[], snapshot bytea) RETURNS float8
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_mixed(plpy, model, numbers, strings, snapshot)
$$;
COMMENT ON FUNCTION distill._predict(text, float8[], text[], bytea) IS 'internal: predict, given the statement''s snapshot';
CREATE FUNCTION distill.predict(model text, numbers float8[], strings text[]) RETURNS float8
LANGUAGE sql STABLE
RETURN distill._predict(model, numbers, strings, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict(text, float8[], text[]) IS 'the probability of the last class (binary) or the value (regression) for a row of numeric features in order and string features in order';

CREATE FUNCTION distill._predict_proba(model text, numbers float8[], strings text[], snapshot bytea) RETURNS float8[]
LANGUAGE plpython3u STABLE AS $$
import pg_distill.sqlapi as sqlapi
return sqlapi.predict_proba_mixed(plpy, model, numbers, strings, snapshot)
$$;
COMMENT ON FUNCTION distill._predict_proba(text, float8[], text[], bytea) IS 'internal: predict_proba, given the statement''s snapshot';
CREATE FUNCTION distill.predict_proba(model text, numbers float8[], strings text[]) RETURNS float8[]
LANGUAGE sql STABLE
RETURN distill._predict_proba(model, numbers, strings, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot()));
COMMENT ON FUNCTION distill.predict_proba(text, float8[], text[]) IS 'the probability of each class for a row of numeric features in order and string features in order';
-- Two built-in functions under other types, which cost nothing an element: what array_send or text would take 20 ns for is the
-- copy of an array's bytes, and a number's bits as they are. Neither can read what it was not given.
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
    cursor refcursor;
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
    SELECT u.key, distill._float8_of_bits(u.bits)
    FROM (SELECT distill._score(model, query, key_column, pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot())) AS c) s,
         ROWS FROM (
             pg_catalog.unnest(CASE (s.c).keys WHEN '' THEN ARRAY[''] -- string_to_array makes no element of an empty text
                               ELSE pg_catalog.string_to_array((s.c).keys, (s.c).separator, (s.c).null_key) END),
             pg_catalog.unnest((s.c).predictions::int8[])
         ) AS u(key, bits);
END;
COMMENT ON FUNCTION distill.score(text, text, text) IS 'a key column, as text, and the prediction of every row of a relation or read-only query, in constant memory';
CREATE FUNCTION distill.to_sql(model text) RETURNS text
LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.to_sql(plpy, model)
$$;
COMMENT ON FUNCTION distill.to_sql(text) IS 'the model as one SQL expression over columns that are named as its features';

CREATE FUNCTION distill.create_function(
    model text, function_name text, as_sql boolean DEFAULT false, replace boolean DEFAULT false
) RETURNS regprocedure LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.create_function(plpy, model, function_name, as_sql, replace)
$$;
COMMENT ON FUNCTION distill.create_function(text, text, boolean, boolean) IS
    'make a function of the model with its features as named, typed arguments (over 100: as one row); as_sql: the student itself in plain SQL, IMMUTABLE';

-- The functions are their owners' objects: pg_dump dumps them, and nothing but their comment says which model they are of.
CREATE FUNCTION distill._drop_functions() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    called record;
BEGIN
    FOR called IN
        SELECT DISTINCT p.oid::regprocedure AS signature, t.oid::regtype AS row_type
        FROM deleted m
        JOIN pg_description d ON d.classoid = 'pg_proc'::regclass AND d.objsubid = 0
             AND (d.description = 'pg_distill model ' || m.name || ':' || m.version
                  OR d.description = 'pg_distill model ' || m.name
                     AND NOT EXISTS (SELECT FROM distill.models other WHERE other.name = m.name))
        JOIN pg_proc p ON p.oid = d.objoid
        LEFT JOIN pg_type t ON p.pronargs = 1 AND t.oid = p.proargtypes[0] AND t.typtype = 'c'
             AND obj_description(t.oid, 'pg_type') = d.description
    LOOP
        EXECUTE format('DROP FUNCTION %s', called.signature);
        IF called.row_type IS NOT NULL THEN
            EXECUTE format('DROP TYPE %s', called.row_type);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION distill._drop_functions() IS 'internal: trigger that drops the functions of dropped models';
CREATE TRIGGER drop_functions AFTER DELETE ON distill.models
REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION distill._drop_functions();
COMMENT ON TRIGGER drop_functions ON distill.models IS 'a function of create_function goes with its model';
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
    'the most accurate model of the name''s family (teacher, students, versions) within both bounds, as name:version; an error where there is none';

CREATE FUNCTION distill.warm_up(models text[], OUT model text, OUT milliseconds float8) RETURNS SETOF record
LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.warm_up(plpy, models)
$$;
COMMENT ON FUNCTION distill.warm_up(text[]) IS 'open the sessions of models in this backend before the first prediction; how long each took';
-- PL/Python opens a subtransaction for a query, which a parallel worker could not do before PostgreSQL 17: there a wrong label
-- brings the server down. The label is decided where the extension is installed.
DO $$
DECLARE
    function regprocedure;
BEGIN
    IF pg_catalog.current_setting('server_version_num')::int >= 170000 THEN
        FOR function IN
            SELECT p.oid FROM pg_catalog.pg_proc p
            WHERE p.pronamespace = 'distill'::regnamespace
              AND pg_catalog.ltrim(p.proname, '_') IN ('predict', 'predict_proba', 'predict_class', 'predict_batch', 'choose_model')
        LOOP
            EXECUTE pg_catalog.format('ALTER FUNCTION %s PARALLEL SAFE', function);
        END LOOP;
    END IF;
END
$$;
-- PUBLIC gets nothing: these functions run code and read models. The README has the GRANTs for each kind of user.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA distill FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.distill_model(text, float8, float8, float8, int, bigint, text, text, text, int, float8, text, text[], text, text, text, text) FROM PUBLIC;
