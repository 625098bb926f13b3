"""predict: what a model's name means in the running statement, its session from the backend's cache, and the answer.

A name is resolved by SQL, in the statement's snapshot and under the current role, and remembered for as long as
nothing could have changed the answer: see `_Moment`. What a version is never changes, so that a session, once opened,
is right in every later statement and after every ROLLBACK.

Imported by every backend that predicts: it imports what a prediction needs, and the rest where it is needed.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from pg_distill import __version__
from pg_distill.database.backend import Database
from pg_distill.database.interrupts import Watchdog
from pg_distill.errors import (
    ArtifactCorrupted,
    DatatypeMismatch,
    FeatureNotSupported,
    InvalidData,
    InvalidState,
    LimitExceeded,
    NullNotAllowed,
    UndefinedColumn,
    UndefinedModel,
)
from pg_distill.frame import Column, Feature, FloatArray, Frame, Strings
from pg_distill.onnx_model.session import RUN_BYTES
from pg_distill.onnx_model.session import Model as Session
from pg_distill.onnx_model.signature import Cost, Signature
from pg_distill.onnx_model.values import read_number
from pg_distill.rows.canonical import base_of, decode_row, json_readers, stored_types

if TYPE_CHECKING:
    from pg_distill.registry.model import Model

__all__ = [
    "OFFERED",
    "Predictor",
    "array_cells",
    "find",
    "offer",
    "offer_here",
    "once",
    "predict_batch",
    "predict_class_batch",
    "warm_up",
    "withdraw",
]

T = TypeVar("T")

Features = list[Any] | tuple[list[Any], list[Any]] | str | dict[str, Any] | None
"""A row: numbers in the order of the features; numbers and strings; the text of a JSON object; values by name."""

SESSION_OVERHEAD_BYTES = 256 * 2**10
"""What a session of a small graph takes beside its weights; see tests/bench/serving.py."""

SESSION_BYTES_PER_ARTIFACT_BYTE = 3
"""How much larger than its file a session is: weights are packed again, trees become nodes with pointers."""

SESSION_BYTES_PER_WORD = 128
"""What a string of some ten characters takes in a dictionary, key, value and slot."""

MAX_ROW_CHARACTERS = 32 * 2**20
"""Of a row as jsonb: Python decodes so many in some 0.3 s, and looks for no interrupt meanwhile."""

MAX_BATCH_ROWS = 500_000
"""Rows of one array: PL/Python makes an array of so many predictions in some 0.2 s, and looks for no interrupt meanwhile."""

SLICE_SECONDS = 0.05
"""How long many rows are predicted before interrupts are looked for, which costs some 10 us."""

FIRST_SLICE_ROWS = 16
"""Before anything is known of a model's speed; a later slice is at most `SLICE_GROWTH` times as long as the one before."""

SLICE_GROWTH = 16


# -- what a name means in the running statement


def _backend_clock() -> Callable[[], tuple[int, ...]] | None:
    """Return a function that tells where this backend stands; None where the process does not say.

    Of what decides the answer to a query, SQL can cheaply show the snapshot, which says which other transactions
    are seen. The rest is asked of the server's own functions: role, statement, subtransaction, and the number of the
    command, which says how much of our own transaction is seen. These take no pointers, raise no errors and have been
    exported since PostgreSQL 8; a server without one of them resolves names at every call, which costs time only.
    """
    try:
        process = ctypes.PyDLL(None)
        role, statement = process.GetUserId, process.GetCurrentStatementStartTimestamp
        subtransaction, command = process.GetCurrentSubTransactionId, process.GetCurrentCommandId
    except (OSError, AttributeError, TypeError):
        return None
    for function, result in (
        (role, ctypes.c_uint32),
        (statement, ctypes.c_int64),
        (subtransaction, ctypes.c_uint32),
        (command, ctypes.c_uint32),
    ):
        function.restype = result
        function.argtypes = ()
    command.argtypes = (ctypes.c_bool,)
    return lambda: (role(), statement(), subtransaction(), command(False))


