"""The tokeniser as SQL of a PostgreSQL without extensions (13 and later, encoding UTF8).

``lower`` and all comparisons are of collation "C", under which no library and no version has a say. What n-grams add up to
is in integers, so that sums are the same in any order.

The vocabulary stands in one of two places. `Inline` makes one expression, which needs nothing but SELECT: a jsonb object from
n-gram to number, which PostgreSQL searches in O(log V), and an array for each sum. `Stored` is a table. A pair is looked up
by the numbers of its words, ``3 17``: no word has a blank. For 10,400 n-grams and two sums, on a busy machine:

========  =========================  ===========================  =================
          text of 111 characters     text of 1,900 characters     to plan, once
========  =========================  ===========================  =================
Inline    0.10 to 0.19 ms            0.84 to 1.1 ms               17 ms
Stored    0.15 to 0.18 ms            1.6 to 2.2 ms                below 1 ms
========  =========================  ===========================  =================

No join is left to the planner. It takes every text for 1,000 words if regexp_split_to_table makes them, and then hashes the
whole vocabulary for each text: 3.4 ms. Hence regexp_split_to_array.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pg_distill.onnx_model.signature import NULL_STRING
from pg_distill.onnx_model.tokens import APART, MOST_CHARACTERS, SEPARATORS, Tokeniser
from pg_distill.quoting import quote_literal

__all__ = ["Inline", "Stored", "sums_query"]

Ints = npt.NDArray[np.int64]

ROWS_A_STATEMENT = 1000
"""Rows of one INSERT: more are no faster to parse."""

_SEPARATORS = "[" + "".join(f"\\u{ord(c):04x}" for c in SEPARATORS) + "]+"


@dataclass(frozen=True)
class Inline:
    """A vocabulary, and what its n-grams add, inside the expression.

    ``weights`` (V, width) are whole numbers of at most 32 bits.
    """

    tokeniser: Tokeniser
    weights: Ints

    def begin(self) -> str:
        """Return the common table expression of the vocabulary."""
        ngrams = json.dumps(_numbers(self.tokeniser), ensure_ascii=False, separators=(",", ":"))
        return f"vocabulary(ngrams) AS NOT MATERIALIZED (SELECT {quote_literal(ngrams)}::jsonb), "

    def find(self, word: str) -> str:
        """Return the number of an n-gram; NULL for others."""
        return f"((SELECT ngrams FROM vocabulary) -> {word})::int4"

    def add_up(self, found: str) -> str:
        """Return a SELECT of the sums over the rows ``id`` of ``found``."""
        arrays = ["'{" + ",".join(map(str, column)) + "}'::int4[]" for column in self.weights.T.tolist()]
        return _sums([f"({array})[id + 1]" for array in arrays], found)


@dataclass(frozen=True)
class Stored:
    """A vocabulary, and what its n-grams add, in the table ``name`` (SQL, quoted where it must be).

    A row for each form of a word, each mark and each pair: the text ``ngram``, its number ``id``, and ``w0``, ``w1``, ...,
    which are NULL but for the first form of a word.
    """

    name: str
    tokeniser: Tokeniser
    weights: Ints

    def create(self) -> Iterator[str]:
        """Give the statements that make the table and fill it."""
        width = self.weights.shape[1]
        columns = "".join(f", w{j} int4" for j in range(width))
        yield f'CREATE TABLE {self.name} (ngram text COLLATE "C" PRIMARY KEY, id int4 NOT NULL{columns})'
        rows, seen = [], -1
        for ngram, number in _numbers(self.tokeniser).items():
            own = self.weights[number].tolist() if number != seen else ["NULL"] * width
            rows.append(f"({quote_literal(ngram)}, {number}, {', '.join(map(str, own))})")
            seen = number
        for start in range(0, len(rows), ROWS_A_STATEMENT):
            yield f"INSERT INTO {self.name} VALUES {', '.join(rows[start : start + ROWS_A_STATEMENT])}"
        yield f"CREATE UNIQUE INDEX ON {self.name} (id) WHERE w0 IS NOT NULL"
        yield f"ANALYZE {self.name}"

    def begin(self) -> str:
        """Return no common table expression."""
        return ""

    def find(self, word: str) -> str:
        """Return the number of an n-gram; NULL for others."""
        return f'(SELECT n.id FROM {self.name} AS n WHERE n.ngram = {word} COLLATE "C")'

    def add_up(self, found: str) -> str:
        """Return a SELECT of the sums over the rows ``id`` of ``found``."""
        own = [f"w{j}" for j in range(self.weights.shape[1])]
        only = f"SELECT {', '.join(own)} FROM {self.name} AS n WHERE n.id = f.id AND n.w0 IS NOT NULL"
        # OFFSET 0: one look-up by the index an n-gram, and no join.
        return _sums(own, f"(SELECT n.* FROM {found} AS f, LATERAL ({only} OFFSET 0) AS n) AS found")


def sums_query(text: str, vocabulary: Inline | Stored) -> str:
    """Return a SELECT of one row: the sums ``s0``, ``s1``, ... (int8, 0 where there is no n-gram) of a text.

    ``text`` is SQL of the text; it stands there once.
    """
    tokeniser, find = vocabulary.tokeniser, vocabulary.find
    body = f"coalesce(({text})::text, {quote_literal(NULL_STRING)})"
    around = quote_literal(r" \& ")
    read = (
        f'pg_catalog.regexp_replace(pg_catalog.left({body}, {MOST_CHARACTERS}) COLLATE "C", '
        f"{quote_literal(APART)}, {around}, 'g')"
    )
    words = f"pg_catalog.regexp_split_to_array(pg_catalog.lower(body), {quote_literal(_SEPARATORS)})"
    marks = f"pg_catalog.string_to_array({quote_literal(tokeniser.marks)}, NULL)"
    found = ["SELECT id FROM words"]
    if tokeniser.pairs:
        # The window stands below the look-up, which would be within it otherwise.
        pair = "id || ' ' || pg_catalog.lead(id) OVER (ORDER BY place)"
        found.append(f"SELECT {find('p.pair')} FROM (SELECT {pair} AS pair FROM words) AS p")
    if tokeniser.marks:
        found.append(
            f"SELECT {find('m.mark')} FROM read, pg_catalog.unnest({marks}) AS m(mark)"
            ' WHERE pg_catalog.strpos(body, m.mark COLLATE "C") > 0'
        )
    return (
        f"WITH {vocabulary.begin()}read(body) AS MATERIALIZED (SELECT {read}), "
        f"words(place, id) AS MATERIALIZED (SELECT w.place, {find('w.word')} "
        f"FROM read, pg_catalog.unnest({words}) WITH ORDINALITY AS w(word, place)), "
        f"found(id) AS ({' UNION '.join(found)}) {vocabulary.add_up('found')}"
    )


def _sums(terms: list[str], found: str) -> str:
    sums = [f"coalesce(pg_catalog.sum({term}), 0)::int8 AS s{j}" for j, term in enumerate(terms)]
    return f"SELECT {', '.join(sums)} FROM {found}"


def _numbers(tokeniser: Tokeniser) -> dict[str, int]:
    """Return the number of each n-gram as SQL looks it up; the forms of a word one after the other."""
    numbers = dict(tokeniser.word_ids)
    numbers.update((mark, i) for i, mark in enumerate(tokeniser.marks, len(tokeniser.words)))
    numbers.update(
        (f"{a} {b}", i)
        for i, (a, b) in enumerate(tokeniser.pairs, len(tokeniser.words) + len(tokeniser.marks))
    )
    return numbers
