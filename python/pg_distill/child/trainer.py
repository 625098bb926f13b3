"""The child process that opens untrusted models, labels, augments, trains and measures; and the backend's side of it.

One child serves one registration or one distillation. It keeps the rows between requests, so they cross the
pipe once:

    look       import all that training needs, and say what is missing
    inspect    check an ONNX file, derive its signature, run it on rows
    check      check and open ONNX files whose signatures are known
    load       rows, splits and the teacher; the teacher labels the real rows
    survey     what the teacher is worth on the select rows, before anything is trained
    search     train candidates; return those on the frontier with their files
    evaluate   score candidates and the family on the test rows, which nothing before has looked at
    compare    the choice with its teacher and a control, in every metric

``python -m pg_distill.child.trainer`` is the child.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from pg_distill.child.process import Channel, ChildProcess, Limits, child_main
from pg_distill.child.wire import Message
from pg_distill.errors import InvalidData, InvalidParameter, TrainerDied
from pg_distill.frame import Column, Feature, FloatArray, Frame, ModelForm, Strings, Task
from pg_distill.onnx_model.session import RUN_BYTES
from pg_distill.onnx_model.signature import Cost, Signature

if TYPE_CHECKING:
    from pg_distill.measure.judge import Judge
    from pg_distill.onnx_model.limits import Limits as FileLimits
    from pg_distill.probe import Finding
    from pg_distill.search.problem import Candidate, Problem

__all__ = ["Inspection", "Trainer", "Trial", "label_within"]

LABEL_SHARE = 0.25  # of the time budget, for labelling real rows by the teacher
FLOOR_ROWS = 20  # of each split: with fewer labelled nothing can be said
FLOOR_SHARE = 0.5  # of the time budget, that labelling those may take
PROTOTYPE_ROWS = 2000  # rows that preprocessing of an untrained student is fitted to
PROBE_SECONDS = 0.5  # of labelling that says how long the rest will take
BATCH_SECONDS = 2.0  # until the clock is looked at again
BATCH_ROWS, BATCH_GROWTH = 1024, 4  # at most and from one to the next: fewer rows in a batch cost more each
PROBE_ROWS = 64  # that the logits of a graph are found on, and that are worth a thread
SIGNIFICANT_SECONDS = 2.0  # labelling that takes longer is announced
LOCAL = "local"  # as the executor of a search: threads of the training process
OVERRUN, SEARCH_GRACE_SECONDS = 1.5, 60.0  # a search that is this far past its budget is a hang
EVALUATION_SECONDS = (
    600.0  # scoring that takes longer than this, of 200,000 rows on a busy machine too, is a hang
)
LOOK_SECONDS = 60.0  # importing all that training needs takes 2 s, and 10 on a busy machine
INSPECT_SECONDS = 120.0  # checking and loading a model that takes longer than this is refused
CASCADE_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)  # of the rows, that the teacher is asked for
RESAMPLES = 1000  # bootstrap


@dataclass(frozen=True)
class Inspection:
    """What a child found of an ONNX file: its signature, and its predictions on the rows, (n, K) or (n, 1)."""

    signature: Signature
    outputs: FloatArray
    logits_source: str


@dataclass(frozen=True)
class Trial:
    """A candidate as the backend gets it: ``fields`` are columns of ``distill.candidates``."""

    number: int
    fields: Mapping[str, Any]
    artifact: bytes | None
    signature: Signature | None
    twin: int | None = None
    """The candidate that this one is, as a SQL expression: it predicts the same by another way."""

    @property
    def form(self) -> ModelForm:
        """How it answers, which is what its latency is of."""
        if self.fields.get("threshold") is not None:
            return "cascade"
        return "predict" if self.twin is None else "sql"

    @property
    def scored_as(self) -> int:
        """The number of the candidate whose accuracy it has."""
        return self.number if self.twin is None else self.twin

    @property
    def is_scorable_control(self) -> bool:
        """Whether it learned from labels alone and can be compared with."""
        return bool(self.fields["is_control"]) and self.artifact is not None


# -- frames on the wire ---------------------------------------------------------------------------------------------


def _pack(frame: Frame, fields: dict[str, Any], arrays: dict[str, npt.NDArray[Any]], prefix: str) -> None:
    fields[f"{prefix}features"] = [[f.name, f.kind] for f in frame.features]
    for position, feature in enumerate(frame.features):
        column = frame.columns[feature.name]
        if isinstance(column, Strings):
            column = column.compact()
            arrays[f"{prefix}{position}"] = column.codes
            # As bytes: a header of JSON is no place for 100 MB of texts.
            words = [category.encode("utf-8", "surrogatepass") for category in column.categories]
            arrays[f"{prefix}{position}/text"] = np.frombuffer(b"".join(words), np.uint8)
            arrays[f"{prefix}{position}/sizes"] = np.array([len(word) for word in words], np.int64)
        else:
            arrays[f"{prefix}{position}"] = column


def _unpack(message: Message, prefix: str) -> Frame:
    features = tuple(Feature(name, kind) for name, kind in message.fields[f"{prefix}features"])
    columns: dict[str, Column] = {}
    for position, feature in enumerate(features):
        array = message.arrays[f"{prefix}{position}"]
        if feature.kind != "string":
            columns[feature.name] = array
            continue
        text = message.arrays[f"{prefix}{position}/text"].tobytes()
        ends = np.cumsum(message.arrays[f"{prefix}{position}/sizes"]).tolist()
        words = [
            text[start:end].decode("utf-8", "surrogatepass")
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        columns[feature.name] = Strings(array.astype(np.int32, copy=False), tuple(words))
    return Frame(features, columns)


_SIGNATURE = ("input_schema", "output_schema", "cost")


def _write_signature(signature: Signature) -> dict[str, Any]:
    input_schema, output_schema = signature.to_json()
    cost = None if signature.cost is None else asdict(signature.cost)
    return {"input_schema": input_schema, "output_schema": output_schema, "cost": cost}


def _read_signature(fields: Mapping[str, Any]) -> Signature:
    signature = Signature.from_json(fields["input_schema"], fields["output_schema"])
    return replace(signature, cost=None if fields["cost"] is None else Cost.from_json(fields["cost"]))


# -- the backend's side ---------------------------------------------------------------------------------------------


class Trainer:
    """The backend's handle on its child.

    Parameters
    ----------
    limits
        Memory, threads and niceness of the child.
    check_interrupts
        Called at least every 100 ms while the child works; what it raises ends the child.
    report
        Called with the child's progress: ``stage``, ``done`` (0..1) and what else there is to say.
    label
        Labels rows for a child that holds no teacher of its own: a frame to (n, K) probabilities or values.
    """

    def __init__(
        self,
        limits: Limits,
        check_interrupts: Callable[[], None],
        report: Callable[[Mapping[str, Any]], None] = lambda progress: None,
        label: Callable[[Frame], FloatArray] | None = None,
    ) -> None:
        self._child = ChildProcess("pg_distill.child.trainer", limits)
        self._check_interrupts = check_interrupts
        self._report = report
        self._label = label

    def __enter__(self) -> Self:
        self._child.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.__exit__(kind, error, trace)

    def _answer(self, message: Message) -> Message | None:
        if message.kind == "label" and self._label is not None:
            return Message("labels", {}, {"outputs": self._label(_unpack(message, "rows/"))}, {})
        if message.kind == "progress":
            self._report(message.fields)
            return None
        raise TrainerDied(f'training process sent a message "{message.kind}" that was not expected')

    def _call(self, request: Message, seconds: float | None = None) -> Message:
        deadline = None if seconds is None else time.monotonic() + seconds
        return self._child.call(
            request, on_message=self._answer, check_interrupts=self._check_interrupts, deadline=deadline
        )

    def look(self) -> tuple[str, list[Finding]]:
        """Let the child import all that training needs; return what it says of itself, and a finding for each dependency."""
        fields = self._call(Message("look", {}, {}, {}), LOOK_SECONDS).fields
        return fields["own"], [(check, fault, found) for check, fault, found in fields["found"]]

    def inspect(
        self,
        artifact: bytes,
        *,
        names: Sequence[str] | None,
        features: Sequence[Feature] | None,
        rows: Frame | None,
        task: Task | None,
        classes: Sequence[str] | None,
        max_bytes: int,
        run_bytes: int = RUN_BYTES,
        class_threshold: float | None = None,
    ) -> Inspection:
        """Have the child approve an ONNX file, whose signature it finds out, and run it on ``rows``.

        ``features`` are the columns of ``rows``; where there are none, ``names`` may name what the graph does not. The file
        may have ``max_bytes``, and a run of it for one row take ``run_bytes``: the settings artifact_limit_mb and
        predict_memory_mb. ``class_threshold`` is the probability from which it names the last of two classes.
        """
        fields: dict[str, Any] = {
            "names": None if names is None else list(names),
            "features": None if features is None else [[f.name, f.kind] for f in features],
            "task": task,
            "classes": None if classes is None else list(classes),
            "max_bytes": max_bytes,
            "run_bytes": run_bytes,
            "class_threshold": class_threshold,
        }
        arrays: dict[str, npt.NDArray[Any]] = {}
        if rows is not None:
            _pack(rows, fields, arrays, "rows/")
        reply = self._call(Message("inspect", fields, arrays, {"artifact": artifact}), INSPECT_SECONDS)
        return Inspection(
            _read_signature(reply.fields), reply.arrays["outputs"], reply.fields["logits_source"]
        )

    def check(
        self, models: Sequence[tuple[bytes, Signature]], max_bytes: int, run_bytes: int = RUN_BYTES
    ) -> list[Signature]:
        """Have the child approve ONNX files whose signatures are stored, as it approves one that `inspect` is given.

        Returns
        -------
        The signatures, with what runs of the files cost.

        Raises
        ------
        ArtifactCorrupted
            A signature is another file's.
        """
        blobs = {str(position): artifact for position, (artifact, _) in enumerate(models)}
        fields = {
            "max_bytes": max_bytes,
            "run_bytes": run_bytes,
            "schemas": [signature.to_json() for _, signature in models],
        }
        reply = self._call(Message("check", fields, {}, blobs), INSPECT_SECONDS)
        return [_read_signature(found) for found in reply.fields["signatures"]]

    def load(
        self,
        *,
        task: Task,
        classes: Sequence[str],
        metric: str,
        seed: int,
        time_budget_s: float,
        threads: int,
        frame: Frame,
        split: npt.NDArray[np.uint8],
        y: npt.NDArray[Any],
        weights: FloatArray | None,
        teacher: tuple[bytes, Signature] | None,
        outputs: FloatArray | None,
        class_threshold: float | None = None,
    ) -> Mapping[str, Any]:
        """Send the rows and label them.

        ``teacher`` is an ONNX file that labels in the child; ``outputs`` are the labels where it is not one. ``class_threshold``
        is the teacher's own.
        Returns what there is to say of the labelling.
        """
        fields: dict[str, Any] = {
            "task": task,
            "classes": list(classes),
            "metric": metric,
            "seed": seed,
            "time_budget_s": time_budget_s,
            "threads": threads,
            "can_label": self._label is not None,
            "class_threshold": class_threshold,
        }
        arrays: dict[str, npt.NDArray[Any]] = {"split": split, "y": y}
        blobs: dict[str, bytes] = {}
        _pack(frame, fields, arrays, "rows/")
        if weights is not None:
            arrays["weights"] = weights
        if teacher is not None:
            blobs["teacher"] = teacher[0]
            fields["input_schema"], fields["output_schema"] = teacher[1].to_json()
        if outputs is not None:
            arrays["outputs"] = outputs
        return self._call(
            Message("load", fields, arrays, blobs), time_budget_s * OVERRUN + SEARCH_GRACE_SECONDS
        ).fields

    def search(self, configuration: Mapping[str, Any]) -> tuple[list[Trial], float | None, int | None]:
        """Train candidates by ``search.Config(**configuration)``.

        Returns
        -------
        The candidates; on the select rows the teacher's metric, and how many classes it names.
        """
        seconds = configuration["time_budget_s"] * OVERRUN + SEARCH_GRACE_SECONDS
        reply = self._call(Message("search", dict(configuration), {}, {}), seconds)
        trials = [
            Trial(
                fields["candidate"],
                {key: value for key, value in fields.items() if key not in _SIGNATURE},
                reply.blobs.get(str(fields["candidate"])),
                _read_signature(fields) if "input_schema" in fields else None,
            )
            for fields in reply.fields["candidates"]
        ]
        return trials, reply.fields["teacher_select"], reply.fields["teacher_classes"]

    def survey(self, floor: tuple[str, float] | None) -> Mapping[str, Any]:
        """Say what the teacher is worth on the select rows, before anything is trained.

        Parameters
        ----------
        floor
            A metric and what is asked of it, where something is.

        Returns
        -------
        ``teacher`` and ``majority``: the run's metric of the teacher, and of always answering with the class shares, or the
        mean, of the rows to fit on; ``low``, ``high`` the interval of the first. ``floor_high``: the upper end of that of the
        floor's metric. ``shares``: of each class among the labels of fit and select; ``order``, ``falls``: see
        ``measure.class_order`` and ``measure.falls``. None where there is nothing to say.
        """
        fields = {"floor": floor[0] if floor is not None else None}
        return self._call(Message("survey", fields, {}, {}), EVALUATION_SECONDS).fields

    def probe(self) -> tuple[bytes, Signature, float]:
        """Return an untrained small student for the loaded rows, and its latency in the child in milliseconds."""
        reply = self._call(Message("probe", {}, {}, {}))
        return reply.blobs["artifact"], _read_signature(reply.fields), reply.fields["latency_ms"]

    def cascade(self, shares: Mapping[int, float], first: int, most: int) -> list[Mapping[str, Any]]:
        """Find thresholds below which students ask the teacher, on the select rows.

        Parameters
        ----------
        shares
            By candidate, the largest share of the rows for which the teacher may be asked.
        first
            The number of the first cascade; `evaluate` knows them by these.
        most
            How many to return, the most accurate first.

        Returns
        -------
        For each its ``student``, ``threshold``, ``share``, and what ``search`` says of the select rows.
        """
        request = {"shares": [[n, share] for n, share in shares.items()], "first": first, "most": most}
        reply = self._call(Message("cascade", request, {}, {}), EVALUATION_SECONDS)
        found: list[Mapping[str, Any]] = reply.fields["cascades"]
        return found

    def evaluate(
        self,
        trials: Sequence[Trial],
        members: Mapping[str, tuple[bytes, Signature]],
        thresholds: Mapping[str, float],
        class_thresholds: Mapping[str, float],
        outside: Mapping[str, npt.NDArray[np.bool_]] | None = None,
    ) -> Mapping[str, Any]:
        """Score candidates, the teacher and the family on the test rows.

        Parameters
        ----------
        thresholds, class_thresholds
            By member of the family: of a cascade, and of the probability from which the last of two classes is named.
        outside
            By member which of the test rows (n,) may judge it, where not all of them may.

        Returns
        -------
        ``{"teacher": figures, "majority": score, "candidates": {number: figures}, "members": {key: figures}}``. Figures have
        ``rows``, how many they are of. Where only some rows may judge a member they are of these, and ``against`` has what the
        others reach there, in the same form: ``score``, and ``difference_error``, the standard error of the difference to it;
        None of a member that not all of these rows may judge.
        """
        fields: dict[str, Any] = {
            "numbers": sorted({t.scored_as for t in trials}),
            "members": {key: signature.to_json() for key, (_, signature) in members.items()},
            "thresholds": dict(thresholds),
            "class_thresholds": dict(class_thresholds),
        }
        blobs = {key: artifact for key, (artifact, _) in members.items()}
        arrays = {f"outside/{key}": rows for key, rows in (outside or {}).items() if not rows.all()}
        return self._call(Message("evaluate", fields, arrays, blobs), EVALUATION_SECONDS).fields

    def compare(self, chosen: Trial, control: Trial | None) -> Mapping[str, Any]:
        """Compare the teacher, one control and the choice, all of them scored, in every metric.

        Returns
        -------
        What ``Judge.compare`` says of ``teacher``, ``control`` and ``student``.
        """
        fields = {
            "student": chosen.scored_as,
            "control": control.scored_as if control is not None else None,
        }
        return self._call(Message("compare", fields, {}, {}), EVALUATION_SECONDS).fields


# -- the child's side -----------------------------------------------------------------------------------------------


class _Workshop:
    """What the child knows between requests."""

    def __init__(self) -> None:
        self.problem: Problem
        self.test: Frame
        self.test_y: npt.NDArray[Any]
        self.test_weights: FloatArray | None
        self.test_teacher: FloatArray
        self.label: Callable[[Frame], FloatArray] | None = None
        self.teacher_artifact: bytes | None = None
        self.candidates: dict[int, Candidate] = {}
        self.signatures: dict[int, Signature] = {}
        self.cascades: dict[int, tuple[int, float]] = {}
        self.class_thresholds: dict[int, float | None] = {}
        self.judge: Judge
        self.tested: dict[int, FloatArray] = {}
        self.seed = 0
        self.teacher_cut: float | None = None
        self.teacher_threshold: float | None = None

    def look(self, request: Message, channel: Channel) -> Message:
        from pg_distill import probe

        own = "Python {}.{} as user {}".format(*sys.version_info[:2], probe.whoami())
        found = [probe.look_for_dependency(requirement) for requirement in probe.REQUIREMENTS]
        return Message("looked", {"own": own, "found": found})

    def inspect(self, request: Message, channel: Channel) -> Message:
        from pg_distill.onnx_model import approve
        from pg_distill.onnx_model.teacher import TeacherModel

        fields = request.fields
        artifact = request.blobs["artifact"]
        rows = _unpack(request, "rows/") if "rows/features" in fields else None
        approval = approve.approve(
            artifact,
            features=None if fields["features"] is None else [Feature(n, k) for n, k in fields["features"]],
            names=fields["names"],
            task=fields["task"],
            classes=fields["classes"],
            rows=rows,
            limits=_limits(fields),
            class_threshold=fields.get("class_threshold"),
        )
        teacher = TeacherModel(artifact, approval.signature, rows)
        return Message(
            "inspected",
            {**_write_signature(approval.signature), "logits_source": teacher.logits_source},
            {"outputs": approval.outputs},
            {},
        )

    def check(self, request: Message, channel: Channel) -> Message:
        from pg_distill.onnx_model import approve

        limits = _limits(request.fields)
        found = [
            approve.approve(artifact, Signature.from_json(*schemas), limits=limits).signature
            for artifact, schemas in zip(request.blobs.values(), request.fields["schemas"], strict=True)
        ]
        return Message("checked", {"signatures": list(map(_write_signature, found))}, {}, {})

    def load(self, request: Message, channel: Channel) -> Message:
        from pg_distill.onnx_model import derive
        from pg_distill.onnx_model.teacher import TeacherModel
        from pg_distill.rows import sample
        from pg_distill.search.problem import Problem
        from pg_distill.students import transfer_set
        from pg_distill.students.soft_labels import logits_from_probabilities

        fields = request.fields
        task: Task = fields["task"]
        frame, split, y = _unpack(request, "rows/"), request.arrays["split"], request.arrays["y"]
        weights = request.arrays.get("weights")
        self.seed = fields["seed"]
        self.teacher_cut = fields.get("class_threshold")
        started = time.monotonic()
        logits_source = "probabilities"

        def to_logits(outputs: FloatArray) -> FloatArray:
            return outputs if task == "regression" else logits_from_probabilities(outputs)

        if "teacher" in request.blobs:
            self.teacher_artifact = request.blobs["teacher"]
            signature = derive.costed(
                self.teacher_artifact, Signature.from_json(fields["input_schema"], fields["output_schema"])
            )
            teacher = TeacherModel(
                self.teacher_artifact, signature, frame.take(np.arange(min(len(frame), PROBE_ROWS)))
            )
            logits_source = teacher.logits_source
            self.label = _in_parallel(teacher.logits, fields["threads"])
        elif fields["can_label"]:

            def ask(rows: Frame) -> FloatArray:
                question = Message("label", {}, {}, {})
                _pack(rows, question.fields, question.arrays, "rows/")
                answer = channel.ask(question)
                return to_logits(answer.arrays["outputs"])

            self.label = ask

        if "outputs" in request.arrays:
            logits, kept = to_logits(request.arrays["outputs"]), split != sample.LEFT_OUT
        else:
            assert self.label is not None
            logits, kept = self._label_within(
                self.label,
                frame,
                split,
                fields["time_budget_s"],
                len(fields["classes"]) or 1,
                channel,
            )
        bad = kept & ~np.isfinite(logits).all(axis=1)
        if bad.any():
            raise InvalidData(
                f"the teacher gives NaN or infinity for {bad.sum()} rows",
                detail=f"The first of them has {frame.show_row(int(np.argmax(bad)))}.",
            )
        if weights is not None and (fitted := weights[(split == sample.FIT) & kept]).any():
            weights = weights / fitted.mean()  # the weight of augmented rows is 1

        def part(number: int) -> transfer_set.TransferSet:
            rows = (split == number) & kept
            source = transfer_set.UNLABELLED if number == sample.UNLABELLED else transfer_set.REAL
            return transfer_set.TransferSet(
                frame.take(rows),
                logits[rows],
                y[rows],
                None if weights is None else weights[rows],
                np.full(int(rows.sum()), source, np.uint8),
            )

        unlabelled = part(sample.UNLABELLED)
        self.problem = Problem(
            task=task,
            classes=tuple(fields["classes"]),
            metric=fields["metric"],
            fit=part(sample.FIT),
            select=part(sample.SELECT),
            unlabelled=unlabelled if len(unlabelled) else None,
            teacher=self.teacher_artifact,
        )
        test = part(sample.TEST)
        assert test.y is not None and test.teacher_logits is not None
        self.test, self.test_y, self.test_weights = test.frame, test.y, test.weights
        self.test_teacher = _probabilities(test.teacher_logits, task)
        counts = {
            name: int(((split == number) & kept).sum()) for number, name in enumerate(sample.SPLIT_NAMES)
        }
        return Message(
            "loaded",
            {
                "logits_source": logits_source,
                "seconds": time.monotonic() - started,
                "rows": counts,
                "rows_left_out": int((~kept & (split != sample.LEFT_OUT)).sum()),
            },
            {},
            {},
        )

    def _label_within(
        self,
        label: Callable[[Frame], FloatArray],
        frame: Frame,
        split: npt.NDArray[np.uint8],
        budget: float,
        width: int,
        channel: Channel,
    ) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """Label as many rows as the time allows, an even part of every split, and say so beforehand."""
        from pg_distill.rows import sample

        # Rows come in the order of their hash, so that the first ones of a split are as good a part of it as any. The few
        # without which nothing can be said come first, then all splits in step: wherever it ends, each has kept its share.
        used = split != sample.LEFT_OUT
        place = np.full(len(frame), np.inf)
        floor = 0
        for number in np.unique(split[used]):
            rows = np.flatnonzero(split == number)
            place[rows] = np.arange(1, len(rows) + 1) / len(rows)
            if number != sample.UNLABELLED:
                place[rows[:FLOOR_ROWS]] -= 1
                floor += min(len(rows), FLOOR_ROWS)
        order = np.argsort(place, kind="stable")[: np.count_nonzero(used)]

        def tell(done: int, a_row: float, expected: int, *, estimate: bool) -> None:
            fields: dict[str, Any] = {"stage": "label", "done": done / len(order)}
            left = a_row * (expected - done)
            if estimate and left > SIGNIFICANT_SECONDS:
                fields |= {
                    "estimated_seconds": left,
                    "rows": expected,
                    "rows_left_out": len(order) - expected,
                }
            channel.send(Message("progress", fields, {}, {}))

        most = max(budget * FLOOR_SHARE, SIGNIFICANT_SECONDS)
        found = label_within(
            label, frame.take(order), budget * LABEL_SHARE, at_least=floor, at_most_seconds=most, tell=tell
        )
        logits, kept = np.zeros((len(frame), width)), np.zeros(len(frame), bool)
        logits[order[: len(found)]] = found
        kept[order[: len(found)]] = True
        return logits, kept

    def survey(self, request: Message, channel: Channel) -> Message:

        from pg_distill.measure import decisions, metrics
        from pg_distill.measure.confidence import bootstrap_interval
        from pg_distill.measure.decisions import falls

        judge, outputs = self._judge_of_select()
        problem, select = self.problem, self.problem.select
        assert select.y is not None and problem.fit.y is not None
        found = judge.figures(outputs, self.teacher_cut)
        # What its probabilities would be worth to who cuts them as its students' are cut; predict_class does not.
        self.teacher_threshold = judge.threshold(outputs) if problem.task == "binary" else None
        reply: dict[str, Any] = {
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
        known = np.isfinite(select.y) if regression else select.y >= 0
        y, p = select.y[known], outputs[known]
        metric = request.fields["floor"]
        if metric == problem.metric or metric == metrics.AGREEMENT:
            reply["floor_high"] = found["score_high"]
        elif metric is not None and len(y):
            weights = None if select.weights is None else select.weights[known]
            interval = bootstrap_interval(
                metric, y, metrics.judged(metric, p, self.teacher_cut), weights, seed=self.seed
            )
            reply["floor_high"] = _finite(interval.high)
        if len(y) and regression:
            reply["falls"] = falls(y, p)
        elif len(y):
            reply["order"] = decisions.class_order(y, p)
            labels = np.concatenate([problem.fit.y, select.y])
            counts = np.bincount(labels[labels >= 0].astype(np.int64), minlength=len(problem.classes))
            reply["shares"] = (counts / max(counts.sum(), 1)).tolist()
        return Message("surveyed", reply, {}, {})

    def probe(self, request: Message, channel: Channel) -> Message:
        from pg_distill.onnx_model import check as onnx_graph
        from pg_distill.onnx_model import derive
        from pg_distill.search.training import latency_ms
        from pg_distill.students.families import Shape, load_family

        problem = self.problem
        n_classes = len(problem.classes) or 1
        few = problem.fit.take(np.arange(min(len(problem.fit), PROTOTYPE_ROWS)))
        family = load_family("linear")
        size = family.sizes(Shape(problem.task, n_classes, few.frame.features, len(few)))[0]
        student = family(
            task=problem.task, n_classes=n_classes, temperature=1.0, alpha=1.0, epochs=1, seed=0, **size
        )  # type: ignore[call-arg]
        artifact = student.prototype(few)
        if artifact is None:
            artifact = student.fit(few, few, deadline=None).to_onnx()
        signature = derive.derive_signature(
            onnx_graph.check(artifact),
            features=few.frame.features,
            task=problem.task,
            classes=problem.classes or None,
        )
        fields = {
            **_write_signature(signature),
            "latency_ms": latency_ms(artifact, few.frame),
        }
        return Message("probed", fields, {}, {"artifact": artifact})

    def search(self, request: Message, channel: Channel) -> Message:
        from pg_distill.onnx_model import check as onnx_graph
        from pg_distill.onnx_model import derive
        from pg_distill.search.problem import Config
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
            candidates = search(
                self.problem,
                Config(**fields),
                self.label,
                executor=executor,
                report=lambda progress: channel.send(Message("progress", dict(progress), {}, {})),
            )
        judge, teacher = self._judge_of_select()
        rows: list[dict[str, Any]] = []
        blobs: dict[str, bytes] = {}
        for c in candidates:
            self.candidates[c.number] = c
            self.class_thresholds[c.number] = c.class_threshold
            row: dict[str, Any] = {
                "candidate": c.number,
                "family": c.family,
                "configuration": c.configuration,
                "is_control": c.is_control,
                "size_bytes": c.size_bytes,
                "select_accuracy": _finite(c.metric_select),
                "trainer_latency_ms": _finite(c.latency_ms),
                "on_frontier": c.on_frontier,
                "tie_break_select": _finite(c.tie_break_select),
                "jackknife_select": [_finite(value) for value in c.jackknife_select],
                "reason": c.reason,
                "seconds": c.seconds,
                "expression": c.expression,
                "class_threshold": c.class_threshold,
            }
            if c.artifact:
                # Our own files pass the same check as anybody's.
                signature = derive.derive_signature(
                    onnx_graph.check(c.artifact),
                    features=self.problem.fit.frame.features,
                    task=self.problem.task,
                    classes=self.problem.classes or None,
                )
                self.signatures[c.number] = signature
                row |= _write_signature(signature)
                blobs[str(c.number)] = c.artifact
                if c.select_logits is not None:
                    outputs = _probabilities(c.select_logits, self.problem.task)
                    row["select_classes"] = _distinct_classes(outputs, self.problem.task, c.class_threshold)
            rows.append(row)
        fields = {
            "candidates": rows,
            "teacher_select": judge.value(teacher),
            "teacher_classes": _distinct_classes(teacher, self.problem.task),
        }
        return Message("searched", fields, {}, blobs)

    def _judge_of_select(self) -> tuple[Judge, FloatArray]:
        """Return what scores outputs on the select rows, and the teacher's."""
        from pg_distill.measure.judge import Judge

        select, problem = self.problem.select, self.problem
        assert select.y is not None and select.teacher_logits is not None
        outputs = _probabilities(select.teacher_logits, problem.task)
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

    def cascade(self, request: Message, channel: Channel) -> Message:
        judge, teacher = self._judge_of_select()

        def student(number: int) -> FloatArray:
            # Of the file before its refit, which has learned the select rows: its confidence in them says nothing.
            logits = self.candidates[number].select_logits
            assert logits is not None
            return _probabilities(logits, self.problem.task)

        found: list[dict[str, Any]] = []
        for number, most in request.fields["shares"]:
            own = student(number)
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
            cut = judge.threshold(outputs) if self.problem.task == "binary" else None
            self.class_thresholds[number] = cut
            f |= {
                "class_threshold": cut,
                "select_accuracy": judge.value(outputs, cut),
                "tie_break_select": judge.tie_break(outputs),
                "jackknife_select": judge.jackknife(outputs, cut),
                "select_classes": _distinct_classes(outputs, self.problem.task, cut),
            }
        return Message("cascaded", {"cascades": best}, {}, {})

    def _cascaded(self, own: FloatArray, threshold: float | None) -> FloatArray:
        """Return a student's outputs on the test rows, with the teacher's where it is not confident enough."""
        if threshold is None:
            return own
        return np.where(own.max(axis=1, keepdims=True) >= threshold, own, self.test_teacher)

    def evaluate(self, request: Message, channel: Channel) -> Message:
        from pg_distill.onnx_model import derive
        from pg_distill.onnx_model.session import Model

        fields = request.fields
        for number in fields["numbers"]:
            student, threshold = self.cascades.get(number, (number, None))
            candidate = self.candidates[student]
            own = Model(candidate.artifact, self.signatures[student]).run_frame(self.test)
            self.tested[number] = self._cascaded(own, threshold)
        every = np.ones(len(self.test), bool)
        self.judge = judge = self._judge_of_test(every)
        reply: dict[str, Any] = {
            "teacher": judge.figures(self.test_teacher, self.teacher_cut),
            "majority": judge.baseline(),
            "candidates": {
                str(n): judge.figures(o, self.class_thresholds.get(n)) for n, o in self.tested.items()
            },
            "members": {},
        }
        if self.teacher_threshold is not None:
            reply["teacher"]["tuned"] = {
                "class_threshold": self.teacher_threshold,
                "score": judge.value(self.test_teacher, self.teacher_threshold),
            }
        cuts: Mapping[str, float] = fields["class_thresholds"]
        outputs: dict[str, FloatArray] = {}
        outside: dict[str, npt.NDArray[np.bool_]] = {}
        for key, (input_schema, output_schema) in fields["members"].items():
            signature = derive.costed(request.blobs[key], Signature.from_json(input_schema, output_schema))
            own = Model(request.blobs[key], signature).run_frame(self.test)
            outputs[key] = self._cascaded(own, fields["thresholds"].get(key))
            outside[key] = request.arrays.get(f"outside/{key}", every).astype(bool)
        for key, own in outputs.items():
            rows = outside[key]
            if rows.all():
                reply["members"][key] = judge.figures(own, cuts.get(key))
                continue
            # What it is held against is held against the same rows.
            part = self._judge_of_test(rows)

            def beside(
                other: FloatArray,
                cut: float | None = None,
                part: Judge = part,
                rows: npt.NDArray[np.bool_] = rows,
                own: FloatArray = own,
                own_cut: float | None = cuts.get(key),
            ) -> dict[str, Any]:
                return {
                    "score": part.value(other[rows], cut),
                    "difference_error": part.difference_error(own[rows], other[rows], (own_cut, cut)),
                }

            reply["members"][key] = {
                **part.figures(own[rows], cuts.get(key)),
                "against": {
                    "teacher": beside(self.test_teacher, self.teacher_cut),
                    "majority": part.baseline(),
                    "candidates": {
                        str(n): beside(o, self.class_thresholds.get(n)) for n, o in self.tested.items()
                    },
                    "members": {
                        other: beside(o, cuts.get(other)) if (outside[other] | ~rows).all() else None
                        for other, o in outputs.items()
                        if other != key
                    },
                },
            }
        return Message("evaluated", reply, {}, {})

    def _judge_of_test(self, rows: npt.NDArray[np.bool_]) -> Judge:
        """Return what scores outputs on some of the test rows."""
        from pg_distill.measure.judge import Judge

        problem = self.problem
        return Judge(
            problem.metric,
            problem.task,
            self.test_y[rows],
            self.test_teacher[rows],
            None if self.test_weights is None else self.test_weights[rows],
            seed=self.seed,
            resamples=RESAMPLES,
            # Where a model is watched there are no rows to fit on.
            baseline_y=problem.fit.y if len(problem.fit) else None,
            baseline_weights=problem.fit.weights,
        )

    def compare(self, request: Message, channel: Channel) -> Message:
        outputs = {"teacher": self.test_teacher}
        cuts: dict[str, float | None] = {"teacher": self.teacher_cut}
        for name in ("control", "student"):
            number = request.fields[name]
            if number is not None:
                outputs[name], cuts[name] = self.tested[number], self.class_thresholds.get(number)
        return Message("compared", self.judge.compare(outputs, cuts), {}, {})