_clock = _backend_clock()

# What was found at `_now`, and only then: predictors by name, and `once`'s answers by their keys.
_now: tuple[bytes, tuple[int, ...]] | None = None
_found: dict[Hashable, Any] = {}


def once(snapshot: bytes | None, key: Hashable, find: Callable[[], T]) -> T:
    """Return what ``find`` returned in this statement for ``key``, or call it.

    Parameters
    ----------
    snapshot
        ``pg_snapshot_send(pg_current_snapshot())`` of the statement. It changes within a client's statement too: in
        a DO block each statement has its own.

    Notes
    -----
    What was found stays found until the statement ends: a setting that a function changes in its middle (search_path,
    row_security) is seen by the next.
    """
    global _now
    if _clock is None or snapshot is None:
        return find()
    if _now == (snapshot, _clock()):
        answer: T | None = _found.get(key)
        if answer is not None:
            return answer
    answer = find()
    # The search itself may have moved the clock (a policy on the registry that predicts, the end of a subtransaction).
    now = (snapshot, _clock())
    if _now != now:
        _found.clear()
        _now = now
    _found[key] = answer
    return answer


def find(db: Database, model: str | None, snapshot: bytes | None) -> Predictor:
    """Return the predictor of ``name`` (its active version) or ``name:version``.

    Raises
    ------
    UndefinedModel
        There is none, in the statement's snapshot, that the current role may see.
    """
    if _clock is not None and _now == (snapshot, _clock()):
        predictor: Predictor | None = _found.get(model)
        if predictor is not None:
            return predictor
    return once(snapshot, model, lambda: _resolve(db, model))


# -- predictors


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
        if self.signature.task == "multiclass":
            raise FeatureNotSupported(
                f'model "{self.name}" has {len(self.signature.classes)} classes, which one number cannot tell',
                hint="Use distill.predict_class or distill.predict_proba; of many rows distill.score_class.",
            )

    def require_classes(self) -> None:
        """Raise FeatureNotSupported for a regression."""
        if self.signature.task == "regression":
            raise FeatureNotSupported(f'model "{self.name}" is a regression', hint="Use distill.predict.")

    def probabilities(self, features: Features) -> FloatArray:
        """Return the (K,) probabilities of the classes for one row; FeatureNotSupported for a regression."""
        self.require_classes()
        return self.run(features)

    def class_name(self, features: Features) -> str:
        """Return the class for one row: see `class_names`; FeatureNotSupported for a regression."""
        return self.class_names(self.probabilities(features)[None, :])[0]

    def class_names(self, outputs: FloatArray) -> list[str]:
        """Return the classes for (n, K) probabilities.

        The most probable ones; of two the last from the threshold on that the model's run found, where it found one.
        """
        if self.class_threshold is not None:
            positions = (outputs[:, 1] >= self.class_threshold).astype(np.intp)
        else:
            positions = outputs.argmax(axis=1)
        return [self.signature.classes[i] for i in positions.tolist()]


