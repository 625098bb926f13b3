"""scikit-learn's pipelines, ensembles and models as nodes.

`add_probabilities`, `add_decision` and `add_value` add what a model's predict_proba, decision_function and predict give for the
columns of a `Matrix`; `add_transform` what a step's transform gives. A model that none of these knows goes to skl2onnx, over
numbers alone.

Long, because one table is behind it: a few lines for each class, which call each other where models are made of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pg_distill.conversion import catboosts, lightgbms, xgboosts
from pg_distill.conversion.encoding import Sets
from pg_distill.conversion.foreign import add_foreign
from pg_distill.conversion.graph import Graph, Matrix, Numbers
from pg_distill.conversion.preprocessing import TRANSFORMERS, add_function, kind_of, unsupported
from pg_distill.conversion.trees import Tree, add_trees, find_intervals
from pg_distill.onnx_model.session import open_session

__all__ = [
    "add_decision",
    "add_probabilities",
    "add_transform",
    "add_value",
    "before_last",
    "class_threshold",
    "is_pipeline",
    "library_of",
    "network_logits",
    "split_forest",
    "unwrapped",
]

Scores = Callable[[Graph, Any, Matrix], str]


def library_of(model: Any) -> str:
    """Return the library of a model's class: "sklearn", "lightgbm", ..."""
    return type(model).__module__.partition(".")[0]


def _known(estimator: Any, table: Mapping[str, Any]) -> Any:
    """Return what a table has for scikit-learn's own class; a class that derives from one may do anything."""
    return table.get(kind_of(estimator)) if library_of(estimator) in ("sklearn", "sklearnex") else None


def is_pipeline(model: Any) -> bool:
    """Return whether a model is a pipeline: scikit-learn's, or imbalanced-learn's."""
    return hasattr(model, "steps") and isinstance(model.steps, list)


def unwrapped(model: Any) -> Any:
    """Return the model that a search, or a wrapper that changes nothing, found or holds."""
    while True:
        if hasattr(model, "best_estimator_"):
            model = model.best_estimator_
        elif kind_of(model) == "FrozenEstimator":
            model = model.estimator
        elif kind_of(model) == "RANSACRegressor" and hasattr(model, "estimator_"):
            model = model.estimator_
        else:
            return model


# -- steps


def add_transform(graph: Graph, step: Any, matrix: Matrix) -> Matrix:
    """Return what a fitted transformer gives."""
    step = unwrapped(step)
    if step is None or (isinstance(step, str) and step == "passthrough"):
        return matrix
    if is_pipeline(step):
        for _, inner in step.steps:
            matrix = add_transform(graph, inner, matrix)
        return matrix
    name = kind_of(step)
    if hasattr(step, "fit_resample"):
        return matrix  # imbalanced-learn's samplers change the rows that are learned from, and no others
    if library_of(step) == "sklearn":
        if name == "ColumnTransformer":
            return _columns(graph, step, matrix)
        if name == "FeatureUnion":
            return _union(graph, step, matrix)
        if name in ("VotingClassifier", "StackingClassifier", "VotingRegressor", "StackingRegressor"):
            raise unsupported(step, "as a transformer is not converted")
    known = _known(step, TRANSFORMERS)
    if known is not None:
        found: Matrix = known(graph, step, matrix)
        return found
    if "feature_extraction" in type(step).__module__ or name.endswith("Vectorizer"):
        raise unsupported(
            step,
            "is no vectorizer that is converted: CountVectorizer, TfidfVectorizer and HashingVectorizer are",
        )
    if library_of(step) != "sklearn":
        raise unsupported(step, f"of {type(step).__module__} is no transformer that is converted")
    x = graph.numbers(matrix, name)
    tensor, width = add_foreign(graph, step, x, matrix.width, "transform")
    return Matrix((Numbers(tensor, width),))


def _columns(graph: Graph, transformer: Any, matrix: Matrix) -> Matrix:
    indices = transformer._transformer_to_input_indices
    parts = []
    for name, step, _ in transformer.transformers_:
        chosen = [int(i) for i in indices.get(name, [])]
        if (isinstance(step, str) and step == "drop") or not chosen:
            continue
        parts.append(add_transform(graph, step, graph.select(matrix, chosen)))
    return Matrix.join(parts, sparse=bool(transformer.sparse_output_))


def _union(graph: Graph, union: Any, matrix: Matrix) -> Matrix:
    parts = []
    weights = union.transformer_weights or {}
    for name, step in union.transformer_list:
        if isinstance(step, str) and step == "drop":
            continue
        part = add_transform(graph, step, matrix)
        if name in weights:
            x = graph.mul(graph.numbers(part, kind_of(union)), float(weights[name]))
            part = Matrix((Numbers(x, part.width),), part.sparse)
        parts.append(part)
    return Matrix.join(parts, sparse=any(part.sparse for part in parts))


def before_last(graph: Graph, pipeline: Any, matrix: Matrix) -> tuple[Any, Matrix]:
    """Return the last step of a pipeline, and what those before it give."""
    for _, step in pipeline.steps[:-1]:
        matrix = add_transform(graph, step, matrix)
    return unwrapped(pipeline.steps[-1][1]), matrix


# -- what a model gives


def add_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the (n, K) probabilities of the classes in their order."""
    model = unwrapped(model)
    if is_pipeline(model):
        return add_probabilities(graph, *before_last(graph, model, matrix))
    library = library_of(model)
    if library == "lightgbm":
        return lightgbms.add_probabilities(graph, model, matrix)
    if library == "xgboost":
        return xgboosts.add_probabilities(graph, model, matrix)
    if library == "catboost":
        return catboosts.add_probabilities(graph, model, matrix)
    known = _known(model, _PROBABILITIES)
    if known is not None:
        return str(known(graph, model, matrix))
    _require_scikit(model)
    if not hasattr(model, "predict_proba"):
        raise unsupported(model, "gives no probabilities")
    x = graph.numbers(matrix, kind_of(model))
    _refuse_missing(graph, model, x, matrix)
    return add_foreign(graph, model, x, matrix.width, "predict_proba")[0]


def add_decision(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the decision function: (n, 1) for two classes, of which the last is chosen where it is above 0; else (n, K)."""
    model = unwrapped(model)
    if is_pipeline(model):
        return add_decision(graph, *before_last(graph, model, matrix))
    known = _known(model, _DECISIONS)
    if known is None:
        raise unsupported(model, "has a decision function that is not converted")
    return str(known(graph, model, matrix))


