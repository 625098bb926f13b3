"""The command line over a real server: every subcommand, its exit codes and its JSON."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import servers
from conftest import drop_database
from sql.conftest import load_cancer, load_table, names, student_of_cancer, survival

PYTHON = Path(__file__).resolve().parents[2] / "python"
Run = Callable[..., Any]


@pytest.fixture
def run(server: servers.Server, database: str, tmp_path: Path) -> Run:
    """Run pg-distill in a folder of its own: run("models", code=0) gives what it printed, from JSON."""

    def run_command(
        *arguments: str, code: int = 0, dsn: str | None = None, stdin: str | None = None, plain: bool = False
    ) -> Any:
        command = [sys.executable, "-m", "pg_distill.cli", *arguments]
        command += ["--dsn", dsn if dsn is not None else server.conninfo(dbname=database)]
        done = subprocess.run(
            command if plain else [*command, "--json"],
            env={**os.environ, "PYTHONPATH": f"{PYTHON}:{tmp_path}"},
            cwd=tmp_path,
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        if plain or not done.stdout:
            return done.stdout or done.stderr
        return json.loads(done.stdout, parse_constant=pytest.fail)  # NaN and Infinity are not JSON

    return run_command


def fitted_pipeline() -> tuple[Any, Any]:
    """Return the passengers as a table and a pipeline over its named columns, strings and NULLs included."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rows, _ = survival()
    table = pd.DataFrame(rows[:1500], columns=["cabin", "port", "age", "fare", "survived"])
    table["port"] = table["port"].fillna("")
    model = make_pipeline(
        ColumnTransformer(
            [
                ("strings", OneHotEncoder(handle_unknown="ignore"), ["cabin", "port"]),
                ("numbers", SimpleImputer(strategy="median"), ["age", "fare"]),
            ]
        ),
        RandomForestClassifier(100, min_samples_leaf=5, random_state=0),
    )
    return table, model.fit(table[["cabin", "port", "age", "fare"]], table["survived"])


def load_passengers(db: psycopg.Connection) -> None:
    columns = {"cabin": "text", "port": "text", "age": "float8", "fare": "float8", "survived": "int"}
    load_table(db, "passengers", columns, survival()[0])


@pytest.mark.extra
def test_from_a_pipeline_in_a_file_to_a_student_elsewhere(
    db: psycopg.Connection, run: Run, tmp_path: Path, server: servers.Server
) -> None:
    """Register, distil, look, predict, export; import in another database predicts the same."""
    import joblib

    load_passengers(db)
    table, model = fitted_pipeline()
    joblib.dump(model, tmp_path / "survival.joblib")
    [registered] = run(
        "register", "survival", "survival.joblib", "--sample", "passengers", "--label", "survived"
    )
    assert (registered["name"], registered["task"], registered["kind"]) == ("survival", "binary", "onnx")
    assert registered["accuracy"] > 0.5

    # What was registered predicts what the pipeline does.
    features = table[["cabin", "port", "age", "fare"]].iloc[:20]
    expected = model.predict_proba(features)
    rows = [
        json.dumps({k: None if v != v else v for k, v in row.items()}) for row in features.to_dict("records")
    ]
    predicted = run("predict", "survival", "--row", "-", stdin="\n".join(rows))
    assert np.abs(np.array([row["probabilities"] for row in predicted]) - expected).max() < 1e-5
    assert predicted[0]["class"] in ("0", "1")

    [done] = run(
        "distill",
        "survival",
        "--time-budget-s",
        "10",
        "--patience",
        "1",
        "--families",
        "linear",
        "--min-accuracy",
        "0",
    )
    [listed] = run("runs", "survival")
    assert listed == done
    assert [m["name"] for m in run("models", "survival_distilled")] == ["survival_distilled"]
    assert {"survival_distilled"} <= {row["name"] for row in run("frontier", "survival")}
    assert "survival_distilled" in run("models", plain=True)

    student = run("predict", "survival_distilled", "--row", rows[0], "--row", rows[1])
    scored = run(
        "predict",
        "survival_distilled",
        "--query",
        "SELECT 7 AS id, p.* FROM passengers p LIMIT 3",
        "--key",
        "id",
    )
    assert [row["key"] for row in scored] == ["7"] * 3

    written = run("export", "survival_distilled", "--to", ".")
    files = {Path(row["file"]).suffix: tmp_path / row["file"] for row in written}
    assert {".onnx", ".json", ".md"} <= set(files)
    card = files[".md"].read_text()
    assert "survival:1" in card
    assert "95 % interval" in card
    if ".sql" in files:
        # The expression is plain SQL over the columns: it needs no extension.
        text = files[".sql"].read_text()
        plain = db.execute(
            f"SELECT ({text}) FROM (SELECT * FROM passengers ORDER BY age, fare LIMIT 50) s ORDER BY age, fare"  # type: ignore[arg-type]
        ).fetchall()
        ours = db.execute(
            "SELECT distill.predict('survival_distilled', to_jsonb(s)) FROM (SELECT * FROM passengers ORDER BY age, fare"
            " LIMIT 50) s ORDER BY age, fare"
        ).fetchall()
        assert np.abs(np.array(plain, float) - np.array(ours, float)).max() < 1e-4

    other = "pg_distill_elsewhere"
    drop_database(server, other)
    servers.create_database(server, other)
    dsn = server.conninfo(dbname=other)
    try:
        run("import", str(files[".json"]), "--name", "carried", dsn=dsn, code=1)  # strings need a sample
        with server.connect(other) as connection:
            load_passengers(connection)
        [imported] = run(
            "import",
            str(files[".json"]),
            "--name",
            "carried",
            "--sample",
            "passengers",
            "--label",
            "survived",
            dsn=dsn,
        )
        assert imported["accuracy"] > 0.5
        assert imported["name"] == "carried"
        assert run("predict", "carried", "--row", rows[0], "--row", rows[1], dsn=dsn) == student
        files[".onnx"].write_bytes(files[".onnx"].read_bytes() + b"x")
        run("import", str(files[".json"]), "--name", "again", dsn=dsn, code=1)
        assert len(run("models", dsn=dsn)) == 1
    finally:
        drop_database(server, other)