class _OnnxPredictor(Predictor):
    def __init__(
        self,
        name: str,
        session: Session,
        types: Mapping[str, str],
        class_threshold: float | None = None,
    ) -> None:
        super().__init__(name, session.signature, types, class_threshold)
        self.session = session
        self._number = session.predict_number
        self._position = session.predict_position
        self._hurry()
        # The closures refer to the session: without this way back, eviction frees all at once, and not when Python's
        # collector of cycles, which knows nothing of a session's size, comes by.
        del session.predict_number, session.predict_position

    def _hurry(self) -> None:
        """Answer by the shortest way, which nobody guards, where the model is fast."""
        if not self.session.is_slow and self.signature.task != "multiclass":
            self.number = self._number  # type: ignore[method-assign]

    def number(self, numbers: list[Any], strings: list[Any] | None = None) -> float:
        answer = super().number(numbers, strings)
        self._hurry()
        return answer

    def run(self, features: Features) -> FloatArray:
        if isinstance(features, list):
            return self.session.run_numbers(features)
        if isinstance(features, tuple):
            return self.session.run_mixed(*features)
        return self.session.run_row(_row(self, features))

    def class_name(self, features: Features) -> str:
        self.require_classes()
        if self.session.is_slow or self.class_threshold is not None:
            return super().class_name(features)
        if isinstance(features, list):
            return self.signature.classes[self._position(features)]
        if isinstance(features, tuple):
            return self.signature.classes[self._position(*features)]
        return super().class_name(features)

    def run_many(self, rows: FloatArray) -> FloatArray:
        return self.session.run_array(rows)

    def run_frame(self, frame: Frame) -> FloatArray:
        return self.session.run_frame(frame)


class _Cascade(Predictor):
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


class _SqlPredictor(Predictor):
    """A teacher that is a SQL expression: each prediction is a query."""

    def __init__(self, db: Database, name: str, model: Model, expression: str) -> None:
        super().__init__(name, model.signature, model.types)
        self._db = db
        self._model = model
        self._expression = expression
        self._readers = json_readers(model.signature.features, model.types)

    def run(self, features: Features) -> FloatArray:
        if isinstance(features, list):
            row: Mapping[str, Any] = dict(zip(self._names(len(features)), features, strict=True))
        elif isinstance(features, tuple):
            names = (feature.name for feature in self.signature.numbers_first)
            row = dict(zip(names, self.signature.row(*features), strict=True))
        else:
            row = _row(self, features)
            readers = {name: read for name, read in self._readers.items() if name in row}
            row = {**row, **{name: read(row[name]) for name, read in readers.items()}}
        return self.run_frame(_frame(self.signature, row)).reshape(-1)

    def _names(self, count: int) -> Sequence[str]:
        if not self.signature.is_numeric:
            raise FeatureNotSupported(
                f'model "{self.name}" takes strings',
                hint="Pass numbers and strings as two arrays, or the row as jsonb.",
            )
        names = self.signature.names
        if count != len(names):
            raise InvalidData(f"expected {len(names)} features, not {count}")
        return names

    def run_many(self, rows: FloatArray) -> FloatArray:
        names = self._names(rows.shape[1])
        features = tuple(Feature(f.name, f.kind) for f in self.signature.features)
        return self.run_frame(Frame(features, {name: rows[:, i] for i, name in enumerate(names)}))

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
        if _digits < predictor.least_digits:
            raise InvalidState(
                f"extra_float_digits is {_digits}, by which to_jsonb rounds the numbers of a row",
                hint="SET extra_float_digits = 1, which is PostgreSQL's default.",
            )
        features = decode_row(features)
    if isinstance(features, dict):
        return features
    raise DatatypeMismatch("a row must be a jsonb object")


_digits = 1
"""extra_float_digits, as it was when a name was last resolved."""


def _frame(signature: Signature, row: Mapping[str, Any]) -> Frame:
    columns: dict[str, Column] = {}
    for feature in signature.features:
        try:
            value = row[feature.name]
        except KeyError:
            raise UndefinedColumn(f'feature "{feature.name}" is missing from the row') from None
        if feature.kind == "string":
            if value is not None and not isinstance(value, str):
                raise DatatypeMismatch(f'feature "{feature.name}" is of kind string')
            columns[feature.name] = Strings.from_values([value])
        else:
            columns[feature.name] = np.array([read_number(feature, value)])
    return Frame(tuple(Feature(f.name, f.kind) for f in signature.features), columns)


# -- from a name to a predictor

# Sessions by model id, least recently used first, with the memory that each is taken to need.
_sessions: OrderedDict[str, tuple[Predictor, int]] = OrderedDict()

