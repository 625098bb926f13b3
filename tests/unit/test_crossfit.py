"""Cross-fitting: no row chooses, calibrates or stops a student that has learned from it."""

from __future__ import annotations

import copy
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pg_distill.frame import Frame, Task
from pg_distill.rows.split import FIT, FOLDS, SELECT, TEST, folds_by_hash, split_by_hash
from pg_distill.search import crossfit, recipes, stages, training
from pg_distill.search.problem import SELECT_FOLD, Candidate, Config, Problem, best_within
from pg_distill.search.training import Training
from pg_distill.students.augment import Augmenter
from pg_distill.students.families import Shape, load_family
from pg_distill.students.transfer_set import AUGMENTED, TransferSet, stack
from pg_distill.students.tree import Tree
from student_rows import CLASSES, make, transfer, truth

CLASS_NAMES = {"binary": ("a", "b"), "multiclass": ("a", "b", "c", "d"), "regression": ()}
METRIC = {"binary": "accuracy", "multiclass": "accuracy", "regression": "r2"}
CONFIG = Config(target_latency_ms=5.0, families=("linear", "tree"), epochs=2, time_budget_s=60.0, threads=2)
KNOWN = 40
"""Rows to fit on that the teacher was trained on."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "SCREEN_ROWS", 1500)
    monkeypatch.setattr(stages, "FINISHERS", 1)


def folded(task: Task, n: int = 400) -> Problem:
    """A problem whose first ``KNOWN`` rows only teach, and whose others are in folds 2 to 5; rows without a label copy some."""
    fit, select = transfer(n, task), transfer(100, task, 1)
    folds = np.r_[np.zeros(KNOWN), 2 + np.arange(n - KNOWN) % 4].astype(np.uint8)
    fit, select = replace(fit, folds=folds), replace(select, folds=np.full(100, SELECT_FOLD, np.uint8))
    copies = replace(fit.take(np.arange(KNOWN, KNOWN + 20)), y=None)
    return Problem(task, CLASS_NAMES[task], METRIC[task], fit, select, copies)


def label_of(task: Task) -> Any:
    return lambda frame: truth(frame, task)


def keys(frame: Frame) -> set[tuple[object, ...]]:
    """What tells rows apart: all of their cells."""
    words = [frame.strings(name).to_objects() for name in frame.string_names]
    numbers = frame.numbers()
    return {
        (numbers[i].tobytes(), *(None if w[i] is None else str(w[i]) for w in words))
        for i in range(len(frame))
    }


class Spy(ThreadPoolExecutor):
    """Keeps what each training was given."""

    def __init__(self) -> None:
        super().__init__(2)
        self.seen: list[tuple[Training, TransferSet, TransferSet]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.seen.append(args)  # type: ignore[arg-type]
        return super().submit(fn, *args, **kwargs)


def crossed(found: list[Candidate]) -> list[Candidate]:
    return [c for c in found if len(c.folds) > 1 and c.artifact]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_no_row_judges_a_student_that_has_learned_from_it(task: Task) -> None:
    given, spy = folded(task), Spy()
    found = stages.search(given, CONFIG, label_of(task), executor=spy)
    known = keys(given.fit.frame.take(np.arange(KNOWN)))
    of_folds = [(t, data, judged) for t, data, judged in spy.seen if not t.exported]
    assert of_folds
    for trained, data, judged in of_folds:
        assert trained.fitted is not None  # the fold stops nothing and calibrates nothing
        own = keys(judged.frame)
        real = data.source != AUGMENTED
        assert not own & keys(data.frame.take(np.flatnonzero(real)))
        assert not own & known
        if trained.setup.seed == CONFIG.seed:  # others are bags of the rows
            assert known <= keys(data.frame)
        assert data.folds is not None and judged.folds is not None
        assert not np.isin(data.folds, judged.folds).any()  # nor what was made out of its rows
    assert {int(judged.folds[0]) for _, _, judged in of_folds if judged.folds is not None} == {2, 3, 4, 5}
    rows = given.judging([1, 2, 3, 4, 5])
    assert len(rows) == 100 + 400 - KNOWN
    answers = crossed(found)
    assert {c.is_control for c in answers} == {False, True}
    for c in answers:
        assert c.folds == (1, 2, 3, 4, 5)
        assert c.select_logits is not None
        assert c.select_logits.shape == (len(rows), CLASSES[task])
        assert c.configuration["folds"] == 5


@pytest.mark.slow
def test_the_answer_has_learned_from_all_rows_that_are_not_test() -> None:
    given, spy = folded("multiclass"), Spy()
    found = stages.search(given, CONFIG, label_of("multiclass"), executor=spy)
    alone = [c for c in crossed(found) if c.on_frontier and c.family != "blend"]
    for c in best_within(alone, CONFIG.target_latency_ms)[:1]:
        assert c.configuration["refit"] == "with select rows"
        last = [data for t, data, _ in spy.seen if t.number == c.number and t.exported][-1]
        assert keys(stack([given.fit, given.select]).frame) <= keys(last.frame)


@pytest.mark.slow
def test_what_was_not_cross_fitted_is_no_answer_where_others_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "MORE_SEEDS_CROSSED", 4)
    monkeypatch.setattr(crossfit, "CLEARLY", 1e9)  # which none of them is
    monkeypatch.setattr(crossfit, "LESS_LOSS", 1e9)
    # By its size, and not by the clock: which is the fastest is the same at all times.
    monkeypatch.setattr(training, "timings", lambda artifact, frame: (len(artifact) * 1e-6, 0.0))
    found = stages.search(folded("binary"), CONFIG, label_of("binary"))
    for kinds in ({False, True}, {True}):
        fastest = min(c.latency_ms for c in crossed(found) if c.is_control in kinds)
        for c in found:
            if c.artifact and len(c.folds) == 1 and c.is_control in kinds:
                assert c.latency_ms < fastest or (c.is_control and len(kinds) == 2)
    fastest = min(c.latency_ms for c in crossed(found))
    assert all(
        len(c.folds) == 5 for c in found if c.on_frontier and not c.is_control and c.latency_ms >= fastest
    )


@pytest.mark.slow
def test_what_is_clearly_better_on_select_stays_although_it_cannot_be_trained_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A network whose training was cut short has no recipe to repeat; a poor tree must not win by default."""
    boosted: Any = load_family("boosted")
    boost = boosted._boost

    def cut_short(self: Any, *args: Any, **kwargs: Any) -> Any:
        boost(self, *args, **kwargs)
        self.complete_ = False
        return self

    monkeypatch.setattr(boosted, "_boost", cut_short)
    monkeypatch.setattr(boosted, "sizes", lambda shape: [{"rounds": 40, "leaves": 16}])
    config = replace(CONFIG, families=("tree", "boosted"))
    monkeypatch.setattr(load_family("tree"), "sizes", lambda shape: [{"leaves": 2}])
    found = stages.search(folded("multiclass"), config, label_of("multiclass"))
    assert {c.family for c in crossed(found)} <= {"tree", "blend"}
    best = best_within(found, config.target_latency_ms)[0]
    assert (best.family, best.folds) == ("boosted", (1,))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 60.0])
