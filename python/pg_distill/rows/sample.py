"""A relation or query becomes typed columns, columns become a Frame, and its rows are split.

Rows are told apart by a 64-bit hash of their feature values and the seed: the sample is the rows with the
smallest hashes, the split another function of the same hash. So both are reproducible without storing rows,
rows with equal features stay on one side of a split, and any later reader can find the same rows again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.database.protocol import Database
from pg_distill.errors import DatatypeMismatch, InvalidData
from pg_distill.frame import STRINGS, Column, Feature, FloatArray, Frame, Kind, Strings
from pg_distill.quoting import quote_identifier
from pg_distill.rows.fetch import (
    MAX_TEXT_BYTES,
    Fetched,
    bytes_of,
    fetch,
    hash_of,
    identity_hash,
    refuse_texts,
)
from pg_distill.rows.labels import Label, label_wanted, read_label
from pg_distill.rows.learned import Identity, Learned
from pg_distill.rows.source import Source, identity_columns, numbers_of
from pg_distill.rows.split import (
    FIT,
    LEFT_OUT,
    SELECT,
    SPLIT_NAMES,
    TEST,
    UNLABELLED,
    IntArray,
    folds_by_hash,
    group_numbers,
    salted,
    split_by_hash,
    split_by_time,
    split_times,
)

__all__ = ["Sample", "draw_identified", "draw_rows", "draw_sample", "draw_with_rows", "identities_of"]


LOOKED_AT, MIN_LOOKED_AT = (
    0.01,
    20,
)  # share of the rows whose strings are measured before they are drawn; if they are so many
CLEARLY_MORE = 2  # times MAX_TEXT_BYTES: what a few rows say is not exact
MIN_SPLIT_ROWS = 10  # fewer rows in a split say nothing about a student
MAX_CROSSED = 20_000  # labelled rows; of more the select rows alone tell candidates apart


@dataclass(frozen=True)
class Sample:
    """Rows drawn from a source.

    Attributes
    ----------
    frame
        (n,) rows of the features, ordered by hash.
    label
        (n,) the label, NULL where a row has none; None where no label was asked for.
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
    identities
        (n,) int64 hash by which each row is known in every run, by the columns that are hashed.
    groups
        (n,) group of each row, where rows are split by group.
    times
        (n,) time by which each row was put on its side (of groups, that of their newest row), where they are split by time;
        NaN for rows without a label.
    until
        The newest time of fit and select then.
    folds
        (n,) the fold of each row (see `folds_by_hash`) that can be cross-fitted: 0 of what may only teach. None where no row can.
    """

    frame: Frame
    label: Label | None
    extra: Mapping[str, Column]
    hashes: IntArray
    split: npt.NDArray[np.uint8]
    rows_total: int
    rows: Sequence[str] | None
    identities: Mapping[Identity, IntArray] = field(default_factory=dict)
    groups: npt.NDArray[Any] | None = None
    times: FloatArray | None = None
    until: float | None = None
    folds: npt.NDArray[np.uint8] | None = None

    @property
    def digest(self) -> str:
        """A digest of the rows that were drawn: their features, splits, labels, weights and logged outputs."""
        digest = hashlib.sha256(self.hashes.astype("<i8").tobytes() + self.split.tobytes())
        label = self.label.values if self.label is not None else None
        for column in (label, *(self.extra[name] for name in sorted(self.extra))):
            if isinstance(column, Strings):
                digest.update(
                    "\0".join((*column.categories, "")).encode() + column.codes.astype("<i4").tobytes()
                )
            elif column is not None:
                digest.update(column.astype("<f8").tobytes())
        return digest.hexdigest()

    def outside(
        self, learned: Learned, group_column: str | None, time_column: str | None
    ) -> npt.NDArray[np.bool_] | None:
        """Return which rows may judge a model, split as these are; None where its rows cannot be told among them."""
        identities = self.identities.get(learned.identity)
        if identities is None:
            return None
        return learned.outside(
            identities,
            groups=self.groups,
            times=self.times,
            group_column=group_column,
            time_column=time_column,
        )

    def count(self, split: int) -> int:
        """Return the number of rows in a split."""
        return int(np.count_nonzero(self.split == split))

    def keep_first(self, counts: Mapping[str, int]) -> Sample:
        """Return the sample with the first rows of each split alone in it, ``counts`` of them by the split's name."""
        split = self.split.copy()
        for part, name in enumerate(SPLIT_NAMES):
            split[np.flatnonzero(split == part)[counts[name] :]] = LEFT_OUT
        return replace(self, split=split)


