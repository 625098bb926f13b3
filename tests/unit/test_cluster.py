"""The executor for a Dask cluster, by itself and under the search: what it gives, how it scales, what it survives."""

from __future__ import annotations

import signal
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import pytest
from clusters import PATIENCE_S, Cluster
from pg_distill.errors import InvalidState
from pg_distill.search import recipes, stages, training
from pg_distill.search.problem import Candidate, Config, Problem
from pg_distill.students.families import load_family
from student_rows import transfer, truth

pytest.importorskip("distributed", reason="Dask is not installed (the extra dask)")

from pg_distill.child import cluster as cluster_module
from pg_distill.child.cluster import DaskExecutor

pytestmark = [pytest.mark.slow, pytest.mark.extra]  # it starts clusters, and waits for what hangs


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(request.param)
    yield made
    made.end()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("cluster", [1], indirect=True)
def test_tasks_take_no_longer_than_their_share(cluster: Cluster) -> None:
    """Near-linear: with 1, 2 and 3 workers the same tasks take at most 1.4 times their sum over the workers."""
    tasks, seconds = 12, 0.25
    took = {}
    for workers in (1, 2, 3):
        if workers > 1:
            cluster.start_worker()
            cluster.wait_for(workers)
        with DaskExecutor(f"dask://{cluster.address}") as executor:
            assert executor.slots == workers
            executor.submit(time.sleep, 0.01).result()
            begun = time.monotonic()
            running: set[Future[Any]] = set()
            for _ in range(tasks):  # as search.execute does: no more under way than can run
                if len(running) == workers:
                    running = wait(running, return_when=FIRST_COMPLETED).not_done
                running.add(executor.submit(time.sleep, seconds))
            wait(running)
            took[workers] = time.monotonic() - begun
    for workers, found in took.items():
        assert found <= 1.4 * tasks * seconds / workers, took


def _found(cluster: Cluster | None, kill_at: tuple[int, ...] = ()) -> list[tuple[object, ...]]:
    """Search, and return all that a candidate is; kill a worker at each of some numbers of the scheduler's steps."""
    fit, select = transfer(200, "binary"), transfer(200, "binary", 1)
    problem = Problem("binary", ("a", "b"), "roc_auc", fit, select)
    config = Config(target_latency_ms=5.0, families=("mlp",), epochs=1, time_budget_s=1800.0, threads=2)
    if cluster is None:
        return _identities(stages.search(problem, config, lambda frame: truth(frame, "binary")))
    before = cluster.transitions()

    def kill() -> None:
        for victim, steps in zip(cluster.workers, kill_at, strict=False):
            deadline = time.monotonic() + PATIENCE_S
            while cluster.transitions() < before + steps and time.monotonic() < deadline:
                time.sleep(0.02)
            victim.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with DaskExecutor(f"dask://{cluster.address}") as executor:
            return _identities(
                stages.search(problem, config, lambda frame: truth(frame, "binary"), executor=executor)
            )
    finally:
        killer.join()


def _identities(candidates: list[Candidate]) -> list[tuple[object, ...]]:
    return [
        (c.number, c.family, repr(c.configuration), c.artifact, c.metric_select, c.on_frontier, c.reason)
        for c in candidates
    ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cluster", [3], indirect=True)
def test_the_same_candidates_as_here_though_workers_are_killed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, blends and refitted ones too: with latencies that are given, and time enough, nothing is left to chance."""
    from threadpoolctl import threadpool_limits

    # Any figure that depends on the file alone.
    monkeypatch.setattr(
        training, "timings", lambda artifact, frame: (1e-3 * (1 + zlib.crc32(artifact) % 100), 0.0)
    )
    monkeypatch.setattr(recipes, "SCREEN_ROWS", 600)
    monkeypatch.setattr(stages, "FINISHERS", 1)
    monkeypatch.setattr(stages, "MORE_SEEDS", 1)
    sizes = [{"hidden": [8 * n], "bins": bins} for n in (1, 2, 3) for bins in (0, 16)]
    monkeypatch.setattr(load_family("mlp"), "sizes", lambda shape: sizes)
    with threadpool_limits(1):
        here = _found(None)
    assert {"mlp", "blend"} <= {row[1] for row in here if row[3]}
    assert any("with select rows" in str(row[2]) for row in here)
    assert any(row[5] for row in here)
    assert _found(cluster) == here
    assert _found(cluster, kill_at=(15, 40)) == here
    assert [worker.poll() is None for worker in cluster.workers] == [False, False, True]


def test_rows_are_sent_again_where_a_worker_died_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler learns of a death a little later than the one who sends."""
    executor = object.__new__(DaskExecutor)
    executor._where, executor._broadcast = "here", True
    answers: list[Any] = [OSError("gone"), KeyError("tcp://gone"), ["sent"]]

    class Client:
        status = "running"

        def sync(self, function: Any, callback_timeout: float) -> Any:
            return function()

        def scatter(self, rows: Any, **_: Any) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    executor._client = Client()
    assert executor._scattered("rows") == "sent"
    answers.extend(OSError("gone") for _ in range(3))
    with pytest.raises(InvalidState):
        executor._scattered("rows")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("cluster", [1], indirect=True)
def test_sending_rows_ends_where_a_worker_never_answers(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it is killed at the wrong moment: the scheduler then waits for good."""
    monkeypatch.setattr(cluster_module, "SEND_SECONDS", 2.0)
    with DaskExecutor(f"dask://{cluster.address}") as executor:
        [worker] = cluster.workers
        worker.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(InvalidState):
                executor._scattered(transfer(100, "binary"))
        finally:
            worker.send_signal(signal.SIGCONT)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("cluster", [3], indirect=True)
def test_rows_are_sent_though_copying_them_hangs(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler copies under a lock, which it holds as long as one of the workers does not answer."""
    monkeypatch.setattr(cluster_module, "SEND_SECONDS", 2.0)
    with DaskExecutor(f"dask://{cluster.address}") as executor:
        cluster.workers[0].send_signal(signal.SIGSTOP)
        try:
            for seed in range(3):
                assert executor._scattered(transfer(100, "binary", seed)).status == "finished"
        finally:
            cluster.workers[0].send_signal(signal.SIGCONT)


@pytest.mark.timeout(120)
def test_what_a_cluster_lacks_is_said() -> None:
    """No workers, and workers that have no pg_distill: their own words."""
    empty = Cluster(0)
    try:
        with pytest.raises(InvalidState) as raised:
            DaskExecutor(f"dask://{empty.address}")
        assert "no workers" in raised.value.message
        empty.start_worker("import sys; sys.modules['pg_distill'] = None")
        empty.wait_for(1)
        with pytest.raises(InvalidState) as raised:
            DaskExecutor(f"dask://{empty.address}")
        assert "ModuleNotFoundError" in str(raised.value.detail)
    finally:
        empty.end()
