"""The rows of a run: what a teacher's sample becomes before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.child.messages import ChosenBy
from pg_distill.database.protocol import Database
from pg_distill.errors import (
    DatatypeMismatch,
    FeatureNotSupported,
    InvalidData,
    InvalidParameter,
    UndefinedColumn,
)
from pg_distill.frame import Feature, FloatArray, Frame, Task, has_label
from pg_distill.measure import metrics
from pg_distill.measure.metrics import default_metric
from pg_distill.registry import models, runs, settings
from pg_distill.registry.model import Model
from pg_distill.rows.learned import Digest, Identity, Learned, are_enough
from pg_distill.rows.sample import Sample, draw_sample
from pg_distill.rows.source import Source, check_columns, identity_columns, resolve_source
from pg_distill.rows.split import FIT, LEFT_OUT, SELECT, SPLIT_NAMES, TEST, UNLABELLED
from pg_distill.runs.options import Options
from pg_distill.serving.sql_models import logged_columns
from pg_distill.teachers import logged
from pg_distill.teachers.labels import positions
from pg_distill.teachers.reading import Reading, read_strings

__all__ = ["Material", "prepare"]

LATENCY_ROWS = 2000  # test rows that calls are timed on
LEAST_ROWS = 10  # of a split; what the sample was drawn with, less what a log has no answer for


@dataclass(frozen=True)
class Material:
    """The rows of a run and how they are read."""

    source: Source
    trained_on: Source | None
    label: str | None
    metric: str
    sample: Sample
    y: npt.NDArray[Any]
    weights: FloatArray | None
    outputs: FloatArray | None
    warnings: Sequence[str]
    reading: Reading

    options: Options
    task: Task

    @property
    def timing_rows(self) -> Frame:
        """Rows of the test split to time calls on."""
        return self.sample.frame.take(np.flatnonzero(self.sample.split == TEST)[:LATENCY_ROWS])

    @property
    def counts_text(self) -> str:
        """Rows a split, in words."""
        return ", ".join(f"{self.sample.count(part)} rows {name}" for part, name in enumerate(SPLIT_NAMES))

    def choice_text(self, chosen_by: ChosenBy) -> str:
        """Say by which rows candidates were told apart, and why by no more."""
        if chosen_by["folds"] > 1:
            return (
                f"{chosen_by['candidates']} candidates cross-fitted: chosen by {chosen_by['rows']} rows of"
                f" {chosen_by['folds']} folds, out of fold"
            )
        folds = self.sample.folds
        if self.options.time_column is not None:
            why = "of rows that are split by time no others can judge"
        elif folds is None:
            why = "they are many"
        elif not (folds[self.sample.split == FIT] > 0).any():
            why = "the teacher was trained on all others"
        else:
            why = "the time budget carries no cross-fitting"
        return f"chosen by {chosen_by['rows']} select rows alone: {why}"

    def keep_first(self, counts: Mapping[str, int]) -> Material:
        """Return the material with the first rows of each split alone in it."""
        return replace(self, sample=self.sample.keep_first(counts))

    def learned(self, run_id: str, *, test: bool = False) -> Learned:
        """Return the rows that students of this run learn from; of one that learns from those of ``test`` too, these."""
        options, sample = self.options, self.sample
        identity = identity_columns(sample.frame.features)
        hashes, split = sample.identities[identity], sample.split
        fitted, others = (split == FIT) | (split == SELECT), split == TEST
        if test:
            fitted, others = fitted | others, others & False
        until = sample.until
        if test and sample.times is not None:
            until = float(np.nanmax(sample.times[fitted]))
        groups = None
        if sample.groups is not None:
            groups = Digest.of(sample.groups[fitted], sample.groups[others])
        return Learned(
            identity,
            Digest.of(hashes[fitted], hashes[others]),
            Digest.of(hashes[split == UNLABELLED], hashes[others]),
            options.group_column,
            groups,
            options.time_column,
            until,
            run_id,
            options.seed,
        )

    def outside(self, learned: Learned | None) -> npt.NDArray[np.bool_] | None:
        """Return which of the test rows may judge a student; None where that is not known, or where they are too few to."""
        if learned is None:
            return None
        outside = self.sample.outside(learned, self.options.group_column, self.options.time_column)
        if outside is None:
            return None
        test = self.sample.split == TEST
        rows, y = outside[test], self.y[test]
        enough = are_enough(rows, y, self.task, of_classes=metrics.weighs_classes(self.metric))
        return rows if rows.all() or enough else None

    def check_splits(self) -> None:
        """Raise InvalidData where the metric is not defined on the rows of a split."""
        for part in (FIT, SELECT, TEST):
            rows = self.sample.split == part
            if rows.sum() < LEAST_ROWS:
                raise InvalidData(
                    f"the teacher has answered {rows.sum()} rows of {SPLIT_NAMES[part]}, where {LEAST_ROWS} are needed"
                )
            if self.weights is not None and not self.weights[rows].any():
                raise InvalidData(f"every weight of the {rows.sum()} {SPLIT_NAMES[part]} rows is 0")
            if metrics.ranks(self.metric) and len(np.unique(self.y[rows])) < 2:
                raise InvalidData(
                    f'metric "{self.metric}" needs two classes, but the {rows.sum()} {SPLIT_NAMES[part]} rows have one',
                    hint="Pass another sample, seed or metric.",
                )

    def for_trainer(self, db: Database, teacher: Model) -> dict[str, Any]:
        """Return the arguments of ``Trainer.load``."""
        artifact = models.read_artifact(db, teacher) if teacher.kind == "onnx" else None
        return {
            "task": teacher.task,
            "classes": teacher.signature.classes,
            "metric": self.metric,
            "seed": self.options.seed,
            "time_budget_s": self.options.most_seconds,
            "threads": settings.get_setting(db, "trainer_threads"),
            "frame": self.sample.frame,
            "split": self.sample.split,
            "y": self.y,
            "weights": self.weights,
            "teacher": (artifact, teacher.signature) if artifact is not None else None,
            "outputs": self.outputs,
            "class_threshold": teacher.cut,
            "folds": self.sample.folds,
        }

    @property
    def caveat(self) -> str:
        """What a reader of the figures has to know, or nothing."""
        said = []
        if self.label is None:
            said.append("no label: accuracy is agreement with the teacher")
        if self.trained_on is None:
            said.append("rows that the teacher was trained on are not named")
        return "; " + "; ".join(said) if said else ""


def missing_of(task: Task, y: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which rows have no label."""
    return ~has_label(y, task)


