-- CREATE EXTENSION puts the schema that it is told into search_path: what somebody has planted there (an operator for exactly the types of a
-- line below) would be run by the superuser who installs, or end up in a view. Every name of ours is written with its schema.
SET LOCAL search_path TO pg_catalog, pg_temp;

-- Everything but distill_model lives here. CREATE SCHEMA fails where the schema exists: nobody's objects are mixed with ours.
CREATE SCHEMA distill;
COMMENT ON SCHEMA distill IS 'pg_distill: model registry, distillation and prediction';

-- The module's version is checked before anything is created: an extension without its module is of no use.
CREATE FUNCTION distill._check_module() RETURNS void
LANGUAGE plpython3u AS $$
try:
    from pg_distill import sqlapi
except (ImportError, OSError) as error:
    plpy.error(f"Python module pg_distill cannot be imported: {error}", sqlstate="55000",
               hint="Install it for the server's Python (make install) and open a new session.")
sqlapi.check_module(plpy)
$$;
COMMENT ON FUNCTION distill._check_module() IS 'internal: error unless the Python module is there and of this version';
SELECT distill._check_module();

CREATE TABLE distill.settings (
    name       text PRIMARY KEY,
    value      text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    changed_by text NOT NULL DEFAULT current_user
);
SELECT pg_catalog.pg_extension_config_dump('distill.settings', '');
COMMENT ON TABLE distill.settings IS 'limits and settings that differ from their defaults; for administrators only, as any role can SET a GUC';
COMMENT ON COLUMN distill.settings.name IS 'setting, one of those that distill.show_settings() lists';
COMMENT ON COLUMN distill.settings.value IS 'its value, as text';
COMMENT ON COLUMN distill.settings.changed_at IS 'when it was set';
COMMENT ON COLUMN distill.settings.changed_by IS 'who set it';

CREATE FUNCTION distill.show_settings(OUT name text, OUT value text, OUT unit text, OUT is_default boolean, OUT description text)
RETURNS SETOF record LANGUAGE plpython3u STABLE AS $$
from pg_distill import sqlapi
return sqlapi.show_settings(plpy)
$$;
COMMENT ON FUNCTION distill.show_settings() IS 'every setting with its value in force, unit and meaning';

CREATE FUNCTION distill.change_setting(name text, value text) RETURNS void
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.change_setting(plpy, name, value)
$$;
COMMENT ON FUNCTION distill.change_setting(text, text) IS 'set a limit for the whole database; NULL takes it back to its default';

CREATE FUNCTION distill._check_setting() RETURNS trigger
LANGUAGE plpython3u SET search_path = pg_catalog, pg_temp AS $$
from pg_distill import sqlapi
sqlapi.check_changed_setting(plpy, TD["old"], TD["new"])
$$;
COMMENT ON FUNCTION distill._check_setting() IS 'internal: trigger that takes values of settings only, and from administrators none that makes a superuser of them';
CREATE TRIGGER check_setting BEFORE INSERT OR UPDATE OR DELETE ON distill.settings FOR EACH ROW EXECUTE FUNCTION distill._check_setting();
COMMENT ON TRIGGER check_setting ON distill.settings IS 'what change_setting refuses is refused however it comes';

CREATE FUNCTION distill._run_pending() RETURNS void
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
return sqlapi.run_pending(plpy)
$$;
COMMENT ON FUNCTION distill._run_pending() IS 'internal: runs what the calling function left to be run read-only; an error when called by anyone else';

-- Read-only ends with the subtransaction that it was set in, and PL/Python opens one for each statement: PL/pgSQL, which does not, is called
-- in that statement. A SET clause would be simpler, but PostgreSQL 16 and later refuse this parameter there.
CREATE FUNCTION distill._read_only() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.set_config('transaction_read_only', 'on', true);
    PERFORM distill._run_pending();
END
$$;
COMMENT ON FUNCTION distill._read_only() IS 'internal: distill._run_pending in which nothing can be written';
