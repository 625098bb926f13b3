"""A student's expression as it is run: all that is looked up in it named, one of its forms chosen, its stages apart.

As ``students.expression`` writes it, it is short, and means the same under every search_path that has pg_catalog in front; what
comes out here means the same under any.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from pg_distill.database.lexer import tokens
from pg_distill.errors import ArtifactCorrupted

__all__ = ["Stages", "Step", "exact", "needs_pgvector", "stages"]

_INFIX = {
    "*": 6,
    "/": 6,
    "+": 5,
    "-": 5,
    "<": 4,
    "<=": 4,
    ">": 4,
    ">=": 4,
    "=": 4,
    "<>": 4,
    "<#>": 4,
    "|+|": 5,
}
"""PostgreSQL's precedence (the last two are always in parentheses); OPERATOR(pg_catalog.+) has another one, the same for all."""
_VECTORS = {"<#>": "<#>", "|+|": "+"}
"""Operators of pgvector's, and how it writes them."""
_LOOKED_UP = {"text": "pg_catalog.text"}
"""Types that are no words of the grammar."""
_OF_TWO_WORDS = {"double": 1, "timestamp": 3, "time": 3, "character": 1}
_ATOM, _OPERATION, _OTHER = 0, 1, 2


_STAGE = re.compile(r"_+(?:p\d+_)*([a-z])[\d_]*")
"""The name of a stage's item, and the letter that says of which type it is."""
_TYPES = {"c": "pg_catalog.int4", "a": "pg_catalog.float8[]"}


class Step(NamedTuple):
    """What a sub-select names."""

    name: str
    type_name: str
    sql: str


class Stages(NamedTuple):
    """An expression without its sub-selects: steps in their order, and what reads them."""

    steps: tuple[Step, ...]
    result: str


@functools.lru_cache(maxsize=16)
def exact(expression: str, pgvector: str | None = None) -> str:
    """Return one of ``students.expression`` with all that is looked up in it: operators, types, collations named by their schema.

    IN, and CASE with an operand, look for "=" and cannot be told which: they are written as what they stand for.

    Parameters
    ----------
    pgvector
        The schema of pgvector, as SQL writes it; None where the expression may not need it.

    Raises
    ------
    ArtifactCorrupted
        It has what ``students.expression`` does not write.
    """
    return _read(expression, pgvector, None)


@functools.lru_cache(maxsize=16)
def stages(expression: str, pgvector: str | None = None) -> Stages | None:
    """Return what `exact` does, each sub-select as steps of its own.

    None for an expression of release 0.1.0, whose names could be those of columns.
    """
    steps: list[Step] = []
    try:
        result = _read(expression, pgvector, steps)
    except _OtherNames:
        return None
    return Stages(tuple(steps), result)


def needs_pgvector(expression: str) -> bool:
    """Return whether an expression that `exact` has given uses pgvector."""
    return ".<#>)" in expression


def _read(expression: str, pgvector: str | None, steps: list[Step] | None) -> str:
    try:
        return _Exact([t.text for t in tokens(expression) if t.kind != "space"], pgvector, steps).whole()
    except (IndexError, RecursionError):
        raise ArtifactCorrupted("the expression is not complete") from None


class _OtherNames(Exception):
    """A sub-select names what it makes otherwise."""


class _Exact:
    """A parser by precedence that writes down what it has read."""

    def __init__(self, said: Sequence[str], pgvector: str | None, steps: list[Step] | None) -> None:
        self._said = said
        self._at = 0
        self._pgvector = pgvector
        self._steps = steps

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
            schema = "pg_catalog"
            if operator in _VECTORS:
                schema, operator = self._schema(), _VECTORS[operator]
            text = f"{_left(text, level)} OPERATOR({schema}.{operator}) {_enclosed(right, right_level)}"
            level = _OPERATION
        return text, level

    def _schema(self) -> str:
        if self._pgvector is None:
            raise ArtifactCorrupted("pgvector is not expected in this form of a student")
        return self._pgvector

    def _atom(self) -> tuple[str, int]:
        token = self._next()
        word = token.upper()
        if token == "-":
            if self._said[self._at][0].isdigit():
                text = f"-{self._next()}"  # a constant, which has no operator
                return text, _ATOM
            return f"OPERATOR(pg_catalog.-) {_enclosed(*self._atom())}", _OTHER
        if token == "(":
            if self._is("SELECT"):
                items, source, rest = self._select()
                inner = items[0][0] if self._steps is not None else _selected(items, source, rest)
            else:
                inner = self._expression()[0]
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

    def _select(self) -> tuple[list[tuple[str, str]], str, str]:
        """Read a sub-select of named expressions over another one, or over nothing; what it reads becomes steps before it."""
        self._next("SELECT")
        items = []
        while True:
            item, name = self._expression()[0], ""
            if self._is("AS"):
                self._next()
                name = self._next()
            items.append((item, name))
            if not self._is(","):
                break
            self._next()
        source = rest = ""
        if self._is("FROM"):
            self._next()
            self._next("(")
            inner, inner_source, inner_rest = self._select()
            source = f" FROM ({_selected(inner, inner_source, inner_rest)}{self._next(')')} {self._next()}"
            for item, name in inner:
                if name and self._steps is not None:
                    self._steps.append(Step(name, self._type_of(name), item))
        if self._is("OFFSET"):
            rest = f" {self._next()} {self._next()}"
        return items, source, rest

    def _type_of(self, name: str) -> str:
        letter = _STAGE.fullmatch(name)
        if letter is None:
            raise _OtherNames
        if letter[1] == "v":
            return f"{self._schema()}.vector"
        return _TYPES.get(letter[1], "pg_catalog.float8")

    def _type(self) -> str:
        words = [self._next()]
        while self._is("."):
            words[-1] += self._next() + self._next()
        count = _OF_TWO_WORDS.get(words[0].lower(), 0)
        if count == 1 or self._is("WITH", "WITHOUT"):
            words += [self._next() for _ in range(count)]
        if words == ["vector"]:
            words = [f"{self._schema()}.vector"]
        text = _LOOKED_UP.get(words[0], " ".join(words))
        while self._is("[") and self._said[self._at + 1] == "]":
            text += self._next() + self._next()
        return text


def _selected(items: Sequence[tuple[str, str]], source: str, rest: str) -> str:
    return (
        "SELECT " + ", ".join(f"{item} AS {name}" if name else item for item, name in items) + source + rest
    )


def _left(text: str, level: int) -> str:
    """Return the left operand of OPERATOR(), which associates to the left."""
    return f"({text})" if level == _OTHER else text


def _enclosed(text: str, level: int) -> str:
    return text if level == _ATOM else f"({text})"
