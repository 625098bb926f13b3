"""ONNX files of the field's exporters are understood, and hostile ones refused by the right class."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pg_distill.errors import (
    DatatypeMismatch,
    FeatureNotSupported,
    InvalidArtifact,
    InvalidData,
    InvalidParameter,
    LimitExceeded,
    NullNotAllowed,
    PgDistillError,
)
from pg_distill.frame import Feature, Frame, Strings, Task
from pg_distill.onnx_model.approve import approve
from pg_distill.onnx_model.check import STUDENT_KEY, check
from pg_distill.onnx_model.derive import derive_signature
from pg_distill.onnx_model.limits import DEFAULT_LIMITS, Limits
from pg_distill.onnx_model.session import Model
from pg_distill.onnx_model.signature import Signature
from pg_distill.onnx_model.teacher import TeacherModel, tree_thresholds
from pg_distill.onnx_model.trial import trial_run

FLOAT = TensorProto.FLOAT
MB = 1 << 20


def parse(text: str, **initializers: Any) -> onnx.ModelProto:
    """Return a graph in ONNX's own notation."""
    model: onnx.ModelProto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>\n{text}'
    )
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in initializers.items())
    return model


def base() -> onnx.ModelProto:
    """Return a harmless binary classifier of two numbers."""
    return parse(
        "g (float[N,2] x) => (float[N,2] y) { h = Gemm(x, w)\n y = Softmax(h) }",
        w=np.array([[1.0, -1.0], [0.5, 0.25]], np.float32),
    )


# -- the field's exporters


# libsvm decides by votes, and its probabilities are fitted beside them: some label is not the most probable class.
DECIDES_OTHERWISE = ("sklearn SVC", "sklearn SVC, 3 classes")


@pytest.fixture(
    params=[
        # PyTorch takes seconds to import.
        pytest.param(name, marks=[pytest.mark.slow] * ("PyTorch" in name))
        for name in models.EXPORTERS
        if name not in DECIDES_OTHERWISE
    ]
)
def exported(request: pytest.FixtureRequest) -> models.Exported:
    for library in ("lightgbm", "xgboost", "catboost", "torch", "sklearn"):
        if request.param.lower().startswith(library) or (library == "torch" and "PyTorch" in request.param):
            pytest.importorskip(library)
    return models.exported(request.param)


def declared_task(exported: models.Exported) -> Task | None:
    """Return the task where a graph leaves it open: one number a row without a label, from a network."""
    model = onnx.ModelProto.FromString(exported.artifact)
    last = model.graph.node[-1].op_type
    is_open = model.producer_name == "pytorch" and last == "Gemm" and len(model.graph.node[-1].output) == 1
    return exported.task if is_open else None


def test_an_export_predicts_as_its_framework(exported: models.Exported) -> None:
    model = check(exported.artifact)
    task = declared_task(exported)
    signature = derive_signature(
        model,
        features=exported.frame.features,
        rows=exported.frame,
        task=task if task != "multiclass" else None,
    )
    assert (signature.task, signature.classes) == (exported.task, exported.classes)
    scale = max(1.0, float(np.std(exported.expected)))
    served = Model(exported.artifact, signature)
    predicted = served.run_frame(exported.frame)
    np.testing.assert_allclose(predicted, exported.expected, rtol=0, atol=1e-5 * scale)
    for i in range(3):
        row: dict[str, Any] = {}
        for feature in exported.frame.features:
            if feature.kind == "string":
                strings = exported.frame.strings(feature.name)
                row[feature.name] = strings.categories[strings.codes[i]]
            else:
                value = float(exported.frame.number(feature.name)[i])
                row[feature.name] = None if np.isnan(value) else value
        np.testing.assert_allclose(served.run_row(row), predicted[i], atol=1e-6 * scale)
        if signature.is_numeric:
            np.testing.assert_allclose(
                served.run_numbers(list(row.values())), predicted[i], atol=1e-6 * scale
            )
    # onnxruntime adds trees up in another order for other numbers of rows.
    tried = trial_run(exported.artifact, signature, exported.frame.take(np.arange(50)))
    np.testing.assert_allclose(tried, predicted[:50], atol=1e-6 * scale)
    inputs, outputs = json.loads(json.dumps(signature.to_json()))
    assert Signature.from_json(inputs, outputs) == replace(signature, cost=None)


def test_the_logits_of_an_export_give_its_probabilities(exported: models.Exported) -> None:
    model = check(exported.artifact)
    signature = derive_signature(
        model, features=exported.frame.features, rows=exported.frame, task=declared_task(exported)
    )
    teacher = TeacherModel(exported.artifact, signature, exported.frame)
    logits = teacher.logits(exported.frame)
    if exported.task == "regression":
        assert teacher.logits_source == "values"
        np.testing.assert_allclose(
            logits, exported.expected, atol=1e-5 * max(1.0, float(np.std(exported.expected)))
        )
        return
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(exp / exp.sum(axis=1, keepdims=True), exported.expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("sklearn logistic", "graph"),
        ("sklearn logistic, 3 classes", "graph"),
        ("sklearn MLP", "graph"),
        ("sklearn gradient boosting, 3 classes", "graph"),
        ("sklearn pipeline, logistic", "graph"),
        ("LightGBM", "graph"),
        ("LightGBM, no ZipMap", "graph"),
        ("XGBoost, 3 classes", "graph"),
        ("CatBoost", "graph"),
        pytest.param("PyTorch MLP, sigmoid", "graph", marks=pytest.mark.slow),
        pytest.param("PyTorch MLP, log-softmax", "graph", marks=pytest.mark.slow),
        ("sklearn random forest", "log-probabilities"),
        ("sklearn extra trees", "log-probabilities"),
        ("sklearn calibrated tree", "log-probabilities"),
        ("sklearn voting", "log-probabilities"),
        ("sklearn ridge", "values"),
    ],
)
def test_where_logits_come_from(name: str, source: str) -> None:
    if name.split()[0].rstrip(",").lower() in ("xgboost", "catboost"):
        pytest.importorskip(name.split()[0].rstrip(",").lower())
    if name.startswith("PyTorch"):
        pytest.importorskip("torch")
    exported = models.exported(name)
    signature = derive_signature(check(exported.artifact), rows=exported.frame)
    assert TeacherModel(exported.artifact, signature, exported.frame).logits_source == source


