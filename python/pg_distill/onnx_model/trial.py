"""A file tried before it is taken: on made-up rows, extreme ones, alone and together."""

from __future__ import annotations

import ctypes
import math
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pg_distill.errors import (
    InvalidData,
    LimitExceeded,
    NullNotAllowed,
    PgDistillError,
)
from pg_distill.frame import Column, Feature, FloatArray, Frame, Strings
from pg_distill.onnx_model.limits import DEFAULT_LIMITS, Limits
from pg_distill.onnx_model.nodes import (
    SUM_TOLERANCE,
)
from pg_distill.onnx_model.running import synthetic
from pg_distill.onnx_model.session import Model
from pg_distill.onnx_model.signature import (
    Signature,
)

if TYPE_CHECKING:
    from pg_distill.onnx_model.text_model import TextModel

__all__ = ["check_predictions", "peak_bytes", "run_extremes", "timed", "trial_run", "try_model"]

_ROWS_ALONE = 8  # rows that are predicted alone and in a batch
_TOGETHER_TOLERANCE = 1e-5  # between a row with some rows and with as many others
_ALONE_TOLERANCE = 1e-3  # relative and absolute, between a row alone and in a batch


def trial_run(
    artifact: bytes, signature: Signature, rows: Frame | None = None, limits: Limits = DEFAULT_LIMITS
) -> FloatArray:
    """Open ``artifact`` as a backend will and run ``rows``; return their predictions.

    One row first, then twice as many, up to the most that a backend runs at once; ``rows`` are repeated as often as it
    takes. Batches stop growing where they would pass ``limits.run_seconds``. Where no rows are given
    some are made up, and what the model says of these is left to it: the predictions returned are none.

    Raises
    ------
    LimitExceeded
        Where a row takes too long, or the process grows by over ``limits.run_bytes``.
    InvalidData
        Where the model fails, gives something that is not finite, or no probabilities.
    NullNotAllowed
        Where rows hold a NULL that the model has no encoding for.
    """
    before = peak_bytes(reset=True)
    return try_model(Model(artifact, signature, run_bytes=limits.run_bytes), rows, limits, before)


def try_model(model: Model, rows: Frame | None, limits: Limits, before: int) -> FloatArray:
    """Run ``rows`` as `trial_run` says; ``before`` are the bytes that the process had before the model was opened."""
    given, signature = rows is not None, model.signature
    rows = rows if rows is not None else synthetic(signature)
    seconds = 0.0
    # One run a time, on a heap that is free: what runs leave scattered over it can double what the next one seems to take.
    for size in _growing(model.most_rows(rows)):
        if 4 * seconds >= limits.run_seconds:  # twice the rows, with a margin of two
            break
        batch = rows.take(np.resize(np.arange(len(rows)), size))
        started = time.perf_counter()
        try:
            check_predictions(_timed(model, batch, limits), signature)
        except (InvalidData, NullNotAllowed):
            if given:
                raise
        seconds = time.perf_counter() - started
        grown = peak_bytes() - before
        if grown > limits.run_bytes:
            raise LimitExceeded(f"model takes {grown} bytes for {size} rows, limit is {limits.run_bytes}")
        peak_bytes(reset=True)
    if not given:
        return np.empty((0, signature.width))
    predictions = model.run_frame(rows)
    check_predictions(predictions, signature)
    _check_independence(model, rows, predictions)
    return predictions


def _growing(most: int) -> Iterator[int]:
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most


def _timed(model: Model, rows: Frame, limits: Limits) -> FloatArray:
    return timed(model, partial(model.run_frame, rows), len(rows), limits)


def timed(model: Model | TextModel, run: Callable[[], FloatArray], count: int, limits: Limits) -> FloatArray:
    """Return what a run of ``count`` rows gives; LimitExceeded where it takes too long, or more memory than there is."""
    timer = threading.Timer(limits.run_seconds, model.terminate)
    timer.start()
    started = time.perf_counter()
    try:
        predictions = run()
    except PgDistillError as error:
        if time.perf_counter() - started >= limits.run_seconds:
            raise LimitExceeded(f"model takes over {limits.run_seconds} s for {count} rows") from error
        if "alloc" in (error.detail or ""):
            raise LimitExceeded(f"model runs out of memory on {count} rows", detail=error.detail) from error
        raise
    finally:
        timer.cancel()
    if time.perf_counter() - started >= limits.run_seconds:
        raise LimitExceeded(f"model takes over {limits.run_seconds} s for {count} rows")
    return predictions


