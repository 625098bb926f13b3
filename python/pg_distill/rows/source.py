"""A relation or query as a source of rows: its columns, their types, and the features among them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.database.protocol import Database
from pg_distill.errors import DatatypeMismatch, InvalidData, InvalidState, UndefinedColumn
from pg_distill.frame import Feature, Frame, Kind
from pg_distill.quoting import quote_identifier
from pg_distill.rows.canonical import (
    EXACT,
    EXACT_SECONDS,
    TYPES_QUERY,
    NamedColumn,
    SqlType,
    from_canonical,
    to_canonical,
)
from pg_distill.rows.learned import Identity, identity_of

__all__ = [
    "NO_ANSWER",
    "Source",
    "check_columns",
    "identity_columns",
    "integers_beyond",
    "lost_microseconds",
    "numbers_of",
    "resolve_source",
]


NO_ANSWER = -sys.float_info.max
"""NULL in a log, where NaN is an answer, if a bad one: no probability, and no value that anybody predicts."""


@dataclass(frozen=True)
class Source:
    """A query that gives rows, and what its columns are.

    ``as_text`` are columns of integers that are read as strings: some of them float64 would not tell apart.
    """

    query: str
    columns: Mapping[str, SqlType]
    as_text: frozenset[str] = frozenset()
    answers: frozenset[str] = frozenset()
    """Columns of numbers whose NULL is `NO_ANSWER`, not NaN."""

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """The kinds of the columns but those of types that no model takes (json, arrays ...)."""
        return {name: self.kind(name) for name, found in self.columns.items() if found.kind is not None}

    @cached_property
    def types(self) -> Mapping[str, str]:
        """The SQL type of every column, as it is stored."""
        return {name: found.name for name, found in self.columns.items()}

    def kind(self, column: str) -> Kind:
        """Return the kind of ``column``; UndefinedColumn or DatatypeMismatch where it has none."""
        if column not in self.columns:
            raise UndefinedColumn(
                f'column "{column}" does not exist in the sample',
                detail=f"The sample has the columns {', '.join(self.columns) or '(none)'}.",
            )
        found = self.columns[column]
        if column in self.as_text:
            return "string"
        if found.kind is None:
            raise found.refusal(column)
        return found.kind

    def single(self, column: str) -> tuple[str, Kind]:
        """Return canonical SQL and kind of ``column``; DatatypeMismatch where it holds vectors, and not single values."""
        kind = self.kind(column)
        if kind == "vector":
            raise DatatypeMismatch(
                f'column "{column}" is of type {self.shown(column)}, where a single value is needed'
            )
        return self.canonical(column), kind

    def shown(self, column: str) -> str:
        """Return the type of ``column`` as PostgreSQL shows it."""
        return self.columns[column].shown

    def canonical(self, column: str, as_type: str | None = None) -> str:
        """Return SQL of ``column`` in canonical form, over rows ``s``; as a model reads it that has ``as_type`` stored."""
        null = NO_ANSWER if column in self.answers else math.nan
        return to_canonical(
            f"s.{quote_identifier(column)}", self.kind(column), self.columns[column], as_type, null=null
        )

    def group(self, column: str) -> tuple[str, Kind]:
        """Return SQL and kind of a column by which rows are grouped: whole numbers as their digits, whatever their size."""
        _, kind = self.single(column)  # first: it names a column that is missing
        sql_type = self.columns[column]
        if sql_type.base in ("int8", "numeric"):
            kind = "string"
        return to_canonical(f"s.{quote_identifier(column)}", kind, sql_type), kind

    def read_as(self, features: Iterable[NamedColumn]) -> Source:
        """Return the source with columns of integers as strings where a model takes them so."""
        strings = {f.name for f in features if f.is_string}
        numbers = {
            name for name, found in self.columns.items() if found.base in ("int2", "int4", "int8", "numeric")
        }
        return replace(self, as_text=frozenset(strings & numbers))

    def with_answers(self, columns: Iterable[str]) -> Source:
        """Return the source with NULL in these columns told from NaN."""
        return replace(self, answers=self.answers | frozenset(columns))

    def with_texts(self, columns: Iterable[str]) -> Source:
        """Return the source with these columns, too, as their texts."""
        return replace(self, as_text=self.as_text | frozenset(columns))

    def rows_as_json(self) -> str:
        """Return SQL of the row ``s`` as jsonb; of char(n) without the padding, as predict and class names have it."""
        if not any(found.base == "bpchar" for found in self.columns.values()):
            return "pg_catalog.to_jsonb(s.*)"
        columns = ", ".join(
            f"s.{name}::pg_catalog.text AS {name}" if found.base == "bpchar" else f"s.{name}"
            for column, found in self.columns.items()
            for name in [quote_identifier(column)]
        )
        return f"(SELECT pg_catalog.to_jsonb(r.*) FROM (SELECT {columns}) r)"


_IDENTIFIER = r"""(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)"""
_RELATION = re.compile(rf"\s*{_IDENTIFIER}(?:\s*\.\s*{_IDENTIFIER})*\s*")


def resolve_source(db: Database, sample: str, *, stored: bool = False) -> Source:
    """Read ``sample`` as the name of a relation if it can be one, else as a query.

    A relation is found in the caller's search_path now and named with its schema from then on. A temporary one is named by
    pg_temp, which in another session never means somebody else's; where the name is to be ``stored``, a warning says so.

    Raises
    ------
    Whatever PostgreSQL says of the name or the query (42P01, 42601, ...).
    """
    if not _RELATION.fullmatch(sample):
        query = sample.strip().removesuffix(";")
    else:
        [found] = db.query_exact(
            "select $1::pg_catalog.regclass::pg_catalog.oid::pg_catalog.int8 as oid", ("text", sample)
        )
        rows = db.query(
            "select case c.relpersistence when 't' then 'pg_temp' else pg_catalog.quote_ident(n.nspname) end"
            " || '.' || pg_catalog.quote_ident(c.relname) as name, c.relpersistence = 't' as temporary"
            " from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " where c.oid = $1::pg_catalog.oid",
            ("int8", found["oid"]),
        )
        if not rows:
            raise InvalidState(f"sample {sample} is newer than the transaction's snapshot")
        name = rows[0]["name"]
        query = f"SELECT * FROM {name}"
        if stored and rows[0]["temporary"]:
            db.warning(f"sample {name} is temporary: other sessions will not find the rows")
    described = db.caged([query], lambda: db.describe(f"SELECT s.* FROM ({query}\n) s LIMIT 0"))
    names = [name for name, _, _ in described]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise InvalidData(f'column "{min(repeated)}" appears more than once in the sample')
    rows = db.query(
        TYPES_QUERY,
        ("int8[]", [oid for _, oid, _ in described]),
        ("int4[]", [modifier for _, _, modifier in described]),
    )
    if len(rows) < len(described):
        raise InvalidState("a column's type is newer than the transaction's snapshot")
    return Source(query, dict(zip(names, map(SqlType.from_row, rows), strict=True)))


def check_columns(source: Source, features: Sequence[str]) -> tuple[Feature, ...]:
    """Return the features with the kinds of their columns."""
    if len(set(features)) < len(features):
        raise InvalidData("a feature is named more than once")
    return tuple(Feature(name, source.kind(name)) for name in features)


def integers_beyond(source: Source, frame: Frame) -> list[str]:
    """Return the columns of whole numbers only, some of which float64 does not tell from their neighbours."""
    found = []
    for name in frame.number_names:
        sql_type, values = source.columns[name], frame.number(name)
        known = values[np.isfinite(values)]
        if sql_type.base != "int8" and not (sql_type.base == "numeric" and (known % 1 == 0).all()):
            continue
        if (np.abs(known) >= EXACT).any():
            found.append(name)
    return found


def lost_microseconds(db: Database, source: Source, frame: Frame) -> Mapping[str, str]:
    """Return, for columns of timestamps, the first value whose microseconds float64 does not hold.

    Every row of the source is looked at, but only where ``frame``, some of them, has years that are far enough.
    """
    tests: dict[str, str] = {}
    for feature in frame.features:
        sql_type = source.columns[feature.name]
        if sql_type.base not in ("timestamp", "timestamptz"):
            continue
        values = frame.number(feature.name)
        if not ((np.abs(values) >= EXACT_SECONDS) & np.isfinite(values)).any():
            continue
        column = f"s.{quote_identifier(feature.name)}"
        seconds = f"pg_catalog.date_part('epoch', {column})"
        back = from_canonical(seconds, "timestamp", sql_type.name)
        changed = f"{back} OPERATOR(pg_catalog.<>) {column}"
        tests[feature.name] = f"(pg_catalog.min({column}) FILTER (WHERE {changed}))::pg_catalog.text"
    if not tests:
        return {}
    selected = ", ".join(f"{test} AS c{i}" for i, test in enumerate(tests.values()))
    [row] = db.caged([source.query], lambda: db.query_once(f"SELECT {selected} FROM ({source.query}\n) s"))
    return {name: row[f"c{i}"] for i, name in enumerate(tests) if row[f"c{i}"] is not None}


def identity_columns(features: Sequence[NamedColumn]) -> Identity:
    """Return the columns by which rows of ``features`` are known."""
    return identity_of([(f.name, f.is_string) for f in features])


def numbers_of(value: bytes | None, dtype: str) -> npt.NDArray[Any]:
    """Read array_send's form: a header of 20 bytes, then (length, value) for each element."""
    if value is None:
        return np.empty(0, dtype)
    return np.frombuffer(value, np.dtype([("length", ">i4"), ("value", dtype)]), offset=20)["value"]
