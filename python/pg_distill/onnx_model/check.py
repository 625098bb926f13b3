"""What an ONNX file is, before anyone trusts it: limits, rules, signature, logits, thresholds.

Only the trainer's child imports this room: bytes of unknown origin are parsed, checked, loaded and run there first.
`approve` is the one way in, for files that are registered, inserted, restored, imported and offered. It takes these steps,
each of which may refuse:

1. `check` reads the file and refuses what could reach a file or leave the graph.
2. `survey` works out the shapes of all tensors, and so what a run takes at most. Sizes depend on no feature's value, and no
   value ends the process (`operators`).
3. `derive_signature` runs what passed on a few rows and finds out what it takes and gives; or a stored signature is held against
   the file.
4. The shapes and values that were worked out are held against a run's.
5. `trial_run` runs as many rows at once as a backend does, within limits of memory and time; then rows of extreme values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from pg_distill.errors import (
    FeatureNotSupported,
    InvalidArtifact,
    LimitExceeded,
)
from pg_distill.onnx_model.check_nodes import (
    TREE_TEXTS,
    check_linear,
    check_tokenizer,
    check_trees,
    check_window,
)
from pg_distill.onnx_model.cut import cut_texts
from pg_distill.onnx_model.limits import DEFAULT_LIMITS, Limits
from pg_distill.onnx_model.nodes import (
    graph_inputs,
    opset_versions,
    parse,
)
from pg_distill.onnx_model.operators import RULES
from pg_distill.onnx_model.rules import ELEMENTS
from pg_distill.onnx_model.session import (
    first_line,
)
from pg_distill.onnx_model.signature import Reader
from pg_distill.onnx_model.texts import TextReader
from pg_distill.onnx_model.tokens_graph import hold_readers

__all__ = ["STUDENT_KEY", "check", "check_file"]

STUDENT_KEY = "pg_distill.student"
"""The metadata property that marks a graph as a student of ours: inputs ``numbers`` and ``strings``."""


_STRING_BYTES = 32  # of a std::string, beside its text


# -- rules


def check_file(
    artifact: bytes, limits: Limits = DEFAULT_LIMITS
) -> tuple[onnx.ModelProto, tuple[Reader, ...]]:
    """Return a file as it is served: without the nodes that read texts, and the readers that do so in their place.

    Nothing is loaded or run.

    Raises
    ------
    InvalidArtifact, LimitExceeded, FeatureNotSupported
        As `check`; where a reader is not what the file's own nodes compute; where it wants other texts than this version reads.
    """
    _check_size(artifact, limits)
    served, readers = cut_texts(artifact)
    model = check(served, limits)
    if readers:
        if len(readers) > limits.readers:
            raise LimitExceeded(f"model reads texts in {len(readers)} ways, limit is {limits.readers}")
        entries = sum(reader.entries for reader in readers)
        if entries > limits.table_entries:
            raise LimitExceeded(f"model has dictionaries of over {limits.table_entries} strings")
        cut = [reader for reader in readers if isinstance(reader, TextReader)]
        if cut:
            hold_readers(parse(artifact), model, cut)
    return model, readers


def _check_size(artifact: bytes, limits: Limits) -> None:
    if len(artifact) > limits.artifact_bytes:
        raise LimitExceeded(f"model has {len(artifact)} bytes, limit is {limits.artifact_bytes}")


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
    _check_size(artifact, limits)
    try:
        model = parse(artifact)
    except (DecodeError, ValueError, RecursionError, TypeError) as error:
        raise InvalidArtifact("artifact is not readable as ONNX", detail=first_line(error)) from error
    if not model.HasField("graph") or not model.graph.node:
        raise InvalidArtifact("artifact is not readable as ONNX", detail="It holds no graph.")
    if not model.opset_import:
        raise InvalidArtifact("artifact is not readable as ONNX", detail="It names no operator set.")
    if not graph_inputs(model.graph) or not model.graph.output:
        raise InvalidArtifact("model has no input or no output")
    _check_messages(model, limits)
    versions = opset_versions(model)
    for node in model.graph.node:
        _check_schema(node, versions)
    _check_order(model.graph)
    for node in model.graph.node:
        check_window(node, limits)
        if node.op_type.startswith("TreeEnsemble"):
            check_trees(node, limits)
        elif node.op_type in ("LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor"):
            check_linear(node, limits)
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
            if message.name not in TREE_TEXTS:
                entries += len(message.strings)
                if entries > limits.table_entries:
                    raise LimitExceeded(f"model has dictionaries of over {limits.table_entries} strings")
            if message.HasField("g") or message.graphs:
                raise FeatureNotSupported(f'subgraph in attribute "{message.name}" is not supported')
            if message.ref_attr_name:
                raise FeatureNotSupported(
                    f'attribute "{message.name}" refers to a function, which is not supported'
                )


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


def _check_schema(node: onnx.NodeProto, versions: dict[str, int]) -> None:
    """Hold a node against its operator's definition: attributes, their types, the number of inputs and outputs."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    what = f'operator "{node.op_type}"'
    if domain not in versions:
        raise InvalidArtifact(f"{what} is of a domain that the model does not import")
    version = versions[domain]
    if domain == "com.microsoft":
        check_tokenizer(node, version)
        return
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


_TENSOR_TYPES = ELEMENTS - {TensorProto.STRING}


def _check_order(graph: onnx.GraphProto) -> None:
    """Refuse a tensor that is read before it is given, or given twice."""
    known = {"", *(value.name for value in graph_inputs(graph)), *(t.name for t in graph.initializer)}
    if len(known) < 1 + len(graph_inputs(graph)) + len(graph.initializer):
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
