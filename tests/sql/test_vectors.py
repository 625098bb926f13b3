"""Columns of vectors: float4[], float8[] and pgvector's types, on every way from a table to a prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import errors
from sql.conftest import one
from vector_rows import embeddings, head

pytestmark = pytest.mark.one_server("pg18")

LENGTH, ROWS = 24, 600


def literal(vector: Any) -> str:
    """Write a vector as float4[] reads it."""
    return "{" + ",".join(map(repr, np.asarray(vector).tolist())) + "}"


def softmax(z: Any) -> Any:
    """Return the probabilities of logits (n, K)."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


class Documents:
    """A table of documents with an embedding each, and what a head over these says of them."""

    def __init__(self, db: psycopg.Connection, *, kind: str = "float4[]", length: int = LENGTH) -> None:
        rng = np.random.default_rng(1)
        self.x, topic = embeddings(ROWS, length)
        self.weights, self.bias = rng.standard_normal((length, 2)) * 8, np.zeros(2)
        self.p = softmax(self.x @ self.weights.astype(np.float32))[:, 1]
        self.label = self.p > 0.5
        self.artifact = head(self.weights, self.bias)
        brackets = "[]" if kind in ("vector", "halfvec") else "{}"
        db.execute(f"CREATE TABLE documents (id int, size float8, emb {kind}, spam bool)")
        with db.cursor().copy("COPY documents FROM STDIN") as copy:
            for i in range(ROWS):
                text = brackets[0] + literal(self.x[i])[1:-1] + brackets[1]
                copy.write_row((i, float(topic[i]), text, bool(self.label[i])))

    def register(self, db: psycopg.Connection, sample: str = "documents", name: str = "spam") -> None:
        """Register the head as a teacher."""
        db.execute(
            "SELECT distill.register_model(%s, %s, features => '{emb}', sample => %s, label => 'spam')",
            (name, self.artifact, sample),
        )


@pytest.mark.local
@pytest.mark.parametrize("kind", ["float4[]", "float8[]"])
def test_a_model_over_a_vector_answers_alike_on_every_way(db: psycopg.Connection, kind: str) -> None:
    documents = Documents(db, kind=kind)
    documents.register(db)
    assert one(db, "SELECT accuracy FROM distill.models") == 1.0
    schema = one(db, "SELECT input_schema FROM distill.models")
    assert [(f["kind"], f["length"]) for f in schema["features"]] == [("vector", LENGTH)]
    db.execute("SELECT distill.create_function('spam', 'f')")
    for form in (
        "distill.predict('spam', to_jsonb(t))",
        "distill.predict('spam', emb)",
        "distill.predict('spam', emb, '{}')",
        "distill.predict('spam', '{}', '{}', emb::real[])",
        "(distill.predict_proba('spam', '{}', '{}', emb::real[]))[2]",
        "f(emb)",
        "(distill.predict_proba('spam', to_jsonb(t)))[2]",
        "(distill.predict_proba('spam', emb))[2]",
        "(distill.predict_batch('spam', array[emb]::float8[]))[1]",
    ):
        found = one(db, f"SELECT array_agg({form} ORDER BY id) FROM documents t")
        assert np.allclose(found, documents.p, atol=1e-5), form
    scored = db.execute("SELECT prediction FROM distill.score('spam', 'documents', 'id') ORDER BY key::int")
    assert np.allclose([p for (p,) in scored], documents.p, atol=1e-5)
    named = one(
        db,
        "SELECT array_agg(distill.predict_class('spam', '{}', '{}', emb::real[]) ORDER BY id) FROM documents",
    )
    assert [c == "true" for c in named] == documents.label.tolist()
    classes = db.execute("SELECT class FROM distill.score_class('spam', 'documents', 'id') ORDER BY key::int")
    assert [c == "true" for (c,) in classes] == documents.label.tolist()


REFUSED = (
    "array[1, 2]::real[]",
    "array[]::real[]",
    "array_fill(1.0::real, array[2, 12])",
    "array_append(emb[:23], NULL)",
    "array_append(emb[:23], 'NaN')",
    "array_append(emb[:23], 'Infinity')",
    "array_append(emb, 1)",
)


