"""Networks as SQL by pgvector: where it is, where it is not, and where it has gone."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import psycopg
import pytest
import servers
from pg_distill.frame import Frame, Strings
from pg_distill.onnx_model.signature import NULL_STRING
from pg_distill.quoting import quote_identifier
from pg_distill.students import expression as native
from psycopg import errors
from sql.conftest import distil, load_survival
from sql.test_serving import set_expression, value
from student_rows import edge_rows, make, rows, transfer

BY_PGVECTOR = "the expression in a query, by pgvector"


@pytest.fixture
def pgvector(db: psycopg.Connection) -> psycopg.Connection:
    """Give a database that has pgvector in a schema of its own."""
    if not db.execute("SELECT FROM pg_available_extensions WHERE name = 'vector'").fetchall():
        pytest.skip("the server has no pgvector")
    db.execute("CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
    return db


def load(connection: psycopg.Connection, frame: Frame) -> str:
    """Make the table ``t`` of the rows; return a call's arguments."""
    kinds = [
        f"{quote_identifier(f.name)} {'text' if f.kind == 'string' else 'float8'}" for f in frame.features
    ]
    connection.execute(f"CREATE TABLE t (i int, {', '.join(kinds)})")
    cells = [frame.columns[f.name] for f in frame.features]
    columns = [c.to_objects().tolist() if isinstance(c, Strings) else c.tolist() for c in cells]
    with connection.cursor().copy("COPY t FROM STDIN") as copy:
        for i, row in enumerate(zip(*columns, strict=True)):
            # Every other NaN is NULL; and the graph's word for NULL means NULL to the graph only.
            copy.write_row((i, *(None if (v != v and i % 2) or v == NULL_STRING else v for v in row)))
    return ", ".join(f"{quote_identifier(f.name)} => {quote_identifier(f.name)}" for f in frame.features)


@pytest.fixture
def network(pgvector: psycopg.Connection) -> tuple[psycopg.Connection, str]:
    """Give a database with the network "m" and rows, and the arguments of a call of its function."""
    student = make("mlp", "binary", hidden=[8, 4], epochs=2)
    student.fit(transfer(1500, "binary"), transfer(300, "binary", 1))
    frame = edge_rows(rows(200, 2))
    names = [f.name for f in frame.features]
    kinds = {f.name: "string" if f.kind == "string" else "number" for f in frame.features}
    pgvector.execute(
        "SELECT distill.register_model('m', %s, features => %s, task => 'binary', classes => '{0,1}')",
        (student.to_onnx(), [*frame.number_names, *frame.string_names]),
    )
    columns = {n: native.canonical(quote_identifier(n), kinds[n]) for n in names}  # type: ignore[arg-type]
    set_expression(pgvector, "m", student.to_sql(columns))
    return pgvector, load(pgvector, frame)


def answers(connection: psycopg.Connection, expression: str) -> Any:
    found = connection.execute(f"SELECT {expression} FROM t ORDER BY i").fetchall()  # type: ignore[arg-type]
    return np.array([row[0] for row in found], float)


def test_both_forms_say_what_predict_says(network: tuple[psycopg.Connection, str]) -> None:
    db, arguments = network
    db.execute(
        "SELECT distill.create_function('m', 'by_default', as_sql => true),"
        " distill.create_function('m', 'plain', as_sql => true, pgvector => false)"
    )
    expected = answers(db, "distill.predict('m', to_jsonb(t))")
    assert not np.isnan(expected).any()
    for text in ("by_default", "plain"):
        np.testing.assert_allclose(answers(db, f"{text}({arguments})"), expected, atol=1e-5)
    for wanted, has_it in ((None, True), (True, True), (False, False)):
        expression = value(db, "SELECT distill.to_sql('m', %s)", wanted)
        assert ("OPERATOR(extensions.<#>)" in expression.replace('"', "")) is has_it
        np.testing.assert_allclose(answers(db, f"({expression})"), expected, atol=1e-5)
    sources = [value(db, "SELECT prosrc FROM pg_proc WHERE proname = %s", n) for n in ("by_default", "plain")]
    assert ["pgvector" in source for source in sources] == [True, False]
    # The path of a session has nothing to do with it.
    db.execute("SET search_path = ''; SELECT 1")
    named = f"SELECT public.by_default({arguments}) FROM public.t ORDER BY i"
    np.testing.assert_allclose([r[0] for r in db.execute(named)], expected, atol=1e-5)  # type: ignore[arg-type]


