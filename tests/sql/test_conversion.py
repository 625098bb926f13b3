"""What pg-distill register makes of a model predicts through SQL as the model's own library, or nothing is registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import pipelines
import psycopg
import pytest
import servers
from pg_distill.cli import main
from sql.conftest import load_table

TYPES = {"i": "bigint", "f": "float8", "b": "boolean"}


@pytest.fixture
def register(
    server: servers.Server, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run pg-distill register: register(name, model or file, ..., code=0) gives what it printed to standard error."""
    import joblib

    for module in ("skl2onnx", "pandas"):
        pytest.importorskip(module)

    def run(name: str, model: Any, *arguments: str, code: int = 0) -> str:
        path = model
        if not isinstance(model, Path):
            path = tmp_path / f"{name}.joblib"
            joblib.dump(model, path)
        given = ["register", name, str(path), *arguments, "--dsn", server.conninfo(dbname=database), "--json"]
        capsys.readouterr()
        done = main.main(given)
        said = capsys.readouterr()
        assert done == code, said.err
        return said.err

    return run


def load(db: psycopg.Connection, name: str, table: Any, **more: Any) -> None:
    """Load a data frame, and more columns, as a table with a key."""
    table = table.assign(**more)
    columns = {c: TYPES.get(table[c].dtype.kind, "text") for c in table}
    values = [pipelines.values_of(table, c) for c in table]
    load_table(db, name, {"id": "int", **columns}, zip(range(len(table)), *values, strict=True))


def predicted(db: psycopg.Connection, model: str, table: str, function: str = "predict_proba") -> Any:
    query = f"SELECT distill.{function}(%s, to_jsonb(t)) FROM {table} t ORDER BY id"
    found = [row[0] for row in db.execute(query, (model,)).fetchall()]
    return np.array(found, object if function == "predict_class" else float)


def origin(db: psycopg.Connection, model: str) -> dict[str, Any]:
    [row] = db.execute("SELECT origin FROM distill.models WHERE name = %s", (model,)).fetchall()
    return dict(row[0])


def test_a_pipeline_predicts_as_it_does_in_python(db: psycopg.Connection, register: Any) -> None:
    """Texts and integers with NULL, truth values, a column of another type that is dropped: every row, and the registry says so."""
    fitted = pipelines.fitted("imputed and scaled numbers, one-hot texts, logistic")
    load(db, "people", fitted.rows, y=pipelines.rows()["by_city"])
    db.execute("ALTER TABLE people ADD COLUMN notes jsonb DEFAULT '{}', DROP COLUMN seen")
    register("m", fitted.model, "--sample", "people", "--label", "y")
    expected = fitted.model.predict_proba(fitted.rows)
    assert np.abs(predicted(db, "m", "people") - expected).max() < 1e-9
    assert predicted(db, "m", "people", "predict_class").tolist() == [str(c) for c in expected.argmax(axis=1)]
    said = origin(db, "m")
    assert said["library"].startswith("scikit-learn ")
    assert (said["rows"], said["other_class"], said["holds"]) == (pipelines.ROWS, 0, True)
    assert said["largest_difference"] < 1e-9
    # What the pipeline does not read is not asked for.
    lean = "SELECT id, to_jsonb(t) - '{visits,member,notes,id,y}'::text[] AS row FROM people t"
    found = db.execute(f"SELECT distill.predict('m', l.row) FROM ({lean}) l ORDER BY id").fetchall()
    assert np.abs(np.array(found)[:, 0] - expected[:, 1]).max() < 1e-9


def test_numbers_past_float32_keep_their_digits(db: psycopg.Connection, register: Any) -> None:
    fitted = pipelines.fitted("seconds since 1970, deep forest")
    held = pipelines.rows()["by_time"]
    load(db, "visits", fitted.rows[["seen", "a"]], y=held)
    db.execute("ALTER TABLE visits ALTER seen TYPE timestamptz USING to_timestamp(seen)")
    said = register("m", fitted.model, "--sample", "SELECT id, seen, a, y FROM visits", "--label", "y")
    assert "warning" not in said
    expected = fitted.model.predict_proba(fitted.rows)
    assert np.abs(predicted(db, "m", "visits") - expected).max() < 1e-6
    arrays = db.execute(
        "SELECT distill.predict('m', ARRAY[a, extract(epoch FROM seen)]::float8[]) FROM visits ORDER BY id"
    ).fetchall()
    assert np.abs(np.array(arrays)[:, 0] - expected[:, 1]).max() < 1e-6


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_native_categories_are_texts_in_the_table(
    db: psycopg.Connection, register: Any, tmp_path: Path, library: str
) -> None:
    """From the library's own file, with NULL and under other names where LightGBM changes them."""
    pytest.importorskip(library)
    fitted = pipelines.fitted({"lightgbm": "LightGBM, categories", "xgboost": "XGBoost, categories"}[library])
    path = tmp_path / {"lightgbm": "m.txt", "xgboost": "m.ubj"}[library]
    (fitted.model.booster_ if library == "lightgbm" else fitted.model).save_model(str(path))
    load(db, "people", fitted.rows, y=pipelines.rows()["by_city"])
    register("m", path, "--sample", "people", "--label", "y")
    import pandas as pd

    known = ["Bonn", "Lima", "Oslo", "Rome"]
    table = fitted.rows.assign(city=pd.Categorical(fitted.rows["city"], categories=known))
    assert np.abs(predicted(db, "m", "people") - fitted.model.predict_proba(table)).max() < 1e-6
    assert origin(db, "m")["holds"]


