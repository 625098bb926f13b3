"""Labels held against a model's classes: positions, names as the column has them, what is missing or new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.database.protocol import Database
from pg_distill.errors import (
    InvalidData,
    InvalidParameter,
)
from pg_distill.frame import FloatArray, Strings, Task
from pg_distill.measure import decisions, latency
from pg_distill.onnx_model.signature import Signature
from pg_distill.rows.canonical import match_labels
from pg_distill.rows.labels import Label
from pg_distill.teachers.several import check_classes, sets_of

__all__ = ["MAX_CLASSES", "as_labelled", "positions", "task_of", "warn_of_classes"]

MAX_CLASSES = 100


def positions(label: Label | Strings, task: Task, classes: Sequence[str]) -> npt.NDArray[Any]:
    """Return labels as class positions or sets of several, -1 for NULL; or as values, NaN for NULL.

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
    if task == "multilabel":
        return sets_of(texts, classes)
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


def warn_of_classes(
    db: Database, name: str, task: Task, classes: Sequence[str], label: Label | None, outputs: FloatArray
) -> None:
    """Warn where the model's answers and the label are turned round: classes in another order, values with another sign."""
    if label is None or task == "multilabel":
        return
    y = positions(label, task, classes)[: len(outputs)]
    known = np.isfinite(y) if task == "regression" else y >= 0
    y, p = y[known], outputs[known]
    order = decisions.class_order(y, p) if task != "regression" else None
    falls = task == "regression" and decisions.falls(y, p)
    for text in latency.turned_round(name, classes, order, falls=falls):
        db.warning(text)


def as_labelled(signature: Signature, label: Label) -> Signature:
    """Return the signature with the classes as the label column has them."""
    classes = classes_as_labelled(label, signature.classes)
    if classes == signature.classes:
        return signature
    output = signature.output
    if output.form == "label":
        output = replace(output, labels=output.labels or signature.classes)
    return replace(signature, output=output, classes=classes)


def task_of(
    task: Task | None, classes: Sequence[str] | None, label: Label | None, width: int
) -> tuple[Task, list[str]]:
    """Derive task and classes of a model without a graph from what the caller said and the label column."""
    if task == "multilabel":
        return task, check_classes(classes)
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
        if len(classes) == 1:
            raise InvalidData(f'every label is "{classes[0][:40]}": there is nothing to tell apart')
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
