"""A distillation's clock: what of the budget is left, and when its progress is reported."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from pg_distill.child.messages import Reported
from pg_distill.database.protocol import Database
from pg_distill.runs.progress import SEARCH, STAGES, Progress, Watch

__all__ = ["Clock"]

SECONDS_BETWEEN_NOTICES = 5.0  # within a stage
SECONDS_BETWEEN_STAGES = 1.0  # of which a notice is given: some stages pass in no time
SECONDS_BETWEEN_SHOWS = 0.5  # of pg_stat_activity


@dataclass
class Clock:
    """Seconds a stage, and what is told to the client and to whoever looks at pg_stat_activity."""

    db: Database
    standing: Progress
    watch: Watch
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _stage: str = "start"
    _since: float = field(default_factory=time.monotonic)
    _told_stage: str = ""
    _told: float = 0.0
    _shown_stage: str = ""
    _shown: float = 0.0

    def enter(self, stage: str) -> None:
        """Begin a stage: the time until now was that of the one before."""
        now = time.monotonic()
        self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + now - self._since, 3)
        self._stage, self._since = stage, now
        self._report(stage, 0.0, None)
        if stage in STAGES:
            self._show(stage, "")
        else:
            self.db.show_activity(None)

    def say(self, text: str, detail: str | None = None) -> None:
        """Tell the client at once; ``detail`` is for programs."""
        self._told = time.monotonic()
        self.db.notice(text, detail=detail)

    def warn(self, texts: Iterable[str]) -> None:
        """Warn the client at once, and whoever reads the run."""
        for text in texts:
            self.warnings.append(text)
            self.db.warning(text)

    def progress(self, fields: Reported) -> None:
        """Pass on the child's progress, without a flood."""
        # A stage of the search's own that is not trained in, such as its end, is the search still.
        stage = str(fields.get("stage"))
        stage = stage if stage in SEARCH or stage == self._stage else self._stage
        done, candidate = float(fields.get("done", 0.0)), fields.get("candidate")
        if "budget_s" in fields:  # it grows on a busy machine
            self.standing.limit(fields["budget_s"])
        self._report(stage, done, candidate)
        if "estimated_seconds" in fields:
            left_out = (
                f", {fields['rows_left_out']} rows left out for time" if fields.get("rows_left_out") else ""
            )
            self.say(
                f"labelling {fields['rows']} rows will take about {fields['estimated_seconds']:.0f} s{left_out}"
            )
        which = f"{fields['number']}/{fields['count']} " if "number" in fields else ""
        self._show(stage, f"{which}{candidate or ''}")
        quiet = time.monotonic() - self._told
        if quiet > (SECONDS_BETWEEN_NOTICES if stage == self._told_stage else SECONDS_BETWEEN_STAGES):
            self._told_stage = stage
            left = self.standing.now().seconds_left
            what = f"{which}{candidate or ''}" or None
            text = ", ".join(filter(None, [what, f"about {left:.0f} s left"]))
            # Also as a program reads it: pg-distill draws its bar of it.
            detail = {
                "stage": stage,
                "done": round(done, 3),
                "candidate": what,
                "seconds_left": round(left, 1),
            }
            self.say(f"{stage}: {text} ({done:.0%})", json.dumps(detail))

    def _report(self, stage: str, done: float, candidate: str | None) -> None:
        self.standing.watch(stage, done, candidate)
        self.watch(stage, done, candidate, self.standing.now().seconds_left)

    def _show(self, stage: str, what: str) -> None:
        now = time.monotonic()
        if stage != self._shown_stage or now - self._shown > SECONDS_BETWEEN_SHOWS:
            self._shown_stage, self._shown = stage, now
            standing = self.standing.now()
            # The figures first: a candidate's description is cut where it does not fit.
            figures = f"{standing.progress:.0%}, {standing.seconds_left:.0f} s left"
            number, _, name = what.partition(" ")
            self.db.show_activity(
                " ".join(filter(None, ["pg_distill:", STAGES[stage], number, f"({figures})", name]))
            )
