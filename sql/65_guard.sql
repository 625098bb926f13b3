-- The GRANTs for engineers let them write rows of the registry themselves, as registering and distilling under their own rights
-- does. What only our functions used to make sure of is made sure of here. Superusers are not asked: a restore is theirs.

CREATE FUNCTION distill._check_model() RETURNS trigger
LANGUAGE plpython3u AS $$
from pg_distill import sqlapi
sqlapi.check_inserted(plpy, TD["new"])
$$;
COMMENT ON FUNCTION distill._check_model() IS 'internal: trigger that refuses a model that its table could hold but no backend should open';
CREATE TRIGGER check_model BEFORE INSERT ON distill.models FOR EACH ROW EXECUTE FUNCTION distill._check_model();
COMMENT ON TRIGGER check_model ON distill.models IS 'no file is opened in a backend before a child has checked it, however its row came here';

CREATE FUNCTION distill._check_candidate() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
        RETURN NEW;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        OLD.artifact := NULL;
        OLD.expression := NULL;
        IF NEW IS DISTINCT FROM OLD THEN
            RAISE EXCEPTION 'candidate % of run "%" cannot be edited', NEW.candidate, NEW.run_id
                USING ERRCODE = 'insufficient_privilege', DETAIL = 'Only its file and its SQL may be removed, both together.';
        END IF;
    ELSIF NOT EXISTS (SELECT FROM distill.runs r WHERE r.run_id = NEW.run_id AND r.owner = current_user) THEN
        RAISE EXCEPTION 'run "%" is not one of role "%"', NEW.run_id, current_user
            USING ERRCODE = 'insufficient_privilege', DETAIL = 'Only who ran it may add candidates to it.';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION distill._check_candidate() IS 'internal: trigger that lets a run''s candidates come from its owner only, who stored their SQL, and be emptied, not edited';
CREATE TRIGGER check_candidate BEFORE INSERT OR UPDATE ON distill.candidates FOR EACH ROW EXECUTE FUNCTION distill._check_candidate();
COMMENT ON TRIGGER check_candidate ON distill.candidates IS 'promoted, a candidate''s SQL counts as its run''s owner''s';
