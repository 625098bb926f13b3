"""Rows of the sample, and what the model's own library says of them: the claim that the server holds against predict."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pg_distill.conversion.convert import Converted
from pg_distill.conversion.original import Answers
from pg_distill.database.protocol import Database, Row
from pg_distill.errors import InvalidData
from pg_distill.frame import Column, Feature, Frame, Kind, Strings
from pg_distill.measure.comparison import important_first
from pg_distill.quoting import quote_identifier, quote_literal
from pg_distill.rows.source import Source

__all__ = ["ask"]

ROWS = 5000
"""Any rows of the sample that the library is asked about, beside those with the extremes of all."""
EXTREMES = 5
"""Rows with a column's least and greatest value, and with NULL where the rows drawn have none."""
SECONDS = 20.0
"""For the library to answer; a slow one is asked about fewer rows, the important ones first."""
FIRST_ROWS = 128
GROWTH = 4


def ask(
    db: Database, source: Source, converted: Converted, *, own_classes: bool
) -> tuple[list[str], list[str] | None, str, str]:
    """Return rows as jsonb texts, as arrays of the features' numbers where none is a text, what the library says and who it is.

    ``own_classes`` says that the classes have the library's names.

    Raises
    ------
    InvalidData
        The sample has no rows, or the library refuses one of them.
    """
    read = [converted.columns[i] for i in converted.read]
    kinds = {name: source.kind(name) for name in dict.fromkeys(read)}
    rows = _draw(db, source, kinds)
    if not rows:
        raise InvalidData("the sample has no rows")
    frame = _frame(rows, kinds)
    rows = [rows[i] for i in important_first(frame)]
    places = {name: i for i, name in enumerate(kinds)}
    columns: list[Sequence[Any]] = [
        [row["values"][places[name]] for row in rows] if i in set(converted.read) else [None] * len(rows)
        for i, name in enumerate(converted.columns)
    ]
    model_kinds: list[Kind] = [kinds.get(name, "number") for name in converted.columns]
    unread = [i for i in range(len(converted.columns)) if i not in set(converted.read)]
    original = converted.original
    table = original.rows(columns, model_kinds, converted.nulls, unread)
    answers = _answers(original, table, len(rows))
    asked = len(answers.outputs if answers.outputs is not None else answers.labels)  # type: ignore[arg-type]
    if answers.failed:
        row = min(answers.failed)
        raise InvalidData(
            f"{original.version} itself refuses a row of the sample",
            detail=f"Row {_shown(rows[row]['row'], converted.features)}: {answers.failed[row]}",
            hint="Leave such rows out in the sample's query, or replace their values there as it was done for the model.",
        )
    texts = any(kinds[name] == "string" for name in converted.features)
    expected = {
        "outputs": None if answers.outputs is None else answers.outputs.tolist(),
        "labels": None if answers.labels is None else answers.labels.tolist(),
        "own_classes": own_classes,
    }
    if answers.outputs is not None and not np.isfinite(answers.outputs).all():
        raise InvalidData(f"{original.version} gives no finite number for a row of the sample")
    origin = {"library": original.version, "model": type(original.inner).__name__}
    arrays = None if texts else [row["numbers"] for row in rows[:asked]]
    return [row["row"] for row in rows[:asked]], arrays, json.dumps(expected), json.dumps(origin)


def _answers(original: Any, table: Any, count: int) -> Answers:
    """Ask the library, the first rows first, until all are asked or the time is over."""
    started = time.monotonic()
    parts: list[Answers] = []
    start, size = 0, FIRST_ROWS
    while start < count and (not start or time.monotonic() - started < SECONDS):
        stop = min(start + size, count)
        part = original.answers(table.iloc[start:stop] if hasattr(table, "iloc") else table[start:stop])
        if part.failed:
            return Answers(
                np.zeros((stop, 1)), None, {start + row: words for row, words in part.failed.items()}
            )
        parts.append(part)
        start, size = stop, size * GROWTH
    outputs = None if parts[0].outputs is None else np.concatenate([p.outputs for p in parts])
    labels = None if parts[0].labels is None else np.concatenate([p.labels for p in parts])
    return Answers(outputs, labels)


