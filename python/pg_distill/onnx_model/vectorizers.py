r"""scikit-learn's vectorizers of texts as Python runs them, in front of a converted graph.

ONNX's own operators read texts otherwise than scikit-learn does: StringNormalizer lowers by a locale, Tokenizer's regular
expressions know other letters than Python's, and TfIdfVectorizer joins n-grams across what is between words. So a pipeline's
vectorizer is not made nodes. The graph takes its numbers, and the file's metadata say how they are made: the settings of
CountVectorizer, TfidfVectorizer or HashingVectorizer, and the terms. The code below does what scikit-learn's does, step by step.

The settings may come from anybody. So a text is read in time that grows with its length: a token pattern is a run of one class of
characters (`TokenPattern`), never an expression that a regular expression engine could run away with, and how long terms and
texts may be has a limit. ``check`` is called again and again in between, and may raise.

Imported in every backend that predicts, so it knows neither onnx nor scikit-learn.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from pg_distill.errors import InvalidArtifact, LimitExceeded, NullNotAllowed
from pg_distill.frame import FloatArray, Strings
from pg_distill.onnx_model.hashing import murmur3
from pg_distill.onnx_model.signature import Element, Null

__all__ = [
    "LONGEST_NGRAM",
    "MOST_CHARACTERS",
    "MOST_LENGTHS",
    "MOST_WIDTH",
    "VECTORS_KEY",
    "Analyzer",
    "VectorReader",
    "parse_pattern",
    "read_vectorizers",
]

VECTORS_KEY = "pg_distill.vectorizers"
"""Key of ``metadata_props`` under which a converted pipeline says how its texts become numbers (JSON)."""

MOST_CHARACTERS = 1 << 20
"""Characters of a text that is read. A longer one is refused: a cut would predict something else than the pipeline does."""
MOST_WIDTH = 1 << 21
"""Numbers that one vectorizer makes of a text; HashingVectorizer's default is half of it."""
LONGEST_NGRAM = 100
MOST_LENGTHS = 16
"""Lengths of n-grams of one vectorizer: each is a pass over the text."""
AT_ONCE = 1 << 15
"""Terms that are counted between two checks, in some 10 ms."""

Norm = Literal["l1", "l2"]
Accents = Literal["ascii", "unicode"]
Kind = Literal["word", "char", "char_wb"]

_NOTHING: Callable[[], None] = lambda: None  # noqa: E731

_CLASS = r"(?:\\[wdS]|\[\^?(?:\w|[ '@#+.,/-]|\\[wWdDsS.'-])+\])"
_PATTERN = re.compile(
    rf"(?:\(\?u\))?(?P<start>\\b)?(?P<first>{_CLASS})(?P<again>(?P=first)*)(?P<count>\+|\*|\{{[0-9]{{1,3}}(?:,[0-9]{{0,3}})?\}})?(?P<end>\\b)?"
)
_BLANKS = re.compile(r"\s\s+")


def parse_pattern(text: str) -> re.Pattern[str] | None:
    r"""Return a token pattern as it may be run: runs of one class of characters, ``\b\w\w+\b`` or ``[a-z']{3,}``; else None.

    Such a run is found in one pass. An end of a word behind it may stand only where every such run ends there: else each place
    would be tried again from every place before it.
    """
    if len(text) > 200 or "--" in text:
        return None
    found = _PATTERN.fullmatch(text)
    if found is None or (found["end"] and found["first"] != r"\w"):
        return None
    count = found["count"]
    if found["end"] and count not in ("+", "*") and not (count or "").endswith(",}"):
        return None
    try:
        return re.compile(text)
    except (re.error, OverflowError):
        return None


