"""Rows read anew, none that a model learned from, and what models do on them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.child.trainer import Trainer
from pg_distill.database.protocol import Database
from pg_distill.errors import InvalidData
from pg_distill.frame import FloatArray, Frame
from pg_distill.measure import metrics
from pg_distill.measure.metrics import default_metric
from pg_distill.measure.scores import Scores
from pg_distill.registry import locks, runs, settings
from pg_distill.registry import models as registry
from pg_distill.registry.model import Model, require_owner
from pg_distill.rows.learned import Learned, are_enough
from pg_distill.rows.sample import draw_identified
from pg_distill.rows.source import check_columns, identity_columns, resolve_source
from pg_distill.rows.split import TEST, split_times
from pg_distill.runs.choice import predict_name
from pg_distill.runs.distill import identities_of_family, known_to_registered
from pg_distill.runs.material import prepare
from pg_distill.runs.options import Options
from pg_distill.serving.approval import trainer_limits
from pg_distill.serving.sql_models import label_by_sql, logged_columns
from pg_distill.serving.timing import (
    Timing,
    contender_for,
    measure_latency,
    predict_contender,
)
from pg_distill.teachers import logged
from pg_distill.teachers.labels import positions

__all__ = ["MAX_REMEASURED", "FreshFigures", "Rows", "fresh_rows", "learned_of", "measure_on", "unlearned"]

MAX_REMEASURED = 1000  # members of a family that are measured again: all of them
LATENCY_ROWS = 2000  # rows that calls are timed on


LABEL_SECONDS = (
    240.0  # of which labelling gets its share, see trainer.LABEL_SHARE: a slower teacher labels fewer rows
)


@dataclass(frozen=True)
class Rows:
    """Rows to measure on, and who labels them."""

    frame: Frame
    y: npt.NDArray[Any]
    weights: FloatArray | None
    outputs: FloatArray | None
    metric: str
    seed: int
    outside: Callable[[Learned], npt.NDArray[np.bool_] | None]
    """Which of them may judge a model, by what it has learned from; None where that cannot be told."""

    def take(self, kept: npt.NDArray[Any]) -> Rows:
        """Return some of the rows."""

        def outside(learned: Learned) -> npt.NDArray[np.bool_] | None:
            found = self.outside(learned)
            return None if found is None else found[kept]

        return Rows(
            self.frame.take(kept),
            self.y[kept],
            None if self.weights is None else self.weights[kept],
            None if self.outputs is None else self.outputs[kept],
            self.metric,
            self.seed,
            outside,
        )


@dataclass(frozen=True)
class FreshFigures:
    """What was measured: figures by ``Judge.figures`` and latencies, by model id; ``rows`` is how many were scored.

    Members that the rows may not judge have latencies only.
    """

    teacher: Model
    members: Mapping[str, Model]
    figures: Mapping[str, Scores]
    timings: Mapping[str, Timing]
    rows: int
    majority: float | None
    """The metric of always answering with the majority or the mean of these rows."""


def learned_of(db: Database, ids: Iterable[str], models: Mapping[str, Model]) -> dict[str, Learned | None]:
    """Return by id the rows that models have learned from, None where that is not known."""
    found = registry.read_learned(db, ids)
    for key, learned in found.items():
        if learned is None and models[key].teacher_id is None:
            found[key] = known_to_registered(db, models[key])
    return found


def unlearned(
    rows: Rows, learned: Mapping[str, Learned | None], *, include: bool
) -> tuple[Rows, float | None]:
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


def fresh_rows(
    db: Database,
    model: Model,
    teacher: Model,
    run: Mapping[str, Any] | None,
    sample: str | None,
    label: str | None,
    max_rows: int,
    seed: int,
    learned: Learned | None,
) -> Rows:
    """Return labelled rows of a sample, and what they were drawn from."""
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
        return Rows(
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
    columns = logged_columns(teacher) if teacher.kind == "logged" else []
    source = logged.read_logged(source, columns, label, teacher.task)
    features = check_columns(source, teacher.signature.names)
    # What the model's run kept on one side is told apart by the same columns, where the rows have them.
    by_group, by_time = (
        column if column is not None and column in source.kinds else None
        for column in ((learned.group_column, learned.time_column) if learned is not None else (None, None))
    )
    if by_time is not None and source.kinds[by_time] in ("string", "vector"):
        by_time = None
    frame, labels, extra, identities, groups = draw_identified(
        db,
        source,
        features,
        label=label,
        extra=[*columns, *([by_time] if by_time is not None else [])],
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
    assert metric is not None
    if not columns:
        return Rows(frame, y, None, None, metric, seed, outside)
    answers = logged.read_answers(extra, columns, source, teacher.task, teacher.signature.classes, frame)
    rows = Rows(frame, y, None, answers.outputs, metric, seed, outside)
    return rows if answers.given.all() else rows.take(np.flatnonzero(answers.given))


def measure_on(
    db: Database,
    teacher: Model,
    members: Mapping[str, Model],
    rows: Rows,
    *,
    seconds: float,
    always: Sequence[str] = (),
) -> FreshFigures:
    """Score teacher and members on the rows, in a child; time their calls here, in turns.

    Each member is scored on the rows that it has not learned from, where these are enough; those of ``always`` on all.
    """
    outside = {key: np.ones(len(rows.frame), bool) for key in always if key in members}
    of_classes = metrics.weighs_classes(rows.metric)
    for key, learned in learned_of(db, [key for key in members if key not in always], members).items():
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
    rows: Rows,
    outside: Mapping[str, npt.NDArray[np.bool_]],
    *,
    seconds: float,
) -> FreshFigures:
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
            class_threshold=teacher.cut,
        )
        files = {key: (registry.read_artifact(db, members[key]), members[key].signature) for key in outside}
        thresholds = {key: m.threshold for key, m in members.items() if m.threshold is not None}
        cuts = {key: m.cut for key, m in members.items() if m.cut is not None}
        scored = trainer.evaluate([], files, thresholds, cuts, outside)
    contenders = {m.id: contender_for(db, m) for m in (teacher, *members.values()) if m.kind != "logged"}
    for m in members.values():
        if m.form == "sql":  # predict can be called for it too
            by_predict = predict_contender(m.qualified_name, m.signature)
            contenders[predict_name(m)] = replace(by_predict, name=predict_name(m))
    few = rows.frame.take(np.arange(min(len(rows.frame), LATENCY_ROWS)))
    timed = measure_latency(db, list(contenders.values()), few, seed=rows.seed, seconds=seconds)
    return FreshFigures(
        teacher,
        members,
        {teacher.id: scored["teacher"], **scored["members"]},
        {key: timed[contender.name] for key, contender in contenders.items()},
        loaded["rows"]["test"],
        scored["majority"],
    )
