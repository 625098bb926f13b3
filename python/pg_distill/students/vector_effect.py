"""What a vector adds to a linear student's sums: a slope for each of its numbers, and an effect of NULL."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, VectorArray
from pg_distill.students.export import Graph
from pg_distill.students.text_effect import TOLERANCE

__all__ = ["VectorEffect", "VectorLines"]

Float32 = npt.NDArray[np.float32]

FAR = 64.0
"""A mean this many lengths away is taken off before the product: float32 would lose what is left of it."""


GRAM_ROWS = 4096
"""Rows by which the curvature of a Newton step is known beforehand, of long vectors two a number."""
STEPS = 5
"""Steps of conjugate gradients that one Newton step takes: with such a start they gain a digit each."""


class VectorLines:
    """A block of `objective.backfit`: a line for each number of a vector, ``effect`` (length + 1, outputs).

    ``matrix`` and ``select_matrix`` are `VectorEffect.matrix`. A Newton step is solved by conjugate gradients, which start from
    the curvature that all rows would have with the mean weight.
    """

    def __init__(
        self, matrix: Float32, select_matrix: Float32, penalty: float, effect: FloatArray, gram: FloatArray
    ) -> None:
        self.output: int | None = None
        self.coupled = True
        self.matrix = matrix
        self.select_matrix = select_matrix
        self.penalty = penalty
        self.effect = effect
        self._gram = gram
        self._factor: FloatArray | None = None

    def improve(self, gradient: FloatArray, hessian: FloatArray, scores: FloatArray) -> None:
        """Take a Newton step, and add its change to ``scores`` (n, outputs)."""
        from scipy.linalg import cho_factor, cho_solve

        matrix, penalty = self.matrix, self.penalty
        outputs = self.effect.shape[1]
        if outputs > 1 and self.coupled:
            hessian = hessian * (2 * (outputs - 1) / outputs)  # as for n-grams
        if self._factor is None:
            curvature = self._gram * max(float(hessian.mean()), 1e-6)
            curvature[np.diag_indices_from(curvature)] += penalty
            self._factor = cho_factor(curvature)[0]
        residual = -_product(matrix.T, gradient) - penalty * self.effect
        change = np.zeros_like(residual)
        direction = start = cho_solve((self._factor, False), residual)
        square = (residual * start).sum(axis=0)
        enough = TOLERANCE * square
        tiny = np.finfo(float).tiny
        moved = np.zeros_like(scores)
        for _ in range(STEPS):
            along = _product(matrix, direction)
            bent = _product(matrix.T, hessian * along) + penalty * direction
            pace = square / np.maximum((direction * bent).sum(axis=0), tiny)
            change += pace * direction
            moved += pace * along
            residual -= pace * bent
            start = cho_solve((self._factor, False), residual)
            before, square = square, (residual * start).sum(axis=0)
            if (square <= enough).all():
                break
            direction = start + square / np.maximum(before, tiny) * direction
        self.effect += change
        scores += moved

    def of(self, *, select: bool) -> FloatArray:
        """Return what it adds to each row, (n, outputs)."""
        return _product(self.select_matrix if select else self.matrix, self.effect)


def _product(matrix: Float32, other: FloatArray) -> FloatArray:
    return np.asarray((matrix @ other.astype(np.float32)).astype(np.float64))


class VectorEffect:
    """The effect of one column of vectors.

    Parameters
    ----------
    name
        The column's.
    mean, scale
        Of what is known of it: (length,), and a number that makes the usual vector one of length 1.
    effect
        (length + 1, outputs); the last is that of NULL.
    """

    def __init__(self, name: str, mean: FloatArray, scale: float, effect: FloatArray) -> None:
        self.name = name
        self.mean = mean
        self.scale = scale
        self.effect = effect

    @classmethod
    def learn(cls, name: str, values: VectorArray, outputs: int) -> VectorEffect:
        """Learn mean and scale of vectors (n, length); all effects are 0."""
        known = values[np.isfinite(values[:, 0])]
        length = values.shape[1]
        effect = np.zeros((length + 1, outputs))
        if not len(known):
            return cls(name, np.zeros(length), 1.0, effect)
        mean = known.mean(axis=0, dtype=np.float64)
        # By the matrix's own sums: a copy of it in double precision takes as much again, twice.
        square = float((known.astype(np.float32) ** 2).sum(axis=1, dtype=np.float64).mean() - (mean**2).sum())
        return cls(name, mean, float(np.sqrt(max(square, 0.0))) or 1.0, effect)

    def lines(self, values: VectorArray, select: VectorArray) -> Callable[[float, FloatArray], VectorLines]:
        """Return what makes a block of a penalty and effects, for vectors to fit to and to select by."""
        matrix, select_matrix = self.matrix(values), self.matrix(select)
        some = matrix[:: max(1, len(matrix) // max(GRAM_ROWS, 2 * matrix.shape[1]))]
        gram = (some.T @ some).astype(np.float64) * (len(matrix) / max(1, len(some)))
        return lambda penalty, effect: VectorLines(matrix, select_matrix, penalty, effect, gram)

    def matrix(self, values: VectorArray) -> Float32:
        """Return the vectors centred and scaled, 0 where they are NULL, and a last column that is 1 there."""
        out = np.zeros((len(values), len(self.effect)), np.float32)
        np.subtract(values, self.mean, out=out[:, :-1], casting="unsafe")
        out[:, :-1] /= np.float32(self.scale)
        missing = np.isnan(out[:, 0])
        out[missing, :-1] = 0.0
        out[missing, -1] = 1.0
        return out

    def predict(self, values: VectorArray) -> FloatArray:
        """Return what each row's vector adds, (n, outputs)."""
        found = (values.astype(np.float64) - self.mean) @ (self.effect[:-1] / self.scale)
        return np.asarray(np.where(np.isnan(found[:, :1]), self.effect[-1], found))

    def add_to(self, graph: Graph, shift: int, base: FloatArray | None = None) -> str:
        """Add it to a graph; return the name of what it adds, float (n, shift + outputs): nothing to the first ``shift``.

        ``base`` (shift + outputs,) is added too.
        """
        slopes = np.pad(self.effect[:-1] / self.scale, ((0, 0), (shift, 0)))
        x, bias = graph.vector(self.name), -(self.mean @ slopes)
        if np.abs(self.mean).max() > FAR * self.scale:
            x = graph.node("Sub", [x, graph.constant(self.mean.astype(np.float32))])
            bias = (self.mean.astype(np.float32) - self.mean) @ slopes
        null = np.pad(self.effect[-1:], ((0, 0), (shift, 0)))
        if base is not None:
            bias, null = bias + base, null + base
        x = graph.node(
            "Gemm", [x, graph.constant(slopes.astype(np.float32)), graph.constant(bias.astype(np.float32))]
        )
        missing = graph.node("IsNaN", [x])
        return graph.node("Where", [missing, graph.constant(null.astype(np.float32)), x])
