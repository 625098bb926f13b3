"""Sums of trees: what linear students on bins and all tree students are once they are trained.

One form for all: float32 thresholds, ``x <= threshold`` goes left, NaN goes where the node says. Leaf values
are snapped to a grid on which float32 adds without error, so that ONNX Runtime, numpy and SQL give the same
sums in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Task
from pg_distill.students import expression
from pg_distill.students.export import Graph

__all__ = [
    "ALL",
    "LEAF",
    "PREDICT_CELLS",
    "Ensemble",
    "constant_tree",
    "cut",
    "floor_float32",
    "n_outputs",
    "quantile_thresholds",
]

Float32 = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

FLOAT32_BITS = 24
"""Bits of a float32's mantissa: sums of multiples of a step stay exact below 2**24 steps."""
LEAF = -1
"""In ``Ensemble.feature``: the node is a leaf."""
ALL = -1
"""In ``Ensemble.target``: the tree's leaves have a value for every output."""
PREDICT_CELLS = 1 << 22
"""Rows times trees that are walked at once."""


def floor_float32(values: FloatArray) -> Float32:
    """Return the largest float32 not above each value: ``x <= value`` stays the same for every float32 x."""
    with np.errstate(over="ignore"):
        out = values.astype(np.float32)
        above = out.astype(np.float64) > values
        out[above] = np.nextafter(out[above], np.float32(-np.inf))
    return out


def n_outputs(task: Task, n_classes: int) -> int:
    """Return the number of sums: one for regression and for the log-odds of two classes, else one a class."""
    return n_classes if task in ("multiclass", "multilabel") else 1


