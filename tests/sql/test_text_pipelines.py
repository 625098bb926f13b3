"""scikit-learn's text pipelines predict through SQL as they do in Python, or nothing is registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import servers
import text_graphs
import text_pipelines
from pg_distill.cli import main
from sql.conftest import load_table

pytest.importorskip("sklearn")


@pytest.fixture
def register(
    server: servers.Server, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run pg-distill register: register(name, model, ..., code=0) gives what it printed to standard error."""
    import joblib

    def run(name: str, model: Any, *arguments: str, code: int = 0) -> str:
        path = tmp_path / f"{name}.joblib"
        joblib.dump(model, path)
        capsys.readouterr()
        given = ["register", name, str(path), *arguments, "--dsn", server.conninfo(dbname=database), "--json"]
        done = main.main(given)
        said = capsys.readouterr()
        assert done == code, said.err
        return said.err

    return run


def load(db: psycopg.Connection, name: str, texts: list[Any]) -> None:
    columns = {"id": "int", "body": "text", "amount": "float8", "shop": "text", "y": "int"}
    more = text_pipelines.amounts([text or "" for text in texts])
    load_table(db, name, columns, zip(range(len(texts)), texts, *more, strict=True))


def predicted(db: psycopg.Connection, model: str, query: str) -> np.ndarray:
    rows = db.execute(
        f"SELECT distill.predict_proba(%s, to_jsonb(t)) FROM ({query}) t ORDER BY t.id", (model,)
    ).fetchall()
    return np.array([row[0] for row in rows])


def test_vectorizers_read_texts_as_in_python(db: psycopg.Connection, register: Any) -> None:
    """On every kind of text, and on one of a megabyte; all vectorizers are in the units."""
    texts = text_pipelines.mails()
    load(db, "mails", texts)
    others = [*text_pipelines.AWKWARD, text_pipelines.MILLION]
    load(db, "others", others)
    steps = text_pipelines.vectorizers()
    for name in ("everything",):
        model = text_pipelines.fitted(steps[name])
        register(name, model, "--sample", "SELECT id, body, y FROM mails", "--label", "y")
        expected = model.predict_proba(texts)
        found = predicted(db, name, "SELECT id, body FROM mails")
        assert np.abs(found - expected).max() < 1e-9, name
        found = predicted(db, name, "SELECT id, body FROM others")
        assert np.abs(found - model.predict_proba(others)).max() < 1e-9, name
    kinds = db.execute(
        "SELECT DISTINCT f->>'name', f->>'kind', f->>'null' FROM distill.models, jsonb_array_elements(input_schema->'features') f"
    ).fetchall()
    assert kinds == [("body", "text", "error")]


@pytest.mark.parametrize("last", ["linear", "trees"])
def test_texts_beside_numbers_and_categories(db: psycopg.Connection, register: Any, last: str) -> None:
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, OneHotEncoder

    texts = text_pipelines.mails()
    amount, shops, y = text_pipelines.amounts(texts)
    rows = pd.DataFrame({"body": texts, "amount": amount, "shop": shops, "title": texts[::-1]})
    columns = ColumnTransformer(
        [
            ("shop", OneHotEncoder(), ["shop"]),
            ("body", TfidfVectorizer(ngram_range=(1, 2)), "body"),
            ("amount", MinMaxScaler(), ["amount"]),
            ("title", CountVectorizer(analyzer="char_wb", ngram_range=(3, 3)), "title"),
        ]
    )
    final = {
        "linear": LogisticRegression(),
        "trees": RandomForestClassifier(20, max_depth=6, random_state=0),
    }[last]
    model = make_pipeline(columns, final).fit(rows, y)
    load(db, "mails", texts)
    db.execute(
        "CREATE VIEW mail AS SELECT *, (SELECT body FROM mails o WHERE o.id = 399 - m.id) AS title FROM mails m"
    )
    register("m", model, "--sample", "mail", "--label", "y")
    assert np.abs(predicted(db, "m", "SELECT * FROM mail") - model.predict_proba(rows)).max() < 1e-6
    kinds = dict(
        db.execute(
            "SELECT f->>'name', f->>'kind' FROM distill.models, jsonb_array_elements(input_schema->'features') f"
        ).fetchall()
    )
    assert kinds == {"body": "text", "title": "text", "shop": "string", "amount": "number"}
    scored = db.execute("SELECT count(*), avg(prediction) FROM distill.score('m', 'mail', 'id')").fetchone()
    assert scored is not None and scored[0] == 400
    assert scored[1] == pytest.approx(float(model.predict_proba(rows)[:, 1].mean()), abs=1e-6)


