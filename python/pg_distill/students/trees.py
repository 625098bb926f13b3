"""One tree, boosted trees on soft targets, and a tree teacher's own first trees with refitted leaves."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..errors import FeatureNotSupported
from ..frame import FloatArray, Frame, Task
from ..transfer_set import AUGMENTED, TransferSet
from . import Shape
from .ensemble import (
    ALL,
    LEAF,
    PREDICT_CELLS,
    Columns,
    Ensemble,
    constant_tree,
    cut,
    floor_float32,
    n_outputs,
    quantile_thresholds,
)
from .export import Graph
from .objective import Calibrated, Objective, Steps, backfit, ordering, resolve_targets, take_targets

__all__ = ["Boosted", "FirstTrees", "Tree"]

MOST_TREES = 2600
"""Trees of one student: a multiclass round is a tree a class, and 100 rounds of 26 take 0.1 ms a row."""
PATIENCE, LEAST_PATIENCE = 0.2, 10
"""Share of the rounds, and least number, without a better select loss after which boosting stops."""
RATE, RATE_TREES = 0.08, 8.0
"""The learning rate is RATE + RATE_TREES / rounds, at most 0.5: few trees must take large steps."""
LARGEST_STEP = 1.0
"""Most that a tree adds to a logit: a pure leaf of a rare class would jump by 1/p (letter: 0.65 to 0.89)."""
FEW_ROWS = 5000
"""Rows up to which boosting is tried a second time, with a penalty and a draw of columns for each tree; select chooses.
Of 2,000 rows of magic the log loss falls from 0.364 to 0.349 (25 x 16), of satimage from 0.301 to 0.281 (100 x 31);
of 10,000 rows of letter it rises from 0.165 to 0.189."""
LEAF_PENALTY, COLUMN_SHARE = 5.0, 0.7
"""L2 penalty on leaf values, in units of the Hessian, and the share of the columns that a tree may split, there."""
LEAST_ROWS = 20
"""Rows in a leaf, in large samples."""
MOST_LEAVES = 100_000
"""Leaves of one student: 4 MB of ONNX, and no longer in the processor's cache."""
PENALTIES = (100.0, 10.0, 1.0)
"""L2 penalties on leaf values, in rows, from which the rows of select choose."""
MOST_CELLS = 30_000_000
"""Rows times trees whose leaves are kept in memory while leaf values are fitted: 120 MB."""
BINS = 128
"""Bins of a column while one tree grows."""
LEAST_GAIN = 1e-7
"""A split that lowers the squared error by a smaller share is rounding."""
LEAF_PRIOR = 1.0
"""Rows at the overall mean that are added to each leaf, so that none is sure of itself."""
PROTOTYPE_ROWS = 2000
"""Real rows between which the trees of a prototype split."""
_MODES = {
    b"LEAF": (False, False),
    b"BRANCH_LEQ": (False, False),
    b"BRANCH_LT": (False, True),
    b"BRANCH_GT": (True, False),
    b"BRANCH_GTE": (True, True),
}
"""Of each kind of node: whether its false branch is the one of smaller values; whether it parts before its threshold."""
_DEFAULT_LEFT = 2
"""Bit of LightGBM's decision_type: NaN goes left."""


