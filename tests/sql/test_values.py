"""A SQL value is one value: by every way in, and back again, for every type, at its extremes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
import servers
from conftest import create_database, drop_database
from pg_distill.database.client import PsycopgDatabase
from pg_distill.frame import Column, Feature, Frame, Strings
from pg_distill.rows.canonical import decode_row, json_readers, read_number, rows_sql
from pg_distill.rows.sample import draw_rows
from pg_distill.rows.source import Source, check_columns, resolve_source
from psycopg import errors

DATABASE = "pg_distill_values"
ROWS = 400

# Each column's type and extreme values; NULL is one of every column's. Names as people have them, and some that SQL of ours
# could have for aliases.
COLUMNS: dict[str, tuple[str, list[str]]] = {
    "s": ("smallint", ["-32768", "32767", "0"]),
    "t": ("integer", ["-2147483648", "2147483647", "0", "7"]),
    "u": ("bigint", ["-9007199254740991", "9007199254740991", "0"]),
    "order": (
        "bigint",
        ["9007199254740992", "9007199254740993", "9223372036854775807", "-9223372036854775808", "0"],
    ),
    "rows": (
        "real",
        [
            "0.1",
            "'-0'",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "3.4028235e38",
            "1e-45",
            "123456789",
            "16777217",
        ],
    ),
    "hash": (
        "double precision",
        [
            "0.1",
            "'-0'",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1.7976931348623157e308",
            "5e-324",
            "9007199254740993",
            "0.30000000000000004",
        ],
    ),
    "c0": (
        "numeric",
        ["0.1", "'NaN'", "'Infinity'", "'-Infinity'", "123456789.12345", "-1e300", "1e-300", "2.50"],
    ),
    "label": ("numeric(10,2)", ["-99999999.99", "99999999.99", "0.10"]),
    "Wei": ("numeric(38,0)", ["12345678901234567890123", "12345678901234567890124", "-1", "0"]),
    "features": ("boolean", ["true", "false"]),
    "on": (
        "date",
        [
            "'4714-11-24 BC'",
            "'294276-12-31'",
            "'infinity'",
            "'-infinity'",
            "'1970-01-01'",
            "'2024-02-29'",
            "'0001-01-01'",
        ],
    ),
    "at": (
        "timestamp",
        [
            "'4714-11-24 00:00:00 BC'",
            "'294276-12-31 23:59:59'",
            "'infinity'",
            "'-infinity'",
            "'2026-11-28 10:00:00.123457'",
            "'1969-12-31 23:59:59.999999'",
            "'0044-03-15 12:30:00 BC'",
        ],
    ),
    "At": ("timestamp(0)", ["'2026-11-28 10:00:01'", "'9999-12-31 23:59:59'"]),
    "when": (
        "timestamptz",
        [
            "'4714-11-24 00:00:00+00 BC'",
            "'294276-12-31 23:59:59+00'",
            "'infinity'",
            "'-infinity'",
            "'2026-11-28 10:00:00.5+05:45'",
            "'1883-11-18 12:03:57.999999+00'",
            "'0044-03-15 12:30:00+00 BC'",
        ],
    ),
    "pg_distill hash": (
        "text",
        [
            "''",
            "' '",
            "'NY  '",
            "E'line\\nbreak\\ttab'",
            "E'back\\\\slash'",
            """'it''s "so"'""",
            "'Größe'",
            "'日本語'",
            "'NULL'",
            "'NaN'",
            "E'\\x1f'",
            "'{a,b}'",
            "'$1 %s'",
        ],
    ),
    "pg_distill rows": ("varchar(6)", ["''", "'a  '", "'NY'"]),
    "back\\slash": ("char(4)", ["''", "'NY'", "'W'", "'TEXA'", "' W'"]),
    "c": ('"char"', ["'a'", "''", "'\"'"]),
    'say "hi"': ("name", ["''", "'pg_class'", "'Größe'"]),
    "x": ("uuid", ["'00000000-0000-0000-0000-000000000000'", "'FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF'"]),
    "z0": ("app.mood", ["'sad'", "'o''k'", "'it \"is\"'", "'Größe'"]),
    "h0": ('app."Mood"', ["'sad'", "'ok'"]),
    "l": ("app.price", ["0.00", "12345678.91"]),
    "e": ("app.code", ["'a'", "'abc'"]),
    "o": ("app.code_of_code", ["'a'", "'abc'"]),
    "k": ("app.moment", ["'infinity'", "'2026-11-28 10:00:00.25+00'"]),
    "n": ("app.feeling", ["'sad'", "'o''k'"]),
    "größe": ("app.id", ["9223372036854775807", "9223372036854775806"]),
    "row": ("app.small", ["0.1", "2.5"]),
    "key": ("text", ["'a'", "'A'", "'á'"]),  # citext where the server has it
}

SETUP = """
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'o''k', 'it "is"', 'Größe');
CREATE TYPE app."Mood" AS ENUM ('sad', 'ok');
CREATE DOMAIN app.price AS numeric(10,2) CHECK (VALUE >= 0);
CREATE DOMAIN app.code AS char(3) CHECK (VALUE <> '');
CREATE DOMAIN app.code_of_code AS app.code;
CREATE DOMAIN app.moment AS timestamptz NOT NULL;
CREATE DOMAIN app.feeling AS app.mood;
CREATE DOMAIN app.id AS bigint;
CREATE DOMAIN app.small AS real;
-- Of the names that PostgreSQL shows without a schema: none of these is meant by anybody.
CREATE TYPE public.mood AS ENUM ('wrong');
CREATE DOMAIN public.id AS text;
"""

NEVER_NULL = {"k"}  # of a domain that says so

# What changes how values are shown, and no value.
SETTINGS = (
    {},
    {"TimeZone": "Asia/Kathmandu", "DateStyle": "SQL, DMY", "IntervalStyle": "sql_standard"},
    {
        "TimeZone": "America/St_Johns",
        "DateStyle": "German",
        "extra_float_digits": "3",
        "search_path": "public",
    },
    {"standard_conforming_strings": "off", "bytea_output": "escape", "search_path": "app, public"},
    {"lc_numeric": "C", "search_path": '"$user"', "extra_float_digits": "1", "escape_string_warning": "off"},
)


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.fixture(scope="module")
def every(server: servers.Server, template: str) -> Iterator[None]:
    """Make a database with a table of all types."""
    create_database(server, DATABASE, template)
    with server.connect(DATABASE, autocommit=True) as connection:
        connection.execute(SETUP)
        available = connection.execute("SELECT FROM pg_available_extensions WHERE name = 'citext'").fetchone()
        if available is not None:
            connection.execute("CREATE EXTENSION citext SCHEMA app")
            COLUMNS["key"] = ("app.citext", COLUMNS["key"][1])
        lists = []
        for i, (name, (kind, found)) in enumerate(COLUMNS.items()):
            values = found if name in NEVER_NULL else [*found, "NULL"]
            step = 2 * i + 1  # so that each value meets each other column's
            place = f"1 + (i * {step} + i / {len(values)}) % {len(values)}"
            lists.append(
                f"(ARRAY[{', '.join(f'({v})::{kind}' for v in values)}])[{place}] AS {identifier(name)}"
            )
        connection.execute(
            f"CREATE TABLE app.every AS SELECT i AS id, {', '.join(lists)}, i % 2 = 0 AS y FROM generate_series(1, {ROWS}) i"
        )
    yield
    drop_database(server, DATABASE)


@pytest.fixture
def connect(server: servers.Server, every: None) -> Iterator[Callable[..., psycopg.Connection]]:
    """Give sessions in that database, each with its settings, until the test ends: a server has a hundred in all."""
    opened: list[psycopg.Connection] = []

    def connect(**settings: str) -> psycopg.Connection:
        opened.append(server.connect(DATABASE, autocommit=True))
        for name, value in settings.items():
            opened[-1].execute("SELECT set_config(%s, %s, false)", (name, value))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def source_of(db: PsycopgDatabase) -> tuple[Source, tuple[Feature, ...]]:
    """Give the table, with the columns of integers beyond 2**53 read as registration reads them."""
    source = resolve_source(db, "app.every")
    features = [Feature(name, "string" if name in BEYOND else source.kind(name)) for name in COLUMNS]
    source = source.read_as(features)
    return source, check_columns(source, list(COLUMNS))


BEYOND = {"order", "Wei", "größe"}


def same_bits(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        # JSON has no negative zero, and PostgreSQL takes the two for equal.
        return np.float64(one + 0.0).tobytes() == np.float64(other + 0.0).tobytes() or (
            one != one and other != other
        )
    return bool(one == other)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_json_and_columns_give_the_same_values(
    connect: Callable[..., psycopg.Connection], settings: dict[str, str]
) -> None:
    connection = connect(**settings)
    db = PsycopgDatabase(connection)
    source, features = source_of(db)
    frame, _, extra = draw_rows(db, source, features, label=None, extra=["id"], seed=0, limit=ROWS)
    ids = extra["id"]
    assert not isinstance(ids, Strings)
    rows = dict(
        connection.execute(
            "SELECT id::float8, to_jsonb(t.*)::text FROM app.every t"
        ).fetchall()  # as predict is handed it
    )
    readers = json_readers(features, source.types)
    assert len(frame) == ROWS
    for position, row_id in enumerate(ids.tolist()):
        row = decode_row(rows[row_id])
        for feature in features:
            value = row[feature.name]
            value = readers[feature.name](value) if feature.name in readers else value
            column = frame.columns[feature.name]
            if isinstance(column, Strings):
                expected: Any = column.to_objects()[position]
            else:
                expected, value = float(column[position]), read_number(feature.name, feature.kind, value)
            assert same_bits(value, expected), (feature, row[feature.name], value, expected)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_values_come_back_in_their_own_types(
    connect: Callable[..., psycopg.Connection], settings: dict[str, str]
) -> None:
    connection = connect(**settings)
    db = PsycopgDatabase(connection)
    source, features = source_of(db)
    frame, _, extra = draw_rows(db, source, features, label=None, extra=["id"], seed=0, limit=ROWS)
    ids: Column = extra["id"]
    back = rows_sql(
        (*features, Feature("id", "integer")),
        source.types,
        Frame((*frame.features, Feature("id", "integer")), {**frame.columns, "id": ids}),
    )
    for name in COLUMNS:
        c = identifier(name)
        there = f"t.{c}::{source.types[name]}"  # of a domain the base type
        if source.kind(name) == "number":
            there = f"nullif({there}, 'NaN')"  # which counts as NULL
        wrong = connection.execute(
            f"SELECT b.{c}::text, t.{c}::text FROM {back} b JOIN app.every t USING (id)"  # type: ignore[arg-type]
            f" WHERE b.{c} IS DISTINCT FROM {there}"
        ).fetchall()
        assert wrong == [], name
    shown = resolve_source(db, f"SELECT {', '.join(map(identifier, COLUMNS))} FROM {back} b").types
    assert shown == {name: source.types[name] for name in COLUMNS}


# For each column a number that another value of it, or another type, would change; and the rest, so that the sum is 1.
SHARES = [
    f"(hash_record_extended(ROW({seen}), 0) & 1023)::float8 / 1024 / {len(COLUMNS) + 1}"
    for name, (kind, values) in COLUMNS.items()
    for seen in [
        f"nullif({identifier(name)}, 'NaN')" if "'NaN'" in values and kind != "text" else identifier(name)
    ]
]
EXPRESSION = f"ARRAY[{', '.join(SHARES)}, 1 - ({' + '.join(SHARES)})]"


@pytest.fixture(scope="module")
def teacher(server: servers.Server, every: None) -> Iterator[psycopg.Connection]:
    """Register a SQL teacher that looks at every column closely."""
    connection = server.connect(DATABASE, autocommit=True)
    connection.execute("SET search_path = app, public")
    classes = [*COLUMNS, "the rest"]
    connection.execute(
        "SELECT distill.register_sql_model('closely', %s, %s, 'every', task => 'multiclass', classes => %s)",
        (EXPRESSION, list(COLUMNS), classes),
    )
    yield connection
    connection.close()


def canonical_arrays(connection: psycopg.Connection, model: str) -> str:
    """Give SQL of a row's numbers and strings in order, as a caller writes them."""
    features = connection.execute(
        "SELECT f->>'name', f->>'kind' FROM distill.models, jsonb_array_elements(input_schema->'features') f"
        " WHERE name || ':' || version = %s OR name = %s AND active",
        (model, model),
    ).fetchall()
    numbers = []
    for name, kind in features:
        c = identifier(name)
        if kind == "timestamp":
            numbers.append(f"date_part('epoch', {c})")
        elif kind == "boolean":
            numbers.append(f"{c}::int::float8")
        elif kind != "string":
            numbers.append(f"{c}::float8")
    strings = [f"{identifier(name)}::text" for name, kind in features if kind == "string"]
    return f"ARRAY[{', '.join(numbers)}]::float8[], ARRAY[{', '.join(strings)}]::text[]"


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_sql_teacher_says_what_its_expression_says(
    connect: Callable[..., psycopg.Connection], teacher: psycopg.Connection, settings: dict[str, str]
) -> None:
    truth = np.array(
        [row[0] for row in teacher.execute(f"SELECT {EXPRESSION} FROM app.every ORDER BY id").fetchall()]  # type: ignore[arg-type]
    )
    connection = connect(**settings)
    arrays = canonical_arrays(connection, "closely")
    ways = {
        "jsonb": "distill.predict_proba('closely', to_jsonb(t.*))",
        "arrays": f"distill.predict_proba('closely', {arrays})",
    }
    # One evaluation is a query of its own: some rows say as much as all.
    for way, call in ways.items():
        found = connection.execute(
            f"SELECT id, {call} FROM app.every t WHERE id % 4 = 1 ORDER BY id"
        ).fetchall()  # type: ignore[arg-type]
        got = np.array([row[1] for row in found])
        off = np.abs(got - truth[[row[0] - 1 for row in found]])
        worst = int(off.max(axis=0).argmax())
        assert off.max() < 1e-9, (way, [*COLUMNS, "the rest"][worst])
    scored = dict(
        connection.execute("SELECT * FROM distill.score_class('closely', 'app.every', 'id')").fetchall()
    )
    classes = np.array([*COLUMNS, "the rest"])[truth.argmax(axis=1)]
    assert [scored[str(i + 1)] for i in range(ROWS)] == classes.tolist()


