"""Latency and accuracy with their confidence: metrics, calibration, bootstrap, and latency as a statistic.

Outputs are (n, K) probabilities for classification and (n, 1) values for regression; labels are (n,) class
positions, values, or of several labels sets (`frame.label_sets`). Every metric is such that higher is better. Metrics are
those of scikit-learn under its names, with which the tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.errors import InvalidParameter
from pg_distill.frame import Cut, FloatArray, Task, label_sets, members

__all__ = [
    "AGREEMENT_METRICS",
    "METRICS",
    "brier",
    "check_metric",
    "decided",
    "default_metric",
    "ece",
    "fitting",
    "is_unit_metric",
    "judged",
    "judges_classes",
    "loss_of",
    "named",
    "per_class",
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


def _label_counts(y: Labels, p: FloatArray) -> FloatArray:
    """Return (n, 3, K): whether each label is rightly named, named, and had."""
    own, guess = members(y, p.shape[1]), p >= 0.5
    return np.stack([own & guess, guess, own], axis=1).astype(np.float64)


def _f1_micro(y: Labels, p: FloatArray) -> Weighted:
    """Take the F1 of all labels of all rows together; 0 where nothing is named and nothing had."""
    counts = _label_counts(y, p).sum(axis=2)

    def f1(w: FloatArray) -> FloatArray:
        right, named, had = (w @ counts).T
        return np.nan_to_num(ratio(2 * right, named + had))

    return f1


def _f1_macro(y: Labels, p: FloatArray) -> Weighted:
    """Take the mean over the classes of the F1 of each, of those that are named or had anywhere."""
    counts = _label_counts(y, p)
    shape = counts.shape[1:]

    def f1(w: FloatArray) -> FloatArray:
        sums = (w @ counts.reshape(len(counts), -1)).reshape(-1, *shape)
        return np.nan_to_num(_mean_of_known(ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2])))

    return f1


def _label_precision(y: Labels, p: FloatArray) -> Weighted:
    """Take the mean over the classes that occur of the average precision of each."""
    own = members(y, p.shape[1])
    of_two = _ranking(_precision_area)
    parts = [
        of_two(own[:, k].astype(np.int64), np.column_stack([1.0 - p[:, k], p[:, k]]))
        for k in range(p.shape[1])
    ]
    return lambda w: _mean_of_known(np.column_stack([part(w) for part in parts]))


def _label_losses(y: Labels, p: FloatArray) -> FloatArray:
    own = members(y, p.shape[1])
    return np.asarray(-np.log(np.clip(np.where(own, p, 1.0 - p), CLIP, 1.0)).mean(axis=1))


def _label_brier(y: Labels, p: FloatArray) -> FloatArray:
    return np.asarray(((p - members(y, p.shape[1])) ** 2).mean(axis=1))


def _label_calibration(y: Labels, p: FloatArray) -> Weighted:
    """`_ece` of each label by itself, all together: of its probability, in bins."""
    own, n = members(y, p.shape[1]), len(y)
    bins = np.minimum((p * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.zeros((n, ECE_BINS))
    np.add.at(gaps, (np.repeat(np.arange(n), p.shape[1]), bins.reshape(-1)), (own - p).reshape(-1))
    return lambda w: ratio(np.abs(w @ gaps).sum(axis=1), w.sum(axis=1) * p.shape[1])


@dataclass(frozen=True)
class _Metric:
    prepare: Callable[[Labels, FloatArray], Weighted]
    classification: bool
    unit: bool
    """Whether it lies in 0..1 for anything better than useless, so that ``min_accuracy`` can bound it."""
    ranks: bool = False
    """Whether it goes through the rows in the order of each class's outputs, which costs most."""
    names: bool = False
    """Whether only the class that is named counts, which a threshold decides where there are two, or several labels."""
    labels: bool = False
    """Whether it is of several labels, and of nothing else."""


METRICS: Mapping[str, _Metric] = {
    "accuracy": _Metric(_accuracy, True, True, names=True),
    "balanced_accuracy": _Metric(_balanced_accuracy, True, True, names=True),
    "roc_auc": _Metric(_ranking(_roc_area), True, True, ranks=True),
    "average_precision": _Metric(_ranking(_precision_area), True, True, ranks=True),
    "f1": _Metric(_f1, True, True, names=True),
    "neg_log_loss": _Metric(lambda y, p: _mean(-_log_losses(y, p)), True, False),
    "neg_brier_score": _Metric(lambda y, p: _mean(-_brier_terms(y, p)), True, False),
    "f1_micro": _Metric(_f1_micro, True, True, names=True, labels=True),
    "f1_macro": _Metric(_f1_macro, True, True, names=True, labels=True),
    "average_precision_macro": _Metric(_label_precision, True, True, ranks=True, labels=True),
    "neg_log_loss_labels": _Metric(lambda y, p: _mean(-_label_losses(y, p)), True, False, labels=True),
    "neg_brier_score_labels": _Metric(lambda y, p: _mean(-_label_brier(y, p)), True, False, labels=True),
    "r2": _Metric(_r2, False, True),
    "neg_root_mean_squared_error": _Metric(_neg_rmse, False, False),
    "neg_mean_absolute_error": _Metric(lambda y, p: _mean(-np.abs(y - p[:, 0])), False, False),
}

