"""The database as the rooms above see it: a small protocol, and its adapters for the backend (plpy) and for a client (psycopg).

The same pipeline runs through both. In the backend it is one part of the caller's transaction. From a client each statement is a
transaction of its own, but where the pipeline asks for one (``Database.transaction``): nothing is held open while it trains.

Statements of ours run under a search_path of their own, so that the caller's decides only over what the caller wrote. Those
that cannot, because the caller's text runs in them or a parallel worker may set no parameter, are written so exactly that
every search_path gives them the same meaning: functions, operators and types with pg_catalog, and none of what looks for an
operator without naming it (IN, BETWEEN, NULLIF, IS DISTINCT FROM, CASE with an operand, USING, rows).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, cast

from pg_distill.errors import InvalidState
from pg_distill.quoting import array_text, quote_identifier, quote_literal

if TYPE_CHECKING:
    import psycopg

    from pg_distill.database import cage

__all__ = [
    "PINNED",
    "Argument",
    "Cursor",
    "Database",
    "PlpyDatabase",
    "PsycopgDatabase",
    "Row",
    "extension_version",
    "is_superuser",
    "quote_identifier",
    "quote_literal",
    "run_pending",
    "run_write",
]

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

    def notice(self, message: str) -> None:
        """Say something to the client at once."""

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


# What distill._read_only() is to run: the innermost call last. A list, because a sample may call a function
# of ours in turn. The results stay in Python: the SQL function is there only to set transaction_read_only.
_pending: list[Callable[[], None]] = []


def run_pending() -> None:
    """Run the work for which ``PlpyDatabase.read_only`` called ``distill._read_only()``, in its middle."""
    if not _pending:
        raise InvalidState("there is nothing to run read-only")
    _pending.pop()()  # taken out: the caller's text may call the function, too


# What distill._write() is to run, and whether it runs. It is taken out before it begins, so that nothing else finds it.
_to_write: Callable[[], None] | None = None
_is_writing = False


def run_write() -> None:
    """Run the work for which ``PlpyDatabase.write`` called ``distill._write()``, in its middle."""
    global _to_write, _is_writing
    work, _to_write = _to_write, None
    if work is None:
        raise InvalidState("there is nothing to write")
    _is_writing = True
    try:
        work()
    finally:
        _is_writing = False


def _find_in_server(name: str, result: Any) -> Callable[[], Any] | None:
    """Return a function of the server's own without arguments; None outside a backend."""
    try:
        function = getattr(ctypes.PyDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return None
    function.restype, function.argtypes = result, ()
    return cast(Callable[[], Any], function)


_in_parallel_mode = _find_in_server("IsInParallelMode", ctypes.c_bool)
"""Whether a parallel operation runs, in its leader or a worker."""
_statement_start = _find_in_server("GetCurrentStatementStartTimestamp", ctypes.c_int64)
_known_to_hide_nothing: tuple[int | None, tuple[str, ...]] | None = None


class PlpyDatabase(Database):
    """The backend's own database, through the ``plpy`` that PL/Python handed to the SQL function."""

    in_backend = True

    def __init__(self, plpy: Any) -> None:
        self._plpy = plpy
        self._own_name: str | None = None

    @property
    def in_parallel(self) -> bool:
        return _in_parallel_mode is not None and _in_parallel_mode()

    # Plans are the session's, not the call's: PostgreSQL replans them when what they depend on changes.
    _plans: ClassVar[dict[tuple[str, tuple[str, ...]], Any]] = {}

    def query(self, sql: str, *arguments: Argument, keep: bool = True) -> list[Row]:
        # At each run, not when it is prepared: a plan is made anew under the search_path that it meets.
        path = self.query_exact(_PIN_HERE)[0]["path"]
        try:
            return self.query_exact(sql, *arguments, keep=keep)
        finally:
            # An error that somebody catches undoes it as well, but one that we catch need not have been the caller's own.
            if path != PINNED:
                self.query_exact(_SET_PATH, ("text", path))

    def query_exact(self, sql: str, *arguments: Argument, keep: bool = True) -> list[Row]:
        key = (sql, tuple(kind for kind, _ in arguments))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plpy.prepare(sql, [_qualified(kind) for kind in key[1]])
            if keep:
                self._plans[key] = plan
        result = self._plpy.execute(plan, [value for _, value in arguments])
        return [] if result.status() in _STATUS_WITHOUT_ROWS else list(result)

    def run(self, sql: str) -> Sequence[Row]:
        """Run a statement that looks nothing up."""
        rows: Sequence[Row] = self._plpy.execute(sql)
        return rows

    def query_once(self, sql: str) -> list[Row]:
        # A cursor takes one statement only, so `select 1) s; delete ...` ends here.
        cursor = self._plpy.cursor(sql)
        try:
            rows: list[Row] = []
            while batch := list(cursor.fetch(_CURSOR_BATCH)):
                rows.extend(batch)
                if len(batch) < _CURSOR_BATCH:
                    break
            return rows
        finally:
            cursor.close()

    def open_cursor(self, texts: Sequence[str], sql: str) -> Cursor:
        """Open a query with text of the caller's, to be read in parts: refused unless it is one statement."""
        from pg_distill.database import cage

        cage.check_calls(self.query_exact, texts)
        before, settings = cage.read_session(self.query_exact), cage.read_settings(self.query_exact)
        # What runs here is what PostgreSQL evaluates while it plans, and a plan cannot be undone and kept.
        [row] = self.query_exact("select distill._open_cursor($1)::pg_catalog.text as name", ("text", sql))
        said = cage.changes(before, cage.read_session(self.query_exact))
        if cage.read_settings(self.query_exact) != settings:
            said.append("changed a setting")
        self._refuse(before, said)
        return _PlpyCursor(self, row["name"], settings, self.query_exact(_HAS_FOREIGN_TABLES)[0]["found"])

    def describe(self, sql: str) -> list[tuple[str, int, int]]:
        self._plpy.cursor(sql).close()  # one statement, or an error
        result = self._plpy.execute(sql)
        return list(zip(result.colnames(), result.coltypes(), result.coltypmods(), strict=True))

    def caged(self, texts: Sequence[str], work: Callable[[], T], *, expressions: bool = False) -> T:
        from pg_distill.database import cage  # which a backend that only predicts has no use for

        cage.check_calls(self.query_exact, texts)
        if not expressions or not self._hides_nothing(tuple(texts)):
            return self.undone(work, lambda before, inside: True)
        results: list[T] = []
        with suppress(_Undone), self._plpy.subtransaction():
            results.append(self.read_only(work))
            raise _Undone
        return results[0]

    def _hides_nothing(self, expressions: tuple[str, ...]) -> bool:
        """Ask once a statement: others may have made an operator since."""
        global _known_to_hide_nothing
        from pg_distill.database import cage

        now = (_statement_start() if _statement_start is not None else None), expressions
        if now[0] is not None and _known_to_hide_nothing == now:
            return True
        found = cage.hides_nothing(self.query_exact, expressions)
        _known_to_hide_nothing = now if found else None
        return found

    def undone(self, work: Callable[[], T], is_undone: Callable[[cage.Session, cage.Session], bool]) -> T:
        """Run ``work`` read-only, and undo all but its result unless told otherwise by what it did to the session."""
        from pg_distill.database import cage

        results: list[T] = []
        before = cage.read_session(self.query_exact)
        try:
            with self._plpy.subtransaction():
                results.append(self.read_only(work))
                inside = cage.read_session(self.query_exact)
                if is_undone(before, inside):
                    raise _Undone
        except _Undone:
            pass
        except BaseException:
            self._put_back(before)
            raise
        self._refuse(before, cage.changes(before, inside))
        return results[0]

    def _refuse(self, before: cage.Session, said: Sequence[str]) -> None:
        from pg_distill.database import cage

        if said:
            self._put_back(before)
            raise cage.violation(said)

    def _put_back(self, before: cage.Session) -> None:
        from pg_distill.database import cage

        # DEALLOCATE is for a function that is VOLATILE, as score is not.
        self.read_only(lambda: cage.put_back(self.query_exact, self.run, before))

    def read_only(self, work: Callable[[], T]) -> T:
        """Run ``work`` where every statement is read-only: a write anywhere below is SQLSTATE 25006."""
        # A parallel operation may set no parameter, and needs none: PostgreSQL itself refuses every write there.
        if self.in_parallel:
            return work()
        results: list[T] = []
        count = len(_pending)
        _pending.append(lambda: results.append(work()))
        try:
            self._plpy.execute("select distill._read_only()")
        finally:
            del _pending[count:]  # where it was not called, after an error
        return results[0]

    def write(self, work: Callable[[], T]) -> T:
        global _to_write
        if _is_writing:
            return work()
        results: list[T] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                results.append(work())
            except Exception as error:
                errors.append(error)
                raise

        _to_write = run
        try:
            self._plpy.execute("select distill._write()")
        except Exception as error:
            # Ours as it was raised; PostgreSQL's own has come through as itself.
            if errors and type(errors[0]).__module__.startswith("pg_distill."):
                raise errors[0] from None
            raise error
        finally:
            _to_write = None
        return results[0]

    @contextmanager
    def search_path(self, path: str) -> Iterator[None]:
        [own] = self.query_exact("select pg_catalog.current_setting('search_path') as path")
        self.query_exact(_SET_PATH, ("text", path))
        yield
        self.query_exact(_SET_PATH, ("text", own["path"]))  # an error undoes it itself

    @contextmanager
    def subtransaction(self) -> Iterator[None]:
        with self._plpy.subtransaction():
            yield

    def attempt(self, work: Callable[[], T]) -> T | None:
        try:
            with self._plpy.subtransaction():
                return work()
        except self._plpy.SPIError as error:
            if not _is_missing(getattr(error, "sqlstate", None)):
                raise  # a cancel, for one
            return None

    def check_search_path(self) -> None:
        _check_schemas(self.query_exact(_SCHEMAS)[0]["schemas"])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        yield

    def check_interrupts(self) -> None:
        self._plpy.execute("select")

    def notice(self, message: str) -> None:
        self._plpy.notice(message)

    def warning(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        given = {"detail": detail, "hint": hint}
        self._plpy.warning(message, **{key: text for key, text in given.items() if text is not None})

    def show_activity(self, text: str | None) -> None:
        if self._own_name is None:
            if text is None:
                return
            [row] = self.query("select pg_catalog.current_setting('application_name') as name")
            self._own_name = row["name"]
        if text is None:
            shown, self._own_name = self._own_name, None
        else:
            shown = text.encode("ascii", "replace")[:MAX_ACTIVITY_BYTES].decode()
        # Local to the transaction, so that an error, a cancel or a rollback gives the session its name back.
        self.query("select pg_catalog.set_config('application_name', $1, true)", ("text", shown))


def _is_missing(sqlstate: str | None) -> bool:
    """Whether an error says that something is not there, not allowed or not readable, whoever asks again."""
    return sqlstate is not None and sqlstate.startswith("42")


def _check_schemas(schemas: Sequence[str]) -> None:
    for schema in schemas[: schemas.index("pg_catalog")]:
        if not schema.startswith("pg_temp_"):  # where no operator or function is ever looked for
            raise InvalidState(
                f'search_path has schema "{schema}" in front of pg_catalog, whose operators could be others',
                hint="Leave pg_catalog out of search_path, which puts it first, or name it first.",
            )


def _qualified(kind: str) -> str:
    """Return a parameter's type as PostgreSQL's own, also where a temporary type has its name."""
    return f"pg_catalog.{kind}" if kind.removesuffix("[]") in _OWN_TYPES else kind


# The others that are used (boolean, double precision ...) are words of the grammar, and nobody else's.
_OWN_TYPES = frozenset({"bytea", "float8", "int4", "int8", "jsonb", "oid", "text", "timestamptz", "uuid"})


class _Undone(Exception):
    """Ends a subtransaction that is to leave nothing."""


class _PlpyCursor:
    """A cursor that the end of the transaction closes, whoever has forgotten it.

    plpy's own pins its portal until Python frees it. Where a set-returning function was abandoned (LIMIT), that is after
    the commit that the extended protocol has at Sync, and the commit fails.

    What a fetch does is undone, but for the cursor's place, which no subtransaction's end moves back. That would close what
    else a query holds open from one fetch to the next, a foreign server's cursor or one of a function's: there it is not
    undone, and a change of settings is looked for as well.

    Parameters
    ----------
    settings
        Digest of the settings when it was opened.
    stays
        Whether it is known that the query holds something open.
    """

    def __init__(self, db: PlpyDatabase, name: str, settings: str, stays: bool) -> None:
        self._db = db
        self._name = quote_identifier(name)
        self._settings = settings
        self._stays = stays
        self._beside: set[str] = set()  # cursors that the query has opened

    def fetch(self, count: int) -> Sequence[Row]:
        from pg_distill.database import cage

        if self._stays:
            self._settings = cage.read_settings(self._db.query_exact)
        rows = self._db.undone(lambda: self._db.run(f"FETCH {count:d} FROM {self._name}"), self._is_undone)
        if self._stays and cage.read_settings(self._db.query_exact) != self._settings:
            raise cage.violation(["changed a setting"])
        return rows

    def _is_undone(self, before: cage.Session, inside: cage.Session) -> bool:
        self._beside |= {name for name, _ in inside.cursors - before.cursors}
        self._stays = self._stays or bool(self._beside)
        return not self._stays

    def close(self) -> None:
        # In a function that is VOLATILE, as score is not.
        self._db.read_only(self._close)

    def _close(self) -> None:
        from pg_distill.database import cage

        self._db.run(f"CLOSE {self._name}")
        left = {name for name, _ in cage.read_session(self._db.query_exact).cursors}
        for name in self._beside & left:
            self._db.run(f"CLOSE {quote_identifier(name)}")


PINNED = "pg_catalog, pg_temp"
"""The search_path of statements of ours: nothing that anybody could have planted is looked up, temporary objects last."""
_PIN = (
    "select pg_catalog.current_setting('search_path') as path,"
    f" pg_catalog.set_config('search_path', '{PINNED}', {{}}) as pinned"
)
_PIN_HERE, _PIN_FOR_GOOD = _PIN.format("true"), _PIN.format("false")
_SET_PATH = "select pg_catalog.set_config('search_path', $1, true) as path"
_SCHEMAS = "select pg_catalog.current_schemas(true) as schemas"
# Whose server may hold a cursor for us, in a savepoint of our subtransaction.
_HAS_FOREIGN_TABLES = (
    "select exists (select from pg_catalog.pg_lock_status() l"
    " join pg_catalog.pg_class c on c.oid operator(pg_catalog.=) l.relation"
    " where l.pid operator(pg_catalog.=) pg_catalog.pg_backend_pid()"
    " and c.relkind operator(pg_catalog.=) 'f'::pg_catalog.\"char\") as found"
)
MAX_ACTIVITY_BYTES = 63  # what pg_stat_activity shows of an application's name
_CURSOR_BATCH = 1000  # rows a fetch: a cursor's fetch costs a subtransaction
_STATUS_WITHOUT_ROWS: Sequence[int] = (
    4,
    7,
    8,
    9,
)  # SPI_OK_UTILITY, _INSERT, _DELETE, _UPDATE without RETURNING


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
        self._path: str = self._run(_PIN_FOR_GOOD)[1][0]["path"]

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
        self.query(_SET_PATH, ("text", self._path))

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
            if not _is_missing(error.sqlstate):
                raise
            return None

    def check_search_path(self) -> None:
        _check_schemas(self.query_exact(_SCHEMAS)[0]["schemas"])

    def check_interrupts(self) -> None:
        self._check()

    def notice(self, message: str) -> None:
        self._say(message)

    def warning(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        self._say("\n".join(text for text in (message, detail, hint) if text is not None))

    def show_activity(self, text: str | None) -> None:
        """Show nothing: the connection has its job's name, and distill.jobs says how far it is."""

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
