"""A room of the module imports the rooms below it, never one above."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

MOST_LINES, MOST_LINES_OF_A_CLASS = 450, 250
MODULE = Path(__file__).resolve().parents[2] / "python" / "pg_distill"

# From the street to the cellar. A package is one room.
ROOMS = (
    "sqlapi",
    "cli",
    "conversion",
    "jobs",
    "runs",
    "teachers",
    "serving",
    "registry",
    "child",
    "search",
    "students",
    "onnx_model",
    "measure",
    "rows",
    "database",
    "frame",
    "quoting",
    "text",
    "errors",
    "probe",
)

# Numpy in, values out: neither a database nor the processes above them.
PURE = (
    "rows/learned",
    "runs/progress",
    "search",
    "students",
    "measure",
    "rows/canonical",
    "frame",
    "onnx_model/session",
    "onnx_model/cut",
    "text",
)

# Libraries that only some rooms may import: plpy is handed in, psycopg is the way from outside.
CONFINED: dict[str, set[str]] = {
    "plpy": set(),
    "psycopg": {"cli", "database", "jobs"},
    "pickle": set(),
}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def _files() -> list[Path]:
    return sorted(path for path in MODULE.rglob("*.py") if path != MODULE / "__init__.py")


def _room(path: Path) -> str:
    return path.relative_to(MODULE).parts[0].removesuffix(".py")


@cache
def _imports(path: Path) -> set[str]:
    """Give the dotted names that a file imports anywhere, relative ones made absolute."""
    package = ("pg_distill", *path.relative_to(MODULE).parts[:-1])
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def _imported_rooms(path: Path) -> set[str]:
    parts = [name.split(".") for name in _imports(path)]
    return {part[1] for part in parts if part[0] == "pg_distill" and len(part) > 1} & set(ROOMS) - {
        _room(path)
    }


def test_every_room_has_its_place() -> None:
    assert {_room(path) for path in _files()} <= set(ROOMS)


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(MODULE)))
def test_imports_go_down_only(path: Path) -> None:
    below = ROOMS[ROOMS.index(_room(path)) + 1 :]
    assert _imported_rooms(path) <= set(below)


def test_no_file_needs_itself_to_be_imported() -> None:
    files = {
        ".".join(("pg_distill", *path.relative_to(MODULE).with_suffix("").parts)): path for path in _files()
    }

    def needs(name: str) -> set[str]:
        body = _tree(files[name]).body
        found = {
            part
            for node in body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            for part in (f"{node.module}.{alias.name}", str(node.module))
        }
        return found & set(files)

    waiting = {name: needs(name) for name in files}
    while free := {name for name, needed in waiting.items() if not needed & set(waiting)}:
        waiting = {name: needed for name, needed in waiting.items() if name not in free}
    assert not waiting


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(MODULE)))
def test_what_is_long_says_why(path: Path) -> None:
    tree = _tree(path)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    longest = max((node.end_lineno - node.lineno for node in classes if node.end_lineno), default=0)
    if len(path.read_text().splitlines()) > MOST_LINES or longest > MOST_LINES_OF_A_CLASS:
        assert "ong, because" in (ast.get_docstring(tree) or "")


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(MODULE)))
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    libraries = {name.split(".")[0] for name in _imports(path)}
    assert [name for name, rooms in CONFINED.items() if name in libraries and _room(path) not in rooms] == []


def test_pure_rooms_have_no_database() -> None:
    def is_pure(path: Path) -> bool:
        return _room(path) in PURE or str(path.relative_to(MODULE).with_suffix("")) in PURE

    impure = [path.name for path in _files() if is_pure(path) and "database" in _imported_rooms(path)]
    assert impure == []


@pytest.mark.parametrize(
    "file",
    [
        "database/backend",
        "registry/checked",
        "registry/models",
        "rows/sample",
        "serving/predict",
        "serving/sql_models",
        "serving/timing",
    ],
)
def test_casts_name_the_servers_own_types(file: str) -> None:
    """A temporary type called text would come before the server's."""
    casts = re.findall(
        r"::(?:text|int[248]|float[48]|uuid|jsonb|bytea|name|timestamptz)\b",
        (MODULE / f"{file}.py").read_text(),
    )
    assert casts == []


def test_a_backend_loads_no_trainer_library() -> None:
    """A backend must stay small: what only the trainer needs is imported in the trainer's child."""
    code = "import sys, pg_distill.sqlapi; print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONPATH": str(MODULE.parent)},
    )
    assert {"onnx", "lightgbm", "scipy", "sklearn"} & set(done.stdout.split()) == set()
