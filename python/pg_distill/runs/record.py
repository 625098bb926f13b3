"""What a run leaves in the registry: the student, fresh figures of the family, the run and its candidates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from pg_distill.child.messages import Trial
from pg_distill.database.protocol import Database
from pg_distill.errors import InvalidParameter, UndefinedModel
from pg_distill.measure import metrics, pareto
from pg_distill.onnx_model.signature import Signature
from pg_distill.registry import locks, model, models, queue, rights, runs
from pg_distill.registry.model import Model
from pg_distill.registry.queue import Job
from pg_distill.rows.split import FIT, SELECT, TEST, UNLABELLED
from pg_distill.runs import choice, verdict
from pg_distill.runs.choice import is_offered, offer_name, predict_name, stands_in
from pg_distill.runs.material import Material
from pg_distill.runs.options import Options
from pg_distill.runs.verdict import Verdict
from pg_distill.serving.timing import Timing
from pg_distill.teachers.register import default_metric, latency_figures

__all__ = [
    "Outcome",
    "Report",
    "Run",
    "accuracy_columns",
    "accuracy_origin",
    "family",
    "run_and_candidates",
    "store",
    "store_job",
    "student",
]

_NO_COLUMNS = ("on_frontier", "reason", "select_classes", "tie_break_select", "jackknife_select")
"""Fields of a trial that are not columns of ``distill.candidates`` as they stand."""


@dataclass(frozen=True)
class Run:
    """A run's identity."""

    id: str
    options: Options
    started_at: datetime
    machine: Mapping[str, Any]


