-- pg_column_size of a value that is stored apart reads its header, not the value.
CREATE VIEW distill.sizes WITH (security_invoker = true) AS
SELECT m.id AS model_id, m.name, m.version, m.active, m.kind, m.size_bytes,
       coalesce(pg_column_size(m.artifact), 0) + coalesce(pg_column_size(m.expression), 0) AS stored_bytes,
       coalesce(k.candidates, 0) AS kept_candidates, coalesce(k.bytes, 0) AS candidate_bytes, m.created_at
FROM distill.models m
LEFT JOIN (
    SELECT coalesce(r.student_id, r.teacher_id) AS id, count(*) AS candidates, sum(pg_column_size(c.artifact))::bigint AS bytes
    FROM distill.runs r JOIN distill.candidates c USING (run_id)
    WHERE c.artifact IS NOT NULL
    GROUP BY 1
) k USING (id);
COMMENT ON VIEW distill.sizes IS
    'the registry''s size by model: its own bytes, and those of the candidates that its run keeps. A run without a student counts for its teacher';

CREATE FUNCTION distill.prune(
    keep_versions int DEFAULT NULL, older_than interval DEFAULT NULL, model_name text DEFAULT NULL, dry_run boolean DEFAULT true,
    OUT kind text, OUT name text, OUT version text, OUT run_id uuid, OUT size_bytes bigint, OUT created_at timestamptz,
    OUT pruned boolean, OUT reason text
) RETURNS SETOF record LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.prune(plpy, keep_versions, older_than, model_name, dry_run)
$$;
COMMENT ON FUNCTION distill.prune(int, interval, text, boolean) IS
    'remove old versions, and candidates'' files: beyond the newest keep_versions and older than older_than. At least one of the two is given. None goes that is active, a teacher, or named by a view or function. One row for each; removed only with dry_run => false';
