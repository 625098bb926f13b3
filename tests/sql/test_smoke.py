"""The main job in a few seconds, for `make quick`: registered, distilled, predicted, written as SQL, and refused."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from psycopg import errors
from sql.conftest import load_cancer, one

DISTIL = (
    "SELECT distill_model('cancer', min_accuracy => 0.8, time_budget_s => 3, families => '{linear,tree}')"
)


def test_a_teacher_becomes_a_student_that_predicts_here_and_as_sql(db: psycopg.Connection) -> None:
    load_cancer(db)
    student = one(db, DISTIL)
    name, faster, kept = one(
        db,
        "SELECT s.name, s.avg_latency_ms < t.avg_latency_ms, s.accuracy / t.accuracy"
        " FROM distill.models s JOIN distill.models t ON t.id = s.teacher_id WHERE s.id = %s",
        student,
    )
    assert (name, faster) == ("cancer_distilled", True)
    assert kept > 0.85
    low, high = one(
        db, "SELECT min(p), max(p) FROM cancer c, distill.predict('cancer_distilled', to_jsonb(c)) p"
    )
    assert 0 <= low < 0.5 < high <= 1

    # The answer may be a blend, which has no expression: any that has one and is not registered yet.
    id_ = one(
        db,
        "SELECT distill.promote_candidate(run_id, candidate) FROM distill.candidates c WHERE expression IS NOT NULL"
        " AND artifact IS NOT NULL AND form = 'predict' AND sha256 NOT IN (SELECT sha256 FROM distill.models WHERE sha256 IS NOT NULL)"
        " ORDER BY candidate LIMIT 1",
    )
    other = one(db, "SELECT name || ':' || version FROM distill.models WHERE id = %s", id_)
    expression = one(db, "SELECT distill.to_sql(%s)", other)
    off = one(db, f"SELECT max(abs(distill.predict(%s, to_jsonb(c)) - ({expression}))) FROM cancer c", other)
    assert off < 1e-5


def test_what_is_not_there_has_its_sqlstate(db: psycopg.Connection) -> None:
    with pytest.raises(errors.UndefinedObject):
        db.execute("SELECT distill.predict('nobody', ARRAY[1.0])")
    with pytest.raises(errors.UndefinedObject):
        db.execute("SELECT distill_model('nobody')")


def test_a_file_that_is_no_model_is_refused(db: psycopg.Connection) -> None:
    with pytest.raises(errors.InvalidBinaryRepresentation):
        db.execute("SELECT distill.register_model('broken', 'no model at all'::bytea)")
    assert one(db, "SELECT count(*) FROM distill.models") == 0


def test_who_has_no_rights_gets_nothing(
    db: psycopg.Connection, connect: Callable[..., psycopg.Connection], role: Callable[..., str]
) -> None:
    load_cancer(db)
    stranger = connect(user=role("stranger"))
    for statement in (
        "SELECT * FROM distill.models",
        DISTIL,
        "SELECT distill.predict('cancer', '{}'::jsonb)",
    ):
        with pytest.raises(errors.InsufficientPrivilege):
            stranger.execute(statement)  # type: ignore[arg-type]
