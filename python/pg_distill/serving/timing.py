"""Call latency, measured where it is spent: in the backend, on the path that a user's query takes.

One block is one SELECT that reads the clock before and after each call over rows that are already there, so
neither client nor SPI nor planning is timed. clock_timestamp() has steps of 1 us: the difference of two readings is off
by up to a step but not biased, so means over a block hold below a step too; percentiles of single calls are
given only where calls are long enough for it. Contenders take turns in random order, block by block, so that a
noisy neighbour or a change of clock speed hits all of them. Each block begins with calls that do not count: the
contender before has filled the processor's caches with its own model, for which a query over a table pays once.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pg_distill.database.exact import needs_pgvector
from pg_distill.database.pgvector import pgvector_schema
from pg_distill.database.protocol import Argument, Database
from pg_distill.frame import FloatArray, Frame
from pg_distill.measure.latency import Latency, latency_statistics
from pg_distill.onnx_model.signature import Signature
from pg_distill.quoting import array_text, number_array_text, quote_identifier, quote_literal
from pg_distill.registry.model import MeasuredOn, Model
from pg_distill.registry.runs import server_figures
from pg_distill.rows.canonical import constant_sql, from_canonical, rows_sql, vector_text
from pg_distill.serving.sql_forms import expression_of
from pg_distill.students.expression import form

__all__ = [
    "SQL_PATH",
    "Contender",
    "Timing",
    "contender_for",
    "describe_machine",
    "how_timed",
    "latency_figures",
    "measure_latency",
    "measured_here",
    "predict_contender",
    "predict_path",
    "require_expressions",
    "rough_ms",
    "sql_contender",
    "sql_path",
    "statement_latency_ms",
    "statement_seconds",
]

BLOCKS = 20  # a contender: enough for a t interval over block means
MOST_TIMES = 3  # as many blocks of a contender of which it is open whether it meets the target
BLOCK_SECONDS = 0.06  # long against the clock's step and a time slice of the scheduler's
LEAD_SHARE = 0.4  # of a block, at its beginning, that does not count
MIN_BLOCK_CALLS, MAX_BLOCK_CALLS, MAX_LEAD_CALLS = 3, 500, 200
WARM_UP_CALLS = 100
ROUGH_CELLS = 20_000  # of the rows of a block that only tells contenders roughly apart
STATEMENTS = 7  # of one row each; the median of so few is steady to some 10 %
STATEMENTS_SECONDS = 0.5  # after so long no more of them
SQL_PATH = "the expression in a query"
SQL_PATH_BY_PGVECTOR = "the expression in a query, by pgvector"
_ROWS = quote_identifier("pg_distill rows")  # no table that an expression reads is called so
WARM_UP_SECONDS = 1.0  # a slow contender is warm after fewer calls


@dataclass(frozen=True)
class Contender:
    """Something whose call is timed: ``call`` is SQL over a row ``s`` of what ``source`` makes of a frame."""

    name: str
    path: str
    call: str
    source: Callable[[Frame], tuple[str, tuple[Argument, ...]]]
    foreign_text: bool = False
    """Whether the SQL holds text that a user wrote."""


@dataclass(frozen=True)
class Timing:
    """A contender's latency, and its first call of this backend, which loads the model."""

    latency: Latency
    cold_ms: float
    path: str


def predict_path(signature: Signature) -> str:
    """Name the predict form that a query would use for a model.

    Of more than two classes that is the class, of several labels the classes: PL/Python makes an array of their probabilities
    number by number, which takes longer than a small student (16 us of 27 with 26 classes).
    """
    functions = {"multiclass": "predict_class", "multilabel": "predict_classes"}
    function = functions.get(signature.task, "predict")
    arrays = "float8[]" if signature.is_numeric else "float8[], text[]"
    if sum(f.is_vector for f in signature.features) == 1:
        arrays = "float8[], text[], float4[]"
    return f"distill.{function}(text, {arrays})"


def contender_for(db: Database, model: Model) -> Contender:
    """Return the contender of a registered model: predict by its name and version, or its expression.

    Raises
    ------
    InsufficientPrivilege
        Another role stored the expression.
    """
    if model.is_timed_as_sql:
        assert model.expression is not None
        text = model.expression.text_for_caller(db)
        expression = text if model.kind == "sql" else expression_of(text, pgvector_schema(db))
        return sql_contender(model.qualified_name, expression, model.signature, model.types)
    return predict_contender(model.qualified_name, model.signature)


