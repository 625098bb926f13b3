"""Predictions against what the model's own library says of the same rows: how far apart they are, and in which row most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Frame, Strings, Task

__all__ = ["TOLERANCE", "Difference", "compare", "describe", "important_first"]

TOLERANCE = 1e-4
"""Of probabilities, and of values relative to their standard deviation: graphs and libraries add in float32 here and there."""

TIE = 1e-6
"""Probabilities nearer than this are equal: which of the two classes is named is chance."""

FLOAT32_STEPS = 8
"""Of float32 at a value's size: XGBoost adds its trees in it."""

FIRST_OF_A_KIND = 5
"""Rows with a column's NULL, least, greatest and rarest values that come first."""


@dataclass(frozen=True)
class Difference:
    """How far predictions are from what they ought to be.

    Attributes
    ----------
    rows
        Rows that were compared.
    largest
        The largest difference of a probability; of a value, relative to the standard deviation of the expected values. None where
        only classes were given.
    classes
        Rows with another class.
    worst
        The row that differs most, None where none differs by more than is allowed.
    """

    rows: int
    largest: float | None
    classes: int
    worst: int | None

    @property
    def holds(self) -> bool:
        """Whether the predictions are the expected ones."""
        return self.worst is None


def compare(
    task: Task,
    *,
    outputs: FloatArray | None,
    labels: npt.NDArray[np.object_] | None,
    found: FloatArray,
    found_labels: npt.NDArray[np.object_] | None,
    classes: Sequence[str] = (),
    class_threshold: float | None = None,
) -> Difference:
    """Compare what was ``found`` with what is expected.

    Parameters
    ----------
    outputs
        (n, K) expected probabilities, (n, 1) of the last class alone, or (n, 1) values.
    labels
        (n,) expected classes; of several labels a text of a 0 or 1 for each.
    found
        (n, K) probabilities, or (n, 1) values.
    found_labels
        (n,) classes.
    classes
        In the order of the probabilities: of two that are as probable either may be named.
    class_threshold
        The probability from which the last of two classes is named, where that is not one half.
    """
    n = len(found)
    off = np.zeros(n)
    allowed = np.full(n, TOLERANCE)
    largest = None
    if outputs is not None and n:
        if task == "regression":
            spread = float(np.std(outputs)) or float(np.abs(outputs).max()) or 1.0
            steps = FLOAT32_STEPS * np.spacing(np.abs(outputs).astype(np.float32)).astype(np.float64)
            off = np.abs(found - outputs)[:, 0] / spread
            allowed = np.maximum(TOLERANCE, steps[:, 0] / spread)
        else:
            compared = found[:, -1:] if outputs.shape[1] < found.shape[1] else found
            off = np.abs(compared - outputs).max(axis=1)
        off = np.where(np.isnan(off), np.inf, off)
        largest = float(off.max())
    wrong = np.zeros(n, bool)
    if labels is not None and found_labels is not None:
        if task == "multilabel":
            tied = _each_tied(labels, found_labels, found)
        else:
            tied = _tied(labels, found_labels, found, classes, class_threshold)
        wrong = (labels != found_labels) & ~tied
    bad = np.where(wrong, np.maximum(off, 1.0), off)
    failed = wrong | (off > allowed)
    worst = int(np.argmax(np.where(failed, bad, -1.0))) if failed.any() else None
    return Difference(n, largest, int(wrong.sum()), worst)


def describe(origin: Mapping[str, Any]) -> str:
    """Return what a registered comparison says, as a phrase."""
    if origin.get("library"):
        who = f"{origin['library']} ({origin['model']})" if origin.get("model") else str(origin["library"])
    else:
        who = f'column "{origin.get("column")}"'
    said = f"{who}, on {origin['rows']} rows: "
    parts = []
    if origin.get("largest_difference") is not None:
        parts.append(f"largest difference {origin['largest_difference']:.2g}")
    if origin.get("other_class") is not None:
        parts.append(f"another class in {origin['other_class']}")
    return said + ", ".join(parts) + ("" if origin.get("holds") else "; more than agrees, and allowed")


def _tied(
    labels: npt.NDArray[np.object_],
    named: npt.NDArray[np.object_],
    found: FloatArray,
    classes: Sequence[str],
    class_threshold: float | None,
) -> npt.NDArray[np.bool_]:
    if class_threshold is not None:
        near: npt.NDArray[np.bool_] = np.abs(found[:, -1] - class_threshold) <= TIE
        return near
    index = {name: i for i, name in enumerate(classes)}
    tied = np.zeros(len(labels), bool)
    for row in np.flatnonzero(labels != named):
        a, b = index.get(labels[row]), index.get(named[row])
        tied[row] = a is not None and b is not None and abs(found[row, a] - found[row, b]) <= TIE
    return tied


def _each_tied(
    labels: npt.NDArray[np.object_], named: npt.NDArray[np.object_], found: FloatArray
) -> npt.NDArray[np.bool_]:
    """Return the rows whose labels differ where either may be named alone: at one half."""
    tied = np.zeros(len(labels), bool)
    for row in np.flatnonzero(labels != named):
        apart = [k for k, (a, b) in enumerate(zip(labels[row], named[row], strict=False)) if a != b]
        tied[row] = len(labels[row]) == len(named[row]) and bool(
            (np.abs(found[row, apart] - 0.5) <= TIE).all()
        )
    return tied


def important_first(frame: Frame) -> npt.NDArray[np.int64]:
    """Return an order of the rows: those with NULL, extreme and rare values first, column by column, then the rest."""
    chosen: dict[int, None] = {}
    for feature in frame.features:
        column = frame.columns[feature.name]
        if isinstance(column, Strings):
            missing = np.flatnonzero(column.codes < 0)
            known = np.flatnonzero(column.codes >= 0)
            counts = np.bincount(column.codes[known], minlength=len(column.categories) or 1)
            ends = [known[np.argsort(counts[column.codes[known]], kind="stable")]]
        else:
            missing = np.flatnonzero(np.isnan(column))
            known = np.flatnonzero(~np.isnan(column))
            order = known[np.argsort(column[known], kind="stable")]
            ends = [order, order[::-1], known[np.argsort(np.abs(column[known]), kind="stable")]]
        for rows in (missing, *ends):
            chosen.update(dict.fromkeys(int(r) for r in rows[:FIRST_OF_A_KIND]))
    rest = np.setdiff1d(np.arange(len(frame)), np.fromiter(chosen, np.int64, len(chosen)))
    return np.concatenate([np.fromiter(chosen, np.int64, len(chosen)), rest])
