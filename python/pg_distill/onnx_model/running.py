"""Runs of a graph by those who look at it: on made-up rows or given ones, each with its time limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from pg_distill.errors import (
    FeatureNotSupported,
    InvalidData,
)
from pg_distill.frame import Column, Feature, Frame, Strings
from pg_distill.onnx_model.cut import prune
from pg_distill.onnx_model.session import (
    RUN_BYTES,
    first_line,
    open_session,
    runtime_errors,
)
from pg_distill.onnx_model.signature import (
    Signature,
)
from pg_distill.onnx_model.values import encode

__all__ = ["TRY_NS", "first_rows", "longest", "matrix", "run_graph", "run_session", "synthetic"]

_SYNTHETIC_ROWS = 64  # rows made up where none are given: enough that logits leave [0, 1]
_LEAST_ROWS = 4  # rows that a slow model is tried on
TRY_NS = 10e9  # that a model is tried for, by its cost, which is mostly a tenth of that in fact


def first_rows(rows: Frame, signature: Signature, most: int) -> Frame:
    """Return the first rows, ``most`` of them and of a slow model fewer."""
    if signature.cost is not None:
        most = min(most, max(int(TRY_NS / max(signature.cost.row_ns, 1)), _LEAST_ROWS))
    return rows.take(np.arange(min(len(rows), most)))


def synthetic(signature: Signature) -> Frame:
    """Return rows made up where the caller has none: normal numbers, zeros and ones, empty strings."""
    specs, inputs = signature.features, signature.inputs
    rng = np.random.default_rng(0)
    integer = {i for spec in inputs if spec.element in ("int64", "int32", "bool") for i in spec.features}
    columns: dict[str, Column] = {}
    for position, spec in enumerate(specs):
        if spec.is_string:
            columns[spec.name] = Strings(np.zeros(_SYNTHETIC_ROWS, np.int32), ("",))
        elif spec.is_vector:
            numbers = rng.normal(0.0, 3.0, (_SYNTHETIC_ROWS, spec.length))
            columns[spec.name] = (numbers > 0 if position in integer else numbers).astype(np.float32)
        elif spec.kind == "boolean" or position in integer:
            columns[spec.name] = rng.integers(0, 2, _SYNTHETIC_ROWS).astype(np.float64)
        else:
            columns[spec.name] = rng.normal(0.0, 3.0, _SYNTHETIC_ROWS)
    rows = Frame(tuple(Feature(s.name, s.kind) for s in specs), columns)
    return first_rows(rows, signature, _SYNTHETIC_ROWS)


def run_graph(
    model: onnx.ModelProto,
    signature: Signature,
    frame: Frame,
    names: Sequence[str],
    run_bytes: int = RUN_BYTES,
) -> dict[str, npt.NDArray[Any]]:
    """Run the graph on ``frame`` and return the tensors ``names``, outputs or not."""
    if signature.max_tokens is not None:
        from pg_distill.onnx_model.text_model import run_texts

        return run_texts(model.SerializeToString(), signature, frame, names)
    session = open_session(prune(model.SerializeToString(), names))
    rows = 1 if signature.cost is None else max(signature.cost.rows(run_bytes, longest(frame)), 1)
    if len(frame) <= rows:
        return run_session(session, signature, encode(signature, frame), names, rows)
    parts = []
    for start in range(0, len(frame), rows):  # a text may be wide: not all rows are encoded at once
        part = frame.take(np.arange(start, min(start + rows, len(frame))))
        parts.append(run_session(session, signature, encode(signature, part), names, rows))
    return {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in names}


def longest(frame: Frame) -> int:
    """Return the bytes of the longest string."""
    texts = (t for f in frame.features if f.is_string for t in frame.strings(f.name).categories)
    return max((len(text.encode(errors="surrogatepass")) for text in texts), default=0)


def run_session(
    session: ort.InferenceSession,
    signature: Signature,
    feeds: dict[str, npt.NDArray[Any]],
    names: Sequence[str],
    most: int,
) -> dict[str, npt.NDArray[Any]]:
    """Return the named outputs of a run in pieces of at most ``most`` rows."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    rows = len(next(iter(feeds.values())))
    step = 1 if any(i.batch == 1 for i in signature.inputs) else min(rows, most)
    parts: list[list[Any]] = []
    try:
        for start in range(0, rows, step):
            chunk = {name: array[start : start + step] for name, array in feeds.items()}
            parts.append(session.run(list(names), chunk, options))
    except runtime_errors as error:
        raise InvalidData("model fails on the rows given", detail=first_line(error)) from error
    return {
        name: parts[0][i] if len(parts) == 1 else np.concatenate([np.atleast_1d(p[i]) for p in parts])
        for i, name in enumerate(names)
    }


def matrix(value: Any, name: str, rows: int) -> npt.NDArray[Any]:
    """Return an output as (rows, width)."""
    if not isinstance(value, np.ndarray) or value.size % rows or not value.size:
        raise InvalidData(f'output "{name}" does not give one result a row')
    if value.ndim not in (1, 2) or (value.ndim == 1 and value.size != rows) or value.shape[0] != rows:
        raise FeatureNotSupported(f'output "{name}" has shape {value.shape} for {rows} rows')
    return value.reshape(rows, -1)
