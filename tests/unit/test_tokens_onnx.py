"""The tokeniser as a graph finds the n-grams that numpy's finds, in a bare ONNX Runtime."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_distill.frame import Feature
from pg_distill.students.export import TEXT_KEY, Graph, Numbers
from pg_distill.students.tokens import APART, MOST_CHARACTERS, Tokeniser, prepare
from pg_distill.students.tokens_onnx import add_ngrams, add_sums, read_tokenisers
from text_rows import NGRAMS, SPECIAL, texts

TOKENISERS = {
    "all": NGRAMS,
    "words": Tokeniser(NGRAMS.words, "", ()),
    "marks": Tokeniser((), "!.,", ()),
    "pairs": Tokeniser(NGRAMS.words, "", NGRAMS.pairs),
}


class Bare:
    """A session of ONNX Runtime on a graph that gives rows, ids and sums."""

    def __init__(self, tokeniser: Tokeniser, table: npt.NDArray[np.float64]) -> None:
        graph = Graph(Numbers((Feature("body", "text"),), "float", np.zeros(0)))
        text = graph.text(0)
        rows, ids = add_ngrams(graph, text, tokeniser)
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
@settings(max_examples=150, deadline=None)
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
def test_a_file_gives_its_tokeniser_back(name: str) -> None:
    assert read_tokenisers(BARE[name].model) == [TOKENISERS[name]]


def test_a_backend_may_tokenise_itself() -> None:
    """What stands behind the n-grams answers the same, given the n-grams that numpy's tokeniser finds."""
    model = BARE["all"].model
    said = json.loads(next(p.value for p in model.metadata_props if p.key == TEXT_KEY))["columns"][0]
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    del rest.graph.node[:], rest.graph.output[:]
    needed = {"value"}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output) and not {said["rows"], said["ids"]}.intersection(node.output):
            needed.update(node.input)
            rest.graph.node.insert(0, node)
    rest.graph.output.append(model.graph.output[2])
    rest.graph.input.extend(onnx.helper.make_tensor_value_info(said[k], 7, [None]) for k in ("rows", "ids"))
    assert len(rest.graph.node) < 12
    rows = ["Not good, bad!", None, "東京", ""]
    bags = read_tokenisers(model)[0].bags(rows)
    feeds = {"texts": np.full((4, 1), "", object), said["rows"]: bags.rows, said["ids"]: bags.ids}
    found = ort.InferenceSession(rest.SerializeToString()).run(None, feeds)[0]
    assert found.tolist() == BARE["all"].run([prepare(text) for text in rows])[2].tolist()


def test_most_texts_are_read_as_they_are() -> None:
    rows = ["Not good, bad!", "zürich МОСКВА", "a" * MOST_CHARACTERS, ""]
    assert [prepare(text) for text in rows] == rows


def test_the_file_says_what_it_wants() -> None:
    wanted = {p.key: p.value for p in BARE["all"].model.metadata_props}
    said = json.loads(wanted[TEXT_KEY])
    assert (said["characters"], said["apart"]) == (MOST_CHARACTERS, APART)
    for text in ("東京 x", "good😀" * 9000, "plain"):
        assert eval(said["python"], {"re": re}, {"text": text}) == prepare(text)
    assert {o.domain: o.version for o in BARE["all"].model.opset_import}[""] == 20
    assert {n.domain for n in BARE["all"].model.graph.node} <= {"", "ai.onnx.ml"}
    onnx.checker.check_model(BARE["all"].model)
