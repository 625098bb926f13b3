"""What a training step of the MLP costs in numpy, and in PyTorch.

Run: OPENBLAS_NUM_THREADS=1 PYTHONPATH=python:tests python tests/bench/mlp_training.py. Prints milliseconds a step, the
least of several cycles in which both take turns, and PyTorch's over ours. One thread each, as in the trainer.
"""

from __future__ import annotations

import json
import time

import torch
from pg_distill.students.network import BATCH
from student_rows import make, transfer
from torch_twin import Numpy, Torch, train

ROWS = 40 * BATCH
ROUNDS = 5


def main() -> None:
    """Time both on the same rows."""
    torch.set_num_threads(1)
    data = transfer(ROWS, "multiclass")
    for hidden in ((32,), (64, 64), (128, 128), (256, 256)):
        for bins in (0, 16):
            seconds: dict[str, list[float]] = {"numpy": [], "torch": []}
            for _ in range(ROUNDS):
                for name, twin in (("numpy", Numpy), ("torch", Torch)):
                    made = twin(make("mlp", "multiclass", hidden=hidden, bins=bins), data)
                    begun = time.perf_counter()
                    losses = train(made, len(data), epochs=2)
                    seconds[name].append((time.perf_counter() - begun) / len(losses))
            ours, theirs = (min(seconds[name]) for name in ("numpy", "torch"))
            figures = {"hidden": hidden, "bins": bins, "numpy_ms": round(1e3 * ours, 4)}
            figures |= {"torch_ms": round(1e3 * theirs, 4), "torch_over_numpy": round(theirs / ours, 3)}
            print(json.dumps(figures))


if __name__ == "__main__":
    main()
