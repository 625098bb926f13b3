"""What predict answers: which version a name means at which moment, for whom, and on which kind of server."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
import servers
from psycopg import errors
from sql.conftest import remember

pytestmark = pytest.mark.every_server

PREDICT = "SELECT distill.predict('m', ARRAY[0])"


def adder(value: float) -> bytes:
    """Return a model of one feature x that gives x + value: its predictions say which model it is."""
    import onnx

    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N,1] x) => (float[N,1] y) {{
            k = Constant <value = float[1] {{{value}}}> ()
            y = Add(x, k)
        }}"""
    return bytes(onnx.parser.parse_model(text).SerializeToString())


def register(connection: psycopg.Connection, value: float, name: str = "m") -> None:
    connection.execute(
        "SELECT distill.register_model(%s, %s, features => '{x}', task => 'regression')", (name, adder(value))
    )


def value(connection: psycopg.Connection, statement: str = PREDICT, *arguments: Any) -> Any:
    row = connection.execute(statement, arguments or None).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]


@pytest.fixture
def versions(db: psycopg.Connection) -> psycopg.Connection:
    """A session in a database where "m" has versions 1 and 2, which predict x + 1 and x + 2; 2 is active."""

    def make() -> None:
        register(db, 1)
        register(db, 2)

    remember(db, "m", make, "versions")
    return db


# -- which version


def test_next_statement_uses_what_another_session_activated(
    versions: psycopg.Connection, connect: Callable[..., psycopg.Connection]
) -> None:
    other = connect()
    assert [value(versions), value(other)] == [2, 2]
    other.execute("SELECT distill.activate_model('m', '1')")
    assert [value(versions), value(other)] == [1, 1]
    assert value(versions, "SELECT distill.predict('m:2', ARRAY[0])") == 2


def test_running_statement_keeps_its_version(
    versions: psycopg.Connection, connect: Callable[..., psycopg.Connection]
) -> None:
    other = connect()
    with versions.transaction():
        versions.execute(
            "DECLARE c CURSOR FOR SELECT distill.predict('m', ARRAY[i]) FROM generate_series(0, 9) i"
        )
        assert value(versions, "FETCH c") == 2
        other.execute("SELECT distill.activate_model('m', '1')")
        assert value(versions, "FETCH c") == 3
        assert value(versions) == 1  # READ COMMITTED: a new statement, a new snapshot
        assert value(versions, "FETCH c") == 4
    with versions.transaction():
        versions.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert value(versions) == 1
        other.execute("SELECT distill.activate_model('m', '2')")
        assert value(versions) == 1
    assert value(versions) == 2


def test_own_changes_are_seen_and_rolled_back(versions: psycopg.Connection) -> None:
    with versions.transaction(force_rollback=True):
        versions.execute("SELECT distill.activate_model('m', '1')")
        assert value(versions) == 1
        with versions.transaction(force_rollback=True):
            versions.execute("SELECT distill.activate_model('m', '2')")
            assert value(versions) == 2
        assert value(versions) == 1
    assert value(versions) == 2


def in_block(connection: psycopg.Connection, *steps: str) -> list[float]:
    """Run steps of PL/pgSQL in one DO block; PREDICT among them stands for a prediction, whose value is returned."""
    body = "\n".join(
        "seen := seen || distill.predict('m', ARRAY[0]);" if s == "PREDICT" else s for s in steps
    )
    connection.execute(
        f"DO $$ DECLARE seen float8[] := '{{}}'; BEGIN {body}"  # type: ignore[arg-type]
        " PERFORM set_config('test.seen', seen::text, false); END $$"
    )
    seen: list[float] = value(connection, "SELECT current_setting('test.seen')::float8[]")
    return seen


def test_own_changes_inside_one_client_statement(versions: psycopg.Connection) -> None:
    first, second = (f"PERFORM distill.activate_model('m', '{v}');" for v in (1, 2))
    undone = (f"BEGIN {second} seen := seen || distill.predict('m', ARRAY[0]); RAISE division_by_zero;"
              " EXCEPTION WHEN division_by_zero THEN END;")  # fmt: skip
    steps = [
        "PREDICT",
        first,
        "PREDICT",
        undone,
        "PREDICT",
        "COMMIT;",
        "PREDICT",
        second,
        "PREDICT",
        "ROLLBACK;",
        "PREDICT",
    ]
    # A variable's change is not undone with the block: the second 2 was seen inside it.
    assert in_block(versions, *steps) == [2, 1, 2, 1, 1, 2, 1]


def test_another_sessions_change_inside_one_client_statement(
    versions: psycopg.Connection, connect: Callable[..., psycopg.Connection]
) -> None:
    other, watch = connect(), connect()
    other.execute("SELECT pg_advisory_lock(7)")
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(in_block, versions, "PREDICT", "PERFORM pg_advisory_xact_lock(7);", "PREDICT")
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        deadline = time.monotonic() + 30
        while not value(watch, waiting) and time.monotonic() < deadline:
            time.sleep(0.02)
        other.execute("SELECT distill.activate_model('m', '1')")
        other.execute("SELECT pg_advisory_unlock(7)")
        assert seen.result(timeout=30) == [2, 1]


def test_prepared_statement_is_resolved_each_time(versions: psycopg.Connection) -> None:
    versions.execute("PREPARE p(text) AS SELECT distill.predict($1, ARRAY[0])")
    for plan in ("force_generic_plan", "force_custom_plan"):
        versions.execute(f"SET plan_cache_mode = {plan}")
        for version in (1, 2, 1, 2):
            versions.execute("SELECT distill.activate_model('m', %s)", (str(version),))
            assert value(versions, "EXECUTE p('m')") == version


