"""Take hostile files on stdin, do with each what registration and a backend do, answer with what came of it.

The training process and the backend are one here: what would crash either crashes this, and is found.
"""

from __future__ import annotations

import contextlib
import json
import resource
import struct
import sys
import traceback
from typing import Any

import numpy as np
from pg_distill.errors import PgDistillError
from pg_distill.onnx_graph import Limits, TeacherModel, check, derive_signature, tree_thresholds, trial_run
from pg_distill.onnx_model import Model

MEMORY_BYTES = 6 << 30  # address space, most of it onnxruntime's own reservations
LIMITS = Limits(run_seconds=2.0)


def take(artifact: bytes) -> tuple[str, str]:
    """Return what became of ``artifact``: an SQLSTATE or "accepted", and a message."""
    try:
        model = check(artifact)
        signature = derive_signature(model)
        trial_run(artifact, signature, None, LIMITS)
        TeacherModel(artifact, signature)
        tree_thresholds(model)
        serve(artifact, signature)
    except PgDistillError as error:
        return error.sqlstate, error.message
    except Exception:
        return "none", traceback.format_exc()[-2000:]
    return "accepted", ""


def serve(artifact: bytes, signature: Any) -> None:
    """Predict as a backend does, on values that nobody has tried the model on."""
    session = Model(artifact, signature)
    for value in (0.0, -1.0, 3.0, 1e9, 1e300, float("nan"), float("inf"), -float("inf"), None):
        row = {f.name: "\u202e" if f.kind == "string" else value for f in signature.features}
        try:
            session.run_row(row)
            if signature.is_numeric:
                session.predict_number(list(row.values()))
        except PgDistillError:
            continue  # a refusal: what is looked for is a crash, or an error of no SQLSTATE
    if signature.is_numeric:
        with contextlib.suppress(PgDistillError):
            session.run_array(np.full((257, len(signature.features)), 1e9))


def main() -> None:
    """Answer until the end of stdin."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    while header := sys.stdin.buffer.read(4):
        answer = take(sys.stdin.buffer.read(struct.unpack("<I", header)[0]))
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
