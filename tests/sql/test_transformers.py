"""Transformers as teachers: registered with their tokenizer, predicted with, distilled; and what of them is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psycopg
import pytest
import servers
from bench import minilm
from conftest import create_database, drop_database
from hostile_tokenizers import TOKENIZERS
from onnx import TensorProto, helper, numpy_helper
from psycopg import errors
from sql.conftest import load_table, one
from sql.test_serving import cascade_over
from tiny_transformer import POSITIONS, classifier, encoder, reviews, tokenizer, vocabulary

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.one_server("pg15")

REGISTER = "SELECT distill.register_model(%s, %s, tokenizer => %s, features => '{body}', max_tokens => 64)"
TEXTS = [
    "The film was great, and the plot very boring.",
    "unloved",
    "",
    "   ",
    "Ein Größenwahn aus Zürich – naïve façade",
    "非常に良い映画 与 العربية עברית",
    "\U0001f600\U0001f44d\U0001f3fd great \u202egniteser\u202c",
    "e\u0301\u0302 \u0130 \ufdfa ﬁne",
    "tab\tand\nnew line\r\n\x01\x7f",
    '{"json": "\\u0000"} \\x00 %s $1 \'; drop table reviews; --',
    "great " * 500,
    "x" * 5000,
    "[CLS] the [MASK] film [SEP] [PAD]",
]


def load_reviews(connection: psycopg.Connection, count: int, *, seed: int = 0) -> tuple[list[str], list[str]]:
    texts, labels = reviews(count, seed)
    rows = zip(range(count), texts, labels, strict=True)
    load_table(connection, "reviews", {"id": "int", "body": "text", "sentiment": "text"}, rows)
    return texts, labels


@pytest.fixture(scope="module")
def shared(server: servers.Server, template: str) -> Iterator[psycopg.Connection]:
    """A session in a database with reviews, and the transformer "tiny" that reads them."""
    name = "pg_distill_transformers"
    create_database(server, name, template)
    with server.connect(name) as connection:
        try:
            connection.execute("DO $$ import tokenizers $$ LANGUAGE plpython3u")
        except psycopg.Error:
            pytest.skip("the server's Python has no tokenizers: an image of before it")
        load_reviews(connection, 120)
        tiny = classifier()
        connection.execute(REGISTER, ("tiny", tiny.artifact, tiny.tokenizer))
        yield connection
    drop_database(server, name)


def proba(connection: psycopg.Connection, model: str, texts: list[str]) -> Any:
    found = connection.execute(
        "SELECT distill.predict_proba(%s, jsonb_build_object('body', t)) FROM unnest(%s::text[]) WITH ORDINALITY u(t, i) ORDER BY i",
        (model, texts),
    ).fetchall()
    return np.array([row[0] for row in found])


# -- what it says


def test_predictions_are_those_of_the_runtime_and_the_tokenizer(shared: psycopg.Connection) -> None:
    expected = classifier().expected(TEXTS)
    found = proba(shared, "tiny", TEXTS)
    assert np.abs(found - expected).max() < 1e-6
    assert len({round(p, 6) for p in expected[:, 1]}) > 8  # it tells them apart
    assert shared.execute(
        "SELECT distill.predict('tiny', '{}', ARRAY[t]), distill.predict_class('tiny', '{}', ARRAY[t])"
        " FROM unnest(%s::text[]) WITH ORDINALITY u(t, i) ORDER BY i",
        (TEXTS,),
    ).fetchall() == [
        (pytest.approx(p[1], abs=1e-6), "good" if p[1] > 0.5 else "bad") for p in expected.tolist()
    ]


def test_null_is_the_empty_text(shared: psycopg.Connection) -> None:
    [alone] = proba(shared, "tiny", [""]).tolist()
    assert one(shared, "SELECT distill.predict_proba('tiny', '{\"body\": null}'::jsonb)") == pytest.approx(
        alone
    )
    assert one(shared, "SELECT distill.predict('tiny', '{}', ARRAY[NULL::text])") == pytest.approx(alone[1])
    assert one(
        shared,
        "SELECT min(prediction) FROM distill.score('tiny', 'SELECT 1 AS id, NULL::text AS body', 'id')",
    ) == pytest.approx(alone[1])


def test_a_long_text_is_cut_where_the_documents_say(shared: psycopg.Connection) -> None:
    """Tokens past max_tokens, and letters past 32 a token, change nothing; what comes before them does."""
    most = 32 * 64
    start = "great " * 70
    same = [start + "boring " * 100_000, start + "lovely"]
    assert len(same[0]) > 500_000
    blank = " " * most
    late = [blank + "great", blank]
    early = " " * (most - 6) + " great"
    found = proba(shared, "tiny", [*same, *late, early])
    assert found[0] == pytest.approx(found[1], abs=0)
    assert found[2] == pytest.approx(found[3], abs=0)
    assert found[4] == pytest.approx(classifier().expected(["great"])[0], abs=1e-6)
    assert abs(found[4] - found[3]).max() > 1e-3


def test_many_rows_by_every_form(shared: psycopg.Connection) -> None:
    texts = [row[0] for row in shared.execute("SELECT body FROM reviews ORDER BY id").fetchall()]
    expected = classifier().expected(texts)[:, 1]
    assert one(
        shared,
        "SELECT array_agg(prediction ORDER BY key::int) FROM distill.score('tiny', 'SELECT id, body FROM reviews', 'id')",
    ) == pytest.approx(expected, abs=1e-6)
    shared.execute("SELECT distill.create_function('tiny', 'public.typed')")
    assert one(shared, "SELECT array_agg(typed(body) ORDER BY id) FROM reviews") == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize("form", ["float", "int8"])
def test_logits_of_several_classes_become_probabilities(shared: psycopg.Connection, form: str) -> None:
    """As Hugging Face exports a classifier: one output, logits; by products of bytes too, where batches have one scale."""
    model = classifier(("red", "green", "blue")).logits()
    if form == "int8":
        model = model.quantised()
        operators = {node.op_type for node in onnx.load_from_string(model.artifact).graph.node}
        assert {"DynamicQuantizeLinear", "MatMulInteger"} <= operators
    name = f"three_{form}"
    shared.execute(
        "SELECT distill.register_model(%s, %s, tokenizer => %s, classes => '{red,green,blue}', features => '{body}',"
        " max_tokens => 64, sample => 'reviews')",
        (name, model.artifact, model.tokenizer),
    )
    logits = model.expected(TEXTS, output="logits")
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    assert np.abs(proba(shared, name, TEXTS) - expected).max() < 1e-6
    rows = shared.execute(
        "SELECT class FROM distill.score_class(%s, 'SELECT i AS id, t AS body FROM json_array_elements_text('"
        " || quote_literal(%s) || ') WITH ORDINALITY u(t, i)', 'id') ORDER BY key::int",
        (name, json.dumps(TEXTS)),
    ).fetchall()
    assert [row[0] for row in rows] == [("red", "green", "blue")[i] for i in expected.argmax(axis=1)]


def test_one_number_is_a_probability_or_a_value_as_the_caller_says(shared: psycopg.Connection) -> None:
    model = onnx.load_from_string(classifier().logits().artifact)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "last"))
    model.graph.node.append(helper.make_node("Gather", ["logits", "last"], ["score"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1]))
    artifact = model.SerializeToString()
    expected = np.array([x[1] for x in classifier().logits().expected(TEXTS, output="logits")])
    with pytest.raises(errors.InvalidParameterValue):
        shared.execute(REGISTER, ("single", artifact, tokenizer()))
    for task, wanted in (("binary", 1 / (1 + np.exp(-expected))), ("regression", expected)):
        shared.execute(
            "SELECT distill.register_model(%s, %s, tokenizer => %s, features => '{body}', max_tokens => 64, task => %s)",
            (f"single_{task}", artifact, tokenizer(), task),
        )
        found = shared.execute(
            "SELECT distill.predict(%s, '{}', ARRAY[t]) FROM unnest(%s::text[]) WITH ORDINALITY u(t, i) ORDER BY i",
            (f"single_{task}", TEXTS),
        ).fetchall()
        assert np.array(found)[:, 0] == pytest.approx(wanted, abs=1e-5)


def test_a_sample_measures_it(shared: psycopg.Connection) -> None:
    """Its column is found where there is one of strings beside the label; accuracy is that of the runtime's answers."""
    tiny = classifier()
    shared.execute(
        "SELECT distill.register_model('measured', %s, tokenizer => %s, max_tokens => 64,"
        " sample => 'SELECT body, sentiment FROM reviews', label => 'sentiment')",
        (tiny.artifact, tiny.tokenizer),
    )
    texts, labels = reviews(120)
    right = [tiny.classes[i] for i in tiny.expected(texts).argmax(axis=1)]
    accuracy, latency, feature = one(
        shared,
        "SELECT accuracy, avg_latency_ms, input_schema->'features'->0->>'name' FROM distill.models WHERE name = 'measured'",
    )
    assert accuracy == pytest.approx(np.mean(np.array(right) == labels))
    assert latency > 0
    assert feature == "body"
    with pytest.raises(errors.InvalidParameterValue):  # two columns of strings
        shared.execute(
            "SELECT distill.register_model('unsure', %s, tokenizer => %s, max_tokens => 64, sample => 'reviews')",
            (tiny.artifact, tiny.tokenizer),
        )
    with pytest.raises(errors.DatatypeMismatch):
        shared.execute(
            "SELECT distill.register_model('unsure', %s, tokenizer => %s, max_tokens => 64, sample => 'reviews',"
            " features => '{id}')",
            (tiny.artifact, tiny.tokenizer),
        )


