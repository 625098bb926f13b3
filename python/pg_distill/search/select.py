"""What is known on the rows that choose among candidates: the select rows, or, cross-fitted, folds of the others beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.frame import Cut, FloatArray, Task, has_label
from pg_distill.measure import confidence, decisions, metrics
from pg_distill.search.entries import Entry
from pg_distill.search.problem import SELECT_FOLD, Problem, any_label
from pg_distill.students.soft_labels import (
    fit_sharpness,
    indicators,
    kl,
    logits_from_probabilities,
    probabilities_of,
)
from pg_distill.students.transfer_set import TransferSet

__all__ = ["Select"]


class Select:
    """The select rows of a problem, and what students are worth on them."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.folds: tuple[int, ...] = (SELECT_FOLD,)
        self.rows: TransferSet = problem.select
        self.task: Task = problem.task
        self.n_classes = max(1, len(problem.classes)) if problem.task != "regression" else 1
        self.has_label = any_label(problem.select, problem.task)
        self.names_classes = (
            problem.task in ("binary", "multilabel")
            and self.has_label
            and problem.metric != metrics.AGREEMENT
            and metrics.judges_classes(problem.metric)
        )

    def widen(self, folds: Sequence[int]) -> None:
        """Judge by the rows of ``folds`` from now on: logits are those of students that have not learned from these."""
        self.folds = tuple(folds)
        self.rows = self.problem.judging(folds)

    def sharpness(self, logits: FloatArray) -> float:
        """Return the factor of logits that the labels bear out; 1 where nothing is calibrated."""
        if self.task == "regression" or self.problem.metric == metrics.AGREEMENT or self.rows.y is None:
            return 1.0
        return fit_sharpness(logits, self.rows.y, self.rows.weights, task=self.task)

    def truth(self) -> tuple[str, npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Return the metric that chooses, what it holds answers against on select, and the rows where that is known."""
        select, metric = self.rows, self.problem.metric
        if self.has_label and metric != "agreement":
            assert select.y is not None
            return metric, select.y, has_label(select.y, self.task)
        teacher = select.teacher_logits
        assert teacher is not None
        y = self._named_by(teacher)
        return metrics.AGREEMENT_METRICS[self.task], y, np.ones(len(y), bool)

    def _named_by(self, logits: FloatArray) -> npt.NDArray[Any]:
        return metrics.named(self.outputs(logits), self.task)

    def judge(self, logits: FloatArray, class_threshold: Cut = None) -> tuple[float, float, float]:
        """Return (metric, a smooth tie-break, fidelity) on select: log loss, or error, against label or teacher."""
        select = self.rows
        outputs = self.outputs(logits)
        teacher = select.teacher_logits
        fidelity = float("nan")
        if teacher is not None:
            fidelity = metrics.score(
                metrics.AGREEMENT_METRICS[self.task],
                self._named_by(teacher),
                outputs,
                select.weights,
                class_threshold,
            )
        if not self.has_label or self.problem.metric == "agreement":
            assert teacher is not None
            distance = (
                (teacher - logits) ** 2 if self.task == "regression" else kl(teacher, logits, task=self.task)
            )
            return fidelity, -float(np.average(distance.reshape(-1), weights=select.weights)), fidelity
        metric, y, known = self.truth()
        weights = None if select.weights is None else select.weights[known]
        value = metrics.score(metric, y[known], outputs[known], weights, class_threshold)
        loss = metrics.loss_of(self.task)
        return value, metrics.score(loss, y[known], outputs[known], weights), fidelity

    def outputs(self, logits: FloatArray) -> FloatArray:
        """Return probabilities, or values, of logits."""
        return probabilities_of(logits, self.task)

    def score(self, entry: Entry, logits: FloatArray) -> None:
        """Note what an entry's logits on select are worth, by the threshold between two classes that is best there."""
        entry.logits = logits
        metric, y, known = self.truth()
        weights = self.rows.weights
        weights = None if weights is None else weights[known]
        outputs = self.outputs(logits)[known]
        if self.names_classes:
            find = decisions.best_thresholds if self.task == "multilabel" else decisions.best_threshold
            entry.class_threshold = find(metric, y[known], outputs, weights)
            outputs = metrics.decided(outputs, entry.class_threshold)
        entry.metric, entry.tie_break, entry.fidelity = self.judge(logits, entry.class_threshold)
        left_out = confidence.jackknife(metric, y[known], outputs, weights)
        entry.jackknife = tuple(left_out.tolist())

    def constant(self) -> FloatArray:
        """Return the logits, or values, of a student that answers every row of select alike."""
        fit = self.problem.fit
        by_label = self.has_label and self.problem.metric != "agreement"
        if by_label and fit.y is not None and any_label(fit, self.task):
            if self.task == "regression":
                answer = np.array([np.nanmean(fit.y)])
            elif self.task == "multilabel":
                own = indicators(fit.y[fit.y >= 0], self.n_classes, self.task)
                shares = (own.sum(axis=0) + 0.5) / (len(own) + 1)
                answer = logits_from_probabilities(shares[None], task=self.task)[0]
            else:
                answer = np.log(np.maximum(indicators(fit.y, self.n_classes, self.task).sum(axis=0), 0.5))
        else:
            assert fit.teacher_logits is not None
            answer = fit.teacher_logits.mean(axis=0)
        return np.tile(answer, (len(self.rows), 1))
