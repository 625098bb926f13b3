"""What keeps a server from importing this module and what it depends on, by the standard library alone.

``pg-distill init`` sends the text of this file to a server whose functions cannot import the module, and the training process
looks by it at its own imports. A finding is ``(check, fault, found)``: what was looked at, a key of ``FAULTS`` or None, and
what is there.
"""

from __future__ import annotations

import importlib
import os
import pwd
import re
import signal
import site
import sys

__all__ = [
    "FAULTS",
    "IN_BACKEND",
    "REQUIREMENTS",
    "Finding",
    "compare_versions",
    "describe_import",
    "describe_traceback",
    "look_for_dependency",
    "look_for_module",
    "whoami",
]

Finding = tuple[str, "str | None", str]

MIN_PYTHON = (3, 11)
# Those of pyproject.toml, which is not installed.
REQUIREMENTS = ("lightgbm >=4.5,<5", "numpy >=2,<3", "onnx >=1.21,<2", "onnxruntime >=1.24.3,<2")

# What a backend imports of these; all else is the training process's.
IN_BACKEND = ("numpy", "onnxruntime")

REINSTALL = "Run make install on the server, with the server's pg_config."
# An exit code of `pg-distill init` and what to do, by fault; of several the lowest code is the one to begin with.
FAULTS = {
    "server_old": (10, "Upgrade to PostgreSQL 15 or later."),
    "encoding": (11, "Use a database of encoding UTF8."),
    "no_plpython": (
        12,
        "Install PL/Python on the server (Debian: apt-get install postgresql-plpython3-{major}).",
    ),
    "no_extension_files": (13, REINSTALL),
    "other_release": (14, "Install the client of the server's release, or run make install on the server."),
    "python_old": (15, "PL/Python has to run Python 3.11 or later: install one that does."),
    "module_missing": (
        16,
        f"{REINSTALL} Where prefix was used, PYTHONPATH in the server's environment names the loader.",
    ),
    "unreadable": (
        17,
        "Give the server's user the right to read it and to enter its folders, or run make install again.",
    ),
    "module_older": (18, f"{REINSTALL} Then open a new session."),
    "module_newer": (
        19,
        "Run pg-distill init, which updates the extension, or ALTER EXTENSION pg_distill UPDATE.",
    ),
    "dependency_missing": (20, REINSTALL),
    "dependency_broken": (
        21,
        f"{REINSTALL} Of libgomp: install the OpenMP runtime (Debian: apt-get install libgomp1).",
    ),
    "dependency_version": (
        22,
        f"{REINSTALL} It is found before the module's own: remove it from the server's Python.",
    ),
    "python_not_runnable": (
        23,
        "Give the server's user the right to run it: training processes are this Python.",
    ),
    "no_process": (
        24,
        "Raise what limits the processes of the server's user (ulimit -u; TasksMax of its service).",
    ),
    "out_of_memory": (
        25,
        "Raise the setting trainer_memory_mb, or what limits the server's memory (ulimit -v, its container).",
    ),
    "trainer_died": (26, "See what it said, and the server's log."),
    "search_path": (
        27,
        "Leave pg_catalog out of search_path (see ALTER ROLE, ALTER DATABASE and postgresql.conf).",
    ),
    "privilege": (28, "Run this as a superuser, or have one grant it (extension/doc/grants.sql)."),
    "not_created": (29, "Have a superuser run pg-distill init."),
    "not_updated": (30, "Have a superuser run pg-distill init."),
    "setting": (31, "Take it back to its default: SELECT distill.change_setting(NAME, NULL)."),
    "not_examined": (32, "See the message, and the server's log."),
}


def look_for_module(expected: str | None) -> list[Finding]:
    """Import the module as a function of the extension does; ``expected`` is the version that it should have."""
    check = "Python module"
    if sys.version_info < MIN_PYTHON:
        return [(check, "python_old", "PL/Python runs Python {}.{}".format(*sys.version_info[:2]))]
    try:
        module = _import("pg_distill")
        version, place = str(module.__version__), os.path.dirname(str(module.__file__))  # type: ignore[attr-defined]
    except Exception as error:
        fault, found = _unreadable_install() or describe_import(error)
        return [(check, "module_missing" if fault == "dependency_missing" else fault, found)]
    other = compare_versions(version, expected)
    against = f"; the extension is {expected}" if other is not None else ""
    findings: list[Finding] = [(check, other, f"{version} of {place}{against}")]
    try:
        _import("pg_distill.sqlapi")
    except Exception as error:
        # A library that has lost a folder fails anywhere, others with it: looked at alone, it says more.
        failed = [found for found in map(look_for_dependency, REQUIREMENTS) if found[1] is not None]
        failed.sort(key=lambda found: FAULTS[str(found[1])][0])
        described = _unreadable(place)
        findings += (
            failed[:1] if failed and described is None else [(check, *(described or describe_import(error)))]
        )
    return findings