def _limits(fields: Mapping[str, Any]) -> FileLimits:
    from pg_distill.onnx_model.limits import DEFAULT_LIMITS

    return replace(DEFAULT_LIMITS, artifact_bytes=fields["max_bytes"], run_bytes=fields["run_bytes"])


def _in_parallel(label: Callable[[Frame], FloatArray], threads: int) -> Callable[[Frame], FloatArray]:
    """Label parts of a frame in threads of their own: a session gives up the interpreter while it runs."""
    if threads == 1:
        return label
    pool = ThreadPoolExecutor(threads)

    def label_parts(rows: Frame) -> FloatArray:
        if len(rows) < 2 * PROBE_ROWS:
            return label(rows)
        parts = [rows.take(part) for part in np.array_split(np.arange(len(rows)), threads)]
        return np.concatenate(list(pool.map(label, parts)))

    return label_parts


def label_within(
    label: Callable[[Frame], FloatArray],
    rows: Frame,
    seconds: float,
    *,
    at_least: int,
    at_most_seconds: float,
    tell: Callable[..., None] = lambda *args, **kwargs: None,
) -> FloatArray:
    """Label the first rows: as many as the time allows, batch by batch, and ``at_least`` some.

    Parameters
    ----------
    seconds
        After which no further batch is begun, unless rows are missing to ``at_least``.
    at_most_seconds
        That labelling ``at_least`` rows may take.
    tell
        Called after each batch with the number of rows labelled, the seconds a row and how many rows there will be;
        ``estimate`` is true the first time that these rest on enough.

    Returns
    -------
    The outputs of the first rows, (m, K).

    Raises
    ------
    InvalidParameter
        The teacher is too slow for ``at_least`` rows.
    """
    started = time.monotonic()
    found: list[FloatArray] = []
    done, size, probed, told = 0, 1, 0.0, False
    # A batch that had to wait for the processor does not speak for the others.
    least_probed = min(PROBE_SECONDS, at_most_seconds / 2)
    while done < len(rows):
        begun = time.monotonic()
        found.append(label(rows.take(np.arange(done, min(done + size, len(rows))))))
        done += len(found[-1])
        now = time.monotonic()
        a_row = max((now - begun) / len(found[-1]), 1e-9)
        # The first batch pays for loading, and says little.
        probed += now - begun if len(found) > 1 else 0.0
        too_slow = now - started + a_row * (at_least - done) > at_most_seconds
        if done < at_least and probed >= least_probed and too_slow:
            raise InvalidParameter(
                f"the teacher takes {a_row:.3g} s a row, too long for the {at_least} rows that are the least",
                hint="Allow more time (time_budget_s), or use a faster teacher.",
            )
        affordable = max(int((seconds - (now - started)) / a_row), at_least - done, 0)
        expected = min(done + affordable, len(rows))
        enough = not told and probed >= PROBE_SECONDS
        told = told or enough
        tell(done, a_row, expected, estimate=enough)
        if expected <= done:
            break
        size = min(size * BATCH_GROWTH, BATCH_ROWS)
        # By powers of the growth, so that batches are the same each time unless the teacher is slow.
        while size > 1 and size * a_row > BATCH_SECONDS:
            size //= BATCH_GROWTH
        size = min(size, expected - done)
    return np.concatenate(found)


def _probabilities(logits: FloatArray, task: Task) -> FloatArray:
    from pg_distill.students.soft_labels import softmax

    return logits if task == "regression" else softmax(logits, 1.0)


def _distinct_classes(outputs: FloatArray, task: Task, threshold: float | None = None) -> int | None:
    """Return how many classes outputs name; of two the last from ``threshold`` on."""
    from pg_distill.measure import metrics

    return (
        None if task == "regression" else len(np.unique(metrics.decided(outputs, threshold).argmax(axis=1)))
    )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


if __name__ == "__main__":
    workshop = _Workshop()
    child_main(
        {
            "look": workshop.look,
            "inspect": workshop.inspect,
            "check": workshop.check,
            "load": workshop.load,
            "survey": workshop.survey,
            "probe": workshop.probe,
            "search": workshop.search,
            "cascade": workshop.cascade,
            "evaluate": workshop.evaluate,
            "compare": workshop.compare,
        }
    )
