"""Registering a teacher: check it, run it on the user's own rows, measure it, store it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.child.labelling import label_within
from pg_distill.child.messages import Inspection
from pg_distill.database.protocol import Database
from pg_distill.errors import (
    InvalidData,
    InvalidParameter,
    LimitExceeded,
    NullNotAllowed,
)
from pg_distill.frame import Column, Feature, FloatArray, Frame, Strings, Task
from pg_distill.measure import confidence, decisions, latency, metrics
from pg_distill.onnx_model.signature import Signature
from pg_distill.quoting import quote_identifier
from pg_distill.registry import models, rights
from pg_distill.registry.model import check_name
from pg_distill.rows.canonical import match_labels
from pg_distill.rows.sample import Label, draw_rows
from pg_distill.rows.source import Source, check_columns, integers_beyond, lost_microseconds, resolve_source
from pg_distill.serving.approval import inspector, model_limits
from pg_distill.serving.sql_models import check_outputs, label_by_sql, logged_outputs, signature_without_graph
from pg_distill.serving.timing import Timing, contender_for, describe_machine, measure_latency
from pg_distill.teachers import claims

__all__ = [
    "default_metric",
    "latency_figures",
    "positions",
    "register_logged",
    "register_onnx",
    "register_sql",
]

ROWS = 2000  # rows that a new model is run and measured on
LABEL_SECONDS = 5.0  # for a SQL expression to be run on them; a slow one is run on fewer
MIN_ROWS = 10  # of a slow expression: on fewer, accuracy says nothing
LATENCY_SECONDS = 3.0  # to time a new model; the run that distils it takes longer over it
SEED = 0  # of the rows and the bootstrap of a registration
MAX_CLASSES = 100


def default_metric(task: Task, labelled: bool) -> str:
    """Return the metric that is used where none is asked for."""
    if not labelled:
        return "agreement"
    return "r2" if task == "regression" else "accuracy"


def positions(label: Label | Strings, task: Task, classes: Sequence[str]) -> npt.NDArray[Any]:
    """Return labels as class positions, -1 for NULL; or as values, NaN for NULL.

    A label and a class are the same as `match_labels` says.

    Raises
    ------
    InvalidData
        A label that is none of the classes; one class only; text or an infinite value for a regression.
    """
    if task == "regression":
        values = label.values if isinstance(label, Label) else label
        if isinstance(values, Strings):
            raise InvalidData("the label column is of strings, but the model is a regression")
        if np.isinf(values).any():
            raise InvalidData(
                "the label column has an infinite value: no error of a prediction is defined for it"
            )
        return values
    texts = label.texts if isinstance(label, Label) else label
    assert texts is not None
    seen = _seen(texts)
    found = match_labels(seen, classes)
    unknown = next((text for text in seen if text not in found), None)
    if unknown is not None:
        raise InvalidData(
            f'label "{unknown}" is not among the classes of the model',
            detail=f"The model's classes are {', '.join(classes)}.",
            hint="Map labels to classes in the sample query.",
        )
    y = np.array([*(found.get(text, -1) for text in texts.categories), -1], np.int64)[texts.codes]
    present = np.unique(y[y >= 0])
    if len(present) == 1:
        raise InvalidData(f'every label of the sample is "{classes[int(present[0])]}"')
    return y


def _seen(texts: Strings) -> list[str]:
    return [texts.categories[code] for code in np.unique(texts.codes[texts.codes >= 0])]


def classes_as_labelled(label: Label, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of a model as its label column has them, where it writes them otherwise: 0 and 1 as false and true.

    What predict_class answers can then be compared with the column. Where a label is none of the classes they stay.
    """
    assert label.texts is not None
    seen = _seen(label.texts)
    if label.sql_type.base == "bool":
        seen = ["false", "true"]
    found = match_labels(seen, classes)
    if len(found) < len(seen):
        return tuple(classes)
    named = {position: text for text, position in found.items()}
    return tuple(named.get(position, text) for position, text in enumerate(classes))


