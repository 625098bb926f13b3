"""What a session is opened on: the graph without its dictionaries of strings."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from pg_distill.onnx_model.cut import cut_lookups
from pg_distill.onnx_model.session import Model
from pg_distill.onnx_model.signature import NULL_STRING, FeatureSpec, InputSpec, OutputSpec, Signature
from pg_distill.serving.predict import SESSION_BYTES_PER_WORD

WORDS = ["a", "", "é", NULL_STRING]


def encoder(name: str, **attributes: Any) -> onnx.NodeProto:
    given = {"keys_strings": WORDS, "values_int64s": [5, -6, 7, 2**40], "default_int64": -9} | attributes
    attributes = {key: value for key, value in given.items() if value is not None}
    return helper.make_node("LabelEncoder", ["s"], [name], domain="ai.onnx.ml", **attributes)


FLOATS = {"values_int64s": None, "default_int64": None, "values_floats": [0.5, -1.5, 2.5, 3.0]}


def model_of(*nodes: onnx.NodeProto, outputs: tuple[tuple[str, int], ...]) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [
            helper.make_tensor_value_info("s", TensorProto.STRING, [None, 2]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1]),
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def cast(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=TensorProto.FLOAT)


def add(*terms: str, target: str = "y") -> onnx.NodeProto:
    return helper.make_node("Sum", list(terms), [target])


Y = (("y", TensorProto.FLOAT),)

CUT = {
    "integers": model_of(encoder("c"), cast("c", "d"), add("d", "x"), outputs=Y),
    "floats": model_of(encoder("c", **FLOATS), add("c", "x"), outputs=Y),
    "floats without a default": model_of(
        encoder("c", **FLOATS, default_float=None), add("c", "x"), outputs=Y
    ),
    "integers without a default": model_of(
        encoder("c", default_int64=None), cast("c", "d"), add("d", "x"), outputs=Y
    ),
    "two readers": model_of(
        encoder("c", **FLOATS, default_float=8.0), encoder("e"), cast("e", "d"), add("c", "d", "x"), outputs=Y
    ),
}

WHOLE = {
    "another reader": model_of(
        encoder("c", **FLOATS),
        helper.make_node(
            "LabelEncoder", ["s"], ["t"], domain="ai.onnx.ml", keys_strings=["a"], values_strings=["b"]
        ),
        helper.make_node(
            "LabelEncoder", ["t"], ["e"], domain="ai.onnx.ml", keys_strings=["b"], values_floats=[4.0]
        ),
        add("c", "e", "x"),
        outputs=Y,
    ),
    "a key twice": model_of(
        encoder("c", keys_strings=["a", "a"], values_int64s=[1, 2]), cast("c", "d"), add("d", "x"), outputs=Y
    ),
    "its output is read": model_of(
        encoder("c", **FLOATS), add("c", "x"), outputs=(*Y, ("c", TensorProto.FLOAT))
    ),
}

STRINGS = np.array([["a", "é"], ["", NULL_STRING], ["elsewhere", "a"], ["A", "é "]], object)
NUMBERS = np.array([[0.5], [1.0], [-2.0], [3.0]], np.float32)


@pytest.mark.parametrize("name", CUT)
def test_the_cut_graph_answers_as_the_whole(name: str) -> None:
    whole = CUT[name]
    [expected] = ort.InferenceSession(whole).run(["y"], {"s": STRINGS, "x": NUMBERS})
    cut, lookups = cut_lookups(whole, {"s"})
    assert len(lookups) == (2 if name == "two readers" else 1)
    left = onnx.ModelProto.FromString(cut)
    assert "LabelEncoder" not in [node.op_type for node in left.graph.node]
    session = ort.InferenceSession(cut)
    assert {i.name for i in session.get_inputs()} == {"x", *(lookup.target for lookup in lookups)}
    feeds = {lookup.target: lookup.numbers(STRINGS) for lookup in lookups}
    np.testing.assert_array_equal(session.run(["y"], {"x": NUMBERS, **feeds})[0], expected)

    # The same by every way into a model that is opened on it; None is the sentinel there.
    signature = Signature(
        (FeatureSpec("p", "string", "string"), FeatureSpec("q", "number", "nan"), FeatureSpec("r", "string", "string")),
        (InputSpec("s", "string", 2, (0, 2)), InputSpec("x", "float32", 2, (1,))),
        OutputSpec("y", "probabilities", 2),
        "binary",
        ("no", "yes"),
    )  # fmt: skip
    model = Model(whole, signature)
    assert model._run_bound is not None
    assert model.words == len(lookups) * len(WORDS)
    for strings, number, answer in zip(STRINGS.tolist(), NUMBERS[:, 0].tolist(), expected, strict=True):
        given = [None if value == NULL_STRING else value for value in strings]
        np.testing.assert_array_equal(model.run_mixed([number], given), answer)
        np.testing.assert_array_equal(model.run_row({"p": given[0], "q": number, "r": given[1]}), answer)
        assert model.predict_number([number], given) == answer[-1]
        assert model.predict_position([number], given) == np.argmax(answer)
        assert np.isnan(model.predict_number([None], given))


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_cut_stays_whole(name: str) -> None:
    cut, lookups = cut_lookups(WHOLE[name], {"s"})
    assert (cut, lookups) == (WHOLE[name], ())


def test_a_graph_with_graphs_in_it_stays_whole() -> None:
    empty = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    inner = helper.make_graph([helper.make_node("Identity", ["c"], ["z"])], "inner", [], empty)
    other = helper.make_graph([helper.make_node("Neg", ["c"], ["z"])], "other", [], empty)
    whole = model_of(
        encoder("c", **FLOATS),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["b"], to=TensorProto.BOOL),
        helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=other),
        outputs=Y,
    )
    assert cut_lookups(whole, {"s"}) == (whole, ())


def test_only_inputs_asked_for_are_cut() -> None:
    assert cut_lookups(CUT["floats"], {"x"}) == (CUT["floats"], ())


def test_what_a_dictionary_takes_is_known() -> None:
    """The cache of sessions counts it."""
    words = [f"word{i:06d}" for i in range(20_000)]
    whole = model_of(
        encoder("c", keys_strings=words, values_int64s=list(range(len(words)))), cast("c", "y"), outputs=Y
    )
    tracemalloc.start()
    try:
        _, [lookup] = cut_lookups(whole, {"s"})
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(lookup.table) == len(words)
    assert 0.5 < (taken - len(whole)) / len(words) / SESSION_BYTES_PER_WORD < 2