def test_the_logits_of_boosted_trees_are_their_raw_scores() -> None:
    from lightgbm import LGBMClassifier
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    values = models.numbers()
    fitted = LGBMClassifier(n_estimators=20, num_leaves=7, verbose=-1, n_jobs=1)
    with models.quiet():
        fitted.fit(values, models.targets(values, "binary"))
        proto = convert_lightgbm(fitted, initial_types=[("x", FloatTensorType([None, 6]))], target_opset=15)
        raw = fitted.predict(values, raw_score=True)
    artifact = proto.SerializeToString()
    frame = models.number_frame(values)
    logits = TeacherModel(artifact, derive_signature(check(artifact), rows=frame), frame).logits(frame)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], raw, atol=1e-5)


def test_thresholds_are_those_of_the_trees() -> None:
    from skl2onnx import to_onnx
    from sklearn.tree import DecisionTreeClassifier

    values = models.numbers()
    with models.quiet():
        tree = DecisionTreeClassifier(max_depth=4, random_state=0).fit(
            values, models.targets(values, "binary")
        )
        proto = to_onnx(tree, values[:1].astype(np.float32), target_opset=17)
    found = tree_thresholds(check(proto.SerializeToString()))
    inner = tree.tree_.feature >= 0
    for feature in range(values.shape[1]):
        expected = np.unique(tree.tree_.threshold[inner & (tree.tree_.feature == feature)])
        np.testing.assert_allclose(found.get(feature, np.zeros(0)), expected, rtol=1e-6)
    assert tree_thresholds(check(models.exported("sklearn pipeline, forest").artifact)) == {}
    assert tree_thresholds(check(models.exported("sklearn logistic").artifact)) == {}


def test_nearest_neighbours_are_refused_for_their_loop() -> None:
    with pytest.raises(FeatureNotSupported, match="Scan"):
        check(models.sklearn_nearest_neighbours().artifact)


# -- features and inputs


def test_features_are_found_by_name_by_position_and_by_kind() -> None:
    exported = models.exported("sklearn pipeline, logistic")
    model = check(exported.artifact)
    names = [i.name for i in model.graph.input]

    def order(features: list[Feature]) -> list[str]:
        signature = derive_signature(model, features=features)
        return [signature.features[spec.features[0]].name for spec in signature.inputs]

    given = list(exported.frame.features)
    assert order(given[::-1]) == names
    renamed = [Feature(f"c{i}", f.kind) for i, f in enumerate(given)]
    assert order(renamed) == [f.name for f in renamed]
    by_kind = sorted(renamed, key=lambda f: f.kind == "string")
    found = order(by_kind)
    assert [n for n in found if n in ("c1", "c4")] == ["c1", "c4"]
    assert [n for n in found if n not in ("c1", "c4")] == ["c0", "c2", "c3"]
    with pytest.raises(InvalidData, match="not in its place"):
        derive_signature(model, features=[Feature("weight", "number"), *renamed[1:]])
    with pytest.raises(InvalidData, match="takes 5 features, not 4"):
        derive_signature(model, features=given[:4])
    with pytest.raises(DatatypeMismatch):
        derive_signature(model, features=[replace(f, kind="number") for f in given])
    with pytest.raises(InvalidParameter):
        derive_signature(model, features=[*given[:4], given[0]])
    assert derive_signature(model).names == tuple(names)


def test_features_of_one_tensor_have_numbers_for_names() -> None:
    assert derive_signature(base()).names == ("f0", "f1")
    with pytest.raises(DatatypeMismatch, match='"b"'):
        derive_signature(base(), features=[Feature("a", "number"), Feature("b", "string")])


def test_a_student_is_known_by_its_metadata() -> None:
    model = parse(
        """g (float[N,2] numbers, string[N,1] strings) => (float[N,3] probabilities) {
            code = ai.onnx.ml.LabelEncoder<keys_strings=["a"], values_floats=[1.0],
            default_float=0.0>(strings) all = Concat<axis=1>(numbers, code) clean = Where(nan, zero, all)
            nan = IsNaN(all) probabilities = Softmax(clean)
        }""".replace(
            "clean = Where(nan, zero, all)\n            nan = IsNaN(all)",
            "nan = IsNaN(all)\n            clean = Where(nan, zero, all)",
        ),
        zero=np.zeros((), np.float32),
    )
    helper.set_model_props(model, {STUDENT_KEY: "{}"})
    features = [Feature("s", "string"), Feature("a", "integer"), Feature("b", "boolean")]
    signature = derive_signature(check(model.SerializeToString()), features=features, classes=["x", "y", "z"])
    assert [i.features for i in signature.inputs] == [(1, 2), (0,)]
    assert [f.null for f in signature.features] == ["string", "nan", "nan"]
    assert signature.classes == ("x", "y", "z")


@pytest.mark.parametrize(
    ("declared", "error"),
    [
        ("float[N,2,2] x", FeatureNotSupported),
        ("float[8,2] x", FeatureNotSupported),
        ("float16[N,2] x", FeatureNotSupported),
        ("uint8[N,2] x", FeatureNotSupported),
        ("float[N,D] x", InvalidData),
        ("seq(float[N]) x", FeatureNotSupported),
    ],
)
def test_other_inputs_are_refused(declared: str, error: type[PgDistillError]) -> None:
    model = parse(f"g ({declared}) => (float[N,2] y) {{ y = Identity(x) }}")
    with pytest.raises(error):
        derive_signature(model)


def test_a_width_left_open_is_the_callers() -> None:
    model = parse(
        "g (float[N,D] x) => (float[N,2] y) { h = MatMul(x, w)\n y = Softmax(h) }",
        w=np.eye(2, dtype=np.float32),
    )
    features = [Feature("a", "number"), Feature("b", "number")]
    assert derive_signature(model, features=features).names == ("a", "b")
    with pytest.raises(InvalidData):
        derive_signature(model, features=features[:1])


