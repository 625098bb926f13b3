"""The distillation loss as students without layers minimise it: its derivatives, and backfitting."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from pg_distill.errors import InvalidData
from pg_distill.frame import FloatArray, Task
from pg_distill.students.bounded import increments, least_quadratic
from pg_distill.students.ensemble import n_outputs
from pg_distill.students.families import Setup, Shape
from pg_distill.students.soft_labels import (
    Targets,
    distillation_loss,
    fit_sharpness,
    sigmoid,
    softmax,
    targets,
)
from pg_distill.students.transfer_set import AUGMENTED, TAIL, TransferSet

LEAST_GAIN = 1e-3
"""A sweep that lowers the loss by a smaller share ends backfitting."""
MOST_LOG_FACTOR, LOG_FACTOR_STEP, GOLDEN = 2.0, 0.02, (5**0.5 - 1) / 2
"""Where the logarithm of a factor of logits is looked for, how closely, and the golden section."""

__all__ = [
    "Block",
    "Calibrated",
    "Lines",
    "Objective",
    "Steps",
    "backfit",
    "ordering",
    "resolve_targets",
    "sharpness",
    "take_targets",
]


class Objective:
    """The distillation loss and its derivatives by the sums that trees add up to.

    Sums start at ``base``, the best constant; those of regression are in units of ``scale``, the target's
    deviation.
    """

    def __init__(
        self, task: Task, n_classes: int, temperature: float, goal: Targets, like: Objective | None = None
    ) -> None:
        self.task = task
        self.temperature = temperature
        self.outputs = n_outputs(task, n_classes)
        weight = goal.weight
        mean_weight = float(weight.mean())
        self.soft_weight = goal.soft_weight / mean_weight
        self.hard_weight = goal.hard_weight / mean_weight
        self.base: FloatArray
        self.scale: float
        self.base, self.scale = (like.base, like.scale) if like else _start(task, goal)
        first = 1 if task == "binary" else 0
        self.soft, self.hard = goal.soft[:, first:], goal.hard[:, first:]
        if task == "regression":
            self.soft = (self.soft - self.base) / self.scale
            self.hard = (self.hard - self.base) / self.scale

    def sharpened(self, scores: npt.NDArray[Any]) -> tuple[float, float]:
        """Return the factor of the logits of raw ``scores`` that makes their mean loss least, and that loss; 1 for regression.

        A strong penalty makes a student unsure as well as smooth: with the factor the one is told from the other. As in
        `fit_sharpness` its logarithm has a normal prior, which counts in the loss. Found by golden sections, as that has one
        minimum.
        """

        def loss(u: float) -> float:
            return self.loss(scores, math.exp(u)) + u * u / (2 * len(self.soft))

        if self.task == "regression":
            return 1.0, loss(0.0)
        low, high = -MOST_LOG_FACTOR, MOST_LOG_FACTOR
        while high - low > LOG_FACTOR_STEP:
            left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
            low, high = (low, right) if loss(left) < loss(right) else (left, high)
        best = min((low + high) / 2, 0.0, key=loss)
        return math.exp(best), loss(best)

    def loss(self, scores: npt.NDArray[Any], factor: float = 1.0) -> float:
        """Return the mean loss of raw ``scores`` (n,) or (n, outputs), with their logits, the start included, times a factor."""
        z = self._sums(scores) * factor
        soft_weight, hard_weight = self.soft_weight, self.hard_weight
        total = float(soft_weight.sum() + hard_weight.sum())
        if self.task == "regression":
            squared = soft_weight @ (z - self.soft) ** 2 + hard_weight @ (z - self.hard) ** 2
            return float(squared.sum()) / total
        if self.task == "binary":
            z, soft, hard = (np.column_stack([a, b]) for a, b in self._pairs(z))
        else:
            soft, hard = self.soft, self.hard
        loss, _ = distillation_loss(z, soft, hard, soft_weight, hard_weight, self.temperature, task=self.task)
        return loss / total

    def _pairs(self, z: FloatArray) -> Sequence[tuple[FloatArray, FloatArray]]:
        return [(np.zeros_like(z), z), (1.0 - self.soft, self.soft), (1.0 - self.hard, self.hard)]

    def derivatives(self, scores: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """Return the gradient and (the diagonal of) the Hessian, both of the shape of ``scores``."""
        z = self._sums(scores)
        soft_weight, hard_weight = self.soft_weight[:, None], self.hard_weight[:, None]
        if self.task == "regression":
            gradient = soft_weight * (z - self.soft) + hard_weight * (z - self.hard)
            hessian = np.broadcast_to(soft_weight + hard_weight, z.shape)
            return gradient.reshape(scores.shape), np.ascontiguousarray(hessian).reshape(scores.shape)
        gradient, hessian = np.zeros_like(z), np.zeros_like(z)
        parts = ((self.soft, soft_weight, self.temperature), (self.hard, hard_weight, 1.0))
        for target, weight, temperature in parts:
            if weight.any():
                p = softmax(z, temperature) if self.task == "multiclass" else sigmoid(z, temperature)
                gradient += weight * temperature * (p - target)
                hessian += weight * p * (1.0 - p)
        if self.task == "multiclass":
            hessian *= self.outputs / (
                self.outputs - 1
            )  # Friedman 2001, for dropping the other classes' terms
        return gradient.reshape(scores.shape), hessian.reshape(scores.shape)

    def _sums(self, scores: npt.NDArray[Any]) -> FloatArray:
        z = np.asarray(scores, np.float64).reshape(len(self.soft), self.outputs)
        return z if self.task == "regression" else z + self.base


def _start(task: Task, goal: Targets) -> tuple[FloatArray, float]:
    """Return the best constant sums, and the scale of the sums."""
    mean = np.average(goal.mean, axis=0, weights=goal.weight)
    if task == "regression":
        deviation = float(np.sqrt(np.average((goal.mean[:, 0] - mean[0]) ** 2, weights=goal.weight)))
        return mean, deviation if deviation > 0 else 1.0
    least = 0.5 / len(goal.weight)
    if task == "multilabel":
        mean = np.clip(mean, least, 1.0 - least)
        return np.log(mean) - np.log1p(-mean), 1.0
    logs = np.log(np.maximum(mean, least))
    logs -= logs.mean()
    return (logs[1:] - logs[:1] if task == "binary" else logs), 1.0


def ordering(task: Task, target: FloatArray) -> FloatArray:
    """Return what categories are put in order by, (n, outputs)."""
    return target[:, 1:] if task == "binary" else target


def resolve_targets(student: Any, data: TransferSet, temperature: float | None = None) -> Targets:
    """Return the targets of ``data`` under the alpha of ``student``, and its temperature unless told otherwise.

    Values are clipped to what real rows have: one typing error in a label, or what a teacher makes of a made-up row, would
    outweigh all other squares.
    """
    logits, y = data.teacher_logits, data.y
    if student.task == "regression":
        real = data.source != AUGMENTED
        logits = None if logits is None else _sober(logits, logits[real] if real.any() else logits)
        y = None if y is None else _sober(y, y)
    return targets(
        student.task,
        student.n_classes,
        logits,
        y,
        data.weights,
        temperature=student.setup.temperature if temperature is None else temperature,
        alpha=student.setup.alpha,
    )


def _sober(values: FloatArray, known: FloatArray) -> FloatArray:
    """Return ``values`` clipped to the range of those ``known``, without outliers but twice as wide."""
    known = known[np.isfinite(known)]
    if not len(known):
        return values
    low = np.quantile(known, TAIL, method="higher")
    high = np.quantile(known, 1 - TAIL, method="lower")
    if not low < high:
        return np.clip(values, known.min(), known.max())
    return np.clip(values, low - (high - low) / 2, high + (high - low) / 2)


def take_targets(goal: Targets, rows: npt.NDArray[Any]) -> Targets:
    """Return the targets of some rows; InvalidData where there are none."""
    if not len(rows):
        raise InvalidData("no row has a label or a soft label")
    return Targets(goal.soft[rows], goal.hard[rows], goal.soft_weight[rows], goal.hard_weight[rows])


def sharpness(student: Any, select: TransferSet) -> float:
    """Return the factor of a student's logits that calibrates it on the labels of ``select``; 1 for regression."""
    if student.task == "regression" or select.y is None or not len(select):
        return 1.0
    return fit_sharpness(student.predict_logits(select.frame), select.y, select.weights, task=student.task)


