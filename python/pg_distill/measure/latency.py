"""The latency of calls: means of blocks with their intervals, and order statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pg_distill.frame import FloatArray
from pg_distill.measure.confidence import CONFIDENCE, Z_95
from pg_distill.quoting import array_text, quote_literal

__all__ = ["Latency", "latency_statistics", "turned_round", "upper_order_statistic"]


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
