"""`make install` for servers, releases and users that share a machine: each server, and each database, finds its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pg_distill
import psycopg
import pytest
import servers

ROOT = Path(__file__).resolve().parents[2]
INSTALL_TIMEOUT_S = 600
SERVER_PYTHON = "/usr/bin/python3"
VERSION, NEXT = pg_distill.__version__, "99.0.0"
PYTHON = "python{}.{}".format(*sys.version_info[:2])

# Where the backend's Python found the module and one of what it depends on.
FOUND = """
CREATE EXTENSION IF NOT EXISTS plpython3u;
DO LANGUAGE plpython3u $$
import pg_distill.sqlapi, numpy
plpy.execute("SELECT set_config('test.found', '%s %s', false)" % (pg_distill.__file__, numpy.__file__))
$$;
SELECT current_setting('test.found')
"""

pytestmark = [pytest.mark.extra, pytest.mark.timeout(2 * INSTALL_TIMEOUT_S)]


@dataclass
class Machine:
    """Servers in folders of their own, and the one Python that they share."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "python" / "bin" / "python3"

    @property
    def site(self) -> Path:
        return self.root / "python" / "lib" / PYTHON / "site-packages"

    def bindir(self, server: str) -> Path:
        return self.root / server / str(servers.local_bindir()).lstrip("/")

    def home(self, server: str) -> Path:
        """Return the folder of the module's releases."""
        asked = subprocess.run(
            [self.bindir(server) / "pg_config", "--pkglibdir"], capture_output=True, text=True, check=True
        )
        return Path(asked.stdout.strip()) / "pg_distill"

    def add_server(self, name: str) -> None:
        """Copy the programs of this machine's server, and link the rest, so that `pg_config` names these folders."""
        bindir = servers.local_bindir()
        shutil.copytree(bindir, self.bindir(name))
        for what in ("--pkglibdir", "--sharedir"):
            asked = subprocess.run([bindir / "pg_config", what], capture_output=True, text=True, check=True)
            folder = Path(asked.stdout.strip())
            mirrored = self.root / name / str(folder).lstrip("/")
            for there, here in ((folder, mirrored), (folder / "extension", mirrored / "extension")):
                if there.is_dir():
                    here.mkdir(parents=True)
                    for file in there.iterdir():
                        if file.name != "extension" and not file.name.startswith("pg_distill"):
                            (here / file.name).symlink_to(file)

    def make(
        self,
        target: str,
        server: str,
        *,
        source: Path = ROOT,
        umask: int = 0o022,
        check: bool = True,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        given = {
            "PG_CONFIG": str(self.bindir(server) / "pg_config"),
            "SERVER_PYTHON": str(self.python),
            "CONSTRAINTS": "python/constraints.txt",
            "EXTRAS": "vectors",
        } | variables
        done = subprocess.run(
            ["make", "--directory", str(source), target, *(f"{key}={value}" for key, value in given.items())],
            capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S, umask=umask,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def install(self, server: str, release: Path | None = None, **options: Any) -> None:
        """Run `make install`, for which one release of the dependencies is downloaded and linked to the others."""
        if release is not None:
            folder = self.home(server) / options.get("version", VERSION) / PYTHON
            folder.parent.mkdir(parents=True)
            shutil.copytree(
                release, folder, copy_function=os.link, ignore=shutil.ignore_patterns("pg_distill")
            )
        self.make("install", server, **{k: v for k, v in options.items() if k != "version"})

    def start(self, server: str, **options: Any) -> servers.Installed:
        return servers.Installed(self.bindir(server), self.python.parent, **options)

    def files(self) -> set[str]:
        return {str(path) for path in self.root.rglob("*") if not path.is_dir()}


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Give a machine with the servers "first" and "second", where the first has pg_distill, installed under umask 077."""
    try:
        servers.local_bindir()
    except servers.Unavailable as error:
        pytest.skip(str(error))
    # Not pytest's own folder: each run of pytest takes the others' right to enter it away, and the servers' user is another one.
    root = Path(tempfile.mkdtemp(prefix="pg_distill-machine-")).resolve()
    root.chmod(0o755)
    made = Machine(root)
    try:
        subprocess.run([SERVER_PYTHON, "-m", "venv", "--without-pip", str(root / "python")], check=True)
        for name in ("first", "second"):
            made.add_server(name)
        before = made.files()
        made.install("first", umask=0o077)
        assert made.files() > before
        yield made
    finally:
        shutil.rmtree(root)


@pytest.fixture
def start(machine: Machine) -> Iterator[Callable[..., psycopg.Connection]]:
    """Start a server of the machine, and give what opens sessions in its database: start("first")()."""
    running: dict[str, servers.Installed] = {}
    sessions: list[psycopg.Connection] = []

    def start_server(name: str) -> Callable[..., psycopg.Connection]:
        running[name] = machine.start(name)

        def session(dbname: str = "postgres") -> psycopg.Connection:
            sessions.append(running[name].connect(dbname))
            return sessions[-1]

        return session

    yield start_server
    for connection in sessions:
        connection.close()
    for server in running.values():
        server.close()


def found(session: psycopg.Connection) -> list[Path]:
    """Say where a session finds the module and numpy."""
    cursor = session.execute(FOUND)
    while cursor.nextset():
        pass
    row = cursor.fetchone()
    assert row is not None
    return [Path(word) for word in row[0].split()]


def release_of(machine: Machine, server: str, version: str = VERSION) -> Path:
    return machine.home(server) / version / PYTHON


def test_installed_under_umask_077_the_servers_user_can_use_it(
    machine: Machine, start: Callable[..., Callable[..., psycopg.Connection]]
) -> None:
    """Every file of the install, by the server itself: it creates the extension, and a training process starts."""
    session = start("first")()
    session.execute("CREATE EXTENSION pg_distill CASCADE")
    assert found(session)[0].is_relative_to(release_of(machine, "first"))
    session.execute("CREATE TABLE rows AS SELECT x, x > 3 AS y FROM generate_series(1, 100) x")
    session.execute(
        "SELECT distill.register_sql_model('m', 'CASE WHEN x > 3 THEN 0.9 ELSE 0.1 END', '{x}', 'rows', 'y', task => 'binary')"
    )
    session.execute(
        "SELECT distill_model('m', families => '{linear}', time_budget_s => 1, min_accuracy => 0)"
    )
    assert session.execute("SELECT count(*) FROM distill.candidates").fetchone() != (0,)
    for folder in (machine.home("first"), machine.site):
        for path in folder.rglob("*"):
            assert path.stat().st_mode & 0o044 == 0o044, path


def test_what_the_servers_user_cannot_read_is_refused(machine: Machine, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root installs for another user")
    tmp_path.chmod(0o700)
    hidden = Machine(tmp_path)
    hidden.add_server("first")
    folder = release_of(hidden, "first")
    folder.parent.mkdir(parents=True)
    shutil.copytree(release_of(machine, "first"), folder, copy_function=os.link)
    python = {"SERVER_PYTHON": str(machine.python)}
    done = hidden.make("install", "first", check=False, **python)
    assert done.returncode != 0
    assert f"user postgres cannot read {tmp_path}" in done.stderr
    shutil.copytree(machine.root / "python", hidden.root / "python", symlinks=True)
    done = hidden.make("install", "first", check=False)
    assert done.returncode != 0
    assert f"user postgres cannot run {hidden.python}" in done.stderr
    # Nobody to ask for is said, and no fault.
    done = hidden.make("install", "first", SERVER_USER="nobody-of-that-name", **python)
    assert "nobody-of-that-name" in done.stdout


def test_servers_that_share_a_python_find_their_own(
    machine: Machine, start: Callable[..., Callable[..., psycopg.Connection]]
) -> None:
    first, second = start("first"), start("second")
    # Installed for the other server of this Python only, it is not there, rather than another server's.
    with pytest.raises(psycopg.Error, match="No module named 'pg_distill'"):
        found(second())
    before = machine.files()
    machine.install("second", release_of(machine, "first"))
    for server, session in (("first", first), ("second", second)):
        module, numpy = found(session())
        assert module.is_relative_to(release_of(machine, server))
        assert numpy.is_relative_to(release_of(machine, server))
    # No process that is not a server's finds one.
    alone = subprocess.run(
        [machine.python, "-I", "-c", "import pg_distill"], capture_output=True, text=True, check=False
    )
    assert "ModuleNotFoundError" in alone.stderr
    machine.make("uninstall", "second")
    assert machine.files() == before
    with pytest.raises(psycopg.Error, match="No module named 'pg_distill'"):
        found(second())
    assert found(first())[0].is_relative_to(release_of(machine, "first"))


def test_another_servers_install_of_0_1_0_is_passed_by(
    machine: Machine, start: Callable[..., Callable[..., psycopg.Connection]]
) -> None:
    """Its .pth file names its environment for every server of the Python."""
    theirs = machine.root / "theirs"
    (theirs / "pg_distill").mkdir(parents=True)
    (theirs / "pg_distill" / "__init__.py").write_text("raise ImportError('of another server')\n")
    pth = machine.site / "pg_distill-17.pth"
    pth.write_text(f"{theirs}\n")
    try:
        assert found(start("first")())[0].is_relative_to(release_of(machine, "first"))
        with pytest.raises(psycopg.Error, match="of another server"):
            found(start("second")())
    finally:
        pth.unlink()


@pytest.fixture
def next_source(tmp_path: Path) -> Path:
    """Give a source tree of a later release, with an upgrade script."""
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(ROOT / "Makefile", source)
    for folder in ("extension", "sql", "python"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    control = source / "extension" / "pg_distill.control"
    control.write_text(control.read_text().replace(f"'{VERSION}'", f"'{NEXT}'"))
    module = source / "python" / "pg_distill" / "__init__.py"
    module.write_text(module.read_text().replace(f'"{VERSION}"', f'"{NEXT}"'))
    (source / "extension" / f"pg_distill--{VERSION}--{NEXT}.sql").write_text(
        "SELECT distill._check_module();\n"
    )
    return source


def test_a_release_beside_another_changes_nothing_until_the_extension_is_updated(
    machine: Machine, next_source: Path, start: Callable[..., Callable[..., psycopg.Connection]]
) -> None:
    session = start("first")
    one = session()
    one.execute("DROP DATABASE IF EXISTS old; ")
    for name in ("old", "new"):
        one.execute(f"CREATE DATABASE {name}")
        session(name).execute("CREATE EXTENSION pg_distill CASCADE")
    before = machine.files()
    machine.install("first", release_of(machine, "first"), source=next_source, version=NEXT)
    try:
        # Nothing has changed yet, in a session that was there and in a new one.
        for name in ("old", "new"):
            assert found(session(name))[0].is_relative_to(release_of(machine, "first"))
            session(name).execute("SELECT distill.show_settings()")
        session("new").execute("ALTER EXTENSION pg_distill UPDATE")
        for name, version in (("old", VERSION), ("new", NEXT)):
            module, numpy = found(session(name))
            assert module.is_relative_to(release_of(machine, "first", version))
            assert numpy.is_relative_to(release_of(machine, "first", version))
            session(name).execute("SELECT distill.show_settings()")
        # In a parallel operation before PostgreSQL 17 PL/Python can ask nothing: it must not try.
        parallel = session("new")
        for name in ("force_parallel_mode", "debug_parallel_query"):
            with_it = parallel.execute("SELECT count(*) FROM pg_settings WHERE name = %s", (name,)).fetchone()
            if with_it == (1,):
                parallel.execute(f"SET {name} = on")
        query = "SELECT distill.dominates_pareto(x, 0.5, '{{1,0.4}}') FROM generate_series(1, 2) x"
        assert "Gather" in str(parallel.execute(f"EXPLAIN {query}").fetchall())
        assert parallel.execute(query).fetchall()
    finally:
        machine.make("uninstall", "first", source=next_source)
    left = {f for f in machine.files() if "/extension/" not in f}
    assert left == {f for f in before if "/extension/" not in f}
    machine.make("install", "first")  # the scripts and documents, which both releases have
    assert machine.files() == before
    assert found(session("old"))[0].is_relative_to(release_of(machine, "first"))
    # A database that was updated is told which release it misses.
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        session("new").execute("SELECT distill.show_settings()")


def test_databases_of_0_1_0_keep_its_module(
    machine: Machine, start: Callable[..., Callable[..., psycopg.Connection]]
) -> None:
    """As 0.1.0 was installed: one environment, named by a .pth file of the major version, which the next install takes away."""
    session = start("first")
    old = machine.home("first") / "venv" / "lib" / PYTHON / "site-packages"
    shutil.copytree(release_of(machine, "first"), old, copy_function=os.link)
    module = old / "pg_distill" / "__init__.py"
    text = module.read_text().replace(f'"{VERSION}"', '"0.1.0"')
    module.unlink()
    module.write_text(text)
    (old / "pg_distill-0.1.0.dist-info").mkdir()
    major = re.match(r"\d+", session().execute("SHOW server_version").fetchone()[0])  # type: ignore[index]
    assert major is not None
    pth = machine.site / f"pg_distill-{major[0]}.pth"
    pth.write_text(f"{old}\n")
    try:
        machine.make("install", "first")
        assert not pth.exists()
        one = session()
        one.execute("CREATE DATABASE ancient")
        ancient = session("ancient")
        ancient.execute("CREATE EXTENSION pg_distill VERSION '0.1.0' CASCADE")
        assert found(ancient)[0].is_relative_to(old)
        ancient = session("ancient")
        ancient.execute("ALTER EXTENSION pg_distill UPDATE")
        assert found(ancient)[0].is_relative_to(release_of(machine, "first"))
        ancient.execute("SELECT distill.show_settings()")
    finally:
        shutil.rmtree(machine.home("first") / "venv")


def test_uninstall_takes_away_only_its_own(machine: Machine) -> None:
    machine.make("uninstall", "second")  # where nothing was installed
    home = machine.home("second")
    share = next(path for path in (machine.root / "second").rglob("extension") if "share" in str(path))
    share.joinpath("pg_distill--88.sql").write_text("of another release\n")
    machine.site.joinpath("pg_distill_friends.pth").write_text("\n")
    before = machine.files()
    machine.install("second", release_of(machine, "first"))
    assert machine.files() > before
    machine.make("uninstall", "second")
    assert machine.files() == before
    assert not home.exists()
    machine.site.joinpath("pg_distill_friends.pth").unlink()
    share.joinpath("pg_distill--88.sql").unlink()


def test_a_staged_install_names_no_folder_of_the_stage_and_leaves_nothing(
    machine: Machine, tmp_path: Path
) -> None:
    """As a package is built: DESTDIR in front of every path, and in no file."""
    stage = tmp_path / "stage"
    release = Path(f"{stage}{release_of(machine, 'second')}")
    release.parent.mkdir(parents=True)
    shutil.copytree(
        release_of(machine, "first"),
        release,
        copy_function=os.link,
        ignore=shutil.ignore_patterns("pg_distill"),
    )
    machine.make("install", "second", umask=0o077, DESTDIR=str(stage))
    staged = [path for path in stage.rglob("*") if path.is_file()]
    assert {"pg_distill.control", f"pg_distill--{VERSION}.sql", "grants.sql"} <= {
        path.name for path in staged
    }
    (pth,) = stage.rglob("*.pth")
    assert pth == Path(f"{stage}{machine.site}") / pth.name
    assert pth.read_text() == f"{machine.home('second')}/loader\n"
    for path in staged:
        assert str(stage).encode() not in path.read_bytes(), path
    code = "import pg_distill, numpy, onnxruntime, lightgbm; print(pg_distill.__file__)"
    shown = subprocess.run(
        [machine.python, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(release)},
    ).stdout.strip()
    assert Path(shown).is_relative_to(release)
    assert list(release.glob("wordllama/**/*.safetensors"))  # EXTRAS=vectors
    machine.make("uninstall", "second", DESTDIR=str(stage))
    assert [path for path in stage.rglob("*") if not path.is_dir()] == []


# In a container of the image, whose own install has what the module depends on: nothing is downloaded.
INSTALL_INTO_A_PREFIX = """
set -eu
cd /tmp/source
release=$(ls -d "$(pg_config --pkglibdir)"/pg_distill/*/python3.*)
mkdir -p "{home}/{version}"
cp -r "$release" "{home}/{version}/"
umask 077
python3 python/install.py install --prefix={prefix} --constraints=python/constraints.txt build/*.sql
"""
REMOVE_THE_IMAGES_OWN = """
set -eu
rm -r "$(pg_config --pkglibdir)/pg_distill" "$(pg_config --sharedir)"/extension/pg_distill*
rm "$(python3 -c 'import site; print(site.getsitepackages()[0])')"/_pg_distill*.pth
"""
CLUSTER_OF_THE_PREFIX = """
set -eu
initdb --pgdata=/tmp/data --username=postgres --encoding=UTF8 --locale=C.UTF-8 --no-sync > /tmp/initdb.log
export PYTHONPATH={home}/loader
pg_ctl --pgdata=/tmp/data --wait --log=/tmp/log --options="-k /tmp -p 5439 -c listen_addresses= \
    -c extension_control_path='{share}:\\$system' -c dynamic_library_path='{lib}:\\$libdir'" start > /tmp/started
psql -X -A -t -q -v ON_ERROR_STOP=1 -h /tmp -p 5439 -U postgres <<'SQL'
CREATE EXTENSION pg_distill CASCADE;
CREATE TABLE rows AS SELECT x, x > 3 AS y FROM generate_series(1, 100) x;
SELECT distill.register_sql_model('m', 'CASE WHEN x > 3 THEN 0.9 ELSE 0.1 END', '{{x}}', 'rows', 'y', task => 'binary') IS NOT NULL;
SELECT distill_model('m', families => '{{linear}}', time_budget_s => 1, min_accuracy => 0) IS NULL;
SELECT count(*) > 0 FROM distill.candidates;
DO LANGUAGE plpython3u 'import pg_distill, numpy; plpy.notice(pg_distill.__file__, numpy.__file__)';
SQL
"""


@pytest.mark.one_server("pg18")
def test_a_prefix_needs_no_root_and_no_site_folder(
    server: servers.Server, start_server: Callable[..., servers.Server], tmp_path: Path
) -> None:
    """By the settings that the install prints, on a server with no other pg_distill."""
    if not isinstance(server, servers.Container) or server.major < 18:
        pytest.skip("extension_control_path is of PostgreSQL 18")
    started = start_server()
    assert isinstance(started, servers.Container)
    subprocess.run(["make", "--silent", "--directory", str(ROOT)], check=True)
    source = ["extension", "python/install.py", "python/loader.py", "python/pyproject.toml", "python/constraints.txt",
              "python/pg_distill", *(str(f.relative_to(ROOT)) for f in (ROOT / "build").glob("pg_distill--*.sql"))]  # fmt: skip
    packed = subprocess.run(
        ["tar", "--create", "--owner=postgres", "--directory", str(ROOT), *source],
        stdout=subprocess.PIPE,
        check=True,
    )
    subprocess.run(
        ["docker", "exec", "--interactive", started.container_id, "sh", "-c", "mkdir /tmp/source && tar -x -C /tmp/source"],
        input=packed.stdout, check=True,
    )  # fmt: skip
    prefix = "/tmp/own"
    home, share, lib = (
        f"{prefix}/{part}" for part in ("lib/postgresql/pg_distill", "share/postgresql", "lib/postgresql")
    )
    where = {"prefix": prefix, "home": home, "share": share, "lib": lib, "version": VERSION}
    said = started.run("sh", "-c", INSTALL_INTO_A_PREFIX.format(**where), timeout=120).stdout
    assert f"extension_control_path = '{share}:$system'" in said
    assert f"PYTHONPATH={home}/loader" in said
    started.run("sh", "-c", REMOVE_THE_IMAGES_OWN, user="root")
    done = started.run("sh", "-c", CLUSTER_OF_THE_PREFIX.format(**where), timeout=120)
    assert done.stdout.splitlines()[-1] == "t"
    assert done.stderr.count(f"{home}/{VERSION}/python3.") == 2
    # It takes away its own.
    started.run(
        "sh", "-c", f"cd /tmp/source && python3 python/install.py uninstall --prefix={prefix} build/*.sql"
    )
    assert started.run("sh", "-c", f"find {prefix} -type f").stdout == ""


def test_readme_names_the_packages_that_the_image_is_made_with() -> None:
    """Which install and run pg_distill, without a compiler."""
    (listed,) = re.findall(r"^apt-get install (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert not re.search(r"server-dev|clang|gcc|llvm", listed + dockerfile)
    for package in listed.split():
        assert re.search(rf'[ "]{re.sub("-[0-9]+$", "-[$]major", package)}[ "\n]', dockerfile), package
    for needed in ("make", "python3-venv", "libgomp1"):
        assert needed in listed.split()


def fake_server(folder: Path, *, version: str = "15.9", linked: str | None = None) -> Path:
    """Make a pg_config, and a PL/Python that was linked to a Python, or none; return the former."""
    (folder / "lib").mkdir(parents=True)
    if linked is not None:
        (folder / "lib" / "plpython3.so").write_text(f"\0libpython{linked}.so.1.0\0")
    pg_config = folder / "pg_config"
    answers = {"--version": f"PostgreSQL {version}", "--pkglibdir": str(folder / "lib")}
    script = "".join(f'[ "$1" = {key} ] && echo "{value}" && exit\n' for key, value in answers.items())
    pg_config.write_text(f"#!/bin/sh\n{script}echo {folder}/$1\n")
    pg_config.chmod(0o755)
    return pg_config


@pytest.mark.parametrize(
    ("fault", "faked", "variables"),
    [
        ("has no PL/Python", {}, {}),
        ("runs Python 3.99", {"linked": "3.99"}, {}),
        ("older than PostgreSQL 15", {"version": "14.2"}, {}),
        ("no extra", {"linked": PYTHON.removeprefix("python")}, {"EXTRAS": "vectors,client"}),
        ("not from a prefix", {"linked": PYTHON.removeprefix("python")}, {"prefix": "/nowhere"}),
        ("cannot be asked", {}, {"PG_CONFIG": "/nowhere/pg_config"}),
    ],
)
def test_an_install_that_could_not_work_is_refused_before_it_begins(
    tmp_path: Path, fault: str, faked: dict[str, str], variables: dict[str, str]
) -> None:
    pg_config = fake_server(tmp_path / "server", **faked)
    given = {"PG_CONFIG": str(pg_config), "SERVER_PYTHON": sys.executable, **variables}
    done = subprocess.run(
        ["make", "--directory", str(ROOT), "install", *(f"{key}={value}" for key, value in given.items())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert fault in done.stderr
    assert {path.name for path in (tmp_path / "server").rglob("*")} <= {"lib", "plpython3.so", "pg_config"}
