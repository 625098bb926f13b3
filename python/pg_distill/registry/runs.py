"""The rows of runs and candidates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pg_distill.database.protocol import Database, Row
from pg_distill.errors import (
    InvalidParameter,
    InvalidState,
    UndefinedModel,
    UndefinedObject,
)
from pg_distill.quoting import quote_identifier
from pg_distill.registry.model import MeasuredOn, Model
from pg_distill.registry.rights import current_role, own_name

__all__ = [
    "find_candidate",
    "find_run",
    "insert_run",
    "json_parameter",
    "last_run",
    "measured_on",
    "predict_latency",
    "recorded_fidelity",
    "recorded_figures",
    "run_of",
    "sample_of",
    "server_figures",
]


def json_parameter(value: Any) -> Any:
    """Return a value as a statement takes it: mappings and lists as JSON."""
    return json.dumps(value) if isinstance(value, Mapping | list | tuple) else value


def _insert(db: Database, table: str, types: Mapping[str, str], values: Mapping[str, Any]) -> None:
    if surplus := set(values) - set(types):
        raise InvalidParameter(f'table distill.{table} has no column "{min(surplus)}"')
    columns = ", ".join(quote_identifier(key) for key in values)
    places = ", ".join(f"${i + 1}" for i in range(len(values)))
    db.query(
        f"insert into distill.{table} ({columns}) values ({places})",
        *((types[key], json_parameter(value)) for key, value in values.items()),
    )


def _column_types(db: Database, table: str) -> Mapping[str, str]:
    rows = db.query(
        "select a.attname::pg_catalog.text as name, pg_catalog.format_type(a.atttypid, null) as type"
        " from pg_catalog.pg_attribute a"
        " where a.attrelid = $1::pg_catalog.regclass and a.attnum > 0 and not a.attisdropped",
        ("text", f"distill.{table}"),
    )
    return {row["name"]: row["type"] for row in rows}


def insert_run(
    db: Database, values: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], *, attested: bool = True
) -> None:
    """Record a run of the current role and its candidates; keys are columns of ``distill.runs`` and ``distill.candidates``."""
    role = current_role(db)

    def insert() -> None:
        given = {**values, "owner": own_name(db, role), "attested": attested}
        _insert(db, "runs", _column_types(db, "runs"), given)
        types = _column_types(db, "candidates")
        for candidate in candidates:
            _insert(db, "candidates", types, {**candidate, "run_id": values["run_id"]})

    db.write(insert)


def last_run(db: Database, teacher: str) -> str | None:
    """Return the latest run of the teacher's name, of the version where one is named."""
    name, colon, version = teacher.partition(":")
    rows = db.query(
        "select r.run_id::pg_catalog.text as run_id from distill.runs r where r.teacher_name = $1"
        " and ($2 is null or r.teacher_version = $2) and (r.attested or distill._is_trusted(r.owner))"
        " order by r.created_at desc, r.started_at desc limit 1",
        ("text", name),
        ("text", version if colon else None),
    )
    return rows[0]["run_id"] if rows else None


def find_run(db: Database, run_id: str) -> Row:
    """Return a run's row; ``student_model_id`` is its student, jsonb columns are text."""
    rows = db.query(
        "select r.*, r.student_id as student_model_id from distill.runs r where r.run_id = $1",
        ("uuid", run_id),
    )
    if not rows:
        raise UndefinedObject(f'run "{run_id}" does not exist')
    return rows[0]


def predict_latency(db: Database, run_id: str, sha256: str) -> MeasuredOn:
    """Return what predict took, in a run, for the student of this digest."""
    rows = db.query(
        "select c.avg_latency_ms as predict_latency_ms, c.latency_high_ms as predict_latency_high_ms"
        " from distill.candidates c where c.run_id = $1 and c.sha256 = $2 and c.form = 'predict'"
        " order by c.candidate limit 1",
        ("uuid", run_id),
        ("text", sha256),
    )
    found: MeasuredOn = {}
    for row in rows:
        found["predict_latency_ms"] = row["predict_latency_ms"]
        found["predict_latency_high_ms"] = row["predict_latency_high_ms"]
    return found


