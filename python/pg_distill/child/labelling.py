"""The teacher's labels of many rows, within a time: in growing batches, by what the last one took."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from pg_distill.errors import InvalidParameter
from pg_distill.frame import FloatArray, Frame, Task

__all__ = ["distinct_classes", "finite", "label_within", "probabilities_of"]

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
    from pg_distill.students.soft_labels import softmax

    return logits if task == "regression" else softmax(logits, 1.0)


def distinct_classes(outputs: FloatArray, task: Task, threshold: float | None = None) -> int | None:
    """Return how many classes outputs name; of two the last from ``threshold`` on."""
    from pg_distill.measure import metrics

    return (
        None if task == "regression" else len(np.unique(metrics.decided(outputs, threshold).argmax(axis=1)))
    )


def finite(value: float | None) -> float | None:
    """Return a figure as JSON holds it: None where it is not finite."""
    return float(value) if value is not None and np.isfinite(value) else None
