"""Several labels a row: a column of arrays of names, of probabilities, or of objects of both, as a log or a label has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from pg_distill.database.protocol import Database
from pg_distill.errors import DatatypeMismatch, InvalidData, InvalidParameter
from pg_distill.frame import MAX_LABELS, FloatArray, Strings, Task, label_sets
from pg_distill.quoting import quote_identifier
from pg_distill.rows.canonical import FLOAT_ARRAYS, SEVERAL, SPECIAL_NUMBERS, match_labels
from pg_distill.rows.source import Source

__all__ = [
    "JSON",
    "check_classes",
    "is_several",
    "names_of",
    "read_several",
    "require_single",
    "sets_of",
    "task_of_column",
    "with_several",
]

JSON = ("json", "jsonb")
SHOWN = 200  # characters of a value in an error's detail


def is_several(source: Source, column: str) -> bool:
    """Whether a column is of arrays, whose values can be several labels."""
    return column in source.columns and source.columns[column].base in SEVERAL


def task_of_column(db: Database, source: Source, columns: Sequence[str], task: Task | None) -> Task | None:
    """Return the task of a log: that of several labels where its one column is of arrays and nobody says otherwise."""
    if task is not None or len(columns) != 1 or not is_several(source, columns[0]):
        return task
    db.notice(
        f'output column "{columns[0]}" is of type {source.shown(columns[0])}: the teacher is taken to give several labels a row'
        " (task multilabel)"
    )
    return "multilabel"


def with_several(source: Source, columns: Sequence[str | None]) -> Source:
    """Return the source with those of the columns that hold several values as JSON.

    Raises
    ------
    DatatypeMismatch
        One holds single values, which are no sets of labels.
    """
    known = [name for name in columns if name is not None and name in source.columns]
    for name in known:
        if source.columns[name].base not in (*SEVERAL, *JSON):
            raise DatatypeMismatch(
                f'column "{name}" is of type {source.shown(name)}, where a row has several labels',
                hint=f"In the sample's query write ARRAY[{quote_identifier(name)}] where it is one of them, or"
                " string_to_array of a list.",
            )
    return source.with_texts(known)


def require_single(source: Source, label: str | None) -> None:
    """Raise DatatypeMismatch where a label is of arrays, and the model not of several labels."""
    if label is not None and is_several(source, label) and label not in source.as_text:
        raise DatatypeMismatch(
            f'label column "{label}" is of type {source.shown(label)}, where a row has one label',
            hint="Where a row has several labels say so: task => 'multilabel'.",
        )


def check_classes(classes: Sequence[str] | None) -> list[str]:
    """Return the classes of a model of several labels; InvalidParameter where they are missing, or too few or too many."""
    if classes is None:
        raise InvalidParameter(
            "the classes of a model of several labels cannot be told from its answers",
            hint="Pass classes => ARRAY[...] in the order of the probabilities.",
        )
    if not 2 <= len(classes) <= MAX_LABELS:
        raise InvalidParameter(
            f"a model of several labels has 2 to {MAX_LABELS} classes, not {len(classes)}",
            hint="Name the classes that count, and leave the others out in the sample's query.",
        )
    return list(classes)


def names_of(db: Database, source: Source, columns: Sequence[str | None]) -> list[str] | None:
    """Return the classes that columns of several labels name, all of their rows read, in order; None where they name none."""
    found: set[str] = set()
    for column in columns:
        if column is None or column not in source.columns:
            continue
        if source.columns[column].base in FLOAT_ARRAYS:
            continue  # it has no names, though JSON writes its NaN as one
        j = f"pg_catalog.to_jsonb(s.{quote_identifier(column)})"
        kind = f"pg_catalog.jsonb_typeof({j}) OPERATOR(pg_catalog.=)"
        array = f"CASE WHEN {kind} 'array'::pg_catalog.text THEN {j} ELSE '[]'::pg_catalog.jsonb END"
        keys = f"CASE WHEN {kind} 'object'::pg_catalog.text THEN {j} ELSE '{{}}'::pg_catalog.jsonb END"
        text = "pg_catalog.jsonb_extract_path_text(a.v, VARIADIC '{}'::pg_catalog.text[])"
        strings = "pg_catalog.jsonb_typeof(a.v) OPERATOR(pg_catalog.=) 'string'::pg_catalog.text"
        names = (
            f"SELECT {text} AS name FROM pg_catalog.jsonb_array_elements({array}) a(v) WHERE {strings}"
            f" UNION ALL SELECT k.name FROM pg_catalog.jsonb_object_keys({keys}) k(name)"
        )
        rows = db.caged(
            [source.query],
            lambda names=names: db.query_once(  # type: ignore[misc]
                f"SELECT DISTINCT n.name FROM ({source.query}\n) s, LATERAL ({names}) n ORDER BY 1 LIMIT {MAX_LABELS + 1}"
            ),
        )
        found |= {row["name"] for row in rows}
    return sorted(found) or None


def read_several(
    column: Strings, classes: Sequence[str], shown: Callable[[int], str], what: str = "the teacher gives"
) -> FloatArray:
    """Return (n, K) probabilities of a column of JSON, rows of NaN for NULL.

    An array of names has probability 1 for these and 0 for all others; one of numbers a probability for each class, in
    their order, and where any row has such an empty one says nothing; an object the probability of each class that it names,
    and 0 for all others.

    Parameters
    ----------
    shown
        Writes a row, by its position, for an error's detail.

    Raises
    ------
    InvalidData
        A name that is no class or stands twice, NULL in an array, another number of probabilities, or none between 0 and 1.
    """
    column = column.compact()
    first = {int(code): place for place, code in reversed(list(enumerate(column.codes.tolist())))}
    table = np.full((len(column.categories) + 1, len(classes)), np.nan)
    read = [_parsed(text) for text in column.categories]
    # Of all rows at once: two names that are written apart somewhere are two names everywhere.
    places = match_labels(sorted({name for given in read for name in _named(given)}), classes)
    of_numbers = any(isinstance(given, list) and any(_is_number(v) for v in given) for given in read)
    for code, (given, text) in enumerate(zip(read, column.categories, strict=True)):
        if given is None:
            continue
        try:
            if of_numbers and given == []:
                raise ValueError(f"no probabilities, where {len(classes)} are expected,")
            table[code] = _row(given, places, len(classes))
        except ValueError as error:
            raise InvalidData(
                f"{what} {error} for a row",
                detail=f"The row has {shown(first[code])[:500]}; {what} {text[:SHOWN]}.",
                hint=f"The classes are {', '.join(classes)[:500]}.",
            ) from None
    return table[column.codes]


def _parsed(text: str) -> object:
    """Return a value of JSON; an Ellipsis, which is no row, of what PostgreSQL takes and Python does not, as 5,000 digits."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return ...


