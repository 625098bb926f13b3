"""Functions of models: what would go stale under them, and what another role has planted in their place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import servers
from conftest import create_database, drop_database
from sql.conftest import remember
from sql.test_privilege_matrix import GRANTS
from sql.test_serving import register, value

Connect = Callable[..., psycopg.Connection]
Role = Callable[..., str]

DATABASE = "pg_distill_stale"


def two_versions(connection: psycopg.Connection, name: str = "m") -> None:
    """Register two versions of a model with SQL forms that say x + 1 and x + 2."""

    def make() -> None:
        for number in (1, 2):
            register(connection, number, name)

    remember(connection, name, make, "two versions")
    connection.execute("ALTER TABLE distill.models DISABLE TRIGGER protect_model")
    connection.execute(
        "UPDATE distill.models SET expression = '\"x\"::float + ''' || version || '''::float' WHERE name = %s",
        (name,),
    )
    connection.execute("ALTER TABLE distill.models ENABLE TRIGGER protect_model")


def warnings_of(connection: psycopg.Connection) -> list[str]:
    """Return the list to which the details of the session's warnings are added."""
    found: list[str] = []
    connection.add_notice_handler(
        lambda said: (
            found.append(said.message_detail or "") if said.severity_nonlocalized == "WARNING" else None
        )
    )
    return found


def fails(connection: psycopg.Connection, sqlstate: str, statement: str, *arguments: Any) -> psycopg.Error:
    """Run a statement that has to fail with ``sqlstate``; give its error."""
    with pytest.raises(psycopg.Error) as caught, connection.transaction():
        connection.execute(statement, arguments or None)  # type: ignore[arg-type]
    assert (statement, caught.value.sqlstate) == (statement, sqlstate), caught.value
    return caught.value


# -- results that are stored ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stale_database(server: servers.Server, template: str) -> Iterator[psycopg.Connection]:
    create_database(server, DATABASE, template)
    with server.connect(DATABASE, autocommit=True) as connection:
        two_versions(connection)
        connection.execute("SET search_path = work")
        yield connection
    drop_database(server, DATABASE)


@pytest.fixture
def stale(stale_database: psycopg.Connection) -> psycopg.Connection:
    """Give a session with both versions, plain(x) of the first, and t with x from 1 to 20; models are left as they are."""
    stale_database.execute(
        'DROP SCHEMA IF EXISTS "S s", work CASCADE; CREATE SCHEMA work; DROP TABLE IF EXISTS pg_temp.tt;'
        "SELECT distill.create_function('m:1', 'plain', as_sql => true);"
        "CREATE TABLE t AS SELECT i, i::float8 AS x FROM generate_series(1, 20) i"
    )
    return stale_database


def afresh(server: servers.Server, statement: str) -> Any:
    """Ask in a new session: an index keeps, in one that has opened it, the function as it was, and is not used for the new one."""
    with server.connect(
        DATABASE, options="-c search_path=work -c enable_seqscan=off -c enable_bitmapscan=off"
    ) as connection:
        return value(connection, statement)


