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

import copy
import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import measure, onnx_model, onnx_wire, pareto
from .errors import FeatureNotSupported, InvalidData, LimitExceeded, PgDistillError
from .frame import FloatArray, Frame, Task
from .soft_labels import kl, one_hot, softmax
from .students import FAMILIES, ITERATIVE, Shape, Student, load_family
from .students.blend import Blend
from .transfer_set import AUGMENTED, KINDS, Augmenter, TransferSet, labelling_seconds, stack

__all__ = ["Candidate", "Config", "Problem", "best_within", "latency_ms", "search"]

WARM_UP_CALLS, TIMED_CALLS, TIMED_ROWS = 50, 400, 256
"""Calls before and while a candidate's latency is measured, and the rows that they go round."""
AGREEMENT = 1e-4
"""Largest difference between ONNX and the trainer's arithmetic: of probabilities, or of values in deviations."""
AGREEMENT_ROWS = 2000
LABEL_SHARE = 0.15
"""Share of the time budget that labelling augmented rows may take."""
CELL_BYTES = 8
"""Of a column of an augmented row, and of a logit of its label."""
LABEL_ROWS = 4096
"""Augmented rows that are labelled at once, between two looks at who has finished."""
BLOCK_ROWS, HOT_DECK_ROWS = (512, 16384), 8192
"""Augmented rows are made in blocks of as many as there are real ones, but at least and at most so many: what a row is then
hangs on its place alone, not on who asked before. Hot-deck blocks have no upper end: each grows trees of its own."""
RESERVE_SECONDS, RESERVE_SHARE = 2.0, 0.1
"""Kept back at the end of the budget, for the last measurements: so long, but no more than this share of it."""
GATE_SHARE = 0.2
"""Share of the budget after which no more shapes are measured than each family's smallest: a busy machine is slow at it."""
NEAR, NEAR_TRIES = 1.6, 3
"""A shape whose latency is over what is allowed, but by less than this factor, is measured so many times more at once, and again
after the screen. Shared machines compute as much slower for seconds."""
RESCUE_SECONDS, RESCUE_FAMILIES = 3.0, 2
"""Where the budget ended before a student or a control was had: what one training may take, and families that get one."""
SCREEN_ROWS, REPEAT, TREE_REPEAT = 80_000, 6, 3
"""Rows that a transfer set of the screen is filled up to, by at most this many times the real rows: augmented rows, or for
iterative students that get none the real rows repeated, so that all take as many steps."""
MOST_SCREENED = 100_000
"""Rows that an iterative student gets in the screen, however many there are: recipes show on these."""
LEAST_AUGMENTED = 0.5
"""Augmented rows a real one, at least, where they are tried at all."""
LEAST_STEPS, STEP_ROWS = 1500, 256
"""Steps that an iterative student should get however few the real rows are, and the rows that a step takes."""
SMALL_ROWS, SMALL_TREE_REPEAT = 5000, 10
"""Below so many real rows, trees too get more augmented rows a real one."""
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
MORE, MOST_ROWS, LEAST_MORE = 3, 300_000, 1.5
"""How many times the augmented rows those have, up to so many of them; less than the last is not worth a training."""
BLEND_FROM, BLEND_PARTS, BLEND_GAIN = 12, 6, 1e-4
"""Students that a blend is filled up from, most parts, and the least share of the log loss that a part must take off."""
BLEND_SHARES = (1.0, 0.5, 0.25)
"""Shares of the latency allowed for which blends are made: the frontier has fast ones too."""
SHARED_MS = 0.004
"""What a session run costs before its first node: the parts of a blend share it."""


@dataclass(frozen=True)
class Problem:
    """Rows with teacher logits and labels; ``select`` chooses and is never trained on.

    ``teacher`` is the teacher's ONNX file where it has one: families may start from its trees.
    """

    task: Task
    classes: tuple[str, ...]
    metric: str
    fit: TransferSet
    select: TransferSet
    unlabelled: TransferSet | None = None
    teacher: bytes | None = None


@dataclass(frozen=True)
class Config:
    """What the caller asked for.

    ``call_overhead_ms`` is the cost of a predict call around the model, measured by the parent. ``temperature`` is the softest
    that may be tried, ``threads`` the candidates trained at once, ``transfer_bytes`` the memory for augmented rows. With ``sql``
    students in SQL form may be the answer too: these take less than a session, so that each family's smallest is trained.
    """

    target_latency_ms: float
    call_overhead_ms: float = 0.0
    temperature: float = 4.0
    epochs: int = 10
    seed: int = 42
    families: tuple[str, ...] = tuple(FAMILIES)
    time_budget_s: float = 120.0
    transfer_bytes: int = 1_600_000_000
    threads: int = field(default_factory=lambda: max(1, len(os.sched_getaffinity(0))))
    sql: bool = False


