"""Models as functions of their own, as plain SQL, and as the answer to constraints."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
import servers
from pg_distill.frame import FloatArray, Strings, Task
from pg_distill.quoting import quote_identifier
from pg_distill.students import expression as native
from pg_distill.students.network_expression import Perceptron
from psycopg import errors
from sql.conftest import load_survival, remember
from sql.test_serving import register, set_expression, value
from student_rows import CLASSES, edge_rows, make, rows, transfer

pytestmark = pytest.mark.every_server

COLUMNS = "cabin => cabin, port => port, age => age, fare => fare"


def insert_student(connection: psycopg.Connection, expression: str) -> None:
    """Give model "m" a SQL form that says x + 1, as the ONNX file of version 1 does."""
    remember(connection, "m", lambda: register(connection, 1), "the first version alone")
    set_expression(connection, "m", expression)


@pytest.fixture
def student(db: psycopg.Connection) -> psycopg.Connection:
    insert_student(db, "\"x\"::float + '1'::float")
    db.execute("CREATE TABLE t AS SELECT i, i::float8 AS x FROM generate_series(1, 20000) i; ANALYZE t")
    return db


def functions(connection: psycopg.Connection) -> set[str]:
    rows = connection.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prolang ="
        " (SELECT oid FROM pg_language WHERE lanname = 'sql')"
    )
    return {row[0] for row in rows}


# -- typed functions


def test_typed_function_is_predict(db: psycopg.Connection) -> None:
    load_survival(db)
    assert value(db, "SELECT distill.create_function('survival', 'surv')::text").startswith(
        "surv(text,text,double"
    )
    different = value(
        db,
        f"SELECT count(*) FROM passengers p WHERE surv({COLUMNS}) IS DISTINCT FROM distill.predict('survival', to_jsonb(p))",
    )
    assert different == 0
    plan = "\n".join(row[0] for row in db.execute(f"EXPLAIN VERBOSE SELECT surv({COLUMNS}) FROM passengers"))
    assert "distill._predict" in plan  # inlined: the arguments have gone
    assert "surv(" not in plan


def register_sum(connection: psycopg.Connection, name: str, features: list[str]) -> None:
    """Register a model that adds its features."""
    import onnx

    graph = f"""<ir_version: 8, opset_import: ["": 17]> g (float[N,{len(features)}] x) => (float[N,1] y) {{
        axes = Constant <value = int64[1] {{1}}> ()
        y = ReduceSum(x, axes)
    }}"""
    connection.execute(
        "SELECT distill.register_model(%s, %s, features => %s, task => 'regression')",
        (name, onnx.parser.parse_model(graph).SerializeToString(), features),
    )


@pytest.mark.any_server
def test_function_over_a_hundred_features_takes_a_row(db: psycopg.Connection) -> None:
    names = [f"f{i}" for i in range(120)]
    register_sum(db, "wide", names)
    db.execute(
        "CREATE TABLE w AS SELECT " + ", ".join(f"{i}.0::float8 AS {name}" for i, name in enumerate(names))
    )  # type: ignore[arg-type]
    signature = value(db, "SELECT distill.create_function('wide', 'wide')::text")
    assert signature == "wide(wide_features)"
    assert value(db, "SELECT wide(ROW(w.*)::wide_features) FROM w") == sum(range(120))
    # Replaced in place where nothing about it changes, else only where nothing depends on it.
    replace = "SELECT distill.create_function('wide', 'wide', replace => true)"
    db.execute("CREATE VIEW v AS SELECT wide(ROW(w.*)::wide_features) AS y FROM w")
    db.execute("CREATE TABLE kept (given wide_features)")
    db.execute("INSERT INTO kept SELECT ROW(w.*)::wide_features FROM w")
    db.execute(replace)
    register_sum(db, "wide", [*names, "more"])
    with pytest.raises(errors.DependentObjectsStillExist):
        db.execute(replace)
    db.execute("DROP VIEW v")
    with pytest.raises(errors.DependentObjectsStillExist):
        db.execute(replace)
    assert value(db, "SELECT (given).f119 FROM kept") == 119
    db.execute("DROP TABLE kept")
    db.execute(replace)
    assert value(db, "SELECT wide(ROW(w.*, 1)::wide_features) FROM w") == sum(range(120)) + 1
    db.execute("SELECT distill.drop_model('wide')")
    assert value(db, "SELECT to_regtype('wide_features')") is None


@pytest.mark.any_server
def test_replacing_leaves_one_function_and_nothing_of_others(db: psycopg.Connection) -> None:
    create = "SELECT distill.create_function('sum', 'total', replace => %s)::text"
    register_sum(db, "sum", ["a", "b"])
    assert value(db, create, True) == "total(double precision,double precision)"
    db.execute("CREATE VIEW v AS SELECT total(1, 2) AS y")
    value(db, create, True)  # the same arguments: what depends on it stays
    db.execute("DROP VIEW v")
    register_sum(db, "sum", ["b", "a"])  # other names of the same types
    value(db, create, True)
    assert value(db, "SELECT total(b => 1, a => 2)") == 3
    register_sum(db, "sum", ["a", "b", "c"])
    value(db, create, True)
    assert [
        row[0] for row in db.execute("SELECT oid::regprocedure::text FROM pg_proc WHERE proname = 'total'")
    ] == ["total(double precision,double precision,double precision)"]
    # What was not made by create_function is not replaced, and stands beside it where its arguments differ.
    db.execute(
        "DROP FUNCTION total; CREATE FUNCTION total(a float8, b float8, c float8) RETURNS float8 LANGUAGE sql AS 'SELECT 0.0'"
    )
    db.execute("CREATE TYPE total_features AS (a int); CREATE TABLE mine (f total_features)")
    with pytest.raises(errors.DuplicateFunction):
        value(db, create, True)
    register_sum(db, "sum", [f"f{i}" for i in range(101)])
    with pytest.raises(errors.DuplicateObject):
        value(db, create, True)
    assert value(db, "SELECT count(f) FROM mine") == 0
    assert value(db, "SELECT total(1, 2, 3)") == 0


@pytest.mark.any_server
def test_a_comment_of_another_role_stops_no_drop(
    student: psycopg.Connection, role: Callable[..., str], connect: Callable[..., psycopg.Connection]
) -> None:
    owner, other = role("fun_owner"), role("fun_other")
    student.execute(
        f"GRANT CREATE, USAGE ON SCHEMA public TO {owner}, {other}; GRANT USAGE ON SCHEMA distill TO {owner};"  # type: ignore[arg-type]
        f"GRANT ALL ON ALL TABLES IN SCHEMA distill TO {owner}; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA distill TO {owner};"
    )
    for name, session in ((owner, connect(user=owner)), (other, connect(user=other))):
        session.execute(
            f"CREATE FUNCTION f_{name}() RETURNS int LANGUAGE sql AS 'SELECT 1';"  # type: ignore[arg-type]
            f"COMMENT ON FUNCTION f_{name}() IS 'pg_distill model m:1';"
            f"CREATE PROCEDURE p_{name}() LANGUAGE sql AS 'SELECT 1'; COMMENT ON PROCEDURE p_{name}() IS 'pg_distill model m:1';"
            f"CREATE AGGREGATE a_{name}(int) (SFUNC = int4pl, STYPE = int);"
            f"COMMENT ON AGGREGATE a_{name}(int) IS 'pg_distill model m:1'"
        )
    session = connect(user=owner)
    said: list[str] = []
    session.add_notice_handler(lambda notice: said.append(notice.severity_nonlocalized or ""))
    student.execute("ALTER TABLE distill.models DISABLE ROW LEVEL SECURITY")
    student.execute(f"UPDATE distill.models SET owner = '{owner}'")  # type: ignore[arg-type]
    session.execute("SELECT distill.drop_model('m')")
    assert value(student, "SELECT count(*) FROM distill.models") == 0
    assert said == ["WARNING"]
    assert value(student, "SELECT array_agg(proname::text ORDER BY proname) FROM pg_proc WHERE proname LIKE '__fun_o%'") == [
        "a_fun_other", "a_fun_owner", "f_fun_other", "p_fun_other", "p_fun_owner"
    ]  # fmt: skip


@pytest.mark.any_server
def test_function_goes_with_its_model(student: psycopg.Connection) -> None:
    register(student, 2)
    student.execute(
        "SELECT distill.create_function('m', 'follows'), distill.create_function('m:1', 'first'),"
        " distill.create_function('m:2', 'second'), distill.create_function('m:1', 'plain', as_sql => true)"
    )
    row = student.execute("SELECT follows(0), first(0), second(0), plain(0)").fetchone()
    assert row == (2, 1, 2, 1)
    student.execute("SELECT distill.drop_model('m:2')")
    assert functions(student) == {"follows", "first", "plain"}
    assert value(student, "SELECT follows(0)") == 1  # the version that remains
    student.execute("CREATE VIEW v AS SELECT first(x) FROM t")
    with pytest.raises(errors.DependentObjectsStillExist):
        student.execute("SELECT distill.drop_model('m')")
    assert functions(student) == {"follows", "first", "plain"}
    student.execute("DROP VIEW v; SELECT distill.drop_model('m')")
    assert functions(student) == set()


def test_function_goes_with_the_extension_where_it_needs_it(student: psycopg.Connection) -> None:
    student.execute(
        "SELECT distill.create_function('m', 'typed'), distill.create_function('m', 'plain', as_sql => true)"
    )
    student.execute("DROP EXTENSION pg_distill")
    assert functions(student) == {"plain"}
    assert value(student, "SELECT plain(1)") == 2


def test_functions_survive_dump_and_restore(
    student: psycopg.Connection, server: servers.Server, database: str
) -> None:
    student.execute(
        "SELECT distill.create_function('m', 'typed'), distill.create_function('m', 'plain', as_sql => true)"
    )
    restored = f"{database}_restored"
    with contextlib.suppress(servers.Unavailable):
        if server.name == "dsn":
            raise servers.Unavailable
        connect = ["--host", str(server.directory)] if isinstance(server, servers.Local) else []
        dump = server.run("pg_dump", *connect, "--username", "postgres", database).stdout
        servers.drop_database(server, restored)
        with server.connect() as admin:
            admin.execute(
                f"CREATE DATABASE {restored} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'"
            )  # type: ignore[arg-type]
        try:
            server.run(
                "psql",
                *connect,
                "--username",
                "postgres",
                "--quiet",
                "-v",
                "ON_ERROR_STOP=1",
                restored,
                stdin=dump,
            )
            with server.connect(restored) as connection:
                assert connection.execute("SELECT typed(1), plain(1)").fetchone() == (2, 2)
                connection.execute("SELECT distill.drop_model('m')")
                assert functions(connection) == set()
        finally:
            servers.drop_database(server, restored)


WRONG = [
    *(
        (f"SELECT distill.create_function('m', '{name}')", "42602")
        for name in ("a.b.c", "a..b", "", ".a", "a.", "1a", "a b", '"a', '""')
    ),
    ("SELECT distill.create_function('m', 'nowhere.f')", "3F000"),
    ("SELECT distill.create_function('nobody', 'f')", "42704"),
    ("SELECT distill.create_function(NULL, 'f')", "22004"),
    ("SELECT distill.create_function('m', 'f'), distill.create_function('m', 'f')", "42723"),
    ("SELECT distill.create_function('m:2', 'f', as_sql => true)", "0A000"),
    ("SELECT distill.to_sql('m:2')", "0A000"),
    ("SELECT distill.choose_model('nobody')", "42704"),
    ("SELECT distill.choose_model('m', max_latency_ms => 0)", "22023"),
    ("SELECT distill.choose_model('m', min_accuracy => 'NaN')", "22023"),
    ("SELECT distill.choose_model('m')", "55000"),  # nothing was measured
    ("SELECT distill.warm_up('{m,nobody}')", "42704"),
    ("SELECT distill.warm_up('{NULL}')", "22004"),
]


@pytest.mark.any_server
def test_wrong_input_has_its_sqlstate(student: psycopg.Connection) -> None:
    register(student, 2)
    for statement, sqlstate in WRONG:
        with pytest.raises(psycopg.Error) as caught:
            student.execute(statement)  # type: ignore[arg-type]
        assert (statement, caught.value.sqlstate) == (statement, sqlstate)
    assert functions(student) == set()


# -- students as plain SQL


def test_sql_form_serves_indexes_and_generated_columns(student: psycopg.Connection) -> None:
    assert value(student, "SELECT distill.to_sql('m')") == "\"x\"::float OPERATOR(pg_catalog.+) '1'::float"
    student.execute("SELECT distill.create_function('m', 'plain', as_sql => true)")
    student.execute("ALTER TABLE t ADD COLUMN score float8 GENERATED ALWAYS AS (plain(x)) STORED")
    student.execute("CREATE INDEX t_plain_idx ON t (plain(x)); ANALYZE t")
    assert value(student, "SELECT count(*) FROM t WHERE score = x + 1") == 20000
    plan = "\n".join(row[0] for row in student.execute("EXPLAIN SELECT * FROM t WHERE plain(x) < 10"))
    assert "t_plain_idx" in plan


def register_softmax(connection: psycopg.Connection) -> None:
    """Register the multiclass model "three" with the forms of a student: logits x, -x and 0."""
    import onnx

    graph = """<ir_version: 8, opset_import: ["": 17]> g (float[N,1] x) => (float[N,3] y) {
        k = Constant <value = float[1,3] {1.0, -1.0, 0.0}> ()
        z = MatMul(x, k)
        y = Softmax <axis = 1> (z)
    }"""
    expression = native.output(native.Sums(['"x"::float', '-"x"::float', "'0'::float"]), "multiclass")
    connection.execute(
        "SELECT distill.register_model('three', %s, features => '{x}', task => 'multiclass', classes => '{a,b,c}')",
        (onnx.parser.parse_model(graph).SerializeToString(),),
    )
    set_expression(connection, "three", expression)


def test_networks_and_classes_serve_indexes_columns_and_parallel_plans(
    student: psycopg.Connection, server: servers.Server
) -> None:
    """Their forms hold sub-selects, so that they are functions of PL/pgSQL."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape) for shape in ((1, 5), (5, 4), (4, 1))]
    biases = [rng.normal(size=n) for n in (5, 4, 1)]
    number = native.Clipped('"x"::float', 'CASE WHEN "x"::float < \'NaN\' THEN "x"::float END', 0.0, 0.0, 1.0)
    network = Perceptron([number], [], [], [], weights, biases, "_")
    set_expression(
        student, "m", native.either(lambda v: native.output(network.sums(vectors=v), "regression"))
    )
    register_softmax(student)
    student.execute(
        "SELECT distill.create_function('m', 'network', as_sql => true), distill.create_function('three', 'proba', as_sql => true)"
    )
    student.execute(
        "ALTER TABLE t ADD COLUMN y float8 GENERATED ALWAYS AS (network(x)) STORED,"
        " ADD COLUMN p float8[] GENERATED ALWAYS AS (proba(x)) STORED"
    )
    student.execute(
        "CREATE INDEX t_network_idx ON t (network(x)); CREATE INDEX t_proba_idx ON t (((proba(x))[2])); ANALYZE t"
    )
    xs, ys, ps = (
        np.array(c, float)
        for c in zip(*student.execute("SELECT x, y, p FROM t ORDER BY i LIMIT 500"), strict=True)
    )
    layer = xs[:, None]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        layer = np.maximum(layer @ weight + bias, 0)
    np.testing.assert_allclose(ys, (layer @ weights[-1] + biases[-1])[:, 0], rtol=1e-6)
    onnx = value(
        student,
        "SELECT array_agg(distill.predict_proba('three', ARRAY[x]) ORDER BY i) FROM (SELECT * FROM t ORDER BY i LIMIT 500) s",
    )
    np.testing.assert_allclose(ps, onnx, atol=1e-6)
    student.execute(
        "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET enable_indexscan = off;"
        "SET enable_bitmapscan = off"
    )
    counted = "SELECT count(*) FROM t WHERE network(x) = y AND proba(x) = p"
    assert "Gather" in "\n".join(row[0] for row in student.execute(f"EXPLAIN {counted}"))  # type: ignore[arg-type]
    assert value(student, counted) == 20000
    student.execute("RESET enable_indexscan; RESET enable_bitmapscan; RESET ALL")
    for condition, index in (("network(x) < -1e9", "t_network_idx"), ("(proba(x))[2] > 0.9", "t_proba_idx")):
        plan = "\n".join(row[0] for row in student.execute(f"EXPLAIN SELECT * FROM t WHERE {condition}"))  # type: ignore[arg-type]
        assert index in plan


