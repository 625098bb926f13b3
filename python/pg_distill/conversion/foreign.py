"""A scikit-learn model that is not known here, by skl2onnx, over numbers alone."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx

from pg_distill.conversion.graph import ML_OPSET, OPSET, Graph
from pg_distill.errors import FeatureNotSupported

__all__ = ["add_foreign", "some_lines"]

DETAIL_LINES, DETAIL_CHARACTERS = 3, 300
"""Of another library's message: the beginning says what it is, the rest may be a page for each tree."""


def some_lines(error: BaseException) -> str:
    """Return the beginning of another library's message, as a sentence for DETAIL."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()][:DETAIL_LINES]
    text = f"{type(error).__name__}: {' '.join(lines)}"
    return text if len(text) <= DETAIL_CHARACTERS else text[: DETAIL_CHARACTERS - 4] + " ..."


def add_foreign(graph: Graph, model: Any, x: str, width: int, method: str) -> tuple[str, int]:
    """Add what ``method`` of a scikit-learn model gives for ``x``, (n, width) float64; return the tensor and its width.

    In float64 where skl2onnx has it so, else in float32.

    Raises
    ------
    FeatureNotSupported
        skl2onnx does not know the model, or makes operators of it that a server does not take.
    """
    name = type(model).__name__
    from pg_distill.conversion.preprocessing import WHAT_ELSE

    failed: Exception | None = None
    for wide in (True, False):
        try:
            proto = _converted(model, width, method, wide)
        except ImportError:
            raise
        except Exception as error:
            failed = failed or error
            continue
        foreign = [n.op_type for n in proto.graph.node if n.domain not in ("", "ai.onnx", "ai.onnx.ml")]
        foreign += [n.op_type for n in proto.graph.node if any(a.HasField("g") for a in n.attribute)]
        if foreign:
            failed = NotImplementedError(f"skl2onnx makes operator {foreign[0]} of it")
            continue
        output = {"predict_proba": "probabilities"}.get(method, "variable")
        try:
            _try(proto, width, output, wide)
        except Exception as error:
            failed = failed or error
            continue
        source = x if wide else graph.cast(x, np.float32)
        found = graph.cast(graph.inline(proto, {"X": source}, output))
        return found, _width(proto, output, model, method)
    raise FeatureNotSupported(
        f"{name} cannot be converted to ONNX", detail=some_lines(failed) if failed else None, hint=WHAT_ELSE
    ) from failed


def _converted(model: Any, width: int, method: str, wide: bool) -> onnx.ModelProto:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    kind = DoubleTensorType if wide else FloatTensorType
    options = {id(model): {"zipmap": False}} if method == "predict_proba" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto: onnx.ModelProto = to_onnx(
            model,
            initial_types=[("X", kind([None, width]))],
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
            options=options,
        )
    return proto


def _try(proto: onnx.ModelProto, width: int, output: str, wide: bool) -> None:
    """Open and run the graph, of which ONNX Runtime may have no kernel for float64, on two rows."""
    from pg_distill.onnx_model.session import open_session

    rows = np.zeros((2, width), np.float64 if wide else np.float32)
    found = open_session(proto.SerializeToString()).run([output], {"X": rows})[0]
    if np.ndim(found) < 1 or len(found) != 2:
        raise ValueError(f"it gives shape {np.shape(found)} for 2 rows")


def _width(proto: onnx.ModelProto, output: str, model: Any, method: str) -> int:
    if method == "predict_proba":
        return len(model.classes_)
    if method == "predict":
        return 1
    for value in proto.graph.output:
        dims = value.type.tensor_type.shape.dim
        if value.name == output and len(dims) == 2 and dims[1].dim_value > 0:
            return int(dims[1].dim_value)
    return len(model.get_feature_names_out())