class Boosted(Calibrated):
    """Gradient boosting on soft targets (LightGBM; Ke et al. 2017).

    The gradient is the distillation loss's own, so that temperature, alpha and unlabelled rows mean what they
    mean to networks. Training uses one thread: bytes are then the same on every machine size.

    Parameters
    ----------
    rounds
        Rounds of boosting, at most; a multiclass round is a tree for each class.
    leaves
        Leaves of a tree, at most.
    """

    family: ClassVar[str] = "boosted"
    softens: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = False

    def __init__(
        self,
        *,
        task: Task,
        n_classes: int,
        temperature: float = 1.0,
        alpha: float = 1.0,
        epochs: int = 10,
        seed: int = 42,
        rounds: int = 100,
        leaves: int = 31,
    ) -> None:
        self.task = task
        self.n_classes = n_classes
        self.temperature = temperature
        self.alpha = alpha
        self.epochs = epochs
        self.seed = seed
        self.rounds = rounds
        self.leaves = leaves

    @classmethod
    def sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return rounds and leaves, fastest first."""
        each = n_outputs(shape.task, shape.n_classes)
        # Fewer trees of more leaves cost less a row than more trees of fewer, and tell apart what interacts.
        sizes = [
            (10, 8),
            (25, 16),
            (50, 16),
            (100, 31),
            (200, 31),
            (300, 31),
            (500, 63),
            (300, 127),
            (300, 255),
        ]
        return [{"rounds": r, "leaves": n} for r, n in sizes if r * each <= MOST_TREES or (r, n) == sizes[0]]

    def prototype(self, data: TransferSet) -> bytes | None:
        """Return as many trees with splits at random: about as fast as those that boosting will grow."""
        outputs = n_outputs(self.task, self.n_classes)
        count = self.rounds * outputs
        return _random_trees(self, data, self.leaves, np.arange(count) % outputs)

    def fit(self, data: TransferSet, select: TransferSet, *, deadline: float | None = None) -> Self:
        """Boost until ``rounds``, the deadline, or the loss on ``select`` no longer falls."""
        self.sharpness_, self.regularised_ = 1.0, False
        self._boost(data, select, self.rounds, deadline)
        if np.count_nonzero(data.source != AUGMENTED) <= FEW_ROWS:
            other = copy.copy(self)
            other.regularised_ = True
            other._boost(data, select, self.rounds, deadline)
            if other.loss_ < self.loss_:
                self.__dict__.update(other.__dict__)
        return self

    def refit(self, data: TransferSet, *, deadline: float | None = None) -> Self:
        """Boost on other rows for as many rounds as ``fit`` found best; nothing is held back."""
        return self._boost(data, data.take(np.arange(0)), max(1, self.rounds_), deadline)

    def _boost(self, data: TransferSet, select: TransferSet, rounds: int, deadline: float | None) -> Self:
        import lightgbm

        goal = resolve_targets(self, data)
        rows = np.flatnonzero(goal.weight > 0)
        goal = take_targets(goal, rows)
        frame = data.frame.take(rows)
        order = ordering(self.task, goal.mean)
        self.columns_ = Columns.fit(frame, order, goal.weight)
        objective = Objective(self.task, self.n_classes, self.temperature, goal)
        select_goal = resolve_targets(self, select)
        outputs = objective.outputs
        limit = np.finfo(np.float32).max
        matrix = np.clip(self.columns_.training_matrix(frame, order, goal.weight), -limit, limit)
        rate = min(0.5, RATE + RATE_TREES / self.rounds)
        parameters = {
            "objective": "none",
            "metric": "none",
            "num_class": outputs,
            "num_leaves": self.leaves,
            "learning_rate": rate,
            "lambda_l2": LEAF_PENALTY if self.regularised_ else 0.0,
            "feature_fraction": COLUMN_SHARE if self.regularised_ else 1.0,
            "max_delta_step": 0.0 if self.task == "regression" else LARGEST_STEP / rate,
            "min_data_in_leaf": max(1, min(LEAST_ROWS, len(rows) // LEAST_ROWS)),
            "bin_construct_sample_cnt": max(len(rows), 1),  # or a NULL may be overlooked
            "seed": self.seed % (1 << 31),
            "deterministic": True,
            "force_col_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        train = lightgbm.Dataset(matrix, params=parameters, free_raw_data=True)
        booster = lightgbm.Booster(parameters, train)
        stopper = None
        if select_goal.weight.any():
            select_matrix = np.clip(self.columns_.matrix(select.frame), -limit, limit)
            booster.add_valid(lightgbm.Dataset(select_matrix, reference=train, params=parameters), "select")
            stopper = Objective(self.task, self.n_classes, self.temperature, select_goal, like=objective)
        self.rounds_, best = 0, np.inf
        self.complete_ = True
        patience = max(LEAST_PATIENCE, int(PATIENCE * self.rounds))
        for number in range(1, rounds + 1):
            if deadline is not None and time.monotonic() > deadline:
                self.complete_ = False
                break
            if booster.update(fobj=lambda scores, _: objective.derivatives(scores)):
                break  # nothing left to split: LightGBM takes the round back
            if stopper is None:
                self.rounds_ = number
            else:
                loss = booster.eval_valid(lambda scores, _: ("loss", stopper.loss(scores), False))[0][2]
                if loss < best:
                    best, self.rounds_ = loss, number
                elif number - self.rounds_ >= patience:
                    break
        self.loss_ = best
        self.model_ = booster.model_to_string(num_iteration=max(1, self.rounds_))
        trees = _read_lightgbm(self.model_, outputs, self.columns_.missing) if self.rounds_ else []
        for tree in trees:
            tree.values[:] *= objective.scale
        self.ensemble_ = Ensemble.join(trees, objective.base).scaled(self.sharpness_)
        return self

    def _sharpen(self, factor: float) -> None:
        self.ensemble_ = self.ensemble_.scaled(factor)

    def predict_logits(self, frame: Frame) -> FloatArray:
        """Return (n, K) logits, (n, 1) values for regression: the values of the leaves that LightGBM itself finds.

        Its own sums are of leaf values off the grid on which ONNX adds (``Ensemble.snapped``): over 500 trees that is 1e-4.
        """
        import lightgbm

        ensemble = self.ensemble_
        out = np.tile(ensemble.base, (len(frame), 1))
        if self.rounds_:
            booster = lightgbm.Booster(model_str=self.model_)
            matrix = self.columns_.matrix(frame)
            trees = booster.num_trees()
            # A tree of n leaves has n - 1 nodes before them.
            sizes = np.diff(np.append(ensemble.roots, len(ensemble.feature)))[:trees]
            first = ensemble.roots[:trees] + sizes // 2
            step = max(1, PREDICT_CELLS // trees)
            for start in range(0, len(matrix), step):
                rows = slice(start, start + step)
                found = booster.predict(matrix[rows], pred_leaf=True, num_threads=1)
                out[rows] = ensemble.sums(first + np.asarray(found, np.int64).reshape(-1, trees))
        return ensemble.to_logits(out, self.task)

    def add_to(self, graph: Graph) -> str:
        """Add the trees to ``graph``; return the name of its logits or values."""
        return self.ensemble_.add_to(graph, self.columns_.add_to(graph), self.task)

    def to_onnx(self) -> bytes:
        """Return one ONNX file: the strings' codes where there are strings, and one node for all trees."""
        return _to_onnx(self, self.columns_, self.ensemble_)

    def to_sql(self, columns: Mapping[str, str] | None = None) -> str:
        """Return the student as one SQL expression; see ``native``."""
        return self.ensemble_.to_sql(self.columns_.to_sql(columns), self.task)

    def describe(self) -> dict[str, object]:
        """Return family, size and hyper-parameters."""
        out = _describe(self) | {"rounds": self.rounds, "leaves": self.leaves}
        if hasattr(self, "ensemble_"):
            out |= {"trees": len(self.ensemble_), "total_leaves": self.ensemble_.n_leaves}
            out["regularised"] = self.regularised_
        return out


