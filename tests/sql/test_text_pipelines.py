"""scikit-learn's text pipelines predict through SQL as they do in Python, or nothing is registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import servers
from pg_distill.cli import main
from sql.conftest import load_table

pytest.importorskip("sklearn")

WORDS = (
    "Refund refund REFUND broken thanks late great invoice not the a don't e-mail zürich ÉTÉ été naïve straße STRASSE İstanbul "
    "москва МОСКВА 東京 京都 ไทย 😀 👩‍💻 ﬁn x1 42 _under_ co-op ΣΑΣ σας"
).split()
AWKWARD = (
    "",
    " ",
    "a",
    "\n\t\r\u3000\u00a0",
    "😀",
    "refund",
    "e\u0301te\u0301 ÉTÉ",
    "ﷺ ﬁ ½ ²",
    "don't e-mail co-op",
    "\u202erefund\u202c \ufeff",
    "\x01\x1f<NULL>",
    "İI ıi ΑΣ",
    "x" * 5000,
    "'; DROP TABLE mails; --",
)


def mails(n: int = 400, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(n)]
    amount = np.round(rng.gamma(2, size=n), 3)
    shops = [str(s) for s in rng.choice(["north", "south"], n)]
    score = np.array([("efund" in t) + ("not" in t) - ("great" in t) for t in texts]) + (amount > 2)
    return texts, amount, (score > 0).astype(int), shops


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


def load(db: psycopg.Connection, name: str, texts: list[Any], *more: Any) -> None:
    columns = {"id": "int", "body": "text", "amount": "float8", "shop": "text", "y": "int"}
    load_table(db, name, columns, zip(range(len(texts)), texts, *more, strict=True))


def predicted(db: psycopg.Connection, model: str, query: str) -> np.ndarray:
    rows = db.execute(
        f"SELECT distill.predict_proba(%s, to_jsonb(t)) FROM ({query}) t ORDER BY t.id", (model,)
    ).fetchall()
    return np.array([row[0] for row in rows])


def make(step: Any, last: Any = None) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, _, y, _ = mails()
    return make_pipeline(step, last or LogisticRegression()).fit(texts, y)


def vectorizers() -> dict[str, Any]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import (
        CountVectorizer,
        HashingVectorizer,
        TfidfTransformer,
        TfidfVectorizer,
    )
    from sklearn.feature_selection import SelectKBest, chi2
    from sklearn.pipeline import FeatureUnion, make_pipeline

    return {
        "tf-idf": TfidfVectorizer(),
        "everything": TfidfVectorizer(
            ngram_range=(1, 3),
            sublinear_tf=True,
            stop_words=["the", "not"],
            strip_accents="unicode",
            min_df=2,
        ),
        "english": TfidfVectorizer(stop_words="english", norm="l1", use_idf=False),
        "as it stands": CountVectorizer(lowercase=False, token_pattern=r"[\w'-]+", binary=True),
        "ascii": TfidfVectorizer(strip_accents="ascii", ngram_range=(2, 2)),
        "characters": TfidfVectorizer(analyzer="char", ngram_range=(1, 3)),
        "inside words": CountVectorizer(analyzer="char_wb", ngram_range=(2, 4)),
        "hash": HashingVectorizer(),
        "hash of counts": HashingVectorizer(n_features=64, norm=None, alternate_sign=False),
        "hash and idf": make_pipeline(
            HashingVectorizer(n_features=256, alternate_sign=False), TfidfTransformer()
        ),
        "in two steps": make_pipeline(CountVectorizer(), TfidfTransformer(sublinear_tf=True)),
        "two": FeatureUnion(
            [("words", TfidfVectorizer()), ("parts", TfidfVectorizer(analyzer="char", ngram_range=(2, 3)))]
        ),
        "reduced": make_pipeline(TfidfVectorizer(), TruncatedSVD(5, random_state=0)),
        "selected": make_pipeline(TfidfVectorizer(), SelectKBest(chi2, k=10)),
    }


def test_vectorizers_read_texts_as_in_python(db: psycopg.Connection, register: Any) -> None:
    """Every one, on every kind of text, and on one of a megabyte."""
    texts, amount, y, shops = mails()
    load(db, "mails", texts, amount, shops, y)
    million = ("Refund not zürich 東京 " * 60_000)[: 1 << 20]
    others = [*AWKWARD, million, *mails(40, 1)[0]]
    n = len(others)
    load(db, "others", others, [0.5] * n, ["north"] * n, [0] * n)
    for name, step in vectorizers().items():
        model = make(step)
        register(name, model, "--sample", "SELECT id, body, y FROM mails", "--label", "y")
        expected = model.predict_proba(texts)
        found = predicted(db, name, "SELECT id, body FROM mails")
        assert np.abs(found - expected).max() < 1e-9, name
        found = predicted(db, name, "SELECT id, body FROM others")
        assert np.abs(found - model.predict_proba(others)).max() < 1e-9, name
    rows = db.execute("SELECT DISTINCT input_schema->'features' FROM distill.models").fetchall()
    assert rows == [([{"kind": "text", "name": "body", "null": "error"}],)]


@pytest.mark.parametrize("last", ["linear", "trees", "bayes", "calibrated"])
def test_texts_beside_numbers_and_categories(db: psycopg.Connection, register: Any, last: str) -> None:
    import pandas as pd
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, OneHotEncoder
    from sklearn.svm import LinearSVC

    texts, amount, y, shops = mails()
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
        "bayes": MultinomialNB(),
        "calibrated": CalibratedClassifierCV(LinearSVC(), cv=2),
    }[last]
    model = make_pipeline(columns, final).fit(rows, y)
    load(db, "mails", texts, amount, shops, y)
    db.execute(
        "CREATE VIEW mail AS SELECT *, (SELECT body FROM mails o WHERE o.id = 399 - m.id) AS title FROM mails m"
    )
    register("m", model, "--sample", "mail", "--label", "y")
    assert np.abs(predicted(db, "m", "SELECT * FROM mail") - model.predict_proba(rows)).max() < 1e-9
    kinds = dict(
        db.execute(
            "SELECT f->>'name', f->>'kind' FROM distill.models, jsonb_array_elements(input_schema->'features') f"
        ).fetchall()
    )
    assert kinds == {"body": "text", "title": "text", "shop": "string", "amount": "number"}
    scored = db.execute("SELECT count(*), avg(prediction) FROM distill.score('m', 'mail', 'id')").fetchone()
    assert scored is not None and scored[0] == 400
    assert scored[1] == pytest.approx(float(model.predict_proba(rows)[:, 1].mean()), abs=1e-9)


def test_null_is_refused_as_the_pipeline_refuses_it(db: psycopg.Connection, register: Any) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, amount, y, shops = mails()
    load(db, "mails", [*texts[:-1], None], amount, shops, y)
    model = make(TfidfVectorizer())
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


def double(text: str) -> str:
    return text + text


def test_code_of_somebody_else_is_refused(db: psycopg.Connection, register: Any) -> None:
    from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer

    texts, amount, y, shops = mails()
    load(db, "mails", texts, amount, shops, y)
    for step in (
        TfidfVectorizer(tokenizer=str.split, token_pattern=None),
        CountVectorizer(analyzer=str.split),
        CountVectorizer(preprocessor=double),
        TfidfVectorizer(strip_accents=double),
        CountVectorizer(token_pattern=r"(?u)\b(\w)\w+\b"),
        CountVectorizer(token_pattern=r"(\w+)+"),
        CountVectorizer(token_pattern=r"\w+|[^\w\s]"),
        HashingVectorizer(n_features=1 << 22),
    ):
        said = register("m", make(step), "--sample", "SELECT id, body, y FROM mails", "--label", "y", code=1)
        assert "0A000" in said and len(said.strip().splitlines()) > 1
    assert db.execute("SELECT count(*) FROM distill.models").fetchone() == (0,)
    # A column of numbers is none of texts.
    said = register("m", make(TfidfVectorizer()), "--sample", "mails", "--features", "amount", code=1)
    assert "42804" in said


def test_a_text_pipeline_teaches(db: psycopg.Connection, register: Any) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, amount, y, shops = mails(600)
    load(db, "mails", texts, amount, shops, y)
    register("m", make(TfidfVectorizer()), "--sample", "SELECT id, body, y FROM mails", "--label", "y")
    db.execute(
        "SELECT distill_model('m', target_latency_ms => 100, min_accuracy => 0.5, budget_seconds => 3, families => '{linear}')"
    )
    [(family, kinds)] = db.execute(
        "SELECT r.family, (SELECT array_agg(f->>'kind') FROM jsonb_array_elements(m.input_schema->'features') f)"
        " FROM distill.run_report(distill.last_run('m')) r JOIN distill.models m ON m.name = 'm_distilled'"
    ).fetchall()
    assert (family, kinds) == ("linear", ["text"])


def test_a_long_text_can_be_interrupted_and_has_a_limit(db: psycopg.Connection, register: Any) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, amount, y, shops = mails()
    load(db, "mails", texts, amount, shops, y)
    model = make(TfidfVectorizer(analyzer="char", ngram_range=(1, 16), strip_accents="unicode"))
    register("m", model, "--sample", "SELECT id, body, y FROM mails", "--label", "y")
    db.execute("SET statement_timeout = '300ms'")
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
