"""Commands about jobs: jobs, cancel, worker."""

from __future__ import annotations

import argparse

from pg_distill.cli.connection import (
    DONE,
    Unreachable,
    connect,
    rows_of,
)
from pg_distill.cli.terminal import show, warn
from pg_distill.errors import (
    InvalidParameter,
)

__all__ = ["cancel", "jobs", "run_option", "worker", "worker_options"]


def jobs(arguments: argparse.Namespace) -> int:
    """List your jobs."""
    with connect(arguments) as connection:
        rows = rows_of(
            connection,
            "SELECT j.run_id::text AS run_id, j.teacher, j.state, j.progress, j.stage, j.time_left::text AS time_left,"
            " j.attempts, j.error, j.submitted_at FROM distill.jobs j ORDER BY j.submitted_at",
        )
    show(arguments, rows, "no jobs")
    return DONE


def run_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id")


def cancel(arguments: argparse.Namespace) -> int:
    """Cancel a job."""
    with connect(arguments) as connection:
        [row] = rows_of(connection, "SELECT distill.cancel(%s) AS cancelled", arguments.run_id)
    show(arguments, [row])
    return DONE


def worker_options(parser: argparse.ArgumentParser) -> None:
    from pg_distill.jobs.run import LEASE_SECONDS

    parser.add_argument("--once", action="store_true", help="end when no job waits")
    parser.add_argument(
        "--lease-seconds",
        type=float,
        default=LEASE_SECONDS,
        help="silence after which another worker is taken for dead (default %(default)s)",
    )


def worker(arguments: argparse.Namespace) -> int:
    """Run the jobs of the role that it logs in as, until it is told to end (SIGTERM)."""
    import psycopg

    from pg_distill.jobs.worker import Worker

    if not arguments.lease_seconds >= 1:
        raise InvalidParameter(f"--lease-seconds must be 1 or more, not {arguments.lease_seconds}")
    try:
        Worker(arguments.dsn or "", lease_s=arguments.lease_seconds, say=warn).run(once=arguments.once)
    except psycopg.OperationalError as error:
        raise Unreachable(str(error)) from error
    return DONE
