"""What the rules say of an operator is what onnxruntime does, and no value makes an operator dangerous."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from fuzz import run
from onnx import TensorProto, helper, numpy_helper
from pg_distill.errors import FeatureNotSupported, InvalidArtifact, LimitExceeded, PgDistillError
from pg_distill.onnx_model.operators import RULES
from pg_distill.onnx_model.rules import Amount, Tensor, constant, elements
from pg_distill.onnx_model.signature import InputSpec
from pg_distill.onnx_model.survey import Survey, step_of, survey

ROWS = Amount(0, 1)
LONG_TEXT = 20
"""Bytes of the longest text in the onnx package's own tests, about."""


def walked(text: str, *, opset: int = 18, width: int = 2, limits: Any = None, **initializers: Any) -> Survey:
    """Return the survey of a graph that reads x, of ``width`` columns."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "ai.onnx.ml": 3]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in initializers.items())
    element: Any = "int64" if "int64[N" in text else "string" if "string[N" in text else "float32"
    spec = InputSpec("x", element, 2, tuple(range(width)))
    given = {
        "tensor_elements": 1 << 26,
        "node_seconds": 0.2,
        "open_seconds": 0.2,
        "constant_bytes": 256 << 20,
    }
    return survey(model.graph, [spec], {"": opset, "ai.onnx.ml": 3}, **(given | (limits or {})))


# -- amounts


def test_amounts_grow_with_the_rows() -> None:
    assert (ROWS * 3 + 2).at(5) == 17
    assert (ROWS * 6).over(Amount(2)) == Amount(0, 3)
    assert (ROWS * 6).over(ROWS * 2) == Amount(3)
    assert (ROWS * 6 + 1).over(ROWS * 2) is None
    assert (ROWS * 3).over(Amount(2)) is None
    assert [a.sign for a in (ROWS, ROWS - 1, ROWS - 2, -ROWS, Amount(0), Amount(3) - ROWS)] == [
        1,
        None,
        None,
        -1,
        0,
        None,
    ]
    with pytest.raises(FeatureNotSupported):
        ROWS * (ROWS + 1)


# -- each operator against onnx's own tests


SHAPES = {("ConstantOfShape", "x"), ("Tile", "y")}


def as_array(value: Any) -> np.ndarray[Any, Any]:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def surveyed_case(case: Any) -> list[tuple[Tensor, np.ndarray[Any, Any]]]:
    """Return what the rules say of the outputs of a test of the onnx package, and these."""
    model = case.model
    inputs, outputs = case.data_sets[0]
    tensors = {}
    shapes = {
        "axes",
        "shape",
        "starts",
        "ends",
        "steps",
        "repeats",
        "pads",
        "K",
        "k",
        "split",
        "depth",
        "axis",
    }
    shapes |= {"new_shape", "start", "limit", "delta", "condition", "training_mode", "t"}
    for value, array in zip(model.graph.input, inputs, strict=True):
        if isinstance(array, list) or array is None:
            raise FeatureNotSupported("reads what is no tensor")
        known = constant(as_array(array), value.type.tensor_type.elem_type)
        is_shape = value.name in shapes or (model.graph.node[0].op_type, value.name) in SHAPES
        tensors[value.name] = known if is_shape else Tensor(known.element, known.shape)
    versions = {o.domain: o.version for o in model.opset_import}
    for node in model.graph.node:
        _, found = step_of(node, tensors, versions)
        tensors |= dict(zip(node.output, found, strict=False))
    return [(tensors[o.name], as_array(a)) for o, a in zip(model.graph.output, outputs, strict=True)]


@pytest.mark.slow  # onnx makes all of its own tests first
def test_shapes_are_those_of_the_operators_own_tests() -> None:
    compared: Counter[str] = Counter()
    wrong = []
    for case in run.operator_cases():
        nodes = case.model.graph.node
        if len(nodes) != 1 or (nodes[0].domain, nodes[0].op_type) not in RULES:
            continue
        try:
            found = surveyed_case(case)
        except (FeatureNotSupported, InvalidArtifact):
            continue  # refused: more than is needed, but never wrong
        for tensor, array in found:
            # Of what depends on a text only a bound is known.
            shape = tuple(
                own if size.at_most and own <= size.at(1, LONG_TEXT) else size.at(1)
                for size, own in zip(tensor.shape, array.shape, strict=False)
            )
            element = (
                TensorProto.STRING
                if array.dtype.kind in "OSU"
                else helper.np_dtype_to_tensor_dtype(array.dtype)
            )
            if (shape, tensor.element) != (array.shape, element) and not tensor.is_map:
                wrong.append((case.name, shape, array.shape, tensor.element, element))
        compared[nodes[0].op_type] += 1
    assert wrong == []
    assert sum(compared.values()) > 500
    # Most operators have a case; the others are walked by the models of `models.EXPORTERS`, or below.
    assert len(compared) > 0.85 * len(RULES)


def test_every_rule_says_why() -> None:
    assert {key for key, rule in RULES.items() if len(rule.why.split()) < 2} == set()
    assert all(rule.ns > 0 for rule in RULES.values())


# -- sizes


@pytest.mark.parametrize(
    "text",
    [
        # Sizes from shapes, as PyTorch's exporter writes them.
        """g (float[N,6] x) => (float y) { s = Shape(x)\n n = Gather<axis=0>(s, zero)\n u = Unsqueeze(n, first)
           t = Concat<axis=0>(u, two, minus)\n y = Reshape(x, t) }""",
        """g (float[N,6] x) => (float y) { s = Shape(x)\n e = ConstantOfShape(s)\n y = Add(x, e) }""",
        """g (float[N,6] x) => (float y) { s = Shape(x)\n m = Mul(two, minus)\n q = Equal(s, m)\n w = Where(q, two, s)
           y = Expand(x, w) }""",
        """g (float[N,6] x) => (float y) { s = Shape(x)\n n = Gather<axis=0>(s, one)\n h = Div(n, twos)\n u = Unsqueeze(h, first)
           y = Slice(x, first, u, last) }""",
        """g (float[N,6] x) => (float y) { s = Size(x)\n z = Shape(x)\n n = Gather<axis=0>(z, zero)\n d = Div(s, n)
           u = Unsqueeze(d, first)\n t = Concat<axis=0>(minus, u)\n y = Reshape(x, t) }""",
        """g (float[N,6] x) => (float y) { s = Shape(x)\n n = Gather<axis=0>(s, zero)\n r = Range(zero, n, one)
           f = Cast<to=1>(r)\n u = Unsqueeze(f, last)\n y = Add(x, u) }""",
    ],
)
def test_sizes_that_come_from_shapes_are_followed(text: str) -> None:
    ints = {"first": [0], "last": [1], "two": [2], "minus": [-1]}
    scalars = {"zero": 0, "one": 1, "twos": 2}
    named = {k: np.array(v, np.int64) for k, v in (ints | scalars).items() if re.search(rf"\b{k}\b", text)}
    found = walked(text, width=6, **named)
    size = elements(found.tensors["y"].shape)
    assert size.fixed == 0
    assert size.a_row in (6, 3)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        # Every pair of rows.
        ("g (float[N,2] x) => (float y) { t = Transpose(x)\n y = MatMul(x, t) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { s = Shape(x)\n p = Mul(s, s)\n y = Expand(x, p) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { f = Flatten<axis=0>(x)\n s = Shape(f)\n e = Expand(x, s)\n y = Relu(e) }", InvalidArtifact),
        # The number of rows as a value that is not followed.
        ("g (float[N,2] x) => (float y) { s = Shape(x)\n m = Mod(s, k)\n y = ConstantOfShape(m) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { s = Shape(x)\n m = Pow(s, k)\n y = ConstantOfShape(m) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { s = Shape(x)\n g = Greater(s, k)\n w = Where(g, k, s)\n y = ConstantOfShape(w) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { s = Shape(x)\n y = TopK(x, s) }", InvalidArtifact),
        # Rows that are cut, and dimensions that are dropped where there is one row.
        ("g (float[N,2] x) => (float y) { y = Slice(x, k, k, z) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { y = Squeeze(x) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { y = Reshape(x, k) }", InvalidArtifact),
        # Sizes by values, each operator that takes one.
        ("g (float[N,2] x) => (float y) { i = Cast<to=7>(x)\n y = Reshape(x, i) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { i = Cast<to=7>(x)\n y = Slice(x, i, i) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { i = Cast<to=7>(x)\n y = Squeeze(x, i) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { i = Cast<to=7>(x)\n y = Unsqueeze(x, i) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { i = Cast<to=7>(x)\n y, z = Split<axis=1>(x, i) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { i = Cast<to=7>(x)\n y = ReduceSum(x, i) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { i = Cast<to=7>(x)\n y = CumSum(x, i) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { y = NonZero(x) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { b = Cast<to=9>(x)\n y = Compress<axis=1>(x, b) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { b = Cast<to=9>(x)\n r = ReduceMax(x)\n y = Dropout(x, r, b) }", FeatureNotSupported),
        # Nothing, of which a mean would divide by 0.
        ("g (int64[N,2] x) => (int64 y) { e = Slice(x, far, far, far)\n y = ReduceMean(e) }", InvalidArtifact),
        ("g (int64[N,2] x) => (int64 y) { s = Shape<start=2>(x)\n y = ReduceMean(s) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { y = Pad(x, neg) }", FeatureNotSupported),
        ("g (float[N,2] x) => (float y) { y = Tile(x, neg2) }", InvalidArtifact),
        ("g (float[N,2] x) => (float y) { y = Reshape(x, neg2) }", InvalidArtifact),
        # More numbers than a Python sequence may have.
        ("g (float[N,2] x) => (float y) { y = Range(least, most, one) }", InvalidArtifact),
        ("g (float[N,2] x) => (float y) { y = Range(most, least, one) }", InvalidArtifact),
    ],
)  # fmt: skip
def test_sizes_that_are_not_bounded_are_refused(text: str, error: type[PgDistillError]) -> None:
    named = {"k": [3], "z": [0], "far": [1], "neg": [0, -1, 0, 0], "neg2": [-3, -2]}
    named |= {"least": -(2**63), "most": 2**63 - 1, "one": 1}
    given = {k: np.array(v, np.int64) for k, v in named.items() if re.search(rf"\b{k}\b", text)}
    with pytest.raises(PgDistillError) as caught:
        walked(text, **given)
    assert type(caught.value) is error


def test_a_rule_for_integers_holds_behind_other_operators() -> None:
    quotient = "g (int64[N,2] x) => (int64 y) {{ {} y = Div(x, d) }}"
    for given in ("d = Identity(c)", "r = Reshape(c, s)\n d = Identity(r)", "d = Neg(n)"):
        walked(
            quotient.format(given + "\n"),
            c=np.array([2], np.int64),
            s=np.array([1], np.int64),
            n=np.array([-3], np.int64),
        )
    for given in (
        "d = Neg(c)",
        "d = Sub(c, c)",
        "d = Cast<to=7>(f)",
        "d = Shape<start=2>(x)",
        "d = ArgMax<axis=1>(x)",
    ):
        with pytest.raises(PgDistillError):
            walked(quotient.format(given + "\n"), c=np.array([1], np.int64), f=np.array([-1.0], np.float32))


# -- memory and time


def test_bytes_and_time_are_linear_in_rows() -> None:
    text = "g (float[N,2] x) => (float y) { h = MatMul(x, w)\n y = Relu(h) }"
    small, wide = (walked(text, w=np.ones((2, n), np.float32)).cost(["y"], 0.2e9) for n in (10, 1000))
    assert 2 * 4 * 10 <= small.row_bytes < 1000
    assert 2 * 4 * 1000 <= wide.row_bytes < 100_000
    assert wide.row_ns > 50 * small.row_ns
    assert wide.most_rows < small.most_rows
    assert wide.rows(wide.bytes(7)) == 7
    assert wide.rows(wide.bytes(1) - 1) == 0


def test_strings_are_counted_with_their_texts() -> None:
    text = "g (string[N,2] x) => (string y) { a = Concat<axis=1>(x, x)\n y = Concat<axis=1>(a, a) }"
    cost = walked(text).cost(["y"], 0.2e9)
    assert cost.bytes(1, 1000) - cost.bytes(1, 0) >= 14 * 1000
    assert cost.rows(1 << 30, 100 << 20) == 0


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("g (float[N,2] x) => (float y) { y = Tile(x, big) }", {}),
        ("g (float[N,2] x) => (float y) { a = Tile(x, wide)\n y = MatMul(a, w) }", {"node_seconds": 1e-6}),
        ("g (float[N,2] x) => (float y) { c = MatMul(w, w)\n y = MatMul(x, c) }", {"open_seconds": 1e-7}),
        ("g (float[N,2] x) => (float y) { c = ConstantOfShape(big)\n f = Flatten<axis=0>(c)\n m = ReduceMax(f)\n y = Add(x, m) }", {"constant_bytes": 1 << 20}),
        ("g (float[N,2] x) => (float y) { y = Mod<fmod=1>(x, x) }", {"node_seconds": 5e-6}),
    ],
)  # fmt: skip
def test_limits_hold_before_anything_runs(text: str, limits: dict[str, float]) -> None:
    named = {
        "big": np.array([1, 1 << 26], np.int64),
        "wide": np.array([1, 1], np.int64),
        "w": np.ones((2, 2), np.float32),
    }
    if "ConstantOfShape" in text:
        named["big"] = np.array([1 << 19, 1], np.int64)
    given = {k: v for k, v in named.items() if re.search(rf"\b{k}\b", text)}
    with pytest.raises(LimitExceeded):
        walked(text, limits=limits, **given)


# -- onnxruntime at the ends of the types


ENDS = [2**62, -(2**62), -(2**63), 2**63 - 1, -1, -5, 4, 5, 10**6, 2**32, 2**33 + 1]
# Operators whose rules leave it to onnxruntime to look at an index.
INDEXED = {
    "Gather": "y = Gather<axis=1>(v, i)",
    "GatherElements": "y = GatherElements<axis=1>(v, i)",
    "GatherND": "y = GatherND<batch_dims=1>(v, i)",
    "ScatterElements": "f = Cast<to=1>(i)\n y = ScatterElements<axis=1>(v, i, f)",
    "ScatterND": "y = ScatterND(v, i, v)",
    "ArrayFeatureExtractor": "y = ai.onnx.ml.ArrayFeatureExtractor(v, i)",
}
HARMLESS = {
    "OneHot": "f = OneHot(i, four, pair)\n y = ReduceSum(f)",
    "Pow": "p = Pow(i, i)\n y = Cast<to=1>(p)",
    "Cast": "a = Cast<to=1>(i)\n b = Log(a)\n c = Cast<to=6>(b)\n y = Cast<to=1>(c)",
    "Trilu": "s = ReduceMax<keepdims=0>(i)\n y = Trilu(v, s)",
    "Abs": "a = Abs(i)\n n = Neg(a)\n y = Cast<to=1>(n)",
    "DynamicQuantizeLinear": "a = Cast<to=1>(i)\n b = Log(a)\n q, s, z = DynamicQuantizeLinear(b)\n y = Cast<to=1>(q)",
    "QuantizeLinear": "a = Cast<to=1>(i)\n q = QuantizeLinear(a, nothing, zero)\n y = Cast<to=1>(q)",
    "TopK": "a = Cast<to=1>(i)\n b = Log(a)\n c = Concat<axis=1>(v, b)\n y, p = TopK(c, four)",
    "OneHotEncoder": "a = Cast<to=1>(i)\n b = Log(a)\n y = ai.onnx.ml.OneHotEncoder<cats_int64s=[1, 2]>(b)",
    "LabelEncoder": "y = ai.onnx.ml.LabelEncoder<keys_int64s=[1, 2], values_floats=[1.0, 2.0]>(i)",
}
CONSTANTS = {
    "four": np.array([4], np.int64),
    "pair": np.array([0.0, 1.0], np.float32),
    "nothing": np.float32(0).reshape(()),
    "zero": np.int8(0).reshape(()),
}
RUN = """
import json, sys
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 4
session = ort.InferenceSession(sys.stdin.buffer.read(), options, providers=["CPUExecutionProvider"])
out = []
for end in json.loads(sys.argv[1]):
    feeds = {"i": np.array([[end]], np.int64), "v": np.ones((1, 4), np.float32)}
    try:
        session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
        out.append(True)
    except Exception:
        out.append(False)
