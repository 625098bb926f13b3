"""Latency and accuracy with their confidence: metrics, calibration, bootstrap, and latency as a statistic.

Outputs are (n, K) probabilities for classification and (n, 1) values for regression; labels are (n,) class
positions, or values. Every metric is such that higher is better. Metrics are those of scikit-learn under its names,
with which the tests compare them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.errors import InvalidParameter
from pg_distill.frame import FloatArray, Task
from pg_distill.quoting import array_text, quote_literal

__all__ = [
    "METRICS",
    "Interval",
    "Judge",
    "Latency",
    "best_threshold",
    "bootstrap_interval",
    "brier",
    "check_metric",
    "class_order",
    "decided",
    "ece",
    "falls",
    "is_unit_metric",
    "jackknife",
    "judged",
    "judges_classes",
    "latency_statistics",
    "paired_interval",
    "rank",
    "ranks",
    "score",
    "share_interval",
    "summary",
    "turned_round",
    "upper_order_statistic",
    "weighs_classes",
]

Labels = npt.NDArray[Any]

CONFIDENCE = 0.95
Z_95 = 1.959964  # the normal distribution's two-sided 95 % quantile
CLIP = 1e-15  # probabilities below this cost a finite log loss
TINY = 1e-300  # keeps 0 / 0 out of precision above thresholds that no drawn row has passed
ECE_BINS = 15  # equal-width bins of confidence (Guo et al. 2017)
RESAMPLES = 1000  # of the bootstrap: the 95 % interval's ends rest on 25 of them each
MIN_RESAMPLES = 200
COMPARED_RESAMPLES = 400  # of the metrics beside the run's own: seconds at 20,000 rows of 26 classes
MAX_CELLS = 100_000_000  # rows x resamples x passes for an interval: a few seconds; beyond, fewer resamples
RANKING_PASSES = 4  # what gathering and cumulating cost, in plain sums
GROUPS = 20  # of the jackknife: a standard error to a sixth of itself, for the price of 20 scores
TUNING_ERRORS = 2.0  # paired standard errors by which another threshold than one half has to be better on the rows that choose
TIE = 1.0  # paired standard errors of the metric, within which two students are taken for equally good
MIN_ORDER_ROWS = 20  # on fewer nothing is said about the order of a model's classes
ORDER_GAIN = (
    0.2  # share of the rows that another order of the classes has to set right, and of a correlation below 0
)
BLOCK_CELLS = 1_000_000  # rows x resamples at once: 8 MB of float64 stay near the processor


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


# -- metrics --------------------------------------------------------------------------------------------------------

Weighted = Callable[[FloatArray], FloatArray]
"""A metric of given labels and outputs: from weights of the rows, (b, n), to its b values; NaN where undefined."""


def _weights(weights: FloatArray | None, n: int) -> FloatArray:
    return np.ones(n) if weights is None else weights


def _ratio(a: FloatArray, b: FloatArray) -> FloatArray:
    undefined = np.full(np.broadcast_shapes(a.shape, b.shape), np.nan)
    return np.asarray(np.divide(a, b, out=undefined, where=b > 0))


def _mean(terms: FloatArray) -> Weighted:
    return lambda w: _ratio(w @ terms, w.sum(axis=1))


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
    return lambda w: _mean_of_known(_ratio(right(w), actual(w)))


def _f1(y: Labels, p: FloatArray) -> Weighted:
    """F1 of the last class where there are two, else the mean over classes (macro)."""
    guess, size = p.argmax(axis=1), p.shape[1]
    right, claimed, actual = _sums(np.where(guess == y, y, -1), size), _sums(guess, size), _sums(y, size)

    def f1(w: FloatArray) -> FloatArray:
        values = _ratio(2 * right(w), claimed(w) + actual(w))
        return np.nan_to_num(values[:, 1] if size == 2 else _mean_of_known(values))

    return f1


def _mean_of_known(values: FloatArray) -> FloatArray:
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


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
    return _ratio(pairs, (positive * (every - positive))[:, 0])


def _precision_area(
    true: FloatArray, within: FloatArray, down_to: FloatArray, every: FloatArray
) -> FloatArray:
    precision = np.cumsum(true, axis=1) / np.maximum(down_to, TINY)
    return _ratio((true * precision).sum(axis=1), true.sum(axis=1))


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
        means = _ratio(w @ terms, w.sum(axis=1, keepdims=True))
        variance = means[:, 2] - means[:, 1] ** 2
        return 1.0 - _ratio(means[:, 0], np.where(variance > least, variance, 0.0))

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

_ECE = _Metric(lambda y, p: _ece(y, p), True, False)
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
    w = _weights(weights, len(y))
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
    return threshold if gain > TUNING_ERRORS * _paired_error(apart[0], apart[1]) else None


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
    return float(METRICS[metric].prepare(y, outputs)(_weights(weights, len(y))[None, :])[0])


def brier(y: Labels, p: FloatArray, weights: FloatArray | None = None) -> float:
    """Return the Brier score: lower is better; binary in its one-probability form."""
    return -score("neg_brier_score", y, p, weights)


def ece(y: Labels, p: FloatArray, weights: FloatArray | None = None) -> float:
    """Return the expected calibration error of the most probable class, in 15 bins (Guo et al. 2017)."""
    return float(_ece(y, p)(_weights(weights, len(y))[None, :])[0])


def _ece(y: Labels, p: FloatArray) -> Weighted:
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    sums, gap = _sums(bins, ECE_BINS), right - confidence
    return lambda w: _ratio(np.abs(sums(w * gap)).sum(axis=1), w.sum(axis=1))


# -- confidence -----------------------------------------------------------------------------------------------------


def _resampled(
    metric: str, y: Labels, outputs: Sequence[FloatArray], w: FloatArray, seed: int, resamples: int
) -> FloatArray:
    """Return the (resamples, m) metric of m outputs on the same resampled rows."""
    return _resampled_each({metric: resamples}, y, outputs, w, seed)[metric]


def _resampled_each(
    resamples: Mapping[str, int],
    y: Labels,
    outputs: Sequence[FloatArray],
    w: FloatArray,
    seed: int,
    thresholds: Sequence[float | None] | None = None,
) -> dict[str, FloatArray]:
    """Return the (resamples, m) values of each metric, all of the same draws; what costs much gets the first of them only."""
    cuts = thresholds if thresholds is not None else [None] * len(outputs)
    rng = np.random.default_rng(seed)
    n = len(y)
    if n == 0:
        return {metric: np.full((1, len(outputs)), np.nan) for metric in resamples}
    classes = outputs[0].shape[1]
    values, measures = {}, {}
    for metric, wanted in resamples.items():
        found = METRICS.get(metric, _ECE)
        passes = RANKING_PASSES * (classes if classes > 2 else 1) if found.ranks else 1
        size = max(min(wanted, MIN_RESAMPLES), min(wanted, MAX_CELLS // (n * passes)))
        values[metric] = np.empty((size, len(outputs)))
        measures[metric] = [
            found.prepare(y, decided(p, t) if found.names else p) for p, t in zip(outputs, cuts, strict=True)
        ]
    last = max(len(v) for v in values.values())
    step = max(1, BLOCK_CELLS // n)
    for start in range(0, last, step):
        stop = min(start + step, last)
        drawn = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) * w for _ in range(start, stop)])
        for metric, found_values in values.items():
            block = found_values[start:stop]
            if len(block):
                block[:] = np.column_stack([measure(drawn[: len(block)]) for measure in measures[metric]])
    return values


def _percentiles(values: FloatArray) -> Interval:
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def bootstrap_interval(
    metric: str,
    y: Labels,
    outputs: FloatArray,
    weights: FloatArray | None = None,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the percentile bootstrap interval of a metric over rows (Efron 1979)."""
    values = _resampled(metric, y, [outputs], _weights(weights, len(y)), seed, resamples)
    return _percentiles(values[:, 0])