# Where types end, and where functions of numbers do something else.
_EXTREME_NUMBERS = (
    *(
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.0,
        -1.0,
        2.0,
        -2.0,
        127.0,
        -128.0,
        128.0,
        255.0,
        256.0,
        -129.0,
        32767.0,
        -32768.0,
        65536.0,
    ),
    *(
        2.0**24 + 1,
        2.0**31 - 1,
        -(2.0**31),
        2.0**31,
        2.0**32,
        2.0**53,
        2.0**62,
        2.0**63 - 1024,
        -(2.0**63),
        2.0**63,
        2.0**64,
    ),
    *(
        1e9,
        -1e9,
        3.4e38,
        -3.4e38,
        3.5e38,
        1e100,
        1e308,
        -1e308,
        math.inf,
        -math.inf,
        math.nan,
        1e-38,
        1e-40,
        5e-324,
        -5e-324,
    ),
)


_EXTREME_TEXTS = (
    "",
    " ",
    "a",
    "nan",
    "1e400",
    "-9223372036854775809",
    "0x",
    "\u202e",
    "\U0010ffff",
    "\x01",
)


_EXTREME_ROWS = 64  # of values drawn for each feature, beside those in which all have the same
_EXTREME_SECONDS = 2.0  # for the extremes of a slow model


def _longest_text(model: Model, limits: Limits) -> int:
    """Return how many characters an extreme text has: one that the model takes."""
    cost = model.signature.cost
    for count in (10_000, 1000, 100):
        if cost is None or cost.rows(limits.run_bytes, count) >= 1:
            return count
    return 10


def _extremes(signature: Signature, characters: int) -> Frame:
    """Return rows of extreme values: those in which all features have the same, those of two in turns, and some at random."""
    rng = np.random.default_rng(0)
    texts = (*_EXTREME_TEXTS, "x" * characters)
    element = {i: spec.element for spec in signature.inputs for i in spec.features}
    columns: dict[str, Column] = {}
    count = len(_EXTREME_NUMBERS)
    same = np.arange(count)
    for position, spec in enumerate(signature.features):
        # In the second part each feature meets another value than its neighbour: the least number over -1 is a pair of these.
        turned = np.roll(same, position * 7 + 1) if position % 2 else same
        places = np.concatenate([same, turned, rng.integers(0, count, _EXTREME_ROWS)])
        if spec.is_string:
            columns[spec.name] = Strings.from_values([texts[i % len(texts)][:characters] for i in places])
            continue
        values = np.array(_EXTREME_NUMBERS)[places]
        if spec.is_vector:
            # Of finite numbers, as all vectors are; neighbours are others.
            known = np.clip(np.nan_to_num(values), -3.4e38, 3.4e38).astype(np.float32)
            if element[position] in ("int64", "int32", "bool"):
                known = (known > 0).astype(np.float32)
            columns[spec.name] = np.stack([np.roll(known, 3 * i) for i in range(spec.length)], axis=1)
            continue
        if element[position] in ("int64", "int32", "bool"):
            low, high = {"int64": (-(2.0**63), 2.0**63 - 1024), "int32": (-(2.0**31), 2.0**31 - 1)}.get(
                element[position], (0.0, 1.0)
            )
            values = np.clip(np.floor(np.nan_to_num(values)), low, high)
        if spec.null == "error":
            values = np.where(np.isnan(values), 0.0, values)
        columns[spec.name] = values
    return Frame(tuple(Feature(s.name, s.kind) for s in signature.features), columns)


def run_extremes(model: Model, limits: Limits) -> None:
    """Run rows of extreme values, alone and together. What the model says of them is left to it, an error too."""
    signature = model.signature
    rows = _extremes(signature, _longest_text(model, limits))
    began = time.monotonic()
    for i in range(len(rows)):
        with suppress(InvalidData, NullNotAllowed):
            _timed(model, rows.take(np.array([i])), limits)
        if time.monotonic() - began > _EXTREME_SECONDS:
            break
    each = (time.monotonic() - began) / (i + 1)
    together = rows.take(np.arange(min(len(rows), max(int(_EXTREME_SECONDS / max(each, 1e-9)), 1))))
    with suppress(InvalidData, NullNotAllowed):
        _timed(model, together, limits)
    row: dict[str, Any] = {
        f.name: "" if f.is_string else [0.0] * f.length if f.is_vector else 0.0 for f in signature.features
    }
    with suppress(InvalidData, NullNotAllowed):
        model.run_row(row)


