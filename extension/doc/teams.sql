-- A team sees its own models and runs only, whoever else uses the database. Policies and not views, because every function of
-- pg_distill reads distill.models under the caller's rights, so that a policy holds for all of them, and because a policy stays
-- where a view would have to be granted in place of its table; the extension's own views read as who asks. Run by a superuser after
-- grants.sql. pg_dump run by a superuser is not bound by policies, and carries them: policies and GRANTs on an extension's tables are dumped.
-- A name belongs to one team: another that wants it is told that it is taken (42710). A teacher stays while it has students, those of other teams too.

ALTER TABLE distill.models ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS own ON distill.models;
CREATE POLICY own ON distill.models USING (pg_catalog.pg_has_role(distill._owner_role(owner), 'MEMBER')); -- a role that was dropped has no members
ALTER TABLE distill.runs ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS own ON distill.runs;
CREATE POLICY own ON distill.runs USING (pg_catalog.pg_has_role(distill._owner_role(owner), 'MEMBER'));
ALTER TABLE distill.candidates ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS own ON distill.candidates;
CREATE POLICY own ON distill.candidates USING (EXISTS (SELECT FROM distill.runs r WHERE r.run_id = candidates.run_id));
