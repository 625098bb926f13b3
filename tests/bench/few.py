"""Students of few rows, beside what a user would train: 30 public sets of 846 to 7,400 rows.

For each set, split and teacher (the strong one of strong_teachers.py, and a plain one, LightGBM as it comes): a search for each
latency target, as `make bench-quality` makes it; the student and the control (labels alone) that are chosen on the select rows and
timed in a backend; LightGBM and a logistic (or ridge) regression as a user would train them, on the same rows that are not test;
with ``--autogluon`` its own distillation too, of the strong teacher's sets, whatever its latency. All are scored once on the test
rows (30 % of the set).

Prints a table; writes build/bench/few.json. What has 24 sets or more, each by the same splits and teachers, goes into
tests/bench/results, its runs too: ``--merge`` adds to them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import quality  # first: it sets the threads of BLAS

# isort: split
import autogluon_env
import autogluon_recipe
import datasets
import lightgbm
import numpy as np
from few_summary import summarise
from pg_distill.frame import FloatArray, Frame
from pg_distill.measure import metrics
from pg_distill.runs.options import Options
from pg_distill.search.problem import Candidate, Config
from pg_distill.search.stages import search
from pg_distill.students.soft_labels import softmax
from publish import publish, stored_runs
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

ROOT = quality.ROOT
TARGETS_MS = (0.02, 0.1)
TEACHERS = ("strong", "plain")
LEAST_CATEGORY = 5
"""Rows of a category below which a one-hot encoding takes it for another: usual advice for few rows."""


def user_models(contest: quality.Contest) -> dict[str, Callable[[Frame], FloatArray]]:
    """Return what a user would train on all rows that are not test: probabilities (n, K), or values (n, 1)."""
    data, rows = contest.data, contest.problem
    frame = Frame.concat([rows.fit.frame, rows.select.frame])
    assert rows.fit.y is not None and rows.select.y is not None
    y = np.concatenate([rows.fit.y, rows.select.y])
    regression = data.task == "regression"
    width, strings = len(frame.number_names), len(frame.string_names)
    codes = list(range(width, width + strings))
    boosted: Any = (lightgbm.LGBMRegressor if regression else lightgbm.LGBMClassifier)(n_jobs=2, verbose=-1)
    boosted.fit(autogluon_recipe.table(frame), y, categorical_feature=codes or "auto")
    encoded = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler()), list(range(width))),
            ("strings", OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=LEAST_CATEGORY), codes),
        ]
    )  # fmt: skip
    line: Any = make_pipeline(encoded, Ridge() if regression else LogisticRegression(max_iter=2000))
    line.fit(autogluon_recipe.table(frame), y)

    def outputs(model: Any) -> Callable[[Frame], FloatArray]:
        def predict(rows: Frame) -> FloatArray:
            table = autogluon_recipe.table(rows)
            if regression:
                return np.asarray(model.predict(table), np.float64).reshape(-1, 1)
            found = np.zeros((len(rows), len(data.classes)))  # a class may be in no training row
            found[:, model.classes_.astype(int)] = model.predict_proba(table)
            return found

        return predict

    return {"lightgbm": outputs(boosted), "logistic": outputs(line)}


def chosen_within(
    contest: quality.Contest, target: float, options: argparse.Namespace
) -> tuple[list[Candidate], dict[str, tuple[Candidate, Any]], dict[str, Any]]:
    """Search for a latency target; return the candidates, what is chosen of each kind, and how the search ended."""
    seconds, most = Options(contest.data.name, time_budget_s=options.seconds).search_seconds(
        contest.data.frame, len(contest.data.classes), labelled_s=0.0
    )
    config = Config(
        target_latency_ms=target,
        call_overhead_ms=contest.overhead_ms,
        seed=options.seed,
        time_budget_s=seconds,
        most_seconds=most,
        threads=2,
    )
    ended: dict[str, Any] = {}
    found = search(
        contest.problem, config, contest.label, report=lambda said: ended.update(said.get("ended", {}))
    )
    kinds = {"student": found, "control": [c for c in found if c.is_control]}
    return found, contest.choose(kinds, target), ended


def run_set(
    name: str, number: int, kind: str, options: argparse.Namespace, timer: quality.Backend
) -> dict[str, Any]:
    """Return the figures of one set, split and teacher."""
    options.teacher = kind
    contest = quality.Contest(name, number, options, timer)
    data, test = contest.data, contest.test
    assert test.teacher_logits is not None
    taught = test.teacher_logits if data.task == "regression" else softmax(test.teacher_logits)
    seconds: dict[str, float] = {}
    outputs: dict[str, FloatArray] = {"teacher": taught}
    latency: dict[str, float | None] = {"teacher": None}
    ends: dict[str, Any] = {}
    for target in options.targets:
        start = time.monotonic()
        _, chosen, ends[str(target)] = chosen_within(contest, target, options)
        seconds[str(target)] = time.monotonic() - start
        for what, (candidate, timed) in chosen.items():
            key = f"{what}_{target}"
            outputs[key], latency[key] = contest.outputs(candidate), timed.mean_ms
    for what, predict in user_models(contest).items():
        outputs[what] = predict(test.frame)
        latency[what] = autogluon_recipe.mean_call_ms(predict, test.frame)
    if options.autogluon and kind == TEACHERS[0] and name in autogluon_env.SETS:
        found = autogluon_env.distilled(data, number, options)
        outputs["autogluon"], latency["autogluon"] = found.outputs, found.latency_ms
    scores = {what: metrics.score(data.metric, test.y, given) for what, given in outputs.items()}
    student = outputs.get(f"student_{options.targets[-1]}")
    return {
        "set": name,
        "split": number,
        "teacher": kind,
        "metric": data.metric,
        "rows": {"fit": len(contest.problem.fit), "select": len(contest.problem.select), "test": len(test)},
        "scores": scores,
        "latency_ms": latency,
        "seconds": seconds,
        "ended": ends,
        "versus": {}
        if student is None
        else {what: contest.difference(student, given) for what, given in outputs.items() if not what.startswith("student")},
    }  # fmt: skip


def say(run: dict[str, Any]) -> None:
    """Print a line of the table."""
    cells = "  ".join(f"{what} {score:.4f}" for what, score in run["scores"].items())
    took = ", ".join(f"{s:.0f} s ({run['ended'][t].get('by')})" for t, s in run["seconds"].items())
    print(
        f"{run['set']:<18}{run['split']:>2} {run['teacher']:<7}{run['metric']:<18}{cells}  {took}", flush=True
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", help="names with commas (default: all)")
    parser.add_argument("--splits", default="0,1,2")
    parser.add_argument("--teachers", default=",".join(TEACHERS))
    parser.add_argument(
        "--targets", default=",".join(map(str, TARGETS_MS)), help="latencies in ms, with commas"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="time budget of a search (default: by the rows, as a distillation has it)",
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--autogluon",
        nargs="?",
        const="make",
        metavar="PYTHON",
        help="AutoGluon's own distillation too: by an interpreter that has it, or one that is made in build/bench (GBs)",
    )
    parser.add_argument(
        "--merge", action="store_true", help="keep what the output has of other sets, splits, teachers"
    )
    options = quality.parsed(parser, "few")
    options.targets = [float(t) for t in options.targets.split(",")]
    options.teacher_rows = "fit"
    names = options.sets.split(",") if options.sets else list(datasets.FEW)
    runs: list[dict[str, Any]] = []
    if options.merge:
        runs = json.loads(options.output.read_text())["runs"] if options.output.exists() else stored_runs()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    with quality.backend(options.server) as timer:
        for number in map(int, options.splits.split(",")):
            for name in names:
                for kind in options.teachers.split(","):
                    run = run_set(name, number, kind, options, timer)
                    say(run)
                    key = name, number, kind
                    runs = [r for r in runs if (r["set"], r["split"], r["teacher"]) != key] + [run]
                    report = {"runs": runs, "summary": summarise(runs), "seconds": options.seconds}
                    options.output.write_text(json.dumps(report, indent=1, default=str))
    print(json.dumps(report["summary"], indent=1))
    if publish("few", report):
        print("written to tests/bench/results and the documents' tables: see git diff")


if __name__ == "__main__":
    main()