def test_a_form_of_release_0_1_0_is_a_function_of_language_sql(student: psycopg.Connection) -> None:
    """Its sub-selects name what could be a column."""
    student.execute("ALTER TABLE t RENAME x TO z0; UPDATE t SET z0 = z0 / 1000")
    set_expression(
        student,
        "m",
        "(SELECT z0 * '2'::float FROM (SELECT \"x\"::float + '1'::float AS z0 OFFSET 0) s)",
    )
    student.execute("SELECT distill.create_function('m', 'plain', as_sql => true)")
    assert value(student, "SELECT l.lanname FROM pg_proc p JOIN pg_language l ON l.oid = prolang WHERE proname = 'plain'") == "sql"  # fmt: skip
    assert value(student, "SELECT count(*) FROM t WHERE plain(z0) = (z0 + 1) * 2") == 20000


def test_sql_form_runs_in_parallel(student: psycopg.Connection, server: servers.Server) -> None:
    student.execute("SELECT distill.create_function('m', 'plain', as_sql => true)")
    student.execute(
        "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0"
    )
    plan = "\n".join(row[0] for row in student.execute("EXPLAIN SELECT sum(plain(x)) FROM t"))
    assert "Gather" in plan
    name = "debug_parallel_query" if server.major >= 16 else "force_parallel_mode"
    for mode in ("off", "on", "regress"):
        student.execute(f"SET {name} = {mode}")
        assert value(student, "SELECT sum(plain(x)) - sum(x + 1) FROM t") == 0
        assert value(student, "SELECT plain(1)") == 2


