"""The tokeniser as SQL against numpy's, on a PostgreSQL that has never heard of pg_distill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pg_distill.onnx_model.tokens import MARKS, Tokeniser
from pg_distill.students.tokens_sql import Inline, Stored, create_table, sums_query
from servers import Server
from text_rows import NGRAMS, SPECIAL, texts

WEIGHTS = np.random.default_rng(0).integers(-(2**20), 2**20, (NGRAMS.size, 3))
STORED = Stored("pg_temp.ngrams", NGRAMS, WEIGHTS)
FORMS = [pytest.param(Inline(NGRAMS, WEIGHTS), id="inline"), pytest.param(STORED, id="stored")]


def add_up(connection: psycopg.Connection, rows: Sequence[str | None], vocabulary: Inline | Stored) -> None:
    """Compare the sums of SQL with those of numpy."""
    bags = vocabulary.tokeniser.bags(rows)
    expected = np.zeros((len(rows), WEIGHTS.shape[1]), np.int64)
    np.add.at(expected, bags.rows, WEIGHTS[bags.ids])
    connection.execute("CREATE TEMP TABLE t (i int, body text)")
    with connection.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
        for row in enumerate(rows):
            copy.write_row(row)
    query = f"SELECT s.* FROM t, LATERAL ({sums_query('t.body', vocabulary)}) AS s ORDER BY t.i"
    found = connection.execute(query).fetchall()
    connection.execute("DROP TABLE t")
    assert np.array(found, np.int64).tolist() == expected.tolist()


@pytest.fixture
def ngrams(server: Server) -> Iterator[psycopg.Connection]:
    """Give a session in a database without the extension, with the table of `STORED`."""
    with server.connect(autocommit=True) as connection:
        for statement in create_table([STORED]):
            connection.execute(statement)
        yield connection


@pytest.mark.every_server
@pytest.mark.parametrize("vocabulary", FORMS)
def test_awkward_texts(ngrams: psycopg.Connection, vocabulary: Inline | Stored) -> None:
    long = ("a b " * 25_000, "東京" * 20_000, "a, b. " * 20_000)
    add_up(ngrams, [*SPECIAL, *(text * 50 for text in SPECIAL), None, "Not good, bad! ", *long], vocabulary)


@pytest.mark.parametrize("vocabulary", FORMS)
@given(rows=st.lists(st.one_of(st.none(), texts()), min_size=20, max_size=40))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_texts(
    ngrams: psycopg.Connection, vocabulary: Inline | Stored, rows: list[str | None]
) -> None:
    add_up(ngrams, rows, vocabulary)


@pytest.mark.parametrize("vocabulary", FORMS)
def test_a_session_changes_nothing(ngrams: psycopg.Connection, vocabulary: Inline | Stored) -> None:
    ngrams.execute("SET standard_conforming_strings = off; SET escape_string_warning = off")
    ngrams.execute("SET search_path = pg_temp; SET enable_hashjoin = off; SET enable_indexscan = off")
    add_up(ngrams, ["Not good!", "ZÜRICH МОСКВА", "\\u0000", "'"], vocabulary)


@pytest.mark.parametrize(
    "part",
    [Tokeniser(NGRAMS.words, "", ()), Tokeniser((), MARKS, ()), Tokeniser(NGRAMS.words, "", NGRAMS.pairs)],
)
def test_vocabularies_without_a_kind(ngrams: psycopg.Connection, part: Tokeniser) -> None:
    add_up(ngrams, ["Not good!", None, "", "ZÜRICH, 東京..."], Inline(part, WEIGHTS[: part.size]))
