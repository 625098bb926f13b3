"""A teacher that takes its time labels what there is time for, and every count and figure is of those rows."""

from __future__ import annotations

import re
import time

import psycopg
import pytest
from psycopg import errors
from sql.conftest import one

# Its seconds a row are a setting, so that it can be quick where its time is not what is tested.
SETUP = """
SET test.nap = '0';
CREATE TABLE points AS SELECT i AS key, sin(i)::float8 AS x, cos(i * 1.7)::float8 AS y,
    CASE WHEN i % 10 = 0 THEN NULL ELSE (sin(i) + cos(i * 0.3) / 4 > 0)::int END AS side FROM generate_series(1, 2000) i;
"""
NAP = (
    "SELECT CASE WHEN x > 0 THEN 0.9 ELSE 0.1 END FROM pg_sleep(current_setting('test.nap')::float8 + 0 * x)"
)
REGISTER = "SELECT distill.register_sql_model(%s, %s, '{x,y}', 'points', 'side', task => 'binary', classes => '{0,1}')"


def test_counts_and_figures_are_of_the_rows_that_were_labelled(db: psycopg.Connection) -> None:
    said: list[str] = []
    db.add_notice_handler(lambda diagnostic: said.append(diagnostic.message_primary or ""))
    db.execute(SETUP)
    db.execute(REGISTER, ("slow", NAP))
    db.execute("SET test.nap = '0.01'")
    db.execute("SELECT distill_model('slow', min_accuracy => 0, time_budget_s => 12, families => '{linear}')")
    db.execute("SET test.nap = '0'")
    counts = one(
        db,
        "SELECT jsonb_build_object('fit', rows_fit, 'select', rows_select, 'test', rows_test, 'unlabelled', rows_unlabelled)"
        " FROM distill.run_report(distill.last_run('slow'))",
    )
    labelled = sum(counts.values())
    assert 100 < labelled < 500  # a quarter of the budget at 10 ms a row, and what a call costs
    drawn = {"fit": 1152, "select": 288, "test": 360, "unlabelled": 200}
    for name, count in counts.items():  # every split has kept its share, beyond the floor
        assert count - 20 < drawn[name] * labelled / 2000 + 20
        assert count > 10
    rows = dict(
        db.execute(
            "SELECT split, count(*) FROM distill.run_rows(distill.last_run('slow')) GROUP BY 1"
        ).fetchall()
    )
    assert rows.pop(None) == 2000 - labelled
    assert rows == counts
    assert (
        one(db, "SELECT (measured_on->>'rows')::int FROM distill.models WHERE name = 'slow'")
        == counts["test"]
    )
    stored, n = one(
        db, "SELECT teacher_accuracy, rows_test FROM distill.run_report(distill.last_run('slow'))"
    )
    assert one(
        db,
        "SELECT avg((distill.predict_class('slow', r.row) = r.row->>'side')::int)::float8, count(*)"
        " FROM distill.run_rows(distill.last_run('slow')) r WHERE split = 'test'",
    ) == (pytest.approx(stored, abs=1e-12), n)
    # The time that it will take was said before it was over.
    estimates = [(i, re.search(r"will take about (\d+) s", text)) for i, text in enumerate(said)]
    [(place, estimate)] = [(i, match) for i, match in estimates if match is not None]
    assert 1 <= int(estimate[1]) <= 4
    assert place < len(said) - 2


def test_a_teacher_too_slow_for_the_fewest_rows(db: psycopg.Connection) -> None:
    db.execute(SETUP)
    db.execute(REGISTER, ("slow", NAP))
    db.execute("SET test.nap = '1.3'")
    started = time.monotonic()
    with pytest.raises(errors.InvalidParameterValue):
        db.execute("SELECT distill_model('slow', min_accuracy => 0, time_budget_s => 60)")
    assert time.monotonic() - started < 20
    assert one(db, "SELECT count(*) FROM distill.runs") == 0


def test_a_slow_expression_is_registered_on_fewer_rows(db: psycopg.Connection) -> None:
    said: list[str] = []
    db.add_notice_handler(lambda diagnostic: said.append(diagnostic.message_primary or ""))
    db.execute(SETUP + "SET test.nap = '0.05';")
    started = time.monotonic()
    db.execute(REGISTER, ("slow", NAP))
    assert time.monotonic() - started < 30  # 2,000 rows would take 100 s
    rows, accuracy, latency = one(
        db, "SELECT (measured_on->>'rows')::int, accuracy, avg_latency_ms FROM distill.models"
    )
    assert 10 <= rows <= 110
    assert 0.7 < accuracy <= 1
    assert latency > 50
    assert any(str(rows) in text for text in said)
