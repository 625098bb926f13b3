from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from models import EXPORTERS, Exported
from pg_distill.errors import FeatureNotSupported, InvalidData
from pg_distill.frame import Feature, FloatArray, Frame, Strings, Task
from pg_distill.onnx_model.session import open_session
from pg_distill.students.boosted import Boosted
from pg_distill.students.columns import Columns
from pg_distill.students.ensemble import floor_float32
from pg_distill.students.families import Setup, Shape
from pg_distill.students.first_trees import FirstTrees, _read_onnx
from pg_distill.students.mlp import Mlp
from pg_distill.students.soft_labels import logits_from_probabilities
from pg_distill.students.transfer_set import TransferSet
from pg_distill.students.tree import Tree
from student_rows import (
    CLASSES,
    FEATURES,
    PLACES,
    TASKS,
    difference,
    edge_rows,
    make,
    rows,
    run,
    transfer,
    truth,
)


def test_rounding_down_keeps_every_comparison_of_float32() -> None:
    rng = np.random.default_rng(0)
    thresholds = np.concatenate([rng.normal(size=1000), [1e300, -1e300, 1e-50, -1e-50, 0.0, 3.4e38]])
    rounded = floor_float32(thresholds)
    with np.errstate(over="ignore"):
        above = np.nextafter(rounded, np.float32(np.inf))
    for x in (rounded, above):
        np.testing.assert_array_equal(x.astype(np.float64) <= thresholds, x <= rounded)


def test_categories_are_in_the_order_of_their_means() -> None:
    frame = rows(4000, nulls=False)
    target = truth(frame, "regression")
    columns = Columns.fit(frame, target, np.ones(len(frame)))
    matrix = columns.matrix(frame)[:, columns.n_numbers]
    codes = frame.strings("place").codes
    means = np.array([target[codes == i].mean() for i in range(len(PLACES))])
    places = np.array([matrix[codes == i][0] for i in range(len(PLACES))])
    assert places[np.argsort(means)].tolist() == sorted(places.tolist())
    assert 0.0 not in places  # that is OTHER's


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_graph_and_lightgbm_agree_on_every_kind_of_row(task: Task, temperature: float) -> None:
    student = make("boosted", task, temperature=temperature, rounds=30, leaves=16)
    student.fit(transfer(3000, task), transfer(500, task, 1))
    assert difference(student, edge_rows(rows(2000, 2))) < 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_boosting_learns_from_soft_labels_alone(task: Task) -> None:
    student = make("boosted", task, alpha=1.0, rounds=60, leaves=16)
    student.fit(transfer(4000, task, labels=False), transfer(500, task, 1, labels=False))
    test = transfer(1000, task, 2)
    logits = student.predict_logits(test.frame)
    assert test.teacher_logits is not None
    if task == "regression":
        residual = np.mean((logits - test.teacher_logits) ** 2) / np.var(test.teacher_logits)
        assert residual < 0.05
    else:
        assert np.mean(logits.argmax(axis=1) == test.teacher_logits.argmax(axis=1)) > 0.9


def test_the_control_ignores_rows_without_a_label() -> None:
    labelled, unlabelled = transfer(500, "binary"), transfer(500, "binary", 5)
    assert unlabelled.y is not None and labelled.y is not None and labelled.teacher_logits is not None
    both = TransferSet(
        Frame.concat([labelled.frame, unlabelled.frame]),
        np.concatenate([labelled.teacher_logits, -np.asarray(unlabelled.teacher_logits)]),
        np.concatenate([labelled.y, np.full(500, -1)]),
        None,
        np.zeros(1000, np.uint8),
    )
    select = transfer(200, "binary", 1)
    one = make("boosted", "binary", alpha=0.0, rounds=10, leaves=8).fit(labelled, select)
    two = make("boosted", "binary", alpha=0.0, rounds=10, leaves=8).fit(both, select)
    assert one.to_onnx() == two.to_onnx()


def test_boosting_stops_when_select_no_longer_improves() -> None:
    data, select = transfer(300, "binary"), transfer(300, "binary", 1)
    student = make("boosted", "binary", alpha=0.0, rounds=200, leaves=16).fit(data, select)
    assert 0 < len(student.ensemble_) < 100


