"""Files that once crashed a server, took its memory or kept it from its interrupts: refused, or answered within bounds, however they came."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import psycopg
import pytest
from faults.harness import constant_model
from psycopg import errors

Connect = Callable[..., psycopg.Connection]

EXTREMES = (-(2**63), 2**63 - 1, -1, 0, 1, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
MIN = 2**63


def model(nodes: str, constants: dict[str, Any] | None = None, columns: int = 2, opset: int = 17) -> bytes:
    """Return a regression over ``columns`` numbers: ``nodes`` in ONNX's text, from x (N, columns) to y (N, 1)."""
    from onnx import helper, numpy_helper, parser

    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]>'
        f"g (float[N,{columns}] x) => (float[N,1] y) {{ {nodes} }}"
    )
    for name, values in (constants or {}).items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    assert helper is not None
    return bytes(made.SerializeToString())


def bomb(steps: int) -> bytes:
    """Return Greater -> Cast -> (NonZero -> Add 1) x steps: twice as large at each step, where x is above 1000."""
    said = ["a = Greater(x, limit)", "n0 = Cast<to = 7>(a)"]
    for step in range(steps):
        said += [f"z{step} = NonZero(n{step})", f"n{step + 1} = Add(z{step}, one)"]
    said += [f"s = ReduceSum<keepdims = 1>(n{steps})", "f = Cast<to = 1>(s)", "z = Mul(x, zero)",
             "w = ReduceSum<keepdims = 1>(z, axis)", "y = Add(w, f)"]  # fmt: skip
    one, zero = np.array([1], np.int64), np.array([0.0], np.float32)
    return model("; ".join(said).replace(";", "\n"), {
        "limit": np.array([1000.0], np.float32), "one": one, "zero": zero, "axis": one,
    })  # fmt: skip


WHOLE = "i = Cast<to = 7>(x)\n a = Gather<axis = 1>(i, first)\n b = Gather<axis = 1>(i, second)\n"
PARTS = {"first": np.array([0], np.int64), "second": np.array([1], np.int64)}
BACK = "\n y = Cast<to = 1>(c)"

# Each ends a process, or takes what it likes, for some values alone.
HOSTILE: dict[str, bytes] = {
    "a quotient of two features": model(f"{WHOLE} c = Div(a, b) {BACK}", PARTS),
    "a quotient by minus one": model(
        f"{WHOLE} c = Div(a, minus) {BACK}", {**PARTS, "minus": np.array([-1], np.int64)}
    ),
    "a quotient by zero": model(f"{WHOLE} c = Div(a, none) {BACK}", {**PARTS, "none": np.array([0], np.int64)}),
    "a quotient of an int32": model(
        "i = Cast<to = 6>(x)\n a = Gather<axis = 1>(i, first)\n b = Gather<axis = 1>(i, second)\n"
        f" c = Div(a, b) {BACK}", PARTS
    ),
    "a remainder": model(f"{WHOLE} c = Mod(a, b) {BACK}", PARTS),
    "a remainder of a constant": model(f"{WHOLE} c = Mod(seven, b) {BACK}", {**PARTS, "seven": np.array([7], np.int64)}),
    "as long as a feature says": model(
        f"{WHOLE} n = Squeeze(a)\n r = Range(zero, n, one)\n s = ReduceSum<keepdims = 1>(r)\n c = Add(b, s) {BACK}",
        {**PARTS, "zero": np.array(0, np.int64), "one": np.array(1, np.int64)}, opset=17,
    ),
    "as wide as a feature says": model(
        f"{WHOLE} n = Reshape(a, flat)\n e = ConstantOfShape(n)\n f = Cast<to = 7>(e)\n"
        f" s = ReduceSum<keepdims = 1>(f)\n c = Add(b, s) {BACK}", {**PARTS, "flat": np.array([-1], np.int64)}
    ),
    "as often as a feature says": model(
        f"{WHOLE} n = Reshape(i, flat)\n e = Tile(b, n)\n s = ReduceSum<keepdims = 1>(e)\n c = Add(b, s) {BACK}",
        {**PARTS, "flat": np.array([-1], np.int64)},
    ),
    "rows that are not zero": bomb(2),
    "rows that are not zero, many times": bomb(25),
    "what is unlike": model(
        f"{WHOLE} u = Unique(i)\n s = ReduceSum<keepdims = 1>(u)\n c = Add(b, s) {BACK}", PARTS
    ),
    "what a condition lets through": model(
        f"{WHOLE} t = Greater(a, b)\n f = Reshape(t, flat)\n u = Compress<axis = 0>(i, f)\n"
        f" s = ReduceSum<keepdims = 1>(u)\n c = Add(b, s) {BACK}", {**PARTS, "flat": np.array([-1], np.int64)}
    ),
    "a product of a gigabyte": model(
        "a = MatMul(x, wide)\n b = Transpose(a)\n c = MatMul(b, a)\n s = ReduceSum<keepdims = 1>(c)\n"
        " z = ReduceSum<keepdims = 1>(x, axis)\n y = Add(z, s)",
        {"wide": np.ones((2, 40000), np.float32), "axis": np.array([1], np.int64)},
    ),
    "a loop": model(
        f"{WHOLE} n = Squeeze(a)\n k = Constant<value_int = 1>()\n c = Add(b, k) {BACK}", PARTS
    ).replace(b"Squeeze", b"Loop\x00\x00\x00"),
}  # fmt: skip
REFUSED = ("0A000", "54000", "22P03", "22000")


