from __future__ import annotations

import pickle
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pg_distill.errors import InvalidData
from pg_distill.frame import FloatArray, Frame, Task
from pg_distill.measure import pareto
from pg_distill.search import budget, gate, recipes, rows, stages, training
from pg_distill.search.entries import Entry
from pg_distill.search.problem import Candidate, Config, Problem, best_within
from pg_distill.search.training import Recipe
from pg_distill.students.families import FAMILIES, load_family
from pg_distill.students.soft_labels import softmax
from pg_distill.students.transfer_set import TransferSet
from student_rows import CLASSES, TASKS, run, transfer, truth

pytestmark = pytest.mark.slow  # it trains, or waits

CLASS_NAMES = {"binary": ("a", "b"), "multiclass": ("a", "b", "c", "d"), "regression": ()}
METRIC = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "r2"}
FAST = Config(
    target_latency_ms=5.0, families=("linear", "mlp"), epochs=1, time_budget_s=60.0, threads=2, patience=12
)


def problem(task: Task, n: int = 400, *, labels: bool = True) -> Problem:
    metric = METRIC[task] if labels else "agreement"
    fit, select = transfer(n, task, labels=labels), transfer(300, task, 1, labels=labels)
    return Problem(task, CLASS_NAMES[task], metric, fit, select)


def teacher(task: Task) -> Any:
    def label(frame: Frame) -> FloatArray:
        return truth(frame, task)

    return label


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is trained small; the stages stay as they are."""
    monkeypatch.setattr(recipes, "SCREEN_ROWS", 1500)
    monkeypatch.setattr(recipes, "LEAST_STEPS", 100)
    monkeypatch.setattr(stages, "FINISHERS", 1)
    monkeypatch.setattr(stages, "MORE_SEEDS", 1)


@pytest.mark.parametrize("task", TASKS)
def test_every_candidate_has_a_reason_and_the_frontier_is_one(task: Task) -> None:
    found = stages.search(problem(task), FAST, teacher(task))
    assert all(c.reason for c in found)
    assert [c.number for c in found] == list(range(len(found)))
    trained = [c for c in found if c.artifact]
    assert any(c.is_control for c in trained)
    assert any(not c.is_control for c in trained)
    assert {c.family for c in trained} >= {"linear", "mlp"}
    frontier = {(c.latency_ms, c.metric_select) for c in trained if c.on_frontier}
    undominated = set(pareto.frontier([(c.latency_ms, c.metric_select) for c in trained]))
    assert frontier >= undominated
    for c in trained:
        first = best_within(found, c.latency_ms)[0]
        assert first.on_frontier
        assert not c.on_frontier or c == first or (c.latency_ms, c.metric_select) in undominated
    test = transfer(200, task, 7)
    assert test.teacher_logits is not None
    for c in trained:
        outputs = run(c.artifact, test.frame)
        assert outputs.shape == (200, CLASSES[task])
        assert c.size_bytes == len(c.artifact)
        if c.on_frontier and task != "regression":
            wanted = softmax(test.teacher_logits)
            assert (outputs.argmax(1) == wanted.argmax(1)).mean() > 1 / CLASSES[task]


def identity(c: Candidate) -> tuple[object, ...]:
    return c.family, repr(c.configuration), c.artifact, c.metric_select


class Backwards(Executor):
    """Runs nothing until asked for a result, and then the last task first."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.held: list[tuple[Future[Any], Any, Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        # What any remote executor does with a task.
        self.held.append((future, fn, pickle.loads(pickle.dumps(args))))
        if len(self.held) == 2 or "rest" in kwargs:
            self.flush()
        else:
            self.pool.submit(lambda: (time.sleep(0.2), self.flush()))
        return future

    def flush(self) -> None:
        while self.held:
            future, fn, args = self.held.pop()
            future.set_result(pickle.loads(pickle.dumps(fn(*args))))


