"""Hostile ONNX files: real exports and grown graphs, changed field by field, so that most still parse and reach deep.

A mutant is a function of its seeds and a number: what a run finds, its number finds again.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from fuzz.growth import NAMES, grow
from onnx import AttributeProto, TensorProto

__all__ = ["mutate"]

GROWN_SHARE = 0.2  # of the mutants start as a graph that `growth` made, half of these as it is
BYTE_SHARE, CUT_SHARE, FILE_SHARE = 0.12, 0.04, 0.12  # of the others; the rest have fields changed
SAID_SHARE = 0.4  # of the last, where a file says in JSON how it reads texts: what it says is changed

INTEGERS = [-1, 0, 1, 2, 3, 5, 6, 7, 100, 2**31 - 1, -(2**31), 2**31, 2**62, -(2**63), 2**63 - 1]
FLOATS = [0.0, -1.0, float("nan"), float("inf"), 1e30, -1e38, 1e-40]
PATTERNS = [
    "[a-z]+",
    "(a*)*b",
    "[a-z]|[a-z].*Q",
    r"\\b\\w\\w+\\b",
    "((a{100}){100}){100}",
    "[",
    " ",
    "a" * 3000,
    "C",
    "../../x",
]
TEXTS = [
    "",
    "x",
    "LOGISTIC",
    "SOFTMAX",
    "NONE",
    "PROBIT",
    "RBF",
    "POLY",
    "L1",
    "MAX",
    "é\u202e",
    *NAMES,
    *PATTERNS,
]
_OPERATORS = """
    Add Mul Concat Gather MatMul Gemm Softmax Reshape Transpose ReduceSum Slice TopK Expand Tile Cast Squeeze Unsqueeze
    Scaler Normalizer Imputer ArrayFeatureExtractor OneHotEncoder LabelEncoder Binarizer FeatureVectorizer SVMClassifier
    SVMRegressor LinearRegressor GatherND ScatterND Einsum Conv MaxPool LayerNormalization If Loop Scan StringSplit
    RegexFullMatch TfIdfVectorizer ConstantOfShape Range Pad NonZero StringNormalizer StringConcat Tokenizer Flatten