@dataclass(frozen=True)
class Candidate:
    """A student that was tried; ``artifact`` is empty where it never came to be, and ``reason`` says why.

    ``metric_select``, ``tie_break_select`` (log loss, or error, higher is better) and ``fidelity_select`` are NaN where nothing
    was trained, ``latency_ms`` where nothing was measured. ``jackknife_select`` is what ``measure.rank`` needs to tell noise.
    On the frontier are those that no other dominates, and those that are the best within some latency but for noise.
    """

    number: int
    family: str
    configuration: dict[str, object]
    artifact: bytes
    expression: str | None
    size_bytes: int
    metric_select: float
    fidelity_select: float
    latency_ms: float
    on_frontier: bool
    reason: str
    is_control: bool
    seconds: float
    tie_break_select: float = float("nan")
    jackknife_select: tuple[float, ...] = ()
    select_logits: FloatArray | None = field(default=None, compare=False, repr=False)
    """Its logits on the select rows before any refit: of ``artifact`` they may be training figures."""


def best_within(candidates: Iterable[Candidate], allowed_ms: float) -> list[Candidate]:
    """Return the candidates that have a file and meet ``allowed_ms``, best first.

    The order is that of ``measure.rank``: by the metric on select, but by log loss where it is within the noise of the best.
    """
    fitting = [
        c for c in candidates if c.artifact and np.isfinite(c.metric_select) and c.latency_ms <= allowed_ms
    ]
    order = measure.rank(
        [c.metric_select for c in fitting],
        [c.tie_break_select for c in fitting],
        [c.jackknife_select for c in fitting],
    )
    return [fitting[i] for i in order]


@dataclass(frozen=True)
class _Recipe:
    """How a student is taught: temperature, alpha, and rows made for each real one, by kind."""

    temperature: float
    alpha: float
    augment: tuple[tuple[str, float], ...] = ()
    seed: int = 0
    """Added to the run's seed: students that differ only in it are worth blending."""
    repeat: int = 1
    """How often an iterative student meets each real row in a pass, where there are no augmented rows to meet."""
    unlabelled: bool = True
    """Whether it is also taught the rows that have no label, where there are any."""

    @property
    def is_control(self) -> bool:
        return self.alpha == 0.0


@dataclass(frozen=True)
class _Task:
    """One training; picklable, so that any executor can run it. The rows go beside it: a cluster keeps them."""

    number: int
    family: str
    size: Mapping[str, Any]
    recipe: _Recipe
    task: Task
    n_classes: int
    epochs: int
    seed: int
    teacher: bytes | None
    seconds: float
    """How long it may take from its start: another machine has another clock."""
    fitted: Any = None
    """The student to train again, without early stopping, where there is one."""
    calibrated: bool = True
    """Whether its probabilities are held against the labels of the select rows, and not against the teacher's."""


@dataclass(frozen=True)
class _Outcome:
    number: int
    student: Any
    artifact: bytes
    logits: FloatArray | None
    expression: str | None
    reason: str
    seconds: float


@dataclass
class _Entry:
    """A candidate while the search runs."""

    number: int
    family: str
    size: Mapping[str, Any]
    recipe: _Recipe
    configuration: dict[str, object]
    student: Any = None
    artifact: bytes = b""
    logits: FloatArray | None = None
    expression: str | None = None
    metric: float = float("nan")
    jackknife: tuple[float, ...] = ()
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


def _train(task: _Task, data: TransferSet, select: TransferSet) -> _Outcome:
    """Train one student; whatever goes wrong becomes its reason."""
    start = time.monotonic()
    deadline = start + task.seconds

    def failed(reason: str) -> _Outcome:
        return _Outcome(task.number, None, b"", None, None, reason, time.monotonic() - start)

    if task.seconds < 0:
        return failed(NO_TIME)
    try:
        if task.fitted is not None:
            student = copy.copy(task.fitted)
            student.refit(data, deadline=deadline)
            if not getattr(student, "complete_", True):
                return failed(NO_TIME_TO_REFIT)
        else:
            student = _make(task.family, task.size, task.recipe, task)
            student.fit(data, select, deadline=deadline)
            if task.calibrated:
                student.calibrate(select)
        logits = student.predict_logits(select.frame)
        if not np.isfinite(logits).all():
            return failed("training diverged: its predictions are not finite")
        artifact = student.to_onnx()
        difference = _disagreement(artifact, select.frame, logits, task.task)
        if not difference <= AGREEMENT:
            return failed(f"ONNX Runtime and trainer differ by {difference:.1e}, over {AGREEMENT:.0e}")
        try:
            expression = student.to_sql()
        except (FeatureNotSupported, LimitExceeded):
            expression = None
    except MemoryError:
        return failed("out of memory")
    except PgDistillError as error:
        return failed(error.message)
    except Exception as error:  # one broken candidate must not end the run
        return failed(f"{type(error).__name__}: {error}")
    return _Outcome(
        task.number,
        student,
        artifact,
        logits,
        expression if isinstance(expression, str) else None,
        "",
        time.monotonic() - start,
    )


