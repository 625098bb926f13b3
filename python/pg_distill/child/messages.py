"""What crosses between the backend and its training process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Self, TypedDict

import numpy as np
import numpy.typing as npt

from pg_distill.child.wire import Message
from pg_distill.frame import Column, Feature, FloatArray, Frame, ModelForm, Strings
from pg_distill.onnx_model.signature import Cost, Signature

__all__ = ["SIGNATURE", "Inspection", "Trial", "pack", "read_signature", "unpack", "write_signature"]


@dataclass(frozen=True)
class Inspection:
    """What a child found of an ONNX file: its signature, and its predictions on the rows, (n, K) or (n, 1)."""

    signature: Signature
    outputs: FloatArray
    logits_source: str


class Loaded(TypedDict):
    """What there is to say of the labelling of a run's rows."""

    logits_source: str
    """Where its logits come from: the graph, or the logarithm of its probabilities."""
    seconds: float
    rows: Mapping[str, int]
    """By split: those that were labelled."""
    rows_left_out: int
    """For which there was no time."""


class Surveyed(TypedDict):
    """What the teacher is worth on the select rows, before anything is trained; None where there is nothing to say."""

    teacher: float | None
    """The run's metric of the teacher, with its interval ``low`` to ``high``."""
    low: float | None
    high: float | None
    majority: float | None
    """The metric of always answering with the class shares, or the mean, of the rows to fit on."""
    floor_high: float | None
    """The upper end of the interval of the floor's metric."""
    shares: list[float] | None
    """Of each class among the labels of fit and select."""
    order: list[int] | None
    """See ``decisions.class_order``."""
    falls: bool
    """See ``decisions.falls``."""


@dataclass(frozen=True)
class SearchRequest:
    """What a search is asked for: the fields of ``search.problem.Config``, and where its candidates are trained."""

    target_latency_ms: float
    call_overhead_ms: float
    temperature: float
    epochs: int
    seed: int
    families: Sequence[str]
    time_budget_s: float
    most_seconds: float
    transfer_bytes: int
    threads: int
    executor: str
    sql: bool
    patience: int
    refit_on_all: bool
    monotone: Mapping[str, int]


class Reported(TypedDict, total=False):
    """The child's progress in its work: ``done`` is 0 to 1, and ``number`` of ``count`` says which candidate is trained."""

    stage: str
    done: float
    candidate: str
    number: int
    count: int
    seconds: float
    budget_s: float
    rows: int
    estimated_seconds: float
    rows_left_out: int


class Cascaded(TypedDict):
    """A student that asks its teacher below a confidence, with the figures of `Trial` on the select rows."""

    student: int
    threshold: float
    share: float
    """Of the rows for which it asks."""
    class_threshold: float | None
    select_accuracy: float | None
    tie_break_select: float | None
    jackknife_select: Sequence[float | None]
    select_classes: int | None


@dataclass(frozen=True)
class Trial:
    """A candidate as the backend gets it: a trained student, its SQL form, or a cascade of one with its teacher.

    Figures are of the select rows and of the training process; None where nothing was trained or measured.
    """

    number: int
    family: str
    configuration: Mapping[str, Any]
    artifact: bytes | None
    signature: Signature | None
    select_accuracy: float | None
    trainer_latency_ms: float | None
    reason: str
    is_control: bool = False
    on_frontier: bool = False
    size_bytes: int | None = None
    seconds: float | None = None
    expression: str | None = None
    tie_break_select: float | None = None
    jackknife_select: Sequence[float | None] = ()
    select_classes: int | None = None
    """How many classes it names."""
    class_threshold: float | None = None
    """The probability from which the last of two classes is named, where that is not one half."""
    threshold: float | None = None
    """Of a cascade: the confidence below which it asks its teacher."""
    statement_latency_ms: float | None = None
    """Of a SQL form: a statement for one row, planning included."""
    twin: int | None = None
    """The candidate that this one is, as a SQL expression: it predicts the same by another way."""

    @property
    def form(self) -> ModelForm:
        """How it answers, which is what its latency is of."""
        if self.threshold is not None:
            return "cascade"
        return "predict" if self.twin is None else "sql"

    @property
    def scored_as(self) -> int:
        """The number of the candidate whose accuracy it has."""
        return self.number if self.twin is None else self.twin

    @property
    def is_scorable_control(self) -> bool:
        """Whether it learned from labels alone and can be compared with."""
        return self.is_control and self.artifact is not None

    def to_row(self) -> dict[str, Any]:
        """Return what of it are columns of ``distill.candidates`` as they stand."""
        return {
            "candidate": self.number,
            "family": self.family,
            "configuration": self.configuration,
            "is_control": self.is_control,
            "size_bytes": self.size_bytes,
            "select_accuracy": self.select_accuracy,
            "trainer_latency_ms": self.trainer_latency_ms,
            "seconds": self.seconds,
            "form": self.form,
            "statement_latency_ms": self.statement_latency_ms,
            "threshold": self.threshold,
            "class_threshold": self.class_threshold,
        }

    def to_reply(self) -> dict[str, Any]:
        """Return it as a part of a message, without its file."""
        left_out = ("artifact", "signature")
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        return fields | (write_signature(self.signature) if self.signature is not None else {})

    @classmethod
    def of_reply(cls, fields: Mapping[str, Any], artifact: bytes | None) -> Self:
        """Return what `to_reply` wrote, with its file."""
        known = {name: value for name, value in fields.items() if name not in SIGNATURE}
        signature = read_signature(fields) if "input_schema" in fields else None
        return cls(**known, artifact=artifact, signature=signature)


