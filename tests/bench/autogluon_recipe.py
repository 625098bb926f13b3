"""AutoGluon's distillation, rebuilt: its augmentation, its targets, its students. A baseline, not a part of pg_distill.

`students` are its own, however slow; `within` are students of our families at the sizes that meet a latency, taught as it
teaches. What ours have beyond these, at equal latency: the search for recipe and transfer set, calibration, blends, and a last
training with the select rows.

After autogluon.tabular's augmentation_utils.spunge_augment and LightGBM / RandomForest models on soft targets (1.6): SPUNGE
tiles the rows to min(5 n, 100,000), resamples int(0.1 d) columns from their marginals (none where d < 10) and adds noise of
0.1 deviations to a tenth of the numeric cells; students regress the teacher's probabilities.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import lightgbm
import numpy as np
from pg_distill.frame import FloatArray, Frame, Strings, Task
from pg_distill.measure import confidence, metrics
from pg_distill.search.problem import Candidate, Problem
from pg_distill.search.training import latency_ms
from pg_distill.students.families import Setup, Shape, load_family
from pg_distill.students.soft_labels import softmax
from pg_distill.students.transfer_set import AUGMENTED, TransferSet, stack
from sklearn.ensemble import RandomForestRegressor

__all__ = ["mean_call_ms", "students", "within"]

FAMILIES = ("boosted", "mlp")

MOST_ROWS, RESAMPLED, NOISE, NOISE_SHARE = 100_000, 0.1, 0.1, 0.1
LATENCY_CALLS = 50


def spunge(frame: Frame, rng: np.random.Generator) -> Frame:
    """Return AutoGluon's augmented rows, its defect for d < 10 included."""
    n = len(frame)
    base = np.tile(np.arange(n), 5)[: min(5 * n, MOST_ROWS)]
    columns: dict[str, Any] = dict(frame.take(base).columns)
    names = [f.name for f in frame.features]
    for name in rng.choice(names, int(RESAMPLED * len(names)), replace=False):
        donors = rng.integers(0, n, len(base))
        column = frame.columns[name]
        columns[name] = column.take(donors) if isinstance(column, Strings) else column[donors]
    for name in frame.number_names:
        noise = rng.standard_normal(len(base)) * NOISE * np.nanstd(frame.number(name))
        columns[name] = columns[name] + np.where(rng.random(len(base)) < NOISE_SHARE, noise, 0.0)
    return Frame(frame.features, columns)


def table(frame: Frame) -> FloatArray:
    """Return numbers and category codes as one array; all frames here share their categories."""
    codes = [frame.strings(name).codes for name in frame.string_names]
    return np.column_stack([frame.numbers(), *codes])


def transfer_set(fit: TransferSet, label: Callable[[Frame], FloatArray], seed: int = 0) -> TransferSet:
    """Return the real rows and AutoGluon's augmented ones, with the teacher's soft labels and no others."""
    made = spunge(fit.frame, np.random.default_rng(seed))
    real = TransferSet(fit.frame, fit.teacher_logits, None, None, fit.source)
    return stack([real, TransferSet(made, label(made), None, None, np.full(len(made), AUGMENTED, np.uint8))])


def within(
    problem: Problem,
    label: Callable[[Frame], FloatArray],
    *,
    allowed_ms: float,
    epochs: int,
    seconds: float,
    threads: int,
    seed: int = 0,
) -> list[Candidate]:
    """Train the sizes of trees and networks whose session run takes at most ``allowed_ms``, small to large, by its recipe."""
    ends = time.monotonic() + seconds
    rows = transfer_set(problem.fit, label, seed)
    n_classes = max(1, len(problem.classes)) if problem.task != "regression" else 1
    shape = Shape(problem.task, n_classes, problem.fit.frame.features, len(problem.fit), problem.teacher)
    known = problem.select.y
    assert known is not None
    smooth = "neg_root_mean_squared_error" if problem.task == "regression" else "neg_log_loss"

    def train(number: int, family: str, size: Mapping[str, Any]) -> Candidate | None:
        begun = time.monotonic()
        if begun > ends:
            return None
        student = load_family(family)(Setup(problem.task, n_classes, epochs=epochs, seed=seed), **size)
        prototype = student.prototype(problem.fit)
        if prototype is not None and latency_ms(prototype, problem.select.frame) > allowed_ms:
            return None
        student.fit(rows, problem.select, deadline=ends)
        logits = student.predict_logits(problem.select.frame)
        outputs = logits if problem.task == "regression" else softmax(logits)
        artifact = student.to_onnx()
        return Candidate(
            number=number,
            family=family,
            configuration={"family": family, **size, "recipe": "AutoGluon's"},
            artifact=artifact,
            expression=None,
            size_bytes=len(artifact),
            metric_select=metrics.score(problem.metric, known, outputs),
            fidelity_select=float("nan"),
            latency_ms=float("nan"),
            on_frontier=False,
            reason="",
            is_control=False,
            seconds=time.monotonic() - begun,
            tie_break_select=metrics.score(smooth, known, outputs),
            jackknife_select=tuple(confidence.jackknife(problem.metric, known, outputs)),
        )

    sizes = {family: load_family(family).sizes(shape) for family in FAMILIES}
    turns = [
        (f, sizes[f][i]) for i in range(max(map(len, sizes.values()))) for f in FAMILIES if i < len(sizes[f])
    ]
    with ThreadPoolExecutor(threads) as pool:
        made = list(pool.map(lambda item: train(item[0], *item[1]), enumerate(turns)))
    # Alone on the machine: what trains beside a clock slows it.
    return [
        replace(c, latency_ms=latency)
        for c in made
        if c is not None and (latency := latency_ms(c.artifact, problem.select.frame)) <= allowed_ms
    ]


def students(
    task: Task, fit: TransferSet, label: Callable[[Frame], FloatArray], seed: int = 0
) -> dict[str, Callable[[Frame], FloatArray]]:
    """Train the baseline's students; each is a function from rows to probabilities (n, K) or values (n, 1)."""
    taught = transfer_set(fit, label, seed)
    assert taught.teacher_logits is not None
    rows = table(taught.frame)
    goal = taught.teacher_logits if task == "regression" else softmax(taught.teacher_logits)
    columns = goal[:, 1:] if task == "binary" else goal
    boosted = [
        lightgbm.LGBMRegressor(n_estimators=300, learning_rate=0.05, num_leaves=31, n_jobs=2, verbose=-1).fit(
            rows, c
        )
        for c in columns.T
    ]
    forest = RandomForestRegressor(300, max_leaf_nodes=15_000, n_jobs=2, random_state=seed).fit(rows, columns)

    def full(values: FloatArray) -> FloatArray:
        return np.column_stack([1 - values, values]) if task == "binary" else values

    def by_boosting(frame: Frame) -> FloatArray:
        return full(np.column_stack([m.predict(table(frame)) for m in boosted]))

    def by_forest(frame: Frame) -> FloatArray:
        return full(forest.predict(table(frame)).reshape(len(frame), -1))

    return {"LightGBM_DSTL": by_boosting, "RandomForestMSE_DSTL": by_forest}


def mean_call_ms(predict: Callable[[Frame], FloatArray], frame: Frame) -> float:
    """Return the mean of one-row calls, in the library that made the student."""
    rows = [frame.take(np.array([i])) for i in range(min(LATENCY_CALLS, len(frame)))]
    predict(rows[0])
    start = time.perf_counter()
    for row in rows:
        predict(row)
    return (time.perf_counter() - start) / len(rows) * 1e3
