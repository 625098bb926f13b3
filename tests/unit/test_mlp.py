from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from pg_distill.frame import Frame, Task
from pg_distill.students.families import Shape
from pg_distill.students.mlp import Mlp
from pg_distill.students.network import NetworkTrainer
from student_rows import CLASSES, FEATURES, TASKS, difference, edge_rows, make, rows, transfer


def train(task: Task, n: int = 1500, **options: Any) -> Mlp:
    student: Mlp = make("mlp", task, **{"hidden": (16, 16), "bins": 8, "epochs": 4, **options})
    return student.fit(transfer(n, task), transfer(300, task, 1), deadline=None)


@pytest.mark.parametrize("bins", [0, 5])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("task", TASKS)
def test_gradient_agrees_with_finite_differences(task: Task, temperature: float, bins: int) -> None:
    student: Mlp = make("mlp", task, hidden=(7, 6), bins=bins, temperature=temperature, alpha=0.4)
    data = transfer(40, task)
    student.layers_ = layers = student._prepare(data)
    encoded, goal = student._rows(data)
    encoded = replace(encoded, numbers=encoded.numbers.astype(np.float64))
    trainer = NetworkTrainer(student, layers, len(data))
    index = np.arange(40)
    trainer.batch = 40
    trainer.activations = [np.empty((40, a.shape[1]), np.float64) for a in trainer.activations]
    trainer.deltas = [np.empty((40, a.shape[1]), np.float64) for a in trainer.deltas]
    as_double(layers)
    as_double(trainer.gradients)
    goal64 = tuple(g.astype(np.float64) for g in goal)
    rng = np.random.default_rng(0)
    layers.flat += 0.1 * rng.standard_normal(len(layers.flat))
    trainer.gradient(encoded, goal64, index)
    found = trainer.gradients.flat.copy()
    step = 1e-6
    for place in rng.permutation(len(layers.flat))[:60]:
        kept = layers.flat[place]
        losses = []
        for sign in (1, -1):
            layers.flat[place] = kept + sign * step
            losses.append(trainer.gradient(encoded, goal64, index))
        layers.flat[place] = kept
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(found[place], rel=1e-4, abs=1e-7)


def as_double(layers: Any) -> None:
    """Give layers float64 storage: finite differences need more digits than float32 has."""
    flat = layers.flat.astype(np.float64)
    start = 0
    for group in (layers.weights, layers.biases):
        for place, old in enumerate(group):
            group[place] = flat[start : start + old.size].reshape(old.shape)
            start += old.size
    layers.flat = flat


@pytest.mark.parametrize("bins", [0, 8])
@pytest.mark.parametrize("task", TASKS)
def test_graph_and_trainer_agree_on_every_kind_of_cell(task: Task, bins: int) -> None:
    student = train(task, bins=bins)
    frame = edge_rows(rows(500, 3))
    assert np.isfinite(student.predict_logits(frame)).all()
    assert difference(student, frame) < 1e-4


def test_graph_and_trainer_agree_where_encodings_are_too_many_for_one_matrix(monkeypatch: Any) -> None:
    monkeypatch.setattr("pg_distill.students.mlp.MAX_DENSE_ENCODING", 0)
    monkeypatch.setattr("pg_distill.students.mlp.MAX_REPEATED_TABLE", 0)
    assert difference(train("multiclass"), edge_rows(rows(500, 3))) < 1e-4


@pytest.mark.parametrize("options", [{"numbers_only": True}, {"nulls": False}])
def test_graph_and_trainer_agree_without_strings_and_without_nulls(options: dict[str, bool]) -> None:
    student: Mlp = make("mlp", "binary", hidden=(16,), bins=4, epochs=2)
    student.fit(transfer(500, "binary", **options), transfer(100, "binary", 1, **options), deadline=None)
    assert difference(student, edge_rows(rows(200, 3, **options))) < 1e-4


