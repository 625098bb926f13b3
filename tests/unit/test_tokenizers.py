"""Tokenizers: which are taken, what a text becomes, and what one is refused for."""

from __future__ import annotations

import base64
import copy
import importlib
import json
import random
import sys
from typing import Any

import numpy as np
import onnx
import pytest
from bench import minilm
from hostile_tokenizers import TOKENIZERS
from pg_distill.errors import (
    FeatureNotSupported,
    InvalidArtifact,
    InvalidData,
    InvalidState,
    LimitExceeded,
    PgDistillError,
)
from pg_distill.frame import Feature, Frame, Strings
from pg_distill.onnx_model import tokenizer_rules
from pg_distill.onnx_model.approve import approve
from pg_distill.onnx_model.check import check
from pg_distill.onnx_model.derive import survey_of
from pg_distill.onnx_model.limits import Limits
from pg_distill.onnx_model.nodes import opset_versions
from pg_distill.onnx_model.signature import Signature
from pg_distill.onnx_model.survey import step_of
from pg_distill.onnx_model.teacher import TeacherModel
from pg_distill.onnx_model.text_model import TextModel
from pg_distill.onnx_model.tokenizer import TOKENIZER_KEY, Tokens, attach, metadata
from pg_distill.onnx_model.tokenizer_rules import PATTERNS, check_tokenizer, open_tokenizer
from pg_distill.onnx_model.transformer import text_inputs, walk
from tiny_transformer import classifier, encoder, reviews, tokenizer, vocabulary

pytestmark = pytest.mark.slow

library: Any = pytest.importorskip("tokenizers")

TEXT = "The film was great, isn't it? unlovely 1234 \U0001f600 naïve\n\n  end"


