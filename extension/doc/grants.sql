-- What each kind of user needs, for four roles of these names; change the names as you like. Run by a superuser.
-- The extension makes no roles: they belong to the whole server, a second database would find them there, and pg_dump does not carry them.
-- It does carry these GRANTs. They may be run again, as after an update of the extension.

-- reads what is registered and how good it is, but no artifact and no stored SQL
GRANT USAGE ON SCHEMA distill TO distill_reader, distill_predictor, distill_engineer, distill_admin;
GRANT SELECT (id, name, version, active, task, kind, sha256, size_bytes, input_schema, output_schema, label, metric, accuracy, accuracy_low,
    accuracy_high, avg_latency_ms, latency_low_ms, latency_high_ms, p50_latency_ms, p95_latency_ms, p99_latency_ms, latency_declared,
    measured_on, measured_at, teacher_id, created_at, updated_at, owner, form, threshold, class_threshold, attested, origin) ON distill.models TO distill_reader;
-- of a run all but the options it was asked for and carried out with, which hold the query of its sample; so no run_report either
GRANT SELECT (run_id, teacher_id, student_id, teacher_name, teacher_version, student_name, student_version, accepted, summary, seed, metric,
    teacher_accuracy, teacher_accuracy_low, teacher_accuracy_high, student_accuracy, student_accuracy_low, student_accuracy_high,
    teacher_latency_ms, teacher_latency_low_ms, teacher_latency_high_ms, student_latency_ms, student_latency_low_ms,
    student_latency_high_ms, latency_declared, pareto_score, fidelity, lift, majority_accuracy, teacher_log_loss, student_log_loss, figures,
    predict_path, rows_total, rows_fit, rows_select, rows_test, rows_unlabelled, sample_digest, machine, timings, started_at, created_at, owner, attested)
    ON distill.runs TO distill_reader;
GRANT SELECT ON distill.families, distill.frontier, distill.leaderboard, distill.metrics
    TO distill_reader, distill_predictor, distill_engineer, distill_admin;
GRANT EXECUTE ON FUNCTION distill.last_run, distill.dominates_pareto, distill._is_trusted, distill._owner_role TO distill_reader, distill_predictor, distill_engineer, distill_admin;

-- predicts: functions run with the caller's rights, so it reads the models' rows, artifacts included
GRANT SELECT ON distill.models, distill.runs, distill.settings TO distill_predictor, distill_engineer, distill_admin;
GRANT EXECUTE ON FUNCTION
    distill.predict(text, float8[]), distill._predict(text, float8[], bytea),
    distill.predict(text, jsonb), distill._predict(text, jsonb, bytea),
    distill.predict(text, float8[], text[]), distill._predict(text, float8[], text[], bytea),
    distill.predict(text, float8[], text[], float4[]), distill._predict(text, float8[], text[], bytea[], bytea),
    distill.predict_proba(text, float8[]), distill._predict_proba(text, float8[], bytea),
    distill.predict_proba(text, jsonb), distill._predict_proba(text, jsonb, bytea),
    distill.predict_proba(text, float8[], text[]), distill._predict_proba(text, float8[], text[], bytea),
    distill.predict_proba(text, float8[], text[], float4[]), distill._predict_proba(text, float8[], text[], bytea[], bytea),
    distill.predict_class(text, float8[]), distill._predict_class(text, float8[], bytea),
    distill.predict_class(text, jsonb), distill._predict_class(text, jsonb, bytea),
    distill.predict_class(text, float8[], text[]), distill._predict_class(text, float8[], text[], bytea),
    distill.predict_class(text, float8[], text[], float4[]), distill._predict_class(text, float8[], text[], bytea[], bytea),
    distill.predict_batch, distill._predict_batch, distill._array_bytes, distill._vector_bytes,
    distill.predict_classes(text, float8[]), distill._predict_classes(text, float8[], bytea),
    distill.predict_classes(text, jsonb), distill._predict_classes(text, jsonb, bytea),
    distill.predict_classes(text, float8[], text[]), distill._predict_classes(text, float8[], text[], bytea),
    distill.predict_classes(text, float8[], text[], float4[]), distill._predict_classes(text, float8[], text[], bytea[], bytea),
    distill.predict_class_batch, distill._predict_class_batch, distill.score_class, distill._score_class,
    distill.score, distill._score, distill._open_cursor, distill._float8_of_bits,
    distill.choose_model, distill._choose_model, distill.warm_up, distill.to_sql, distill.show_settings,
    distill._read_only, distill._run_pending, distill.run_report, distill._write, distill._run_cost, distill._schema_digest
    TO distill_predictor, distill_engineer, distill_admin;

-- registers and distils. No right to write a table of the registry: distill._write() writes for the functions, and finds nothing to do when it is
-- called by itself. Releases before 0.2.0 needed such rights: they are taken back where they were granted
REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON distill.models, distill.runs, distill.candidates FROM distill_engineer, distill_admin;
GRANT SELECT ON distill.candidates TO distill_engineer, distill_admin;
GRANT EXECUTE ON FUNCTION distill.register_model, distill.register_model_file, distill._register_claimed, distill.register_sql_model,
    distill.register_logged_model, distill.activate_model, distill.drop_model, distill.promote_candidate, distill.run_rows,
    distill.create_function, distill.check, distill.remeasure, distill.prune TO distill_engineer, distill_admin;
GRANT SELECT ON distill.sizes TO distill_engineer, distill_admin;
-- distill_model is in the schema that CREATE EXTENSION named, which is public unless it said otherwise
DO $$
DECLARE
    made record;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    SELECT p.oid::regprocedure AS function, n.nspname AS schema INTO STRICT made
    FROM pg_extension e
    JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
    JOIN pg_proc p ON p.oid = d.objid
    JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE e.extname = 'pg_distill' AND p.proname = 'distill_model';
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO distill_engineer, distill_admin', made.function);
    IF made.schema <> 'public' THEN -- which everybody may use
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO distill_engineer, distill_admin', made.schema);
    END IF;
END
$$;
-- and by jobs: each is seen, run and cancelled by its submitter alone (row-level security, and a trigger)
GRANT SELECT, INSERT, UPDATE, DELETE ON distill.job_queue TO distill_engineer, distill_admin;
GRANT SELECT ON distill.jobs TO distill_engineer, distill_admin;
GRANT EXECUTE ON FUNCTION distill.submit, distill.cancel, distill.run_next_job, distill._record_job, distill._take_place, distill._current_role,
    distill._describe_machine, distill._offer_models, distill._statement_seconds TO distill_engineer, distill_admin;

-- changes limits, too
GRANT INSERT, UPDATE, DELETE ON distill.settings TO distill_admin;
GRANT EXECUTE ON FUNCTION distill.change_setting TO distill_admin;

-- registers files of the server (register_model_file; the dbt macro's path): both grants are needed, and any file that the server's account
-- can read may be read by them, so nobody has them unless you say so
-- GRANT pg_read_server_files TO distill_admin;
-- GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text) TO distill_admin;
