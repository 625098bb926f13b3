"""AutoGluon's own distillation, run by an interpreter of its own: it wants other versions of what we use.

``distilled`` writes a set's rows as CSV, runs `autogluon_worker.py` there and reads what it predicts. The environment is made in
build/bench/autogluon where no interpreter is given.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pandas as pd
from pg_distill.frame import FloatArray, Frame

__all__ = ["SETS", "distilled"]

SETS = ("banana", "segment", "splice", "contraceptive", "german", "vehicle", "credit_data", "churn")
REQUIREMENTS = ("autogluon.tabular[lightgbm,catboost,xgboost]==1.6.*", "torch")
"""Its boosted trees and its network; its other network wants fastai, which the first does without."""
SECONDS = 60
"""Of its fit, and of its distill."""
METRICS = {"accuracy": "accuracy", "roc_auc": "roc_auc", "average_precision": "average_precision", "r2": "r2"}


class Distilled(NamedTuple):
    """Its best distilled student, by its own validation: outputs on the test rows, and the mean of one-row calls."""

    outputs: FloatArray
    latency_ms: float


def interpreter(options: argparse.Namespace) -> str:
    """Return a Python that has AutoGluon; made where the option names none."""
    if options.autogluon != "make":
        return str(options.autogluon)
    place = options.output.parent / "autogluon"
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    return str(python)


def _table(frame: Frame) -> pd.DataFrame:
    columns = {name: frame.number(name) for name in frame.number_names}
    columns |= {name: frame.strings(name).to_objects() for name in frame.string_names}
    return pd.DataFrame(columns)


def distilled(data: datasets.DataSet, number: int, options: argparse.Namespace) -> Distilled:
    """Fit and distil on the rows that are not test, 60 s each."""
    train, test = datasets.split(len(data.y), number)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = _table(data.frame.take(train))
        rows["target"] = data.y[train]
        rows.to_csv(folder / "train.csv", index=False)
        _table(data.frame.take(test)).to_csv(folder / "test.csv", index=False)
        asked = {
            "task": data.task,
            "metric": METRICS[data.metric],
            "classes": len(data.classes),
            "seconds": SECONDS,
        }
        (folder / "asked.json").write_text(json.dumps(asked))
        worker = Path(__file__).with_name("autogluon_worker.py")
        subprocess.run(
            [interpreter(options), str(worker), place], check=True, cwd=place, stdout=subprocess.DEVNULL
        )
        found = np.load(folder / "found.npz")
        return Distilled(found["outputs"], float(found["latency_ms"]))
