"""A student of texts in plain SQL: as one expression, as a function with its table of n-grams, as a script for another server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import servers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pg_distill.frame import Task
from pg_distill.onnx_model.tokens import WANTED
from pg_distill.quoting import quote_literal
from psycopg import errors
from sql.conftest import value
from sql.test_serving import set_expression
from student_rows import CLASSES, make, unsure
from text_rows import SPECIAL, texts, tickets

COLUMNS = ("title", "shop", "body", "x")
NAMES = ["x", "shop", "title", "body"]
"""In the order of the file's inputs: numbers, strings, texts."""
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")
AWKWARD = [
    *SPECIAL,
    None,
    "",
    "a b " * 250_000,
    "東京" * 20_000,
    "x" * 1_000_000,
    "good " + "y" * 5_000,
    "It's \\ 'good' $$ not bad!",
]
Row = tuple[float | None, str | None, str | None, str | None]


@cache
def trained(task: Task, seed: int = 0) -> tuple[bytes, str]:
    """Return the file and the SQL of a linear student of two texts, a category and a number, as a search stores them."""
    student = make("linear", task, bins=0, epochs=3)
    student.fit(tickets(400, task, seed, columns=COLUMNS), tickets(100, task, seed + 1, columns=COLUMNS))
    student.calibrate(unsure(tickets(100, task, seed + 1, columns=COLUMNS)))
    return student.to_onnx(), student.to_sql()


def register(
    db: psycopg.Connection, name: str, task: Task, artifact: bytes, expression: str, version: str = "1"
) -> None:
    classes = [str(k) for k in range(CLASSES[task])] if task != "regression" else None
    db.execute(
        "SELECT distill.register_model(%s, %s, features => %s, task => %s, classes => %s, version => %s)",
        (name, artifact, NAMES, task, classes, version),
    )
    set_expression(db, name, expression)


@pytest.fixture(scope="module")
def students(server: servers.Server, template: str) -> Iterator[psycopg.Connection]:
    """A database with a student of each task and its function, which tests only read."""
    servers.create_database(server, "text_functions", template)
    with server.connect("text_functions", autocommit=True) as connection:
        for task in TASKS:
            register(connection, task, task, *trained(task))
            connection.execute("SELECT distill.create_function(%s, %s, as_sql => true)", (task, f"of_{task}"))
        yield connection
    servers.drop_database(server, "text_functions")


def sent(rows: list[Row]) -> str:
    return json.dumps([dict(zip(NAMES, row, strict=True)) for row in rows])


READ = (
    "FROM ROWS FROM (jsonb_to_recordset(%s::jsonb) AS (x double precision, shop text, title text, body text))"
    " WITH ORDINALITY AS r(x, shop, title, body, i) ORDER BY i"
)


def answers(connection: psycopg.Connection, what: str, rows: list[Row]) -> Any:
    return np.array([r[0] for r in connection.execute(f"SELECT {what} {READ}", (sent(rows),))], float)  # type: ignore[arg-type]


def predicted(connection: psycopg.Connection, task: Task, rows: list[Row]) -> Any:
    function = "predict_proba" if task == "multiclass" else "predict"
    return answers(connection, f"distill.{function}('{task}', ARRAY[x], ARRAY[shop, title, body])", rows)


def rows_of(bodies: list[str | None]) -> list[Row]:
    shops = ("north", "south", None, "nowhere")
    x = (0.5, None, -1e300, 1.0, float("1e-300"))
    return [(x[i % 5], shops[i % 4], bodies[-1 - i], body) for i, body in enumerate(bodies)]


def quick_rows() -> list[Row]:
    data = tickets(60, "binary", 9, columns=COLUMNS).frame
    columns = [data.columns["x"].tolist(), *(data.columns[n].to_objects().tolist() for n in NAMES[1:])]  # type: ignore[union-attr]
    return [*zip(*columns, strict=True)]


