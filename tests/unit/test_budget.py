"""What the clock decides of a search: a busy or a slower machine trains the same candidates, later, while the budget allows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pg_distill.frame import Feature, Frame, Strings
from pg_distill.runs.options import Options, usual_seconds
from pg_distill.search import budget, recipes, stages, training
from pg_distill.search.budget import Budget
from pg_distill.search.problem import Candidate, Config, Problem
from student_rows import transfer, truth

SECONDS = 1.0  # of a processor that a training takes here


class Clock:
    """A wall that goes ``slower`` times as fast as the processor's time, which only trainings move."""

    def __init__(self, slower: float) -> None:
        self.slower = slower
        self.cpu = 0.0

    def work(self, seconds: float) -> None:
        self.cpu += seconds

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: self.cpu * self.slower)
        monkeypatch.setattr(time, "thread_time", lambda: self.cpu)


def searched(
    monkeypatch: pytest.MonkeyPatch, slower: float, seconds: float, most: float | None = None
) -> list[Candidate]:
    clock = Clock(slower)
    clock.patch(monkeypatch)
    real: Callable[..., Any] = training.train

    def train(task: Any, data: Any, select: Any) -> Any:
        outcome = real(task, data, select)
        clock.work(SECONDS)
        queued = SECONDS * (slower - 1)
        return replace(outcome, seconds=SECONDS + queued, cpu_seconds=SECONDS, queued_seconds=queued)

    with monkeypatch.context() as patched:
        patched.setattr(training, "train", train)
        rows = Problem("binary", ("a", "b"), "roc_auc", transfer(200, "binary"), transfer(200, "binary", 1))
        config = Config(
            5.0, families=("linear", "tree"), epochs=1, time_budget_s=seconds, most_seconds=most, threads=1
        )
        return stages.search(rows, config, lambda frame: truth(frame, "binary"))


def trained(candidates: list[Candidate]) -> list[tuple[Any, ...]]:
    return [(c.family, repr(c.configuration), c.artifact) for c in candidates if c.artifact]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "SCREEN_ROWS", 1500)
    monkeypatch.setattr(stages, "MORE_SEEDS", 1)
    monkeypatch.setattr(training, "timings", lambda artifact, frame: (len(artifact) * 1e-7, 0.0))
    monkeypatch.setattr(budget, "unit_seconds", lambda: budget.UNIT_SECONDS)


@pytest.mark.slow
def test_a_busy_machine_trains_the_same_candidates_later(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = searched(monkeypatch, 1.0, 90.0)
    assert len(trained(alone)) > 10
    assert trained(searched(monkeypatch, 2.0, 90.0)) == trained(alone)
    # By the clock alone it would train others.
    monkeypatch.setattr(Budget, "stretch", 1.0)
    assert trained(searched(monkeypatch, 2.0, 90.0)) != trained(alone)


@pytest.mark.slow
def test_a_budget_that_nobody_stated_grows_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = searched(monkeypatch, 1.0, 30.0)
    assert len(trained(alone)) > 5
    assert trained(searched(monkeypatch, 3.0, 30.0, 120.0)) == trained(alone)
    assert trained(searched(monkeypatch, 3.0, 30.0)) != trained(alone)


def test_a_longer_budget_stretches_no_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1.0)
    clock.patch(monkeypatch)
    grown = Budget(50.0, 100.0)
    assert grown.seconds == 50.0
    assert grown.deadline == pytest.approx(48.0)
    grown.note(1.0, 1.5)
    assert grown.seconds == pytest.approx(75.0)
    assert (grown.squeeze, grown.end_of("screen")) == pytest.approx((1.0, 0.25 * 72))
    assert grown.for_task("screen", 0.0, refit=False) == pytest.approx(0.08 * 75)
    grown.note(1.0, 2.5)  # twice as long in the mean
    grown.note(2.0, 8.0)
    assert grown.seconds == 100.0
    assert grown.squeeze == pytest.approx(1.5)
    assert grown.end_of("screen") == pytest.approx(1.5 * 0.25 * 96)
    assert Budget(50.0, 10.0).seconds == 50.0


def test_shares_are_stretched_by_what_is_measured_and_leave_time_for_what_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(1.0)
    clock.patch(monkeypatch)
    idle = Budget(100.0)
    assert idle.stretch == 1.0
    assert idle.end_of("screen") == pytest.approx(0.25 * 98)
    idle.note(3.0, 4.5)
    idle.note(1.0, 1.5)
    idle.note(0.0, 9.0)  # nobody knows what it worked
    assert idle.stretch == pytest.approx(1.5)
    assert idle.end_of("screen") == pytest.approx(0.375 * 98)
    assert idle.for_task("screen", 0.0, refit=False) == pytest.approx(1.5 * 8.0)
    idle.note(1.0, 1000.0)
    assert idle.stretch == budget.MOST_STRETCH
    ends = [idle.end_of(stage) for stage in budget.STAGE_END]
    assert ends == sorted(set(ends))
    assert ends[-1] < idle.deadline

    monkeypatch.setattr(budget, "unit_seconds", lambda: 2 * budget.UNIT_SECONDS)
    slower = Budget(100.0)
    assert slower.stretch == pytest.approx(2.0)
    slower.note(1.0, 1.0)
    assert slower.stretch == pytest.approx(2.0)
    # A faster one trains no less for it.
    monkeypatch.setattr(budget, "unit_seconds", lambda: budget.UNIT_SECONDS / 2)
    assert Budget(100.0).stretch == 1.0


def test_the_unit_of_work_is_measured_in_processor_time() -> None:
    assert 0.0 < budget.unit_seconds() < 10.0


def test_few_rows_get_little_time_unless_a_budget_is_given() -> None:
    def rows(n: int, columns: int) -> Frame:
        features = tuple(Feature(f"x{i}", "number") for i in range(columns))
        return Frame(features, {f.name: np.zeros(n) for f in features})

    def search_seconds(n: int, labelled_s: float, budget: float | None = None) -> tuple[float, float]:
        return Options("teacher", time_budget_s=budget).search_seconds(rows(n, 4), 2, labelled_s)

    def seconds(n: int, columns: int, labelled_s: float = 0.0) -> float:
        return Options("teacher").search_seconds(rows(n, columns), 2, labelled_s)[0]

    assert 15 < seconds(500, 4) < seconds(5000, 4) < seconds(5000, 60) < seconds(20_000, 60) < 120
    assert seconds(200_000, 20) == Options("teacher").most_seconds == 120
    assert seconds(200_000, 20, 100.0) == 20  # what a slow teacher takes is the search's loss
    assert seconds(500, 4, 119.9) == seconds(500, 4, 500.0) == 1
    assert search_seconds(500, 10.0, budget=300.0) == (290, 290)  # who names one gets it
    assert search_seconds(500, 10.0)[1] == 110  # but on a busy machine


def test_words_and_numbers_of_a_vector_take_time_as_columns_do() -> None:
    n = 1000
    text = Strings.from_values(["one two three four five six " * 40] * n)
    texts = Frame((Feature("body", "text"),), {"body": text})
    of_texts = usual_seconds(texts, 2)
    of_words = usual_seconds(Frame((Feature("body", "string"),), {"body": text}), 2)
    vector = Frame((Feature("v", "vector", 384),), {"v": np.zeros((n, 384), np.float32)})
    assert of_words < of_texts < usual_seconds(vector, 2) < 40
    assert of_texts == usual_seconds(texts, 9) < usual_seconds(texts, 20) < usual_seconds(texts, 52)
    assert usual_seconds(vector, 2) == usual_seconds(vector, 52)