def _has(source: Source, identity: Identity) -> bool:
    """Whether ``source`` has the columns of ``identity``, of their kinds."""
    return all(
        name in source.kinds and (source.kinds[name] in STRINGS) == strings for name, strings in identity
    )


def identities_of(db: Database, source: Source, identity: Identity) -> IntArray | None:
    """Return the hashes by which all rows of ``source`` are known; None where it has not the columns."""
    source = source.read_as(Feature(name, "string" if strings else "number") for name, strings in identity)
    if not _has(source, identity):
        return None
    return _all_hashes(db, source, identity_hash(source, identity))


def _all_hashes(db: Database, source: Source, expression: str) -> IntArray:
    [row] = db.caged(
        [source.query],
        lambda: db.query_once(
            f"SELECT pg_catalog.array_send(pg_catalog.array_agg({expression})) AS hash FROM ({source.query}\n) s"
        ),
    )
    return numbers_of(row["hash"], ">i8").astype(np.int64)


_GROUP = object()


def draw_rows(
    db: Database,
    source: Source,
    features: Sequence[Feature],
    *,
    label: str | None,
    extra: Sequence[str] = (),
    seed: int,
    limit: int,
) -> tuple[Frame, Label | None, dict[str, Column]]:
    """Draw rows without a split: to try a model on, or to time it. Labelled ones where there is a label."""
    return draw_identified(db, source, features, label=label, extra=extra, seed=seed, limit=limit)[:3]


def draw_identified(
    db: Database,
    source: Source,
    features: Sequence[Feature],
    *,
    label: str | None,
    extra: Sequence[str] = (),
    seed: int,
    limit: int,
    group_column: str | None = None,
    identities: Sequence[Identity] = (),
) -> tuple[Frame, Label | None, dict[str, Column], dict[Identity, IntArray], npt.NDArray[Any] | None]:
    """Draw rows as `draw_rows` does, with the hashes by which they are known, of columns that there are, and their groups."""
    wanted = label_wanted(source, label, True) | {c: source.single(c) for c in extra}
    if group_column is not None:
        wanted[_GROUP] = source.group(group_column)
    where = f" WHERE s.{quote_identifier(label)} IS NOT NULL" if label else ""
    found = fetch(
        db, source, features, wanted, where=where, seed=seed, limit=limit,
        identities=[identity for identity in identities if _has(source, identity)],
    )  # fmt: skip
    columns = found.columns
    frame = Frame(tuple(features), {f.name: columns[f.name] for f in features})
    labels = read_label(source, label, columns, True) if label else None
    groups = group_numbers(columns[_GROUP]) if group_column is not None else None
    return frame, labels, {c: columns[c] for c in extra}, found.identities, groups