def test_every_form_agrees_on_the_version(versions: psycopg.Connection) -> None:
    versions.execute("SELECT distill.activate_model('m', '1')")
    rows = versions.execute(
        "SELECT distill.predict(m, ARRAY[x]), distill.predict(m, jsonb_build_object('x', x)), x + v"
        " FROM (VALUES ('m', 1), ('m:1', 1), ('m:2', 2)) t(m, v), generate_series(0, 99) x"
    ).fetchall()
    assert len(rows) == 300
    assert all(a == b == c for a, b, c in rows)


# -- for whom


def test_privileges_come_before_the_cache(
    versions: psycopg.Connection, role: Callable[..., str], connect: Callable[..., psycopg.Connection]
) -> None:
    reader, outsider = role("srv_reader"), role("srv_outsider")
    for name in (reader, outsider):
        versions.execute(f"GRANT USAGE ON SCHEMA distill TO {name}")
        versions.execute(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA distill TO {name}")
    versions.execute(f"GRANT SELECT ON distill.models, distill.settings TO {reader}")
    versions.execute(
        f"CREATE FUNCTION as_owner() RETURNS float8 LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN {PREDICT.replace('SELECT', 'RETURN')}; END $$;"  # type: ignore[arg-type]
        " CREATE FUNCTION as_caller() RETURNS float8 LANGUAGE plpgsql AS"
        f" $$ BEGIN {PREDICT.replace('SELECT', 'RETURN')}; EXCEPTION WHEN insufficient_privilege THEN RETURN -1; END $$"
    )
    assert value(versions) == 2
    with versions.transaction():
        versions.execute(f"SET LOCAL ROLE {reader}")
        assert value(versions) == 2
        versions.execute(f"SET LOCAL ROLE {outsider}")
        assert value(versions, "SELECT as_owner()") == 2
        # One statement, one snapshot, two roles: what the owner's function found is not the outsider's to use.
        row = versions.execute("SELECT as_owner(), as_caller(), as_owner(), as_caller()").fetchone()
        assert row == (2, -1, 2, -1)
        with pytest.raises(errors.InsufficientPrivilege), versions.transaction():
            value(versions)
    versions.execute(f"REVOKE SELECT ON distill.models FROM {reader}")
    versions.execute(f"SET ROLE {reader}")
    with pytest.raises(errors.InsufficientPrivilege):
        value(versions)
    versions.execute("RESET ROLE")


def test_row_security_is_the_current_roles(versions: psycopg.Connection, role: Callable[..., str]) -> None:
    one, two = role("srv_one"), role("srv_two")
    versions.execute(
        f"GRANT USAGE ON SCHEMA distill TO {one}, {two};"  # type: ignore[arg-type]
        f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA distill TO {one}, {two};"
        f"GRANT SELECT ON distill.models, distill.settings TO {one}, {two};"
        "ALTER TABLE distill.models ENABLE ROW LEVEL SECURITY;"
        f"CREATE POLICY p ON distill.models USING (version = CASE current_user WHEN '{one}' THEN '1' ELSE '2' END)"
    )
    with versions.transaction(force_rollback=True):
        for name, seen in ((one, None), (two, 2), (one, None), (two, 2)):
            versions.execute(f"SET LOCAL ROLE {name}")
            if seen is None:
                with pytest.raises(errors.UndefinedObject), versions.transaction():
                    value(versions)
            else:
                assert value(versions) == seen


# -- wrong input


WRONG = [
    ("SELECT distill.predict(NULL, ARRAY[0])", "22004"),
    ("SELECT distill.predict('m', NULL::float8[])", "22004"),
    ("SELECT distill.predict('m', NULL::jsonb)", "22004"),
    ("SELECT distill.predict_proba('m', ARRAY[0])", "0A000"),
    ("SELECT distill.predict_class('m', ARRAY[0])", "0A000"),
    ("SELECT distill.predict('nobody', ARRAY[0])", "42704"),
    ("SELECT distill.predict('m:3', ARRAY[0])", "42704"),
    ("SELECT distill.predict('m', ARRAY[0, 1])", "22000"),
    ("SELECT distill.predict('m', '{}'::float8[])", "22000"),
    ("SELECT distill.predict('m', ARRAY[[0], [1]])", "22000"),
    ("SELECT distill.predict('m', ARRAY[[0]])", "42804"),
    ("SELECT distill.predict('m', '[0]'::jsonb)", "42804"),
    ("SELECT distill.predict('m', '{}'::jsonb)", "42703"),
    ("SELECT distill.predict('m', '{\"x\": \"a\"}'::jsonb)", "42804"),
    ("SELECT distill.predict('m', NULL, '{}')", "22004"),
    ("SELECT distill.predict('m', '{0}', NULL)", "22004"),
    ("SELECT distill.predict('m', '{0,1}', '{}')", "22000"),
    ("SELECT distill.predict('m', '{0}', '{a}')", "22000"),
    ("SELECT distill.predict('m', '{NULL}', '{}')", "22004"),
    ("SELECT distill.predict_class('m', '{0}', '{}')", "0A000"),
    ("SELECT distill.predict_class(NULL, '{0}', '{}')", "22004"),
    ("SELECT distill.predict_class('m', NULL::float8[])", "0A000"),
    # NULL and NaN are the same to a model, one by one, by name and in bulk; "m" has an encoding for neither.
    ("SELECT distill.predict('m', ARRAY['NaN'::float8])", "22004"),
    ("SELECT distill.predict('m', '{\"x\": \"NaN\"}'::jsonb)", "22004"),
    ("SELECT distill.predict_batch('m', '{{NaN}}')", "22004"),
    ("SELECT distill.score('m', 'SELECT 1 AS k, ''NaN''::float8 AS x', 'k')", "22004"),
    # a SQL expression as a model
    ("SELECT distill.predict('rule', NULL::float8[])", "22004"),
    ("SELECT distill.predict('rule', ARRAY[0, 1])", "22000"),
    ("SELECT distill.predict('rule', '{}'::float8[])", "22000"),
    ("SELECT distill.predict('rule', ARRAY[[0], [1]])", "22000"),
    ("SELECT distill.predict('rule', ARRAY[[0]])", "42804"),
    ("SELECT distill.predict('rule', '{{1,2},{3,4}}'::float8[])", "22000"),
    ("SELECT distill.predict_batch('rule', '{{1,2},{3,4}}')", "22000"),
    ("SELECT distill.predict('rule', '{0,1}', '{}')", "22000"),
    ("SELECT distill.predict('rule', '[0]'::jsonb)", "42804"),
    ("SELECT distill.predict('rule', '{}'::jsonb)", "42703"),
    ("SELECT distill.predict('rule', '{\"x\": \"a\"}'::jsonb)", "42804"),
    ("SELECT distill.predict('rule', '{\"x\": [1]}'::jsonb)", "42804"),
    ("SELECT distill.predict('dated', '{\"at\": \"yesterday\"}'::jsonb)", "42804"),
    # more digits than a number has, as in an array of numbers
    ("SELECT distill.predict('rule', jsonb_build_object('x', repeat('9', 400)::numeric))", "22003"),
    ("SELECT distill.predict('rule', jsonb_build_object('x', repeat('9', 5000)::numeric))", "22003"),
    ("SELECT distill.predict('rule', ARRAY[repeat('9', 400)::numeric])", "22003"),
    # what only a distillation's client calls
    ("SELECT distill._offer_models('{}', '{}', 'no JSON', '{}')", "22023"),
    ("SELECT distill._offer_models('{}', '{}', '{}', '[]')", "22023"),
    ("SELECT distill._offer_models('{}', '{}', '[[{}, {}]]', '{}')", "22023"),
    ("SELECT distill._offer_models(ARRAY[E'\\x1fx'], '{}', '[]', '{}')", "22023"),
    ("SELECT distill._offer_models('{}', '{}', '[]', '{\"a\": [1]}')", "22023"),
    ("SELECT distill._offer_models(ARRAY[E'\\x1fx'], '{NULL}', '[]', '{}')", "22004"),
]


@pytest.mark.any_server
def test_wrong_input_has_its_sqlstate(versions: psycopg.Connection) -> None:
    register_binary(versions)
    versions.execute("CREATE TABLE moments (at timestamptz, y float8)")
    versions.execute("INSERT INTO moments VALUES ('2024-02-29 12:00+02', 1)")
    versions.execute(
        "SELECT distill.register_sql_model('dated', 'date_part(''epoch'', at)', '{at}', 'moments', 'y', task => 'regression')"
    )
    for statement, sqlstate in WRONG:
        with pytest.raises(psycopg.Error) as caught:
            value(versions, statement)
        assert (statement, caught.value.sqlstate) == (statement, sqlstate)
        assert value(versions) == 2
    # Right input in the same form: a timestamp as to_jsonb writes it.
    assert value(versions, "SELECT distill.predict('dated', to_jsonb(m)) FROM moments m") == 1709200800
    # A student whose probability is NaN is not sure.
    assert math.isnan(value(versions, "SELECT distill.predict('student', '{Infinity}'::float8[])"))
    for form in (
        "distill.predict('both', '{Infinity}'::float8[])",
        "(distill.predict_batch('both', '{{Infinity}}'))[1]",
        "(distill.score('both', 'SELECT 1 AS k, ''Infinity''::float8 AS x', 'k')).prediction",
    ):
        assert (form, value(versions, f"SELECT {form}")) == (form, 0.75)


# -- many rows


def test_batch_is_predict_row_by_row(versions: psycopg.Connection) -> None:
    predictions = value(versions, "SELECT distill.predict_batch('m', '{{1},{-Infinity},{Infinity},{-2}}')")
    assert predictions == [3, -math.inf, math.inf, 0]
    assert value(versions, "SELECT distill.predict_batch('m', '{}')") == []
    for features, sqlstate in (
        ("'{1,2}'", "22000"),
        ("'{{1,2}}'", "22000"),
        ("'{{1},{NULL}}'", "22004"),
        ("NULL", "22004"),
    ):
        with pytest.raises(psycopg.Error) as caught:
            value(versions, f"SELECT distill.predict_batch('m', {features})")
        assert caught.value.sqlstate == sqlstate


def test_score_is_predict_row_by_row(shared: Callable[[], psycopg.Connection]) -> None:
    """Every kind of feature, with NULLs and strings never seen, over more rows than a chunk."""
    connection = shared()
    connection.execute(
        "CREATE TEMP TABLE p AS SELECT *, row_number() OVER () AS id FROM (TABLE passengers"
        " UNION ALL SELECT 'fourth', '', NULL, 'NaN', 0 UNION ALL SELECT NULL, NULL, 1e9, -1, 0) t"
    )
    rows, different = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE abs(s.prediction - distill.predict('survival_distilled', to_jsonb(p))) > 1e-6)"
        " FROM distill.score('survival_distilled', 'p', 'id') s JOIN p ON p.id = s.key::int"
    ).fetchone()  # type: ignore[misc]
    assert (rows, different) == (6002, 0)