def test_without_time_or_folds_the_select_rows_choose(seconds: float) -> None:
    given = folded("binary")
    if seconds > 1:
        given = replace(given, fit=replace(given.fit, folds=np.zeros(len(given.fit), np.uint8)))
    found = stages.search(given, replace(CONFIG, time_budget_s=seconds), label_of("binary"))
    assert any(c.on_frontier for c in found)
    if seconds > 1:
        assert all(c.folds == (1,) for c in found)
    for c in found:
        if c.select_logits is not None:
            assert len(c.select_logits) == len(given.judging(c.folds))


@pytest.mark.slow
def test_a_budget_that_ends_among_the_folds_leaves_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students are judged by the same rows, whatever the clock has cut off."""
    whole = training.train

    def slow(task: Training, data: TransferSet, select: TransferSet) -> training.Outcome:
        if not task.exported:
            time.sleep(0.4)
        return whole(task, data, select)

    monkeypatch.setattr(training, "train", slow)
    found = stages.search(folded("binary"), replace(CONFIG, time_budget_s=6.0), label_of("binary"))
    judged = {c.folds for c in crossed(found)}
    assert len(judged) <= 1
    assert any(c.on_frontier and not c.is_control for c in found)


def test_folds_are_parts_of_what_is_not_test_and_equal_hashes_share_one() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, 20_000)
    folds, split = folds_by_hash(hashes), split_by_hash(hashes)
    assert (folds[split == SELECT] == SELECT_FOLD).all()
    assert (folds[split == TEST] == 0).all()
    assert set(folds[split == FIT].tolist()) == set(range(2, FOLDS + 1))
    shares = np.bincount(folds)[1:] / len(folds)
    np.testing.assert_allclose(shares, 0.16, atol=0.01)
    again = np.random.default_rng(1).permutation(len(hashes))
    np.testing.assert_array_equal(folds_by_hash(hashes[again]), folds[again])


@pytest.mark.parametrize("kind", ["munge", "spunge", "hot_deck"])
def test_an_augmented_row_is_of_the_fold_of_the_row_that_it_was_made_from(kind: str) -> None:
    frame = transfer(300, "binary").frame
    rng = np.random.default_rng
    made, origin = Augmenter(frame).make_from(kind, 900, rng(0))
    assert len(made) == len(origin) > 300
    for name in frame.number_names:  # the pattern of NULLs is the row's own
        own = frame.numbers()[origin, frame.number_names.index(name)]
        np.testing.assert_array_equal(
            np.isnan(made.numbers()[:, frame.number_names.index(name)]), np.isnan(own)
        )


@pytest.mark.parametrize("family", ["linear", "tree", "boosted", "mlp"])
def test_a_refit_learns_new_rows_at_the_same_size_and_keeps_its_sharpness(family: str) -> None:
    data, more, select = transfer(400, "binary"), transfer(1200, "binary", 5), transfer(300, "binary", 1)
    size = {"tree": {"leaves": 16}, "boosted": {"rounds": 10, "leaves": 8}, "mlp": {"hidden": (8,)}}
    student = make(family, "binary", epochs=3, seed=0, **size.get(family, {}))
    student.fit(data, select, deadline=None)
    before, softer = student.predict_logits(select.frame), copy.deepcopy(student)
    softer.sharpen(0.5)
    for one in (student, softer):
        one.refit(stack([data, more]), deadline=None)
    after = student.predict_logits(select.frame)
    assert not np.allclose(before, after)
    np.testing.assert_allclose(softer.predict_logits(select.frame), 0.5 * after, atol=1e-4)
    if family == "tree":
        assert student.ensemble_.n_leaves <= 16


@pytest.mark.slow
def test_where_sql_is_asked_for_small_networks_without_bins_are_trained_and_cross_fitted() -> None:
    """Bins cost a query more than they cost a session, and a short expression is what is fast there."""
    config = replace(CONFIG, families=("mlp",), sql=True)
    found = stages.search(folded("binary"), config, label_of("binary"))
    with_file = [c for c in found if c.artifact and c.expression]
    assert any(c.configuration.get("bins") == 0 and c.configuration["hidden"] == [32] for c in with_file)
    shortest = min(with_file, key=lambda c: len(c.expression or ""))
    assert shortest in crossed(found)
    assert shortest.configuration["hidden"] == [32]


@pytest.mark.slow
def test_where_sql_is_asked_for_a_large_tree_is_taught_by_many_made_up_rows() -> None:
    def largest(problem: Problem, label: Any) -> Candidate:
        config = replace(CONFIG, families=("tree",), sql=True)
        found = [c for c in stages.search(problem, config, label) if c.configuration.get("rows")]
        return max(found, key=lambda c: (c.configuration["leaves"], c.configuration["rows"]))

    problem = folded("binary")
    tree = largest(problem, label_of("binary"))
    assert tree.configuration["leaves"] > max(
        s["leaves"] for s in Tree.sizes(Shape("binary", 2, problem.fit.frame.features, 400))
    )
    assert tree.configuration["transfer_set"]["hot_deck"] > recipes.SMALL_TREE_REPEAT / 2
    # A log has no answers to rows that it has not seen.
    assert "hot_deck" not in largest(problem, None).configuration["transfer_set"]
