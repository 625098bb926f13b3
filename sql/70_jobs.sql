-- Jobs: distillations that wait for a worker. Whose a job is decides which rights it is run with, so that nobody may say it but
-- PostgreSQL itself: the trigger holds for roles that row-level security lets pass, too.
-- A role writes its own rows, so that the table holds nothing that would end a worker or a view over it: counts that overflow, times
-- that cannot be subtracted, texts of a gigabyte.
CREATE TABLE distill.job_queue (
    run_id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    submitter        text NOT NULL DEFAULT current_user,
    submitter_oid    oid NOT NULL DEFAULT distill._current_role(),
    arguments        jsonb NOT NULL CHECK (jsonb_typeof(arguments) = 'object' AND octet_length(arguments::text) <= 1048576
                         AND NOT jsonb_path_exists(arguments - 'monotone', '$.* ? (@.type() == "object" || @.type() == "array")')
                         AND coalesce(jsonb_typeof(arguments -> 'monotone'), 'null') IN ('null', 'object')
                         AND NOT jsonb_path_exists(arguments, '$.monotone.* ? (@.type() == "object" || @.type() == "array")')), -- lists of words are unwrapped
    search_path      text NOT NULL DEFAULT current_setting('search_path') CHECK (octet_length(search_path) <= 10000),
    state            text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    cancel_requested boolean NOT NULL DEFAULT false,
    attempts         integer NOT NULL DEFAULT 0 CHECK (attempts BETWEEN 0 AND 1000000),
    takeovers        integer NOT NULL DEFAULT 0 CHECK (takeovers BETWEEN 0 AND 1000000),
    not_before       timestamptz NOT NULL DEFAULT clock_timestamp() CHECK (not_before BETWEEN '2000-01-01 UTC' AND '9000-01-01 UTC'),
    claim_id         uuid,
    worker           text CHECK (octet_length(worker) <= 1000),
    heartbeat_at     timestamptz CHECK (heartbeat_at BETWEEN '2000-01-01 UTC' AND '9000-01-01 UTC'),
    stage            text CHECK (octet_length(stage) <= 1000),
    progress         float8 NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 1),
    candidate        text CHECK (octet_length(candidate) <= 10000),
    seconds_left     float8 CHECK (seconds_left BETWEEN 0 AND 1e9), -- which NaN is not
    student_id       uuid,
    summary          text CHECK (octet_length(summary) <= 100000),
    sqlstate         text CHECK (sqlstate ~ '^[0-9A-Z]{5}$'),
    error            text CHECK (octet_length(error) <= 100000),
    submitted_at     timestamptz NOT NULL DEFAULT clock_timestamp() CHECK (submitted_at BETWEEN '2000-01-01 UTC' AND '9000-01-01 UTC'),
    started_at       timestamptz CHECK (started_at BETWEEN '2000-01-01 UTC' AND '9000-01-01 UTC'),
    finished_at      timestamptz CHECK (finished_at BETWEEN '2000-01-01 UTC' AND '9000-01-01 UTC'),
    CHECK ((state = 'running') = (claim_id IS NOT NULL))
);
-- Not marked for pg_dump: what a run left is in distill.runs, and a job that waits here must not be run where a copy is restored.
CREATE INDEX job_queue_waiting_idx ON distill.job_queue (submitter_oid, submitted_at) WHERE state IN ('queued', 'running');
ALTER TABLE distill.job_queue ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_jobs ON distill.job_queue USING (submitter_oid = distill._current_role()) WITH CHECK (submitter_oid = distill._current_role());
COMMENT ON POLICY own_jobs ON distill.job_queue IS 'a role sees and runs its own jobs only';

