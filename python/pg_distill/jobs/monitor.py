"""What goes on beside a job: its lease is renewed, and a cancel is heard."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pg_distill.database.client import PsycopgDatabase
from pg_distill.errors import PgDistillError
from pg_distill.registry import queue as job_queue
from pg_distill.registry.queue import Job
from pg_distill.runs.progress import Progress

if TYPE_CHECKING:
    import psycopg

__all__ = [
    "CONNECTION_FAILURE",
    "QUERY_CANCELED",
    "TOO_MANY_TRAININGS",
    "Monitor",
    "Stopped",
    "known",
    "one_line",
]

BEAT_SECONDS = (
    0.5  # between heartbeats, so that a cancel is heard within a second even where its notification is lost
)


QUERY_CANCELED, TOO_MANY_TRAININGS, CONNECTION_FAILURE = "57014", "53400", "08006"


class Stopped(BaseException):
    """The job is not to go on; not an Exception, so that nothing takes it for a failure of the job."""


class Monitor(threading.Thread):
    """Says that the worker lives, and ends the job where it is told to, or where it has lost it."""

    def __init__(
        self,
        watch: psycopg.Connection[Any],
        working: psycopg.Connection[Any],
        job: Job,
        progress: Progress,
        lease_s: float,
        ending: threading.Event,
    ) -> None:
        super().__init__(daemon=True)
        self._watch = watch
        self._working = working
        self._job = job
        self._progress = progress
        self._lease_s = lease_s
        self._ending = ending
        self._over = threading.Event()
        self.why: str | None = None
        self.broken = False

    def check(self) -> None:
        """Raise `Stopped` where the job is not to go on; called in the job's own thread."""
        if self.why is not None:
            raise Stopped(self.why)

    def stop(self) -> None:
        """Return when the connection is the caller's again."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """Renew the lease until the job is over or no longer ours; cancel the statement then."""
        import psycopg

        queue = PsycopgDatabase(self._watch)
        while not self._over.is_set():
            try:
                standing = job_queue.beat(queue, self._job, *self._progress.now())
                if standing != "ours" and not self._over.is_set():
                    self.why = standing
                elif self._ending.is_set():
                    self.why = "ending"
                if self.why is not None:
                    with suppress(psycopg.Error):
                        self._working.cancel_safe(timeout=self._lease_s)
                # A cancel is also heard by its notification, at once.
                for _ in self._watch.notifies(timeout=BEAT_SECONDS, stop_after=1):
                    pass
            except psycopg.Error as error:
                # Without a heartbeat another worker will take the job: this one must not go on for long.
                self.broken = True
                self.why = f"lost: {one_line(error)}"
                with suppress(psycopg.Error):
                    self._working.cancel_safe(timeout=self._lease_s)
                return


def known(error: Exception) -> tuple[str, str]:
    """Return an error's SQLSTATE and message."""
    if isinstance(error, PgDistillError):
        return error.sqlstate, error.message
    # psycopg's errors; those of a connection that broke have no state of their own.
    state = getattr(error, "sqlstate", None)
    if state is None and type(error).__module__.startswith("psycopg"):
        state = CONNECTION_FAILURE
    if state is None and isinstance(error, MemoryError):
        state = "53200"
    return state or PgDistillError.sqlstate, f"{type(error).__name__}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().partition("\n")[0]