REPLACE = "SELECT distill.create_function('m:2', 'plain', as_sql => true, replace => true{})"
BY_INDEX = "SELECT (SELECT count(*) FROM t WHERE {} <= 5) - 3"
# What makes it; a count that is 0 where its results are the function's own; the command that makes them so, or a part of it.
STORED = {
    "index": ("CREATE INDEX i ON t (plain(x))", BY_INDEX.format("plain(x)"), "REINDEX INDEX work.i;"),
    "unique index": (
        "CREATE UNIQUE INDEX i ON t (plain(x))",
        BY_INDEX.format("plain(x)"),
        "REINDEX INDEX work.i;",
    ),
    "predicate": (
        "CREATE INDEX i ON t (i) WHERE plain(x) <= 5",
        "SELECT (SELECT count(*) FROM t WHERE plain(x) <= 5 AND i > 0) - 3",
        "REINDEX INDEX work.i;",
    ),
    "quoted index": (
        'CREATE SCHEMA "S s"; CREATE TABLE "S s"."T ""t" AS TABLE t; CREATE INDEX "I;i" ON "S s"."T ""t" (plain(x))',
        'SELECT (SELECT count(*) FROM "S s"."T ""t" WHERE plain(x) <= 5) - 3',
        'REINDEX INDEX "S s"."I;i";',
    ),
    "generated column": (
        "ALTER TABLE t ADD COLUMN g float8 GENERATED ALWAYS AS (plain(x)) STORED",
        "SELECT count(*) FROM t WHERE g <> x + 2",
        "",
    ),
    "generated column of a constant": (
        "ALTER TABLE t ADD COLUMN g float8 GENERATED ALWAYS AS (plain(1)) STORED",
        "SELECT count(*) FROM t WHERE g <> 3",
        "",
    ),
    "generated column of partitions": (
        "CREATE TABLE p (x float8, g float8 GENERATED ALWAYS AS (plain(x)) STORED) PARTITION BY LIST (x);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF p DEFAULT; INSERT INTO p SELECT x FROM t",
        "SELECT count(*) FROM p WHERE g <> x + 2",
        " work.p ",
    ),
    "partition key": (
        "CREATE TABLE p (x float8) PARTITION BY RANGE (plain(x)); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (11);"
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (11) TO (100); INSERT INTO p SELECT x FROM t",
        "SELECT 1 - count(*) FROM p WHERE plain(x) = 11",
        "UPDATE work.p SET x = x;",
    ),
    "materialized view": (
        "CREATE MATERIALIZED VIEW v AS SELECT x, plain(x) AS y FROM t",
        "SELECT count(*) FROM v WHERE y <> x + 2",
        "REFRESH MATERIALIZED VIEW work.v;",
    ),
    "materialized view over views": (
        "CREATE VIEW a AS SELECT x, plain(x) AS y FROM t; CREATE VIEW b AS SELECT * FROM a;"
        "CREATE MATERIALIZED VIEW v AS SELECT * FROM b",
        "SELECT count(*) FROM v WHERE y <> x + 2",
        "REFRESH MATERIALIZED VIEW work.v;",
    ),
    "materialized view over another": (
        "CREATE MATERIALIZED VIEW w AS SELECT x, plain(x) AS y FROM t; CREATE MATERIALIZED VIEW v AS SELECT * FROM w",
        "SELECT count(*) FROM v WHERE y <> x + 2",
        "REFRESH MATERIALIZED VIEW work.v;",
    ),
    "materialized view over a generated column": (
        "ALTER TABLE t ADD COLUMN g float8 GENERATED ALWAYS AS (plain(x)) STORED;"
        "CREATE MATERIALIZED VIEW v AS SELECT x, g FROM t",
        "SELECT count(*) FROM v WHERE g <> x + 2",
        "REFRESH MATERIALIZED VIEW work.v;",
    ),
    "materialized view over an aggregate": (
        "CREATE FUNCTION step(a float8, b float8) RETURNS float8 IMMUTABLE LANGUAGE sql RETURN a + plain(b);"
        "CREATE AGGREGATE total (float8) (SFUNC = step, STYPE = float8, INITCOND = 0);"
        "CREATE MATERIALIZED VIEW v AS SELECT total(x) AS y FROM t",
        "SELECT count(*) FROM v WHERE y <> (SELECT sum(x + 2) FROM t)",
        "REFRESH MATERIALIZED VIEW work.v;",
    ),
    "index over a parsed body": (
        "CREATE FUNCTION w(a float8) RETURNS float8 IMMUTABLE LANGUAGE sql BEGIN ATOMIC SELECT plain(a); END;"
        "CREATE INDEX i ON t (w(x))",
        BY_INDEX.format("w(x)"),
        "REINDEX INDEX work.i;",
    ),
    "index over two bodies": (
        "CREATE FUNCTION w(a float8) RETURNS float8 IMMUTABLE LANGUAGE sql RETURN plain(a);"
        "CREATE FUNCTION w2(a float8) RETURNS float8 IMMUTABLE LANGUAGE sql RETURN w(a); CREATE INDEX i ON t (w2(x))",
        BY_INDEX.format("w2(x)"),
        "REINDEX INDEX work.i;",
    ),
    "index over a body of text": (
        "CREATE FUNCTION w(a float8) RETURNS float8 IMMUTABLE LANGUAGE sql AS 'SELECT work.Plain($1)';"
        "CREATE INDEX i ON t (w(x))",
        BY_INDEX.format("w(x)"),
        "REINDEX INDEX work.i;",
    ),
    "index over PL/pgSQL": (
        "CREATE FUNCTION w(a float8) RETURNS float8 IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN work.plain(a); END';"
        "CREATE FUNCTION w2(a float8) RETURNS float8 IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN work.\"w\"(a); END';"
        "CREATE INDEX i ON t (w2(x))",
        BY_INDEX.format("w2(x)"),
        "REINDEX INDEX work.i;",
    ),
    "index over an operator": (
        "CREATE OPERATOR ## (FUNCTION = plain, RIGHTARG = float8); CREATE INDEX i ON t ((## x))",
        BY_INDEX.format("(## x)"),
        "REINDEX INDEX work.i;",
    ),
    "index of an operator class": (
        "CREATE FUNCTION c(a float8, b float8) RETURNS int IMMUTABLE LANGUAGE sql RETURN btfloat8cmp(plain(a), plain(b));"
        "CREATE OPERATOR CLASS k FOR TYPE float8 USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=,"
        " OPERATOR 5 >, FUNCTION 1 c(float8, float8); CREATE INDEX i ON t (x k)",
        None,
        "REINDEX INDEX work.i;",
    ),
    "index of partitions": (
        "CREATE TABLE p (x float8) PARTITION BY LIST (x); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);"
        "CREATE TABLE p2 PARTITION OF p DEFAULT; CREATE INDEX i ON p (plain(x))",
        None,
        "REINDEX INDEX work.i;",
    ),
    "index of a temporary table": (
        "CREATE TEMP TABLE tt AS TABLE t; CREATE INDEX i ON tt (plain(x))",
        None,
        "REINDEX INDEX pg_temp_",
    ),
    "exclusion constraint": (
        "ALTER TABLE t ADD CONSTRAINT e EXCLUDE USING gist (box(point(plain(x), 0), point(plain(x), 0)) WITH &&)",
        None,
        "REINDEX INDEX work.e;",
    ),
    "statistics": ("CREATE STATISTICS s ON plain(x), i FROM t", None, "ANALYZE work.t;"),
}