GENTLE = """1 / (1 + exp(-(2 * coalesce((z0 = 'sad')::int, 0) + 2 * coalesce(("back\\slash" = 'NY')::int, 0)
 - coalesce((at > '2000-01-01')::int, 0) + coalesce(("order" > 9007199254740992)::int, 0) - coalesce((rows > 0.05)::int, 0)
 + coalesce((key = 'a')::int, 0) - coalesce(features::int, 0) + coalesce((t > 6)::int, 0) - coalesce((hash > 0.2)::int, 0))))"""


@pytest.fixture(scope="module")
def students(teacher: psycopg.Connection) -> dict[str, str]:
    """Distil a teacher over all columns, and promote a student of each family; names by family."""
    teacher.execute(
        "SELECT distill.register_sql_model('gentle', %s, %s, 'SELECT * FROM app.every', 'y', task => 'binary')",
        (GENTLE, list(COLUMNS)),
    )
    teacher.execute(
        "SELECT distill_model('gentle', metric => 'agreement', min_accuracy => 0, patience => 1, time_budget_s => 8,"
        " families => '{linear,tree,mlp}')"
    )
    found = teacher.execute(
        "SELECT DISTINCT ON (c.family) c.family, distill.promote_candidate(c.run_id, c.candidate)::text"
        " FROM distill.candidates c WHERE c.run_id = distill.last_run('gentle') AND c.form = 'predict' AND NOT c.is_control"
        " AND c.artifact IS NOT NULL AND c.expression IS NOT NULL AND c.family IN ('linear', 'tree', 'mlp')"
    ).fetchall()
    names = {
        family: one(teacher, "SELECT name || ':' || version FROM distill.models WHERE id = %s", student)[0]
        for family, student in found
    }
    assert names
    return names


