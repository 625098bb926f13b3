"""How a served model reads texts: in Python, in the place of the nodes of its graph that do the same.

A graph needs half a millisecond to find the n-grams of 300 characters, `tokens.Tokeniser` some 15 microseconds. So what a
session is opened on is cut (`cut.cut_texts`) where the sums over the n-grams are ready: it takes those in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import ClassVar
from weakref import ref

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Strings
from pg_distill.onnx_model.signature import Element, Null
from pg_distill.onnx_model.tokens import MOST_CHARACTERS, Bags, Tokeniser

__all__ = ["INPUT", "TEXT_KEY", "TextReader", "read_together"]

INPUT = "texts"
"""The graph's input of texts, (n, columns)."""

TEXT_KEY = "pg_distill.texts"
"""Key of ``metadata_props`` under which a model that reads texts says what it wants them to be, and where its graph ends to
read them (JSON)."""

CHARACTERS_AT_ONCE = 65_536
"""Characters of texts that are read between two looks at interrupts, in some 2 ms; what that takes stays in the cache."""

MOST_CELLS = 1 << 21
"""Entries of a table that are added up at once: 16 MB."""

MOST_SHARED = 1 << 22
"""Entries of a table that several readers share: 32 MB."""

MOST_COLUMNS = 64
"""Of a table whose columns are added up one by one, which takes less time and a second table."""


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
    shared: tuple[_Together, int] | None = field(default=None, compare=False, repr=False)
    """What reads the same column for several readers, and which of them this is: see `read_together`."""

    element: ClassVar[Element] = "float32"
    null: ClassVar[Null] = "string"

    @property
    def entries(self) -> int:
        """How many strings it knows."""
        return sum(map(len, self.tokeniser.words)) + len(self.tokeniser.pairs)

    @property
    def name(self) -> str:
        """The column's name."""
        return self.columns[self.column]

    @property
    def width(self) -> int:
        """The numbers of one text."""
        return len(self.units) - 1

    @cached_property
    def _alone(self) -> _Together:
        return _Together(
            [replace(self)]
        )  # a copy: no circle, so that an evicted session frees its tables at once

    def read(self, text: str | None, check: Callable[[], None] = lambda: None) -> FloatArray:
        """Return the numbers (w,) of one text, which is cut, so that it needs no ``check``."""
        together, place = self.shared or (self._alone, 0)
        return together.read(text)[place]

    def numbers(self, column: Strings, check: Callable[[], None] = lambda: None) -> npt.NDArray[np.float32]:
        """Return the numbers (n, w) of a column; ``check`` is called again and again, and may raise."""
        together, place = self.shared or (self._alone, 0)
        return together.numbers(column, place, check)


def read_together(readers: Sequence[TextReader]) -> list[TextReader]:
    """Return the same readers, of which those of one column find its words once: the parts of a blend."""
    out = list(readers)
    for column in {reader.column for reader in readers}:
        places = [i for i, reader in enumerate(readers) if reader.column == column]
        if len(places) > 1:
            together = _Together([readers[i] for i in places])
            for own, place in enumerate(places):
                out[place] = replace(readers[place], shared=(together, own))
    return out