def find_candidate(db: Database, run_id: str, number: int) -> Row:
    """Return a candidate's row; jsonb columns are text."""
    rows = db.query(
        "select c.* from distill.candidates c where c.run_id = $1 and c.candidate = $2",
        ("uuid", run_id),
        ("int4", number),
    )
    if not rows:
        raise InvalidParameter(f'run "{run_id}" has no candidate {number}')
    return rows[0]


def sample_of(db: Database, model: Model, sample: str | None) -> str:
    """Return the sample to use: the caller's, or that which was stored with the model.

    Raises
    ------
    InvalidState
        There is neither.
    InsufficientPrivilege
        It was stored by another role.
    """
    if sample is not None:
        return sample
    if model.sample is None:
        raise InvalidState(
            f'model "{model.qualified_name}" has no sample',
            hint="Pass sample => a relation or query that gives rows.",
        )
    return model.sample.text_for_caller(db, hint="Pass sample => ... .")


def server_figures(db: Database) -> Row:
    """Return the server's version and what else of it a latency depends on."""
    return db.query(
        "select pg_catalog.current_setting('server_version') as postgresql,"
        " pg_catalog.current_setting('jit') as jit, pg_catalog.pg_is_in_recovery() as standby"
    )[0]


def run_of(db: Database, model: Model) -> Row | None:
    """Return the run that made a student, or the last that measured a teacher; jsonb columns are text."""
    rows = db.query(
        "select r.* from distill.runs r where (r.student_id = $1 or r.teacher_id = $1 or (r.teacher_id = $2 and exists"
        " (select from distill.candidates c where c.run_id = r.run_id and c.sha256 = $3)))"
        " and (r.attested or distill._is_trusted(r.owner))"
        " order by coalesce(r.student_id = $1, false) desc, r.created_at desc, r.started_at desc limit 1",
        ("uuid", model.id),
        ("uuid", model.teacher_id),
        ("text", model.sha256),
    )
    return rows[0] if rows else None


def recorded_figures(db: Database, ids: Sequence[str]) -> dict[str, Row]:
    """Return what is recorded of models, by id: accuracy and latency with their intervals, and ``measured_on`` as text.

    Raises
    ------
    UndefinedModel
        One of them was dropped meanwhile.
    """
    rows = db.query(
        "select m.id::pg_catalog.text as id, m.accuracy, m.accuracy_low, m.accuracy_high, m.avg_latency_ms, m.latency_low_ms,"
        " m.latency_high_ms, m.metric, m.measured_on::pg_catalog.text as measured_on from distill.models m"
        " where m.id = any ($1)",
        ("uuid[]", list(ids)),
    )
    if len(rows) < len(set(ids)):
        raise UndefinedModel("a model of the family was dropped meanwhile")
    return {row["id"]: row for row in rows}


def measured_on(db: Database, ids: Iterable[str]) -> dict[str, MeasuredOn]:
    """Return where models were measured, by id; what others have dropped meanwhile, and what never was, is left out."""
    rows = db.query(
        "select m.id::pg_catalog.text as id, m.measured_on::pg_catalog.text as measured_on from distill.models m"
        " where m.id = any ($1) and m.measured_on is not null",
        ("uuid[]", list(ids)),
    )
    return {row["id"]: json.loads(row["measured_on"]) for row in rows}


def recorded_fidelity(db: Database, student: Model) -> tuple[float | None, int]:
    """Return a student's fidelity in the run that made it, and the rows that it was measured on; None where no run did."""
    rows = db.query(
        "select c.fidelity, r.rows_test from distill.candidates c join distill.runs r using (run_id)"
        " where r.teacher_id = $1 and c.sha256 = $2 and c.fidelity is not null and (r.attested or distill._is_trusted(r.owner))"
        " order by coalesce(r.student_id = $3, false) desc, r.created_at desc limit 1",
        ("uuid", student.teacher_id),
        ("text", student.sha256),
        ("uuid", student.id),
    )
    return (rows[0]["fidelity"], rows[0]["rows_test"]) if rows else (None, 0)
