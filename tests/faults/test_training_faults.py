"""A distillation that is cut short in any way harms nobody: no process, no row, no other session is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
import servers
from conftest import create_database, drop_database
from faults.harness import (
    DATABASE,
    GUARD,
    Run,
    Tally,
    broken,
    constant_model,
    counts,
    no_process_left,
    nothing_left,
    ours,
    wait_for_training,
)
from sql.conftest import cancer, load_cancer, names

pytestmark = pytest.mark.extra

OTHER, TAUGHT = "pg_distill_other", "pg_distill_taught"
DIED_SECONDS = 2.0  # what is promised, from when the signal or the garbage has been sent
LONG = "SELECT distill_model('cancer', time_budget_s => 120, families => '{mlp}')"


@pytest.fixture(scope="module")
def victims(server: servers.Server) -> Iterator[Callable[[bool], servers.Server]]:
    """Give servers of this file's own with a teacher in a database to copy: victims(init). No test here may harm them."""
    made: dict[bool, servers.Server] = {}
    with contextlib.ExitStack() as stack:

        def give(init: bool) -> servers.Server:
            if isinstance(server, servers.External):
                pytest.skip("processes of somebody else's server are not killed")
            if isinstance(server, servers.Local) and not init:
                pytest.skip("the postmaster is PID 1 in a container only")
            if init not in made:
                made[init] = stack.enter_context(servers.start(server.name, init=init))
                create_database(made[init], TAUGHT)
                with made[init].connect(TAUGHT) as connection:
                    load_cancer(connection)
            return made[init]

        yield give


@pytest.fixture(params=[True, False], ids=["init", "postmaster is PID 1"])
def victim(
    request: pytest.FixtureRequest, victims: Callable[[bool], servers.Server]
) -> Iterator[servers.Server]:
    """Give a server with a fresh database that has a teacher, once under an init process and once without."""
    server = victims(request.param)
    create_database(server, DATABASE, TAUGHT)
    yield server
    for name in (DATABASE, OTHER):
        drop_database(server, name)


@pytest.mark.local
def test_backend_gone_in_any_way(victim: servers.Server, tally: Tally) -> None:
    """Cancel, timeout, termination: the statement ends within half a second, everything else goes on."""
    started = victim.started_at()
    bystander = victim.connect(DATABASE)
    bystander.execute("CREATE TEMP TABLE mine AS SELECT 1")

    run = Run(victim.connect(DATABASE), LONG)
    wait_for_training(victim, run)
    asked = time.monotonic()
    bystander.execute("SELECT pg_cancel_backend(%s)", (run.pid,))
    run.join()
    assert isinstance(run.error, psycopg.errors.QueryCanceled)
    assert run.ended - asked < 0.5
    nothing_left(victim)
    assert run.connection.execute("SELECT 1").fetchone() == (1,)

    run.connection.execute("SET statement_timeout = '4s'")
    before = time.monotonic()
    again = Run(run.connection, LONG)
    again.join()
    assert isinstance(again.error, psycopg.errors.QueryCanceled)
    assert 3.9 < again.ended - before < 4.6
    nothing_left(victim)
    tally.update(["cancel", "timeout", "terminate"])
    again.close()

    run = Run(victim.connect(DATABASE), LONG)
    wait_for_training(victim, run)
    asked = time.monotonic()
    bystander.execute("SELECT pg_terminate_backend(%s)", (run.pid,))
    run.join()
    assert isinstance(run.error, psycopg.OperationalError)
    assert run.ended - asked < 0.5
    nothing_left(victim)
    run.close()

    assert bystander.execute("SELECT count(*) FROM mine").fetchone() == (1,)
    assert victim.started_at() == started
    bystander.close()


@pytest.mark.local
def test_trainer_dies_in_any_way(victim: servers.Server, tally: Tally) -> None:
    """A child that is killed, faults or stops is reported under its SQLSTATE; the session goes on."""
    started = victim.started_at()
    session = victim.connect(DATABASE)
    for signal in ("KILL", "SEGV", "STOP", "TERM"):
        run = Run(session, LONG)
        child = wait_for_training(victim, run)
        victim.kill(child.pid, signal)
        asked = time.monotonic()
        run.join()
        assert isinstance(run.error, psycopg.Error)
        assert run.error.sqlstate == "58000", (signal, run.error)
        assert run.ended - asked < DIED_SECONDS, signal
        nothing_left(victim)
        tally[f"trainer {signal}"] += 1
    assert session.execute("SELECT 1").fetchone() == (1,)
    session.close()
    assert victim.started_at() == started


