"""Vectors as a few numbers that trees and networks read: directions that predict the targets, then those of most variance.

A ridge regression on all numbers of a vector, whose penalty is that of the least leave-one-out error, and for classes a
softmax regression that starts from it give the first; the principal components the rest. Both come from one decomposition of
the centred vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pg_distill.frame import FloatArray, VectorArray

__all__ = ["NETWORK_NUMBERS", "TREE_NUMBERS", "Projection"]

TREE_NUMBERS, NETWORK_NUMBERS = 32, 64
"""Numbers of a vector that trees, and networks, read."""
SUPERVISED = 16
"""Of these at most so many directions that predict the targets."""
CLIP = 1e-6
"""A smaller probability counts as this: a line predicts the logarithms first, and a teacher that is a line is found exactly."""
DECOMPOSED = 512
"""Longer vectors are first made so short by a random projection along their greatest variance."""
MOST_FLOPS = 1e10
"""Of the product of the vectors with themselves: half a second; a few rows a number are enough."""
ROWS_A_NUMBER = 4
LOGISTIC_STEPS = 40
PENALTIES = 10.0 ** np.arange(-4, 3)
"""Of the ridge regression, in units of the mean variance of a component."""


@dataclass(frozen=True)
class Projection:
    """``(v - mean) @ matrix`` for the vectors v of one column: ``matrix`` (length, k); NaN for NULL."""

    name: str
    mean: FloatArray
    matrix: FloatArray

    @classmethod
    def learn(
        cls, name: str, values: VectorArray, target: FloatArray, *, most: int, seed: int = 0
    ) -> Projection:
        """Learn ``most`` directions, or as many as there are numbers, from vectors (n, length) and targets (n, K)."""
        length = values.shape[1]
        rng = np.random.default_rng(seed)
        known = np.flatnonzero(np.isfinite(values[:, 0]) & np.isfinite(target).all(axis=1))
        rows = max(int(MOST_FLOPS / (2 * length**2)), ROWS_A_NUMBER * length)
        if len(known) > rows:
            known = np.sort(rng.choice(known, rows, replace=False))
        size = min(most, length)
        if len(known) < 2:
            return cls(name, np.zeros(length), np.eye(length, size))
        x = values[known].astype(np.float64)
        mean = x.mean(axis=0)
        x -= mean
        basis = np.eye(length)
        if length > DECOMPOSED:
            basis = x.T @ rng.standard_normal((len(x), DECOMPOSED))
            basis = np.linalg.qr(x.T @ (x @ np.linalg.qr(basis)[0]))[0]
            x = x @ basis
        variance, directions = np.linalg.eigh(x.T @ x / len(x))
        order = np.argsort(-variance, kind="stable")
        order = order[variance[order] > 1e-12 * max(float(variance[order[0]]), 1e-300)][: len(x) - 1]
        if not len(order):
            return cls(name, mean, np.zeros((length, size)))
        variance, directions = variance[order], directions[:, order]
        # Signs are not told by the decomposition: the largest share of each is positive, on every machine.
        largest = np.abs(directions).argmax(axis=0)
        directions = directions * np.sign(directions[largest, np.arange(len(order))])
        found = _supervised(x @ directions / np.sqrt(variance), variance, target[known], size)
        matrix = np.concatenate(
            [directions / np.sqrt(variance) @ found, directions / np.sqrt(variance)], axis=1
        )
        matrix = (basis @ matrix)[:, :size]
        if matrix.shape[1] < size:
            matrix = np.pad(matrix, ((0, 0), (0, size - matrix.shape[1])))
        return cls(name, mean, matrix)

    @property
    def size(self) -> int:
        """How many numbers it gives."""
        return int(self.matrix.shape[1])

    @property
    def bias(self) -> FloatArray:
        """What is added to ``v @ matrix``, (k,)."""
        return np.asarray(-(self.mean @ self.matrix))

    def transform(self, values: VectorArray) -> FloatArray:
        """Return the numbers (n, k) of vectors (n, length)."""
        return np.asarray(values.astype(np.float64) @ self.matrix + self.bias)


def _are_apart(target: FloatArray) -> bool:
    """Whether rows of ``target`` are probabilities of several labels, which need not sum to 1."""
    return target.shape[1] > 1 and not np.allclose(target.sum(axis=1), 1.0, rtol=0, atol=1e-3)


def _spread(target: FloatArray) -> FloatArray:
    """Return targets as what a line may predict: probabilities as centred logarithms, of several labels as log-odds."""
    if _are_apart(target):
        p = np.clip(target, CLIP, 1.0 - CLIP)
        target = np.log(p) - np.log1p(-p)
    elif target.shape[1] > 1:
        target = np.log(np.clip(target, CLIP, 1.0))
        target = target - target.mean(axis=1, keepdims=True)
        if target.shape[1] == 2:
            target = target[:, 1:]
    return np.asarray(target - target.mean(axis=0))


def _logistic(
    scores: FloatArray, variance: FloatArray, target: FloatArray, penalty: float, start: FloatArray
) -> FloatArray:
    """Return slopes (r, K) of a softmax regression on whitened ``scores`` (n, r), by Nesterov's accelerated gradients.

    The scores being white, Boehning's bound of the curvature is a number a direction, and a step a division. The penalty is that
    of the ridge regression on logarithms, in units of the curvature; ``start`` are its slopes.
    """
    n, k = len(scores), target.shape[1]
    small = scores.astype(np.float32)
    bound = 0.5
    weight = 0.05 * penalty / variance  # a usual p (1 - p): a squared logarithm weighs as 1 there
    slopes = ahead = np.column_stack([-start, start]) if start.shape[1] < k else start
    base = np.log(np.clip(target, CLIP, 1.0)).mean(axis=0)
    moment = 1.0
    for _ in range(LOGISTIC_STEPS):
        z = small @ ahead.astype(np.float32) + base
        z -= z.max(axis=1, keepdims=True)
        p = np.exp(z)
        p /= p.sum(axis=1, keepdims=True)
        gradient = small.T @ (p - target).astype(np.float32) / n + weight[:, None] * ahead
        moved = ahead - gradient / (bound + weight)[:, None]
        following = (1 + np.sqrt(1 + 4 * moment**2)) / 2
        ahead = moved + (moment - 1) / following * (moved - slopes)
        slopes, moment = moved, following
    return np.asarray(slopes - slopes.mean(axis=1, keepdims=True))


def _supervised(scores: FloatArray, variance: FloatArray, target: FloatArray, most: int) -> FloatArray:
    """Return directions (r, m) in units of the whitened ``scores`` (n, r) that predict ``target`` (n, outputs)."""
    n, probabilities = len(scores), target
    target = _spread(target)
    slopes = scores.T @ target / n
    chosen = 0.0
    best, least = np.zeros_like(slopes), np.inf
    for penalty in PENALTIES * variance.mean():
        kept = variance / (variance + penalty)
        fitted = scores @ (slopes * kept[:, None])
        leverage = np.minimum((scores**2) @ kept / n + 1 / n, 0.999)
        error = float((((target - fitted) / (1 - leverage[:, None])) ** 2).mean())
        if error < least:
            best, least, chosen = slopes * kept[:, None], error, penalty
    if probabilities.shape[1] > 1 and not _are_apart(probabilities):
        best = _logistic(scores, variance, probabilities, chosen, best)
    left, strength, _ = np.linalg.svd(best, full_matrices=False)
    some = strength > 1e-9 * max(float(strength[0]), 1e-300)
    left = left[:, some][:, : min(SUPERVISED, most)]
    return np.asarray(
        left * np.where(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])] < 0, -1.0, 1.0)
    )
