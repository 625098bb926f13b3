"""Whether a file may be opened: checked, its signature derived or held against the one stored, and tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from pg_distill.errors import (
    ArtifactCorrupted,
    DatatypeMismatch,
    FeatureNotSupported,
    InvalidData,
    InvalidName,
    NullNotAllowed,
    UndefinedColumn,
)
from pg_distill.frame import Column, Feature, FloatArray, Frame, Strings, Task
from pg_distill.onnx_model.check import STUDENT_KEY, check, check_file
from pg_distill.onnx_model.cut import prune
from pg_distill.onnx_model.derive import cost_of, derive_signature, survey_of
from pg_distill.onnx_model.derive_inputs import input_shape
from pg_distill.onnx_model.limits import DEFAULT_LIMITS, Limits
from pg_distill.onnx_model.nodes import (
    graph_inputs,
)
from pg_distill.onnx_model.outputs import find_outputs
from pg_distill.onnx_model.rules import Tensor, item_bytes
from pg_distill.onnx_model.running import TRY_NS, longest, run_session, synthetic
from pg_distill.onnx_model.session import (
    CONVERTED_KEY,
    Model,
    open_session,
    runtime_errors,
)
from pg_distill.onnx_model.signature import (
    FeatureSpec,
    Null,
    Reader,
    Signature,
)
from pg_distill.onnx_model.survey import ELEMENT_TYPES, Survey
from pg_distill.onnx_model.text_model import TextModel
from pg_distill.onnx_model.tokenizer import DEFAULT_TOKENS, HELD_A_BYTE, Tokens, metadata
from pg_distill.onnx_model.tokenizer_rules import open_tokenizer
from pg_distill.onnx_model.transformer import (
    derive_text,
    hold_tokens,
    shape_feeds,
    text_inputs,
    try_text,
    walk,
)
from pg_distill.onnx_model.trial import peak_bytes, run_extremes, try_model
from pg_distill.onnx_model.values import encode

__all__ = ["Approval", "approve"]


@dataclass(frozen=True)
class Approval:
    """A file that may be opened in a backend.

    ``outputs`` are its predictions for the rows given, (n, K) or (n, 1), or none.
    """

    signature: Signature
    outputs: FloatArray


def approve(
    artifact: bytes,
    signature: Signature | None = None,
    *,
    features: Sequence[Feature] | None = None,
    names: Sequence[str] | None = None,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
    rows: Frame | None = None,
    limits: Limits = DEFAULT_LIMITS,
    class_threshold: float | None = None,
    max_tokens: int = DEFAULT_TOKENS,
) -> Approval:
    """Say whether backends may open ``artifact``: the one check, whichever way a file comes.

    Parameters
    ----------
    signature
        That is stored with it, and may not be of our making; None where it is to be found out, from the other arguments.
    features, task, classes, rows, class_threshold
        As in `derive_signature`.
    names
        What the features are called, in the place of what the graph calls them.
    max_tokens
        Of a text, where the file holds a tokenizer.

    Raises
    ------
    InvalidArtifact, LimitExceeded, FeatureNotSupported, InvalidData, NullNotAllowed, DatatypeMismatch, InvalidParameter
        As `check`, `derive_signature` and `trial_run`.
    ArtifactCorrupted
        Where ``signature`` is not the file's.
    """
    tokenizer = metadata(artifact)
    if tokenizer is not None:
        model = check(artifact, limits)
        if signature is not None and signature.max_tokens is None:
            raise _other_signature("it reads no tokens")
        tokens = open_tokenizer(tokenizer, max_tokens if signature is None else signature.max_tokens or 0)
        if signature is None:
            signature, found = derive_text(
                model,
                tokens,
                features=features,
                task=task,
                classes=classes,
                rows=rows,
                limits=limits,
                class_threshold=class_threshold,
            )
            signature = _renamed(signature, names)
        else:
            signature, found = _text_held_against(model, signature, tokens, limits)
        assert signature.cost is not None
        held = signature.cost.held_bytes + HELD_A_BYTE * len(tokenizer)
        signature = replace(signature, cost=replace(signature.cost, held_bytes=held))
        return _approve_text(model, artifact, signature, tokens, found, rows, limits)
    model, readers = check_file(artifact, limits)
    if signature is None:
        signature = derive_signature(
            model,
            features=features,
            task=task,
            classes=classes,
            rows=rows,
            limits=limits,
            class_threshold=class_threshold,
            readers=readers,
        )
        signature = _renamed(signature, names)
    else:
        if signature.max_tokens is not None:
            raise _other_signature("it reads tokens")
        signature = _held_against(model, signature, limits, readers)
    _check_names(signature, limits)
    made_up = synthetic(signature)
    _hold_shapes(model, signature, rows if rows is not None else made_up, limits)
    before = peak_bytes(reset=True)
    opened = Model(artifact, signature, run_bytes=limits.run_bytes)
    outputs = try_model(opened, rows, limits, before)
    run_extremes(opened, limits)
    return Approval(signature, outputs)


def _renamed(signature: Signature, names: Sequence[str] | None) -> Signature:
    if names is None:
        return signature
    if len(names) != len(signature.features):
        raise InvalidData(f"expected {len(signature.features)} features, not {len(names)}")
    renamed = zip(signature.features, names, strict=True)
    return replace(signature, features=tuple(replace(f, name=name) for f, name in renamed))


def _approve_text(
    model: onnx.ModelProto,
    artifact: bytes,
    signature: Signature,
    tokens: Tokens,
    found: Survey,
    rows: Frame | None,
    limits: Limits,
) -> Approval:
    """Take the last steps with a transformer: names, shapes, and runs as a backend makes them."""
    _check_names(signature, limits)
    names = _tensor_names(found)
    session = open_session(prune(model.SerializeToString(), names))
    for length, feed in shape_feeds(signature, tokens):
        part = survey_of(model, signature.inputs, limits, length, found)
        try:
            given = session.run(names, feed)
        except runtime_errors:
            continue
        for name, array in zip(names, given, strict=True):
            _hold_tensor(part.tensors[name], np.asarray(array), 1, 0)
    del session
    before = peak_bytes(reset=True)
    opened = TextModel(artifact, signature, run_bytes=limits.run_bytes, tokens=tokens)
    return Approval(signature, try_text(opened, tokens, rows, limits, before))


def _text_held_against(
    model: onnx.ModelProto, stored: Signature, tokens: Tokens, limits: Limits
) -> tuple[Signature, Survey]:
    """Return a transformer's stored signature, with its cost, and the walk of its graph, if it is one of this file."""
    if text_inputs(model) != stored.inputs:
        raise _other_signature("it has other inputs")
    wrong = _output_difference(model, stored)
    if wrong is not None:
        raise _other_signature(wrong)
    found, cost = walk(model, stored.inputs, tokens.max_tokens, [stored.output.name], limits)
    _hold_output(found, stored)
    hold_tokens(model, stored.inputs, tokens)
    return replace(stored, cost=cost), found


