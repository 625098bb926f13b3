"""Takes over what a full run of a benchmark measured: tests/bench/results, and the documents' tables.

``make bench``, ``make bench-quality``, ``make bench-few`` and ``make bench-sql-students`` call it at their end. A run with ``--quick`` is not taken over, nor one of fewer sets than
the page shows. Tables that no run makes (the slower day, an earlier profile) stay as they are. Sentences of the page that quote
figures are for whoever commits the change: git diff shows what moved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from docs import results

__all__ = ["FEW_RUNS", "few", "publish", "quality", "serving", "sql_students", "stored_runs"]

RESULTS = Path(__file__).parent / "results"
Table = dict[str, Any]
Report = Mapping[str, Any]

TIE = -0.005  # the lower bound of a paired difference above which it is a tie
LARGE = 5000  # test rows of a set whose intervals tell ties from noise
WIDTHS = (10, 20, 50, 200)
SQL_SETS = {"letter", "magic", "flights", "diamonds"}


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return {"columns": list(columns), "rows": [list(row) for row in rows]}


# -- make bench


def serving(report: Report) -> dict[str, Table]:
    """Return the tables of what serving costs."""
    us, ratios, cold, memory = (report[key] for key in ("us_per_row", "ratios", "cold_start", "memory"))

    def cell(family: str, way: str, width: int = 20, digits: int = 2) -> str:
        figure = us.get(f"{family}_rows{width}.{way}")
        return "" if figure is None else f"{figure:.{digits}f}"

    ways = {
        "bare `session.run`, one row a call": "session_run",
        "`predict` in a query": "predict",
        "typed function": "typed_function",
        "`predict` of `to_jsonb(row)`": "predict_jsonb",
        "`predict_batch`": "predict_batch",
        "`score` into a table": "score",
        "the application, into a table": "application",
        "plain SQL (default JIT)": "sql",
    }

    def over_session(width: int) -> str:
        return ", ".join(
            f"{us[f'{family}_rows{width}.predict'] - us[f'{family}_rows{width}.session_run']:.1f}"
            for family in ("linear", "boosted", "mlp")
        )

    def clients(what: str, count: int) -> str:
        found = report["pgbench"][f"{what}, {count} clients"]
        p99 = f"{found['p99_ms']:.2f} ms"
        return f"{found['transactions_per_s']:,.0f} /s, {'p99 ' if count == 1 else ''}{p99}"

    small = [cell("small_mlp", "sql", width, 1) or "too large" for width in WIDTHS]
    day = [
        f"{ratios['predict_minus_session_run_us']:.1f} us",
        f"{ratios['linear_sql_us_per_row']:.2f} us",
        f"{ratios['onnx_over_linear_sql']:.0f} times",
        f"{ratios['sql_parallel_2_over_1']:.1f} times",
        f"{ratios['score_over_application']:.1f} times",
        f"{ratios['score_over_application_mixed']:.1f} times",
        f"{ratios['cold_start_first_predict_ms']:.0f} ms",
    ]
    return {
        "ways": _table(
            ["", "linear", "20 trees of 16 leaves", "MLP 64-32"],
            [
                [said, *(cell(family, way) for family in ("linear", "boosted", "mlp"))]
                for said, way in ways.items()
            ],
        ),
        "widths": _table(
            ["features", *map(str, WIDTHS)],
            [
                ["`predict` less `session.run`: linear, trees, MLP", *map(over_session, WIDTHS)],
                ["linear as plain SQL", *(cell("linear", "sql", width) for width in WIDTHS)],
                ["trees as plain SQL", *(cell("boosted", "sql", width) for width in WIDTHS)],
                ["an MLP of 8 units as plain SQL", *small],
            ],
        ),
        "pgbench": _table(
            ["pgbench, one row a statement", "1 client", "8 clients", "32 clients"],
            [
                [said, *(clients(what, count) for count in (1, 8, 32))]
                for said, what in (
                    ("`predict` of the MLP", "predict"),
                    ("trees as plain SQL", "sql"),
                    ("no prediction", "nothing"),
                )
            ],
        ),
        "session": _table(
            ["figure", "measured"],
            [
                ["first `predict` of a backend", f"{cold['first_ms']:.0f} ms"],
                ["memory of a warmed backend of its own", f"{cold['loaded_mib']:.0f} MiB"],
                ["300 models in it, more", f"{memory['300_models_256_mb_limit_mib']:.0f} MiB"],
                [
                    "the same where `session_cache_mb` is 16, more",
                    f"{memory['300_models_16_mb_limit_mib']:.0f} MiB",
                ],
                [
                    "one row a statement: fetched and predicted by the application",
                    f"{us['mlp_rows20.application_one_row']:.0f} us",
                ],
                ["one row a statement: by `predict`", f"{us['mlp_rows20.predict_one_row']:.0f} us"],
                ["one row a statement: fetched, no prediction", f"{us['mlp_rows20.fetch_one_row']:.0f} us"],
            ],
        ),
        "days": _table(["this day"], [[figure] for figure in day]),
    }


# -- make bench-quality


def quality(report: Report) -> dict[str, Table]:
    """Return the tables of how good students are."""
    runs = report["runs"]
    targets = sorted({target for run in runs for target in run["students"]}, key=float)
    last = targets[-1]

    def point(found: Report | None) -> str:
        return "none" if found is None else f"{found['test']:.4f} ({found['latency_ms'] * 1e3:.3g})"

    def difference(run: Report, kind: str) -> str:
        other = (run["students"][last] or {}).get(kind)
        if other is None:
            return ""
        if other["is_student"]:
            return f"is the {kind}"
        return "{:+.4f} to {:+.4f}".format(*other["difference"])

    compared = [
        (run, target, kind, student[kind])
        for run in runs
        for target, student in run["students"].items()
        for kind in ("control", "recipe")
        if student and kind in student
    ]

    def is_tie(other: Report) -> bool:
        return bool(other["is_student"] or other["difference"][0] > TIE)

    def is_large(run: Report) -> bool:
        return bool(run["rows"]["test"] >= LARGE)

    def ties(large: bool) -> list[str]:
        found = {
            kind: [
                is_tie(other) for run, _, which, other in compared if which == kind and is_large(run) == large
            ]
            for kind in ("recipe", "control")
        }
        sizes = [run["rows"]["test"] for run in runs if is_large(run) == large]
        sets = len({run["set"] for run in runs if is_large(run) == large})
        said = f"{sets} {'large' if large else 'small'} ones, {min(sizes, default=0):,} to {max(sizes, default=0):,} test rows"
        return [said, f"of {len(found['control'])}", str(sum(found["recipe"])), str(sum(found["control"]))]

    missed = [
        [f"{run['set']}, {run['split']}", f"{target} ms", kind, f"{100 * other['difference'][0]:.2f}"]
        for run, target, kind, other in compared
        if is_large(run) and not is_tie(other)
    ]
    kept = [
        [f"{t} ms", *(_percent(report["ratios"][f"{what}_kept_at_{t}_ms"]) for what in ("accuracy", "lift"))]
        for t in targets
    ]
    best = {
        name: max((row for kind, row in found.items() if kind.endswith("_DSTL")), key=lambda row: row[0])
        for name, found in report["autogluon"].items()
    }
    return {
        "students": _table(
            [
                "set, split",
                "teacher",
                *(f"<= {t} ms" for t in targets),
                f"less control, {last} ms",
                f"less AutoGluon's recipe, {last} ms",
            ],
            [
                [
                    f"{run['set']}, {run['split']}",
                    point(run["teacher"]),
                    *(point(run["students"].get(t)) for t in targets),
                    difference(run, "control"),
                    difference(run, "recipe"),
                ]
                for run in runs
            ],
        ),
        "kept": _table(["within", "of the teacher's accuracy", "of its lift"], kept),
        "ties": _table(
            ["sets", "comparisons won or tied", "against AutoGluon's recipe", "against the control"],
            [ties(True), ties(False)],
        ),
        "missed": _table(["set, split", "within", "against", "lower bound, points"], missed),
        "autogluon": _table(
            ["set", "best student's accuracy", "its latency, a row"],
            [
                [name, f"{row[0]:.4f}", f"{row[1]:.0f} ms" if row[1] < 1000 else f"{row[1] / 1000:.1f} s"]
                for name, row in best.items()
            ],
        ),
        "goals": _goals(runs),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _goals(runs: Sequence[Report]) -> Table:
    rows = []
    for run in runs:
        reached = [run["students"].get(target) for target in ("0.02", "0.1")]
        if run["split"] == 0 and all(found and found["goal"] for found in reached):
            cells = [
                f"{f['test']:.4f}" if f["goal_met"] else f"**{f['test']:.4f}, missed**" for f in reached if f
            ]
            goals = [f"{f['goal']:.3f}" for f in reached if f]
            rows.append([run["set"], goals[0], cells[0], goals[1], cells[1]])
    return _table(["set, split 0", "goal within 0.02 ms", "reached", "goal within 0.1 ms", "reached"], rows)


# -- make bench-few

# A full run's, at least: sets, each by the same splits and teachers, and the seconds of a search where they are stated.
FEW_SETS, FEW_SECONDS = 24, 120.0
NAMES = {
    "teacher": "the teacher",
    "lightgbm": "LightGBM",
    "logistic": "logistic or ridge regression",
    "autogluon": "AutoGluon's best student",
}
FEW_SECTION = """## Few rows

