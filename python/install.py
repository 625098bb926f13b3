"""Installs the extension and its Python module for one server, and takes both away again: what `make install` runs.

::

    SHAREDIR/extension/      the control file and the scripts
    DOCDIR/extension/        the documents
    PKGLIBDIR/pg_distill/    the releases of the module, and the loader that chooses one (see loader.py)
    a .pth file              in the site folder of the server's Python; it names the loader

``pg_config`` says where these are. Standard library only; run by the Python that the server's PL/Python was built with.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib.util
import json
import os
import pwd
import re
import shutil
import site
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
CONTROL = ROOT / "extension" / "pg_distill.control"
PYTHON = "python{}.{}".format(*sys.version_info[:2])
MIN_SERVER, MIN_PYTHON = 15, (3, 11)
FIRST_WITH_PREFIX = 18  # whose setting extension_control_path names other folders than its own
EXTRAS = ("vectors", "dask")  # what a server may have beside what it has to
ALONE = ("text", "vectors")  # extras that are installed without what they depend on
STAMP = "dependencies.json"  # in a release: what its dependencies were asked for
IMPORTS = "import lightgbm, onnx, pg_distill.sqlapi, pg_distill.child.workshop"


def refuse(message: str, advice: str) -> NoReturn:
    """End with what is wrong and what to do."""
    sys.exit(f"pg_distill: {message}\n  {advice}")


@dataclass(frozen=True)
class Place:
    """Where the files of one server are to be once it runs; staging puts ``destdir`` in front of each."""

    major: int
    bindir: Path
    extension: Path
    documents: Path
    home: Path
    pth: Path | None
    """None for a prefix: PYTHONPATH names the loader."""
    destdir: str

    def staged(self, path: Path) -> Path:
        """Return where a file is written now."""
        return Path(f"{self.destdir}{path}") if self.destdir else path

    @property
    def loader(self) -> Path:
        """The folder that the server's Python has on its path."""
        return self.home / "loader"


