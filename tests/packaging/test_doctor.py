"""`pg-distill init --check` on a server that is broken in each way: it says what is wrong, and its exit code is that fault's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from conftest import create_database, drop_database
from pg_distill import probe

ROOT = Path(__file__).resolve().parents[2]
DATABASE = "pg_distill_patient"
Check = Callable[..., tuple[int, list[dict[str, Any]]]]
pytestmark = pytest.mark.extra

# What the snippets of shell below are about, in a container of the image; found while it is whole.
PLACES = """
set -eu
home=$(pg_config --pkglibdir)/pg_distill
site=$(ls -d /usr/local/lib/python3.*/dist-packages)
cat > /root/places <<END
set -eu
HOME=$home
RELEASE=$(ls -d "$home"/[0-9]*/python3.*)
SHARE=$(pg_config --sharedir)/extension
SITE=$site
PTH=$(ls "$site"/_pg_distill*.pth)
PYTHON=$(readlink -f /usr/bin/python3)
OPENMP=$(ls /usr/lib/*/libgomp.so.1)
END
"""


@pytest.fixture(scope="module")
def patient(server: servers.Server) -> Iterator[servers.Container]:
    """Give a container of its own, with the extension in a database; tests break it and put it right again."""
    if not isinstance(server, servers.Container):
        pytest.skip("the server's files are broken in a container only")
    with servers.start(server.name) as started:
        assert isinstance(started, servers.Container)
        create_database(started, DATABASE)
        started.run("sh", "-c", PLACES, user="root")
        yield started


@pytest.fixture
def root(patient: servers.Container) -> Callable[[str], str]:
    """Run a snippet of shell as root, where the variables of `PLACES` are."""
    return lambda script: patient.run("sh", "-c", f". /root/places\n{script}", user="root").stdout


@pytest.fixture
def check(patient: servers.Container) -> Check:
    """Run `pg-distill init --check`; give its exit code and rows."""

    def run(*options: str, dbname: str = DATABASE, **keywords: Any) -> tuple[int, list[dict[str, Any]]]:
        command = [sys.executable, "-m", "pg_distill.cli", "init", *(options or ["--check"]), "--json"]
        done = subprocess.run(
            [*command, "--dsn", patient.conninfo(dbname=dbname, **keywords)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "python")}, capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout)

    return run


# By name: how root breaks it, the fault, what is named, and how root puts it right.
BREAKS: dict[str, tuple[str, str, str, str]] = {
    "python3 may not be run": ("chmod 700 $PYTHON", "python_not_runnable", "/bin/python3", "chmod 755 $PYTHON"),
    "python3 is gone": ("mv $PYTHON $PYTHON.gone", "python_not_runnable", "no python3", "mv $PYTHON.gone $PYTHON"),
    "its folder may not be entered": ("chmod 700 $HOME", "unreadable", "/pg_distill", "chmod 755 $HOME"),
    "its .pth file may not be read": ("chmod 600 $PTH", "unreadable", ".pth", "chmod 644 $PTH"),
    "its loader may not be read": ("chmod -R go= $HOME/loader", "unreadable", "/loader", "chmod -R go=rX $HOME/loader"),
    "the release may not be read": ("chmod 700 $RELEASE", "unreadable", "/python3", "chmod 755 $RELEASE"),
    "the module may not be read": (
        "chmod 700 $RELEASE/pg_distill", "unreadable", "/pg_distill", "chmod 755 $RELEASE/pg_distill",
    ),
    "one file of the module may not be read": (
        "cd $RELEASE/pg_distill/child; chmod 600 trainer.py __pycache__/trainer.*", "unreadable", "trainer",
        "cd $RELEASE/pg_distill/child; chmod 644 trainer.py __pycache__/trainer.*",
    ),
    "a library's folder may not be read": ("chmod 700 $RELEASE/lightgbm", "unreadable", "lightgbm", "chmod 755 $RELEASE/lightgbm"),
    "a library's binary may not be read": (
        "chmod 600 $RELEASE/lightgbm/lib/lib_lightgbm.so", "unreadable", "lib_lightgbm.so",
        "chmod 644 $RELEASE/lightgbm/lib/lib_lightgbm.so",
    ),
    "a backend's library may not be read": ("chmod 700 $RELEASE/numpy", "unreadable", "numpy", "chmod 755 $RELEASE/numpy"),
    "the module is gone": ("mv $HOME $HOME.gone", "module_missing", "pg_distill", "mv $HOME.gone $HOME"),
    "the .pth file is gone": ("mv $PTH /root/pth", "module_missing", "pg_distill", "mv /root/pth $PTH"),
    "the release is gone": ("mv $RELEASE $RELEASE.gone", "module_missing", "no release", "mv $RELEASE.gone $RELEASE"),
    "the module is older": (
        "cp $RELEASE/pg_distill/__init__.py /root; sed -i 's/^__version__ = .*/__version__ = \"0.0.1\"/' $RELEASE/pg_distill/__init__.py",
        "module_older", "0.0.1", "cp /root/__init__.py $RELEASE/pg_distill/",
    ),
    "the module is newer": (
        "cp $RELEASE/pg_distill/__init__.py /root; sed -i 's/^__version__ = .*/__version__ = \"99.0\"/' $RELEASE/pg_distill/__init__.py",
        "module_newer", "99.0", "cp /root/__init__.py $RELEASE/pg_distill/",
    ),
    "a trainer's library is gone": ("mv $RELEASE/lightgbm /root", "dependency_missing", "lightgbm", "mv /root/lightgbm $RELEASE"),
    "a library's library is gone": ("mv $RELEASE/scipy /root", "dependency_missing", "scipy", "mv /root/scipy $RELEASE"),
    "a backend's library is gone": ("mv $RELEASE/onnxruntime /root", "dependency_missing", "onnxruntime", "mv /root/onnxruntime $RELEASE"),
    "a trainer's library is broken": (
        "cd $RELEASE/lightgbm/lib; mv lib_lightgbm.so /root; echo no > lib_lightgbm.so",
        "dependency_broken", "lib_lightgbm.so", "mv /root/lib_lightgbm.so $RELEASE/lightgbm/lib",
    ),
    "the OpenMP runtime is gone": (
        "mv $OPENMP /root/libgomp.so.1", "dependency_broken", "libgomp.so.1",
        "mv /root/libgomp.so.1 $OPENMP",
    ),
    "a backend's library raises": (
        "cp $RELEASE/numpy/__init__.py /root; echo 'raise RuntimeError(\"no\")' > $RELEASE/numpy/__init__.py",
        "dependency_broken", "RuntimeError", "cp /root/__init__.py $RELEASE/numpy",
    ),
    "another library is in front": (
        "mkdir $SITE/lightgbm; echo '__version__ = \"3.3.5\"' > $SITE/lightgbm/__init__.py", "dependency_version", "3.3.5",
        "rm -r $SITE/lightgbm",
    ),
    "a training process dies": (
        "cp $RELEASE/pg_distill/child/guard.py /root; sed -i 's/^    main()$/    os.abort()/' $RELEASE/pg_distill/child/guard.py",
        "trainer_died", "training process", "cp /root/guard.py $RELEASE/pg_distill/child/",
    ),
    "PL/Python is gone": ("mv $SHARE/plpython3u.control /root", "no_plpython", "plpython3u", "mv /root/plpython3u.control $SHARE"),
    "the extension's files are gone": (
        "mv $SHARE/pg_distill.control /root", "no_extension_files", "control file", "mv /root/pg_distill.control $SHARE",
    ),
    "the extension's files are of another release": (
        "cp $SHARE/pg_distill.control /root; sed -i \"s/^default_version = .*/default_version = '99.0'/\" $SHARE/pg_distill.control",
        "other_release", "99.0", "cp /root/pg_distill.control $SHARE",
    ),
}  # fmt: skip


