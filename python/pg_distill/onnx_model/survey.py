"""What a run of a graph takes at most, before anything is run: types and shapes of all tensors, bytes, and time.

A graph is walked once, from its inputs, by the rules of `operators`. What comes of it holds for all rows there are:
sizes depend on no value, and no node takes longer than `Limits.node_seconds` on as many rows as a backend gives it. That is
what lets a backend promise to answer an interrupt: onnxruntime can be stopped between two nodes, not in the middle of one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pg_distill.errors import FeatureNotSupported, InvalidArtifact, LimitExceeded
from pg_distill.onnx_model.operators import RULES
from pg_distill.onnx_model.rules import (
    MAX_VALUES,
    ONE,
    Amount,
    Call,
    Tensor,
    constant,
    elements,
    item_bytes,
)
from pg_distill.onnx_model.signature import Cost, InputSpec

__all__ = ["Step", "Survey", "step_of", "survey"]

ELEMENT_TYPES: Mapping[str, int] = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
    "string": TensorProto.STRING,
}
_READ_OPEN = frozenset(
    {
        "Cast",
        "Flatten",
        "Gather",
        "Identity",
        "LabelEncoder",
        "Reshape",
        "Shape",
        "Squeeze",
        "TfIdfVectorizer",
        "Unsqueeze",
    }
)
"""Of a tensor whose size depends on a text these read any number of elements, none too."""

NODE_NS = 2_000.0  # of any node: what onnxruntime spends around it
NUMBER_BYTES = 32  # of a number as a string
CELL_BYTES = 32  # of a feature or an output in Python, as float64 and on its way: four copies

# A tensor of no elements is the shape of a single number, and nothing else: these read shapes, or join them.
_READ_NOTHING = frozenset({"Cast", "Concat", "ConstantOfShape", "Expand", "Identity", "Reshape", "Slice"})

_FETCHES = frozenset({"Gather", "GatherND"})
"""What they fetch from is as large as it is: an embedding's table of a vocabulary, of which a text takes some rows."""


@dataclass(frozen=True)
class Step:
    """A node, with what it takes."""

    node: onnx.NodeProto
    ns: Amount
    bytes: Amount
    """Of what it gives; of strings without their texts."""
    texts: Amount
    """How many strings it gives."""
    scratch: Amount
    """Bytes that it holds while it runs."""
    is_folded: bool
    """Whether it depends on constants alone: onnxruntime computes it once, where a session is opened."""


