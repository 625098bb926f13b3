"""What a vector adds to a linear student's sums: a slope for each of its numbers, and an effect of NULL."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, VectorArray
from pg_distill.students.export import Graph

__all__ = ["Dense", "VectorEffect"]

FAR = 64.0
"""A mean this many lengths away is taken off before the product: float32 would lose what is left of it."""


class Dense:
    """A matrix (n, columns) in single precision, as `text_effect.NgramLines` takes one: products are float64."""

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        self.values = values

    def __matmul__(self, other: FloatArray) -> FloatArray:
        return np.asarray((self.values @ other.astype(np.float32)).astype(np.float64))

    @property
    def T(self) -> Dense:
        """The matrix turned over."""
        return Dense(self.values.T)

    def tocsr(self) -> Dense:
        """Return it as it is: a dense matrix is as fast either way."""
        return self


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

    def matrix(self, values: VectorArray) -> Any:
        """Return the vectors centred and scaled, 0 where they are NULL, and a last column that is 1 there."""
        out = np.zeros((len(values), len(self.effect)), np.float32)
        np.subtract(values, self.mean, out=out[:, :-1], casting="unsafe")
        out[:, :-1] /= np.float32(self.scale)
        missing = np.isnan(out[:, 0])
        out[missing, :-1] = 0.0
        out[missing, -1] = 1.0
        return Dense(out)

    def predict(self, values: VectorArray) -> FloatArray:
        """Return what each row's vector adds, (n, outputs)."""
        found = (values.astype(np.float64) - self.mean) @ (self.effect[:-1] / self.scale)
        return np.asarray(np.where(np.isnan(found[:, :1]), self.effect[-1], found))

    def add_to(self, graph: Graph, shift: int) -> str:
        """Add it to a graph; return the name of what it adds, float (n, shift + outputs): nothing to the first ``shift``."""
        slopes = np.pad(self.effect[:-1] / self.scale, ((0, 0), (shift, 0)))
        x, bias = graph.vector(self.name), -(self.mean @ slopes)
        if np.abs(self.mean).max() > FAR * self.scale:
            x = graph.node("Sub", [x, graph.constant(self.mean.astype(np.float32))])
            bias = (self.mean.astype(np.float32) - self.mean) @ slopes
        x = graph.node(
            "Gemm", [x, graph.constant(slopes.astype(np.float32)), graph.constant(bias.astype(np.float32))]
        )
        missing = graph.node("IsNaN", [x])
        null = np.pad(self.effect[-1:], ((0, 0), (shift, 0))).astype(np.float32)
        return graph.node("Where", [missing, graph.constant(null), x])
