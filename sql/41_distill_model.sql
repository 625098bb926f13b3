-- The one object outside schema distill: it is created where CREATE EXTENSION says (public unless told otherwise).
CREATE FUNCTION @extschema@.distill_model(
    teacher text, target_latency_ms float8 DEFAULT 5.0, min_accuracy float8 DEFAULT NULL, temperature float8 DEFAULT 4.0,
    epochs int DEFAULT 10, seed bigint DEFAULT 42, metric text DEFAULT NULL, sample text DEFAULT NULL, label text DEFAULT NULL,
    max_rows int DEFAULT 100000, time_budget_s float8 DEFAULT NULL, student_name text DEFAULT NULL, families text[] DEFAULT NULL,
    group_column text DEFAULT NULL, time_column text DEFAULT NULL, weight_column text DEFAULT NULL, trained_on text DEFAULT NULL,
    prefer text DEFAULT 'accurate', text_columns text[] DEFAULT NULL, patience int DEFAULT 32,
    refit_on_all boolean DEFAULT false, monotone jsonb DEFAULT NULL
) RETURNS uuid LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.distill_model(plpy, teacher, target_latency_ms, min_accuracy, temperature, epochs, seed, metric, sample, label,
                            max_rows, time_budget_s, student_name, families, group_column, time_column, weight_column, trained_on,
                            prefer, text_columns, patience, refit_on_all, monotone)
$$;
COMMENT ON FUNCTION @extschema@.distill_model(text, float8, float8, float8, int, bigint, text, text, text, int, float8, text, text[], text, text, text, text, text, text[], int, boolean, jsonb) IS
    'distil the teacher into a student that meets the latency target and improves the frontier; its id, or NULL with a warning';
