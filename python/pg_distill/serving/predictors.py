"""What predicts: a model's graph, its SQL expression, or a cascade of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pg_distill.database.protocol import Database
from pg_distill.errors import (
    DatatypeMismatch,
    FeatureNotSupported,
    InvalidData,
    InvalidState,
    LimitExceeded,
    NullNotAllowed,
    UndefinedColumn,
)
from pg_distill.frame import Column, Feature, FloatArray, Frame, Strings
from pg_distill.onnx_model.signature import Signature
from pg_distill.onnx_model.values import read_number
from pg_distill.onnx_model.vectors import read_bytes, read_vector
from pg_distill.rows.canonical import base_of, decode_row, json_readers

if TYPE_CHECKING:
    from pg_distill.onnx_model.session import Model as Session
    from pg_distill.onnx_model.text_model import TextModel
    from pg_distill.registry.model import Model

__all__ = ["Cascade", "OnnxPredictor", "Predictor", "SqlPredictor", "digits"]

Features = (
    list[Any]
    | tuple[list[Any], list[Any]]
    | tuple[list[Any], list[Any], list[bytes | None]]
    | str
    | dict[str, Any]
    | None
)
"""A row: numbers in the order of the features; numbers and strings; other numbers, strings and the bytes of vectors; the
text of a JSON object; values by name."""

digits = 1
"""extra_float_digits, as it was when `predict.find` last resolved a name: what a row that to_jsonb wrote may have lost."""


MAX_ROW_CHARACTERS = 32 * 2**20
"""Of a row as jsonb: Python decodes so many in some 0.3 s, and looks for no interrupt meanwhile."""


SLICE_SECONDS = 0.05
"""How long many rows are predicted before interrupts are looked for, which costs some 10 us."""


FIRST_SLICE_ROWS = 16
"""Before anything is known of a model's speed; a later slice is at most `SLICE_GROWTH` times as long as the one before."""


SLICE_GROWTH = 16


class Predictor:
    """How to predict with a model, whatever its kind."""

    def __init__(
        self,
        name: str,
        signature: Signature,
        types: Mapping[str, str],
        class_threshold: float | None = None,
    ) -> None:
        self.name = name
        self.signature = signature
        self.types = types
        """The stored types of the features' columns."""
        self.least_digits = 1 if any(base_of(kind) == "float4" for kind in types.values()) else 0
        """What extra_float_digits has to be at least, for to_jsonb to write what the columns hold."""
        self.class_threshold = class_threshold
        self._slice_rows = FIRST_SLICE_ROWS

    def in_slices(self, db: Database, count: int, run: Callable[[slice], FloatArray]) -> FloatArray:
        """Return what ``run`` gives for ``count`` rows, run in slices short enough to look for interrupts in between."""
        parts = []
        start = 0
        while True:
            rows = slice(start, min(start + self._slice_rows, count))
            began = time.perf_counter()
            parts.append(run(rows))
            if rows.stop == count:
                return parts[0] if len(parts) == 1 else np.concatenate(parts)
            took = max(time.perf_counter() - began, 1e-6)
            fitting = int((rows.stop - rows.start) * SLICE_SECONDS / took)
            self._slice_rows = max(1, min(fitting, SLICE_GROWTH * self._slice_rows))
            start = rows.stop
            db.check_interrupts()

    def run(self, features: Features) -> FloatArray:
        """Return the (K,) probabilities, or (1,) the value, of one row."""
        raise NotImplementedError

    def run_many(self, rows: FloatArray) -> FloatArray:
        """Return (n, K) probabilities or (n, 1) values of (n, d) numbers, NaN for NULL."""
        raise NotImplementedError

    def run_frame(self, frame: Frame) -> FloatArray:
        """Return (n, K) probabilities or (n, 1) values of rows whose columns are found by name."""
        raise NotImplementedError

    def number(self, numbers: list[Any], strings: list[Any] | None = None) -> float:
        """Return the probability of the last class, or the value, for numbers, or numbers and strings, in order."""
        return self.last(numbers if strings is None else (numbers, strings))

    def vector(self, numbers: list[Any], strings: list[Any], vectors: list[bytes | None]) -> float:
        """Return the probability of the last class, or the value, for other numbers, strings, and vectors as bytes."""
        return self.last((numbers, strings, vectors))

    def last(self, features: Features) -> float:
        """Return the probability of the last class, or the value, for one row.

        Raises
        ------
        FeatureNotSupported
            The model has more than two classes.
        """
        self.require_number()
        return float(self.run(features)[-1])

    def require_number(self) -> None:
        """Raise FeatureNotSupported where one number cannot tell what the model says."""
        if self.signature.task == "multilabel":
            raise FeatureNotSupported(
                f'model "{self.name}" gives several labels a row, which one number cannot tell',
                hint="Use distill.predict_proba or distill.predict_classes.",
            )
        if self.signature.task == "multiclass":
            raise FeatureNotSupported(
                f'model "{self.name}" has {len(self.signature.classes)} classes, which one number cannot tell',
                hint="Use distill.predict_class or distill.predict_proba; of many rows distill.score_class.",
            )

    def require_probabilities(self) -> None:
        """Raise FeatureNotSupported for a regression."""
        if self.signature.task == "regression":
            raise FeatureNotSupported(f'model "{self.name}" is a regression', hint="Use distill.predict.")

    def require_classes(self) -> None:
        """Raise FeatureNotSupported where a row has not one class: of a regression, and of several labels."""
        self.require_probabilities()
        if self.signature.task == "multilabel":
            raise FeatureNotSupported(
                f'model "{self.name}" gives several labels a row, and not one class',
                hint="Use distill.predict_classes, or distill.predict_proba.",
            )

    def probabilities(self, features: Features) -> FloatArray:
        """Return the (K,) probabilities of the classes for one row; FeatureNotSupported for a regression."""
        self.require_probabilities()
        return self.run(features)

    def label_names(self, features: Features) -> list[str]:
        """Return those of several labels that a row has, in the order of the classes; none, some or all of them.

        Raises
        ------
        FeatureNotSupported
            The model gives no several labels.
        """
        if self.signature.task != "multilabel":
            what = "is a regression" if self.signature.task == "regression" else "gives one class a row"
            right = "distill.predict" if self.signature.task == "regression" else "distill.predict_class"
            raise FeatureNotSupported(f'model "{self.name}" {what}, not several labels', hint=f"Use {right}.")
        outputs = self.run(features).tolist()
        thresholds = self.signature.thresholds or (0.5,) * len(outputs)
        classes = self.signature.classes
        return [name for name, p, t in zip(classes, outputs, thresholds, strict=True) if p >= t]

    def class_name(self, features: Features) -> str:
        """Return the class for one row: see `class_names`; FeatureNotSupported as `require_classes`."""
        self.require_classes()
        return self.class_names(self.run(features)[None, :])[0]

    def class_names(self, outputs: FloatArray) -> list[str]:
        """Return the classes for (n, K) probabilities.

        The most probable ones; of two the last from the threshold on that the model's run found, where it found one.
        """
        if self.class_threshold is not None:
            positions = (outputs[:, 1] >= self.class_threshold).astype(np.intp)
        else:
            positions = outputs.argmax(axis=1)
        return [self.signature.classes[i] for i in positions.tolist()]


