"""How sure a figure is: bootstrap and jackknife intervals, paired differences, and an order that knows ties."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pg_distill.frame import Cut, FloatArray
from pg_distill.measure.metrics import EXTRA, METRICS, Labels, decided, full_weights

__all__ = [
    "Interval",
    "bootstrap_interval",
    "jackknife",
    "paired_error",
    "paired_interval",
    "percentiles",
    "rank",
    "resampled_each",
    "share_interval",
]

CONFIDENCE = 0.95
Z_95 = 1.959964  # the normal distribution's two-sided 95 % quantile
RESAMPLES = 1000  # of the bootstrap: the 95 % interval's ends rest on 25 of them each
MIN_RESAMPLES = 200
MAX_CELLS = 100_000_000  # rows x resamples x passes for an interval: a few seconds; beyond, fewer resamples
RANKING_PASSES = 4  # what gathering and cumulating cost, in plain sums
GROUPS = 20  # of the jackknife: a standard error to a sixth of itself, for the price of 20 scores
TIE = 1.0  # paired standard errors of the metric, within which two students are taken for equally good
BLOCK_CELLS = 1_000_000  # rows x resamples at once: 8 MB of float64 stay near the processor


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def _resampled(
    metric: str, y: Labels, outputs: Sequence[FloatArray], w: FloatArray, seed: int, resamples: int
) -> FloatArray:
    """Return the (resamples, m) metric of m outputs on the same resampled rows."""
    return resampled_each({metric: resamples}, y, outputs, w, seed)[metric]


def resampled_each(
    resamples: Mapping[str, int],
    y: Labels,
    outputs: Sequence[FloatArray],
    w: FloatArray,
    seed: int,
    thresholds: Sequence[Cut] | None = None,
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
        found = METRICS[metric] if metric in METRICS else EXTRA[metric]
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


def percentiles(values: FloatArray) -> Interval:
    """Return the interval that holds ``CONFIDENCE`` of what resampling gave, of the values that are known."""
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
    values = _resampled(metric, y, [outputs], full_weights(weights, len(y)), seed, resamples)
    return percentiles(values[:, 0])


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
    values = _resampled(metric, y, [a, b], full_weights(weights, len(y)), seed, resamples)
    return percentiles(values[:, 0] - values[:, 1])


def jackknife(
    metric: str, y: Labels, outputs: FloatArray, weights: FloatArray | None = None, *, groups: int = GROUPS
) -> FloatArray:
    """Return the metric with each of ``groups`` random parts of the rows left out in turn, (groups,).

    The parts are the same for every student of the same rows, so that differences of two are paired: see `rank`.
    """
    n = len(y)
    groups = max(1, min(groups, n))
    part = np.random.default_rng(0).permutation(n) % groups
    kept = np.where(part == np.arange(groups)[:, None], 0.0, full_weights(weights, n))
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
            noise[i] = paired_error(np.asarray(own, np.float64), np.asarray(jackknives[top], np.float64))
    ties = value >= value[top] - TIE * noise
    first = np.where(ties, smooth, value)
    second = np.where(ties, value, smooth)
    behind = ties & np.array(last, bool) if len(last) else np.zeros(len(value), bool)
    return sorted(range(len(value)), key=lambda i: (not ties[i], behind[i], -first[i], -second[i], i))


def share_interval(share: float, n: float) -> Interval:
    """Return the Wilson (1927) interval of a share of ``n`` rows: also where all or none of them agree."""
    z2 = Z_95 * Z_95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Rounding must not leave the share itself outside.
    return Interval(min(share, max(centre - half, 0.0)), max(share, min(centre + half, 1.0)))


def paired_error(a: FloatArray, b: FloatArray) -> float:
    """Return the standard error of the difference of two students' metrics, of what `jackknife` returned for them."""
    apart = a - b
    apart = apart[np.isfinite(apart)]
    return math.sqrt(max(len(apart) - 1, 0) * float(apart.var())) if len(apart) else 0.0
