"""The teacher's labels of many rows, within a time: in growing batches, by what the last one took."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.child.channel import Channel
from pg_distill.child.wire import Message
from pg_distill.errors import InvalidParameter
from pg_distill.frame import Cut, FloatArray, Frame, Task

__all__ = [
    "distinct_classes",
    "finite",
    "in_parallel",
    "label_splits",
    "label_within",
    "probabilities_of",
]

LABEL_SHARE = 0.25  # of the time budget, for labelling real rows by the teacher
FLOOR_ROWS = 20  # of each split: with fewer labelled nothing can be said
FLOOR_SHARE = 0.5  # of the time budget, that labelling those may take
SIGNIFICANT_SECONDS = 2.0  # labelling that takes longer is announced
PROBE_SECONDS = 0.5  # of labelling that says how long the rest will take
BATCH_SECONDS = 2.0  # until the clock is looked at again
BATCH_ROWS, BATCH_GROWTH = 1024, 4  # at most and from one to the next: fewer rows in a batch cost more each


def label_within(
    label: Callable[[Frame], FloatArray],
    rows: Frame,
    seconds: float,
    *,
    at_least: int,
    at_most_seconds: float,
    tell: Callable[..., None] = lambda *args, **kwargs: None,
) -> FloatArray:
    """Label the first rows: as many as the time allows, batch by batch, and ``at_least`` some.

    Parameters
    ----------
    seconds
        After which no further batch is begun, unless rows are missing to ``at_least``.
    at_most_seconds
        That labelling ``at_least`` rows may take.
    tell
        Called after each batch with the number of rows labelled, the seconds a row and how many rows there will be;
        ``estimate`` is true the first time that these rest on enough.

    Returns
    -------
    The outputs of the first rows, (m, K).

    Raises
    ------
    InvalidParameter
        The teacher is too slow for ``at_least`` rows.
    """
    started = time.monotonic()
    found: list[FloatArray] = []
    done, size, probed, told = 0, 1, 0.0, False
    # A batch that had to wait for the processor does not speak for the others.
    least_probed = min(PROBE_SECONDS, at_most_seconds / 2)
    while done < len(rows):
        begun = time.monotonic()
        found.append(label(rows.take(np.arange(done, min(done + size, len(rows))))))
        done += len(found[-1])
        now = time.monotonic()
        a_row = max((now - begun) / len(found[-1]), 1e-9)
        # The first batch pays for loading, and says little.
        probed += now - begun if len(found) > 1 else 0.0
        too_slow = now - started + a_row * (at_least - done) > at_most_seconds
        if done < at_least and probed >= least_probed and too_slow:
            raise InvalidParameter(
                f"the teacher takes {a_row:.3g} s a row, too long for the {at_least} rows that are the least",
                hint="Allow more time (time_budget_s), or use a faster teacher.",
            )
        affordable = max(int((seconds - (now - started)) / a_row), at_least - done, 0)
        expected = min(done + affordable, len(rows))
        enough = not told and probed >= PROBE_SECONDS
        told = told or enough
        tell(done, a_row, expected, estimate=enough)
        if expected <= done:
            break
        size = min(size * BATCH_GROWTH, BATCH_ROWS)
        # By powers of the growth, so that batches are the same each time unless the teacher is slow.
        while size > 1 and size * a_row > BATCH_SECONDS:
            size //= BATCH_GROWTH
        size = min(size, expected - done)
    return np.concatenate(found)


def probabilities_of(logits: FloatArray, task: Task) -> FloatArray:
    """Return a teacher's logits as probabilities, of a regression its values."""
    from pg_distill.students import soft_labels

    return soft_labels.probabilities_of(logits, task)


def distinct_classes(outputs: FloatArray, task: Task, threshold: Cut = None) -> int | None:
    """Return how many classes outputs name, of several labels how many sets; of two the last from ``threshold`` on."""
    from pg_distill.measure import metrics

    return None if task == "regression" else len(np.unique(metrics.named(outputs, task, threshold)))


def finite(value: float | None) -> float | None:
    """Return a figure as JSON holds it: None where it is not finite."""
    return float(value) if value is not None and np.isfinite(value) else None


def label_splits(
    label: Callable[[Frame], FloatArray],
    frame: Frame,
    split: npt.NDArray[np.uint8],
    budget: float,
    width: int,
    channel: Channel,
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Label as many rows as the time allows, an even part of every split, and say so beforehand."""
    from pg_distill.rows.split import LEFT_OUT, UNLABELLED

    # Rows come in the order of their hash, so that the first ones of a split are as good a part of it as any. The few
    # without which nothing can be said come first, then all splits in step: wherever it ends, each has kept its share.
    used = split != LEFT_OUT
    place = np.full(len(frame), np.inf)
    floor = 0
    for number in np.unique(split[used]):
        rows = np.flatnonzero(split == number)
        place[rows] = np.arange(1, len(rows) + 1) / len(rows)
        if number != UNLABELLED:
            place[rows[:FLOOR_ROWS]] -= 1
            floor += min(len(rows), FLOOR_ROWS)
    order = np.argsort(place, kind="stable")[: np.count_nonzero(used)]

    def tell(done: int, a_row: float, expected: int, *, estimate: bool) -> None:
        fields: dict[str, Any] = {"stage": "label", "done": done / len(order)}
        left = a_row * (expected - done)
        if estimate and left > SIGNIFICANT_SECONDS:
            fields |= {
                "estimated_seconds": left,
                "rows": expected,
                "rows_left_out": len(order) - expected,
            }
        channel.send(Message("progress", fields, {}, {}))

    most = max(budget * FLOOR_SHARE, SIGNIFICANT_SECONDS)
    found = label_within(
        label, frame.take(order), budget * LABEL_SHARE, at_least=floor, at_most_seconds=most, tell=tell
    )
    logits, kept = np.zeros((len(frame), width)), np.zeros(len(frame), bool)
    logits[order[: len(found)]] = found
    kept[order[: len(found)]] = True
    return logits, kept


def in_parallel(
    label: Callable[[Frame], FloatArray], threads: int, least: int
) -> Callable[[Frame], FloatArray]:
    """Label parts of a frame, of ``least`` rows, in threads of their own: a session gives up the interpreter while it runs."""
    if threads == 1:
        return label
    pool = ThreadPoolExecutor(threads)

    def label_parts(rows: Frame) -> FloatArray:
        if len(rows) < 2 * least:
            return label(rows)
        parts = [rows.take(part) for part in np.array_split(np.arange(len(rows)), min(threads, len(rows)))]
        return np.concatenate(list(pool.map(label, parts)))

    return label_parts
