"""The dbt package, run by dbt itself against a server: its integration project builds, again and again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import servers
from psycopg.conninfo import conninfo_to_dict
from sql.conftest import load_table, survival, value
from tiny_transformer import classifier

pytestmark = pytest.mark.extra

ROOT = Path(__file__).resolve().parents[2]
DBT_TIMEOUT_S = 240

Dbt = Callable[..., tuple[int, str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of the integration project beside the package, so that dbt leaves nothing in the tree."""
    shutil.copytree(ROOT / "sql" / "dbt", tmp_path / "dbt")
    return tmp_path / "dbt" / "integration_tests"


@pytest.fixture
def dbt(dbt_command: str, project: Path, server: servers.Server, database: str) -> Dbt:
    """Run dbt in the project: dbt("build", "--select", "x", min_accuracy=0.6) gives its exit code and output."""
    known = conninfo_to_dict(server.conninfo(dbname=database))
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
        "dbname": "PGDATABASE",
    }
    environment = {
        **os.environ,
        **{names[key]: str(value) for key, value in known.items() if key in names},
        "DBT_PROFILES_DIR": str(project),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "NO_COLOR": "1",
    }

    def run(*arguments: str, **variables: Any) -> tuple[int, str]:
        command = [dbt_command, "--no-use-colors", *arguments]
        if variables:
            command += ["--vars", json.dumps(variables)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=DBT_TIMEOUT_S,
            cwd=project,
            env=environment,
        )
        return done.returncode, done.stdout + done.stderr

    code, output = run("deps")
    assert code == 0, output
    return run


@pytest.fixture
def teacher_file(db: psycopg.Connection) -> str:
    """Put the rows into schema raw and the teacher's file on the server's disk; return its path there."""
    rows, artifact = survival()
    db.execute("CREATE SCHEMA raw")
    columns = {
        "id": "bigint",
        "cabin": "text",
        "port": "text",
        "age": "float8",
        "fare": "numeric",
        "survived": "int",
    }
    load_table(db, "raw.passengers", columns, ((i, *row) for i, row in enumerate(rows, 1)))
    path = "dbt_teacher.onnx"  # in the data directory, where the server works, so that it goes with it
    made = db.execute("SELECT lo_from_bytea(0, %s)", (artifact,)).fetchone()
    assert made is not None
    db.execute("SELECT lo_export(%s, %s)", (*made, path))
    return path


def results(project: Path) -> dict[str, str]:
    """Return the status of each node of dbt's last run."""
    found = json.loads((project / "target" / "run_results.json").read_text())["results"]
    return {result["unique_id"].split(".")[2]: result["status"] for result in found}


STUDENTS = "SELECT count(*) FROM distill.models WHERE name = 'survival_distilled'"
ACTIVE = "SELECT version FROM distill.models WHERE name = 'survival_distilled' AND active"


@pytest.mark.timeout(900)
def test_builds_again_and_again(dbt: Dbt, db: psycopg.Connection, project: Path, teacher_file: str) -> None:
    # Columns that are called as an alias is, ours or the caller's: the row is meant.
    rows = project / "models" / "passengers.sql"
    rows.write_text(
        rows.read_text().replace("survived from", "survived, fare as p, age as fresh, port as s from")
    )
    code, output = dbt("build", teacher_file=teacher_file)
    assert code == 0, output
    statuses = results(project)
    assert set(statuses.values()) == {"success", "pass"}
    assert statuses["fidelity_on_fresh_rows"] == "pass"
    assert {"passengers", "predicted", "scored", "scored_incremental"} <= set(statuses)
    assert value(db, "SELECT count(*) FROM analytics.scored_incremental") == 6000
    agreed = "SELECT count(*) FROM analytics.predicted p JOIN analytics.scored s USING (id) WHERE p.probability = s.prediction"
    assert value(db, agreed) == 6000
    first = value(db, "SELECT max(scored_at) FROM analytics.scored_incremental")

    # A second build over rows that have grown: whatever the new student's figures are, the build is green.
    db.execute(
        "INSERT INTO raw.passengers SELECT id + 6000, cabin, port, age, fare, survived FROM raw.passengers WHERE id <= 500"
    )
    code, output = dbt("build", teacher_file=teacher_file)
    assert code == 0, output
    assert set(results(project).values()) == {"success", "pass"}
    assert value(db, "SELECT count(*) FROM distill.runs") == 2
    assert (
        value(db, "SELECT count(*) FROM distill.models WHERE name = 'survival'") == 1
    )  # the file is the same
    assert value(db, f"SELECT count(*) FROM analytics.scored_incremental WHERE scored_at > '{first}'") == 500
    assert value(db, "SELECT count(*) FROM analytics.scored_incremental") == 6500

    # Nothing can be accepted: the present student stays, and what predicts with it goes on.
    students, active = value(db, STUDENTS), value(db, ACTIVE)
    code, output = dbt("build", teacher_file=teacher_file, min_accuracy=1.0)
    assert code == 0, output
    assert value(db, "SELECT accepted FROM distill.runs ORDER BY started_at DESC LIMIT 1") is False
    assert (value(db, STUDENTS), value(db, ACTIVE)) == (students, active)

    # A bound that the student does not reach fails the build, and its own test alone.
    code, output = dbt("test", teacher_file=teacher_file, min_fidelity=1.01)
    assert code == 1
    failed = {name for name, status in results(project).items() if status != "pass"}
    assert failed == {"fidelity_on_fresh_rows"}


