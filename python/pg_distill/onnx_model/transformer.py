"""A transformer before anyone trusts it: what it takes and gives, and what a run costs for texts of every length.

Its graph has the inputs of Hugging Face's exports, of (batch, sequence), and its file a tokenizer. Attention compares all pairs
of tokens, so that its sizes are no linear function of them; the rules of `operators` want sizes that are known. So the
graph is walked once for each number of tokens that a text may have: a few thousandths of a second each, and what no length
takes too much of, no text does.

Only the trainer's child imports this.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from pg_distill.errors import (
    DatatypeMismatch,
    FeatureNotSupported,
    InvalidArtifact,
    InvalidData,
    InvalidParameter,
    LimitExceeded,
)
from pg_distill.frame import Feature, FloatArray, Frame, Strings, Task
from pg_distill.onnx_model.cut import prune
from pg_distill.onnx_model.derive import survey_of
from pg_distill.onnx_model.derive_inputs import input_shape
from pg_distill.onnx_model.limits import Limits
from pg_distill.onnx_model.nodes import Producers, graph_inputs
from pg_distill.onnx_model.outputs import check_labels, check_task, class_names, find_outputs, form_of
from pg_distill.onnx_model.running import matrix
from pg_distill.onnx_model.session import first_line, open_session, runtime_errors
from pg_distill.onnx_model.signature import Cost, FeatureSpec, InputSpec, Signature
from pg_distill.onnx_model.survey import Survey
from pg_distill.onnx_model.text_model import TextModel
from pg_distill.onnx_model.tokenizer import INPUT_IDS, INPUT_NAMES, Tokens
from pg_distill.onnx_model.trial import check_predictions, peak_bytes, timed

__all__ = ["derive_text", "hold_tokens", "shape_feeds", "text_inputs", "try_text", "walk"]

Read = tuple[Sequence[int], Sequence[int]]
"""A text's token ids, and the type of each."""

TRIED_TEXTS = 32  # by which it is told what a graph gives
TRY_SECONDS = 5.0  # for the texts of a sample, of which so many are run, and so long
LEAST_TEXTS = 16
SHAPE_TOKENS = (1, 2, 5, 16)  # lengths whose shapes are compared with a run's
_EXTREME_SECONDS = 4.0
_EXTREME_TEXTS = (
    *("", " ", "a", "\t\n", "nan", "[CLS] [SEP] [MASK]", "<s></s><pad><unk>", "\u202e", "\U0010ffff", "\x01"),
    *("\U0001f600" * 50, "\u4e2d\u6587" * 50, "x" * 100_000, "word " * 20_000, "e\u0301" * 2_000),
)


def text_inputs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """Return a transformer's inputs.

    Raises
    ------
    FeatureNotSupported
        Where it is none: it has other inputs, or a number of tokens that is fixed.
    """
    found = []
    for value in graph_inputs(model.graph):
        if value.name not in INPUT_NAMES:
            raise FeatureNotSupported(
                f'input "{value.name[:80]}" is none of a transformer\'s',
                hint=f"With a tokenizer a model takes {', '.join(sorted(INPUT_NAMES))}, and no others.",
            )
        element, rank, width, _ = input_shape(value)
        if element not in ("int64", "int32") or rank != 2 or width is not None:
            raise FeatureNotSupported(
                f'input "{value.name}" is not of integers in the shape (batch, sequence)',
                hint="Export the model with dynamic axes: any number of texts, and of tokens.",
            )
        found.append(InputSpec(value.name, element, 2, (0,), 1))
    if INPUT_IDS not in {spec.name for spec in found}:
        raise FeatureNotSupported(f'model has a tokenizer, but no input "{INPUT_IDS}"')
    return tuple(found)


