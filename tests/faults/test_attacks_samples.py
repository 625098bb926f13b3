"""Whatever text of a user's runs in a function of ours can only read: the session and the database are as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from sql.test_serving import sigmoid, value

pytestmark = pytest.mark.local

Connect = Callable[..., psycopg.Connection]

SETUP = """
CREATE TABLE numbers AS SELECT i AS id, i::float8 AS x, (i % 2)::int AS label, 0.5::float8 AS p FROM generate_series(1, 60) i;
CREATE TABLE written (n int);
CREATE SEQUENCE counter;
SELECT lo_from_bytea(4711, 'kept');
"""
# What belongs to the session that is attacked.
SESSION = """
CREATE TEMP TABLE scratch (n int);
CREATE TEMP SEQUENCE own_counter;
SELECT nextval('own_counter');
SELECT pg_advisory_lock(99);
LISTEN mine;
SET my.own = 'kept';
"""

# Everything that a query could change of its session or its database, in one row. In a transaction, locks too, but those that no
# savepoint gives back and that bar nobody: the transaction's id, and what whoever looks at large objects or a sequence has on their tables.
STATE = """
SELECT (SELECT md5(string_agg(name || '=' || setting, ',' ORDER BY name)) FROM pg_settings) AS settings,
       current_setting('my.own') AS own_setting, current_user AS role, session_user AS login,
       (SELECT array_agg(concat_ws(' ', locktype, mode, relation::regclass, classid, objid, objsubid) ORDER BY 1)
        FROM (SELECT * FROM pg_locks WHERE pid = pg_backend_pid() AND locktype NOT IN ('virtualxid', 'transactionid')
              AND mode NOT IN ('AccessShareLock', 'SIReadLock')
              AND coalesce(relation, 0) NOT IN (2613, 2683, 'counter'::regclass)) l) AS locks,
       (SELECT array_agg(c ORDER BY c) FROM pg_listening_channels() c) AS channels,
       (SELECT array_agg(name || is_holdable ORDER BY name) FROM pg_cursors) AS cursors,
       (SELECT array_agg(name ORDER BY name) FROM pg_prepared_statements) AS prepared,
       (SELECT array_agg(oid ORDER BY oid) FROM pg_largeobject_metadata) AS large_objects, (SELECT array_agg(data) FROM pg_largeobject) AS large_object,
       (SELECT count(*) FROM scratch) AS scratch, (SELECT count(*) FROM written) AS written,
       (SELECT last_value FROM counter) AS counter,
       (SELECT count(*) FROM pg_class WHERE relname <> 'concealed') AS relations, (SELECT count(*) FROM pg_roles) AS roles,
       (SELECT count(*) FROM pg_description) AS comments
