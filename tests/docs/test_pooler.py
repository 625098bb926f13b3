"""Predictions through PgBouncer in transaction mode, where each statement may meet another server connection."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from docs.conftest import FEATURES, Pooler, distill_fraud, fraud
from psycopg import errors

pytestmark = pytest.mark.extra

ROW = [120.0, 3.0, 0.7]
STATEMENTS = {
    "by name": ("SELECT distill.predict('fraud_detector_distilled', %s)", [ROW]),
    "by a bound name": ("SELECT distill.predict(%s, %s)", ["fraud_detector_distilled", ROW]),
    "typed function": ("SELECT fraud_score(%s, %s, %s)", [120.0, 3, 0.7]),
    "chosen": ("SELECT distill.predict(distill.choose_model('fraud_detector', 5.0), %s)", [ROW]),
}


@pytest.fixture
def pooled(db: psycopg.Connection, pooler: Callable[[], Pooler]) -> Pooler:
    distill_fraud(db)
    db.execute("SELECT distill.create_function('fraud_detector_distilled', 'fraud_score')")
    return pooler()


def direct(db: psycopg.Connection) -> dict[str, object]:
    return {name: db.execute(text, given).fetchone() for name, (text, given) in STATEMENTS.items()}  # type: ignore[arg-type]


def test_prepared_statements_predict_the_same_and_follow_the_active_version(db: psycopg.Connection) -> None:
    """Through plans made for each value and the generic plan after them; a plan is kept, the name in it is resolved again."""
    distill_fraud(db)
    db.execute("SELECT distill.create_function('fraud_detector_distilled', 'fraud_score')")
    first = direct(db)
    for name, (text, given) in STATEMENTS.items():
        assert {db.execute(text, given, prepare=True).fetchone() for _ in range(12)} == {first[name]}  # type: ignore[arg-type]
    plans = db.execute("SELECT bool_and(generic_plans > 0), count(*) FROM pg_prepared_statements").fetchone()
    assert plans == (True, len(STATEMENTS))
    # The teacher's file, as a version that certainly predicts otherwise.
    db.execute(
        "SELECT distill.register_model('fraud_detector_distilled', %s, features => %s)",
        (fraud()[1], FEATURES),
    )
    for name in ("by name", "by a bound name", "typed function"):
        text, given = STATEMENTS[name]
        assert db.execute(text, given, prepare=True).fetchone() == direct(db)[name] != first[name]  # type: ignore[arg-type]


def test_pooled_predictions_are_those_of_the_server(db: psycopg.Connection, pooled: Pooler) -> None:
    """Many clients over few server connections, every form, each in its own transaction; the sleep keeps connections busy."""
    expected = direct(db)

    def client(number: int) -> set[int]:
        met = set()
        with psycopg.connect(pooled.conninfo, autocommit=True, prepare_threshold=None) as connection:
            for _ in range(15):
                for name, (text, given) in STATEMENTS.items():
                    assert connection.execute(text, given).fetchone() == expected[name], (number, name)  # type: ignore[arg-type]
                [pid] = connection.execute("SELECT pg_backend_pid() FROM pg_sleep(0.02)").fetchone() or [0]
                met.add(pid)
        return met

    with ThreadPoolExecutor(8) as pool:
        met = list(pool.map(client, range(8)))
    backends = set().union(*met)
    assert 1 < len(backends) <= 4  # default_pool_size
    assert any(len(pids) > 1 for pids in met)


def test_server_connections_are_warm_before_a_client_gets_them(
    connect: Callable[..., psycopg.Connection], pooled: Pooler
) -> None:
    warm_up = "SELECT milliseconds FROM distill.warm_up('{fraud_detector_distilled}')"
    with psycopg.connect(pooled.conninfo, autocommit=True, prepare_threshold=None) as connection:
        [warm] = connection.execute(warm_up).fetchone() or [0]
    [cold] = connect().execute(warm_up).fetchone() or [0]
    assert warm < cold / 2


@pytest.mark.parametrize("newer", [False, True], ids=["installed", "newer"])
def test_prepared_statements_through_the_pooler(
    db: psycopg.Connection, pooler: Callable[..., Pooler], newer: bool
) -> None:
    """From PgBouncer 1.21 on it carries them along; before, a client that prepares gets an error, not a wrong answer."""
    distill_fraud(db)
    db.execute("SELECT distill.create_function('fraud_detector_distilled', 'fraud_score')")
    pooled = pooler(newer=newer)
    assert pooled.prepares or not newer
    expected = direct(db)

    def client(_: int) -> set[int]:
        met = set()
        with psycopg.connect(pooled.conninfo, autocommit=True) as connection:
            for _ in range(20):
                for name, (text, given) in STATEMENTS.items():
                    assert connection.execute(text, given, prepare=True).fetchone() == expected[name]  # type: ignore[arg-type]
                # Held for a while, so that others are served meanwhile and the next is by another.
                [pid] = connection.execute(
                    "SELECT pg_backend_pid() FROM pg_sleep(0.02)", prepare=True
                ).fetchone() or [0]
                met.add(pid)
        return met

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(client, i) for i in range(8)]
    failures = [failure for future in futures if (failure := future.exception()) is not None]
    if pooled.prepares:
        assert failures == []
        # One client's statements were prepared on more than one server connection.
        assert any(len(future.result()) > 1 for future in futures)
    else:
        refused = (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement)
        assert failures and all(isinstance(failure, refused) for failure in failures)
