"""A teacher's graph in the trainer: with its logits, run on many rows."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Literal, cast

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pg_distill.errors import (
    PgDistillError,
)
from pg_distill.frame import FloatArray, Frame
from pg_distill.onnx_model.cut import cut_texts
from pg_distill.onnx_model.derive import LOGITS_TOLERANCE
from pg_distill.onnx_model.nodes import (
    Producers,
    attributes_of,
    graph_inputs,
    ints,
    parse,
)
from pg_distill.onnx_model.running import run_graph, synthetic
from pg_distill.onnx_model.session import (
    BATCH_ROWS,
    Model,
)
from pg_distill.onnx_model.signature import (
    OutputSpec,
    Signature,
)
from pg_distill.onnx_model.text_model import TextModel, open_model
from pg_distill.onnx_model.values import decode

__all__ = ["PROBABILITY_FLOOR", "TeacherModel", "tree_thresholds"]

PROBABILITY_FLOOR = 1e-6
"""Clips probabilities before the logarithm where a graph has no logits; float32 resolves no less near 1."""


def _with_logits(
    artifact: bytes, signature: Signature, rows: Frame | None = None
) -> Model | TextModel | None:
    """Return the model that gives the logits of ``artifact``; None where the graph has none.

    The logits are what its last Softmax, Sigmoid or LogSoftmax reads, or the scores of its last ensemble or
    linear classifier with post_transform NONE. They are taken only if they reproduce the model's
    probabilities on ``rows`` within 1e-5: a random forest's votes, a calibrated classifier fail that, and
    so have no logits.
    """
    if signature.task == "regression" or signature.output.form == "label":
        return None
    if signature.output.form == "logits":
        return open_model(artifact, signature)
    graph = parse(artifact)
    upstream = Producers(graph.graph).upstream(signature.output.name)
    node = next((n for n in upstream if n.op_type in (*_ACTIVATIONS, *_CLASSIFIERS)), None)
    if node is None:
        return None
    frame = rows if rows is not None else synthetic(signature)
    if signature.max_tokens is not None:
        frame = frame.take(np.arange(min(len(frame), _TEXTS)))
    outputs = _add_logits(graph, node, len(signature.classes))
    try:  # in one session: that of a large teacher takes seconds to open
        names = dict.fromkeys([signature.output.name, *(o.name for o in outputs)])
        found = run_graph(graph, signature, frame, list(names))
        expected = decode(signature, found[signature.output.name], len(frame))
    except PgDistillError:
        return None
    for output in outputs:
        own = replace(signature, output=output)
        with suppress(PgDistillError):
            if np.allclose(
                decode(own, found[output.name], len(frame)), expected, rtol=0, atol=LOGITS_TOLERANCE
            ):
                return open_model(graph.SerializeToString(), own)
    return None


_TEXTS = 16  # that the logits of a transformer are found on
_LOGITS_NAME = "pg_distill_logits"
_ACTIVATIONS = ("Softmax", "Sigmoid", "LogSoftmax")
_CLASSIFIERS = ("TreeEnsembleClassifier", "LinearClassifier")


def _add_logits(model: onnx.ModelProto, node: onnx.NodeProto, classes: int) -> list[OutputSpec]:
    """Add to ``model`` what are likely the logits before ``node``, and return what these tensors are."""
    name = node.input[0] if node.input else ""
    transforms = any(a.name == "post_transform" and a.s != b"NONE" for a in node.attribute)
    if node.op_type in _CLASSIFIERS and not transforms:
        name = node.output[1]
    elif node.op_type in _CLASSIFIERS:
        twin = model.graph.node.add()
        twin.CopyFrom(node)
        twin.name = f"{_LOGITS_NAME}_twin"
        twin.output[:] = [f"{_LOGITS_NAME}_label", f"{_LOGITS_NAME}_scores"]
        for attribute in twin.attribute:
            if attribute.name == "post_transform":
                attribute.s = b"NONE"
        name = twin.output[1]
    outputs = [OutputSpec(name, "logits", classes)]
    if classes == 2:  # of two scores the last is the log-odds where they are -s and s, or 1 - s and s
        column = f"{_LOGITS_NAME}_column"
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), column))
        model.graph.node.append(helper.make_node("Gather", [name, column], [_LOGITS_NAME], axis=1))
        if not any(o.domain in ("", "ai.onnx") for o in model.opset_import):
            model.opset_import.append(helper.make_opsetid("", 17))
            model.ir_version = max(model.ir_version, 8)
        outputs.append(OutputSpec(_LOGITS_NAME, "logits", 1))
    return outputs


class TeacherModel:
    """A model that gives logits.

    Attributes
    ----------
    is_text
        Whether it reads texts, each in a run of its own.
    logits_source
        "graph": the logits inside the graph; "log-probabilities": logarithms of its probabilities, clipped at
        `PROBABILITY_FLOOR`; "values" for regression.
    """

    def __init__(self, artifact: bytes, signature: Signature, rows: Frame | None = None) -> None:
        artifact, readers = cut_texts(artifact)
        if readers:
            signature = replace(signature, readers={reader.target: reader for reader in readers})
        self.signature = signature
        self.is_text = signature.max_tokens is not None
        found = _with_logits(artifact, signature, rows)
        self.logits_source: Literal["graph", "log-probabilities", "values"]
        if found is not None:
            self.logits_source, self._model = "graph", found
        else:
            self.logits_source = "values" if signature.task == "regression" else "log-probabilities"
            self._model = open_model(artifact, signature)

    def logits(self, frame: Frame, batch: int = BATCH_ROWS) -> FloatArray:
        """Return (n, K) logits, or (n, 1) values, for the rows of ``frame``.

        Raises
        ------
        PgDistillError
            As `Model.run_frame`.
        """
        if self.logits_source == "graph":
            return self._model.run_frame(frame, batch, logits=True)
        predictions = self._model.run_frame(frame, batch)
        if self.logits_source == "values":
            return predictions
        if self.signature.task == "multilabel":
            p = np.clip(predictions, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
            return cast(FloatArray, np.log(p) - np.log1p(-p))
        return cast(FloatArray, np.log(np.clip(predictions, PROBABILITY_FLOOR, 1.0)))


def tree_thresholds(model: onnx.ModelProto) -> dict[int, FloatArray]:
    """Return, for each feature that trees split, its thresholds, sorted: float32 values as float64.

    Only for models of one input that its trees read directly: {} for others, whose thresholds are other
    things'.
    """
    inputs = graph_inputs(model.graph)
    if len(inputs) != 1:
        return {}
    producers = Producers(model.graph)
    found: dict[int, list[FloatArray]] = {}
    for node in model.graph.node:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        name = node.input[0]
        while (before := producers.by_output.get(name)) is not None and before.op_type in (
            "Identity",
            "Cast",
        ):
            name = before.input[0]
        if name != inputs[0].name:
            return {}
        attributes = attributes_of(node)
        branch = np.array(attributes["nodes_modes"], dtype="S16") != b"LEAF"
        features = ints(attributes, "nodes_featureids")[branch]
        values = np.asarray(attributes["nodes_values"], np.float64)[branch]
        for feature in np.unique(features):
            found.setdefault(int(feature), []).append(values[features == feature])
    return {feature: np.unique(np.concatenate(parts)) for feature, parts in sorted(found.items())}