@pytest.mark.local
def test_what_is_no_vector_of_the_model_is_refused_and_named(db: psycopg.Connection) -> None:
    """A wrong length, arrays of arrays, NULL, NaN and infinity among the numbers: 22000 on every way, and in a sample the row."""
    documents = Documents(db)
    documents.register(db)
    db.execute("SELECT distill.create_function('spam', 'f')")
    size = one(db, "SELECT size FROM documents WHERE id = 77")
    for value in REFUSED:
        db.execute(
            "CREATE OR REPLACE VIEW odd AS SELECT id, size,"
            f" CASE id WHEN 77 THEN {value} ELSE emb END AS emb, spam FROM documents"
        )
        with pytest.raises(errors.DataException) as refused:
            db.execute("SELECT distill.register_sql_model('other', 'size / 10', '{size,emb}', 'odd', 'spam')")
        assert refused.value.sqlstate == "22000"
        assert f"size = {size!r}" in str(refused.value), value
        with pytest.raises(errors.DataException) as refused:
            db.execute("SELECT * FROM distill.score('spam', 'odd', 'id')")
        assert refused.value.sqlstate == "22000"
        assert "id = 77" in str(refused.value), value
        for form in (
            "distill.predict('spam', to_jsonb(t))",
            "distill.predict('spam', emb)",
            "distill.predict('spam', '{}', '{}', emb)",
            "f(emb)",
        ):
            with pytest.raises(psycopg.Error) as failed:
                db.execute(f"SELECT {form} FROM odd t WHERE id = 77")
            assert failed.value.sqlstate in ("22000", "42804"), (value, form)
    with pytest.raises(errors.DatatypeMismatch):
        db.execute("SELECT distill.predict('spam', '{\"emb\": \"words\"}'::jsonb)")
    with pytest.raises(errors.DatatypeMismatch):
        db.execute("SELECT distill.predict('spam', '{\"emb\": 3}'::jsonb)")
    # The column has become another type since the model was registered.
    for changed, state in (("'words'::text", "42804"), ("1.5", "42804"), ("emb[:20]", "22000")):
        with pytest.raises(psycopg.Error) as failed:
            db.execute(
                "SELECT * FROM distill.score('spam', %s, 'id')",
                (f"select id, {changed} as emb from documents",),
            )
        assert failed.value.sqlstate == state, changed


@pytest.mark.local
def test_a_vector_that_is_null_is_answered_where_the_model_has_an_answer(db: psycopg.Connection) -> None:
    documents = Documents(db)
    documents.register(db)
    for form in (
        "distill.predict('spam', jsonb_build_object('emb', NULL))",
        f"distill.predict('spam', array_fill(NULL::float8, array[{LENGTH}]))",
        f"distill.predict('spam', array_fill('NaN'::float8, array[{LENGTH}]))",
        "distill.predict('spam', '{}', '{}', NULL)",
    ):
        with pytest.raises(errors.NullValueNotAllowed):
            db.execute(f"SELECT {form}")
    with pytest.raises(errors.NullValueNotAllowed):
        db.execute(
            "SELECT * FROM distill.score('spam', 'select id, NULL::real[] as emb from documents', 'id')"
        )
    with pytest.raises(errors.DataException):  # nobody knows how long they are
        documents.register(db, "select id, NULL::real[] as emb, spam from documents", "other")


def test_crafted_bytes_of_a_vector_are_refused(db: psycopg.Connection) -> None:
    """Whoever may predict may call the internal function: with bytes that are no array, or one whose header lies."""
    Documents(db).register(db)
    good = bytes(one(db, "SELECT distill._vector_bytes(emb) FROM documents LIMIT 1"))
    rng = np.random.default_rng(0)
    call = "SELECT distill._predict('spam', '{}', '{}', %s::bytea[], NULL)"
    assert 0 <= one(db, call, [good]) <= 1
    crafted = [b"", b"x", good[:19], good[:20], good[:-1], good + b"x", good[20:], b"\xff" * len(good)]
    for position in range(20):
        crafted += [good[:position] + bytes([byte]) + good[position + 1 :] for byte in (1, 127, 255)]
    crafted += [rng.bytes(int(n)) for n in rng.integers(1, 300, 100)]
    refused: list[tuple[str | None, bytes]] = []
    for value in crafted:
        try:
            one(db, call, [value])
        except psycopg.Error as error:
            refused.append((error.sqlstate, value))
    assert len(refused) > 100
    assert {state for state, _ in refused} <= {"22000", "54000"}
    for vectors in ([], [good, good]):
        with pytest.raises(errors.DataException):
            db.execute(call, (vectors,))  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_when_a_model_is_registered(db: psycopg.Connection) -> None:
    documents = Documents(db)
    for sample, state in (
        ("select id, emb[:20] as emb, spam from documents", "22000"),
        ("select id, 'some words'::text as emb, spam from documents", "42804"),
        ("select id, size as emb, spam from documents", "22000"),
        ("select id, array_fill(1::real, array[2049]) as emb, spam from documents", "54000"),
        ("select id, emb::numeric[] as emb, spam from documents", "42804"),
        ("select id, emb::text[] as emb, spam from documents", "42804"),
    ):
        with pytest.raises(psycopg.Error) as failed:
            documents.register(db, sample)
        assert failed.value.sqlstate == state, sample
    for statement in (
        "SELECT distill.register_sql_model('m', '0.5', '{size}', 'documents', 'emb')",  # as a label
        "SELECT distill.register_logged_model('m', '{emb}', '{size}', 'documents', 'spam')",  # as an output
    ):
        with pytest.raises(errors.DatatypeMismatch):
            db.execute(statement)