def add_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the (n, 1) values of a regression."""
    model = unwrapped(model)
    if is_pipeline(model):
        return add_value(graph, *before_last(graph, model, matrix))
    library = library_of(model)
    if library == "lightgbm":
        return lightgbms.add_value(graph, model, matrix)
    if library == "xgboost":
        return xgboosts.add_value(graph, model, matrix)
    if library == "catboost":
        return catboosts.add_value(graph, model, matrix)
    known = _known(model, _VALUES)
    if known is not None:
        return str(known(graph, model, matrix))
    _require_scikit(model)
    if not hasattr(model, "predict"):
        raise unsupported(model, "predicts nothing")
    x = graph.numbers(matrix, kind_of(model))
    _refuse_missing(graph, model, x, matrix)
    return add_foreign(graph, model, x, matrix.width, "predict")[0]


def _require_scikit(model: Any) -> None:
    if library_of(model) not in ("sklearn", "sklearnex"):
        raise unsupported(
            model,
            f"of {type(model).__module__} is of no library that is converted here",
            "Export it to ONNX by its own library's means, and register the file.",
        )


def _takes_nan(model: Any, matrix: Matrix) -> bool:
    try:
        return bool(model.__sklearn_tags__().input_tags.allow_nan) and not matrix.sparse
    except AttributeError:
        return False


def _refuse_missing(graph: Graph, model: Any, x: str, matrix: Matrix) -> None:
    """Give no answer where the library gives none: NaN for a model that takes none, an infinity for any."""
    if _takes_nan(model, matrix):
        graph.refuse_where(graph.op("IsInf", x))
    else:
        graph.refuse_nan(x)


def _chosen(add: Scores) -> Scores:
    """Return a way for a model over the columns that a selector chose."""

    def scores(graph: Graph, model: Any, matrix: Matrix) -> str:
        chosen = graph.select(matrix, np.flatnonzero(model.get_support()))
        return add(graph, model.estimator_, chosen)

    return scores


def _one_output(model: Any) -> None:
    if getattr(model, "n_outputs_", 1) != 1:
        raise unsupported(model, f"predicts {model.n_outputs_} columns, and a model here predicts one")


# -- linear models


def _product(graph: Graph, model: Any, matrix: Matrix) -> str:
    x = graph.numbers(matrix, kind_of(model))
    coefficients = np.asarray(model.coef_, np.float64)
    if hasattr(coefficients, "toarray"):
        coefficients = coefficients.toarray()
    coefficients = coefficients.reshape(-1, matrix.width)
    return graph.affine(x, coefficients.T, np.asarray(model.intercept_, np.float64).reshape(1, -1))


def _sparse_coefficients(model: Any) -> None:
    if hasattr(model.coef_, "toarray"):
        model.densify()


def _linear_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    _sparse_coefficients(model)
    if np.ndim(model.coef_) == 2 and len(model.coef_) > 1:
        raise unsupported(model, f"predicts {len(model.coef_)} columns, and a model here predicts one")
    return _product(graph, model, matrix)


def _exponential_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    found = _product(graph, model, matrix)
    link = type(model._base_loss.link).__name__ if hasattr(model, "_base_loss") else "LogLink"
    if link == "IdentityLink":
        return found
    if link != "LogLink":
        raise unsupported(model, f"with {link} is not converted")
    return graph.op("Exp", found)


def _pls_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    if np.asarray(model.coef_).shape[0] != 1:
        raise unsupported(model, "predicts several columns, and a model here predicts one")
    x = graph.sub(graph.numbers(matrix, kind_of(model)), np.asarray(model._x_mean))
    return graph.affine(x, np.asarray(model.coef_).T, np.asarray(model.intercept_).reshape(1, -1))


def _linear_decision(graph: Graph, model: Any, matrix: Matrix) -> str:
    _sparse_coefficients(model)
    return _product(graph, model, matrix)


def _one_against_rest(graph: Graph, decision: str, classes: int) -> str:
    """Return (n, K) probabilities of independent logistic ones, divided by their sum."""
    single = graph.sigmoid(decision)
    return graph.pair(single) if classes == 2 else _shares(graph, single, classes)


def _shares(graph: Graph, parts: str, classes: int) -> str:
    """Return each row divided by its sum; even shares where that is 0."""
    total = graph.sum(parts)
    none = graph.equal(total, 0.0)
    return graph.where(none, 1.0 / classes, graph.div(parts, graph.where(none, 1.0, total)))


def _logistic(graph: Graph, model: Any, matrix: Matrix) -> str:
    decision = _linear_decision(graph, model, matrix)
    classes = len(model.classes_)
    # Until scikit-learn 1.7 multi_class chose; from then on only the solver does.
    way = getattr(model, "multi_class", "auto")
    if classes == 2:
        return graph.pair(graph.sigmoid(graph.mul(decision, 2.0) if way == "multinomial" else decision))
    if way == "ovr" or (way in ("auto", "deprecated") and model.solver == "liblinear"):
        return _one_against_rest(graph, decision, classes)
    return graph.softmax(decision)


def _stochastic(graph: Graph, model: Any, matrix: Matrix) -> str:
    decision = _linear_decision(graph, model, matrix)
    classes = len(model.classes_)
    if model.loss in ("log_loss", "log"):
        return _one_against_rest(graph, decision, classes)
    if model.loss != "modified_huber":
        raise unsupported(model, f"with loss '{model.loss}' gives no probabilities")
    clipped = graph.op("Clip", decision, graph.constant(-1.0), graph.constant(1.0))
    half = graph.div(graph.add(clipped, 1.0), 2.0)
    return graph.pair(half) if classes == 2 else _shares(graph, half, classes)


def _discriminant(graph: Graph, model: Any, matrix: Matrix) -> str:
    decision = _linear_decision(graph, model, matrix)
    return graph.pair(graph.sigmoid(decision)) if len(model.classes_) == 2 else graph.softmax(decision)


def _quadratic(graph: Graph, model: Any, matrix: Matrix) -> str:
    x = graph.numbers(matrix, kind_of(model))
    scores = []
    for mean, rotation, scaling, prior in zip(
        model.means_, model.rotations_, model.scalings_, model.priors_, strict=True
    ):
        turned = graph.op("MatMul", graph.sub(x, mean), graph.constant(rotation * scaling**-0.5))
        size = graph.sum(graph.mul(turned, turned))
        scores.append(graph.add(graph.mul(size, -0.5), np.log(prior) - 0.5 * np.log(scaling).sum()))
    return graph.softmax(graph.concat(scores))


# -- naive Bayes, constants


def _gaussian_bayes(graph: Graph, model: Any, matrix: Matrix) -> str:
    x = graph.numbers(matrix, kind_of(model))
    scores = []
    for mean, variance, prior in zip(model.theta_, model.var_, model.class_prior_, strict=True):
        off = graph.sub(x, mean)
        size = graph.sum(graph.div(graph.mul(off, off), variance))
        scores.append(
            graph.add(graph.mul(size, -0.5), np.log(prior) - 0.5 * np.log(2 * np.pi * variance).sum())
        )
    return graph.softmax(graph.concat(scores))


def _counting_bayes(graph: Graph, model: Any, matrix: Matrix) -> str:
    x = graph.numbers(matrix, kind_of(model))
    weights = np.asarray(model.feature_log_prob_, np.float64)
    bias = np.asarray(model.class_log_prior_, np.float64)
    name = kind_of(model)
    if name == "BernoulliNB":
        if model.binarize is not None:
            graph.refuse_nan(x)
            x = graph.cast(graph.op("Greater", x, graph.constant(float(model.binarize))))
        none = np.log1p(-np.exp(weights))
        bias = bias + none.sum(axis=1)
        weights = weights - none
    elif name == "ComplementNB" and len(model.classes_) > 1:
        bias = np.zeros_like(bias)
    return graph.softmax(graph.affine(x, weights.T, bias.reshape(1, -1)))


def _dummy_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    if model.strategy in ("stratified", "uniform"):
        raise unsupported(model, f"with strategy '{model.strategy}' answers at random")
    row = model.predict_proba(np.zeros((1, 1)))[0]
    return graph.tile(row, graph.numbers(graph.select(matrix, [0]), kind_of(model)))


def _dummy_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    return graph.tile(np.ravel(model.constant_), graph.numbers(graph.select(matrix, [0]), kind_of(model)))


# -- networks


def network_logits(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return what the last layer of a network gives, before its activation."""
    x = graph.numbers(matrix, kind_of(model))
    graph.refuse_nan(x)
    hidden = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "identity": "Identity"}[model.activation]
    for number, (weights, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        if number:
            x = graph.op(hidden, x)
        x = graph.affine(x, weights, np.asarray(bias).reshape(1, -1))
    return x


def _network_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    found = network_logits(graph, model, matrix)
    if model.out_activation_ == "softmax":
        return graph.softmax(found)
    if len(model.classes_) > 2:
        raise unsupported(model, "of several labels is no part of another model that is converted")
    return graph.pair(graph.sigmoid(found))


def _network_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    _one_output(model)
    found = network_logits(graph, model, matrix)
    return graph.op("Exp", found) if model.out_activation_ == "exp" else found


# -- trees


def _tree(tree: Any, value: Any, target: int | None = None) -> Tree:
    count = tree.node_count
    missing = np.asarray(getattr(tree, "missing_go_to_left", np.zeros(count)), bool)
    return Tree(
        np.asarray(tree.feature, np.int64),
        np.asarray(tree.threshold, np.float64),
        np.asarray(tree.children_left, np.int64),
        np.asarray(tree.children_right, np.int64),
        missing,
        np.asarray(value, np.float64).reshape(count, -1),
        target,
    )


def _tree_input(graph: Graph, model: Any, matrix: Matrix) -> str:
    x = graph.numbers(matrix, kind_of(model))
    _refuse_missing(graph, model, x, matrix)
    return graph.float32(x)


def _forest_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    _one_output(model)
    members = getattr(model, "estimators_", [model])
    classes = len(model.classes_)
    x = _tree_input(graph, model, matrix)
    if classes == 2:
        trees = [_tree(m.tree_, m.tree_.value[:, 0, 1]) for m in members]
    else:
        trees = [_tree(m.tree_, m.tree_.value[:, 0, :]) for m in members]
    # The sum is divided, not the leaves: votes of 0 and 1 stay exact, and a tie a tie.
    found = add_trees(graph, x, trees, 1 if classes == 2 else classes)
    found = graph.div(found, float(len(members))) if len(members) > 1 else found
    return graph.pair(found) if classes == 2 else found


def split_forest(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the (n, K) probabilities of 1 in each of the K columns that a tree or a forest predicts."""
    members = getattr(model, "estimators_", [model])
    x = _tree_input(graph, model, matrix)
    found = add_trees(graph, x, [_tree(m.tree_, m.tree_.value[:, :, 1]) for m in members], model.n_outputs_)
    return graph.div(found, float(len(members))) if len(members) > 1 else found


def _forest_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    _one_output(model)
    members = getattr(model, "estimators_", [model])
    x = _tree_input(graph, model, matrix)
    found = add_trees(graph, x, [_tree(m.tree_, m.tree_.value[:, 0, 0]) for m in members], 1)
    return graph.div(found, float(len(members))) if len(members) > 1 else found


def _boosting_raw(graph: Graph, model: Any, matrix: Matrix) -> str:
    x = _tree_input(graph, model, matrix)
    stages = model.estimators_
    trees = [
        _tree(
            member.tree_,
            model.learning_rate * member.tree_.value[:, 0, 0],
            k if stages.shape[1] > 1 else None,
        )
        for stage in stages
        for k, member in enumerate(stage)
    ]
    found = add_trees(graph, x, trees, stages.shape[1])
    if isinstance(model.init_, str):
        return found
    if kind_of(model.init_).startswith("Dummy"):
        start = model._raw_predict_init(np.zeros((1, model.n_features_in_), np.float32))
        return graph.add(found, np.asarray(start, np.float64).reshape(1, -1))
    raise unsupported(model, "with an init estimator of its own is not converted")


def _boosting_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    raw = _boosting_raw(graph, model, matrix)
    if len(model.classes_) > 2:
        return graph.softmax(raw)
    return graph.pair(graph.sigmoid(graph.mul(raw, 2.0) if model.loss == "exponential" else raw))


def _histogram_raw(graph: Graph, model: Any, matrix: Matrix) -> str:
    preprocessor = getattr(model, "_preprocessor", None)
    if preprocessor is not None:
        matrix = _columns(graph, preprocessor, matrix)
    x = graph.numbers(matrix, kind_of(model))
    outputs = int(model.n_trees_per_iteration_)
    sets = Sets(matrix.width)
    known, place = model._bin_mapper.make_known_categories_bitsets()
    size = 8 * known.dtype.itemsize * known.shape[1] if len(known) else 256
    trees = []
    for stage in model._predictors:
        for k, predictor in enumerate(stage):
            nodes = predictor.nodes
            feature = nodes["feature_idx"].astype(np.int64)
            threshold = nodes["num_threshold"].astype(np.float64)
            leaf = nodes["is_leaf"].astype(bool)
            for node in np.flatnonzero(nodes["is_categorical"].astype(bool) & ~leaf):
                goes_left = np.append(
                    _bits(predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]], size), False
                )
                unknown = ~np.append(_bits(known[place[feature[node]]], size), False)
                goes_left[unknown & ~goes_left] = bool(nodes["missing_go_to_left"][node])
                feature[node], threshold[node] = sets.column(int(feature[node]), goes_left), 0.5
            trees.append(
                Tree(
                    feature,
                    threshold,
                    np.where(leaf, -1, nodes["left"].astype(np.int64)),
                    np.where(leaf, -1, nodes["right"].astype(np.int64)),
                    nodes["missing_go_to_left"].astype(bool),
                    nodes["value"].astype(np.float64).reshape(-1, 1),
                    k if outputs > 1 else None,
                )
            )
    codes = {int(f): _whole_codes(graph, graph.gather(x, [int(f)]), size) for f in sets.features}
    found = add_trees(graph, sets.join(graph, x, codes), trees, outputs)
    return graph.add(found, np.asarray(model._baseline_prediction, np.float64).reshape(1, -1))


def _bits(words: Any, size: int) -> Any:
    """Return a set of small integers as booleans."""
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little")[:size].astype(bool)


def _whole_codes(graph: Graph, x: str, size: int) -> str:
    """Return the codes of categories that are numbers already; ``size`` for NaN and what is out of range."""
    out = graph.any_of(
        [
            graph.is_nan(x),
            graph.op("Less", x, graph.constant(0.0)),
            graph.op("GreaterOrEqual", x, graph.constant(float(size))),
        ]
    )
    return graph.cast(graph.where(out, float(size), x), np.int64)


def _histogram_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    raw = _histogram_raw(graph, model, matrix)
    return graph.softmax(raw) if len(model.classes_) > 2 else graph.pair(graph.sigmoid(raw))


def _histogram_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    raw = _histogram_raw(graph, model, matrix)
    return graph.op("Exp", raw) if type(model._loss.link).__name__ == "LogLink" else raw


def _adaptive_decision(graph: Graph, model: Any, matrix: Matrix) -> str:
    if not all(hasattr(m, "tree_") for m in model.estimators_):
        raise unsupported(model, "over other models than trees is not converted")
    classes = len(model.classes_)
    x = graph.numbers(matrix, kind_of(model))
    graph.refuse_nan(x)
    trees = []
    total = float(np.sum(model.estimator_weights_))
    for member, weight in zip(model.estimators_, model.estimator_weights_, strict=False):
        best = np.argmax(member.tree_.value[:, 0, :], axis=1)
        own = np.searchsorted(model.classes_, member.classes_[best])
        votes = np.full((len(best), classes), -1.0 / (classes - 1))
        votes[np.arange(len(best)), own] = 1.0
        trees.append(_tree(member.tree_, votes * weight / total))
    found = add_trees(graph, graph.float32(x), trees, classes)
    if classes > 2:
        return found
    return graph.sub(graph.gather(found, [1]), graph.gather(found, [0]))


def _adaptive_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the median of the members' values, weighted."""
    x = graph.numbers(matrix, kind_of(model))
    graph.refuse_nan(x)
    members = model.estimators_
    before, graph.precise = graph.precise, True
    if all(hasattr(m, "tree_") for m in members):
        trees = [_tree(m.tree_, m.tree_.value[:, 0, 0], k) for k, m in enumerate(members)]
        found = add_trees(graph, graph.float32(x), trees, len(members))
    else:
        found = graph.concat([add_value(graph, m, matrix) for m in members])
    graph.precise = before
    values, at = graph.top(found, len(members))
    weights = np.asarray(model.estimator_weights_[: len(members)], np.float64)
    shares = graph.op(
        "CumSum", graph.op("Gather", graph.constant(weights), at, axis=0), graph.constant(1, np.int64)
    )
    half = graph.mul(graph.gather(shares, [len(members) - 1]), 0.5)
    enough = graph.cast(graph.op("GreaterOrEqual", shares, half), np.int32)
    return graph.op("GatherElements", values, graph.op("ArgMax", enough, axis=1, keepdims=1), axis=1)


def _adaptive_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    decision = _adaptive_decision(graph, model, matrix)
    if len(model.classes_) == 2:
        return graph.pair(graph.sigmoid(decision))
    return graph.softmax(graph.div(decision, float(len(model.classes_) - 1)))


# -- neighbours and kernels

PAIR_TOLERANCE, PAIR_ITERATIONS = 0.005, 3
"""Of libsvm's coupling of pairs: the tolerance, divided by the classes, and what two classes need at most."""

MAX_LOOP = 64
"""Columns of which differences are taken one by one, which is exact where rows are equal."""


def _distances(graph: Graph, x: str, rows: Any, power: float) -> str:
    """Return (n, rows) distances: the sum of absolute differences to the power, not yet its root."""
    rows = np.asarray(rows, np.float64)
    if rows.shape[1] <= MAX_LOOP or power != 2:
        found = None
        for j in range(rows.shape[1]):
            off = graph.sub(graph.gather(x, [j]), rows[:, j].reshape(1, -1))
            part = graph.mul(off, off) if power == 2 else graph.op("Abs", off)
            if power not in (1, 2):
                part = graph.op("Pow", part, graph.constant(float(power)))
            found = part if found is None else graph.add(found, part)
        assert found is not None
        return found
    centre = rows.mean(axis=0)
    x, rows = graph.sub(x, centre), rows - centre
    own = graph.sum(graph.mul(x, x))
    cross = graph.mul(graph.op("MatMul", x, graph.constant(rows.T)), -2.0)
    squares = graph.add(graph.add(own, cross), (rows**2).sum(axis=1).reshape(1, -1))
    return graph.op("Max", squares, graph.constant(0.0))


def _neighbours(graph: Graph, model: Any, matrix: Matrix) -> tuple[str, str]:
    """Return the places of the nearest rows, (n, k), and their weights."""
    power = {"euclidean": 2, "l2": 2, "manhattan": 1, "cityblock": 1, "l1": 1}.get(model.effective_metric_)
    if model.effective_metric_ == "minkowski":
        power = model.effective_metric_params_.get("p", model.p)
    if power is None or not np.isfinite(power) or model.effective_metric_params_.get("w") is not None:
        raise unsupported(model, f"with metric '{model.effective_metric_}' is not converted")
    if model.weights not in ("uniform", "distance"):
        raise unsupported(model, "with weights of its own is not converted")
    fitted = model._fit_X
    x = graph.numbers(matrix, kind_of(model))
    fitted = fitted.toarray() if hasattr(fitted, "toarray") else np.asarray(fitted)
    graph.refuse_nan(x)
    near, at = graph.top(_distances(graph, x, fitted, power), int(model.n_neighbors))
    if model.weights == "uniform":
        return at, graph.add(graph.mul(near, 0.0), 1.0)
    distance = graph.op("Pow", near, graph.constant(1.0 / power)) if power != 1 else near
    zero = graph.equal(distance, 0.0)
    hits = graph.cast(zero)
    some = graph.op("Greater", graph.sum(hits), graph.constant(0.0))
    return at, graph.where(some, hits, graph.div(1.0, graph.where(zero, 1.0, distance)))


def _neighbour_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    if np.ndim(model._y) != 1:
        raise unsupported(model, "predicts several columns, and a model here predicts one")
    at, weights = _neighbours(graph, model, matrix)
    own = graph.op("Gather", graph.constant(model._y, np.int64), at, axis=0)
    votes = [
        graph.sum(graph.mul(graph.cast(graph.equal(own, graph.constant([k], np.int64))), weights))
        for k in range(len(model.classes_))
    ]
    found = graph.concat(votes)
    return graph.div(found, graph.sum(found))


def _neighbour_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    values = np.asarray(model._y, np.float64)
    if values.ndim == 2 and values.shape[1] > 1:
        raise unsupported(model, "predicts several columns, and a model here predicts one")
    at, weights = _neighbours(graph, model, matrix)
    own = graph.op("Gather", graph.constant(values.reshape(-1)), at, axis=0)
    return graph.div(graph.sum(graph.mul(own, weights)), graph.sum(weights))


def _vector_kernel(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return (n, vectors) values of a support vector machine's kernel."""
    vectors = model.support_vectors_
    vectors = vectors.toarray() if hasattr(vectors, "toarray") else np.asarray(vectors, np.float64)
    x = graph.numbers(matrix, kind_of(model))
    graph.refuse_nan(x)
    if model.kernel == "rbf":
        return graph.op("Exp", graph.mul(_distances(graph, x, vectors, 2), -float(model._gamma)))
    if model.kernel not in ("linear", "poly", "sigmoid"):
        raise unsupported(model, f"with kernel '{model.kernel}' is not converted")
    product = graph.op("MatMul", x, graph.constant(vectors.T))
    if model.kernel == "linear":
        return product
    product = graph.add(graph.mul(product, float(model._gamma)), float(model.coef0))
    if model.kernel == "sigmoid":
        return graph.op("Tanh", product)
    return graph.op("Pow", product, graph.constant(float(model.degree)))


def _vector_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    dual = model.dual_coef_
    dual = dual.toarray() if hasattr(dual, "toarray") else np.asarray(dual)
    kernel = _vector_kernel(graph, model, matrix)
    return graph.affine(kernel, dual.reshape(1, -1).T, np.asarray(model.intercept_).reshape(1, -1))


def _vector_decision(graph: Graph, model: Any, matrix: Matrix) -> str:
    if len(model.classes_) > 2:
        raise unsupported(
            model,
            "of several classes without probabilities decides by votes of pairs, which is not converted",
            "Fit it with probability=True, or within CalibratedClassifierCV.",
        )
    return _vector_value(graph, model, matrix)


def _vector_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    slope = np.asarray(getattr(model, "_probA", ()), np.float64)
    if not slope.size:
        raise unsupported(model, "was fitted without probabilities")
    if len(model.classes_) > 2:
        x = graph.numbers(matrix, kind_of(model))
        graph.refuse_nan(x)
        return add_foreign(graph, model, x, matrix.width, "predict_proba")[0]
    decision = _vector_value(graph, model, matrix)
    # libsvm's own sign is the other one, and its least probability 1e-7.
    offset = np.asarray(model._probB, np.float64)
    first = graph.sigmoid(graph.sub(graph.mul(decision, float(slope[0])), float(offset[0])))
    first = graph.op("Clip", first, graph.constant(1e-7), graph.constant(1 - 1e-7))
    return _coupled(graph, first)


def _coupled(graph: Graph, first: str) -> str:
    """Return (n, 2) probabilities as libsvm makes them of the first class'.

    It couples the probabilities of pairs by iterations that stop early, also where there is one pair.
    """
    second = graph.sub(1.0, first)
    same = [graph.mul(second, second), graph.mul(first, first)]
    cross = graph.mul(graph.mul(first, second), -1.0)
    p = [graph.add(graph.mul(first, 0.0), 0.5)] * 2
    for _ in range(PAIR_ITERATIONS):
        product = [graph.add(graph.mul(same[t], p[t]), graph.mul(cross, p[1 - t])) for t in (0, 1)]
        level = graph.add(graph.mul(p[0], product[0]), graph.mul(p[1], product[1]))
        errors = [graph.op("Abs", graph.sub(q, level)) for q in product]
        done = graph.op("Less", graph.op("Max", *errors), graph.constant(PAIR_TOLERANCE / 2))
        new = list(p)
        for t in (0, 1):
            off = graph.div(graph.sub(level, product[t]), same[t])
            whole = graph.add(off, 1.0)
            grown = graph.add(graph.mul(off, same[t]), graph.mul(product[t], 2.0))
            level = graph.div(graph.div(graph.add(level, graph.mul(off, grown)), whole), whole)
            row = [same[0], cross] if t == 0 else [cross, same[1]]
            product = [
                graph.div(graph.add(q, graph.mul(off, r)), whole) for q, r in zip(product, row, strict=True)
            ]
            new[t] = graph.add(new[t], off)
            new = [graph.div(n, whole) for n in new]
        p = [graph.where(done, old, n) for old, n in zip(p, new, strict=True)]
    return graph.concat(p)


def _ridge_kernel_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    dual = np.asarray(model.dual_coef_, np.float64)
    if dual.ndim == 2 and dual.shape[1] > 1:
        raise unsupported(model, "predicts several columns, and a model here predicts one")
    rows = np.asarray(model.X_fit_, np.float64)
    gamma = model.gamma if model.gamma is not None else 1.0 / rows.shape[1]
    x = graph.numbers(matrix, kind_of(model))
    if model.kernel == "rbf":
        kernel = graph.op("Exp", graph.mul(_distances(graph, x, rows, 2), -float(gamma)))
    elif model.kernel == "linear":
        kernel = graph.op("MatMul", x, graph.constant(rows.T))
    elif model.kernel in ("poly", "polynomial"):
        product = graph.mul(graph.op("MatMul", x, graph.constant(rows.T)), float(gamma))
        kernel = graph.op("Pow", graph.add(product, float(model.coef0)), graph.constant(float(model.degree)))
    else:
        raise unsupported(model, f"with kernel '{model.kernel}' is not converted")
    return graph.op("MatMul", kernel, graph.constant(dual.reshape(-1, 1)))


def _process_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    targets = np.asarray(model.alpha_)
    if targets.ndim == 2 and targets.shape[1] > 1:
        raise unsupported(model, "predicts several columns, and a model here predicts one")
    x = graph.numbers(matrix, kind_of(model))
    graph.refuse_nan(x)
    kernel = _covariance(graph, model.kernel_, x, np.asarray(model.X_train_, np.float64), model)
    found = graph.op("MatMul", kernel, graph.constant(targets.reshape(-1, 1)))
    scale, mean = float(np.ravel(model._y_train_std)[0]), float(np.ravel(model._y_train_mean)[0])
    return graph.add(graph.mul(found, scale), mean)


def _covariance(graph: Graph, kernel: Any, x: str, rows: Any, model: Any) -> str:
    """Return (n, rows) values of a Gaussian process' kernel."""
    name = kind_of(kernel)
    if name in ("Sum", "Product"):
        parts = [_covariance(graph, k, x, rows, model) for k in (kernel.k1, kernel.k2)]
        return graph.add(*parts) if name == "Sum" else graph.mul(*parts)
    if name == "Exponentiation":
        inner = _covariance(graph, kernel.kernel, x, rows, model)
        return graph.op("Pow", inner, graph.constant(float(kernel.exponent)))
    like = graph.mul(graph.op("MatMul", x, graph.constant(np.zeros_like(rows.T))), 0.0)
    if name == "WhiteKernel":
        return like  # of two different rows
    if name == "ConstantKernel":
        return graph.add(like, float(kernel.constant_value))
    if name == "DotProduct":
        return graph.add(graph.op("MatMul", x, graph.constant(rows.T)), float(kernel.sigma_0) ** 2)
    if name in ("RBF", "Matern", "RationalQuadratic"):
        length = np.asarray(kernel.length_scale, np.float64)
        squares = _distances(graph, graph.div(x, length), rows / length, 2)
        if name == "RBF":
            return graph.op("Exp", graph.mul(squares, -0.5))
        if name == "RationalQuadratic":
            base = graph.add(graph.div(squares, 2.0 * float(kernel.alpha)), 1.0)
            return graph.op("Pow", base, graph.constant(-float(kernel.alpha)))
        distance = graph.op("Sqrt", squares)
        if kernel.nu == 0.5:
            return graph.op("Exp", graph.mul(distance, -1.0))
        if kernel.nu == 1.5:
            scaled = graph.mul(distance, np.sqrt(3.0))
            return graph.mul(graph.add(scaled, 1.0), graph.op("Exp", graph.mul(scaled, -1.0)))
        if kernel.nu == 2.5:
            scaled = graph.mul(distance, np.sqrt(5.0))
            series = graph.add(graph.add(scaled, 1.0), graph.div(graph.mul(scaled, scaled), 3.0))
            return graph.mul(series, graph.op("Exp", graph.mul(scaled, -1.0)))
    raise unsupported(model, f"with kernel {name} is not converted")


# -- ensembles of other models


def _calibrated(graph: Graph, model: Any, matrix: Matrix) -> str:
    classes = len(model.classes_)
    found = [_calibrated_member(graph, m, matrix, classes) for m in model.calibrated_classifiers_]
    total = found[0]
    for part in found[1:]:
        total = graph.add(total, part)
    return graph.div(total, float(len(found))) if len(found) > 1 else total


def _calibrated_member(graph: Graph, member: Any, matrix: Matrix, classes: int) -> str:
    inner = unwrapped(member.estimator)
    decides = hasattr(inner, "decision_function")
    before, graph.precise = graph.precise, True
    if decides:
        scores = add_decision(graph, inner, matrix)
    else:
        scores = add_probabilities(graph, inner, matrix)
        if classes == 2 and member.method != "temperature":
            scores = graph.gather(scores, [1])
    graph.precise = before
    if member.method == "temperature":
        return _tempered(graph, member, scores, decides, classes)
    columns = []
    for number, calibrator in enumerate(member.calibrators):
        own = scores if classes == 2 else graph.gather(scores, [number])
        if kind_of(calibrator) == "IsotonicRegression":
            columns.append(_isotonic(graph, calibrator, own))
        else:
            raw = graph.add(graph.mul(own, -float(calibrator.a_)), -float(calibrator.b_))
            columns.append(graph.sigmoid(raw))
    if classes == 2:
        return graph.pair(columns[0])
    if list(inner.classes_) != list(member.classes):
        raise unsupported(inner, "within CalibratedClassifierCV knows other classes than it")
    return _shares(graph, graph.concat(columns), classes)


def _tempered(graph: Graph, member: Any, scores: str, decides: bool, classes: int) -> str:
    if decides:
        logits = graph.concat([graph.mul(scores, -1.0), scores]) if classes == 2 else scores
    else:
        logits = graph.op("Log", graph.add(scores, 1e-12))
    return graph.softmax(graph.mul(logits, float(member.calibrators[0].beta_)))


def _isotonic(graph: Graph, model: Any, x: str) -> str:
    """Interpolate between an isotonic regression's points."""
    if model.out_of_bounds != "clip":
        raise unsupported(model, f"with out_of_bounds '{model.out_of_bounds}' is not converted")
    knots, levels = np.asarray(model.X_thresholds_, np.float64), np.asarray(model.y_thresholds_, np.float64)
    if len(knots) == 1:
        return graph.add(graph.mul(x, 0.0), float(levels[0]))
    gaps = np.diff(knots)
    slopes = np.r_[0.0, np.diff(levels) / gaps, 0.0]
    starts = np.r_[knots[0], knots]
    bases = np.r_[levels[0], levels]
    # Below an edge, not on it: scipy's interp1d looks for the interval from the left.
    place = graph.op("Squeeze", find_intervals(graph, x, [knots], right=False), graph.constant([1], np.int64))

    def at(values: Any) -> str:
        return graph.op("Gather", graph.constant(np.reshape(values, (-1, 1))), place, axis=0)

    return graph.add(at(bases), graph.mul(graph.sub(x, at(starts)), at(slopes)))


def _isotonic_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    x = graph.numbers(matrix, kind_of(model))
    graph.refuse_nan(x)
    return _isotonic(graph, model, x)


def _weighted(graph: Graph, parts: Sequence[str], weights: Sequence[float] | None) -> str:
    given = np.ones(len(parts)) if weights is None else np.asarray(weights, np.float64)
    total = graph.mul(parts[0], given[0]) if weights is not None else parts[0]
    for part, weight in zip(parts[1:], given[1:], strict=True):
        total = graph.add(total, graph.mul(part, weight) if weights is not None else part)
    return graph.div(total, float(given.sum()))


def _voting_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    weights = model._weights_not_none
    if model.voting == "soft":
        return _weighted(graph, [add_probabilities(graph, m, matrix) for m in model.estimators_], weights)
    classes = len(model.classes_)
    votes = []
    for member in model.estimators_:
        label = _labels(graph, member, matrix)
        votes.append(graph.cast(graph.equal(label, graph.constant([range(classes)], np.int64))))
    return _weighted(graph, votes, weights)


def _labels(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the (n, 1) int64 places of the classes that a classifier chooses."""
    model = unwrapped(model)
    if hasattr(model, "predict_proba"):
        scores = add_probabilities(graph, model, matrix)
    else:
        scores = add_decision(graph, model, matrix)
        if len(model.classes_) == 2:
            return graph.cast(graph.op("Greater", scores, graph.constant(0.0)), np.int64)
    return graph.op("ArgMax", scores, axis=1, keepdims=1)


def _voting_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    parts = [add_value(graph, m, matrix) for m in model.estimators_]
    return _weighted(graph, parts, model._weights_not_none)


def _stacked(graph: Graph, model: Any, matrix: Matrix) -> Matrix:
    parts: list[Matrix] = []
    regression = not hasattr(model, "classes_")
    for member, method in zip(model.estimators_, model.stack_method_, strict=True):
        inner = unwrapped(member)
        if regression:
            parts.append(Matrix((Numbers(add_value(graph, inner, matrix), 1),)))
        elif method == "predict":
            label = graph.cast(_labels(graph, inner, matrix))
            parts.append(Matrix((Numbers(label, 1),)))
        else:
            add = add_probabilities if method == "predict_proba" else add_decision
            scores, width = add(graph, inner, matrix), len(inner.classes_)
            if width == 2:
                scores, width = (graph.gather(scores, [1]) if method == "predict_proba" else scores), 1
            parts.append(Matrix((Numbers(scores, width),)))
    if model.passthrough:
        parts.append(matrix)
    return Matrix.join(parts, sparse=bool(model.passthrough and matrix.sparse))


def _stacking_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    return add_probabilities(graph, model.final_estimator_, _stacked(graph, model, matrix))


def _stacking_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    return add_value(graph, model.final_estimator_, _stacked(graph, model, matrix))


def _bagged(graph: Graph, model: Any, matrix: Matrix, add: Scores) -> str:
    parts = []
    for member, features in zip(model.estimators_, model.estimators_features_, strict=True):
        if hasattr(model, "classes_") and len(member.classes_) != len(model.classes_):
            raise unsupported(model, "has members that know fewer classes")
        parts.append(add(graph, member, graph.select(matrix, features)))
    return _weighted(graph, parts, None)


def _bagging_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    if not hasattr(model.estimators_[0], "predict_proba"):
        raise unsupported(model, "over models without probabilities is not converted")
    return _bagged(graph, model, matrix, add_probabilities)


def _bagging_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    return _bagged(graph, model, matrix, add_value)


def _rest_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    if getattr(model, "multilabel_", False):
        raise unsupported(model, "of several labels is no part of another model that is converted")
    columns = []
    for member in model.estimators_:
        if not hasattr(member, "classes_"):
            raise unsupported(model, "has a class that no row was of")
        columns.append(graph.gather(add_probabilities(graph, member, matrix), [1]))
    if len(columns) == 1:
        return graph.pair(columns[0])
    return _shares(graph, graph.concat(columns), len(columns))


def _rest_decision(graph: Graph, model: Any, matrix: Matrix) -> str:
    return graph.concat([add_decision(graph, member, matrix) for member in model.estimators_])


def _thresholded(graph: Graph, model: Any, matrix: Matrix) -> str:
    return add_probabilities(graph, getattr(model, "estimator_", model.estimator), matrix)


def _thresholded_decision(graph: Graph, model: Any, matrix: Matrix) -> str:
    return add_decision(graph, getattr(model, "estimator_", model.estimator), matrix)


def class_threshold(model: Any) -> float | None:
    """Return the probability from which a model names the last of its two classes; None where that is one half."""
    name = kind_of(model)
    if library_of(model) != "sklearn":
        return None
    if name in ("SVC", "NuSVC") and getattr(model, "_probA", np.zeros(0)).size:
        # It decides where its decision function is 0; the probability there is another one.
        return _coupled_number(1.0 / (1.0 + np.exp(float(model._probB[0]))))
    if name == "FixedThresholdClassifier":
        cut, positive = model.threshold, model.pos_label
    elif name == "TunedThresholdClassifierCV":
        cut, positive = model.best_threshold_, model._curve_scorer._get_pos_label()
    else:
        return None
    inner = unwrapped(getattr(model, "estimator_", model.estimator))
    asked = model.response_method
    by_probability = hasattr(inner, "predict_proba") and asked in ("auto", "predict_proba")
    if not by_probability and hasattr(inner, "predict_proba"):
        raise unsupported(
            model, "that cuts the decision function of a model with probabilities is not converted"
        )
    if cut == "auto":
        return None
    if not by_probability:
        cut = 1.0 / (1.0 + np.exp(-float(cut)))  # as predict reads a decision function
    if positive is None or positive == model.classes_[-1]:
        return float(cut)
    return float(
        np.nextafter(1.0 - float(cut), 2.0)
    )  # the other class from the cut on: this one above the rest


def _coupled_number(first: float) -> float:
    """Return the second class' probability that `_coupled` makes of the first class'."""
    graph = Graph(["p"], None)
    made = _coupled(graph, graph.numbers(graph.table(), "SVC"))
    session = open_session(graph.finish(made, "probabilities", 2, {}))
    return float(session.run(None, {"numbers": np.array([[first]])})[0][0, 1])


def _transformed_value(graph: Graph, model: Any, matrix: Matrix) -> str:
    found = add_value(graph, model.regressor_, matrix)
    transformer = model.transformer_
    name = kind_of(transformer)
    if name == "FunctionTransformer":
        back = add_function(graph, found, transformer.inverse_func)
        if back is None:
            function = getattr(transformer.inverse_func, "__name__", "?")
            raise unsupported(
                model, f'with inverse function "{function}" is not converted: functions of numpy are'
            )
        return back
    if name == "StandardScaler":
        found = graph.mul(found, transformer.scale_) if transformer.with_std else found
        return graph.add(found, transformer.mean_) if transformer.with_mean else found
    if name == "RobustScaler":
        found = graph.mul(found, transformer.scale_) if transformer.with_scaling else found
        return graph.add(found, transformer.center_) if transformer.with_centering else found
    if name == "MinMaxScaler":
        return graph.div(graph.sub(found, transformer.min_), transformer.scale_)
    if name == "MaxAbsScaler":
        return graph.mul(found, transformer.scale_)
    if name == "PowerTransformer":
        return _power_back(graph, transformer, found)
    raise unsupported(model, f"with {name} is not converted")


def _power_back(graph: Graph, power: Any, x: str) -> str:
    if power.standardize:
        scaler = power._scaler
        x = graph.mul(x, scaler.scale_) if scaler.with_std else x
        x = graph.add(x, scaler.mean_) if scaler.with_mean else x
    strength = float(power.lambdas_[0])

    def grown(y: str, degree: float) -> str:
        """Return (y degree + 1) ** (1 / degree), exp(y) where degree is 0."""
        if abs(degree) < np.spacing(1.0):
            return graph.op("Exp", y)
        base = graph.add(graph.mul(y, degree), 1.0)
        return graph.op("Exp", graph.div(graph.op("Log", base), degree))

    if power.method == "box-cox":
        return grown(x, strength)
    negative = graph.op("Less", x, graph.constant(0.0))
    up = graph.sub(grown(graph.where(negative, 0.0, x), strength), 1.0)
    down = graph.sub(1.0, grown(graph.mul(graph.where(negative, x, 0.0), -1.0), 2.0 - strength))
    return graph.where(negative, down, up)


_PROBABILITIES: Mapping[str, Scores] = {
    "LogisticRegression": _logistic,
    "LogisticRegressionCV": _logistic,
    "SGDClassifier": _stochastic,
    "LinearDiscriminantAnalysis": _discriminant,
    "QuadraticDiscriminantAnalysis": _quadratic,
    "GaussianNB": _gaussian_bayes,
    "MultinomialNB": _counting_bayes,
    "ComplementNB": _counting_bayes,
    "BernoulliNB": _counting_bayes,
    "DummyClassifier": _dummy_probabilities,
    "MLPClassifier": _network_probabilities,
    "DecisionTreeClassifier": _forest_probabilities,
    "ExtraTreeClassifier": _forest_probabilities,
    "RandomForestClassifier": _forest_probabilities,
    "ExtraTreesClassifier": _forest_probabilities,
    "GradientBoostingClassifier": _boosting_probabilities,
    "HistGradientBoostingClassifier": _histogram_probabilities,
    "AdaBoostClassifier": _adaptive_probabilities,
    "KNeighborsClassifier": _neighbour_probabilities,
    "SVC": _vector_probabilities,
    "NuSVC": _vector_probabilities,
    "CalibratedClassifierCV": _calibrated,
    "VotingClassifier": _voting_probabilities,
    "StackingClassifier": _stacking_probabilities,
    "BaggingClassifier": _bagging_probabilities,
    "OneVsRestClassifier": _rest_probabilities,
    "FixedThresholdClassifier": _thresholded,
    "TunedThresholdClassifierCV": _thresholded,
    "RFE": _chosen(add_probabilities),
    "RFECV": _chosen(add_probabilities),
}

_DECISIONS: Mapping[str, Scores] = {
    "LogisticRegression": _linear_decision,
    "LogisticRegressionCV": _linear_decision,
    "SGDClassifier": _linear_decision,
    "RidgeClassifier": _linear_decision,
    "RidgeClassifierCV": _linear_decision,
    "Perceptron": _linear_decision,
    "PassiveAggressiveClassifier": _linear_decision,
    "LinearSVC": _linear_decision,
    "LinearDiscriminantAnalysis": _linear_decision,
    "SVC": _vector_decision,
    "NuSVC": _vector_decision,
    "GradientBoostingClassifier": _boosting_raw,
    "HistGradientBoostingClassifier": _histogram_raw,
    "AdaBoostClassifier": _adaptive_decision,
    "OneVsRestClassifier": _rest_decision,
    "FixedThresholdClassifier": _thresholded_decision,
    "TunedThresholdClassifierCV": _thresholded_decision,
    "RFE": _chosen(add_decision),
    "RFECV": _chosen(add_decision),
}

_VALUES: Mapping[str, Scores] = {
    "LinearRegression": _linear_value,
    "Ridge": _linear_value,
    "RidgeCV": _linear_value,
    "Lasso": _linear_value,
    "LassoCV": _linear_value,
    "ElasticNet": _linear_value,
    "ElasticNetCV": _linear_value,
    "Lars": _linear_value,
    "LarsCV": _linear_value,
    "LassoLars": _linear_value,
    "LassoLarsCV": _linear_value,
    "LassoLarsIC": _linear_value,
    "OrthogonalMatchingPursuit": _linear_value,
    "OrthogonalMatchingPursuitCV": _linear_value,
    "BayesianRidge": _linear_value,
    "ARDRegression": _linear_value,
    "HuberRegressor": _linear_value,
    "TheilSenRegressor": _linear_value,
    "SGDRegressor": _linear_value,
    "PassiveAggressiveRegressor": _linear_value,
    "LinearSVR": _linear_value,
    "QuantileRegressor": _linear_value,
    "PoissonRegressor": _exponential_value,
    "GammaRegressor": _exponential_value,
    "TweedieRegressor": _exponential_value,
    "PLSRegression": _pls_value,
    "DummyRegressor": _dummy_value,
    "MLPRegressor": _network_value,
    "DecisionTreeRegressor": _forest_value,
    "ExtraTreeRegressor": _forest_value,
    "RandomForestRegressor": _forest_value,
    "ExtraTreesRegressor": _forest_value,
    "GradientBoostingRegressor": _boosting_raw,
    "HistGradientBoostingRegressor": _histogram_value,
    "KNeighborsRegressor": _neighbour_value,
    "SVR": _vector_value,
    "NuSVR": _vector_value,
    "KernelRidge": _ridge_kernel_value,
    "GaussianProcessRegressor": _process_value,
    "IsotonicRegression": _isotonic_value,
    "VotingRegressor": _voting_value,
    "StackingRegressor": _stacking_value,
    "BaggingRegressor": _bagging_value,
    "TransformedTargetRegressor": _transformed_value,
    "AdaBoostRegressor": _adaptive_value,
    "RFE": _chosen(add_value),
    "RFECV": _chosen(add_value),
}
