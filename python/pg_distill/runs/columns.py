"""Columns of a run, its candidates and its student, from what was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from pg_distill.child.messages import Loaded, Surveyed, Trial
from pg_distill.measure import metrics, pareto
from pg_distill.measure.metrics import default_metric
from pg_distill.measure.scores import Evaluation, Scores
from pg_distill.onnx_model.signature import Signature
from pg_distill.registry.model import MeasuredOn, Model
from pg_distill.rows.split import FIT, SELECT, TEST, UNLABELLED
from pg_distill.runs import choice, verdict
from pg_distill.runs.choice import is_offered, offer_name, stands_in
from pg_distill.runs.material import Material
from pg_distill.runs.measured import Measured
from pg_distill.runs.options import Options
from pg_distill.runs.verdict import Verdict
from pg_distill.serving.timing import Timing, latency_figures

__all__ = ["Run", "accuracy_columns", "accuracy_origin", "column_types", "run_and_candidates"]


def accuracy_columns(metric: str, scores: Scores | None) -> dict[str, Any]:
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
    scores: Scores | None,
    rows_test: int,
    comparable: tuple[float, float] | None,
    before: MeasuredOn | None,
) -> MeasuredOn:
    """Return what ``measured_on`` says of an accuracy: how many rows judged, or that it is of another run and which."""
    if scores is not None:
        found: MeasuredOn = {"rows": scores["rows"]}
        if "against" in scores:
            low, high = comparable or (None, None)
            found |= {"rows_test": rows_test, "comparable_low": low, "comparable_high": high}
        return found
    known: MeasuredOn = before or {}
    found = {
        "rows": known.get("rows"),
        "accuracy_run_id": known.get("accuracy_run_id") or known.get("run_id") or UNKNOWN_RUN,
    }
    for key in ("rows_test", "comparable_low", "comparable_high", "twin"):
        if key in known:
            found[key] = known[key]
    return found


UNKNOWN_RUN = "unknown"  # stands for the run of an accuracy that is of no run that is known


def _latency_columns(prefix: str, timing: Timing | None) -> dict[str, Any]:
    return {
        f"{prefix}_latency_ms": timing.latency.mean_ms if timing else None,
        f"{prefix}_latency_low_ms": timing.latency.low_ms if timing else None,
        f"{prefix}_latency_high_ms": timing.latency.high_ms if timing else None,
    }


def _accuracy_columns(prefix: str, scores: Scores | None) -> dict[str, Any]:
    return {
        f"{prefix}_accuracy": scores["score"] if scores else None,
        f"{prefix}_accuracy_low": scores["score_low"] if scores else None,
        f"{prefix}_accuracy_high": scores["score_high"] if scores else None,
        f"{prefix}_log_loss": scores["log_loss"] if scores else None,
    }


def column_types(material: Material, signature: Signature) -> dict[str, str]:
    """Return the types of the sample's columns, which the caller named, and not those that the teacher's owner stored."""
    return {name: material.source.types[name] for name in signature.names}


def _candidate(
    trial: Trial,
    material: Material,
    timing: Timing | None,
    scores: Scores | None,
    *,
    on_frontier: bool,
    kept: bool,
    chosen: bool,
    reason: str,
) -> dict[str, Any]:
    """Return columns of ``distill.candidates``."""
    columns = trial.to_row()
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
        expression=trial.expression if kept else None,
    )
    if trial.signature is not None:
        columns["input_schema"], columns["output_schema"] = trial.signature.to_json()
        columns["input_schema"]["types"] = column_types(material, trial.signature)
        if material.options.constraints:
            columns["input_schema"]["monotone"] = material.options.constraints
    return columns


def run_and_candidates(
    run: Run,
    student_name: str,
    material: Material,
    found: Measured,
    *,
    loaded: Loaded,
    survey: Surveyed,
    summary: str,
    seconds: Mapping[str, float],
    warnings: Sequence[str],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the run, without its student's id and version, and every candidate, accepted or not, with the reason."""
    teacher, figures, timings, decision = found.teacher, found.figures, found.timings, found.decision
    sample, options = material.sample, run.options
    chosen = decision.chosen
    ours = found.scores_of(chosen) if chosen is not None else None
    timing = found.timing_of(chosen) if chosen is not None else None
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
        "families": list(options.student_families),
        "text_columns": list(material.reading.texts),
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
            **_compared(material.metric, ours, found),
            "refit_on_all": _refit_on_all(options, found),
            "chosen_by": dict(found.chosen_by) if found.chosen_by is not None else None,
            "asked": len(decision.refused) + decision.accepted,
            "labelling": dict(loaded),
            "search": {**asdict(found.request), "ended": dict(found.ended)}
            if found.request is not None and found.ended is not None
            else {"families": list(options.student_families)},
            "chosen": chosen.number if chosen is not None else None,
            "teacher_latency": asdict(timings[teacher.id].latency) if teacher.id in timings else None,
            "student_latency": asdict(timing.latency) if timing is not None else None,
            "student_cold_ms": timing.cold_ms if timing is not None else None,
            "teacher_path": timings[teacher.id].path if teacher.id in timings else None,
            "family": _family_figures(found.members, figures),
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
    points: dict[int, tuple[float, float]] = {}
    form_of = {trial.number: trial.form for trial in found.finalists}
    for trial in found.finalists:
        score = figures["candidates"][str(trial.scored_as)]["score"]
        points[trial.number] = (
            timings[offer_name(trial.number)].latency.mean_ms,
            undefined if score is None else score,
        )
    kept_by_search = {trial.number for trial in choice.kept_by_search(found.trials)}
    candidates = []
    for trial in found.trials:
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
                found.timing_of(trial),
                found.scores_of(trial),
                on_frontier=is_finalist and not beaten,
                # Also what the test rows dominate: the choice on the select rows was an honest one.
                kept=(is_finalist and not beaten) or trial.number in kept_by_search or trial is chosen,
                chosen=trial is chosen,
                reason=_reason(trial, decision, options.target_latency_ms, timed=is_finalist, beaten=beaten),
            )
        )
    return row, candidates


