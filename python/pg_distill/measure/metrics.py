"""Latency and accuracy with their confidence: metrics, calibration, bootstrap, and latency as a statistic.

Outputs are (n, K) probabilities for classification and (n, 1) values for regression; labels are (n,) class
positions, or values. Every metric is such that higher is better. Metrics are those of scikit-learn under its names,
with which the tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.errors import InvalidParameter
from pg_distill.frame import FloatArray, Task

__all__ = [
    "METRICS",
    "brier",
    "check_metric",
    "decided",
    "default_metric",
    "ece",
    "is_unit_metric",
    "judged",
    "judges_classes",
    "ranks",
    "score",
    "weighs_classes",
]

Labels = npt.NDArray[Any]

CLIP = 1e-15  # probabilities below this cost a finite log loss
TINY = 1e-300  # keeps 0 / 0 out of precision above thresholds that no drawn row has passed
ECE_BINS = 15  # equal-width bins of confidence (Guo et al. 2017)


# -- metrics --------------------------------------------------------------------------------------------------------

Weighted = Callable[[FloatArray], FloatArray]
"""A metric of given labels and outputs: from weights of the rows, (b, n), to its b values; NaN where undefined."""


def full_weights(weights: FloatArray | None, n: int) -> FloatArray:
    return np.ones(n) if weights is None else weights


def ratio(a: FloatArray, b: FloatArray) -> FloatArray:
    undefined = np.full(np.broadcast_shapes(a.shape, b.shape), np.nan)
    return np.asarray(np.divide(a, b, out=undefined, where=b > 0))


def _mean(terms: FloatArray) -> Weighted:
    return lambda w: ratio(w @ terms, w.sum(axis=1))


def _sums(groups: npt.NDArray[np.int64], size: int) -> Weighted:
    """Return a function from (b, n) weights to their (b, size) sums by group; group -1 is left out."""
    order = np.argsort(groups, kind="stable")
    order = order[groups[order] >= 0]
    present, starts = np.unique(groups[order], return_index=True)

    def sums(w: FloatArray) -> FloatArray:
        found = np.zeros((len(w), size))
        if len(present):
            found[:, present] = np.add.reduceat(np.take(w, order, axis=1), starts, axis=1)
        return found

    return sums


def _accuracy(y: Labels, p: FloatArray) -> Weighted:
    """Of the most probable class, the first of equals: binary outputs are cut at one half, tuned for nothing."""
    return _mean((p.argmax(axis=1) == y).astype(np.float64))


def _balanced_accuracy(y: Labels, p: FloatArray) -> Weighted:
    right, actual = _sums(np.where(p.argmax(axis=1) == y, y, -1), p.shape[1]), _sums(y, p.shape[1])
    return lambda w: _mean_of_known(ratio(right(w), actual(w)))


def _f1(y: Labels, p: FloatArray) -> Weighted:
    """F1 of the last class where there are two, else the mean over classes (macro)."""
    guess, size = p.argmax(axis=1), p.shape[1]
    right, claimed, actual = _sums(np.where(guess == y, y, -1), size), _sums(guess, size), _sums(y, size)

    def f1(w: FloatArray) -> FloatArray:
        values = ratio(2 * right(w), claimed(w) + actual(w))
        return np.nan_to_num(values[:, 1] if size == 2 else _mean_of_known(values))

    return f1


def _mean_of_known(values: FloatArray) -> FloatArray:
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def _ranking(
    area: Callable[[FloatArray, FloatArray, FloatArray, FloatArray], FloatArray],
) -> Callable[[Labels, FloatArray], Weighted]:
    """Binary: the last class; more classes: the mean over those that occur, each against the rest.

    ``area`` is given weights by threshold, (b, thresholds): of the positives at it, of all rows at it and of all from the top
    down to it; and of all rows, (b, 1). Thresholds without a positive add nothing to either area and are left out.
    """

    def prepare(y: Labels, p: FloatArray) -> Weighted:
        parts = []
        for k in [1] if p.shape[1] == 2 else range(p.shape[1]):
            order = np.argsort(-p[:, k], kind="stable")
            new = np.append(True, np.diff(p[order, k]) != 0)
            starts, group = np.flatnonzero(new), np.cumsum(new) - 1
            ends = np.append(starts[1:], len(y)) - 1
            positives = np.flatnonzero(y[order] == k)
            if len(positives):
                held, firsts = np.unique(group[positives], return_index=True)
                parts.append((order, order[positives], firsts, starts[held], ends[held]))

        def metric(w: FloatArray) -> FloatArray:
            values = [np.full(len(w), np.nan)]
            for order, positives, firsts, starts, ends in parts:
                true = np.add.reduceat(np.take(w, positives, axis=1), firsts, axis=1)
                every = np.cumsum(np.take(w, order, axis=1), axis=1)
                above = np.where(starts > 0, every[:, starts - 1], 0.0)
                values.append(area(true, every[:, ends] - above, every[:, ends], every[:, -1:]))
            return _mean_of_known(np.column_stack(values))

        return metric

    return prepare


def _roc_area(true: FloatArray, within: FloatArray, down_to: FloatArray, every: FloatArray) -> FloatArray:
    positive = true.sum(axis=1, keepdims=True)
    below = every - positive - (down_to - np.cumsum(true, axis=1))
    pairs = (true * (below + (within - true) / 2)).sum(axis=1)
    return ratio(pairs, (positive * (every - positive))[:, 0])


def _precision_area(
    true: FloatArray, within: FloatArray, down_to: FloatArray, every: FloatArray
) -> FloatArray:
    precision = np.cumsum(true, axis=1) / np.maximum(down_to, TINY)
    return ratio((true * precision).sum(axis=1), true.sum(axis=1))


def _log_losses(y: Labels, p: FloatArray) -> FloatArray:
    return -np.log(np.clip(p[np.arange(len(y)), y], CLIP, 1.0))


def _brier_terms(y: Labels, p: FloatArray) -> FloatArray:
    if p.shape[1] == 2:  # the usual binary form, of one probability
        return np.asarray((p[:, 1] - (y == 1)) ** 2)
    return np.asarray(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1))


def _r2(y: Labels, p: FloatArray) -> Weighted:
    # Centred first: the variance of times since 1970 would else be lost in their squares.
    centred, residual = y - y.mean() if len(y) else y, (y - p[:, 0]) ** 2
    terms = np.column_stack([residual, centred, centred**2])
    least = (np.abs(y).max(initial=0.0) * 1e-14) ** 2  # a constant's variance by rounding alone

    def r2(w: FloatArray) -> FloatArray:
        means = ratio(w @ terms, w.sum(axis=1, keepdims=True))
        variance = means[:, 2] - means[:, 1] ** 2
        return 1.0 - ratio(means[:, 0], np.where(variance > least, variance, 0.0))

    return r2


def _neg_rmse(y: Labels, p: FloatArray) -> Weighted:
    mean = _mean((y - p[:, 0]) ** 2)
    return lambda w: -np.sqrt(mean(w))


@dataclass(frozen=True)
class _Metric:
    prepare: Callable[[Labels, FloatArray], Weighted]
    classification: bool
    unit: bool
    """Whether it lies in 0..1 for anything better than useless, so that ``min_accuracy`` can bound it."""
    ranks: bool = False
    """Whether it goes through the rows in the order of each class's outputs, which costs most."""
    names: bool = False
    """Whether only the class that is named counts, which a threshold decides where there are two."""


