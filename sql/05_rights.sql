-- The registry's tables are written by pg_distill's own code and by superusers (who restore), and by nobody else: what it says of a model, a run or
-- an owner is then true, and no right to write them has to be granted. This function lends its owner's rights to what our code, in this backend, has
-- put down to be written, and to nothing that a statement could say: it takes no argument, and called by anyone else it finds nothing to do. The
-- caller's own SQL (samples, expressions) never runs in it: that is why it is this small function that is SECURITY DEFINER, and not those that are called.
CREATE FUNCTION distill._write() RETURNS void
LANGUAGE plpython3u SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
from pg_distill import sqlapi
return sqlapi.run_write(plpy)
$$;
COMMENT ON FUNCTION distill._write() IS 'internal: writes what the calling function of pg_distill has put down, with the rights of the registry''s owner; an error when called by anyone else';

CREATE FUNCTION distill._guard() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = current_user
                   AND (r.rolsuper OR r.oid = (SELECT c.relowner FROM pg_class c WHERE c.oid = TG_RELID))) THEN
        RAISE EXCEPTION 'table distill.% is written by pg_distill alone', TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege', HINT = 'Call a function: distill.register_model, distill_model, distill.activate_model, distill.drop_model, distill.prune ...';
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION distill._guard() IS 'internal: trigger that lets nobody but pg_distill and superusers write, whatever was granted';

-- Whose a row is, is written as a name, which pg_dump carries into any cluster. A name alone would pass to the next role that is called so, and be lost
-- by a role that is renamed: the role that it stood for when it was written is kept here, by its oid, in this cluster. So this table is not dumped.
CREATE TABLE distill.owners (
    name text PRIMARY KEY,
    role oid NOT NULL UNIQUE
);
COMMENT ON TABLE distill.owners IS 'which role the name of an owner stands for. A role keeps what it owns when it is renamed, and leaves it to nobody when it is dropped';
COMMENT ON COLUMN distill.owners.name IS 'name of an owner, as models and runs have it';
COMMENT ON COLUMN distill.owners.role IS 'oid of the role that it stands for, which may have another name now, or be gone';
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON distill.owners FOR EACH STATEMENT EXECUTE FUNCTION distill._guard();
COMMENT ON TRIGGER guard ON distill.owners IS 'only pg_distill writes';

CREATE FUNCTION distill._owner_role(owner text) RETURNS oid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN COALESCE(
    (SELECT o.role FROM distill.owners o WHERE o.name = owner),
    -- restored without triggers: by name, as pg_dump means it
    (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = owner AND NOT EXISTS (SELECT FROM distill.owners o WHERE o.role = r.oid))
);
COMMENT ON FUNCTION distill._owner_role(text) IS 'internal: the role that an owner''s name stands for; NULL where there is none';

CREATE FUNCTION distill._current_role() RETURNS oid
LANGUAGE sql STABLE
RETURN (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = current_user);
COMMENT ON FUNCTION distill._current_role() IS 'internal: oid of the current role';

CREATE FUNCTION distill._is_trusted(owner text) RETURNS boolean
LANGUAGE sql STABLE
RETURN EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid = distill._owner_role(owner) AND (r.rolsuper OR r.rolname = current_user));
COMMENT ON FUNCTION distill._is_trusted(text) IS 'internal: whether what this owner stored counts for the current role: its own, and what a superuser stored';

CREATE FUNCTION distill._pin_owner() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO distill.owners (name, role)
    SELECT r.rolname, r.oid FROM pg_roles r WHERE r.rolname = NEW.owner
    ON CONFLICT DO NOTHING;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION distill._pin_owner() IS 'internal: trigger by which the name of an owner stands for its role from now on';

-- A name's row is locked while versions of it are added, activated or dropped. Nobody else can lock rows here, as anybody can take an advisory lock,
-- and who holds one keeps nobody from another name.
CREATE TABLE distill.name_locks (
    name text PRIMARY KEY
);
COMMENT ON TABLE distill.name_locks IS 'a row is locked while a model''s name is written';
COMMENT ON COLUMN distill.name_locks.name IS 'model name that was written once';
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON distill.name_locks FOR EACH STATEMENT EXECUTE FUNCTION distill._guard();
COMMENT ON TRIGGER guard ON distill.name_locks IS 'only pg_distill writes';

-- Empty: its ROW EXCLUSIVE lock, which nobody else can take, is held by each training, so that distill.metrics counts them.
CREATE TABLE distill.trainings ();
COMMENT ON TABLE distill.trainings IS 'empty; each training in this database holds its lock';

-- Files that a child process has checked on this server, together with the signature by which they are read. A backend opens no other: what was
-- restored, or written by a superuser, is checked when it is first asked for. Not dumped: another server has it checked again.
CREATE TABLE distill.checked (
    sha256        text,
    schema_digest text,
    rules         text,
    cost          jsonb NOT NULL,
    checked_at    timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (sha256, schema_digest, rules)
);
COMMENT ON TABLE distill.checked IS 'files that were checked here, so that a backend may open them';
COMMENT ON COLUMN distill.checked.sha256 IS 'digest of the file';
COMMENT ON COLUMN distill.checked.schema_digest IS 'digest of the signature by which it is read';
COMMENT ON COLUMN distill.checked.rules IS 'release whose rules it passed: newer rules are asked again';
COMMENT ON COLUMN distill.checked.cost IS 'what a run of it takes at most, by these rules';
COMMENT ON COLUMN distill.checked.checked_at IS 'when';
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON distill.checked FOR EACH STATEMENT EXECUTE FUNCTION distill._guard();
COMMENT ON TRIGGER guard ON distill.checked IS 'only pg_distill writes';

CREATE FUNCTION distill._schema_digest(input_schema jsonb, output_schema jsonb) RETURNS text
LANGUAGE sql STABLE
RETURN pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(
    pg_catalog.jsonb_build_array(input_schema, output_schema)::text, 'UTF8')), 'hex');
COMMENT ON FUNCTION distill._schema_digest(jsonb, jsonb) IS 'internal: digest of a model''s signature';

CREATE FUNCTION distill._run_cost(sha256 text, schema_digest text, rules text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN (SELECT c.cost::text FROM distill.checked c
        WHERE c.sha256 = _run_cost.sha256 AND c.schema_digest = _run_cost.schema_digest AND c.rules = _run_cost.rules);
COMMENT ON FUNCTION distill._run_cost(text, text, text) IS 'internal: what a run takes of a file that a child process has checked on this server; NULL where none has';
