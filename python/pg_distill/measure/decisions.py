"""What a model's outputs decide: the probability from which a class is named, and the order of its classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pg_distill.frame import Cut, FloatArray, members
from pg_distill.measure.confidence import jackknife, paired_error
from pg_distill.measure.metrics import TINY, Labels, decided, full_weights, score

__all__ = ["best_threshold", "best_thresholds", "class_order", "falls"]

TUNING_ERRORS = 2.0  # paired standard errors by which another threshold than one half has to be better on the rows that choose
MIN_POSITIVE_ROWS = 5  # of a label and without it, below which its threshold stays one half
# Thresholds of several labels stay within: 0 names everything, 1 next to nothing, and the file answers in float32.
LEAST_CUT, MOST_CUT = 2.0**-126, 1.0 - 2.0**-24
MOST_ROUNDS = 20  # of finding the F1 that its own thresholds have; three are usual
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


def best_thresholds(
    metric: str, y: Labels, outputs: FloatArray, weights: FloatArray | None = None
) -> tuple[float, ...] | None:
    """Return the probability from which to name each of several labels, for the best F1 on these rows; None as `best_threshold`.

    The best micro F1 is a ratio of sums over the classes. Given its value, each class's threshold is the best by itself
    (Dinkelbach 1967); the value that these have is the next one. Of macro F1 each class is a ratio of its own.

    Parameters
    ----------
    metric
        "f1_micro" or "f1_macro".
    y
        (n,) `label_sets`, all of them known.
    outputs
        (n, K) probabilities.
    """
    if len(y) < MIN_ORDER_ROWS:
        return None
    w, own = full_weights(weights, len(y)), members(y, outputs.shape[1])
    classes = [_cuts(outputs[:, k], own[:, k], w) for k in range(outputs.shape[1])]
    groups = [classes] if metric == "f1_micro" else [[c] for c in classes]
    found: list[float] = []
    for group in groups:
        had = sum(positives for *_, positives in group)
        value, chosen = 0.0, [0.5] * len(group)
        for _ in range(MOST_ROUNDS):
            best = [_best_cut(*cuts, value) for cuts in group]
            chosen = [threshold for threshold, _, _ in best]
            right, named = sum(r for _, r, _ in best), sum(n for _, _, n in best)
            following = 2 * right / max(named + had, TINY)
            if following <= value + 1e-12:
                break
            value = following
        found += chosen
    thresholds = tuple(found)
    gain = score(metric, y, outputs, weights, thresholds) - score(metric, y, outputs, weights)
    cuts: tuple[Cut, Cut] = (thresholds, None)
    apart = [jackknife(metric, y, decided(outputs, t), weights) for t in cuts]
    return thresholds if gain > TUNING_ERRORS * paired_error(apart[0], apart[1]) else None


def _cuts(
    p: FloatArray, own: npt.NDArray[np.bool_], w: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, float]:
    """Return a label's thresholds, the weight that each names rightly, that it names, and that has the label."""
    positives = float(w @ own)
    half = np.array([0.5])
    right_by_half, named_by_half = np.array([w @ (own & (p >= 0.5))]), np.array([w @ (p >= 0.5)])
    if min(np.count_nonzero(own), np.count_nonzero(~own)) < MIN_POSITIVE_ROWS:
        return half, right_by_half, named_by_half, positives
    order = np.argsort(-p, kind="stable")
    ranked = p[order]
    places = np.flatnonzero(np.diff(ranked) < 0)  # between a row and the next
    middles = np.clip((ranked[places] + ranked[places + 1]) / 2, LEAST_CUT, MOST_CUT)
    right, named = np.cumsum((w * own)[order])[places], np.cumsum(w[order])[places]
    return (
        np.append(half, middles),
        np.append(right_by_half, right),
        np.append(named_by_half, named),
        positives,
    )


def _best_cut(
    thresholds: FloatArray, right: FloatArray, named: FloatArray, positives: float, value: float
) -> tuple[float, float, float]:
    """Return the threshold that adds most to an F1 of ``value``, of equals the one next to one half, and what it names."""
    gains = 2 * right - value * named
    best = np.flatnonzero(gains >= gains.max() - 1e-12)
    i = int(best[np.argmin(np.abs(thresholds[best] - 0.5))])
    return float(thresholds[i]), float(right[i]), float(named[i])


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
