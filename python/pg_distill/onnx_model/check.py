"""What an ONNX file is, before anyone trusts it: limits, rules, signature, logits, thresholds.

Only the trainer's child imports this room: bytes of unknown origin are parsed, checked, loaded and run there first.
`approve` is the one way in, for files that are registered, inserted, restored, imported and offered. It takes these steps,
each of which may refuse:

1. `check` reads the file and refuses what could reach a file or leave the graph.
2. `onnx_survey` works out the shapes of all tensors, and so what a run takes at most. Sizes depend on no feature's value, and no
   value ends the process (`onnx_operators`).
3. `derive_signature` runs what passed on a few rows and finds out what it takes and gives; or a stored signature is held against
   the file.
4. The shapes and values that were worked out are held against a run's.
5. `trial_run` runs as many rows at once as a backend does, within limits of memory and time; then rows of extreme values.
"""

from __future__ import annotations

import math
import re
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from pg_distill.errors import (
    ArtifactCorrupted,
    DatatypeMismatch,
    FeatureNotSupported,
    InvalidArtifact,
    InvalidData,
    InvalidName,
    InvalidParameter,
    LimitExceeded,
    NullNotAllowed,
    PgDistillError,
    UndefinedColumn,
)
from pg_distill.frame import Feature, FloatArray, Frame, Kind, Strings, Task
from pg_distill.onnx_model.cut import prune
from pg_distill.onnx_model.operators import RULES, Tensor, item_bytes
from pg_distill.onnx_model.session import (
    BATCH_ROWS,
    CONVERTED_KEY,
    RUN_BYTES,
    Model,
    first_line,
    open_session,
    runtime_errors,
)
from pg_distill.onnx_model.signature import (
    Cost,
    Element,
    FeatureSpec,
    Form,
    InputSpec,
    Null,
    OutputSpec,
    Signature,
)
from pg_distill.onnx_model.survey import ELEMENT_TYPES, Survey, survey
from pg_distill.onnx_model.values import decode, encode

__all__ = [
    "DEFAULT_LIMITS",
    "PROBABILITY_FLOOR",
    "STUDENT_KEY",
    "Approval",
    "Limits",
    "TeacherModel",
    "approve",
    "check",
    "costed",
    "derive_signature",
    "tree_thresholds",
    "trial_run",
]

STUDENT_KEY = "pg_distill.student"
"""The metadata property that marks a graph as a student of ours: inputs ``numbers`` and ``strings``."""

PROBABILITY_FLOOR = 1e-6
"""Clips probabilities before the logarithm where a graph has no logits; float32 resolves no less near 1."""

_SUM_TOLERANCE = 1e-3  # rows of probabilities sum to one within this: float32 sums of a thousand classes
_LOGITS_TOLERANCE = 1e-5  # logits found in a graph reproduce its probabilities within this, or are not used
_SYNTHETIC_ROWS = 64  # rows made up where none are given: enough that logits leave [0, 1]
_LEAST_ROWS = 4  # rows that a slow model is tried on
_TRY_NS = 10e9  # that a model is tried for, by its cost, which is mostly a tenth of that in fact
_TIE = 1e-6  # between two probabilities, of which either is the most probable class
_DETAIL_CHARACTERS = 1000  # of a row in an error
_ROWS_ALONE = 8  # rows that are predicted alone and in a batch
_TOGETHER_TOLERANCE = 1e-5  # between a row with some rows and with as many others
_ALONE_TOLERANCE = 1e-3  # relative and absolute, between a row alone and in a batch
_PROBE_CELLS = 1 << 20  # cells a run while it is found out which features may be NULL: 4 MB of float32
_TREE_ID_BOUND = 1 << 31  # no exporter's ids of trees and nodes are beyond; a joint key must not overflow
_STRING_BYTES = 32  # of a std::string, beside its text

_WINDOW_ATTRIBUTES = frozenset(
    {"dilations", "group", "inputdimensions", "kernel_shape", "num_groups", "num_outputs", "strides"}
)
"""Attributes that count columns or steps."""

_PASS_THROUGH = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Mul"})
"""Operators that exporters put behind the last activation (Mul: by one)."""

_ELEMENTS: dict[int, Element] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "string",
}
_DEFAULT_KIND: dict[Element, Kind] = {
    "float32": "number",
    "float64": "number",
    "int64": "integer",
    "int32": "integer",
    "bool": "boolean",
    "string": "string",
}
_EXPORTERS_OF_PIPELINES = frozenset({"skl2onnx", "OnnxMLTools", "CatBoost"})
"""Producers whose classifiers always give a label: one number without a label is a regression."""


@dataclass(frozen=True)
class Limits:
    """What an artifact may cost. The defaults are for a database server, not for a GPU farm."""

    artifact_bytes: int = 256 << 20  # a bytea takes 1 GB, but every backend that predicts holds the model
    nodes: int = 10_000  # of the graph: an unrolled network of a thousand layers
    initializers: int = 10_000  # onnxruntime looks for each among all: 100,000 take it 24 s
    parts: int = 500_000  # messages and names in the file: each is an object that is made and kept
    table_entries: int = 1_000_000  # keys of all dictionaries, which a backend reads into its own
    name_characters: int = 1_000  # of a feature, class, input or output
    tree_nodes: int = 10_000_000  # 1,000 trees of 10,000 nodes
    tree_depth: int = 512  # onnxruntime builds trees by recursion; real ones are below 100
    initializer_bytes: int = 256 << 20  # as declared by dims and type, and of what is computed from them
    features: int = 10_000  # a relation has 1,600 columns, an array may have more
    classes: int = 10_000
    tensor_elements: int = 1 << 26  # of one tensor, for one row: 256 MB of float32
    run_bytes: int = RUN_BYTES  # for one run, by the rules and as measured; the setting predict_memory_mb
    run_seconds: float = 10.0  # for one run; the trial's batches stop growing before they would take as long
    node_seconds: float = 0.2  # of one node, by the rules: what an interrupt waits for
    open_seconds: float = 0.2  # by the rules, of what is computed of constants where a session is opened


DEFAULT_LIMITS = Limits()


# -- rules


def check(artifact: bytes, limits: Limits = DEFAULT_LIMITS) -> onnx.ModelProto:
    """Parse ``artifact`` and refuse what breaks a rule or a limit; nothing is loaded or run.

    Raises
    ------
    InvalidArtifact
        Where the bytes are not ONNX, or the graph contradicts itself.
    LimitExceeded
        Where it is larger than ``limits`` allow.
    FeatureNotSupported
        For external data anywhere, local functions, subgraphs, training graphs, other domains, and operators that are not on the
        list.
    """
    if len(artifact) > limits.artifact_bytes:
        raise LimitExceeded(f"model has {len(artifact)} bytes, limit is {limits.artifact_bytes}")
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(artifact)
    except (DecodeError, ValueError, RecursionError, TypeError) as error:
        raise InvalidArtifact("artifact is not readable as ONNX", detail=first_line(error)) from error
    if not model.HasField("graph") or not model.graph.node:
        raise InvalidArtifact("artifact is not readable as ONNX", detail="It holds no graph.")
    if not model.opset_import:
        raise InvalidArtifact("artifact is not readable as ONNX", detail="It names no operator set.")
    if not _graph_inputs(model.graph) or not model.graph.output:
        raise InvalidArtifact("model has no input or no output")
    _check_messages(model, limits)
    versions = _versions(model)
    for node in model.graph.node:
        _check_schema(node, versions)
    _check_order(model.graph)
    for node in model.graph.node:
        _check_window(node, limits)
        if node.op_type.startswith("TreeEnsemble"):
            _check_trees(node, limits)
        elif node.op_type in ("LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor"):
            _check_linear(node, limits)
    return model


def _messages(root: Message) -> Iterator[Message]:
    """Yield ``root`` and every message below it, by the descriptors, so that no field can be forgotten."""
    stack = [root]
    while stack:
        message = stack.pop()
        yield message
        for descriptor, value in message.ListFields():
            if descriptor.message_type is not None:
                stack.extend([value] if isinstance(value, Message) else value)


