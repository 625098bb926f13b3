"""One training: a student by a recipe, its file held against its own arithmetic, and timed.

``train`` runs in an executor: a thread, or another machine. What it takes and gives can be pickled.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.errors import FeatureNotSupported, LimitExceeded, PgDistillError
from pg_distill.frame import FloatArray, Frame, Task
from pg_distill.onnx_model import cut, signature
from pg_distill.onnx_model import session as onnx_model
from pg_distill.onnx_model.texts import INPUT
from pg_distill.onnx_model.tokens import prepare
from pg_distill.students.blend import Blend
from pg_distill.students.families import Setup, Student, load_family
from pg_distill.students.soft_labels import probabilities_of
from pg_distill.students.transfer_set import TransferSet

WARM_UP_CALLS, TIMED_CALLS, TIMED_ROWS = 50, 400, 256
"""Calls before and while a candidate's latency is measured, and the rows that they go round."""
AGREEMENT = 1e-4
"""Largest difference between ONNX and the trainer's arithmetic: of probabilities, or of values in deviations."""
AGREEMENT_ROWS = 2000
TEXT_ROWS = 50
"""Rows of which a file that reads texts is run as a whole: half a millisecond for 300 characters."""
PAIRS = 1000
"""Pairs of rows on which each file is held against its monotone constraints."""
NOT_KEPT = "it does not keep its monotone constraints"
NO_TIME = "time budget ended before its turn"
NO_TIME_TO_REFIT = "no time to refit"


@dataclass(frozen=True)
class Recipe:
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
        """Whether it is taught by labels alone."""
        return self.alpha == 0.0


@dataclass(frozen=True)
class Training:
    """One training; picklable, so that any executor can run it. The rows go beside it: a cluster keeps them."""

    number: int
    family: str
    size: Mapping[str, Any]
    setup: Setup
    seconds: float
    """How long it may take from its start: another machine has another clock."""
    fitted: Any = None
    """The student to train again, without early stopping, where there is one."""
    calibrated: bool = True
    """Whether its probabilities are held against the labels of the select rows, and not against the teacher's."""
    exported: bool = True
    """Whether its file is wanted, and not its logits alone."""


@dataclass(frozen=True)
class Outcome:
    """What came of a training: a student, its file and its logits on the select rows, or a reason."""

    number: int
    student: Any
    artifact: bytes
    logits: FloatArray | None
    expression: str | None
    reason: str
    seconds: float
    cpu_seconds: float = 0.0
    """Of ``seconds``, what its thread had a processor; 0 where nobody knows."""
    queued_seconds: float = 0.0
    """Of ``seconds``, what its thread could have run and had no processor. What it waits for other trainings of its process,
    which have the interpreter, is not in it."""


def train(task: Training, data: TransferSet, select: TransferSet) -> Outcome:
    """Train one student; whatever goes wrong becomes its reason."""
    start, begun, queued = time.monotonic(), time.thread_time(), _queued_seconds()
    deadline = start + task.seconds

    def failed(reason: str) -> Outcome:
        return Outcome(task.number, None, b"", None, None, reason, time.monotonic() - start)

    if task.seconds < 0:
        return failed(NO_TIME)
    try:
        if task.fitted is not None:
            student = copy.copy(task.fitted)
            student.refit(data, deadline=deadline)
            if not getattr(student, "complete_", True):
                return failed(NO_TIME_TO_REFIT)
        else:
            student = make_student(task)
            student.fit(data, select, deadline=deadline)
            if task.calibrated:
                student.calibrate(select)
        logits = student.predict_logits(select.frame)
        if not np.isfinite(logits).all():
            return failed("training diverged: its predictions are not finite")
        if not task.exported:
            return Outcome(task.number, student, b"", logits, None, "", time.monotonic() - start)
        artifact = student.to_onnx()
        difference = disagreement(artifact, select.frame, logits, task.setup.task)
        if not difference <= AGREEMENT:
            return failed(f"ONNX Runtime and trainer differ by {difference:.1e}, over {AGREEMENT:.0e}")
        if count := falls(artifact, select.frame, task.setup.monotone, task.setup.task):
            return failed(f"{NOT_KEPT} on {count} of {PAIRS} pairs of rows")
        expression = sql_of(student)
    except MemoryError:
        return failed("out of memory")
    except PgDistillError as error:
        return failed(error.message)
    except Exception as error:  # one broken candidate must not end the run
        return failed(f"{type(error).__name__}: {error}")
    return Outcome(
        task.number,
        student,
        artifact,
        logits,
        expression,
        "",
        time.monotonic() - start,
        time.thread_time() - begun,
        _queued_seconds() - queued,
    )


