"""Soft labels: temperature, the distillation loss and its gradient.

Hinton, Vinyals, Dean 2015 (arXiv 1503.02531): ``alpha * T**2 * KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) *
CE(y, softmax(s))``. T**2 keeps the gradient's scale as T grows. The counterpart for regression mixes two squared errors. Of
several labels each class is a binary task of its own: a logit is its log-odds, and the losses of the classes add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Task, members

__all__ = [
    "CLIP",
    "Targets",
    "distillation_loss",
    "distillation_value_loss",
    "fit_sharpness",
    "indicators",
    "kl",
    "log_softmax",
    "logits_from_probabilities",
    "one_hot",
    "probabilities_of",
    "sigmoid",
    "softmax",
    "targets",
]

CLIP = 1e-7
"""Smallest probability whose logarithm is taken: float32, in which teachers answer, resolves 1 - 6e-8."""

SHARPNESS_STEPS, LONGEST_STEP, SHORTEST_STEP = 20, 0.7, 1e-4
"""Newton steps by the logarithm of the sharpness: most of them, the longest, and the one that ends them."""
LEAST_NATS = 1.0
"""Log likelihood that a sharpness other than 1 must gain, in all: what Akaike's criterion asks of one parameter."""

Floats = npt.NDArray[Any]


def log_softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return the logarithm of ``softmax``, without overflow; (n, K) to (n, K)."""
    scaled = logits / logits.dtype.type(temperature)
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return probabilities (n, K) of logits (n, K) softened by ``temperature``; rows sum to 1."""
    return np.asarray(np.exp(log_softmax(logits, temperature)))


