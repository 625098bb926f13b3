"""A signature out of a graph and rows: features, inputs, what stands for NULL, and what a run costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from pg_distill.errors import (
    InvalidArtifact,
    InvalidData,
    InvalidParameter,
    LimitExceeded,
    PgDistillError,
)
from pg_distill.frame import Feature, Frame, Strings, Task
from pg_distill.onnx_model.cut import cut_texts
from pg_distill.onnx_model.derive_inputs import assign_inputs, input_shape, whole_strings
from pg_distill.onnx_model.label_thresholds import thresholds_of
from pg_distill.onnx_model.limits import DEFAULT_LIMITS, Limits
from pg_distill.onnx_model.nodes import (
    Producers,
    graph_inputs,
    opset_versions,
    parse,
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
    Model,
)
from pg_distill.onnx_model.signature import (
    Cost,
    FeatureSpec,
    InputSpec,
    OutputSpec,
    Reader,
    Signature,
)
from pg_distill.onnx_model.survey import Survey, survey

__all__ = ["LOGITS_TOLERANCE", "cost_of", "costed", "derive_signature", "survey_of"]

LOGITS_TOLERANCE = 1e-5  # logits found in a graph reproduce its probabilities within this, or are not used
_PROBE_CELLS = 1 << 20  # cells a run while it is found out which features may be NULL: 4 MB of float32


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
    specs, inputs = assign_inputs(model, features, whole_strings(rows), readers)
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
    label = None if task == "multilabel" and score is not None else label  # as a rule of one threshold
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
        task = check_task(task, len(found))
    cost = cost_of(found_costs, [output.name], limits)
    thresholds = thresholds_of(model, len(found)) if task == "multilabel" else ()
    signature = Signature(specs, inputs, output, task, found, cost, by_input, thresholds=thresholds)
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
    cost.require(limits.run_bytes, "row")
    return cost


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