class OnnxPredictor(Predictor):
    """An ONNX graph, by ONNX Runtime."""

    def __init__(
        self,
        name: str,
        session: Session | TextModel,
        types: Mapping[str, str],
        class_threshold: float | None = None,
    ) -> None:
        super().__init__(name, session.signature, types, class_threshold)
        self.session = session
        self._number = session.predict_number
        self._position = session.predict_position
        self._vector = session.predict_vector
        self._hurry()
        # The closures refer to the session: without this way back, eviction frees all at once, and not when Python's
        # collector of cycles, which knows nothing of a session's size, comes by.
        del session.predict_number, session.predict_position, session.predict_vector

    def _hurry(self) -> None:
        """Answer by the shortest way, which nobody guards, where the model is fast."""
        if not self.session.is_slow and self.signature.one_number:
            self.number = self._number  # type: ignore[method-assign]

    def number(self, numbers: list[Any], strings: list[Any] | None = None) -> float:
        answer = super().number(numbers, strings)
        self._hurry()
        return answer

    def vector(self, numbers: list[Any], strings: list[Any], vectors: list[bytes | None]) -> float:
        if self._vector is None or self.session.is_slow or strings or not self.signature.one_number:
            return super().vector(numbers, strings, vectors)
        return float(self._vector(numbers, vectors))

    def run(self, features: Features) -> FloatArray:
        if isinstance(features, list):
            return self.session.run_numbers(features)
        if isinstance(features, tuple):
            return (
                self.session.run_mixed(*features) if len(features) == 2 else self.session.run_parts(*features)
            )
        return self.session.run_row(_row(self, features))

    def class_name(self, features: Features) -> str:
        self.require_classes()
        if self.session.is_slow or self.class_threshold is not None:
            return super().class_name(features)
        if isinstance(features, list):
            return self.signature.classes[self._position(features)]
        if isinstance(features, tuple) and len(features) == 2:
            return self.signature.classes[self._position(*features)]
        return super().class_name(features)

    def run_many(self, rows: FloatArray) -> FloatArray:
        return self.session.run_array(rows)

    def run_frame(self, frame: Frame) -> FloatArray:
        return self.session.run_frame(frame)