def test_blanks_in_lightgbms_names(db: psycopg.Connection, register: Any) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    held = pipelines.rows()
    table = held["numbers"][["a", "b"]].set_axis(["body mass", "Age (years)"], axis=1)
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(table, held["two"])
    load(db, "people", table, y=held["two"])
    register("m", model, "--sample", "people", "--label", "y")
    assert np.abs(predicted(db, "m", "people") - model.predict_proba(table)).max() < 1e-6


def test_a_model_that_would_predict_otherwise_leaves_nothing(db: psycopg.Connection, register: Any) -> None:
    """A support vector machine decides by votes, beside its probabilities: the row that shows it is in the error."""
    fitted = pipelines.fitted("SVC(probability=True), three classes, decides by votes")
    load(db, "points", fitted.rows, y=pipelines.rows()["three"])
    said = register("m", fitted.model, "--sample", "points", "--label", "y", code=1)
    assert "(22000)" in said
    assert 'class "' in said
    assert '{"a": ' in said
    assert "--allow-difference" in said
    assert db.execute("SELECT count(*) FROM distill.models").fetchone() == (0,)
    assert "warning" in register(
        "m", fitted.model, "--sample", "points", "--label", "y", "--allow-difference"
    )
    found = origin(db, "m")
    assert not found["holds"]
    assert found["other_class"] > 0
    labels = predicted(db, "m", "points", "predict_class")
    assert int((labels != fitted.model.predict(fitted.rows)).sum()) == found["other_class"]


def test_a_threshold_that_was_tuned_is_followed(db: psycopg.Connection, register: Any) -> None:
    """By every way to a class, by the accuracy that is recorded, and by what a distillation says of its teacher."""
    fitted = pipelines.fitted("FixedThresholdClassifier")
    label = pipelines.rows()["by_city"]
    load(db, "people", fitted.rows, y=label)
    register("m", fitted.model, "--sample", "people", "--label", "y")
    classes = fitted.model.predict(fitted.rows)
    half = (fitted.model.predict_proba(fitted.rows)[:, 1] > 0.5).astype(int)
    assert (classes != half).sum() > 20
    assert predicted(db, "m", "people", "predict_class").tolist() == [str(c) for c in classes]
    scored = db.execute(
        "SELECT s.* FROM distill.score_class('m', 'people', 'id') s ORDER BY s.key::int"
    ).fetchall()
    assert [row[1] for row in scored] == [str(c) for c in classes]
    found = db.execute("SELECT class_threshold, accuracy FROM distill.models").fetchone()
    assert found == (0.3, pytest.approx((classes == label).mean()))
    db.execute(
        "SELECT distill_model('m', families => '{linear}', time_budget_s => 3, patience => 1, min_accuracy => 0)"
    )
    [run] = db.execute("SELECT teacher_accuracy, run_id::text FROM distill.runs").fetchall()
    rows = db.execute(
        "SELECT r->>'id' FROM (SELECT x.\"row\" AS r FROM distill.run_rows(%s) x WHERE x.split = 'test') s",
        (run[1],),
    ).fetchall()
    test = np.array([int(row[0]) for row in rows])
    assert run[0] == pytest.approx((classes[test] == label[test]).mean())


@pytest.mark.parametrize(
    ("columns", "sqlstate"),
    [
        (
            "a, b, c, d, e, city, member::int::text AS device",
            None,
        ),  # texts that no encoder knows: as the library says
        ("a::text, b, c, d, e, city, device", "42804"),
        ("a, b, c, d, e, visits AS city, device", "42804"),
        ("a, b, c, d, e, ARRAY[city] AS city, device", "42804"),
        ("a, b, c, d, e, city", "42703"),
    ],
)
def test_columns_that_do_not_fit(
    db: psycopg.Connection, register: Any, columns: str, sqlstate: str | None
) -> None:
    fitted = pipelines.fitted("imputed and scaled numbers, one-hot texts, logistic")
    load(db, "people", fitted.rows, y=pipelines.rows()["by_city"])
    query = f"SELECT {columns}, y FROM people"
    said = register("m", fitted.model, "--sample", query, "--label", "y", code=1 if sqlstate else 0)
    if sqlstate:
        assert f"({sqlstate})" in said
        assert len(said.strip().splitlines()) == 2  # the sentence, and what to do


