"""Candidates while a search runs, the order among them, and what is returned of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pg_distill.frame import Cut, FloatArray
from pg_distill.measure import confidence, pareto
from pg_distill.onnx_model.label_thresholds import with_thresholds
from pg_distill.search.problem import SELECT_FOLD, Candidate
from pg_distill.search.training import Recipe

__all__ = [
    "VARIANT",
    "Entry",
    "best_of",
    "candidates_of",
    "choices",
    "frontier",
    "key_of",
    "least_near",
    "other_variants",
    "ranked",
    "together_ms",
    "variant_of",
]

NEAR_LOSS = 1.1
"""What loses on select at most so many times what the best one does is worth training and blending if it is of another kind."""
SHARED_MS = 0.004
"""What a session run costs before its first node: the parts of a blend share it."""
VARIANT = "bins"
"""The keyword of a size that is chosen by the screen; the sizes with other values of it are then left out."""


@dataclass
class Entry:
    """A candidate while the search runs."""

    number: int
    family: str
    size: Mapping[str, Any]
    recipe: Recipe
    configuration: dict[str, object]
    student: Any = None
    artifact: bytes = b""
    logits: FloatArray | None = None
    expression: str | None = None
    metric: float = float("nan")
    jackknife: tuple[float, ...] = ()
    class_threshold: Cut = None
    tie_break: float = float("nan")
    fidelity: float = float("nan")
    latency_ms: float = float("nan")
    reading_ms: float = 0.0
    """Of that what goes into reading texts, which the parts of a blend do together."""
    reason: str = ""
    seconds: float = 0.0
    fit_seconds: float = 0.0
    """Of the first training alone; ``seconds`` has the second one too."""
    fit_rows: int = 0
    tiles: int = 1
    """How often its rows are repeated, because there are few augmented ones."""
    is_partial: bool = False
    """Whether it was trained on some of its rows only, to compare recipes."""
    is_control: bool = False
    parts: tuple[int, ...] = ()
    refitted: Any = None
    is_left_out: bool = False
    """Whether others are judged by more rows than it, so that it cannot be compared with them."""
    fold: int = 0
    """Of a training of cross-fitting: the fold that it does not learn from."""

    @property
    def is_usable(self) -> bool:
        """Whether it has a file, a metric and a latency, and can still be the answer."""
        return (
            bool(self.artifact)
            and not self.is_left_out
            and np.isfinite(self.metric)
            and np.isfinite(self.latency_ms)
        )


def ranked(usable: Sequence[Entry]) -> list[Entry]:
    """Return usable entries, best first; see ``measure.rank``."""
    order = confidence.rank(
        [e.metric for e in usable], [e.tie_break for e in usable], [e.jackknife for e in usable]
    )
    return [usable[i] for i in order]


def best_of(entries: Iterable[Entry], allowed_ms: float, n: int) -> list[Entry]:
    """Return the ``n`` best of those that fit the latency, best first."""
    return ranked([e for e in entries if e.is_usable and e.latency_ms <= allowed_ms])[:n]


def frontier(entries: Sequence[Entry]) -> list[Entry]:
    """Return the usable candidates that no other dominates; of equals the first."""
    usable = [e for e in entries if e.is_usable]
    points = [(e.latency_ms, e.metric) for e in usable]
    return [
        e
        for i, e in enumerate(usable)
        if not any(pareto.dominates(p, points[i]) for p in points) and points[i] not in points[:i]
    ]


def choices(entries: Sequence[Entry]) -> list[Entry]:
    """Return the best within each latency that a candidate has."""
    usable = sorted((e for e in entries if e.is_usable), key=lambda e: (e.latency_ms, e.number))
    chosen: dict[int, Entry] = {}
    for i, entry in enumerate(usable, 1):
        if i == len(usable) or usable[i].latency_ms > entry.latency_ms:
            first = ranked(usable[:i])[0]
            chosen[first.number] = first
    return list(chosen.values())


def candidates_of(
    entries: Sequence[Entry],
    metric: str,
    allowed_ms: float,
    folds: tuple[int, ...] = (SELECT_FOLD,),
    rows: int = 0,
) -> list[Candidate]:
    """Mark the frontier and give every candidate its reason; those judged by so many ``rows`` are by all ``folds``."""
    usable = [e for e in entries if e.is_usable]
    undominated = {e.number for e in frontier(entries)}
    on = undominated | {e.number for e in choices(entries)}
    out = []
    for e in entries:
        reason = e.reason
        better = [
            o
            for o in usable
            if o.number in undominated
            and pareto.dominates((o.latency_ms, o.metric), (e.latency_ms, e.metric))
        ]
        if e.number in on:
            reason = "on the frontier"
            if e.number not in undominated and better:
                reason += f": within the noise of candidate {better[0].number}, and better by log loss"
            if e.latency_ms > allowed_ms:
                reason += f", but takes {e.latency_ms:.4f} ms, allowed {allowed_ms:.4f} ms"
        elif not reason and not np.isfinite(e.metric):
            reason = f"{metric} is not defined on the rows that choose"
        elif not reason:
            reason = f"dominated by candidate {better[0].number}" if better else "equals another candidate"
        artifact = with_thresholds(e.artifact, e.class_threshold)
        out.append(
            Candidate(
                number=e.number,
                family=e.family,
                configuration=dict(e.configuration),
                artifact=b"" if e.is_left_out else artifact,
                expression=None if e.is_left_out else e.expression,
                size_bytes=len(artifact),
                metric_select=e.metric,
                fidelity_select=e.fidelity,
                latency_ms=e.latency_ms,
                on_frontier=e.number in on,
                reason=reason,
                is_control=e.is_control,
                seconds=e.seconds,
                tie_break_select=e.tie_break,
                jackknife_select=e.jackknife,
                class_threshold=e.class_threshold,
                select_logits=e.logits,
                folds=folds if e.logits is not None and len(e.logits) == rows else (SELECT_FOLD,),
            )
        )
    return out


def variant_of(size: Mapping[str, Any]) -> Any:
    """Return what tells a size from others of its shape; None where there is nothing beside it to tell apart."""
    return size.get(VARIANT) if len(size) > 1 else None


def other_variants(sizes: Sequence[Mapping[str, Any]], size: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the other sizes that differ from ``size`` in ``VARIANT`` alone."""

    def rest(keywords: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in keywords.items() if key != VARIANT}

    if len(size) == 1:
        return []
    return [other for other in sizes if other != size and rest(other) == rest(size)]


def least_near(entry: Entry) -> float:
    """Return the least tie-break, a loss below 0, of what is nearly as good as ``entry``."""
    return entry.tie_break - (NEAR_LOSS - 1) * abs(entry.tie_break)


def together_ms(parts: Sequence[Entry]) -> float:
    """Return what a blend of ``parts`` is expected to take: it reads a text once for all of them."""
    apart = sum(e.latency_ms - e.reading_ms - SHARED_MS for e in parts)
    return apart + SHARED_MS + max((e.reading_ms for e in parts), default=0.0)


def key_of(family: str, size: Mapping[str, Any], recipe: Recipe) -> str:
    """Return what tells a training from others: what is trained, of which size, by which recipe."""
    return repr((family, sorted((k, str(v)) for k, v in size.items()), recipe))
