"""What was dumped and restored, replicated or promoted has the same registry and predicts the same bits; DROP EXTENSION leaves nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import servers
from conftest import drop_database
from faults.harness import DISTIL_FEW, REGISTER_FEW, few_teacher, load_few

pytestmark = [pytest.mark.every_server, pytest.mark.extra]

RESTORED = "pg_distill_restored"
NEWER = {"pg15": "pg18", "pg17": "pg18"}
STANDBY_PORT = 5439  # of a socket; nothing else listens there

# float8 is written in its shortest exact form: equal texts are equal bits.
FIGURES = (
    "SELECT (SELECT md5(string_agg(m::text, '' ORDER BY m.id)) FROM distill.models m),"
    " (SELECT md5(string_agg(r::text, '' ORDER BY r.run_id)) FROM distill.runs r),"
    " (SELECT md5(string_agg(c::text, '' ORDER BY c.run_id, c.candidate)) FROM distill.candidates c),"
    " (SELECT md5(string_agg(s::text, '' ORDER BY s.name)) FROM distill.settings s),"
    " (SELECT md5(string_agg(distill.predict(m.name || ':' || m.version, to_jsonb(f))::text, '' ORDER BY m.id, f)) FROM few f, distill.models m),"
    " (SELECT string_agg(name, ' ' ORDER BY name) FROM distill.frontier)"
)


@pytest.fixture
def before(db: psycopg.Connection) -> tuple[Any, ...]:
    """Fill the database with teachers, runs and students, and give what it must be found as."""
    load_few(db)
    db.execute(REGISTER_FEW, (few_teacher(),))
    db.execute("SELECT distill.change_setting('trainer_threads', '1')")
    for seed in (1, 2):
        db.execute(DISTIL_FEW.removesuffix(")") + f", seed => {seed})")
    # A student for sure, whatever the runs decided.
    db.execute(
        "SELECT distill.promote_candidate(run_id, candidate) FROM distill.candidates WHERE on_frontier ORDER BY run_id, candidate LIMIT 1"
    )
    row = db.execute(FIGURES).fetchone()
    assert row is not None
    assert None not in row
    assert db.execute("SELECT count(*) FROM distill.models WHERE teacher_id IS NOT NULL").fetchone() != (0,)
    return row


def _target(server: servers.Server) -> Iterator[servers.Server]:
    with server.connect() as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {RESTORED} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {RESTORED} TEMPLATE template0 ENCODING 'UTF8'")
    yield server
    drop_database(server, RESTORED)


@pytest.fixture(params=["the same version", "a newer version"])
def target(request: pytest.FixtureRequest, server: servers.Server) -> Iterator[servers.Server]:
    """Give the server with an empty database to restore into."""
    if not isinstance(server, servers.Container | servers.Local):
        pytest.skip("pg_dump is run on the server's host")
    if request.param == "the same version":
        yield from _target(server)
        return
    newer = NEWER.get(server.name)
    if newer is None:
        pytest.skip(f"no server newer than {server.name}")
    fault = servers.available()[newer]
    if fault is not None:
        pytest.skip(f"no server {newer}: {fault}")
    with servers.start(newer) as started:
        yield from _target(started)


@pytest.mark.local
def test_dump_and_restore(
    server: servers.Server, database: str, before: tuple[Any, ...], target: servers.Server
) -> None:
    """Plain and custom, into one target after the other, by the target's own pg_restore."""
    where = ["-U", "postgres"] if isinstance(server, servers.Container) else server.run("pwd").stdout.split()
    flags = " ".join(where if isinstance(server, servers.Container) else ["-U postgres -h", *where])
    for form, read in (
        ("--format=plain", f"psql {flags} --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --dbname={RESTORED}"),
        ("--format=custom", f"pg_restore {flags} --exit-on-error --dbname={RESTORED}"),
    ):
        dumped = server.run("sh", "-c", f"pg_dump {flags} {form} {database} | base64")
        assert "warning" not in dumped.stderr.lower()
        done = target.run("sh", "-c", f"base64 --decode | {read}", stdin=dumped.stdout)
        assert "warning" not in done.stderr.lower()
        with target.connect(RESTORED) as connection:
            assert connection.execute(FIGURES).fetchone() == before
            # It goes on there as it would have gone on here.
            assert connection.execute(REGISTER_FEW, (few_teacher(),)).fetchone() is not None
        with target.connect() as connection:
            connection.execute(f"DROP DATABASE {RESTORED} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {RESTORED} TEMPLATE template0 ENCODING 'UTF8'")


