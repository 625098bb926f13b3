"""A served graph is the stored one cut down: to the outputs that are read, and without its dictionaries of strings.

Cut on the wire format of protocol buffers, because a backend has no use for onnx's 30 MB. The numbers of the fields are
those of onnx.proto: ModelProto.graph 7; GraphProto.node 1, initializer 5, input 11, output 12; NodeProto.input 1, output 2,
op_type 4, attribute 5, domain 7; ValueInfoProto.name 1, type 2; TypeProto.tensor_type 1, in it elem_type 1 and shape 2;
TensorProto.dims 1, data_type 2, name 8, raw_data 9; AttributeProto.name 1, f 2, i 3, floats 7, ints 8, strings 9;
ModelProto.metadata_props 14, of StringStringEntryProto key 1 and value 2; TensorShapeProto.dim 1, of it dim_value 1.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pg_distill.errors import InvalidArtifact
from pg_distill.onnx_model.protobuf import field, fields, read_integers, write_varint
from pg_distill.onnx_model.signature import Reader
from pg_distill.onnx_model.texts import INPUT, TEXT_KEY, TextReader, read_together
from pg_distill.onnx_model.tokens import MARKS, Tokeniser
from pg_distill.onnx_model.vectorizers import VECTORS_KEY, VectorReader, read_vectorizers

__all__ = ["Lookup", "cut_lookups", "cut_texts", "prune"]

_ELEMENTS = {"float32": 1, "int64": 7, "float64": 11}  # of TensorProto.DataType
KEYS_A_CHECK = 1 << 15  # strings of a table that are read in some 30 ms
_CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}  # graphs in them may read any tensor from outside


def prune(artifact: bytes, outputs: Sequence[str]) -> bytes:
    """Return the graph with the tensors ``outputs`` as its only outputs, and only the nodes that these need.

    onnxruntime runs every node whatever it is asked for: a ZipMap that makes a dict of each row, a label
    that nobody reads. The stored artifact stays as its owner gave it; what a session is opened on is this.
    Nodes are in topological order (`check.check`).

    Raises
    ------
    InvalidArtifact
        Where the bytes are not a message.
    """
    rest: list[bytes | memoryview] = []
    graph: list[bytes | memoryview] = []
    nodes: list[tuple[memoryview, list[str], list[str]]] = []
    try:
        for number, whole, payload in fields(memoryview(artifact)):
            if number != 7:
                rest.append(whole)
                continue
            for inner, inner_whole, inner_payload in fields(payload):
                if inner == 1:
                    names: tuple[list[str], list[str]] = ([], [])
                    for n, _, value in fields(inner_payload):
                        if n in (1, 2):
                            names[n - 1].append(str(value, "utf-8"))
                    nodes.append((inner_whole, *names))
                elif inner != 12:
                    graph.append(inner_whole)
    except (IndexError, UnicodeDecodeError) as error:
        raise InvalidArtifact("artifact is not readable as ONNX", detail=f"{error}.") from error
    needed = set(outputs)
    kept: list[bytes | memoryview] = []
    for node, inputs, given in reversed(nodes):
        if not needed.isdisjoint(given):
            needed.update(inputs)
            kept.append(node)
    declared = (field(12, field(1, name.encode())) for name in outputs)
    return b"".join([*rest, field(7, b"".join([*reversed(kept), *graph, *declared]))])


@dataclass(frozen=True)
class Lookup:
    """A LabelEncoder that stood between an input of strings and the rest of the graph.

    ``source`` is the graph's input, ``target`` the input of numbers that the cut graph has instead; a string that is not in
    ``table`` becomes ``default``.
    """

    source: str
    target: str
    table: dict[str | None, float]
    default: float
    element: Literal["float32", "int64"]

    def read_null_as(self, string: str) -> None:
        """Look None up as ``string``, too."""
        self.table[None] = self.table.get(string, self.default)

    def numbers(self, strings: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what ``strings`` become, in the same shape."""
        found = map(self.table.get, strings.ravel().tolist(), itertools.repeat(self.default))
        return np.fromiter(found, self.element, strings.size).reshape(strings.shape)


