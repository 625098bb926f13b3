"""Every block of code of the README and the documents runs as it is printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pytest
import servers
from docs.conftest import (
    DOC,
    FEATURES,
    ROOT,
    Pooler,
    distill_fraud,
    dump_fraud_pipeline,
    export_reviewer,
    fraud,
    load_transactions,
    register_fraud,
    variables,
)
from docs.reference import FILE, reference
from docs.snippets import LANGUAGES, Reader, indented, snippets
from pg_distill.conversion.convert import convert
from pg_distill.frame import Kind
from pg_distill.onnx_model import limits, tokenizer_rules
from pg_distill.registry import settings

DBT = ROOT / "sql" / "dbt" / "README.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", DBT, *sorted(DOC.glob("*.md"))]

NOT_RUN = {
    ROOT / "README.md": 1,
    ROOT / "CONTRIBUTING.md": 1,
    DOC / "pg_distill-how-to.md": 4,
    DOC / "pg_distill-jobs.md": 1,
    DOC / "pg_distill-tutorial.md": 1,
}
"""Blocks of a document that cannot be run here; each says why above its fence."""


def test_no_document_is_left_out() -> None:
    """The changelog and the page on security have no code."""
    known = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    others = {ROOT / name for name in known} - set(DOCUMENTS)
    assert [path for path in others if snippets(path)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_is_known_or_says_why_not(path: Path) -> None:
    assert indented(path) == [], "code stands in fences, which name its language"
    found = snippets(path)
    assert {s.language for s in found} <= LANGUAGES
    left_out = [s for s in found if s.left_out is not None]
    assert len(left_out) == NOT_RUN.get(path, 0), [str(s) for s in left_out]


STORY = ("Command line", "dbt")
"""Sections of the README that go together, from a pipeline in a file to a model that predicts."""


@pytest.fixture
def reader(server: servers.Server, database: str, tmp_path: Path) -> Reader:
    """Give a reader with this Python, dbt where it was made, and libpq's variables of a fresh database."""
    conninfo = server.conninfo(dbname=database)
    path = f"{Path(sys.executable).parent}:{ROOT / 'build' / 'dbt' / 'bin'}:{os.environ['PATH']}"
    return Reader(conninfo, tmp_path, {**variables(conninfo), "PATH": path, "NO_COLOR": "1"})


@pytest.mark.extra
def test_applications(reader: Reader, db: psycopg.Connection, pooler: Callable[[], Pooler]) -> None:
    distill_fraud(db)
    reader.environment["POOLER"] = pooler().conninfo
    assert reader.follow(DOC / "pg_distill-applications.md") > 10


def test_readme(reader: Reader, db: psycopg.Connection) -> None:
    load_transactions(db)
    made = db.execute("SELECT lo_from_bytea(0, %s)", (fraud()[1],)).fetchone()
    assert made is not None
    db.execute("SELECT lo_export(%s, 'fraud.onnx')", made)
    db.execute("DROP EXTENSION pg_distill")
    reader.replaced["/srv/models/"] = ""  # the data directory, where the server works
    assert reader.follow(ROOT / "README.md", without=STORY) == 5
    students = db.execute(
        "SELECT count(*) FROM distill.frontier WHERE name = 'fraud_detector_distilled'"
    ).fetchone()
    assert students == (1,)


@pytest.mark.extra
@pytest.mark.timeout(900)
def test_readme_from_a_pipeline_to_a_dbt_model(
    reader: Reader, db: psycopg.Connection, dbt_command: str
) -> None:
    """Five commands, in a database that has rows and nothing else."""
    load_transactions(db)
    db.execute("DROP EXTENSION pg_distill")
    model = dump_fraud_pipeline(reader.folder / "model.joblib")
    commands = [s.text for s in snippets(ROOT / "README.md") if s.section in STORY and s.language == "shell"]
    assert len("\n".join(commands).splitlines()) == 5
    # A dbt project as its owner has it: this one is the tutorial's, without the package.
    (profile,) = [s for s in snippets(DOC / "pg_distill-tutorial.md") if s.file == "profiles.yml"]
    (reader.folder / "profiles.yml").write_text(profile.text)
    (reader.folder / "dbt_project.yml").write_text("name: lending\nversion: '1.0'\nprofile: lending\n")
    reader.environment |= {"DBT_PROFILES_DIR": str(reader.folder), "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"}
    assert [reader.follow(ROOT / "README.md", only=section) for section in STORY] == [1, 2]
    assert (reader.folder / "report.html").stat().st_size > 10_000
    rows = db.execute("SELECT amount, hour, ratio, probability FROM analytics.fraud_scores").fetchall()
    assert len(rows) == len(fraud()[0])
    # The student ranks as the pipeline in the file does.
    taught = model.predict_proba(pd.DataFrame([row[:3] for row in rows], columns=FEATURES))[:, 1]
    assert np.corrcoef(taught, [row[3] for row in rows])[0, 1] > 0.8