@pytest.mark.every_server
@pytest.mark.parametrize("kind", STORED)
def test_what_would_go_stale_is_named_and_made_anew(
    server: servers.Server, stale: psycopg.Connection, kind: str
) -> None:
    make, wrong, command = STORED[kind]
    stale.execute(make)  # type: ignore[arg-type]
    error = fails(stale, "2BP01", REPLACE.format(""))
    assert error.diag.message_detail and command.rstrip(";") in (error.diag.message_hint or "")
    assert value(stale, "SELECT plain(0)") == 1
    told = warnings_of(stale)
    stale.execute(REPLACE.format(", keep_dependents => true"))  # type: ignore[arg-type]
    assert value(stale, "SELECT plain(0)") == 2
    [warning] = told
    commands = [line.partition(": ")[2] for line in warning.splitlines()]
    assert any(command in line for line in commands), commands
    assert wrong is None or afresh(server, wrong) != 0  # or this test could not fail
    for line in commands:
        stale.execute(line)  # type: ignore[arg-type]
    assert wrong is None or afresh(server, wrong) == 0


CHECKED = {
    "table": "ALTER TABLE t ADD CHECK (plain(x) < 21.5)",
    "not valid": "ALTER TABLE t ADD CHECK (plain(x) < 21.5) NOT VALID; ALTER TABLE t VALIDATE CONSTRAINT t_x_check",
    "domain": "CREATE DOMAIN d AS float8 CHECK (plain(value) < 21.5); ALTER TABLE t ALTER COLUMN x TYPE d",
    "child": "CREATE TABLE u (x float8 CHECK (plain(x) < 21.5)); CREATE TABLE c () INHERITS (u); INSERT INTO c SELECT x FROM t",
}


@pytest.mark.every_server
@pytest.mark.parametrize("kind", CHECKED)
def test_a_constraint_is_checked_anew(stale: psycopg.Connection, kind: str) -> None:
    with stale.transaction(force_rollback=True):
        stale.execute(CHECKED[kind])  # type: ignore[arg-type]
        fails(stale, "2BP01", REPLACE.format(""))
        told = warnings_of(stale)
        stale.execute(REPLACE.format(", keep_dependents => true"))  # type: ignore[arg-type]
        [line] = told[0].splitlines()
        fails(stale, "23514", line.partition(": ")[2])