def test_expected_predictions_are_held_against_it(shared: psycopg.Connection) -> None:
    tiny = classifier()
    texts, _ = reviews(40)
    said = tiny.expected(texts)[:, 1].tolist()
    load_table(shared, "said", {"body": "text", "p": "float8"}, zip(texts, said, strict=True))
    register = (
        "SELECT distill.register_model('claimed', %s, tokenizer => %s, max_tokens => 64, features => '{body}',"
        " sample => %s, expected => 'p')"
    )
    shared.execute(register, (tiny.artifact, tiny.tokenizer, "said"))
    assert one(shared, "SELECT (origin->>'rows')::int FROM distill.models WHERE name = 'claimed'") == 40
    with pytest.raises(errors.DataException):
        shared.execute(register, (tiny.artifact, tiny.tokenizer, "SELECT body, 1 - p AS p FROM said"))


def test_its_file_is_whole_with_its_tokenizer(shared: psycopg.Connection, tmp_path: Path) -> None:
    """What is exported needs nothing else; a dump has it in the one row."""
    assert one(
        shared, "SELECT sha256 = encode(sha256(artifact), 'hex') FROM distill.models WHERE name = 'tiny'"
    )
    artifact = bytes(one(shared, "SELECT artifact FROM distill.models WHERE name = 'tiny'"))
    onnx.checker.check_model(onnx.load_from_string(artifact))
    shared.execute(
        "SELECT distill.register_model('again', %s, features => '{body}', max_tokens => 64)", (artifact,)
    )
    assert proba(shared, "again", TEXTS[:3]) == pytest.approx(proba(shared, "tiny", TEXTS[:3]), abs=0)
    dsn = shared.info.dsn
    for command in (
        ["export", "tiny", "--to", str(tmp_path)],
        ["import", str(tmp_path / "tiny-1.json"), "--name", "imported"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pg_distill.cli", *command, "--dsn", dsn],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert proba(shared, "imported", TEXTS) == pytest.approx(proba(shared, "tiny", TEXTS), abs=0)
    with pytest.raises(psycopg.Error) as caught:  # it has one already
        shared.execute(REGISTER, ("twice", artifact, tokenizer()))
    assert caught.value.sqlstate == "22P03"


# -- distilled


def test_it_labels_the_rows_of_a_distillation(shared: psycopg.Connection) -> None:
    """In the training process, in threads of it; what the run says of it is what predict says."""
    tiny = classifier()
    shared.execute(
        "SELECT distill.register_model('teacher', %s, tokenizer => %s, features => '{body}', max_tokens => 64,"
        " sample => 'reviews', label => 'sentiment')",
        (tiny.artifact, tiny.tokenizer),
    )
    shared.execute(
        "SELECT distill_model('teacher', families => '{linear}', time_budget_s => 40, patience => 1, min_accuracy => 0)"
    )
    accuracy, rows, tried = one(
        shared,
        "SELECT r.teacher_accuracy, rows_fit + rows_select + rows_test, (SELECT count(*) FROM distill.candidates c"
        " WHERE c.run_id = distill.last_run('teacher')) FROM distill.run_report(distill.last_run('teacher')) r",
    )
    assert rows == 120
    assert tried > 0
    assert one(
        shared,
        "SELECT avg((distill.predict_class('teacher', r.row) = r.row->>'sentiment')::int)::float8"
        " FROM distill.run_rows(distill.last_run('teacher')) r WHERE split = 'test'",
    ) == pytest.approx(accuracy)


def test_it_stands_behind_a_cascade(shared: psycopg.Connection) -> None:
    """A student that is less sure of itself asks it, by every form."""
    model = onnx.load_from_string(classifier().artifact)
    for attribute in model.graph.node[-1].attribute:
        if attribute.name in ("coefficients", "intercepts"):
            attribute.floats[:] = [-value / 3 for value in attribute.floats]
    student = replace(classifier(), artifact=model.SerializeToString())
    shared.execute(REGISTER, ("unsure", student.artifact, student.tokenizer))
    cascade_over(shared, "asks", "unsure", "tiny", 0.7)
    texts = [row[0] for row in shared.execute("SELECT body FROM reviews ORDER BY id").fetchall()]
    own, its = student.expected(texts), classifier().expected(texts)
    sure = own.max(axis=1) >= 0.7
    assert 10 < sure.sum() < 110
    expected = np.where(sure[:, None], own, its)
    assert proba(shared, "asks", texts) == pytest.approx(expected, abs=1e-6)
    assert one(
        shared,
        "SELECT array_agg(prediction ORDER BY key::int) FROM distill.score('asks', 'SELECT id, body FROM reviews', 'id')",
    ) == pytest.approx(expected[:, 1], abs=1e-6)


def test_a_student_that_reads_texts_takes_its_place(shared: psycopg.Connection) -> None:
    """Distilled from it, as fast as a student is; a cascade of the two asks it where the student is not sure."""
    texts, _ = reviews(900, seed=8)
    load_table(shared, "many", {"id": "int", "body": "text"}, enumerate(texts))
    tiny = classifier()
    shared.execute(
        "SELECT distill.register_model('reader', %s, tokenizer => %s, features => '{body}', max_tokens => 64, sample => 'many')",
        (tiny.artifact, tiny.tokenizer),
    )
    shared.execute(
        "SELECT distill_model('reader', families => '{linear}', text_columns => '{body}', time_budget_s => 40, patience => 1, min_accuracy => 0.6)"
    )
    agreed, faster = one(
        shared,
        "SELECT (SELECT avg((distill.predict_class('reader', to_jsonb(f)) = distill.predict_class('reader_distilled', to_jsonb(f)))"
        "::int)::float8 FROM many f), t.avg_latency_ms > s.avg_latency_ms FROM distill.models t, distill.models s"
        " WHERE t.name = 'reader' AND s.name = 'reader_distilled'",
    )
    assert agreed > 0.85
    assert faster
    cascade_over(shared, "both", "reader_distilled", "reader", 0.9)
    own, its = proba(shared, "reader_distilled", texts), proba(shared, "reader", texts)
    sure = own.max(axis=1) >= 0.9
    assert 0 < sure.sum() < len(texts)
    expected = np.where(sure[:, None], own, its)
    assert proba(shared, "both", texts) == pytest.approx(expected, abs=1e-6)
    assert one(
        shared,
        "SELECT array_agg(prediction ORDER BY key::int) FROM distill.score('both', 'SELECT id, body FROM many', 'id')",
    ) == pytest.approx(expected[:, 1], abs=1e-5)


# -- interrupts


def test_a_statement_over_many_texts_is_interrupted(shared: psycopg.Connection) -> None:
    shared.execute("SET statement_timeout = '1s'")
    try:
        for statement in (
            "SELECT sum(distill.predict('tiny', '{}', ARRAY['great ' || i])) FROM generate_series(1, 10000000) i",
            "SELECT sum(prediction) FROM distill.score('tiny', 'SELECT i AS id, ''great '' || i AS body"
            " FROM generate_series(1, 10000000) i', 'id')",
        ):
            with pytest.raises(errors.QueryCanceled):
                shared.execute(statement)
    finally:
        shared.execute("SET statement_timeout = 0")
    assert proba(shared, "tiny", ["great"]) == pytest.approx(classifier().expected(["great"]), abs=1e-6)


def test_labelling_is_cancelled(shared: psycopg.Connection) -> None:
    said: list[str] = []
    handler = lambda diagnostic: said.append(diagnostic.message_primary or "")  # noqa: E731
    shared.execute(
        "CREATE TABLE endless AS SELECT i AS id, string_agg('great film ' || i * j, ' ') AS body"
        " FROM generate_series(1, 20000) i, generate_series(1, 12) j GROUP BY i"
    )
    shared.add_notice_handler(handler)
    shared.execute("SET statement_timeout = '5s'")
    try:
        with pytest.raises(errors.QueryCanceled):
            shared.execute("SELECT distill_model('tiny', sample => 'endless', time_budget_s => 600)")
    finally:
        shared.execute("SET statement_timeout = 0")
        shared.remove_notice_handler(handler)
    assert any(text.startswith("label") for text in said)
    assert not any(text.startswith("search") for text in said)
    assert one(shared, "SELECT count(*) FROM distill.runs WHERE teacher_name = 'tiny'") == 0


# -- bad input


# One of each kind; tests/unit/test_tokenizers.py has all of them.
THROUGH_SQL = (
    "no JSON",
    "no UTF-8",
    "nested without end",
    "a model that the library refuses",
    "random answers",
    "a million added tokens",
    "an exploding pattern, splitting",
    "normalisers that multiply",
    "an id past the model's",
)


def test_hostile_tokenizers(shared: psycopg.Connection) -> None:
    """Each with its SQLSTATE; the backend goes on, and nothing is registered."""
    before = one(shared, "SELECT pg_backend_pid()")
    artifact = classifier().artifact
    wrong = []
    for what in THROUGH_SQL:
        given, expected = TOKENIZERS[what]
        found = None
        try:
            shared.execute(REGISTER, ("hostile", artifact, given))
        except psycopg.Error as error:
            found = error.sqlstate
        if found != expected:
            wrong.append(f"{what}: {found}, expected {expected}")
    assert wrong == []
    assert one(shared, "SELECT pg_backend_pid()") == before
    assert one(shared, "SELECT count(*) FROM distill.models WHERE name = 'hostile'") == 0


def test_a_tokenizer_of_a_gigabyte_reaches_no_child(shared: psycopg.Connection) -> None:
    started = one(shared, "SELECT pg_postmaster_start_time()")
    with pytest.raises(errors.ProgramLimitExceeded):
        shared.execute(
            "SELECT distill.register_model('large', %s, tokenizer => convert_to(repeat('x', 200000000), 'UTF8'),"
            " features => '{body}')",
            (classifier().artifact,),
        )
    assert one(shared, "SELECT pg_postmaster_start_time()") == started


def test_a_child_that_runs_out_of_memory_is_an_error(shared: psycopg.Connection) -> None:
    """Within the limits of size a file may still want more than the child is given."""
    words = vocabulary()
    many = {f"token {i} of a vocabulary that is long": i for i in range(600_000)}
    model = json.loads(tokenizer())["model"]
    large = tokenizer(
        model={**model, "vocab": {**many, **{w: 600_000 + i for w, i in words.items()}}}, added_tokens=[]
    )
    shared.execute("SELECT distill.change_setting('inspection_memory_mb', '512')")
    try:
        with pytest.raises(psycopg.Error) as caught:
            shared.execute(REGISTER, ("large", classifier().artifact, large))
    finally:
        shared.execute("SELECT distill.change_setting('inspection_memory_mb', NULL)")
    assert caught.value.sqlstate in ("53200", "58000", "22000", "54000")
    assert proba(shared, "tiny", ["great"]).shape == (1, 2)


def test_lengths_that_do_not_fit(shared: psycopg.Connection) -> None:
    tiny = classifier()
    register = (
        "SELECT distill.register_model('long', %s, tokenizer => %s, features => '{body}', max_tokens => %s)"
    )
    for tokens, error in (
        (0, errors.InvalidParameterValue),
        (-5, errors.InvalidParameterValue),
        (1025, errors.InvalidParameterValue),
        (POSITIONS + 1, errors.DataException),  # more than it has positions for
        (256, errors.DataException),
        (1, errors.DataError),  # fewer than its special tokens
    ):
        with pytest.raises(error):
            shared.execute(register, (tiny.artifact, tiny.tokenizer, tokens))
    shared.execute(register, (tiny.artifact, tiny.tokenizer, 8))
    assert proba(shared, "long", TEXTS[:1]) == pytest.approx(tiny.expected(TEXTS[:1], 8), abs=1e-6)
    with pytest.raises(errors.DataException):
        shared.execute(
            "SELECT distill.register_model('long', %s, tokenizer => %s, features => '{id,body}', max_tokens => 64)",
            (tiny.artifact, tiny.tokenizer),
        )


def graph(body: str) -> bytes:
    """Return a graph over input_ids in ONNX's text form, with probabilities as its output."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]> {body}"""
    return onnx.parser.parse_model(text).SerializeToString()


HEAD = "f = Cast<to=1>(n)\n p = Sigmoid(f)"
GRAPHS: dict[str, tuple[bytes, str]] = {
    "a table's": (
        graph("g (float[N,3] x) => (float[N,1] p) { a = Constant<value=int64[1] {1}>()\n"
              " s = ReduceSum<keepdims=1>(x, a)\n p = Sigmoid(s) }"),
        "0A000",
    ),
    "inputs that nobody has": (
        graph("g (int64[N,S] input_ids, float[N,S] visual) => (float[N,1] p) { a = Constant<value=int64[1] {1}>()\n"
              " s = ReduceSum<keepdims=1>(visual, a)\n p = Sigmoid(s) }"),
        "0A000",
    ),
    "a fixed number of tokens": (
        graph("g (int64[N,16] input_ids) => (float[N,1] p) { a = Constant<value=int64[1] {1}>()\n"
              f" n = ReduceSum<keepdims=1>(input_ids, a)\n {HEAD} }}"),
        "0A000",
    ),
    "a shape by what the ids are": (
        graph("g (int64[N,S] input_ids) => (float[N,1] p) { z = NonZero(input_ids)\n a = Constant<value=int64[1] {0}>()\n"
              " c = ReduceSum<keepdims=1>(z, a)\n b = Constant<value=int64[1] {1}>()\n n = ReduceSum<keepdims=1>(c, b)\n"
              f" {HEAD} }}"),
        "0A000",
    ),
    "a size that an id says": (
        graph("g (int64[N,S] input_ids) => (float[N,1] p) { a = Constant<value=int64[1] {1}>()\n"
              " z = Constant<value=int64[1] {0}>()\n"
              " m = ReduceMax<axes=[0,1],keepdims=0>(input_ids)\n u = Unsqueeze(m, z)\n o = ConstantOfShape(u)\n"
              " i = Cast<to=7>(o)\n q = ReduceSum<keepdims=0>(i)\n k = ReduceSum<keepdims=1>(input_ids, a)\n n = Add(k, q)\n"
              f" {HEAD} }}"),
        "0A000",
    ),
    # 37 // s * s // 37 is 1 for texts of 37 tokens, and else 0: only they make a tensor of 2**33.
    "a size that one length explodes": (
        graph("g (int64[N,S] input_ids) => (float[N,1] p) { a = Constant<value=int64[1] {1}>()\n"
              " t = Constant<value=int64[1] {37}>()\n w = Constant<value=int64[1] {8589934592}>()\n h = Shape(input_ids)\n"
              " s = Gather<axis=0>(h, a)\n x = Div(t, s)\n y = Div(s, t)\n e = Mul(x, y)\n r = Mul(e, w)\n v = Add(r, a)\n"
              " o = ConstantOfShape(v)\n i = Cast<to=7>(o)\n q = ReduceSum<keepdims=0>(i)\n"
              " k = ReduceSum<keepdims=1>(input_ids, a)\n n = Add(k, q)\n"
              f" {HEAD} }}"),
        "54000",
    ),
    "an encoder without a head": (encoder().SerializeToString(), "0A000"),
}  # fmt: skip


def test_graphs_that_are_no_transformers(shared: psycopg.Connection) -> None:
    wrong = []
    register = (
        "SELECT distill.register_model('other', %s, tokenizer => %s, features => '{body}', max_tokens => 64,"
        " task => 'binary', classes => '{no,yes}')"
    )
    for what, (artifact, expected) in GRAPHS.items():
        found = None
        try:
            shared.execute(register, (artifact, tokenizer()))
        except psycopg.Error as error:
            found = error.sqlstate
        if found != expected:
            wrong.append(f"{what}: {found}, expected {expected}")
    assert wrong == []
    with pytest.raises(errors.DataException):  # without its tokenizer
        shared.execute("SELECT distill.register_model('other', %s)", (classifier().artifact,))


PLANT = """
INSERT INTO distill.models (name, version, active, task, kind, artifact, sha256, size_bytes, input_schema, output_schema, form)
SELECT name, version, active, task, kind, artifact, sha256, size_bytes, input_schema, output_schema, form
FROM (SELECT (jsonb_populate_record(m, jsonb_build_object('name', 'planted') || {})).* FROM distill.models m
    WHERE m.name = 'tiny') p
"""
PLANTED = {
    "more tokens than any": "{max_tokens}', '100000'",
    "more than it has positions for": "{max_tokens}', '65'",
    "tokens that are no number": "{max_tokens}', '\"64\"'",
    "other inputs": "{inputs,0,name}', '\"attention_mask\"'",
    "batches": "{inputs,0,batch}', 'null'",
    "a number for a text": "{features,0,kind}', '\"number\"'",
    "another NULL": '{features,0,"null"}\', \'"string"\'',
}


def test_a_planted_signature_is_refused(shared: psycopg.Connection) -> None:
    """A superuser may write what he likes: a child checks it before a backend opens it."""
    wrong = []
    for what, change in PLANTED.items():
        found = None
        schema = "jsonb_build_object('input_schema', jsonb_set(m.input_schema, '" + change + "))"
        shared.execute(PLANT.format(schema))
        try:
            shared.execute("SELECT distill.predict('planted', '{\"body\": \"great\"}'::jsonb)")
        except psycopg.Error as error:
            found = error.sqlstate
        if found not in ("XX001", "22000"):
            wrong.append(f"{what}: {found}")
        shared.execute("DELETE FROM distill.models WHERE name = 'planted'")
    assert wrong == []
    shared.execute(PLANT.format("jsonb_build_object('input_schema', m.input_schema)"))
    assert proba(shared, "planted", TEXTS) == pytest.approx(proba(shared, "tiny", TEXTS), abs=0)


# -- the command line


def test_a_folder_is_registered(shared: psycopg.Connection, tmp_path: Path) -> None:
    tiny = classifier(("neg", "pos")).logits()
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(tiny.artifact)
    (folder / "tokenizer.json").write_bytes(tiny.tokenizer)
    config = {
        "model_type": "bert",
        "id2label": {"0": "neg", "1": "pos"},
        "max_position_embeddings": POSITIONS,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 1000000000000000019884624838656})
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pg_distill.cli", *arguments, "--dsn", shared.info.dsn]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("register", "folder", str(folder), "--features", "body")
    assert done.returncode == 0, done.stdout + done.stderr
    classes, tokens = one(
        shared,
        "SELECT output_schema->'classes', (input_schema->>'max_tokens')::int FROM distill.models WHERE name = 'folder'",
    )
    assert (classes, tokens) == (["neg", "pos"], POSITIONS)
    logits = tiny.expected(TEXTS, output="logits")
    assert proba(shared, "folder", TEXTS)[:, 1] == pytest.approx(
        1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), abs=1e-6
    )
    done = run(
        *("register", "file", str(folder / "model.onnx"), "--tokenizer", str(folder / "tokenizer.json")),
        *("--features", "body", "--max-tokens", "16", "--classes", "neg,pos"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert one(shared, "SELECT input_schema->'max_tokens' FROM distill.models WHERE name = 'file'") == 16
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    done = run("register", "several", str(folder), "--features", "body")
    assert done.returncode == 0, done.stdout + done.stderr
    assert proba(shared, "several", TEXTS) == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)
    (folder / "config.json").unlink()
    (folder / "tokenizer.json").unlink()
    assert run("register", "none", str(folder)).returncode != 0
    assert one(shared, "SELECT count(*) FROM distill.models WHERE name = 'none'") == 0


def test_files_of_the_server(shared: psycopg.Connection, server: servers.Server) -> None:
    tiny = classifier()
    shared.execute(
        "CREATE TABLE files AS SELECT %s::bytea AS model, %s::bytea AS tokenizer",
        (tiny.artifact, tiny.tokenizer),
    )
    for name in ("model", "tokenizer"):
        [large] = shared.execute(f"SELECT lo_from_bytea(0, {name}) FROM files").fetchone() or (0,)
        shared.execute(f"SELECT lo_export({large}, '/tmp/pg_distill_{name}')")
    try:
        shared.execute(
            "SELECT distill.register_model_file('on_server', '/tmp/pg_distill_model', tokenizer => '/tmp/pg_distill_tokenizer',"
            " features => '{body}', max_tokens => 64)"
        )
    finally:
        server.run("rm", "-f", "/tmp/pg_distill_model", "/tmp/pg_distill_tokenizer")
    assert proba(shared, "on_server", TEXTS) == pytest.approx(proba(shared, "tiny", TEXTS), abs=0)


# -- a real one


@pytest.fixture(scope="module")
def real() -> tuple[Any, bytes, bytes, list[str]]:
    """MiniLM with a logistic regression, its files, and texts."""
    from sklearn.linear_model import LogisticRegression

    try:
        encoder = minilm.Encoder()
    except minilm.Unavailable as error:
        pytest.skip(str(error))
    texts, labels = reviews(40, seed=3)
    model = LogisticRegression().fit(encoder.embed(texts), labels)
    texts = [*texts[:20], *TEXTS]
    expected = model.predict_proba(encoder.embed([t[: 32 * 256] for t in texts]))
    artifact, tokens = minilm.classifier(model.coef_, model.intercept_, model.classes_)
    return expected, artifact, tokens, texts


def test_minilm_predicts_as_outside(
    shared: psycopg.Connection, real: tuple[Any, bytes, bytes, list[str]]
) -> None:
    expected, artifact, tokens, texts = real
    shared.execute(
        "SELECT distill.register_model('minilm', %s, tokenizer => %s, features => '{body}')",
        (artifact, tokens),
    )
    assert np.abs(proba(shared, "minilm", texts) - expected).max() < 1e-5
    assert one(shared, "SELECT input_schema->'max_tokens' FROM distill.models WHERE name = 'minilm'") == 256


def test_a_backend_imports_no_hub(shared: psycopg.Connection) -> None:
    """The library of the tokenizer could download models; what does so is not even imported, and no thread is started."""
    proba(shared, "tiny", TEXTS)
    shared.execute(
        "DO $$\nimport sys\nbad = [m for m in ('huggingface_hub', 'requests', 'httpx', 'onnx') if m in sys.modules]\n"
        "assert 'tokenizers' in sys.modules and not bad, bad\n$$ LANGUAGE plpython3u"
    )