def latency_figures(timing: Timing) -> dict[str, Any]:
    """Return a timing as columns of ``distill.models``."""
    latency = timing.latency
    return {
        "avg_latency_ms": latency.mean_ms,
        "latency_low_ms": latency.low_ms,
        "latency_high_ms": latency.high_ms,
        "p50_latency_ms": latency.p50_ms,
        "p95_latency_ms": latency.p95_ms,
        "p99_latency_ms": latency.p99_ms,
        "latency_declared": False,
    }


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


def _warn_of_classes(
    db: Database, name: str, task: Task, classes: Sequence[str], label: Label | None, outputs: FloatArray
) -> None:
    """Warn where the model's answers and the label are turned round: classes in another order, values with another sign."""
    if label is None:
        return
    y = positions(label, task, classes)[: len(outputs)]
    known = np.isfinite(y) if task == "regression" else y >= 0
    y, p = y[known], outputs[known]
    order = decisions.class_order(y, p) if task != "regression" else None
    falls = task == "regression" and decisions.falls(y, p)
    for text in latency.turned_round(name, classes, order, falls=falls):
        db.warning(text)


def _measured_on(db: Database, rows: int, path: str, timing: Timing | None) -> dict[str, Any]:
    return {
        "measured_on": {
            "rows": rows,
            "path": path,
            "calls": timing.latency.n_calls if timing else 0,
            "blocks": timing.latency.n_blocks if timing else 0,
            "cold_ms": timing.cold_ms if timing else None,
            "machine": describe_machine(db),
        },
        "measured_at": datetime.now(UTC).isoformat(),
    }


def _checked_arguments(
    db: Database,
    name: str | None,
    version: str | None,
    task: str | None,
    classes: Sequence[str | None] | None,
    features: Sequence[str] | None,
) -> None:
    if name is None:
        raise NullNotAllowed("name must not be NULL")
    check_name(name)
    rights.require_name(db, name)
    if version is not None:
        check_name(version, "version")
    if task not in (None, "binary", "multiclass", "regression"):
        raise InvalidParameter(
            f'task "{task}" does not exist', hint="Tasks are binary, multiclass and regression."
        )
    if features is not None and not features:
        raise InvalidParameter("features must name at least one column")
    if classes is not None:
        if any(c is None for c in classes):
            raise NullNotAllowed("classes must not be NULL")
        if len(set(classes)) < len(classes):
            raise InvalidParameter("a class is named more than once")


def _say_what_is_missing(
    db: Database, sample: str | None, label: str | None, figures: Mapping[str, Any]
) -> None:
    if sample is None:
        db.notice("the model was not run on rows and nothing was measured, because no sample is named")
    elif label is None:
        db.notice("accuracy was not measured, because no label column is named")
    elif figures.get("accuracy") is None:
        db.notice(f"accuracy was not measured, because the model was run on fewer than {MIN_ROWS} rows")


def _rows(
    db: Database, source: Source, features: Sequence[str], label: str | None, extra: Sequence[str] = ()
) -> tuple[Sequence[Feature], Frame, Label | None, Mapping[str, Column]]:
    columns = check_columns(source, features)
    frame, labels, others = draw_rows(db, source, columns, label=label, extra=extra, seed=SEED, limit=ROWS)
    if len(frame) == 0:
        raise InvalidData("the sample has no rows" + (" with a label" if label else ""))
    return columns, frame, labels, others


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


def _as_labelled(signature: Signature, label: Label) -> Signature:
    """Return the signature with the classes as the label column has them."""
    classes = classes_as_labelled(label, signature.classes)
    if classes == signature.classes:
        return signature
    output = signature.output
    if output.form == "label":
        output = replace(output, labels=output.labels or signature.classes)
    return replace(signature, output=output, classes=classes)


