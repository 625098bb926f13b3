"""Networks and boosted trees read texts as numbers: graph and numpy agree, nothing is read off a row's own targets, and blends share readers."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from pg_distill.errors import FeatureNotSupported
from pg_distill.frame import Frame, Strings, Task
from pg_distill.onnx_model.cut import cut_texts
from pg_distill.onnx_model.texts import TEXT_KEY
from pg_distill.onnx_model.tokens import Bags
from pg_distill.students import text_numbers
from pg_distill.students.blend import Blend
from pg_distill.students.families import Shape, load_family
from pg_distill.students.objective import resolve_targets
from pg_distill.students.soft_labels import softmax
from pg_distill.students.text_numbers import TOPICS, TextNumbers
from pg_distill.students.transfer_set import TransferSet
from student_rows import CLASSES, TASKS, difference, make, run
from text_rows import EVERYTHING, special, tickets

pytestmark = pytest.mark.slow


def learn(data: TransferSet, task: Task) -> TextNumbers:
    goal = resolve_targets(make("mlp", task), data)
    return TextNumbers.learn(data.frame, goal, task, CLASSES[task])


FAMILIES: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [16], "epochs": 2},
    "boosted": {"rounds": 10, "leaves": 8},
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("columns", [("body",), EVERYTHING])
@pytest.mark.parametrize("family", FAMILIES)
def test_graph_and_numpy_agree(task: Task, columns: tuple[str, ...], family: str) -> None:
    student = make(family, task, **FAMILIES[family])
    data, select = tickets(300, task, columns=columns), tickets(100, task, 1, columns=columns)
    student.fit(data, select, deadline=None)
    student.calibrate(select)
    assert difference(student, special(tickets(60, task, 2, columns=columns).frame)) < 1e-5
    student.refit(data, deadline=None)
    assert difference(student, special(tickets(60, task, 2, columns=columns).frame)) < 1e-5
    if columns == ("body",):
        assert set(student.describe()["ngrams"]) == {"body"}
    with pytest.raises(FeatureNotSupported):
        student.to_sql()


def test_the_deadline_ends_the_fits_and_what_is_had_by_then_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tickets(200, "multiclass", 71)
    goal = resolve_targets(make("mlp", "multiclass"), data)
    fits: list[float] = []
    fit = text_numbers._fit

    def count(*given: Any) -> Any:
        fits.append(given[2])
        return fit(*given)

    monkeypatch.setattr(text_numbers, "_fit", count)
    late = time.monotonic() - 1.0
    found = TextNumbers.learn(data.frame, goal, "multiclass", CLASSES["multiclass"], deadline=late)
    assert fits == [text_numbers.PENALTIES[0]] * text_numbers.FOLDS * len(data.frame.text_names)
    assert found.width > 0
    assert np.isfinite(found.transform(data.frame, training=True)).all()


@pytest.mark.parametrize(("family", "task"), [*(("mlp", task) for task in TASKS), ("boosted", "binary")])
def test_it_learns_texts_and_other_columns_together(family: str, task: Task) -> None:
    def score(columns: tuple[str, ...]) -> float:
        data, select, test = (
            tickets(n, task, seed, columns=columns) for n, seed in ((2000, 0), (300, 1), (800, 2))
        )
        student = make(family, task, alpha=1.0).fit(data, select, deadline=None)
        found, truth = student.predict_logits(test.frame), test.teacher_logits
        assert truth is not None
        if task == "regression":
            return float(1 - np.mean((found - truth) ** 2) / np.var(truth))
        return float(np.mean(found.argmax(axis=1) == truth.argmax(axis=1)))

    together = score(EVERYTHING)
    assert together > (0.82 if task == "binary" else 0.70)
    assert together > score(("title", "body")) + 0.02
    assert together > score(("shop", "x")) + 0.02


def test_the_same_rows_give_the_same_bytes_with_or_without_what_was_remembered() -> None:
    from pg_distill.students import text_numbers

    files = []
    for clear in (True, False, True):
        if clear:
            text_numbers._learn_anew.cache_clear()
        student = make("mlp", "binary", hidden=[16], epochs=2)
        files.append(student.fit(tickets(300, "binary"), tickets(100, "binary", 1), deadline=None).to_onnx())
    assert files[0] == files[1] == files[2]
    assert set(student.describe()["ngrams"]) == {"body", "title"}


def test_students_that_train_at_once_learn_the_numbers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tickets(150, "binary", 77, columns=("body",))
    learned: list[int] = []
    fit_scores = text_numbers._fit_scores

    def slowly(*given: Any) -> Any:
        learned.append(threading.get_ident())
        time.sleep(0.3)
        return fit_scores(*given)

    monkeypatch.setattr(text_numbers, "_fit_scores", slowly)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: learn(data, "binary"), range(3)))
    assert len(learned) == 1
    assert found[0].learned == found[1].learned == found[2].learned
    # One that fails leaves nobody waiting.
    monkeypatch.setattr(text_numbers, "_fit_scores", lambda *given: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            learn(tickets(150, "binary", 78, columns=("body",)), "binary")
    assert not text_numbers._LOCKS


def test_few_folds_choose_the_penalty_where_they_have_texts_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text still has a score of a fit without it, and as good a one."""
    scores = {}
    for judges in (10**9, 60):
        monkeypatch.setattr(text_numbers, "JUDGES", judges)
        text_numbers._learn_anew.cache_clear()
        data = tickets(600, "binary", 79, columns=("body",))
        numbers = learn(data, "binary").transform(data.frame, training=True)[:, 0]
        assert data.teacher_logits is not None
        truth = data.teacher_logits[:, 1] - data.teacher_logits[:, 0]
        assert (numbers != 0).mean() > 0.8  # some are NULL or empty
        scores[judges] = np.corrcoef(numbers, truth)[0, 1]
    assert min(scores.values()) > 0.3  # targets have noise
    assert abs(scores[60] - scores[10**9]) < 0.05


