"""The pipeline: find the teacher, sample, label, search, measure, decide, register."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.child.messages import Trial
from pg_distill.child.trainer import Trainer
from pg_distill.database.lexer import exact
from pg_distill.database.protocol import Database
from pg_distill.errors import FeatureNotSupported
from pg_distill.frame import Frame
from pg_distill.onnx_model.signature import Signature
from pg_distill.registry import families, locks, model, models, rights, runs, settings
from pg_distill.registry.model import Model
from pg_distill.rows.learned import Digest, Identity, Learned
from pg_distill.rows.sample import identities_of
from pg_distill.rows.source import Source, identity_columns, resolve_source
from pg_distill.runs import choice, doubts, record, verdict
from pg_distill.runs.material import Material, prepare
from pg_distill.runs.options import Options
from pg_distill.runs.progress import SEARCH, STAGES, Progress, Watch, latency_seconds
from pg_distill.runs.record import Outcome, Report, Run
from pg_distill.runs.summary import summarise
from pg_distill.runs.verdict import Verdict
from pg_distill.serving import approval, predict
from pg_distill.serving.approval import trainer_limits
from pg_distill.serving.sql_models import label_by_sql
from pg_distill.serving.timing import (
    Timing,
    contender_for,
    describe_machine,
    measure_latency,
    predict_contender,
    require_expressions,
    sql_contender,
    statement_latency_ms,
)

__all__ = ["Outcome", "distill", "fits", "identities_of_family", "known_to_registered", "outside_rows"]

PROBES, PROBE_SECONDS = 3, 0.5  # for what predict costs around a model: how often that is timed, and how long
USUAL_PROBE_SECONDS = 4.0  # that finding this out takes beside the time budget
CASCADE_SECONDS = 4.0  # for cascades
CASCADE_SHARE = 0.9  # of the target that a cascade is planned for: its mean hangs on which rows come
MAX_CASCADES = 2
MAX_MEMBERS = 12  # students and versions of the family that are measured again: its frontier and the newest
SECONDS_BETWEEN_NOTICES = 5.0  # within a stage
SECONDS_BETWEEN_STAGES = 1.0  # of which a notice is given: some stages pass in no time
SECONDS_BETWEEN_SHOWS = 0.5  # of pg_stat_activity
TRANSFER_SHARE = 0.2  # of trainer_memory_mb, for augmented rows: 1.7 GB by default

_PROBE = "\x1fprobe"  # a name that no registered model can have


@dataclass
class _Clock:
    """Seconds a stage, and what is told to the client and to whoever looks at pg_stat_activity."""

    db: Database
    standing: Progress
    watch: Watch
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _stage: str = "start"
    _since: float = field(default_factory=time.monotonic)
    _told_stage: str = ""
    _told: float = 0.0
    _shown_stage: str = ""
    _shown: float = 0.0

    def enter(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + now - self._since, 3)
        self._stage, self._since = stage, now
        self._report(stage, 0.0, None)
        if stage in STAGES:
            self._show(stage, "")
        else:
            self.db.show_activity(None)

    def say(self, text: str) -> None:
        self._told = time.monotonic()
        self.db.notice(text)

    def warn(self, texts: Iterable[str]) -> None:
        """Warn the client at once, and whoever reads the run."""
        for text in texts:
            self.warnings.append(text)
            self.db.warning(text)

    def progress(self, fields: Mapping[str, Any]) -> None:
        """Pass on the child's progress, without a flood."""
        # A stage of the search's own that is not trained in, such as its end, is the search still.
        stage = str(fields.get("stage"))
        stage = stage if stage in SEARCH or stage == self._stage else self._stage
        done, candidate = float(fields.get("done", 0.0)), fields.get("candidate")
        self._report(stage, done, candidate)
        if "estimated_seconds" in fields:
            left_out = (
                f", {fields['rows_left_out']} rows left out for time" if fields.get("rows_left_out") else ""
            )
            self.say(
                f"labelling {fields['rows']} rows will take about {fields['estimated_seconds']:.0f} s{left_out}"
            )
        which = f"{fields['number']}/{fields['count']} " if "number" in fields else ""
        self._show(stage, f"{which}{candidate or ''}")
        quiet = time.monotonic() - self._told
        if quiet > (SECONDS_BETWEEN_NOTICES if stage == self._told_stage else SECONDS_BETWEEN_STAGES):
            self._told_stage = stage
            left = f"about {self.standing.now().seconds_left:.0f} s left"
            self.say(f"{stage}: {', '.join(filter(None, [which + (candidate or ''), left]))} ({done:.0%})")

    def _report(self, stage: str, done: float, candidate: str | None) -> None:
        self.standing.watch(stage, done, candidate)
        self.watch(stage, done, candidate)

    def _show(self, stage: str, what: str) -> None:
        now = time.monotonic()
        if stage != self._shown_stage or now - self._shown > SECONDS_BETWEEN_SHOWS:
            self._shown_stage, self._shown = stage, now
            standing = self.standing.now()
            # The figures first: a candidate's description is cut where it does not fit.
            figures = f"{standing.progress:.0%}, {standing.seconds_left:.0f} s left"
            number, _, name = what.partition(" ")
            self.db.show_activity(
                " ".join(filter(None, ["pg_distill:", STAGES[stage], number, f"({figures})", name]))
            )


