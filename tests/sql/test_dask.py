"""Candidates trained by a real Dask scheduler's workers, some of which are killed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
import servers
from clusters import PATIENCE_S, Cluster
from psycopg import errors
from sql.conftest import load_cancer

pytest.importorskip("distributed", reason="Dask is not installed (the extra dask)")

# The cluster is on this machine's loopback, and the images have no Dask.
pytestmark = [pytest.mark.one_server("local"), pytest.mark.extra]

WORKERS = 3


@pytest.fixture
def cluster(server: servers.Server) -> Iterator[Cluster]:
    """Give a cluster on this machine, which a server in a container does not reach."""
    if not isinstance(server, servers.Local):
        pytest.skip("the cluster is on this machine's loopback, and so must the server be")
    made = Cluster(WORKERS)
    yield made
    made.end()


def candidates(db: psycopg.Connection, student: str) -> dict[tuple[str, str], tuple[str, float]]:
    """Distil, and return what was trained: digest and metric by family, recipe and whether it was refitted.

    Rows that are split by time have no folds: how many of these there is time for, the machine decides.
    """
    db.execute(
        "SELECT distill_model('cancer', families => '{linear,tree,mlp}', epochs => 1, time_budget_s => 30, time_column => 'at',"
        " sample => $$SELECT *, row_number() OVER (ORDER BY c.*) AS at FROM cancer c$$, label => 'malignant',"
        " min_accuracy => 0, target_latency_ms => 1000, student_name => %s)",
        (student,),
    )
    rows = db.execute(
        "SELECT family, (configuration - 'refit')::text || coalesce(configuration ->> 'refit' = 'with select rows', false),"
        " sha256, select_accuracy FROM distill.candidates"
        " WHERE run_id = distill.last_run('cancer') AND form = 'predict' AND family <> 'blend' AND sha256 IS NOT NULL"
        # Of other seeds there are as many as there is time for.
        " AND configuration ->> 'stage' IN ('screen', 'sizes')"
        # Where a training ended for want of time, the machine's load is in the bytes.
        " AND NOT configuration ? 'cut_short'"
    )
    return {(row[0], row[1]): (row[2], row[3]) for row in rows}


@pytest.mark.timeout(600)
def test_the_same_students_though_workers_are_killed(db: psycopg.Connection, cluster: Cluster) -> None:
    load_cancer(db)
    here = candidates(db, "here")
    db.execute("SELECT distill.change_setting('executor', %s)", (f"dask://{cluster.address}",))
    before = cluster.transitions()

    def kill() -> None:
        """Kill two of the three workers, once they train."""
        for victim, seen in zip(cluster.workers[:-1], (15, 30), strict=True):
            deadline = time.monotonic() + PATIENCE_S
            while cluster.transitions() < before + seen and time.monotonic() < deadline:
                time.sleep(0.1)
            victim.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    there = candidates(db, "there")
    killer.join()
    assert [worker.poll() is None for worker in cluster.workers] == [False, False, True]
    assert cluster.transitions() > before + len(there)
    both = here.keys() & there.keys()
    # How many there is time for, the machine decides; tests/unit/test_cluster.py has the search without its clock.
    assert {"linear", "tree"} <= {family for family, _ in both}
    assert len(both) > 4
    assert {key: here[key] for key in both} == {key: there[key] for key in both}


def test_a_cluster_that_cannot_be_had_is_an_error(db: psycopg.Connection) -> None:
    load_cancer(db)
    for wrong in ("dask:/x", "dask://host", "tcp://host:1", "dask://host:x", ""):
        with pytest.raises(errors.InvalidParameterValue):
            db.execute("SELECT distill.change_setting('executor', %s)", (wrong,))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        db.execute(
            "SELECT distill.change_setting('executor', %s)", (f"dask://127.0.0.1:{closed.getsockname()[1]}",)
        )
        with pytest.raises(errors.ObjectNotInPrerequisiteState) as raised:
            db.execute("SELECT distill_model('cancer', families => '{linear}', time_budget_s => 5)")
        # Without Dask the same SQLSTATE has the advice to install it.
        assert raised.value.diag.message_hint is None
    assert db.execute("SELECT count(*) FROM distill.runs").fetchone() == (0,)
    db.execute("SELECT distill.change_setting('executor', NULL)")
    assert db.execute(
        "SELECT value, is_default FROM distill.show_settings() WHERE name = 'executor'"
    ).fetchone() == ("local", True)
