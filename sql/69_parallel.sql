-- PL/Python opens a subtransaction for a query, which a parallel worker could not do before PostgreSQL 17: there a wrong label
-- brings the server down. The label is decided where the extension is installed.
DO $$
DECLARE
    function regprocedure;
BEGIN
    IF pg_catalog.current_setting('server_version_num')::int >= 170000 THEN
        FOR function IN
            SELECT p.oid FROM pg_catalog.pg_proc p
            WHERE p.pronamespace = 'distill'::regnamespace
              AND pg_catalog.ltrim(p.proname, '_') IN ('predict', 'predict_proba', 'predict_class', 'predict_classes', 'predict_batch', 'predict_class_batch',
                                                       'choose_model')
        LOOP
            EXECUTE pg_catalog.format('ALTER FUNCTION %s PARALLEL SAFE', function);
        END LOOP;
    END IF;
END
$$;