def _check_messages(model: onnx.ModelProto, limits: Limits) -> None:
    declared = nodes = parts = entries = 0
    if len(model.graph.initializer) > limits.initializers:
        raise LimitExceeded(
            f"model has {len(model.graph.initializer)} initializers, limit is {limits.initializers}"
        )
    for message in _messages(model):
        parts += 1
        for descriptor, value in message.ListFields():
            if descriptor.type != descriptor.TYPE_STRING:
                continue
            texts = [value] if isinstance(value, str | bytes) else value
            parts += len(texts)
            # What is not UTF-8 arrives as bytes.
            if not all(isinstance(v, str) for v in texts):
                raise InvalidArtifact(f'field "{descriptor.name}" of the model is not UTF-8')
        if parts > limits.parts:
            raise LimitExceeded(f"model has over {limits.parts} parts")
        if len(UnknownFieldSet(message)):
            raise FeatureNotSupported("model has fields that this version of ONNX does not know")
        if isinstance(message, onnx.TensorProto):
            declared += _declared_bytes(message)
            if declared > limits.initializer_bytes:
                raise LimitExceeded(f"model declares tensors of over {limits.initializer_bytes} bytes")
        elif isinstance(message, onnx.NodeProto):
            nodes += 1
            if nodes > limits.nodes:
                raise LimitExceeded(f"model has over {limits.nodes} nodes")
            _check_operator(message)
        elif isinstance(message, onnx.FunctionProto):
            raise FeatureNotSupported(f'function "{message.name}" inside the model is not supported')
        elif isinstance(message, onnx.TrainingInfoProto):
            raise FeatureNotSupported("training graph inside the model is not supported")
        elif isinstance(message, onnx.SparseTensorProto):
            raise FeatureNotSupported("sparse tensor inside the model is not supported")
        elif isinstance(message, onnx.AttributeProto):
            if message.name not in _TREE_TEXTS:
                entries += len(message.strings)
                if entries > limits.table_entries:
                    raise LimitExceeded(f"model has dictionaries of over {limits.table_entries} strings")
            if message.HasField("g") or message.graphs:
                raise FeatureNotSupported(f'subgraph in attribute "{message.name}" is not supported')
            if message.ref_attr_name:
                raise FeatureNotSupported(
                    f'attribute "{message.name}" refers to a function, which is not supported'
                )


_TREE_TEXTS = frozenset(
    {"nodes_modes"}
)  # as many as there are nodes of trees, which have a limit of their own


def _check_operator(node: onnx.NodeProto) -> None:
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain not in _DOMAINS:
        raise FeatureNotSupported(f'operator "{name}" is of a domain that is not supported')
    if (domain, node.op_type) not in RULES:
        raise FeatureNotSupported(f'operator "{name}" is not supported')
    if getattr(node, "overload", ""):
        raise FeatureNotSupported(f'operator "{name}" with an overload is not supported')


_DOMAINS = frozenset(domain for domain, _ in RULES)


def _versions(model: onnx.ModelProto) -> dict[str, int]:
    """Return the version of each domain's operators."""
    out: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        # skl2onnx names a domain twice, with one version.
        if out.setdefault(domain, entry.version) != entry.version:
            raise InvalidArtifact(f'model names two versions of operator set "{domain}"')
    return out


def _check_schema(node: onnx.NodeProto, versions: dict[str, int]) -> None:
    """Hold a node against its operator's definition: attributes, their types, the number of inputs and outputs."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    what = f'operator "{node.op_type}"'
    if domain not in versions:
        raise InvalidArtifact(f"{what} is of a domain that the model does not import")
    version = versions[domain]
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except (onnx.defs.SchemaError, TypeError) as error:
        raise FeatureNotSupported(f'{what} is not in version {version} of "{domain or "ai.onnx"}"') from error
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) != len(names):
        raise InvalidArtifact(f"{what} has an attribute twice")
    for attribute in node.attribute:
        defined = schema.attributes.get(attribute.name)
        if defined is None:
            raise InvalidArtifact(f'{what} has no attribute "{attribute.name}"')
        if attribute.type != cast(Any, defined.type).value:
            raise InvalidArtifact(f'attribute "{attribute.name}" of {what} is of a wrong type')
        if attribute.type == onnx.AttributeProto.TENSOR and not attribute.HasField("t"):
            raise InvalidArtifact(f'attribute "{attribute.name}" of {what} holds no tensor')
    for name, defined in schema.attributes.items():
        if defined.required and name not in names:
            raise InvalidArtifact(f'{what} lacks attribute "{name}"')
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise InvalidArtifact(f"{what} has {len(node.input)} inputs")
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise InvalidArtifact(f"{what} has {len(node.output)} outputs")
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    for formal, name in zip(schema.inputs, node.input, strict=False):
        if not name and formal.option == single:
            raise InvalidArtifact(f'{what} lacks input "{formal.name}"')


def _declared_bytes(tensor: onnx.TensorProto) -> int:
    """Return the size that dims and type declare; refuse external data, and data that is not of this size."""
    if tensor.external_data or tensor.data_location != TensorProto.DEFAULT:
        raise FeatureNotSupported(
            f'tensor "{tensor.name}" has external data, which is not supported',
            hint="Save it in one file: onnx.save(onnx.load(path), path), or export it so.",
        )
    if any(d < 0 for d in tensor.dims):
        raise InvalidArtifact(f'tensor "{tensor.name}" has a negative dimension')
    if tensor.HasField("segment"):
        raise FeatureNotSupported(f'tensor "{tensor.name}" is a segment, which is not supported')
    elements: int = math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        if len(tensor.string_data) != elements:
            raise InvalidArtifact(
                f'tensor "{tensor.name}" declares {elements} values, holds {len(tensor.string_data)}'
            )
        return sum(map(len, tensor.string_data)) + _STRING_BYTES * elements
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        field = helper.tensor_dtype_to_field(tensor.data_type)
    except (KeyError, TypeError, ValueError):
        raise InvalidArtifact(f'tensor "{tensor.name}" is of unknown type {tensor.data_type}') from None
    if tensor.data_type not in _TENSOR_TYPES:
        raise FeatureNotSupported(f'tensor "{tensor.name}" is of type {dtype}, which is not supported')
    size = elements * int(dtype.itemsize)
    held = (
        len(tensor.raw_data) if tensor.HasField("raw_data") else len(getattr(tensor, field)) * dtype.itemsize
    )
    if held != size:
        raise InvalidArtifact(f'tensor "{tensor.name}" declares {size} bytes, holds {held}')
    return size


_TENSOR_TYPES = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.BOOL,
        TensorProto.INT8,
        TensorProto.INT16,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.UINT8,
        TensorProto.UINT16,
        TensorProto.UINT32,
        TensorProto.UINT64,
    }
)


def _check_order(graph: onnx.GraphProto) -> None:
    """Refuse a tensor that is read before it is given, or given twice."""
    known = {"", *(value.name for value in _graph_inputs(graph)), *(t.name for t in graph.initializer)}
    if len(known) < 1 + len(_graph_inputs(graph)) + len(graph.initializer):
        raise InvalidArtifact("model has two inputs or initializers of one name, or of none")
    for node in graph.node:
        what = f'operator "{node.op_type}"'
        for name in node.input:
            if name not in known:
                raise InvalidArtifact(f'{what} reads "{name}", which nothing before it gives')
        for name in node.output:
            if name and name in known:
                raise InvalidArtifact(f'{what} gives "{name}", which is given before')
            known.add(name)
    for value in graph.output:
        if not value.name or value.name not in known:
            raise InvalidArtifact(f'output "{value.name}" of the model is given by no node')


def _check_window(node: onnx.NodeProto, limits: Limits) -> None:
    """Refuse steps of zero, by which older releases of onnxruntime divide, and columns that nobody has."""
    for attribute in node.attribute:
        if attribute.name not in _WINDOW_ATTRIBUTES:
            continue
        values = [attribute.i] if attribute.type == onnx.AttributeProto.INT else list(attribute.ints)
        if min(values, default=1) < 1 or max(values, default=1) > limits.features:
            raise InvalidArtifact(
                f'attribute "{attribute.name}" of operator "{node.op_type}" is out of range'
            )


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return attributes as Python values; numbers as arrays."""
    out: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.FLOATS:
            out[attribute.name] = np.array(attribute.floats, np.float64)
        elif attribute.type == onnx.AttributeProto.INTS:
            out[attribute.name] = np.array(attribute.ints, np.int64)
        elif attribute.type == onnx.AttributeProto.TENSOR:
            out[attribute.name.removesuffix("_as_tensor")] = numpy_helper.to_array(attribute.t).reshape(-1)
        else:
            out[attribute.name] = helper.get_attribute_value(attribute)
    return out


def _check_trees(node: onnx.NodeProto, limits: Limits) -> None:
    """Refuse what is not a forest: onnxruntime trusts ids, and a wrong one reads outside the ensemble."""
    what = f'node "{node.name or node.op_type}"'
    given = _attributes(node)
    tree, ids = _ints(given, "nodes_treeids"), _ints(given, "nodes_nodeids")
    count = len(ids)
    if count > limits.tree_nodes:
        raise LimitExceeded(f"{what} has {count} tree nodes, limit is {limits.tree_nodes}")
    names = ("nodes_truenodeids", "nodes_falsenodeids", "nodes_featureids")
    true, false, features = (_ints(given, name) for name in names)
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
    at_tree, at_node, target = (_ints(given, f"{kind}_{name}") for name in ("treeids", "nodeids", "ids"))
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
    outputs = _labels(given, what) if kind == "class" else int(given.get("n_targets", 1))
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


