"""A search ends where nothing has improved for a while: what counts as that, and what is trained all the same."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from pg_distill.search import patience, recipes, stages, training
from pg_distill.search.entries import Entry
from pg_distill.search.patience import Patience
from pg_distill.search.problem import Config, Problem
from pg_distill.search.training import Recipe
from pg_distill.students.families import load_family
from student_rows import transfer, truth

NOISE = 0.01  # a metric's own standard error; half of it is shared by all students of the same rows


def entry(number: int, latency_ms: float, metric: float, loss: float) -> Entry:
    made = Entry(number, "linear", {}, Recipe(1.0, 1.0), {}, artifact=b"file")
    made.latency_ms, made.metric, made.tie_break = latency_ms, metric, -loss
    draws = np.random.default_rng(number).normal(size=20)
    made.jackknife = tuple(metric + NOISE / np.sqrt(2 * 19) * (draws - draws.mean()) / draws.std())
    return made


def counted(entries: Sequence[Entry], most: int = 3) -> Patience:
    made = Patience(most, allowed_ms=0.04, constant_loss=-0.7, blend_loss=lambda: -0.2)
    made.count(entries)
    return made


FIRST = entry(0, 0.02, 0.90, 0.30)


@pytest.mark.parametrize(
    ("later", "gains"),
    [
        (entry(1, 0.02, 0.95, 0.30), True),  # beyond the noise
        (entry(1, 0.02, 0.905, 0.30), False),
        (entry(1, 0.02, 0.898, 0.28), True),  # within it, and 7 % less loss
        (entry(1, 0.02, 0.905, 0.299), False),
        (entry(1, 0.02, 0.85, 0.20), False),  # less loss does not make up for errors beyond the noise
        (entry(1, 0.01, 0.60, 0.60), True),  # the first within a quarter of the latency allowed
        (entry(1, 0.011, 0.60, 0.60), False),  # faster, but on no rung of its own
        (entry(1, 0.03, 0.905, 0.31), False),  # slower and no better
        (entry(1, 0.05, 0.99, 0.01), False),  # too slow
        (entry(1, 0.02, float("nan"), 0.1), False),
    ],
)
def test_a_gain_is_beyond_noise_or_at_a_rung_of_its_own(later: Entry, *, gains: bool) -> None:
    assert counted([FIRST, later]).since_gain == (0 if gains else 1)


def test_patience_ends_after_so_many_trainings_in_a_row() -> None:
    same = [entry(n, 0.02, 0.90, 0.30) for n in range(1, 4)]
    failed = replace(entry(9, 0.02, 0.99, 0.01), artifact=b"")
    found = counted([FIRST, *same[:2], failed])
    assert (found.trained, found.since_gain, found.is_over()) == (3, 2, False)
    found.count(same[2:])
    assert found.is_over()
    assert found.has_ended_a_stage
    found.count([entry(5, 0.02, 0.97, 0.1)])
    assert not found.is_over()


def test_a_better_blend_is_a_gain_although_no_student_is() -> None:
    losses = iter([-0.20, -0.199, -0.19, -0.19])
    found = Patience(3, allowed_ms=0.04, constant_loss=-0.7, blend_loss=lambda: next(losses))
    found.count_blends()  # where the last trainings begin
    since = []
    for number in range(3):
        found.count([FIRST if not number else entry(number, 0.02, 0.9, 0.3)])
        found.count_blends()
        since.append(found.since_gain)
    assert since == [0, 0, 1]


def test_a_quarter_of_the_patience_is_kept_for_the_last_trainings() -> None:
    found = counted([FIRST, *(entry(n, 0.02, 0.90, 0.30) for n in range(1, 10))], most=8)
    assert found.is_over()
    found.begin_finish()
    assert (found.since_gain, found.is_over()) == (6, False)


@pytest.mark.parametrize(
    ("losses", "grown"),
    [((0.30, 0.29), False), ((0.30, 0.31), True), ((0.30, 0.3005), False), ((0.30,), False)],
)
def test_a_network_that_gets_worse_as_it_gets_wider_gets_no_wider(
    losses: tuple[float, ...], *, grown: bool
) -> None:
    rows = Problem("binary", ("a", "b"), "roc_auc", transfer(50, "binary"), transfer(50, "binary", 1))
    with ThreadPoolExecutor(1) as executor:
        found = stages.Search(rows, CONFIG, None, executor, lambda said: None, is_local=True)
    sizes = [{"hidden": [width], "bins": bins} for width in (32, 64, 128) for bins in (0, 16)]
    found.gate.sizes["mlp"] = list(sizes)
    recipe = Recipe(1.0, 1.0)
    for number, (size, loss) in enumerate(zip(sizes[::2], losses, strict=False)):
        made = replace(entry(number, 0.02, 0.9, loss), family="mlp", size=size, recipe=recipe)
        found.entries.append(made)
    # Of the other kind of inputs, and by another recipe: they say nothing of this one.
    found.entries.append(replace(entry(8, 0.02, 0.9, 0.1), family="mlp", size=sizes[1], recipe=recipe))
    found.entries.append(
        replace(entry(9, 0.02, 0.9, 0.1), family="mlp", size=sizes[0], recipe=Recipe(2.0, 1.0))
    )
    assert found.is_grown("mlp", sizes[4], recipe) is grown
    assert not found.is_grown("boosted", {"rounds": 10}, recipe)


def test_where_all_rows_are_answered_right_the_loss_may_fall_on() -> None:
    found = counted([entry(n, 0.02, 1.0, 1e-4 / 2**n) for n in range(4)])
    assert found.since_gain == 3


CONFIG = Config(
    target_latency_ms=5.0, families=("linear", "boosted"), epochs=1, time_budget_s=1000.0, threads=2
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Problem:
    monkeypatch.setattr(recipes, "SCREEN_ROWS", 1500)
    monkeypatch.setattr(stages, "MORE_SEEDS", 1)
    # Latencies decide too.
    monkeypatch.setattr(training, "timings", lambda artifact, frame: (len(artifact) * 1e-7, 0.0))
    for name in CONFIG.families:
        family = load_family(name)
        monkeypatch.setattr(family, "sizes", lambda shape, sizes=family.sizes: sizes(shape)[:2])
    return Problem("binary", ("a", "b"), "roc_auc", transfer(400, "binary"), transfer(300, "binary", 1))


@pytest.mark.slow
def test_every_stage_takes_place_and_nothing_is_half_trained(small: Problem) -> None:
    ends = {}
    for most, threads in ((1, 1), (1, 2), (10_000, 2)):
        said: list[dict[str, object]] = []
        config = replace(CONFIG, patience=most, threads=threads)
        found = stages.search(small, config, lambda frame: truth(frame, "binary"), report=said.append)
        ends[most, threads] = found, said[-1]["ended"]
        trained = [c for c in found if c.artifact]
        assert {c.configuration["stage"] for c in trained} >= {"screen", "sizes"}
        assert any(c.configuration.get("refit") == "with select rows" for c in trained)
        assert any(c.is_control for c in trained)
        assert any(not c.is_control for c in trained)
        assert not any(c.configuration.get("cut_short") for c in trained)
        assert all(c.reason for c in found)

    (few, why), (again, _), (all_, whole) = ends.values()
    assert why["by"] == "patience"
    assert whole["by"] == "all done"
    assert 2 * why["trained"] < whole["trained"]
    assert why["since_gain"] >= 1
    # However many train at once, the same candidates: it is counted in their order, not by the clock.
    assert [(c.reason, c.artifact) for c in few] == [(c.reason, c.artifact) for c in again]
    best = max(c.metric_select for c in all_ if c.artifact)
    assert max(c.metric_select for c in few if c.artifact) > best - 0.02


@pytest.mark.slow
def test_a_budget_that_ends_before_is_the_reason(small: Problem) -> None:
    said: list[dict[str, object]] = []
    config = replace(CONFIG, patience=10_000, time_budget_s=0.3)
    stages.search(small, config, lambda frame: truth(frame, "binary"), report=said.append)
    assert said[-1]["ended"]["by"] == "budget"  # type: ignore[index]


def test_gains_are_small() -> None:
    assert 0 < patience.NOTHING < patience.LEAST_GAIN < 0.05