def test_what_is_served_reads_the_same_numbers_to_the_last_bit() -> None:
    data = tickets(400, "multiclass", columns=("body",))
    numbers = learn(data, "multiclass")
    student = make("mlp", "multiclass", hidden=[8], epochs=1)
    student.fit(data, tickets(50, "multiclass", 1, columns=("body",)), deadline=None)
    served, readers = cut_texts(student.to_onnx())
    assert [reader.width for reader in readers] == [numbers.width]
    assert {i.name for i in onnx.ModelProto.FromString(served).graph.input} == {readers[0].target}
    frame = special(tickets(60, "multiclass", 2, columns=("body",)).frame)
    np.testing.assert_array_equal(readers[0].numbers(frame.strings("body")), numbers.transform(frame))
    one = [readers[0].read(text) for text in frame.strings("body").to_objects()]
    np.testing.assert_array_equal(np.array(one, np.float32), numbers.transform(frame))


def test_targets_that_are_noise_cannot_be_read_off_a_row() -> None:
    data = tickets(400, "binary", columns=("body",))
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 300, 20)) for _ in range(400)]
    noise = rng.normal(size=400)
    frame = Frame(data.frame.features, {"body": Strings.from_values(texts)})
    data = TransferSet(frame, np.column_stack([-noise, noise]), None, None, data.source)
    numbers = learn(data, "binary")
    own = numbers.transform(frame)[:, 0]
    assert abs(np.corrcoef(own, noise)[0, 1]) > 0.5
    left_out = numbers.transform(frame, training=True)[:, 0]
    assert left_out.std() == 0 or np.corrcoef(left_out, noise)[0, 1] < 0.2


@pytest.mark.parametrize("body", [[None] * 50, [""] * 50, [f"w{i}" for i in range(50)], ["same"] * 50])
def test_texts_that_say_nothing(body: list[str | None]) -> None:
    data = tickets(50, "binary", columns=("x", "body"))
    frame = Frame(data.frame.features, {**data.frame.columns, "body": Strings.from_values(body)})
    data = replace(data, frame=frame)
    student = make("mlp", "binary", hidden=[8], epochs=1).fit(data, data, deadline=None)
    assert difference(student, frame) < 1e-5


def test_rows_that_are_repeated_teach_the_same_numbers() -> None:
    data = tickets(200, "binary")
    often = data.take(np.tile(np.arange(200), 3))
    first, second = learn(data, "binary"), learn(often, "binary")
    rows = first.transform(data.frame, training=True)
    np.testing.assert_allclose(rows, second.transform(data.frame, training=True), atol=1e-4)
    np.testing.assert_array_equal(
        second.transform(often.frame, training=True),
        np.tile(second.transform(data.frame, training=True), (3, 1)),
    )


def test_rows_without_a_target_take_no_part() -> None:
    data = tickets(300, "binary")
    assert data.teacher_logits is not None and data.y is not None
    logits, y = data.teacher_logits.copy(), data.y.copy()
    logits[100:], y[100:] = np.nan, -1
    student = make("mlp", "binary", hidden=[8], epochs=1)
    student.fit(replace(data, teacher_logits=logits, y=y), tickets(50, "binary", 1), deadline=None)
    assert difference(student, data.frame) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prototype_is_as_wide_as_what_is_trained(family: str) -> None:
    data = tickets(600, "multiclass")
    student = make(family, "multiclass", **FAMILIES[family])
    _, readers = cut_texts(student.prototype(data))
    assert [reader.width for reader in readers] == [4 + TOPICS, 4 + TOPICS]
    _, trained = cut_texts(student.fit(data, tickets(100, "multiclass", 1), deadline=None).to_onnx())
    assert [r.width for r in trained] == [4 + TOPICS, 4 + TOPICS]
    shape = Shape("multiclass", 4, tuple(f for f in data.frame.features if f.kind == "text"), 1000)
    assert {size["bins"] for size in load_family("mlp").sizes(shape)} == {0}
    assert load_family(family).sizes(shape)


def test_networks_of_a_blend_share_what_reads_the_texts() -> None:
    data, select = tickets(400, "multiclass"), tickets(100, "multiclass", 1)
    parts = [
        make("mlp", "multiclass", hidden=[8], epochs=1).fit(data, select, deadline=None),
        make("mlp", "multiclass", hidden=[8], epochs=1, seed=43).fit(data, select, deadline=None),
        make("linear", "multiclass", bins=0, epochs=2).fit(data, select),
    ]
    blend = Blend(parts, [0.5, 0.3, 0.2], task="multiclass", n_classes=4)
    file = blend.to_onnx(data.frame)
    assert np.abs(run(file, data.frame) - softmax(blend.predict_logits(data.frame))).max() < 1e-5
    properties = {p.key: p.value for p in onnx.ModelProto.FromString(file).metadata_props}
    assert (
        len(json.loads(properties[TEXT_KEY])["readers"]) == 4
    )  # two columns, for the networks and for the linear part


def test_the_last_bag_is_that_of_a_negative_row() -> None:
    bags = Bags.of([[1, 2], [3], [4, 5, 6]])
    taken = bags.take(np.array([-1, 0, -1]))
    assert [taken.ids[taken.rows == i].tolist() for i in range(3)] == [[4, 5, 6], [1, 2], [4, 5, 6]]
