CREATE TABLE distill.models (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name             text NOT NULL CHECK (name <> '' AND octet_length(name) <= 63 AND name !~ '[:[:cntrl:]]'),
    version          text NOT NULL CHECK (version <> '' AND octet_length(version) <= 63 AND version !~ '[:[:cntrl:]]'),
    active           boolean NOT NULL,
    task             text NOT NULL CHECK (task IN ('binary', 'multiclass', 'regression', 'multilabel')),
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
    form             text NOT NULL DEFAULT 'predict' CHECK (form IN ('predict', 'sql', 'cascade')),
    threshold        float8,
    attested         boolean NOT NULL DEFAULT false,
    learned_from     jsonb,
    class_threshold  float8,
    origin           jsonb,
    UNIQUE (name, version),
    CHECK ((kind = 'onnx') = (artifact IS NOT NULL)),
    CHECK (kind <> 'sql' OR expression IS NOT NULL),
    CHECK ((form = 'cascade') = (threshold IS NOT NULL))
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
COMMENT ON COLUMN distill.models.task IS 'binary, multiclass, multilabel (several labels a row) or regression';
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
COMMENT ON COLUMN distill.models.measured_on IS 'rows, predict path, machine and server of the figures; accuracy_run_id where the accuracy is another run''s, because the model learned from the rows of run_id; twin where the figures are of the file with that sha256, by whose recipe the model learned from the test rows too';
COMMENT ON COLUMN distill.models.measured_at IS 'when the figures were measured';
COMMENT ON COLUMN distill.models.teacher_id IS 'the teacher that this student was distilled from; no foreign key, as pg_dump warns of a table that references itself';
COMMENT ON COLUMN distill.models.created_at IS 'when it was registered';
COMMENT ON COLUMN distill.models.updated_at IS 'when its active flag or figures last changed';
COMMENT ON COLUMN distill.models.owner IS 'the role that registered it, for which its stored SQL may run; see distill.owners';
COMMENT ON COLUMN distill.models.form IS 'how it answers, which is what its latency is of: predict, its SQL expression in a query, or predict with its teacher behind it';
COMMENT ON COLUMN distill.models.threshold IS 'form cascade: the confidence of the student, its largest probability, from which its teacher is not asked';
COMMENT ON COLUMN distill.models.learned_from IS 'of a student: digests of the rows that it was fitted to, selected on or taught by its teacher, which never judge it; NULL: not known, as of older releases';
COMMENT ON COLUMN distill.models.origin IS 'who said what it is to predict (the library that it was converted from, or a column), on how many rows, and the largest difference; NULL where nobody did';

COMMENT ON COLUMN distill.models.attested IS 'whether this server has measured its figures; where not (a worker measured, a superuser wrote the row) they count for its owner, and for all where that is a superuser';
COMMENT ON COLUMN distill.models.class_threshold IS 'of two classes: the probability of the last one from which predict_class names it, found by the run for its metric; NULL: where it is the more probable';

-- What a model is never changes under its name and version; only its active flag and its figures do.
CREATE FUNCTION distill._protect_model() RETURNS trigger
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
COMMENT ON FUNCTION distill._protect_model() IS 'internal: trigger that keeps what a model is as it was registered';
CREATE TRIGGER protect_model BEFORE UPDATE ON distill.models FOR EACH ROW EXECUTE FUNCTION distill._protect_model();
COMMENT ON TRIGGER protect_model ON distill.models IS 'artifact, signature and lineage are never edited';

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