def one(connection: psycopg.Connection, statement: str, *arguments: Any) -> tuple[Any, ...]:
    row = connection.execute(statement, arguments or None).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row


def test_a_student_says_the_same_in_every_form(
    connect: Callable[..., psycopg.Connection], teacher: psycopg.Connection, students: dict[str, str]
) -> None:
    columns = ", ".join(map(identifier, COLUMNS))
    for family, student in students.items():
        for form in ("predict", "sql"):
            teacher.execute(
                f"SELECT distill.create_function(%s, 'app.{family}_{form}', as_sql => {form == 'sql'})",  # type: ignore[arg-type]
                (student,),
            )
    for settings in SETTINGS:
        connection = connect(**settings)
        for family, student in students.items():
            arrays = canonical_arrays(connection, student)
            [expression] = one(connection, "SELECT distill.to_sql(%s)", student)
            found = np.array(
                connection.execute(
                    f"SELECT distill.predict('{student}', to_jsonb(t.*)), distill.predict('{student}', {arrays}),"  # type: ignore[arg-type]
                    f" b.scored, app.{family}_predict({columns}), app.{family}_sql({columns}), {expression}"
                    f" FROM app.every t JOIN distill.score('{student}', 'app.every', 'id') b(of, scored) ON b.of = t.id::text"
                ).fetchall()
            )
            assert found.shape == (ROWS, 6)
            assert (found[:, [1, 3]] == found[:, :1]).all(), (
                family,
                settings,
            )  # the same graph, a row at a time
            # The same graph in batches, whose sums ONNX Runtime may take in another order: it computes in float32.
            assert np.abs(found[:, 2] - found[:, 0]).max() < 1e-6, (family, settings)
            assert np.abs(found[:, 4:] - found[:, :1]).max() < 1e-5, (family, settings)
            assert found[:, 0].std() > 0.01


