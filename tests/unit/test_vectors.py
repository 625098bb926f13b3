"""Students over vectors: their files answer as they do, and reach what a line over all numbers reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pg_distill.frame import Feature, Frame, Strings, Task
from pg_distill.onnx_model import approve
from pg_distill.onnx_model.session import Model
from pg_distill.search.training import disagreement
from pg_distill.students import projection
from pg_distill.students.augment import Augmenter
from pg_distill.students.families import FAMILIES, Setup, Shape, load_family
from pg_distill.students.projection import Projection
from pg_distill.students.soft_labels import softmax
from pg_distill.students.transfer_set import REAL, TransferSet
from vector_rows import embeddings

LENGTH = 48


def documents(
    rows: int, task: Task, *, seed: int = 0, mixed: bool = False, nulls: bool = False, length: int = LENGTH
) -> TransferSet:
    """Return rows whose teacher is a line over a vector; ``mixed`` with a number, a time and a category beside it."""
    x, _ = embeddings(rows, length, seed=seed)
    rng, fixed = np.random.default_rng(seed + 1), np.random.default_rng(99)
    if nulls:
        x[rng.random(rows) < 0.1] = np.nan
    k = {"binary": 2, "multiclass": 4, "regression": 1}[task]
    z = np.nan_to_num(x) @ fixed.standard_normal((length, k)) * 10
    features: list[Feature] = [Feature("emb", "vector")]
    columns: dict[str, Any] = {"emb": x}
    if mixed:
        a, b = rng.standard_normal(rows), 1.7e9 + rng.integers(0, 10**7, rows)
        c = rng.choice(["x", "y", "z"], rows)
        z[:, 0] += 2 * a + (c == "x")
        features = [Feature("a", "number"), *features, Feature("b", "timestamp"), Feature("c", "string")]
        columns |= {"a": a, "b": b.astype(np.float64), "c": Strings.from_values(c.tolist())}
    y: Any = z[:, 0] if task == "regression" else z.argmax(axis=1)
    return TransferSet(Frame(tuple(features), columns), z, y, None, np.full(rows, REAL, np.uint8))


def sizes(family: str, data: TransferSet, task: Task, classes: int) -> dict[str, Any]:
    """Return the smallest size of a family, and what its constructor takes."""
    shape = Shape(task, classes, data.frame.features, len(data))
    found = load_family(family).sizes(shape)
    return dict(found[0])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "first_trees"])
@pytest.mark.parametrize("mixed", [False, True])
def test_every_family_reads_vectors(family: str, task: Task, mixed: bool) -> None:
    """What the file says is what the student says, in a backend's own session too; NULL has an answer."""
    fit = documents(2500, task, mixed=mixed, nulls=True)
    select = documents(800, task, seed=5, mixed=mixed, nulls=True)
    classes = 1 if task == "regression" else fit.teacher_logits.shape[1]
    student: Any = load_family(family)(Setup(task, classes, epochs=5), **sizes(family, fit, task, classes))
    assert student.prototype(fit.take(np.arange(200))) is not None
    student.fit(fit, select, deadline=None)
    logits = student.predict_logits(select.frame)
    artifact = student.to_onnx()
    assert disagreement(artifact, select.frame, logits, task) <= 1e-4
    found = approve.approve(
        artifact, features=select.frame.features, rows=select.frame, task=task,
        classes=None if task == "regression" else [str(i) for i in range(classes)],
    )  # fmt: skip
    assert {f.null for f in found.signature.features if f.is_vector} == {"nan"}
    model = Model(artifact, found.signature)
    row = {
        f.name: select.frame.vector(f.name)[0].tolist()
        if f.is_vector
        else select.frame.strings(f.name).to_objects()[0]
        if f.is_string
        else float(select.frame.number(f.name)[0])
        for f in select.frame.features
    }
    expected = logits[0] if task == "regression" else softmax(logits[:1])[0]
    assert np.allclose(model.run_row(row), expected, atol=1e-4)
    said, meant = (
        z[:, -1] - (0.0 if task == "regression" else z[:, 0]) for z in (logits, select.teacher_logits)
    )
    assert np.corrcoef(said, meant)[0, 1] > 0.5


def test_a_line_over_a_vector_finds_the_line_that_taught_it() -> None:
    for task in ("binary", "multiclass"):
        fit, select = documents(3000, task), documents(1000, task, seed=5)
        student: Any = load_family("linear")(
            Setup(task, fit.teacher_logits.shape[1]), **sizes("linear", fit, task, 2)
        )
        student.fit(fit, select, deadline=None)
        same = student.predict_logits(select.frame).argmax(axis=1) == select.teacher_logits.argmax(axis=1)
        assert same.mean() > 0.985, task


@pytest.mark.parametrize("length", [3, LENGTH, 100])
def test_projections_hold_what_predicts_and_are_the_same_each_time(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "DECOMPOSED", 60)  # the longest is made shorter first
    data = documents(1500, "multiclass", nulls=True, length=length)
    target = softmax(data.teacher_logits)
    values = data.frame.vector("emb")
    found = Projection.learn("emb", values, target, most=16)
    again = Projection.learn("emb", values, target, most=16)
    assert found.matrix.tobytes() == again.matrix.tobytes()
    assert found.matrix.shape == (length, min(16, length))
    numbers = found.transform(values)
    assert np.isnan(numbers[np.isnan(values[:, 0])]).all()
    known = ~np.isnan(values[:, 0])
    assert np.isfinite(numbers[known]).all()
    line = np.column_stack([numbers[known], np.ones(known.sum())])
    z = data.teacher_logits[known, 0]
    error = z - line @ np.linalg.lstsq(line, z, rcond=None)[0]
    assert error.var() < 0.3 * z.var()


def test_projections_of_few_or_equal_vectors_are_finite() -> None:
    for values in (np.ones((5, 8)), np.full((5, 8), np.nan), np.zeros((1, 8)), np.eye(8)[:2]):
        found = Projection.learn("emb", values, np.ones((len(values), 1)), most=4)
        assert found.matrix.shape == (8, 4)
        assert np.isfinite(found.matrix).all()


def test_augmented_rows_have_the_vectors_of_real_ones() -> None:
    data = documents(300, "binary", mixed=True, nulls=True)
    made = Augmenter(data.frame).make("munge", 500, np.random.default_rng(0))
    known = {row.tobytes() for row in data.frame.vector("emb")}
    assert len(made) > 100
    assert {row.tobytes() for row in made.vector("emb")} <= known