OFFERED = "\x1f"
"""How the names of offered models begin: no registered model can have such a name."""

OFFER_BYTES = 64 * 2**20
"""Files that are offered in one message: a byte takes two and more on its way, and a message has 1 GB."""

# Students that are timed before they are registered.
_offered: dict[str, Predictor] = {}


@contextmanager
def offer(
    db: Database,
    models: Mapping[str, tuple[bytes, Signature]],
    cascades: Mapping[str, tuple[str, float]] | None = None,
) -> Iterator[Mapping[str, float]]:
    """Let the backend's predict find unregistered models too, so that they are timed on its own path.

    ``cascades`` has for some of the models the teacher that is asked, a registered model, and the threshold. Gives the
    milliseconds that the backend took to open each model.
    """
    try:
        if db.in_backend:
            opened = offer_here(db, models, cascades or {})
        else:
            opened = {}
            for part in _parts(models):
                schemas = [models[name][1].to_json() for name in part]
                [row] = db.query(
                    "select distill._offer_models($1, $2, $3, $4) as opened",
                    ("text[]", part),
                    ("bytea[]", ["\\x" + models[name][0].hex() for name in part]),
                    ("text", json.dumps(schemas)),
                    ("text", json.dumps(cascades or {})),
                    keep=False,
                )
                opened |= dict(zip(part, row["opened"], strict=True))
        yield opened
    finally:
        if db.in_backend:
            withdraw(models)
        # A client's backend ends with its connection, which an error may have cut already.


def _parts(models: Mapping[str, tuple[bytes, Signature]]) -> list[list[str]]:
    """Return the names in groups whose files fit into one message together; one that does not fit goes alone."""
    parts: list[list[str]] = []
    room = 0
    for name, (artifact, _) in models.items():
        room -= len(artifact)
        if room < 0 or not parts:
            parts.append([])
            room = OFFER_BYTES - len(artifact)
        parts[-1].append(name)
    return parts


def offer_here(
    db: Database, models: Mapping[str, tuple[bytes, Signature]], cascades: Mapping[str, tuple[str, float]]
) -> dict[str, float]:
    """Let this backend's predict find ``models``, until they are withdrawn; return the milliseconds that each took to open."""
    from pg_distill.registry import settings

    opened = {}
    guard, run_bytes = Watchdog(db.check_interrupts), settings.get_setting(db, "predict_memory_mb") * 2**20
    for name, (artifact, signature) in models.items():
        start = time.perf_counter()
        session = Session(artifact, signature, guard=guard, run_bytes=run_bytes)
        predictor: Predictor = _OnnxPredictor(name, session, {})
        opened[name] = (time.perf_counter() - start) * 1000.0
        if name in cascades:
            teacher, threshold = cascades[name]
            predictor = _Cascade(name, predictor, _resolve(db, teacher), threshold)
        _offered[name] = predictor
    _found.clear()
    return opened


def withdraw(models: Iterable[str]) -> None:
    """Let this backend's predict forget offered models."""
    _found.clear()
    for name in models:
        _offered.pop(name, None)


_FIND = (
    "select m.id, m.kind, m.threshold, m.teacher_id,"
    " pg_catalog.current_setting('extra_float_digits')::pg_catalog.int4 as digits"
    " from distill.models m where m.name operator(pg_catalog.=) $1 and "
)