@pytest.mark.parametrize("families", [("linear",), ("boosted", "mlp")])
def test_candidates_do_not_depend_on_the_executor(
    families: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Latencies decide which students are trained again, and which fit together.
    monkeypatch.setattr(training, "timings", lambda artifact, frame: (len(artifact) * 1e-7, 0.0))
    for family in families:
        sizes = load_family(family).sizes
        monkeypatch.setattr(load_family(family), "sizes", lambda shape, sizes=sizes: sizes(shape)[:2])
    config = replace(FAST, families=families, time_budget_s=1000.0)
    one = stages.search(problem("binary"), replace(config, threads=1), teacher("binary"))
    two = stages.search(problem("binary"), config, teacher("binary"))
    other = stages.search(problem("binary"), config, teacher("binary"), executor=Backwards())

    assert {c.family for c in one if c.artifact} >= set(families)
    assert [identity(c) for c in one] == [identity(c) for c in two] == [identity(c) for c in other]


def test_nothing_is_trained_that_cannot_meet_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(training, "train", lambda task, data, select: trained.append(task))
    config = replace(FAST, target_latency_ms=0.0001, families=tuple(FAMILIES))
    found = stages.search(problem("binary"), config, teacher("binary"))
    assert not trained
    assert {c.family for c in found} == set(FAMILIES) - {"first_trees"}  # the teacher has no trees
    assert all("not trained" in c.reason and not c.artifact for c in found)
    assert all(c.latency_ms > 0.0001 for c in found if "a smaller one" not in c.reason)


def test_one_long_moment_rules_out_no_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far above what is allowed, where no slow machine is the cause, a file is measured a second time."""
    allowed = FAST.target_latency_ms
    found = iter([25 * allowed, 0.5 * allowed, 25 * allowed, 26 * allowed])
    monkeypatch.setattr(training, "latency_ms", lambda artifact, frame: next(found))
    gate = searching(problem("binary"), FAST, ThreadPoolExecutor(1)).gate
    assert gate.least_latency_ms(b"") == 0.5 * allowed
    assert gate.least_latency_ms(b"") == 25 * allowed


def test_what_was_too_slow_in_a_slow_moment_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = FAST.target_latency_ms
    refused: list[Any] = []
    is_slow = True

    def timings(artifact: bytes, frame: Frame) -> tuple[float, float]:
        return allowed * (1.4 if is_slow and b"TreeEnsemble" in artifact else 0.5), 0.0

    def report(progress: dict[str, Any]) -> None:
        nonlocal is_slow
        if progress["stage"] == "screen":  # shapes were measured in a slow moment
            is_slow = False
        if progress["stage"] == "sizes" and progress["candidate"].startswith("tree"):  # so are these students
            refused.append(progress["candidate"])
            is_slow = True
        if progress["stage"] == "finish":
            is_slow = False

    monkeypatch.setattr(training, "timings", timings)
    config = replace(FAST, families=("mlp", "tree"))
    found = stages.search(problem("binary"), config, teacher("binary"), report=report)
    trees = [c for c in found if c.family == "tree"]
    assert refused  # in the gate, and trained all the same
    assert any(c.artifact for c in trees) and not any("not trained" in c.reason for c in trees)
    assert all(c.latency_ms < allowed for c in trees if c.artifact)
    is_slow = True
    found = stages.search(problem("binary"), config, teacher("binary"))
    trees = [c for c in found if c.family == "tree"]
    assert trees and not any(c.artifact for c in trees)
    assert all("not trained" in c.reason and c.latency_ms > allowed for c in trees)


@pytest.mark.parametrize(
    ("times", "stalled", "is_found"), [(5.0, 1.0, True), (5.0, 60.0, False), (50.0, 1.0, False)]
)
def test_a_machine_that_stalls_at_first_does_not_end_the_search(
    monkeypatch: pytest.MonkeyPatch, times: float, stalled: float, is_found: bool
) -> None:
    """Where it stalls for longer, or nothing is within reach, the search ends soon, and says what the shapes took."""
    allowed, begun = FAST.target_latency_ms, time.monotonic()

    def timings(artifact: bytes, frame: Frame) -> tuple[float, float]:
        return allowed * (times if time.monotonic() < begun + stalled else 0.5), 0.0

    monkeypatch.setattr(training, "timings", timings)
    monkeypatch.setattr(gate, "PAUSES", (0.6, 0.6, 0.6))
    found = stages.search(problem("binary"), replace(FAST, families=("linear",)), teacher("binary"))
    assert any(c.artifact for c in found) == is_found
    if not is_found:
        assert time.monotonic() - begun < 10.0
        assert all(
            "not trained" in c.reason and c.latency_ms > allowed for c in found if np.isfinite(c.latency_ms)
        )
        assert any(np.isfinite(c.latency_ms) for c in found)


def test_call_overhead_counts_against_the_target() -> None:
    config = replace(FAST, target_latency_ms=1.0, call_overhead_ms=0.9999)
    found = stages.search(problem("binary"), config, teacher("binary"))
    assert not any(c.artifact for c in found)


def test_the_budget_is_kept_and_what_was_found_is_returned() -> None:
    def slow(frame: Frame) -> FloatArray:
        time.sleep(0.001 * len(frame))
        return truth(frame, "binary")

    start = time.monotonic()
    config = replace(FAST, time_budget_s=5.0, epochs=1000, patience=1000)
    found = stages.search(problem("binary", 3000), config, slow)
    assert time.monotonic() - start < 9.0
    assert any(c.on_frontier for c in found)


@pytest.mark.parametrize("task", TASKS)
def test_real_rows_are_learned_from_however_little_time_a_teacher_leaves(task: Task) -> None:
    """Smallest first: the control and a student of the real rows are had after the budget has ended."""
    asked: list[int] = []

    def slow(frame: Frame) -> FloatArray:
        asked.append(len(frame))
        time.sleep(0.01 * len(frame))
        return truth(frame, task)

    start = time.monotonic()
    found = stages.search(problem(task), replace(FAST, time_budget_s=0.05), slow)
    assert time.monotonic() - start < 20.0
    usable = [c for c in found if c.artifact]
    assert {c.is_control for c in usable} == {True, False}
    assert any(c.on_frontier for c in found)
    assert all(
        dict(c.configuration["transfer_set"]).keys() == {"real"} for c in usable if c.family != "blend"
    )
    assert all(c.reason for c in found)
    assert sum(asked) < 200


def test_a_teacher_that_cannot_label_gets_no_augmented_rows() -> None:
    found = stages.search(problem("binary"), FAST, None)
    assert any(c.artifact and not c.is_control for c in found)
    kinds = {kind for c in found for kind in dict(c.configuration.get("transfer_set", {}))}
    assert kinds == {"real"}


def test_without_labels_agreement_chooses_and_there_is_no_control() -> None:
    found = stages.search(problem("multiclass", labels=False), FAST, teacher("multiclass"))
    trained = [c for c in found if c.artifact]
    assert trained
    assert not any(c.is_control for c in found)
    assert all(c.metric_select == c.fidelity_select for c in trained)


def test_where_labels_alone_are_best_the_teacher_gets_a_little_say() -> None:
    """A teacher that is always wrong: what follows it is poor, and labels that it smooths are not."""

    def wrong(rows: TransferSet) -> TransferSet:
        assert rows.teacher_logits is not None
        return rows.with_logits(-rows.teacher_logits)

    given = problem("binary")
    given = replace(given, fit=wrong(given.fit), select=wrong(given.select))
    found = stages.search(given, FAST, lambda frame: -truth(frame, "binary"))
    by_alpha: dict[float, list[float]] = {}
    for c in found:
        if c.artifact and c.family != "blend":
            by_alpha.setdefault(float(str(c.configuration["alpha"])), []).append(c.metric_select)
            assert c.is_control == (c.configuration["alpha"] == 0)
    assert 0 < len(by_alpha[recipes.LITTLE]) <= 2 * stages.LABELS_AHEAD
    assert max(by_alpha[recipes.LITTLE]) > max(by_alpha[0.5] + by_alpha[1.0])


def test_a_candidate_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from pg_distill.students.mlp import Mlp

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("no luck")

    monkeypatch.setattr(Mlp, "fit", broken)
    found = stages.search(problem("binary"), FAST, teacher("binary"))
    assert any(c.reason == "ValueError: no luck" for c in found if c.family == "mlp")
    assert any(c.artifact for c in found if c.family == "linear")


def test_a_teacher_that_fails_on_augmented_rows_is_a_reason() -> None:
    whole = problem("binary")
    real = {tuple(row) for row in np.nan_to_num(whole.fit.frame.numbers()).tolist()}

    def label(frame: Frame) -> FloatArray:
        if any(tuple(row) not in real for row in np.nan_to_num(frame.numbers()).tolist()):
            raise RuntimeError("teacher fell over")
        return truth(frame, "binary")

    found = stages.search(whole, replace(FAST, families=("linear",)), label)
    assert any(c.reason == "no transfer set: RuntimeError: teacher fell over" for c in found)
    assert any(c.on_frontier and not c.is_control for c in found)


def test_a_graph_that_disagrees_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from pg_distill.students.linear import Linear

    honest = Linear.predict_logits
    monkeypatch.setattr(Linear, "predict_logits", lambda self, frame: honest(self, frame) * 1.5)
    found = stages.search(problem("binary"), replace(FAST, families=("linear",)), teacher("binary"))
    tried = [c for c in found if c.seconds > 0]
    assert tried
    assert all("differ" in c.reason and not c.artifact for c in tried)


def test_blends_are_candidates_and_average_their_parts() -> None:
    config = replace(FAST, families=("boosted", "mlp"), time_budget_s=60.0)
    found = stages.search(problem("regression", 1500), config, teacher("regression"))
    blends = [c for c in found if c.family == "blend" and c.artifact]
    assert {c.is_control for c in blends} == {True, False}  # what a student is compared with is blended too
    frame = transfer(100, "regression", 5).frame
    for blend in blends:
        parts = [found[number] for number in blend.configuration["parts"]]  # type: ignore[union-attr]
        mean = np.mean([run(part.artifact, frame) for part in parts], axis=0)
        np.testing.assert_allclose(run(blend.artifact, frame), mean, rtol=1e-4)


def test_a_blend_has_the_best_of_each_kind_that_is_near_and_fits() -> None:
    run = searching(problem("binary"), FAST, ThreadPoolExecutor(1))
    y = run.select.problem.select.y
    assert y is not None

    def entry(family: str, size: dict[str, int], alpha: float, sure: float, latency_ms: float) -> Entry:
        made = Entry(len(run.entries), family, size, Recipe(1.0, alpha), {}, artifact=b"-")
        run.select.score(made, sure * np.eye(2)[y])
        made.is_control, made.latency_ms = alpha == 0.0, latency_ms
        run.entries.append(made)
        return made

    binned = entry("mlp", {"hidden": 64, "bins": 16}, 1.0, 2.00, 0.02)
    straight = entry("mlp", {"hidden": 32, "bins": 0}, 1.0, 1.99, 0.01)
    trees = entry("boosted", {"rounds": 9, "leaves": 4}, 1.0, 1.98, 0.03)
    control = entry("boosted", {"rounds": 9, "leaves": 4}, 0.0, 1.97, 0.01)
    poor = entry("tree", {"leaves": 8}, 1.0, 1.00, 0.001)
    assert binned.tie_break > straight.tie_break > trees.tie_break > control.tie_break > poor.tie_break
    assert run.blender.parts(run.entries, 1.0) == [binned, straight, trees, control]
    # What does not fit beside the better ones is passed over, and what comes after it is not.
    assert run.blender.parts(run.entries, 0.035) == [binned, straight, control]


def test_a_blend_of_a_lucky_student_still_takes_what_lowers_its_loss() -> None:
    run = searching(problem("multiclass"), FAST, ThreadPoolExecutor(1))
    y = run.select.problem.select.y
    assert y is not None
    right = np.eye(4)[y]
    confident = np.where(np.arange(len(y))[:, None] < 15, np.eye(4)[(y + 1) % 4], 4 * right)
    lucky, better = (
        Entry(number, "mlp", {}, Recipe(1.0, 1.0), {}, logits=logits, latency_ms=0.01)
        for number, logits in enumerate((0.1 * right, confident))
    )
    run.select.score(lucky, 0.1 * right)
    run.select.score(better, confident)
    assert lucky.metric == 1.0 > better.metric
    assert run.select.judge((lucky.logits + better.logits) / 2)[0] < lucky.metric  # type: ignore[operator]
    assert run.blender.next_part([lucky], [lucky, better], 0.1) is better


def test_candidates_and_blends_are_calibrated_on_select() -> None:
    from pg_distill.students.soft_labels import fit_sharpness

    whole = problem("multiclass", 800)
    assert whole.select.y is not None
    config = replace(FAST, families=("linear", "tree"))
    found = stages.search(whole, config, teacher("multiclass"))
    trained = [c for c in found if c.artifact]
    assert {c.family for c in trained} >= {"linear", "tree", "blend"}
    for c in trained:
        # Before their refit, which has learned the select rows.
        assert c.select_logits is not None
        assert fit_sharpness(c.select_logits, whole.select.y) == pytest.approx(1.0, abs=0.01)
    # Some of them had been too sure, or not sure enough.
    assert any(b'"sharpness": 1.0,' not in c.artifact for c in trained if c.family != "blend")


def test_progress_is_reported() -> None:
    said: list[dict[str, Any]] = []
    stages.search(problem("binary"), replace(FAST, families=("linear",)), None, report=said.append)
    assert said[0]["stage"] == "latency"
    assert said[-1]["stage"] == "done"
    assert {"screen", "sizes"} <= {s["stage"] for s in said}
    assert all(0.0 <= s["done"] <= 1.0 for s in said)


def test_no_rows_is_an_error() -> None:
    whole = problem("binary")
    with pytest.raises(InvalidData):
        stages.search(replace(whole, fit=whole.fit.take(np.arange(0))), FAST, None)


@pytest.mark.parametrize("task", TASKS)
def test_ten_rows_and_a_constant_label_are_no_crash(task: Task) -> None:
    whole = problem(task)
    few = whole.fit.take(np.arange(10))
    assert few.y is not None
    few.y[:] = few.y[0]
    found = stages.search(replace(whole, fit=few), replace(FAST, patience=2), teacher(task))
    assert all(c.reason for c in found)
    assert any(c.artifact for c in found)


def searching(whole: Problem, config: Config, executor: Executor, label: Any = None) -> Any:
    return stages.Search(whole, config, label, executor, lambda progress: None, is_local=True)


@pytest.mark.parametrize("family", ["mlp", "boosted"])
def test_a_student_is_not_replaced_by_a_refit_that_the_time_left_cuts(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = {"mlp": {"hidden": [32], "bins": 16}, "boosted": {"rounds": 300, "leaves": 31}}[family]
    executor = Noting()
    run = searching(problem("binary", 3000), replace(FAST, epochs=8, time_budget_s=1000.0), executor)
    [entry] = run.runner.run("screen", [(family, size, Recipe(1.0, 0.5))])
    first, fit_seconds = entry.artifact, entry.fit_seconds
    assert fit_seconds > 0

    def refit(seconds: float) -> None:
        run.budget.begun = time.monotonic()
        monkeypatch.setattr(budget.Budget, "deadline", run.budget.begun + seconds)
        entry.configuration.pop("refit", None)
        run.refitter.refit()
        run.refitter.settle()

    refit(fit_seconds)  # more rows take longer than that: known beforehand
    assert len(executor.seconds) == 1
    assert entry.artifact == first
    assert entry.configuration["refit"] == "failed: no time to refit"
    executor.most = 0.0  # it shows on the way
    refit(1000.0)
    assert len(executor.seconds) == 2
    assert entry.artifact == first
    assert entry.configuration["refit"] == "failed: no time to refit"
    assert not entry.reason
    executor.most = 1000.0
    refit(1000.0)
    assert entry.artifact != first
    assert entry.configuration["refit"] == "with select rows"


@pytest.mark.parametrize(
    ("softest", "expected"),
    [(0.5, {0.5}), (1.0, {1.0}), (3.0, {1.0, 1.7321, 3.0}), (10.0, {1.0, 3.1623, 10.0})],
)
def test_temperatures_go_up_to_the_softest_allowed(softest: float, expected: set[float]) -> None:
    found = stages.search(
        problem("binary"), replace(FAST, families=("linear",), temperature=softest), teacher("binary")
    )
    assert {c.configuration["temperature"] for c in found if c.artifact and c.family == "linear"} == expected
    run = searching(problem("binary"), replace(FAST, temperature=softest), ThreadPoolExecutor(1))
    for family in ("mlp", "boosted", "first_trees"):
        assert {recipe.temperature for recipe in run.recipes.to_screen(family)} == expected


def test_augmented_rows_do_not_depend_on_who_asked_before() -> None:
    for kind in ("munge", "spunge", "hot_deck"):
        runs = [
            searching(problem("binary"), FAST, ThreadPoolExecutor(1), teacher("binary")) for _ in range(2)
        ]
        runs[0].runner.rows.augmented(kind, 100)
        runs[0].runner.rows.augmented(kind, 700)
        parts = [run.runner.rows.augmented(kind, 1300) for run in runs]
        assert len(parts[0]) == 1300
        np.testing.assert_array_equal(parts[0].frame.numbers(), parts[1].frame.numbers())
        np.testing.assert_array_equal(parts[0].teacher_logits, parts[1].teacher_logits)


def test_memory_bounds_the_augmented_rows() -> None:
    whole = problem("binary")
    width = len(whole.fit.frame.features) + 2
    run = searching(whole, FAST, ThreadPoolExecutor(1), teacher("binary"))
    part = min(rows.LABEL_ROWS, run.runner.rows.block_rows())
    run.runner.rows.config = replace(FAST, transfer_bytes=8 * width * (part + 50))
    assert len(run.runner.rows.augmented("munge", part)) == part
    assert len(run.runner.rows.augmented("spunge", part)) == 50
    assert run.runner.rows.augmented("hot_deck", part) is None


class WaitingExecutor(ThreadPoolExecutor):
    """A thread whose trainings wait until there are augmented rows."""

    def __init__(self) -> None:
        super().__init__(1)
        self.rows_made = threading.Event()
        self.waited: list[bool] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.waited.append(not self.rows_made.is_set())

        def train() -> Any:
            assert self.rows_made.wait(30.0)
            return fn(*args, **kwargs)

        return super().submit(train)


def test_augmented_rows_are_made_beside_the_trainings() -> None:
    executor = WaitingExecutor()
    run = searching(problem("binary"), replace(FAST, threads=1), executor, teacher("binary"))
    run.gate.measure()
    made: Any = run.runner.rows.make_more

    def make_more(kind: str) -> None:
        made(kind)
        executor.rows_made.set()

    run.runner.rows.make_more = make_more
    size = run.gate.sizes["linear"][0]
    augmented, real = Recipe(1.0, 1.0, (("munge", 1.0),)), Recipe(1.0, 1.0)
    # The one that needs rows is first in the plan; the other one trains while they are made.
    entries = run.runner.run("screen", [("linear", size, augmented), ("linear", size, real)])
    assert executor.waited == [True, False]
    assert [e.recipe for e in entries] == [augmented, real]
    assert entries[0].fit_rows > entries[1].fit_rows


def test_a_teacher_that_fails_on_augmented_rows_costs_their_recipes_only() -> None:
    def label(frame: Frame) -> Any:
        raise ValueError("no such row")

    run = searching(problem("binary"), FAST, ThreadPoolExecutor(1), label)
    run.gate.measure()
    size = run.gate.sizes["linear"][0]
    plan = [
        ("linear", size, Recipe(1.0, 1.0, (("munge", 1.0),))),
        ("linear", size, Recipe(1.0, 1.0)),
    ]
    assert [e.recipe for e in run.runner.run("screen", plan)] == [Recipe(1.0, 1.0)]
    assert "no such row" in run.entries[-2].reason


def test_unlabelled_rows_count_and_can_be_left_out() -> None:
    whole = problem("binary", 300)
    extra = transfer(600, "binary", 5, labels=False)
    run = searching(replace(whole, unlabelled=extra), FAST, ThreadPoolExecutor(1), teacher("binary"))
    compared = run.recipes.to_screen("linear")
    for recipe in compared:
        real = 300 if recipe.is_control or not recipe.unlabelled else 900
        assert (run.runner.rows.transfer(recipe).source != 2).sum() == real * recipe.repeat
        # Filled up to SCREEN_ROWS, 1500, of all real rows.
        assert len(run.runner.rows.transfer(recipe)) <= 1800
    assert {recipe.unlabelled for recipe in compared} == {True, False}
    assert {"real": 1, "unlabelled": 0} in [run.runner.rows.describe(recipe) for recipe in compared]


def test_few_rows_get_as_many_steps_and_more_made_up_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "SCREEN_ROWS", 80_000)
    monkeypatch.setattr(recipes, "LEAST_STEPS", 1500)
    run = searching(
        problem("binary", 640), replace(FAST, epochs=10), ThreadPoolExecutor(1), teacher("binary")
    )
    for recipe in run.recipes.to_screen("mlp"):
        times = recipe.repeat + sum(share for _, share in recipe.augment)
        short = recipe.is_control and recipe.repeat == recipes.REPEAT
        assert short or times * 640 * 10 / recipes.STEP_ROWS >= recipes.LEAST_STEPS
    assert {sum(f for _, f in r.augment) for r in run.recipes.to_screen("boosted")} == {
        0,
        recipes.SMALL_TREE_REPEAT,
    }


def test_an_undefined_metric_is_the_reason() -> None:
    whole = problem("binary")
    assert whole.select.y is not None
    whole.select.y[:] = 1
    found = stages.search(whole, replace(FAST, families=("linear",)), None)
    trained = [c for c in found if c.artifact]
    assert trained
    assert all("roc_auc is not defined" in c.reason and not c.on_frontier for c in trained)


class Silent(Executor):
    """Runs every other task and never answers the others."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(2)
        self.count = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.count += 1
        return self.pool.submit(fn, *args) if self.count % 2 else Future()


def test_an_executor_that_gives_no_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "RESERVE_SECONDS", 0.5)
    monkeypatch.setattr(budget, "RESCUE_SECONDS", 0.5)
    start = time.monotonic()
    config = replace(FAST, families=("linear",), time_budget_s=4.0)
    found = stages.search(problem("binary"), config, teacher("binary"), executor=Silent())
    assert time.monotonic() - start < 15.0
    assert any(c.reason == "its executor gave no answer" for c in found)
    assert any(c.on_frontier for c in found)


class Noting(Executor):
    """Runs tasks at once, and notes how long each may take; it can give them less."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.most = 1000.0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        task, *data = args
        self.seconds.append(task.seconds)
        future: Future[Any] = Future()
        future.set_result(fn(replace(task, seconds=min(task.seconds, self.most)), *data))
        return future


def test_time_is_left_to_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Noting()
    run = searching(problem("binary"), replace(FAST, time_budget_s=1000.0), executor)
    monkeypatch.setattr(budget.Budget, "deadline", run.budget.begun + 100.0)
    run.runner.run("finish", [("boosted", {"rounds": 10, "leaves": 8}, Recipe(1.0, 0.5))])
    run.refitter.refit()
    first, again = executor.seconds
    assert first <= 100.0 * budget.LATEST_REFIT_FROM  # on a busy machine; REFIT_FROM on an idle one
    assert again > first