"""
OPERATORS = tuple(_OPERATORS.split())
INTEGER_TYPES = (1, 2, 3, 4)  # protobuf's CPPTYPE_INT32 ... UINT64
FLOAT_TYPES = (5, 6)
BOOL_TYPE, ENUM_TYPE = 7, 8


def mutate(number: int, seeds: Sequence[bytes], paths: Sequence[str]) -> bytes:
    """Return the mutant of this ``number``; some of them ask for one of the ``paths``."""
    rng = random.Random(number)
    grown = rng.random()
    artifact = grow(number) if grown < GROWN_SHARE else rng.choice(seeds)
    if grown < GROWN_SHARE / 2:
        return artifact
    kind = rng.random()
    if kind < BYTE_SHARE:
        changed = bytearray(artifact)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)
    if kind < BYTE_SHARE + CUT_SHARE:
        start, end = sorted(rng.randrange(len(artifact)) for _ in range(2))
        return artifact[:start] + artifact[end:]
    model = onnx.ModelProto.FromString(artifact)
    if kind < BYTE_SHARE + CUT_SHARE + FILE_SHARE:
        _ask_for_file(rng, model, rng.choice(paths))
    if any(p.value.startswith("{") for p in model.metadata_props) and rng.random() < SAID_SHARE:
        _change_said(rng, model)
    for _ in range(rng.randint(0 if kind > 0.8 else 1, 3)):
        try:
            _change_field(rng, model, seeds)
        except (ValueError, TypeError, OverflowError):
            continue  # a value that this field cannot hold
    return model.SerializeToString()


def _change_said(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change what the metadata say of the graph: a value, or one in the place of another."""
    entry = rng.choice([p for p in model.metadata_props if p.value.startswith("{")])
    said = json.loads(entry.value)
    for _ in range(rng.randint(1, 2)):
        places = list(_places(said))
        if not places:
            break
        holder, key = rng.choice(places)
        way = rng.random()
        if way < 0.2:
            del holder[key]
        elif way < 0.5:
            holder[key] = copy.deepcopy(rng.choice([h[k] for h, k in places]))
        else:
            holder[key] = rng.choice([None, True, 1.5, [], {}, *INTEGERS, *TEXTS])
    entry.value = json.dumps(said)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield where the parts of a JSON value are; of a long list some."""
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(min(len(value), 5))
        if isinstance(value, list)
        else ()
    )
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _messages(root: Any) -> list[Any]:
    found, stack = [], [root]
    while stack:
        message = stack.pop()
        found.append(message)
        for descriptor, value in message.ListFields():
            if descriptor.message_type is not None:
                stack.extend(list(value) if hasattr(value, "add") else [value])
    return found


def _ask_for_file(rng: random.Random, model: onnx.ModelProto, path: str) -> None:
    """Hide a tensor of external data, or a path as text, where a reader might follow it."""
    tensors = [m for m in _messages(model) if isinstance(m, TensorProto)]
    way = rng.randrange(5)
    if way == 0 and tensors:
        _external(rng.choice(tensors), path)
    elif way == 1:
        node = rng.choice(model.graph.node)
        attribute = node.attribute.add(name="value", type=AttributeProto.TENSOR)
        attribute.t.dims.append(4)
        attribute.t.data_type = TensorProto.FLOAT
        _external(attribute.t, path)
    elif way == 2:
        node = rng.choice(model.graph.node)
        inner = onnx.GraphProto.FromString(model.graph.SerializeToString())
        attribute = node.attribute.add(name="body", type=AttributeProto.GRAPH)
        attribute.g.CopyFrom(inner)
        for tensor in attribute.g.initializer:
            _external(tensor, path)
    elif way == 3:
        sparse = model.graph.sparse_initializer.add()
        sparse.dims.append(4)
        _external(sparse.values, path)
    else:
        texts = [m for m in _messages(model) if isinstance(m, AttributeProto) and m.HasField("s")]
        for attribute in texts:
            attribute.s = path.encode()
        model.metadata_props.add(key="location", value=path)
        model.graph.quantization_annotation.add(tensor_name=path)


def _external(tensor: TensorProto, path: str) -> None:
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=path)


def _change_field(rng: random.Random, model: onnx.ModelProto, seeds: Sequence[bytes]) -> None:
    messages = [m for m in _messages(model) if m.ListFields()]
    valued = [m for m in messages if isinstance(m, AttributeProto | TensorProto)]
    # Half of the changes go to the values, which are few fields of many.
    message = rng.choice(valued if valued and rng.random() < 0.5 else messages)
    descriptor, value = rng.choice(message.ListFields())
    kind, repeated = descriptor.cpp_type, hasattr(value, "append") or hasattr(value, "add")
    if descriptor.message_type is not None:
        _change_messages(rng, message, descriptor.name, value, repeated, seeds)
    elif repeated:
        at, way = rng.randrange(len(value)), rng.random()
        if way < 0.25:
            del value[at]
        elif way < 0.4:
            value.append(value[at])
        elif kind in INTEGER_TYPES:
            value[at] = rng.choice([*INTEGERS, *map(int, value[:50])])
        elif kind in FLOAT_TYPES:
            value[at] = rng.choice(FLOATS)
        else:
            value[at] = rng.choice(list(value))
    elif kind in (*INTEGER_TYPES, BOOL_TYPE, ENUM_TYPE):
        setattr(message, descriptor.name, rng.choice(INTEGERS))
    elif kind in FLOAT_TYPES:
        setattr(message, descriptor.name, rng.choice(FLOATS))
    elif descriptor.name == "op_type":
        message.op_type = rng.choice(OPERATORS)
    elif isinstance(value, bytes):
        changed = bytearray(value or b"x")
        changed[rng.randrange(len(changed))] = rng.randrange(256)
        setattr(message, descriptor.name, bytes(changed))
    elif value.startswith("{") and rng.random() < 0.9:
        setattr(message, descriptor.name, _change_json(rng, value))
    else:
        setattr(message, descriptor.name, rng.choice([*TEXTS, value + "x"]))


def _change_json(rng: random.Random, text: str) -> str:
    """Change one value of an object, however deep: metadata say how texts are read."""
    try:
        whole = json.loads(text)
    except ValueError:
        return text + "}"
    places: list[tuple[Any, Any]] = []
    stack = [whole]
    while stack:
        value = stack.pop()
        inner = list(value.items() if isinstance(value, dict) else enumerate(value))
        places += [(value, key) for key, _ in inner]
        stack += [v for _, v in inner if isinstance(v, dict | list)]
    if not places:
        return "[]"
    holder, key = rng.choice(places)
    old = holder[key]
    if rng.random() < 0.1:
        del holder[key]
    else:
        odd: list[Any] = [
            None,
            -1,
            0,
            1,
            2**63,
            10**400,
            1e308,
            float("nan"),
            float("-inf"),
            True,
            "",
            "x" * 1000,
            [],
            {},
            [old],
            old,
        ]
        holder[key] = rng.choice([*odd, *([old * 1000] if isinstance(old, str | list) else [])])
    return json.dumps(whole)


def _change_messages(
    rng: random.Random, parent: Any, name: str, value: Any, repeated: bool, seeds: Sequence[bytes]
) -> None:
    if not repeated:
        parent.ClearField(name)
        return
    way = rng.random()
    if way < 0.3:
        del value[rng.randrange(len(value))]
    elif way < 0.6:
        value.add().CopyFrom(rng.choice(value))
    elif way < 0.9:
        one, other = rng.choice(value), rng.choice(value)
        kept = type(one)()
        kept.CopyFrom(one)
        one.CopyFrom(other)
        other.CopyFrom(kept)
    elif isinstance(value[0], onnx.NodeProto):
        donor = onnx.ModelProto.FromString(rng.choice(seeds))
        value.add().CopyFrom(rng.choice(donor.graph.node))