class _Together:
    """Reads a column for several readers, by one vocabulary that has the n-grams of all: see `_union`."""

    def __init__(self, readers: Sequence[TextReader]) -> None:
        self._readers = tuple(readers)
        self._last: tuple[object, list[FloatArray]] = (object(), [])
        self._rest: tuple[Callable[[], object], dict[int, npt.NDArray[np.float32]]] = (lambda: None, {})
        ends = np.cumsum([len(reader.units) for reader in readers]).tolist()
        self._own = [slice(start, end - 1) for start, end in pairwise([0, *ends])]
        self._squares = [end - 1 for end in ends]
        self._units = np.concatenate([reader.units for reader in readers])
        self._ones = np.ones(2 * MOST_CHARACTERS)

    @cached_property
    def _vocabulary(self) -> _Vocabulary | None:
        """What all readers know; None where they have too little in common."""
        if len(self._readers) == 1:
            return _Vocabulary(self._readers[0].tokeniser, self._readers[0].table)
        return _union([(reader.tokeniser, reader.table) for reader in self._readers])

    def read(self, text: str | None) -> list[FloatArray]:
        """Return the numbers of one text for each reader; what was read last is remembered, for they ask one by one."""
        last, parts = self._last
        if last is not text:
            self._last = text, (parts := self._read(text))
        return parts

    def _read(self, text: str | None) -> list[FloatArray]:
        vocabulary = self._vocabulary
        if vocabulary is not None:
            found = vocabulary.tokeniser.find(text)
            if vocabulary.odd.isdisjoint(found):
                ids = np.fromiter(found, np.intp, len(found))
                # A product adds up rows faster than a sum does.
                sums = self._ones[: len(ids)].dot(vocabulary.table.take(ids, axis=0)) * self._units
                lengths = [math.sqrt(max(sums.item(square), 1.0)) for square in self._squares]
                return [sums[own] / length for own, length in zip(self._own, lengths, strict=True)]
        return [reader._alone.read(text)[0] for reader in self._readers]

    def numbers(self, column: Strings, place: int, check: Callable[[], None]) -> npt.NDArray[np.float32]:
        """Return the numbers of a column for one reader; those of the others are remembered until they have asked."""
        known, rest = self._rest
        if known() is not column or place not in rest:
            rest = dict(enumerate(self._numbers(column.to_objects().tolist(), check)))
            self._rest = ref(column), rest
        own = rest.pop(place)
        if not rest:
            self._rest = (lambda: None), {}
        return own

    def _numbers(
        self, texts: Sequence[str | None], check: Callable[[], None]
    ) -> list[npt.NDArray[np.float32]]:
        vocabulary = self._vocabulary
        if vocabulary is None:
            return [reader._alone._numbers(texts, check)[0] for reader in self._readers]
        odd = np.fromiter(vocabulary.odd, np.int64, len(vocabulary.odd))
        out = [np.zeros((len(texts), reader.width), np.float32) for reader in self._readers]
        read = np.cumsum([min(len(text), MOST_CHARACTERS) if text is not None else 0 for text in texts])
        cuts = np.flatnonzero(np.diff(read // CHARACTERS_AT_ONCE)) + 1
        for start, end in pairwise([0, *cuts.tolist(), len(texts)]):
            check()
            bags = vocabulary.tokeniser.bags(texts[start:end])
            sums = vocabulary.sums(bags) * self._units
            for part, own, square in zip(out, self._own, self._squares, strict=True):
                part[start:end] = sums[:, own] / np.sqrt(np.maximum(sums[:, square : square + 1], 1.0))
            if len(odd):
                rows = start + np.unique(bags.rows[np.isin(bags.ids, odd)])
                for part, reader in zip(out, self._readers, strict=True):
                    part[rows] = reader._alone._numbers([texts[row] for row in rows.tolist()], check)[0]
        return out


@dataclass(frozen=True)
class _Vocabulary:
    """A tokeniser and its table (V, columns); a text with one of ``odd`` is to be read otherwise."""

    tokeniser: Tokeniser
    table: FloatArray
    odd: frozenset[int] = frozenset()

    @cached_property
    def _columns(self) -> list[FloatArray]:
        """The columns of the table one by one; none where they are many."""
        return [column.copy() for column in self.table.T] if self.table.shape[1] <= MOST_COLUMNS else []

    def sums(self, bags: Bags) -> FloatArray:
        """Return the sums (n, columns) of the table over the n-grams of each text."""
        table, sizes, starts = self.table, np.diff(bags.starts), bags.starts
        sums = np.zeros((len(bags), table.shape[1]))
        some = np.flatnonzero(sizes)
        if self._columns and len(some):
            for j, column in enumerate(self._columns):
                sums[some, j] = np.add.reduceat(column[bags.ids], starts[some])
            return sums
        step = max(1, MOST_CELLS // table.shape[1] // int(sizes.max(initial=1)))
        for first in range(0, len(some), step):
            rows = some[first : first + step]
            begin = starts[rows[0]]
            entries = table[bags.ids[begin : starts[rows[-1] + 1]]]
            sums[rows] = np.add.reduceat(entries, starts[rows] - begin, axis=0)
        return sums


def _union(parts: Sequence[tuple[Tokeniser, FloatArray]]) -> _Vocabulary | None:
    """Return a vocabulary of all that any of several knows, and their tables side by side; None where that is too large.

    A word of one part may have a form that another part does not know, or takes for another word: such words are odd.
    """
    numbers: dict[tuple[int | None, ...], int] = {}
    forms: list[list[str]] = []
    for form in dict.fromkeys(form for tokeniser, _ in parts for form in tokeniser.word_ids):
        key = tuple(tokeniser.word_ids.get(form) for tokeniser, _ in parts)
        number = numbers.setdefault(key, len(forms))
        if number == len(forms):
            forms.append([])
        forms[number].append(form)
    marks = "".join(dict.fromkeys(mark for tokeniser, _ in parts for mark in tokeniser.marks))
    own: list[list[int]] = [[-1] * len(tokeniser.words) for tokeniser, _ in parts]
    odd: set[int] = set()
    for key, number in numbers.items():
        for words, word in zip(own, key, strict=True):
            if word is None:
                continue
            if words[word] >= 0:
                odd |= {number, words[word]}
            words[word] = number
    pairs = dict.fromkeys(
        (words[a], words[b])
        for (tokeniser, _), words in zip(parts, own, strict=True)
        for a, b in tokeniser.pairs
    )
    union = Tokeniser(tuple(map(tuple, forms)), marks, tuple(pairs))
    width = sum(part.shape[1] for _, part in parts)
    if union.size * width > MOST_SHARED:
        return None
    table = np.zeros((union.size, width))
    start = 0
    for (tokeniser, part), words in zip(parts, own, strict=True):
        places = [
            *words,
            *(len(forms) + marks.index(mark) for mark in tokeniser.marks),
            *(union.pair_ids[words[a], words[b]] for a, b in tokeniser.pairs),
        ]
        table[places, start : start + part.shape[1]] = part
        start += part.shape[1]
    return _Vocabulary(union, table, frozenset(odd))
