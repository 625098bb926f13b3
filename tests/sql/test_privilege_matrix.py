"""The documented GRANTs give each kind of role what it is for and no more: every role, object and right, as committed.

``PRIVILEGES_WRITE=1 pytest tests/sql/test_privilege_matrix.py`` writes the expectation anew; read its diff.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import errors
from sql.conftest import cancer, load_cancer
from sql.test_serving import value

pytestmark = pytest.mark.every_server

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = ROOT / "tests" / "sql" / "privileges.txt"
GRANTS = ROOT / "extension" / "doc" / "grants.sql"
ROLES = ("nobody", "distill_reader", "distill_predictor", "distill_engineer", "distill_admin")
ROW = "array_fill(1::float8, ARRAY[30])"
RIGHTS = """
SELECT 'schema distill', string_agg(p, ' ' ORDER BY p)
FROM unnest('{{USAGE,CREATE}}'::text[]) p WHERE has_schema_privilege('{0}', 'distill', p)
UNION ALL
SELECT CASE c.relkind WHEN 'v' THEN 'view ' ELSE 'table ' END || c.oid::regclass,
       (SELECT string_agg(p, ' ' ORDER BY p) FROM unnest('{{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}}'::text[]) p
        WHERE has_table_privilege('{0}', c.oid, p))
FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_distill' WHERE c.relkind IN ('r', 'v', 'm', 'p', 'f')
UNION ALL
SELECT 'column ' || c.oid::regclass || '.' || a.attname,
       (SELECT string_agg(p, ' ' ORDER BY p) FROM unnest('{{SELECT,INSERT,UPDATE}}'::text[]) p
        WHERE has_column_privilege('{0}', a.attrelid, a.attnum, p) AND NOT has_table_privilege('{0}', a.attrelid, p))
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.oid IN ('distill.models'::regclass, 'distill.runs'::regclass, 'distill.candidates'::regclass)
UNION ALL
SELECT 'function ' || p.oid::regprocedure, CASE WHEN has_function_privilege('{0}', p.oid, 'EXECUTE') THEN 'EXECUTE' END
FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_distill'
"""

Connect = Callable[..., psycopg.Connection]
Role = Callable[..., str]


@pytest.fixture
def granted(db: psycopg.Connection, role: Role) -> psycopg.Connection:
    """Give the superuser's session, after the documented GRANTs to four roles."""
    for name in ROLES:
        role(name)
    db.execute(GRANTS.read_text())
    return db


def matrix(connection: psycopg.Connection) -> str:
    """Return roles x objects x rights as lines of text."""
    by_object: dict[str, dict[str, str]] = {}
    for name in ROLES:
        for thing, rights in connection.execute(RIGHTS.format(name)):
            by_object.setdefault(thing, {})[name] = rights or "-"
    lines = []
    for thing in sorted(by_object):
        lines.append(thing)
        lines += [f"    {name:18} {by_object[thing].get(name, '-')}" for name in ROLES]
    return "\n".join(lines) + "\n"


def test_rights_are_those_committed(granted: psycopg.Connection) -> None:
    found = matrix(granted)
    if os.environ.get("PRIVILEGES_WRITE"):
        EXPECTED.write_text(found)
    assert found == EXPECTED.read_text()
    nobody = re.findall(r"^    nobody +(.*)$", found, re.MULTILINE)
    assert len(nobody) > 40 and set(nobody) == {"-"}


def test_grants_and_policies_may_be_run_again(granted: psycopg.Connection) -> None:
    found = matrix(granted)
    for _ in range(2):
        granted.execute(GRANTS.read_text())
        granted.execute((ROOT / "extension" / "doc" / "teams.sql").read_text())
    assert matrix(granted) == found


