"""Columns of vectors on their way out of the database: the bytes of arrays, as one numpy array (n, length).

Two forms are read: what array_send sends, the same on every machine, and what the server itself keeps, faster, in a backend.
NULL elements, arrays of arrays and other lengths than most rows have are told by the headers, at no cost a number.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from pg_distill.errors import InvalidData, LimitExceeded
from pg_distill.frame import MAX_LENGTH, VectorArray, show_vector

__all__ = ["check_finite", "check_length", "kept_vectors", "not_finite", "sent_vectors", "wrong_length"]

_HEADER = (
    ("dimensions", "i4"),
    ("flags", "i4"),  # not 0 where an element is NULL
    ("type", "i4"),
    ("size", "i4"),
    ("lower", "i4"),
)  # of an array of one dimension, in either form
_HEADER_BYTES = 20
_DOUBLE = 701  # the type of float8

Row = Callable[[int], str]
"""Says which row it is, for a message."""


def sent_vectors(
    data: bytes, sizes: npt.NDArray[Any], name: str, row: Row, length: int | None = None
) -> VectorArray:
    """Read what array_send made of a column, one row behind the other.

    Parameters
    ----------
    sizes
        (n,) bytes of each row; 0 for NULL.
    length
        How many numbers are expected; None for as many as most rows have.

    Returns
    -------
    (n, length) float32 or float64; a row of NaN for NULL.

    Raises
    ------
    InvalidData
        A row is no vector of finite numbers as long as the others; it is named.
    LimitExceeded
        They are longer than a vector may be.
    """
    return _read(data, sizes, ">", name, row, length)


def kept_vectors(rows: Sequence[bytes | None], name: str, row: Row, length: int) -> VectorArray:
    """Read what ``distill._array_bytes`` made of a column, as `sent_vectors` does."""
    try:
        data, sizes = b"".join(rows), np.fromiter(map(len, rows), np.int64, len(rows))  # type: ignore[arg-type]
    except TypeError:
        given = [b"" if r is None else r for r in rows]
        data, sizes = b"".join(given), np.fromiter(map(len, given), np.int64, len(given))
    return _read(data, sizes, "=", name, row, length)


def _read(
    data: bytes,
    sizes: npt.NDArray[Any],
    order: Literal[">", "="],
    name: str,
    row: Row,
    length: int | None,
) -> VectorArray:
    there = np.flatnonzero(sizes)
    if not len(there):
        if length is None:
            raise InvalidData(
                f'column "{name}" is NULL in every row, so that nobody knows how long its vectors are'
            )
        return np.full((len(sizes), length), np.nan, np.float32)
    size = int(sizes[there[0]])
    if size <= _HEADER_BYTES or (sizes[there] != size).any():
        _refuse(data, sizes, order, name, row, length)
    double = struct.unpack_from(f"{order}i", data, 8)[0] == _DOUBLE
    element = f"{order}f{8 if double else 4}"
    cell = np.dtype([("bytes", f"{order}i4"), ("value", element)]) if order == ">" else np.dtype(element)
    count = (size - _HEADER_BYTES) // cell.itemsize
    kind = np.dtype([*((field, order + code) for field, code in _HEADER), ("cells", cell, (count,))])
    if kind.itemsize != size:
        _refuse(data, sizes, order, name, row, length)
    records = np.frombuffer(data, kind)
    good = (records["dimensions"] == 1) & (records["flags"] == 0) & (records["size"] == count)
    if not good.all() or length not in (None, count):
        _refuse(data, sizes, order, name, row, length)
    check_length(name, count)
    cells = records["cells"]["value"] if order == ">" else records["cells"]
    values: VectorArray = cells.astype(np.float64 if double else np.float32)
    if len(there) < len(sizes):
        out = np.full((len(sizes), count), np.nan, values.dtype)
        out[there] = values
        values = out
    check_finite(values, name, row)
    return values


def _refuse(
    data: bytes, sizes: npt.NDArray[Any], order: str, name: str, row: Row, length: int | None
) -> NoReturn:
    """Raise: name the first row that is no vector, or of another length than most have."""
    lengths = Counter(found for _, _, found in _lengths(data, sizes, order) if isinstance(found, int))
    expected = length if length is not None else max(lengths, key=lambda n: (lengths[n], n), default=0)
    check_length(name, expected)
    for position, start, found in _lengths(data, sizes, order):
        if found == expected:
            continue
        # In the message too: of an error inside of a function that returns rows PostgreSQL shows no more.
        which = row(position)
        if isinstance(found, str):
            raise InvalidData(f'vector "{name}" {found}{_where(which)}')
        shown = show_vector(_numbers(data, start, found, order))
        raise wrong_length(name, found, expected, which, shown, model=length is not None)
    raise InvalidData(f'column "{name}" does not hold arrays of numbers')


def _lengths(data: bytes, sizes: npt.NDArray[Any], order: str) -> Iterator[tuple[int, int, int | str]]:
    """Yield of each row that is not NULL its place, where it begins, and its numbers or what is wrong with it."""
    start = 0
    for position, size in enumerate(sizes.tolist()):
        if size:
            dimensions, flags = struct.unpack_from(f"{order}ii", data, start) if size >= 12 else (1, 0)
            if dimensions == 1 and size < _HEADER_BYTES:
                yield position, start, "is no array"
            elif dimensions == 0:
                yield position, start, 0
            elif dimensions > 1:
                yield position, start, f"is an array of {dimensions} dimensions"
            elif flags:
                yield position, start, "has a NULL among its numbers"
            else:
                yield position, start, struct.unpack_from(f"{order}i", data, start + 12)[0]
        start += size


def _numbers(data: bytes, start: int, count: int, order: str) -> list[float]:
    """Return the numbers of one array of one dimension without NULLs."""
    if not count:
        return []
    size = 8 if struct.unpack_from(f"{order}i", data, start + 8)[0] == _DOUBLE else 4
    element = f"{'i' if order == '>' else ''}{'d' if size == 8 else 'f'}"
    if start + _HEADER_BYTES + count * (size + 4 * (order == ">")) > len(data):
        return []
    return list(struct.unpack_from(order + element * count, data, start + _HEADER_BYTES))[
        len(element) - 1 :: len(element)
    ]


def _where(row: str | None) -> str:
    return f", in the row with {row}" if row else ""


def wrong_length(
    name: str,
    found: int,
    expected: int,
    row: str | None = None,
    shown: str | None = None,
    *,
    model: bool = True,
) -> InvalidData:
    """Return the error of a vector of another length than the model takes, or than most rows have."""
    whose = "the model takes" if model else "most rows have"
    return InvalidData(
        f'vector "{name}" has {found} numbers, where {whose} {expected}{_where(row)}',
        detail=f"It is {shown}." if shown else None,
        hint="Leave such rows out in the sample's query." if not model else None,
    )


def check_length(name: str, length: int) -> None:
    """Raise where a vector of ``length`` is too long, or empty."""
    if length > MAX_LENGTH:
        raise LimitExceeded(f'vector "{name}" has {length} numbers, limit is {MAX_LENGTH}')
    if length < 1:
        raise InvalidData(f'vector "{name}" is empty')


def check_finite(values: VectorArray, name: str, row: Row | None = None) -> None:
    """Raise InvalidData where a row has a number that is not finite; all NaN is NULL."""
    finite = np.isfinite(values)
    if finite.all():
        return
    bad = ~finite.all(axis=1) & ~np.isnan(values).all(axis=1)
    if bad.any():
        position = int(np.argmax(bad))
        raise not_finite(name, values[position], row(position) if row is not None else None)


def not_finite(name: str, vector: VectorArray, row: str | None = None) -> InvalidData:
    """Return the error of a vector that has NaN or infinity among its numbers."""
    place = int(np.argmin(np.isfinite(vector)))
    return InvalidData(
        f'vector "{name}" has {float(vector[place])} among its numbers{_where(row)}',
        detail=f"It is {show_vector(vector.tolist())}, and that is its number {place + 1}.",
        hint="A vector that is not known is NULL.",
    )