# -- NULL


def test_null_has_an_encoding_where_the_model_has_an_answer() -> None:
    def nulls(name: str) -> list[str]:
        exported = models.exported(name)
        return [f.null for f in derive_signature(check(exported.artifact), rows=exported.frame).features]

    assert set(nulls("sklearn logistic")) == {"error"}
    assert set(nulls("LightGBM")) == {"nan"}
    assert nulls("sklearn pipeline, logistic") == ["nan", "empty", "nan", "error", "empty"]


def test_rows_with_null_are_refused_by_a_model_without_an_encoding() -> None:
    exported = models.exported("sklearn logistic")
    columns = dict(exported.frame.columns)
    columns["x2"] = np.where(np.arange(len(exported.frame)) == 7, np.nan, exported.frame.number("x2"))
    rows = Frame(exported.frame.features, columns)
    with pytest.raises(NullNotAllowed, match='"x2"'):
        trial_run(exported.artifact, derive_signature(check(exported.artifact), rows=exported.frame), rows)


# -- tasks, outputs and classes


def test_one_number_from_a_network_is_ambiguous() -> None:
    model = parse("g (float[N,2] x) => (float[N,1] y) { y = MatMul(x, w) }", w=np.ones((2, 1), np.float32))
    with pytest.raises(InvalidParameter) as caught:
        derive_signature(model)
    assert "task" in str(caught.value.hint)
    assert derive_signature(model, task="regression").output.form == "value"
    assert derive_signature(model, task="binary").output.form == "logits"
    assert derive_signature(model, classes=["a", "b"]).classes == ("a", "b")


@pytest.mark.parametrize(
    ("graph", "arguments", "error"),
    [
        ("y = Softmax(x)", {"task": "regression"}, FeatureNotSupported),
        ("y = Softmax(x)", {"classes": ["a", "b", "c"]}, InvalidParameter),
        ("y = Softmax(x)", {"classes": ["a", "a"]}, InvalidParameter),
        ("y = Sigmoid(x)", {}, FeatureNotSupported),
        ("y = ReduceSum(x)", {}, InvalidData),
        ("y = Log(minus)", {}, InvalidData),
        ("y = Transpose(x)", {}, FeatureNotSupported),
    ],
)
def test_outputs_that_fit_no_task(graph: str, arguments: dict[str, Any], error: type[PgDistillError]) -> None:
    model = parse(
        f"g (float[N,2] x) => (float[N,2] y) {{ minus = Add(x, far)\n {graph} }}",
        far=np.float32(-1e9).reshape(()),
    )
    with pytest.raises(error):
        derive_signature(model, **arguments)


def test_classes_must_be_those_of_the_graph_in_its_order() -> None:
    model = check(models.exported("sklearn logistic, text classes").artifact)
    assert derive_signature(model, classes=["a", "b", "c"]).classes == ("a", "b", "c")
    with pytest.raises(InvalidParameter, match="order"):
        derive_signature(model, classes=["c", "b", "a"])
    assert derive_signature(model, classes=["x", "y", "z"]).classes == ("x", "y", "z")
    with pytest.raises(InvalidParameter):
        derive_signature(model, task="binary")
    with pytest.raises(InvalidParameter):
        derive_signature(model, task="regression")


def test_a_label_alone_is_a_certain_probability() -> None:
    model = parse("g (float[N,2] x) => (int64[N] y) { y = ArgMax<axis=1, keepdims=0>(x) }")
    with pytest.raises(InvalidParameter, match="classes"):
        derive_signature(model)
    signature = derive_signature(model, classes=["0", "1"])
    assert signature.output.form == "label"
    assert TeacherModel(model.SerializeToString(), signature).logits_source == "log-probabilities"


MIXING = {
    "its mean": "m = ReduceMean<axes=[0]>(x)\n h = Sub(x, m)\n y = Softmax(h)",
    "its greatest": "m = ReduceMax<axes=[0]>(x)\n h = Div(x, m)\n y = Softmax(h)",
    "softmax over rows": "h = Softmax<axis=0>(x)\n y = Softmax(h)",
    "sums so far": "a = Constant<value_int=0>()\n h = CumSum(x, a)\n y = Softmax(h)",
    "one scale of all": "q, s, z = DynamicQuantizeLinear(x)\n h = DequantizeLinear(q, s, z)\n y = Softmax(h)",
    "attention over rows": "t = Transpose(x)\n a = MatMul(x, t)\n w = Softmax(a)\n h = MatMul(w, x)\n y = Softmax(h)",
    "batch normalisation in training mode": "h, u, v = BatchNormalization<training_mode=1>(x, c, c, c, c)\n y = Softmax(h)",
}


@pytest.mark.parametrize("name", MIXING)
def test_a_graph_that_mixes_rows_is_refused(name: str) -> None:
    model = parse(f"g (float[N,2] x) => (float[N,2] y) {{ {MIXING[name]} }}", c=np.ones(2, np.float32))
    rows = models.number_frame(models.numbers(columns=2))
    with pytest.raises(
        (InvalidData, FeatureNotSupported)
    ) as caught:  # by its answers, or an operator by its rule
        approve(model.SerializeToString(), rows=rows)
    assert "other rows" in str(caught.value) or caught.type is FeatureNotSupported


def test_a_quantised_network_is_refused_and_one_row_at_a_time_is_not() -> None:
    for batch in ("N", "1"):
        model = parse(
            f"g (float[{batch},2] x) => (float[{batch},2] y) {{ {MIXING['one scale of all']} }}",
        )
        rows = models.number_frame(models.numbers(columns=2))
        artifact = model.SerializeToString()
        signature = derive_signature(check(artifact), rows=rows)
        if batch == "1":
            assert len(trial_run(artifact, signature, rows)) == len(rows)
        else:
            with pytest.raises(InvalidData, match="other rows"):
                trial_run(artifact, signature, rows)


