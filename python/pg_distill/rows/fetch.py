"""Rows on their way out of the database: columns as arrays of bytes, rows as JSON, each bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from pg_distill.database.protocol import Database
from pg_distill.errors import LimitExceeded
from pg_distill.frame import STRINGS, Column, Feature, Frame, Kind, Strings
from pg_distill.quoting import quote_identifier
from pg_distill.rows.learned import IDENTITY_SEED, Identity
from pg_distill.rows.source import Source, numbers_of
from pg_distill.rows.split import (
    IntArray,
)
from pg_distill.rows.vectors import sent_vectors

__all__ = ["MAX_TEXT_BYTES", "Fetched", "bytes_of", "fetch", "hash_of", "identity_hash", "refuse_texts"]

MAX_TEXT_BYTES = (
    256 * 2**20
)  # of strings in one sample: the backend, its message and the training process each hold them


MAX_ARRAY_BYTES = 2**30  # of an array of a server


# Columns of ours beside the caller's: no query is likely to have one of these names.
_HASH = quote_identifier("pg_distill hash")
_ROW = quote_identifier("pg_distill row")


def hash_of(source: Source, features: Sequence[Feature], seed: int) -> str:
    """Return SQL of the hash of a row by its features."""
    row = ", ".join(source.canonical(f.name) for f in features)
    return f"pg_catalog.hash_record_extended(ROW({row}), {seed:d})"


def identity_hash(source: Source, identity: Identity) -> str:
    """Return SQL of the hash by which a student's rows are told again."""
    return hash_of(source, [Feature(name, source.kind(name)) for name, _ in identity], IDENTITY_SEED)


MAX_VECTOR_BYTES = 512 * 2**20  # of vectors in one sample, as they are sent: twice what their float32 take


def _send(expression: str, kind: Kind) -> str:
    # array_send gives numpy the column at C speed; text has no fixed width and comes as an array.
    if kind in STRINGS:
        return f"pg_catalog.array_agg({expression})"
    if kind == "vector":
        return f"pg_catalog.string_agg({expression}, ''::pg_catalog.bytea)"
    return f"pg_catalog.array_send(pg_catalog.array_agg({expression}))"


def _receive(value: Any, kind: Kind) -> Column:
    if kind in STRINGS:
        return Strings.from_values(value or [])
    return numbers_of(value, ">f8").astype(np.float64)


