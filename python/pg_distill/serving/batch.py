"""Arrays of arrays: many rows in one call."""

from __future__ import annotations

import numpy as np

from pg_distill.database.protocol import Database
from pg_distill.errors import (
    InvalidData,
    LimitExceeded,
    NullNotAllowed,
)
from pg_distill.frame import FloatArray
from pg_distill.serving.predictors import Predictor

__all__ = ["array_cells", "predict_batch", "predict_class_batch"]

MAX_BATCH_ROWS = 500_000
"""Rows of one array: PL/Python makes an array of so many predictions in some 0.2 s, and looks for no interrupt meanwhile."""


def array_cells(arrays: bytes, width: int) -> FloatArray:
    """Return the (n, width) numbers of n arrays of one dimension, as `distill._array_bytes` gives them.

    That is how the server keeps a float8[] without NULLs: a header (dimensions, offset of the data, element type,
    and size and lower bound of each dimension, four bytes each), then the numbers.
    """
    return np.frombuffer(arrays, np.dtype([("header", "V20"), ("cells", np.float64, (width,))]))["cells"]


def predict_batch(db: Database, predictor: Predictor, array: bytes | None) -> list[float]:
    """Return the prediction of each row of a two-dimensional array of numbers, given as its bytes."""
    predictor.require_number()
    return _run_batch(db, predictor, array)[:, -1].tolist()  # type: ignore[no-any-return]


def predict_class_batch(db: Database, predictor: Predictor, array: bytes | None) -> list[str]:
    """Return the class of each row of a two-dimensional array of numbers, given as its bytes: see `Predictor.class_names`."""
    predictor.require_classes()
    return predictor.class_names(_run_batch(db, predictor, array))


def _run_batch(db: Database, predictor: Predictor, array: bytes | None) -> FloatArray:
    """Return the outputs (n, K) for the rows of an array."""
    if array is None:
        raise NullNotAllowed("features must not be NULL")
    if len(array) < 4:
        raise InvalidData("features must be the bytes of an array")
    header = np.frombuffer(array, np.int32, min(len(array), 20) // 4)
    dimensions = int(header[0])
    if dimensions == 0:
        return np.empty((0, 1))
    if dimensions != 2:
        raise InvalidData(f"features must be an array of 2 dimensions, rows and columns, not {dimensions}")
    rows, columns = (int(n) for n in header[3:5]) if len(header) == 5 else (-1, -1)
    # The internal function may be called by anybody who may predict, with bytes that are no array.
    if rows < 0 or columns < 0 or len(array) != _ARRAY_HEADER_BYTES + 8 * rows * columns:
        raise InvalidData("features must be the bytes of an array")
    if rows > MAX_BATCH_ROWS:
        raise LimitExceeded(
            f"features have {rows} rows, limit is {MAX_BATCH_ROWS}",
            hint="Use distill.score, which takes any number.",
        )
    cells = np.frombuffer(array, np.float64, rows * columns, _ARRAY_HEADER_BYTES).reshape(rows, columns)
    return predictor.in_slices(db, rows, lambda part: predictor.run_many(cells[part]))


_ARRAY_HEADER_BYTES = (
    28  # of two dimensions: number of them, offset, element type, two sizes, two lower bounds
)