def prepare(
    db: Database,
    teacher: Model,
    options: Options,
    *,
    with_rows: bool = False,
    trained_on: Source | None = None,
    identities: Collection[Identity] = (),
) -> Material:
    """Draw and split the sample, read labels, weights and logged outputs.

    Parameters
    ----------
    with_rows
        Each row as jsonb, too.
    trained_on
        Rows that the teacher was trained on, where the options name none.
    identities
        By which columns, beside the teacher's own features, members of the family know their rows.

    Raises
    ------
    InvalidState
        There is no sample.
    InsufficientPrivilege
        SQL that another role stored would have to run.
    InvalidParameter, InvalidData, UndefinedColumn, DatatypeMismatch
        Rows and options do not fit the teacher.
    """
    source = resolve_source(db, runs.sample_of(db, teacher, options.sample), stored=True)
    source = source.read_as(teacher.signature.features)
    if options.trained_on is not None:
        trained_on = resolve_source(db, options.trained_on)
    label = options.label if options.label is not None else teacher.label
    if label is not None and label not in source.types and options.label is None:
        label = None  # another sample than the teacher's own need not have its label
    metric = options.metric if options.metric is not None else default_metric(teacher.task, label is not None)
    metrics.check_metric(metric, teacher.task, labelled=label is not None)
    columns = logged_columns(teacher) if teacher.kind == "logged" else []
    source = logged.read_logged(source, columns, label, teacher.task)
    features = check_columns(source, teacher.signature.names)
    _require_numbers(teacher, features, options.constraints)
    _require_same_kinds(teacher, source, features)
    extra = [*columns, *([options.weight_column] if options.weight_column is not None else [])]
    sample = draw_sample(
        db,
        source,
        features,
        label=label,
        extra=extra,
        group_column=options.group_column,
        time_column=options.time_column,
        trained_on=trained_on,
        seed=options.seed,
        max_rows=options.max_rows,
        label_texts=teacher.task != "regression",
        with_rows=with_rows,
        teacher=models.read_learned(db, [teacher.id])[teacher.id],
        identities=sorted(identities),
    )
    if sample.label is not None:
        y = positions(sample.label, teacher.task, teacher.signature.classes)
        # What is NULL in SQL is in no split; a NaN there is not.
        missing = missing_of(teacher.task, y)
        if (missing & (sample.split != UNLABELLED)).any():
            raise InvalidData(
                f'label column "{label}" has NaN values', hint="A row without a label has NULL there."
            )
    else:
        y = np.full(len(sample.frame), np.nan if teacher.task == "regression" else -1)
        y = y if teacher.task == "regression" else y.astype(np.int64)
    weights = None
    if options.weight_column is not None:
        column = sample.extra[options.weight_column]
        if not isinstance(column, np.ndarray) or not (np.isfinite(column).all() and (column >= 0).all()):
            raise InvalidParameter(
                f'weight column "{options.weight_column}" has values that are not numbers of 0 or more'
            )
        weights = np.asarray(column, np.float64)
    outputs = None
    warnings: Sequence[str] = ()
    if columns:
        answers = logged.read_answers(
            sample.extra, columns, source, teacher.task, teacher.signature.classes, sample.frame
        )
        outputs, warnings = answers.outputs, answers.warnings
        # What the teacher has not answered, only a label teaches; nobody is judged by it.
        idle = ~answers.given & ((sample.split != FIT) | missing_of(teacher.task, y))
        sample = replace(sample, split=np.where(idle, LEFT_OUT, sample.split).astype(np.uint8))
    reading = read_strings(
        sample.frame, options.text_columns if options.text_columns is not None else teacher.text_columns
    )
    sample = replace(sample, frame=sample.frame.with_texts(reading.texts))
    material = Material(
        source,
        trained_on,
        label,
        metric,
        sample,
        y,
        weights,
        outputs,
        [*warnings, *reading.warnings],
        reading,
        options,
        teacher.task,
    )
    material.check_splits()
    return material