class Tree(Calibrated):
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

    def __init__(
        self,
        *,
        task: Task,
        n_classes: int,
        temperature: float = 1.0,
        alpha: float = 1.0,
        epochs: int = 10,
        seed: int = 42,
        leaves: int = 64,
    ) -> None:
        self.task = task
        self.n_classes = n_classes
        self.temperature = temperature
        self.alpha = alpha
        self.epochs = epochs
        self.seed = seed
        self.leaves = leaves

    @classmethod
    def sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return numbers of leaves, fastest first."""
        return [{"leaves": n} for n in (8, 32, 128, 512)]

    def prototype(self, data: TransferSet) -> bytes | None:
        """Return a tree of as many leaves with splits at random."""
        return _random_trees(self, data, self.leaves, np.full(1, ALL))

    def fit(self, data: TransferSet, select: TransferSet, *, deadline: float | None = None) -> Self:
        """Grow to ``leaves`` or until the deadline; keep as many splits as are best on ``select``."""
        self.sharpness_ = 1.0
        goal = resolve_targets(self, data, temperature=1.0)
        rows = np.flatnonzero(goal.weight > 0)
        goal = take_targets(goal, rows)
        frame = data.frame.take(rows)
        target = ordering(self.task, goal.mean)
        self.columns_ = Columns.fit(frame, target, goal.weight)
        objective = Objective(self.task, self.n_classes, 1.0, goal)
        matrix = self.columns_.training_matrix(frame, target, goal.weight)
        weight = objective.soft_weight + objective.hard_weight
        grower = _Grower(matrix, target, weight, self.columns_.missing)
        effects = _leaf_effects(self.task, target, weight)
        select_goal = resolve_targets(self, select, temperature=1.0)
        judge = None
        if select_goal.weight.any():
            judge = Objective(self.task, self.n_classes, 1.0, select_goal, like=objective)
        select_codes = cut(self.columns_.matrix(select.frame), grower.thresholds)
        scores = np.tile(effects(grower.nodes[0]), (len(select_codes), 1))
        members = {0: np.arange(len(select_codes))}
        best, kept = (np.inf if judge is None else judge.loss(scores / objective.scale)), 1
        while len(grower.nodes) < 2 * self.leaves - 1:
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
        self.base_ = objective.base
        self.ensemble_ = Ensemble.join([grower.tree(kept, effects)], self.base_).snapped()
        return self

    def _sharpen(self, factor: float) -> None:
        self.ensemble_ = self.ensemble_.scaled(factor)

    def predict_logits(self, frame: Frame) -> FloatArray:
        """Return (n, K) logits, (n, 1) values for regression."""
        ensemble = self.ensemble_
        return ensemble.to_logits(ensemble.predict(self.columns_.matrix(frame)), self.task)

    def add_to(self, graph: Graph) -> str:
        """Add the tree to ``graph``; return the name of its logits or values."""
        return self.ensemble_.add_to(graph, self.columns_.add_to(graph), self.task)

    def to_onnx(self) -> bytes:
        """Return the tree as one ONNX file."""
        return _to_onnx(self, self.columns_, self.ensemble_)

    def to_sql(self, columns: Mapping[str, str] | None = None) -> str:
        """Return the student as one SQL expression; see ``native``."""
        return self.ensemble_.to_sql(self.columns_.to_sql(columns), self.task)

    def describe(self) -> dict[str, object]:
        """Return family, size and hyper-parameters."""
        out = _describe(self) | {"leaves": self.leaves}
        if hasattr(self, "ensemble_"):
            out["total_leaves"] = self.ensemble_.n_leaves
        return out


class FirstTrees(Calibrated):
    """A tree teacher's own first trees, with leaf values fitted anew to the distillation loss.

    The teacher's splits are the best description of its decision surface there is; boosting puts the most
    useful ones first. Leaf values follow by backfitting over trees.

    Parameters
    ----------
    teacher
        The teacher's ONNX file: one tree ensemble that reads one float input of all features.
    trees
        How many of its trees are kept.
    """

    family: ClassVar[str] = "first_trees"
    softens: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True

    def __init__(
        self,
        *,
        task: Task,
        n_classes: int,
        temperature: float = 1.0,
        alpha: float = 1.0,
        epochs: int = 10,
        seed: int = 42,
        teacher: bytes,
        trees: int = 30,
    ) -> None:
        self.task = task
        self.n_classes = n_classes
        self.temperature = temperature
        self.alpha = alpha
        self.epochs = epochs
        self.seed = seed
        self.teacher = teacher
        self.trees = trees

    @classmethod
    def sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return numbers of trees, fastest first; none where the teacher is no tree ensemble of this form."""
        if shape.teacher is None or any(f.kind == "string" for f in shape.features):
            return []
        whole = _read_onnx(shape.teacher, shape.task, shape.n_classes, len(shape.features))
        if whole is None:
            return []
        each = n_outputs(shape.task, shape.n_classes) if int(whole.target[0]) != ALL else 1
        leaves = np.cumsum(np.diff([*whole.roots, len(whole.feature)]) // 2 + 1)
        sizes = [n * each for n in (5, 15, 50, 150, 400) if n * each < len(whole)]
        return [{"trees": n} for n in sizes if n <= MOST_TREES and leaves[n - 1] <= MOST_LEAVES]

    def _first(self, frame: Frame) -> Ensemble:
        """Return the teacher's first trees; their structure is all that is used."""
        self.columns_ = Columns.fit(frame, np.zeros((len(frame), 1)), np.ones(len(frame)))
        # The teacher's nodes say where NaN goes, in every column.
        self.columns_ = replace(self.columns_, missing=np.ones_like(self.columns_.missing))
        whole = None
        if not frame.string_names and self.columns_.numbers.element == "float":
            whole = _read_onnx(self.teacher, self.task, self.n_classes, len(frame.features))
        if whole is None:
            raise FeatureNotSupported(
                "the teacher is no tree ensemble over one float tensor of the features",
                hint="Leave out the family first_trees.",
            )
        return whole.first(self.trees)

    def prototype(self, data: TransferSet) -> bytes | None:
        """Return the teacher's first trees as they are: as fast as with other leaf values."""
        twin = FirstTrees(
            task=self.task, n_classes=self.n_classes, alpha=self.alpha, teacher=self.teacher, trees=self.trees
        )
        twin.ensemble_ = twin._first(data.frame)
        return twin.to_onnx()

    def fit(self, data: TransferSet, select: TransferSet, *, deadline: float | None = None) -> Self:
        """Fit leaf values with each penalty, from the strongest on, while the loss on ``select`` falls."""
        self.sharpness_ = 1.0
        goal = resolve_targets(self, data)
        rows = np.flatnonzero(goal.weight > 0)
        most = MOST_CELLS // self.trees
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(self.seed).choice(rows, most, replace=False))
        goal = take_targets(goal, rows)
        frame = data.frame.take(rows)
        trees = self._first(frame)
        objective = Objective(self.task, self.n_classes, self.temperature, goal)
        self.base_ = objective.base
        select_goal = resolve_targets(self, select)
        judge = None
        if select_goal.weight.any():
            judge = Objective(self.task, self.n_classes, self.temperature, select_goal, like=objective)
        codes = trees.leaves(self.columns_.matrix(frame)) - trees.roots
        select_codes = trees.leaves(self.columns_.matrix(select.frame)) - trees.roots
        sizes = np.diff([*trees.roots, len(trees.feature)])
        effects = [np.zeros((size, objective.outputs)) for size in sizes]
        best = np.inf
        for strength in PENALTIES if judge is not None else PENALTIES[1:2]:
            blocks = [
                Steps(
                    codes[:, t],
                    select_codes[:, t],
                    np.full(sizes[t], strength),
                    effect.copy(),
                    None if target == ALL else int(target),
                )
                for t, (effect, target) in enumerate(zip(effects, trees.target, strict=True))
            ]
            loss = backfit(blocks, objective, judge, sweeps=max(1, self.epochs), deadline=deadline)
            if not loss < best:
                break
            best, self.penalty_ = loss, strength
            effects = [block.effect for block in blocks]
        values = np.concatenate(effects) * objective.scale
        if trees.values.shape[1] == 1:
            values = values.sum(axis=1, keepdims=True)  # each tree has written one output only
        self.ensemble_ = Ensemble.join([replace(trees, values=values)], self.base_).snapped()
        return self

    def _sharpen(self, factor: float) -> None:
        self.ensemble_ = self.ensemble_.scaled(factor)

    def predict_logits(self, frame: Frame) -> FloatArray:
        """Return (n, K) logits, (n, 1) values for regression."""
        ensemble = self.ensemble_
        return ensemble.to_logits(ensemble.predict(self.columns_.matrix(frame)), self.task)

    def add_to(self, graph: Graph) -> str:
        """Add the trees to ``graph``; return the name of their logits or values."""
        return self.ensemble_.add_to(graph, self.columns_.add_to(graph), self.task)

    def to_onnx(self) -> bytes:
        """Return the trees as one ONNX file of one node."""
        return _to_onnx(self, self.columns_, self.ensemble_)

    def to_sql(self, columns: Mapping[str, str] | None = None) -> str:
        """Return the student as one SQL expression; see ``native``."""
        return self.ensemble_.to_sql(self.columns_.to_sql(columns), self.task)

    def describe(self) -> dict[str, object]:
        """Return family, size and hyper-parameters."""
        out = _describe(self) | {"trees": self.trees, "epochs": self.epochs}
        if hasattr(self, "penalty_"):
            out |= {"penalty": self.penalty_, "total_leaves": self.ensemble_.n_leaves}
        return out