@dataclass(frozen=True)
class Analyzer:
    """How a text becomes terms: scikit-learn's ``build_analyzer``."""

    kind: Kind
    lowercase: bool
    accents: Accents | None
    pattern: str | None
    """Of the kind word."""
    stop_words: frozenset[str] | None
    ngrams: tuple[int, int]

    @cached_property
    def _find(self) -> Callable[[str], list[str]]:
        compiled = parse_pattern(self.pattern or "")
        assert compiled is not None
        return compiled.findall

    def terms(self, text: str, check: Callable[[], None] = _NOTHING) -> Iterator[list[str]]:
        """Yield the terms of a text in pieces, between which ``check`` is called."""
        if len(text) > MOST_CHARACTERS:
            raise LimitExceeded(
                f"a text of {len(text)} characters is too long for the model, limit is {MOST_CHARACTERS}",
                hint="Shorten it in the query: left(column, n).",
            )
        if self.lowercase:
            text = text.lower()
        if self.accents is not None:
            text = "".join(_without_accents(text, self.accents, check))
        if self.kind == "word":
            yield from self._words(text, check)
        elif self.kind == "char":
            yield from self._characters(_BLANKS.sub(" ", text), check)
        else:
            yield from self._inside_words(_BLANKS.sub(" ", text), check)

    def _words(self, text: str, check: Callable[[], None]) -> Iterator[list[str]]:
        words = self._find(text)
        if self.stop_words is not None:
            words = [word for word in words if word not in self.stop_words]
        least, most = self.ngrams
        if least == 1:
            yield words
        for n in range(max(least, 2), min(most, len(words)) + 1):
            step = max(AT_ONCE // n, 1)
            for start in range(0, len(words) - n + 1, step):
                check()
                stop = min(start + step, len(words) - n + 1)
                yield [" ".join(words[i : i + n]) for i in range(start, stop)]

    def _characters(self, text: str, check: Callable[[], None]) -> Iterator[list[str]]:
        least, most = self.ngrams
        for n in range(least, min(most, len(text)) + 1):
            for start in range(0, len(text) - n + 1, AT_ONCE):
                check()
                yield [text[i : i + n] for i in range(start, min(start + AT_ONCE, len(text) - n + 1))]

    def _inside_words(self, text: str, check: Callable[[], None]) -> Iterator[list[str]]:
        least, most = self.ngrams
        found: list[str] = []
        for word in text.split():
            padded = f" {word} "
            for n in range(least, most + 1):
                last = len(padded) - n
                if last <= 0:  # a short word counts once
                    found.append(padded)
                    break
                for start in range(0, last + 1, AT_ONCE):
                    if len(found) >= AT_ONCE:
                        check()
                        yield found
                        found = []
                    found += [padded[i : i + n] for i in range(start, min(start + AT_ONCE, last + 1))]
        yield found


def _without_accents(text: str, how: Accents, check: Callable[[], None]) -> Iterator[str]:
    """Yield scikit-learn's strip_accents of a text, piece by piece: what it takes away or keeps depends on single characters."""
    if text.isascii():
        yield text
        return
    for start in range(0, len(text), AT_ONCE):
        check()
        piece = unicodedata.normalize("NFKD", text[start : start + AT_ONCE])
        if how == "ascii":
            yield piece.encode("ascii", "ignore").decode("ascii")
        else:
            yield "".join([c for c in piece if not unicodedata.combining(c)])


@dataclass(frozen=True)
class VectorReader:
    """A column of texts as the numbers of one vectorizer.

    Parameters
    ----------
    target
        The graph's input, float64 (n, width).
    size
        How many columns the vectorizer has.
    columns, column
        Names of all columns of texts that the file has, and the position of this one.
    terms
        The vocabulary, from term to column; None for a hash of ``size`` columns, ``alternate`` in sign.
    idf
        (size,), None for counts.
    table
        (size, width) where the graph takes the columns' product with it, as a linear model does: a sum over the terms that a text
        has. None where it takes the columns themselves.
    """

    target: str
    columns: tuple[str, ...]
    column: int
    analyzer: Analyzer
    size: int
    terms: Mapping[str, int] | None
    alternate: bool
    binary: bool
    sublinear: bool
    idf: FloatArray | None
    norm: Norm | None
    table: FloatArray | None

    element: ClassVar[Element] = "float64"
    null: ClassVar[Null] = "error"
    """scikit-learn takes no missing document, so there is nothing that NULL could mean."""

    @property
    def name(self) -> str:
        """The column's name."""
        return self.columns[self.column]

    @property
    def width(self) -> int:
        """The numbers of one text."""
        return self.size if self.table is None else self.table.shape[1]

    @property
    def entries(self) -> int:
        """How many strings it holds."""
        return len(self.terms or ()) + len(self.analyzer.stop_words or ())

    def sparse(
        self, text: str, check: Callable[[], None] = _NOTHING
    ) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Return the columns that are not 0, and their numbers."""
        counts: Counter[int | None] = Counter()
        for terms in self.analyzer.terms(text, check):
            if self.terms is not None:
                counts.update(map(self.terms.get, terms))
            else:
                self._count_hashed(terms, counts, check)
        counts.pop(None, None)
        ids = np.fromiter(counts, np.int64, len(counts))
        values = np.fromiter(counts.values(), np.float64, len(counts))
        if self.binary:
            values[:] = 1.0
        if self.sublinear:
            values = np.log(values) + 1.0
        if self.idf is not None:
            values = values * self.idf[ids]
        if self.norm is not None:
            size = math.sqrt(float(values @ values)) if self.norm == "l2" else float(np.abs(values).sum())
            values = values / size if size else values
        return ids, values

    def _count_hashed(
        self, terms: Sequence[str], counts: Counter[int | None], check: Callable[[], None]
    ) -> None:
        """Count terms by their columns, with their signs: scikit-learn's FeatureHasher."""
        distinct = Counter(terms)
        data = [term.encode("utf-8", "surrogatepass") for term in distinct]
        values = murmur3(data, check)
        places = np.abs(values) % self.size
        places[values == -(2**31)] = (2**31 - 1 - (self.size - 1)) % self.size
        times = np.fromiter(distinct.values(), np.int64, len(distinct))
        if self.alternate:
            times = np.where(values < 0, -times, times)
        for place, count in zip(places.tolist(), times.tolist(), strict=True):
            counts[place] += count

    def read(self, text: str | None, check: Callable[[], None] = _NOTHING) -> FloatArray:
        """Return the numbers (width,) of one text."""
        if text is None:
            raise self._no_null()
        ids, values = self.sparse(text, check)
        if self.table is not None:
            return np.asarray(values @ self.table.take(ids, axis=0))
        out = np.zeros(self.size)
        out[ids] = values
        return out

    def numbers(self, column: Strings, check: Callable[[], None] = _NOTHING) -> FloatArray:
        """Return the numbers (n, width) of a column; ``check`` is called again and again, and may raise."""
        texts = column.to_objects().tolist()
        if any(text is None for text in texts):
            raise self._no_null()
        out = np.zeros((len(texts), self.width))
        seen: dict[str, int] = {}
        for row, text in enumerate(texts):
            first = seen.setdefault(text, row)
            if first < row:
                out[row] = out[first]
                continue
            if row % 32 == 0:
                check()
            ids, values = self.sparse(text, check)
            if self.table is None:
                out[row, ids] = values
            else:
                out[row] = values @ self.table.take(ids, axis=0)
        return out

    def _no_null(self) -> NullNotAllowed:
        return NullNotAllowed(
            f'feature "{self.name}" is NULL, for which the pipeline has no answer',
            hint="Replace NULL in the query: coalesce(column, '').",
        )


def read_vectorizers(
    said: str,
    inputs: Mapping[str, int],
    tables: Callable[[str], FloatArray],
    check: Callable[[], None] = _NOTHING,
) -> tuple[VectorReader, ...]:
    """Return the readers that a file's metadata describe.

    Parameters
    ----------
    said
        The value under `VECTORS_KEY`.
    inputs
        The graph's inputs of float64, and how many columns each has.
    tables
        Returns the initializer of a name, of float64; KeyError or ValueError where there is none.

    Raises
    ------
    InvalidArtifact
        Where they are not what a conversion writes, or the graph has no such input.
    """
    try:
        values = json.loads(said)
        columns = tuple(values["columns"])
        if not all(isinstance(name, str) for name in columns) or len(set(columns)) < len(columns):
            raise ValueError("columns have names")
        readers = []
        for fields in values["readers"]:
            check()
            readers.append(_reader(columns, fields, tables))
        if not readers or len({r.target for r in readers}) < len(readers):
            raise ValueError("an input has one reader")
        if {reader.column for reader in readers} != set(range(len(columns))):
            raise ValueError("each column is read")
        for reader in readers:
            if inputs.get(reader.target) != reader.width:
                raise ValueError("an input is as wide as its vectorizer")
    except (
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
        AttributeError,
        OverflowError,
    ) as error:
        raise InvalidArtifact(
            "model does not say how it reads texts", detail=f"{type(error).__name__}: {str(error)[:200]}."
        ) from error
    return tuple(readers)


def _reader(
    columns: tuple[str, ...], said: Mapping[str, Any], tables: Callable[[str], FloatArray]
) -> VectorReader:
    """Return one reader; KeyError, TypeError or ValueError where it is none."""

    def among(name: str, *allowed: object) -> Any:
        value = said[name]
        if not any(value is a or (type(value) is str and value == a) for a in allowed):
            raise ValueError(name)
        return value

    target, column, width = said["input"], said["column"], said["width"]
    if not isinstance(target, str) or type(column) is not int or not 0 <= column < len(columns):
        raise ValueError("input or column")
    if type(width) is not int or not 1 <= width <= MOST_WIDTH:
        raise ValueError("width")
    kind = among("analyzer", "word", "char", "char_wb")
    pattern = said["pattern"]
    if kind == "word" and (not isinstance(pattern, str) or parse_pattern(pattern) is None):
        raise ValueError("pattern")
    least, most = said["ngrams"]
    if type(least) is not int or type(most) is not int:
        raise TypeError("ngrams")
    if not 1 <= least <= most <= LONGEST_NGRAM or most - least >= MOST_LENGTHS:
        raise ValueError("ngrams")
    stop_words = said["stop_words"]
    if stop_words is not None:
        stop_words = frozenset(_strings(stop_words))
    terms = None
    if said["terms"] is not None:
        listed = _strings(said["terms"])
        terms = dict(zip(listed, range(len(listed)), strict=True))
        if not len(terms) == len(listed) == width:
            raise ValueError("terms")
    idf = None
    if said["idf"] is not None:
        idf = tables(said["idf"])
        if idf.shape != (width,) or not np.isfinite(idf).all():
            raise ValueError("idf")
    table = None
    if said["table"] is not None:
        table = tables(said["table"])
        if table.ndim != 2 or len(table) != width or not np.isfinite(table).all():
            raise ValueError("table")
    return VectorReader(
        target,
        columns,
        column,
        Analyzer(
            kind,
            among("lowercase", True, False),
            among("accents", None, "ascii", "unicode"),
            pattern if kind == "word" else None,
            stop_words,
            (least, most),
        ),
        width,
        terms,
        among("alternate", True, False),
        among("binary", True, False),
        among("sublinear", True, False),
        idf,
        among("norm", None, "l1", "l2"),
        table,
    )


def _strings(values: Any) -> Sequence[str]:
    if not isinstance(values, list) or not set(map(type, values)) <= {str}:
        raise TypeError("a list of strings is none")
    return values