def walk(
    model: onnx.ModelProto,
    inputs: Sequence[InputSpec],
    max_tokens: int,
    outputs: Sequence[str],
    limits: Limits,
) -> tuple[Survey, Cost]:
    """Walk a graph for each number of tokens; return the longest one's walk, and the most that any costs.

    Raises
    ------
    FeatureNotSupported, InvalidArtifact, LimitExceeded
        As `survey`, for some number of tokens.
    """
    if max_tokens * len(model.graph.node) > limits.text_steps:
        raise LimitExceeded(
            f"model has {len(model.graph.node)} nodes for {max_tokens} tokens, limit of their product is {limits.text_steps}"
        )
    longest: Survey | None = None
    most: dict[str, int] = {}
    for tokens in range(max_tokens, 0, -1):
        try:
            found = survey_of(model, inputs, limits, tokens, longest)
        except InvalidArtifact as error:
            raise InvalidData(
                f"model takes no text of {tokens} tokens",
                detail=f"{error}.",
                hint="Pass max_tokens => ... , as many as it has positions for.",
            ) from error
        longest = longest or found
        for name, value in asdict(found.cost(outputs, limits.text_node_seconds * 1e9)).items():
            most[name] = max(most.get(name, 0), value)
    assert longest is not None
    cost = Cost(**{**most, "most_rows": 1})
    seconds = (cost.fixed_ns + cost.row_ns) / 1e9
    if seconds > limits.text_seconds:
        raise LimitExceeded(
            f"model may take {seconds:.3g} s for one text, limit is {limits.text_seconds:g} s",
            hint="Pass a smaller max_tokens, or register its predictions as a logged model.",
        )
    hint = "Pass a smaller max_tokens, or have an administrator raise the setting predict_memory_mb."
    cost.require(limits.run_bytes, "text", hint)
    return longest, cost


def _made_up(tokens: Tokens, count: int = TRIED_TEXTS) -> list[Read]:
    """Return tokens of texts that nobody wrote, of several lengths."""
    rng = np.random.default_rng(0)
    size, most = tokens.count_ids(), tokens.max_tokens
    return [(rng.integers(0, size, n).tolist(), [0] * n) for n in rng.integers(1, min(most, 48) + 1, count)]