@pytest.mark.local
def test_standby_and_its_promotion(
    server: servers.Server, database: str, db: psycopg.Connection, before: tuple[Any, ...]
) -> None:
    """A hot standby predicts as its primary, what is written there it refuses, and promoted it takes over."""
    if not isinstance(server, servers.Container | servers.Local):
        pytest.skip("pg_basebackup is run on the server's host")
    place = server.run("mktemp", "--directory").stdout.strip()
    primary = server.run("pwd").stdout.strip() if isinstance(server, servers.Local) else "/var/run/postgresql"
    server.run("pg_basebackup", "-h", primary, "-U", "postgres", "-D", f"{place}/data", "-R", "-c", "fast")
    options = f"-k {place} -p {STANDBY_PORT} -c listen_addresses= -c shared_buffers=16MB"

    def ask(query: str, *, check: bool = True) -> str:
        psql = ["psql", "-X", "-A", "-t", "-F", "|", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=sqlstate"]
        where = ["-h", place, "-p", str(STANDBY_PORT), "-U", "postgres", "-d", database]
        done = server.run(*psql, *where, "-c", query, check=check)
        return done.stdout.strip() or done.stderr.strip()

    try:
        server.run("pg_ctl", "-D", f"{place}/data", "-w", "-l", f"{place}/log", "-o", options, "start")
        position = db.execute("SELECT pg_current_wal_lsn()::text").fetchone()
        assert position is not None
        for _ in range(600):
            if ask(f"SELECT pg_last_wal_replay_lsn() >= '{position[0]}'") == "t":
                break
        assert ask("SELECT pg_is_in_recovery()") == "t"
        expected = "|".join(map(str, before))
        assert ask(FIGURES) == expected
        assert "25006" in ask(DISTIL_FEW, check=False)
        server.run("pg_ctl", "-D", f"{place}/data", "-w", "promote")
        assert ask("SELECT pg_is_in_recovery()") == "f"
        assert ask(FIGURES) == expected
        ask(DISTIL_FEW)
        assert int(ask("SELECT count(*) FROM distill.runs")) == 3
    finally:
        server.run("pg_ctl", "-D", f"{place}/data", "-m", "immediate", "stop", check=False)
        server.run("rm", "-rf", place)


UPGRADE = """
set -eu
cd {place}
initdb --pgdata=new --username=postgres --encoding=UTF8 --locale=C.UTF-8 --data-checksums --no-sync > initdb.log
export LD_LIBRARY_PATH={place}/lib
pg_upgrade --old-bindir={old} --new-bindir="$(dirname "$(readlink -f "$(command -v postgres)")")" --old-datadir=data --new-datadir=new \
    --username=postgres --old-port={port} --new-port={port} --socketdir={place} --old-options='-c jit=off' > upgrade.log 2>&1 \
    || {{ cat upgrade.log new/pg_upgrade_output.d/*/*.txt new/pg_upgrade_output.d/*/log/*.log >&2; exit 1; }}
"""


def _send(source: servers.Container, target: servers.Container, folder: str, *files: str) -> None:
    """Copy files, with what links among them point to, into a folder of another container."""
    tar = [
        "docker",
        "exec",
        "--user",
        "root",
        source.container_id,
        "tar",
        "--create",
        "--dereference",
        "--exclude=*/lib/pg_distill",  # the module: the older version's is not asked for anything
        "--directory=/",
        *files,
    ]
    untar = [
        "docker",
        "exec",
        "--interactive",
        "--user",
        "root",
        target.container_id,
        "tar",
        "--extract",
        f"--directory={folder}",
    ]
    with subprocess.Popen(tar, stdout=subprocess.PIPE) as sender:
        subprocess.run(untar, stdin=sender.stdout, check=True)
    assert sender.returncode == 0


def _foreign_options(server: servers.Server, target: servers.Server) -> list[str]:
    """List the options that the older server gives to columns of every new table, and the newer one does not know.

    Debian's 17.12 notes "pg_attver", which its 18.6 refuses: pg_upgrade can then move no table at all.
    """
    with server.connect() as old, target.connect() as new:
        old.execute("CREATE TEMP TABLE probe (x int)")
        new.execute("CREATE TEMP TABLE probe (x int)")
        given = old.execute(
            "SELECT unnest(attoptions) FROM pg_attribute WHERE attrelid = 'probe'::regclass AND attname = 'x'"
        ).fetchall()
        unknown = []
        for (option,) in given:
            try:
                new.execute(f"ALTER TABLE probe ALTER x SET ({option})")  # type: ignore[arg-type]
            except psycopg.errors.InvalidParameterValue:
                unknown.append(option)
        return unknown


def test_upgraded_to_a_newer_major_version(
    server: servers.Server, database: str, db: psycopg.Connection, before: tuple[Any, ...]
) -> None:
    """pg_upgrade, in a container of the newer version that is given the older one's programs and a copy of its cluster."""
    newer = NEWER.get(server.name)
    if newer is None or not isinstance(server, servers.Container):
        pytest.skip(f"no server newer than {server.name}")
    fault = servers.available()[newer]
    if fault is not None:
        pytest.skip(f"no server {newer}: {fault}")
    place, port = "/tmp/upgrade", str(STANDBY_PORT)
    bindir = server.run("sh", "-c", 'dirname "$(readlink -f "$(command -v postgres)")"').stdout.strip()
    folders = [
        bindir,
        *(server.run("pg_config", what).stdout.strip() for what in ("--pkglibdir", "--sharedir")),
    ]
    copied = server.run("mktemp", "--directory").stdout.strip()
    with servers.start(newer) as target:
        assert isinstance(target, servers.Container)
        if foreign := _foreign_options(server, target):
            server.run("rm", "-rf", copied)
            pytest.skip(f"pg_upgrade moves no table of {server.name} to {newer}, which knows no {foreign}")
        try:
            server.run(
                "pg_basebackup",
                "-h",
                "/var/run/postgresql",
                "-U",
                "postgres",
                "-D",
                f"{copied}/data",
                "-c",
                "fast",
            )
            # What was copied from a running server is clean once it was started and stopped.
            options = f"-k {copied} -p {port} -c listen_addresses="
            server.run("pg_ctl", "-D", f"{copied}/data", "-w", "-l", f"{copied}/log", "-o", options, "start")
            server.run("pg_ctl", "-D", f"{copied}/data", "-w", "stop")
            target.run("mkdir", "-p", f"{place}/lib", user="postgres")
            _send(server, target, "/", *(folder.removeprefix("/") for folder in folders))
            _send(server, target, place, f"{copied}/data".removeprefix("/"))
        finally:
            server.run("rm", "-rf", copied)
        target.run("sh", "-c", f"mv {place}{copied}/data {place}/ && chown -R postgres {place}", user="root")
        # The older version's libraries that the newer system has not; their names tell them apart from its own.
        linked = target.run("ldd", f"{bindir}/postgres").stdout
        missing = [line.split()[0] for line in linked.splitlines() if "not found" in line]
        while missing:
            paths = server.run(
                "sh", "-c", f"for f in {' '.join(missing)}; do ls /usr/lib/*/$f; done"
            ).stdout.split()
            _send(server, target, f"{place}/lib", *(path.removeprefix("/") for path in paths))
            target.run(
                "sh",
                "-c",
                f"find {place}/lib -type f -exec mv -t {place}/lib {{}} + 2> /dev/null; true",
                user="root",
            )
            linked = target.run("env", f"LD_LIBRARY_PATH={place}/lib", "ldd", f"{bindir}/postgres").stdout
            missing = [line.split()[0] for line in linked.splitlines() if "not found" in line]
        target.run("sh", "-c", UPGRADE.format(place=place, old=bindir, port=port), timeout=300)
        target.run(
            "pg_ctl",
            "-D",
            f"{place}/new",
            "-w",
            "-l",
            f"{place}/log",
            "-o",
            f"-k {place} -p {port} -c listen_addresses=",
            "start",
        )
        where = ["-h", place, "-p", port, "-U", "postgres", "-d", database]
        try:
            ask = ["psql", "-X", "-A", "-t", "-F", "|", "-v", "ON_ERROR_STOP=1", *where, "-c"]
            assert target.run(*ask, FIGURES).stdout.strip() == "|".join(map(str, before))
            target.run(*ask, DISTIL_FEW)
            assert target.run(*ask, "SELECT count(*) FROM distill.runs").stdout.strip() == "3"
        finally:
            target.run("pg_ctl", "-D", f"{place}/new", "-m", "immediate", "stop", check=False)


def test_drop_extension_leaves_nothing(db: psycopg.Connection) -> None:
    def objects() -> int:
        row = db.execute(
            "SELECT (SELECT count(*) FROM pg_proc) + (SELECT count(*) FROM pg_class) + (SELECT count(*) FROM pg_type)"
            " + (SELECT count(*) FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp') + (SELECT count(*) FROM pg_trigger)"
        ).fetchone()
        assert row is not None
        return int(row[0])

    db.execute("DROP EXTENSION pg_distill")
    bare = objects()
    db.execute("CREATE EXTENSION pg_distill")
    assert objects() > bare
    load_few(db)
    db.execute("DROP EXTENSION pg_distill; DROP TABLE few")
    assert objects() == bare
