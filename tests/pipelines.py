"""Pipelines as people make them, small: fitted by their own libraries on rows with NULL, texts, dates and large numbers.

`PIPELINES` names them all; `try_pipeline` converts one, runs it as a server does, and holds it against its library.
Imports of the libraries stand inside the functions: a test that needs one does not pay for all.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pg_distill.errors import PgDistillError
from pg_distill.frame import Column, Feature, Frame, Kind, Strings
from pg_distill.measure.comparison import Difference, compare
from pg_distill.measure.metrics import decided
from pg_distill.onnx_model.signature import Signature

ROWS = 700
NUMBERS = ["a", "b", "c", "d", "e"]


@dataclass(frozen=True)
class Fitted:
    """A model, and a data frame of rows to ask it about."""

    model: Any
    rows: Any


@cache
def rows() -> dict[str, Any]:
    """Return data frames of the same rows and their labels.

    ``numbers`` has no NULL; ``holes`` has, in the same columns; ``mixed`` has texts, integers, truth values and seconds since 1970
    beside them, with NULL in numbers, texts and integers; ``whole`` is ``mixed`` without NULL.
    """
    import pandas as pd

    rng = np.random.default_rng(0)
    numbers = pd.DataFrame(rng.normal(size=(ROWS, 5)), columns=NUMBERS)
    numbers["e"] = numbers["e"].abs() + 0.1
    holes = numbers.mask(rng.random(numbers.shape) < 0.12)
    score = numbers["a"] + numbers["b"] * numbers["c"] + 0.4 * rng.normal(size=ROWS)

    def texts(values: Sequence[str], share: float) -> Any:
        column = rng.choice(np.array(values, object), ROWS)
        return column, np.where(rng.random(ROWS) < share, np.array(np.nan, object), column)

    city, city_holes = texts(["Oslo", "Rome", "Lima", "Bonn"], 0.15)
    device, device_holes = texts(["phone", "desk", "tablet"], 0.1)
    visits = rng.integers(0, 5, ROWS)
    extra = {
        "city": city,
        "device": device,
        "visits": visits,
        "member": rng.random(ROWS) < 0.4,
        "seen": 1_700_000_000.0 + rng.integers(0, 86_400 * 30, ROWS),
    }
    whole = pd.DataFrame({**numbers, **{k: pd.Series(v, dtype=v.dtype) for k, v in extra.items()}})
    mixed = pd.DataFrame({**holes, **{k: pd.Series(v, dtype=v.dtype) for k, v in extra.items()}})
    mixed["city"] = pd.Series(city_holes, dtype=object)
    mixed["device"] = pd.Series(device_holes, dtype=object)
    mixed["visits"] = mixed["visits"].where(rng.random(ROWS) > 0.1)
    late = extra["seen"] > np.median(extra["seen"])
    return {
        "numbers": numbers,
        "holes": holes,
        "whole": whole,
        "mixed": mixed,
        "two": (score > 0).astype(int).to_numpy(),
        "three": np.array(["low", "mid", "high"])[np.digitize(score, [-0.7, 0.7])],
        "codes": np.digitize(score, [-0.7, 0.7]),
        "value": (1000 + 10 * score).to_numpy(),
        "positive": np.exp(score / 4).to_numpy(),
        "rate": (1 / (1 + np.exp(-score))).to_numpy(),
        "by_city": ((numbers["a"] > 0) ^ (whole["city"] == "Oslo")).astype(int).to_numpy(),
        "by_time": (late ^ (numbers["a"] > 1)).astype(int).to_numpy(),
    }


def _fit(model: Any, columns: str, label: str, asked: str | None = None) -> Fitted:
    held = rows()
    return Fitted(model.fit(held[columns], held[label]), held[asked or columns])


def _columns(numeric: Any, texts: Any, *, names: Sequence[str] = ("city", "device"), **options: Any) -> Any:
    """Return a ColumnTransformer over the numbers and over texts."""
    from sklearn.compose import ColumnTransformer

    return ColumnTransformer([("n", numeric, list(NUMBERS)), ("t", texts, list(names))], **options)


def _hot(**options: Any) -> Any:
    from sklearn.preprocessing import OneHotEncoder

    return OneHotEncoder(**{"handle_unknown": "ignore", **options})


def _impute(**options: Any) -> Any:
    from sklearn.impute import SimpleImputer

    return SimpleImputer(**options)


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=500)


def _forest(**options: Any) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(**{"n_estimators": 15, "max_depth": 6, "random_state": 0, **options})


def _chain(*steps: Any) -> Any:
    from sklearn.pipeline import make_pipeline

    return make_pipeline(*steps)


def _step(module: str, name: str, *arguments: Any, **options: Any) -> Any:
    """Return scikit-learn's object of a name."""
    import importlib

    if name == "IterativeImputer":
        importlib.import_module("sklearn.experimental.enable_iterative_imputer")
    if name.startswith("Halving"):
        importlib.import_module("sklearn.experimental.enable_halving_search_cv")
    return getattr(importlib.import_module(f"sklearn.{module}"), name)(*arguments, **options)


