"""Training of a network: Adam under a one-cycle rate, weights averaged, stopped by its pace."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pg_distill.students.mlp_encoding import Encoded, Float32
from pg_distill.students.soft_labels import distillation_loss, distillation_value_loss

if TYPE_CHECKING:
    from pg_distill.students.mlp import Mlp

__all__ = ["Layers", "NetworkTrainer"]

LEAST_BATCH, BATCH = 32, 256
"""Rows a step, at least and at most: numpy's cost of a call is a small part of the larger one."""


LEAST_STEPS = 64
"""Steps a pass below which they get smaller: 640 rows by 40 instead of 256 at a time, 10 passes: spambase's error 0.090 to
0.082, satimage's 0.161 to 0.141."""


PEAK_RATE = 2e-2
"""AdamW's learning rate at the top of the cycle, for a layer of 64; falls with the root of the width."""


FAN_IN = 256
"""Inputs of a row that are not 0 above which the first layer's rate falls with their number: steps of all its weights add
up, and with 500 columns in bins one of them would push every unit below 0 for good."""


WARM_UP = 0.2
"""Share of the steps in which the rate rises."""


WEIGHT_DECAY = 0.02
BETA_1, BETA_2, EPSILON = 0.9, 0.99, 1e-8
AVERAGE = 0.02
"""The weights' average spans about this share of all steps."""


PACE_STEPS, PACE_MARGIN = 32, 0.95
"""Steps between two looks at the clock, and the share of the time left that a shortened schedule plans for."""


class Layers:
    """Weights and biases as views of one flat vector, so that the optimiser makes few calls."""

    def __init__(self, widths: Sequence[int]) -> None:
        shapes = list(itertools.pairwise(widths))
        self.flat = np.zeros(sum((i + 1) * o for i, o in shapes), np.float32)
        self.weights: list[Float32] = []
        self.biases: list[Float32] = []
        start = 0
        for i, o in shapes:
            self.weights.append(self.flat[start : start + i * o].reshape(i, o))
            start += i * o
        self.n_weights = start
        for _, o in shapes:
            self.biases.append(self.flat[start : start + o])
            start += o


