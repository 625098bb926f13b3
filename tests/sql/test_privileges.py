"""PUBLIC may do nothing, stored SQL runs for its owner only, and a cached session gives no rights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import errors
from sql.conftest import cancer, load_cancer

pytestmark = pytest.mark.every_server

GRANTS = Path(__file__).resolve().parents[2] / "extension" / "doc" / "grants.sql"
PREDICTOR = """
GRANT USAGE ON SCHEMA distill TO {0};
GRANT SELECT ON distill.models TO {0};
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA distill TO {0};
GRANT EXECUTE ON FUNCTION distill_model TO {0};
"""
REGISTRANT = PREDICTOR + "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA distill TO {0};"
ROW = "array_fill(1::float8, ARRAY[30])"

Connect = Callable[..., psycopg.Connection]
Role = Callable[..., str]


@pytest.mark.local
def test_public_may_do_nothing(db: psycopg.Connection) -> None:
    functions = db.execute(
        "SELECT p.oid::regprocedure FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid JOIN pg_extension e ON e.oid = d.refobjid"
        " WHERE d.deptype = 'e' AND d.classid = 'pg_proc'::regclass AND e.extname = 'pg_distill'"
        " AND has_function_privilege('public', p.oid, 'EXECUTE')"
    ).fetchall()
    relations = db.execute(
        "SELECT c.oid::regclass FROM pg_class c WHERE c.relnamespace = 'distill'::regnamespace AND c.relkind IN ('r', 'v')"
        " AND has_table_privilege('public', c.oid, 'SELECT, INSERT, UPDATE, DELETE')"
    ).fetchall()
    assert functions == []
    assert relations == []
    [usage] = db.execute("SELECT has_schema_privilege('public', 'distill', 'USAGE')").fetchone() or [True]
    assert usage is False


def test_every_object_has_a_comment(db: psycopg.Connection) -> None:
    bare = db.execute(
        "SELECT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid"
        " WHERE d.deptype = 'e' AND e.extname = 'pg_distill' AND d.classid IN ('pg_proc'::regclass, 'pg_class'::regclass,"
        " 'pg_namespace'::regclass) AND obj_description(d.objid, d.classid::regclass::text::name) IS NULL"
        " AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = d.objid AND c.relkind IN ('i', 'S', 't'))"
    ).fetchall()
    assert bare == []
    columns = db.execute(
        "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = 'distill'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0 AND NOT a.attisdropped"
        " AND col_description(c.oid, a.attnum) IS NULL"
    ).fetchall()
    assert columns == []
    triggers = db.execute(
        "SELECT t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE c.relnamespace = 'distill'::regnamespace"
        " AND NOT t.tgisinternal AND obj_description(t.oid, 'pg_trigger') IS NULL"
    ).fetchall()
    assert triggers == []


def test_who_cannot_record_a_run_is_told_before_it_is_trained(
    db: psycopg.Connection, role: Role, connect: Connect
) -> None:
    load_cancer(db)
    name = role("reader")
    db.execute(REGISTRANT.format(name) + f"GRANT SELECT ON cancer TO {name};")
    session = connect(user=name)
    call = "SELECT distill_model('cancer', sample => 'cancer')"
    before = db.execute("SELECT clock_timestamp()").fetchone()
    db.execute(f"REVOKE EXECUTE ON FUNCTION distill._write() FROM {name}")
    with pytest.raises(errors.InsufficientPrivilege):
        session.execute(call)
    db.execute(f"GRANT EXECUTE ON FUNCTION distill._write() TO {name}")
    session.execute("SET default_transaction_read_only = on")
    with pytest.raises(errors.ReadOnlySqlTransaction):
        session.execute(call)
    assert db.execute("SELECT clock_timestamp() - %s < '10 s'", before).fetchone() == (True,)


def test_cached_session_gives_no_rights(db: psycopg.Connection, role: Role) -> None:
    """The superuser's predict has loaded the model in this backend; another role in it must not get at it."""
    load_cancer(db)
    outsider = role("outsider")
    db.execute(
        "GRANT USAGE ON SCHEMA distill TO outsider; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA distill TO outsider"
    )
    assert db.execute(f"SELECT distill.predict('cancer', {ROW})").fetchone()
    db.execute(f"SET ROLE {outsider}")
    with pytest.raises(errors.InsufficientPrivilege):
        db.execute(f"SELECT distill.predict('cancer', {ROW})")
    db.execute("RESET ROLE")
    assert db.execute(f"SELECT distill.predict('cancer', {ROW})").fetchone()