# -- scikit-learn: over columns


def _over(numeric: Callable[[], Any], texts: Callable[[], Any], end: Callable[[], Any] = _logistic) -> Fitted:
    return _fit(_chain(_columns(numeric(), texts()), end()), "mixed", "by_city")


def _scaled() -> Any:
    return _chain(_impute(strategy="median"), _step("preprocessing", "StandardScaler"))


def _of_numbers(*steps: Any) -> Fitted:
    return _fit(
        _chain(_columns(_chain(_impute(), *steps), _hot(), names=["city"]), _logistic()), "mixed", "by_city"
    )


def _integers_with_null() -> Fitted:
    from sklearn.compose import ColumnTransformer

    step = ColumnTransformer([("v", _scaled(), ["visits"]), ("t", _hot(), ["city"])])
    return _fit(_chain(step, _logistic()), "mixed", "by_city")


def _integers_as_categories() -> Fitted:
    from sklearn.compose import ColumnTransformer

    step = ColumnTransformer(
        [("v", _hot(), ["visits", "member"]), ("t", _hot(drop="if_binary"), ["member", "city"])]
    )
    return _fit(_chain(step, _logistic()), "whole", "by_city")


def _null_as_category(encoder: str) -> Fitted:
    other: dict[str, Any] = {
        "handle_unknown": "use_encoded_value",
        "unknown_value": -1,
        "encoded_missing_value": -2,
    }
    step = _hot() if encoder == "OneHotEncoder" else _step("preprocessing", encoder, **other)
    return _fit(
        _chain(_columns(_impute(), step), _forest() if encoder != "OneHotEncoder" else _logistic()),
        "mixed",
        "by_city",
    )


def _none_as_category() -> Fitted:
    import pandas as pd

    held = rows()["mixed"]
    city = np.array([None if v != v else v for v in held["city"]], object)
    table = held.assign(city=pd.Series(city, dtype=object))[["a", "city"]].fillna({"a": 0.0})
    from sklearn.compose import ColumnTransformer

    step = ColumnTransformer([("n", "passthrough", ["a"]), ("t", _hot(), ["city"])])
    return Fitted(_chain(step, _logistic()).fit(table, rows()["by_city"]), table)


def _dropped() -> Fitted:
    from sklearn.compose import ColumnTransformer

    step = ColumnTransformer([("n", _impute(), ["a", "b"]), ("t", _hot(), ["city"])], remainder="drop")
    return _fit(_chain(step, _logistic()), "mixed", "by_city")


def _seconds() -> Fitted:
    from sklearn.compose import ColumnTransformer

    step = ColumnTransformer([("n", "passthrough", ["seen", "a"])])
    return _fit(_chain(step, _forest(max_depth=None)), "whole", "by_time")


def _pandas_output() -> Fitted:
    step = _columns(_chain(_impute(), _step("preprocessing", "StandardScaler")), _hot(sparse_output=False))
    return _fit(_chain(step.set_output(transform="pandas"), _forest()), "mixed", "by_city")


def _nested() -> Fitted:
    from sklearn.compose import ColumnTransformer

    inner = ColumnTransformer([("x", _impute(), ["a", "b"]), ("y", _hot(), ["city"])])
    outer = ColumnTransformer([("u", inner, ["city", "a", "b"]), ("v", _hot(), ["device"])], remainder="drop")
    return _fit(_chain(outer, _logistic()), "mixed", "by_city")


def _union() -> Fitted:
    from sklearn.pipeline import FeatureUnion

    both = FeatureUnion([("a", _impute()), ("b", _step("impute", "MissingIndicator"))])
    return _fit(_chain(both, _logistic()), "holes", "two")


def _selector() -> Fitted:
    from sklearn.compose import ColumnTransformer, make_column_selector

    step = ColumnTransformer(
        [
            ("n", _impute(), make_column_selector(dtype_include=np.number)),
            ("t", _hot(), make_column_selector(dtype_include=object)),
        ]
    )
    return _fit(_chain(step, _logistic()), "mixed", "by_city")


# -- scikit-learn: around pipelines


def _search(name: str) -> Fitted:
    pipeline = _chain(_columns(_impute(), _hot()), _logistic())
    grid = {"logisticregression__C": [0.1, 1.0]}
    options = {"n_iter": 2} if name.startswith("Randomized") else {}
    return _fit(_step("model_selection", name, pipeline, grid, cv=3, **options), "mixed", "by_city")


