"""Texts made out of real ones, for the teacher to label.

word_dropout
    leaves words out, so that a student sees what each says without the others;
span_exchange
    puts words of a text that has rare words in common in the place of as many others (after Tang et al. 2019, "Distilling
    task-specific knowledge from BERT into simple neural networks", who sample n-grams and replace words).

All else of a row, its NULLs too, stays as it is in the real row.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from pg_distill.frame import Frame, Strings

__all__ = ["TEXT_KINDS", "TextAugmenter"]

TEXT_KINDS = ("word_dropout", "span_exchange")
DROP_P = 0.2
"""Chance of each word to be left out."""
LEAST_SPAN, MOST_SPAN = 0.1, 0.5
"""Share of a text's words that are exchanged, at least and at most."""
POOL = 4096
"""Rows among which a neighbour is looked for; a fresh draw each time. The words of the first draw are those that count: of all
rows they would take several times their memory, and their time before a single row is made."""
CHUNK = 2048
POINT = 256
"""Numbers of the point that stands for a text where neighbours are looked for."""
LONG_WORD = 12
"""Characters of a word in the mean: a text of longer ones is of a language without blanks, and its characters are exchanged."""
MOST_CHARACTERS = 100_000
"""Of a text that is taken apart; what follows stays as it is."""
_WORD = re.compile(r"\S+\s*")


class TextAugmenter:
    """Makes texts near those of ``frame``."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self._texts = {name: frame.strings(name).to_objects() for name in frame.text_names}
        self._weights: Mapping[str, tuple[int, float]] | None = None
        self._points = np.zeros((len(frame), POINT), np.float32)
        self._placed = np.zeros(len(frame), bool)

    def make_from(
        self, kind: str, base: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[Frame, npt.NDArray[np.int64]]:
        """Return a row made from each real row of ``base``, without those that came out as they were, and of which each is."""
        donors = self._neighbours(base, rng) if kind == "span_exchange" else base
        changed = np.zeros(len(base), bool)
        columns = dict(self.frame.take(base).columns)
        for name, texts in self._texts.items():
            made = []
            for place, (row, donor) in enumerate(zip(base.tolist(), donors.tolist(), strict=True)):
                text = texts[row]
                new = text
                if text is not None:
                    new = (
                        _without(text, rng) if kind == "word_dropout" else _exchanged(text, texts[donor], rng)
                    )
                    changed[place] |= new != text
                made.append(new)
            columns[name] = Strings.from_values(made)
        kept = np.flatnonzero(changed)
        return Frame(self.frame.features, columns).take(kept), base[kept]

    def _neighbours(self, base: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Return for each row the row of a random pool that has most, and the rarest, words in common with it."""
        pool = rng.permutation(len(self.frame))[:POOL]
        if self._weights is None:
            self._weights = _weights(map(self._text, pool.tolist()), len(pool))
        for row in np.union1d(pool, base).tolist():
            if not self._placed[row]:
                self._points[row], self._placed[row] = _point(self._text(row), self._weights), True
        out = np.empty(len(base), np.int64)
        for start in range(0, len(base), CHUNK):
            rows = base[start : start + CHUNK]
            likeness = self._points[rows] @ self._points[pool].T
            likeness[rows[:, None] == pool] = -np.inf
            out[start : start + CHUNK] = pool[likeness.argmax(axis=1)]
        return out

    def _text(self, row: int) -> str:
        return " ".join(texts[row] or "" for texts in self._texts.values())


def _words(text: str) -> list[str]:
    """Return the words of a text, each once, in an order that does not depend on hashes: sums are rounded."""
    return list(dict.fromkeys(word.strip().lower() for word in _pieces(text)))


def _weights(texts: Iterable[str], n: int) -> dict[str, tuple[int, float]]:
    """Return the code, and the weight by how rare it is, of each word that more than one of ``n`` texts has."""
    count = Counter(word for text in texts for word in _words(text))
    return {
        word: (zlib.crc32(word.encode("utf-8", "replace")), math.log(n / had))
        for word, had in count.items()
        if had > 1
    }


def _point(text: str, weights: Mapping[str, tuple[int, float]]) -> npt.NDArray[np.float32]:
    """Return a point of length 1: a text's words by their weights, hashed to ``POINT`` numbers with a sign."""
    out = np.zeros(POINT, np.float32)
    known = [weights[word] for word in _words(text) if word in weights]
    codes = np.array([code for code, _ in known], np.int64)
    signs = np.where(codes >> 16 & 1, 1.0, -1.0)
    np.add.at(out, codes % POINT, signs * np.array([weight for _, weight in known]))
    return np.asarray(out / max(float(np.linalg.norm(out)), 1e-9), np.float32)


def _pieces(text: str) -> list[str]:
    """Cut a text into words, each with the blanks after it, or into characters where the language has no blanks."""
    words = _WORD.findall(text[:MOST_CHARACTERS])
    if sum(map(len, words)) > LONG_WORD * len(words):
        return list(text[:MOST_CHARACTERS])
    return words


def _without(text: str, rng: np.random.Generator) -> str:
    """Return a text without some of its words, but with one of them at least."""
    pieces = _pieces(text)
    kept = rng.random(len(pieces)) >= DROP_P
    if not kept.any():
        return text
    return (
        "".join([piece for piece, keep in zip(pieces, kept.tolist(), strict=True) if keep])
        + text[MOST_CHARACTERS:]
    )


def _exchanged(text: str, other: str | None, rng: np.random.Generator) -> str:
    """Return a text with a span of another's in the place of one of its own."""
    pieces, others = _pieces(text), _pieces(other or "")
    if len(pieces) < 2 or not others:
        return text
    most = max(1, round(len(pieces) * rng.uniform(LEAST_SPAN, MOST_SPAN)))
    start = int(rng.integers(len(pieces) - most + 1))
    taken = min(most, len(others))
    first = int(rng.integers(len(others) - taken + 1))
    span = "".join(others[first : first + taken])
    rest = "".join(pieces[start + most :])
    if rest and len(pieces[start].rstrip()) < len(pieces[start]) and span == span.rstrip():
        span += " "  # it was the other's last word
    return "".join(pieces[:start]) + span + rest + text[MOST_CHARACTERS:]
