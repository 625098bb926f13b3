"""Where teacher and student differ: rows of a run by the values of one column."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pg_distill.errors import PgDistillError
from pg_distill.frame import FloatArray, Strings
from pg_distill.measure.confidence import Interval, share_interval
from pg_distill.measure.metrics import decided
from pg_distill.teachers.labels import positions

if TYPE_CHECKING:
    import psycopg

__all__ = ["Answers", "answers_of", "rows_of", "segments_of", "task_of"]

MAX_ROWS = (
    5000  # test rows that both models are asked about; they come in the order of a hash, so these are any
)


MAX_SEGMENT_FEATURES = 6
MAX_SEGMENTS = 8  # values of a feature
MIN_SEGMENT_ROWS = 20  # fewer say nothing of a segment


@dataclass(frozen=True)
class _Segment:
    """Rows that share a value, or a range of values, of a feature; shares with their 95 % intervals."""

    feature: str
    value: str
    rows: int
    teacher: tuple[float, Interval | None]
    student: tuple[float, Interval | None]
    agreement: tuple[float, Interval | None] | None


@dataclass(frozen=True)
class Answers:
    """What both models say of test rows: (n, K) probabilities, or (n, 1) values."""

    features: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    y: npt.NDArray[Any] | None
    teacher: FloatArray
    student: FloatArray
    class_threshold: float | None = None
    """The probability from which the student names the last of two classes."""


def rows_of(connection: psycopg.Connection[Any], statement: str, *arguments: Any) -> list[dict[str, Any]]:
    """Return the rows of a statement as dicts."""
    from psycopg.rows import dict_row

    with connection.cursor(row_factory=dict_row) as cursor:
        return list(cursor.execute(statement.encode(), arguments).fetchall())


def task_of(run: Mapping[str, Any]) -> str:
    """Return a run's task, by the figures that it has."""
    return "regression" if run["figures"]["teacher"].get("ece") is None else "classification"


def answers_of(
    connection: psycopg.Connection[Any], run: Mapping[str, Any]
) -> tuple[Answers | None, str | None]:
    """Ask teacher and student about test rows; or say why that cannot be done."""
    import psycopg

    if run["student_id"] is None or run["teacher_id"] is None:
        return None, "the run has no student, or a model of it has been dropped"
    teacher, student = (f"{run[f'{who}_name']}:{run[f'{who}_version']}" for who in ("teacher", "student"))
    try:
        [model] = rows_of(
            connection,
            "SELECT m.task, m.output_schema->'classes' AS classes, m.input_schema->'features' AS features,"
            " (SELECT s.class_threshold FROM distill.models s WHERE s.id = %s) AS class_threshold"
            " FROM distill.models m WHERE m.id = %s",
            run["student_id"],
            run["teacher_id"],
        )
        if model["task"] == "multilabel":
            return None, "of several labels each would be a picture of its own"
        function = (
            "ARRAY[distill.predict({}, r.row)]"
            if model["task"] == "regression"
            else ("distill.predict_proba({}, r.row)")
        )
        label = run["resolved"]["label"]
        found = rows_of(
            connection,
            f"SELECT r.row, r.row->>%s AS label, {function.format('%s')} AS teacher, {function.format('%s')} AS student"
            " FROM (SELECT t.row FROM distill.run_rows(%s) t WHERE t.split = 'test' LIMIT %s) r",
            label, teacher, student, run["run_id"], MAX_ROWS,
        )  # fmt: skip
    except psycopg.Error as error:
        said = error.diag.message_primary or str(error)
        return None, f"the test rows cannot be asked about again: {said} ({error.sqlstate})"
    y: npt.NDArray[Any] | None = None
    if label is not None and found:
        texts = [row["label"] for row in found]
        try:
            y = (
                np.array([math.nan if t is None else float(t) for t in texts])
                if model["task"] == "regression"
                else positions(Strings.from_values(texts), model["task"], model["classes"])
            )
        except (ValueError, PgDistillError) as error:
            return None, f"the labels of the test rows cannot be read: {error}"
    teacher_outputs, student_outputs = (
        np.array([row[who] for row in found], np.float64).reshape(len(found), -1)
        for who in ("teacher", "student")
    )
    features = [feature["name"] for feature in model["features"]]
    rows = [row["row"] for row in found]
    return (
        Answers(features, rows, y, teacher_outputs, student_outputs, model["class_threshold"]),
        None,
    )