class _Node:
    """A node while its tree grows: its rows, their sums a bin, and its best split."""

    def __init__(self, rows: npt.NDArray[np.intp], histogram: FloatArray) -> None:
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
    ) -> None:
        self.thresholds = [quantile_thresholds(column, BINS) for column in matrix.T]
        codes = cut(matrix, self.thresholds)
        self.bins = BINS + 1
        last = np.array([len(t) for t in self.thresholds])
        codes[codes > last] = BINS  # NULL
        self.codes = codes
        self.weighted = np.column_stack([weight, target * weight[:, None]])
        self.least = max(1.0, min(float(LEAST_ROWS), len(matrix) / LEAST_ROWS))
        # A split behind the last value that was seen parts numbers from NULL.
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
            weights = np.maximum(left[0], self.least), np.maximum(right[0], self.least)
            score = (left[1:] ** 2).sum(axis=0) / weights[0] + (right[1:] ** 2).sum(axis=0) / weights[1]
            score = np.where(fits, score, -np.inf)
            at = int(np.argmax(score))
            gain = float(score.ravel()[at]) - now
            if gain > node.gain and gain > LEAST_GAIN * now:
                node.gain, node.missing_left = gain, missing_left
                node.feature, node.bin = divmod(at, BINS)

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
        node.left, node.right, node.is_split = len(self.nodes), len(self.nodes) + 1, True
        node.histogram, node.rows = node.histogram[:, :0], node.rows[:0]
        for side in (0, 1):
            child = _Node(parts[side], pair[0] if side == small else pair[1])
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
        if task == "binary":
            clipped = np.clip(mean, floor, 1 - floor)
            return np.asarray(np.log(clipped / (1 - clipped)))
        logs = np.log(np.maximum(mean, floor))
        return np.asarray(logs - logs.mean())

    start = logits(prior)

    def effect(node: _Node) -> FloatArray:
        return logits((node.sums[1:] + LEAF_PRIOR * prior) / (node.sums[0] + LEAF_PRIOR)) - start

    return effect