def _ints(given: dict[str, Any], name: str) -> npt.NDArray[np.int64]:
    value = given.get(name, np.zeros(0, np.int64))
    return np.asarray(value, np.int64)


def _check_linear(node: onnx.NodeProto, limits: Limits) -> None:
    """Refuse coefficients that do not fit the classes: onnxruntime divides one length by the other."""
    what = f'node "{node.name or node.op_type}"'
    given = _attributes(node)
    coefficients = len(given.get("coefficients", ()))
    if node.op_type.startswith("Linear"):
        intercepts = len(given.get("intercepts", ()))
        rows = _linear_outputs(node, given)
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
        classes = _labels(given, what)
        per_class = _ints(given, "vectors_per_class")
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


def _labels(given: dict[str, Any], what: str) -> int:
    """Return the number of a classifier's labels: with fewer than two onnxruntime reads beyond their end."""
    lists = [len(given.get(f"classlabels_{kind}", ())) for kind in ("ints", "int64s", "strings")]
    if sum(map(bool, lists)) != 1 or max(lists) < 2:
        raise InvalidArtifact(f"{what} has {sum(lists)} labels, expected at least 2 of one type")
    return max(lists)


def _type_name(element: int) -> str:
    known: dict[int, str] = {value: name for name, value in TensorProto.DataType.items()}
    return known.get(element, str(element))


def _linear_outputs(node: onnx.NodeProto, given: dict[str, Any]) -> int:
    if node.op_type == "LinearRegressor":
        return int(given.get("targets", 1))
    return _labels(given, f'node "{node.name or node.op_type}"')


# -- the graph


def _graph_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return inputs that a caller must give: old exporters list initializers among them."""
    initialized = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in initialized]


def _constants(graph: onnx.GraphProto) -> dict[str, npt.NDArray[Any]]:
    out = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                value: Any
                if attribute.name == "value":
                    value = numpy_helper.to_array(attribute.t)
                else:
                    value = np.asarray(helper.get_attribute_value(attribute))
                out[node.output[0]] = value
    return out


class _Producers:
    """Which node gives which tensor."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.by_output = {name: node for node in graph.node for name in node.output if name}

    def behind(self, name: str) -> onnx.NodeProto | None:
        """Return the node that gives ``name``, past those that only change type or shape."""
        node = self.by_output.get(name)
        while node is not None and node.op_type in _PASS_THROUGH:
            node = self.by_output.get(node.input[0])
        return node

    def upstream(self, name: str) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that ``name`` depends on, the nearest first."""
        seen: set[int] = set()
        queue = [name]
        while queue:
            node = self.by_output.get(queue.pop(0))
            if node is not None and id(node) not in seen:
                seen.add(id(node))
                yield node
                queue.extend(node.input)


# -- the signature


def derive_signature(
    model: onnx.ModelProto,
    *,
    features: Sequence[Feature] | None = None,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
    rows: Frame | None = None,
    limits: Limits = DEFAULT_LIMITS,
    class_threshold: float | None = None,
) -> Signature:
    """Find out what ``model``, which `check` has passed, takes, gives and costs, by its graph and by running it.

    Parameters
    ----------
    features
        The caller's columns. They go to the inputs by name where every input is one column and the names
        agree, else by position; where kinds then do not fit, strings go to the string inputs and the rest
        to the others, each in order. None: those of ``rows``, else named after the inputs, or f0, f1, ...
        for one.
    task, classes
        What the graph leaves open. ``classes`` are in the order of the probabilities.
    rows
        Real rows with these features; without them a few are made up. They tell probabilities from logits,
        and which features may be NULL.
    class_threshold
        The probability from which it names the last of two classes, where that is not one half.

    Raises
    ------
    InvalidData, DatatypeMismatch
        Where features do not fit the inputs in number or in kind, or outputs fit no task.
    FeatureNotSupported
        For inputs and outputs of other types and shapes, sizes that depend on the features' values, and values that could end the
        process.
    LimitExceeded
        Where a run would take more than ``limits`` allow.
    InvalidParameter
        Where ``task`` or ``classes`` contradict the graph, or the graph leaves them open.
    """
    if features is None and rows is not None:
        features = rows.features
    specs, inputs = _inputs(model, features, _whole_strings(rows))
    try:
        found_costs = _survey(model, inputs, limits)
    except InvalidArtifact as error:
        if all(_input_shape(value)[2] is not None for value in _graph_inputs(model.graph)):
            raise
        raise InvalidData(
            f"model does not take {len(features or ())} features", detail=f"{error}."
        ) from error
    draft = Signature(specs, inputs, OutputSpec("", "value", 1), "regression")
    if rows is not None and not len(rows):
        raise InvalidData("no rows to try the model on")
    score, label, zipmap = _outputs(model.graph)
    producers = _Producers(model.graph)
    wanted = [name for name in (score, label) if name]
    draft = replace(draft, cost=_cost(found_costs, wanted, limits))
    frame = _synthetic(draft) if rows is None else _first(rows, draft, BATCH_ROWS)
    raw = _run(model, draft, frame, wanted, limits.run_bytes)
    scores = None if score is None else _matrix(raw[score], score, len(frame))
    labels = None if label is None else _matrix(raw[label], label, len(frame)).reshape(-1)
    output, task = _form(model, producers, score, label, zipmap is not None, scores, task, classes)
    if task == "regression":
        found: tuple[str, ...] = ()
        if classes:
            raise InvalidParameter("classes do not fit a regression")
    else:
        found = _classes(producers, label, zipmap, scores, labels, output, classes)
        _check_task(task, len(found))
        task = "binary" if len(found) == 2 else "multiclass"
    signature = Signature(specs, inputs, output, task, found, _cost(found_costs, [output.name], limits))
    if scores is not None and labels is not None:
        _check_labels(signature, scores, labels, frame, class_threshold)
    return replace(signature, features=_with_nulls(model, signature, frame))


def costed(artifact: bytes, signature: Signature) -> Signature:
    """Return the signature of a file that was approved, with what a run costs."""
    model = onnx.ModelProto.FromString(artifact)
    found = _survey(model, signature.inputs, DEFAULT_LIMITS)
    cost = found.cost([signature.output.name], DEFAULT_LIMITS.node_seconds * 1e9)
    return replace(signature, cost=cost)


def _survey(model: onnx.ModelProto, inputs: Sequence[InputSpec], limits: Limits) -> Survey:
    return survey(
        model.graph,
        inputs,
        _versions(model),
        tensor_elements=limits.tensor_elements,
        node_seconds=limits.node_seconds,
        open_seconds=limits.open_seconds,
        constant_bytes=limits.initializer_bytes,
    )


def _cost(found: Survey, outputs: Sequence[str], limits: Limits) -> Cost:
    """Return what a run takes that gives ``outputs``; LimitExceeded where one row takes too much."""
    cost = found.cost(outputs, limits.node_seconds * 1e9)
    seconds = (cost.fixed_ns + cost.row_ns) / 1e9
    if seconds > limits.run_seconds:
        raise LimitExceeded(f"model may take {seconds:.3g} s for one row, limit is {limits.run_seconds:g} s")
    if cost.rows(limits.run_bytes) < 1:
        raise LimitExceeded(
            f"model may take {cost.bytes(1)} bytes for one row, limit is {limits.run_bytes}",
            hint="An administrator may raise the setting predict_memory_mb.",
        )
    return cost


def _whole_strings(rows: Frame | None) -> frozenset[str]:
    """Return the columns of strings that are digits throughout, as integers beyond 2**53 are: an int64 input takes them."""
    if rows is None:
        return frozenset()
    return frozenset(
        name
        for name in rows.string_names
        if (known := rows.strings(name).categories) and all(map(_DIGITS.fullmatch, known))
    )


_DIGITS = re.compile(r"-?[0-9]{1,19}")


def _inputs(
    model: onnx.ModelProto, features: Sequence[Feature] | None, whole: frozenset[str]
) -> tuple[tuple[FeatureSpec, ...], tuple[InputSpec, ...]]:
    graph = model.graph
    shapes = [_input_shape(value) for value in _graph_inputs(graph)]
    names = [value.name for value in _graph_inputs(graph)]
    unknown = [i for i, (_, _, width, _) in enumerate(shapes) if width is None]
    if unknown:
        if features is None or len(unknown) > 1:
            raise InvalidData(
                f'input "{names[unknown[0]]}" has no declared width', hint="Name the feature columns."
            )
        element, rank, _, batch = shapes[unknown[0]]
        rest = len(features) - sum(width or 0 for _, _, width, _ in shapes)
        shapes[unknown[0]] = (element, rank, max(rest, 1), batch)
    widths = [cast(int, width) for _, _, width, _ in shapes]
    total = sum(widths)
    if total > DEFAULT_LIMITS.features:
        raise LimitExceeded(f"model takes {total} features, limit is {DEFAULT_LIMITS.features}")
    if features is None:
        features = [
            Feature(
                name if width == 1 and len(names) > 1 else f"f{i}" if len(names) == 1 else f"{name}_{i}",
                _DEFAULT_KIND[shape[0]],
            )
            for name, width, shape in zip(names, widths, shapes, strict=True)
            for i in range(width)
        ]
    if len(features) != total:
        raise InvalidData(f"model takes {total} features, not {len(features)}")
    if len({f.name for f in features}) != total:
        raise InvalidParameter("two features have one name")
    knows_null = any(p.key in (STUDENT_KEY, CONVERTED_KEY) for p in model.metadata_props)
    slots = [
        i for i, width in enumerate(widths) for _ in range(width)
    ]  # input of each of the graph's columns
    at = _assign(features, names, widths, [shapes[i][0] for i in slots])
    null: dict[int, Null] = {}
    inputs: list[InputSpec] = []
    start = 0
    for name, width, (element, rank, _, batch) in zip(names, widths, shapes, strict=True):
        mine = tuple(at[start : start + width])
        start += width
        for i in mine:
            is_string = features[i].kind == "string"
            if (element == "string") != is_string and not (element == "int64" and features[i].name in whole):
                raise DatatypeMismatch(
                    f'feature "{features[i].name}" is of kind {features[i].kind},'
                    f' input "{name}" of type {element}'
                )
            null[i] = (
                ("string" if knows_null else "empty")
                if element == "string"
                else ("nan" if element in ("float32", "float64") else "error")
            )
        inputs.append(InputSpec(name, element, rank, mine, batch))
    return tuple(FeatureSpec(f.name, f.kind, null[i]) for i, f in enumerate(features)), tuple(inputs)


def _assign(
    features: Sequence[Feature], names: Sequence[str], widths: Sequence[int], elements: Sequence[Element]
) -> list[int]:
    """Return, for each of the graph's columns, the position of its feature."""
    position = {f.name: i for i, f in enumerate(features)}
    if len(names) > 1 and all(w == 1 for w in widths):
        if set(position) == set(names):
            return [position[name] for name in names]
        moved = [n for i, n in enumerate(names) if n in position and position[n] != i]
        if moved:
            raise InvalidData(
                f'feature "{moved[0]}" is an input of the model, but not in its place',
                hint="Name all features as the inputs are named, or give them in the order of the inputs.",
            )
    straight = list(range(len(features)))
    strings = [i for i in straight if features[i].kind == "string"]
    if len(strings) != sum(e == "string" for e in elements):
        return straight  # the kinds do not fit in any order; the caller's error names the first that does not
    if all(
        (features[i].kind == "string") == (e == "string") for i, e in zip(straight, elements, strict=True)
    ):
        return straight
    others = [i for i in straight if features[i].kind != "string"]
    return [strings.pop(0) if e == "string" else others.pop(0) for e in elements]


