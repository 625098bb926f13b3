"""As many columns and classes as are promised, and the same bytes however many train at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from models import exported
from pg_distill.frame import Feature, Frame, Strings, Task
from pg_distill.students.blend import Blend
from pg_distill.students.encoding import CategoryEncoder
from pg_distill.students.families import Setup, Shape
from pg_distill.students.first_trees import FirstTrees
from pg_distill.students.mlp_encoding import MAX_ONE_HOT
from pg_distill.students.objective import sharpness
from pg_distill.students.soft_labels import log_softmax, logits_from_probabilities, one_hot, softmax
from pg_distill.students.transfer_set import TransferSet
from student_rows import TASKS, difference, make, run, transfer, unsure

pytestmark = pytest.mark.slow  # it trains, or waits

COLUMNS, CLASSES = 500, 100
SMALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "tree": {"leaves": 256},
    "boosted": {"rounds": 5, "leaves": 16},
    "mlp": {"hidden": (32,), "bins": 4, "epochs": 8},
}


def wide(n: int, seed: int) -> TransferSet:
    """Rows of 480 numbers and 20 strings, of which the first number and the first string matter."""
    rng = np.random.default_rng(seed)
    features = tuple(Feature(f"x{i}", "string" if i % 25 == 1 else "number") for i in range(COLUMNS))
    columns: dict[str, Any] = {}
    for f in features:
        if f.kind == "string":
            columns[f.name] = Strings.from_values([f"v{i}" for i in rng.integers(0, 5, n)])
        else:
            columns[f.name] = rng.normal(size=n)
    frame = Frame(features, columns)
    score = 4 * frame.number("x0") + 3 * (frame.strings("x1").codes - 2.0)
    return TransferSet(
        frame,
        np.stack([-score / 2, score / 2], axis=1),
        (score > 0).astype(np.int64),
        None,
        np.zeros(n, np.uint8),
    )


def many_classes(n: int, seed: int) -> TransferSet:
    """Rows whose class is the cell of a grid of 10 x 10 that they are in; the last two columns say nothing."""
    rng = np.random.default_rng(seed)
    values = rng.random((n, 4))
    features = tuple(Feature(f"x{i}", "number") for i in range(4))
    y = (10 * np.floor(10 * values[:, 0]) + np.floor(10 * values[:, 1])).astype(np.int64)
    centres = np.stack(np.divmod(np.arange(CLASSES), 10), axis=1) / 10 + 0.05
    logits = -((values[:, None, :2] - centres) ** 2).sum(axis=2) * 500
    frame = Frame(features, {f.name: values[:, i] for i, f in enumerate(features)})
    return TransferSet(frame, logits, y, None, np.zeros(n, np.uint8))


@pytest.mark.parametrize("family", SMALL)
def test_five_hundred_columns(family: str) -> None:
    data, select, test = wide(3000, 0), wide(500, 1), wide(500, 2)
    # 3000 rows are 11 steps a pass, too few for 500 columns in 8 of them; with bins they take 15 times as long.
    options = SMALL[family] | ({"epochs": 30, "bins": 0} if family == "mlp" else {})
    student: Any = make(family, "binary", **options)
    student.fit(data, select)
    assert difference(student, test.frame) < 1e-4
    assert (student.predict_logits(test.frame).argmax(1) == test.y).mean() > 0.8


def test_bins_of_five_hundred_columns() -> None:
    data, test = wide(600, 0), wide(200, 2)
    student: Any = make("mlp", "binary", **SMALL["mlp"] | {"epochs": 1})
    student.fit(data, wide(200, 1))
    assert difference(student, test.frame) < 1e-4


@pytest.mark.parametrize("family", SMALL)
def test_a_hundred_classes(family: str) -> None:
    data, select, test = many_classes(8000, 0), many_classes(1000, 1), many_classes(1000, 2)
    student: Any = make(family, "multiclass", n_classes=CLASSES, **SMALL[family])
    student.fit(data, select)
    assert difference(student, test.frame) < 1e-4
    outputs = run(student.to_onnx(), test.frame)
    assert outputs.shape == (1000, CLASSES)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-4)
    # Chance is 0.01; the grid's borders and 80 rows a class leave no family perfect.
    assert (outputs.argmax(1) == test.y).mean() > 0.2


def family_bytes(family: str, task: Task) -> bytes:
    if family == "first_trees":
        name = {"binary": "LightGBM, no ZipMap", "multiclass": "LightGBM, 3 classes", "regression": "LightGBM, regression"}[task]  # fmt: skip
        found = exported(name)
        soft = found.expected if task == "regression" else logits_from_probabilities(found.expected)
        data = TransferSet(found.frame, soft, None, None, np.zeros(len(soft), np.uint8))
        shape = Shape(task, max(1, len(found.classes)), found.frame.features, 400, found.artifact)
        size = FirstTrees.sizes(shape)[-1]
        first = FirstTrees(Setup(task, shape.n_classes, teacher=found.artifact), **size)
        return first.fit(data, data).to_onnx()
    data, select = transfer(1500, task), transfer(300, task, 1)
    if family == "blend":
        parts = [make(name, task, **SMALL[name]).fit(data, select) for name in ("boosted", "mlp")]
        return Blend(parts, [0.5, 0.5], task=task, n_classes=parts[0].n_classes).to_onnx(data.frame)
    return make(family, task, **SMALL[family]).fit(data, select).to_onnx()  # type: ignore[no-any-return]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", [*SMALL, "first_trees", "blend"])
def test_bytes_are_the_same_with_one_and_two_threads(family: str, task: Task) -> None:
    alone = family_bytes(family, task)
    with ThreadPoolExecutor(2) as pool:
        pair = [pool.submit(family_bytes, family, task) for _ in range(2)]
    assert [future.result() for future in pair] == [alone, alone]
    assert len(alone) > 100


@pytest.mark.parametrize("family", SMALL)
def test_thirty_thousand_categories(family: str) -> None:
    rng = np.random.default_rng(0)
    words = tuple(f"w{i:05d}" for i in range(30_000))
    features = (Feature("x", "number"), *(Feature(f"s{i}", "string") for i in range(4)))
    columns: dict[str, Any] = {"x": rng.normal(size=6000)}
    for f in features[1:]:
        codes = (30_000 * rng.random(6000) ** 4).astype(np.int32)  # some frequent, most seen once or never
        columns[f.name] = Strings(codes, words)
    frame = Frame(features, columns)
    y = (columns["x"] + (columns["s0"].codes % 2) > 0.5).astype(np.int64)
    data = TransferSet(frame, None, y, None, np.zeros(6000, np.uint8))
    options = SMALL[family] | ({"epochs": 2} if family == "mlp" else {})
    student: Any = make(family, "binary", alpha=0.0, **options)
    select = data.take(np.arange(500))
    student.fit(data, select)
    assert difference(student, select.frame) < 1e-4
    assert (student.predict_logits(select.frame).argmax(1) == select.y).mean() > 0.6
    if family == "mlp":
        assert student.encoding_.n_categories <= MAX_ONE_HOT + 4 * CategoryEncoder.FIRST


@pytest.mark.parametrize("family", SMALL)
def test_one_wrong_label_does_not_outweigh_all_others(family: str) -> None:
    data, select, test = (transfer(3000, "regression", seed) for seed in (0, 1, 2))
    assert data.y is not None
    assert data.teacher_logits is not None
    assert test.teacher_logits is not None
    data.y[7] = 1e9
    data.teacher_logits[9] = -1e9  # and what a teacher made of a row
    select.y[7] = 1e9  # type: ignore[index]
    student = make(family, "regression", **SMALL[family]).fit(data, select)
    truth = test.teacher_logits[:, 0]
    assert np.var(student.predict_logits(test.frame)[:, 0] - truth) < 0.6 * np.var(truth)


@pytest.mark.parametrize("family", [*SMALL, "first_trees", "blend"])
def test_calibrating_lowers_the_loss_on_other_rows_and_keeps_the_classes(family: str) -> None:
    if family == "first_trees":
        found = exported("LightGBM, 3 classes")
        soft = logits_from_probabilities(found.expected)
        y = soft.argmax(axis=1).astype(np.int64)
        data = TransferSet(found.frame, soft, y, None, np.zeros(len(soft), np.uint8))
        student: Any = FirstTrees(Setup("multiclass", 3, teacher=found.artifact), trees=30)
        student.fit(data, data)
        select, test = (
            unsure(data.take(np.arange(0, len(data), 2))),
            unsure(data.take(np.arange(1, len(data), 2))),
        )
    else:
        data, select, test = (transfer(2000, "multiclass", seed) for seed in range(3))
        select, test = unsure(select), unsure(test)
        parts = ["boosted", "mlp"] if family == "blend" else [family]
        students = [make(name, "multiclass", **SMALL[name]).fit(data, select) for name in parts]
        student = students[0]
        if family == "blend":
            student = Blend(students, [0.5, 0.5], task="multiclass", n_classes=student.n_classes)

    def probabilities() -> Any:
        return run(student.to_onnx(test.frame) if family == "blend" else student.to_onnx(), test.frame)

    before, artifact = student.predict_logits(test.frame), probabilities()
    factor = sharpness(student, select)
    assert factor != 1.0
    student.sharpen(factor)
    after = student.predict_logits(test.frame)
    assert (after.argmax(1) == before.argmax(1)).all()
    assert test.y is not None
    label = one_hot(test.y, after.shape[1])

    def log_loss(logits: Any) -> float:
        return float(-(label * log_softmax(logits)).sum(axis=1).mean())

    assert log_loss(after) < log_loss(before) - 0.003
    found_after = probabilities()
    assert np.abs(found_after - softmax(after)).max() < 1e-4
    assert np.abs(found_after - artifact).max() > 0.01
    if hasattr(student, "refit"):
        again = student.refit(data).predict_logits(test.frame)
        assert log_loss(again) < log_loss(before)