def _draw(db: Database, source: Source, kinds: dict[str, Kind]) -> list[dict[str, Any]]:
    """Return any rows, and those with extremes and NULL: each as jsonb's text, as an array's text, and its values one by one."""
    from_clause = f"FROM ({source.query}\n) s"

    def column(name: str) -> str:
        return f"s.{quote_identifier(name)}"

    plain = [
        f"pg_catalog.date_part('epoch', {column(n)})::pg_catalog.text"
        if k == "timestamp"
        else f"{column(n)}::pg_catalog.text"
        for n, k in kinds.items()
    ]
    numbers = [source.canonical(n) for n, k in kinds.items() if k != "string"]
    shown = (
        f'{source.rows_as_json()}::pg_catalog.text AS "row", ARRAY[{", ".join(plain)}]::pg_catalog.text[] AS "values",'
        f" ARRAY[{', '.join(numbers)}]::pg_catalog.float8[]::pg_catalog.text AS numbers"
    )
    key = f"ROW({', '.join(plain)})::pg_catalog.text"
    wheres = [f"{shown} {from_clause} ORDER BY pg_catalog.hashtextextended({key}, 0), {key} LIMIT {ROWS:d}"]
    ends = _ends(db, source, from_clause, kinds, column)
    for name, condition in ends:
        wheres.append(f"{shown} {from_clause} WHERE {column(name)} {condition} LIMIT {EXTREMES:d}")
    found: dict[str, dict[str, Any]] = {}
    for where in wheres:
        for row in _ask(db, source, f"SELECT {where}"):
            found.setdefault(
                row["row"],
                {**row, "values": [_value(v, k) for v, k in zip(row["values"], kinds.values(), strict=True)]},
            )
    return list(found.values())


def _ask(db: Database, source: Source, statement: str) -> list[Row]:
    return db.caged([source.query], lambda: db.query_once(statement))


def _ends(
    db: Database, source: Source, from_clause: str, kinds: dict[str, Kind], column: Any
) -> list[tuple[str, str]]:
    """Return the conditions that find a column's extremes and NULL, where the sample has more rows than are drawn."""
    parts = ["pg_catalog.count(*) AS n"]
    numeric = [n for n, k in kinds.items() if k not in ("string", "boolean")]
    for i, name in enumerate(kinds):
        parts.append(f"pg_catalog.count({column(name)}) AS k{i}")
        if name in numeric:
            parts += [
                f"pg_catalog.min({column(name)})::pg_catalog.text AS l{i}",
                f"pg_catalog.max({column(name)})::pg_catalog.text AS h{i}",
            ]
    [row] = _ask(db, source, f"SELECT {', '.join(parts)} {from_clause}")
    if row["n"] <= ROWS:
        return []
    found = []
    for i, name in enumerate(kinds):
        if row[f"k{i}"] < row["n"]:
            found.append((name, "IS NULL"))
        for end in ("l", "h"):
            value = row.get(f"{end}{i}")
            if value is not None:
                found.append((name, "OPERATOR(pg_catalog.=) " + quote_literal(value)))
    return found


def _value(text: str | None, kind: Kind) -> Any:
    """Return a value as Python's own: integers whole, however large."""
    if text is None or kind == "string":
        return text
    if kind == "boolean":
        return text == "true"
    return int(text) if kind == "integer" else float(text)


def _frame(rows: Sequence[dict[str, Any]], kinds: dict[str, Kind]) -> Frame:
    columns: dict[str, Column] = {}
    for place, (name, kind) in enumerate(kinds.items()):
        values = [row["values"][place] for row in rows]
        if kind == "string":
            columns[name] = Strings.from_values(values)
        else:
            columns[name] = np.array([np.nan if v is None else float(v) for v in values], np.float64)
    return Frame(tuple(Feature(n, k) for n, k in kinds.items()), columns)


def _shown(row: str, names: Sequence[str]) -> str:
    values = json.loads(row)
    text = json.dumps({name: values.get(name) for name in names}, ensure_ascii=False)
    return text if len(text) <= 600 else f"{text[:596]} ..."