METRICS: Mapping[str, _Metric] = {
    "accuracy": _Metric(_accuracy, True, True, names=True),
    "balanced_accuracy": _Metric(_balanced_accuracy, True, True, names=True),
    "roc_auc": _Metric(_ranking(_roc_area), True, True, ranks=True),
    "average_precision": _Metric(_ranking(_precision_area), True, True, ranks=True),
    "f1": _Metric(_f1, True, True, names=True),
    "neg_log_loss": _Metric(lambda y, p: _mean(-_log_losses(y, p)), True, False),
    "neg_brier_score": _Metric(lambda y, p: _mean(-_brier_terms(y, p)), True, False),
    "r2": _Metric(_r2, False, True),
    "neg_root_mean_squared_error": _Metric(_neg_rmse, False, False),
    "neg_mean_absolute_error": _Metric(lambda y, p: _mean(-np.abs(y - p[:, 0])), False, False),
}

ECE = _Metric(lambda y, p: _ece(y, p), True, False)
"""No metric to choose by (lower is better, and a constant is calibrated), but one with an interval."""

AGREEMENT = "agreement"
"""The metric where there is no label: the share of rows in which student and teacher name the same class, or R2 against it."""


def check_metric(metric: str, task: Task, *, labelled: bool) -> None:
    """Raise InvalidParameter unless ``metric`` can be measured for ``task``."""
    if metric == AGREEMENT:
        return
    if metric not in METRICS:
        raise InvalidParameter(
            f'metric "{metric}" does not exist', hint=f"Metrics are {', '.join((*METRICS, AGREEMENT))}."
        )
    if METRICS[metric].classification == (task == "regression"):
        raise InvalidParameter(f'metric "{metric}" does not fit the task {task}')
    if not labelled:
        raise InvalidParameter(f'metric "{metric}" needs a label column', hint="Pass label => ... .")


