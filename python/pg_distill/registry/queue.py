"""Every SQL statement about jobs; the same from a worker and in a backend."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pg_distill.database.protocol import Database
from pg_distill.errors import InsufficientPrivilege, InvalidParameter, InvalidState, UndefinedObject
from pg_distill.text import storable

__all__ = [
    "CHANNEL",
    "Job",
    "beat",
    "claim",
    "complete",
    "enqueue",
    "fail",
    "find_claimed",
    "release",
    "request_cancel",
    "require_own_login",
    "retry",
]

CHANNEL = "pg_distill_jobs"
MAX_TAKEOVERS = 1  # a job over which two workers died is not tried on a third
MOST_COUNTED = 1_000_000  # attempts and takeovers: what a role writes into its own rows does not overflow
MAX_SUMMARY, MAX_ERROR = 10_000, 4_000  # characters; the table holds more bytes than these can have

Standing = Literal["ours", "cancelled", "lost"]


@dataclass(frozen=True)
class Job:
    """A job that an attempt has claimed."""

    run_id: str
    arguments: str
    """JSON, as its row has it: a fault of it is the job's own, and to be met where the job's are."""
    search_path: str
    claim_id: str
    attempts: int

    def read_arguments(self) -> dict[str, Any]:
        """Return the arguments, of whatever names and types; InvalidParameter where they are not to be read."""
        try:
            return dict(json.loads(self.arguments))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidParameter(
                f'arguments of job "{self.run_id}" are not to be read', detail=f"{type(error).__name__}."
            ) from error


def require_own_login(db: Database) -> None:
    """Refuse to run jobs under another role than the session's own.

    SET ROLE takes nothing away: a query can undo it by ``set_config('role', ...)`` and has the login role's rights then.
    """
    [row] = db.query("select session_user::pg_catalog.text as login, current_user::pg_catalog.text as role")
    if row["login"] != row["role"]:
        raise InsufficientPrivilege(
            f'jobs of role "{row["role"]}" do not run in a session of role "{row["login"]}"',
            detail="A query can undo SET ROLE.",
            hint=f'Log in as "{row["role"]}".',
        )


def enqueue(db: Database, arguments: Mapping[str, Any]) -> str:
    """Queue a job of the current role, wake its workers, and return the job's id."""
    run_id = str(uuid.uuid4())
    [caller] = db.query_exact("select pg_catalog.current_setting('search_path') as path")
    db.query(
        "insert into distill.job_queue (run_id, arguments, search_path) values ($1, $2, $3)",
        ("uuid", run_id),
        ("jsonb", json.dumps(dict(arguments))),
        ("text", caller["path"]),
    )
    db.query("select pg_catalog.pg_notify($1, '')", ("text", CHANNEL))
    return run_id


# While the server was down no worker could say that it lives: the lease begins anew with it.
_EXPIRED = (
    "q.submitter_oid = distill._current_role() and q.state = 'running'"
    " and greatest(q.heartbeat_at, pg_catalog.pg_postmaster_start_time())"
    " < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1)"
)


def claim(db: Database, worker: str, lease_s: float) -> Job | None:
    """Claim the current role's oldest job that waits, or whose worker has been silent for ``lease_s`` seconds.

    One that was put back is as old as its next beginning: it comes behind those that have waited meanwhile.
    """
    # SKIP LOCKED: another claims it at this moment, or records its run.
    db.query(
        "update distill.job_queue set state = case when cancel_requested then 'cancelled' else 'failed' end, claim_id = null,"
        " finished_at = pg_catalog.clock_timestamp(),"
        " sqlstate = case when cancel_requested then '57014' else '58000' end,"
        " error = case when not cancel_requested then 'worker ' || worker || ' died, as the one before it' end"
        f" where run_id in (select q.run_id from distill.job_queue q where {_EXPIRED}"
        " and (q.takeovers >= $2 or q.cancel_requested) for update skip locked)",
        ("float8", lease_s),
        ("int4", MAX_TAKEOVERS),
    )
    rows = db.query(
        "update distill.job_queue set state = 'running', attempts = least(attempts, $4 - 1) + 1,"
        " takeovers = least(takeovers, $4 - 1) + (state = 'running')::pg_catalog.int4, claim_id = $2, worker = $3,"
        " heartbeat_at = pg_catalog.clock_timestamp(), started_at = pg_catalog.clock_timestamp(), stage = 'start', progress = 0,"
        " candidate = null, seconds_left = null"
        " where run_id = (select q.run_id from distill.job_queue q where"
        " q.submitter_oid = distill._current_role() and q.state = 'queued' and not q.cancel_requested"
        " and q.not_before <= pg_catalog.clock_timestamp()"
        f" or {_EXPIRED} order by greatest(q.submitted_at, q.not_before), q.run_id limit 1 for update skip locked)"
        " returning run_id::pg_catalog.text as run_id, arguments::pg_catalog.text as arguments, search_path,"
        " claim_id::pg_catalog.text as claim_id, attempts",
        ("float8", lease_s),
        ("uuid", str(uuid.uuid4())),
        ("text", worker),
        ("int4", MOST_COUNTED),
    )
    return Job(**rows[0]) if rows else None


_OURS = "where q.run_id = $1 and q.claim_id = $2 and q.submitter_oid = distill._current_role()"


