"""Jobs: distillations that are queued by ``distill.submit`` and run by a worker, or by ``distill.run_next_job`` in a session.

Whose rights a job has
    A job's sample is a query that its submitter wrote, and a query can undo SET ROLE (``set_config('role', 'none', true)``).
    So no worker serves a role by setting it: a worker logs in as the role whose jobs it runs, and claims no other's. Its
    session can do what the submitter can do anyhow, whatever the query does in it, and the submitter's name is written
    by PostgreSQL, not by the submitter: a trigger refuses a job in another role's name. To serve several roles, start a
    worker for each.

What is held while it trains
    No transaction and no snapshot. The sample is drawn in one transaction; calls are timed in statements of their own; the
    run, its candidates, the student and the job's end are recorded together by one last statement. An attempt that has
    lost its claim meanwhile finds that out there, and records nothing: that is why no job is done twice.

What its figures are worth
    A worker is its role's own process, and could report what it likes. So its run and student are marked (``attested`` is
    false): they count for that role, and for others only where the role is a superuser; ``distill.remeasure`` in the server
    makes them count for all.

Who lives
    A second connection, in a thread of its own, says once a second that the worker lives, hears of cancels, and cancels what the
    first one waits for. A worker that is silent for the lease has lost its job: the next one begins it again, once.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pg_distill import __version__
from pg_distill.database.client import PsycopgDatabase
from pg_distill.database.protocol import extension_version
from pg_distill.errors import InvalidState, PgDistillError
from pg_distill.jobs import run
from pg_distill.jobs.monitor import (
    CONNECTION_FAILURE,
    QUERY_CANCELED,
    Monitor,
    Stopped,
    known,
    one_line,
)
from pg_distill.jobs.run import LEASE_SECONDS, options_of, record_failure, send
from pg_distill.registry import queue as job_queue
from pg_distill.registry.queue import Job
from pg_distill.runs import distill
from pg_distill.runs.options import MOST_SECONDS
from pg_distill.runs.progress import Progress
from pg_distill.text import printable

if TYPE_CHECKING:
    import psycopg

__all__ = ["Worker"]

POLL_SECONDS = 5.0  # between looks at the queue: for what no notification tells, such as a dead worker's job
RECONNECT_SECONDS = 1.0


class Worker:
    """Runs one role's jobs, one after another.

    Parameters
    ----------
    dsn
        libpq's connection string; the role that it logs in as is the one whose jobs are run.
    lease_s
        Seconds of silence after which this worker takes over another's job.
    say
        Is told what the worker does, a line each.
    """

    def __init__(
        self, dsn: str, *, lease_s: float = LEASE_SECONDS, say: Callable[[str], None] | None = None
    ) -> None:
        self._dsn = dsn
        self._lease_s = lease_s
        self._tell = say if say is not None else lambda line: print(line, file=sys.stderr, flush=True)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._ending = threading.Event()
        self._lost: Job | None = None  # whose claim may still be ours, after a connection broke

    def _say(self, line: str) -> None:
        self._tell(printable(line))

    def stop(self, *_: Any) -> None:
        """End soon: a running job goes back to the queue."""
        self._ending.set()

    def run(self, *, once: bool = False) -> int:
        """Run jobs until `stop` is called, or with ``once`` until none waits; return how many were begun.

        Raises
        ------
        InsufficientPrivilege
            The session's role is not the one that it logged in as.
        InvalidState
            The extension is of another version than this module.
        psycopg.OperationalError
            The first connection fails; later ones are tried again.
        """
        import psycopg

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.stop)
            signal.signal(signal.SIGINT, self.stop)
        begun = 0
        watch: psycopg.Connection[Any] | None = self._connect("pg_distill worker")
        try:
            while not self._ending.is_set():
                try:
                    if watch is None:
                        watch = self._connect("pg_distill worker")
                    if self._lost is not None:
                        # The server restarted, or ended our session: that is no worker's death.
                        record_failure(
                            PsycopgDatabase(watch), self._lost, CONNECTION_FAILURE, "connection lost"
                        )
                        self._lost = None
                    job = job_queue.claim(PsycopgDatabase(watch), self._name, self._lease_s)
                    if job is not None:
                        begun += 1
                        self._lost = job  # until its fate is recorded
                        if self._run_job(watch, job):
                            self._lost = None
                        else:
                            watch.close()
                            watch = None
                        continue
                    if once:
                        break
                    for _ in watch.notifies(timeout=min(POLL_SECONDS, self._lease_s), stop_after=1):
                        pass
                except psycopg.OperationalError as error:
                    self._say(f"connection lost: {one_line(error)}")
                    if watch is not None:
                        watch.close()
                    watch = None
                    self._ending.wait(RECONNECT_SECONDS)
        finally:
            if watch is not None:
                watch.close()
        return begun

    def _connect(self, application_name: str) -> psycopg.Connection[Any]:
        import psycopg

        connection = psycopg.connect(
            self._dsn, autocommit=True, application_name=application_name, client_encoding="UTF8"
        )
        try:
            db = PsycopgDatabase(connection)
            job_queue.require_own_login(db)
            installed = extension_version(db)
            if installed != __version__:
                found = f"is of version {installed}" if installed is not None else "is not there"
                raise InvalidState(f"extension pg_distill {found}, this worker is of {__version__}")
            connection.execute(f"LISTEN {job_queue.CHANNEL}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _run_job(self, watch: psycopg.Connection[Any], job: Job) -> bool:
        """Run a claimed job; return whether its fate is recorded: not where ``watch`` was lost."""
        import psycopg

        self._say(f"job {job.run_id}: attempt {job.attempts}")
        queue = PsycopgDatabase(watch)
        try:
            # A connection for each job: what a sample leaves in its session (settings, locks) does not outlive it.
            connection = self._connect(f"pg_distill job {job.run_id}")
        except (psycopg.Error, PgDistillError) as error:
            # As many connections as the role may have, or the server is going: the job was not begun, and waits on.
            job_queue.release(queue, job, run.RETRY_SECONDS, known(error))
            self._say(f"job {job.run_id}: no connection: {one_line(error)}")
            return True
        with connection:
            monitor: Monitor | None = None
            problem: tuple[str, str] | None = None
            done = False
            progress = Progress(MOST_SECONDS)
            try:
                options = options_of(job)
                self._say(f"job {job.run_id}: {options.teacher}")
                progress = Progress(options.most_seconds)
                monitor = Monitor(watch, connection, job, progress, self._lease_s, self._ending)
                db = PsycopgDatabase(connection, check=monitor.check)
                monitor.start()
                with db.search_path(job.search_path):
                    db.check_search_path()
                    outcome = distill.distill(
                        db,
                        options,
                        run_id=job.run_id,
                        watch=progress.watch,
                        store=lambda report: send(db, job, report),
                    )
                done = True
                self._say(f"job {job.run_id}: {outcome.summary}")
            except Stopped:
                pass
            except Exception as error:
                # A statement that the monitor cancelled says so as any cancelled one does.
                problem = known(error)
            finally:
                if monitor is not None:
                    monitor.stop()
        if monitor is not None and monitor.broken:
            self._say(f"job {job.run_id}: connection lost")
            return done
        if done:
            return True
        why = monitor.why if monitor is not None else None
        if why is None and job_queue.beat(queue, job, *progress.now()) == "cancelled":
            why = "cancelled"  # found out when the run was to be recorded
        if why == "cancelled":
            job_queue.fail(queue, job, QUERY_CANCELED, "cancelled", cancelled=True)
        elif why == "ending":
            job_queue.release(queue, job)
        elif why is None and problem is not None:
            record_failure(queue, job, *problem)
        self._say(f"job {job.run_id}: {why if why is not None else problem}")
        return True
