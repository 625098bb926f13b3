"""The rows that the teacher labels: real, unlabelled, augmented.

Augmented rows carry no label of their own; the teacher labels every one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Frame

__all__ = ["AUGMENTED", "REAL", "UNLABELLED", "TransferSet", "labelling_seconds", "stack", "usual_range"]

REAL, UNLABELLED, AUGMENTED = 0, 1, 2
"""Values of ``TransferSet.source``."""


PROBE_SECONDS = 0.5  # of labelling that says how long more will take
TAIL = 0.001
"""Share of the rows on each side that may be outliers; one row always may."""
BODY, BODIES = 0.05, 3.0
"""Nothing usual lies further beyond the rows between these quantiles than this many times their range (of a log-normal
column 998 rows in 1,000 do not): more outliers than TAIL, such as 999999 for unknown, must not set a column's scale either."""


@dataclass(frozen=True)
class TransferSet:
    """Rows with what is known of them.

    ``teacher_logits`` (n, K) float64 or None; ``y`` (n,) int64 class positions with -1 for none, or float64 values with
    NaN for none; ``weights`` (n,) or None for equal ones; ``source`` (n,) uint8: REAL, UNLABELLED or AUGMENTED.
    ``folds`` (n,) uint8 or None: the fold that must not learn from the row (see ``rows.split.folds_by_hash``), 0 where all may;
    of an augmented row that of the row it was made from.
    """

    frame: Frame
    teacher_logits: FloatArray | None
    y: npt.NDArray[Any] | None
    weights: FloatArray | None
    source: npt.NDArray[np.uint8]
    folds: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: npt.NDArray[Any]) -> TransferSet:
        """Return the rows chosen by an index or boolean array."""
        return TransferSet(
            self.frame.take(rows),
            None if self.teacher_logits is None else self.teacher_logits[rows],
            None if self.y is None else self.y[rows],
            None if self.weights is None else self.weights[rows],
            self.source[rows],
            None if self.folds is None else self.folds[rows],
        )

    def with_logits(self, teacher_logits: FloatArray) -> TransferSet:
        """Return the same rows with other teacher logits."""
        return replace(self, teacher_logits=teacher_logits)


def stack(parts: list[TransferSet]) -> TransferSet:
    """Return the rows of all parts; what a part does not know becomes NaN, no label, weight 1, or fold 0."""
    if len(parts) == 1:
        return parts[0]
    logits = y = weights = None
    width = next((p.teacher_logits.shape[1] for p in parts if p.teacher_logits is not None), None)
    if width is not None:
        logits = np.concatenate(
            [
                np.full((len(p), width), np.nan) if p.teacher_logits is None else p.teacher_logits
                for p in parts
            ]
        )
    kind = next((p.y.dtype for p in parts if p.y is not None), None)
    if kind is not None:
        nothing: Any = -1 if kind.kind == "i" else np.nan
        y = np.concatenate([np.full(len(p), nothing, kind) if p.y is None else p.y for p in parts])
    if any(p.weights is not None for p in parts):
        weights = np.concatenate([np.ones(len(p)) if p.weights is None else p.weights for p in parts])
    folds = None
    if any(p.folds is not None for p in parts):
        folds = np.concatenate([np.zeros(len(p), np.uint8) if p.folds is None else p.folds for p in parts])
    return TransferSet(
        Frame.concat([p.frame for p in parts]),
        logits,
        y,
        weights,
        np.concatenate([p.source for p in parts]),
        folds,
    )


def labelling_seconds(label: Callable[[Frame], FloatArray], frame: Frame, *, rows: int = 64) -> float:
    """Return the teacher's seconds a row, from one warm-up row and a timed batch of ``rows``, or of fewer that say enough."""
    label(frame.take(np.arange(min(1, len(frame)))))
    size = 1
    while True:
        batch = frame.take(np.arange(min(size, len(frame))))
        start = time.perf_counter()
        label(batch)
        taken = time.perf_counter() - start
        if taken >= PROBE_SECONDS or size >= min(rows, len(frame)):
            return taken / max(1, len(batch))
        size = min(4 * size, rows)


def usual_range(values: FloatArray) -> tuple[float, float]:
    """Return between which limits all but outliers lie; ``values`` are finite, and at least one.

    Where nearly all are equal it is the range of all.
    """
    low = np.quantile(values, TAIL, method="higher")
    high = np.quantile(values, 1 - TAIL, method="lower")
    first, last = np.quantile(values, [BODY, 1 - BODY])
    if first < last:
        low, high = max(low, first - BODIES * (last - first)), min(high, last + BODIES * (last - first))
    if not low < high:
        low, high = values.min(), values.max()
    return float(low), float(high)