def compare_versions(version: str, expected: str | None) -> str | None:
    """Return the fault of a module of ``version`` where another is expected."""
    if expected is None or version == expected:
        return None

    def key(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text)]

    return "module_older" if key(version) < key(expected) else "module_newer"


def look_for_dependency(requirement: str) -> Finding:
    """Import what a requirement such as ``numpy >=2,<3`` names, and hold its version against it."""
    name, _, bounds = requirement.partition(" ")
    check = f"dependency {name}"
    try:
        module = _import(name)
    except Exception as error:
        if isinstance(error, MemoryError) or re.search(
            "failed to map segment|Cannot allocate memory", str(error)
        ):
            raise MemoryError(str(error)) from error
        return (check, *describe_import(error))
    file = getattr(module, "__file__", None)
    if file is None:
        # To Python a folder whose files it cannot read is a package without any.
        return (check, "unreadable", ", ".join(getattr(module, "__path__", [name])))
    version = str(getattr(module, "__version__", "?"))
    found = f"{version} of {os.path.dirname(file)}"
    if not _is_within(version, bounds):
        return (check, "dependency_version", f"{found}; {requirement} is needed")
    return (check, None, found)


def describe_import(error: Exception) -> tuple[str, str]:
    """Return the fault and its description for an error that an import raised."""
    if isinstance(error, PermissionError) and error.filename:
        return "unreadable", str(error.filename)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        folder = _unreadable_on_path(error.name)
        if folder is not None:
            return "unreadable", folder
    return describe_traceback(f"{type(error).__name__}: {error}")


def describe_traceback(text: str) -> tuple[str, str]:
    """Return the fault and its description for what Python, or PostgreSQL in its place, says of an import that failed."""
    lines = [line for line in text.strip().splitlines() if re.match(r"[\w.]+: ", line)]
    line = lines[-1] if lines else text.strip()
    if re.search(r"Permission denied|cannot be read by the server's user", line):
        return "unreadable", line
    if re.search(r"No module named 'pg_distill\b|has no release of pg_distill", line):
        return "module_missing", line
    if "No module named '" in line:
        return "dependency_missing", line
    if re.match(r"\w*Error\b", line):
        return "dependency_broken", line
    return "trainer_died", line


def _import(name: str) -> object:
    """Import it with all signals blocked: a thread that this starts must not be given a backend's."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        return importlib.import_module(name)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_within(version: str, bounds: str) -> bool:
    """Whether a version is within bounds such as ``>=1.24.3,<2``."""

    def key(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3]]

    low, high = (bound.lstrip("<>=") for bound in bounds.split(","))
    return key(low) <= key(version) < key(high)


def _unreadable_on_path(name: str) -> str | None:
    """Return a folder of the path, or what is there of a module of this dotted name, that the user cannot read."""
    parts = name.split(".")
    for folder in sys.path:
        within = [os.path.join(folder, *parts[:depth]) for depth in range(len(parts) + 1)]
        for path in (*within, f"{within[-1]}.py"):
            if os.path.exists(path) and not _is_readable(path):
                return path
    return None


def _is_readable(path: str) -> bool:
    return os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0))


def _unreadable_install() -> tuple[str, str] | None:
    """Find what the user cannot read of an install: its .pth file, the folder that it names, or what is there."""
    named = [*os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    for folder in [*site.getsitepackages(), *sys.path]:
        try:
            files = [os.path.join(folder, name) for name in os.listdir(folder)]
        except OSError:
            continue
        for file in files:
            if "pg_distill" in os.path.basename(file) and file.endswith(".pth"):
                try:
                    with open(file, encoding="utf-8") as lines:
                        named += lines.read().splitlines()
                except PermissionError:
                    return "unreadable", file
    for folder in named:
        # The loader's folder: the releases are beside it.
        home = os.path.dirname(folder) if os.path.basename(folder) == "loader" else folder
        found = _unreadable(home) if "pg_distill" in home else None
        if found is not None:
            return found
    return None


def _unreadable(top: str) -> tuple[str, str] | None:
    """Find the first folder above a path, or folder or file beneath it, that the user cannot read."""
    above = "/"
    for part in top.split("/")[1:]:
        above = os.path.join(above, part)
        if not os.path.exists(above):
            break  # nor is what is beneath
        if not os.access(above, os.X_OK):
            return "unreadable", above
    for folder, folders, files in os.walk(top):
        for path in (folder, *(os.path.join(folder, name) for name in (*folders, *files))):
            if not _is_readable(path):
                return "unreadable", path
    return None


def whoami() -> str:
    """Return the name of the user that this process runs as."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
