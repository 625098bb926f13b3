"""What the demo and `make test` install: only what is missing, and no cluster that nobody asked for."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "python" / "demo" / "packages.py"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, list[str]]:
    """Give the module as on a Debian machine without PostgreSQL, and the commands that it runs there."""
    spec = importlib.util.spec_from_file_location("packages", FILE)
    assert spec is not None
    assert spec.loader is not None
    packages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packages)
    commands: list[str] = []

    def run(*command: str) -> None:
        commands.append(" ".join(command))

    def quietly(command: list[str]) -> subprocess.CompletedProcess[str]:
        run(*command)
        return subprocess.CompletedProcess(command, 0, "", "")

    values: dict[str, Any] = {"run": run, "_quietly": quietly, "has_venv": lambda python: False, "default_major": lambda: "99",
                              "docker_fault": lambda: "no docker command"}  # fmt: skip
    for name, value in values.items():
        monkeypatch.setattr(packages, name, value)
    monkeypatch.setattr(packages.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(packages.shutil, "which", lambda name: f"/usr/bin/{name}")
    return packages, commands


@pytest.mark.parametrize("user", [0, 1000])
def test_a_bare_machine(
    bare: tuple[ModuleType, list[str]], user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, commands = bare
    monkeypatch.setattr(packages.os, "geteuid", lambda: user)
    if user != 0:  # tests are no reason to ask for a password
        with pytest.raises(SystemExit, match="apt-get install python3-venv libgomp1 postgresql"):
            packages.main("auto")
        assert commands == []
        return
    packages.main("auto")
    assert [command.split()[0] for command in commands] == ["apt-get", "sh", "env"]
    assert "create_main_cluster = false" in commands[1]
    assert commands[2].endswith("python3-venv libgomp1 postgresql postgresql-plpython3-99")


def test_the_setting_is_written_once_and_never_over_another(
    bare: tuple[ModuleType, list[str]], tmp_path: Path
) -> None:
    packages, _ = bare
    file = tmp_path / "new" / "createcluster.conf"
    script = packages.NO_CLUSTER.replace("/etc/postgresql-common", str(file.parent))
    for _ in range(2):
        subprocess.run(["sh", "-c", script], check=True)
    assert file.read_text() == "create_main_cluster = false\n"
    file.write_text("create_main_cluster = true\n")
    subprocess.run(["sh", "-c", script], check=True)
    assert file.read_text() == "create_main_cluster = true\n"