def test_a_vector_stands_beside_numbers_in_a_model(db: psycopg.Connection) -> None:
    """A graph with an input for a vector and one for the rest: by name, by length, and the numbers of both in an array."""
    Documents(db)
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((LENGTH + 2, 2))
    artifact = head(weights, np.zeros(2), name="emb", numbers=2)
    db.execute("ALTER TABLE documents ADD COLUMN age float8 DEFAULT 3")
    db.execute(
        "SELECT distill.register_model('both', %s, features => '{size,emb,age}', sample => 'documents', label => 'spam')",
        (artifact,),
    )
    db.execute("SELECT distill.create_function('both', 'f')")
    rows = db.execute("SELECT size, age, emb FROM documents ORDER BY id").fetchall()
    x = np.array([[*emb, size, age] for size, age, emb in rows])
    expected = softmax(x @ weights)[:, 1]
    for form in (
        "distill.predict('both', to_jsonb(t))",
        "distill.predict('both', size || emb::float8[] || age)",
        "distill.predict('both', array[size, age], '{}', emb)",
        "f(size, emb, age)",
    ):
        found = one(db, f"SELECT array_agg({form} ORDER BY id) FROM documents t")
        assert np.allclose(found, expected, atol=1e-5), form
    scored = db.execute("SELECT prediction FROM distill.score('both', 'documents', 'id') ORDER BY key::int")
    assert np.allclose([p for (p,) in scored], expected, atol=1e-5)


def test_a_student_of_a_vector_answers_as_its_teacher(db: psycopg.Connection) -> None:
    """Distil, predict in every way, and score; beside numbers and a category too."""
    documents = Documents(db)
    rng = np.random.default_rng(3)  # slow enough for a student to be faster
    hidden, weights = rng.standard_normal((LENGTH, 3000)), rng.standard_normal((3000, 2)) / 20
    documents.artifact = head(weights, np.zeros(2), hidden=hidden)
    documents.label = np.diff(np.maximum(documents.x @ hidden, 0) @ weights)[:, 0] > 0
    db.execute("UPDATE documents SET spam = (%s::bool[])[id + 1]", (documents.label.tolist(),))
    documents.register(db)
    db.execute(
        "SELECT distill_model('spam', metric => 'agreement', min_accuracy => 0, patience => 1, time_budget_s => 20,"
        " families => '{linear,mlp}')"
    )
    accepted, fidelity = one(
        db, "SELECT accepted, fidelity FROM distill.run_report(distill.last_run('spam'))"
    )
    assert accepted
    assert fidelity > 0.8  # of 120 rows, in a few seconds
    expected = one(
        db, "SELECT array_agg(distill.predict('spam_distilled', to_jsonb(t)) ORDER BY id) FROM documents t"
    )
    agree = np.mean((np.array(expected) > 0.5) == documents.label)
    assert agree > 0.85
    for form in (
        "distill.predict('spam_distilled', emb)",
        "(distill.predict_proba('spam_distilled', emb))[2]",
    ):
        found = one(db, f"SELECT array_agg({form} ORDER BY id) FROM documents t")
        assert np.allclose(found, expected, atol=1e-5), form
    many = (
        "INSERT INTO documents SELECT id + 600 * k, size, emb, spam FROM documents, generate_series(1, 19) k"
    )
    db.execute(many)
    scored = db.execute(
        "SELECT key::int, prediction FROM distill.score('spam_distilled', 'documents', 'id')"
    ).fetchall()
    assert len(scored) == 12_000
    assert np.allclose([p for _, p in scored], [expected[key % 600] for key, _ in scored], atol=1e-5)
    # A student has an answer to NULL, which its teacher has not.
    assert 0 <= one(db, "SELECT distill.predict('spam_distilled', jsonb_build_object('emb', NULL))") <= 1