def faults(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not row["ok"]]


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_named(name: str, root: Callable[[str], str], check: Check) -> None:
    harm, fault, named, cure = BREAKS[name]
    root(harm)
    try:
        code, rows = check()
    finally:
        root(cure)
    assert code == probe.FAULTS[fault][0], rows
    worst = min(faults(rows), key=lambda row: row["code"])
    assert worst["code"] == code
    assert named in worst["found"]
    assert worst["what to do"]
    # A cause that is found is not blamed on anything else.
    assert {row["code"] for row in faults(rows)} - {code} <= {probe.FAULTS["not_updated"][0]}


def test_what_was_put_right_is_not_named(check: Check) -> None:
    """After all of the above; or a fault of one test would be found by the next."""
    code, rows = check()
    assert (code, faults(rows)) == (0, [])
    assert {"server", "PL/Python", "extension files", "extension", "Python module", "training process"} <= {
        row["check"] for row in rows
    }


def test_before_the_extension_is_created(
    patient: servers.Container, root: Callable[[str], str], check: Check
) -> None:
    """What CREATE EXTENSION would fail on is found before it, and nothing is left behind by looking."""
    fresh = "pg_distill_fresh"
    drop_database(patient, fresh)
    with patient.connect() as connection:
        connection.execute(f"CREATE DATABASE {fresh} TEMPLATE template0 ENCODING 'UTF8'")
    code, rows = check(dbname=fresh)
    assert code == probe.FAULTS["not_created"][0]
    assert {"Python module", "training process"} <= {row["check"] for row in rows if row["ok"]}
    for harm, fault, cure in (
        ("mv $HOME $HOME.gone", "module_missing", "mv $HOME.gone $HOME"),
        ("chmod 700 $PYTHON", "python_not_runnable", "chmod 755 $PYTHON"),
    ):
        root(harm)
        try:
            for options in ((), ("--schema", "public")) if fault == "module_missing" else ((),):
                code, rows = check(*options, dbname=fresh)
                assert code == probe.FAULTS[fault][0], rows
        finally:
            root(cure)
    with patient.connect(fresh) as connection:
        made = "SELECT count(*) FROM pg_extension WHERE extname <> 'plpgsql'"
        assert connection.execute(made).fetchone() == (0,)
    assert check("--schema", "public", dbname=fresh)[0] == 0
    drop_database(patient, fresh)