def _calibrated(method: str, end: Callable[[], Any], label: str = "by_city") -> Fitted:
    pipeline = _chain(_columns(_impute(), _hot()), end())
    return _fit(_step("calibration", "CalibratedClassifierCV", pipeline, method=method, cv=3), "mixed", label)


def _target(**options: Any) -> Fitted:
    pipeline = _chain(_columns(_impute(), _hot()), _step("linear_model", "Ridge"))
    return _fit(_step("compose", "TransformedTargetRegressor", pipeline, **options), "mixed", "positive")


def _ensemble(name: str, label: str = "by_city", **options: Any) -> Fitted:
    regression = name.endswith("Regressor")
    first = _step("linear_model", "Ridge") if regression else _logistic()
    second = _step("ensemble", "RandomForestRegressor", 10, random_state=0) if regression else _forest()
    members = [("a", first), ("b", second)]
    pipeline = _chain(_columns(_impute(), _hot()), _step("ensemble", name, members, **options))
    return _fit(pipeline, "mixed", label)


def _cut(name: str, end: Callable[[], Any] = _logistic, **options: Any) -> Fitted:
    pipeline = _chain(_columns(_impute(), _hot()), end())
    return _fit(_step("model_selection", name, pipeline, **options), "mixed", "by_city")


# -- scikit-learn: models over numbers


def _labels(model: Any, columns: str = "numbers", *, width: int = 3) -> Fitted:
    """Fit a model of several labels, which half of the rows, a third and a tenth have."""
    held = rows()
    score = np.nan_to_num(held["numbers"].to_numpy(float)).cumsum(axis=1)[:, :width]
    shares = np.array([0.5, 0.33, 0.1])[:width]
    cuts = [np.quantile(column, 1 - share) for column, share in zip(score.T, shares, strict=True)]
    return Fitted(model.fit(held[columns], (score > cuts).astype(int)), held[columns])


def _one_label(model: Any) -> Fitted:
    """Fit a model of two labels of which one is the same in all rows."""
    held = rows()
    indicators = np.column_stack([held["two"], np.ones(ROWS, int)])
    return Fitted(model.fit(held["numbers"], indicators), held["numbers"])


def _model(module: str, name: str, label: str, columns: str = "numbers", **options: Any) -> Fitted:
    return _fit(_step(module, name, **options), columns, label)


# -- LightGBM, XGBoost, CatBoost


def _lightgbm(kind: str = "Classifier", columns: str = "holes", label: str = "two", **options: Any) -> Fitted:
    import lightgbm

    model = getattr(lightgbm, f"LGBM{kind}")(
        **{"n_estimators": 15, "num_leaves": 7, "verbose": -1, "random_state": 0, "n_jobs": 1, **options}
    )
    return _fit(model, columns, label, "holes" if columns == "numbers" else None)


def _xgboost(kind: str = "Classifier", columns: str = "holes", label: str = "two", **options: Any) -> Fitted:
    import xgboost

    model = getattr(xgboost, f"XGB{kind}")(
        **{"n_estimators": 15, "max_depth": 4, "random_state": 0, "n_jobs": 1, **options}
    )
    return _fit(model, columns, label)


def _catboost(kind: str = "Classifier", columns: str = "holes", label: str = "two", **options: Any) -> Fitted:
    import catboost

    model = getattr(catboost, f"CatBoost{kind}")(
        **{
            "iterations": 15,
            "depth": 4,
            "verbose": False,
            "allow_writing_files": False,
            "random_seed": 0,
            **options,
        }
    )
    return _fit(model, columns, label)


def _stopped(library: str) -> Fitted:
    held = rows()
    train, test = slice(0, 400), slice(400, None)
    x, y = held["numbers"], held["codes"]
    if library == "lightgbm":
        import lightgbm

        model = lightgbm.LGBMClassifier(n_estimators=200, verbose=-1, n_jobs=1)
        stop = lightgbm.early_stopping(5, verbose=False)
        model.fit(x[train], y[train], eval_set=[(x[test], y[test])], callbacks=[stop])
    elif library == "xgboost":
        import xgboost

        model = xgboost.XGBClassifier(n_estimators=200, early_stopping_rounds=5, n_jobs=1)
        model.fit(x[train], y[train], eval_set=[(x[test], y[test])], verbose=False)
    else:
        import catboost

        model = catboost.CatBoostClassifier(
            iterations=200, verbose=False, allow_writing_files=False, early_stopping_rounds=5
        )
        model.fit(x[train], y[train], eval_set=(x[test], y[test]))
    return Fitted(model, x)