LABELS = {
    "the farthest": ("d = Softmax(x)\n l = ArgMin<axis=1, keepdims=0>(x)", False),
    "the nearest": ("n = Neg(x)\n d = Softmax(n)\n l = ArgMin<axis=1, keepdims=0>(x)", True),
    "a threshold": (
        "d = Softmax(x)\n i = Constant<value_ints=[1]>()\n p = Gather<axis=1>(d, i)\n s = Squeeze(p, i)\n"
        " t = Constant<value_float=0.3>()\n g = Greater(s, t)\n l = Cast<to=7>(g)",
        False,
    ),
    "half": (
        "d = Softmax(x)\n i = Constant<value_ints=[1]>()\n p = Gather<axis=1>(d, i)\n s = Squeeze(p, i)\n"
        " t = Constant<value_float=0.5>()\n g = Greater(s, t)\n l = Cast<to=7>(g)",
        True,
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_must_be_the_most_probable_classes(name: str) -> None:
    body, agrees = LABELS[name]
    model = check(parse(f"g (float[N,2] x) => (int64[N] l, float[N,2] d) {{ {body} }}").SerializeToString())
    rows = models.number_frame(models.numbers(columns=2))
    if agrees:
        assert derive_signature(model, rows=rows).classes == ("0", "1")
    else:
        with pytest.raises(InvalidData, match="most probable"):
            derive_signature(model, rows=rows)


def test_labels_may_be_cut_elsewhere_than_in_the_middle() -> None:
    body, _ = LABELS["a threshold"]
    model = check(parse(f"g (float[N,2] x) => (int64[N] l, float[N,2] d) {{ {body} }}").SerializeToString())
    rows = models.number_frame(models.numbers(columns=2))
    assert derive_signature(model, rows=rows, class_threshold=0.3).classes == ("0", "1")
    for other in (0.25, 0.5):
        with pytest.raises(InvalidData, match="class_threshold"):
            derive_signature(model, rows=rows, class_threshold=other)


@pytest.mark.parametrize("name", DECIDES_OTHERWISE)
def test_an_export_that_decides_by_votes_is_refused(name: str) -> None:
    exported = models.exported(name)
    with pytest.raises(InvalidData, match="most probable"):
        derive_signature(check(exported.artifact), rows=exported.frame)


# -- hostile input


def external(name: str = "w", location: str = "/etc/passwd") -> TensorProto:
    tensor = TensorProto(name=name, data_type=FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def external_initializer(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].CopyFrom(external())


def external_without_the_flag(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].external_data.add(key="location", value="*/_ORT_MEM_ADDR_/*")


def external_constant(m: onnx.ModelProto) -> None:
    m.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=external()))


def external_tensor_list(m: onnx.ModelProto) -> None:
    m.graph.node[0].attribute.add(name="extra", type=onnx.AttributeProto.TENSORS).tensors.append(external())


def external_sparse_attribute(m: onnx.ModelProto) -> None:
    attribute = m.graph.node[0].attribute.add(name="extra", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(external())


def external_sparse_initializer(m: onnx.ModelProto) -> None:
    m.graph.sparse_initializer.add().indices.CopyFrom(external())


def external_in_a_subgraph(m: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], initializer=[external()])
    m.graph.node[0].attribute.append(helper.make_attribute("then_branch", inner))


def external_in_a_list_of_graphs(m: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], initializer=[external()])
    m.graph.node[0].attribute.append(helper.make_attribute("branches", [inner]))


def subgraph(m: onnx.ModelProto) -> None:
    """On an operator that is known: the graph itself is refused, whatever holds it."""
    inner = helper.make_graph([helper.make_node("Identity", ["h"], ["i"])], "inner", [], [])
    m.graph.node[0].attribute.append(helper.make_attribute("body", inner))


def list_of_subgraphs(m: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Identity", ["h"], ["i"])], "inner", [], [])
    m.graph.node[0].attribute.append(helper.make_attribute("bodies", [inner]))


def external_in_a_function(m: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=external())
    m.functions.append(helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 17)]))


def external_in_training(m: onnx.ModelProto) -> None:
    m.training_info.add().initialization.initializer.append(external())


def local_function(m: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["a"], ["b"])
    m.functions.append(
        helper.make_function("", "Softmax", ["a"], ["b"], [node], [helper.make_opsetid("", 17)])
    )


def custom_domain(m: onnx.ModelProto) -> None:
    m.graph.node[0].domain = "my.company"
    m.opset_import.add(domain="my.company", version=1)


def microsoft_domain(m: onnx.ModelProto) -> None:
    m.graph.node[0].domain = "com.microsoft"


def reference_attribute(m: onnx.ModelProto) -> None:
    m.graph.node[0].attribute.add(name="alpha", ref_attr_name="x", type=onnx.AttributeProto.FLOAT)


def operator(name: str) -> Callable[[onnx.ModelProto], None]:
    def mutate(m: onnx.ModelProto) -> None:
        m.graph.node[0].op_type = name

    mutate.__name__ = f"operator {name}"
    return mutate


def unknown_field(m: onnx.ModelProto) -> None:
    m.graph.MergeFromString(b"\xfa\x7f\x03abc")  # field 2047


def negative_dimension(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].dims[0] = -2


def declared_but_not_held(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].dims[0] = 3


def declared_huge(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]


def wrong_type(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].data_type = 99


def wrong_field(m: onnx.ModelProto) -> None:
    tensor = m.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.int64_data.extend([1, 2, 3, 4])


def segment(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].segment.begin = 1


def constant_bomb(m: onnx.ModelProto) -> None:
    m.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape"))
    m.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["bomb"]))


def expand_bomb(m: onnx.ModelProto) -> None:
    m.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape"))
    m.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    m.graph.node.insert(0, helper.make_node("Expand", ["one", "shape"], ["bomb"]))


def nodes(*added: onnx.NodeProto) -> Callable[[onnx.ModelProto], None]:
    def mutate(m: onnx.ModelProto) -> None:
        for position, node in enumerate(added):
            m.graph.node.insert(position, node)

    mutate.__name__ = f"size by features: {added[-1].op_type}"
    return mutate


TO_INT = helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64)
COUNTED = [
    helper.make_node("NonZero", ["x"], ["found"]),
    helper.make_node("Shape", ["found"], ["count"]),
    helper.make_node("ConstantOfShape", ["count"], ["bomb"]),
]


