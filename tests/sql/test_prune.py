"""What grows old can be removed; what others depend on never is."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors
from sql.conftest import load_cancer, student_of_cancer

ALL = "keep_versions => 0, dry_run => false"


@pytest.fixture
def old(db: psycopg.Connection) -> psycopg.Connection:
    """Give a database with five versions of one SQL model, the last of them active, a minute apart."""
    db.execute("CREATE TABLE numbers AS SELECT i::float8 AS x, i % 2 AS label FROM generate_series(1, 200) i")
    for version in range(1, 6):
        db.execute(
            "SELECT distill.register_sql_model('m', %s, '{x}', 'numbers', 'label')",
            (f"0.5 + 0 * x + 0 * {version}",),
        )
    db.execute("ALTER TABLE distill.models DISABLE TRIGGER protect_model")
    db.execute("UPDATE distill.models SET created_at = now() - (6 - version::int) * interval '1 minute'")
    db.execute("ALTER TABLE distill.models ENABLE TRIGGER protect_model")
    return db


def pruned(db: psycopg.Connection, arguments: str) -> set[str]:
    rows = db.execute(f"SELECT version FROM distill.prune({arguments}) WHERE pruned AND kind = 'version'")
    return {row[0] for row in rows}


def versions(db: psycopg.Connection) -> set[str]:
    return {row[0] for row in db.execute("SELECT version FROM distill.models")}


def test_a_dry_run_says_what_would_go_and_removes_nothing(old: psycopg.Connection) -> None:
    rows = old.execute(
        "SELECT version, pruned, reason, size_bytes > 0 FROM distill.prune(keep_versions => 2) ORDER BY version"
    ).fetchall()
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(not row[1] and row[2] and row[3] for row in rows)
    assert versions(old) == {"1", "2", "3", "4", "5"}


def test_bounds_hold_together(old: psycopg.Connection) -> None:
    assert pruned(old, "3, '3.5 minutes', dry_run => false") == {"1", "2"}
    assert pruned(old, "1, '2.5 minutes', dry_run => false") == {"3"}
    assert pruned(old, "older_than => '1 day', dry_run => false") == set()
    assert pruned(old, "older_than => '1 second', model_name => 'other', dry_run => false") == set()
    assert versions(old) == {"4", "5"}


def test_the_active_version_stays(old: psycopg.Connection) -> None:
    old.execute("SELECT distill.activate_model('m', '2')")
    assert pruned(old, ALL) == {"1", "3", "4", "5"}
    assert old.execute("SELECT distill.predict('m', '{1}'::float8[])").fetchone() == (0.5,)


def test_what_sql_names_stays(old: psycopg.Connection) -> None:
    old.execute("SELECT distill.create_function('m:1', 'first_of_m')")
    old.execute("CREATE VIEW scored AS SELECT distill.predict('m:2', ARRAY[x]) AS p FROM numbers")
    old.execute(
        "CREATE FUNCTION third(float8) RETURNS float8 STABLE LANGUAGE sql RETURN distill.predict('m:3', ARRAY[$1])"
    )
    assert pruned(old, ALL) == {"4"}
    reasons = dict(
        old.execute("SELECT version, reason FROM distill.prune(keep_versions => 0)").fetchall()  # type: ignore[arg-type]
    )
    assert [name in reasons[v] for v, name in (("1", "first_of_m"), ("2", "scored"), ("3", "third"))] == [
        True
    ] * 3
    assert old.execute("SELECT first_of_m(1), min(p), third(1) FROM scored").fetchone() == (0.5, 0.5, 0.5)


def test_a_teacher_stays_while_its_students_do(db: psycopg.Connection) -> None:
    load_cancer(db)
    for name in ("one", "two"):
        student_of_cancer(db, name)
    [before] = db.execute("SELECT candidate_bytes FROM distill.metrics").fetchone() or [0]
    assert before > 0
    db.execute("SELECT distill.register_sql_model('cancer', '0.5 + 0 * x0', '{x0}', 'cancer', 'malignant')")
    rows = db.execute(
        "SELECT name, pruned, reason FROM distill.prune(0, dry_run => false) WHERE kind = 'version'"
    ).fetchall()
    assert not any(row[1] for row in rows)
    assert {row[2].split(":")[0] for row in rows if "teacher" in row[2]} <= {
        "it is the teacher of one",
        "it is the teacher of two",
    }
    assert db.execute("SELECT candidate_bytes FROM distill.metrics").fetchone() == (0,)
    [run, candidate] = db.execute(
        "SELECT run_id, candidate FROM distill.candidates WHERE on_frontier LIMIT 1"
    ).fetchone() or [None, None]
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        db.execute("SELECT distill.promote_candidate(%s, %s)", (run, candidate))
    # Without the students the teacher is old too.
    db.execute("SELECT distill.drop_model(name) FROM distill.models WHERE name IN ('one', 'two')")
    assert pruned(db, ALL) == {"1"}
    assert db.execute("SELECT count(*) > 0 FROM distill.runs WHERE teacher_id IS NULL").fetchone() == (True,)


@pytest.mark.parametrize(
    "arguments",
    ["", "keep_versions => -1", "older_than => '-1 day'", "dry_run => false"],
)
def test_bad_bounds(db: psycopg.Connection, arguments: str) -> None:
    with pytest.raises(errors.InvalidParameterValue):
        db.execute(f"SELECT * FROM distill.prune({arguments})")


def test_sizes_add_up(db: psycopg.Connection) -> None:
    load_cancer(db)
    db.execute(
        "SELECT distill_model('cancer', families => '{linear}', time_budget_s => 3, patience => 1, min_accuracy => 0)"
    )
    # Whether the run gave a student depends on its rows: the sums are over all models.
    own = db.execute("SELECT size_bytes = stored_bytes FROM distill.sizes WHERE name = 'cancer'").fetchone()
    assert own == (True,)
    size, kept, candidates = (
        db.execute(
            "SELECT sum(size_bytes), sum(kept_candidates), sum(candidate_bytes) FROM distill.sizes"
        ).fetchone()
        or [None] * 3
    )
    assert db.execute("SELECT sum(length(artifact)), count(artifact) FROM distill.candidates").fetchone() == (
        candidates,
        kept,
    )
    assert db.execute("SELECT artifact_bytes FROM distill.metrics").fetchone() == (size,)
