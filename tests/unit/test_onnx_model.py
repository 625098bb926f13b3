"""Serving one ONNX file: every way in gives the same answer, and every bad row its own error."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from pg_distill.errors import (
    ArtifactCorrupted,
    DatatypeMismatch,
    FeatureNotSupported,
    InvalidArtifact,
    InvalidData,
    NullNotAllowed,
    UndefinedColumn,
    ValueOutOfRange,
)
from pg_distill.frame import Feature, Frame, Strings
from pg_distill.onnx_model import session as onnx_model
from pg_distill.onnx_model.cut import prune
from pg_distill.onnx_model.session import Model, open_session
from pg_distill.onnx_model.signature import NULL_STRING, FeatureSpec, InputSpec, OutputSpec, Signature
from pg_distill.serving import predict

NAN = math.nan


def graph(text: str, **initializers: Any) -> bytes:
    """Return the bytes of a graph in ONNX's own notation."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in initializers.items())
    return bytes(model.SerializeToString())


def numeric(count: int, takes: Any = "float32", null: Any = "nan", **output: Any) -> Signature:
    """Return the signature of a graph that takes ``x`` (n, count) and gives ``y``."""
    given: dict[str, Any] = {"name": "y", "form": "probabilities", "width": 2} | output
    task: Any = "regression" if given["form"] == "value" else "binary"
    return Signature(
        tuple(FeatureSpec(f"x{i}", "number", null) for i in range(count)),
        (InputSpec("x", takes, 2, tuple(range(count))),),
        OutputSpec(**given),
        task,
        () if task == "regression" else ("no", "yes"),
    )


SOFTMAX = graph("g (float[N,2] x) => (float[N,2] y) { y = Softmax(x) }")


def softmax_model() -> Model:
    return Model(SOFTMAX, numeric(2))


# -- the ways in


@pytest.mark.parametrize(
    ("form", "body", "width"),
    [
        ("probabilities", "y = Softmax(x)", 2),
        ("logits", "y = Identity(x)", 2),
        ("logits", "y = ReduceSum(x, axes)", 1),
        ("positive", "s = ReduceSum(x, axes)\n y = Sigmoid(s)", 1),
        ("value", "y = ReduceSum(x, axes)", 1),
    ],
)
@pytest.mark.parametrize("element", ["float32", "float64"])
def test_every_way_in_gives_the_same_answer(form: str, body: str, width: int, element: str) -> None:
    kind = "float" if element == "float32" else "double"
    artifact = graph(f"g ({kind}[N,2] x) => ({kind}[N,{width}] y) {{ {body} }}", axes=np.array([1], np.int64))
    model = Model(artifact, numeric(2, element, form=form, width=width, element=element))
    rows = np.array([[0.5, -1.25], [3.0, 2.0], [-7.0, 7.0]])
    frame = models.number_frame(rows)
    expected = model.run_frame(frame)
    assert expected.dtype == np.float64
    assert expected.shape == (3, 1 if form == "value" else 2)
    total = rows.sum(axis=1)
    reference = {
        "probabilities": np.exp(rows[:, 1]) / np.exp(rows).sum(axis=1),
        "logits": np.exp(rows[:, 1]) / np.exp(rows).sum(axis=1) if width == 2 else 1 / (1 + np.exp(-total)),
        "positive": 1 / (1 + np.exp(-total)),
        "value": total,
    }[form]
    np.testing.assert_allclose(expected[:, -1], reference, atol=1e-6)
    np.testing.assert_array_equal(model.run_array(rows), expected)
    np.testing.assert_array_equal(model.run_array(rows, batch=2), expected)
    for row, answer in zip(rows.tolist(), expected, strict=True):
        np.testing.assert_array_equal(model.run_numbers(row), answer)
        np.testing.assert_array_equal(model.run_row({"x0": row[0], "x1": row[1], "other": "z"}), answer)
        assert model.predict_number(row) == answer[-1]
        assert model.predict_number(tuple(row)) == answer[-1]
        np.testing.assert_array_equal(model.run_mixed(row, []), answer)
        assert model.predict_number(row, []) == answer[-1]
        assert model.predict_position(row) == np.argmax(answer)


def test_an_answer_outlives_the_next_call() -> None:
    model = softmax_model()
    first = model.run_numbers([1.0, 2.0])
    kept = first.copy()
    model.run_numbers([9.0, -9.0])
    np.testing.assert_array_equal(first, kept)