def peak_bytes(*, reset: bool = False) -> int:
    """Return the most memory that this process has had in use, with ``reset`` from now on (on Linux).

    With ``reset`` free memory goes back to the system first: used again it would not be seen to grow.
    """
    try:
        if reset:
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _check_independence(model: Model, rows: Frame, predictions: FloatArray) -> None:
    """Refuse a graph that mixes rows: batch normalisation in training mode, one scale for the batch, softmax over rows."""
    if any(spec.batch == 1 for spec in model.signature.inputs):
        return  # its rows are run one by one
    chosen = np.unique(np.linspace(0, len(rows) - 1, _ROWS_ALONE).astype(np.int64))
    own = rows.take(chosen)
    depends = InvalidData(
        "model's prediction for a row depends on the other rows of its batch",
        hint="Export the model in evaluation mode, for one row at a time (batch size 1), or quantise it statically.",
    )
    # Batches of one shape are computed in one order, so that what other rows do not change is the same to the last digits.
    answers = []
    for companions in _companions(model.signature, rows, chosen):
        batch = Frame.concat([companions, own, companions])
        try:
            found = model.run_frame(batch)[len(companions) : len(companions) + len(own)]
        except PgDistillError:
            continue  # it has no answer for a companion
        answers.append(found)
        if not np.allclose(
            found, answers[0], rtol=_TOGETHER_TOLERANCE, atol=_TOGETHER_TOLERANCE, equal_nan=True
        ):
            raise depends
    alone = np.concatenate([model.run_frame(rows.take(chosen[i : i + 1])) for i in range(len(chosen))])
    same = np.isclose(alone, predictions[chosen], rtol=_ALONE_TOLERANCE, atol=_ALONE_TOLERANCE).all(axis=1)
    # Rounding differs with the batch, and may carry one row over the threshold of a tree.
    if same.mean() < 0.5:
        raise depends


def _companions(signature: Signature, rows: Frame, chosen: npt.NDArray[np.int64]) -> Iterator[Frame]:
    """Yield as many rows each time: the chosen ones, others, those with the greatest and least values, and greater ones."""
    count = len(chosen)
    yield rows.take(chosen)
    yield rows.take(np.roll(np.arange(len(rows)), 1)[np.resize(np.arange(len(rows)), count)])
    narrow = {
        signature.names[i] for spec in signature.inputs if spec.element not in _FLOATS for i in spec.features
    }
    for scale in (1.0, 8.0, -1000.0):
        columns: dict[str, Column] = {}
        for place, feature in enumerate(rows.features):
            column = rows.columns[feature.name]
            if isinstance(column, Strings):
                columns[feature.name] = column.take(np.resize(np.roll(np.arange(len(rows)), place), count))
                continue
            if column.ndim == 2:
                few = column[np.resize(np.arange(len(rows)), count)]
                columns[feature.name] = few if feature.name in narrow else few * column.dtype.type(scale)
                continue
            known = column[np.isfinite(column)]
            if not len(known):
                columns[feature.name] = np.resize(column, count)
                continue
            ends = np.resize(np.array([known.max(), known.min()]), count)
            columns[feature.name] = ends if feature.name in narrow else ends * scale
        yield Frame(rows.features, columns)


_FLOATS = ("float32", "float64")


def check_predictions(predictions: FloatArray, signature: Signature) -> None:
    """Raise InvalidData where predictions are not finite, or are to be probabilities and are none."""
    bad = np.flatnonzero(~np.isfinite(predictions).all(axis=1))
    if len(bad):
        raise InvalidData(
            f"model gives {predictions[bad[0]].tolist()} for row {bad[0] + 1}, expected finite numbers",
            hint="Leave out rows whose features are NaN or infinite, or impute them inside the model.",
        )
    if signature.task == "regression":
        return
    if signature.task == "multilabel":
        off = (predictions > 1 + SUM_TOLERANCE).any(axis=1)
    else:
        off = np.abs(predictions.sum(axis=1) - 1) > SUM_TOLERANCE
    off |= (predictions < -SUM_TOLERANCE).any(axis=1)
    if off.any():
        row = int(np.argmax(off))
        raise InvalidData(
            f"model gives {predictions[row].tolist()} for row {row + 1}, expected probabilities"
        )
