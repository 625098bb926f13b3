"""Newton steps of parameters that must not be below 0: how linear students keep monotone constraints."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray

__all__ = ["increments", "least_quadratic"]

TOLERANCE = 1e-10
"""Of the largest entry of a gradient: a smaller one is rounding."""
EXCHANGES = 10
"""Exchanges of whole blocks without progress before single ones, which always end."""


def least_quadratic(matrix: FloatArray, vector: FloatArray, held: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the x (k,) of least ``x @ matrix @ x / 2 + vector @ x`` whose entries ``held`` are 0 or more.

    Block principal pivoting (Portugal, Judice, Vicente 1994), with Murty's rule where blocks make no progress.

    Parameters
    ----------
    matrix
        Symmetric and positive definite, (k, k).
    """
    free = np.ones(len(vector), bool)
    best, left = len(vector) + 1, EXCHANGES
    x = np.zeros(len(vector))
    for _ in range(100 * len(vector) + 100):
        x = np.zeros(len(vector))
        if free.any():
            x[free] = np.linalg.solve(matrix[np.ix_(free, free)], -vector[free])
        gradient = matrix @ x + vector
        slack = TOLERANCE * max(1.0, float(np.abs(vector).max(initial=0.0)))
        wrong = held & np.where(free, x < 0.0, gradient < -slack)
        count = int(wrong.sum())
        if not count:
            break
        if count < best:
            best, left = count, EXCHANGES
        elif left:
            left -= 1
        else:
            wrong = np.arange(len(wrong)) == np.flatnonzero(wrong)[-1]
        free ^= wrong
    return np.where(held, np.maximum(x, 0.0), x)


def increments(size: int, ordered: int, sign: int) -> FloatArray:
    """Return the matrix (size, size) that makes steps of their increments.

    The first ``ordered`` steps are neighbours: from the second on an increment of 0 or more makes them rise (``sign`` 1) or fall.
    """
    out = np.eye(size)
    out[:ordered, :ordered] = np.tri(ordered) * np.where(np.arange(ordered) > 0, sign, 1)
    return out
