"""Names and strings inside SQL text: one function each, for every room that writes SQL."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["array_text", "number_array_text", "quote_identifier", "quote_literal"]


def array_text(values: Iterable[str | None]) -> str:
    """Write an array as the server reads it from a text, each element in quotes."""
    return "{" + ",".join("NULL" if v is None else _element(v) for v in values) + "}"


def number_array_text(values: Iterable[float]) -> str:
    """Write an array of float8 as the server reads it from a text; NaN is NULL."""
    return "{" + ",".join("NULL" if math.isnan(v) else repr(float(v)) for v in values) + "}"


def _element(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def quote_identifier(name: str) -> str:
    """Quote a SQL identifier, always with quotes."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(value: str) -> str:
    """Quote a SQL string literal so that it reads the same under either standard_conforming_strings."""
    quoted = "'" + value.replace("'", "''") + "'"
    return " E" + quoted.replace("\\", "\\\\") if "\\" in quoted else quoted
