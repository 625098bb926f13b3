"""The connection of the command line, and what its exit codes mean."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

__all__ = [
    "DONE",
    "INTERRUPTED",
    "NOT_INSTALLED",
    "NO_CONNECTION",
    "NO_LONGER_HOLDS",
    "NO_STUDENT",
    "REFUSED",
    "USAGE",
    "Misused",
    "Unreachable",
    "connect",
    "rows_of",
]

DONE, REFUSED, USAGE, NO_CONNECTION, NO_STUDENT = range(5)
NO_LONGER_HOLDS, NOT_INSTALLED = 6, 7
INTERRUPTED = 130


class Unreachable(Exception):
    """No connection."""


class Misused(Exception):
    """Wrong usage that the parser does not see."""


def connect(arguments: argparse.Namespace) -> psycopg.Connection[Any]:
    """Connect by --dsn and libpq's environment, rows as dictionaries, in autocommit mode."""
    import psycopg
    from psycopg.rows import dict_row

    try:
        return psycopg.connect(
            arguments.dsn or "",
            autocommit=True,
            row_factory=dict_row,
            fallback_application_name="pg-distill",
            client_encoding="UTF8",  # also of a database in SQL_ASCII, whose texts would be bytes here
        )
    except psycopg.OperationalError as error:
        raise Unreachable(str(error)) from error
    except psycopg.ProgrammingError as error:
        # What libpq says quotes the part that it does not understand, which may be a part of a password.
        raise Misused("--dsn is no connection string of libpq") from error


def rows_of(connection: psycopg.Connection[Any], query: str, *values: Any) -> list[dict[str, Any]]:
    cursor = connection.execute(query, values or None)
    return list(cursor.fetchall()) if cursor.description is not None else []
