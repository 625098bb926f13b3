"""Hostile text through every argument of every function: nothing is injected, and every error has a SQLSTATE of its own."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sql.test_cascade import sigmoid

# Each would change the canary, or break a statement, where it is put into SQL text unquoted.
HOSTILE = (
    "'; UPDATE canary SET n = 1; --",
    '"; UPDATE canary SET n = 1; --',
    "cancer'); DROP TABLE canary; --",
    "$$; DROP TABLE canary; $$",
    "\\'; UPDATE canary SET n = 1; --",
    "SELECT * FROM cancer) s; UPDATE canary SET n = 1; SELECT 1 FROM (SELECT 1",
    "SELECT strike() FROM cancer",
    "strike()",
    "1 + strike()",
    "cancer; CREATE ROLE injected SUPERUSER",
    '{"x0": "\'; UPDATE canary SET n = 1; --"}',
    "x" * 63 + "'; UPDATE canary SET n = 1; --",
    "é" * 32,
    "%s %(x)s {0} $1 %",
    "\\000 \\x00 \\u0000 %00",
    "\u02bc; UPDATE canary SET n = 1; --",  # modifier letter apostrophe
    "\uff07; UPDATE canary SET n = 1; --",  # fullwidth apostrophe
    "\u202ecancer\u200b",
    "саncer",  # in Cyrillic letters
    "\r\n\t\x01",
    "cancer:1'; UPDATE canary SET n = 1; --",
    "/etc/passwd",
    "",
)
NUMBERS = ("NaN", "Infinity", "-Infinity", "0", "-1", "2147483647")
# What a hostile call is otherwise made of: arguments that are as good as can be, so that it reaches deep.
GOOD: dict[str, Any] = {
    "sample": "cancer",
    "query": "cancer",
    "label": "malignant",
    "model": "cancer",
    "teacher": "cancer",
    "features": ["x0"],
    "outputs": ["x5"],
    "classes": ["0", "1"],
    "families": ["linear"],
    "task": "binary",
    "expression": "x0 / 100.0",
    "models": ["cancer"],
    "key_column": "x0",
    "function_name": "made",
    "metric": "accuracy",
    "artifact": sigmoid(1.0),
    "time_budget_s": 0.01,  # of a distillation that gets as far as that
    "max_rows": 200,
}
# A model that the session would find beside the registered ones.
OFFERED: dict[str, Any] = {
    "names": ["\x1foffered"],
    "artifacts": [sigmoid(1.0)],
    "schemas": json.dumps(
        [
            (
                {
                    "features": [{"name": "x", "kind": "number", "null": "nan"}],
                    "inputs": [
                        {"name": "x", "element": "float32", "rank": 2, "features": [0], "batch": None}
                    ],
                },
                {
                    "name": "y",
                    "form": "probabilities",
                    "width": 2,
                    "element": "float32",
                    "task": "binary",
                    "classes": ["no", "yes"],
                },
            )
        ]
    ),
    "cascades": "{}",
}
# What the server keeps of an array, but of sizes that it has not: read out of bounds, or a fault.
ARRAYS = tuple(
    struct.pack("<7i", dimensions, 0, 701, rows, columns, 1, 1) + bytes(8)
    for dimensions, rows, columns in (
        (2, -1, 1),
        (2, 1, 2**31 - 1),
        (2, 2**30, 2**30),
        (2, 1, 2),
        (3, 1, 1),
        (-1, 0, 0),
    )
)
SECONDS = {"distill.register_model": 5, "distill._offer_models": 5}  # they start a child
TEXT_TYPES = ("text", "text[]", "jsonb", "bytea")
# A fault of ours, or an error that nobody gave a SQLSTATE; what is not ours to raise has its own.
WITHOUT_SQLSTATE = ("38000", "XX000", None)


@pytest.fixture(scope="module")
def victim(shared: Callable[[], psycopg.Connection]) -> Iterator[psycopg.Connection]:
    connection = shared()
    connection.execute(
        "CREATE TABLE canary AS SELECT 0 AS n;"
        "CREATE FUNCTION strike() RETURNS float8 LANGUAGE sql AS 'UPDATE canary SET n = 1 RETURNING n::float8'"
    )
    yield connection
    connection.execute("DROP FUNCTION strike(); DROP TABLE IF EXISTS canary")


def signatures(connection: psycopg.Connection) -> list[tuple[str, list[str], list[str]]]:
    """Return every function of the extension, with the names and types of its arguments."""
    return connection.execute(
        "SELECT p.oid::regproc::text, coalesce(p.proargnames[1:p.pronargs], '{}'),"
        " ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY u(t, o) ORDER BY o)"
        " FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'"
        " JOIN pg_extension e ON e.oid = d.refobjid WHERE e.extname = 'pg_distill'"
        " AND p.prorettype <> 'trigger'::regtype ORDER BY 1, 3"
    ).fetchall()


def good(name: str, kind: str) -> Any:
    if name in OFFERED:
        return OFFERED[name]
    if kind == "double precision[]":
        return [1.0] * 30
    if kind == "jsonb":
        return json.dumps({f"x{i}": 1 for i in range(30)})
    if kind == "bytea" and name not in ("artifact", "tokenizer"):
        return b"\0" * 40
    if kind == "uuid":
        return "00000000-0000-0000-0000-000000000000"
    if name in ("features", "outputs", "classes", "models", "families") and kind != "text[]":
        return None
    if name == "name" or name == "version":
        return "hostile"
    if name == "strings":
        return []
    return GOOD.get(
        name,
        False
        if kind == "boolean"
        else 1
        if kind in ("integer", "bigint")
        else 1.0
        if kind == "double precision"
        else None,
    )


def attacks(kind: str) -> Iterator[Any]:
    if kind in ("text", "bytea"):
        yield from (value.encode() if kind == "bytea" else value for value in HOSTILE)
        yield from ARRAYS if kind == "bytea" else ()
    elif kind == "bytea[]":
        yield from ([value.encode()] for value in HOSTILE[:2])
        yield [None]
        yield []
    elif kind == "text[]":
        yield from ([value] for value in HOSTILE)
        yield [HOSTILE[0], None]
        yield [[HOSTILE[0]]]
    elif kind == "jsonb":
        yield from (json.dumps({value: value}) for value in HOSTILE)
        yield from (json.dumps({f"x{i}": value for i in range(30)}) for value in HOSTILE)
        yield from ("[]", "null", '"x"', "1e400", "{}")
    elif kind == "double precision[]":
        yield from ([float(value)] * 30 for value in NUMBERS)
        yield from ([], [[1.0] * 30], [None] * 30)
    elif kind == "double precision":
        yield from map(float, NUMBERS)
    elif kind in ("integer", "bigint"):
        yield from (0, -1, 2**31 - 1)
    yield None


def test_nothing_is_injected(victim: psycopg.Connection) -> None:
    before = victim.execute(
        "SELECT count(*), md5(string_agg(rolname, ',' ORDER BY oid)) FROM pg_roles"
    ).fetchone()
    tried = 0
    wrong: list[str] = []
    outcomes: dict[str, set[str | None]] = {}
    for function, names, kinds in signatures(victim):
        for position, kind in enumerate(kinds):
            # Deep calls of the one function that trains cost seconds: there hostile texts only.
            training = function == "distill_model"
            for value in attacks(kind) if kind in TEXT_TYPES or not training else ():
                arguments = [good(n, k) for n, k in zip(names, kinds, strict=True)]
                if function == "distill.register_model" and names[position] not in ("sample", "label"):
                    # Without rows to be timed on, which takes longer than there is time for.
                    arguments[names.index("sample")] = arguments[names.index("label")] = None
                arguments[position] = value
                if training and value is None:
                    continue
                call = sql.SQL("SELECT * FROM {}({})").format(
                    sql.SQL(function), sql.SQL(", ").join(sql.SQL("%s::" + k) for k in kinds)
                )
                tried += 1
                outcome = None
                try:
                    with victim.transaction(force_rollback=True):
                        victim.execute(f"SET LOCAL statement_timeout = '{SECONDS.get(function, 1)}s'")
                        victim.execute(call, arguments)
                        struck = victim.execute("SELECT n FROM canary").fetchone()
                except psycopg.Error as error:
                    # Read-only: what the caller's own text did, it did not do.
                    struck = (0,)
                    outcome = error.sqlstate
                    if error.sqlstate in WITHOUT_SQLSTATE:
                        wrong.append(
                            f"{function} {names[position]} {value!r}: {error.sqlstate} {error}"[:400]
                        )
                outcomes.setdefault(function, set()).add(outcome)
                if struck != (0,):
                    wrong.append(f"{function} {names[position]} {value!r}: canary changed")
    print(f"{tried} hostile calls")
    assert wrong == []
    assert tried > 800
    # A function that only ever ran out of time has not been tried.
    assert [function for function, found in outcomes.items() if found <= {"57014"}] == []
    # The other arguments are good enough to reach the end, or the child that checks a file.
    for function, reached in (("distill._offer_models", "22P03"), ("distill.register_model", None)):
        assert reached in outcomes[function], (function, outcomes[function])
    assert victim.execute("SELECT n FROM canary").fetchall() == [(0,)]
    after = victim.execute(
        "SELECT count(*), md5(string_agg(rolname, ',' ORDER BY oid)) FROM pg_roles"
    ).fetchone()
    assert after == before
