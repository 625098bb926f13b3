"""The probabilities from which each of several labels is named, in the file of the model itself.

Whoever exports, offers or registers the file has them with it; they are no part of the graph, which gives probabilities.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pg_distill.errors import InvalidArtifact
from pg_distill.onnx_model.protobuf import field
from pg_distill.onnx_model.signature import are_thresholds

if TYPE_CHECKING:
    import onnx

__all__ = ["THRESHOLDS_KEY", "thresholds_of", "with_thresholds"]

THRESHOLDS_KEY = "pg_distill.label_thresholds"
"""Key of ``metadata_props`` under which they stand: JSON, an array in the order of the classes."""
_METADATA = 14  # ModelProto.metadata_props, of StringStringEntryProto: key 1, value 2


def with_thresholds(artifact: bytes, thresholds: object) -> bytes:
    """Return the file with ``thresholds``, where these are of several labels; otherwise as it is."""
    if not artifact or not isinstance(thresholds, tuple):
        return artifact
    entry = field(1, THRESHOLDS_KEY.encode()) + field(2, json.dumps(thresholds).encode())
    return artifact + field(_METADATA, entry)


def thresholds_of(model: onnx.ModelProto, n_classes: int) -> tuple[float, ...]:
    """Return the thresholds of a file, none where it has none.

    Raises
    ------
    InvalidArtifact
        Where they are not one for each class, between 0 and 1.
    """
    values = [entry.value for entry in model.metadata_props if entry.key == THRESHOLDS_KEY]
    if not values:
        return ()
    try:
        found = json.loads(values[0])
    except (ValueError, RecursionError):
        found = None
    if len(values) > 1 or not are_thresholds(found, n_classes):
        raise InvalidArtifact(
            f'metadata entry "{THRESHOLDS_KEY}" is no array of {n_classes} numbers between 0 and 1',
            hint="Take the entry out of the file.",
        )
    return tuple(found)
