"""Watching registered models: whether they still do on fresh rows, and on this machine, what their run recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.child.trainer import Trainer
from pg_distill.database.protocol import Database
from pg_distill.errors import InvalidData, InvalidParameter
from pg_distill.frame import FloatArray, Frame
from pg_distill.measure import confidence, metrics
from pg_distill.registry import families, locks, runs, settings
from pg_distill.registry import models as registry
from pg_distill.registry.model import Model, require_owner
from pg_distill.rows.learned import Learned, are_enough
from pg_distill.rows.sample import draw_identified
from pg_distill.rows.source import check_columns, identity_columns, resolve_source
from pg_distill.rows.split import TEST, split_times
from pg_distill.runs import verdict
from pg_distill.runs.choice import predict_name, stands_in
from pg_distill.runs.distill import fits, identities_of_family, known_to_registered
from pg_distill.runs.material import prepare
from pg_distill.runs.options import Options
from pg_distill.runs.record import accuracy_columns, accuracy_origin
from pg_distill.runs.verdict import comparable_interval
from pg_distill.serving.approval import trainer_limits
from pg_distill.serving.sql_models import check_outputs, label_by_sql, logged_columns, logged_outputs
from pg_distill.serving.timing import (
    Timing,
    contender_for,
    describe_machine,
    measure_latency,
    predict_contender,
    require_expressions,
)
from pg_distill.teachers.register import default_metric, latency_figures, positions

__all__ = ["check", "remeasure"]

MAX_CHECKED = 6  # members of the family that a checked model is held against
MAX_REMEASURED = 1000  # members of a family that are measured again: all of them
LATENCY_SECONDS = 10.0  # for all contenders of a check together
LATENCY_SECONDS_EACH = 2.0  # of a member that is remeasured
LATENCY_ROWS = 2000  # rows that calls are timed on
LABEL_SECONDS = (
    240.0  # of which labelling gets its share, see trainer.LABEL_SHARE: a slower teacher labels fewer rows
)
SAME_MACHINE = ("processor", "cores", "postgresql")


@dataclass(frozen=True)
class _Rows:
    """Rows to measure on, and who labels them."""

    frame: Frame
    y: npt.NDArray[Any]
    weights: FloatArray | None
    outputs: FloatArray | None
    metric: str
    seed: int
    outside: Callable[[Learned], npt.NDArray[np.bool_] | None]
    """Which of them may judge a model, by what it has learned from; None where that cannot be told."""

    def take(self, kept: npt.NDArray[Any]) -> _Rows:
        """Return some of the rows."""

        def outside(learned: Learned) -> npt.NDArray[np.bool_] | None:
            found = self.outside(learned)
            return None if found is None else found[kept]

        return _Rows(
            self.frame.take(kept),
            self.y[kept],
            None if self.weights is None else self.weights[kept],
            None if self.outputs is None else self.outputs[kept],
            self.metric,
            self.seed,
            outside,
        )


@dataclass(frozen=True)
class _Measured:
    """What was measured: figures by ``Judge.figures`` and latencies, by model id; ``rows`` is how many were scored.

    Members that the rows may not judge have latencies only.
    """

    teacher: Model
    members: Mapping[str, Model]
    figures: Mapping[str, Mapping[str, Any]]
    timings: Mapping[str, Timing]
    rows: int
    majority: float | None
    """The metric of always answering with the majority or the mean of these rows."""


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
    learned = _learned(db, dict.fromkeys([model.id, teacher.id]), {model.id: model, teacher.id: teacher})
    rows = _fresh_rows(db, model, teacher, run, sample, label, max_rows, seed, learned[model.id])
    rows, share = _unlearned(rows, learned, include=include_learned)
    family: list[Model] = []
    if model.id != teacher.id:
        others = families.family_members(db, teacher, MAX_CHECKED)
        others = [m for m in others if m.id != model.id and fits(m, teacher, rows.frame)]
        family = [model, *others[: MAX_CHECKED - 1]]
    recorded = runs.recorded_figures(db, [m.id for m in (teacher, *family)])
    found = _measure(db, teacher, {m.id: m for m in family}, rows, seconds=LATENCY_SECONDS, always=[model.id])
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


def remeasure(db: Database, name: str) -> list[dict[str, Any]]:
    """Measure a model's family again where it is now, store the figures, and return them with those before.

    Teacher, students and versions are measured in one go, on the test rows of the model's run: figures from different
    machines do not compare.

    Raises
    ------
    InvalidState
        There is no sample.
    TooManyTrainings
        As many processes train or measure as are allowed at once.
    InsufficientPrivilege
        SQL that another role stored would have to run.
    """
    model = registry.find_model(db, name)
    teacher = registry.find_teacher(db, model) or model
    require_expressions(db, teacher, model)
    run = runs.run_of(db, model)
    learned = _learned(db, [model.id], {model.id: model})[model.id]
    rows = _fresh_rows(db, model, teacher, run, None, None, Options.max_rows, 0, learned)
    members = {
        m.id: m for m in families.family_members(db, teacher, MAX_REMEASURED) if fits(m, teacher, rows.frame)
    }
    seconds = LATENCY_SECONDS_EACH * (1 + len(members))
    before = runs.recorded_figures(db, [teacher.id, *members])
    found = _measure(db, teacher, members, rows, seconds=seconds)
    machine = describe_machine(db)
    # Until the transaction ends: a run of the family that writes figures, too, waits, and never in a circle.
    locks.lock_family(db, teacher, [m.name for m in members.values()])
    report = []
    for key, measured in {teacher.id: teacher, **members}.items():
        timing, scores, old = found.timings.get(key), found.figures.get(key), before[key]
        figures: dict[str, Any] = latency_figures(timing) if timing is not None else {}
        # A metric that nobody can measure on these rows stays as it is; so does that of another run.
        if scores is not None and (scores["score"] is None or measured.metric not in (None, rows.metric)):
            scores = None
        stored = json.loads(old["measured_on"]) if old["measured_on"] else {}
        figures |= accuracy_columns(rows.metric, scores)
        if (
            scores is not None and timing is not None
        ):  # all that a worker may have said of it is this server's word now
            figures["attested"] = True
        figures["measured_on"] = {
            "run_id": run["run_id"] if run is not None else None,
            **accuracy_origin(scores, found.rows, _comparable(found, model, scores), stored),
            "path": timing.path if timing is not None else None,
            "calls": timing.latency.n_calls if timing is not None else 0,
            "blocks": timing.latency.n_blocks if timing is not None else 0,
            "cold_ms": timing.cold_ms if timing is not None else None,
            "machine": machine,
        }
        if predict_name(measured) in found.timings:
            by_predict = found.timings[predict_name(measured)].latency
            figures["measured_on"] |= {
                "predict_latency_ms": by_predict.mean_ms,
                "predict_latency_high_ms": by_predict.high_ms,
            }
        figures["measured_at"] = datetime.now(UTC).isoformat()
        registry.update_figures(db, key, figures)
        report.append(
            {
                "name": measured.name,
                "version": measured.version,
                **{
                    column: figures.get(column, old[column])
                    for column in (
                        "avg_latency_ms",
                        "latency_low_ms",
                        "latency_high_ms",
                        "accuracy",
                        "accuracy_low",
                        "accuracy_high",
                    )
                },
                "previous_latency_ms": old["avg_latency_ms"],
                "previous_accuracy": old["accuracy"],
            }
        )
    return report


def _comparable(
    found: _Measured, model: Model, scores: Mapping[str, Any] | None
) -> tuple[float, float] | None:
    """Return what a member that some rows judged would reach on all, by its difference to the model asked for, or its teacher."""
    if scores is None or "against" not in scores:
        return None
    own = found.figures.get(model.id)
    there = scores["against"]["members"].get(model.id)
    if own is not None and "against" not in own and there is not None:
        return comparable_interval(scores, own["score"], there)
    return comparable_interval(scores, found.figures[found.teacher.id]["score"], scores["against"]["teacher"])


# -- rows -----------------------------------------------------------------------------------------------------------


def _learned(db: Database, ids: Iterable[str], models: Mapping[str, Model]) -> dict[str, Learned | None]:
    """Return by id the rows that models have learned from, None where that is not known."""
    found = registry.read_learned(db, ids)
    for key, learned in found.items():
        if learned is None and models[key].teacher_id is None:
            found[key] = known_to_registered(db, models[key])
    return found


def _unlearned(
    rows: _Rows, learned: Mapping[str, Learned | None], *, include: bool
) -> tuple[_Rows, float | None]:
    """Return the rows that none of some models has learned from, and the share that one has; None where that is not known."""
    masks = [None if known is None else rows.outside(known) for known in learned.values()]
    told = [mask for mask in masks if mask is not None]
    outside = np.logical_and.reduce(told) if told else np.ones(len(rows.frame), bool)
    share = None if len(told) < len(masks) else 1.0 - float(outside.mean())
    if include or outside.all():
        return rows, share
    if not outside.any():
        raise InvalidData(
            f"the model or its teacher has learned from every one of the {len(rows.frame)} rows",
            hint="Pass rows that they have not seen, or include_learned => true.",
        )
    return rows.take(np.flatnonzero(outside)), share


def _fresh_rows(
    db: Database,
    model: Model,
    teacher: Model,
    run: Mapping[str, Any] | None,
    sample: str | None,
    label: str | None,
    max_rows: int,
    seed: int,
    learned: Learned | None,
) -> _Rows:
    if sample is None and run is not None:
        # New rows too are split by their hash: what falls to the test split no student has learned from.
        require_owner(db, run["owner"], f'the sample of run "{run["run_id"]}"', hint="Pass sample => ... .")
        given = json.loads(run["resolved"])
        if label is not None:
            given["label"] = label
        options = Options(
            **{key: value for key, value in given.items() if key in Options.__dataclass_fields__}
        )
        material = prepare(db, teacher, options, identities=identities_of_family(db, teacher, MAX_REMEASURED))
        return _Rows(
            material.sample.frame,
            material.y,
            material.weights,
            material.outputs,
            material.metric,
            options.seed,
            lambda known: material.sample.outside(known, options.group_column, options.time_column),
        ).take(np.flatnonzero(material.sample.split == TEST)[:max_rows])
    source = resolve_source(db, runs.sample_of(db, model, sample)).read_as(teacher.signature.features)
    if label is None and model.label in source.types:
        label = model.label
    logged = logged_columns(teacher) if teacher.kind == "logged" else []
    features = check_columns(source, teacher.signature.names)
    # What the model's run kept on one side is told apart by the same columns, where the rows have them.
    by_group, by_time = (
        column if column is not None and column in source.kinds else None
        for column in ((learned.group_column, learned.time_column) if learned is not None else (None, None))
    )
    if by_time is not None and source.kinds[by_time] == "string":
        by_time = None
    frame, labels, extra, identities, groups = draw_identified(
        db,
        source,
        features,
        label=label,
        extra=[*logged, *([by_time] if by_time is not None else [])],
        seed=seed,
        limit=max_rows,
        group_column=by_group,
        identities=sorted({identity_columns(features), *identities_of_family(db, teacher, MAX_REMEASURED)}),
    )
    times = split_times(extra[by_time], groups) if by_time is not None else None

    def outside(known: Learned) -> npt.NDArray[np.bool_] | None:
        hashes = identities.get(known.identity)
        if hashes is None:
            return None
        return known.outside(hashes, groups=groups, times=times, group_column=by_group, time_column=by_time)

    if not len(frame):
        raise InvalidData("the sample has no rows" + (" with a label" if label else ""))
    if labels is not None:
        y = positions(labels, teacher.task, teacher.signature.classes)
        metric = model.metric if model.metric not in (None, "agreement") else default_metric(model.task, True)
    else:
        y = np.full(len(frame), math.nan) if teacher.task == "regression" else np.full(len(frame), -1)
        metric = "agreement"
    outputs = None
    if logged:
        raw = logged_outputs(extra, logged)
        outputs = check_outputs(raw, teacher.task, teacher.signature.classes, frame)
    assert metric is not None
    return _Rows(frame, y, None, outputs, metric, seed, outside)


def _measure(
    db: Database,
    teacher: Model,
    members: Mapping[str, Model],
    rows: _Rows,
    *,
    seconds: float,
    always: Sequence[str] = (),
) -> _Measured:
    """Score teacher and members on the rows, in a child; time their calls here, in turns.

    Each member is scored on the rows that it has not learned from, where these are enough; those of ``always`` on all.
    """
    outside = {key: np.ones(len(rows.frame), bool) for key in always if key in members}
    of_classes = metrics.weighs_classes(rows.metric)
    for key, learned in _learned(db, [key for key in members if key not in always], members).items():
        found = rows.outside(learned) if learned is not None else None
        if found is not None and (
            found.all() or are_enough(found, rows.y, teacher.task, of_classes=of_classes)
        ):
            outside[key] = found
    with locks.admitted(db):
        return _measure_admitted(db, teacher, members, rows, outside, seconds=seconds)


def _measure_admitted(
    db: Database,
    teacher: Model,
    members: Mapping[str, Model],
    rows: _Rows,
    outside: Mapping[str, npt.NDArray[np.bool_]],
    *,
    seconds: float,
) -> _Measured:
    ask = (lambda frame: label_by_sql(db, teacher, frame)) if teacher.kind == "sql" else None
    with Trainer(trainer_limits(db), db.check_interrupts, label=ask) as trainer:
        loaded = trainer.load(
            task=teacher.task,
            classes=teacher.signature.classes,
            metric=rows.metric,
            seed=rows.seed,
            time_budget_s=LABEL_SECONDS,
            threads=settings.get_setting(db, "trainer_threads"),
            frame=rows.frame,
            split=np.full(len(rows.frame), TEST, np.uint8),
            y=rows.y,
            weights=rows.weights,
            teacher=(registry.read_artifact(db, teacher), teacher.signature)
            if teacher.kind == "onnx"
            else None,
            outputs=rows.outputs,
            class_threshold=teacher.class_threshold,
        )
        files = {key: (registry.read_artifact(db, members[key]), members[key].signature) for key in outside}
        thresholds = {key: m.threshold for key, m in members.items() if m.threshold is not None}
        cuts = {key: m.class_threshold for key, m in members.items() if m.class_threshold is not None}
        scored = trainer.evaluate([], files, thresholds, cuts, outside)
    contenders = {m.id: contender_for(db, m) for m in (teacher, *members.values()) if m.kind != "logged"}
    for m in members.values():
        if m.form == "sql":  # predict can be called for it too
            by_predict = predict_contender(m.qualified_name, m.signature)
            contenders[predict_name(m)] = replace(by_predict, name=predict_name(m))
    few = rows.frame.take(np.arange(min(len(rows.frame), LATENCY_ROWS)))
    timed = measure_latency(db, list(contenders.values()), few, seed=rows.seed, seconds=seconds)
    return _Measured(
        teacher,
        members,
        {teacher.id: scored["teacher"], **scored["members"]},
        {key: timed[contender.name] for key, contender in contenders.items()},
        loaded["rows"]["test"],
        scored["majority"],
    )


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


def _fidelity(db: Database, model: Model, found: _Measured) -> dict[str, Any]:
    figures = found.figures[model.id]
    value, rows = runs.recorded_fidelity(db, model)
    interval = (
        confidence.share_interval(value, rows)
        if value is not None and rows and model.task != "regression"
        else None
    )
    recorded = (value, *((interval.low, interval.high) if interval is not None else (None, None)))
    fresh = (figures["fidelity"], figures["fidelity_low"], figures["fidelity_high"])
    metric = "r2" if model.task == "regression" else "agreement"
    return _row("fidelity", metric, recorded, fresh, None if value is not None else "no run recorded it")


def _accuracy(
    model: Model, figure: str, found: _Measured, recorded: Mapping[str, Any], metric: str
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
    found: _Measured,
    recorded: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    then = tuple(recorded[key] for key in ("avg_latency_ms", "latency_low_ms", "latency_high_ms"))
    timing = found.timings.get(model.id)
    if timing is None:
        return _row(figure, "ms", then, (None, None, None), "it predicts elsewhere") | {"row_count": 0}
    measured = timing.latency
    where = (json.loads(recorded["measured_on"]) if recorded["measured_on"] else {}).get("machine") or {}
    moved = [key for key in SAME_MACHINE if where.get(key) != machine.get(key)]
    note = (
        f"recorded on another machine ({', '.join(moved)}): run distill.remeasure"
        if where and moved
        else None
    )
    fresh = (measured.mean_ms, measured.low_ms, measured.high_ms)
    row = _row(figure, "ms", then, fresh, note, lower_is_better=True)
    return row | {"row_count": measured.n_calls}


def _place(model: Model, found: _Measured, run: Mapping[str, Any] | None, metric: str) -> dict[str, Any]:
    """Judge as the run did, but let nobody push it out whose lead is within the noise."""
    ours, mine = found.figures[model.id], found.timings[model.id].latency
    lost = []
    asked = json.loads(run["resolved"]) if run is not None else {}
    target = asked.get("target_latency_ms")
    if target is not None and mine.low_ms > target:
        lost.append(f"its latency of {mine.mean_ms:.4g} ms misses the target of {target:g} ms")
    options = Options(found.teacher.name, min_accuracy=asked.get("min_accuracy"))
    theirs = found.figures[found.teacher.id]["score"]
    least = verdict.floor(options, metric, model.task, theirs, found.majority) if run is not None else None
    # What agreement stands in for is not what the run asked for.
    if least is not None and ours["score"] is not None and "agreement" not in {metric} - {model.metric}:
        value = verdict.reached(ours, metric, least)
        # The interval is the run's metric's: for another one the value alone decides.
        if (ours["score_high"] if least.metric == metric else value) < least.value:
            lost.append(f"its {least.metric} of {value:.4f} misses the floor of {least.value:.4g}")
    for key, other in {found.teacher.id: found.teacher, **found.members}.items():
        theirs, timing = found.figures.get(key), found.timings.get(key)
        if key == model.id or timing is None or not stands_in(other.form, model.form):
            continue
        if theirs is None or theirs["score"] is None or ours["score"] is None:
            continue
        ours_there, high_there = ours["score"], ours["score_high"]
        if "against" in theirs:
            beside = theirs["against"]["members"].get(model.id)
            if beside is None or beside["score"] is None:
                continue
            ours_there = beside["score"]
            # Of fewer rows: an interval is as much wider.
            wider = math.sqrt(ours["rows"] / max(theirs["rows"], 1))
            high_there = ours_there + wider * (ours["score_high"] - ours["score"])
        latency = timing.latency
        faster, as_fast = latency.high_ms < mine.low_ms, latency.mean_ms <= mine.mean_ms
        better, as_good = theirs["score_low"] > high_there, theirs["score"] >= ours_there
        if (faster and as_good) or (better and as_fast):
            lost.append(f"{other.qualified_name} dominates it")
    return {"figure": "place", "holds": not lost, "note": " and ".join(lost) or None}
