"""Decision trees of any library as nodes of ONNX, and one more thing that a tree does well: to find intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from pg_distill.conversion.graph import Graph
from pg_distill.frame import FloatArray

__all__ = ["Tree", "add_trees", "find_intervals"]

FAR = 16.0
"""Leaf values this many times farther from zero than from each other are centred: sums of trees are float32."""


@dataclass
class Tree:
    """One tree: node i splits ``feature`` i at ``threshold`` i, or is a leaf where ``left`` i is -1.

    ``value`` (nodes, outputs) are the leaves' values, or (nodes, 1) where ``target`` says of which output. ``missing_left`` says
    where NaN goes.
    """

    feature: npt.NDArray[np.int64]
    threshold: FloatArray
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    missing_left: npt.NDArray[np.bool_]
    value: FloatArray
    target: int | None = None

    @property
    def leaves(self) -> npt.NDArray[np.int64]:
        """Nodes that are leaves."""
        return np.flatnonzero(self.left < 0)


def add_trees(graph: Graph, x: str, trees: Sequence[Tree], outputs: int, *, strict: bool = False) -> str:
    """Return the float64 tensor (n, outputs) of the sums of trees over ``x``, a float64 tensor.

    ``strict``: a row goes left where x < threshold, else where x <= threshold.
    """
    base = np.zeros(outputs)
    grown: list[Grown] = []
    for tree in map(_reached, trees):
        leaves = tree.leaves
        values = tree.value[leaves]
        targets = slice(None) if tree.target is None else [tree.target]
        low, high = values.min(axis=0), values.max(axis=0)
        middle = (low + high) / 2
        centre = np.where(np.abs(middle) > FAR * (high - low), middle, 0.0)
        base[targets] += centre
        if len(leaves) > 1:
            grown.append((tree, leaves, values - centre))
    if not grown:
        return graph.tile(base, x)
    if graph.precise:
        grown, parts = _in_parts(grown, outputs), PARTS
    else:
        parts = 1
    attributes = _attributes(grown, parts * outputs, strict)
    node = graph.op("TreeEnsembleRegressor", x, domain="ai.onnx.ml", **attributes)
    found = graph.cast(node)
    if parts > 1:
        pieces = [graph.gather(found, range(p * outputs, (p + 1) * outputs)) for p in range(parts)]
        found = pieces[-1]
        for piece in pieces[-2::-1]:
            found = graph.add(piece, found)
    return graph.add(found, base.reshape(1, -1)) if base.any() else found


def _reached(tree: Tree) -> Tree:
    """Return a tree without the nodes that its root does not reach: pruning leaves some behind."""
    order = [0]
    for node in order:  # grows while it is walked
        if tree.left[node] >= 0:
            order.extend((int(tree.left[node]), int(tree.right[node])))
    if len(order) == len(tree.left):
        return tree
    at = np.full(len(tree.left), -1, np.int64)
    at[order] = np.arange(len(order))
    leaf = tree.left[order] < 0
    return Tree(
        tree.feature[order],
        tree.threshold[order],
        np.where(leaf, -1, at[tree.left[order]]),
        np.where(leaf, -1, at[tree.right[order]]),
        tree.missing_left[order],
        tree.value[order],
        tree.target,
    )


Grown = tuple[Tree, npt.NDArray[np.int64], FloatArray]

PARTS = 3
"""Float32 outputs that a sum with float64's digits is given in."""
BITS = 22
"""Of a float32, for a sum that is to be exact in it."""


def _in_parts(grown: Sequence[Grown], outputs: int) -> list[Grown]:
    """Return leaf values in parts of which the sums are exact in float32, one after another in the outputs.

    ONNX Runtime adds in float64 and gives float32. A part is a multiple of a power of two, so coarse that no sum needs more
    digits.
    """
    rest = [np.array(values) for _, _, values in grown]
    found: list[list[FloatArray]] = [[] for _ in grown]
    for part in range(PARTS):
        total = sum(float(np.abs(values).max(initial=0.0)) for values in rest)
        step = 2.0 ** (np.ceil(np.log2(total)) - BITS) if total > 0 else 1.0
        for number, values in enumerate(rest):
            own = values if part == PARTS - 1 else np.round(values / step) * step
            found[number].append(own)
            rest[number] = values - own
    out = []
    for (tree, leaves, _), pieces in zip(grown, found, strict=True):
        wide = np.zeros((len(leaves), PARTS * outputs))
        for part, piece in enumerate(pieces):
            targets = range(outputs) if tree.target is None else [tree.target]
            wide[:, [part * outputs + t for t in targets]] = piece
        out.append((replace(tree, target=None), leaves, wide))
    return out