def test_an_older_extension(patient: servers.Container, check: Check) -> None:
    """Its module is not there: what is wrong is not the module, and init puts it right."""
    older = "pg_distill_older"
    create_database(patient, older, version="0.1.0")
    code, rows = check(dbname=older)
    assert code == probe.FAULTS["module_newer"][0]
    assert {row["code"] for row in faults(rows)} == {code, probe.FAULTS["not_updated"][0]}
    assert check("--schema", "public", dbname=older)[0] == 0
    drop_database(patient, older)


def test_a_privilege_that_is_missing_is_not_blamed_on_the_module(
    patient: servers.Container, check: Check
) -> None:
    """Schema, function, settings: one after the other."""
    try:
        with patient.connect(DATABASE) as connection:
            connection.execute("CREATE ROLE low LOGIN PASSWORD 'low'")
            for grant, named in (
                ("SELECT", "schema"),
                ("GRANT USAGE ON SCHEMA distill TO low", "function"),
                ("GRANT EXECUTE ON FUNCTION distill._check_server TO low", "settings"),
            ):
                connection.execute(grant)
                code, rows = check(user="low", password="low")
                assert code == probe.FAULTS["privilege"][0]
                assert [row["check"] for row in faults(rows)] == ["privilege"]
                assert named in faults(rows)[0]["found"]
            connection.execute("GRANT SELECT ON distill.settings TO low")
            assert check(user="low", password="low")[0] == 0
        with patient.connect() as connection:
            connection.execute("CREATE DATABASE theirs OWNER low TEMPLATE template0 ENCODING 'UTF8'")
        code, rows = check("--schema", "public", dbname="theirs", user="low", password="low")
        assert code == probe.FAULTS["privilege"][0]
    finally:
        drop_database(patient, "theirs")
        with patient.connect(DATABASE) as connection:
            connection.execute("DROP OWNED BY low; DROP ROLE low")