def cut_lookups(
    graph: bytes, sources: Collection[str], check: Callable[[], None] = lambda: None
) -> tuple[bytes, tuple[Lookup, ...]]:
    """Return a graph of `prune` without the LabelEncoders at its inputs of strings, ``sources``, and these.

    A Python dictionary looks a few strings up in less time than onnxruntime takes to make a tensor of them, and a session
    whose inputs are all of numbers can be bound to buffers. An input with other readers too stays as it is. A table of a
    million strings takes a second to read: ``check`` is called again and again, and may raise.
    """
    rest: list[memoryview] = []
    parts: list[tuple[int, memoryview, memoryview]] = []
    for number, whole, payload in fields(memoryview(graph)):
        if number == 7:
            parts.extend(fields(payload))
        else:
            rest.append(whole)
    if not any(number == 11 and _text(payload, 1) in sources for number, _, payload in parts):
        return graph, ()
    nodes = [_Node(payload) for number, _, payload in parts if number == 1]
    if any(node.operator in _CONTROL_FLOW for node in nodes):
        return graph, ()
    taken = {_text(payload, 8) for number, _, payload in parts if number == 5}
    taken |= {_text(payload, 1) for number, _, payload in parts if number == 12}
    inputs: dict[str, tuple[memoryview, bytes]] = {}
    lookups: list[Lookup] = []
    for number, whole, payload in parts:
        name = _text(payload, 1) if number == 11 else ""
        if name not in sources or name in taken:
            continue
        found = [node.lookup(name, check) for node in nodes if name in node.inputs]
        made = [lookup for lookup in found if lookup is not None and lookup.target not in taken]
        if found and len(made) == len(found):
            inputs[name] = whole, _shape(payload)
            lookups.extend(made)
    if not lookups:
        return graph, ()
    cut = {id(whole) for whole, _ in inputs.values()}
    targets = {lookup.target for lookup in lookups}
    encoders = {id(node.payload) for node in nodes if not targets.isdisjoint(node.outputs)}
    kept: list[memoryview | bytes] = [
        whole for _, whole, payload in parts if id(whole) not in cut and id(payload) not in encoders
    ]
    for lookup in lookups:
        kind = bytes([1 << 3, _ELEMENTS[lookup.element]])
        value = field(1, lookup.target.encode()) + field(2, field(1, kind + inputs[lookup.source][1]))
        kept.append(field(11, value))
    return b"".join([*rest, field(7, b"".join(kept))]), tuple(lookups)


def cut_texts(artifact: bytes, check: Callable[[], None] = lambda: None) -> tuple[bytes, tuple[Reader, ...]]:
    """Return a file without the nodes that read texts, and the readers whose numbers it takes in their place.

    A file whose metadata names none is returned as it is. A converted pipeline has no such nodes, only readers. What a file
    names is believed here: `approve` has compared it with the nodes. ``check`` is called again and again, and may raise.

    Raises
    ------
    InvalidArtifact
        Where what the metadata names is not there.
    """
    if VECTORS_KEY.encode() in artifact:
        artifact, vectors = _cut_tables(artifact, check)
        if vectors:
            return artifact, vectors
    if TEXT_KEY.encode() not in artifact:
        return artifact, ()
    rest: list[bytes | memoryview] = []
    parts: list[tuple[int, memoryview, memoryview]] = []
    said = None
    try:
        for number, whole, payload in fields(memoryview(artifact)):
            if number == 7:
                parts.extend(fields(payload))
            elif number == 14 and _text(payload, 1) == TEXT_KEY:
                said = json.loads(_text(payload, 2))
            else:
                rest.append(whole)
        if said is None:
            return artifact, ()
        nodes = [_Node(payload) for number, _, payload in parts if number == 1]
        makers = {name: node for node in nodes for name in node.outputs}
        stored = {_text(payload, 8): payload for number, _, payload in parts if number == 5}
        columns = tuple(said["columns"])
        if not all(isinstance(name, str) for name in columns) or len(set(columns)) < len(columns):
            raise ValueError("columns have names")
        readers = tuple(
            read_together([_reader(columns, own, makers, stored, check) for own in said["readers"]])
        )
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidArtifact("model does not say how it reads texts", detail=f"{error!r}.") from error
    targets = {reader.target: reader.width for reader in readers}
    outputs = [_text(payload, 1) for number, _, payload in parts if number == 12]
    if len(targets) < len(readers) or not targets or not targets.keys().isdisjoint(outputs):
        raise InvalidArtifact("model does not say how it reads texts", detail="A tensor is named twice.")
    needed = set(outputs)
    kept: list[memoryview | bytes] = []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.outputs) and targets.keys().isdisjoint(node.outputs):
            needed.update(node.inputs)
            kept.append(field(1, bytes(node.payload)))
    kept.reverse()
    if INPUT in needed:
        raise InvalidArtifact(
            "model does not say how it reads texts", detail="It reads texts elsewhere, too."
        )
    for number, whole, payload in parts:
        unused = number == 5 and _text(payload, 8) not in needed
        if number != 1 and not unused and not (number == 11 and _text(payload, 1) == INPUT):
            kept.append(whole)
    for name, width in targets.items():
        dims = field(1, field(2, b"rows")) + field(1, b"\x08" + write_varint(width))
        tensor = bytes([1 << 3, _ELEMENTS["float32"]]) + field(2, dims)
        kept.append(field(11, field(1, name.encode()) + field(2, field(1, tensor))))
    return b"".join([*rest, field(7, b"".join(kept))]), readers


