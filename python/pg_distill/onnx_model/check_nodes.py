"""What single nodes may be, beyond their operator's rule: windows, trees, linear models."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from pg_distill.errors import (
    InvalidArtifact,
    LimitExceeded,
)
from pg_distill.onnx_model.limits import Limits
from pg_distill.onnx_model.nodes import (
    attributes_of,
    ints,
    labels_of,
    linear_outputs,
)

__all__ = ["check_linear", "check_tokenizer", "check_trees", "check_window"]

_TREE_ID_BOUND = 1 << 31  # no exporter's ids of trees and nodes are beyond; a joint key must not overflow


_WINDOW_ATTRIBUTES = frozenset(
    {"dilations", "group", "inputdimensions", "kernel_shape", "num_groups", "num_outputs", "strides"}
)
"""Attributes that count columns or steps."""


TREE_TEXTS = frozenset(
    {"nodes_modes"}
)  # as many as there are nodes of trees, which have a limit of their own


def check_window(node: onnx.NodeProto, limits: Limits) -> None:
    """Refuse steps of zero, by which older releases of onnxruntime divide, and columns that nobody has."""
    for attribute in node.attribute:
        if attribute.name not in _WINDOW_ATTRIBUTES:
            continue
        values = [attribute.i] if attribute.type == onnx.AttributeProto.INT else list(attribute.ints)
        if min(values, default=1) < 1 or max(values, default=1) > limits.features:
            raise InvalidArtifact(
                f'attribute "{attribute.name}" of operator "{node.op_type}" is out of range'
            )


def check_trees(node: onnx.NodeProto, limits: Limits) -> None:
    """Refuse what is not a forest: onnxruntime trusts ids, and a wrong one reads outside the ensemble."""
    what = f'node "{node.name or node.op_type}"'
    given = attributes_of(node)
    tree, ids = ints(given, "nodes_treeids"), ints(given, "nodes_nodeids")
    count = len(ids)
    if count > limits.tree_nodes:
        raise LimitExceeded(f"{what} has {count} tree nodes, limit is {limits.tree_nodes}")
    names = ("nodes_truenodeids", "nodes_falsenodeids", "nodes_featureids")
    true, false, features = (ints(given, name) for name in names)
    modes = np.array(given.get("nodes_modes", []), dtype="S16")
    values = given.get("nodes_values", np.zeros(0))
    if count == 0 or any(len(a) != count for a in (tree, true, false, features, modes, values)):
        raise InvalidArtifact(f"{what} has attributes of different lengths")
    for optional in ("nodes_hitrates", "nodes_missing_value_tracks_true"):
        if len(given.get(optional, ())) not in (0, count):
            raise InvalidArtifact(f'{what} has attribute "{optional}" of another length')
    if not np.isin(modes, _TREE_MODES).all():
        raise InvalidArtifact(f"{what} has an unknown branch mode")
    leaf = modes == b"LEAF"
    branch = np.flatnonzero(~leaf)
    kind = "class" if node.op_type == "TreeEnsembleClassifier" else "target"
    at_tree, at_node, target = (ints(given, f"{kind}_{name}") for name in ("treeids", "nodeids", "ids"))
    for given_ids in (tree, ids, true[branch], false[branch], features[branch], at_tree, at_node):
        if len(given_ids) and (given_ids.min() < 0 or given_ids.max() >= _TREE_ID_BOUND):
            raise InvalidArtifact(f"{what} has an id out of range")
    keys = tree * _TREE_ID_BOUND + ids
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    if (ordered[1:] == ordered[:-1]).any():
        raise InvalidArtifact(f"{what} has two nodes of one id")

    def find(trees: npt.NDArray[np.int64], nodes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        wanted = trees * _TREE_ID_BOUND + nodes
        at = np.minimum(np.searchsorted(ordered, wanted), count - 1)
        if (ordered[at] != wanted).any():
            raise InvalidArtifact(f"{what} refers to a node that does not exist")
        return order[at]

    children = np.full((2, count), -1, np.int64)
    children[0, branch], children[1, branch] = (
        find(tree[branch], true[branch]),
        find(tree[branch], false[branch]),
    )
    starts = np.flatnonzero(np.r_[True, tree[1:] != tree[:-1]])
    if len(starts) != len(np.unique(tree)):
        raise InvalidArtifact(f"{what} has a tree in pieces")
    _check_forest(what, starts, children, leaf, limits)
    weights = given.get(f"{kind}_weights", np.zeros(0))
    if not len(weights) == len(at_tree) == len(at_node) == len(target) or not len(target):
        raise InvalidArtifact(f"{what} has {kind} attributes of different lengths")
    if not leaf[find(at_tree, at_node)].all():
        raise InvalidArtifact(f"{what} has a weight on a node that is not a leaf")
    outputs = labels_of(given, what) if kind == "class" else int(given.get("n_targets", 1))
    if outputs > limits.classes:
        raise LimitExceeded(f"{what} has {outputs} outputs, limit is {limits.classes}")
    if target.min() < 0 or target.max() >= outputs:
        raise InvalidArtifact(f"{what} has a weight for an output that does not exist")
    if len(given.get("base_values", ())) not in (0, 1, outputs):
        raise InvalidArtifact(f"{what} has {len(given['base_values'])} base values for {outputs} outputs")


def _check_forest(
    what: str,
    roots: npt.NDArray[np.int64],
    children: npt.NDArray[np.int64],
    leaf: npt.NDArray[np.bool_],
    limits: Limits,
) -> None:
    """Refuse cycles, and nodes that no root reaches.

    A node may have several parents: exporters write a set of categories as a chain of equalities, whose true branches meet.
    """
    parents = np.bincount(children[:, ~leaf].reshape(-1), minlength=len(leaf))
    if parents[roots].any():
        raise InvalidArtifact(f"{what} has a cycle")
    waiting, taken = parents.copy(), np.zeros(len(leaf), bool)
    level, depth = roots, 0
    while len(level):
        taken[level] = True
        depth += 1
        if depth > limits.tree_depth:
            raise LimitExceeded(f"{what} has a tree deeper than {limits.tree_depth}")
        below = children[:, level[~leaf[level]]].reshape(-1)
        np.subtract.at(waiting, below, 1)
        # A node's turn comes after the last of its parents': a node within a cycle never has it.
        level = np.unique(below[waiting[below] == 0])
    if not taken.all():
        beside = bool((parents[~taken] == 0).any())
        raise InvalidArtifact(f"{what} has {'a node that no root reaches' if beside else 'a cycle'}")


_TREE_MODES = np.array(
    [b"LEAF", b"BRANCH_LEQ", b"BRANCH_LT", b"BRANCH_GTE", b"BRANCH_GT", b"BRANCH_EQ", b"BRANCH_NEQ"]
)


def check_linear(node: onnx.NodeProto, limits: Limits) -> None:
    """Refuse coefficients that do not fit the classes: onnxruntime divides one length by the other."""
    what = f'node "{node.name or node.op_type}"'
    given = attributes_of(node)
    coefficients = len(given.get("coefficients", ()))
    if node.op_type.startswith("Linear"):
        intercepts = len(given.get("intercepts", ()))
        rows = linear_outputs(node, given)
        if rows > limits.classes:
            raise LimitExceeded(f"{what} has {rows} outputs, limit is {limits.classes}")
        # A binary classifier may have one row of coefficients for its two classes.
        for n in (rows, 1) if rows == 2 else (rows,):
            if n > 0 and coefficients and coefficients % n == 0 and intercepts in (0, n):
                return
        raise InvalidArtifact(
            f"{what} has {coefficients} coefficients and {intercepts} intercepts for {rows} outputs"
        )
    if len(given.get("kernel_params", ())) not in (0, 3):
        raise InvalidArtifact(f"{what} has {len(given['kernel_params'])} kernel parameters, expected 3")
    rho = len(given.get("rho", ()))
    if node.op_type == "SVMRegressor":
        vectors, pairs, dual = int(given.get("n_supports", 0)), 1, 1
    else:
        classes = labels_of(given, what)
        per_class = ints(given, "vectors_per_class")
        if len(per_class) not in (0, classes) or (per_class < 0).any():
            raise InvalidArtifact(
                f"{what} has support vectors of {len(per_class)} classes, expected {classes}"
            )
        vectors, pairs, dual = int(per_class.sum()), classes * (classes - 1) // 2, classes - 1
    values = len(given.get("support_vectors", ()))
    if vectors < 0 or bool(vectors) != bool(values) or (vectors and values % vectors):
        raise InvalidArtifact(f"{what} has {values} support vector values for {vectors} vectors")
    if rho < 1 or (vectors and (rho != pairs or coefficients != vectors * dual)):
        raise InvalidArtifact(f"{what} has {coefficients} coefficients and {rho} rho for {vectors} vectors")
    for name in ("prob_a", "prob_b"):
        if len(given.get(name, ())) not in (0, pairs):
            raise InvalidArtifact(f'{what} has attribute "{name}" of another length')


_TOKENIZER = {
    "mark": (onnx.AttributeProto.INT, True),
    "mincharnum": (onnx.AttributeProto.INT, True),
    "pad_value": (onnx.AttributeProto.STRING, True),
    "separators": (onnx.AttributeProto.STRINGS, False),
    "tokenexp": (onnx.AttributeProto.STRING, False),
}
"""Its attributes, and whether each must be there: onnx knows the definitions of its own domains only."""


def check_tokenizer(node: onnx.NodeProto, version: int) -> None:
    """Hold onnxruntime's own Tokenizer against its definition."""
    what = f'operator "{node.op_type}"'
    names = [attribute.name for attribute in node.attribute]
    if version != 1:
        raise InvalidArtifact(f"{what} is not in version {version} of its domain")
    if len(set(names)) < len(names) or (len(node.input), len(node.output)) != (1, 1) or not node.input[0]:
        raise InvalidArtifact(f"{what} has an attribute twice, or another number of inputs or outputs")
    for attribute in node.attribute:
        if attribute.name not in _TOKENIZER or attribute.type != _TOKENIZER[attribute.name][0]:
            raise InvalidArtifact(f'{what} has no attribute "{attribute.name}" of this type')
    for name, (_, needed) in _TOKENIZER.items():
        if needed and name not in names:
            raise InvalidArtifact(f'{what} lacks attribute "{name}"')