def find_place(pg_config: str, destdir: str, prefix: str) -> Place:
    """Ask pg_config, and refuse a server that could not use what is installed."""

    def ask(what: str) -> str:
        try:
            return subprocess.run(
                [pg_config, what], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            refuse(
                f"{pg_config} cannot be asked where the server is: {error}",
                "Name the server's: make install PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config",
            )

    named = ask("--version")
    found = re.search(r"\d+", named)
    major = int(found[0]) if found else 0
    if major < MIN_SERVER:
        refuse(f"{named} is older than PostgreSQL {MIN_SERVER}", "Set PG_CONFIG to a newer server's.")
    bindir = Path(os.path.realpath(ask("--bindir")))
    pkglibdir = Path(ask("--pkglibdir"))
    if not destdir:
        check_python(major, pkglibdir)
    if not prefix:
        home = pkglibdir / "pg_distill"
        # Each server's own, and before "pg_distill-15.pth", which 0.1.0 has for another server of the same Python.
        name = f"_pg_distill{str(pkglibdir).replace('/', '-')}.pth"
        return Place(
            major, bindir, Path(ask("--sharedir")) / "extension", Path(ask("--docdir")) / "extension", home,
            Path(site.getsitepackages()[0]) / name, destdir,
        )  # fmt: skip
    if major < FIRST_WITH_PREFIX:
        refuse(
            f"PostgreSQL {major} reads extensions from {ask('--sharedir')} only, not from a prefix",
            "Leave prefix out (DESTDIR stages files elsewhere), or use PostgreSQL 18 or later.",
        )
    # As PGXS names them.
    own = "" if "postgres" in prefix or "pgsql" in prefix else "postgresql"
    share, lib, documents = (Path(prefix).absolute() / part / own for part in ("share", "lib", "share/doc"))
    return Place(
        major, bindir, share / "extension", documents / "extension", lib / "pg_distill", None, destdir
    )


def check_python(major: int, pkglibdir: Path) -> None:
    """Refuse a server without PL/Python, and a Python that is not the one which PL/Python runs."""
    library = pkglibdir / "plpython3.so"
    if not library.exists():
        refuse(
            f"the server of {pkglibdir} has no PL/Python",
            f"Install it (Debian: apt-get install postgresql-plpython3-{major}).",
        )
    linked = re.search(rb"libpython(3\.\d+)", library.read_bytes())
    if linked and f"python{linked[1].decode()}" != PYTHON:
        refuse(
            f"PL/Python of {pkglibdir} runs Python {linked[1].decode()}, {sys.executable} is {PYTHON}",
            f"Set SERVER_PYTHON to a Python {linked[1].decode()}: make install SERVER_PYTHON=/usr/bin/python{linked[1].decode()}",
        )


def version() -> str:
    """Return the version that is installed, as the control file says."""
    found = re.search(r"^default_version = '(.*)'$", CONTROL.read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


# -- the Python module ----------------------------------------------------------------------------------------------


def install_dependencies(place: Place, constraints: str, extras: Sequence[str] = ()) -> Path:
    """Fill the release's folder with what the module and ``extras`` depend on, unless it has just that; return the folder."""
    release = place.staged(place.home / version() / PYTHON)
    project = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    for extra in extras:
        if extra not in EXTRAS:
            refuse(f'a server has no extra "{extra}"', f"Name some of {', '.join(EXTRAS)} in EXTRAS.")
    # Without what these depend on: the tokenizers' library downloads from a hub of models, which a server does not, and of the
    # word vectors' package only the files are read.
    alone = sorted({r for extra in ("text", *extras) if extra in ALONE for r in optional[extra]})
    required = [*project["dependencies"], *(r for e in extras if e not in ALONE for r in optional[e])]
    wanted = {
        "requirements": required,
        "alone": alone,
        "constraints": Path(constraints).read_text() if constraints else None,
    }
    stamp = release / STAMP
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return release
    # pip comes from a virtual environment that is not installed: nothing of it, and no path of this machine, is left there.
    pip = ROOT / "build" / f"pip-{PYTHON}"
    if not (pip / "bin" / "python").exists():
        if importlib.util.find_spec("ensurepip") is None:
            refuse(
                f"{sys.executable} has no venv module", "Install it (Debian: apt-get install python3-venv)."
            )
        subprocess.run([sys.executable, "-m", "venv", str(pip)], check=True)
    with replacing(release) as fresh:
        options = ["-qq", "--no-compile", "--target", str(fresh)]
        options += ["--constraint", constraints] if constraints else []
        for what in (required, ["--no-deps", *alone]):
            command = [str(pip / "bin" / "python"), "-m", "pip", "install", *options, *what]
            if subprocess.run(command, check=False).returncode != 0:
                refuse("pip could not install what the module depends on", "See what pip says above.")
        shutil.rmtree(fresh / "bin", ignore_errors=True)
        compile_folder(fresh, place.home / version() / PYTHON)
        (fresh / STAMP).write_text(json.dumps(wanted))
        if (release / "pg_distill").exists():  # a server that runs goes on with it until the new one is there
            shutil.copytree(release / "pg_distill", fresh / "pg_distill")
    return release


def compile_folder(folder: Path, runs_in: Path) -> bool:
    """Compile its modules: the server's user cannot write there, and each session would do it again."""
    return bool(
        compileall.compile_dir(folder, quiet=2, workers=0, stripdir=str(folder), prependdir=str(runs_in))
    )


def install_module(place: Place, constraints: str, extras: Sequence[str]) -> None:
    """Install this release beside others, and the loader; a server's running sessions keep what they have imported."""
    release = install_dependencies(place, constraints, extras)
    with replacing(release / "pg_distill") as fresh:
        copy_folder(ROOT / "python" / "pg_distill", fresh)
        if not compile_folder(fresh, place.home / version() / PYTHON / "pg_distill"):
            refuse(f"{PYTHON} cannot compile the module", "Install from a source that has not been edited.")
    with replacing(place.staged(place.loader)) as fresh:
        (fresh / "pg_distill").mkdir(parents=True)
        copy(ROOT / "python" / "loader.py", fresh / "pg_distill" / "__init__.py")
        if place.pth is not None:
            (fresh / "pg_distill" / "bindir").write_text(f"{place.bindir}\n")
        compile_folder(fresh, place.loader)
    if place.pth is not None:
        pth = place.staged(place.pth)
        pth.parent.mkdir(parents=True, exist_ok=True)
        write(pth, f"{place.loader}\n")
        # What 0.1.0 left: it would go before the loader, for every database.
        old = pth.with_name(f"pg_distill-{place.major}.pth")
        if old.exists() and old.read_text().startswith(f"{place.home}/venv/"):
            old.unlink()


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which then takes the other's place: nobody finds half of it, nor of an install that failed."""
    fresh, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)


def write(path: Path, text: str) -> None:
    """Write a whole file or none."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    fresh.rename(path)


def copy(source: Path, target: Path) -> None:
    """Copy a file, for everybody to read."""
    fresh = target.with_name(f"{target.name}.new")
    shutil.copyfile(source, fresh)
    fresh.chmod(0o644)
    fresh.rename(target)


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files of a package, without what Python compiled."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.parent.name != "__pycache__":
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            copy(path, target / path.relative_to(source))


# -- the extension's files ------------------------------------------------------------------------------------------


def documents() -> list[Path]:
    """Return the documents, grants.sql and teams.sql among them."""
    return sorted((ROOT / "extension" / "doc").iterdir())


def install_extension(place: Place, scripts: Sequence[Path]) -> None:
    """Copy the control file last: from then on CREATE EXTENSION finds this version."""
    for folder, files in ((place.documents, documents()), (place.extension, [*scripts, CONTROL])):
        place.staged(folder).mkdir(parents=True, exist_ok=True)
        for file in files:
            copy(file, place.staged(folder) / file.name)


def installed_files(place: Place, scripts: Sequence[Path]) -> list[Path]:
    """Return every file and folder of this release that an install leaves, but those inside its folders."""
    return [
        *(place.extension / file.name for file in (*scripts, CONTROL)),
        *(place.documents / file.name for file in documents()),
        place.home / version() / PYTHON,
        place.loader,
        *([place.pth] if place.pth is not None else []),
    ]


def uninstall(place: Place, scripts: Sequence[Path]) -> None:
    """Take away what an install of this version leaves, and nothing of another version's or of anybody else's."""
    home = place.staged(place.home)
    shutil.rmtree(home / version(), ignore_errors=True)
    control = place.staged(place.extension / CONTROL.name)
    # Else another version was installed since, whose files they are.
    if control.exists() and control.read_text() == CONTROL.read_text():
        for path in (*scripts, CONTROL):
            (place.staged(place.extension) / path.name).unlink(missing_ok=True)
        for path in documents():
            (place.staged(place.documents) / path.name).unlink(missing_ok=True)
    if not home.exists() or {path.name for path in home.iterdir()} <= {"loader"}:
        shutil.rmtree(home, ignore_errors=True)
        if place.pth is not None:
            place.staged(place.pth).unlink(missing_ok=True)


# -- whether the server can use it ----------------------------------------------------------------------------------


def check_readable(place: Place, scripts: Sequence[Path], user: str) -> None:
    """As the server's user where this is root, else as who installs: read every file, and import the module."""
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        try:
            found = pwd.getpwnam(user)
        except KeyError:
            print(
                f"pg_distill: no user {user} here: whether the server's user can read the files was not tried"
            )
            return
        identity = {
            "user": found.pw_uid,
            "group": found.pw_gid,
            "extra_groups": os.getgrouplist(user, found.pw_gid),
        }
    else:
        user = pwd.getpwuid(os.geteuid()).pw_name

    def run(code: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-c", code]
        try:
            return subprocess.run(
                command, input=text, capture_output=True, text=True, check=False, cwd="/", **identity
            )
        except PermissionError:
            refuse(
                f"user {user} cannot run {sys.executable}, which training processes are",
                "Give that user the right to, and to enter its folders; SERVER_USER names another user.",
            )

    unreadable = run(
        UNREADABLE, json.dumps([str(path) for path in installed_files(place, scripts)])
    ).stdout.strip()
    if unreadable:
        refuse(
            f"user {user} cannot read {unreadable}",
            "Give that user the right to, and to enter its folders; SERVER_USER names another user.",
        )
    release = place.home / version() / PYTHON
    done = run(f"import sys; sys.path.insert(0, {str(release)!r}); {IMPORTS}")
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        advice = (
            "Install the OpenMP runtime (Debian: apt-get install libgomp1)."
            if "libgomp" in last[0]
            else "Put that right, and run make install again."
        )
        refuse(f"user {user} cannot import the module: {last[0]}", advice)


UNREADABLE = """
import json, os, sys
for top in json.load(sys.stdin):
    found = [(top, os.path.isdir(top))]
    for folder, folders, files in os.walk(top):
        found += [(os.path.join(folder, name), True) for name in folders]
        found += [(os.path.join(folder, name), False) for name in files]
    for path, is_folder in found:
        if not os.access(path, os.R_OK | os.X_OK if is_folder else os.R_OK):
            print(path)
            sys.exit()
"""


def main() -> None:
    """Do what `make` asks for."""
    parser = argparse.ArgumentParser(description="Install or uninstall pg_distill for one server.")
    parser.add_argument("action", choices=["install", "dependencies", "uninstall"])
    parser.add_argument("--pg-config", default="pg_config")
    parser.add_argument("--destdir", default="")
    parser.add_argument("--prefix", default="")
    parser.add_argument("--constraints", default="")
    parser.add_argument("--extras", default="", help="with commas")
    parser.add_argument("--server-user", default="postgres")
    parser.add_argument("scripts", nargs="*", type=Path, help="the extension's scripts")
    arguments = parser.parse_args()
    if sys.version_info < MIN_PYTHON:
        refuse(
            f"{sys.executable} is {PYTHON}; 3.11 or later is needed", "Set SERVER_PYTHON to a newer Python."
        )
    os.umask(0o022)  # whoever installs, the server's user is to read it
    place = find_place(arguments.pg_config, arguments.destdir, arguments.prefix)
    extras = [extra for extra in arguments.extras.split(",") if extra]
    if arguments.action == "dependencies":
        install_dependencies(place, arguments.constraints, extras)
        return
    if arguments.action == "uninstall":
        uninstall(place, arguments.scripts)
        return
    try:
        install_module(place, arguments.constraints, extras)
        install_extension(place, arguments.scripts)
    except PermissionError as error:
        refuse(
            f'"{error.filename}" cannot be written',
            "Run make install as root, or with DESTDIR, or, for PostgreSQL 18 or later, with prefix.",
        )
    if not place.destdir:
        check_readable(place, arguments.scripts, arguments.server_user)
    print(f"pg_distill {version()} is installed for PostgreSQL {place.major} ({place.bindir})")
    if place.pth is None:
        print(
            "Set in postgresql.conf, and restart the server with this in its environment:\n"
            f"  extension_control_path = '{place.extension.parent}:$system'\n"
            f"  PYTHONPATH={place.loader}"
        )


if __name__ == "__main__":
    main()
