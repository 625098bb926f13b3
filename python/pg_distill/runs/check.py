"""Watching registered models: whether they still do on fresh rows, and on this machine, what their run recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pg_distill.database.protocol import Database
from pg_distill.errors import InvalidParameter
from pg_distill.measure import confidence
from pg_distill.registry import families, runs
from pg_distill.registry import models as registry
from pg_distill.registry.model import MeasuredOn, Model
from pg_distill.runs import verdict
from pg_distill.runs.choice import stands_in
from pg_distill.runs.contest import fits
from pg_distill.runs.fresh import FreshFigures, fresh_rows, learned_of, measure_on, unlearned
from pg_distill.runs.options import Options
from pg_distill.serving.timing import (
    describe_machine,
    require_expressions,
)

__all__ = ["check"]

MAX_CHECKED = 6  # members of the family that a checked model is held against
LATENCY_SECONDS = 10.0  # for all contenders of a check together
SAME_MACHINE = ("processor", "cores", "postgresql")


def check(
    db: Database,
    name: str,
    *,
    sample: str | None,
    label: str | None,
    max_rows: int,
    seed: int,
    include_learned: bool = False,
) -> list[dict[str, Any]]:
    """Measure a model on fresh rows and hold it against what is recorded; one row a figure.

    Parameters
    ----------
    sample
        A relation or query. None: the rows of the model's run as they are now, of which the test split is taken, that new
        rows fall into by their hash too.
    label
        The column of the sample that holds the truth; None: that of the model, where the sample has it.
    max_rows
        Most rows that are drawn.
    include_learned
        Also rows that the model, or its teacher, has learned from; without, they are left out.

    Returns
    -------
    ``fidelity`` and ``accuracy`` (higher is better) and ``latency`` (milliseconds, lower is better), recorded and fresh with
    95 % intervals; ``holds`` is false where the fresh one is worse beyond what both intervals allow. Then the teacher's, and
    ``place``: whether it still meets what its run asked for and no member of its family is better beyond doubt. Each has
    ``learned_share``, the share of the rows drawn that the model or its teacher has learned from; None where that is not known.

    Raises
    ------
    InvalidState
        There is no sample.
    TooManyTrainings
        As many processes train or measure as are allowed at once.
    InsufficientPrivilege
        SQL that another role stored would have to run.
    InvalidData, UndefinedColumn, DatatypeMismatch
        The rows do not fit the model, or it has learned from all of them.
    """
    if seed < 0:
        raise InvalidParameter(f"seed must be 0 or more, not {seed}")
    if not 1 <= max_rows <= 1_000_000:
        raise InvalidParameter(f"max_rows must be from 1 to 1000000, not {max_rows}")
    model = registry.find_model(db, name)
    run = runs.run_of(db, model)
    teacher = registry.find_teacher(db, model) or model
    require_expressions(db, teacher, model)
    learned = learned_of(db, dict.fromkeys([model.id, teacher.id]), {model.id: model, teacher.id: teacher})
    rows = fresh_rows(db, model, teacher, run, sample, label, max_rows, seed, learned[model.id])
    rows, share = unlearned(rows, learned, include=include_learned)
    family: list[Model] = []
    if model.id != teacher.id:
        others = families.family_members(db, teacher, MAX_CHECKED)
        others = [m for m in others if m.id != model.id and fits(m, teacher, rows.frame)]
        family = [model, *others[: MAX_CHECKED - 1]]
    recorded = runs.recorded_figures(db, [m.id for m in (teacher, *family)])
    found = measure_on(
        db, teacher, {m.id: m for m in family}, rows, seconds=LATENCY_SECONDS, always=[model.id]
    )
    machine = describe_machine(db)
    report = []
    if model.id != teacher.id:
        report.append(_fidelity(db, model, found))
    report.append(_accuracy(model, "accuracy", found, recorded[model.id], rows.metric))
    report.append(_latency(model, "latency", found, recorded[model.id], machine))
    if model.id != teacher.id:
        report.append(_accuracy(teacher, "teacher_accuracy", found, recorded[teacher.id], rows.metric))
        report.append(_latency(teacher, "teacher_latency", found, recorded[teacher.id], machine))
        report.append(_place(model, found, run, rows.metric))
    return [
        {**_BLANK, **row, "row_count": row.get("row_count", found.rows), "learned_share": share}
        for row in report
    ]


# -- figures --------------------------------------------------------------------------------------------------------

_BLANK: Mapping[str, Any] = dict.fromkeys(
    (
        "metric",
        "recorded",
        "recorded_low",
        "recorded_high",
        "fresh",
        "fresh_low",
        "fresh_high",
        "holds",
        "note",
    )
)


def _holds(
    recorded: Sequence[float | None], fresh: Sequence[float | None], *, lower_is_better: bool = False
) -> bool | None:
    """Whether ``fresh`` (value, low, high) is no worse than ``recorded``, beyond the interval of their difference.

    Both are measured on rows, or in blocks, of their own: the half-widths add by their squares. None where one is not known.
    """
    if recorded[0] is None or fresh[0] is None:
        return None
    worse = fresh[0] - recorded[0] if lower_is_better else recorded[0] - fresh[0]
    halves = [
        (high - low) / 2
        for _, low, high in (recorded, fresh)
        if low is not None and high is not None and math.isfinite(high - low)
    ]
    return worse <= math.sqrt(sum(half * half for half in halves))


def _row(
    figure: str,
    metric: str | None,
    recorded: Sequence[float | None],
    fresh: Sequence[float | None],
    note: str | None,
    *,
    lower_is_better: bool = False,
) -> dict[str, Any]:
    return {
        "figure": figure,
        "metric": metric,
        **dict(zip(("recorded", "recorded_low", "recorded_high"), recorded, strict=True)),
        **dict(zip(("fresh", "fresh_low", "fresh_high"), fresh, strict=True)),
        "holds": _holds(recorded, fresh, lower_is_better=lower_is_better),
        "note": note,
    }


def _fidelity(db: Database, model: Model, found: FreshFigures) -> dict[str, Any]:
    figures = found.figures[model.id]
    value, rows = runs.recorded_fidelity(db, model)
    interval = (
        confidence.share_interval(value, rows)
        if value is not None and rows and model.task in ("binary", "multiclass")
        else None
    )
    recorded = (value, *((interval.low, interval.high) if interval is not None else (None, None)))
    fresh = (figures["fidelity"], figures["fidelity_low"], figures["fidelity_high"])
    metric = {"regression": "r2", "multilabel": "f1_micro"}.get(model.task, "agreement")
    return _row("fidelity", metric, recorded, fresh, None if value is not None else "no run recorded it")


def _accuracy(
    model: Model, figure: str, found: FreshFigures, recorded: Mapping[str, Any], metric: str
) -> dict[str, Any]:
    scores = found.figures[model.id]
    then = tuple(recorded[key] for key in ("accuracy", "accuracy_low", "accuracy_high"))
    now: tuple[float | None, ...] = (scores["score"], scores["score_low"], scores["score_high"])
    note = None
    if model.metric != metric:
        note = f"recorded in {model.metric}" if model.metric else "nothing is recorded"
        if metric == "agreement":
            note, now, metric = "the rows have no label", (None, None, None), model.metric or metric
        else:
            then = (None, None, None)
    return _row(figure, metric, then, now, note)


def _latency(
    model: Model,
    figure: str,
    found: FreshFigures,
    recorded: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    then = tuple(recorded[key] for key in ("avg_latency_ms", "latency_low_ms", "latency_high_ms"))
    timing = found.timings.get(model.id)
    if timing is None:
        return _row(figure, "ms", then, (None, None, None), "it predicts elsewhere") | {"row_count": 0}
    measured = timing.latency
    stored: MeasuredOn = json.loads(recorded["measured_on"]) if recorded["measured_on"] else {}
    where = stored.get("machine") or {}
    moved = [key for key in SAME_MACHINE if where.get(key) != machine.get(key)]
    note = (
        f"recorded on another machine ({', '.join(moved)}): run distill.remeasure"
        if where and moved
        else None
    )
    fresh = (measured.mean_ms, measured.low_ms, measured.high_ms)
    row = _row(figure, "ms", then, fresh, note, lower_is_better=True)
    return row | {"row_count": measured.n_calls}


def _place(model: Model, found: FreshFigures, run: Mapping[str, Any] | None, metric: str) -> dict[str, Any]:
    """Judge as the run did, but let nobody push it out whose lead is within the noise."""
    ours, mine = found.figures[model.id], found.timings[model.id].latency
    lost = []
    asked = json.loads(run["resolved"]) if run is not None else {}
    target = asked.get("target_latency_ms")
    if target is not None and mine.low_ms > target:
        lost.append(f"its latency of {mine.mean_ms:.4g} ms misses the target of {target:g} ms")
    options = Options(found.teacher.name, min_accuracy=asked.get("min_accuracy"))
    its_score = found.figures[found.teacher.id]["score"]
    least = verdict.floor(options, metric, model.task, its_score, found.majority) if run is not None else None
    # What agreement stands in for is not what the run asked for.
    if least is not None and ours["score"] is not None and "agreement" not in {metric} - {model.metric}:
        value = verdict.reached(ours, metric, least)
        # The interval is the run's metric's: for another one the value alone decides.
        high = ours["score_high"] if least.metric == metric else value
        if high is not None and high < least.value:
            lost.append(f"its {least.metric} of {value:.4f} misses the floor of {least.value:.4g}")
    for key, other in {found.teacher.id: found.teacher, **found.members}.items():
        theirs, timing = found.figures.get(key), found.timings.get(key)
        if key == model.id or timing is None or not stands_in(other.form, model.form):
            continue
        if theirs is None or theirs["score"] is None or ours["score"] is None:
            continue
        # An interval that is not known bounds nothing.
        high = math.inf if ours["score_high"] is None else ours["score_high"]
        low = -math.inf if theirs["score_low"] is None else theirs["score_low"]
        ours_there, high_there = ours["score"], high
        if "against" in theirs:
            beside = theirs["against"]["members"].get(model.id)
            if beside is None or beside["score"] is None:
                continue
            ours_there = beside["score"]
            # Of fewer rows: an interval is as much wider.
            wider = math.sqrt(ours["rows"] / max(theirs["rows"], 1))
            high_there = ours_there + wider * (high - ours["score"])
        latency = timing.latency
        faster, as_fast = latency.high_ms < mine.low_ms, latency.mean_ms <= mine.mean_ms
        better, as_good = low > high_there, theirs["score"] >= ours_there
        if (faster and as_good) or (better and as_fast):
            lost.append(f"{other.qualified_name} dominates it")
    return {"figure": "place", "holds": not lost, "note": " and ".join(lost) or None}
