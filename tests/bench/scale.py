"""Time and memory of one distillation by rows and columns, and where they go.

For each number of columns and rows: a table made in SQL, a teacher (LightGBM as it comes, of 20,000 rows), and one distill_model over
all rows. Its stages' seconds are those that the run records; memory is the peak of the training process and of the backend (VmHWM
of /proc, so the server is on this machine). Growth is the exponent between two numbers of rows: 1 is linear, 2 quadratic.

Prints a table; writes build/bench/scale.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lightgbm
import numpy as np
import psycopg
import servers
from onnxmltools.convert import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType
from psycopg import sql

ROOT = Path(__file__).resolve().parents[2]
TEACHER_ROWS = 20_000
MOST_CELLS = 100_000_000
"""Rows times columns beyond which a size is left out unless asked for: 1,000,000 by 500 takes 2 GB as a table, and as much again in
each process that reads it."""
LOOK_SECONDS = 0.2
CHILD = b"pg_distill.child.workshop"
MISSING, NOISE = 0.02, 0.3  # shares of cells without a value, and of the label that no column explains
QUADRATIC, LEAST_SECONDS = 1.3, 1.0
"""An exponent above which a stage that takes so many seconds at least is named as worse than linear."""


def make_rows(db: psycopg.Connection[Any], rows: int, columns: int) -> None:
    """Make table scale_rows: numbers f0, f1, ..., some of them NULL, and y, which a few of them decide."""
    db.execute("SELECT setseed(0.5)")
    cells = ", ".join(
        f"CASE WHEN random() < {MISSING} THEN NULL ELSE random()::real END AS f{i}" for i in range(columns)
    )
    rule = f"coalesce(f0, 0.5) + coalesce(f1 * f2, 0.2) + 0.5 * sin(6 * coalesce(f3, 0.5)) + {NOISE} * random() > 1.0"
    db.execute("DROP TABLE IF EXISTS scale_rows")
    db.execute(
        f"CREATE UNLOGGED TABLE scale_rows AS SELECT t.*, ({rule})::int AS y FROM"
        f" (SELECT {cells} FROM generate_series(1, {rows})) t"  # type: ignore[arg-type]
    )
    db.execute("ANALYZE scale_rows")


def teacher(db: psycopg.Connection[Any], columns: int) -> bytes:
    """Return a LightGBM model of some of the rows as an ONNX file."""
    names = sql.SQL(", ").join(sql.Identifier(f"f{i}") for i in range(columns))
    query = sql.SQL("SELECT {}, y FROM scale_rows LIMIT {}").format(names, sql.Literal(TEACHER_ROWS))
    table = np.array(db.execute(query).fetchall(), np.float32)
    model = lightgbm.LGBMClassifier(n_jobs=2, verbose=-1).fit(table[:, :-1], table[:, -1].astype(int))
    found = convert_lightgbm(model, initial_types=[("x", FloatTensorType([None, columns]))], zipmap=False)
    return bytes(found.SerializeToString())


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has had, in MB; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def children() -> set[int]:
    """Return the training processes of this machine."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if CHILD in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Keep the peak of training processes that begin meanwhile under ``child``."""
    before, peak, over = children(), {"child": 0.0}, threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            for pid in children() - before:
                peak["child"] = max(peak["child"], peak_mb(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def run_size(server: Any, rows: int, columns: int, seconds: float) -> dict[str, Any]:
    """Distil once; return the seconds of each stage, peaks in MB, and how the search ended."""
    name = f"scale_{rows}_{columns}"
    servers.create_database(server, name)
    with server.connect(name) as db:
        db.autocommit = True
        make_rows(db, rows, columns)
        db.execute(
            "SELECT distill.register_model('big', %s, features => %s, sample => 'scale_rows', label => 'y')",
            [teacher(db, columns), [f"f{i}" for i in range(columns)]],
        )
    # A session of its own: what making the rows took is not the distillation's.
    with server.connect(name) as db, watched() as peak:
        db.autocommit = True
        pid = db.info.backend_pid
        db.execute(
            "SELECT distill_model('big', min_accuracy => 0, max_rows => %s, time_budget_s => %s)",
            [rows, seconds],
        )
        backend = peak_mb(pid)
        [timings, ended, learned, accuracy, teacher_accuracy] = db.execute(
            "SELECT timings, figures->'search'->'ended', rows_fit + rows_select + rows_test, student_accuracy, teacher_accuracy"
            " FROM distill.runs WHERE run_id = distill.last_run('big')"
        ).fetchone() or [{}, {}, 0, None, None]
    with server.connect("postgres") as db:
        db.autocommit = True
        db.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
    return {
        "rows": rows,
        "columns": columns,
        "rows_used": learned,
        "seconds": timings,
        "total_s": sum(timings.values()),
        "child_mb": peak["child"],
        "backend_mb": backend,
        "ended": ended,
        "accuracy": accuracy,
        "teacher_accuracy": teacher_accuracy,
    }


def growth(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the exponents by which stages and memory grow with the rows, for each number of columns."""
    out = []
    for columns in sorted({run["columns"] for run in runs}):
        sizes = sorted((run for run in runs if run["columns"] == columns), key=lambda run: run["rows"])
        for small, large in itertools.pairwise(sizes):
            factor = math.log(large["rows"] / small["rows"])
            stages = {
                stage: math.log(took / small["seconds"][stage]) / factor
                for stage, took in large["seconds"].items()
                if small["seconds"].get(stage, 0.0) > 0
                and took > 0
                and stage != "search"  # that one ends by its budget
            }
            out.append(
                {
                    "columns": columns,
                    "rows": [small["rows"], large["rows"]],
                    "stages": stages,
                    "child_mb": math.log(max(large["child_mb"], 1.0) / max(small["child_mb"], 1.0)) / factor,
                    "worse_than_linear": [
                        stage
                        for stage, exponent in stages.items()
                        if exponent > QUADRATIC and large["seconds"][stage] > LEAST_SECONDS
                    ],
                }
            )
    return out


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--columns", default="10,100,500")
    parser.add_argument(
        "--most-cells",
        type=int,
        default=MOST_CELLS,
        help="rows times columns beyond which a size is left out",
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="time budget")
    parser.add_argument(
        "--server", default="local", help="local (default): its processes are looked at in /proc"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build/bench/scale.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the temporary cluster ends with us
    options.output.parent.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    with servers.start(options.server) as server:
        for columns in map(int, options.columns.split(",")):
            for rows in map(int, options.rows.split(",")):
                if rows * columns > options.most_cells:
                    print(f"# {rows} rows of {columns} columns left out: --most-cells", flush=True)
                    continue
                run = run_size(server, rows, columns, options.seconds)
                runs.append(run)
                stages = "  ".join(f"{stage} {took:.1f}" for stage, took in run["seconds"].items())
                print(
                    f"{rows:>8} rows {columns:>4} columns  {run['total_s']:6.1f} s: {stages}  child {run['child_mb']:,.0f} MB"
                    f"  backend {run['backend_mb']:,.0f} MB  {run['accuracy']} of {run['teacher_accuracy']}  {run['ended']}",
                    flush=True,
                )
                options.output.write_text(json.dumps({"runs": runs, "growth": growth(runs)}, indent=1))
    for line in growth(runs):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
