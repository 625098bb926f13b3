"""The MLP's training in numpy is PyTorch's, step by step."""

from __future__ import annotations

import numpy as np
import pytest
from pg_distill.students.network import BATCH
from student_rows import make, transfer
from torch_twin import Numpy, Torch, train

pytestmark = pytest.mark.slow  # it trains, or waits


@pytest.mark.parametrize(("temperature", "bins"), [(1.0, 0), (3.0, 8)])
def test_losses_are_those_of_pytorch(temperature: float, bins: int) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    options = {"hidden": (32, 32), "bins": bins, "temperature": temperature}
    data = transfer(16 * BATCH, "multiclass")
    ours = np.array(train(Numpy(make("mlp", "multiclass", **options), data), len(data), epochs=8))
    theirs = np.array(train(Torch(make("mlp", "multiclass", **options), data), len(data), epochs=8))
    assert len(ours) == 128
    # Rounding differs, and steps amplify it: the first steps agree to float32's digits, the last ones to a percent.
    np.testing.assert_allclose(ours[:10], theirs[:10], rtol=1e-4)
    np.testing.assert_allclose(ours, theirs, rtol=1e-2)
    assert theirs[-10:].mean() < 0.8 * theirs[:10].mean()