EXPORTED: list[tuple[str, Task, dict[str, Any]]] = [
    ("linear", "binary", {"bins": 16}),
    ("boosted", "regression", {"rounds": 20, "leaves": 16}),
    ("mlp", "binary", {"hidden": [16, 8], "epochs": 2}),
    ("tree", "multiclass", {"leaves": 32}),
]


@contextlib.contextmanager
def bare_server(server: servers.Server, where: str) -> Iterator[servers.Server]:
    """Give this server, or one of another major version from which pg_distill and PL/Python are taken away."""
    if where == "here":
        yield server
        return
    faults = servers.available()
    others = [
        name for name, major in servers.CONTAINERS.items() if faults[name] is None and major != server.major
    ]
    if not others:
        pytest.skip(f"no server of another major version: {faults}")
    with servers.start(others[0]) as other:
        other.run("find", "/usr", "-path", "*postgresql*", "(", "-name", "pg_distill*", "-o", "-name", "*plpython3*", ")",
                  "!", "-type", "d", "-delete", user="root")  # fmt: skip
        left = (
            "SELECT count(*) FROM pg_available_extensions WHERE name LIKE 'plpython%' OR name = 'pg_distill'"
        )
        assert other.value(left) == 0
        yield other


@pytest.mark.any_server
@pytest.mark.parametrize("where", ["here", "another major version"])
def test_exported_function_needs_no_extension(
    db: psycopg.Connection, server: servers.Server, where: str
) -> None:
    """A database without pg_distill and PL/Python computes what ours does, by a function of each family."""
    frame = edge_rows(rows(200, 2))
    names = [*frame.number_names, *frame.string_names]
    sql = {
        n: native.canonical(quote_identifier(n), "string" if n in frame.string_names else "number")
        for n in names
    }
    for family, task, options in EXPORTED:
        student = make(family, task, **options).fit(transfer(1500, task), transfer(300, task, 1))
        classes = [str(k) for k in range(CLASSES[task])] if task != "regression" else None
        db.execute(
            "SELECT distill.register_model(%s, %s, features => %s, task => %s, classes => %s)",
            (family, student.to_onnx(), names, task, classes),
        )
        set_expression(db, family, student.to_sql(sql))
        db.execute("SELECT distill.create_function(%s, %s, as_sql => true)", (family, f"plain_{family}"))
    sources = [
        value(db, "SELECT pg_get_functiondef(%s::regproc)", f"plain_{family}") for family, *_ in EXPORTED
    ]
    cells = [frame.columns[n] for n in names]
    columns = [c.to_objects().tolist() if isinstance(c, Strings) else [str(v) for v in c] for c in cells]
    sent = json.dumps([dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)])
    declared = ", ".join(
        f"{quote_identifier(n)} {'text' if n in frame.string_names else 'float8'}" for n in names
    )
    arguments = ", ".join(f"{quote_identifier(n)} => {quote_identifier(n)}" for n in names)
    calls = ", ".join(f"plain_{family}({arguments})" for family, *_ in EXPORTED)
    statement = f"SELECT {calls} FROM jsonb_to_recordset(%s::jsonb) AS r({declared})"

    def answers(connection: psycopg.Connection) -> FloatArray:
        found = connection.execute(statement, (sent,)).fetchall()  # type: ignore[arg-type]
        return np.array([[*row[:3], *row[3]] for row in found], float)

    ours = answers(db)
    assert len(ours) == len(frame)
    assert not np.isnan(ours).any()
    with bare_server(server, where) as bare:
        servers.drop_database(bare, "pg_distill_bare")
        with bare.connect() as admin:
            admin.execute(
                "CREATE DATABASE pg_distill_bare TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'"
            )
        try:
            with bare.connect("pg_distill_bare") as empty:
                for source in sources:
                    empty.execute(source)
                np.testing.assert_allclose(answers(empty), ours, rtol=1e-12)
                assert value(empty, "SELECT count(*) FROM pg_language WHERE lanname LIKE 'plpython%'") == 0
        finally:
            servers.drop_database(bare, "pg_distill_bare")


