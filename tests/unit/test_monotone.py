"""Monotone constraints: no student's answer falls (1) or rises (-1) with its column, to the last bit."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest
from pg_distill.errors import InvalidParameter
from pg_distill.frame import Feature, Frame, Kind, Strings, Task
from pg_distill.runs import material
from pg_distill.runs.options import Options
from pg_distill.search import training
from pg_distill.search.problem import Config, Problem
from pg_distill.search.stages import search
from pg_distill.students.blend import Blend
from pg_distill.students.bounded import increments, least_quadratic
from pg_distill.students.families import MONOTONE, STEADY, Setup, load_family
from pg_distill.students.transfer_set import TransferSet

ROWS, PAIRS = 1500, 10_000
HELD = {"x0": 1, "x1": -1}
FEATURES = (
    Feature("x0", "number"),
    Feature("x1", "number"),
    Feature("x2", "number"),
    Feature("when", "timestamp"),
    Feature("kind", "string"),
)
SIZES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"bins": 0}),
    ("linear", {"bins": 16}),
    ("linear", {"bins": 64}),
    ("tree", {"leaves": 64}),
    ("boosted", {"rounds": 60, "leaves": 31}),
]


def rows(task: Task, *, timestamps: bool = False) -> TransferSet:
    """Return rows whose answer goes up and down with x0 and x1, with NULLs and categories."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(ROWS, 4))
    x[rng.random((ROWS, 4)) < 0.05] = np.nan
    x[:, 3] = 1.7e9 + 1e6 * np.nan_to_num(x[:, 3])
    kind = rng.integers(0, 4, ROWS).astype(np.int32)
    known = np.nan_to_num(x)
    z = np.sin(3 * known[:, 0]) + np.cos(4 * known[:, 1]) + known[:, 2] * known[:, 0] + 0.5 * kind
    z += 0.3 * known[:, 0] + rng.normal(size=ROWS)
    used = FEATURES if timestamps else tuple(f for f in FEATURES if f.name != "when")
    columns = {"x0": x[:, 0], "x1": x[:, 1], "x2": x[:, 2], "when": x[:, 3]}
    frame = Frame(
        used,
        {f.name: Strings(kind, tuple("abcd")) if f.name == "kind" else columns[f.name] for f in used},
    )
    y: npt.NDArray[Any] = z if task == "regression" else (z > 0.5).astype(np.int64)
    return TransferSet(frame, None, y, None, np.zeros(ROWS, np.uint8))


def setup(task: Task, held: dict[str, int]) -> Setup:
    return Setup(task, 1 if task == "regression" else 2, alpha=0.0, monotone=held)


def pairs(frame: Frame, name: str) -> Iterator[tuple[Frame, Frame]]:
    """Give pairs of frames of which the second has larger numbers of a column, and the same otherwise."""
    rng = np.random.default_rng(6)
    known = frame.number(name)[np.isfinite(frame.number(name))]
    same = frame.take(rng.integers(0, len(frame), PAIRS))
    low, other = rng.choice(known, (2, PAIRS))
    single = low.astype(np.float32)
    beyond = rng.choice(
        [-np.inf, -1e300, -1e30, known.min() - 1, known.max() + 1, 1e30, 1e300, np.inf], PAIRS
    )
    for one, two in (
        (low, other),
        (single, np.nextafter(single, np.float32(np.inf))),
        (low, beyond),
        (rng.normal(size=PAIRS), rng.normal(size=PAIRS)),
    ):
        ordered = np.minimum(one, two).astype(float), np.maximum(one, two).astype(float)
        yield tuple(Frame(same.features, {**same.columns, name: values}) for values in ordered)  # type: ignore[misc]


def answers(artifact: bytes, frame: Frame) -> npt.NDArray[Any]:
    session = training.onnx_model.open_session(artifact)
    return np.asarray(session.run(None, training._feeds(session, frame))[0][:, -1])


