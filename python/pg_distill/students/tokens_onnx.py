"""The tokeniser as a graph of ONNX's standard operators, and sums over the n-grams that it finds.

Texts become a flat list of words and the row of each: a list has no padding, and texts of any lengths share it. Each
separator splits the list once more, so time grows with the separators, 9 nodes each: some 0.5 ms for a text of 300
characters. Where that matters, as in a backend, `tokens.Tokeniser` finds the same n-grams in some 20 us.

Memory grows with the words times the most separators in a row: a text of `tokens.MOST_CHARACTERS` that is made for it
takes some hundred megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from pg_distill.frame import FloatArray
from pg_distill.students.export import TEXT_KEY, Graph
from pg_distill.students.tokens import SEPARATORS, Tokeniser

__all__ = ["add_ngrams", "add_sums", "read_tokenisers"]


def add_ngrams(graph: Graph, text: str, tokeniser: Tokeniser) -> tuple[str, str]:
    """Add what finds the n-grams of texts; return the names of two int64 tensors (m,): rows, ascending, and ids.

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
    found = _distinct(graph, *parts, tokeniser.size)
    said = {"text": text, "rows": found[0], "ids": found[1], "marks": tokeniser.marks, "tables": tables}
    graph.tokenised.append(said)
    return found


def read_tokenisers(model: onnx.ModelProto) -> list[Tokeniser]:
    """Return the tokenisers that `add_ngrams` has written into a file, in the order of the metadata's ``columns``."""
    said = next(p.value for p in model.metadata_props if p.key == TEXT_KEY)
    makers = {node.output[0]: node for node in model.graph.node if node.op_type == "LabelEncoder"}
    found = []
    for column in json.loads(said)["columns"]:
        tables = {
            name: {a.name: helper.get_attribute_value(a) for a in makers[tensor].attribute}
            for name, tensor in column["tables"].items()
        }
        words: list[list[str]] = []
        if "words" in tables:
            table = tables["words"]
            words = [[] for _ in range(max(table["values_int64s"]))]
            for form, code in zip(table["keys_strings"], table["values_int64s"], strict=True):
                words[code - 1].append(form.decode())
        stride = len(words) + 1
        keys = tables["pairs"]["keys_int64s"] if "pairs" in tables else []
        pairs = tuple((key // stride - 1, key % stride - 1) for key in keys)
        found.append(Tokeniser(tuple(map(tuple, words)), column["marks"], pairs))
    return found


def add_sums(graph: Graph, text: str, rows: str, ids: str, table: FloatArray) -> str:
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


def _split(graph: Graph, text: str) -> tuple[str, str]:
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


def _look_up(graph: Graph, x: str, default: int, **table: Mapping[str, int] | Mapping[int, int]) -> str:
    """Return the numbers of words, or of keys."""
    ((keys, numbers),) = table.items()
    attributes: dict[str, Any] = {keys: list(numbers), "values_int64s": list(numbers.values())}
    return graph.node("LabelEncoder", [x], domain="ai.onnx.ml", default_int64=default, **attributes)


def _pairs(graph: Graph, code: str, owner: str, tokeniser: Tokeniser) -> tuple[str, str]:
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


def _marks(graph: Graph, text: str, tokeniser: Tokeniser) -> tuple[str, str]:
    """Return the rows and ids of the marks that texts have."""
    axis = graph.constant(np.array([1], np.int64))
    counts = [graph.node("Unsqueeze", [graph.split(text, mark)[1], axis]) for mark in tokeniser.marks]
    many = graph.node("Greater", [graph.node("Concat", counts, axis=1), graph.scalar(1)])
    places = graph.node("NonZero", [many])
    row, mark = (graph.node("Gather", [places, graph.scalar(i)], axis=0) for i in (0, 1))
    return row, graph.node("Add", [mark, graph.scalar(len(tokeniser.words))])


def _distinct(graph: Graph, rows: str, ids: str, size: int) -> tuple[str, str]:
    """Return rows and ids without unknown ones (-1), each once, in order."""
    known = graph.node("GreaterOrEqual", [ids, graph.scalar(0)])
    width = graph.scalar(size)
    key = graph.node("Add", [graph.node("Mul", [rows, width]), ids])
    key = graph.node("Unique", [graph.node("Compress", [key, known], axis=0)], sorted=1)
    return graph.node("Div", [key, width]), graph.node("Mod", [key, width])
