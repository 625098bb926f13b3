"""Buffers of one row: an input's numbers, strings, vectors or text, and how they are filled."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.onnx_model.cut import Lookup
from pg_distill.onnx_model.signature import NULL_STRING, FeatureSpec, InputSpec, Signature
from pg_distill.onnx_model.values import (
    NULL_STRINGS,
    PACK,
    checked_vectors,
    exact_integer,
    null_refused,
    read_number,
    whole_number,
    wrong_type,
)
from pg_distill.onnx_model.vectors import Segment, read_bytes, spread
from pg_distill.rows import canonical

__all__ = ["RowLookup", "Slot", "TextSlot"]


class RowLookup:
    """The buffer of what one row's strings are looked up as."""

    def __init__(self, lookup: Lookup, slot: Slot) -> None:
        if slot.null is not None:
            lookup.read_null_as(slot.null)
        self.target, self.get, self.default = lookup.target, lookup.table.get, lookup.default
        self.array: npt.NDArray[Any] = np.zeros(slot.array.shape, lookup.element)
        self.pack: Callable[..., None] = struct.Struct(
            f"{self.array.size}{'q' if lookup.element == 'int64' else 'f'}"
        ).pack_into
        self._cells = slot.cells

    def fill(self) -> None:
        """Look up the row that is in the slot."""
        get, default = self.get, self.default
        self.pack(self.array, 0, *[get(value, default) for value in self._cells.tolist()])


class Slot:
    """One input's buffer for one row, and the way to fill it."""

    def __init__(self, signature: Signature, spec: InputSpec) -> None:
        self.spec = spec
        own = tuple(signature.features[i] for i in spec.features)
        self.features = tuple(f for f in own for _ in range(f.width))
        """Of each column; of a vector again and again."""
        width = spec.cells or len(own)
        shape = (1, width) if spec.rank == 2 else (width,)
        self.array: npt.NDArray[Any]
        if spec.element == "string":
            self.array = np.full(shape, "", object)
        else:
            self.array = np.zeros(shape, spec.element)
        self.is_text = spec.element == "string"
        self.cells = self.array.reshape(-1)
        code = PACK.get(spec.element)
        self.pack: Callable[..., None] | None = struct.Struct(f"{width}{code}").pack_into if code else None
        encodings = {NULL_STRINGS.get(f.null) for f in self.features}
        self.null = encodings.pop() if len(encodings) == 1 else None
        """What NULL is in an input of strings, where it is the same for all of its features."""
        # A vector is looked at as a whole, whatever it takes.
        self.takes_nan = all(f.null != "error" or f.is_vector for f in own)
        self.plain = code is not None and all(f.null == "nan" or f.is_vector for f in own)
        names = [f.name for f in own]
        pick = itemgetter(*names)
        self.pick: Callable[[Mapping[str, Any]], Sequence[Any]] = (
            spread(own) if spec.cells else pick if width > 1 else lambda row: (pick(row),)
        )
        starts = signature.starts
        places = [starts[i] + j for i, f in zip(spec.features, own, strict=True) for j in range(f.width)]
        self.places = places
        """Of its columns among all values of a row, `Signature.numbers_first`."""
        begins = [sum(f.width for f in own[:i]) for i in range(len(own))]
        self.segments = [
            Segment(f, self.cells[start : start + f.width])
            for f, start in zip(own, begins, strict=True)
            if f.is_vector
        ]
        self.singles = [(f, start) for f, start in zip(own, begins, strict=True) if not f.is_vector]
        self._vectors = [
            (f, slice(start, start + f.width)) for f, start in zip(own, begins, strict=True) if f.is_vector
        ]
        together = places == list(range(places[0], places[0] + width))
        self.pick_mixed: Callable[[Sequence[Any]], Sequence[Any]] = (
            itemgetter(slice(places[0], places[0] + width)) if together else itemgetter(*places)
        )

    def fill(self, values: Sequence[Any]) -> None:
        """Write one row's ``values``."""
        self._write(values)
        for segment in self.segments:
            segment.check()

    def fill_parts(self, row: Mapping[str, Any]) -> None:
        """Write one row's values by name, vectors as bytes."""
        if not self.segments:
            self.fill([row[f.name] for f in self.features])
            return
        if self.pack is None:  # of whole numbers, each of which is looked at
            read = {
                s.feature.name: read_bytes(s.feature, row[s.feature.name]).tolist() for s in self.segments
            }
            self.fill(self.pick({**row, **read}))
            return
        for segment in self.segments:
            segment.take(row[segment.feature.name])
        for feature, place in self.singles:
            value = row[feature.name]
            number = exact_integer(feature, value) if feature.is_string else read_number(feature, value)
            self.cells[place] = number
        for segment in self.segments:
            segment.check()

    def check_vectors(self, values: npt.NDArray[Any]) -> None:
        """Check the vectors among the columns (n, width) of an input."""
        for feature, columns in self._vectors:
            checked_vectors(feature, "float64", values[:, columns])

    def _write(self, values: Sequence[Any]) -> None:
        if self.pack is not None:
            try:
                if self.takes_nan:
                    self.pack(self.array, 0, *[math.nan if value is None else value for value in values])
                    return
                self.pack(self.array, 0, *values)
                if not np.isnan(self.array).any():
                    return
            except (struct.error, OverflowError, TypeError):
                pass  # NULL where it has no encoding, a string, a number past float32: below, one by one
        cells, element = self.cells, self.spec.element
        if element == "string":
            for position, value in enumerate(values):
                cells[position] = value if value.__class__ is str else _string(self.features[position], value)
            return
        with np.errstate(over="ignore"):
            for position, (feature, value) in enumerate(zip(self.features, values, strict=True)):
                if feature.is_string:
                    cells[position] = exact_integer(feature, value)
                    continue
                number = (
                    canonical.read_number(feature.name, feature.kind, value)
                    if feature.is_vector
                    else read_number(feature, value)
                )
                if self.pack is None:
                    number = whole_number(feature, element, number)
                cells[position] = number


class TextSlot(Slot):
    """The buffer of what one row's text is read as."""

    def __init__(self, signature: Signature, spec: InputSpec, check: Callable[[], None]) -> None:
        super().__init__(signature, spec)
        self.array = np.zeros((1, spec.words), spec.element)
        self.pack = None
        self.read = signature.readers[spec.name].read
        self.check = check

    def fill(self, values: Sequence[Any]) -> None:
        """Read the text."""
        (text,) = values
        text = None if text is None else _string(self.features[0], text)
        self.array[0] = self.read(text, self.check)


def _string(feature: FeatureSpec, value: object) -> str:
    if isinstance(value, str):
        return value
    if value is not None:
        raise wrong_type(feature, type(value).__name__)
    if feature.null == "error":
        raise null_refused(feature)
    return "" if feature.null == "empty" else NULL_STRING