def _make(family: str, size: Mapping[str, Any], recipe: _Recipe, task: Any) -> Student:
    cls: Any = load_family(family)
    extra = {"teacher": task.teacher} if cls.uses_teacher else {}
    student: Student = cls(
        task=task.task,
        n_classes=task.n_classes,
        temperature=recipe.temperature,
        alpha=recipe.alpha,
        epochs=task.epochs,
        seed=task.seed,
        **size,
        **extra,
    )
    return student


def _feeds(
    session: Any, frame: Frame, lookups: Sequence[onnx_wire.Lookup] = ()
) -> dict[str, npt.NDArray[Any]]:
    """Return what a student's session takes for ``frame``; ``lookups`` are those that were cut from its graph."""
    by_target = {lookup.target: lookup for lookup in lookups}
    strings = [frame.strings(name).to_objects(onnx_model.NULL_STRING) for name in frame.string_names]
    feeds: dict[str, npt.NDArray[Any]] = {}
    for node in session.get_inputs():
        if node.name == "numbers":
            kind = np.float64 if "double" in node.type else np.float32
            with np.errstate(over="ignore"):
                feeds["numbers"] = frame.numbers().astype(kind)
        elif node.name in by_target:
            feeds[node.name] = by_target[node.name].numbers(np.column_stack(strings))
        else:
            feeds["strings"] = np.column_stack(strings)
    return feeds


def _disagreement(artifact: bytes, frame: Frame, logits: FloatArray, task: Task) -> float:
    """Return the largest difference between a student's file and its own logits on some rows."""
    rows = np.arange(min(len(frame), AGREEMENT_ROWS))
    session = onnx_model.open_session(artifact)
    found = session.run(None, _feeds(session, frame.take(rows)))[0]
    expected = logits[rows]
    if task == "regression":
        return float(np.abs(found - expected).max() / max(float(np.std(logits)), 1e-12))
    return float(np.abs(found - softmax(expected)).max())


def latency_ms(artifact: bytes, frame: Frame) -> float:
    """Return the median of one-row ``session.run`` calls over real rows, in ms, of the graph that predict would run."""
    graph, lookups = onnx_wire.cut_lookups(artifact, {"strings"})
    session = onnx_model.open_session(graph)
    rows = [
        _feeds(session, frame.take(np.array([i])), lookups)
        for i in np.linspace(0, len(frame) - 1, TIMED_ROWS).astype(int)
    ]
    run, names = session.run, [o.name for o in session.get_outputs()]
    for i in range(WARM_UP_CALLS):
        run(names, rows[i % TIMED_ROWS])
    times = np.empty(TIMED_CALLS)
    clock = time.perf_counter_ns
    begun = clock()
    for i in range(TIMED_CALLS):
        start = clock()
        run(names, rows[i % TIMED_ROWS])
        times[i] = clock() - start
        if clock() - begun > 200_000_000 and i >= 20:
            times = times[: i + 1]
            break
    return float(np.median(times)) / 1e6


NO_TIME = "time budget ended before its turn"
NO_TIME_TO_REFIT = "no time to refit"


