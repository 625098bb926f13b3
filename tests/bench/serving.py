"""What a prediction costs on every way to it, in one run and on one server.

Students of three families and four widths are trained, registered, and timed in backends started apart, all ways in turns
in each of them; a figure is the median over the backends of a backend's median over its rounds. A way is a whole
statement as a client sees it, divided by its rows, scan included; bare ``session.run`` is a loop in PL/Python in the same
backend. The application runs beside the server, on the same machine and over the same socket: psycopg's binary COPY
out, onnxruntime in batches, COPY back.

Run: make bench, or tests/bench/serving.py [--server pg17] [--backends 5] [--quick]. Prints tables, and writes
build/bench/serving.json. By default on a temporary cluster of this machine's own PostgreSQL.
"""

from __future__ import annotations

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # before numpy

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psycopg

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "python")]

import servers  # noqa: E402
from pg_distill.errors import PgDistillError  # noqa: E402
from pg_distill.frame import Feature, Frame, Strings  # noqa: E402
from pg_distill.onnx_model.signature import NULL_STRING  # noqa: E402
from pg_distill.students.families import Setup, load_family  # noqa: E402
from pg_distill.students.transfer_set import TransferSet  # noqa: E402
from publish import publish  # noqa: E402

DATABASE = "pg_distill_bench"
ROWS = 100_000  # of a scan, so that planning and the client's round trip are small beside it
CALL_ROWS = 3_000  # one by one: some 30 ms a block, many of a scheduler's slices
FIT_ROWS = 3_000
ROUNDS = 7  # a backend and way
WIDTHS = (10, 20, 50, 200)
HEADLINE = 20
MAX_ARGUMENTS = 100  # of a function; a wider model takes a row
STRINGS = 4  # of the 20 columns of the mixed table
FAMILIES: dict[str, dict[str, Any]] = {
    "linear": {"bins": 0},
    "boosted": {"rounds": 20, "leaves": 16},
    "mlp": {"hidden": (64, 32)},
    "small_mlp": {"hidden": (8,)},
}
NATIVE_BYTES = 64_000
"""Longest expression that is timed as SQL: a longer one is not offered either, as it takes longer to plan (and some
ten times that to compile by JIT) than any target allows."""
PARALLEL_TABLE, PARALLEL_ROWS = "rows_parallel", 600_000
PARALLEL_SETTINGS = {
    "parallel_leader_participation": "on",
    "min_parallel_table_scan_size": "'8MB'",
    "parallel_setup_cost": "1000",
}
"""PostgreSQL's defaults, written out: the table is large enough for a worker to be planned by them."""
BATCH = 4096  # rows that the application gives onnxruntime at once
PGBENCH_SECONDS = 5
PGBENCH_WARM_UP_SECONDS = 5  # in which new backends import the module, all at once
CLIENTS = (1, 8, 32)


@dataclass(frozen=True)
class Table:
    """A table of numbers, or of numbers and strings with NULLs."""

    name: str
    frame: Frame

    @property
    def columns(self) -> list[str]:
        return [f.name for f in self.frame.features]

    @property
    def numbers(self) -> list[str]:
        return list(self.frame.number_names)

    @property
    def array(self) -> str:
        return f"ARRAY[{', '.join(self.numbers)}]"


@dataclass(frozen=True)
class Student:
    """A registered model: its name, its file, its table and, where it has one, its SQL function."""

    name: str
    artifact: bytes
    table: Table
    expression: str | None

    @property
    def sql(self) -> str:
        """Give the call of its plain SQL: its function; of a wide model the expression, as to_sql gives it."""
        return f"({self.expression})" if len(self.table.columns) > MAX_ARGUMENTS else self.call("sql")

    def call(self, form: str) -> str:
        """Give the call of the model's own function, ``typed`` or ``sql``."""
        columns = self.table.columns
        if len(columns) > MAX_ARGUMENTS:
            return f"{form}_{self.name}(ROW({', '.join(columns)})::{form}_{self.name}_features)"
        return f"{form}_{self.name}({', '.join(f'{c} => {c}' for c in columns)})"


# -- what is timed


