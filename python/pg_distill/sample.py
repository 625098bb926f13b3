"""A relation or query becomes typed columns, columns become a Frame, and its rows are split.

Rows are told apart by a 64-bit hash of their feature values and the seed: the sample is the rows with the
smallest hashes, the split another function of the same hash. So both are reproducible without storing rows,
rows with equal features stay on one side of a split, and any later reader can find the same rows again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.database import Database, quote_identifier
from pg_distill.errors import DatatypeMismatch, InvalidData, InvalidState, UndefinedColumn
from pg_distill.frame import Column, Feature, FloatArray, Frame, Kind, Strings

__all__ = [
    "FIT",
    "LEFT_OUT",
    "SELECT",
    "SPLIT_NAMES",
    "TEST",
    "UNLABELLED",
    "Sample",
    "Source",
    "canonical_column",
    "check_columns",
    "draw_rows",
    "draw_sample",
    "resolve_source",
]

IntArray = npt.NDArray[np.int64]

FIT, SELECT, TEST, UNLABELLED, LEFT_OUT = 0, 1, 2, 3, 4
SPLIT_NAMES = ("fit", "select", "test", "unlabelled")  # a row that is left out is in none
FIT_SHARE, SELECT_SHARE = 0.64, 0.16  # of the labelled rows; the rest is for test
MIN_SPLIT_ROWS = 10  # fewer rows in a split say nothing about a student

# Columns of ours beside the caller's: no query is likely to have one of these names.
_HASH = quote_identifier("pg_distill hash")
_ROW = quote_identifier("pg_distill row")

_KINDS: Mapping[str, Kind] = {
    "float4": "number",
    "float8": "number",
    "numeric": "number",
    "int2": "integer",
    "int4": "integer",
    "int8": "integer",
    "bool": "boolean",
    "date": "timestamp",
    "timestamp": "timestamp",
    "timestamptz": "timestamp",
    "text": "string",
    "varchar": "string",
    "bpchar": "string",
    "name": "string",
    "char": "string",
    "citext": "string",
    "uuid": "string",
}


@dataclass(frozen=True)
class Source:
    """A query that gives rows, and what its columns are.

    ``kinds`` leaves out columns of types that no model takes (json, arrays ...); ``types`` has the SQL type
    of every column.
    """

    query: str
    kinds: Mapping[str, Kind]
    types: Mapping[str, str]

    def kind(self, column: str) -> Kind:
        """Return the kind of ``column``; UndefinedColumn or DatatypeMismatch where it has none."""
        if column not in self.types:
            raise UndefinedColumn(
                f'column "{column}" does not exist in the sample',
                detail=f"The sample has the columns {', '.join(self.types) or '(none)'}.",
            )
        if column not in self.kinds:
            raise DatatypeMismatch(f'column "{column}" is of type {self.types[column]}, which no model takes')
        return self.kinds[column]


@dataclass(frozen=True)
class Sample:
    """Rows drawn from a source.

    Attributes
    ----------
    frame
        (n,) rows of the features, ordered by hash.
    label
        (n,) the label as text, None where a row has none; None where no label was asked for.
    extra
        Other columns that were asked for, by name: numbers as float64 with NaN for NULL.
    hashes
        (n,) int64 hash of each row.
    split
        (n,) uint8: FIT, SELECT, TEST, UNLABELLED or LEFT_OUT.
    rows_total
        Rows that the source holds.
    rows
        (n,) each row of the source as jsonb text, where that was asked for.
    """

    frame: Frame
    label: Column | None
    extra: Mapping[str, Column]
    hashes: IntArray
    split: npt.NDArray[np.uint8]
    rows_total: int
    rows: Sequence[str] | None

    @property
    def digest(self) -> str:
        """A digest of the rows that were drawn: their features, splits, labels, weights and logged outputs."""
        digest = hashlib.sha256(self.hashes.astype("<i8").tobytes() + self.split.tobytes())
        for column in (self.label, *(self.extra[name] for name in sorted(self.extra))):
            if isinstance(column, Strings):
                digest.update(
                    "\0".join((*column.categories, "")).encode() + column.codes.astype("<i4").tobytes()
                )
            elif column is not None:
                digest.update(column.astype("<f8").tobytes())
        return digest.hexdigest()

    def count(self, split: int) -> int:
        """Return the number of rows in a split."""
        return int(np.count_nonzero(self.split == split))

    def keep_first(self, counts: Mapping[str, int]) -> Sample:
        """Return the sample with the first rows of each split alone in it, ``counts`` of them by the split's name."""
        split = self.split.copy()
        for part, name in enumerate(SPLIT_NAMES):
            split[np.flatnonzero(split == part)[counts[name] :]] = LEFT_OUT
        return replace(self, split=split)


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
    columns = db.caged([query], lambda: db.describe(f"SELECT s.* FROM ({query}\n) s LIMIT 0"))
    types = {
        row["oid"]: row
        for row in db.query(
            "with recursive base(oid, base) as ("
            "  select t.oid, t.oid from pg_catalog.pg_type t where t.oid = any ($1)"
            "  union all select b.oid, t.typbasetype from base b join pg_catalog.pg_type t on t.oid = b.base"
            "  where t.typtype = 'd')"
            " select b.oid::pg_catalog.int8 as oid, pg_catalog.format_type(b.oid, null) as name,"
            "  case when t.typtype = 'e' then 'text' when n.nspname = 'pg_catalog' or t.typname = 'citext' and t.typtype = 'b'"
            "       then t.typname::pg_catalog.text end as base"
            " from base b join pg_catalog.pg_type t on t.oid = b.base"
            " join pg_catalog.pg_namespace n on n.oid = t.typnamespace where t.typtype <> 'd'",
            ("int8[]", [oid for _, oid in columns]),
        )
    }
    if any(oid not in types for _, oid in columns):
        raise InvalidState("a column's type is newer than the transaction's snapshot")
    names = [name for name, _ in columns]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise InvalidData(f'column "{min(repeated)}" appears more than once in the sample')
    return Source(
        query,
        {name: _KINDS[types[oid]["base"]] for name, oid in columns if types[oid]["base"] in _KINDS},
        {name: types[oid]["name"] for name, oid in columns},
    )