class Calibrated:
    """What students share: their setup, and what calibrates them.

    ``_sharpen`` folds a factor of the logits into what a student has learned.
    """

    sharpness_: float

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    @classmethod
    def sql_sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return no sizes beside those of ``sizes()``: families that have some say so."""
        return ()

    @property
    def task(self) -> Task:
        """The task of the setup."""
        return self.setup.task

    @property
    def n_classes(self) -> int:
        """The number of classes of the setup."""
        return self.setup.n_classes

    def calibrate(self, select: TransferSet) -> bool:
        """Sharpen or soften the logits to what the labels of ``select`` bear out; return whether they changed."""
        factor = sharpness(self, select)
        self.sharpen(factor)
        return factor != 1.0

    def sharpen(self, factor: float) -> None:
        """Multiply the logits by a factor; a later ``refit`` keeps it."""
        self.sharpness_ *= factor
        self._sharpen(factor)

    def _sharpen_again(self) -> Self:
        """Fold the factor that ``calibrate`` found into what a ``refit`` has learned."""
        if self.sharpness_ != 1.0:
            self._sharpen(self.sharpness_)
        return self

    def _sharpen(self, factor: float) -> None:
        raise NotImplementedError


class Block(Protocol):
    """A part of the sum that `backfit` fits: ``effect`` is what it has learned, ``output`` what it adds to; None for all."""

    effect: FloatArray
    output: int | None
    coupled: bool
    """Whether the outputs bear on each other, as those of a softmax do; `backfit` says so."""

    def improve(self, gradient: FloatArray, hessian: FloatArray, scores: FloatArray) -> None:
        """Change the effect, and add the change to ``scores`` (n, outputs)."""
        ...

    def of(self, *, select: bool) -> FloatArray:
        """Return what it adds to each row, (n, outputs)."""
        ...


class Steps:
    """A step function of one column, or a tree's leaf values: ``effect`` (steps, outputs).

    Parameters
    ----------
    codes, select_codes
        Each row's step, (n,).
    penalty
        A quadratic penalty on the effect: a matrix, or its diagonal.
    output
        The output that it adds to; None for all.
    ordered, sign
        The first so many steps are neighbours, and are to rise (1) or to fall (-1), where there is one output; 0 for no order.
    """

    def __init__(
        self,
        codes: npt.NDArray[np.int32],
        select_codes: npt.NDArray[np.int32],
        penalty: FloatArray,
        effect: FloatArray,
        output: int | None = None,
        *,
        ordered: int = 0,
        sign: int = 0,
    ) -> None:
        self.coupled = True
        self.increments = increments(len(effect), ordered, sign) if sign else None
        self.held = (np.arange(len(effect)) > 0) & (np.arange(len(effect)) < ordered)
        self.codes = codes
        self.select_codes = select_codes
        self.penalty = penalty
        self.effect = effect
        self.output = output

    def improve(self, gradient: FloatArray, hessian: FloatArray, scores: FloatArray) -> None:
        """Take a Newton step, and add its change to ``scores`` (n, outputs)."""
        effect, penalty = self.effect, self.penalty
        own = slice(None) if self.output is None else [self.output]
        g, h = self._by_step(gradient[:, own]), self._by_step(hessian[:, own])
        change: Any
        if self.increments is not None:
            curvature = np.diag(h[:, 0]) + (penalty if penalty.ndim > 1 else np.diag(penalty))
            slope = g[:, 0] - h[:, 0] * effect[:, 0]
            made = self.increments
            found = made @ least_quadratic(made.T @ curvature @ made, made.T @ slope, self.held)
            change = found[:, None] - effect
            effect[:, 0] = found
            scores += change[self.codes]
            return
        if penalty.ndim == 1:
            change = -(g + penalty[:, None] * effect[:, own]) / (h + penalty[:, None])
        else:
            curvature = h.T[:, :, None] * np.eye(len(effect)) + penalty
            change = -np.linalg.solve(curvature, (g + penalty @ effect[:, own]).T[:, :, None])[:, :, 0].T
        effect[:, own] += change
        scores[:, own] += change[self.codes]

    def _by_step(self, values: FloatArray) -> FloatArray:
        """Return the sums (steps, width) of ``values`` (n, width) over each step's rows."""
        width = values.shape[1]
        index = self.codes if width == 1 else (self.codes[:, None] * width + np.arange(width)).ravel()
        sums = np.bincount(index, weights=values.ravel(), minlength=len(self.effect) * width)
        return np.asarray(sums.reshape(-1, width), np.float64)

    def of(self, *, select: bool) -> FloatArray:
        """Return what it adds to each row, (n, outputs)."""
        return self.effect[self.select_codes if select else self.codes]


