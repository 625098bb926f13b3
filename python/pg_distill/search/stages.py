"""Which candidates are trained, in what order, within what budget.

Latency first: what cannot meet the target is never trained. Then stages with barriers between them, each dearer a candidate
than the one before:

screen
    finds each family's recipe (temperature, alpha, transfer set) at one size;
sizes
    trains all sizes by the best recipe; a family that lost the screen by more than ``HOPELESS`` only gets the sizes that
    are smaller than the one it lost with, for the fast end of the frontier;
finish
    trains the best on larger transfer sets, and their controls (labels alone) at the same size; of a family no more than two
    sizes, but what reads its numbers another way too, where it is nearly as good: blends gain by parts that err elsewhere;
rescue
    trains the smallest on real rows, only where the budget has ended before there was a student, or a control;
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
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.errors import InvalidData, PgDistillError
from pg_distill.frame import FloatArray, Frame, Task
from pg_distill.measure import confidence, decisions, metrics, pareto
from pg_distill.search.problem import Candidate, Config, Problem, any_label
from pg_distill.search.recipes import Recipes
from pg_distill.search.rows import Rows
from pg_distill.search.training import (
    AGREEMENT,
    NO_TIME,
    NO_TIME_TO_REFIT,
    Outcome,
    Recipe,
    Training,
    disagreement,
    latency_ms,
    make_student,
    train,
)
from pg_distill.students.blend import Blend
from pg_distill.students.families import FAMILIES, ITERATIVE, Shape, load_family
from pg_distill.students.soft_labels import kl, one_hot, softmax
from pg_distill.students.transfer_set import AUGMENTED, TransferSet, stack

RESERVE_SECONDS, RESERVE_SHARE = 2.0, 0.1
"""Kept back at the end of the budget, for the last measurements: so long, but no more than this share of it."""
GATE_SHARE = 0.2
"""Share of the budget after which no more shapes are measured than each family's smallest: a busy machine is slow at it."""
NEAR, NEAR_TRIES = 1.6, 3
"""A shape whose latency is over what is allowed, but by less than this factor, is measured so many times more at once, and again
after the screen. Shared machines compute as much slower for seconds."""
RESCUE_SECONDS, RESCUE_FAMILIES = 3.0, 2
"""Where the budget ended before a student or a control was had: what one training may take, and families that get one."""
MOST_SCREENED = 100_000
"""Rows that an iterative student gets in the screen, however many there are: recipes show on these."""
BAG = 0.85
"""Share of the rows on which a student that makes no passes is trained under another seed, so that it differs."""
STAGE_END = {"screen": 0.25, "sizes": 0.5, "finish": 0.7, "refit": 0.97}
"""Shares of the time that measuring shapes left at which no task of the stage is started any more."""
REFIT_FROM = 0.82
"""Share of that time at which every training before the refits is over: one large student must not take it from all."""
TASK_SHARE = {"screen": 0.08, "sizes": 0.15, "finish": 0.3, "refit": 0.3, "rescue": 1.0}
"""Most of the budget that one task of the stage may take."""
SCREEN_CELLS = 600_000
"""Rows times outputs that a tree or linear student gets in the screen: recipes show on few rows, 26 classes cost 26-fold."""
HOPELESS = 0.25
"""A family is out when its best recipe misses this share of the log loss that the best family gains over a constant."""
TOO_SLOW = 1.1
"""A trained student that takes this many times the latency allowed speaks for the larger ones of its family."""
REFITTED, REFITTED_CONTROLS = 8, 3
"""Students of the frontier, and controls, best first, that are trained again with the select rows added."""
REFIT_MARGIN = 1.3
"""What a training on more rows may take, as a multiple of what the first one took for each row."""
HANG_SHARE = 0.1
"""Of the budget, and at least the reserve: what another machine may be late with a candidate before it is given up."""
FINISHERS, FINISHERS_A_FAMILY = 4, 2
"""Students that are trained again on larger transfer sets, and how many sizes of one family: a third errs as the second does."""
NEAR_LOSS = 1.1
"""What loses on select at most so many times what the best one does is worth training and blending if it is of another kind."""
MORE_SEEDS = 8
"""Rounds in which, while time lasts, the best are trained with another seed, so that blends have parts."""
BLEND_FROM, BLEND_PARTS, BLEND_GAIN = 12, 6, 1e-4
"""Students that a blend is filled up from, most parts, and the least share of the log loss that a part must take off."""
BLEND_SHARES = (1.0, 0.5, 0.25)
"""Shares of the latency allowed for which blends are made: the frontier has fast ones too."""
SHARED_MS = 0.004
"""What a session run costs before its first node: the parts of a blend share it."""


