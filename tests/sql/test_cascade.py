"""Cascades: a student that answers where it is confident, with its teacher behind it."""

from __future__ import annotations

import math
import time

import psycopg
import pytest
from psycopg import errors
from sql.conftest import distil, load_diabetes_table, load_digits_table, register
from sql.test_serving import cascade_over, sigmoid, value

THRESHOLD = 0.7


def answer(x: float) -> float:
    """Return what the cascade says: of slope 1 where that is sure enough, else of slope 5."""
    own = 1 / (1 + math.exp(-x))
    return own if max(own, 1 - own) >= THRESHOLD else 1 / (1 + math.exp(-5 * x))


@pytest.fixture
def cascade(db: psycopg.Connection) -> psycopg.Connection:
    """A session in a database with the cascade "both" of "student" and "teacher"."""
    for name, slope in (("teacher", 5.0), ("student", 1.0)):
        register(
            db,
            name,
            "SELECT distill.register_model(%s, %s, features => '{x}', task => 'binary', classes => '{no,yes}')",
            (name, sigmoid(slope)),
        )
    cascade_over(db, "both", "student", "teacher", THRESHOLD)
    db.execute("CREATE TABLE t AS SELECT i, (i - 100) / 25.0::float8 AS x FROM generate_series(0, 200) i")
    return db


def test_every_form_asks_the_teacher_where_the_student_is_not_sure(cascade: psycopg.Connection) -> None:
    rows = cascade.execute(
        "SELECT x, distill.predict('both', ARRAY[x]), distill.predict('both', to_jsonb(t)),"
        " (distill.predict_proba('both', ARRAY[x]))[2], distill.predict_class('both', ARRAY[x]) FROM t ORDER BY i"
    ).fetchall()
    expected = [answer(row[0]) for row in rows]
    for column in (1, 2, 3):
        assert [row[column] for row in rows] == pytest.approx(expected, abs=1e-6)
    assert [row[4] for row in rows if row[0] != 0] == [
        "yes" if p > 0.5 else "no" for p, row in zip(expected, rows, strict=True) if row[0] != 0
    ]
    assert value(
        cascade, "SELECT distill.predict_batch('both', array_agg(ARRAY[x] ORDER BY i)) FROM t"
    ) == pytest.approx(expected, abs=1e-6)
    assert value(
        cascade,
        "SELECT array_agg(prediction ORDER BY key::int) FROM distill.score('both', 'SELECT i, x FROM t', 'i')",
    ) == pytest.approx(expected, abs=1e-6)
    cascade.execute("SELECT distill.create_function('both', 'typed')")
    assert value(cascade, "SELECT array_agg(typed(x) ORDER BY i) FROM t") == pytest.approx(expected, abs=1e-6)


def test_what_a_cascade_depends_on_stays(cascade: psycopg.Connection) -> None:
    with pytest.raises(errors.DependentObjectsStillExist):
        cascade.execute("SELECT distill.drop_model('teacher')")
    cascade.execute("SELECT distill.drop_model('student')")  # it holds the student's file itself
    assert value(cascade, "SELECT distill.predict('both', ARRAY[0.1])") == pytest.approx(
        answer(0.1), abs=1e-6
    )
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        cascade.execute("UPDATE distill.models SET threshold = 0.9 WHERE name = 'both'")
    # Locking a family writes its teacher's row as it is: that is no change.
    unchanged = "SELECT bool_and(updated_at = created_at) FROM distill.models"
    cascade.execute("UPDATE distill.models SET active = active WHERE name = 'teacher'")
    assert value(cascade, unchanged) is True
    cascade.execute("UPDATE distill.models SET active = false WHERE name = 'teacher'")
    assert value(cascade, unchanged) is False
    cascade.execute("SELECT distill.drop_model('both'), distill.drop_model('teacher')")


def test_a_role_has_to_see_the_teacher_too(cascade: psycopg.Connection) -> None:
    cascade.execute(
        "ALTER TABLE distill.models ENABLE ROW LEVEL SECURITY; ALTER TABLE distill.models FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY own ON distill.models USING (name <> 'teacher');"
        "DO $$ BEGIN CREATE ROLE cascade_reader; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
        "GRANT USAGE ON SCHEMA distill TO cascade_reader; GRANT SELECT ON ALL TABLES IN SCHEMA distill TO cascade_reader;"
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA distill TO cascade_reader"
    )
    try:
        cascade.execute("SET ROLE cascade_reader")
        assert value(cascade, "SELECT distill.predict('student', ARRAY[0.1])") > 0.5
        with pytest.raises(errors.UndefinedObject):
            cascade.execute("SELECT distill.predict('both', ARRAY[0.1])")
    finally:
        cascade.execute("RESET ROLE")
        cascade.execute("DROP OWNED BY cascade_reader; DROP ROLE cascade_reader")