def run_reads(
    model: onnx.ModelProto, inputs: Sequence[InputSpec], reads: Sequence[Read], names: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """Run the graph on tokens, text by text; return the tensors ``names``, one row a text.

    Raises
    ------
    InvalidData
        Where it fails.
    FeatureNotSupported
        Where it gives a vector for each token.
    """
    session = open_session(prune(model.SerializeToString(), names))
    elements: Mapping[str, str] = {spec.name: spec.element for spec in inputs}
    parts: list[list[npt.NDArray[Any]]] = []
    for ids, types in reads:
        try:
            given = session.run(list(names), Tokens.arrays(ids, types, elements))
        except runtime_errors as error:
            raise InvalidData("model fails on a text", detail=first_line(error)) from error
        arrays = [np.asarray(array) for array in given]
        for name, array in zip(names, arrays, strict=True):
            if array.ndim not in (1, 2) or array.shape[0] != 1:
                raise FeatureNotSupported(
                    f'output "{name[:80]}" has shape {array.shape} for one text of {len(ids)} tokens',
                    hint="An encoder needs its pooling and a classifier behind it, in the same graph.",
                )
        parts.append(arrays)
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def hold_tokens(model: onnx.ModelProto, inputs: Sequence[InputSpec], tokens: Tokens) -> None:
    """Refuse a tokenizer with ids for which the model has no embedding: onnxruntime compares each with the table's end."""
    names = find_outputs(model.graph)[:2]
    session = open_session(prune(model.SerializeToString(), [name for name in names if name]))
    elements: Mapping[str, str] = {spec.name: spec.element for spec in inputs}
    for token in (0, tokens.count_ids() - 1):
        try:
            session.run(None, Tokens.arrays([token], [0], elements))
        except runtime_errors as error:
            raise InvalidData(
                f"tokenizer does not fit the model, which fails on token {token}",
                detail=first_line(error),
                hint="Give the tokenizer.json that was exported with the model.",
            ) from error


def derive_text(
    model: onnx.ModelProto,
    tokens: Tokens,
    *,
    features: Sequence[Feature] | None,
    task: Task | None,
    classes: Sequence[str] | None,
    rows: Frame | None,
    limits: Limits,
    class_threshold: float | None,
) -> tuple[Signature, Survey]:
    """Find out what a transformer takes, gives and costs; arguments and errors as of `derive.derive_signature`."""
    if features is None:
        features = rows.features if rows is not None else (Feature("text", "string"),)
    if len(features) != 1:
        raise InvalidData(
            f"a transformer takes one feature, a text, not {len(features)}",
            hint="Name it: features => '{body}'.",
        )
    [feature] = features
    if not feature.is_string:
        raise DatatypeMismatch(
            f'feature "{feature.name}" is of kind {feature.kind}, and a transformer reads text'
        )
    if rows is not None and not len(rows):
        raise InvalidData("no rows to try the model on")
    inputs = text_inputs(model)
    score, label, zipmap = find_outputs(model.graph)
    label = None if task == "multilabel" and score is not None else label
    wanted = [name for name in (score, label) if name]
    found, cost = walk(model, inputs, tokens.max_tokens, wanted, limits)
    hold_tokens(model, inputs, tokens)
    reads = _made_up(tokens) if rows is None else [tokens.read(t) for t in _texts(rows, TRIED_TEXTS)]
    raw = run_reads(model, inputs, reads, wanted)
    scores = None if score is None else matrix(raw[score], score, len(reads))
    labels = None if label is None else matrix(raw[label], label, len(reads)).reshape(-1)
    producers = Producers(model.graph)
    output, task = form_of(model, producers, score, label, zipmap is not None, scores, task, classes)
    names: tuple[str, ...] = ()
    if task != "regression":
        names = class_names(producers, label, zipmap, scores, labels, output, classes)
        task = check_task(task, len(names))
    elif classes:
        raise InvalidParameter("classes do not fit a regression")
    spec = FeatureSpec(feature.name, "string", "empty")
    signature = Signature((spec,), inputs, output, task, names, cost, max_tokens=tokens.max_tokens)
    if scores is not None and labels is not None:
        frame = _frame(signature, [""] * len(reads)) if rows is None else rows.take(np.arange(len(reads)))
        check_labels(signature, scores, labels, frame, class_threshold)
    return signature, found


def _texts(rows: Frame, most: int) -> list[str]:
    """Return the texts of the first rows, NULL as the empty one."""
    [feature] = rows.features
    part = rows.take(np.arange(min(len(rows), most)))
    return [str(text) for text in part.strings(feature.name).to_objects("")]


def _frame(signature: Signature, texts: Sequence[str]) -> Frame:
    [feature] = signature.features
    return Frame((Feature(feature.name, "string"),), {feature.name: Strings.from_values(list(texts))})


def shape_feeds(signature: Signature, tokens: Tokens) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
    """Yield lengths, and inputs of each, on which the shapes that were worked out are held against a run's."""
    elements: Mapping[str, str] = {spec.name: spec.element for spec in signature.inputs}
    size = tokens.count_ids()
    for length in SHAPE_TOKENS:
        if length <= tokens.max_tokens:
            ids = [i % size for i in range(length)]
            yield length, Tokens.arrays(ids, [0] * length, elements)


def try_text(model: TextModel, tokens: Tokens, rows: Frame | None, limits: Limits, before: int) -> FloatArray:
    """Run a text of the greatest length, extreme ones, and those of ``rows``; return the predictions of the first rows.

    As many rows are run as `TRY_SECONDS` allow, and `LEAST_TEXTS` at least.

    Raises
    ------
    LimitExceeded
        Where a text takes too long, or the process grows by over ``limits.run_bytes``, what it held ``before`` apart.
    InvalidData
        Where the model fails on a row, gives something that is not finite, or no probabilities.
    """
    signature = model.signature
    elements: Mapping[str, str] = {spec.name: spec.element for spec in signature.inputs}
    length, size = tokens.max_tokens, tokens.count_ids()
    longest = Tokens.arrays([i * 7919 % size for i in range(length)], [0] * length, elements)
    try:
        timed(model, lambda: model.run_feed(longest), 1, limits)
    except InvalidData as error:
        raise InvalidData(
            f"model fails on a text of {length} tokens",
            detail=error.detail,
            hint="Pass max_tokens => ... , as many as it has positions for.",
        ) from error
    grown = peak_bytes() - before
    peak_bytes(reset=True)
    began = time.monotonic()
    for text in _EXTREME_TEXTS:
        with suppress(InvalidData):
            timed(model, lambda text=text: model.run_text(text), 1, limits)  # type: ignore[misc]
        if time.monotonic() - began > _EXTREME_SECONDS:
            break
    grown = max(grown, peak_bytes() - before)
    held = 0 if signature.cost is None else signature.cost.held_bytes
    if grown > limits.run_bytes + held:
        raise LimitExceeded(f"model takes {grown} bytes for a text, limit is {limits.run_bytes}")
    if rows is None:
        return np.empty((0, signature.width))
    found: list[FloatArray] = []
    began = time.monotonic()
    for place in range(len(rows)):
        one = rows.take(np.arange(place, place + 1))
        found.append(timed(model, lambda one=one: model.run_frame(one), 1, limits))  # type: ignore[misc]
        if time.monotonic() - began > TRY_SECONDS and len(found) >= LEAST_TEXTS:
            break
    predictions = np.concatenate(found)
    check_predictions(predictions, signature)
    return predictions