# -- constraints


@pytest.mark.any_server
def test_most_accurate_member_within_both_bounds(student: psycopg.Connection) -> None:
    for number in (2, 3, 4):
        register(student, number)
    student.execute(
        "UPDATE distill.models m SET metric = 'r2', accuracy = a, avg_latency_ms = l, latency_high_ms = l * 1.1"
        " FROM (VALUES ('1', 0.95, 0.8), ('2', 0.90, 0.05), ('3', 0.93, 0.2), ('4', 0.5, 0.01)) v(n, a, l) WHERE m.version = n"
    )
    choose = "SELECT distill.choose_model('m', %s, %s)"
    assert value(student, choose, None, None) == "m:1"
    assert value(student, choose, 0.3, 0.9) == "m:3"
    assert value(student, choose, 0.21, None) == "m:2"  # 0.2 * 1.1 is over it
    assert value(student, choose, 0.3, 0.93) == "m:3"
    assert value(student, choose, 0.02, 0.5) == "m:4"
    assert value(student, "SELECT distill.predict(distill.choose_model('m', 0.3), ARRAY[0])") == 3
    with pytest.raises(errors.ObjectNotInPrerequisiteState) as caught:
        value(student, choose, 0.04, 0.9)
    assert "m:2" in str(caught.value.diag.message_detail)
    assert value(student, "SELECT count(DISTINCT distill.choose_model('m', 0.3)) FROM t") == 1


def test_warm_up_opens_sessions(student: psycopg.Connection) -> None:
    rows = student.execute("SELECT * FROM distill.warm_up(ARRAY['m', 'm:1'])").fetchall()
    assert [row[0] for row in rows] == ["m", "m:1"]
    # What is open already takes less; the least of several, as one may wait for a processor.
    again = [value(student, "SELECT milliseconds FROM distill.warm_up(ARRAY['m:1'])") for _ in range(20)]
    assert rows[0][1] > min(rows[1][1], *again) > 0
