"""What models are worth on the test rows: the students of a search, and those that a request brings along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pg_distill.child.labelling import probabilities_of
from pg_distill.child.wire import Message
from pg_distill.frame import Cut, FloatArray
from pg_distill.onnx_model.signature import Signature

if TYPE_CHECKING:
    from pg_distill.measure.judge import Judge
    from pg_distill.measure.scores import Beside, Compared, Evaluation, Scores
    from pg_distill.search.problem import Problem
    from pg_distill.students.transfer_set import TransferSet

__all__ = ["Examination", "cut_of"]

RESAMPLES = 1000  # bootstrap


class Examination:
    """The test rows, and what the models say of them."""

    def __init__(self, problem: Problem, rows: TransferSet, *, seed: int, teacher_cut: Cut) -> None:
        assert rows.y is not None and rows.teacher_logits is not None
        self.problem = problem
        self.rows = rows
        self.y = rows.y
        self.seed = seed
        self.teacher = probabilities_of(rows.teacher_logits, problem.task)
        self.teacher_cut = teacher_cut
        self.judge: Judge
        self.outputs: dict[int, FloatArray] = {}
        self.cuts: dict[int, Cut] = {}

    def add(self, number: int, own: FloatArray, threshold: float | None, cut: Cut) -> None:
        """Note what a student says, with the teacher's word where it is below ``threshold``; ``cut`` is its class threshold."""
        self.outputs[number], self.cuts[number] = self._cascaded(own, threshold), cut

    def _cascaded(self, own: FloatArray, threshold: float | None) -> FloatArray:
        if threshold is None:
            return own
        return np.where(own.max(axis=1, keepdims=True) >= threshold, own, self.teacher)

    def _judge_of(self, rows: npt.NDArray[np.bool_]) -> Judge:
        from pg_distill.measure.judge import Judge

        problem, weights = self.problem, self.rows.weights
        return Judge(
            problem.metric,
            problem.task,
            self.y[rows],
            self.teacher[rows],
            None if weights is None else weights[rows],
            seed=self.seed,
            resamples=RESAMPLES,
            # Where a model is watched there are no rows to fit on.
            baseline_y=problem.fit.y if len(problem.fit) else None,
            baseline_weights=problem.fit.weights,
        )

    def evaluate(self, request: Message, teacher_threshold: Cut) -> Evaluation:
        """Return the figures of the teacher, of the students so far, and of the models that ``request`` brings."""
        every = np.ones(len(self.rows), bool)
        self.judge = judge = self._judge_of(every)
        reply: Evaluation = {
            "teacher": judge.figures(self.teacher, self.teacher_cut),
            "majority": judge.baseline(),
            "candidates": {str(n): judge.figures(o, self.cuts[n]) for n, o in self.outputs.items()},
            "members": {},
        }
        if teacher_threshold is not None:
            reply["teacher"]["tuned"] = {
                "class_threshold": teacher_threshold,
                "score": judge.value(self.teacher, teacher_threshold),
            }
        cuts = request.fields["class_thresholds"]
        members = {
            key: _Member(
                self._run(request, key),
                cut_of(cuts.get(key)),
                request.arrays.get(f"outside/{key}", every).astype(bool),
            )
            for key in request.fields["members"]
        }
        for key, member in members.items():
            if member.outside.all():
                reply["members"][key] = judge.figures(member.outputs, member.cut)
            else:
                others = {name: other for name, other in members.items() if name != key}
                reply["members"][key] = self._on_its_rows(member, others)
        return reply

    def _run(self, request: Message, key: str) -> FloatArray:
        from pg_distill.onnx_model import derive
        from pg_distill.onnx_model.text_model import open_model

        artifact = request.blobs[key]
        signature = derive.costed(artifact, Signature.from_json(*request.fields["members"][key]))
        own = open_model(artifact, signature).run_frame(self.rows.frame)
        return self._cascaded(own, request.fields["thresholds"].get(key))

    def _on_its_rows(self, member: _Member, others: Mapping[str, _Member]) -> Scores:
        """Return the figures of a member that has learned from some rows: on the rest, and so of what it is held against."""
        rows, own = member.outside, member.outputs[member.outside]
        judge = self._judge_of(rows)

        def beside(other: FloatArray, cut: Cut) -> Beside:
            return {
                "score": judge.value(other[rows], cut),
                "difference_error": judge.difference_error(own, other[rows], (member.cut, cut)),
            }

        return {
            **judge.figures(own, member.cut),
            "against": {
                "teacher": beside(self.teacher, self.teacher_cut),
                "majority": judge.baseline(),
                "candidates": {str(n): beside(o, self.cuts[n]) for n, o in self.outputs.items()},
                "members": {
                    key: beside(other.outputs, other.cut) if (other.outside | ~rows).all() else None
                    for key, other in others.items()
                },
            },
        }

    def is_worse(self, own: FloatArray, other: FloatArray, share: float) -> bool:
        """Whether outputs are worse than others, by more than ``share`` of the others' log loss or error."""
        judge = self._judge_of(np.ones(len(self.rows), bool))
        now, before = judge.tie_break(own), judge.tie_break(other)
        return now is not None and before is not None and now < before - share * abs(before)

    def compare(self, control: int | None, student: int | None) -> Compared:
        """Return the differences of teacher, control and student, of those that there are."""
        outputs, cuts = {"teacher": self.teacher}, {"teacher": self.teacher_cut}
        for name, number in (("control", control), ("student", student)):
            if number is not None:
                outputs[name], cuts[name] = self.outputs[number], self.cuts[number]
        return self.judge.compare(outputs, cuts)


def cut_of(given: float | Sequence[float] | None) -> Cut:
    """Return a class threshold as a message has it: of several labels a list."""
    return given if given is None or isinstance(given, float) else tuple(given)


@dataclass(frozen=True)
class _Member:
    """A model of the family: what it says of the test rows, and which of them it has not learned from."""

    outputs: FloatArray
    cut: Cut
    outside: npt.NDArray[np.bool_]
