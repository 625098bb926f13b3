"""A model file of another library, opened by whoever calls the command line; never by the server."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from pg_distill.errors import InvalidArtifact, InvalidParameter, InvalidState

__all__ = ["KINDS", "load_model"]

PICKLES = (".joblib", ".pickle", ".pkl", ".pckl", ".sav")
COMPRESSED = (".gz", ".bz2", ".xz", ".lzma", ".z")
KINDS = (
    "an .onnx file; a .joblib, .pkl or .pickle file; LightGBM's .txt; XGBoost's .json or .ubj; CatBoost's .cbm;"
    " or package.module:attribute"
)
MISSING = "Install it with what converts models: pip install 'pg_distill[convert]'."


def load_model(name: str) -> Any:
    """Return the model that ``name`` says: a file, or an import path ``package.module:attribute``.

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
    if path.is_file() or path.suffix.lower() in (*PICKLES, *_READERS):
        return _read(path)
    module, colon, attribute = name.partition(":")
    if not colon or not attribute:
        raise InvalidParameter(f'"{name}" is no model', hint=f"Give {KINDS}.")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as python -m does
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidParameter(f'"{name}" cannot be imported: {error}') from error
    return found() if callable(found) and not hasattr(found, "predict") else found


def _read(path: Path) -> Any:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED and len(suffixes) > 1:
        suffixes.pop()
    reader = _READERS.get(suffixes[-1] if suffixes else "")
    try:
        if reader is None and suffixes and suffixes[-1] in PICKLES:
            return _pickled(path)
        if reader is None:
            raise InvalidParameter(f'file "{path}" is of no kind that is known', hint=f"Give {KINDS}.")
        return reader(path)
    except ModuleNotFoundError as error:
        hint = MISSING if (error.name or "") in ("joblib", "lightgbm", "sklearn") else None
        raise InvalidState(f'file "{path}" needs what is not installed: {error}', hint=hint) from error
    except (InvalidParameter, InvalidState):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()][:3]
        raise InvalidArtifact(
            f'file "{path}" cannot be read', detail=f"{type(error).__name__}: {' '.join(lines)}"[:300]
        ) from error


def _pickled(path: Path) -> Any:
    try:
        import joblib
    except ImportError as error:
        raise InvalidState("joblib is not installed", hint=MISSING) from error
    return joblib.load(path)


def _lightgbm(path: Path) -> Any:
    import lightgbm

    with path.open("rb") as file:
        if file.read(4) != b"tree":
            raise ValueError("it does not begin as LightGBM's model files do")
    return lightgbm.Booster(model_file=str(path))


def _xgboost(path: Path) -> Any:
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(str(path))
    return booster


def _json(path: Path) -> Any:
    held = json.loads(path.read_bytes())
    if isinstance(held, dict) and "learner" in held:
        return _xgboost(path)
    if isinstance(held, dict) and "features_info" in held:
        return _catboost(path, "json")
    raise ValueError("it is no model of XGBoost or CatBoost")


def _catboost(path: Path, form: str = "cbm") -> Any:
    import catboost

    model = catboost.CatBoost()
    model.load_model(str(path), format=form)
    return model


_READERS = {".txt": _lightgbm, ".lgb": _lightgbm, ".json": _json, ".ubj": _xgboost, ".cbm": _catboost}