def _check_names(signature: Signature, limits: Limits) -> None:
    """Refuse names that PostgreSQL cannot hold, or nobody reads."""
    names = [*signature.names, *signature.classes, signature.output.name, *(i.name for i in signature.inputs)]
    for name in names:
        if len(name) > limits.name_characters:
            raise InvalidName(
                f"a name in the model has {len(name)} characters, limit is {limits.name_characters}"
            )
        if "\x00" in name or any("\ud800" <= c <= "\udfff" for c in name):
            raise InvalidName("a name in the model has characters that PostgreSQL cannot hold")
    if not all(signature.names):
        raise InvalidName("a feature of the model has no name")


def _held_against(
    model: onnx.ModelProto, stored: Signature, limits: Limits, readers: Sequence[Reader]
) -> Signature:
    """Return a stored signature, with its cost and readers, if it is one of this file."""
    by_input = {reader.target: reader for reader in readers}
    wrong = _first_difference(model, stored, by_input) or _output_difference(model, stored)
    if wrong is not None:
        raise _other_signature(wrong)
    found = survey_of(model, stored.inputs, limits)
    cost = cost_of(found, [stored.output.name], limits)
    _hold_output(found, stored)
    return replace(stored, cost=cost, readers=by_input)


def _hold_output(found: Survey, stored: Signature) -> None:
    """Demand that the output is of the type and the shape that a stored signature says."""
    output = stored.output
    given = found.tensors[output.name]
    rows = given.shape[0] if given.rank else None
    expected = ELEMENT_TYPES[output.element] if output.element != "string" else TensorProto.STRING
    if (
        given.element != expected
        or rows is None
        or given.size != rows * output.width
        or rows != found.tensors[stored.inputs[0].name].shape[0]
    ):
        raise _other_signature(f"it gives {output.width} numbers a row of type {output.element}")


def _other_signature(said: str) -> ArtifactCorrupted:
    return ArtifactCorrupted(
        "stored signature of the model is not its file's", detail=f"The signature says that {said}."
    )