class Cascade(Predictor):
    """A student that answers where it is confident, and its teacher elsewhere.

    Confidence is the probability of the student's most probable class; from ``threshold`` on it answers itself.
    """

    def __init__(self, name: str, student: Predictor, teacher: Predictor, threshold: float) -> None:
        super().__init__(name, student.signature, student.types, student.class_threshold)
        self._student = student
        self._teacher = teacher
        self._threshold = threshold

    def run(self, features: Features) -> FloatArray:
        own = self._student.run(features)
        return own if own.max() >= self._threshold else self._teacher.run(features)

    def run_many(self, rows: FloatArray) -> FloatArray:
        own = self._student.run_many(rows)
        unsure = self._unsure(own)
        return self._asked(own, unsure, lambda: self._teacher.run_many(rows[unsure]))

    def run_frame(self, frame: Frame) -> FloatArray:
        own = self._student.run_frame(frame)
        unsure = self._unsure(own)
        return self._asked(own, unsure, lambda: self._teacher.run_frame(frame.take(unsure)))

    def _unsure(self, own: FloatArray) -> npt.NDArray[np.intp]:
        return np.flatnonzero(~(own.max(axis=1) >= self._threshold))  # NaN is unsure too

    @staticmethod
    def _asked(own: FloatArray, unsure: npt.NDArray[np.intp], ask: Callable[[], FloatArray]) -> FloatArray:
        if not len(unsure):
            return own
        answers = np.array(own, np.float64)
        answers[unsure] = ask()
        return answers


class SqlPredictor(Predictor):
    """A teacher that is a SQL expression: each prediction is a query."""

    def __init__(self, db: Database, name: str, model: Model, expression: str) -> None:
        super().__init__(name, model.signature, model.types)
        self._db = db
        self._model = model
        self._expression = expression
        self._readers = json_readers(model.signature.features, model.types)

    def run(self, features: Features) -> FloatArray:
        if isinstance(features, list):
            self._require_numbers(len(features))
            row: Mapping[str, Any] = _by_name(self.signature, features)
        elif isinstance(features, tuple):
            if len(features) == 2:
                row = _by_name(self.signature, self.signature.row(*features))
            else:
                row = self.signature.parts(*features)
                vectors = {
                    f.name: read_bytes(f, row[f.name]).tolist()
                    for f in self.signature.features
                    if f.is_vector
                }
                row = {**row, **vectors}
        else:
            row = _row(self, features)
            readers = {name: read for name, read in self._readers.items() if name in row}
            row = {**row, **{name: read(row[name]) for name, read in readers.items()}}
        return self.run_frame(_frame(self.signature, row)).reshape(-1)

    def _require_numbers(self, count: int) -> None:
        if not self.signature.is_numeric:
            raise FeatureNotSupported(
                f'model "{self.name}" takes strings',
                hint="Pass numbers and strings as two arrays, or the row as jsonb.",
            )
        expected = self.signature.cells
        if count != expected:
            raise InvalidData(f"expected {expected} features, not {count}")

    def run_many(self, rows: FloatArray) -> FloatArray:
        self._require_numbers(rows.shape[1])
        features = tuple(Feature(f.name, f.kind) for f in self.signature.features)
        columns: dict[str, Column] = {}
        for f, start in zip(self.signature.features, self.signature.starts, strict=True):
            columns[f.name] = rows[:, start : start + f.width] if f.is_vector else rows[:, start]
        return self.run_frame(Frame(features, columns))

    def run_frame(self, frame: Frame) -> FloatArray:
        from pg_distill.serving.sql_models import evaluate

        return evaluate(self._db, self._expression, self._model, frame.select(self.signature.names))


def _row(predictor: Predictor, features: Features) -> Mapping[str, Any]:
    if features is None:
        raise NullNotAllowed("features must not be NULL")
    if isinstance(features, str):
        if len(features) > MAX_ROW_CHARACTERS:
            raise LimitExceeded(
                f"a row has {len(features)} characters, limit is {MAX_ROW_CHARACTERS}",
                hint="Give only the columns that the model takes.",
            )
        if digits < predictor.least_digits:
            raise InvalidState(
                f"extra_float_digits is {digits}, by which to_jsonb rounds the numbers of a row",
                hint="SET extra_float_digits = 1, which is PostgreSQL's default.",
            )
        features = decode_row(features)
    if isinstance(features, dict):
        return features
    raise DatatypeMismatch("a row must be a jsonb object")


def _by_name(signature: Signature, values: Sequence[Any]) -> dict[str, Any]:
    """Return values, those of `Signature.numbers_first` one by one, by the features' names; a vector as a list."""
    return {
        f.name: list(values[start : start + f.width]) if f.is_vector else values[start]
        for f, start in zip(signature.features, signature.starts, strict=True)
    }


def _frame(signature: Signature, row: Mapping[str, Any]) -> Frame:
    columns: dict[str, Column] = {}
    for feature in signature.features:
        try:
            value = row[feature.name]
        except KeyError:
            raise UndefinedColumn(f'feature "{feature.name}" is missing from the row') from None
        if feature.is_string:
            if value is not None and not isinstance(value, str):
                raise DatatypeMismatch(f'feature "{feature.name}" is of kind string')
            columns[feature.name] = Strings.from_values([value])
        elif feature.is_vector:
            if isinstance(value, list):
                value = [math.nan if number is None else number for number in value]
            columns[feature.name] = np.array([read_vector(feature, value)])
        else:
            columns[feature.name] = np.array([read_number(feature, value)])
    return Frame(tuple(Feature(f.name, f.kind) for f in signature.features), columns)