HARMLESS = [
    "CREATE VIEW v AS SELECT plain(x) FROM t",
    "ALTER TABLE t ALTER COLUMN x SET DEFAULT plain(1)",
    "CREATE FUNCTION w(a float8) RETURNS float8 IMMUTABLE LANGUAGE sql RETURN plain(a)",
    "CREATE POLICY p ON t USING (plain(x) > 0)",
    "CREATE RULE r AS ON INSERT TO t DO ALSO SELECT plain(new.x); CREATE MATERIALIZED VIEW m AS SELECT x FROM t;"
    " CREATE INDEX i ON t (x)",
    "CREATE FUNCTION explain_it() RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT ''explain, plainly, plain_x, x$plain'''; "
    "CREATE TABLE e (x float8, y text GENERATED ALWAYS AS (explain_it()) STORED)",
]


@pytest.mark.parametrize("make", HARMLESS)
def test_what_stores_nothing_of_it_stops_no_replacement(stale: psycopg.Connection, make: str) -> None:
    with stale.transaction(force_rollback=True):
        stale.execute(make)  # type: ignore[arg-type]
        told = warnings_of(stale)
        stale.execute(REPLACE.format(""))  # type: ignore[arg-type]
        assert value(stale, "SELECT plain(0)") == 2
        assert told == []


def test_the_same_function_again_changes_nothing(stale: psycopg.Connection) -> None:
    with stale.transaction(force_rollback=True):
        stale.execute("CREATE INDEX i ON t (plain(x))")
        stale.execute("SELECT distill.create_function('m:1', 'plain', as_sql => true, replace => true)")
        assert value(stale, "SELECT plain(0)") == 1


def test_an_index_is_left_over_no_function_that_may_change(stale: psycopg.Connection) -> None:
    """Told or not: PostgreSQL takes what an index stands on for unchanging."""
    with stale.transaction(force_rollback=True):
        stale.execute("CREATE INDEX i ON t (plain(x))")
        for told in ("true", "false"):
            fails(
                stale,
                "2BP01",
                f"SELECT distill.create_function('m', 'plain', replace => true, keep_dependents => {told})",
            )
        stale.execute("DROP INDEX i; CREATE MATERIALIZED VIEW v AS SELECT plain(x) FROM t")
        stale.execute(
            "SELECT distill.create_function('m', 'plain', replace => true, keep_dependents => true)"
        )
        assert value(stale, "SELECT plain(0)") == 2


def test_other_arguments_leave_no_dependent_behind(stale: psycopg.Connection) -> None:
    with stale.transaction(force_rollback=True):
        stale.execute("CREATE INDEX i ON t (plain(x))")
        stale.execute(
            "SELECT distill.register_model('m', artifact, features => '{y}', task => 'regression') FROM distill.models"
            " WHERE version = '1'"
        )
        fails(
            stale,
            "2BP01",
            "SELECT distill.create_function('m:3', 'plain', replace => true, keep_dependents => true)",
        )


@pytest.mark.every_server
def test_a_function_that_predicts_stands_under_no_index(stale: psycopg.Connection) -> None:
    with stale.transaction(force_rollback=True):
        stale.execute(
            "SELECT distill.create_function('m', 'typed'), distill.create_function('m:1', 'pinned')"
        )
        for name, make in itertools.product(
            ("typed", "pinned"),
            (
                "CREATE INDEX ON t ({}(x))",
                "CREATE INDEX ON t (i) WHERE {}(x) > 0",
                "ALTER TABLE t ADD COLUMN g float8 GENERATED ALWAYS AS ({}(x)) STORED",
                "CREATE TABLE p (x float8) PARTITION BY RANGE ({}(x))",
            ),
        ):
            fails(stale, "42P17", make.format(name))


def test_another_active_version_changes_no_function_in_plain_sql(stale: psycopg.Connection) -> None:
    with stale.transaction(force_rollback=True):
        stale.execute(
            "SELECT distill.create_function('m', 'follows'), distill.create_function('m', 'plain_of_active', as_sql => true)"
        )
        stale.execute("CREATE INDEX i ON t (plain_of_active(x))")
        asked = "SELECT follows(0), plain_of_active(0), plain(0)"
        assert stale.execute(asked).fetchone() == (2, 2, 1)
        stale.execute("SELECT distill.activate_model('m', '1')")
        assert stale.execute(asked).fetchone() == (1, 2, 1)
        register(stale, 5)
        assert stale.execute(asked).fetchone() == (5, 2, 1)


