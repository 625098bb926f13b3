"""Trainings, some at once, within their time: what each gets of the rows, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import replace
from typing import Any

import numpy as np

from pg_distill.errors import PgDistillError
from pg_distill.search import training
from pg_distill.search.budget import Budget
from pg_distill.search.entries import Entry, key_of
from pg_distill.search.problem import Config, Problem
from pg_distill.search.rows import Rows
from pg_distill.search.select import Select
from pg_distill.search.training import NO_TIME, NO_TIME_TO_REFIT, Outcome, Recipe, Training
from pg_distill.students.families import ITERATIVE, Setup, load_family
from pg_distill.students.transfer_set import AUGMENTED, TransferSet, stack

__all__ = ["Runner"]

MOST_SCREENED = 100_000
"""Rows that an iterative student gets in the screen, however many there are: recipes show on these."""
BAG = 0.85
"""Share of the rows on which a student that makes no passes is trained under another seed, so that it differs."""
SCREEN_CELLS = 600_000
"""Rows times outputs that a tree or linear student gets in the screen: recipes show on few rows, 26 classes cost 26-fold."""
REFIT_MARGIN = 1.3
"""What a training on more rows may take, as a multiple of what the first one took for each row."""


class Runner:
    """Runs the trainings of stages on an executor, and writes what comes of them into their entries."""

    def __init__(
        self,
        problem: Problem,
        config: Config,
        select: Select,
        rows: Rows,
        budget: Budget,
        entries: list[Entry],
        executor: Executor,
        report: Callable[[dict[str, Any]], None],
        *,
        is_local: bool,
    ) -> None:
        self.problem = problem
        self.config = config
        self.select = select
        self.rows = rows
        self.budget = budget
        self.entries = entries
        self.executor = executor
        self.report = report
        self.is_local = is_local

    def run(
        self,
        stage: str,
        plan: Iterable[tuple[str, Mapping[str, Any], Recipe]],
        *,
        left_out: str = "",
    ) -> list[Entry]:
        """Train a stage's candidates in parallel and judge them; ``left_out`` is the reason for which none is trained."""
        waiting: list[Entry] = []
        known = {
            key_of(e.family, e.size, e.recipe): e for e in self.entries if e.artifact and not e.is_partial
        }
        kept: list[Entry] = []
        for family, size, recipe in plan:
            key = key_of(family, size, recipe)
            if key in known:
                kept.append(known[key])
                continue
            entry = Entry(len(self.entries), family, size, recipe, {"family": family, **size})
            entry.configuration |= {
                "temperature": recipe.temperature,
                "alpha": recipe.alpha,
                "transfer_set": self.rows.describe(recipe),
                "stage": stage,
                "seed": self.config.seed + recipe.seed,
            }
            if self.config.monotone:
                entry.configuration["monotone"] = dict(self.config.monotone)
            entry.is_control = recipe.is_control
            known[key] = entry
            self.entries.append(entry)
            waiting.append(entry)
        if left_out:
            for entry in waiting:
                entry.reason = left_out
            return kept
        self.execute(stage, waiting, self.take)
        for entry in waiting:
            if entry.artifact:
                entry.latency_ms, entry.reading_ms = training.timings(
                    entry.artifact, self.problem.select.frame
                )
        return [e for e in [*kept, *waiting] if e.is_usable]

    def first_training(self, number: int, family: str, size: Mapping[str, Any], recipe: Recipe) -> Training:
        """Return the first training of a student, which has no time yet."""
        return Training(
            number=number,
            family=family,
            size=size,
            setup=Setup(
                task=self.problem.task,
                n_classes=self.select.n_classes,
                temperature=recipe.temperature,
                alpha=recipe.alpha,
                epochs=self.config.epochs,
                seed=self.config.seed + recipe.seed,
                teacher=self.problem.teacher if load_family(family).uses_teacher else None,
                monotone=self.config.monotone,
            ),
            seconds=0.0,
            calibrated=self.problem.metric != "agreement",
        )

    def execute(
        self,
        stage: str,
        entries: Sequence[Entry],
        take: Callable[[Entry, Outcome], None],
        *,
        refit: bool = False,
    ) -> None:
        """Run one training for each entry, at most ``threads`` at once, and hand what came of it to ``take``."""
        rescue = stage == "rescue"
        late = self.budget.late
        queue, done = list(entries), 0
        running: dict[Future[Outcome], tuple[Entry, float]] = {}

        def leave_out(entry: Entry, reason: str) -> None:
            if refit:  # it has been trained
                entry.configuration["refit"] = f"failed: {reason}"
            else:
                entry.reason = entry.reason or reason

        def make_rows() -> bool:
            """Make some of the augmented rows that are wanted first, if there are any to be made."""
            kind = next((kind for e in queue if (kind := self.rows.missing(e.recipe)) is not None), None)
            if kind is not None:
                self.rows.make_more(kind)
            return kind is not None

        while queue or running:
            while queue and len(running) < self.config.threads:
                now = time.monotonic()
                # Not once for all: the first trainings tell how busy the machine is.
                if not rescue and now > self.budget.end_of(stage):
                    leave_out(queue.pop(0), NO_TIME_TO_REFIT if refit else NO_TIME)
                    done += 1
                    continue
                place = next((i for i, e in enumerate(queue) if self.rows.missing(e.recipe) is None), None)
                if place is None:
                    if running:
                        break
                    make_rows()
                    continue
                entry = queue.pop(place)
                try:
                    given = self.rows_and_seconds(entry, stage, now, refit=refit)
                except MemoryError:
                    given = "out of memory"
                if isinstance(given, str):
                    leave_out(entry, given)
                    done += 1
                    continue
                data, seconds = given
                task = replace(
                    self.first_training(entry.number, entry.family, entry.size, entry.recipe),
                    seconds=seconds,
                    fitted=entry.student if refit else None,
                    exported=not entry.fold,
                )
                select = self.problem.judging([entry.fold]) if entry.fold else self.problem.select
                future = self.executor.submit(training.train, task, data, select)
                running[future] = entry, now + max(0.0, seconds) + late
                self.report(
                    {
                        "stage": stage,
                        "done": done / len(entries),
                        "number": done + len(running),
                        "count": len(entries),
                        "candidate": f"{entry.family} {dict(entry.size)}",
                        "seconds": self.budget.spent,
                        "budget_s": self.budget.seconds,
                    }
                )
            if not running:
                break
            # Threads of this process stop by their own deadline; another machine may never answer.
            patience = (
                None if self.is_local else min(limit for _, limit in running.values()) - time.monotonic()
            )
            # Rows are made and labelled beside the trainings, a part at a time, and those that need none go first.
            if make_rows():
                patience = 0.0
            finished = wait(running, None if patience is None else max(0.0, patience), FIRST_COMPLETED).done
            if not finished and not self.is_local:
                finished = {f for f, (_, limit) in running.items() if limit <= time.monotonic()}
            for future in sorted(finished, key=lambda f: running[f][0].number):
                entry, _ = running.pop(future)
                outcome = Outcome(entry.number, None, b"", None, None, "its executor gave no answer", late)
                if future.done():
                    outcome = _outcome(future, entry)
                else:
                    future.cancel()
                self.budget.note(outcome.cpu_seconds, outcome.cpu_seconds + outcome.queued_seconds)
                take(entry, outcome)
                done += 1

    def rows_and_seconds(
        self, entry: Entry, stage: str, now: float, *, refit: bool
    ) -> tuple[TransferSet, float] | str:
        """Return what a training gets, its rows and the seconds that it may take, or why it is left out."""
        broken = [
            self.rows.broken[kind] for kind, _ in self.rows.wanted(entry.recipe) if kind in self.rows.broken
        ]
        if broken:
            return f"no transfer set: {broken[0]}"
        data = self.rows_for(entry, stage)
        seconds = self.budget.for_task(stage, now, refit=refit)
        if refit:
            data = stack([data, *[self.problem.select] * (entry.recipe.repeat * entry.tiles)])
            if entry.fold:
                assert data.folds is not None
                data = data.take(np.flatnonzero(data.folds != entry.fold))
            if REFIT_MARGIN * entry.fit_seconds * len(data) / max(1, entry.fit_rows) > seconds:
                return NO_TIME_TO_REFIT
        else:
            entry.fit_rows = len(data)
            entry.configuration["rows"] = len(data)
        return data, seconds

    def rows_for(self, entry: Entry, stage: str) -> TransferSet:
        """Return an entry's transfer set; students that work on all rows at once get fewer in the screen and in a bag."""
        data = self.rows.transfer(entry.recipe)
        passes = entry.family in ITERATIVE
        if passes and entry.recipe.augment:
            # A slow teacher labels few of them: the steps that they were to be worth are made of those that there are.
            real = len(data) - np.count_nonzero(data.source == AUGMENTED)
            wanted = real * (1 + sum(factor for _, factor in entry.recipe.augment))
            entry.tiles = max(1, int(wanted / len(data) / entry.recipe.repeat))
            if entry.tiles > 1:
                data = data.take(np.tile(np.arange(len(data)), entry.tiles))
        most = len(data)
        if entry.recipe.seed and not passes:
            most = int(BAG * most)
        if stage == "screen":
            most = min(most, MOST_SCREENED if passes else SCREEN_CELLS // self.select.n_classes)
            entry.is_partial = most < len(data)
            if entry.is_partial:
                entry.configuration["partial"] = True
        if most >= len(data):
            return data
        order = np.random.default_rng([self.config.seed, entry.recipe.seed]).permutation(len(data))
        return data.take(np.sort(order[:most]))

    def take(self, entry: Entry, outcome: Outcome) -> None:
        """Judge what a training brought."""
        entry.seconds = entry.fit_seconds = outcome.seconds
        entry.reason = outcome.reason
        if outcome.student is None or outcome.logits is None:
            return
        if not getattr(outcome.student, "complete_", True):
            entry.configuration["cut_short"] = True
        entry.student, entry.artifact, entry.expression = (
            outcome.student,
            outcome.artifact,
            outcome.expression,
        )
        self.select.score(entry, outcome.logits)


def _outcome(future: Future[Outcome], entry: Entry) -> Outcome:
    """Return what became of a training that is over."""
    try:
        return future.result()
    except PgDistillError:
        raise  # the executor itself is gone
    except Exception as error:  # such as Dask's KilledWorker: one candidate must not end the run
        return Outcome(entry.number, None, b"", None, None, f"{type(error).__name__}: {error}", 0.0)