@pytest.mark.local
def test_guard_dies_in_any_way(victim: servers.Server, tally: Tally) -> None:
    """The process between backend and child is lost: the child goes with it, and the session is told."""
    started = victim.started_at()
    session = victim.connect(DATABASE)
    for signal in ("KILL", "STOP"):
        run = Run(session, LONG)
        wait_for_training(victim, run)
        (guard,) = ours(victim, GUARD)
        victim.kill(guard.pid, signal)
        asked = time.monotonic()
        run.join()
        assert isinstance(run.error, psycopg.Error)
        assert run.error.sqlstate == "58000", (signal, run.error)
        assert run.ended - asked < DIED_SECONDS, signal
        nothing_left(victim)
        tally[f"guard {signal}"] += 1
    session.close()
    assert victim.started_at() == started


@pytest.mark.local
def test_garbage_on_the_pipe(victim: servers.Server, tally: Tally) -> None:
    """Somebody else writes to the pipe on which the child answers."""
    started = victim.started_at()
    session = victim.connect(DATABASE)
    run = Run(session, LONG)
    child = wait_for_training(victim, run)
    replies = child.command.split()[-2]  # its arguments are its descriptors: requests, replies, beats
    victim.run("sh", "-c", f"printf 'garbage that is no message' > /proc/{child.pid}/fd/{replies}")
    asked = time.monotonic()
    run.join()
    assert isinstance(run.error, psycopg.Error)
    assert run.error.sqlstate == "58000", run.error
    assert run.ended - asked < DIED_SECONDS
    nothing_left(victim)
    tally["garbage"] += 1
    assert session.execute("SELECT 1").fetchone() == (1,)
    session.close()
    assert victim.started_at() == started


@pytest.mark.local
def test_no_scratch_file_is_needed(victim: servers.Server) -> None:
    """No disk can be too full for the child: it may write no file of any size, and distils under that limit."""
    session = victim.connect(DATABASE)
    run = Run(session, LONG)
    child = wait_for_training(victim, run)
    looked = victim.run(
        "sh",
        "-c",
        f"grep 'Max file size' /proc/{child.pid}/limits; for f in /proc/{child.pid}/fd/*; do readlink $f; done",
    ).stdout.splitlines()
    assert looked[0].split()[3:5] == ["0", "0"]
    # Pipes, the null device, and what is in memory only.
    assert [
        x for x in looked[1:] if not x.startswith(("pipe:", "/dev/", "socket:", "anon_inode:", "/memfd:"))
    ] == []
    with victim.connect(DATABASE) as connection:
        connection.execute("SELECT pg_cancel_backend(%s)", (run.pid,))
    run.join()
    run.close()
    nothing_left(victim)
    with victim.connect(DATABASE) as connection:
        connection.execute("SELECT distill_model('cancer', families => '{linear}', time_budget_s => 2)")
        assert counts(connection)[0] == 1
        assert broken(connection) == {}


def test_full_disk_under_the_registry(
    server: servers.Server, start_server: Callable[..., servers.Server], tally: Tally
) -> None:
    """A registration that the database's disk cannot hold is an error, nothing of it stays, and there is a next time."""
    if not isinstance(server, servers.Container):
        pytest.skip("only a container has a small file system of its own to fill")
    victim = start_server()
    small = "/dev/shm/pg_distill"  # a tmpfs of 256 MB
    victim.run("mkdir", small)
    with victim.connect() as connection:
        connection.execute(f"CREATE TABLESPACE small LOCATION '{small}'")
        connection.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template0 ENCODING 'UTF8' TABLESPACE small")
    with victim.connect(DATABASE) as connection:
        connection.execute("CREATE EXTENSION pg_distill CASCADE")
        load_cancer(connection)
        victim.run("sh", "-c", f"head -c 1G /dev/zero > {small}/fill", check=False)
        _, _, artifact = cancer()
        before = connection.execute(
            "SELECT count(*), md5(string_agg(m::text, '' ORDER BY id)) FROM distill.models m"
        ).fetchone()
        register = "SELECT distill.register_model('cancer', %s, features => %s)"
        with pytest.raises(psycopg.Error) as caught:
            connection.execute(register, (artifact, names(30)))
        assert caught.value.sqlstate == "53100", caught.value
        tally["full disk"] += 1
        assert broken(connection) == {}
        victim.run("rm", f"{small}/fill")
        connection.execute(register, (artifact, names(30)))
        assert broken(connection) == {}
        after = connection.execute("SELECT count(*) FROM distill.models").fetchone()
    assert before is not None
    assert after is not None
    assert after[0] > before[0]
    no_process_left(victim)


