"""The time of a search: its deadline, and which share of it each stage may use.

Shares are of a machine that has nothing else to do and is as fast as those on which they were settled. Elsewhere the same work
takes longer, and is given it: a budget that the caller did not state grows by as much, up to the most that a run may take, and
within a stated one the shares do, while it allows that. What a busy or a slower machine trains late, it trains all the same.
"""

from __future__ import annotations

import time

import numpy as np

__all__ = ["STAGE_END", "Budget", "unit_seconds"]

RESERVE_SECONDS, RESERVE_SHARE = 2.0, 0.1
"""Kept back at the end of the budget, for the last measurements: so long, but no more than this share of it."""
STAGE_END = {"screen": 0.25, "sizes": 0.5, "finish": 0.7, "refit": 0.97}
CROSSED_END = {"screen": 0.25, "sizes": 0.45, "finish": 0.55, "cross": 0.87, "refit": 0.97}
"""Shares of the time that measuring shapes left at which no task of the stage is started any more; the second where there are
folds, without each of which the best are trained once more."""
LATEST_END = {"screen": 0.4, "sizes": 0.62, "finish": 0.8, "refit": 0.97}
CROSSED_LATEST = {"screen": 0.4, "sizes": 0.56, "finish": 0.65, "cross": 0.9, "refit": 0.97}
"""What these shares are stretched to at most: each stage after them is still to have its first round."""
REFIT_FROM, LATEST_REFIT_FROM = 0.82, 0.9
"""Share of that time at which every training before the refits is over: one large student must not take it from all."""
UNIT_SECONDS = 0.005
"""Of processor time that a unit of work takes on the machine on which the shares were settled (2 cores of an AMD EPYC)."""
UNIT_REPEATS, MOST_STRETCH = 3, 4.0
"""Measurements of the unit, of which the least counts; and the most that a share is stretched by."""
LEAST_CPU = 0.5
"""Seconds of processor time before which nothing is known of how busy the machine is."""
TASK_SHARE = {"screen": 0.08, "sizes": 0.15, "finish": 0.3, "cross": 0.15, "refit": 0.3, "rescue": 1.0}
"""Most of the budget that one task of the stage may take."""
RESCUE_SECONDS = 3.0
"""Where the budget ended before a student or a control was had: what one training may take."""
HANG_SHARE = 0.1
"""Of the budget, and at least the reserve: what another machine may be late with a candidate before it is given up."""


class Budget:
    """A time budget in seconds, from now on; it may grow to ``most`` where the machine is slow or busy."""

    def __init__(self, seconds: float, most: float | None = None, *, crossed: bool = False) -> None:
        self._usual, self._most = seconds, max(seconds, most or 0.0)
        self._work, self._took = 0.0, 0.0
        self._slower = max(1.0, min(unit_seconds() for _ in range(UNIT_REPEATS)) / UNIT_SECONDS)
        self.ends, self.latest = (CROSSED_END, CROSSED_LATEST) if crossed else (STAGE_END, LATEST_END)
        self._begun_cpu = time.thread_time()
        self.start = self.begun = time.monotonic()

    def begin(self) -> None:
        """Begin the trainings: shapes have been measured, and stages share what is left."""
        self.begun = time.monotonic()

    @property
    def wanted(self) -> float:
        """Seconds in which this machine does what one that is idle and of the usual speed does in the budget."""
        return self._usual * self.stretch

    @property
    def seconds(self) -> float:
        """What the search may take: what is wanted, where that is allowed."""
        return min(self.wanted, self._most)

    @property
    def deadline(self) -> float:
        """When only the last measurements are to be made, by ``time.monotonic()``."""
        reserve = min(RESERVE_SECONDS, RESERVE_SHARE * self._usual)
        return self.start + max(0.0, self._usual - reserve) * self.seconds / self._usual

    @property
    def spent(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self.start

    @property
    def is_over(self) -> bool:
        """Whether only the last measurements are to be made."""
        return time.monotonic() > self.deadline

    @property
    def late(self) -> float:
        """What another machine may be late with a candidate."""
        return max(RESERVE_SECONDS, HANG_SHARE * self.seconds)

    def note(self, cpu_seconds: float, seconds: float) -> None:
        """Take in what a training had of a processor, and what it would have taken of one: ``seconds``, no less."""
        if cpu_seconds > 0.0 and seconds > 0.0:
            self._work += min(cpu_seconds, seconds)
            self._took += seconds

    @property
    def stretch(self) -> float:
        """How many times as long as on an idle machine of the usual speed something takes here: 1 or more."""
        if self._work:
            busy = self._took / self._work
        else:  # shapes are being measured, which takes a processor all the time
            worked = time.thread_time() - self._begun_cpu
            busy = max(1.0, self.spent / worked) if worked > LEAST_CPU else 1.0
        return min(busy * self._slower, MOST_STRETCH)

    @property
    def squeeze(self) -> float:
        """What of the stretch a longer budget has not made up for: shares of it are stretched by so much."""
        return self.wanted / self.seconds

    def end_of(self, stage: str) -> float:
        """Return when no task of a stage is started any more."""
        share = self.ends.get(stage, 1.0)
        share = min(share * self.squeeze, self.latest.get(stage, share))
        return self.begun + share * max(0.0, self.deadline - self.begun)

    def for_task(self, stage: str, now: float, *, refit: bool) -> float:
        """Return the seconds that a task of a stage may take, from ``now`` on."""
        if stage == "rescue":
            return RESCUE_SECONDS
        share = 1.0 if refit else min(REFIT_FROM * self.squeeze, LATEST_REFIT_FROM)
        end = self.begun + share * (self.deadline - self.begun)
        return min(end - now, TASK_SHARE[stage] * self.wanted)


def unit_seconds() -> float:
    """Return the processor time of a unit of work: products of matrices and sorting, as networks and trees do them."""
    rng = np.random.default_rng(0)
    rows, weights = rng.random((256, 128), np.float32), rng.random((128, 128), np.float32)
    numbers = rng.random(30_000)
    start = time.thread_time()
    for _ in range(20):
        np.maximum(rows @ weights, 0.0)
        np.argsort(numbers[: len(numbers) // 10])
    np.sort(numbers)
    return time.thread_time() - start