def _queued_seconds() -> float:
    """Return how long this thread has waited for a processor; 0 where the kernel does not say."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def falls(artifact: bytes, frame: Frame, monotone: Mapping[str, int], task: Task) -> int:
    """Return on how many of ``PAIRS`` pairs of rows a file breaks a monotone constraint; 0 where there is none.

    The rows of a pair differ in one column alone: by a value that another row has there, by the least that float32 tells apart,
    or by one beyond all rows.
    """
    if not monotone:
        return 0
    rng = np.random.default_rng(0)
    broken = 0
    served, readers = _served(artifact)
    session = onnx_model.open_session(served)
    for place, (name, sign) in enumerate(sorted(monotone.items())):
        count = len(range(place, PAIRS, len(monotone)))
        known = frame.number(name)
        known = known[np.isfinite(known)]
        if not len(known) or not count:
            continue
        rows = frame.take(rng.integers(0, len(frame), count))
        low, other = rng.choice(known, (2, count))
        with np.errstate(over="ignore"):
            near = np.nextafter(low.astype(np.float32), np.float32(np.inf)).astype(np.float64)
        ends = np.where(rng.random(count) < 0.5, 2 * known.min() - known.max(), 2 * known.max() - known.min())
        high = np.choose(rng.integers(0, 3, count), [other, near, ends])
        answers = []
        for values in (np.minimum(low, high), np.maximum(low, high)):
            moved = Frame(rows.features, {**rows.columns, name: values})
            found = session.run(None, _feeds(session, moved, readers))[0]
            answers.append(found[:, -1])
        broken += int((sign * (answers[1] - answers[0]) < 0).sum())
    return broken


def sql_of(student: Student | Blend) -> str | None:
    """Return a student's SQL; None where it has none, or a longer one than is of use."""
    try:
        return student.to_sql()
    except (FeatureNotSupported, LimitExceeded):
        return None


def make_student(task: Training) -> Student:
    """Return the untrained student of a training."""
    return load_family(task.family)(task.setup, **task.size)


def _feeds(
    session: Any, frame: Frame, readers: Sequence[signature.Reader] = (), lookups: Sequence[cut.Lookup] = ()
) -> dict[str, npt.NDArray[Any]]:
    """Return what a student's session takes for ``frame``; ``readers`` and ``lookups`` are those that were cut from its graph."""
    by_target = {lookup.target: lookup for lookup in lookups}
    by_reader = {reader.target: reader for reader in readers}
    strings = [frame.strings(name).to_objects(signature.NULL_STRING) for name in frame.string_names]
    feeds: dict[str, npt.NDArray[Any]] = {}
    for node in session.get_inputs():
        if node.name == "numbers":
            kind = np.float64 if "double" in node.type else np.float32
            with np.errstate(over="ignore"):
                feeds["numbers"] = frame.cells().astype(kind)
        elif node.name in by_target:
            feeds[node.name] = by_target[node.name].numbers(np.column_stack(strings))
        elif node.name in by_reader:
            reader = by_reader[node.name]
            feeds[node.name] = reader.numbers(frame.strings(reader.name))
        elif node.name == INPUT:
            texts = [frame.strings(name).to_objects() for name in frame.text_names]
            feeds[INPUT] = np.array([[prepare(text) for text in column] for column in texts], object).T
        else:
            feeds["strings"] = np.column_stack(strings)
    return feeds


@lru_cache(maxsize=4)
def _served(artifact: bytes) -> tuple[bytes, tuple[signature.Reader, ...]]:
    """Return `cut.cut_texts` of a file, whose vocabulary is read once for all that is asked of it."""
    return cut.cut_texts(artifact)


def disagreement(artifact: bytes, frame: Frame, logits: FloatArray, task: Task) -> float:
    """Return the largest difference between a student's file and its own logits on some rows."""
    served, readers = _served(artifact)
    found = _difference(served, frame, logits, task, AGREEMENT_ROWS, readers)
    # As whoever has no pg_distill runs it, which takes long where there are texts.
    return max(found, _difference(artifact, frame, logits, task, TEXT_ROWS)) if readers else found


def _difference(
    artifact: bytes,
    frame: Frame,
    logits: FloatArray,
    task: Task,
    most: int,
    readers: Sequence[signature.Reader] = (),
) -> float:
    rows = np.arange(min(len(frame), most))
    session = onnx_model.open_session(artifact)
    found = session.run(None, _feeds(session, frame.take(rows), readers))[0]
    expected = logits[rows]
    if task == "regression":
        return float(np.abs(found - expected).max() / max(float(np.std(logits)), 1e-12))
    return float(np.abs(found - probabilities_of(expected, task)).max())


def latency_ms(artifact: bytes, frame: Frame) -> float:
    """Return the median time of one row, in ms, of the graph that predict would run over real rows; texts are read anew."""
    return timings(artifact, frame)[0]


def timings(artifact: bytes, frame: Frame) -> tuple[float, float]:
    """Return what `latency_ms` does, and how much of that goes into reading texts."""
    graph, readers = _served(artifact)
    graph, lookups = cut.cut_lookups(graph, {"strings"})
    session = onnx_model.open_session(graph)
    frames = [frame.take(np.array([i])) for i in np.linspace(0, len(frame) - 1, TIMED_ROWS).astype(int)]
    rows = [_feeds(session, row, readers, lookups) for row in frames]
    texts = [[(r.target, r.read, row.strings(r.name).to_objects()[0]) for r in readers] for row in frames]
    run, names = session.run, [o.name for o in session.get_outputs()]
    for i in range(WARM_UP_CALLS):
        run(names, rows[i % TIMED_ROWS])
    times, reading = np.empty(TIMED_CALLS), np.zeros(TIMED_CALLS)
    clock = time.perf_counter_ns
    begun = clock()
    for i in range(TIMED_CALLS):
        feeds = rows[i % TIMED_ROWS]
        start = clock()
        for target, read, text in texts[i % TIMED_ROWS]:
            feeds[target][0] = read(text)
        if readers:
            reading[i] = clock() - start
        run(names, feeds)
        times[i] = clock() - start
        if clock() - begun > 200_000_000 and i >= 20:
            times, reading = times[: i + 1], reading[: i + 1]
            break
    # Of texts the mean: their lengths differ, and a long one counts.
    usual = np.mean if readers else np.median
    return float(usual(times)) / 1e6, float(usual(reading)) / 1e6
