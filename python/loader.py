"""Stands in for the package pg_distill in a server's Python, finds the release that the process is to have, and makes way for it.

::

    HOME/loader/pg_distill/__init__.py    this file, as `make install` copies it
    HOME/loader/pg_distill/bindir         names the programs of the one server that the loader is for
    HOME/VERSION/pythonX.Y/               a release: the module and all that it depends on

A .pth file, or PYTHONPATH, names ``HOME/loader``. Servers that share one Python each have a loader on its path, and a loader
leaves the path of a process that is not of its server. Of several releases the one is taken whose version the extension has in
this database: a release that is installed beside another changes nothing until ALTER EXTENSION pg_distill UPDATE. Nothing
of this runs before pg_distill is imported.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
ENTRY = os.path.dirname(FOLDER)  # of sys.path
HOME = os.path.dirname(ENTRY)
PYTHON = "python{}.{}".format(*sys.version_info[:2])
# The first major version in whose parallel operations PL/Python can run a query.
QUERIES_IN_PARALLEL = 17


def is_of_this_server() -> bool:
    """Whether this process runs a program of the server that the loader was installed for; anyone's, where none is named."""
    try:
        with open(os.path.join(FOLDER, "bindir"), encoding="utf-8") as file:
            bindir = file.read().rstrip("\n")
    except FileNotFoundError:
        return True  # of a prefix: who has it on the path has named it
    try:
        return os.path.dirname(os.readlink("/proc/self/exe")) == bindir
    except OSError:
        return True


def releases() -> dict[str, str]:
    """Return the folder of each release for this Python, by its version."""
    found: dict[str, str] = {}
    for name in os.listdir(HOME):
        folder = os.path.join(HOME, name, PYTHON)
        if os.path.isdir(os.path.join(folder, "pg_distill")):
            found[name] = folder
    # As 0.1.0 installed it: one for all databases.
    folder = os.path.join(HOME, "venv", "lib", PYTHON, "site-packages")
    if os.path.isdir(folder):
        for name in os.listdir(folder):
            version = re.fullmatch(r"pg_distill-(.+)\.dist-info", name)
            if version:
                found[version[1]] = folder
    return found


def can_query() -> bool:
    """Whether PL/Python can run a query here: not in a parallel operation before PostgreSQL 17."""
    try:
        in_parallel = ctypes.PyDLL(None).IsInParallelMode
    except (AttributeError, OSError):
        return True
    in_parallel.restype, in_parallel.argtypes = ctypes.c_bool, ()
    if not in_parallel():
        return True
    with open("PG_VERSION", encoding="ascii") as file:  # a backend works in the data directory
        return int(file.read()) >= QUERIES_IN_PARALLEL


def extension_version() -> str | None:
    """Return the version of the extension in this database; None where there is none, or nothing can be asked."""
    try:
        import plpy  # built into a backend's Python
    except ImportError:
        return None
    if not can_query():
        return None
    rows = plpy.execute(
        "select e.extversion from pg_catalog.pg_extension e where e.extname operator(pg_catalog.=) 'pg_distill'"
    )
    return rows[0]["extversion"] if len(rows) else None


def choose() -> str:
    """Return the folder of the release to use: the extension's, else the newest, which says what is wrong."""
    try:
        found = releases()
    except PermissionError as error:
        raise ImportError(
            f'"{error.filename}" cannot be read by the server\'s user', name="pg_distill"
        ) from error
    if not found:
        raise ModuleNotFoundError(f'"{HOME}" has no release of pg_distill for {PYTHON}', name="pg_distill")
    newest = max(found, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])
    version = extension_version() if len(found) > 1 else newest
    return found[version if version in found else newest]


def make_way() -> None:
    """Put the release where the loader is on the path, or nothing where it is another server's, and import again."""
    place = sys.path.index(ENTRY) if ENTRY in sys.path else len(sys.path)
    sys.path[place : place + 1] = [choose()] if is_of_this_server() else []
    del sys.modules["pg_distill"]
    importlib.import_module("pg_distill")


make_way()
