"""XGBoost's boosters as nodes: from their JSON, tree by tree, in the float32 that they compare in."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np

from pg_distill.conversion.encoding import Sets, category_codes
from pg_distill.conversion.graph import Graph, Matrix
from pg_distill.conversion.trees import Tree, add_trees
from pg_distill.errors import FeatureNotSupported

__all__ = ["Booster", "add_probabilities", "add_value", "booster_of"]

AS_COLUMNS = "Register what it predicts as columns: distill.register_logged_model."

_LOGISTIC = ("binary:logistic", "reg:logistic")
_EXPONENTIAL = ("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft")


def booster_of(model: Any) -> Any:
    """Return the booster of an estimator, or the booster itself."""
    return model.get_booster() if hasattr(model, "get_booster") else model


class Booster:
    """What a booster's JSON says.

    Attributes
    ----------
    objective
        Its name.
    outputs
        Sums of trees a row.
    categories
        By the place of each column that was a category of a data frame, its values in the order of their codes.
    """

    def __init__(self, model: Any) -> None:
        booster = booster_of(model)
        learner = json.loads(booster.save_raw("json"))["learner"]
        self.objective: str = learner["objective"]["name"]
        parameters = learner["learner_model_param"]
        classes = max(int(parameters.get("num_class", 0)), 1)
        targets = int(parameters.get("num_target", 1))
        if targets > 1:
            raise FeatureNotSupported(
                f"the XGBoost model predicts {targets} columns, and a model here predicts one",
                hint=AS_COLUMNS,
            )
        self.outputs = classes
        self.base = self._margin(parameters["base_score"])
        self.kinds = list(learner.get("feature_types") or [])
        found = learner["gradient_booster"]
        self.weights: Any = None
        self.drop: Any = None
        if found["name"] == "gblinear":
            self.weights = np.array(found["model"]["weights"], np.float64).reshape(-1, classes)
            # Releases differ in how they add the base to several classes: a row of zeros has it, and the bias.
            import xgboost

            zeros = xgboost.DMatrix(np.zeros((1, len(self.weights) - 1)), feature_names=booster.feature_names)
            self.base = np.ravel(booster.predict(zeros, output_margin=True)) - self.weights[-1]
            self.trees: list[Any] = []
            self.info: list[int] = []
            self.categories: dict[int, list[Any]] = {}
            return
        if found["name"] == "dart":
            self.drop = np.array(found["weight_drop"], np.float64)
            found = found["gbtree"]
        inside = found["model"]
        stop = len(inside["trees"])
        # An estimator that stopped early predicts by its best iteration; a booster does not.
        best = getattr(model, "best_iteration", None) if hasattr(model, "get_booster") else None
        if best is not None:
            rounds = booster.num_boosted_rounds()
            starts = inside.get("iteration_indptr") or np.linspace(0, stop, rounds + 1).astype(int)
            stop = int(starts[best + 1])
        self.trees = inside["trees"][:stop]
        self.info = [int(i) for i in inside["tree_info"][:stop]]
        self.categories = _categories(inside.get("cats"))

    def _margin(self, text: str) -> Any:
        score = np.array(json.loads(text) if text.startswith("[") else [float(text)], np.float64)
        if self.objective in _LOGISTIC:
            return np.log(score) - np.log1p(-score)
        return np.log(score) if self.objective in _EXPONENTIAL else score


def _categories(held: Any) -> dict[int, list[Any]]:
    if not held:
        return {}
    found: dict[int, list[Any]] = {}
    for place, column in enumerate(held["enc"]):
        if "offsets" in column:
            if not column["offsets"]:
                continue
            text = bytes(v % 256 for v in column["values"])
            ends = column["offsets"]
            found[place] = [text[a:b].decode() for a, b in itertools.pairwise(ends)]
        elif column.get("values"):
            found[place] = list(column["values"])
    return found


def add_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the (n, K) probabilities."""
    booster = Booster(model)
    raw = _raw(graph, model, booster, matrix)
    if booster.objective in ("binary:logistic", "reg:logistic"):
        return graph.pair(graph.sigmoid(raw))
    if booster.objective.startswith("multi:"):
        return graph.softmax(raw)
    if booster.objective == "binary:hinge":
        return graph.pair(graph.cast(graph.op("Greater", raw, graph.constant(0.0))))
    raise FeatureNotSupported(
        f'an XGBoost model of objective "{booster.objective}" gives no probabilities', hint=AS_COLUMNS
    )