def check_columns(source: Source, features: Sequence[str]) -> tuple[Feature, ...]:
    """Return the features with the kinds of their columns."""
    if len(set(features)) < len(features):
        raise InvalidData("a feature is named more than once")
    return tuple(Feature(name, source.kind(name)) for name in features)


def canonical_column(column: str, kind: Kind) -> str:
    """Return SQL for a column in canonical form: float8, NULL as NaN; or text, NULL as NULL."""
    name = f"s.{quote_identifier(column)}"
    if kind == "string":
        return f"({name})::pg_catalog.text"
    if kind == "boolean":
        name = f"({name})::pg_catalog.int4"
    elif kind == "timestamp":
        name = f"pg_catalog.date_part('epoch', {name})"
    return f"COALESCE(({name})::pg_catalog.float8, 'NaN')"


def _hash(features: Sequence[Feature], seed: int) -> str:
    row = ", ".join(canonical_column(f.name, f.kind) for f in features)
    return f"pg_catalog.hash_record_extended(ROW({row}), {seed:d})"


def _send(expression: str, kind: Kind) -> str:
    # array_send gives numpy the column at C speed; text has no fixed width and comes as an array.
    if kind == "string":
        return f"pg_catalog.array_agg({expression})"
    return f"pg_catalog.array_send(pg_catalog.array_agg({expression}))"


def _receive(value: Any, kind: Kind) -> Column:
    if kind == "string":
        return Strings.from_values(value or [])
    return _numbers(value, ">f8").astype(np.float64)


def _numbers(value: bytes | None, dtype: str) -> npt.NDArray[Any]:
    """Read array_send's form: a header of 20 bytes, then (length, value) for each element."""
    if value is None:
        return np.empty(0, dtype)
    return np.frombuffer(value, np.dtype([("length", ">i4"), ("value", dtype)]), offset=20)["value"]


