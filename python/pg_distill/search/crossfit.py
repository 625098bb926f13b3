"""Cross-fitting: the best are trained on other folds too, and judged by rows that they have not learned from.

Some hundred select rows cannot tell fifty candidates apart. So the finalists learn once more without each of the other folds,
by the recipe and as long as their first training found best: nothing of a fold stops or calibrates the student that it judges.
From then on select rows and folds together choose, calibrate and set thresholds.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pg_distill.frame import FloatArray
from pg_distill.measure import pareto
from pg_distill.measure.confidence import paired_error
from pg_distill.search.budget import Budget
from pg_distill.search.entries import Entry, best_of, choices, frontier, ranked
from pg_distill.search.gate import Gate
from pg_distill.search.problem import SELECT_FOLD, Problem
from pg_distill.search.runner import Runner
from pg_distill.search.select import Select
from pg_distill.search.training import AGREEMENT, Outcome, disagreement, sql_of

__all__ = ["CrossFitter"]

FINALISTS, ENOUGH, FEWEST = 10, 6, 3
"""Candidates that are cross-fitted, students and controls by turns: at most, before folds are given up, and at least."""
CLEARLY, LESS_LOSS = 2.0, 0.1
"""Paired standard errors of the metric, or the share of the log loss, by which what was not cross-fitted has to be better on the
select rows than the best that was, if it is to stay: one whose training was cut short cannot be repeated, and may be the best."""
FEWEST_FOLDS = 2
"""Beside select: fewer are not worth the trainings."""
OVERHEAD = 1.25
"""What a round of trainings takes, as a multiple of what the first trainings of the same students took."""


class CrossFitter:
    """Cross-fits finalists; afterwards ``select`` judges by all folds that were had."""

    def __init__(
        self,
        problem: Problem,
        select: Select,
        gate: Gate,
        runner: Runner,
        budget: Budget,
        entries: list[Entry],
        threads: int,
    ) -> None:
        self.problem = problem
        self.select = select
        self.gate = gate
        self.runner = runner
        self.budget = budget
        self.entries = entries
        self.threads = threads
        self.out_of_fold: dict[int, dict[int, FloatArray]] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether there are folds to judge by."""
        return bool(self.problem.folds)

    def cross(self) -> None:
        """Train finalists without each fold, as many of both as the time carries; choose by these rows from then on."""
        if not self.is_wanted:
            return
        finalists, rounds = self.plan(self.finalists())
        done: list[int] = []
        for fold in self.problem.folds[:rounds]:
            shadows = [self.shadow(entry, fold) for entry in finalists]
            self.runner.execute("cross", shadows, self.take, refit=True)
            had = [entry for entry in finalists if fold in self.out_of_fold.get(entry.number, {})]
            if not had or had[0] is not finalists[0]:
                break
            finalists = had
            done.append(fold)
        if done:
            self.settle(finalists, done)

    def finalists(self) -> list[Entry]:
        """Return what can still be the answer or the control, best first, by turns; then what is best within less latency.

        Where SQL is asked for also what is best of its family within less of it, by turns with them: a query's time goes by that.
        """
        wanted: list[Entry] = []
        written: list[Entry] = []
        whole = [e for e in self.entries if getattr(e.student, "complete_", True) and not e.is_partial]
        students, controls = (
            best_of([e for e in whole if e.is_control is kind], self.gate.allowed_ms, FINALISTS)
            for kind in (False, True)
        )
        fast = [e for e in [*choices(whole), *frontier(whole)] if e.latency_ms <= self.gate.allowed_ms]
        if self.runner.config.sql:
            for family in dict.fromkeys(e.family for e in whole):
                own = [
                    e
                    for e in whole
                    if e.expression and e.artifact and e.family == family and not e.is_control
                ]
                points = [(float(len(e.expression or "")), e.tie_break) for e in own]
                best = pareto.frontier(points)
                written += [e for e, point in zip(own, points, strict=True) if point in best]
            written = ranked(written)
        for pair in itertools.zip_longest(students, controls[: FINALISTS // 2]):
            wanted += [e for e in pair if e is not None]
        turns = itertools.zip_longest(wanted[:FINALISTS], written[:FINALISTS])
        return list({e.number: e for e in [*itertools.chain(*turns), *fast] if e is not None}.values())

    def plan(self, finalists: Sequence[Entry]) -> tuple[list[Entry], int]:
        """Return the finalists, and how many of the folds, that the time left carries: fewer folds before too few students."""
        seconds = max(0.0, self.budget.end_of("cross") - time.monotonic()) * self.threads / OVERHEAD
        chosen: list[Entry] = []
        for folds in range(len(self.problem.folds), min(FEWEST_FOLDS, len(self.problem.folds)) - 1, -1):
            chosen, spent = [], 0.0
            for entry in finalists:
                if folds * (spent + entry.fit_seconds) <= seconds:
                    chosen.append(entry)
                    spent += entry.fit_seconds
            if len(chosen) >= min(ENOUGH, len(finalists)):
                return chosen, folds
        return chosen, folds if len(chosen) >= FEWEST else 0

    def shadow(self, entry: Entry, fold: int) -> Entry:
        """Return the training of a finalist without a fold."""
        return replace(entry, configuration={}, fold=fold, reason="", artifact=b"")

    def take(self, shadow: Entry, outcome: Outcome) -> None:
        """Keep what a student says of the fold that it has not learned from."""
        own = self.entries[shadow.number]
        own.seconds += outcome.seconds
        if outcome.logits is not None:
            self.out_of_fold.setdefault(shadow.number, {})[shadow.fold] = outcome.logits

    def settle(self, finalists: Sequence[Entry], folds: Sequence[int]) -> None:
        """Judge the finalists by all their rows; what was not cross-fitted and is no faster is out."""
        first = {e.number: replace(e) for e in finalists}
        self.select.widen([SELECT_FOLD, *folds])
        for entry in finalists:
            assert entry.logits is not None
            own = self.out_of_fold[entry.number]
            logits = np.concatenate([entry.logits, *(own[fold] for fold in folds)])
            factor = self.select.sharpness(logits)
            if factor != 1.0:
                self.sharpen(entry, factor)
            self.select.score(entry, factor * logits)
            entry.configuration["folds"] = len(folds) + 1
        # Others keep their figure of select, less what it flatters those by that have both.
        changes = np.array([(e.metric, e.tie_break) for e in finalists]) - np.array(
            [(e.metric, e.tie_break) for e in first.values()]
        )
        gain, smooth = np.nan_to_num(changes).mean(axis=0)
        for entry in self.entries:
            if not entry.is_usable or entry.number in first:
                continue
            rivals = [
                e
                for e in finalists
                if e.latency_ms <= entry.latency_ms and (e.is_control or not entry.is_control)
            ]
            if rivals and not self.is_clearly_better(entry, first[ranked(rivals)[0].number]):
                entry.is_left_out = True
                entry.reason = (
                    "not cross-fitted: others were, in the time that there was, and it is not clearly better"
                )
            entry.metric, entry.tie_break = entry.metric + gain, entry.tie_break + smooth

    def is_clearly_better(self, entry: Entry, other: Entry) -> bool:
        """Whether what was not cross-fitted beats the best that was on the select rows, beyond noise and the luck of many."""
        noise = paired_error(np.asarray(entry.jackknife), np.asarray(other.jackknife))
        ahead, loss = entry.metric - other.metric, entry.tie_break - other.tie_break
        return ahead > CLEARLY * noise or (ahead >= -noise and loss > LESS_LOSS * abs(other.tie_break))

    def sharpen(self, entry: Entry, factor: float) -> None:
        """Scale a student's logits, in its file too; the first file stays where the new one is not what was trained."""
        entry.student.sharpen(factor)
        artifact, frame = entry.student.to_onnx(), self.problem.select.frame
        logits = entry.student.predict_logits(frame)
        if disagreement(artifact, frame, logits, self.problem.task) <= AGREEMENT:
            entry.artifact, entry.expression = artifact, sql_of(entry.student)
