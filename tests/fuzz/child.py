"""Take hostile files on stdin, do with each what registration and a backend do, answer with what came of it.

The training process and the backend are one here: what would crash either crashes this, and is found.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import resource
import struct
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
from pg_distill.errors import InvalidParameter, PgDistillError
from pg_distill.onnx_model.approve import approve
from pg_distill.onnx_model.check import check_file
from pg_distill.onnx_model.limits import Limits
from pg_distill.onnx_model.signature import Signature
from pg_distill.onnx_model.teacher import TeacherModel, tree_thresholds
from pg_distill.onnx_model.text_model import open_model

MEMORY_BYTES = 6 << 30  # address space, most of it onnxruntime's own reservations
LIMITS = Limits(run_seconds=2.0)
VALUES = (
    *(0.0, -1.0, 3.0, 1e9, 1e300, float("nan"), float("inf"), -float("inf"), None),
    *(-(2**63), 2**63 - 1, -(2**31), 2**31 - 1, 2**53 + 1, 5e-324),
)
TOKENS = 24  # of a text that a transformer reads: it is walked for each number of them
TEXTS = ("\u202e", "", "refund late thanks great", "é😀東京 \x01", "a b " * 2000, "x" * 20_000, None, " ", "the film was great",
         "\u202e\U0001f600\x01e\u0301", "\ufdfa" * 500, "[CLS]" * 500)  # fmt: skip
SCHEMA_VALUES = (
    None, True, -1, 0, 1, 7, 2**31, 2**63, 1e300, "", "x", "string", "double", "a\x00", "a\nb", [], {}, [[]],
)  # fmt: skip


def take(artifact: bytes) -> tuple[str, str]:
    """Return what became of ``artifact``: an SQLSTATE or "accepted", and a message."""
    try:
        model, _ = check_file(artifact)
        try:
            signature = approve(artifact, limits=LIMITS, max_tokens=TOKENS).signature
        except InvalidParameter:  # one number, which may be a value or a probability
            signature = approve(artifact, task="regression", limits=LIMITS, max_tokens=TOKENS).signature
        TeacherModel(artifact, signature)
        tree_thresholds(model)
        serve(artifact, signature)
        plant(artifact, signature)
    except PgDistillError as error:
        return error.sqlstate, error.message
    except Exception:
        return "none", traceback.format_exc()[-2000:]
    return "accepted", ""


def serve(artifact: bytes, signature: Any) -> None:
    """Predict as a backend does, on values that nobody has tried the model on."""
    session = open_model(artifact, signature)
    if signature.max_tokens is not None:
        for text in TEXTS:
            with contextlib.suppress(PgDistillError):
                session.run_row({signature.names[0]: text})
        return
    for position, value in enumerate((*VALUES, *VALUES)):
        # All alike, then each beside another: -2^63 over -1.
        others = VALUES if position >= len(VALUES) else (value,)
        cells = [value, *(others[(position + i) % len(others)] for i in range(1, len(signature.features)))]
        row = {
            f.name: TEXTS[position % len(TEXTS)] if f.is_string else cell
            for f, cell in zip(signature.features, cells, strict=False)
        }
        try:
            session.run_row(row)
            if signature.is_numeric:
                session.predict_number(list(row.values()))
        except PgDistillError:
            continue  # a refusal: what is looked for is a crash, or an error of no SQLSTATE
    if signature.is_numeric:
        with contextlib.suppress(PgDistillError):
            session.run_array(np.full((257, len(signature.features)), 1e9))


def plant(artifact: bytes, signature: Signature) -> None:
    """Open the file with signatures that somebody wrote into its row: refused, or as good as its own."""
    rng = random.Random(artifact)
    schemas = [json.loads(json.dumps(schema)) for schema in signature.to_json()]
    places = [*_places(schemas[0]), *_places(schemas[1])]
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(places)
        try:
            if rng.random() < 0.2:
                del holder[key]
            else:
                # A copy: what holds itself no JSON can say.
                holder[key] = copy.deepcopy(rng.choice((*SCHEMA_VALUES, *(h[k] for h, k in places))))
        except (KeyError, IndexError):
            continue
    try:
        approved = approve(artifact, Signature.from_json(*schemas), limits=LIMITS).signature
    except PgDistillError:
        return
    serve(artifact, approved)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield where the parts of a JSON value are."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


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
