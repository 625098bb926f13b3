"""Values of rows as a graph reads them: numbers, times and strings, and what stands for NULL."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pg_distill.errors import (
    DatatypeMismatch,
    InvalidData,
    NullNotAllowed,
    UndefinedColumn,
)
from pg_distill.frame import STRINGS, FloatArray, Frame, VectorArray
from pg_distill.onnx_model.signature import NULL_STRING, Element, FeatureSpec, Null, Signature
from pg_distill.rows import canonical
from pg_distill.rows.vectors import check_finite, wrong_length

__all__ = [
    "INTEGER_RANGE",
    "NULL_STRINGS",
    "PACK",
    "checked",
    "checked_vectors",
    "decode",
    "encode",
    "null_refused",
    "read_number",
    "sigmoid",
    "softmax",
    "whole_number",
    "wrong_type",
]

PACK: Mapping[Element, str] = {"float32": "f", "float64": "d"}
NULL_STRINGS: Mapping[Null, str] = {"string": NULL_STRING, "empty": ""}


INTEGER_RANGE: Mapping[Element, tuple[float, float]] = {
    "int64": (-(2.0**63), 2.0**63 - 1024),  # the largest double below 2**63
    "int32": (-(2.0**31), 2.0**31 - 1),
    "bool": (0.0, 1.0),
}


def encode(
    signature: Signature, frame: Frame, check: Callable[[], None] = lambda: None
) -> dict[str, npt.NDArray[Any]]:
    """Return the graph's inputs for the rows of ``frame``, whose columns are found by name.

    ``check`` is called while texts are read, and may raise.

    Raises
    ------
    UndefinedColumn, DatatypeMismatch
        Where a column is missing, or is of strings where numbers are needed (and the other way round).
    NullNotAllowed, InvalidData
        Where the graph has no value for NULL, or an integer input is given something else.
    """
    kinds = {feature.name: feature.kind for feature in frame.features}
    for feature in signature.features:
        if feature.name not in kinds:
            raise UndefinedColumn(f'column "{feature.name}" does not exist')
        if (kinds[feature.name] in STRINGS) != feature.is_string or (
            kinds[feature.name] == "vector"
        ) != feature.is_vector:
            raise wrong_type(feature, kinds[feature.name])
    feeds: dict[str, npt.NDArray[Any]] = {}
    for spec in signature.inputs:
        if spec.words:
            column = frame.strings(signature.features[spec.features[0]].name)
            feeds[spec.name] = signature.readers[spec.name].numbers(column, check)
            continue
        array = np.empty((len(frame), spec.columns), object if spec.element == "string" else spec.element)
        position = -1
        for feature in (signature.features[i] for i in spec.features):
            position += 1
            if feature.is_vector:
                array[:, position : position + feature.length] = checked_vectors(
                    feature, spec.element, frame.vector(feature.name)
                )
                position += feature.length - 1
            elif feature.is_string:
                strings = frame.strings(feature.name)
                if feature.null == "error" and (strings.codes < 0).any():
                    raise null_refused(feature)
                if spec.element == "string":
                    array[:, position] = strings.to_objects("" if feature.null == "empty" else NULL_STRING)
                else:
                    array[:, position] = [exact_integer(feature, text) for text in strings.to_objects()]
            else:
                array[:, position] = checked(feature, spec.element, frame.number(feature.name))
        feeds[spec.name] = array if spec.rank == 2 else array.reshape(-1)
    return feeds


def decode(signature: Signature, raw: npt.NDArray[Any], rows: int, *, logits: bool = False) -> FloatArray:
    """Return what the graph gave as (rows, K) probabilities, or (rows, 1) values.

    ``logits`` leaves logits as they are, one number s becoming (0, s).

    Raises
    ------
    InvalidData
        Where the graph gave another number of values, or a label that is not among the classes.
    """
    output = signature.output
    if raw.size != rows * output.width:
        raise InvalidData(f"model gave {raw.size} values for {rows} rows, expected {rows * output.width}")
    if output.form == "label":
        index = {name: position for position, name in enumerate(output.labels or signature.classes)}
        try:
            codes = [index[str(label)] for label in raw.reshape(-1).tolist()]
        except KeyError as error:
            raise InvalidData(f"model gave label {error}, which is not among its classes") from None
        return np.eye(len(index))[codes]
    values = raw.reshape(rows, output.width).astype(np.float64)
    if output.form == "logits":
        if output.width == 1:
            values = np.concatenate([np.zeros_like(values), values], axis=1)
        if logits:
            return values
        return sigmoid(values) if signature.task == "multilabel" else softmax(values)
    if output.form == "positive":
        return np.concatenate([1.0 - values, values], axis=1)
    return values


_DIGITS = re.compile(r"-?[0-9]{1,19}")


def read_number(feature: FeatureSpec, value: Any) -> float:
    """Return a feature's value, as a JSON object or an array has it, as a number; NaN for NULL.

    Raises
    ------
    NullNotAllowed, DatatypeMismatch
        Where NULL or NaN, which count as the same, has no encoding, or the value is no number.
    """
    number = canonical.read_number(feature.name, feature.kind, value)
    if feature.null == "error" and number != number:
        raise null_refused(feature)
    return number


def whole_number(feature: FeatureSpec, element: Element, number: float) -> int:
    """Return a number as the integer that the graph reads; raise where it is none, or beyond what is exact."""
    low, high = INTEGER_RANGE[element]
    if not low <= number <= high or number != math.floor(number):
        raise InvalidData(f'feature "{feature.name}" must be of type {element}, not {number!r}')
    if feature.kind == "integer" and abs(number) >= canonical.EXACT:
        raise canonical.beyond_exact(feature.name, f"{number:.0f}")
    return int(number)


def checked(feature: FeatureSpec, element: Element, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a column of numbers as ``element``; raise what `read_number` and `whole_number` do for one of them."""
    if feature.null == "error" and np.isnan(column).any():
        raise null_refused(feature)
    if element in PACK:
        with np.errstate(over="ignore", invalid="ignore"):
            return column.astype(element)
    low, high = INTEGER_RANGE[element]
    good = (column >= low) & (column <= high) & (column == np.floor(column))
    if not good.all():
        value = float(column[int(np.argmin(good))])
        raise InvalidData(f'feature "{feature.name}" must be of type {element}, not {value!r}')
    if feature.kind == "integer":
        canonical.check_exact(feature.name, column, "pg_catalog.int8")
    return column.astype(element)


