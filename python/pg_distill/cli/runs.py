"""Commands about runs: distill, runs, frontier, report, check."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pg_distill.cli.connection import (
    DONE,
    NO_LONGER_HOLDS,
    NO_STUDENT,
    connect,
    rows_of,
)
from pg_distill.cli.terminal import Bar, show, warn, while_drawing, write_file
from pg_distill.errors import (
    InvalidState,
)

__all__ = [
    "OPTIONS",
    "check",
    "check_options",
    "distill",
    "distill_options",
    "frontier",
    "report",
    "report_options",
    "runs",
]


# distill_model's optional arguments: type and help.
def _truth(text: str) -> bool:
    """Read a boolean as SQL does, whole words alone."""
    words = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
    try:
        return words[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"true or false, not {text}") from None


OPTIONS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "target_latency_ms": (
        float,
        "mean call latency, whose upper 95 %% bound has to be within it (default 5)",
    ),
    "min_accuracy": (
        float,
        "floor of the metric on the test rows (default 0.8 where it means something, else half of what the teacher adds to"
        " the majority)",
    ),
    "temperature": (float, "the softest that the search may use (default 4)"),
    "epochs": (int, "most passes of an iterative student (default 10)"),
    "seed": (int, "of sample, split, training and bootstrap (default 42)"),
    "metric": (str, "accuracy, balanced_accuracy, roc_auc, ..., r2, agreement"),
    "sample": (str, "a relation or a query (default: the teacher's)"),
    "label": (str, "the column that holds the truth (default: the teacher's)"),
    "max_rows": (int, "labelled rows that are drawn (default 100000)"),
    "time_budget_s": (float, "of labelling and search (default: by the rows, at most 120)"),
    "student_name": (str, "default: TEACHER_distilled"),
    "families": (lambda text: text.split(","), "student families to try, with commas between (default: all)"),
    "group_column": (str, "rows of one group stay on one side of the split"),
    "time_column": (str, "the newest rows are for test"),
    "weight_column": (str, "sample weights"),
    "trained_on": (str, "a query for the rows that the teacher was trained on"),
    "prefer": (str, "accurate, knee or fast: which student within target and floor (default accurate)"),
    "patience": (int, "trainings in a row without gain after which the search ends (default 32)"),
    "refit_on_all": (
        _truth,
        "true: the registered file learns from the test rows too; figures are of its judged twin (default false)",
    ),
    "monotone": (
        str,
        "JSON: by numeric column 1, the answer never falls when it rises, or -1, it never rises (default: none)",
    ),
    "text_columns": (
        lambda text: [name for name in text.split(",") if name],
        "string columns that are read as texts, with commas between (default: those of several words that hardly repeat)",
    ),
}


def distill_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher")
    for name, (kind, text) in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text, default=argparse.SUPPRESS)
    parser.add_argument("--queue", action="store_true", help="leave it to a worker, and print the run's id")


def distill(arguments: argparse.Namespace) -> int:
    """Distil a teacher into a student."""
    from pg_distill.runs.options import MOST_SECONDS

    given = {name: getattr(arguments, name) for name in OPTIONS if hasattr(arguments, name)}
    call = ", ".join(["%s", *(f"{name} => %s" for name in given)])
    values = [arguments.teacher, *given.values()]
    with connect(arguments) as connection:
        if arguments.queue:
            show(arguments, rows_of(connection, f"SELECT distill.submit({call})::text AS run_id", *values))
            return DONE
        bar = Bar(float(given.get("time_budget_s", MOST_SECONDS)))

        def listen(diagnostic: Any) -> None:
            try:
                progress = json.loads(diagnostic.message_detail or "")
                bar.take(
                    progress["stage"],
                    float(progress["done"]),
                    progress["candidate"],
                    float(progress["seconds_left"]),
                )
            except (ValueError, KeyError, TypeError):  # no progress, but something that a person is to read
                bar.clear()
                warn(diagnostic.message_primary or "")

        connection.add_notice_handler(listen)
        [place] = rows_of(connection, _DISTILL_MODEL) or [
            {"name": "distill_model"}
        ]  # the server says what is missing
        query = f"SELECT {place['name'].replace('%', '%%')}({call})::text AS id"
        result = while_drawing(connection, bar, lambda: rows_of(connection, query, *values))
        student = result[0]["id"]
        [run] = rows_of(connection, _RUNS + " WHERE r.run_id = distill.last_run(%s)", arguments.teacher)
        show(arguments, [run])
    if student is None:
        warn(f"no student: {run['summary']}")
        return NO_STUDENT
    return DONE


# The only function of the extension whose schema CREATE EXTENSION names: the role's search_path need not have it.
_DISTILL_MODEL = (
    "SELECT quote_ident(n.nspname) || '.distill_model' AS name FROM pg_extension e"
    " JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid"
    " AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'"
    " JOIN pg_proc p ON p.oid = d.objid JOIN pg_namespace n ON n.oid = p.pronamespace"
    " WHERE e.extname = 'pg_distill' AND p.proname = 'distill_model'"
)


_RUNS = (
    "SELECT r.run_id::text AS run_id, r.teacher_name AS teacher, r.student_name AS student, r.student_version AS version,"
    " r.accepted, r.metric, r.teacher_accuracy, r.student_accuracy, r.teacher_latency_ms, r.student_latency_ms,"
    " r.pareto_score, r.created_at, r.summary FROM distill.runs r"
)


def runs(arguments: argparse.Namespace) -> int:
    """List the distillations."""
    with connect(arguments) as connection:
        rows = rows_of(
            connection,
            _RUNS + " WHERE %s::text IS NULL OR r.teacher_name = %s ORDER BY r.created_at",
            arguments.name,
            arguments.name,
        )
    show(arguments, rows, "no runs")
    return DONE


def frontier(arguments: argparse.Namespace) -> int:
    """List the models that no other of their family dominates."""
    with connect(arguments) as connection:
        rows = rows_of(
            connection,
            "SELECT f.family, f.name, f.version, f.metric, f.accuracy, f.accuracy_low, f.accuracy_high, f.avg_latency_ms,"
            " f.latency_low_ms, f.latency_high_ms FROM distill.frontier f WHERE %s::text IS NULL OR f.family IN"
            " (SELECT g.family FROM distill.families g WHERE g.name = %s) ORDER BY f.family, f.avg_latency_ms",
            arguments.name,
            arguments.name,
        )
    show(arguments, rows, "no measured models")
    return DONE


def report_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("teacher", nargs="?", help="whose last run it is")
    which.add_argument("--run", metavar="RUN_ID")
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), help="the file (default: report.html)"
    )


def report(arguments: argparse.Namespace) -> int:
    """Write a run as one self-contained HTML page."""
    try:
        from pg_distill.cli.report import render

        with connect(arguments) as connection:
            page = render(connection, teacher=arguments.teacher, run_id=arguments.run)
    except ImportError as error:
        raise InvalidState(
            f"{error.name or error} is not installed",
            hint="Install it with what draws: pip install 'pg_distill[plot]'.",
        ) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A row that no distillation of ours has written.
        raise InvalidState("the run is not recorded as a run is", detail=f"{error!r}.") from error
    content = page.encode("utf-8", "backslashreplace")
    write_file(arguments.output, content)
    show(arguments, [{"file": str(arguments.output), "bytes": len(content)}])
    return DONE


def check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="NAME or NAME:VERSION")
    parser.add_argument(
        "--sample", help="fresh rows: a relation or a query (default: the run's test split, as it is now)"
    )
    parser.add_argument("--label", help="the column that holds the truth (default: the run's)")
    parser.add_argument("--max-rows", type=int, help="rows that are drawn", default=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help="of the rows that are drawn", default=argparse.SUPPRESS)
    parser.add_argument(
        "--include-learned",
        action="store_true",
        help="also rows that the model has learned from",
        default=argparse.SUPPRESS,
    )


def check(arguments: argparse.Namespace) -> int:
    """Compare a model's figures on fresh rows with those recorded."""
    options = ("max_rows", "seed", "include_learned")
    given = {name: getattr(arguments, name) for name in options if hasattr(arguments, name)}
    call = ", ".join(["%s, sample => %s, label => %s", *(f"{name} => %s" for name in given)])
    with connect(arguments) as connection:
        rows = rows_of(
            connection,
            f"SELECT * FROM distill.check({call})",
            arguments.model,
            arguments.sample,
            arguments.label,
            *given.values(),
        )
    show(arguments, rows)
    return NO_LONGER_HOLDS if any(row["holds"] is False for row in rows) else DONE
