"""The servers that all other tests stand on are what they claim to be, and so is the image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pg_distill
import psycopg
import pytest
import servers

pytestmark = [pytest.mark.extra, pytest.mark.every_server]

MAX_IMAGE_BYTES = 850_000_000
"""A tenth more than the larger image's 769 MB: another framework or a compiler that stayed behind would be seen."""


@pytest.fixture
def container(server: servers.Server) -> servers.Container:
    if not isinstance(server, servers.Container):
        pytest.skip(f"server {server.name} is no container")
    return server


@pytest.mark.parametrize(("server_option", "status"), [("auto", 4), ("none", 0)])
def test_a_run_without_servers_has_to_be_asked_for(server_option: str, status: int) -> None:
    """A machine that has none would skip every test in SQL, and report success."""
    command = [sys.executable, "-m", "pytest", "--config-file=python/pyproject.toml", "--rootdir=.", "-p", "no:cacheprovider",
               f"--server={server_option}", "tests/sql/test_progress.py"]  # fmt: skip
    environment = {**os.environ, "PATH": "/nowhere", "PG_CONFIG": "/bin/echo"}
    done = subprocess.run(
        command, cwd=servers.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "passed" not in done.stdout


@pytest.mark.local
def test_database_is_utf8_with_the_extension(db: psycopg.Connection) -> None:
    row = db.execute(
        "SELECT pg_encoding_to_char(encoding),"
        " (SELECT extversion FROM pg_extension WHERE extname = 'pg_distill')"
        " FROM pg_database WHERE datname = current_database()"
    ).fetchone()
    assert row == ("UTF8", pg_distill.__version__)


@pytest.mark.local
def test_major_version_is_that_of_the_name(server: servers.Server) -> None:
    if server.name in servers.CONTAINERS:
        assert server.major == servers.CONTAINERS[server.name]
    assert server.major >= 15


@pytest.mark.local
def test_each_test_has_a_fresh_database(
    server: servers.Server, database: str, db: psycopg.Connection
) -> None:
    db.execute("CREATE TABLE left_behind ()")
    with server.connect(database) as other:
        assert other.execute("SELECT to_regclass('left_behind') IS NOT NULL").fetchone() == (True,)


@pytest.mark.local
def test_table_of_another_test_is_gone(db: psycopg.Connection) -> None:
    assert db.execute("SELECT to_regclass('left_behind')").fetchone() == (None,)


@pytest.mark.local
def test_role_logs_in_and_is_no_superuser(
    connect: Callable[..., psycopg.Connection], role: Callable[..., str]
) -> None:
    session = connect(user=role("reader", grant=["pg_read_all_stats"]))
    assert session.execute("SELECT session_user::text, current_setting('is_superuser')").fetchone() == (
        "reader",
        "off",
    )


@pytest.mark.local
def test_roles_are_gone(server: servers.Server) -> None:
    assert server.value("SELECT count(*) FROM pg_roles WHERE rolname = 'reader'") == 0


@pytest.mark.local
def test_backend_is_among_the_processes(server: servers.Server, db: psycopg.Connection) -> None:
    pid = db.info.backend_pid
    found = [process for process in server.processes("postgres") if process.pid == pid]
    assert len(found) == 1
    assert found[0].rss_bytes > 0


@pytest.mark.local
def test_killed_backend_restarts_the_sessions_and_started_at_tells(
    start_server: Callable[..., servers.Server],
) -> None:
    server = start_server()
    before = server.started_at()
    with server.connect() as session:
        server.kill(session.info.backend_pid, "KILL")
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT pg_sleep(5)")
    server.wait()
    assert server.started_at() > before


@pytest.mark.local
@pytest.mark.parametrize("init", [True, False])
def test_crash_and_stop_keep_what_was_committed(
    start_server: Callable[..., servers.Server], init: bool
) -> None:
    server = start_server(init=init)
    if isinstance(server, servers.Container):
        (first,) = (process for process in server.processes() if process.pid == 1)
        assert first.command.split()[0] == ("tini" if init else "postgres")
    with server.connect() as session:
        session.execute("CREATE TABLE kept AS SELECT 1 AS one")
    server.crash()
    with pytest.raises(psycopg.OperationalError):
        server.connect()
    server.start()
    assert server.value("SELECT one FROM kept") == 1
    server.stop()
    server.start()
    assert server.value("SELECT one FROM kept") == 1


def test_image_runs_as_postgres_without_compilers_and_forgets_the_password(
    container: servers.Container,
) -> None:
    assert container.run("id", "-un").stdout.strip() == "postgres"
    # A new backend calls itself "postgres -c ..." for a moment, too: it is not the init process's child.
    first = [process for process in container.processes("^(tini|postgres) ") if process.ppid in (0, 1)]
    assert [process.command.split()[0] for process in first] == ["tini", "postgres"]
    for process in first:
        environment = container.run("cat", f"/proc/{process.pid}/environ").stdout
        assert "PGDATA=" in environment
        assert "POSTGRES_PASSWORD" not in environment
    tools = container.run("sh", "-c", "command -v gcc cc make pip pip3", check=False)
    assert tools.stdout == ""


def test_image_has_the_size_that_it_had(container: servers.Container) -> None:
    command = ["docker", "image", "inspect", "--format", "{{.Size}}", servers.build(container.name)]
    size = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert size < MAX_IMAGE_BYTES


def test_image_makes_no_cluster_without_a_password(container: servers.Container) -> None:
    command = ["docker", "run", "--rm", servers.build(container.name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "POSTGRES_PASSWORD" in done.stderr


def test_image_asks_for_the_password(container: servers.Container) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        container.connect(password="wrong")


def test_container_becomes_healthy(container: servers.Container) -> None:
    assert shutil.which("docker")
    checked = container.run("pg_isready", "--quiet", "--host=127.0.0.1")
    assert checked.returncode == 0