DROPS = {
    "drop_model": "SELECT distill.drop_model('m:1')",
    "drop_model of all": "SELECT distill.drop_model('m')",
}


@pytest.mark.parametrize("way", DROPS)
@pytest.mark.parametrize("kind", ["index", "materialized view over views", "index over a parsed body"])
def test_a_model_does_not_go_from_under_what_depends_on_it(
    stale: psycopg.Connection, kind: str, way: str
) -> None:
    with stale.transaction(force_rollback=True):
        stale.execute(
            "SELECT distill.create_function('m:1', 'other'), distill.create_function('m:2', 'second')"
        )
        stale.execute(STORED[kind][0])  # type: ignore[arg-type]
        error = fails(stale, "2BP01", DROPS[way])
        assert "plain" in str(error.diag.message_detail)
        assert stale.execute("SELECT plain(0), other(0), second(0)").fetchone() == (1, 1, 2)
        assert value(stale, "SELECT count(*) FROM distill.models") == 2
        # The way that the hint names: the function is its owner's then, whatever becomes of the model.
        stale.execute("COMMENT ON FUNCTION plain IS NULL")
        stale.execute(DROPS[way])
        assert value(stale, "SELECT plain(0)") == 1
        assert value(stale, "SELECT to_regproc('other')") is None


def test_prune_keeps_what_a_function_in_plain_sql_was_made_of(stale: psycopg.Connection) -> None:
    with stale.transaction(force_rollback=True):
        rows = stale.execute("SELECT version, pruned FROM distill.prune(0, dry_run => false)").fetchall()
        assert rows == [("1", False), ("2", False)]
        stale.execute("DROP FUNCTION plain")
        rows = stale.execute("SELECT version, pruned FROM distill.prune(0, dry_run => false)").fetchall()
        assert rows == [("1", True), ("2", False)]


# -- what another role has planted ----------------------------------------------------------------------------------


@pytest.fixture
def granted(db: psycopg.Connection, role: Role) -> psycopg.Connection:
    """Give the superuser's session, with two versions, mallory and alice, engineers who may create in work."""
    for name in ("distill_reader", "distill_predictor", "distill_engineer", "distill_admin"):
        role(name)
    for name in ("mallory", "alice"):
        role(name, grant=["distill_engineer"])
    db.execute(GRANTS.read_text())
    db.execute("GRANT CREATE ON SCHEMA public TO mallory, alice")
    two_versions(db)
    return db


CREATE = "SELECT distill.create_function('m:2', 'f', as_sql => true{})"
SAME = "CREATE FUNCTION f(x float8) RETURNS float8 LANGUAGE sql AS 'SELECT 666.0::float8'"
CLAIM = "; COMMENT ON FUNCTION f({}) IS 'pg_distill model m:1'"
PLANTED = {
    "the same, claimed": SAME + CLAIM.format("float8"),
    "the same, with another claim": SAME + "; COMMENT ON FUNCTION f(float8) IS 'pg_distill model '",
    "the same": SAME,
    "as its definer": SAME + " SECURITY DEFINER SET search_path = mallory COST 1" + CLAIM.format("float8"),
    "granted": SAME
    + CLAIM.format("float8")
    + "; GRANT EXECUTE ON FUNCTION f(float8) TO alice WITH GRANT OPTION",
    "of other arguments, claimed": "CREATE FUNCTION f(a float8, b float8) RETURNS float8 LANGUAGE sql AS 'SELECT 1.0::float8'"
    + CLAIM.format("float8, float8"),
    "an overload that wins": "CREATE FUNCTION f(x int) RETURNS float8 LANGUAGE sql AS 'SELECT 666.0::float8'",
    "an overload of numeric": "CREATE FUNCTION f(x numeric) RETURNS float8 LANGUAGE sql AS 'SELECT 666.0::float8'",
    "an overload of anything": "CREATE FUNCTION f(x anyelement) RETURNS float8 LANGUAGE sql AS 'SELECT 666.0::float8'",
    "an overload with a default": "CREATE FUNCTION f(x int, y int DEFAULT 1) RETURNS float8 LANGUAGE sql AS 'SELECT 6.0::float8'",
    "an overload with many": "CREATE FUNCTION f(VARIADIC x int[]) RETURNS float8 LANGUAGE sql AS 'SELECT 666.0::float8'",
    "an aggregate": "CREATE AGGREGATE f(int) (SFUNC = int4pl, STYPE = int)",
    "a set": "CREATE FUNCTION f(x int) RETURNS SETOF float8 LANGUAGE sql AS 'SELECT 666.0::float8'",
    "a polymorphic row": "CREATE FUNCTION f(x record) RETURNS float8 LANGUAGE plpgsql AS 'BEGIN RETURN 666; END'",
}


