"""What a graph's outputs are: scores or classes, of which form, and the names of the classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from pg_distill.errors import (
    FeatureNotSupported,
    InvalidArtifact,
    InvalidData,
    InvalidParameter,
)
from pg_distill.frame import MAX_LABELS, Frame, Task
from pg_distill.onnx_model.nodes import (
    SUM_TOLERANCE,
    Producers,
    constants_of,
    type_name,
)
from pg_distill.onnx_model.session import (
    CONVERTED_KEY,
)
from pg_distill.onnx_model.signature import (
    Form,
    OutputSpec,
    Signature,
)
from pg_distill.onnx_model.values import decode
from pg_distill.text import printable

__all__ = ["check_labels", "check_task", "class_names", "find_outputs", "form_of"]

_TIE = 1e-6  # between two probabilities, of which either is the most probable class
_DETAIL_CHARACTERS = 1000  # of a row in an error
_EXPORTERS_OF_PIPELINES = frozenset({"skl2onnx", "OnnxMLTools", "CatBoost"})
"""Producers whose classifiers always give a label: one number without a label is a regression."""


_LOGARITHMS = frozenset({"Poisson", "Tweedie", "LogLinQuantile"})
"""CatBoost's losses whose predictions are the exponential of what the trees, and its ONNX export, give."""


def refuse_logarithms(model: onnx.ModelProto) -> None:
    """Raise where a file says of itself that its values are the logarithms of what its library predicts."""
    if model.producer_name != "CatBoost" or any(node.op_type == "Exp" for node in model.graph.node):
        return
    said = {entry.key: entry.value for entry in model.metadata_props}
    try:
        loss = json.loads(said.get("params", "{}"))["loss_function"]["type"]
    except (ValueError, KeyError, TypeError):
        return
    if loss in _LOGARITHMS:
        raise InvalidData(
            f"model is CatBoost's export of a {printable(str(loss))} regression, which leaves out its exponential",
            hint="Let pg-distill register convert the fitted model, or append Exp to the graph; without its metadata entry"
            ' "params" it is taken as it is.',
        )


def find_outputs(graph: onnx.GraphProto) -> tuple[str | None, str | None, onnx.NodeProto | None]:
    """Return (tensor of scores, tensor of labels, ZipMap)."""
    producers = Producers(graph)
    scores: list[tuple[str, onnx.NodeProto | None]] = []
    labels: list[str] = []
    for value in graph.output:
        kind = value.type.WhichOneof("value")
        node = producers.by_output.get(value.name)
        if kind == "tensor_type":
            element = value.type.tensor_type.elem_type
            if element in (TensorProto.FLOAT, TensorProto.DOUBLE):
                scores.append((value.name, None))
            elif element in (TensorProto.INT64, TensorProto.STRING):
                labels.append(value.name)
            else:
                name = type_name(element)
                raise FeatureNotSupported(f'output "{value.name}" is of type {name}, which is not supported')
        elif node is not None and node.op_type == "ZipMap":
            scores.append((node.input[0], node))
        else:
            raise FeatureNotSupported(f'output "{value.name}" is neither a tensor nor a ZipMap of one')
    if len(scores) > 1:
        named = [s for s, v in zip(scores, _score_values(graph), strict=True) if "prob" in v.lower()]
        if len(named) != 1:
            raise FeatureNotSupported(
                f"model has {len(scores)} outputs of numbers, expected one",
                hint="Export it with one output; skl2onnx: without zipmap='columns'.",
            )
        scores = named
    if len(labels) > 1:
        raise FeatureNotSupported(f"model has {len(labels)} outputs of labels, expected one")
    score, zipmap = scores[0] if scores else (None, None)
    return score, labels[0] if labels else None, zipmap


def _score_values(graph: onnx.GraphProto) -> list[str]:
    labels = (TensorProto.INT64, TensorProto.STRING)
    return [v.name for v in graph.output if v.type.tensor_type.elem_type not in labels]