def _categories() -> tuple[Any, Any]:
    """Return rows with a column of pandas' category type, and the same rows as texts, with NULL and an unknown one."""
    table = rows()["whole"][["a", "b", "city", "visits"]]
    texts = table.assign(city=table["city"].where(np.arange(ROWS) % 9 != 0))
    return table.assign(city=table["city"].astype("category")), texts


def _native(library: str, **options: Any) -> Fitted:
    table, texts = _categories()
    if library == "lightgbm":
        import lightgbm

        model: Any = lightgbm.LGBMClassifier(
            **{"n_estimators": 15, "verbose": -1, "min_data_per_group": 5, "n_jobs": 1, **options}
        )
    elif library == "xgboost":
        import xgboost

        model = xgboost.XGBClassifier(
            **{"n_estimators": 15, "max_depth": 4, "enable_categorical": True, "n_jobs": 1, **options}
        )
    else:
        model = _step(
            "ensemble",
            "HistGradientBoostingClassifier",
            categorical_features="from_dtype",
            max_iter=15,
            **options,
        )
    return Fitted(model.fit(table, rows()["by_city"]), texts)


def _numbered(library: str) -> Fitted:
    """Categories that are numbers already."""
    table = rows()["whole"][["a", "b", "visits"]]
    y = (table["visits"].isin([1, 3]) ^ (table["a"] > 0)).astype(int)
    if library == "lightgbm":
        import lightgbm

        model: Any = lightgbm.LGBMClassifier(
            n_estimators=15, verbose=-1, min_data_per_group=5, cat_smooth=1, n_jobs=1
        ).fit(table, y, categorical_feature=["visits"])
    else:
        model = _step(
            "ensemble", "HistGradientBoostingClassifier", categorical_features=["visits"], max_iter=15
        ).fit(table, y)
    return Fitted(model, table)


def _zeros() -> Fitted:
    import lightgbm
    import pandas as pd

    rng = np.random.default_rng(6)
    x = pd.DataFrame(rng.integers(-3, 8, size=(ROWS, 3)).astype(float), columns=list("abc"))
    y = ((x["a"] == 0) | (x["b"] + x["c"] > 6)).astype(int)
    model = lightgbm.LGBMClassifier(n_estimators=15, num_leaves=7, zero_as_missing=True, verbose=-1, n_jobs=1)
    return Fitted(model.fit(x, y), x.mask(rng.random(x.shape) < 0.1))


def _ending(library: str, *, sparse: bool) -> Fitted:
    """A booster behind a ColumnTransformer, which gives it a sparse matrix or a dense one."""
    ends: dict[str, Callable[[], Any]] = {
        "lightgbm": lambda: __import__("lightgbm").LGBMClassifier(n_estimators=15, verbose=-1, n_jobs=1),
        "xgboost": lambda: __import__("xgboost").XGBClassifier(n_estimators=15, max_depth=4, n_jobs=1),
        "catboost": lambda: __import__("catboost").CatBoostClassifier(
            iterations=15, verbose=False, allow_writing_files=False
        ),
    }
    step = _columns(
        _step("preprocessing", "StandardScaler"),
        _hot(sparse_output=sparse),
        sparse_threshold=1.0 if sparse else 0.0,
    )
    return _fit(_chain(step, ends[library]()), "mixed", "by_city")


def _file(name: str, make: Callable[[], Fitted]) -> Fitted:
    """A model as it is read from its own library's file."""
    import tempfile

    from pg_distill.conversion.convert import load_model

    fitted = make()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        model = fitted.model
        (model.booster_ if hasattr(model, "booster_") else model).save_model(str(path))
        return Fitted(load_model(str(path)), fitted.rows)


class Custom:
    """A transformer of the user's own."""

    def fit(self, x: Any, y: Any = None) -> Custom:
        return self

    def transform(self, x: Any) -> Any:
        return x

    def __sklearn_is_fitted__(self) -> bool:
        return True


def _words() -> Fitted:
    import pandas as pd
    from sklearn.compose import ColumnTransformer

    words = np.random.default_rng(3).choice(["refund", "late", "thanks"], (ROWS, 4))
    table = pd.DataFrame({"body": [" ".join(w) for w in words], "a": rows()["numbers"]["a"]})
    step = ColumnTransformer(
        [("t", _step("feature_extraction.text", "TfidfVectorizer"), "body"), ("n", "passthrough", ["a"])]
    )
    return Fitted(_chain(step, _logistic()).fit(table, rows()["two"]), table)


def _several() -> Fitted:
    held = rows()
    both = np.stack([held["value"], held["positive"]], axis=1)
    return Fitted(_step("ensemble", "RandomForestRegressor", 5).fit(held["numbers"], both), held["numbers"])


