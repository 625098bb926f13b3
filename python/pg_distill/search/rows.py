"""The rows that students are taught: real ones, and augmented ones, made and labelled by the teacher when they are wanted."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Frame
from pg_distill.search.budget import Budget
from pg_distill.search.problem import Config, Problem
from pg_distill.search.training import Recipe
from pg_distill.students.augment import KINDS, TABLE_KINDS, Augmenter
from pg_distill.students.augment_text import TEXT_KINDS
from pg_distill.students.transfer_set import AUGMENTED, TransferSet, labelling_seconds, stack

LABEL_SHARE, TEXT_LABEL_SHARE, MOST_LABEL_STRETCH = 0.15, 0.3, 2.0
"""Share of the time budget that labelling augmented rows may take, where there are texts (their teachers are slow, and what these
say is worth more than another training), and how many times that on a slower or a busy machine."""
CELL_BYTES = 8
"""Of a column of an augmented row, and of a logit of its label."""
STRING_BYTES = 2
"""Of a character of a text, in the mean over scripts."""
LABEL_ROWS = 4096
"""Augmented rows that are labelled at once, between two looks at who has finished."""
BLOCK_ROWS, HOT_DECK_ROWS = (512, 16384), 8192
"""Augmented rows are made in blocks of as many as there are real ones, but at least and at most so many: what a row is then
depends on its place alone, not on who asked before. Hot-deck blocks have no upper end: each grows trees of its own."""


class Rows:
    """A problem's rows by recipe; ``label`` is the teacher, None where it has only what it has logged.

    When only the last measurements are left of ``budget``, no more rows are made.
    """

    def __init__(
        self,
        problem: Problem,
        config: Config,
        label: Callable[[Frame], FloatArray] | None,
        budget: Budget,
    ) -> None:
        self.problem = problem
        self.config = config
        self.label = label
        self.budget = budget
        self.pools: dict[str, list[TransferSet]] = {}
        self.exhausted: set[str] = set()
        self.broken: dict[str, str] = {}
        self.made: dict[str, list[TransferSet]] = {}
        self.blocks: dict[str, int] = {}
        self.augmenter: Augmenter | None = None
        self.folds: npt.NDArray[np.uint8] | None = None
        self.seconds_a_row: float | None = None
        self.labelled_seconds = 0.0

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
        frame = self.problem.fit.frame
        if self.label is None:
            return ()
        words = TEXT_KINDS if frame.text_names else ()
        if not frame.number_names and not frame.string_names:
            return words
        of_table = (k for k in TABLE_KINDS if k != "thresholds" or self.thresholds())
        return (*of_table, *words)

    def thresholds(self) -> dict[str, FloatArray]:
        """Return the split thresholds of a tree teacher by column name."""
        if not hasattr(self, "_thresholds"):
            self._thresholds: dict[str, FloatArray] = {}
            if self.problem.teacher is not None:
                import onnx

                from pg_distill.onnx_model import teacher

                features = self.problem.fit.frame.features
                found = teacher.tree_thresholds(onnx.load_from_string(self.problem.teacher))
                if any(f.is_vector for f in features):
                    return self._thresholds  # its places are those of their numbers
                self._thresholds = {features[p].name: cuts for p, cuts in found.items() if p < len(features)}
        return self._thresholds

    def wanted(self, recipe: Recipe) -> list[tuple[str, int]]:
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

    def missing(self, recipe: Recipe) -> str | None:
        """Return a kind of which a recipe needs rows that are still to be made; None where it has all it can get."""
        return next((kind for kind, n in self.wanted(recipe) if self.lacks(kind, n)), None)

    def make_more(self, kind: str) -> None:
        """Make and label the next ``LABEL_ROWS`` of a kind, or find that there are no more to be had.

        What a row is depends on its place in its kind's series alone, not on who asks for how many.
        """
        made = None
        try:
            rows = self.make_rows(kind, min(LABEL_ROWS, self.block_rows()))
            if rows is not None:
                made = self.label_rows(rows)
        except Exception as error:  # a teacher that fails on made-up rows must not end the run
            self.broken[kind] = f"{type(error).__name__}: {error}"
        if made:
            self.pools.setdefault(kind, []).append(made)
        else:
            self.exhausted.add(kind)

    def label_rows(self, rows: TransferSet) -> TransferSet:
        """Return augmented rows with the teacher's logits, but those for which these are not finite."""
        assert self.label is not None
        start = time.monotonic()
        logits = self.label(rows.frame)
        self.labelled_seconds += time.monotonic() - start
        return rows.with_logits(logits).take(np.flatnonzero(np.isfinite(logits).all(axis=1)))

    def augmented(self, kind: str, n: int) -> TransferSet | None:
        """Return up to ``n`` rows of a kind, labelled by the teacher; fewer where labelling would take too long."""
        while self.lacks(kind, n):
            self.make_more(kind)
        if not self.pools.get(kind):
            return None
        self.pools[kind] = [stack(self.pools[kind])]
        return self.pools[kind][0].take(np.arange(min(n, self.had(kind))))

    @cached_property
    def text_bytes(self) -> int:
        """Return what the texts of an augmented row take, in the mean."""
        frame = self.problem.fit.frame
        held = [frame.strings(name).compact().categories for name in frame.text_names]
        return sum(sum(map(len, texts)) // max(1, len(texts)) * STRING_BYTES for texts in held)

    def block_rows(self) -> int:
        """Return how many augmented rows, but for hot-deck ones, are made at once."""
        return int(np.clip(self.count_real(), *BLOCK_ROWS))

    def make_rows(self, kind: str, n: int) -> TransferSet | None:
        """Return the next rows of a kind, without logits, as many as labelling time and memory allow; None where that is none."""
        assert self.label is not None
        if self.augmenter is None:
            real = self.real_rows()
            self.folds = real.folds
            self.augmenter = Augmenter(real.frame, thresholds=self.thresholds())
            self.seconds_a_row = labelling_seconds(self.label, self.problem.fit.frame)
        assert self.seconds_a_row is not None
        share = TEXT_LABEL_SHARE if self.problem.fit.frame.text_names else LABEL_SHARE
        seconds = min(
            self.config.time_budget_s * share * min(self.budget.stretch, MOST_LABEL_STRETCH)
            - self.labelled_seconds,
            self.budget.deadline - time.monotonic(),
        )
        affordable = int(max(0.0, seconds) / max(self.seconds_a_row, 1e-9))
        width = sum(f.width for f in self.problem.fit.frame.features) + max(1, len(self.problem.classes))
        room = self.config.transfer_bytes // (
            CELL_BYTES * width + (self.text_bytes if kind in TEXT_KINDS else 0)
        )
        n = min(n, affordable, room - sum(self.had(k) for k in self.pools))
        if n < 1:
            return None
        size = max(len(self.augmenter.frame), HOT_DECK_ROWS) if kind == "hot_deck" else self.block_rows()
        size = min(size, room)
        made = self.made.setdefault(kind, [])
        while sum(map(len, made)) < n and time.monotonic() < self.budget.deadline:
            block = self.blocks.get(kind, 0)
            self.blocks[kind] = block + 1
            seed = [self.config.seed, KINDS.index(kind), block]
            frame, origin = self.augmenter.make_from(
                kind, size, np.random.default_rng(seed), deadline=self.budget.deadline
            )
            if not len(frame):
                break  # all of them were far off
            source = np.full(len(frame), AUGMENTED, np.uint8)
            folds = None if self.folds is None else self.folds[origin]
            made.append(TransferSet(frame, None, None, None, source, folds))
        if not made:
            return None
        rows = stack(made)
        n = min(n, len(rows))
        self.made[kind] = [rows.take(np.arange(n, len(rows)))] if n < len(rows) else []
        return rows.take(np.arange(n))

    def transfer(self, recipe: Recipe) -> TransferSet:
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

    def describe(self, recipe: Recipe) -> dict[str, float]:
        """Return what a recipe's transfer set has of each kind, for each real row."""
        out: dict[str, float] = {"real": recipe.repeat}
        if self.has_unlabelled and not recipe.is_control:
            out["unlabelled"] = recipe.repeat if recipe.unlabelled else 0
        return out | dict(recipe.augment)
