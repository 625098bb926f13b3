"""Several labels a row: losses, metrics, thresholds, and students whose classes are independent."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from pg_distill.errors import InvalidArtifact, InvalidData
from pg_distill.frame import MAX_LABELS, Feature, Frame, Strings, label_sets, members
from pg_distill.measure import decisions, metrics
from pg_distill.onnx_model import derive
from pg_distill.onnx_model.check import check_file
from pg_distill.onnx_model.label_thresholds import THRESHOLDS_KEY, with_thresholds
from pg_distill.onnx_model.signature import Signature, are_thresholds
from pg_distill.onnx_model.teacher import TeacherModel
from pg_distill.onnx_model.text_model import open_model
from pg_distill.students import soft_labels
from pg_distill.students.families import Setup, Shape, load_family
from pg_distill.students.transfer_set import REAL, TransferSet
from pg_distill.teachers.several import read_several, sets_of

K = 4


def answers(n: int = 400, seed: int = 3) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return labels (n, K) and probabilities that tell something of them; the last class is rare."""
    rng = np.random.default_rng(seed)
    own = rng.random((n, K)) < [0.5, 0.3, 0.2, 0.05]
    p = soft_labels.sigmoid(2.0 * own - 1.5 + rng.standard_normal((n, K)))
    return own, p


def test_sets_hold_as_many_labels_as_a_model_may_have() -> None:
    own = np.random.default_rng(0).random((100, MAX_LABELS)) < 0.5
    sets = label_sets(own)
    assert (sets >= 0).all()
    np.testing.assert_array_equal(members(sets, MAX_LABELS), own)
    assert not members(np.array([-1]), 3).any()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_is_that_of_the_loss(temperature: float) -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(6, K)) * 3
    soft, hard = rng.random((6, K)), (rng.random((6, K)) < 0.5).astype(float)
    weights = rng.random(6), rng.random(6)

    def loss(logits: Any) -> tuple[float, Any]:
        return soft_labels.distillation_loss(logits, soft, hard, *weights, temperature, task="multilabel")

    gradient = loss(z)[1]
    for i in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[i] = 1e-5
        assert gradient[i] == pytest.approx(
            (loss(z + step)[0] - loss(z - step)[0]) / 2e-5, rel=1e-5, abs=1e-8
        )
    # Nothing is lost by whoever says what the teacher says.
    same = soft_labels.logits_from_probabilities(soft, task="multilabel") * temperature
    at = soft_labels.distillation_loss(
        same, soft, hard, np.ones(6), np.zeros(6), temperature, task="multilabel"
    )
    assert at[0] == pytest.approx(0.0, abs=1e-4)


def test_metrics_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score, f1_score, log_loss

    own, p = answers()
    w, y = np.random.default_rng(5).random(len(own)), label_sets(own)
    for name, average in (("f1_micro", "micro"), ("f1_macro", "macro")):
        assert metrics.score(name, y, p, w) == pytest.approx(
            f1_score(own, p >= 0.5, average=average, sample_weight=w)
        )
    precisions = [average_precision_score(own[:, k], p[:, k], sample_weight=w) for k in range(K)]
    assert metrics.per_class(y, p, w) == pytest.approx(precisions)
    assert metrics.score("average_precision_macro", y, p, w) == pytest.approx(np.mean(precisions))
    losses = [log_loss(own[:, k], p[:, k], sample_weight=w) for k in range(K)]
    assert -metrics.score("neg_log_loss_labels", y, p, w) == pytest.approx(np.mean(losses))


def test_a_class_that_no_row_has_has_no_precision() -> None:
    own, p = answers()
    own[:, 2] = False
    found = metrics.per_class(label_sets(own), p)
    assert found[2] is None
    assert None not in (*found[:2], found[3])