def _fetch(
    db: Database,
    source: Source,
    features: Sequence[Feature],
    columns: Mapping[str, Kind],
    *,
    where: str,
    seed: int,
    limit: int,
    with_rows: bool = False,
) -> tuple[IntArray, dict[str, Column], list[str]]:
    """Fetch the rows of the smallest hashes as columns, and as jsonb text where asked to."""
    kinds = {**{f.name: f.kind for f in features}, **columns}
    inner = ", ".join(f"{canonical_column(c, k)} AS c{i}" for i, (c, k) in enumerate(kinds.items()))
    outer = ", ".join(f"{_send(f't.c{i}', k)} AS c{i}" for i, k in enumerate(kinds.values()))
    if with_rows:
        inner += f", pg_catalog.to_jsonb(s)::pg_catalog.text AS {_ROW}"
        outer += f", pg_catalog.array_agg(t.{_ROW}) AS rows"
    # Ties (equal features) are ordered by everything that is fetched, so that the order is the same each time.
    order = ", ".join(str(i + 2) for i in range(len(kinds)))
    row = db.caged(
        [source.query],
        lambda: db.query_once(
            f"SELECT pg_catalog.array_send(pg_catalog.array_agg(t.{_HASH})) AS hash, {outer} FROM ("
            f"SELECT {_hash(features, seed)} AS {_HASH}, {inner} FROM ({source.query}\n) s{where}"
            f" ORDER BY 1, {order} LIMIT {limit:d}) t"
        ),
    )[0]
    hashes = _numbers(row["hash"], ">i8").astype(np.int64)
    received = {c: _receive(row[f"c{i}"], k) for i, (c, k) in enumerate(kinds.items())}
    return hashes, received, row["rows"] or [] if with_rows else []


def draw_rows(
    db: Database,
    source: Source,
    features: Sequence[Feature],
    *,
    label: str | None,
    extra: Sequence[str] = (),
    seed: int,
    limit: int,
) -> tuple[Frame, Column | None, dict[str, Column]]:
    """Draw rows without a split: to try a model on, or to time it. Labelled ones where there is a label."""
    kinds = {c: source.kind(c) for c in (*([label] if label else []), *extra)}
    where = f" WHERE s.{quote_identifier(label)} IS NOT NULL" if label else ""
    _, columns, _ = _fetch(db, source, features, kinds, where=where, seed=seed, limit=limit)
    frame = Frame(tuple(features), {f.name: columns[f.name] for f in features})
    return frame, columns[label] if label else None, {c: columns[c] for c in extra}


def draw_sample(
    db: Database,
    source: Source,
    features: Sequence[Feature],
    *,
    label: str | None,
    extra: Sequence[str] = (),
    group_column: str | None = None,
    time_column: str | None = None,
    trained_on: Source | None = None,
    seed: int,
    max_rows: int,
    with_rows: bool = False,
) -> Sample:
    """Draw up to ``max_rows`` labelled and as many unlabelled rows, and split the labelled ones.

    The split is by hash of the features; by hash of ``group_column``, whose rows then stay together; or by
    ``time_column``: the oldest rows to fit, the newest to test. Rows that ``trained_on`` holds too are for
    fitting only: all rows of their groups with them; by time they are left out where they are too new to be fitted to.
    Without a label all rows are split, and agreement with the teacher is what can be measured.

    Raises
    ------
    InvalidData
        Too few rows for a split.
    """
    if group_column is not None and time_column is not None:
        raise InvalidData("rows cannot be split by group and by time at once")
    kinds: dict[str, Kind] = {c: source.kind(c) for c in extra}
    if label is not None:
        kinds[label] = source.kind(label)
    if time_column is not None:
        kinds[time_column] = source.kind(time_column)
        if kinds[time_column] == "string":
            raise DatatypeMismatch(f'time column "{time_column}" is of type {source.types[time_column]}')
    if group_column is not None:
        kinds[group_column] = source.kind(group_column)
    labelled = f"s.{quote_identifier(label)}" if label is not None else "1"
    counts = db.caged(
        [source.query],
        lambda: db.query_once(
            f"SELECT pg_catalog.count(*) AS n, pg_catalog.count({labelled}) AS labelled FROM ({source.query}\n) s"
        ),
    )[0]
    if counts["n"] == 0:
        raise InvalidData("the sample has no rows")
    wheres = [f" WHERE {labelled} IS NOT NULL"]
    if counts["labelled"] < counts["n"]:
        wheres.append(f" WHERE {labelled} IS NULL")
    parts = [
        _fetch(db, source, features, kinds, where=where, seed=seed, limit=max_rows, with_rows=with_rows)
        for where in wheres
    ]
    hashes = np.concatenate([h for h, _, _ in parts])
    columns = {c: _concat([p[c] for _, p, _ in parts]) for c in parts[0][1]}
    n = len(parts[0][0])
    known = np.zeros(n, bool)
    if trained_on is not None:
        known = np.isin(hashes[:n], _trained_hashes(db, trained_on, features, seed))
    split = np.full(len(hashes), UNLABELLED, np.uint8)
    if time_column is not None:
        split[:n] = _split_by_time(columns[time_column][:n])  # type: ignore[index]
        split[:n][known & (split[:n] != FIT)] = LEFT_OUT
    else:
        places = hashes[:n]
        if group_column is not None:
            places = _group_hashes(columns[group_column], seed)[:n]
            known = np.isin(places, places[known])
        split[:n] = np.where(known, FIT, _split_by_hash(places))
    sample = Sample(
        Frame(tuple(features), {f.name: columns[f.name] for f in features}),
        columns[label] if label is not None else None,
        {c: columns[c] for c in extra},
        hashes,
        split,
        int(counts["n"]),
        [row for _, _, rows in parts for row in rows] if with_rows else None,
    )
    for part in (FIT, SELECT, TEST):
        if sample.count(part) < MIN_SPLIT_ROWS:
            raise InvalidData(
                f"the sample has too few rows: {sample.count(part)} of {n} fall to {SPLIT_NAMES[part]},"
                f" where at least {MIN_SPLIT_ROWS} are needed"
            )
    return sample