def draw_with_rows(
    db: Database, source: Source, features: Sequence[Feature], extra: str, *, limit: int
) -> tuple[Frame, Column, Sequence[str]]:
    """Draw rows, one more column of them, and each of them as the text of to_jsonb."""
    wanted = {extra: source.single(extra)}
    found = fetch(db, source, features, wanted, where="", seed=0, limit=limit, with_rows=True)
    columns = {f.name: found.columns[f.name] for f in features}
    return Frame(tuple(features), columns), found.columns[extra], found.rows


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
    label_texts: bool = True,
    with_rows: bool = False,
    teacher: Learned | None = None,
    identities: Sequence[Identity] = (),
) -> Sample:
    """Draw up to ``max_rows`` labelled and as many unlabelled rows, and split the labelled ones.

    The split is by hash of the features; by hash of ``group_column``, whose rows then stay together; or by
    ``time_column``: the oldest rows to fit, the newest to test. By both, groups stay together and go by their newest row:
    the newest groups test, and no row that is fitted to is newer than all of a group that tests. Rows that ``trained_on``
    holds too are for fitting only: all rows of their groups with them; by time they are left out where they are too new to be
    fitted to. So are rows to test on that the ``teacher`` has learned from. Without a label all rows are split, and agreement
    with the teacher is what can be measured. ``label_texts`` for a label that names classes.

    Raises
    ------
    InvalidData
        Too few rows for a split.
    """
    others = [*extra, *([time_column] if time_column is not None else [])]
    wanted: dict[Any, tuple[str, Kind]] = {c: source.single(c) for c in others}
    wanted |= label_wanted(source, label, label_texts)
    if group_column is not None:
        wanted[_GROUP] = source.group(group_column)
    if time_column is not None and source.kind(time_column) == "string":
        raise DatatypeMismatch(f'time column "{time_column}" is of type {source.shown(time_column)}')
    labelled = f"s.{quote_identifier(label)}" if label is not None else "1"
    cells = [(source.canonical(f.name), f.kind) for f in features] + list(wanted.values())
    # Of a few rows, by chance: to read all long texts takes longer than to draw some.
    by_chance = f"pg_catalog.random() OPERATOR(pg_catalog.<) '{LOOKED_AT}'::pg_catalog.float8"
    texts = bytes_of([sql for sql, kind in cells if kind in STRINGS], by_chance)
    counts = db.caged(
        [source.query],
        lambda: db.query_once(
            f"SELECT pg_catalog.count(*) AS n, pg_catalog.count({labelled}) AS labelled, {texts} AS texts"
            f" FROM ({source.query}\n) s"
        ),
    )[0]
    if counts["n"] == 0:
        raise InvalidData("the sample has no rows")
    drawn = sum(min(rows, max_rows) for rows in (counts["labelled"], counts["n"] - counts["labelled"]))
    size = int(counts["texts"] / LOOKED_AT * drawn / counts["n"])
    if counts["n"] * LOOKED_AT >= MIN_LOOKED_AT and size > CLEARLY_MORE * MAX_TEXT_BYTES:
        refuse_texts(size, drawn)
    wheres = [f" WHERE {labelled} IS NOT NULL"]
    if counts["labelled"] < counts["n"]:
        wheres.append(f" WHERE {labelled} IS NULL")
    asked = {identity_columns(features), *identities, *([teacher.identity] if teacher is not None else [])}
    hashed = sorted(identity for identity in asked if _has(source, identity))
    parts: list[Fetched] = []
    lengths: dict[Any, int] = {}
    for where in wheres:
        found = fetch(
            db,
            source,
            features,
            wanted,
            where=where,
            seed=seed,
            limit=max_rows,
            with_rows=with_rows,
            identities=hashed,
            lengths=lengths,
        )
        if len(found.hashes):
            lengths = {name: c.shape[1] for name, c in found.columns.items() if np.ndim(c) == 2}  # type: ignore[union-attr,arg-type]
        parts.append(found)
    hashes = np.concatenate([p.hashes for p in parts])
    columns = {c: _concat([p.columns[c] for p in parts]) for c in parts[0].columns}
    n = len(parts[0].hashes)
    known = np.zeros(n, bool)
    if trained_on is not None:
        known = np.isin(hashes[:n], _trained_hashes(db, trained_on, features, seed))
    groups = group_numbers(columns[_GROUP]) if group_column is not None else None
    if groups is not None:
        known = np.isin(groups[:n], groups[:n][known])
    split = np.full(len(hashes), UNLABELLED, np.uint8)
    times: FloatArray | None = None
    until: float | None = None
    if time_column is not None:
        times = np.full(len(hashes), np.nan)
        column = columns[time_column]
        assert not isinstance(column, Strings)
        if np.isnan(column[:n]).any():
            raise InvalidData("the time column has NULLs")
        times[:n] = split_times(column[:n], None if groups is None else groups[:n])
        split[:n], until = split_by_time(times[:n])
        split[:n][known & (split[:n] != FIT)] = LEFT_OUT
    else:
        places = hashes[:n] if groups is None else salted(groups[:n], seed)
        split[:n] = np.where(known, FIT, split_by_hash(places))
    # What the rows that judge show is not taught by another way: a copy of one, or another row of its group, without a label.
    if groups is not None or times is None:
        same = hashes if groups is None else groups
        judging = (split[:n] == SELECT) | (split[:n] == TEST)
        split[n:][np.isin(same[n:], same[:n][judging])] = LEFT_OUT
    folds = None
    if time_column is None and n <= MAX_CROSSED:
        folds = folds_by_hash(hashes if groups is None else salted(groups, seed))
        # What the teacher knows by heart judges nobody; nor do others by a copy, or another row of the group, without a label.
        folds[:n][known | (split[:n] > SELECT)] = 0
        same = hashes if groups is None else groups
        folds[n:][~np.isin(same[n:], same[:n][folds[:n] > 0])] = 0
    sample = Sample(
        Frame(tuple(features), {f.name: columns[f.name] for f in features}),
        read_label(source, label, columns, label_texts) if label is not None else None,
        {c: columns[c] for c in extra},
        hashes,
        split,
        int(counts["n"]),
        [row for p in parts for row in p.rows] if with_rows else None,
        {identity: np.concatenate([p.identities[identity] for p in parts]) for identity in hashed},
        groups,
        times,
        until,
        folds,
    )
    why = None
    if teacher is not None:
        judged = sample.count(TEST)
        outside = sample.outside(teacher, group_column, time_column)
        if outside is not None:
            # They may teach, unless they are too new for that.
            split[(split == TEST) & ~outside] = FIT if time_column is None else LEFT_OUT
            if folds is not None:
                folds[(split == FIT) & ~outside] = 0
            why = (
                f"The teacher has learned from {judged - sample.count(TEST)} of the {judged} rows to test on."
            )
    for part in (FIT, SELECT, TEST):
        if sample.count(part) < MIN_SPLIT_ROWS:
            its_own = part == TEST and teacher is not None and why is not None
            seed_hint = f"seed => {teacher.seed}, and split as its" if teacher is not None else ""
            raise InvalidData(
                f"the sample has too few rows: {sample.count(part)} of {n} fall to {SPLIT_NAMES[part]},"
                f" where at least {MIN_SPLIT_ROWS} are needed",
                detail=why if its_own else None,
                hint=f"Pass {seed_hint} own run did, or a sample that it has not seen." if its_own else None,
            )
    return sample


def _concat(columns: Sequence[Column]) -> Column:
    if isinstance(columns[0], Strings):
        kind: Kind = "string"
    else:
        kind = "vector" if columns[0].ndim == 2 else "number"
        if len(columns) == 2 and kind == "vector":
            columns = [c for c in columns if len(c)] or columns[:1]
    feature = Feature("", kind)
    return Frame.concat([Frame((feature,), {"": c}) for c in columns]).columns[""]


def _trained_hashes(db: Database, source: Source, features: Sequence[Feature], seed: int) -> IntArray:
    source = source.read_as(features)
    for feature in features:
        if source.kind(feature.name) != feature.kind:
            raise DatatypeMismatch(
                f'column "{feature.name}" is of type {source.shown(feature.name)} in the rows trained on,'
                f" but a {feature.kind} in the sample"
            )
    return _all_hashes(db, source, hash_of(source, features, seed))
