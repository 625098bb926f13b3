"""Trees in SQL as code and as data: what each form takes to plan and to evaluate.

Balanced trees of 16 leaves over 20 columns of float8, thresholds and leaves drawn at random; what an oblivious tree (one split a
level) answers is another thing than what a tree answers, but as much of it. Forms, each as an expression, which PostgreSQL plans in
every statement, and as a PL/pgSQL function, which it plans once a session:

- nested CASE, which is what students are written as;
- oblivious trees: four comparisons make an index, the leaf is an element of an array;
- oblivious trees over codes: each column is first looked up in an array of its thresholds by width_bucket, comparisons are of int4;
- nested CASE over such codes.

Run: tests/bench/tree_forms.py [--server local] [--quick]. Prints a table and writes build/bench/trees.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "bench"), str(ROOT / "python")]

import servers  # noqa: E402
from pg_distill.students.expression import balanced_sum, literal  # noqa: E402
from serving import DATABASE, in_turns  # noqa: E402
from sql_forms import taken  # noqa: E402

ROWS, COLUMNS, DEPTH = 50_000, 20, 4
SIZES = (20, 100, 300)
THRESHOLDS = np.round(np.linspace(-2, 2, 33), 3)
ROUNDS = 5


def case(rng: np.random.Generator, depth: int, *, coded: bool) -> str:
    if depth == 0:
        return str(rng.integers(-(10**9), 10**9))
    column, place = rng.integers(COLUMNS), int(rng.integers(len(THRESHOLDS)))
    left, right = (case(rng, depth - 1, coded=coded) for _ in range(2))
    test = f"_c{column} <= {place}" if coded else f"c{column} <= {literal(THRESHOLDS[place])}"
    return f"CASE WHEN {test} THEN {left} ELSE {right} END"


def oblivious(rng: np.random.Generator, *, coded: bool) -> str:
    parts = ["1"]
    for level in range(DEPTH):
        column, place = rng.integers(COLUMNS), int(rng.integers(len(THRESHOLDS)))
        test = f"_c{column} > {place}" if coded else f"c{column} > {literal(THRESHOLDS[place])}"
        parts.append(f"CASE WHEN {test} THEN {2**level} ELSE 0 END")
    leaves = ",".join(map(str, rng.integers(-(10**9), 10**9, 2**DEPTH)))
    return f"('{{{leaves}}}'::int8[])[{balanced_sum(parts)}]"


def forms(trees: int) -> dict[str, tuple[str, str]]:
    """Return each form's expression, and the body of its function."""
    codes = [f"width_bucket(c{j}, '{{{','.join(map(str, THRESHOLDS))}}}'::float8[])" for j in range(COLUMNS)]
    stage = ", ".join(f"{code} AS _c{j}" for j, code in enumerate(codes))
    declared = "DECLARE " + " ".join(f"_c{j} int := {code};" for j, code in enumerate(codes))
    found = {}
    for name, coded in (
        ("CASE", False),
        ("oblivious", False),
        ("oblivious, codes", True),
        ("CASE, codes", True),
    ):
        rng = np.random.default_rng(trees)
        write = oblivious if name.startswith("oblivious") else lambda r, coded: case(r, DEPTH, coded=coded)
        total = f"{balanced_sum([f'({write(rng, coded=coded)})::int8' for _ in range(trees)])}::float8"
        if coded:
            found[name] = (
                f"(SELECT {total} FROM (SELECT {stage} OFFSET 0) _s)",
                f"{declared} BEGIN RETURN {total}; END",
            )
        else:
            found[name] = (total, f"BEGIN RETURN {total}; END")
    return found


def measure(connection: psycopg.Connection, rounds: int, local: bool) -> list[dict[str, Any]]:
    connection.execute("SET jit = off; SET max_parallel_workers_per_gather = 0; SELECT setseed(0)")
    columns = ", ".join(f"random() * 5 - 2.5 AS c{j}" for j in range(COLUMNS))
    connection.execute(f"CREATE TABLE t AS SELECT i AS id, {columns} FROM generate_series(1, {ROWS}) i")
    connection.execute("ALTER TABLE t ADD PRIMARY KEY (id)")
    connection.execute("VACUUM ANALYZE t")
    clock = taken(connection, local)

    def way(expression: str, condition: str, per: float) -> Any:
        text = f"SELECT sum({expression}) FROM t WHERE {condition}"
        return lambda: clock(lambda: connection.execute(text, prepare=False)) / per * 1e6

    out = []
    declared, given = (", ".join(f"c{j}{kind}" for j in range(COLUMNS)) for kind in (" float8", ""))
    for trees in SIZES:
        calls = {"scan": way(f"c{COLUMNS - 1}", "true", ROWS)}
        found = forms(trees)
        for k, (name, (expression, body)) in enumerate(found.items()):
            connection.execute(
                f"CREATE FUNCTION f{trees}_{k}({declared}) RETURNS float8 LANGUAGE plpgsql IMMUTABLE AS $${body}$$"
            )
            for kind, text in (("expression", expression), ("function", f"f{trees}_{k}({given})")):
                calls[f"{name}.{kind}.us"] = way(text, "true", ROWS)
                calls[f"{name}.{kind}.plan_ms"] = way(text, "id = -1", 1e3)
        figures = in_turns(calls, rounds)
        for name, (expression, _) in found.items():
            row: dict[str, Any] = {"trees": trees, "form": name, "kB": len(expression) / 1e3}
            for kind in ("expression", "function"):
                row[f"{kind}_us"] = figures[f"{name}.{kind}.us"] - figures["scan"]
                row[f"{kind}_plan_ms"] = figures[f"{name}.{kind}.plan_ms"]
            out.append(row)
            print(
                " ".join(f"{k}={v:.2f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()),
                flush=True,
            )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="local")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    arguments = parser.parse_args()
    with servers.start(arguments.server) as server:
        servers.create_database(server, DATABASE)
        with server.connect(DATABASE) as connection:
            rows = measure(connection, 2 if arguments.quick else ROUNDS, arguments.server == "local")
    target = ROOT / "build" / "bench" / "trees.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