def checked_vectors(feature: FeatureSpec, element: Element, column: VectorArray) -> npt.NDArray[Any]:
    """Return a column of vectors as ``element``; raise where they are of another length, not finite, or NULL with no encoding."""
    if column.shape[1] != feature.length:
        raise wrong_length(feature.name, column.shape[1], feature.length)
    check_finite(column, feature.name)
    if feature.null == "error" and len(column) and np.isnan(column[:, 0]).any():
        raise null_refused(feature)
    if element in PACK:
        with np.errstate(over="ignore"):
            cells = column.astype(element)
        if cells.dtype != column.dtype:
            check_finite(cells, feature.name)  # what float32 does not hold
        return cells
    return np.stack([checked(feature, element, cells) for cells in column.T.astype(np.float64)], axis=1)


def null_refused(feature: FeatureSpec) -> NullNotAllowed:
    """Return the error of a NULL for which the model has no encoding."""
    return NullNotAllowed(
        f'feature "{feature.name}" is NULL or NaN, for which the model has no encoding',
        hint="Replace NULL in the query, or impute it inside the model's graph.",
    )


def wrong_type(feature: FeatureSpec, given: str) -> DatatypeMismatch:
    """Return the error of a value of another kind than the feature's."""
    return DatatypeMismatch(f'feature "{feature.name}" is of kind {feature.kind}, not {given}')


def exact_integer(feature: FeatureSpec, value: object) -> int:
    """Return an integer given by its digits, as what float64 does not hold is."""
    if value is None:
        raise null_refused(feature)
    text = str(value)
    number = int(text) if _DIGITS.fullmatch(text) else None
    if number is None or not -(2**63) <= number < 2**63:
        raise InvalidData(f'feature "{feature.name}" must be an integer of 64 bits, not "{text[:20]}"')
    return number


def sigmoid(logits: FloatArray) -> FloatArray:
    """Return the probabilities of (n, K) log-odds, each by itself."""
    e = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, e) / (1.0 + e)


def softmax(logits: FloatArray) -> FloatArray:
    """Return the probabilities of (n, K) logits."""
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return cast(FloatArray, exp / exp.sum(axis=1, keepdims=True))
