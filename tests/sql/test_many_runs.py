"""Over many runs no member of a family is judged, shown or chosen by rows that it has learned from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
import pytest
import servers
from conftest import create_database, drop_database
from psycopg import errors
from psycopg.rows import dict_row
from sql.conftest import load_visits, one

DATABASE = "pg_distill_many_runs"
ROWS, COLUMNS, GROUPS = 3000, 4, 300
QUICK = "families => '{linear}', time_budget_s => 1, patience => 1, min_accuracy => 0"
OUTSIDE = (
    "SELECT n.row FROM distill.run_rows(%s) n WHERE n.split = 'test' AND NOT EXISTS"
    " (SELECT FROM distill.run_rows(%s) o WHERE o.split IN ('fit', 'select') AND o.row = n.row)"
)


@dataclass
class Family:
    """A noisy table, a teacher that knows its rule, and what a first run of seed 42 left.

    ``memory`` is a tree that knows by heart the rows that this run learned from, as if it were the run's student; ``ancient``
    is another, as an older release would have left it.
    """

    db: psycopg.Connection
    first: str


@pytest.fixture(scope="module")
def family(server: servers.Server, template: str) -> Iterator[Family]:
    create_database(server, DATABASE, template)
    with server.connect(DATABASE, autocommit=True) as db:
        load(db)
        first = distil(db, "seed => 42")
        plant_memory(db, first)
        yield Family(db, first)
    drop_database(server, DATABASE)


def distil(db: psycopg.Connection, arguments: str) -> str:
    """Run a distillation; return the run's id."""
    db.execute(f"SELECT distill_model('teacher', {QUICK}, {arguments})")  # type: ignore[arg-type]
    return str(one(db, "SELECT distill.last_run('teacher')"))


def load(db: psycopg.Connection) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, COLUMNS)).round(3)
    label = (x[:, 0] + rng.logistic(size=ROWS) * 0.9 > 0).astype(int)
    load_visits(db, x, label, GROUPS)
    db.execute(
        "SELECT distill.register_sql_model('teacher', '1 / (1 + exp(-1.1 * x0))', '{x0,x1,x2,x3}', 'visits', 'ill')"
    )


def plant_memory(db: psycopg.Connection, run: str) -> None:
    from skl2onnx import to_onnx
    from sklearn.tree import DecisionTreeClassifier

    rows = db.execute(
        "SELECT ARRAY[(r.row->>'x0')::float8, (r.row->>'x1')::float8, (r.row->>'x2')::float8, (r.row->>'x3')::float8],"
        " (r.row->>'ill')::int FROM distill.run_rows(%s) r WHERE r.split IN ('fit', 'select')",
        (run,),
    ).fetchall()
    x, y = np.array([r[0] for r in rows], np.float32), np.array([r[1] for r in rows])
    for seed, name in enumerate(("memory", "ancient")):
        tree = DecisionTreeClassifier(random_state=seed).fit(x, y)
        artifact = to_onnx(
            tree, x[:1], target_opset={"": 17, "ai.onnx.ml": 3}, options={"zipmap": False}
        ).SerializeToString()
        db.execute(
            "SELECT distill.register_model(%s, %s, features => '{x0,x1,x2,x3}', sample => 'visits', label => 'ill')",
            (name, artifact),
        )
    # Only a superuser may.
    db.execute("SET session_replication_role = replica")
    db.execute(
        "UPDATE distill.models m SET teacher_id = t.id, learned_from = CASE m.name WHEN 'memory' THEN r.learned_from END"
        " FROM distill.models t, distill.runs r WHERE m.name IN ('memory', 'ancient') AND t.name = 'teacher' AND r.run_id = %s",
        (run,),
    )
    db.execute("SET session_replication_role = origin")


def stored(db: psycopg.Connection, name: str) -> dict[str, Any]:
    with db.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT m.accuracy, m.accuracy_low, m.accuracy_high, m.measured_on, f.comparable_low, f.comparable_high, f.accuracy_run_id"
            " FROM distill.models m JOIN distill.families f ON f.model_id = m.id WHERE m.name = %s",
            (name,),
        )
        [row] = cursor.fetchall()
    return row


def check(db: psycopg.Connection, name: str, arguments: str) -> dict[str, Any]:
    with db.cursor(row_factory=dict_row) as cursor:
        cursor.execute(f"SELECT * FROM distill.check('{name}', {arguments})")  # type: ignore[arg-type]
        return {row["figure"]: row for row in cursor.fetchall()}


def test_check_leaves_out_what_was_learned(family: Family) -> None:
    db = family.db
    db.execute(
        "CREATE TABLE mixed AS SELECT * FROM visits WHERE id < 1000 UNION ALL"
        " SELECT 10000 + id, x3, x0, x1, x2, patient, seen, (x3 > 0)::int FROM visits WHERE id >= 2000;"
        " CREATE TABLE fresh AS SELECT * FROM mixed WHERE id >= 10000"
    )
    seen = one(
        db,
        "SELECT count(*) FROM mixed m WHERE EXISTS (SELECT FROM distill.run_rows(%s) r WHERE r.split IN ('fit', 'select')"
        " AND (r.row->>'id')::int = m.id)",
        family.first,
    )
    found = check(db, "memory", "'mixed'")["accuracy"]
    assert found["learned_share"] == pytest.approx(seen / 2000)
    assert found["row_count"] == 2000 - seen
    every = check(db, "memory", "'mixed', include_learned => true")["accuracy"]
    assert (every["row_count"], every["learned_share"]) == (2000, found["learned_share"])
    assert every["fresh"] > found["fresh"] + 0.05
    assert check(db, "memory", "'fresh'")["accuracy"]["learned_share"] == 0
    db.execute(
        "CREATE TABLE seen AS SELECT (jsonb_populate_record(NULL::visits, r.row)).*"
        f" FROM distill.run_rows('{family.first}') r WHERE r.split = 'fit'"
    )
    with pytest.raises(errors.DataException) as raised:
        check(db, "memory", "'seen'")
    assert raised.value.diag.message_hint
    # Of what older releases left nobody knows.
    assert check(db, "ancient", "'mixed'")["accuracy"]["learned_share"] is None


