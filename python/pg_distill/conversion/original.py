"""A model in its own library: what it reads, what it says of rows, and which library that is.

Its class is long, because it answers for four libraries.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.conversion import catboosts, lightgbms, xgboosts
from pg_distill.conversion.estimators import is_pipeline, library_of, unwrapped
from pg_distill.conversion.several_labels import label_answers, label_probabilities, labels_of
from pg_distill.conversion.texts import reads_documents
from pg_distill.errors import DatatypeMismatch, FeatureNotSupported, InvalidParameter
from pg_distill.frame import FloatArray, Kind, Task

__all__ = ["Answers", "Original", "class_names"]

LIBRARIES = {"sklearn": "scikit-learn", "imblearn": "imbalanced-learn"}
"""Distributions whose name is not that of their package."""


@dataclass(frozen=True)
class Answers:
    """What a library says of rows.

    ``outputs`` (n, K) probabilities or (n, 1) values, None where it gives classes only; ``labels`` (n,) the classes as texts, of
    several labels a 0 or 1 for each, None for a regression. ``failed`` are the rows that it refuses, with its words.
    """

    outputs: FloatArray | None
    labels: npt.NDArray[np.object_] | None
    failed: Mapping[int, str] = field(default_factory=dict)


class Original:
    """A fitted model of another library.

    Attributes
    ----------
    names
        The columns that it was fitted on, None where it does not know them.
    width
        How many there are.
    task, classes
        What it predicts; classes as texts, None for a regression.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.inner = unwrapped(model)
        self.library = library_of(self.inner)
        while is_pipeline(self.inner):
            self.inner = unwrapped(self.inner.steps[-1][1])
        last = library_of(self.inner)
        labels = labels_of(self.inner)
        if labels is None:
            self._check_one_output()
        self.names = self._names()
        self.width = self._width()
        if self.library == last and last in ("lightgbm", "xgboost", "catboost"):
            self.library = last
        self.classes: tuple[str, ...] | None = None
        self._values: list[Any] = []
        if labels is not None or self._is_classifier():
            self._values = self._class_values() if labels is None else labels
            self.classes = class_names(self._values)
            if len(self.classes) < 2:
                raise FeatureNotSupported(f"{type(self.inner).__name__} knows one class only")
        self.task: Task = "regression"
        if self.classes is not None:
            one_label: Task = "binary" if len(self.classes) == 2 else "multiclass"
            self.task = one_label if labels is None else "multilabel"

    # -- what it is

    @property
    def title(self) -> str:
        """Return the class and the library's version: what figures are of."""
        return f"{type(self.model).__name__} of {self.version}"

    @property
    def version(self) -> str:
        """Return the libraries that made it, with their versions."""
        found = dict.fromkeys((library_of(self.model), library_of(self.inner)))
        said = []
        for package in found:
            name = LIBRARIES.get(package, package)
            try:
                said.append(f"{name} {importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                said.append(name)
        return ", ".join(said)

    def _check_one_output(self) -> None:
        count = getattr(self.inner, "n_outputs_", 1)
        if isinstance(count, int) and count != 1 and not type(self.inner).__name__.startswith("MLPC"):
            raise FeatureNotSupported(
                f"{type(self.inner).__name__} predicts {count} columns, and a model here predicts one",
                hint="Fit one model for each column.",
            )

    def _is_classifier(self) -> bool:
        library = library_of(self.inner)
        if library == "lightgbm" and not hasattr(self.inner, "booster_"):
            return lightgbms.is_classifier(self.inner)
        if library == "xgboost" and not hasattr(self.inner, "get_booster"):
            return xgboosts.Booster(self.inner).objective.startswith(
                ("multi:", "binary:logistic", "binary:hinge")
            )
        if library == "catboost" and not hasattr(self.inner, "predict_proba"):
            return catboosts.is_classifier(self.inner)
        if hasattr(self.inner, "classes_"):
            return True
        if getattr(self.inner, "_estimator_type", None) in ("regressor", "ranker"):
            return False
        kind = _estimator_type(self.inner)
        if kind in ("clusterer", "outlier_detector") or not hasattr(self.inner, "predict"):
            raise FeatureNotSupported(
                f"{type(self.inner).__name__} is neither a classifier nor a regression",
                hint="Register what it says of rows as columns: distill.register_logged_model.",
            )
        return kind == "classifier"

    def _class_values(self) -> list[Any]:
        library = library_of(self.inner)
        if library == "lightgbm":
            return lightgbms.classes_of(self.inner)
        if library == "xgboost" and not hasattr(self.inner, "classes_"):
            return list(range(max(2, xgboosts.Booster(self.inner).outputs)))
        classes = getattr(self.inner, "classes_", None)
        if classes is None or (isinstance(classes, list) and classes and np.ndim(classes[0])):
            raise FeatureNotSupported(
                f"{type(self.inner).__name__} of several labels is not converted",
                hint="OneVsRestClassifier, MultiOutputClassifier, MLPClassifier, trees and forests are.",
            )
        values = list(classes)
        if library == "catboost" and not values:
            return list(range(2))
        return values

    def _names(self) -> list[str] | None:
        for part in self._parts():
            library = library_of(part)
            if library == "lightgbm":
                booster = lightgbms.booster_of(part)
                names = list(booster.feature_name())
                return None if names == [f"Column_{i}" for i in range(len(names))] else names
            if library == "xgboost":
                found = xgboosts.booster_of(part).feature_names
                return None if found is None else list(found)
            if library == "catboost":
                names = list(part.feature_names_)
                return None if names == [str(i) for i in range(len(names))] else names
            found = getattr(part, "feature_names_in_", None)
            if found is not None:
                return [str(name) for name in found]
        return None

    def _width(self) -> int:
        for part in self._parts():
            library = library_of(part)
            if library == "lightgbm":
                return int(lightgbms.booster_of(part).num_feature())
            if library == "xgboost":
                return int(xgboosts.booster_of(part).num_features())
            if library == "catboost":
                return len(part.feature_names_)
            if isinstance(getattr(part, "n_features_in_", None), int | np.integer):
                return int(part.n_features_in_)
        if self.names is not None:
            return len(self.names)
        if self.reads_documents:
            return 1
        raise FeatureNotSupported(
            f"{type(self.model).__name__} does not say how many columns it was fitted on",
            hint="Fit it on a data frame or an array.",
        )

    @property
    def reads_documents(self) -> bool:
        """Whether it takes a list of texts, not a table."""
        return self.names is None and any(map(reads_documents, self._parts()))

    def _parts(self) -> list[Any]:
        """Return the model and what stands first in it, outermost first."""
        found = [self.model]
        for part in found:  # grows while it is walked
            inner = unwrapped(part)
            if inner is not part:
                found.append(inner)
            elif is_pipeline(part):
                found.append(part.steps[0][1])
            elif type(part).__name__ == "FeatureUnion":
                found.append(part.transformer_list[0][1])
            else:
                for name in (
                    "calibrated_classifiers_",
                    "estimator_",
                    "regressor_",
                    "estimators_",
                    "estimator",
                ):
                    held = getattr(part, name, None)
                    while isinstance(held, list | tuple | np.ndarray) and len(held):
                        held = held[-1] if isinstance(held, tuple) else held[0]
                    if held is not None and not isinstance(held, list | tuple | np.ndarray | str):
                        found.append(held)
                        break
            if len(found) > 12:
                break
        return [p for p in found if p is not None and not isinstance(p, str)]

    # -- rows as it takes them

    def categories(self, texts: Sequence[int]) -> dict[int, list[Any]]:
        """Return the values of the columns that it takes as a data frame's categories, by their places."""
        library = library_of(unwrapped(self.model))
        if library == "lightgbm":
            return lightgbms.categories_of(unwrapped(self.model), texts)
        if library == "xgboost":
            return xgboosts.Booster(unwrapped(self.model)).categories
        return {}

    def rows(
        self,
        columns: Sequence[Sequence[Any]],
        kinds: Sequence[Kind],
        nulls: Mapping[int, float | None],
        unread: Sequence[int] = (),
    ) -> Any:
        """Return rows as the model takes them: a data frame by its names, or an array.

        Parameters
        ----------
        columns
            The values of each column, None for NULL; seconds since 1970 for timestamps.
        kinds
            Of each column.
        nulls
            Which object an encoder learned for NULL, by the column's place; NaN else.
        unread
            Columns that nothing reads, for which there are no values.
        """
        categories = self.categories([i for i, k in enumerate(kinds) if k == "string"])
        made: list[Any] = []
        count = next(len(c) for i, c in enumerate(columns) if i not in set(unread))
        for place, (values, kind) in enumerate(zip(columns, kinds, strict=True)):
            if place in categories:
                made.append((values if place not in set(unread) else [None] * count, categories[place]))
            elif place in set(unread):
                made.append(np.zeros(count))  # no NaN: a check of all columns may refuse it
            else:
                made.append(_column(values, kind, nulls.get(place, np.nan)))
        if self.reads_documents:
            return made[0]
        if self.names is None and not categories:
            if all(a.dtype != object for a in made):
                return np.stack([a.astype(np.float64) for a in made], axis=1)
            return np.stack([a.astype(object) for a in made], axis=1)
        return self._frame(made)

    def _frame(self, made: Sequence[Any]) -> Any:
        import pandas as pd

        names = self.names if self.names is not None else list(range(len(made)))
        series = {}
        for name, column in zip(names, made, strict=True):
            if isinstance(column, tuple):
                values, known = column
                series[name] = pd.Series(pd.Categorical(_like(values, known), categories=known))
            else:
                series[name] = pd.Series(column, dtype=column.dtype)
        return pd.DataFrame(series)

    # -- what it says

    def answers(self, rows: Any) -> Answers:
        """Return what the library says of ``rows``; rows that it refuses are found one by one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self._answers(rows)
            except Exception as error:
                if len(rows) == 1:
                    return Answers(None, None, {0: _words(error)})
        half = len(rows) // 2
        first, second = self.answers(_part(rows, 0, half)), self.answers(_part(rows, half, len(rows)))
        return _joined(first, second, half, len(rows) - half)

    def _answers(self, rows: Any) -> Answers:
        model = self.model
        library = library_of(unwrapped(model))
        if library in ("lightgbm", "xgboost", "catboost"):
            model = unwrapped(model)
        if self.task == "regression":
            return Answers(
                np.asarray(self._plain(model, library, rows), np.float64).reshape(len(rows), 1), None
            )
        if self.task == "multilabel":
            return Answers(label_probabilities(model, rows), np.array(label_answers(model, rows), object))
        assert self.classes is not None
        names = np.array(self.classes, object)
        if hasattr(model, "predict_proba"):
            outputs = np.asarray(model.predict_proba(rows), np.float64)
            labels = self._label_texts(model.predict(rows))
            return Answers(outputs, labels)
        if library == "lightgbm":
            outputs = np.asarray(model.predict(rows), np.float64)
        elif library == "xgboost":
            outputs = np.asarray(model.predict(self._matrix(model, rows), output_margin=True), np.float64)
            if outputs.ndim == 1:
                outputs = 1 / (1 + np.exp(-outputs))
            else:
                outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
                outputs /= outputs.sum(axis=1, keepdims=True)
        elif library == "catboost":
            outputs = np.asarray(model.predict(rows, prediction_type="Probability"), np.float64)
        else:
            return Answers(None, self._label_texts(model.predict(rows)))
        if outputs.ndim == 1:
            outputs = np.stack([1 - outputs, outputs], axis=1)
        return Answers(outputs, names[outputs.argmax(axis=1)])

    def _plain(self, model: Any, library: str, rows: Any) -> Any:
        if library == "xgboost" and not hasattr(model, "get_booster"):
            return model.predict(self._matrix(model, rows))
        if library == "catboost" and catboosts.loss_of(model) in ("Poisson", "Tweedie"):
            return model.predict(rows, prediction_type="Exponent")
        return model.predict(rows)

    @staticmethod
    def _matrix(model: Any, rows: Any) -> Any:
        import xgboost

        return xgboost.DMatrix(
            rows,
            enable_categorical=True,
            feature_names=None if hasattr(rows, "columns") else model.feature_names,
        )

    def _label_texts(self, labels: Any) -> npt.NDArray[np.object_]:
        index = dict(zip(self._values, self.classes or (), strict=True))
        flat = np.ravel(np.asarray(labels, object) if not hasattr(labels, "tolist") else labels)
        return np.array([index.get(v, str(v)) for v in flat.tolist()], object)


def _estimator_type(model: Any) -> str | None:
    try:
        return str(model.__sklearn_tags__().estimator_type)
    except AttributeError:
        return getattr(model, "_estimator_type", None)


def class_names(values: Sequence[Any]) -> tuple[str, ...]:
    """Return classes as a column of the sample would show them: true and false, whole numbers without a point."""
    names = []
    for value in values:
        plain = value.item() if hasattr(value, "item") else value
        if isinstance(plain, bool):
            names.append("true" if plain else "false")
        elif isinstance(plain, float) and plain.is_integer():
            names.append(str(int(plain)))
        else:
            names.append(str(plain))
    if len(set(names)) < len(names):
        raise InvalidParameter(f"the model has two classes that are written alike: {', '.join(names)}")
    return tuple(names)


def _column(values: Sequence[Any], kind: Kind, null: float | None) -> npt.NDArray[Any]:
    """Return a column in the type that it has when it is read into a data frame."""
    missing = any(v is None for v in values)
    if kind == "string":
        column = np.empty(len(values), object)
        column[:] = [null if v is None else v for v in values]
        return column
    if kind == "integer" and not missing:
        return np.array(values, np.int64)
    if kind == "boolean" and not missing:
        return np.array(values, np.bool_)
    return np.array([np.nan if v is None else float(v) for v in values], np.float64)


def _like(values: Sequence[Any], categories: Sequence[Any]) -> list[Any]:
    """Return values in the categories' type."""
    texts = any(isinstance(c, str) for c in categories)
    for value in values:
        if value is not None and isinstance(value, str) != texts:
            held, learned = ("numbers", "texts") if texts else ("texts", "numbers")
            raise DatatypeMismatch(
                f"a column is of {held} in the sample, but the model learned {learned}",
                hint="Cast it in the sample's query.",
            )
    return list(values)


def _part(rows: Any, start: int, stop: int) -> Any:
    return rows.iloc[start:stop] if hasattr(rows, "iloc") else rows[start:stop]


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:196]} ..."


def _joined(first: Answers, second: Answers, n: int, m: int) -> Answers:
    failed = {**first.failed, **{row + n: words for row, words in second.failed.items()}}

    def stack(a: Any, b: Any) -> Any:
        if a is None and b is None:
            return None
        filled = (
            a if a is not None else np.full((n, *b.shape[1:]), np.nan if b.dtype != object else None, b.dtype)
        )
        other = (
            b if b is not None else np.full((m, *a.shape[1:]), np.nan if a.dtype != object else None, a.dtype)
        )
        return np.concatenate([filled, other])

    return Answers(stack(first.outputs, second.outputs), stack(first.labels, second.labels), failed)