PIPELINES: dict[str, Callable[[], Fitted]] = {
    "words beside numbers, logistic": _words,
    "imputed and scaled numbers, one-hot texts, logistic": lambda: _over(_scaled, _hot),
    "the same, random forest": lambda: _over(_scaled, _hot, _forest),
    "most frequent text imputed": lambda: _over(
        _impute, lambda: _chain(_impute(strategy="most_frequent"), _hot(drop="first"))
    ),
    "constant text imputed": lambda: _over(
        lambda: _impute(add_indicator=True),
        lambda: _chain(_impute(strategy="constant", fill_value="missing"), _hot()),
    ),
    "rare texts together": lambda: _over(_impute, lambda: _hot(min_frequency=180)),
    "at most two texts": lambda: _over(
        _impute, lambda: _hot(max_categories=2, handle_unknown="infrequent_if_exist")
    ),
    "integers with NULL, imputed": _integers_with_null,
    "integers and truth values one-hot": _integers_as_categories,
    "NULL is a category, one-hot": lambda: _null_as_category("OneHotEncoder"),
    "NULL is a category, ordinal, forest": lambda: _null_as_category("OrdinalEncoder"),
    "None is a category, one-hot": _none_as_category,
    "TargetEncoder": lambda: _over(_impute, lambda: _step("preprocessing", "TargetEncoder")),
    "TargetEncoder, three classes": lambda: _fit(
        _chain(_columns(_impute(), _step("preprocessing", "TargetEncoder")), _logistic()), "mixed", "three"
    ),
    "columns that are dropped": _dropped,
    "seconds since 1970, deep forest": _seconds,
    "set_output(transform='pandas')": _pandas_output,
    "nested ColumnTransformer": _nested,
    "FeatureUnion with MissingIndicator": _union,
    "columns by make_column_selector": _selector,
    "KNNImputer": lambda: _over(lambda: _step("impute", "KNNImputer"), _hot),
    "IterativeImputer": lambda: _over(
        lambda: _step("impute", "IterativeImputer", max_iter=3, random_state=0), _hot
    ),
    "RobustScaler, MinMaxScaler, Normalizer": lambda: _of_numbers(
        _step("preprocessing", "RobustScaler"),
        _step("preprocessing", "MinMaxScaler", clip=True),
        _step("preprocessing", "Normalizer"),
    ),
    "FunctionTransformer(log1p)": lambda: _of_numbers(
        _step("preprocessing", "FunctionTransformer", np.abs),
        _step("preprocessing", "FunctionTransformer", np.log1p),
    ),
    "PowerTransformer": lambda: _of_numbers(_step("preprocessing", "PowerTransformer")),
    "QuantileTransformer": lambda: _of_numbers(
        _step("preprocessing", "QuantileTransformer", n_quantiles=100)
    ),
    "KBinsDiscretizer": lambda: _of_numbers(_step("preprocessing", "KBinsDiscretizer")),
    "PolynomialFeatures(3)": lambda: _of_numbers(_step("preprocessing", "PolynomialFeatures", 3)),
    "SplineTransformer": lambda: _of_numbers(_step("preprocessing", "SplineTransformer")),
    "PCA, whitened": lambda: _of_numbers(
        _step("preprocessing", "StandardScaler"), _step("decomposition", "PCA", 2, whiten=True)
    ),
    "SelectKBest": lambda: _of_numbers(_step("feature_selection", "SelectKBest", k=2)),
    "GridSearchCV": lambda: _search("GridSearchCV"),
    "RandomizedSearchCV": lambda: _search("RandomizedSearchCV"),
    "HalvingGridSearchCV": lambda: _search("HalvingGridSearchCV"),
    "CalibratedClassifierCV, sigmoid": lambda: _calibrated("sigmoid", lambda: _step("svm", "LinearSVC")),
    "CalibratedClassifierCV, isotonic, deep forest": lambda: _calibrated(
        "isotonic", lambda: _forest(max_depth=None)
    ),
    "CalibratedClassifierCV, three classes": lambda: _calibrated("sigmoid", _forest, "three"),
    "TransformedTargetRegressor(log)": lambda: _target(func=np.log, inverse_func=np.exp),
    "TransformedTargetRegressor(PowerTransformer)": lambda: _target(
        transformer=_step("preprocessing", "PowerTransformer")
    ),
    "FixedThresholdClassifier": lambda: _cut("FixedThresholdClassifier", threshold=0.3),
    "FixedThresholdClassifier, the first class": lambda: _cut(
        "FixedThresholdClassifier", threshold=0.3, pos_label=0
    ),
    "FixedThresholdClassifier of a decision function": lambda: _cut(
        "FixedThresholdClassifier", lambda: _step("svm", "LinearSVC"), threshold=-0.5
    ),
    "TunedThresholdClassifierCV": lambda: _cut("TunedThresholdClassifierCV", scoring="f1", cv=3),
    "SVC(probability=True)": lambda: _model("svm", "SVC", "two", probability=True, random_state=0),
    "VotingClassifier, soft": lambda: _ensemble("VotingClassifier", voting="soft"),
    "VotingClassifier, hard": lambda: _ensemble("VotingClassifier", "three"),
    "StackingClassifier": lambda: _ensemble("StackingClassifier", "three"),
    "VotingRegressor": lambda: _ensemble("VotingRegressor", "value"),
    "StackingRegressor": lambda: _ensemble("StackingRegressor", "value", passthrough=True),
    "LogisticRegression, three classes": lambda: _model(
        "linear_model", "LogisticRegression", "three", max_iter=500
    ),
    "RidgeClassifier": lambda: _model("linear_model", "RidgeClassifier", "three"),
    "SGDClassifier(log_loss), three classes": lambda: _model(
        "linear_model", "SGDClassifier", "three", loss="log_loss", random_state=0
    ),
    "LinearDiscriminantAnalysis": lambda: _model(
        "discriminant_analysis", "LinearDiscriminantAnalysis", "three"
    ),
    "QuadraticDiscriminantAnalysis": lambda: _model(
        "discriminant_analysis", "QuadraticDiscriminantAnalysis", "two"
    ),
    "GaussianNB": lambda: _model("naive_bayes", "GaussianNB", "three"),
    "MLPClassifier": lambda: _model("neural_network", "MLPClassifier", "three", max_iter=30, random_state=0),
    "KNeighborsClassifier(weights='distance')": lambda: _model(
        "neighbors", "KNeighborsClassifier", "three", weights="distance"
    ),
    "DecisionTreeClassifier on NULL": lambda: _model("tree", "DecisionTreeClassifier", "two", "holes"),
    "RandomForestClassifier on NULL": lambda: _model(
        "ensemble", "RandomForestClassifier", "three", "holes", n_estimators=15, random_state=0
    ),
    "ExtraTreesClassifier on NULL": lambda: _model(
        "ensemble", "ExtraTreesClassifier", "two", "holes", n_estimators=15, random_state=0
    ),
    "GradientBoostingClassifier, three classes": lambda: _model(
        "ensemble", "GradientBoostingClassifier", "three", n_estimators=15, random_state=0
    ),
    "AdaBoostClassifier": lambda: _model(
        "ensemble", "AdaBoostClassifier", "three", n_estimators=15, random_state=0
    ),
    "BaggingClassifier": lambda: _model("ensemble", "BaggingClassifier", "three", random_state=0),
    "labels, OneVsRestClassifier": lambda: _labels(_step("multiclass", "OneVsRestClassifier", _logistic())),
    "labels, OneVsRestClassifier of columns": lambda: _labels(
        _chain(
            _columns(_step("preprocessing", "StandardScaler"), _hot()),
            _step("multiclass", "OneVsRestClassifier", _forest()),
        ),
        "mixed",
    ),
    "labels, OneVsRestClassifier(LinearSVC)": lambda: _labels(
        _step("multiclass", "OneVsRestClassifier", _step("svm", "LinearSVC"))
    ),
    "labels, MultiOutputClassifier": lambda: _labels(
        _step(
            "multioutput",
            "MultiOutputClassifier",
            _step("ensemble", "GradientBoostingClassifier", n_estimators=15, random_state=0),
        )
    ),
    "labels, MLPClassifier": lambda: _labels(
        _step("neural_network", "MLPClassifier", max_iter=30, random_state=0)
    ),
    "labels, RandomForestClassifier": lambda: _labels(_forest()),
    "labels, DecisionTreeClassifier": lambda: _labels(
        _step("tree", "DecisionTreeClassifier", random_state=0), width=2
    ),
    "OneVsRestClassifier": lambda: _fit(
        _step("multiclass", "OneVsRestClassifier", _logistic()), "numbers", "three"
    ),
    "HistGradientBoostingClassifier on NULL": lambda: _model(
        "ensemble", "HistGradientBoostingClassifier", "three", "holes", max_iter=15
    ),
    "HistGradientBoostingRegressor(poisson)": lambda: _model(
        "ensemble", "HistGradientBoostingRegressor", "positive", "holes", loss="poisson", max_iter=15
    ),
    "HistGradientBoosting, categories": lambda: _native("sklearn"),
    "HistGradientBoosting, numbered categories": lambda: _numbered("sklearn"),
    "RandomForestRegressor, values near 1000": lambda: _model(
        "ensemble", "RandomForestRegressor", "value", n_estimators=15, random_state=0
    ),
    "GammaRegressor": lambda: _model("linear_model", "GammaRegressor", "positive"),
    "SVR": lambda: _model("svm", "SVR", "value"),
    "MLPRegressor": lambda: _model("neural_network", "MLPRegressor", "value", max_iter=30, random_state=0),
    "AdaBoostRegressor": lambda: _model(
        "ensemble", "AdaBoostRegressor", "value", n_estimators=15, random_state=0
    ),
    "GaussianProcessRegressor": lambda: _model(
        "gaussian_process", "GaussianProcessRegressor", "value", normalize_y=True, alpha=0.1
    ),
    "LightGBM": _lightgbm,
    "LightGBM, NULL unseen in training": lambda: _lightgbm(columns="numbers"),
    "LightGBM, three classes": lambda: _lightgbm(label="three"),
    "LightGBM, zero_as_missing": _zeros,
    "LightGBM, random forest": lambda: _lightgbm(boosting_type="rf", bagging_freq=1, bagging_fraction=0.7),
    "LightGBM, dart": lambda: _lightgbm(boosting_type="dart"),
    "LightGBM, early stopping": lambda: _stopped("lightgbm"),
    "LightGBM, categories": lambda: _native("lightgbm"),
    "LightGBM, numbered categories": lambda: _numbered("lightgbm"),
    "LightGBM, regression": lambda: _lightgbm("Regressor", label="value"),
    "LightGBM, Tweedie": lambda: _lightgbm("Regressor", label="positive", objective="tweedie"),
    "LightGBM's file": lambda: _file("model.txt", lambda: _native("lightgbm")),
    "XGBoost": _xgboost,
    "XGBoost, three classes": lambda: _xgboost(label="codes"),
    "XGBoost, early stopping": lambda: _stopped("xgboost"),
    "XGBoost, dart": lambda: _xgboost(booster="dart", rate_drop=0.3),
    "XGBoost, linear": lambda: _xgboost(booster="gblinear", label="codes", max_depth=None),
    "XGBoost, random forest": lambda: _xgboost("RFClassifier"),
    "XGBoost, NULL is -999": lambda: _xgboost(missing=-999),
    "XGBoost, categories": lambda: _native("xgboost"),
    "XGBoost, categories in sets": lambda: _native("xgboost", max_cat_to_onehot=1),
    "XGBoost, a rate": lambda: _xgboost("Regressor", label="rate", objective="reg:logistic"),
    "XGBoost, Poisson": lambda: _xgboost("Regressor", label="positive", objective="count:poisson"),
    "XGBoost's .json": lambda: _file("model.json", _xgboost),
    "XGBoost's .ubj with categories": lambda: _file("model.ubj", lambda: _native("xgboost")),
    "CatBoost": _catboost,
    "CatBoost, three classes": lambda: _catboost(label="three"),
    "CatBoost, early stopping": lambda: _stopped("catboost"),
    "CatBoost, trees that are not symmetric": lambda: _catboost(grow_policy="Lossguide"),
    "CatBoost, Poisson": lambda: _catboost("Regressor", label="positive", loss_function="Poisson"),
    "CatBoost's .cbm": lambda: _file("model.cbm", lambda: _catboost(label="three")),
    "scaled and sparse one-hot, XGBoost": lambda: _ending("xgboost", sparse=True),
    "scaled and dense one-hot, XGBoost": lambda: _ending("xgboost", sparse=False),
    "scaled and sparse one-hot, LightGBM": lambda: _ending("lightgbm", sparse=True),
    "scaled and sparse one-hot, CatBoost": lambda: _ending("catboost", sparse=True),
}
"""Each converts, and predicts as its library."""

