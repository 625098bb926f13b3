"""Every SQL statement about models, runs and candidates, and about the settings that limit them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pg_distill.database.protocol import Argument, Database, Row
from pg_distill.errors import (
    ArtifactCorrupted,
    DependentObjects,
    DuplicateModel,
    UndefinedModel,
)
from pg_distill.frame import ModelForm, Task
from pg_distill.onnx_model.signature import Signature
from pg_distill.quoting import quote_identifier
from pg_distill.registry.checked import note_cost
from pg_distill.registry.locks import lock_names
from pg_distill.registry.model import MODEL_COLUMNS, Dropped, Model, ModelKind, model_of_row
from pg_distill.registry.rights import (
    MAY_WRITE,
    Role,
    current_role,
    hold_name,
    own_name,
    sees_name,
    writer,
)
from pg_distill.registry.runs import json_parameter
from pg_distill.rows.learned import Learned

__all__ = [
    "REPORTED",
    "activate",
    "drop",
    "find_by_id",
    "find_model",
    "find_teacher",
    "insert_model",
    "next_version",
    "read_artifact",
    "read_artifacts",
    "read_learned",
    "training_rows",
    "update_figures",
]


def find_model(db: Database, model: str) -> Model:
    """Find ``name`` (its active version) or ``name:version``; UndefinedModel where there is none."""
    name, colon, version = model.partition(":")
    where = "m.version operator(pg_catalog.=) $2" if colon else "m.active and $2 is not null"
    rows = db.query_exact(
        f"select {MODEL_COLUMNS} from distill.models m where m.name operator(pg_catalog.=) $1 and {where}",
        ("text", name),
        ("text", version),
    )
    if not rows:
        raise UndefinedModel(f'model "{model}" does not exist')
    return model_of_row(rows[0])


def read_artifacts(db: Database, models: Iterable[Model]) -> dict[str, bytes]:
    """Return ONNX files by model id, checked against their digests; what others have dropped meanwhile is left out."""
    known = {model.id: model for model in models}
    rows = db.query(
        "select m.id::pg_catalog.text as id, m.artifact from distill.models m where m.id = any ($1)",
        ("uuid[]", list(known)),
    )
    found: dict[str, bytes] = {row["id"]: row["artifact"] for row in rows}
    for key, artifact in found.items():
        if hashlib.sha256(artifact).hexdigest() != known[key].sha256:
            raise ArtifactCorrupted(
                f'artifact of model "{known[key].qualified_name}" does not match its digest'
            )
    return found


def read_artifact(db: Database, model: Model) -> bytes:
    """Return a model's ONNX file, checked against its digest; UndefinedModel where it was dropped meanwhile."""
    try:
        return read_artifacts(db, [model])[model.id]
    except KeyError:
        raise UndefinedModel(f'model "{model.qualified_name}" was dropped meanwhile') from None


def read_learned(db: Database, ids: Iterable[str]) -> dict[str, Learned | None]:
    """Return by model id the rows that students have learned from; None where that is not known, as of older releases."""
    found: dict[str, Learned | None] = dict.fromkeys(ids)
    rows = db.query(
        "select m.id::pg_catalog.text as id, m.learned_from::pg_catalog.text as learned from distill.models m"
        " where m.id = any ($1) and m.learned_from is not null",
        ("uuid[]", list(found)),
    )
    return found | {row["id"]: Learned.from_json(json.loads(row["learned"])) for row in rows}


def training_rows(db: Database, teacher: Model) -> Row | None:
    """Return the query by which the last run that named them knows the rows that a teacher was trained on, and that run.

    Of a run of this role, or of a superuser: it is going to be run.
    """
    rows = db.query(
        "select r.resolved->>'trained_on' as query, r.run_id::pg_catalog.text as run_id from distill.runs r"
        " where r.teacher_id = $1 and r.resolved->>'trained_on' is not null and distill._is_trusted(r.owner)"
        " order by r.created_at desc, r.started_at desc limit 1",
        ("uuid", teacher.id),
    )
    return rows[0] if rows else None


def next_version(db: Database, name: str) -> str:
    """Return one more than the largest version that is a whole number, or "1"."""
    row = db.query(
        "select coalesce(max(m.version::pg_catalog.numeric), 0) + 1 as version from distill.models m"
        " where m.name = $1 and m.version ~ '^[0-9]{1,18}$'",
        ("text", name),
    )[0]
    return str(int(row["version"]))


