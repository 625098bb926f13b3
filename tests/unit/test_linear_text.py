"""Linear students of texts: what they learn, and that graph and numpy agree."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from pg_distill.frame import Frame, Strings, Task
from pg_distill.onnx_model.texts import TEXT_KEY
from pg_distill.students.augment import TABLE_KINDS, Augmenter
from pg_distill.students.blend import Blend
from pg_distill.students.export import STUDENT_KEY
from pg_distill.students.families import Shape, load_family
from pg_distill.students.linear import MOST_NGRAMS, SMOOTH, Linear
from pg_distill.students.objective import Objective, backfit, resolve_targets
from pg_distill.students.soft_labels import kl, softmax
from pg_distill.students.text_effect import NgramLines, TextEffect, find_bags
from pg_distill.students.transfer_set import stack
from pg_distill.students.vocabulary import usual_words
from student_rows import TASKS, difference, make, run
from text_rows import EVERYTHING, special, tickets

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bins", [0, 16])
@pytest.mark.parametrize("columns", [("body",), EVERYTHING, ("body", "x"), ("shop", "body")])
def test_graph_and_numpy_agree(task: Task, bins: int, columns: tuple[str, ...]) -> None:
    student = make("linear", task, bins=bins, epochs=2)
    student.fit(tickets(300, task, columns=columns), tickets(100, task, 1, columns=columns))
    student.calibrate(tickets(100, task, 1, columns=columns))
    assert len(student.texts_) == len({"body", "title"}.intersection(columns))
    assert difference(student, special(tickets(60, task, 2, columns=columns).frame)) < 1e-6


@pytest.mark.parametrize("task", TASKS)
def test_it_learns_words_pairs_and_other_columns_together(task: Task) -> None:
    def score(columns: tuple[str, ...]) -> float:
        data, select, test = (
            tickets(n, task, seed, columns=columns) for n, seed in ((2000, 0), (300, 1), (800, 2))
        )
        student = make("linear", task, bins=0, alpha=1.0).fit(data, select)
        found, truth = student.predict_logits(test.frame), test.teacher_logits
        assert truth is not None
        if task == "regression":
            return float(1 - np.mean((found - truth) ** 2) / np.var(truth))
        return float(np.mean(found.argmax(axis=1) == truth.argmax(axis=1)))

    together = score(EVERYTHING)
    assert together > (0.82 if task != "multiclass" else 0.75)
    assert together > score(("title", "body")) + 0.02
    assert together > score(("shop", "x")) + 0.02


def test_the_same_rows_give_the_same_bytes() -> None:
    files = [
        make("linear", "binary", bins=0, epochs=2)
        .fit(tickets(300, "binary"), tickets(100, "binary", 1))
        .to_onnx()
        for _ in range(2)
    ]
    assert files[0] == files[1]
    properties = {p.key: p.value for p in onnx.ModelProto.FromString(files[0]).metadata_props}
    assert set(json.loads(properties[STUDENT_KEY])["ngrams"]) == {"body", "title"}
    assert TEXT_KEY in properties


def test_a_prototype_reads_texts() -> None:
    data = tickets(1000, "multiclass")
    file = make("linear", "multiclass", bins=0).prototype(data)
    assert {i.name for i in onnx.ModelProto.FromString(file).graph.input} == {"numbers", "strings", "texts"}


@pytest.mark.parametrize("body", [[None] * 50, [""] * 50, [f"w{i}" for i in range(50)], ["same"] * 50])
def test_texts_that_say_nothing(body: list[str | None]) -> None:
    data = tickets(50, "binary", columns=("x", "body"))
    frame = Frame(data.frame.features, {**data.frame.columns, "body": Strings.from_values(body)})
    data = type(data)(frame, data.teacher_logits, data.y, None, data.source)
    student = make("linear", "binary", bins=0).fit(data, data)
    assert difference(student, frame) < 1e-6


def test_one_step_solves_least_squares() -> None:
    data = tickets(400, "regression", columns=("body",))
    student = make("linear", "regression", alpha=1.0)
    objective = Objective("regression", 1, 1.0, resolve_targets(student, data))
    column = data.frame.strings("body")
    effect = TextEffect.learn("body", column, objective, most=30)
    matrix = effect.matrix(column)
    block = NgramLines(matrix, matrix, 0.1, effect.effect)
    backfit([block], objective, None, sweeps=50, deadline=None)
    target = (np.asarray(data.teacher_logits) - objective.base) / objective.scale
    dense = matrix.toarray()
    normal = dense.T @ dense + 0.1 * np.eye(dense.shape[1])
    np.testing.assert_allclose(block.effect, np.linalg.solve(normal, dense.T @ target), atol=0.02)


def test_rows_have_length_one_or_no_ngram() -> None:
    data = tickets(200, "binary", columns=("body",))
    objective = Objective("binary", 2, 1.0, resolve_targets(make("linear", "binary"), data))
    column = data.frame.strings("body")
    effect = TextEffect.learn("body", column, objective)
    length = np.sqrt((effect.matrix(column) ** 2).sum(axis=1))
    assert set(np.round(length, 12)) <= {0.0, 1.0}
    bags = find_bags(effect.tokeniser, column)
    assert [effect.tokeniser.ids(t) for t in column.to_objects()] == [
        bags.ids[bags.rows == i].tolist() for i in range(len(bags))
    ]


def test_families_take_the_columns_that_they_read() -> None:
    data, select = tickets(400, "binary"), tickets(100, "binary", 1)
    options: dict[str, dict[str, Any]] = {
        "tree": {"leaves": 8},
        "boosted": {"rounds": 5, "leaves": 4},
        "mlp": {"hidden": [8], "epochs": 1},
    }
    for family, size in options.items():
        student = make(family, "binary", **size).fit(data, select, deadline=None)
        assert difference(student, data.frame) < 1e-5
        features = tuple(f for f in data.frame.features if f.kind == "text")
        assert (load_family(family).sizes(Shape("binary", 2, features, 400)) == []) == (family == "tree")
        assert load_family(family).sizes(Shape("binary", 2, data.frame.features, 400)) != []


def test_a_blend_reads_a_text_once() -> None:
    data, select = tickets(400, "multiclass"), tickets(100, "multiclass", 1)
    parts = [
        make("linear", "multiclass", bins=0, epochs=2).fit(data, select),
        make("linear", "multiclass", bins=16, epochs=2).fit(data.take(np.arange(300)), select),
        make("boosted", "multiclass", rounds=5, leaves=4).fit(data, select, deadline=None),
    ]
    blend = Blend(parts, [0.5, 0.3, 0.2], task="multiclass", n_classes=4)
    file = blend.to_onnx(data.frame)
    assert np.abs(run(file, data.frame) - softmax(blend.predict_logits(data.frame))).max() < 1e-6
    lower = [
        node for node in onnx.ModelProto.FromString(file).graph.node if node.op_type == "StringNormalizer"
    ]
    assert len(lower) == 2  # body and title


@pytest.mark.parametrize("kind", TABLE_KINDS)
def test_made_rows_keep_a_rows_texts(kind: str) -> None:
    frame = tickets(300, "binary").frame
    made = Augmenter(frame).make(kind, 200, np.random.default_rng(0))
    assert len(made) > 100

    def pairs(rows: Frame) -> set[tuple[str | None, ...]]:
        return set(zip(*(rows.strings(name).to_objects().tolist() for name in rows.text_names), strict=True))

    assert pairs(made) <= pairs(frame)
    assert len(Augmenter(frame.select(["body"])).make(kind, 200, np.random.default_rng(0))) == 0


def test_long_texts_are_read_of_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = (
        tickets(3000, "regression", columns=("x", "body")),
        tickets(3000, "regression", columns=("x", "body")),
    )
    body = long.frame.strings("body")
    more = Strings(body.codes, tuple(text + " word" * 50 for text in body.categories))
    long = replace(long, frame=Frame(long.frame.features, {**long.frame.columns, "body": more}))
    assert usual_words(more) > usual_words(body) + 30
    monkeypatch.setattr("pg_distill.students.linear.MOST_CELLS", 30_000)
    sizes = [len(make("linear", "regression")._prepare(data)[0]) for data in (short, long)]
    assert sizes[0] > sizes[1] == 1000


@pytest.mark.parametrize("shared", [True, False])
def test_a_refit_keeps_the_penalty_and_learns_from_more_rows(shared: bool) -> None:
    data, select, test = (tickets(n, "binary", seed) for n, seed in ((200, 0), (100, 1), (800, 2)))
    student = make("linear", "binary", bins=0, shared=shared).fit(data, select)

    def distance() -> float:
        assert test.teacher_logits is not None
        return float(kl(test.teacher_logits, student.predict_logits(test.frame)).mean())

    before, kept = distance(), student.penalties_
    student.refit(stack([data, select, tickets(1500, "binary", 3)]))
    assert student.penalties_ == kept and student.complete_
    assert distance() < before
    assert difference(student, special(test.frame.take(np.arange(50)))) < 1e-6


def test_texts_are_learned_with_what_words_share_and_without() -> None:
    frame = tickets(50, "binary").frame
    shape = Shape(task="binary", n_classes=2, features=frame.features, n_rows=50, teacher=None)
    sizes = Linear.sizes(shape)
    assert {size.get("shared", True) for size in sizes} == {True, False}
    alone = [f for f in frame.features if f.kind == "text"]
    only = Linear.sizes(Shape(task="binary", n_classes=2, features=tuple(alone), n_rows=50, teacher=None))
    assert only == [
        {"bins": 0},
        {"bins": 0, "shared": False},
        {"bins": 0, "shared": False, "least_penalty": SMOOTH},
    ]


def test_of_many_classes_more_ngrams_are_one_size_among_others() -> None:
    data = tickets(400, "multiclass")
    alone = tuple(f for f in data.frame.features if f.kind == "text")
    sizes = Linear.sizes(Shape(task="multiclass", n_classes=20, features=alone, n_rows=50, teacher=None))
    assert [size.get("most_ngrams", 0) for size in sizes] == [MOST_NGRAMS, MOST_NGRAMS, 0]
    few, many = (
        make("linear", "multiclass", bins=0, most_ngrams=most).fit(data, data).describe()["ngrams"]
        for most in (40, 0)
    )
    assert all(few[name] < many[name] for name in many)


def test_a_smooth_student_keeps_a_strong_penalty_and_is_as_sure() -> None:
    """Of 3,000 texts a weak penalty has the least loss; the factor of the logits makes up for what a strong one takes from them."""
    data, select, test = (tickets(n, "multiclass", seed) for n, seed in ((3000, 1), (800, 2), (500, 3)))
    penalties, sure = [], []
    for least in (0.0, 1.0):
        student = make("linear", "multiclass", bins=0, shared=False, least_penalty=least).fit(data, select)
        penalties.append(student.penalties_[1])
        sure.append(float(softmax(student.predict_logits(test.frame)).max(axis=1).mean()))
        kept = student.penalties_, student.sharpness_
        student.refit(stack([data, select]))
        assert (student.penalties_, student.sharpness_) == kept
        assert difference(student, special(test.frame.take(np.arange(50)))) < 1e-6
    assert penalties[0] < 1.0 == penalties[1]
    assert abs(sure[0] - sure[1]) < 0.05