@pytest.mark.parametrize("call", ["distill.to_sql('both')", "distill_model('both')", "plain"])
def test_a_cascade_is_no_expression_and_no_teacher(cascade: psycopg.Connection, call: str) -> None:
    call = call.replace("plain", "distill.create_function('both', 'f', as_sql => true)")
    with pytest.raises(errors.FeatureNotSupported):
        cascade.execute(f"SELECT {call}")  # type: ignore[arg-type]


@pytest.mark.extra
def test_a_distillation_gives_a_cascade(db: psycopg.Connection) -> None:
    """Ten classes: a linear student is a long way from its teacher, and knows on which rows."""
    load_digits_table(db)
    distil(db, "digits", "families => '{linear,cascade}', target_latency_ms => 1000")
    row = db.execute(
        "SELECT m.form, m.threshold, m.accuracy, m.avg_latency_ms, c.select_accuracy, c.threshold, c.family"
        " FROM distill.models m JOIN distill.runs r ON r.student_id = m.id"
        " JOIN distill.candidates c ON c.run_id = r.run_id AND c.chosen"
    ).fetchone()
    assert row is not None
    form, threshold, accuracy, latency, chosen_by, planned, family = row
    assert (form, family, threshold) == ("cascade", "cascade", planned)
    best = value(db, "SELECT max(select_accuracy) FROM distill.candidates WHERE form <> 'cascade'")
    assert chosen_by > best
    assert latency > value(db, "SELECT min(avg_latency_ms) FROM distill.candidates WHERE form = 'predict'")
    statement = (
        "SELECT avg((distill.predict_class('digits_distilled', r.row) = r.row->>'digit')::int)::float8,"
        " count(*) FILTER (WHERE p = q), count(*) FILTER (WHERE m >= %s), count(*)"
        " FROM distill.run_rows(distill.last_run('digits')) r,"
        " LATERAL (SELECT distill.predict_proba('digits_distilled', r.row) AS p, distill.predict_proba('digits', r.row) AS q"
        " OFFSET 0) a, LATERAL (SELECT max(v) AS m FROM unnest(p) v) b WHERE r.split = 'test'"
    )
    found = db.execute(statement, (threshold,)).fetchone()  # type: ignore[arg-type]
    assert found is not None
    assert found[0] == pytest.approx(accuracy, abs=1e-12)
    assert 0 < found[1] <= found[3]  # the teacher was asked
    assert found[1] + found[2] >= found[3]  # or the student was sure


def test_a_cascade_needs_probabilities(db: psycopg.Connection) -> None:
    load_diabetes_table(db)
    with pytest.raises(errors.FeatureNotSupported):
        db.execute("SELECT distill_model('diabetes', families => '{linear,cascade}')")


def test_a_slow_and_better_teacher_gets_a_cascade_unasked(db: psycopg.Connection) -> None:
    """From 0.8 on only the teacher knows."""
    no = "x < 0.4 OR x > 0.8 AND floor(x * 3000)::int % 2 = 0"
    db.execute(
        f"CREATE TABLE points AS SELECT x, CASE WHEN {no} THEN 'no' ELSE 'yes' END AS side"  # type: ignore[arg-type]
        " FROM (SELECT random() AS x FROM generate_series(1, 800)) s"
    )
    slow = "(SELECT 0 * sum(sqrt(i)) FROM generate_series(1, 10000 + floor(x)::int) i)"
    expression = f"CASE WHEN {no} THEN 0.02 ELSE 0.98 END + {slow}"
    db.execute(
        "SELECT distill.register_sql_model('knows', %s, '{x}', 'points', 'side', task => 'binary')",
        (expression,),
    )
    timed = []
    for _ in range(5):
        start = time.perf_counter()
        value(db, f"SELECT sum({expression}) FROM (SELECT x FROM points LIMIT 50) s")
        timed.append((time.perf_counter() - start) * 1000 / 50)
    target = 0.6 * sorted(timed)[2]  # as busy as the machine is
    db.execute(
        "SELECT distill_model('knows', min_accuracy => 0, time_budget_s => 6, target_latency_ms => %s)",
        (target,),
    )
    rows = db.execute(
        "SELECT form, select_accuracy, latency_high_ms <= %s, chosen FROM distill.candidates"
        " WHERE form <> 'sql' AND avg_latency_ms IS NOT NULL",
        (target,),
    ).fetchall()
    best = max(accuracy for form, accuracy, *_ in rows if form == "predict")
    better = [row for row in rows if row[0] == "cascade" and row[1] > best]
    assert better
    if any(fits for *_, fits, _ in better):  # which is the noise's to say
        assert [form for form, *_, chosen in rows if chosen] == ["cascade"]
