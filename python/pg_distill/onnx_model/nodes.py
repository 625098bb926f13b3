"""Reading a graph: its inputs, constants, attributes, and which node makes what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from pg_distill.errors import (
    InvalidArtifact,
)

__all__ = [
    "PASS_THROUGH",
    "SUM_TOLERANCE",
    "Producers",
    "attributes_of",
    "constants_of",
    "graph_inputs",
    "ints",
    "labels_of",
    "linear_outputs",
    "opset_versions",
    "parse",
    "type_name",
]

SUM_TOLERANCE = 1e-3  # rows of probabilities sum to one within this: float32 sums of a thousand classes
PASS_THROUGH = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Mul"})
"""Operators that exporters put behind the last activation (Mul: by one)."""


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return attributes as Python values; numbers as arrays."""
    out: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.FLOATS:
            out[attribute.name] = np.array(attribute.floats, np.float64)
        elif attribute.type == onnx.AttributeProto.INTS:
            out[attribute.name] = np.array(attribute.ints, np.int64)
        elif attribute.type == onnx.AttributeProto.TENSOR:
            out[attribute.name.removesuffix("_as_tensor")] = numpy_helper.to_array(attribute.t).reshape(-1)
        else:
            out[attribute.name] = helper.get_attribute_value(attribute)
    return out


def ints(given: dict[str, Any], name: str) -> npt.NDArray[np.int64]:
    """Return an attribute of whole numbers, empty where the node has none."""
    value = given.get(name, np.zeros(0, np.int64))
    return np.asarray(value, np.int64)


def labels_of(given: dict[str, Any], what: str) -> int:
    """Return the number of a classifier's labels: with fewer than two onnxruntime reads beyond their end."""
    lists = [len(given.get(f"classlabels_{kind}", ())) for kind in ("ints", "int64s", "strings")]
    if sum(map(bool, lists)) != 1 or max(lists) < 2:
        raise InvalidArtifact(f"{what} has {sum(lists)} labels, expected at least 2 of one type")
    return max(lists)


def type_name(element: int) -> str:
    """Return what ONNX calls an element type."""
    known: dict[int, str] = {value: name for name, value in TensorProto.DataType.items()}
    return known.get(element, str(element))


def linear_outputs(node: onnx.NodeProto, given: dict[str, Any]) -> int:
    """Return how many numbers a linear model gives for a row."""
    if node.op_type == "LinearRegressor":
        return int(given.get("targets", 1))
    return labels_of(given, f'node "{node.name or node.op_type}"')


def parse(artifact: bytes) -> onnx.ModelProto:
    """Return a file's message.

    Raises
    ------
    DecodeError
        Where it is none.
    MemoryError
        Where there is no memory for it, which protobuf's C code says by the other error.
    """
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(artifact)
    except DecodeError as error:
        if "alloc failed" in str(error):
            raise MemoryError(str(error)) from error
        raise
    return model


def graph_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return inputs that a caller must give: old exporters list initializers among them."""
    initialized = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in initialized]


def constants_of(graph: onnx.GraphProto) -> dict[str, npt.NDArray[Any]]:
    """Return what initializers and Constant nodes hold, by name."""
    out = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                value: Any
                if attribute.name == "value":
                    value = numpy_helper.to_array(attribute.t)
                else:
                    value = np.asarray(helper.get_attribute_value(attribute))
                out[node.output[0]] = value
    return out


class Producers:
    """Which node gives which tensor."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.by_output = {name: node for node in graph.node for name in node.output if name}

    def behind(self, name: str) -> onnx.NodeProto | None:
        """Return the node that gives ``name``, past those that only change type or shape."""
        node = self.by_output.get(name)
        while node is not None and node.op_type in PASS_THROUGH:
            node = self.by_output.get(node.input[0])
        return node

    def upstream(self, name: str) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that ``name`` depends on, the nearest first."""
        seen: set[int] = set()
        queue = [name]
        while queue:
            node = self.by_output.get(queue.pop(0))
            if node is not None and id(node) not in seen:
                seen.add(id(node))
                yield node
                queue.extend(node.input)


def opset_versions(model: onnx.ModelProto) -> dict[str, int]:
    """Return the version of each domain's operators."""
    out: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        # skl2onnx names a domain twice, with one version.
        if out.setdefault(domain, entry.version) != entry.version:
            raise InvalidArtifact(f'model names two versions of operator set "{domain}"')
    return out
