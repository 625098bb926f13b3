"""An upgraded extension is the one that a fresh install makes, and keeps what was registered before."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pg_distill
import psycopg
import pytest
import servers
from sql.conftest import load_cancer

pytestmark = pytest.mark.every_server

SCRIPTS = Path(__file__).resolve().parents[2] / "extension"
RELEASED = sorted(
    match[1]
    for file in SCRIPTS.glob("pg_distill--*.sql")
    if (match := re.fullmatch(r"pg_distill--([0-9.]+)\.sql", file.name))
    and match[1] != pg_distill.__version__
)

# All that an extension is made of, one object a row, in words that do not depend on object ids.
CATALOG = """
SELECT identity, description FROM (
    SELECT 'function ' || p.oid::regprocedure AS identity,
           concat_ws(E'\\n', pg_get_functiondef(p.oid), p.proparallel, p.proacl, obj_description(p.oid, 'pg_proc')) AS description
    FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' AND d.refobjid = {extension}
  UNION ALL
    SELECT 'relation ' || c.oid::regclass,
           concat_ws(E'\\n', c.relkind, c.relacl, c.relrowsecurity, c.reloptions, obj_description(c.oid, 'pg_class'),
               CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END,
               (SELECT string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstorage, a.attacl,
                                            pg_get_expr(f.adbin, f.adrelid), col_description(c.oid, a.attnum)), E'\\n' ORDER BY a.attname)
                FROM pg_attribute a LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
               (SELECT string_agg(pg_get_constraintdef(o.oid), E'\\n' ORDER BY o.conname) FROM pg_constraint o WHERE o.conrelid = c.oid),
               (SELECT string_agg(pg_get_indexdef(i.indexrelid), E'\\n' ORDER BY i.indexrelid::regclass::text) FROM pg_index i WHERE i.indrelid = c.oid),
               (SELECT string_agg(concat_ws(' ', p.polname, p.polcmd, pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)), E'\\n' ORDER BY p.polname)
                FROM pg_policy p WHERE p.polrelid = c.oid),
               (SELECT string_agg(pg_get_triggerdef(t.oid), E'\\n' ORDER BY t.tgname) FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal))
    FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e' AND d.refobjid = {extension}
  UNION ALL
    SELECT 'dumped ' || configured::regclass, condition
    FROM pg_extension e, unnest(e.extconfig, e.extcondition) AS u (configured, condition) WHERE e.oid = {extension}
  UNION ALL
    SELECT 'other ' || pg_describe_object(d.classid, d.objid, d.objsubid), NULL
    FROM pg_depend d WHERE d.deptype = 'e' AND d.refobjid = {extension} AND d.classid NOT IN ('pg_proc'::regclass, 'pg_class'::regclass)
) AS objects ORDER BY identity
""".format(extension="(SELECT oid FROM pg_extension WHERE extname = 'pg_distill')")


@pytest.fixture(params=RELEASED)
def older(request: pytest.FixtureRequest, server: servers.Server) -> Iterator[psycopg.Connection]:
    """Give a session in a database where an older release is installed."""
    name = "pg_distill_upgraded"
    servers.create_database(server, name, version=request.param)
    with server.connect(name) as connection:
        yield connection
    servers.drop_database(server, name)


@pytest.mark.local
def test_upgraded_catalog_is_that_of_a_fresh_install(
    older: psycopg.Connection, db: psycopg.Connection
) -> None:
    older.execute("ALTER EXTENSION pg_distill UPDATE")
    upgraded = dict(older.execute(CATALOG).fetchall())
    fresh = dict(db.execute(CATALOG).fetchall())
    assert len(fresh) > 50
    assert sorted(upgraded) == sorted(fresh)
    assert {key: upgraded[key] for key in fresh if upgraded[key] != fresh[key]} == {}


def test_functions_of_an_older_release_ask_for_the_upgrade(older: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        older.execute("SELECT distill.show_settings()")


def test_a_module_older_than_the_extension_is_refused(db: psycopg.Connection) -> None:
    db.execute("UPDATE pg_extension SET extversion = '99.0.0' WHERE extname = 'pg_distill'")
    for call in (
        "distill.show_settings()",
        "distill._check_module()",
        "distill.predict('m', '{1}'::float8[])",
    ):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            db.execute(f"SELECT {call}")


def test_no_extension_is_created_without_the_module(db: psycopg.Connection) -> None:
    db.execute("DO $$ import sys; sys.modules['pg_distill'] = None $$ LANGUAGE plpython3u")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        db.execute("SELECT distill._check_module()")
    with pytest.raises(psycopg.errors.ExternalRoutineException):  # as the DBA's page says
        db.execute("SELECT distill.show_settings()")
    db.execute("DROP EXTENSION pg_distill")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        db.execute("CREATE EXTENSION pg_distill")
    assert db.execute("SELECT to_regnamespace('distill')").fetchone() == (None,)


RESTORED = "pg_distill_restored"


@pytest.fixture
def restore(server: servers.Server) -> Iterator[Callable[[psycopg.Connection], list[psycopg.Connection]]]:
    """Dump a session's database, and give sessions in what is restored of it: none where nothing runs on the server's host."""
    flags = "-U postgres" + (f" -h {server.directory}" if isinstance(server, servers.Local) else "")
    with contextlib.ExitStack() as stack:

        def through_a_file(connection: psycopg.Connection) -> list[psycopg.Connection]:
            if isinstance(server, servers.External):
                return []
            servers.drop_database(server, RESTORED)
            with server.connect() as admin:
                admin.execute(f"CREATE DATABASE {RESTORED} TEMPLATE template0 ENCODING 'UTF8'")
            stack.callback(servers.drop_database, server, RESTORED)
            name = connection.info.dbname
            server.run(
                "sh",
                "-c",
                f"pg_dump {flags} -Fc {name} | pg_restore {flags} --exit-on-error --dbname={RESTORED}",
            )
            return [stack.enter_context(server.connect(RESTORED))]

        yield through_a_file


def test_models_and_settings_survive_the_upgrade(
    older: psycopg.Connection,
    db: psycopg.Connection,
    restore: Callable[[psycopg.Connection], list[psycopg.Connection]],
) -> None:
    """By ALTER EXTENSION, and by a dump of the older release, which is restored into this one.

    The module on disk serves no older extension: its rows are written as that left them, column by column.
    """
    load_cancer(db)
    db.execute("SELECT distill.change_setting('trainer_threads', '1')")
    db.execute(
        "SELECT distill_model('cancer', families => '{linear}', time_budget_s => 3, patience => 1, min_accuracy => 0)"
    )
    for table in ("settings", "models", "runs", "candidates"):
        columns = [
            row[0]
            for row in older.execute(
                "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
                " AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
                (f"distill.{table}",),
            )
        ]
        listed = ", ".join(columns)
        with (
            db.cursor().copy(f"COPY (SELECT {listed} FROM distill.{table}) TO STDOUT") as read,
            older.cursor().copy(f"COPY distill.{table} ({listed}) FROM STDIN") as write,
        ):
            for block in read:
                write.write(block)
    predict = "SELECT distill.predict(m, array_fill(1.5::float8, ARRAY[30])) FROM unnest('{cancer,cancer_distilled}'::text[]) m"
    predicted = db.execute(predict).fetchall()
    assert len(predicted) == 2
    shown = "SELECT name, value FROM distill.show_settings() WHERE NOT is_default"
    assert db.execute(shown).fetchall() == [("trainer_threads", "1")]
    restored = restore(older)
    older.execute("ALTER EXTENSION pg_distill UPDATE")
    for newer in (*restored, older):
        assert newer.execute(predict).fetchall() == predicted
        assert newer.execute(shown).fetchall() == [("trainer_threads", "1")]
