"""An ONNX file as a database serves it: its signature, its session, and the shortest way to a prediction.

Imported in every backend that predicts, so it imports numpy and onnxruntime and nothing else; `derive`
derives a `Signature` in the trainer's child, and this module only ever reads what that wrote down.

Three things keep a one-row call below the cost of ``InferenceSession.run`` (``make bench``): inputs and
output are bound once to numpy buffers that live as long as the model (`IOBinding`), the `RunOptions` are made
once, and the row is written by ``struct.pack_into``, which is faster than numpy for short rows.

A run has as many rows as its `Cost` lets fit into the memory of one run. One that may take long is made by a `Guard`, which
can end it; one that cannot is not, because a guard costs some 30 us.

Long, because a call passes through it alone: this is the hot path.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from pg_distill.errors import (
    ArtifactCorrupted,
    FeatureNotSupported,
    InvalidArtifact,
    InvalidData,
    LimitExceeded,
    UndefinedColumn,
)
from pg_distill.frame import FloatArray, Frame
from pg_distill.onnx_model.cut import cut_lookups, cut_texts, prune
from pg_distill.onnx_model.signature import Signature
from pg_distill.onnx_model.slots import RowLookup, Slot, TextSlot
from pg_distill.onnx_model.values import (
    checked,
    decode,
    encode,
)
from pg_distill.onnx_model.vectors import read_vector
from pg_distill.rows import canonical

__all__ = [
    "BATCH_ROWS",
    "CONVERTED_KEY",
    "RUN_BYTES",
    "Guard",
    "Model",
    "first_line",
    "open_session",
    "runtime_errors",
]


CONVERTED_KEY = "pg_distill.converted"
"""The metadata property of a graph that `conversion` made (JSON); it reads a NULL string as `NULL_STRING`, as a student does."""

T = TypeVar("T")

BATCH_ROWS = 4096
"""Rows a session run: enough to spread the call's cost, few enough to stay in the processor's cache."""

RUN_BYTES = 1 << 30
"""Bytes that one run may take unless told otherwise: the setting predict_memory_mb."""

SLOW_SECONDS = 0.005
"""From which on a run is guarded. The worst values make a run some hundred times slower than those it was timed on."""

SLOW_NS = 100_000_000
"""From which on a run is guarded whatever it has been timed at: by its cost, which is that of the worst values on a slow core."""

WIDE = 1024
"""Numbers that the texts of one row become: from there on rows are encoded a run at a time, not all at once."""

FAST_RUNS = 16
"""So many guarded runs of one row in turn, each well below `SLOW_SECONDS`, and rows are run without a guard."""

UNKNOWN_ROWS = 64
"""Rows a run of a model whose cost nobody has worked out: one that an older release registered."""

FIRST_RUNS = 3
"""Runs of a session that has just been opened, at most, until one of them says whether it is slow."""

TEXT_BYTES_A_CHARACTER = 4  # of UTF-8, at most
MAX_TEXT_BYTES = 16 << 20  # of one string of a model whose cost is not known


runtime_errors: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(
        error
        for name in (
            "Fail",
            "InvalidArgument",
            "InvalidGraph",
            "InvalidProtobuf",
            "NotImplemented",
            "RuntimeException",
        )
        if isinstance(error := getattr(ort.capi.onnxruntime_pybind11_state, name, None), type)
    ),
)
"""onnxruntime's exceptions share no base class of their own."""


class Guard(Protocol):
    """Makes calls that can be ended in their middle."""

    def run(self, work: Callable[[], T], stop: Callable[[bool], object]) -> T:
        """Return what ``work`` returns; ``stop(True)`` makes it end, by an exception, ``stop(False)`` takes that back."""

    def check(self) -> None:
        """Raise where the work is to end."""


class _NoGuard:
    """Where nothing interrupts: in a trainer's child, which its parent kills."""

    def run(self, work: Callable[[], T], stop: Callable[[bool], object]) -> T:
        return work()

    def check(self) -> None:
        pass


