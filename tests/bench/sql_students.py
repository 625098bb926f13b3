"""The best student that is plain SQL within 5 us a row, beside the best that predict serves within 0.1 ms.

For each set the teacher of `make bench-quality` is registered, of which ``distill_model`` makes students. Of the
run's candidates the best on its select rows are promoted: that of SQL whose rows take 5 us each in a query, and that of predict
within 0.1 ms. Both are scored once on the set's test rows, by a query.

Prints a table; writes build/bench/sql_students.json. With ``--server pg18`` networks have pgvector: then the documents' table is
made anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import quality  # first: it sets the threads of BLAS

# isort: split
import datasets
import numpy as np
import psycopg
import servers
from pg_distill.frame import Frame
from pg_distill.measure import metrics
from pg_distill.students.soft_labels import probabilities_of
from psycopg import sql
from publish import publish

SQL_MS, PREDICT_MS = 0.005, 0.1
MOST_ROWS = 50_000
"""Training rows of a set that students learn from."""


def cells(frame: Frame) -> list[list[Any]]:
    """Return the rows of a frame as a table's."""
    columns: list[Sequence[Any]] = [
        frame.strings(f.name).to_objects()
        if f.is_string
        else [None if np.isnan(v) else float(v) for v in frame.number(f.name)]
        for f in frame.features
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def load(db: psycopg.Connection[Any], data: datasets.DataSet, rows: Any, table: str) -> None:
    """Make a table of some rows: id, features and truth."""
    frame, is_regression = data.frame.take(rows), data.task == "regression"
    kinds = {"id": "int", **{f.name: "text" if f.kind == "string" else "float8" for f in frame.features}}
    kinds["truth"] = "float8" if is_regression else "text"
    columns = sql.SQL(", ").join(sql.Identifier(name) + sql.SQL(f" {kind}") for name, kind in kinds.items())
    db.execute(sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(table), columns))
    with db.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(table))) as copy:
        for i, row in enumerate(cells(frame)):
            y = float(data.y[rows[i]]) if is_regression else data.classes[int(data.y[rows[i]])]
            copy.write_row((i, *row, y))


def scored(db: psycopg.Connection[Any], data: datasets.DataSet, truth: Any) -> float:
    """Return what the student's answers to the test rows are worth."""
    function = "predict" if data.task == "regression" else "predict_class"
    ask = sql.SQL("SELECT distill.{}('t_distilled', to_jsonb(a)) FROM asked a ORDER BY id")
    given = db.execute(ask.format(sql.Identifier(function))).fetchall()
    if data.task == "regression":
        return metrics.score("r2", truth, np.array(given, float))
    return float(np.mean([data.classes.index(name) == y for (name,), y in zip(given, truth, strict=True)]))


def of_set(name: str, options: argparse.Namespace, server: servers.Server) -> dict[str, Any]:
    """Return the figures of one set."""
    data = datasets.load(name, options.packages)
    train, test = datasets.split(len(data.y))
    train = train[:MOST_ROWS]
    artifact = quality.teacher_of(data, train, name, options.cache, options.teacher)
    label = quality.Labeller(artifact, data, data.frame.take(train[:64]))
    asked = probabilities_of(label(data.frame.take(test)), data.task)
    metric = "r2" if data.task == "regression" else "accuracy"
    row: dict[str, Any] = {"set": name, "metric": metric, "rows": len(train), "test": len(test)}
    row["teacher"] = metrics.score(metric, data.y[test], asked)
    servers.create_database(server, "bench_students")
    try:
        with server.connect("bench_students", autocommit=True) as db:
            has = db.execute("SELECT FROM pg_available_extensions WHERE name = 'vector'").fetchone()
            row["pgvector"] = has is not None
            if has is not None:
                db.execute("CREATE EXTENSION vector")
            load(db, data, train, "known")
            load(db, data, test, "asked")
            names = [f.name for f in data.frame.features]
            db.execute(
                "SELECT distill.register_model('t', %s, %s, 'known', label => 'truth', classes => %s, task => %s)",
                (artifact, names, list(data.classes) or None, data.task),
            )
            db.execute(
                "SELECT distill_model('t', target_latency_ms => %s, min_accuracy => 0, time_budget_s => %s,"
                " families => '{sql,linear,tree,boosted,mlp}')",
                (PREDICT_MS, options.seconds),
            )
            run = db.execute("SELECT distill.last_run('t')").fetchone()
            for form, allowed in (("predict", PREDICT_MS), ("sql", SQL_MS)):
                found = db.execute(
                    "SELECT candidate, family, avg_latency_ms FROM distill.candidates WHERE run_id = %s AND form = %s"
                    " AND avg_latency_ms <= %s AND artifact IS NOT NULL ORDER BY select_accuracy DESC, avg_latency_ms LIMIT 1",
                    (*run, form, allowed),
                ).fetchone()
                row |= {form: None, f"{form}_family": None, f"{form}_us": None}
                if found is not None:
                    candidate, family, latency_ms = found
                    db.execute("SELECT distill.promote_candidate(%s, %s)", (*run, candidate))
                    row[form] = scored(db, data, data.y[test])
                    row |= {f"{form}_family": family, f"{form}_us": 1000 * float(latency_ms)}
    finally:
        servers.drop_database(server, "bench_students")
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default=",".join(quality.DEFAULT_SETS), help="names with commas")
    parser.add_argument("--teacher", default="strong", choices=("strong", "plain"))
    parser.add_argument("--seconds", type=float, help="time budget of a search (default: by the rows)")
    options = quality.parsed(parser, "sql_students")
    with servers.start(options.server) as server:
        runs = [of_set(name, options, server) for name in options.sets.split(",")]
    print(
        "set | teacher | SQL within 5 us | us | family | predict within 0.1 ms | us | family | points between"
    )
    for r in runs:
        shown = [r["set"], f"{r['teacher']:.4f}"]
        for form in ("sql", "predict"):
            met = r[form] is not None
            shown += [
                f"{r[form]:.4f}" if met else "-",
                f"{r[f'{form}_us']:.1f}" if met else "-",
                r[f"{form}_family"] or "-",
            ]
        met = r["sql"] is not None and r["predict"] is not None
        print(" | ".join([*shown, f"{100 * (r['sql'] - r['predict']):+.2f}" if met else "-"]))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"runs": runs, "pgvector": all(r["pgvector"] for r in runs)}
    options.output.write_text(json.dumps(report, indent=1))
    if publish("sql_students", report):
        print("written to tests/bench/results and the documents' tables: see git diff")


if __name__ == "__main__":
    main()