def _input_shape(value: onnx.ValueInfoProto) -> tuple[Element, int, int | None, int | None]:
    """Return (element, rank, width or None, fixed batch or None)."""
    if value.type.WhichOneof("value") != "tensor_type":
        raise FeatureNotSupported(f'input "{value.name}" is not a tensor')
    tensor = value.type.tensor_type
    if tensor.elem_type not in _ELEMENTS:
        raise FeatureNotSupported(
            f'input "{value.name}" is of type {_type_name(tensor.elem_type)}',
            hint="Export it with inputs of float32, float64, int64, int32, bool or string, and cast them inside the graph.",
        )
    element = _ELEMENTS[tensor.elem_type]
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    if not tensor.HasField("shape"):
        dims = [None, None]
    if len(dims) not in (1, 2):
        raise FeatureNotSupported(f'input "{value.name}" has {len(dims)} dimensions, expected 2')
    # 0 and -1 stand for "any" in some exporters.
    batch = dims[0] if dims[0] is not None and dims[0] > 0 else None
    if batch not in (None, 1):
        raise FeatureNotSupported(
            f'input "{value.name}" takes exactly {batch} rows',
            hint="Export the model with a dynamic batch size.",
        )
    if len(dims) == 1:
        return element, 1, 1, batch
    width = dims[1] if dims[1] is not None and dims[1] > 0 else None
    return element, 2, width, batch


def _first(rows: Frame, signature: Signature, most: int) -> Frame:
    """Return the first rows, ``most`` of them and of a slow model fewer."""
    if signature.cost is not None:
        most = min(most, max(int(_TRY_NS / max(signature.cost.row_ns, 1)), _LEAST_ROWS))
    return rows.take(np.arange(min(len(rows), most)))


def _synthetic(signature: Signature) -> Frame:
    """Return rows made up where the caller has none: normal numbers, zeros and ones, empty strings."""
    specs, inputs = signature.features, signature.inputs
    rng = np.random.default_rng(0)
    integer = {i for spec in inputs if spec.element in ("int64", "int32", "bool") for i in spec.features}
    columns: dict[str, FloatArray | Strings] = {}
    for position, spec in enumerate(specs):
        if spec.kind == "string":
            columns[spec.name] = Strings(np.zeros(_SYNTHETIC_ROWS, np.int32), ("",))
        elif spec.kind == "boolean" or position in integer:
            columns[spec.name] = rng.integers(0, 2, _SYNTHETIC_ROWS).astype(np.float64)
        else:
            columns[spec.name] = rng.normal(0.0, 3.0, _SYNTHETIC_ROWS)
    rows = Frame(tuple(Feature(s.name, s.kind) for s in specs), columns)
    return _first(rows, signature, _SYNTHETIC_ROWS)


def _run(
    model: onnx.ModelProto,
    signature: Signature,
    frame: Frame,
    names: Sequence[str],
    run_bytes: int = RUN_BYTES,
) -> dict[str, npt.NDArray[Any]]:
    """Run the graph on ``frame`` and return the tensors ``names``, outputs or not."""
    session = open_session(prune(model.SerializeToString(), names))
    rows = 1 if signature.cost is None else max(signature.cost.rows(run_bytes, _longest(frame)), 1)
    return _run_session(session, signature, encode(signature, frame), names, rows)


def _longest(frame: Frame) -> int:
    """Return the bytes of the longest string."""
    texts = (t for name in frame.string_names for t in frame.strings(name).categories)
    return max((len(text.encode(errors="surrogatepass")) for text in texts), default=0)


def _run_session(
    session: ort.InferenceSession,
    signature: Signature,
    feeds: dict[str, npt.NDArray[Any]],
    names: Sequence[str],
    most: int,
) -> dict[str, npt.NDArray[Any]]:
    options = ort.RunOptions()
    options.log_severity_level = 4
    rows = len(next(iter(feeds.values())))
    step = 1 if any(i.batch == 1 for i in signature.inputs) else min(rows, most)
    parts: list[list[Any]] = []
    try:
        for start in range(0, rows, step):
            chunk = {name: array[start : start + step] for name, array in feeds.items()}
            parts.append(session.run(list(names), chunk, options))
    except runtime_errors as error:
        raise InvalidData("model fails on the rows given", detail=first_line(error)) from error
    return {
        name: parts[0][i] if len(parts) == 1 else np.concatenate([np.atleast_1d(p[i]) for p in parts])
        for i, name in enumerate(names)
    }


def _matrix(value: Any, name: str, rows: int) -> npt.NDArray[Any]:
    """Return an output as (rows, width)."""
    if not isinstance(value, np.ndarray) or value.size % rows or not value.size:
        raise InvalidData(f'output "{name}" does not give one result a row')
    if value.ndim not in (1, 2) or (value.ndim == 1 and value.size != rows) or value.shape[0] != rows:
        raise FeatureNotSupported(f'output "{name}" has shape {value.shape} for {rows} rows')
    return value.reshape(rows, -1)


def _outputs(graph: onnx.GraphProto) -> tuple[str | None, str | None, onnx.NodeProto | None]:
    """Return (tensor of scores, tensor of labels, ZipMap)."""
    producers = _Producers(graph)
    scores: list[tuple[str, onnx.NodeProto | None]] = []
    labels: list[str] = []
    for value in graph.output:
        kind = value.type.WhichOneof("value")
        node = producers.by_output.get(value.name)
        if kind == "tensor_type":
            element = value.type.tensor_type.elem_type
            if element in (TensorProto.FLOAT, TensorProto.DOUBLE):
                scores.append((value.name, None))
            elif element in (TensorProto.INT64, TensorProto.STRING):
                labels.append(value.name)
            else:
                name = _type_name(element)
                raise FeatureNotSupported(f'output "{value.name}" is of type {name}, which is not supported')
        elif node is not None and node.op_type == "ZipMap":
            scores.append((node.input[0], node))
        else:
            raise FeatureNotSupported(f'output "{value.name}" is neither a tensor nor a ZipMap of one')
    if len(scores) > 1:
        named = [s for s, v in zip(scores, _score_values(graph), strict=True) if "prob" in v.lower()]
        if len(named) != 1:
            raise FeatureNotSupported(
                f"model has {len(scores)} outputs of numbers, expected one",
                hint="Export it with one output; skl2onnx: without zipmap='columns'.",
            )
        scores = named
    if len(labels) > 1:
        raise FeatureNotSupported(f"model has {len(labels)} outputs of labels, expected one")
    score, zipmap = scores[0] if scores else (None, None)
    return score, labels[0] if labels else None, zipmap


