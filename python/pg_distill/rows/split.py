"""How rows are divided into fit, select and test: by hash, by time, by group."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.frame import Column, FloatArray, Strings
from pg_distill.rows.learned import mix

__all__ = [
    "FIT",
    "LEFT_OUT",
    "SELECT",
    "SPLIT_NAMES",
    "TEST",
    "UNLABELLED",
    "IntArray",
    "folds_by_hash",
    "group_numbers",
    "salted",
    "split_by_hash",
    "split_by_time",
    "split_times",
]

IntArray = npt.NDArray[np.int64]
FIT, SELECT, TEST, UNLABELLED, LEFT_OUT = 0, 1, 2, 3, 4
SPLIT_NAMES = ("fit", "select", "test", "unlabelled")  # a row that is left out is in none
FIT_SHARE, SELECT_SHARE = 0.64, 0.16  # of the labelled rows; the rest is for test
FOLDS = 5  # of what is not test, as large as select; select is the first


def _places(hashes: npt.NDArray[Any]) -> FloatArray:
    """Return for each hash a place from 0 to 1."""
    return np.asarray((mix(hashes) >> np.uint64(11)).astype(np.float64) / 2.0**53)


def folds_by_hash(hashes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the fold of each row by its hash: 1 of what `split_by_hash` has select, 2 to ``FOLDS`` of fit, 0 of test."""
    place = _places(hashes)
    others = 2 + np.floor(place / FIT_SHARE * (FOLDS - 1))
    return np.where(
        place < FIT_SHARE, np.minimum(others, FOLDS), np.where(place < FIT_SHARE + SELECT_SHARE, 1, 0)
    ).astype(np.uint8)


def split_by_hash(hashes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the split of each row, a function of its hash."""
    place = _places(hashes)
    return np.where(place < FIT_SHARE, FIT, np.where(place < FIT_SHARE + SELECT_SHARE, SELECT, TEST)).astype(
        np.uint8
    )


def split_times(column: Column, groups: npt.NDArray[Any] | None) -> FloatArray:
    """Return the time by which each row is put on its side: its own, or that of the newest row of its group."""
    assert not isinstance(column, Strings)
    if groups is None or not len(column):
        return np.asarray(column, np.float64)
    _, group = np.unique(groups, return_inverse=True)
    newest = np.full(group.max() + 1, -np.inf)
    np.maximum.at(newest, group, column)
    return np.asarray(newest[group])


def split_by_time(times: FloatArray) -> tuple[npt.NDArray[np.uint8], float | None]:
    """Return the split, and the newest time of fit and select."""
    if not len(times):
        return np.empty(0, np.uint8), None
    # inverted_cdf: a cut is a time that occurs, and rows of equal time stay on one side.
    first, second = np.quantile(times, [FIT_SHARE, FIT_SHARE + SELECT_SHARE], method="inverted_cdf")
    return np.where(times <= first, FIT, np.where(times <= second, SELECT, TEST)).astype(np.uint8), float(
        second
    )


def _group_hashes(column: Column, seed: int) -> npt.NDArray[Any]:
    """Return (n,) uint64: equal for rows of a group, and other ones with another seed."""
    return salted(group_numbers(column), seed)


def group_numbers(column: Column) -> npt.NDArray[Any]:
    """Return (n,) uint64: equal for rows of a group, the same in every run."""
    if not isinstance(column, Strings):
        return (column + 0.0).view(np.uint64)  # -0.0 is 0.0
    return np.array([*map(_text_number, column.categories), 0], np.uint64)[column.codes]


def _text_number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def salted(numbers: npt.NDArray[Any], seed: int) -> npt.NDArray[Any]:
    """Return hashes that another seed makes others of."""
    return numbers ^ np.uint64(_text_number(f"seed {seed}"))
