"""What is said before the figures are believed, and what a run does without being asked for more."""

from __future__ import annotations

import time

import numpy as np
import psycopg
import pytest
from sql.conftest import one

ROWS = 2000
SLOW = "0 * (SELECT sum(sin(i + x1)) FROM generate_series(1, 500) i)"  # some hundred microseconds: students are faster
AT_ONCE = "min_accuracy => 1, time_budget_s => 60"  # more than any student could learn: nothing is trained


@pytest.fixture
def said(db: psycopg.Connection) -> list[str]:
    """Give the warnings of a session over noisy rows, of which one in a hundred is ``rare``."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS, 2)).round(3)
    often = (x[:, 0] + rng.logistic(size=ROWS) * 0.5 > 0).astype(int)
    rare = (x[:, 0] + rng.logistic(size=ROWS) * 0.8 > 4).astype(int)
    value = 3 * x[:, 0] + rng.normal(size=ROWS)
    db.execute("CREATE TABLE visits (code text, x0 float8, x1 float8, often int, rare int, value float8)")
    with db.cursor().copy("COPY visits FROM STDIN") as copy:
        for i in range(ROWS):
            copy.write_row((f"visit {i}", *x[i].tolist(), int(often[i]), int(rare[i]), float(value[i])))
    told: list[str] = []
    db.add_notice_handler(lambda d: told.append(d.message_primary or "") if d.severity == "WARNING" else None)
    return told


def register(
    db: psycopg.Connection, name: str, expression: str, label: str, features: str = "{x0,x1}"
) -> None:
    db.execute(
        "SELECT distill.register_sql_model(%s, %s, %s, 'visits', %s)", (name, expression, features, label)
    )


def test_a_floor_out_of_reach_is_said_before_time_is_spent(db: psycopg.Connection, said: list[str]) -> None:
    register(db, "teacher", "1 / (1 + exp(-2 * x0))", "often")
    started = time.monotonic()
    assert one(db, f"SELECT distill_model('teacher', {AT_ONCE})") is None
    assert time.monotonic() - started < 20
    assert "min_accuracy" in said[0]
    run = db.execute(
        "SELECT accepted, teacher_accuracy IS NOT NULL, student_id, (SELECT count(*) FROM distill.candidates),"
        " figures->'warnings'->>0, figures->'floor'->>'value' FROM distill.runs"
    ).fetchall()
    assert run == [(False, True, None, 0, said[0], "1.0")]
    # A floor that a student which learns from labels too may reach is said, and tried.
    said.clear()
    high = one(db, "SELECT (figures->'survey'->>'high')::float8 FROM distill.runs")
    db.execute(
        f"SELECT distill_model('teacher', min_accuracy => {high + 0.005}, time_budget_s => 1, families => '{{linear}}')"
    )
    assert "min_accuracy" in said[0]
    assert one(db, "SELECT count(*) > 0 FROM distill.candidates")
    summary, number = one(
        db,
        "SELECT r.summary, c.candidate FROM distill.runs r JOIN distill.candidates c USING (run_id) WHERE c.chosen",
    )
    accepted = one(db, "SELECT bool_or(accepted) FROM distill.runs")
    assert accepted or f", {number})" in summary.split("promote_candidate")[1]
    if not accepted:
        db.execute("SELECT distill.promote_candidate(distill.last_run('teacher'), %s)", (number,))


@pytest.mark.parametrize(
    ("expression", "label", "features", "word"),
    [
        ("1 / (1 + exp(2 * x0))", "often", "{x0,x1}", "classes =>"),
        ("-3 * x0", "value", "{x0,x1}", "sign"),
        ("CASE WHEN x1 > 0 THEN 0.9 ELSE 0.1 END", "often", "{x0,x1}", "same answer"),
        ("1 / (1 + exp(4 - x0))", "rare", "{x0,x1}", "average_precision"),
        ("1 / (1 + exp(-2 * x0))", "often", "{code,x0}", "without it"),
        ("1 / (1 + exp(-2 * x0))", "often", "{x0,x1}", ""),
    ],
    ids=["reversed", "falls", "worse than the majority", "rare", "an id", "nothing"],
)
def test_what_is_doubtful_is_said_with_what_to_do(
    db: psycopg.Connection, said: list[str], expression: str, label: str, features: str, word: str
) -> None:
    register(db, "teacher", expression, label, features)
    if word in ("classes =>", "sign"):
        assert [word in text for text in said] == [True]  # as soon as it is registered
    else:
        assert said == []
    said.clear()
    if word == "same answer":
        db.execute("UPDATE visits SET often = (random() < 0.7)::int")
    db.execute(f"SELECT distill_model('teacher', {AT_ONCE})")
    doubts = [text for text in said if "min_accuracy" not in text and "no student" not in text]
    assert [word in text for text in doubts] == ([True] if word else [])
    stored = one(db, "SELECT figures->'warnings' FROM distill.runs")
    assert [text for text in stored if "min_accuracy" not in text] == doubts


def test_a_ranking_student_may_give_every_row_one_class(db: psycopg.Connection, said: list[str]) -> None:
    register(db, "teacher", f"1 / (1 + exp(4 - x0)) + {SLOW}", "rare")
    student = one(
        db,
        "SELECT distill_model('teacher', metric => 'roc_auc', time_budget_s => 3, families => '{linear}')",
    )
    classes, floor, accuracy = one(
        db,
        "SELECT (figures->'student'->>'distinct_classes')::int, (figures->'floor'->>'is_relative')::bool, student_accuracy"
        " FROM distill.runs",
    )
    assert (classes, floor) == (1, True)
    assert student is not None, one(db, "SELECT summary FROM distill.runs")
    assert accuracy > 0.6


@pytest.mark.extra
def test_the_same_file_under_another_name_is_an_alias(db: psycopg.Connection, said: list[str]) -> None:
    register(db, "teacher", f"1 / (1 + exp(-2 * x0)) + {SLOW}", "often")
    call = "SELECT distill_model('teacher', families => '{linear}', min_accuracy => 0, time_budget_s => 60, patience => 1, student_name => %s)"
    first = one(db, call, "one")
    if first is None:
        number = one(db, "SELECT candidate FROM distill.candidates WHERE chosen")
        one(db, "SELECT distill.promote_candidate(distill.last_run('teacher'), %s)", number)
    second = one(db, call, "two")
    same = one(
        db,
        "SELECT c.sha256 = m.sha256 FROM distill.candidates c, distill.models m WHERE m.name = 'one' AND c.chosen"
        " AND c.run_id = distill.last_run('teacher')",
    )
    if same:  # what the budget cuts off may differ
        assert second is not None
        assert one(db, "SELECT count(*) FROM distill.models WHERE name = 'two'") == 1
        third = one(db, call, "two")
        assert third is None or one(
            db,
            "SELECT s.sha256 <> m.sha256 FROM distill.models s, distill.models m WHERE s.id = %s AND m.name = 'one'",
            third,
        )


def test_preferences_are_kept_and_checked(db: psycopg.Connection, said: list[str]) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        db.execute("SELECT distill_model('teacher', prefer => 'cheap')")
    with pytest.raises(psycopg.errors.NullValueNotAllowed):
        db.execute("SELECT distill_model('teacher', prefer => NULL)")
    register(db, "teacher", f"1 / (1 + exp(-2 * x0)) + {SLOW}", "often")
    db.execute(
        "SELECT distill_model('teacher', prefer => 'fast', min_accuracy => 0.6, time_budget_s => 3,"
        " families => '{linear,boosted}')"
    )
    prefer, fastest = one(
        db,
        "SELECT resolved->>'prefer', (SELECT bool_and(c.avg_latency_ms <= o.avg_latency_ms) FROM distill.candidates o"
        " WHERE o.run_id = r.run_id AND o.form = 'predict' AND o.avg_latency_ms IS NOT NULL AND o.select_accuracy >= 0.6)"
        " FROM distill.runs r JOIN distill.candidates c USING (run_id) WHERE c.chosen",
    )
    assert (prefer, fastest) == ("fast", True)


def test_predict_class_cuts_where_the_metric_is_best(db: psycopg.Connection, said: list[str]) -> None:
    """Of a rare class no probability passes one half: the run finds a threshold on select, and reports what it gives on test."""
    register(db, "teacher", f"1 / (1 + exp(4 - x0)) + {SLOW}", "rare")
    db.execute(
        "SELECT distill_model('teacher', metric => 'balanced_accuracy', min_accuracy => 0, time_budget_s => 3, families => '{linear}')"
    )
    number, cut, accepted = one(
        db,
        "SELECT c.candidate, c.class_threshold, r.accepted FROM distill.candidates c JOIN distill.runs r USING (run_id) WHERE chosen",
    )
    if not accepted:
        db.execute("SELECT distill.promote_candidate(distill.last_run('teacher'), %s)", (number,))
    assert 0 < cut < 0.5
    name, threshold, accuracy = one(
        db, "SELECT name, class_threshold, accuracy FROM distill.models WHERE teacher_id IS NOT NULL"
    )
    assert threshold == cut
    array = "ARRAY[(r.row->>'x0')::float8, (r.row->>'x1')::float8]"
    rows = db.execute(
        f"SELECT (r.row->>'rare')::int, distill.predict(%(n)s, {array}), distill.predict_class(%(n)s, {array}),"
        " distill.predict_class(%(n)s, r.row) FROM distill.run_rows(distill.last_run('teacher')) r WHERE r.split = 'test'",
        {"n": name},
    ).fetchall()
    y, p = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    classes = np.where(p >= cut, "1", "0").tolist()
    assert [r[2] for r in rows] == [r[3] for r in rows] == classes
    guess = np.array(classes) == "1"
    assert guess.any() and not (p > 0.5).any()
    recall = [(guess == k)[y == k].mean() for k in (0, 1)]
    assert accuracy == pytest.approx(np.mean(recall), abs=1e-9)
    # Every other way to a class says the same.
    scored = db.execute(
        "SELECT count(*), count(*) FILTER (WHERE (s.class = '1') <> (distill.predict(%s, to_jsonb(v)) >= %s))"
        " FROM distill.score_class(%s, 'SELECT ctid::text AS k, * FROM visits', 'k') s JOIN visits v ON v.ctid::text = s.key",
        (name, cut, name),
    ).fetchone()
    assert scored == (ROWS, 0)
    batch = one(
        db,
        "SELECT distill.predict_class_batch(%s, array_agg(ARRAY[x0, x1])) = array_agg(distill.predict_class(%s, ARRAY[x0, x1])) FROM visits",
        name,
        name,
    )
    assert batch is True
    # check judges it likewise, and nobody changes it.
    fresh = one(db, "SELECT fresh FROM distill.check(%s) WHERE figure = 'accuracy'", name)
    assert fresh == pytest.approx(accuracy, abs=1e-9)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        db.execute("UPDATE distill.models SET class_threshold = 0.5 WHERE name = %s", (name,))