@pytest.mark.local
def test_training_holds_a_snapshot(victim: servers.Server) -> None:
    """What the documents say: vacuum removes nothing that died after an in-session distillation began."""
    run = Run(victim.connect(DATABASE), LONG)
    wait_for_training(victim, run)
    with victim.connect(DATABASE) as connection:
        connection.execute("CREATE TABLE dying AS SELECT 1 AS x; DELETE FROM dying")
        assert connection.execute(
            "SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE pid = %s", (run.pid,)
        ).fetchone() == (True,)
        connection.execute("VACUUM dying")
        assert connection.execute("SELECT pg_relation_size('dying') > 0").fetchone() == (True,)
        connection.execute("SELECT pg_cancel_backend(%s)", (run.pid,))
        run.join()
        run.close()
        connection.execute("VACUUM dying")
        assert connection.execute("SELECT pg_relation_size('dying')").fetchone() == (0,)


@pytest.mark.local
def test_trainer_stands_back(victim: servers.Server) -> None:
    """It is niced, first for the kernel to take, in a session of its own, and not in the data directory."""
    run = Run(victim.connect(DATABASE), LONG)
    child = wait_for_training(victim, run)
    [backend] = [process for process in victim.processes("^postgres: ") if process.pid == run.pid]
    assert child.nice == min(backend.nice + 10, 19)  # the suite itself may be niced
    assert child.oom_score_adj == 1000
    assert child.sid == child.pid == child.pgid
    assert child.cwd == "/"
    with victim.connect(DATABASE) as connection:
        connection.execute("SELECT pg_cancel_backend(%s)", (run.pid,))
    run.join()
    run.close()
    nothing_left(victim)


@pytest.mark.local
def test_memory_limit_is_an_error_and_not_a_crash(victim: servers.Server, tally: Tally) -> None:
    started = victim.started_at()
    with victim.connect(DATABASE) as connection:
        connection.execute("SELECT distill.change_setting('trainer_memory_mb', '256')")
        with pytest.raises(psycopg.Error) as caught:
            connection.execute("SELECT distill_model('cancer', time_budget_s => 20)")
        assert caught.value.sqlstate == "53200", f"{caught.value} {caught.value.diag.message_detail}"
        tally["memory limit"] += 1
        connection.execute("SELECT distill.change_setting('trainer_memory_mb', NULL)")
    nothing_left(victim)
    assert victim.started_at() == started


@pytest.mark.local
def test_backend_killed_leaves_no_orphan(victim: servers.Server, tally: Tally) -> None:
    """A crashed backend restarts the sessions, as always; its child is gone by itself."""
    run = Run(victim.connect(DATABASE), LONG)
    wait_for_training(victim, run)
    victim.kill(run.pid, "KILL")
    run.join()
    run.close()
    victim.wait()
    nothing_left(victim)
    tally["backend KILL"] += 1


@pytest.mark.local
def test_only_so_many_trainings_at_once(victim: servers.Server, tally: Tally) -> None:
    with victim.connect(DATABASE) as connection:
        connection.execute("SELECT distill.change_setting('concurrent_trainings', '1')")
        run = Run(victim.connect(DATABASE), LONG)
        wait_for_training(victim, run)
        with pytest.raises(psycopg.Error) as caught:
            connection.execute("SELECT distill_model('cancer')")
        assert caught.value.sqlstate == "53400"
        # The places are the server's: in another database there is none left either.
        create_database(victim, OTHER)
        with victim.connect(OTHER) as other:
            other.execute("SELECT distill.change_setting('concurrent_trainings', '1')")
            other.execute(
                "SELECT distill.register_model('m', %s, features => '{x}', task => 'regression')",
                (constant_model(1.0),),
            )
            distil = "SELECT distill_model('m', sample => 'SELECT 1.0::float8 AS x')"
            with pytest.raises(psycopg.Error) as caught:
                other.execute(distil)
            assert caught.value.sqlstate == "53400"
            other.execute("SELECT distill.change_setting('concurrent_trainings', '2')")
            with pytest.raises(psycopg.errors.DataException):  # it is let in, to find that one row is too few
                other.execute(distil)
        tally["one too many"] += 2
        connection.execute("SELECT pg_cancel_backend(%s)", (run.pid,))
        run.join()
        run.close()
    nothing_left(victim)
