"""The tokeniser as a graph finds the n-grams that numpy's finds, in a bare ONNX Runtime."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_distill.errors import FeatureNotSupported, InvalidArtifact, LimitExceeded
from pg_distill.frame import Feature, Strings
from pg_distill.onnx_model.check import check_file
from pg_distill.onnx_model.cut import cut_texts
from pg_distill.onnx_model.texts import TEXT_KEY, TextReader
from pg_distill.onnx_model.tokens import APART, MOST_CHARACTERS, Tokeniser, prepare
from pg_distill.onnx_model.tokens_graph import add_ngrams, add_sums, add_text
from pg_distill.students.export import Graph, Numbers
from text_files import TOKENISERS, UNITS, text_file, whole_table
from text_rows import NGRAMS, SPECIAL, texts


class Bare:
    """A session of ONNX Runtime on a graph that gives rows, ids and sums."""

    def __init__(self, tokeniser: Tokeniser, table: npt.NDArray[np.float64]) -> None:
        graph = Graph(Numbers((Feature("body", "text"),), "float", np.zeros(0)))
        text = add_text(graph, 0)
        rows, ids, _ = add_ngrams(graph, text, tokeniser)
        sums = add_sums(graph, text, rows, ids, table)
        model = onnx.ModelProto.FromString(graph.finish(sums, "regression", table.shape[1], {}))
        del model.graph.output[:]
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, element, shape)
            for name, element, shape in ((rows, 7, [None]), (ids, 7, [None]), ("value", 11, [None, None]))
        )
        self.model = model
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model.SerializeToString(), options)

    def run(self, rows: Sequence[str]) -> list[npt.NDArray[np.float64]]:
        feeds = {"texts": np.array(rows, object).reshape(-1, 1)}
        return list(self.session.run(None, feeds))


TABLE = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32).astype(np.float64)
BARE = {name: Bare(t, TABLE[: t.size]) for name, t in TOKENISERS.items()}


def check(name: str, rows: Sequence[str | None]) -> None:
    found, ids, sums = BARE[name].run([prepare(text) for text in rows])
    bags = TOKENISERS[name].bags(rows)
    assert ids.tolist() == bags.ids.tolist()
    assert found.tolist() == bags.rows.tolist()
    expected = np.zeros((len(rows), TABLE.shape[1]))
    np.add.at(expected, bags.rows, TABLE[bags.ids])
    np.testing.assert_allclose(sums, expected, atol=1e-12)


@pytest.mark.parametrize("name", TOKENISERS)
@given(rows=st.lists(st.one_of(st.none(), texts()), min_size=1, max_size=5))
@settings(max_examples=150)
def test_random_texts(name: str, rows: list[str | None]) -> None:
    check(name, rows)


@pytest.mark.parametrize("text", SPECIAL)
def test_awkward_texts(text: str) -> None:
    check("all", [text, None, "Not good!", text * 2])
    check("all", [text])


@pytest.mark.parametrize("text", ["Not good, bad! ", "東京", "Москва zürich ", "a\n", "é😀"])
def test_texts_of_100_kb(text: str) -> None:
    long = text * (100_000 // len(text.encode()))
    check("all", [long, "good", long.lower()])


@pytest.mark.parametrize("name", TOKENISERS)
def test_a_file_gives_its_reader_back(name: str) -> None:
    served, readers = cut_texts(text_file(TOKENISERS[name], TOKENISERS["marks"]))
    assert [reader.tokeniser for reader in readers] == [TOKENISERS[name], TOKENISERS["marks"]]
    assert (readers[0].table == whole_table(TOKENISERS[name])).all() and (readers[0].units == UNITS).all()
    model = onnx.ModelProto.FromString(served)
    assert [node.op_type for node in model.graph.node] == ["Add", "ReduceSum"]
    assert [value.name for value in model.graph.input] == list(dict.fromkeys(r.target for r in readers))
    assert len(served) < 1000, "its tables are gone"


@given(rows=st.lists(st.one_of(st.none(), texts()), min_size=1, max_size=5))
@settings(max_examples=60)
def test_a_reader_reads_as_its_nodes_do(rows: list[str | None]) -> None:
    _, (reader,) = cut_texts(FILE)
    feeds = {"texts": np.array([prepare(text) for text in rows], object).reshape(-1, 1)}
    expected = WHOLE.run(None, feeds)[0]
    numbers = reader.numbers(Strings.from_values(rows))
    assert CUT.run(None, {reader.target: numbers})[0].tolist() == expected.tolist()
    alone = np.stack([reader.read(text) for text in rows]).astype(np.float32)
    assert alone.tolist() == numbers.tolist()


FILE = text_file(NGRAMS)
WHOLE, CUT = (ort.InferenceSession(file) for file in (FILE, cut_texts(FILE)[0]))


def test_our_own_files_pass() -> None:
    for tokenisers in ([NGRAMS], [NGRAMS, TOKENISERS["pairs"], TOKENISERS["marks"]], [NGRAMS, NGRAMS]):
        check_file(text_file(*tokenisers))


def said_of(model: onnx.ModelProto) -> onnx.StringStringEntryProto:
    return next(p for p in model.metadata_props if p.key == TEXT_KEY)


def change_said(**changes: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        entry = said_of(model)
        said = json.loads(entry.value)
        top = {k: v for k, v in changes.items() if k in said}
        said |= top
        if top.keys() < changes.keys():
            said["readers"][0] |= {k: v for k, v in changes.items() if k not in top}
        entry.value = json.dumps(said)

    return change


def change_default(model: onnx.ModelProto) -> None:
    next(a for n in model.graph.node for a in n.attribute if a.name == "default_int64").i = 1


def change_separator(model: onnx.ModelProto) -> None:
    splits = [n for n in model.graph.node if n.op_type == "StringSplit"]
    splits[3].attribute[0].s = b"q"


def change_constant(model: onnx.ModelProto) -> None:
    one = next(t for t in model.graph.initializer if list(t.dims) == [1, 1])
    one.raw_data = np.ones(1).tobytes()


def change_operator(model: onnx.ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "Div").op_type = "Mul"


def swap_inputs(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "Div")
    node.input[:] = list(node.input)[::-1]


def add_reader_of_texts(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, onnx.helper.make_node("StringSplit", ["texts"], ["more", "n"], delimiter=" "))


def read_texts_elsewhere(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, onnx.helper.make_node("Shape", ["texts"], ["size"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("size", 7, [2]))


@pytest.mark.parametrize(
    "change",
    [
        change_default, change_separator, change_constant, change_operator, swap_inputs, add_reader_of_texts,
        read_texts_elsewhere,
        change_said(units=[1.0, 1.0, 1.0]), change_said(units=[]), change_said(units=["a", "b", "c"]),
        change_said(units=[float("nan")] * 3), change_said(units=[-1.0] * 3), change_said(units=[1e300] * 3), change_said(units=[10**400] * 3),
        change_said(marks="!?"), change_said(marks="é"), change_said(marks=7), change_said(column=1),
        change_said(column=-1), change_said(column=True), change_said(words=None), change_said(words="nothing"),
        change_said(pairs=None), change_said(table="nothing"), change_said(output="nothing"), change_said(output="value"),
        change_said(output=[]), change_said(readers=[]), change_said(readers=None), change_said(readers=[7]),
        change_said(columns=[]), change_said(columns=[1]), change_said(columns=7), change_said(characters=10**9),
        change_said(apart="[x]"), change_said(null="x"),
    ],
)  # fmt: skip
def test_a_file_whose_metadata_lie_is_refused(change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.ModelProto.FromString(FILE)
    change(model)
    with pytest.raises((InvalidArtifact, FeatureNotSupported)):
        check_file(model.SerializeToString())


@pytest.mark.parametrize("text", ["", "[", "7", "{}", "[" * 100_000, '{"columns": ["a"]}', "\udcff"])
def test_metadata_that_are_none_are_refused(text: str) -> None:
    model = onnx.ModelProto.FromString(FILE)
    said_of(model).value = text.encode("utf-8", "replace").decode()
    with pytest.raises(InvalidArtifact):
        check_file(model.SerializeToString())


def test_texts_of_another_rule_are_refused_by_name() -> None:
    model = onnx.ModelProto.FromString(FILE)
    change_said(characters=20_000)(model)
    with pytest.raises(FeatureNotSupported):
        check_file(model.SerializeToString())


def test_most_texts_are_read_as_they_are() -> None:
    rows = ["Not good, bad!", "zürich МОСКВА", "a" * MOST_CHARACTERS, ""]
    assert [prepare(text) for text in rows] == rows


def test_the_file_says_what_it_wants() -> None:
    model = onnx.ModelProto.FromString(FILE)
    said = json.loads(said_of(model).value)
    assert (said["characters"], said["apart"], said["columns"]) == (MOST_CHARACTERS, APART, ["body"])
    for text in ("東京 x", "good😀" * 9000, "plain"):
        assert eval(said["python"], {"re": re}, {"text": text}) == prepare(text)
    assert {o.domain: o.version for o in model.opset_import}[""] == 20
    assert {n.domain for n in model.graph.node} <= {"", "ai.onnx.ml"}
    onnx.checker.check_model(model)


def test_there_are_not_too_many_readers() -> None:
    with pytest.raises(LimitExceeded):
        check_file(text_file(*[TOKENISERS["marks"]] * 65))


def test_long_texts_are_added_up_in_parts() -> None:
    """A table of many columns times many n-grams would be a gigabyte."""
    words = tuple((f"w{i}",) for i in range(3000))
    tokeniser = Tokeniser(words, "", ())
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.integers(-999, 999, (3000, 200)), np.ones(3000)]).astype(np.float64)
    reader = TextReader("t", ("body",), 0, tokeniser, table, np.ones(201))
    rows = [" ".join(f"w{i}" for i in rng.integers(0, 3000, 1500)) if k % 5 else None for k in range(40)]
    tracemalloc.start()
    found = reader.numbers(Strings.from_values(rows))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert found.tolist() == [reader.read(text).astype(np.float32).tolist() for text in rows]
