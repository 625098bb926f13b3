"""Registering a teacher: check it, run it on the user's own rows, measure it, store it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from pg_distill.child.labelling import label_within
from pg_distill.child.messages import Inspection
from pg_distill.database.protocol import Database
from pg_distill.errors import (
    FeatureNotSupported,
    InvalidData,
    InvalidParameter,
    LimitExceeded,
    NullNotAllowed,
)
from pg_distill.frame import Column, Feature, FloatArray, Frame, Task
from pg_distill.measure import confidence, metrics
from pg_distill.measure.metrics import default_metric
from pg_distill.onnx_model.signature import MAX_TOKENS, Signature
from pg_distill.onnx_model.tokenizer import DEFAULT_TOKENS, attach, check_size
from pg_distill.quoting import quote_identifier
from pg_distill.registry import models
from pg_distill.registry.model import Model
from pg_distill.rows.labels import Label
from pg_distill.rows.sample import draw_rows
from pg_distill.rows.source import Source, check_columns, integers_beyond, lost_microseconds, resolve_source
from pg_distill.serving.approval import inspector, model_limits
from pg_distill.serving.sql_models import label_by_sql, signature_without_graph
from pg_distill.serving.timing import (
    contender_for,
    latency_figures,
    measure_latency,
    measured_here,
)
from pg_distill.teachers import claims, logged, several
from pg_distill.teachers.labels import as_labelled, positions, task_of, warn_of_classes
from pg_distill.teachers.reading import check_texts
from pg_distill.teachers.registration import Registration

__all__ = ["register_logged", "register_onnx", "register_sql"]

ROWS = 2000  # rows that a new model is run and measured on
LABEL_SECONDS = 5.0  # for a SQL expression to be run on them; a slow one is run on fewer
MIN_ROWS = 10  # of a slow expression: on fewer, accuracy says nothing
LATENCY_SECONDS = 0.75  # to time a new model; the run that distils it takes longer over it
SEED = 0  # of the rows and the bootstrap of a registration


def _accuracy_figures(
    task: Task,
    classes: Sequence[str],
    label: Label | None,
    outputs: FloatArray | None,
    class_threshold: float | None = None,
) -> dict[str, Any]:
    if label is None or outputs is None:
        return {}
    y = positions(label, task, classes)[: len(outputs)]
    metric = default_metric(task, labelled=True)
    outputs = metrics.judged(metric, outputs, class_threshold)
    interval = confidence.bootstrap_interval(metric, y, outputs, seed=SEED)
    return {
        "metric": metric,
        "accuracy": metrics.score(metric, y, outputs),
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
    }


def _say_what_is_missing(db: Database, asked: Registration, figures: Mapping[str, Any]) -> None:
    if asked.sample is None:
        db.notice("the model was not run on rows and nothing was measured, because no sample is named")
    elif asked.label is None:
        db.notice("accuracy was not measured, because no label column is named")
    elif figures.get("accuracy") is None:
        db.notice(f"accuracy was not measured, because the model was run on fewer than {MIN_ROWS} rows")


def _rows(
    db: Database, source: Source, features: Sequence[str], label: str | None, extra: Sequence[str] = ()
) -> tuple[Sequence[Feature], Frame, Label | None, Mapping[str, Column]]:
    columns = check_columns(source, features)
    several.require_single(source, label)
    frame, labels, others = draw_rows(db, source, columns, label=label, extra=extra, seed=SEED, limit=ROWS)
    if len(frame) == 0:
        raise InvalidData("the sample has no rows" + (" with a label" if label else ""))
    return frame.features, frame, labels, others  # which know how long vectors are


MAX_LISTED = 30  # names in a message


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_LISTED])
    return shown if len(names) <= MAX_LISTED else f"{shown} and {len(names) - MAX_LISTED} more"


def _read_as_text(db: Database, source: Source, names: Sequence[str]) -> Source:
    """Return the source with columns of integers that float64 cannot tell apart read as categories, and say so."""
    for name in names:
        column = quote_identifier(name)
        db.notice(
            f'column "{name}" has integers beyond 2**53, which double precision cannot tell apart: it is read as a category;'
            f" to have it as a rounded number, write {column}::float8 in the sample's query"
        )
    return replace(source, as_text=source.as_text | frozenset(names))


def register_onnx(
    db: Database,
    asked: Registration,
    *,
    artifact: bytes | None,
    expected: str | None = None,
    claim: claims.Claim | None = None,
    allow_difference: bool = False,
    class_threshold: float | None = None,
    tokenizer: bytes | None = None,
    max_tokens: int | None = None,
) -> str:
    """Register an ONNX file; return the model's id.

    Parameters
    ----------
    tokenizer
        The tokenizer.json of a transformer, which the file is stored with.
    max_tokens
        That it reads of a text.
    class_threshold
        Of two classes the probability of the last one from which the model names it, where that is not one half.
    expected
        A column of the sample that holds what predict is to say.
    claim
        Rows, and what predict is to say of them.
    allow_difference
        Whether it may say otherwise, which the registry then says.

    Raises
    ------
    InvalidArtifact, LimitExceeded, FeatureNotSupported
        The file is not ONNX, or refused.
    InvalidData, DatatypeMismatch, UndefinedColumn
        It does not fit the rows, or predicts otherwise than expected.
    """
    if artifact is None:
        raise NullNotAllowed("artifact must not be NULL")
    if asked.label is not None and asked.sample is None:
        raise InvalidParameter("a label column needs a sample that has it")
    if expected is not None and asked.task == "multilabel":
        raise FeatureNotSupported(
            "what a model of several labels is to predict cannot be given as a column",
            hint="Register it without expected, and compare predict_classes with the column in a query.",
        )
    if expected is not None and asked.sample is None:
        raise InvalidParameter("a column of expected predictions needs a sample that has it")
    if class_threshold is not None and not 0 < class_threshold < 1:
        raise InvalidParameter(f"class_threshold must be between 0 and 1, not {class_threshold}")
    max_tokens = DEFAULT_TOKENS if max_tokens is None else max_tokens
    if not 1 <= max_tokens <= MAX_TOKENS:
        raise InvalidParameter(f"max_tokens must be between 1 and {MAX_TOKENS}, not {max_tokens}")
    if tokenizer is not None:
        check_size(tokenizer)
        artifact = attach(artifact, tokenizer)
    limit, run_bytes = model_limits(db)
    if len(artifact) > limit:
        raise LimitExceeded(f"artifact has {len(artifact)} bytes, more than the limit of {limit}")
    frame: Frame | None = None
    labels: Label | None = None
    types: Mapping[str, str] = {}
    source: Source | None = None

    def inspect(
        names: Sequence[str] | None = None,
        columns: Sequence[Feature] | None = None,
        rows: Frame | None = None,
    ) -> Inspection:
        with inspector(db) as child:
            return child.inspect(
                artifact,
                names=names,
                features=columns,
                rows=rows,
                task=asked.task,
                classes=asked.classes,
                max_bytes=limit,
                run_bytes=run_bytes,
                class_threshold=class_threshold,
                max_tokens=max_tokens,
            )

    # No child lives while the sample runs: it is the caller's SQL, and may take as long as it likes.
    features = asked.features
    if asked.sample is None:
        found = inspect(features)
    else:
        source = resolve_source(db, asked.sample, stored=True)
        if asked.task == "multilabel":
            source = several.with_several(source, [asked.label])
        if features is None:
            # A graph with an input a column names its columns; one with a tensor takes what the sample has.
            signature = inspect().signature if tokenizer is None else None
            if signature is None or signature.max_tokens is not None:
                features = [_text_column(source, asked.label, expected)]
                db.notice(f'the model is taken to read column "{features[0]}"')
            elif set(signature.names) <= set(source.columns):
                features = signature.names
            elif set(inputs := [spec.name for spec in signature.inputs]) <= set(source.columns):
                features = inputs
            else:
                features = [c for c in source.kinds if c not in (asked.label, expected)]
                single = [c for c in features if source.kinds[c] != "vector"]
                features = single if len(single) == len(signature.names) else features
                db.notice(
                    f"the model's inputs are taken to be these columns, in this order: {_list(features)}"
                )
        columns, frame, labels, _ = _rows(db, source, features, asked.label)
        beyond = integers_beyond(source, frame)
        if beyond:
            whole = set(beyond)
            with suppress(InvalidData):  # of a model that fails on rows that are made up
                graph = inspect(columns=columns).signature
                whole = {graph.names[i] for g in graph.inputs if g.element == "int64" for i in g.features}
            if rounded := [name for name in beyond if name not in whole]:
                db.notice(f"the model takes floats: integers beyond 2**53 are rounded in {_list(rounded)}")
            if exact := [name for name in beyond if name in whole]:
                source = _read_as_text(db, source, exact)
                columns, frame, labels, _ = _rows(db, source, features, asked.label)
        types = {f.name: source.types[f.name] for f in columns}
        found = inspect(columns=columns, rows=frame)
    signature = found.signature
    check_texts(signature.features, asked.text_columns)
    if class_threshold is not None and signature.task != "binary":
        raise InvalidParameter("class_threshold is of a model of two classes")
    own_classes = asked.classes is None or (claim is not None and claim.own_classes)
    if labels is not None and own_classes and signature.task in ("binary", "multiclass"):
        renamed = as_labelled(signature, labels)
        if claim is not None:
            claim = claim.renamed(dict(zip(signature.classes, renamed.classes, strict=True)))
        signature = renamed
    figures: dict[str, Any] = {}
    if asked.task is None and asked.classes is None:
        _require_classes(signature, labels)
    if frame is not None and source is not None:
        figures.update(
            _accuracy_figures(signature.task, signature.classes, labels, found.outputs, class_threshold)
        )
        warn_of_classes(db, asked.name, signature.task, signature.classes, labels, found.outputs)
        if len(found.outputs) < len(frame):
            db.notice(
                f"measured on {len(found.outputs)} of {len(frame)} rows, because the model is a transformer, which takes its time"
            )
    model = models.insert_model(
        db,
        name=asked.name,
        version=asked.version,
        task=signature.task,
        kind="onnx",
        artifact=artifact,
        expression=None,
        signature=signature,
        sample=source.query if source is not None else None,
        label=asked.label,
        figures={},
        types=types,
        text_columns=asked.text_columns,
        class_threshold=class_threshold,
    )
    if expected is not None and source is not None:
        claim = claims.claim_of_column(db, source, model, expected)
    if claim is not None:
        figures["origin"] = claims.require_claim(db, model, claim, allow_difference=allow_difference)
    if frame is not None:
        figures.update(_timed(db, model, frame))
    models.update_figures(db, model.id, figures)
    _say_what_is_missing(db, asked, figures)
    return model.id


def _text_column(source: Source, *others: str | None) -> str:
    """Return the column that a model of texts reads, where nobody has named it: the only one of strings."""
    found = [name for name, kind in source.kinds.items() if kind == "string" and name not in others]
    if len(found) != 1:
        raise InvalidParameter(
            f"the model reads one text, and the sample has {len(found)} columns of strings",
            hint="Name the column: features => '{body}'.",
        )
    return found[0]


def _timed(db: Database, model: Model, frame: Frame) -> dict[str, Any]:
    """Time a model where predict runs; return that as columns of ``distill.models``."""
    contender = contender_for(db, model)
    timing = measure_latency(db, [contender], frame, seed=SEED, seconds=LATENCY_SECONDS)[contender.name]
    return latency_figures(timing) | measured_here(db, len(frame), contender.path, timing)


def _require_classes(signature: Signature, label: Label | None) -> None:
    """Refuse to take for logits what nobody said were any, and what the label has far fewer classes than."""
    if label is None or signature.task != "multiclass" or signature.output.form != "logits":
        return
    seen = label.names()
    if 2 * len(seen) < len(signature.classes):
        raise InvalidParameter(
            f"model gives {len(signature.classes)} numbers a row, which are no probabilities, and the label has"
            f" {len(seen)} classes: it may be an embedding",
            hint="Where they are logits say so: task => 'multiclass', classes => ARRAY[...].",
        )


def register_sql(
    db: Database,
    asked: Registration,
    *,
    expression: str | None,
) -> str:
    """Register a SQL expression over the features; return the model's id."""
    if expression is None or asked.features is None or asked.sample is None:
        raise NullNotAllowed("expression, features and sample must not be NULL")
    source = resolve_source(db, asked.sample, stored=True)
    if asked.task == "multilabel":
        source = several.with_several(source, [asked.label])
    columns, frame, labels, _ = _rows(db, source, asked.features, asked.label)
    if beyond := integers_beyond(source, frame):
        source = _read_as_text(db, source, beyond)
        columns, frame, labels, _ = _rows(db, source, asked.features, asked.label)
    for column, first in lost_microseconds(db, source, frame).items():
        db.warning(
            f'column "{column}" has timestamps whose microseconds double precision does not hold, such as {first}:'
            " the expression gets them rounded"
        )
    found_task, found_classes = task_of(
        asked.task, asked.classes, labels, len(asked.classes or ()) if asked.task == "multiclass" else 1
    )
    signature = signature_without_graph(columns, found_task, found_classes)
    check_texts(columns, asked.text_columns)
    types = {f.name: source.types[f.name] for f in columns}
    with db.subtransaction():
        model = models.insert_model(
            db,
            name=asked.name,
            version=asked.version,
            task=found_task,
            kind="sql",
            artifact=None,
            expression=expression,
            signature=signature,
            sample=source.query,
            label=asked.label,
            figures={},
            types=types,
            text_columns=asked.text_columns,
        )
        started = time.monotonic()
        outputs = label_within(
            lambda rows: label_by_sql(db, model, rows),
            frame,
            LABEL_SECONDS,
            at_least=1,
            at_most_seconds=math.inf,
        )
        if len(outputs) < len(frame):
            a_row = (time.monotonic() - started) / len(outputs)
            db.notice(
                f"measured on {len(outputs)} of {len(frame)} rows, because the expression takes {a_row:.3g} s a row"
            )
            frame = frame.take(np.arange(len(outputs)))
            labels = labels if len(outputs) >= MIN_ROWS else None
        figures = _accuracy_figures(found_task, found_classes, labels, outputs)
        warn_of_classes(db, asked.name, found_task, found_classes, labels, outputs)
        figures.update(_timed(db, model, frame))
        models.update_figures(db, model.id, figures)
        _say_what_is_missing(db, asked, figures)
    return model.id


