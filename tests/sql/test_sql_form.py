"""Students in SQL form: candidates of their own, with the latency of a query that holds their expression."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from pg_distill.frame import ModelForm
from pg_distill.runs.choice import stands_in
from psycopg import errors
from sql.conftest import distil, load_survival
from sql.test_serving import value

SQL_FORM = "families => '{tree,sql}', target_latency_ms => 1000"


@pytest.mark.parametrize("teacher", ["cancer", "diabetes", "survival", "digits"])
def test_candidates_in_sql_form_have_figures_of_their_own(
    q: Callable[..., list[tuple[Any, ...]]], teacher: str
) -> None:
    rows = q(
        "SELECT s.accuracy, p.accuracy, s.avg_latency_ms, p.avg_latency_ms, s.statement_latency_ms, s.expression, p.expression,"
        " s.on_frontier, s.reason"
        " FROM distill.candidates s JOIN distill.candidates p USING (run_id, sha256)"
        " WHERE run_id = distill.last_run(%s) AND s.form = 'sql' AND p.form = 'predict'",
        teacher,
    )
    assert rows
    for accuracy, of_twin, latency, by_predict, statement, expression, of_predict, kept, reason in rows:
        assert accuracy == of_twin
        assert 0 < latency < statement  # which is parsed and planned too
        assert by_predict > 0
        assert reason
        assert expression == of_predict or not (kept and of_predict)
    assert any(row[7] for row in rows)
    assert min(row[2] for row in rows) < min(row[3] for row in rows)
    [(forms,)] = q(
        "SELECT array_agg(DISTINCT form) FROM distill.candidates WHERE chosen AND run_id = distill.last_run(%s)",
        teacher,
    )
    # Nobody asked for SQL, and predict meets the target; but a teacher may be as quick as any student that predict calls.
    assert forms == ["predict"] or teacher == "diabetes"


def test_the_sql_form_can_be_the_answer(db: psycopg.Connection) -> None:
    load_survival(db)
    distil(db, "survival", SQL_FORM, seconds=8)
    row = db.execute(
        "SELECT m.form, m.avg_latency_ms = c.avg_latency_ms, m.measured_on->>'path', r.predict_path,"
        " m.avg_latency_ms < (m.measured_on->>'predict_latency_ms')::float8, (m.measured_on->>'predict_latency_high_ms')::float8"
        " FROM distill.models m JOIN distill.runs r ON r.student_id = m.id"
        " JOIN distill.candidates c ON c.run_id = r.run_id AND c.chosen"
    ).fetchone()
    assert row is not None
    assert row[:5] == ("sql", True, "the expression in a query", "the expression in a query", True)
    assert value(db, "SELECT form FROM distill.frontier WHERE name = 'survival_distilled'") == "sql"
    # It serves on every way, and who asks for a model for predict gets it by what predict takes.
    db.execute("SELECT distill.create_function('survival_distilled', 'plain', as_sql => true)")
    assert value(db, "SELECT distill.to_sql('survival_distilled')") in value(
        db, "SELECT pg_get_functiondef('plain'::regproc)"
    )
    worst = value(
        db,
        "SELECT max(abs(plain(cabin, port, age, fare) - distill.predict('survival_distilled', to_jsonb(p)))) FROM passengers p",
    )
    assert worst <= 1e-6
    assert value(db, "SELECT distill.choose_model('survival', %s)", row[5] * 1.001) == "survival_distilled:1"
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        db.execute("SELECT distill.choose_model('survival', %s)", (row[5] * 0.999,))
    # The family is measured again, each member on its own way.
    before = value(db, "SELECT measured_at FROM distill.models WHERE form = 'sql'")
    db.execute(
        "SELECT distill_model('survival', families => '{linear}', student_name => 'other', min_accuracy => 0, time_budget_s => 3)"
    )
    again = db.execute(
        "SELECT measured_at > %s, measured_on->>'path', (measured_on->>'predict_latency_ms')::float8 > avg_latency_ms"
        " FROM distill.models WHERE form = 'sql'",
        (before,),
    ).fetchone()
    assert again == (True, "the expression in a query", True)


def test_a_statement_over_the_target_is_not_offered(db: psycopg.Connection) -> None:
    """A call of 1 us or so is within the target, planning is not."""
    load_survival(db)
    student = value(
        db,
        "SELECT distill_model('survival', families => '{tree,sql}', target_latency_ms => 0.005, min_accuracy => 0, patience => 1)",
    )
    assert student is None
    rows = db.execute(
        "SELECT chosen, avg_latency_ms, statement_latency_ms, reason FROM distill.candidates WHERE form = 'sql' AND on_frontier"
    ).fetchall()
    assert min(row[1] for row in rows) < 0.005 < min(row[2] for row in rows)
    assert not any(row[0] for row in rows)
    assert all("planning included, over the target" in row[3] for row in rows)


def test_the_frontier_holds_by_what_stands_in(db: psycopg.Connection) -> None:
    """A model leaves the frontier for a better one of its family that can take its place, as in a run's verdict."""
    forms: tuple[ModelForm, ...] = ("predict", "sql", "cascade")
    insert = (
        "INSERT INTO distill.models (name, version, active, task, kind, expression, sha256, size_bytes, input_schema, output_schema,"
        " metric, accuracy, avg_latency_ms, form, threshold, teacher_id) VALUES (%s, '1', true, 'binary', 'sql', '0.5', '', 3, '{}', '{}',"
        " 'accuracy', %s, %s, %s, %s, %s) RETURNING id"
    )
    expected = set()
    for own, other in itertools.product(forms, forms):
        teacher = None
        for name, form, accuracy, latency in (
            (f"{own} {other}", own, 0.8, 2.0),
            (f"{own} {other} +", other, 0.9, 1.0),
        ):
            threshold = 0.9 if form == "cascade" else None
            row = db.execute(insert, (name, accuracy, latency, form, threshold, teacher)).fetchone()
            assert row is not None
            teacher = row[0]
        if not stands_in(other, own):
            expected.add(f"{own} {other}")
    found = db.execute("SELECT name FROM distill.frontier WHERE name NOT LIKE '%+'").fetchall()
    assert {row[0] for row in found} == expected


@pytest.mark.extra
def test_a_candidate_in_sql_form_can_be_promoted(db: psycopg.Connection) -> None:
    load_survival(db)
    distil(db, "survival", "families => '{tree}', target_latency_ms => 1000")
    kept = db.execute(
        "SELECT run_id, candidate, accuracy, avg_latency_ms, expression FROM distill.candidates"
        " WHERE form = 'sql' AND on_frontier ORDER BY candidate LIMIT 1"
    ).fetchone()
    assert kept is not None
    db.execute("SELECT distill.promote_candidate(%s, %s)", kept[:2])
    promoted = db.execute(
        "SELECT accuracy, avg_latency_ms, expression, form, (measured_on->>'predict_latency_high_ms')::float8 > 0"
        " FROM distill.models WHERE name = 'survival_distilled' AND active"
    ).fetchone()
    assert promoted == (*kept[2:], "sql", True)
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        db.execute("UPDATE distill.models SET form = 'predict' WHERE form = 'sql'")
