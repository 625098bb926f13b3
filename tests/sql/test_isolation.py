"""A transaction whose snapshot is older than what others have committed breaks nothing, and is told so by a SQLSTATE."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from psycopg import errors
from sql.conftest import load_cancer, student_of_cancer
from sql.test_serving import value

pytestmark = pytest.mark.every_server

Connect = Callable[..., psycopg.Connection]
PROMOTE = (
    "SELECT distill.promote_candidate(run_id, candidate) FROM distill.candidates WHERE on_frontier LIMIT 1"
)
LEVELS = ("REPEATABLE READ", "SERIALIZABLE")


def begin(connection: psycopg.Connection, level: str) -> psycopg.Connection:
    """Begin a transaction that has its snapshot."""
    connection.execute(f"BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM distill.models")
    return connection


@pytest.mark.any_server
def test_no_teacher_is_dropped_under_a_student_that_the_snapshot_lacks(
    db: psycopg.Connection, connect: Connect
) -> None:
    load_cancer(db)
    student_of_cancer(db, "student")
    db.execute("SELECT distill.drop_model('student')")
    other = connect()
    orphans = (
        "SELECT count(*) FROM distill.models s WHERE s.teacher_id IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM distill.models t WHERE t.id = s.teacher_id)"
    )
    for level in LEVELS:
        begin(other, level)
        db.execute(PROMOTE)
        with pytest.raises(errors.SerializationFailure):
            other.execute("SELECT distill.drop_model('cancer')")
        other.execute("ROLLBACK")
        assert value(db, orphans) == 0
        db.execute("SELECT distill.drop_model('student')")
    # The other way round, last, as the teacher goes.
    third = connect()
    for each, level in zip((other, third), LEVELS, strict=True):
        begin(each, level)
    db.execute("SELECT distill.drop_model('cancer')")
    for each in (other, third):
        with pytest.raises(errors.SerializationFailure):
            each.execute(PROMOTE)
        each.execute("ROLLBACK")
    assert value(db, "SELECT count(*) FROM distill.models") == 0


def test_a_sample_that_is_newer_than_the_snapshot(db: psycopg.Connection, connect: Connect) -> None:
    other = begin(connect(), "REPEATABLE READ")
    db.execute(
        "CREATE TYPE late AS ENUM ('a', 'b');"
        "CREATE TABLE later AS SELECT i::float8 AS x, 'a'::late AS y FROM generate_series(1, 100) i"
    )
    for sample in ("later", "SELECT * FROM later"):
        other.execute("SAVEPOINT before")
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            other.execute(
                "SELECT distill.register_sql_model('m', 'x', '{x}', %s, task => 'regression')", (sample,)
            )
        other.execute("ROLLBACK TO before")
