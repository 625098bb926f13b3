"""When a search has gone on for long enough: trainings in a row, in the candidates' order, by which nothing improved.

It is counted in trainings and not in seconds, so that a machine half as fast, or busy, trains the same candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from pg_distill.measure.confidence import TIE, paired_error
from pg_distill.search.entries import Entry, best_of

__all__ = ["LEAST_GAIN", "Patience"]

LEAST_GAIN = 0.01
"""Share of the log loss, or of the error, that a student or a blend has to take off, where its metric is within the noise."""
NOTHING = 5e-4
"""Share of what a constant answer loses that is no gain, however small the loss is: where all rows are answered right it only
goes on to fall."""
RUNGS = (1.0, 0.5, 0.25)
"""Shares of the latency allowed within which the best counts: few, because what is measured as just above one is below it the
next time, and the same search would end elsewhere."""


class Patience:
    """Counts the trainings since the last gain, of ``most``.

    A gain is a student that is better than all that are within a rung of the latency allowed: by its metric, beyond the noise
    of their paired difference on select, or by its log loss; or a better blend.

    Parameters
    ----------
    allowed_ms
        What a student may take.
    constant_loss
        The tie-break of a constant answer, a loss below 0.
    blend_loss
        Gives the tie-break that the best blend of what there is would have.
    """

    def __init__(
        self, most: int, allowed_ms: float, constant_loss: float, blend_loss: Callable[[], float]
    ) -> None:
        self.most = most
        self.allowed_ms = allowed_ms
        self.nothing = NOTHING * abs(constant_loss)
        self.blend_loss = blend_loss
        self.usable: list[Entry] = []
        self.trained = 0
        self.since_gain = 0
        self.has_ended_a_stage = False
        self._blend: float | None = None

    def count(self, entries: Iterable[Entry]) -> None:
        """Take in the entries of a round, in their order."""
        for entry in entries:
            if not entry.artifact:
                continue
            self.trained += 1
            self.since_gain += 1
            if entry.is_usable:
                if self.is_gain(entry):
                    self.since_gain = 0
                self.usable.append(entry)

    def count_blends(self) -> None:
        """Look at what a blend would be worth by now; one that is better than the last time is a gain."""
        loss = self.blend_loss()
        if self._blend is not None and loss - self._blend > self.least_gain(self._blend):
            self.since_gain = 0
        if self._blend is None or loss > self._blend:
            self._blend = loss

    def begin_finish(self) -> None:
        """Leave a quarter of the patience to the last trainings, of which blends are made; look at what one would be worth."""
        self.since_gain = min(self.since_gain, self.most - self.most // 4)
        self.count_blends()

    def least_gain(self, loss: float) -> float:
        """Return how much better than ``loss`` something has to be."""
        return max(LEAST_GAIN * abs(loss), self.nothing)

    def is_gain(self, entry: Entry) -> bool:
        """Whether a usable entry is better, within one of ``RUNGS``, than the best that has been counted."""
        for share in RUNGS:
            most_ms = share * self.allowed_ms
            if entry.latency_ms <= most_ms and self.is_better(entry, best_of(self.usable, most_ms, 1)):
                return True
        return False

    def is_better(self, entry: Entry, bests: list[Entry]) -> bool:
        """Whether ``entry`` is better, beyond noise, than the one of ``bests``, or there is none."""
        if not bests:
            return True
        [best] = bests
        noise = 0.0
        if entry.jackknife and len(entry.jackknife) == len(best.jackknife):
            noise = TIE * paired_error(np.asarray(entry.jackknife), np.asarray(best.jackknife))
        ahead = entry.metric - best.metric
        if ahead > noise:
            return True
        return ahead >= -noise and entry.tie_break - best.tie_break > self.least_gain(best.tie_break)

    def is_over(self) -> bool:
        """Whether the next round, which there is, is not worth its time."""
        if self.since_gain >= self.most:
            self.has_ended_a_stage = True
            return True
        return False
