r"""The one tokeniser of texts: what a text's n-grams are, and which numbers they have. Pure; everything else follows it.

Trainer and predict tokenise here, ``tokens_graph`` writes the same rules as a graph, ``tokens_sql`` as SQL. So there are no
rules but those that all of them can keep on any machine:

1. **Cut.** Only the first `MOST_CHARACTERS` characters (code points) of a text are read.
2. **Apart.** A character of `APART` is a word by itself: of scripts without blanks, and emoji. The bigrams of these
   are character bigrams.
3. **Separators.** `BLANKS` and `MARKS` end a word. Each is named: "blank" and "punctuation" are no classes of
   Unicode's here. Every other character belongs to a word, also combining marks, controls and what is not assigned.
4. **Lower case.** A to Z become a to z. Of other letters no rule is kept at run time; see forms.
5. **Words** are what stands between separators, never empty. A **word n-gram** is a word or two words in a row; what
   separates the two does not matter.
6. **Marks** count by whether the text has them, wherever.
7. **Forms.** A word of the vocabulary has one or more forms, all spellings that mean it: what Unicode's compatibility
   normalisation and case folding (of the Python that trains) make the same has one number. So upper case beyond
   ASCII, NFC and NFD, full width and ligatures are read: by looking words up, not by a rule.
8. **Presence.** An n-gram counts once a text. NULL is the text `NULL_STRING`.

Characters are code points as they come. PostgreSQL stores no NUL; a lone surrogate is no UTF-8 and reaches neither it nor a
graph, and is a character like any other here.

Why these rules, by what was tried on ONNX Runtime 1.24 and 1.32, and PostgreSQL 15:

- StringNormalizer lowers by a locale of the machine. Its default, en_US, is an error where that locale is not
  installed, as in slim images; "C.UTF-8" lowers by the C library's version of Unicode; "C" is everywhere, and is
  ASCII. ``lower(x COLLATE "C")`` is the same in every PostgreSQL; any other collation depends on a library.
- StringSplit splits at one constant string, or at runs of U+0020, and at no other blank: so separators are a short list, a
  few nodes each. ONNX has no operator that replaces or takes a part of a string, and RegexFullMatch only says yes or no.
  So **a graph cannot cut a text, nor set characters apart**: its file says in its metadata that it wants
  `prepare`\ d text. Texts of at most `MOST_CHARACTERS` characters without one of `APART` are prepared as they are.
- TfIdfVectorizer counts n-grams of rows of equally many words: bigrams would join a row's padding, and the counts are a
  dense row of the whole vocabulary. LabelEncoder over words, then over pairs of their numbers, gives a list.
- In brackets of PostgreSQL's regular expressions, of Python's and of RE2, ranges are of code points, and the first two know
  the same escapes: `APART` is one text for both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise, repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.onnx_model.ascii_tokens import AsciiTokens, Crowded, joined
from pg_distill.onnx_model.signature import NULL_STRING

__all__ = [
    "APART",
    "BLANKS",
    "MARKS",
    "MOST_CHARACTERS",
    "SEPARATORS",
    "WANTED",
    "Bags",
    "Tokeniser",
    "prepare",
    "split_words",
]

MOST_CHARACTERS = 10_000
"""Characters of a text that are read: some 1,700 English words, and a millisecond's work."""

BLANKS = " \t\n\r\u00a0\u3000"
"""Blanks that texts have: of web pages the no-break space, of Chinese and Japanese the wide one."""

MARKS = (
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    + "\u00a1\u00a3\u00ab\u00b7\u00bb\u00bf\u2013\u2014\u2018\u2019\u201c\u201d\u201e\u2022\u2026\u20ac"
)
"""ASCII's punctuation, and what stands around words in European texts: quotes, dashes, dots, pound and euro."""

SEPARATORS = BLANKS + MARKS

APART = (
    "["
    r"\u0e00-\u0eff"  # Thai, Lao
    r"\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    r"\u2600-\u27bf\u2b00-\u2bff\ufe00-\ufe0f\U0001f000-\U0001faff"  # symbols, emoji, what selects their look
    r"\u2e80-\u2fdf\u3001-\u312f\u31a0-\u31ff"  # radicals, marks and kana of Chinese and Japanese
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # their characters
    r"\ufe30-\ufe4f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f"  # wide marks, narrow kana
    "]"
)
"""Characters that are words by themselves: a regular expression for PostgreSQL and Python alike."""

WANTED: Mapping[str, Any] = {
    "characters": MOST_CHARACTERS,
    "apart": APART,
    "null": NULL_STRING,
    "python": f"re.sub({APART!r}, r' \\g<0> ', text[:{MOST_CHARACTERS}])",
}
"""What a graph wants of a text, for its metadata: `prepare`, for whoever has no pg_distill. JSON."""