def _describe(student: Any) -> dict[str, object]:
    out: dict[str, object] = {
        "family": student.family,
        "temperature": student.temperature,
        "alpha": student.alpha,
        "seed": student.seed,
    }
    if hasattr(student, "sharpness_"):
        out["sharpness"] = student.sharpness_
    return out


def _random_trees(student: Any, data: TransferSet, leaves: int, target: npt.NDArray[Any]) -> bytes:
    """Return balanced trees, one for each of ``target``, which split between real rows at random."""
    rng = np.random.default_rng(0)
    columns = Columns.fit(data.frame, np.zeros((len(data), 1)), np.ones(len(data)))
    limit = np.finfo(np.float32).max
    sample = np.arange(min(len(data), PROTOTYPE_ROWS))
    matrix = np.clip(columns.matrix(data.frame.take(sample)), -limit, limit)
    count, nodes = len(target), 2 * leaves - 1
    place = np.tile(np.arange(nodes), count)
    is_leaf = place >= leaves - 1
    feature = np.where(is_leaf, LEAF, rng.integers(0, matrix.shape[1], count * nodes))
    threshold = np.nan_to_num(matrix[rng.integers(0, len(matrix), count * nodes), np.maximum(feature, 0)])
    roots = np.arange(count) * nodes
    below = np.where(is_leaf, 0, 2 * place + 1) + np.repeat(roots, nodes)
    outputs = n_outputs(student.task, student.n_classes)
    values = rng.standard_normal((count * nodes, outputs if target[0] == ALL else 1)) / count
    ensemble = Ensemble(
        feature.astype(np.int32),
        np.where(is_leaf, 0, threshold).astype(np.float32),
        below.astype(np.int32),
        (below + 1).astype(np.int32),
        np.zeros(count * nodes, bool),
        values,
        roots.astype(np.int32),
        target.astype(np.int32),
        np.zeros(outputs),
    )
    return _to_onnx(student, columns, ensemble)


