from __future__ import annotations

import resource
import time

import numpy as np
import pytest
from pg_distill.errors import InvalidParameter
from pg_distill.frame import Feature, FloatArray, Frame, Strings
from pg_distill.students.augment import TABLE_KINDS, Augmenter
from pg_distill.students.transfer_set import TransferSet, labelling_seconds, stack
from student_rows import rows, transfer

THRESHOLDS = {"x": np.array([-1.0, 0.0, 1.0]), "k": np.array([0.5])}


def made(kind: str, n: int = 3000, seed: int = 0) -> tuple[Frame, Frame]:
    frame = rows(1000)
    return frame, Augmenter(frame, thresholds=THRESHOLDS).make(kind, n, np.random.default_rng(seed))


def nulls(frame: Frame) -> set[tuple[bool, ...]]:
    flags = [np.isnan(frame.number(name)) for name in frame.number_names]
    flags += [frame.strings(name).codes < 0 for name in frame.string_names]
    return {tuple(row) for row in np.column_stack(flags).tolist()}


@pytest.mark.parametrize("kind", TABLE_KINDS)
def test_rows_are_valid(kind: str) -> None:
    frame, new = made(kind)
    assert 2000 < len(new) <= 3000
    for name in ("k", "flag", "when"):
        values = new.number(name)
        assert (values == np.round(values)).all()
    for name in frame.number_names:
        known = frame.number(name)[~np.isnan(frame.number(name))]
        values = new.number(name)[~np.isnan(new.number(name))]
        assert known.min() <= values.min()
        assert values.max() <= known.max()
    for name in frame.string_names:
        old = {c for c in frame.strings(name).to_objects() if c is not None}
        assert {c for c in new.strings(name).to_objects() if c is not None} <= old
    assert nulls(new) <= nulls(frame)


@pytest.mark.parametrize("kind", TABLE_KINDS)
def test_rows_are_new_and_the_same_for_the_same_seed(kind: str) -> None:
    frame, new = made(kind)
    _, again = made(kind)
    _, other = made(kind, seed=1)
    np.testing.assert_array_equal(new.numbers(), again.numbers())
    assert len(other) != len(new) or not np.array_equal(other.numbers(), new.numbers(), equal_nan=True)
    old = {tuple(row) for row in np.nan_to_num(frame.numbers()).tolist()}
    fresh = [tuple(row) not in old for row in np.nan_to_num(new.numbers()).tolist()]
    assert np.mean(fresh) > 0.2


def test_spunge_resamples_a_column_of_few() -> None:
    frame = rows(1000, nulls=False)
    new = Augmenter(frame).make("spunge", 1000, np.random.default_rng(0))
    old = {tuple(row) for row in frame.numbers()[:, 1:3].tolist()}
    assert len(frame.features) < 10
    changed = [tuple(row) not in old for row in new.numbers()[:, 1:3].tolist()]
    assert any(changed) or len(old) == 22  # every pair of the two columns is real
    assert not np.array_equal(np.sort(new.number("when")), np.sort(frame.number("when")))


def test_midpoints_lie_between_thresholds() -> None:
    _, new = made("thresholds")
    frame = rows(1000)
    known = frame.number("x")[~np.isnan(frame.number("x"))]
    low, high = known.min(), known.max()
    middle = {(low - 1.0) / 2, -0.5, 0.5, (1.0 + high) / 2}
    moved = set(new.number("x")[~np.isnan(new.number("x"))]) - set(known)
    assert moved
    assert all(min(abs(v - m) for m in middle) < 1e-12 for v in moved)


def test_far_rows_are_dropped() -> None:
    rng = np.random.default_rng(0)
    frame = rows(2000, nulls=False, numbers_only=True)
    # Two clusters far apart: what SPUNGE mixes of both lies in neither.
    side = np.where(rng.random(2000) < 0.5, -50.0, 50.0)
    frame = Frame(frame.features, {"x": frame.number("x") + side, "k": frame.number("k") + side})
    new = Augmenter(frame).make("spunge", 2000, np.random.default_rng(1))
    assert (np.sign(new.number("x")) == np.sign(new.number("k"))).all()
    assert 500 < len(new) < 2000


