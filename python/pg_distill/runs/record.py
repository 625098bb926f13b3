"""What a run leaves in the registry: the student, fresh figures of the family, the run and its candidates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from pg_distill.child.messages import Trial
from pg_distill.database.protocol import Database
from pg_distill.errors import InvalidParameter, UndefinedModel
from pg_distill.measure.scores import Scores
from pg_distill.onnx_model.signature import Signature
from pg_distill.registry import locks, model, models, queue, rights, runs
from pg_distill.registry.model import MeasuredOn
from pg_distill.registry.queue import Job
from pg_distill.rows.split import TEST
from pg_distill.runs import verdict
from pg_distill.runs.choice import offer_name, predict_name
from pg_distill.runs.columns import Run, accuracy_columns, accuracy_origin, column_types
from pg_distill.runs.material import Material
from pg_distill.runs.measured import Measured
from pg_distill.runs.options import constraints_of
from pg_distill.serving.timing import Timing, how_timed, latency_figures

__all__ = ["Outcome", "Report", "family", "store", "store_job", "student"]


def _figures(
    run: Run,
    material: Material,
    scores: Scores | None,
    timing: Timing | None,
    by_predict: Timing | None = None,
    *,
    twin: str | None = None,
    before: MeasuredOn | None = None,
    comparable: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Return columns of ``distill.models``.

    Parameters
    ----------
    scores
        None for a member that the run's test rows may not judge: its accuracy stays, marked as that of ``before``, what was
        stored of where it was measured.
    by_predict
        For a student whose own latency is that of its SQL form.
    twin
        The digest of the file that was judged in its place; see `MeasuredOn`.
    comparable
        See `verdict.comparable_interval`.
    """
    measured_on: MeasuredOn = {
        "run_id": run.id,
        **accuracy_origin(scores, material.sample.count(TEST), comparable, before),
        **how_timed(timing, run.machine, by_predict),
    }
    if twin is not None:
        measured_on["twin"] = twin
    return {
        **accuracy_columns(material.metric, scores),
        **(latency_figures(timing) if timing is not None else {}),
        "measured_on": measured_on,
        "measured_at": datetime.now(UTC).isoformat(),
    }


def student(run: Run, name: str, chosen: Trial, material: Material, found: Measured) -> dict[str, Any]:
    """Return the chosen candidate as arguments of `registry.insert_model`: the next version of ``name``."""
    assert chosen.artifact is not None and chosen.signature is not None
    by_predict = found.timings[offer_name(chosen.scored_as)] if chosen.form == "sql" else None
    made = found.registered or chosen
    twin = hashlib.sha256(chosen.artifact).hexdigest() if found.registered is not None else None
    return {
        "name": name,
        "version": None,
        "task": found.teacher.task,
        "kind": "onnx",
        "artifact": made.artifact,
        "expression": made.expression,
        "signature": made.signature,
        "sample": material.source.query,
        "label": material.label,
        "teacher_id": found.teacher.id,
        "types": column_types(material, chosen.signature),
        "monotone": run.options.constraints,
        "form": chosen.form,
        "threshold": chosen.threshold,
        "class_threshold": chosen.class_threshold,
        "learned_from": material.learned(run.id, test=found.registered is not None).to_json(),
        "figures": _figures(
            run, material, found.scores_of(chosen), found.timing_of(chosen), by_predict, twin=twin
        ),
    }


def family(run: Run, material: Material, found: Measured) -> dict[str, Mapping[str, Any]]:
    """Return the figures that the run measured of the teacher and its family, by id: same server, same hour."""
    teacher, figures, timings = found.teacher, found.figures, found.timings
    rows: dict[str, Mapping[str, Any]] = {
        teacher.id: _figures(run, material, figures["teacher"], timings.get(teacher.id))
    }
    chosen = found.decision.chosen
    for key, member in found.members.items():
        scores = figures["members"].get(key)
        comparable = None
        if scores is not None and "against" in scores and chosen is not None:
            number = str(chosen.scored_as)
            there = scores["against"]["candidates"][number]
            comparable = verdict.comparable_interval(scores, figures["candidates"][number]["score"], there)
        rows[key] = _figures(
            run,
            material,
            scores,
            timings.get(key),
            timings.get(predict_name(member)),
            before=found.before.get(key),
            comparable=comparable,
        )
    return rows


_STUDENT = frozenset(
    {
        "name",
        "version",
        "task",
        "kind",
        "artifact",
        "expression",
        "signature",
        "sample",
        "label",
        "teacher_id",
        "types",
    }
    | {"form", "threshold", "class_threshold", "learned_from", "figures", "monotone"}
)
"""What `student` returns."""


