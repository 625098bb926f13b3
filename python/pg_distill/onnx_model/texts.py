"""How a served model reads texts: in Python, in the place of the nodes of its graph that do the same.

A graph needs half a millisecond to find the n-grams of 300 characters, `tokens.Tokeniser` some 15 microseconds. So what a
session is opened on is cut (`cut.cut_texts`) where the sums over the n-grams are ready: it takes those in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Strings
from pg_distill.onnx_model.signature import Element, Null
from pg_distill.onnx_model.tokens import MOST_CHARACTERS, Tokeniser

__all__ = ["INPUT", "TEXT_KEY", "TextReader"]

INPUT = "texts"
"""The graph's input of texts, (n, columns)."""

TEXT_KEY = "pg_distill.texts"
"""Key of ``metadata_props`` under which a model that reads texts says what it wants them to be, and where its graph ends to
read them (JSON)."""

CHARACTERS_AT_ONCE = 200_000
"""Characters of texts that are read between two looks at interrupts, in some 20 ms."""

MOST_CELLS = 1 << 21
"""Entries of a table that are added up at once: 16 MB."""


@dataclass(frozen=True)
class TextReader:
    """A column of texts as numbers: for the n-grams G of a text ``sum(table[G])``, scaled.

    Parameters
    ----------
    target
        The tensor of the graph that it stands for, float (n, w).
    columns, column
        Names of all columns of texts that the file has, and the position of this one.
    table
        (V, w + 1) whole numbers, so that sums are exact in any order; those of the last column are of squared weights.
    units
        (w + 1,) what 1 in each column is.
    """

    target: str
    columns: tuple[str, ...]
    column: int
    tokeniser: Tokeniser
    table: FloatArray
    units: FloatArray

    element: ClassVar[Element] = "float32"
    null: ClassVar[Null] = "string"

    @property
    def entries(self) -> int:
        """How many strings it knows."""
        return len(self.tokeniser.word_ids) + len(self.tokeniser.pairs)

    @property
    def name(self) -> str:
        """The column's name."""
        return self.columns[self.column]

    @property
    def width(self) -> int:
        """The numbers of one text."""
        return len(self.units) - 1

    def read(self, text: str | None, check: Callable[[], None] = lambda: None) -> FloatArray:
        """Return the numbers (w,) of one text, which is cut, so that it needs no ``check``."""
        found = self.tokeniser.find(text)
        ids = np.fromiter(found, np.intp, len(found))
        sums = self.table.take(ids, axis=0).sum(axis=0) * self.units
        # The square root of one number: what `_scale` does of many.
        return np.asarray(sums[:-1] / math.sqrt(max(sums.item(-1), 1.0)))

    def numbers(self, column: Strings, check: Callable[[], None] = lambda: None) -> npt.NDArray[np.float32]:
        """Return the numbers (n, w) of a column; ``check`` is called again and again, and may raise."""
        values = column.to_objects().tolist()
        places = {
            text: place for place, text in enumerate(dict.fromkeys(values))
        }  # equal texts are read once
        texts = list(places)
        out = np.zeros((len(texts), self.width), np.float32)
        read = np.cumsum([min(len(text), MOST_CHARACTERS) if text is not None else 0 for text in texts])
        cuts = np.flatnonzero(np.diff(read // CHARACTERS_AT_ONCE)) + 1
        for start, end in pairwise([0, *cuts.tolist(), len(texts)]):
            check()
            part = slice(start, end)
            bags = self.tokeniser.bags(texts[part])
            sums = np.zeros((len(bags), self.width + 1))
            some = np.flatnonzero(np.diff(bags.starts))
            longest = int(np.diff(bags.starts).max(initial=1))
            step = max(1, MOST_CELLS // (self.width + 1) // longest)
            for first in range(0, len(some), step):
                rows = some[first : first + step]
                begin = bags.starts[rows[0]]
                entries = self.table[bags.ids[begin : bags.starts[rows[-1] + 1]]]
                sums[rows] = np.add.reduceat(entries, bags.starts[rows] - begin, axis=0)
            out[part] = self._scale(sums)
        return out if len(texts) == len(values) else out[[places[text] for text in values]]

    def _scale(self, sums: FloatArray) -> FloatArray:
        sums = sums * self.units
        return np.asarray(sums[..., :-1] / np.sqrt(np.maximum(sums[..., -1:], 1.0)))