_APART = re.compile(APART)
_WORD = re.compile(f"{APART}|[^{APART[1:-1]}{re.escape(SEPARATORS)}]+")
_TABLE = {ord(c): " " for c in SEPARATORS} | {ord(c): c.lower() for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def prepare(text: str | None) -> str:
    """Return a text as a graph wants it: cut, and with blanks around what is set apart; the same words as before."""
    text = _cut(text)
    return text if text.isascii() else _APART.sub(r" \g<0> ", text)


def split_words(text: str | None) -> list[str]:
    """Return the words of a text, in order, in lower case as far as ASCII goes."""
    return _split(_cut(text))


def _cut(text: str | None) -> str:
    return NULL_STRING if text is None else text[:MOST_CHARACTERS]


def _split_anew(text: str) -> list[str]:
    if text.isascii():  # half the time of the regular expression
        return [word for word in text.translate(_TABLE).split(" ") if word]
    # bytes.lower() is ASCII's; str.lower() would be Unicode's.
    lower = text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")
    return _WORD.findall(lower)


def _letters() -> bytes:
    table = bytearray(bytes(range(256)).lower())
    for place, blank in enumerate(b"\x0b\x0c", 128):
        table[blank] = place
    for separator in filter(str.isascii, SEPARATORS):
        table[ord(separator)] = ord(" ")
    return bytes(table)


_BYTES = _letters()
"""Of ASCII texts: letters in lower case and separators as blanks; what else bytes.split() takes for a blank is a byte that no
such text has."""


_split = lru_cache(maxsize=4)(_split_anew)
"""Kept for the parts of a blend, which read the same text one after the other."""


END = "\0"
"""The word that stands between two texts that are split at once."""
_END_CODE = -2


@dataclass(frozen=True)
class Bags:
    """The n-grams of texts: row i has ``ids[starts[i] : starts[i + 1]]``, ascending, each once.

    ``starts`` (n + 1,) int64, ``ids`` (starts[n],) int64.
    """

    starts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> Bags:
        """Return the bags of rows of ids."""
        lists = list(rows)
        starts = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
        ids = np.fromiter((i for row in lists for i in row), np.int64, int(starts[-1]))
        return cls(starts, ids)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The row of each of ``ids``."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def take(self, rows: npt.NDArray[Any]) -> Bags:
        """Return the bags of some rows, given by an index array; -1 is the last row."""
        rows = np.where(rows < 0, rows + len(self), rows)
        sizes = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        places = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], sizes)
        return Bags(starts, self.ids[places])