def _resolve(db: Database, model: str | None) -> Predictor:
    if model is None:
        raise NullNotAllowed("model must not be NULL")
    db.check_search_path()
    name, colon, version = model.partition(":")
    if colon:
        rows = db.query_exact(
            _FIND + "m.version operator(pg_catalog.=) $2", ("text", name), ("text", version)
        )
    else:
        rows = db.query_exact(_FIND + "m.active", ("text", name))
    if not rows:
        if model in _offered:
            return _offered[model]
        raise UndefinedModel(f'model "{model}" does not exist')
    row = rows[0]
    global _digits
    _digits = row["digits"]
    if row["kind"] != "onnx":
        return _resolve_sql(db, model)
    key: str = row["id"]
    known = _sessions.get(key)
    if known is None:
        predictor = _open(db, key)
    else:
        _sessions.move_to_end(key)
        predictor = known[0]
    if row["threshold"] is None:
        return predictor
    # Resolved anew in each statement, under the role that asks: it must be allowed to see the teacher too. One level only: a
    # row that a superuser wrote could make a circle.
    teachers = db.query_exact(
        "select pg_catalog.concat(m.name, ':', m.version) as name from distill.models m"
        " where m.id operator(pg_catalog.=) $1 and m.threshold is null",
        ("uuid", row["teacher_id"]),
    )
    if not teachers:
        raise UndefinedModel(f'the teacher behind cascade "{model}" does not exist')
    teacher = _resolve(db, teachers[0]["name"])
    own, its = predictor.signature, teacher.signature
    if (own.task, own.classes) != (its.task, its.classes):
        raise InvalidState(f'cascade "{model}" has other classes than its teacher "{teacher.name}"')
    return _Cascade(model, predictor, teacher, row["threshold"])


def _resolve_sql(db: Database, name: str) -> Predictor:
    from pg_distill.registry import models as registry

    model = registry.find_model(db, name)
    if model.kind == "logged":
        raise InvalidState(
            f'model "{model.qualified_name}" is logged: it can be distilled, but it predicts elsewhere'
        )
    assert model.expression is not None
    return _SqlPredictor(db, name, model, model.expression.text_for_caller(db))


def _open(db: Database, model_id: str) -> Predictor:
    rows = db.query_exact(
        "select pg_catalog.concat(m.name, ':', m.version) as name, m.artifact, m.input_schema::pg_catalog.text as input_schema,"
        " m.output_schema::pg_catalog.text as output_schema,"
        " pg_catalog.encode(pg_catalog.sha256(m.artifact), 'hex') operator(pg_catalog.=) m.sha256 as intact,"
        " case when pg_catalog.has_function_privilege('distill._run_cost(pg_catalog.text, pg_catalog.text, pg_catalog.text)',"
        " 'execute') then distill._run_cost(m.sha256, distill._schema_digest(m.input_schema, m.output_schema), $3) end as cost,"
        " coalesce((select s.value::pg_catalog.int8 from distill.settings s"
        " where s.name operator(pg_catalog.=) 'session_cache_mb'::pg_catalog.text), $2) as limit,"
        " (select s.value::pg_catalog.int8 from distill.settings s"
        " where s.name operator(pg_catalog.=) 'predict_memory_mb'::pg_catalog.text) as run_mb,"
        " m.class_threshold from distill.models m where m.id operator(pg_catalog.=) $1",
        ("uuid", model_id),
        ("int8", SESSION_CACHE_MB),
        ("text", __version__),
    )
    if not rows:  # a volatile caller's second query sees what others have done since the first
        raise UndefinedModel("the model was dropped meanwhile")
    row = rows[0]
    if not row["intact"]:
        raise ArtifactCorrupted(f'artifact of model "{row["name"]}" does not match its digest')
    input_schema = json.loads(row["input_schema"])
    signature = Signature.from_json(input_schema, json.loads(row["output_schema"]))
    types = stored_types(input_schema)
    artifact: bytes = row["artifact"]
    if row["cost"] is None:
        # It was restored, or written by a superuser: a child opens it first.
        from pg_distill.serving import approval

        [signature] = approval.approve_registered(db, {model_id: (artifact, signature)})
    else:
        signature = replace(signature, cost=Cost.from_json(json.loads(row["cost"])))
    size = SESSION_OVERHEAD_BYTES + SESSION_BYTES_PER_ARTIFACT_BYTE * len(artifact)
    size += signature.cost.held_bytes if signature.cost is not None else 0
    # Room is made first, so that the limit holds while the new session is opened too.
    _make_room(size, row["limit"] * 2**20)
    run_bytes = RUN_BYTES if row["run_mb"] is None else row["run_mb"] * 2**20
    session = Session(
        artifact, signature, types=types, guard=Watchdog(db.check_interrupts), run_bytes=run_bytes
    )
    size += SESSION_BYTES_PER_WORD * session.words
    _make_room(size, row["limit"] * 2**20)
    predictor = _OnnxPredictor(row["name"], session, types, row["class_threshold"])
    _sessions[model_id] = predictor, size
    return predictor


