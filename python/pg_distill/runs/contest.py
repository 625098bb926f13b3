"""Who is timed beside whom in the backend: candidates, their SQL forms, the family, cascades."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pg_distill.child.messages import Trial
from pg_distill.child.trainer import Trainer
from pg_distill.database.pgvector import pgvector_schema
from pg_distill.database.protocol import Database
from pg_distill.frame import Frame
from pg_distill.onnx_model.signature import Signature
from pg_distill.registry import families, models
from pg_distill.registry.model import Model
from pg_distill.rows.source import identity_columns
from pg_distill.runs import choice
from pg_distill.runs.material import Material
from pg_distill.runs.options import Options
from pg_distill.serving import approval, predict
from pg_distill.serving.sql_forms import expression_of
from pg_distill.serving.timing import (
    Timing,
    contender_for,
    measure_latency,
    predict_contender,
    rough_ms,
    sql_contender,
    statement_latency_ms,
)

__all__ = [
    "MAX_MEMBERS",
    "call_overhead",
    "cascades_of",
    "family_of",
    "fits",
    "sql_forms_of",
    "time_all",
    "time_cascades",
]

PROBES, PROBE_SECONDS = 3, 0.2  # for what predict costs around a model: how often that is timed, and how long
CASCADE_SECONDS = 2.0  # for cascades
CASCADE_SHARE = 0.9  # of the target that a cascade is planned for: its mean depends on which rows come
MAX_CASCADES = 2
MOST_STATEMENT_MS = (
    250.0  # for one row: what takes longer to plan is timed in queries only for who asks for SQL
)
MAX_MEMBERS = 12  # students and versions of the family that are measured again: its frontier and the newest
_PROBE = "\x1fprobe"  # a name that no registered model can have


def family_of(
    db: Database, teacher: Model, rows: Frame
) -> tuple[dict[str, Model], dict[str, tuple[bytes, Signature]]]:
    """Return the members of the family that are measured again, and their files, by id.

    From here on a member is what was read: whoever drops one meanwhile takes it out of the registry, not out of the run. A
    version with other classes, or of columns that these rows have not, is left as it is.
    """
    members = {m.id: m for m in families.family_members(db, teacher, MAX_MEMBERS) if fits(m, teacher, rows)}
    artifacts = models.read_artifacts(db, members.values())
    files = {key: (artifact, members[key].signature) for key, artifact in artifacts.items()}
    if db.in_backend:  # which is going to open them
        approval.require(db, files)
    return {key: m for key, m in members.items() if key in files}, files


def fits(member: Model, teacher: Model, rows: Frame) -> bool:
    """Whether a member can be run on the rows of a run of its family, and judged by their labels."""
    return (
        member.signature.classes == teacher.signature.classes
        and set(identity_columns(member.signature.features)) <= set(identity_columns(rows.features))
    )  # fmt: skip


def sql_forms_of(db: Database, trials: Sequence[Trial], material: Material) -> list[Trial]:
    """Return candidates in SQL form, each with the latency of a statement that holds it.

    One that takes long to plan is none, unless SQL is asked for: each block of its timing would take as long.
    """
    most_ms = math.inf if material.options.sql_wanted else MOST_STATEMENT_MS
    forms = []
    pgvector = pgvector_schema(db)

    def row_ms(trial: Trial) -> float:
        return rough_ms(
            db, sql_contender("", *written(trial, pgvector), material.source.types), material.timing_rows
        )

    timed = row_ms if material.options.sql_wanted else None
    for trial in choice.sql_forms(trials, pgvector=pgvector is not None, row_ms=timed):
        took = statement_latency_ms(
            db, *written(trial, pgvector), material.source.types, material.timing_rows
        )
        if took <= most_ms:
            forms.append(replace(trial, statement_latency_ms=took))
    return forms


def written(trial: Trial, pgvector: str | None) -> tuple[str, Signature]:
    """Return a candidate's SQL for a database that has pgvector in this schema, or has none, and what it takes and gives."""
    assert trial.signature is not None
    assert trial.expression is not None
    return expression_of(trial.expression, pgvector), trial.signature


def cascades_of(
    trainer: Trainer,
    teacher: Model,
    teacher_select: float | None,
    finalists: Sequence[Trial],
    trials: Sequence[Trial],
    timings: Mapping[str, Timing],
    options: Options,
) -> list[Trial]:
    """Return the best cascades of the students: each asks the teacher for no more rows than the target leaves time for.

    Nobody who named no families is given one where the teacher meets the target by itself (what is wanted then is to be
    faster than it) or is no more accurate than the students.
    """
    teacher_ms = timings[teacher.id].latency.high_ms
    asked_ms = timings.get(choice.predict_name(teacher), timings[teacher.id]).latency.high_ms
    if options.families is None:
        best = max(
            (t.select_accuracy for t in finalists if t.select_accuracy is not None),
            default=None,
        )
        if (
            teacher_ms <= options.target_latency_ms
            or teacher_select is None
            or best is None
            or teacher_select <= best
        ):
            return []
    shares = {}
    for trial in finalists:
        if trial.form == "predict":
            left = (
                options.target_latency_ms * CASCADE_SHARE
                - timings[choice.offer_name(trial.number)].latency.high_ms
            )
            if left > 0:
                shares[trial.number] = min(left / asked_ms, 1.0)
    if not shares:
        return []
    first = 1 + max((t.number for t in trials), default=0)
    by_number = {t.number: t for t in finalists}
    made = []
    for i, found in enumerate(trainer.cascade(shares, first, MAX_CASCADES)):
        student = by_number[found["student"]]
        made.append(
            replace(
                student,
                number=first + i,
                family="cascade",
                configuration={**student.configuration, "student": student.number, "asked": found["share"]},
                threshold=found["threshold"],
                class_threshold=found["class_threshold"],
                select_accuracy=found["select_accuracy"],
                tie_break_select=found["tie_break_select"],
                jackknife_select=found["jackknife_select"],
                select_classes=found["select_classes"],
                trainer_latency_ms=None,
                seconds=None,
                expression=None,
                is_control=False,
                reason=f"candidate {student.number}, with the teacher for {found['share']:.1%} of the select rows",
            )
        )
    return made