"""

# Calls, as expressions. Those in the second list have no undoing, in the third they cannot be written in a query.
CALLS = """
lo_creat(-1)
lo_create(0)
lo_from_bytea(0, 'x')
lo_put(4711, 0, 'x')
lo_unlink(4711)
lo_import('/etc/hostname')
lowrite(lo_open(4711, 131072), 'x')
lo_truncate(lo_open(4711, 131072), 1)
pg_advisory_lock(42)
pg_advisory_lock(4, 2)
pg_advisory_lock(-1)
pg_advisory_lock(-4, -2)
pg_advisory_lock_shared(43)
pg_try_advisory_lock(44)
pg_try_advisory_lock_shared(45)
pg_advisory_xact_lock(46)
pg_try_advisory_xact_lock_shared(47)
pg_advisory_unlock(99)
pg_advisory_unlock_all()
set_config('work_mem', '1MB', false)
set_config('work_mem', '1MB', true)
set_config('search_path', 'pg_temp', false)
set_config('role', 'attacked', false)
set_config('session_authorization', 'attacked', false)
set_config('transaction_read_only', 'off', true)
set_config('my.own', 'lost', false)
set_config('pg_distill.new', 'x', false)
pg_notify('theirs', 'x')
nextval('counter')
setval('counter', 100)
query_to_xml('SELECT lo_creat(-1)', true, true, '')
pg_export_snapshot()
pg_current_xact_id()
txid_current()
ts_stat('SELECT to_tsvector(lo_creat(-1)::text)')
"""
FOR_GOOD = """
lo_export(4711, '/nonexistent/file')
nextval('own_counter')
setval('own_counter', 100)
setseed(0.5)
pg_terminate_backend(0)
pg_cancel_backend(0)
pg_reload_conf()
pg_rotate_logfile()
pg_stat_reset()
pg_switch_wal()
pg_create_restore_point('x')
pg_logical_emit_message(false, 'x', 'x')
pg_promote()
pg_drop_replication_slot('x')
pg_backup_start('x')
pg_replication_origin_create('x')
currval('own_counter')
lastval()
dblink_exec('dbname=nowhere', 'DROP TABLE written')
dblink_connect('dbname=nowhere')
"""
STATEMENTS = """
LISTEN theirs
UNLISTEN *
NOTIFY theirs
LOCK TABLE numbers
LOCK TABLE numbers IN ROW SHARE MODE
DECLARE kept CURSOR WITH HOLD FOR SELECT 1
DECLARE gone CURSOR FOR SELECT 1
PREPARE planted AS SELECT 1
SET work_mem = '1MB'
SET LOCAL work_mem = '1MB'
SET ROLE attacked
SET SESSION AUTHORIZATION attacked
SET my.own = 'lost'
SET transaction_read_only = off
RESET ALL
RESET my.own
INSERT INTO scratch VALUES (1)
INSERT INTO written VALUES (1)
TRUNCATE scratch
CREATE TEMP TABLE made ()
CREATE TABLE made ()
CREATE FUNCTION made() RETURNS int LANGUAGE sql AS 'SELECT 1'
DROP TABLE written
ALTER ROLE attacked SUPERUSER
COMMENT ON TABLE written IS 'x'
SELECT FROM numbers FOR UPDATE
DISCARD PLANS
DISCARD TEMP
DEALLOCATE ready
DEALLOCATE ALL
CLOSE held
CLOSE ALL
"""
# score keeps the plan of its query. What is done while that is made is compared, too, but nothing shows a notification that waits for
# the transaction's end: one of a function that says it is STABLE or IMMUTABLE and is not.
UNSEEN_WHILE_PLANNING = ("pg_notify('theirs', 'x')",)
# Nobody can put these back, so they are errors.
LOST = ("DEALLOCATE ready", "DEALLOCATE ALL", "CLOSE held", "CLOSE ALL")

calls, for_good, statements = (
    [line for line in text.strip().splitlines() if line] for text in (CALLS, FOR_GOOD, STATEMENTS)
)
REFUSED = ("25006", "0A000")


def routes() -> dict[str, str]:
    """Return what runs text of the caller's, ``{query}`` or ``{expression}`` over the columns of ``numbers``, in milliseconds."""
    return {
        "a statement that is timed": "SELECT distill._statement_seconds($q${query}$q$)",
        "score": "SELECT count(*) FROM distill.score('m', $q${query}$q$, 'id')",
        "score_class": "SELECT count(*) FROM distill.score_class('m', $q${query}$q$, 'id')",
        "a logged model": "SELECT distill.register_logged_model('l', '{{p}}', '{{x}}', $q${query}$q$, 'label')",
    }


class Attack:
    """A session, and what it was like before each attack."""

    def __init__(self, session: psycopg.Connection, witness: psycopg.Connection) -> None:
        self.session = session
        self.witness = witness
        self.heard: list[Any] = []
        witness.add_notify_handler(self.heard.append)
        self.renew()

    def run(self, statement: str, *, aborts: bool = False) -> tuple[str | None, dict[str, tuple[Any, Any]]]:
        """Run it in a transaction, under a savepoint; return its SQLSTATE, and what of the state differs, before and after."""
        outside = self._last
        with self.session.transaction():
            inside = self._state()
            sqlstate = None
            try:
                with self.session.transaction(force_rollback=aborts):
                    self.session.execute(statement)
            except psycopg.Error as error:
                sqlstate = error.sqlstate
            differs = self._difference(inside, self._state()) if not registered(statement, sqlstate) else {}
        self._last = self._state()
        differs |= self._difference(outside, self._last)
        self.witness.execute("SELECT")
        if self.heard:
            differs["notified"] = (None, [*self.heard])
            self.heard.clear()
        return sqlstate, differs

    def renew(self) -> None:
        """Make what nobody can put back."""
        self.session.execute("DEALLOCATE ALL; CLOSE ALL; PREPARE ready AS SELECT 1")
        with self.session.transaction():
            self.session.execute("DECLARE held CURSOR WITH HOLD FOR SELECT 1")
        self._last = self._state()

    def _state(self) -> dict[str, Any]:
        cursor = self.session.execute(STATE)
        assert cursor.description is not None
        return dict(zip([c.name for c in cursor.description], cursor.fetchone() or (), strict=True))

    @staticmethod
    def _difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


def registered(statement: str, sqlstate: str | None) -> bool:
    """Say whether the statement itself writes, and did: it has locks then."""
    return sqlstate is None and "register" in statement


