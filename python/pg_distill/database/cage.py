"""What a query that somebody else wrote may do beside reading: nothing, in three steps.

1. Functions that PostgreSQL itself or a library brings, and that do more than read, are not called by name.
2. The query runs read-only, in a subtransaction that is always undone: settings, roles, locks, notifications, large objects and
   what else a view or a function hides.
3. What a subtransaction's end does not undo is compared before and after, put back, and is an error.

The statements here run beside the caller's own, so under the caller's search_path, in parallel workers too: each operator,
function and type is named so exactly that no other one can be meant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pg_distill.database.lexer import Call, called, words
from pg_distill.errors import ReadOnlyViolation
from pg_distill.quoting import quote_identifier

__all__ = [
    "HARMLESS",
    "Session",
    "changes",
    "check_calls",
    "hides_nothing",
    "put_back",
    "read_session",
    "read_settings",
    "violation",
]

# What differs from call to call, and is why it is VOLATILE; then what reads, under the caller's rights.
HARMLESS = frozenset({
    "clock_timestamp", "timeofday", "random", "random_normal", "gen_random_uuid", "uuidv4", "uuidv7", "bernoulli", "system",
    "pg_sleep", "pg_sleep_for", "pg_sleep_until", "current_query", "pg_is_in_recovery",
    "pg_relation_size", "pg_table_size", "pg_indexes_size", "pg_total_relation_size", "pg_database_size", "pg_tablespace_size",
    "pg_read_file", "pg_read_binary_file", "pg_stat_file", "pg_ls_dir", "pg_partition_tree", "pg_partition_ancestors",
    "pg_xact_commit_timestamp", "pg_blocking_pids",
})  # fmt: skip
"""Functions of PostgreSQL's that are VOLATILE and still only read: every other one is refused."""


class Ask(Protocol):
    """Runs a statement that means the same under every search_path, and returns its rows."""

    def __call__(self, sql: str, *arguments: tuple[str, Any]) -> Sequence[Mapping[str, Any]]: ...


# -- 1. by name

# VOLATILE is PostgreSQL's own word for what does more than read. A library's function that parallel workers may run as well is
# VOLATILE for its results only (gen_random_bytes, uuid_generate_v4).
_DOES_MORE = (
    "select n.nspname::pg_catalog.text as schema, p.proname::pg_catalog.text as name"
    " from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) p.pronamespace"
    " join pg_catalog.pg_language l on l.oid operator(pg_catalog.=) p.prolang"
    " where p.proname operator(pg_catalog.=) any ($1::pg_catalog.name[])"
    " and (p.provolatile operator(pg_catalog.=) 'v'::pg_catalog.\"char\""
    # STABLE, and gives the transaction an id
    " or p.proname operator(pg_catalog.=) any ('{txid_current,pg_current_xact_id}'::pg_catalog.name[]))"
    " and (n.nspname operator(pg_catalog.=) 'pg_catalog'::pg_catalog.name"
    " or (l.lanname operator(pg_catalog.=) any ('{c,internal}'::pg_catalog.name[])"
    " and p.proparallel operator(pg_catalog.<>) 's'::pg_catalog.\"char\"))"
)
MAX_CHECKED = 1000  # texts whose digests are remembered; a session has a few
_checked: set[bytes] = set()


def check_calls(ask: Ask, texts: Iterable[str]) -> None:
    """Refuse texts that call a function which does more than read.

    Raises
    ------
    ReadOnlyViolation
        Names the first one.
    """
    for text in texts:
        # A megabyte takes a second to be read, and a millisecond to be known again.
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        if digest not in _checked:
            _check_calls(ask, called(text))
            if len(_checked) >= MAX_CHECKED:
                _checked.clear()
            _checked.add(digest)