def is_unit_metric(metric: str) -> bool:
    """Whether the metric lies in 0..1, so that a floor in 0..1 can be held against it."""
    return metric == AGREEMENT or METRICS[metric].unit


def ranks(metric: str) -> bool:
    """Whether the metric is of the rows' order, which says nothing where there is one class."""
    return metric != AGREEMENT and METRICS[metric].ranks


def weighs_classes(metric: str) -> bool:
    """Whether a few rows of a class decide over the metric as much as many of another."""
    return ranks(metric) or metric in ("balanced_accuracy", "f1")


def judges_classes(metric: str) -> bool:
    """Whether only the class that a model names counts, not how its probabilities order or state it."""
    return metric == AGREEMENT or METRICS[metric].names


def decided(outputs: FloatArray, threshold: float | None) -> FloatArray:
    """Return (n, 2) outputs whose larger one is the class that is named: the last one from ``threshold`` on, if there is one."""
    if threshold is None:
        return outputs
    last = (outputs[:, 1] >= threshold).astype(np.float64)
    return np.column_stack([1.0 - last, last])


def judged(metric: str, outputs: FloatArray, threshold: float | None) -> FloatArray:
    """Return the outputs that a metric sees: those of `decided` where it is of the classes that are named."""
    return decided(outputs, threshold) if METRICS[metric].names else outputs


def score(
    metric: str,
    y: Labels,
    outputs: FloatArray,
    weights: FloatArray | None = None,
    threshold: float | None = None,
) -> float:
    """Return the metric of ``outputs`` (n, K) against labels ``y`` (n,), all of them known.

    ``threshold``: the probability from which the last of two classes is named, which decides over some metrics.

    Returns
    -------
    float
        Higher is better; NaN where it is not defined, such as an AUC of one class.
    """
    if METRICS[metric].names:
        outputs = decided(outputs, threshold)
    return float(METRICS[metric].prepare(y, outputs)(full_weights(weights, len(y))[None, :])[0])


def brier(y: Labels, p: FloatArray, weights: FloatArray | None = None) -> float:
    """Return the Brier score: lower is better; binary in its one-probability form."""
    return -score("neg_brier_score", y, p, weights)


def ece(y: Labels, p: FloatArray, weights: FloatArray | None = None) -> float:
    """Return the expected calibration error of the most probable class, in 15 bins (Guo et al. 2017)."""
    return float(_ece(y, p)(full_weights(weights, len(y))[None, :])[0])


def _ece(y: Labels, p: FloatArray) -> Weighted:
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    sums, gap = _sums(bins, ECE_BINS), right - confidence
    return lambda w: ratio(np.abs(sums(w * gap)).sum(axis=1), w.sum(axis=1))


# -- words ----------------------------------------------------------------------------------------------------------


def default_metric(task: Task, labelled: bool) -> str:
    """Return the metric that is used where none is asked for."""
    if not labelled:
        return "agreement"
    return "r2" if task == "regression" else "accuracy"
