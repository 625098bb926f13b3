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
    'the rows of a run''s sample and the split of each, so that its figures can be recomputed. Splits are fit, select, test and unlabelled; NULL for rows left out';