@pytest.mark.timeout(900)
def test_operations_are_committed_and_refusals_are_errors(
    dbt: Dbt, db: psycopg.Connection, teacher_file: str
) -> None:
    def operation(macro: str, **arguments: Any) -> tuple[int, str]:
        return dbt("run-operation", f"pg_distill.{macro}", "--args", json.dumps(arguments))

    known = {"name": "survival", "path": teacher_file, "sample": "raw.passengers", "label": "survived"}
    for _ in range(2):
        code, output = operation("register", **known)
        assert code == 0, output
    assert value(db, "SELECT count(*) FROM distill.models") == 1
    quick = {"teacher": "survival", "families": ["tree"], "time_budget_s": 3}
    # No student there and none accepted: a model that predicts with it would have nothing to predict with.
    code, output = operation("distill", **quick, min_accuracy=1.0)
    assert code == 1, output
    assert value(db, STUDENTS) == 0
    held = {"age": -1, "fare": 1}
    code, output = operation("distill", **quick, min_accuracy=0.5, monotone=held)
    assert code == 0, output
    assert value(db, STUDENTS) == 1
    assert (
        value(db, "SELECT input_schema->'monotone' FROM distill.models WHERE name = 'survival_distilled'")
        == held
    )
    # The same rows and seed: where noise in latency lets the same student in again, it makes no version more.
    steady = {"teacher": "survival", "student_name": "steady", "families": ["linear"], "time_budget_s": 30}
    for _ in range(2):
        code, output = operation("distill", **steady, min_accuracy=0.5)
        assert code == 0, output
    assert value(db, "SELECT count(*) FROM distill.runs WHERE student_name = 'steady'") == 2
    assert value(db, "SELECT string_agg(version, ' ') FROM distill.models WHERE name = 'steady'") == "1"
    runs = value(db, "SELECT count(*) FROM distill.runs")
    code, output = operation("distill", **quick, min_accuracy=0.5, every="1 hour")
    assert code == 0, output
    assert value(db, "SELECT count(*) FROM distill.runs") == runs
    code, output = operation("register", name="nothing")
    assert code == 1, output


@pytest.mark.timeout(600)
def test_a_transformer_and_a_log_of_vectors_are_registered_once(dbt: Dbt, db: psycopg.Connection) -> None:
    tiny = classifier()
    for path, content in (("dbt_reader.onnx", tiny.artifact), ("dbt_reader.json", tiny.tokenizer)):
        made = value(db, "SELECT lo_from_bytea(0, %s)", content)
        db.execute("SELECT lo_export(%s, %s)", (made, path))
    db.execute(
        "CREATE TABLE public.reviews AS SELECT 'a great film ' || i AS body FROM generate_series(1, 50) i"
    )
    given = {
        "name": "reader",
        "path": "dbt_reader.onnx",
        "tokenizer": "dbt_reader.json",
        "features": ["body"],
    }
    given |= {"sample": "public.reviews", "text_columns": ["body"]}
    registered = "SELECT count(*) FROM distill.models WHERE name = 'reader'"
    for tokens, versions in ((32, 1), (32, 1), (16, 2)):
        code, output = dbt(
            "run-operation", "pg_distill.register", "--args", json.dumps({**given, "max_tokens": tokens})
        )
        assert code == 0, output
        assert value(db, registered) == versions
    assert 0 <= value(db, "SELECT distill.predict('reader', '{}', ARRAY['a great film'])") <= 1
    db.execute(
        "CREATE TABLE public.vectors AS SELECT ARRAY[i, i % 7, 1]::real[] AS emb, (i % 2)::float8 AS p FROM generate_series(1, 99) i"
    )
    log = {
        "name": "log",
        "outputs": ["p"],
        "features": ["emb"],
        "sample": "public.vectors",
        "task": "regression",
    }
    for _ in range(2):
        code, output = dbt("run-operation", "pg_distill.register", "--args", json.dumps(log))
        assert code == 0, output
    assert value(db, "SELECT count(*) FROM distill.models WHERE name = 'log'") == 1
    code, output = dbt(
        "run-operation", "pg_distill.register", "--args", json.dumps({**log, "tokenizer": "dbt_reader.json"})
    )
    assert code == 1, output


def test_macros_are_documented(dbt: Dbt, project: Path) -> None:
    code, output = dbt("parse", "--no-partial-parse")
    assert code == 0, output
    manifest = json.loads((project / "target" / "manifest.json").read_text())
    macros = {m["name"]: m for m in manifest["macros"].values() if m["package_name"] == "pg_distill"}
    public = {name: macro for name, macro in macros.items() if not name.startswith("_")}
    assert {"register", "distill", "predict", "score", "test_student_fidelity"} <= set(public)
    for name, macro in public.items():
        signature = re.search(r"{%\s*(?:macro|test)\s+\w+\((.*?)\)\s*%}", macro["macro_sql"], re.DOTALL)
        assert signature is not None
        declared = [a.split("=")[0].strip() for a in signature[1].split(",")]
        assert macro["description"], name
        assert [a["name"] for a in macro["arguments"]] == declared, name
        assert all(a["description"] and a["type"] for a in macro["arguments"]), name


def test_text_of_a_value_is_that_value(dbt: Dbt, project: Path) -> None:
    """Quotes and backslashes in a name arrive as they are, and run nothing."""
    (project / "models" / "quoted.sql").write_text(
        "select {{ pg_distill.predict(\"it's \\\\ \\\"it\\\"\", features=['1', '2']) }} as p"
    )
    code, output = dbt("compile", "--select", "quoted")
    assert code == 0, output
    compiled = next((project / "target" / "compiled").rglob("quoted.sql")).read_text()
    assert "distill.predict(E'it''s \\\\ \"it\"', array[1, 2]::float8[])" in compiled
