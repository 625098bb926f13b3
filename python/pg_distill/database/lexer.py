"""PostgreSQL's tokens, and which functions a text calls by name.

Where a token ends decides what is a string and what is run, so this follows the server's scan.l: dollar quotes, nested
comments, escape strings and their continuation on a later line, identifiers in quotes and with Unicode escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["Call", "Token", "Words", "called", "tokens", "words"]

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
