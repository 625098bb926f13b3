"""The tokeniser as a graph of ONNX's standard operators, and sums over the n-grams that it finds.

Texts become a flat list of words and the row of each: a list has no padding, and texts of any lengths share it. Each
separator splits the list once more, so time grows with the separators, 9 nodes each: some 0.5 ms for a text of 300
characters. Where that matters, as in a backend, `tokens.Tokeniser` finds the same n-grams in some 20 us.

Memory grows with the words times the most separators in a row: a text of `tokens.MOST_CHARACTERS` that is made for it
takes some hundred megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx

from pg_distill.errors import FeatureNotSupported, InvalidArtifact
from pg_distill.frame import FloatArray
from pg_distill.onnx_model.builder import Builder
from pg_distill.onnx_model.texts import INPUT, TEXT_KEY, TextReader
from pg_distill.onnx_model.tokens import SEPARATORS, WANTED, Tokeniser

__all__ = ["TEXT_OPSET", "add_ngrams", "add_reader", "add_sums", "add_text", "hold_readers"]


TEXT_OPSET = 20
"""Of which StringSplit is."""


def add_text(graph: Builder, column: int) -> str:
    """Return the name of the (n,) string tensor of the column at this position among the texts."""
    return graph.shared(("text", column), "Gather", [INPUT, graph.scalar(column)], axis=1)


def add_reader(
    graph: Builder, column: int, tokeniser: Tokeniser, table: FloatArray, units: FloatArray
) -> dict[str, Any]:
    """Add what `texts.TextReader` computes; return what it is told by, for the metadata: JSON.

    The tensor named ``output`` is float (n, w).

    Parameters
    ----------
    column
        Position among the columns of texts.
    table
        (V, w + 1) whole numbers below 2 ** 24, the last column one of squares.
    units
        (w + 1,) what 1 in each column is.
    """
    text = add_text(graph, column)
    rows, ids, tables = add_ngrams(graph, text, tokeniser)
    stored = graph.constant(table.astype(np.float32))
    sums = graph.node("Mul", [add_sums(graph, text, rows, ids, table), graph.constant(units)])
    width = len(units) - 1
    # Where there is no n-gram, 0 is divided by 1; an idf is 1 at least.
    square = graph.node("Gather", [sums, graph.constant(np.array([width]))], axis=1)
    length = graph.node("Sqrt", [graph.node("Max", [square, graph.constant(np.ones(1))])])
    own = graph.node("Gather", [sums, graph.constant(np.arange(width))], axis=1)
    output = graph.node("Cast", [graph.node("Div", [own, length])], to=1)  # TensorProto.FLOAT
    return {
        "column": column,
        "output": output,
        "marks": tokeniser.marks,
        "words": tables.get("words"),
        "pairs": tables.get("pairs"),
        "table": stored,
        "units": units.tolist(),
    }


def hold_readers(model: onnx.ModelProto, served: onnx.ModelProto, readers: Iterable[TextReader]) -> None:
    """Hold the readers of a file against the nodes that they stand for: these are built anew, and compared one by one.

    Parameters
    ----------
    served
        The file without these nodes.

    Raises
    ------
    InvalidArtifact
        Where one node or constant is another.
    FeatureNotSupported
        Where the file wants other texts than `tokens.prepare` makes.
    """
    said = json.loads(next(p.value for p in model.metadata_props if p.key == TEXT_KEY))
    if {name: said.get(name) for name in WANTED} != dict(WANTED):
        raise FeatureNotSupported(
            "model reads texts by other rules than this version of pg_distill",
            hint="Register it with the version that made it.",
        )
    versions = {o.domain: o.version for o in model.opset_import}
    if versions.get("", 0) < TEXT_OPSET:
        raise InvalidArtifact(f"model reads texts, which needs opset {TEXT_OPSET}")
    built = Builder()
    theirs, their_constants = _makers(model.graph.node), {t.name: t for t in model.graph.initializer}
    outputs = []
    for reader in readers:
        said = add_reader(built, reader.column, reader.tokeniser, reader.table, reader.units)
        outputs.append((reader.target, said["output"]))
    if len(model.graph.node) != len(served.graph.node) + len(built.nodes):
        raise _other()
    ours, our_constants = _makers(built.nodes), {t.name: t for t in built.tensors}
    same: dict[str, str] = {INPUT: INPUT}
    stack = outputs
    while stack:
        their, our = stack.pop()
        if their in same:
            if same[their] != our:
                raise _other()
            continue
        same[their] = our
        if our in our_constants:
            a, b = their_constants.get(their), our_constants[our]
            if a is None or their in theirs or _content(a) != _content(b):
                raise _other()
            continue
        if their not in theirs or their in their_constants:
            raise _other()
        (a_node, a_at), (b_node, b_at) = theirs[their], ours[our]
        if a_at != b_at or _kind(a_node) != _kind(b_node) or len(a_node.input) != len(b_node.input):
            raise _other()
        stack.extend(zip(a_node.input, b_node.input, strict=True))


def _other() -> InvalidArtifact:
    return InvalidArtifact(
        "model does not read its texts as its metadata says",
        hint="Register the file as pg_distill wrote it, or remove its metadata.",
    )


def _makers(nodes: Iterable[onnx.NodeProto]) -> dict[str, tuple[onnx.NodeProto, int]]:
    return {name: (node, place) for node in nodes for place, name in enumerate(node.output)}


def _kind(node: onnx.NodeProto) -> tuple[Any, ...]:
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return node.op_type, node.domain, len(node.output), attributes


def _content(tensor: onnx.TensorProto) -> bytes:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.ClearField("name")
    return bytes(copy.SerializeToString(deterministic=True))


def add_ngrams(graph: Builder, text: str, tokeniser: Tokeniser) -> tuple[str, str, dict[str, str]]:
    """Add what finds the n-grams of texts; return the names of two int64 tensors (m,): rows, ascending, and ids.

    Beside them the tensors that its tables of words and of pairs give.

    They are `Bags.rows` and ``Bags.ids`` of ``tokeniser.bags``, in the same order.

    Parameters
    ----------
    text
        Name of a string tensor (n,), n at least 1, of texts that `tokens.prepare` has been at.
    tokeniser
        One that knows at least one n-gram.
    """
    rows, ids = [], []
    tables: dict[str, str] = {}
    if tokeniser.words:
        # The parts of a blend share the words, and may know others of them.
        words, owner = graph.once(("words", text), lambda: _split(graph, text))
        tables["words"] = code = _look_up(
            graph, words, UNKNOWN, keys_strings={form: i + 1 for form, i in tokeniser.word_ids.items()}
        )
        rows.append(owner)
        ids.append(graph.node("Sub", [code, graph.scalar(1)]))
        if tokeniser.pairs:
            key, row = _pairs(graph, code, owner, tokeniser)
            stride = len(tokeniser.words) + 1
            keys = {
                (a + 1) * stride + b + 1: i
                for (a, b), i in zip(tokeniser.pairs, tokeniser.pair_ids.values(), strict=True)
            }
            tables["pairs"] = pair = _look_up(graph, key, -1, keys_int64s=keys)
            rows.append(row)
            ids.append(pair)
    if tokeniser.marks:
        row, mark = _marks(graph, text, tokeniser)
        rows.append(row)
        ids.append(mark)
    parts = graph.node("Concat", rows, axis=0), graph.node("Concat", ids, axis=0)
    return (*_distinct(graph, *parts, tokeniser.size), tables)


def add_sums(graph: Builder, text: str, rows: str, ids: str, table: FloatArray) -> str:
    """Add the sums (n, w) of each row's entries in ``table`` (V, w); return the name of the double tensor.

    float32 holds the table, and sums are of float64: the same as numpy's and SQL's but for the last bits.
    """
    picked = graph.node("Gather", [graph.constant(table.astype(np.float32)), ids], axis=0)
    picked = graph.node("Cast", [picked], to=11)  # TensorProto.DOUBLE
    count = graph.node("Shape", [text])
    width = graph.constant(np.array([table.shape[1]], np.int64))
    shape = graph.node("Concat", [count, width], axis=0)
    zeros = graph.node("Expand", [graph.constant(np.zeros((1, 1))), shape])
    places = graph.node("Unsqueeze", [rows, graph.constant(np.array([1], np.int64))])
    return graph.node("ScatterND", [zeros, places, picked], reduction="add")


UNKNOWN = 0
"""Code of a word that is not in the vocabulary; the word with the number i has the code i + 1."""


def _split(graph: Builder, text: str) -> tuple[str, str]:
    """Return the words of all texts, in order, and the row of each (m,)."""
    one, last = graph.constant(np.array([1], np.int64)), graph.constant(np.array([-1], np.int64))
    column = graph.constant(np.array([-1, 1], np.int64))
    nothing = graph.scalar("")
    zero, step = graph.scalar(0), graph.scalar(1)
    # "C" is the one locale that every machine has.
    words = graph.node(
        "StringNormalizer", [text], case_change_action="LOWER", is_case_sensitive=1, locale="C"
    )
    count = graph.node("Squeeze", [graph.node("Shape", [text])])
    owner = graph.node("Unsqueeze", [graph.node("Range", [zero, count, step]), one])
    for separator in SEPARATORS:
        parts = graph.split(words, separator)[0]
        owner = graph.node("Expand", [owner, graph.node("Shape", [parts])])
        owner = graph.node("Reshape", [owner, column])
        words = graph.node("Reshape", [parts, last])
        full = graph.node("Not", [graph.node("Equal", [words, nothing])])
        words = graph.node("Compress", [words, full], axis=0)
        owner = graph.node("Compress", [owner, full], axis=0)
    return words, graph.node("Reshape", [owner, last])


def _look_up(graph: Builder, x: str, default: int, **table: Mapping[str, int] | Mapping[int, int]) -> str:
    """Return the numbers of words, or of keys."""
    ((keys, numbers),) = table.items()
    attributes: dict[str, Any] = {keys: list(numbers), "values_int64s": list(numbers.values())}
    return graph.node("LabelEncoder", [x], domain="ai.onnx.ml", default_int64=default, **attributes)


def _pairs(graph: Builder, code: str, owner: str, tokeniser: Tokeniser) -> tuple[str, str]:
    """Return a number for the codes of each two words in a row (of no pair where they are of two texts), and the row."""
    start, end, most, axis = (
        graph.constant(np.array([i], np.int64)) for i in (0, -1, np.iinfo(np.int64).max, 0)
    )
    one = graph.constant(np.array([1], np.int64))

    def first(x: str) -> str:
        return graph.node("Slice", [x, start, end, axis])

    def second(x: str) -> str:
        return graph.node("Slice", [x, one, most, axis])

    row = first(owner)
    stride = graph.scalar(len(tokeniser.words) + 1)
    key = graph.node("Add", [graph.node("Mul", [first(code), stride]), second(code)])
    together = graph.node("Equal", [row, second(owner)])
    return graph.node("Where", [together, key, graph.scalar(UNKNOWN)]), row


def _marks(graph: Builder, text: str, tokeniser: Tokeniser) -> tuple[str, str]:
    """Return the rows and ids of the marks that texts have."""
    axis = graph.constant(np.array([1], np.int64))
    counts = [graph.node("Unsqueeze", [graph.split(text, mark)[1], axis]) for mark in tokeniser.marks]
    many = graph.node("Greater", [graph.node("Concat", counts, axis=1), graph.scalar(1)])
    places = graph.node("NonZero", [many])
    row, mark = (graph.node("Gather", [places, graph.scalar(i)], axis=0) for i in (0, 1))
    return row, graph.node("Add", [mark, graph.scalar(len(tokeniser.words))])


def _distinct(graph: Builder, rows: str, ids: str, size: int) -> tuple[str, str]:
    """Return rows and ids without unknown ones (-1), each once, in order."""
    known = graph.node("GreaterOrEqual", [ids, graph.scalar(0)])
    width = graph.scalar(size)
    key = graph.node("Add", [graph.node("Mul", [rows, width]), ids])
    key = graph.node("Unique", [graph.node("Compress", [key, known], axis=0)], sorted=1)
    return graph.node("Div", [key, width]), graph.node("Mod", [key, width])
