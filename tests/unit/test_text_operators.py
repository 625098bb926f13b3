"""Operators that read strings: what they make of a text is bounded, and no attribute that does not fit reaches ONNX Runtime."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from pg_distill.errors import FeatureNotSupported, InvalidArtifact, LimitExceeded, PgDistillError
from pg_distill.frame import Feature, Frame, Strings
from pg_distill.onnx_model.amounts import Amount
from pg_distill.onnx_model.approve import approve
from pg_distill.onnx_model.check import check
from pg_distill.onnx_model.derive import survey_of
from pg_distill.onnx_model.limits import DEFAULT_LIMITS
from pg_distill.onnx_model.rules_texts import instructions
from pg_distill.onnx_model.session import Model
from pg_distill.onnx_model.signature import InputSpec, Signature
from text_graphs import FITTED, exported, graph, ngrams, pipeline, text_seeds, tokenizer

SEEDS = text_seeds()
AWKWARD = [
    "",
    " ",
    "refund",
    "Refund  LATE",
    "é😀東京",
    "\n",
    "x" * 3000,
    "refund late " * 200,
    "\x01\x1f",
    "#",
]


def table(texts: list[str]) -> Frame:
    return Frame((Feature("x", "string"),), {"x": Strings.from_values(texts)})


def approved(file: bytes, texts: list[str] = AWKWARD, task: Any = "regression") -> Signature:
    rows = table(texts)
    return approve(file, features=rows.features, rows=rows, task=task).signature


@pytest.mark.parametrize("name", SEEDS)
def test_each_is_read_as_onnxruntime_reads_it(name: str) -> None:
    signature = approved(SEEDS[name])
    model = Model(SEEDS[name], signature)
    session = ort.InferenceSession(SEEDS[name])
    expected = session.run(None, {"x": np.array(AWKWARD, object).reshape(-1, 1)})[0].reshape(-1)
    np.testing.assert_allclose(model.run_frame(table(AWKWARD))[:, 0], expected, atol=1e-6)
    for text, value in zip(AWKWARD, expected, strict=True):
        assert model.run_row({"x": text})[0] == pytest.approx(value, abs=1e-6)
    # A run in which no text has a word.
    assert np.isfinite(model.run_frame(table(["", "", " "]))).all()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ngram_range": (1, 2), "sublinear_tf": True},
        {"analyzer": "char", "ngram_range": (1, 3)},
        {"binary": True},
    ],
)
def test_skl2onnx_own_files_pass(settings: dict[str, Any]) -> None:
    pytest.importorskip("skl2onnx")
    from sklearn.feature_extraction.text import TfidfVectorizer

    model, file = exported(TfidfVectorizer(**settings))
    rows = table(FITTED)
    approval = approve(file, features=rows.features, rows=rows)
    np.testing.assert_allclose(approval.outputs, model.predict_proba(FITTED), atol=1e-5)


def test_what_a_text_makes_is_bounded_by_its_length() -> None:
    file = pipeline(tokenizer("lower", tokenexp=None, separators=[""]))
    spec = InputSpec("x", "string", 2, (0,))
    found = survey_of(check(file), [spec], DEFAULT_LIMITS)
    words, counts = found.tensors["words"], found.tensors["counts"]
    assert words.is_open and not counts.is_open
    session = ort.InferenceSession(_with_output(file, "words"))
    for text in ("", "a", "é" * 100, "refund " * 50, "😀" * 30):
        size = session.run(["words"], {"x": np.array([[text]], object)})[0].shape[1]
        assert size <= words.shape[-1].at(1, len(text.encode()))
    cost = approved(file).cost
    assert cost is not None and cost.most_bytes > 10_000
    rows = [cost.rows(1 << 30, size) for size in (10, 1000, 10_000, 100_000, 10_000_000)]
    assert rows == sorted(rows, reverse=True) and rows[-1] == 0
    assert all(
        n * size <= cost.most_bytes for n, size in zip(rows, (10, 1000, 10_000, 100_000), strict=False)
    )


def _with_output(file: bytes, name: str) -> bytes:
    model = onnx.ModelProto.FromString(file)
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    return model.SerializeToString()


def test_long_strings_times_many_ngrams_are_refused_before_they_run() -> None:
    pool = [f"w{i}" for i in range(2000)]
    many = ngrams(
        "flattened",
        max_gram_length=1,
        ngram_counts=[0],
        ngram_indexes=list(range(2000)),
        pool_strings=pool,
        max_skip_count=10,
    )
    file = graph(
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        tokenizer("rows", tokenexp=None, separators=[""]),
        helper.make_node("Identity", ["words"], ["flattened"]),
        many,
        helper.make_node("ReduceSum", ["counts", "axis"], ["value"]),
        flat=np.array([-1]),
        axis=np.array([1]),
    )
    model = Model(file, approved(file))
    for characters in (1_000_000, 10_000_000):
        began = time.process_time()
        for call in (
            lambda n=characters: model.run_row({"x": "a" * n}),
            lambda n=characters: model.run_frame(table(["a" * n])),
        ):
            with pytest.raises(LimitExceeded):
                call()
        assert time.process_time() - began < 0.5
    # Whatever is taken can be waited for: the longest text that is let in takes no longer than a node may.
    assert model.signature.cost is not None
    longest = max(
        n for n in (100, 1000, 10_000, 30_000, 100_000) if model.signature.cost.rows(1 << 30, n) >= 1
    )
    began = time.process_time()
    model.run_row({"x": "a" * longest})
    assert time.process_time() - began < DEFAULT_LIMITS.node_seconds


HOSTILE_POOLS: dict[str, dict[str, Any]] = {
    "a place before": {"ngram_indexes": [-1, 1, 2, 3, 4, 5, 6, 7]},
    "a place beyond": {"ngram_indexes": [2**62, 1, 2, 3, 4, 5, 6, 7]},
    "a wide place": {"ngram_indexes": [1 << 24, 1, 2, 3, 4, 5, 6, 7]},
    "a place twice": {"ngram_indexes": [1, 1, 2, 3, 4, 5, 6, 7]},
    "few places": {"ngram_indexes": [0, 1]},
    "no places": {"ngram_indexes": None},
    "a count before": {"ngram_counts": [-1, 6]},
    "a count beyond": {"ngram_counts": [0, 11]},
    "a huge count": {"ngram_counts": [0, 2**62]},
    "counts in disorder": {"ngram_counts": [6, 0]},
    "counts that start late": {"ngram_counts": [2, 6]},
    "half a pair": {"ngram_counts": [0, 5]},
    "few counts": {"ngram_counts": [0]},
    "no counts": {"ngram_counts": None},
    "many counts": {"ngram_counts": [0, 6, *[10] * 100]},
    "no length": {"min_gram_length": 0},
    "a length below 0": {"min_gram_length": -5},
    "lengths in disorder": {"min_gram_length": 2, "max_gram_length": 1},
    "a huge length": {"max_gram_length": 2**62},
    "a skip below 0": {"max_skip_count": -1},
    "a huge skip": {"max_skip_count": 2**62},
    "another mode": {"mode": "DF"},
    "no mode": {"mode": None},
    "no pool": {"pool_strings": None},
    "two pools": {"pool_int64s": [1] * 10},
    "a pool of integers": {"pool_strings": None, "pool_int64s": [*range(10)]},
    "few weights": {"weights": [1.0]},
}


@pytest.mark.parametrize("name", HOSTILE_POOLS)
def test_a_pool_that_does_not_fit_is_refused(name: str) -> None:
    _refused(pipeline(count=ngrams("flattened", **HOSTILE_POOLS[name])))


HOSTILE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "an expression that takes a square of time": {"tokenexp": "[a-z]|[a-z].*Q"},
    "an expression that is none": {"tokenexp": "["},
    "an empty match": {"tokenexp": "[a-z]*"},
    "any characters": {"tokenexp": ".+"},
    "an end of a word": {"tokenexp": r"[a-z]+\b"},
    "a long expression": {"tokenexp": "[" + "a" * 5000 + "]+"},
    "neither": {"tokenexp": None},
    "both": {"separators": [" "]},
    "a separator that is an expression": {"tokenexp": None, "separators": ["a*"]},
    "a separator that is anything": {"tokenexp": None, "separators": ["."]},
    "a separator that is a class": {"tokenexp": None, "separators": ["[a-z]"]},
    "a giant separator": {"tokenexp": None, "separators": ["x" * 1_000_000]},
    "many separators": {"tokenexp": None, "separators": [f"s{i}" for i in range(1000)]},
    "no separator among others": {"tokenexp": None, "separators": [" ", ""]},
    "a separator that is no text": {"tokenexp": None, "separators": [b"\xff"]},
    "no characters": {"mincharnum": 0},
    "characters below 0": {"mincharnum": -(2**62)},
    "a giant pad": {"pad_value": "#" * 1_000_000},
    "no pad": {"pad_value": None},
    "no mark": {"mark": None},
    "a mark that is a text": {"mark": "x"},
    "an attribute that it does not have": {"stopwords": ["a"]},
}


@pytest.mark.parametrize("name", HOSTILE_TOKENIZERS)
def test_a_tokenizer_that_does_not_fit_is_refused(name: str) -> None:
    _refused(pipeline(tokenizer("lower", **HOSTILE_TOKENIZERS[name])))


def _refused(file: bytes) -> None:
    with pytest.raises(PgDistillError) as caught:
        approve(file, task="regression")
    assert isinstance(caught.value, InvalidArtifact | FeatureNotSupported | LimitExceeded)
    assert "opened" not in caught.value.message, "it reached ONNX Runtime"


def node(operator: str, **attributes: Any) -> bytes:
    outputs = ["y", "z"] if operator == "StringSplit" else ["y"]
    return graph(
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node(operator, ["rows"], outputs, **attributes),
        helper.make_node("Equal", ["rows", "rows"], ["same"]),
        helper.make_node("Cast", ["same"], ["value"], to=1),
        flat=np.array([-1]),
    )


@pytest.mark.parametrize(
    "file",
    [
        node("StringNormalizer", stopwords=["a"]),
        node("StringNormalizer", case_change_action="TITLE"),
        node("StringNormalizer", locale="../../etc/passwd"),
        node("StringNormalizer", locale="/tmp/locale"),
        node("StringNormalizer", locale="C" * 100_000),
        node("RegexFullMatch", pattern="((((a{100}){100}){100}){100})"),
        node("RegexFullMatch", pattern=r"(\pL{30}){30}"),
        node("RegexFullMatch", pattern="a" * 10_000),
        node("RegexFullMatch", pattern=b"\xff"),
        node("StringSplit", delimiter=b"\xff"),
    ],
)
def test_others_that_do_not_fit_are_refused(file: bytes) -> None:
    _refused(file)


def words_read_by(*nodes: onnx.NodeProto) -> bytes:
    return graph(
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("StringSplit", ["rows"], ["words", "parts"]),
        *nodes,
        helper.make_node("Cast", ["parts"], ["value"], to=1),
        flat=np.array([-1]),
        a=np.array(["a"], object),
    )


@pytest.mark.parametrize(
    "file",
    [
        # Words of words, pairs of words, strings made of words, sizes of words.
        words_read_by(helper.make_node("StringSplit", ["words"], ["more", "n"])),
        words_read_by(helper.make_node("StringConcat", ["words", "a"], ["more"])),
        words_read_by(helper.make_node("StringConcat", ["a", "words"], ["more"])),
        words_read_by(helper.make_node("Concat", ["words", "words"], ["more"], axis=1)),
        words_read_by(helper.make_node("Equal", ["words", "a"], ["more"])),
        words_read_by(
            helper.make_node("Shape", ["words"], ["s"]), helper.make_node("ConstantOfShape", ["s"], ["more"])
        ),
        words_read_by(
            helper.make_node("Size", ["words"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["more"])
        ),
        words_read_by(helper.make_node("Slice", ["words", "flat", "flat"], ["more"])),
        words_read_by(helper.make_node("Unique", ["words"], ["more"])),
        words_read_by(
            helper.make_node(
                "LabelEncoder",
                ["words"],
                ["more"],
                domain="ai.onnx.ml",
                keys_strings=["a"],
                values_strings=["b"],
            )
        ),
        words_read_by(tokenizer("words", "more")),
    ],
)
def test_what_grows_faster_than_a_text_is_refused(file: bytes) -> None:
    _refused(file)


def test_strings_that_are_joined_count_as_long_as_both() -> None:
    nodes = [helper.make_node("StringConcat", ["x", "x"], ["s0"])]
    nodes += [helper.make_node("StringConcat", [f"s{i}", f"s{i}"], [f"s{i + 1}"]) for i in range(14)]
    last = [
        helper.make_node("RegexFullMatch", ["s14"], ["found"], pattern="a*"),
        helper.make_node("Cast", ["found"], ["value"], to=1),
    ]
    model = Model(graph(*nodes, *last), approved(graph(*nodes, *last), ["", "a"]))
    assert model.run_row({"x": "a"})[0] == 1.0
    with pytest.raises(LimitExceeded):
        model.run_row({"x": "a" * 1000})


def test_a_regular_expression_takes_time_linear_in_the_text() -> None:
    for pattern in ("(a*)*b", "(a|aa)*$", "(a?){25}a{25}", r"(?i)(refund|late)+.*x?", "[a-z]+@[a-z]+"):
        assert instructions(pattern) < 10_000
        file = graph(
            helper.make_node("RegexFullMatch", ["x"], ["found"], pattern=pattern),
            helper.make_node("Cast", ["found"], ["value"], to=1),
        )
        model = Model(file, approved(file, ["", "a"]))
        assert model.signature.cost is not None
        longest = max(
            n for n in (10, 100, 1000, 10_000, 100_000, 1_000_000) if model.signature.cost.rows(1 << 30, n)
        )
        began = time.process_time()
        model.run_row({"x": "a" * longest})
        assert time.process_time() - began < DEFAULT_LIMITS.node_seconds


@pytest.mark.parametrize(
    ("pattern", "least", "most"),
    [
        ("abc", 3, 100),
        (r"\d{4}-\d{2}-\d{2}", 10, 500),
        ("(ab){100}", 200, 5000),
        ("((a{10}){10}){10}", 1000, 30_000),
        ("(((a{100}){100}){100}){100}", 10**8, 1 << 60),
        (r"\pL{30}", 30 * 500, 10**6),
        ("[a-z]+@[a-z]+", 4, 1000),
        (r"\{3\}", 3, 200),
        ("a)){3}(", 1, 1000),
    ],
)
def test_instructions_are_no_fewer_than_re2_has(pattern: str, least: int, most: int) -> None:
    assert least <= instructions(pattern) <= most


def test_amounts_of_texts() -> None:
    rows, text = Amount(0, 1), Amount(1, a_byte=2, at_most=True)
    assert (rows * text).at(3, 10) == 63
    assert (rows * text).at_most and (rows * text).over(rows) == text
    assert text != Amount(1, a_byte=2) and text.sign is None
    for work in (lambda: text * text, lambda: rows - text, lambda: -text, lambda: (rows * text) * rows):
        with pytest.raises(FeatureNotSupported):
            work()
