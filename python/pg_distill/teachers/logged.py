"""What a teacher that runs elsewhere has answered, as its log has it: probabilities, names of classes, or objects of both."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pg_distill.database.protocol import Database
from pg_distill.errors import InvalidData, InvalidParameter
from pg_distill.frame import Column, FloatArray, Frame, Strings, Task
from pg_distill.quoting import quote_identifier
from pg_distill.rows.canonical import match_labels, number_text
from pg_distill.rows.source import NO_ANSWER, Source
from pg_distill.serving.sql_models import check_outputs
from pg_distill.teachers.labels import MAX_CLASSES
from pg_distill.teachers.several import JSON, names_of, read_several, with_several

__all__ = ["Answers", "class_names", "read_answers", "read_logged"]

WHOLE = ("int2", "int4", "int8")
MOST_SHOWN = 5
LEAST_KNOWN = 0.5
"""Share of the answers that name a class of the model, below which the log is another model's."""


@dataclass(frozen=True)
class Answers:
    """``outputs`` (n, K) probabilities or (n, 1) values, rows of NaN where there is no answer; and what is odd about them."""

    outputs: FloatArray
    warnings: Sequence[str] = ()

    @property
    def given(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which rows have an answer, (n,)."""
        return np.asarray(np.isfinite(self.outputs).all(axis=1))


def read_logged(
    source: Source, columns: Sequence[str], label: str | None, task: Task | None = None
) -> Source:
    """Return the source with columns of JSON among a log's as their texts, and NULL told from NaN in the others.

    Of several labels those of arrays are JSON too, and the label.
    """
    if task == "multilabel":
        source = with_several(source, [*(columns if len(columns) == 1 else ()), label])
        if len(columns) == 1:
            return source
    source = source.with_answers(name for name in columns if name != label)
    return source.with_texts(
        name for name in columns if name in source.columns and source.columns[name].base in JSON
    )


def class_names(
    db: Database,
    source: Source,
    columns: Sequence[str],
    given: Sequence[str],
    task: Task | None = None,
    label: str | None = None,
) -> list[str] | None:
    """Return the classes that a log names, all of its rows read, in order; None where it names none.

    ``given`` are those that are known, which come first.

    Raises
    ------
    InvalidParameter
        It names more than a model can have.
    InvalidData
        It names none, or one.
    """
    if task == "multilabel":
        return names_of(db, source, [*columns, label] if len(columns) == 1 else [label])
    if len(columns) != 1 or columns[0] not in source.columns:
        return None
    found, name = source.columns[columns[0]], quote_identifier(columns[0])
    if found.base in JSON:
        text = f"(SELECT pg_catalog.jsonb_object_keys(s.{name}::pg_catalog.jsonb))"
        only = f"pg_catalog.jsonb_typeof(s.{name}::pg_catalog.jsonb) OPERATOR(pg_catalog.=) 'object'::pg_catalog.text"
        select = f"SELECT k.key AS name FROM ({source.query}\n) s, LATERAL {text} AS k(key) WHERE {only}"
    elif source.kind(columns[0]) == "string":
        select = (
            f"SELECT s.{name}::pg_catalog.text AS name FROM ({source.query}\n) s WHERE s.{name} IS NOT NULL"
        )
    else:
        return None
    rows = db.caged(
        [source.query],
        lambda: db.query_once(f"SELECT DISTINCT d.name FROM ({select}) d ORDER BY 1 LIMIT {MAX_CLASSES + 1}"),
    )
    names = [row["name"].rstrip(" ") if found.base == "bpchar" else row["name"] for row in rows]
    if len(names) > MAX_CLASSES:
        raise InvalidParameter(
            f'output column "{columns[0]}" names more than {MAX_CLASSES} classes',
            hint="Name the classes that count: classes => ARRAY[...]. Other answers are then taken for none.",
        )
    if not names:
        raise InvalidData(f'no row of the sample has an answer of the teacher in column "{columns[0]}"')
    if len(names) == 1 and not given:
        raise InvalidData(f'every answer of the teacher is "{names[0]}"')
    return [*given, *(text for text in names if text not in match_labels(names, given))]


def read_answers(
    extra: Mapping[str, Column],
    columns: Sequence[str],
    source: Source,
    task: Task,
    classes: Sequence[str],
    rows: Frame,
) -> Answers:
    """Return what a log holds for some rows.

    One column of strings, or of whole numbers for more than two classes, holds names of classes; one of JSON objects the
    probability of each class, where what a row does not name shares what is left of 1. Other columns are probabilities,
    one a class, or a value. A row with a NULL has no answer.

    Raises
    ------
    InvalidParameter
        Columns of strings among several, or for a regression.
    InvalidData
        Values that are no probabilities; no answer at all, one class only, mostly unknown classes.
    """
    first = extra[columns[0]]
    if len(columns) == 1 and task == "multilabel":
        assert isinstance(first, Strings)
        return _several(Answers(read_several(first, classes, rows.show_row)), columns[0], classes)
    if len(columns) == 1 and task != "regression":
        base = source.columns[columns[0]].base
        if isinstance(first, Strings):
            if base in JSON:
                answers = _objects(first, classes, rows)
                certain = bool((answers.outputs[answers.given].max(axis=1) == 1.0).all())
                return _checked(answers, columns[0], classes if certain else ())
            return _checked(_names(first, columns[0], classes), columns[0], classes)
        if base in WHOLE and task == "multiclass":
            known, inverse = np.unique(first, return_inverse=True)
            texts = [None if np.isnan(v) or v == NO_ANSWER else number_text(float(v), base) for v in known]
            names = Strings.from_values(np.array(texts, object)[inverse].tolist())
            return _checked(_names(names, columns[0], classes), columns[0], classes)
    stacked = []
    for name in columns:
        column = extra[name]
        if isinstance(column, Strings):
            raise InvalidParameter(
                f'output column "{name}" is of strings',
                hint="A log has one column of names of classes, or numbers: the probability of each class, or a value.",
            )
        stacked.append(column)
    raw = np.column_stack(stacked)
    given = ~(raw == NO_ANSWER).any(axis=1)
    width = 1 if task == "regression" else len(classes)
    outputs = np.full((len(raw), width), np.nan)
    outputs[given] = check_outputs(raw[given], task, classes, rows.take(np.flatnonzero(given)))
    return _checked(Answers(outputs), columns[0])


def _checked(answers: Answers, column: str, classes: Sequence[str] = ()) -> Answers:
    """Raise InvalidData where there is no answer, or where names of ``classes`` are all the same."""
    given = answers.given
    if not given.any():
        raise InvalidData(f'no row of the sample has an answer of the teacher in column "{column}"')
    if classes:
        named = np.unique(answers.outputs[given].argmax(axis=1))
        if len(named) == 1 and given.sum() > 1:
            raise InvalidData(f'every answer of the teacher is "{classes[int(named[0])]}"')
    return answers


def _several(answers: Answers, column: str, classes: Sequence[str]) -> Answers:
    """Raise InvalidData where several labels are all the same; warn of classes that no row has."""
    given = _checked(answers, column).outputs[answers.given]
    if ((given == 0) | (given == 1)).all() and len(given) > 1 and len(np.unique(given, axis=0)) == 1:
        names = ", ".join(name for name, own in zip(classes, given[0], strict=True) if own)
        raise InvalidData(
            f"every answer of the teacher is {{{names}}}",
            hint="A row that the teacher has not answered has NULL there, not an empty array.",
        )
    never = [name for name, most in zip(classes, given.max(axis=0), strict=True) if most == 0]
    warnings = _doubles(classes)
    if never:
        warnings.append(
            f'column "{column}" never names {", ".join(never[:MOST_SHOWN])}: nothing can be learned of'
            f" {'it' if len(never) == 1 else f'these {len(never)}'}"
        )
    return Answers(answers.outputs, warnings)


def _names(column: Strings, name: str, classes: Sequence[str]) -> Answers:
    """Return probabilities of 1 for the classes that are named."""
    column = column.compact()
    found = match_labels(column.categories, classes)
    codes = np.array([*(found.get(text, -1) for text in column.categories), -1])[column.codes]
    outputs = np.full((len(column), len(classes)), np.nan)
    outputs[codes >= 0] = np.eye(len(classes))[codes[codes >= 0]]
    warnings = _doubles(classes)
    unknown = [text for text in column.categories if text not in found]
    if unknown:
        rows = int(((column.codes >= 0) & (codes < 0)).sum())
        shown = ", ".join(f'"{text[:40]}"' for text in unknown[:MOST_SHOWN])
        said = f'column "{name}" names no class of the teacher in {rows} rows, such as {shown}'
        if rows > (1 - LEAST_KNOWN) * max(int((column.codes >= 0).sum()), 1):
            raise InvalidData(
                said, detail=f"Its classes are {', '.join(classes)}.", hint="Pass classes => ARRAY[...]."
            )
        warnings.append(f"{said}: they are taken for unanswered")
    return Answers(outputs, warnings)


def _as_seen(text: str) -> str:
    """Return a name without what tells it from another that people read as the same: case, blanks, width, what is not seen."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(
        "".join(c for c in folded if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace()).split()
    )


