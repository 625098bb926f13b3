"""How many rows a slow teacher labels, and what is said of it beforehand."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import pytest
from pg_distill.child.labelling import label_splits, label_within
from pg_distill.child.wire import Message
from pg_distill.child.workshop import Workshop
from pg_distill.errors import InvalidParameter
from pg_distill.frame import Feature, FloatArray, Frame
from pg_distill.rows.split import FIT, LEFT_OUT, SELECT, TEST, UNLABELLED

pytestmark = pytest.mark.slow  # it trains, or waits

ROWS = Frame((Feature("x", "number"),), {"x": np.arange(3000.0)})


class Teacher:
    """Gives x back, a row in ``seconds``, and remembers the size of each batch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.batches: list[int] = []

    def __call__(self, rows: Frame) -> FloatArray:
        self.batches.append(len(rows))
        time.sleep(self.seconds * len(rows))
        return rows.number("x")[:, None]


def test_a_quick_teacher_labels_everything_in_the_same_batches() -> None:
    teacher = Teacher(0)
    found = label_within(teacher, ROWS, 60, at_least=60, at_most_seconds=30)
    assert np.array_equal(found[:, 0], ROWS.number("x"))
    assert teacher.batches == [1, 4, 16, 64, 256, 1024, 1024, 611]


def test_a_slow_teacher_labels_what_there_is_time_for() -> None:
    told: list[tuple[float, int]] = []

    def tell(done: int, a_row: float, expected: int, *, estimate: bool) -> None:
        if estimate:
            told.append((a_row, expected))

    started = time.monotonic()
    found = label_within(Teacher(0.01), ROWS, 2.0, at_least=10, at_most_seconds=9, tell=tell)
    assert time.monotonic() - started < 3
    assert 50 < len(found) <= 200
    [(a_row, expected)] = told
    assert 0.01 <= a_row < 0.05
    assert 50 < expected <= 250


def test_the_fewest_rows_take_what_they_take() -> None:
    assert len(label_within(Teacher(0.01), ROWS, 0.001, at_least=20, at_most_seconds=9)) == 20
    with pytest.raises(InvalidParameter):
        label_within(Teacher(0.01), ROWS, 0.001, at_least=20, at_most_seconds=0.05)


@pytest.mark.parametrize("scale", [500.0, 0.002])
def test_weights_are_of_the_scale_of_augmented_rows(scale: float) -> None:
    """Whose weight is 1."""
    split = np.repeat(np.array([FIT, SELECT, TEST, UNLABELLED], np.uint8), 50)
    relative = np.random.default_rng(0).uniform(0.5, 1.5, 200)
    y = np.arange(200.0)
    fields: dict[str, Any] = {
        "rows/features": [["x", "number"]], "task": "regression", "classes": [], "metric": "r2", "seed": 0,
        "time_budget_s": 1.0, "threads": 1, "can_label": False,
    }  # fmt: skip
    arrays = {"rows/0": y, "split": split, "y": y, "weights": relative * scale, "outputs": y[:, None]}
    workshop, channel = Workshop(), cast(Any, None)
    workshop.load(Message("load", fields, arrays, {}), channel)
    expected = relative / relative[:50].mean()
    assert workshop.problem.fit.weights == pytest.approx(expected[:50])
    assert workshop.problem.select.weights == pytest.approx(expected[50:100])
    assert workshop.examination.rows.weights == pytest.approx(expected[100:150])


def test_every_split_keeps_its_share() -> None:
    class Channel:
        def send(self, message: Message) -> None:
            pass

    rng = np.random.default_rng(0)
    split = rng.choice(5, len(ROWS), p=[0.5, 0.1, 0.2, 0.1, 0.1]).astype(np.uint8)
    channel: Any = Channel()
    logits, kept = label_splits(Teacher(0.003), ROWS, split, 4.0, 1, channel)
    assert np.array_equal(logits[kept, 0], ROWS.number("x")[kept])
    assert not kept[split == LEFT_OUT].any()
    assert 100 < kept.sum() < 400
    shares = []
    for number in range(4):
        of_split = kept[split == number]
        assert of_split[: of_split.sum()].all()  # the first ones
        shares.append((of_split.sum() - (20 if number < 3 else 0)) / len(of_split))
    assert max(shares) - min(shares) < 0.1