def _cut_tables(artifact: bytes, check: Callable[[], None]) -> tuple[bytes, tuple[VectorReader, ...]]:
    """Return a converted pipeline without what it says of its vectorizers, and these; the file itself where it says nothing."""
    said: list[str] = []
    inputs: dict[str, int] = {}
    stored: dict[str, memoryview] = {}
    rest: list[memoryview | bytes] = []
    parts: list[tuple[str | None, memoryview]] = []
    try:
        for number, whole, payload in fields(memoryview(artifact)):
            if number == 14 and _text(payload, 1) == VECTORS_KEY:
                said.append(_text(payload, 2))
            elif number != 7:
                rest.append(whole)
            for inner, inner_whole, value in fields(payload) if number == 7 else ():
                name = _text(value, 8) if inner == 5 else None
                if name is not None:
                    stored[name] = value
                elif inner == 11:
                    inputs[_text(value, 1)] = _float64_columns(value)
                parts.append((name, inner_whole))
    except (IndexError, ValueError) as error:
        raise InvalidArtifact("artifact is not readable as ONNX", detail=f"{error}.") from error
    if len(said) > 1:
        raise InvalidArtifact("model does not say how it reads texts", detail="It says so twice.")
    if not said:
        return artifact, ()
    used: set[str] = set()

    def table(name: str) -> npt.NDArray[np.float64]:
        used.add(name)
        return _floats(stored[name], "float64")

    readers = read_vectorizers(said[0], inputs, table, check)
    kept = [whole for name, whole in parts if name not in used]
    return b"".join([*rest, field(7, b"".join(kept))]), readers


def _float64_columns(value_info: memoryview) -> int:
    """Return how many columns an input of float64 (n, columns) has; 0 for any other."""
    kinds: list[int] = []
    dims: list[int] = []
    for number, _, kind in fields(value_info):
        for inner, _, tensor in fields(kind) if number == 2 else ():
            for n, _, part in fields(tensor) if inner == 1 else ():
                if n == 1:
                    kinds += read_integers(part)
                elif n == 2:
                    dims += [dict(_dim(dim)).get(1, 0) for place, _, dim in fields(part) if place == 1]
    return dims[1] if kinds == [_ELEMENTS["float64"]] and len(dims) == 2 and dims[0] == 0 else 0


