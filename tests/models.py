"""Real models of the field's libraries, small, exported to ONNX by the field's own converters.

`EXPORTERS` names them all. Imports of the libraries stand inside the functions: a test that needs one model
does not pay for six frameworks.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pg_distill.frame import Feature, FloatArray, Frame, Kind, Strings, Task

ROWS = 400
OPSET = 17
ML_OPSET = 3


@dataclass(frozen=True)
class Exported:
    """A model with its rows and what its own framework predicts for them.

    ``expected``: (n, K) probabilities, or (n, 1) values.
    """

    artifact: bytes
    frame: Frame
    expected: FloatArray
    task: Task
    classes: tuple[str, ...] = ()


def numbers(seed: int = 0, rows: int = ROWS, columns: int = 6) -> FloatArray:
    """Return (rows, columns) standard normal numbers that float32 holds exactly."""
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32).astype(np.float64)


def number_frame(values: FloatArray, kind: Kind = "number") -> Frame:
    """Return ``values`` as a frame of features x0, x1, ..."""
    names = [f"x{i}" for i in range(values.shape[1])]
    return Frame(tuple(Feature(n, kind) for n in names), {n: values[:, i] for i, n in enumerate(names)})


def targets(values: FloatArray, task: Task, labels: Sequence[Any] | None = None) -> Any:
    """Return a target that depends on ``values`` and has noise, so that no model is sure of itself."""
    noise = np.random.default_rng(1).normal(size=len(values))
    score = values[:, 0] + values[:, 1] * values[:, 2] + 0.7 * noise
    if task == "regression":
        return score
    count = len(labels) if labels is not None else 2 if task == "binary" else 3
    codes = np.digitize(score, np.quantile(score, np.arange(1, count) / count))
    return np.array(labels)[codes] if labels is not None else codes


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the converters' warnings out of tests that turn warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -- scikit-learn


def _skl(
    model: Any, task: Task, *, zipmap: Any = True, labels: Sequence[Any] | None = None, **extra: Any
) -> Exported:
    from skl2onnx import to_onnx

    values = numbers()
    with quiet():
        model.fit(values.astype(np.float32), targets(values, task, labels))
        options = {} if task == "regression" else {id(model): {"zipmap": zipmap, **extra}}
        proto = to_onnx(
            model,
            values[:1].astype(np.float32),
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
            options=options,
        )
        expected = (
            model.predict(values) if task == "regression" else model.predict_proba(values.astype(np.float32))
        )
    classes = () if task == "regression" else tuple(str(c) for c in model.classes_)
    return Exported(
        proto.SerializeToString(), number_frame(values), expected.reshape(len(values), -1), task, classes
    )


def sklearn_logistic(task: Task = "binary", **options: Any) -> Exported:
    from sklearn.linear_model import LogisticRegression

    return _skl(LogisticRegression(), task, **options)


def sklearn_random_forest(task: Task = "binary", **options: Any) -> Exported:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    cls = RandomForestRegressor if task == "regression" else RandomForestClassifier
    return _skl(cls(n_estimators=10, max_depth=5, random_state=0), task, **options)


def sklearn_extra_trees(task: Task = "binary", **options: Any) -> Exported:
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    cls = ExtraTreesRegressor if task == "regression" else ExtraTreesClassifier
    return _skl(cls(n_estimators=10, max_depth=5, random_state=0), task, **options)


def sklearn_gradient_boosting(task: Task = "binary", **options: Any) -> Exported:
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

    cls = GradientBoostingRegressor if task == "regression" else GradientBoostingClassifier
    return _skl(cls(n_estimators=10, random_state=0), task, **options)


def sklearn_mlp(task: Task = "binary", **options: Any) -> Exported:
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    cls = MLPRegressor if task == "regression" else MLPClassifier
    return _skl(cls(hidden_layer_sizes=(16, 8), max_iter=60, random_state=0), task, **options)


def sklearn_calibrated(task: Task = "binary", **options: Any) -> Exported:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.tree import DecisionTreeClassifier

    return _skl(
        CalibratedClassifierCV(DecisionTreeClassifier(max_depth=4, random_state=0), cv=3), task, **options
    )


def sklearn_svc(task: Task = "binary", **options: Any) -> Exported:
    from sklearn.svm import SVC

    with quiet():
        return _skl(SVC(probability=True, random_state=0), task, **options)


def sklearn_svr() -> Exported:
    from sklearn.svm import SVR

    return _skl(SVR(), "regression")


def sklearn_nearest_neighbours(task: Task = "binary", **options: Any) -> Exported:
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    cls = KNeighborsRegressor if task == "regression" else KNeighborsClassifier
    return _skl(cls(5), task, **options)


def sklearn_voting(task: Task = "binary", **options: Any) -> Exported:
    from sklearn.ensemble import RandomForestClassifier, VotingClassifier
    from sklearn.linear_model import LogisticRegression

    members = [("a", LogisticRegression()), ("b", RandomForestClassifier(5, max_depth=4, random_state=0))]
    return _skl(VotingClassifier(members, voting="soft", flatten_transform=False), task, **options)


def sklearn_scaled_logistic(task: Task = "binary", **options: Any) -> Exported:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return _skl(make_pipeline(StandardScaler(), LogisticRegression()), task, **options)


def sklearn_ridge() -> Exported:
    from sklearn.linear_model import Ridge

    return _skl(Ridge(), "regression")


def mixed_frame(rows: int = ROWS) -> Frame:
    """Return rows of two numbers, one of them with NULLs, an integer and two strings."""
    values = numbers(seed=3, rows=rows, columns=3)
    rng = np.random.default_rng(4)
    weight = values[:, 1].copy()
    weight[::11] = np.nan
    return Frame(
        (
            Feature("amount", "number"),
            Feature("city", "string"),
            Feature("weight", "number"),
            Feature("visits", "integer"),
            Feature("device", "string"),
        ),
        {
            "amount": values[:, 0],
            "city": Strings.from_values([["Oslo", "Rome", "Lima"][i] for i in rng.integers(0, 3, rows)]),
            "weight": weight,
            "visits": rng.integers(0, 9, rows).astype(np.float64),
            "device": Strings.from_values([["phone", "desk"][i] for i in rng.integers(0, 2, rows)]),
        },
    )


def sklearn_pipeline(model: str = "logistic", *, grouped: bool = False, task: Task = "binary") -> Exported:
    """Export a ColumnTransformer with imputation, scaling and one-hot encoding.

    One input a column, or with ``grouped`` one of all numbers and one of all strings.
    """
    import pandas as pd
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = mixed_frame()
    table: dict[str, Any] = {}
    for feature in frame.features:
        if feature.kind == "string":
            table[feature.name] = frame.strings(feature.name).to_objects()
        else:
            table[feature.name] = frame.number(feature.name).astype(
                np.int64 if feature.kind == "integer" else np.float32
            )
    data = pd.DataFrame(table)
    # A forest's thresholds, found on values scaled in float64, split float32 values differently: it is not
    # scaled.
    score = np.nan_to_num(frame.number("weight")) + frame.number("amount") + (data["city"] == "Rome") * 1.5
    noise = np.random.default_rng(5).normal(size=len(frame))
    y = (score + noise).to_numpy() if task == "regression" else np.where(score + noise > 0.4, "yes", "no")
    estimators: dict[str, Any] = {
        "logistic": LogisticRegression(),
        "boosting": GradientBoostingClassifier(n_estimators=10, random_state=0),
        "forest": (RandomForestRegressor if task == "regression" else RandomForestClassifier)(
            10, max_depth=5, random_state=0
        ),
    }
    numeric: list[Any] = ["amount", "weight"] if grouped else ["amount", "weight", "visits"]
    categorical: list[Any] = ["city", "device"]
    if grouped:
        data = data[numeric + categorical].to_numpy(object)
        numeric, categorical = [0, 1], [2, 3]
        frame = Frame(
            tuple(f for f in frame.features if f.name != "visits"),
            {k: v for k, v in frame.columns.items() if k != "visits"},
        )
    transformer = ColumnTransformer(
        [
            (
                "numeric",
                SimpleImputer() if model == "forest" else make_pipeline(SimpleImputer(), StandardScaler()),
                numeric,
            ),
            ("categorical", OneHotEncoder(handle_unknown="ignore"), categorical),
        ]
    )
    pipeline = make_pipeline(transformer, estimators[model])
    types: list[tuple[str, Any]]
    if grouped:
        types = [("numeric", FloatTensorType([None, 2])), ("categorical", StringTensorType([None, 2]))]
    else:
        kinds = {"number": FloatTensorType, "integer": Int64TensorType, "string": StringTensorType}
        types = [(f.name, kinds[f.kind]([None, 1])) for f in frame.features]
    with quiet():
        pipeline.fit(data, y)
        proto = to_onnx(pipeline, initial_types=types, target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET})
        expected: Any = pipeline.predict(data) if task == "regression" else pipeline.predict_proba(data)
    classes = () if task == "regression" else ("no", "yes")
    return Exported(proto.SerializeToString(), frame, expected.reshape(len(frame), -1), task, classes)


# -- boosted trees


def lightgbm(task: Task = "binary", *, zipmap: bool = True, labels: Sequence[Any] | None = None) -> Exported:
    from lightgbm import LGBMClassifier, LGBMRegressor
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    values = numbers()
    cls = LGBMRegressor if task == "regression" else LGBMClassifier
    model = cls(n_estimators=10, num_leaves=7, verbose=-1, n_jobs=1, random_state=0)
    with quiet():
        model.fit(values, targets(values, task, labels))
        types = [("input", FloatTensorType([None, values.shape[1]]))]
        proto = convert_lightgbm(model, initial_types=types, zipmap=zipmap, target_opset=15)
        expected: Any = model.predict(values) if task == "regression" else model.predict_proba(values)
    classes = () if task == "regression" else tuple(str(c) for c in model.classes_)
    return Exported(
        proto.SerializeToString(), number_frame(values), expected.reshape(len(values), -1), task, classes
    )


def xgboost(task: Task = "binary") -> Exported:
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType
    from xgboost import XGBClassifier, XGBRegressor

    values = numbers()
    cls = XGBRegressor if task == "regression" else XGBClassifier
    model = cls(n_estimators=10, max_depth=3, n_jobs=1, random_state=0)
    with quiet():
        model.fit(values, targets(values, task))
        types = [("input", FloatTensorType([None, values.shape[1]]))]
        proto = convert_xgboost(model, initial_types=types, target_opset=15)
        expected = model.predict(values) if task == "regression" else model.predict_proba(values)
    classes = () if task == "regression" else tuple(str(c) for c in model.classes_)
    expected = np.asarray(expected, np.float64).reshape(len(values), -1)
    return Exported(proto.SerializeToString(), number_frame(values), expected, task, classes)


def catboost(task: Task = "binary", *, labels: Sequence[Any] | None = None) -> Exported:
    from catboost import CatBoostClassifier, CatBoostRegressor

    values = numbers()
    cls = CatBoostRegressor if task == "regression" else CatBoostClassifier
    model = cls(
        iterations=10, depth=3, random_seed=0, thread_count=1, verbose=False, allow_writing_files=False
    )
    model.fit(values, targets(values, task, labels))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        model.save_model(str(path), format="onnx")
        artifact = path.read_bytes()
    expected = model.predict(values) if task == "regression" else model.predict_proba(values)
    classes = () if task == "regression" else tuple(str(c) for c in model.classes_)
    return Exported(
        artifact, number_frame(values), np.asarray(expected).reshape(len(values), -1), task, classes
    )


# -- PyTorch


def torch_mlp(end: str = "softmax", *, classes: int = 3, dynamic: bool = True) -> Exported:
    """Export a trained MLP whose graph ends in ``end``.

    softmax or logits (n, K); log_softmax (n, K); sigmoid or logit (n, 1): binary; value (n, 1): regression.
    """
    import torch
    from torch import nn

    torch.manual_seed(0)
    values = numbers()
    single = end in ("sigmoid", "logit", "value")
    task: Task = "regression" if end == "value" else "binary" if single or classes == 2 else "multiclass"
    y = targets(values, task)
    width = 1 if single else classes
    body = nn.Sequential(nn.Linear(values.shape[1], 16), nn.ReLU(), nn.Linear(16, width))
    x = torch.tensor(values, dtype=torch.float32)
    target = torch.tensor(y, dtype=torch.float32 if single else torch.int64)
    losses: dict[str, Any] = {
        "value": nn.MSELoss(),
        "sigmoid": nn.BCEWithLogitsLoss(),
        "logit": nn.BCEWithLogitsLoss(),
    }
    loss = losses.get(end) or nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(body.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        out = body(x)
        loss(out.squeeze(1) if single else out, target).backward()
        optimizer.step()
    ends: dict[str, nn.Module] = {
        "softmax": nn.Softmax(1),
        "log_softmax": nn.LogSoftmax(1),
        "sigmoid": nn.Sigmoid(),
    }
    model = nn.Sequential(body, ends[end]) if end in ends else body
    model.eval()
    buffer: Any = io.BytesIO()
    with quiet():
        torch.onnx.export(
            model,
            (x[:1],),
            buffer,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}} if dynamic else None,
            opset_version=OPSET,
            dynamo=False,
        )
        with torch.no_grad():
            raw = body(x).double().numpy()
    if end == "value":
        expected = raw
    elif single:
        expected = np.concatenate([1 / (1 + np.exp(raw)), 1 / (1 + np.exp(-raw))], axis=1)
    else:
        exp = np.exp(raw - raw.max(axis=1, keepdims=True))
        expected = exp / exp.sum(axis=1, keepdims=True)
    names = () if end == "value" else tuple(str(i) for i in range(max(width, 2)))
    return Exported(buffer.getvalue(), number_frame(values), expected, task, names)


EXPORTERS: dict[str, Callable[[], Exported]] = {
    "sklearn logistic": sklearn_logistic,
    "sklearn logistic, no ZipMap": lambda: sklearn_logistic(zipmap=False),
    "sklearn logistic, 3 classes": lambda: sklearn_logistic("multiclass"),
    "sklearn logistic, text classes": lambda: sklearn_logistic("multiclass", labels=["b", "a", "c"]),
    "sklearn logistic, text classes, no ZipMap": lambda: sklearn_logistic(
        "multiclass", labels=["b", "a", "c"], zipmap=False
    ),
    "sklearn logistic, classes 3, 5, no ZipMap": lambda: sklearn_logistic(labels=[3, 5], zipmap=False),
    "sklearn scaled logistic": sklearn_scaled_logistic,
    "sklearn random forest": sklearn_random_forest,
    "sklearn random forest, 3 classes": lambda: sklearn_random_forest("multiclass", zipmap=False),
    "sklearn random forest, regression": lambda: sklearn_random_forest("regression"),
    "sklearn extra trees": sklearn_extra_trees,
    "sklearn extra trees, regression": lambda: sklearn_extra_trees("regression"),
    "sklearn gradient boosting": sklearn_gradient_boosting,
    "sklearn gradient boosting, 3 classes": lambda: sklearn_gradient_boosting("multiclass"),
    "sklearn gradient boosting, regression": lambda: sklearn_gradient_boosting("regression"),
    "sklearn MLP": sklearn_mlp,
    "sklearn MLP, 3 classes": lambda: sklearn_mlp("multiclass", zipmap=False),
    "sklearn MLP, regression": lambda: sklearn_mlp("regression"),
    "sklearn calibrated tree": sklearn_calibrated,
    "sklearn calibrated tree, 3 classes": lambda: sklearn_calibrated("multiclass"),
    "sklearn SVC": sklearn_svc,
    "sklearn SVC, 3 classes": lambda: sklearn_svc("multiclass"),
    "sklearn SVR": sklearn_svr,
    "sklearn voting": sklearn_voting,
    "sklearn ridge": sklearn_ridge,
    "sklearn pipeline, logistic": sklearn_pipeline,
    "sklearn pipeline, boosting": lambda: sklearn_pipeline("boosting"),
    "sklearn pipeline, forest": lambda: sklearn_pipeline("forest"),
    "sklearn pipeline, forest, regression": lambda: sklearn_pipeline("forest", task="regression"),
    "sklearn pipeline, grouped inputs": lambda: sklearn_pipeline(grouped=True),
    "LightGBM": lightgbm,
    "LightGBM, no ZipMap": lambda: lightgbm(zipmap=False),
    "LightGBM, 3 classes": lambda: lightgbm("multiclass"),
    "LightGBM, text classes": lambda: lightgbm("multiclass", labels=["b", "a", "c"]),
    "LightGBM, regression": lambda: lightgbm("regression"),
    "XGBoost": xgboost,
    "XGBoost, 3 classes": lambda: xgboost("multiclass"),
    "XGBoost, regression": lambda: xgboost("regression"),
    "CatBoost": catboost,
    "CatBoost, text classes": lambda: catboost(labels=["no", "yes"]),
    "CatBoost, 3 classes": lambda: catboost("multiclass"),
    "CatBoost, regression": lambda: catboost("regression"),
    "PyTorch MLP, softmax": torch_mlp,
    "PyTorch MLP, logits": lambda: torch_mlp("logits"),
    "PyTorch MLP, log-softmax": lambda: torch_mlp("log_softmax"),
    "PyTorch MLP, 2 logits": lambda: torch_mlp("logits", classes=2),
    "PyTorch MLP, sigmoid": lambda: torch_mlp("sigmoid"),
    "PyTorch MLP, one logit": lambda: torch_mlp("logit"),
    "PyTorch MLP, regression": lambda: torch_mlp("value"),
    "PyTorch MLP, batch of one": lambda: torch_mlp(dynamic=False),
}
"""Every family and form that registration must take."""


@cache
def exported(name: str) -> Exported:
    """Return `EXPORTERS` [``name``], made once a process."""
    with quiet():
        return EXPORTERS[name]()
