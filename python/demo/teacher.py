"""The demo's teacher: four ensembles of boosted trees, stacked, as one ONNX file.

Everything from the raw columns on is inside the graph: strings become codes, one that was never seen becomes -1,
a missing number becomes -1 (no column holds negative values), and a missing string is the empty string.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lightgbm
import numpy as np
import onnxruntime
import pandas as pd
from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
from skl2onnx import to_onnx, update_registered_converter
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

__all__ = ["batches", "open_teacher", "train"]

SEED = 0
THREADS = (
    1  # a member, and a core each: LightGBM's threads wait for each other, badly where a core has other work
)
STACK_SHARE = 0.1  # of the training rows: the members never see them, so that the stack weighs them fairly
BATCH_ROWS = 4096  # rows a run in bulk: enough to spread a call's cost, few enough for the processor's cache
EXPORT_TOLERANCE = 1e-5  # in probability: float32 sums of thousands of trees differ by some 1e-6
SECONDS_BETWEEN_MESSAGES = 10.0
OPSET = {"": 17, "ai.onnx.ml": 3}

Say = Callable[[str], None]


def members() -> list[tuple[str, Any]]:
    """Return name and estimator of what is stacked.

    Boosted ensembles of many small trees, unlike in the columns and rows that each tree sees and in how it finds its splits.
    Found by trials on these rows: larger trees or a higher rate overfit, a single member of any size is worse.
    """
    boosted: dict[str, Any] = {
        "n_estimators": 3500,
        "num_leaves": 63,
        "learning_rate": 0.035,
        "min_child_samples": 10,
        "subsample_freq": 1,
        "n_jobs": THREADS,
        "verbose": -1,
    }
    unlike: dict[str, dict[str, Any]] = {
        "boosted": {"colsample_bytree": 0.6, "subsample": 0.8},
        "boosted_sparse": {"colsample_bytree": 0.3, "subsample": 0.6, "reg_lambda": 5.0},
        "boosted_random": {"colsample_bytree": 0.8, "subsample": 0.8, "extra_trees": True},
        "boosted_smooth": {"colsample_bytree": 0.45, "subsample": 0.7, "path_smooth": 10.0},
    }
    return [
        (name, lightgbm.LGBMClassifier(**boosted, **own, random_state=SEED + i))
        for i, (name, own) in enumerate(unlike.items())
    ]


def train(rows: pd.DataFrame, y: np.ndarray, say: Say) -> bytes:
    """Train the teacher and return it as ONNX, one input a column.

    Parameters
    ----------
    rows
        Columns of strings, NULL as "", and of float32, NULL as NaN.
    y
        (n,) the label, 0 or 1.
    say
        Is told what is going on.
    """
    strings = [name for name in rows if not pd.api.types.is_numeric_dtype(rows[name])]
    numbers = [name for name in rows if name not in strings]
    encode = ColumnTransformer(
        [
            ("numbers", SimpleImputer(strategy="constant", fill_value=-1.0), numbers),
            ("strings", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32), strings),
        ]
    )  # fmt: skip
    matrix = encode.fit_transform(rows).astype(np.float32)
    stacked = np.random.default_rng(SEED).random(len(y)) < STACK_SHARE

    def fit(member: tuple[str, Any]) -> tuple[str, Any]:
        name, model = member
        say(f"training {name}: LightGBM, {model.n_estimators:,} trees of {model.num_leaves} leaves")
        started = time.monotonic()
        model.fit(matrix[~stacked], y[~stacked], callbacks=[_progress(say, name)])
        say(f"  {name} took {time.monotonic() - started:.0f} s")
        return name, model

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fitted = list(pool.map(fit, members()))
    for _, model in fitted:  # from here on one at a time
        model.set_params(n_jobs=os.cpu_count())
    say("weighing them against each other on rows that none has seen")
    stack = StackingClassifier(fitted, LogisticRegression(C=100.0), cv="prefit")
    stack.fit(matrix[stacked], y[stacked])
    pipeline = Pipeline([("encode", encode), ("stack", stack)])
    say("exporting to ONNX")
    artifact = export(pipeline, rows)
    check_export(artifact, pipeline, rows, say)
    return artifact


def _progress(say: Say, name: str) -> Callable[[Any], None]:
    told = time.monotonic()

    def callback(environment: Any) -> None:
        nonlocal told
        if time.monotonic() - told > SECONDS_BETWEEN_MESSAGES:
            told = time.monotonic()
            say(f"  {name}: tree {environment.iteration + 1} of {environment.end_iteration}")

    return callback


def export(pipeline: Pipeline, rows: pd.DataFrame) -> bytes:
    """Return the pipeline as ONNX; its inputs are the columns of ``rows``, by name."""
    update_registered_converter(
        lightgbm.LGBMClassifier,
        "LightGbmLGBMClassifier",
        calculate_linear_classifier_output_shapes,
        convert_lightgbm,
        options={"nocl": [True, False], "zipmap": [True, False, "columns"], "raw_scores": [True, False]},
    )
    types = [
        (
            name,
            (FloatTensorType if pd.api.types.is_numeric_dtype(rows[name]) else StringTensorType)([None, 1]),
        )
        for name in rows
    ]
    stack = pipeline.named_steps["stack"]
    gc.disable()  # the converters make millions of objects and no cycles: a fifth of their time is spent seeking some
    try:
        model = to_onnx(
            pipeline, initial_types=types, options={id(stack): {"zipmap": False}}, target_opset=OPSET
        )
    finally:
        gc.enable()
    return bytes(model.SerializeToString())


def check_export(artifact: bytes, pipeline: Pipeline, rows: pd.DataFrame, say: Say) -> None:
    """Hold the ONNX file against scikit-learn, on real rows and on rows with NULLs and categories never seen.

    Raises
    ------
    RuntimeError
        If their probabilities differ.
    """
    odd = rows.sample(3000, random_state=SEED).reset_index(drop=True)
    random = np.random.default_rng(SEED)
    for name in odd:
        numeric = pd.api.types.is_numeric_dtype(odd[name])
        odd.loc[1000 + random.permutation(1000)[:100], name] = np.nan if numeric else ""
        if not numeric:
            odd.loc[2000 + random.permutation(1000)[:100], name] = "never seen"
    session = open_teacher(artifact, threads=1)
    difference = float(np.abs(predict(session, batches(odd)) - pipeline.predict_proba(odd)[:, 1]).max())
    if difference > EXPORT_TOLERANCE:
        raise RuntimeError(f"the ONNX file differs from scikit-learn by {difference:.2g} in probability")
    say(
        f"  {len(artifact) / 1e6:.0f} MB; on 3,000 rows, some with NULLs and unseen categories, it differs from"
        f" scikit-learn by at most {difference:.0e}"
    )


def open_teacher(artifact: bytes, threads: int) -> onnxruntime.InferenceSession:
    """Open a session as an application would."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])


def batches(rows: pd.DataFrame, size: int = BATCH_ROWS) -> Sequence[dict[str, np.ndarray]]:
    """Return the graph's inputs, ``size`` rows at a time."""
    columns = {
        name: rows[[name]].to_numpy(np.float32 if pd.api.types.is_numeric_dtype(rows[name]) else object)
        for name in rows
    }
    return [
        {name: values[start : start + size] for name, values in columns.items()}
        for start in range(0, len(rows), size)
    ]


def predict(session: onnxruntime.InferenceSession, feeds: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    """Return (n,) the probability of the last class."""
    return np.concatenate([session.run(["probabilities"], feed)[0][:, 1] for feed in feeds])
