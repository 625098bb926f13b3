"""Which candidate is the answer: those of the frontier that are timed, in the order in which they are preferred."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pg_distill.child.messages import Trial
from pg_distill.frame import ModelForm
from pg_distill.measure import confidence, metrics, pareto
from pg_distill.registry.model import Model
from pg_distill.serving.timing import Timing
from pg_distill.students.expression import form, of_texts

__all__ = [
    "CHOSEN",
    "best_control",
    "finalists",
    "is_offered",
    "kept_by_search",
    "latency_of_teacher",
    "least_at_knee",
    "offer_name",
    "predict_name",
    "preferred",
    "ranked",
    "sql_forms",
    "stands_in",
]

MAX_SQL_FORMS = 6  # students in SQL form that are timed in queries
MAX_TIMED = 8  # candidates of the search's frontier that are timed in the backend
KNEE_LIFT = 0.98  # of the lift over the majority that the answer has: the fastest student that keeps it is at the knee
ALWAYS_TIMED = 3  # of these, the best within the target


def offer_name(number: int) -> str:
    """Return the name under which a candidate is timed, and predict finds it; no registered model can have it."""
    return f"\x1fcandidate {number}"


def preferred(trials: Sequence[Trial], *, sql_wanted: bool | None = None) -> list[Trial]:
    """Return candidates as the select rows order them, best first, the faster one of equals: see ``measure.rank``.

    Of those that are as good, SQL forms come first where they are wanted, last where they are not.
    """
    by_speed = sorted(trials, key=lambda t: (t.trainer_latency_ms or 0.0, t.number))
    unknown = float("-inf")
    order = confidence.rank(
        [unknown if (value := t.select_accuracy) is None else value for t in by_speed],
        [t.tie_break_select for t in by_speed],
        [t.jackknife_select or () for t in by_speed],
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
    within = [t for t in frontier if _trained_ms(t) + overhead_ms <= target_ms]
    chosen = {t.number for t in preferred(within)[:ALWAYS_TIMED]}
    others = [t.number for t in frontier if t.number not in chosen]
    chosen |= {others[round(i)] for i in np.linspace(0, len(others) - 1, MAX_TIMED - len(chosen))}
    return [t for t in frontier if t.number in chosen]


def kept_by_search(trials: Sequence[Trial]) -> list[Trial]:
    """Return the search's frontier, fastest first: their files are kept, so that any can be promoted."""
    return sorted(
        (t for t in trials if t.on_frontier and t.artifact is not None and t.form == "predict"),
        key=lambda t: (_trained_ms(t), t.number),
    )


def _trained_ms(trial: Trial) -> float:
    """Return its latency in the training process, infinity where that was not measured."""
    return math.inf if trial.trainer_latency_ms is None else trial.trainer_latency_ms


def best_control(trials: Sequence[Trial], target_ms: float, overhead_ms: float) -> Trial | None:
    """Return the control that the choice is compared with: the best within the target, where none is the fastest."""
    controls = [t for t in trials if t.is_scorable_control and t.trainer_latency_ms is not None]
    within = [t for t in controls if _trained_ms(t) + overhead_ms <= target_ms]
    if within:
        return preferred(within)[0]
    return min(controls, key=lambda t: (_trained_ms(t), t.number), default=None)


def predict_name(member: Model) -> str:
    """Return the key of what predict takes for a member whose own latency is that of its SQL form."""
    return f"{member.id} predict"


def sql_forms(
    trials: Sequence[Trial], *, pgvector: bool, row_ms: Callable[[Trial], float] | None = None
) -> list[Trial]:
    """Return candidates in SQL form as candidates of their own, thinned out where they are many.

    Of those that have an expression, the ones that no other beats at once in its length, on which planning and roughly
    execution depend, and on the select rows: what is fast as SQL (a single tree) need not be so as a graph. ``pgvector`` tells
    whether the database has it.

    Where ``row_ms`` is given, those stay too that no other beats in the milliseconds of a row, which lengths say nothing of
    where families differ: a row takes a path of each tree, but all of a network.
    """
    known, points = [], []
    for t in trials:
        if t.artifact is not None and t.expression and t.select_accuracy is not None:
            written = (pgvector and form(t.expression, vectors=True)) or form(t.expression, vectors=False)
            if written and of_texts(written) is None:  # which is slower than predict
                known.append(t)
                points.append((float(len(written)), t.select_accuracy))
    best = _thinned(_unbeaten(known, points))
    if row_ms is not None:
        timed: list[Trial] = []
        for family in dict.fromkeys(t.family for t in known):
            own = [i for i, t in enumerate(known) if t.family == family]
            timed += _thinned(_unbeaten([known[i] for i in own], [points[i] for i in own]))
        quick = _unbeaten(timed, [(row_ms(t), t.select_accuracy or 0.0) for t in timed])
        best = list({t.number: t for t in [*best, *_thinned(quick)]}.values())
    first = 1 + max((t.number for t in trials), default=0)
    return [
        replace(
            t,
            number=first + i,
            twin=t.number,
            trainer_latency_ms=None,
            seconds=None,
            reason=f"candidate {t.number} as a SQL expression",
        )
        for i, t in enumerate(best)
    ]