`make bench-few` works on public sets of 846 to 7,400 rows, of which 30 % are test. A strong teacher is an average of trees and networks, a plain one
is LightGBM as it comes. Beside student and control stand LightGBM and a logistic (of values: ridge) regression, as a user would train them on
all rows that are not test. On eight of the sets stands AutoGluon 1.6, too, with 60 s to fit and 60 s to distil: the best of its students by its own
validation, which take 1 to 580 ms a call.

<!-- results: few -->
<!-- end of results -->

<!-- results: few.grid -->
<!-- end of results -->

Ranks: 1 is best, over sets, splits and teachers. Differences are in points of the set's metric, over sets, with their 95 % interval. A tie is a
set, split and teacher whose paired interval has 0 in it.

<!-- results: few.ranks -->
<!-- end of results -->

<!-- results: few.against -->
<!-- end of results -->

<!-- results: few.sets -->
<!-- end of results -->

"""
FEW_RUNS = RESULTS / "few_runs.json"
NEXT_SECTION = "## Students of texts"  # before which the section comes


def few(report: Report) -> dict[str, Table]:
    """Return the tables of students of few rows."""
    runs, summary = report["runs"], report["summary"]

    def named(method: str) -> str:
        what, _, target = method.partition("_")
        return NAMES.get(method, f"{what} within {target} ms")

    ranks = sorted(summary["mean_rank"].items(), key=lambda item: item[1])
    student = summary["student"]
    shown = [student, f"control_{student.partition('_')[2]}", "teacher", "lightgbm", "logistic"]
    sets = list(dict.fromkeys(run["set"] for run in runs))

    def mean(name: str, method: str) -> str:
        found = [run["scores"][method] for run in runs if run["set"] == name and method in run["scores"]]
        return f"{sum(found) / len(found):.4f}" if found else "none"

    def named_of(key: str) -> str:
        return ", ".join(dict.fromkeys(str(run[key]) for run in runs))

    seconds = report["seconds"]
    return {
        "grid": _table(
            ["sets", "splits", "teachers", "budget of a search", "seconds of a search, median"],
            [
                [
                    str(len(sets)),
                    named_of("split"),
                    named_of("teacher"),
                    "by the rows, as by default" if seconds is None else f"{seconds:g} s",
                    f"{summary['median_seconds']:.0f}",
                ]
            ],
        ),
        "ranks": _table(["", "mean rank"], [[named(method), f"{rank:.2f}"] for method, rank in ranks]),
        "against": _table(
            [
                f"{named(student)} against",
                "wins",
                "ties",
                "losses",
                "mean difference, points",
                "least, of a set",
            ],
            [
                [
                    named(method),
                    *(str(found[what]) for what in ("wins", "ties", "losses")),
                    "{:+.2f} ({:+.2f} to {:+.2f})".format(
                        *(100 * value for value in (found["mean_difference"], *found["interval"]))
                    ),
                    f"{100 * found['least'][1]:+.2f} ({found['least'][0]})",
                ]
                for method, found in summary["against"].items()
            ],
        ),
        "sets": _table(
            ["set", "rows to learn from", "metric", *map(named, shown)],
            [
                [
                    name,
                    next(str(r["rows"]["fit"] + r["rows"]["select"]) for r in runs if r["set"] == name),
                    next(r["metric"] for r in runs if r["set"] == name),
                    *(mean(name, method) for method in shown),
                ]
                for name in sets
            ],
        ),
    }


def stored_runs() -> list[Report]:
    """Return the runs of which the documents' tables are, to add to them."""
    found: list[Report] = json.loads(FEW_RUNS.read_text()) if FEW_RUNS.exists() else []
    return found