def test_the_rows_of_a_run_recompute_its_figures(
    teacher: psycopg.Connection, students: dict[str, str]
) -> None:
    for student in students.values():
        agreement, n = one(
            teacher,
            "SELECT avg((distill.predict_class('gentle', r.row) = distill.predict_class(%s, r.row))::int)::float8, count(*)"
            " FROM distill.run_rows(distill.last_run('gentle')) r WHERE r.split = 'test'",
            student,
        )
        [recorded] = one(
            teacher, "SELECT accuracy FROM distill.models WHERE name || ':' || version = %s", student
        )
        assert n > 10
        assert agreement == pytest.approx(recorded, abs=1e-9)


def test_the_command_line_says_the_same(
    server: servers.Server, teacher: psycopg.Connection, students: dict[str, str]
) -> None:
    student = next(iter(students.values()))
    rows = teacher.execute(
        f"SELECT id, to_jsonb(t.*)::text, distill.predict('{student}', to_jsonb(t.*)) FROM app.every t ORDER BY id LIMIT 40"  # type: ignore[arg-type]
    ).fetchall()

    def run(*arguments: str, given: str = "") -> Any:
        command = [sys.executable, "-m", "pg_distill.cli", "predict", student, *arguments, "--json"]
        done = subprocess.run(
            [*command, "--dsn", server.conninfo(dbname=DATABASE)],
            input=given, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return json.loads(done.stdout)

    asked = run("--row", "-", given="\n".join(row[1] for row in rows))
    assert [row["probabilities"][-1] for row in asked] == [row[2] for row in rows]
    scored = {row["key"]: row["prediction"] for row in run("--query", "app.every", "--key", "id")}
    assert [scored[str(row[0])] for row in rows] == [row[2] for row in rows]


# -- what is refused, and what is said


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("interval '1 day'", 'extract(epoch from "c")'),
        ("time '10:00'", 'extract(epoch from "c")'),
        ("timetz '10:00+01'", 'extract(epoch from "c")'),
        ("ARRAY[1, 2]", '"c"[1]'),
        ("ARRAY['a']::text[]", '"c"[1]'),
        ("'{\"a\": 1}'::json", "->>"),
        ("'{\"a\": 1}'::jsonb", "->>"),
        ("1::money", '"c"::numeric'),
        ("B'101'", '"c"::text'),
        ("B'101'::varbit", '"c"::text'),
        ("'10.0.0.1'::inet", '"c"::text'),
        ("'10.0.0.0/8'::cidr", '"c"::text'),
        ("'08:00:2b:01:02:03'::macaddr", '"c"::text'),
        ("int4range(1, 3)", 'lower("c")'),
        ("int4multirange(int4range(1, 3))", 'lower("c")'),
        ("'<a/>'::xml", '"c"::text'),
        ("to_tsvector('simple', 'a')", "text"),
        ("point(1, 2)", '"c"[0]'),
        ("box(point(1, 2), point(3, 4))", '"c"::text'),
        ("'\\x01'::bytea", "encode"),
        ("ROW(1, 'a')::app.pair", '("c").field'),
        ("ARRAY['sad']::app.mood[]", '"c"[1]'),
        ("'1 day'::app.age", 'extract(epoch from "c")'),
        ("1::oid", '"c"::bigint'),
        ("'pg_class'::regclass", '"c"::text'),
    ],
)
def test_other_types_say_what_to_write(
    connect: Callable[..., psycopg.Connection], value: str, written: str
) -> None:
    connection = connect()
    if one(connection, "SELECT to_regtype('app.pair')")[0] is None:
        connection.execute("CREATE TYPE app.pair AS (a int, b text); CREATE DOMAIN app.age AS interval")
    with pytest.raises(errors.DatatypeMismatch) as refused:
        connection.execute(
            "SELECT distill.register_sql_model('m', '0.5 + x * 0', '{x,c}', %s, task => 'regression')",
            (f"SELECT i::float8 AS x, {value} AS c FROM generate_series(1, 20) i",),
        )
    assert written in (refused.value.diag.message_hint or "")