def make_table(name: str, width: int, rows: int, strings: int = 0) -> Table:
    rng = np.random.default_rng(width)
    features = [Feature(f"f{i}", "number") for i in range(width - strings)]
    columns: dict[str, Any] = {f.name: rng.normal(size=rows).round(4) for f in features}
    if strings:
        for column in columns.values():
            column[rng.random(rows) < 0.05] = np.nan
        words = np.array([None, *(f"word {i}" for i in range(20))], object)
        for i in range(strings):
            features.append(Feature(f"s{i}", "string"))
            columns[f"s{i}"] = Strings.from_values(words[rng.integers(0, len(words), rows)].tolist())
    return Table(name, Frame(tuple(features), columns))


def load(connection: psycopg.Connection, table: Table) -> None:
    kinds = {f.name: "text" if f.kind == "string" else "float8" for f in table.frame.features}
    definition = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    connection.execute(f"CREATE TABLE {table.name} (id int, {definition})")
    columns = []
    for name in kinds:
        column = table.frame.columns[name]
        if isinstance(column, Strings):
            columns.append(column.to_objects().tolist())
        else:
            columns.append([None if v != v else v for v in column.tolist()])
    with connection.cursor().copy(f"COPY {table.name} FROM STDIN (FORMAT binary)") as copy:
        copy.set_types(["int4", *kinds.values()])
        for i, row in enumerate(zip(*columns, strict=True)):
            copy.write_row((i, *row))
    connection.execute(f"ALTER TABLE {table.name} ADD PRIMARY KEY (id)")
    connection.execute(f"VACUUM ANALYZE {table.name}")


def train(family: str, table: Table) -> tuple[bytes, str | None]:
    """Fit a student to a teacher's logits that are a smooth function of the rows."""
    rows = table.frame.take(np.arange(FIT_ROWS))
    numbers = np.nan_to_num(rows.numbers())
    signal = numbers[:, 0] + np.sin(2 * numbers[:, 1]) + numbers[:, 2] * numbers[:, 3]
    for name in rows.string_names:
        signal = signal + 0.2 * (rows.strings(name).codes % 5)
    data = TransferSet(
        rows, np.stack([np.zeros_like(signal), signal], axis=1), None, None, np.zeros(FIT_ROWS, np.uint8)
    )
    half = np.arange(FIT_ROWS) % 4 == 0
    student = load_family(family.removeprefix("small_"))(Setup("binary", 2), **FAMILIES[family])
    student.fit(data.take(np.flatnonzero(~half)), data.take(np.flatnonzero(half)), deadline=None)
    try:
        return student.to_onnx(), student.to_sql()
    except PgDistillError as error:
        print(f"# {family} on {table.name}: {error}")
        return student.to_onnx(), None


def register(connection: psycopg.Connection, family: str, table: Table) -> Student:
    artifact, expression = train(family, table)
    name = f"{family}_{table.name}"
    connection.execute(
        "SELECT distill.register_model(%s, %s, features => %s, sample => %s, task => 'binary', classes => '{0,1}')",
        (name, artifact, table.columns, table.name),
    )
    connection.execute("SELECT distill.create_function(%s, %s)", (name, f"typed_{name}"))
    if expression is not None:
        # As a distillation would have stored it.
        connection.execute("ALTER TABLE distill.models DISABLE TRIGGER protect_model")
        connection.execute("UPDATE distill.models SET expression = %s WHERE name = %s", (expression, name))
        connection.execute("ALTER TABLE distill.models ENABLE TRIGGER protect_model")
        connection.execute("SELECT distill.create_function(%s, %s, as_sql => true)", (name, f"sql_{name}"))
        found = connection.execute("SELECT distill.to_sql(%s)", (name,)).fetchone()
        assert found is not None
        expression = str(found[0])
    return Student(name, artifact, table, expression)


BARE = """
CREATE FUNCTION bare(model text, calls int) RETURNS float8 LANGUAGE plpython3u AS $$
import pg_distill.sqlapi, time
import numpy, onnxruntime
if model not in SD:
    plan = plpy.prepare("SELECT artifact, (SELECT count(*) FROM jsonb_array_elements(input_schema->'features')) AS width"
                        " FROM distill.models WHERE name = $1 AND active", ["text"])
    found = plpy.execute(plan, [model])[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(found["artifact"], options, providers=["CPUExecutionProvider"])
    rows = numpy.random.default_rng(0).normal(size=(calls, 1, found["width"])).astype(numpy.float32)
    SD[model] = session, session.get_inputs()[0].name, [o.name for o in session.get_outputs()], list(rows)
session, name, outputs, rows = SD[model]
start = time.perf_counter()
for row in rows:
    session.run(outputs, {name: row})
return (time.perf_counter() - start) / len(rows) * 1e6
$$"""


