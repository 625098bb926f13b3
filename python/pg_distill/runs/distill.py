"""The pipeline: find the teacher, sample, label, search, measure, decide, register."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from pg_distill.child.messages import SearchRequest, Surveyed, Trial
from pg_distill.child.trainer import Trainer
from pg_distill.database.protocol import Database
from pg_distill.errors import FeatureNotSupported
from pg_distill.measure.scores import Compared
from pg_distill.registry import families, locks, model, models, rights, runs, settings
from pg_distill.registry.model import Model
from pg_distill.rows.learned import Digest, Identity, Learned
from pg_distill.rows.sample import identities_of
from pg_distill.rows.source import Source, identity_columns, resolve_source
from pg_distill.runs import choice, columns, doubts, record, verdict
from pg_distill.runs.clock import Clock
from pg_distill.runs.columns import Run
from pg_distill.runs.contest import (
    MAX_MEMBERS,
    call_overhead,
    cascades_of,
    family_of,
    sql_forms_of,
    time_all,
    time_cascades,
)
from pg_distill.runs.material import Material, prepare
from pg_distill.runs.measured import Measured
from pg_distill.runs.options import Options
from pg_distill.runs.progress import Progress, Watch, latency_seconds
from pg_distill.runs.record import Outcome, Report
from pg_distill.runs.summary import ending, said_of_constraints, summarise, twin_caveat
from pg_distill.runs.verdict import Verdict
from pg_distill.serving.approval import trainer_limits
from pg_distill.serving.sql_models import label_by_sql
from pg_distill.serving.timing import (
    describe_machine,
    require_expressions,
)

__all__ = ["Outcome", "distill", "identities_of_family", "known_to_registered", "outside_rows"]

USUAL_PROBE_SECONDS = 4.0  # that finding this out takes beside the time budget
NOT_OF_LABELS = frozenset({"cascade", "first_trees"})  # families that do not take the task multilabel
TRANSFER_SHARE = 0.2  # of trainer_memory_mb, for augmented rows: 1.7 GB by default


def distill(
    db: Database,
    options: Options,
    *,
    run_id: str | None = None,
    watch: Watch = lambda stage, done, candidate, seconds_left: None,
    store: Callable[[Report], Outcome] | None = None,
) -> Outcome:
    """Distil a teacher into a student, and register it if it is accepted.

    Parameters
    ----------
    run_id
        The run's id where it has one before it runs.
    watch
        Is told the progress: a ``progress.Progress`` makes a part of the whole and a time left of it.
    store
        Stores what the run leaves, all or nothing; `record.store` unless told otherwise.

    Raises
    ------
    UndefinedModel
        There is no such teacher.
    InvalidState
        The teacher has no sample and none was given.
    InvalidData, UndefinedColumn, DatatypeMismatch
        The sample does not fit the teacher.
    """
    run = Run(run_id or str(uuid.uuid4()), options, datetime.now(UTC), describe_machine(db))
    with locks.admitted(db, run.id):
        return _distill(db, run, watch, store or (lambda report: record.store(db, report)))


def _distill(
    db: Database,
    run: Run,
    watch: Watch,
    store: Callable[[Report], Outcome],
) -> Outcome:
    options = run.options
    clock = Clock(db, Progress(options.most_seconds), watch)

    # Find the teacher.
    teacher = models.find_model(db, options.teacher)
    student_name = options.student_name or model.check_name(f"{teacher.name}_distilled", "student name")

    if teacher.task == "multilabel" and (asked := sorted(set(options.families or ()) & NOT_OF_LABELS)):
        raise FeatureNotSupported(
            f'family "{asked[0]}" does not take the task multilabel',
            hint=f"Name others, or none: all but {', '.join(sorted(NOT_OF_LABELS))} do.",
        )
    if options.families is not None and options.cascade_wanted and not _can_stand_behind(teacher):
        raise FeatureNotSupported(
            f'model "{teacher.qualified_name}" cannot stand behind a cascade',
            detail="A cascade asks its teacher where the probabilities of its student are not clear.",
        )
    if teacher.threshold is not None:
        raise FeatureNotSupported(
            f'model "{teacher.qualified_name}" is a cascade', hint="Distil its teacher."
        )
    rights.require_writable(db)
    rights.require_name(db, student_name)
    require_expressions(db, teacher)

    # Sample, and split.
    clock.enter("sample")
    with db.transaction():
        material = prepare(
            db,
            teacher,
            options,
            trained_on=_training_rows(db, teacher, options),
            identities=identities_of_family(db, teacher),
        )
    clock.say(f'distilling "{teacher.qualified_name}": {material.counts_text}')
    if teacher.task == "multilabel":
        clock.say(f"several labels: not tried are {', '.join(sorted(NOT_OF_LABELS))}")
    if material.reading.notice is not None:
        clock.say(material.reading.notice)
    clock.warn(material.warnings)

    # Label, in the child: it holds the rows from here on.
    clock.enter("label")
    ask = (lambda rows: label_by_sql(db, teacher, rows)) if teacher.kind == "sql" else None
    with Trainer(trainer_limits(db), db.check_interrupts, clock.progress, ask) as trainer:
        loaded = trainer.load(**material.for_trainer(db, teacher))
        material = material.keep_first(loaded["rows"])
        material.check_splits()
        if loaded["rows_left_out"]:
            clock.say(f"{loaded['rows_left_out']} rows left out for time: {material.counts_text}")

        # What the teacher is worth, before time is spent on its students.
        survey = trainer.survey(verdict.floor_asked(options, material.metric, teacher.task))
        clock.warn(doubts.of_rows(teacher, material, survey))
        clock.warn(doubts.of_floor(options, teacher, material.metric, survey))
        if doubts.is_out_of_reach(options, teacher, material.metric, survey):
            found = _refused_at_once(trainer, teacher, options, material.metric, survey)
        else:
            found = _search(db, trainer, clock, teacher, student_name, material, loaded["seconds"], survey)
    decision, chosen = found.decision, found.decision.chosen
    clock.warn(doubts.of_student(material.metric, teacher, decision, found.figures))

    # Register.
    clock.enter("register")
    summary = found.summary + verdict.family_caveat(found.members, found.figures)
    if chosen is not None and not decision.accepted:
        summary += f"; distill.promote_candidate('{run.id}', {chosen.number}) registers it all the same"
    student = None
    if decision.accepted and chosen is not None:
        student = record.student(run, student_name, chosen, material, found)
    family = record.family(run, material, found) if found.trials else {}
    clock.enter("end")
    summary += material.caveat
    row, tried = columns.run_and_candidates(
        run, student_name, material, found,
        loaded=loaded, survey=survey, summary=summary, seconds=clock.seconds, warnings=clock.warnings,
    )  # fmt: skip
    names = [student_name, *(m.name for m in found.members.values())]
    return store(Report(teacher.id, names, student, family, row, tried))


def _refused_at_once(
    trainer: Trainer, teacher: Model, options: Options, metric: str, survey: Surveyed
) -> Measured:
    """Return what a run comes to that asks for more than any student could learn of its teacher: no candidate is trained."""
    reason = doubts.of_floor(options, teacher, metric, survey)[0]
    return Measured(
        teacher,
        trainer.evaluate([], {}, {}, {}),
        Verdict(False, None, reason, None, {}),
        f"no student was trained: {reason}",
        None,
    )


def _search(
    db: Database,
    trainer: Trainer,
    clock: Clock,
    teacher: Model,
    student_name: str,
    material: Material,
    labelled_s: float,
    survey: Surveyed,
) -> Measured:
    """Train, time, score and decide."""
    options, metric = material.options, material.metric

    # Search: latency first, so tell the child what predict costs around a model.
    clock.enter("search")
    if options.constraints:
        clock.say(said_of_constraints(options))
    began = time.monotonic()
    overhead = call_overhead(db, trainer, material.timing_rows, options.seed)
    # What rows of many columns or long texts take longer than others is the search's loss, not the caller's.
    labelled_s += max(time.monotonic() - began - USUAL_PROBE_SECONDS, 0.0)
    seconds, most = options.search_seconds(material.sample.frame, len(teacher.signature.classes), labelled_s)
    clock.standing.limit(seconds)
    request = _search_request(db, options, overhead, seconds, most)
    trials, teacher_select, teacher_classes, chosen_by, ended = trainer.search(request)
    clock.say(ending(ended))
    clock.say(material.choice_text(chosen_by))

    # Measure: latency here, where it is spent; accuracy there, on rows that nothing has looked at.
    clock.enter("latency")
    finalists = choice.finalists(trials, options.target_latency_ms, overhead)
    control = choice.best_control(trials, options.target_latency_ms, overhead)
    forms = sql_forms_of(db, trials, material)
    known = {t.number for t in finalists}
    twins = [t for t in trials if t.number in {f.twin for f in forms} - known]
    trials = [*trials, *forms]
    finalists = [*finalists, *twins, *forms]
    members, files = family_of(db, teacher, material.sample.frame)
    before = runs.measured_on(db, members)
    outside = outside_rows(db, members, material)
    spent = clock.seconds["label"] + clock.seconds["search"]
    timings = time_all(db, teacher, members, files, finalists, material, options, latency_seconds(spent))
    asking: list[Trial] = []
    if options.cascade_wanted and _can_stand_behind(teacher):
        asking = cascades_of(trainer, teacher, teacher_select, finalists, trials, timings, options)
    timings |= time_cascades(db, teacher, asking, material, options.seed)
    trials = [*trials, *asking]
    finalists = [*finalists, *asking]
    clock.enter("evaluate")
    floor = verdict.floor(options, metric, teacher.task, survey["teacher"], survey["majority"])

    def ranked(prefer: str) -> list[Trial]:
        return choice.ranked(
            finalists,
            timings,
            options.target_latency_ms,
            teacher,
            (teacher_select, teacher_classes),
            sql_wanted=options.sql_wanted,
            metric=metric,
            prefer=prefer,
            majority=survey["majority"],
            floor=floor.value if floor is not None and floor.metric == metric else None,
        )

    candidates = ranked(options.prefer)
    scored = [*finalists, *choice.kept_by_search(trials), *(t for t in trials if t.is_scorable_control)]
    thresholds = {key: m.threshold for key, m in members.items() if m.threshold is not None}
    cuts = {key: m.cut for key, m in members.items() if m.cut is not None}
    figures = trainer.evaluate(scored, {key: files[key] for key in outside}, thresholds, cuts, outside)

    # Decide.
    judged_for = {key: where["twin"] for key, where in before.items() if "twin" in where}
    decision = verdict.decide(
        options, metric, teacher, members, candidates, timings, figures, student_name, judged_for
    )
    chosen = decision.chosen
    if chosen is None:
        decision = replace(decision, reason=verdict.why_none(trials, options.target_latency_ms, overhead))
    compared = Compared(intervals={}, versus={})
    if chosen is not None:
        compared = trainer.compare(chosen, control)
    registered, not_registered = None, None
    if options.refit_on_all and decision.accepted and chosen is not None:
        registered, not_registered = _relearned(trainer, chosen)
    summary = summarise(options, metric, teacher, decision, control, timings, figures, compared)
    if options.refit_on_all and decision.accepted:
        summary += twin_caveat(not_registered)
    if options.prefer == "accurate" and decision.accepted and chosen is not None:
        knee = ranked("knee")[0]
        summary += verdict.faster_alternative(chosen, knee, options, metric, teacher, timings, figures)
    return Measured(
        teacher, figures, decision, summary, request, trials, finalists, control, chosen_by, members, before, timings,
        registered, not_registered, compared, ended,
    )  # fmt: skip


def _relearned(trainer: Trainer, chosen: Trial) -> tuple[Trial | None, str | None]:
    """Return the choice once it has learned from the test rows too, or why it could not."""
    found = trainer.relearn(chosen)
    if isinstance(found, str):
        return None, found
    artifact, signature, expression = found
    if chosen.form == "sql" and expression is None:
        return None, "it has no form in SQL"
    return replace(chosen, artifact=artifact, signature=signature, expression=expression), None


def _can_stand_behind(teacher: Model) -> bool:
    """Whether a teacher can be asked where a student is not sure."""
    return teacher.kind != "logged" and teacher.task in ("binary", "multiclass")


def _training_rows(db: Database, teacher: Model, options: Options) -> Source | None:
    """Return the rows that the teacher was trained on, as an earlier run named them, where this one names none."""
    if options.trained_on is not None:
        return None
    known = models.training_rows(db, teacher)
    if known is None:
        return None
    source = db.attempt(lambda: resolve_source(db, known["query"]))
    missing = source is None or any(name not in source.types for name in teacher.signature.names)
    if missing:
        db.warning(
            f'rows that model "{teacher.qualified_name}" was trained on, as run {known["run_id"]} named them, cannot be read:'
            " it may be judged by rows that it knows by heart"
        )
        return None
    db.notice(
        f'rows that model "{teacher.qualified_name}" was trained on are those that run {known["run_id"]} named;'
        " trained_on => ... names others"
    )
    return source


def identities_of_family(db: Database, teacher: Model, limit: int = MAX_MEMBERS) -> set[Identity]:
    """Return by which columns the members of the family know the rows that they have learned from."""
    members = {m.id: m for m in families.family_members(db, teacher, limit)}
    learned = models.read_learned(db, members)
    return {
        found.identity if (found := learned[key]) is not None else identity_columns(member.signature.features)
        for key, member in members.items()
    }


def outside_rows(
    db: Database, members: Mapping[str, Model], material: Material
) -> dict[str, npt.NDArray[np.bool_]]:
    """Return by member which of the test rows may judge it; those that none may judge, or too few, are left out."""
    learned = models.read_learned(db, members)
    found: dict[str, npt.NDArray[np.bool_]] = {}
    for key, member in members.items():
        known = learned[key]
        if known is None and member.teacher_id is None:
            known = known_to_registered(db, member)
        rows = material.outside(known)
        if rows is not None:
            found[key] = rows
    return found


def known_to_registered(db: Database, member: Model) -> Learned | None:
    """Return the rows that a registered model was trained on, as its runs named them: as far as anybody has said, no others."""
    identity = identity_columns(member.signature.features)
    hashes = np.empty(0, np.int64)
    named = models.training_rows(db, member)
    if named is not None:
        source = db.attempt(lambda: resolve_source(db, named["query"]))
        read = identities_of(db, source, identity) if source is not None else None
        if read is None:
            return None
        hashes = read
    nothing = np.empty(0, np.int64)
    return Learned(identity, Digest.of(hashes, nothing), Digest.of(nothing, nothing))


def _search_request(
    db: Database, options: Options, overhead_ms: float, seconds: float, most: float
) -> SearchRequest:
    return SearchRequest(
        target_latency_ms=options.target_latency_ms,
        call_overhead_ms=overhead_ms,
        temperature=options.temperature,
        epochs=options.epochs,
        seed=options.seed,
        families=options.student_families,
        time_budget_s=seconds,
        most_seconds=most,
        transfer_bytes=int(TRANSFER_SHARE * settings.get_setting(db, "trainer_memory_mb") * 2**20),
        threads=settings.get_setting(db, "trainer_threads"),
        executor=settings.get_text_setting(db, "executor"),
        sql=options.sql_wanted,
        patience=options.patience,
        refit_on_all=options.refit_on_all,
        monotone=options.constraints,
    )
