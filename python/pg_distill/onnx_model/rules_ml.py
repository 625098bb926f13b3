"""Rules of the ai.onnx.ml operators: encoders, linear models, vectors, trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import TensorProto

from pg_distill.onnx_model.rules import (
    COPY_NS,
    FUNCTION_NS,
    GATHER_NS,
    LEVEL_NS,
    ONE,
    SLOW_PRODUCT_NS,
    TEXT_NS,
    Amount,
    Call,
    Tensor,
    constant,
    gives,
    ml_rule,
)

__all__ = ["outputs_of_linear"]


def _table(call: Call) -> tuple[Amount, int]:
    """Return rows and columns of the first input, which must be a matrix with a known number of columns."""
    source = call.input(0)
    if source.rank != 2:
        call.refuse(f"of {source.rank} dimensions is not supported", hint="Give it rows and columns.")
    return source.shape[0], call.fixed(source.shape[1])


def _one_or_each(call: Call, names: Sequence[str], width: int) -> None:
    """Demand attributes that have one number, or one for each column."""
    for name in names:
        count = len(call.given.get(name, ()))
        if count not in (0, 1, width):
            call.contradict(f'has {count} numbers as "{name}" for {width} columns')


@ml_rule(
    "ArrayFeatureExtractor",
    ns=GATHER_NS,
    why="onnxruntime compares each index with the columns and fails on one outside",
)
def _extract(call: Call) -> Sequence[Tensor]:
    source, indices = call.input(0), call.input(1)
    if source.rank < 1:
        call.contradict("reads no columns")
    if source.element == TensorProto.STRING:
        call.ns.append((TEXT_NS, indices.size))
    shape = (*(source.shape[:-1] or (ONE,)), indices.size)
    return [gives(call, source.element, shape)]


@ml_rule("Binarizer", why="one value gives one")
def _binarizer(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    return [gives(call, source.element, source.shape)]


@ml_rule("FeatureVectorizer", why="it joins columns, whose numbers are checked against the inputs")
def _vectorize(call: Call) -> Sequence[Tensor]:
    widths = [int(v) for v in call.given.get("inputdimensions", [])]
    if len(widths) != len(call.inputs):
        call.contradict("has inputdimensions that do not fit")
    rows = call.input(0).shape[:1]
    for position, width in enumerate(widths):
        if call.input(position).shape != (*rows, Amount(width)):
            call.contradict("has inputdimensions that do not fit")
    return [gives(call, TensorProto.FLOAT, (*rows, Amount(sum(widths))))]


@ml_rule("Imputer", why="a value that is missing gives way to a constant")
def _imputer(call: Call) -> Sequence[Tensor]:
    _, width = _table(call)
    _one_or_each(call, ("imputed_value_floats", "imputed_value_int64s"), width)
    source = call.input(0)
    return [gives(call, source.element, source.shape)]


_TABLE_ELEMENTS = {"strings": TensorProto.STRING, "int64s": TensorProto.INT64, "floats": TensorProto.FLOAT}


@ml_rule("LabelEncoder", ns=TEXT_NS, why="a table's value, or the default: there is one for every key")
def _label_encoder(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    found: dict[str, tuple[int, int]] = {}
    for part in ("keys", "values"):
        for kind, element in _TABLE_ELEMENTS.items():
            if f"{part}_{kind}" in call.given:
                found.setdefault(part, (element, len(call.given[f"{part}_{kind}"])))
        if f"{part}_tensor" in call.given:
            array = call.given[f"{part}_tensor"]
            found.setdefault(part, (constant(array).element, array.size))
    if (
        "classes_strings" in call.given and not found
    ):  # the first version: either way between places and strings
        back = source.element != TensorProto.STRING
        return [gives(call, TensorProto.STRING if back else TensorProto.INT64, source.shape)]
    if len(found) != 2 or found["keys"][1] != found["values"][1]:
        call.contradict("has keys and values that do not fit")
    if found["keys"][0] != source.element:
        call.contradict("has keys of another type than its input")
    return [gives(call, found["values"][0], source.shape)]


@ml_rule("Normalizer", ns=FUNCTION_NS, why="as many values as it reads; a row of zeros stays one")
def _normalizer(call: Call) -> Sequence[Tensor]:
    _table(call)
    return [gives(call, TensorProto.FLOAT, call.input(0).shape)]


@ml_rule(
    "OneHotEncoder", ns=COPY_NS, why="a place for each category; what is none of them is nowhere, or an error"
)
def _one_hot_encoder(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    counts = [len(call.given.get(name, ())) for name in ("cats_int64s", "cats_strings")]
    if sum(map(bool, counts)) != 1:
        call.contradict("has no categories, or of two types")
    if bool(counts[1]) != (source.element == TensorProto.STRING):
        call.contradict("has categories of another type than its input")
    call.ns.append((TEXT_NS, source.size))
    return [gives(call, TensorProto.FLOAT, (*source.shape, Amount(sum(counts))))]


@ml_rule("Scaler", why="a line for each column, of which the parameters have as many")
def _scaler(call: Call) -> Sequence[Tensor]:
    _, width = _table(call)
    _one_or_each(call, ("offset", "scale"), width)
    if not len(call.given.get("offset", ())) == len(call.given.get("scale", ())) > 0:
        call.contradict("has an offset and a scale of different lengths")
    return [gives(call, TensorProto.FLOAT, call.input(0).shape)]


def _class_labels(call: Call) -> tuple[int, int]:
    """Return the type and the number of a classifier's labels."""
    for name, element in (
        ("classlabels_strings", TensorProto.STRING),
        ("classlabels_ints", TensorProto.INT64),
        ("classlabels_int64s", TensorProto.INT64),
    ):
        count = len(call.given.get(name, ()))
        if count:
            return element, count
    return call.contradict("has no labels")


