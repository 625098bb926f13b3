"""What crosses between the backend and its training process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

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


@dataclass(frozen=True)
class Trial:
    """A candidate as the backend gets it: ``fields`` are columns of ``distill.candidates``."""

    number: int
    fields: Mapping[str, Any]
    artifact: bytes | None
    signature: Signature | None
    twin: int | None = None
    """The candidate that this one is, as a SQL expression: it predicts the same by another way."""

    @property
    def form(self) -> ModelForm:
        """How it answers, which is what its latency is of."""
        if self.fields.get("threshold") is not None:
            return "cascade"
        return "predict" if self.twin is None else "sql"

    @property
    def scored_as(self) -> int:
        """The number of the candidate whose accuracy it has."""
        return self.number if self.twin is None else self.twin

    @property
    def is_scorable_control(self) -> bool:
        """Whether it learned from labels alone and can be compared with."""
        return bool(self.fields["is_control"]) and self.artifact is not None


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
        if feature.kind != "string":
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
