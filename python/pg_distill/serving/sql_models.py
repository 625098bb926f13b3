"""What gives soft labels: an ONNX artifact, a SQL expression, logged predictions.

An ONNX teacher travels to the trainer's child and labels there. A SQL teacher cannot: the child asks its parent,
through the pipe, to label rows. A logged teacher labels only the rows that it has logged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from pg_distill.database.protocol import Database
from pg_distill.errors import ArtifactCorrupted, InvalidData
from pg_distill.frame import Feature, FloatArray, Frame, Task
from pg_distill.onnx_model.signature import FeatureSpec, Form, OutputSpec, Signature
from pg_distill.onnx_model.values import checked_vectors
from pg_distill.registry.model import Model
from pg_distill.rows.canonical import check_exact, rows_sql

__all__ = [
    "check_outputs",
    "evaluate",
    "label_by_sql",
    "logged_columns",
    "signature_without_graph",
]

LABEL_BATCH = 1024  # rows a statement: interrupts and the time budget are looked at in between
SUM_TOLERANCE = 1e-3  # how far probabilities may be from a sum of 1: float4 logs of three digits pass


def signature_without_graph(features: Sequence[Feature], task: Task, classes: Sequence[str]) -> Signature:
    """Return the signature of a model that is no graph: a SQL expression or logged columns."""
    form: Form = "value" if task == "regression" else "probabilities"
    width = 1 if task == "regression" else len(classes)
    specs = tuple(FeatureSpec(f.name, f.kind, "string" if f.is_string else "nan", f.length) for f in features)
    return Signature(specs, (), OutputSpec("", form, width, "float64"), task, tuple(classes))


def logged_columns(model: Model) -> list[str]:
    """Return the columns that hold a logged teacher's outputs."""
    try:
        columns = json.loads(model.columns or "")
    except ValueError:
        columns = None
    if not isinstance(columns, list) or not columns or not all(isinstance(c, str) for c in columns):
        raise ArtifactCorrupted(f'stored columns of model "{model.qualified_name}" are not readable')
    return columns


def check_outputs(outputs: FloatArray, task: Task, classes: Sequence[str], rows: Frame) -> FloatArray:
    """Return a teacher's raw outputs (n, m) as (n, K) probabilities or (n, 1) values.

    One column for a binary task is the probability of the last class.

    Raises
    ------
    InvalidData
        NULL, NaN, infinity, a probability outside 0..1 or rows that do not sum to 1; names the first such row.
    """
    width = 1 if task == "regression" else len(classes)
    if outputs.shape[1] == 1 and task == "binary":
        outputs = np.column_stack([1.0 - outputs[:, 0], outputs[:, 0]])
    if outputs.shape[1] != width:
        raise InvalidData(f"the teacher gives {outputs.shape[1]} values a row, where {width} are expected")
    if task == "multilabel" and len(outputs) and outputs.min() >= 0.0 and outputs.max() <= 1.0:  # neither NaN
        return outputs
    if _are_probabilities(outputs) if task != "regression" else np.isfinite(outputs).all():
        return outputs if task == "regression" else outputs / outputs.sum(axis=1, keepdims=True)
    faults = {"NULL, NaN or infinity": np.any(~np.isfinite(outputs), axis=1, keepdims=True)}
    if task != "regression":
        outside = (outputs < -SUM_TOLERANCE) | (outputs > 1 + SUM_TOLERANCE)
        faults["a probability outside 0..1"] = np.any(outside, axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # infinities of both signs
            off = np.abs(outputs.sum(axis=1, keepdims=True) - 1)
        if task != "multilabel":
            faults["probabilities that do not sum to 1"] = off > SUM_TOLERANCE * max(1, width / 10)
    bad = np.hstack(list(faults.values()))
    if bad.any():
        position = int(np.argmax(bad.any(axis=1)))
        what = list(faults)[int(np.argmax(bad[position]))]
        raise InvalidData(
            f"the teacher gives {what} for a row",
            detail=_which_row(rows, position, outputs[position].tolist()),
        )
    if task == "regression":
        return outputs
    clipped = np.clip(outputs, 0.0, 1.0)
    if task == "multilabel":
        return np.asarray(clipped, np.float64)
    return np.asarray(clipped / clipped.sum(axis=1, keepdims=True), np.float64)


def _are_probabilities(outputs: FloatArray) -> bool:
    """Whether nothing has to be looked at more closely: what a prediction of one row is to cost little."""
    if not len(outputs) or not (outputs.min() >= 0.0 and outputs.max() <= 1.0):  # as neither NaN is
        return False
    sums = outputs.sum(axis=1)
    return bool(sums.min() >= 1 - SUM_TOLERANCE and sums.max() <= 1 + SUM_TOLERANCE)


def _which_row(rows: Frame, position: int, given: object) -> str:
    return f"The row has {rows.show_row(position)}; the teacher gives {given}."


def label_by_sql(db: Database, model: Model, rows: Frame) -> FloatArray:
    """Evaluate a SQL model over the rows, read-only, in batches that can be interrupted.

    Returns
    -------
    (n, K) probabilities, or (n, 1) values.
    """
    assert model.expression is not None
    return evaluate(db, model.expression.text_for_caller(db), model, rows)


def evaluate(db: Database, expression: str, model: Model, rows: Frame) -> FloatArray:
    """Do what `label_by_sql` does, for who has asked for the expression already."""
    for feature in model.signature.features:
        if feature.is_vector:
            checked_vectors(feature, "float64", rows.vector(feature.name))
        elif not feature.is_string:
            check_exact(feature.name, rows.number(feature.name), model.types.get(feature.name))
    out = np.empty((len(rows), model.signature.width))
    for start in range(0, len(rows), LABEL_BATCH):
        batch = rows.take(np.arange(start, min(start + LABEL_BATCH, len(rows))))
        array = "ARRAY[e::pg_catalog.float8]" if model.signature.one_number else "e"
        # OFFSET 0 keeps the expression to one evaluation a row.
        statement = (
            f"SELECT ({array})::pg_catalog.float8[] AS outputs FROM (SELECT ({expression}\n) AS e FROM"
            f" {rows_sql(model.signature.features, model.types, batch)} s OFFSET 0) o"
        )
        result = db.caged(
            [expression, *model.types.values()],
            lambda statement=statement: db.query_once(statement),  # type: ignore[misc]
            expressions=True,
        )
        expected = 1 if model.signature.one_number else model.signature.width
        given = [row["outputs"] for row in result]
        wrong = (p for p, g in enumerate(given) if g is None or len(g) != expected or isinstance(g[0], list))
        position = next(wrong, len(given))
        # What comes before it first: the first bad row is named, whatever is wrong with it.
        raw = np.array(given[:position], np.float64).reshape(position, expected)
        checked = check_outputs(raw, model.task, model.signature.classes, batch)
        if position < len(given):
            raise InvalidData(
                f"the teacher gives no array of {expected} values for a row",
                detail=_which_row(batch, position, given[position]),
            )
        out[start : start + len(batch)] = checked
        db.check_interrupts()
    return out