def register_logged(
    db: Database,
    asked: Registration,
    *,
    outputs: Sequence[str] | None,
    latency_ms: float | None,
) -> str:
    """Register a teacher that runs elsewhere by its logged outputs; return the model's id."""
    import json

    if outputs is None or asked.features is None or asked.sample is None:
        raise NullNotAllowed("outputs, features and sample must not be NULL")
    if not outputs:
        raise InvalidParameter("a logged model has at least one output column")
    if latency_ms is not None and not (latency_ms > 0 and np.isfinite(latency_ms)):
        raise InvalidParameter(f"latency_ms must be above 0, not {latency_ms}")
    source = resolve_source(db, asked.sample, stored=True)
    task = several.task_of_column(db, source, outputs, asked.task)
    source = logged.read_logged(source, outputs, asked.label, task)
    columns, frame, labels, extra = _rows(db, source, asked.features, asked.label, outputs)
    if beyond := integers_beyond(source, frame):
        source = _read_as_text(db, source, beyond)
        columns, frame, labels, extra = _rows(db, source, asked.features, asked.label, outputs)
    check_texts(columns, asked.text_columns)
    classes = asked.classes
    if classes is None and task != "regression":
        known = labels.names() if labels is not None and labels.texts is not None else []
        classes = logged.class_names(db, source, outputs, known, task, asked.label)
    found_task, found_classes = task_of(task, classes, labels, len(outputs))
    answers = logged.read_answers(extra, outputs, source, found_task, found_classes, frame)
    for text in answers.warnings:
        db.warning(text)
    answered = np.flatnonzero(answers.given)
    if len(answered) < len(frame):
        db.notice(f"{len(frame) - len(answered)} of {len(frame)} rows have no answer of the teacher")
        frame = frame.take(answered)
        labels = labels.take(answered) if labels is not None else None
    checked = answers.outputs[answered]
    figures = _accuracy_figures(found_task, found_classes, labels, checked)
    warn_of_classes(db, asked.name, found_task, found_classes, labels, checked)
    figures.update(measured_here(db, len(frame), "declared" if latency_ms is not None else "none", None))
    figures.update({"avg_latency_ms": latency_ms, "latency_declared": latency_ms is not None})
    model = models.insert_model(
        db,
        name=asked.name,
        version=asked.version,
        task=found_task,
        kind="logged",
        artifact=None,
        expression=json.dumps(list(outputs)),
        signature=signature_without_graph(columns, found_task, found_classes),
        sample=source.query,
        label=asked.label,
        figures=figures,
        types={f.name: source.types[f.name] for f in columns},
        text_columns=asked.text_columns,
    )
    _say_what_is_missing(db, asked, figures)
    return model.id