def sigmoid(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return the probability of each of (n, K) log-odds by itself, softened by ``temperature``."""
    z = logits / logits.dtype.type(temperature)
    e = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, e.dtype.type(1.0), e) / (1.0 + e))


def probabilities_of(logits: Floats, task: Task, temperature: float = 1.0) -> Floats:
    """Return what logits (n, K) mean: probabilities, of several labels each by itself; of a regression its values."""
    if task == "regression":
        return logits
    return sigmoid(logits, temperature) if task == "multilabel" else softmax(logits, temperature)


def logits_from_probabilities(
    probabilities: FloatArray, clip: float = CLIP, task: Task = "multiclass"
) -> FloatArray:
    """Return logits (n, K) of which `probabilities_of` are ``probabilities``, clipped to at least ``clip``."""
    if task == "regression":
        return probabilities
    if task == "multilabel":
        clipped = np.clip(probabilities, clip, 1.0 - clip)
        return np.asarray(np.log(clipped) - np.log1p(-clipped))
    clipped = np.clip(probabilities, clip, None)
    return np.asarray(np.log(clipped / clipped.sum(axis=1, keepdims=True)))


def _apart(logits: Floats) -> Floats:
    """Return log-odds (n, K) as the logits (n * K, 2) of as many rows of two classes."""
    flat = logits.reshape(-1)
    return np.column_stack([np.zeros_like(flat), flat])


def kl(
    target_logits: FloatArray, logits: FloatArray, temperature: float = 1.0, *, task: Task = "multiclass"
) -> FloatArray:
    """Return KL(softmax(target / T) || softmax(logits / T)) of each row, (n,), in nats; of several labels the sum over them."""
    if task == "multilabel":
        each = kl(_apart(target_logits), _apart(logits), temperature)
        return np.asarray(each.reshape(logits.shape).sum(axis=1))
    log_target = log_softmax(target_logits, temperature)
    difference = log_target - log_softmax(logits, temperature)
    return np.asarray((np.exp(log_target) * difference).sum(axis=1))


def fit_sharpness(
    logits: FloatArray,
    y: npt.NDArray[np.int64],
    weights: FloatArray | None = None,
    *,
    task: Task = "multiclass",
) -> float:
    """Return the factor of logits (n, K) that makes the log loss on labels (n,) least; -1 is no label.

    One over the temperature of Guo et al. 2017 (arXiv 1706.04599). A normal prior on its logarithm, of deviation 1, keeps
    it finite where few rows are all right; it is 1 where another one gains less than ``LEAST_NATS``.
    """
    if task == "multilabel":
        width = logits.shape[1]
        each = np.where((y >= 0)[:, None], members(y, width).astype(np.int64), -1).reshape(-1)
        return fit_sharpness(_apart(logits), each, None if weights is None else np.repeat(weights, width))
    known = np.flatnonzero(y >= 0)
    if not len(known):
        return 1.0
    weight = np.ones(len(known)) if weights is None else np.asarray(weights, float)[known]
    if not weight.any():
        return 1.0
    weight = weight / weight.mean()
    z = logits[known] - logits[known, y[known], None]  # the label's own is 0

    def loss(u: float) -> float:
        return -float(log_softmax(z * np.exp(u))[np.arange(len(z)), y[known]] @ weight)

    u = 0.0
    for _ in range(SHARPNESS_STEPS):
        s = float(np.exp(u))
        p = softmax(z * s)
        mean = (p * z).sum(axis=1)
        spread = (p * z**2).sum(axis=1) - mean**2
        step = (s * float(mean @ weight) + u) / (s * s * float(spread @ weight) + 1.0)
        u -= float(np.clip(step, -LONGEST_STEP, LONGEST_STEP))
        if abs(step) < SHORTEST_STEP:
            break
    return float(np.exp(u)) if loss(0.0) - loss(u) > LEAST_NATS else 1.0


def one_hot(y: npt.NDArray[np.int64], n_classes: int) -> FloatArray:
    """Return (n, K) indicators of class positions; a row of zeros for -1 (no label)."""
    out = np.zeros((len(y), n_classes))
    known = np.flatnonzero(y >= 0)
    out[known, y[known]] = 1.0
    return out


def indicators(y: npt.NDArray[np.int64], n_classes: int, task: Task) -> FloatArray:
    """Return (n, K) 1 for the class, or for each of the classes, that a row has; a row of zeros for -1 (no label)."""
    if task == "multilabel":
        return members(y, n_classes).astype(np.float64)
    return one_hot(y, n_classes)


@dataclass(frozen=True)
class Targets:
    """What each row is to learn, with the mix already resolved.

    ``soft`` (n, K): teacher probabilities at T, or standardised values; ``hard`` (n, K): labels. ``soft_weight`` and
    ``hard_weight`` (n,): alpha and 1 - alpha times the row's weight, moved to the one side where the other is unknown.
    """

    soft: FloatArray
    hard: FloatArray
    soft_weight: FloatArray
    hard_weight: FloatArray

    @property
    def weight(self) -> FloatArray:
        """Total weight of each row, (n,)."""
        return self.soft_weight + self.hard_weight

    @property
    def mean(self) -> FloatArray:
        """The mixed target of each row, (n, K): all that a student at T = 1 needs to know."""
        total = np.maximum(self.weight, np.finfo(float).tiny)[:, None]
        return (self.soft * self.soft_weight[:, None] + self.hard * self.hard_weight[:, None]) / total


def targets(
    task: Task,
    n_classes: int,
    teacher_logits: FloatArray | None,
    y: npt.NDArray[Any] | None,
    weights: FloatArray | None,
    *,
    temperature: float,
    alpha: float,
) -> Targets:
    """Resolve soft labels, labels, ``alpha`` and row weights into one target a row.

    A row without a label learns from the teacher alone, one without teacher logits (NaN) from its label alone, at full weight.
    With ``alpha`` = 0 a row without a label has no weight: the control sees labels only.
    """
    n = len(teacher_logits) if teacher_logits is not None else len(y) if y is not None else 0
    row_weight = np.ones(n) if weights is None else np.asarray(weights, float)
    if teacher_logits is None:
        soft, has_soft = np.zeros((n, n_classes)), np.zeros(n, bool)
    else:
        has_soft = np.asarray(np.isfinite(teacher_logits).all(axis=1))
        clean = np.where(has_soft[:, None], teacher_logits, 0.0)
        soft = probabilities_of(clean, task, temperature)
    if y is None:
        hard, has_hard = np.zeros((n, n_classes)), np.zeros(n, bool)
    elif task == "regression":
        has_hard = np.isfinite(y)
        hard = np.where(has_hard, y, 0.0)[:, None]
    else:
        has_hard = y >= 0
        hard = indicators(y, n_classes, task)
    soft_share = np.where(has_hard, alpha, 1.0 if alpha > 0 else 0.0) * has_soft
    hard_share = np.where(has_soft, 1.0 - alpha, 1.0) * has_hard
    return Targets(soft, hard, soft_share * row_weight, hard_share * row_weight)


def distillation_loss(
    logits: Floats,
    soft: Floats,
    hard: Floats,
    soft_weight: Floats,
    hard_weight: Floats,
    temperature: float,
    *,
    task: Task = "multiclass",
) -> tuple[float, Floats]:
    """Return the loss, summed over rows, and its gradient (n, K) by ``logits``.

    Parameters
    ----------
    logits
        The student's, (n, K).
    soft, hard
        Teacher probabilities at ``temperature`` and label indicators, (n, K).
    soft_weight, hard_weight
        alpha and 1 - alpha times each row's weight, (n,).
    """
    if task == "multilabel":
        return _label_loss(logits, soft, hard, soft_weight, hard_weight, temperature)
    kind = logits.dtype.type
    t = kind(temperature)
    log_student = log_softmax(logits)
    gradient = (np.exp(log_student) - hard) * hard_weight[:, None]
    loss = float(-(hard * log_student).sum(axis=1) @ hard_weight)
    if soft_weight.any():
        log_soft = log_student if temperature == 1.0 else log_softmax(logits, temperature)
        entropy = -(soft * np.log(np.maximum(soft, np.finfo(soft.dtype).tiny))).sum(axis=1)
        divergence = -(soft * log_soft).sum(axis=1) - entropy
        loss += float(temperature**2 * (divergence @ soft_weight))
        gradient += (np.exp(log_soft) - soft) * (soft_weight * t)[:, None]
    return loss, gradient


def _label_loss(
    logits: Floats,
    soft: Floats,
    hard: Floats,
    soft_weight: Floats,
    hard_weight: Floats,
    temperature: float,
) -> tuple[float, Floats]:
    """Do what `distillation_loss` does for several labels: the sum over the classes, each a binary task."""
    t = logits.dtype.type(temperature)

    def cross_entropy(z: Floats, p: Floats) -> Floats:
        return np.asarray((np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))) - p * z).sum(axis=1))

    gradient = (sigmoid(logits) - hard) * hard_weight[:, None]
    loss = float(cross_entropy(logits, hard) @ hard_weight)
    if soft_weight.any():
        tiny = np.finfo(soft.dtype).tiny
        parts = soft * np.log(np.maximum(soft, tiny)) + (1 - soft) * np.log(np.maximum(1 - soft, tiny))
        divergence = cross_entropy(logits / t, soft) + parts.sum(axis=1)
        loss += float(temperature**2 * (divergence @ soft_weight))
        gradient += (sigmoid(logits, temperature) - soft) * (soft_weight * t)[:, None]
    return loss, gradient


def distillation_value_loss(
    values: Floats, soft: Floats, hard: Floats, soft_weight: Floats, hard_weight: Floats
) -> tuple[float, Floats]:
    """Return half the mixed squared error, summed over rows, and its gradient (n, 1): regression's counterpart.

    All values are standardised by the label's deviation, so that alpha means the same on every scale.
    """
    to_soft, to_hard = values - soft, values - hard
    loss = 0.5 * float((to_soft**2).sum(axis=1) @ soft_weight + (to_hard**2).sum(axis=1) @ hard_weight)
    return loss, to_soft * soft_weight[:, None] + to_hard * hard_weight[:, None]