@pytest.mark.parametrize("kind", PLANTED)
def test_nothing_planted_is_replaced_or_stood_beside(
    granted: psycopg.Connection, connect: Connect, kind: str
) -> None:
    connect(user="mallory").execute(PLANTED[kind])  # type: ignore[arg-type]
    planted = "SELECT oid, prosrc, proowner::regrole::text, proacl::text FROM pg_proc WHERE proname = 'f'"
    before = granted.execute(planted).fetchall()
    fails(granted, "42723" if "same" in kind or "x float8" in PLANTED[kind] else "42501", CREATE.format(""))
    fails(granted, "42501", CREATE.format(", replace => true"))
    assert granted.execute(planted).fetchall() == before
    alice = connect(user="alice")
    with pytest.raises(psycopg.Error) as alice_error:
        alice.execute(CREATE.replace("m:2", "m:1").format(", replace => true"))  # type: ignore[arg-type]
    assert alice_error.value.sqlstate == "42501"
    # Gone, it is made, and the caller's own.
    granted.execute(
        "DROP ROUTINE " + value(granted, "SELECT oid::regprocedure::text FROM pg_proc WHERE proname = 'f'")
    )
    granted.execute(CREATE.format(", replace => true"))  # type: ignore[arg-type]
    assert granted.execute(
        "SELECT proowner::regrole::text, prosecdef, proconfig, proleakproof FROM pg_proc WHERE proname = 'f'"
    ).fetchall() == [("postgres", False, None, False)]


def test_a_planted_row_type_is_not_taken(granted: psycopg.Connection, connect: Connect) -> None:
    names = [f"f{i}" for i in range(120)]
    granted.execute(
        "SELECT distill.register_sql_model('wide', %s, %s, %s, task => 'regression')",
        (
            " + ".join(names),
            names,
            "SELECT " + ", ".join(f"i::float8 AS {name}" for name in names) + " FROM generate_series(1, 3) i",
        ),
    )
    mallory = connect(user="mallory")
    mallory.execute("CREATE TYPE f_features AS (" + ", ".join(f"{name} float8" for name in names) + ")")  # type: ignore[arg-type]
    mallory.execute("COMMENT ON TYPE f_features IS 'pg_distill model wide'")
    make = "SELECT distill.create_function('wide', 'f', replace => true)"
    fails(granted, "42710", make)
    mallory.execute("CREATE FUNCTION f(f f_features) RETURNS float8 LANGUAGE sql AS 'SELECT 1.0::float8'")
    mallory.execute("COMMENT ON FUNCTION f IS 'pg_distill model wide'")
    fails(granted, "42501", make)
    granted.execute("ALTER FUNCTION f OWNER TO postgres")  # the type is still mallory's
    fails(granted, "42710", make)
    granted.execute("DROP FUNCTION f; DROP TYPE f_features")
    granted.execute(make)
    assert (
        value(granted, "SELECT typowner::regrole::text FROM pg_type WHERE typname = 'f_features'")
        == "postgres"
    )


def test_a_name_that_postgresql_would_cut_finds_no_planted_one(
    granted: psycopg.Connection, connect: Connect
) -> None:
    connect(user="mallory").execute(
        f"CREATE FUNCTION {'f' * 63}(x int) RETURNS float8 LANGUAGE sql AS 'SELECT 666.0::float8'"
    )
    make = f"SELECT distill.create_function('m', '{'f' * 64}', replace => %s)"
    fails(granted, "42602", make, True)
    fails(granted, "42602", make, False)


