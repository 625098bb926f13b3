"""Many texts at once, and one text for several readers: the same as each text by itself, for each reader by itself."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pg_distill.frame import Strings
from pg_distill.onnx_model import ascii_tokens, texts
from pg_distill.onnx_model.texts import TextReader, read_together
from pg_distill.onnx_model.tokens import Tokeniser
from text_rows import NGRAMS
from text_rows import texts as awkward

LENGTHS = (1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 25, 40)
"""Bytes of words around each bound of how they are packed."""
WORDS = (*(c * n for c in "ab" for n in LENGTHS), "\x1f", "\x7f", "a9b")
LONG = Tokeniser(
    tuple((w,) for w in (*WORDS, "é")), "!.\u2026", ((0, 1), (1, 0), (5, 5), (9, 10), (0, len(WORDS)))
)
"""A vocabulary of words of every length, one that is not ASCII, and a mark that is not."""

pieces = st.one_of(
    st.sampled_from(
        [*WORDS, *(w + "a" for w in WORDS), *(w[:-1] + "b" for w in WORDS), "é", "\x00", "\u2026"]
    ),
    st.sampled_from(list(" !.,_\t")),
    st.text("abAB \x1f\x7f", max_size=30),
)
plain = st.lists(pieces, max_size=12).map(" ".join)
close = st.lists(pieces, max_size=12).map("".join)


def _rows(tokeniser: Tokeniser, rows: list[str | None]) -> list[list[int]]:
    bags = tokeniser.bags(rows)
    return [bags.ids[a:b].tolist() for a, b in pairwise(bags.starts.tolist())]


@given(st.lists(st.one_of(st.none(), plain, close), max_size=20))
@settings(max_examples=150)
def test_many_texts_are_read_as_each_is(rows: list[str | None]) -> None:
    every = [LONG.ids(text) for text in rows]
    assert _rows(LONG, rows) == every
    ascii_only = [text for text in rows if text is None or text.isascii()]
    assert _rows(LONG, ascii_only) == [LONG.ids(text) for text in ascii_only]


@given(st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=400, unique=True), st.data())
@settings(max_examples=60)
def test_vocabularies_of_any_words(words: list[str], data: st.DataObject) -> None:
    number = st.integers(0, len(words) - 1)
    pairs = data.draw(st.lists(st.tuples(number, number), max_size=200, unique=True))
    tokeniser = Tokeniser(tuple((w,) for w in words), "-", tuple(pairs))
    rows = [" ".join(words[a : a + 3]) + "-" + words[b] for a, b in pairs] + [" ".join(words)]
    assert _rows(tokeniser, rows) == [tokeniser.ids(text) for text in rows]


def test_a_crowded_vocabulary_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascii_tokens, "MOST_SHARING", 0)
    tokeniser = replace(LONG)
    assert tokeniser._ascii is None
    rows = ["a b!", "aa é", None, " ".join(WORDS)]
    assert _rows(tokeniser, rows) == [tokeniser.ids(text) for text in rows]


def test_keys_of_one_place_are_told_apart() -> None:
    """Keys that were chosen to collide make a table of another multiplier, and are found in it."""
    bits = max(4, (ascii_tokens.PLACES * 64).bit_length())
    factor = int(np.random.default_rng(0).integers(0, 2**63, 1, np.uint64)[0]) * 2 + 1
    inverse = pow(factor, -1, 2**64)
    keys = np.array([inverse * k % 2**64 for k in range(1, 65)], np.uint64)
    assert len(np.unique((keys * np.uint64(factor % 2**64)) >> np.uint64(64 - bits))) == 1
    table = ascii_tokens._Table([keys], np.arange(64))
    assert table.find([keys]).tolist() == list(range(64))
    assert (table.find([keys + np.uint64(1)]) == -1).all()


def _reader(target: str, tokeniser: Tokeniser, width: int, seed: int) -> TextReader:
    rng = np.random.default_rng(seed)
    table = np.column_stack(
        [rng.integers(-(2**20), 2**20, (tokeniser.size, width)), rng.integers(1, 99, tokeniser.size)]
    )
    units = np.exp2(rng.integers(-20, 0, width + 1).astype(float))
    return TextReader(target, ("body",), 0, tokeniser, table.astype(float), units)


LIKE = Tokeniser(
    # Other numbers, other words, and forms that the first one takes for another word, or for none.
    (
        ("new",),
        ("bad",),
        ("good",),
        ("zürich",),
        ("ZÜRICH", "Zürich"),
        ("москва",),
        ("МОСКВА",),
        ("a", "東"),
        ("京",),
    ),
    "!;",
    ((1, 2), (2, 1), (0, 0), (3, 2), (5, 8)),
)


@given(
    st.lists(
        st.one_of(st.none(), awkward(), st.sampled_from(["zürich good", "good bad!", "東京"])), max_size=12
    )
)
@settings(max_examples=100)
def test_readers_of_one_column_share_their_work(rows: list[str | None]) -> None:
    parts = [(NGRAMS, 3), (LIKE, 1), (NGRAMS, 70), (Tokeniser((("good",),), "", ()), 2)]
    readers = [_reader(f"t{i}", tokeniser, width, i) for i, (tokeniser, width) in enumerate(parts)]
    joined = read_together(readers)
    assert all(reader.shared for reader in joined)
    column = Strings.from_values(rows)
    for reader, own in zip(joined, readers, strict=True):
        expected = own.numbers(column)
        assert reader.numbers(column).tolist() == expected.tolist()
        assert [reader.read(text).astype(np.float32).tolist() for text in rows] == expected.tolist()
    # In rows' order, too: what was read last is remembered.
    for text in rows:
        for reader, own in zip(joined, readers, strict=True):
            assert reader.read(text).tolist() == own.read(text).tolist()


def test_other_columns_and_large_tables_are_read_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    readers = [
        _reader("a", NGRAMS, 2, 0),
        replace(_reader("b", NGRAMS, 2, 1), columns=("x", "body"), column=1),
    ]
    assert [reader.shared for reader in read_together(readers)] == [None, None]
    monkeypatch.setattr(texts, "MOST_SHARED", 10)
    both = read_together([readers[0], _reader("c", LIKE, 2, 1)])
    column = Strings.from_values(["good bad", None])
    assert both[1].numbers(column).tolist() == replace(both[1], shared=None).numbers(column).tolist()
    assert both[0].read("not good").tolist() == readers[0].read("not good").tolist()


def test_readers_are_freed_at_once() -> None:
    """An evicted session must not wait for the collector of circles, which knows nothing of its size."""
    own, *both = (
        _reader("a", NGRAMS, 2, 0),
        *read_together([_reader("b", NGRAMS, 2, 1), _reader("c", LIKE, 2, 2)]),
    )
    for reader in (own, *both):
        reader.read("good ZÜRICH")
        reader.numbers(Strings.from_values(["good", "ZÜRICH"]))
    tables = [weakref.ref(reader.table) for reader in (own, *both)]
    gc.collect()
    gc.disable()
    try:
        del own, both, reader
        assert [table() for table in tables] == [None] * 3
    finally:
        gc.enable()
