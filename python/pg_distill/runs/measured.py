"""What a run has measured and decided, in one value that the story hands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pg_distill.child.messages import ChosenBy, Ended, SearchRequest, Trial
from pg_distill.measure.scores import Compared, Evaluation, Scores
from pg_distill.registry.model import MeasuredOn, Model
from pg_distill.runs.choice import offer_name
from pg_distill.runs.verdict import Verdict
from pg_distill.serving.timing import Timing

__all__ = ["Measured"]


@dataclass(frozen=True)
class Measured:
    """Candidates and family of a run, with their figures, and what was decided.

    Attributes
    ----------
    figures
        Accuracy on the test rows, of teacher, candidates and members.
    request
        What the search was asked for; None where nothing was searched.
    trials, finalists
        All candidates, and those that were timed in the backend.
    control
        The candidate of labels alone that the choice is compared with.
    chosen_by
        The rows that chose; None where nothing was searched.
    registered
        The choice once it has learned from the test rows too, where that was asked for: what is registered in its place;
        and ``not_registered``, why it is not.
    members, before
        The teacher's family by id, and where its members were measured until now.
    timings
        By a model's id, or a candidate's `choice.offer_name`.
    ended
        Why the search ended; None where nothing was searched.
    """

    teacher: Model
    figures: Evaluation
    decision: Verdict
    summary: str
    request: SearchRequest | None
    trials: Sequence[Trial] = ()
    finalists: Sequence[Trial] = ()
    control: Trial | None = None
    chosen_by: ChosenBy | None = None
    members: Mapping[str, Model] = field(default_factory=dict)
    before: Mapping[str, MeasuredOn] = field(default_factory=dict)
    timings: Mapping[str, Timing] = field(default_factory=dict)
    registered: Trial | None = None
    not_registered: str | None = None
    compared: Compared = field(default_factory=lambda: Compared(intervals={}, versus={}))
    ended: Ended | None = None

    def timing_of(self, trial: Trial) -> Timing | None:
        """Return a candidate's latency in the backend, None where it was not timed."""
        return self.timings.get(offer_name(trial.number))

    def scores_of(self, trial: Trial) -> Scores | None:
        """Return a candidate's figures on the test rows, None where it was not scored."""
        return self.figures["candidates"].get(str(trial.scored_as))
