CREATE FUNCTION distill.to_sql(model text) RETURNS text
LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.to_sql(plpy, model)
$$;
COMMENT ON FUNCTION distill.to_sql(text) IS 'the model as one SQL expression over columns that are named as its features';

CREATE FUNCTION distill.create_function(
    model text, function_name text, as_sql boolean DEFAULT false, replace boolean DEFAULT false
) RETURNS regprocedure LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.create_function(plpy, model, function_name, as_sql, replace)
$$;
COMMENT ON FUNCTION distill.create_function(text, text, boolean, boolean) IS
    'make a function of the model with its features as named, typed arguments (over 100: as one row); as_sql: the student itself in plain SQL, IMMUTABLE';

-- The functions are their owners' objects: pg_dump dumps them, and nothing but their comment says which model they are of.
-- Anybody may write that comment, so one on what the role may not drop stops nobody from dropping a model.
CREATE FUNCTION distill._drop_functions() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    called record;
BEGIN
    FOR called IN
        SELECT DISTINCT p.oid::regprocedure AS signature, t.oid::regtype AS row_type,
               pg_has_role(p.proowner, 'USAGE') AND (t.oid IS NULL OR pg_has_role(t.typowner, 'USAGE')) AS own
        FROM deleted m
        JOIN pg_description d ON d.classoid = 'pg_proc'::regclass AND d.objsubid = 0
             AND (d.description = 'pg_distill model ' || m.name || ':' || m.version
                  OR d.description = 'pg_distill model ' || m.name
                     AND NOT EXISTS (SELECT FROM distill.models other WHERE other.name = m.name))
        JOIN pg_proc p ON p.oid = d.objoid AND p.prokind = 'f'
        LEFT JOIN pg_type t ON p.pronargs = 1 AND t.oid = p.proargtypes[0] AND t.typtype = 'c'
             AND obj_description(t.oid, 'pg_type') = d.description
    LOOP
        IF NOT called.own THEN
            RAISE WARNING 'function % of a dropped model stays, as another role owns it', called.signature;
            CONTINUE;
        END IF;
        EXECUTE format('DROP FUNCTION %s', called.signature);
        IF called.row_type IS NOT NULL THEN
            EXECUTE format('DROP TYPE %s', called.row_type);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION distill._drop_functions() IS 'internal: trigger that drops the functions of dropped models';
CREATE TRIGGER drop_functions AFTER DELETE ON distill.models
REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION distill._drop_functions();
COMMENT ON TRIGGER drop_functions ON distill.models IS 'a function of create_function goes with its model';
