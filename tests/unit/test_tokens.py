"""The tokeniser: its rules one by one, its vocabulary, and what both cost on texts that somebody made to be awkward."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_distill.onnx_model.signature import NULL_STRING
from pg_distill.onnx_model.tokens import (
    APART,
    BLANKS,
    MARKS,
    MOST_CHARACTERS,
    SEPARATORS,
    Bags,
    Tokeniser,
    split_words,
)
from pg_distill.students.vocabulary import learn_vocabulary
from text_rows import SPECIAL, texts

WORDS = (("good",), ("not",), ("zürich", "Zürich", "zu\u0308rich"), ("東",), ("京",), ("😀",))
TOKENISER = Tokeniser(WORDS, "!?", ((1, 0), (3, 4)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["\x1f", "null"]),
        ("", []),
        (" \t\n\r\u00a0\u3000", []),
        ("Don't STOP…now", ["don", "t", "stop", "now"]),
        ("a_b/c\\d", ["a", "b", "c", "d"]),
        ("ÀÉ İI ẞ ΣΑΣ", ["ÀÉ", "İi", "ẞ", "ΣΑΣ"]),  # of other letters lower case is a matter of forms
        ("東京tower", ["東", "京", "tower"]),
        ("ดีมาก", ["ด", "ี", "ม", "า", "ก"]),
        ("great😀😀!", ["great", "😀", "😀"]),
        ("❤\ufe0fyou", ["❤", "\ufe0f", "you"]),
        ("cafe\u0301 naïve", ["cafe\u0301", "naïve"]),
        ("a\x0bb\x85c\u2003d", ["a\x0bb\x85c\u2003d"]),  # not among the blanks
        ("한국어 잘해요", ["한국어", "잘해요"]),
        ("\\u0041 \\0", ["u0041", "0"]),
        ("x\ud800y", ["x\ud800y"]),
    ],
)
def test_words(text: str | None, words: list[str]) -> None:
    assert split_words(text) == words


@given(texts())
@settings(max_examples=300)
def test_words_are_what_the_rules_say(text: str) -> None:
    read = text[:MOST_CHARACTERS]
    lower = "".join(c.lower() if "A" <= c <= "Z" else c for c in read)
    apart = re.compile(APART)
    expected, word = [], ""
    for c in lower + " ":
        if c in SEPARATORS or apart.fullmatch(c):
            expected.extend([word] if word else [])
            word = ""
            if c not in SEPARATORS:
                expected.append(c)
        else:
            word += c
    assert split_words(text) == expected


def test_separators_and_characters_apart_are_disjoint() -> None:
    assert len(set(SEPARATORS)) == len(SEPARATORS)
    assert not re.search(APART, SEPARATORS)
    assert not any(c.isalnum() for c in SEPARATORS)
    assert set(BLANKS).isdisjoint(MARKS)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Not good!", ["good", "not", "!", "not good"]),
        ("not, good", ["good", "not", "not good"]),
        ("not very good", ["good", "not"]),
        ("good good GOOD", ["good"]),
        ("Zürich zu\u0308rich ZÜRICH", ["zürich"]),
        ("東京 vs 京東", ["東", "京", "東 京"]),
        ("wow😀?", ["😀", "?"]),
        (None, []),
        ("", []),
    ],
)
def test_ids(text: str | None, names: list[str]) -> None:
    found = TOKENISER.ids(text)
    assert found == sorted(set(found))
    assert sorted(TOKENISER.names()[i] for i in found) == sorted(names)


def test_bags_are_the_ids_of_each_row() -> None:
    rows = [None, "not good", "", "東京!"]
    bags = TOKENISER.bags(rows)
    assert len(bags) == 4
    for i, text in enumerate(rows):
        assert bags.ids[bags.rows == i].tolist() == TOKENISER.ids(text)
    assert bags.take(np.array([3, 0, 1])).ids.tolist() == [*TOKENISER.ids(rows[3]), *TOKENISER.ids(rows[1])]
    assert len(Bags.of([])) == 0


def test_vocabulary_is_json() -> None:
    assert Tokeniser.from_json(json.loads(json.dumps(TOKENISER.to_json()))) == TOKENISER


def _learn(rows: list[str | None], target: list[float], **options: Any) -> Tokeniser:
    gradient = np.array(target)[:, None] - np.mean(target)
    return learn_vocabulary(rows, gradient, np.full((len(rows), 1), 0.25), **options)


def test_what_is_worth_most_is_kept() -> None:
    rows: list[str | None] = ["not good at all", "this is good at", "not good, this", "so good is this!"] * 10
    vocabulary = _learn(rows, [0.0, 1.0, 0.0, 1.0] * 10, most=3)
    # "not good" came with its words, "is" and "not" tell the two apart without a fault.
    assert {"not", "is", "not good"} <= set(vocabulary.names())
    assert _learn(rows, [0.0, 1.0, 0.0, 1.0] * 10, most=3) == vocabulary
    assert {"!", "good at", "all"} <= set(_learn(rows, [0.0, 1.0, 0.0, 1.0] * 10).names())


def test_words_may_be_known_besides() -> None:
    rows: list[str | None] = ["good rare", "bad seldom", "good 4711 x_y", "bad"] * 2 + ["once Éclat"]
    target = [1.0, 0.0, 1.0, 0.0] * 2 + [0.5]
    alone = _learn(rows, target, most=2)
    vocabulary = _learn(rows, target, most=2, further=["good", "house", "été", "House"])
    words = [forms[0] for forms in vocabulary.words]
    # What is worth most comes first, as without them; then words of texts, the most usual first; then others.
    assert vocabulary.words[: len(alone.words)] == alone.words and vocabulary.pairs == alone.pairs
    assert set(words[len(alone.words) : -2]) == {"rare", "seldom", "x", "y", "once", "Éclat"} - set(
        alone.names()
    )
    assert words[-2:] == ["house", "été"]
    assert vocabulary.ids("ÉTÉ") == vocabulary.ids("été") != []
    assert vocabulary.ids("4711") == []  # a number is no word of letters


def test_forms_of_one_word_share_a_number() -> None:
    rows: list[str | None] = ["Москва МОСКВА", "москва", "Straße", "STRASSE", "ﬁn", "fin", "Å", "A\u030a"] * 3
    vocabulary = _learn(rows, [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0] * 3)
    for pair in (("москва", "Москва"), ("straße", "strasse"), ("ﬁn", "fin"), ("å", "a\u030a")):
        assert vocabulary.ids(pair[0])[-1:] == vocabulary.ids(pair[1])[-1:] != []
    # Forms that were never seen, but are how a known word is written.
    assert vocabulary.ids(unicodedata.normalize("NFD", "МОСКВА")) == vocabulary.ids("МОСКВА") != []


@pytest.mark.parametrize("further", [None, ["haus", "haus", "ete", "été", "Haus", "ﬁn", "日"]])
@given(rows=st.lists(st.one_of(st.none(), texts()), min_size=1, max_size=30))
@settings(max_examples=60)
def test_a_vocabulary_is_sound(further: list[str] | None, rows: list[str | None]) -> None:
    rows = [*rows, *rows]
    vocabulary = _learn(rows, np.random.default_rng(0).random(len(rows)).tolist(), further=further)
    forms = [form for forms in vocabulary.words for form in forms]
    assert len(set(forms)) == len(forms)
    assert all(split_words(form) == [form] for form in forms)
    assert len(set(vocabulary.names())) == len(vocabulary.names()) == vocabulary.size
    assert set(vocabulary.marks) <= set(MARKS)
    for text in rows:
        assert all(0 <= i < vocabulary.size for i in vocabulary.ids(text))


def test_no_text_is_slow() -> None:
    vocabulary = _learn(["a b"] * 4 + ["c d"] * 4, [0.0] * 4 + [1.0] * 4)
    start = time.process_time()
    for text in SPECIAL:
        vocabulary.ids((text * (1 + 1_000_000 // max(1, len(text))))[:1_000_000])
    assert time.process_time() - start < 0.1 * len(SPECIAL)


@given(st.one_of(st.none(), texts(), st.text(st.characters(max_codepoint=127), max_size=60)))
@settings(max_examples=300)
def test_what_is_found_are_words_marks_and_pairs(text: str | None) -> None:
    words = ["a", "b", "\x0b", "\x0c", "a\x0bb", "\x1c", "\x1f", "\x7f", "good", "zürich", "1"]
    pairs = [(i, j) for i in range(len(words)) for j in range(len(words))]
    tokeniser = Tokeniser(tuple((word,) for word in words), "!_", tuple(pairs))
    found = split_words(text)
    expected = {word for word in found if word in words}
    expected |= {mark for mark in "!_" if text is not None and mark in text[:MOST_CHARACTERS]}
    expected |= {f"{a} {b}" for a, b in pairwise(found) if a in words and b in words}
    assert {tokeniser.names()[i] for i in tokeniser.find(text)} == expected


def test_null_is_no_text_that_somebody_writes() -> None:
    assert NULL_STRING.isascii()
    assert split_words("<NULL>") != split_words(None)


@given(rows=st.lists(st.one_of(st.none(), texts(), st.just("a\0b"), st.text(max_size=8)), max_size=12))
@settings(max_examples=150)
def test_many_at_once_are_read_as_one_after_the_other(rows: list[str | None]) -> None:
    for tokeniser in (TOKENISER, Tokeniser(TOKENISER.words, "", ()), Tokeniser((), "!", ())):
        bags = tokeniser.bags(rows)
        assert [bags.ids[a:b].tolist() for a, b in pairwise(bags.starts.tolist())] == [
            tokeniser.ids(r) for r in rows
        ]