def _check_calls(ask: Ask, calls: Iterable[Call]) -> None:
    names = sorted({call.name for call in calls if call.name not in HARMLESS})
    if not names:
        return
    for row in ask(_DOES_MORE, ("text[]", names)):
        if Call(row["schema"], row["name"]) in calls or Call(None, row["name"]) in calls:
            raise ReadOnlyViolation(
                f"function {row['schema']}.{row['name']} cannot be called here, where a query only reads",
                detail="Of PostgreSQL's own functions and of libraries' it may call those that are STABLE or IMMUTABLE, and"
                " of the others such as random, clock_timestamp and gen_random_uuid.",
                hint="Call it in a statement of your own.",
            )


# What another schema has for one of these names or operators may be what is meant, and do what it likes.
_NOT_OWN = (
    "select exists (select from pg_catalog.pg_proc p where p.proname operator(pg_catalog.=) any ($1::pg_catalog.name[])"
    " and p.pronamespace operator(pg_catalog.<>) 'pg_catalog'::pg_catalog.regnamespace::pg_catalog.oid)"
    " or exists (select from pg_catalog.pg_type t where t.typname operator(pg_catalog.=) any ($1::pg_catalog.name[])"
    " and t.typnamespace operator(pg_catalog.<>) 'pg_catalog'::pg_catalog.regnamespace::pg_catalog.oid)"
    " or exists (select from pg_catalog.pg_operator o where o.oprname operator(pg_catalog.=) any ($2::pg_catalog.name[])"
    " and o.oprnamespace operator(pg_catalog.<>) 'pg_catalog'::pg_catalog.regnamespace::pg_catalog.oid) as found"
)
_UNSAID = (
    "=",
    "<>",
    "<",
    "<=",
    ">",
    ">=",
    "~~",
    "!~~",
    "~~*",
    "!~~*",
    "~",
)  # of IN, BETWEEN, CASE, NULLIF, LIKE, SIMILAR TO
_QUERIES = frozenset({"select", "table", "with", "values"})


def hides_nothing(ask: Ask, expressions: Iterable[str]) -> bool:
    """Return whether expressions run nothing but what PostgreSQL itself brings, so that `check_calls` has seen all of it.

    They have no sub-select, and no function, operator or type of a name that another schema has, too.
    """
    names: set[str] = set()
    operators = set(_UNSAID)
    for expression in expressions:
        found = words(expression)
        if found is None or found.names & _QUERIES or found.is_qualified:
            return False
        names |= found.names
        operators |= found.operators
    return not ask(_NOT_OWN, ("text[]", sorted(names)), ("text[]", sorted(operators)))[0]["found"]


# -- 3. before and after

_SESSION = (
    "select l.locktype as kind, l.mode as what, l.relation::pg_catalog.int8 as relation, l.classid::pg_catalog.int8 as high,"
    " l.objid::pg_catalog.int8 as low, l.objsubid::pg_catalog.int4 as half,"
    " pg_catalog.concat(l.transactionid) as name"
    " from pg_catalog.pg_lock_status() l where l.pid operator(pg_catalog.=) pg_catalog.pg_backend_pid() and l.granted"
    " and l.mode operator(pg_catalog.<>) 'AccessShareLock'::pg_catalog.text"
    " and l.mode operator(pg_catalog.<>) 'SIReadLock'::pg_catalog.text"  # of SERIALIZABLE, which reads
    " and l.locktype operator(pg_catalog.<>) 'virtualxid'::pg_catalog.text"
    # pg_largeobject and its index, which whoever reads from takes as if to write; who writes has a transaction id
    " and coalesce(l.relation operator(pg_catalog.<>) all ('{2613,2683}'::pg_catalog.oid[]), true)"
    " union all select 'prepared', null, null, null, null, p.from_sql::pg_catalog.int4, p.name"
    " from pg_catalog.pg_prepared_statement() p"
    " union all select 'cursor', null, null, null, null, c.is_holdable::pg_catalog.int4, c.name from pg_catalog.pg_cursor() c"
)
_SETTINGS = (
    "select pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat_ws('=', s.name, s.setting), ',' order by s.name)) as digest"
    " from pg_catalog.pg_show_all_settings() s"
)


