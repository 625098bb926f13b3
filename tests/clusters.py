"""A Dask scheduler and workers on this machine, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PYTHON = Path(__file__).resolve().parents[1] / "python"
PATIENCE_S = 120.0


class Cluster:
    """Give ``workers`` of one thread each; ``preamble`` is Python that they run first."""

    def __init__(self, workers: int, preamble: str = "") -> None:
        self.workers: list[subprocess.Popen[bytes]] = []
        with tempfile.TemporaryDirectory() as folder:
            # It chooses its port itself: one that was free a moment ago may be another cluster's by now.
            file = Path(folder) / "scheduler.json"
            options = ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file), "--no-show"]
            self.scheduler = self._run("dask_scheduler", *options)
            self.address = self._written_to(file)
        for _ in range(workers):
            self.start_worker(preamble)
        if workers:
            self.wait_for(workers)

    def _written_to(self, file: Path) -> str:
        """Return the scheduler's address, once it has written it down."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.scheduler.poll() is None:
            with suppress(FileNotFoundError, json.JSONDecodeError):
                return str(json.loads(file.read_text())["address"]).removeprefix("tcp://")
            time.sleep(0.05)
        self.end()
        raise RuntimeError("the scheduler did not start")

    def wait_for(self, workers: int) -> None:
        """Return when there are so many workers."""
        with self.client() as client:
            client.wait_for_workers(workers, timeout=PATIENCE_S)

    def start_worker(self, preamble: str = "") -> None:
        """Start one more; see `wait_for`."""
        host = self.address.partition(":")[0]
        options = ["--host", host, "--nthreads", "1", "--no-nanny", "--memory-limit", "0"]
        self.workers.append(self._run("dask_worker", f"tcp://{self.address}", *options, preamble=preamble))

    @staticmethod
    def _run(module: str, *arguments: str, preamble: str = "") -> subprocess.Popen[bytes]:
        # As in the training process: a sum over several threads has other last bits.
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(PYTHON)}
        program = f"{preamble}\nfrom distributed.cli.{module} import main\nmain()"
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments, "--dashboard-address", ":0"],
            env={**os.environ, **threads},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def client(self) -> Any:
        import distributed

        return distributed.Client(f"tcp://{self.address}", timeout=PATIENCE_S, set_as_default=False)

    def transitions(self) -> int:
        """Return how many steps of tasks the scheduler has seen."""
        with self.client() as client:
            return int(client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter))

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()