def insert_model(
    db: Database,
    *,
    name: str,
    version: str | None,
    task: Task,
    kind: ModelKind,
    artifact: bytes | None,
    expression: str | None,
    signature: Signature,
    sample: str | None,
    label: str | None,
    figures: Mapping[str, Any],
    teacher_id: str | None = None,
    types: Mapping[str, str] | None = None,
    text_columns: Sequence[str] | None = None,
    form: ModelForm = "predict",
    threshold: float | None = None,
    class_threshold: float | None = None,
    learned_from: Mapping[str, Any] | None = None,
    checked: bool = True,
    attested: bool = True,
    monotone: Mapping[str, int] | None = None,
) -> Model:
    """Register a version and make it the active one.

    Parameters
    ----------
    learned_from
        What ``Learned.to_json`` gives, of a student.
    checked
        Whether a child of this backend has checked the artifact together with the signature, which then has its cost.
    attested
        Whether this backend has measured, or will measure, its figures.
    monotone
        By column the direction of its answers, where it was held to one.

    Raises
    ------
    DuplicateModel
        Name and version exist, or the name is one that the current role cannot see.
    InsufficientPrivilege
        The name is another role's.
    """
    role, visible = current_role(db), sees_name(db, name)
    content = artifact if artifact is not None else (expression or "").encode()
    input_schema, output_schema = signature.to_json()
    if types:
        input_schema["types"] = dict(types)
    if text_columns is not None:
        input_schema["text_columns"] = list(text_columns)
    if monotone:
        input_schema["monotone"] = dict(monotone)

    def insert() -> str:
        lock_names(db, [name])
        hold_name(db, name, role, visible=visible)
        number = version
        if number is None:
            number = next_version(db, name)
        elif db.query(
            "select from distill.models m where m.name = $1 and m.version = $2",
            ("text", name),
            ("text", version),
        ):
            raise DuplicateModel(f'version "{version}" of model "{name}" already exists')
        db.query("update distill.models set active = false where name = $1 and active", ("text", name))
        [row] = db.query(
            "insert into distill.models (name, version, active, task, kind, artifact, expression, sha256, size_bytes,"
            " input_schema, output_schema, sample, label, teacher_id, form, threshold, owner, attested,"
            " learned_from, class_threshold)"
            " values ($1, $2, true, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)"
            " returning id::pg_catalog.text as id",
            ("text", name),
            ("text", number),
            ("text", task),
            ("text", kind),
            ("bytea", artifact),
            ("text", expression),
            ("text", hashlib.sha256(content).hexdigest()),
            ("int8", len(content)),
            ("jsonb", json.dumps(input_schema)),
            ("jsonb", json.dumps(output_schema)),
            ("text", sample),
            ("text", label),
            ("uuid", teacher_id),
            ("text", form),
            ("float8", threshold),
            ("text", own_name(db, role)),
            ("boolean", attested),
            ("jsonb", json_parameter(learned_from)),
            ("float8", class_threshold),
        )
        if checked and artifact is not None and signature.cost is not None:
            note_cost(db, row["id"], signature.cost)
        _update_figures(db, row["id"], figures, role)
        return str(row["id"])

    return _by_id(db, db.write(insert))


def _by_id(db: Database, model_id: str) -> Model:
    model = find_by_id(db, model_id)
    if model is None:
        # A policy that lets a role register what it may not see.
        raise UndefinedModel("the model is not visible to the role that registered it")
    return model


_FIGURES: Mapping[str, str] = {
    "metric": "text",
    "accuracy": "float8",
    "accuracy_low": "float8",
    "accuracy_high": "float8",
    "avg_latency_ms": "float8",
    "latency_low_ms": "float8",
    "latency_high_ms": "float8",
    "p50_latency_ms": "float8",
    "p95_latency_ms": "float8",
    "p99_latency_ms": "float8",
    "latency_declared": "boolean",
    "measured_on": "jsonb",
    "measured_at": "timestamptz",
    "attested": "boolean",
    "origin": "jsonb",
}


REPORTED = frozenset(_FIGURES) - {"attested"}
"""Columns of figures that whoever measured may say; whether they count is not for him to say."""


def update_figures(db: Database, model_id: str, figures: Mapping[str, Any]) -> None:
    """Store measured figures; keys are columns of ``distill.models``.

    Of a model that the current role may not write nothing is stored: figures of somebody's model are not to be had by
    distilling it on rows of one's own choice.
    """
    role = current_role(db)
    db.write(lambda: _update_figures(db, model_id, figures, role))