def outputs_of_linear(given: Mapping[str, Any], classes: int) -> int:
    """Return how many lines a linear model has, of which each has a coefficient for each column."""
    return len(given.get("intercepts", ())) or classes


def _check_coefficients(call: Call, outputs: int, width: int) -> None:
    held = len(call.given.get("coefficients", ()))
    lines = outputs_of_linear(call.given, outputs)
    if held != lines * width:
        call.contradict(f"has {held} coefficients for {lines} x {width}")


@ml_rule(
    "LinearClassifier",
    ns=FUNCTION_NS,
    why="sums of products, whose coefficients are counted; one score for each label",
)
def _linear_classifier(call: Call) -> Sequence[Tensor]:
    rows, width = _table(call)
    element, classes = _class_labels(call)
    _check_coefficients(call, classes, width)
    call.ns.append((SLOW_PRODUCT_NS, rows * (width * classes)))
    call.scratch.append(call.input(0).size * 4)
    return [gives(call, element, [rows]), gives(call, TensorProto.FLOAT, [rows, Amount(classes)])]


@ml_rule("LinearRegressor", ns=FUNCTION_NS, why="sums of products, whose coefficients are counted")
def _linear_regressor(call: Call) -> Sequence[Tensor]:
    rows, width = _table(call)
    targets = int(call.given.get("targets", 1))
    _check_coefficients(call, targets, width)
    call.ns.append((SLOW_PRODUCT_NS, rows * (width * targets)))
    call.scratch.append(call.input(0).size * 4)
    return [gives(call, TensorProto.FLOAT, [rows, Amount(targets)])]


def _vectors(call: Call, classes: int) -> tuple[int, int]:
    """Return how many support vectors, or lines, a machine has, and columns; demand as many numbers."""
    rows, width = _table(call)
    vectors = int(np.sum(call.given.get("vectors_per_class", 0))) or int(call.given.get("n_supports", 0))
    lines = vectors or classes
    held = len(call.given.get("support_vectors" if vectors else "coefficients", ()))
    if held != lines * width:
        call.contradict(f"has {held} values for {lines} x {width}")
    call.ns.append((SLOW_PRODUCT_NS, rows * (width * lines)))
    call.ns.append((FUNCTION_NS * max(1, classes - 1), rows * (lines + classes * classes)))
    call.scratch.append(rows * (8 * (lines + 2 * classes * classes)))
    return vectors, width


@ml_rule(
    "SVMClassifier",
    why="sums of products, whose numbers are counted; one score for each label, or pair of labels",
)
def _svm_classifier(call: Call) -> Sequence[Tensor]:
    rows, _ = _table(call)
    element, classes = _class_labels(call)
    vectors, _ = _vectors(call, classes)
    pairs = classes * (classes - 1) // 2
    scores = classes if classes == 2 or not vectors or len(call.given.get("prob_a", ())) else pairs
    return [gives(call, element, [rows]), gives(call, TensorProto.FLOAT, [rows, Amount(scores)])]


@ml_rule("SVMRegressor", why="sums of products, whose numbers are counted")
def _svm_regressor(call: Call) -> Sequence[Tensor]:
    rows, _ = _table(call)
    _vectors(call, 1)
    return [gives(call, TensorProto.FLOAT, [rows, ONE])]


def _check_split_features(call: Call) -> Amount:
    """Demand that trees split columns that are there; count their levels."""
    rows, width = _table(call)
    modes = np.array(call.given["nodes_modes"], dtype="S16")
    used = np.asarray(call.given["nodes_featureids"], np.int64)[modes != b"LEAF"]
    if len(used) and used.max() >= width:
        call.contradict(f"uses feature {used.max()} of {width}")
    # A path is no longer than its tree has branches, nor than the limit of depth.
    tree = np.asarray(call.given["nodes_treeids"], np.int64)
    starts = np.flatnonzero(np.r_[True, tree[1:] != tree[:-1]])
    branches = np.add.reduceat((modes != b"LEAF").astype(np.int64), starts)
    levels = int(np.minimum(branches, _TREE_DEPTH).sum()) + len(starts)
    call.ns.append((LEVEL_NS, rows * levels))
    call.scratch.append(call.input(0).size * 8)
    return rows


_TREE_DEPTH = (
    64  # a path through a tree of an exporter is shorter on average, and the deepest that are taken are few
)


@ml_rule(
    "TreeEnsembleClassifier",
    ns=FUNCTION_NS,
    why="ids and features are checked against the nodes and the columns; a path ends, as no node is reached twice",
)
def _tree_classifier(call: Call) -> Sequence[Tensor]:
    rows = _check_split_features(call)
    element, classes = _class_labels(call)
    call.scratch.append(rows * (16 * classes))
    return [gives(call, element, [rows]), gives(call, TensorProto.FLOAT, [rows, Amount(classes)])]


@ml_rule(
    "TreeEnsembleRegressor",
    ns=FUNCTION_NS,
    why="ids and features are checked against the nodes and the columns; a path ends, as no node is reached twice",
)
def _tree_regressor(call: Call) -> Sequence[Tensor]:
    rows = _check_split_features(call)
    targets = int(call.given.get("n_targets", 1))
    call.scratch.append(rows * (16 * targets))
    return [gives(call, TensorProto.FLOAT, [rows, Amount(targets)])]


@ml_rule("ZipMap", ns=TEXT_NS, why="a dictionary of each row, which nothing reads and no prediction asks for")
def _zip_map(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    return [replace(gives(call, source.element, source.shape), is_map=True)]