def test_numbers_beyond_float32_are_infinite_everywhere() -> None:
    model = Model(
        graph("g (float[N,1] x) => (float[N,1] y) { y = Identity(x) }"), numeric(1, form="value", width=1)
    )
    for value, expected in ((1e300, math.inf), (-1e300, -math.inf), (10**300, math.inf)):
        assert model.predict_number([value]) == expected
        assert model.run_row({"x0": value})[0] == expected
    with pytest.raises(ValueOutOfRange):
        model.run_row({"x0": 10**400})
    assert model.run_array(np.array([[1e300]]))[0, 0] == math.inf
    assert model.run_frame(models.number_frame(np.array([[-1e300]])))[0, 0] == -math.inf


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, NAN),
        ("NaN", NAN),
        ("Infinity", math.inf),
        ("-Infinity", -math.inf),
        (True, 1.0),
        (Decimal("0.5"), 0.5),
        (np.float32(0.25), 0.25),
        (7, 7.0),
    ],
)
def test_values_of_a_number(value: Any, expected: float) -> None:
    model = Model(
        graph("g (float[N,1] x) => (float[N,1] y) { y = Identity(x) }"), numeric(1, form="value", width=1)
    )
    np.testing.assert_equal(float(model.run_row({"x0": value})[0]), expected)
    np.testing.assert_equal(float(model.run_numbers([value])[0]), expected)
    np.testing.assert_equal(model.predict_number([value]), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-02", 86400.0),
        ("1970-01-01T00:00:01.5+00:00", 1.5),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("10000-01-01T01:00:00+01:00", 253402300800.0),  # by PostgreSQL's extract(epoch ...)
        ("0001-01-01T00:00:00+00:00 BC", -62167219200.0),
        ("infinity", math.inf),
        ("-infinity", -math.inf),
    ],
)
def test_timestamps_are_seconds_since_1970(text: str, expected: float) -> None:
    signature = Signature(
        (FeatureSpec("t", "timestamp", "nan"),),
        (InputSpec("x", "float64", 2, (0,)),),
        OutputSpec("y", "value", 1, "float64"),
        "regression",
    )
    model = Model(graph("g (double[N,1] x) => (double[N,1] y) { y = Identity(x) }"), signature)
    assert model.run_row({"t": text})[0] == expected
    with pytest.raises(DatatypeMismatch):
        model.run_row({"t": "yesterday"})


# -- bad rows


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0]])
def test_a_wrong_count_is_invalid_data(values: Sequence[float]) -> None:
    model = softmax_model()
    for call in (model.predict_number, model.predict_position, model.run_numbers):
        with pytest.raises(InvalidData, match=rf"expected 2 features, not {len(values)}"):
            call(values)
    with pytest.raises(InvalidData):
        model.run_array(np.zeros((1, len(values))))


def test_a_wrong_type_names_its_feature() -> None:
    model = softmax_model()
    for value in ("abc", [1], {}, object()):
        with pytest.raises(DatatypeMismatch, match='"x1"'):
            model.predict_number([0.0, value])
        with pytest.raises(DatatypeMismatch, match='"x1"'):
            model.run_row({"x0": 1, "x1": value})


def test_a_missing_key_is_an_undefined_column() -> None:
    with pytest.raises(UndefinedColumn, match='"x1"'):
        softmax_model().run_row({"x0": 1.0})
    frame = models.number_frame(np.zeros((2, 1)))
    with pytest.raises(UndefinedColumn, match='"x1"'):
        softmax_model().run_frame(frame)


def test_null_where_the_model_has_no_encoding() -> None:
    model = Model(SOFTMAX, numeric(2, null="error"))
    for call in (model.predict_number, model.run_numbers):
        with pytest.raises(NullNotAllowed, match='"x1"'):
            call([1.0, None])
    with pytest.raises(NullNotAllowed, match='"x0"'):
        model.run_row({"x0": None, "x1": 1.0})
    with pytest.raises(NullNotAllowed, match='"x1"'):
        model.run_frame(models.number_frame(np.array([[1.0, NAN]])))
    with pytest.raises(NullNotAllowed, match='"x1"'):
        model.run_array(np.array([[1.0, NAN]]))


