"""Metrics are scikit-learn's, intervals cover what they claim to, latency is summarised over blocks."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import sklearn.metrics as reference
from pg_distill.errors import InvalidParameter
from pg_distill.measure import confidence, decisions, latency
from pg_distill.measure import metrics as measure
from pg_distill.measure.judge import Judge
from pg_distill.runs import summary


def outputs(classes: int, n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)).round(1) + 1.2 * np.eye(classes)[y]  # rounded: ties occur
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return y, p, rng.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_classification_metrics_are_scikit_learns(classes: int, weighted: bool) -> None:
    y, p, given = outputs(classes)
    w = given if weighted else None
    guess, onehot = p.argmax(axis=1), np.eye(classes)[y]
    binary = classes == 2
    expected = {
        "accuracy": reference.accuracy_score(y, guess, sample_weight=w),
        "balanced_accuracy": reference.balanced_accuracy_score(y, guess, sample_weight=w),
        "roc_auc": reference.roc_auc_score(y, p[:, 1], sample_weight=w)
        if binary
        else reference.roc_auc_score(onehot, p, average="macro", sample_weight=w),
        "average_precision": reference.average_precision_score(y, p[:, 1], sample_weight=w)
        if binary
        else reference.average_precision_score(onehot, p, average="macro", sample_weight=w),
        "f1": reference.f1_score(y, guess, average="binary" if binary else "macro", sample_weight=w),
        "neg_log_loss": -reference.log_loss(y, p, sample_weight=w),
    }
    for metric, value in expected.items():
        assert measure.score(metric, y, p, w) == pytest.approx(value, rel=1e-9), metric
    if binary:
        assert measure.brier(y, p, w) == pytest.approx(
            reference.brier_score_loss(y, p[:, 1], sample_weight=w)
        )


def test_regression_metrics_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=300)
    p, w = (y + rng.normal(size=300))[:, None], rng.random(300)
    assert measure.score("r2", y, p, w) == pytest.approx(reference.r2_score(y, p[:, 0], sample_weight=w))
    rmse = reference.root_mean_squared_error(y, p[:, 0], sample_weight=w)
    assert measure.score("neg_root_mean_squared_error", y, p, w) == pytest.approx(-rmse)
    mae = reference.mean_absolute_error(y, p[:, 0], sample_weight=w)
    assert measure.score("neg_mean_absolute_error", y, p, w) == pytest.approx(-mae)


def test_calibration_error_is_small_exactly_where_probabilities_mean_something() -> None:
    rng = np.random.default_rng(0)
    p1 = rng.random(50_000)
    y = (rng.random(50_000) < p1).astype(int)
    honest = np.column_stack([1 - p1, p1])
    boastful = honest**4 / (honest**4).sum(axis=1, keepdims=True)
    assert measure.ece(y, honest) < 0.01
    assert measure.ece(y, boastful) > 0.1


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth, covered, rounds = 0.8, 0, 200
    for seed in range(rounds):
        y = np.zeros(300, int)
        right = np.random.default_rng(seed).random(300) < truth
        p = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
        interval = confidence.bootstrap_interval("accuracy", y, p, seed=seed, resamples=300)
        covered += interval.low <= truth <= interval.high
    assert 0.88 <= covered / rounds <= 0.99


def test_paired_interval_is_narrower_than_two_of_its_kind() -> None:
    y, p, _ = outputs(2, n=2000)
    other = p.copy()
    other[:40] = other[:40, ::-1]  # the two differ in 40 rows only
    paired = confidence.paired_interval("accuracy", y, p, other, seed=0)
    single = confidence.bootstrap_interval("accuracy", y, p, seed=0)
    assert paired.high - paired.low < single.high - single.low
    assert confidence.paired_interval("accuracy", y, p, p, seed=0) == confidence.Interval(0.0, 0.0)


def test_resampled_metrics_are_those_of_the_resampled_rows() -> None:
    """Weights stand for rows drawn several times, and not at all: against scikit-learn on the drawn rows."""
    y, p, w = outputs(3, n=60)
    rng = np.random.default_rng(1)
    draws = rng.integers(0, 60, (20, 60))
    counts = np.stack([np.bincount(d, minlength=60) for d in draws]) * w
    for metric, of in {
        "accuracy": lambda y, p, w: reference.accuracy_score(y, p.argmax(axis=1), sample_weight=w),
        "balanced_accuracy": lambda y, p, w: reference.balanced_accuracy_score(
            y, p.argmax(axis=1), sample_weight=w
        ),
        "f1": lambda y, p, w: reference.f1_score(y, p.argmax(axis=1), average="macro", sample_weight=w),
        "roc_auc": lambda y, p, w: reference.roc_auc_score(np.eye(3)[y], p, sample_weight=w),
        "average_precision": lambda y, p, w: reference.average_precision_score(
            np.eye(3)[y], p, sample_weight=w
        ),
        "neg_log_loss": lambda y, p, w: -reference.log_loss(y, p, sample_weight=w),
    }.items():
        found = measure.METRICS[metric].prepare(y, p)(counts)
        expected = [of(y[d], p[d], w[d]) for d in draws]
        np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=metric)


def test_metrics_that_are_not_defined_are_nan() -> None:
    _, p, _ = outputs(2)
    none, constant = np.zeros(400, int), np.full(400, 3.3)
    assert math.isnan(measure.score("roc_auc", none, p))
    assert math.isnan(measure.score("average_precision", none, p))
    assert math.isnan(measure.score("r2", constant, constant[:, None] + 1))
    assert math.isnan(measure.score("accuracy", none[:0], p[:0]))
    assert math.isnan(measure.score("accuracy", none, p, np.zeros(400)))
    assert confidence.bootstrap_interval("roc_auc", none, p, seed=0, resamples=20) != confidence.Interval(
        0, 0
    )


def test_r2_of_large_values_keeps_its_digits() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=500)
    p = (y + 0.3 * rng.normal(size=500))[:, None]
    shifted = measure.score("r2", y + 1.7e9, p + 1.7e9)  # seconds since 1970
    assert shifted == pytest.approx(measure.score("r2", y, p), abs=1e-5)


@pytest.mark.slow
def test_intervals_of_many_rows_take_seconds() -> None:
    """A run has up to a dozen candidates and two minutes to score them."""
    y, p, _ = outputs(2, n=100_000)
    started = time.process_time()
    for metric in ("accuracy", "average_precision"):
        confidence.bootstrap_interval(metric, y, p, seed=0)
    assert time.process_time() - started < 10


def test_intervals_are_reproducible() -> None:
    y, p, w = outputs(3)
    for metric in ("accuracy", "roc_auc"):
        first = confidence.bootstrap_interval(metric, y, p, w, seed=3, resamples=50)
        assert first == confidence.bootstrap_interval(metric, y, p, w, seed=3, resamples=50)


@pytest.mark.parametrize(
    ("metric", "task", "labelled"),
    [
        ("luck", "binary", True),
        ("r2", "binary", True),
        ("accuracy", "regression", True),
        ("accuracy", "binary", False),
    ],
)
def test_metric_that_cannot_be_measured_is_refused(metric: str, task: str, labelled: bool) -> None:
    with pytest.raises(InvalidParameter):
        measure.check_metric(metric, task, labelled=labelled)  # type: ignore[arg-type]


def test_judge_scores_the_teacher_as_a_full_lift_and_the_majority_as_none() -> None:
    y, p, _ = outputs(3)
    judge = Judge("accuracy", "multiclass", y, p, None, seed=0, resamples=100)
    teacher = judge.figures(p)
    assert teacher["lift"] == 1.0
    assert teacher["fidelity"] == 1.0
    shares = np.tile(np.bincount(y) / len(y), (len(y), 1))
    assert judge.figures(shares)["lift"] == 0.0
    assert judge.figures(shares)["score"] == judge.baseline()
    assert judge.figures(shares)["distinct_classes"] == 1


def test_the_baseline_is_the_majority_by_weight() -> None:
    y, fitted = np.array([0, 1, 1, 1]), np.array([0, 0, 0, 1])
    p, weights = np.eye(2)[y], np.array([1.0, 1.0, 1.0, 9.0])
    judge = Judge("accuracy", "binary", y, p, None, seed=0, baseline_y=fitted)
    assert judge.baseline() == 0.25
    judge = Judge("accuracy", "binary", y, p, None, seed=0, baseline_y=fitted, baseline_weights=weights)
    assert judge.baseline() == 0.75
    values, found = np.array([0.0, 0.0, 0.0, 4.0]), np.array([2.0, 4.0])
    judge = Judge(
        "neg_mean_absolute_error", "regression", found, found[:, None], None, seed=0, baseline_y=values,
        baseline_weights=weights,
    )  # fmt: skip
    assert judge.baseline() == -1.0


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_every_metric_is_compared_on_the_same_draws(task: str) -> None:
    y, p, w = outputs(3, n=500)
    if task == "regression":
        y, p = y.astype(float), p[:, :1]
    metric = "r2" if task == "regression" else "accuracy"
    other = 0.9 * p + 0.1 * p.mean(axis=0)
    judge = Judge(metric, task, y, p, w, seed=0, resamples=200)  # type: ignore[arg-type]
    found = judge.compare({"teacher": p, "control": other, "student": p})
    own = judge.figures(other)
    assert found["intervals"]["control"][metric] == [own["score_low"], own["score_high"]]
    assert set(found["versus"]) == {"control-teacher", "student-teacher", "student-control"}
    for name, (low, high) in found["intervals"]["control"].items():
        value = own["metrics"].get(name, own.get(name))
        assert low < value < high, name
        assert found["versus"]["student-teacher"][name] == {"difference": 0.0, "low": 0.0, "high": 0.0}
        versus = found["versus"]["student-control"][name]
        assert versus["low"] <= versus["difference"] <= versus["high"], name
        assert versus["high"] - versus["low"] < high - low, name
    paired = confidence.paired_interval(metric, y, p, other, w, seed=0, resamples=200)
    versus = found["versus"]["student-control"][metric]
    assert (versus["low"], versus["high"]) == (paired.low, paired.high)


def test_judge_without_labels_measures_agreement() -> None:
    _, p, _ = outputs(2)
    judge = Judge("agreement", "binary", np.full(400, -1), p, None, seed=0, resamples=100)
    assert judge.figures(p)["score"] == 1.0
    assert judge.figures(p[:, ::-1])["score"] < 0.05  # ties go to the first class either way


def test_latency_interval_is_over_blocks() -> None:
    """Calls of a block are correlated: an interval over calls would be far too narrow."""
    rng = np.random.default_rng(0)
    levels = rng.normal(10.0, 1.0, 20)
    blocks = [np.full(500, level) + rng.normal(0, 0.01, 500) for level in levels]
    found = latency.latency_statistics(blocks)
    half = 2.093 * levels.std(ddof=1) / math.sqrt(20)
    assert found.mean_ms == pytest.approx(levels.mean(), abs=0.01)
    assert found.high_ms - found.mean_ms == pytest.approx(half, rel=0.02)
    assert (found.n_calls, found.n_blocks) == (10_000, 20)
    assert found.p50_ms is not None
    assert found.p99_ms is not None
    assert found.p50_ms < found.p99_ms


@pytest.mark.parametrize(
    ("n", "q", "k"), [(58, 0.95, None), (59, 0.95, 59), (208, 0.95, 203), (336, 0.95, 326), (1000, 0.5, 527)]
)
def test_order_statistics_are_the_binomial_ones(n: int, q: float, k: int | None) -> None:
    assert latency.upper_order_statistic(n, q) == k


def test_bound_of_a_percentile_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = -math.log(0.05)  # the 95th percentile of an exponential
    bounds = [latency.latency_statistics(rng.exponential(size=(5, 60))).p95_high_ms for _ in range(400)]
    assert all(b is not None for b in bounds)
    held = np.mean([b is not None and b >= truth for b in bounds])
    assert 0.93 <= held <= 1.0


def test_percentiles_are_given_only_where_calls_can_be_told_apart() -> None:
    short = latency.latency_statistics([np.array([0.001, 0.0, 0.001, 0.002] * 50)] * 5)
    assert short.p50_ms is None
    few = latency.latency_statistics([np.array([1.0, 1.1, 1.2, 1.1])] * 10)
    assert few.p50_ms == 1.1
    assert few.p50_high_ms == 1.1
    assert few.p95_ms is None
    assert few.p95_high_ms is None


def test_summary_reads_as_the_readme_says() -> None:
    text = summary.headline(
        teacher_latency_ms=12.4,
        student_latency_ms=0.011,
        teacher_accuracy=0.9,
        student_accuracy=0.8937,
        baseline=0.68276,
        pareto_score=1119.4,
    )
    assert (
        text
        == "12.4ms -> 0.011ms latency (1127x faster), 99.3% accuracy preserved (97.1% of the lift), pareto score 1119.4"
    )


def test_share_interval_covers_and_never_collapses() -> None:
    from scipy.stats import binomtest

    for right, n in ((0, 20), (20, 20), (7, 20), (1930, 2000)):
        reference = binomtest(right, n).proportion_ci(method="wilson")
        found = confidence.share_interval(right / n, n)
        assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=1e-7)
        assert found.low <= right / n <= found.high
        assert found.high > found.low


def test_the_jackknife_knows_the_noise_of_paired_differences() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 4000)
    right = rng.random((2, 4000)) < 0.8
    a, b = (np.eye(2)[np.where(r, y, 1 - y)] for r in right)
    weights = rng.random(4000)
    apart = confidence.jackknife("accuracy", y, a, weights) - confidence.jackknife("accuracy", y, b, weights)
    found = np.sqrt((len(apart) - 1) * apart.var())
    wanted = np.sqrt((weights**2).sum() * np.var(right[0] * 1.0 - right[1])) / weights.sum()
    assert 0.6 < found / wanted < 1.5


@pytest.mark.parametrize("metric", ["accuracy", "average_precision", "balanced_accuracy", "roc_auc"])
def test_log_loss_orders_what_noise_cannot_tell_apart(metric: str) -> None:
    rng = np.random.default_rng(4)
    y = (rng.random(2000) < 0.3).astype(np.int64)
    signal = np.where(y, 1.0, -1.0) + rng.normal(size=2000)
    outputs = []
    for noise, sharp in ((0.30, 3.0), (0.32, 1.5), (3.0, 0.7)):  # the first is over-confident
        z = sharp * (signal + noise * rng.normal(size=2000) - 0.4)
        outputs.append(np.column_stack([1 / (1 + np.exp(z)), 1 / (1 + np.exp(-z))]))
    metrics = [measure.score(metric, y, p) for p in outputs]
    losses = [measure.score("neg_log_loss", y, p) for p in outputs]
    jackknives = [confidence.jackknife(metric, y, p) for p in outputs]
    assert losses[1] > losses[0]
    order = confidence.rank([metrics[1] + 1e-6, *metrics[1:]], losses, [jackknives[0], *jackknives[1:]])
    assert order == [1, 0, 2]
    # Without anything known of the noise, the metric decides; what is undefined comes last.
    assert confidence.rank([0.3, 0.5, np.nan, 0.5], [9.0, None, 1.0, 1.0], [()] * 4) == [3, 1, 0, 2]
    assert confidence.rank([], [], []) == []


def test_classes_in_another_order_are_found_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 4):
        y = rng.integers(0, size, 400)
        good = np.eye(size)[np.where(rng.random(400) < 0.93, y, rng.integers(0, size, 400))]
        assert decisions.class_order(y, good) is None
        turned = good[:, ::-1]
        assert decisions.class_order(y, turned) == list(range(size))[::-1]
        # Neither a bad teacher, nor one that names one class, nor a few rows.
        assert decisions.class_order(y, rng.random((400, size))) is None
        assert decisions.class_order(y, np.tile(np.eye(size)[0], (400, 1))) is None
        assert decisions.class_order(y[:10], turned[:10]) is None
    rare = (rng.random(400) < 0.02).astype(int)
    assert decisions.class_order(rare, np.eye(2)[rng.integers(0, 2, 400)]) is None
    values = rng.normal(size=400)
    assert decisions.falls(values, -values[:, None] + rng.normal(size=(400, 1)))
    assert not decisions.falls(values, values[:, None])
    assert not decisions.falls(values, np.zeros((400, 1)))
    assert latency.turned_round("m", ("a", "b, c"), [1, 0], falls=False)[0].endswith(
        """classes => '{"b, c","a"}'"""
    )
    assert latency.turned_round("m", ("a", "b"), None, falls=False) == []


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "f1"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_threshold_is_the_best_one_and_none_by_luck(metric: str, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    n = 1500
    latent = rng.normal(size=n)
    y = (latent + rng.normal(size=n) > 2.2).astype(int)
    p1 = 1 / (1 + np.exp(3.5 - 2 * latent)) * 0.45  # never above one half
    p = np.column_stack([1 - p1, p1])
    w = rng.integers(1, 4, n).astype(float) if weighted else None
    found = decisions.best_threshold(metric, y, p, w)
    scores = [measure.score(metric, y, p, w, t) for t in np.unique(p1)]
    if metric == "accuracy" and found is None:
        assert max(scores) - measure.score(metric, y, p, w) < 0.02
        return
    assert found is not None
    assert measure.score(metric, y, p, w, found) == pytest.approx(max(scores), abs=1e-12)
    assert measure.score(metric, y, p, w, found) > measure.score(metric, y, p, w)
    # The metric of scikit-learn on the classes that are named.
    guess = (p1 >= found).astype(int)
    expected = {
        "accuracy": reference.accuracy_score,
        "balanced_accuracy": reference.balanced_accuracy_score,
        "f1": reference.f1_score,
    }[metric](y, guess, sample_weight=w)
    assert measure.score(metric, y, p, w, found) == pytest.approx(expected)


def test_a_calibrated_student_keeps_one_half_for_accuracy() -> None:
    tuned = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p1 = rng.random(200)
        y = (rng.random(200) < p1).astype(int)
        tuned += decisions.best_threshold("accuracy", y, np.column_stack([1 - p1, p1])) is not None
    assert tuned <= 6
    assert decisions.best_threshold("f1", np.zeros(50, int), np.full((50, 2), 0.5)) is None


def test_figures_are_those_of_the_classes_that_are_named() -> None:
    y, p, w = outputs(2)
    judge = Judge("f1", "binary", y, p, w, seed=0, resamples=200)
    plain, cut = judge.figures(p), judge.figures(p, 0.2)
    guess = (p[:, 1] >= 0.2).astype(int)
    assert cut["score"] == pytest.approx(reference.f1_score(y, guess, sample_weight=w))
    assert cut["metrics"]["accuracy"] == pytest.approx(reference.accuracy_score(y, guess, sample_weight=w))
    assert cut["score_low"] < cut["score"] < cut["score_high"]
    for name in ("log_loss", "brier", "ece"):
        assert cut[name] == plain[name]
    for name in ("roc_auc", "average_precision"):
        assert cut["metrics"][name] == plain["metrics"][name]
    compared = judge.compare({"teacher": p, "student": p}, {"student": 0.2})
    assert compared["versus"]["student-teacher"]["f1"]["difference"] == pytest.approx(
        cut["score"] - plain["score"]
    )
    assert compared["versus"]["student-teacher"]["roc_auc"]["difference"] == 0
