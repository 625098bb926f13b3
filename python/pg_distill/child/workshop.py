"""The training process: what it holds of the rows and models it was given, and how it answers.

Long, because its one class is the process: a method for each request, over the rows and models that it holds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pg_distill.child import inspection
from pg_distill.child.channel import Channel, child_main
from pg_distill.child.examination import Examination, cut_of
from pg_distill.child.labelling import (
    distinct_classes,
    finite,
    in_parallel,
    label_splits,
    probabilities_of,
)
from pg_distill.child.messages import (
    ChosenBy,
    Loaded,
    Surveyed,
    Trial,
    pack,
    unpack,
    write_signature,
)
from pg_distill.child.wire import Message
from pg_distill.errors import InvalidData
from pg_distill.frame import Cut, FloatArray, Frame, Task, has_label
from pg_distill.onnx_model.signature import Signature

if TYPE_CHECKING:
    from pg_distill.measure.judge import Judge
    from pg_distill.search.problem import Candidate, Problem

__all__ = ["Workshop"]

PROTOTYPE_ROWS = 2000  # rows that preprocessing of an untrained student is fitted to
PROBE_ROWS = 64  # that the logits of a graph are found on, and that are worth a thread
LOCAL = "local"  # as the executor of a search: threads of the training process
CASCADE_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)  # of the rows, that the teacher is asked for
# What the log loss of a file that has learned the test rows may be worse than its twin's, as a share; how often the two are
# timed, and how many times as slow it may be.
RELEARN_WORSE, RELEARN_TIMINGS, RELEARN_SLOWER = 0.1, 10, 1.25


class Workshop:
    """What the child knows between requests."""

    def __init__(self) -> None:
        self.problem: Problem
        self.examination: Examination
        self.label: Callable[[Frame], FloatArray] | None = None
        self.teacher_artifact: bytes | None = None
        self.folds: tuple[int, ...] = (1,)  # whose rows chose among the candidates: select's
        self.candidates: dict[int, Candidate] = {}
        self.signatures: dict[int, Signature] = {}
        self.cascades: dict[int, tuple[int, float]] = {}
        self.class_thresholds: dict[int, Cut] = {}
        self.seed = 0
        self.teacher_cut: Cut = None
        self.teacher_threshold: Cut = None

    def load(self, request: Message, channel: Channel) -> Message:
        from pg_distill.onnx_model import derive
        from pg_distill.onnx_model.teacher import TeacherModel
        from pg_distill.rows.split import FIT, LEFT_OUT, SELECT, SPLIT_NAMES, TEST, UNLABELLED
        from pg_distill.search.problem import Problem
        from pg_distill.students import transfer_set
        from pg_distill.students.soft_labels import logits_from_probabilities

        fields = request.fields
        task: Task = fields["task"]
        frame, split, y = unpack(request, "rows/"), request.arrays["split"], request.arrays["y"]
        weights = request.arrays.get("weights")
        folds = request.arrays.get("folds")
        self.seed = fields["seed"]
        self.teacher_cut = cut_of(fields.get("class_threshold"))
        started = time.monotonic()
        logits_source = "probabilities"

        def to_logits(outputs: FloatArray) -> FloatArray:
            return logits_from_probabilities(outputs, task=task)

        if "teacher" in request.blobs:
            self.teacher_artifact = request.blobs["teacher"]
            signature = derive.costed(
                self.teacher_artifact, Signature.from_json(fields["input_schema"], fields["output_schema"])
            )
            teacher = TeacherModel(
                self.teacher_artifact, signature, frame.take(np.arange(min(len(frame), PROBE_ROWS)))
            )
            logits_source = teacher.logits_source
            few = 1 if teacher.is_text else PROBE_ROWS
            self.label = in_parallel(teacher.logits, fields["threads"], few)
        elif fields["can_label"]:

            def ask(rows: Frame) -> FloatArray:
                question = Message("label", {}, {}, {})
                pack(rows, question.fields, question.arrays, "rows/")
                answer = channel.ask(question)
                if "fault" in answer.fields:
                    raise InvalidData(f"the teacher cannot label made-up texts: {answer.fields['fault']}")
                return to_logits(answer.arrays["outputs"])

            self.label = ask

        silent = np.zeros(len(frame), bool)
        if "outputs" in request.arrays:
            logits, kept = to_logits(request.arrays["outputs"]), split != LEFT_OUT
            # Rows that a log has no answer for have a label, which alone teaches them.
            silent = np.isnan(request.arrays["outputs"]).all(axis=1) & (split == FIT)
        else:
            assert self.label is not None
            logits, kept = label_splits(
                self.label,
                frame,
                split,
                fields["time_budget_s"],
                len(fields["classes"]) or 1,
                channel,
            )
        bad = kept & ~silent & ~np.isfinite(logits).all(axis=1)
        if bad.any():
            raise InvalidData(
                f"the teacher gives NaN or infinity for {bad.sum()} rows",
                detail=f"The first of them has {frame.show_row(int(np.argmax(bad)))}.",
            )
        if folds is not None:
            folds = np.where(silent, 0, folds).astype(np.uint8)  # the teacher has not answered them
        if weights is not None and (fitted := weights[(split == FIT) & kept]).any():
            weights = weights / fitted.mean()  # the weight of augmented rows is 1

        def part(number: int) -> transfer_set.TransferSet:
            rows = (split == number) & kept
            source = transfer_set.UNLABELLED if number == UNLABELLED else transfer_set.REAL
            return transfer_set.TransferSet(
                frame.take(rows),
                logits[rows],
                y[rows],
                None if weights is None else weights[rows],
                np.full(int(rows.sum()), source, np.uint8),
                None if folds is None else folds[rows],
            )

        unlabelled = part(UNLABELLED)
        self.problem = Problem(
            task=task,
            classes=tuple(fields["classes"]),
            metric=fields["metric"],
            fit=part(FIT),
            select=part(SELECT),
            unlabelled=unlabelled if len(unlabelled) else None,
            teacher=self.teacher_artifact,
        )
        self.examination = Examination(self.problem, part(TEST), seed=self.seed, teacher_cut=self.teacher_cut)
        counts = {name: int(((split == number) & kept).sum()) for number, name in enumerate(SPLIT_NAMES)}
        return Message(
            "loaded",
            dict(
                Loaded(
                    logits_source=logits_source,
                    seconds=time.monotonic() - started,
                    rows=counts,
                    rows_left_out=int((~kept & (split != LEFT_OUT)).sum()),
                )
            ),
            {},
            {},
        )

    def survey(self, request: Message, channel: Channel) -> Message:
        from pg_distill.measure import decisions, metrics
        from pg_distill.measure.confidence import bootstrap_interval
        from pg_distill.measure.decisions import falls

        judge, outputs = self._judge_of_select()
        problem, select = self.problem, self.problem.select
        assert select.y is not None and problem.fit.y is not None
        found = judge.figures(outputs, self.teacher_cut)
        # What its probabilities would be worth to who cuts them as its students' are cut; predict_class does not.
        self.teacher_threshold = self._cut(judge, outputs)
        reply: Surveyed = {
            "teacher": found["score"],
            "low": found["score_low"],
            "high": found["score_high"],
            "majority": judge.baseline(),
            "floor_high": None,
            "shares": None,
            "order": None,
            "falls": False,
        }
        regression = problem.task == "regression"
        known = has_label(select.y, problem.task)
        y, p = select.y[known], outputs[known]
        metric = request.fields["floor"]
        if metric == problem.metric or metric == metrics.AGREEMENT:
            reply["floor_high"] = found["score_high"]
        elif metric is not None and len(y):
            weights = None if select.weights is None else select.weights[known]
            interval = bootstrap_interval(
                metric, y, metrics.judged(metric, p, self.teacher_cut), weights, seed=self.seed
            )
            reply["floor_high"] = finite(interval.high)
        if len(y) and regression:
            reply["falls"] = falls(y, p)
        elif len(y) and problem.task != "multilabel":
            reply["order"] = decisions.class_order(y, p)
            labels = np.concatenate([problem.fit.y, select.y])
            counts = np.bincount(labels[labels >= 0].astype(np.int64), minlength=len(problem.classes))
            reply["shares"] = (counts / max(counts.sum(), 1)).tolist()
        return Message("surveyed", dict(reply), {}, {})

    def probe(self, request: Message, channel: Channel) -> Message:
        from pg_distill.onnx_model import check as onnx_graph
        from pg_distill.onnx_model import derive
        from pg_distill.search.training import latency_ms
        from pg_distill.students.families import Setup, Shape, load_family

        problem = self.problem
        n_classes = len(problem.classes) or 1
        few = problem.fit.take(np.arange(min(len(problem.fit), PROTOTYPE_ROWS)))
        family = load_family("linear")
        size = family.sizes(Shape(problem.task, n_classes, few.frame.features, len(few)))[0]
        student = family(Setup(problem.task, n_classes, epochs=1, seed=0), **size)
        artifact = student.prototype(few)
        if artifact is None:
            artifact = student.fit(few, few, deadline=None).to_onnx()
        model, readers = onnx_graph.check_file(artifact)
        signature = derive.derive_signature(
            model,
            features=few.frame.features,
            task=problem.task,
            classes=problem.classes or None,
            readers=readers,
        )
        fields = {
            **write_signature(signature),
            "latency_ms": latency_ms(artifact, few.frame),
        }
        return Message("probed", fields, {}, {"artifact": artifact})

    def search(self, request: Message, channel: Channel) -> Message:
        from pg_distill.search.problem import SELECT_FOLD, Config
        from pg_distill.search.stages import search

        fields = dict(request.fields)
        fields["families"] = tuple(fields["families"])
        address = fields.pop("executor", LOCAL)
        with contextlib.ExitStack() as stack:
            executor = None
            if address != LOCAL:
                from pg_distill.child.cluster import DaskExecutor

                executor = stack.enter_context(DaskExecutor(address))
                fields["threads"] = executor.slots
            told: dict[str, Any] = {}

            def report(progress: dict[str, Any]) -> None:
                told.update(progress)
                channel.send(Message("progress", dict(progress), {}, {}))

            candidates = search(self.problem, Config(**fields), self.label, executor=executor, report=report)
        folds = self.folds = max((c.folds for c in candidates), key=len, default=(SELECT_FOLD,))
        judge, teacher = self._judge_of_select()
        rows: list[dict[str, Any]] = []
        blobs: dict[str, bytes] = {}
        for c in candidates:
            self.candidates[c.number] = c
            self.class_thresholds[c.number] = c.class_threshold
            signature, classes = None, None
            if c.artifact:
                signature = self._signature_of(c.artifact)
                self.signatures[c.number] = signature
                blobs[str(c.number)] = c.artifact
                if c.select_logits is not None:
                    outputs = probabilities_of(c.select_logits, self.problem.task)
                    classes = distinct_classes(outputs, self.problem.task, c.class_threshold)
            trial = Trial(
                number=c.number,
                family=c.family,
                configuration=c.configuration,
                artifact=None,  # it goes beside, as bytes
                signature=signature,
                select_accuracy=finite(c.metric_select),
                trainer_latency_ms=finite(c.latency_ms),
                reason=c.reason,
                is_control=c.is_control,
                on_frontier=c.on_frontier,
                size_bytes=c.size_bytes,
                seconds=c.seconds,
                expression=c.expression,
                tie_break_select=finite(c.tie_break_select),
                jackknife_select=[finite(value) for value in c.jackknife_select],
                select_classes=classes,
                # Of several labels the file has them.
                class_threshold=None if isinstance(c.class_threshold, tuple) else c.class_threshold,
            )
            rows.append(trial.to_reply())
        fields = {
            "candidates": rows,
            "teacher_select": judge.value(teacher),
            "teacher_classes": distinct_classes(teacher, self.problem.task),
            "chosen_by": dict(
                ChosenBy(
                    folds=len(folds),
                    rows=len(teacher),
                    candidates=sum(bool(c.artifact) and c.folds == folds for c in candidates),
                )
            ),
            "ended": told["ended"],
        }
        return Message("searched", fields, {}, blobs)

    def _judge_of_select(self) -> tuple[Judge, FloatArray]:
        """Return what scores outputs on the rows that choose, and the teacher's."""
        from pg_distill.measure.judge import Judge

        select, problem = self.problem.judging(self.folds), self.problem
        assert select.y is not None and select.teacher_logits is not None
        outputs = probabilities_of(select.teacher_logits, problem.task)
        judge = Judge(
            problem.metric,
            problem.task,
            select.y,
            outputs,
            select.weights,
            seed=self.seed,
            baseline_y=problem.fit.y,
            baseline_weights=problem.fit.weights,
        )
        return judge, outputs

    def _cut(self, judge: Judge, outputs: FloatArray) -> Cut:
        """Return from which probability a class is named for the best value of the run's metric, where that decides."""
        return judge.threshold(outputs) if self.problem.task in ("binary", "multilabel") else None

    def cascade(self, request: Message, channel: Channel) -> Message:
        judge, teacher = self._judge_of_select()

        def student(number: int) -> FloatArray:
            # Of the file before its refit, which has learned the select rows: its confidence in them says nothing.
            logits = self.candidates[number].select_logits
            assert logits is not None
            return probabilities_of(logits, self.problem.task)

        found: list[dict[str, Any]] = []
        for number, most in request.fields["shares"]:
            own = student(number)
            if len(own) < len(teacher):
                continue  # others are judged by more rows
            confidence = own.max(axis=1)
            for share in sorted({*(s for s in CASCADE_SHARES if s < most), most}):
                threshold = float(np.quantile(confidence, share))
                asked = ~(confidence >= threshold)  # NaN too
                if asked.any() and not asked.all():
                    score = judge.value(np.where(asked[:, None], teacher, own))
                    if score is not None:
                        found.append(
                            {
                                "student": number,
                                "threshold": threshold,
                                "share": float(asked.mean()),
                                "select_accuracy": score,
                            }
                        )
        # Of equals the one that asks least; a student once.
        found.sort(key=lambda f: (-f["select_accuracy"], f["share"]))
        best = list({f["student"]: f for f in reversed(found)}.values())[::-1]
        best.sort(key=lambda f: (-f["select_accuracy"], f["share"]))
        best = best[: request.fields["most"]]
        for i, f in enumerate(best):
            number = request.fields["first"] + i
            self.cascades[number] = f["student"], f["threshold"]
            own = student(f["student"])
            outputs = np.where(own.max(axis=1, keepdims=True) < f["threshold"], teacher, own)
            cut = self._cut(judge, outputs)
            self.class_thresholds[number] = cut
            f |= {
                "class_threshold": cut,
                "select_accuracy": judge.value(outputs, cut),
                "tie_break_select": judge.tie_break(outputs),
                "jackknife_select": judge.jackknife(outputs, cut),
                "select_classes": distinct_classes(outputs, self.problem.task, cut),
            }
        return Message("cascaded", {"cascades": best}, {}, {})

    def evaluate(self, request: Message, channel: Channel) -> Message:
        from pg_distill.onnx_model.session import Model

        for number in request.fields["numbers"]:
            student, threshold = self.cascades.get(number, (number, None))
            model = Model(self.candidates[student].artifact, self.signatures[student])
            own = model.run_frame(self.examination.rows.frame)
            self.examination.add(number, own, threshold, self.class_thresholds.get(number))
        return Message("evaluated", dict(self.examination.evaluate(request, self.teacher_threshold)), {}, {})

    def relearn(self, request: Message, channel: Channel) -> Message:
        """Train a judged candidate on the test rows too; its file is refused where it is slower or broken."""
        from pg_distill.errors import PgDistillError
        from pg_distill.onnx_model.session import Model
        from pg_distill.search.training import latency_ms

        number = self.cascades.get(request.fields["number"], (request.fields["number"], None))[0]
        twin = self.candidates[number]
        if twin.relearn is None:
            return Message("relearned", {"reason": "it cannot be trained again"}, {}, {})
        try:
            artifact, expression = twin.relearn(self.examination.rows)
            signature = self._signature_of(artifact)
            rows = self.examination.rows.frame
            own = Model(artifact, signature).run_frame(rows)
            before = Model(twin.artifact, self.signatures[number]).run_frame(rows)
        except (PgDistillError, MemoryError) as error:
            said = error.message if isinstance(error, PgDistillError) else "out of memory"
            return Message("relearned", {"reason": said}, {}, {})
        frame, metric = self.problem.select.frame, self.problem.metric
        if self.examination.is_worse(own, before, RELEARN_WORSE):
            reason = f"it answers the rows that it has learned from worse than its twin, by {metric}"
            return Message("relearned", {"reason": reason}, {}, {})
        # By turns, and once more while it seems slower: on a busy machine one timing says little.
        least = [float("inf"), float("inf")]
        for _ in range(RELEARN_TIMINGS):
            times = (latency_ms(file, frame) for file in (artifact, twin.artifact))
            least = [min(pair) for pair in zip(least, times, strict=True)]
            if (slower := least[0] / least[1]) <= RELEARN_SLOWER:
                break
        else:
            return Message("relearned", {"reason": f"it is {slower:.2f} times as slow as its twin"}, {}, {})
        fields = {"reason": None, "expression": expression, **write_signature(signature)}
        return Message("relearned", fields, {}, {"artifact": artifact})

    def _signature_of(self, artifact: bytes) -> Signature:
        """Return what a file of ours takes and gives: it passes the same check as anybody's."""
        from pg_distill.onnx_model import check as onnx_graph
        from pg_distill.onnx_model import derive

        model, readers = onnx_graph.check_file(artifact)
        return derive.derive_signature(
            model,
            features=self.problem.fit.frame.features,
            task=self.problem.task,
            classes=self.problem.classes or None,
            readers=readers,
        )

    def compare(self, request: Message, channel: Channel) -> Message:
        fields = request.fields
        return Message(
            "compared", dict(self.examination.compare(fields["control"], fields["student"])), {}, {}
        )


if __name__ == "__main__":
    workshop = Workshop()
    child_main(
        {
            "look": inspection.look,
            "inspect": inspection.inspect,
            "check": inspection.check,
            "load": workshop.load,
            "survey": workshop.survey,
            "probe": workshop.probe,
            "search": workshop.search,
            "cascade": workshop.cascade,
            "evaluate": workshop.evaluate,
            "compare": workshop.compare,
            "relearn": workshop.relearn,
        }
    )