@pytest.mark.parametrize("kind", TABLE_KINDS)
@pytest.mark.parametrize("n", [1, 2, 10])
def test_few_rows_are_no_error(kind: str, n: int) -> None:
    new = Augmenter(rows(n), thresholds=THRESHOLDS).make(kind, 20, np.random.default_rng(0))
    assert len(new) <= 20


@pytest.mark.parametrize("kind", TABLE_KINDS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_rows_may_be_asked_for_of_many(kind: str, n: int) -> None:
    # A slow teacher leaves time for a row or two: then a column may be redrawn in none of them.
    augmenter = Augmenter(rows(300), thresholds=THRESHOLDS)
    assert all(len(augmenter.make(kind, n, np.random.default_rng(seed))) <= n for seed in range(5))


def test_a_kind_that_is_not_there() -> None:
    with pytest.raises(InvalidParameter):
        Augmenter(rows(10)).make("magic", 10, np.random.default_rng(0))


def test_stack_keeps_what_is_unknown_unknown() -> None:
    known = transfer(5, "binary")
    bare = TransferSet(rows(3), None, None, None, np.full(3, 2, np.uint8))
    both = stack([known, bare])
    assert both.y is not None
    assert both.teacher_logits is not None
    assert (both.y[5:] == -1).all()
    assert np.isnan(both.teacher_logits[5:]).all()
    assert len(both) == 8


def test_labelling_time_grows_with_the_rows() -> None:
    def label(frame: Frame) -> FloatArray:
        total = 0.0
        for i in range(2000 * len(frame)):
            total += i
        return np.full((len(frame), 1), total)

    a_row = labelling_seconds(label, rows(100))
    assert 1e-6 < a_row < 1e-2


@pytest.mark.parametrize("kind", TABLE_KINDS)
def test_an_outlier_does_not_set_the_scale(kind: str) -> None:
    frame = rows(2000, nulls=False, numbers_only=True)
    columns = {name: frame.number(name).copy() for name in frame.number_names}
    for column in columns.values():
        column[7] = 1e6
    new = Augmenter(Frame(frame.features, columns)).make(kind, 2000, np.random.default_rng(1))
    usual = np.abs(new.numbers()).max(axis=1) < 20
    assert usual.sum() > 1500
    # No noise of the outlier's size has been dropped as far off, or pressed a column against its end.
    assert usual.mean() > 0.99


def test_thirty_thousand_categories() -> None:
    rng = np.random.default_rng(0)
    words = tuple(f"w{i:05d}" for i in range(30_000))
    features = (Feature("x", "number"), Feature("id", "string"), Feature("few", "string"))
    codes = rng.integers(0, 30_000, 3000).astype(np.int32)
    columns = {
        "x": rng.normal(size=3000),
        "id": Strings(codes, words),
        "few": Strings(codes % 3, ("a", "b", "c")),
    }
    augmenter = Augmenter(Frame(features, columns))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in TABLE_KINDS:
        new = augmenter.make(kind, 2000, rng)
        assert len(new) > 1000
        assert new.strings("id").codes.max() < 30_000
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000
    )  # KB; one-hot would be 2 GB


def test_distances_count_categories_that_differ() -> None:
    frame = rows(300)
    augmenter = Augmenter(frame)
    pool = np.arange(200)
    near = augmenter._nearest(augmenter._numbers, augmenter._codes, pool)
    augmenter._few, augmenter._many = augmenter._few[:0], np.arange(2)
    augmenter._places = augmenter._places[:0]
    again = augmenter._nearest(augmenter._numbers, augmenter._codes, pool)
    np.testing.assert_allclose(near[0], again[0], atol=1e-3)


@pytest.mark.parametrize("kind", TABLE_KINDS)
def test_a_deadline_leaves_the_rows_that_there_are(kind: str) -> None:
    augmenter = Augmenter(rows(1000), thresholds=THRESHOLDS)
    start, before = time.monotonic(), time.process_time()
    new = augmenter.make(kind, 10_000_000, np.random.default_rng(0), deadline=start + 0.05)
    assert time.process_time() - before < 5.0
    assert len(new) < 10_000_000
    assert len(augmenter.make(kind, 100, np.random.default_rng(0), deadline=start)) == 0