@pytest.mark.any_server
def test_classes_of_many_rows_are_those_of_one(shared: Callable[[], psycopg.Connection]) -> None:
    """Ten classes of numbers, and two of rows with strings and NULLs, over more rows than a chunk."""
    connection = shared()
    connection.execute(
        "CREATE TEMP TABLE d AS SELECT *, row_number() OVER () AS id FROM (TABLE digits UNION ALL TABLE digits UNION ALL TABLE digits) t;"
        "CREATE TEMP TABLE p AS SELECT *, row_number() OVER () AS id FROM (TABLE passengers"
        " UNION ALL SELECT 'fourth', '', NULL, 'NaN', 0 UNION ALL SELECT NULL, NULL, 1e9, -1, 0) t"
    )
    for model, table, count, least in (
        ("digits_distilled", "d", 5391, 10),
        ("survival_distilled", "p", 6002, 2),
    ):
        rows, different, classes = connection.execute(
            f"SELECT count(*), count(*) FILTER (WHERE s.class <> distill.predict_class('{model}', to_jsonb(r))), count(DISTINCT s.class)"
            f" FROM distill.score_class('{model}', '{table}', 'id') s JOIN {table} r ON r.id = s.key::int"
        ).fetchone()  # type: ignore[misc]
        assert (rows, different, classes) == (count, 0, least)
    # By two arrays as by name.
    assert connection.execute(
        "SELECT count(DISTINCT predict_class), count(*) FILTER (WHERE predict_class <> distill.predict_class('survival_distilled', row))"
        " FROM (SELECT to_jsonb(p) AS row, distill.predict_class('survival_distilled', ARRAY[age, fare]::float8[], ARRAY[cabin, port])"
        " FROM p) s"
    ).fetchone() == (2, 0)
    features = f"ARRAY[{', '.join(f'x{i}' for i in range(64))}]"
    assert connection.execute(
        f"SELECT distill.predict_class_batch('digits_distilled', array_agg({features} ORDER BY id))"
        f" = array_agg(distill.predict_class('digits_distilled', {features}::float8[]) ORDER BY id) FROM d WHERE id < 500"
    ).fetchone() == (True,)
    assert value(connection, "SELECT distill.predict_class_batch('digits_distilled', '{}')") == []