def plant(db: psycopg.Connection, name: str, artifact: bytes) -> None:
    """Write a row with a file as its own: whoever restores can."""
    db.execute("DELETE FROM distill.models WHERE name = %s", (name,))
    db.execute(
        "INSERT INTO distill.models SELECT (jsonb_populate_record(m, jsonb_build_object('id', gen_random_uuid()) || %s)).*"
        " FROM distill.models m WHERE m.name = 'innocent'",
        (json.dumps({
            "name": name, "artifact": "\\x" + artifact.hex(), "sha256": hashlib.sha256(artifact).hexdigest(),
            "size_bytes": len(artifact),
        }),),
    )  # fmt: skip


def innocent(columns: int = 2) -> bytes:
    return model("y = ReduceSum<keepdims = 1>(x, axis)", {"axis": np.array([1], np.int64)}, columns=columns)


@pytest.mark.parametrize("ways", [3, pytest.param(5, marks=pytest.mark.extra)])
def test_hostile_files_are_refused_by_every_way_in(
    db: psycopg.Connection, connect: Connect, ways: int
) -> None:
    """Each file comes by ``ways`` of five: not all by all, but all ways by many."""
    register = "SELECT distill.register_model(%s, %s, features => '{{{0}}}', task => 'regression')"
    db.execute(register.format("a,b"), ("innocent", innocent()))
    [schemas] = db.execute("SELECT input_schema, output_schema FROM distill.models").fetchall()
    session = connect()
    pid = session.info.backend_pid
    wrong = []
    for place, (what, artifact) in enumerate(HOSTILE.items()):
        plant(db, "planted", artifact)
        tried = (
            ("registered", register.format("a,b"), ("hostile", artifact)),
            ("restored", "SELECT distill.predict('planted', '{2000,-1}'::float8[])", None),
            ("restored, in bulk", "SELECT distill.predict_batch('planted', '{{-9223372036854775808,-1}}'::float8[])", None),
            ("warmed up", "SELECT * FROM distill.warm_up('{planted}')", None),
            ("offered", "SELECT distill._offer_models(%s, %s, %s, '{}')",
             (["\x1fhostile"], [artifact], json.dumps([list(schemas)]))),
        )  # fmt: skip
        for way, statement, arguments in [tried[(place + i) % len(tried)] for i in range(ways)]:
            found = None
            try:
                session.execute(statement, arguments)
            except psycopg.Error as error:
                found = error.sqlstate
            if found not in REFUSED:
                wrong.append((what, way, found))
    assert wrong == [], wrong
    # One backend has been through all of it.
    assert session.execute("SELECT pg_backend_pid()").fetchone() == (pid,)
    assert db.execute("SELECT count(*) FROM distill.checked").fetchone() == (1,)


def test_whole_numbers_at_their_ends_are_answered(db: psycopg.Connection) -> None:
    """What may be divided is divided by a constant that no value makes a fault of."""
    artifact = model(f"{WHOLE} d = Div(a, seven)\n m = Mod(b, seven)\n c = Add(d, m) {BACK}", {**PARTS, "seven": np.array([7], np.int64)})  # fmt: skip
    db.execute(
        "SELECT distill.register_model('whole', %s, features => '{a,b}', task => 'regression')", (artifact,)
    )
    pid = db.info.backend_pid
    for left in EXTREMES:
        for right in EXTREMES:
            with suppress(errors.DataError):  # an answer, too
                db.execute("SELECT distill.predict('whole', %s::float8[])", ([left, right],))
    assert db.execute("SELECT pg_backend_pid()").fetchone() == (pid,)


def slow_model(seconds: float) -> bytes:
    """Return a chain of products, none long by itself, that takes about so many seconds for a row."""
    width = 2048  # few nodes: ONNX Runtime opens a graph in a time that grows with their square
    row, square = np.ones((1, width), np.float32), np.eye(width, dtype=np.float32)
    took = []
    for _ in range(40):
        started = time.monotonic()
        row = row @ square
        took.append(time.monotonic() - started)
    steps = int(seconds / min(took))
    said = ["a0 = MatMul(x, wide)"]
    said += [f"a{i + 1} = MatMul(a{i}, square)" for i in range(steps)]
    said += [f"y = ReduceSum<keepdims = 1>(a{steps}, axis)"]
    return model(
        "\n".join(said),
        {
            "wide": np.full((2, width), 1e-3, np.float32),
            "square": square,
            "axis": np.array([1], np.int64),
        },
    )


