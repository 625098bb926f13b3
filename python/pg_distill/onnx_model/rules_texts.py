r"""Rules of operators that read strings: how long they take and how much they make grows with the longest string of a run.

What a text is made of decides how many words it has, so of that size only a bound is known (`amounts.Amount.at_most`), in bytes
of the text. Few operators may read such a tensor (`survey`), and what they make of it has a known size again. So a run's time and
memory are linear in the longest text, and a text that would take too long, or too much, is refused before it is run.

Regular expressions are run by RE2, which takes time linear in a text for one match, and quadratic time for all matches of some
expressions: ``[a-z]|[a-z].*Q`` takes 17 s for 100 kB. So a Tokenizer's expression is a run of one class of characters, and its
separators are plain texts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from pg_distill.onnx_model.amounts import ONE, Amount
from pg_distill.onnx_model.rules import TEXT_NS, Call, Tensor, elements, gives, rule, spread
from pg_distill.onnx_model.vectorizers import parse_pattern

BYTE_NS = 100.0  # of a text that is decoded, lowered and encoded again
TOKEN_NS = 600.0  # of a byte of text, each of which may be a token
SEPARATOR_NS = 150.0  # of a byte of text, for one separator
NGRAM_NS = 400.0  # of one n-gram that is looked for
STEP_NS = 10.0  # of a byte of text and an instruction of a regular expression
WIDE_BYTES = 12  # of a byte of text, as wide characters

MOST_SEPARATORS = 64
MOST_GRAM = 32  # words of an n-gram
MOST_SKIP = 10
MOST_STOP_WORDS = 10_000
MOST_INSTRUCTIONS = 10_000  # of a regular expression
MOST_PATTERN = 2000  # characters of one
REGEX_BYTES = 32 << 20  # of RE2's states: 8 MB for each of its automata
SHORT = 15  # bytes of a string that needs no memory of its own

_LOCALE = re.compile(r"C|POSIX|C\.(?:UTF-8|utf8)|[a-z]{2,3}_[A-Z]{2}(?:\.(?:UTF-8|utf8))?")


def _bytes(source: Tensor) -> Amount:
    """Return how many bytes each string of a tensor has at most."""
    return Amount(0, a_byte=source.longest)


def _strings(call: Call, *, ranks: Sequence[int] = ()) -> Tensor:
    source = call.input(0)
    if source.element != TensorProto.STRING:
        call.contradict("reads no strings")
    if source.is_open:
        call.refuse("of the words of a text is not supported")
    if ranks and source.rank not in ranks:
        call.refuse(f"of {source.rank} dimensions is not supported")
    return source


def _text(call: Call, name: str, default: bytes = b"") -> str:
    """Return an attribute that is a text."""
    try:
        return bytes(call.given.get(name, default)).decode()
    except UnicodeDecodeError:
        return call.contradict(f'has a "{name}" that is not UTF-8')


def _words(call: Call, source: Tensor, shape: Sequence[Amount]) -> Tensor:
    """Return the words of texts: strings that are together no longer than the texts."""
    call.ns.append((TOKEN_NS, source.size * _bytes(source)))
    return Tensor(
        TensorProto.STRING,
        tuple(shape),
        source.depends,
        longest=source.longest,
        characters=source.size * _bytes(source),
    )


@rule("StringNormalizer", ns=TEXT_NS, why="a string gives one; stop words, which leave out rows, are refused")
def _normalize(call: Call) -> Sequence[Tensor]:
    source = _strings(call, ranks=(1,))
    if len(call.given.get("stopwords", ())):
        call.refuse("with stop words is not supported", hint="It would leave out rows.")
    if call.given.get("case_change_action", b"NONE") not in (b"NONE", b"LOWER", b"UPPER"):
        call.contradict("has another case_change_action")
    if not _LOCALE.fullmatch(_text(call, "locale", b"en_US")):
        call.refuse("of this locale is not supported", hint="Export it with the locale C or C.UTF-8.")
    call.ns.append((BYTE_NS, source.size * _bytes(source)))
    call.scratch.append(_bytes(source) * WIDE_BYTES)
    # Another case may take more bytes: of two at most three.
    return [Tensor(TensorProto.STRING, source.shape, source.depends, longest=2 * source.longest)]


@rule("StringConcat", ns=TEXT_NS, why="two strings give one, as long as both")
def _concat(call: Call) -> Sequence[Tensor]:
    one, other = _strings(call), call.input(1)
    if other.element != TensorProto.STRING or other.is_open:
        call.refuse("of the words of a text is not supported")
    shape = spread(call, [one.shape, other.shape])
    longest = one.longest + other.longest
    call.ns.append((1.0, elements(shape) * Amount(0, a_byte=longest)))
    return [Tensor(TensorProto.STRING, shape, one.depends or other.depends, longest=longest)]


@rule("StringSplit", ns=TEXT_NS / 2, why="a text of so many bytes has at most one part more")
def _split(call: Call) -> Sequence[Tensor]:
    source = _strings(call)
    if source.rank not in (1, 2):
        call.refuse(f"of {source.rank} dimensions is not supported")
    _text(call, "delimiter")
    most = Amount(1, a_byte=source.longest, at_most=True)
    words = _words(call, source, (*source.shape, most))
    return [words, gives(call, TensorProto.INT64, source.shape)]


@rule(
    "RegexFullMatch",
    ns=TEXT_NS,
    why="RE2 matches in time linear in the text and in the expression, whose size has a limit",
)
def _full_match(call: Call) -> Sequence[Tensor]:
    source = _strings(call)
    pattern = _text(call, "pattern")
    size = instructions(pattern) if len(pattern) <= MOST_PATTERN else MOST_INSTRUCTIONS + len(pattern)
    if size > MOST_INSTRUCTIONS:
        call.refuse(
            f"of a regular expression of {size} instructions is not supported",
            hint=f"Export it with one of at most {MOST_INSTRUCTIONS}: with fewer repetitions and classes.",
        )
    call.ns.append((STEP_NS * size, source.size * _bytes(source)))
    call.ns.append((STEP_NS * 100 * size, ONE))
    call.scratch.append(Amount(REGEX_BYTES))
    return [gives(call, TensorProto.BOOL, source.shape)]


_TOKEN = re.compile(
    r"(?P<count>\{(?P<least>[0-9]{1,9})(?:,(?P<most>[0-9]{0,9}))?\})"
    r"|(?P<unicode>\\[pP](?:\{[^}]*\}|.))"
    r"|(?P<wide>\\[WDSXC])"
    r"|(?P<escape>\\.)"
    r"|(?P<set>\[\^?\]?(?:\[:[^\]]*:\]|\\.|[^\]\\])*\])"
    r"|(?P<open>\((?:\?[^:)]*[:>)])?)"
    r"|(?P<close>\))"
    r"|(?P<dot>\.)"
    r"|(?P<plain>.)",
    re.DOTALL,
)
_SIZES = {"unicode": 2000, "wide": 200, "escape": 30, "dot": 60, "plain": 16}
"""Instructions of an atom: in UTF-8, and in both cases."""


def instructions(pattern: str) -> int:
    """Return how many instructions RE2 makes of a pattern, at most: a repetition is as many copies of what stands before it."""
    sizes, last = [0], 0
    for token in _TOKEN.finditer(pattern):
        kind = str(token.lastgroup) if token["count"] is None else "count"
        if kind == "count":
            sizes[-1] += last * max(int(token["least"]), int(token["most"] or 0))
            last = 0
        elif kind == "open" and not token[0].endswith(")"):
            sizes.append(0)
            last = 0
        elif kind == "close":
            last = sizes.pop() + 4 if len(sizes) > 1 else 0
            if not sizes:
                sizes = [0]
            sizes[-1] += last
        else:
            text = token[0]
            last = _SIZES.get(kind, 0)
            if kind == "set":
                last = (
                    40 * len(text)
                    + (2000 if "\\p" in text or "\\P" in text else 0)
                    + (200 if "^" in text else 0)
                )
                last += 400 * sum(ord(c) > 127 for c in text)
            sizes[-1] += last
        if sizes[-1] > 1 << 40:
            break
    return sum(sizes) + 8


_PLAIN = re.compile(r"(?:[^\\.+*?()|\[\]{}^$\x00]|\\[\\.+*?()|\[\]{}^$tnr]|\[[^\\\]^-]\])+")
"""A separator that is one text, some of its characters escaped: RE2 looks for each."""


@rule(
    "Tokenizer",
    ns=TEXT_NS / 2,
    domain="com.microsoft",
    why="a text of so many bytes has at most as many tokens and two marks; what it looks for is found in one pass",
)
def _tokenize(call: Call) -> Sequence[Tensor]:
    source = _strings(call, ranks=(1, 2))
    if source.rank == 2 and source.shape[1] != ONE:
        call.refuse("of several columns is not supported", hint="Give it one column of texts.")
    least = int(call.given["mincharnum"])
    if least < 1:
        call.contradict(f"has mincharnum {least}")
    if len(bytes(call.given["pad_value"])) > SHORT:
        call.refuse(f"with a pad_value of over {SHORT} bytes is not supported")
    separators: list[Any] = list(call.given.get("separators", ()))
    expression = _text(call, "tokenexp")
    if bool(separators) == bool(expression):
        call.contradict("has separators and a tokenexp, or neither")
    if len(separators) > MOST_SEPARATORS:
        call.refuse(f"with over {MOST_SEPARATORS} separators is not supported")
    if separators != [b""]:
        for separator in separators:
            if not _is_plain(bytes(separator)):
                call.refuse(
                    "with a separator that is a regular expression is not supported",
                    hint=r"Name plain texts, such as ' ' or '\.'.",
                )
    # A dot is every character, which a class of characters is not said to be.
    if expression and expression != "." and (parse_pattern(expression) is None or expression.endswith("*")):
        call.refuse(
            "of this tokenexp is not supported",
            hint="A run of one class of characters is, such as [a-zA-Z0-9_]+: others may take a time that grows with the square"
            " of a text.",
        )
    call.ns.append((SEPARATOR_NS * len(separators), source.size * _bytes(source)))
    most = Amount(3, a_byte=source.longest, at_most=True)
    return [_words(call, source, (*source.shape, most))]


def _is_plain(separator: bytes) -> bool:
    try:
        text = separator.decode()
    except UnicodeDecodeError:
        return False
    return len(text) <= 100 and _PLAIN.fullmatch(text) is not None


@rule(
    "TfIdfVectorizer",
    ns=4.0,
    why="n-grams are counted where the pool says; places, counts and lengths are compared with each other first",
)
def _count_ngrams(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if source.rank != 2:
        call.refuse(
            f"of {source.rank} dimensions is not supported", hint="Give it a row of words for each row."
        )
    width = _check_pool(call, source)
    lengths = int(call.given["max_gram_length"]) - int(call.given["min_gram_length"]) + 1
    looks = lengths * (int(call.given["max_skip_count"]) + 1) * int(call.given["max_gram_length"])
    call.ns.append((NGRAM_NS * looks, source.size))
    call.scratch.append(source.shape[0] * (8 * width))
    return [gives(call, TensorProto.FLOAT, (source.shape[0], Amount(width)))]


def _check_pool(call: Call, source: Tensor) -> int:
    """Hold the attributes against each other; return how many columns there are."""

    def numbers(name: str) -> list[int]:
        return [int(v) for v in call.given.get(name, ())]

    least, most, skip = (
        int(call.given[name]) for name in ("min_gram_length", "max_gram_length", "max_skip_count")
    )
    if not 1 <= least <= most or skip < 0:
        call.contradict(f"has n-grams of {least} to {most} words, {skip} skipped")
    if most > MOST_GRAM or skip > MOST_SKIP:
        call.refuse(f"of n-grams of {most} words, {skip} skipped, is not supported")
    if call.given["mode"] not in (b"TF", b"IDF", b"TFIDF"):
        call.contradict("has another mode")
    pools = [len(call.given.get(name, ())) for name in ("pool_strings", "pool_int64s")]
    if sum(map(bool, pools)) != 1:
        call.contradict("has no pool, or two")
    kinds = {TensorProto.STRING} if pools[0] else {TensorProto.INT32, TensorProto.INT64}
    if source.element not in kinds:
        call.contradict("has a pool of another type than its input")
    size = sum(pools)
    starts = [*numbers("ngram_counts"), size]
    if not most < len(starts) <= MOST_GRAM + 1 or starts[0] != 0 or starts != sorted(starts):
        call.contradict("has ngram_counts that do not fit")
    grams = 0
    for words, (start, stop) in enumerate(itertools.pairwise(starts), 1):
        if (stop - start) % words:
            call.contradict("has ngram_counts that do not fit")
        grams += (stop - start) // words
    places = np.asarray(numbers("ngram_indexes"), np.int64)
    if len(places) != grams or not len(places):
        call.contradict(f"has {len(places)} ngram_indexes for {grams} n-grams")
    if places.min() < 0 or places.max() >= MOST_PLACES or len(np.unique(places)) < len(places):
        call.contradict("has ngram_indexes out of range, or twice")
    if len(call.given.get("weights", ())) not in (0, grams):
        call.contradict("has another number of weights than n-grams")
    return int(places.max()) + 1


MOST_PLACES = 1 << 24
