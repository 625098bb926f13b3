"""PostgreSQL's tokens: which functions a text calls by name, and an expression whose operators nobody else's can replace.

Where a token ends decides what is a string and what is run, so this follows the server's scan.l: dollar quotes, nested
comments, escape strings and their continuation on a later line, identifiers in quotes and with Unicode escapes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pg_distill.errors import ArtifactCorrupted

__all__ = ["Call", "Token", "Words", "called", "exact", "tokens", "words"]

_SPACE = r"[ \t\n\r\f\v]"
# A quote after a line's end goes on with the string before it, and in its manner.
_CONTINUED = re.compile(r"(?:[ \t\f\v]|--[^\n\r]*)*[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*[\n\r])*(?=')")
_STANDARD = re.compile(r"'(?:[^']|'')*'")
_ESCAPE = re.compile(r"'(?:[^'\\]|\\.|'')*'", re.DOTALL)
_DOLLAR = re.compile(r"\$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$")
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_OPERATOR = r"[~!@#^&|`?+\-*/%<>=]"
_TOKEN = re.compile(
    rf"""(?P<space>{_SPACE}+|--[^\n\r]*)
    |(?P<comment>/\*)
    |(?P<string>[eEbBxX]?'|[uU]&')
    |(?P<quoted>(?:[uU]&)?"(?:[^"]|"")+")
    |(?P<name>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
    |(?P<dollar>{_DOLLAR.pattern})
    |(?P<parameter>\$[0-9]+)
    |(?P<number>\.?[0-9](?:[0-9A-Za-z_]|[eE][+-]|\.(?!\.))*)
    |(?P<operator>{_OPERATOR}(?:(?!--|/\*){_OPERATOR})*)
    |(?P<other>::|.)""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """A piece of a text: ``kind`` is space (comments too), string, quoted, name, parameter, number, operator or other."""

    kind: str
    text: str


class Call(NamedTuple):
    """A function by its name, and the schema before it, if one is named."""

    schema: str | None
    name: str


def tokens(text: str, *, standard_strings: bool = True) -> Iterator[Token]:
    """Split SQL text into tokens that joined give it back; what does not end is one token to the end.

    Parameters
    ----------
    standard_strings
        The server's standard_conforming_strings: whether a backslash in a plain string is one.
    """
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        assert found is not None
        kind, end = str(found.lastgroup), found.end()
        if kind == "comment":
            kind, end = "space", _comment_end(text, at)
        elif kind == "string":
            prefix = found[0][0].lower()
            escapes = prefix == "e" or (prefix == "'" and not standard_strings)
            end = _string_end(text, end - 1, _ESCAPE if escapes else _STANDARD)
        elif kind == "dollar":
            close = text.find(found[0], end)
            kind, end = "string", len(text) if close < 0 else close + len(found[0])
        yield Token(kind, text[at:end])
        at = end


def _comment_end(text: str, at: int) -> int:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(text, at):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(text)


def _string_end(text: str, at: int, form: re.Pattern[str]) -> int:
    while found := form.match(text, at):
        continued = _CONTINUED.match(text, found.end())
        if continued is None:
            return found.end()
        at = continued.end()
    return len(text)


def called(text: str) -> frozenset[Call]:
    """Return every function that ``text`` may call by its name, under either standard_conforming_strings."""
    found = _called(text, True)
    return found | _called(text, False) if "\\" in text else found


def _called(text: str, standard_strings: bool) -> frozenset[Call]:
    calls = set()
    said = list(_with_names(t for t in tokens(text, standard_strings=standard_strings) if t.kind != "space"))
    for i, token in enumerate(said):
        if token.text != "(" or i == 0 or said[i - 1].kind != "name":
            continue
        qualified = i >= 3 and said[i - 2].text == "." and said[i - 3].kind == "name"
        calls.add(Call(said[i - 3].text if qualified else None, said[i - 1].text))
    return frozenset(calls)


class Words(NamedTuple):
    """What an expression looks up: ``names`` of columns, functions and types, and operators."""

    names: frozenset[str]
    operators: frozenset[str]
    is_qualified: bool
    """Whether a name stands behind a dot: a schema's, or a function of a row."""


def words(expression: str) -> Words | None:
    """Return what an expression looks up; None where a backslash may hide some of it."""
    if "\\" in expression:
        return None
    said = list(_with_names(t for t in tokens(expression) if t.kind != "space"))
    return Words(
        frozenset(t.text for t in said if t.kind == "name"),
        # More than one may stand together: a-+b.
        frozenset(t.text[i:j] for t in said if t.kind == "operator" for i in range(len(t.text))
                  for j in range(i + 1, len(t.text) + 1)),
        any(t.text == "." for t in said),
    )  # fmt: skip


def _with_names(said: Iterable[Token]) -> Iterator[Token]:
    """Give each identifier as the name that PostgreSQL reads."""
    held: Token | None = None  # U&"...", whose escape character may follow: UESCAPE '!'
    is_escape = False
    for token in said:
        if held is not None:
            if token.text.lower() == "uescape" and not is_escape:
                is_escape = True
                continue
            escape = token.text[1] if is_escape and len(token.text) == 3 else "\\"
            yield Token("name", _unescaped(held.text[3:-1].replace('""', '"'), escape))
            held, was_escape, is_escape = None, is_escape, False
            if was_escape:
                continue
        if token.kind == "quoted" and token.text[0] != '"':
            held = token
        elif token.kind == "quoted":
            yield Token("name", token.text[1:-1].replace('""', '"'))
        elif token.kind == "name":
            yield Token("name", "".join(c.lower() if c.isascii() else c for c in token.text))
        else:
            yield token


def _unescaped(text: str, escape: str) -> str:
    e = re.escape(escape)
    code = re.compile(rf"{e}{e}|{e}([0-9A-Fa-f]{{4}})|{e}\+([0-9A-Fa-f]{{6}})")
    return code.sub(lambda m: chr(int(m[1] or m[2], 16)) if m[1] or m[2] else escape, text)


# -- expressions of ours

_INFIX = {"*": 6, "/": 6, "+": 5, "-": 5, "<": 4, "<=": 4, ">": 4, ">=": 4, "=": 4, "<>": 4}
"""PostgreSQL's precedence; OPERATOR(pg_catalog.+) has another one, the same for all."""
_LOOKED_UP = {"text": "pg_catalog.text"}
"""Types that are no words of the grammar."""
_OF_TWO_WORDS = {"double": 1, "timestamp": 3, "time": 3, "character": 1}
_ATOM, _OPERATION, _OTHER = 0, 1, 2


@functools.lru_cache(maxsize=16)
def exact(expression: str) -> str:
    """Return an expression of ``native``'s with all that is looked up in it, operators, types, collations, named with pg_catalog.

    As it is written it is short, and means the same under every search_path that has pg_catalog in front; this means the same
    under any. IN, and CASE with an operand, look for "=" and cannot be told which: they are written as what they stand for.

    Raises
    ------
    ArtifactCorrupted
        It has what ``native`` does not write.
    """
    try:
        return _Exact([t.text for t in tokens(expression) if t.kind != "space"]).whole()
    except (IndexError, RecursionError):
        raise ArtifactCorrupted("the expression is not complete") from None


class _Exact:
    """A parser by precedence that writes down what it has read."""

    def __init__(self, said: Sequence[str]) -> None:
        self._said = said
        self._at = 0

    def whole(self) -> str:
        text, _ = self._expression()
        if self._at != len(self._said):
            raise ArtifactCorrupted(f"{self._said[self._at]} is not expected in an expression of a student")
        return text

    def _next(self, *wanted: str) -> str:
        token = self._said[self._at]
        if wanted and token.upper() not in wanted:
            raise ArtifactCorrupted(f"{token} is not expected in an expression of a student")
        self._at += 1
        return token

    def _is(self, *wanted: str) -> bool:
        return self._at < len(self._said) and self._said[self._at].upper() in wanted

    def _expression(self) -> tuple[str, int]:
        """Read conditions joined by AND and OR."""
        text, level = self._condition()
        while self._is("AND", "OR"):
            text, level = f"{text} {self._next()} {self._condition()[0]}", _OTHER
        return text, level

    def _condition(self) -> tuple[str, int]:
        if self._is("NOT"):
            return f"{self._next()} {self._condition()[0]}", _OTHER
        text, level = self._operation(0)
        if self._is("IN"):
            self._next()
            text = f"{_left(text, level)} OPERATOR(pg_catalog.=) ANY (ARRAY[{self._list('(', ')')}]::pg_catalog.text[])"
            level = _OPERATION
        while self._is("IS"):
            words = [self._next()]
            if self._is("NOT"):
                words.append(self._next())
            words.append(self._next("NULL", "TRUE", "FALSE"))
            text, level = f"{text} {' '.join(words)}", _OTHER
        return text, level

    def _operation(self, least: int) -> tuple[str, int]:
        text, level = self._atom()
        while self._is(*_INFIX) and _INFIX[self._said[self._at]] > least:
            operator = self._next()
            right, right_level = self._operation(_INFIX[operator])
            text = f"{_left(text, level)} OPERATOR(pg_catalog.{operator}) {_enclosed(right, right_level)}"
            level = _OPERATION
        return text, level

    def _atom(self) -> tuple[str, int]:
        token = self._next()
        word = token.upper()
        if token == "-":
            if self._said[self._at][0].isdigit():
                text = f"-{self._next()}"  # a constant, which has no operator
                return text, _ATOM
            return f"OPERATOR(pg_catalog.-) {_enclosed(*self._atom())}", _OTHER
        if token == "(":
            inner = self._select() if self._is("SELECT") else self._expression()[0]
            text = f"({inner}{self._next(')')}"
        elif word == "CASE":
            text = self._case()
        elif word == "ARRAY":
            text = f"{token}[{self._list('[', ']')}]"
        elif token[0] in "'\"" or token[0].isalnum() or token[0] in "_.":
            text = token
            while self._is("."):
                text += self._next() + self._next()
            if self._is("("):
                text += f"({self._list('(', ')')})"
        else:
            raise ArtifactCorrupted(f"{token} is not expected in an expression of a student")
        while self._is("::", "[", "COLLATE"):
            after = self._next()
            if after == "::":
                text += f"::{self._type()}"
            elif after == "[":
                text += f"[{self._expression()[0]}{self._next(']')}"
            else:
                text += f" COLLATE pg_catalog.{self._next()}"
        return text, _ATOM

    def _list(self, first: str, last: str) -> str:
        self._next(first)
        items = []
        while not self._is(last):
            items.append(self._expression()[0])
            if self._is(","):
                self._next()
        self._next(last)
        return ", ".join(items)

    def _case(self) -> str:
        operand = None if self._is("WHEN") else _left(*self._expression())
        parts = ["CASE"]
        while self._is("WHEN"):
            self._next()
            condition, level = self._expression()
            if operand is not None:
                condition = f"{operand} OPERATOR(pg_catalog.=) {_enclosed(condition, level)}"
            self._next("THEN")
            parts.append(f"WHEN {condition} THEN {self._expression()[0]}")
        if self._is("ELSE"):
            self._next()
            parts.append(f"ELSE {self._expression()[0]}")
        self._next("END")
        return " ".join([*parts, "END"])

    def _select(self) -> str:
        """Read a sub-select of named expressions over another one, or over nothing."""
        self._next("SELECT")
        items = []
        while True:
            item = self._expression()[0]
            if self._is("AS"):
                self._next()
                item += f" AS {self._next()}"
            items.append(item)
            if not self._is(","):
                break
            self._next()
        text = f"SELECT {', '.join(items)}"
        if self._is("FROM"):
            self._next()
            self._next("(")
            text += f" FROM ({self._select()}{self._next(')')} {self._next()}"
        if self._is("OFFSET"):
            text += f" {self._next()} {self._next()}"
        return text

    def _type(self) -> str:
        words = [self._next()]
        while self._is("."):
            words[-1] += self._next() + self._next()
        count = _OF_TWO_WORDS.get(words[0].lower(), 0)
        if count == 1 or self._is("WITH", "WITHOUT"):
            words += [self._next() for _ in range(count)]
        text = _LOOKED_UP.get(words[0], " ".join(words))
        while self._is("[") and self._said[self._at + 1] == "]":
            text += self._next() + self._next()
        return text


def _left(text: str, level: int) -> str:
    """Return the left operand of OPERATOR(), which associates to the left."""
    return f"({text})" if level == _OTHER else text


def _enclosed(text: str, level: int) -> str:
    return text if level == _ATOM else f"({text})"
