"""From a model of scikit-learn, LightGBM, XGBoost or CatBoost to ONNX (the extra ``convert``).

`load_model` opens a file, `convert` makes a graph of it, `Original` is the model in its own library: what it says of rows is held
against what predict says of them before anything is registered (`measure.comparison`). A pickle runs code when it is read: a
model file is opened by whoever calls the command line, never by the server, which gets ONNX and checks it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pg_distill.conversion.loading import KINDS, MISSING, load_model
from pg_distill.errors import FeatureNotSupported, InvalidParameter, InvalidState, PgDistillError
from pg_distill.frame import Kind

__all__ = ["KINDS", "Converted", "convert", "load_model"]

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pg_distill.conversion.original import Original


@dataclass(frozen=True)
class Converted:
    """An ONNX file and the model that it was made of.

    Attributes
    ----------
    artifact
        The file.
    features
        The columns of the sample that it takes, in order.
    original
        The model in its own library.
    columns
        The sample's column for each of the model's, in the model's order; the model's own name where the sample has none for it.
    read
        The places of the columns that the file takes.
    nulls
        Which object an encoder learned for NULL, by the column's place.
    class_threshold
        Of two classes the probability of the last one from which the model names it, where that is not one half.
    """

    artifact: bytes
    features: tuple[str, ...]
    original: Original
    columns: tuple[str, ...]
    read: tuple[int, ...]
    nulls: Mapping[int, float | None]
    class_threshold: float | None = None


def convert(
    model: Any,
    kinds: Mapping[str, Kind | None] | None,
    features: Sequence[str] | None,
    label: str | None = None,
) -> Converted:
    """Convert a fitted model.

    Parameters
    ----------
    kinds
        The sample's columns, None for one of a type that no model takes; None where there is no sample.
    features
        The model's columns in order, where it was not fitted on named ones.
    label
        The column that is to be predicted, which is no feature.

    Raises
    ------
    InvalidState
        A library that is needed is not installed.
    FeatureNotSupported
        The model cannot be converted, or is of another library.
    InvalidParameter, UndefinedColumn, DatatypeMismatch
        Its columns do not fit the sample's.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of converters and libraries about each other
            return _convert(model, kinds, features, label)
    except ImportError as error:
        raise InvalidState(f"{error.name or error} is not installed", hint=MISSING) from error
    except PgDistillError:
        raise
    except Exception as error:
        from pg_distill.conversion.foreign import some_lines
        from pg_distill.conversion.preprocessing import WHAT_ELSE

        raise FeatureNotSupported(
            f"{type(model).__name__} cannot be converted to ONNX", detail=some_lines(error), hint=WHAT_ELSE
        ) from error


def _convert(
    model: Any, kinds: Mapping[str, Kind | None] | None, features: Sequence[str] | None, label: str | None
) -> Converted:
    from pg_distill.conversion.estimators import (
        add_decision,
        add_probabilities,
        add_value,
        class_threshold,
        library_of,
        unwrapped,
    )
    from pg_distill.conversion.graph import Graph
    from pg_distill.conversion.original import Original
    from pg_distill.conversion.several_labels import add_label_decision, add_label_probabilities

    known = library_of(unwrapped(model)) in (
        "sklearn",
        "imblearn",
        "lightgbm",
        "xgboost",
        "catboost",
        "sklearnex",
    )
    if not known and not hasattr(model, "get_params"):
        raise FeatureNotSupported(
            f"{type(model).__module__}.{type(model).__name__} is of no library that is converted here",
            hint="Export it to ONNX by its own library's means, and register the file.",
        )
    original = Original(model)
    threshold: float | None = None
    columns = _columns(original, kinds, features, label)
    graph = Graph(columns, kinds)
    table = graph.table()
    if original.task == "regression":
        output, name, width = add_value(graph, model, table), "value", 1
    elif original.task == "multilabel":
        assert original.classes is not None
        width = len(original.classes)
        if hasattr(model, "predict_proba"):
            output, name = add_label_probabilities(graph, model, table), "probabilities"
        else:
            output, name = add_label_decision(graph, model, table), "logits"
    else:
        assert original.classes is not None
        width = len(original.classes)
        threshold = class_threshold(original.inner) if width == 2 else None
        if hasattr(model, "predict_proba") or not hasattr(model, "decision_function"):
            output, name = add_probabilities(graph, model, table), "probabilities"
        else:
            output, name = add_decision(graph, model, table), "logits"
            width = 1 if width == 2 else width
    from pg_distill.onnx_model.session import CONVERTED_KEY

    said = {"library": original.version, "model": type(original.inner).__name__}
    artifact = graph.finish(output, name, width, {CONVERTED_KEY: json.dumps(said)})
    read = graph.read_columns
    return Converted(
        artifact, tuple(columns[i] for i in read), original, columns, read, dict(graph.nulls), threshold
    )


def _columns(
    original: Original,
    kinds: Mapping[str, Kind | None] | None,
    features: Sequence[str] | None,
    label: str | None,
) -> tuple[str, ...]:
    """Return the sample's column for each of the model's."""
    if features is not None:
        if len(features) != original.width:
            raise InvalidParameter(f"the model takes {original.width} columns, not {len(features)}")
        return tuple(features)
    if original.names is not None:
        return tuple(_found(name, kinds) for name in original.names)
    if kinds is None:
        return tuple(f"f{i}" for i in range(original.width))
    given = [name for name, kind in kinds.items() if name != label and kind is not None]
    if original.reads_documents:
        given = [name for name in given if kinds[name] == "string"]
    if len(given) != original.width:
        raise InvalidParameter(
            f"the model takes {original.width} columns without names, and the sample has {len(given)} beside the label",
            hint="Pass --features: the columns in the model's order.",
        )
    return tuple(given)


def _found(name: str, kinds: Mapping[str, Kind | None] | None) -> str:
    """Return the sample's name for a column of the model's: LightGBM writes blanks as underscores."""
    if kinds is None or name in kinds:
        return name
    alike = [column for column in kinds if re.sub(r"\s", "_", column) == name]
    return alike[0] if len(alike) == 1 else name
