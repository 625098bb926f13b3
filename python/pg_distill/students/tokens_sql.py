"""The tokeniser as SQL of a PostgreSQL without extensions (13 and later, encoding UTF8), and a student's numbers of a text.

``lower`` and all comparisons are of collation "C", under which no library and no version has a say. What n-grams add up to
is in integers, so that sums are the same in any order. All that is looked up is named with its schema.

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

A student's stored expression names the numbers of a text by `reference`; who runs it puts `numbers` in their place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pg_distill.errors import FeatureNotSupported
from pg_distill.onnx_model.signature import NULL_STRING
from pg_distill.onnx_model.texts import TextReader
from pg_distill.onnx_model.tokens import APART, MOST_CHARACTERS, SEPARATORS, Tokeniser
from pg_distill.quoting import quote_literal

__all__ = [
    "REFERENCE",
    "Inline",
    "Stored",
    "create_table",
    "key_of",
    "numbers",
    "reference",
    "sums_query",
    "weights_of",
]

Ints = npt.NDArray[np.int64]

ROWS_A_STATEMENT = 1000
"""Rows of one INSERT: more are no faster to parse."""

_SEPARATORS = "[" + "".join(f"\\u{ord(c):04x}" for c in SEPARATORS) + "]+"
_C = 'COLLATE pg_catalog."C"'
_JOIN = "OPERATOR(pg_catalog.||)"

REFERENCE = re.compile(r"_+x([0-9a-f]{16})")
"""The name of a float8[] that an expression reads: what `key_of` gives stands for the text's column, n-grams and weights."""


def key_of(reader: TextReader) -> str:
    """Return the digest of a text's column and of what makes numbers of it."""
    digest = hashlib.sha256(json.dumps([reader.name, [*_numbers(reader.tokeniser).items()]]).encode())
    digest.update(np.round(reader.table).astype("<i8").tobytes() + reader.units.astype("<f8").tobytes())
    return digest.hexdigest()[:16]


def weights_of(reader: TextReader) -> Ints:
    """Return the columns (V, width) of a reader's table that are not all 0, the last one always.

    Raises
    ------
    FeatureNotSupported
        They are no whole numbers of 32 bits, as those of this package's students are.
    """
    table = np.round(reader.table)
    if not (np.abs(table) < 2**31).all() or (table != reader.table).any():
        raise FeatureNotSupported("the weights of the n-grams are no whole numbers of 32 bits")
    return np.asarray(table.astype(np.int64)[:, _kept(reader)])


def numbers(text: str, reader: TextReader, vocabulary: Inline | Stored) -> str:
    """Return a SELECT of one array: the numbers (float8) of a text.

    Parameters
    ----------
    text
        SQL of the text.
    vocabulary
        Of the reader's tokeniser and `weights_of`.
    """
    *kept, _ = _kept(reader)
    terms = ["0::pg_catalog.float8"] * reader.width
    for j, k in enumerate(kept):
        terms[k] = f"s{j} OPERATOR(pg_catalog.*) {_literal(reader.units[k])} OPERATOR(pg_catalog./) length"
    square = f"s{len(kept)} OPERATOR(pg_catalog.*) {_literal(reader.units[-1])}"
    if not kept:
        terms[0] = f"{terms[0]} OPERATOR(pg_catalog.*) s0"  # NULL where the table is another one
    length = f"pg_catalog.sqrt(GREATEST({square}, {_literal(1.0)}))"
    sums = f"SELECT summed.*, {length} AS length FROM ({sums_query(text, vocabulary)}) AS summed OFFSET 0"
    return f"SELECT ARRAY[{', '.join(terms)}]::pg_catalog.float8[] FROM ({sums}) AS scaled"


def _kept(reader: TextReader) -> list[int]:
    last = len(reader.units) - 1
    return [k for k in range(last) if reader.table[:, k].any()] + [last]


def _literal(value: float) -> str:
    return f"'{float(value)!r}'::pg_catalog.float8"