@dataclass(frozen=True)
class Report:
    """What a run leaves: rows of the registry, not written yet.

    Attributes
    ----------
    teacher_id
        The teacher, which must be there still.
    names
        Of the student and the family: locked while this is written.
    student
        Arguments of `registry.insert_model`, None where no student was accepted.
    family
        Fresh figures by model id.
    run, candidates
        Columns of ``distill.runs`` and ``distill.candidates``.
    """

    teacher_id: str
    names: Sequence[str]
    student: Mapping[str, Any] | None
    family: Mapping[str, Mapping[str, Any]]
    run: Mapping[str, Any]
    candidates: Sequence[Mapping[str, Any]]

    def to_wire(self) -> tuple[str, list[bytes]]:
        """Return it as JSON and the files that the JSON counts, for a client's message."""
        files: list[bytes] = []

        def plain(value: Any) -> Any:
            if isinstance(value, bytes):
                files.append(value)
                return {"file": len(files) - 1}
            if isinstance(value, Signature):
                return value.to_json()
            raise TypeError(f"{type(value)} is not sent")

        return json.dumps({f.name: getattr(self, f.name) for f in fields(self)}, default=plain), files

    @classmethod
    def from_wire(cls, text: str, files: Sequence[bytes]) -> Report:
        """Return what `to_wire` gave; InvalidParameter where it is none."""
        try:
            given = json.loads(text)
            made = given["student"] or {"figures": {}}
            rows = (given["run"], given["family"], *given["candidates"], made, made["figures"])
            if not all(isinstance(row, dict) for row in rows):
                raise TypeError("rows are objects")
            for row in (given["student"], *given["candidates"]):
                if row is not None and row["artifact"] is not None:
                    row["artifact"] = files[int(row["artifact"]["file"])]
            if given["student"] is not None:
                given["student"]["signature"] = Signature.from_json(*given["student"]["signature"])
            return cls(**given)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InvalidParameter("the report of the run is not readable", detail=f"{error!r}.") from None


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the student's id where one was accepted, and the summary."""

    run_id: str
    student_id: str | None
    summary: str


def store(
    db: Database,
    report: Report,
    *,
    attested: bool = True,
    checked: bool = True,
    complete: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Write what a run leaves, all or nothing.

    Parameters
    ----------
    attested
        Whether this backend has run and measured it. Where not, figures of models are not touched.
    checked
        Whether a child of this backend has checked the student's file.
    complete
        Called with the outcome at the end; what it raises undoes the run.
    """
    teacher = models.find_by_id(db, report.teacher_id)
    if teacher is None:
        raise UndefinedModel(f'model "{report.run["teacher_name"]}" was dropped meanwhile')
    with db.subtransaction():
        locks.lock_family(db, teacher, report.names)
        run = {**report.run, "teacher_id": teacher.id, "student_id": None, "student_version": None}
        if report.student is not None:
            made = models.insert_model(db, **report.student, attested=attested, checked=checked)
            run |= {"student_id": made.id, "student_version": made.version}
        if attested:
            for key, figures in report.family.items():
                models.update_figures(db, key, figures)
        runs.insert_run(db, run, report.candidates, attested=attested)
        outcome = Outcome(run["run_id"], run["student_id"], run["summary"])
        complete(outcome)
    return outcome


def store_job(db: Database, job: Job, report: Report, *, checked: Sequence[bytes]) -> Outcome:
    """Write what a worker says that a job of the current role has left, and end the job.

    The worker's process is the role's own: what it measured counts for that role, and for others only where it is a
    superuser. What it says of other models' figures does not count at all.

    Parameters
    ----------
    checked
        The files that a child of this backend has checked with their signatures.

    Raises
    ------
    InvalidParameter
        The report is of another job.
    InvalidState
        The job was cancelled or taken over meanwhile.
    """
    teacher = models.find_model(db, str(job.read_arguments().get("teacher")))
    made = report.student
    if report.run.get("run_id") != job.run_id or report.teacher_id != teacher.id:
        raise InvalidParameter(f'the report is not of job "{job.run_id}"')
    if decided := {"teacher_id", "student_id", "student_version", "owner", "attested", "created_at"} & set(
        report.run
    ):
        raise InvalidParameter(f'column "{min(decided)}" of a run is not for its worker to say')
    asked = constraints_of(job.read_arguments().get("monotone"))
    for row in report.candidates:  # any of which can be promoted later
        schema = row.get("input_schema")
        if schema is not None and (not isinstance(schema, dict) or schema.get("monotone", {}) != asked):
            raise InvalidParameter("a candidate is of other monotone constraints than its job")
    if made is not None:
        if (
            made.get("teacher_id") != teacher.id
            or made.get("kind") != "onnx"
            or made["artifact"] not in checked
        ):
            raise InvalidParameter(f'the student is not of job "{job.run_id}"')
        if surplus := set(made) - _STUDENT:
            raise InvalidParameter(f'a student has no "{min(surplus)}"')
        if surplus := set(made["figures"]) - models.REPORTED:
            raise InvalidParameter(f'figure "{min(surplus)}" of a student is not for its worker to say')
        if made.get("monotone", {}) != asked:
            raise InvalidParameter("the student is of other monotone constraints than its job")
        model.check_name(str(made.get("name")), "student name")
    return store(
        db,
        report,
        attested=rights.current_role(db).is_superuser,
        checked=True,
        complete=lambda outcome: queue.complete(db, job, outcome.student_id, outcome.summary),
    )