def test_what_double_precision_does_not_hold_is_refused_by_every_way(
    connect: Callable[..., psycopg.Connection],
) -> None:
    connection = connect()
    connection.execute(
        "SELECT distill.register_sql_model('wide', '0 * coalesce(a, 0)::float8 + coalesce(b, 0) + (d > ''2000-01-01'')::int',"
        " '{a,b,d}', 'SELECT i::numeric AS a, i::bigint AS b, current_date AS d FROM generate_series(1, 50) i',"
        " task => 'regression')"
    )
    for row, expected in (
        ("1e400::numeric AS a, 1::bigint AS b, current_date AS d", errors.NumericValueOutOfRange),
        ("repeat('9', 5000)::numeric AS a, 1::bigint AS b, current_date AS d", errors.NumericValueOutOfRange),
        ("1e-400::numeric AS a, 1::bigint AS b, current_date AS d", errors.NumericValueOutOfRange),
        ("1::numeric AS a, 9007199254740993::bigint AS b, current_date AS d", errors.DataException),
        ("1::numeric AS a, 1::bigint AS b, '5874897-12-31'::date AS d", errors.DataError),
    ):
        for call in (
            f"SELECT distill.predict('wide', to_jsonb(r.*)) FROM (SELECT {row}) r",
            "SELECT * FROM distill.score('wide', $${row}$$, 'id')".format(row=f"SELECT 1 AS id, {row}"),
            f"SELECT distill.predict('wide', ARRAY[a, b, date_part('epoch', d)]::float8[]) FROM (SELECT {row}) r",
        ):
            with pytest.raises(expected):
                connection.execute(call)  # type: ignore[arg-type]
    # A column that is no feature may hold what it likes.
    assert one(
        connection,
        "SELECT distill.predict('wide', to_jsonb(r.*)) FROM"
        " (SELECT 1::numeric AS a, 9007199254740991::bigint AS b, current_date AS d, repeat('9', 5000)::numeric AS other) r",
    ) == (9007199254740992,)