def test_the_parts_that_are_listed_are_those_of_the_library() -> None:
    """Each component that the library writes, under any of its settings, is taken; texts become what they do outside."""
    models, normalizers, pre, post = (
        importlib.import_module(f"tokenizers.{name}")
        for name in ("models", "normalizers", "pre_tokenizers", "processors")
    )
    words = vocabulary()
    letters = {c: i for i, c in enumerate(sorted(pre.ByteLevel.alphabet()))}
    pieces = [
        ("<unk>", 0.0),
        *((w, -float(i)) for i, w in enumerate(["\u2581the", "\u2581film", *"\u2581abcdefghijklm"])),
    ]
    plain = normalizers.Sequence(
        [
            normalizers.NFKC(), normalizers.NFD(), normalizers.NFC(), normalizers.NFKD(), normalizers.Nmt(),
            normalizers.Lowercase(), normalizers.Strip(), normalizers.StripAccents(), normalizers.Replace("``", '"'),
            normalizers.Replace(library.Regex(" {2,}"), " "), normalizers.Prepend("\u2581"),
        ]
    )  # fmt: skip
    splits = pre.Sequence(
        [
            pre.Whitespace(), pre.WhitespaceSplit(), pre.Punctuation(), pre.Digits(individual_digits=True),
            pre.UnicodeScripts(), pre.CharDelimiterSplit("|"), pre.Split(library.Regex(r"\s+"), "isolated"),
        ]
    )  # fmt: skip
    specials = [("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])]
    made = []
    for model, normalizer, pre_tokenizer, processor in (
        (models.WordPiece(words, unk_token="[UNK]"), normalizers.BertNormalizer(), pre.BertPreTokenizer(),
         post.BertProcessing(specials[1], specials[0])),
        (models.WordLevel(words, unk_token="[UNK]"), plain, splits,
         post.TemplateProcessing("[CLS] $A [SEP]", special_tokens=specials)),
        (models.BPE(letters, []), normalizers.NFC(), pre.ByteLevel(),
         post.Sequence([post.ByteLevel(), post.RobertaProcessing(("a", 3), ("b", 4))])),
        (models.BPE(letters, [], fuse_unk=True, byte_fallback=True), normalizers.ByteLevel(), None, None),
        (models.Unigram(pieces, 0, False), normalizers.Replace("''", '"'), pre.Metaspace(), None),
    ):  # fmt: skip
        one = library.Tokenizer(model)
        for name, part in (
            ("normalizer", normalizer),
            ("pre_tokenizer", pre_tokenizer),
            ("post_processor", processor),
        ):
            if part is not None:
                setattr(one, name, part)
        made.append(one)
    for one in made:
        opened = open_tokenizer(one.to_str(), 256)
        assert list(opened.read(TEXT)[0]) == one.encode(TEXT).ids
        one.enable_padding(length=200)
        one.enable_truncation(3)
        again = open_tokenizer(one.to_str(), 256)  # cutting and padding are ours
        assert list(again.read(TEXT)[0]) == list(opened.read(TEXT)[0])


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_patterns_that_are_taken_are_quick(pattern: str) -> None:
    """On the longest texts that are read, by `open_tokenizer`'s own limit of a processor's time."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    opened = open_tokenizer(tokenizer(pre_tokenizer=split).decode(), 1024)
    assert len(opened.read(TEXT)[0]) > 2


@pytest.mark.parametrize("what", TOKENIZERS)
def test_hostile_tokenizers_are_refused(what: str) -> None:
    """As a child refuses the file that carries it; what is no UTF-8 a file cannot carry."""
    given, expected = TOKENIZERS[what]
    with pytest.raises(PgDistillError) as caught:
        approve(attach(classifier().artifact, given), max_tokens=64)
    assert caught.value.sqlstate == expected


def test_a_text_without_tokens_is_one_of_padding() -> None:
    bare = tokenizer(post_processor=None, padding={
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 4, "pad_type_id": 0, "pad_token": "[PAD]",
    })  # fmt: skip
    opened = open_tokenizer(bare.decode(), 8)
    assert (list(opened.read("")[0]), list(opened.read("the")[0])) == ([4], [vocabulary()["the"]])
    left = json.loads(tokenizer())
    left["truncation"] = {"direction": "Left", "max_length": 512, "strategy": "LongestFirst", "stride": 0}
    text = "great " * 20 + "dull"
    ends = open_tokenizer(json.dumps(left), 4).read(text)[0]
    assert vocabulary()["dull"] in ends
    assert vocabulary()["dull"] not in open_tokenizer(tokenizer().decode(), 4).read(text)[0]


def test_without_the_library_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InvalidState) as caught:
        open_tokenizer(tokenizer().decode(), 8)
    assert caught.value.hint is not None and "text" in caught.value.hint


def test_a_panic_of_the_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is none of Python's Exceptions; an interrupt is none of the library's."""
    opened = Tokens(tokenizer().decode(), 8)
    panic = type("PanicException", (BaseException,), {})

    def fail(error: type[BaseException]) -> Any:
        def encode(text: str) -> Any:
            raise error("index out of bounds\n  at src/lib.rs")

        return encode

    monkeypatch.setattr(opened, "_encode", fail(panic))
    with pytest.raises(InvalidData):
        opened.read("a")
    monkeypatch.setattr(opened, "_encode", fail(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        opened.read("a")
    with pytest.raises(InvalidData):
        Tokens(tokenizer().decode(), 8).read("\ud800")


def test_a_precompiled_table_that_puts_in_much_is_refused() -> None:
    def charsmap(texts: bytes) -> str:
        table = (8).to_bytes(4, "little") + bytes(8) + texts
        step = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
        return tokenizer(normalizer=step).decode()

    check_tokenizer(charsmap(b"a\0bc\0"))
    with pytest.raises(LimitExceeded):
        check_tokenizer(charsmap(b"a\0" + b"x" * 100_000 + b"\0"))


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    if isinstance(value, dict):
        for key in list(value)[:12]:
            found += paths(value[key], (*at, key))
    elif isinstance(value, list):
        for key in range(min(len(value), 3)):
            found += paths(value[key], (*at, key))
    return found


EXTREMES: list[Any] = [
    None, True, 0, -1, 1 << 31, 1 << 63, 1e308, "", "\x00", "\ud7ff", "x" * 5000, [], {}, [[]], {"type": "Sequence"},
    {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}, {"Regex": r"\s+"}, ["a", 0],
]  # fmt: skip


def test_what_is_changed_at_random_is_opened_or_refused() -> None:
    """Every place of several tokenizers with every extreme value in turn: an error of ours, or an answer; nothing else."""
    rng = random.Random(0)
    seeds = [json.loads(tokenizer())]
    seeds.append({**seeds[0], "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}, {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Prepend", "prepend": "\u2581"}, {"type": "Precompiled", "precompiled_charsmap": "CAAAAAAAAAAAAAAAYQBiYwA="}]}})  # fmt: skip
    seeds.append({**seeds[0], "model": {"type": "BPE", "unk_token": None, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
        "dropout": None, "fuse_unk": False, "byte_fallback": False, "continuing_subword_prefix": None}, "added_tokens": [],
        "post_processor": None})  # fmt: skip
    seeds.append({**seeds[0], "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]], "byte_fallback": False},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "added_tokens": [], "post_processor": None})  # fmt: skip
    outcomes = set()
    for seed in seeds:
        places = [p for p in paths(seed) if p]
        for place in rng.sample(places, min(len(places), 60)):
            for extreme in rng.sample(EXTREMES, 5):
                mutant = copy.deepcopy(seed)
                where = mutant
                for key in place[:-1]:
                    where = where[key]
                where[place[-1]] = extreme
                try:
                    opened = open_tokenizer(json.dumps(mutant), 8)
                    opened.count_ids()
                    outcomes.add(len(opened.read(TEXT)[0]) <= 8)
                except PgDistillError as error:
                    outcomes.add(error.sqlstate)
    assert outcomes == {True, "22P03", "0A000", "54000", "22000"}


def test_it_stands_in_the_file_and_is_found_there() -> None:
    tiny = classifier()
    file = attach(tiny.artifact, tiny.tokenizer)
    assert metadata(file) == tiny.tokenizer.decode()
    assert metadata(tiny.artifact) is None
    model = onnx.load_from_string(file)
    assert {p.key: p.value for p in model.metadata_props}[TOKENIZER_KEY] == tiny.tokenizer.decode()
    with pytest.raises(InvalidArtifact):
        metadata(attach(file, tiny.tokenizer))
    with pytest.raises(InvalidArtifact):
        metadata(b"\xff\xff")


def frame(texts: list[str]) -> Frame:
    return Frame((Feature("body", "string"),), {"body": Strings.from_values(list(texts))})


def test_a_teacher_gives_logits_one_text_at_a_time() -> None:
    """Of an int8 graph too: what stands beside a text changes nothing of its label, to the last bit."""
    texts, _ = reviews(30)
    for model in (classifier(), classifier().logits(), classifier(("a", "b", "c")).logits().quantised()):
        file = attach(model.artifact, model.tokenizer)
        found = approve(file, rows=frame(texts), max_tokens=64, classes=model.classes)
        teacher = TeacherModel(file, found.signature, frame(texts))
        assert (teacher.logits_source, teacher.is_text) == ("graph", True)
        together = teacher.logits(frame(texts))
        alone = np.concatenate([teacher.logits(frame([text])) for text in reversed(texts)])[::-1]
        assert np.array_equal(together, alone)
        exp = np.exp(together - together.max(axis=1, keepdims=True))
        assert np.abs(exp / exp.sum(axis=1, keepdims=True) - found.outputs).max() < 1e-6


def test_a_signature_is_the_same_from_json() -> None:
    tiny = classifier()
    signature = approve(attach(tiny.artifact, tiny.tokenizer), max_tokens=32).signature
    assert Signature.from_json(*json.loads(json.dumps(signature.to_json()))) == signature
    assert signature.max_tokens == 32
    model = TextModel(attach(tiny.artifact, tiny.tokenizer), signature)
    with pytest.raises(FeatureNotSupported):
        model.run_numbers([1.0])


EXPLODING = """<ir_version: 8, opset_import: ["" : 17]> g (int64[N,S] input_ids) => (float[N,1] p) {{
    a = Constant<value=int64[1] {{1}}>()
    t = Constant<value=int64[1] {{{length}}}>()
    w = Constant<value=int64[1] {{8589934592}}>()
    h = Shape(input_ids)
    s = Gather<axis=0>(h, a)
    x = Div(t, s)
    y = Div(s, t)
    e = Mul(x, y)
    r = Mul(e, w)
    v = Add(r, a)
    o = ConstantOfShape(v)
    i = Cast<to=7>(o)
    q = ReduceSum<keepdims=0>(i)
    k = ReduceSum<keepdims=1>(input_ids, a)
    n = Add(k, q)
    f = Cast<to=1>(n)
    p = Sigmoid(f)
}}"""


@pytest.mark.parametrize("length", [1, 2, 7, 31, 32])
def test_a_size_that_one_length_alone_explodes_is_found(length: int) -> None:
    """x * y is 1 for texts of just so many tokens, and 0 for all others."""
    model = check(onnx.parser.parse_model(EXPLODING.format(length=length)).SerializeToString())
    with pytest.raises(LimitExceeded):
        walk(model, text_inputs(model), 32, ["p"], Limits())
    other = check(onnx.parser.parse_model(EXPLODING.format(length=1000)).SerializeToString())
    found, cost = walk(other, text_inputs(other), 32, ["p"], Limits())
    assert cost.most_rows == 1
    assert [size.at(1) for size in found.tensors["p"].shape] == [1, 1]


def test_nodes_that_are_alike_are_judged_alike() -> None:
    """Each step and tensor is what its own rule says of it, whatever was judged before, for other lengths too."""
    model = check(classifier(("a", "b", "c")).logits().quantised().artifact)
    inputs, versions = text_inputs(model), opset_versions(model)
    longest = None
    for length in (40, 39, 7, 1):
        found = survey_of(model, inputs, Limits(), length, longest)
        longest = longest or found
        known = {t.name: found.tensors[t.name] for t in model.graph.initializer}
        known |= {spec.name: found.tensors[spec.name] for spec in inputs}
        assert [t.shape[1].at(1) for t in (known[spec.name] for spec in inputs)] == [length] * 3
        for step, node in zip(found.steps, model.graph.node, strict=True):
            alone, outputs = step_of(node, known, versions)
            assert step == alone
            for name, tensor in zip(node.output, outputs, strict=False):
                own = found.tensors[name]
                assert (own.element, own.shape, own.depends) == (tensor.element, tensor.shape, tensor.depends)
                assert np.array_equal(own.values, tensor.values)
                known[name] = tensor


def test_costs_are_those_of_the_longest_text() -> None:
    tiny = classifier()
    model = check(tiny.artifact)
    costs = [walk(model, text_inputs(model), n, ["probabilities"], Limits())[1] for n in (8, 16, 64)]
    assert costs[0].fixed_bytes < costs[1].fixed_bytes < costs[2].fixed_bytes
    assert costs[0].fixed_ns < costs[1].fixed_ns < costs[2].fixed_ns
    with pytest.raises(LimitExceeded):
        walk(model, text_inputs(model), 64, ["probabilities"], Limits(run_bytes=100_000))
    with pytest.raises(LimitExceeded):
        walk(model, text_inputs(model), 64, ["probabilities"], Limits(text_steps=1000))
    with pytest.raises(LimitExceeded):
        walk(model, text_inputs(model), 64, ["probabilities"], Limits(text_node_seconds=1e-6))


def test_graphs_with_fewer_inputs() -> None:
    for names in ((), ("attention_mask",)):
        model = encoder(names=names)
        if names:
            minilm.add_head(model, "last_hidden_state", np.ones((1, 32)), [0.0], ["a", "b"])
            found = approve(attach(model.SerializeToString(), tokenizer()), max_tokens=16)
            assert [spec.name for spec in found.signature.inputs] == ["input_ids", *names]
        else:
            with pytest.raises(FeatureNotSupported):
                approve(attach(model.SerializeToString(), tokenizer()), max_tokens=16)


def test_limits_name_their_values() -> None:
    """Where a limit is passed it says so, whichever of them it is."""
    assert tokenizer_rules.MAX_GROWTH < 100
    long = tokenizer(added_tokens=[
        {"id": i, "content": f"{i} " + "y" * 99, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": False} for i in range(tokenizer_rules.MAX_ADDED_CHARACTERS // 100)])  # fmt: skip
    with pytest.raises(LimitExceeded):
        check_tokenizer(long.decode())
