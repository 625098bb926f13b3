"""Refits: those that nothing beats, and the best controls, learn once more, with the select rows added."""

from __future__ import annotations

import copy
import itertools
import time
from typing import Any

from pg_distill.errors import InvalidState
from pg_distill.onnx_model.label_thresholds import with_thresholds
from pg_distill.search.entries import Entry, best_of, choices, frontier
from pg_distill.search.gate import Gate
from pg_distill.search.problem import Problem
from pg_distill.search.runner import Runner
from pg_distill.search.select import Select
from pg_distill.search.training import AGREEMENT, Outcome, disagreement, falls, sql_of
from pg_distill.students.blend import Blend
from pg_distill.students.families import Student
from pg_distill.students.transfer_set import TransferSet, stack

__all__ = ["Refitter"]

REFITTED, REFITTED_CONTROLS = 8, 3
"""Students of the frontier, and controls, best first, that are trained again with the select rows added."""


LEAST_SECONDS, LEAST_TEXT_SECONDS, RELEARN_MARGIN = 5.0, 30.0, 3.0
"""What a training on all rows may take: so many seconds, and so many times what the first one took for each row. Of texts the
first may have found numbers that another student had learned (`TextNumbers`): all rows have none yet."""
WORSE = 0.1
"""What a refitted student may lose more on the select rows than before, as a share."""


class Refitter:
    """Trains the best again on more rows; their files take over where they are as fast."""

    def __init__(
        self, problem: Problem, select: Select, gate: Gate, runner: Runner, entries: list[Entry]
    ) -> None:
        self.problem = problem
        self.select = select
        self.first = Select(problem)
        self.gate = gate
        self.runner = runner
        self.entries = entries
        self.replaced: list[tuple[Entry, bytes, str | None]] = []

    def refit(self) -> None:
        """Train the frontier's best and the best controls again with the select rows; rebuild their blends."""
        kept = {e.number for e in [*frontier(self.entries), *choices(self.entries)]}
        ranked = best_of([e for e in self.entries if e.number in kept], self.gate.allowed_ms, REFITTED)
        controls = best_of([e for e in self.entries if e.is_control], self.gate.allowed_ms, REFITTED_CONTROLS)
        by_number = {e.number: e for e in self.entries}
        wanted: list[Entry] = []
        # In turns: where the time ends, what is compared has had the same rows.
        for entry in [e for pair in itertools.zip_longest(ranked, controls) for e in pair if e is not None]:
            parts = [by_number[n] for n in entry.parts] or [entry]
            wanted += [p for p in parts if p not in wanted and hasattr(p.student, "refit")]
        for entry in wanted:
            if not getattr(entry.student, "complete_", True):
                entry.configuration["refit"] = "failed: its own training was cut short"
        wanted = [e for e in wanted if getattr(e.student, "complete_", True)]
        self.runner.execute("refit", wanted, self.take_refit, refit=True)
        for entry in self.entries:
            if any(by_number[n].refitted is not None for n in entry.parts):
                self.rebuild(entry, [by_number[n] for n in entry.parts])

    def take_refit(self, entry: Entry, outcome: Outcome) -> None:
        """Put the refitted student in the place of the first one, where that worked and is as fast.

        It knows the select rows by now: one that answers them clearly worse than before is broken. Not so one that is hardly
        worse: the first had been stopped and calibrated by these rows, not by others.
        """
        entry.seconds += outcome.seconds
        if outcome.student is None or outcome.logits is None:
            entry.configuration["refit"] = f"failed: {outcome.reason}"
            return
        assert entry.logits is not None
        before = self.first.judge(entry.logits[: len(outcome.logits)], entry.class_threshold)
        metric, tie_break, _ = self.first.judge(outcome.logits, entry.class_threshold)
        if metric < before[0] and tie_break < before[1] - WORSE * abs(before[1]):
            entry.configuration["refit"] = "failed: worse on rows that it has learned from"
            return
        entry.refitted = outcome.student
        self.replace_artifact(entry, outcome.artifact, outcome.expression)

    def replace_artifact(self, entry: Entry, artifact: bytes, expression: str | None) -> None:
        """Give an entry another file, unless that one misses a target that the first one met."""
        self.replaced.append((entry, artifact, expression))

    def rebuild(self, entry: Entry, parts: list[Entry]) -> None:
        """Make a blend anew of its parts as they are now."""
        students = [p.refitted if p.refitted is not None else p.student for p in parts]
        weights: Any = entry.configuration["weights"]
        try:
            made = self.file_of(
                Blend(students, weights, task=self.problem.task, n_classes=self.select.n_classes)
            )
            if made is not None:
                self.replace_artifact(entry, *made)
        except Exception as error:  # the first blend stays
            entry.configuration["refit"] = f"failed: {type(error).__name__}: {error}"

    def relearn(self, entry: Entry, more: TransferSet) -> tuple[bytes, str | None]:
        """Train an entry, or its parts, on all rows and ``more``, by the recipe that was judged; return its file and its SQL.

        Raises
        ------
        InvalidState
            The training did not end in its time, or its file is not what was trained.
        """
        by_number = {e.number: e for e in self.entries}
        parts = [by_number[n] for n in entry.parts] or [entry]
        students = []
        for part in parts:
            data = self.runner.rows_for(part, "refit")
            often = part.recipe.repeat * part.tiles
            data = stack([data, *[self.problem.select] * often, *[more] * often])
            least = LEAST_TEXT_SECONDS if data.frame.text_names else LEAST_SECONDS
            seconds = least + RELEARN_MARGIN * part.fit_seconds * len(data) / max(1, part.fit_rows)
            student = copy.copy(part.student).refit(data, deadline=time.monotonic() + seconds)
            if not getattr(student, "complete_", True):
                raise InvalidState("its training did not end in its time")
            students.append(student)
        whole: Student | Blend = students[0]
        if entry.parts:
            weights: Any = entry.configuration["weights"]
            whole = Blend(students, weights, task=self.problem.task, n_classes=self.select.n_classes)
        made = self.file_of(whole)
        if made is None:
            raise InvalidState("ONNX Runtime and trainer differ")
        return with_thresholds(made[0], entry.class_threshold), made[1]

    def file_of(self, student: Student | Blend) -> tuple[bytes, str | None] | None:
        """Return a student's file and SQL; None where the file does not answer as the student does, or breaks a constraint."""
        frame = self.problem.select.frame
        artifact = (
            student.to_onnx(self.problem.fit.frame) if isinstance(student, Blend) else student.to_onnx()
        )
        if not disagreement(artifact, frame, student.predict_logits(frame), self.problem.task) <= AGREEMENT:
            return None
        if falls(artifact, frame, self.runner.config.monotone, self.problem.task):
            return None
        return artifact, sql_of(student)

    def settle(self) -> None:
        """Time the refitted files, now that nothing trains, and let those that are fast enough take over."""
        for entry, artifact, expression in self.replaced:
            latency = self.gate.least_latency_ms(artifact)
            if latency > self.gate.allowed_ms >= entry.latency_ms:
                entry.configuration["refit"] = f"too slow: {latency:.4f} ms"
                continue
            entry.artifact, entry.expression, entry.latency_ms = artifact, expression, latency
            entry.configuration["refit"] = "with select rows"