@dataclass
class _Entry:
    """A candidate while the search runs."""

    number: int
    family: str
    size: Mapping[str, Any]
    recipe: Recipe
    configuration: dict[str, object]
    student: Any = None
    artifact: bytes = b""
    logits: FloatArray | None = None
    expression: str | None = None
    metric: float = float("nan")
    jackknife: tuple[float, ...] = ()
    class_threshold: float | None = None
    tie_break: float = float("nan")
    fidelity: float = float("nan")
    latency_ms: float = float("nan")
    reason: str = ""
    seconds: float = 0.0
    fit_seconds: float = 0.0
    """Of the first training alone; ``seconds`` has the second one too."""
    fit_rows: int = 0
    tiles: int = 1
    """How often its rows are repeated, because there are few augmented ones."""
    is_partial: bool = False
    """Whether it was trained on some of its rows only, to compare recipes."""
    is_control: bool = False
    parts: tuple[int, ...] = ()
    refitted: Any = None

    @property
    def is_usable(self) -> bool:
        return bool(self.artifact) and np.isfinite(self.metric) and np.isfinite(self.latency_ms)


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
        self.problem = problem
        self.config = config
        self.executor = executor
        self.report = report
        self.is_local = is_local
        self.start = time.monotonic()
        self.deadline = self.start + max(
            0.0, config.time_budget_s - min(RESERVE_SECONDS, RESERVE_SHARE * config.time_budget_s)
        )
        self.begun = self.start
        self.entries: list[_Entry] = []
        self.replaced: list[tuple[_Entry, bytes, str | None]] = []
        self.task: Task = problem.task
        self.n_classes = max(1, len(problem.classes)) if problem.task != "regression" else 1
        self.allowed_ms = config.target_latency_ms - config.call_overhead_ms
        self.has_label = any_label(problem.select, problem.task)
        self.names_classes = (
            problem.task == "binary"
            and self.has_label
            and problem.metric != metrics.AGREEMENT
            and metrics.judges_classes(problem.metric)
        )
        self.rows = Rows(problem, config, label, self.deadline)
        self.recipes = Recipes(config, self.rows, has_label=self.has_label)
        self.sizes: dict[str, list[Mapping[str, Any]]] = {}
        self.refused: list[tuple[str, Mapping[str, Any], bytes, float]] = []

    # -- what is known of select -------------------------------------------------------------------------------

    def truth(self) -> tuple[str, npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Return the metric that chooses, what it holds answers against on select, and the rows where that is known."""
        select, metric, regression = self.problem.select, self.problem.metric, self.task == "regression"
        if self.has_label and metric != "agreement":
            assert select.y is not None
            return metric, select.y, np.isfinite(select.y) if regression else select.y >= 0
        teacher = select.teacher_logits
        assert teacher is not None
        y = teacher[:, 0] if regression else teacher.argmax(axis=1)
        return "r2" if regression else "accuracy", y, np.ones(len(y), bool)

    def judge(self, logits: FloatArray, class_threshold: float | None = None) -> tuple[float, float, float]:
        """Return (metric, a smooth tie-break, fidelity) on select: log loss, or error, against label or teacher."""
        select = self.problem.select
        outputs = self.outputs(logits)
        teacher = select.teacher_logits
        fidelity = float("nan")
        if teacher is not None:
            if self.task == "regression":
                fidelity = metrics.score("r2", teacher[:, 0], outputs, select.weights)
            else:
                classes = teacher.argmax(axis=1)
                fidelity = metrics.score("accuracy", classes, outputs, select.weights, class_threshold)
        if not self.has_label or self.problem.metric == "agreement":
            assert teacher is not None
            distance = (teacher - logits) ** 2 if self.task == "regression" else kl(teacher, logits)
            return fidelity, -float(np.average(distance.reshape(-1), weights=select.weights)), fidelity
        metric, y, known = self.truth()
        weights = None if select.weights is None else select.weights[known]
        value = metrics.score(metric, y[known], outputs[known], weights, class_threshold)
        loss = "neg_root_mean_squared_error" if self.task == "regression" else "neg_log_loss"
        return value, metrics.score(loss, y[known], outputs[known], weights), fidelity

    def outputs(self, logits: FloatArray) -> FloatArray:
        """Return probabilities, or values, of logits."""
        return logits if self.task == "regression" else softmax(logits)

    def score(self, entry: _Entry, logits: FloatArray) -> None:
        """Note what an entry's logits on select are worth, by the threshold between two classes that is best there."""
        entry.logits = logits
        metric, y, known = self.truth()
        weights = self.problem.select.weights
        weights = None if weights is None else weights[known]
        outputs = self.outputs(logits)[known]
        if self.names_classes:
            entry.class_threshold = decisions.best_threshold(metric, y[known], outputs, weights)
            outputs = metrics.decided(outputs, entry.class_threshold)
        entry.metric, entry.tie_break, entry.fidelity = self.judge(logits, entry.class_threshold)
        left_out = confidence.jackknife(metric, y[known], outputs, weights)
        entry.jackknife = tuple(left_out.tolist())

    def constant(self) -> FloatArray:
        """Return the logits, or values, of a student that answers every row of select alike."""
        fit = self.problem.fit
        by_label = self.has_label and self.problem.metric != "agreement"
        if by_label and fit.y is not None and any_label(fit, self.task):
            if self.task == "regression":
                answer = np.array([np.nanmean(fit.y)])
            else:
                answer = np.log(np.maximum(one_hot(fit.y, self.n_classes).sum(axis=0), 0.5))
        else:
            assert fit.teacher_logits is not None
            answer = fit.teacher_logits.mean(axis=0)
        return np.tile(answer, (len(self.problem.select), 1))

    # -- latency first -----------------------------------------------------------------------------------------

    def gate(self) -> None:
        """Find the sizes of each family that can meet the target; note the others with their latency.

        Those that are near it wait for ``gate_again``.
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
                if fitting and time.monotonic() - self.start > GATE_SHARE * self.config.time_budget_s:
                    self.note(family, size, "not tried: time budget ended before its latency was measured")
                    continue
                latency: float | None = None
                try:
                    untrained = make_student(self.training(len(self.entries), family, size, Recipe(1.0, 1.0)))
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
                elif artifact is not None and self.is_near(latency):
                    self.refused.append((family, size, artifact, latency))
                else:
                    self.note_too_slow(family, size, latency)
                    missed = latency
            if fitting:
                self.sizes[family] = fitting
        self.begun = time.monotonic()

    def gate_again(self) -> None:
        """Measure the shapes that were near the target once more, some time later; note those that still miss it."""
        for family, size, artifact, before in self.refused:
            latency = min(before, latency_ms(artifact, self.problem.select.frame))
            if latency > self.allowed_ms:
                self.note_too_slow(family, size, latency)
                continue
            fitting = [*self.sizes.get(family, ()), size]
            self.sizes[family] = [other for other in self.all_sizes(family) if other in fitting]
        self.refused = []

    def time_again(self) -> None:
        """Measure the trained students that are near the target once more; the least counts."""
        for entry in self.entries:
            if entry.artifact and self.is_near(entry.latency_ms):
                again = latency_ms(entry.artifact, self.problem.select.frame)
                entry.latency_ms = min(entry.latency_ms, again)

    def is_near(self, latency: float) -> bool:
        """Whether a latency is over what is allowed, but so little that a slow moment may be the cause."""
        return self.allowed_ms < latency <= NEAR * self.allowed_ms

    def least_latency_ms(self, artifact: bytes) -> float:
        """Return what a file takes; the least of several measurements where it is near what is allowed.

        Other work on the machine makes a call take longer, never shorter.
        """
        latency = latency_ms(artifact, self.problem.select.frame)
        for _ in range(NEAR_TRIES):
            if not self.is_near(latency):
                break
            latency = min(latency, latency_ms(artifact, self.problem.select.frame))
        return latency

    def all_sizes(self, family: str) -> Sequence[Mapping[str, Any]]:
        """Return a family's sizes; none, with a note, where it cannot be had."""
        shape = Shape(
            task=self.task,
            n_classes=self.n_classes,
            features=self.problem.fit.frame.features,
            n_rows=len(self.problem.fit),
            teacher=self.problem.teacher,
        )
        try:
            return load_family(family).sizes(shape)
        except (ImportError, AttributeError) as error:
            self.note(family, {}, f"not tried: {type(error).__name__}: {error}")
            return ()

    def note_too_slow(self, family: str, size: Mapping[str, Any], latency: float) -> None:
        """Record a shape that misses the target."""
        reason = f"not trained: its shape takes {latency:.4f} ms, allowed {self.allowed_ms:.4f} ms"
        self.note(family, size, reason, latency)

    def note(self, family: str, size: Mapping[str, Any], reason: str, latency: float = float("nan")) -> None:
        """Record a candidate that is never trained."""
        entry = _Entry(len(self.entries), family, size, Recipe(1.0, 1.0), {"family": family, **size})
        entry.reason, entry.latency_ms = reason, latency
        self.entries.append(entry)

    # -- running -----------------------------------------------------------------------------------------------

    def run(self, stage: str, plan: Iterable[tuple[str, Mapping[str, Any], Recipe]]) -> list[_Entry]:
        """Train a stage's candidates in parallel and judge them."""
        waiting: list[_Entry] = []
        known = {_key(e.family, e.size, e.recipe): e for e in self.entries if e.artifact and not e.is_partial}
        kept: list[_Entry] = []
        for family, size, recipe in plan:
            key = _key(family, size, recipe)
            if key in known:
                kept.append(known[key])
                continue
            entry = _Entry(len(self.entries), family, size, recipe, {"family": family, **size})
            entry.configuration |= {
                "temperature": recipe.temperature,
                "alpha": recipe.alpha,
                "transfer_set": self.rows.describe(recipe),
                "stage": stage,
                "seed": self.config.seed + recipe.seed,
            }
            entry.is_control = recipe.is_control
            known[key] = entry
            self.entries.append(entry)
            waiting.append(entry)
        self.execute(stage, waiting, self.take)
        for entry in waiting:
            if entry.artifact:
                entry.latency_ms = latency_ms(entry.artifact, self.problem.select.frame)
        return [e for e in [*kept, *waiting] if e.is_usable]

    def training(self, number: int, family: str, size: Mapping[str, Any], recipe: Recipe) -> Training:
        """Return the first training of a student, which has no time yet."""
        return Training(
            number=number,
            family=family,
            size=size,
            recipe=recipe,
            task=self.task,
            n_classes=self.n_classes,
            epochs=self.config.epochs,
            seed=self.config.seed + recipe.seed,
            teacher=self.problem.teacher if load_family(family).uses_teacher else None,
            seconds=0.0,
            calibrated=self.problem.metric != "agreement",
        )

    def execute(
        self,
        stage: str,
        entries: Sequence[_Entry],
        take: Callable[[_Entry, Outcome], None],
        *,
        refit: bool = False,
    ) -> None:
        """Run one training for each entry, at most ``threads`` at once, and hand what came of it to ``take``."""
        budget = self.config.time_budget_s
        rescue = stage == "rescue"
        until = self.begun + STAGE_END.get(stage, 1.0) * max(0.0, self.deadline - self.begun)
        late = max(RESERVE_SECONDS, HANG_SHARE * budget)
        queue, done = list(entries), 0
        running: dict[Future[Outcome], tuple[_Entry, float]] = {}

        def leave_out(entry: _Entry, reason: str) -> None:
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
                if now > until and not rescue:
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
                    self.training(entry.number, entry.family, entry.size, entry.recipe),
                    seconds=seconds,
                    fitted=entry.student if refit else None,
                )
                future = self.executor.submit(train, task, data, self.problem.select)
                running[future] = entry, now + max(0.0, seconds) + late
                self.report(
                    {
                        "stage": stage,
                        "done": done / len(entries),
                        "number": done + len(running),
                        "count": len(entries),
                        "candidate": f"{entry.family} {dict(entry.size)}",
                        "seconds": time.monotonic() - self.start,
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
                take(entry, outcome)
                done += 1

    def rows_and_seconds(
        self, entry: _Entry, stage: str, now: float, *, refit: bool
    ) -> tuple[TransferSet, float] | str:
        """Return what a training gets, its rows and the seconds that it may take, or why it is left out."""
        broken = [
            self.rows.broken[kind] for kind, _ in self.rows.wanted(entry.recipe) if kind in self.rows.broken
        ]
        if broken:
            return f"no transfer set: {broken[0]}"
        data = self.rows_for(entry, stage)
        if stage == "rescue":
            seconds = RESCUE_SECONDS
        else:
            end = self.begun + (1.0 if refit else REFIT_FROM) * (self.deadline - self.begun)
            seconds = min(end - now, TASK_SHARE[stage] * self.config.time_budget_s)
        if refit:
            data = stack([data, *[self.problem.select] * (entry.recipe.repeat * entry.tiles)])
            if REFIT_MARGIN * entry.fit_seconds * len(data) / max(1, entry.fit_rows) > seconds:
                return NO_TIME_TO_REFIT
        else:
            entry.fit_rows = len(data)
            entry.configuration["rows"] = len(data)
        return data, seconds

    def rows_for(self, entry: _Entry, stage: str) -> TransferSet:
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
            most = min(most, MOST_SCREENED if passes else SCREEN_CELLS // self.n_classes)
            entry.is_partial = most < len(data)
        if most >= len(data):
            return data
        order = np.random.default_rng([self.config.seed, entry.recipe.seed]).permutation(len(data))
        return data.take(np.sort(order[:most]))

    def take(self, entry: _Entry, outcome: Outcome) -> None:
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
        self.score(entry, outcome.logits)

    def best(self, entries: Iterable[_Entry], n: int) -> list[_Entry]:
        """Return the ``n`` best of those that fit the latency, best first."""
        return _ranked([e for e in entries if e.is_usable and e.latency_ms <= self.allowed_ms])[:n]

    # -- the stages --------------------------------------------------------------------------------------------

    def screen(self) -> dict[str, tuple[list[Recipe], list[Mapping[str, Any]]]]:
        """Find each family's two best recipes at one size, and the sizes that are worth training by them."""
        order: list[tuple[int, int, tuple[str, Mapping[str, Any], Recipe]]] = []
        tried: dict[str, Mapping[str, Any]] = {}
        for family, sizes in self.sizes.items():
            place = _screened(family, sizes, self.n_classes)
            tried[family] = sizes[place]
            plan = [(sizes[place], recipe) for recipe in self.recipes.to_screen(family)]
            plan[2:2] = [(other, plan[min(1, len(plan) - 1)][1]) for other in _variants(sizes, sizes[place])]
            # Families take turns, so that a budget that ends early has seen each.
            order.extend((turn, len(order), (family, *item)) for turn, item in enumerate(plan))
        entries = self.run("screen", [o[2] for o in sorted(order, key=lambda o: o[:2])])
        self.gate_again()
        best = max((e.tie_break for e in entries), default=0.0)
        limit = best - HOPELESS * max(0.0, best - self.judge(self.constant())[1])
        found: dict[str, tuple[list[Recipe], list[Mapping[str, Any]]]] = {}
        for family, sizes in self.sizes.items():
            ranked = self.best([e for e in entries if e.family == family], 20)
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

    def train_sizes(self, found: Mapping[str, tuple[list[Recipe], list[Mapping[str, Any]]]]) -> list[_Entry]:
        """Train the sizes worth it: all by their family's best recipe, then by its second best."""
        trained: list[_Entry] = []
        for rank in range(2):
            plan = [
                (family, size, recipes[rank])
                for family, (recipes, sizes) in found.items()
                if rank < len(recipes)
                for size in sizes
            ]
            if rank == 0:  # the larger ones only once the smaller ones have been timed
                small = [p for p in plan if self.sizes[p[0]].index(p[1]) < len(self.sizes[p[0]]) // 2]
                trained += self.run("sizes", small)
            trained += self.run("sizes", [p for p in plan if not self.is_too_slow(*p[:2])])
        return trained

    def is_too_slow(self, family: str, size: Mapping[str, Any]) -> bool:
        """Whether one no larger of the family was trained, and missed the target clearly."""
        if family in ITERATIVE or size not in self.sizes.get(family, ()):
            return False
        smaller = self.sizes[family][: self.sizes[family].index(size) + 1]
        return any(
            e.family == family
            and e.artifact
            and e.size in smaller
            and e.latency_ms > TOO_SLOW * self.allowed_ms
            for e in self.entries
        )

    def finish(self, found: Mapping[str, tuple[list[Recipe], list[Mapping[str, Any]]]]) -> None:
        """Train the best again on more rows, and their controls; then, while time lasts, by other recipes and seeds."""
        best: list[_Entry] = []
        for entry in self.best(self.entries, len(self.entries)):
            sizes = [e.size for e in best if e.family == entry.family]
            if len(best) < FINISHERS and len(sizes) < FINISHERS_A_FAMILY and entry.size not in sizes:
                best.append(entry)
        plan: list[tuple[str, Mapping[str, Any], Recipe]] = []
        for entry in best:
            is_first = entry is next(e for e in best if e.family == entry.family)
            for size in [entry.size, *(self.near_variants(entry) if is_first else ())]:
                # The control first: it takes less time, and without it nobody knows what the teacher is for.
                recipes = [*self.recipes.controls(entry.family)[:1], *self.recipes.enlarged(entry.recipe)]
                if self.recipes.by_agreement:
                    recipes.reverse()
                plan.extend((entry.family, size, recipe) for recipe in recipes)
        plan.extend(
            (e.family, e.size, recipe) for e in best for recipe in self.recipes.controls(e.family)[1:]
        )
        for entry in best:
            plan.extend((entry.family, entry.size, recipe) for recipe in found[entry.family][0])
        self.run("finish", plan)
        until = self.begun + STAGE_END["finish"] * (self.deadline - self.begun)
        for seed in range(1, MORE_SEEDS + 1):
            if time.monotonic() > until:
                break
            alone = [e for e in self.entries if e.family in found]
            controls = [e for e in alone if e.is_control]
            again: dict[str, tuple[str, Mapping[str, Any], Recipe]] = {}
            for pool, most in ((alone, FINISHERS // 2), (controls, FINISHERS // 2 + 1)):
                for e in self.best(pool, len(pool)):
                    if len(again) < most:
                        again.setdefault(
                            _key(e.family, e.size, replace(e.recipe, seed=0)),
                            (e.family, e.size, replace(e.recipe, seed=seed)),
                        )
            self.run("finish", again.values())

    def near_variants(self, entry: _Entry) -> list[Mapping[str, Any]]:
        """Return the size of the best student of another variant, if that is nearly as good as ``entry``."""
        others = [
            e
            for e in self.entries
            if e.family == entry.family and not e.is_control and _variant(e.size) != _variant(entry.size)
        ]
        return [e.size for e in self.best(others, 1) if e.tie_break >= _near(entry)]

    def rescue(self) -> None:
        """Train the smallest students on real rows, and their controls, where the budget ended before there was one.

        The rows are labelled by then, and the first families learn within seconds: a slow teacher or a busy machine makes a
        poorer student, not none.
        """
        had = {e.is_control for e in self.best(self.entries, len(self.entries))}
        plan: list[tuple[str, Mapping[str, Any], Recipe]] = []
        wanted = (0.0, 0.5) if self.has_label else (1.0,)
        if self.has_label and self.recipes.by_agreement:
            wanted = (1.0, 0.0)
        alphas = [a for a in wanted if (a == 0.0) not in had]
        for family in [f for f in FAMILIES if f in self.sizes][:RESCUE_FAMILIES]:
            sharp = self.recipes.temperatures(family)[0]
            plan.extend((family, self.sizes[family][0], Recipe(sharp, alpha)) for alpha in alphas)
        self.run("rescue", plan)

    def blend(self) -> None:
        """Average the best student of each kind, controls among them; and the best controls likewise."""
        trained = [e for e in self.entries if e.student is not None]
        for pool in (trained, [e for e in trained if e.is_control]):
            for share in BLEND_SHARES:
                if time.monotonic() > self.deadline:
                    return
                parts = self.parts(pool, share * self.allowed_ms)
                if len(parts) > 1:
                    self.keep_blend(parts)

    def parts(self, pool: Iterable[_Entry], allowed_ms: float) -> list[_Entry]:
        """Return which of ``pool`` to blend within a latency: first the best of each kind, then what lowers the loss most.

        Of all subsets the one that is best on select is so by luck, mostly. What is near the best and of another kind errs
        elsewhere, which no few rows need to show; and a student that has its control in it is hardly worse than that.
        """
        fitting = [e for e in pool if e.is_usable and e.latency_ms <= allowed_ms]
        fitting.sort(key=lambda e: (-e.tie_break, e.number))
        kinds: dict[tuple[Any, ...], _Entry] = {}
        for entry in fitting:
            if entry.tie_break >= _near(fitting[0]):
                kinds.setdefault((entry.family, _variant(entry.size), entry.is_control), entry)
        parts: list[_Entry] = []
        for entry in kinds.values():
            if len(parts) < BLEND_PARTS and _together_ms([*parts, entry]) <= allowed_ms:
                parts.append(entry)
        while 0 < len(parts) < BLEND_PARTS:
            better = self.next_part(parts, fitting[:BLEND_FROM], allowed_ms)
            if better is None:
                break
            parts.append(better)
        return parts

    def next_part(self, parts: list[_Entry], pool: list[_Entry], allowed_ms: float) -> _Entry | None:
        """Return the student that improves a blend's log loss most, within a latency (Caruana et al. 2004).

        Not the metric: of few rows that is noise, and where the first student was lucky nothing would improve on it.
        """
        loss = self.score_blend(parts)
        found, best = None, loss + BLEND_GAIN * max(abs(loss), 1e-9)
        for entry in pool:
            if entry in parts or _together_ms([*parts, entry]) > allowed_ms:
                continue
            new_loss = self.score_blend([*parts, entry])
            if new_loss > best:
                found, best = entry, new_loss
        return found

    def score_blend(self, parts: list[_Entry]) -> float:
        """Return the tie-break of the mean of some students on select."""
        logits = [e.logits for e in parts if e.logits is not None]
        return self.judge(np.mean(logits, axis=0))[1]

    def keep_blend(self, parts: list[_Entry]) -> None:
        """Export a blend and make it a candidate."""
        numbers = sorted(e.number for e in parts)
        if any(e.configuration.get("parts") == numbers for e in self.entries):
            return
        start = time.monotonic()
        parts = sorted(parts, key=lambda e: e.number)
        weights = [1.0 / len(parts)] * len(parts)
        entry = _Entry(len(self.entries), "blend", {}, Recipe(1.0, 1.0), {})
        entry.configuration = {"family": "blend", "weights": weights, "parts": numbers, "stage": "blend"}
        entry.is_control = all(e.is_control for e in parts)
        entry.parts = tuple(numbers)
        self.entries.append(entry)
        frame = self.problem.select.frame
        try:
            blend = Blend([e.student for e in parts], weights, task=self.task, n_classes=self.n_classes)
            if self.problem.metric != "agreement":
                blend.calibrate(self.problem.select)
            entry.configuration["weights"] = list(blend.weights)
            artifact, logits = blend.to_onnx(self.problem.fit.frame), blend.predict_logits(frame)
            difference = disagreement(artifact, frame, logits, self.task)
            if not difference <= AGREEMENT:
                entry.reason = f"ONNX Runtime and trainer differ by {difference:.1e}, over {AGREEMENT:.0e}"
                return
            entry.latency_ms = latency_ms(artifact, frame)
        except Exception as error:  # one broken candidate must not end the run
            entry.reason = f"{type(error).__name__}: {error}"
            return
        entry.artifact = artifact
        self.score(entry, logits)
        entry.seconds = time.monotonic() - start

    def refit(self) -> None:
        """Train the frontier's best and the best controls again with the select rows; rebuild their blends."""
        frontier = {e.number for e in [*self.frontier(), *self.choices()]}
        ranked = self.best([e for e in self.entries if e.number in frontier], REFITTED)
        controls = self.best([e for e in self.entries if e.is_control], REFITTED_CONTROLS)
        by_number = {e.number: e for e in self.entries}
        wanted: list[_Entry] = []
        # In turns: where the time ends, what is compared has had the same rows.
        for entry in [e for pair in itertools.zip_longest(ranked, controls) for e in pair if e is not None]:
            parts = [by_number[n] for n in entry.parts] or [entry]
            wanted += [p for p in parts if p not in wanted and hasattr(p.student, "refit")]
        for entry in wanted:
            if not getattr(entry.student, "complete_", True):
                entry.configuration["refit"] = "failed: its own training was cut short"
        wanted = [e for e in wanted if getattr(e.student, "complete_", True)]
        self.execute("refit", wanted, self.take_refit, refit=True)
        for entry in self.entries:
            if any(by_number[n].refitted is not None for n in entry.parts):
                self.rebuild(entry, [by_number[n] for n in entry.parts])

    def take_refit(self, entry: _Entry, outcome: Outcome) -> None:
        """Put the refitted student in the place of the first one, where that worked and is as fast.

        It knows the select rows by now: one that answers them worse than before is broken.
        """
        entry.seconds += outcome.seconds
        if outcome.student is None or outcome.logits is None:
            entry.configuration["refit"] = f"failed: {outcome.reason}"
            return
        metric, tie_break, _ = self.judge(outcome.logits, entry.class_threshold)
        if metric < entry.metric and tie_break < entry.tie_break:
            entry.configuration["refit"] = "failed: worse on rows that it has learned from"
            return
        entry.refitted = outcome.student
        self.replace_artifact(entry, outcome.artifact, outcome.expression)

    def replace_artifact(self, entry: _Entry, artifact: bytes, expression: str | None) -> None:
        """Give an entry another file, unless that one misses a target that the first one met."""
        self.replaced.append((entry, artifact, expression))

    def rebuild(self, entry: _Entry, parts: list[_Entry]) -> None:
        """Make a blend anew of its parts as they are now."""
        students = [p.refitted if p.refitted is not None else p.student for p in parts]
        weights: Any = entry.configuration["weights"]
        try:
            blend = Blend(students, weights, task=self.task, n_classes=self.n_classes)
            artifact = blend.to_onnx(self.problem.fit.frame)
            logits = blend.predict_logits(self.problem.select.frame)
            if disagreement(artifact, self.problem.select.frame, logits, self.task) <= AGREEMENT:
                self.replace_artifact(entry, artifact, None)
        except Exception as error:  # the first blend stays
            entry.configuration["refit"] = f"failed: {type(error).__name__}: {error}"

    def settle(self) -> None:
        """Time the refitted files, now that nothing trains, and let those that are fast enough take over."""
        for entry, artifact, expression in self.replaced:
            latency = self.least_latency_ms(artifact)
            if latency > self.allowed_ms >= entry.latency_ms:
                entry.configuration["refit"] = f"too slow: {latency:.4f} ms"
                continue
            entry.artifact, entry.expression, entry.latency_ms = artifact, expression, latency
            entry.configuration["refit"] = "with select rows"

    def frontier(self) -> list[_Entry]:
        """Return the usable candidates that no other dominates; of equals the first."""
        usable = [e for e in self.entries if e.is_usable]
        points = [(e.latency_ms, e.metric) for e in usable]
        return [
            e
            for i, e in enumerate(usable)
            if not any(pareto.dominates(p, points[i]) for p in points) and points[i] not in points[:i]
        ]

    def choices(self) -> list[_Entry]:
        """Return the best within each latency that a candidate has."""
        usable = sorted((e for e in self.entries if e.is_usable), key=lambda e: (e.latency_ms, e.number))
        chosen: dict[int, _Entry] = {}
        for i, entry in enumerate(usable, 1):
            if i == len(usable) or usable[i].latency_ms > entry.latency_ms:
                first = _ranked(usable[:i])[0]
                chosen[first.number] = first
        return list(chosen.values())

    def result(self) -> list[Candidate]:
        """Mark the frontier and give every candidate its reason."""
        usable = [e for e in self.entries if e.is_usable]
        undominated = {e.number for e in self.frontier()}
        on = undominated | {e.number for e in self.choices()}
        out = []
        for e in self.entries:
            reason = e.reason
            better = [
                o
                for o in usable
                if o.number in undominated
                and pareto.dominates((o.latency_ms, o.metric), (e.latency_ms, e.metric))
            ]
            if e.number in on:
                reason = "on the frontier"
                if e.number not in undominated and better:
                    reason += f": within the noise of candidate {better[0].number}, and better by log loss"
                if e.latency_ms > self.allowed_ms:
                    reason += f", but takes {e.latency_ms:.4f} ms, allowed {self.allowed_ms:.4f} ms"
            elif not reason and not np.isfinite(e.metric):
                reason = f"{self.problem.metric} is not defined on the rows that choose"
            elif not reason:
                reason = (
                    f"dominated by candidate {better[0].number}" if better else "equals another candidate"
                )
            out.append(
                Candidate(
                    number=e.number,
                    family=e.family,
                    configuration=dict(e.configuration),
                    artifact=e.artifact,
                    expression=e.expression,
                    size_bytes=len(e.artifact),
                    metric_select=e.metric,
                    fidelity_select=e.fidelity,
                    latency_ms=e.latency_ms,
                    on_frontier=e.number in on,
                    reason=reason,
                    is_control=e.is_control,
                    seconds=e.seconds,
                    tie_break_select=e.tie_break,
                    jackknife_select=e.jackknife,
                    class_threshold=e.class_threshold,
                    select_logits=e.logits,
                )
            )
        return out


VARIANT = "bins"
"""The keyword of a size that is chosen by the screen; the sizes with other values of it are then left out."""


def _screened(family: str, sizes: Sequence[Mapping[str, Any]], n_classes: int) -> int:
    """Return the place of the size that the screen uses: the middle one, a small one where each class costs a tree."""
    if family not in ITERATIVE and n_classes > 2:
        return min(1, len(sizes) - 1)
    return len(sizes) // 2


def _variant(size: Mapping[str, Any]) -> Any:
    """Return what tells a size from others of its shape; None where there is nothing beside it to tell apart."""
    return size.get(VARIANT) if len(size) > 1 else None


def _variants(sizes: Sequence[Mapping[str, Any]], size: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the other sizes that differ from ``size`` in ``VARIANT`` alone."""

    def rest(keywords: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in keywords.items() if key != VARIANT}

    if len(size) == 1:
        return []
    return [other for other in sizes if other != size and rest(other) == rest(size)]


def _near(entry: _Entry) -> float:
    """Return the least tie-break, a loss below 0, of what is nearly as good as ``entry``."""
    return entry.tie_break - (NEAR_LOSS - 1) * abs(entry.tie_break)


def _together_ms(parts: Sequence[_Entry]) -> float:
    """Return what a blend of ``parts`` is expected to take."""
    return sum(e.latency_ms - SHARED_MS for e in parts) + SHARED_MS


def _ranked(usable: Sequence[_Entry]) -> list[_Entry]:
    """Return usable entries, best first; see ``measure.rank``."""
    order = confidence.rank(
        [e.metric for e in usable], [e.tie_break for e in usable], [e.jackknife for e in usable]
    )
    return [usable[i] for i in order]


def _outcome(future: Future[Outcome], entry: _Entry) -> Outcome:
    """Return what became of a training that is over."""
    try:
        return future.result()
    except PgDistillError:
        raise  # the executor itself is gone
    except Exception as error:  # such as Dask's KilledWorker: one candidate must not end the run
        return Outcome(entry.number, None, b"", None, None, f"{type(error).__name__}: {error}", 0.0)


def _key(family: str, size: Mapping[str, Any], recipe: Recipe) -> str:
    return repr((family, sorted((k, str(v)) for k, v in size.items()), recipe))


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
        run = Search(problem, config, label, executor or own, report, is_local=own is not None)  # type: ignore[arg-type]
        run.report({"stage": "latency", "done": 0.0, "seconds": 0.0})
        run.gate()
        found = run.screen()
        run.train_sizes(found)
        run.time_again()
        run.finish(found)
        run.time_again()
        run.rescue()
        run.blend()
        run.refit()
        run.time_again()
        run.settle()
        run.report({"stage": "done", "done": 1.0, "seconds": time.monotonic() - run.start})
        return run.result()
    finally:
        if own is not None:
            own.shutdown(cancel_futures=True)