def test_a_student_that_knows_the_rows_by_heart_wins_nothing(family: Family) -> None:
    """A second run with another seed, then with groups, then by time: what saw the rows neither blocks, rises nor is chosen."""
    db, first = family.db, family.first
    ancient = stored(db, "ancient")["accuracy"]
    assert stored(db, "memory")["accuracy"] > 0.85 < ancient  # as registered, on rows that they know

    second = distil(db, "seed => 7")
    clean = one(db, f"SELECT count(*) FROM ({OUTSIDE}) s", second, first)
    test = one(db, "SELECT rows_test FROM distill.runs WHERE run_id = %s", second)
    assert 100 <= clean < 0.3 * test
    now = stored(db, "memory")
    assert now["measured_on"]["run_id"] == second
    assert (now["measured_on"]["rows"], now["measured_on"]["rows_test"]) == (clean, test)
    right = "avg((distill.predict_class('memory', s.row) = s.row->>'ill')::int)::float8"
    assert now["accuracy"] == pytest.approx(
        one(db, f"SELECT {right} FROM ({OUTSIDE}) s", second, first), abs=1e-9
    )
    assert now["accuracy"] < 0.75
    # Had all rows judged it:
    assert one(db, f"SELECT {right} FROM distill.run_rows(%s) s WHERE s.split = 'test'", second) > 0.85
    student, accuracy, reason = one(
        db,
        "SELECT student_id, student_accuracy, (SELECT reason FROM distill.candidates c WHERE c.run_id = r.run_id AND chosen)"
        " FROM distill.runs r WHERE run_id = %s",
        second,
    )
    assert now["comparable_low"] < now["comparable_high"] < accuracy + 0.1
    assert student is not None or "memory" not in reason
    chosen = "SELECT distill.choose_model('teacher')"
    assert not one(db, chosen).startswith(("memory", "ancient"))

    for arguments in ("group_column => 'patient'", "time_column => 'seen'"):
        third = distil(db, arguments)
        summary, rows, reasons = one(
            db,
            "SELECT summary, figures->'family'->'memory:1'->>'rows', (SELECT string_agg(reason, ' ') FROM distill.candidates c"
            " WHERE c.run_id = r.run_id) FROM distill.runs r WHERE run_id = %s",
            third,
        )
        assert "memory:1" in summary and "memory" not in reasons and rows == "0"
        for name, before, origin in (
            ("memory", now["accuracy"], second),
            ("ancient", ancient, "unknown"),
        ):
            after = stored(db, name)
            assert after["accuracy"] == before
            assert after["accuracy_run_id"] == after["measured_on"]["accuracy_run_id"] == origin
            assert after["measured_on"]["run_id"] == third  # its latency is this run's
        assert not one(db, chosen).startswith(("memory", "ancient"))
        # Figures of other rows keep nobody off the frontier, however much better they look.
        assert one(db, "SELECT count(*) FROM distill.frontier WHERE name = 'ancient'") == 1
    db.execute("SELECT distill.remeasure('teacher')")
    assert stored(db, "ancient")["accuracy"] == ancient


def test_a_teacher_that_is_a_student_is_not_judged_by_its_own_rows(family: Family) -> None:
    db = family.db
    call = f"SELECT distill_model('memory', {QUICK}, %s)"
    db.execute(call.replace("%s", "seed => 7"))
    known, rows, accuracy = one(
        db,
        "SELECT (SELECT count(*) FROM distill.run_rows(r.run_id) n JOIN distill.run_rows(%s) o ON o.row = n.row"
        "        WHERE n.split = 'test' AND o.split IN ('fit', 'select')), rows_test, teacher_accuracy"
        " FROM distill.runs r WHERE run_id = distill.last_run('memory')",
        family.first,
    )
    assert known == 0 < rows
    assert accuracy < 0.75
    # By time it has seen the future of every row: nothing is left that could judge it.
    with pytest.raises(errors.DataException) as raised:
        db.execute(call.replace("%s", "time_column => 'seen'"))
    assert "seed" in str(raised.value.diag.message_hint)


@pytest.mark.extra
def test_rows_that_a_teacher_was_trained_on_are_remembered(family: Family) -> None:
    db = family.db
    db.execute("CREATE TABLE known AS SELECT * FROM visits WHERE mod(id, 2) = 0")
    distil(db, "trained_on => 'known', student_name => 'other'")
    again = distil(db, "seed => 8, student_name => 'other'")
    judged = one(
        db,
        "SELECT count(*) FILTER (WHERE mod((r.row->>'id')::int, 2) = 0), count(*) FROM distill.run_rows(%s) r"
        " WHERE r.split IN ('select', 'test')",
        again,
    )
    assert judged[0] == 0 < judged[1]
    # Where they are gone the run goes on, and warns.
    said: list[str | None] = []
    db.add_notice_handler(lambda diagnostic: said.append(diagnostic.message_primary))
    db.execute("DROP TABLE known")
    last = distil(db, "seed => 9, student_name => 'other'")
    assert any("trained on" in str(text) and again in str(text) for text in said)
    assert one(db, "SELECT resolved->>'trained_on' FROM distill.runs WHERE run_id = %s", last) is None
