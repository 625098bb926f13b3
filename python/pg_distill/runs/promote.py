"""A candidate becomes a model: at the end of its run, or when somebody asks for it later."""

from __future__ import annotations

import json

from pg_distill.database.protocol import Database
from pg_distill.errors import InvalidState
from pg_distill.frame import ModelForm
from pg_distill.onnx_model.signature import Signature
from pg_distill.registry import locks, model, models, runs
from pg_distill.registry.model import MeasuredOn
from pg_distill.runs.options import constraints_of
from pg_distill.serving.timing import predict_path, sql_path

__all__ = ["promote"]

_CANDIDATE_FIGURES = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "avg_latency_ms",
    "latency_low_ms",
    "latency_high_ms",
    "p50_latency_ms",
    "p95_latency_ms",
    "p99_latency_ms",
)


def promote(db: Database, run_id: str, number: int) -> str:
    """Register a candidate that its run kept as the next version of the run's student name; return its id.

    Raises
    ------
    UndefinedObject
        There is no such run.
    InvalidParameter
        It has no such candidate.
    InsufficientPrivilege
        Another role ran it, which is no superuser: SQL of it would be stored as the caller's.
    InvalidState
        Its file was not kept, because it was on no frontier; or its teacher has been dropped.
    """
    run = runs.find_run(db, run_id)
    # Its sample, its student's expression and types would count as the caller's own from here on.
    model.require_owner(
        db, run["owner"], f'the SQL of run "{run_id}"', hint="Have that role promote it, or SET ROLE to it."
    )
    found = runs.find_candidate(db, run_id, number)
    if found["artifact"] is None:
        raise InvalidState(
            f"candidate {number} of run {run_id} was not kept",
            detail="Its file has been pruned."
            if found["on_frontier"]
            else f"It was on no frontier, or has been pruned: {found['reason']}.",
        )
    if run["teacher_id"] is None:
        raise InvalidState(f'the teacher of run "{run_id}" has been dropped')
    teacher = models.find_model(db, f"{run['teacher_name']}:{run['teacher_version']}")
    locks.lock_family(db, teacher, [run["student_name"]])
    resolved = json.loads(run["resolved"])
    measured = {key: found[key] for key in _CANDIDATE_FIGURES}
    form: ModelForm = found["form"]
    machine = json.loads(run["machine"])
    by_predict: MeasuredOn = runs.predict_latency(db, run_id, found["sha256"]) if form == "sql" else {}
    input_schema = json.loads(found["input_schema"])
    signature = Signature.from_json(input_schema, json.loads(found["output_schema"]))
    measured_on: MeasuredOn = {
        "run_id": run_id,
        "rows": run["rows_test"],
        "path": sql_path(found["expression"], machine) if form == "sql" else predict_path(signature),
        "machine": machine,
        **by_predict,
    }
    made = models.insert_model(
        db,
        attested=run["attested"],
        name=run["student_name"],
        version=None,
        task=teacher.task,
        kind="onnx",
        artifact=found["artifact"],
        expression=found["expression"],
        form=form,
        threshold=found["threshold"],
        class_threshold=found["class_threshold"],
        learned_from=json.loads(run["learned_from"]) if run["learned_from"] is not None else None,
        signature=signature,
        sample=resolved["sample"],
        label=resolved["label"],
        teacher_id=teacher.id,
        types=input_schema.get("types"),
        monotone=constraints_of(input_schema.get("monotone")),
        checked=False,  # the row of a candidate may have been restored
        figures={
            **measured,
            "metric": run["metric"],
            "measured_on": measured_on,
            "measured_at": run["created_at"],
        },
    )
    return made.id