def form_of(
    model: onnx.ModelProto,
    producers: Producers,
    score: str | None,
    label: str | None,
    zipmap: bool,
    scores: npt.NDArray[Any] | None,
    task: Task | None,
    classes: Sequence[str] | None,
) -> tuple[OutputSpec, Task]:
    """Decide what the scores are."""
    if score is None or scores is None:
        assert label is not None
        if task == "regression":
            raise FeatureNotSupported("model gives a label only, which is no value to regress on")
        if task == "multilabel":
            raise FeatureNotSupported(
                "model gives labels only, and no probability for each of several labels",
                hint="Export it with its probabilities or logits as an output.",
            )
        element: Literal["int64", "string"] = "int64"
        kind = next(v.type.tensor_type.elem_type for v in model.graph.output if v.name == label)
        if kind == TensorProto.STRING:
            element = "string"
        return OutputSpec(label, "label", 1, element), task or "multiclass"
    if scores.dtype.kind != "f":
        raise InvalidArtifact(f'output "{score}" is not of the type that it is declared as')
    width = scores.shape[1]
    number: Literal["float32", "float64"] = "float64" if scores.dtype == np.float64 else "float32"
    finite = scores[np.isfinite(scores).all(axis=1)].astype(np.float64)
    if not len(finite):
        raise InvalidData("model gives no finite output for any of the rows given")
    inside = bool((finite >= -SUM_TOLERANCE).all() and (finite <= 1 + SUM_TOLERANCE).all())
    last = producers.behind(score)
    ending = last.op_type if last is not None else ""

    def spec(form: Form) -> OutputSpec:
        return OutputSpec(score, form, width, number)

    if any(p.key == CONVERTED_KEY for p in model.metadata_props) and score in get_args(Form):
        return spec(cast(Form, score)), "regression" if score == "value" else task or "multiclass"
    if task == "multilabel":
        if width < 2 or zipmap:
            raise InvalidParameter(
                'task "multilabel" needs one output of a number for each of at least 2 classes',
                hint="skl2onnx: export it with zipmap=False.",
            )
        # Log-odds may all lie between 0 and 1, too: those of a layer without a sigmoid behind it.
        return spec("probabilities" if inside and not _is_layer(producers, last) else "logits"), task
    classifier = label is not None or zipmap or bool(classes) or task in ("binary", "multiclass")
    if task == "regression":
        if label is not None or zipmap:
            raise InvalidParameter('task "regression" does not fit a model that gives labels')
        if width > 1:
            raise FeatureNotSupported(f"model gives {width} values a row, regression of one is supported")
        return spec("value"), "regression"
    if width == 1:
        if ending == "Sigmoid" or (classifier and inside):
            return spec("positive"), "binary"
        if classifier:
            return spec("logits"), "binary"
        if ending.endswith("Regressor") or model.producer_name in _EXPORTERS_OF_PIPELINES:
            return spec("value"), "regression"
        raise InvalidParameter(
            "model gives one number a row, which may be a value or the log-odds of a class",
            hint="Say which: task => 'regression' or task => 'binary'.",
        )
    if inside and bool((np.abs(finite.sum(axis=1) - 1) <= SUM_TOLERANCE).all()):
        return spec("probabilities"), task or "multiclass"
    if ending == "Sigmoid":
        raise FeatureNotSupported(
            f"model gives {width} independent probabilities a row, and so several labels",
            hint="Say so: task => 'multilabel'.",
        )
    return spec("logits"), task or "multiclass"


def _is_layer(producers: Producers, node: onnx.NodeProto | None) -> bool:
    """Whether a node is a linear layer's last: a product of matrices, or what adds its bias."""
    if node is not None and node.op_type == "Add":
        return any(_is_layer(producers, producers.behind(name)) for name in node.input)
    return node is not None and node.op_type in ("Gemm", "MatMul")


def check_task(task: Task, count: int) -> Task:
    """Return the task of a model of ``count`` classes; raise where it is not ``task``."""
    if count < 2:
        raise InvalidData(f"model has {count} classes, expected at least 2")
    if task == "binary" and count != 2:
        raise InvalidParameter(f'task "binary" does not fit a model of {count} classes')
    if task == "multilabel":
        if count > MAX_LABELS:
            raise FeatureNotSupported(f"model has {count} labels, limit is {MAX_LABELS}")
        return task
    return "binary" if count == 2 else "multiclass"