EXTRA: Mapping[str, _Metric] = {
    "ece": _Metric(lambda y, p: _ece(y, p), True, False),
    "ece_labels": _Metric(_label_calibration, True, False, labels=True),
}
"""No metrics to choose by (lower is better, and a constant is calibrated), but ones with an interval."""

AGREEMENT = "agreement"
"""The metric where there is no label: the share of rows in which student and teacher name the same class, or R2 against it; of
several labels the micro F1 against those that the teacher names."""

AGREEMENT_METRICS: Mapping[Task, str] = {
    "binary": "accuracy",
    "multiclass": "accuracy",
    "multilabel": "f1_micro",
    "regression": "r2",
}
"""The metric that agreement, and fidelity, is: with the teacher's answer as the truth."""


def fitting(task: Task) -> list[str]:
    """Return the names of the metrics that can be measured for ``task``."""
    return [
        name
        for name, metric in METRICS.items()
        if metric.classification == (task != "regression") and metric.labels == (task == "multilabel")
    ]


def loss_of(task: Task) -> str:
    """Return the smooth metric that tells answers of one accuracy apart."""
    if task == "multilabel":
        return "neg_log_loss_labels"
    return "neg_root_mean_squared_error" if task == "regression" else "neg_log_loss"


def named(outputs: FloatArray, task: Task, threshold: Cut = None) -> Labels:
    """Return what (n, K) outputs name, as labels are given: class positions, sets of several labels, or values."""
    if task == "regression":
        return outputs[:, 0]
    found = decided(outputs, threshold)
    return label_sets(found >= 0.5) if task == "multilabel" else found.argmax(axis=1)


def per_class(y: Labels, outputs: FloatArray, weights: FloatArray | None = None) -> list[float | None]:
    """Return the average precision of each class of several labels; None of one that no row has."""
    own = members(y, outputs.shape[1])
    found = []
    for k in range(outputs.shape[1]):
        p = np.column_stack([1.0 - outputs[:, k], outputs[:, k]])
        value = score("average_precision", own[:, k].astype(np.int64), p, weights)
        found.append(value if np.isfinite(value) else None)
    return found


def check_metric(metric: str, task: Task, *, labelled: bool) -> None:
    """Raise InvalidParameter unless ``metric`` can be measured for ``task``."""
    if metric == AGREEMENT:
        return
    if metric not in METRICS:
        raise InvalidParameter(
            f'metric "{metric}" does not exist', hint=f"Metrics are {', '.join((*METRICS, AGREEMENT))}."
        )
    if metric not in fitting(task):
        raise InvalidParameter(
            f'metric "{metric}" does not fit the task {task}',
            hint=f"Metrics of this task are {', '.join((*fitting(task), AGREEMENT))}.",
        )
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
    return ranks(metric) or metric in ("balanced_accuracy", "f1", "f1_macro")


def judges_classes(metric: str) -> bool:
    """Whether only the class that a model names counts, not how its probabilities order or state it."""
    return metric == AGREEMENT or METRICS[metric].names


def decided(outputs: FloatArray, threshold: Cut) -> FloatArray:
    """Return (n, 2) outputs whose larger one is the class that is named: the last one from ``threshold`` on, if there is one.

    Of several labels, whose thresholds are as many as they, (n, K): 1 for those that are named.
    """
    if threshold is None:
        return outputs
    if isinstance(threshold, tuple):
        return (outputs >= np.array(threshold)).astype(np.float64)
    last = (outputs[:, 1] >= threshold).astype(np.float64)
    return np.column_stack([1.0 - last, last])


def judged(metric: str, outputs: FloatArray, threshold: Cut) -> FloatArray:
    """Return the outputs that a metric sees: those of `decided` where it is of the classes that are named."""
    return decided(outputs, threshold) if METRICS[metric].names else outputs


def score(
    metric: str,
    y: Labels,
    outputs: FloatArray,
    weights: FloatArray | None = None,
    threshold: Cut = None,
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


def ece(y: Labels, p: FloatArray, weights: FloatArray | None = None, task: Task = "multiclass") -> float:
    """Return the expected calibration error of the most probable class, or of all labels, in 15 bins (Guo et al. 2017)."""
    metric = EXTRA["ece_labels" if task == "multilabel" else "ece"]
    return float(metric.prepare(y, p)(full_weights(weights, len(y))[None, :])[0])


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
    return AGREEMENT_METRICS[task]
