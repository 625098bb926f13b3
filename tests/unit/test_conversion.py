"""Pipelines of the field's libraries convert and predict as these do, or are refused in one sentence that says what to do."""

from __future__ import annotations

import numpy as np
import pipelines
import pytest
from pg_distill.measure.comparison import compare

# Nearly half of the time of all: no part of make quick.
SLOW = {
    "CalibratedClassifierCV, isotonic, deep forest",
    "CalibratedClassifierCV, sigmoid",
    "CalibratedClassifierCV, three classes",
    "CatBoost, early stopping",
    "GaussianProcessRegressor",
    "HalvingGridSearchCV",
    "HistGradientBoosting, numbered categories",
    "HistGradientBoostingClassifier on NULL",
    "HistGradientBoostingRegressor(poisson)",
    "IterativeImputer",
    "KNNImputer",
    "KNeighborsClassifier(weights='distance')",
    "SVC(probability=True)",
    "SVR",
    "SplineTransformer",
    "StackingClassifier",
    "StackingRegressor",
    "TunedThresholdClassifierCV",
    "VotingRegressor",
    "words beside numbers, logistic",
}
LIBRARIES = {"LightGBM": "lightgbm", "XGBoost": "xgboost", "CatBoost": "catboost"}


def _require(name: str) -> None:
    for module in ("sklearn", "skl2onnx", "pandas"):
        pytest.importorskip(module)
    for word, module in LIBRARIES.items():
        if word in name:
            pytest.importorskip(module)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in pipelines.PIPELINES],
)
def test_predicts_as_its_library(name: str) -> None:
    assert set(pipelines.PIPELINES) >= SLOW
    _require(name)
    tried = pipelines.try_pipeline(pipelines.fitted(name))
    assert tried.error is None, (tried.error, tried.error.detail)
    assert tried.difference is not None
    assert tried.difference.holds, tried.difference
    assert tried.difference.rows == pipelines.ROWS
    # Far better than is asked for: everything is computed where the library computes it, in its type.
    assert tried.difference.largest is None or tried.difference.largest < 1e-5


@pytest.mark.parametrize("name", pipelines.REFUSED)
def test_is_refused_with_what_to_do(name: str) -> None:
    _require(name)
    tried = pipelines.try_pipeline(pipelines.fitted(name))
    if tried.error is None:
        assert tried.difference is not None
        assert not tried.difference.holds  # by the check, with the row
        return
    assert tried.error.sqlstate == "0A000"
    assert len(tried.error.message) < 200
    assert "\n" not in tried.error.message
    assert tried.error.hint
    assert len(tried.error.detail or "") < 400


def test_each_of_several_labels_counts() -> None:
    """A label that is named otherwise is another answer, but for one that is as likely as not."""
    found = np.array([[0.9, 0.5], [0.9, 0.4]])
    named = np.array(["10", "10"], object)
    same = compare("multilabel", outputs=None, labels=named, found=found, found_labels=named)
    assert same.holds and same.classes == 0
    tied = compare(
        "multilabel", outputs=None, labels=np.array(["11", "10"], object), found=found, found_labels=named
    )
    assert tied.holds
    for other in ("11", "00", "1"):
        labels = np.array(["10", other], object)
        differs = compare("multilabel", outputs=None, labels=labels, found=found, found_labels=named)
        assert (differs.worst, differs.classes) == (1, 1)