def paired_interval(
    metric: str,
    y: Labels,
    a: FloatArray,
    b: FloatArray,
    weights: FloatArray | None = None,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the bootstrap interval of metric(a) - metric(b) on the same rows."""
    values = _resampled(metric, y, [a, b], _weights(weights, len(y)), seed, resamples)
    return _percentiles(values[:, 0] - values[:, 1])


def jackknife(
    metric: str, y: Labels, outputs: FloatArray, weights: FloatArray | None = None, *, groups: int = GROUPS
) -> FloatArray:
    """Return the metric with each of ``groups`` random parts of the rows left out in turn, (groups,).

    The parts are the same for every student of the same rows, so that differences of two are paired: see `rank`.
    """
    n = len(y)
    groups = max(1, min(groups, n))
    part = np.random.default_rng(0).permutation(n) % groups
    kept = np.where(part == np.arange(groups)[:, None], 0.0, _weights(weights, n))
    return METRICS[metric].prepare(y, outputs)(kept)


def rank(
    metrics: Sequence[float],
    tie_breaks: Sequence[float | None],
    jackknives: Sequence[Sequence[float | None] | FloatArray],
    last: Sequence[bool] = (),
) -> list[int]:
    """Return the positions of students, best first: a winner by noise alone is no winner.

    Those whose metric is within ``TIE`` standard errors of the best one's, paired, are ordered by the smooth tie-break, the
    others by the metric.

    Parameters
    ----------
    metrics
        Of each student on the rows that choose; higher is better.
    tie_breaks
        Log loss, or error, likewise on these rows and higher is better; None or NaN comes last.
    jackknives
        What `jackknife` returned for each; students without (empty) tie only with their equals.
    last
        Of each student whether those that are as good go before it, whatever the tie-break says.
    """
    if not metrics:
        return []
    value = np.nan_to_num(np.asarray(metrics, np.float64), nan=-np.inf)
    smooth = np.nan_to_num(np.array(tie_breaks, np.float64), nan=-np.inf)
    top = max(range(len(value)), key=lambda i: (value[i], smooth[i], -i))
    noise = np.zeros(len(value))
    for i, own in enumerate(jackknives):
        if len(own) and len(own) == len(jackknives[top]):
            noise[i] = _paired_error(np.asarray(own, np.float64), np.asarray(jackknives[top], np.float64))
    ties = value >= value[top] - TIE * noise
    first = np.where(ties, smooth, value)
    second = np.where(ties, value, smooth)
    behind = ties & np.array(last, bool) if len(last) else np.zeros(len(value), bool)
    return sorted(range(len(value)), key=lambda i: (not ties[i], behind[i], -first[i], -second[i], i))


def _paired_error(a: FloatArray, b: FloatArray) -> float:
    """Return the standard error of the difference of two students' metrics, of what `jackknife` returned for them."""
    apart = a - b
    apart = apart[np.isfinite(apart)]
    return math.sqrt(max(len(apart) - 1, 0) * float(apart.var())) if len(apart) else 0.0


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


def share_interval(share: float, n: float) -> Interval:
    """Return the Wilson (1927) interval of a share of ``n`` rows: also where all or none of them agree."""
    z2 = Z_95 * Z_95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Rounding must not leave the share itself outside.
    return Interval(min(share, max(centre - half, 0.0)), max(share, min(centre + half, 1.0)))


# -- a run's figures ------------------------------------------------------------------------------------------------


class Judge:
    """What students, teacher and family are held against: the test rows of one run.

    Parameters
    ----------
    metric
        The run's metric, ``agreement`` where there are no labels.
    y
        (n,) labels of the test rows; those without one are left out.
    teacher
        (n, K) the teacher's outputs on the same rows.
    baseline_y
        Labels of the rows to fit on, of which the majority class or mean is the baseline; ``baseline_weights`` are theirs.
    """

    def __init__(
        self,
        metric: str,
        task: Task,
        y: Labels,
        teacher: FloatArray,
        weights: FloatArray | None,
        *,
        seed: int,
        resamples: int = RESAMPLES,
        baseline_y: Labels | None = None,
        baseline_weights: FloatArray | None = None,
    ) -> None:
        self.task = task
        self.metric = metric
        self._seed, self._resamples = seed, resamples
        labelled = metric != AGREEMENT
        self._inner = metric if labelled else ("r2" if task == "regression" else "accuracy")
        # Without labels the teacher's own answer stands in for the truth: that is what agreement means.
        truth = y if labelled else self._hard(teacher)
        self._known = np.isfinite(truth) if task == "regression" else truth >= 0
        self._y = truth[self._known]
        self._w = None if weights is None else weights[self._known]
        self._teacher = teacher[self._known]
        fitted, its_weights = truth, weights
        if baseline_y is not None and labelled:
            fitted, its_weights = baseline_y, baseline_weights
        known = np.isfinite(fitted) if task == "regression" else fitted >= 0
        w = _weights(its_weights, len(fitted))[known]
        if task == "regression":
            constant = _ratio(w @ fitted[known], w.sum())[None]
        else:
            constant = np.bincount(fitted[known].astype(np.int64), w, teacher.shape[1]) / max(w.sum(), TINY)
        self._baseline = score(self._inner, self._y, np.tile(constant, (len(self._y), 1)), self._w)
        self._teacher_score = score(self._inner, self._y, self._teacher, self._w)

    def _hard(self, outputs: FloatArray) -> Labels:
        return outputs[:, 0] if self.task == "regression" else outputs.argmax(axis=1)

    def baseline(self) -> float | None:
        """Return the metric of always answering with the class shares, or the mean, of the rows to fit on."""
        return _finite(self._baseline)

    def _judged(self, outputs: FloatArray, threshold: float | None) -> FloatArray:
        """Return the outputs that the run's metric sees."""
        return judged(self._inner, outputs[self._known], threshold)

    def value(self, outputs: FloatArray, threshold: float | None = None) -> float | None:
        """Return the run's metric of (n, K) outputs; ``threshold`` as in `score`."""
        return _finite(score(self._inner, self._y, self._judged(outputs, threshold), self._w))

    def threshold(self, outputs: FloatArray) -> float | None:
        """Return `best_threshold` of (n, K) outputs for the run's metric; None where nothing is decided by one."""
        if self.metric == AGREEMENT or not METRICS[self._inner].names:
            return None
        return best_threshold(self._inner, self._y, outputs[self._known], self._w)

    def figures(self, outputs: FloatArray, threshold: float | None = None) -> dict[str, Any]:
        """Return every figure of (n, K) outputs; undefined ones are None. ``threshold`` as in `score`."""
        p, y, w = outputs[self._known], self._y, self._w
        judged = self._judged(outputs, threshold)
        value = score(self._inner, y, judged, w)
        interval = bootstrap_interval(self._inner, y, judged, w, seed=self._seed, resamples=self._resamples)
        margin = self._teacher_score - self._baseline
        found: dict[str, Any] = {
            "rows": len(y),
            "score": _finite(value),
            "score_low": _finite(interval.low),
            "score_high": _finite(interval.high),
            "lift": _finite((value - self._baseline) / margin) if margin > 0 else None,
            **self._fidelity(decided(p, threshold)),
        }
        names = [n for n, m in METRICS.items() if m.classification == (self.task != "regression")]
        found["metrics"] = {name: _finite(score(name, y, p, w, threshold)) for name in names}
        if self.task == "regression":
            found |= {"log_loss": None, "brier": None, "ece": None, "distinct_classes": None}
        else:
            found["log_loss"] = _finite(-score("neg_log_loss", y, p, w))
            found["brier"] = _finite(brier(y, p, w))
            found["ece"] = _finite(ece(y, p, w))
            found["distinct_classes"] = len(np.unique(decided(p, threshold).argmax(axis=1)))
        return found

    def _fidelity(self, p: FloatArray) -> dict[str, float | None]:
        metric = "r2" if self.task == "regression" else "accuracy"
        y, w = self._hard(self._teacher), self._w
        value = score(metric, y, p, w)
        if self.task == "regression":
            interval = bootstrap_interval(metric, y, p, w, seed=self._seed, resamples=self._resamples)
        else:
            # Kish's effective number of rows.
            n = len(y) if w is None else float(w.sum() ** 2 / (w @ w))
            interval = share_interval(value, n)
        return {
            "fidelity": _finite(value),
            "fidelity_low": _finite(interval.low),
            "fidelity_high": _finite(interval.high),
        }

    def jackknife(self, outputs: FloatArray, threshold: float | None = None) -> list[float | None]:
        """Return what `rank` needs to tell the noise of the run's metric."""
        judged = self._judged(outputs, threshold)
        return [_finite(v) for v in jackknife(self._inner, self._y, judged, self._w)]

    def difference_error(
        self, a: FloatArray, b: FloatArray, thresholds: tuple[float | None, float | None] = (None, None)
    ) -> float | None:
        """Return the standard error of the difference of two outputs in the run's metric, paired, by the jackknife."""
        apart = [
            jackknife(self._inner, self._y, self._judged(p, threshold), self._w)
            for p, threshold in zip((a, b), thresholds, strict=True)
        ]
        return _finite(_paired_error(apart[0], apart[1]))

    def tie_break(self, outputs: FloatArray) -> float | None:
        """Return what tells outputs of equal metric apart, higher is better: log loss or error, without labels the divergence."""
        p = outputs[self._known]
        if self.task == "regression":
            return _finite(score("neg_root_mean_squared_error", self._y, p, self._w))
        if self.metric != AGREEMENT:
            return _finite(score("neg_log_loss", self._y, p, self._w))
        t = self._teacher
        divergence = (t * (np.log(np.maximum(t, CLIP)) - np.log(np.maximum(p, CLIP)))).sum(axis=1)
        return _finite(-float(np.average(divergence, weights=self._w)))

    def compare(
        self, outputs: Mapping[str, FloatArray], thresholds: Mapping[str, float | None] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return the intervals of every metric of some outputs, and of their differences, all from the same draws.

        ``thresholds`` of some of them are as in `score`.

        Returns
        -------
        dict
            ``intervals``: by output and metric its interval, [low, high]. ``versus``: by pair of outputs, as in
            ``"student-teacher"`` for each that comes after another, and metric: ``difference``, ``low``, ``high``.
        """
        names = [n for n, m in METRICS.items() if m.classification == (self.task != "regression")]
        extra = [] if self.task == "regression" else ["ece"]
        each = [p[self._known] for p in outputs.values()]
        cuts = [(thresholds or {}).get(name) for name in outputs]
        w = _weights(self._w, len(self._y))
        resamples = dict.fromkeys([*names, *extra], min(self._resamples, COMPARED_RESAMPLES))
        resamples[self._inner] = self._resamples  # as in its own interval
        values = _resampled_each(resamples, self._y, each, w, self._seed, cuts)
        points = {
            name: [score(name, self._y, p, self._w, t) for p, t in zip(each, cuts, strict=True)]
            for name in names
        }
        points |= {name: [ece(self._y, p, self._w) for p in each] for name in extra}
        for name, metric in (("log_loss", "neg_log_loss"), ("brier", "neg_brier_score")):
            if metric in values:
                values[name], points[name] = -values[metric], [-v for v in points[metric]]
        intervals: dict[str, Any] = {}
        versus: dict[str, Any] = {}
        for i, a in enumerate(outputs):
            intervals[a] = {name: _ends(v[:, i]) for name, v in values.items()}
            if "ece" in values and intervals[a]["ece"][0] is not None:
                # Drawing rows adds noise to the bins, which their absolute values turn into error: the estimate may lie below.
                intervals[a]["ece"][0] = min(intervals[a]["ece"][0], points["ece"][i])
            for j, b in enumerate(list(outputs)[:i]):
                versus[f"{a}-{b}"] = {}
                for name, v in values.items():
                    low, high = _ends(v[:, i] - v[:, j])
                    difference = _finite(points[name][i] - points[name][j])
                    versus[f"{a}-{b}"][name] = {"difference": difference, "low": low, "high": high}
        return {"intervals": intervals, "versus": versus}


def _ends(values: FloatArray) -> list[float | None]:
    interval = _percentiles(values)
    return [_finite(interval.low), _finite(interval.high)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# -- latency --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """Call latency in milliseconds: the mean with its 95 % interval over blocks, and percentiles of single calls.

    ``p95_high_ms`` is what the 95th percentile does not exceed with 95 % confidence, were calls independent of each
    other; so for the others. All six are None where calls are too short for the clock, or too few for such a bound.
    """

    mean_ms: float
    low_ms: float
    high_ms: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    p50_high_ms: float | None
    p95_high_ms: float | None
    p99_high_ms: float | None
    n_calls: int
    n_blocks: int


CLOCK_STEP_MS = 0.001  # clock_timestamp() counts microseconds
MIN_STEPS = 3  # a call of fewer steps of the clock cannot be told from its neighbours

# Two-sided 95 % quantiles of Student's t by degrees of freedom; scipy is no dependency.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
         2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)  # fmt: skip


def _t_quantile(freedom: int) -> float:
    if freedom <= len(_T_95):
        return _T_95[freedom - 1]
    z = Z_95  # Cornish-Fisher, good to 0.001 from here on
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def upper_order_statistic(n: int, q: float) -> int | None:
    """Return the k for which the k-th smallest of ``n`` values bounds their ``q`` quantile with 95 % confidence.

    The binomial bound, free of any distribution: of 59 calls the slowest bounds the 95th percentile, of 1,000 the
    527th the median. None where even the largest value is no bound.
    """
    counts = np.arange(n)  # of values below the quantile
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    terms = logs[n] - logs[counts] - logs[n - counts] + counts * math.log(q) + (n - counts) * math.log1p(-q)
    enough = np.flatnonzero(np.cumsum(np.exp(terms)) >= CONFIDENCE)
    return int(enough[0]) + 1 if len(enough) else None


def latency_statistics(blocks: Sequence[FloatArray]) -> Latency:
    """Summarise blocks of single calls in milliseconds.

    Calls of one block share what disturbs them, so the interval is over block means, not over calls.
    """
    means = np.array([block.mean() for block in blocks])
    calls = np.sort(np.concatenate(blocks))
    mean = float(means.mean())
    half = (
        _t_quantile(len(means) - 1) * float(means.std(ddof=1)) / math.sqrt(len(means))
        if len(means) > 1
        else math.inf
    )
    resolved = float(np.median(calls)) >= MIN_STEPS * CLOCK_STEP_MS
    estimates: dict[int, float | None] = {}
    bounds: dict[int, float | None] = {}
    for percent in (50, 95, 99):
        k = upper_order_statistic(len(calls), percent / 100) if resolved else None
        estimates[percent] = None if k is None else float(np.quantile(calls, percent / 100, method="higher"))
        bounds[percent] = None if k is None else float(calls[k - 1])
    return Latency(
        mean_ms=mean,
        low_ms=max(mean - half, 0.0),
        high_ms=mean + half,
        p50_ms=estimates[50],
        p95_ms=estimates[95],
        p99_ms=estimates[99],
        p50_high_ms=bounds[50],
        p95_high_ms=bounds[95],
        p99_high_ms=bounds[99],
        n_calls=len(calls),
        n_blocks=len(means),
    )


# -- words ----------------------------------------------------------------------------------------------------------


def turned_round(name: str, classes: Sequence[str], order: Sequence[int] | None, *, falls: bool) -> list[str]:
    """Return what to say of a model whose classes seem to be in another order, or whose values fall where labels rise.

    ``order`` and ``falls`` are what the functions of these names say: `class_order` and `falls`.
    """
    if falls:
        return [
            f'the values of model "{name}" fall where the label rises: register it again with their sign turned'
        ]
    if order is None:
        return []
    meant = quote_literal(array_text(classes[k] for k in order))
    return [
        f'the classes of model "{name}" seem to be in another order than its outputs: register it again with'
        f" classes => {meant}"
    ]


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def summary(
    *,
    teacher_latency_ms: float | None,
    student_latency_ms: float,
    teacher_accuracy: float | None,
    student_accuracy: float | None,
    baseline: float | None,
    pareto_score: float | None,
    latency_declared: bool = False,
) -> str:
    """Return a run in a sentence.

    Such as ``12.4ms -> 0.011ms latency (1127x faster), 99.3% accuracy preserved (97.1% of the lift), pareto score 1119.2``.
    """
    if teacher_latency_ms is None:
        parts = [f"{_milliseconds(student_latency_ms)}ms latency (the teacher's is not known)"]
    else:
        declared = " declared" if latency_declared else ""
        ratio = teacher_latency_ms / student_latency_ms
        faster = f"{ratio:.3g}x faster" if ratio < 100 else f"{ratio:.0f}x faster"
        if ratio < 1:
            faster = f"{1 / ratio:.3g}x slower"
        parts = [
            f"{_milliseconds(teacher_latency_ms)}ms{declared} -> {_milliseconds(student_latency_ms)}ms latency ({faster})"
        ]
    if teacher_accuracy is not None and student_accuracy is not None:
        if teacher_accuracy > 0:
            kept = f"{100 * student_accuracy / teacher_accuracy:.1f}% accuracy preserved"
        else:
            kept = f"metric {teacher_accuracy:.4g} -> {student_accuracy:.4g}"
        if baseline is not None and teacher_accuracy > baseline:
            kept += (
                f" ({100 * (student_accuracy - baseline) / (teacher_accuracy - baseline):.1f}% of the lift)"
            )
        parts.append(kept)
    if pareto_score is not None:
        parts.append(f"pareto score {pareto_score:.1f}")
    return ", ".join(parts)
