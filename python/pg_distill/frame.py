"""A table of rows as numpy columns: what a sample becomes, and what every pure room takes in.

Numbers, integers, booleans and timestamps (seconds since 1970 UTC) are float64 arrays in which NaN stands for
NULL: float64 holds every integer up to 2**53 and microseconds until 2112. Strings, whether categories or texts, are
dictionary-encoded. A vector column is an (n, length) array of float32 or float64, a row of NaN for NULL.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

__all__ = [
    "MAX_CATEGORIES",
    "MAX_LABELS",
    "MAX_LENGTH",
    "MIN_COUNT",
    "STRINGS",
    "Cut",
    "Feature",
    "FloatArray",
    "Frame",
    "Kind",
    "ModelForm",
    "OfKind",
    "Strings",
    "Task",
    "VectorArray",
    "has_label",
    "label_sets",
    "members",
    "show_vector",
]

Kind = Literal["number", "integer", "boolean", "timestamp", "string", "text", "vector"]
"""A string is a category, a text is words: the same values, that students read differently. A vector is so many numbers."""
STRINGS: frozenset[Kind] = frozenset({"string", "text"})
"""The kinds whose values are strings, not numbers."""
ModelForm = Literal["predict", "sql", "cascade"]
"""How a model answers: by predict, as an expression that the statement holds, or by predict with its teacher behind it."""
Task = Literal["binary", "multiclass", "multilabel", "regression"]
"""Of several labels each class is a question of its own: a row has none, some or all of them."""
Cut = float | tuple[float, ...] | None
"""The probability from which the last of two classes is named, or of several labels each; None is one half."""
FloatArray = npt.NDArray[np.float64]
VectorArray = npt.NDArray[np.floating[Any]]
MAX_LABELS = 62
"""Classes that a model of several labels has at most: a row's labels are the bits of one integer."""
MAX_LENGTH = 2048
"""Numbers of a vector at most."""
MIN_COUNT = 3
"""A value of a category in fewer rows says nothing by itself; its rows teach what is said of other values instead."""
MAX_CATEGORIES = 1000
"""Most frequent values of a column that a student tells apart: more than a country's airports, less than keys."""


def label_sets(chosen: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return (n,) each row's labels as one integer, bit k for class k, of (n, K) truth values."""
    bits = np.left_shift(np.int64(1), np.arange(chosen.shape[1], dtype=np.int64))
    return np.asarray((chosen != 0).astype(np.int64) @ bits, np.int64)


def members(y: npt.NDArray[Any], n_classes: int) -> npt.NDArray[np.bool_]:
    """Return (n, K) which classes each row of `label_sets` has; none of a row without a label, -1."""
    known = np.where(y >= 0, y, 0).astype(np.int64)
    return np.asarray(np.right_shift(known[:, None], np.arange(n_classes, dtype=np.int64)) & 1, bool)


def has_label(y: npt.NDArray[Any], task: Task) -> npt.NDArray[np.bool_]:
    """Return which of the (n,) values, class positions or `label_sets` are known."""
    return np.asarray(np.isfinite(y) if task == "regression" else y >= 0)


class OfKind:
    """What the kind of a column says of its values, for whatever has ``kind`` and ``length``."""

    kind: Kind
    length: int

    @property
    def is_string(self) -> bool:
        """Whether its values are strings, not numbers."""
        return self.kind in STRINGS

    @property
    def is_vector(self) -> bool:
        """Whether a value is several numbers."""
        return self.kind == "vector"

    @property
    def width(self) -> int:
        """The numbers, or strings, of a value: more than 1 of a vector."""
        return self.length or 1


@dataclass(frozen=True)
class Feature(OfKind):
    """A named column and its kind; ``length`` is the numbers of a vector where they are known, 0 for other kinds."""

    name: str
    kind: Kind
    length: int = 0


@dataclass(frozen=True)
class Strings:
    """A dictionary-encoded string column: ``codes`` (n,) int32 into ``categories``, -1 for NULL."""

    codes: npt.NDArray[np.int32]
    categories: tuple[str, ...]

    @classmethod
    def from_values(cls, values: Sequence[str | None]) -> Strings:
        """Encode ``values``; categories are sorted, so that equal columns have equal codes."""
        categories = tuple(sorted({v for v in values if v is not None}))
        index = {value: code for code, value in enumerate(categories)}
        codes = np.fromiter((-1 if v is None else index[v] for v in values), np.int32, len(values))
        return cls(codes, categories)

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: npt.NDArray[Any]) -> Strings:
        """Return the rows chosen by an index or boolean array."""
        return Strings(self.codes[rows], self.categories)

    def compact(self) -> Strings:
        """Return the same values without the categories that none of them has: of a few rows of long texts these are most."""
        used = np.unique(self.codes[self.codes >= 0])
        if len(used) == len(self.categories):
            return self
        places = np.full(len(self.categories) + 1, -1, np.int32)  # the last is that of -1, NULL
        places[used] = np.arange(len(used), dtype=np.int32)
        return Strings(places[self.codes], tuple(self.categories[code] for code in used))

    def to_objects(self, null: str | None = None) -> npt.NDArray[np.object_]:
        """Return the values as an object array, ``null`` in the place of NULL."""
        if len(self.codes) < len(
            self.categories
        ):  # a few rows of many: their values are fewer than the table's
            values = np.empty(len(self.codes), object)
            values[:] = [null if code < 0 else self.categories[code] for code in self.codes.tolist()]
            return values
        table = np.array([*self.categories, null], dtype=object)
        return table[self.codes]


