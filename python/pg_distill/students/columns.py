"""The matrix that trees split on: numbers as they are, and the places of categories in an order that was learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pg_distill.errors import FeatureNotSupported
from pg_distill.frame import FloatArray, Frame
from pg_distill.students import expression
from pg_distill.students.encoding import CategoryEncoder, look_up
from pg_distill.students.ensemble import Float32, Integers
from pg_distill.students.export import Graph, Numbers
from pg_distill.students.projection import TREE_NUMBERS

__all__ = ["Columns", "TextColumns"]

PRIOR_ROWS = 10.0
"""Rows at the overall mean that are added to each category's own, before categories are put in order."""
ROWS_A_CODE, FOLDS = 10, 5
"""Rows of a code, on average, below which training sees the order that other folds' rows give; and the number of folds."""


class TextColumns(Protocol):
    """Texts as numbers: `text_numbers.TextNumbers`."""

    @property
    def width(self) -> int:
        """The numbers of a row."""
        ...

    def transform(self, frame: Frame, *, training: bool = False) -> Float32:
        """Return them, (n, width)."""
        ...

    def add_to(self, graph: Graph) -> str:
        """Return their name in a graph."""
        ...


@dataclass(frozen=True)
class Columns:
    """A frame as the float32 matrix that trees split: the numbers, then the string columns, then texts as numbers.

    A string's entry is its place in the order of its column's means of the target (Fisher 1958: for one split
    of a convex loss no other subset is better), with OTHER at 0 and NULL as NaN. ``missing`` (d,) says which
    columns had NULLs when this was fitted; in all others NULL counts as larger than every number.
    """

    numbers: Numbers
    string_names: tuple[str, ...]
    encoders: tuple[CategoryEncoder, ...]
    tables: tuple[FloatArray, ...]
    missing: npt.NDArray[np.bool_]
    texts: TextColumns | None = None

    def with_texts(self, texts: TextColumns) -> Columns:
        """Return the same columns, and those of ``texts`` behind them."""
        if not texts.width:
            return self
        return replace(self, missing=np.append(self.missing, np.zeros(texts.width, bool)), texts=texts)

    @classmethod
    def fit(
        cls,
        frame: Frame,
        target: FloatArray,
        weight: FloatArray,
        *,
        mean: FloatArray | None = None,
        vector_numbers: int = TREE_NUMBERS,
    ) -> Columns:
        """Learn the codes and their order by ``target`` (n, K) and ``weight`` (n,).

        Vectors become ``vector_numbers`` numbers each, which predict ``mean``, by itself ``target``.
        """
        encoders, tables = [], []
        for name in frame.string_names:
            encoder = CategoryEncoder.fit(frame.strings(name))
            codes = encoder.codes(frame.strings(name))
            encoders.append(encoder)
            tables.append(_order(codes, encoder.size, target, weight))
        numbers = Numbers.fit(frame, target if mean is None else mean, vector_numbers)
        names = frame.string_names
        missing = numbers.missing(frame)
        missing += [bool((frame.strings(name).codes < 0).any()) for name in names]
        return cls(numbers, names, tuple(encoders), tuple(tables), np.array(missing, bool))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the matrix's columns."""
        return (*self.numbers.names, *self.string_names)

    @property
    def n_numbers(self) -> int:
        """How many of the columns are numbers; they come first."""
        return len(self.numbers.centre)

    def directions(self, monotone: Mapping[str, int]) -> npt.NDArray[np.int8]:
        """Return of each column of the matrix (d,) whether sums are to rise with it, 1, to fall, -1, or neither, 0."""
        out = np.zeros(len(self.missing), np.int8)
        for position, name in enumerate(self.numbers.own):
            out[position] = monotone.get(name, 0)
        return out

    def matrix(self, frame: Frame) -> Float32:
        """Return the rows (n, d) as the graph computes them, but +inf for NaN where no NULL was seen."""
        out = np.empty((len(frame), len(self.missing)), np.float32)
        out[:, : self.n_numbers] = self.numbers.transform(frame)
        parts = zip(self.string_names, self.encoders, self.tables, strict=True)
        for position, (name, encoder, table) in enumerate(parts, self.n_numbers):
            out[:, position] = table[encoder.codes(frame.strings(name))]
        if self.texts is not None:
            out[:, -self.texts.width :] = self.texts.transform(frame)
        out[np.isnan(out) & ~self.missing] = np.inf
        return out

    def training_matrix(self, frame: Frame, target: FloatArray, weight: FloatArray) -> Float32:
        """Return ``matrix`` for the rows that were fitted; many codes stand in the order that other rows give them.

        A row's own label is part of its code's mean: in the order of these means the labels of rare codes can be read
        off, and trees would read nothing else. So each fold of the rows gets the others' order.
        """
        out = self.matrix(frame)
        if self.texts is not None:
            out[:, -self.texts.width :] = self.texts.transform(frame, training=True)
        fold = np.arange(len(frame)) % FOLDS
        parts = zip(self.string_names, self.encoders, strict=True)
        for position, (name, encoder) in enumerate(parts, self.n_numbers):
            if encoder.size * ROWS_A_CODE <= len(frame):
                continue
            codes = encoder.codes(frame.strings(name))
            # On one scale: the direction and the mean are those of all rows, and so is the place that a score has.
            direction = _direction(codes, encoder.size, target, weight)
            known = np.delete(np.arange(encoder.size), CategoryEncoder.NULL)
            scores = _scores(codes, encoder.size, target, weight, direction)[known]
            ranked, table = np.argsort(scores, kind="stable"), self.tables[position - self.n_numbers]
            for number in range(FOLDS):
                own, others = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
                found = _scores(codes[others], encoder.size, target[others], weight[others], direction)
                places = np.interp(found, scores[ranked], table[known][ranked])
                places[CategoryEncoder.NULL] = np.nan
                out[own, position] = places[codes[own]]
            if not self.missing[position]:
                out[np.isnan(out[:, position]), position] = np.inf
        return out

    def to_sql(self, columns: Mapping[str, str] | None) -> list[expression.Number | expression.Categories]:
        """Return the matrix's columns as SQL; ``columns`` as in ``expression.sources``."""
        if self.texts is not None:
            raise FeatureNotSupported("trees that read texts have no form in SQL")
        found = expression.sources(self.numbers.features, columns)
        out: list[expression.Number | expression.Categories] = []
        for name, centre in zip(self.names, self.numbers.centre, strict=False):
            out.append(expression.Number(found[name], float(centre)))
        for name, encoder, table in zip(self.string_names, self.encoders, self.tables, strict=True):
            places = dict(zip(encoder.values, table[encoder.FIRST :].tolist(), strict=True))
            out.append(expression.Categories(found[name], places))
        return out

    def add_to(self, graph: Graph) -> str:
        """Return the name of the matrix in ``graph``."""
        parts = [graph.read(self.numbers)] if self.n_numbers or not (self.encoders or self.texts) else []
        if self.encoders:
            parts.append(look_up(graph, self.encoders, self.tables))
        if self.texts is not None:
            parts.append(self.texts.add_to(graph))
        return graph.node("Concat", parts, axis=1) if len(parts) > 1 else parts[0]


