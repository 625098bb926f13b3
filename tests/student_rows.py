"""Rows of every kind, and what students of all families are checked with."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import onnxruntime as ort
from pg_distill.frame import Feature, FloatArray, Frame, Strings, Task
from pg_distill.onnx_model.signature import NULL_STRING
from pg_distill.onnx_model.tokens import prepare
from pg_distill.students.families import Setup, load_family
from pg_distill.students.soft_labels import softmax
from pg_distill.students.transfer_set import TransferSet

TASKS: list[Task] = ["binary", "multiclass", "regression"]
CLASSES = {"binary": 2, "multiclass": 4, "regression": 1}
FEATURES = (
    Feature("x", "number"),
    Feature("place", "string"),
    Feature("k", "integer"),
    Feature("flag", "boolean"),
    Feature("when", "timestamp"),
    Feature("shop", "string"),
)
PLACES = ["", "a", "b", "c", "d", "e", "é"]


def rows(n: int, seed: int = 0, *, nulls: bool = True, numbers_only: bool = False) -> Frame:
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        "x": rng.normal(size=n),
        "k": rng.integers(-5, 6, n).astype(float),
        "flag": rng.integers(0, 2, n).astype(float),
        "when": 1.7e9 + rng.integers(0, 10**7, n).astype(float),
    }
    places = [PLACES[i] for i in rng.integers(0, len(PLACES), n)]
    shops = [PLACES[i] for i in rng.integers(2, 5, n)]
    if nulls:
        columns["x"][rng.random(n) < 0.1] = np.nan
        places = [None if r < 0.1 else p for r, p in zip(rng.random(n), places, strict=True)]
    columns["place"], columns["shop"] = Strings.from_values(places), Strings.from_values(shops)
    features = tuple(f for f in FEATURES if not numbers_only or f.name in ("x", "k"))
    return Frame(features, {f.name: columns[f.name] for f in features})


def edge_rows(frame: Frame) -> Frame:
    """Return rows of what a column may also hold, each cell drawn on its own."""
    rng = np.random.default_rng(9)
    n = 400
    columns: dict[str, Any] = {}
    special = [np.nan, np.inf, -np.inf, 1e300, -1e300, 3.5e38, 1e-300, 0.0, -0.0, 16777217.0, 1.7e9]
    for feature in frame.features:
        if feature.kind == "string":
            words = [None, "", "unseen", "a", "d", "é", "'", "\\", NULL_STRING]
            columns[feature.name] = Strings.from_values([words[i] for i in rng.integers(0, len(words), n)])
        else:
            columns[feature.name] = np.array(special)[rng.integers(0, len(special), n)]
    return Frame.concat([frame, Frame(frame.features, columns)])


def truth(frame: Frame, task: Task) -> FloatArray:
    x = np.nan_to_num(frame.number("x"), nan=0.7)
    score = np.sin(2 * x) + 0.2 * frame.number("k")
    if "place" in frame.columns:
        effect = np.array([0.5, -1.0, 1.0, 2.0, -2.0, 0.0, 1.5, 0.3])
        index = {c: i for i, c in enumerate(PLACES)}
        place = frame.strings("place")
        table = np.array([*(index[c] for c in place.categories), len(PLACES)])
        score = score + effect[table[place.codes]] + 1e-7 * (frame.number("when") - 1.705e9)
    if task == "regression":
        return 100.0 + 10.0 * score[:, None]
    k = CLASSES[task]
    return np.stack([score * np.cos(1.5 * i) + 0.3 * i for i in range(k)], axis=1)


def transfer(n: int, task: Task, seed: int = 0, *, labels: bool = True, **options: bool) -> TransferSet:
    frame = rows(n, seed, **options)
    logits = truth(frame, task)
    rng = np.random.default_rng(seed + 100)
    y: Any = None
    if labels and task == "regression":
        y = logits[:, 0] + rng.normal(size=n)
    elif labels:
        y = (rng.gumbel(size=logits.shape) + logits).argmax(axis=1).astype(np.int64)
    return TransferSet(frame, logits, y, None, np.zeros(n, np.uint8))


def unsure(data: TransferSet) -> TransferSet:
    """Return the rows with every other label taken from another row: students of the true labels are too sure of them."""
    assert data.y is not None
    y = data.y.copy()
    y[::2] = np.roll(y, 7)[::2]
    return replace(data, y=y)


def feeds(session: ort.InferenceSession, frame: Frame) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for node in session.get_inputs():
        if node.name == "numbers":
            with np.errstate(over="ignore"):
                out["numbers"] = frame.numbers().astype(np.float64 if "double" in node.type else np.float32)
        elif node.name == "texts":
            rows = [[prepare(t) for t in frame.strings(name).to_objects()] for name in frame.text_names]
            out["texts"] = np.array(rows, object).T
        else:
            columns = [frame.strings(name).to_objects(NULL_STRING) for name in frame.string_names]
            out["strings"] = np.column_stack(columns)
    return out


def run(artifact: bytes, frame: Frame) -> FloatArray:
    session = ort.InferenceSession(artifact)
    return np.asarray(session.run(None, feeds(session, frame))[0], np.float64)


def difference(student: Any, frame: Frame) -> float:
    """Largest difference of graph and trainer: of probabilities, or of values in their deviation."""
    logits, found = student.predict_logits(frame), run(student.to_onnx(), frame)
    if student.task == "regression":
        return float(np.abs(found - logits).max() / logits.std())
    return float(np.abs(found - softmax(logits)).max())


def make(family: str, task: Task, **options: Any) -> Any:
    """Make a student; ``options`` are of its setup and of its size."""
    known = {"n_classes": CLASSES[task], "alpha": 0.5, **options}
    setup = {field.name: known.pop(field.name) for field in fields(Setup)[1:] if field.name in known}
    return load_family(family)(Setup(task, **setup), **known)
