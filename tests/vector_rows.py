"""Tables of embeddings for tests: sentences' vectors as a model would give them, and classifier heads over these as ONNX files."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

__all__ = ["embeddings", "head"]


def embeddings(
    rows: int, length: int, *, topics: int = 6, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return vectors (n, length) of length 1, some directions far stronger than others, and the topic (n,) of each."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((topics, length)) * 0.6
    topic = rng.integers(0, topics, rows)
    decay = 1.0 / np.sqrt(1 + np.arange(length) / 8)
    mix = np.linalg.qr(rng.standard_normal((length, length)))[0]
    values = centres[topic] + (rng.standard_normal((rows, length)) * decay * 2) @ mix
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values.astype(np.float32), topic


def head(
    weights: npt.NDArray[Any],
    bias: npt.NDArray[Any],
    *,
    name: str = "embedding",
    hidden: npt.NDArray[Any] | None = None,
    element: int = TensorProto.FLOAT,
    numbers: int = 0,
) -> bytes:
    """Return a classifier of K classes: softmax(x @ weights + bias), with ``hidden`` softmax(relu(x @ hidden) @ weights + bias).

    ``numbers`` more numbers arrive as an input of their own, and are beside the vector what it reads.
    """
    length = (hidden if hidden is not None else weights).shape[0] - numbers
    kind = np.float32 if element == TensorProto.FLOAT else np.float64
    nodes, tensors = [], []

    def constant(values: npt.NDArray[Any]) -> str:
        tensors.append(numpy_helper.from_array(np.asarray(values, kind), f"c{len(tensors)}"))
        return tensors[-1].name

    inputs = [helper.make_tensor_value_info(name, element, [None, length])]
    x = name
    if numbers:
        inputs.append(helper.make_tensor_value_info("others", element, [None, numbers]))
        nodes.append(helper.make_node("Concat", [name, "others"], ["all"], axis=1))
        x = "all"
    if hidden is not None:
        nodes.append(helper.make_node("MatMul", [x, constant(hidden)], ["h"]))
        nodes.append(helper.make_node("Relu", ["h"], ["r"]))
        x = "r"
    nodes.append(helper.make_node("Gemm", [x, constant(weights), constant(bias)], ["z"]))
    nodes.append(helper.make_node("Softmax", ["z"], ["probabilities"], axis=1))
    output = helper.make_tensor_value_info("probabilities", element, [None, weights.shape[1]])
    graph = helper.make_graph(nodes, "head", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