def test_what_needs_pgvector_says_so_where_it_is_not(
    network: tuple[psycopg.Connection, str], server: servers.Server, database: str
) -> None:
    db, arguments = network
    db.execute(
        "SELECT distill.create_function('m', 'f', as_sql => true),"
        " distill.create_function('m', 'plain', as_sql => true, pgvector => false)"
    )
    expected = answers(db, f"f({arguments})")
    source = value(db, "SELECT pg_get_functiondef('f'::regproc)")
    db.execute("DROP EXTENSION vector")
    with server.connect(database) as fresh:
        with pytest.raises(errors.UndefinedObject):
            answers(fresh, f"f({arguments})")
        # As after a restore, which creates functions unchecked.
        fresh.execute("DROP FUNCTION f; SET check_function_bodies = off")
        fresh.execute(source)
        with pytest.raises(errors.UndefinedObject):
            answers(fresh, f"f({arguments})")
        np.testing.assert_allclose(answers(fresh, f"plain({arguments})"), expected, atol=1e-5)
        expression = value(fresh, "SELECT distill.to_sql('m')")
        np.testing.assert_allclose(answers(fresh, f"({expression})"), expected, atol=1e-5)
        for statement in (
            "SELECT distill.to_sql('m', true)",
            "SELECT distill.create_function('m', 'g', as_sql => true, pgvector => true)",
        ):
            with pytest.raises(errors.ObjectNotInPrerequisiteState):
                fresh.execute(statement)
        # Made anew, it does without.
        fresh.execute("DROP FUNCTION f; SELECT distill.create_function('m', 'f', as_sql => true)")
        np.testing.assert_allclose(answers(fresh, f"f({arguments})"), expected, atol=1e-5)
        # A form that would be too long without pgvector is not there at all.
        only = native.form(value(fresh, "SELECT expression FROM distill.models"), vectors=True)
        set_expression(fresh, "m", f"pgvector:{len(only)}:{only}")
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            fresh.execute("SELECT distill.to_sql('m')")
        with pytest.raises(errors.FeatureNotSupported):
            fresh.execute("SELECT distill.to_sql('m', false)")
        set_expression(fresh, "m", "pgvector:x:" + only)
        with pytest.raises(errors.DataCorrupted):
            fresh.execute("SELECT distill.to_sql('m')")


def test_functions_survive_dump_and_restore(
    network: tuple[psycopg.Connection, str], server: servers.Server, database: str
) -> None:
    db, arguments = network
    db.execute("SELECT distill.create_function('m', 'f', as_sql => true)")
    db.execute(f"CREATE INDEX t_idx ON t (f({arguments}))")  # type: ignore[arg-type]
    expected = answers(db, f"f({arguments})")
    restored = f"{database}_restored"
    with contextlib.suppress(servers.Unavailable):
        connect = ["--host", str(server.directory)] if isinstance(server, servers.Local) else []
        user = [*connect, "--username", "postgres"]
        dump = server.run("pg_dump", *user, database).stdout
        servers.drop_database(server, restored)
        with server.connect() as admin:
            admin.execute(
                f"CREATE DATABASE {restored} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'"
            )  # type: ignore[arg-type]
        try:
            server.run("psql", *user, "--quiet", "-v", "ON_ERROR_STOP=1", restored, stdin=dump)
            with server.connect(restored) as connection:
                np.testing.assert_array_equal(answers(connection, f"f({arguments})"), expected)
                assert value(connection, "SELECT distill.to_sql('m')") == value(
                    db, "SELECT distill.to_sql('m')"
                )
        finally:
            servers.drop_database(server, restored)


def test_nobody_elses_type_is_taken_for_pgvectors(network: tuple[psycopg.Connection, str]) -> None:
    db, _ = network
    db.execute("DROP EXTENSION vector; CREATE TYPE extensions.vector AS (x float8[])")
    assert "extensions" not in value(db, "SELECT distill.to_sql('m')")
    db.execute("DROP TYPE extensions.vector; CREATE EXTENSION vector SCHEMA extensions")
    assert "extensions" in value(db, "SELECT distill.to_sql('m')")


def test_who_may_not_use_it_gets_the_other_form(network: tuple[psycopg.Connection, str], role: Any) -> None:
    db, _ = network
    role("pgvector_less")
    db.execute(
        "GRANT USAGE ON SCHEMA distill TO pgvector_less; GRANT SELECT ON distill.models TO pgvector_less"
    )
    db.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA distill TO pgvector_less")
    db.execute("SET ROLE pgvector_less")
    assert "extensions" not in value(db, "SELECT distill.to_sql('m')")
    db.execute("RESET ROLE; GRANT USAGE ON SCHEMA extensions TO pgvector_less; SET ROLE pgvector_less")
    assert "extensions" in value(db, "SELECT distill.to_sql('m')")
    db.execute("RESET ROLE; REVOKE ALL ON ALL FUNCTIONS IN SCHEMA distill FROM pgvector_less")
    db.execute(
        "REVOKE ALL ON SCHEMA distill, extensions FROM pgvector_less; REVOKE ALL ON distill.models FROM pgvector_less"
    )


def test_the_search_times_networks_by_pgvector(pgvector: psycopg.Connection) -> None:
    load_survival(pgvector)
    distil(pgvector, "survival", "families => '{mlp,sql}', target_latency_ms => 1000")
    forms = pgvector.execute(
        "SELECT run_id, candidate, family, avg_latency_ms < statement_latency_ms,"
        " avg_latency_ms < (SELECT min(avg_latency_ms) FROM distill.candidates WHERE form = 'predict')"
        " FROM distill.candidates WHERE form = 'sql' AND on_frontier ORDER BY avg_latency_ms"
    ).fetchall()
    assert forms
    assert {row[2] for row in forms} <= {"mlp", "blend"}
    assert forms[0][3:] == (True, True)
    pgvector.execute("SELECT distill.promote_candidate(%s, %s)", forms[0][:2])
    registered = (
        "SELECT form, measured_on->>'path' FROM distill.models WHERE name = 'survival_distilled' AND active"
    )
    assert pgvector.execute(registered).fetchone() == ("sql", BY_PGVECTOR)
    expression = value(pgvector, "SELECT distill.to_sql('survival_distilled')")
    assert "extensions" in expression
    worst = "SELECT max(abs(({}) - distill.predict('survival_distilled', to_jsonb(p)))) FROM passengers p"
    assert value(pgvector, worst.format(expression)) <= 1e-5