class _Search:
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
        self.label = label
        self.executor = executor
        self.report = report
        self.is_local = is_local
        self.start = time.monotonic()
        self.deadline = self.start + max(
            0.0, config.time_budget_s - min(RESERVE_SECONDS, RESERVE_SHARE * config.time_budget_s)
        )
        self.begun = self.start
        self.entries: list[_Entry] = []
        self.pools: dict[str, list[TransferSet]] = {}
        self.exhausted: set[str] = set()
        self.broken: dict[str, str] = {}
        self.made: dict[str, list[Frame]] = {}
        self.blocks: dict[str, int] = {}
        self.augmenter: Augmenter | None = None
        self.replaced: list[tuple[_Entry, bytes, str | None]] = []
        self.seconds_a_row: float | None = None
        self.labelled_seconds = 0.0
        self.task: Task = problem.task
        self.n_classes = max(1, len(problem.classes)) if problem.task != "regression" else 1
        self.allowed_ms = config.target_latency_ms - config.call_overhead_ms
        self.has_label = _any_label(problem.select, problem.task)
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

    def judge(self, logits: FloatArray) -> tuple[float, float, float]:
        """Return (metric, a smooth tie-break, fidelity) on select: log loss, or error, against label or teacher."""
        select = self.problem.select
        outputs = self.outputs(logits)
        teacher = select.teacher_logits
        fidelity = float("nan")
        if teacher is not None:
            if self.task == "regression":
                fidelity = measure.score("r2", teacher[:, 0], outputs, select.weights)
            else:
                fidelity = measure.score("accuracy", teacher.argmax(axis=1), outputs, select.weights)
        if not self.has_label or self.problem.metric == "agreement":
            assert teacher is not None
            distance = (teacher - logits) ** 2 if self.task == "regression" else kl(teacher, logits)
            return fidelity, -float(np.average(distance.reshape(-1), weights=select.weights)), fidelity
        metric, y, known = self.truth()
        weights = None if select.weights is None else select.weights[known]
        value = measure.score(metric, y[known], outputs[known], weights)
        loss = "neg_root_mean_squared_error" if self.task == "regression" else "neg_log_loss"
        return value, measure.score(loss, y[known], outputs[known], weights), fidelity

    def outputs(self, logits: FloatArray) -> FloatArray:
        """Return probabilities, or values, of logits."""
        return logits if self.task == "regression" else softmax(logits)

    def score(self, entry: _Entry, logits: FloatArray) -> None:
        """Note what an entry's logits on select are worth."""
        entry.logits = logits
        entry.metric, entry.tie_break, entry.fidelity = self.judge(logits)
        metric, y, known = self.truth()
        weights = self.problem.select.weights
        outputs = self.outputs(logits)[known]
        left_out = measure.jackknife(metric, y[known], outputs, None if weights is None else weights[known])
        entry.jackknife = tuple(left_out.tolist())

    def constant(self) -> FloatArray:
        """Return the logits, or values, of a student that answers every row of select alike."""
        fit = self.problem.fit
        if self.has_label and fit.y is not None and _any_label(fit, self.task):
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
                    untrained = _make(family, size, _Recipe(1.0, 1.0), _Untrained(self))
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
                elif artifact is not None and latency <= NEAR * self.allowed_ms:
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
            latency = min(before, self.least_latency_ms(artifact))
            if latency > self.allowed_ms:
                self.note_too_slow(family, size, latency)
                continue
            fitting = [*self.sizes.get(family, ()), size]
            self.sizes[family] = [other for other in self.all_sizes(family) if other in fitting]
        self.refused = []

    def time_again(self) -> None:
        """Measure the trained students that are near the target once more; the least counts."""
        for entry in self.entries:
            if entry.artifact and self.allowed_ms < entry.latency_ms <= NEAR * self.allowed_ms:
                entry.latency_ms = min(entry.latency_ms, self.least_latency_ms(entry.artifact))

    def least_latency_ms(self, artifact: bytes) -> float:
        """Return what a shape takes; the least of several measurements where it is near what is allowed.

        Other work on the machine makes a call take longer, never shorter, and a shape that is left out here is gone.
        """
        latency = latency_ms(artifact, self.problem.select.frame)
        for _ in range(NEAR_TRIES):
            if not self.allowed_ms < latency <= NEAR * self.allowed_ms:
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
        entry = _Entry(len(self.entries), family, size, _Recipe(1.0, 1.0), {"family": family, **size})
        entry.reason, entry.latency_ms = reason, latency
        self.entries.append(entry)

    # -- transfer sets -----------------------------------------------------------------------------------------

    @property
    def has_unlabelled(self) -> bool:
        """Whether there are rows without a label beside those to fit on."""
        return bool(self.problem.unlabelled)

    def count_real(self, *, unlabelled: bool = True) -> int:
        """Return how many rows there are to fit on, and without a label if these count."""
        return len(self.problem.fit) + (len(self.problem.unlabelled or ()) if unlabelled else 0)

    def real_rows(self) -> TransferSet:
        """Return fit and unlabelled rows."""
        unlabelled = self.problem.unlabelled
        return self.problem.fit if not unlabelled else stack([self.problem.fit, unlabelled])

    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of augmented rows that can be had here."""
        if self.label is None:
            return ()
        return tuple(k for k in KINDS if k != "thresholds" or self.thresholds())

    def thresholds(self) -> dict[str, FloatArray]:
        """Return the split thresholds of a tree teacher by column name."""
        if not hasattr(self, "_thresholds"):
            self._thresholds: dict[str, FloatArray] = {}
            if self.problem.teacher is not None:
                import onnx

                from . import onnx_graph

                features = self.problem.fit.frame.features
                found = onnx_graph.tree_thresholds(onnx.load_from_string(self.problem.teacher))
                self._thresholds = {features[p].name: cuts for p, cuts in found.items() if p < len(features)}
        return self._thresholds

    def wanted(self, recipe: _Recipe) -> list[tuple[str, int]]:
        """Return how many augmented rows of each kind a recipe is to be taught."""
        if recipe.is_control or self.label is None:
            return []
        real = self.count_real(unlabelled=recipe.unlabelled)
        return [(kind, int(factor * real)) for kind, factor in recipe.augment]

    def had(self, kind: str) -> int:
        """Return how many rows of a kind are made and labelled."""
        return sum(len(part) for part in self.pools.get(kind, ()))

    def lacks(self, kind: str, n: int) -> bool:
        """Whether ``n`` rows of a kind are not there yet, and more can be made."""
        return self.had(kind) < n and kind not in self.exhausted

    def missing(self, recipe: _Recipe) -> str | None:
        """Return a kind of which a recipe needs rows that are still to be made; None where it has all it can get."""
        return next((kind for kind, n in self.wanted(recipe) if self.lacks(kind, n)), None)

    def make_more(self, kind: str) -> None:
        """Make and label the next ``LABEL_ROWS`` of a kind, or find that there are no more to be had.

        What a row is hangs on its place in its kind's series alone, not on who asks for how many.
        """
        made = None
        try:
            frame = self.make_rows(kind, min(LABEL_ROWS, self.block_rows()))
            if frame is not None:
                made = self.label_rows(frame)
        except Exception as error:  # a teacher that fails on made-up rows must not end the run
            self.broken[kind] = f"{type(error).__name__}: {error}"
        if made:
            self.pools.setdefault(kind, []).append(made)
        else:
            self.exhausted.add(kind)

    def label_rows(self, frame: Frame) -> TransferSet:
        """Return augmented rows with the teacher's logits, but those for which these are not finite."""
        assert self.label is not None
        start = time.monotonic()
        logits = self.label(frame)
        self.labelled_seconds += time.monotonic() - start
        made = TransferSet(frame, logits, None, None, np.full(len(frame), AUGMENTED, np.uint8))
        return made.take(np.flatnonzero(np.isfinite(logits).all(axis=1)))

    def augmented(self, kind: str, n: int) -> TransferSet | None:
        """Return up to ``n`` rows of a kind, labelled by the teacher; fewer where labelling would take too long."""
        while self.lacks(kind, n):
            self.make_more(kind)
        if not self.pools.get(kind):
            return None
        self.pools[kind] = [stack(self.pools[kind])]
        return self.pools[kind][0].take(np.arange(min(n, self.had(kind))))

    def block_rows(self) -> int:
        """Return how many augmented rows, but for hot-deck ones, are made at once."""
        return int(np.clip(self.count_real(), *BLOCK_ROWS))

    def make_rows(self, kind: str, n: int) -> Frame | None:
        """Return the next rows of a kind, as many as labelling time and memory allow; None where that is none."""
        assert self.label is not None
        if self.augmenter is None:
            self.augmenter = Augmenter(self.real_rows().frame, thresholds=self.thresholds())
            self.seconds_a_row = labelling_seconds(self.label, self.problem.fit.frame)
        assert self.seconds_a_row is not None
        seconds = min(
            self.config.time_budget_s * LABEL_SHARE - self.labelled_seconds, self.deadline - time.monotonic()
        )
        affordable = int(max(0.0, seconds) / max(self.seconds_a_row, 1e-9))
        width = len(self.problem.fit.frame.features) + self.n_classes
        room = self.config.transfer_bytes // (CELL_BYTES * width)
        n = min(n, affordable, room - sum(self.had(k) for k in self.pools))
        if n < 1:
            return None
        size = max(len(self.augmenter.frame), HOT_DECK_ROWS) if kind == "hot_deck" else self.block_rows()
        size = min(size, room)
        made = self.made.setdefault(kind, [])
        while sum(len(frame) for frame in made) < n and time.monotonic() < self.deadline:
            block = self.blocks.get(kind, 0)
            self.blocks[kind] = block + 1
            seed = [self.config.seed, KINDS.index(kind), block]
            frame = self.augmenter.make(kind, size, np.random.default_rng(seed), deadline=self.deadline)
            if not len(frame):
                break  # all of them were far off
            made.append(frame)
        if not made:
            return None
        frames = Frame.concat(made)
        n = min(n, len(frames))
        self.made[kind] = [frames.take(np.arange(n, len(frames)))] if n < len(frames) else []
        return frames.take(np.arange(n))

    def transfer(self, recipe: _Recipe) -> TransferSet:
        """Return the rows that a recipe is taught on."""
        if recipe.is_control:
            rows = np.arange(len(self.problem.fit))
            return self.problem.fit.take(np.tile(rows, recipe.repeat))
        real = self.real_rows() if recipe.unlabelled else self.problem.fit
        parts = [real]
        for kind, n in self.wanted(recipe):
            made = self.augmented(kind, n)
            if made is not None:
                parts.append(made)
        if recipe.repeat > 1:
            return real.take(np.tile(np.arange(len(real)), recipe.repeat))
        return stack(parts)

    # -- running -----------------------------------------------------------------------------------------------

    def run(self, stage: str, plan: Iterable[tuple[str, Mapping[str, Any], _Recipe]]) -> list[_Entry]:
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
                "transfer_set": self.describe(recipe),
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

    def describe(self, recipe: _Recipe) -> dict[str, float]:
        """Return what a recipe's transfer set has of each kind, for each real row."""
        out: dict[str, float] = {"real": recipe.repeat}
        if self.has_unlabelled and not recipe.is_control:
            out["unlabelled"] = recipe.repeat if recipe.unlabelled else 0
        return out | dict(recipe.augment)

    def execute(
        self,
        stage: str,
        entries: Sequence[_Entry],
        take: Callable[[_Entry, _Outcome], None],
        *,
        refit: bool = False,
    ) -> None:
        """Run one training for each entry, at most ``threads`` at once, and hand what came of it to ``take``."""
        budget = self.config.time_budget_s
        rescue = stage == "rescue"
        until = self.begun + STAGE_END.get(stage, 1.0) * max(0.0, self.deadline - self.begun)
        late = max(RESERVE_SECONDS, HANG_SHARE * budget)
        queue, done = list(entries), 0
        running: dict[Future[_Outcome], tuple[_Entry, float]] = {}

        def leave_out(entry: _Entry, reason: str) -> None:
            if refit:  # it has been trained
                entry.configuration["refit"] = f"failed: {reason}"
            else:
                entry.reason = entry.reason or reason

        def make_rows() -> bool:
            """Make some of the augmented rows that are wanted first, if there are any to be made."""
            kind = next((kind for e in queue if (kind := self.missing(e.recipe)) is not None), None)
            if kind is not None:
                self.make_more(kind)
            return kind is not None

        while queue or running:
            while queue and len(running) < self.config.threads:
                now = time.monotonic()
                if now > until and not rescue:
                    leave_out(queue.pop(0), NO_TIME_TO_REFIT if refit else NO_TIME)
                    done += 1
                    continue
                place = next((i for i, e in enumerate(queue) if self.missing(e.recipe) is None), None)
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
                task = _Task(
                    number=entry.number,
                    family=entry.family,
                    size=entry.size,
                    recipe=entry.recipe,
                    task=self.task,
                    n_classes=self.n_classes,
                    epochs=self.config.epochs,
                    seed=self.config.seed + entry.recipe.seed,
                    teacher=self.problem.teacher if load_family(entry.family).uses_teacher else None,
                    seconds=seconds,
                    fitted=entry.student if refit else None,
                    calibrated=self.problem.metric != "agreement",
                )
                future = self.executor.submit(_train, task, data, self.problem.select)
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
                outcome = _Outcome(entry.number, None, b"", None, None, "its executor gave no answer", late)
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
        broken = [self.broken[kind] for kind, _ in self.wanted(entry.recipe) if kind in self.broken]
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
        data = self.transfer(entry.recipe)
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

    def take(self, entry: _Entry, outcome: _Outcome) -> None:
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

    def temperatures(self, family: str) -> list[float]:
        """Return what a family is to try, sharpest first: 1, the softest allowed, and their geometric mean.

        Below 1 the softest allowed is the only one. A family that nothing softens learns at 1, whatever is allowed.
        """
        softest = self.config.temperature
        if self.task == "regression" or not load_family(family).softens:
            return [1.0]
        if softest <= 1.0:
            return [softest]
        return [1.0, float(round(softest**0.5, 4)), softest]

    def most_repeats(self, family: str, size: int) -> int:
        """Return how many times its ``size`` real rows a transfer set may hold."""
        if family not in ITERATIVE:
            return TREE_REPEAT if size >= SMALL_ROWS else SMALL_TREE_REPEAT
        return max(REPEAT, -(-LEAST_STEPS * STEP_ROWS // (max(1, self.config.epochs) * size)))

    def repeats(self, family: str, size: int) -> int:
        """Return how often a family meets each of ``size`` real rows in a pass."""
        if family not in ITERATIVE:
            return 1
        return int(np.clip(SCREEN_ROWS // size, 1, self.most_repeats(family, size)))

    def controls(self, family: str) -> list[_Recipe]:
        """Return the recipes of labels alone: as many steps as others take, and fewer where few rows are met so often."""
        if not self.has_label:
            return []
        often = self.repeats(family, len(self.problem.fit))
        sharp = self.temperatures(family)[0]
        return [_Recipe(sharp, 0.0, repeat=n) for n in dict.fromkeys((often, min(often, REPEAT)))]

    def recipes(self, family: str) -> list[_Recipe]:
        """Return the recipes that *screen* compares, the control first."""
        passes = family in ITERATIVE
        fit = len(self.problem.fit)
        size = self.count_real()
        repeat = self.repeats(family, size)
        kinds = self.kinds()
        sharp, *softer = self.temperatures(family)
        control = self.controls(family)
        real = [_Recipe(sharp, alpha, repeat=repeat) for alpha in ((0.5, 1.0) if self.has_label else (1.0,))]
        rest = control[1:]
        if self.has_unlabelled:
            labelled = self.repeats(family, fit)
            rest = [*rest, replace(real[0], repeat=labelled, unlabelled=False)]

        def mixed(**shares: float) -> tuple[tuple[str, float], ...]:
            most = self.most_repeats(family, size)
            rows = float(np.clip(SCREEN_ROWS / size - 1, LEAST_AUGMENTED, most - 1 if passes else most))
            return tuple((kind, round(share * rows, 2)) for kind, share in shares.items())

        if not kinds:
            soft = [_Recipe(t, real[0].alpha, repeat=repeat) for t in softer]
            return [*control[:1], *real, *soft, *rest]
        if passes:
            first = mixed(munge=0.8, spunge=0.2)
            made = [
                _Recipe(sharp, 1.0, mixed(hot_deck=1.0)),
                _Recipe(sharp, 1.0, mixed(munge=0.4, hot_deck=0.4, spunge=0.2)),
            ]
            soft = [_Recipe(t, 1.0, first) for t in softer]
            if self.has_label:
                made.append(_Recipe(sharp, 0.5, first))
            return [
                *control[:1],
                _Recipe(sharp, 1.0, first),
                *soft[:1],
                *real[:1],
                *made,
                *real[1:],
                *soft[1:],
                *rest,
            ]
        made = [_Recipe(sharp, 1.0, mixed(hot_deck=1.0)), _Recipe(sharp, 1.0, mixed(munge=1.0))]
        if self.has_label:
            made.append(_Recipe(sharp, 0.5, mixed(hot_deck=1.0)))
        if "thresholds" in kinds:
            made.append(_Recipe(sharp, 1.0, mixed(thresholds=0.5, hot_deck=0.5)))
        soft = [_Recipe(t, real[0].alpha) for t in softer]
        return [*control[:1], *real, *made, *soft, *rest]

    def screen(self) -> dict[str, tuple[list[_Recipe], list[Mapping[str, Any]]]]:
        """Find each family's two best recipes at one size, and the sizes that are worth training by them."""
        order: list[tuple[int, int, tuple[str, Mapping[str, Any], _Recipe]]] = []
        tried: dict[str, Mapping[str, Any]] = {}
        for family, sizes in self.sizes.items():
            place = _screened(family, sizes, self.n_classes)
            tried[family] = sizes[place]
            plan = [(sizes[place], recipe) for recipe in self.recipes(family)]
            plan[2:2] = [(other, plan[min(1, len(plan) - 1)][1]) for other in _variants(sizes, sizes[place])]
            # Families take turns, so that a budget that ends early has seen each.
            order.extend((turn, len(order), (family, *item)) for turn, item in enumerate(plan))
        entries = self.run("screen", [o[2] for o in sorted(order, key=lambda o: o[:2])])
        self.gate_again()
        best = max((e.tie_break for e in entries), default=0.0)
        limit = best - HOPELESS * max(0.0, best - self.judge(self.constant())[1])
        found: dict[str, tuple[list[_Recipe], list[Mapping[str, Any]]]] = {}
        for family, sizes in self.sizes.items():
            ranked = self.best([e for e in entries if e.family == family], 20)
            place = sizes.index(tried[family]) if family in tried else 0
            if not ranked:
                found[family] = (self.recipes(family)[:2], sizes[: max(1, place)])
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
                taught = [recipe for recipe in (*same, *self.recipes(family)) if not recipe.is_control]
                chosen = [*taught[:1], chosen[0]]
            found[family] = (chosen, worth)
        return found

    def train_sizes(self, found: Mapping[str, tuple[list[_Recipe], list[Mapping[str, Any]]]]) -> list[_Entry]:
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

    def finish(self, found: Mapping[str, tuple[list[_Recipe], list[Mapping[str, Any]]]]) -> None:
        """Train the best again on more rows, and their controls; then, while time lasts, by other recipes and seeds."""
        best: list[_Entry] = []
        for entry in self.best(self.entries, len(self.entries)):
            sizes = [e.size for e in best if e.family == entry.family]
            if len(best) < FINISHERS and len(sizes) < FINISHERS_A_FAMILY and entry.size not in sizes:
                best.append(entry)
        plan: list[tuple[str, Mapping[str, Any], _Recipe]] = []
        for entry in best:
            is_first = entry is next(e for e in best if e.family == entry.family)
            for size in [entry.size, *(self.near_variants(entry) if is_first else ())]:
                # The control first: it takes less time, and without it nobody knows what the teacher is for.
                recipes = [*self.controls(entry.family)[:1], *self.enlarged(entry.recipe)]
                plan.extend((entry.family, size, recipe) for recipe in recipes)
        plan.extend((e.family, e.size, recipe) for e in best for recipe in self.controls(e.family)[1:])
        for entry in best:
            plan.extend((entry.family, entry.size, recipe) for recipe in found[entry.family][0])
        self.run("finish", plan)
        until = self.begun + STAGE_END["finish"] * (self.deadline - self.begun)
        for seed in range(1, MORE_SEEDS + 1):
            if time.monotonic() > until:
                break
            alone = [e for e in self.entries if e.family in found]
            controls = [e for e in alone if e.is_control]
            again: dict[str, tuple[str, Mapping[str, Any], _Recipe]] = {}
            for pool, most in ((alone, FINISHERS // 2), (controls, FINISHERS // 2 + 1)):
                for e in self.best(pool, len(pool)):
                    if len(again) < most:
                        again.setdefault(
                            _key(e.family, e.size, replace(e.recipe, seed=0)),
                            (e.family, e.size, replace(e.recipe, seed=seed)),
                        )
            self.run("finish", again.values())

    def enlarged(self, recipe: _Recipe) -> list[_Recipe]:
        """Return a recipe with more augmented rows, if that is worth a training."""
        real = self.count_real(unlabelled=recipe.unlabelled)
        times = min(MORE, MOST_ROWS / real / max(1e-9, sum(factor for _, factor in recipe.augment)))
        if not recipe.augment or times < LEAST_MORE:
            return []
        return [replace(recipe, augment=tuple((kind, round(n * times, 2)) for kind, n in recipe.augment))]

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
        plan: list[tuple[str, Mapping[str, Any], _Recipe]] = []
        alphas = [a for a in ((0.0, 0.5) if self.has_label else (1.0,)) if (a == 0.0) not in had]
        for family in [f for f in FAMILIES if f in self.sizes][:RESCUE_FAMILIES]:
            sharp = self.temperatures(family)[0]
            plan.extend((family, self.sizes[family][0], _Recipe(sharp, alpha)) for alpha in alphas)
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
        entry = _Entry(len(self.entries), "blend", {}, _Recipe(1.0, 1.0), {})
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
            difference = _disagreement(artifact, frame, logits, self.task)
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

    def take_refit(self, entry: _Entry, outcome: _Outcome) -> None:
        """Put the refitted student in the place of the first one, where that worked and is as fast.

        It knows the select rows by now: one that answers them worse than before is broken.
        """
        entry.seconds += outcome.seconds
        if outcome.student is None or outcome.logits is None:
            entry.configuration["refit"] = f"failed: {outcome.reason}"
            return
        metric, tie_break, _ = self.judge(outcome.logits)
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
            if _disagreement(artifact, self.problem.select.frame, logits, self.task) <= AGREEMENT:
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
                    select_logits=e.logits,
                )
            )
        return out


class _Untrained:
    """What ``_make`` reads of a task, before there is one."""

    def __init__(self, owner: _Search) -> None:
        self.task, self.n_classes = owner.task, owner.n_classes
        self.epochs, self.seed = owner.config.epochs, owner.config.seed
        self.teacher = owner.problem.teacher


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
    order = measure.rank(
        [e.metric for e in usable], [e.tie_break for e in usable], [e.jackknife for e in usable]
    )
    return [usable[i] for i in order]


def _outcome(future: Future[_Outcome], entry: _Entry) -> _Outcome:
    """Return what became of a training that is over."""
    try:
        return future.result()
    except PgDistillError:
        raise  # the executor itself is gone
    except Exception as error:  # such as Dask's KilledWorker: one candidate must not end the run
        return _Outcome(entry.number, None, b"", None, None, f"{type(error).__name__}: {error}", 0.0)


def _key(family: str, size: Mapping[str, Any], recipe: _Recipe) -> str:
    return repr((family, sorted((k, str(v)) for k, v in size.items()), recipe))


def _any_label(rows: TransferSet, task: Task) -> bool:
    if rows.y is None:
        return False
    return bool(np.isfinite(rows.y).any() if task == "regression" else (rows.y >= 0).any())


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
        run = _Search(problem, config, label, executor or own, report, is_local=own is not None)  # type: ignore[arg-type]
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
