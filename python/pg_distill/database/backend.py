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
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pg_distill.database.pinned import PIN_HERE, PINNED, SCHEMAS, SET_PATH, is_missing
from pg_distill.database.protocol import Argument, Cursor, Database, Row, T, check_schemas
from pg_distill.errors import InvalidState
from pg_distill.quoting import quote_identifier

if TYPE_CHECKING:
    from pg_distill.database import cage

__all__ = ["PlpyDatabase", "run_pending", "run_write"]


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
        path = self.query_exact(PIN_HERE)[0]["path"]
        try:
            return self.query_exact(sql, *arguments, keep=keep)
        finally:
            # An error that somebody catches undoes it as well, but one that we catch need not have been the caller's own.
            if path != PINNED:
                self.query_exact(SET_PATH, ("text", path))

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
        self.query_exact(SET_PATH, ("text", path))
        yield
        self.query_exact(SET_PATH, ("text", own["path"]))  # an error undoes it itself

    @contextmanager
    def subtransaction(self) -> Iterator[None]:
        with self._plpy.subtransaction():
            yield

    def attempt(self, work: Callable[[], T]) -> T | None:
        try:
            with self._plpy.subtransaction():
                return work()
        except self._plpy.SPIError as error:
            if not is_missing(getattr(error, "sqlstate", None)):
                raise  # a cancel, for one
            return None

    def check_search_path(self) -> None:
        check_schemas(self.query_exact(SCHEMAS)[0]["schemas"])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        yield

    def check_interrupts(self) -> None:
        self._plpy.execute("select")

    def notice(self, message: str, *, detail: str | None = None) -> None:
        self._plpy.notice(message, **({} if detail is None else {"detail": detail}))

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
