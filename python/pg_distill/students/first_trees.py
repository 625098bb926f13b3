"""A tree teacher's own first trees, with refitted leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pg_distill.errors import FeatureNotSupported
from pg_distill.frame import Frame, Task
from pg_distill.students.columns import Columns
from pg_distill.students.ensemble import ALL, LEAF, Ensemble, n_outputs
from pg_distill.students.families import Setup, Shape
from pg_distill.students.objective import Objective, Steps, backfit, resolve_targets, take_targets
from pg_distill.students.transfer_set import TransferSet
from pg_distill.students.tree_student import MOST_TREES, TreeStudent

__all__ = ["FirstTrees"]

MOST_LEAVES = 100_000
"""Leaves of one student: 4 MB of ONNX, and no longer in the processor's cache."""
PENALTIES = (100.0, 10.0, 1.0)
"""L2 penalties on leaf values, in rows, from which the rows of select choose."""
MOST_CELLS = 30_000_000
"""Rows times trees whose leaves are kept in memory while leaf values are fitted: 120 MB."""
_MODES = {
    b"LEAF": (False, False),
    b"BRANCH_LEQ": (False, False),
    b"BRANCH_LT": (False, True),
    b"BRANCH_GT": (True, False),
    b"BRANCH_GTE": (True, True),
}
"""Of each kind of node: whether its false branch is the one of smaller values; whether it parts before its threshold."""


class FirstTrees(TreeStudent):
    """A tree teacher's own first trees, with leaf values fitted anew to the distillation loss.

    The teacher's splits are the best description of its decision surface there is; boosting puts the most
    useful ones first. Leaf values follow by backfitting over trees.

    Parameters
    ----------
    setup
        Its teacher is one tree ensemble that reads one float input of all features.
    trees
        How many of its trees are kept.
    """

    family: ClassVar[str] = "first_trees"
    softens: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True

    def __init__(self, setup: Setup, *, trees: int = 30) -> None:
        super().__init__(setup)
        self.trees = trees

    @classmethod
    def sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return numbers of trees, fastest first; none where the teacher is no tree ensemble of this form."""
        if shape.teacher is None or any(f.is_string or f.is_vector for f in shape.features):
            return []
        if shape.task == "multilabel":
            return []  # a tree ensemble of ONNX has one class a row
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
        teacher = self.setup.teacher
        if teacher is not None and not frame.string_names and self.columns_.numbers.element == "float":
            whole = _read_onnx(teacher, self.task, self.n_classes, len(frame.features))
        if whole is None:
            raise FeatureNotSupported(
                "the teacher is no tree ensemble over one float tensor of the features",
                hint="Leave out the family first_trees.",
            )
        return whole.first(self.trees)

    def prototype(self, data: TransferSet) -> bytes | None:
        """Return the teacher's first trees as they are: as fast as with other leaf values."""
        twin = FirstTrees(self.setup, trees=self.trees)
        twin.ensemble_ = twin._first(data.frame)
        return twin.to_onnx()

    def fit(self, data: TransferSet, select: TransferSet, *, deadline: float | None = None) -> Self:
        """Fit leaf values with each penalty, from the strongest on, while the loss on ``select`` falls."""
        self.sharpness_ = 1.0
        return self._backfit(data, select, PENALTIES[1], deadline)

    def refit(self, data: TransferSet, *, deadline: float | None = None) -> Self:
        """Fit other rows down to the penalty that ``fit`` found best; nothing is held back."""
        self._backfit(data, data.take(np.arange(0)), self.penalty_, deadline)
        return self._sharpen_again()

    def _backfit(self, data: TransferSet, select: TransferSet, until: float, deadline: float | None) -> Self:
        """Learn with each penalty while the loss on ``select`` falls, or without such rows down to ``until``."""
        goal = resolve_targets(self, data)
        rows = np.flatnonzero(goal.weight > 0)
        most = MOST_CELLS // self.trees
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(self.setup.seed).choice(rows, most, replace=False))
        goal = take_targets(goal, rows)
        frame = data.frame.take(rows)
        trees = self._first(frame)
        objective = Objective(self.task, self.n_classes, self.setup.temperature, goal)
        self.base_ = objective.base
        select_goal = resolve_targets(self, select)
        judge = None
        if select_goal.weight.any():
            judge = Objective(self.task, self.n_classes, self.setup.temperature, select_goal, like=objective)
        codes = trees.leaves(self.columns_.matrix(frame)) - trees.roots
        select_codes = trees.leaves(self.columns_.matrix(select.frame)) - trees.roots
        sizes = np.diff([*trees.roots, len(trees.feature)])
        effects = [np.zeros((size, objective.outputs)) for size in sizes]
        best = np.inf
        for strength in PENALTIES if judge is not None else PENALTIES[: PENALTIES.index(until) + 1]:
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
            loss = backfit(blocks, objective, judge, sweeps=max(1, self.setup.epochs), deadline=deadline)
            if judge is not None and not loss < best:
                break
            best, self.penalty_ = loss, strength
            effects = [block.effect for block in blocks]
        values = np.concatenate(effects) * objective.scale
        if trees.values.shape[1] == 1:
            values = values.sum(axis=1, keepdims=True)  # each tree has written one output only
        self.ensemble_ = Ensemble.join([replace(trees, values=values)], self.base_).snapped()
        return self

    def describe(self) -> dict[str, object]:
        """Return family, size and hyper-parameters."""
        out = super().describe() | {"trees": self.trees, "epochs": self.setup.epochs}
        if hasattr(self, "penalty_"):
            out |= {"penalty": self.penalty_, "total_leaves": self.ensemble_.n_leaves}
        return out


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
