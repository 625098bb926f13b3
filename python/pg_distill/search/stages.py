"""Which candidates are trained, in what order, within what budget.

Latency first: what cannot meet the target is never trained. Then stages with barriers between them, each dearer a candidate
than the one before:

screen
    finds each family's recipe (temperature, alpha, transfer set) at one size;
sizes
    trains all sizes by the best recipe; a family that lost the screen by more than ``HOPELESS`` only gets the sizes that
    are smaller than the one it lost with, for the fast end of the frontier; where SQL is asked for, after the smaller ones also
    those that suit a query, once each, whatever the screen said of their family;
finish
    trains the best on larger transfer sets, and their controls (labels alone) at the same size; of a family no more than two
    sizes, but what reads its numbers another way too, where it is nearly as good: blends gain by parts that err elsewhere;
    where labels alone are best, these again with a little of the teacher;
rescue
    trains the smallest on real rows, only where the budget has ended before there was a student, or a control;
cross
    where rows have folds: trains the best without each of these, so that many rows choose which none of them has learned from;
    see ``crossfit``;
blend
    averages the best of each kind (family, variant, taught or by labels alone) and what improves on that (Caruana et al. 2004),
    while the sum of their latencies fits;
refit
    trains those that nothing beats, and the best controls, once more with the select rows added, where the time left is
    enough for a whole training. Their metric stays the one that they had without these rows: it is what they were chosen by,
    and still of rows that they had not seen.

Decisions are taken at barriers, on scores alone and in the candidates' order, so the executor's order does not matter. Time
does in one way: what the budget cuts off. A student whose share of the budget ends keeps the best it had (a network shortens
its schedule when it sees that coming), and the best so far is returned.

Long, because the stages decide on what all of them share: budget, patience, entries and gate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, takewhile, zip_longest
from typing import Any

from pg_distill.errors import InvalidData
from pg_distill.frame import FloatArray, Frame
from pg_distill.search.blends import Blender
from pg_distill.search.budget import Budget
from pg_distill.search.crossfit import CrossFitter
from pg_distill.search.entries import (
    VARIANT,
    Entry,
    best_of,
    candidates_of,
    key_of,
    least_near,
    other_variants,
    variant_of,
)
from pg_distill.search.gate import Gate
from pg_distill.search.patience import Patience
from pg_distill.search.problem import Candidate, Config, Problem
from pg_distill.search.recipes import Recipes
from pg_distill.search.refits import Refitter
from pg_distill.search.rows import Rows
from pg_distill.search.runner import Runner
from pg_distill.search.select import Select
from pg_distill.search.training import NO_TIME, Recipe
from pg_distill.students.families import FAMILIES, ITERATIVE

__all__ = ["search"]

RESCUE_FAMILIES = 2
"""Where the budget ended before a student or a control was had: families that get a training."""
HOPELESS = 0.25
"""A family is out when its best recipe misses this share of the log loss that the best family gains over a constant."""
TOO_SLOW = 1.1
"""A trained student that takes this many times the latency allowed speaks for the larger ones of its family."""
FINISHERS, FINISHERS_A_FAMILY = 4, 2
"""Students that are trained again on larger transfer sets, and how many sizes of one family: a third errs as the second does."""
LABELS_AHEAD = 3
"""Where labels alone are best: controls that are trained once more with a little of the teacher."""
MORE_SEEDS, MORE_SEEDS_CROSSED = 8, 2
"""Rounds in which, while time lasts, the best are trained with another seed, so that blends have parts; the second where
candidates are cross-fitted, each of them then being as many trainings more."""

FIRST_TURNS = 2
"""Recipes of each family that the screen compares whatever patience says: labels alone, and one that the teacher teaches."""
Task = tuple[str, Mapping[str, Any], Recipe]
"""What is trained: family, size and recipe."""


class Search:
    """The stages over one problem; see the module."""

    def __init__(
        self,
        problem: Problem,
        config: Config,
        label: Callable[[Frame], FloatArray] | None,
        executor: Executor,
        report: Callable[[dict[str, Any]], None],
        *,
        is_local: bool,
    ) -> None:
        self.report = report
        self.budget = Budget(config.time_budget_s, config.most_seconds, crossed=bool(problem.folds))
        self.entries: list[Entry] = []
        self.select = Select(problem)
        rows = Rows(problem, config, label, self.budget)
        self.recipes = Recipes(config, rows, has_label=self.select.has_label)
        self.runner = Runner(
            problem, config, self.select, rows, self.budget, self.entries, executor, report, is_local=is_local
        )
        self.gate = Gate(problem, config, self.select, self.budget, self.entries, self.runner.first_training)
        self.crossfitter = CrossFitter(
            problem, self.select, self.gate, self.runner, self.budget, self.entries, config.threads
        )
        self.blender = Blender(
            problem, self.select, self.budget, self.entries, self.gate.allowed_ms, config.monotone
        )
        constant_loss = self.select.judge(self.select.constant())[1]
        self.patience = Patience(config.patience, self.gate.allowed_ms, constant_loss, self.best_blend)
        self.counted = 0
        self.refitter = Refitter(problem, self.select, self.gate, self.runner, self.entries)

    def __call__(self) -> list[Candidate]:
        """Run the stages and return every candidate."""
        self.report({"stage": "latency", "done": 0.0, "seconds": 0.0})
        self.gate.measure()
        found = self.screen()
        self.train_sizes(found)
        self.gate.time_again()
        self.finish(found)
        self.gate.time_again()
        self.rescue()
        self.crossfitter.cross()
        self.blender.blend()
        self.refitter.refit()
        self.gate.time_again()
        self.refitter.settle()
        self.gate.share_latencies()
        self.report({"stage": "done", "done": 1.0, "seconds": self.budget.spent, "ended": self.ended()})
        judged = self.select.folds, len(self.select.rows)
        candidates = candidates_of(self.entries, self.select.problem.metric, self.gate.allowed_ms, *judged)
        if not self.runner.config.refit_on_all:
            return candidates
        return [
            replace(c, relearn=partial(self.refitter.relearn, e)) if c.artifact else c
            for c, e in zip(candidates, self.entries, strict=True)
        ]

    def _best(self, entries: Iterable[Entry], n: int) -> list[Entry]:
        return best_of(entries, self.gate.allowed_ms, n)

    def ended(self) -> dict[str, Any]:
        """Return why the search ended: ``by`` patience, budget, or because all was done."""
        by = "all done"
        if self.patience.has_ended_a_stage:
            by = "patience"
        elif any(e.reason == NO_TIME or e.configuration.get("cut_short") for e in self.entries):
            by = "budget"
        return {
            "by": by,
            "seconds": round(self.budget.spent, 1),
            "trained": self.patience.trained,
            "since_gain": self.patience.since_gain,
        }

    def best_blend(self) -> float:
        """Return the log loss on select, below 0, of the best blend that there would be by now."""
        trained = [e for e in self.entries if e.student is not None]
        parts = self.blender.parts(trained, self.gate.allowed_ms)
        return self.blender.score_blend(parts) if parts else float("-inf")

    def run(self, stage: str, rounds: Iterable[Iterable[Task]], *, blends: bool = False) -> list[Entry]:
        """Train the first round of a stage, and the others until time or patience end."""
        usable: list[Entry] = []
        for number, tasks in enumerate(rounds):
            plan = list(tasks)
            left_out = ""
            if number and plan and self.patience.is_over():
                left_out = f"not trained: nothing had improved for {self.patience.since_gain} trainings"
            usable += self.runner.run(stage, plan, left_out=left_out)
            if not left_out:
                self.patience.count(self.entries[self.counted :])
                if blends:
                    self.patience.count_blends()
            self.counted = len(self.entries)
        return usable

    def screen(self) -> dict[str, tuple[list[Recipe], list[Mapping[str, Any]]]]:
        """Find each family's two best recipes at one size, and the sizes that are worth training by them."""
        turns: dict[int, list[Task]] = {}
        tried: dict[str, Mapping[str, Any]] = {}
        for family, sizes in self.gate.sizes.items():
            place = _screened(family, sizes, self.select.n_classes)
            tried[family] = sizes[place]
            plan = [(sizes[place], recipe) for recipe in self.recipes.to_screen(family)]
            plan[2:2] = [
                (other, plan[min(1, len(plan) - 1)][1]) for other in other_variants(sizes, sizes[place])
            ]
            # Families take turns, so that a budget or patience that ends early has seen each.
            for turn, item in enumerate(plan):
                turns.setdefault(turn, []).append((family, *item))
        rounds = [turns[turn] for turn in sorted(turns)]
        # Two rounds: at the end of each some threads wait for the slowest training.
        entries = self.run("screen", [list(chain(*rounds[:FIRST_TURNS])), list(chain(*rounds[FIRST_TURNS:]))])
        self.gate.measure_again()
        best = max((e.tie_break for e in entries), default=0.0)
        limit = best - HOPELESS * max(0.0, best - self.select.judge(self.select.constant())[1])
        found: dict[str, tuple[list[Recipe], list[Mapping[str, Any]]]] = {}
        for family, sizes in self.gate.sizes.items():
            ranked = self._best([e for e in entries if e.family == family], 20)
            place = sizes.index(tried[family]) if family in tried else 0
            if not ranked:
                found[family] = (self.recipes.to_screen(family)[:2], sizes[: max(1, place)])
                continue
            variant = ranked[0].size
            worth = [s for s in sizes if len(s) == 1 or s.get(VARIANT) == variant.get(VARIANT)]
            if max(e.tie_break for e in ranked) < limit:
                worth = [size for size in worth if sizes.index(size) < place]
            same = [e.recipe for e in ranked if e.size == tried[family]]
            chosen = same[:2] or [ranked[0].recipe]
            if all(
                recipe.is_control for recipe in chosen
            ):  # the teacher is not given up on by one small screen
                taught = [
                    recipe for recipe in (*same, *self.recipes.to_screen(family)) if not recipe.is_control
                ]
                chosen = [*taught[:1], chosen[0]]
            found[family] = (chosen, worth)
        return found

    def train_sizes(self, found: Mapping[str, tuple[list[Recipe], list[Mapping[str, Any]]]]) -> list[Entry]:
        """Train the sizes worth it, smaller ones first: all by their family's best recipe, then by its second best."""

        def rounds() -> Iterator[list[Task]]:
            for rank in range(2):
                plan = {
                    family: [(family, size, recipes[rank]) for size in sizes]
                    for family, (recipes, sizes) in found.items()
                    if rank < len(recipes)
                }
                # The larger ones only once the smaller ones have been timed.
                large = {family: sizes[len(sizes) // 2 :] for family, sizes in self.gate.sizes.items()}
                yield [t for family, tasks in plan.items() for t in tasks if t[1] not in large[family]]
                if rank == 0 and self.runner.config.sql:
                    self.train_for_sql(found)
                yield [
                    task
                    for family, tasks in plan.items()
                    for task in tasks
                    if task[1] in large[family]
                    and not self.is_too_slow(*task[:2])
                    and not self.is_grown(*task)
                ]

        return self.run("sizes", rounds())

    def train_for_sql(self, found: Mapping[str, tuple[list[Recipe], list[Mapping[str, Any]]]]) -> None:
        """Train each family's sizes for SQL, which patience does not count: it is of what predict gives."""
        taught = {
            family: next((r for r in recipes if not r.is_control), recipes[0])
            for family, (recipes, _) in found.items()
        }
        plan = [
            [(family, size, self.recipes.as_sql(family, recipe)) for size in self.gate.sql_sizes(family)]
            for family, recipe in taught.items()
        ]
        # By turns, so that a budget that ends early has seen each family.
        self.runner.run("sizes", [task for turn in zip_longest(*plan) for task in turn if task is not None])
        self.counted = len(self.entries)

    def is_too_slow(self, family: str, size: Mapping[str, Any]) -> bool:
        """Whether one no larger of the family was trained, and missed the target clearly."""
        if family in ITERATIVE or size not in self.gate.sizes.get(family, ()):
            return False
        smaller = self.gate.sizes[family][: self.gate.sizes[family].index(size) + 1]
        return any(
            e.family == family
            and e.artifact
            and e.size in smaller
            and e.latency_ms > TOO_SLOW * self.gate.allowed_ms
            for e in self.entries
        )

    def is_grown(self, family: str, size: Mapping[str, Any], recipe: Recipe) -> bool:
        """Whether a network got worse when it last got wider, by the same recipe: a still wider one takes longest of all."""
        sizes = self.gate.sizes.get(family, ())
        if family not in ITERATIVE or size not in sizes:
            return False
        losses = {
            sizes.index(e.size): e.tie_break
            for e in self.entries
            if e.family == family and e.recipe == recipe and e.is_usable and e.size in sizes[: sizes.index(size)]
            and variant_of(e.size) == variant_of(size) and not e.is_partial
        }  # fmt: skip
        if len(losses) < 2:
            return False
        last = losses.pop(max(losses))
        best = max(losses.values())
        return best - last > self.patience.least_gain(best)

    def finish(self, found: Mapping[str, tuple[list[Recipe], list[Mapping[str, Any]]]]) -> None:
        """Train the best again on more rows, and their controls; then, while time lasts, by other recipes and seeds."""
        best: list[Entry] = []
        for entry in self._best(self.entries, len(self.entries)):
            sizes = [e.size for e in best if e.family == entry.family]
            if len(best) < FINISHERS and len(sizes) < FINISHERS_A_FAMILY and entry.size not in sizes:
                best.append(entry)
        self.patience.begin_finish()
        self.run("finish", self.finishing(best, found), blends=True)

    def finishing(
        self, best: Sequence[Entry], found: Mapping[str, tuple[list[Recipe], list[Mapping[str, Any]]]]
    ) -> Iterator[list[Task]]:
        """Give the rounds of the last trainings: of each of ``best``, most promising first, and then of all."""
        little = self.mostly_labels()
        for entry in best:
            is_first = entry is next(e for e in best if e.family == entry.family)
            for size in [entry.size, *(self.near_variants(entry) if is_first else ())]:
                # The control first: it takes less time, and without it nobody knows what the teacher is for.
                recipes = [*self.recipes.controls(entry.family)[:1], *self.recipes.enlarged(entry.recipe)]
                if self.recipes.by_agreement:
                    recipes.reverse()
                yield [*((entry.family, size, recipe) for recipe in recipes), *little]
                little = []
        yield [(e.family, e.size, recipe) for e in best for recipe in self.recipes.controls(e.family)[1:]]
        yield self.mostly_labels()
        yield [(entry.family, entry.size, recipe) for entry in best for recipe in found[entry.family][0]]
        rounds = MORE_SEEDS_CROSSED if self.crossfitter.is_wanted else MORE_SEEDS
        for seed in range(1, rounds + 1):
            if time.monotonic() > self.budget.end_of("finish"):
                break
            alone = [e for e in self.entries if e.family in found]
            controls = [e for e in alone if e.is_control]
            again: dict[str, Task] = {}
            for pool, most in ((alone, FINISHERS // 2), (controls, FINISHERS // 2 + 1)):
                for e in self._best(pool, len(pool)):
                    if len(again) < most:
                        again.setdefault(
                            key_of(e.family, e.size, replace(e.recipe, seed=0)),
                            (e.family, e.size, replace(e.recipe, seed=seed)),
                        )
            yield list(again.values())

    def mostly_labels(self) -> list[Task]:
        """Return the trainings of controls that are better than all that the teacher taught, with a little of it."""
        ahead = takewhile(lambda e: e.is_control, self._best(self.entries, LABELS_AHEAD))
        return [(e.family, e.size, self.recipes.mostly_labels(e.recipe)) for e in ahead]

    def near_variants(self, entry: Entry) -> list[Mapping[str, Any]]:
        """Return the size of the best student of another variant, if that is nearly as good as ``entry``."""
        others = [
            e
            for e in self.entries
            if e.family == entry.family and not e.is_control and variant_of(e.size) != variant_of(entry.size)
        ]
        return [e.size for e in self._best(others, 1) if e.tie_break >= least_near(entry)]

    def rescue(self) -> None:
        """Train the smallest students on real rows, and their controls, where the budget ended before there was one.

        The rows are labelled by then, and the first families learn within seconds: a slow teacher or a busy machine makes a
        poorer student, not none.
        """
        had = {e.is_control for e in self._best(self.entries, len(self.entries))}
        plan: list[Task] = []
        wanted = (0.0, 0.5) if self.select.has_label else (1.0,)
        if self.select.has_label and self.recipes.by_agreement:
            wanted = (1.0, 0.0)
        alphas = [a for a in wanted if (a == 0.0) not in had]
        for family in [f for f in FAMILIES if f in self.gate.sizes][:RESCUE_FAMILIES]:
            sharp = self.recipes.temperatures(family)[0]
            plan.extend((family, self.gate.sizes[family][0], Recipe(sharp, alpha)) for alpha in alphas)
        self.runner.run("rescue", plan)


def _screened(family: str, sizes: Sequence[Mapping[str, Any]], n_classes: int) -> int:
    """Return the place of the size that the screen uses: the middle one, a small one where each class costs a tree."""
    if family not in ITERATIVE and n_classes > 2:
        return min(1, len(sizes) - 1)
    return len(sizes) // 2


def search(
    problem: Problem,
    config: Config,
    label: Callable[[Frame], FloatArray] | None,
    *,
    executor: Executor | None = None,
    report: Callable[[dict[str, Any]], None] = lambda progress: None,
) -> list[Candidate]:
    """Train students and return every candidate, with its place on the frontier or the reason why not.

    Parameters
    ----------
    problem
        Rows to learn from and to choose by. Without labels in ``select``, agreement with the teacher chooses.
    label
        Gives the teacher's logits (n, K), or values (n, 1), of any frame; None where it has only what it has logged.
    executor
        Runs the trainings; a pool of ``config.threads`` threads unless given. Tasks and outcomes can be pickled.
    report
        Called in this thread with ``stage``, ``done`` (0..1 of the stage), ``candidate`` and ``seconds``.

    Raises
    ------
    InvalidData
        Where there are no rows to fit or to select on.
    """
    if not len(problem.fit) or not len(problem.select):
        raise InvalidData("no rows to fit or to select students on")
    own = ThreadPoolExecutor(config.threads) if executor is None else None
    try:
        return Search(problem, config, label, executor or own, report, is_local=own is not None)()  # type: ignore[arg-type]
    finally:
        if own is not None:
            own.shutdown(cancel_futures=True)