@dataclass(frozen=True)
class Survey:
    """A graph walked from its inputs."""

    tensors: Mapping[str, Tensor]
    steps: Sequence[Step]
    inputs: Sequence[InputSpec]
    text_bytes: int
    """The longest text in the file."""
    alike: _Alike | None = None
    """What was judged, of a transformer: walks for other numbers of tokens go on with it."""

    def cost(self, outputs: Collection[str], node_ns: float) -> Cost:
        """Return what a run takes that gives ``outputs``.

        Parameters
        ----------
        node_ns
            Nanoseconds that no node of a run may take.
        """
        ns, held = Amount(0), Amount(0)
        size, texts, scratch = Amount(0), Amount(0), Amount(0)
        rows, bytes_ns = 1 << 31, 0
        for step in self._behind(outputs):
            ns, size, texts = ns + step.ns, size + step.bytes, texts + step.texts
            scratch = _largest([scratch, step.scratch])
            bytes_ns = max(bytes_ns, step.ns.a_byte + step.ns.a_row_byte)
            if step.is_folded:
                held = held + step.bytes
            if step.ns.a_row:
                rows = min(rows, (int(node_ns) - step.ns.fixed) // step.ns.a_row)
            elif step.ns.fixed > node_ns:
                rows = 0
        for spec in self.inputs:
            cells = Amount(0, spec.columns)
            copies = item_bytes(ELEMENT_TYPES[spec.element]) if spec.words else CELL_BYTES
            size = size + cells * (item_bytes(ELEMENT_TYPES[spec.element]) + copies)
            texts = texts + (cells * 2 if spec.element == "string" else 0)
        for name in outputs:
            size = size + self.tensors[name].size * CELL_BYTES
        if any(spec.batch == 1 for spec in self.inputs):  # one row a run: what is fixed is that row's
            rows = min(rows, 1)
        size = size + scratch
        return Cost(
            fixed_bytes=size.fixed,
            row_bytes=size.a_row,
            row_texts=texts.a_row + texts.fixed + size.a_byte + size.a_row_byte,
            text_bytes=self.text_bytes,
            fixed_ns=ns.fixed,
            row_ns=ns.a_row,
            most_rows=max(rows, 0),
            held_bytes=held.fixed,
            byte_ns=ns.a_byte + ns.a_row_byte,
            most_bytes=int(node_ns) // bytes_ns if bytes_ns else 0,
        )

    def _behind(self, outputs: Collection[str]) -> Iterable[Step]:
        needed = set(outputs)
        for step in reversed(self.steps):
            if not needed.isdisjoint(step.node.output):
                needed.update(step.node.input)
                yield step


def survey(
    graph: onnx.GraphProto,
    inputs: Sequence[InputSpec],
    versions: Mapping[str, int],
    *,
    tensor_elements: int,
    node_seconds: float,
    open_seconds: float,
    constant_bytes: int,
    tokens: int | None = None,
    before: Survey | None = None,
) -> Survey:
    """Walk ``graph``, whose nodes are in order and of known operators.

    Parameters
    ----------
    inputs
        What its inputs take, with the width of each.
    versions
        Of each operator set.
    tensor_elements
        Limit of the elements of one tensor, for one row.
    node_seconds
        Limit of the time of one node, for one row, on a slow core.
    open_seconds, constant_bytes
        Limits of what is computed of constants where a session is opened: of its time and, initializers included, of its size.
    tokens
        Of the text that a transformer reads: the width of each of its inputs.
    before
        A walk of the same graph with other ``tokens``: what constants alone make is taken from it.

    Raises
    ------
    FeatureNotSupported
        Where a size depends on a feature's value, or cannot be told, or a value could end the process.
    InvalidArtifact
        Where shapes do not fit.
    LimitExceeded
        Where a tensor is too large, or a node takes too long.
    """
    tensors: dict[str, Tensor] = {}
    texts = 0
    held = 0
    for initializer in graph.initializer:
        name = initializer.name
        tensors[name] = _initializer(initializer) if before is None else before.tensors[name]
        texts = max(texts, *(len(s) for s in initializer.string_data)) if initializer.string_data else texts
        held += math.prod(initializer.dims) * item_bytes(initializer.data_type)
    single = any(spec.batch == 1 for spec in inputs)
    rows = ONE if single else Amount(0, 1)
    for spec in inputs:
        width = Amount(spec.columns if tokens is None else tokens)
        shape = (rows, width) if spec.rank == 2 else (rows,)
        tensors[spec.name] = Tensor(ELEMENT_TYPES[spec.element], shape)
    steps: list[Step] = []
    opening_ns = 0
    alike = _Alike() if before is None or before.alike is None else before.alike
    varying = {spec.name for spec in inputs}
    for position, node in enumerate(graph.node):
        if before is not None and varying.isdisjoint(node.input):
            steps.append(before.steps[position])
            tensors.update((name, before.tensors[name]) for name in node.output if name)
            continue
        varying.update(filter(None, node.output))
        if tokens is None:
            step, outputs = step_of(node, tensors, versions)
        else:
            step, outputs = alike.step_of(position, node, tensors, versions)
        tensors.update(zip(node.output, outputs, strict=False))
        steps.append(step)
        largest = max((t.size.at(1, texts) for t in outputs), default=0)
        what = f'operator "{node.op_type}"'
        if largest > tensor_elements:
            raise LimitExceeded(
                f"{what} makes a tensor of {largest} elements for one row, limit is {tensor_elements}"
            )
        if step.ns.at(1, texts) > node_seconds * 1e9:
            raise LimitExceeded(
                f"{what} may take {step.ns.at(1) / 1e9:.3g} s for one row, limit is {node_seconds:g} s",
                hint="Such a model could not be interrupted. Register its predictions as a logged model.",
            )
        if node.op_type == "Cast" and any(t.element == TensorProto.STRING for t in outputs):
            texts = max(texts, NUMBER_BYTES)
        if step.is_folded:
            opening_ns += step.ns.fixed
            held += step.bytes.fixed
        if before is not None:
            continue
        for attribute in node.attribute:
            if attribute.strings or attribute.s:
                texts = max(texts, len(attribute.s), *(len(s) for s in attribute.strings), 0)
    if opening_ns > open_seconds * 1e9:
        raise LimitExceeded(
            f"model computes constants for {opening_ns / 1e9:.3g} s where it is opened, limit is {open_seconds:g} s",
            hint="Have the exporter fold constants.",
        )
    if held > constant_bytes:
        raise LimitExceeded(f"model has constants of {held} bytes, limit is {constant_bytes}")
    return Survey(tensors, steps, tuple(inputs), texts if before is None else before.text_bytes, alike)


class _Alike:
    """Nodes of a transformer that are alike, as those of its layers are: one is judged for all.

    What a rule says depends on a node's operator, version, attributes and outputs, and on what is known of the tensors that it
    reads.
    """

    def __init__(self) -> None:
        self._nodes: dict[int, Hashable] = {}
        self._numbers: dict[int, int] = {}
        self._kinds: dict[Hashable, int] = {}
        self._kept: list[Tensor] = []  # so that no other gets their id
        self._known: dict[Hashable, tuple[Step, Sequence[Tensor]]] = {}

    def step_of(
        self, position: int, node: onnx.NodeProto, tensors: Mapping[str, Tensor], versions: Mapping[str, int]
    ) -> tuple[Step, Sequence[Tensor]]:
        """Return what `step_of` does for the node at a place of the graph."""
        if position not in self._nodes:
            attributes = tuple(attribute.SerializeToString() for attribute in node.attribute)
            self._nodes[position] = (node.domain, node.op_type, attributes, tuple(map(bool, node.output)))
        key = (self._nodes[position], tuple(self._number(tensors[n]) if n else -1 for n in node.input))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = step_of(node, tensors, versions)
            return found
        step, outputs = found
        return Step(node, step.ns, step.bytes, step.texts, step.scratch, step.is_folded), outputs

    def _number(self, tensor: Tensor) -> int:
        """Return a number that is the same for tensors of which the same is known."""
        number = self._numbers.get(id(tensor))
        if number is None:
            kind = tuple(_kind(getattr(tensor, part.name)) for part in fields(Tensor))
            number = self._numbers[id(tensor)] = self._kinds.setdefault(kind, len(self._kinds))
            self._kept.append(tensor)
        return number


def _kind(value: Any) -> Hashable:
    """Return something that is the same for equal parts of a tensor; arrays that are large are the same where they are one."""
    if not isinstance(value, np.ndarray):
        found: Hashable = value
        return found
    if value.size > MAX_VALUES:
        return id(value)
    return (str(value.dtype), value.shape, tuple(value.reshape(-1).tolist()))


def _initializer(tensor: TensorProto) -> Tensor:
    whole = tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    if math.prod(tensor.dims) <= MAX_VALUES or (whole and tensor.data_type != TensorProto.STRING):
        return constant(numpy_helper.to_array(tensor), tensor.data_type)
    return Tensor(tensor.data_type, tuple(Amount(size) for size in tensor.dims), False)


def step_of(
    node: onnx.NodeProto, tensors: Mapping[str, Tensor], versions: Mapping[str, int]
) -> tuple[Step, Sequence[Tensor]]:
    """Return a node's costs, and what it gives."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    rule = RULES.get((domain, node.op_type))
    what = f'operator "{node.op_type}"'
    if rule is None:
        raise FeatureNotSupported(f"{what} is not supported")
    read = [tensors[name] if name else None for name in node.input]
    given = [tensor for tensor in read if tensor is not None]
    for tensor in given:
        if tensor.is_map:
            raise FeatureNotSupported(f"{what} reads dictionaries, which is not supported")
        if tensor.is_open and node.op_type not in _READ_OPEN:
            raise FeatureNotSupported(f"{what} reads a tensor whose size depends on the features' values")
        if tensor.is_empty and node.op_type not in _READ_NOTHING:
            raise FeatureNotSupported(f"{what} reads a tensor of no elements, which is not supported")
    call = Call(node, read, versions[domain])
    outputs = rule.infer(call)
    if len(node.output) > len(outputs):
        raise FeatureNotSupported(f"{what} with {len(node.output)} outputs is not supported")
    outputs = outputs[: len(node.output)]
    for tensor in outputs:
        if tensor.is_empty and not (tensor.values is not None and tensor.rank == 1):
            raise InvalidArtifact(f"{what} makes a tensor of shape {tensor.shape}")
    sizes = [tensor.size for tensor in (*(given[1:] if node.op_type in _FETCHES else given), *outputs)]
    most = _largest(sizes)
    ns = [(NODE_NS, ONE), (rule.ns, most), *call.ns]
    if any(tensor.element == TensorProto.DOUBLE for tensor in given):
        ns += call.ns  # half as many fit in a register
    total = Amount(
        math.ceil(sum(each * count.fixed for each, count in ns)),
        math.ceil(sum(each * count.a_row for each, count in ns)),
        math.ceil(sum(each * count.a_byte for each, count in ns)),
        math.ceil(sum(each * count.a_row_byte for each, count in ns)),
    )
    strings = [tensor for tensor in outputs if tensor.element == TensorProto.STRING]
    for tensor in strings:
        if tensor.is_open and tensor.characters is None:
            raise FeatureNotSupported(f"{what} makes strings of the words of a text, which is not supported")
    texts = [tensor.size * tensor.longest for tensor in strings if tensor.characters is None]
    step = Step(
        node,
        total,
        sum((t.size * _held_bytes(t.element) + (t.characters or 0) for t in outputs), Amount(0)),
        sum(texts, Amount(0)),
        sum(call.scratch, Amount(0)),
        not any(tensor.depends or _varies(tensor) for tensor in given),
    )
    return step, outputs


def _largest(amounts: Sequence[Amount]) -> Amount:
    """Return an amount that none of these is above, part by part."""
    return Amount(
        max((a.fixed for a in amounts), default=0),
        max((a.a_row for a in amounts), default=0),
        max((a.a_byte for a in amounts), default=0),
        max((a.a_row_byte for a in amounts), default=0),
    )


def _held_bytes(element: int) -> int:
    """Return the bytes of one element while it is held; float16 is computed as float32, between two casts."""
    return item_bytes(element) * (5 if element == TensorProto.FLOAT16 else 1)


def _varies(tensor: Tensor) -> bool:
    """Return whether a tensor depends on the number of rows."""
    if elements(tensor.shape).a_row:
        return True
    return tensor.values is not None and any(v.a_row for v in tensor.values.reshape(-1))
