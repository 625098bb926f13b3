"""Graphs of the operators that read strings: as exporters write them, for tests and as seeds of the fuzzer."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["FITTED", "WORDS", "exported", "graph", "ngrams", "pipeline", "text_seeds", "tokenizer"]

WORDS = ("refund", "broken", "thanks", "late", "great", "invoice")
FITTED = [
    "refund broken",
    "thanks great",
    "refund late",
    "great invoice thanks",
    "late broken",
    "invoice",
] * 5


def tokenizer(source: str = "x", output: str = "words", **changed: Any) -> onnx.NodeProto:
    """Return a Tokenizer; an attribute of None is left out."""
    settings = {"mark": 0, "mincharnum": 1, "pad_value": "#", "tokenexp": "[a-z]+", **changed}
    kept = {name: value for name, value in settings.items() if value is not None}
    return helper.make_node("Tokenizer", [source], [output], domain="com.microsoft", **kept)


def ngrams(source: str = "words", output: str = "counts", **changed: Any) -> onnx.NodeProto:
    """Return a TfIdfVectorizer of `WORDS` and of two pairs of them; an attribute of None is left out."""
    settings = {
        "mode": "TF",
        "min_gram_length": 1,
        "max_gram_length": 2,
        "max_skip_count": 0,
        "ngram_counts": [0, len(WORDS)],
        "ngram_indexes": list(range(len(WORDS) + 2)),
        "pool_strings": [*WORDS, "refund", "late", "thanks", "great"],
        **changed,
    }
    kept = {name: value for name, value in settings.items() if value is not None}
    return helper.make_node("TfIdfVectorizer", [source], [output], **kept)


def graph(
    *nodes: onnx.NodeProto,
    output: str = "value",
    outputs: int = 1,
    width: int = 1,
    element: int = TensorProto.FLOAT,
    **constants: Any,
) -> bytes:
    """Return the file of nodes that read ``x``, (n, width) strings."""
    made = helper.make_graph(
        list(nodes),
        "texts",
        [helper.make_tensor_value_info("x", TensorProto.STRING, [None, width])],
        [helper.make_tensor_value_info(output, element, [None, outputs])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(
        made,
        opset_imports=[
            helper.make_opsetid("", 20),
            helper.make_opsetid("ai.onnx.ml", 3),
            helper.make_opsetid("com.microsoft", 1),
        ],
        ir_version=9,
    )
    return bytes(model.SerializeToString())


def pipeline(token: onnx.NodeProto | None = None, count: onnx.NodeProto | None = None, **more: Any) -> bytes:
    """Return a bag of words behind a normalizer and a linear model, as skl2onnx writes it."""
    width = len(WORDS) + 2
    return graph(
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("StringNormalizer", ["rows"], ["lower"], case_change_action="LOWER", locale="C"),
        token or tokenizer("lower"),
        helper.make_node("Flatten", ["words"], ["flattened"]),
        count or ngrams("flattened"),
        helper.make_node("MatMul", ["counts", "weights"], ["value"]),
        flat=np.array([-1]),
        weights=np.linspace(-1, 1, width, dtype=np.float32).reshape(width, 1),
        **more,
    )


def text_seeds() -> dict[str, bytes]:
    """Return files in which each operator that reads strings stands where exporters put it, and what pg_distill makes of texts."""
    split = helper.make_node("StringSplit", ["rows"], ["words", "parts"], delimiter=" ")
    flat = np.array([-1])
    reshape = helper.make_node("Reshape", ["x", "flat"], ["rows"])
    return {
        "Tokenizer": pipeline(),
        "Tokenizer of separators": pipeline(
            tokenizer("lower", tokenexp=None, separators=[" ", "[.]", "\\?"])
        ),
        "Tokenizer of characters": pipeline(tokenizer("lower", tokenexp=None, separators=[""], mark=1)),
        "StringSplit": graph(
            reshape,
            split,
            ngrams(),
            helper.make_node("ReduceSum", ["counts", "axis"], ["value"]),
            flat=flat,
            axis=np.array([1]),
        ),
        "StringConcat": graph(
            helper.make_node("StringConcat", ["x", "more"], ["long"]),
            helper.make_node("StringConcat", ["long", "x"], ["longer"]),
            helper.make_node("RegexFullMatch", ["longer"], ["found"], pattern="(refund|late).* [a-z]{2,5}"),
            helper.make_node("Cast", ["found"], ["value"], to=1),
            more=np.array([" late"], object),
        ),
        "words looked up": graph(
            reshape,
            tokenizer("rows"),
            helper.make_node(
                "LabelEncoder",
                ["words"],
                ["codes"],
                domain="ai.onnx.ml",
                keys_strings=list(WORDS),
                values_int64s=list(range(1, len(WORDS) + 1)),
                default_int64=0,
            ),
            helper.make_node(
                "TfIdfVectorizer",
                ["codes"],
                ["counts"],
                mode="TFIDF",
                min_gram_length=1,
                max_gram_length=1,
                max_skip_count=1,
                ngram_counts=[0],
                ngram_indexes=[0, 1, 2],
                pool_int64s=[1, 2, 5],
                weights=[0.5, 1.0, 2.0],
            ),
            helper.make_node("ReduceSum", ["counts", "axis"], ["value"]),
            flat=flat,
            axis=np.array([1]),
        ),
    }


def exported(vectorizer: Any, *, opset: int = 18, locale: str = "C.UTF-8") -> tuple[Any, bytes]:
    """Return a pipeline and skl2onnx's own file of it."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(vectorizer, LogisticRegression()).fit(FITTED, ["refund" in t for t in FITTED])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = convert_sklearn(
            model,
            initial_types=[("x", StringTensorType([None, 1]))],
            options={"zipmap": False},
            target_opset={"": opset, "ai.onnx.ml": 3},
        )
    for node in made.graph.node:
        if node.op_type == "StringNormalizer":
            node.attribute.append(helper.make_attribute("locale", locale))
    return model, made.SerializeToString()
