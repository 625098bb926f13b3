"""What a search is given, and what it returns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pg_distill.frame import Cut, FloatArray, Task, has_label
from pg_distill.measure import confidence
from pg_distill.students.families import FAMILIES
from pg_distill.students.transfer_set import TransferSet, stack

SELECT_FOLD = 1
"""The fold that the select rows are (``TransferSet.folds``); rows to fit on have others, and 0 where they judge nobody."""


@dataclass(frozen=True)
class Problem:
    """Rows with teacher logits and labels; ``select`` chooses and is never trained on.

    ``teacher`` is the teacher's ONNX file where it has one: families may start from its trees. Rows may have folds
    (``TransferSet.folds``): those of ``select`` are fold 1, and other folds of ``fit`` can be cross-fitted.
    """

    task: Task
    classes: tuple[str, ...]
    metric: str
    fit: TransferSet
    select: TransferSet
    unlabelled: TransferSet | None = None
    teacher: bytes | None = None

    @property
    def folds(self) -> list[int]:
        """The folds of ``fit`` that can be judged by students which have not learned from them; none without folds."""
        found = self.fit.folds
        return [] if found is None else np.unique(found[found > SELECT_FOLD]).tolist()

    def judging(self, folds: Sequence[int]) -> TransferSet:
        """Return the rows of some folds, in the order of ``folds``; fold 1 are the select rows."""
        own = self.fit.folds
        return stack(
            [
                self.select
                if fold == SELECT_FOLD or own is None
                else self.fit.take(np.flatnonzero(own == fold))
                for fold in folds
            ]
        )


@dataclass(frozen=True)
class Config:
    """What the caller asked for.

    ``call_overhead_ms`` is the cost of a predict call around the model, measured by the parent. ``temperature`` is the softest
    that may be tried, ``patience`` the trainings in a row without gain after which nothing more is begun, ``threads`` the
    candidates trained at once, ``transfer_bytes`` the memory for augmented rows. With ``sql`` students in SQL form may be the
    answer too: these take less than a session, so that each family's smallest is trained, and its sizes for SQL are. With
    ``refit_on_all`` candidates can learn from more rows once they have been judged (``Candidate.relearn``).
    """

    target_latency_ms: float
    call_overhead_ms: float = 0.0
    temperature: float = 4.0
    epochs: int = 10
    seed: int = 42
    families: tuple[str, ...] = tuple(FAMILIES)
    time_budget_s: float = 120.0
    most_seconds: float | None = None
    """What ``time_budget_s`` may grow to where the machine is busy or slower than usual; None if it may not."""
    transfer_bytes: int = 1_600_000_000
    patience: int = 32
    threads: int = field(default_factory=lambda: max(1, len(os.sched_getaffinity(0))))
    sql: bool = False
    refit_on_all: bool = False
    monotone: Mapping[str, int] = field(default_factory=dict)
    """By column the direction of students' answers; see `families.Setup`. Families that keep none are not tried."""


@dataclass(frozen=True)
class Candidate:
    """A student that was tried; ``artifact`` is empty where it never came to be, and ``reason`` says why.

    ``metric_select``, ``tie_break_select`` (log loss, or error, higher is better) and ``fidelity_select`` are NaN where nothing
    was trained, ``latency_ms`` where nothing was measured. ``jackknife_select`` is what ``measure.rank`` needs to tell noise.
    On the frontier are those that no other dominates, and those that are the best within some latency but for noise.
    """

    number: int
    family: str
    configuration: dict[str, object]
    artifact: bytes
    expression: str | None
    size_bytes: int
    metric_select: float
    fidelity_select: float
    latency_ms: float
    on_frontier: bool
    reason: str
    is_control: bool
    seconds: float
    tie_break_select: float = float("nan")
    jackknife_select: tuple[float, ...] = ()
    class_threshold: Cut = None
    """The probability from which the last of two classes, or each of several labels, is named, where that is better on select
    than one half; of several labels the file knows them, too."""
    select_logits: FloatArray | None = field(default=None, compare=False, repr=False)
    """Its logits on the select rows, or those of ``folds``, before any refit: of ``artifact`` they may be training figures."""
    folds: tuple[int, ...] = (SELECT_FOLD,)
    """Of which rows its figures are: see `Problem.judging`."""
    relearn: Callable[[TransferSet], tuple[bytes, str | None]] | None = field(
        default=None, compare=False, repr=False
    )
    """Trains it once more by its recipe, with select and other rows added: its file and SQL then. None where that was not
    asked for, or it cannot."""


def best_within(candidates: Iterable[Candidate], allowed_ms: float) -> list[Candidate]:
    """Return the candidates that have a file and meet ``allowed_ms``, best first.

    The order is that of ``measure.rank``: by the metric on select, but by log loss where it is within the noise of the best.
    """
    fitting = [
        c for c in candidates if c.artifact and np.isfinite(c.metric_select) and c.latency_ms <= allowed_ms
    ]
    order = confidence.rank(
        [c.metric_select for c in fitting],
        [c.tie_break_select for c in fitting],
        [c.jackknife_select for c in fitting],
    )
    return [fitting[i] for i in order]


def any_label(rows: TransferSet, task: Task) -> bool:
    """Whether any of ``rows`` has a label."""
    if rows.y is None:
        return False
    return bool(has_label(rows.y, task).any())
