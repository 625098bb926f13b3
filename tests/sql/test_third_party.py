"""Models that the field's libraries export predict through SQL as in their own framework."""

from __future__ import annotations

import json
from typing import Any

import models
import numpy as np
import psycopg
import pytest
import third_party
from pg_distill.frame import Strings

ROWS = 50
MUST_PASS = (
    "sklearn pipeline, logistic",
    "sklearn pipeline, forest",
    "sklearn pipeline, boosting",
    "sklearn random forest",
    "sklearn extra trees",
    "sklearn gradient boosting",
    "sklearn logistic",
    "sklearn MLP",
    "sklearn calibrated tree",
    "LightGBM",
    "LightGBM, 3 classes",
    "LightGBM, regression",
    "XGBoost",
    "XGBoost, 3 classes",
    "XGBoost, regression",
    "CatBoost",
    "CatBoost, regression",
    "PyTorch MLP, softmax",
)


@pytest.mark.parametrize("name", MUST_PASS)
def test_predicts_through_sql_as_its_framework(db: psycopg.Connection, name: str) -> None:
    library = {"XGBoost": "xgboost", "CatBoost": "catboost", "PyTorch": "torch", "LightGBM": "lightgbm"}
    pytest.importorskip(next((m for word, m in library.items() if word in name), "skl2onnx"))
    exported = models.exported(name)
    rows = [json.dumps(row) for row in as_objects(exported.frame)]
    db.execute(
        "SELECT distill.register_model('theirs', %s, features => %s, task => %s, classes => %s)",
        (
            exported.artifact,
            [f.name for f in exported.frame.features],
            exported.task,
            list(exported.classes) or None,
        ),
    )
    function = (
        "ARRAY[distill.predict('theirs', r)]"
        if exported.task == "regression"
        else "distill.predict_proba('theirs', r)"
    )
    found = db.execute(
        f"SELECT {function} FROM unnest(%s::jsonb[]) WITH ORDINALITY u(r, o) ORDER BY o", (rows,)
    ).fetchall()
    expected = exported.expected[:ROWS]
    spread = max(float(np.ptp(exported.expected)), 1.0) if exported.task == "regression" else 1.0
    assert np.abs(np.array([row[0] for row in found]) - expected).max() <= third_party.TOLERANCE * spread


def as_objects(frame: Any) -> list[dict[str, Any]]:
    columns = {}
    for feature in frame.features:
        column = frame.columns[feature.name]
        values = column.to_objects() if isinstance(column, Strings) else column
        columns[feature.name] = [
            v if v is None or isinstance(v, str) else None if np.isnan(v) else float(v) for v in values[:ROWS]
        ]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_operators_give_what_the_onnx_package_says_they_give() -> None:
    found = third_party.reference_differences()
    assert len(found) > 10
    assert {name: difference for name, difference in found.items() if difference > 1e-6} == {}


@pytest.mark.extra  # it converts them all again
def test_the_documented_table_is_up_to_date() -> None:
    for module in ("catboost", "lightgbm", "torch", "xgboost"):
        pytest.importorskip(module)
    assert third_party.exports_table() in third_party.TABLE.read_text()