def test_what_is_ones_own_is_replaced_as_postgresql_would(
    granted: psycopg.Connection, connect: Connect, role: Role
) -> None:
    role("team", grant=[])
    role("dba", "SUPERUSER")
    granted.execute(
        "GRANT team TO alice, mallory; GRANT CREATE ON SCHEMA public TO team; GRANT distill_engineer TO team"
    )
    alice, mallory, dba = (connect(user=name) for name in ("alice", "mallory", "dba"))
    owner = "SELECT proowner::regrole::text, prosecdef, proacl::text FROM pg_proc WHERE proname = 'f'"
    alice.execute("SET ROLE team")
    alice.execute("SELECT distill.create_function('m', 'f')")
    alice.execute("ALTER FUNCTION f SECURITY DEFINER; GRANT EXECUTE ON FUNCTION f TO distill_reader")
    acl = value(granted, "SELECT proacl::text FROM pg_proc WHERE proname = 'f'")
    mallory.execute("SELECT distill.create_function('m:1', 'f', replace => true)")  # a member, too
    assert granted.execute(owner).fetchall() == [("team", False, acl)]
    fails(dba, "42501", CREATE.format(", replace => true"))
    granted.execute("DROP FUNCTION f")
    granted.execute(CREATE.format(""))  # type: ignore[arg-type]
    dba.execute(CREATE.format(", replace => true"))  # type: ignore[arg-type]
    assert granted.execute(owner).fetchall() == [("postgres", False, None)]
    # A superuser's overload stands in nobody's way, nor is it replaced.
    fails(mallory, "42723", "SELECT distill.create_function('m:1', 'f', replace => true)")
    granted.execute("DROP FUNCTION f; CREATE FUNCTION f(a text) RETURNS int LANGUAGE sql AS 'SELECT 1'")
    mallory.execute("SELECT distill.create_function('m:1', 'f', replace => true)")


def test_a_function_no_longer_needs_the_extension_once_it_is_plain_sql(granted: psycopg.Connection) -> None:
    granted.execute("SELECT distill.create_function('m', 'f')")
    granted.execute(CREATE.format(", replace => true"))  # type: ignore[arg-type]
    granted.execute("DROP EXTENSION pg_distill")
    assert value(granted, "SELECT f(1)") == 3


# -- what a comment claims ------------------------------------------------------------------------------------------

CLAIMED = {
    "and a view": "CREATE VIEW v AS SELECT f()",
    "and an index": "CREATE TABLE u (x int); CREATE INDEX ON u (f(x))",
    "and a generated column": "CREATE TABLE u (x int, y int GENERATED ALWAYS AS (f(x)) STORED)",
    "and a default": "CREATE TABLE u (x int DEFAULT f())",
    "and a domain": "CREATE DOMAIN d AS int CHECK (f(value) > 0)",
    "and a policy": "CREATE TABLE u (x int); CREATE POLICY p ON u USING (f(x) > 0)",
    "and a trigger": "CREATE TABLE u (x int); CREATE TRIGGER t BEFORE INSERT ON u FOR EACH ROW WHEN (f(new.x) > 0)"
    " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "and another function": "CREATE FUNCTION g() RETURNS int LANGUAGE sql RETURN f()",
    "alone": "SELECT 1",
}


@pytest.mark.parametrize("kind", CLAIMED)
def test_no_claim_of_another_role_stops_a_drop_or_is_believed(
    granted: psycopg.Connection, connect: Connect, kind: str
) -> None:
    mallory = connect(user="mallory")
    for arguments in ("", "x int"):
        mallory.execute(f"CREATE FUNCTION f({arguments}) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1'")  # type: ignore[arg-type]
    for target in ("m", "m:1"):
        mallory.execute(
            f"COMMENT ON FUNCTION f() IS 'pg_distill model {target}'; COMMENT ON FUNCTION f(int) IS 'pg_distill model {target}'"  # type: ignore[arg-type]
        )
        if target == "m":
            mallory.execute(CLAIMED[kind])  # type: ignore[arg-type]
    told = warnings_of(granted)
    granted.execute("SELECT distill.drop_model('m:1')")
    assert len(told) == 1
    mallory.execute(
        "COMMENT ON FUNCTION f() IS 'pg_distill model m'; COMMENT ON FUNCTION f(int) IS 'pg_distill model m:2'"
    )
    granted.execute("SELECT distill.drop_model('m:2')")
    assert len(told) == 2
    assert value(granted, "SELECT count(*) FROM distill.models") == 0
    assert value(granted, "SELECT count(*) FROM pg_proc WHERE proname = 'f'") == 2


