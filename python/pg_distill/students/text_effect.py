"""What the n-grams of a text add to a linear student's sums: binary tf-idf of unit length times an effect of each n-gram.

For a text with the n-grams G a sum grows by ``sum(effect[g] * idf[g]) / sqrt(sum(idf[g] ** 2))`` over G: two sums over a table
and a root, which numpy, a graph and SQL all have. The table is in whole numbers, so its sums are exact in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Strings
from pg_distill.onnx_model.texts import TextReader
from pg_distill.onnx_model.tokens import Bags, Tokeniser
from pg_distill.students.export import Graph
from pg_distill.students.objective import Objective
from pg_distill.students.tokens_sql import key_of, reference
from pg_distill.students.vocabulary import MOST_NGRAMS, learn_vocabulary
from pg_distill.students.word_features import Widened, fold, make_features, vector_words

__all__ = ["TOLERANCE", "NgramLines", "TextEffect", "find_bags"]

Ints = npt.NDArray[np.int64]

TABLE_BITS = 20
"""An entry of the table is a whole number below 2 ** 20: float32 holds it, and 2 ** 33 of them add up exactly in float64."""
STEPS = 15
"""Steps of conjugate gradients that one Newton step takes at most; its sweeps go on from there."""
TOLERANCE = 1e-6
"""Share of the squared residual at which these steps end."""


def find_bags(tokeniser: Tokeniser, column: Strings) -> Bags:
    """Return the n-grams of each row of a column of texts; each text is read once."""
    column = column.compact()
    return tokeniser.bags([*column.categories, None]).take(column.codes)


class TextEffect:
    """The effect of one column of texts.

    Parameters
    ----------
    name
        The column's.
    idf
        (V,) of each n-gram, at least 1.
    effect
        (V, outputs); `finish` makes the table of it.
    """

    def __init__(self, name: str, tokeniser: Tokeniser, idf: FloatArray, effect: FloatArray) -> None:
        self.name = name
        self.tokeniser = tokeniser
        self.idf = idf
        self.effect = effect
        self.features: list[Any] = []
        self.has_vectors = False
        self.finish()

    @classmethod
    def learn(
        cls,
        name: str,
        column: Strings,
        objective: Objective,
        *,
        most: int = MOST_NGRAMS,
        seed: int = 42,
        shared: bool = False,
    ) -> TextEffect:
        """Learn the vocabulary of a column on the targets of ``objective``; all effects are 0.

        With ``shared``, and where there are vectors, rare words and unseen ones are known, too: see `word_features`.
        """
        gradient, curvature = objective.derivatives(np.zeros((len(column), objective.outputs)))
        column = column.compact()
        texts = [*column.categories, None]
        # Rows of one text are one text to the vocabulary.
        text = np.where(column.codes < 0, len(column.categories), column.codes)
        slope, bend = (_add_up(text, values, len(texts)) for values in (gradient, curvature))
        further = vector_words() if shared else None
        tokeniser = learn_vocabulary(texts, slope, bend, most=most, seed=seed, further=further)
        of_text = tokeniser.bags(texts)
        times = np.bincount(text, minlength=len(texts))
        rows = np.bincount(of_text.ids, weights=times[of_text.rows], minlength=tokeniser.size)
        idf = np.log((1 + len(column)) / (1 + rows)) + 1
        return cls(name, tokeniser, idf, np.zeros((tokeniser.size, gradient.shape[1])))

    def finish(self) -> None:
        """Make the table (V, outputs + 1) of whole numbers, in ``units`` (outputs + 1,); the last column is idf squared."""
        values = np.column_stack([self.effect * self.idf[:, None], self.idf**2])
        largest = np.abs(values).max(axis=0, initial=0.0)
        _, exponent = np.frexp(np.maximum(largest, np.finfo(np.float32).tiny))
        self.units: FloatArray = np.exp2(exponent - TABLE_BITS)
        self.table: Ints = np.round(values / self.units).astype(np.int64)

    @property
    def bound(self) -> float:
        """What it adds at most to any sum, in size: by Cauchy and Schwarz the length of an output's effects."""
        return float(np.sqrt((self.effect**2).sum(axis=0)).max(initial=0.0))

    def matrix(self, column: Strings) -> Any:
        """Return the n-grams of each row as a sparse matrix (n, V) of rows of length 1, or 0 where there is none."""
        from scipy.sparse import csr_array

        bags = find_bags(self.tokeniser, column)
        values = self.idf[bags.ids]
        length = np.sqrt(np.bincount(bags.rows, weights=values**2, minlength=len(bags)))
        return csr_array((values / length[bags.rows], bags.ids, bags.starts), (len(bags), len(self.idf)))

    def lines(
        self, column: Strings, select: Strings, *, shared: bool = True
    ) -> Callable[[float, FloatArray], NgramLines]:
        """Return what makes a block of a penalty and weights: each n-gram's own, and if ``shared`` those of `word_features`."""
        exact = self.matrix(column)
        matrix, select_matrix = exact.astype(np.float32), self.matrix(select).astype(np.float32)
        self.features, self.has_vectors = [], False
        if shared:
            self.features, self.has_vectors = make_features(self.tokeniser, exact)
        if not self.features:
            return partial(NgramLines, matrix, select_matrix)
        return partial(NgramLines, Widened(matrix, self.features), Widened(select_matrix, self.features))

    def start(self) -> FloatArray:
        """Return the weights with which `lines` begins."""
        shared = sum(part.shape[1] for part in self.features)
        return np.pad(self.effect, ((0, shared), (0, 0)))

    def settle(self, weights: FloatArray) -> FloatArray:
        """Return the effects (V, outputs) that weights make, and forget the features."""
        effect = fold(self.features, weights) if self.features else weights
        self.features = []
        return effect

    def predict(self, column: Strings) -> FloatArray:
        """Return what each row's text adds, (n, outputs)."""
        bags = find_bags(self.tokeniser, column)
        sums = _add_up(bags.rows, self.table[bags.ids].astype(np.float64), len(bags)) * self.units
        return np.asarray(sums[:, :-1] / np.sqrt(np.maximum(sums[:, -1:], 1.0)))

    def add_to(self, graph: Graph, shift: int) -> str:
        """Add it to a graph; return the name of what it adds, float (n, shift + outputs).

        The first ``shift`` outputs get nothing.
        """
        return graph.read_text(self.name, self.tokeniser, *self._shifted(shift))

    def to_sql(self, prefix: str, shift: int) -> list[str]:
        """Return SQL of what the text adds to each output: elements of an array that who runs it puts in; see `tokens_sql`."""
        table, units = self._shifted(shift)
        name = reference(prefix, key_of(TextReader("", (self.name,), 0, self.tokeniser, table, units)))
        return [f"{name}[{shift + k + 1}]" for k in range(len(self.units) - 1)]

    def _shifted(self, shift: int) -> tuple[FloatArray, FloatArray]:
        table = np.pad(self.table, ((0, 0), (shift, 0))).astype(np.float64)
        return table, np.pad(self.units, (shift, 0), constant_values=1.0)


