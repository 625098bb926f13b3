"""Vectors of one row as a graph reads them: from JSON or an array, checked, number after number."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.errors import DatatypeMismatch, InvalidData
from pg_distill.frame import VectorArray
from pg_distill.onnx_model.signature import FeatureSpec
from pg_distill.onnx_model.values import null_refused, wrong_type
from pg_distill.rows import canonical
from pg_distill.rows.vectors import kept_vectors, not_finite, wrong_length

__all__ = ["Segment", "read_bytes", "read_vector", "spread"]

_HEADER_BYTES = 20
_SINGLE = 700  # the type of float4


def read_vector(feature: FeatureSpec, value: Any, type_name: str | None = None) -> list[float]:
    """Return a vector's numbers from what JSON has for it: an array, or pgvector's text of one; NaN throughout for NULL.

    Raises
    ------
    DatatypeMismatch
        It is something else, or an element is no number.
    InvalidData
        It is of another length.
    """
    if value is None:
        return [math.nan] * feature.length
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise wrong_type(feature, "string") from None
    if not isinstance(value, list):
        raise wrong_type(feature, type(value).__name__)
    if len(value) != feature.length:
        raise wrong_length(feature.name, len(value), feature.length)
    for kind in set(map(type, value)) - {float, int}:
        value = [_number(feature, number, kind) if type(number) is kind else number for number in value]
    if type_name is not None and canonical.is_single(type_name):
        # JSON has the shortest decimal that tells the column's numbers apart.
        with np.errstate(over="ignore"):
            return np.array(value, np.float32).tolist()  # type: ignore[no-any-return]
    return list(value)


def _number(feature: FeatureSpec, number: Any, kind: type) -> float:
    if number is None or kind in (list, dict, bool):
        raise DatatypeMismatch(
            f'vector "{feature.name}" holds {"NULL" if number is None else kind.__name__}, where it has numbers'
        )
    return canonical.read_number(feature.name, feature.kind, number)


def spread(features: Sequence[FeatureSpec]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """Return what makes one row, vectors already read, into the values of an input."""

    def pick(row: Mapping[str, Any]) -> Sequence[Any]:
        found: list[Any] = []
        for feature in features:
            if feature.is_vector:
                found.extend(row[feature.name])
            else:
                found.append(row[feature.name])
        return found

    return pick


def read_bytes(feature: FeatureSpec, value: bytes | None) -> VectorArray:
    """Return a vector's numbers from the bytes of the server's own array; NaN throughout for NULL."""
    if value == b"":
        raise InvalidData(f'vector "{feature.name}" is no array')
    vector: VectorArray = kept_vectors([value], feature.name, lambda _: "", feature.length)[0]
    return vector


class Segment:
    """The place of one vector in an input's buffer for one row."""

    def __init__(self, feature: FeatureSpec, cells: VectorArray) -> None:
        self.feature = feature
        self._cells = cells
        self._zeros: npt.NDArray[Any] = np.zeros(len(cells), cells.dtype)
        self._dot = cells.dot

        self._bytes = _HEADER_BYTES + 4 * len(cells)
        self._view = memoryview(cells).cast("B") if cells.dtype == np.float32 else None  # type: ignore[arg-type]
        self._header = struct.pack("=4i", 1, 0, _SINGLE, len(cells))  # of one dimension and no NULL

    def take(self, value: bytes | None) -> None:
        """Write a vector from its bytes, those of the server's own array; NULL is NaN throughout."""
        if value is None:
            self._cells[:] = math.nan
        elif self._view is not None and len(value) == self._bytes and value.startswith(self._header):
            self._view[:] = value[_HEADER_BYTES:]
        else:
            self._cells[:] = read_bytes(self.feature, value)

    def check(self) -> None:
        """Raise where a number is not finite, but that all are NaN is NULL."""
        if self._dot(self._zeros) == 0.0:  # as it is of no NaN and no infinity
            return
        if not np.isnan(self._cells).all():
            raise not_finite(self.feature.name, self._cells)
        if self.feature.null == "error":
            raise null_refused(self.feature)
