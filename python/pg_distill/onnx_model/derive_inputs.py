"""Which features a graph's inputs read: by their names, shapes and elements, and the rows' columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import onnx
from onnx import TensorProto

from pg_distill.errors import (
    DatatypeMismatch,
    FeatureNotSupported,
    InvalidData,
    InvalidParameter,
    LimitExceeded,
)
from pg_distill.frame import Feature, Frame, Kind
from pg_distill.onnx_model.assign import assign_vectors
from pg_distill.onnx_model.check import STUDENT_KEY
from pg_distill.onnx_model.limits import DEFAULT_LIMITS
from pg_distill.onnx_model.nodes import (
    graph_inputs,
    type_name,
)
from pg_distill.onnx_model.session import (
    CONVERTED_KEY,
)
from pg_distill.onnx_model.signature import (
    Element,
    FeatureSpec,
    InputSpec,
    Null,
    Reader,
)
from pg_distill.onnx_model.tokenizer import INPUT_IDS

__all__ = ["assign_inputs", "input_shape", "whole_strings"]

_ELEMENTS: dict[int, Element] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "string",
}

_DEFAULT_KIND: dict[Element, Kind] = {
    "float32": "number",
    "float64": "number",
    "int64": "integer",
    "int32": "integer",
    "bool": "boolean",
    "string": "string",
}


def whole_strings(rows: Frame | None) -> frozenset[str]:
    """Return the columns of strings that are digits throughout, as integers beyond 2**53 are: an int64 input takes them."""
    if rows is None:
        return frozenset()
    return frozenset(
        name
        for name in rows.string_names
        if (known := rows.strings(name).categories) and all(map(_DIGITS.fullmatch, known))
    )


_DIGITS = re.compile(r"-?[0-9]{1,19}")


def assign_inputs(
    model: onnx.ModelProto,
    features: Sequence[Feature] | None,
    whole: frozenset[str],
    readers: Sequence[Reader] = (),
) -> tuple[tuple[FeatureSpec, ...], tuple[InputSpec, ...]]:
    """Return what a graph's features are, of the columns given or named after its inputs, and which inputs read them.

    ``whole`` are the columns of strings that an int64 input may take; ``readers`` read columns of texts outside the graph.
    """
    targets = {reader.target for reader in readers}
    given = [value for value in graph_inputs(model.graph) if value.name not in targets]
    shapes = [input_shape(value) for value in given]
    names = [value.name for value in given]
    columns = readers[0].columns if readers else ()
    unknown = [i for i, (_, _, width, _) in enumerate(shapes) if width is None]
    if unknown and INPUT_IDS in names:
        raise InvalidData(
            "model reads the tokens of texts, and holds no tokenizer",
            hint="Pass its tokenizer.json: tokenizer => ... ; pg-distill register reads it from an exported folder.",
        )
    if unknown:
        if features is None or len(unknown) > 1:
            raise InvalidData(
                f'input "{names[unknown[0]]}" has no declared width', hint="Name the feature columns."
            )
        element, rank, _, batch = shapes[unknown[0]]
        rest = sum(f.width for f in features) - len(columns) - sum(width or 0 for _, _, width, _ in shapes)
        shapes[unknown[0]] = (element, rank, max(rest, 1), batch)
    widths = [cast(int, width) for _, _, width, _ in shapes]
    total = sum(widths) + len(columns)
    if total > DEFAULT_LIMITS.features:
        raise LimitExceeded(f"model takes {total} features, limit is {DEFAULT_LIMITS.features}")
    if features is None:
        features = [
            Feature(
                name if width == 1 and len(names) > 1 else f"f{i}" if len(names) == 1 else f"{name}_{i}",
                _DEFAULT_KIND[shape[0]],
            )
            for name, width, shape in zip(names, widths, shapes, strict=True)
            for i in range(width)
        ]
        features += [Feature(column, "text") for column in columns]
    given_width = sum(f.width for f in features)
    vectors = any(f.is_vector for f in features)
    words = [f for f in features if f.is_string]
    if given_width != total and words and not columns and "string" not in {shape[0] for shape in shapes}:
        raise DatatypeMismatch(
            f'feature "{words[0].name}" is of kind {words[0].kind}, and the model takes {total} numbers'
        )
    if given_width != total:
        what = "numbers and strings" if vectors else "features"
        lengths = ", ".join(f'"{f.name}" has {f.length}' for f in features if f.is_vector)
        raise InvalidData(
            f"model takes {total} {what}, not {given_width}",
            detail=f"Vector {lengths}." if lengths else None,
        )
    if len({f.name for f in features}) != len(features):
        raise InvalidParameter("two features have one name")
    knows_null = any(p.key in (STUDENT_KEY, CONVERTED_KEY) for p in model.metadata_props)
    slots = [
        i for i, width in enumerate(widths) for _ in range(width)
    ]  # input of each of the graph's columns
    texts = _texts(features, columns)
    others = [i for i in range(len(features)) if i not in set(texts)]
    elements = [shapes[i][0] for i in slots]
    if vectors:
        shares = assign_vectors([features[i] for i in others], names, widths, [s[0] for s in shapes])
    else:
        straight = iter(_assign([features[i] for i in others], names, widths, elements))
        shares = [[next(straight) for _ in range(width)] for width in widths]
    null: dict[int, Null] = {}
    inputs: list[InputSpec] = []
    for name, share, (element, rank, _, batch) in zip(names, shares, shapes, strict=True):
        mine = tuple(others[i] for i in share)
        for i in mine:
            is_string = features[i].is_string
            if (element == "string") != is_string and not (element == "int64" and features[i].name in whole):
                raise DatatypeMismatch(
                    f'feature "{features[i].name}" is of kind {features[i].kind},'
                    f' input "{name}" of type {element}'
                )
            null[i] = (
                ("string" if knows_null else "empty")
                if element == "string"
                else ("nan" if element in ("float32", "float64") else "error")
            )
        cells = sum(features[i].width for i in mine) if any(features[i].is_vector for i in mine) else 0
        inputs.append(InputSpec(name, element, rank, mine, batch, cells=cells))
    for reader in readers:
        feature = (texts[reader.column],)
        null[feature[0]] = reader.null
        inputs.append(InputSpec(reader.target, reader.element, 2, feature, words=reader.width))
    found = [
        FeatureSpec(f.name, "text" if i in set(texts) else f.kind, null.get(i, "string"), f.length)
        for i, f in enumerate(features)
    ]
    return tuple(found), tuple(inputs)


def _texts(features: Sequence[Feature], columns: Sequence[str]) -> list[int]:
    """Return the positions of the features that a file reads as texts, in the order of its ``columns``."""
    position = {f.name: i for i, f in enumerate(features)}
    found = [position.get(column, -1) for column in columns]
    if any(i < 0 for i in found):
        found = [i for i, f in enumerate(features) if f.kind == "text"]
    if len(found) != len(columns):
        raise InvalidData(
            f"model reads {len(columns)} columns of texts, which the features do not name",
            hint=f"Name the features as the model does: {', '.join(columns)}.",
        )
    for i in found:
        if not features[i].is_string:
            raise DatatypeMismatch(
                f'feature "{features[i].name}" is of kind {features[i].kind}, the model reads it as a text'
            )
    return found


def _assign(
    features: Sequence[Feature], names: Sequence[str], widths: Sequence[int], elements: Sequence[Element]
) -> list[int]:
    """Return, for each of the graph's columns, the position of its feature."""
    position = {f.name: i for i, f in enumerate(features)}
    if len(names) > 1 and all(w == 1 for w in widths):
        if set(position) == set(names):
            return [position[name] for name in names]
        moved = [n for i, n in enumerate(names) if n in position and position[n] != i]
        if moved:
            raise InvalidData(
                f'feature "{moved[0]}" is an input of the model, but not in its place',
                hint="Name all features as the inputs are named, or give them in the order of the inputs.",
            )
    straight = list(range(len(features)))
    strings = [i for i in straight if features[i].is_string]
    if len(strings) != sum(e == "string" for e in elements):
        return straight  # the kinds do not fit in any order; the caller's error names the first that does not
    if all(features[i].is_string == (e == "string") for i, e in zip(straight, elements, strict=True)):
        return straight
    others = [i for i in straight if not features[i].is_string]
    return [strings.pop(0) if e == "string" else others.pop(0) for e in elements]