def require_expressions(db: Database, *models: Model) -> None:
    """Raise InsufficientPrivilege now where an expression that is going to be run is another role's."""
    for model in models:
        if model.is_timed_as_sql and model.expression is not None:
            model.expression.text_for_caller(db)


def sql_contender(name: str, expression: str, signature: Signature, types: Mapping[str, str]) -> Contender:
    """Return the contender of an expression over columns that are named as the features."""
    return Contender(
        name,
        SQL_PATH_BY_PGVECTOR if needs_pgvector(expression) else SQL_PATH,
        f"({expression}\n)",
        lambda rows: (rows_sql(signature.features, types, rows), ()),
        foreign_text=True,
    )


def predict_contender(name: str, signature: Signature) -> Contender:
    """Return the contender of whatever predict finds under ``name``."""
    path = predict_path(signature)
    arguments = "s.numbers" if signature.is_numeric else "s.numbers, s.strings"
    if "float4" in path:
        arguments = "s.numbers, s.strings, s.vector"
    call = f"{path.partition('(')[0]}({quote_literal(name)}, {arguments})"
    return Contender(name, path, call, lambda rows: _arrays(rows.select(signature.names)))


def statement_latency_ms(
    db: Database, expression: str, signature: Signature, types: Mapping[str, str], rows: Frame
) -> float:
    """Return the milliseconds of a statement that evaluates ``expression`` for one row: parsed, planned and executed.

    That is what a client pays for a single answer, less the way to the server. The median over the first rows, each in a
    statement of its own: of fewer where they take long, so that a long expression holds up no run. The columns of a row are
    constants behind OFFSET 0, which costs less than any table, but keeps the planner from computing the answer itself.
    """
    frame = rows.select(signature.names)
    took = []
    for position in range(min(STATEMENTS, len(frame))):
        cells, columns = [], []
        for feature in signature.features:
            name, type_name = quote_identifier(feature.name), types.get(feature.name)
            cells.append(f"{constant_sql(feature, types, frame.columns[feature.name], position)} AS {name}")
            columns.append(f"{from_canonical(f'u.{name}', feature.kind, type_name)} AS {name}")
        row = (
            f" AS p FROM (SELECT {', '.join(columns)} FROM (SELECT {', '.join(cells)} OFFSET 0) u OFFSET 0) s"
        )
        took.append(statement_seconds(db, f"SELECT ({expression}\n){row}", parts=(expression, row)))
        db.check_interrupts()
        if sum(took) > STATEMENTS_SECONDS:
            break
    return float(np.median(took)) * 1000.0


def statement_seconds(db: Database, statement: str, parts: Sequence[str] = ()) -> float:
    """Return the seconds that the server takes for a query, run read-only: parsed, planned and executed.

    ``parts`` are what it was made of: which functions a long one calls is read once, and not for each statement that has it.
    """
    if not db.in_backend:  # there, so that the way to the server is not timed
        [row] = db.query_exact("select distill._statement_seconds($1) as seconds", ("text", statement))
        return float(row["seconds"])
    return db.caged(parts or [statement], lambda: _seconds(db, statement))


def _seconds(db: Database, statement: str) -> float:
    start = time.perf_counter()
    db.query_once(statement)
    return time.perf_counter() - start


def _arrays(rows: Frame) -> tuple[str, tuple[Argument, ...]]:
    """Give each row's numbers and strings as two arrays; where one column is of vectors, it is beside them."""
    alone = rows.vector_names if len(rows.vector_names) == 1 else ()
    types = {"numbers": "float8[]", "strings": "text[]", **({"vector": "float4[]"} if alone else {})}
    columns = ", ".join(f"u.{name}::pg_catalog.{kind} AS {name}" for name, kind in types.items())
    arrays = ", ".join(f"pg_catalog.unnest(${i}::pg_catalog.text[])" for i in range(1, len(types) + 1))
    source = f"(SELECT {columns} FROM ROWS FROM ({arrays}) AS u({', '.join(types)}))"
    words = [rows.strings(name).to_objects() for name in (f.name for f in rows.features if f.is_string)]
    strings = [array_text(row) for row in zip(*words, strict=True)] or ["{}"] * len(rows)
    numbers = rows.numbers() if alone else rows.cells()
    arguments: list[Argument] = [
        ("text[]", [number_array_text(row) for row in numbers.tolist()]),
        ("text[]", strings),
    ]
    if alone:
        arguments.append(("text[]", [vector_text(row) for row in rows.vector(alone[0])]))
    return source, tuple(arguments)


