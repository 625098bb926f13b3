"""Which student a run comes to, and whether it is accepted: the design's formulas, on measured figures.

Chosen on the select rows, judged on the test rows, which have been looked at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pg_distill import measure, pareto
from pg_distill.frame import ModelForm
from pg_distill.latency import Timing
from pg_distill.options import Options
from pg_distill.registration import default_metric
from pg_distill.registry import Model
from pg_distill.trainer import Trial

__all__ = [
    "Verdict",
    "best_control",
    "comparable_interval",
    "decide",
    "family_caveat",
    "finalists",
    "is_offered",
    "kept_by_search",
    "not_compared",
    "offer_name",
    "predict_name",
    "preferred",
    "ranked",
    "sql_forms",
    "stands_in",
    "summarise",
]

EARLY_STAGES = ("screen", "rescue")  # of the search, in which students are trained on few rows
MAX_SQL_FORMS = 4  # students in SQL form that are timed in queries
MAX_TIMED = 8  # candidates of the search's frontier that are timed in the backend
MAX_NAMED = 3  # members that a summary names
ALWAYS_TIMED = 3  # of these, the best within the target


def offer_name(number: int) -> str:
    """Return the name under which a candidate is timed, and predict finds it; no registered model can have it."""
    return f"\x1fcandidate {number}"


def preferred(trials: Sequence[Trial], *, sql_wanted: bool | None = None) -> list[Trial]:
    """Return candidates as the select rows order them, best first, the faster one of equals: see ``measure.rank``.

    Of those that are as good, SQL forms come first where they are wanted, last where they are not.
    """
    by_speed = sorted(trials, key=lambda t: (t.fields["trainer_latency_ms"] or 0.0, t.number))
    unknown = float("-inf")
    order = measure.rank(
        [unknown if (value := t.fields["select_accuracy"]) is None else value for t in by_speed],
        [t.fields.get("tie_break_select") for t in by_speed],
        [t.fields.get("jackknife_select") or () for t in by_speed],
        [sql_wanted is not None and (t.form == "sql") is not sql_wanted for t in by_speed],
    )
    return [by_speed[i] for i in order]


def finalists(trials: Sequence[Trial], target_ms: float, overhead_ms: float) -> list[Trial]:
    """Return the search's frontier, thinned out evenly where it is long.

    ``overhead_ms`` is what predict costs around a model. The best within the target always stay: one of them is the answer.
    """
    frontier = kept_by_search(trials)
    if len(frontier) <= MAX_TIMED:
        return frontier
    within = [t for t in frontier if t.fields["trainer_latency_ms"] + overhead_ms <= target_ms]
    chosen = {t.number for t in preferred(within)[:ALWAYS_TIMED]}
    others = [t.number for t in frontier if t.number not in chosen]
    chosen |= {others[round(i)] for i in np.linspace(0, len(others) - 1, MAX_TIMED - len(chosen))}
    return [t for t in frontier if t.number in chosen]


def kept_by_search(trials: Sequence[Trial]) -> list[Trial]:
    """Return the search's frontier, fastest first: their files are kept, so that any can be promoted."""
    return sorted(
        (t for t in trials if t.fields["on_frontier"] and t.artifact is not None and t.form == "predict"),
        key=lambda t: (t.fields["trainer_latency_ms"], t.number),
    )


def best_control(trials: Sequence[Trial], target_ms: float, overhead_ms: float) -> Trial | None:
    """Return the control that the choice is compared with: the best within the target, where none is the fastest."""
    controls = [t for t in trials if t.is_scorable_control and t.fields["trainer_latency_ms"] is not None]
    within = [t for t in controls if t.fields["trainer_latency_ms"] + overhead_ms <= target_ms]
    if within:
        return preferred(within)[0]
    return min(controls, key=lambda t: (t.fields["trainer_latency_ms"], t.number), default=None)


def predict_name(member: Model) -> str:
    """Return the key of what predict takes for a member whose own latency is that of its SQL form."""
    return f"{member.id} predict"