REFUSED: dict[str, Callable[[], Fitted]] = {
    "labels, OneVsRestClassifier, one is in all rows": lambda: _one_label(
        _step("multiclass", "OneVsRestClassifier", _logistic())
    ),
    "labels, MultiOutputClassifier, one is in all rows": lambda: _one_label(
        _step("multioutput", "MultiOutputClassifier", _forest())
    ),
    "labels, ClassifierChain": lambda: _labels(_step("multioutput", "ClassifierChain", _logistic())),
    "labels, KNeighborsClassifier": lambda: _labels(_step("neighbors", "KNeighborsClassifier")),
    "labels, RadiusNeighborsClassifier": lambda: _labels(
        _step(
            "multioutput",
            "MultiOutputClassifier",
            _step("neighbors", "RadiusNeighborsClassifier", radius=1000.0),
        )
    ),
    "a function of the user's": lambda: _of_numbers(
        _step("preprocessing", "FunctionTransformer", _of_the_user)
    ),
    "a transformer of the user's": lambda: _fit(_chain(Custom(), _logistic()), "numbers", "two"),
    "several values": _several,
    "KMeans": lambda: _model("cluster", "KMeans", "two", n_clusters=3, n_init=1),
    "IsolationForest": lambda: _model("ensemble", "IsolationForest", "two", n_estimators=5),
    "GaussianProcessClassifier": lambda: _model("gaussian_process", "GaussianProcessClassifier", "two"),
    "SVC(probability=True), three classes, decides by votes": lambda: _model(
        "svm", "SVC", "three", probability=True, random_state=0
    ),
    "QuantileTransformer(normal)": lambda: _of_numbers(
        _step("preprocessing", "QuantileTransformer", n_quantiles=100, output_distribution="normal")
    ),
    "LightGBM, one-vs-all": lambda: _lightgbm(label="three", objective="multiclassova"),
    "LightGBM, linear trees": lambda: _lightgbm(columns="numbers", linear_tree=True),
    "CatBoost, categories": lambda: Fitted(
        __import__("catboost")
        .CatBoostClassifier(iterations=5, verbose=False, allow_writing_files=False, cat_features=["city"])
        .fit(rows()["whole"][["a", "city"]], rows()["by_city"]),
        rows()["whole"][["a", "city"]],
    ),
}
"""Each is refused, with a sentence that says what to do."""