class Application:
    """The way without the extension: rows out by binary COPY, onnxruntime, predictions back by binary COPY."""

    def __init__(self, student: Student) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(student.artifact, options, providers=["CPUExecutionProvider"])
        self.table = student.table
        self.output = [self.session.get_outputs()[-1].name]

    def feeds(self, rows: list[tuple[Any, ...]]) -> dict[str, Any]:
        """Turn rows of the table's columns into the graph's inputs."""
        count = len(self.table.numbers)
        out: dict[str, Any] = {}
        for node in self.session.get_inputs():
            if node.type == "tensor(string)":
                words = [[NULL_STRING if v is None else v for v in row[count:]] for row in rows]
                out[node.name] = np.array(words, object)
            else:
                element = np.float64 if "double" in node.type else np.float32
                out[node.name] = np.array([row[:count] for row in rows], element)  # None becomes NaN
        return out

    def table_at_once(self, connection: psycopg.Connection) -> None:
        columns = ", ".join(["id", *self.table.columns])
        kinds = ["text" if f.kind == "string" else "float8" for f in self.table.frame.features]
        with connection.cursor() as cursor:
            with cursor.copy(
                f"COPY (SELECT {columns} FROM {self.table.name}) TO STDOUT (FORMAT binary)"
            ) as copy:
                copy.set_types(["int4", *kinds])
                rows = list(copy.rows())
            predictions: list[float] = []
            for start in range(0, len(rows), BATCH):
                part = [row[1:] for row in rows[start : start + BATCH]]
                predictions += self.session.run(self.output, self.feeds(part))[0][:, -1].tolist()
            with cursor.copy("COPY predictions FROM STDIN (FORMAT binary)") as copy:
                copy.set_types(["int4", "float8"])
                for row, prediction in zip(rows, predictions, strict=True):
                    copy.write_row((row[0], prediction))

    def one_row(self, connection: psycopg.Connection, row_id: int) -> float:
        found = connection.execute(
            f"SELECT {', '.join(self.table.columns)} FROM {self.table.name} WHERE id = %s",
            (row_id,),
            prepare=True,
        ).fetchone()
        assert found is not None
        return float(self.session.run(self.output, self.feeds([found]))[0][0, -1])


# -- timing


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return each way's median; the first round warms up and does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            figure = way()
            if turn:
                taken[name].append(figure)
    return {name: statistics.median(figures) for name, figures in taken.items()}


def over_backends(
    server: servers.Server, backends: int, measure: Callable[[psycopg.Connection], dict[str, float]]
) -> dict[str, float]:
    """Return the medians over sessions, each of a backend of its own."""
    figures: list[dict[str, float]] = []
    start = time.monotonic()
    for _ in range(backends):
        with server.connect(DATABASE) as connection:
            figures.append(measure(connection))
    print(f"# {', '.join(list(figures[0])[:3])} ...: {time.monotonic() - start:.0f} s", flush=True)
    return {name: statistics.median(f[name] for f in figures) for name in figures[0]}


def statement(connection: psycopg.Connection, text: str, rows: int) -> Callable[[], float]:
    """Return a way: microseconds a row of a statement, unprepared, so that planning counts."""
    return lambda: timed(lambda: connection.execute(text, prepare=False)) / rows * 1e6  # type: ignore[arg-type]


