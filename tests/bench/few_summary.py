"""Ranks and differences of `make bench-few`, from what its runs measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["summarise"]

RESAMPLES = 2000
"""Of the sets, for the interval of a mean difference: the sets are the sample, their splits and teachers are averaged first."""


def summarise(runs: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Return mean ranks (1 is best), and what the student within the last target wins, ties and loses against each other.

    A tie is a paired 95 % interval that has 0 in it. Mean differences are over sets, with their bootstrapped 95 % interval.
    """
    methods = sorted({what for run in runs for what in run["scores"] if run["scores"][what] is not None})
    student = max(
        (m for m in methods if m.startswith("student")), key=lambda m: float(m.partition("_")[2]), default=""
    )
    ranks: dict[str, list[float]] = {}
    for run in runs:
        scores = {m: s for m, s in run["scores"].items() if np.isfinite(s)}
        for what, score in scores.items():
            better = sum(other > score for other in scores.values())
            same = sum(other == score for other in scores.values())
            ranks.setdefault(what, []).append(better + (same + 1) / 2)
    against: dict[str, Any] = {}
    rng = np.random.default_rng(seed)
    for other in methods:
        pairs = [r for r in runs if student in r["scores"] and other in r["scores"] and other in r["versus"]]
        if not pairs or other == student:
            continue
        by_set: dict[str, list[float]] = {}
        for run in pairs:
            by_set.setdefault(run["set"], []).append(run["scores"][student] - run["scores"][other])
        means = np.array([np.mean(found) for found in by_set.values()])
        drawn = means[rng.integers(0, len(means), (RESAMPLES, len(means)))].mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        against[other] = {
            "wins": sum(r["versus"][other][0] > 0 for r in pairs),
            "losses": sum(r["versus"][other][1] < 0 for r in pairs),
            "ties": sum(r["versus"][other][0] <= 0 <= r["versus"][other][1] for r in pairs),
            "mean_difference": float(means.mean()),
            "interval": [float(low), float(high)],
            "least": [min(by_set, key=lambda name: float(np.mean(by_set[name]))), float(means.min())],
            "sets": len(means),
        }
    took = [s for run in runs for s in run["seconds"].values()]
    return {
        "student": student,
        "mean_rank": {what: float(np.mean(found)) for what, found in ranks.items()},
        "against": against,
        "median_seconds": float(np.median(took)) if took else None,
    }