def _score_values(graph: onnx.GraphProto) -> list[str]:
    labels = (TensorProto.INT64, TensorProto.STRING)
    return [v.name for v in graph.output if v.type.tensor_type.elem_type not in labels]


def _form(
    model: onnx.ModelProto,
    producers: _Producers,
    score: str | None,
    label: str | None,
    zipmap: bool,
    scores: npt.NDArray[Any] | None,
    task: Task | None,
    classes: Sequence[str] | None,
) -> tuple[OutputSpec, Task]:
    """Decide what the scores are."""
    if score is None or scores is None:
        assert label is not None
        if task == "regression":
            raise FeatureNotSupported("model gives a label only, which is no value to regress on")
        element: Literal["int64", "string"] = "int64"
        kind = next(v.type.tensor_type.elem_type for v in model.graph.output if v.name == label)
        if kind == TensorProto.STRING:
            element = "string"
        return OutputSpec(label, "label", 1, element), task or "multiclass"
    width = scores.shape[1]
    number: Literal["float32", "float64"] = "float64" if scores.dtype == np.float64 else "float32"
    finite = scores[np.isfinite(scores).all(axis=1)].astype(np.float64)
    if not len(finite):
        raise InvalidData("model gives no finite output for any of the rows given")
    inside = bool((finite >= -_SUM_TOLERANCE).all() and (finite <= 1 + _SUM_TOLERANCE).all())
    last = producers.behind(score)
    ending = last.op_type if last is not None else ""

    def spec(form: Form) -> OutputSpec:
        return OutputSpec(score, form, width, number)

    if any(p.key == CONVERTED_KEY for p in model.metadata_props) and score in get_args(Form):
        return spec(cast(Form, score)), "regression" if score == "value" else task or "multiclass"
    classifier = label is not None or zipmap or bool(classes) or task in ("binary", "multiclass")
    if task == "regression":
        if label is not None or zipmap:
            raise InvalidParameter('task "regression" does not fit a model that gives labels')
        if width > 1:
            raise FeatureNotSupported(f"model gives {width} values a row, regression of one is supported")
        return spec("value"), "regression"
    if width == 1:
        if ending == "Sigmoid" or (classifier and inside):
            return spec("positive"), "binary"
        if classifier:
            return spec("logits"), "binary"
        if ending.endswith("Regressor") or model.producer_name in _EXPORTERS_OF_PIPELINES:
            return spec("value"), "regression"
        raise InvalidParameter(
            "model gives one number a row, which may be a value or the log-odds of a class",
            hint="Say which: task => 'regression' or task => 'binary'.",
        )
    if inside and bool((np.abs(finite.sum(axis=1) - 1) <= _SUM_TOLERANCE).all()):
        return spec("probabilities"), task or "multiclass"
    if ending == "Sigmoid":
        raise FeatureNotSupported(
            f"model gives {width} independent probabilities a row: several labels are not supported"
        )
    return spec("logits"), task or "multiclass"


def _check_task(task: Task, count: int) -> None:
    if count < 2:
        raise InvalidData(f"model has {count} classes, expected at least 2")
    if task == "binary" and count != 2:
        raise InvalidParameter(f'task "binary" does not fit a model of {count} classes')


def _classes(
    producers: _Producers,
    label: str | None,
    zipmap: onnx.NodeProto | None,
    scores: npt.NDArray[Any] | None,
    labels: npt.NDArray[Any] | None,
    output: OutputSpec,
    given: Sequence[str] | None,
) -> tuple[str, ...]:
    """Return the classes in the order of the probabilities, as texts."""
    count = None if scores is None else max(scores.shape[1], 2)
    if given is not None and len(set(given)) != len(given):
        raise InvalidParameter("two classes have one name")
    if given is not None and count is not None and len(given) != count:
        raise InvalidParameter(f"model has {count} classes, not {len(given)}")
    candidates: list[tuple[str, ...]] = []
    if zipmap is not None:
        candidates.append(_label_list(zipmap))
    for start in (label, output.name):
        if start is not None:
            candidates.extend(_label_lists(producers, start))
    candidates = [c for c in candidates if len(c) >= 2 and (count is None or len(c) == count)]
    if labels is not None:
        seen = {str(x) for x in labels.tolist()}
        candidates = [c for c in candidates if seen <= set(c)]
        if count is not None and scores is not None and len(candidates) > 1:
            best = scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(int)
            agree = [
                np.mean([c[i] == str(x) for i, x in zip(best, labels.tolist(), strict=True)])
                for c in candidates
            ]
            candidates = [candidates[int(np.argmax(agree))]]
    found = candidates[0] if candidates else None
    if found is None and count is not None:
        numbered = tuple(str(i) for i in range(count))
        if labels is None or {str(x) for x in labels.tolist()} <= set(numbered):
            found = None if given is not None else numbered
    if given is None:
        if found is None:
            raise InvalidParameter(
                "classes of the model are not found in its graph", hint="Pass classes => ARRAY[...]."
            )
        return found
    if found is not None and set(found) == set(given) and tuple(given) != found:
        raise InvalidParameter(f"order of the model's classes is {', '.join(found)}")
    if output.form == "label" and found is not None and set(found) != set(given):
        raise InvalidParameter(f"classes of the model are {', '.join(found)}")
    return tuple(given)


def _check_labels(
    signature: Signature,
    scores: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    frame: Frame,
    class_threshold: float | None,
) -> None:
    """Refuse a graph whose own labels are not the classes that predict_class would name: its scores may be distances."""
    given = decode(signature, scores.reshape(-1), len(scores))
    index = {name: place for place, name in enumerate(signature.classes)}
    own = np.array([index.get(str(label), -1) for label in labels.tolist()])
    if (own < 0).all():
        return  # the caller has named the classes otherwise
    rows = np.arange(len(given))
    if class_threshold is None:
        named = given.argmax(axis=1)
        margin = given[rows, named] - np.where(own >= 0, given[rows, own], -np.inf)
    else:
        named = (given[:, -1] >= class_threshold).astype(np.int64)
        margin = np.abs(given[:, -1] - class_threshold)
    other = (own != named) & (margin > _TIE) & np.isfinite(given).all(axis=1)
    if other.any():
        row = int(np.argmax(np.where(other, margin, -np.inf)))
        what = "its most probable class" if class_threshold is None else "the class by its class_threshold"
        raise InvalidData(
            f"model's label is not {what} in {int(other.sum())} of {len(rows)} rows",
            detail=f"Row {frame.show_row(row)}: label {labels[row]!s}, scores {scores[row].tolist()}."[
                :_DETAIL_CHARACTERS
            ],
            hint="Pass class_threshold where it decides by one; else export it with one of its two outputs: the labels alone, or"
            " scores of which the largest is the class.",
        )


def _label_lists(producers: _Producers, start: str) -> list[tuple[str, ...]]:
    """Return the lists of labels in the graph that ``start`` depends on, the nearest first."""
    constants: dict[str, npt.NDArray[Any]] | None = None
    out = []
    for node in producers.upstream(start):
        if node.op_type == "ArrayFeatureExtractor":
            constants = constants if constants is not None else _constants(producers.graph)
            if node.input[0] in constants:
                out.append(_texts(constants[node.input[0]].reshape(-1).tolist()))
        else:
            out.append(_label_list(node))
    return [labels for labels in out if labels]


def _label_list(node: onnx.NodeProto) -> tuple[str, ...]:
    for attribute in node.attribute:
        if attribute.name.startswith("classlabels_") or (
            node.op_type == "LabelEncoder" and attribute.name in ("values_strings", "values_int64s")
        ):
            labels = _texts([*attribute.ints, *attribute.strings])
            if labels:
                return labels
    return ()


def _texts(labels: Sequence[Any]) -> tuple[str, ...]:
    """Return labels as onnxruntime gives them, as texts."""
    return tuple(
        x.decode("utf-8", "replace")
        if isinstance(x, bytes)
        else str(int(x))
        if isinstance(x, float)
        else str(x)
        for x in labels
    )


