"""What students cost as SQL: networks with pgvector and without it, trees, each as an expression and as a function.

Students learn from 20 columns of numbers, of which some are NULL or NaN, or from 16 such and 4 of strings. All ways of a student are
timed in turns in one backend and one process, beside predict of the same student by ONNX Runtime; a figure is the median over
backends of a backend's median over its rounds. Microseconds a row are of statements over the whole table, less what the same
statement takes that only reads the columns; milliseconds are of statements that evaluate no row, so what is parsed and planned,
in a session that has run the function before. On a server of this machine both are the backend's own time on a processor,
which other work on the machine changes less than the time that passes; elsewhere it is the time that passes.

Run: make bench-sql, or tests/bench/sql_forms.py [--server local] [--backends 3] [--quick]. Prints tables, and writes
build/bench/sql.json. Forms with pgvector are timed where the server has it.
"""

from __future__ import annotations

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # before numpy

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "bench"), str(ROOT / "python")]

import servers  # noqa: E402
import serving  # noqa: E402
from pg_distill.errors import PgDistillError  # noqa: E402
from pg_distill.students.families import Setup, load_family  # noqa: E402
from pg_distill.students.transfer_set import TransferSet  # noqa: E402
from serving import DATABASE, Table, in_turns, load, make_table, over_backends  # noqa: E402

ROWS = 20_000
CALL_ROWS = 3_000
ROUNDS = 7
STUDENTS: list[tuple[str, dict[str, Any]]] = [
    ("mlp", {"hidden": (8,)}),
    ("mlp", {"hidden": (16,)}),
    ("mlp", {"hidden": (32,)}),
    ("mlp", {"hidden": (64,)}),
    ("mlp", {"hidden": (128,)}),
    ("mlp", {"hidden": (32, 16)}),
    ("mlp", {"hidden": (64, 32)}),
    ("linear", {"bins": 0}),
    ("boosted", {"rounds": 20, "leaves": 16}),
    ("boosted", {"rounds": 100, "leaves": 16}),
    ("boosted", {"rounds": 100, "leaves": 64}),
]
JIT = ("off", "on")


def make_tables() -> list[Table]:
    numbers = make_table("numbers", 20, ROWS)
    rng = np.random.default_rng(1)
    for column in numbers.frame.columns.values():
        column[rng.random(ROWS) < 0.05] = np.nan  # type: ignore[index, call-overload]
    return [numbers, make_table("mixed", 20, ROWS, strings=4)]


def name_of(family: str, size: dict[str, Any], table: Table) -> str:
    shape = "x".join(
        str(v) for value in size.values() for v in (value if isinstance(value, tuple) else (value,))
    )
    return f"{family}_{shape}_{table.name}"


def register(
    connection: psycopg.Connection, family: str, size: dict[str, Any], table: Table
) -> dict[str, str]:
    """Train and register a student; return the SQL of each way to it."""
    rows = table.frame.take(np.arange(serving.FIT_ROWS))
    numbers = np.nan_to_num(rows.numbers())
    signal_ = numbers[:, 0] + np.sin(2 * numbers[:, 1]) + numbers[:, 2] * numbers[:, 3]
    logits = np.stack([np.zeros_like(signal_), signal_], axis=1)
    data = TransferSet(rows, logits, None, None, np.zeros(len(rows), np.uint8))
    half = np.arange(len(rows)) % 4 == 0
    student = load_family(family)(Setup("binary", 2), **size)
    student.fit(data.take(np.flatnonzero(~half)), data.take(np.flatnonzero(half)), deadline=None)
    name = name_of(family, size, table)
    connection.execute(
        "SELECT distill.register_model(%s, %s, features => %s, sample => %s, task => 'binary', classes => '{0,1}')",
        (name, student.to_onnx(), table.columns, table.name),
    )
    # As a distillation would have stored it.
    connection.execute("ALTER TABLE distill.models DISABLE TRIGGER protect_model")
    connection.execute("UPDATE distill.models SET expression = %s WHERE name = %s", (student.to_sql(), name))
    connection.execute("ALTER TABLE distill.models ENABLE TRIGGER protect_model")
    arguments = ", ".join(f"{column} => {column}" for column in table.columns)
    strings = [f.name for f in table.frame.features if f.kind == "string"]
    given = f"{table.array}, ARRAY[{', '.join(strings)}]" if strings else table.array
    ways = {"predict": f"distill.predict('{name}', {given})"}
    for form, pgvector in (("plain", False), ("pgvector", True)):
        try:
            connection.execute(
                "SELECT distill.create_function(%s, %s, as_sql => true, pgvector => %s)",
                (name, f"{form}_{name}", pgvector),
            )
        except psycopg.Error as error:
            if error.sqlstate not in ("0A000", "55000"):
                raise
            continue
        found = connection.execute("SELECT distill.to_sql(%s, %s)", (name, pgvector)).fetchone()
        assert found is not None
        ways[f"{form}_expression"] = str(found[0])
        ways[f"{form}_function"] = f"{form}_{name}({arguments})"
    return ways