def per_row(connection: psycopg.Connection, students: Iterable[Student], rounds: int) -> dict[str, float]:
    """Time single calls over the first rows of each table, for each student in turn."""
    connection.execute("SET max_parallel_workers_per_gather = 0")
    figures: dict[str, float] = {}
    for student in students:
        table, source = student.table, f"FROM {student.table.name} WHERE id < {CALL_ROWS}"

        def way(expression: str, source: str = source) -> Callable[[], float]:
            return statement(connection, f"SELECT sum({expression}) {source}", CALL_ROWS)

        rows = f"to_jsonb({table.name})"
        ways = {
            "predict_jsonb": way(f"distill.predict('{student.name}', {rows})"),
            "typed_function": way(student.call("typed")),
        }
        if not table.frame.string_names:
            ways |= {
                "session_run": lambda name=student.name: float(  # type: ignore[misc]
                    connection.execute("SELECT bare(%s, %s)", (name, CALL_ROWS)).fetchone()[0]  # type: ignore[index]
                ),
                "predict": way(f"distill.predict('{student.name}', {table.array})"),
                "scan": way(f"({table.array})[1]"),
                "predict_batch": statement(
                    connection,
                    f"SELECT distill.predict_batch('{student.name}', (SELECT array_agg({table.array}) {source}))",
                    CALL_ROWS,
                ),
            }
        figures |= {f"{student.name}.{name}": figure for name, figure in in_turns(ways, rounds).items()}
    return figures


def whole_table(connection: psycopg.Connection, student: Student, rounds: int) -> dict[str, float]:
    """Time the ways from a table to a table of predictions."""
    application, rows = Application(student), len(student.table.frame)
    target = "INSERT INTO predictions SELECT key::int, prediction FROM"

    def emptied(work: Callable[[], object]) -> Callable[[], float]:
        def way() -> float:
            connection.execute("TRUNCATE predictions")
            taken = timed(work)
            row = connection.execute("SELECT count(*) FROM predictions").fetchone()
            assert row == (rows,), row
            return taken / rows * 1e6

        return way

    score = f"{target} distill.score('{student.name}', '{student.table.name}', 'id')"
    ways = {
        "application": emptied(lambda: application.table_at_once(connection)),
        "score": emptied(lambda: connection.execute(score)),  # type: ignore[arg-type]
    }
    return {f"{student.name}.{name}": figure for name, figure in in_turns(ways, rounds).items()}


def native(connection: psycopg.Connection, student: Student, rounds: int) -> dict[str, float]:
    """Time the student as plain SQL over a whole table, by one process; default JIT, planning included."""
    text = f"SELECT sum({student.sql}) FROM {student.table.name}"
    rows = len(student.table.frame)
    connection.execute("SET max_parallel_workers_per_gather = 0")

    def way(text: str) -> Callable[[], float]:
        return statement(connection, text, rows)

    empty = text.replace(f"FROM {student.table.name}", f"FROM {student.table.name} WHERE id = 0")
    ways = {
        "sql": way(text),
        "sql_scan": way(f"SELECT sum({student.table.numbers[-1]}) FROM {student.table.name}"),
        "sql_statement_ms": lambda: way(empty)() * rows / 1e3,
    }
    return {f"{student.name}.{name}": figure for name, figure in in_turns(ways, rounds).items()}