COMMENT ON TABLE distill.job_queue IS 'jobs: distillations that are waiting, running or over; see distill.jobs';
COMMENT ON COLUMN distill.job_queue.run_id IS 'the job''s key, and that of its run once it is done';
COMMENT ON COLUMN distill.job_queue.submitter IS 'name at the time of the role that submitted it, as which alone it is run';
COMMENT ON COLUMN distill.job_queue.submitter_oid IS 'that role: one that is renamed keeps its jobs, one that is dropped leaves them to nobody';
COMMENT ON COLUMN distill.job_queue.arguments IS 'distill_model''s arguments';
COMMENT ON COLUMN distill.job_queue.search_path IS 'the submitter''s search_path, in which its queries are read';
COMMENT ON COLUMN distill.job_queue.state IS 'queued, running, done, failed or cancelled';
COMMENT ON COLUMN distill.job_queue.cancel_requested IS 'whether a running job is to stop';
COMMENT ON COLUMN distill.job_queue.attempts IS 'how often it was begun';
COMMENT ON COLUMN distill.job_queue.takeovers IS 'how often a worker died over it and another began again';
COMMENT ON COLUMN distill.job_queue.not_before IS 'when it may be begun';
COMMENT ON COLUMN distill.job_queue.claim_id IS 'which attempt it belongs to: one that has lost it can record nothing';
COMMENT ON COLUMN distill.job_queue.worker IS 'host and process that runs it, or ran it last';
COMMENT ON COLUMN distill.job_queue.heartbeat_at IS 'when its worker last said that it lives';
COMMENT ON COLUMN distill.job_queue.stage IS 'what it is at';
COMMENT ON COLUMN distill.job_queue.progress IS 'how much of the expected time is over, 0 to 1';
COMMENT ON COLUMN distill.job_queue.candidate IS 'the student that is being trained';
COMMENT ON COLUMN distill.job_queue.seconds_left IS 'expected seconds to go at the last heartbeat';
COMMENT ON COLUMN distill.job_queue.student_id IS 'the student; NULL where none was accepted';
COMMENT ON COLUMN distill.job_queue.summary IS 'the result in a sentence';
COMMENT ON COLUMN distill.job_queue.sqlstate IS 'SQLSTATE of the last error';
COMMENT ON COLUMN distill.job_queue.error IS 'the last error';
COMMENT ON COLUMN distill.job_queue.submitted_at IS 'when it was submitted';
COMMENT ON COLUMN distill.job_queue.started_at IS 'when it was last begun';
COMMENT ON COLUMN distill.job_queue.finished_at IS 'when it was over';

CREATE FUNCTION distill._protect_job() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.submitter_oid <> distill._current_role() OR TG_OP = 'INSERT' AND NEW.submitter <> current_user THEN
        RAISE EXCEPTION 'a job of role "%" is for it alone', NEW.submitter USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF TG_OP = 'UPDATE' AND (OLD.run_id, OLD.submitter, OLD.submitter_oid, OLD.arguments, OLD.search_path)
                            IS DISTINCT FROM (NEW.run_id, NEW.submitter, NEW.submitter_oid, NEW.arguments, NEW.search_path) THEN
        RAISE EXCEPTION 'job "%" cannot be edited', OLD.run_id USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION distill._protect_job() IS 'internal: trigger that keeps a job its submitter''s';
CREATE TRIGGER protect_job BEFORE INSERT OR UPDATE ON distill.job_queue FOR EACH ROW EXECUTE FUNCTION distill._protect_job();
COMMENT ON TRIGGER protect_job ON distill.job_queue IS 'nobody submits a job for another role, or changes what it does';

CREATE VIEW distill.jobs WITH (security_invoker = true) AS
SELECT q.run_id, q.arguments ->> 'teacher' AS teacher, q.state, q.progress, q.stage, q.candidate,
       CASE WHEN q.state = 'running' THEN
           pg_catalog.make_interval(secs => pg_catalog.round(GREATEST(
               q.seconds_left - pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - q.heartbeat_at), 0)::numeric)::float8)
       END AS time_left,
       q.error, q.sqlstate, q.attempts, q.submitter, q.cancel_requested, q.worker, q.summary, q.student_id,
       q.submitted_at, q.started_at, q.finished_at
FROM distill.job_queue q
ORDER BY q.submitted_at;
COMMENT ON VIEW distill.jobs IS 'your jobs: state, progress (0 to 1), stage, candidate, expected time left, error';