def beat(
    db: Database, job: Job, stage: str, progress: float, candidate: str | None, seconds_left: float | None
) -> Standing:
    """Say that the worker lives and what it is at; return whether the job is still its own."""
    rows = db.query(
        "update distill.job_queue q set heartbeat_at = pg_catalog.clock_timestamp(), stage = $3, progress = $4, candidate = $5,"
        f" seconds_left = $6 {_OURS} returning q.cancel_requested",
        ("uuid", job.run_id),
        ("uuid", job.claim_id),
        ("text", stage),
        ("float8", progress),
        ("text", candidate),
        ("float8", seconds_left),
    )
    if not rows:
        return "lost"
    return "cancelled" if rows[0]["cancel_requested"] else "ours"


def find_claimed(db: Database, run_id: str, claim_id: str | None = None) -> Job:
    """Return a running job of the current role.

    Raises
    ------
    InvalidState
        It is none, or another attempt has it.
    """
    rows = db.query(
        "select q.run_id::pg_catalog.text as run_id, q.arguments::pg_catalog.text as arguments, q.search_path,"
        " q.claim_id::pg_catalog.text as claim_id, q.attempts from distill.job_queue q where q.run_id = $1"
        " and ($2 is null or q.claim_id = $2) and q.state = 'running' and q.submitter_oid = distill._current_role()",
        ("uuid", run_id),
        ("uuid", claim_id),
    )
    if not rows:
        raise InvalidState(f'job "{run_id}" was cancelled or taken over')
    return Job(**rows[0])


def complete(db: Database, job: Job, student_id: str | None, summary: str) -> None:
    """Record that the job is done; to be called in the transaction that records its run.

    Raises
    ------
    InvalidState
        It was cancelled or taken over meanwhile: its run is not to be recorded.
    """
    rows = db.query(
        "update distill.job_queue q set state = 'done', claim_id = null, stage = 'end', progress = 1, candidate = null,"
        " seconds_left = 0, student_id = $3, summary = $4, sqlstate = null, error = null,"
        f" finished_at = pg_catalog.clock_timestamp() {_OURS} and not q.cancel_requested returning q.run_id",
        ("uuid", job.run_id),
        ("uuid", job.claim_id),
        ("uuid", student_id),
        ("text", storable(summary, MAX_SUMMARY)),
    )
    if not rows:
        raise InvalidState(f'job "{job.run_id}" was cancelled or taken over')


def fail(db: Database, job: Job, sqlstate: str, error: str, *, cancelled: bool = False) -> None:
    """Record that the job failed, or that it was cancelled."""
    db.query(
        "update distill.job_queue q set state = $3, claim_id = null, candidate = null, sqlstate = $4, error = $5,"
        f" finished_at = pg_catalog.clock_timestamp() {_OURS}",
        ("uuid", job.run_id),
        ("uuid", job.claim_id),
        ("text", "cancelled" if cancelled else "failed"),
        ("text", sqlstate),
        ("text", storable(error, MAX_ERROR)),
    )


# Who goes back to the queue after a cancel was asked for, but before it was heard, is cancelled.
_BACK = (
    "claim_id = null, candidate = null,"
    " state = case when q.cancel_requested then 'cancelled' else 'queued' end,"
    " finished_at = case when q.cancel_requested then pg_catalog.clock_timestamp() end,"
    " sqlstate = case when q.cancel_requested then '57014' else $3 end,"
    " error = case when q.cancel_requested then 'cancelled' else $4 end,"
    " not_before = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $5)"
)


def retry(db: Database, job: Job, sqlstate: str, error: str, seconds: float) -> None:
    """Put the job back for another attempt, not before ``seconds`` from now; one that is to be cancelled is."""
    db.query(
        f"update distill.job_queue q set {_BACK} {_OURS}",
        ("uuid", job.run_id),
        ("uuid", job.claim_id),
        ("text", sqlstate),
        ("text", storable(error, MAX_ERROR)),
        ("float8", seconds),
    )


def release(
    db: Database, job: Job, seconds: float = 0.0, why: tuple[str | None, str | None] = (None, None)
) -> None:
    """Put the job back as if it had not been begun; ``why`` is the SQLSTATE and the message of what kept it from that."""
    db.query(
        f"update distill.job_queue q set attempts = greatest(q.attempts - 1, 0), {_BACK} {_OURS}",
        ("uuid", job.run_id),
        ("uuid", job.claim_id),
        ("text", why[0]),
        ("text", storable(why[1], MAX_ERROR) if why[1] is not None else None),
        ("float8", seconds),
    )
    db.query("select pg_catalog.pg_notify($1, '')", ("text", CHANNEL))


def request_cancel(db: Database, run_id: str) -> bool:
    """Cancel a job of the current role; False where it was over.

    Raises
    ------
    UndefinedObject
        There is no such job of the role's.
    """
    rows = db.query(
        "update distill.job_queue q set cancel_requested = true,"
        " state = case when q.state = 'queued' then 'cancelled' else q.state end,"
        " sqlstate = case when q.state = 'queued' then '57014' else q.sqlstate end,"
        " finished_at = case when q.state = 'queued' then pg_catalog.clock_timestamp() end"
        " where q.run_id = $1 and q.submitter_oid = distill._current_role() and q.state in ('queued', 'running')"
        " returning q.run_id",
        ("uuid", run_id),
    )
    if rows:
        db.query("select pg_catalog.pg_notify($1, $2)", ("text", CHANNEL), ("text", run_id))
        return True
    if not db.query(
        "select from distill.job_queue q where q.run_id = $1 and q.submitter_oid = distill._current_role()",
        ("uuid", run_id),
    ):
        raise UndefinedObject(f'job "{run_id}" does not exist')
    return False