def test_few_rows_are_boosted_with_and_without_a_penalty() -> None:
    data, select, test = (transfer(600, "binary", seed) for seed in (0, 1, 2))
    student = make("boosted", "binary", alpha=0.0, rounds=40, leaves=16).fit(data, select)
    assert student.describe()["regularised"]  # labels drawn from soft probabilities are noise enough
    assert difference(student, edge_rows(test.frame)) < 1e-4
    assert student.refit(data).describe()["regularised"]
    again = make("boosted", "binary", alpha=0.0, rounds=40, leaves=16).fit(data, select)
    assert again.refit(data).to_onnx() == student.to_onnx()


def test_rows_without_any_target_are_an_error() -> None:
    data = transfer(50, "binary")
    blank = TransferSet(data.frame, None, np.full(50, -1), None, data.source)
    with pytest.raises(InvalidData):
        make("boosted", "binary", alpha=0.0).fit(blank, blank)


def test_sizes_stay_within_what_a_class_count_allows() -> None:
    shape = Shape("multiclass", 100, FEATURES, 1000)
    assert Boosted.sizes(shape)
    assert all(s["rounds"] * 100 <= 2600 for s in Boosted.sizes(shape))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("nulls", [True, False])
def test_one_tree_is_the_same_in_the_graph(task: Task, nulls: bool) -> None:
    student = make("tree", task, leaves=64)
    student.fit(transfer(3000, task, nulls=nulls), transfer(500, task, 1, nulls=nulls))
    assert difference(student, edge_rows(rows(2000, 2))) < 1e-6
    assert 8 < student.ensemble_.n_leaves <= 64


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_one_tree_splits_as_sklearn_does(task: Task) -> None:
    """Few distinct values, so that both see every threshold: equal trees, up to ties, have equal errors."""
    from sklearn.tree import DecisionTreeRegressor

    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, (2000, 4)).astype(float)
    names = [f"x{i}" for i in range(4)]
    frame = Frame(tuple(Feature(n, "number") for n in names), dict(zip(names, x.T, strict=True)))
    score = np.sin(x[:, 0]) + 0.1 * x[:, 1] * (x[:, 2] > 7) + 0.3 * rng.normal(size=2000)
    y: Any = score if task == "regression" else (score > 0.5).astype(np.int64)
    data = TransferSet(frame, None, y, None, np.zeros(2000, np.uint8))
    nobody = TransferSet(frame, None, None, None, data.source)
    student = make("tree", task, alpha=0.0, leaves=16).fit(data, nobody)
    reference = DecisionTreeRegressor(max_leaf_nodes=16, min_samples_leaf=20, random_state=0).fit(x, y)
    leaves = student.ensemble_.leaves(student.columns_.matrix(frame))[:, 0]
    means = {leaf: y[leaves == leaf].mean() for leaf in np.unique(leaves)}
    own = np.mean((np.array([means[leaf] for leaf in leaves]) - y) ** 2)
    assert own == pytest.approx(np.mean((reference.predict(x) - y) ** 2), rel=1e-9)


def test_a_tree_is_cut_back_where_select_says_so() -> None:
    rng = np.random.default_rng(0)
    noise = transfer(2000, "binary", 1)
    data = TransferSet(noise.frame, None, rng.integers(0, 2, 2000), None, noise.source)
    select = TransferSet(noise.frame, None, rng.integers(0, 2, 2000), None, noise.source)
    assert make("tree", "binary", alpha=0.0, leaves=128).fit(data, select).ensemble_.n_leaves < 10