def _add_up(rows: Ints, values: FloatArray, n: int) -> FloatArray:
    """Return the sums (n, w) of ``values`` (m, w) over their ``rows`` (m,)."""
    sums = [np.bincount(rows, weights=column, minlength=n).astype(np.float64) for column in values.T]
    return np.stack(sums, axis=1)


def _inner(one: FloatArray, other: FloatArray) -> FloatArray:
    """Return the inner products (outputs,) of columns (m, outputs); ``sum(axis=0)`` takes 3 times as long for 5 columns."""
    return np.asarray(np.einsum("ij,ij->j", one, other))


class NgramLines:
    """A block of `objective.backfit`: a line for each n-gram of a text column, ``effect`` (V, outputs).

    ``matrix`` and ``select_matrix`` are `TextEffect.matrix`. A Newton step is solved by conjugate gradients, for
    each output by itself.
    """

    def __init__(self, matrix: Any, select_matrix: Any, penalty: float, effect: FloatArray) -> None:
        self.output: int | None = None
        self.coupled = True
        self.matrix = matrix
        self.select_matrix = select_matrix
        self.penalty = penalty
        self.effect = effect
        wide = isinstance(matrix, Widened)
        self._transposed: Callable[[FloatArray], Any] = (
            matrix.transposed if wide else matrix.T.tocsr().__matmul__
        )

    def improve(self, gradient: FloatArray, hessian: FloatArray, scores: FloatArray) -> None:
        """Take a Newton step, and add its change to ``scores`` (n, outputs).

        In float32, which takes less time: the next step begins at an exact gradient.
        """
        matrix, transposed, penalty = self.matrix, self._transposed, np.float32(self.penalty)
        outputs = self.effect.shape[1]
        gradient, hessian = gradient.astype(np.float32), hessian.astype(np.float32)
        if outputs > 1 and self.coupled:
            # Twice the diagonal is no less than the whole Hessian, whose rows sum to 0 (Gershgorin); what `Objective`
            # gives is the diagonal times K / (K - 1), with which steps overshoot where two classes compete.
            hessian = hessian * np.float32(2 * (outputs - 1) / outputs)
        residual = -transposed(gradient) - penalty * self.effect.astype(np.float32)
        change, direction = np.zeros_like(residual), residual.copy()
        square = _inner(residual, residual)
        enough = TOLERANCE * square
        for _ in range(STEPS):
            bent = transposed(hessian * (matrix @ direction)) + penalty * direction
            pace = square / np.maximum(_inner(direction, bent), np.finfo(np.float32).tiny)
            change += pace * direction
            residual -= pace * bent
            before, square = square, _inner(residual, residual)
            if (square <= enough).all():
                break
            direction = residual + square / np.maximum(before, np.finfo(np.float32).tiny) * direction
        self.effect += change
        scores += matrix @ change

    def of(self, *, select: bool) -> FloatArray:
        """Return what it adds to each row, (n, outputs)."""
        return np.asarray((self.select_matrix if select else self.matrix) @ self.effect)
