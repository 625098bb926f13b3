"""score and score_class: predictions for every row that a query gives, in constant memory.

What a row costs is its way in and out of Python, so rows go through in chunks: numbers come as the bytes of an array, of
which numpy reads a chunk at once (a list of 20 floats takes 0.8 us, these bytes 0.1 us), an integer key among
them, and predictions leave as the
bits of doubles in one text of integers, keys as one text with a separator, which PostgreSQL takes apart again (0.3 us a
row; as a row of PL/Python's 2 us, as elements of its arrays 1 us).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.database.backend import PlpyDatabase
from pg_distill.errors import DatatypeMismatch
from pg_distill.frame import Column, Feature, FloatArray, Frame, Strings
from pg_distill.onnx_model.signature import FeatureSpec
from pg_distill.quoting import quote_identifier
from pg_distill.rows.canonical import base_of, is_single
from pg_distill.rows.source import check_columns, resolve_source
from pg_distill.rows.vectors import kept_vectors
from pg_distill.serving.batch import array_cells
from pg_distill.serving.predictors import Predictor

__all__ = ["score", "score_class"]

CHUNK_ROWS, MOST_CHUNK_ROWS, MOST_CHUNK_CELLS = 4096, 16384, 2**20
"""Rows a fetch: onnxruntime is as fast as it gets from some 1,000 on. LIMIT wastes at most so many in the first, and as many as
were scored before in a later one, which has more so that what a fetch costs by itself does not count."""

Keys = tuple[str, str, str | None]
"""Keys as one text, their separator, and what stands for NULL among them."""


def score(
    db: PlpyDatabase, predictor: Predictor, query: str, key: str
) -> Iterator[tuple[str, str, str | None, str]]:
    """Return the keys of a query's rows and their predictions, an array of integers: their bits.

    Raises
    ------
    FeatureNotSupported
        The model has more than two classes.
    """
    predictor.require_number()

    def written(found: tuple[Keys, FloatArray]) -> tuple[str, str, str | None, str]:
        keys, outputs = found
        predictions = np.ascontiguousarray(outputs[:, -1], np.float64)
        bits = ",".join(map(str, predictions.view(np.int64).tolist()))
        return *keys, f"{{{bits}}}"

    return map(written, _outputs(db, predictor, query, key))


def score_class(
    db: PlpyDatabase, predictor: Predictor, query: str, key: str
) -> Iterator[tuple[str, str, str | None, str, str]]:
    """Return the keys of a query's rows and their classes, those of `Predictor.class_names`: as one text, and its separator.

    Raises
    ------
    FeatureNotSupported
        The model is a regression.
    """
    predictor.require_classes()

    def written(found: tuple[Keys, FloatArray]) -> tuple[str, str, str | None, str, str]:
        keys, outputs = found
        joined, separator, _ = _join(predictor.class_names(outputs))
        return *keys, joined, separator

    return map(written, _outputs(db, predictor, query, key))


def _outputs(
    db: PlpyDatabase, predictor: Predictor, query: str, key: str
) -> Iterator[tuple[Keys, FloatArray]]:
    """Check that the query fits the model, and return its rows' keys and the model's outputs (n, K), chunk by chunk.

    Parameters
    ----------
    query
        A query or the name of a relation, run as the caller and read-only; features are found by name.
    key
        The column that is handed back, as text.

    Raises
    ------
    UndefinedColumn, DatatypeMismatch
        The query's columns do not fit the model.
    """
    signature = predictor.signature
    source = resolve_source(db, query).read_as(signature.features)
    if key not in source.columns:
        source.kind(key)  # raises
    features = check_columns(source, signature.names)
    for feature, found in zip(signature.features, features, strict=True):
        if (feature.is_string, feature.is_vector) != (found.is_string, found.is_vector):
            raise DatatypeMismatch(
                f'column "{found.name}" is of type {source.shown(found.name)}, feature "{found.name}" of kind {feature.kind}'
            )
    numbers = [f for f in features if not f.is_string and not f.is_vector]
    vectors = [f for f in signature.features if f.is_vector]
    strings = [f for f in features if f.is_string]
    cells = [source.canonical(f.name) for f in numbers]
    name = f"s.{quote_identifier(key)}"
    columns = []
    whole = source.columns[key].base in ("int2", "int4", "int8")
    if whole:
        # Python writes an integer as PostgreSQL does; as the bits of a number it comes with the numbers, at no cost of its own.
        bits = f"distill._float8_of_bits(COALESCE(({name})::pg_catalog.int8, 0))"
        cells += [bits, f"(({name}) IS NULL)::pg_catalog.int4::pg_catalog.float8"]
    else:
        columns.append(f"({name})::pg_catalog.text AS k")
    if cells:
        columns.append(f"distill._array_bytes(ARRAY[{', '.join(cells)}]) AS n")
    columns += [
        f"{source.canonical(f.name, predictor.types.get(f.name))} AS s{i}" for i, f in enumerate(strings)
    ]
    for i, f in enumerate(vectors):
        array = source.canonical(f.name, predictor.types.get(f.name))
        double = source.columns[f.name].base == "_float8" and not is_single(predictor.types.get(f.name))
        columns.append(f"distill.{'_array_bytes' if double else '_vector_bytes'}({array}) AS v{i}")
    single = [
        i
        for i, f in enumerate(numbers)
        if base_of(predictor.types.get(f.name)) == "float4" and source.columns[f.name].base != "float4"
    ]
    statement = f"SELECT {', '.join(columns)} FROM ({source.query}\n) s"
    cursor = db.open_cursor([source.query], statement)

    def run(frame: Frame) -> FloatArray:
        def part(rows: slice) -> FloatArray:
            whole = rows.stop - rows.start == len(frame)
            return predictor.run_frame(frame if whole else frame.take(np.arange(rows.start, rows.stop)))

        return predictor.in_slices(db, len(frame), part)

    def chunks() -> Iterator[tuple[Keys, FloatArray]]:
        width = len(cells) + len(strings) + sum(f.length for f in vectors) + 1
        most = max(MOST_CHUNK_CELLS // width, 1)
        most = min(most, MOST_CHUNK_ROWS) if vectors else max(CHUNK_ROWS, min(MOST_CHUNK_ROWS, most))
        count = min(CHUNK_ROWS, most)
        while rows := cursor.fetch(count):
            count = min(2 * count, most)
            values = array_cells(b"".join(map(_numbers, rows)), len(cells)) if cells else _NOTHING
            if single:
                values = values.copy()
                with np.errstate(over="ignore"):
                    values[:, single] = values[:, single].astype(np.float32)
            frame = _frame(rows, values, numbers, strings)
            if vectors:
                frame = _with_vectors(frame, rows, vectors, _whole_keys(values) if whole else None, key)
            outputs = run(frame)
            yield _whole_keys(values) if whole else _join(list(map(_key, rows))), outputs
        cursor.close()

    return chunks()


_key = itemgetter("k")
_numbers = itemgetter("n")
_NOTHING = np.empty((0, 0))


class _Words(Strings):
    """A column of strings on its way through a model, which looks at it once: to code it first would take longer."""

    def __init__(self, values: npt.NDArray[np.object_]) -> None:
        object.__setattr__(self, "categories", ())
        object.__setattr__(self, "_values", values)

    _values: npt.NDArray[np.object_]

    @property
    def codes(self) -> npt.NDArray[np.int32]:
        missing = [value is None for value in self._values]
        return -np.array(missing, np.int32)

    def __len__(self) -> int:
        return len(self._values)

    def take(self, rows: npt.NDArray[Any]) -> Strings:
        return _Words(self._values[rows])

    def compact(self) -> Strings:
        return Strings.from_values(self._values.tolist())

    def to_objects(self, null: str | None = None) -> npt.NDArray[np.object_]:
        missing = np.equal(self._values, None)  # type: ignore[call-overload]
        return (
            np.array([null if v is None else v for v in self._values], object)
            if missing.any()
            else self._values
        )


def _whole_keys(values: FloatArray) -> Keys:
    """Return keys that are the bits of the last column but one, NULL where the last is not 0, as `_join` does."""
    keys = list(map(str, np.ascontiguousarray(values[:, -2]).view(np.int64).tolist()))
    missing = np.flatnonzero(values[:, -1])
    for i in missing:
        keys[i] = ""
    return ",".join(keys), ",", "" if len(missing) else None


def _join(keys: Sequence[str | None]) -> Keys:
    """Return keys as one text, a separator that is in none of them, and what stands for NULL, if that is needed."""
    separator = "\x1f"
    try:
        joined = separator.join(keys)  # type: ignore[arg-type]
        if joined.count(separator) == len(keys) - 1:
            return joined, separator, None
    except TypeError:
        pass  # a NULL
    used = set("".join(key for key in keys if key is not None))
    separator, null = islice((c for c in map(chr, range(1, sys.maxunicode)) if c not in used), 2)
    return separator.join(null if key is None else key for key in keys), separator, null


def _with_vectors(
    frame: Frame, rows: Sequence[dict[str, Any]], vectors: Sequence[FeatureSpec], keys: Keys | None, key: str
) -> Frame:
    """Return the frame with its columns of vectors."""

    def shown(position: int) -> str:
        value = rows[position]["k"] if keys is None else keys[0].split(keys[1])[position]
        return f"{key} = {value}"

    columns = {
        f.name: kept_vectors([row[f"v{i}"] for row in rows], f.name, shown, f.length)
        for i, f in enumerate(vectors)
    }
    return Frame((*frame.features, *(Feature(f.name, f.kind) for f in vectors)), {**frame.columns, **columns})


def _frame(
    rows: Sequence[dict[str, Any]],
    values: FloatArray,
    numbers: Sequence[Feature],
    strings: Sequence[Feature],
) -> Frame:
    columns: dict[str, Column] = {f.name: values[:, i] for i, f in enumerate(numbers)}
    if strings:
        pick = itemgetter(*(f"s{i}" for i in range(len(strings))))
        words = np.array(list(map(pick, rows)), object).reshape(len(rows), len(strings))
        columns.update({f.name: _Words(words[:, i]) for i, f in enumerate(strings)})
    return Frame((*numbers, *strings), columns)