@pytest.mark.any_server
def test_classes_of_any_name_come_back(versions: psycopg.Connection) -> None:
    classes = ["", "\x1f", '{,}"\\', "NULL"]
    versions.execute("CREATE TABLE t AS SELECT k::int, k::float8 AS x FROM generate_series(0, 3) k")
    versions.execute(
        "SELECT distill.register_sql_model('odd', 'ARRAY[(x = 0)::int, (x = 1)::int, (x = 2)::int, (x = 3)::int]::float8[]',"
        " '{x}', 't', task => 'multiclass', classes => %s)",
        (classes,),
    )
    score = "SELECT key::int, class FROM distill.score_class('odd', %s, 'k')"
    assert versions.execute(score, ("SELECT * FROM t ORDER BY k",)).fetchall() == list(enumerate(classes))
    for i, name in enumerate(classes):
        assert versions.execute(score, (f"SELECT * FROM t WHERE k = {i}",)).fetchall() == [(i, name)]
    assert value(versions, "SELECT distill.predict_class_batch('odd', '{{3},{0}}')") == ["NULL", ""]
    for statement in (
        "SELECT * FROM distill.score_class('m', 't', 'k')",
        "SELECT distill.predict_class_batch('m', '{{1}}')",
        "SELECT * FROM distill.score('odd', 't', 'k')",
        "SELECT distill.predict_batch('odd', '{{1}}')",
    ):
        with pytest.raises(errors.FeatureNotSupported):
            versions.execute(statement)  # type: ignore[arg-type]


def test_score_hands_keys_back_as_they_are(versions: psycopg.Connection) -> None:
    keys = ["a", "", None, "\x1f", '{,}"\\', "NULL", "é", "\x01\x02\x1e", None]
    versions.execute("CREATE TABLE t (k text, x float8)")
    with versions.cursor() as cursor:
        cursor.executemany("INSERT INTO t VALUES (%s, %s)", [(key, float(i)) for i, key in enumerate(keys)])
    expected = [(key, i + 2.0) for i, key in enumerate(keys)]
    score = "SELECT * FROM distill.score('m', %s, 'k')"
    assert versions.execute(score, ("t",)).fetchall() == expected
    for i, row in enumerate(expected):
        assert versions.execute(score, (f"SELECT * FROM t WHERE x = {i}",)).fetchall() == [row]
    assert versions.execute(score, ("SELECT * FROM t WHERE false",)).fetchall() == []