def register_onnx(
    db: Database,
    *,
    name: str | None,
    artifact: bytes | None,
    features: Sequence[str] | None,
    sample: str | None,
    label: str | None,
    version: str | None,
    task: Task | None,
    classes: Sequence[str] | None,
    expected: str | None = None,
    claim: claims.Claim | None = None,
    allow_difference: bool = False,
    class_threshold: float | None = None,
) -> str:
    """Register an ONNX file; return the model's id.

    Parameters
    ----------
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
    _checked_arguments(db, name, version, task, classes, features)
    assert name is not None
    if artifact is None:
        raise NullNotAllowed("artifact must not be NULL")
    if label is not None and sample is None:
        raise InvalidParameter("a label column needs a sample that has it")
    if expected is not None and sample is None:
        raise InvalidParameter("a column of expected predictions needs a sample that has it")
    if class_threshold is not None and not 0 < class_threshold < 1:
        raise InvalidParameter(f"class_threshold must be between 0 and 1, not {class_threshold}")
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
                task=task,
                classes=classes,
                max_bytes=limit,
                run_bytes=run_bytes,
                class_threshold=class_threshold,
            )

    # No child lives while the sample runs: it is the caller's SQL, and may take as long as it likes.
    if sample is None:
        found = inspect(features)
    else:
        source = resolve_source(db, sample, stored=True)
        if features is None:
            # A graph with an input a column names its columns; one with a tensor takes what the sample has.
            given = inspect().signature.names
            if set(given) <= set(source.columns):
                features = given
            else:
                features = [c for c in source.kinds if c not in (label, expected)]
                db.notice(
                    f"the model's inputs are taken to be these columns, in this order: {_list(features)}"
                )
        columns, frame, labels, _ = _rows(db, source, features, label)
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
                columns, frame, labels, _ = _rows(db, source, features, label)
        types = {f.name: source.types[f.name] for f in columns}
        found = inspect(columns=columns, rows=frame)
    signature = found.signature
    if class_threshold is not None and signature.task != "binary":
        raise InvalidParameter("class_threshold is of a model of two classes")
    own_classes = classes is None or (claim is not None and claim.own_classes)
    if labels is not None and own_classes and signature.task != "regression":
        renamed = _as_labelled(signature, labels)
        if claim is not None:
            claim = claim.renamed(dict(zip(signature.classes, renamed.classes, strict=True)))
        signature = renamed
    figures: dict[str, Any] = {}
    if task is None and classes is None:
        _require_classes(signature, labels)
    if frame is not None and source is not None:
        figures.update(
            _accuracy_figures(signature.task, signature.classes, labels, found.outputs, class_threshold)
        )
        _warn_of_classes(db, name, signature.task, signature.classes, labels, found.outputs)
    model = models.insert_model(
        db,
        name=name,
        version=version,
        task=signature.task,
        kind="onnx",
        artifact=artifact,
        expression=None,
        signature=signature,
        sample=source.query if source is not None else None,
        label=label,
        figures={},
        types=types,
        class_threshold=class_threshold,
    )
    if expected is not None and source is not None:
        claim = claims.claim_of_column(db, source, model, expected)
    if claim is not None:
        figures["origin"] = claims.require_claim(db, model, claim, allow_difference=allow_difference)
    if frame is not None:
        contender = contender_for(db, model)
        timing = measure_latency(db, [contender], frame, seed=SEED, seconds=LATENCY_SECONDS)[contender.name]
        figures.update(latency_figures(timing))
        figures.update(_measured_on(db, len(frame), contender.path, timing))
    models.update_figures(db, model.id, figures)
    _say_what_is_missing(db, sample, label, figures)
    return model.id


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


def _task_of(
    task: Task | None, classes: Sequence[str] | None, label: Label | None, width: int
) -> tuple[Task, list[str]]:
    """Derive task and classes of a model without a graph from what the caller said and the label column."""
    if task is None:
        if classes is not None:
            task = "binary" if len(classes) == 2 else "multiclass"
        elif width > 1:
            task = "binary" if width == 2 else "multiclass"
        elif label is not None:
            few = isinstance(label.values, Strings) or len(np.unique(label.values)) <= 2
            task = "binary" if few else "regression"
        else:
            raise InvalidParameter(
                "the task cannot be told without a label column", hint="Pass task => ... ."
            )
    if task == "regression":
        if classes:
            raise InvalidParameter("a regression has no classes")
        return task, []
    if classes is None:
        if label is None:
            raise InvalidParameter(
                "the classes cannot be told without a label column", hint="Pass classes => ... ."
            )
        classes = label.names()
        if width > 1 and len(classes) != width:
            raise InvalidParameter(
                f"the label column has {len(classes)} classes, but the teacher gives {width} values",
                hint="Pass classes => ... in the order of the values.",
            )
    if task == "binary" and len(classes) != 2:
        raise InvalidParameter(f"a binary task has two classes, not {len(classes)}")
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise InvalidParameter(f"a model has 2 to {MAX_CLASSES} classes, not {len(classes)}")
    return task, list(classes)


def register_sql(
    db: Database,
    *,
    name: str | None,
    expression: str | None,
    features: Sequence[str] | None,
    sample: str | None,
    label: str | None,
    version: str | None,
    task: Task | None,
    classes: Sequence[str] | None,
) -> str:
    """Register a SQL expression over the features; return the model's id."""
    _checked_arguments(db, name, version, task, classes, features)
    assert name is not None
    if expression is None or features is None or sample is None:
        raise NullNotAllowed("expression, features and sample must not be NULL")
    source = resolve_source(db, sample, stored=True)
    columns, frame, labels, _ = _rows(db, source, features, label)
    if beyond := integers_beyond(source, frame):
        source = _read_as_text(db, source, beyond)
        columns, frame, labels, _ = _rows(db, source, features, label)
    for column, first in lost_microseconds(db, source, frame).items():
        db.warning(
            f'column "{column}" has timestamps whose microseconds double precision does not hold, such as {first}:'
            " the expression gets them rounded"
        )
    found_task, found_classes = _task_of(
        task, classes, labels, len(classes or ()) if (task == "multiclass") else 1
    )
    signature = signature_without_graph(columns, found_task, found_classes)
    types = {f.name: source.types[f.name] for f in columns}
    with db.subtransaction():
        model = models.insert_model(
            db,
            name=name,
            version=version,
            task=found_task,
            kind="sql",
            artifact=None,
            expression=expression,
            signature=signature,
            sample=source.query,
            label=label,
            figures={},
            types=types,
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
        _warn_of_classes(db, name, found_task, found_classes, labels, outputs)
        contender = contender_for(db, model)
        timing = measure_latency(db, [contender], frame, seed=SEED, seconds=LATENCY_SECONDS)[contender.name]
        figures.update(latency_figures(timing))
        figures.update(_measured_on(db, len(frame), contender.path, timing))
        models.update_figures(db, model.id, figures)
        _say_what_is_missing(db, sample, label, figures)
    return model.id


def register_logged(
    db: Database,
    *,
    name: str | None,
    outputs: Sequence[str] | None,
    features: Sequence[str] | None,
    sample: str | None,
    label: str | None,
    version: str | None,
    task: Task | None,
    classes: Sequence[str] | None,
    latency_ms: float | None,
) -> str:
    """Register a teacher that runs elsewhere by its logged outputs; return the model's id."""
    import json

    _checked_arguments(db, name, version, task, classes, features)
    assert name is not None
    if outputs is None or features is None or sample is None:
        raise NullNotAllowed("outputs, features and sample must not be NULL")
    if not outputs:
        raise InvalidParameter("a logged model has at least one output column")
    if latency_ms is not None and not (latency_ms > 0 and np.isfinite(latency_ms)):
        raise InvalidParameter(f"latency_ms must be above 0, not {latency_ms}")
    source = resolve_source(db, sample, stored=True)
    columns, frame, labels, extra = _rows(db, source, features, label, outputs)
    if beyond := integers_beyond(source, frame):
        source = _read_as_text(db, source, beyond)
        columns, frame, labels, extra = _rows(db, source, features, label, outputs)
    found_task, found_classes = _task_of(task, classes, labels, len(outputs))
    raw = logged_outputs(extra, outputs)
    checked = check_outputs(raw, found_task, found_classes, frame)
    figures = _accuracy_figures(found_task, found_classes, labels, checked)
    _warn_of_classes(db, name, found_task, found_classes, labels, checked)
    figures.update(_measured_on(db, len(frame), "declared" if latency_ms is not None else "none", None))
    figures.update({"avg_latency_ms": latency_ms, "latency_declared": latency_ms is not None})
    model = models.insert_model(
        db,
        name=name,
        version=version,
        task=found_task,
        kind="logged",
        artifact=None,
        expression=json.dumps(list(outputs)),
        signature=signature_without_graph(columns, found_task, found_classes),
        sample=source.query,
        label=label,
        figures=figures,
        types={f.name: source.types[f.name] for f in columns},
    )
    _say_what_is_missing(db, sample, label, figures)
    return model.id
