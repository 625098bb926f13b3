"""The whole server is killed: of each registration and distillation everything is there afterwards, or nothing."""

from __future__ import annotations

import random
import threading
import time

import psycopg
import pytest
import servers
from faults.harness import DATABASE, DISTIL_FEW, REGISTER_FEW, Tally, broken, connect, few_teacher

pytestmark = pytest.mark.extra

CRASHES, LONG_CRASHES = 2, 20
LONGEST_SECONDS = 5.0  # to a crash: time for several registrations and distillations


class Client(threading.Thread):
    """Does one thing again and again, and notes what the server has confirmed, until the server is gone."""

    def __init__(self, server: servers.Server, statement: str, *arguments: bytes) -> None:
        super().__init__(daemon=True)
        self._connection = server.connect(DATABASE)
        self._statement, self._arguments = statement, arguments
        self.confirmed: list[object] = []
        self.start()

    def run(self) -> None:
        try:
            while True:
                row = self._connection.execute(self._statement, self._arguments or None).fetchone()  # type: ignore[arg-type]
                assert row is not None
                self.confirmed.append(row[0])
        except psycopg.OperationalError:
            self._connection.close()


def _column(connection: psycopg.Connection, query: str) -> list[object]:
    return [row[0] for row in connection.execute(query)]  # type: ignore[arg-type]


@pytest.mark.local
@pytest.mark.timeout(1800)
def test_server_killed_during_registration_and_distillation(
    few_server: servers.Server, long: bool, dice: random.Random, tally: Tally
) -> None:
    server = few_server
    with server.connect(DATABASE) as connection:
        models: set[object] = set(_column(connection, "SELECT id FROM distill.models"))
    runs = 0
    for _ in range(LONG_CRASHES if long else CRASHES):
        registering = Client(server, REGISTER_FEW, few_teacher())
        distilling = Client(server, DISTIL_FEW)
        time.sleep(dice.uniform(0.2, LONGEST_SECONDS))
        server.crash()
        registering.join(30)
        distilling.join(30)
        assert not registering.is_alive()
        assert not distilling.is_alive()
        server.start()
        tally["killed"] += 1
        tally["confirmed"] += len(registering.confirmed) + len(distilling.confirmed)
        with connect(server) as connection:
            assert broken(connection) == {}
            # What was confirmed is there; of what was not, at most the one that was under way.
            found = set(_column(connection, "SELECT id FROM distill.models WHERE teacher_id IS NULL"))
            confirmed = {*models, *registering.confirmed}
            assert confirmed <= set(_column(connection, "SELECT id FROM distill.models"))
            assert len(found - confirmed) <= 1
            students = {m for m in distilling.confirmed if m is not None}
            assert students <= set(_column(connection, "SELECT id FROM distill.models"))
            tally["students confirmed"] += len(students)
            (now,) = _column(connection, "SELECT count(*) FROM distill.runs")
            assert isinstance(now, int)
            assert now - runs in (len(distilling.confirmed), len(distilling.confirmed) + 1)
            tally["under way and kept"] += now - runs - len(distilling.confirmed) + len(found - confirmed)
            runs, models = now, found
            predicted = _column(connection, "SELECT distill.predict('few', ARRAY[x0, x1, x2, x3]) FROM few")
            assert None not in predicted