def unsorted(m: onnx.ModelProto) -> None:
    first = onnx.NodeProto()
    first.CopyFrom(m.graph.node[0])
    del m.graph.node[0]
    m.graph.node.append(first)


def given_twice(m: onnx.ModelProto) -> None:
    m.graph.node.append(helper.make_node("Relu", ["h"], ["y"]))


def unknown_output(m: onnx.ModelProto) -> None:
    m.graph.output[0].name = "elsewhere"


def not_utf8(m: onnx.ModelProto) -> None:
    m.graph.MergeFromString(b"\x12\x02\xff\xfe")  # GraphProto.name


def unknown_attribute(m: onnx.ModelProto) -> None:
    m.graph.node[0].attribute.append(helper.make_attribute("gamma", 1.0))


def attribute_of_a_wrong_type(m: onnx.ModelProto) -> None:
    m.graph.node[0].attribute.append(helper.make_attribute("alpha", [1.0]))


def attribute_twice(m: onnx.ModelProto) -> None:
    m.graph.node[0].attribute.extend([helper.make_attribute("alpha", 1.0)] * 2)


def attribute_missing(m: onnx.ModelProto) -> None:
    m.graph.node.insert(0, helper.make_node("Cast", ["x"], ["z"]))


def too_many_inputs(m: onnx.ModelProto) -> None:
    m.graph.node[0].input.extend(["w", "w"])


def empty_input(m: onnx.ModelProto) -> None:
    m.graph.node[0].input[0] = ""


def two_versions(m: onnx.ModelProto) -> None:
    m.opset_import.add(domain="ai.onnx", version=12)


def version_of_the_future(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = 1 << 60


def domain_not_imported(m: onnx.ModelProto) -> None:
    m.opset_import[0].domain = "ai.onnx.training"


def stride_of_zero(m: onnx.ModelProto) -> None:
    m.graph.node.insert(0, helper.make_node("MaxPool", ["x"], ["z"], kernel_shape=[1], strides=[0]))


def no_graph(m: onnx.ModelProto) -> None:
    m.ClearField("graph")


def no_operator_set(m: onnx.ModelProto) -> None:
    m.ClearField("opset_import")


def no_inputs(m: onnx.ModelProto) -> None:
    m.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 2), np.float32), "x"))


HOSTILE: list[tuple[Callable[[onnx.ModelProto], None], type[PgDistillError]]] = [
    (external_initializer, FeatureNotSupported),
    (external_without_the_flag, FeatureNotSupported),
    (external_constant, FeatureNotSupported),
    (external_tensor_list, FeatureNotSupported),
    (external_sparse_attribute, FeatureNotSupported),
    (external_sparse_initializer, FeatureNotSupported),
    (external_in_a_subgraph, FeatureNotSupported),
    (external_in_a_list_of_graphs, FeatureNotSupported),
    (subgraph, FeatureNotSupported),
    (list_of_subgraphs, FeatureNotSupported),
    (external_in_a_function, FeatureNotSupported),
    (external_in_training, FeatureNotSupported),
    (local_function, FeatureNotSupported),
    (custom_domain, FeatureNotSupported),
    (microsoft_domain, FeatureNotSupported),
    (reference_attribute, FeatureNotSupported),
    (operator("If"), FeatureNotSupported),
    (operator("Loop"), FeatureNotSupported),
    (operator("Scan"), FeatureNotSupported),
    (operator("RandomNormalLike"), FeatureNotSupported),
    (operator("Multinomial"), FeatureNotSupported),
    (operator("StringSplit"), FeatureNotSupported),
    (operator("NoSuchOperator"), FeatureNotSupported),
    (unknown_field, FeatureNotSupported),
    (segment, FeatureNotSupported),
    (negative_dimension, InvalidArtifact),
    (declared_but_not_held, InvalidArtifact),
    (declared_huge, InvalidArtifact),
    (wrong_type, InvalidArtifact),
    (wrong_field, InvalidArtifact),
    (unsorted, InvalidArtifact),
    (unknown_output, InvalidArtifact),
    (not_utf8, InvalidArtifact),
    (unknown_attribute, InvalidArtifact),
    (attribute_of_a_wrong_type, InvalidArtifact),
    (attribute_twice, InvalidArtifact),
    (attribute_missing, InvalidArtifact),
    (too_many_inputs, InvalidArtifact),
    (empty_input, InvalidArtifact),
    (two_versions, InvalidArtifact),
    (version_of_the_future, FeatureNotSupported),
    (domain_not_imported, InvalidArtifact),
    (stride_of_zero, InvalidArtifact),
    (given_twice, InvalidArtifact),
    (no_graph, InvalidArtifact),
    (no_operator_set, InvalidArtifact),
    (no_inputs, InvalidArtifact),
]


@pytest.mark.parametrize(("mutate", "error"), HOSTILE, ids=[f.__name__ for f, _ in HOSTILE])
def test_a_hostile_graph_is_refused(
    mutate: Callable[[onnx.ModelProto], None], error: type[PgDistillError]
) -> None:
    model = base()
    check(model.SerializeToString())
    mutate(model)
    with pytest.raises(PgDistillError) as caught:
        check(model.SerializeToString())
    assert type(caught.value) is error


SIZED: list[tuple[Callable[[onnx.ModelProto], None], type[PgDistillError]]] = [
    (constant_bomb, LimitExceeded),
    (expand_bomb, LimitExceeded),
    (nodes(TO_INT, helper.make_node("ConstantOfShape", ["i"], ["bomb"])), FeatureNotSupported),
    (nodes(TO_INT, helper.make_node("Tile", ["x", "i"], ["bomb"])), FeatureNotSupported),
    (nodes(TO_INT, helper.make_node("Expand", ["x", "i"], ["bomb"])), FeatureNotSupported),
    (nodes(TO_INT, helper.make_node("Pad", ["x", "i"], ["bomb"])), FeatureNotSupported),
    (nodes(TO_INT, helper.make_node("Range", ["w", "i", "w"], ["bomb"])), FeatureNotSupported),
    (nodes(TO_INT, helper.make_node("OneHot", ["w", "i", "w"], ["bomb"])), FeatureNotSupported),
    (nodes(*COUNTED), FeatureNotSupported),
    (nodes(helper.make_node("NonZero", ["x"], ["found"])), FeatureNotSupported),
    (
        nodes(
            TO_INT,
            helper.make_node("ReduceMax", ["i"], ["n"]),
            helper.make_node("TopK", ["x", "n"], ["a", "b"]),
        ),
        FeatureNotSupported,
    ),
]


