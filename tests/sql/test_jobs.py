"""Jobs: real workers in real processes, killed at random moments, and samples that try to get more rights."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import servers
from psycopg import errors
from sql.conftest import held_place, load_cancer, load_digits_table, load_survival, value

Connect = Callable[..., psycopg.Connection]
Role = Callable[..., str]

PYTHON = Path(__file__).resolve().parents[2] / "python"
SUBMIT = (
    "SELECT distill.submit('cancer', families => '{{linear}}', time_budget_s => {budget}, min_accuracy => 0)"
)
GRANTS = Path(__file__).resolve().parents[2] / "extension" / "doc" / "grants.sql"
PATIENCE_S = 120.0  # on a busy machine

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def engineer(db: psycopg.Connection, role: Role) -> Role:
    """Create roles with the documented rights of those who distil."""
    for name in ("distill_reader", "distill_predictor", "distill_engineer", "distill_admin"):
        role(name)
    db.execute(GRANTS.read_text())
    return lambda name: role(name, grant=["distill_engineer"])


@pytest.fixture
def work_here(
    server: servers.Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., threading.Thread]]:
    """Run workers in threads of this process, which try again at once: work_here(once=True, lease=..., dsn=...)."""
    from pg_distill.jobs import run
    from pg_distill.jobs import worker as jobs

    monkeypatch.setattr(run, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(run, "BUSY_SECONDS", 0.1)
    started: list[tuple[jobs.Worker, threading.Thread]] = []

    def start(*, once: bool = False, lease: float = 3.0, dsn: str | None = None) -> threading.Thread:
        worker = jobs.Worker(dsn if dsn is not None else server.conninfo(dbname=database), lease_s=lease)
        thread = threading.Thread(target=worker.run, kwargs={"once": once}, daemon=True)
        thread.start()
        started.append((worker, thread))
        return thread

    yield start
    for worker, _ in started:
        worker.stop()
    with server.connect(database) as connection:
        connection.execute("NOTIFY pg_distill_jobs")  # who waits for it sees that it is to end
    for _, thread in started:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture
def start_worker(server: servers.Server, database: str) -> Iterator[Start]:
    """Start workers in processes of their own: start_worker("--once", user=..., lease=...)."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str, user: str | None = None, lease: float = 3.0) -> subprocess.Popen[str]:
        keywords = {"dbname": database, **({"user": user, "password": user} if user else {})}
        command = [sys.executable, "-m", "pg_distill.cli", "worker", "--dsn", server.conninfo(**keywords)]
        process = subprocess.Popen(
            [*command, "--lease-seconds", str(lease), *options],
            env={**os.environ, "PYTHONPATH": str(PYTHON)},
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def submit(db: psycopg.Connection, budget: float = 2) -> str:
    row = db.execute(SUBMIT.format(budget=budget)).fetchone()
    assert row is not None
    return str(row[0])


def job(db: psycopg.Connection, run_id: str) -> dict[str, Any]:
    cursor = db.execute("SELECT * FROM distill.jobs WHERE run_id = %s", (run_id,))
    assert cursor.description is not None
    row = cursor.fetchone()
    assert row is not None
    return dict(zip([column.name for column in cursor.description], row, strict=True))


def wait(db: psycopg.Connection, run_id: str, *states: str, stage: str | None = None) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = job(db, run_id)
        if found["state"] in states and (stage is None or found["stage"] == stage):
            return found
        assert found["state"] != "failed" or "failed" in states, found
        time.sleep(0.1)
    raise AssertionError(found)


def ok(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 0, said
    return said


def test_a_job_is_run_watched_and_recorded(db: psycopg.Connection, start_worker: Start) -> None:
    load_cancer(db)
    run_id = submit(db, 4)  # seconds enough for what is held over a search to be seen
    queued = job(db, run_id)
    assert (queued["state"], queued["progress"], queued["attempts"]) == ("queued", 0.0, 0)
    worker = start_worker()
    seen: list[dict[str, Any]] = []
    held = 0.0
    deadline = time.monotonic() + PATIENCE_S
    while (found := job(db, run_id))["state"] in ("queued", "running"):
        seen.append(found)
        held = max(
            held,
            value(
                db,
                "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8 FROM pg_stat_activity"
                " WHERE application_name = 'pg_distill job ' || %s::text AND query !~ 'clock_timestamp|_offer_models'",
                run_id,
            ),
        )
        assert worker.poll() is None, ok(worker)
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    done = found
    assert done["state"] == "done", done
    assert (done["progress"], done["attempts"], done["error"]) == (1.0, 1, None)
    progress = [row["progress"] for row in seen]
    assert progress == sorted(progress)
    assert any(row["time_left"] is not None for row in seen)
    assert {"screen", "latency"} & {row["stage"] for row in seen}
    # The search alone takes seconds: nothing was held over it.
    assert held < 2.0
    report = db.execute(
        "SELECT accepted, student_model_id, teacher_latency_ms, student_latency_ms, predict_path, machine"
        " FROM distill.run_report(%s)",
        (run_id,),
    ).fetchone()
    assert report is not None
    assert report[0] is True
    assert report[1] == done["student_id"]
    # Timed in the backend, by predict: this process has no such thing.
    assert 0 < report[3] < report[2]
    assert report[4].startswith("distill.predict(")
    assert report[5]["postgresql"] == value(db, "SHOW server_version")
    student = value(db, "SELECT distill.predict('cancer_distilled', to_jsonb(c)) FROM cancer c LIMIT 1")
    assert 0 <= student <= 1


@pytest.mark.extra
@pytest.mark.parametrize(
    ("form", "family", "teacher", "label"),
    [
        ("cascade", "linear", "digits", "digit"),
        ("sql", "tree", "survival", "survived"),
    ],
)
def test_a_worker_makes_students_of_every_form(
    db: psycopg.Connection, start_worker: Start, form: str, family: str, teacher: str, label: str
) -> None:
    """Its candidates are offered to the server from outside: with their teacher, or as an expression, too."""
    {"digits": load_digits_table, "survival": load_survival}[teacher](db)
    run_id = str(
        value(
            db,
            "SELECT distill.submit(%s, families => ARRAY[%s, %s], target_latency_ms => 1000, min_accuracy => 0,"
            " patience => 1, time_budget_s => 15)",
            teacher,
            family,
            form,
        )
    )
    ok(start_worker("--once"))
    done = job(db, run_id)
    assert (done["state"], done["error"]) == ("done", None)
    found = db.execute(
        "SELECT m.form, m.avg_latency_ms, c.accuracy FROM distill.runs r JOIN distill.models m ON m.id = r.student_id"
        " JOIN distill.candidates c ON c.run_id = r.run_id AND c.chosen WHERE r.run_id = %s",
        (run_id,),
    ).fetchone()
    assert found is not None, done["summary"]
    assert found[0] == form
    assert found[1] > 0
    # What the worker measured is what the server predicts.
    accuracy = value(
        db,
        "SELECT avg((distill.predict_class(%s, r.row) = r.row->>%s)::int)::float8"
        " FROM distill.run_rows(%s) r WHERE r.split = 'test'",
        f"{teacher}_distilled",
        label,
        run_id,
    )
    assert accuracy == pytest.approx(found[2], abs=1e-12)


def test_bad_arguments_are_refused_at_once(db: psycopg.Connection) -> None:
    load_cancer(db)
    with pytest.raises(errors.InvalidParameterValue):
        db.execute("SELECT distill.submit('cancer', epochs => 0)")
    with pytest.raises(errors.UndefinedObject):
        db.execute("SELECT distill.submit('nobody')")
    assert value(db, "SELECT count(*) FROM distill.jobs") == 0


def test_failures_are_told(db: psycopg.Connection, start_worker: Start) -> None:
    load_cancer(db)
    run_id = str(value(db, "SELECT distill.submit('cancer', sample => 'nowhere')"))
    ok(start_worker("--once"))
    failed = job(db, run_id)
    assert (failed["state"], failed["sqlstate"], failed["attempts"]) == ("failed", "42P01", 1)
    assert failed["error"]


def test_cancel(db: psycopg.Connection, start_worker: Start) -> None:
    """A waiting job at once, a running one within about a second: the promise; the bound leaves room for a busy machine."""
    load_cancer(db)
    waiting = submit(db)
    assert value(db, "SELECT distill.cancel(%s)", waiting) is True
    assert job(db, waiting)["state"] == "cancelled"
    assert value(db, "SELECT distill.cancel(%s)", waiting) is False
    with pytest.raises(errors.UndefinedObject):
        db.execute("SELECT distill.cancel(gen_random_uuid())")

    start_worker()
    running = submit(db, 60)
    wait(db, running, "running", stage="screen")
    took = cancel(db, running)
    # In the middle of a statement, too.
    db.execute("CREATE VIEW slow AS SELECT c.* FROM cancer c, LATERAL (SELECT pg_sleep(1 + 0 * c.x0)) s")
    slow = str(value(db, "SELECT distill.submit('cancer', sample => 'slow')"))
    wait(db, slow, "running", stage="sample")
    took = max(took, cancel(db, slow))
    assert took < 3.0
    assert value(db, "SELECT count(*) FROM distill.runs") == 0


def cancel(db: psycopg.Connection, run_id: str) -> float:
    asked = time.monotonic()
    assert value(db, "SELECT distill.cancel(%s)", run_id) is True
    wait(db, run_id, "cancelled")
    return time.monotonic() - asked


@pytest.mark.extra
def test_workers_killed_at_random_moments_lose_and_double_nothing(
    db: psycopg.Connection, start_worker: Start
) -> None:
    """Two workers are killed with SIGKILL again and again; every job ends, and at most one run is recorded for each."""
    load_cancer(db)
    # A job over which two workers die is given up: that is a verdict, too, and not a loss. Here all are to be done.
    jobs = [submit(db, 4) for _ in range(4)]
    moments = random.Random(1)
    workers = [start_worker(lease=2.0) for _ in range(2)]
    kills = 0
    deadline = time.monotonic() + PATIENCE_S
    while value(db, "SELECT count(*) FROM distill.jobs WHERE state IN ('queued', 'running')"):
        assert time.monotonic() < deadline, db.execute("SELECT * FROM distill.jobs").fetchall()
        time.sleep(moments.uniform(0.3, 3.0))
        # Kill only where it is the first death over a job: the second is tested by itself.
        victims = [
            row[0]
            for row in db.execute(
                "SELECT split_part(worker, ':', 2)::int FROM distill.job_queue WHERE state = 'running' AND takeovers = 0"
            )
        ]
        alive = [w for w in workers if w.poll() is None]
        chosen = [w for w in alive if w.pid in victims]
        if chosen and kills < 4:
            victim = moments.choice(chosen)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            kills += 1
            workers.append(start_worker(lease=2.0))
    assert kills >= 2
    states = dict(db.execute("SELECT run_id::text, state FROM distill.jobs").fetchall())
    assert sorted(states) == sorted(jobs)
    assert set(states.values()) == {"done"}
    recorded = [row[0] for row in db.execute("SELECT run_id::text FROM distill.runs")]
    assert sorted(recorded) == sorted(jobs)  # one each, none twice
    students = value(db, "SELECT count(*) FROM distill.models WHERE teacher_id IS NOT NULL")
    assert students == value(db, "SELECT count(*) FROM distill.runs WHERE accepted")


def test_a_job_that_kills_two_workers_is_given_up(db: psycopg.Connection, start_worker: Start) -> None:
    load_cancer(db)
    run_id = submit(db, 60)
    for attempt in (1, 2):
        worker = start_worker(lease=2.0)
        deadline = time.monotonic() + PATIENCE_S
        while job(db, run_id)["attempts"] < attempt:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        worker.kill()
        worker.wait()
    start_worker(lease=2.0)
    failed = wait(db, run_id, "failed")
    assert (failed["sqlstate"], failed["attempts"]) == ("58000", 2)


def test_a_worker_that_is_told_to_end_gives_its_job_back(db: psycopg.Connection, start_worker: Start) -> None:
    load_cancer(db)
    run_id = submit(db, 60)
    worker = start_worker()
    wait(db, run_id, "running", stage="screen")
    worker.terminate()
    ok(worker)
    again = job(db, run_id)
    assert (again["state"], again["attempts"]) == ("queued", 0)


def test_errors_that_may_pass_are_tried_three_times_and_others_once(
    db: psycopg.Connection,
    connect: Connect,
    work_here: Callable[..., threading.Thread],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pg_distill.database.client import PsycopgDatabase
    from pg_distill.errors import InvalidData, OutOfMemory, TrainerDied
    from pg_distill.jobs import run
    from pg_distill.runs import distill

    load_cancer(db)
    expected: dict[str, tuple[Exception, int, str]] = {
        submit(db): found
        for found in (
            (OutOfMemory("no room"), 3, "53200"),
            (TrainerDied("it died"), 3, "58000"),
            (errors.SerializationFailure("again"), 3, "40001"),
            (psycopg.OperationalError("the connection is closed"), 3, "08006"),
            (errors.QueryCanceled("its own statement_timeout"), 1, "57014"),
            (InvalidData("one class only"), 1, "22000"),
            (RuntimeError("a fault of ours"), 1, "38000"),
        )
    }
    begun: list[str] = []

    def fail(db: Any, options: Any, *, run_id: str, **_: Any) -> None:
        begun.append(run_id)
        raise expected[run_id][0]

    monkeypatch.setattr(distill, "distill", fail)
    monkeypatch.setattr(run, "RETRY_SECONDS", 0.0)
    work_here(once=True).join(PATIENCE_S)
    for run_id, (_, attempts, sqlstate) in expected.items():
        failed = job(db, run_id)
        assert failed["state"] == "failed"
        assert (failed["sqlstate"], failed["attempts"]) == (sqlstate, attempts)
        assert failed["error"]
        assert begun.count(run_id) == attempts

    # In a session a fault of ours is recorded, too, or the oldest job would keep all others waiting; a cancel ends all.
    backend = PsycopgDatabase(connect())
    for error, state in ((RuntimeError("a fault of ours"), "failed"), (errors.QueryCanceled("x"), "queued")):
        run_id = submit(db)
        expected[run_id] = error, 1, ""
        with suppress(errors.QueryCanceled), backend.transaction():
            assert run.run_next(backend) == run_id
        assert job(db, run_id)["state"] == state


@pytest.mark.extra
def test_a_job_for_which_there_is_no_place_waits(
    db: psycopg.Connection, connect: Connect, work_here: Callable[..., threading.Thread]
) -> None:
    load_cancer(db)
    db.execute("SELECT distill.change_setting('concurrent_trainings', '1')")
    other = connect()
    with held_place(other):
        run_id = submit(db, 2)
        work_here()
        deadline = time.monotonic() + PATIENCE_S
        seen = 0
        while seen < 3:  # it is tried again and again, and that is no attempt
            found = job(db, run_id)
            assert time.monotonic() < deadline and found["state"] in ("queued", "running"), found
            if found["state"] == "queued" and found["sqlstate"] == "53400":
                assert found["attempts"] == 0
                seen += 1
            time.sleep(0.05)
    assert wait(db, run_id, "done")["attempts"] == 1


@pytest.mark.extra
def test_a_job_whose_connection_is_refused_waits(
    db: psycopg.Connection, engineer: Role, connect: Connect, start_worker: Start
) -> None:
    """Its worker has not died over it: it is not begun."""
    load_cancer(db)
    low = engineer("low")
    db.execute(f"GRANT SELECT ON cancer TO {low}")
    mine = connect(user=low)
    run_id = str(
        value(
            mine,
            "SELECT distill.submit('cancer', sample => 'cancer', families => '{linear}', time_budget_s => 2)",
        )
    )
    mine.close()
    db.execute(f"ALTER ROLE {low} CONNECTION LIMIT 1")
    worker = start_worker(user=low)
    deadline = time.monotonic() + PATIENCE_S
    while (found := job(db, run_id))["state"] != "queued" or found["sqlstate"] is None:
        assert time.monotonic() < deadline and worker.poll() is None, found
        time.sleep(0.05)
    assert (found["sqlstate"], found["attempts"]) == ("08006", 0)
    db.execute(f"ALTER ROLE {low} CONNECTION LIMIT -1")
    done = wait(db, run_id, "done")
    assert (done["attempts"], done["error"]) == (1, None)
    assert value(db, "SELECT takeovers FROM distill.job_queue") == 0


@pytest.mark.extra
@pytest.mark.one_server("local")  # a container that starts again has another port
def test_a_job_outlives_restarts_of_the_server(
    start_server: Callable[..., servers.Server], work_here: Callable[..., threading.Thread]
) -> None:
    """Two of them, one longer than the lease: no worker died."""
    server = start_server()
    servers.create_database(server, "restarted")
    dsn = server.conninfo(dbname="restarted")
    with server.connect("restarted", autocommit=True) as db:
        load_cancer(db)
        run_id = submit(db, 3)
    for _ in range(2):
        work_here(dsn=dsn, lease=3.0)
    for attempt, down in ((1, 0.0), (2, 4.0)):
        with server.connect("restarted", autocommit=True) as db:
            while wait(db, run_id, "running", "queued")["attempts"] < attempt:
                time.sleep(0.1)
            wait(db, run_id, "running", stage="screen")
        server.stop()
        time.sleep(down)
        server.start()
    with server.connect("restarted", autocommit=True) as db:
        done = wait(db, run_id, "done")
        assert done["attempts"] == 3
        assert value(db, "SELECT takeovers FROM distill.job_queue") == 0
        assert value(db, "SELECT count(*) FROM distill.runs") == 1
        db.execute("NOTIFY pg_distill_jobs")


def test_a_cancel_is_heard_whatever_the_worker_does_next(db: psycopg.Connection, connect: Connect) -> None:
    """A job that goes back to the queue after a cancel was asked for is not begun again."""
    from pg_distill.database.client import PsycopgDatabase
    from pg_distill.registry import queue as job_queue

    queue = PsycopgDatabase(connect())
    for give_back in (
        lambda claimed: job_queue.retry(queue, claimed, "58000", "it died", 0.0),
        lambda claimed: job_queue.release(queue, claimed),
    ):
        run_id = value(db, "INSERT INTO distill.job_queue (arguments) VALUES ('{}') RETURNING run_id")
        claimed = job_queue.claim(queue, "a worker", 60.0)
        assert claimed is not None
        assert value(db, "SELECT distill.cancel(%s)", run_id) is True
        give_back(claimed)
        found = job(db, run_id)
        assert (found["state"], found["sqlstate"]) == ("cancelled", "57014")
        assert found["finished_at"] is not None
        assert job_queue.claim(queue, "a worker", 60.0) is None


def test_a_job_that_nobody_submitted_ends_no_worker(db: psycopg.Connection, start_worker: Start) -> None:
    """A role may write rows of its own into the queue."""
    load_cancer(db)
    for nested in (
        "[]",
        '{"monotone": []}',
        '{"monotone": {"a": {}}}',
        '{"monotone": {"a": [[1]]}}',
        '{"seed": {"a": 1}}',
    ):
        with pytest.raises(errors.CheckViolation):
            db.execute("INSERT INTO distill.job_queue (arguments) VALUES (%s)", (nested,))
    expected = {
        '{"teacher": "cancer", "nonsense": 1}': "22023",
        '{"teacher": "cancer", "time_budget_s": "soon"}': "22023",
        '{"teacher": "cancer", "epochs": []}': "22023",
        '{"teacher": "cancer", "monotone": {"luck": 2}}': "22023",
        '{"teacher": "cancer", "monotone": {"luck": [1]}}': "22023",
        '{"teacher": "cancer", "monotone": {"luck": 1}}': "42703",
        "{}": "22023",
    }
    made = {
        str(
            value(db, "INSERT INTO distill.job_queue (arguments) VALUES (%s) RETURNING run_id", arguments)
        ): state
        for arguments, state in expected.items()
    }
    # Operators of its own in front of PostgreSQL's.
    db.execute("CREATE SCHEMA evil")
    db.execute("SET search_path = evil, pg_catalog, public")
    made[submit_row(db)] = "55000"
    db.execute("RESET search_path")
    in_session = next(iter(made))
    assert str(value(db, "SELECT distill.run_next_job()")) == in_session
    ok(start_worker("--once"))
    for run_id, sqlstate in made.items():
        failed = job(db, run_id)
        assert (failed["state"], failed["sqlstate"]) == ("failed", sqlstate), failed


def submit_row(db: psycopg.Connection) -> str:
    return str(
        value(
            db,
            """INSERT INTO distill.job_queue (arguments) VALUES ('{"teacher": "cancer"}') RETURNING run_id""",
        )
    )


def test_an_idle_worker_is_woken(
    db: psycopg.Connection, work_here: Callable[..., threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the notification: it would not look at the queue again for a minute."""
    from pg_distill.jobs import worker as jobs

    monkeypatch.setattr(jobs, "POLL_SECONDS", 60.0)
    load_cancer(db)
    work_here(lease=60.0)
    idle = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_distill worker' AND state = 'idle'"
        " AND query LIKE 'update distill.job_queue%' AND state_change < clock_timestamp() - interval '1 second'"
    )
    deadline = time.monotonic() + PATIENCE_S
    while not value(db, idle):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    asked = time.monotonic()
    run_id = submit(db, 60)
    wait(db, run_id, "running")
    assert time.monotonic() - asked < 2.0


def test_submit_takes_what_distill_model_takes(db: psycopg.Connection) -> None:
    signatures = db.execute(
        "SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid) FROM pg_proc p"
        " WHERE p.proname IN ('submit', 'distill_model')"
    ).fetchall()
    assert {row[0] for row in signatures} == {"submit", "distill_model"}
    assert len(signatures) == 2
    assert len({row[1:] for row in signatures}) == 1


@pytest.mark.extra
def test_a_stalled_worker_finds_its_job_taken(db: psycopg.Connection, start_worker: Start) -> None:
    """A worker that stops and goes on later has lost its claim: what it does then records nothing."""
    load_cancer(db)
    run_id = submit(db, 6)
    stalled = start_worker(lease=2.0)
    wait(db, run_id, "running", stage="screen")
    stalled.send_signal(signal.SIGSTOP)
    start_worker(lease=2.0)
    deadline = time.monotonic() + PATIENCE_S
    while job(db, run_id)["attempts"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stalled.send_signal(signal.SIGCONT)
    wait(db, run_id, "done")
    assert value(db, "SELECT count(*) FROM distill.runs") == 1
    assert stalled.poll() is None  # it goes on with other jobs


def test_a_job_runs_with_its_submitters_rights(
    db: psycopg.Connection, engineer: Role, connect: Connect, start_worker: Start
) -> None:
    """The documented rights are enough; a hostile sample tries to become somebody else, to write, to leave the statement."""
    load_cancer(db)
    low, other = engineer("low"), engineer("other")
    db.execute(f"GRANT SELECT ON cancer TO {low}")
    db.execute("CREATE TABLE secret AS SELECT * FROM cancer")
    db.execute(
        "CREATE TABLE wall (t text); CREATE FUNCTION scribble() RETURNS int LANGUAGE plpgsql AS $$"
        " BEGIN INSERT INTO wall VALUES ('x'); RETURN 1; END $$;"
        "CREATE FUNCTION assign(text, text) RETURNS text LANGUAGE sql AS 'SELECT set_config($1, $2, true)';"
        "CREATE FUNCTION become(text) RETURNS text LANGUAGE sql AS $$SELECT assign('role', $1)$$"
    )
    db.execute(f"GRANT ALL ON wall TO {low}")
    mine = connect(user=low)
    good = str(
        value(
            mine,
            "SELECT distill.submit('cancer', sample => 'cancer', families => '{linear,sql}', time_budget_s => 3)",
        )
    )
    ok(start_worker("--once", user=low))
    assert (job(mine, good)["state"], job(mine, good)["error"]) == ("done", None)
    hostile = {
        # Undo SET ROLE, if there was one, and read what only the superuser may.
        "SELECT s.* FROM (SELECT set_config('role', 'none', true) FROM pg_sleep(0)) r, secret s": "25006",
        "SELECT s.* FROM (SELECT become('none') FROM pg_sleep(0)) r, secret s": "42501",
        "SELECT c.* FROM cancer c, (SELECT become('postgres')) r": "42501",
        "SELECT c.* FROM cancer c, (SELECT assign('session_authorization', 'postgres')) r": "42501",
        # Write, with read-only switched off first.
        "SELECT c.* FROM cancer c, (SELECT assign('transaction_read_only', 'off')) r": "25001",
        "SELECT c.* FROM cancer c, (SELECT scribble()) r": "25006",
        "SELECT * FROM cancer) s; COMMIT; DROP TABLE cancer; SELECT * FROM (SELECT 1": "42601",
    }
    submitted = {
        str(value(mine, "SELECT distill.submit('cancer', sample => %s)", query)): query for query in hostile
    }
    ok(start_worker("--once", user=low))
    for run_id, query in submitted.items():
        failed = job(mine, run_id)
        assert (failed["state"], failed["sqlstate"]) == ("failed", hostile[query]), (query, failed)
    assert value(db, "SELECT count(*) FROM cancer") == 569
    assert value(db, "SELECT count(*) FROM wall") == 0

    # Nobody submits in another's name, sees another's jobs, or changes what they do.
    with pytest.raises(errors.InsufficientPrivilege):
        mine.execute("INSERT INTO distill.job_queue (submitter, arguments) VALUES ('postgres', '{}')")
    with pytest.raises(errors.InsufficientPrivilege):
        mine.execute("UPDATE distill.job_queue SET submitter_oid = 10")
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        mine.execute("UPDATE distill.job_queue SET arguments = '{}'")
    theirs = connect(user=other)
    assert value(theirs, "SELECT count(*) FROM distill.jobs") == 0
    with pytest.raises(errors.UndefinedObject):
        theirs.execute("SELECT distill.cancel(%s)", (next(iter(submitted)),))
    # Row-level security does not hold everybody back; the trigger does.
    db.execute(f"ALTER ROLE {other} BYPASSRLS")
    with pytest.raises(errors.InsufficientPrivilege):
        theirs.execute("INSERT INTO distill.job_queue (submitter, arguments) VALUES ('postgres', '{}')")

    # The superuser's worker leaves others' jobs alone, and a worker under SET ROLE does not start.
    waiting = str(value(mine, "SELECT distill.submit('cancer', sample => 'cancer')"))
    ok(start_worker("--once"))
    assert job(mine, waiting)["state"] == "queued"
    db.execute(f"SET ROLE {low}")
    with pytest.raises(errors.InsufficientPrivilege):
        db.execute("SELECT distill.run_next_job()")
    db.execute("RESET ROLE")


def test_a_worker_under_set_role_does_not_start(
    db: psycopg.Connection, engineer: Role, server: servers.Server, database: str
) -> None:
    low = engineer("low")
    from pg_distill.errors import InsufficientPrivilege
    from pg_distill.jobs.worker import Worker

    with pytest.raises(InsufficientPrivilege):
        Worker(server.conninfo(dbname=database, options=f"-c role={low}")).run(once=True)


def test_offered_models_are_checked_and_named_apart(db: psycopg.Connection, connect: Connect) -> None:
    from pg_distill.database.client import PsycopgDatabase
    from pg_distill.registry import models

    load_cancer(db)
    schemas = json.dumps([models.find_model(PsycopgDatabase(connect()), "cancer").signature.to_json()])
    with pytest.raises(errors.InvalidBinaryRepresentation):
        db.execute(
            "SELECT distill._offer_models(ARRAY[E'\\x1fx'], ARRAY['no model'::bytea], %s, '{}')", (schemas,)
        )
    with pytest.raises(errors.InvalidParameterValue):
        db.execute("SELECT distill._offer_models('{cancer}', ARRAY['no model'::bytea], '[]', '{}')")


def test_large_offers_go_in_several_messages(
    db: psycopg.Connection, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message has 1 GB at most."""
    from pg_distill.database.client import PsycopgDatabase
    from pg_distill.registry import models
    from pg_distill.serving import predict

    load_cancer(db)
    client = PsycopgDatabase(connect())
    model = models.find_model(client, "cancer")
    artifact = models.read_artifact(client, model)
    names = [f"{predict.OFFERED}{i}" for i in range(3)]
    offered = dict.fromkeys(names, (artifact, model.signature))
    monkeypatch.setattr(predict, "OFFER_BYTES", 2 * len(artifact))
    assert predict._parts(offered) == [names[:2], names[2:]]
    with predict.offer(client, offered) as opened:
        assert list(opened) == names and min(opened.values()) > 0
        row = "pg_catalog.array_fill(1::float8, array[30])"
        expected = client.query(f"select distill.predict('cancer', {row}) as p")
        for name in names:
            assert client.query(f"select distill.predict($1, {row}) as p", ("text", name)) == expected
    monkeypatch.setattr(predict, "OFFER_BYTES", 1)
    assert predict._parts(offered) == [[name] for name in names]


def test_run_next_job_in_a_session(db: psycopg.Connection) -> None:
    """What pg_cron would call."""
    load_cancer(db)
    assert value(db, "SELECT distill.run_next_job()") is None
    # The sample is named in the submitter's search_path; the session that runs it has another table of this name.
    db.execute(
        "CREATE SCHEMA theirs; CREATE TABLE theirs.sampled AS SELECT * FROM cancer; CREATE TABLE sampled ()"
    )
    db.execute("SET search_path = theirs, public")
    good = str(value(db, SUBMIT.format(budget=2).replace("'cancer',", "'cancer', sample => 'sampled',", 1)))
    db.execute("RESET search_path")
    bad = str(value(db, "SELECT distill.submit('cancer', sample => 'nowhere')"))
    ran = [str(value(db, "SELECT distill.run_next_job()")) for _ in range(2)]
    assert ran == [good, bad]
    assert value(db, "SHOW search_path") == value(
        db, "SELECT reset_val FROM pg_settings WHERE name = 'search_path'"
    )
    assert job(db, good)["state"] == "done"
    assert value(db, "SELECT count(*) FROM distill.runs WHERE run_id = %s", good) == 1
    assert (job(db, bad)["state"], job(db, bad)["sqlstate"]) == ("failed", "42P01")
    waiting = submit(db, 60)
    db.execute("SET statement_timeout = '500ms'")
    with pytest.raises(errors.QueryCanceled):
        db.execute("SELECT distill.run_next_job()")
    db.execute("RESET statement_timeout")
    assert (job(db, waiting)["state"], job(db, waiting)["attempts"]) == ("queued", 0)


def test_the_client_adapter_gives_what_the_backend_gives(db: psycopg.Connection, connect: Connect) -> None:
    """Types as PL/Python hands them over; one statement only; read-only is read-only; nothing is held open."""
    from pg_distill.database.client import PsycopgDatabase
    from pg_distill.errors import InvalidState

    connection = connect(autocommit=False)
    adapter = PsycopgDatabase(connection)
    awkward = "a \"b\" \\c {d}, $1 'e' NULL \n"
    [row] = adapter.query(
        "select $1 as t, $2 as ts, $3 as f, $4 as i, $5 as b, $6 as j, $7 as u, $8 as o, $9 as n",
        ("text", awkward),
        ("text[]", [awkward, None, "", "NULL"]),
        ("double precision", float("inf")),
        ("int8[]", [1, None, -(2**62)]),
        ("bytea", b"\x00\xff\\"),
        ("jsonb", '{"a": 1}'),
        ("uuid", "00000000-0000-0000-0000-000000000001"),
        ("boolean", True),
        ("timestamp with time zone", None),
    )
    assert row == {
        "t": awkward,
        "ts": [awkward, None, "", "NULL"],
        "f": float("inf"),
        "i": [1, None, -(2**62)],
        "b": b"\x00\xff\\",
        "j": '{"a": 1}',
        "u": "00000000-0000-0000-0000-000000000001",
        "o": True,
        "n": None,
    }
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    with pytest.raises(errors.SyntaxError):
        adapter.query_once("SELECT 1; SELECT 2")
    db.execute("CREATE TABLE written (i int)")
    with pytest.raises(errors.ReadOnlySqlTransaction):
        adapter.caged([], lambda: adapter.query("insert into public.written values (1)"))
    with adapter.transaction(), pytest.raises(errors.ReadOnlySqlTransaction):
        adapter.caged([], lambda: adapter.query("insert into public.written values (1)"))
    with adapter.transaction():
        adapter.caged([], lambda: adapter.query_once("SELECT 1"))
        adapter.query("insert into public.written values (2)")  # writable again
    assert value(db, "SELECT array_agg(i) FROM written") == [2]
    with pytest.raises(InvalidState):  # the registry is the server's to write
        adapter.write(lambda: adapter.query("select"))
