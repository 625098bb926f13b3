"""The n-grams of many ASCII texts at once, in numpy: the same as `tokens.Tokeniser.find`, in a tenth of the time.

A word of up to `MOST_BYTES` bytes is up to three whole numbers, which are compared as they are: a word is known, or it is not,
whatever texts somebody makes. A hash says only where in a table a known word stands; how many share a place is looked at when the
table is made, and a vocabulary for which that are many has none (`Crowded`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_BYTES", "AsciiTokens", "Crowded", "joined"]

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

WORD = 8
"""Bytes of a whole number."""
MOST_BYTES = 3 * WORD
"""Of a word that is looked up in numpy; a longer one is looked up in a dictionary, by itself."""
PLACES = 8
"""Of a table, for each key: that many or up to twice as many, so that few keys share one."""
MOST_SHARING, SEEDS = 8, 8
"""Keys of one place, at most, and multipliers that are tried for that."""
NEW = 0
"""The byte that ends a text, and stands for every separator."""


class Crowded(Exception):
    """Too many keys of a table fall on one place, with whichever multiplier."""


class _Table:
    """Where keys are found: ``numbers`` (k,), at least 0, of ``keys``, 1 to 3 columns (k,) of which the first is never 0."""

    def __init__(self, keys: Sequence[Words], numbers: Integers) -> None:
        bits = max(4, (PLACES * len(numbers)).bit_length())
        self._shift = np.uint64(64 - bits)
        for seed in range(SEEDS):
            self._factors = np.random.default_rng(seed).integers(0, 2**63, len(keys), np.uint64) * 2 + 1
            places = self._places(keys)
            order = np.argsort(places, kind="stable")
            found, first, count = np.unique(places[order], return_index=True, return_counts=True)
            if not len(found) or count.max() <= MOST_SHARING:
                break
        else:
            raise Crowded
        # The first key of a place stands there, the others behind one another after the last place.
        size = 1 << bits
        at = np.empty(len(numbers), np.int64)
        at[order[first]] = found
        others = np.setdiff1d(np.arange(len(numbers)), first)
        at[order[others]] = size + np.arange(len(others))
        self._keys = [np.zeros(size + len(others), np.uint64) for _ in keys]
        for table, column in zip(self._keys, keys, strict=True):
            table[at] = column
        self._numbers = np.full(size + len(others), -1, np.int64)
        self._numbers[at] = numbers
        self._next = np.full(size + len(others), -1, np.int64)
        self._next[at[order[others - 1]]] = at[order[others]]

    def _places(self, keys: Sequence[Words]) -> npt.NDArray[np.int64]:
        mixed = keys[0] * self._factors[0]
        for key, factor in zip(keys[1:], self._factors[1:], strict=True):
            # Shifted, or equal high bits of two keys could undo one another.
            mixed = (mixed ^ (mixed >> np.uint64(29))) + key * factor
        return np.asarray((mixed >> self._shift).astype(np.int64))

    def find(self, keys: Sequence[Words]) -> Integers:
        """Return the numbers of keys, -1 for those that are not there."""
        places = self._places(keys)
        hit = self._hits(keys, places)
        found = np.where(hit, self._numbers[places], -1)
        rest = np.flatnonzero(~hit)
        places = places[rest]
        while len(rest):
            places = self._next[places]
            some = places >= 0
            rest, places = rest[some], places[some]
            hit = self._hits([key[rest] for key in keys], places)
            found[rest[hit]] = self._numbers[places[hit]]
            rest, places = rest[~hit], places[~hit]
        return found

    def _hits(self, keys: Sequence[Words], places: Integers) -> npt.NDArray[np.bool_]:
        hit = self._keys[0][places] == keys[0]
        for table, key in zip(self._keys[1:], keys[1:], strict=True):
            hit &= table[places] == key
        return np.asarray(hit)


class AsciiTokens:
    """Finds n-grams in ASCII texts.

    Parameters
    ----------
    separators
        Characters that end a word; others than ASCII's are left out, here and everywhere.
    forms
        The number of each word, in lower case.
    marks
        The number of each mark.
    pairs
        Columns (p,): the number of a pair's first word, of its second, and its own.
    size
        More than any number.

    Raises
    ------
    Crowded
        Where its words or pairs were made to be slow.
    """

    def __init__(
        self,
        separators: str,
        forms: Mapping[str, int],
        marks: Mapping[str, int],
        pairs: tuple[Integers, Integers, Integers],
        size: int,
    ) -> None:
        ends = [c for c in separators if c.isascii()]
        letters = bytearray(bytes(range(256)).lower())
        for character in ends:
            letters[ord(character)] = NEW
        self._letters = bytes(letters)
        own = [(form.encode(), number) for form, number in forms.items() if form.isascii()]
        self._short = self._table([item for item in own if len(item[0]) <= WORD], 1)
        self._middle = self._table([item for item in own if WORD < len(item[0]) <= MOST_BYTES], 3)
        self._long = {form: number for form, number in own if len(form) > MOST_BYTES}
        self._marks = np.full(256, -1, np.int64)
        for mark, number in marks.items():
            if mark.isascii():
                self._marks[ord(mark)] = number
        # As bytes, which are translated faster than numpy looks them up: whether one is such a mark.
        self._is_mark = (self._marks >= 0).astype(np.uint8).tobytes()
        self._has_marks = any(self._is_mark)
        first, second, numbers = pairs
        words = 1 + max(forms.values(), default=0)
        self._words, self._pairs = words, None
        if len(numbers):
            self._pairs = _Table([(first * words + second + 1).astype(np.uint64)], numbers)
            self._begins, self._follows = np.zeros(words + 1, bool), np.zeros(words + 1, bool)
            self._begins[first] = True
            self._follows[second] = True  # the last place is that of an unknown word, -1
        self._size = size

    @staticmethod
    def _table(forms: Sequence[tuple[bytes, int]], columns: int) -> _Table | None:
        if not forms:
            return None
        padded = b"".join(form.ljust(WORD * columns, b"\0") for form, _ in forms)
        keys = np.frombuffer(padded, "<u8").reshape(-1, columns).astype(np.uint64)
        numbers = np.array([number for _, number in forms], np.int64)
        return _Table([np.ascontiguousarray(column) for column in keys.T], numbers)

    def keys(self, joined: bytes, ends: Integers, rows: Integers) -> Integers:
        """Return ``row * size + number`` of each n-gram of each text, some more than once.

        Parameters
        ----------
        joined
            The texts, of ASCII without NUL, each with a NUL behind it.
        ends
            Behind which byte each ends: the places of these NULs.
        rows
            (n,) the row of each text.
        """
        letters = np.frombuffer(b"\0" + joined.translate(self._letters) + bytes(MOST_BYTES), np.uint8)
        full = letters != NEW
        edges = np.flatnonzero(full[1:] != full[:-1]) + 1
        begin, end = edges[::2], edges[1::2]
        bounds = np.concatenate([[0], np.searchsorted(begin, ends + 1)])
        base = np.repeat(rows * self._size, np.diff(bounds))
        codes = self._codes(letters, begin, end - begin)
        known = codes >= 0
        found = [(base + codes)[known]]
        if self._pairs is not None and len(codes) > 1:
            beside = self._begins[codes[:-1]] & self._follows[codes[1:]]
            last = bounds[1:-1] - 1  # of each text but the last one
            beside[last[(last >= 0) & (last < len(beside))]] = False
            at = np.flatnonzero(beside)
            key = codes[at] * self._words + codes[at + 1] + 1
            pair = self._pairs.find([key.astype(np.uint64)])
            hit = pair >= 0
            found.append(base[at[hit]] + pair[hit])
        if self._has_marks:
            is_mark = np.frombuffer(joined.translate(self._is_mark), bool)
            at = np.flatnonzero(is_mark)
            mark = self._marks[np.frombuffer(joined, np.uint8)[at]]
            found.append(rows[np.searchsorted(ends, at)] * self._size + mark)
        return np.concatenate(found)

    def _codes(self, letters: npt.NDArray[np.uint8], begin: Integers, length: Integers) -> Integers:
        """Return the numbers of words, -1 for unknown ones."""
        windows = np.ndarray((len(letters) - WORD + 1,), "<u8", letters, strides=(1,))
        first = windows[begin] & _MASKS[np.minimum(length, WORD)]
        codes = np.full(len(begin), -1, np.int64) if self._short is None else self._short.find([first])
        # A longer word begins as a short one, and is another.
        more = np.flatnonzero(length > WORD)
        codes[more] = -1
        if self._middle is not None and len(more):
            middle = more[length[more] <= MOST_BYTES]
            start, rest = begin[middle] + WORD, length[middle] - WORD
            second = windows[start] & _MASKS[np.minimum(rest, WORD)]
            third = windows[start + WORD] & _MASKS[np.maximum(rest - WORD, 0)]
            codes[middle] = self._middle.find([first[middle], second, third])
        if self._long:
            for place in more[length[more] > MOST_BYTES].tolist():
                word = letters[begin[place] : begin[place] + length[place]].tobytes()
                codes[place] = self._long.get(word, -1)
        return codes


_MASKS: Words = np.array([(1 << (8 * n)) - 1 for n in range(WORD + 1)], np.uint64)
"""What leaves the first n bytes of a whole number."""


def joined(texts: Iterable[str]) -> str:
    """Return texts with a NUL behind each."""
    return "\0".join([*texts, ""])