def test_several_labels_of_a_text(db: psycopg.Connection, register: Any) -> None:
    """What the pipeline says of a text, its names in the order of the indicators' columns."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    texts = text_pipelines.mails()
    columns = {"id": "int", "body": "text", "tags": "text[]"}
    named = ("a", "long", "refund")
    has = np.array([["a" in t, len(t) > 60, "refund" in t] for t in texts]).astype(int)
    assert (has.mean(axis=0) > 0).all() and (has.mean(axis=0) < 1).all()
    tags = [[name for name, bit in zip(named, row, strict=True) if bit] for row in has.tolist()]
    load_table(db, "mails", columns, zip(range(len(texts)), texts, tags, strict=True))
    model = make_pipeline(TfidfVectorizer(), OneVsRestClassifier(LogisticRegression())).fit(texts, has)
    given = ("--sample", "SELECT id, body, tags FROM mails", "--label", "tags")
    # The pipeline knows its labels by their places only.
    assert "22" in register("nameless", model, *given, code=1)
    register("m", model, *given, "--classes", ",".join(named))
    assert np.abs(predicted(db, "m", "SELECT id, body FROM mails") - model.predict_proba(texts)).max() < 1e-9
    rows = db.execute(
        "SELECT distill.predict_classes('m', jsonb_build_object('body', body)) FROM mails ORDER BY id"
    )
    said = [
        [name for name, bit in zip(named, row, strict=True) if bit] for row in model.predict(texts).tolist()
    ]
    assert [row[0] for row in rows] == said
    found = db.execute("SELECT task, metric, accuracy FROM distill.models WHERE name = 'm'").fetchone()
    assert found is not None and found[:2] == ("multilabel", "f1_micro")


def test_null_is_refused_as_the_pipeline_refuses_it(db: psycopg.Connection, register: Any) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = text_pipelines.mails()
    load(db, "mails", [*texts[:-1], None])
    model = text_pipelines.fitted(TfidfVectorizer())
    sample = "SELECT id, body, y FROM mails"
    assert "22000" in register("m", model, "--sample", sample, "--label", "y", code=1)
    whole = "SELECT id, coalesce(body, '') AS body, y FROM mails"
    register("m", model, "--sample", whole, "--label", "y")
    assert np.abs(predicted(db, "m", whole) - model.predict_proba([*texts[:-1], ""])).max() < 1e-9
    for call in (
        "SELECT distill.predict('m', '{\"body\": null}'::jsonb)",
        "SELECT distill.predict('m', '{}'::float8[], ARRAY[NULL]::text[])",
        f"SELECT * FROM distill.score('m', '{sample}', 'id')",
    ):
        with pytest.raises(psycopg.Error) as caught:
            db.execute(call)
        assert caught.value.sqlstate == "22004", call


def test_code_of_somebody_else_is_refused(db: psycopg.Connection, register: Any) -> None:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    load(db, "mails", text_pipelines.mails())
    model = text_pipelines.fitted(CountVectorizer(analyzer=str.split))
    said = register("m", model, "--sample", "SELECT id, body, y FROM mails", "--label", "y", code=1)
    assert "0A000" in said and len(said.strip().splitlines()) > 1
    # A column of numbers is none of texts.
    model = text_pipelines.fitted(TfidfVectorizer())
    assert "42804" in register("m", model, "--sample", "mails", "--features", "amount", code=1)
    assert db.execute("SELECT count(*) FROM distill.models").fetchone() == (0,)


def test_a_text_pipeline_teaches(db: psycopg.Connection, register: Any) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = text_pipelines.mails(600)
    load(db, "mails", texts)
    register(
        "m",
        text_pipelines.fitted(TfidfVectorizer()),
        "--sample",
        "SELECT id, body, y FROM mails",
        "--label",
        "y",
    )
    db.execute(
        "SELECT distill_model('m', target_latency_ms => 100, min_accuracy => 0, time_budget_s => 40, patience => 1, families => '{linear}')"
    )
    found = db.execute(
        "SELECT f->>'kind' FROM distill.models, jsonb_array_elements(input_schema->'features') f ORDER BY name"
    ).fetchall()
    assert found == [("text",), ("text",)]
    alike = db.execute(
        "SELECT corr(distill.predict('m', to_jsonb(t)), distill.predict('m_distilled', to_jsonb(t))) FROM mails t"
    ).fetchone()
    assert alike is not None and alike[0] > 0.7


def test_a_long_text_can_be_interrupted_and_has_a_limit(db: psycopg.Connection, register: Any) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = text_pipelines.mails()
    load(db, "mails", texts)
    model = text_pipelines.fitted(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 4), strip_accents="unicode")
    )
    register("m", model, "--sample", "SELECT id, body, y FROM mails", "--label", "y")
    db.execute("SET statement_timeout = '200ms'")
    with pytest.raises(psycopg.Error) as caught:
        db.execute(
            "SELECT distill.predict('m', jsonb_build_object('body', repeat('zü' || md5(i::text), 30000)))"
            " FROM generate_series(1, 100) i"
        )
    assert caught.value.sqlstate == "57014"
    db.execute("RESET statement_timeout")
    with pytest.raises(psycopg.Error) as caught:
        db.execute("SELECT distill.predict('m', jsonb_build_object('body', repeat('x', 1048577)))")
    assert caught.value.sqlstate == "54000"


def test_an_exporters_own_file_reads_texts(db: psycopg.Connection) -> None:
    """skl2onnx's nodes, on the texts that they read as scikit-learn does; a text that would take too long is refused."""
    pytest.importorskip("skl2onnx")
    from sklearn.feature_extraction.text import TfidfVectorizer

    model, file = text_graphs.exported(TfidfVectorizer(ngram_range=(1, 2)))
    texts = [*text_graphs.FITTED, "", "REFUND, late!"]
    load_table(db, "mails", {"id": "int", "body": "text"}, enumerate(texts))
    db.execute("SELECT distill.register_model('m', %s, '{body}', 'SELECT body FROM mails')", (file,))
    found = predicted(db, "m", "SELECT * FROM mails")
    assert np.abs(found - model.predict_proba(texts)).max() < 1e-5
    batch = db.execute("SELECT count(*) FROM distill.score('m', 'mails', 'id')").fetchone()
    assert batch == (len(texts),)
    for call in (
        "SELECT distill.predict('m', jsonb_build_object('body', repeat('refund ', 1000000)))",
        "SELECT count(*) FROM distill.score('m', $$SELECT 1 AS id, repeat('refund ', 1000000) AS body$$, 'id')",
    ):
        with pytest.raises(psycopg.Error) as caught:
            db.execute(call)
        assert caught.value.sqlstate == "54000", call
    for name, node in (
        ("pools", text_graphs.ngrams("flattened", ngram_indexes=[-1, *range(1, 8)])),
        ("grams", text_graphs.ngrams("flattened", max_gram_length=2**62)),
    ):
        with pytest.raises(psycopg.Error) as caught:
            db.execute(
                "SELECT distill.register_model(%s, %s, '{body}', task => 'regression')",
                (name, text_graphs.pipeline(count=node)),
            )
        assert caught.value.sqlstate == {"pools": "22P03", "grams": "0A000"}[name]
    square = text_graphs.pipeline(text_graphs.tokenizer("lower", tokenexp="[a-z]|[a-z].*Q"))
    with pytest.raises(psycopg.Error) as caught:
        db.execute("SELECT distill.register_model('square', %s, '{body}', task => 'regression')", (square,))
    assert caught.value.sqlstate == "0A000"


@pytest.mark.extra  # twenty seconds: a budget that leaves time to make texts
def test_a_pipeline_labels_texts_that_were_made_for_a_student(db: psycopg.Connection, register: Any) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    load(db, "mails", text_pipelines.mails())
    sample = "SELECT id, body, y FROM mails"
    register("m", text_pipelines.fitted(TfidfVectorizer()), "--sample", sample, "--label", "y")
    db.execute(
        "SELECT distill_model('m', sample => %s, families => '{linear}', time_budget_s => 60, patience => 3,"
        " min_accuracy => 0)",
        (sample,),
    )
    candidates = db.execute(
        "SELECT configuration->'transfer_set', (configuration->>'rows')::int FROM distill.candidates"
        " WHERE run_id = distill.last_run('m') AND size_bytes IS NOT NULL AND NOT is_control AND configuration ? 'rows'"
    ).fetchall()
    real = [rows for recipe, rows in candidates if recipe.keys() == {"real"}]
    made = [rows for recipe, rows in candidates if {"word_dropout", "span_exchange"} <= recipe.keys()]
    assert real and made, candidates
    assert min(made) > 1.5 * max(real)