@pytest.mark.parametrize(("mutate", "error"), SIZED, ids=[f.__name__ for f, _ in SIZED])
def test_a_size_that_depends_on_values_is_refused(
    mutate: Callable[[onnx.ModelProto], None], error: type[PgDistillError]
) -> None:
    model = base()
    approved = approve(model.SerializeToString()).signature
    mutate(model)
    for signature in (None, approved):  # registered, and stored by somebody
        with pytest.raises(PgDistillError) as caught:
            approve(model.SerializeToString(), signature)
        assert type(caught.value) is error


@pytest.mark.parametrize(
    "artifact",
    [
        b"",
        b"\x00",
        b"PK\x03\x04",
        b"not a model",
        b"ORTM" * 8,
        b"\xff" * 100,
        b"\x3a" * 64,
        b"\x00\x00\x00\x00ORTM",
    ],
)
def test_what_is_not_onnx_is_refused(artifact: bytes) -> None:
    with pytest.raises(InvalidArtifact):
        check(artifact)


def test_limits() -> None:
    artifact = base().SerializeToString()
    forest = models.exported("sklearn random forest").artifact
    for limits, given in (
        (Limits(artifact_bytes=len(artifact) - 1), artifact),
        (Limits(nodes=1), artifact),
        (Limits(initializer_bytes=15), artifact),
        (Limits(tree_nodes=10), forest),
        (Limits(tree_depth=2), forest),
        (Limits(classes=1), forest),
    ):
        check(given)
        with pytest.raises(LimitExceeded):
            check(given, limits)


# A forest of two stumps on features 0 and 1, as every exporter writes it.
FOREST: dict[str, Any] = {
    "nodes_treeids": [0, 0, 0, 1, 1, 1],
    "nodes_nodeids": [0, 1, 2, 0, 1, 2],
    "nodes_featureids": [0, 0, 0, 1, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"] * 2,
    "nodes_values": [0.5, 0.0, 0.0, -1.0, 0.0, 0.0],
    "nodes_truenodeids": [1, 0, 0, 1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0, 2, 0, 0],
    "target_treeids": [0, 0, 1, 1],
    "target_nodeids": [1, 2, 1, 2],
    "target_ids": [0, 0, 0, 0],
    "target_weights": [1.0, 2.0, 4.0, 8.0],
    "n_targets": 1,
}


def forest(**changes: Any) -> onnx.ModelProto:
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", **{**FOREST, **changes}
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [None, 2])],
        [helper.make_tensor_value_info("y", FLOAT, [None, 1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)


def test_a_forest_is_accepted() -> None:
    model = check(forest().SerializeToString())
    signature = derive_signature(model)
    served = Model(model.SerializeToString(), signature)
    np.testing.assert_array_equal(served.run_array(np.array([[0.0, 0.0], [1.0, -2.0]])), [[9.0], [6.0]])
    assert {k: v.tolist() for k, v in tree_thresholds(model).items()} == {0: [0.5], 1: [-1.0]}


# x in {1, 2, 3}, as exporters write it: a chain of equalities, whose true branches meet in one leaf.
CHAIN: dict[str, Any] = {
    "nodes_treeids": [0] * 5,
    "nodes_nodeids": [0, 1, 2, 3, 4],
    "nodes_featureids": [0] * 5,
    "nodes_modes": ["BRANCH_EQ"] * 3 + ["LEAF"] * 2,
    "nodes_values": [1.0, 2.0, 3.0, 0.0, 0.0],
    "nodes_truenodeids": [4, 4, 4, 0, 0],
    "nodes_falsenodeids": [1, 2, 3, 0, 0],
    "target_treeids": [0, 0],
    "target_nodeids": [3, 4],
    "target_ids": [0, 0],
    "target_weights": [10.0, 20.0],
}


def test_a_subtree_that_several_nodes_share_is_no_cycle() -> None:
    model = check(forest(**CHAIN).SerializeToString())
    served = Model(model.SerializeToString(), derive_signature(model))
    found = served.run_array(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]]))
    np.testing.assert_array_equal(found.reshape(-1), [10.0, 20.0, 20.0, 20.0, 10.0])


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes_truenodeids": [4, 4, 0, 0, 0]},  # back to the root
        {"nodes_truenodeids": [4, 4, 1, 0, 0]},  # back to a node on the way
        {"nodes_falsenodeids": [2, 2, 3, 0, 0]},  # a node that none reaches
        {"nodes_falsenodeids": [2, 1, 3, 0, 0]},  # a cycle that none reaches
    ],
    ids=str,
)
def test_a_cycle_among_shared_nodes_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArtifact):
        check(forest(**(CHAIN | changes)).SerializeToString())