def sql_forms(trials: Sequence[Trial]) -> list[Trial]:
    """Return candidates in SQL form as candidates of their own, thinned out where they are many.

    Of those that have an expression, the ones that no other beats at once in its length, on which planning and roughly
    execution depend, and on the select rows: what is fast as SQL (a single tree) need not be so as a graph.
    """
    known = [
        t
        for t in trials
        if t.artifact is not None and t.fields.get("expression") and t.fields["select_accuracy"] is not None
    ]
    points = [(float(len(t.fields["expression"])), float(t.fields["select_accuracy"])) for t in known]
    best = [
        t
        for i, t in enumerate(known)
        if not any(pareto.dominates(p, points[i]) for p in points) and points[i] not in points[:i]
    ]
    best.sort(key=lambda t: (len(t.fields["expression"]), t.number))
    if len(best) > MAX_SQL_FORMS:
        best = [best[round(i)] for i in np.linspace(0, len(best) - 1, MAX_SQL_FORMS)]
    first = 1 + max((t.number for t in trials), default=0)
    return [
        replace(
            t,
            number=first + i,
            twin=t.number,
            fields={
                **t.fields,
                "candidate": first + i,
                "form": "sql",
                "trainer_latency_ms": None,
                "seconds": None,
                "reason": f"candidate {t.number} as a SQL expression",
            },
        )
        for i, t in enumerate(best)
    ]


def stands_in(other: ModelForm, own: ModelForm) -> bool:
    """Whether a student of form ``other`` can take the place of one of form ``own``, and so dominate it.

    Predict answers wherever a SQL expression does, but an expression has to be written into the statement: it is no
    answer to who calls predict.
    """
    return own == "sql" or other != "sql"


def ranked(
    candidates: Sequence[Trial],
    timings: Mapping[str, Timing],
    target_ms: float,
    teacher: Model,
    on_select: tuple[float | None, int | None],
    *,
    sql_wanted: bool = False,
) -> list[Trial]:
    """Return the candidates that meet the target in the order in which they are the answer, by the select rows alone.

    Within noise of the best one's metric log loss decides, then latency (see `preferred`); beyond, the metric.
    A student in SQL form is the answer only where also a statement of its own, planning included, meets the target, and,
    unless ``sql_wanted``, where it is better beyond noise than what predict gives within the target.
    ``on_select`` are the teacher's metric there and how many classes it names. What the teacher dominates there comes last,
    a student slower and no better than its teacher being of no use, and so does what names one class where the teacher
    names more. Where none meets the target, the fastest is returned: the nearest miss, reported as such.
    """

    def latency(trial: Trial) -> float:
        return timings[offer_name(trial.number)].latency.mean_ms

    offered = [t for t in candidates if is_offered(t, target_ms)]
    fitting = [t for t in offered if timings[offer_name(t.number)].latency.high_ms <= target_ms]
    if not fitting:
        return sorted(offered or candidates, key=latency)[:1]
    accuracy, classes = on_select
    teacher_ms = _teacher_ms(teacher, timings)

    def is_useless(trial: Trial) -> bool:
        if trial.fields.get("select_classes") == 1 and classes is not None and classes > 1:
            return True
        if teacher_ms is None or accuracy is None:
            return False
        return not pareto.improves(
            (latency(trial), trial.fields["select_accuracy"]), [(teacher_ms, accuracy)]
        )

    by_number = {t.number: t for t in fitting}
    order: list[int] = []
    for useless in (False, True):
        group = [t for t in fitting if is_useless(t) is useless]
        measured = [replace(t, fields={**t.fields, "trainer_latency_ms": latency(t)}) for t in group]
        found = preferred(measured, sql_wanted=sql_wanted)
        if sql_wanted and found:
            # As good as the answer is enough: the best by the metric may be another one still.
            as_good = preferred([found[0], *(t for t in found if t.form == "sql")], sql_wanted=True)
            first = [t.number for t in as_good[: [t.number for t in as_good].index(found[0].number)]]
            found.sort(key=lambda t: first.index(t.number) if t.number in first else len(first))
        order += [t.number for t in found]
    return [by_number[number] for number in order]