def _first_difference(model: onnx.ModelProto, stored: Signature, readers: Mapping[str, Reader]) -> str | None:
    """Return what a stored signature says that is not so, as far as no shape is needed to see it."""
    inputs = graph_inputs(model.graph)
    if [value.name for value in inputs] != [spec.name for spec in stored.inputs]:
        return "it has other inputs"
    knows_null = any(p.key in (STUDENT_KEY, CONVERTED_KEY) for p in model.metadata_props)
    texts: dict[int, int] = {}
    for value, spec in zip(inputs, stored.inputs, strict=True):
        reader = readers.get(value.name)
        if (reader.width if reader is not None else 0) != spec.words:
            return f'input "{spec.name[:80]}" has {spec.words} numbers of a text'
        if reader is not None:
            (place,) = spec.features
            feature = stored.features[place]
            if texts.setdefault(reader.column, place) != place or feature.null != reader.null:
                return f'input "{spec.name[:80]}" reads another column'
            if feature.kind != "text" or (spec.element, spec.rank, spec.batch) != (reader.element, 2, None):
                return f'input "{spec.name[:80]}" is of another type'
            continue
        element, rank, width, batch = input_shape(value)
        if (element, rank, batch) != (spec.element, spec.rank, spec.batch):
            return f'input "{spec.name[:80]}" is of another type'
        if width not in (None, spec.columns):
            return f'input "{spec.name[:80]}" has {spec.columns} columns'
        if spec.rank == 1 and spec.columns != 1:
            return f'input "{spec.name[:80]}" has {len(spec.features)} columns'
        allowed: set[Null] = {"error"}
        if element == "string":
            allowed.add("string" if knows_null else "empty")
        elif element in ("float32", "float64"):
            allowed.add("nan")
        for feature in (stored.features[i] for i in spec.features):
            if feature.is_string != (element == "string") or feature.null not in allowed:
                return f'feature "{feature.name[:80]}" is {feature.kind}, NULL {feature.null}'
    positions = sorted(
        [*(i for spec in stored.inputs if not spec.words for i in spec.features), *texts.values()]
    )
    # A text of which nothing was learned is a feature that nobody reads.
    unread = {i for i, f in enumerate(stored.features) if readers and f.kind == "text"} - set(positions)
    if sorted([*positions, *unread]) != list(range(len(stored.features))):
        return "a feature is read twice, or not"
    if len(set(stored.names)) != len(stored.names):
        return "two features have one name"
    return None


def _output_difference(model: onnx.ModelProto, stored: Signature) -> str | None:
    """Return what a stored signature says of the output that is not so."""
    score, label, zipmap = find_outputs(model.graph)
    if stored.output.form == "label":
        if stored.output.name != label or stored.output.element not in ("int64", "string"):
            return "its output is a label"
    elif stored.output.name != score or stored.output.element not in ("float32", "float64"):
        return "its output is numbers"
    if stored.task == "regression" and (label is not None or zipmap is not None):
        return "it is a regression"
    return None


def _hold_shapes(model: onnx.ModelProto, signature: Signature, rows: Frame, limits: Limits) -> None:
    """Run a few rows and compare each tensor with what was worked out of it: the rules are ours, and may be wrong.

    What fails on all the rows that there are to try it on is left to its rules.
    """
    found = survey_of(model, signature.inputs, limits)
    names = _tensor_names(found)
    session = open_session(prune(model.SerializeToString(), names))
    for count in (1,) if any(i.batch == 1 for i in signature.inputs) else _SHAPE_ROWS:
        cost = found.cost(names, limits.node_seconds * 1e9)
        if cost.rows(limits.run_bytes) < count or (count > 1 and count * cost.row_ns > TRY_NS):
            continue
        for frame in (rows, _zeros(signature.features)):
            part = frame.take(np.resize(np.arange(len(frame)), count))
            try:
                text_bytes = max(longest(part), found.text_bytes)
                if cost.rows(limits.run_bytes, text_bytes) < count:
                    continue
                given = run_session(session, signature, encode(signature, part), names, count)
            except (InvalidData, NullNotAllowed, UndefinedColumn, DatatypeMismatch):
                continue
            for name in names:
                _hold_tensor(found.tensors[name], np.asarray(given[name]), count, text_bytes)
            break


def _tensor_names(found: Survey) -> list[str]:
    """Return the tensors that nodes make, but for dictionaries."""
    return [
        name for step in found.steps for name in step.node.output if name and not found.tensors[name].is_map
    ]


def _hold_tensor(expected: Tensor, array: npt.NDArray[Any], rows: int, text_bytes: int) -> None:
    shape = tuple(size.at(rows, text_bytes) for size in expected.shape)
    same = len(array.shape) == len(shape) and all(
        own <= most if size.at_most else own == most
        for own, most, size in zip(array.shape, shape, expected.shape, strict=True)
    )
    if expected.element != TensorProto.STRING:
        same = same and array.dtype.itemsize == item_bytes(expected.element)
    if expected.values is not None and same:
        values = [v.at(rows) for v in expected.values.reshape(-1)]
        same = array.reshape(-1).astype(np.float64).tolist() == [float(v) for v in values]
    if not same:
        raise FeatureNotSupported(
            "model's shapes are not what its operators make them",
            detail=f"A tensor has shape {array.shape} and type {array.dtype}, where {shape} was expected.",
        )


_SHAPE_ROWS = (1, 3)  # rows of a run whose shapes are compared: numbers that few constants are


def _zeros(specs: Sequence[FeatureSpec]) -> Frame:
    """Return a row of zeros and empty strings."""
    columns: dict[str, Column] = {
        spec.name: Strings(np.zeros(1, np.int32), ("",))
        if spec.is_string
        else np.zeros((1, spec.length) if spec.is_vector else 1)
        for spec in specs
    }
    return Frame(tuple(Feature(s.name, s.kind) for s in specs), columns)
