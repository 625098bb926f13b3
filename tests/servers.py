"""Real PostgreSQL servers for tests and benchmarks.

A server is a container of our image, a temporary cluster made of this machine's own PostgreSQL, or one that
somebody else runs and names by a connection string. All three are used the same way; what only some can do
(see processes, crash the server) raises `Unavailable` elsewhere, with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

__all__ = [
    "CONTAINERS",
    "Container",
    "External",
    "Installed",
    "Local",
    "Process",
    "Server",
    "Unavailable",
    "available",
    "create_database",
    "drop_database",
    "start",
]

ROOT = Path(__file__).resolve().parents[1]

CONTAINERS = {"pg15": 15, "pg17": 17, "pg18": 18}
"""The servers that run in a container, with their major versions."""

START_TIMEOUT_S = 90.0
"""How long a server may take to answer; a first start runs initdb, which takes some 5 s on a busy machine."""

SETTINGS = {
    "fsync": "off",  # a test kills processes, not machines
    "max_connections": "60",
    "shared_buffers": "128MB",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}

# What /proc says of every process, as JSON. It runs on the server's host, where there may be no ps.
_LIST_PROCESSES = """
import json, os
processes = []
for entry in os.listdir("/proc"):
    if not entry.isdigit() or int(entry) == os.getpid():
        continue
    try:
        with open(f"/proc/{entry}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        with open(f"/proc/{entry}/cmdline", "rb") as file:
            command = file.read().replace(b"\\0", b" ").decode(errors="replace").strip()
        with open(f"/proc/{entry}/oom_score_adj") as file:
            oom_score_adj = int(file.read())
    except (FileNotFoundError, ProcessLookupError):
        continue
    try:
        cwd = os.readlink(f"/proc/{entry}/cwd")
    except OSError:
        cwd = ""
    processes.append(dict(pid=int(entry), state=fields[0], ppid=int(fields[1]), pgid=int(fields[2]),
        sid=int(fields[3]), nice=int(fields[16]), threads=int(fields[17]),
        rss_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        oom_score_adj=oom_score_adj, command=command, cwd=cwd))
print(json.dumps(processes))
"""


class Unavailable(Exception):
    """A server, or something of a server, that cannot be had here; its text says why."""


@dataclass(frozen=True)
class Process:
    """A process on the server's host, as /proc shows it."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    state: str
    nice: int
    threads: int
    rss_bytes: int
    oom_score_adj: int
    command: str
    cwd: str


class Server(ABC):
    """A running PostgreSQL server that tests may use as its superuser."""

    name: str

    @abstractmethod
    def conninfo(self, **keywords: Any) -> str:
        """Give the superuser's connection string, with some of its keywords replaced."""

    @abstractmethod
    def close(self) -> None:
        """End the server and remove all that it left."""

    def connect(
        self, dbname: str = "postgres", *, autocommit: bool = True, **keywords: Any
    ) -> psycopg.Connection:
        """Open a session; keywords are libpq's (user, password, application_name ...)."""
        return psycopg.connect(self.conninfo(dbname=dbname, **keywords), autocommit=autocommit)

    def value(self, query: str, dbname: str = "postgres") -> Any:
        """Run a query as the superuser in a session of its own and give its one value."""
        with self.connect(dbname) as connection:
            row = connection.execute(query).fetchone()
        return row[0] if row else None

    @property
    def major(self) -> int:
        """Give the server's major version."""
        return int(self.value("SELECT current_setting('server_version_num')::int / 10000"))

    def started_at(self) -> datetime:
        """Say when the postmaster started, or last restarted its sessions after a crash of one of them.

        pg_postmaster_start_time() does not change when one backend's crash ends all the others; the oldest
        background process does.
        """
        started = self.value(
            "SELECT min(backend_start) FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
        )
        assert isinstance(started, datetime)
        return started

    def run(
        self,
        *command: str,
        user: str = "postgres",
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the server's host."""
        raise Unavailable(f"server {self.name}: nothing can be run on its host")

    def processes(self, pattern: str = "") -> list[Process]:
        """List the processes on the server's host whose command line matches a regular expression."""
        listed = json.loads(self.run("python3", "-c", _LIST_PROCESSES).stdout)
        return [Process(**process) for process in listed if re.search(pattern, process["command"])]

    def kill(self, pid: int, name: str = "TERM") -> None:
        """Send a signal to a process on the server's host."""
        self.run("sh", "-c", f"kill -{name} {pid}")

    def log(self) -> str:
        """Give what the server has logged."""
        raise Unavailable(f"server {self.name}: its log cannot be read")

    def crash(self) -> None:
        """Kill the postmaster and all that it had started; `start` brings the server back."""
        raise Unavailable(f"server {self.name}: it cannot be crashed")

    def stop(self) -> None:
        """Shut the server down, fast."""
        raise Unavailable(f"server {self.name}: it cannot be stopped")

    def start(self) -> None:
        """Start the stopped or crashed server again, on the same data."""
        raise Unavailable(f"server {self.name}: it cannot be started")

    def _is_dead(self) -> bool:
        """Say whether the server will never answer again by itself."""
        return False

    def wait(self) -> None:
        """Wait until the server answers, as after a crash of one of its sessions."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.connect(connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline or self._is_dead():
                    raise RuntimeError(
                        f"server {self.name} does not answer: {error}\n{self.log()}"
                    ) from error
            time.sleep(0.1)


class Container(Server):
    """A container of our image, through testcontainers.

    With `init` its PID 1 is an init process, without it the postmaster.
    """

    def __init__(self, name: str, *, init: bool = True, settings: dict[str, str] | None = None) -> None:
        self.name = name
        self.init = init
        self._password = secrets.token_urlsafe(12)
        # Ryuk, which removes what a dead test run left, is an image that may not be had: we clean up.
        # A mapped port answers on this machine, not on the bridge's address, unless the engine is elsewhere.
        os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
        if not os.environ.get("DOCKER_HOST", "unix:").startswith("tcp:"):
            os.environ.setdefault("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
        from testcontainers.core.container import DockerContainer

        options: dict[str, Any] = {"shm_size": "256m", "labels": {"pg_distill": "test"}}
        command = ["postgres"]
        for key, value in {**SETTINGS, **(settings or {})}.items():
            command += ["-c", f"{key}={value}"]
        self._container = (
            DockerContainer(build(name), **options)
            .with_env("POSTGRES_PASSWORD", self._password)
            .with_env("PG_DISTILL_INIT", "on" if init else "off")
            .with_exposed_ports(5432)
            .with_command(command)
        )
        self._container.start()
        try:
            self._find_port()
            self.wait()
        except BaseException:
            self.close()
            raise

    def _find_port(self) -> None:
        self._host = self._container.get_container_host_ip()
        self._port = self._container.get_exposed_port(5432)

    @property
    def container_id(self) -> str:
        """Give the engine's name of the container."""
        return str(self._container.get_wrapped_container().id)

    def conninfo(self, **keywords: Any) -> str:
        own: dict[str, Any] = {
            "host": self._host,
            "port": self._port,
            "user": "postgres",
            "password": self._password,
            "dbname": "postgres",
        }
        return make_conninfo(**{**own, **keywords})

    def run(
        self,
        *command: str,
        user: str = "postgres",
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        prefix = ["docker", "exec", "--interactive", "--user", user, self.container_id]
        return _run([*prefix, *command], stdin=stdin, check=check, timeout=timeout)

    def log(self) -> str:
        return "\n".join(part.decode(errors="replace") for part in self._container.get_logs())

    def _is_dead(self) -> bool:
        container = self._container.get_wrapped_container()
        container.reload()
        return bool(container.status != "running")

    def crash(self) -> None:
        self._container.get_wrapped_container().kill()
        self._container.get_wrapped_container().wait()

    def stop(self) -> None:
        self._container.get_wrapped_container().stop(timeout=30)

    def start(self) -> None:
        self._container.get_wrapped_container().start()
        self._find_port()
        self.wait()

    def close(self) -> None:
        self._container.stop()


class Local(Server):
    """A temporary cluster of this machine's own PostgreSQL, run by the user postgres if we are root.

    Nothing is installed. A server finds its files by their place beside its binary, so a copy of the binaries
    in a directory that mirrors the installation, with links to all else, has our extension; the installed
    server does not.

    Parameters
    ----------
    wheels
        Packages that its Python has besides; what they need it has already.
    """

    name = "local"

    def __init__(self, *, settings: dict[str, str] | None = None, wheels: Sequence[Path] = ()) -> None:
        bindir = local_bindir()
        self._prepare()
        try:
            self._bindir = self._mirror(bindir)
            module = self._copy_module()
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(module)
            if self._identity:
                for path in [self.directory, *self.directory.rglob("*")]:
                    os.chown(path, self._identity["user"], self._identity["group"], follow_symlinks=False)
            dependencies = self._dependencies()
            self._environment = {
                "PATH": f"{self._bindir}:/usr/local/bin:/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "PYTHONPATH": f"{module}:{dependencies}",
            }
            self._make_cluster(settings)
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        """Choose the server's user, and make its directory."""
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            self._identity: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        else:
            self._identity = {}
        self.directory = Path(tempfile.mkdtemp(prefix="pg_distill-")).resolve()
        self._postmaster: subprocess.Popen[bytes] | None = None

    def _make_cluster(self, settings: dict[str, str] | None) -> None:
        options = [
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
        ]
        self._as_server(str(self._bindir / "initdb"), "--pgdata", str(self.directory / "data"), *options)
        with (self.directory / "data" / "postgresql.conf").open("a") as file:
            own = {"listen_addresses": "", "unix_socket_directories": str(self.directory)}
            for key, value in {**SETTINGS, **own, **(settings or {})}.items():
                file.write(f"{key} = '{value}'\n")
        self.start()

    def _mirror(self, bindir: Path) -> Path:
        """Copy the binaries and link the rest; returns the copied binaries' directory."""
        share, lib = (
            Path(_run([str(bindir / "pg_config"), option]).stdout.strip())
            for option in ("--sharedir", "--pkglibdir")
        )

        def here(path: Path) -> Path:
            return self.directory / path.relative_to("/")

        shutil.copytree(bindir, here(bindir))
        here(lib).parent.mkdir(parents=True, exist_ok=True)
        here(lib).symlink_to(lib)
        (here(share) / "extension").mkdir(parents=True)
        for file in [*share.iterdir(), *(share / "extension").iterdir()]:
            if file.name != "extension" and not file.name.startswith("pg_distill"):
                here(file).symlink_to(file)
        _run(["make", "--silent", "--directory", str(ROOT)])
        # Last the frozen script, which is what a release installs.
        for file in [
            *(ROOT / "build").glob("pg_distill--*.sql"),
            *(ROOT / "extension").glob("pg_distill*.*"),
        ]:
            shutil.copy(file, here(share) / "extension")
        return here(bindir)

    def _copy_module(self) -> Path:
        """Copy the Python module, which the server's user may have no right to read where it is."""
        directory = self.directory / "module"
        shutil.copytree(
            ROOT / "python" / "pg_distill",
            directory / "pg_distill",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        return directory

    def _dependencies(self) -> Path:
        """Find what the module depends on: this Python's packages, linked nearer where it must be."""
        site = Path(sysconfig.get_path("purelib"))
        self._environment = dict(os.environ)
        if self._as_server("test", "-r", str(site / "numpy" / "__init__.py"), check=False).returncode == 0:
            return site
        linked = self.directory / "dependencies"
        hard = _run(["cp", "--recursive", "--link", str(site), str(linked)], check=False)
        if hard.returncode != 0:
            shutil.rmtree(linked, ignore_errors=True)
            _run(["cp", "--recursive", str(site), str(linked)])
        return linked

    def _as_server(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        identity = {**self._identity, "env": self._environment, "cwd": self.directory}
        return _run(list(command), check=check, timeout=START_TIMEOUT_S, **identity)

    def conninfo(self, **keywords: Any) -> str:
        own: dict[str, Any] = {"host": str(self.directory), "user": "postgres", "dbname": "postgres"}
        return make_conninfo(**{**own, **keywords})

    def run(
        self,
        *command: str,
        user: str = "postgres",
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        identity = self._identity if user == "postgres" else {}
        keywords = {**identity, "env": self._environment, "cwd": self.directory}
        return _run(list(command), stdin=stdin, check=check, timeout=timeout, **keywords)

    def processes(self, pattern: str = "") -> list[Process]:
        """List this cluster's processes: those that work in its directory, or load the module from there."""
        inside = str(self.directory)

        def is_ours(process: Process) -> bool:
            if process.cwd.startswith(inside):
                return True
            try:
                return inside.encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
            except OSError:
                return False

        return [process for process in super().processes(pattern) if is_ours(process)]

    def log(self) -> str:
        log = self.directory / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def start(self) -> None:
        # Our own child, not pg_ctl's orphan: where PID 1 does not reap, a postmaster that was killed stays a
        # zombie, and its lock file valid.
        with (self.directory / "log").open("ab") as log:
            self._postmaster = subprocess.Popen(
                [str(self._bindir / "postgres"), "-D", str(self.directory / "data")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self._environment,
                cwd=self.directory,
                **self._identity,
            )
        self.wait()

    def _is_dead(self) -> bool:
        return self._postmaster is None or self._postmaster.poll() is not None

    def _end(self, how: signal.Signals) -> None:
        if self._postmaster is not None:
            self._postmaster.send_signal(how)
            self._postmaster.wait(timeout=START_TIMEOUT_S)
            self._postmaster = None

    def stop(self) -> None:
        self._end(signal.SIGINT)

    def crash(self) -> None:
        # The postmaster first: it must have no time to end the others in order.
        self._end(signal.SIGKILL)
        deadline = time.monotonic() + START_TIMEOUT_S
        while living := self.processes():
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes of the crashed cluster go on: {living}")
            pids = " ".join(str(process.pid) for process in living)
            self.run("sh", "-c", f"kill -KILL {pids}", check=False)
            time.sleep(0.05)

    def close(self) -> None:
        # An immediate shutdown: nothing of it is kept.
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.directory)


class Installed(Local):
    """A temporary cluster of programs that are where they are, with what `make install` left for them.

    Parameters
    ----------
    bindir
        The server's programs.
    path
        A folder with the python3 whose site folder the server's Python has, as where several share one; none: the system's.
    """

    def __init__(
        self,
        bindir: Path,
        path: Path | None = None,
        *,
        settings: dict[str, str] | None = None,
        **environment: str,
    ) -> None:
        self._prepare()
        try:
            self._bindir = bindir
            if self._identity:
                os.chown(self.directory, self._identity["user"], self._identity["group"])
            first = f"{path}:" if path is not None else ""
            self._environment = {
                "PATH": f"{first}{bindir}:/usr/local/bin:/usr/bin:/bin",
                "LANG": "C.UTF-8",
                **environment,
            }
            self._make_cluster(settings)
        except BaseException:
            self.close()
            raise


class External(Server):
    """A server that somebody else runs, where pg_distill is installed; its user must be a superuser."""

    name = "dsn"

    def __init__(self, dsn: str) -> None:
        self._keywords = {"dbname": "postgres", **conninfo_to_dict(dsn)}
        self.wait()

    def conninfo(self, **keywords: Any) -> str:
        return make_conninfo(**{**self._keywords, **keywords})

    def log(self) -> str:
        return ""

    def close(self) -> None:
        return


def local_bindir() -> Path:
    """Find the machine's own server: that of PG_CONFIG, else the newest of Debian's, else the one on PATH.

    Raises
    ------
    Unavailable
        if there is none, or it has no PL/Python, or its PL/Python runs another Python than this one.
    """
    if os.environ.get("PG_CONFIG"):
        candidates = [Path(_run([os.environ["PG_CONFIG"], "--bindir"]).stdout.strip())]
    else:
        debian = Path("/usr/lib/postgresql").glob("*/bin")
        candidates = sorted(debian, key=lambda path: float(path.parent.name), reverse=True)
        on_path = shutil.which("postgres")
        candidates += [Path(on_path).resolve().parent] if on_path else []
    reason = "no PostgreSQL server is installed here"
    for bindir in candidates:
        if not (bindir / "postgres").exists() or not (bindir / "pg_config").exists():
            continue
        library = Path(_run([str(bindir / "pg_config"), "--pkglibdir"]).stdout.strip()) / "plpython3.so"
        if not library.exists():
            reason = f"{bindir}: PL/Python (plpython3u) is not installed"
            continue
        linked = re.search(rb"libpython(3\.\d+)", library.read_bytes())
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        if linked and linked[1].decode() != own:
            reason = f"{bindir}: its PL/Python runs Python {linked[1].decode()}, the tests run {own}"
            continue
        return bindir
    raise Unavailable(reason)


def _engine_fault() -> str | None:
    """Say why no Docker engine can be used, or None."""
    if shutil.which("docker") is None:
        return "no docker command"
    try:
        answer = _run(["docker", "info", "--format", "{{.ServerVersion}}"], check=False, timeout=15)
    except subprocess.TimeoutExpired:
        return "the Docker engine does not answer"
    return None if answer.returncode == 0 else f"no Docker engine: {answer.stderr.strip().splitlines()[-1]}"


def available() -> dict[str, str | None]:
    """Say for each server that could be started here why it cannot be, or None if it can."""
    engine = _engine_fault()
    found: dict[str, str | None] = dict.fromkeys(CONTAINERS, engine)
    try:
        local_bindir()
        found["local"] = None
    except Unavailable as error:
        found["local"] = str(error)
    return found


@functools.cache
def build(name: str) -> str:
    """Build the image of a container's server, once a run, and give its id: the tag may move meanwhile."""
    done = _run(["make", "--directory", str(ROOT), f"image-{CONTAINERS[name]}"], check=False, timeout=1800)
    if done.returncode != 0:
        raise RuntimeError(
            f"image pg_distill:{name} cannot be built:\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
        )
    return _run(["docker", "image", "inspect", "--format", "{{.Id}}", f"pg_distill:{name}"]).stdout.strip()


@contextlib.contextmanager
def start(
    name: str,
    *,
    init: bool = True,
    settings: dict[str, str] | None = None,
    wheels: Sequence[Path] = (),
) -> Iterator[Server]:
    """Start a server by name (pg15, pg17, pg18, local, or a connection string) and end it afterwards.

    ``wheels`` are for the local one.
    """
    server: Server
    if name in CONTAINERS:
        server = Container(name, init=init, settings=settings)
    elif name == "local":
        server = Local(settings=settings, wheels=wheels)
    else:
        server = External(name)
    try:
        yield server
    finally:
        server.close()


def create_database(
    server: Server, name: str, template: str = "template0", version: str | None = None
) -> None:
    """Create a UTF-8 database, with pg_distill, of ``version`` if one is given, unless its template has it."""
    drop_database(server, name)
    with server.connect() as connection:
        statement = "CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'"
        connection.execute(sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(template)))
    if template == "template0":
        with server.connect(name) as connection:
            connection.execute(
                "CREATE EXTENSION pg_distill" + (f" VERSION '{version}'" if version else "") + " CASCADE"
            )


def drop_database(server: Server, name: str) -> None:
    """Drop a database, whoever is connected to it."""
    with server.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _run(
    command: Sequence[str],
    *,
    stdin: str | None = None,
    check: bool = True,
    timeout: float = 120,
    **keywords: Any,
) -> subprocess.CompletedProcess[str]:
    # With no input of its own a command must not read the terminal's.
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, **source, **keywords
    )
    if check and done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done