Column = FloatArray | VectorArray | Strings

SHOWN = 4  # numbers of a vector in a message


def show_vector(numbers: Sequence[float]) -> str:
    """Write a vector for an error's detail: its first numbers, and how many they are."""
    first = ", ".join(f"{number:.6g}" for number in numbers[:SHOWN])
    return f"[{first}]" if len(numbers) <= SHOWN else f"[{first}, ... {len(numbers)} numbers]"


@dataclass(frozen=True)
class Frame:
    """Rows as columns, in the order of ``features``; every column has the same length."""

    features: tuple[Feature, ...]
    columns: Mapping[str, Column]

    def __post_init__(self) -> None:
        # How long its vectors are the columns know.
        if any(f.kind == "vector" for f in self.features):
            known = (
                replace(f, length=self.columns[f.name].shape[1]) if f.kind == "vector" else f  # type: ignore[union-attr]
                for f in self.features
            )
            object.__setattr__(self, "features", tuple(known))

    def __len__(self) -> int:
        return len(self.columns[self.features[0].name]) if self.features else 0

    def number(self, name: str) -> FloatArray:
        """Return a column that is neither of strings nor of vectors."""
        column = self.columns[name]
        assert not isinstance(column, Strings) and column.ndim == 1, name
        return cast(FloatArray, column)

    def vector(self, name: str) -> VectorArray:
        """Return a column of vectors, (n, length)."""
        column = self.columns[name]
        assert not isinstance(column, Strings) and column.ndim == 2, name
        return column

    def strings(self, name: str) -> Strings:
        """Return a column of categories or texts."""
        column = self.columns[name]
        assert isinstance(column, Strings), name
        return column

    @property
    def number_names(self) -> tuple[str, ...]:
        """Names of the columns that are neither of strings nor of vectors, in order."""
        return tuple(f.name for f in self.features if not f.is_string and not f.is_vector)

    @property
    def vector_names(self) -> tuple[str, ...]:
        """Names of the columns of vectors, in order."""
        return tuple(f.name for f in self.features if f.is_vector)

    @property
    def string_names(self) -> tuple[str, ...]:
        """Names of the columns of categories, in order."""
        return tuple(f.name for f in self.features if f.kind == "string")

    @property
    def text_names(self) -> tuple[str, ...]:
        """Names of the columns of texts, in order."""
        return tuple(f.name for f in self.features if f.kind == "text")

    def numbers(self) -> FloatArray:
        """Return the columns that are neither of strings nor of vectors as one (n, d) float64 array."""
        names = self.number_names
        out = np.empty((len(self), len(names)), np.float64)
        for position, name in enumerate(names):
            out[:, position] = self.number(name)
        return out

    def cells(self) -> FloatArray:
        """Return all that is no string as one (n, d) float64 array: a number each, and those of each vector, in order."""
        features = [f for f in self.features if not f.is_string]
        out = np.empty((len(self), sum(f.width for f in features)), np.float64)
        start = 0
        for feature in features:
            column = self.columns[feature.name]
            assert not isinstance(column, Strings)
            out[:, start : start + feature.width] = column.reshape(len(self), -1)
            start += feature.width
        return out

    def select(self, names: Sequence[str]) -> Frame:
        """Return some of the columns, in the order of ``names``."""
        kinds = {f.name: f for f in self.features}
        return Frame(tuple(kinds[name] for name in names), {name: self.columns[name] for name in names})

    def with_texts(self, names: Collection[str]) -> Frame:
        """Return the frame with these columns of strings as texts, and all others as categories."""
        features = (
            Feature(f.name, "text" if f.name in names else "string") if f.is_string else f
            for f in self.features
        )
        return Frame(tuple(features), self.columns)

    def take(self, rows: npt.NDArray[Any]) -> Frame:
        """Return the rows chosen by an index or boolean array."""
        return Frame(
            self.features,
            {
                name: column.take(rows) if isinstance(column, Strings) else column[rows]
                for name, column in self.columns.items()
            },
        )

    def show_row(self, position: int) -> str:
        """Write a row for an error's detail."""
        parts = []
        for feature in self.features:
            column = self.columns[feature.name]
            if feature.is_vector:
                parts.append(f"{feature.name} = {show_vector(self.vector(feature.name)[position].tolist())}")
                continue
            value = column.to_objects()[position] if isinstance(column, Strings) else float(column[position])
            parts.append(f"{feature.name} = {value!r}")
        return ", ".join(parts)

    @staticmethod
    def concat(frames: Sequence[Frame]) -> Frame:
        """Stack frames of the same features; string categories are merged."""
        first = frames[0]
        columns: dict[str, Column] = {}
        for feature in first.features:
            if not feature.is_string:
                columns[feature.name] = np.concatenate([f.columns[feature.name] for f in frames])
                continue
            parts = [f.strings(feature.name) for f in frames]
            if all(p.categories == parts[0].categories for p in parts):
                codes = np.concatenate([p.codes for p in parts])
                columns[feature.name] = Strings(codes, parts[0].categories)
                continue
            categories = tuple(sorted(set().union(*(p.categories for p in parts))))
            index = {value: code for code, value in enumerate(categories)}
            recoded = [np.array([*(index[c] for c in p.categories), -1], np.int32)[p.codes] for p in parts]
            columns[feature.name] = Strings(np.concatenate(recoded), categories)
        return Frame(first.features, columns)
