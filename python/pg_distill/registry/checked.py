"""Which files have passed the check by the rules of this release, and what running them costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from pg_distill import __version__
from pg_distill.database.protocol import Database
from pg_distill.onnx_model.signature import Cost, Signature
from pg_distill.registry.rights import (
    can_write,
)

__all__ = ["RULES", "costs_meanwhile", "note_checked", "note_cost", "unchecked"]

RULES = __version__
"""Whose rules a file has passed that is noted as checked."""


def note_cost(db: Database, model_id: str, cost: Cost) -> None:
    """Note that a model's file has been checked, and what its runs cost; the caller writes."""
    db.query(
        "insert into distill.checked (sha256, schema_digest, rules, cost)"
        " select m.sha256, distill._schema_digest(m.input_schema, m.output_schema), $2, $3 from distill.models m where m.id = $1"
        " on conflict do nothing",
        ("uuid", model_id),
        ("text", RULES),
        ("jsonb", json.dumps(asdict(cost))),
    )


def unchecked(db: Database, ids: Sequence[str]) -> list[str]:
    """Return which of these models no child of this server has checked yet."""
    rows = db.query(
        "select m.id::pg_catalog.text as id from distill.models m where m.id = any ($1) and m.artifact is not null"
        " and distill._run_cost(m.sha256, distill._schema_digest(m.input_schema, m.output_schema), $2) is null",
        ("uuid[]", list(ids)),
        ("text", RULES),
    )
    return [row["id"] for row in rows]


def note_checked(db: Database, model_id: str, signature: Signature) -> None:
    """Note that a child has checked a model's file and signature, so that it is not checked again; where that can be written."""
    cost = signature.cost
    assert cost is not None
    if can_write(db):
        db.write(lambda: note_cost(db, model_id, cost))


def costs_meanwhile(db: Database, ids: Sequence[str]) -> dict[str, Cost]:
    """Return what runs of these models cost where another session has had them checked since this statement began."""
    if not can_write(db):
        return {}
    # What `Database.write` runs has a snapshot of its own; predict has its statement's.
    rows = db.write(
        lambda: db.query(
            "select m.id::pg_catalog.text as id, c.cost from distill.models m cross join lateral (select"
            " distill._run_cost(m.sha256, distill._schema_digest(m.input_schema, m.output_schema), $2) as cost) c"
            " where m.id = any ($1) and c.cost is not null",
            ("uuid[]", list(ids)),
            ("text", RULES),
        )
    )
    return {row["id"]: Cost.from_json(json.loads(row["cost"])) for row in rows}
