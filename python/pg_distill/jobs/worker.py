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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from pg_distill import __version__
from pg_distill.database.client import PsycopgDatabase
from pg_distill.database.protocol import Database, extension_version
from pg_distill.errors import InvalidParameter, InvalidState, PgDistillError
from pg_distill.registry import models
from pg_distill.registry import queue as job_queue
from pg_distill.registry.queue import Job
from pg_distill.runs import distill, record
from pg_distill.runs.options import Options
from pg_distill.runs.progress import Progress
from pg_distill.runs.record import Outcome, Report
from pg_distill.serving import approval
from pg_distill.text import printable, storable

if TYPE_CHECKING:
    import psycopg

__all__ = ["LEASE_SECONDS", "Worker", "record_job", "run_next", "submit"]

LEASE_SECONDS = 15.0  # of silence, after which a worker is taken for dead: some heartbeats may be late
BEAT_SECONDS = (
    0.5  # between heartbeats, so that a cancel is heard within a second even where its notification is lost
)
POLL_SECONDS = 5.0  # between looks at the queue: for what no notification tells, such as a dead worker's job
RECONNECT_SECONDS = 1.0
RETRY_SECONDS = 5.0  # before another attempt, times the attempts that there have been
BUSY_SECONDS = 2.0  # before a job is tried again for which there was no place
MAX_ATTEMPTS = 3
MAX_SAID = 60  # characters of a name of a job's arguments: one of its own may be long

TRANSIENT = ("08", "40", "53", "57", "58")
"""Classes of errors that may pass: connection, serialisation, resources, shutdown, a training process that died."""
QUERY_CANCELED, TOO_MANY_TRAININGS, CONNECTION_FAILURE = "57014", "53400", "08006"


def submit(db: Database, options: Options, arguments: Mapping[str, Any]) -> str:
    """Queue a distillation as the current role; ``options`` are its arguments, checked. Return the run's id.

    Raises
    ------
    UndefinedModel
        There is no such teacher.
    """
    models.find_model(db, options.teacher)
    return job_queue.enqueue(db, {key: value for key, value in arguments.items() if value is not None})


def run_next(db: Database) -> str | None:
    """Run the current role's next job in this backend, in the caller's transaction; return its id, None where none waits.

    What ends a job is recorded; a cancel, a timeout or a shutdown is the session's affair: it ends the transaction, and the
    job waits again as if it had not been begun.
    """
    job_queue.require_own_login(db)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    job = job_queue.claim(db, worker, LEASE_SECONDS)
    if job is None:
        return None
    try:
        with db.subtransaction(), db.search_path(job.search_path):
            options = _options(job)
            db.check_search_path()
            distill.distill(
                db,
                options,
                run_id=job.run_id,
                store=lambda report: record.store(
                    db,
                    report,
                    complete=lambda outcome: job_queue.complete(db, job, outcome.student_id, outcome.summary),
                ),
            )
    except Exception as error:
        sqlstate, message = _known(error)
        if sqlstate.startswith("57"):
            raise
        _record_failure(db, job, sqlstate, message)
    return job.run_id


def _send(db: Database, job: Job, report: Report) -> Outcome:
    """Have the server write what a worker found, and end the job."""
    text, files = report.to_wire()
    [row] = db.query(
        "select distill._record_job($1, $2, $3, $4)::pg_catalog.text as student_id",
        ("uuid", job.run_id),
        ("uuid", job.claim_id),
        ("jsonb", text),
        ("bytea[]", ["\\x" + file.hex() for file in files]),
        keep=False,
    )
    return Outcome(job.run_id, row["student_id"], report.run["summary"])


def record_job(db: Database, run_id: str, claim_id: str, text: str, files: Sequence[bytes]) -> str | None:
    """Write what a worker says of its running job, after a child has checked each file; return the student's id."""
    job = job_queue.find_claimed(db, run_id, claim_id)
    report = Report.from_wire(text, files)
    checked: list[bytes] = []
    if report.student is not None:
        checked = [report.student["artifact"]]
        [approved] = approval.approve(db, [(report.student["artifact"], report.student["signature"])])
        report = replace(report, student={**report.student, "signature": approved})
    return record.store_job(db, job, report, checked=checked).student_id