def test_thousands_of_claims_are_one_warning(granted: psycopg.Connection, connect: Connect) -> None:
    mallory = connect(user="mallory")
    mallory.execute(
        "DO $$ BEGIN FOR i IN 1..2000 LOOP EXECUTE format('CREATE FUNCTION f%s() RETURNS int LANGUAGE sql AS ''SELECT 1''', i);"
        " EXECUTE format('COMMENT ON FUNCTION f%s() IS ''pg_distill model m''', i); END LOOP; END $$"
    )
    told = warnings_of(granted)
    granted.execute("SELECT distill.drop_model('m')")
    [warning] = told
    assert len(warning) < 3000


def test_whose_functions_go_with_a_model(granted: psycopg.Connection, connect: Connect) -> None:
    alice, mallory = connect(user="alice"), connect(user="mallory")

    def left() -> set[str]:
        rows = granted.execute("SELECT proname FROM pg_proc WHERE proname LIKE 'of\\_%'").fetchall()
        return {row[0] for row in rows}

    def make() -> None:
        register(alice, 1, "hers")
        alice.execute("SELECT distill.create_function('hers', 'of_alice', replace => true)")
        if "of_mallory" not in left():
            mallory.execute("SELECT distill.create_function('hers', 'of_mallory')")
        granted.execute("SELECT distill.create_function('hers', 'of_superuser', replace => true)")

    make()
    granted.execute("SELECT distill.drop_model('hers')")
    assert left() == {"of_mallory"}
    # What she herself built over her function keeps the function, not the model.
    make()
    alice.execute("CREATE VIEW v AS SELECT of_alice(1)")
    told = warnings_of(granted)
    granted.execute("SELECT distill.drop_model('hers')")
    assert left() == {"of_mallory", "of_alice"}
    assert len(told) == 1
    # She is asked about what is hers, and about nothing that another has built over it.
    make()
    fails(alice, "2BP01", "SELECT distill.drop_model('hers')")
    alice.execute("DROP VIEW v")
    mallory.execute("CREATE VIEW w AS SELECT of_alice(1)")
    alice.execute("SELECT distill.drop_model('hers')")
    assert left() == {"of_mallory", "of_alice", "of_superuser"}
    mallory.execute("DROP VIEW w")
    # What the superuser built over her function is his to drop.
    make()
    granted.execute("CREATE VIEW v AS SELECT of_alice(1)")
    fails(granted, "2BP01", "SELECT distill.drop_model('hers')")
    assert left() == {"of_mallory", "of_alice", "of_superuser"}
    assert value(granted, "SELECT count(*) FROM distill.models WHERE name = 'hers'") == 1


def test_a_function_of_a_restored_dump_is_its_owners_still(
    granted: psycopg.Connection, connect: Connect, server: servers.Server, database: str
) -> None:
    """The comment is dumped, oids are not: what it claims is worth what its owner's word is."""
    alice = connect(user="alice")
    register(alice, 1, "hers")
    alice.execute("SELECT distill.create_function('hers', 'of_alice')")
    connect(user="mallory").execute(
        "CREATE FUNCTION of_mallory() RETURNS int LANGUAGE sql AS 'SELECT 1';"
        "COMMENT ON FUNCTION of_mallory() IS 'pg_distill model hers'"
    )
    if isinstance(server, servers.External):
        pytest.skip("nothing is run on the host of somebody else's server")
    host = ["--host", str(server.directory)] if isinstance(server, servers.Local) else []
    host += ["--username", "postgres"]
    dump = server.run("pg_dump", *host, database).stdout
    restored = f"{database}_restored"
    create_database(server, restored, "template0")
    try:
        server.run("psql", *host, "--quiet", "-v", "ON_ERROR_STOP=1", restored, stdin=dump)
        with server.connect(restored, autocommit=True) as connection:
            connection.execute("SELECT distill.drop_model('hers')")
            assert value(
                connection, "SELECT array_agg(proname::text) FROM pg_proc WHERE proname LIKE 'of\\_%'"
            ) == ["of_mallory"]
    finally:
        drop_database(server, restored)