def count_broken(artifact: bytes, frame: Frame) -> int:
    return sum(
        int((sign * (answers(artifact, high) - answers(artifact, low)) < 0).sum())
        for name, sign in HELD.items()
        for low, high in pairs(frame, name)
    )


@pytest.mark.parametrize("task", ["binary", "regression"])
@pytest.mark.parametrize(("family", "size"), SIZES)
def test_a_family_keeps_its_constraints(task: Task, family: str, size: dict[str, Any]) -> None:
    data = rows(task)
    made = {}
    for held in ({}, HELD):
        student = load_family(family)(setup(task, held), **size)
        student.fit(data.take(np.arange(0, ROWS, 2)), data.take(np.arange(1, ROWS, 2)), deadline=None)
        student.calibrate(data)
        made[len(held)] = student
    assert count_broken(made[0].to_onnx(), data.frame) > 0  # the rows are no help
    assert count_broken(made[2].to_onnx(), data.frame) == 0
    assert made[2].describe()["monotone"] == HELD
    logits = made[2].predict_logits(data.frame)
    assert training.disagreement(made[2].to_onnx(), data.frame, logits, task) < training.AGREEMENT
    made[2].refit(data, deadline=None)
    assert count_broken(made[2].to_onnx(), data.frame) == 0
    assert np.ptp(answers(made[2].to_onnx(), data.frame)) > 0.2  # and it answers something


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_blend_keeps_them_too(task: Task) -> None:
    data = rows(task, timestamps=True)
    students = [
        load_family(family)(setup(task, HELD), **size).fit(data, data.take(np.arange(0)), deadline=None)
        for family, size in SIZES
    ]
    blend = Blend(students, [0.1, 0.2, 0.3, 0.25, 0.15], task=task, n_classes=students[0].setup.n_classes)
    artifact = blend.to_onnx(data.frame)
    assert count_broken(artifact, data.frame) == 0
    assert training.disagreement(artifact, data.frame, blend.predict_logits(data.frame), task) < 1e-5


def test_close_log_odds_do_not_turn_round() -> None:
    """Without steps a softmax of float32 falls where its log-odds rise by their last bit."""
    z = np.linspace(-3, 3, 200_001).astype(np.float32)
    from pg_distill.students.export import Graph, Numbers

    frame = Frame((Feature("z", "number"),), {"z": z.astype(float)})
    made = {}
    for steady in (False, True):
        graph = Graph(Numbers.fit(frame))
        both = graph.constant(np.array([[0.0, 1.0]], np.float32))
        made[steady] = graph.finish(graph.node("Mul", [graph.numbers, both]), "binary", 2, {}, steady=steady)
    near = z[:-1], np.nextafter(z[:-1], np.float32(np.inf))
    falls = {}
    for steady, artifact in made.items():
        low, high = (answers(artifact, Frame(frame.features, {"z": v.astype(float)})) for v in near)
        falls[steady] = int((high < low).sum())
    assert falls[False] > 0
    assert falls[True] == 0
    exact = 1 / (1 + np.exp(-z.astype(float)))
    assert np.abs(answers(made[True], frame) - exact).max() < STEADY


def test_the_least_of_a_quadratic_with_bounds() -> None:
    from scipy.optimize import nnls

    rng = np.random.default_rng(1)
    for size in (1, 2, 5, 40):
        root, target = rng.normal(size=(2 * size, size)), rng.normal(size=2 * size)
        found = least_quadratic(root.T @ root, -root.T @ target, np.ones(size, bool))
        np.testing.assert_allclose(found, nnls(root, target)[0], atol=1e-8)
        free = least_quadratic(root.T @ root, -root.T @ target, np.zeros(size, bool))
        np.testing.assert_allclose(free, np.linalg.lstsq(root, target, rcond=None)[0], atol=1e-8)
    made = increments(4, 3, -1) @ np.array([1.0, 2.0, 3.0, 7.0])
    np.testing.assert_array_equal(made, [1.0, -1.0, -4.0, 7.0])