NO_GUARD = _NoGuard()


def open_session(artifact: bytes, *, threads: int = 1, guard: Guard = NO_GUARD) -> ort.InferenceSession:
    """Open ``artifact``, checked before by `check.check`, from memory.

    One thread and no spinning unless told otherwise, no log output, no memory arena (which a backend with
    hundreds of sessions would pay for), and no file: external data would be sought where nothing can be.

    Raises
    ------
    InvalidArtifact, FeatureNotSupported
        Where onnxruntime cannot read the graph, or has no kernel for an operator.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", "/dev/null/refused"
    )
    try:
        session = guard.run(
            lambda: ort.InferenceSession(
                artifact,
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,
                read_config_from_model=0,
            ),
            options.set_load_cancellation_flag,
        )
    except runtime_errors as error:
        kind = FeatureNotSupported if "NOT_IMPLEMENTED" in str(error) else InvalidArtifact
        local = "locale" in str(error)
        newer = re.search(r"IR version: \d+, max supported IR version: (\d+)", str(error))
        hint = None
        if newer is not None:
            hint = f"Save it with an IR version of {newer[1]} or less: model.ir_version = {newer[1]}, onnx.save(model, path)."
        if local:
            hint = "The server has no such locale. Export StringNormalizer with the locale C, or C.UTF-8."
        raise kind("model cannot be opened by onnxruntime", detail=first_line(error), hint=hint) from error
    if hasattr(session, "_model_bytes"):
        session._model_bytes = None  # kept only to open the session again on another provider
    return session


class Model:
    """A session with buffers for one row.

    Not safe for threads: calls share the buffers. (A PL/Python backend has one.)

    Parameters
    ----------
    artifact
        The ONNX file's bytes.
    signature
        What `derive.derive_signature` found.
    types
        The stored types of the features' columns, by which JSON is read.

    Attributes
    ----------
    words
        How many strings it looks up itself, in Python.
    predict_number
        ``predict_number(numbers) -> float``, or ``predict_number(numbers, strings)``: the last element of what
        `run_numbers` or `run_mixed` gives: the probability of the last class, or the value. The cheapest call there is.
    predict_position
        Where the largest element stands, as cheaply.
    """

    def __init__(
        self,
        artifact: bytes,
        signature: Signature,
        *,
        types: Mapping[str, str] | None = None,
        threads: int = 1,
        run_bytes: int = RUN_BYTES,
        guard: Guard = NO_GUARD,
    ) -> None:
        self.signature = signature
        self._run_bytes = run_bytes
        self._guard = guard
        if signature.cost is not None and signature.cost.rows(run_bytes) < 1:
            raise LimitExceeded(
                f"model may take {signature.cost.bytes(1)} bytes for one row, limit is {run_bytes}",
                hint="An administrator may raise the setting predict_memory_mb.",
            )
        doubles = {i for spec in signature.inputs if spec.element != "float32" for i in spec.features}
        self._readers = canonical.json_readers(
            # What is rounded to float32 anyhow needs no reader that does.
            (
                f
                for i, f in enumerate(signature.features)
                if not f.is_vector and (f.is_string or i in doubles)
            ),
            types or {},
        )
        known = types or {}
        vectors = {
            f.name: partial(read_vector, f, type_name=known.get(f.name) if i in doubles else None)
            for i, f in enumerate(signature.features)
            if f.is_vector
        }
        self._readers = {**self._readers, **vectors}
        output = signature.output
        artifact, readers = cut_texts(artifact, guard.check)
        if readers:
            signature = replace(signature, readers={reader.target: reader for reader in readers})
            self.signature = signature
        if any(spec.words and spec.name not in signature.readers for spec in signature.inputs):
            raise ArtifactCorrupted("stored signature of the model is not its file's")
        graph = prune(artifact, [output.name])
        guard.check()
        strings = {spec.name for spec in signature.inputs if spec.element == "string"}
        graph, self._lookups = cut_lookups(graph, strings, guard.check) if strings else (graph, ())
        self._looked_up = {lookup.source for lookup in self._lookups}
        self.words = sum(len(lookup.table) for lookup in self._lookups)
        self.words += sum(reader.entries for reader in readers)
        self.session = open_session(graph, threads=threads, guard=guard)
        self._outputs = [output.name]
        self._options = ort.RunOptions()
        self._options.log_severity_level = 4
        # The C object does without Python's checks of the feed's names; it is private, hence the fallback.
        self._run: Callable[..., Any] = getattr(getattr(self.session, "_sess", None), "run", self.session.run)
        self._batch = min((i.batch for i in signature.inputs if i.batch is not None), default=None)
        self._plan = [
            TextSlot(signature, spec, guard.check) if spec.words else Slot(signature, spec)
            for spec in signature.inputs
        ]
        by_name = {slot.spec.name: slot for slot in self._plan}
        self._row_lookups = [RowLookup(lookup, by_name[lookup.source]) for lookup in self._lookups]
        self._feeds = {name: slot.array for name, slot in by_name.items() if name not in self._looked_up}
        self._feeds |= {lookup.target: lookup.array for lookup in self._row_lookups}
        self._texts = [
            slot.cells
            for name, slot in by_name.items()
            if self._feeds.get(name) is slot.array and slot.is_text
        ]
        straight = tuple(range(len(signature.features)))
        self._width = signature.cells + sum(f.is_string for f in signature.features)
        self._is_straight = signature.is_numeric and [i.features for i in signature.inputs] == [straight]
        self._is_plain = output.form in ("probabilities", "value")  # nothing left for `decode` to do
        self.is_slow = True
        self._fast_runs = 0
        self._seconds_a_row: float | None = None  # in a run of many
        self._bound: npt.NDArray[Any] | None = None
        self._run_bound = self._bind()
        self.predict_number: Callable[..., float] = self._fastest(
            lambda output: partial(output.item, output.size - 1), lambda answer: float(answer[-1])
        )
        self.predict_vector = self._fastest_vector(lambda output: partial(output.item, output.size - 1))
        self.predict_position: Callable[..., int] = self._fastest(
            lambda output: cast(Callable[[], int], output.argmax) if output.size > 1 else None,
            lambda answer: int(np.argmax(answer)),
        )

    def _stop(self, flag: bool) -> None:
        self._options.terminate = flag

    def _one_run(self, run: Callable[[], T]) -> T:
        """Make a run of one row under the guard, and see whether it needs one."""
        began = perf_counter()
        result = self._guard.run(run, self._stop)
        if perf_counter() - began < SLOW_SECONDS / 2:
            self._fast_runs += 1
            if self._fast_runs >= FAST_RUNS and not self._may_take_long(1):
                self.is_slow = False
        else:
            self._fast_runs = 0
        return result

    def _may_take_long(self, rows: int, text_bytes: int = 0) -> bool:
        cost = self.signature.cost
        return cost is not None and cost.ns(rows, text_bytes) > SLOW_NS

    # -- one row

    def run_numbers(self, values: Sequence[Any]) -> FloatArray:
        """Predict one row given as numbers in the order of the features; None is NULL.

        Returns
        -------
        (K,) float64 probabilities, or (1,) the value.

        Raises
        ------
        InvalidData
            Where the count is wrong, a value does not fit an integer input, or the model fails on the row.
        FeatureNotSupported
            Where the model takes strings.
        NullNotAllowed, DatatypeMismatch
            Where a NULL has no encoding, or a value is no number.
        """
        self._fill_numbers(values)
        return self._finish()

    def run_row(self, row: Mapping[str, Any]) -> FloatArray:
        """Predict one row given by feature name: a JSON object's values; other keys are ignored.

        Numbers may be the strings "NaN", "Infinity" and "-Infinity", booleans count as 0 and 1, timestamps
        are ISO 8601 strings as to_jsonb writes them (UTC where they name no zone) or seconds since 1970.

        Returns
        -------
        (K,) float64 probabilities, or (1,) the value.

        Raises
        ------
        UndefinedColumn
            Where a feature is missing.
        NullNotAllowed, DatatypeMismatch, InvalidData
            As `run_numbers`.
        """
        try:
            if self._readers:
                row = {**row, **{name: read(row[name]) for name, read in self._readers.items()}}
            for slot in self._plan:
                slot.fill(slot.pick(row))
        except KeyError as error:
            raise UndefinedColumn(f'feature "{error.args[0]}" is missing from the row') from None
        return self._finish()

    def run_mixed(self, numbers: Sequence[Any], strings: Sequence[Any]) -> FloatArray:
        """Predict one row given as its numbers and its strings, each in the order of the features; None is NULL.

        Returns
        -------
        (K,) float64 probabilities, or (1,) the value.

        Raises
        ------
        InvalidData, NullNotAllowed, DatatypeMismatch
            As `run_numbers`.
        """
        values = self.signature.row(numbers, strings)
        for slot in self._plan:
            slot.fill(slot.pick_mixed(values))
        return self._finish()

    def run_parts(
        self, numbers: Sequence[Any], strings: Sequence[Any], vectors: Sequence[bytes | None]
    ) -> FloatArray:
        """Predict one row given as its other numbers, its strings, and the bytes of its vectors, each in order; None is NULL.

        Returns
        -------
        (K,) float64 probabilities, or (1,) the value.

        Raises
        ------
        InvalidData, NullNotAllowed, DatatypeMismatch
            As `run_numbers`, and where a vector is not what the model takes.
        """
        row = self.signature.parts(numbers, strings, vectors)
        for slot in self._plan:
            slot.fill_parts(row)
        return self._finish()

    def _fill_numbers(self, values: Sequence[Any]) -> None:
        expected = self._width
        if len(values) != expected:
            raise self._wrong_count(len(values))
        if self._is_straight:
            self._plan[0].fill(values)
            return
        for feature in self.signature.features:
            if feature.is_string:
                raise FeatureNotSupported(
                    f'feature "{feature.name}" is a string, which an array of numbers cannot hold',
                    hint="Pass numbers and strings as two arrays, or the row as jsonb.",
                )
        for slot in self._plan:
            slot.fill([values[i] for i in slot.places])

    def _wrong_count(self, given: int) -> InvalidData:
        what = "numbers, all those of vectors too" if self.signature.has_vectors else "features"
        return InvalidData(f"expected {self._width} {what}, not {given}")

    def _finish(self) -> FloatArray:
        """Run the graph on the buffers."""
        for lookup in self._row_lookups:
            lookup.fill()
        guarded = self.is_slow
        if self._texts:
            guarded = self._may_take_long(1, self._checked_texts()) or guarded
        try:
            if self._run_bound is not None and self._bound is not None:
                self._one_run(self._run_bound) if self.is_slow else self._run_bound()
                if self._is_plain:
                    return self._bound.reshape(-1).astype(np.float64)
                raw = self._bound
            else:
                run = partial(self._run, self._outputs, self._feeds, self._options)
                raw = np.asarray((self._one_run(run) if guarded else run())[0])
        except runtime_errors as error:
            raise _failed(error) from error
        return cast(FloatArray, decode(self.signature, raw, 1)[0])

    def _checked_texts(self) -> int:
        """Return the bytes of the row's longest string; LimitExceeded where it would take too much memory, or too long."""
        longest = max(map(_most_bytes, (text for cells in self._texts for text in cells)))
        cost = self.signature.cost
        if longest > MAX_TEXT_BYTES or (cost is not None and cost.rows(self._run_bytes, longest) < 1):
            raise _too_long(longest)
        return longest

    def _bind(self) -> Callable[[], None] | None:
        """Bind inputs and output to buffers; None where the graph does not allow it.

        Strings cannot be bound, and labels need no speed. The output's shape is known only after a run, which also tells
        whether the model needs a guard.
        """
        first_run = partial(self._run, self._outputs, self._feeds, self._options)
        try:
            [first] = self._guard.run(first_run, self._stop)
            took = math.inf  # the first one of all pays for loading
            for _ in range(FIRST_RUNS):
                began = perf_counter()
                self._guard.run(first_run, self._stop)
                took = min(took, perf_counter() - began)
                if not SLOW_SECONDS / 2 < took < 20 * SLOW_SECONDS:
                    break  # beyond doubt
            self.is_slow = took > SLOW_SECONDS / 2 or self._may_take_long(1)
        except runtime_errors:
            return None
        takes_strings = any(array.dtype == object for array in self._feeds.values())
        if takes_strings or self.signature.output.form == "label":
            return None
        try:
            decode(self.signature, np.asarray(first), 1)
            self._bound = np.ascontiguousarray(first)
            binding = self.session.io_binding()
            arrays = [*self._feeds.values(), self._bound]
            values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
            if any(v.data_ptr() != a.ctypes.data for v, a in zip(values, arrays, strict=True)):
                return None  # a release that copies
            for name, value in zip(self._feeds, values, strict=False):
                binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(self._outputs[0], values[-1])
        except runtime_errors:
            return None
        self._kept = (binding, values)  # the binding does not keep the buffers alive
        run: Callable[..., None] = self.session.run_with_iobinding
        target, options = binding, self._options
        inner, inner_binding = getattr(self.session, "_sess", None), getattr(binding, "_iobinding", None)
        if inner is not None and inner_binding is not None:
            run, target = inner.run_with_iobinding, inner_binding
        return partial(run, target, options)

    def _fastest(
        self, read: Callable[[npt.NDArray[Any]], Callable[[], T] | None], find: Callable[[FloatArray], T]
    ) -> Callable[..., T]:
        """Return the shortest way from one row's numbers, and strings where the model takes some, to an answer.

        ``find`` makes it of what the ways above return; ``read(output)()`` of the bound output.
        """

        def slow(numbers: Sequence[Any], *strings: Sequence[Any]) -> T:
            return find(self.run_mixed(numbers, *strings) if strings else self.run_numbers(numbers))

        first, *looked_up = sorted(self._plan, key=lambda slot: slot.spec.element == "string")
        run, pack, buffer, refuses_nan = self._run_bound, first.pack, first.array, not first.takes_nan
        checks = [segment.check for segment in first.segments]
        answer = None
        if self._bound is not None and self.signature.output.form != "logits":
            answer = read(self._bound)
        if run is None or pack is None or answer is None or not self._is_simple(first, *looked_up):
            return slow
        lookups = [(row.pack, row.array, row.get, row.default) for row in self._row_lookups]
        arrays = len(looked_up)

        def fast(numbers: Sequence[Any], *strings: Sequence[Any]) -> T:
            if len(strings) != arrays:
                return slow(numbers, *strings)
            try:
                pack(buffer, 0, *numbers)
                for pack_codes, codes, get, default in lookups:
                    pack_codes(codes, 0, *[get(value, default) for value in strings[0]])
            except (struct.error, OverflowError, TypeError):
                return slow(numbers, *strings)  # NULL, a number past float32, or an error to name
            for check in checks:
                check()
            if refuses_nan and math.isnan(sum(numbers)):
                return slow(numbers, *strings)  # NaN, or infinities of both signs
            try:
                run()
            except runtime_errors as error:
                raise _failed(error) from error
            return answer()

        return fast

    def _fastest_vector(
        self, read: Callable[[npt.NDArray[Any]], Callable[[], T] | None]
    ) -> Callable[[Sequence[Any], Sequence[bytes | None]], T] | None:
        """Return the shortest way from one row's other numbers and its vector's bytes; None where there is none."""
        answer = None
        if self._bound is not None and self.signature.output.form != "logits":
            answer = read(self._bound)
        run, slot = self._run_bound, self._plan[0]
        if (
            run is None
            or answer is None
            or len(self._plan) > 1
            or len(slot.segments) != 1
            or slot.pack is None
        ):
            return None
        take, check, cells = slot.segments[0].take, slot.segments[0].check, slot.cells
        places = np.array([place for _, place in slot.singles], np.intp)
        others, number = len(places), partial(self.run_parts, strings=())

        def fast(numbers: Sequence[Any], vectors: Sequence[bytes | None]) -> T:
            if len(numbers) != others or len(vectors) != 1 or not slot.takes_nan:
                number(numbers, vectors=vectors)  # which says what is wrong
                return answer()
            if others:
                try:
                    with np.errstate(over="ignore"):
                        cells[places] = numbers
                except (TypeError, ValueError, OverflowError):
                    number(numbers, vectors=vectors)
                    return answer()
            take(vectors[0])
            check()
            try:
                run()
            except runtime_errors as error:
                raise _failed(error) from error
            return answer()

        return fast

    def _is_simple(self, first: Slot, *others: Slot) -> bool:
        """Return whether one input takes all numbers in order, and at most one other all strings, which are looked up."""
        specs = self.signature.features
        features = [specs[i] for slot in (first, *others) for i in slot.spec.features]
        return tuple(features) == self.signature.numbers_first and (
            not others
            or (len(others) == 1 and others[0].spec.name in self._looked_up and others[0].null is not None)
        )

    def terminate(self) -> None:
        """End the run that another thread is in, at its next operator; the model is of no use after that."""
        self._options.terminate = True

    # -- many rows

    def run_array(self, values: npt.NDArray[Any], batch: int = BATCH_ROWS) -> FloatArray:
        """Predict (n, d) numbers, columns in the order of the features, NaN for NULL.

        Returns
        -------
        (n, K) probabilities or (n, 1) values.

        Raises
        ------
        FeatureNotSupported, InvalidData, NullNotAllowed
            As `run_numbers`.
        """
        features = self.signature.features
        if values.ndim != 2 or values.shape[1] != self._width:
            raise self._wrong_count(values.shape[-1] if values.ndim else 0)
        for feature in features:
            if feature.is_string:
                raise FeatureNotSupported(
                    f'feature "{feature.name}" is a string, which an array of numbers cannot hold'
                )

        def feeds(rows: slice) -> dict[str, npt.NDArray[Any]]:
            out: dict[str, npt.NDArray[Any]] = {}
            for slot in self._plan:
                part = values[rows][:, slot.places]
                array = np.empty(part.shape, slot.spec.element)
                if slot.segments:
                    slot.check_vectors(part)
                if slot.plain:
                    with np.errstate(over="ignore", invalid="ignore"):
                        array[...] = part
                else:
                    for position, feature in enumerate(slot.features):
                        array[:, position] = checked(feature, slot.spec.element, part[:, position])
                out[slot.spec.name] = array if slot.spec.rank == 2 else array.reshape(-1)
            return out

        return self._run_batches(len(values), batch, feeds, 0)

    def run_frame(self, frame: Frame, batch: int = BATCH_ROWS, *, logits: bool = False) -> FloatArray:
        """Predict the rows of ``frame``, whose columns are found by name.

        Returns
        -------
        (n, K) probabilities or (n, 1) values; with ``logits``, the logits of a graph that gives them.

        Raises
        ------
        UndefinedColumn, DatatypeMismatch, NullNotAllowed, InvalidData
            As `encode`; InvalidData also where the model fails on the rows.
        """
        check = self._guard.check
        if sum(spec.words for spec in self.signature.inputs) > WIDE:

            def part(rows: slice) -> dict[str, npt.NDArray[Any]]:
                return encode(self.signature, frame.take(np.arange(rows.start, rows.stop)), check)

            longest = _longest_of(self.signature, frame) if self._texts else 0
        else:
            feeds = encode(self.signature, frame, check)
            texts = [slot.spec.name for slot in self._plan if slot.is_text]
            longest = max(map(_longest, (feeds[name] for name in texts)), default=0) if self._texts else 0

            def part(rows: slice) -> dict[str, npt.NDArray[Any]]:
                return {name: array[rows] for name, array in feeds.items()}

        return self._run_batches(len(frame), batch, part, longest, logits=logits)

    def _run_batches(
        self,
        n: int,
        batch: int,
        feeds: Callable[[slice], dict[str, npt.NDArray[Any]]],
        text_bytes: int,
        *,
        logits: bool = False,
    ) -> FloatArray:
        step = self._batch or min(batch, self._most_rows(text_bytes))
        out = np.empty((n, self.signature.width), np.float64)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            given = feeds(rows)
            fed = {name: array for name, array in given.items() if name not in self._looked_up}
            fed |= {lookup.target: lookup.numbers(given[lookup.source]) for lookup in self._lookups}
            try:
                run = partial(self._run, self._outputs, fed, self._options)
                raw = self._batch_run(run, rows.stop - start, text_bytes)[0]
            except runtime_errors as error:
                raise _failed(error) from error
            out[rows] = decode(self.signature, np.asarray(raw), rows.stop - start, logits=logits)
        return out

    def most_rows(self, frame: Frame) -> int:
        """Return how many rows of ``frame`` a run has at most; LimitExceeded where a string is too long for any."""
        longest = _longest_of(self.signature, frame) if self._texts else 0
        return self._batch or min(BATCH_ROWS, self._most_rows(longest))

    def _most_rows(self, text_bytes: int) -> int:
        """Return how many rows a run may have; LimitExceeded where not even one."""
        cost = self.signature.cost
        if cost is None:
            rows = UNKNOWN_ROWS if text_bytes <= MAX_TEXT_BYTES // UNKNOWN_ROWS else 1
            if text_bytes > MAX_TEXT_BYTES:
                raise _too_long(text_bytes)
            return rows
        rows = cost.rows(self._run_bytes, text_bytes)
        if rows < 1:
            raise _too_long(text_bytes)
        return rows

    def _batch_run(self, run: Callable[[], T], rows: int, text_bytes: int) -> T:
        """Make a run of many rows, under the guard where it may take long."""
        each = self._seconds_a_row
        guarded = (
            each is None
            or rows * each > SLOW_SECONDS
            or self._may_take_long(rows, text_bytes)
            or (rows == 1 and self.is_slow)
        )
        began = perf_counter()
        result = self._guard.run(run, self._stop) if guarded else run()
        took = (perf_counter() - began) / rows
        # At once slower, by and by faster: one run that had luck says little.
        self._seconds_a_row = took if each is None else max(took, (each + took) / 2)
        return result


