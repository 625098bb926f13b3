"""Categories in the graph: from texts or numbers to codes, and from codes to what a library's encoder gives for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.conversion.graph import Graph, Matrix, Numbers, Text
from pg_distill.errors import DatatypeMismatch, InvalidData
from pg_distill.frame import FloatArray
from pg_distill.quoting import quote_identifier

__all__ = [
    "Sets",
    "category_codes",
    "is_missing",
    "look_up",
    "note_null",
    "number_codes",
    "places",
    "text_codes",
]

LARGEST_EXACT = 2**53
"""Of integers as float64."""
MAX_TABLE = 1 << 21
"""Cells of one table over all texts of all columns (16 MB); beyond it each column has its own."""


def is_missing(value: Any) -> bool:
    """Return whether a category stands for NULL: None, NaN or pandas' NA."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or bool(value != value)


def look_up(
    graph: Graph, blocks: Sequence[Text], entries: Sequence[Mapping[str | None, int]], default: Sequence[int]
) -> str:
    """Return the int64 tensor (n, columns) of what each column's text is in its dictionary, None being NULL."""
    for block, entry in zip(blocks, entries, strict=True):
        for text in (*entry, *block.read_as, None):
            graph.word(text)
    codes = graph.words([block.column for block in blocks])
    count = len(blocks)
    if graph.vocabulary() * count > MAX_TABLE:
        return graph.concat(
            [
                graph.op(
                    "Gather", graph.later(_table(graph, [b], [e], [d])), graph.gather(codes, [i]), axis=0
                )
                for i, (b, e, d) in enumerate(zip(blocks, entries, default, strict=True))
            ]
        )
    if count > 1:
        offsets = graph.later(lambda: np.arange(count, dtype=np.int64) * (graph.vocabulary() + 1))
        codes = graph.op("Add", codes, offsets)
    return graph.op("Gather", graph.later(_table(graph, blocks, entries, default)), codes, axis=0)


def _table(
    graph: Graph, blocks: Sequence[Text], entries: Sequence[Mapping[str | None, int]], default: Sequence[int]
) -> Any:
    def make() -> npt.NDArray[np.int64]:
        words = graph.texts()
        parts = [
            [*(entry.get(block.reading(word), other) for word in words), other]
            for block, entry, other in zip(blocks, entries, default, strict=True)
        ]
        return np.array(parts, np.int64).reshape(-1)

    return make


def text_codes(graph: Graph, block: Text, categories: Sequence[Any]) -> str:
    """Return the int64 tensor (n, 1) of a text's place among ``categories``; one beyond their end for any other."""
    return look_up(graph, [block], [places(categories)], [len(categories)])


def places(categories: Sequence[Any]) -> dict[str | None, int]:
    """Return each category's place; None or NaN stand for NULL."""
    return {None if is_missing(c) else str(c): i for i, c in enumerate(categories)}


def number_codes(graph: Graph, x: str, categories: FloatArray) -> str:
    """Return the int64 tensor (n, 1) of the place of ``x``, (n, 1) float64, among numbers; one beyond their end for any other."""
    count = len(categories)
    found = graph.cast(graph.equal(x, categories.reshape(1, -1)))
    missing = np.flatnonzero(np.isnan(categories))
    # One of the products is not zero where the value is a category.
    weights = np.arange(count) - float(count)
    code = graph.op("MatMul", found, graph.constant(weights.reshape(-1, 1)))
    if len(missing):
        code = graph.add(code, graph.mul(graph.cast(graph.is_nan(x)), weights[missing[0]]))
    return graph.cast(graph.add(code, count + 0.25), np.int64)


def category_codes(graph: Graph, block: Numbers | Text, categories: Sequence[Any], what: str) -> str:
    """Return the codes of one column, texts or numbers, among what ``what`` learned; an error where it learned the other kind."""
    known = [c for c in categories if not is_missing(c)]
    if isinstance(block, Text):
        if known and not any(isinstance(c, str) for c in known):
            raise DatatypeMismatch(
                f'column "{graph.names[block.column]}" is of texts in the sample, but {what} learned numbers',
                hint="Cast it in the sample's query, for example to float8 or boolean.",
            )
        note_null(graph, block, categories)
        return text_codes(graph, block, categories)
    if known and any(isinstance(c, str) for c in known):
        column = block.columns[0] if block.columns is not None else None
        name = f'column "{graph.names[column]}"' if column is not None else "a column"
        raise DatatypeMismatch(
            f"{name} is of numbers in the sample, but {what} learned texts",
            hint="Cast it to text in the sample's query.",
        )
    large = [c for c in known if abs(float(c)) > LARGEST_EXACT]
    if large:
        column = block.columns[0] if block.columns is not None else None
        raise InvalidData(
            f"{what} learned integers beyond 2**53, such as {large[0]}, which a prediction rounds",
            hint="Learn from texts, and cast the column to text in the sample"
            + (f": {quote_identifier(graph.names[column])}::text." if column is not None else "."),
        )
    x = graph.numbers(Matrix((block,)), what)
    return number_codes(graph, x, np.array([np.nan if is_missing(c) else float(c) for c in categories]))


def note_null(graph: Graph, block: Text, categories: Sequence[Any]) -> None:
    """Remember which object stands for NULL in the library's own rows."""
    found = [c for c in categories if is_missing(c)]
    if found:
        graph.nulls.setdefault(block.column, None if found[0] is None else float("nan"))


class Sets:
    """Splits of trees that ask whether a category is in a set, as columns of 0 (go left) and 1 (go right).

    A column's codes run from 0; the last, one more than its categories, stands for all that is none of them.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        """The place of the first column that is made here."""
        self._columns: dict[tuple[int, bytes], int] = {}

    def column(self, feature: int, goes_left: npt.NDArray[np.bool_]) -> int:
        """Return the place of the column for a split of ``feature`` that sends these of its codes to the left."""
        return self._columns.setdefault((feature, goes_left.tobytes()), self.first + len(self._columns))

    @property
    def features(self) -> tuple[int, ...]:
        """The features that are asked of."""
        return tuple(dict.fromkeys(feature for feature, _ in self._columns))

    def join(self, graph: Graph, x: str | None, codes: Mapping[int, str]) -> str:
        """Return ``x``, where there is one, with the columns beside it; ``codes`` are the features' int64 tensors (n, 1)."""
        if not self._columns:
            assert x is not None
            return x
        parts: list[str] = []
        order = np.zeros(len(self._columns), np.int64)
        made = 0
        for feature in self.features:
            own = [(place, key) for (f, key), place in self._columns.items() if f == feature]
            table = np.stack([~np.frombuffer(key, np.bool_) for _, key in own], axis=1).astype(np.uint8)
            flat = graph.op("Squeeze", codes[feature], graph.constant([1], np.int64))
            parts.append(graph.cast(graph.op("Gather", graph.constant(table, np.uint8), flat, axis=0)))
            for place, _ in own:
                order[place - self.first] = made
                made += 1
        columns = graph.concat(parts)
        if order.tolist() != list(range(made)):
            columns = graph.gather(columns, order)
        return columns if x is None else graph.concat([x, columns])