# -- make bench-sql-students


def sql_students(report: Report) -> dict[str, Table]:
    """Return the table of the best students that are SQL, beside the best of predict."""
    rows = []
    for run in report["runs"]:
        cells = [f"{run['set']}, {run['metric']}", f"{run['teacher']:.4f}"]
        for form in ("sql", "predict"):
            family = run[f"{form}_family"]
            had = family is not None
            cells.append(f"{run[form]:.4f}, {family}, {run[f'{form}_us']:.1f} us" if had else "none")
        both = run["sql"] is not None and run["predict"] is not None
        rows.append([*cells, f"{100 * (run['sql'] - run['predict']):+.2f}" if both else ""])
    columns = ["test rows of", "teacher", "SQL within 5 us a row", "predict within 0.1 ms", "points between"]
    return {"students": _table(columns, rows)}


# -- into the files


def publish(name: str, report: Report) -> bool:
    """Put the tables of a report into the stored results, and these into the documents; return whether it is a full run's."""
    if not _is_full(name, report):
        return False
    path = RESULTS / f"{name}.json"
    stored = (
        json.loads(path.read_text())
        if path.exists()
        else {"command": f"make bench-{name.replace('_', '-')}", "tables": {}}
    )
    made = {"serving": serving, "quality": quality, "few": few, "sql_students": sql_students}[name](report)
    for key, table in made.items():
        if key == "days":  # beside the slower day, which stays
            for row, [figure] in zip(stored["tables"]["days"]["rows"], table["rows"], strict=True):
                row[1] = figure
        else:
            stored["tables"][key] = table
    stored |= {
        "recorded": datetime.now(UTC).date().isoformat(),
        "machine": _machine(report),
        "source": f"build/bench/{name}.json, which the command writes",
    }
    path.write_text(json.dumps(stored, indent=1) + "\n")
    if name == "few":
        lines = ",\n".join(json.dumps(run, default=str) for run in report["runs"])
        FEW_RUNS.write_text(f"[\n{lines}\n]\n")
        page = results.DOCUMENTS[-1]
        text = page.read_text()
        if "<!-- results: few -->" not in text:
            page.write_text(text.replace(NEXT_SECTION, FEW_SECTION + NEXT_SECTION, 1))
    elif name in ("quality", "serving"):
        _summarize(name, report)
    results.main()
    return True


