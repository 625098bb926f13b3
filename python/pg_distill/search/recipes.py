"""Which recipes (temperature, alpha, transfer set) a search compares for a family."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pg_distill.measure.metrics import AGREEMENT
from pg_distill.search.problem import Config
from pg_distill.search.rows import Rows
from pg_distill.search.training import Recipe
from pg_distill.students.families import ITERATIVE, load_family

SCREEN_ROWS, REPEAT, TREE_REPEAT = 80_000, 6, 3
"""Rows that a transfer set of the screen is filled up to, by at most this many times the real rows: augmented rows, or for
iterative students that get none the real rows repeated, so that all take as many steps."""
LEAST_AUGMENTED = 0.5
"""Augmented rows a real one, at least, where they are tried at all."""
LEAST_STEPS, STEP_ROWS = 1500, 256
"""Steps that an iterative student should get however few the real rows are, and the rows that a step takes."""
TEXT_TIMES = 4.0
"""Augmented texts a real one, at most: a teacher of texts takes long, and what is made is less new each time."""
SMALL_ROWS, SMALL_TREE_REPEAT = 5000, 10
"""Below so many real rows, trees too get more augmented rows a real one."""
SQL_TREE_TIMES = 8.0
"""Augmented rows a real one that teach trees for SQL, at most; ``MORE`` times as many where one is among the best."""
LITTLE = 0.1
"""The alpha where labels alone are best: the teacher smooths them, and no more (Yuan et al. 2020)."""
MORE, MOST_ROWS, LEAST_MORE = 3, 300_000, 1.5
"""How many times the augmented rows of the screen the best are trained on, up to so many rows; less than the last number of times
is not worth a training."""


class Recipes:
    """The recipes for a problem's rows; ``has_label`` says whether labels choose, so that a control can be had."""

    def __init__(self, config: Config, rows: Rows, *, has_label: bool) -> None:
        self.config = config
        self.rows = rows
        self.task = rows.problem.task
        self.has_label = has_label
        self.by_agreement = rows.problem.metric == AGREEMENT

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

    def controls(self, family: str) -> list[Recipe]:
        """Return the recipes of labels alone: as many steps as others take, and fewer where few rows are met so often."""
        if not self.has_label:
            return []
        often = self.repeats(family, len(self.rows.problem.fit))
        sharp = self.temperatures(family)[0]
        return [Recipe(sharp, 0.0, repeat=n) for n in dict.fromkeys((often, min(often, REPEAT)))]

    def mostly_labels(self, control: Recipe) -> Recipe:
        """Return the recipe of a control, with a little of the teacher."""
        return replace(control, alpha=LITTLE, unlabelled=False)

    def to_screen(self, family: str) -> list[Recipe]:
        """Return the recipes that *screen* compares; the control first, or where agreement chooses the teacher."""
        found = self.in_order(family)
        return sorted(found, key=lambda recipe: -recipe.alpha) if self.by_agreement else found

    def in_order(self, family: str) -> list[Recipe]:
        """Return the recipes that *screen* compares, the control first."""
        passes = family in ITERATIVE
        fit = len(self.rows.problem.fit)
        size = self.rows.count_real()
        repeat = self.repeats(family, size)
        kinds = self.rows.kinds()
        sharp, *softer = self.temperatures(family)
        control = self.controls(family)
        real = [Recipe(sharp, alpha, repeat=repeat) for alpha in ((0.5, 1.0) if self.has_label else (1.0,))]
        rest = control[1:]
        if self.rows.has_unlabelled:
            labelled = self.repeats(family, fit)
            rest = [*rest, replace(real[0], repeat=labelled, unlabelled=False)]

        table_most = self.most_repeats(family, size) - (1 if passes else 0)

        def mixed(most: float = table_most, **shares: float) -> tuple[tuple[str, float], ...]:
            rows = float(np.clip(SCREEN_ROWS / size - 1, LEAST_AUGMENTED, most))
            return tuple((kind, round(share * rows, 2)) for kind, share in shares.items())

        words: list[Recipe] = []
        if "word_dropout" in kinds:
            augment = mixed(TEXT_TIMES, word_dropout=0.5, span_exchange=0.5)
            words = [Recipe(sharp, 1.0, augment), *([Recipe(sharp, 0.5, augment)] if self.has_label else [])]
        if "munge" not in kinds:
            soft = [Recipe(t, real[0].alpha, repeat=repeat) for t in softer]
            return [*control[:1], *real[:1], *words[:1], *real[1:], *soft, *words[1:], *rest]
        if passes:
            first = mixed(munge=0.8, spunge=0.2)
            made = [
                *words[:1],
                Recipe(sharp, 1.0, mixed(hot_deck=1.0)),
                Recipe(sharp, 1.0, mixed(munge=0.4, hot_deck=0.4, spunge=0.2)),
            ]
            soft = [Recipe(t, 1.0, first) for t in softer]
            if self.has_label:
                made.append(Recipe(sharp, 0.5, first))
            return [
                *control[:1],
                Recipe(sharp, 1.0, first),
                *soft[:1],
                *real[:1],
                *made,
                *real[1:],
                *soft[1:],
                *rest,
            ]
        made = [*words[:1], Recipe(sharp, 1.0, mixed(hot_deck=1.0)), Recipe(sharp, 1.0, mixed(munge=1.0))]
        if self.has_label:
            made.append(Recipe(sharp, 0.5, mixed(hot_deck=1.0)))
        if "thresholds" in kinds:
            made.append(Recipe(sharp, 1.0, mixed(thresholds=0.5, hot_deck=0.5)))
        soft = [Recipe(t, real[0].alpha) for t in softer]
        # What differs most comes first: patience may end the screen.
        return [*control[:1], *real[:1], *made[:1], *real[1:], *made[1:], *soft, *rest]

    def as_sql(self, family: str, best: Recipe) -> Recipe:
        """Return the recipe by which a family's sizes for SQL are trained: its best.

        Single trees have more leaves there than real rows bear out: the teacher answers many made-up rows for them, where it can
        (born-again trees; Breiman and Shang 1996).
        """
        times = min(SQL_TREE_TIMES, MOST_ROWS / self.rows.count_real())
        made = "hot_deck" in self.rows.kinds() and "hot_deck" not in {*self.rows.broken, *self.rows.exhausted}
        if family != "tree" or not made or times < LEAST_AUGMENTED:
            return best
        return Recipe(self.temperatures(family)[0], 1.0, (("hot_deck", round(times, 2)),))

    def enlarged(self, recipe: Recipe) -> list[Recipe]:
        """Return a recipe with more augmented rows, if that is worth a training."""
        real = self.rows.count_real(unlabelled=recipe.unlabelled)
        times = min(MORE, MOST_ROWS / real / max(1e-9, sum(factor for _, factor in recipe.augment)))
        if not recipe.augment or times < LEAST_MORE:
            return []
        return [replace(recipe, augment=tuple((kind, round(n * times, 2)) for kind, n in recipe.augment))]