@pytest.mark.parametrize("schema", ["ext", "Odd; Schema"])
def test_grants_find_distill_model_in_its_schema(
    db: psycopg.Connection, role: Role, connect: Connect, schema: str
) -> None:
    """Wherever CREATE EXTENSION was told to make it, and whatever else is called so."""
    for name in ROLES:
        role(name)
    db.execute("DROP EXTENSION pg_distill")
    db.execute(f'CREATE SCHEMA "{schema}"')
    db.execute(f'CREATE EXTENSION pg_distill SCHEMA "{schema}"')
    db.execute("CREATE FUNCTION public.distill_model(teacher text) RETURNS int LANGUAGE sql RETURN 1")
    db.execute(f'CREATE FUNCTION "{schema}".distill_model(teacher int) RETURNS int LANGUAGE sql RETURN 1')
    for _ in range(2):
        db.execute(GRANTS.read_text())
    call = f"SELECT \"{schema}\".distill_model('cancer', time_budget_s => -1)"
    for name in ("distill_engineer", "distill_admin"):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            connect(user=name).execute(call)
    for name in ("nobody", "distill_reader", "distill_predictor"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connect(user=name).execute(call)


def test_definers_are_few_and_pin_their_path(
    db: psycopg.Connection,
) -> None:
    definers = db.execute(
        "SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'"
        " AND d.classid = 'pg_proc'::regclass JOIN pg_extension e ON e.oid = d.refobjid"
        " WHERE e.extname = 'pg_distill' AND p.prosecdef AND p.proconfig = '{\"search_path=pg_catalog, pg_temp\"}' ORDER BY 1"
    ).fetchall()
    # None of them runs what a caller wrote: one writes what our code has put down, two read what is nobody's to read.
    assert [str(row[0]) for row in definers] == [
        "distill._owner_role(text)",
        "distill._run_cost(text,text,text)",
        "distill._write()",
    ]
    assert db.execute("SELECT count(*) FROM pg_proc WHERE prosecdef").fetchone() == (len(definers),)


REGISTER = "SELECT distill.register_sql_model('{0}', '0.5 + 0 * x', '{{x}}', 'SELECT x, label FROM numbers', 'label')"
# operation, what each role gets: "ok" or a SQLSTATE, in the order of ROLES
OPERATIONS = {
    "SELECT name, accuracy FROM distill.models": "42501 ok ok ok ok",
    "SELECT artifact FROM distill.models": "42501 42501 ok ok ok",
    "SELECT * FROM distill.frontier": "42501 ok ok ok ok",
    "SELECT * FROM distill.leaderboard": "42501 ok ok ok ok",
    "SELECT summary, owner FROM distill.runs": "42501 ok ok ok ok",
    "SELECT resolved FROM distill.runs": "42501 42501 ok ok ok",
    "SELECT sample, expression FROM distill.models": "42501 42501 ok ok ok",
    "SELECT distill.run_report(gen_random_uuid())": "42501 42501 42704 42704 42704",
    "SELECT distill.last_run('cancer')": "42501 ok ok ok ok",
    f"SELECT distill.predict('cancer', {ROW})": "42501 42501 ok ok ok",
    f"SELECT distill.predict_proba('cancer', {ROW})": "42501 42501 ok ok ok",
    "SELECT * FROM distill.score('cancer', 'cancer', 'x0') LIMIT 1": "42501 42501 ok ok ok",
    "SELECT * FROM distill.score_class('cancer', 'cancer', 'x0') LIMIT 1": "42501 42501 ok ok ok",
    f"SELECT distill.predict_class_batch('cancer', ARRAY[{ROW}])": "42501 42501 ok ok ok",
    "SELECT distill_model('cancer', time_budget_s => -1)": "42501 42501 42501 22023 22023",
    REGISTER.format("new"): "42501 42501 42501 ok ok",
    "SELECT distill.register_model_file('m', '/etc/hostname')": "42501 42501 42501 42501 42501",
    "SELECT distill.drop_model('cancer')": "42501 42501 42501 42501 ok",
    "SELECT distill.activate_model('cancer', '1')": "42501 42501 42501 42501 ok",
    "SELECT distill._write()": "42501 42501 55000 55000 55000",
    "INSERT INTO distill.models (name) VALUES ('m')": "42501 42501 42501 42501 42501",
    "INSERT INTO distill.runs (run_id) VALUES (gen_random_uuid())": "42501 42501 42501 42501 42501",
    "UPDATE distill.models SET accuracy = 1": "42501 42501 42501 42501 42501",
    "DELETE FROM distill.candidates": "42501 42501 42501 42501 42501",
    "SELECT FROM distill.name_locks FOR UPDATE": "42501 42501 42501 42501 42501",
    "LOCK TABLE distill.trainings IN ROW EXCLUSIVE MODE": "42501 42501 42501 42501 42501",
    "SELECT distill.change_setting('trainer_threads', '1')": "42501 42501 42501 42501 ok",
    "UPDATE distill.models SET owner = 'postgres'": "42501 42501 42501 42501 42501",
    "INSERT INTO distill.settings VALUES ('trainer_threads', '1')": "42501 42501 42501 42501 ok",
    "INSERT INTO distill.settings VALUES ('x', '1')": "42501 42501 42501 42501 22023",
    "SELECT distill.change_setting('executor', 'dask://localhost:1')": "42501 42501 42501 42501 42501",
    "TRUNCATE distill.models": "42501 42501 42501 42501 42501",
    "CREATE TABLE distill.mine ()": "42501 42501 42501 42501 42501",
}


def test_operations_under_each_role(granted: psycopg.Connection) -> None:
    load_cancer(granted)
    granted.execute(
        "CREATE TABLE numbers AS SELECT i::float8 AS x, i % 2 AS label FROM generate_series(1, 200) i;"
        "GRANT SELECT ON numbers, cancer TO " + ", ".join(ROLES)
    )
    wrong = []
    for name, position in zip(ROLES, range(len(ROLES)), strict=True):
        for operation, expected in OPERATIONS.items():
            try:
                with granted.transaction(force_rollback=True):
                    granted.execute(f"SET LOCAL ROLE {name}")
                    granted.execute(operation)
                found: str | None = "ok"
            except psycopg.Error as error:
                found = error.sqlstate
            if found != expected.split()[position]:
                wrong.append(f"{name}: {operation}: {found}, expected {expected.split()[position]}")
    assert wrong == []


def test_owner_is_nobody_elses_to_choose(granted: psycopg.Connection, connect: Connect) -> None:
    """Stored SQL runs for its owner, so that a role that could name a superuser as owner could have it run."""
    with pytest.raises(errors.InsufficientPrivilege):
        connect(user="distill_engineer").execute(
            "INSERT INTO distill.models (name, version, active, task, kind, expression, sha256, size_bytes, input_schema,"
            " output_schema, owner) VALUES ('m', '1', true, 'binary', 'sql', '1', '', 1, '{}', '{}', 'postgres')"
        )


def test_a_team_sees_its_own_models_only(granted: psycopg.Connection, role: Role, connect: Connect) -> None:
    """The documented policies, under SET ROLE, a definer's function and a view, with the session in the cache."""
    load_cancer(granted)
    one = role("team_one", grant=["distill_engineer"])
    other = role("team_other", grant=["distill_engineer"])
    granted.execute((ROOT / "extension" / "doc" / "teams.sql").read_text())
    granted.execute(f"GRANT SELECT ON cancer TO {one}, {other}")
    mine = connect(user=one)
    mine.execute(
        "SELECT distill.register_model('ours', %s, features => %s)",
        (cancer()[2], [f"x{i}" for i in range(30)]),
    )
    assert mine.execute("SELECT name FROM distill.models").fetchall() == [("ours",)]
    # One backend, one cache: the superuser loads the session, the teams come after.
    predict = f"SELECT distill.predict('ours', {ROW})"
    expected = granted.execute(predict).fetchone()
    granted.execute(
        f"CREATE FUNCTION ask() RETURNS float8 LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $${predict}$$;"
        f"CREATE VIEW asked AS {predict} AS p; GRANT SELECT ON asked TO {one}, {other}; GRANT EXECUTE ON FUNCTION ask TO {one}, {other}"
    )
    granted.execute(f"SET ROLE {one}")
    assert granted.execute(predict).fetchone() == expected
    granted.execute(f"SET ROLE {other}")
    for statement in (predict, "SELECT distill.drop_model('ours')", "SELECT p FROM asked"):
        with pytest.raises(errors.UndefinedObject):
            granted.execute(statement)
    # A superuser's SECURITY DEFINER function is the superuser's word; before and after it the role's own counts again.
    assert granted.execute("SELECT ask()").fetchone() == expected
    with pytest.raises(errors.UndefinedObject):
        granted.execute(f"SELECT ask(), distill.predict('ours', {ROW})")
    assert granted.execute("SELECT name FROM distill.families").fetchall() == []
    granted.execute("RESET ROLE")
    granted.execute(f"ALTER FUNCTION ask() OWNER TO {other}")
    with pytest.raises(errors.UndefinedObject):
        granted.execute("SELECT ask()")


def test_hostile_schema_operator_and_cast_change_nothing(
    granted: psycopg.Connection, connect: Connect
) -> None:
    load_cancer(granted)
    granted.execute(
        "CREATE SCHEMA hostile AUTHORIZATION distill_engineer; CREATE TABLE canary AS SELECT 0 AS n; GRANT UPDATE, SELECT ON canary TO PUBLIC"
    )
    calls = (
        f"SELECT distill.predict('cancer', {ROW})",
        f"SELECT distill.predict_batch('cancer', ARRAY[{ROW}])",
        "SELECT sum(prediction) FROM distill.score('cancer', 'SELECT * FROM public.cancer', 'x0')",
        "SELECT distill.choose_model('cancer')",
        "SELECT distill.last_run('cancer')",
        "SELECT count(*) FROM distill.show_settings()",
    )
    expected = [granted.execute(call).fetchone() for call in calls]
    connect(user="distill_engineer").execute(
        """
        SET search_path = hostile, pg_catalog;
        CREATE FUNCTION strike() RETURNS boolean LANGUAGE sql AS 'UPDATE public.canary SET n = 1; SELECT true';
        CREATE FUNCTION equal(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT hostile.strike()';
        CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.equal);
        CREATE FUNCTION equal(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT hostile.strike()';
        CREATE OPERATOR hostile.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = hostile.equal);
        CREATE FUNCTION equal(name, text) RETURNS boolean LANGUAGE sql AS 'SELECT hostile.strike()';
        CREATE OPERATOR hostile.= (LEFTARG = name, RIGHTARG = text, FUNCTION = hostile.equal);
        CREATE FUNCTION joined(text, text) RETURNS text LANGUAGE sql AS 'SELECT hostile.strike()::text';
        CREATE OPERATOR hostile.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.joined);
        CREATE FUNCTION pg_current_snapshot() RETURNS pg_catalog.pg_snapshot LANGUAGE sql AS 'SELECT NULL::pg_catalog.pg_snapshot';
        CREATE FUNCTION encode(bytea, text) RETURNS text LANGUAGE sql AS 'SELECT ''x''';
        CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz';
        CREATE DOMAIN hostile.float8 AS text; CREATE DOMAIN hostile.text AS pg_catalog.int4; CREATE DOMAIN hostile.uuid AS pg_catalog.int4;
        CREATE TABLE hostile.models (); CREATE TABLE hostile.settings (); CREATE TABLE hostile.pg_extension (extname name, extversion int);
        """
    )
    fresh = connect()
    fresh.execute("SET search_path = hostile, public")
    assert [fresh.execute(call).fetchone() for call in calls] == expected
    # In front of pg_catalog too, our own statements would find these operators: none is run.
    fresh.execute("SET search_path = hostile, pg_catalog, public")
    for call in calls:
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            fresh.execute(call.replace("::float8", "::pg_catalog.float8"))
    # A temporary type shadows even pg_catalog's.
    fresh.execute("RESET search_path")
    fresh.execute(
        "CREATE DOMAIN pg_temp.text AS pg_catalog.int4; CREATE DOMAIN pg_temp.uuid AS pg_catalog.int4"
    )
    assert [fresh.execute(call).fetchone() for call in calls] == expected
    assert fresh.execute("SELECT n FROM public.canary").fetchone() == (0,)


def test_documented_rights_are_enough_to_distil(granted: psycopg.Connection, connect: Connect) -> None:
    load_cancer(granted)
    granted.execute(
        "GRANT SELECT ON cancer TO distill_engineer; ALTER TABLE distill.models DISABLE TRIGGER protect_model;"
        "UPDATE distill.models SET input_schema = jsonb_set(input_schema, '{types,x0}', '\"planted\"');"
        "ALTER TABLE distill.models ENABLE TRIGGER protect_model"
    )
    engineer = connect(user="distill_engineer")
    row = engineer.execute(
        "SELECT distill_model('cancer', sample => 'cancer', families => '{linear}', time_budget_s => 3, patience => 1, min_accuracy => 0)"
    ).fetchone()
    assert row is not None
    assert engineer.execute("SELECT owner FROM distill.runs").fetchall() == [("distill_engineer",)]

    # What the engineer stored with the run does not become a superuser's SQL: sample, expression and types.
    promote = "SELECT distill.promote_candidate(run_id, candidate) FROM distill.candidates WHERE on_frontier LIMIT 1"
    with pytest.raises(errors.InsufficientPrivilege):
        granted.execute(promote)
    student = value(engineer, promote)
    # The types are those of the columns that the caller named, not those that the teacher's owner stored.
    stored = (
        "SELECT DISTINCT input_schema -> 'types' ->> 'x0' FROM distill.models WHERE teacher_id IS NOT NULL"
    )
    assert student is not None and engineer.execute(stored).fetchall() == [("pg_catalog.float8",)]
    granted.execute(
        "INSERT INTO distill.runs SELECT (jsonb_populate_record(r, jsonb_build_object('run_id', gen_random_uuid(),"
        " 'owner', current_user, 'created_at', now() - interval '1 day'))).* FROM distill.runs r"
    )
    # A run and its candidates are nobody's to write, whatever is granted.
    granted.execute("GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA distill TO distill_engineer")
    for statement in (
        "INSERT INTO distill.candidates SELECT (jsonb_populate_record(c, '{\"candidate\": 999}')).* FROM distill.candidates c LIMIT 1",
        "INSERT INTO distill.runs SELECT (jsonb_populate_record(r, jsonb_build_object('run_id', gen_random_uuid()))).* FROM distill.runs r",
        "UPDATE distill.candidates SET expression = 'strike()'",
        "UPDATE distill.runs SET student_accuracy = 1",
        "DELETE FROM distill.candidates",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            engineer.execute(statement)
    granted.execute("REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA distill FROM distill_engineer")
    granted.execute(GRANTS.read_text())
    rows = engineer.execute("SELECT kind FROM distill.prune(0, dry_run => false) WHERE pruned").fetchall()
    assert ("candidates",) in rows
    left = (
        "SELECT count(*) FROM distill.candidates c JOIN distill.runs r USING (run_id)"
        " WHERE c.artifact IS NOT NULL AND r.owner = 'distill_engineer'"
    )
    assert value(engineer, left) == 0


PLANT = """
INSERT INTO distill.models (name, version, active, task, kind, artifact, expression, sha256, size_bytes, input_schema, output_schema,
    teacher_id, form, threshold)
SELECT name, version, active, task, kind, artifact, expression, sha256, size_bytes, input_schema, output_schema, teacher_id, form, threshold
FROM (SELECT (jsonb_populate_record(m, jsonb_build_object('name', 'planted') || {0})).* FROM distill.models m WHERE m.name = 'cancer') p
"""
PLANTED = {
    "a copy": ("'{}'::jsonb", None),
    "no ONNX file": (
        "jsonb_build_object('artifact', 'no model'::bytea, 'sha256', encode(sha256('no model'), 'hex'))",
        "22P03",
    ),
    "another file": ("jsonb_build_object('artifact', 'no model'::bytea)", "XX001"),
    "a list for an object": ("jsonb_build_object('input_schema', '[]'::jsonb)", "XX001"),
    "no schema": ("jsonb_build_object('output_schema', '{}'::jsonb)", "XX001"),
    "a feature that is not there": (
        "jsonb_build_object('input_schema', jsonb_set(m.input_schema, '{inputs,0,features,0}', '99'))",
        "XX001",
    ),
    "an unknown form": (
        "jsonb_build_object('output_schema', m.output_schema || '{\"form\": \"x\"}')",
        "XX001",
    ),
    "SQL for a type": (
        'jsonb_build_object(\'input_schema\', m.input_schema || \'{"types": {"x0": "text); DROP TABLE cancer; --"}}\')',
        "XX001",
    ),
    "a cascade that is its own teacher": (
        "jsonb_build_object('form', 'cascade', 'threshold', 0.9, 'teacher_id', gen_random_uuid())",
        "42704",
    ),
    "a cascade behind a cascade": (
        "(SELECT jsonb_build_object('form', 'cascade', 'threshold', 0.9, 'teacher_id', c.id) FROM distill.models c"
        " WHERE c.name = 'cascade')",
        "42704",
    ),
    "a cascade with other classes behind it": (
        "jsonb_build_object('form', 'cascade', 'threshold', 0.9, 'teacher_id', m.id,"
        " 'output_schema', jsonb_set(m.output_schema, '{classes}', '[\"a\", \"b\"]'))",
        "55000",
    ),
}


@pytest.mark.any_server
def test_a_planted_row_is_refused_before_a_backend_opens_it(
    granted: psycopg.Connection, connect: Connect
) -> None:
    """Whoever could write a row, as a restore does: a child checks what it holds before a backend opens it."""
    load_cancer(granted)
    cascade = "jsonb_build_object('name', 'cascade', 'form', 'cascade', 'threshold', 0.9, 'teacher_id', m.id)"
    granted.execute(PLANT.format(cascade))
    engineer = connect(user="distill_engineer")
    [pid] = engineer.execute("SELECT pg_backend_pid()").fetchone() or (0,)
    wrong = []
    for what, (changes, expected) in PLANTED.items():
        found = None
        granted.execute(PLANT.format(changes))
        try:
            assert value(engineer, f"SELECT distill.predict('planted', {ROW})") == value(
                engineer, f"SELECT distill.predict('cancer', {ROW})"
            )
            engineer.execute("SELECT distill.create_function('planted', 'pg_temp.planted')")
        except psycopg.Error as error:
            found = error.sqlstate
        if found != expected:
            wrong.append(f"{what}: {found}, expected {expected}")
        granted.execute("DELETE FROM distill.models WHERE name = 'planted'")
    assert wrong == []
    assert engineer.execute("SELECT pg_backend_pid()").fetchone() == (pid,)
    # The copy was checked once, and is not again.
    assert value(granted, "SELECT count(*) FROM distill.checked") == 1