@pytest.mark.parametrize("metric", ["f1_micro", "f1_macro"])
def test_no_other_thresholds_are_better(metric: str) -> None:
    own, p = answers(2000)
    p = p**2  # too modest by far
    y = label_sets(own)
    found = decisions.best_thresholds(metric, y, p)
    assert found is not None
    best = metrics.score(metric, y, p, threshold=found)
    assert best > metrics.score(metric, y, p)
    # Change each by itself to every value that there is: a sum over classes, whose best are each class's own.
    for k in range(K):
        for t in np.unique(p[:, k])[::3]:
            other = (*found[:k], float(t), *found[k + 1 :])
            assert metrics.score(metric, y, p, threshold=other) <= best + 1e-12


def test_thresholds_stay_where_nothing_is_gained() -> None:
    own, _ = answers()
    assert decisions.best_thresholds("f1_micro", label_sets(own), np.where(own, 0.9, 0.1)) is None


@pytest.mark.parametrize(("low", "high"), [(0.0, 5e-324), (float(np.nextafter(1.0, 0.0)), 1.0)])
def test_thresholds_are_such_as_a_file_may_have(low: float, high: float) -> None:
    own, _ = answers()
    p = np.where(own, 0.9, 0.1)
    p[:, 0] = np.where(own[:, 0], high, low)
    found = decisions.best_thresholds("f1_macro", label_sets(own), p)
    assert found is None or are_thresholds(found, K)


def test_sharpness_brings_back_what_was_made_softer() -> None:
    rng = np.random.default_rng(2)
    z = rng.normal(size=(4000, K)) * 2
    y = label_sets(rng.random(z.shape) < soft_labels.sigmoid(z))
    assert soft_labels.fit_sharpness(z / 3, y, task="multilabel") == pytest.approx(3.0, rel=0.1)