print(json.dumps(out))
"""


@pytest.mark.parametrize("name", [*INDEXED, *HARMLESS])
def test_onnxruntime_survives_the_ends_of_the_types(name: str) -> None:
    body = {**INDEXED, **HARMLESS}[name]
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18, "ai.onnx.ml": 3]>'
        f"g (int64[N,1] i, float[N,4] v) => (float y) {{ {body} }}"
    )
    named = {k: v for k, v in CONSTANTS.items() if re.search(rf"\b{k}\b", body)}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in named.items())
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(ENDS)],
        input=model.SerializeToString(),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-500:]
    ran = json.loads(done.stdout)
    if name in INDEXED:  # a place outside is an error, not a read of what is there
        assert not any(ok for end, ok in zip(ENDS, ran, strict=True) if not -4 <= end < 4)


def test_sorting_stays_in_its_array_whatever_the_order() -> None:
    code = """
import numpy as np, onnx, onnxruntime as ort, sys
rng = np.random.default_rng(0)
options = ort.SessionOptions()
options.log_severity_level = 4
for size in (5, 17, 40, 300, 2000):
    for k in {1, 2, size // 2, size}:
        graph = f'g (float[N,{size}] x) => (float y, int64 p) {{ k = Constant<value_ints=[{k}]>()\\n y, p = TopK(x, k) }}'
        model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]>' + graph)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for share in (0.01, 0.3, 0.9):
            x = rng.integers(0, 9, (40, size)).astype(np.float32)
            x[rng.random(x.shape) < share] = np.nan
            _, places = session.run(None, {"x": x})
            assert places.min() >= 0 and places.max() < size
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
