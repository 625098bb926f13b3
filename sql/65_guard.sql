-- Who writes the registry: see 05_rights.sql. A superuser writes what he restores; whose it is, is settled as it comes.
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON distill.models FOR EACH STATEMENT EXECUTE FUNCTION distill._guard();
COMMENT ON TRIGGER guard ON distill.models IS 'only pg_distill and superusers write';
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON distill.runs FOR EACH STATEMENT EXECUTE FUNCTION distill._guard();
COMMENT ON TRIGGER guard ON distill.runs IS 'only pg_distill and superusers write';
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON distill.candidates FOR EACH STATEMENT EXECUTE FUNCTION distill._guard();
COMMENT ON TRIGGER guard ON distill.candidates IS 'only pg_distill and superusers write';
CREATE TRIGGER pin_owner BEFORE INSERT OR UPDATE OF owner ON distill.models FOR EACH ROW EXECUTE FUNCTION distill._pin_owner();
COMMENT ON TRIGGER pin_owner ON distill.models IS 'whose it is does not depend on what a role is called later';
CREATE TRIGGER pin_owner BEFORE INSERT OR UPDATE OF owner ON distill.runs FOR EACH ROW EXECUTE FUNCTION distill._pin_owner();
COMMENT ON TRIGGER pin_owner ON distill.runs IS 'whose it is does not depend on what a role is called later';