def test_sharing_is_bounded_in_time() -> None:
    # A ladder of 400 rungs, each of which shares the next: 2**400 ways from the root, 400 steps.
    count = 400
    ladder = {
        "nodes_treeids": [0] * (count + 1),
        "nodes_nodeids": list(range(count + 1)),
        "nodes_featureids": [0] * (count + 1),
        "nodes_modes": ["BRANCH_EQ"] * count + ["LEAF"],
        "nodes_values": [float(i) for i in range(count + 1)],
        "nodes_truenodeids": [*range(1, count + 1), 0],
        "nodes_falsenodeids": [*range(1, count + 1), 0],
        "target_treeids": [0],
        "target_nodeids": [count],
        "target_ids": [0],
        "target_weights": [1.0],
    }
    check(forest(**ladder).SerializeToString())


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes_truenodeids": [0, 0, 0, 1, 0, 0]},  # a node is its own child
        {"nodes_falsenodeids": [1, 0, 0, 2, 0, 0]},  # one child twice, one node that none reaches
        {"nodes_truenodeids": [7, 0, 0, 1, 0, 0]},  # no such node
        {"nodes_truenodeids": [-1, 0, 0, 1, 0, 0]},
        {"nodes_nodeids": [0, 1, 1, 0, 1, 2]},  # two nodes of one id
        {"nodes_treeids": [0, 1, 0, 1, 1, 1]},  # a tree in pieces
        {"nodes_treeids": [0, 0, 0, 1, 1]},  # another length
        {"nodes_values": [0.5]},
        {"nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"]},
        {"nodes_modes": ["BRANCH_X", "LEAF", "LEAF"] * 2},
        {"nodes_featureids": [-1, 0, 0, 1, 0, 0]},
        {"nodes_hitrates": [1.0]},
        {"target_nodeids": [0, 2, 1, 2]},  # a weight on a branch
        {"target_nodeids": [1, 2, 1, 9]},
        {"target_ids": [0, 0, 0, 1]},
        {"target_ids": [0, 0, 0, -1]},
        {"target_weights": [1.0]},
        {"n_targets": 0},
        {"base_values": [1.0, 2.0, 3.0]},
    ],
    ids=str,
)
def test_what_is_no_forest_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArtifact):
        check(forest(**changes).SerializeToString())


@pytest.mark.parametrize("behind", [False, True])
def test_a_feature_beyond_the_row_is_refused(behind: bool) -> None:
    # Older releases of onnxruntime read the memory after the row. Behind another operator only a run tells.
    model = forest(nodes_featureids=[2, 0, 0, 1, 0, 0])
    if behind:
        model.graph.node[0].input[0] = "h"
        model.graph.node.insert(0, helper.make_node("Relu", ["x"], ["h"]))
        model.opset_import.add(domain="", version=17)
    with pytest.raises(InvalidArtifact, match="feature 2 of 2"):
        derive_signature(check(model.SerializeToString()))


@pytest.mark.parametrize(
    "changes", [{"coefficients": [1.0] * 4}, {"intercepts": [1.0]}, {"classlabels_ints": [0, 1, 2, 3]}]
)
def test_coefficients_that_fit_no_classes_are_refused(changes: dict[str, Any]) -> None:
    given: dict[str, Any] = {
        "coefficients": [1.0] * 6,
        "intercepts": [0.0] * 3,
        "classlabels_ints": [0, 1, 2],
    }
    model = base()
    del model.graph.node[:]
    model.graph.node.append(
        helper.make_node("LinearClassifier", ["x"], ["l", "y"], domain="ai.onnx.ml", **given)
    )
    check(model.SerializeToString())
    model.graph.node[0].CopyFrom(
        helper.make_node("LinearClassifier", ["x"], ["l", "y"], domain="ai.onnx.ml", **(given | changes))
    )
    with pytest.raises(InvalidArtifact):
        check(model.SerializeToString())
    # As many as there are classes, but not as there are features: known once the width is.
    model.graph.node[0].CopyFrom(
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["l", "y"],
            domain="ai.onnx.ml",
            **(given | {"coefficients": [1.0] * 3}),
        )
    )
    with pytest.raises(InvalidArtifact, match="coefficients"):
        derive_signature(check(model.SerializeToString()))


@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_a_division_that_ends_the_process_is_refused(operator: str) -> None:
    # -2**63 / -1 raises SIGFPE in onnxruntime 1.32, x / 0 did in 1.24.
    text = f"g (int64[N,1] x) => (float[N,1] y) {{ q = {operator}(x, d)\n y = Cast<to=1>(q) }}"
    for divisor in ([2], [-2]):
        model = parse(text, d=np.array(divisor, np.int64))
        assert derive_signature(check(model.SerializeToString()), task="regression")
    for divisor in ([0], [-1]):
        model = parse(text, d=np.array(divisor, np.int64))
        with pytest.raises(FeatureNotSupported, match="divides"):
            derive_signature(check(model.SerializeToString()), task="regression")
    model = parse(text.replace(", d", ", x"))
    with pytest.raises(FeatureNotSupported, match="divides"):
        derive_signature(check(model.SerializeToString()), task="regression")


@pytest.mark.parametrize(
    "changes",
    [
        {"classlabels_ints": [0]},  # onnxruntime aborts: it reads a second label
        {"classlabels_ints": []},
        {"kernel_params": [1.0]},
        {"support_vectors": [1.0] * 3},
        {"vectors_per_class": [1, -1]},
        {"vectors_per_class": [2]},  # older releases of onnxruntime abort
        {"rho": [0.1, 0.2]},
        {"coefficients": [1.0]},
        {"prob_a": [1.0, 2.0]},
    ],
    ids=str,
)
def test_a_support_vector_machine_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    given: dict[str, Any] = {
        "classlabels_ints": [0, 1],
        "coefficients": [1.0, -1.0],
        "kernel_params": [1.0, 0.0, 3.0],
        "kernel_type": "RBF",
        "rho": [0.1],
        "support_vectors": [1.0, 0.0, 0.0, 1.0],
        "vectors_per_class": [1, 1],
    }

    def artifact(**attributes: Any) -> bytes:
        model = base()
        del model.graph.node[:]
        model.graph.node.append(
            helper.make_node("SVMClassifier", ["x"], ["l", "y"], domain="ai.onnx.ml", **attributes)
        )
        return bytes(model.SerializeToString())

    check(artifact(**given))
    attributes = {name: value for name, value in (given | changes).items() if value != []}
    with pytest.raises(InvalidArtifact):
        check(artifact(**attributes))