def reference(prefix: str, key: str) -> str:
    """Return the name of an array of numbers; ``prefix`` is underscores, with which no column begins."""
    return f"{prefix}x{key}"


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
        return f"vocabulary(ngrams) AS NOT MATERIALIZED (SELECT {quote_literal(ngrams)}::pg_catalog.jsonb), "

    def find(self, word: str) -> str:
        """Return the number of an n-gram; NULL for others."""
        return f"((SELECT ngrams FROM vocabulary) OPERATOR(pg_catalog.->) {word})::pg_catalog.int4"

    def add_up(self, found: Sequence[str]) -> str:
        """Return the rest of the query: the sums over the ids that the SELECTs ``found`` give."""
        arrays = [
            "'{" + ",".join(map(str, column)) + "}'::pg_catalog.int4[]" for column in self.weights.T.tolist()
        ]
        sums = [
            f"coalesce(pg_catalog.sum(({array})[id OPERATOR(pg_catalog.+) 1]), 0)::pg_catalog.int8 AS s{j}"
            for j, array in enumerate(arrays)
        ]
        return f"found(id) AS ({' UNION '.join(found)}) SELECT {', '.join(sums)} FROM found"


@dataclass(frozen=True)
class Stored:
    """A vocabulary, and what its n-grams add, in the table ``name`` (SQL, quoted where it must be) of `create_table`.

    The table has a row for each form of a word, each mark and each pair: the text ``ngram``, its number ``id``, and ``w0``,
    ``w1``, ..., which are NULL but for the first form of a word. One row more, the seal, adds 0 to every text: where it is not
    found, the table is not what the query was written for, and all sums are NULL.
    """

    name: str
    tokeniser: Tokeniser
    weights: Ints
    part: int = 0
    """Which of the vocabularies of one table this is."""

    @property
    def seal(self) -> str:
        """The n-gram of the seal: no text has it, because it has a blank in front."""
        content = (
            json.dumps([*_numbers(self.tokeniser).items()]).encode() + self.weights.astype("<i8").tobytes()
        )
        return " " + hashlib.sha256(content).hexdigest()[:16]

    def rows(self, width: int) -> Iterator[str]:
        """Give its rows as SQL, with ``width`` weights each."""
        seen = -1
        padded = np.pad(self.weights, ((0, 0), (0, width - self.weights.shape[1])))
        for ngram, number in _numbers(self.tokeniser).items():
            own = map(str, padded[number].tolist()) if number != seen else ["NULL"] * width
            yield f"({self.part}, {quote_literal(ngram)}, {number}, {', '.join(own)})"
            seen = number
        yield f"({self.part}, {quote_literal(self.seal)}, {self.tokeniser.size}, {', '.join(['0'] * width)})"

    def begin(self) -> str:
        """Return no common table expression."""
        return ""

    def find(self, word: str) -> str:
        """Return the number of an n-gram; NULL for others."""
        return (
            f"(SELECT n.id FROM {self.name} AS n WHERE n.ngram OPERATOR(pg_catalog.=) ({word} {_C})"
            f" AND n.part OPERATOR(pg_catalog.=) {self.part})"
        )

    def add_up(self, found: Sequence[str]) -> str:
        """Return the rest of the query: the sums over the ids that the SELECTs ``found`` give."""
        own = [f"w{j}" for j in range(self.weights.shape[1])]
        sealed = self.find(f"{quote_literal(self.seal)}::pg_catalog.text")
        only = (
            f"SELECT {', '.join(own)} FROM {self.name} AS n WHERE n.id OPERATOR(pg_catalog.=) f.id"
            f" AND n.part OPERATOR(pg_catalog.=) {self.part} AND n.w0 IS NOT NULL"
        )
        sums = [f"pg_catalog.sum({w}) AS s{j}" for j, w in enumerate(own)]
        # OFFSET 0: one look-up by the index an n-gram, and no join.
        return (
            f"found(id) AS ({' UNION '.join([*found, f'SELECT {sealed}'])}), sealed(is_there) AS (SELECT {sealed} IS NOT NULL)"
            f" SELECT {', '.join(f'CASE WHEN (SELECT is_there FROM sealed) THEN s{j} END AS s{j}' for j in range(len(own)))}"
            f" FROM (SELECT {', '.join(sums)} FROM found AS f, LATERAL ({only} OFFSET 0) AS n) AS summed"
        )


