"""The child process that opens untrusted models, labels, augments, trains and measures; and the backend's side of it.

One child serves one registration or one distillation. It keeps the rows between requests, so they cross the
pipe once:

    look       import all that training needs, and say what is missing
    inspect    check an ONNX file, derive its signature, run it on rows
    check      check and open ONNX files whose signatures are known
    load       rows, splits and the teacher; the teacher labels the real rows
    survey     what the teacher is worth on the select rows, before anything is trained
    probe      the fastest student untrained, by which the backend tells what predict costs around a model
    search     train candidates; return those on the frontier with their files
    cascade    students that ask the teacher where they are unsure
    evaluate   score candidates and the family on the test rows, which nothing before has looked at
    compare    the choice with its teacher and a control, in every metric

``python -m pg_distill.child.workshop`` is the child.

Its class is long, because it has a method for each of these.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt

from pg_distill.child.messages import (
    Cascaded,
    Inspection,
    Loaded,
    Reported,
    Searched,
    SearchRequest,
    Surveyed,
    Trial,
    pack,
    read_signature,
    unpack,
)
from pg_distill.child.process import ChildProcess, Limits
from pg_distill.child.wire import Message
from pg_distill.errors import TrainerDied
from pg_distill.frame import Cut, Feature, FloatArray, Frame, Task
from pg_distill.measure.scores import Compared, Evaluation
from pg_distill.onnx_model.session import RUN_BYTES
from pg_distill.onnx_model.signature import Signature
from pg_distill.onnx_model.tokenizer import DEFAULT_TOKENS

if TYPE_CHECKING:
    from pg_distill.probe import Finding

__all__ = ["Trainer"]

OVERRUN, SEARCH_GRACE_SECONDS = 1.5, 60.0  # a search that is this far past its budget is a hang
EVALUATION_SECONDS = (
    600.0  # scoring that takes longer than this, of 200,000 rows on a busy machine too, is a hang
)
RELEARN_SECONDS = (
    3600.0  # a training on all rows has its own limit, by what the first one took; beyond this it hangs
)
LOOK_SECONDS = 60.0  # importing all that training needs takes 2 s, and 10 on a busy machine
MAX_FAULT = 500  # characters of why a teacher cannot label
INSPECT_SECONDS = 120.0  # checking and loading a model that takes longer than this is refused


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
        report: Callable[[Reported], None] = lambda progress: None,
        label: Callable[[Frame], FloatArray] | None = None,
    ) -> None:
        self._child = ChildProcess("pg_distill.child.workshop", limits)
        self._check_interrupts = check_interrupts
        self._report = report
        self._label = label
        self._searching = False

    def __enter__(self) -> Self:
        self._child.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.__exit__(kind, error, trace)

    def _answer(self, message: Message) -> Message | None:
        if message.kind == "label" and self._label is not None:
            rows = unpack(message, "rows/")
            try:
                return Message("labels", {}, {"outputs": self._label(rows)}, {})
            except Exception as error:
                # What reads a text in a way of its own (a number behind a word, JSON) cannot read one that was made up.
                if not (self._searching and rows.text_names and _is_of_data(error)):
                    raise
                return Message("labels", {"fault": str(error)[:MAX_FAULT]}, {}, {})
        if message.kind == "progress":
            self._report(cast(Reported, message.fields))
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
        max_tokens: int = DEFAULT_TOKENS,
    ) -> Inspection:
        """Have the child approve an ONNX file, whose signature it finds out, and run it on ``rows``.

        ``features`` are the columns of ``rows``; where there are none, ``names`` may name what the graph does not. The file
        may have ``max_bytes``, and a run of it for one row take ``run_bytes``: the settings artifact_limit_mb and
        predict_memory_mb. ``class_threshold`` is the probability from which it names the last of two classes,
        ``max_tokens`` how many a text may have where the file holds a tokenizer.
        """
        fields: dict[str, Any] = {
            "names": None if names is None else list(names),
            "features": None if features is None else [[f.name, f.kind, f.length] for f in features],
            "task": task,
            "classes": None if classes is None else list(classes),
            "max_bytes": max_bytes,
            "run_bytes": run_bytes,
            "class_threshold": class_threshold,
            "max_tokens": max_tokens,
        }
        arrays: dict[str, npt.NDArray[Any]] = {}
        if rows is not None:
            pack(rows, fields, arrays, "rows/")
        reply = self._call(Message("inspect", fields, arrays, {"artifact": artifact}), INSPECT_SECONDS)
        return Inspection(
            read_signature(reply.fields), reply.arrays["outputs"], reply.fields["logits_source"]
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
        return [read_signature(found) for found in reply.fields["signatures"]]

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
        class_threshold: Cut = None,
        folds: npt.NDArray[np.uint8] | None = None,
    ) -> Loaded:
        """Send the rows and label them.

        ``teacher`` is an ONNX file that labels in the child; ``outputs`` are the labels where it is not one. ``class_threshold``
        is the teacher's own, ``folds`` see `rows.sample.Sample`.
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
        pack(frame, fields, arrays, "rows/")
        if weights is not None:
            arrays["weights"] = weights
        if teacher is not None:
            blobs["teacher"] = teacher[0]
            fields["input_schema"], fields["output_schema"] = teacher[1].to_json()
        if outputs is not None:
            arrays["outputs"] = outputs
        if folds is not None:
            arrays["folds"] = folds
        reply = self._call(
            Message("load", fields, arrays, blobs), time_budget_s * OVERRUN + SEARCH_GRACE_SECONDS
        )
        return cast(Loaded, reply.fields)

    def search(self, request: SearchRequest) -> Searched:
        """Train candidates."""
        seconds = request.most_seconds * OVERRUN + SEARCH_GRACE_SECONDS
        self._searching = True
        try:
            reply = self._call(Message("search", asdict(request), {}, {}), seconds)
        finally:
            self._searching = False
        trials = [
            Trial.of_reply(fields, reply.blobs.get(str(fields["number"])))
            for fields in reply.fields["candidates"]
        ]
        fields = reply.fields
        return Searched(
            trials,
            fields["teacher_select"],
            fields["teacher_classes"],
            fields["chosen_by"],
            fields["ended"],
        )

    def survey(self, floor: tuple[str, float] | None) -> Surveyed:
        """Say what the teacher is worth on the select rows, before anything is trained.

        Parameters
        ----------
        floor
            A metric and what is asked of it, where something is.

        """
        fields = {"floor": floor[0] if floor is not None else None}
        return cast(Surveyed, self._call(Message("survey", fields, {}, {}), EVALUATION_SECONDS).fields)

    def probe(self) -> tuple[bytes, Signature, float]:
        """Return an untrained small student for the loaded rows, and its latency in the child in milliseconds."""
        reply = self._call(Message("probe", {}, {}, {}))
        return reply.blobs["artifact"], read_signature(reply.fields), reply.fields["latency_ms"]

    def cascade(self, shares: Mapping[int, float], first: int, most: int) -> list[Cascaded]:
        """Find thresholds below which students ask the teacher, on the select rows.

        Parameters
        ----------
        shares
            By candidate, the largest share of the rows for which the teacher may be asked.
        first
            The number of the first cascade; `evaluate` knows them by these.
        most
            How many to return, the most accurate first.

        """
        request = {"shares": [[n, share] for n, share in shares.items()], "first": first, "most": most}
        reply = self._call(Message("cascade", request, {}, {}), EVALUATION_SECONDS)
        return cast(list[Cascaded], reply.fields["cascades"])

    def evaluate(
        self,
        trials: Sequence[Trial],
        members: Mapping[str, tuple[bytes, Signature]],
        thresholds: Mapping[str, float],
        class_thresholds: Mapping[str, Cut],
        outside: Mapping[str, npt.NDArray[np.bool_]] | None = None,
    ) -> Evaluation:
        """Score candidates, the teacher and the family on the test rows.

        Parameters
        ----------
        thresholds, class_thresholds
            By member of the family: of a cascade, and of the probability from which the last of two classes is named.
        outside
            By member which of the test rows (n,) may judge it, where not all of them may.

        Returns
        -------
        Figures have ``rows``, how many they are of. Where only some rows may judge a member they are of these, and
        ``against`` has what the others reach there; None of a member that not all of these rows may judge.
        """
        fields: dict[str, Any] = {
            "numbers": sorted({t.scored_as for t in trials}),
            "members": {key: signature.to_json() for key, (_, signature) in members.items()},
            "thresholds": dict(thresholds),
            "class_thresholds": dict(class_thresholds),
        }
        blobs = {key: artifact for key, (artifact, _) in members.items()}
        arrays = {f"outside/{key}": rows for key, rows in (outside or {}).items() if not rows.all()}
        return cast(
            Evaluation, self._call(Message("evaluate", fields, arrays, blobs), EVALUATION_SECONDS).fields
        )

    def relearn(self, trial: Trial) -> tuple[bytes, Signature, str | None] | str:
        """Train a candidate that was judged once more, on the test rows too; its file, signature and SQL, or why not."""
        reply = self._call(Message("relearn", {"number": trial.scored_as}, {}, {}), RELEARN_SECONDS)
        if reply.fields["reason"] is not None:
            return str(reply.fields["reason"])
        return reply.blobs["artifact"], read_signature(reply.fields), reply.fields["expression"]

    def compare(self, chosen: Trial, control: Trial | None) -> Compared:
        """Compare the teacher, one control and the choice, all of them scored, in every metric.

        Returns
        -------
        What ``Judge.compare`` says of ``teacher``, ``control`` and ``student``.
        """
        fields = {
            "student": chosen.scored_as,
            "control": control.scored_as if control is not None else None,
        }
        return cast(Compared, self._call(Message("compare", fields, {}, {}), EVALUATION_SECONDS).fields)


def _is_of_data(error: Exception) -> bool:
    """Whether an error, PostgreSQL's or ours, is of the values that were read, and not a cancel or a fault of anything else."""
    return str(getattr(error, "sqlstate", "")).startswith(("22", "23", "P0001"))  # data, constraints, RAISE
