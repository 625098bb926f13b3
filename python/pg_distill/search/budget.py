"""The time of a search: its deadline, and which share of it each stage may use."""

from __future__ import annotations

import time

__all__ = ["STAGE_END", "Budget"]

RESERVE_SECONDS, RESERVE_SHARE = 2.0, 0.1
"""Kept back at the end of the budget, for the last measurements: so long, but no more than this share of it."""
STAGE_END = {"screen": 0.25, "sizes": 0.5, "finish": 0.7, "refit": 0.97}
CROSSED_STAGE_END = {"screen": 0.2, "sizes": 0.34, "finish": 0.45, "cross": 0.85, "refit": 0.97}
"""Shares of the time that measuring shapes left at which no task of the stage is started any more."""
REFIT_FROM = 0.82
"""Share of that time at which every training before the refits is over: one large student must not take it from all."""
TASK_SHARE = {"screen": 0.08, "sizes": 0.15, "finish": 0.3, "cross": 0.15, "refit": 0.3, "rescue": 1.0}
"""Most of the budget that one task of the stage may take."""
RESCUE_SECONDS = 3.0
"""Where the budget ended before a student or a control was had: what one training may take."""
HANG_SHARE = 0.1
"""Of the budget, and at least the reserve: what another machine may be late with a candidate before it is given up."""


class Budget:
    """A time budget in seconds, from now on."""

    def __init__(self, seconds: float, *, crossed: bool = False) -> None:
        self.seconds = seconds
        self.stage_end = CROSSED_STAGE_END if crossed else STAGE_END
        self.start = time.monotonic()
        self.deadline = self.start + max(0.0, seconds - min(RESERVE_SECONDS, RESERVE_SHARE * seconds))
        self.begun = self.start

    def begin(self) -> None:
        """Begin the trainings: shapes have been measured, and stages share what is left."""
        self.begun = time.monotonic()

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

    def end_of(self, stage: str) -> float:
        """Return when no task of a stage is started any more."""
        return self.begun + self.stage_end.get(stage, 1.0) * max(0.0, self.deadline - self.begun)

    def for_task(self, stage: str, now: float, *, refit: bool) -> float:
        """Return the seconds that a task of a stage may take, from ``now`` on."""
        if stage == "rescue":
            return RESCUE_SECONDS
        end = self.begun + (1.0 if refit else REFIT_FROM) * (self.deadline - self.begun)
        return min(end - now, TASK_SHARE[stage] * self.seconds)
