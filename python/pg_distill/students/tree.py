"""One decision tree on soft targets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Task
from pg_distill.students.columns import Columns
from pg_distill.students.ensemble import ALL, LEAF, Ensemble, cut, n_outputs, quantile_thresholds
from pg_distill.students.expression import MAX_BYTES, USUAL_LEAF_BYTES
from pg_distill.students.families import Setup, Shape
from pg_distill.students.objective import Objective, ordering, resolve_targets, take_targets
from pg_distill.students.transfer_set import TransferSet
from pg_distill.students.tree_student import LEAST_ROWS, TreeStudent

__all__ = ["Tree"]

SQL_LEAVES = (512, 1024)
"""Leaves of the trees that are tried as SQL, beside the others."""
BINS = 128
"""Bins of a column while one tree grows."""
LEAST_GAIN = 1e-7
"""A split that lowers the squared error by a smaller share is rounding."""
LEAF_PRIOR = 1.0
"""Rows at the overall mean that are added to each leaf, so that none is sure of itself."""


class Tree(TreeStudent):
    """One decision tree on soft targets, whose leaves hold a prediction for every class.

    Grown best split first by the squared error of the target probabilities (for one class that is CART's
    Gini), then cut back to the size that was best on select (Breiman et al. 1984). Leaf logits are logarithms
    of mean probabilities.

    Parameters
    ----------
    leaves
        Leaves at most.
    """

    family: ClassVar[str] = "tree"
    softens: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False

    def __init__(self, setup: Setup, *, leaves: int = 64) -> None:
        super().__init__(setup)
        self.leaves = leaves

    @classmethod
    def sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return numbers of leaves, fastest first; none for a table of texts."""
        return [] if shape.only_texts else [{"leaves": n} for n in (8, 32, 128, 512)]

    @classmethod
    def sql_sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return trees of many leaves: a row takes a path for each output, longer by a step where leaves double.

        Of flights one of 1,024 leaves, taught by eight made-up rows a real one, tells 0.789 of the test rows; without these one
        of 512 tells 0.777.
        """
        outputs = n_outputs(shape.task, shape.n_classes)
        fits = [n for n in SQL_LEAVES if n * outputs * USUAL_LEAF_BYTES <= MAX_BYTES]
        return [] if shape.only_texts else [{"leaves": n} for n in fits]

    def prototype(self, data: TransferSet) -> bytes | None:
        """Return a tree of as many leaves with splits at random."""
        return self.random_trees(data, self.leaves, np.full(1, ALL))

    def fit(self, data: TransferSet, select: TransferSet, *, deadline: float | None = None) -> Self:
        """Grow to ``leaves`` or until the deadline; keep as many splits as are best on ``select``."""
        self.sharpness_ = 1.0
        return self._grow(data, select, self.leaves, deadline)

    def refit(self, data: TransferSet, *, deadline: float | None = None) -> Self:
        """Grow on other rows to as many leaves as ``fit`` found best; nothing is held back."""
        self._grow(data, data.take(np.arange(0)), self.leaves_, deadline)
        return self._sharpen_again()

    def _grow(self, data: TransferSet, select: TransferSet, leaves: int, deadline: float | None) -> Self:
        """Grow to so many leaves; keep those splits that are best on ``select``, without such rows all."""
        goal = resolve_targets(self, data, temperature=1.0)
        rows = np.flatnonzero(goal.weight > 0)
        goal = take_targets(goal, rows)
        frame = data.frame.take(rows)
        target = ordering(self.task, goal.mean)
        self.columns_ = Columns.fit(frame, target, goal.weight, mean=goal.mean)
        objective = Objective(self.task, self.n_classes, 1.0, goal)
        matrix = self.columns_.training_matrix(frame, target, goal.weight)
        weight = objective.soft_weight + objective.hard_weight
        directions = self.columns_.directions(self.setup.monotone)
        grower = _Grower(matrix, target, weight, self.columns_.missing, directions)
        effects = _leaf_effects(self.task, target, weight)
        select_goal = resolve_targets(self, select, temperature=1.0)
        judge = None
        if select_goal.weight.any():
            judge = Objective(self.task, self.n_classes, 1.0, select_goal, like=objective)
        select_codes = cut(self.columns_.matrix(select.frame), grower.thresholds)
        scores = np.tile(effects(grower.nodes[0]), (len(select_codes), 1))
        members = {0: np.arange(len(select_codes))}
        best, kept = (np.inf if judge is None else judge.loss(scores / objective.scale)), 1
        while len(grower.nodes) < 2 * leaves - 1:
            if deadline is not None and time.monotonic() > deadline:
                break
            split = grower.split()
            if split is None:
                break
            if judge is None:
                kept = len(grower.nodes)
                continue
            own = members.pop(split)
            goes_left = grower.goes_left(split, select_codes[own])
            for child, part in (
                (grower.nodes[split].left, goes_left),
                (grower.nodes[split].right, ~goes_left),
            ):
                members[child] = own[part]
                scores[own[part]] = effects(grower.nodes[child])
            loss = judge.loss(scores / objective.scale)
            if loss < best:
                best, kept = loss, len(grower.nodes)
        self.leaves_ = (kept + 1) // 2
        self.base_ = objective.base
        tree = grower.tree(kept, effects)
        self.ensemble_ = Ensemble.join([tree], self.base_).snapped(self.setup.least_step)
        return self

    def describe(self) -> dict[str, object]:
        """Return family, size and hyper-parameters."""
        out = super().describe() | {"leaves": self.leaves}
        if hasattr(self, "ensemble_"):
            out["total_leaves"] = self.ensemble_.n_leaves
        return out


class _Node:
    """A node while its tree grows: its rows, their sums a bin, its best split, and the ends that its mean has to keep within."""

    def __init__(
        self, rows: npt.NDArray[np.intp], histogram: FloatArray, low: float = -np.inf, high: float = np.inf
    ) -> None:
        self.low = low
        self.high = high
        self.rows = rows
        self.histogram = histogram
        """(1 + outputs, columns, bins): weight, and weight times target; the last bin is NULL's."""
        self.sums: FloatArray = histogram[:, 0].sum(axis=1)
        self.feature = LEAF
        self.bin = 0
        self.missing_left = False
        self.gain = 0.0
        self.left = self.right = 0
        self.is_split = False