@pytest.mark.parametrize(
    "library",
    [
        "sklearn",
        "lightgbm",
        *(
            pytest.param(name, marks=pytest.mark.extra)
            for name in ("xgboost", "lightgbm booster", "xgboost booster")
        ),
    ],
)
def test_models_of_each_library_by_import_path(
    db: psycopg.Connection, run: Run, tmp_path: Path, library: str
) -> None:
    """A model that `package.module:attribute` names, over numbers; its predictions are the library's own."""
    pytest.importorskip(library.split()[0])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + 0.3 * rng.normal(size=600) > 0).astype(int)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    columns = {**dict.fromkeys(names(4), "float4"), "label": "int"}
    load_table(db, "points", columns, ([*map(float, r), int(t)] for r, t in zip(x, y, strict=True)))
    make = {
        "sklearn": "from sklearn.ensemble import GradientBoostingClassifier as M; model = M(random_state=0)",
        "lightgbm": "from lightgbm import LGBMClassifier as M; model = M(n_estimators=20, verbose=-1)",
        "xgboost": "from xgboost import XGBClassifier as M; model = M(n_estimators=20)",
        "lightgbm booster": "import lightgbm as b; model = b.train({'objective': 'binary', 'verbose': -1}, b.Dataset(x, y), 20)",
        "xgboost booster": "import xgboost as b; model = b.train({'objective': 'binary:logistic'}, b.DMatrix(x, y), 20)",
    }[library]
    is_booster = library.endswith("booster")
    fit = "" if is_booster else "model.fit(x, y)"
    code = f"import numpy as np\nwith np.load('rows.npz') as f: x, y = f['x'], f['y']\n{make}\n{fit}\n"
    (tmp_path / "mymodels.py").write_text(code)
    [registered] = run("register", "points", "mymodels:model", "--sample", "points", "--label", "label")
    assert registered["accuracy"] > 0.8
    space: dict[str, Any] = {}
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        exec(code, space)
    finally:
        os.chdir(here)
    model = space["model"]
    if is_booster:
        expected = model.predict(space["b"].DMatrix(x[:5]) if library.startswith("xgboost") else x[:5])
    else:
        expected = model.predict_proba(x[:5])[:, 1]
    found = [
        run("predict", "points", "--features", *map(repr, map(float, row)))[0]["probabilities"][1]
        for row in x[:2]
    ]
    assert np.abs(np.array(found) - expected[:2]).max() < 1e-5


