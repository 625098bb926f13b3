CREATE TABLE distill.runs (
    run_id                uuid PRIMARY KEY,
    teacher_id            uuid,
    student_id            uuid,
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
    owner                 text NOT NULL DEFAULT current_user,
    attested              boolean NOT NULL DEFAULT false,
    learned_from          jsonb
);
-- No foreign keys, here and below: pg_restore loads the tables of an extension in parallel, before or after one another, and a row that comes before
-- the one it refers to would be lost. Triggers do what the keys' ON DELETE would.
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
COMMENT ON COLUMN distill.runs.sample_digest IS 'digest of the sampled rows, their labels, splits and weights: run_rows warns where these have changed since';
COMMENT ON COLUMN distill.runs.machine IS 'processor, cores, memory, operating system, server and library versions';
COMMENT ON COLUMN distill.runs.timings IS 'seconds a stage';
COMMENT ON COLUMN distill.runs.started_at IS 'when it began';
COMMENT ON COLUMN distill.runs.created_at IS 'start of the transaction that recorded it';
COMMENT ON COLUMN distill.runs.owner IS 'the role that ran it; see distill.owners';
COMMENT ON COLUMN distill.runs.attested IS 'whether this server has measured its figures; where not (a worker measured, a superuser wrote the row) they count for its owner, and for all where that is a superuser';
COMMENT ON COLUMN distill.runs.learned_from IS 'digests of the rows that its candidates learned from, as in distill.models';

CREATE TABLE distill.candidates (
    run_id           uuid NOT NULL,
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
    form             text NOT NULL DEFAULT 'predict' CHECK (form IN ('predict', 'sql', 'cascade')),
    statement_latency_ms float8,
    threshold        float8,
    class_threshold  float8,
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
COMMENT ON COLUMN distill.candidates.artifact IS 'its ONNX file, kept for those on the frontier of the select or the test rows';
COMMENT ON COLUMN distill.candidates.expression IS 'the same student as one SQL expression, where it has one';
COMMENT ON COLUMN distill.candidates.input_schema IS 'what its ONNX file takes, as in distill.models';
COMMENT ON COLUMN distill.candidates.output_schema IS 'what its ONNX file gives, as in distill.models';
COMMENT ON COLUMN distill.candidates.form IS 'how it answers, which is what its latency is of: predict, its SQL expression in a query, or predict with its teacher behind it';
COMMENT ON COLUMN distill.candidates.statement_latency_ms IS 'form sql: median of a statement for one row, parsing and planning included';
COMMENT ON COLUMN distill.candidates.threshold IS 'form cascade: the confidence from which the teacher is not asked';
COMMENT ON COLUMN distill.candidates.class_threshold IS 'of two classes: the probability of the last one from which it is named, where that is better for the metric on the select rows than one half';

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