@pytest.mark.any_server
@pytest.mark.parametrize("kind", ["smallint", "integer", "bigint"])
def test_score_hands_integer_keys_back_bit_by_bit(versions: psycopg.Connection, kind: str) -> None:
    size = {"smallint": 2, "integer": 4, "bigint": 8}[kind]
    limit = 2 ** (8 * size - 1)
    # Read as a number, the last two of eight bytes are NaNs, quiet and signalling.
    keys = [None, 0, -1, 1 - limit, -limit, limit - 1]
    keys += [0x7FF8_0000_0000_0000, 0x7FF0_0000_0000_0001] if size == 8 else []
    versions.execute(f"CREATE TABLE t (x float8, k {kind})")  # type: ignore[arg-type]
    for i, key in enumerate(keys):
        versions.execute("INSERT INTO t VALUES (%s, %s)", (i, key))
    score = "SELECT key::bigint, prediction FROM distill.score('m', %s, 'k')"
    assert versions.execute(score, ("SELECT * FROM t ORDER BY x",)).fetchall() == [
        (key, i + 2) for i, key in enumerate(keys)
    ]
    assert versions.execute(score, ("SELECT * FROM t WHERE k IS NULL",)).fetchall() == [(None, 2)]


def test_score_streams(versions: psycopg.Connection) -> None:
    """Of endless rows only what is asked for is read, in FROM too, and under conditions."""
    endless = "SELECT n AS k, 0 AS x FROM (SELECT generate_series(1, 1000000000000000) AS n) s"
    for tail in ("", "WHERE prediction > 0"):
        statement = f"SELECT * FROM distill.score('m', %s, 'k') s {tail} LIMIT 3"
        rows = versions.execute(statement, (endless,)).fetchall()  # type: ignore[arg-type]
        assert rows == [(str(i), 2.0) for i in (1, 2, 3)]


@pytest.mark.parametrize(
    "count", [500_000, pytest.param(10_000_000, marks=[pytest.mark.long, pytest.mark.timeout(1200)])]
)
def test_score_takes_constant_memory(versions: psycopg.Connection, count: int) -> None:
    versions.execute(
        "CREATE FUNCTION peak_mib() RETURNS float8 LANGUAGE plpython3u AS"
        " $$ return next(int(x.split()[1]) for x in open('/proc/self/status') if x.startswith('VmHWM')) / 1024 $$"
    )
    statement = (
        "SELECT count(*), sum(prediction - key::int8) FROM distill.score('m',"
        " 'SELECT i, i AS x FROM (SELECT generate_series(1, %s) AS i) s', 'i')"
    )

    def peak(rows: int) -> float:
        # float32 holds whole numbers to 2^24, so that every prediction is exact.
        assert versions.execute(statement % rows).fetchone() == (rows, 2 * rows)  # type: ignore[arg-type]
        return float(value(versions, "SELECT peak_mib()"))

    # The planner turns it on for millions of rows, and LLVM takes 50 MiB once.
    versions.execute("SET jit = off")
    few = peak(50_000)
    assert peak(count) - few < 16


@pytest.mark.any_server
def test_many_rows_of_a_slow_model_can_be_interrupted(versions: psycopg.Connection) -> None:
    import onnx

    steps = "\n".join(f"s{i + 1} = Sin(s{i})" for i in range(200))
    graph = f"""<ir_version: 8, opset_import: ["": 17]> g (float[N,1] x) => (float[N,1] y) {{
        wide = Constant <value = int64[2] {{1, 1000}}> ()
        s0 = Expand(x, wide)
        {steps}
        y = ReduceMean <axes = [1]> (s200)
    }}"""
    versions.execute(
        "SELECT distill.register_model('slow', %s, features => '{x}', task => 'regression')",
        (onnx.parser.parse_model(graph).SerializeToString(),),
    )
    versions.execute("CREATE TABLE t AS SELECT i, i::float8 AS x FROM generate_series(1, 20000) i")
    value(versions, "SELECT distill.predict('slow', ARRAY[1])")
    versions.execute("SET statement_timeout = 300")
    for statement in (
        "SELECT distill.predict_batch('slow', array_agg(ARRAY[x])) FROM t",
        "SELECT count(*) FROM distill.score('slow', 't', 'i')",
    ):
        start = time.monotonic()
        with pytest.raises(errors.QueryCanceled):
            versions.execute(statement)  # type: ignore[arg-type]
        assert time.monotonic() - start < 0.8
    versions.execute("SET statement_timeout = 0")
    some = "FROM t WHERE i <= 100"
    assert value(
        versions, f"SELECT distill.predict_batch('slow', array_agg(ARRAY[x] ORDER BY i)) {some}"
    ) == pytest.approx(
        value(versions, f"SELECT array_agg(distill.predict('slow', ARRAY[x]) ORDER BY i) {some}"), abs=1e-6
    )


def test_score_refuses_what_it_must(versions: psycopg.Connection) -> None:
    versions.execute("CREATE TABLE t (k int, x float8, s text); INSERT INTO t VALUES (1, 1, 'a')")
    versions.execute(
        "CREATE FUNCTION w() RETURNS float8 LANGUAGE sql AS 'INSERT INTO t VALUES (2) RETURNING 1.0'"
    )
    for query, key, sqlstate in (
        ("t", "nothing", "42703"),
        ("SELECT k FROM t", "k", "42703"),
        ("SELECT k, s AS x FROM t", "k", "42804"),
        ("nothing", "k", "42P01"),
        ("SELECT k, w() AS x FROM t", "k", "25006"),
        ("SELECT 1 AS k, 1.0 AS x) s; DELETE FROM t; SELECT * FROM (SELECT 1", "k", "42P11"),
        (None, "k", "22004"),
        ("t", None, "22004"),
    ):
        with pytest.raises(psycopg.Error) as caught:
            versions.execute("SELECT * FROM distill.score('m', %s, %s)", (query, key))
        assert (query, key, caught.value.sqlstate) == (query, key, sqlstate)
    assert value(versions, "SELECT count(*) FROM t") == 1