def test_rounded_json_is_refused(
    connect: Callable[..., psycopg.Connection], students: dict[str, str]
) -> None:
    call = (
        f"SELECT distill.predict('{next(iter(students.values()))}', to_jsonb(t.*)) FROM app.every t LIMIT 1"
    )
    for digits in ("-15", "0"):
        connection = connect(extra_float_digits=digits)
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            connection.execute(call)  # type: ignore[arg-type]
        connection.execute("SET extra_float_digits = 1")
        connection.execute(call)  # type: ignore[arg-type]


def test_microseconds_that_are_lost_are_said(connect: Callable[..., psycopg.Connection]) -> None:
    connection = connect()
    said: list[str] = []
    connection.add_notice_handler(lambda d: said.append(d.message_primary or ""))
    for last, lost in (("9999-12-31 23:59:59", False), ("9999-12-31 23:59:59.999999", True)):
        said.clear()
        connection.execute(
            "SELECT distill.register_sql_model('until', 'extract(year from last)', '{last}',"  # type: ignore[arg-type]
            f" 'SELECT ''{last}''::timestamp AS last FROM generate_series(1, 20)', task => 'regression')"
        )
        assert any("microseconds" in text for text in said) == lost


def test_a_large_text_is_one_value(connect: Callable[..., psycopg.Connection]) -> None:
    connection = connect()
    connection.execute(
        "CREATE TABLE app.long AS SELECT i AS id, repeat(chr(97 + i % 2) || '\\\"', 300000) || i % 2 AS words, i % 2 AS y"
        " FROM generate_series(1, 30) i"
    )
    expression = "CASE WHEN right(words, 1) = '1' AND length(words) = 900001 THEN 0.9 ELSE 0.1 END"
    connection.execute(
        "SELECT distill.register_sql_model('long', %s, '{words}', 'app.long', 'y', classes => '{0,1}')",
        (expression,),
    )
    found = connection.execute(
        f"SELECT {expression}, distill.predict('long', to_jsonb(t.*)), distill.predict('long', '{{}}', ARRAY[words]), s.prediction"  # type: ignore[arg-type]
        " FROM app.long t JOIN distill.score('long', 'app.long', 'id') s ON s.key = t.id::text"
    ).fetchall()
    assert len(found) == 30
    assert all(len(set(map(float, row))) == 1 for row in found)
    assert {float(row[0]) for row in found} == {0.1, 0.9}