def _to_onnx(student: Any, columns: Columns, ensemble: Ensemble) -> bytes:
    graph = Graph(columns.numbers)
    output = "value" if student.task == "regression" else "probabilities"
    ensemble.add_to(graph, columns.add_to(graph), student.task, output=output)
    return graph.close(student.task, student.n_classes, student.describe())


def _read_lightgbm(text: str, outputs: int, missing: npt.NDArray[np.bool_]) -> list[Ensemble]:
    """Return the trees of a LightGBM model (its text format, version 4) one by one.

    Nodes come before leaves; a child below zero is the complement of a leaf.
    """
    trees = []
    for number, block in enumerate(text.split("\nend of trees")[0].split("\nTree=")[1:]):
        fields = dict(line.split("=", 1) for line in block.splitlines()[1:] if "=" in line)
        leaf_values = np.array(fields["leaf_value"].split(), np.float64)
        inner, leaves = len(leaf_values) - 1, len(leaf_values)
        if not inner:
            tree = constant_tree(number % outputs)
            tree.values[0, 0] = leaf_values[0]
            trees.append(tree)
            continue
        feature = np.array(fields["split_feature"].split(), np.int32)
        kinds = np.array(fields["decision_type"].split(), np.int64)

        def children(name: str, fields: dict[str, str] = fields, inner: int = inner) -> npt.NDArray[np.int32]:
            child = np.array(fields[name].split(), np.int64)
            return np.where(child >= 0, child, inner + ~child).astype(np.int32)

        pad = np.zeros(leaves, np.int32)
        threshold = floor_float32(np.array(fields["threshold"].split(), np.float64))
        trees.append(
            Ensemble(
                np.concatenate([feature, np.full(leaves, LEAF, np.int32)]),
                np.concatenate([threshold, np.zeros(leaves, np.float32)]),
                np.concatenate([children("left_child"), pad]),
                np.concatenate([children("right_child"), pad]),
                np.concatenate([((kinds & _DEFAULT_LEFT) != 0) & missing[feature], pad.astype(bool)]),
                np.concatenate([np.zeros(inner), leaf_values])[:, None],
                np.zeros(1, np.int32),
                np.full(1, number % outputs, np.int32),
                np.zeros(0),
            )
        )
    return trees