def _is_full(name: str, report: Report) -> bool:
    if name == "serving":
        method = report["method"]
        return bool(method["backends"] >= 5 and method["rounds"] >= 7 and method["rows"] >= 100_000)
    if name == "sql_students":
        return report["pgvector"] and {run["set"] for run in report["runs"]} >= SQL_SETS
    if name == "few":
        tried = {(run["set"], run["split"], run["teacher"]) for run in report["runs"]}
        if report["seconds"] is not None and report["seconds"] < FEW_SECONDS:
            return False
        sets, splits, teachers = (len({key[i] for key in tried}) for i in range(3))
        return sets >= FEW_SETS and len(tried) == sets * splits * teachers
    have = {(run["set"], run["split"], target) for run in report["runs"] for target in run["students"]}
    stored = json.loads((RESULTS / "quality.json").read_text())["tables"]["students"]["rows"]
    want = {tuple(row[0].split(", ")) for row in stored}
    return all(
        (name, int(split), target) in have for name, split in want for target in ("0.02", "0.05", "0.1")
    )


def _machine(report: Report) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a processor"
    )
    said = f"{len(os.sched_getaffinity(0))} cores of {processor}"
    found = report.get("machine")
    if found is None:
        return said
    return (
        f"{said} (load average {found['load_average']:.1f} at its start), {found['server'].split(' (')[0]},"
        f" ONNX Runtime {found['onnxruntime']}"
    )


def _summarize(name: str, report: Report) -> None:
    path = RESULTS / "summary.json"
    stored = json.loads(path.read_text())
    rows = stored["tables"]["four"]["rows"]
    if name == "quality":
        rows[1][1] = (
            f"{_percent(report['ratios']['accuracy_kept_at_0.1_ms'])} of the teacher's accuracy in the median"
        )
    else:
        rows[2][1] = f"{report['ratios']['predict_minus_session_run_us']:.1f} us a row or less"
        rows[3][1] = f"{report['ratios']['score_over_application']:.1f} times as fast"
    path.write_text(json.dumps(stored, indent=1) + "\n")