class ChosenBy(TypedDict):
    """The rows that chose among the candidates: of one fold (select), or, cross-fitted, of several."""

    folds: int
    rows: int
    candidates: int
    """That were judged by all of them."""


class Ended(TypedDict):
    """Why a search ended."""

    by: str
    """``patience``, ``budget``, or ``all done``: what kept further candidates from being trained."""
    seconds: float
    trained: int
    """Students, blends and refits left aside."""
    since_gain: int
    """How many of them came after the last one that improved the frontier."""


class Searched(NamedTuple):
    """What a search found: its candidates; on the rows that chose the teacher's metric, and how many classes it names."""

    trials: list[Trial]
    teacher_select: float | None
    teacher_classes: int | None
    chosen_by: ChosenBy
    ended: Ended


def pack(frame: Frame, fields: dict[str, Any], arrays: dict[str, npt.NDArray[Any]], prefix: str) -> None:
    """Write a frame into the fields and arrays of a message, under a prefix."""
    fields[f"{prefix}features"] = [[f.name, f.kind] for f in frame.features]
    for position, feature in enumerate(frame.features):
        column = frame.columns[feature.name]
        if isinstance(column, Strings):
            column = column.compact()
            arrays[f"{prefix}{position}"] = column.codes
            # As bytes: a header of JSON is no place for 100 MB of texts.
            words = [category.encode("utf-8", "surrogatepass") for category in column.categories]
            arrays[f"{prefix}{position}/text"] = np.frombuffer(b"".join(words), np.uint8)
            arrays[f"{prefix}{position}/sizes"] = np.array([len(word) for word in words], np.int64)
        else:
            arrays[f"{prefix}{position}"] = column


def unpack(message: Message, prefix: str) -> Frame:
    """Return the frame that `pack` wrote."""
    features = tuple(Feature(name, kind) for name, kind in message.fields[f"{prefix}features"])
    columns: dict[str, Column] = {}
    for position, feature in enumerate(features):
        array = message.arrays[f"{prefix}{position}"]
        if not feature.is_string:
            columns[feature.name] = array
            continue
        text = message.arrays[f"{prefix}{position}/text"].tobytes()
        ends = np.cumsum(message.arrays[f"{prefix}{position}/sizes"]).tolist()
        words = [
            text[start:end].decode("utf-8", "surrogatepass")
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        columns[feature.name] = Strings(array.astype(np.int32, copy=False), tuple(words))
    return Frame(features, columns)


SIGNATURE = ("input_schema", "output_schema", "cost")


def write_signature(signature: Signature) -> dict[str, Any]:
    """Return a signature as a part of a reply."""
    input_schema, output_schema = signature.to_json()
    cost = None if signature.cost is None else asdict(signature.cost)
    return {"input_schema": input_schema, "output_schema": output_schema, "cost": cost}


def read_signature(fields: Mapping[str, Any]) -> Signature:
    """Return the signature that `write_signature` wrote."""
    signature = Signature.from_json(fields["input_schema"], fields["output_schema"])
    return replace(signature, cost=None if fields["cost"] is None else Cost.from_json(fields["cost"]))
