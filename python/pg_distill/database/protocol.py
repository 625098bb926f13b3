"""What pg_distill asks of a database, whichever side of the connection it is on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from pg_distill.errors import InvalidState

__all__ = ["Argument", "Cursor", "Database", "Row", "T", "check_schemas", "extension_version", "is_superuser"]

Row = dict[str, Any]
Argument = tuple[str, Any]
"""A parameter's SQL type and its value."""


T = TypeVar("T")


class Cursor(Protocol):
    """An open query, until `close` or the end of the transaction."""

    def fetch(self, count: int) -> Sequence[Row]:
        """Return the next rows, none at the end."""

    def close(self) -> None:
        """Close it."""


class Database(Protocol):
    """What the pipeline asks of a database."""

    in_backend: bool
    """Whether this process is the backend: what it keeps, its own predict finds."""

    @property
    def in_parallel(self) -> bool:
        """Whether a parallel operation runs, in its leader or a worker: nothing can be written then."""

    def query(self, sql: str, *arguments: Argument, keep: bool = True) -> list[Row]:
        """Run one of our own statements, with ``$1`` ... as parameters; return its rows.

        It runs under ``search_path = pg_catalog, pg_temp``. The plan is kept for the session unless told otherwise: statements
        that differ each time are not worth it.
        """

    def query_exact(self, sql: str, *arguments: Argument, keep: bool = True) -> list[Row]:
        """Run a statement of ours that means the same under every search_path; the caller's holds in it, and nothing is set.

        For what looks up a name that the caller wrote, for what the caller's text runs below, and for predict: parallel workers
        may set no parameter, and it has no time to.
        """

    def query_once(self, sql: str) -> list[Row]:
        """Run a statement that holds text of the caller's, in `caged`: refused unless it is one statement."""

    def describe(self, sql: str) -> list[tuple[str, int, int]]:
        """Return (name, type's oid, its modifier) of each column of a statement with text of the caller's, and fetch no row.

        In `caged`.
        """

    def caged(self, texts: Sequence[str], work: Callable[[], T], *, expressions: bool = False) -> T:
        """Run ``work``, in which text of the caller's runs under the caller's search_path and can only read: see ``cage``.

        Parameters
        ----------
        texts
            What of the statements in ``work`` somebody else wrote.
        expressions
            Whether ``texts``, expressions and names of types, are all of it. Where these can only call what PostgreSQL
            itself brings, the session need not be looked at, which takes longer than a small expression.

        Raises
        ------
        ReadOnlyViolation
            It did, or would do, more than read.
        """

    def search_path(self, path: str) -> AbstractContextManager[Any]:
        """Let ``path`` be the caller's search_path inside."""

    def write(self, work: Callable[[], T]) -> T:
        """Run ``work``, statements of ours over the registry alone, with the rights of the registry's owner.

        Only in the backend: a client has no such rights, and tells the server by a function what it found.
        """

    def subtransaction(self) -> AbstractContextManager[Any]:
        """Undo what was done inside if it ends in an error."""

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Return what ``work`` gives; None where PostgreSQL says that a name or a right is missing (class 42)."""

    def check_search_path(self) -> None:
        """Refuse a search_path that puts other operators in front of PostgreSQL's own: InvalidState."""

    def transaction(self) -> AbstractContextManager[Any]:
        """Do what is inside in one transaction: the caller's in the backend, a new one from a client."""

    def check_interrupts(self) -> None:
        """Let PostgreSQL act on cancel, timeout and termination; raises if it does."""

    def notice(self, message: str, *, detail: str | None = None) -> None:
        """Say something to the client at once; ``detail`` is for programs, as JSON."""

    def warning(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        """Warn the client."""

    def show_activity(self, text: str | None) -> None:
        """Show what is being done in pg_stat_activity, in 63 bytes of ASCII; None takes it back."""


def extension_version(db: Database) -> str | None:
    """Return the version of the extension in this database, None where it is not there."""
    rows = db.query_exact(
        "select e.extversion from pg_catalog.pg_extension e"
        " where e.extname operator(pg_catalog.=) 'pg_distill'::pg_catalog.name"
    )
    return str(rows[0]["extversion"]) if rows else None


def is_superuser(db: Database) -> bool:
    """Return whether the current role is one."""
    rows = db.query("select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user")
    return bool(rows[0]["rolsuper"])


def check_schemas(schemas: Sequence[str]) -> None:
    """Raise where a search_path names a schema in front of pg_catalog."""
    for schema in schemas[: schemas.index("pg_catalog")]:
        if not schema.startswith("pg_temp_"):  # where no operator or function is ever looked for
            raise InvalidState(
                f'search_path has schema "{schema}" in front of pg_catalog, whose operators could be others',
                hint="Leave pg_catalog out of search_path, which puts it first, or name it first.",
            )