@pytest.mark.extra
def test_tutorial(reader: Reader, db: psycopg.Connection, dbt_command: str) -> None:
    reader.replaced["/srv/pg_distill/"] = f"{ROOT}/"
    reader.environment |= {"DBT_PROFILES_DIR": str(reader.folder), "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"}
    assert reader.follow(DOC / "pg_distill-tutorial.md") > 10
    counts = db.execute(
        "SELECT count(*), count(DISTINCT student_version), (SELECT count(*) FROM loans),"
        " (SELECT count(*) FROM distill.runs) FROM analytics.loan_scores"
    ).fetchone()
    assert counts is not None
    assert counts[0] == counts[2] > 9000
    assert (counts[1], counts[3]) == (1, 1)


@pytest.mark.extra
def test_texts(reader: Reader, db: psycopg.Connection) -> None:
    """From a table of texts and a language model's answers to predict."""
    assert reader.follow(DOC / "pg_distill-texts.md") == 8
    given = db.execute(
        "SELECT student_accuracy, metric, resolved -> 'text_columns' FROM distill.runs"
    ).fetchone()
    assert given is not None
    assert given[0] > 0.9
    assert given[1:] == ("agreement", ["body"])
    assert db.execute("SELECT sort_ticket('where is my parcel') IS NOT NULL").fetchone() == (True,)


@pytest.mark.extra
def test_how_to(reader: Reader, db: psycopg.Connection, server: servers.Server) -> None:
    distill_fraud(db)
    export_reviewer(db, reader.folder / "exported")
    try:
        assert reader.follow(DOC / "pg_distill-how-to.md") > 4
    finally:
        servers.drop_database(server, "managed")


@pytest.mark.extra
def test_explanation(reader: Reader, db: psycopg.Connection) -> None:
    distill_fraud(db)
    assert reader.follow(DOC / "pg_distill-explanation.md") > 2


def test_jobs(reader: Reader, db: psycopg.Connection) -> None:
    register_fraud(db)
    page = DOC / "pg_distill-jobs.md"
    assert reader.follow(page, only="Jobs and workers") == 1
    assert db.execute("SELECT state FROM distill.jobs").fetchall() == [("cancelled",)]
    db.execute("SELECT distill.submit('fraud_detector', families => '{linear}', patience => 1)")
    login = "host=db dbname=shop user=analyst"
    reader.replaced[f'"{login}"'] = f'"{reader.conninfo}" --once'
    assert reader.follow(page, only="A worker") == 1
    assert db.execute("SELECT state, count(*) FROM distill.jobs GROUP BY 1 ORDER BY 1").fetchall() == [
        ("cancelled", 1),
        ("done", 1),
    ]
    db.execute("UPDATE distill.job_queue SET finished_at = now() - interval '31 days' WHERE state = 'done'")
    assert reader.follow(page, only="Jobs that are over") == 1
    assert db.execute("SELECT state FROM distill.jobs").fetchall() == [("cancelled",)]
    assert {s.section for s in snippets(page) if s.left_out is None and s.language != "text"} == {
        "Jobs and workers",
        "A worker",
        "Jobs that are over",
    }


def test_command_line(reader: Reader, db: psycopg.Connection) -> None:
    load_transactions(db)
    db.execute(
        "CREATE VIEW customers AS SELECT amount, hour, ratio, is_fraud AS churned FROM transactions LIMIT 500"
    )
    model = dump_fraud_pipeline(reader.folder / "churn.joblib")
    kinds: dict[str, Kind | None] = dict.fromkeys(FEATURES, "number")
    (reader.folder / "churn.onnx").write_bytes(convert(model, kinds, None).artifact)
    rows = pd.DataFrame(
        db.execute("SELECT amount, hour, ratio, churned::int FROM customers").fetchall(),
        columns=[*FEATURES, "churned"],
    )
    told = model.predict_proba(rows[FEATURES])[:, 1]
    db.execute(
        "CREATE TABLE scored_customers (amount float8, hour float8, ratio float8, churned int, probability float8)"
    )
    with db.cursor().copy("COPY scored_customers FROM STDIN") as copy:
        for row, probability in zip(rows.itertuples(index=False), told, strict=True):
            copy.write_row((*row, float(probability)))
    package = reader.folder / "mypackage"
    package.mkdir()
    (package / "models.py").write_text(
        "import joblib\n\n\ndef pipeline():\n    return joblib.load('churn.joblib')\n"
    )
    assert reader.follow(DOC / "pg_distill-command-line.md") == 2
    found = db.execute("SELECT origin->>'holds' FROM distill.models WHERE name = 'churn'").fetchall()
    assert found == [("true",)] * 3


