"""Dominance and frontier hold for any points, not only for examples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pg_distill.errors import InvalidParameter, NullNotAllowed
from pg_distill.measure import pareto

# Few distinct values, so that ties and equal points are common.
points = st.tuples(st.sampled_from([1.0, 2.0, 3.0, 5.0]), st.sampled_from([0.1, 0.2, 0.5, 0.9]))
many = st.lists(points, max_size=12)


@given(points, points, points)
def test_dominance_is_a_strict_order(a: pareto.Point, b: pareto.Point, c: pareto.Point) -> None:
    assert not pareto.dominates(a, a)
    assert not (pareto.dominates(a, b) and pareto.dominates(b, a))
    if pareto.dominates(a, b) and pareto.dominates(b, c):
        assert pareto.dominates(a, c)


@given(many)
def test_frontier_is_what_nothing_dominates(given_points: list[pareto.Point]) -> None:
    kept = pareto.frontier(given_points)
    expected = {p for p in given_points if not any(pareto.dominates(o, p) for o in given_points)}
    assert set(kept) == expected
    assert kept == sorted(kept)
    assert len(kept) == len(expected)


@given(points, many)
def test_a_point_improves_a_set_exactly_if_it_joins_its_frontier(
    point: pareto.Point, given_points: list[pareto.Point]
) -> None:
    improves = pareto.improves(point, given_points)
    assert improves == (point in pareto.frontier([*given_points, point]) and point not in given_points)
    assert improves == pareto.improves(point, pareto.frontier(given_points))
    assert improves == pareto.dominates_pareto(*point, [list(p) for p in given_points])


def test_any_point_improves_the_empty_frontier() -> None:
    assert pareto.dominates_pareto(1e9, -1.0, [])
    assert pareto.dominates_pareto(1e9, -1.0, None)


@pytest.mark.parametrize(
    ("latency", "accuracy", "frontier", "error"),
    [
        (None, 1.0, [], NullNotAllowed),
        (1.0, None, [], NullNotAllowed),
        (1.0, 1.0, [[1.0, None]], NullNotAllowed),
        (math.nan, 1.0, [], InvalidParameter),
        (1.0, 1.0, [[1.0, math.nan]], InvalidParameter),
        (1.0, 1.0, [[1.0]], InvalidParameter),
        (1.0, 1.0, [1.0, 2.0], InvalidParameter),
    ],
)
def test_bad_points_are_refused(
    latency: float | None, accuracy: float | None, frontier: list[list[float | None]], error: type[Exception]
) -> None:
    with pytest.raises(error):
        pareto.dominates_pareto(latency, accuracy, frontier)


def test_score_is_the_product_of_both_ratios() -> None:
    assert pareto.pareto_score(12.4, 0.011, 0.9, 0.8937) == pytest.approx(12.4 / 0.011 * 0.8937 / 0.9)
    assert pareto.pareto_score(None, 0.011, 0.9, 0.9) is None
    assert pareto.pareto_score(1.0, 0.011, -0.3, 0.9) is None
    assert pareto.pareto_score(1.0, 0.0, 0.9, 0.9) is None
    assert pareto.pareto_score(1.0, 0.011, 0.9, None) is None


def test_a_figure_that_is_no_number_improves_nothing() -> None:
    assert not pareto.improves((1.0, math.nan), [])
    assert not pareto.improves((math.nan, 1.0), [(2.0, 0.5)])