def test_it_learns() -> None:
    student = train("multiclass", 6000, epochs=10, hidden=(32, 32))
    test = transfer(2000, "multiclass", 5)
    assert test.teacher_logits is not None
    agreement = (student.predict_logits(test.frame).argmax(1) == test.teacher_logits.argmax(1)).mean()
    assert agreement > 0.9


def test_values_come_back_on_their_own_scale() -> None:
    student = train("regression", 6000, epochs=10, hidden=(32, 32))
    test = transfer(2000, "regression", 5)
    assert test.teacher_logits is not None
    truth = test.teacher_logits[:, 0]
    residual = student.predict_logits(test.frame)[:, 0] - truth
    assert residual.var() / truth.var() < 0.05


@pytest.mark.parametrize("task", TASKS)
def test_bytes_are_the_same_alone_and_beside_another(task: Task) -> None:
    alone = train(task).to_onnx()
    with ThreadPoolExecutor(2) as pool:
        pair = [pool.submit(train, task), pool.submit(train, task)]
    assert [future.result().to_onnx() for future in pair] == [alone, alone]


def test_another_seed_gives_other_bytes() -> None:
    assert train("binary", seed=1).to_onnx() != train("binary", seed=2).to_onnx()


def test_prototype_has_the_nodes_of_the_trained_network() -> None:
    student: Mlp = make("mlp", "binary", hidden=(16, 16), bins=8)
    before = onnx.load_from_string(student.prototype(transfer(300, "binary")))
    after = onnx.load_from_string(train("binary").to_onnx())
    assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]


def test_a_deadline_shortens_the_schedule() -> None:
    start, before = time.monotonic(), time.process_time()
    student: Mlp = make("mlp", "binary", hidden=(256, 256), epochs=1000)
    student.fit(transfer(10000, "binary"), transfer(300, "binary", 1), deadline=start + 0.05)
    assert time.process_time() - before < 10.0  # the whole schedule takes minutes
    assert np.isfinite(student.predict_logits(rows(10))).all()


def test_a_control_does_not_look_at_the_teacher() -> None:
    data, select = transfer(800, "binary"), transfer(200, "binary", 1)
    assert data.teacher_logits is not None
    assert select.teacher_logits is not None
    other = data.with_logits(-data.teacher_logits)
    found = [
        make("mlp", "binary", alpha=0.0, hidden=(8,), epochs=2).fit(d, select, deadline=None).to_onnx()
        for d in (data, other)
    ]
    assert found[0] == found[1]


def test_sizes_fit_the_constructor() -> None:
    for task in TASKS:
        for size in Mlp.sizes(Shape(task, CLASSES[task], FEATURES, 1000)):
            assert make("mlp", task, **size).describe()["hidden"] == size["hidden"]


@pytest.mark.parametrize("bins", [0, 8])
@pytest.mark.parametrize("share", [0.0002, 0.01])
def test_outliers_do_not_set_the_scale(bins: int, share: float) -> None:
    data, select, test = (transfer(3000, "binary", seed, numbers_only=True) for seed in (0, 1, 2))
    columns = {name: data.frame.number(name).copy() for name in data.frame.number_names}
    for position, column in enumerate(columns.values()):
        column[position :: int(1 / share)] = 1e6
    data = replace(data, frame=Frame(data.frame.features, columns))
    student = make("mlp", "binary", hidden=(32,), bins=bins, epochs=10).fit(data, select, deadline=None)
    assert test.teacher_logits is not None
    agreement = student.predict_logits(test.frame).argmax(1) == test.teacher_logits.argmax(1)
    assert agreement.mean() > 0.88
    assert difference(student, edge_rows(test.frame)) < 1e-4


def test_few_rows_take_many_steps() -> None:
    student: Mlp = make("mlp", "binary", hidden=(8,))
    for n, batch in ((5, 5), (640, 32), (6400, 100), (100_000, 256)):
        student.layers_ = student._prepare(transfer(50, "binary"))
        assert NetworkTrainer(student, student.layers_, n).batch == max(8, batch)