def is_offered(trial: Trial, target_ms: float) -> bool:
    """Whether a candidate may be the answer: a statement with all of its SQL in it has to meet the target too."""
    return trial.form != "sql" or trial.fields["statement_latency_ms"] <= target_ms


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
    figures: Mapping[str, Any],
) -> Verdict:
    """Accept the first of the candidates that meets target and floor and improves the family's frontier.

    ``candidates`` stand in the order of the choice, which the select rows gave. The test rows say only yes or no to one
    after the other and put none before another, so that figures of the student that is accepted are not the best of
    several; how many were asked is recorded, as each that was refused leaves a little more room for luck with the floor.
    One whose file the family has already is the answer given before: nothing behind it may take that one's place.
    """
    if not candidates:
        return Verdict(False, None, "no candidate", None, {})
    refused: dict[int, str] = {}
    family = [teacher, *members.values()]
    for trial in candidates:
        misses = _misses(options, metric, teacher, members, trial, timings, figures)
        if not misses:
            reason = "chosen: best on the select rows within the target"
            if refused:
                reason += f", of those after {len(refused)} that were refused"
            return Verdict(True, trial, reason, _pareto_score(teacher, trial, timings, figures), refused)
        refused[trial.number] = " and ".join(misses)
        if _same_file(trial, family) is not None:
            break
    nearest = candidates[0]
    return Verdict(
        False, nearest, refused[nearest.number], _pareto_score(teacher, nearest, timings, figures), refused
    )


def _misses(
    options: Options,
    metric: str,
    teacher: Model,
    members: Mapping[str, Model],
    trial: Trial,
    timings: Mapping[str, Timing],
    figures: Mapping[str, Any],
) -> list[str]:
    """Return what speaks against a candidate."""
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
    name, floor = _floor(metric, teacher, ours)
    if not floor >= options.min_accuracy:
        misses.append(f"its {name} of {floor:.4f} misses the floor of {options.min_accuracy:g}")
    # Below one half throughout, probabilities of a rare class can still rank as well as the teacher's do.
    if ours["distinct_classes"] == 1 and (theirs["distinct_classes"] > 1 or measure.judges_classes(metric)):
        misses.append("it gives every row the same class")
    same = _same_file(trial, [teacher, *members.values()])
    if same is not None:
        misses.append(f"it is the same file as {same.qualified_name}, which the family has already")
    else:
        better = _better(teacher, members, trial, timings, figures)
        if better:
            misses.append(f"it does not improve the family's frontier: {better[0]} is no slower and no worse")
    return misses


def _same_file(trial: Trial, family: Sequence[Model]) -> Model | None:
    """Return the member that a candidate equals: two timings of one file differ by noise alone."""
    assert trial.artifact is not None
    sha256 = hashlib.sha256(trial.artifact).hexdigest()
    for member in family:
        same_answers = member.sha256 == sha256 and member.threshold == trial.fields.get("threshold")
        # What was registered for its SQL form is there for predict too.
        if same_answers and (member.form == trial.form or trial.form == "predict"):
            return member
    return None


def _better(
    teacher: Model,
    members: Mapping[str, Model],
    trial: Trial,
    timings: Mapping[str, Timing],
    figures: Mapping[str, Any],
) -> list[str]:
    """Return what of the family dominates or equals a candidate, each by the way that can take its place.

    A member that only some of the test rows may judge is held against the candidate on these rows; one that none may judge,
    against nobody.
    """
    latency_ms = timings[offer_name(trial.number)].latency.mean_ms
    number = str(trial.scored_as)
    ours = figures["candidates"][number]["score"]
    teacher_ms = _teacher_ms(teacher, timings)
    rivals = []
    if teacher_ms is not None:
        rivals.append((teacher.qualified_name, teacher_ms, figures["teacher"]["score"], ours))
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


def not_compared(members: Mapping[str, Model], figures: Mapping[str, Any]) -> list[str]:
    """Return the members that no test rows, or too few, may judge, by name."""
    return sorted(m.qualified_name for key, m in members.items() if key not in figures["members"])


