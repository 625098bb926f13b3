"""remeasure: a family's figures taken again on rows that none of its members learned from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from pg_distill.database.protocol import Database
from pg_distill.measure.scores import Scores
from pg_distill.registry import families, locks, runs
from pg_distill.registry import models as registry
from pg_distill.registry.model import MeasuredOn, Model
from pg_distill.runs.choice import predict_name
from pg_distill.runs.columns import accuracy_columns, accuracy_origin
from pg_distill.runs.contest import fits
from pg_distill.runs.fresh import MAX_REMEASURED, FreshFigures, fresh_rows, learned_of, measure_on
from pg_distill.runs.options import Options
from pg_distill.runs.verdict import comparable_interval
from pg_distill.serving.timing import (
    describe_machine,
    how_timed,
    latency_figures,
    require_expressions,
)

__all__ = ["remeasure"]

LATENCY_SECONDS_EACH = 2.0  # of a member that is remeasured


def remeasure(db: Database, name: str) -> list[dict[str, Any]]:
    """Measure a model's family again where it is now, store the figures, and return them with those before.

    Teacher, students and versions are measured in one go, on the test rows of the model's run: figures from different
    machines do not compare.

    Raises
    ------
    InvalidState
        There is no sample.
    TooManyTrainings
        As many processes train or measure as are allowed at once.
    InsufficientPrivilege
        SQL that another role stored would have to run.
    """
    model = registry.find_model(db, name)
    teacher = registry.find_teacher(db, model) or model
    require_expressions(db, teacher, model)
    run = runs.run_of(db, model)
    learned = learned_of(db, [model.id], {model.id: model})[model.id]
    rows = fresh_rows(db, model, teacher, run, None, None, Options.max_rows, 0, learned)
    members = {
        m.id: m for m in families.family_members(db, teacher, MAX_REMEASURED) if fits(m, teacher, rows.frame)
    }
    seconds = LATENCY_SECONDS_EACH * (1 + len(members))
    before = runs.recorded_figures(db, [teacher.id, *members])
    found = measure_on(db, teacher, members, rows, seconds=seconds)
    machine = describe_machine(db)
    # Until the transaction ends: a run of the family that writes figures, too, waits, and never in a circle.
    locks.lock_family(db, teacher, [m.name for m in members.values()])
    report = []
    for key, measured in {teacher.id: teacher, **members}.items():
        timing, scores, old = found.timings.get(key), found.figures.get(key), before[key]
        figures: dict[str, Any] = latency_figures(timing) if timing is not None else {}
        # A metric that nobody can measure on these rows stays as it is; so does that of another run.
        if scores is not None and (scores["score"] is None or measured.metric not in (None, rows.metric)):
            scores = None
        stored: MeasuredOn = json.loads(old["measured_on"]) if old["measured_on"] else {}
        figures |= accuracy_columns(rows.metric, scores)
        if (
            scores is not None and timing is not None
        ):  # all that a worker may have said of it is this server's word now
            figures["attested"] = True
        measured_on: MeasuredOn = {
            "run_id": run["run_id"] if run is not None else None,
            **accuracy_origin(scores, found.rows, _comparable(found, model, scores), stored),
            **how_timed(timing, machine, found.timings.get(predict_name(measured))),
        }
        figures["measured_on"] = measured_on
        figures["measured_at"] = datetime.now(UTC).isoformat()
        registry.update_figures(db, key, figures)
        report.append(
            {
                "name": measured.name,
                "version": measured.version,
                **{
                    column: figures.get(column, old[column])
                    for column in (
                        "avg_latency_ms",
                        "latency_low_ms",
                        "latency_high_ms",
                        "accuracy",
                        "accuracy_low",
                        "accuracy_high",
                    )
                },
                "previous_latency_ms": old["avg_latency_ms"],
                "previous_accuracy": old["accuracy"],
            }
        )
    return report


def _comparable(found: FreshFigures, model: Model, scores: Scores | None) -> tuple[float, float] | None:
    """Return what a member that some rows judged would reach on all, by its difference to the model asked for, or its teacher."""
    if scores is None or "against" not in scores:
        return None
    own = found.figures.get(model.id)
    there = scores["against"]["members"].get(model.id)
    if own is not None and "against" not in own and there is not None:
        return comparable_interval(scores, own["score"], there)
    return comparable_interval(scores, found.figures[found.teacher.id]["score"], scores["against"]["teacher"])