def segments_of(answers: Answers, task: str) -> list[_Segment]:
    """Compare the models where a feature of the teacher has each of its values, or lies in each quarter of its range.

    Features of few values come first, then numbers; of those with the most between two segments in agreement.
    """
    if not answers.rows:
        return []
    by_feature: list[tuple[bool, float, list[_Segment]]] = []
    for name in answers.features:
        values = [row.get(name) for row in answers.rows]
        groups, few = _groups(values)
        segments = [
            _segment(answers, task, name, value, rows)
            for value, rows in groups
            if int(rows.sum()) >= MIN_SEGMENT_ROWS
        ]
        if len(segments) > 1:
            spread = [s.agreement[0] if s.agreement else s.student[0] for s in segments]
            by_feature.append((not few, min(spread) - max(spread), segments))
    by_feature.sort(key=lambda found: found[:2])
    return [s for *_, segments in by_feature[:MAX_SEGMENT_FEATURES] for s in segments]


def _groups(values: Sequence[Any]) -> tuple[list[tuple[str, npt.NDArray[np.bool_]]], bool]:
    """Return a feature's groups of rows with a name each, and whether they are its values."""
    missing = np.array([v is None for v in values])
    groups: list[tuple[str, npt.NDArray[np.bool_]]] = []
    distinct = {v for v in values if v is not None}
    few = len(distinct) <= MAX_SEGMENTS or any(isinstance(v, str) for v in distinct)
    if few:
        texts = np.array(["" if v is None else str(v) for v in values], object)
        names, counts = np.unique(texts[~missing], return_counts=True)
        most = names[np.argsort(-counts, kind="stable")][:MAX_SEGMENTS]
        groups.extend((str(name), (texts == name) & ~missing) for name in most)
    else:
        numbers = np.array([math.nan if v is None else float(v) for v in values])
        edges = np.unique(np.quantile(numbers[~missing], [0, 0.25, 0.5, 0.75, 1]))
        for low, high in itertools.pairwise(edges):
            last = high == edges[-1]
            rows = (numbers >= low) & ((numbers <= high) if last else (numbers < high))
            groups.append((f"{low:.4g} to {high:.4g}", rows))
    if missing.any():
        groups.append(("NULL", missing))
    return groups, few


def _segment(answers: Answers, task: str, feature: str, value: str, rows: npt.NDArray[np.bool_]) -> _Segment:
    y = answers.y[rows] if answers.y is not None else None
    teacher, student = answers.teacher[rows], answers.student[rows]

    def share(right: npt.NDArray[np.bool_]) -> tuple[float, Interval | None]:
        if not len(right):
            return math.nan, None
        return float(right.mean()), share_interval(float(right.mean()), len(right))

    if task == "regression":
        truth = y if y is not None else teacher[:, 0]

        def error(outputs: FloatArray) -> tuple[float, Interval | None]:
            return float(np.sqrt(np.nanmean((outputs[:, 0] - truth) ** 2))), None

        return _Segment(feature, value, int(rows.sum()), error(teacher), error(student), None)
    named = decided(student, answers.class_threshold).argmax(axis=1)
    same = teacher.argmax(axis=1) == named
    nothing = (math.nan, None)
    return _Segment(
        feature,
        value,
        int(rows.sum()),
        share(teacher.argmax(axis=1) == y) if y is not None else nothing,
        share(named == y) if y is not None else nothing,
        share(same),
    )