def _of_the_user(x: Any) -> Any:
    return x + 1


@cache
def fitted(name: str) -> Fitted:
    """Return the pipeline of a name, fitted once a process."""
    from threadpoolctl import threadpool_limits

    # One thread: OpenMP's wait for each other by spinning.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        return (PIPELINES.get(name) or REFUSED[name])()


# -- as a server takes them


def kinds_of(table: Any) -> dict[str, Kind]:
    """Return the kinds that the columns of a data frame have in a table."""
    kinds: dict[str, Kind] = {"i": "integer", "f": "number", "b": "boolean"}
    return {name: kinds.get(table[name].dtype.kind, "string") for name in table}


def values_of(table: Any, name: str) -> list[Any]:
    """Return a column's values as a database has them, None for NULL."""
    return [None if v is None or v != v else v for v in table[name].tolist()]


def frame_of(table: Any, names: Sequence[str]) -> Frame:
    """Return columns of a data frame as a sample gives them."""
    kinds = kinds_of(table)
    columns: dict[str, Column] = {}
    for name in names:
        values = values_of(table, name)
        if kinds[name] == "string":
            columns[name] = Strings.from_values(values)
        else:
            columns[name] = np.array([np.nan if v is None else float(v) for v in values])
    return Frame(tuple(Feature(name, kinds[name]) for name in names), columns)


