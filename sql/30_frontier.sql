CREATE FUNCTION distill.dominates_pareto(latency float8, accuracy float8, frontier float8[][]) RETURNS boolean
LANGUAGE plpython3u IMMUTABLE PARALLEL SAFE AS $$
from pg_distill import sqlapi
return sqlapi.dominates_pareto(plpy, latency, accuracy, frontier)
$$;
COMMENT ON FUNCTION distill.dominates_pareto(float8, float8, float8[]) IS
    'whether a point improves a frontier of {latency, accuracy} rows. None of them dominates or equals it; any point improves the empty frontier';

-- Views read as who asks, not as their owner: a policy on the tables holds in them too.

-- A family is the root teacher, its versions, its students, theirs, and all of their versions. A student whose figures this server has not measured
-- itself is in it for those whom its owner can speak for.
CREATE VIEW distill.families WITH (security_invoker = true) AS
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
COMMENT ON VIEW distill.families IS 'every model with the root teacher of its family';

CREATE VIEW distill.frontier WITH (security_invoker = true) AS
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
COMMENT ON VIEW distill.frontier IS 'models that no other of their family dominates: none is both no slower and no less accurate, and better in one';

CREATE VIEW distill.leaderboard WITH (security_invoker = true) AS
SELECT r.teacher_name, r.student_name, r.student_version, r.metric, r.teacher_accuracy, r.student_accuracy, r.lift,
       r.teacher_latency_ms, r.student_latency_ms, r.teacher_latency_ms / r.student_latency_ms AS speedup,
       r.pareto_score, r.latency_declared, r.summary, r.run_id, r.student_id, r.created_at
FROM distill.runs r
WHERE r.accepted AND (r.attested OR distill._is_trusted(r.owner))
ORDER BY r.pareto_score DESC NULLS LAST, r.created_at DESC;
COMMENT ON VIEW distill.leaderboard IS 'accepted runs, best pareto score first';