@pytest.mark.parametrize("name", ["sklearn pipeline, forest", "sklearn logistic", "LightGBM, 3 classes"])
def test_truncated_bytes_always_give_an_error_of_ours(name: str) -> None:
    artifact = models.exported(name).artifact
    whole = onnx.ModelProto.FromString(artifact)
    tried = 0
    for length in range(0, len(artifact), 97):
        tried += 1
        with pytest.raises(PgDistillError) as caught:
            derive_signature(check(artifact[:length]))
        assert caught.value.sqlstate in ("22P03", "0A000", "22000", "54000", "22023")
    assert tried == -(-len(artifact) // 97)
    assert derive_signature(whole)


# -- bombs: what only shows when it runs


def freed_memory() -> bytes:
    """Use 150 MB and free them, but for the last: a hole that others may fill unseen, as long as that is kept."""
    return [b"x" * 100_000 for _ in range(1500)][-1]


def test_the_memory_of_a_run_is_bounded_by_what_it_takes() -> None:
    rows = models.number_frame(models.numbers(columns=2))
    # Every doubling is harmless to the rules; 2**12 columns and those before them are 48 kB a row, and are added up.
    doubling = "\n".join(f"d{i + 1} = Concat<axis=1>(d{i}, d{i})" for i in range(12))
    model = parse(
        f"g (float[N,2] x) => (float[N,1] y) {{ d0 = Identity(x)\n {doubling}\n y = ReduceSum(d12, axes) }}",
        axes=np.array([1], np.int64),
    )
    artifact = model.SerializeToString()
    signature = derive_signature(check(artifact), task="regression", rows=rows.take(np.arange(4)))
    # On a busy machine batches must not stop growing for their time.
    limits = replace(DEFAULT_LIMITS, run_bytes=16 * MB, run_seconds=60.0)
    assert signature.cost is not None
    modest = replace(signature, cost=replace(signature.cost, row_bytes=signature.cost.row_bytes // 5))
    for _ in range(5):
        kept = freed_memory()
        assert len(trial_run(artifact, signature, rows, limits)) == len(rows)  # as few rows at once as fit
        with pytest.raises(LimitExceeded, match="bytes for"):
            trial_run(artifact, modest, rows, limits)
        del kept


def test_the_time_of_a_run_is_bounded() -> None:
    rows = models.number_frame(models.numbers(columns=2))
    slow = "\n".join(f"s{i + 1} = MatMul(s{i}, w)" for i in range(8))
    model = parse(
        f"g (float[N,2] x) => (float[N,1] y) {{ s0 = MatMul(x, a)\n {slow}\n y = ReduceSum(s8, axes) }}",
        a=np.ones((2, 700), np.float32),
        w=np.full((700, 700), 1 / 700, np.float32),
        axes=np.array([1], np.int64),
    )
    artifact = model.SerializeToString()
    signature = derive_signature(check(artifact), task="regression", rows=rows.take(np.arange(4)))
    trial_run(artifact, signature, rows.take(np.arange(4)))
    with pytest.raises(LimitExceeded, match="takes over"):
        # Long enough for the watchdog, whatever else the machine does.
        trial_run(artifact, signature, rows, replace(DEFAULT_LIMITS, run_seconds=1e-4))


def test_rows_that_give_no_number_are_named() -> None:
    model = parse("g (float[N,1] x) => (float[N,1] y) { y = Log(x) }")
    artifact = model.SerializeToString()
    rows = models.number_frame(np.array([[1.0], [2.0], [-1.0]]))
    signature = derive_signature(check(artifact), task="regression", rows=rows)
    with pytest.raises(InvalidData, match="row 3"):
        trial_run(artifact, signature, rows)


def test_no_rows_are_too_few() -> None:
    rows = models.number_frame(np.zeros((0, 2)))
    with pytest.raises(InvalidData):
        derive_signature(base(), rows=rows)


def test_unseen_and_null_strings_are_served() -> None:
    exported = models.exported("sklearn pipeline, boosting")
    signature = derive_signature(check(exported.artifact), rows=exported.frame)
    served = Model(exported.artifact, signature)
    row: dict[str, Any] = {"amount": 0.5, "city": "Rome", "weight": None, "visits": 3, "device": "desk"}
    known = served.run_row(row)
    assert not np.array_equal(known, served.run_row(row | {"city": "Atlantis"}))
    np.testing.assert_array_equal(
        served.run_row(row | {"city": "Atlantis"}), served.run_row(row | {"city": None})
    )
    frame = Frame(
        exported.frame.features,
        {
            k: (
                Strings.from_values([v])
                if isinstance(v, str)
                else np.array([np.nan if v is None else float(v)])
            )
            for k, v in row.items()
        },
    )
    np.testing.assert_array_equal(served.run_frame(frame)[0], known)


@pytest.mark.parametrize("loss", ["Poisson", "Tweedie", "LogLinQuantile", "RMSE"])
def test_a_file_that_says_its_values_are_logarithms_is_refused(loss: str) -> None:
    """CatBoost's export leaves the exponential out, and says the loss in its metadata."""
    model = parse("g (float[N,1] x) => (float[N,1] y) { y = Identity(x) }")
    model.producer_name = "CatBoost"
    entry = model.metadata_props.add()
    entry.key, entry.value = "params", json.dumps({"loss_function": {"type": loss, "params": {}}})
    if loss == "RMSE":
        assert derive_signature(check(model.SerializeToString())).task == "regression"
        return
    with pytest.raises(InvalidData, match=loss):
        derive_signature(check(model.SerializeToString()))
    # Whoever has appended it is taken, and whoever says nothing.
    finished = parse("g (float[N,1] x) => (float[N,1] y) { y = Exp(x) }")
    finished.producer_name = "CatBoost"
    finished.metadata_props.extend(model.metadata_props)
    assert derive_signature(check(finished.SerializeToString()), task="regression").task == "regression"
    del model.metadata_props[:]
    assert derive_signature(check(model.SerializeToString())).task == "regression"


def test_no_memory_for_a_file_is_not_a_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protobuf says both by one error, and a user would look for what is wrong with the model."""
    from google.protobuf.message import DecodeError

    def fail(artifact: bytes) -> None:
        raise DecodeError("Error parsing message with type 'onnx.ModelProto': Arena alloc failed")

    monkeypatch.setattr(onnx, "ModelProto", type("Message", (), {"FromString": staticmethod(fail)}))
    with pytest.raises(MemoryError):
        check(b"a model")