def _means(
    codes: Integers, size: int, target: FloatArray, weight: FloatArray, overall: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return how far each code's shrunk means are from ``overall`` (size, K), and its weight (size,)."""
    total: FloatArray = np.bincount(codes, weights=weight, minlength=size).astype(np.float64)
    sums = np.stack([np.bincount(codes, weights=weight * t, minlength=size) for t in target.T], axis=1)
    return (sums + PRIOR_ROWS * overall) / (total + PRIOR_ROWS)[:, None] - overall, total


def _direction(
    codes: Integers, size: int, target: FloatArray, weight: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the mean target (K,) and the direction (K,) in which the codes' means differ most."""
    overall = (weight[:, None] * target).sum(axis=0) / max(float(weight.sum()), np.finfo(float).tiny)
    if target.shape[1] == 1:
        return overall, np.ones(1)
    shift, total = _means(codes, size, target, weight, overall)
    axis = np.linalg.eigh(shift.T @ (shift * total[:, None]))[1][:, -1]
    return overall, axis * np.copysign(1.0, axis[np.argmax(np.abs(axis))])


def _scores(
    codes: Integers,
    size: int,
    target: FloatArray,
    weight: FloatArray,
    direction: tuple[FloatArray, FloatArray],
) -> FloatArray:
    """Return each code's shrunk mean along a direction, less that of all rows."""
    overall, axis = direction
    scores: FloatArray = _means(codes, size, target, weight, overall)[0] @ axis
    return scores


def _order(codes: Integers, size: int, target: FloatArray, weight: FloatArray) -> FloatArray:
    """Return each code's place in the order of shrunk means; NaN for NULL, 0 for OTHER."""
    score = _scores(codes, size, target, weight, _direction(codes, size, target, weight))
    known = np.delete(np.arange(size), CategoryEncoder.NULL)
    out = np.full(size, np.nan)
    out[known[np.argsort(score[known], kind="stable")]] = np.arange(len(known), dtype=np.float64)
    shifted: FloatArray = out - out[CategoryEncoder.OTHER]
    return shifted
