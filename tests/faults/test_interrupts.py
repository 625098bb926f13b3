"""A distillation ends at any moment when PostgreSQL says so, and leaves all of itself or nothing."""

from __future__ import annotations

import contextlib
import random
import time

import numpy as np
import psycopg
import pytest
import servers
from faults.harness import (
    DATABASE,
    DISTIL_FEW,
    DROP_STUDENTS,
    Run,
    Tally,
    broken,
    connect,
    counts,
    locks_held,
    no_process_left,
)

pytestmark = [pytest.mark.extra, pytest.mark.alone]

WAYS = ("cancel", "timeout", "terminate", "client gone", "shutdown")
ROUNDS, LONG_ROUNDS = 10, 200
HONOURED_SECONDS = 0.5  # what is promised, at the 99th percentile
CHECK_SECONDS = 0.1  # client_connection_check_interval: how often a backend looks for its client

# The backend's parent is the postmaster; SIGINT is a fast shutdown. No docker exec blocks the clock.
SHUT_DOWN = "DO 'import os, signal; os.kill(os.getppid(), signal.SIGINT)' LANGUAGE plpython3u"


def _typical_seconds(server: servers.Server) -> float:
    """Return how long an undisturbed distillation of a new session takes, of two the longer; each registers a student."""
    took = []
    for _ in range(2):
        with server.connect(DATABASE) as connection:
            connection.execute(DROP_STUDENTS)
            start = time.monotonic()
            assert connection.execute(DISTIL_FEW).fetchone() != (None,)
            took.append(time.monotonic() - start)
    return max(took)


def _wait_for_backend_to_go(connection: psycopg.Connection, pid: int) -> float:
    deadline = time.monotonic() + 30
    while connection.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return time.monotonic()


@pytest.mark.local
@pytest.mark.timeout(3600)
def test_interrupted_at_random_moments(
    few_server: servers.Server, long: bool, dice: random.Random, tally: Tally
) -> None:
    server = few_server
    typical = _typical_seconds(server)
    observer = server.connect(DATABASE)
    started = server.started_at()
    honoured: list[float] = []
    rounds, tries = LONG_ROUNDS if long else ROUNDS, 0
    # A distillation that was over first is no interrupt, and does not count.
    while len(honoured) < rounds:
        tries += 1
        assert tries <= 2 * rounds
        way = WAYS[len(honoured) % len(WAYS)]
        moment = dice.uniform(0.0, typical)
        observer.execute(DROP_STUDENTS)
        before = counts(observer)
        connection = server.connect(DATABASE)
        connection.execute("SET client_connection_check_interval = '100ms'")
        if way == "timeout":
            connection.execute(f"SET statement_timeout = {max(1, round(moment * 1000))}")
        began = time.monotonic()
        run = Run(connection, DISTIL_FEW)
        if way == "timeout":
            asked = began + moment
        else:
            time.sleep(moment)
            asked = time.monotonic()
        if way == "cancel":
            observer.execute("SELECT pg_cancel_backend(%s)", (run.pid,))
        elif way == "terminate":
            observer.execute("SELECT pg_terminate_backend(%s)", (run.pid,))
        elif way == "client gone":
            # Both directions at once, under libpq's feet.
            import socket

            with socket.socket(fileno=connection.pgconn.socket) as client:
                client.shutdown(socket.SHUT_RDWR)
                client.detach()
            run.ended = _wait_for_backend_to_go(observer, run.pid) - CHECK_SECONDS
        elif way == "shutdown":
            with contextlib.suppress(psycopg.OperationalError):
                observer.execute(SHUT_DOWN)
        gone = run.ended
        run.join()
        ended = gone if way == "client gone" else run.ended
        run.close()
        finished = run.error is None
        if finished:
            # Measured in a busy moment, it would be over first each time.
            typical = min(typical, ended - began)
        else:
            honoured.append(ended - asked)
            tally[way] += 1
            print(f"{way} at {moment:.3f} s of {typical:.3f}: {honoured[-1] * 1000:.0f} ms")
        if way == "shutdown":
            server.stop()
            no_process_left(server) if isinstance(server, servers.Local) else None
            server.start()
            observer.close()
            observer = connect(server)
            started = server.started_at()
        no_process_left(server)
        after = counts(observer)
        assert not finished or after[0] == before[0] + 1, (way, moment, before, after)
        if after != before:
            # It was too late: then all of it is there. The client that went may not have heard of it.
            assert finished or way in ("client gone", "shutdown", "terminate"), (way, moment, before, after)
            assert after[0] == before[0] + 1
        assert broken(observer) == {}, (way, moment)
        assert locks_held(observer) == 0
        assert server.started_at() == started, (way, moment)
    observer.close()
    tally["p99 ms"] = round(float(np.quantile(honoured, 0.99)) * 1000)
    tally["longest ms"] = round(max(honoured) * 1000)
    assert np.quantile(honoured, 0.99) <= HONOURED_SECONDS, sorted(honoured)[-5:]
