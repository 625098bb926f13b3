"""Pipelines that read texts: their vectorizers in Python are scikit-learn's, and no settings that somebody forged are run."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

pytest.importorskip("sklearn")

import text_pipelines
from pg_distill.conversion.convert import convert
from pg_distill.errors import (
    FeatureNotSupported,
    InvalidArtifact,
    LimitExceeded,
    NullNotAllowed,
    PgDistillError,
)
from pg_distill.frame import Feature, Frame, Strings
from pg_distill.onnx_model.approve import approve
from pg_distill.onnx_model.check import check_file
from pg_distill.onnx_model.cut import cut_texts
from pg_distill.onnx_model.derive import derive_signature
from pg_distill.onnx_model.session import Model
from pg_distill.onnx_model.vectorizers import MOST_CHARACTERS, VECTORS_KEY, VectorReader, parse_pattern
from text_rows import texts as random_texts

pytestmark = pytest.mark.slow

KINDS: dict[str, Any] = {"body": "string", "y": "integer"}
TEXTS = text_pipelines.mails()
NAMES = tuple(text_pipelines.vectorizers())


def table(texts: list[str | None]) -> Frame:
    return Frame((Feature("body", "text"),), {"body": Strings.from_values(texts)})


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[Any, bytes, Model]]:
    found = {}
    rows = table(list(TEXTS))
    for name, step in text_pipelines.vectorizers().items():
        model = text_pipelines.fitted(step)
        artifact = convert(model, KINDS, None, "y").artifact
        checked, readers = check_file(artifact)
        signature = derive_signature(
            checked, features=rows.features, rows=rows, classes=["0", "1"], readers=readers
        )
        found[name] = model, artifact, Model(artifact, signature)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_reads_texts_as_scikit_learn_does(name: str, made: Any) -> None:
    model, _, served = made[name]
    texts = [*text_pipelines.AWKWARD, *text_pipelines.mails(60, 1)]
    expected = model.predict_proba(texts)
    np.testing.assert_allclose(served.run_frame(table(texts)), expected, atol=1e-9)
    for text, row in zip(texts, expected, strict=True):
        np.testing.assert_allclose(served.run_row({"body": text}), row, atol=1e-9)
        assert served.predict_number([], [text]) == pytest.approx(row[1], abs=1e-9)


@given(texts=st.lists(random_texts(), min_size=1, max_size=4))
@settings(max_examples=60)
@pytest.mark.parametrize("name", ["everything", "ascii", "inside words", "characters", "hash of characters"])
def test_random_unicode(name: str, made: Any, texts: list[str]) -> None:
    model, _, served = made[name]
    np.testing.assert_allclose(served.run_frame(table([*texts])), model.predict_proba(texts), atol=1e-9)


@pytest.mark.parametrize("name", ["tf-idf", "hash"])
def test_a_megabyte(name: str, made: Any) -> None:
    model, _, served = made[name]
    text = text_pipelines.MILLION
    np.testing.assert_allclose(served.run_row({"body": text}), model.predict_proba([text])[0], atol=1e-9)
    assert len(text) == MOST_CHARACTERS
    with pytest.raises(LimitExceeded):
        served.run_row({"body": text + "x"})


def test_a_linear_step_needs_no_columns(made: Any) -> None:
    """A product is one number an output, whatever the vocabulary has: a row of a million columns would take 8 MB."""
    _, artifact, served = made["hash"]
    [reader] = cut_texts(artifact)[1]
    assert isinstance(reader, VectorReader)
    assert (reader.size, reader.width) == (1 << 20, 1)
    assert served.signature.cost is not None and served.signature.cost.row_bytes < 1000
    [reader] = cut_texts(made["selected"][1])[1]
    assert isinstance(reader, VectorReader) and reader.table is None  # it reads some columns


def test_null_has_no_answer(made: Any) -> None:
    _, _, served = made["tf-idf"]
    with pytest.raises(NullNotAllowed):
        served.run_row({"body": None})
    with pytest.raises(NullNotAllowed):
        served.run_frame(table(["x", None]))


@pytest.mark.parametrize("last", ["bayes", "bernoulli", "svm", "calibrated", "ridge", "forest", "network"])
def test_what_stands_behind_a_vectorizer(last: str) -> None:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.naive_bayes import BernoulliNB, MultinomialNB
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC, LinearSVC

    final = {
        "bayes": MultinomialNB(),
        "bernoulli": BernoulliNB(),
        "svm": SVC(kernel="linear"),
        "calibrated": CalibratedClassifierCV(LinearSVC(max_iter=50_000), cv=2),
        "ridge": Ridge(),
        "forest": RandomForestClassifier(10, max_depth=5, random_state=0),
        "network": MLPClassifier((8,), max_iter=2000, random_state=0),
    }[last]
    model = text_pipelines.fitted(CountVectorizer(ngram_range=(1, 2)), final)
    converted = convert(model, KINDS, None, "y")
    rows = table(list(TEXTS))
    task, classes = ("regression", None) if last == "ridge" else ("binary", ["0", "1"])
    approval = approve(converted.artifact, features=rows.features, rows=rows, task=task, classes=classes)  # type: ignore[arg-type]
    if last == "svm":
        expected = 1 / (1 + np.exp(-model.decision_function(TEXTS)))
    else:
        expected = model.predict(TEXTS) if last == "ridge" else model.predict_proba(TEXTS)[:, 1]
    np.testing.assert_allclose(approval.outputs[:, -1], expected, atol=1e-6)


def double(text: str) -> str:
    return text + text


def test_code_of_somebody_else_is_refused() -> None:
    from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer

    for step in (
        TfidfVectorizer(tokenizer=str.split, token_pattern=None),
        CountVectorizer(analyzer=str.split),
        CountVectorizer(preprocessor=double),
        TfidfVectorizer(strip_accents=double),
        CountVectorizer(token_pattern=r"(?u)\b(\w)\w+\b"),
        CountVectorizer(token_pattern=r"(\w+)+"),
        CountVectorizer(token_pattern=r"\w+|[^\w\s]"),
        CountVectorizer(ngram_range=(1, 40)),
        HashingVectorizer(n_features=1 << 22),
    ):
        with pytest.raises(FeatureNotSupported) as caught:
            convert(text_pipelines.fitted(step), KINDS, None, "y")
        assert caught.value.hint


def test_a_column_that_is_words_and_a_category_is_refused() -> None:
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    columns = ColumnTransformer([("a", CountVectorizer(), "body"), ("b", OneHotEncoder(), ["body"])])
    model = make_pipeline(columns, LogisticRegression()).fit(
        pd.DataFrame({"body": TEXTS}), text_pipelines.amounts(TEXTS)[2]
    )
    with pytest.raises(FeatureNotSupported):
        convert(model, KINDS, None, "y")


LINEAR = (
    r"(?u)\b\w\w+\b",
    r"\b\w+\b",
    r"\w+",
    r"\S+",
    r"\d+",
    r"[a-z]+",
    r"[A-Za-z0-9_'-]{2,}",
    r"\b[^\W\d_]+",
    r"\b\w{3,}\b",
    r"[^ ]+",
    r"\w",
    r"[а-яё]+",
)
OTHERS = (
    r"",
    r"(\w+)+",
    r"(\w)\w+",
    r"\w+|\d+",
    r"[a-z]+\b",
    r"\w+ \w+",
    r"\w+?",
    r"\w++",
    r".+",
    r"\w{2,5}\b",
    r"[z-a]+",
    r"(?i)\w+",
    r"\w+(?=x)",
    r"\w\d+",
    r"[[a]]",
    r"\w{1001}",
    "[" + "a" * 300 + "]",
    r"\b",
    r"\w+$",
)


@pytest.mark.parametrize("pattern", LINEAR)
def test_patterns_that_take_one_pass(pattern: str) -> None:
    """On the texts that make a regular expression run away: long runs that end in what does not fit."""
    compiled = parse_pattern(pattern)
    assert compiled is not None and compiled.pattern == pattern
    for text in (
        "a" * 400_000 + "!",
        "a1" * 200_000,
        ("a" * 99 + "é") * 4000,
        "_" * 400_000 + "\u0301",
        "а" * 400_000,
    ):
        began = time.process_time()
        compiled.findall(text)
        assert time.process_time() - began < 2.0


@pytest.mark.parametrize("pattern", OTHERS)
def test_other_patterns_are_refused(pattern: str) -> None:
    assert parse_pattern(pattern) is None


def test_work_is_interrupted_in_a_long_text(made: Any) -> None:
    for name in ("everything", "characters", "hash of characters", "inside words"):
        [reader] = cut_texts(made[name][1])[1]
        calls = []

        def check(calls: list[None] = calls) -> None:
            calls.append(None)
            if len(calls) > 3:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            reader.read("zü" + "ab cd " * 100_000, check)


Change = Callable[[dict[str, Any]], Any]


def forged(artifact: bytes, change: Change | str) -> bytes:
    model = onnx.ModelProto.FromString(artifact)
    entry = next(p for p in model.metadata_props if p.key == VECTORS_KEY)
    if isinstance(change, str):
        entry.value = change
    else:
        said = json.loads(entry.value)
        change(said)
        entry.value = json.dumps(said)
    return model.SerializeToString()


def reader(**values: Any) -> Change:
    return lambda said: said["readers"][0].update(values)


FORGED: dict[str, Change | str] = {
    "no JSON": "{",
    "deep": '{"columns":' + "[" * 100_000,
    "no object": "[]",
    "no readers": lambda said: said.update(readers=[]),
    "readers that are none": lambda said: said.update(readers=[1]),
    "a reader twice": lambda said: said["readers"].append(said["readers"][0]),
    "no columns": lambda said: said.update(columns=[]),
    "a column that nobody reads": lambda said: said["columns"].append("title"),
    "columns that are numbers": lambda said: said.update(columns=[1]),
    "another input": reader(input="nothing"),
    "an input that is no name": reader(input=None),
    "a column beyond": reader(column=1),
    "a column before": reader(column=-1),
    "a column that is none": reader(column=True),
    "too wide": reader(width=1 << 40),
    "wide": reader(width=1 << 20),
    "no width": reader(width=0),
    "another analyzer": reader(analyzer="bytes"),
    "a pattern that runs away": reader(pattern=r"(\w+)+$"),
    "no pattern": reader(pattern=None),
    "n-grams of nothing": reader(ngrams=[0, 1]),
    "n-grams that end before they begin": reader(ngrams=[3, 2]),
    "long n-grams": reader(ngrams=[1, 10**9]),
    "many n-grams": reader(ngrams=[1, 90]),
    "n-grams that are none": reader(ngrams=["1", 2]),
    "three n-grams": reader(ngrams=[1, 1, 1]),
    "stop words that are numbers": reader(stop_words=[1]),
    "stop words that are a text": reader(stop_words="the"),
    "terms that are numbers": reader(terms=[1]),
    "few terms": reader(terms=["a"]),
    "a term twice": lambda said: said["readers"][0]["terms"].__setitem__(0, said["readers"][0]["terms"][1]),
    "weights in the metadata": reader(idf=[1.0]),
    "weights that are no constant": reader(idf="text0"),
    "the table as weights": lambda said: said["readers"][0].update(idf=said["readers"][0]["table"]),
    "the weights as table": lambda said: said["readers"][0].update(table=said["readers"][0]["idf"]),
    "another norm": reader(norm="l3"),
    "a truth value that is a number": reader(binary=1),
    "no table": reader(table=None),
    "another table": reader(table="numbers"),
    "a table that is no name": reader(table=[]),
    "other accents": reader(accents="latin"),
}


@pytest.mark.parametrize("name", FORGED)
def test_settings_that_nobody_writes_are_refused(name: str, made: Any) -> None:
    artifact = forged(made["tf-idf"][1], FORGED[name])
    assert artifact != made["tf-idf"][1]
    for work in (cut_texts, check_file, approve):
        with pytest.raises(PgDistillError) as caught:
            work(artifact)  # type: ignore[operator]
        assert isinstance(caught.value, InvalidArtifact)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["table", "idf"])
def test_constants_that_are_no_numbers_are_refused(kind: str, value: float, made: Any) -> None:
    model = onnx.ModelProto.FromString(made["tf-idf"][1])
    said = json.loads(next(p for p in model.metadata_props if p.key == VECTORS_KEY).value)
    constant = next(t for t in model.graph.initializer if t.name == said["readers"][0][kind])
    array = numpy_helper.to_array(constant).copy()
    array.reshape(-1)[0] = value
    constant.CopyFrom(numpy_helper.from_array(array, constant.name))
    with pytest.raises(InvalidArtifact):
        check_file(model.SerializeToString())


def test_settings_that_are_there_twice_are_refused(made: Any) -> None:
    model = onnx.ModelProto.FromString(made["tf-idf"][1])
    model.metadata_props.append(next(p for p in model.metadata_props if p.key == VECTORS_KEY))
    with pytest.raises(InvalidArtifact):
        check_file(model.SerializeToString())


def test_another_vocabulary_has_another_signature(made: Any) -> None:
    """What is stored beside a file says how wide its texts are."""
    from dataclasses import replace

    _, artifact, served = made["selected"]
    signature = served.signature
    assert approve(artifact, replace(signature, cost=None)).signature == signature
    specs = tuple(replace(spec, words=spec.words + 1) for spec in signature.inputs)
    with pytest.raises(PgDistillError):
        approve(artifact, replace(signature, inputs=specs))
    features = tuple(replace(f, null="string") for f in signature.features)
    with pytest.raises(PgDistillError):
        approve(artifact, replace(signature, features=features))  # type: ignore[arg-type]


def test_the_numbers_of_a_hash_are_those_of_scikit_learn() -> None:
    from pg_distill.onnx_model.hashing import murmur3
    from sklearn.utils import murmurhash3_32

    rng = np.random.default_rng(0)
    terms = [
        bytes(rng.integers(0, 256, length)) for length in (*range(40), 399, 400, 401, 5000) for _ in range(12)
    ]
    terms += [word.encode() for word in re.findall(r"\S+", " ".join(TEXTS[:50]))]
    expected = [murmurhash3_32(term, seed=0) for term in terms]
    assert murmur3(terms, lambda: None).tolist() == expected
    assert [int(murmur3([term], lambda: None)[0]) for term in terms] == expected