def test_xgboost_and_lightgbm_over_named_columns(db: psycopg.Connection, tmp_path: Path) -> None:
    """The names that they were fitted on are the features, in their order."""
    pd = pytest.importorskip("pandas")
    from pg_distill.conversion.convert import convert

    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(300, 2)), columns=["amount", "age"])
    y = (table["amount"] > table["age"]).astype(int)
    lightgbm = pytest.importorskip("lightgbm").LGBMClassifier(n_estimators=5, verbose=-1).fit(table, y)
    assert convert(lightgbm, None, None).features == ("amount", "age")
    xgboost = pytest.importorskip("xgboost").XGBClassifier(n_estimators=5).fit(table, y)
    assert convert(xgboost, None, None).features == ("amount", "age")


def test_exit_codes(db: psycopg.Connection, run: Run, tmp_path: Path, server: servers.Server) -> None:
    assert run("models") == []
    run("predict", "nobody", "--features", "1", code=1)
    run("distill", "nobody", code=1)
    run("register", "x", "missing.onnx", code=1)
    run("register", "x", "no_such_module:model", code=1)
    (tmp_path / "broken.pkl").write_bytes(b"no pickle")
    run("register", "x", "broken.pkl", code=1)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    run("register", "x", "broken.onnx", code=1)
    run("distill", code=2)
    run("models", dsn="host=/nonexistent dbname=x connect_timeout=2", code=3)
    load_cancer(db)
    run(
        "distill",
        "cancer",
        "--patience",
        "1",
        "--families",
        "linear",
        "--target-latency-ms",
        "0.0001",
        code=4,
    )
    assert [row["accepted"] for row in run("runs")] == [False]


def test_distill_model_is_found_in_its_schema(db: psycopg.Connection, run: Run) -> None:
    db.execute("DROP EXTENSION pg_distill")
    db.execute('CREATE SCHEMA "100%s"')
    db.execute('CREATE EXTENSION pg_distill SCHEMA "100%s"')
    assert "22023" in run("distill", "m", "--time-budget-s", "-1", code=1, plain=True)


def test_what_json_has_no_number_for(db: psycopg.Connection, run: Run) -> None:
    db.execute("CREATE TABLE numbers AS SELECT i::float8 AS x, i % 2 AS label FROM generate_series(1, 200) i")
    db.execute("SELECT distill.register_sql_model('m', '0.5 + 0 * x', '{x}', 'numbers', 'label')")
    db.execute("UPDATE distill.models SET accuracy = 'NaN', avg_latency_ms = 'Infinity'")
    [found] = run("models")
    assert (found["accuracy"], found["avg_latency_ms"]) == ("NaN", "Infinity")


def test_a_model_card_says_what_answers(db: psycopg.Connection, run: Run, tmp_path: Path) -> None:
    """A cascade is no file: it is refused. The latency of a student in SQL form is that of its expression."""
    load_cancer(db)
    for form, threshold in (("sql", None), ("cascade", 0.9)):
        db.execute(
            "INSERT INTO distill.models (name, version, active, task, kind, artifact, sha256, size_bytes, input_schema,"
            " output_schema, teacher_id, form, threshold) SELECT %s, '1', true, task, kind, artifact, sha256, size_bytes,"
            " input_schema, output_schema, id, %s, %s FROM distill.models WHERE name = 'cancer'",
            (f"as_{form}", form, threshold),
        )
    assert "(0A000)" in run("export", "as_cascade", code=1, plain=True)
    assert list(tmp_path.iterdir()) == []
    for model, what in (("cancer", "predict"), ("as_sql", "SQL expression")):
        run("export", model)
        assert f"one row's {what} inside" in (tmp_path / f"{model}-1.md").read_text()


