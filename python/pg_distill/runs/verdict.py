"""Which student a run comes to, and whether it is accepted: the design's formulas, on measured figures.

Chosen on the select rows, judged on the test rows, which have been looked at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pg_distill.child.messages import Trial
from pg_distill.frame import Task
from pg_distill.measure import confidence, metrics, pareto
from pg_distill.measure.metrics import default_metric
from pg_distill.measure.scores import Beside, Evaluation, Scores
from pg_distill.registry.model import Model
from pg_distill.runs.choice import CHOSEN, latency_of_teacher, offer_name, predict_name, stands_in
from pg_distill.runs.options import Options
from pg_distill.serving.timing import Timing

__all__ = [
    "Floor",
    "Verdict",
    "comparable_interval",
    "decide",
    "family_caveat",
    "faster_alternative",
    "floor",
    "floor_asked",
    "is_out_of_reach",
    "not_compared",
    "reached",
    "why_none",
]

MAX_NAMED = 3  # members that a summary names
FLOOR = 0.80  # of accuracy and agreement where nobody asks for another, if the teacher reaches it and the majority does not
# Elsewhere the share of what the teacher adds to the majority: some hundred test rows leave a margin of noise.
FLOOR_LIFT = 0.50
HOPELESS = (
    0.75  # of the teacher's errors: a floor that leaves a student fewer is out of reach, whatever labels add
)
KNEE_SPEED = 2.0  # times faster than the answer, from which the student at the knee is worth naming


@dataclass(frozen=True)
class Floor:
    """The least that a student must reach: ``value`` of ``metric``; ``is_relative`` to teacher and majority."""

    metric: str
    value: float
    is_relative: bool


def floor(
    options: Options, metric: str, task: Task, teacher: float | None, majority: float | None
) -> Floor | None:
    """Return what a student must reach on some rows, None where nothing can be asked there.

    ``min_accuracy`` where it is given; it bounds the accuracy, or r2, beside a metric that does not lie between 0 and 1. Without
    it ``FLOOR`` where that means something: of accuracy or agreement, if the teacher reaches it and the majority does not. Else
    ``FLOOR_LIFT`` of what the teacher adds to the majority, in any metric; and the majority where the teacher adds nothing.

    Parameters
    ----------
    teacher, majority
        The metric of the teacher, and of always answering with the majority or the mean, on these rows.
    """
    if options.min_accuracy is not None:
        name = metric if metrics.is_unit_metric(metric) else default_metric(task, True)
        return Floor(name, options.min_accuracy, False)
    if teacher is None or majority is None:
        return None
    if metric in ("accuracy", metrics.AGREEMENT) and majority < FLOOR <= teacher:
        return Floor(metric, FLOOR, False)
    return Floor(metric, majority + FLOOR_LIFT * max(teacher - majority, 0.0), True)


def floor_asked(options: Options, metric: str, task: Task) -> tuple[str, float] | None:
    """Return the metric and value of the floor that the caller asks for; None where he asks for none."""
    asked = floor(options, metric, task, None, None)
    return (asked.metric, asked.value) if asked is not None else None


def is_out_of_reach(asked: float, high: float | None) -> bool:
    """Whether a teacher that reaches at most ``high`` leaves no hope of the floor: see ``HOPELESS``."""
    return high is not None and 1.0 - asked < HOPELESS * (1.0 - high)


@dataclass(frozen=True)
class Verdict:
    """The student that is accepted, or else the nearest candidate and what it missed."""

    accepted: bool
    chosen: Trial | None
    reason: str
    pareto_score: float | None
    refused: Mapping[int, str]
    """What each candidate missed that was asked before; of a run that accepts none all of them."""


def decide(
    options: Options,
    metric: str,
    teacher: Model,
    members: Mapping[str, Model],
    candidates: Sequence[Trial],
    timings: Mapping[str, Timing],
    figures: Evaluation,
    student_name: str | None = None,
    twins: Mapping[str, str] | None = None,
) -> Verdict:
    """Accept the first of the candidates that meets target and floor and improves the family's frontier.

    ``candidates`` stand in the order of the choice, which the select rows gave. The test rows say only yes or no to one
    after the other and put none before another, so that figures of the student that is accepted are not the best of
    several; how many were asked is recorded, as each that was refused leaves a little more room for luck with the floor.
    One whose file the family has already under this name is the answer given before: nothing behind it may take that one's
    place. Under another name it is the same answer for who asks for this one, who gets it. Where the choice is to learn from
    the test rows too (``refit_on_all``) the answer given before is the member that was judged by its ``twins`` file, by id, and
    the file itself, in the family as it is, is not in its way. Where answers are to be monotone, what does not keep that, as the
    teacher, cannot take a candidate's place.
    """
    if not candidates:
        return Verdict(False, None, "no candidate", None, {})
    refused: dict[int, str] = {}
    asked = options.constraints
    family = [teacher, *members.values()]
    for trial in candidates:
        same = _same_file(trial, family, student_name, (twins or {}) if options.refit_on_all else None)
        is_alias = student_name is not None and same is not None and same.name != student_name
        misses = _misses(options, metric, teacher, trial, timings, figures)
        if same is None:
            itself = _same_file(trial, list(members.values())) if options.refit_on_all else None
            rivals = {
                key: m
                for key, m in members.items()
                if m is not itself and (not asked or asked.items() <= m.monotone.items())
            }
            better = _better(None if asked else teacher, rivals, trial, timings, figures)
            if better:
                misses.append(
                    f"it does not improve the family's frontier: {better[0]} is no slower and no worse"
                )
        elif not is_alias:
            misses.append(f"it is the same file as {same.qualified_name}, which the family has already")
        if not misses:
            reason = CHOSEN[options.prefer]
            if same is not None:
                reason += f", the same file as {same.qualified_name}"
            if refused:
                reason += f", of those after {len(refused)} that were refused"
            return Verdict(True, trial, reason, _pareto_score(teacher, trial, timings, figures), refused)
        refused[trial.number] = " and ".join(misses)
        if same is not None and not is_alias:
            break
    nearest = candidates[0]
    return Verdict(
        False, nearest, refused[nearest.number], _pareto_score(teacher, nearest, timings, figures), refused
    )


def why_none(trials: Sequence[Trial], target_ms: float, overhead_ms: float) -> str:
    """Return why a search has no student: its shapes are too slow as the machine is now, they failed alike, or time was over."""
    if not any("stage" in t.configuration for t in trials):  # nothing came so far as to be trained
        measured = [t.trainer_latency_ms for t in trials if t.trainer_latency_ms is not None]
        if measured:
            return (
                f"the fastest shape of a student takes {min(measured):.4g} ms, and predict {overhead_ms:.4g} ms around it:"
                f" together more than the target of {target_ms:.4g} ms"
            )
        reasons = {t.reason for t in trials}
        if len(reasons) == 1:
            return reasons.pop()
    return "no candidate could be trained within the time budget"


def _misses(
    options: Options,
    metric: str,
    teacher: Model,
    trial: Trial,
    timings: Mapping[str, Timing],
    figures: Evaluation,
) -> list[str]:
    """Return what speaks against a candidate by itself."""
    theirs, ours = figures["teacher"], figures["candidates"][str(trial.scored_as)]
    if theirs["score"] is None or ours["score"] is None:
        return [f"{metric} is not defined on the test rows, as where a class does not occur in them"]
    latency = timings[offer_name(trial.number)].latency
    misses = []
    if latency.high_ms > options.target_latency_ms:
        misses.append(
            f"its latency of {latency.mean_ms:.4g} ms (up to {latency.high_ms:.4g}) misses the target of"
            f" {options.target_latency_ms:g} ms"
        )
    asked = floor(options, metric, teacher.task, theirs["score"], figures["majority"])
    if asked is not None:
        value = reached(ours, metric, asked)
        if not value >= asked.value:
            of = " (relative to teacher and majority)" if asked.is_relative else ""
            misses.append(f"its {asked.metric} of {value:.4f} misses the floor of {asked.value:.4g}{of}")
    # Below one half throughout, probabilities of a rare class can still rank as well as the teacher's do.
    if ours["distinct_classes"] == 1 and metrics.judges_classes(metric):
        misses.append("it gives every row the same class")
    majority = figures["majority"]
    if metrics.ranks(metric) and majority is not None and ours["score"] <= majority:
        misses.append(f"its {metric} of {ours['score']:.4f} is no better than that of a constant")
    return misses


def _same_file(
    trial: Trial, family: Sequence[Model], name: str | None = None, twins: Mapping[str, str] | None = None
) -> Model | None:
    """Return the member that a candidate equals, one called ``name`` first: two timings of one file differ by noise alone.

    With ``twins`` (digests by id) the member whose twin it is.
    """
    assert trial.artifact is not None
    sha256 = hashlib.sha256(trial.artifact).hexdigest()
    for member in sorted(family, key=lambda m: m.name != name):
        digest = member.sha256 if twins is None else twins.get(member.id)
        same_answers = digest == sha256 and all(
            getattr(member, name) == getattr(trial, name) for name in ("threshold", "class_threshold")
        )
        # What was registered for its SQL form is there for predict too.
        if same_answers and (member.form == trial.form or trial.form == "predict"):
            return member
    return None


def _better(
    teacher: Model | None,
    members: Mapping[str, Model],
    trial: Trial,
    timings: Mapping[str, Timing],
    figures: Evaluation,
) -> list[str]:
    """Return what of the family dominates or equals a candidate, each by the way that can take its place.

    A member that only some of the test rows may judge is held against the candidate on these rows; one that none may judge,
    against nobody.
    """
    latency_ms = timings[offer_name(trial.number)].latency.mean_ms
    number = str(trial.scored_as)
    ours = figures["candidates"][number]["score"]
    teacher_ms = latency_of_teacher(teacher, timings) if teacher is not None else None
    rivals = []
    its_score = figures["teacher"]["score"]
    if teacher is not None and teacher_ms is not None and its_score is not None:
        rivals.append((teacher.qualified_name, teacher_ms, its_score, ours))
    for key, member in members.items():
        found = figures["members"].get(key)
        if found is None or found["score"] is None:
            continue
        way = key if stands_in(member.form, trial.form) else predict_name(member)
        ours_there = found["against"]["candidates"][number]["score"] if "against" in found else ours
        rivals.append((member.qualified_name, timings[way].latency.mean_ms, found["score"], ours_there))
    return [
        name
        for name, its_ms, theirs, ours_there in rivals
        if ours_there is not None and not pareto.improves((latency_ms, ours_there), [(its_ms, theirs)])
    ]


def not_compared(members: Mapping[str, Model], figures: Evaluation) -> list[str]:
    """Return the members that no test rows, or too few, may judge, by name."""
    return sorted(m.qualified_name for key, m in members.items() if key not in figures["members"])


def family_caveat(members: Mapping[str, Model], figures: Evaluation) -> str:
    """Return what a run's summary says of members that it could not judge, or nothing."""
    names = not_compared(members, figures)
    if not names:
        return ""
    few = names if len(names) <= MAX_NAMED else [*names[:MAX_NAMED], f"{len(names) - MAX_NAMED} more"]
    return f"; not compared with {', '.join(few)}, which may have learned from these test rows"