def _require_numbers(teacher: Model, features: Sequence[Feature], monotone: Mapping[str, int]) -> None:
    """Refuse monotone constraints on what is no feature, or no number, and where there is no one answer to rise or to fall."""
    kinds = {f.name: f for f in features}
    for name in monotone:
        if name not in kinds:
            raise UndefinedColumn(
                f'model "{teacher.qualified_name}" has no feature "{name}" to be monotone in',
                hint=f"Its features are {', '.join(kinds)}.",
            )
        if kinds[name].is_string or kinds[name].is_vector:
            raise InvalidParameter(
                f'column "{name}" has no order to be monotone in: it is a {kinds[name].kind}',
                hint="Name columns of numbers, times or booleans in monotone.",
            )
    if monotone and not teacher.signature.one_number:
        raise FeatureNotSupported(
            f'students of model "{teacher.qualified_name}" give more than one number, none of which is to be monotone',
            hint="Distil a teacher of two classes, or of values, or leave out monotone.",
        )


def _require_same_kinds(teacher: Model, source: Source, features: Sequence[Feature]) -> None:
    """Refuse a column that has become one of vectors, or of strings, or is none any more, since the teacher was registered.

    A graph would refuse its rows; an expression or a log would teach a student of the other kind, and say nothing.
    """
    for known, found in zip(teacher.signature.features, features, strict=True):
        if (known.is_vector, known.is_string) != (found.is_vector, found.is_string):
            raise DatatypeMismatch(
                f'column "{found.name}" is of type {source.shown(found.name)}, where the teacher has a {known.kind}',
                hint="Register the teacher again, or give a sample whose query casts the column.",
            )
