"""SQL expressions and logged predictions are teachers too; versions, splits and dumps do what they say."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from psycopg import errors
from sql.conftest import cancer, load_cancer, load_survival, names, one

EXPRESSION = "1 / (1 + exp(-(case when cabin = 'first' then 1.5 when cabin = 'third' then -1 else 0 end - coalesce(age, 35) / 40 + 0.5)))"


def test_sql_expression_is_a_teacher(db: psycopg.Connection) -> None:
    load_survival(db)
    db.execute(
        "SELECT distill.register_sql_model('formula', %s, '{cabin,age}', 'passengers', 'survived')",
        (EXPRESSION,),
    )
    kind, accuracy, latency = one(
        db, "SELECT kind, accuracy, avg_latency_ms FROM distill.models WHERE name = 'formula'"
    )
    assert kind == "sql"
    assert accuracy == pytest.approx(
        one(db, f"SELECT avg(((({EXPRESSION}) > 0.5)::int = survived)::int)::float8 FROM passengers"),
        abs=0.05,
    )
    assert 0 < latency < 1
    predicted = one(db, 'SELECT distill.predict(\'formula\', \'{"cabin": "first", "age": 20}\'::jsonb)')
    assert predicted == pytest.approx(
        one(db, f"SELECT {EXPRESSION} FROM (SELECT 'first' AS cabin, 20::float8 AS age) s")
    )
    # By accuracy a student of labels alone may win, which owes the teacher nothing.
    db.execute(
        "SELECT distill_model('formula', metric => 'agreement', min_accuracy => 0, patience => 1, time_budget_s => 20,"
        " families => '{linear,tree}')"
    )
    fidelity, rows = one(
        db, "SELECT fidelity, rows_test FROM distill.run_report(distill.last_run('formula'))"
    )
    assert fidelity > 0.85
    assert rows > 1000


def test_infinite_and_far_values_are_taken_everywhere(db: psycopg.Connection) -> None:
    """Infinity, and timestamps that Python has no date for, on every way: SQL and ONNX, one row and many, timing and training."""
    db.execute("""
        CREATE TABLE visits AS
        SELECT i AS id, CASE i % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'b' END AS word,
               CASE i % 10 WHEN 0 THEN 'Infinity' WHEN 1 THEN '-Infinity' WHEN 2 THEN NULL ELSE (i % 100)::float8 END AS x,
               CASE i % 8 WHEN 0 THEN 'infinity' WHEN 1 THEN '-infinity' WHEN 2 THEN '33656-02-29 12:00:00.5'
                   WHEN 3 THEN '0044-03-15 BC' WHEN 4 THEN NULL
                   ELSE timestamptz '2026-01-01' + i * interval '1 hour' END AS seen,
               CASE i % 5 WHEN 0 THEN 'infinity' WHEN 1 THEN '12000-02-28' ELSE date '2026-01-01' END AS day,
               (i % 100 > 50)::int AS y
        FROM generate_series(1, 1500) i""")
    features = "{word,x,seen,day}"
    expression = (
        "coalesce(0.1 + (coalesce(x, 0) > 50)::int * 0.6 + (seen > '2026-01-20')::int * 0.2 + (day > '2027-01-01')::int * 0.05"
        " + (word = 'a')::int * 0.05, 0.1)"
    )
    db.execute("SELECT distill.register_sql_model('visit', %s, %s, 'visits', 'y')", (expression, features))
    db.execute(
        "SELECT distill_model('visit', families => '{linear}', min_accuracy => 0, time_budget_s => 3, patience => 1)"
    )
    db.execute(  # a student may be refused, but was made, timed and stored
        "SELECT distill.register_model('student', artifact, features => %s, sample => 'visits', label => 'y')"
        " FROM distill.candidates WHERE run_id = distill.last_run('visit') AND family = 'linear' AND form = 'predict'"
        " AND artifact IS NOT NULL AND avg_latency_ms > 0 ORDER BY candidate LIMIT 1",
        (features,),
    )
    # to_jsonb writes what predict reads: the teacher says what the expression does, the student what it says in bulk.
    assert one(
        db,
        f"SELECT count(*), max(abs(distill.predict('visit', to_jsonb(v)) - {expression}))"
        " FROM (SELECT * FROM visits LIMIT 100) v",
    ) == (100, pytest.approx(0, abs=1e-12))
    assert one(
        db,
        "SELECT count(*), max(abs(distill.predict('student', to_jsonb(v)) - s.prediction))"
        " FROM visits v JOIN distill.score('student', 'visits', 'id') s ON s.key = v.id::text",
    ) == (1500, pytest.approx(0, abs=1e-6))


def test_logged_predictions_are_a_teacher(db: psycopg.Connection) -> None:
    load_survival(db)
    db.execute(f"CREATE TABLE log AS SELECT *, ({EXPRESSION})::float4 AS p FROM passengers")
    db.execute(
        "SELECT distill.register_logged_model('elsewhere', '{p}', '{cabin,port,age,fare}', 'log', 'survived', latency_ms => 12.5)"
    )
    latency, declared = one(
        db, "SELECT avg_latency_ms, latency_declared FROM distill.models WHERE name = 'elsewhere'"
    )
    assert (latency, declared) == (12.5, True)
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        db.execute("SELECT distill.predict('elsewhere', '{}'::jsonb)")
    db.execute(
        "SELECT distill_model('elsewhere', min_accuracy => 0, patience => 1, time_budget_s => 10, families => '{linear,tree}')"
    )
    declared, teacher_ms, score, augmented = one(
        db,
        "SELECT r.latency_declared, r.teacher_latency_ms, r.pareto_score, (SELECT count(*) FROM distill.candidates c"
        " WHERE c.run_id = r.run_id AND c.configuration->'transfer_set' ?| '{munge,spunge}')"
        " FROM distill.run_report(distill.last_run('elsewhere')) r",
    )
    assert (declared, teacher_ms, augmented) == (True, 12.5, 0)
    assert score > 1


def test_latency_that_nobody_measured_is_null(db: psycopg.Connection) -> None:
    load_survival(db)
    db.execute(f"CREATE TABLE log AS SELECT *, ({EXPRESSION})::float4 AS p FROM passengers")
    db.execute(
        "SELECT distill.register_logged_model('elsewhere', '{p}', '{cabin,port,age,fare}', 'log', 'survived')"
    )
    db.execute(
        "SELECT distill_model('elsewhere', min_accuracy => 0, families => '{linear}', time_budget_s => 3, patience => 1)"
    )
    found = one(
        db,
        "SELECT teacher_latency_ms, pareto_score, accepted FROM distill.run_report(distill.last_run('elsewhere'))",
    )
    assert found == (None, None, True)


@pytest.mark.parametrize(
    ("value", "sqlstate"),
    [("'NaN'", "22000"), ("1.5", "22000"), ("-0.2", "22000"), ("'Infinity'", "22000")],
)
def test_offending_row_of_a_teacher_is_named(db: psycopg.Connection, value: str, sqlstate: str) -> None:
    db.execute(
        "CREATE TABLE log AS SELECT i AS x, (i % 2) AS label, 0.5::float8 AS p FROM generate_series(1, 200) i;"
        f" UPDATE log SET p = {value} WHERE x = 77"
    )
    with pytest.raises(psycopg.Error) as caught:
        db.execute("SELECT distill.register_logged_model('bad', '{p}', '{x}', 'log', 'label')")
    assert caught.value.sqlstate == sqlstate
    assert "77" in (caught.value.diag.message_detail or "")
    with pytest.raises(psycopg.Error) as caught:
        db.execute("SELECT distill.register_sql_model('bad', %s, '{x}', 'log', 'label')",
                   (f"CASE WHEN x = 77 THEN {value} ELSE 0.5 END",))  # fmt: skip
    assert caught.value.sqlstate == sqlstate
    assert "77" in (caught.value.diag.message_detail or "")


def test_probabilities_that_do_not_sum_to_one_are_refused(db: psycopg.Connection) -> None:
    db.execute(
        "CREATE TABLE log AS SELECT i AS x, (i % 3)::text AS label, 0.5::float8 AS a, 0.3::float8 AS b, 0.3::float8 AS c"
        " FROM generate_series(1, 200) i"
    )
    with pytest.raises(errors.DataException):
        db.execute("SELECT distill.register_logged_model('bad', '{a,b,c}', '{x}', 'log', 'label')")


def test_what_was_not_measured_is_said(db: psycopg.Connection) -> None:
    said: list[str | None] = []
    db.add_notice_handler(lambda diagnostic: said.append(diagnostic.severity))
    db.execute("CREATE TABLE log AS SELECT i AS x, i % 2 AS label, 0.5 AS p FROM generate_series(1, 200) i")
    register = "SELECT distill.register_logged_model('log', '{p}', '{x}', 'log', %s, task => 'binary', classes => '{0,1}')"
    db.execute(register, ("label",))
    assert not said
    db.execute(register, (None,))
    assert said == ["NOTICE"]
    db.execute("SELECT distill.register_model('bare', %s)", (cancer()[2],))
    assert said == ["NOTICE", "NOTICE"]


def test_versions(db: psycopg.Connection) -> None:
    load_cancer(db)
    register = "SELECT distill.register_model('cancer', %s, features => %s, sample => 'cancer', label => 'malignant', version => %s)"
    db.execute(register, (cancer()[2], names(30), "2026-11"))
    db.execute(register, (cancer()[2], names(30), None))
    active = "SELECT string_agg(version || CASE WHEN active THEN '*' ELSE '' END, ' ' ORDER BY version) FROM distill.models"
    assert one(db, active) == "1 2* 2026-11"
    db.execute("SELECT distill.activate_model('cancer', '1')")
    assert one(db, active) == "1* 2 2026-11"
    db.execute("SELECT distill.drop_model('cancer:1')")
    assert one(db, active).count("*") == 1
    db.execute("SELECT distill.drop_model('cancer')")
    assert one(db, "SELECT count(*) FROM distill.models") == 0


def test_the_newest_of_one_transactions_versions_follows_the_one_dropped(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE numbers AS SELECT i::float8 AS x, i % 2 AS label FROM generate_series(1, 200) i")
    with db.transaction():
        for version in ("9", "10", "11"):
            db.execute(
                "SELECT distill.register_sql_model('half', '0.5', '{x}', 'numbers', 'label', version => %s)",
                (version,),
            )
    db.execute("SELECT distill.drop_model('half:11')")
    assert one(db, "SELECT version FROM distill.models WHERE active") == "10"


def test_a_temporary_sample_is_found_in_its_own_session_only(
    db: psycopg.Connection, connect: Callable[..., psycopg.Connection]
) -> None:
    told: list[str | None] = []
    db.add_notice_handler(lambda notice: told.append(notice.severity))
    db.execute(
        "CREATE TEMP TABLE numbers AS SELECT i::float8 AS x, i % 2 AS label FROM generate_series(1, 200) i"
    )
    register = "SELECT distill.register_sql_model('half', %s, '{x}', %s, 'label')"
    db.execute(register, ("0.5", "numbers"))
    assert told == ["WARNING"]
    check = "SELECT row_count FROM distill.check('half')"
    assert one(db, check) == 200
    with pytest.raises(errors.UndefinedTable):
        connect().execute(check)


def test_groups_and_time_stay_on_one_side(db: psycopg.Connection) -> None:
    load_cancer(db)
    db.execute(
        "CREATE TABLE visits AS SELECT c.*, 'patient ' || (row_number() OVER () / 5) AS patient,"
        " timestamptz '2026-01-01' + row_number() OVER () * interval '1 hour' AS seen FROM cancer c"
    )
    db.execute(
        "CREATE TABLE known AS SELECT * FROM visits WHERE extract(epoch FROM seen)::int8 / 3600 % 10 = 0"
    )
    arguments = "sample => 'visits', families => '{linear}', time_budget_s => 3, patience => 1, min_accuracy => 0, trained_on => 'known'"
    db.execute(f"SELECT distill_model('cancer', {arguments}, group_column => 'patient')")
    mixed, known, others = one(
        db,
        "SELECT count(*) FILTER (WHERE splits > 1), count(*) FILTER (WHERE known AND NOT fit),"
        " count(*) FILTER (WHERE NOT known AND NOT fit) FROM (SELECT count(DISTINCT split) AS splits, bool_and(split = 'fit') AS fit,"
        "  r.row->>'patient' IN (SELECT patient FROM known) AS known"
        "  FROM distill.run_rows(distill.last_run('cancer')) r GROUP BY r.row->>'patient') m",
    )
    assert (mixed, known) == (0, 0)
    assert others > 10
    db.execute(f"SELECT distill_model('cancer', {arguments}, time_column => 'seen')")
    fit, select, test, judged, fitted, left_out = one(
        db,
        "SELECT max(s) FILTER (WHERE split = 'fit') < min(s) FILTER (WHERE split = 'select'),"
        " max(s) FILTER (WHERE split = 'select') < min(s) FILTER (WHERE split = 'test'),"
        " count(*) FILTER (WHERE split = 'test'), count(*) FILTER (WHERE known AND split IN ('select', 'test')),"
        " count(*) FILTER (WHERE known AND split = 'fit'), count(*) FILTER (WHERE known AND split IS NULL)"
        " FROM (SELECT split, s, s IN (SELECT seen FROM known) AS known FROM (SELECT split, (r.row->>'seen')::timestamptz AS s"
        " FROM distill.run_rows(distill.last_run('cancer')) r) r) t",
    )
    assert (fit, select) == (True, True)
    assert test > 100
    assert judged == 0
    assert fitted > left_out > 10


def test_rows_trained_on_are_kept_out_of_select_and_test(db: psycopg.Connection) -> None:
    load_cancer(db)
    db.execute("CREATE TABLE seen AS SELECT * FROM cancer WHERE x0 < 13")
    db.execute(
        "SELECT distill_model('cancer', families => '{linear}', time_budget_s => 3, patience => 1, min_accuracy => 0, trained_on => 'seen')"
    )
    touched = one(
        db,
        "SELECT count(*) FILTER (WHERE split <> 'fit'), count(*) FROM distill.run_rows(distill.last_run('cancer')) r"
        " WHERE (r.row->>'x0')::float8 < 13",
    )
    assert touched[0] == 0
    assert touched[1] > 100


def test_changed_rows_are_noticed(db: psycopg.Connection) -> None:
    load_cancer(db)
    db.execute(
        "SELECT distill_model('cancer', families => '{linear}', time_budget_s => 3, patience => 1, min_accuracy => 0)"
    )
    said: list[str | None] = []
    db.add_notice_handler(lambda diagnostic: said.append(diagnostic.severity))
    db.execute("SELECT count(*) FROM distill.run_rows(distill.last_run('cancer'))")
    assert not said
    db.execute("UPDATE cancer SET malignant = 1 - malignant WHERE x0 = (SELECT min(x0) FROM cancer)")
    db.execute("SELECT count(*) FROM distill.run_rows(distill.last_run('cancer'))")
    assert said == ["WARNING"]
    said.clear()
    db.execute("UPDATE cancer SET malignant = 1 - malignant WHERE x0 = (SELECT min(x0) FROM cancer)")
    db.execute("SELECT count(*) FROM distill.run_rows(distill.last_run('cancer'))")
    assert not said
    db.execute("DELETE FROM cancer WHERE ctid IN (SELECT ctid FROM cancer LIMIT 1)")
    db.execute("SELECT count(*) FROM distill.run_rows(distill.last_run('cancer'))")
    assert said == ["WARNING"]


def test_unlabelled_rows_are_labelled_by_the_teacher(db: psycopg.Connection) -> None:
    load_cancer(db)
    db.execute(
        "CREATE TABLE partly AS SELECT * FROM cancer; UPDATE partly SET malignant = NULL WHERE x1 > 20"
    )
    db.execute(
        "SELECT distill_model('cancer', sample => 'partly', families => '{linear}', time_budget_s => 3, patience => 1, min_accuracy => 0)"
    )
    unlabelled, expected = one(
        db,
        "SELECT rows_unlabelled, (SELECT count(*) FROM partly WHERE malignant IS NULL) FROM distill.run_report(distill.last_run('cancer'))",
    )
    assert unlabelled == expected > 0


def test_without_a_label_agreement_is_what_is_measured(db: psycopg.Connection) -> None:
    load_cancer(db)
    columns = ", ".join(names(30))
    db.execute(
        f"SELECT distill_model('cancer', sample => 'SELECT {columns} FROM cancer', families => '{{linear,tree}}', time_budget_s => 4, min_accuracy => 0)"
    )
    metric, accuracy, teacher = one(
        db,
        "SELECT metric, student_accuracy, teacher_accuracy FROM distill.run_report(distill.last_run('cancer'))",
    )
    assert (metric, teacher) == ("agreement", 1.0)
    assert accuracy > 0.8