def _update_figures(db: Database, model_id: str, figures: Mapping[str, Any], role: Role) -> None:
    arguments: list[Argument] = [(_FIGURES[key], json_parameter(value)) for key, value in figures.items()]
    assignments = ", ".join(f"{quote_identifier(key)} = ${i + 4}" for i, key in enumerate(figures))
    if assignments:
        db.query(
            f"update distill.models m set {assignments} where m.id = $3 and {MAY_WRITE}",
            *writer(role),
            ("uuid", model_id),
            *arguments,
        )


def activate(db: Database, name: str, version: str) -> str:
    """Make ``version`` the active one of ``name``; return its id.

    Raises
    ------
    InsufficientPrivilege
        The name is another role's.
    """
    model, role = find_model(db, f"{name}:{version}"), current_role(db)

    def make_active() -> None:
        lock_names(db, [name])
        hold_name(db, name, role, visible=True)
        if not db.query("select from distill.models m where m.id = $1", ("uuid", model.id)):
            raise UndefinedModel(f'model "{model.qualified_name}" was dropped meanwhile')
        db.query(
            "update distill.models m set active = false where m.name = $1 and m.active and m.id <> $2",
            ("text", name),
            ("uuid", model.id),
        )
        db.query(
            "update distill.models m set active = true where m.id = $1 and not m.active", ("uuid", model.id)
        )

    db.write(make_active)
    return model.id


def drop(db: Database, model: str) -> list[Dropped]:
    """Remove one version, or every version of a name; return what is gone.

    Of the versions that remain the newest becomes active, if the active one was removed.

    Raises
    ------
    DependentObjects
        Students depend on it, also such as the current role cannot see.
    InsufficientPrivilege
        The name is another role's.
    """
    name, colon, version = model.partition(":")
    role, visible = current_role(db), sees_name(db, name)
    if not visible:
        raise UndefinedModel(f'model "{model}" does not exist')

    def remove() -> list[Dropped]:
        lock_names(db, [name])
        rows = db.query(
            "select m.id::pg_catalog.text as id, m.version, m.active, m.owner from distill.models m"
            # A distillation by another role holds its teacher's row, not its name: whoever comes first is seen by the other.
            " where m.name = $1 and ($2 is null or m.version = $2) order by m.id for update",
            ("text", name),
            ("text", version if colon else None),
        )
        if not rows:
            raise UndefinedModel(f'model "{model}" does not exist')
        hold_name(db, name, role, visible=True)
        ids = [row["id"] for row in rows]
        students = db.query(
            "select m.name, m.version from distill.models m where m.teacher_id = any ($1) and m.id <> all ($1)"
            " order by m.name, m.version",
            ("uuid[]", ids),
        )
        if students:
            raise _HasStudents([f"{s['name']}:{s['version']}" for s in students])
        db.query("delete from distill.models m where m.id = any ($1)", ("uuid[]", ids))
        if any(row["active"] for row in rows):
            newest = db.query(
                "select m.id::pg_catalog.text as id, m.version from distill.models m where m.name = $1"
                " and m.created_at = (select pg_catalog.max(o.created_at) from distill.models o where o.name = $1)",
                ("text", name),
            )
            for row in sorted(newest, key=lambda row: _natural(row["version"]))[-1:]:
                db.query("update distill.models set active = true where id = $1", ("uuid", row["id"]))
        gone = not db.query("select from distill.models m where m.name = $1", ("text", name))
        return [Dropped(name, row["version"], row["owner"], gone) for row in rows]

    try:
        return db.write(remove)
    except _HasStudents as error:
        seen = [s for s in error.names if _sees_model(db, s)]
        hidden = len(error.names) - len(seen)
        named = [*seen, *([f"{hidden} that you cannot see"] if hidden else [])]
        raise DependentObjects(
            f'model "{model}" cannot be dropped because students depend on it',
            detail=f"It is the teacher of {', '.join(named)}.",
            hint="Drop the students first.",
        ) from None


class _HasStudents(Exception):
    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


def _sees_model(db: Database, model: str) -> bool:
    name, _, version = model.partition(":")
    return bool(
        db.query(
            "select from distill.models m where m.name = $1 and m.version = $2",
            ("text", name),
            ("text", version),
        )
    )


def _natural(version: str) -> list[Any]:
    """Return a key by which versions of one moment are ordered: "9" before "10"."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", version))]


def find_teacher(db: Database, model: Model) -> Model | None:
    """Return the teacher of a student, where it has one that the current role can see."""
    return find_by_id(db, model.teacher_id)


def find_by_id(db: Database, model_id: str | None) -> Model | None:
    """Return a model, None where there is none of this id that the current role can see."""
    rows = db.query(f"select {MODEL_COLUMNS} from distill.models m where m.id = $1", ("uuid", model_id))
    return model_of_row(rows[0]) if rows else None
