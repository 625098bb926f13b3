"""Sixteen sessions register, distil, activate, drop and predict under the same names, and none is told a lie."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable

import psycopg
import pytest
import servers
from faults.harness import (
    DATABASE,
    DISTIL_FEW,
    REGISTER_FEW,
    Tally,
    broken,
    constant_model,
    few_teacher,
    no_process_left,
)

pytestmark = pytest.mark.extra

SECONDS, LONG_SECONDS = 15.0, 600.0
PATIENCE_S = 60.0  # that a busy machine may take longer until every act has happened
NAMES = ("one", "other")
KEPT, LONG_KEPT = 6, 30  # versions of a name, so that a long run does not end in a scan of thousands

# What a session may be told, and goes on: the version is gone; all places for trainings are taken; students depend on it; the run's
# teacher has been dropped. Who registers, predicts or changes students alone is told nothing.
EXPECTED = {
    "activate": {"42704"},
    "drop": {"42704"},
    "distil": {"42704", "53400"},
    "change_teachers": {"2BP01"},
    "promote": {"42704", "55000"},
}


Act = Callable[[psycopg.Connection, random.Random], bool | None]
"""What a session does once; it returns False where there was nothing to do."""


class Work:
    """What the sessions do and know together."""

    def __init__(self, server: servers.Server, long: bool, seed: int, tally: Tally) -> None:
        self._server = server
        self._ends = time.monotonic() + (LONG_SECONDS if long else SECONDS)
        # In the short form there is no time for those that wait for others.
        self.acts = {
            "register",
            "activate",
            "predict",
            "predict_repeatably",
            "change_teachers",
            "change_students",
        }
        self.acts |= EXPECTED.keys() if long else set()
        self._kept = LONG_KEPT if long else KEPT
        self._seed = seed
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self.tally = tally
        self.registered: dict[str, set[str]] = {name: set() for name in NAMES}
        self.dropped: dict[str, set[str]] = {name: set() for name in NAMES}
        self.faults: list[str] = []

    def run(self, sessions: list[Act]) -> None:
        threads = [
            threading.Thread(target=self._loop, args=(act, number), daemon=True)
            for number, act in enumerate(sessions)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(self._ends - time.monotonic(), 0.0) + PATIENCE_S + 120)
            assert not thread.is_alive(), "a session waits for ever"

    def _loop(self, act: Act, number: int) -> None:
        dice = random.Random(self._seed + number)
        connection = self._server.connect(DATABASE)
        try:
            while self._goes_on():
                try:
                    outcome = act.__name__ if act(connection, dice) is not False else f"{act.__name__} not"
                except psycopg.Error as error:
                    outcome = f"{act.__name__} {error.sqlstate}"
                    if error.sqlstate not in EXPECTED.get(act.__name__, ()):
                        self.faults.append(f"{outcome}: {error}")
                with self._lock:
                    self.tally[outcome] += 1
        except BaseException as error:
            self.faults.append(f"{act.__name__}: {error!r}")
        finally:
            connection.close()

    def _goes_on(self) -> bool:
        late = time.monotonic() - self._ends
        missing = any(not self.tally[act] for act in self.acts)
        return not self.faults and (late < 0 or (late < PATIENCE_S and missing))

    def _pick(self, dice: random.Random) -> tuple[str, str]:
        name = dice.choice(NAMES)
        with self._lock:
            return name, dice.choice(sorted(self.registered[name] - self.dropped[name]) or ["none"])

    # -- names whose every version gives its own number

    def register(self, connection: psycopg.Connection, dice: random.Random) -> None:
        name = dice.choice(NAMES)
        with self._lock:
            version = str(next(self._numbers))
        connection.execute(
            "SELECT distill.register_model(%s, %s, features => '{x}', version => %s, task => 'regression')",
            (name, constant_model(float(version)), version),
        )
        with self._lock:
            self.registered[name].add(version)

    def activate(self, connection: psycopg.Connection, dice: random.Random) -> None:
        connection.execute("SELECT distill.activate_model(%s, %s)", self._pick(dice))
        time.sleep(dice.uniform(0, 0.02))

    def drop(self, connection: psycopg.Connection, dice: random.Random) -> bool:
        name, version = self._pick(dice)
        # Now and then of fewer: where registering is slow, prune is there first.
        if not self._has(name, self._kept if dice.random() < 0.9 else max(KEPT, self._kept // 3)):
            time.sleep(0.02)
            return False
        connection.execute("SELECT distill.drop_model(%s)", (f"{name}:{version}",))
        with self._lock:
            self.dropped[name].add(version)
        return True

    def prune(self, connection: psycopg.Connection, dice: random.Random) -> bool:
        name = dice.choice(NAMES)
        pruned = connection.execute(
            "SELECT version FROM distill.prune(keep_versions => %s, model_name => %s, dry_run => false) WHERE pruned",
            # More than the two that drop can take before they know what is gone: a name is never without a version.
            (self._kept // 2 + 1, name),
        ).fetchall()
        with self._lock:
            self.dropped[name].update(version for (version,) in pruned)
        time.sleep(dice.uniform(0, 2))
        return bool(pruned)

    def _has(self, name: str, versions: int) -> bool:
        with self._lock:
            return len(self.registered[name] - self.dropped[name]) >= versions

    def predict(self, connection: psycopg.Connection, dice: random.Random) -> bool:
        """Ask for a prediction and for the active version in one statement, which has one snapshot."""
        name = dice.choice(NAMES)
        if not self._has(name, 1):  # from the first version on there always is one
            time.sleep(0.02)
            return False
        row = connection.execute(
            "SELECT (SELECT m.version::float8 FROM distill.models m WHERE m.name = %s AND m.active),"
            " min(p), max(p) FROM (SELECT distill.predict(%s, ARRAY[x]) AS p FROM generate_series(1, %s) x) s",
            (name, name, dice.choice([1, 10, 1000])),
        ).fetchone()
        assert row is not None
        assert row[0] == row[1] == row[2], (name, row)
        return True

    def predict_repeatably(self, connection: psycopg.Connection, dice: random.Random) -> bool:
        """In one snapshot a name means one version, whatever others commit meanwhile."""
        name = dice.choice(NAMES)
        if not self._has(name, 1):
            time.sleep(0.02)
            return False
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            seen = set()
            for _ in range(3):
                seen.add(connection.execute("SELECT distill.predict(%s, ARRAY[1])", (name,)).fetchone())
                time.sleep(dice.uniform(0, 0.05))
            assert len(seen) == 1, (name, seen)
        return True

    # -- a family: teachers and students

    def distil(self, connection: psycopg.Connection, dice: random.Random) -> None:
        connection.execute(DISTIL_FEW)

    def change_teachers(self, connection: psycopg.Connection, dice: random.Random) -> None:
        versions = [
            row[0] for row in connection.execute("SELECT version FROM distill.models WHERE name = 'few'")
        ]
        what = dice.choice(["register", "activate", "drop"])
        if what == "register" or len(versions) < 2:
            connection.execute(REGISTER_FEW, (few_teacher(),))
        elif what == "activate":
            connection.execute("SELECT distill.activate_model('few', %s)", (dice.choice(versions),))
        else:
            connection.execute("SELECT distill.drop_model(%s)", (f"few:{dice.choice(versions)}",))

    def promote(self, connection: psycopg.Connection, dice: random.Random) -> bool:
        row = connection.execute(
            "SELECT run_id, candidate FROM distill.candidates WHERE artifact IS NOT NULL ORDER BY random() LIMIT 1"
        ).fetchone()
        if row is not None:
            connection.execute("SELECT distill.promote_candidate(%s, %s)", row)
        time.sleep(dice.uniform(0, 1))
        return row is not None

    def change_students(self, connection: psycopg.Connection, dice: random.Random) -> bool:
        versions = [
            row[0]
            for row in connection.execute("SELECT version FROM distill.models WHERE name = 'few_distilled'")
        ]
        if not versions:
            time.sleep(0.05)
            return False
        if dice.random() < 0.5:
            connection.execute("SELECT distill.activate_model('few_distilled', %s)", (dice.choice(versions),))
        else:
            connection.execute("SELECT distill.drop_model(%s)", (f"few_distilled:{dice.choice(versions)}",))
        time.sleep(dice.uniform(0, 0.1))
        return True


@pytest.mark.local
@pytest.mark.timeout(1200)
def test_sixteen_sessions_on_the_same_names(
    few_server: servers.Server, long: bool, dice: random.Random, tally: Tally
) -> None:
    server = few_server
    with server.connect(DATABASE) as connection:
        connection.execute("SELECT distill.change_setting('concurrent_trainings', '3')")
        connection.execute(DISTIL_FEW)  # so that there are students and candidates from the start
    started = server.started_at()
    work = Work(server, long, dice.randrange(1 << 30), tally)
    work.run(
        [
            *[work.register] * 2,
            work.prune,
            *[work.activate] * 2,
            *[work.drop] * 2,
            *[work.predict] * 2,
            *[work.predict_repeatably] * 2,
            *[work.distil] * 2,
            work.promote,
            work.change_teachers,
            work.change_students,
        ]
    )
    assert work.faults == []
    assert server.started_at() == started
    no_process_left(server)
    with server.connect(DATABASE) as connection:
        assert broken(connection) == {}
        for name in NAMES:
            found = connection.execute("SELECT version FROM distill.models WHERE name = %s", (name,))
            assert {row[0] for row in found} == work.registered[name] - work.dropped[name]
    for act in work.acts:
        assert tally[act] > 0, (act, tally)