def family_caveat(members: Mapping[str, Model], figures: Mapping[str, Any]) -> str:
    """Return what a run's summary says of members that it could not judge, or nothing."""
    names = not_compared(members, figures)
    if not names:
        return ""
    few = names if len(names) <= MAX_NAMED else [*names[:MAX_NAMED], f"{len(names) - MAX_NAMED} more"]
    return f"; not compared with {', '.join(few)}, which may have learned from these test rows"


def comparable_interval(
    found: Mapping[str, Any], everywhere: float | None, there: Mapping[str, Any] | None
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
    half = measure.Z_95 * (there["difference_error"] or 0.0)
    return value - half, value + half


def _teacher_ms(teacher: Model, timings: Mapping[str, Timing]) -> float | None:
    return timings[teacher.id].latency.mean_ms if teacher.id in timings else teacher.avg_latency_ms


def _floor(metric: str, teacher: Model, ours: Mapping[str, Any]) -> tuple[str, float]:
    """Return the metric that ``min_accuracy`` bounds, and its value."""
    name = metric if measure.is_unit_metric(metric) else default_metric(teacher.task, True)
    value = ours["score"] if name == metric else ours["metrics"].get(name)
    return name, ours["score"] if value is None else value


def _pareto_score(
    teacher: Model, trial: Trial, timings: Mapping[str, Timing], figures: Mapping[str, Any]
) -> float | None:
    return pareto.pareto_score(
        _teacher_ms(teacher, timings),
        timings[offer_name(trial.number)].latency.mean_ms,
        figures["teacher"]["score"],
        figures["candidates"][str(trial.scored_as)]["score"],
    )


def _stage(trial: Trial) -> object:
    return trial.fields["configuration"].get("stage")


def summarise(
    options: Options,
    metric: str,
    teacher: Model,
    decision: Verdict,
    control: Trial | None,
    timings: Mapping[str, Timing],
    figures: Mapping[str, Any],
    compared: Mapping[str, Any],
) -> str:
    """Return the run in a sentence; ``compared`` is what ``Judge.compare`` says of teacher, control and student."""
    chosen = decision.chosen
    if chosen is None:
        return "no student could be trained within the time budget"
    theirs, ours = figures["teacher"], figures["candidates"][str(chosen.scored_as)]
    if theirs["score"] is None or ours["score"] is None:
        return f"no student accepted: {decision.reason}"
    summary = measure.summary(
        teacher_latency_ms=_teacher_ms(teacher, timings),
        student_latency_ms=timings[offer_name(chosen.number)].latency.mean_ms,
        teacher_accuracy=theirs["score"],
        student_accuracy=ours["score"],
        baseline=figures["majority"],
        pareto_score=decision.pareto_score,
        latency_declared=teacher.latency_declared,
    )
    if chosen.fields["is_control"]:
        summary += "; it learned from labels alone"
    elif control is not None:
        gain = compared["versus"]["student-control"].get(metric)
        if gain is not None and gain["difference"] is not None and gain["low"] is not None:
            summary += (
                f"; the teacher added {gain['difference']:+.4f} {metric} to labels alone"
                f" ({gain['low']:+.4f} to {gain['high']:+.4f})"
            )
            if _stage(control) in EARLY_STAGES and _stage(chosen) not in EARLY_STAGES:
                summary += ", whose training the time budget cut short"
    name, _ = _floor(metric, teacher, ours)
    low, high = ours["score_low"], ours["score_high"]
    if name != metric:
        low, high = compared["intervals"]["student"][name]
    if low is not None and high is not None and low < options.min_accuracy <= high:
        summary += f"; the {'accuracy' if name == metric else name}'s interval {low:.4f} to {high:.4f} straddles the floor"
    if not decision.accepted:
        summary = (
            f"no student accepted; nearest is candidate {chosen.number} ({chosen.fields['family']}): {decision.reason};"
            f" {summary}"
        )
    return summary
