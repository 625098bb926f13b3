"""A Dask scheduler and workers on this machine, each a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PYTHON = Path(__file__).resolve().parents[1] / "python"
PATIENCE_S = 120.0


class Cluster:
    """Give ``workers`` of one thread each; ``preamble`` is Python that they run first."""

    def __init__(self, workers: int, preamble: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        host, _, port = self.address.partition(":")
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._run("dask_scheduler", "--host", host, "--port", port, "--no-show")
        for _ in range(workers):
            self.start_worker(preamble)
        if workers:
            self.wait_for(workers)

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