@pytest.mark.parametrize(
    ("element", "good", "bad"),
    [
        ("int64", [0, -5, 2.0**53], [0.5, 1e19, -1e19, math.inf, 2.0**63, NAN]),
        ("int32", [0, -(2**31), 2**31 - 1], [0.5, 2**31, -(2**31) - 1, NAN]),
        ("bool", [0, 1, True, False], [2, -1, 0.5]),
    ],
)
def test_integer_inputs(element: str, good: list[Any], bad: list[Any]) -> None:
    kind = {"int64": "int64", "int32": "int32", "bool": "bool"}[element]
    artifact = graph(f"g ({kind}[N,1] x) => (double[N,1] y) {{ y = Cast<to=11>(x) }}")
    model = Model(artifact, numeric(1, element, "error", form="value", width=1, element="float64"))
    for value in good:
        assert model.predict_number([value]) == float(value)
        assert model.run_row({"x0": value})[0] == float(value)
        assert model.run_array(np.array([[float(value)]]))[0, 0] == float(value)
    for value in bad:
        expected = NullNotAllowed if math.isnan(value) else InvalidData
        with pytest.raises(expected, match='"x0"'):
            model.run_numbers([value])
        with pytest.raises(expected, match='"x0"'):
            model.run_frame(models.number_frame(np.array([[float(value)]])))
    with pytest.raises(NullNotAllowed):
        model.run_numbers([None])


# -- strings and columns


MIXED = graph(
    """g (string[N,1] city, float[N,1] amount, int64[N,1] visits) => (float[N,3] y) {
        code = ai.onnx.ml.LabelEncoder<
            keys_strings=["a","","é"], values_floats=[1.0,2.0,3.0], default_float=9.0>(city)
        v = Cast<to=1>(visits)
        y = Concat<axis=1>(code, amount, v)
    }"""
)
MIXED_SIGNATURE = Signature(
    (
        FeatureSpec("amount", "number", "nan"),
        FeatureSpec("city", "string", "empty"),
        FeatureSpec("visits", "integer", "error"),
    ),
    (
        InputSpec("city", "string", 2, (1,)),
        InputSpec("amount", "float32", 2, (0,)),
        InputSpec("visits", "int64", 2, (2,)),
    ),
    OutputSpec("y", "probabilities", 3),
    "multiclass",
    ("0", "1", "2"),
)


def test_columns_reach_their_inputs() -> None:
    model = Model(MIXED, MIXED_SIGNATURE)
    cities = ["a", None, "é", "elsewhere"]
    frame = Frame(
        (Feature("visits", "integer"), Feature("city", "string"), Feature("amount", "number")),
        {
            "visits": np.array([1.0, 2.0, 3.0, 4.0]),
            "city": Strings.from_values(cities),
            "amount": np.array([0.5, 0.25, NAN, -1.0]),
        },
    )
    expected = [[1, 0.5, 1], [2, 0.25, 2], [3, NAN, 3], [9, -1, 4]]
    np.testing.assert_array_equal(model.run_frame(frame), expected)
    for i, answer in enumerate(expected):
        amount = frame.number("amount")[i]
        row = {"city": cities[i], "amount": None if math.isnan(amount) else amount, "visits": i + 1}
        np.testing.assert_array_equal(model.run_row(row), answer)
        np.testing.assert_array_equal(model.run_mixed([row["amount"], i + 1], [cities[i]]), answer)
    for counts in (([1.0], ["a"]), ([1.0, 1, 2], ["a"]), ([1.0, 1], []), ([1.0, 1], ["a", "a"])):
        with pytest.raises(InvalidData, match="2 numbers and 1 strings"):
            model.run_mixed(*counts)
    for value, error in ((1.5, InvalidData), (None, NullNotAllowed), ("a", DatatypeMismatch)):
        with pytest.raises(error, match='"visits"'):
            model.run_mixed([1.0, value], ["a"])
    for call in (model.predict_number, model.run_numbers):
        with pytest.raises(FeatureNotSupported, match='"city"'):
            call([0.0, 0.0, 1.0])
    for city in (1, True, ["a"]):
        with pytest.raises(DatatypeMismatch, match='"city"'):
            model.run_row({"city": city, "amount": 1.0, "visits": 1})
    with pytest.raises(DatatypeMismatch, match='"city"'):
        model.run_frame(
            Frame((Feature("city", "number"), *frame.features[::2]), {**frame.columns, "city": np.zeros(4)})
        )


def test_a_student_reads_null_strings_as_the_sentinel() -> None:
    parsed = onnx.ModelProto.FromString(
        graph(
            """g (string[N,1] strings) => (float[N,1] y) {
                y = ai.onnx.ml.LabelEncoder<
                    keys_strings=["?"], values_floats=[1.0], default_float=0.0>(strings)
            }"""
        )
    )
    next(a for a in parsed.graph.node[0].attribute if a.name == "keys_strings").strings[:] = [
        NULL_STRING.encode()
    ]
    signature = Signature(
        (FeatureSpec("s", "string", "string"),),
        (InputSpec("strings", "string", 2, (0,)),),
        OutputSpec("y", "value", 1),
        "regression",
    )
    model = Model(parsed.SerializeToString(), signature)
    assert model.run_row({"s": None})[0] == 1.0
    assert model.run_row({"s": ""})[0] == 0.0
    frame = Frame((Feature("s", "string"),), {"s": Strings.from_values([None, "x", "None"])})
    np.testing.assert_array_equal(model.run_frame(frame), [[1.0], [0.0], [0.0]])