def _time_block(db: Database, contender: Contender, rows: Frame, lead: int = 0) -> FloatArray:
    """Return the milliseconds of each call of one block but the first ``lead``."""
    source, arguments = contender.source(rows)
    # OFFSET 0 keeps the calls between the clock readings; count(p) keeps them from being planned away.
    statement = (
        f"WITH {_ROWS} AS MATERIALIZED (SELECT * FROM {source} s)"
        " SELECT pg_catalog.array_agg(pg_catalog.date_part('epoch', t.t1 OPERATOR(pg_catalog.-) t.t0)) AS seconds,"
        " pg_catalog.count(t.p) AS n"
        f" FROM (SELECT pg_catalog.clock_timestamp() AS t0, {contender.call} AS p, pg_catalog.clock_timestamp() AS t1"
        f" FROM {_ROWS} s OFFSET 0) t"
    )
    if contender.foreign_text:
        row = db.caged([contender.call], lambda: db.query_once(statement))[0]
    else:
        # Under the caller's search_path: predict may have to run a SQL teacher.
        row = db.query_exact(statement, *arguments, keep=False)[0]
    return np.array(row["seconds"], np.float64)[lead:] * 1000.0


def measure_latency(
    db: Database,
    contenders: Sequence[Contender],
    rows: Frame,
    *,
    seed: int,
    seconds: float,
    target_ms: float = math.nan,
) -> Mapping[str, Timing]:
    """Time the contenders in turns over ``rows``, which have the features of each of them.

    Parameters
    ----------
    seconds
        About how long this may take; blocks become shorter, then fewer, where a contender is slow.
    target_ms
        A contender whose interval has this in it is measured `MOST_TIMES` as long, at most: its blocks are too few to tell.
    """
    order = random.Random(seed)
    share = seconds / max(1, len(contenders))
    plan: dict[str, tuple[int, int, int]] = {}
    cold: dict[str, float] = {}
    for contender in contenders:
        began = time.monotonic()
        cold[contender.name] = float(_time_block(db, contender, _some(rows, 0, 1))[0])
        start, done, step = time.monotonic(), 0, 1
        fixed = a_row = (
            start - began
        )  # what a block takes at all, and what it takes for each of its rows: to be read, too
        while done < WARM_UP_CALLS and time.monotonic() - start < min(WARM_UP_SECONDS, share / 4):
            began = time.monotonic()
            done += len(_time_block(db, contender, _some(rows, done, step)))
            took = time.monotonic() - began
            fixed, a_row = min(fixed, took), min(a_row, took / step)
            step = min(step * 4, WARM_UP_CALLS)
            db.check_interrupts()
        typical = float(np.median(_time_block(db, contender, _some(rows, done, MIN_BLOCK_CALLS)))) / 1000.0
        block = int(min(BLOCK_SECONDS, share / BLOCKS) / max(typical, 1e-7))
        # Rows of many columns take longer to be read than the call does.
        room = int(max(share / BLOCKS - fixed, 0.0) / max(a_row, 1e-9))
        lead = min(int(LEAD_SHARE * min(block, room)), MAX_LEAD_CALLS, len(rows))
        calls = max(MIN_BLOCK_CALLS, min(block - lead, room - lead, MAX_BLOCK_CALLS, len(rows)))
        a_block = max(typical * (lead + calls), fixed + a_row * (lead + calls))
        blocks = max(3, min(BLOCKS, int(share / max(a_block, 1e-9))))
        plan[contender.name] = lead, calls, blocks
    timed: dict[str, list[FloatArray]] = {c.name: [] for c in contenders}
    measured = list(contenders)
    for turn in range(MOST_TIMES * BLOCKS):
        if turn > 0 and turn % BLOCKS == 0:
            measured = [c for c in measured if _is_open(latency_statistics(timed[c.name]), target_ms)]
        for contender in order.sample(measured, len(measured)):
            lead, calls, blocks = plan[contender.name]
            if turn % BLOCKS < blocks:
                # Fresh rows: trees take longer for some.
                block_rows = _some(rows, order.randrange(len(rows)), lead + calls)
                timed[contender.name].append(_time_block(db, contender, block_rows, lead))
                db.check_interrupts()
    return {c.name: Timing(latency_statistics(timed[c.name]), cold[c.name], c.path) for c in contenders}