def _with_nulls(model: onnx.ModelProto, signature: Signature, frame: Frame) -> tuple[FeatureSpec, ...]:
    """Return the features, those marked "error" for which NULL makes the model fail or give NaN.

    A linear model or a network has no answer to NaN; an imputer or a tree has. Asked of the model itself: one
    row without NULL, once with each feature NULL.
    """
    specs = list(signature.features)
    base = _without_nulls(frame)
    probe = Model(model.SerializeToString(), signature)
    if base is None or not np.isfinite(probe.run_frame(base)).all():
        return signature.features
    floats = [i for i, s in enumerate(specs) if s.null == "nan"]
    chunk = max(1, _PROBE_CELLS // len(specs))
    for start in range(0, len(floats), chunk):
        part = floats[start : start + chunk]
        rows = base.take(np.zeros(len(part), np.int64))
        columns = dict(rows.columns)
        for row, position in enumerate(part):
            column = rows.number(specs[position].name).copy()
            column[row] = np.nan
            columns[specs[position].name] = column
        try:
            good = [bool(np.isfinite(p).all()) for p in probe.run_frame(Frame(rows.features, columns))]
        except PgDistillError:
            good = [False] * len(part)
        for position, fine in zip(part, good, strict=True):
            if not fine:
                specs[position] = replace(specs[position], null="error")
    for position, spec in enumerate(specs):
        if spec.null == "empty":
            null = Strings(np.full(1, -1, np.int32), base.strings(spec.name).categories)
            try:
                fine = bool(
                    np.isfinite(
                        probe.run_frame(Frame(base.features, {**base.columns, spec.name: null}))
                    ).all()
                )
            except PgDistillError:
                fine = False
            if not fine:
                specs[position] = replace(spec, null="error")
    return tuple(specs)


def _without_nulls(frame: Frame) -> Frame | None:
    """Return one row, each column's first value that is not NULL; None where a column has none."""
    columns: dict[str, Any] = {}
    for feature in frame.features:
        if feature.kind == "string":
            strings = frame.strings(feature.name)
            good = np.flatnonzero(strings.codes >= 0)
        else:
            good = np.flatnonzero(np.isfinite(frame.number(feature.name)))
        if not len(good):
            return None
        column = frame.columns[feature.name]
        columns[feature.name] = column.take(good[:1]) if isinstance(column, Strings) else column[good[:1]]
    return Frame(frame.features, columns)


# -- approval


@dataclass(frozen=True)
class Approval:
    """A file that may be opened in a backend.

    ``outputs`` are its predictions for the rows given, (n, K) or (n, 1), or none.
    """

    signature: Signature
    outputs: FloatArray


def approve(
    artifact: bytes,
    signature: Signature | None = None,
    *,
    features: Sequence[Feature] | None = None,
    names: Sequence[str] | None = None,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
    rows: Frame | None = None,
    limits: Limits = DEFAULT_LIMITS,
    class_threshold: float | None = None,
) -> Approval:
    """Say whether backends may open ``artifact``: the one check, whichever way a file comes.

    Parameters
    ----------
    signature
        That is stored with it, and may not be of our making; None where it is to be found out, from the other arguments.
    features, task, classes, rows, class_threshold
        As in `derive_signature`.
    names
        What the features are called, in the place of what the graph calls them.

    Raises
    ------
    InvalidArtifact, LimitExceeded, FeatureNotSupported, InvalidData, NullNotAllowed, DatatypeMismatch, InvalidParameter
        As `check`, `derive_signature` and `trial_run`.
    ArtifactCorrupted
        Where ``signature`` is not the file's.
    """
    model = check(artifact, limits)
    if signature is None:
        signature = derive_signature(
            model,
            features=features,
            task=task,
            classes=classes,
            rows=rows,
            limits=limits,
            class_threshold=class_threshold,
        )
        if names is not None:
            if len(names) != len(signature.features):
                raise InvalidData(f"expected {len(signature.features)} features, not {len(names)}")
            renamed = zip(signature.features, names, strict=True)
            signature = replace(signature, features=tuple(replace(f, name=name) for f, name in renamed))
    else:
        signature = _held_against(model, signature, limits)
    _check_names(signature, limits)
    made_up = _synthetic(signature)
    _hold_shapes(model, signature, rows if rows is not None else made_up, limits)
    before = _peak_bytes(reset=True)
    opened = Model(artifact, signature, run_bytes=limits.run_bytes)
    outputs = _try(opened, rows, limits, before)
    _run_extremes(opened, limits)
    return Approval(signature, outputs)


def _check_names(signature: Signature, limits: Limits) -> None:
    """Refuse names that PostgreSQL cannot hold, or nobody reads."""
    names = [*signature.names, *signature.classes, signature.output.name, *(i.name for i in signature.inputs)]
    for name in names:
        if len(name) > limits.name_characters:
            raise InvalidName(
                f"a name in the model has {len(name)} characters, limit is {limits.name_characters}"
            )
        if "\x00" in name or any("\ud800" <= c <= "\udfff" for c in name):
            raise InvalidName("a name in the model has characters that PostgreSQL cannot hold")
    if not all(signature.names):
        raise InvalidName("a feature of the model has no name")


def _held_against(model: onnx.ModelProto, stored: Signature, limits: Limits) -> Signature:
    """Return a stored signature, with its cost, if it is one of this file."""
    wrong = _first_difference(model, stored)
    if wrong is None:
        found = _survey(model, stored.inputs, limits)
        cost = _cost(found, [stored.output.name], limits)
        given = found.tensors[stored.output.name]
        output = stored.output
        rows = given.shape[0] if given.rank else None
        expected = ELEMENT_TYPES[output.element] if output.element != "string" else TensorProto.STRING
        if (
            given.element != expected
            or rows is None
            or given.size != rows * output.width
            or rows != found.tensors[stored.inputs[0].name].shape[0]
        ):
            wrong = f"it gives {output.width} numbers a row of type {output.element}"
        else:
            return replace(stored, cost=cost)
    raise ArtifactCorrupted(
        "stored signature of the model is not its file's", detail=f"The signature says that {wrong}."
    )


def _first_difference(model: onnx.ModelProto, stored: Signature) -> str | None:
    """Return what a stored signature says that is not so, as far as no shape is needed to see it."""
    inputs = _graph_inputs(model.graph)
    if [value.name for value in inputs] != [spec.name for spec in stored.inputs]:
        return "it has other inputs"
    knows_null = any(p.key in (STUDENT_KEY, CONVERTED_KEY) for p in model.metadata_props)
    for value, spec in zip(inputs, stored.inputs, strict=True):
        element, rank, width, batch = _input_shape(value)
        if (element, rank, batch) != (spec.element, spec.rank, spec.batch):
            return f'input "{spec.name[:80]}" is of another type'
        if (width if width is not None else len(spec.features)) != len(spec.features):
            return f'input "{spec.name[:80]}" has {len(spec.features)} columns'
        if spec.rank == 1 and len(spec.features) != 1:
            return f'input "{spec.name[:80]}" has {len(spec.features)} columns'
        allowed: set[Null] = {"error"}
        if element == "string":
            allowed.add("string" if knows_null else "empty")
        elif element in ("float32", "float64"):
            allowed.add("nan")
        for feature in (stored.features[i] for i in spec.features):
            if (feature.kind == "string") != (element == "string") or feature.null not in allowed:
                return f'feature "{feature.name[:80]}" is {feature.kind}, NULL {feature.null}'
    positions = sorted(i for spec in stored.inputs for i in spec.features)
    if positions != list(range(len(stored.features))):
        return "a feature is read twice, or not"
    if len(set(stored.names)) != len(stored.names):
        return "two features have one name"
    score, label, zipmap = _outputs(model.graph)
    if stored.output.form == "label":
        if stored.output.name != label or stored.output.element not in ("int64", "string"):
            return "its output is a label"
    elif stored.output.name != score or stored.output.element not in ("float32", "float64"):
        return "its output is numbers"
    if stored.task == "regression" and (label is not None or zipmap is not None):
        return "it is a regression"
    return None


def _hold_shapes(model: onnx.ModelProto, signature: Signature, rows: Frame, limits: Limits) -> None:
    """Run a few rows and compare each tensor with what was worked out of it: the rules are ours, and may be wrong.

    What fails on all the rows that there are to try it on is left to its rules.
    """
    found = _survey(model, signature.inputs, limits)
    names = [
        name for step in found.steps for name in step.node.output if name and not found.tensors[name].is_map
    ]
    session = open_session(prune(model.SerializeToString(), names))
    for count in (1,) if any(i.batch == 1 for i in signature.inputs) else _SHAPE_ROWS:
        cost = found.cost(names, limits.node_seconds * 1e9)
        if cost.rows(limits.run_bytes) < count or (count > 1 and count * cost.row_ns > _TRY_NS):
            continue
        for frame in (rows, _zeros(signature.features)):
            part = frame.take(np.resize(np.arange(len(frame)), count))
            try:
                given = _run_session(session, signature, encode(signature, part), names, count)
            except (InvalidData, NullNotAllowed, UndefinedColumn, DatatypeMismatch):
                continue
            for name in names:
                _hold_tensor(found.tensors[name], np.asarray(given[name]), count)
            break


def _hold_tensor(expected: Tensor, array: npt.NDArray[Any], rows: int) -> None:
    shape = tuple(size.at(rows) for size in expected.shape)
    same = array.shape == shape
    if expected.element != TensorProto.STRING:
        same = same and array.dtype.itemsize == item_bytes(expected.element)
    if expected.values is not None and same:
        values = [v.at(rows) for v in expected.values.reshape(-1)]
        same = array.reshape(-1).astype(np.float64).tolist() == [float(v) for v in values]
    if not same:
        raise FeatureNotSupported(
            "model's shapes are not what its operators make them",
            detail=f"A tensor has shape {array.shape} and type {array.dtype}, where {shape} was expected.",
        )


_SHAPE_ROWS = (1, 3)  # rows of a run whose shapes are compared: numbers that few constants are


def _zeros(specs: Sequence[FeatureSpec]) -> Frame:
    """Return a row of zeros and empty strings."""
    columns: dict[str, FloatArray | Strings] = {
        spec.name: Strings(np.zeros(1, np.int32), ("",)) if spec.kind == "string" else np.zeros(1)
        for spec in specs
    }
    return Frame(tuple(Feature(s.name, s.kind) for s in specs), columns)


def trial_run(
    artifact: bytes, signature: Signature, rows: Frame | None = None, limits: Limits = DEFAULT_LIMITS
) -> FloatArray:
    """Open ``artifact`` as a backend will and run ``rows``; return their predictions.

    One row first, then batches of twice the size up to `BATCH_ROWS`, the largest that a backend runs at once; ``rows`` are
    repeated as often as it takes. Batches stop growing where they would pass ``limits.run_seconds``. Where no rows are given
    some are made up, and what the model says of these is left to it: the predictions returned are none.

    Raises
    ------
    LimitExceeded
        Where a row takes too long, or the process grows by over ``limits.run_bytes``.
    InvalidData
        Where the model fails, gives something that is not finite, or no probabilities.
    NullNotAllowed
        Where rows hold a NULL that the model has no encoding for.
    """
    before = _peak_bytes(reset=True)
    return _try(Model(artifact, signature, run_bytes=limits.run_bytes), rows, limits, before)


def _try(model: Model, rows: Frame | None, limits: Limits, before: int) -> FloatArray:
    """Run ``rows`` as `trial_run` says; ``before`` are the bytes that the process had before the model was opened."""
    given, signature = rows is not None, model.signature
    rows = rows if rows is not None else _synthetic(signature)
    size, seconds = 1, 0.0
    while size <= BATCH_ROWS and 4 * seconds < limits.run_seconds:  # twice the rows, with a margin of two
        batch = rows.take(np.resize(np.arange(len(rows)), size))
        started = time.perf_counter()
        try:
            _check_predictions(_timed(model, batch, limits), signature)
        except (InvalidData, NullNotAllowed):
            if given:
                raise
        seconds = time.perf_counter() - started
        grown = _peak_bytes() - before
        if grown > limits.run_bytes:
            raise LimitExceeded(f"model takes {grown} bytes for {size} rows, limit is {limits.run_bytes}")
        size *= 2
    if not given:
        return np.empty((0, signature.width))
    predictions = model.run_frame(rows)
    _check_predictions(predictions, signature)
    _check_independence(model, rows, predictions)
    return predictions


def _timed(model: Model, rows: Frame, limits: Limits) -> FloatArray:
    """Return the predictions of ``rows``; LimitExceeded where they take too long, or more memory than there is."""
    timer = threading.Timer(limits.run_seconds, model.terminate)
    timer.start()
    started = time.perf_counter()
    try:
        predictions = model.run_frame(rows)
    except PgDistillError as error:
        if time.perf_counter() - started >= limits.run_seconds:
            raise LimitExceeded(f"model takes over {limits.run_seconds} s for {len(rows)} rows") from error
        if "alloc" in (error.detail or ""):
            raise LimitExceeded(
                f"model runs out of memory on {len(rows)} rows", detail=error.detail
            ) from error
        raise
    finally:
        timer.cancel()
    if time.perf_counter() - started >= limits.run_seconds:
        raise LimitExceeded(f"model takes over {limits.run_seconds} s for {len(rows)} rows")
    return predictions


# Where types end, and where functions of numbers do something else.
_EXTREME_NUMBERS = (
    *(
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.0,
        -1.0,
        2.0,
        -2.0,
        127.0,
        -128.0,
        128.0,
        255.0,
        256.0,
        -129.0,
        32767.0,
        -32768.0,
        65536.0,
    ),
    *(
        2.0**24 + 1,
        2.0**31 - 1,
        -(2.0**31),
        2.0**31,
        2.0**32,
        2.0**53,
        2.0**62,
        2.0**63 - 1024,
        -(2.0**63),
        2.0**63,
        2.0**64,
    ),
    *(
        1e9,
        -1e9,
        3.4e38,
        -3.4e38,
        3.5e38,
        1e100,
        1e308,
        -1e308,
        math.inf,
        -math.inf,
        math.nan,
        1e-38,
        1e-40,
        5e-324,
        -5e-324,
    ),
)
_EXTREME_TEXTS = (
    "",
    " ",
    "a",
    "nan",
    "1e400",
    "-9223372036854775809",
    "0x",
    "\u202e",
    "\U0010ffff",
    "\x01",
    "x" * 10_000,
)
_EXTREME_ROWS = 64  # of values drawn for each feature, beside those in which all have the same
_EXTREME_SECONDS = 2.0  # for the extremes of a slow model


def _extremes(signature: Signature) -> Frame:
    """Return rows of extreme values: those in which all features have the same, those of two in turns, and some at random."""
    rng = np.random.default_rng(0)
    element = {i: spec.element for spec in signature.inputs for i in spec.features}
    columns: dict[str, FloatArray | Strings] = {}
    count = len(_EXTREME_NUMBERS)
    same = np.arange(count)
    for position, spec in enumerate(signature.features):
        # In the second part each feature meets another value than its neighbour: the least number over -1 is a pair of these.
        turned = np.roll(same, position * 7 + 1) if position % 2 else same
        places = np.concatenate([same, turned, rng.integers(0, count, _EXTREME_ROWS)])
        if spec.kind == "string":
            columns[spec.name] = Strings.from_values(
                [_EXTREME_TEXTS[i % len(_EXTREME_TEXTS)] for i in places]
            )
            continue
        values = np.array(_EXTREME_NUMBERS)[places]
        if element[position] in ("int64", "int32", "bool"):
            low, high = {"int64": (-(2.0**63), 2.0**63 - 1024), "int32": (-(2.0**31), 2.0**31 - 1)}.get(
                element[position], (0.0, 1.0)
            )
            values = np.clip(np.floor(np.nan_to_num(values)), low, high)
        if spec.null == "error":
            values = np.where(np.isnan(values), 0.0, values)
        columns[spec.name] = values
    return Frame(tuple(Feature(s.name, s.kind) for s in signature.features), columns)


def _run_extremes(model: Model, limits: Limits) -> None:
    """Run rows of extreme values, alone and together. What the model says of them is left to it, an error too."""
    signature = model.signature
    rows = _extremes(signature)
    began = time.monotonic()
    for i in range(len(rows)):
        with suppress(InvalidData, NullNotAllowed):
            _timed(model, rows.take(np.array([i])), limits)
        if time.monotonic() - began > _EXTREME_SECONDS:
            break
    each = (time.monotonic() - began) / (i + 1)
    together = rows.take(np.arange(min(len(rows), max(int(_EXTREME_SECONDS / max(each, 1e-9)), 1))))
    with suppress(InvalidData, NullNotAllowed):
        _timed(model, together, limits)
    row = {f.name: "" if f.kind == "string" else 0.0 for f in signature.features}
    with suppress(InvalidData, NullNotAllowed):
        model.run_row(row)


def _peak_bytes(*, reset: bool = False) -> int:
    """Return the most memory that this process has had in use, with ``reset`` from now on (on Linux)."""
    try:
        if reset:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _check_independence(model: Model, rows: Frame, predictions: FloatArray) -> None:
    """Refuse a graph that mixes rows: batch normalisation in training mode, one scale for the batch, softmax over rows."""
    if any(spec.batch == 1 for spec in model.signature.inputs):
        return  # its rows are run one by one
    chosen = np.unique(np.linspace(0, len(rows) - 1, _ROWS_ALONE).astype(np.int64))
    own = rows.take(chosen)
    depends = InvalidData(
        "model's prediction for a row depends on the other rows of its batch",
        hint="Export the model in evaluation mode, for one row at a time (batch size 1), or quantise it statically.",
    )
    # Batches of one shape are computed in one order, so that what other rows do not change is the same to the last digits.
    answers = []
    for companions in _companions(model.signature, rows, chosen):
        batch = Frame.concat([companions, own, companions])
        try:
            found = model.run_frame(batch)[len(companions) : len(companions) + len(own)]
        except PgDistillError:
            continue  # it has no answer for a companion
        answers.append(found)
        if not np.allclose(
            found, answers[0], rtol=_TOGETHER_TOLERANCE, atol=_TOGETHER_TOLERANCE, equal_nan=True
        ):
            raise depends
    alone = np.concatenate([model.run_frame(rows.take(chosen[i : i + 1])) for i in range(len(chosen))])
    same = np.isclose(alone, predictions[chosen], rtol=_ALONE_TOLERANCE, atol=_ALONE_TOLERANCE).all(axis=1)
    # Rounding differs with the batch, and may carry one row over the threshold of a tree.
    if same.mean() < 0.5:
        raise depends


def _companions(signature: Signature, rows: Frame, chosen: npt.NDArray[np.int64]) -> Iterator[Frame]:
    """Yield as many rows each time: the chosen ones, others, those with the greatest and least values, and greater ones."""
    count = len(chosen)
    yield rows.take(chosen)
    yield rows.take(np.roll(np.arange(len(rows)), 1)[np.resize(np.arange(len(rows)), count)])
    narrow = {
        signature.names[i] for spec in signature.inputs if spec.element not in _FLOATS for i in spec.features
    }
    for scale in (1.0, 8.0, -1000.0):
        columns: dict[str, FloatArray | Strings] = {}
        for place, feature in enumerate(rows.features):
            column = rows.columns[feature.name]
            if isinstance(column, Strings):
                columns[feature.name] = column.take(np.resize(np.roll(np.arange(len(rows)), place), count))
                continue
            known = column[np.isfinite(column)]
            if not len(known):
                columns[feature.name] = np.resize(column, count)
                continue
            ends = np.resize(np.array([known.max(), known.min()]), count)
            columns[feature.name] = ends if feature.name in narrow else ends * scale
        yield Frame(rows.features, columns)


_FLOATS = ("float32", "float64")


def _check_predictions(predictions: FloatArray, signature: Signature) -> None:
    bad = np.flatnonzero(~np.isfinite(predictions).all(axis=1))
    if len(bad):
        raise InvalidData(
            f"model gives {predictions[bad[0]].tolist()} for row {bad[0] + 1}, expected finite numbers",
            hint="Leave out rows whose features are NaN or infinite, or impute them inside the model.",
        )
    if signature.task == "regression":
        return
    off = np.abs(predictions.sum(axis=1) - 1) > _SUM_TOLERANCE
    off |= (predictions < -_SUM_TOLERANCE).any(axis=1)
    if off.any():
        row = int(np.argmax(off))
        raise InvalidData(
            f"model gives {predictions[row].tolist()} for row {row + 1}, expected probabilities"
        )


# -- teachers


def _with_logits(artifact: bytes, signature: Signature, rows: Frame | None = None) -> Model | None:
    """Return the model that gives the logits of ``artifact``; None where the graph has none.

    The logits are what its last Softmax, Sigmoid or LogSoftmax reads, or the scores of its last ensemble or
    linear classifier with post_transform NONE. They are taken only if they reproduce the model's
    probabilities on ``rows`` within 1e-5: a random forest's votes, a calibrated classifier fail that, and
    so have no logits.
    """
    if signature.task == "regression" or signature.output.form == "label":
        return None
    if signature.output.form == "logits":
        return Model(artifact, signature)
    graph = onnx.ModelProto.FromString(artifact)
    upstream = _Producers(graph.graph).upstream(signature.output.name)
    node = next((n for n in upstream if n.op_type in (*_ACTIVATIONS, *_CLASSIFIERS)), None)
    if node is None:
        return None
    frame = rows if rows is not None else _synthetic(signature)
    outputs = _add_logits(graph, node, len(signature.classes))
    try:  # in one session: that of a large teacher takes seconds to open
        names = dict.fromkeys([signature.output.name, *(o.name for o in outputs)])
        found = _run(graph, signature, frame, list(names))
        expected = decode(signature, found[signature.output.name], len(frame))
    except PgDistillError:
        return None
    for output in outputs:
        own = replace(signature, output=output)
        with suppress(PgDistillError):
            if np.allclose(
                decode(own, found[output.name], len(frame)), expected, rtol=0, atol=_LOGITS_TOLERANCE
            ):
                return Model(graph.SerializeToString(), own)
    return None


_LOGITS_NAME = "pg_distill_logits"
_ACTIVATIONS = ("Softmax", "Sigmoid", "LogSoftmax")
_CLASSIFIERS = ("TreeEnsembleClassifier", "LinearClassifier")


def _add_logits(model: onnx.ModelProto, node: onnx.NodeProto, classes: int) -> list[OutputSpec]:
    """Add to ``model`` what are likely the logits before ``node``, and return what these tensors are."""
    name = node.input[0] if node.input else ""
    transforms = any(a.name == "post_transform" and a.s != b"NONE" for a in node.attribute)
    if node.op_type in _CLASSIFIERS and not transforms:
        name = node.output[1]
    elif node.op_type in _CLASSIFIERS:
        twin = model.graph.node.add()
        twin.CopyFrom(node)
        twin.name = f"{_LOGITS_NAME}_twin"
        twin.output[:] = [f"{_LOGITS_NAME}_label", f"{_LOGITS_NAME}_scores"]
        for attribute in twin.attribute:
            if attribute.name == "post_transform":
                attribute.s = b"NONE"
        name = twin.output[1]
    outputs = [OutputSpec(name, "logits", classes)]
    if classes == 2:  # of two scores the last is the log-odds where they are -s and s, or 1 - s and s
        column = f"{_LOGITS_NAME}_column"
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), column))
        model.graph.node.append(helper.make_node("Gather", [name, column], [_LOGITS_NAME], axis=1))
        if not any(o.domain in ("", "ai.onnx") for o in model.opset_import):
            model.opset_import.append(helper.make_opsetid("", 17))
            model.ir_version = max(model.ir_version, 8)
        outputs.append(OutputSpec(_LOGITS_NAME, "logits", 1))
    return outputs