def distill(
    db: Database,
    options: Options,
    *,
    run_id: str | None = None,
    watch: Watch = lambda stage, done, candidate: None,
    store: Callable[[Report], Outcome] | None = None,
) -> Outcome:
    """Distil a teacher into a student, and register it if it is accepted.

    Parameters
    ----------
    run_id
        The run's id where it has one before it runs.
    watch
        Is told how far it is: a ``progress.Progress`` makes a part of the whole and a time left of it.
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
    clock = _Clock(db, Progress(options.time_budget_s), watch)

    # Find the teacher.
    teacher = models.find_model(db, options.teacher)
    student_name = options.student_name or model.check_name(f"{teacher.name}_distilled", "student name")

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
    members, timings, figures, decision = found.members, found.timings, found.figures, found.decision
    chosen = decision.chosen
    clock.warn(doubts.of_student(material.metric, teacher, decision, figures))

    # Register.
    clock.enter("register")
    summary = found.summary + verdict.family_caveat(members, figures)
    if chosen is not None and not decision.accepted:
        summary += f"; distill.promote_candidate('{run.id}', {chosen.number}) registers it all the same"
    student = None
    if decision.accepted and chosen is not None:
        student = record.student(run, teacher, student_name, chosen, material, timings, figures)
    family: Mapping[str, Mapping[str, Any]] = {}
    if found.trials:
        family = record.family(run, teacher, members, material, timings, figures, chosen, found.before)
    clock.enter("end")
    summary += material.caveat
    row, tried = record.run_and_candidates(
        run, teacher=teacher, student_name=student_name, members=members, material=material, loaded=loaded,
        configuration=found.configuration, trials=found.trials, finalists=found.finalists, control=found.control,
        timings=timings, figures=figures, compared=found.compared, decision=decision, summary=summary,
        seconds=clock.seconds, survey=survey, warnings=clock.warnings,
    )  # fmt: skip
    names = [student_name, *(m.name for m in members.values())]
    return store(Report(teacher.id, names, student, family, row, tried))


@dataclass(frozen=True)
class _Found:
    """What became of the search: its candidates, all figures, and the decision."""

    figures: Mapping[str, Any]
    decision: Verdict
    summary: str
    configuration: Mapping[str, Any]
    trials: Sequence[Trial] = ()
    finalists: Sequence[Trial] = ()
    control: Trial | None = None
    members: Mapping[str, Model] = field(default_factory=dict)
    before: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    timings: Mapping[str, Timing] = field(default_factory=dict)
    compared: Mapping[str, Any] = field(default_factory=dict)


def _refused_at_once(
    trainer: Trainer, teacher: Model, options: Options, metric: str, survey: Mapping[str, Any]
) -> _Found:
    """Return what a run comes to that asks for more than any student could learn of its teacher: no candidate is trained."""
    reason = doubts.of_floor(options, teacher, metric, survey)[0]
    return _Found(
        trainer.evaluate([], {}, {}, {}),
        Verdict(False, None, reason, None, {}),
        f"no student was trained: {reason}",
        {"families": options.student_families},
    )


def _search(
    db: Database,
    trainer: Trainer,
    clock: _Clock,
    teacher: Model,
    student_name: str,
    material: Material,
    labelled_s: float,
    survey: Mapping[str, Any],
) -> _Found:
    """Train, time, score and decide."""
    options, metric = material.options, material.metric

    # Search: latency first, so tell the child what predict costs around a model.
    clock.enter("search")
    began = time.monotonic()
    overhead = _call_overhead(db, trainer, material.timing_rows, options.seed)
    # What rows of many columns or long texts take longer than others is the search's loss, not the caller's.
    labelled_s += max(time.monotonic() - began - USUAL_PROBE_SECONDS, 0.0)
    configuration = _search_configuration(db, options, overhead, labelled_s)
    trials, teacher_select, teacher_classes = trainer.search(configuration)

    # Measure: latency here, where it is spent; accuracy there, on rows that nothing has looked at.
    clock.enter("latency")
    finalists = choice.finalists(trials, options.target_latency_ms, overhead)
    control = choice.best_control(trials, options.target_latency_ms, overhead)
    forms = _sql_forms(db, trials, material)
    known = {t.number for t in finalists}
    twins = [t for t in trials if t.number in {f.twin for f in forms} - known]
    trials = [*trials, *forms]
    finalists = [*finalists, *twins, *forms]
    members, files = _family(db, teacher, material.sample.frame)
    before = runs.measured_on(db, members)
    outside = outside_rows(db, members, material)
    timings = _time_all(db, teacher, members, files, finalists, material, options)
    cascades = []
    if options.cascade_wanted and _can_stand_behind(teacher):
        cascades = _cascades(trainer, teacher, teacher_select, finalists, trials, timings, options)
    timings |= _time_cascades(db, teacher, cascades, material, options.seed)
    trials = [*trials, *cascades]
    finalists = [*finalists, *cascades]
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
    cuts = {key: m.class_threshold for key, m in members.items() if m.class_threshold is not None}
    figures = trainer.evaluate(scored, {key: files[key] for key in outside}, thresholds, cuts, outside)

    # Decide.
    decision = verdict.decide(options, metric, teacher, members, candidates, timings, figures, student_name)
    chosen = decision.chosen
    compared = trainer.compare(chosen, control) if chosen is not None else {}
    summary = summarise(options, metric, teacher, decision, control, timings, figures, compared)
    if options.prefer == "accurate" and decision.accepted and chosen is not None:
        knee = ranked("knee")[0]
        summary += verdict.faster_alternative(chosen, knee, options, metric, teacher, timings, figures)
    return _Found(
        figures,
        decision,
        summary,
        configuration,
        trials,
        finalists,
        control,
        members,
        before,
        timings,
        compared,
    )


def _can_stand_behind(teacher: Model) -> bool:
    """Whether a teacher can be asked where a student is not sure."""
    return teacher.kind != "logged" and teacher.task != "regression"


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


def _family(
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


def _sql_forms(db: Database, trials: Sequence[Trial], material: Material) -> list[Trial]:
    """Return candidates in SQL form, each with the latency of a statement that holds it."""
    forms = []
    for trial in choice.sql_forms(trials):
        assert trial.signature is not None
        expression, rows = exact(trial.fields["expression"]), material.timing_rows
        took = statement_latency_ms(db, expression, trial.signature, material.source.types, rows)
        forms.append(replace(trial, fields={**trial.fields, "statement_latency_ms": took}))
    return forms


def _cascades(
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
            (t.fields["select_accuracy"] for t in finalists if t.fields["select_accuracy"] is not None),
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
        fields = {
            **student.fields,
            "candidate": first + i,
            "form": "cascade",
            "family": "cascade",
            "threshold": found["threshold"],
            "configuration": {
                **student.fields["configuration"],
                "student": student.number,
                "asked": found["share"],
            },
            **{key: value for key, value in found.items() if "select" in key},
            "trainer_latency_ms": None,
            "seconds": None,
            "expression": None,
            "is_control": False,
            "reason": f"candidate {student.number}, with the teacher for {found['share']:.1%} of the select rows",
        }
        made.append(replace(student, number=first + i, fields=fields))
    return made


def _time_cascades(
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
        offered[choice.offer_name(t.number)] = t.artifact, t.signature
        behind[choice.offer_name(t.number)] = teacher.qualified_name, float(t.fields["threshold"])
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


def _search_configuration(
    db: Database, options: Options, overhead_ms: float, labelled_s: float
) -> dict[str, Any]:
    return {
        "target_latency_ms": options.target_latency_ms,
        "call_overhead_ms": overhead_ms,
        "temperature": options.temperature,
        "epochs": options.epochs,
        "seed": options.seed,
        "families": options.student_families,
        "time_budget_s": max(options.time_budget_s - labelled_s, 1.0),
        "transfer_bytes": int(TRANSFER_SHARE * settings.get_setting(db, "trainer_memory_mb") * 2**20),
        "threads": settings.get_setting(db, "trainer_threads"),
        "executor": settings.get_text_setting(db, "executor"),
        "sql": options.sql_wanted,
    }


def _call_overhead(db: Database, trainer: Trainer, rows: Frame, seed: int) -> float:
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


def _time_all(
    db: Database,
    teacher: Model,
    members: Mapping[str, Model],
    files: Mapping[str, tuple[bytes, Signature]],
    finalists: Sequence[Trial],
    material: Material,
    options: Options,
) -> dict[str, Timing]:
    """Time teacher, family and finalists in turns; keys are model ids and ``verdict``'s names.

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
    for t in finalists:
        if t.form == "sql" and t.signature is not None:
            name = choice.offer_name(t.number)
            types = material.source.types
            contenders[name] = sql_contender(name, exact(t.fields["expression"]), t.signature, types)
    with predict.offer(db, offered, behind) as opened_ms:
        timings = measure_latency(
            db,
            list(contenders.values()),
            material.timing_rows,
            seed=options.seed,
            seconds=latency_seconds(options.time_budget_s),
        )
    timings = _with_opening(timings, opened_ms)
    return {key: timings[contender.name] for key, contender in contenders.items()}
