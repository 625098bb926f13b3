"""LightGBM's boosters as nodes: from their dump, tree by tree, as their own code walks them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from pg_distill.conversion.encoding import Sets, category_codes
from pg_distill.conversion.graph import Graph, Matrix
from pg_distill.conversion.trees import Tree, add_trees
from pg_distill.errors import FeatureNotSupported

__all__ = [
    "add_probabilities",
    "add_value",
    "booster_of",
    "categories_of",
    "classes_of",
    "is_classifier",
    "objective_of",
]

ZERO = 1e-35
"""What LightGBM takes for zero."""

AS_COLUMNS = "Register what it predicts as columns: distill.register_logged_model."


def booster_of(model: Any) -> Any:
    """Return the booster of an estimator, or the booster itself."""
    return model.booster_ if hasattr(model, "booster_") else model


def objective_of(booster: Any) -> tuple[str, dict[str, str]]:
    """Return the objective's name and its options; "" where it is a function of the user's."""
    found = re.search(r"^objective=(.*)$", booster.model_to_string(num_iteration=1), re.MULTILINE)
    words = found[1].split() if found else [""]
    options = dict(word.partition(":")[::2] for word in words[1:])
    return words[0], options


def is_classifier(booster: Any) -> bool:
    """Return whether a booster's objective is of classes."""
    return objective_of(booster)[0] in (
        "binary",
        "multiclass",
        "multiclassova",
        "cross_entropy",
        "cross_entropy_lambda",
    )


def classes_of(model: Any) -> list[Any]:
    """Return the classes in the order of the probabilities; a booster knows them by their numbers only."""
    if hasattr(model, "classes_"):
        return list(model.classes_)
    return list(range(max(2, booster_of(model).num_model_per_iteration())))


def categories_of(model: Any, texts: Sequence[int] = ()) -> dict[int, list[Any]]:
    """Return, by the place of each column that was a pandas category, its categories.

    ``texts`` are the places of the columns that are texts in the sample: where numbered categories were named beside pandas'
    own, they say which are which.
    """
    booster = booster_of(model)
    known = booster.pandas_categorical or []
    if not known:
        return {}
    parameters = re.search(
        r"^\[categorical_feature: ([0-9,]*)\]$", booster.model_to_string(num_iteration=1), re.MULTILINE
    )
    places = [int(n) for n in parameters[1].split(",") if n] if parameters else []
    if len(places) != len(known):
        places = [p for p in (places or range(booster.num_feature())) if p in set(texts)]
    if len(places) != len(known):
        raise FeatureNotSupported(
            "the LightGBM model does not say which columns are its categories",
            hint="Fit it with exactly the columns as categories that are of pandas' category type.",
        )
    return dict(zip(places, (list(k) for k in known), strict=True))


def add_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the (n, K) probabilities."""
    booster = booster_of(model)
    objective, options = objective_of(booster)
    if objective == "multiclassova":
        raise FeatureNotSupported(
            "a one-vs-all LightGBM model gives probabilities that do not sum to one", hint=AS_COLUMNS
        )
    raw = _raw(graph, booster, matrix)
    if objective == "binary":
        slope = float(options.get("sigmoid", 1.0))
        return graph.pair(graph.sigmoid(graph.mul(raw, slope) if slope != 1.0 else raw))
    if objective == "cross_entropy":
        return graph.pair(graph.sigmoid(raw))
    if objective == "multiclass":
        return graph.softmax(raw)
    raise FeatureNotSupported(
        f'a LightGBM model of objective "{objective or "custom"}" gives no probabilities', hint=AS_COLUMNS
    )


def add_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the (n, 1) values."""
    booster = booster_of(model)
    objective, options = objective_of(booster)
    raw = _raw(graph, booster, matrix)
    if "sqrt" in options:
        return graph.mul(graph.op("Sign", raw), graph.mul(raw, raw))
    if objective in ("poisson", "gamma", "tweedie"):
        return graph.op("Exp", raw)
    if objective == "cross_entropy":
        return graph.sigmoid(raw)
    if objective in ("binary", "multiclass", "multiclassova", "cross_entropy_lambda"):
        raise FeatureNotSupported(
            f'a LightGBM model of objective "{objective}" gives no one value', hint=AS_COLUMNS
        )
    return raw