def _unbeaten(trials: Sequence[Trial], points: Sequence[tuple[float, float]]) -> list[Trial]:
    """Return those whose point, a cost and a metric, no other dominates, the cheapest first; of equals the first."""
    order = sorted(range(len(trials)), key=lambda i: (points[i][0], trials[i].number))
    return [
        trials[i]
        for i in order
        if not any(pareto.dominates(p, points[i]) for p in points) and points[i] not in points[:i]
    ]


def _thinned(trials: Sequence[Trial]) -> list[Trial]:
    """Return at most ``MAX_SQL_FORMS`` of them, the first and the last among these."""
    if len(trials) <= MAX_SQL_FORMS:
        return list(trials)
    return [trials[round(i)] for i in np.linspace(0, len(trials) - 1, MAX_SQL_FORMS)]


CHOSEN = {
    "accurate": "chosen: best on the select rows within the target",
    "knee": "chosen: fastest on the select rows that keeps nearly all of the best one's lift",
    "fast": "chosen: fastest within the target that reaches the floor on the select rows",
}


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
    metric: str = "accuracy",
    prefer: str = "accurate",
    majority: float | None = None,
    floor: float | None = None,
) -> list[Trial]:
    """Return the candidates that meet the target in the order in which they are the answer, by the select rows alone.

    Within noise of the best one's metric log loss decides, then latency (see `preferred`); beyond, the metric.
    A student in SQL form is the answer only where also a statement of its own, planning included, meets the target, and,
    unless ``sql_wanted``, where it is better beyond noise than what predict gives within the target.
    ``on_select`` are the teacher's metric there and how many classes it names. What the teacher dominates there comes last,
    a student slower and no better than its teacher being of no use, and so does what names one class where the teacher
    names more and the metric judges classes. Where none meets the target, the fastest is returned: the nearest miss, reported as
    such.

    Who prefers the ``knee`` is answered by the fastest student that keeps ``KNEE_LIFT`` of the best one's lift over the
    ``majority`` on select, who prefers ``fast`` by the fastest that reaches the ``floor`` there; SQL forms only where wanted.
    """

    def latency(trial: Trial) -> float:
        return timings[offer_name(trial.number)].latency.mean_ms

    offered = [t for t in candidates if is_offered(t, target_ms)]
    fitting = [t for t in offered if timings[offer_name(t.number)].latency.high_ms <= target_ms]
    if not fitting:
        return sorted(offered or candidates, key=latency)[:1]
    accuracy, classes = on_select
    teacher_ms = latency_of_teacher(teacher, timings)

    def is_useless(trial: Trial) -> bool:
        names_one = trial.select_classes == 1 and classes is not None and classes > 1
        if names_one and metrics.judges_classes(metric):
            return True
        if teacher_ms is None or accuracy is None or trial.select_accuracy is None:
            return False
        return not pareto.improves((latency(trial), trial.select_accuracy), [(teacher_ms, accuracy)])

    by_number = {t.number: t for t in fitting}
    order: list[int] = []
    for useless in (False, True):
        group = [t for t in fitting if is_useless(t) is useless]
        measured = [replace(t, trainer_latency_ms=latency(t)) for t in group]
        found = preferred(measured, sql_wanted=sql_wanted)
        if sql_wanted and found:
            # As good as the answer is enough: the best by the metric may be another one still.
            as_good = preferred([found[0], *(t for t in found if t.form == "sql")], sql_wanted=True)
            first = [t.number for t in as_good[: [t.number for t in as_good].index(found[0].number)]]
            found.sort(key=lambda t: first.index(t.number) if t.number in first else len(first))
        if prefer != "accurate" and found:
            callable_ = [t for t in found if sql_wanted or t.form != "sql"]
            least = least_at_knee(found[0], majority) if prefer == "knee" else floor
            ahead = [t for t in callable_ if least is None or _reaches(t, least)]
            ahead.sort(key=latency)
            first = [t.number for t in (ahead[:1] if prefer == "knee" else ahead)]
            found = [t for n in first for t in found if t.number == n] + [
                t for t in found if t.number not in first
            ]
        order += [t.number for t in found]
    return [by_number[number] for number in order]


def least_at_knee(best: Trial, majority: float | None) -> float | None:
    """Return what a student must reach on select to be as good as the best one, but for what speed is worth."""
    value = best.select_accuracy
    if value is None or majority is None or not value > majority:
        return value
    return float(majority + KNEE_LIFT * (value - majority))


def _reaches(trial: Trial, least: float) -> bool:
    value = trial.select_accuracy
    return value is not None and value >= least


def is_offered(trial: Trial, target_ms: float) -> bool:
    """Whether a candidate may be the answer: a statement with all of its SQL in it has to meet the target too."""
    took = trial.statement_latency_ms
    return trial.form != "sql" or (took is not None and took <= target_ms)


def latency_of_teacher(teacher: Model, timings: Mapping[str, Timing]) -> float | None:
    """Return the teacher's mean latency, None where nobody has measured or declared one."""
    return timings[teacher.id].latency.mean_ms if teacher.id in timings else teacher.avg_latency_ms
