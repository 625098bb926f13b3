"""CatBoost's models as nodes: from their JSON, tree by tree, in the float32 that they compare in."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pg_distill.conversion.graph import Graph, Matrix
from pg_distill.conversion.trees import Tree, add_trees
from pg_distill.errors import FeatureNotSupported

__all__ = ["add_probabilities", "add_value", "is_classifier", "loss_of"]

AS_COLUMNS = "Register what it predicts as columns: distill.register_logged_model."


def loss_of(model: Any) -> str:
    """Return the name of the loss that a model was fitted to."""
    parameters = model.get_all_params()
    return str(parameters.get("loss_function", "")).partition(":")[0]


def is_classifier(model: Any) -> bool:
    """Return whether a model's loss is of classes."""
    return loss_of(model) in (
        "Logloss",
        "CrossEntropy",
        "MultiClass",
        "MultiClassOneVsAll",
        "MultiLogloss",
        "Focal",
    )


def add_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the (n, K) probabilities."""
    loss = loss_of(model)
    if loss not in ("MultiClass", "Logloss", "CrossEntropy", "Focal"):
        raise FeatureNotSupported(
            f"a CatBoost model of loss {loss} gives no probabilities that sum to one", hint=AS_COLUMNS
        )
    raw = _raw(graph, model, matrix)
    return graph.softmax(raw) if loss == "MultiClass" else graph.pair(graph.sigmoid(raw))


def add_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the (n, 1) values."""
    raw, loss = _raw(graph, model, matrix), loss_of(model)
    return graph.op("Exp", raw) if loss in ("Poisson", "Tweedie") else raw


def _raw(graph: Graph, model: Any, matrix: Matrix) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.json")
        model.save_model(str(path), format="json")
        held = json.loads(path.read_text())
    features = held["features_info"]
    others = [
        kind for kind in ("categorical_features", "text_features", "embedding_features") if features.get(kind)
    ]
    if others:
        raise FeatureNotSupported(
            f"a CatBoost model with {others[0].replace('_', ' ')} is not converted",
            hint="Encode these columns in a pipeline before it, or register what it predicts as columns:"
            " distill.register_logged_model.",
        )
    floats = features.get("float_features", [])
    columns = [int(f["flat_feature_index"]) for f in floats]
    missing_right = np.array([f.get("nan_value_treatment") == "AsTrue" for f in floats], bool)
    scale, bias = held["scale_and_bias"]
    bias = np.atleast_1d(np.asarray(bias, np.float64))
    outputs = len(bias)
    if "oblivious_trees" in held:
        trees = [_oblivious(tree, outputs, missing_right) for tree in held["oblivious_trees"]]
    else:
        trees = [_nested(tree, outputs, missing_right) for tree in held["trees"]]
    if outputs > 1 and loss_of(model) != "MultiClass":
        raise FeatureNotSupported(
            f"the CatBoost model gives {outputs} values, and a model here predicts one", hint=AS_COLUMNS
        )
    x = graph.float32(graph.numbers(graph.select(matrix, columns), "CatBoost"))
    found = add_trees(graph, x, trees, outputs)
    return graph.add(graph.mul(found, float(scale)) if scale != 1 else found, bias.reshape(1, -1))


def _split(split: Any) -> tuple[int, float]:
    if split["split_type"] != "FloatFeature":
        raise FeatureNotSupported(
            f"a CatBoost split of type {split['split_type']} is not converted", hint=AS_COLUMNS
        )
    return int(split["float_feature_index"]), float(np.float32(split["border"]))


def _oblivious(tree: Any, outputs: int, missing_right: Any) -> Tree:
    """Return a tree whose levels have one split each; the first split is the lowest bit of a leaf's place."""
    splits = [_split(s) for s in tree.get("splits") or []]
    depth = len(splits)
    inner = 2**depth - 1
    count = 2 * inner + 1
    feature, threshold = np.zeros(count, np.int64), np.zeros(count)
    left, right = np.full(count, -1), np.full(count, -1)
    value = np.zeros((count, outputs))
    leaves = np.asarray(tree["leaf_values"], np.float64).reshape(-1, outputs)
    for node in range(inner):
        level = (node + 1).bit_length() - 1
        feature[node], threshold[node] = splits[level]
        left[node], right[node] = 2 * node + 1, 2 * node + 2
    for leaf in range(inner + 1):
        path = [(leaf >> (depth - 1 - level)) & 1 for level in range(depth)]
        value[inner + leaf] = leaves[sum(bit << level for level, bit in enumerate(path))]
    return Tree(feature, threshold, left, right, ~missing_right[feature], value)


def _nested(tree: Any, outputs: int, missing_right: Any) -> Tree:
    nodes = [tree]
    children = []
    for node in nodes:  # grows while it is walked
        if "split" in node:
            children.append((len(nodes), len(nodes) + 1))
            nodes.extend([node["left"], node["right"]])
        else:
            children.append((-1, -1))
    left, right = np.array(children).T
    splits = [_split(n["split"]) if "split" in n else (0, 0.0) for n in nodes]
    feature = np.array([f for f, _ in splits], np.int64)
    value = np.array([np.broadcast_to(n.get("value", 0.0), (outputs,)) for n in nodes], np.float64)
    return Tree(feature, np.array([t for _, t in splits]), left, right, ~missing_right[feature], value)
