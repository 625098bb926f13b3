"""What a user should know before the figures are believed: a sentence each, and what to do about it."""

from __future__ import annotations

import numpy as np

from pg_distill.child.messages import Surveyed
from pg_distill.frame import Frame, Strings
from pg_distill.measure import latency, metrics
from pg_distill.measure.scores import Evaluation
from pg_distill.registry.model import Model
from pg_distill.runs import verdict
from pg_distill.runs.material import Material
from pg_distill.runs.options import Options
from pg_distill.runs.verdict import Verdict

__all__ = ["is_out_of_reach", "of_floor", "of_rows", "of_student"]

RARE = 0.05  # share of the rows that have another label than the commonest, below which accuracy says little
DISTINCT, MIN_DISTINCT = (
    0.95,
    50,
)  # share of distinct values that makes a column of strings an id, among so many rows at least


def of_rows(teacher: Model, material: Material, survey: Surveyed) -> list[str]:
    """Return what is doubtful about rows, label and teacher, of what ``Trainer.survey`` says of them."""
    metric, name = material.metric, teacher.qualified_name
    found = _ids(material.sample.frame)
    turned = latency.turned_round(name, teacher.signature.classes, survey["order"], falls=survey["falls"])
    rare = _rare(metric, teacher.signature.classes, survey["shares"])
    theirs, majority = survey["teacher"], survey["majority"]
    if turned or rare:
        return [*found, *turned, *rare]
    if theirs is not None and majority is not None and theirs < majority:
        found.append(
            f'model "{name}" has {metric} {theirs:.4f} on the rows that choose, less than the {majority:.4f} of always giving'
            " the same answer: check its features, classes and label, or ask for another metric"
        )
    return found


def _rare(metric: str, classes: tuple[str, ...], shares: list[float] | None) -> list[str]:
    if shares is None or metric not in ("accuracy", metrics.AGREEMENT) or max(shares) < 1 - RARE:
        return []
    often = classes[int(np.argmax(shares))]
    return [
        f'{max(shares):.1%} of the labels are "{often}", which {metric} rewards whoever says nothing else for: ask for'
        " metric => 'average_precision', 'roc_auc' or 'balanced_accuracy'"
    ]


def _ids(rows: Frame) -> list[str]:
    said = []
    for feature in rows.features:
        column = rows.columns[feature.name]
        if not isinstance(column, Strings):
            continue
        known = int(np.count_nonzero(column.codes >= 0))
        distinct = len(np.unique(column.codes[column.codes >= 0]))
        if known >= MIN_DISTINCT and distinct >= DISTINCT * known:
            said.append(
                f'column "{feature.name}" has {distinct} different strings in {known} rows, as an id has: nothing that is'
                " learned of them holds for other rows; distil a teacher that does without it"
            )
    return said


def of_floor(options: Options, teacher: Model, metric: str, survey: Surveyed) -> list[str]:
    """Return that the teacher itself misses the floor that is asked for, beyond doubt, on the rows that choose."""
    asked = verdict.floor_asked(options, metric, teacher.task)
    high = survey["floor_high"]
    if asked is None or high is None or high >= asked[1]:
        return []
    return [
        f'model "{teacher.qualified_name}" itself has {asked[0]} of at most {high:.4f} on the rows that choose, below the floor'
        f" of {asked[1]:g}: lower min_accuracy, or leave it out"
    ]


def is_out_of_reach(options: Options, teacher: Model, metric: str, survey: Surveyed) -> bool:
    """Whether the floor leaves a student so few of its teacher's errors that no search is worth its time."""
    asked = verdict.floor_asked(options, metric, teacher.task)
    return asked is not None and verdict.is_out_of_reach(asked[1], survey["floor_high"])


def of_student(metric: str, teacher: Model, decision: Verdict, figures: Evaluation) -> list[str]:
    """Return that a student which is accepted is worse than no model."""
    chosen, majority = decision.chosen, figures["majority"]
    if chosen is None or not decision.accepted or majority is None:
        return []
    score = figures["candidates"][str(chosen.scored_as)]["score"]
    if score is None or score >= majority:
        return []
    return [
        f"the student has {metric} {score:.4f}, less than the {majority:.4f} of always giving the same answer: leave"
        " min_accuracy out to have such students refused"
    ]