class Lines:
    """Straight lines of several columns at once: ``effect`` (columns, outputs).

    ``matrix`` and ``select_matrix`` (n, columns) are standardised. Outputs by themselves take exact Newton steps,
    those of a softmax share the bound of the Hessian of Boehning 1992. Where there is one, ``signs`` (columns,) says which slopes
    are to be 0 or more, 1, or 0 or less, -1.
    """

    def __init__(
        self,
        matrix: FloatArray,
        select_matrix: FloatArray,
        penalty: float,
        effect: FloatArray,
        weight: FloatArray,
        signs: npt.NDArray[np.int8] | None = None,
    ) -> None:
        self.signs = signs if signs is not None and signs.any() else None
        self.output: int | None = None
        self.coupled = True
        self.matrix = matrix
        self.select_matrix = select_matrix
        self.penalty = penalty
        self.effect = effect
        self.bound = None
        if effect.shape[1] > 1:
            self.bound = 0.5 * (matrix.T @ (matrix * weight[:, None])) + penalty * np.eye(len(effect))

    def improve(self, gradient: FloatArray, hessian: FloatArray, scores: FloatArray) -> None:
        """Take a Newton step, and add its change to ``scores`` (n, outputs)."""
        matrix, effect = self.matrix, self.effect
        curvature = self.bound
        slope = matrix.T @ gradient + self.penalty * effect
        if curvature is not None and self.coupled:
            following = effect - np.linalg.solve(curvature, slope)
        else:
            following = np.empty_like(effect)
            for k, own in enumerate(hessian.T):
                curvature = matrix.T @ (matrix * own[:, None]) + self.penalty * np.eye(len(effect))
                if self.signs is None:
                    following[:, k] = effect[:, k] - np.linalg.solve(curvature, slope[:, k : k + 1])[:, 0]
                    continue
                turn = np.where(self.signs < 0, -1.0, 1.0)
                linear = (slope[:, k] - curvature @ effect[:, k]) * turn
                following[:, k] = turn * least_quadratic(
                    curvature * np.outer(turn, turn), linear, self.signs != 0
                )
        change = following - effect
        effect[:] = following
        scores += matrix @ change

    def of(self, *, select: bool) -> FloatArray:
        """Return what it adds to each row, (n, outputs)."""
        return np.asarray((self.select_matrix if select else self.matrix) @ self.effect)


