"""The sentence in which a run says what came of it."""

from __future__ import annotations

from collections.abc import Mapping

from pg_distill.child.messages import Ended, Trial
from pg_distill.measure.scores import Compared, Evaluation, Scores
from pg_distill.registry.model import Model
from pg_distill.runs.choice import latency_of_teacher, offer_name
from pg_distill.runs.options import Options
from pg_distill.runs.verdict import Verdict, floor
from pg_distill.serving.timing import Timing
from pg_distill.students.families import MONOTONE

__all__ = ["ending", "headline", "said_of_constraints", "summarise", "twin_caveat"]
SHORT = ("partial", "cut_short")  # what a training says of itself that had a part of its rows, or of its time


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def headline(
    *,
    teacher_latency_ms: float | None,
    student_latency_ms: float,
    teacher_accuracy: float | None,
    student_accuracy: float | None,
    baseline: float | None,
    pareto_score: float | None,
    latency_declared: bool = False,
) -> str:
    """Return a run in a sentence.

    Such as ``12.4ms -> 0.011ms latency (1127x faster), 99.3% accuracy preserved (97.1% of the lift), pareto score 1119.2``.
    """
    if teacher_latency_ms is None:
        parts = [f"{_milliseconds(student_latency_ms)}ms latency (the teacher's is not known)"]
    else:
        declared = " declared" if latency_declared else ""
        ratio = teacher_latency_ms / student_latency_ms
        faster = f"{ratio:.3g}x faster" if ratio < 100 else f"{ratio:.0f}x faster"
        if ratio < 1:
            faster = f"{1 / ratio:.3g}x slower"
        parts = [
            f"{_milliseconds(teacher_latency_ms)}ms{declared} -> {_milliseconds(student_latency_ms)}ms latency ({faster})"
        ]
    if teacher_accuracy is not None and student_accuracy is not None:
        if teacher_accuracy > 0:
            kept = f"{100 * student_accuracy / teacher_accuracy:.1f}% accuracy preserved"
        else:
            kept = f"metric {teacher_accuracy:.4g} -> {student_accuracy:.4g}"
        if baseline is not None and teacher_accuracy > baseline:
            kept += (
                f" ({100 * (student_accuracy - baseline) / (teacher_accuracy - baseline):.1f}% of the lift)"
            )
        parts.append(kept)
    if pareto_score is not None:
        parts.append(f"pareto score {pareto_score:.1f}")
    return ", ".join(parts)


ENDINGS = {
    "patience": "nothing had improved for {since_gain} trainings",
    "budget": "its time was over",
    "all done": "all was done that there was to try",
}


def ending(ended: Ended) -> str:
    """Return why the search ended, in a sentence."""
    why = ENDINGS[ended["by"]].format(**ended)
    return f"the search ended after {ended['seconds']:.0f} s and {ended['trained']} trainings: {why}"


def said_of_constraints(options: Options) -> str:
    """Return what students are held to, and which families that leaves out, in a sentence."""
    ways = {1: "never fall when {} rises", -1: "never rise when {} rises"}
    held = " and ".join(ways[sign].format(f'"{name}"') for name, sign in options.constraints.items())
    out = [family for family in options.student_families if family not in MONOTONE]
    if options.families is None:
        out.append("cascade")
    left_out = f"; {', '.join(out)} cannot keep that, and are not tried" if out else ""
    return f"answers {held}{left_out}"


def twin_caveat(not_registered: str | None) -> str:
    """Return what a summary says of a student that was to learn from the test rows too, or why it has not."""
    if not_registered is not None:
        return f"; it has not learned from the test rows: {not_registered}"
    return "; the registered file has learned from the test rows too: all figures are of its judged twin, which has not"


def _is_short(trial: Trial) -> bool:
    return trial.configuration.get("stage") == "rescue" or any(trial.configuration.get(k) for k in SHORT)


def _by_class(teacher: Model, scores: Scores) -> str:
    """Return the ends of the average precision of several labels."""
    by_class = zip(scores.get("average_precision", ()), teacher.signature.classes, strict=False)
    known = sorted((value, name) for value, name in by_class if value is not None)
    if not known:
        return ""
    (low, worst), (high, best) = known[0], known[-1]
    return f'; average precision by class from {low:.4f} ("{worst}") to {high:.4f} ("{best}")'


def summarise(
    options: Options,
    metric: str,
    teacher: Model,
    decision: Verdict,
    control: Trial | None,
    timings: Mapping[str, Timing],
    figures: Evaluation,
    compared: Compared,
) -> str:
    """Return the run in a sentence; ``compared`` is what ``Judge.compare`` says of teacher, control and student."""
    chosen = decision.chosen
    if chosen is None:
        return f"no student was trained: {decision.reason}"
    theirs, ours = figures["teacher"], figures["candidates"][str(chosen.scored_as)]
    if theirs["score"] is None or ours["score"] is None:
        return f"no student accepted: {decision.reason}"
    said = headline(
        teacher_latency_ms=latency_of_teacher(teacher, timings),
        student_latency_ms=timings[offer_name(chosen.number)].latency.mean_ms,
        teacher_accuracy=theirs["score"],
        student_accuracy=ours["score"],
        baseline=figures["majority"],
        pareto_score=decision.pareto_score,
        latency_declared=teacher.latency_declared,
    )
    if chosen.is_control:
        said += "; it learned from labels alone"
    elif control is not None:
        gain = compared["versus"]["student-control"].get(metric)
        if gain is not None and gain["difference"] is not None and gain["low"] is not None:
            said += (
                f"; the teacher added {gain['difference']:+.4f} {metric} to labels alone"
                f" ({gain['low']:+.4f} to {gain['high']:+.4f})"
            )
            if _is_short(control) and not _is_short(chosen):
                said += ", whose training the time budget cut short"
    cut = chosen.class_threshold
    if cut is not None:
        said += f'; predict_class says "{teacher.signature.classes[1]}" from a probability of {cut:.3g} on'
        if "tuned" in theirs and theirs["tuned"]["score"] is not None:
            said += f" (the teacher, cut likewise, would have {metric} {theirs['tuned']['score']:.4f})"
    said += _by_class(teacher, ours)
    if chosen.signature is not None and chosen.signature.thresholds:
        said += "; predict_classes names each class from a probability of its own on"
        if "tuned" in theirs and theirs["tuned"]["score"] is not None:
            said += f" (the teacher, cut likewise, would have {metric} {theirs['tuned']['score']:.4f})"
    asked = floor(options, metric, teacher.task, theirs["score"], figures["majority"])
    if asked is not None and not asked.is_relative:
        low, high = ours["score_low"], ours["score_high"]
        if asked.metric != metric:
            low, high = compared["intervals"]["student"][asked.metric]
        if low is not None and high is not None and low < asked.value <= high:
            name = "accuracy" if asked.metric == metric else asked.metric
            said += f"; the {name}'s interval {low:.4f} to {high:.4f} straddles the floor"
    if not decision.accepted:
        said = (
            f"no student accepted; nearest is candidate {chosen.number} ({chosen.family}): {decision.reason};"
            f" {said}"
        )
    return said