def raw_scores(exported: Exported, whole: Any) -> tuple[FloatArray, FloatArray]:
    """Return what the teacher's own leaf values add up to in our trees, and in ONNX Runtime."""
    model = onnx.load_from_string(exported.artifact)
    node = next(n for n in model.graph.node if n.op_type.startswith("TreeEnsemble"))
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    prefix = "class" if node.op_type.endswith("Classifier") else "target"
    written = sorted(set(given[f"{prefix}_ids"]))
    order = {
        p: i for i, p in enumerate(sorted(zip(given["nodes_treeids"], given["nodes_nodeids"], strict=True)))
    }
    values = np.zeros((len(order), len(written)))
    keys = zip(given[f"{prefix}_treeids"], given[f"{prefix}_nodeids"], given[f"{prefix}_ids"], strict=True)
    for (tree, leaf, k), weight in zip(keys, given[f"{prefix}_weights"], strict=True):
        values[order[tree, leaf], written.index(k)] += weight
    for attribute in node.attribute:
        if attribute.name == "post_transform":
            attribute.s = b"NONE"
        if attribute.name == "base_values":
            attribute.floats[:] = [0.0] * len(attribute.floats)
    scores = node.output[-1]
    element = onnx.TensorProto.FLOAT
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(scores, element, None))
    rng = np.random.default_rng(0)
    cuts = whole.threshold[whole.feature >= 0]
    near = np.concatenate(
        [cuts, np.nextafter(cuts, np.float32(np.inf)), np.nextafter(cuts, np.float32(-np.inf))]
    )
    special = np.array([np.inf, -np.inf, np.nan, 0.0], np.float32)
    x = exported.frame.numbers().astype(np.float32)
    x = np.concatenate([x, rng.choice(near, x.shape), rng.choice(special, x.shape)])
    if not whole.missing_left.any():
        x = x[~np.isnan(x).any(axis=1)]
    keep = [n for n in model.graph.node if scores in n.output or n.output[0] == node.input[0]]
    del model.graph.node[:]
    model.graph.node.extend(keep)
    session = open_session(model.SerializeToString())
    theirs = np.asarray(session.run([scores], {session.get_inputs()[0].name: x})[0], np.float64)
    leaves = whole.leaves(x)
    return values[leaves].sum(axis=1), theirs[:, -values.shape[1] :] if len(written) < 2 else theirs


TREE_TEACHERS = [
    "LightGBM, no ZipMap",
    "LightGBM, 3 classes",
    "LightGBM, regression",
    "sklearn random forest, 3 classes",
    "sklearn random forest, regression",
    "sklearn gradient boosting, regression",
    "XGBoost, 3 classes",
    "XGBoost, regression",
]


def tree_teacher(name: str) -> Exported:
    """Return a teacher of trees; XGBoost is in the extra frameworks, which not every machine has."""
    if name.startswith("XGBoost"):
        pytest.importorskip("xgboost")
    return EXPORTERS[name]()


@pytest.mark.parametrize("name", TREE_TEACHERS)
def test_a_teachers_trees_are_read_as_onnx_runtime_reads_them(name: str) -> None:
    exported = tree_teacher(name)
    n_classes = max(1, len(exported.classes))
    whole = _read_onnx(exported.artifact, exported.task, n_classes, len(exported.frame.features))
    assert whole is not None
    ours, theirs = raw_scores(exported, whole)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("name", TREE_TEACHERS)
def test_first_trees_follow_their_teacher(name: str) -> None:
    exported = tree_teacher(name)
    n_classes = max(1, len(exported.classes))
    shape = Shape(exported.task, n_classes, exported.frame.features, 400, exported.artifact)
    sizes = FirstTrees.sizes(shape)
    assert sizes
    soft = (
        exported.expected if exported.task == "regression" else logits_from_probabilities(exported.expected)
    )
    data = TransferSet(exported.frame, soft, None, None, np.zeros(len(soft), np.uint8))
    student = FirstTrees(Setup(exported.task, n_classes, teacher=exported.artifact), **sizes[-1])
    prototype = student.prototype(data)
    student.fit(data, data)
    assert difference(student, edge_rows(exported.frame)) < 1e-5
    found = student.predict_logits(exported.frame)
    if exported.task == "regression":
        assert np.corrcoef(found[:, 0], soft[:, 0])[0, 1] > 0.9
    else:
        assert np.mean(found.argmax(axis=1) == soft.argmax(axis=1)) > 0.85
    assert prototype is not None
    shapes = [run(artifact, exported.frame).shape for artifact in (prototype, student.to_onnx())]
    assert shapes[0] == shapes[1] == found.shape


