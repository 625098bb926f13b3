"""Dominance, frontier and score over points (latency, accuracy): lower latency and higher accuracy are better."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pg_distill.errors import InvalidParameter, NullNotAllowed

__all__ = ["Point", "dominates", "dominates_pareto", "frontier", "improves", "pareto_score"]

Point = tuple[float, float]


def dominates(a: Point, b: Point) -> bool:
    """Whether ``a`` is no slower and no less accurate than ``b``, and better in one."""
    return a[0] <= b[0] and a[1] >= b[1] and a != b


def improves(point: Point, points: Sequence[Point]) -> bool:
    """Whether no one of ``points`` dominates or equals ``point``; always so for no points.

    A point of which a figure is NaN improves nothing.
    """
    if math.isnan(point[0]) or math.isnan(point[1]):
        return False
    return not any(other[0] <= point[0] and other[1] >= point[1] for other in points)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other dominates, each once, fastest first."""
    kept: list[Point] = []
    for point in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept


def dominates_pareto(
    latency: float | None, accuracy: float | None, points: Sequence[Sequence[float | None]] | None
) -> bool:
    """Whether (``latency``, ``accuracy``) improves the frontier given as rows of {latency, accuracy}.

    Raises
    ------
    NullNotAllowed
        A figure is None.
    InvalidParameter
        A figure is NaN, or the frontier has not two columns.
    """
    if latency is None or accuracy is None:
        raise NullNotAllowed("latency and accuracy must not be NULL")
    rows: list[Point] = []
    for row in points or ():
        if not isinstance(row, list | tuple) or len(row) != 2:
            raise InvalidParameter("frontier must be an array of {latency, accuracy} rows")
        if row[0] is None or row[1] is None:
            raise NullNotAllowed("frontier must not hold NULL")
        rows.append((float(row[0]), float(row[1])))
    point = (float(latency), float(accuracy))
    if any(math.isnan(value) for values in (point, *rows) for value in values):
        raise InvalidParameter("latency and accuracy must not be NaN")
    return improves(point, rows)


def pareto_score(
    teacher_latency_ms: float | None,
    student_latency_ms: float | None,
    teacher_accuracy: float | None,
    student_accuracy: float | None,
) -> float | None:
    """Return (teacher latency / student latency) * (student accuracy / teacher accuracy).

    None where a figure is not known, or is not above 0 where it divides: then a ratio says nothing.
    """
    if teacher_latency_ms is None or student_latency_ms is None or not student_latency_ms > 0:
        return None
    if teacher_accuracy is None or student_accuracy is None or not teacher_accuracy > 0:
        return None
    return float((teacher_latency_ms / student_latency_ms) * (student_accuracy / teacher_accuracy))