def input_shape(value: onnx.ValueInfoProto) -> tuple[Element, int, int | None, int | None]:
    """Return (element, rank, width or None, fixed batch or None)."""
    if value.type.WhichOneof("value") != "tensor_type":
        raise FeatureNotSupported(f'input "{value.name}" is not a tensor')
    tensor = value.type.tensor_type
    if tensor.elem_type not in _ELEMENTS:
        raise FeatureNotSupported(
            f'input "{value.name}" is of type {type_name(tensor.elem_type)}',
            hint="Export it with inputs of float32, float64, int64, int32, bool or string, and cast them inside the graph.",
        )
    element = _ELEMENTS[tensor.elem_type]
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    if not tensor.HasField("shape"):
        dims = [None, None]
    if len(dims) not in (1, 2):
        raise FeatureNotSupported(f'input "{value.name}" has {len(dims)} dimensions, expected 2')
    # 0 and -1 stand for "any" in some exporters.
    batch = dims[0] if dims[0] is not None and dims[0] > 0 else None
    if batch not in (None, 1):
        raise FeatureNotSupported(
            f'input "{value.name}" takes exactly {batch} rows',
            hint="Export the model with a dynamic batch size.",
        )
    if len(dims) == 1:
        return element, 1, 1, batch
    width = dims[1] if dims[1] is not None and dims[1] > 0 else None
    return element, 2, width, batch
