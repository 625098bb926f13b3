"""How far a distillation is: what the pipeline and its child say, as one small value, by the time that stages may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["STAGES", "Progress", "Standing", "Watch", "latency_seconds"]

LATENCY_SECONDS, LATENCY_SHARE = (2.0, 20.0), 1 / 6
"""To time teacher, family and candidates together: this share of what labelling and search took, within bounds."""
OTHER_SECONDS = 5.0  # what else comes after the search
SEARCH = {
    "screen": (0.0, 0.25),
    "sizes": (0.25, 0.5),
    "finish": (0.5, 0.7),
    "cross": (0.6, 0.87),
    "refit": (0.7, 1.0),
}
"""What part of its time budget each stage of the search may take at most: see ``search.STAGE_END``."""
STAGES = {
    "sample": "sampling",
    "label": "labelling",
    "search": "preparing",
    **dict.fromkeys(SEARCH, "training"),
    "latency": "timing",
    "evaluate": "evaluating",
    "register": "registering",
}
"""What a stage does, in a word."""
MOST = 0.99  # not 1 before the run is recorded


def latency_seconds(spent_s: float) -> float:
    """Return the seconds that timing takes, at most, of a run whose labelling and search took ``spent_s``; it comes after."""
    least, most = LATENCY_SECONDS
    return min(max(least, LATENCY_SHARE * spent_s), most)


Watch = Callable[[str, float, str | None, float], None]
"""Is told the stage, how much of it is done (0..1), the candidate that is being trained, and the seconds left of the run."""


class Standing(NamedTuple):
    """How far a run is: ``progress`` (0..1) is the part of the expected time that is over, and never falls."""

    stage: str
    progress: float
    candidate: str | None
    seconds_left: float


class Progress:
    """Makes a ``Standing`` of what the pipeline says; ``watch`` is its callback.

    Parameters
    ----------
    time_budget_s
        Seconds that labelling and search may take.
    clock
        Gives seconds.
    """

    def __init__(self, time_budget_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = self._since = clock()
        self._stage = "start"
        self._left = self.limit(time_budget_s)
        self._candidate: str | None = None
        self._most = 0.0

    def limit(self, seconds: float) -> float:
        """Reckon with so many seconds of labelling and search; return what the whole run takes then."""
        self._budget = seconds
        self._timing = latency_seconds(seconds)
        self._tail = self._timing + OTHER_SECONDS
        return seconds + self._tail

    def watch(
        self, stage: str, done: float, candidate: str | None, seconds_left: float | None = None
    ) -> None:
        """Take in what the pipeline says, or another process that knows the seconds left."""
        now = self._clock()
        if seconds_left is not None:
            left = seconds_left
        elif stage in SEARCH:
            first, last = SEARCH[stage]
            left = (1.0 - first - done * (last - first)) * self._budget + self._tail
        elif stage in ("sample", "label", "search"):
            left = max(self._budget - (now - self._started), 0.0) + self._tail
        else:
            if stage == "latency" != self._stage:  # the search may have ended early
                self._timing = latency_seconds(min(self._budget, now - self._started))
            left = {
                "latency": self._timing * (1.0 - done) + OTHER_SECONDS,
                "evaluate": 3.0,
                "register": 1.0,
            }.get(stage, 0.0)
        self._stage, self._left, self._candidate, self._since = stage, left, candidate, now

    def now(self) -> Standing:
        """Return where it stands, the time since the last word included."""
        now = self._clock()
        left = max(self._left - (now - self._since), 0.0)
        elapsed = now - self._started
        self._most = max(self._most, min(elapsed / max(elapsed + left, 1e-9), MOST))
        return Standing(self._stage, self._most, self._candidate, left)