def _options(job: Job) -> Options:
    """Return a job's arguments, checked again: a role may write rows of its own without `submit`."""
    given = job.read_arguments()
    types = get_type_hints(Options)
    for name, value in given.items():
        if name not in types or not _is_a(value, types[name]):
            raise InvalidParameter(
                f'job "{job.run_id}" has no valid argument "{storable(name, MAX_SAID)}" of distill_model'
            )
    try:
        return Options(**given)
    except TypeError as error:
        raise InvalidParameter(f'job "{job.run_id}" lacks arguments of distill_model: {error}') from error


def _is_a(value: object, kind: Any) -> bool:
    """Return whether a value of JSON is one of a field of `Options`."""
    if kind is int:
        return type(value) is int and abs(value) < 1 << 63
    if kind is float:
        return type(value) in (int, float)
    if kind is str:
        return isinstance(value, str)
    if get_origin(kind) is Sequence:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind is NoneType:
        return value is None
    return any(_is_a(value, part) for part in get_args(kind))


def _record_failure(db: Database, job: Job, sqlstate: str, message: str) -> None:
    if sqlstate == TOO_MANY_TRAININGS:
        job_queue.release(db, job, BUSY_SECONDS, (sqlstate, message))
    elif sqlstate[:2] in TRANSIENT and sqlstate != QUERY_CANCELED and job.attempts < MAX_ATTEMPTS:
        job_queue.retry(db, job, sqlstate, message, RETRY_SECONDS * job.attempts)
    else:
        job_queue.fail(db, job, sqlstate, message)


class _Stopped(BaseException):
    """The job is not to go on; not an Exception, so that nothing takes it for a failure of the job."""


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
                        _record_failure(
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
                    self._say(f"connection lost: {_one_line(error)}")
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
            job_queue.release(queue, job, RETRY_SECONDS, _known(error))
            self._say(f"job {job.run_id}: no connection: {_one_line(error)}")
            return True
        with connection:
            monitor: _Monitor | None = None
            problem: tuple[str, str] | None = None
            done = False
            progress = Progress(Options.time_budget_s)
            try:
                options = _options(job)
                self._say(f"job {job.run_id}: {options.teacher}")
                progress = Progress(options.time_budget_s)
                monitor = _Monitor(watch, connection, job, progress, self._lease_s, self._ending)
                db = PsycopgDatabase(connection, check=monitor.check)
                monitor.start()
                with db.search_path(job.search_path):
                    db.check_search_path()
                    outcome = distill.distill(
                        db,
                        options,
                        run_id=job.run_id,
                        watch=progress.watch,
                        store=lambda report: _send(db, job, report),
                    )
                done = True
                self._say(f"job {job.run_id}: {outcome.summary}")
            except _Stopped:
                pass
            except Exception as error:
                # A statement that the monitor cancelled says so as any cancelled one does.
                problem = _known(error)
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
            _record_failure(queue, job, *problem)
        self._say(f"job {job.run_id}: {why if why is not None else problem}")
        return True


class _Monitor(threading.Thread):
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
        """Raise `_Stopped` where the job is not to go on; called in the job's own thread."""
        if self.why is not None:
            raise _Stopped(self.why)

    def stop(self) -> None:
        """Return when the connection is the caller's again."""
        self._over.set()
        self.join()

    def run(self) -> None:
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
                self.why = f"lost: {_one_line(error)}"
                with suppress(psycopg.Error):
                    self._working.cancel_safe(timeout=self._lease_s)
                return


def _known(error: Exception) -> tuple[str, str]:
    """Return an error's SQLSTATE and message."""
    if isinstance(error, PgDistillError):
        return error.sqlstate, error.message
    # psycopg's errors; those of a connection that broke have no state of their own.
    state = getattr(error, "sqlstate", None)
    if state is None and type(error).__module__.startswith("psycopg"):
        state = CONNECTION_FAILURE
    if state is None and isinstance(error, MemoryError):
        state = "53200"
    return state or PgDistillError.sqlstate, f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
