"""A network as SQL: by pgvector, or by PostgreSQL's own operators.

Each layer is a sub-select, and what a row's inputs become is computed once. By pgvector a layer's inputs are one vector, and
a unit is one inner product (``<#>``, which gives it negated) with a constant. A vector holds float4, as ONNX Runtime does; sums
are added up in another order, so results differ in the seventh digit.

What is written here for pgvector says ``vector``, ``<#>`` and ``|+|`` (the sum of two vectors); ``database.exact`` names
the schema that has them. Names of stages start as no column does (``expression.stage_prefix``): any stage can read the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pg_distill.errors import LimitExceeded
from pg_distill.frame import FloatArray
from pg_distill.students import expression
from pg_distill.students.expression import Clipped, Sums, balanced_sum, literal

__all__ = ["Perceptron", "Table"]

WEIGHT_BYTES = 20
"""What a weight takes in plain SQL, with the name of what it weighs."""
VECTOR_WEIGHT_BYTES = 10
"""What it takes in a vector."""
MAX_DIMENSIONS = 16_000
"""Of pgvector's type vector."""


@dataclass(frozen=True)
class Table:
    """What a string adds to the first layer.

    Parameters
    ----------
    sql
        A string with COLLATE "C", as ``expression.canonical`` gives it.
    values
        The row of each known value.
    other, null
        The row of any other value, and of NULL.
    rows
        (rows, units).
    """

    sql: str
    values: Mapping[str, int]
    other: int
    null: int
    rows: FloatArray


