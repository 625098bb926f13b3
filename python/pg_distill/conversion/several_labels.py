"""Classifiers of scikit-learn that answer yes or no for each of several labels: how these are called, and each one's probability.

They are OneVsRestClassifier and MLPClassifier on a matrix of indicators, MultiOutputClassifier, and trees and forests of several
outputs. Others of several outputs are refused: chains, whose members read each other's answers, and neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pg_distill.conversion.estimators import (
    add_decision,
    add_probabilities,
    before_last,
    is_pipeline,
    library_of,
    network_logits,
    split_forest,
    unwrapped,
)
from pg_distill.conversion.graph import Graph, Matrix
from pg_distill.conversion.preprocessing import kind_of, unsupported
from pg_distill.frame import FloatArray

__all__ = [
    "add_label_decision",
    "add_label_probabilities",
    "label_answers",
    "label_probabilities",
    "labels_of",
]

FORESTS = ("DecisionTreeClassifier", "ExtraTreeClassifier", "RandomForestClassifier", "ExtraTreesClassifier")


def labels_of(model: Any) -> list[Any] | None:
    """Return the labels of a model that answers for several, by their places where it knows no names; None of another model."""
    if library_of(model) not in ("sklearn", "sklearnex"):
        return None
    name = kind_of(model)
    if name == "OneVsRestClassifier" and model.multilabel_:
        return list(model.classes_)
    if name == "MLPClassifier" and model.out_activation_ == "logistic" and model.n_outputs_ > 1:
        return list(range(model.n_outputs_))
    if name == "MultiOutputClassifier" or (name in FORESTS and model.n_outputs_ > 1):
        for known in model.classes_:
            if len(known) != 2 or set(known.tolist()) != {0, 1}:
                raise unsupported(
                    model,
                    f"predicts a column of {', '.join(map(str, known[:5]))}, and several labels are 0 or 1 each",
                    "Fit one model for each column, or leave out a column that is the same in all rows.",
                )
        return list(range(len(model.classes_)))
    return None


def add_label_probabilities(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the (n, K) probabilities of the labels, which need not sum to 1."""
    model, matrix = _last(graph, model, matrix)
    name = kind_of(model)
    if name == "MLPClassifier":
        return graph.sigmoid(network_logits(graph, model, matrix))
    if name in FORESTS:
        return split_forest(graph, model, matrix)
    return graph.concat([graph.gather(add_probabilities(graph, m, matrix), [1]) for m in _members(model)])


def add_label_decision(graph: Graph, model: Any, matrix: Matrix) -> str:
    """Return the (n, K) decision functions of the labels of a model without probabilities: a row has those above 0."""
    model, matrix = _last(graph, model, matrix)
    return graph.concat([add_decision(graph, member, matrix) for member in _members(model)])


def _last(graph: Graph, model: Any, matrix: Matrix) -> tuple[Any, Matrix]:
    model = unwrapped(model)
    while is_pipeline(model):
        model, matrix = before_last(graph, model, matrix)
    return model, matrix


def _members(model: Any) -> list[Any]:
    if any(not hasattr(member, "classes_") for member in model.estimators_):
        raise unsupported(model, "has a label that is the same in all rows", "Leave that label out.")
    return list(model.estimators_)


def label_probabilities(model: Any, rows: Any) -> FloatArray | None:
    """Return what the library says, (n, K); None where it gives no probabilities."""
    if not hasattr(model, "predict_proba"):
        return None
    found = model.predict_proba(rows)
    if isinstance(found, list):
        return np.stack([np.asarray(of_label, np.float64)[:, 1] for of_label in found], axis=1)
    return np.asarray(found, np.float64)


def label_answers(model: Any, rows: Any) -> list[str]:
    """Return which labels the library gives each row: a text of a 0 or 1 for each label."""
    found = model.predict(rows)
    matrix = np.asarray(found.toarray() if hasattr(found, "toarray") else found).astype(int)
    return ["".join(map(str, row)) for row in matrix.tolist()]