def _is_open(latency: Latency, target_ms: float) -> bool:
    """Whether a latency may be below a target and above it, by its interval; not where there is no target."""
    return latency.low_ms <= target_ms < latency.high_ms


def _some(rows: Frame, start: int, count: int) -> Frame:
    """Return ``count`` rows from ``start`` on, round and round."""
    return rows.take((start + np.arange(count)) % len(rows))


def rough_ms(db: Database, contender: Contender, rows: Frame) -> float:
    """Return about what a call takes: enough to tell what is worth being measured in turns.

    The lesser mean of two blocks, which are shorter where rows have many columns.
    """
    count = int(
        np.clip(ROUGH_CELLS // max(1, len(rows.features)), MIN_BLOCK_CALLS, MAX_LEAD_CALLS + MAX_BLOCK_CALLS)
    )
    means = []
    for _ in range(2):
        means.append(float(_time_block(db, contender, _some(rows, 0, count), count // 3).mean()))
        db.check_interrupts()
    return min(means)


def describe_machine(db: Database) -> dict[str, Any]:
    """Return what the figures were measured on: the server, also where its client trains."""
    if not db.in_backend:
        machine: dict[str, Any] = json.loads(
            db.query("select distill._describe_machine()::pg_catalog.text as machine")[0]["machine"]
        )
        return machine
    import onnxruntime

    processor = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            processor = next(
                (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), processor
            )
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        **server_figures(db),
        **({"pgvector": True} if pgvector_schema(db) is not None else {}),
    }


def sql_path(expression: str, machine: Mapping[str, Any]) -> str:
    """Return the path of a student's stored SQL that was timed on ``machine``, as `describe_machine` gives it."""
    has_it = form(expression, vectors=True) != form(expression, vectors=False)
    return SQL_PATH_BY_PGVECTOR if machine.get("pgvector") and has_it else SQL_PATH


def latency_figures(timing: Timing) -> dict[str, Any]:
    """Return a timing as columns of ``distill.models``."""
    latency = timing.latency
    return {
        "avg_latency_ms": latency.mean_ms,
        "latency_low_ms": latency.low_ms,
        "latency_high_ms": latency.high_ms,
        "p50_latency_ms": latency.p50_ms,
        "p95_latency_ms": latency.p95_ms,
        "p99_latency_ms": latency.p99_ms,
        "latency_declared": False,
    }


def how_timed(
    timing: Timing | None, machine: Mapping[str, Any], by_predict: Timing | None = None
) -> MeasuredOn:
    """Return what ``measured_on`` says of a latency.

    ``by_predict`` is that of the same student's predict, where its own is of its SQL form.
    """
    found = MeasuredOn(
        path=timing.path if timing else None,
        calls=timing.latency.n_calls if timing else 0,
        blocks=timing.latency.n_blocks if timing else 0,
        cold_ms=timing.cold_ms if timing else None,
        machine=machine,
    )
    if by_predict is not None:
        found["predict_latency_ms"] = by_predict.latency.mean_ms
        found["predict_latency_high_ms"] = by_predict.latency.high_ms
    return found


def measured_here(db: Database, rows: int, path: str, timing: Timing | None) -> dict[str, Any]:
    """Return where and when a model's figures were measured, as columns of ``distill.models``."""
    measured_on: MeasuredOn = {**how_timed(timing, describe_machine(db)), "rows": rows, "path": path}
    return {"measured_on": measured_on, "measured_at": datetime.now(UTC).isoformat()}