def time_cascades(
    db: Database, teacher: Model, cascades: Sequence[Trial], material: Material, seed: int
) -> dict[str, Timing]:
    """Time cascades, which can be made only once students and teacher have been timed; a mean over rows."""
    if not cascades:
        return {}
    offered = {}
    behind = {}
    for t in cascades:
        assert t.artifact is not None
        assert t.signature is not None
        assert t.threshold is not None
        offered[choice.offer_name(t.number)] = t.artifact, t.signature
        behind[choice.offer_name(t.number)] = teacher.qualified_name, float(t.threshold)
    contenders = [predict_contender(name, signature) for name, (_, signature) in offered.items()]
    with predict.offer(db, offered, behind) as opened_ms:
        timings = measure_latency(db, contenders, material.timing_rows, seed=seed, seconds=CASCADE_SECONDS)
    return _with_opening(timings, opened_ms)


def _with_opening(timings: Mapping[str, Timing], opened_ms: Mapping[str, float]) -> dict[str, Timing]:
    """Count to a model's first call what opening it took, which an offer does beforehand."""
    return {
        name: replace(timing, cold_ms=timing.cold_ms + opened_ms.get(name, 0.0))
        for name, timing in timings.items()
    }


def call_overhead(db: Database, trainer: Trainer, rows: Frame, seed: int) -> float:
    """Return the milliseconds that predict costs around a model: a small untrained student, here less there.

    The least of several timings of both, by turns: other work makes a call longer, never shorter, and only one of the two. What
    is taken for too much here keeps students from being trained; what is taken for too little shows when they are timed.
    """
    here, there = [], []
    for _ in range(PROBES):
        artifact, signature, there_ms = trainer.probe()
        contender = predict_contender(_PROBE, signature)
        with predict.offer(db, {_PROBE: (artifact, signature)}):
            timing = measure_latency(db, [contender], rows, seed=seed, seconds=PROBE_SECONDS)[_PROBE]
        here.append(timing.latency.mean_ms)
        there.append(there_ms)
    return max(min(here) - min(there), 0.0)


def time_all(
    db: Database,
    teacher: Model,
    members: Mapping[str, Model],
    files: Mapping[str, tuple[bytes, Signature]],
    finalists: Sequence[Trial],
    material: Material,
    options: Options,
    seconds: float,
) -> dict[str, Timing]:
    """Time teacher, family and finalists in turns, for so many seconds in all; keys are model ids and ``verdict``'s names.

    What may meet the target and may not, by its interval, is timed longer: a run should not be refused for too few calls.
    What is timed in SQL form is timed by predict too, which can also be called for it. Members are offered as candidates
    are, so that one which others drop meanwhile ends nothing.
    """
    offered = {
        choice.offer_name(t.scored_as): (t.artifact, t.signature)
        for t in finalists
        if t.artifact is not None and t.signature is not None
    }
    contenders = {name: predict_contender(name, signature) for name, (_, signature) in offered.items()}
    behind = {}
    for key, member in members.items():
        name = f"{predict.OFFERED}member {key}"
        offered[name] = files[key]
        if member.threshold is not None:
            behind[name] = teacher.qualified_name, member.threshold
        contenders[key] = predict_contender(name, member.signature)
        if member.form == "sql":
            contenders[choice.predict_name(member)] = contenders[key]
            contenders[key] = contender_for(db, member)
    if teacher.kind != "logged":
        contenders[teacher.id] = contender_for(db, teacher)
    if teacher.kind == "sql" and teacher.task != "regression":  # what a cascade asks
        asked = predict_contender(teacher.qualified_name, teacher.signature)
        contenders[choice.predict_name(teacher)] = replace(asked, name=choice.predict_name(teacher))
    pgvector = pgvector_schema(db)
    for t in finalists:
        if t.form == "sql":
            name = choice.offer_name(t.number)
            contenders[name] = sql_contender(name, *written(t, pgvector), material.source.types)
    with predict.offer(db, offered, behind) as opened_ms:
        timings = measure_latency(
            db,
            list(contenders.values()),
            material.timing_rows,
            seed=options.seed,
            seconds=seconds,
            target_ms=options.target_latency_ms,
        )
    timings = _with_opening(timings, opened_ms)
    return {key: timings[contender.name] for key, contender in contenders.items()}