def test_inputs_of_one_dimension_and_a_batch_of_one() -> None:
    artifact = graph("g (float[N] a, float[N] b) => (float[N] y) { y = Sub(a, b) }")
    signature = Signature(
        (FeatureSpec("a", "number", "nan"), FeatureSpec("b", "number", "nan")),
        (InputSpec("a", "float32", 1, (0,)), InputSpec("b", "float32", 1, (1,))),
        OutputSpec("y", "value", 1),
        "regression",
    )
    model = Model(artifact, signature)
    assert model.predict_number([3.0, 1.0]) == 2.0
    np.testing.assert_array_equal(model.run_array(np.array([[3.0, 1.0], [1.0, 3.0]])), [[2.0], [-2.0]])
    fixed = graph("g (float[1,2] x) => (float[1,2] y) { y = Softmax(x) }")
    signature = Signature(
        numeric(2).features,
        (InputSpec("x", "float32", 2, (0, 1), 1),),
        numeric(2).output,
        "binary",
        ("0", "1"),
    )
    rows = np.array([[0.0, 1.0], [5.0, 1.0], [2.0, 2.0]])
    np.testing.assert_array_equal(Model(fixed, signature).run_array(rows), softmax_model().run_array(rows))


def test_labels_become_certain_probabilities() -> None:
    artifact = graph("g (float[N,2] x) => (int64[N] y) { y = ArgMax<axis=1, keepdims=0>(x) }")
    signature = numeric(2, form="label", width=1, element="int64")
    signature = Signature(signature.features, signature.inputs, signature.output, "binary", ("0", "1"))
    model = Model(artifact, signature)
    np.testing.assert_array_equal(model.run_numbers([0.0, 1.0]), [0.0, 1.0])
    np.testing.assert_array_equal(model.run_array(np.array([[1.0, 0.0], [0.0, 1.0]])), [[1, 0], [0, 1]])
    other = Model(
        artifact, Signature(signature.features, signature.inputs, signature.output, "binary", ("0", "2"))
    )
    with pytest.raises(InvalidData):
        other.run_numbers([0.0, 1.0])


def test_a_run_that_fails_is_invalid_data() -> None:
    # The index is out of range for some rows only.
    artifact = graph(
        """g (float[N,1] x) => (float[N,1] y) { i = Cast<to=7>(x)
            y = Gather<axis=0>(table, i) }""",
        table=np.array([10.0, 20.0], np.float32),
    )
    model = Model(artifact, numeric(1, form="value", width=1))
    assert model.predict_number([1.0]) == 20.0
    for call in (model.predict_number, model.run_numbers):
        with pytest.raises(InvalidData) as caught:
            call([5.0])
        assert caught.value.detail
    assert model.predict_number([0.0]) == 10.0


# -- sessions


def test_pruning_keeps_what_the_outputs_need() -> None:
    model = onnx.ModelProto.FromString(
        graph(
            """g (float[N,2] x) => (float[N,2] y, int64[N,1] label, float[N,2] h) {
                h = Mul(x, w)
                label = ArgMax<axis=1>(h)
                y = Softmax(h)
            }""",
            w=np.ones(2, np.float32),
        )
    )
    model.metadata_props.add(key="owner", value="é" * 100)
    whole = model.SerializeToString()
    pruned = onnx.ModelProto.FromString(prune(whole, ["y"]))
    assert [n.op_type for n in pruned.graph.node] == ["Mul", "Softmax"]
    assert [o.name for o in pruned.graph.output] == ["y"]
    for field in ("input", "initializer", "name"):
        assert getattr(pruned.graph, field) == getattr(model.graph, field)
    pruned.graph.CopyFrom(model.graph)
    assert pruned == model
    # A message in two parts is one message: protocol buffers merge them.
    half = onnx.ModelProto()
    half.graph.node.append(model.graph.node.pop())
    parts = model.SerializeToString() + half.SerializeToString()
    again = onnx.ModelProto.FromString(prune(parts, ["h", "y"]))
    assert [n.op_type for n in again.graph.node] == ["Mul", "Softmax"]
    assert [o.name for o in again.graph.output] == ["h", "y"]
    for length in range(len(whole)):
        try:
            prune(whole[:length], ["y"])
        except InvalidArtifact:
            continue


