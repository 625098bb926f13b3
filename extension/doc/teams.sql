-- A team sees its own models and runs only, whoever else uses the database. Policies and not views, because every function of
-- pg_distill reads distill.models under the caller's rights, so that a policy holds for all of them, and because a policy stays
-- where a view would have to be granted in place of its table; the extension's own views read as who asks. Run by a superuser after
-- grants.sql. pg_dump run by a superuser is not bound by policies, and carries them: policies and GRANTs on an extension's tables are dumped.
-- What a policy hides also does not stop anybody: a teacher whose owner cannot see another team's student of it can be dropped or pruned, as
-- lineage is no foreign key. The student goes on answering, its run keeps the teacher's name; a cascade without its teacher does not answer.

ALTER TABLE distill.models ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON distill.models USING (EXISTS ( -- a role that was dropped has no members
    SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = owner AND pg_catalog.pg_has_role(r.oid, 'MEMBER')));
ALTER TABLE distill.runs ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON distill.runs USING (EXISTS (
    SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = owner AND pg_catalog.pg_has_role(r.oid, 'MEMBER')));
ALTER TABLE distill.candidates ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON distill.candidates USING (EXISTS (SELECT FROM distill.runs r WHERE r.run_id = candidates.run_id));
