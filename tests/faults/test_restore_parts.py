"""A registry that is restored in parallel, in sections, by tables, without triggers or into other owners is complete."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import servers
from conftest import create_database, drop_database
from faults.harness import DISTIL_FEW, load_few

pytestmark = pytest.mark.extra

RESTORED = "pg_distill_parts"
FIGURES = (
    "SELECT (SELECT md5(string_agg(m::text, '' ORDER BY m.id)) FROM distill.models m),"
    " (SELECT md5(string_agg(r::text, '' ORDER BY r.run_id)) FROM distill.runs r),"
    " (SELECT md5(string_agg(c::text, '' ORDER BY c.run_id, c.candidate)) FROM distill.candidates c),"
    " (SELECT md5(string_agg(s::text, '' ORDER BY s.name)) FROM distill.settings s)"
)
MANY = 400  # runs, so that loading takes long enough for the order of tables to matter


@pytest.fixture
def dumped(server: servers.Server, db: psycopg.Connection, database: str) -> Iterator[tuple[str, str, Any]]:
    """Give the flags of a client on the server's host, a folder with dumps, and what must be found."""
    if not isinstance(server, servers.Container | servers.Local):
        pytest.skip("pg_dump is run on the server's host")
    load_few(db)
    db.execute(DISTIL_FEW)
    db.execute("SELECT distill.change_setting('trainer_threads', '1')")
    # Many runs, each with its candidates; models with large files, which are loaded last.
    copy = "INSERT INTO distill.{0} SELECT (jsonb_populate_record(NULL::distill.{0}, to_jsonb(o) || {1})).* FROM distill.{0} o, {2}"
    db.execute(
        copy.format("runs", "jsonb_build_object('run_id', gen_random_uuid())", f"generate_series(1, {MANY})")
    )
    new = "distill.runs r WHERE o.candidate < 4 AND r.run_id NOT IN (SELECT run_id FROM distill.candidates)"
    db.execute(copy.format("candidates", "jsonb_build_object('run_id', r.run_id)", new))
    named = "jsonb_build_object('id', gen_random_uuid(), 'name', 'copy' || i)"
    db.execute(copy.format("models", named, "generate_series(1, 40) i WHERE o.name = 'few'"))
    where = (
        "-U postgres"
        if isinstance(server, servers.Container)
        else f"-U postgres -h {server.run('pwd').stdout.strip()}"
    )
    folder = server.run("mktemp", "--directory").stdout.strip()
    server.run("pg_dump", *where.split(), "--format=custom", f"--file={folder}/whole", database)
    server.run("pg_dump", *where.split(), "--format=custom", "--data-only", f"--file={folder}/data", database)
    row = db.execute(FIGURES).fetchone()
    yield where, folder, row
    server.run("rm", "-rf", folder)


def restore(server: servers.Server, where: str, *flags: str, check: bool = True) -> str:
    done = server.run("pg_restore", *where.split(), f"--dbname={RESTORED}", *flags, check=check)
    return done.stderr


FORMS: dict[str, list[list[str]]] = {
    "in parallel": [["--jobs=4", "{0}/whole"]],
    "in sections": [
        [f"--section={part}", "--jobs=2", "{0}/whole"] for part in ("pre-data", "data", "post-data")
    ],
    "data only, in parallel": [["--data-only", "--schema=distill", "--jobs=4", "{0}/whole"]],
    "data only, without triggers": [["--data-only", "--schema=distill", "--disable-triggers", "{0}/data"]],
    "table by table, backwards": [
        ["--data-only", "--schema=distill", f"--table={table}", "{0}/whole"]
        for table in ("candidates", "runs", "settings", "models")
    ],
    "without owners and rights": [["--no-owner", "--no-acl", "--jobs=3", "{0}/whole"]],
}


def test_nothing_is_lost(server: servers.Server, dumped: tuple[str, str, Any]) -> None:
    where, folder, before = dumped
    for form, steps in FORMS.items():
        if form.startswith(("data", "table")):
            create_database(server, RESTORED)
        else:
            drop_database(server, RESTORED)
            with server.connect() as connection:
                connection.execute(f"CREATE DATABASE {RESTORED} TEMPLATE template0 ENCODING 'UTF8'")
        try:
            for step in steps:
                restore(server, where, "--exit-on-error", *(flag.format(folder) for flag in step))
            with server.connect(RESTORED) as connection:
                assert connection.execute(FIGURES).fetchone() == before, form
                row = connection.execute(
                    "SELECT count(*) FROM distill.candidates c JOIN distill.runs r USING (run_id)"
                ).fetchone()
                assert row is not None and row[0] > MANY, form
                # What was restored is checked when it is asked for, and answers.
                predict = "SELECT distill.predict('few', '{1,2,3,4}'::float8[])"
                assert connection.execute(predict).fetchone() != (None,)
                # A deleted model or run leaves nothing that points to it.
                connection.execute("DELETE FROM distill.models; DELETE FROM distill.runs")
                left = "SELECT (SELECT count(*) FROM distill.candidates), (SELECT count(*) FROM distill.runs)"
                assert connection.execute(left).fetchone() == (0, 0), form
        finally:
            drop_database(server, RESTORED)


def test_stored_sql_finds_its_owner_again(
    server: servers.Server, db: psycopg.Connection, database: str, role: Any, connect: Any
) -> None:
    """A name means the role of that name where it is restored; where there is none, nobody; and from then on no other."""
    grants = "GRANT USAGE ON SCHEMA distill TO {0}; GRANT SELECT ON distill.models TO {0}; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA distill TO {0};"
    for name in ("kept", "lost"):
        role(name)
        db.execute(grants.format(name))
        db.execute(
            "CREATE TABLE IF NOT EXISTS numbers AS SELECT i::float8 AS x, i % 2 AS y FROM generate_series(1, 100) i; GRANT SELECT ON numbers TO PUBLIC"
        )
        connect(user=name).execute(
            f"SELECT distill.register_sql_model('{name}s', '0.5 + 0 * x', '{{x}}', 'numbers', 'y')"
        )
    where = (
        "-U postgres"
        if isinstance(server, servers.Container)
        else f"-U postgres -h {server.run('pwd').stdout.strip()}"
    )
    folder = server.run("mktemp", "--directory").stdout.strip()
    server.run("pg_dump", *where.split(), "--format=custom", f"--file={folder}/whole", database)
    server.run("pg_dump", *where.split(), "--format=custom", "--data-only", f"--file={folder}/data", database)
    predict = "SELECT distill.predict(%s, '{1}'::float8[])"
    db.execute("ALTER ROLE lost RENAME TO hidden")
    try:
        for flags in (
            ["--data-only", f"{folder}/whole"],
            ["--data-only", "--disable-triggers", f"{folder}/data"],
        ):
            create_database(server, RESTORED)
            restore(server, where, "--exit-on-error", "--schema=distill", *flags)
            with server.connect(RESTORED) as admin:
                for name in ("kept", "hidden"):
                    admin.execute(grants.format(name))
                with server.connect(RESTORED, user="kept", password="kept") as session:
                    assert session.execute(predict, ("kepts",)).fetchone() == (0.5,)
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        session.execute(predict, ("losts",))
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    admin.execute(predict, ("losts",))
            drop_database(server, RESTORED)
    finally:
        server.run("rm", "-rf", folder)
        drop_database(server, RESTORED)
        db.execute("ALTER ROLE hidden RENAME TO lost")