def _named(given: object) -> Iterator[str]:
    """Yield the names in a row."""
    if isinstance(given, dict | list):
        yield from (name for name in given if isinstance(name, str))


def _row(given: object, places: Mapping[str, int], n_classes: int) -> FloatArray:
    """Return (K,) the probabilities of a row; ValueError, with a phrase, where it is no row of these classes."""
    out = np.zeros(n_classes)
    if isinstance(given, dict):
        for name, value in given.items():
            out[_place(name, places)] = _probability(value)
        return out
    if not isinstance(given, list):
        raise ValueError("neither an array nor an object of probabilities by class")
    if any(value is None for value in given):
        raise ValueError("an array with NULL")
    if all(isinstance(value, str) for value in given):
        if any(value in SPECIAL_NUMBERS and value not in places for value in given):
            raise ValueError("a probability that is no number")
        if len(set(given)) < len(given):
            raise ValueError("a class twice")
        out[[_place(name, places) for name in given]] = 1.0
        return out
    if len(given) != n_classes:
        raise ValueError(f"{len(given)} probabilities, where {n_classes} are expected,")
    return np.array([_probability(value) for value in given])


def _place(name: str, places: Mapping[str, int]) -> int:
    if name not in places:
        raise ValueError(f'class "{name[:40]}", which is none of its classes,')
    return places[name]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, bool | int | float)


def _probability(value: object) -> float:
    if not _is_number(value):
        raise ValueError("a probability that is no number")
    if not 0 <= value <= 1:
        raise ValueError("a probability outside 0..1")
    return float(value)


def sets_of(label: Strings, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return (n,) `frame.label_sets` of a label column, -1 for NULL.

    Raises
    ------
    InvalidData
        As `read_several`; JSON's null; probabilities that are neither 0 nor 1; every row has the same labels.
    """
    if "null" in label.categories:
        raise InvalidData(
            "the label column has null as JSON",
            hint="A row without a label has SQL's NULL there, and one without a class an empty array.",
        )
    found = read_several(
        label, classes, lambda row: f"number {row + 1} of those drawn", "the label column has"
    )
    known = np.isfinite(found).all(axis=1)
    if ((found[known] > 0) & (found[known] < 1)).any():
        raise InvalidData("the label column has probabilities between 0 and 1, where a class is so or not")
    sets = np.where(known, label_sets(np.nan_to_num(found)), -1)
    if known.any() and len(np.unique(sets[known])) == 1:
        first = found[known][0]
        names = [c for c, own in zip(classes, first, strict=True) if own]
        raise InvalidData(f"every label of the sample is {{{', '.join(names)}}}")
    return sets
