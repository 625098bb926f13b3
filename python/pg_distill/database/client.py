"""The database of a client: a worker, the command line, by psycopg."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pg_distill.database.pinned import PIN_FOR_GOOD, SCHEMAS, SET_PATH, is_missing
from pg_distill.database.protocol import Argument, Database, Row, T, check_schemas
from pg_distill.errors import InvalidState
from pg_distill.quoting import array_text, quote_literal

if TYPE_CHECKING:
    import psycopg


__all__ = ["PsycopgDatabase"]


class PsycopgDatabase(Database):
    """A server's database through a client's connection, which is put into autocommit mode.

    Parameters
    ----------
    connection
        Nobody else's: a lock that is taken is held until it is closed.
    check
        Called before every statement and by ``check_interrupts``; what it raises ends the work.
    say
        Is given notices and warnings of the pipeline.
    """

    in_backend = False
    in_parallel = False

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        *,
        check: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        from psycopg.types.string import TextLoader

        connection.autocommit = True
        # Values arrive as PL/Python would hand them over: as text where Python has no type of the same name.
        for name in (
            "date",
            "json",
            "jsonb",
            "time",
            "timestamp",
            "timestamptz",
            "timetz",
            "interval",
            "uuid",
        ):
            connection.adapters.register_loader(name, TextLoader)
        connection.adapters.register_dumper(_Typed, _TypedDumper)  # type: ignore[arg-type]
        self._connection = connection
        self._check = check
        self._say = say
        self._oids = {"text": 25}  # by the names of types; this one is needed to ask for the others
        # The session's search_path is ours; the caller's is set where the caller's text runs.
        self._path: str = self._run(PIN_FOR_GOOD)[1][0]["path"]

    def query(self, sql: str, *arguments: Argument, keep: bool = True) -> list[Row]:
        values = [
            value if value is None or kind == "bytea" else _Typed(_text(value), self._oid(kind))
            for kind, value in arguments
        ]
        return self._run(sql, values)[1]

    def query_exact(self, sql: str, *arguments: Argument, keep: bool = True) -> list[Row]:
        with self._connection.transaction():
            self._enter_path()
            return self.query(sql, *arguments)

    def _enter_path(self) -> None:
        self.query(SET_PATH, ("text", self._path))

    def query_once(self, sql: str) -> list[Row]:
        return self._run(sql)[1]

    def describe(self, sql: str) -> list[tuple[str, int, int]]:
        return self._run(sql)[0]

    def caged(self, texts: Sequence[str], work: Callable[[], T], *, expressions: bool = False) -> T:
        from pg_distill.database import cage

        cage.check_calls(self.query, texts)
        before = cage.read_session(self.query)
        try:
            # Once a query has begun nobody can make it writable again, and nothing of it is to stay.
            with self._connection.transaction(force_rollback=True):
                self._enter_path()
                self._run("SET TRANSACTION READ ONLY")
                result = work()
                said = cage.changes(before, cage.read_session(self.query), driver=True)
        except BaseException:
            if not self._connection.closed:
                cage.put_back(self.query, self._run, before, driver=True)
            raise
        if said:
            cage.put_back(self.query, self._run, before, driver=True)
            raise cage.violation(said)
        return result

    @contextmanager
    def search_path(self, path: str) -> Iterator[None]:
        own, self._path = self._path, path
        try:
            yield
        finally:
            self._path = own

    def write(self, work: Callable[[], T]) -> T:
        raise InvalidState("the registry is written in the server")

    @contextmanager
    def subtransaction(self) -> Iterator[None]:
        with self._connection.transaction():
            yield

    transaction = subtransaction

    def attempt(self, work: Callable[[], T]) -> T | None:
        import psycopg

        try:
            with self._connection.transaction():
                return work()
        except psycopg.Error as error:
            if not is_missing(error.sqlstate):
                raise
            return None

    def check_search_path(self) -> None:
        check_schemas(self.query_exact(SCHEMAS)[0]["schemas"])

    def check_interrupts(self) -> None:
        self._check()

    def notice(self, message: str, *, detail: str | None = None) -> None:
        self._say(message)

    def warning(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        self._say("\n".join(text for text in (message, detail, hint) if text is not None))

    def show_activity(self, text: str | None) -> None:
        """Show nothing: the connection has its job's name, and distill.jobs reports its progress."""

    def _run(self, sql: str, values: Sequence[Any] = ()) -> tuple[list[tuple[str, int, int]], list[Row]]:
        from psycopg import RawCursor
        from psycopg.rows import dict_row

        self._check()
        with RawCursor(self._connection, row_factory=dict_row) as cursor:
            # Prepared: the protocol then takes one statement only, so `select 1) s; delete ...` ends here.
            cursor.execute(sql, values or None, prepare=True)
            if cursor.description is None or cursor.pgresult is None:
                return [], []
            columns = [
                (column.name, column.type_code, cursor.pgresult.fmod(i))
                for i, column in enumerate(cursor.description)
            ]
            return columns, cursor.fetchall()

    def _oid(self, kind: str) -> int:
        if kind not in self._oids:
            [row] = self.query("select $1::pg_catalog.regtype::pg_catalog.oid as oid", ("text", kind))
            self._oids[kind] = row["oid"]
        return self._oids[kind]


class _Typed:
    """A value in PostgreSQL's text form, and the type that it is to have."""

    def __init__(self, text: str, oid: int) -> None:
        self.text = text
        self.oid = oid


class _TypedDumper:
    """psycopg's Dumper protocol: one dumper a type, found by the value's own."""

    format = 0  # text
    oid = 0

    def __init__(self, cls: type, context: Any = None) -> None:
        self._cls = cls

    def get_key(self, value: _Typed, format: Any) -> Any:
        return (self._cls, value.oid)

    def upgrade(self, value: _Typed, format: Any) -> _TypedDumper:
        dumper = _TypedDumper(self._cls)
        dumper.oid = value.oid
        return dumper

    def dump(self, value: _Typed) -> bytes:
        return value.text.encode()

    def quote(self, value: _Typed) -> bytes:
        return quote_literal(value.text).encode()


def _text(value: Any) -> str:
    """Write a value as PostgreSQL reads it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return array_text(None if item is None else _text(item) for item in value)
    return str(value)
