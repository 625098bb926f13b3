"""What the tests of faults share: a distillation to disturb, who is still there, and what a registry must hold to be whole."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import psycopg
import servers
from sql.conftest import cancer, load_table, register

DATABASE = "pg_distill_faults"
TRAINER = r"-m pg_distill\.child\.workshop"
GUARD = r"-m pg_distill\.child\.guard"
OURS = r"pg_distill\.child\.(workshop|guard)"
GONE_SECONDS = 3.0  # for a process table that is read through docker exec

FEW = 200  # rows, so that a distillation takes a second or two and none of its stages is missing
FEATURES = ["x0", "x1", "x2", "x3"]
DISTIL_FEW = "SELECT distill_model('few', families => '{linear}', time_budget_s => 1, min_accuracy => 0)"
# Where a family has no student yet, the next one is accepted and registered.
DROP_STUDENTS = "SELECT distill.drop_model('few_distilled') WHERE EXISTS (SELECT FROM distill.models WHERE name = 'few_distilled')"
REGISTER_FEW = "SELECT distill.register_model('few', %s, features => '{x0,x1,x2,x3}', sample => 'few', label => 'malignant')"

Tally = Counter[str]
"""How often each fault was injected, for the summary of the test run."""


@cache
def few_teacher() -> bytes:
    """Return a forest over four columns of the breast cancer rows: slower than a student, and small."""
    from skl2onnx import to_onnx
    from sklearn.ensemble import ExtraTreesClassifier

    x, y, _ = cancer()
    rows = x[:FEW, : len(FEATURES)].astype(np.float32)
    model = ExtraTreesClassifier(300, random_state=0).fit(rows, y[:FEW])
    onnx = to_onnx(model, rows[:1], target_opset={"": 17, "ai.onnx.ml": 3})
    return bytes(onnx.SerializeToString())


def load_few(connection: psycopg.Connection) -> None:
    """Create table and teacher "few"."""
    x, y, _ = cancer()
    columns = {**dict.fromkeys(FEATURES, "float8"), "malignant": "int"}
    rows = zip(x[:FEW, : len(FEATURES)], y[:FEW], strict=True)
    load_table(connection, "few", columns, ([*map(float, row), int(label)] for row, label in rows))
    register(connection, "few", REGISTER_FEW, (few_teacher(),))


def constant_model(value: float) -> bytes:
    """Return a regression over one feature that always gives ``value``, so that an answer tells who gave it."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "constant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        [
            numpy_helper.from_array(np.zeros((1, 1), np.float32), "w"),
            numpy_helper.from_array(np.array([value], np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@dataclass
class Run:
    """A statement in a session and a thread of its own."""

    connection: psycopg.Connection
    statement: str
    error: BaseException | None = None
    ended: float = 0.0
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.pid = self.connection.info.backend_pid
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.connection.execute(self.statement)  # type: ignore[arg-type]
        except BaseException as error:
            self.error = error
        self.ended = time.monotonic()

    def join(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()

    def close(self) -> None:
        self.connection.close()


def ours(server: servers.Server, pattern: str = OURS) -> list[servers.Process]:
    """List our processes that are not merely waiting to be reaped."""
    return [p for p in server.processes(pattern) if p.state != "Z"]


def wait_for_training(server: servers.Server, run: Run) -> servers.Process:
    """Wait until the child is at work, not merely started."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert run.error is None, run.error
        found = ours(server, TRAINER)
        if found and found[0].rss_bytes > 100 << 20:
            return found[0]
        time.sleep(0.2)
    raise AssertionError("no training process came up")


def connect(server: servers.Server) -> psycopg.Connection:
    """Connect, also while the server recovers from a crash of one of its sessions."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return server.connect(DATABASE)
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def no_process_left(server: servers.Server) -> None:
    """Fail where one of our processes outlives what it was for."""
    deadline = time.monotonic() + GONE_SECONDS
    while (left := ours(server)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


# Each query finds what must not be there.
_BROKEN = {
    "a name without exactly one active version": (
        "SELECT name FROM distill.models GROUP BY name HAVING count(*) FILTER (WHERE active) <> 1"
    ),
    "a model that is not what its digest and size say": (
        "SELECT name, version FROM distill.models WHERE size_bytes <> octet_length(coalesce(artifact, convert_to(expression, 'UTF8')))"
        " OR sha256 <> encode(sha256(coalesce(artifact, convert_to(expression, 'UTF8'))), 'hex')"
    ),
    "a model with rows and without figures": (
        "SELECT name, version FROM distill.models WHERE sample IS NOT NULL AND kind = 'onnx'"
        " AND (avg_latency_ms IS NULL OR measured_on IS NULL OR measured_at IS NULL OR label IS NOT NULL AND accuracy IS NULL)"
    ),
    "a student without its teacher": (
        "SELECT name, version FROM distill.models s WHERE teacher_id IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM distill.models t WHERE t.id = s.teacher_id)"
    ),
    "a student without its run": (
        "SELECT name, version FROM distill.models s WHERE teacher_id IS NOT NULL AND NOT EXISTS"
        " (SELECT FROM distill.runs r WHERE r.student_id = s.id AND r.accepted AND (r.student_name, r.student_version) = (s.name, s.version))"
        " AND NOT EXISTS (SELECT FROM distill.candidates c JOIN distill.runs r USING (run_id)"  # promoted
        " WHERE c.sha256 = s.sha256 AND r.student_name = s.name)"
    ),
    "a run without candidates": (
        "SELECT run_id FROM distill.runs r WHERE NOT EXISTS (SELECT FROM distill.candidates c WHERE c.run_id = r.run_id)"
    ),
    "an accepted run without a student's version and its one chosen candidate": (
        "SELECT run_id FROM distill.runs r WHERE accepted AND (student_version IS NULL"
        " OR (SELECT count(*) FROM distill.candidates c WHERE c.run_id = r.run_id AND chosen) <> 1)"
    ),
    "a refused run with a student": "SELECT run_id FROM distill.runs WHERE NOT accepted AND student_id IS NOT NULL",
    "a candidate of the frontier without its file, or with another": (
        "SELECT run_id, candidate FROM distill.candidates WHERE (on_frontier OR chosen) AND artifact IS NULL"
        " OR sha256 <> encode(sha256(artifact), 'hex')"
    ),
    "numbers of candidates with a gap": (
        "SELECT run_id FROM distill.candidates GROUP BY run_id HAVING max(candidate) - min(candidate) + 1 <> count(*)"
    ),
}


def broken(connection: psycopg.Connection) -> dict[str, list[Any]]:
    """Return what of the registry is not whole: each of its rules that is broken, with the rows that break it."""
    found = {what: connection.execute(query).fetchall() for what, query in _BROKEN.items()}  # type: ignore[call-overload]
    return {what: rows for what, rows in found.items() if rows}


def counts(connection: psycopg.Connection) -> tuple[int, int, int]:
    """Return how many runs, candidates and models there are."""
    row: Any = connection.execute(
        "SELECT (SELECT count(*) FROM distill.runs), (SELECT count(*) FROM distill.candidates),"
        " (SELECT count(*) FROM distill.models)"
    ).fetchone()
    return tuple(row)  # type: ignore[return-value]


def locks_held(connection: psycopg.Connection) -> int:
    """Return how many locks trainings hold: of the table that stands for them, and places of the server."""
    row: Any = connection.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' OR relation = 'distill.trainings'::regclass"
    ).fetchone()
    connection.execute(
        "DO $$\nfrom pg_distill.registry import places\n"
        "taken = [place for place in range(64) if places.take(places.TRAININGS + place, 1) is None]\n"
        "plpy.execute(\"select set_config('pg_distill_test.taken', '%d', false)\" % len(taken)) $$ LANGUAGE plpython3u"
    )
    taken: Any = connection.execute("SELECT current_setting('pg_distill_test.taken')::int").fetchone()
    return int(row[0]) + int(taken[0])


def nothing_left(server: servers.Server) -> None:
    """Fail where a distillation left anything: a process, a row, a lock. One teacher is all there was."""
    no_process_left(server)
    with connect(server) as connection:
        assert counts(connection) == (0, 0, 1)
        assert locks_held(connection) == 0
        assert broken(connection) == {}
    if isinstance(server, servers.Container):  # on this machine others have files there, too
        # Scratch files, ours or a library's, which are the server's user's; its own shared memory is no file of ours.
        found = server.run(
            "find", "/tmp", "/dev/shm", "-type", "f", "-user", "postgres", "!", "-name", "PostgreSQL.*"
        )
        assert found.stdout == ""