def _doubles(classes: Sequence[str]) -> list[str]:
    """Warn of classes that are one class written twice."""
    seen: dict[str, str] = {}
    out = []
    for text in classes:
        key = _as_seen(text)
        if key in seen:
            out.append(
                f'classes "{seen[key]}" and "{text}" may be one class, written twice: map them to one in the sample query'
            )
        seen.setdefault(key, text)
    return out


def _objects(column: Strings, classes: Sequence[str], rows: Frame) -> Answers:
    """Return the probabilities of JSON objects; what a class is not given is its share of what is left."""
    column = column.compact()
    first = {int(code): place for place, code in reversed(list(enumerate(column.codes.tolist())))}
    table = np.full((len(column.categories) + 1, len(classes)), np.nan)
    for code, text in enumerate(column.categories):
        given = json.loads(text)
        if given is None:
            continue

        def refuse(what: str, code: int = code, text: str = text) -> InvalidData:
            return InvalidData(
                f"the teacher gives {what} for a row",
                detail=f"The row has {rows.show_row(first[code])[:500]}; the teacher gives {text[:200]}.",
            )

        if not isinstance(given, dict):
            raise refuse("no object of probabilities by class")
        if not given:
            continue
        found = match_labels(list(given), classes)
        unknown = next((name for name in given if name not in found), None)
        if unknown is not None:
            raise refuse(f'class "{unknown[:40]}", which is none of its classes,')
        if not all(isinstance(p, int | float) and not isinstance(p, bool) for p in given.values()):
            raise refuse("a probability that is no number")
        row = np.zeros(len(classes))
        for name, probability in given.items():
            row[found[name]] = probability
        left = 1.0 - row.sum()
        if len(given) < len(classes) and left > 0:
            row[np.setdiff1d(np.arange(len(classes)), list(found.values()))] = left / (
                len(classes) - len(given)
            )
        table[code] = row
    outputs = table[column.codes]
    given_rows = np.isfinite(outputs).all(axis=1)
    if given_rows.any():
        where = np.flatnonzero(given_rows)
        outputs[where] = check_outputs(outputs[where], "multiclass", classes, rows.take(where))
    return Answers(outputs, _doubles(classes))
