"""The MLP's training in PyTorch: same network, weights to begin with, batches, loss and schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
from pg_distill.students import mlp, network
from pg_distill.students.transfer_set import TransferSet


class Numpy:
    """The student's own training, step by step."""

    def __init__(self, student: mlp.Mlp, data: TransferSet) -> None:
        student.layers_ = student._prepare(data)
        self.rows, self.goal = student._rows(data)
        # So many rows that a step takes BATCH of them.
        self.trainer = network.NetworkTrainer(student, student.layers_, network.LEAST_STEPS * network.BATCH)
        self.taken = 0

    def step(self, index: Any, rate: float) -> float:
        """Take one step on the rows of ``index``; return their mean loss before it."""
        self.taken += 1
        loss = self.trainer.gradient(self.rows, self.goal, index)
        self.trainer._step(rate, self.taken)
        return loss


class Torch:
    """The twin; the encoding of the inputs is the student's, as it is not trained."""

    def __init__(self, student: mlp.Mlp, data: TransferSet) -> None:
        import torch

        layers = student._prepare(data)
        rows, goal = student._rows(data)
        inputs = np.empty((len(data), student.encoding_.width), np.float32)
        student.encoding_.expand(rows, np.arange(len(data)), inputs)
        self.inputs = torch.from_numpy(inputs)
        self.soft, self.hard, self.soft_weight, self.hard_weight = (torch.from_numpy(g) for g in goal)
        self.temperature = student.setup.temperature
        modules: list[Any] = []
        for weights, biases in zip(layers.weights, layers.biases, strict=True):
            linear = torch.nn.Linear(*weights.shape)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(weights.T.copy()))
                linear.bias.copy_(torch.from_numpy(biases.copy()))
            modules += [linear, torch.nn.ReLU()]
        self.network = torch.nn.Sequential(*modules[:-1])
        decayed = [m.weight for m in modules[::2]]
        others = [m.bias for m in modules[::2]]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": network.WEIGHT_DECAY},
                {"params": others, "weight_decay": 0.0},
            ],
            betas=(network.BETA_1, network.BETA_2),
            eps=network.EPSILON,
        )

    def step(self, index: Any, rate: float) -> float:
        """Take one step on the rows of ``index``; return their mean loss before it."""
        import torch
        from torch.nn import functional

        rows = torch.from_numpy(index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        logits, t = self.network(self.inputs[rows]), self.temperature
        divergence = functional.kl_div(
            functional.log_softmax(logits / t, 1), self.soft[rows], reduction="none"
        ).sum(1)
        entropy = -(self.hard[rows] * functional.log_softmax(logits, 1)).sum(1)
        loss = (t * t * divergence * self.soft_weight[rows] + entropy * self.hard_weight[rows]).mean()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def train(twin: Numpy | Torch, n: int, *, epochs: int, seed: int = 0) -> list[float]:
    """Run a whole cycle on the batches that ``seed`` draws; return each step's loss."""
    rng = np.random.default_rng(seed)
    per_epoch = n // network.BATCH
    losses = []
    for epoch in range(epochs):
        order = rng.permutation(n)
        for i in range(per_epoch):
            progress = (epoch * per_epoch + i + 1) / (epochs * per_epoch)
            index = order[i * network.BATCH : (i + 1) * network.BATCH]
            losses.append(twin.step(index, network._one_cycle(progress) * network.PEAK_RATE))
    return losses