def test_without_rights_the_module_is_named_too(
    root: Callable[[str], str], patient: servers.Container, check: Check
) -> None:
    """Who is no superuser can run no DO: the error of the function tells."""
    root("mv $HOME $HOME.gone")
    try:
        with patient.connect(DATABASE) as connection:
            connection.execute("CREATE ROLE low LOGIN PASSWORD 'low'")
            connection.execute("GRANT USAGE ON SCHEMA distill TO low")
            connection.execute("GRANT EXECUTE ON FUNCTION distill._check_server TO low")
        assert check(user="low", password="low")[0] == probe.FAULTS["module_missing"][0]
    finally:
        root("mv $HOME.gone $HOME")
        with patient.connect(DATABASE) as connection:
            connection.execute("DROP OWNED BY low; DROP ROLE low")


def test_settings_of_the_database(
    patient: servers.Container, root: Callable[[str], str], check: Check
) -> None:
    """A memory limit that the libraries do not fit in, a value from elsewhere, a search_path that every function refuses."""
    with patient.connect(DATABASE) as connection:
        connection.execute("SELECT distill.change_setting('trainer_memory_mb', '256')")
        root(
            "cp $RELEASE/lightgbm/__init__.py /root; echo 'large = bytearray(400 << 20)' > $RELEASE/lightgbm/__init__.py"
        )
        code, rows = check()
        root("cp /root/__init__.py $RELEASE/lightgbm")
        assert code == probe.FAULTS["out_of_memory"][0]
        assert "trainer_memory_mb at 256" in faults(rows)[0]["found"]
        connection.execute("UPDATE distill.settings SET value = 'much'")  # as a superuser restores it
        code, rows = check()
        connection.execute("SELECT distill.change_setting('trainer_memory_mb', NULL)")
        assert code == probe.FAULTS["setting"][0]
        assert "trainer_memory_mb" in faults(rows)[0]["found"]
        connection.execute("CREATE SCHEMA operators")
        connection.execute(f"ALTER DATABASE {DATABASE} SET search_path = operators, pg_catalog")
        code, rows = check()
        connection.execute(f"ALTER DATABASE {DATABASE} RESET search_path")
        connection.execute("DROP SCHEMA operators")
        assert code == probe.FAULTS["search_path"][0]
        assert "operators" in faults(rows)[0]["found"]
    with patient.connect() as connection:
        connection.execute("CREATE DATABASE plain TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    code, rows = check(dbname="plain")
    drop_database(patient, "plain")
    assert code == probe.FAULTS["encoding"][0]


def test_no_process_can_be_started(patient: servers.Container) -> None:
    """A limit of the server's user, set for one backend: a new session could not be opened under it."""
    with patient.connect(DATABASE) as connection:
        patient.run("prlimit", f"--pid={connection.info.backend_pid}", "--nproc=1:1")
        found = connection.execute(
            "SELECT fault, advice FROM distill._check_server() WHERE fault IS NOT NULL"
        ).fetchall()
    assert [row[0] for row in found] == ["no_process"]
    assert found[0][1] == probe.FAULTS["no_process"][1]


def test_each_fault_has_its_own_exit_code_and_advice() -> None:
    codes = [code for code, _ in probe.FAULTS.values()]
    assert len(set(codes)) == len(codes)
    assert min(codes) >= 10  # below are those of every command
    assert all(advice for _, advice in probe.FAULTS.values())
    document = (ROOT / "extension" / "doc" / "pg_distill-command-line.md").read_text()
    for code in codes:
        assert f"| {code} |" in document


def test_the_dependencies_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]
    assert list(probe.REQUIREMENTS) == project["dependencies"]


def test_a_python_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.sys, "version_info", (3, 9, 2))
    [(check, fault, found)] = probe.look_for_module("0.2.0")
    assert (check, fault) == ("Python module", "python_old")
    assert "3.9" in found


@pytest.mark.parametrize(
    ("version", "fault"),
    [("0.2.0", None), ("0.1.9", "module_older"), ("0.10.0", "module_newer"), ("0.2.0rc1", "module_newer")],
)
def test_versions_are_compared_by_number(version: str, fault: str | None) -> None:
    assert probe.compare_versions(version, "0.2.0") == fault
    assert probe.compare_versions(version, None) is None