@pytest.fixture
def attack(db: psycopg.Connection, connect: Connect, role: Callable[..., str]) -> Iterator[Attack]:
    role("attacked")
    db.execute(
        "SELECT distill.register_model('m', %s, features => '{x}', task => 'binary', classes => '{no,yes}')",
        (sigmoid(1.0),),
    )
    db.execute(SETUP)
    if value(db, "SELECT count(*) FROM pg_available_extensions WHERE name = 'dblink'"):
        db.execute("CREATE EXTENSION dblink")
    session, witness = connect(), connect()
    session.prepare_threshold = None
    for statement in SESSION.strip().split(";\n"):
        session.execute(statement)
    witness.execute("LISTEN theirs")
    for route in routes().values():  # libraries that are loaded once bring settings of their own
        with session.transaction(force_rollback=True):
            session.execute(route.format(query="SELECT * FROM numbers"))
    yield Attack(session, witness)
    session.close()


def test_calls_in_the_text_are_refused(attack: Attack, db: psycopg.Connection) -> None:
    has_dblink = value(db, "SELECT count(*) FROM pg_extension WHERE extname = 'dblink'")
    wrong, tried = [], 0
    for call in [*calls, *for_good]:
        if "dblink" in call and not has_dblink:
            continue
        for how in (
            f"SELECT * FROM numbers, (SELECT {call}) c",
            f"SELECT n.* FROM numbers n WHERE ({call}) IS NOT NULL",
            f"WITH c AS MATERIALIZED (SELECT pg_catalog . {call}) SELECT * FROM numbers"
            if "dblink" not in call
            else f"TABLE numbers UNION ALL SELECT 1, 1, ({call})::text::int, 1",
        ):
            for name, route in routes().items():
                sqlstate, differs = attack.run(route.format(query=how))
                tried += 1
                # What is only STABLE is not refused by its name, and done nothing with.
                if sqlstate not in REFUSED or differs:
                    wrong.append((name, how, sqlstate, differs))
    print(f"{tried} calls in the text")
    assert not wrong, "\n".join(map(str, wrong[:40]))


# How a call is hidden: statements that make a function "hidden", and what a query says to run it.
LIES = ("VOLATILE", "STABLE", "IMMUTABLE PARALLEL SAFE")


def hide(what: str, is_statement: bool) -> Iterator[tuple[str, str]]:
    quoted = what.replace("'", "''")
    for label in LIES:
        perform = f"EXECUTE '{quoted}'" if is_statement else f"PERFORM {what}"
        yield (
            f"plpgsql, {label}",
            f"CREATE FUNCTION hidden() RETURNS int LANGUAGE plpgsql {label} AS $f$ BEGIN {perform}; RETURN 1; END $f$",
        )
        if not is_statement:
            yield (
                f"SQL, {label}",
                f"CREATE FUNCTION hidden() RETURNS int LANGUAGE sql {label} AS $f$ SELECT 1 FROM (SELECT {what} OFFSET 0) h $f$",
            )
    if is_statement:
        yield (
            "plpgsql, with its error caught",
            "CREATE FUNCTION hidden() RETURNS int LANGUAGE plpgsql AS $f$ BEGIN BEGIN"
            f" EXECUTE '{quoted}'; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN 1; END $f$",
        )
    else:
        yield (
            "plpgsql, ending in an error",
            f"CREATE FUNCTION hidden() RETURNS int LANGUAGE plpgsql AS $f$ BEGIN PERFORM {what}; RETURN 1 / 0; END $f$",
        )


def test_what_is_hidden_in_functions_and_views_leaves_nothing(attack: Attack, db: psycopg.Connection) -> None:
    wrong, tried = [], 0
    work = [(call, False) for call in calls] + [(statement, True) for statement in statements]
    for what, is_statement in work:
        hidden = list(hide(what, is_statement))
        if not is_statement:
            hidden.append(("a view", ""))
        for how, function in hidden:
            if function:
                db.execute(function)  # type: ignore[arg-type]
                query = "SELECT n.*, hidden() AS h FROM numbers n"
            else:
                db.execute(
                    f"CREATE VIEW concealed AS SELECT n.*, (SELECT count(*) FROM (SELECT {what} OFFSET 0) v) AS h FROM numbers n"
                )  # type: ignore[arg-type]
                query = "SELECT * FROM concealed"
            for name, route in routes().items():
                if name == "score_class" or (
                    name == "score" and "ABLE" in how and what in UNSEEN_WHILE_PLANNING
                ):
                    continue
                sqlstate, differs = attack.run(route.format(query=query), aborts=name == "a logged model")
                tried += 1
                if what in LOST:
                    if differs and sqlstate is None:
                        wrong.append((name, what, how, sqlstate, differs))
                    attack.renew()
                elif differs or (how == "VOLATILE" and sqlstate is None and "advisory" in what):
                    wrong.append((name, what, how, sqlstate, differs))
            db.execute("DROP FUNCTION IF EXISTS hidden; DROP VIEW IF EXISTS concealed")
    print(f"{tried} hidden calls")
    assert not wrong, "\n".join(map(str, wrong[:40]))
    assert tried > 1000
