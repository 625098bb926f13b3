"""What a model's own library says of rows, held against what predict says of them before the model is registered."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.database.protocol import Database
from pg_distill.errors import InvalidData, InvalidParameter
from pg_distill.frame import Column, Feature, FloatArray, Strings
from pg_distill.measure.comparison import Difference, compare, important_first
from pg_distill.quoting import array_text
from pg_distill.registry.model import Model
from pg_distill.rows.canonical import match_labels
from pg_distill.rows.sample import draw_with_rows
from pg_distill.rows.source import Source

__all__ = ["Claim", "claim_of_column", "read_claim", "require_claim"]

ROWS = 2000  # of a column of expected predictions
SECONDS = 5.0  # for predict to be asked; a slow model is asked about fewer rows
FIRST_ROWS = 128  # asked about however long it takes, and before anything is known of the speed
GROWTH = 4
SHOWN_CHARACTERS = 600  # of a row in an error's DETAIL
LARGEST_EXACT = 2**53


@dataclass(frozen=True)
class Claim:
    """Rows and what predict is to say of them.

    Attributes
    ----------
    rows
        Each as a jsonb object's text.
    arrays
        Each as the text of an array of its features' numbers; None where one is a string.
    outputs, labels
        As in `comparison.compare`: of several labels a text of a 0 or 1 for each.
    origin
        Who says so: what stands in the registry beside the figures.
    own_classes
        Whether the names of the classes are the library's, and not the user's.
    """

    rows: Sequence[str]
    arrays: Sequence[str] | None
    outputs: FloatArray | None
    labels: npt.NDArray[np.object_] | None
    origin: Mapping[str, Any]
    own_classes: bool = False

    def renamed(self, names: Mapping[str, str]) -> Claim:
        """Return the claim with other names of the classes."""
        if self.labels is None:
            return self
        return replace(self, labels=np.array([names.get(text, text) for text in self.labels], object))


def read_claim(rows: Sequence[str], arrays: Sequence[str] | None, expected: str, origin: str) -> Claim:
    """Return the claim that a client sends: ``expected`` and ``origin`` are JSON objects."""
    try:
        given, said = json.loads(expected), json.loads(origin)
        outputs = given["outputs"]
        labels = given["labels"]
        if labels is not None and not all(isinstance(text, str) for text in labels):
            raise ValueError("labels are texts")
        claim = Claim(
            rows,
            arrays,
            None if outputs is None else np.array(outputs, np.float64).reshape(len(rows), -1),
            None if labels is None else np.array(labels, object),
            dict(said),
            bool(given.get("own_classes")),
        )
        whole = (labels is None or len(labels) == len(rows)) and (arrays is None or len(arrays) == len(rows))
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidParameter("expected and origin must be what pg-distill register sends") from error
    if not whole or not rows:
        raise InvalidParameter("rows, arrays and expected must be as many")
    return claim


def claim_of_column(db: Database, source: Source, model: Model, column: str) -> Claim:
    """Return the claim that a column of the sample makes: classes' names, the probability of the last class, or values.

    Raises
    ------
    InvalidData
        The column holds neither.
    """
    features = tuple(Feature(f.name, f.kind) for f in model.signature.features)
    frame, expected, rows = draw_with_rows(db, source, features, column, limit=ROWS)
    known = expected.codes >= 0 if isinstance(expected, Strings) else ~np.isnan(expected)
    order = [int(i) for i in important_first(frame) if known[i]]
    if not order:
        raise InvalidData(f'column "{column}" holds no expected prediction')
    arrays = None
    if model.signature.is_numeric:
        arrays = ["{" + ",".join(map(repr, row)) + "}" for row in frame.cells()[order].tolist()]
    outputs, labels = _expected(expected, source, model, column, np.array(order))
    return Claim([rows[i] for i in order], arrays, outputs, labels, {"column": column})


def _expected(
    values: Column, source: Source, model: Model, column: str, order: npt.NDArray[Any]
) -> tuple[FloatArray | None, npt.NDArray[np.object_] | None]:
    signature = model.signature
    if signature.task == "regression":
        if isinstance(values, Strings):
            raise InvalidData(f'column "{column}" is of texts, but the model gives values')
        return values[order].reshape(-1, 1), None
    numbers = values[order] if not isinstance(values, Strings) and source.kind(column) == "number" else None
    if numbers is not None and signature.task == "binary" and not set(np.unique(numbers)) <= {0.0, 1.0}:
        if numbers.min() < 0 or numbers.max() > 1:
            raise InvalidData(
                f'column "{column}" holds no probabilities',
                hint="Name a column of probabilities or of classes.",
            )
        return numbers.reshape(-1, 1), None
    if isinstance(values, Strings):
        known = [_class(signature.classes, column, [c]) for c in values.categories]
        return None, np.array(known, object)[values.codes[order]]
    each = {v: _class(signature.classes, column, _written(v)) for v in np.unique(values[order]).tolist()}
    return None, np.array([each[v] for v in values[order].tolist()], object)


def _written(value: float) -> list[str]:
    """Return the texts under which a number or a truth value may be a class."""
    whole = [str(int(value))] if value.is_integer() else []
    return [*whole, *({1.0: ["true", "True"], 0.0: ["false", "False"]}.get(value, [])), repr(value)]


def _class(classes: Sequence[str], column: str, texts: Sequence[str]) -> str:
    for text in texts:
        for position in match_labels([text], classes).values():
            return classes[position]
    raise InvalidData(
        f'column "{column}" holds "{texts[0]}", which is not among the classes of the model',
        detail=f"The model's classes are {', '.join(classes)}.",
    )


def require_claim(db: Database, model: Model, claim: Claim, *, allow_difference: bool) -> dict[str, Any]:
    """Hold a claim against predict's own path; return what stands in the registry.

    Raises
    ------
    InvalidData
        They differ, and that is not allowed; the error shows the row that differs most.
    """
    difference, found, labels = _ask(db, model, claim)
    said = {
        **claim.origin,
        "rows": difference.rows,
        "largest_difference": difference.largest,
        "other_class": None if claim.labels is None else difference.classes,
        "holds": difference.holds,
    }
    if difference.worst is None:
        return said
    worst = difference.worst
    message = (
        f'model "{model.name}" predicts otherwise than {_who(claim)} in the row that differs most,'
        f" of {difference.rows} that were compared"
    )
    detail = (
        f"Row {_shown(model, claim.rows[worst])}: {_who(claim)} gives {_answer(model, claim.outputs, claim.labels, worst)},"
        f" predict {_answer(model, found, labels, worst)}."
    )
    if allow_difference:
        db.warning(f"{message}, which was allowed; {detail}")
        return said
    raise InvalidData(message, detail=detail, hint=_hint(model, claim, worst))


def _who(claim: Claim) -> str:
    return str(claim.origin.get("library") or f'column "{claim.origin.get("column")}"')


def _ask(
    db: Database, model: Model, claim: Claim
) -> tuple[Difference, FloatArray, npt.NDArray[np.object_] | None]:
    """Ask predict about the rows, the first ones first, until all are asked or the time is over."""
    started = time.monotonic()
    start, size = 0, FIRST_ROWS
    outputs: list[FloatArray] = []
    labels: list[npt.NDArray[np.object_]] = []
    while start < len(claim.rows) and (start == 0 or time.monotonic() - started < SECONDS):
        part = slice(start, start + size)
        found, named = _predict(db, model, claim.rows[part], "jsonb")
        if claim.arrays is not None and model.signature.is_numeric:
            again, _ = _predict(db, model, claim.arrays[part], "float8[]")
            off, other = np.abs(found - again), np.isnan(found) != np.isnan(again)
            # Of the two forms the one that is farther from what is expected counts.
            worse = (np.nan_to_num(off, nan=0.0) > 0) | other
            if claim.outputs is not None and worse.any():
                expected = claim.outputs[part]
                far = np.abs(again[:, -expected.shape[1] :] - expected).max(axis=1)
                near = np.abs(found[:, -expected.shape[1] :] - expected).max(axis=1)
                found = np.where((np.isnan(far) | (far > near)).reshape(-1, 1), again, found)
        outputs.append(found)
        if named is not None:
            labels.append(named)
        start, size = part.stop, size * GROWTH
        db.check_interrupts()
    found = np.concatenate(outputs)
    named = np.concatenate(labels) if labels else None
    n = len(found)
    difference = compare(
        model.task,
        outputs=None if claim.outputs is None else claim.outputs[:n],
        labels=None if claim.labels is None else claim.labels[:n],
        found=found,
        found_labels=named,
        classes=model.signature.classes,
        class_threshold=model.class_threshold,
    )
    return difference, found, named


def _predict(
    db: Database, model: Model, rows: Sequence[str], form: str
) -> tuple[FloatArray, npt.NDArray[np.object_] | None]:
    """Return what predict says of rows that are given as jsonb objects or arrays of numbers."""
    kind = "pg_catalog.jsonb" if form == "jsonb" else "pg_catalog.float8[]"
    if model.task == "regression":
        answers, labels = f"array[distill.predict($1, u.r::{kind})]", "null::pg_catalog.text"
    else:
        named = "predict_classes" if model.task == "multilabel" else "predict_class"
        answers, labels = f"distill.predict_proba($1, u.r::{kind})", f"distill.{named}($1, u.r::{kind})"
    found = db.query(
        f"select {answers} as outputs, {labels} as label"
        " from pg_catalog.unnest($2) with ordinality u(r, n) order by u.n",
        ("text", model.qualified_name),
        ("text[]", list(rows)),
    )
    outputs = np.array([row["outputs"] for row in found], np.float64).reshape(len(rows), -1)
    if model.task == "regression":
        return outputs, None
    if model.task == "multilabel":
        classes = model.signature.classes
        bits = ["".join(str(int(name in row["label"])) for name in classes) for row in found]
        return outputs, np.array(bits, object)
    return outputs, np.array([row["label"] for row in found], object)


def _answer(
    model: Model, outputs: FloatArray | None, labels: npt.NDArray[np.object_] | None, row: int
) -> str:
    parts = []
    if outputs is not None:
        values = [float(f"{v:.6g}") for v in outputs[row].tolist()]
        parts.append(repr(values[0]) if len(values) == 1 else repr(values))
    if labels is not None and model.task == "multilabel":
        named = [name for name, bit in zip(model.signature.classes, labels[row], strict=False) if bit == "1"]
        parts.append(f"classes {array_text(named)}")
    elif labels is not None:
        parts.append(f'class "{labels[row]}"')
    return " and ".join(parts)


def _shown(model: Model, row: str) -> str:
    values = json.loads(row)
    text = json.dumps({name: values.get(name) for name in model.signature.names}, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 4]} ..."


def _hint(model: Model, claim: Claim, worst: int) -> str:
    values = json.loads(claim.rows[worst])
    large = [
        f.name
        for f in model.signature.features
        if isinstance(values.get(f.name), int) and abs(values[f.name]) > LARGEST_EXACT
    ]
    otherwise = "register what it says as columns (distill.register_logged_model), or allow it"
    allow = "--allow-difference" if "library" in claim.origin else "allow_difference => true"
    if large:
        return (
            f'Integers beyond 2**53, as in column "{large[0]}", are rounded: cast it to text in the sample and learn from texts;'
            f" or {otherwise} ({allow})."
        )
    narrow = any(spec.element == "float32" for spec in model.signature.inputs)
    if narrow and "library" not in claim.origin:
        return (
            "Export it with inputs of doubles (skl2onnx: DoubleTensorType) where float32 loses digits;"
            f" or {otherwise} ({allow})."
        )
    return f"{otherwise[0].upper()}{otherwise[1:]} ({allow})."