def backfit(
    blocks: Sequence[Block],
    objective: Objective,
    select: Objective | None,
    *,
    sweeps: int,
    deadline: float | None,
) -> float:
    """Fit a sum of ``blocks``, one after the other, by Newton's method; change their effects in place.

    Backfitting (Hastie, Tibshirani 1986) on the distillation loss. The best sweep on ``select`` is kept; on
    the rows fitted where that is None. Returns its loss.
    """
    judge, on_select = (objective, False) if select is None else (select, True)
    for block in blocks:
        block.coupled = objective.task == "multiclass"

    def total(*, select: bool) -> FloatArray:
        return np.asarray(sum(block.of(select=select) for block in blocks))

    scores = total(select=False)
    best, best_loss = [block.effect.copy() for block in blocks], judge.loss(total(select=on_select))
    for _ in range(sweeps):
        gradient, hessian = objective.derivatives(scores)
        changed: set[int | None] = set()
        for block in blocks:
            if deadline is not None and time.monotonic() > deadline:
                break
            # Boosting's rounds: blocks of different outputs share the derivatives, and so cost one softmax.
            if block.output in changed or None in changed:
                gradient, hessian = objective.derivatives(scores)
                changed = set()
            changed.add(block.output)
            block.improve(gradient, hessian, scores)
        loss, gain = judge.loss(total(select=on_select)), 0.0
        if loss < best_loss:
            gain = best_loss - loss
            best, best_loss = [block.effect.copy() for block in blocks], loss
        if gain <= LEAST_GAIN * abs(best_loss):
            break
    for block, effect in zip(blocks, best, strict=True):
        block.effect[:] = effect
    return best_loss
