CREATE FUNCTION distill.check(
    model text, sample text DEFAULT NULL, label text DEFAULT NULL, max_rows int DEFAULT 10000, seed bigint DEFAULT 0,
    include_learned boolean DEFAULT false,
    OUT figure text, OUT metric text, OUT recorded float8, OUT recorded_low float8, OUT recorded_high float8,
    OUT fresh float8, OUT fresh_low float8, OUT fresh_high float8, OUT holds boolean, OUT row_count bigint, OUT note text,
    OUT learned_share float8
) RETURNS SETOF record LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.check(plpy, model, sample, label, max_rows, seed, include_learned)
$$;
COMMENT ON FUNCTION distill.check(text, text, text, int, bigint, boolean) IS
    'fidelity, accuracy and latency on fresh rows beside those recorded, and whether the model still holds its place. One row per figure. Without a sample: the test split of its run''s rows as they are now. Rows that the model or its teacher has learned from are left out, and their share is said';

CREATE FUNCTION distill.remeasure(
    model text, OUT name text, OUT version text, OUT avg_latency_ms float8, OUT latency_low_ms float8, OUT latency_high_ms float8,
    OUT previous_latency_ms float8, OUT accuracy float8, OUT accuracy_low float8, OUT accuracy_high float8, OUT previous_accuracy float8
) RETURNS SETOF record LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.remeasure(plpy, model)
$$;
COMMENT ON FUNCTION distill.remeasure(text) IS
    'measure a model''s whole family again, on its run''s test rows and this machine, and store the figures. One row per model, with what was stored before';

-- What an exporter scrapes every few seconds: counts, and sizes that stand in the rows. No artifact is read for it. It reads as its owner, unlike
-- the other views: a role that may scrape needs no right to models, and learns no name of any.
CREATE VIEW distill.metrics AS
SELECT m.models, m.names, m.students, m.artifact_bytes, c.candidate_bytes,
       r.runs_accepted, r.runs_refused, r.last_run_timestamp_seconds, r.last_run_duration_seconds,
       (SELECT count(*)
        FROM pg_catalog.pg_locks l
        WHERE l.locktype = 'relation' AND l.relation = 'distill.trainings'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
          AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
       ) AS trainings_active,
       j.jobs_queued, j.jobs_running, j.jobs_failed, j.oldest_queued_job_seconds
FROM (SELECT count(*) AS models, count(DISTINCT name) AS names, count(teacher_id) AS students,
             coalesce(sum(size_bytes), 0)::bigint AS artifact_bytes
      FROM distill.models) m,
     (SELECT coalesce(sum(size_bytes) FILTER (WHERE artifact IS NOT NULL), 0)::bigint AS candidate_bytes FROM distill.candidates) c,
     (SELECT count(*) FILTER (WHERE accepted) AS runs_accepted, count(*) FILTER (WHERE NOT accepted) AS runs_refused,
             date_part('epoch', max(created_at)) AS last_run_timestamp_seconds,
             (SELECT sum(t.value::float8) FROM distill.runs l, jsonb_each_text(l.timings) t
              WHERE l.run_id = (SELECT n.run_id FROM distill.runs n ORDER BY n.created_at DESC, n.started_at DESC LIMIT 1)
             ) AS last_run_duration_seconds
      FROM distill.runs) r,
     (SELECT count(*) FILTER (WHERE state = 'queued') AS jobs_queued, count(*) FILTER (WHERE state = 'running') AS jobs_running,
             count(*) FILTER (WHERE state = 'failed') AS jobs_failed,
             date_part('epoch', clock_timestamp() - min(submitted_at) FILTER (WHERE state = 'queued')) AS oldest_queued_job_seconds
      FROM distill.job_queue) j;
COMMENT ON VIEW distill.metrics IS
    'one row for a Prometheus exporter. Models, names, students, bytes of models and of kept candidates; runs by outcome, the last run, active trainings. Jobs of all roles by state, and the age of the oldest that waits. It reads no artifact';
