"""What is said of models on the rows that judge them, as it crosses the pipe and stands in a run's row: JSON, by its types.

A score is a metric, higher is better; None stands for what is not defined, such as an AUC of one class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

__all__ = ["Against", "Beside", "Compared", "Difference", "Evaluation", "Scores", "Tuned"]


class Tuned(TypedDict):
    """A teacher cut as its students are, which predict_class does not do."""

    class_threshold: float | Sequence[float]
    score: float | None


class Beside(TypedDict):
    """Another model on the rows that a member of the family has not learned from."""

    score: float | None
    difference_error: float | None
    """The standard error of the difference of the two, paired by row."""


class Against(TypedDict):
    """What a member is held against, where it is judged on a part of the test rows."""

    teacher: Beside
    majority: float | None
    candidates: Mapping[str, Beside]
    members: Mapping[str, Beside | None]


class Scores(TypedDict):
    """Every figure of a model's outputs: see `judge.Judge.figures`."""

    rows: int
    score: float | None
    score_low: float | None
    score_high: float | None
    lift: float | None
    """The share of what the teacher adds to the majority that it keeps."""
    fidelity: float | None
    fidelity_low: float | None
    fidelity_high: float | None
    metrics: Mapping[str, float | None]
    log_loss: float | None
    brier: float | None
    ece: float | None
    distinct_classes: int | None
    average_precision: NotRequired[Sequence[float | None]]
    """Of several labels, in the order of the classes."""
    tuned: NotRequired[Tuned]
    against: NotRequired[Against]


class Evaluation(TypedDict):
    """Teacher, candidates (by number) and members of the family (by id) on the test rows."""

    teacher: Scores
    majority: float | None
    candidates: dict[str, Scores]
    members: dict[str, Scores]


class Difference(TypedDict):
    """One model's metric less another's, with its interval."""

    difference: float | None
    low: float | None
    high: float | None


class Compared(TypedDict):
    """Intervals by model and metric; differences by pair, such as ``student-teacher``, and metric."""

    intervals: Mapping[str, Mapping[str, Sequence[float | None]]]
    versus: Mapping[str, Mapping[str, Difference]]