def test_without_psycopg_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None; from pg_distill.cli.main import main; sys.exit(main())"
    )
    for arguments, code in ((["models"], 7), (["--help"], 0), (["nothing"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={**os.environ, "PYTHONPATH": str(PYTHON)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert ("pg_distill[client]" in done.stderr) == (code == 7)


def test_a_terminal_sees_a_bar_and_an_interrupt_ends_the_statement(
    db: psycopg.Connection, server: servers.Server, database: str
) -> None:
    load_cancer(db)
    dsn = server.conninfo(dbname=database)
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pg_distill.cli", "distill", "cancer", "--time-budget-s", "60", "--dsn", dsn],
        env={**os.environ, "PYTHONPATH": str(PYTHON), "COLUMNS": "100"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 100
    while not re.search(rb"\[#+\.+\] +[1-9]\d?%  +\d+ s left  [a-z]", seen):
        assert time.monotonic() < deadline and process.poll() is None, seen
        seen += os.read(ours, 4096)
    assert b"distilling" in seen  # what the server says stands above the bar
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    os.close(ours)
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%distill_model(%' AND pid <> pg_backend_pid()"
    while db.execute(running).fetchone() != (0,):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert db.execute("SELECT count(*) FROM distill.runs").fetchone() == (0,)


def test_jobs_from_the_shell(db: psycopg.Connection, run: Run) -> None:
    load_cancer(db)
    [queued] = run("distill", "cancer", "--queue", "--patience", "1", "--families", "linear")
    [again] = run("distill", "cancer", "--queue")
    assert run("cancel", again["run_id"]) == [{"cancelled": True}]
    run("worker", "--once", plain=True)
    states = {row["run_id"]: row["state"] for row in run("jobs")}
    assert states == {queued["run_id"]: "done", again["run_id"]: "cancelled"}


def test_check_tells_by_its_exit_code(
    db: psycopg.Connection, server: servers.Server, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pg_distill.cli import main
    from pg_distill.cli.connection import DONE, NO_LONGER_HOLDS, REFUSED

    load_cancer(db)
    student_of_cancer(db, "small")
    db.execute("CREATE TABLE changed AS SELECT * FROM cancer")
    db.execute("UPDATE changed SET malignant = 1 - malignant")
    where = ["--dsn", server.conninfo(dbname=database), "--json"]
    for sample in ("cancer", "changed"):
        code = main.main(["check", "small", "--sample", sample, "--max-rows", "500", *where])
        rows = {row["figure"]: row for row in json.loads(capsys.readouterr().out)}
        # On a busy machine a latency may not hold.
        assert (code == NO_LONGER_HOLDS) == any(row["holds"] is False for row in rows.values())
        assert code in (DONE, NO_LONGER_HOLDS)
        assert 0 < rows["accuracy"]["row_count"] < 500  # without those that the run learned from
    assert rows["accuracy"]["holds"] is False
    assert main.main(["check", "nobody", *where]) == REFUSED


def test_prune(db: psycopg.Connection, run: Run) -> None:
    db.execute("CREATE TABLE numbers AS SELECT i::float8 AS x, i % 2 AS label FROM generate_series(1, 200) i")
    for version in ("1", "2"):
        db.execute(
            "SELECT distill.register_sql_model('m', %s, '{x}', 'numbers', 'label')",
            (f"0.5 + 0 * x * {version}",),
        )
    [listed] = [row for row in run("prune", "m", "--keep-versions", "1") if row["kind"] == "version"]
    assert (listed["name"], listed["version"], listed["pruned"]) == ("m", "1", False)
    assert len(run("models", "m")) == 2
    [removed] = run("prune", "m", "--keep-versions", "1", "--remove")
    assert (removed["version"], removed["pruned"]) == ("1", True)
    assert [row["version"] for row in run("models", "m")] == ["2"]
    run("prune", code=1)  # nothing says what is old
    run("prune", "--older-than", "x", code=1)


def test_doctor(server: servers.Server, run: Run, role: Callable[..., str], database: str) -> None:
    """It creates the extension, says what blocks it, and finds nothing to do afterwards."""
    fresh = "pg_distill_fresh"
    drop_database(server, fresh)
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {fresh} TEMPLATE template0 ENCODING 'UTF8'")
    try:
        low = role("low")
        dsn = server.conninfo(dbname=fresh)
        theirs = server.conninfo(dbname=fresh, user=low, password=low)
        checked = {row["check"]: row for row in run("init", "--check", dsn=dsn, code=29)}
        assert checked["extension"]["ok"] is False
        assert checked["extension"]["what to do"]
        refused = {row["check"]: row for row in run("init", dsn=theirs, code=28)}
        assert refused["privilege"]["ok"] is False
        made = run("init", dsn=dsn)
        assert all(row["ok"] for row in made)
        assert {"server", "PL/Python", "extension", "Python module"} <= {row["check"] for row in made}
        assert run("init", dsn=dsn) == made
        run("models", dsn=dsn)
    finally:
        drop_database(server, fresh)


def test_every_command_has_help_and_the_entry_point_is_there(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    import tomllib

    from pg_distill.cli.main import COMMANDS, main

    project = tomllib.loads((PYTHON / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"pg-distill": "pg_distill.cli.main:main"}
    assert "usage" in run("--help", plain=True)
    for name in COMMANDS:  # in this process: a program takes a second to start
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert f"usage: pg-distill {name}" in capsys.readouterr().out
