"""One job: taken, run as its submitter, recorded."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from pg_distill.database.protocol import Database
from pg_distill.errors import InvalidParameter
from pg_distill.jobs.monitor import (
    QUERY_CANCELED,
    TOO_MANY_TRAININGS,
    known,
)
from pg_distill.registry import models
from pg_distill.registry import queue as job_queue
from pg_distill.registry.queue import Job
from pg_distill.runs import distill, record
from pg_distill.runs.options import Options
from pg_distill.runs.record import Outcome, Report
from pg_distill.serving import approval
from pg_distill.text import storable

__all__ = [
    "LEASE_SECONDS",
    "RETRY_SECONDS",
    "options_of",
    "record_failure",
    "record_job",
    "run_next",
    "send",
    "submit",
]

LEASE_SECONDS = 15.0  # of silence, after which a worker is taken for dead: some heartbeats may be late
RETRY_SECONDS = 5.0  # before another attempt, times the attempts that there have been
BUSY_SECONDS = 2.0  # before a job is tried again for which there was no place
MAX_ATTEMPTS = 3
MAX_SAID = 60  # characters of a name of a job's arguments: one of its own may be long
TRANSIENT = ("08", "40", "53", "57", "58")
"""Classes of errors that may pass: connection, serialisation, resources, shutdown, a training process that died."""


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
            options = options_of(job)
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
        sqlstate, message = known(error)
        if sqlstate.startswith("57"):
            raise
        record_failure(db, job, sqlstate, message)
    return job.run_id


def send(db: Database, job: Job, report: Report) -> Outcome:
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


def options_of(job: Job) -> Options:
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
    if kind in (str, bool):
        return isinstance(value, kind)
    if get_origin(kind) is Sequence:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if get_origin(kind) is Mapping:
        return isinstance(value, dict)
    if kind is NoneType:
        return value is None
    return any(_is_a(value, part) for part in get_args(kind))


def record_failure(db: Database, job: Job, sqlstate: str, message: str) -> None:
    """Put a job back that may succeed later; record the failure of any other."""
    if sqlstate == TOO_MANY_TRAININGS:
        job_queue.release(db, job, BUSY_SECONDS, (sqlstate, message))
    elif sqlstate[:2] in TRANSIENT and sqlstate != QUERY_CANCELED and job.attempts < MAX_ATTEMPTS:
        job_queue.retry(db, job, sqlstate, message, RETRY_SECONDS * job.attempts)
    else:
        job_queue.fail(db, job, sqlstate, message)
