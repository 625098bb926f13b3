"""String columns as codes: the same in numpy and in the graph (``expression`` has the form in SQL).

Two codes are always there: OTHER for values that are rare or were never seen, and NULL. A student therefore
always has an answer, and what it learned from rare values is its answer for new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from pg_distill.frame import MAX_CATEGORIES, MIN_COUNT, FloatArray, Strings
from pg_distill.onnx_model.signature import NULL_STRING
from pg_distill.students.export import Graph

__all__ = ["MAX_TABLE", "CategoryEncoder", "codes_of", "look_up"]

MAX_TABLE = 1 << 20
"""Cells of a table over all words of all columns (4 MB); beyond it each column gets nodes of its own."""


@dataclass(frozen=True)
class CategoryEncoder:
    """Codes of one string column: OTHER, NULL, then ``values`` from ``FIRST`` on, sorted.

    ``counts`` (size,) are the rows of each code when it was fitted; 0 for a code that no row had.
    """

    values: tuple[str, ...]
    counts: npt.NDArray[np.int64]

    OTHER: ClassVar[int] = 0
    NULL: ClassVar[int] = 1
    FIRST: ClassVar[int] = 2

    @classmethod
    def fit(
        cls, column: Strings, *, min_count: int = MIN_COUNT, max_categories: int = MAX_CATEGORIES
    ) -> CategoryEncoder:
        """Keep the ``max_categories`` most frequent values that have at least ``min_count`` rows.

        ``NULL_STRING`` itself is never kept: the graph reads it as NULL.
        """
        counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.categories))
        kept = np.array(
            [
                i
                for i, value in enumerate(column.categories)
                if counts[i] >= min_count and value != NULL_STRING
            ],
            np.int64,
        )
        if len(kept) > max_categories:
            kept = kept[np.argsort(-counts[kept], kind="stable")[:max_categories]]
        values = tuple(sorted(column.categories[i] for i in kept))
        codes = cls(values, np.zeros(0, np.int64)).codes(column)
        return cls(values, np.bincount(codes, minlength=len(values) + cls.FIRST))

    @property
    def size(self) -> int:
        """Number of codes."""
        return len(self.values) + self.FIRST

    def codes(self, column: Strings) -> npt.NDArray[np.int64]:
        """Return the code of each row, (n,)."""
        index = {value: code for code, value in enumerate(self.values, self.FIRST)}
        index[NULL_STRING] = self.NULL
        table = [*(index.get(value, self.OTHER) for value in column.categories), self.NULL]
        return np.array(table, np.int64)[column.codes]


def codes_of(graph: Graph, words: Sequence[str]) -> str:
    """Add to ``graph`` the int64 tensor (n, m) of the strings' places in one dictionary of all columns."""
    return graph.node(
        "LabelEncoder",
        [graph.strings],
        domain="ai.onnx.ml",
        keys_strings=[*words, NULL_STRING],
        values_int64s=[
            *range(CategoryEncoder.FIRST, CategoryEncoder.FIRST + len(words)),
            CategoryEncoder.NULL,
        ],
        default_int64=CategoryEncoder.OTHER,
    )


def look_up(graph: Graph, encoders: Sequence[CategoryEncoder], tables: Sequence[FloatArray]) -> str:
    """Add to ``graph`` the float tensor (n, m) of each string column's entry in its table.

    Parameters
    ----------
    encoders
        One for each string column, in order.
    tables
        For each encoder the (size,) entries of its codes, as float32 holds them.
    """
    entries = [np.asarray(table, np.float32) for table in tables]
    if len(encoders) == 1:
        return _encode(graph, graph.strings, encoders[0], entries[0])
    words = sorted({value for encoder in encoders for value in encoder.values})
    size = len(words) + CategoryEncoder.FIRST
    if size * len(encoders) > MAX_TABLE:
        columns = []
        for position, (encoder, table) in enumerate(zip(encoders, entries, strict=True)):
            index = graph.constant(np.array([position], np.int64))
            column = graph.node("Gather", [graph.strings, index], axis=1)
            columns.append(_encode(graph, column, encoder, table))
        return graph.node("Concat", columns, axis=1)
    # One dictionary for all columns and, for each, a table over all words: three nodes for any number of
    # columns.
    place = {word: code for code, word in enumerate(words, CategoryEncoder.FIRST)}
    common = np.empty((len(encoders), size), np.float32)
    for row, encoder, table in zip(common, encoders, entries, strict=True):
        row[:] = table[encoder.OTHER]
        row[encoder.NULL] = table[encoder.NULL]
        row[[place[value] for value in encoder.values]] = table[encoder.FIRST :]
    code = codes_of(graph, words)
    offsets = np.arange(len(encoders), dtype=np.int64) * size
    code = graph.node("Add", [code, graph.constant(offsets)])
    return graph.node("Gather", [graph.constant(common.ravel()), code], axis=0)


def _encode(graph: Graph, column: str, encoder: CategoryEncoder, table: npt.NDArray[np.float32]) -> str:
    return graph.node(
        "LabelEncoder",
        [column],
        domain="ai.onnx.ml",
        keys_strings=[*encoder.values, NULL_STRING],
        values_floats=[*table[encoder.FIRST :].tolist(), float(table[encoder.NULL])],
        default_float=float(table[encoder.OTHER]),
    )