def test_a_row_that_the_library_refuses(db: psycopg.Connection, register: Any) -> None:
    """A category that an encoder does not know, NULL where nothing imputes it: as an error, and not as an answer."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    held = pipelines.rows()
    whole = held["whole"][["a", "city"]]
    step = ColumnTransformer([("n", "passthrough", ["a"]), ("t", OneHotEncoder(), ["city"])])
    model = make_pipeline(step, LogisticRegression()).fit(whole, held["by_city"])
    load(db, "people", whole, y=held["by_city"])
    load(db, "others", whole.replace({"city": {"Oslo": "Paris"}}), y=held["by_city"])
    said = register("m", model, "--sample", "others", "--label", "y", code=1)
    assert "(22000)" in said
    assert "Paris" in said
    register("m", model, "--sample", "people", "--label", "y")
    with pytest.raises(psycopg.errors.NullValueNotAllowed):
        db.execute("""SELECT distill.predict('m', '{"a": null, "city": "Oslo"}'::jsonb)""")


def test_other_integers_than_float64_holds(db: psycopg.Connection, register: Any) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    held = pipelines.rows()
    ids = held["whole"][["visits"]] + 1_145_678_901_234_567_801
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(ids, held["by_city"])
    load(db, "posts", ids, y=held["by_city"])
    said = register("m", model, "--sample", "posts", "--label", "y", code=1)
    assert "2**53" in said
    assert "::text" in said


# -- files, with a column that says what they are to predict


def load_export(db: psycopg.Connection, name: str) -> models.Exported:
    """Load an export's rows as a table with columns of what its framework says."""
    exported = models.exported(name)
    names = [f.name for f in exported.frame.features]
    columns = [exported.frame.number(n).tolist() for n in names]
    best = exported.expected.argmax(axis=1)
    labels = [exported.classes[i] for i in best] if exported.classes else [""] * len(best)
    told = exported.expected[:, -1].tolist()
    load_table(
        db,
        "points",
        {"id": "int", **dict.fromkeys(names, "float8"), "told": "float8", "class": "text"},
        zip(range(len(told)), *columns, told, labels, strict=True),
    )
    return exported


EXPECT = (
    "SELECT distill.register_model('m', %s, %s, 'points', task => %s, expected => %s, allow_difference => %s)"
)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("sklearn logistic", "told"),
        ("sklearn logistic", "class"),
        ("sklearn logistic, 3 classes", "class"),
        ("sklearn ridge", "told"),
    ],
)
def test_expected_predictions(db: psycopg.Connection, name: str, column: str) -> None:
    """A probability, a class or a value: one row that says otherwise is enough, and is in the error."""
    exported = load_export(db, name)
    names = [f.name for f in exported.frame.features]
    db.execute(EXPECT, (exported.artifact, names, exported.task, column, False))
    said = origin(db, "m")
    assert (said["column"], said["rows"], said["holds"]) == (column, len(exported.frame), True)
    wrong = "CASE told > 0.5 WHEN true THEN 0.1 ELSE 0.9 END" if exported.classes else "told + 1"
    if column == "class":
        wrong = "(SELECT p.class FROM points p WHERE p.class <> points.class LIMIT 1)"
    db.execute(f"UPDATE points SET {column} = {wrong} WHERE id = 123")
    with pytest.raises(psycopg.errors.DataException) as caught:
        db.execute(EXPECT, (exported.artifact, names, exported.task, column, False))
    assert caught.value.sqlstate == "22000"
    [shown] = db.execute("SELECT x0::text FROM points WHERE id = 123").fetchone() or ()
    assert shown[:8] in (caught.value.diag.message_detail or "")
    assert "allow_difference" in (caught.value.diag.message_hint or "")
    assert db.execute("SELECT count(*) FROM distill.models").fetchone() == (1,)
    db.execute(EXPECT, (exported.artifact, names, exported.task, column, True))
    assert not json.loads(
        db.execute("SELECT origin::text FROM distill.models WHERE version = '2'").fetchone()[0]  # type: ignore[index]
    )["holds"]


@pytest.mark.parametrize(
    ("column", "error"),
    [
        ("nothing", psycopg.errors.UndefinedColumn),
        ("id", psycopg.errors.DataException),  # no class of that name
    ],
)
def test_what_is_no_expected_prediction(
    db: psycopg.Connection, column: str, error: type[psycopg.Error]
) -> None:
    exported = load_export(db, "sklearn logistic")
    names = [f.name for f in exported.frame.features]
    with pytest.raises(error):
        db.execute(EXPECT, (exported.artifact, names, exported.task, column, False))


def test_which_columns_were_taken_is_said(db: psycopg.Connection) -> None:
    exported = load_export(db, "sklearn logistic")
    told: list[str] = []
    db.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
    db.execute(
        "SELECT distill.register_model('m', %s, sample => 'SELECT x5, x4, x3, x2, x1, x0, told FROM points', expected => 'told',"
        " allow_difference => true)",
        (exported.artifact,),
    )
    assert any("x5, x4, x3, x2, x1, x0" in text for text in told)