@pytest.mark.extra
def test_dbt_package(reader: Reader, db: psycopg.Connection, dbt_command: str) -> None:
    """From a repository with a release's tag, as its README installs it; the hook distils."""
    register_fraud(db)
    repository = reader.folder / "repository"
    shutil.copytree(ROOT / "sql" / "dbt", repository / "sql" / "dbt")
    (version,) = re.findall(r'revision: "(.*)"', DBT.read_text())
    git = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "release"], ["tag", version]):
        subprocess.run([*git, *command], cwd=repository, check=True, timeout=60)
    (profile,) = [s for s in snippets(DOC / "pg_distill-tutorial.md") if s.file == "profiles.yml"]
    (reader.folder / "profiles.yml").write_text(profile.text)
    (reader.folder / "dbt_project.yml").write_text("name: lending\nversion: '1.0'\nprofile: lending\n")
    reader.environment |= {"DBT_PROFILES_DIR": str(reader.folder), "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"}
    reader.replaced |= {
        "https://...": repository.as_uri(),
        "every='7 days'": "every='7 days', families=['linear'], time_budget_s=4",
    }
    assert reader.follow(DBT) == 2
    for command in ("deps", "build"):
        done = subprocess.run(
            [dbt_command, command], cwd=reader.folder, env={**os.environ, **reader.environment},
            capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    runs = db.execute("SELECT teacher_name FROM distill.runs").fetchall()
    assert runs == [("fraud_detector",)]


def test_operations(reader: Reader) -> None:
    assert reader.follow(DOC / "pg_distill.md") == 1


def test_reference_is_what_the_catalog_says(db: psycopg.Connection) -> None:
    assert reference(db) == FILE.read_text(), "run `make docs`"


def test_the_dbas_page_names_every_setting_and_counts_the_tables(db: psycopg.Connection) -> None:
    page = (DOC / "pg_distill.md").read_text()
    listed = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]+?)(?: \(.*\))? \|$", page[page.index("## Settings") :], re.MULTILINE
    )
    assert listed == db.execute("SELECT name, value, description FROM distill.show_settings()").fetchall()
    [(tables, views)] = db.execute(
        "SELECT array_agg(c.relname::text) FILTER (WHERE c.relkind = 'r'), count(*) FILTER (WHERE c.relkind = 'v') FROM pg_class c"
        " WHERE c.relnamespace = 'distill'::regnamespace"
    ).fetchall()
    numbers = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    named = re.search(r"with (\w+) tables \(([^)]+)\), (\w+) views", page)
    assert named is not None
    assert named.groups()[::2] == (numbers[len(tables)], numbers[views])
    assert sorted(re.findall(r"\w+", named[2])) == sorted(tables)


def test_the_page_on_security_has_every_limit() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    rows = {
        name: [cell.strip() for cell in cells.split("|")]
        for name, cells in re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    }
    for name, setting in settings.SETTINGS.items():
        unit = "" if setting.unit == "nice" else f" {setting.unit}"
        between = f"{setting.low} to {setting.high}"
        assert rows.pop(name) == [f"{setting.default}{unit}", between, setting.description]
    for name, text in settings.TEXT_SETTINGS.items():
        default, forms, description = rows.pop(name)
        assert (default, description) == (text.default, text.description)
        assert "dask+tls://host:port" in forms
    fixed = asdict(limits.Limits())
    del fixed["artifact_bytes"]  # which the setting replaces
    for name, value in fixed.items():
        (said,) = rows.pop(name)
        number = float(said.split()[0].replace(",", "")) * (2**20 if " MB " in said else 1)
        assert number == value, name
    for name, (said,) in rows.items():
        number = float(said.split()[0].rstrip(",").replace(",", "")) * (2**20 if " MB " in said else 1)
        assert number == getattr(tokenizer_rules, name.upper()), name
