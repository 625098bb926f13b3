"""How the child answers what holds no rows: what it can import, and what files are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pg_distill.child.channel import Channel
from pg_distill.child.messages import unpack, write_signature
from pg_distill.child.wire import Message
from pg_distill.frame import Feature
from pg_distill.onnx_model.signature import Signature

if TYPE_CHECKING:
    from pg_distill.onnx_model.limits import Limits as FileLimits

__all__ = ["check", "inspect", "look"]


def look(request: Message, channel: Channel) -> Message:
    """Say which Python the child is, and which libraries it finds."""
    from pg_distill import probe

    own = "Python {}.{} as user {}".format(*sys.version_info[:2], probe.whoami())
    found = [probe.look_for_dependency(requirement) for requirement in probe.REQUIREMENTS]
    return Message("looked", {"own": own, "found": found})


def inspect(request: Message, channel: Channel) -> Message:
    """Check a file that is to be a model, derive its signature, and run it."""
    from pg_distill.onnx_model import approve
    from pg_distill.onnx_model.teacher import TeacherModel

    fields = request.fields
    artifact = request.blobs["artifact"]
    rows = unpack(request, "rows/") if "rows/features" in fields else None
    approval = approve.approve(
        artifact,
        features=None if fields["features"] is None else [Feature(*found) for found in fields["features"]],
        names=fields["names"],
        task=fields["task"],
        classes=fields["classes"],
        rows=rows,
        limits=_limits(fields),
        class_threshold=fields.get("class_threshold"),
        max_tokens=fields["max_tokens"],
    )
    teacher = TeacherModel(artifact, approval.signature, rows)
    return Message(
        "inspected",
        {**write_signature(approval.signature), "logits_source": teacher.logits_source},
        {"outputs": approval.outputs},
        {},
    )


def check(request: Message, channel: Channel) -> Message:
    """Check files against the signatures that are stored with them."""
    from pg_distill.onnx_model import approve

    limits = _limits(request.fields)
    found = [
        approve.approve(artifact, Signature.from_json(*schemas), limits=limits).signature
        for artifact, schemas in zip(request.blobs.values(), request.fields["schemas"], strict=True)
    ]
    return Message("checked", {"signatures": list(map(write_signature, found))}, {}, {})


def _limits(fields: Mapping[str, Any]) -> FileLimits:
    from pg_distill.onnx_model.limits import DEFAULT_LIMITS

    return replace(DEFAULT_LIMITS, artifact_bytes=fields["max_bytes"], run_bytes=fields["run_bytes"])