def _longest(array: npt.NDArray[Any]) -> int:
    """Return the bytes that the longest of some strings may have."""
    return max(map(_most_bytes, array.reshape(-1).tolist()), default=0)


def _most_bytes(text: str) -> int:
    """Return how many bytes a string has at most, without a look at its characters."""
    return len(text) if text.isascii() else TEXT_BYTES_A_CHARACTER * len(text)


def _longest_of(signature: Signature, frame: Frame) -> int:
    """Return the bytes that the longest of a frame's strings may have."""
    names = [f.name for f in signature.features if f.is_string and f.name in frame.columns]
    texts = (text for name in names for text in frame.strings(name).categories)
    return max(map(_most_bytes, texts), default=0)


def _too_long(text_bytes: int) -> LimitExceeded:
    return LimitExceeded(
        f"a string of up to {text_bytes} bytes is too long for the model",
        hint="Shorten it in the query: left(column, n). Where it is memory that it takes, an administrator may raise the setting"
        " predict_memory_mb.",
    )


def _failed(error: Exception) -> InvalidData:
    return InvalidData("model failed on the features given", detail=first_line(error))


def first_line(error: Exception) -> str:
    """Return the first line of a library's message as a sentence, for DETAIL."""
    text = (str(error).splitlines() or [type(error).__name__])[0].strip()
    return text if text.endswith(".") else text + "."
