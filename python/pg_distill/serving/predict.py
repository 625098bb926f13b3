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
from typing import Any, TypeVar

from pg_distill import __version__
from pg_distill.database.interrupts import Watchdog
from pg_distill.database.protocol import Database
from pg_distill.errors import (
    ArtifactCorrupted,
    InvalidState,
    NullNotAllowed,
    UndefinedModel,
)
from pg_distill.onnx_model.session import RUN_BYTES
from pg_distill.onnx_model.signature import Cost, Signature
from pg_distill.onnx_model.text_model import open_model
from pg_distill.rows.canonical import stored_types
from pg_distill.serving import predictors
from pg_distill.serving.predictors import Cascade, OnnxPredictor, Predictor, SqlPredictor

__all__ = ["OFFERED", "find", "offer", "offer_here", "once", "warm_up", "withdraw"]

T = TypeVar("T")
SESSION_OVERHEAD_BYTES = 256 * 2**10
"""What a session of a small graph takes beside its weights; see tests/bench/serving.py."""

SESSION_BYTES_PER_ARTIFACT_BYTE = 3
"""How much larger than its file a session is: weights are packed again, trees become nodes with pointers."""

SESSION_BYTES_PER_WORD = 128
"""What a string of some ten characters takes in a dictionary, key, value and slot."""


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
        session = open_model(artifact, signature, guard=guard, run_bytes=run_bytes)
        predictor: Predictor = OnnxPredictor(name, session, {})
        opened[name] = (time.perf_counter() - start) * 1000.0
        if name in cascades:
            teacher, threshold = cascades[name]
            predictor = Cascade(name, predictor, _resolve(db, teacher), threshold)
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
    predictors.digits = row["digits"]
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
    return Cascade(model, predictor, teacher, row["threshold"])


def _resolve_sql(db: Database, name: str) -> Predictor:
    from pg_distill.registry import models as registry

    model = registry.find_model(db, name)
    if model.kind == "logged":
        raise InvalidState(
            f'model "{model.qualified_name}" is logged: it can be distilled, but it predicts elsewhere'
        )
    assert model.expression is not None
    return SqlPredictor(db, name, model, model.expression.text_for_caller(db))


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
    session = open_model(
        artifact, signature, types=types, guard=Watchdog(db.check_interrupts), run_bytes=run_bytes
    )
    size += SESSION_BYTES_PER_WORD * session.words
    _make_room(size, row["limit"] * 2**20)
    predictor = OnnxPredictor(row["name"], session, types, row["class_threshold"])
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
