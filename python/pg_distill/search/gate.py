"""Latency first: which sizes of each family can meet the target, by the files of untrained students."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pg_distill.errors import PgDistillError
from pg_distill.search import training
from pg_distill.search.budget import Budget
from pg_distill.search.entries import Entry
from pg_distill.search.problem import Config, Problem
from pg_distill.search.select import Select
from pg_distill.search.training import Recipe, Training
from pg_distill.students.families import ITERATIVE, MONOTONE, Shape, load_family

__all__ = ["Gate"]

GATE_SHARE = 0.2
"""Share of the budget after which no more shapes are measured than each family's smallest: a busy machine is slow at it."""
NEAR, NEAR_TRIES = 1.6, 3
"""A shape whose latency is over what is allowed, but by less than this factor, is measured so many times more at once, and again
after the screen. Shared machines compute as much slower for seconds."""
FAR, PAUSES = 10.0, (0.5, 1.0, 2.0, 4.0)
"""Where no shape fits, and one is over by less than this factor: seconds to wait before measuring again. Machines stall."""


OF_SHAPE = ("linear", "mlp")
"""Families whose latency depends on a student's size, and on the columns, alone."""


class Gate:
    """What lets a size of a family pass; ``sizes`` are those that did.

    A shape that misses the target by so little that a slow moment may be the cause is measured again, before and after the
    screen, and each family's smallest is too.
    """

    def __init__(
        self,
        problem: Problem,
        config: Config,
        select: Select,
        budget: Budget,
        entries: list[Entry],
        first_training: Callable[[int, str, Mapping[str, Any], Recipe], Training],
    ) -> None:
        self.problem = problem
        self.config = config
        self.select = select
        self.budget = budget
        self.entries = entries
        self.first_training = first_training
        self.allowed_ms = config.target_latency_ms - config.call_overhead_ms
        self.sizes: dict[str, list[Mapping[str, Any]]] = {}
        self.refused: list[tuple[str, Mapping[str, Any], bytes, float]] = []

    def measure(self) -> None:
        """Find the sizes of each family that can meet the target; note the others with their latency.

        Those that are near it, and each family's smallest, wait for ``measure_again``.
        """
        for family in self.config.families:
            fitting: list[Mapping[str, Any]] = []
            missed: float | None = None
            for size in self.all_sizes(family):
                if missed is not None and family not in ITERATIVE:
                    reason = (
                        f"not trained: a smaller one takes {missed:.4f} ms, allowed {self.allowed_ms:.4f} ms"
                    )
                    self.note(family, size, reason)
                    continue
                if fitting and self.budget.spent > GATE_SHARE * self.budget.wanted:
                    self.note(family, size, "not tried: time budget ended before its latency was measured")
                    continue
                latency: float | None = None
                try:
                    untrained = training.make_student(
                        self.first_training(len(self.entries), family, size, Recipe(1.0, 1.0))
                    )
                    artifact = untrained.prototype(self.problem.fit)
                    if artifact is not None:
                        latency = self.least_latency_ms(artifact)
                except PgDistillError as error:
                    self.note(family, size, f"not tried: {error.message}")
                    continue
                except Exception as error:
                    self.note(family, size, f"not tried: {type(error).__name__}: {error}")
                    continue
                smallest = not fitting and missed is None
                if latency is None or latency <= self.allowed_ms or (self.config.sql and smallest):
                    fitting.append(size)
                elif artifact is not None and (smallest or self.is_near(latency)):
                    self.refused.append((family, size, artifact, latency))
                    if not self.is_near(latency):
                        missed = latency
                else:
                    self.note_too_slow(family, size, latency)
                    missed = latency
            if fitting:
                self.sizes[family] = fitting
        self.wait_for_a_better_moment()
        self.budget.begin()

    def wait_for_a_better_moment(self) -> None:
        """Where nothing fits, measure again for some seconds: a stalled machine must not end a run before it has begun."""
        for pause in PAUSES:
            within_reach = any(latency <= FAR * self.allowed_ms for *_, latency in self.refused)
            if self.sizes or not within_reach or self.budget.spent > GATE_SHARE * self.budget.wanted:
                return
            time.sleep(pause)
            self.measure_again(last=False)

    def measure_again(self, *, last: bool = True) -> None:
        """Measure the shapes that wait for it once more, some time later; the ``last`` time note those that still miss it."""
        refused, self.refused = self.refused, []
        for family, size, artifact, before in refused:
            latency = min(before, training.latency_ms(artifact, self.problem.select.frame))
            if latency > self.allowed_ms:
                if last:
                    self.note_too_slow(family, size, latency)
                else:
                    self.refused.append((family, size, artifact, latency))
                continue
            fitting = [*self.sizes.get(family, ()), size]
            self.sizes[family] = [other for other in self.all_sizes(family) if other in fitting]

    def time_again(self) -> None:
        """Measure the trained students that are near the target once more; the least counts."""
        for entry in self.entries:
            if entry.artifact and self.is_near(entry.latency_ms):
                again = training.latency_ms(entry.artifact, self.problem.select.frame)
                entry.latency_ms = min(entry.latency_ms, again)
        self.share_latencies()

    def share_latencies(self) -> None:
        """Give students of one shape one latency, where it is all that decides: else noise says which of them is the fastest."""
        if self.problem.fit.frame.text_names:
            return
        alike: dict[str, list[Entry]] = {}
        for entry in (e for e in self.entries if e.artifact and e.family in OF_SHAPE):
            alike.setdefault(repr((entry.family, sorted(entry.size.items()))), []).append(entry)
        for entries in alike.values():
            least = min(e.latency_ms for e in entries)
            for entry in entries:
                entry.latency_ms = least

    def is_near(self, latency: float) -> bool:
        """Whether a latency is over what is allowed, but so little that a slow moment may be the cause."""
        return self.allowed_ms < latency <= NEAR * self.allowed_ms

    def least_latency_ms(self, artifact: bytes) -> float:
        """Return what a file takes; the least of several measurements where it is near what is allowed, of two where far above.

        Other work on the machine makes a call take longer, never shorter: 25 times as long in one moment of an idle one.
        """
        latency = training.latency_ms(artifact, self.problem.select.frame)
        if latency > NEAR * self.allowed_ms:
            latency = min(latency, training.latency_ms(artifact, self.problem.select.frame))
        for _ in range(NEAR_TRIES):
            if not self.is_near(latency):
                break
            latency = min(latency, training.latency_ms(artifact, self.problem.select.frame))
        return latency

    def shape(self) -> Shape:
        """Return what families may know before they choose their sizes."""
        return Shape(
            task=self.problem.task,
            n_classes=self.select.n_classes,
            features=self.problem.fit.frame.features,
            n_rows=len(self.problem.fit),
            teacher=self.problem.teacher,
        )

    def all_sizes(self, family: str) -> Sequence[Mapping[str, Any]]:
        """Return a family's sizes; none, with a note, where it cannot be had."""
        if self.config.monotone and family not in MONOTONE:
            self.note(family, {}, "not tried: it cannot keep monotone constraints")
            return ()
        try:
            return load_family(family).sizes(self.shape())
        except (ImportError, AttributeError) as error:
            self.note(family, {}, f"not tried: {type(error).__name__}: {error}")
            return ()

    def sql_sizes(self, family: str) -> Sequence[Mapping[str, Any]]:
        """Return the sizes of a family that are trained because SQL is asked for; none where it has no form over vectors."""
        shape = self.shape()
        return () if any(f.is_vector for f in shape.features) else load_family(family).sql_sizes(shape)

    def note_too_slow(self, family: str, size: Mapping[str, Any], latency: float) -> None:
        """Record a shape that misses the target."""
        reason = f"not trained: its shape takes {latency:.4f} ms, allowed {self.allowed_ms:.4f} ms"
        self.note(family, size, reason, latency)

    def note(self, family: str, size: Mapping[str, Any], reason: str, latency: float = float("nan")) -> None:
        """Record a candidate that is never trained."""
        entry = Entry(len(self.entries), family, size, Recipe(1.0, 1.0), {"family": family, **size})
        entry.reason, entry.latency_ms = reason, latency
        if self.config.monotone and family in MONOTONE:
            entry.configuration["monotone"] = dict(self.config.monotone)
        self.entries.append(entry)