def comparable_interval(
    found: Scores, everywhere: float | None, there: Beside | None
) -> tuple[float, float] | None:
    """Return between which scores a member that only some of the test rows judged would come out on all of them.

    Rows differ in how hard they are: the member's difference to another model on the same rows is added to what that one
    reaches on all (a difference estimator, Cochran 1977, 7.2), with the difference's own 95 % interval: of what was judged on
    all rows nothing is in doubt but whether these are like others.

    Parameters
    ----------
    found
        The member's figures on the rows that may judge it.
    everywhere, there
        What the other reaches on all test rows, and beside the member on the member's.
    """
    if everywhere is None or there is None or there["score"] is None or found["score"] is None:
        return None
    value = everywhere + found["score"] - there["score"]
    half = confidence.Z_95 * (there["difference_error"] or 0.0)
    return value - half, value + half


def reached(ours: Scores, metric: str, asked: Floor) -> float:
    """Return the value of the floor's metric in a student's figures, which are by the run's; NaN where it is not defined."""
    value = ours["score"] if asked.metric == metric else ours["metrics"].get(asked.metric)
    value = ours["score"] if value is None else value
    return math.nan if value is None else value


def _pareto_score(
    teacher: Model, trial: Trial, timings: Mapping[str, Timing], figures: Evaluation
) -> float | None:
    return pareto.pareto_score(
        latency_of_teacher(teacher, timings),
        timings[offer_name(trial.number)].latency.mean_ms,
        figures["teacher"]["score"],
        figures["candidates"][str(trial.scored_as)]["score"],
    )


def faster_alternative(
    chosen: Trial,
    knee: Trial,
    options: Options,
    metric: str,
    teacher: Model,
    timings: Mapping[str, Timing],
    figures: Evaluation,
) -> str:
    """Return what a summary says of a student that is much faster than the choice and hardly worse, or nothing."""
    ours, its = (timings[offer_name(t.number)].latency.mean_ms for t in (chosen, knee))
    score, its_score = (figures["candidates"][str(t.scored_as)]["score"] for t in (chosen, knee))
    if knee.form != "predict" or ours < KNEE_SPEED * its or score is None or its_score is None:
        return ""
    if _misses(options, metric, teacher, knee, timings, figures):
        return ""
    return (
        f"; candidate {knee.number} ({knee.family}) takes {its:.3g}ms with {its_score - score:+.4f} {metric}:"
        " prefer => 'knee' makes it the answer"
    )