@dataclass(frozen=True)
class Tokeniser:
    """A learned vocabulary; its n-grams are numbered words first, then marks, then pairs.

    Parameters
    ----------
    words
        The forms of each word: no form twice, each one that `split_words` leaves as it is.
    marks
        Some of `MARKS`.
    pairs
        Two words in a row, by their numbers.
    """

    words: tuple[tuple[str, ...], ...]
    marks: str
    pairs: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """How many n-grams there are."""
        return len(self.words) + len(self.marks) + len(self.pairs)

    @cached_property
    def word_ids(self) -> dict[str, int]:
        """The number of each form: its word's."""
        return {form: number for number, forms in enumerate(self.words) for form in forms}

    @cached_property
    def _byte_ids(self) -> dict[bytes, int]:
        """The number of each form of ASCII, as `_BYTES` has it."""
        return {
            form.encode().translate(_BYTES): number
            for form, number in self.word_ids.items()
            if form.isascii()
        }

    @cached_property
    def pair_ids(self) -> dict[tuple[int | None, int | None], int]:
        """The number of each pair of words."""
        return {pair: i for i, pair in enumerate(self.pairs, len(self.words) + len(self.marks))}

    def ids(self, text: str | None) -> list[int]:
        """Return the numbers of a text's n-grams, ascending, each once."""
        return sorted(self.find(text))

    def find(self, text: str | None) -> set[int]:
        """Return the numbers of a text's n-grams."""
        text = _cut(text)
        # None is an unknown word, and no pair's. Loops in C, and bytes where that can be: 12 us instead of 28 for 300 characters.
        if text.isascii():
            words = [*map(self._byte_ids.get, text.encode().translate(_BYTES).split())]
        else:
            words = [*map(self.word_ids.get, _split(text))]
        found = set(words)
        found.update(map(self.pair_ids.get, pairwise(words)))
        found.update(i for i, mark in enumerate(self.marks, len(self.words)) if mark in text)
        found.discard(None)
        return found  # type: ignore[return-value]

    def bags(self, texts: Sequence[str | None]) -> Bags:
        """Return the n-grams of texts; of many at once, in a fifth of the time that `ids` needs for one after the other."""
        cut = [_cut(text) for text in texts]
        size = max(1, self.size)
        keys = self._plain_keys(cut) if self._ascii is not None else None
        if keys is None:
            keys = self._mixed_keys(cut)
        # 32 bits are sorted in half the time.
        every = np.sort(keys.astype(np.uint32) if len(cut) * size < 2**32 else keys)
        first = np.ones(len(every), bool)
        np.not_equal(every[1:], every[:-1], out=first[1:])
        key = every[first].astype(np.int64)
        starts = np.searchsorted(key, np.arange(len(cut) + 1) * size).astype(np.int64)
        return Bags(
            starts, np.asarray(key - np.repeat(np.arange(len(cut)) * size, np.diff(starts)), np.int64)
        )

    def _plain_keys(self, texts: Sequence[str]) -> npt.NDArray[np.int64] | None:
        """Return ``row * size + id`` of each n-gram, some more than once; None where not all texts are ASCII without `END`."""
        assert self._ascii is not None
        whole = joined(texts)
        if not whole.isascii() or whole.count(END) != len(texts):
            return None
        ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1) - 1
        return self._ascii.keys(whole.encode(), ends, np.arange(len(texts)))

    def _mixed_keys(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the same of any texts."""
        odd = [i for i, text in enumerate(texts) if not text.isascii() or END in text]
        plain = np.setdiff1d(np.arange(len(texts)), odd)
        some = [texts[i] for i in plain.tolist()]
        keys = [np.zeros(0, np.int64)]
        if self._ascii is not None:
            ends = np.cumsum(np.fromiter(map(len, some), np.int64, len(some)) + 1) - 1
            keys.append(self._ascii.keys(joined(some).encode(), ends, plain))
        else:
            keys.append(self._keys(some, plain))
        if odd:  # a regular expression splits these
            whole = [i for i in odd if END not in texts[i]]
            keys.append(self._keys([texts[i] for i in whole], np.array(whole, np.int64)))
            # A text with the mark of an end in it: PostgreSQL has none.
            keys += [i * self.size + np.array(self.ids(texts[i]), np.int64) for i in odd if END in texts[i]]
        return np.concatenate(keys)

    @cached_property
    def _ascii(self) -> AsciiTokens | None:
        """What reads many ASCII texts; None where the vocabulary was made to be slow there."""
        pairs = np.array(self.pairs, np.int64).reshape(-1, 2).T
        try:
            return AsciiTokens(
                SEPARATORS,
                self.word_ids,
                {mark: i for i, mark in enumerate(self.marks, len(self.words))},
                (pairs[0], pairs[1], np.fromiter(self.pair_ids.values(), np.int64, len(self.pairs))),
                self.size,
            )
        except Crowded:
            return None

    def _keys(self, texts: Sequence[str], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return ``row * size + id`` of each n-gram, some more than once."""
        if not texts or not self.size:
            return np.zeros(0, np.int64)
        joined = f" {END} ".join(texts)
        words = _split_anew(joined)
        codes = np.fromiter(map(self._codes.get, words, repeat(-1)), np.int64, len(words))
        row = rows[np.cumsum(codes == _END_CODE)]
        known = codes >= 0
        found = [row[known] * self.size + codes[known]]
        if self.pairs:
            beside = np.flatnonzero(known[:-1] & known[1:])
            pair = codes[beside] * len(self.words) + codes[beside + 1]
            keys, numbers = self._pair_table
            place = np.minimum(np.searchsorted(keys, pair), len(keys) - 1)
            hit = keys[place] == pair
            found.append(row[beside[hit]] * self.size + numbers[place[hit]])
        if self.marks:
            points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
            mark = self._mark_table[np.minimum(points, len(self._mark_table) - 1)]
            at = np.flatnonzero(mark >= 0)
            lengths = np.fromiter(map(len, texts), np.int64, len(texts))
            ends = np.cumsum(lengths + len(END) + 2)
            found.append(rows[np.searchsorted(ends, at, "right")] * self.size + mark[at])
        return np.concatenate(found)

    @cached_property
    def _codes(self) -> dict[str, int]:
        return self.word_ids | {END: _END_CODE}

    @cached_property
    def _pair_table(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The pairs as ``first * words + second``, sorted, and their numbers."""
        pairs = np.array(self.pairs, np.int64).reshape(-1, 2)
        keys = pairs[:, 0] * len(self.words) + pairs[:, 1]
        order = np.argsort(keys)
        return keys[order], order + len(self.words) + len(self.marks)

    @cached_property
    def _mark_table(self) -> npt.NDArray[np.int64]:
        """The number of each mark by its character; -1 for other characters, and in the last place for all beyond."""
        table = np.full(max(map(ord, self.marks)) + 2, -1, np.int64)
        for i, mark in enumerate(self.marks, len(self.words)):
            table[ord(mark)] = i
        return table

    def names(self) -> list[str]:
        """Return each n-gram as people read it: a word by its first form, a pair with a blank between."""
        words = [forms[0] for forms in self.words]
        return [*words, *self.marks, *(f"{words[a]} {words[b]}" for a, b in self.pairs)]

    def to_json(self) -> dict[str, Any]:
        """Return the vocabulary as plain JSON values."""
        return {
            "words": [list(forms) for forms in self.words],
            "marks": self.marks,
            "pairs": [list(p) for p in self.pairs],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Tokeniser:
        """Read what `to_json` gave."""
        pairs = tuple((int(a), int(b)) for a, b in values["pairs"])
        return cls(tuple(map(tuple, values["words"])), values["marks"], pairs)