def add_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the (n, 1) values."""
    booster = Booster(model)
    if booster.outputs > 1:
        raise FeatureNotSupported(
            f"the XGBoost model gives {booster.outputs} values, and a model here predicts one",
            hint=AS_COLUMNS,
        )
    raw = _raw(graph, model, booster, matrix)
    if booster.objective in ("binary:logistic", "reg:logistic"):
        return graph.sigmoid(raw)
    if booster.objective in _EXPONENTIAL:
        return graph.op("Exp", raw)
    if booster.objective == "binary:hinge":
        return graph.cast(graph.op("Greater", raw, graph.constant(0.0)))
    return raw


def _raw(graph: Graph, model: Any, booster: Booster, matrix: Matrix) -> str:
    """Return the (n, K) margins."""
    matrix = graph.resolved(matrix)
    if booster.weights is not None:
        x = _missing(graph, model, graph.numbers(matrix, "XGBoost"), sparse=matrix.sparse)
        x = graph.where(graph.is_nan(x), 0.0, x)
        return graph.affine(x, booster.weights[:-1], (booster.weights[-1] + booster.base).reshape(1, -1))
    split = {
        int(tree["split_indices"][n]) for tree in booster.trees for n in tree.get("categories_nodes", [])
    }
    categorical = sorted({*split, *booster.categories, *(i for i, k in enumerate(booster.kinds) if k == "c")})
    numeric = [i for i in range(matrix.width) if i not in set(categorical)]
    place = np.full(matrix.width, -1)
    place[numeric] = np.arange(len(numeric))
    sizes = {f: len(booster.categories[f]) for f in booster.categories}
    for tree in booster.trees:
        for node, start, count in _category_nodes(tree):
            feature = int(tree["split_indices"][node])
            if feature not in booster.categories:
                sizes[feature] = max(
                    sizes.get(feature, 0), max(tree["categories"][start : start + count], default=0) + 1
                )
    sets = Sets(len(numeric))
    trees = [_tree(tree, number, booster, place, sets, sizes) for number, tree in enumerate(booster.trees)]
    read: str | None = None
    if numeric:
        x = _missing(
            graph, model, graph.numbers(graph.select(matrix, numeric), "XGBoost"), sparse=matrix.sparse
        )
        graph.refuse_where(graph.op("IsInf", x))
        read = graph.float32(x)
    codes = {
        feature: _codes(
            graph, graph.select(matrix, [feature]), booster.categories.get(feature), sizes[feature]
        )
        for feature in sets.features
    }
    if read is None and not codes:
        first = categorical[0]
        read = graph.cast(_codes(graph, graph.select(matrix, [first]), booster.categories.get(first), 1))
    found = add_trees(graph, sets.join(graph, read, codes), trees, booster.outputs, strict=True)
    return graph.add(found, np.broadcast_to(booster.base, (booster.outputs,)).reshape(1, -1))


def _missing(graph: Graph, model: Any, x: str, *, sparse: bool) -> str:
    """Return numbers with NaN for what the library reads as missing: in a sparse matrix, zeros."""
    missing = getattr(model, "missing", None)
    if sparse:
        return graph.where(graph.equal(x, 0.0), np.nan, x)
    if missing is not None and np.isfinite(missing):
        return graph.where(graph.equal(x, float(missing)), np.nan, x)
    return x


def _category_nodes(tree: Any) -> zip[tuple[int, int, int]]:
    return zip(
        tree.get("categories_nodes", []),
        tree.get("categories_segments", []),
        tree.get("categories_sizes", []),
        strict=True,
    )


def _tree(tree: Any, number: int, booster: Booster, place: Any, sets: Sets, sizes: dict[int, int]) -> Tree:
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise FeatureNotSupported(
            "an XGBoost model of trees with several outputs is not converted", hint=AS_COLUMNS
        )
    left = np.array(tree["left_children"], np.int64)
    feature = np.array(tree["split_indices"], np.int64)
    threshold = np.array(tree["split_conditions"], np.float32).astype(np.float64)
    value = np.where(left < 0, threshold, 0.0)
    if booster.drop is not None:
        value = value * booster.drop[number]
    default_left = np.array(tree["default_left"], bool)
    columns = place[np.minimum(feature, len(place) - 1)]
    for node, start, count in _category_nodes(tree):
        members = np.array(tree["categories"][start : start + count], np.int64)
        own = int(feature[node])
        goes_left = np.ones(sizes[own] + 1, bool)
        goes_left[members[members < sizes[own]]] = False
        goes_left[-1] = default_left[node]
        columns[node], threshold[node] = sets.column(own, goes_left), 0.5
    return Tree(
        columns,
        threshold,
        left,
        np.array(tree["right_children"], np.int64),
        default_left,
        value.reshape(-1, 1),
        booster.info[number] if booster.outputs > 1 else None,
    )


def _codes(graph: Graph, matrix: Matrix, categories: list[Any] | None, size: int) -> str:
    """Return a column's codes; ``size`` for NULL, which goes the default way."""
    [block] = matrix.blocks
    if categories is not None:
        return category_codes(graph, block, categories, "XGBoost")
    x = graph.numbers(matrix, "XGBoost, which learned numbered categories,")
    graph.refuse_where(graph.op("Less", x, graph.constant(0.0)))
    return graph.cast(graph.where(graph.is_nan(x), float(size), x), np.int64)