def _concat(columns: Sequence[Column]) -> Column:
    feature = Feature("", "string" if isinstance(columns[0], Strings) else "number")
    return Frame.concat([Frame((feature,), {"": c}) for c in columns]).columns[""]


def _mix(values: npt.NDArray[Any]) -> FloatArray:
    """Map 64-bit integers to [0, 1) evenly (splitmix64's finaliser, Steele et al. 2014)."""
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((z ^ (z >> np.uint64(31))) >> np.uint64(11), np.float64) / 2.0**53


def _split_by_hash(hashes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    place = _mix(hashes)
    return np.where(place < FIT_SHARE, FIT, np.where(place < FIT_SHARE + SELECT_SHARE, SELECT, TEST)).astype(
        np.uint8
    )


def _split_by_time(column: Column) -> npt.NDArray[np.uint8]:
    assert not isinstance(column, Strings)
    if np.isnan(column).any():
        raise InvalidData("the time column has NULLs")
    if not len(column):
        return np.empty(0, np.uint8)
    # inverted_cdf: a cut is a time that occurs, and rows of equal time stay on one side.
    first, second = np.quantile(column, [FIT_SHARE, FIT_SHARE + SELECT_SHARE], method="inverted_cdf")
    return np.where(column <= first, FIT, np.where(column <= second, SELECT, TEST)).astype(np.uint8)


def _group_hashes(column: Column, seed: int) -> npt.NDArray[Any]:
    """Return (n,) uint64: equal for rows of a group, and other ones with another seed."""

    def number(text: str) -> int:
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    salt = np.uint64(number(f"seed {seed}"))
    if not isinstance(column, Strings):
        return column.view(np.uint64) ^ salt
    return np.array([*map(number, column.categories), 0], np.uint64)[column.codes] ^ salt


def _trained_hashes(db: Database, source: Source, features: Sequence[Feature], seed: int) -> IntArray:
    for feature in features:
        if source.kind(feature.name) != feature.kind:
            raise DatatypeMismatch(
                f'column "{feature.name}" is of type {source.types[feature.name]} in the rows trained on,'
                f" but a {feature.kind} in the sample"
            )
    row = db.caged(
        [source.query],
        lambda: db.query_once(
            f"SELECT pg_catalog.array_send(pg_catalog.array_agg({_hash(features, seed)})) AS hash"
            f" FROM ({source.query}\n) s"
        ),
    )[0]
    return _numbers(row["hash"], ">i8").astype(np.int64)