def create_table(parts: Sequence[Stored]) -> Iterator[str]:
    """Give the statements that make the one table of some vocabularies and fill it."""
    name, width = parts[0].name, max(part.weights.shape[1] for part in parts)
    columns = [
        "part pg_catalog.int4 NOT NULL",
        f"ngram pg_catalog.text {_C} NOT NULL",
        "id pg_catalog.int4 NOT NULL",
    ]
    columns += [f"w{j} pg_catalog.int4" for j in range(width)]
    yield f"CREATE TABLE {name} ({', '.join(columns)})"
    rows = [row for part in parts for row in part.rows(width)]
    for start in range(0, len(rows), ROWS_A_STATEMENT):
        yield f"INSERT INTO {name} VALUES {', '.join(rows[start : start + ROWS_A_STATEMENT])}"
    # A word may be longer than an entry of a B-tree.
    yield f"CREATE INDEX ON {name} USING hash (ngram)"
    yield f"CREATE UNIQUE INDEX ON {name} (part, id) WHERE w0 IS NOT NULL"
    yield f"ANALYZE {name}"


def sums_query(text: str, vocabulary: Inline | Stored) -> str:
    """Return a SELECT of one row: the sums ``s0``, ``s1``, ... (int8, 0 where there is no n-gram) of a text.

    ``text`` is SQL of the text; it stands there once.
    """
    tokeniser, find = vocabulary.tokeniser, vocabulary.find
    body = f"coalesce(({text})::pg_catalog.text, {quote_literal(NULL_STRING)}::pg_catalog.text)"
    around = quote_literal(r" \& ")
    read = (
        f"pg_catalog.regexp_replace(pg_catalog.left({body}, {MOST_CHARACTERS}) {_C}, "
        f"{quote_literal(APART)}, {around}, 'g')"
    )
    words = f"pg_catalog.regexp_split_to_array(pg_catalog.lower(read.body), {quote_literal(_SEPARATORS)})"
    marks = f"pg_catalog.string_to_array({quote_literal(tokeniser.marks)}, NULL)"
    found = ["SELECT words.id FROM words"]
    if tokeniser.pairs:
        # The window stands below the look-up, which would be within it otherwise.
        following = "pg_catalog.lead(words.id) OVER (ORDER BY words.place)"
        pair = f"words.id::pg_catalog.text {_JOIN} ' ' {_JOIN} ({following})::pg_catalog.text"
        found.append(f"SELECT {find('p.pair')} FROM (SELECT {pair} AS pair FROM words) AS p")
    if tokeniser.marks:
        found.append(
            f"SELECT {find('m.mark')} FROM read, pg_catalog.unnest({marks}) AS m(mark)"
            f" WHERE pg_catalog.strpos(read.body, m.mark {_C}) OPERATOR(pg_catalog.>) 0"
        )
    return (
        f"WITH {vocabulary.begin()}read(body) AS MATERIALIZED (SELECT {read}), "
        f"words(place, id) AS MATERIALIZED (SELECT w.place, {find('w.word')} "
        f"FROM read, pg_catalog.unnest({words}) WITH ORDINALITY AS w(word, place)), "
        f"{vocabulary.add_up(found)}"
    )


def _numbers(tokeniser: Tokeniser) -> dict[str, int]:
    """Return the number of each n-gram as SQL looks it up; the forms of a word one after the other.

    Without forms that no text of PostgreSQL's has: with NUL, or a lone surrogate.
    """
    numbers = {form: number for form, number in tokeniser.word_ids.items() if _storable(form)}
    numbers.update((mark, i) for i, mark in enumerate(tokeniser.marks, len(tokeniser.words)))
    numbers.update(
        (f"{a} {b}", i)
        for i, (a, b) in enumerate(tokeniser.pairs, len(tokeniser.words) + len(tokeniser.marks))
    )
    return numbers


def _storable(form: str) -> bool:
    return "\0" not in form and not any("\ud800" <= c <= "\udfff" for c in form)
