from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from pg_distill.frame import Feature, FloatArray, Frame, Strings, Task
from pg_distill.students.objective import Lines, Objective, Steps, backfit, resolve_targets
from pg_distill.students.transfer_set import TransferSet
from student_rows import TASKS, difference, edge_rows, make, rows, run, transfer

BINS = [0, 16]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("nulls", [True, False])
def test_graph_and_numpy_agree_on_every_kind_of_row(task: Task, bins: int, nulls: bool) -> None:
    student = make("linear", task, bins=bins)
    student.fit(transfer(3000, task, nulls=nulls), transfer(500, task, 1, nulls=nulls))
    assert difference(student, edge_rows(rows(1000, 2))) < 1e-5


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bins", BINS)
def test_it_learns_what_is_additive(task: Task, bins: int) -> None:
    student = make("linear", task, bins=bins, alpha=1.0)
    student.fit(transfer(4000, task, labels=False), transfer(500, task, 1, labels=False))
    test = transfer(2000, task, 2)
    logits, truth = student.predict_logits(test.frame), test.teacher_logits
    assert truth is not None
    if task == "regression":
        residual = np.mean((logits - truth) ** 2) / np.var(truth)
        # sin(2 x) bends, and a line cannot
        assert residual < (0.02 if bins else 0.25)
    else:
        assert np.mean(logits.argmax(axis=1) == truth.argmax(axis=1)) > (0.93 if bins else 0.7)


@pytest.mark.parametrize("bins", BINS)
def test_the_gradient_vanishes_where_backfitting_ends(bins: int) -> None:
    """Least squares on soft labels has one optimum, and the normal equations name it."""
    data = transfer(2000, "regression", labels=False, numbers_only=True, nulls=False)
    student = make("linear", "regression", alpha=1.0, bins=bins, epochs=200)
    student.fit(data, data)
    residual = student.predict_logits(data.frame)[:, 0] - np.asarray(data.teacher_logits)[:, 0]
    assert abs(residual.mean()) < 1e-3 * residual.std()
    if not bins:
        for name in data.frame.number_names:
            column = data.frame.number(name)
            assert (
                abs(np.corrcoef(residual, np.clip(column, *np.quantile(column, [0.005, 0.995])))[0, 1]) < 1e-2
            )


def objective(task: Task, temperature: float) -> Objective:
    data = transfer(200, task)
    student = make("linear", task, temperature=temperature, alpha=0.3)
    goal = resolve_targets(student, data)
    return Objective(task, student.n_classes, temperature, goal)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_derivatives_are_those_of_the_loss(task: Task, temperature: float) -> None:
    loss = objective(task, temperature)
    scores = np.random.default_rng(0).normal(size=(200, loss.outputs))
    gradient, hessian = loss.derivatives(scores)
    total = float((loss.soft_weight + loss.hard_weight).sum())
    half = 0.5 if task == "regression" else 1.0
    step = 1e-5
    for row, k in [(0, 0), (17, loss.outputs - 1), (111, 0)]:
        up, down = scores.copy(), scores.copy()
        up[row, k] += step
        down[row, k] -= step
        slope = (loss.loss(up) - loss.loss(down)) / (2 * step) * total * half
        assert gradient[row, k] == pytest.approx(slope, rel=1e-4, abs=1e-6)
        bend = (loss.derivatives(up)[0] - loss.derivatives(down)[0])[row, k] / (2 * step)
        factor = loss.outputs / (loss.outputs - 1) if loss.outputs > 1 else 1.0
        assert hessian[row, k] == pytest.approx(bend * factor, rel=1e-4, abs=1e-6)


def test_backfitting_never_ends_worse_than_it_began() -> None:
    loss = objective("multiclass", 1.0)
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 5, 200).astype(np.int32)
    matrix = rng.normal(size=(200, 3))
    blocks = [
        Steps(codes, codes, np.full(5, 0.1), np.zeros((5, 4))),
        Lines(matrix, matrix, 0.1, np.zeros((3, 4)), np.ones(200)),
    ]
    before = loss.loss(np.zeros((200, 4)))
    after = backfit(blocks, loss, None, sweeps=5, deadline=None)
    assert after < before
    assert after == pytest.approx(loss.loss(blocks[0].of(select=False) + blocks[1].of(select=False)))


def test_steps_are_one_node() -> None:
    student = make("linear", "binary", bins=8)
    student.fit(transfer(500, "binary", numbers_only=True), transfer(200, "binary", 1, numbers_only=True))
    assert [node.op_type for node in onnx.load_from_string(student.to_onnx()).graph.node] == [
        "TreeEnsembleRegressor"
    ]


@pytest.mark.parametrize("bins", BINS)
def test_the_prototype_has_the_nodes_of_the_trained_model(bins: int) -> None:
    data = transfer(2000, "binary")
    student = make("linear", "binary", bins=bins)
    prototype = student.prototype(data)
    student.fit(data, transfer(300, "binary", 1))
    kinds = [[n.op_type for n in onnx.load_from_string(a).graph.node] for a in (prototype, student.to_onnx())]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("task", TASKS)
def test_columns_that_say_nothing(task: Task, bins: int) -> None:
    n = 40
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "constant": np.full(n, 7.0),
        "null": np.full(n, np.nan),
        "empty": Strings.from_values([None] * n),
        "key": Strings.from_values([f"k{i}" for i in range(n)]),
    }
    kinds = ["number", "number", "string", "string"]
    frame = Frame(tuple(Feature(name, kind) for name, kind in zip(columns, kinds, strict=True)), columns)  # type: ignore[arg-type]
    y: Any = rng.normal(size=n) if task == "regression" else rng.integers(0, 2, n)
    data = TransferSet(frame, None, y, None, np.zeros(n, np.uint8))
    student = make("linear", task, alpha=0.0, bins=bins).fit(data, data)
    expected: FloatArray = student.predict_logits(frame)
    assert np.isfinite(expected).all()
    assert np.isfinite(run(student.to_onnx(), frame)).all()
    assert np.ptp(expected, axis=0).max() < 1e-9


def test_equal_rows_and_seed_give_equal_bytes() -> None:
    data, select = transfer(1500, "multiclass"), transfer(300, "multiclass", 1)
    for family, options in [("linear", {"bins": 0}), ("linear", {"bins": 16}), ("boosted", {"rounds": 5})]:
        one, two = (make(family, "multiclass", **options).fit(data, select).to_onnx() for _ in range(2))
        assert one == two