def class_names(
    producers: Producers,
    label: str | None,
    zipmap: onnx.NodeProto | None,
    scores: npt.NDArray[Any] | None,
    labels: npt.NDArray[Any] | None,
    output: OutputSpec,
    given: Sequence[str] | None,
) -> tuple[str, ...]:
    """Return the classes in the order of the probabilities, as texts."""
    count = None if scores is None else max(scores.shape[1], 2)
    if given is not None and len(set(given)) != len(given):
        raise InvalidParameter("two classes have one name")
    if given is not None and count is not None and len(given) != count:
        raise InvalidParameter(f"model has {count} classes, not {len(given)}")
    candidates: list[tuple[str, ...]] = []
    if zipmap is not None:
        candidates.append(_label_list(zipmap))
    for start in (label, output.name):
        if start is not None:
            candidates.extend(_label_lists(producers, start))
    candidates = [c for c in candidates if len(c) >= 2 and (count is None or len(c) == count)]
    if labels is not None:
        seen = {str(x) for x in labels.tolist()}
        candidates = [c for c in candidates if seen <= set(c)]
        if count is not None and scores is not None and len(candidates) > 1:
            best = scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(int)
            agree = [
                np.mean([c[i] == str(x) for i, x in zip(best, labels.tolist(), strict=True)])
                for c in candidates
            ]
            candidates = [candidates[int(np.argmax(agree))]]
    found = candidates[0] if candidates else None
    if found is None and count is not None:
        numbered = tuple(str(i) for i in range(count))
        if labels is None or {str(x) for x in labels.tolist()} <= set(numbered):
            found = None if given is not None else numbered
    if given is None:
        if found is None:
            raise InvalidParameter(
                "classes of the model are not found in its graph", hint="Pass classes => ARRAY[...]."
            )
        return found
    if found is not None and set(found) == set(given) and tuple(given) != found:
        raise InvalidParameter(f"order of the model's classes is {', '.join(found)}")
    if output.form == "label" and found is not None and set(found) != set(given):
        raise InvalidParameter(f"classes of the model are {', '.join(found)}")
    return tuple(given)


def check_labels(
    signature: Signature,
    scores: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    frame: Frame,
    class_threshold: float | None,
) -> None:
    """Refuse a graph whose own labels are not the classes that predict_class would name: its scores may be distances."""
    given = decode(signature, scores.reshape(-1), len(scores))
    index = {name: place for place, name in enumerate(signature.classes)}
    own = np.array([index.get(str(label), -1) for label in labels.tolist()])
    if (own < 0).all():
        return  # the caller has named the classes otherwise
    rows = np.arange(len(given))
    if class_threshold is None:
        named = given.argmax(axis=1)
        margin = given[rows, named] - np.where(own >= 0, given[rows, own], -np.inf)
    else:
        named = (given[:, -1] >= class_threshold).astype(np.int64)
        margin = np.abs(given[:, -1] - class_threshold)
    other = (own != named) & (margin > _TIE) & np.isfinite(given).all(axis=1)
    if other.any():
        row = int(np.argmax(np.where(other, margin, -np.inf)))
        what = "its most probable class" if class_threshold is None else "the class by its class_threshold"
        raise InvalidData(
            f"model's label is not {what} in {int(other.sum())} of {len(rows)} rows",
            detail=f"Row {frame.show_row(row)}: label {labels[row]!s}, scores {scores[row].tolist()}."[
                :_DETAIL_CHARACTERS
            ],
            hint="Pass class_threshold where it decides by one; else export it with one of its two outputs: the labels alone, or"
            " scores of which the largest is the class.",
        )


def _label_lists(producers: Producers, start: str) -> list[tuple[str, ...]]:
    """Return the lists of labels in the graph that ``start`` depends on, the nearest first."""
    constants: dict[str, npt.NDArray[Any]] | None = None
    out = []
    for node in producers.upstream(start):
        if node.op_type == "ArrayFeatureExtractor":
            constants = constants if constants is not None else constants_of(producers.graph)
            if node.input[0] in constants:
                out.append(_texts(constants[node.input[0]].reshape(-1).tolist()))
        else:
            out.append(_label_list(node))
    return [labels for labels in out if labels]


def _label_list(node: onnx.NodeProto) -> tuple[str, ...]:
    for attribute in node.attribute:
        if attribute.name.startswith("classlabels_") or (
            node.op_type == "LabelEncoder" and attribute.name in ("values_strings", "values_int64s")
        ):
            labels = _texts([*attribute.ints, *attribute.strings])
            if labels:
                return labels
    return ()


def _texts(labels: Sequence[Any]) -> tuple[str, ...]:
    """Return labels as onnxruntime gives them, as texts."""
    return tuple(
        x.decode("utf-8", "replace")
        if isinstance(x, bytes)
        else str(int(x))
        if isinstance(x, float)
        else str(x)
        for x in labels
    )