def _make_room(size: int, limit: int) -> None:
    """Forget the sessions least recently used until another of ``size`` bytes fits."""
    while _sessions and sum(taken for _, taken in _sessions.values()) + size > limit:
        _sessions.popitem(last=False)
        _found.clear()


SESSION_CACHE_MB = 256  # registry.SETTINGS has it too, which a backend that predicts does not import


def warm_up(db: Database, models: Sequence[str]) -> list[tuple[str, float]]:
    """Open the sessions of ``models``; return each with the milliseconds that it took."""
    took = []
    for model in models:
        start = time.perf_counter()
        _resolve(db, model)
        took.append((model, (time.perf_counter() - start) * 1000.0))
    return took


def array_cells(arrays: bytes, width: int) -> FloatArray:
    """Return the (n, width) numbers of n arrays of one dimension, as `distill._array_bytes` gives them.

    That is how the server keeps a float8[] without NULLs: a header (dimensions, offset of the data, element type,
    and size and lower bound of each dimension, four bytes each), then the numbers.
    """
    return np.frombuffer(arrays, np.dtype([("header", "V20"), ("cells", np.float64, (width,))]))["cells"]


def predict_batch(db: Database, predictor: Predictor, array: bytes | None) -> list[float]:
    """Return the prediction of each row of a two-dimensional array of numbers, given as its bytes."""
    predictor.require_number()
    return _run_batch(db, predictor, array)[:, -1].tolist()  # type: ignore[no-any-return]


def predict_class_batch(db: Database, predictor: Predictor, array: bytes | None) -> list[str]:
    """Return the class of each row of a two-dimensional array of numbers, given as its bytes: see `Predictor.class_names`."""
    predictor.require_classes()
    return predictor.class_names(_run_batch(db, predictor, array))


def _run_batch(db: Database, predictor: Predictor, array: bytes | None) -> FloatArray:
    """Return the outputs (n, K) for the rows of an array."""
    if array is None:
        raise NullNotAllowed("features must not be NULL")
    if len(array) < 4:
        raise InvalidData("features must be the bytes of an array")
    header = np.frombuffer(array, np.int32, min(len(array), 20) // 4)
    dimensions = int(header[0])
    if dimensions == 0:
        return np.empty((0, 1))
    if dimensions != 2:
        raise InvalidData(f"features must be an array of 2 dimensions, rows and columns, not {dimensions}")
    rows, columns = (int(n) for n in header[3:5]) if len(header) == 5 else (-1, -1)
    # The internal function may be called by anybody who may predict, with bytes that are no array.
    if rows < 0 or columns < 0 or len(array) != _ARRAY_HEADER_BYTES + 8 * rows * columns:
        raise InvalidData("features must be the bytes of an array")
    if rows > MAX_BATCH_ROWS:
        raise LimitExceeded(
            f"features have {rows} rows, limit is {MAX_BATCH_ROWS}",
            hint="Use distill.score, which takes any number.",
        )
    cells = np.frombuffer(array, np.float64, rows * columns, _ARRAY_HEADER_BYTES).reshape(rows, columns)
    return predictor.in_slices(db, rows, lambda part: predictor.run_many(cells[part]))


_ARRAY_HEADER_BYTES = (
    28  # of two dimensions: number of them, offset, element type, two sizes, two lower bounds
)