def make_parallel_table(connection: psycopg.Connection, table: Table) -> None:
    """Copy a table's rows until a worker's start, and its JIT, are small beside its half of them."""
    times = -(-PARALLEL_ROWS // len(table.frame))
    connection.execute(
        f"CREATE UNLOGGED TABLE {PARALLEL_TABLE} AS SELECT r.* FROM {table.name} r, generate_series(1, {times})"
        f" LIMIT {PARALLEL_ROWS}"  # type: ignore[arg-type]
    )
    connection.execute(f"VACUUM ANALYZE {PARALLEL_TABLE}")


def parallel(connection: psycopg.Connection, student: Student, rounds: int) -> dict[str, float]:
    """Time a scan with the student as plain SQL by one process and by two: the leader, which takes part, and a worker."""

    def way(workers: int) -> Callable[[], float]:
        run = statement(connection, f"SELECT sum({student.sql}) FROM {PARALLEL_TABLE}", PARALLEL_ROWS)

        def call() -> float:
            set_processes(connection, workers)
            return run()

        return call

    figures = in_turns({"sql_one_process": way(0), "sql_two_processes": way(1)}, rounds)
    return {f"{student.name}.{name}": figure for name, figure in figures.items()}


def set_processes(connection: psycopg.Connection, workers: int) -> None:
    connection.execute(f"SET max_parallel_workers_per_gather = {workers}")
    for name, value in PARALLEL_SETTINGS.items():
        connection.execute(f"SET {name} = {value}")  # type: ignore[arg-type]


def plans(connection: psycopg.Connection, student: Student) -> dict[str, list[str]]:
    found = {}
    for workers in (0, 1):
        set_processes(connection, workers)
        text = f"EXPLAIN (COSTS off, ANALYZE, TIMING off, SUMMARY off) SELECT sum({student.sql})"
        rows = connection.execute(f"{text} FROM {PARALLEL_TABLE}").fetchall()  # type: ignore[arg-type]
        found[f"{workers + 1} processes"] = [row[0] for row in rows]
    return found


def one_row(connection: psycopg.Connection, student: Student, rounds: int) -> dict[str, float]:
    """Time one row a statement, through the client: the application's way, predict, and plain SQL."""
    application, source = Application(student), f"FROM {student.table.name} WHERE id = %s"
    calls = 200

    def way(call: Callable[[int], object]) -> Callable[[], float]:
        return lambda: timed(lambda: [call(i) for i in range(calls)]) / calls * 1e6

    def run(text: str) -> Callable[[int], object]:
        return lambda i: connection.execute(text, (i,), prepare=True).fetchone()  # type: ignore[arg-type]

    ways = {
        "application_one_row": way(lambda i: application.one_row(connection, i)),
        "predict_one_row": way(
            run(f"SELECT distill.predict('{student.name}', {student.table.array}) {source}")
        ),
        **(
            {"sql_one_row": way(run(f"SELECT {student.sql} {source}"))}
            if len(student.expression or "") <= NATIVE_BYTES
            else {}
        ),
        "fetch_one_row": way(run(f"SELECT {', '.join(student.table.columns)} {source}")),
    }
    return {f"{student.name}.{name}": figure for name, figure in in_turns(ways, rounds).items()}


def cold_start(server: servers.Server, student: Student, backends: int) -> dict[str, float]:
    """Time the first statement of new sessions, and read how large their processes become."""
    text = f"SELECT distill.predict('{student.name}', {student.table.array}) FROM {student.table.name} WHERE id = 1"
    figures: list[dict[str, float]] = []
    for _ in range(backends + 1):
        with server.connect(DATABASE) as connection:
            pid = connection.info.backend_pid
            before = _memory_mib(server, pid)
            first = timed(lambda c=connection: c.execute(text)) * 1e3  # type: ignore[misc]
            second = timed(lambda c=connection: c.execute(text)) * 1e3  # type: ignore[misc]
            figures.append(
                {
                    "first_ms": first,
                    "second_ms": second,
                    "fresh_mib": before,
                    "loaded_mib": _memory_mib(server, pid),
                }
            )
    return {name: statistics.median(f[name] for f in figures[1:]) for name in figures[0]}


def _memory_mib(server: servers.Server, pid: int) -> float:
    """Return what a process has for itself: pages shared with the postmaster and its shared buffers do not count."""
    rollup = server.run("cat", f"/proc/{pid}/smaps_rollup", user="postgres").stdout
    private = [int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")]
    return sum(private) / 1024


def many_models(server: servers.Server, student: Student, count: int) -> dict[str, float]:
    """Open ``count`` sessions in one backend under the default limit and a small one; return MiB."""
    figures = {}
    with server.connect(DATABASE) as connection:
        connection.execute(
            "INSERT INTO distill.models (name, version, active, task, kind, artifact, sha256, size_bytes, input_schema,"
            " output_schema) SELECT 'copy ' || i, '1', true, task, kind, artifact, sha256, size_bytes, input_schema,"
            " output_schema FROM distill.models, generate_series(1, %s::int) i WHERE name = %s",
            (count, student.name),
        )
    text = f"SELECT sum(distill.predict('copy ' || i, {student.table.array})) FROM {student.table.name}, generate_series(%s::int, %s::int) i WHERE id = 1"
    for limit in ("256", "16"):
        with server.connect(DATABASE) as connection:
            connection.execute("SELECT distill.change_setting('session_cache_mb', %s)", (limit,))
            connection.execute(text, (1, 1))  # type: ignore[arg-type]
            one = _memory_mib(server, connection.info.backend_pid)
            connection.execute(text, (1, count))  # type: ignore[arg-type]
            connection.execute(text, (1, count))  # type: ignore[arg-type]
            figures[f"{count}_models_{limit}_mb_limit_mib"] = (
                _memory_mib(server, connection.info.backend_pid) - one
            )
    with server.connect(DATABASE) as connection:
        connection.execute("SELECT distill.change_setting('session_cache_mb', NULL)")
        connection.execute("DELETE FROM distill.models WHERE name LIKE 'copy %%'")
    return figures


def concurrency(
    server: servers.Server, student: Student, native_student: Student, seconds: int
) -> dict[str, dict[str, float]]:
    """Run pgbench on the server's host: prepared statements of one row each."""
    calls = {
        "predict": f"distill.predict('{student.name}', {student.table.array})",
        "sql": native_student.sql,
        "nothing": "1",
    }
    found: dict[str, dict[str, float]] = {}
    host = str(server.directory) if isinstance(server, servers.Local) else "/var/run/postgresql"
    for name, call in calls.items():
        script = f"\\set id random(0, {len(student.table.frame) - 1})\nSELECT {call} FROM {student.table.name} WHERE id = :id;\n"
        for clients in CLIENTS:
            command = (
                "cd $(mktemp -d) && cat > script.sql && PATH=$PATH:$(pg_config --bindir) pgbench --no-vacuum --protocol prepared"
                f" --file script.sql --client {clients} --jobs 1 --time {seconds + PGBENCH_WARM_UP_SECONDS} --log --host {host} --username postgres"
                f" {DATABASE} > out && cat out && cat pgbench_log.*"
            )
            lines = server.run("sh", "-c", command, stdin=script, timeout=seconds + 180).stdout.splitlines()
            # client, transaction, microseconds, script, then when it ended: seconds and microseconds
            calls_made = [line.split() for line in lines if line[:1].isdigit() and len(line.split()) == 6]
            ends = [int(call[4]) + int(call[5]) / 1e6 for call in calls_made]
            begin = max(ends) - seconds
            # From the end: the first call of each of many new backends may take all of the warming up.
            took = sorted(int(call[2]) for call, end in zip(calls_made, ends, strict=True) if end > begin)
            found[f"{name}, {clients} clients"] = {
                "transactions_per_s": round(len(took) / seconds),
                "p50_ms": took[len(took) // 2] / 1e3,
                "p99_ms": took[len(took) * 99 // 100] / 1e3,
            }
    return found


# -- all of it


def run(server: servers.Server, backends: int, rounds: int, rows: int, seconds: int) -> dict[str, Any]:
    servers.create_database(server, DATABASE)
    tables = [
        make_table(f"rows{width}", width, rows if width == HEADLINE else max(rows // 5, CALL_ROWS))
        for width in WIDTHS
    ]
    mixed = make_table("mixed20", HEADLINE, rows, STRINGS)
    with server.connect(DATABASE) as connection:
        connection.execute(BARE)
        connection.execute("CREATE UNLOGGED TABLE predictions (id int, prediction float8)")
        for table in (*tables, mixed):
            load(connection, table)
        students = {(family, t.name): register(connection, family, t) for t in tables for family in FAMILIES}
        mixed_student = register(connection, "mlp", mixed)
        machine = describe(connection)
    everyone = [*students.values(), mixed_student]
    print(f"# {len(everyone)} students registered; {backends} backends, {rounds} rounds each", flush=True)
    headline = {family: students[family, f"rows{HEADLINE}"] for family in FAMILIES}

    figures = over_backends(server, backends, lambda c: per_row(c, everyone, rounds))
    few = max(2, rounds // 2)
    for student in (*headline.values(), mixed_student):
        figures |= over_backends(server, backends, lambda c, s=student: whole_table(c, s, few))  # type: ignore[misc]
    for student in everyone:
        if len(student.expression or "") > NATIVE_BYTES:
            print(f"# {student.name}: an expression of {len(student.expression or '')} bytes is not timed")
        elif student.expression:
            figures |= over_backends(server, backends, lambda c, s=student: native(c, s, few))  # type: ignore[misc]
    for student in headline.values():
        if student.expression:
            figures |= over_backends(server, backends, lambda c, s=student: one_row(c, s, few))  # type: ignore[misc]
    with server.connect(DATABASE) as connection:
        make_parallel_table(connection, headline["boosted"].table)
    figures |= over_backends(server, backends, lambda c: parallel(c, headline["boosted"], few))
    with server.connect(DATABASE) as connection:
        shown = plans(connection, headline["boosted"])
    cold = cold_start(server, headline["mlp"], backends)
    memory = many_models(server, headline["mlp"], 300)
    clients = concurrency(server, headline["mlp"], headline["boosted"], seconds)

    def figure(family: str, name: str) -> float:
        return figures[f"{headline[family].name}.{name}"]

    worst = max(FAMILIES, key=lambda f: figure(f, "predict") - figure(f, "session_run"))
    ratios = {
        "predict_minus_session_run_us": figure(worst, "predict") - figure(worst, "session_run"),
        "score_over_application": figure("mlp", "application") / figure("mlp", "score"),
        "linear_sql_us_per_row": figure("linear", "sql"),
        "onnx_over_linear_sql": figure("linear", "predict") / figure("linear", "sql"),
        "sql_parallel_2_over_1": figure("boosted", "sql_one_process")
        / figure("boosted", "sql_two_processes"),
        "score_over_application_mixed": figures[f"{mixed_student.name}.application"]
        / figures[f"{mixed_student.name}.score"],
        "linear_sql_us_per_row_without_scan": figure("linear", "sql") - figure("linear", "sql_scan"),
        "one_row_application_over_predict": figure("mlp", "application_one_row")
        / figure("mlp", "predict_one_row"),
        "cold_start_first_predict_ms": cold["first_ms"],
        "backend_mib": cold["loaded_mib"],
    }
    return {
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "us_per_row": {name: round(value, 3) for name, value in figures.items()},
        "plans": shown,
        "cold_start": {name: round(value, 2) for name, value in cold.items()},
        "memory": {name: round(value, 1) for name, value in memory.items()},
        "pgbench": clients,
        "method": {
            "backends": backends,
            "rounds": rounds,
            "rows": rows,
            "call_rows": CALL_ROWS,
            "families": FAMILIES,
            "parallel_rows": PARALLEL_ROWS,
            "parallel_settings": PARALLEL_SETTINGS,
        },
        "machine": machine,
    }


def describe(connection: psycopg.Connection) -> dict[str, Any]:
    row = connection.execute(
        "SELECT version(), current_setting('jit'), current_setting('shared_buffers')"
    ).fetchone()
    assert row is not None
    cpu = next(
        (
            x.partition(":")[2].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if x.startswith("model name")
        ),
        "",
    )
    return {
        "server": row[0],
        "jit": row[1],
        "shared_buffers": row[2],
        "processor": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
        "psycopg": psycopg.__version__,
    }


def show(result: dict[str, Any]) -> None:
    models: dict[str, dict[str, float]] = {}
    for name, value in result["us_per_row"].items():
        model, _, way = name.partition(".")
        models.setdefault(model, {})[way] = value
    ways = list(dict.fromkeys(way for figures in models.values() for way in figures))
    width = max(map(len, ways))
    print(f"\nmicroseconds a row (sql_statement_ms: milliseconds a statement)\n{'':{width}}", end="")
    print("".join(f"{model:>16}" for model in models))
    for way in ways:
        cells = (f"{figures[way]:16.2f}" if way in figures else " " * 16 for figures in models.values())
        print(f"{way:{width}}" + "".join(cells))
    for title in ("plans", "cold_start", "memory", "pgbench", "ratios"):
        print(f"\n{title}")
        for name, value in result[title].items():
            if isinstance(value, list):
                print(f"  {name}:", *value, sep="\n    ")
            else:
                print(f"  {name:40} {value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--server", default="local", help="local (default), pg15, pg17, or a connection string"
    )
    parser.add_argument("--backends", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--quick", action="store_true", help="few rows and rounds: to see that it runs, not to quote"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the temporary cluster ends with us
    rows, seconds = ROWS, PGBENCH_SECONDS
    if options.quick:
        options.backends, options.rounds, rows, seconds = 2, 2, 50_000, 1
    with servers.start(options.server) as server:
        result = run(server, options.backends, options.rounds, rows, seconds)
    show(result)
    path = ROOT / "build" / "bench" / "serving.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {path.relative_to(ROOT)}")
    if publish("serving", result):
        print("and to tests/bench/results and the documents' tables: see git diff")


if __name__ == "__main__":
    main()