def _floor(options: Options, metric: str, teacher: Model, figures: Evaluation) -> dict[str, Any] | None:
    """Return the floor of the run, as it was held against its candidates."""
    asked = verdict.floor(options, metric, teacher.task, figures["teacher"]["score"], figures["majority"])
    return asdict(asked) if asked is not None else None


def _refit_on_all(options: Options, found: Measured) -> dict[str, Any] | None:
    """Return what came of learning from the test rows too, where that was asked for: which files were judged, and registered."""
    chosen, made = found.decision.chosen, found.registered
    if not options.refit_on_all or chosen is None or chosen.artifact is None:
        return None
    judged = hashlib.sha256(chosen.artifact).hexdigest()
    if made is None or made.artifact is None:
        return {"judged": judged, "registered": None, "reason": found.not_registered}
    return {"judged": judged, "registered": hashlib.sha256(made.artifact).hexdigest(), "reason": None}


def _family_figures(members: Mapping[str, Model], figures: Evaluation) -> dict[str, Any]:
    """Return by member how many of the test rows judged it, none where they may not, and what it reached on these."""
    found = {}
    for key, member in members.items():
        scores = figures["members"].get(key)
        found[member.qualified_name] = {
            "rows": scores["rows"] if scores is not None else 0,
            "score": scores["score"] if scores is not None else None,
        }
    return found


def _compared(metric: str, ours: Scores | None, measured: Measured) -> dict[str, Any]:
    """Return figures of teacher, student and control, each metric with its interval, and their paired differences."""
    control, compared, theirs = measured.control, measured.compared, measured.figures["teacher"]
    its = measured.scores_of(control) if control is not None else None
    own = metric if metric != metrics.AGREEMENT else default_metric(measured.teacher.task, True)
    found: dict[str, Any] = {}
    intervals, versus = compared["intervals"], compared["versus"]
    for name, figures in (("teacher", theirs), ("student", ours), ("control", its)):
        found[name] = {**figures, "intervals": intervals.get(name)} if figures is not None else None
        if figures is not None and "average_precision" in figures:
            by_class = zip(measured.teacher.signature.classes, figures["average_precision"], strict=True)
            found[name]["average_precision"] = dict(by_class)
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
    reason = trial.reason
    if trial is decision.chosen:
        return decision.reason
    if trial.number in decision.refused and decision.accepted:
        return f"refused: {decision.refused[trial.number]}"
    if beaten:
        return "dominated by another candidate on the test rows, in the backend"
    if not timed:
        return f"{reason}, which is too long to be timed as a whole" if trial.on_frontier else reason
    if not is_offered(trial, target_ms):
        return (
            f"{reason}, on the frontier, but a statement for one row takes {trial.statement_latency_ms:.3g} ms,"
            " planning included, over the target"
        )
    if trial.form != "predict":
        return f"{reason}, on the frontier"
    # What the select rows dominate may be on the frontier of the test rows.
    return reason if trial.on_frontier else "on the frontier on the test rows, in the backend"


@dataclass(frozen=True)
class Run:
    """A run's identity."""

    id: str
    options: Options
    started_at: datetime
    machine: Mapping[str, Any]
