"""What a model's outputs decide: the probability from which a class is named, and the order of its classes."""

from __future__ import annotations

import numpy as np

from pg_distill.frame import FloatArray
from pg_distill.measure.confidence import jackknife, paired_error
from pg_distill.measure.metrics import TINY, Labels, decided, full_weights, score

__all__ = ["best_threshold", "class_order", "falls"]

TUNING_ERRORS = 2.0  # paired standard errors by which another threshold than one half has to be better on the rows that choose
MIN_ORDER_ROWS = 20  # on fewer nothing is said about the order of a model's classes
# Share of the rows that another order of the classes has to set right, and of a correlation below 0.
ORDER_GAIN = 0.2


def best_threshold(
    metric: str, y: Labels, outputs: FloatArray, weights: FloatArray | None = None
) -> float | None:
    """Return the probability from which to name the last of two classes for the best value of ``metric`` on these rows.

    It lies in the middle between two rows, of thresholds that are as good next to one half. None where one half is as good, or
    the best is not better beyond ``TUNING_ERRORS`` standard errors of the difference: the best of many is so by luck too.

    Parameters
    ----------
    metric
        One of those that a threshold decides: see `judges_classes`.
    y
        (n,) class positions, all of them known.
    outputs
        (n, 2) probabilities.
    """
    if outputs.shape[1] != 2 or len(y) < MIN_ORDER_ROWS or len(np.unique(y)) < 2:
        return None
    w = full_weights(weights, len(y))
    order = np.argsort(-outputs[:, 1], kind="stable")
    p, positive, negative = outputs[order, 1], (w * (y == 1))[order], (w * (y == 0))[order]
    cuts = np.flatnonzero(np.diff(p) < 0)  # between a row and the next
    if not len(cuts):
        return None
    right, wrong = np.cumsum(positive)[cuts], np.cumsum(negative)[cuts]
    positives, negatives = positive.sum(), negative.sum()
    if not (positives > 0 and negatives > 0):
        return None
    if metric == "f1":
        values = 2 * right / np.maximum(right + wrong + positives, TINY)
    elif metric == "balanced_accuracy":
        values = (right / positives + 1 - wrong / negatives) / 2
    else:
        values = (right + negatives - wrong) / (positives + negatives)
    middles = (p[cuts] + p[cuts + 1]) / 2
    best = np.flatnonzero(values >= values.max() - 1e-12)
    threshold = float(middles[best[np.argmin(np.abs(middles[best] - 0.5))]])
    gain = score(metric, y, outputs, weights, threshold) - score(metric, y, outputs, weights)
    apart = [jackknife(metric, y, decided(outputs, t), weights) for t in (threshold, None)]
    return threshold if gain > TUNING_ERRORS * paired_error(apart[0], apart[1]) else None


def class_order(y: Labels, outputs: FloatArray) -> list[int] | None:
    """Return the order in which a model's classes would fit the labels better beyond doubt, None where they fit as they are.

    Position i holds the class that the model means when it names class i: that which most of the rows that it gives class i
    have. Such an order is found only where no two classes are meant by the same, and it turns wrong answers into right ones.

    Parameters
    ----------
    y
        (n,) class positions, all of them known.
    outputs
        (n, K) probabilities.
    """
    guess, size = outputs.argmax(axis=1), outputs.shape[1]
    if len(y) < MIN_ORDER_ROWS or len(np.unique(guess)) < 2:
        return None
    counts = np.zeros((size, size))
    np.add.at(counts, (guess, y), 1)
    order = np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), -1)
    meant = order[order >= 0]
    free = [k for k in range(size) if k not in set(meant.tolist())]
    if len(np.unique(meant)) < len(meant):
        return None
    found = [int(k) if k >= 0 else free.pop(0) for k in order]
    right, now = float(counts[np.arange(size), found].sum()), float(np.trace(counts))
    majority = float(counts.sum(axis=0).max())
    return found if right > majority and right - now > ORDER_GAIN * len(y) else None


def falls(y: Labels, outputs: FloatArray) -> bool:
    """Whether the values of a regression fall where the labels rise, beyond doubt."""
    if len(y) < MIN_ORDER_ROWS or not np.ptp(y) > 0 or not np.ptp(outputs[:, 0]) > 0:
        return False
    return bool(np.corrcoef(y, outputs[:, 0])[0, 1] < -ORDER_GAIN)