def test_other_teachers_have_no_first_trees() -> None:
    exported = EXPORTERS["sklearn MLP"]()
    shape = Shape(exported.task, 2, exported.frame.features, 400, exported.artifact)
    assert FirstTrees.sizes(shape) == []
    assert FirstTrees.sizes(Shape("binary", 2, FEATURES, 400, exported.artifact)) == []
    assert FirstTrees.sizes(Shape("binary", 2, FEATURES, 400, None)) == []
    data = transfer(100, "binary")
    with pytest.raises(FeatureNotSupported):
        FirstTrees(Setup("binary", 2, teacher=exported.artifact)).fit(data, data, deadline=None)


@pytest.mark.parametrize("family", ["tree", "boosted"])
@pytest.mark.parametrize("task", TASKS)
def test_ten_rows_and_one_class(family: str, task: Task) -> None:
    data = transfer(10, task)
    student = make(family, task, alpha=0.0).fit(data, data)
    assert np.isfinite(run(student.to_onnx(), data.frame)).all()
    same: Any = np.full(10, 3.0) if task == "regression" else np.zeros(10, np.int64)
    data = TransferSet(data.frame, None, same, None, data.source)
    student = make(family, task, alpha=0.0).fit(data, data)
    found = run(student.to_onnx(), data.frame)
    assert found.shape == (10, CLASSES[task])
    assert (found[:, 0] > (2.9 if task == "regression" else 0.5)).all()


@pytest.mark.parametrize("family", ["linear", "tree", "boosted"])
def test_a_deadline_that_has_passed_still_gives_a_student(family: str) -> None:
    data = transfer(500, "multiclass")
    student = make(family, "multiclass").fit(data, data, deadline=0.0)
    assert difference(student, data.frame) < 1e-5


def test_sizes_for_sql_are_few_trees_of_many_leaves() -> None:
    two, many = (Shape(task, k, FEATURES, 1000) for task, k in (("binary", 2), ("multiclass", 26)))
    usual, for_sql = Boosted.sizes(two), Boosted.sql_sizes(two)
    assert for_sql
    assert all(size not in usual for size in for_sql)
    most = max(size["rounds"] for size in for_sql)
    assert max(s["leaves"] for s in for_sql) > max(s["leaves"] for s in usual if s["rounds"] <= 2 * most)
    assert not Boosted.sql_sizes(many)  # a tree a class and round
    assert max(s["leaves"] for s in Tree.sql_sizes(two)) > max(s["leaves"] for s in Tree.sizes(two))
    with_text = Shape("binary", 2, (*FEATURES, Feature("body", "text")), 1000)
    assert not any(family.sql_sizes(with_text) for family in (Boosted, Mlp))
    assert Tree.sql_sizes(with_text)  # it reads none
    widths = [{sum(s["hidden"]) for s in Mlp.sql_sizes(shape)} for shape in (two, many)]
    assert max(widths[0] - {128}) > max(widths[1] - {128})  # outputs take what units do


def test_sizes_of_a_tree_grow() -> None:
    sizes = [s["leaves"] for s in Tree.sizes(Shape("binary", 2, FEATURES, 1000))]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("family", ["tree", "boosted"])
def test_labels_are_not_read_off_rare_categories(family: str) -> None:
    rng = np.random.default_rng(0)
    features = (Feature("x", "number"), Feature("id", "string"))
    words = tuple(f"w{i}" for i in range(800))

    def drawn(n: int, *, known: bool) -> TransferSet:
        x, codes = rng.normal(size=n), rng.integers(0, 800, n).astype(np.int32)
        y = (x + rng.logistic(size=n) > 0).astype(np.int64)
        columns: dict[str, Any] = {"x": x, "id": Strings(codes, words)}
        frame = Frame(features, columns) if known else Frame(features[:1], {"x": x})
        return TransferSet(frame, None, y, None, np.zeros(n, np.uint8))

    def accuracy(*, known: bool) -> float:
        data, select, test = (drawn(n, known=known) for n in (3000, 800, 4000))
        student = make(family, "binary", alpha=0.0).fit(data, select)
        return float((student.predict_logits(test.frame).argmax(1) == test.y).mean())

    # A column of 800 categories that say nothing costs no more than noise does.
    assert accuracy(known=True) > accuracy(known=False) - 0.02