def _figures(
    run: Run,
    material: Material,
    scores: Mapping[str, Any] | None,
    timing: Timing | None,
    by_predict: Timing | None = None,
    *,
    before: Mapping[str, Any] | None = None,
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
    comparable
        See `verdict.comparable_interval`.
    """
    return {
        **accuracy_columns(material.metric, scores),
        **(latency_figures(timing) if timing is not None else {}),
        "measured_on": {
            "run_id": run.id,
            **accuracy_origin(scores, material.sample.count(TEST), comparable, before),
            "path": timing.path if timing else None,
            "calls": timing.latency.n_calls if timing else 0,
            "blocks": timing.latency.n_blocks if timing else 0,
            "cold_ms": timing.cold_ms if timing else None,
            "machine": dict(run.machine),
            **(
                {
                    "predict_latency_ms": by_predict.latency.mean_ms,
                    "predict_latency_high_ms": by_predict.latency.high_ms,
                }
                if by_predict is not None
                else {}
            ),
        },
        "measured_at": datetime.now(UTC).isoformat(),
    }


def accuracy_columns(metric: str, scores: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the columns of ``distill.models`` that a judgement changes; none where there was none."""
    if scores is None:
        return {}
    return {
        "metric": metric,
        "accuracy": scores["score"],
        "accuracy_low": scores["score_low"],
        "accuracy_high": scores["score_high"],
    }


def accuracy_origin(
    scores: Mapping[str, Any] | None,
    rows_test: int,
    comparable: tuple[float, float] | None,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what ``measured_on`` says of an accuracy: how many rows judged, or that it is of another run and which."""
    if scores is not None:
        found = {"rows": scores["rows"]}
        if "against" in scores:
            low, high = comparable or (None, None)
            found |= {"rows_test": rows_test, "comparable_low": low, "comparable_high": high}
        return found
    known = before or {}
    return {
        "rows": known.get("rows"),
        "accuracy_run_id": known.get("accuracy_run_id") or known.get("run_id") or UNKNOWN_RUN,
        **{key: known[key] for key in ("rows_test", "comparable_low", "comparable_high") if key in known},
    }


UNKNOWN_RUN = "unknown"  # stands for the run of an accuracy that is of no run that is known


def student(
    run: Run,
    teacher: Model,
    name: str,
    chosen: Trial,
    material: Material,
    timings: Mapping[str, Timing],
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the chosen candidate as arguments of `registry.insert_model`: the next version of ``name``."""
    assert chosen.artifact is not None and chosen.signature is not None
    scores = figures["candidates"][str(chosen.scored_as)]
    by_predict = timings[offer_name(chosen.scored_as)] if chosen.form == "sql" else None
    return {
        "name": name,
        "version": None,
        "task": teacher.task,
        "kind": "onnx",
        "artifact": chosen.artifact,
        "expression": chosen.fields.get("expression"),
        "signature": chosen.signature,
        "sample": material.source.query,
        "label": material.label,
        "teacher_id": teacher.id,
        "types": _column_types(material, chosen.signature),
        "form": chosen.form,
        "threshold": chosen.fields.get("threshold"),
        "class_threshold": chosen.fields.get("class_threshold"),
        "learned_from": material.learned(run.id).to_json(),
        "figures": _figures(run, material, scores, timings[offer_name(chosen.number)], by_predict),
    }


def family(
    run: Run,
    teacher: Model,
    members: Mapping[str, Model],
    material: Material,
    timings: Mapping[str, Timing],
    figures: Mapping[str, Any],
    chosen: Trial | None,
    before: Mapping[str, Mapping[str, Any]],
) -> dict[str, Mapping[str, Any]]:
    """Return the figures that the run measured of the teacher and its family: same server, same hour.

    ``before`` is where its members were measured until now, by id.
    """
    found: dict[str, Mapping[str, Any]] = {
        teacher.id: _figures(run, material, figures["teacher"], timings.get(teacher.id))
    }
    for key, member in members.items():
        by_predict = timings.get(predict_name(member))
        scores = figures["members"].get(key)
        comparable = None
        if scores is not None and "against" in scores and chosen is not None:
            number = str(chosen.scored_as)
            there = scores["against"]["candidates"][number]
            comparable = verdict.comparable_interval(scores, figures["candidates"][number]["score"], there)
        found[key] = _figures(
            run,
            material,
            scores,
            timings.get(key),
            by_predict,
            before=before.get(key),
            comparable=comparable,
        )
    return found


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
    | {"form", "threshold", "class_threshold", "learned_from", "figures"}
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
        model.check_name(str(made.get("name")), "student name")
    return store(
        db,
        report,
        attested=rights.current_role(db).is_superuser,
        checked=True,
        complete=lambda outcome: queue.complete(db, job, outcome.student_id, outcome.summary),
    )


def _latency_columns(prefix: str, timing: Timing | None) -> dict[str, Any]:
    return {
        f"{prefix}_latency_ms": timing.latency.mean_ms if timing else None,
        f"{prefix}_latency_low_ms": timing.latency.low_ms if timing else None,
        f"{prefix}_latency_high_ms": timing.latency.high_ms if timing else None,
    }


def _accuracy_columns(prefix: str, scores: Mapping[str, Any] | None) -> dict[str, Any]:
    scores = scores or {}
    return {
        f"{prefix}_accuracy": scores.get("score"),
        f"{prefix}_accuracy_low": scores.get("score_low"),
        f"{prefix}_accuracy_high": scores.get("score_high"),
        f"{prefix}_log_loss": scores.get("log_loss"),
    }


def _column_types(material: Material, signature: Signature) -> dict[str, str]:
    """Return the types of the sample's columns, which the caller named, and not those that the teacher's owner stored."""
    return {name: material.source.types[name] for name in signature.names}


def _candidate(
    trial: Trial,
    material: Material,
    timing: Timing | None,
    scores: Mapping[str, Any] | None,
    *,
    on_frontier: bool,
    kept: bool,
    chosen: bool,
    reason: str,
) -> dict[str, Any]:
    """Return columns of ``distill.candidates``."""
    columns = {key: value for key, value in trial.fields.items() if key not in _NO_COLUMNS}
    if timing is not None:
        columns.update({k: v for k, v in latency_figures(timing).items() if k != "latency_declared"})
    if scores is not None:
        columns.update(
            accuracy=scores["score"],
            accuracy_low=scores["score_low"],
            accuracy_high=scores["score_high"],
            fidelity=scores["fidelity"],
            log_loss=scores["log_loss"],
        )
    if trial.artifact is not None:
        columns["sha256"] = hashlib.sha256(trial.artifact).hexdigest()
    columns.update(
        on_frontier=on_frontier,
        chosen=chosen,
        reason=reason,
        artifact=trial.artifact if kept else None,
        expression=trial.fields.get("expression") if kept else None,
    )
    if trial.signature is not None:
        columns["input_schema"], columns["output_schema"] = trial.signature.to_json()
        columns["input_schema"]["types"] = _column_types(material, trial.signature)
    return columns


def run_and_candidates(
    run: Run,
    *,
    teacher: Model,
    student_name: str,
    members: Mapping[str, Model],
    material: Material,
    loaded: Mapping[str, Any],
    configuration: Mapping[str, Any],
    trials: Sequence[Trial],
    finalists: Sequence[Trial],
    control: Trial | None,
    timings: Mapping[str, Timing],
    figures: Mapping[str, Any],
    compared: Mapping[str, Any],
    decision: Verdict,
    summary: str,
    seconds: Mapping[str, float],
    survey: Mapping[str, Any],
    warnings: Sequence[str],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the run, without its student's id and version, and every candidate, accepted or not, with the reason."""
    sample, options = material.sample, run.options
    scores, chosen = figures["candidates"], decision.chosen
    ours = scores[str(chosen.scored_as)] if chosen is not None else None
    timing = timings[offer_name(chosen.number)] if chosen is not None else None
    teacher_columns = _latency_columns("teacher", timings.get(teacher.id))
    if teacher.kind == "logged":
        teacher_columns["teacher_latency_ms"] = teacher.avg_latency_ms
    resolved = {
        **asdict(options),
        "teacher": teacher.qualified_name,
        "sample": material.source.query,
        "label": material.label,
        "metric": material.metric,
        "trained_on": material.trained_on.query if material.trained_on is not None else None,
        "student_name": student_name,
        "families": list(configuration["families"]),
    }
    row = {
        "run_id": run.id,
        "teacher_name": teacher.name,
        "teacher_version": teacher.version,
        "student_name": student_name,
        "accepted": decision.accepted,
        "summary": summary,
        "requested": {k: v for k, v in asdict(options).items() if v is not None},
        "resolved": resolved,
        "seed": options.seed,
        "metric": material.metric,
        **teacher_columns,
        **_latency_columns("student", timing),
        **_accuracy_columns("teacher", figures["teacher"]),
        **_accuracy_columns("student", ours),
        "latency_declared": teacher.latency_declared,
        "pareto_score": decision.pareto_score,
        "fidelity": ours["fidelity"] if ours is not None else None,
        "lift": ours["lift"] if ours is not None else None,
        "majority_accuracy": figures["majority"],
        "figures": {
            **_compared(material.metric, teacher, figures["teacher"], ours, control, scores, compared),
            "asked": len(decision.refused) + decision.accepted,
            "labelling": dict(loaded),
            "search": dict(configuration),
            "chosen": chosen.number if chosen is not None else None,
            "teacher_latency": asdict(timings[teacher.id].latency) if teacher.id in timings else None,
            "student_latency": asdict(timing.latency) if timing is not None else None,
            "student_cold_ms": timing.cold_ms if timing is not None else None,
            "teacher_path": timings[teacher.id].path if teacher.id in timings else None,
            "family": _family_figures(members, figures),
            "floor": _floor(options, material.metric, teacher, figures),
            "survey": dict(survey),
            "warnings": list(warnings),
        },
        "predict_path": timing.path if timing is not None else None,
        "rows_total": sample.rows_total,
        "rows_fit": sample.count(FIT),
        "rows_select": sample.count(SELECT),
        "rows_test": sample.count(TEST),
        "rows_unlabelled": sample.count(UNLABELLED),
        "sample_digest": sample.digest,
        "machine": dict(run.machine),
        "timings": dict(seconds),
        "started_at": run.started_at.isoformat(),
        "learned_from": material.learned(run.id).to_json(),
    }
    undefined = float("-inf")  # a metric that is not defined on the test rows is dominated by any that is
    points = {}
    form_of = {trial.number: trial.form for trial in finalists}
    for trial in finalists:
        score = scores[str(trial.scored_as)]["score"]
        points[trial.number] = (
            timings[offer_name(trial.number)].latency.mean_ms,
            undefined if score is None else score,
        )
    kept_by_search = {trial.number for trial in choice.kept_by_search(trials)}
    candidates = []
    for trial in trials:
        is_finalist = trial.number in points
        beaten = is_finalist and any(
            pareto.dominates(other, points[trial.number])
            for n, other in points.items()
            if stands_in(form_of[n], trial.form)
        )
        candidates.append(
            _candidate(
                trial,
                material,
                timings.get(offer_name(trial.number)),
                scores.get(str(trial.scored_as)),
                on_frontier=is_finalist and not beaten,
                # Also what the test rows dominate: the choice on the select rows was an honest one.
                kept=(is_finalist and not beaten) or trial.number in kept_by_search or trial is chosen,
                chosen=trial is chosen,
                reason=_reason(trial, decision, options.target_latency_ms, timed=is_finalist, beaten=beaten),
            )
        )
    return row, candidates


def _floor(
    options: Options, metric: str, teacher: Model, figures: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the floor of the run, as it was held against its candidates."""
    asked = verdict.floor(options, metric, teacher.task, figures["teacher"]["score"], figures["majority"])
    return asdict(asked) if asked is not None else None


def _family_figures(members: Mapping[str, Model], figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return by member how many of the test rows judged it, none where they may not, and what it reached on these."""
    found = {}
    for key, member in members.items():
        scores = figures["members"].get(key)
        found[member.qualified_name] = {
            "rows": scores["rows"] if scores is not None else 0,
            "score": scores["score"] if scores is not None else None,
        }
    return found


def _compared(
    metric: str,
    teacher: Model,
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any] | None,
    control: Trial | None,
    scores: Mapping[str, Any],
    compared: Mapping[str, Any],
) -> dict[str, Any]:
    """Return figures of teacher, student and control, each metric with its interval, and their paired differences."""
    its = scores[str(control.scored_as)] if control is not None else None
    own = metric if metric != metrics.AGREEMENT else default_metric(teacher.task, True)
    found: dict[str, Any] = {}
    intervals, versus = compared.get("intervals", {}), compared.get("versus", {})
    for name, figures in (("teacher", theirs), ("student", ours), ("control", its)):
        found[name] = {**figures, "intervals": intervals.get(name)} if figures is not None else None
    if control is not None:
        found["control"]["candidate"] = control.number
    for other in ("teacher", "control"):
        differences = versus.get(f"student-{other}")
        found[f"versus_{other}"] = (
            {**differences[own], "metrics": differences} if differences is not None else None
        )
    return found


def _reason(trial: Trial, decision: Verdict, target_ms: float, *, timed: bool, beaten: bool) -> str:
    """Return why a candidate was chosen, or why not."""
    reason: str = trial.fields["reason"]
    if trial is decision.chosen:
        return decision.reason
    if trial.number in decision.refused and decision.accepted:
        return f"refused: {decision.refused[trial.number]}"
    if beaten:
        return "dominated by another candidate on the test rows, in the backend"
    if not timed:
        return (
            f"{reason}, which is too long to be timed as a whole" if trial.fields["on_frontier"] else reason
        )
    if not is_offered(trial, target_ms):
        return (
            f"{reason}, on the frontier, but a statement for one row takes {trial.fields['statement_latency_ms']:.3g} ms,"
            " planning included, over the target"
        )
    if trial.form != "predict":
        return f"{reason}, on the frontier"
    # What the select rows dominate may be on the frontier of the test rows.
    return reason if trial.fields["on_frontier"] else "on the frontier on the test rows, in the backend"
