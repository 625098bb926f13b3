"""distill_model's arguments are the same, with the same defaults, wherever they are written."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from pg_distill.cli import runs
from pg_distill.runs.options import PREFERENCES, Options

ROOT = Path(__file__).resolve().parents[2]
SQL = ROOT / "sql"
NAMES = [f.name for f in fields(Options)]
DEFAULTS = {f.name: f.default for f in fields(Options) if f.default is not MISSING}


def declared(file: str, function: str) -> list[tuple[str, str, str | None]]:
    """Return name, type and default of each argument of a function of a SQL file."""
    text = (SQL / file).read_text()
    match = re.search(rf"CREATE FUNCTION {re.escape(function)}\((.*?)\n\) RETURNS", text, re.DOTALL)
    assert match is not None
    found = []
    for argument in re.split(r",\s*(?![^(]*\))", match[1].strip()):
        parts = re.fullmatch(r"(\w+) (\S+)(?: DEFAULT (.+))?", " ".join(argument.split()))
        assert parts is not None, argument
        found.append((parts[1], parts[2], parts[3]))
    return found


def value(text: str | None) -> Any:
    if text is None:
        return MISSING
    if text in ("NULL", "true", "false"):
        return {"NULL": None, "true": True, "false": False}[text]
    return text.strip("'") if text.startswith("'") else float(text)


@pytest.mark.parametrize(
    ("file", "function"),
    [("41_distill_model.sql", "@extschema@.distill_model"), ("70_jobs.sql", "distill.submit")],
)
def test_the_sql_functions_take_what_the_options_are(file: str, function: str) -> None:
    found = declared(file, function)
    assert [name for name, _, _ in found] == NAMES
    for name, _, default in found:
        assert value(default) == DEFAULTS.get(name, MISSING), name
    text = " ".join((SQL / file).read_text().split())
    handed_on = re.search(rf"sqlapi\.{function.rpartition('.')[2]}\(plpy, (.*?)\)", text)
    assert handed_on is not None
    assert handed_on[1].split(", ") == NAMES
    signature = ", ".join(kind for _, kind, _ in found)
    assert f"COMMENT ON FUNCTION {function}({signature}) IS" in text


@pytest.mark.parametrize("file", ["90_privileges.sql", "upgrade/0.1.0--0.2.0.sql"])
def test_nobody_else_may_call_it(file: str) -> None:
    signature = ", ".join(
        kind for _, kind, _ in declared("41_distill_model.sql", "@extschema@.distill_model")
    )
    assert (
        f"REVOKE ALL ON FUNCTION @extschema@.distill_model({signature}) FROM PUBLIC;"
        in (SQL / file).read_text()
    )


def test_the_grants_name_functions_that_have_one_form() -> None:
    """GRANT takes a name without arguments only where there is one function of it."""
    grants = (ROOT / "extension" / "doc" / "grants.sql").read_text()
    assert re.search(r"p\.proname = 'distill_model'", grants)
    joined = "".join(path.read_text() for path in sorted(SQL.glob("*.sql")))
    for name in ("@extschema@.distill_model", "distill.submit", "distill.check"):
        assert joined.count(f"CREATE FUNCTION {name}(") == 1


def test_the_command_line_and_dbt_take_them_too() -> None:
    assert set(runs.OPTIONS) == set(NAMES) - {"teacher"}
    macro = (SQL / "dbt" / "macros" / "distill.sql").read_text()
    match = re.search(r"macro distill\((.*?)\)", macro, re.DOTALL)
    assert match is not None
    taken = {argument.split("=")[0].strip() for argument in match[1].split(",")}
    assert taken == {*NAMES, "every"}
    handed_on = re.search(r"set arguments = \{(.*?)\} -%\}", macro, re.DOTALL)
    assert handed_on is not None
    assert set(re.findall(r'"(\w+)": (\w+)', handed_on[1])) == {
        (name, "student" if name == "student_name" else name) for name in NAMES
    }
    described = (SQL / "dbt" / "macros" / "macros.yml").read_text()
    block = described[described.index("- name: distill") : described.index("- name: active_version")]
    assert set(re.findall(r"- \{name: (\w+)", block)) == {*NAMES, "every"}


def test_the_documents_name_them() -> None:
    page = (ROOT / "extension" / "doc" / "pg_distill-arguments.md").read_text()
    table = page.partition("\n## ")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) \|", table, re.MULTILINE)
    named = [name for row, _ in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(set(NAMES) - {"teacher"})
    said = {name: default for row, default in rows for name in re.findall(r"`(\w+)`", row)}
    for name, default in DEFAULTS.items():
        if isinstance(default, bool):
            assert said[name] == str(default).lower(), name
        elif isinstance(default, int | float):
            assert float(said[name]) == default, name
    assert said["prefer"] == DEFAULTS["prefer"]
    assert all(f"`{word}`" in table or word in table for word in PREFERENCES)
