"""Blends: the mean of students that err elsewhere, while the sum of their latencies fits (Caruana et al. 2004)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pg_distill.search import training
from pg_distill.search.budget import Budget
from pg_distill.search.entries import Entry, least_near, together_ms, variant_of
from pg_distill.search.problem import Problem
from pg_distill.search.select import Select
from pg_distill.search.training import AGREEMENT, Recipe, disagreement
from pg_distill.students.blend import Blend

__all__ = ["Blender"]

BLEND_FROM, BLEND_PARTS, BLEND_GAIN = 12, 6, 1e-4
"""Students that a blend is filled up from, most parts, and the least share of the log loss that a part must take off."""
BLEND_SHARES = (1.0, 0.5, 0.25)
"""Shares of the latency allowed for which blends are made: the frontier has fast ones too."""


class Blender:
    """Makes blends of trained students, and candidates of them."""

    def __init__(
        self,
        problem: Problem,
        select: Select,
        budget: Budget,
        entries: list[Entry],
        allowed_ms: float,
        monotone: Mapping[str, int],
    ) -> None:
        self.monotone = monotone
        self.problem = problem
        self.select = select
        self.budget = budget
        self.entries = entries
        self.allowed_ms = allowed_ms

    def blend(self) -> None:
        """Average the best student of each kind, controls among them; and the best controls likewise."""
        trained = [e for e in self.entries if e.student is not None]
        for pool in (trained, [e for e in trained if e.is_control]):
            for share in BLEND_SHARES:
                if self.budget.is_over:
                    return
                parts = self.parts(pool, share * self.allowed_ms)
                if len(parts) > 1:
                    self.keep_blend(parts)

    def parts(self, pool: Iterable[Entry], allowed_ms: float) -> list[Entry]:
        """Return which of ``pool`` to blend within a latency: first the best of each kind, then what lowers the loss most.

        Of all subsets the one that is best on select is so by luck, mostly. What is near the best and of another kind errs
        elsewhere, which no few rows need to show; and a student that has its control in it is hardly worse than that.
        """
        # What only the select rows judge has no part in what all folds do.
        rows = len(self.select.rows)
        fitting = [
            e
            for e in pool
            if e.is_usable and e.latency_ms <= allowed_ms and e.logits is not None and len(e.logits) == rows
        ]
        fitting.sort(key=lambda e: (-e.tie_break, e.number))
        kinds: dict[tuple[Any, ...], Entry] = {}
        for entry in fitting:
            if entry.tie_break >= least_near(fitting[0]):
                kinds.setdefault((entry.family, variant_of(entry.size), entry.is_control), entry)
        parts: list[Entry] = []
        for entry in kinds.values():
            if len(parts) < BLEND_PARTS and together_ms([*parts, entry]) <= allowed_ms:
                parts.append(entry)
        while 0 < len(parts) < BLEND_PARTS:
            better = self.next_part(parts, fitting[:BLEND_FROM], allowed_ms)
            if better is None:
                break
            parts.append(better)
        return parts

    def next_part(self, parts: list[Entry], pool: list[Entry], allowed_ms: float) -> Entry | None:
        """Return the student that improves a blend's log loss most, within a latency (Caruana et al. 2004).

        Not the metric: of few rows that is noise, and where the first student was lucky nothing would improve on it.
        """
        loss = self.score_blend(parts)
        found, best = None, loss + BLEND_GAIN * max(abs(loss), 1e-9)
        for entry in pool:
            if entry in parts or together_ms([*parts, entry]) > allowed_ms:
                continue
            new_loss = self.score_blend([*parts, entry])
            if new_loss > best:
                found, best = entry, new_loss
        return found

    def score_blend(self, parts: list[Entry]) -> float:
        """Return the tie-break of the mean of some students on select."""
        logits = [e.logits for e in parts if e.logits is not None]
        return self.select.judge(np.mean(logits, axis=0))[1]

    def keep_blend(self, parts: list[Entry]) -> None:
        """Export a blend and make it a candidate."""
        numbers = sorted(e.number for e in parts)
        if any(e.configuration.get("parts") == numbers for e in self.entries):
            return
        start = time.monotonic()
        parts = sorted(parts, key=lambda e: e.number)
        weights = [1.0 / len(parts)] * len(parts)
        entry = Entry(len(self.entries), "blend", {}, Recipe(1.0, 1.0), {})
        entry.configuration = {"family": "blend", "weights": weights, "parts": numbers, "stage": "blend"}
        if self.monotone:
            entry.configuration["monotone"] = dict(self.monotone)
        entry.is_control = all(e.is_control for e in parts)
        entry.parts = tuple(numbers)
        self.entries.append(entry)
        frame = self.problem.select.frame
        try:
            blend = Blend(
                [e.student for e in parts], weights, task=self.problem.task, n_classes=self.select.n_classes
            )
            mean = np.mean([e.logits for e in parts if e.logits is not None], axis=0)
            factor = self.select.sharpness(mean)
            blend.sharpen(factor)
            entry.configuration["weights"] = list(blend.weights)
            artifact, logits = blend.to_onnx(self.problem.fit.frame), blend.predict_logits(frame)
            difference = disagreement(artifact, frame, logits, self.problem.task)
            if not difference <= AGREEMENT:
                entry.reason = f"ONNX Runtime and trainer differ by {difference:.1e}, over {AGREEMENT:.0e}"
                return
            if count := training.falls(artifact, frame, self.monotone, self.problem.task):
                entry.reason = f"{training.NOT_KEPT} on {count} of {training.PAIRS} pairs of rows"
                return
            entry.latency_ms = training.latency_ms(artifact, frame)
        except Exception as error:  # one broken candidate must not end the run
            entry.reason = f"{type(error).__name__}: {error}"
            return
        entry.artifact, entry.expression = artifact, training.sql_of(blend)
        self.select.score(entry, factor * mean)
        if len(self.select.folds) > 1:
            entry.configuration["folds"] = len(self.select.folds)
        entry.seconds = time.monotonic() - start