def fetch(
    db: Database,
    source: Source,
    features: Sequence[Feature],
    wanted: Mapping[Any, tuple[str, Kind]],
    *,
    where: str,
    seed: int,
    limit: int,
    with_rows: bool = False,
    identities: Sequence[Identity] = (),
    lengths: Mapping[Any, int] = MappingProxyType({}),
) -> Fetched:
    """Fetch the rows of the smallest hashes: the features by name, what is ``wanted`` (SQL and kind), rows as jsonb text.

    ``lengths`` has the numbers of vectors that are known already.
    """
    cells = {f.name: (source.canonical(f.name), f.kind) for f in features} | dict(wanted)
    inner = ", ".join(
        f"COALESCE(pg_catalog.array_send({sql}), ''::pg_catalog.bytea) AS c{i}"
        if kind == "vector"
        else f"{sql} AS c{i}"
        for i, (sql, kind) in enumerate(cells.values())
    )
    vectors = [i for i, (_, kind) in enumerate(cells.values()) if kind == "vector"]
    texts = bytes_of([f"t.c{i}" for i, (_, kind) in enumerate(cells.values()) if kind in STRINGS])
    few = f"{texts} OPERATOR(pg_catalog.<=) '{MAX_TEXT_BYTES:d}'::pg_catalog.int8"
    together = bytes_of([f"t.c{i}" for i in vectors])
    fitting = f"{together} OPERATOR(pg_catalog.<=) '{MAX_VECTOR_BYTES:d}'::pg_catalog.int8"
    outer = ", ".join(
        f"CASE WHEN {fitting if kind == 'vector' else few} THEN {_send(f't.c{i}', kind)} END AS c{i}"
        if kind in STRINGS or kind == "vector"
        else f"{_send(f't.c{i}', kind)} AS c{i}"
        for i, (_, kind) in enumerate(cells.values())
    )
    outer += f", {texts} AS texts, {together} AS vectors"
    for i in vectors:
        outer += f", pg_catalog.array_send(pg_catalog.array_agg(pg_catalog.octet_length(t.c{i}))) AS n{i}"
    if with_rows:
        inner += f", {source.rows_as_json()}::pg_catalog.text AS {_ROW}"
        outer += f", pg_catalog.array_agg(t.{_ROW}) AS rows"
    for i, identity in enumerate(identities):
        inner += f", {identity_hash(source, identity)} AS i{i}"
        outer += f", pg_catalog.array_send(pg_catalog.array_agg(t.i{i})) AS i{i}"
    # Ties (equal features) are ordered by everything that is fetched, so that the order is the same each time. Hashes too,
    # which are equal then: what is not sorted by may be computed after the sort, which then carries twice the columns.
    sorted_by = [*(i + 2 for i in range(len(cells)))]
    sorted_by += [len(cells) + with_rows + 2 + i for i in range(len(identities))]
    order = ", ".join(map(str, sorted_by))
    try:
        [row] = db.caged(
            [source.query],
            lambda: db.query_once(
                f"SELECT pg_catalog.array_send(pg_catalog.array_agg(t.{_HASH})) AS hash, {outer} FROM ("
                f"SELECT {hash_of(source, features, seed)} AS {_HASH}, {inner} FROM ({source.query}\n) s{where}"
                f" ORDER BY 1, {order} LIMIT {limit:d}) t"
            ),
        )
    except Exception as error:
        # Nothing is gone on with: the same error, in words of the caller's.
        if getattr(error, "sqlstate", None) != LimitExceeded.sqlstate:
            raise
        if vectors:
            _refuse_vectors(MAX_ARRAY_BYTES, limit)
        if texts == "0" and not with_rows:
            raise
        refuse_texts(MAX_ARRAY_BYTES, limit)
    if row["texts"] > MAX_TEXT_BYTES:
        refuse_texts(int(row["texts"]), len(numbers_of(row["hash"], ">i8")))
    hashes = numbers_of(row["hash"], ">i8").astype(np.int64)
    if row["vectors"] > MAX_VECTOR_BYTES:
        _refuse_vectors(int(row["vectors"]), len(hashes))
    received = {
        key: _receive(row[f"c{i}"], kind)
        for i, (key, (_, kind)) in enumerate(cells.items())
        if kind != "vector"
    }
    for i, (key, (_, kind)) in enumerate(cells.items()):
        if kind == "vector":
            sizes = numbers_of(row[f"n{i}"], ">i4").astype(np.int64)
            shown = partial(_shown, features, received)
            received[key] = (
                sent_vectors(row[f"c{i}"], sizes, str(key), shown, lengths.get(key))
                if len(sizes)
                else np.empty((0, lengths.get(key, 1)), np.float32)
            )
    known = {
        identity: numbers_of(row[f"i{i}"], ">i8").astype(np.int64) for i, identity in enumerate(identities)
    }
    return Fetched(hashes, received, row["rows"] or [] if with_rows else [], known)


def _shown(features: Sequence[Feature], columns: Mapping[Any, Column], position: int) -> str:
    """Say which row of those fetched it is, by the features that are read so far."""
    known = tuple(f for f in features if f.name in columns)
    return Frame(known, {f.name: columns[f.name] for f in known}).show_row(position) if known else ""


def bytes_of(columns: Sequence[str], which: str = "true") -> str:
    """Return SQL for what the strings of some columns take together, over the rows for which ``which`` is true."""
    if not columns:
        return "0"
    each = " OPERATOR(pg_catalog.+) ".join(
        f"COALESCE(pg_catalog.octet_length({column}), 0)::pg_catalog.int8" for column in columns
    )
    return f"COALESCE(pg_catalog.sum({each}) FILTER (WHERE {which}), 0)::pg_catalog.int8"


def refuse_texts(size: int, rows: int) -> NoReturn:
    """Raise: the strings are larger than a sample may be."""
    fitting = max(1, int(rows * MAX_TEXT_BYTES / size))
    raise LimitExceeded(
        f"the strings of {rows} rows take about {size / 2**20:.0f} MB, more than the {MAX_TEXT_BYTES // 2**20} MB of a sample",
        hint=f"Lower max_rows to {fitting}, or shorten them in the sample query, such as left(text, 1000).",
    )


def _refuse_vectors(size: int, rows: int) -> NoReturn:
    raise LimitExceeded(
        f"the vectors of {rows} rows take about {size / 2**20:.0f} MB on their way, more than the"
        f" {MAX_VECTOR_BYTES // 2**20} MB of a sample",
        hint=f"Lower max_rows to {max(1, int(rows * MAX_VECTOR_BYTES / size))}.",
    )


@dataclass(frozen=True)
class Fetched:
    """Rows: their hashes, columns by name (and the label's text), jsonb texts, and the hashes by which they are known."""

    hashes: IntArray
    columns: dict[Any, Column]
    rows: list[str]
    identities: dict[Identity, IntArray]