@dataclass(frozen=True)
class Tried:
    """What became of a pipeline: how far it is from its library, or why it is refused."""

    version: str
    difference: Difference | None = None
    error: PgDistillError | None = None


def try_pipeline(fitted: Fitted) -> Tried:
    """Convert a pipeline, run it as a server does, and hold it against its library on every row."""
    from pg_distill.conversion.convert import convert
    from pg_distill.onnx_model.approve import approve

    table = fitted.rows
    kinds: dict[str, Kind | None] = {**kinds_of(table)}
    version = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = convert(fitted.model, kinds, None)
            version = made.original.version
            frame = frame_of(table, made.features)
            approval = approve(
                made.artifact, features=frame.features, rows=frame, task=made.original.task, classes=made.original.classes
            )  # fmt: skip
            signature, found = approval.signature, approval.outputs
            # Restored on another server, the file is held against the signature that was stored with it.
            stored = Signature.from_json(*json.loads(json.dumps(signature.to_json())))
            approve(made.artifact, stored)
            known = set(made.read)
            given = [values_of(table, n) if i in known else [] for i, n in enumerate(made.columns)]
            unread = [i for i in range(len(given)) if i not in known]
            their_kinds: list[Kind] = [kinds.get(n) or "number" for n in made.columns]
            answers = made.original.answers(made.original.rows(given, their_kinds, made.nulls, unread))
            assert not answers.failed, answers.failed
            classes = np.array(signature.classes, object)
            named: Any = None
            if signature.task == "multilabel":
                named = np.array(["".join("01"[int(p > 0.5)] for p in row) for row in found], object)
            elif len(classes):
                named = classes[decided(found, made.class_threshold).argmax(axis=1)]
            difference = compare(
                signature.task, outputs=answers.outputs, labels=answers.labels, found=found, found_labels=named,
                classes=signature.classes, class_threshold=made.class_threshold,
            )  # fmt: skip
        except PgDistillError as error:
            return Tried(version, error=error)
    return Tried(version, difference)