def test_a_file_that_breaks_a_constraint_is_found() -> None:
    data = rows("regression")
    student = load_family("linear")(setup("regression", {}), bins=16).fit(data, data, deadline=None)
    assert training.falls(student.to_onnx(), data.frame, {}, "regression") == 0
    assert training.falls(student.to_onnx(), data.frame, HELD, "regression") > 0


def test_a_search_leaves_out_what_cannot_keep_them() -> None:
    data = rows("binary")
    logits = (
        np.column_stack([np.zeros(ROWS), np.where(data.y == 1, 2.0, -2.0)]) if data.y is not None else None
    )
    data = TransferSet(data.frame, logits, data.y, None, data.source)
    problem = Problem(
        "binary", ("no", "yes"), "accuracy", data.take(np.arange(1000)), data.take(np.arange(1000, ROWS))
    )
    config = Config(target_latency_ms=5.0, time_budget_s=4.0, epochs=2, patience=4, threads=1, monotone=HELD)
    found = search(problem, config, None)
    out = {c.family for c in found if not c.artifact and "monotone" in c.reason}
    made = [c for c in found if c.artifact]
    assert out == {"first_trees", "mlp"}
    assert {c.family for c in made} - {"blend"} <= MONOTONE
    assert any(c.is_control for c in made)
    for c in made:
        assert c.configuration["monotone"] == HELD
        assert count_broken(c.artifact, data.frame) == 0


def test_a_training_takes_them_to_another_machine() -> None:
    data = rows("binary")
    task = training.Training(0, "boosted", {"rounds": 10, "leaves": 8}, setup("binary", HELD), 60.0)
    task, data = pickle.loads(pickle.dumps((task, data)))
    outcome = pickle.loads(pickle.dumps(training.train(task, data, data)))
    assert outcome.reason == ""
    assert count_broken(outcome.artifact, data.frame) == 0


@pytest.mark.parametrize("kind", ["string", "text", "vector"])
def test_only_numbers_have_an_order(kind: Kind) -> None:
    teacher = Mock(qualified_name="t:1", task="binary")
    features = [
        Feature("x", "integer"),
        Feature("t", "timestamp"),
        Feature("b", "boolean"),
        Feature("c", kind, 3),
    ]
    material._require_numbers(teacher, features, {"x": 1, "t": -1, "b": 1})
    with pytest.raises(InvalidParameter):
        material._require_numbers(teacher, features, {"c": 1})


def test_zeros_are_no_constraints() -> None:
    assert Options("t", monotone={"a": 0, "b": -1.0, "c": 1}).constraints == {"b": -1, "c": 1}  # type: ignore[dict-item]
    assert Options("t", monotone={}).constraints == {}
    assert Options("t").cascade_wanted
    assert not Options("t", monotone={"a": 1}).cascade_wanted
    assert Options("t", monotone={"a": 0}, families=["cascade"]).cascade_wanted


@pytest.mark.parametrize(("family", "size"), SIZES)
def test_an_order_that_the_rows_bear_out_costs_nothing(family: str, size: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4000, 4))
    z = 1.5 * x[:, 0] - np.exp(x[:, 1] / 2) + np.sin(x[:, 2])
    y = (rng.random(len(z)) < 1 / (1 + np.exp(-z))).astype(np.int64)
    features = tuple(Feature(f"x{i}", "number") for i in range(4))
    frame = Frame(features, {f"x{i}": x[:, i] for i in range(4)})
    data = TransferSet(frame, None, y, None, np.zeros(len(y), np.uint8))
    fit, select, test = (data.take(np.arange(*ends)) for ends in ((0, 1000), (1000, 1500), (1500, 4000)))
    loss = []
    for held in ({}, HELD):
        student = load_family(family)(setup("binary", held), **size).fit(fit, select, deadline=None)
        student.calibrate(select)
        logits = student.predict_logits(test.frame)
        assert test.y is not None
        loss.append(float(np.logaddexp(0, (1 - 2 * test.y) * (logits[:, 1] - logits[:, 0])).mean()))
    assert loss[1] < loss[0] + 0.001
