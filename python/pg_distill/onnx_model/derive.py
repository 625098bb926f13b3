"""A signature out of a graph and rows: features, inputs, what stands for NULL, and what a run costs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto

from pg_distill.errors import (
    DatatypeMismatch,
    FeatureNotSupported,
    InvalidArtifact,
    InvalidData,
    InvalidParameter,
    LimitExceeded,
    PgDistillError,
)
from pg_distill.frame import Feature, Frame, Kind, Strings, Task
from pg_distill.onnx_model.assign import assign_vectors
from pg_distill.onnx_model.check import STUDENT_KEY
from pg_distill.onnx_model.cut import cut_texts
from pg_distill.onnx_model.limits import DEFAULT_LIMITS, Limits
from pg_distill.onnx_model.nodes import (
    Producers,
    graph_inputs,
    opset_versions,
    parse,
    type_name,
)
from pg_distill.onnx_model.outputs import (
    check_labels,
    check_task,
    class_names,
    find_outputs,
    form_of,
    refuse_logarithms,
)
from pg_distill.onnx_model.running import first_rows, matrix, run_graph, synthetic
from pg_distill.onnx_model.session import (
    BATCH_ROWS,
    CONVERTED_KEY,
    Model,
)
from pg_distill.onnx_model.signature import (
    Cost,
    Element,
    FeatureSpec,
    InputSpec,
    Null,
    OutputSpec,
    Reader,
    Signature,
)
from pg_distill.onnx_model.survey import Survey, survey
from pg_distill.onnx_model.tokenizer import INPUT_IDS

__all__ = ["LOGITS_TOLERANCE", "cost_of", "costed", "derive_signature", "input_shape", "survey_of"]

LOGITS_TOLERANCE = 1e-5  # logits found in a graph reproduce its probabilities within this, or are not used
_PROBE_CELLS = 1 << 20  # cells a run while it is found out which features may be NULL: 4 MB of float32


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


def derive_signature(
    model: onnx.ModelProto,
    *,
    features: Sequence[Feature] | None = None,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
    rows: Frame | None = None,
    limits: Limits = DEFAULT_LIMITS,
    class_threshold: float | None = None,
    readers: Sequence[Reader] = (),
) -> Signature:
    """Find out what ``model``, which `check` has passed, takes, gives and costs, by its graph and by running it.

    Parameters
    ----------
    features
        The caller's columns. They go to the inputs by name where every input is one column and the names
        agree, else by position; where kinds then do not fit, strings go to the string inputs and the rest
        to the others, each in order. None: those of ``rows``, else named after the inputs, or f0, f1, ...
        for one.
    task, classes
        What the graph leaves open. ``classes`` are in the order of the probabilities.
    rows
        Real rows with these features; without them a few are made up. They tell probabilities from logits,
        and which features may be NULL.
    class_threshold
        The probability from which it names the last of two classes, where that is not one half.
    readers
        What reads texts for it: ``model`` is then without the nodes that do. Columns of texts go to them by name, else by kind.

    Raises
    ------
    InvalidData, DatatypeMismatch
        Where features do not fit the inputs in number or in kind, or outputs fit no task.
    FeatureNotSupported
        For inputs and outputs of other types and shapes, sizes that depend on the features' values, and values that could end the
        process.
    LimitExceeded
        Where a run would take more than ``limits`` allow.
    InvalidParameter
        Where ``task`` or ``classes`` contradict the graph, or the graph leaves them open.
    """
    if features is None and rows is not None:
        features = rows.features
    specs, inputs = _inputs(model, features, _whole_strings(rows), readers)
    try:
        found_costs = survey_of(model, inputs, limits)
    except InvalidArtifact as error:
        if all(input_shape(value)[2] is not None for value in graph_inputs(model.graph)):
            raise
        raise InvalidData(
            f"model does not take {len(features or ())} features", detail=f"{error}."
        ) from error
    by_input = {reader.target: reader for reader in readers}
    draft = Signature(specs, inputs, OutputSpec("", "value", 1), "regression", readers=by_input)
    if rows is not None and not len(rows):
        raise InvalidData("no rows to try the model on")
    score, label, zipmap = find_outputs(model.graph)
    producers = Producers(model.graph)
    wanted = [name for name in (score, label) if name]
    draft = replace(draft, cost=cost_of(found_costs, wanted, limits))
    frame = synthetic(draft) if rows is None else first_rows(rows, draft, BATCH_ROWS)
    raw = run_graph(model, draft, frame, wanted, limits.run_bytes)
    scores = None if score is None else matrix(raw[score], score, len(frame))
    labels = None if label is None else matrix(raw[label], label, len(frame)).reshape(-1)
    output, task = form_of(model, producers, score, label, zipmap is not None, scores, task, classes)
    if task == "regression":
        refuse_logarithms(model)
        found: tuple[str, ...] = ()
        if classes:
            raise InvalidParameter("classes do not fit a regression")
    else:
        found = class_names(producers, label, zipmap, scores, labels, output, classes)
        check_task(task, len(found))
        task = "binary" if len(found) == 2 else "multiclass"
    cost = cost_of(found_costs, [output.name], limits)
    signature = Signature(specs, inputs, output, task, found, cost, by_input)
    if scores is not None and labels is not None:
        check_labels(signature, scores, labels, frame, class_threshold)
    return replace(signature, features=_with_nulls(model, signature, frame))


def costed(artifact: bytes, signature: Signature) -> Signature:
    """Return the signature of a file that was approved, with what a run costs and what reads its texts."""
    served, readers = cut_texts(artifact)
    model, tokens = parse(served), signature.max_tokens
    found = survey_of(model, signature.inputs, DEFAULT_LIMITS, tokens)
    seconds = DEFAULT_LIMITS.node_seconds if tokens is None else DEFAULT_LIMITS.text_node_seconds
    cost = found.cost([signature.output.name], seconds * 1e9)
    return replace(signature, cost=cost, readers={reader.target: reader for reader in readers})


def survey_of(
    model: onnx.ModelProto,
    inputs: Sequence[InputSpec],
    limits: Limits,
    tokens: int | None = None,
    before: Survey | None = None,
) -> Survey:
    """Return what a walk over the graph finds, without running it, within ``limits``; of a transformer for so many tokens."""
    return survey(
        model.graph,
        inputs,
        opset_versions(model),
        tensor_elements=limits.tensor_elements,
        node_seconds=limits.node_seconds if tokens is None else limits.text_node_seconds,
        open_seconds=limits.open_seconds,
        constant_bytes=limits.initializer_bytes,
        tokens=tokens,
        before=before,
    )


def cost_of(found: Survey, outputs: Sequence[str], limits: Limits) -> Cost:
    """Return what a run takes that gives ``outputs``; LimitExceeded where one row takes too much."""
    cost = found.cost(outputs, limits.node_seconds * 1e9)
    seconds = (cost.fixed_ns + cost.row_ns) / 1e9
    if seconds > limits.run_seconds:
        raise LimitExceeded(f"model may take {seconds:.3g} s for one row, limit is {limits.run_seconds:g} s")
    if cost.rows(limits.run_bytes) < 1:
        raise LimitExceeded(
            f"model may take {cost.bytes(1)} bytes for one row, limit is {limits.run_bytes}",
            hint="An administrator may raise the setting predict_memory_mb.",
        )
    return cost


def _whole_strings(rows: Frame | None) -> frozenset[str]:
    """Return the columns of strings that are digits throughout, as integers beyond 2**53 are: an int64 input takes them."""
    if rows is None:
        return frozenset()
    return frozenset(
        name
        for name in rows.string_names
        if (known := rows.strings(name).categories) and all(map(_DIGITS.fullmatch, known))
    )


_DIGITS = re.compile(r"-?[0-9]{1,19}")


def _inputs(
    model: onnx.ModelProto,
    features: Sequence[Feature] | None,
    whole: frozenset[str],
    readers: Sequence[Reader] = (),
) -> tuple[tuple[FeatureSpec, ...], tuple[InputSpec, ...]]:
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


def _with_nulls(model: onnx.ModelProto, signature: Signature, frame: Frame) -> tuple[FeatureSpec, ...]:
    """Return the features, those marked "error" for which NULL makes the model fail or give NaN.

    A linear model or a network has no answer to NaN; an imputer or a tree has. Asked of the model itself: one
    row without NULL, once with each feature NULL.
    """
    specs = list(signature.features)
    base = _without_nulls(frame)
    probe = Model(model.SerializeToString(), signature)
    if base is None or not np.isfinite(probe.run_frame(base)).all():
        return signature.features
    floats = [i for i, s in enumerate(specs) if s.null == "nan"]
    chunk = max(1, _PROBE_CELLS // len(specs))
    for start in range(0, len(floats), chunk):
        part = floats[start : start + chunk]
        rows = base.take(np.zeros(len(part), np.int64))
        columns = dict(rows.columns)
        for row, position in enumerate(part):
            column = rows.columns[specs[position].name].copy()  # type: ignore[union-attr]
            column[row] = np.nan
            columns[specs[position].name] = column
        try:
            good = [bool(np.isfinite(p).all()) for p in probe.run_frame(Frame(rows.features, columns))]
        except PgDistillError:
            good = [False] * len(part)
        for position, fine in zip(part, good, strict=True):
            if not fine:
                specs[position] = replace(specs[position], null="error")
    for position, spec in enumerate(specs):
        if spec.null == "empty":
            null = Strings(np.full(1, -1, np.int32), base.strings(spec.name).categories)
            try:
                fine = bool(
                    np.isfinite(
                        probe.run_frame(Frame(base.features, {**base.columns, spec.name: null}))
                    ).all()
                )
            except PgDistillError:
                fine = False
            if not fine:
                specs[position] = replace(spec, null="error")
    return tuple(specs)


def _without_nulls(frame: Frame) -> Frame | None:
    """Return one row, each column's first value that is not NULL; None where a column has none."""
    columns: dict[str, Any] = {}
    for feature in frame.features:
        if feature.is_string:
            strings = frame.strings(feature.name)
            good = np.flatnonzero(strings.codes >= 0)
        else:
            column = frame.columns[feature.name]
            assert not isinstance(column, Strings)
            finite = np.isfinite(column)
            good = np.flatnonzero(finite.all(axis=1) if feature.is_vector else finite)
        if not len(good):
            return None
        column = frame.columns[feature.name]
        columns[feature.name] = column.take(good[:1]) if isinstance(column, Strings) else column[good[:1]]
    return Frame(frame.features, columns)