CREATE FUNCTION distill.submit(
    teacher text, target_latency_ms float8 DEFAULT 5.0, min_accuracy float8 DEFAULT NULL, temperature float8 DEFAULT 4.0,
    epochs int DEFAULT 10, seed bigint DEFAULT 42, metric text DEFAULT NULL, sample text DEFAULT NULL, label text DEFAULT NULL,
    max_rows int DEFAULT 100000, time_budget_s float8 DEFAULT NULL, student_name text DEFAULT NULL, families text[] DEFAULT NULL,
    group_column text DEFAULT NULL, time_column text DEFAULT NULL, weight_column text DEFAULT NULL, trained_on text DEFAULT NULL,
    prefer text DEFAULT 'accurate', text_columns text[] DEFAULT NULL, patience int DEFAULT 32,
    refit_on_all boolean DEFAULT false, monotone jsonb DEFAULT NULL
) RETURNS uuid LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.submit(plpy, teacher, target_latency_ms, min_accuracy, temperature, epochs, seed, metric, sample, label,
                     max_rows, time_budget_s, student_name, families, group_column, time_column, weight_column, trained_on,
                     prefer, text_columns, patience, refit_on_all, monotone)
$$;
COMMENT ON FUNCTION distill.submit(text, float8, float8, float8, int, bigint, text, text, text, int, float8, text, text[], text, text, text, text, text, text[], int, boolean, jsonb) IS
    'queue a distillation for a worker; the id that its run will have, at once';

CREATE FUNCTION distill.cancel(run_id uuid) RETURNS boolean
LANGUAGE plpython3u SET lock_timeout = '2s' AS $$
from pg_distill import sqlapi
return sqlapi.cancel(plpy, run_id)
$$;
COMMENT ON FUNCTION distill.cancel(uuid) IS
    'cancel a job that waits or runs; false where it was over. One that run_next_job runs is cancelled with its session (55P03)';

CREATE FUNCTION distill.run_next_job() RETURNS uuid
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.run_next_job(plpy)
$$;
COMMENT ON FUNCTION distill.run_next_job() IS 'run your next waiting job in this session, for a scheduler such as pg_cron. Its id, or NULL where none waits';

-- For a worker, whose process is not the backend: predict finds its candidates in this session, so that they are timed on its path.
CREATE FUNCTION distill._offer_models(names text[], artifacts bytea[], schemas text, cascades text) RETURNS float8[]
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.offer_models(plpy, names, artifacts, schemas, cascades)
$$;
COMMENT ON FUNCTION distill._offer_models(text[], bytea[], text, text) IS
    'internal: let this session''s predict find models that are not registered, after the checks of a registered one; the milliseconds that each took to open';

CREATE FUNCTION distill._describe_machine() RETURNS jsonb
LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.describe_machine(plpy)
$$;
COMMENT ON FUNCTION distill._describe_machine() IS 'internal: what the server runs on';

CREATE FUNCTION distill._statement_seconds(statement text) RETURNS float8
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.statement_seconds(plpy, statement)
$$;
COMMENT ON FUNCTION distill._statement_seconds(text) IS 'internal: how long the server takes for a query, run read-only as the caller';

-- What a worker found, whose training ran outside: the role reports on its own running job, and the report says so (attested is false).
CREATE FUNCTION distill._record_job(run_id uuid, claim_id uuid, report jsonb, artifacts bytea[]) RETURNS uuid
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.record_job(plpy, run_id, claim_id, report, artifacts)
$$;
COMMENT ON FUNCTION distill._record_job(uuid, uuid, jsonb, bytea[]) IS
    'internal: end a job of the current role with the run, candidates and student that its worker found, files checked; the student''s id';

CREATE FUNCTION distill._take_place(run_id uuid) RETURNS void
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.take_place(plpy, run_id)
$$;
COMMENT ON FUNCTION distill._take_place(uuid) IS 'internal: take a place for the training of a running job of the current role, until its session ends';
