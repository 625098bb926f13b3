from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_distill.students.soft_labels import (
    CLIP,
    distillation_loss,
    distillation_value_loss,
    fit_sharpness,
    kl,
    log_softmax,
    logits_from_probabilities,
    one_hot,
    softmax,
    targets,
)

RNG = np.random.default_rng(0)
LOGITS, TEACHER = RNG.normal(size=(2, 6, 4)) * 3
Y = np.array([0, 1, 2, 3, 1, 2])


@given(st.floats(0.25, 20.0), st.floats(-1e4, 1e4))
@settings(max_examples=50)
def test_softmax_sums_to_one_and_ignores_shifts(temperature: float, shift: float) -> None:
    p = softmax(LOGITS + shift, temperature)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    np.testing.assert_allclose(p, softmax(LOGITS, temperature), atol=1e-8)


def test_huge_logits_do_not_overflow() -> None:
    assert np.isfinite(log_softmax(np.array([[1e300, -1e300]]))).all()
    assert softmax(np.array([[1e4, 0.0]], np.float32)).dtype == np.float32


def test_temperature_softens() -> None:
    sharp, soft = softmax(TEACHER).max(axis=1), softmax(TEACHER, 4.0).max(axis=1)
    assert (soft < sharp).all()
    np.testing.assert_array_equal(softmax(TEACHER).argmax(1), softmax(TEACHER, 4.0).argmax(1))


def test_logits_of_probabilities_give_them_back() -> None:
    p = softmax(TEACHER)
    np.testing.assert_allclose(softmax(logits_from_probabilities(p)), p, rtol=1e-5)
    certain = logits_from_probabilities(np.array([[1.0, 0.0]]))
    assert certain[0, 0] - certain[0, 1] == pytest.approx(-np.log(CLIP), rel=1e-6)


def test_divergence_is_zero_only_for_equal_distributions() -> None:
    np.testing.assert_allclose(kl(TEACHER, TEACHER + 5.0), 0.0, atol=1e-12)
    assert (kl(TEACHER, LOGITS) > 0).all()


def loss_by_the_book(temperature: float, alpha: float) -> float:
    """Hinton's formula, written as it stands in the paper."""
    p = softmax(TEACHER, temperature)
    divergence = (p * np.log(p / softmax(LOGITS, temperature))).sum(axis=1)
    label = -np.log(softmax(LOGITS)[np.arange(len(Y)), Y])
    return float((alpha * temperature**2 * divergence + (1 - alpha) * label).sum())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_loss_and_gradient(temperature: float, alpha: float) -> None:
    goal = targets("multiclass", 4, TEACHER, Y, None, temperature=temperature, alpha=alpha)
    arguments = (goal.soft, goal.hard, goal.soft_weight, goal.hard_weight, temperature)
    loss, gradient = distillation_loss(LOGITS, *arguments)
    assert loss == pytest.approx(loss_by_the_book(temperature, alpha))
    for i, k in [(0, 0), (2, 3), (5, 1)]:
        moved = LOGITS.copy()
        moved[i, k] += 1e-6
        slope = (distillation_loss(moved, *arguments)[0] - loss) / 1e-6
        assert gradient[i, k] == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_gradient_of_values() -> None:
    values, soft, hard = RNG.normal(size=(3, 5, 1))
    weights = RNG.random((2, 5))
    loss, gradient = distillation_value_loss(values, soft, hard, *weights)
    moved = values.copy()
    moved[3] += 1e-6
    assert gradient[3, 0] == pytest.approx(
        (distillation_value_loss(moved, soft, hard, *weights)[0] - loss) / 1e-6, rel=1e-4
    )


def test_what_is_unknown_has_no_weight() -> None:
    logits = TEACHER.copy()
    logits[0] = np.nan
    y = Y.copy()
    y[1] = -1
    goal = targets("multiclass", 4, logits, y, np.full(6, 2.0), temperature=1.0, alpha=0.3)
    np.testing.assert_allclose(goal.soft_weight, [0.0, 2.0, *[0.6] * 4])
    np.testing.assert_allclose(goal.hard_weight, [2.0, 0.0, *[1.4] * 4])
    np.testing.assert_allclose(goal.mean[0], one_hot(Y, 4)[0])
    np.testing.assert_allclose(goal.mean[1], softmax(TEACHER)[1])


def test_a_control_takes_nothing_from_the_teacher() -> None:
    y = np.where(np.arange(6) < 3, Y, -1)
    goal = targets("multiclass", 4, TEACHER, y, None, temperature=2.0, alpha=0.0)
    assert (goal.soft_weight == 0).all()
    np.testing.assert_array_equal(goal.weight, [1, 1, 1, 0, 0, 0])


def test_regression_mixes_values() -> None:
    value = np.array([[1.0], [2.0], [np.nan]])
    y = np.array([3.0, np.nan, 5.0])
    goal = targets("regression", 1, value, y, None, temperature=1.0, alpha=0.25)
    np.testing.assert_allclose(goal.mean[:, 0], [0.25 * 1 + 0.75 * 3, 2.0, 5.0])


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_sharpness_is_found_again(factor: float, n_classes: int) -> None:
    rng = np.random.default_rng(1)
    logits = 2 * rng.normal(size=(20_000, n_classes))
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    found = fit_sharpness(logits / factor, y)
    assert found == pytest.approx(factor, rel=0.05)
    # Rows without a label or without weight say nothing.
    y[::2] = -1
    weights = np.ones(20_000)
    weights[1::4] = 0.0
    y[1::4] = 0
    assert fit_sharpness(logits / factor, y, weights) == pytest.approx(factor, rel=0.1)


def test_sharpness_of_few_rows_stays_within_reason() -> None:
    logits = np.array([[3.0, -3.0], [-2.0, 2.0], [1.0, -1.0]])
    assert fit_sharpness(logits, np.array([0, 1, 0])) == 1.0
    assert 1.0 < fit_sharpness(np.tile(logits / 3, (30, 1)), np.tile([0, 1, 0], 30)) < 20.0
    assert fit_sharpness(logits, np.full(3, -1)) == 1.0
    assert fit_sharpness(np.zeros((50, 3)), np.zeros(50, np.int64)) == 1.0