@dataclass(frozen=True)
class Perceptron:
    """A network with ReLU between its layers.

    Parameters
    ----------
    numbers
        The numbers.
    ramps
        Piecewise-linear encoding: (position of a number, low, inverse); they stand in for the numbers. Empty for none.
    flagged
        Which of the numbers have an input that says whether they are missing.
    tables
        One for each string column.
    weights, biases
        Of each layer, (from, to) and (to,), of the first one from numbers or ramps, then flags; of the last layer one output
        for regression and for two classes.
    prefix
        How the names of stages start.
    """

    numbers: Sequence[Clipped]
    ramps: Sequence[tuple[int, float, float]]
    flagged: Sequence[int]
    tables: Sequence[Table]
    weights: Sequence[FloatArray]
    biases: Sequence[FloatArray]
    prefix: str

    def sums(self, *, vectors: bool) -> Sums:
        """Return the last layer's outputs as SQL.

        Raises
        ------
        LimitExceeded
            Where they would be longer than ``expression.MAX_BYTES``, or a vector longer than pgvector's.
        """
        cells = sum(w.size for w in self.weights) + sum(table.rows.size for table in self.tables)
        each = VECTOR_WEIGHT_BYTES if vectors else WEIGHT_BYTES
        if cells * each > expression.MAX_BYTES:
            raise LimitExceeded(
                f"expression of {cells} weights is over the limit of {expression.MAX_BYTES} bytes"
            )
        return self._by_vectors() if vectors else self._plain()

    # -- what both forms share

    def _inputs(self) -> tuple[list[str], str]:
        """Return SQL of each input of the first layer but the strings, and the FROM clause that it reads."""
        flags = [self.numbers[j].is_missing for j in self.flagged]
        filled = [number.filled for number in self.numbers]
        if not self.ramps:
            return [*filled, *flags], ""
        source = self._stage(filled, "x", "")
        spread = [
            f"LEAST(GREATEST(({self.prefix}x{position} - {literal(low)}) * {literal(inverse)}, {literal(0.0)}), {literal(1.0)})"
            for position, low, inverse in self.ramps
        ]
        return [*spread, *flags], source

    def _stage(self, items: Sequence[str], letter: str, source: str) -> str:
        """Return a FROM clause that names ``items``; OFFSET 0 keeps the planner from writing them out where they are read."""
        named = ", ".join(f"{item} AS {self.prefix}{letter}{i}" for i, item in enumerate(items))
        return f" FROM (SELECT {named}{source} OFFSET 0) {self.prefix}s"

    # -- PostgreSQL's own operators

    def _plain(self) -> Sums:
        """Write layers as sums of products.

        A number that may be missing is NULL where it is, and so is its product, for which a constant stands: that costs less
        than the product of a flag, which is another input.
        """
        prefix = self.prefix
        first = self.weights[0]
        merged: dict[int, FloatArray] = {}
        if self.ramps:
            inputs, source = self._inputs()
        else:
            d, source = len(self.numbers), ""
            merged = {
                j: first[j] * self.numbers[j].at_fill + first[d + i] for i, j in enumerate(self.flagged)
            }
            inputs = [n.known if j in merged else n.filled for j, n in enumerate(self.numbers)]
            first = first[:d]
        codes = [
            expression.choose(
                table.sql,
                {value: row + 1 for value, row in table.values.items()},
                table.other + 1,
                table.null + 1,
            )
            for table in self.tables
        ]
        named = [f"{sql} AS {prefix}i{i}" for i, sql in enumerate(inputs)]
        named += [f"({sql}) AS {prefix}c{m}" for m, sql in enumerate(codes)]
        if named:
            source = f" FROM (SELECT {', '.join(named)}{source} OFFSET 0) {prefix}s"
        names = [f"{prefix}i{i}" for i in range(len(inputs))]
        sums: list[str] = []
        for number, bias in enumerate(self.biases):
            weight = first if number == 0 else self.weights[number]
            sums = []
            for unit in range(weight.shape[1]):
                terms = []
                for i, (name, w) in enumerate(zip(names, weight[:, unit], strict=True)):
                    if number == 0 and i in merged:
                        terms.append(f"COALESCE({name} * {_short(w)}, {_short(merged[i][unit])})")
                    elif w != 0.0:
                        terms.append(f"{name} * {_short(w)}")
                if number == 0:
                    terms += [
                        f"('{{{','.join(map(_digits, table.rows[:, unit]))}}}'::float[])[{prefix}c{m}]"
                        for m, table in enumerate(self.tables)
                    ]
                sums.append(balanced_sum([*terms, _short(bias[unit])]))
            if number < len(self.biases) - 1:
                rectified = [f"GREATEST({z}, {literal(0.0)})" for z in sums]
                if self.weights[number + 1].shape[1] == 1:  # each unit is read once
                    names = rectified
                else:
                    letter = f"h{number}_"
                    source = self._stage(rectified, letter, source)
                    names = [f"{prefix}{letter}{unit}" for unit in range(weight.shape[1])]
        return Sums(sums, source=source, prefix=prefix)

    # -- pgvector

    def _by_vectors(self) -> Sums:
        """Write layers as inner products.

        ``<#>`` is the negative one, so the first layer's units are kept negated, LEAST in the place of GREATEST, and the second
        one's as they are. A last element of 1 or -1 has the bias.
        """
        inputs, source = self._inputs()
        first, units = self.weights[0], self.weights[0].shape[1]
        rest = 0
        vector = f"{_array([*inputs, literal(1.0)])}::vector"
        if self.tables:
            # Strings add a vector: to each unit its own, or where they have few values, to each value its own place.
            wide = np.concatenate([table.rows for table in self.tables])
            one_hot = len(wide) <= units
            added = np.eye(len(wide)) if one_hot else wide
            first = np.concatenate([first, self.biases[0][None], wide if one_hot else np.eye(units)])
            rest, zeros = added.shape[1], "0," * (len(inputs) + 1)
            vector = f"{_array([*inputs, literal(1.0), *[literal(0.0)] * rest])}::vector"
            start = 0
            for table in self.tables:
                own = [
                    f"'[{zeros}{','.join(map(_digits, row))}]'::vector"
                    for row in added[start : start + len(table.rows)]
                ]
                chosen = {value: own[row] for value, row in table.values.items()}
                vector += f" |+| ({expression.choose(table.sql, chosen, own[table.other], own[table.null])})"
                start += len(table.rows)
        else:
            first = np.concatenate([first, self.biases[0][None]])
        if len(first) > MAX_DIMENSIONS or max(w.shape[1] for w in self.weights[:-1]) >= MAX_DIMENSIONS:
            raise LimitExceeded(f"a vector has at most {MAX_DIMENSIONS} dimensions")
        name = f"{self.prefix}v0"
        source = f" FROM (SELECT {vector} AS {name}{source} OFFSET 0) {self.prefix}s"
        negated = False  # whether what the layer reads is
        products: list[str] = []
        for number, bias in enumerate(self.biases):
            matrix = first if number == 0 else np.concatenate([self.weights[number], bias[None]])
            last = number == len(self.weights) - 1
            if last and not negated:
                matrix = -matrix
            products = [f"({name} <#> '[{','.join(map(_digits, column))}]'::vector)" for column in matrix.T]
            if last:
                break
            negated = not negated
            rectifier = "LEAST" if negated else "GREATEST"
            hidden = [f"{rectifier}({p}, {literal(0.0)})" for p in products]
            vector = f"{_array([*hidden, literal(-1.0 if negated else 1.0)])}::vector"
            if number == len(self.weights) - 2 and self.weights[-1].shape[1] == 1:  # it is read once
                name = vector
            else:
                name = f"{self.prefix}v{number + 1}"
                source = f" FROM (SELECT {vector} AS {name}{source} OFFSET 0) {self.prefix}s"
        return Sums(products, source=source, prefix=self.prefix)


def _array(items: Sequence[str]) -> str:
    return f"ARRAY[{', '.join(items)}]"


def _digits(value: float) -> str:
    """Return the shortest text that float32 reads back the same."""
    return str(np.float32(value)).removesuffix(".0")


def _short(value: float) -> str:
    """Return a literal that is as exact as float32."""
    return f"'{float(value):.9g}'::float"