def test_a_zipmap_is_bypassed() -> None:
    exported = models.exported("sklearn logistic, 3 classes")
    inner = onnx.ModelProto.FromString(exported.artifact).graph.node[-1].input[0]
    signature = Signature(
        tuple(FeatureSpec(f.name, "number", "nan") for f in exported.frame.features),
        (InputSpec("X", "float32", 2, tuple(range(6))),),
        OutputSpec(inner, "probabilities", 3),
        "multiclass",
        exported.classes,
    )
    model = Model(exported.artifact, signature)
    assert [o.name for o in model.session.get_outputs()] == [inner]
    np.testing.assert_allclose(model.run_frame(exported.frame), exported.expected, atol=1e-6)


def test_without_the_private_interface_of_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    class Public:
        """What onnxruntime promises, and nothing else."""

        def __init__(self, artifact: bytes, threads: int) -> None:
            session = open_session(artifact, threads=threads)
            self.run = session.run
            self.io_binding = session.io_binding
            self.run_with_iobinding = session.run_with_iobinding

    def public(artifact: bytes, *, threads: int = 1, guard: Any) -> Public:
        return Public(artifact, threads)

    rows = np.array([[0.5, 1.0], [-2.0, 1.0]])
    expected = softmax_model().run_array(rows)
    monkeypatch.setattr(onnx_model, "open_session", public)
    model = softmax_model()
    np.testing.assert_array_equal(model.run_array(rows), expected)
    assert [model.predict_number(row) for row in rows.tolist()] == expected[:, 1].tolist()
    assert [model.predict_position(row) for row in rows.tolist()] == expected.argmax(axis=1).tolist()


def test_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([[0.5, 1.0], [-2.0, 1.0]])
    expected = softmax_model().run_array(rows)

    def copying(array: Any) -> Any:
        return original(array.copy())

    original = ort.OrtValue.ortvalue_from_numpy
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", copying)
    model = softmax_model()
    assert model._run_bound is None
    assert [model.predict_number(row) for row in rows.tolist()] == expected[:, 1].tolist()
    assert [model.predict_position(row) for row in rows.tolist()] == expected.argmax(axis=1).tolist()


def test_what_is_no_model_is_an_invalid_artifact() -> None:
    for artifact in (b"", b"no model", SOFTMAX[:-3]):
        with pytest.raises(InvalidArtifact):
            open_session(artifact)


def test_a_session_opens_no_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Beside the check that refuses it: even in the directory where the file is, it is not found.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(np.ones(2, np.float32).tobytes())
    model = onnx.ModelProto.FromString(graph("g (float[N,2] x) => (float[N,2] y) { y = Add(x, w) }"))
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights")
    model.graph.initializer.append(tensor)
    assert ort.InferenceSession(str(_saved(tmp_path, model)), providers=["CPUExecutionProvider"]) is not None
    with pytest.raises(InvalidArtifact):
        open_session(model.SerializeToString())


def _saved(folder: Any, model: onnx.ModelProto) -> Any:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


# -- signatures


@pytest.mark.parametrize("signature", [numeric(2), MIXED_SIGNATURE, numeric(1, form="value", width=1)])
def test_a_signature_survives_json(signature: Signature) -> None:
    inputs, outputs = json.loads(json.dumps(signature.to_json()))
    assert Signature.from_json(inputs, outputs) == signature


@pytest.mark.parametrize(
    "schema", [{}, {"features": 1, "inputs": []}, {"features": [{"a": 1}], "inputs": []}]
)
def test_a_signature_that_is_none_is_corrupt(schema: dict[str, Any]) -> None:
    with pytest.raises(ArtifactCorrupted):
        Signature.from_json(schema, numeric(1).to_json()[1])
    with pytest.raises(ArtifactCorrupted):
        Signature.from_json(numeric(1).to_json()[0], schema)


def test_an_offer_that_fails_leaves_no_model_behind() -> None:
    backend: Any = SimpleNamespace(
        in_backend=True,
        check_interrupts=lambda: None,
        query=lambda *arguments: [],
        query_exact=lambda *arguments: [],
    )
    offered = {"good": (SOFTMAX, numeric(2)), "bad": (b"no model", numeric(2))}
    with pytest.raises(InvalidArtifact), predict.offer(backend, offered):
        pass
    assert predict._offered == {}


def test_serving_imports_no_training_code() -> None:
    code = "import sys, pg_distill.onnx_model; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    loaded = {name.split(".")[0] for name in out.stdout.split()}
    assert not loaded & {"onnx", "lightgbm", "sklearn", "scipy", "torch", "google", "pandas"}