class TeacherModel:
    """A model that gives logits.

    Attributes
    ----------
    logits_source
        "graph": the logits inside the graph; "log-probabilities": logarithms of its probabilities, clipped at
        `PROBABILITY_FLOOR`; "values" for regression.
    """

    def __init__(self, artifact: bytes, signature: Signature, rows: Frame | None = None) -> None:
        self.signature = signature
        found = _with_logits(artifact, signature, rows)
        self.logits_source: Literal["graph", "log-probabilities", "values"]
        if found is not None:
            self.logits_source, self._model = "graph", found
        else:
            self.logits_source = "values" if signature.task == "regression" else "log-probabilities"
            self._model = Model(artifact, signature)

    def logits(self, frame: Frame, batch: int = BATCH_ROWS) -> FloatArray:
        """Return (n, K) logits, or (n, 1) values, for the rows of ``frame``.

        Raises
        ------
        PgDistillError
            As `Model.run_frame`.
        """
        if self.logits_source == "graph":
            return self._model.run_frame(frame, batch, logits=True)
        predictions = self._model.run_frame(frame, batch)
        if self.logits_source == "values":
            return predictions
        return cast(FloatArray, np.log(np.clip(predictions, PROBABILITY_FLOOR, 1.0)))


def tree_thresholds(model: onnx.ModelProto) -> dict[int, FloatArray]:
    """Return, for each feature that trees split, its thresholds, sorted: float32 values as float64.

    Only for models of one input that its trees read directly: {} for others, whose thresholds are other
    things'.
    """
    inputs = _graph_inputs(model.graph)
    if len(inputs) != 1:
        return {}
    producers = _Producers(model.graph)
    found: dict[int, list[FloatArray]] = {}
    for node in model.graph.node:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        name = node.input[0]
        while (before := producers.by_output.get(name)) is not None and before.op_type in (
            "Identity",
            "Cast",
        ):
            name = before.input[0]
        if name != inputs[0].name:
            return {}
        attributes = _attributes(node)
        branch = np.array(attributes["nodes_modes"], dtype="S16") != b"LEAF"
        features = _ints(attributes, "nodes_featureids")[branch]
        values = np.asarray(attributes["nodes_values"], np.float64)[branch]
        for feature in np.unique(features):
            found.setdefault(int(feature), []).append(values[features == feature])
    return {feature: np.unique(np.concatenate(parts)) for feature, parts in sorted(found.items())}
