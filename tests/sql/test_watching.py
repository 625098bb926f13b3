"""check tells a model that still holds from one that does not; remeasure stores what it measures, and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import errors
from psycopg.rows import dict_row
from sql.conftest import held_place, load_cancer, load_survival, student_of_cancer

Query = Callable[..., list[tuple[Any, ...]]]


def check(db: psycopg.Connection, arguments: str) -> dict[str, dict[str, Any]]:
    with db.cursor(row_factory=dict_row) as cursor:
        cursor.execute(f"SELECT * FROM distill.check({arguments})")
        return {row["figure"]: row for row in cursor.fetchall()}


@pytest.mark.parametrize("teacher", ["cancer", "digits", "diabetes", "survival"])
def test_a_student_holds_on_its_own_test_rows(shared: Callable[[], psycopg.Connection], teacher: str) -> None:
    """On the very rows of its run a student does what was recorded, to the last digit."""
    db = shared()
    found = check(db, f"'{teacher}_distilled'")
    assert list(found) == ["fidelity", "accuracy", "latency", "teacher_accuracy", "teacher_latency", "place"]
    for figure in ("fidelity", "accuracy", "teacher_accuracy"):
        row = found[figure]
        assert row["fresh"] == pytest.approx(row["recorded"], abs=1e-9)
        assert row["fresh_low"] <= row["fresh"] <= row["fresh_high"]
        assert row["holds"] is True
        assert row["learned_share"] == 0
    [rows] = db.execute(
        "SELECT rows_test FROM distill.run_report(distill.last_run(%s))", (teacher,)
    ).fetchone() or [0]
    assert found["accuracy"]["row_count"] == rows
    # The interval of few blocks on a busy machine may begin at nothing.
    assert 0 <= found["latency"]["fresh_low"] <= found["latency"]["fresh"] <= found["latency"]["fresh_high"]
    assert found["latency"]["fresh"] > 0
    # A student of a fast teacher may have earned its place by accuracy.
    if 2 * found["latency"]["recorded"] < found["teacher_latency"]["recorded"]:
        assert found["latency"]["fresh"] < found["teacher_latency"]["fresh"]
    assert found["place"]["holds"] is True


def test_drift_is_seen(db: psycopg.Connection) -> None:
    """On rows whose labels are no longer what was learned, accuracy falls; the student still follows its teacher."""
    load_survival(db)
    db.execute(
        "SELECT distill_model('survival', min_accuracy => 0.6, time_budget_s => 5, families => '{linear,boosted}')"
    )
    db.execute(
        "CREATE TABLE drifted AS SELECT cabin, port, age, fare, 1 - survived AS survived FROM passengers"
    )
    found = check(db, "'survival_distilled', 'drifted', max_rows => 2000, include_learned => true")
    assert found["accuracy"]["row_count"] == 2000
    assert 0.7 < found["accuracy"]["learned_share"] < 0.9  # the same features: only their labels are others
    assert found["accuracy"]["holds"] is False
    assert found["accuracy"]["fresh_high"] < found["accuracy"]["recorded_low"]
    assert found["fidelity"]["holds"] is True
    assert found["place"]["holds"] is False and "floor" in found["place"]["note"]
    # Rows without a label: fidelity alone.
    db.execute("ALTER TABLE drifted DROP COLUMN survived")
    found = check(db, "'survival_distilled', 'SELECT * FROM drifted', max_rows => 500")
    assert found["accuracy"]["fresh"] is None and found["accuracy"]["holds"] is None
    assert found["fidelity"]["fresh"] > 0.7
    # Rows that the student knows nothing of: it no longer follows its teacher, which knows them.
    assert found["place"]["holds"] is not None


def test_a_teacher_is_checked_too(db: psycopg.Connection) -> None:
    db.execute(
        "CREATE TABLE numbers AS SELECT i::float8 AS x, (i % 10 < 3)::int AS label FROM generate_series(1, 2000) i"
    )
    db.execute(
        "SELECT distill.register_sql_model('rule', 'CASE WHEN x::int % 10 < 3 THEN 0.9 ELSE 0.1 END', '{x}', 'numbers', 'label')"
    )
    found = check(db, "'rule'")
    assert list(found) == ["accuracy", "latency"]
    assert found["accuracy"]["fresh"] == found["accuracy"]["recorded"] == 1.0
    assert found["accuracy"]["holds"] is True


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("'nobody'", errors.UndefinedObject),
        ("NULL", errors.NullValueNotAllowed),
        ("'cancer_distilled', max_rows => 0", errors.InvalidParameterValue),
        ("'cancer_distilled', 'SELECT 1 AS x0'", errors.UndefinedColumn),
        ("'cancer_distilled', 'SELECT * FROM cancer LIMIT 0'", errors.DataException),
        ("'cancer_distilled', 'nowhere'", errors.UndefinedTable),
        ("'cancer_distilled', 'cancer', 'nothing'", errors.UndefinedColumn),
        ("'cancer_distilled', 'WITH d AS (DELETE FROM cancer RETURNING *) SELECT * FROM d'", psycopg.Error),
    ],
)
def test_bad_input(q: Query, arguments: str, error: type[psycopg.Error]) -> None:
    with pytest.raises(error) as raised:
        q(f"SELECT * FROM distill.check({arguments})")
    assert raised.value.sqlstate not in (None, "38000", "XX000")


def test_stored_sql_of_another_role_is_not_run(
    db: psycopg.Connection, role: Callable[..., str], connect: Callable[..., psycopg.Connection]
) -> None:
    low = role("low")
    db.execute(
        f"GRANT USAGE ON SCHEMA distill TO {low}; GRANT ALL ON ALL TABLES IN SCHEMA distill TO {low};"
        f" GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA distill TO {low}; GRANT EXECUTE ON FUNCTION distill_model TO {low};"
    )
    load_cancer(db)
    db.execute(f"GRANT SELECT ON cancer TO {low}")
    planter = connect(user=low)
    student_of_cancer(planter, "planted", "SELECT * FROM cancer")
    assert db.execute("SELECT count(*) FROM distill.models WHERE name = 'planted'").fetchone() == (1,)
    for call in ("distill.check('planted')", "distill.remeasure('planted')"):
        with pytest.raises(errors.InsufficientPrivilege):
            db.execute(f"SELECT * FROM {call}")
    assert check(db, "'planted', 'cancer'")["fidelity"]["holds"] is not None


def test_remeasure_stores_what_was_measured_here(
    db: psycopg.Connection, connect: Callable[..., psycopg.Connection]
) -> None:
    load_cancer(db)
    student_of_cancer(db, "cancer_distilled")
    accuracies = db.execute("SELECT name, accuracy FROM distill.models ORDER BY 1").fetchall()
    assert len(accuracies) == 2
    # As if restored from another machine.
    db.execute(
        "UPDATE distill.models SET avg_latency_ms = 1e6, latency_low_ms = 1e6, latency_high_ms = 1e6, measured_at = NULL,"
        " measured_on = jsonb_set(measured_on, '{machine,processor}', '\"elsewhere\"')"
    )
    assert "remeasure" in check(db, "'cancer_distilled'")["latency"]["note"]
    other = connect(autocommit=False)
    rows = other.execute(
        "SELECT name, avg_latency_ms, latency_low_ms, latency_high_ms, previous_latency_ms, accuracy = previous_accuracy"
        " FROM distill.remeasure('cancer_distilled') ORDER BY name"
    ).fetchall()
    # Nobody else writes the family's figures until the transaction ends.
    for name in ("cancer", "cancer_distilled"):
        db.execute("SET lock_timeout = '100 ms'")
        with pytest.raises(errors.LockNotAvailable):
            db.execute("SELECT distill.activate_model(%s, '1')", (name,))
    db.execute("RESET lock_timeout")
    other.commit()
    # A process that measures takes one of the places of those that train.
    db.execute("SELECT distill.change_setting('concurrent_trainings', '1')")
    with held_place(other):
        for call in ("check", "remeasure"):
            with pytest.raises(errors.ConfigurationLimitExceeded):
                db.execute(f"SELECT * FROM distill.{call}('cancer_distilled')")
    assert [row[0] for row in rows] == ["cancer", "cancer_distilled"]
    assert all(0 < row[2] <= row[1] <= row[3] < 1e4 and row[4] == 1e6 and row[5] for row in rows)
    stored = db.execute(
        "SELECT name, avg_latency_ms, latency_low_ms, latency_high_ms FROM distill.models"
        " WHERE measured_at > now() - interval '1 hour' AND measured_on->'machine'->>'processor' <> 'elsewhere'"
        " AND measured_on->>'run_id' = distill.last_run('cancer')::text ORDER BY name"
    ).fetchall()
    assert stored == [row[:4] for row in rows]
    assert db.execute("SELECT name, accuracy FROM distill.models ORDER BY 1").fetchall() == accuracies
    assert check(db, "'cancer_distilled'")["latency"]["note"] is None


def test_metrics_count_what_there_is(
    db: psycopg.Connection, connect: Callable[..., psycopg.Connection], role: Callable[..., str]
) -> None:
    queued = "SELECT jobs_queued, jobs_running, jobs_failed, oldest_queued_job_seconds FROM distill.metrics"
    assert db.execute(queued).fetchone() == (0, 0, 0, None)
    # A role that may only scrape sees how many jobs of others there are, and none of them.
    scraper = role("scraper")
    db.execute(f"GRANT USAGE ON SCHEMA distill TO {scraper}; GRANT SELECT ON distill.metrics TO {scraper}")
    db.execute(
        "INSERT INTO distill.job_queue (arguments, state, submitted_at, claim_id) SELECT '{}', state,"
        " now() - interval '1 minute' * n, claim_id FROM (VALUES ('queued', 1, NULL::uuid), ('queued', 2, NULL),"
        " ('running', 9, gen_random_uuid()), ('failed', 9, NULL), ('done', 9, NULL)) v(state, n, claim_id)"
    )
    theirs = connect(user=scraper)
    seen = theirs.execute(queued).fetchone()
    assert seen is not None and seen[:3] == (2, 1, 1) and 120 <= seen[3] < 180
    with pytest.raises(errors.InsufficientPrivilege):
        theirs.execute("SELECT FROM distill.job_queue")
    empty = db.execute(
        "SELECT models, runs_accepted, runs_refused, last_run_timestamp_seconds, trainings_active FROM distill.metrics"
    )
    assert empty.fetchone() == (0, 0, 0, None, 0)
    load_cancer(db)
    distil = "SELECT distill_model('cancer', families => '{linear}', time_budget_s => 3, patience => 1, min_accuracy => %s)"
    other = connect(autocommit=False)
    other.execute(distil, (0,))
    assert db.execute("SELECT trainings_active FROM distill.metrics").fetchone() == (1,)
    other.commit()
    db.execute(distil, (1,))
    row = db.execute(
        "SELECT models = (SELECT count(*) FROM distill.models), names, students = models - 1, runs_accepted + runs_refused,"
        " runs_accepted = (SELECT count(*) FROM distill.runs WHERE accepted), trainings_active,"
        " last_run_duration_seconds > 0,"
        " last_run_timestamp_seconds BETWEEN date_part('epoch', now()) - 600 AND date_part('epoch', now()),"
        " artifact_bytes = (SELECT sum(length(artifact)) FROM distill.models),"
        " candidate_bytes = (SELECT coalesce(sum(length(artifact)), 0) FROM distill.candidates) FROM distill.metrics"
    ).fetchone()
    assert row is not None
    assert row[0] and row[1] in (1, 2) and row[2:6] == (True, 2, True, 0) and all(row[6:])