# -- what is lent of the server


def test_borrowed_functions_do_what_they_are_borrowed_for(versions: psycopg.Connection) -> None:
    """Should a server change how it keeps arrays or numbers, or what these do, this fails before anything is wrong."""
    borrowed = versions.execute(
        "SELECT proname, pg_get_function_identity_arguments(oid), prorettype::regtype::text FROM pg_proc"
        " WHERE prosrc IN ('byteasend', 'int8up') AND pronamespace = 'pg_catalog'::regnamespace ORDER BY 1"
    ).fetchall()
    assert borrowed == [("byteasend", "bytea", "bytea"), ("int8up", "bigint", "bigint")]
    numbers = [0.0, -0.0, 1.5, -math.pi, 5e-324, 2.3e-308, 1.7e308, math.inf, -math.inf, math.nan]
    for number in numbers:
        [bits] = struct.unpack("<q", struct.pack("<d", number))
        back = value(versions, "SELECT float8send(distill._float8_of_bits(%s))", bits)
        assert bytes(back) == struct.pack(">d", number)
    large = [float(i) for i in range(20_000)]
    versions.execute("CREATE TABLE kept (a float8[])")
    versions.execute("INSERT INTO kept VALUES (%s)", (large,))  # compressed, or in the table's TOAST
    versions.execute(
        "CREATE FUNCTION grown(n int) RETURNS bytea LANGUAGE plpgsql AS $$ DECLARE a float8[] := '{}'; BEGIN"
        " FOR i IN 1..n LOOP a[i] := i - 1; END LOOP; RETURN distill._array_bytes(a); END $$"  # an expanded array
    )
    for expected, found in (
        (numbers, value(versions, "SELECT distill._array_bytes(%s::float8[])", numbers)),
        (large, value(versions, "SELECT distill._array_bytes(a) FROM kept")),
        (large[:100], value(versions, "SELECT grown(100)")),
    ):
        header = struct.unpack("<5i", found[:20])
        assert header == (1, 0, 701, len(expected), 1)  # dimensions, no NULLs, type, size, lower bound
        assert found[20:] == struct.pack(f"<{len(expected)}d", *expected)
    short = [0.0, -0.0, 1.5, 3.4028235e38, 1e-45, math.inf, -math.inf]
    found = value(versions, "SELECT distill._vector_bytes(%s::float4[])", short)
    assert struct.unpack("<5i", found[:20]) == (1, 0, 700, len(short), 1)
    assert found[20:] == struct.pack(f"<{len(short)}f", *short)
    two = value(versions, "SELECT distill._array_bytes('{{1,2,3},{4,5,6}}')")
    assert struct.unpack("<3i2i2i6d", two) == (2, 0, 701, 2, 3, 1, 1, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


# -- the backend's cache


@pytest.mark.any_server
def test_sessions_are_evicted_by_memory(versions: psycopg.Connection) -> None:
    count = 24  # half as many again as the memory is for
    with versions.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO distill.models (name, version, active, task, kind, artifact, sha256, size_bytes, input_schema,"
            " output_schema) SELECT %s, version, active, task, kind, a, encode(sha256(a), 'hex'), length(a), input_schema,"
            " output_schema FROM distill.models, (SELECT %s::bytea) s(a) WHERE name = 'm' AND active",
            [(f"m{i}", adder(i)) for i in range(count)],
        )
    # One file is checked by a process of its own; the others are like it.
    assert value(versions, "SELECT distill.predict('m0', ARRAY[0])") == 0
    versions.execute(
        "INSERT INTO distill.checked SELECT m.sha256, c.schema_digest, c.rules, c.cost, c.checked_at"
        " FROM distill.checked c, distill.models z, distill.models m WHERE z.name = 'm0' AND c.sha256 = z.sha256 AND m.name ~ '^m[0-9]'"
        " ON CONFLICT DO NOTHING"
    )
    versions.execute("SELECT distill.change_setting('session_cache_mb', '4')")
    versions.execute(
        "CREATE FUNCTION kept() RETURNS int LANGUAGE plpython3u AS"
        " $$ from pg_distill.serving import predict; return len(predict._sessions) $$"
    )
    every = f"SELECT array_agg(distill.predict('m' || i, ARRAY[0]) ORDER BY i) FROM generate_series(0, {count - 1}) i"
    for _ in range(2):
        assert value(versions, every) == list(range(count))
        assert 1 <= value(versions, "SELECT kept()") <= 4 * 2**20 // 2**18


# What predicting needs. Training is in a process of its own: its code and its libraries are nothing to keep in every backend.
PREDICTING = {
    "pg_distill." + name
    for name in (
        *("sqlapi", "frame", "errors", "quoting", "text"),
        *("database", "database.backend", "database.interrupts", "database.pinned", "database.protocol"),
        *("onnx_model", "onnx_model.cut", "onnx_model.session", "onnx_model.signature", "onnx_model.values"),
        *("onnx_model.protobuf", "onnx_model.slots"),
        *(
            "registry",
            "registry.locks",
            "registry.model",
            "registry.models",
            "registry.places",
            "registry.rights",
        ),
        *("registry.runs", "registry.settings", "rows", "rows.canonical", "rows.learned"),
        *("onnx_model.vectors", "rows.vectors"),
        # Readers of texts, whichever a model has; no library of theirs.
        *("onnx_model.texts", "onnx_model.tokens", "onnx_model.vectorizers", "onnx_model.hashing"),
        *("onnx_model.text_model", "onnx_model.tokenizer", "onnx_model.ascii_tokens"),
        *("serving", "serving.batch", "serving.predict", "serving.predictors"),
    )
}


def test_a_backend_that_predicts_imports_no_training_code(
    db: psycopg.Connection, connect: Callable[..., psycopg.Connection]
) -> None:
    register(db, 1.0)
    db.execute(
        "CREATE FUNCTION modules() RETURNS text[] LANGUAGE plpython3u AS $$ import sys; return list(sys.modules) $$"
    )
    fresh = connect()
    assert value(fresh) == 1.0
    assert value(fresh, "SELECT distill.predict('m', '{\"x\": 2}'::jsonb)") == 3.0
    modules = set(value(fresh, "SELECT modules()"))
    assert {name for name in modules if name.startswith("pg_distill.")} <= PREDICTING
    libraries = {name.partition(".")[0] for name in modules}
    assert (
        libraries & {"onnx", "lightgbm", "scipy", "sklearn", "skl2onnx", "pandas", "psycopg", "tokenizers"}
        == set()
    )


# -- which server


def test_parallel_label_is_what_the_server_allows(db: psycopg.Connection, server: servers.Server) -> None:
    labels = {
        row[0]
        for row in db.execute(
            "SELECT proparallel FROM pg_proc WHERE pronamespace = 'distill'::regnamespace"
            " AND ltrim(proname, '_') IN ('predict', 'predict_proba', 'predict_class', 'predict_batch')"
        )
    }
    assert labels == ({"s"} if server.major >= 17 else {"u"})


def cascade_over(
    connection: psycopg.Connection, name: str, student: str, teacher: str, threshold: float
) -> None:
    """Register a cascade of two models as a distillation would: its file is the student's."""
    connection.execute(
        "INSERT INTO distill.models (name, version, active, task, kind, artifact, sha256, size_bytes, input_schema,"
        " output_schema, teacher_id, form, threshold) SELECT %s, '1', true, s.task, s.kind, s.artifact, s.sha256,"
        " s.size_bytes, s.input_schema, s.output_schema, t.id, 'cascade', %s"
        " FROM distill.models s, distill.models t WHERE s.name = %s AND t.name = %s",
        (name, threshold, student, teacher),
    )


def set_expression(connection: psycopg.Connection, name: str, expression: str) -> None:
    """Give a registered model a form as SQL."""
    connection.execute("ALTER TABLE distill.models DISABLE TRIGGER protect_model")
    connection.execute("UPDATE distill.models SET expression = %s WHERE name = %s", (expression, name))
    connection.execute("ALTER TABLE distill.models ENABLE TRIGGER protect_model")


def sigmoid(slope: float) -> bytes:
    """Return a model of one feature x whose last class has the probability 1 / (1 + exp(-slope x)), and NaN at infinity."""
    import onnx

    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N,1] x) => (float[N,2] y) {{
            k = Constant <value = float[1] {{{slope}}}> ()
            one = Constant <value = float[1] {{1.0}}> ()
            z = Mul(x, k)
            nothing = Sub(z, z)
            z_or_nan = Add(z, nothing)
            p = Sigmoid(z_or_nan)
            q = Sub(one, p)
            y = Concat <axis = 1> (q, p)
        }}"""
    return bytes(onnx.parser.parse_model(text).SerializeToString())


def register_binary(connection: psycopg.Connection) -> None:
    """Register "student", "rule", which is a SQL expression, and "both", a cascade of the two; each has the classes no and yes.

    The student is unsure below 1.5 on either side of 0; the rule gives 0.25 and 0.75.
    """
    connection.execute(
        "SELECT distill.register_model('student', %s, features => '{x}', task => 'binary', classes => '{no,yes}')",
        (sigmoid(1.0),),
    )
    connection.execute("CREATE TABLE measured (x float8, says text)")
    connection.execute("INSERT INTO measured VALUES (1, 'yes'), (-1, 'no')")
    connection.execute(
        "SELECT distill.register_sql_model('rule', 'CASE WHEN x > 0 THEN 0.75 ELSE 0.25 END', '{x}', 'measured', 'says', task => 'binary')"
    )
    cascade_over(connection, "both", "student", "rule", 1 / (1 + math.exp(-1.5)))


def test_forced_parallel_plans_give_the_same(versions: psycopg.Connection, server: servers.Server) -> None:
    register_binary(versions)
    versions.execute(
        "SELECT distill.create_function('m', 'typed'), distill.create_function('both', 'typed_both')"
    )
    versions.execute(
        "UPDATE distill.models SET metric = 'r2', accuracy = 0.9, avg_latency_ms = 1 WHERE name = 'm'"
    )
    versions.execute(  # few rows, as each costs a SQL model a query, on many pages
        "CREATE TABLE t AS SELECT i, (i % 9 - 4)::float8 AS x, ARRAY[(i % 9 - 4)::float8] AS f, repeat('x', 1900) AS wide"
        " FROM generate_series(1, 60) i; ANALYZE t"
    )
    versions.execute(
        "SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;"
        "SET min_parallel_table_scan_size = 0"
    )
    rule = "CASE WHEN x > 0 THEN 0.75 ELSE 0.25 END"
    both = f"CASE WHEN abs(x) > 1 THEN 1 / (1 + exp(-x)) ELSE {rule} END"
    expected = {
        "distill.predict('m', f)": "x + 2",
        "distill.predict('m', jsonb_build_object('x', x))": "x + 2",
        "typed(x)": "x + 2",
        "(distill.predict_batch('m', array_fill(x, '{40,1}')))[40]": "x + 2",
        "distill.predict(distill.choose_model('m'), f)": "x + 2",
        "distill.predict('rule', f)": rule,
        "(distill.predict_proba('rule', jsonb_build_object('x', x)))[2]": rule,
        "distill.predict('both', f)": both,
        "typed_both(x)": both,
    }

    def explain(options: str, columns: str) -> str:
        rows = versions.execute(f"EXPLAIN ({options}) SELECT {columns} FROM t")  # type: ignore[arg-type]
        return "\n".join(row[0] for row in rows)

    for called in expected:
        assert (called, "Gather" in explain("COSTS off", f"sum({called})")) == (called, server.major >= 17)
    columns = ", ".join(f"sum({called}), sum({right})" for called, right in expected.items())
    name = "debug_parallel_query" if server.major >= 16 else "force_parallel_mode"
    for mode in ("off", "on", "regress"):
        versions.execute(f"SET {name} = {mode}")
        found = versions.execute(f"SELECT {columns} FROM t").fetchone()  # type: ignore[arg-type]
        assert found is not None
        assert found[::2] == pytest.approx([float(right) for right in found[1::2]], abs=1e-4)
        assert value(versions) == 2
    versions.execute(f"SET {name} = off")
    plan = explain("ANALYZE, COSTS off, TIMING off", columns)
    launched = [int(line.split(":")[1]) for line in plan.splitlines() if "Workers Launched" in line]
    assert (sum(launched) >= 1) == (server.major >= 17)


class Standby:
    """A streaming replica of a server beside it on its host, queried through psql there."""

    def __init__(self, server: servers.Server, directory: str, database: str) -> None:
        self._server = server
        self._directory = directory
        self._database = database
        host = str(server.directory) if isinstance(server, servers.Local) else "/var/run/postgresql"
        connect = ["--host", host, "--username", "postgres"]
        server.run(
            "pg_basebackup", *connect, "--pgdata", directory, "--write-recovery-conf", "--checkpoint", "fast"
        )
        options = f"-c port=5499 -c unix_socket_directories={directory} -c listen_addresses="
        start = f'"$(command -v pg_ctl || echo "$(pg_config --bindir)/pg_ctl")" --pgdata {directory}'
        self._stop = f"{start} --mode immediate --wait stop; rm -rf {directory}"
        server.run(
            "sh", "-c", f"{start} --options '{options}' --log {directory}/log --wait start >&2 < /dev/null"
        )

    def query(self, statement: str) -> str:
        connect = [
            "--host",
            self._directory,
            "--port",
            "5499",
            "--username",
            "postgres",
            "--dbname",
            self._database,
        ]
        options = ["--no-psqlrc", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"]
        return self._server.run("psql", *connect, *options, "--command", statement).stdout.strip()

    def close(self) -> None:
        self._server.run("sh", "-c", self._stop, check=False)


def test_hot_standby_predicts_in_every_form(
    versions: psycopg.Connection, server: servers.Server, database: str
) -> None:
    if isinstance(server, servers.External):
        pytest.skip("a replica is made on the server's own host")
    register_binary(versions)
    set_expression(versions, "m", "\"x\"::float + '2'::float")
    versions.execute(
        "SELECT distill.create_function('m', 'typed'), distill.create_function('m:2', 'plain', as_sql => true)"
    )
    versions.execute(
        "UPDATE distill.models SET metric = 'r2', accuracy = 0.9, avg_latency_ms = version::float8 WHERE name = 'm'"
    )
    versions.execute("CREATE TABLE t AS SELECT i AS k, i::float8 AS x FROM generate_series(1, 5000) i")
    standby = Standby(server, f"/tmp/pg_distill_standby_{server.name}", database)
    try:
        assert standby.query("SELECT pg_is_in_recovery()") == "t"
        forms = (
            "SELECT distill.predict('m', ARRAY[0]), distill.predict('m', '{\"x\": 0}'::jsonb), distill.predict('m', '{0}', '{}'),"
            " typed(0), (distill.predict_batch('m', '{{0}}'))[1],"
            " (SELECT sum(prediction - key::int) / 5000 FROM distill.score('m', 't', 'k')),"
            " (SELECT count(*) FROM distill.warm_up('{m,m:1}')), distill.choose_model('m')"
        )
        assert standby.query(forms) == "2|2|2|2|2|2|2|m:1"
        others = (
            "SELECT distill.predict_proba('student', ARRAY[0]), distill.predict_class('student', ARRAY[2]),"
            " distill.predict('rule', '{\"x\": 1}'::jsonb), distill.predict('both', ARRAY[-1]), plain(0),"
            " (distill.score('both', 'SELECT 1 AS k, 1 AS x', 'k')).prediction"
        )
        assert standby.query(others) == "{0.5,0.5}|yes|0.75|0.25|2|0.75"
        versions.execute("SELECT distill.activate_model('m', '1')")
        wanted = value(versions, "SELECT pg_current_wal_lsn()")
        deadline = time.monotonic() + 30
        while standby.query(f"SELECT pg_last_wal_replay_lsn() >= '{wanted}'") != "t":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert standby.query(forms) == "1|1|1|1|1|1|2|m:1"
    finally:
        standby.close()
