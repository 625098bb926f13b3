"""From a model of scikit-learn, LightGBM or XGBoost to ONNX, by the field's own converters (the extra ``convert``).

A pickle runs code when it is read: a model file is opened by whoever calls the command line, never by the server, which gets
ONNX and checks it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pg_distill.errors import FeatureNotSupported, InvalidArtifact, InvalidParameter, InvalidState
from pg_distill.frame import Kind

__all__ = ["Converted", "convert", "load_model"]

OPSET: Mapping[str, int] = {"": 17, "ai.onnx.ml": 3}  # what onnx_graph's checks and ONNX Runtime's trees know
PICKLES = (".joblib", ".pickle", ".pkl")
MISSING = "Install it with what converts models: pip install 'pg_distill[convert]'."


@dataclass(frozen=True)
class Converted:
    """An ONNX file; ``features`` are the columns that it takes in order, None where the model does not know them."""

    artifact: bytes
    features: Sequence[str] | None


def load_model(name: str) -> Any:
    """Return the model that ``name`` says: a joblib or pickle file, or an import path ``package.module:attribute``.

    Raises
    ------
    InvalidParameter
        It is neither.
    InvalidArtifact
        The file cannot be read.
    InvalidState
        A library is missing.
    """
    path = Path(name)
    if path.suffix in PICKLES:
        try:
            import joblib
        except ImportError as error:
            raise InvalidState("joblib is not installed", hint=MISSING) from error
        try:
            return joblib.load(path)
        except ImportError as error:
            raise InvalidState(f'file "{name}" needs what is not installed: {error}') from error
        except Exception as error:
            raise InvalidArtifact(f'file "{name}" cannot be read: {error}') from error
    module, colon, attribute = name.partition(":")
    if not colon or not attribute or path.exists():
        raise InvalidParameter(
            f'"{name}" is no model',
            hint=f"Give an ONNX file, one of {', '.join(PICKLES)}, or an import path as package.module:attribute.",
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # as python -m does
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidParameter(f'"{name}" cannot be imported: {error}') from error
    return found() if callable(found) and not hasattr(found, "predict") else found


def convert(model: Any, kinds: Mapping[str, Kind] | None, features: Sequence[str] | None) -> Converted:
    """Convert a fitted model.

    Parameters
    ----------
    kinds
        The sample's columns: what a pipeline over named columns takes each as.
    features
        The model's columns in order, where it was not fitted on named ones.

    Raises
    ------
    InvalidState
        The converters are not installed.
    FeatureNotSupported
        They do not know the model, or it is of another library.
    """
    library = type(model).__module__.partition(".")[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of converters about each other
            if library == "lightgbm":
                return _boosted(model, _lightgbm_names(model), features, "convert_lightgbm", zipmap=False)
            if library == "xgboost":
                return _boosted(model, _xgboost_names(model), features, "convert_xgboost")
            if library == "sklearn" or hasattr(model, "get_params"):
                return _sklearn(model, kinds, features)
    except ImportError as error:
        raise InvalidState(f"{error.name or error} is not installed", hint=MISSING) from error
    except (InvalidParameter, FeatureNotSupported):
        raise
    except Exception as error:
        raise FeatureNotSupported(
            f"{type(model).__name__} cannot be converted to ONNX", detail=f"{type(error).__name__}: {error}"
        ) from error
    raise FeatureNotSupported(
        f"{type(model).__module__}.{type(model).__name__} is of no library that is converted here",
        hint="Export it to ONNX by its own library's means, and register the file.",
    )


def _boosted(
    model: Any, known: Sequence[str] | None, features: Sequence[str] | None, converter: str, **options: Any
) -> Converted:
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    # An estimator knows its width; of LightGBM's and XGBoost's own boosters each by another name.
    width = next(
        getattr(model, name)
        for name in ("n_features_in_", "num_feature", "num_features")
        if hasattr(model, name)
    )
    if callable(width):
        width = width()
    types = [("input", FloatTensorType([None, int(width)]))]
    proto = getattr(onnxmltools, converter)(
        model, initial_types=types, target_opset=min(OPSET[""], 15), **options
    )
    return Converted(proto.SerializeToString(), features if features is not None else known)


def _lightgbm_names(model: Any) -> Sequence[str] | None:
    names = list(model.feature_name() if hasattr(model, "feature_name") else model.feature_name_)
    return None if names == [f"Column_{i}" for i in range(len(names))] else names


def _xgboost_names(model: Any) -> Sequence[str] | None:
    booster = model.get_booster() if hasattr(model, "get_booster") else model
    names = booster.feature_names
    # The converter takes positions only.
    booster.feature_names = None
    return None if names is None else list(names)


def _sklearn(model: Any, kinds: Mapping[str, Kind] | None, features: Sequence[str] | None) -> Converted:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
    from sklearn.base import is_classifier
    from sklearn.compose import ColumnTransformer

    _register_boosters()
    known = list(model.feature_names_in_) if hasattr(model, "feature_names_in_") else None
    first = model
    while hasattr(first, "steps"):
        first = first.steps[0][1]
    if isinstance(first, ColumnTransformer) and known is not None:
        if kinds is None:
            raise InvalidParameter(
                "a pipeline over named columns needs a sample",
                hint="Pass --sample: it says what the columns are.",
            )
        tensors = {"string": StringTensorType, "integer": Int64TensorType, "boolean": Int64TensorType}
        missing = [name for name in known if name not in kinds]
        if missing:
            raise InvalidParameter(f'column "{missing[0]}" of the model is not among the sample\'s')
        # Integers that are imputed and scaled are numbers; one that is one-hot encoded must stay whole.
        types: Any = [(n, tensors.get(kinds[n], FloatTensorType)([None, 1])) for n in known]
        names: Sequence[str] | None = known
    else:
        types = [("input", FloatTensorType([None, int(model.n_features_in_)]))]
        names = features if features is not None else known
    options = {id(model): {"zipmap": False}} if is_classifier(model) else None
    proto = to_onnx(model, initial_types=types, target_opset=dict(OPSET), options=options)
    return Converted(proto.SerializeToString(), names)


def _register_boosters() -> None:
    """Let pipelines end in LightGBM's and XGBoost's estimators, where they are installed."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )

    classes = {"zipmap": [True, False, "columns"], "nocl": [True, False]}
    for library, names, module, converter in (
        (
            "lightgbm",
            ("LGBMClassifier", "LGBMRegressor"),
            "onnxmltools.convert.lightgbm.operator_converters.LightGbm",
            "convert_lightgbm",
        ),
        (
            "xgboost",
            ("XGBClassifier", "XGBRegressor"),
            "onnxmltools.convert.xgboost.operator_converters.XGBoost",
            "convert_xgboost",
        ),
    ):
        if library not in sys.modules:
            continue  # then no step of the pipeline is of it
        function = getattr(importlib.import_module(module), converter)
        for name in names:
            is_class = name.endswith("Classifier")
            update_registered_converter(
                getattr(sys.modules[library], name),
                f"PgDistill{name}",
                calculate_linear_classifier_output_shapes
                if is_class
                else calculate_linear_regressor_output_shapes,
                function,
                options=classes if is_class else {},
            )
