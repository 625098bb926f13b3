"""What is released says the same everywhere, and installs and uninstalls without a trace."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pg_distill
import pytest

ROOT = Path(__file__).resolve().parents[2]

INSTALL_TIMEOUT_S = 600
"""An install downloads onnxruntime, scipy and their like, some 100 MB."""


def _make(*arguments: str) -> str:
    done = subprocess.run(
        ["make", "--directory", str(ROOT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=INSTALL_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_versions_agree() -> None:
    control = (ROOT / "extension" / "pg_distill.control").read_text()
    version = re.search(r"^default_version = '(.*)'$", control, re.MULTILINE)
    assert version is not None
    project = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]
    meta = json.loads((ROOT / "extension" / "META.json").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    found = {
        project["version"],
        pg_distill.__version__,
        meta["version"],
        meta["provides"]["pg_distill"]["version"],
        newest[1],
    }
    assert found == {version[1]}


def test_licence_of_the_package_is_that_of_the_repository() -> None:
    assert (ROOT / "python" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_scripts_refuse_to_be_run_by_psql_itself() -> None:
    _make()
    scripts = [*(ROOT / "build").glob("pg_distill--*.sql"), *(ROOT / "extension").glob("pg_distill--*.sql")]
    assert scripts
    for script in scripts:
        first = script.read_text().splitlines()[0]
        assert re.fullmatch(
            r'\\echo Use "(CREATE|ALTER) EXTENSION pg_distill.*" to load this file\. \\quit', first
        )


def test_each_promise_names_tests_that_exist() -> None:
    """Every row of SECURITY.md's table, and every other test that the file names."""
    text = (ROOT / "SECURITY.md").read_text()
    table = text[text.index("| promise | test |") :].partition("\n\n")[0].splitlines()[2:]
    assert len(table) > 10
    for row in table:
        assert re.search(r"\| (`tests/[^`]+::test_\w+` ?)+\|$", row), row
    for path, name in re.findall(r"`(tests/[^`:]+)::(test_\w+)`", text):
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"


def test_what_ci_may_try_twice_exists_and_has_a_reason() -> None:
    lines = (ROOT / "tests" / "second_try.txt").read_text().splitlines()
    listed = [line.split(maxsplit=1) for line in lines if not line.startswith("#")]
    assert 0 < len(listed) <= 15, "a list that grows hides faults"
    for name, reason in listed:
        path, _, test = name.partition("::")
        assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.MULTILINE), name
        assert len(reason.split()) > 3, name


def test_no_released_script_was_edited() -> None:
    _make("check-frozen")


def test_an_edit_of_a_released_script_is_noticed(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for folder in ("extension", "sql"):
        shutil.copytree(ROOT / folder, tmp_path / folder)

    def check() -> subprocess.CompletedProcess[str]:
        command = ["make", "--directory", str(tmp_path), "check-frozen"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert check().returncode == 0
    with (tmp_path / "extension" / "pg_distill--0.1.0.sql").open("a") as script:
        script.write("\n")
    done = check()
    assert done.returncode != 0
    assert "pg_distill--0.1.0.sql" in done.stdout


@pytest.mark.extra
@pytest.mark.timeout(2 * INSTALL_TIMEOUT_S)
def test_the_wheel_has_all_that_the_module_needs(tmp_path: Path) -> None:
    """`python -m build` makes it from the source archive, so that has everything, too."""
    # Not importorskip: the folder "build" of the tree is a package of that name.
    if shutil.which("pyproject-build", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("the package build is not installed")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "python", source, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(source)],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=INSTALL_TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    name = f"pg_distill-{pg_distill.__version__}"
    assert (tmp_path / f"{name}.tar.gz").exists()
    with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl") as wheel:
        packed = {file: wheel.read(file) for file in wheel.namelist()}
    module = ROOT / "python"
    wanted = [p for p in (module / "pg_distill").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert "pg_distill/cli/report.html" in packed
    for path in wanted:
        assert packed[str(path.relative_to(module))] == path.read_bytes()
    assert not [file for file in packed if file.split("/")[0] not in ("pg_distill", f"{name}.dist-info")]
    entry = packed[f"{name}.dist-info/entry_points.txt"].decode()
    assert re.search(r"^\[console_scripts\]\npg-distill *= *pg_distill\.cli\.main:main$", entry, re.MULTILINE)
    metadata = packed[f"{name}.dist-info/METADATA"].decode()
    assert {"client", "convert", "plot"} <= set(
        re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE)
    )
    # Installed by itself it is what the tree's module is.
    site = tmp_path / "site"
    with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl") as wheel:
        wheel.extractall(site)
    code = "import sys; from pg_distill.cli import main; print(main.__file__); sys.exit(main.main(['-V']))"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    ).stdout.split()  # fmt: skip
    assert shown == [str(site / "pg_distill" / "cli" / "main.py"), "pg-distill", pg_distill.__version__]


def test_the_archive_for_pgxn_has_what_meta_names() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("make dist archives what git has")
    archive = ROOT / _make("--no-print-directory", "dist").split()[-1]
    with zipfile.ZipFile(archive) as packed:
        (top,) = {name.split("/")[0] for name in packed.namelist()}
        assert top == archive.stem == f"pg_distill-{pg_distill.__version__}"
        assert len(set(packed.namelist())) == len(packed.namelist())
        meta = json.loads(packed.read(f"{top}/META.json"))
        for provided in meta["provides"].values():
            script = packed.read(f"{top}/{provided['file']}").decode()
            assert "CREATE FUNCTION distill.predict(" in script
        assert {
            f"{top}/Makefile",
            f"{top}/extension/pg_distill.control",
            f"{top}/python/pyproject.toml",
        } <= set(packed.namelist())


def test_meta_is_what_pgxn_demands() -> None:
    """Version 1.0.0 of its specification."""
    meta = json.loads((ROOT / "extension" / "META.json").read_text())
    assert {"name", "version", "abstract", "maintainer", "license", "provides", "meta-spec"} <= set(meta)
    assert meta["license"] == "postgresql"
    assert meta["meta-spec"]["version"] == "1.0.0"
    control = (ROOT / "extension" / "pg_distill.control").read_text()
    comment = re.search(r"^comment = '(.*)'$", control, re.MULTILINE)
    assert comment is not None
    for name, provided in meta["provides"].items():
        assert {"file", "version"} <= set(provided)
        assert Path(provided["file"]).name == f"{name}--{provided['version']}.sql"
    requires = re.search(r"^requires = '(.*)'$", control, re.MULTILINE)
    assert requires is not None
    assert {*map(str.strip, requires[1].split(",")), "PostgreSQL"} == set(
        meta["prereqs"]["runtime"]["requires"]
    )