@pytest.mark.every_server
@pytest.mark.parametrize("task", TASKS)
def test_the_function_answers_as_predict(students: psycopg.Connection, task: Task) -> None:
    rows = [*quick_rows(), *rows_of(AWKWARD)]
    expected = predicted(students, task, rows)
    assert np.ptp(expected) > 0.1
    found = answers(students, f"of_{task}(title => title, shop => shop, body => body, x => x)", rows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("task", TASKS)
def test_the_expression_answers_as_predict(students: psycopg.Connection, task: Task) -> None:
    rows = [*quick_rows(), *rows_of(AWKWARD)]
    expression = value(students, "SELECT distill.to_sql(%s)", task)
    found = answers(students, expression.replace("%", "%%"), rows)
    expected = predicted(students, task, rows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * max(1.0, np.abs(expected).max()))


@given(bodies=st.lists(st.one_of(st.none(), texts()), min_size=20, max_size=40))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_texts_are_answered_as_by_predict(
    students: psycopg.Connection, bodies: list[str | None]
) -> None:
    rows = rows_of(bodies)
    found = answers(students, "of_binary(x, shop, title, body)", rows)
    np.testing.assert_allclose(found, predicted(students, "binary", rows), rtol=0, atol=1e-6)


def test_a_session_changes_nothing(students: psycopg.Connection, server: servers.Server) -> None:
    """No search_path, no collation and no setting does; nor does what stands in front of pg_catalog."""
    rows = [*quick_rows(), *rows_of([*SPECIAL])]
    expected = answers(students, "of_binary(x, shop, title, body)", rows)
    with server.connect("text_functions", autocommit=True) as other:
        other.execute(
            "SET standard_conforming_strings = off; SET escape_string_warning = off; SET enable_indexscan = off"
        )
        other.execute(
            "CREATE SCHEMA mine; CREATE FUNCTION mine.lower(text) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$"
        )
        for name, kind in (("=", "text"), ("*", "float8"), ("+", "int4")):
            answer = {"text": "false", "float8": "0::float8", "int4": "0"}[kind]
            result = {"text": "boolean"}.get(kind, kind)
            other.execute(
                f"CREATE FUNCTION mine.f({kind}, {kind}) RETURNS {result} LANGUAGE sql AS $$ SELECT {answer} $$"
            )
            other.execute(
                f"CREATE OPERATOR mine.{name} (LEFTARG = {kind}, RIGHTARG = {kind}, FUNCTION = mine.f)"
            )
        other.execute("CREATE TYPE mine.float8 AS (a int); SET search_path = mine, pg_catalog")
        found = other.execute(
            f"SELECT public.of_binary(x, shop, title, body) {READ}",
            (sent(rows),),  # type: ignore[arg-type]
        ).fetchall()
        other.execute("DROP SCHEMA mine CASCADE")
    assert [r[0] for r in found] == expected.tolist()
    students.execute(
        "CREATE COLLATION IF NOT EXISTS loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false)"
    )
    loose = answers(students, "of_binary(x, shop, title COLLATE loose, body COLLATE loose)", rows)
    assert loose.tolist() == expected.tolist()


NUL_LIKE = [
    "\\u0000",
    "\\x00",
    "\\0",
    "%00",
    "&#0;",
    "\u2400",
    "\\\\u0000 good",
    "\x01\x1f\x7f",
    "\ufffd",
    "\ufeffgood",
]


def test_what_looks_like_nul_is_text(students: psycopg.Connection) -> None:
    """Escapes in a text are characters like any other, on every way; NUL itself PostgreSQL does not let in."""
    for body in NUL_LIKE:
        row = {"x": 0.5, "shop": "north", "title": "good", "body": body}
        typed = "jsonb_build_object('x', 0.5, 'shop', 'north', 'title', 'good', 'body', %s::text)"
        query = f"SELECT 1 AS id, 0.5::float8 AS x, 'north' AS shop, 'good' AS title, {quote_literal(body)}::text AS body"
        found = [
            value(students, statement, argument)
            for statement, argument in (
                ("SELECT distill.predict('binary', ARRAY[0.5], ARRAY['north', 'good', %s])", body),
                (f"SELECT distill.predict('binary', {typed})", body),
                ("SELECT distill.predict('binary', %s::jsonb)", json.dumps(row)),
                ("SELECT prediction FROM distill.score('binary', %s, 'id')", query),
                ("SELECT of_binary(0.5, 'north', 'good', %s)", body),
            )
        ]
        np.testing.assert_allclose(found, found[0], rtol=0, atol=1e-6)
    for argument in ('{"x": 0.5, "body": "\\u0000"}', '{"x": 0.5, "body": "\\ud800"}'):
        with pytest.raises((errors.UntranslatableCharacter, errors.InvalidTextRepresentation)):
            value(students, "SELECT distill.predict('binary', %s::jsonb)", argument)


def test_a_text_is_no_vector(students: psycopg.Connection) -> None:
    for call in (
        "ARRAY[0.5], ARRAY['north', 'good', 'good'], ARRAY[1, 2]::real[]",
        "ARRAY[0.5, 1, 2], ARRAY['north', 'good']",
        """'{"x": 0.5, "shop": "north", "title": "good", "body": [1, 2]}'::jsonb""",
    ):
        with pytest.raises((errors.DataException, errors.DatatypeMismatch)) as refused:
            students.execute(f"SELECT distill.predict('binary', {call})")
        assert refused.value.sqlstate in ("22000", "42804"), call


@pytest.mark.every_server
def test_what_it_is(students: psycopg.Connection) -> None:
    """STABLE, because it reads a table; safe in parallel workers; the table is nobody's but its owner's to write."""
    [row] = students.execute(
        "SELECT provolatile, proparallel, prosecdef FROM pg_proc WHERE proname = 'of_binary'"
    ).fetchall()
    assert row == ("s", "s", False)
    assert value(students, "SELECT count(*) FROM of_binary_ngrams WHERE part = 1 AND ngram = 'good'") == 1
    for right, has in (("SELECT", True), ("UPDATE", False), ("DELETE", False), ("INSERT", False)):
        assert (
            value(students, "SELECT has_table_privilege('pg_monitor', 'of_binary_ngrams', %s)", right) is has
        )


def test_a_script_runs_on_a_server_without_extensions(
    students: psycopg.Connection, server: servers.Server
) -> None:
    rows = [*quick_rows(), *rows_of(AWKWARD)]
    servers.drop_database(server, "plain")
    try:
        students.execute("CREATE DATABASE plain TEMPLATE template0 ENCODING 'UTF8'")
        with server.connect("plain", autocommit=True) as plain:
            plain.execute('DROP EXTENSION IF EXISTS plpython3u; CREATE SCHEMA "it\'s"')
            for task in TASKS:
                script = value(
                    students, "SELECT distill.to_sql(%s, function_name => %s)", task, f'"it\'s"."F {task}"'
                )
                plain.execute(script)
                found = answers(plain, f'"it\'s"."F {task}"(x, shop, title, body)', rows)
                expected = answers(students, f"of_{task}(x, shop, title, body)", rows)
                assert found.tolist() == expected.tolist()
    finally:
        servers.drop_database(server, "plain")


def test_a_script_refuses_another_encoding(students: psycopg.Connection, server: servers.Server) -> None:
    script = value(students, "SELECT distill.to_sql('binary', function_name => 'public.f')")
    servers.drop_database(server, "latin")
    try:
        students.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        with server.connect("latin", autocommit=True) as latin:
            latin.execute("SET client_encoding = 'UTF8'")
            with pytest.raises(errors.FeatureNotSupported):
                latin.execute(script[: script.index("CREATE TABLE")])
    finally:
        servers.drop_database(server, "latin")


@pytest.fixture
def one_student(db: psycopg.Connection) -> psycopg.Connection:
    register(db, "m", "binary", *trained("binary"))
    return db


CALL = "SELECT f(0.1, 'north', 'good', 'not good')"


def test_function_and_table_are_dropped_with_the_model(one_student: psycopg.Connection) -> None:
    db = one_student
    db.execute("SELECT distill.create_function('m', 'f', as_sql => true)")
    db.execute("CREATE VIEW weights AS SELECT * FROM f_ngrams")
    with pytest.raises(errors.DependentObjectsStillExist):
        db.execute("SELECT distill.drop_model('m')")
    db.execute("DROP VIEW weights; SELECT distill.drop_model('m')")
    assert value(db, "SELECT to_regclass('f_ngrams') IS NULL AND to_regproc('f') IS NULL")


def test_nobodys_view_keeps_a_model(one_student: psycopg.Connection) -> None:
    db = one_student
    db.execute("SELECT distill.create_function('m', 'f', as_sql => true)")
    db.execute(
        "DROP ROLE IF EXISTS text_guest; CREATE ROLE text_guest; CREATE SCHEMA guest AUTHORIZATION text_guest"
    )
    db.execute("SET ROLE text_guest; CREATE VIEW guest.v AS SELECT * FROM public.f_ngrams; RESET ROLE")
    db.execute("SELECT distill.drop_model('m')")
    assert value(db, "SELECT to_regclass('f_ngrams') IS NOT NULL AND to_regproc('f') IS NOT NULL")
    db.execute("DROP OWNED BY text_guest; DROP ROLE text_guest")


def test_replacing_follows_the_student_and_keeps_grants(one_student: psycopg.Connection) -> None:
    db = one_student
    db.execute("SELECT distill.create_function('m', 'f', as_sql => true)")
    before = value(db, CALL)
    with pytest.raises(errors.DuplicateTable):
        db.execute("SELECT distill.create_function('m', 'f', as_sql => true)")
    db.execute("REVOKE EXECUTE ON FUNCTION f FROM PUBLIC; GRANT EXECUTE ON FUNCTION f TO pg_monitor")
    register(db, "other", "binary", *trained("binary", 7))
    db.execute("SELECT distill.create_function('other', 'f', as_sql => true, replace => true)")
    assert value(db, CALL) != before
    for role, may in (("pg_monitor", True), ("pg_read_all_settings", False)):
        assert value(db, "SELECT has_table_privilege(%s, 'f_ngrams', 'SELECT')", role) is may
    # As predict: the table has no use any more.
    db.execute("SELECT distill.create_function('m', 'f', replace => true)")
    assert value(db, "SELECT to_regclass('f_ngrams') IS NULL")
    # A function that was dropped by hand leaves a table, which the next one takes the place of.
    db.execute("SELECT distill.create_function('m', 'f', as_sql => true, replace => true); DROP FUNCTION f")
    db.execute("SELECT distill.create_function('m', 'f', as_sql => true, replace => true)")
    assert value(db, CALL) is not None


def test_another_table_is_no_vocabulary(one_student: psycopg.Connection) -> None:
    """A table that lost its rows, or has those of another student, is an error and no wrong answer."""
    db = one_student
    db.execute("SELECT distill.create_function('m', 'f', as_sql => true)")
    db.execute("CREATE TABLE kept AS SELECT * FROM f_ngrams")
    for change in (
        "DELETE FROM f_ngrams",
        "UPDATE f_ngrams SET part = part + 2",
        "DELETE FROM f_ngrams WHERE ngram LIKE ' %' AND part = 0",
    ):
        db.execute(change)
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            db.execute(CALL)
        db.execute("TRUNCATE f_ngrams; INSERT INTO f_ngrams SELECT * FROM kept")
        assert value(db, CALL) is not None


def test_names_are_refused_that_are_taken_or_too_long(one_student: psycopg.Connection) -> None:
    db = one_student
    with pytest.raises(errors.InvalidName):
        db.execute(f"SELECT distill.create_function('m', '{'f' * 60}', as_sql => true)")
    db.execute("CREATE TABLE f_ngrams (a int)")
    for replace in ("false", "true"):  # which nobody of ours made
        with pytest.raises(errors.DuplicateTable):
            db.execute(f"SELECT distill.create_function('m', 'f', as_sql => true, replace => {replace})")
    with pytest.raises((errors.FeatureNotSupported, errors.ObjectNotInPrerequisiteState)):
        db.execute("SELECT distill.create_function('m', 'g', as_sql => true, pgvector => true)")


def test_words_are_no_sql(db: psycopg.Connection) -> None:
    """Words that a text could plant in a vocabulary, and a file that was written by hand."""
    words = [
        "x');drop",
        "$$",
        "$1",
        "\\",
        "\\'",
        "{",
        '"',
        "'",
        "%s",
        "a" * 9000,
        "\\u0000",
        "ﷺ",
        "\U0010ffff",
    ]
    student = make("linear", "regression", bins=0, epochs=2)
    student.fit(
        tickets(400, "regression", 3, columns=COLUMNS), tickets(100, "regression", 4, columns=COLUMNS)
    )
    body = next(text for text in student.texts_ if text.name == "body")
    forms = tuple((w.translate({ord(c): "\x1e" for c in " \t\n'\"\\.,;:!?()[]{}$%"}) or "q",) for w in words)
    own = [(w,) for w in words]
    from pg_distill.onnx_model.tokens import Tokeniser

    first = tuple(dict.fromkeys([*own, *forms]))[: len(body.tokeniser.words)]
    rest = [w for w in body.tokeniser.words if w not in first][: len(body.tokeniser.words) - len(first)]
    body.tokeniser = Tokeniser((*first, *rest), body.tokeniser.marks, body.tokeniser.pairs)
    body.finish()
    register(db, "m", "regression", student.to_onnx(), student.to_sql())
    db.execute("SELECT distill.create_function('m', 'f', as_sql => true)")
    assert value(db, "SELECT count(*) FROM f_ngrams WHERE part = 1 AND ngram = ANY (%s)", words) == len(words)
    expression = value(db, "SELECT distill.to_sql('m')").replace("%", "%%")
    for text in [*words, " ".join(words), *(form for (form,) in forms)]:
        row = [(0.0, "north", text, text)]
        expected = answers(db, "distill.predict('m', ARRAY[x], ARRAY[shop, title, body])", row)
        for what in ("f(x, shop, title, body)", expression):
            np.testing.assert_allclose(answers(db, what, row), expected, atol=1e-6)


def test_a_foreign_expression_does_not_fit(one_student: psycopg.Connection) -> None:
    db = one_student
    set_expression(db, "m", trained("binary", 7)[1])
    for call in (
        "to_sql('m')",
        "to_sql('m', function_name => 'f')",
        "create_function('m', 'f', as_sql => true)",
    ):
        with pytest.raises(errors.DataCorrupted):
            db.execute(f"SELECT distill.{call}")
    assert value(db, "SELECT to_regclass('f_ngrams') IS NULL")


def test_without_plpgsql_it_is_sql(one_student: psycopg.Connection) -> None:
    db = one_student
    db.execute("SELECT distill.create_function('m', 'g', as_sql => true)")
    expected = value(db, CALL.replace("f(", "g("))
    db.execute("UPDATE pg_language SET lanname = 'plpgsql_hidden' WHERE lanname = 'plpgsql'")
    try:
        db.execute("SELECT distill.create_function('m', 'f', as_sql => true)")
    finally:
        db.execute("UPDATE pg_language SET lanname = 'plpgsql' WHERE lanname = 'plpgsql_hidden'")
    assert (
        value(db, "SELECT lanname FROM pg_proc p JOIN pg_language l ON l.oid = prolang WHERE proname = 'f'")
        == "sql"
    )
    assert value(db, CALL) == expected


def test_a_model_card_says_what_text_the_file_wants(
    students: psycopg.Connection, server: servers.Server, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pg_distill.cli", "export", "multiclass", "--to", str(tmp_path)]
    command += ["--dsn", server.conninfo(dbname="text_functions")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "multiclass-1.md").read_text()
    assert WANTED["python"] in card
    assert str(WANTED["characters"]) in card
    # The expression that it wrote is the student.
    [expression] = [path.read_text() for path in tmp_path.glob("*.sql")]
    rows = quick_rows()[:10]
    found = answers(students, expression.replace("%", "%%"), rows)
    np.testing.assert_allclose(found, predicted(students, "multiclass", rows), atol=1e-6)