def test_row_level_security_holds_over_the_cache(db: psycopg.Connection, role: Role) -> None:
    load_cancer(db)
    team = role("team")
    db.execute(PREDICTOR.format(team))
    db.execute("ALTER TABLE distill.models ENABLE ROW LEVEL SECURITY")
    db.execute("CREATE POLICY own ON distill.models USING (owner = current_user)")
    assert db.execute(f"SELECT distill.predict('cancer', {ROW})").fetchone()
    db.execute(f"SET ROLE {team}")
    with pytest.raises(errors.UndefinedObject):
        db.execute(f"SELECT distill.predict('cancer', {ROW})")
    db.execute("RESET ROLE")


@pytest.mark.any_server
def test_stored_sample_runs_for_its_owner_only(db: psycopg.Connection, role: Role, connect: Connect) -> None:
    low = role("low")
    db.execute(REGISTRANT.format(low))
    load_cancer(db)
    db.execute(f"GRANT SELECT ON cancer TO {low}")
    planter = connect(user=low)
    planter.execute(
        "SELECT distill.register_model('planted', %s, sample => 'SELECT * FROM cancer', label => 'malignant')",
        (cancer()[2],),
    )
    with pytest.raises(errors.InsufficientPrivilege):
        db.execute("SELECT distill_model('planted', time_budget_s => 2)")
    # What a superuser stored, others may run; what they cannot read they still cannot.
    other = role("other")
    db.execute(REGISTRANT.format(other))
    with pytest.raises(errors.InsufficientPrivilege):
        connect(user=other).execute("SELECT distill_model('cancer', time_budget_s => 2)")


def test_planted_expression_is_not_run(db: psycopg.Connection, role: Role, connect: Connect) -> None:
    low = role("low")
    db.execute(REGISTRANT.format(low))
    db.execute("CREATE TABLE numbers AS SELECT i::float8 AS x, i % 2 AS label FROM generate_series(1, 200) i")
    db.execute(f"GRANT SELECT ON numbers TO {low}")
    connect(user=low).execute(
        "SELECT distill.register_sql_model('planted', '0.5 + 0 * x', '{x}', 'numbers', 'label')"
    )
    with pytest.raises(errors.InsufficientPrivilege):
        db.execute("SELECT distill.predict('planted', '{1}'::float8[])")
    with pytest.raises(errors.InsufficientPrivilege):
        db.execute("SELECT distill_model('planted', sample => 'numbers')")


def test_server_files_are_read_under_the_callers_rights(
    db: psycopg.Connection, role: Role, connect: Connect
) -> None:
    low = role("low")
    db.execute(REGISTRANT.format(low))
    with pytest.raises(errors.InsufficientPrivilege):
        connect(user=low).execute("SELECT distill.register_model_file('m', '/etc/hostname')")
    with pytest.raises(errors.InvalidBinaryRepresentation):
        db.execute("SELECT distill.register_model_file('m', '/etc/hostname')")


def test_a_role_with_both_grants_of_grants_sql_registers_server_files(
    db: psycopg.Connection, role: Role, connect: Connect
) -> None:
    low = role("low", grant=["pg_read_server_files"])
    db.execute(REGISTRANT.format(low))
    load_cancer(db)
    db.execute(f"GRANT SELECT ON cancer TO {low}")
    file = "/tmp/pg_distill_test.onnx"
    [large] = db.execute("SELECT lo_from_bytea(0, artifact) FROM distill.models").fetchone() or [None]
    db.execute("SELECT lo_export(%s, %s)", (large, file))
    register = "SELECT distill.register_model_file('from_file', %s, sample => 'cancer', label => 'malignant')"
    with pytest.raises(errors.InsufficientPrivilege):
        connect(user=low).execute(register, (file,))
    [grant] = re.findall(
        r"^-- (GRANT EXECUTE ON FUNCTION pg_catalog.* TO) ", GRANTS.read_text(), re.MULTILINE
    )
    db.execute(f"{grant} {low}")
    connect(user=low).execute(register, (file,))
    db.execute(f"COPY (SELECT) TO PROGRAM 'rm {file}'")
    rows = db.execute("SELECT sha256, owner FROM distill.models ORDER BY name").fetchall()
    assert len(rows) == 2
    assert rows[0][0] == rows[1][0]
    assert rows[1][1] == low


def test_a_registered_version_is_never_edited(db: psycopg.Connection) -> None:
    load_cancer(db)
    for assignment in (
        "artifact = 'other'",
        "sha256 = 'x'",
        "name = 'y'",
        "input_schema = '{}'",
        "sample = 'SELECT 1'",
    ):
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            db.execute(f"UPDATE distill.models SET {assignment}")
    db.execute("UPDATE distill.models SET avg_latency_ms = 1.0")