def material(n: int = 600, *, seed: int = 0) -> TransferSet:
    """Return rows of numbers, a category and a vector, with the log-odds of classes that do not exclude each other."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    shop = rng.integers(0, 3, n)
    v = rng.normal(size=(n, 5))
    z = np.column_stack(
        [3 * x[:, 0], 2 * x[:, 1] - 1, 2.0 * (shop == 1) - 1 + x[:, 0], 2 * v[:, 0] + v[:, 1]]
    )
    frame = Frame(
        (Feature("a", "number"), Feature("b", "number"), Feature("c", "number"), Feature("shop", "string"), Feature("v", "vector")),
        {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "shop": Strings.from_values([f"s{i}" for i in shop]), "v": v.astype(np.float32)},
    )  # fmt: skip
    y = label_sets(rng.random(z.shape) < soft_labels.sigmoid(z))
    return TransferSet(frame, z, y, None, np.full(n, REAL, np.uint8))


@pytest.mark.parametrize(
    ("family", "size"),
    [
        ("linear", {"bins": 0}),
        ("linear", {"bins": 16}),
        ("tree", {"leaves": 16}),
        ("boosted", {"rounds": 40, "leaves": 7}),
        ("mlp", {"hidden": [32], "bins": 0}),
    ],
)
def test_a_student_learns_classes_that_do_not_exclude_each_other(family: str, size: dict[str, Any]) -> None:
    data, select, test = material(1500), material(300, seed=1), material(500, seed=2)
    assert test.teacher_logits is not None
    setup = Setup("multilabel", K, temperature=2.0, alpha=1.0, epochs=30)
    student = load_family(family)(setup, **size).fit(data, select, deadline=None)
    p = soft_labels.sigmoid(student.predict_logits(test.frame))
    goal = soft_labels.sigmoid(test.teacher_logits)
    # Halfway from the shares of the classes to the teacher, or better; a softmax could not, whose rows sum to 1.
    constant = np.abs(goal - goal.mean(axis=0)).mean()
    assert np.abs(p - goal).mean() < 0.6 * constant
    assert p.sum(axis=1).max() > 2
    artifact = student.to_onnx()
    model, readers = check_file(artifact)
    classes = ("w", "x", "y", "z")
    signature = derive.derive_signature(
        model, features=test.frame.features, task="multilabel", classes=classes, readers=readers
    )
    assert (signature.task, signature.output.form) == ("multilabel", "probabilities")
    np.testing.assert_allclose(open_model(artifact, signature).run_frame(test.frame), p, atol=1e-5)
    session = ort.InferenceSession(artifact)
    assert [o.name for o in session.get_outputs()] == ["probabilities"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_log_odds_between_0_and_1_are_no_probabilities(nodes: int) -> None:
    layer = [helper.make_node("Gemm", ["in", "w", "b"], ["out"])]
    if nodes == 2:
        layer = [helper.make_node("MatMul", ["in", "w"], ["z"]), helper.make_node("Add", ["z", "b"], ["out"])]
    graph = helper.make_graph(
        layer,
        "small",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 3])],
        [
            helper.make_tensor("w", TensorProto.FLOAT, [1, 3], [0.1, 0.05, 0.1]),
            helper.make_tensor("b", TensorProto.FLOAT, [3], [0.5, 0.4, 0.6]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    frame = Frame((Feature("x", "number"),), {"x": np.random.default_rng(0).uniform(-1, 1, 300)})
    given = {"features": frame.features, "rows": frame, "task": "multilabel", "classes": ["a", "b", "c"]}
    assert derive.derive_signature(model, **given).output.form == "logits"


@pytest.mark.parametrize("kind", ["one_vs_rest", "network"])
def test_what_scikit_learn_exports_is_a_teacher(kind: str) -> None:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neural_network import MLPClassifier

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)).astype(np.float32)
    y = (x @ rng.normal(size=(3, K)) + rng.normal(size=(300, K)) > 0.5).astype(int)
    made = (
        OneVsRestClassifier(LogisticRegression())
        if kind == "one_vs_rest"
        else MLPClassifier((8,), max_iter=3000)
    )
    model = made.fit(x, y)
    opset = {"": 17, "ai.onnx.ml": 3}
    artifact = to_onnx(
        model, x[:1], options={id(model): {"zipmap": False}}, target_opset=opset
    ).SerializeToString()
    names = [f"c{i}" for i in range(3)]
    columns = {name: x[:, i].astype(np.float64) for i, name in enumerate(names)}
    frame = Frame(tuple(Feature(name, "number") for name in names), columns)
    signature = signature_of(artifact, frame)
    p = model.predict_proba(x)
    np.testing.assert_allclose(open_model(artifact, signature).run_frame(frame), p, atol=1e-6)
    np.testing.assert_allclose(
        soft_labels.sigmoid(TeacherModel(artifact, signature, frame).logits(frame)), p, atol=1e-5
    )


def test_first_trees_leave_several_labels_to_others() -> None:
    assert not load_family("first_trees").sizes(Shape("multilabel", 3, (Feature("a", "number"),), 100, b""))


def file_of_labels() -> tuple[bytes, Frame]:
    data = material(300)
    setup = Setup("multilabel", K, epochs=3)
    return load_family("linear")(setup, bins=0).fit(data, data, deadline=None).to_onnx(), data.frame


def signature_of(artifact: bytes, frame: Frame) -> Signature:
    model, readers = check_file(artifact)
    return derive.derive_signature(
        model, features=frame.features, task="multilabel", classes=tuple("wxyz"), readers=readers
    )


def test_thresholds_are_in_the_file() -> None:
    artifact, frame = file_of_labels()
    assert signature_of(artifact, frame).thresholds == ()
    found = signature_of(with_thresholds(artifact, (0.1, 0.2, 1 / 3, 0.9)), frame)
    assert found.thresholds == (0.1, 0.2, 1 / 3, 0.9)
    written = json.loads(json.dumps(found.to_json()))
    assert Signature.from_json(*written).thresholds == found.thresholds
    assert with_thresholds(artifact, 0.3) == artifact  # of two classes: the registry's


def test_thresholds_stay_with_a_file_that_reads_texts() -> None:
    texts = [f"{a} and {b}" for a in ("late", "lost", "broken") for b in ("refund", "invoice", "thanks")] * 30
    frame = Frame((Feature("body", "text"),), {"body": Strings.from_values(texts)})
    own = np.array([["late" in t, "broken" in t, "refund" in t, "invoice" in t] for t in texts])
    data = TransferSet(
        frame, np.where(own, 4.0, -4.0), label_sets(own), None, np.full(len(own), REAL, np.uint8)
    )
    setup = Setup("multilabel", K, epochs=10)
    for family, size in (("linear", {"bins": 0}), ("mlp", {"hidden": [16], "bins": 0})):
        student = load_family(family)(setup, **size).fit(data, data, deadline=None)
        assert ((student.predict_logits(frame) > 0) == own).mean() > 0.99
        artifact = with_thresholds(student.to_onnx(), (0.4, 0.3, 0.2, 0.1))
        signature = signature_of(artifact, frame)
        assert signature.thresholds == (0.4, 0.3, 0.2, 0.1)
        p = open_model(artifact, signature).run_frame(frame)
        np.testing.assert_allclose(p, soft_labels.sigmoid(student.predict_logits(frame)), atol=1e-5)


@pytest.mark.parametrize(
    "broken", ["[0.5]", "[0.1, 0.2, 0.3, 1.5]", "nothing", '[0.1, 0.2, 0.3, "x"]', "[0.1, 0.2, 0.3, NaN]",
     "[" * 100_000]
)  # fmt: skip
def test_broken_thresholds_are_refused(broken: str) -> None:
    artifact, frame = file_of_labels()
    model = onnx.load_from_string(artifact)
    model.metadata_props.add(key=THRESHOLDS_KEY, value=broken)
    with pytest.raises(InvalidArtifact):
        signature_of(model.SerializeToString(), frame)


def test_rows_of_labels_are_read() -> None:
    texts = ['["b", "a"]', "[0.25, 1, 0.5]", '{"c": 0.75, "a": true}', None, "[0, 1, 0]"]
    found = read_several(Strings.from_values(texts), "abc", str)
    np.testing.assert_array_equal(found, [[1, 1, 0], [0.25, 1, 0.5], [1, 0, 0.75], [np.nan] * 3, [0, 1, 0]])
    assert read_several(Strings.from_values(['["b"]', "[]"]), "abc", str).tolist() == [[0, 1, 0], [0, 0, 0]]
    with pytest.raises(InvalidData):  # a row of probabilities without any is no row without classes
        read_several(Strings.from_values(["[0.25, 1, 0.5]", "[]"]), "abc", str)
    sets = sets_of(Strings.from_values(['["b", "a"]', None, "[]"]), "abc")
    assert sets.tolist() == [3, -1, 0]


@pytest.mark.parametrize(
    "bad",
    ['["d"]', '["a", "a"]', '["a", null]', "[0.1, 0.2]", "[0.1, 0.2, 1.5]", "[0.1, 0.2, -0.1]", '[0.1, "NaN", 0.2]',
     '"a"', "0.5", '{"d": 0.1}', '{"a": 2}', '{"a": null}', '{"a": "x"}', '[["a"], ["b"]]', "[true, false]",
     "[" * 5000 + "]" * 5000, "[" + "9" * 5000 + "]"],
)  # fmt: skip
def test_what_is_no_row_of_labels_is_refused(bad: str) -> None:
    with pytest.raises(InvalidData):
        read_several(Strings.from_values(['["a"]', bad]), "abc", str)


def test_names_that_look_alike_stay_apart() -> None:
    assert read_several(Strings.from_values(['["1.0"]', "[]"]), ("1", "2"), str).tolist() == [[1, 0], [0, 0]]
    with pytest.raises(InvalidData):
        read_several(Strings.from_values(['["01"]', '["1"]']), ("1", "2"), str)


@pytest.mark.parametrize("label", [['["a"]', '["a"]'], ["[]", "[]"], ["[0.5, 0, 1]", "[]"]])
def test_labels_that_teach_nothing_are_refused(label: list[str]) -> None:
    with pytest.raises(InvalidData):
        sets_of(Strings.from_values(label), "abc")