@dataclass(frozen=True)
class Session:
    """What of a session's state outlives a subtransaction, or shows that something is being done in it."""

    locks: frozenset[tuple[str, str, int | None, int | None, int | None, int | None, str]]
    prepared: frozenset[tuple[str, bool]]
    """Names, and whether by SQL: the others are the client's driver's."""
    cursors: frozenset[tuple[str, bool]]
    """Names, and whether WITH HOLD."""


def read_session(ask: Ask) -> Session:
    """Return the state of the session as it is now."""
    rows = ask(_SESSION)
    found: dict[str, list[Any]] = {"prepared": [], "cursor": [], "lock": []}
    for row in rows:
        if row["kind"] in ("prepared", "cursor"):
            found[row["kind"]].append((row["name"], bool(row["half"])))
        else:
            found["lock"].append(tuple(row[key] for key in _LOCK))
    return Session(frozenset(found["lock"]), frozenset(found["prepared"]), frozenset(found["cursor"]))


_LOCK = ("kind", "what", "relation", "high", "low", "half", "name")


def read_settings(ask: Ask) -> str:
    """Return a digest of every setting that the current role sees."""
    return str(ask(_SETTINGS)[0]["digest"])


def changes(before: Session, after: Session, *, driver: bool = False) -> list[str]:
    """Return what was done in between, in words; nothing where it only read.

    Parameters
    ----------
    driver
        Whether a client's driver prepares statements of its own.
    """
    said = []
    for kind, mode, relation, *_ in sorted(after.locks - before.locks, key=repr):
        if kind == "advisory":
            said.append("took an advisory lock")
        elif kind == "transactionid":
            said.append("wrote, or took a transaction id")
        else:
            said.append(f"took a {mode} on {kind}" + (f" {relation}" if relation is not None else ""))
    said += ["gave back an advisory lock" for lock in before.locks - after.locks if lock[0] == "advisory"]
    for name, by_sql in after.prepared ^ before.prepared:
        if by_sql or not driver:
            verb = "prepared" if (name, by_sql) in after.prepared else "deallocated"
            said.append(f'{verb} statement "{name}"')
    said += [f'closed cursor "{name}"' for name, _ in before.cursors - after.cursors]
    said += [f'declared cursor "{name}" WITH HOLD' for name, held in after.cursors - before.cursors if held]
    return list(dict.fromkeys(said))


def put_back(ask: Ask, run: Callable[[str], object], before: Session, *, driver: bool = False) -> None:
    """Give back and take again what no subtransaction's end undoes, as far as it can be: locks and prepared statements."""
    now = read_session(ask)
    for lock in now.locks - before.locks:
        if lock[0] == "advisory":
            # As often as it was taken: unlocking what is not held is a warning, so the lock is looked for in between.
            while lock in read_session(ask).locks and ask(*_advisory("unlock", lock))[0]["done"]:
                pass
    for lock in before.locks - now.locks:
        if lock[0] == "advisory":
            ask(*_advisory("try", lock))
    for name, by_sql in now.prepared - before.prepared:
        if by_sql or not driver:
            run(f"DEALLOCATE {quote_identifier(name)}")


def _advisory(verb: str, lock: Sequence[Any]) -> tuple[Any, ...]:
    _, mode, _, high, low, half, _ = lock
    shared = "_shared" if mode == "ShareLock" else ""
    function = f"pg_advisory_unlock{shared}" if verb == "unlock" else f"pg_try_advisory_lock{shared}"
    if half == 1:  # one key of 64 bits
        key = (high << 32 | low) - (1 << 64 if high >> 31 else 0)
        return f"select pg_catalog.{function}($1) as done", ("int8", key)
    keys = [("int4", part - (1 << 32 if part >> 31 else 0)) for part in (high, low)]
    return f"select pg_catalog.{function}($1, $2) as done", *keys


def violation(said: Sequence[str]) -> ReadOnlyViolation:
    """Return the error of a query that did more than read."""
    return ReadOnlyViolation(
        f"a query that only reads {said[0]}",
        detail=f"It {', '.join(said)}. What it did is undone." if len(said) > 1 else "What it did is undone.",
        hint="Do that in a statement of your own.",
    )