def _dim(dim: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the number of a dimension, where it has one."""
    for number, _, value in fields(dim):
        if number == 1:
            yield 1, next(read_integers(value))


def _reader(
    columns: tuple[str, ...],
    said: Mapping[str, Any],
    makers: Mapping[str, _Node],
    stored: Mapping[str, memoryview],
    check: Callable[[], None],
) -> TextReader:
    """Return the reader that the metadata describe; KeyError, TypeError or ValueError where they do not."""
    words: list[list[str]] = []
    if said["words"] is not None:
        spelled = makers[said["words"]].table(check)
        if not all(isinstance(form, str) for form in spelled):
            raise ValueError("words are strings")
        codes = set(spelled.values())
        if not codes or min(codes) != 1 or max(codes) != len(codes):
            raise ValueError("words are numbered from 1")
        words = [[] for _ in codes]
        for form, code in spelled.items():
            words[code - 1].append(str(form))
    pairs: list[tuple[int, int]] = []
    if said["pairs"] is not None:
        stride = len(words) + 1
        for key in makers[said["pairs"]].table(check):
            if not isinstance(key, int) or not 0 < key // stride <= len(words) or not key % stride:
                raise ValueError("pairs are of words")
            pairs.append((key // stride - 1, key % stride - 1))
    marks, column, target = said["marks"], said["column"], said["output"]
    if type(column) is not int or not 0 <= column < len(columns):
        raise ValueError("column")
    if not isinstance(marks, str) or not set(marks) <= set(MARKS) or not isinstance(target, str):
        raise ValueError("marks or output")
    tokeniser = Tokeniser(tuple(map(tuple, words)), marks, tuple(pairs))
    units = np.array(said["units"], np.float64)
    table = _floats(stored[said["table"]])
    if units.ndim != 1 or not 1 < len(units) <= MOST_WIDTH or not (np.isfinite(units) & (units > 0)).all():
        raise ValueError("units")
    if table.shape != (tokeniser.size, len(units)) or not np.isfinite(table).all() or not tokeniser.size:
        raise ValueError("table")
    if (table[:, -1] < 0).any():
        raise ValueError("squares are not below 0")
    return TextReader(target, columns, column, tokeniser, table, units)


MOST_WIDTH = 257
"""Columns of a table of texts."""


def _floats(tensor: memoryview, element: str = "float32") -> npt.NDArray[np.float64]:
    """Return a tensor of float32 or float64, stored as raw bytes."""
    dims: list[int] = []
    data = b""
    for number, _, payload in fields(tensor):
        if number == 1:
            dims.extend(read_integers(payload))
        elif number == 2 and list(read_integers(payload)) != [_ELEMENTS[element]]:
            raise ValueError(f"table is of {element}")
        elif number == 9:
            data = bytes(payload)
    return np.frombuffer(data, "<f4" if element == "float32" else "<f8").astype(np.float64).reshape(dims)


class _Node:
    """What `cut_lookups` and `cut_texts` ask of a node."""

    def __init__(self, payload: memoryview) -> None:
        self.payload = payload
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.attributes: list[memoryview] = []
        self.operator = _text(payload, 4)
        self.is_encoder = (self.operator, _text(payload, 7)) == ("LabelEncoder", "ai.onnx.ml")
        for number, _, value in fields(payload):
            if number in (1, 2):
                (self.inputs if number == 1 else self.outputs).append(str(value, "utf-8"))
            elif number == 5:
                # Read where it is asked for: those of trees have hundreds of thousands of fields.
                self.attributes.append(value)

    def table(self, check: Callable[[], None]) -> dict[str | int, int]:
        """Return the table of a LabelEncoder from strings or whole numbers to whole numbers, in its order."""
        if not self.is_encoder:
            raise ValueError("a table is a LabelEncoder")
        keys: list[str | int] = []
        values: list[int] = []
        for attribute in self.attributes:
            name = _text(attribute, 1)
            for number, _, value in fields(attribute):
                if number == 9 and name == "keys_strings":
                    if len(keys) % KEYS_A_CHECK == 0:
                        check()
                    keys.append(str(value, "utf-8"))
                elif number == 8 and name == "keys_int64s":
                    keys.extend(read_integers(value))
                elif number == 8 and name == "values_int64s":
                    values.extend(read_integers(value))
        table = dict(zip(keys, values, strict=True))
        if len(table) < len(keys):
            raise ValueError("a key stands twice")
        return table

    def lookup(self, source: str, check: Callable[[], None]) -> Lookup | None:
        """Return the node as a lookup; None where it is none from strings to numbers."""
        if not self.is_encoder:
            return None
        floats: list[float] = []
        integers: list[int] = []
        keys: list[str] = []
        defaults: dict[str, float] = {"default_int64": -1, "default_float": -0.0}
        for attribute in self.attributes:
            name = _text(attribute, 1)
            if name not in ("keys_strings", "values_floats", "values_int64s", "default_string", *defaults):
                return None
            for number, _, value in fields(attribute):
                if number == 9 and name == "keys_strings":
                    if len(keys) % KEYS_A_CHECK == 0:
                        check()
                    keys.append(str(value, "utf-8", "surrogateescape"))
                elif number == 7:
                    floats.extend(np.frombuffer(value, "<f4").tolist())
                elif number == 8:
                    integers.extend(read_integers(value))
                elif number == 2 and name == "default_float":
                    defaults[name] = float(np.frombuffer(value, "<f4")[0])
                elif number == 3 and name == "default_int64":
                    defaults[name] = next(read_integers(value))
        if len(set(keys)) < len(keys) or len(keys) != len(floats) + len(integers) or (floats and integers):
            return None
        table: dict[str | None, float] = dict(zip(keys, floats or integers, strict=True))
        if integers:
            return Lookup(source, self.outputs[0], table, defaults["default_int64"], "int64")
        return (
            Lookup(source, self.outputs[0], table, defaults["default_float"], "float32") if floats else None
        )


def _text(message: memoryview, field: int) -> str:
    """Return a field of text; the empty string where there is none."""
    found = (
        str(value, "utf-8", "surrogateescape") for number, _, value in fields(message) if number == field
    )
    return next(found, "")


def _shape(value_info: memoryview) -> bytes:
    """Return the field of an input's shape; nothing where it has none."""
    for number, _, kind in fields(value_info):
        for inner, _, tensor in fields(kind) if number == 2 else ():
            for n, whole, _ in fields(tensor) if inner == 1 else ():
                if n == 2:
                    return bytes(whole)
    return b""