def _read_onnx(artifact: bytes, task: Task, n_classes: int, features: int) -> Ensemble | None:
    """Return the trees of a teacher; None where it is not one tree ensemble over one float tensor of all features."""
    import onnx

    graph = onnx.load_from_string(artifact).graph
    ensembles = [n for n in graph.node if n.op_type in ("TreeEnsembleClassifier", "TreeEnsembleRegressor")]
    if len(ensembles) != 1 or len(graph.input) != 1 or len(ensembles[0].input) != 1:
        return None
    tensor, source = graph.input[0].type.tensor_type, ensembles[0].input[0]
    for node in graph.node:
        if source in node.output and node.op_type in ("Identity", "Cast") and len(node.input) == 1:
            source = node.input[0]
    shape = tensor.shape.dim
    if source != graph.input[0].name or tensor.elem_type != onnx.TensorProto.FLOAT:
        return None
    if len(shape) != 2 or shape[1].dim_value not in (0, features):
        return None
    given = {a.name: onnx.helper.get_attribute_value(a) for a in ensembles[0].attribute}
    modes = np.array(given.get("nodes_modes", []), "S16")
    if not set(modes.tolist()) <= set(_MODES) or "nodes_values" not in given:
        return None
    prefix = "class" if ensembles[0].op_type.endswith("Classifier") else "target"
    order = np.lexsort((np.array(given["nodes_nodeids"]), np.array(given["nodes_treeids"])))
    trees, ids = (np.array(given[name], np.int64)[order] for name in ("nodes_treeids", "nodes_nodeids"))
    place = {pair: i for i, pair in enumerate(zip(trees.tolist(), ids.tolist(), strict=True))}
    is_leaf = modes[order] == b"LEAF"
    feature = np.array(given["nodes_featureids"], np.int32)[order]
    if len(place) < len(ids) or (len(feature) and feature[~is_leaf].max(initial=0) >= features):
        return None
    threshold = np.array(given["nodes_values"], np.float32)[order]
    kinds = np.array([_MODES[m] for m in modes[order].tolist()], bool).reshape(-1, 2)
    with np.errstate(over="ignore", under="ignore"):
        threshold = np.where(kinds[:, 1], np.nextafter(threshold, np.float32(-np.inf)), threshold)
    tracks = np.array(given.get("nodes_missing_value_tracks_true") or np.zeros(len(ids)), bool)[order]

    def child(name: str) -> npt.NDArray[np.int32]:
        found = np.array(given[name], np.int64)[order].tolist()
        pairs = zip(trees.tolist(), found, is_leaf.tolist(), strict=True)
        return np.array([0 if leaf else place.get((t, n), -1) for t, n, leaf in pairs], np.int32)

    true, false = child("nodes_truenodeids"), child("nodes_falsenodeids")
    roots = np.flatnonzero(np.diff(trees, prepend=trees[0] - 1)).astype(np.int32)
    reached = np.concatenate([true[~is_leaf], false[~is_leaf]])
    # The root must come first, as all exporters write it, and each other node have one parent.
    if (reached < 0).any() or len(np.unique(reached)) != len(reached) or np.isin(roots, reached).any():
        return None
    swapped = kinds[:, 0]
    outputs = n_outputs(task, n_classes)
    target = np.full(len(roots), ALL if outputs > 1 else 0, np.int32)
    if outputs > 1:
        owners = np.array(given[f"{prefix}_treeids"], np.int64)
        written = np.array(given[f"{prefix}_ids"], np.int64)
        each = [np.unique(written[owners == tree]) for tree in trees[roots]]
        if all(len(e) == 1 for e in each):
            target = np.array([e[0] for e in each], np.int32)
    width = outputs if outputs > 1 and target[0] == ALL else 1
    return Ensemble(
        np.where(is_leaf, LEAF, feature).astype(np.int32),
        np.where(is_leaf, np.float32(0), threshold).astype(np.float32),
        np.where(swapped, false, true).astype(np.int32),
        np.where(swapped, true, false).astype(np.int32),
        (tracks != swapped) & ~is_leaf,
        np.zeros((len(ids), width)),
        roots,
        target,
        np.zeros(outputs),
    )