@pytest.mark.extra
def test_sql_and_logged_teachers_have_vectors_too(db: psycopg.Connection) -> None:
    documents = Documents(db)
    db.execute("ALTER TABLE documents ADD COLUMN kind text, ADD COLUMN p float8")
    db.execute(
        "UPDATE documents SET kind = CASE id % 3 WHEN 0 THEN 'a' ELSE 'b' END, p = CASE WHEN spam THEN 0.9 ELSE 0.1 END"
    )
    db.execute("UPDATE documents SET emb = NULL WHERE id % 40 = 0")
    expression = (
        "CASE WHEN emb IS NULL THEN 0.5 ELSE 1 / (1 + exp(-8 * (emb[1] + emb[2]) - (kind = 'a')::int)) END"
    )
    db.execute(
        "SELECT distill.register_sql_model('formula', %s, '{kind,emb,size}', 'documents', 'spam')",
        (expression,),
    )
    found = one(db, "SELECT array_agg(distill.predict('formula', to_jsonb(t)) ORDER BY id) FROM documents t")
    expected = one(db, f"SELECT array_agg({expression} ORDER BY id) FROM documents t")
    assert np.allclose(found, expected)
    mixed = one(
        db,
        "SELECT array_agg(distill.predict('formula', emb::float8[] || size, array[kind]) ORDER BY id)"
        " FROM documents t WHERE emb IS NOT NULL",
    )
    assert np.allclose(mixed, [p for i, p in enumerate(expected) if i % 40])
    db.execute(
        "SELECT distill.register_logged_model('logged', '{p}', '{kind,emb,size}', 'documents', 'spam', latency_ms => 5)"
    )
    for teacher, families in (("formula", ["linear"]), ("logged", ["linear", "mlp"])):
        db.execute(
            "SELECT distill_model(%s, metric => 'agreement', families => %s, min_accuracy => 0, patience => 1, time_budget_s => 20)",
            (teacher, families),
        )
        fidelity = one(db, "SELECT fidelity FROM distill.run_report(distill.last_run(%s))", teacher)
        assert fidelity > 0.75, teacher
    assert len(documents.x) == ROWS


@pytest.mark.extra
@pytest.mark.parametrize("kind", ["vector", "halfvec"])
def test_columns_of_pgvector_are_vectors(db: psycopg.Connection, kind: str) -> None:
    """Whatever schema it is in: its types by their own names, in each way to predict; as arguments and as SQL teachers' columns."""
    if not one(db, "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"):
        pytest.skip("the server has no pgvector")
    db.execute('CREATE SCHEMA "its own"; CREATE EXTENSION vector SCHEMA "its own"')
    documents = Documents(db)
    db.execute(f'ALTER TABLE documents ALTER emb TYPE "its own".{kind}({LENGTH}) USING emb::"its own".{kind}')
    documents.register(db)
    assert one(db, "SELECT input_schema->'types'->>'emb' FROM distill.models") == f'"its own".{kind}'
    expected = one(db, "SELECT array_agg(distill.predict('spam', emb::real[]) ORDER BY id) FROM documents")
    assert np.allclose(expected, documents.p, atol=0.02)
    db.execute("SELECT distill.create_function('spam', 'f')")
    assert (
        one(db, "SELECT proargtypes[0]::regtype::text FROM pg_proc WHERE proname = 'f'")
        == f'"its own".{kind}'
    )
    for form in (
        "distill.predict('spam', to_jsonb(t))",
        "distill.predict('spam', '{}', '{}', emb::real[])",
        "(distill.predict_proba('spam', '{}', '{}', emb::real[]))[2]",
        "f(emb)",
    ):
        found = one(db, f"SELECT array_agg({form} ORDER BY id) FROM documents t")
        assert np.allclose(found, expected, atol=1e-5), form
    scored = db.execute("SELECT prediction FROM distill.score('spam', 'documents', 'id') ORDER BY key::int")
    assert np.allclose([p for (p,) in scored], expected, atol=1e-5)
    # What it calls is found by whoever wrote it.
    db.execute('SET search_path = public, "its own"')
    expression = f"1 / (1 + exp((emb <-> array_fill(0.1::real, array[{LENGTH}])::{kind}) - 1))"
    db.execute("SELECT distill.register_sql_model('near', %s, '{emb}', 'documents', 'spam')", (expression,))
    found = one(db, "SELECT array_agg(distill.predict('near', to_jsonb(t)) ORDER BY id) FROM documents t")
    assert np.allclose(
        found, one(db, f"SELECT array_agg({expression} ORDER BY id) FROM documents t"), atol=1e-6
    )
    db.execute(
        "SELECT distill_model('near', families => '{linear,mlp}', metric => 'agreement', min_accuracy => 0, patience => 1, time_budget_s => 20)"
    )
    with pytest.raises(errors.DataException):
        db.execute(f"SELECT f('[1,2]'::\"its own\".{kind})")
