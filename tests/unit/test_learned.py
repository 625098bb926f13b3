"""What a student knows of another run's rows, and what these rows then say of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pg_distill.measure.judge import Judge
from pg_distill.rows.learned import (
    MIN_CLASS_ROWS,
    MIN_COMPARED_ROWS,
    Digest,
    Learned,
    are_enough,
    identity_of,
)
from pg_distill.runs import verdict

IDENTITY = identity_of([("b", False), ("a", True)])
NOTHING = np.empty(0, np.int64)


def hashes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, n)


def learned(rows: np.ndarray, taught: np.ndarray = NOTHING, **how: object) -> Learned:
    return Learned(IDENTITY, Digest.of(rows, NOTHING), Digest.of(taught, NOTHING), **how)  # type: ignore[arg-type]


def test_a_digest_knows_its_own_and_few_others() -> None:
    held, others = hashes(50_000, 1), hashes(50_000, 2)
    digest = Digest.of(held, NOTHING)
    assert digest.has(held).all()
    mistaken = digest.has(others)
    assert mistaken.mean() < 1e-4
    # Of those that were named none is mistaken; 32 bits are not enough to tell them apart.
    collision = held[:1] ^ 0  # the same number in another row is the same row
    assert Digest.of(held, collision).has(collision).all()
    crowded = Digest.of(held, np.concatenate([others, hashes(200_000, 3)]))
    assert not crowded.has(others).any()
    assert crowded.has(held).all()


def test_what_is_stored_comes_back_and_takes_little_room() -> None:
    held = hashes(80_000)
    known = Learned(
        IDENTITY, Digest.of(held, hashes(20_000, 5)), Digest.of(held[:10], NOTHING), "g", Digest.of(held[:99], NOTHING),
        "at", 12.5, "a run", 7,
    )  # fmt: skip
    text = json.dumps(known.to_json())
    assert len(text) < 4 * len(held)
    read = Learned.from_json(json.loads(text))
    assert read is not None
    assert (read.identity, read.group_column, read.time_column, read.until, read.seed) == (
        IDENTITY,
        "g",
        "at",
        12.5,
        7,
    )
    assert read.groups is not None
    for ours, theirs in ((read.rows, known.rows), (read.taught, known.taught), (read.groups, known.groups)):
        assert theirs is not None
        assert np.array_equal(ours.prints, theirs.prints)
        assert ours.spared == theirs.spared


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"rows": None},
        {"rows": {"hashes": "no base64", "spared": []}},
        {"rows": {"hashes": "AAAA", "spared": []}},
        {"taught": {"hashes": 3, "spared": []}},
        {"columns": 5},
        {"until": "tomorrow"},
        {"groups": []},
    ],
)
def test_what_nobody_can_read_is_not_known(change: dict[str, object]) -> None:
    stored = learned(hashes(100)).to_json() | change
    assert Learned.from_json(stored) is None
    assert Learned.from_json(None) is None


def test_by_rows_what_is_known_is_out() -> None:
    every = hashes(1000)
    known = learned(every[:600], taught=every[900:])
    outside = known.outside(every)
    assert np.array_equal(np.flatnonzero(outside), np.arange(600, 900))


def test_by_group_the_other_rows_of_a_known_one_are_out() -> None:
    every = hashes(1000)
    groups = np.repeat(np.arange(100, dtype=np.uint64), 10)
    known = learned(every[::10][:30])  # one row each of 30 groups
    outside = known.outside(every, groups=groups, group_column="g")
    assert np.array_equal(np.flatnonzero(outside), np.arange(300, 1000))
    # A student whose run split by the same groups knows groups: the same features in another one are another row.
    by_group = learned(every[:500], group_column="g", groups=Digest.of(groups[:500], NOTHING))
    again = np.tile(every[:10], 100)
    assert by_group.outside(again, groups=groups, group_column="g").sum() == 500
    assert by_group.outside(again, groups=groups, group_column="another").sum() == 0


def test_by_time_what_is_no_newer_is_out() -> None:
    every, times = hashes(1000), np.arange(1000.0)
    # A student that has seen one newer row has seen the future of all before it.
    known = learned(every[[3, 700]])
    assert np.array_equal(
        np.flatnonzero(known.outside(every, times=times, time_column="at")), np.arange(701, 1000)
    )
    by_time = learned(every[:500], time_column="at", until=499.0)
    again = np.tile(every[:10], 100)  # recurring features are no reason
    assert by_time.outside(again, times=times, time_column="at").sum() == 500
    assert by_time.outside(again, times=times, time_column="another").sum() < 10
    # Taught without a label, and newer: that row only.
    taught = learned(every[:500], taught=every[800:801], time_column="at", until=499.0)
    assert np.flatnonzero(~taught.outside(every, times=times, time_column="at"))[-1] == 800


def test_too_few_rows_compare_nobody() -> None:
    y = np.tile([0, 1], 500)
    rows = np.zeros(1000, bool)
    rows[: MIN_COMPARED_ROWS - 1] = True
    assert not are_enough(rows, y, "binary", of_classes=False)
    rows[:MIN_COMPARED_ROWS] = True
    assert are_enough(rows, y, "binary", of_classes=True)
    rare = np.zeros(1000, int)
    rare[: MIN_CLASS_ROWS - 1] = 1
    assert are_enough(rows, rare, "binary", of_classes=False)
    assert not are_enough(rows, rare, "binary", of_classes=True)
    rare[:MIN_CLASS_ROWS] = 1
    assert are_enough(rows, rare, "binary", of_classes=True)
    assert are_enough(rows, rare * 1.5, "regression", of_classes=False)


def test_a_figure_of_easy_rows_is_no_lead() -> None:
    """Two students of equal worth, one of them judged on the easy half only: their comparable figures are the same."""
    rng = np.random.default_rng(0)
    covered, rounds = 0, 200
    for _ in range(rounds):
        n = 2000
        easy = np.arange(n) < n // 2
        y = rng.integers(0, 2, n)
        right = rng.random((2, n)) < np.where(easy, 0.95, 0.65)
        p = [np.eye(2)[np.where(r, y, 1 - y)] for r in right]
        judge = Judge("accuracy", "binary", y, p[0], None, seed=0, resamples=200)
        part = Judge("accuracy", "binary", y[easy], p[0][easy], None, seed=0, resamples=200)
        found = {"score": part.value(p[1][easy])}
        beside = {
            "score": part.value(p[0][easy]),
            "difference_error": part.difference_error(p[1][easy], p[0][easy]),
        }
        everywhere = judge.value(p[0])
        assert found["score"] is not None and everywhere is not None
        assert found["score"] > everywhere + 0.05
        interval = verdict.comparable_interval(found, everywhere, beside)
        assert interval is not None
        covered += interval[0] <= everywhere <= interval[1]
    assert 0.9 <= covered / rounds <= 0.99
    assert verdict.comparable_interval(found, None, beside) is None
    assert verdict.comparable_interval(found, 0.5, None) is None
