-- What a view's column says: the same as the table's column of that name, or what stands here.
DO $$
DECLARE
    own CONSTANT jsonb := '{
        "family": "name of the root teacher",
        "model_id": "key of the version in distill.models",
        "teacher": "the teacher as it was named to submit",
        "speedup": "the teacher''s latency over the student''s",
        "time_left": "expected time to go",
        "accuracy_run_id": "the run whose test rows the accuracy is of, where the model has learned from those of the last that measured the family; such figures compare within one run only",
        "comparable_low": "the accuracy; of a model that only some of a run''s test rows could judge, the least that it would reach on all, by its difference to the run''s student on the same rows and that difference''s 95 % interval",
        "comparable_high": "the accuracy; of such a model the most that it would reach",
        "of_twin": "whether the figures are of its judged twin, because it has learned from the test rows afterwards (refit_on_all)",
        "models": "versions registered",
        "names": "names among them",
        "students": "versions that have a teacher",
        "artifact_bytes": "bytes of all versions",
        "stored_bytes": "bytes of its artifact and expression as they are stored",
        "kept_candidates": "candidates whose files its run keeps",
        "candidate_bytes": "bytes of the candidates'' files that are kept",
        "runs_accepted": "runs that gave a student",
        "runs_refused": "runs that gave none",
        "last_run_timestamp_seconds": "when the last run was recorded, in seconds since 1970",
        "last_run_duration_seconds": "how long the last run took",
        "trainings_active": "trainings that sessions of this database run now; workers'' are among jobs_running, and concurrent_trainings counts those of other databases, too",
        "jobs_queued": "jobs of all roles that wait",
        "jobs_running": "jobs of all roles that run",
        "jobs_failed": "jobs of all roles that failed",
        "oldest_queued_job_seconds": "how long the oldest job has waited"
    }';
    found record;
BEGIN
    FOR found IN
        SELECT v.relname, a.attname, coalesce(own ->> a.attname, (
            SELECT pg_catalog.col_description(t.oid, c.attnum)
            FROM pg_catalog.pg_class t JOIN pg_catalog.pg_attribute c ON c.attrelid = t.oid
            WHERE t.relnamespace = v.relnamespace AND t.relkind = 'r' AND c.attname = a.attname
            -- its own table first: job_queue for jobs, runs for leaderboard, models for the others
            ORDER BY t.relname <> CASE v.relname WHEN 'jobs' THEN 'job_queue' WHEN 'leaderboard' THEN 'runs' ELSE 'models' END, t.relname
            LIMIT 1)) AS comment
        FROM pg_catalog.pg_class v JOIN pg_catalog.pg_attribute a ON a.attrelid = v.oid
        WHERE v.relnamespace = 'distill'::regnamespace AND v.relkind = 'v' AND a.attnum > 0
    LOOP
        EXECUTE pg_catalog.format('COMMENT ON COLUMN distill.%I.%I IS %L', found.relname, found.attname, found.comment);
    END LOOP;
END
$$;