def taken(connection: psycopg.Connection, local: bool) -> Callable[[Callable[[], object]], float]:
    """Return a clock: the seconds that the backend is on a processor for a work, or those that pass."""
    source = Path(f"/proc/{connection.info.backend_pid}/schedstat")

    def clock(work: Callable[[], object]) -> float:
        if not local:
            return serving.timed(work)
        before = int(source.read_text().split()[0])
        work()
        return (int(source.read_text().split()[0]) - before) / 1e9

    return clock


def measure(
    connection: psycopg.Connection, table: Table, ways: dict[str, str], rounds: int, local: bool
) -> dict[str, float]:
    connection.execute("SET max_parallel_workers_per_gather = 0")
    scan, clock = f"({table.array})[1]", taken(connection, local)

    def way(expression: str, condition: str, per: float, jit: str = "off") -> Callable[[], float]:
        text = f"SELECT sum({expression}) FROM {table.name} WHERE {condition}"

        def run() -> float:
            connection.execute(f"SET jit = {jit}")
            return clock(lambda: connection.execute(text, prepare=False)) / per * 1e6

        return run

    few = f"id < {CALL_ROWS}"
    calls = {
        "scan": way(scan, "true", ROWS),
        "predict_scan": way(scan, few, CALL_ROWS),
        "predict": way(ways["predict"], few, CALL_ROWS),
    }
    for name, text in ways.items():
        for jit in JIT if name != "predict" else ():
            calls[f"{name}.jit_{jit}.us"] = way(text, "true", ROWS, jit)
            calls[f"{name}.jit_{jit}.plan_ms"] = way(text, "id = -1", 1e3, jit)
    figures = in_turns(calls, rounds)
    figures["predict"] -= figures.pop("predict_scan")
    base = figures.pop("scan")
    return {name: figure - base if name.endswith(".us") else figure for name, figure in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="local")
    parser.add_argument("--backends", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and students of 20 numbers only")
    parser.add_argument("--only", default="", help="students whose name contains this")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rounds = 3 if arguments.quick else ROUNDS
    results: dict[str, Any] = {"rows": ROWS, "figures": {}}
    target = ROOT / "build" / "bench" / "sql.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    with servers.start(arguments.server) as server:
        servers.create_database(server, DATABASE)
        with server.connect(DATABASE) as connection:
            has_it = connection.execute(
                "SELECT FROM pg_available_extensions WHERE name = 'vector'"
            ).fetchall()
            if has_it:
                connection.execute("CREATE EXTENSION vector")
            results["machine"] = serving.describe(connection)
            extensions = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
            found = connection.execute(extensions).fetchone()
            results["pgvector"] = found[0] if found else None
        for table in make_tables()[: 1 if arguments.quick else 2]:
            with server.connect(DATABASE) as connection:
                load(connection, table)
            for family, size in STUDENTS:
                name = name_of(family, size, table)
                if arguments.only not in name:
                    continue
                with server.connect(DATABASE) as connection:
                    try:
                        ways = register(connection, family, size, table)
                    except PgDistillError as error:
                        print(f"# {name}: {error}")
                        continue
                figures = over_backends(
                    server,
                    arguments.backends,
                    lambda c, t=table, w=ways: measure(c, t, w, rounds, arguments.server == "local"),  # type: ignore[misc]
                )
                figures |= {
                    f"{way}.bytes": float(len(text)) for way, text in ways.items() if "expression" in way
                }
                results["figures"][name] = figures
                show(name, figures)
                results["ratios"] = ratios(results["figures"])
                target.write_text(json.dumps(results, indent=1) + "\n")  # what comes later may be ended
    print(json.dumps(results.get("ratios"), indent=1))


def show(name: str, figures: dict[str, float]) -> None:
    print(f"{name}: predict {figures['predict']:.1f} us")
    for way in sorted({f.rsplit(".", 2)[0] for f in figures if f.endswith(".us")}):
        off, on = (figures[f"{way}.jit_{jit}.us"] for jit in JIT)
        planned, compiled = (figures[f"{way}.jit_{jit}.plan_ms"] for jit in JIT)
        print(
            f"  {way:20s} {off:6.2f} us, {planned:6.2f} ms; with JIT {on:6.2f} us, {compiled:6.2f} ms",
            flush=True,
        )


def ratios(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return predict over each form of the networks that the documents name, of the same run."""
    out = {}
    for name, own in figures.items():
        for way, figure in own.items():
            if way.endswith("jit_off.us") and name.endswith("_numbers"):
                out[f"predict_over_{way.split('.')[0]}:{name}"] = round(own["predict"] / figure, 2)
    return out


if __name__ == "__main__":
    main()