class _Grower:
    """Grows one tree, best split first, over binned columns."""

    def __init__(
        self,
        matrix: npt.NDArray[np.float32],
        target: FloatArray,
        weight: FloatArray,
        missing: npt.NDArray[np.bool_],
        directions: npt.NDArray[np.int8],
    ) -> None:
        self.directions = directions
        self.prior: FloatArray = np.average(target, axis=0, weights=weight)
        self.thresholds = [quantile_thresholds(column, BINS) for column in matrix.T]
        codes = cut(matrix, self.thresholds)
        self.bins = BINS + 1
        last = np.array([len(t) for t in self.thresholds])
        codes[codes > last] = BINS  # NULL
        self.codes = codes
        self.weighted = np.column_stack([weight, target * weight[:, None]])
        self.least = max(1.0, min(float(LEAST_ROWS), len(matrix) / LEAST_ROWS))
        # A split behind the last value that was seen parts numbers from NULL.
        self.last = last
        ends = last + missing
        self.allowed = np.arange(BINS) < ends[:, None]
        self.missing = missing
        whole = np.arange(len(matrix))
        self.nodes = [_Node(whole, self._histogram(whole))]
        self._find(self.nodes[0])

    def _histogram(self, rows: npt.NDArray[np.intp]) -> FloatArray:
        d = self.codes.shape[1]
        out = np.empty((self.weighted.shape[1], d, self.bins))
        for j in range(d):
            code = self.codes[rows, j]
            for k in range(len(out)):
                out[k, j] = np.bincount(code, weights=self.weighted[rows, k], minlength=self.bins)
        return out

    def _find(self, node: _Node) -> None:
        """Find the split that lowers the squared error most."""
        below = np.cumsum(node.histogram[:, :, :-1], axis=2)
        null = node.histogram[:, :, -1:]
        total = node.sums[:, None, None]
        now = float((node.sums[1:] ** 2).sum() / max(node.sums[0], np.finfo(float).tiny))
        for missing_left in (False, True):
            if missing_left and not self.missing.any():
                break
            left = below + null if missing_left else below
            right = total - left
            fits = self.allowed & (left[0] >= self.least) & (right[0] >= self.least)
            if missing_left:
                fits &= self.missing[:, None]
            if not fits.any():
                continue
            if self.directions.any():
                score, kept = self._bounded(node, left, right)
                now, fits = self._squares(node.sums, self.mean(node)), fits & kept
            else:
                weights = np.maximum(left[0], self.least), np.maximum(right[0], self.least)
                score = (left[1:] ** 2).sum(axis=0) / weights[0] + (right[1:] ** 2).sum(axis=0) / weights[1]
            score = np.where(fits, score, -np.inf)
            at = int(np.argmax(score))
            gain = float(score.ravel()[at]) - now
            if gain > node.gain and gain > LEAST_GAIN * now:
                node.gain, node.missing_left = gain, missing_left
                node.feature, node.bin = divmod(at, BINS)

    def mean(self, node: _Node) -> FloatArray:
        """Return a node's shrunk mean (outputs,), within its ends."""
        return self._means(node, node.sums)

    def _means(self, node: _Node, sums: FloatArray) -> FloatArray:
        """Return the shrunk means of ``sums`` (1 + outputs, ...), within the ends of ``node``."""
        prior = self.prior.reshape(-1, *[1] * (sums.ndim - 1))
        means = (sums[1:] + LEAF_PRIOR * prior) / (sums[0] + LEAF_PRIOR)
        return np.asarray(np.clip(means, node.low, node.high))

    def _squares(self, sums: FloatArray, mean: FloatArray) -> Any:
        """Return by how much an answer ``mean`` to rows of ``sums`` lowers the squared error."""
        return (2.0 * mean * sums[1:] - sums[0] * mean**2).sum(axis=0)

    def _bounded(
        self, node: _Node, left: FloatArray, right: FloatArray
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Return the gains (columns, bins) of splits whose sides keep within the node's ends, and which keep the directions."""
        means = self._means(node, left), self._means(node, right)
        rise = (means[1] - means[0])[0] * self.directions[:, None]
        vacuous = np.arange(BINS) >= self.last[:, None]  # numbers apart from NULL
        gains = self._squares(left, means[0]) + self._squares(right, means[1])
        return np.asarray(gains), (rise >= 0.0) | vacuous

    def _ends(self, node: _Node, parts: Sequence[FloatArray]) -> list[tuple[float, float]]:
        """Return within which ends the means of a node's children have to be, of children with sums ``parts``."""
        own = (node.low, node.high)
        sign = int(self.directions[node.feature])
        if not sign or node.bin >= self.last[node.feature]:
            return [own, own]
        middle = float(np.mean([self._means(node, sums)[0] for sums in parts]))
        below, above = (node.low, middle), (middle, node.high)
        return [below, above] if sign > 0 else [above, below]

    def split(self) -> int | None:
        """Split the leaf that gains most; return it, None where no split gains anything."""
        open_nodes = [i for i, node in enumerate(self.nodes) if not node.is_split and node.gain > 0.0]
        if not open_nodes:
            return None
        chosen = max(open_nodes, key=lambda i: (self.nodes[i].gain, -i))
        node = self.nodes[chosen]
        goes_left = self.goes_left(chosen, self.codes[node.rows])
        parts = [node.rows[goes_left], node.rows[~goes_left]]
        small = 0 if len(parts[0]) <= len(parts[1]) else 1
        histogram = self._histogram(parts[small])
        pair = [histogram, node.histogram - histogram]
        if small:
            pair.reverse()
        ends = self._ends(node, [part[:, 0].sum(axis=1) for part in pair])
        node.left, node.right, node.is_split = len(self.nodes), len(self.nodes) + 1, True
        # Not views, which would keep the whole.
        node.histogram, node.rows = node.histogram[:, :0].copy(), node.rows[:0].copy()
        for side in (0, 1):
            child = _Node(parts[side], pair[side], *ends[side])
            self._find(child)
            self.nodes.append(child)
        return chosen

    def goes_left(self, number: int, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Return which rows of ``codes`` go left at a node."""
        node = self.nodes[number]
        code = codes[:, node.feature]
        is_null = code > len(self.thresholds[node.feature])
        return np.asarray(np.where(is_null, node.missing_left, code <= node.bin), bool)

    def tree(self, kept: int, effects: Callable[[_Node], FloatArray]) -> Ensemble:
        """Return the tree of the first ``kept`` nodes."""
        nodes = self.nodes[:kept]
        inner = [node.is_split and node.left < kept for node in nodes]
        pairs = list(zip(nodes, inner, strict=True))
        cuts = [np.append(t, np.float32(np.inf)) for t in self.thresholds]
        return Ensemble(
            np.array([n.feature if i else LEAF for n, i in pairs], np.int32),
            np.array([cuts[n.feature][n.bin] if i else 0.0 for n, i in pairs], np.float32),
            np.array([n.left if i else 0 for n, i in pairs], np.int32),
            np.array([n.right if i else 0 for n, i in pairs], np.int32),
            np.array([i and n.missing_left and self.missing[n.feature] for n, i in pairs], bool),
            np.array([np.zeros_like(effects(n)) if i else effects(n) for n, i in pairs]),
            np.zeros(1, np.int32),
            np.full(1, ALL, np.int32),
            np.zeros(0),
        )


def _leaf_effects(task: Task, target: FloatArray, weight: FloatArray) -> Callable[[_Node], FloatArray]:
    """Return what gives a node's effect, (outputs,), on top of the base: shrunk means, as logits or values."""
    prior = np.average(target, axis=0, weights=weight)
    floor = 0.5 / len(weight)

    def logits(mean: FloatArray) -> FloatArray:
        if task == "regression":
            return mean
        if task in ("binary", "multilabel"):
            clipped = np.clip(mean, floor, 1 - floor)
            return np.asarray(np.log(clipped / (1 - clipped)))
        logs = np.log(np.maximum(mean, floor))
        return np.asarray(logs - logs.mean())

    start = logits(prior)

    def effect(node: _Node) -> FloatArray:
        mean = (node.sums[1:] + LEAF_PRIOR * prior) / (node.sums[0] + LEAF_PRIOR)
        return logits(np.clip(mean, node.low, node.high)) - start

    return effect