def _raw(graph: Graph, booster: Any, matrix: Matrix) -> str:
    """Return the (n, K) sums of the trees, of the best iteration's where it stopped early."""
    dump = booster.dump_model()
    outputs = int(dump["num_tree_per_iteration"])
    matrix = graph.resolved(matrix)
    nodes = [_walk(info["tree_structure"]) for info in dump["tree_info"]]
    numbered = {n["split_feature"] for tree in nodes for n in tree if n.get("decision_type") == "=="}
    named = categories_of(booster, graph.text_places(matrix))
    categorical = sorted({*numbered, *named})
    numeric = [i for i in range(matrix.width) if i not in set(categorical)]
    place = {feature: i for i, feature in enumerate(numeric)}
    sets = Sets(len(numeric))
    sizes = {f: len(named[f]) for f in named}
    for feature in categorical:
        if feature not in named:
            members = [
                max(map(int, n["threshold"].split("||")), default=0)
                for tree in nodes
                for n in tree
                if n.get("decision_type") == "==" and n["split_feature"] == feature
            ]
            sizes[feature] = max(members, default=0) + 1
    zeros: set[int] = set()
    nans: set[int] = set()
    trees = []
    for number, tree in enumerate(nodes):
        if any(n.get("leaf_coeff") for n in tree):
            raise FeatureNotSupported("a LightGBM model of linear trees is not converted", hint=AS_COLUMNS)
        count = len(tree)
        built = Tree(
            np.zeros(count, np.int64), np.zeros(count), np.full(count, -1), np.full(count, -1), np.zeros(count, bool),
            np.zeros((count, 1)), number % outputs if outputs > 1 else None,
        )  # fmt: skip
        for i, node in enumerate(tree):
            if "split_feature" not in node:
                built.value[i] = node["leaf_value"]
                continue
            feature = int(node["split_feature"])
            built.left[i], built.right[i] = node["_left"], node["_right"]
            if node["decision_type"] == "==":
                goes_left = np.zeros(sizes[feature] + 1, bool)
                goes_left[[int(m) for m in str(node["threshold"]).split("||") if int(m) < sizes[feature]]] = (
                    True
                )
                built.feature[i], built.threshold[i] = sets.column(feature, goes_left), 0.5
                continue
            built.feature[i], built.threshold[i] = place[feature], float(node["threshold"])
            missing = node["missing_type"]
            (zeros if missing == "Zero" else nans).add(feature)
            built.missing_left[i] = built.threshold[i] >= 0.0 if missing == "None" else node["default_left"]
        trees.append(built)
    if zeros & nans:
        raise FeatureNotSupported(
            "the LightGBM model reads zeros of one column as missing in some trees only", hint=AS_COLUMNS
        )
    x = graph.numbers(graph.select(matrix, numeric), "LightGBM") if numeric else None
    if x is not None and zeros:
        chosen = np.isin(numeric, sorted(zeros)).reshape(1, -1)
        zero = graph.op("LessOrEqual", graph.op("Abs", x), graph.constant(ZERO))
        x = graph.where(graph.op("And", zero, graph.constant(chosen, np.bool_)), np.nan, x)
    codes = {
        feature: _codes(graph, graph.select(matrix, [feature]), named.get(feature), sizes[feature])
        for feature in sets.features
    }
    if x is None and not codes:
        x = graph.cast(_codes(graph, graph.select(matrix, categorical[:1]), named.get(categorical[0]), 1))
    found = add_trees(graph, sets.join(graph, x, codes), trees, outputs)
    if dump.get("average_output"):
        found = graph.div(found, len(trees) / outputs)
    return found


def _walk(root: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the nodes of a dumped tree, each with the places of its children."""
    nodes = [root]
    for node in nodes:  # grows while it is walked
        if "split_feature" in node:
            for side in ("left", "right"):
                node[f"_{side}"] = len(nodes)
                nodes.append(node[f"{side}_child"])
    return nodes


def _codes(graph: Graph, matrix: Matrix, categories: list[Any] | None, size: int) -> str:
    """Return a column's codes; ``size`` for NULL and what is no category."""
    [block] = matrix.blocks
    if categories is not None:
        return category_codes(graph, block, categories, "LightGBM")
    x = graph.numbers(matrix, "LightGBM, which learned numbered categories,")
    whole = graph.any_of(
        [
            graph.is_nan(x),
            graph.op("LessOrEqual", x, graph.constant(-1.0)),
            graph.op("GreaterOrEqual", x, graph.constant(float(size))),
        ]
    )
    return graph.cast(graph.where(whole, float(size), x), np.int64)