@dataclass(frozen=True)
class Ensemble:
    """Trees over a float32 matrix, and their sums.

    Arrays over nodes: ``feature`` (column, LEAF for a leaf), ``threshold`` (float32), ``left``, ``right``
    (nodes), ``missing_left`` (where NaN goes), ``values`` (N, W) (leaf values, W = 1 or the number of
    outputs). Arrays over trees: ``roots`` (nodes), ``target`` (the output a tree adds to, or ALL). ``base``
    has one entry for each output.
    """

    feature: npt.NDArray[np.int32]
    threshold: Float32
    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    missing_left: npt.NDArray[np.bool_]
    values: FloatArray
    roots: npt.NDArray[np.int32]
    target: npt.NDArray[np.int32]
    base: FloatArray

    @classmethod
    def join(cls, parts: Sequence[Ensemble], base: FloatArray) -> Ensemble:
        """Put the trees of several ensembles of equal W into one.

        Every output gets a tree: ONNX Runtime adds the base only to outputs that some leaf has written.
        """
        width = parts[0].values.shape[1] if parts else 1
        written = {int(k) for p in parts for k in p.target}
        bare = [k for k in range(len(base)) if k not in written] if ALL not in written else []
        parts = [*parts, *(constant_tree(k, width) for k in bare)]
        starts = np.cumsum([0, *(len(p.feature) for p in parts)])
        pairs = list(zip(parts, starts.tolist(), strict=False))

        def stack(name: str) -> Any:
            return np.concatenate([getattr(p, name) for p in parts])

        def moved(name: str) -> npt.NDArray[np.int32]:
            return np.concatenate([getattr(p, name) + start for p, start in pairs]).astype(np.int32)

        return cls(
            stack("feature"),
            stack("threshold"),
            moved("left"),
            moved("right"),
            stack("missing_left"),
            stack("values"),
            moved("roots"),
            stack("target"),
            base,
        )

    def __len__(self) -> int:
        return len(self.roots)

    def first(self, trees: int) -> Ensemble:
        """Return the first ``trees`` of them."""
        end = len(self.feature) if trees >= len(self) else int(self.roots[trees])
        own = slice(0, end)
        return Ensemble(
            self.feature[own],
            self.threshold[own],
            self.left[own],
            self.right[own],
            self.missing_left[own],
            self.values[own],
            self.roots[:trees],
            self.target[:trees],
            self.base,
        )

    @property
    def n_leaves(self) -> int:
        """Leaves of all trees."""
        return int((self.feature == LEAF).sum())

    @property
    def used(self) -> Integers:
        """Columns that any node splits, sorted."""
        return np.unique(self.feature[self.feature != LEAF]).astype(np.int64)

    def leaves(self, matrix: Float32) -> npt.NDArray[np.int32]:
        """Return the leaf (node) of each row in each tree, (n, trees)."""
        out = np.empty((len(matrix), len(self.roots)), np.int32)
        for t, root in enumerate(self.roots):
            node = np.full(len(matrix), root, np.int32)
            rows = np.arange(len(matrix))
            while True:
                rows = rows[self.feature[node[rows]] != LEAF]
                if not len(rows):
                    break
                at = node[rows]
                x = matrix[rows, self.feature[at]]
                goes_left = (x <= self.threshold[at]) | (np.isnan(x) & self.missing_left[at])
                node[rows] = np.where(goes_left, self.left[at], self.right[at])
            out[:, t] = node
        return out

    def predict(self, matrix: Float32) -> FloatArray:
        """Return the sums (n, outputs)."""
        out = np.empty((len(matrix), len(self.base)))
        step = max(1, PREDICT_CELLS // max(1, len(self.roots)))
        for start in range(0, len(matrix), step):
            rows = slice(start, start + step)
            out[rows] = self.sums(self.leaves(matrix[rows]))
        return out

    def sums(self, leaves: npt.NDArray[Any]) -> FloatArray:
        """Return the sums (n, outputs) of rows whose ``leaves`` (nodes, of all trees or of the first ones) are known."""
        out = np.empty((len(leaves), len(self.base)))
        found, target = self.values[leaves], self.target[: leaves.shape[1]]
        for k in range(len(self.base)):
            column = k if self.values.shape[1] > 1 else 0
            out[:, k] = self.base[k] + found[:, (target == k) | (target == ALL), column].sum(axis=1)
        return out

    def snapped(self, least: float = 0.0) -> Ensemble:
        """Return the same trees with leaf values and base on a grid that float32 adds exactly.

        The grid's step is 2**-24 of a bound on every partial sum, so a leaf moves by less than float32
        resolves in a sum; or ``least``, a power of two, where that is more.
        """
        bound = self.bound
        if bound == 0.0:
            return self
        step = max(least, 2.0 ** (np.ceil(np.log2(bound)) + 1 - FLOAT32_BITS))
        return replace(
            self, values=np.round(self.values / step) * step, base=np.round(self.base / step) * step
        )

    def scaled(self, factor: float, least: float = 0.0) -> Ensemble:
        """Return the same trees with all sums multiplied by ``factor``, snapped again."""
        return replace(self, values=self.values * factor, base=self.base * factor).snapped(least)

    def keeps(self, directions: npt.NDArray[np.int8]) -> bool:
        """Whether no sum falls (1) or rises (-1) when a column of ``directions`` (d,) rises; NULL is no number.

        It is enough that behind each split of such a column all leaves of larger numbers are no lower, or no higher. A split
        behind all numbers parts them from NULL.
        """
        low, high = self.values.min(axis=1), self.values.max(axis=1)
        for node in range(len(self.feature) - 1, -1, -1):  # children stand behind their parent
            feature = self.feature[node]
            if feature == LEAF:
                continue
            left, right = self.left[node], self.right[node]
            sign = directions[feature]
            if sign and self.threshold[node] < np.inf:
                ordered = high[left] <= low[right] if sign > 0 else low[left] >= high[right]
                if not ordered:
                    return False
            low[node], high[node] = min(low[left], low[right]), max(high[left], high[right])
        return True

    def _bounds(self) -> FloatArray:
        """Return what no partial sum of each output exceeds in size, (outputs,)."""
        tree_of = self._tree_of()
        out = np.abs(self.base)
        for k in range(len(out)):
            column = k if self.values.shape[1] > 1 else 0
            largest = np.zeros(len(self.roots))
            np.maximum.at(largest, tree_of, np.abs(self.values[:, column]) * (self.feature == LEAF))
            out[k] += largest[(self.target == k) | (self.target == ALL)].sum()
        return out

    def _tree_of(self) -> Integers:
        """Return the tree of each node, (N,)."""
        return np.repeat(np.arange(len(self.roots)), np.diff([*self.roots, len(self.feature)]))

    def add_to(self, graph: Graph, matrix: str, task: Task, *, output: str | None = None) -> str:
        """Add the node that sums; return its (n, K) logits, or (n, 1) values.

        With ``output`` the node writes the task's result under that name: probabilities, softmax included, or
        values.
        """
        tree_of = self._tree_of()
        first = self.roots[tree_of]
        own = np.arange(len(self.feature)) - first
        is_leaf = self.feature == LEAF
        zero = np.zeros(len(own), np.int64)
        leaves = np.flatnonzero(is_leaf)
        width = self.values.shape[1]
        outputs = len(self.base)
        shift = 1 if task == "binary" else 0
        which = np.where(self.target == ALL, 0, self.target)[tree_of[leaves]]
        ids = (which[:, None] + np.arange(width)[None, :] + shift).ravel()
        weights = self.values[leaves].ravel()
        attributes: dict[str, Any] = {
            "nodes_treeids": tree_of.tolist(),
            "nodes_nodeids": own.tolist(),
            "nodes_featureids": np.where(is_leaf, zero, self.feature).tolist(),
            "nodes_values": np.where(is_leaf, np.float32(0), self.threshold).astype(np.float32).tolist(),
            "nodes_modes": np.where(is_leaf, "LEAF", "BRANCH_LEQ").tolist(),
            "nodes_truenodeids": np.where(is_leaf, zero, self.left - first).tolist(),
            "nodes_falsenodeids": np.where(is_leaf, zero, self.right - first).tolist(),
            "nodes_missing_value_tracks_true": self.missing_left.astype(np.int64).tolist(),
            "target_treeids": np.repeat(tree_of[leaves], width).tolist(),
            "target_nodeids": np.repeat(own[leaves], width).tolist(),
            "target_ids": ids.tolist(),
            "target_weights": weights.astype(np.float32).tolist(),
            "n_targets": outputs + shift,
            "base_values": [*[0.0] * shift, *self.base.astype(np.float32).tolist()],
        }
        if output is not None and task != "regression":
            attributes["post_transform"] = "LOGISTIC" if task == "multilabel" else "SOFTMAX"
        return graph.node("TreeEnsembleRegressor", [matrix], domain="ai.onnx.ml", output=output, **attributes)

    def to_sql(self, columns: Sequence[expression.Number | expression.Categories]) -> expression.Sums:
        """Return the sums as SQL."""
        sums, unit = expression.tree_sums(self, columns)
        prefix = expression.stage_prefix(column.sql for column in columns)
        return expression.Sums(sums, unit, self.bound / unit, prefix=prefix)

    @property
    def bound(self) -> float:
        """What no sum exceeds in size."""
        return float(max(self._bounds()))

    def to_logits(self, sums: FloatArray, task: Task) -> FloatArray:
        """Return logits (n, K), or values (n, 1), of the sums (n, outputs)."""
        return np.column_stack([np.zeros(len(sums)), sums]) if task == "binary" else sums


def constant_tree(target: int, width: int = 1) -> Ensemble:
    """Return a tree of one leaf that adds nothing."""
    none = np.zeros(1, np.int32)
    return Ensemble(
        np.full(1, LEAF, np.int32),
        np.zeros(1, np.float32),
        none,
        none,
        np.zeros(1, bool),
        np.zeros((1, width)),
        none,
        np.full(1, target, np.int32),
        np.zeros(0),
    )


def quantile_thresholds(column: Float32, bins: int) -> Float32:
    """Return the thresholds, fewer than ``bins``, between steps of equally many rows."""
    limit = np.finfo(np.float32).max
    known = np.clip(column[np.isfinite(column)], -limit, limit)
    distinct = np.unique(known)
    if len(distinct) <= bins:
        # Halfway, so that a value between two that were seen goes to the nearer one.
        low, high = distinct[:-1].astype(np.float64), distinct[1:].astype(np.float64)
        return floor_float32((low + high) / 2)
    chosen = np.unique(np.quantile(known, np.arange(1, bins) / bins, method="lower"))
    return np.asarray(chosen[chosen < distinct[-1]], np.float32)


def cut(matrix: Float32, thresholds: Sequence[Float32]) -> npt.NDArray[np.int32]:
    """Return each cell's step (n, d): how many thresholds of its column lie below it; one more than all for NaN."""
    out = np.empty(matrix.shape, np.int32)
    for j, own in enumerate(thresholds):
        column = matrix[:, j]
        out[:, j] = np.searchsorted(own, column, side="left")
        out[np.isnan(column), j] = len(own) + 1
    return out
