"""Boosted trees on soft targets."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pg_distill.errors import FeatureNotSupported
from pg_distill.frame import FloatArray, Frame
from pg_distill.students.columns import Columns
from pg_distill.students.ensemble import (
    LEAF,
    PREDICT_CELLS,
    Ensemble,
    constant_tree,
    floor_float32,
    n_outputs,
)
from pg_distill.students.expression import USUAL_LEAF_BYTES
from pg_distill.students.families import Setup, Shape
from pg_distill.students.objective import Objective, ordering, resolve_targets, take_targets
from pg_distill.students.text_numbers import TextNumbers
from pg_distill.students.transfer_set import AUGMENTED, TransferSet
from pg_distill.students.tree_student import LEAST_ROWS, MOST_TREES, TreeStudent

__all__ = ["Boosted"]

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
SQL_SIZES = ((10, 63), (20, 63), (10, 255))
"""Rounds and leaves that are tried as SQL, beside the others."""
SQL_TREES, MAX_SQL_BYTES = 60, 300_000
"""Trees there at most, of all classes, and bytes of their expression: more take a row longer than a small network does."""
LEAF_PENALTY, COLUMN_SHARE = 5.0, 0.7
"""L2 penalty on leaf values, in units of the Hessian, and the share of the columns that a tree may split, there."""
_DEFAULT_LEFT = 2
"""Bit of LightGBM's decision_type: NaN goes left."""


class Boosted(TreeStudent):
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

    def __init__(self, setup: Setup, *, rounds: int = 100, leaves: int = 31) -> None:
        super().__init__(setup)
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
        # Of texts alone there are scores and topics, of which few rows fill few leaves; a large shape takes a second to measure.
        most = max(sizes[3][1], shape.n_rows // LEAST_ROWS) if shape.only_texts else sizes[-1][1]
        return [
            {"rounds": r, "leaves": n}
            for r, n in sizes
            if (r * each <= MOST_TREES and n <= most) or (r, n) == sizes[0]
        ]

    @classmethod
    def sql_sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return few trees of many leaves: a row pays for the depth of a tree, not for the length of an expression.

        Of flights 10 trees of 255 leaves tell 0.787 of the test rows, 25 of 16 leaves, which take as long, 0.776.
        """
        each = n_outputs(shape.task, shape.n_classes)
        return [
            {"rounds": r, "leaves": n}
            for r, n in SQL_SIZES
            if r * each <= SQL_TREES
            and r * each * n * USUAL_LEAF_BYTES <= MAX_SQL_BYTES
            and not shape.has_texts
        ]

    def prototype(self, data: TransferSet) -> bytes | None:
        """Return as many trees with splits at random: about as fast as those that boosting will grow."""
        outputs = n_outputs(self.task, self.n_classes)
        count = self.rounds * outputs
        texts = TextNumbers.of(self, data, prototype=True)
        return self.random_trees(data, self.leaves, np.arange(count) % outputs, texts)

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
        texts, deadline = TextNumbers.and_then(self, data.take(rows), deadline)
        self.columns_ = Columns.fit(frame, order, goal.weight, mean=goal.mean).with_texts(texts)
        objective = Objective(self.task, self.n_classes, self.setup.temperature, goal)
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
            "seed": self.setup.seed % (1 << 31),
            "deterministic": True,
            "force_col_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        directions = self.columns_.directions(self.setup.monotone)
        if directions.any():
            parameters |= {
                "monotone_constraints": directions.tolist(),
                "monotone_constraints_method": "basic",
            }
        train = lightgbm.Dataset(matrix, params=parameters, free_raw_data=True)
        booster = lightgbm.Booster(parameters, train)
        stopper = None
        if select_goal.weight.any():
            select_matrix = np.clip(self.columns_.matrix(select.frame), -limit, limit)
            booster.add_valid(lightgbm.Dataset(select_matrix, reference=train, params=parameters), "select")
            stopper = Objective(
                self.task, self.n_classes, self.setup.temperature, select_goal, like=objective
            )
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
        self.ensemble_ = Ensemble.join(trees, objective.base).scaled(self.sharpness_, self.setup.least_step)
        if not self.ensemble_.keeps(directions):
            raise FeatureNotSupported("LightGBM has not kept the monotone constraints")
        return self

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

    def describe(self) -> dict[str, object]:
        """Return family, size and hyper-parameters."""
        out = super().describe() | {"rounds": self.rounds, "leaves": self.leaves}
        if hasattr(self, "ensemble_"):
            out |= {"trees": len(self.ensemble_), "total_leaves": self.ensemble_.n_leaves}
            out["regularised"] = self.regularised_
            if isinstance(self.columns_.texts, TextNumbers):
                out["ngrams"] = self.columns_.texts.describe()
        return out


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