@pytest.mark.extra
@pytest.mark.alone
def test_one_call_of_a_slow_model_is_interrupted(db: psycopg.Connection, connect: Connect) -> None:
    """Timeout, cancel and termination in the middle of one run, within half a second."""
    db.execute(
        "SELECT distill.register_model('slow', %s, features => '{a,b}', task => 'regression')",
        (slow_model(0.06),),
    )
    session = connect()
    session.execute("SELECT * FROM distill.warm_up('{slow}')")
    calls = (
        "SELECT distill.predict('slow', '{1,2}'::float8[])",
        "SELECT distill.predict('slow', '{\"a\": 1, \"b\": 2}'::jsonb)",
        "SELECT distill.predict_batch('slow', '{{1,2},{3,4},{5,6}}'::float8[])",
        "SELECT * FROM distill.score('slow', 'SELECT i AS id, 1.0::float8 AS a, 2.0::float8 AS b FROM generate_series(1, 9) i', 'id')",
    )
    took = []
    for _ in range(3):
        started = time.monotonic()
        session.execute(calls[0])
        took.append(time.monotonic() - started)
    alone = min(took)
    assert alone > 0.02, "it is not slow here"
    late = []
    for round_ in range(3):
        for call in calls:
            timeout = max(0.001, round(alone * (0.1 + 0.1 * round_), 3))
            session.execute(f"SET statement_timeout = '{timeout * 1000:.0f}ms'")
            started = time.monotonic()
            with pytest.raises(errors.QueryCanceled):
                session.execute(call)
            late.append(time.monotonic() - started - timeout)
    session.execute("RESET statement_timeout")
    assert max(late) < 0.5, late
    # It answers as before.
    session.execute(calls[0])
    ended: list[float] = []
    several = "SELECT sum(distill.predict('slow', ARRAY[i, 2])) FROM generate_series(1, 40) i"

    def ask() -> None:
        with suppress(psycopg.Error):
            session.execute(several)
            return
        ended.append(time.monotonic())

    for end in ("pg_cancel_backend", "pg_terminate_backend"):
        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.03)
        told = time.monotonic()
        db.execute(f"SELECT {end}(%s)", (session.info.backend_pid,))
        thread.join(30)
        assert ended.pop() - told < 0.5, end


def test_memory_of_a_call_is_bounded(db: psycopg.Connection, connect: Connect) -> None:
    """Many rows are run in as many runs as the setting needs; a model of which one row takes more is refused."""
    width = 65536
    artifact = model(
        "a = MatMul(x, wide)\n b = Relu(a)\n y = ReduceSum<keepdims = 1>(b, axis)",
        {"wide": np.full((2, width), 1e-3, np.float32), "axis": np.array([1], np.int64)},
    )
    register = "SELECT distill.register_model(%s, %s, features => '{a,b}', task => 'regression')"
    db.execute(register, ("wide", artifact))
    db.execute("SELECT distill.change_setting('predict_memory_mb', '16')")
    session = connect()
    session.execute("SELECT * FROM distill.warm_up('{wide}')")
    resident = "SELECT pg_read_file('/proc/self/status') ~ 'VmHWM'"
    assert session.execute(resident).fetchone() == (True,)
    peak = "SELECT substring(pg_read_file('/proc/self/status') FROM 'VmHWM:\\s+([0-9]+)')::bigint / 1024"
    before = session.execute(peak).fetchone()
    session.execute(
        "SELECT distill.predict_batch('wide', (SELECT array_agg(ARRAY[i, i]::float8[]) FROM generate_series(1, 4000) i))"
    )
    after = session.execute(peak).fetchone()
    assert before is not None and after is not None
    # 4,000 rows at once would take 2 GB.
    assert after[0] - before[0] < 200
    with pytest.raises(errors.ProgramLimitExceeded):
        db.execute(register, ("wider", model(
            "a = MatMul(x, wide)\n b = Relu(a)\n y = ReduceSum<keepdims = 1>(b, axis)",
            {"wide": np.zeros((2, 4_000_000), np.float32), "axis": np.array([1], np.int64)},
        )))  # fmt: skip


def test_rows_that_are_too_large_are_refused_before_they_are_read(db: psycopg.Connection) -> None:
    db.execute(
        "SELECT distill.register_model('small', %s, features => '{x}', task => 'regression')",
        (constant_model(1.0),),
    )
    db.execute("SET statement_timeout = '20s'")
    for call in (
        "SELECT distill.predict('small', array_fill(1::float8, ARRAY[5000000]))",
        "SELECT distill.predict('small', jsonb_build_object('x', 1, 'y', repeat('a', 60000000)))",
        "SELECT distill.predict('small', array_fill(1::float8, ARRAY[1]), array_fill('a'::text, ARRAY[1000000]))",
    ):
        started = time.monotonic()
        with pytest.raises((errors.DataError, errors.ProgramLimitExceeded, errors.CheckViolation)):
            db.execute(call)  # type: ignore[call-overload]
        assert time.monotonic() - started < 5, call