class NetworkTrainer:
    """AdamW over one network, with every buffer allocated once."""

    def __init__(self, mlp: Mlp, layers: Layers, n: int) -> None:
        self.mlp = mlp
        self.layers = layers
        self.n = n
        self.batch = min(max(8, n), int(np.clip(n // LEAST_STEPS, LEAST_BATCH, BATCH)))
        self.n_first = layers.weights[0].size
        self.share = np.float32(min(1.0, FAN_IN / max(1, mlp.encoding_.n_inputs)))
        widths = [mlp.encoding_.width, *mlp.hidden, mlp.n_classes]
        self.activations = [np.empty((self.batch, w), np.float32) for w in widths]
        self.gradients = Layers(widths)
        self.deltas = [np.empty((self.batch, w), np.float32) for w in widths[1:-1]]
        size = len(layers.flat)
        self.first = np.zeros(size, np.float32)
        self.second = np.zeros(size, np.float32)
        self.scratch = np.empty(size, np.float32)
        self.epochs_kept = 0
        self.complete = True

    def gradient(self, rows: Encoded, goal: tuple[Float32, ...], index: npt.NDArray[np.int64]) -> float:
        """Fill ``self.gradients`` with the mean gradient over the rows of ``index``; return their mean loss."""
        mlp, layers = self.mlp, self.layers
        b = len(index)
        x = [a[:b] for a in self.activations]
        mlp.encoding_.expand(rows, index, x[0])
        last = len(layers.weights) - 1
        for k, (weights, biases) in enumerate(zip(layers.weights, layers.biases, strict=True)):
            np.matmul(x[k], weights, out=x[k + 1])
            x[k + 1] += biases
            if k < last:
                np.maximum(x[k + 1], 0.0, out=x[k + 1])
        soft, hard, soft_weight, hard_weight = (g[index] for g in goal)
        if mlp.task == "regression":
            loss, delta = distillation_value_loss(x[-1], soft, hard, soft_weight, hard_weight)
        else:
            loss, delta = distillation_loss(
                x[-1], soft, hard, soft_weight, hard_weight, mlp.setup.temperature, task=mlp.task
            )
        delta *= np.float32(1.0 / b)
        for k in range(last, -1, -1):
            np.matmul(x[k].T, delta, out=self.gradients.weights[k])
            np.sum(delta, axis=0, out=self.gradients.biases[k])
            if k:
                below = self.deltas[k - 1][:b]
                np.matmul(delta, layers.weights[k].T, out=below)
                below *= x[k] > 0
                delta = below
        return loss / b

    def run(
        self,
        rows: Encoded,
        goal: tuple[Float32, ...],
        select_rows: Encoded,
        select_goal: tuple[Float32, ...],
        epochs: int,
        deadline: float | None,
    ) -> None:
        """Train for ``epochs`` passes of the schedule's ``mlp.setup.epochs``; without select rows the last average stays."""
        mlp, layers = self.mlp, self.layers
        rng = np.random.default_rng([mlp.setup.seed, 1])
        per_epoch = max(1, self.n // self.batch)
        steps = per_epoch * mlp.setup.epochs
        width = max([*mlp.hidden, 1])
        peak = PEAK_RATE * min(1.0, (64 / width) ** 0.5)
        keep = np.float32(1.0 - 1.0 / max(1.0, AVERAGE * steps))
        average = layers.flat.copy()
        best, best_flat = np.inf, average
        watched = bool(select_goal[2].any() or select_goal[3].any())
        step, begun = 0, time.monotonic()
        for epoch in range(epochs):
            order = rng.permutation(self.n)
            for start in range(0, per_epoch * self.batch, self.batch):
                if deadline is not None and step % PACE_STEPS == PACE_STEPS - 1:
                    now = time.monotonic()
                    affordable = step + int((deadline - now) / ((now - begun) / step) * PACE_MARGIN)
                    if affordable < min(steps, per_epoch * epochs):
                        self.complete = False
                        steps = max(step, affordable)  # a whole short cycle beats half of a long one
                if step >= steps:
                    break
                self.gradient(rows, goal, order[start : start + self.batch])
                step += 1
                self._step(_one_cycle(step / steps) * peak, step)
                average *= keep
                average += (1 - keep) * layers.flat
            current = layers.flat.copy()
            layers.flat[:] = average
            loss = self._loss(select_rows, select_goal) if watched else -float(epoch)
            layers.flat[:] = current
            if loss < best:
                best, best_flat = loss, average.copy()
                self.epochs_kept = epoch + 1
            # No patience: in the middle of a cycle the loss may rise for long, and the last, small steps bring it down.
            if step >= steps:
                break
        layers.flat[:] = best_flat

    def _step(self, rate: float, step: int) -> None:
        """AdamW with bias correction; decay on weights, not on biases."""
        flat, gradient, scratch = self.layers.flat, self.gradients.flat, self.scratch
        self.first *= np.float32(BETA_1)
        np.multiply(gradient, np.float32(1 - BETA_1), out=scratch)
        self.first += scratch
        self.second *= np.float32(BETA_2)
        np.multiply(gradient, gradient, out=scratch)
        scratch *= np.float32(1 - BETA_2)
        self.second += scratch
        np.multiply(self.second, np.float32(1.0 / (1.0 - BETA_2**step)), out=scratch)
        np.sqrt(scratch, out=scratch)
        scratch += np.float32(EPSILON)
        np.divide(self.first, scratch, out=scratch)
        scratch *= np.float32(rate / (1.0 - BETA_1**step))
        scratch[: self.n_first] *= self.share
        flat[: self.layers.n_weights] *= np.float32(1.0 - rate * WEIGHT_DECAY)
        flat -= scratch

    def _loss(self, rows: Encoded, goal: tuple[Float32, ...]) -> float:
        mlp = self.mlp
        scores = mlp._forward(rows)
        weight = float(goal[2].sum() + goal[3].sum())
        if mlp.task == "regression":
            return distillation_value_loss(scores, *goal)[0] / max(weight, 1e-12)
        soft, hard, soft_weight, hard_weight = goal
        loss, _ = distillation_loss(
            scores, soft, hard, soft_weight, hard_weight, mlp.setup.temperature, task=mlp.task
        )
        return loss / max(weight, 1e-12)


def _one_cycle(progress: float) -> float:
    """Return the rate's share of its peak: a cosine up over ``WARM_UP``, a cosine down to 0 after it."""
    if progress < WARM_UP:
        return float(0.05 + 0.95 * 0.5 * (1 - np.cos(np.pi * progress / WARM_UP)))
    return float(0.5 * (1 + np.cos(np.pi * (progress - WARM_UP) / (1 - WARM_UP))))
