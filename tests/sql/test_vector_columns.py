"""Vectors of other types, widths and columns: halfvec and its casts, 2,048 numbers beside 500 columns, dumps, listings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psycopg
import pytest
import servers
from psycopg import errors
from sql.conftest import one
from sql.test_vectors import LENGTH, Documents, literal, softmax
from vector_rows import embeddings, head

RESTORED = "vectors_restored"


def install_pgvector(db: psycopg.Connection) -> None:
    if not one(db, "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"):
        pytest.skip("the server has no pgvector")
    db.execute('CREATE SCHEMA "its own"; CREATE EXTENSION vector SCHEMA "its own"')


def log_and_distil(db: psycopg.Connection, more: str = "families => '{linear}', time_budget_s => 30") -> None:
    db.execute("ALTER TABLE documents ADD COLUMN p float8")
    db.execute("UPDATE documents SET p = CASE WHEN spam THEN 0.9 ELSE 0.1 END")
    db.execute(
        "SELECT distill.register_logged_model('log', '{p}', '{emb,size}', 'documents', 'spam', latency_ms => 5)"
    )
    assert one(db, f"SELECT distill_model('log', min_accuracy => 0, patience => 1, {more}) IS NOT NULL")


@pytest.mark.one_server("pg18")
@pytest.mark.parametrize("kind", ["vector", "halfvec"])
def test_a_student_of_pgvectors_types(db: psycopg.Connection, kind: str) -> None:
    """Distil from a column of it; predict by row, by cast, by a function of its type, by score; NULL too; 22000 with the row."""
    install_pgvector(db)
    documents = Documents(db)
    db.execute(f'ALTER TABLE documents ALTER emb TYPE "its own".{kind}({LENGTH}) USING emb::"its own".{kind}')
    db.execute("UPDATE documents SET emb = NULL WHERE id % 50 = 0")
    log_and_distil(db)
    db.execute("SELECT distill.create_function('log_distilled', 'f')")
    expected = one(
        db, "SELECT array_agg(distill.predict('log_distilled', to_jsonb(t)) ORDER BY id) FROM documents t"
    )
    assert np.mean((np.array(expected) > 0.5) == documents.label) > 0.75
    for form in (
        "f(emb, size)",
        "distill.predict('log_distilled', ARRAY[size], '{}', emb::real[])",
        "(distill.predict_proba('log_distilled', ARRAY[size], '{}', emb::real[]))[2]",
    ):
        found = one(db, f"SELECT array_agg({form} ORDER BY id) FROM documents t")
        assert np.allclose(found, expected, atol=1e-5), form
    scored = db.execute(
        "SELECT prediction FROM distill.score('log_distilled', 'documents', 'id') ORDER BY key::int"
    )
    assert np.allclose([p for (p,) in scored], expected, atol=1e-5)
    for given in (
        f"'[1,2]'::\"its own\".{kind}",
        f"'[{','.join(['1'] * (LENGTH + 1))}]'::\"its own\".{kind}",
    ):
        for form in (f"f({given}, 1)", f"distill.predict('log_distilled', ARRAY[1.0], '{{}}', ({given})::real[])",
                     f"distill.predict('log_distilled', jsonb_build_object('size', 1, 'emb', {given}))"):  # fmt: skip
            with pytest.raises(errors.DataException) as refused:
                db.execute(f"SELECT {form}")
            assert refused.value.sqlstate == "22000", form
    # A column without a length of its own, one row of which is longer.
    db.execute(f'ALTER TABLE documents ALTER emb TYPE "its own".{kind}')
    db.execute("UPDATE documents SET emb = '[1,2]' WHERE id = 77")
    for statement in (
        "SELECT * FROM distill.score('log_distilled', 'documents', 'id')",
        "SELECT distill_model('log', families => '{linear}', time_budget_s => 30)",
        "SELECT * FROM distill.check('log_distilled')",
    ):
        with pytest.raises(errors.DataException) as refused:
            db.execute(statement)
        assert refused.value.sqlstate == "22000", statement
        assert "77" in str(refused.value) or repr(one(db, "SELECT size FROM documents WHERE id = 77")) in str(
            refused.value
        )


@pytest.mark.local
@pytest.mark.extra
def test_2048_numbers_beside_500_columns(db: psycopg.Connection) -> None:
    """The widest vector beside as many columns as a wide table has: registered, predicted in each way, scored, distilled."""
    rows, length, others = 240, 2048, 500
    x, _ = embeddings(rows, length)
    rng = np.random.default_rng(2)
    own = rng.standard_normal((rows, others))
    weights = rng.standard_normal((length + others, 2)) / 4
    expected = softmax(np.concatenate([x, own], axis=1) @ weights)[:, 1]
    names = [f"c{j}" for j in range(others)]
    db.execute(
        f"CREATE TABLE wide (id int, emb real[], spam bool, p float8, {', '.join(f'{n} float8' for n in names)})"
    )
    with db.cursor().copy("COPY wide FROM STDIN") as copy:
        for i in range(rows):
            copy.write_row(
                (i, literal(x[i]), bool(expected[i] > 0.5), float(expected[i]), *map(float, own[i]))
            )
    db.execute(
        "SELECT distill.register_model('head', %s, features => %s, sample => 'wide', label => 'spam')",
        (head(weights, np.zeros(2), name="emb", numbers=others), ["emb", *names]),
    )
    db.execute("SELECT distill.create_function('head', 'f')")  # over a row type: there are over 100 arguments
    for form, some in (
        (f"distill.predict('head', ARRAY[{', '.join(names)}], '{{}}', emb)", rows),
        (f"f(row(emb, {', '.join(names)})::f_features)", rows),
        ("distill.predict('head', to_jsonb(t))", 10),
    ):
        found = one(db, f"SELECT array_agg({form} ORDER BY id) FROM (SELECT * FROM wide WHERE id < {some}) t")
        assert np.allclose(found, expected[:some], atol=1e-4), form
    scored = db.execute("SELECT prediction FROM distill.score('head', 'wide', 'id') ORDER BY key::int")
    assert np.allclose([p for (p,) in scored], expected, atol=1e-4)
    # A student has an answer to a vector that is NULL, too.
    db.execute("UPDATE wide SET emb = NULL WHERE id % 60 = 1")
    db.execute(
        "SELECT distill.register_logged_model('log', '{p}', %s, 'wide', 'spam', latency_ms => 50)",
        (["emb", *names],),
    )
    db.execute(
        "SELECT distill_model('log', families => '{linear}', min_accuracy => 0, patience => 1, time_budget_s => 30)"
    )
    assert one(db, "SELECT count(*) FROM distill.candidates WHERE artifact IS NOT NULL") > 0


@pytest.mark.local
def test_a_vector_is_no_text(db: psycopg.Connection) -> None:
    """text_columns does not make words of numbers, nor does a cast unnoticed; a text is no vector either."""
    Documents(db)
    db.execute(
        "ALTER TABLE documents ADD COLUMN p float8 DEFAULT 0.5, ADD COLUMN words text DEFAULT 'some words'"
    )
    for columns in ("{emb}", "{words,emb}"):
        with pytest.raises(psycopg.Error) as refused:
            db.execute(
                "SELECT distill.register_logged_model('log', '{p}', '{emb,words}', 'documents', 'spam', latency_ms => 5,"
                " text_columns => %s)", (columns,))  # fmt: skip
        assert refused.value.sqlstate in ("22023", "42804"), columns
    db.execute(
        "SELECT distill.register_logged_model('log', '{p}', '{emb,words}', 'documents', 'spam', latency_ms => 5)"
    )
    with pytest.raises(psycopg.Error) as refused:
        db.execute("SELECT distill_model('log', text_columns => '{emb}')")
    assert refused.value.sqlstate in ("22023", "42804")
    # The column becomes a text after the model was registered: the kind that it has is said, and no numbers are read of it.
    db.execute("ALTER TABLE documents ALTER emb TYPE text USING emb::text")
    for statement in (
        "SELECT distill_model('log', families => '{linear}', time_budget_s => 30)",
        "SELECT distill_model('log', families => '{linear}', time_budget_s => 30, text_columns => '{emb}')",
    ):
        with pytest.raises(psycopg.Error) as refused:
            db.execute(statement)
        assert refused.value.sqlstate in ("42804", "22023"), statement


@pytest.mark.local
@pytest.mark.parametrize(
    "bad",
    [
        "array_append(emb[:23], NULL)",
        "array_fill(1::real, array[4, 6])",
        "emb[:23]",
        "emb || 1::real",
        "'{}'::real[]",
    ],
)
def test_a_sample_with_one_odd_vector_names_the_row(db: psycopg.Connection, bad: str) -> None:
    """NULL among the numbers, two dimensions, too few, too many, none: at registration, and when the table has changed since."""
    Documents(db)
    db.execute("ALTER TABLE documents ADD COLUMN p float8 DEFAULT 0.5")
    register = (
        "SELECT distill.register_logged_model(%s, '{p}', '{size,emb}', 'documents', 'spam', latency_ms => 5)"
    )
    db.execute(register, ("log",))
    db.execute(f"UPDATE documents SET emb = {bad}, size = 123.25 WHERE id = 77")
    for statement, arguments in (
        (register, ("late",)),
        ("SELECT distill_model('log', families => '{linear}', time_budget_s => 30)", None),
    ):
        with pytest.raises(errors.DataException) as refused:
            db.execute(statement, arguments)  # type: ignore[arg-type]
        assert refused.value.sqlstate == "22000"
        assert "123.25" in str(refused.value)


@pytest.mark.one_server("pg18")
@pytest.mark.parametrize("kind", ["real[]", "halfvec"])
def test_a_dump_takes_students_of_vectors_along(
    db: psycopg.Connection, server: servers.Server, database: str, kind: str
) -> None:
    Documents(db)
    if kind == "halfvec":
        install_pgvector(db)
        db.execute('ALTER TABLE documents ALTER emb TYPE "its own".halfvec USING emb::"its own".halfvec')
    log_and_distil(db)
    db.execute("SELECT distill.create_function('log_distilled', 'f')")
    query = (
        "SELECT array_agg(f(emb, size)::text ORDER BY id), (SELECT input_schema FROM distill.models WHERE name = 'log_distilled')"
        " FROM documents"
    )
    before = one(db, query)
    if isinstance(server, servers.External):
        pytest.skip("nothing is run on the host of somebody else's server")
    host = ["--host", str(server.directory)] if isinstance(server, servers.Local) else []
    host += ["--username", "postgres"]
    servers.drop_database(server, RESTORED)
    db.execute(f"CREATE DATABASE {RESTORED} TEMPLATE template0 ENCODING 'UTF8'")
    try:
        dump = server.run("pg_dump", *host, database).stdout
        server.run("psql", *host, "--quiet", "-v", "ON_ERROR_STOP=1", RESTORED, stdin=dump)
        with server.connect(RESTORED, autocommit=True) as restored:
            assert one(restored, query) == before
    finally:
        servers.drop_database(server, RESTORED)


@pytest.mark.local
def test_listings_and_predictions_of_the_command_line(
    db: psycopg.Connection, server: servers.Server, database: str, tmp_path: Path
) -> None:
    documents = Documents(db)
    documents.register(db)

    def cli(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pg_distill.cli", *arguments, "--dsn", server.conninfo(dbname=database)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    [listed] = json.loads(cli("models", "--json"))
    assert listed["name"] == "spam"
    row = {"emb": documents.x[0].tolist()}
    [answer] = json.loads(cli("predict", "spam", "--row", json.dumps(row), "--json"))
    assert np.allclose(answer["probabilities"][1], documents.p[0], atol=1e-5)
    cli("export", "spam", "--to", str(tmp_path))
    [path] = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["kinds"] == ["vector"]
    assert f"(vector of {LENGTH} numbers)" in path.with_suffix(".md").read_text()
    db.execute("SELECT distill.drop_model('spam')")
    assert "sample" in cli("import", str(path), code=1)  # which says how long vectors are
    cli("import", str(path), "--sample", "documents")
    assert np.allclose(
        one(db, "SELECT array_agg(distill.predict('spam', emb) ORDER BY id) FROM documents"),
        documents.p,
        atol=1e-5,
    )