def _attributes(grown: Sequence[Grown], outputs: int, strict: bool) -> dict[str, object]:
    sizes = [len(tree.left) for tree, _, _ in grown]
    at = np.repeat(np.arange(len(grown)), sizes)
    ids = np.concatenate([np.arange(size) for size in sizes])
    leaf = np.concatenate([tree.left < 0 for tree, _, _ in grown])

    def joined(name: str) -> npt.NDArray[np.int64]:
        return np.where(leaf, 0, np.concatenate([getattr(tree, name) for tree, _, _ in grown])).astype(
            np.int64
        )

    threshold = np.where(leaf, 0.0, np.concatenate([tree.threshold for tree, _, _ in grown]))
    missing = np.concatenate([tree.missing_left for tree, _, _ in grown]) & ~leaf
    tree_ids, node_ids, targets, weights = [], [], [], []
    for number, (tree, leaves, values) in enumerate(grown):
        width = values.shape[1]
        own = np.tile(np.arange(width) if tree.target is None else [tree.target], len(leaves))
        flat = values.reshape(-1)
        keep = np.flatnonzero(flat) if width > 1 else np.arange(len(flat))
        tree_ids.append(np.full(len(keep), number))
        node_ids.append(np.repeat(leaves, width)[keep])
        targets.append(own[keep])
        weights.append(flat[keep])
    attributes: dict[str, object] = {
        "n_targets": outputs,
        "aggregate_function": "SUM",
        "post_transform": "NONE",
        "nodes_treeids": at.tolist(),
        "nodes_nodeids": ids.tolist(),
        "nodes_featureids": joined("feature").tolist(),
        "nodes_modes": np.where(leaf, "LEAF", "BRANCH_LT" if strict else "BRANCH_LEQ").tolist(),
        "nodes_truenodeids": joined("left").tolist(),
        "nodes_falsenodeids": joined("right").tolist(),
        "nodes_values_as_tensor": numpy_helper.from_array(threshold.astype(np.float64), "nodes_values"),
        "target_treeids": np.concatenate(tree_ids).tolist(),
        "target_nodeids": np.concatenate(node_ids).tolist(),
        "target_ids": np.concatenate(targets).tolist(),
        "target_weights_as_tensor": numpy_helper.from_array(
            np.concatenate(weights).astype(np.float64), "target_weights"
        ),
    }
    if missing.any():
        attributes["nodes_missing_value_tracks_true"] = missing.astype(int).tolist()
    return attributes


def find_intervals(graph: Graph, x: str, edges: Sequence[FloatArray], *, right: bool = True) -> str:
    """Return, for each column j of ``x``, which interval between the sorted ``edges`` j a value is in, (n, d) int64 from 0.

    ``right``: an edge belongs to the interval on its right, as numpy.searchsorted with side "right" has it. NaN is in the first.
    """
    trees = [_interval_tree(np.unique(e), feature, np.asarray(e)) for feature, e in enumerate(edges)]
    found = add_trees(graph, x, trees, len(edges), strict=right)
    return graph.cast(graph.add(found, 0.25), np.int64)  # a whole number, of which the cast takes the floor


def _interval_tree(cuts: FloatArray, feature: int, edges: FloatArray) -> Tree:
    """Return a balanced tree whose leaves say how many edges lie below."""
    below = np.searchsorted(edges, cuts, side="left").astype(np.float64)
    nodes: list[tuple[float, int, int, float]] = []

    def grow(low: int, high: int) -> int:
        number = len(nodes)
        if low == high:
            nodes.append((0.0, -1, -1, float(below[low]) if low < len(cuts) else float(len(edges))))
            return number
        middle = (low + high) // 2
        nodes.append((0.0, 0, 0, 0.0))
        left = grow(low, middle)
        nodes[number] = (float(cuts[middle]), left, grow(middle + 1, high), 0.0)
        return number

    grow(0, len(cuts))
    threshold, left, right, value = (np.array(column) for column in zip(*nodes, strict=True))
    count = len(nodes)
    return Tree(
        np.full(count, feature), threshold, left.astype(np.int64), right.astype(np.int64), np.ones(count, bool),
        value.reshape(-1, 1), feature,
    )  # fmt: skip
