"""Samples that are hard to learn from: rare classes, empty columns, bad teachers, every type, weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import errors
from sql.conftest import load_cancer, load_table, names, one

EVERY_FAMILY = "families => '{linear,tree,boosted,mlp}'"


def last(teacher: str) -> str:
    return f"distill.last_run('{teacher}')"


def every_candidate_has_a_reason(connection: psycopg.Connection, teacher: str) -> None:
    candidates, without = one(
        connection,
        f"SELECT count(*), count(*) FILTER (WHERE reason = '') FROM distill.candidates WHERE run_id = {last(teacher)}",
    )
    assert candidates > 0
    assert without == 0


def promote(connection: psycopg.Connection, teacher: str, which: str) -> list[str]:
    """Register candidates of the last run, whether or not one was accepted; return their names with versions."""
    made = connection.execute(
        "SELECT distill.promote_candidate(run_id, candidate) FROM distill.candidates"
        f" WHERE run_id = {last(teacher)} AND {which} ORDER BY candidate"
    ).fetchall()
    assert made
    # A statement of its own: the one that registers does not see what it has made.
    return [
        one(connection, "SELECT name || ':' || version FROM distill.models WHERE id = %s", student)
        for (student,) in made
    ]


def promote_chosen(connection: psycopg.Connection, teacher: str) -> str:
    """Return the name of the run's choice, registered where the run has not."""
    accepted = one(
        connection,
        "SELECT m.name || ':' || m.version FROM distill.runs r LEFT JOIN distill.models m ON m.id = r.student_id"
        f" WHERE run_id = {last(teacher)}",
    )
    return accepted or promote(connection, teacher, "chosen")[0]


# -- rare classes


@cache
def rare(kind: str) -> tuple[Any, Any, bytes]:
    """Rows of which about 2 % are positive, and a forest trained on other rows of their kind.

    graded: a smooth score with noise on top. corner: a corner of x3, within it a quarter of the cells that the signs of x0, x1,
    x2 make, so that no sum of effects of single columns can say of a row that it is more likely positive than not.
    """
    from skl2onnx import to_onnx
    from sklearn.ensemble import ExtraTreesClassifier

    rng = np.random.default_rng(3)
    x = rng.normal(size=(24000 if kind == "graded" else 12000, 6)).astype(np.float32)
    if kind == "graded":
        score = x[:, 0] * x[:, 1] + np.abs(x[:, 2]) + x[:, 3] + 0.5 * rng.normal(size=len(x))
        y = score > np.quantile(score, 0.98)
    else:
        y = (x[:, 3] > 1.4) & (x[:, 0] * x[:, 1] > 0) & (x[:, 1] * x[:, 2] > 0)
    half = len(x) // 2
    leaf = 3 if kind == "graded" else 1
    model = ExtraTreesClassifier(200, min_samples_leaf=leaf, max_features=None, random_state=0, n_jobs=1)
    model.fit(x[:half], y[:half].astype(int))
    artifact = to_onnx(model, x[:1], target_opset={"": 17, "ai.onnx.ml": 3}).SerializeToString()
    return x[half:], y[half:].astype(int), artifact


def load_rare(connection: psycopg.Connection, kind: str) -> None:
    x, y, artifact = rare(kind)
    columns = {**dict.fromkeys(names(6), "float4"), "label": "int"}
    rows = ([*map(float, row), int(label)] for row, label in zip(x, y, strict=True))
    load_table(connection, kind, columns, rows)
    connection.execute(
        "SELECT distill.register_model(%s, %s, features => %s, sample => %s, label => 'label')",
        (kind, artifact, names(6), kind),
    )


@pytest.mark.extra
def test_a_student_of_a_rare_class_keeps_its_teachers_average_precision(db: psycopg.Connection) -> None:
    load_rare(db, "graded")
    assert 0.015 < one(db, "SELECT avg(label) FROM graded") < 0.025
    db.execute(
        "SELECT distill_model('graded', metric => 'average_precision', min_accuracy => 0, time_budget_s => 20,"
        " families => '{boosted,mlp}')"
    )
    metric, teacher, student, figures = one(
        db,
        f"SELECT metric, teacher_accuracy, student_accuracy, figures FROM distill.run_report({last('graded')})",
    )
    assert metric == "average_precision"
    assert teacher > 0.3  # chance is 0.02
    # Every metric has an interval, and the choice a paired difference to its teacher and to the best control.
    for who in ("teacher", "student", "control"):
        held = figures[who]
        for name, (low, high) in held["intervals"].items():
            assert low <= held["metrics"].get(name, held.get(name)) <= high, (who, name)
        assert {"average_precision", "roc_auc", "log_loss", "brier", "ece"} <= set(held["intervals"])
    versus = figures["versus_teacher"]
    assert versus["difference"] == pytest.approx(student - teacher, abs=1e-12)
    assert versus["low"] <= versus["difference"] <= versus["high"]
    assert versus["high"] > -0.03 * teacher  # kept, as far as these rows can tell
    assert set(figures["versus_control"]["metrics"]) == set(figures["student"]["intervals"])
    assert one(
        db,
        f"SELECT is_control FROM distill.candidates WHERE run_id = {last('graded')} AND candidate = %s",
        figures["control"]["candidate"],
    )


def test_a_student_that_never_names_the_rare_class_is_not_accepted(db: psycopg.Connection) -> None:
    """It is right in 98 % of the rows, fast, and dominated by nothing: its one answer alone speaks against it, and only for one that names both is another asked."""
    load_rare(db, "corner")
    student = one(
        db, "SELECT distill_model('corner', min_accuracy => 0.8, time_budget_s => 5, families => '{linear}')"
    )
    accuracy, fast, faster, accepted = one(
        db,
        "SELECT c.accuracy, c.latency_high_ms < 5, c.avg_latency_ms < r.teacher_latency_ms, r.accepted"
        f" FROM distill.candidates c JOIN distill.runs r USING (run_id) WHERE run_id = {last('corner')} AND chosen",
    )
    assert (fast, faster, accepted) == (True, True, student is not None)
    assert accuracy > 0.95
    name = "corner_distilled" if accepted else promote_chosen(db, "corner")
    # On the rows that judge it: the others may hold one that it takes for the rare class.
    count = (
        "SELECT count(DISTINCT distill.predict_class(%s, r.row))"
        f" FROM distill.run_rows({last('corner')}) r WHERE split = 'test'"
    )
    assert one(db, count, name) == (2 if accepted else 1)
    assert one(db, count, "corner") == 2


def test_a_student_of_an_all_negative_teacher_is_not_accepted_either(db: psycopg.Connection) -> None:
    load_rare(db, "corner")
    db.execute(
        "SELECT distill.register_sql_model('never', '0.01 + 0.0 * x0 + (SELECT 0.0 * sum(sqrt(i + 0.0 * x0)) FROM generate_series(1, 3000) i)',"
        " %s, 'corner', 'label', task => 'binary', classes => '{0,1}')",
        (names(6),),
    )
    sample = "sample => 'SELECT * FROM corner LIMIT 1500'"
    call = f"SELECT distill_model('never', {sample}, min_accuracy => 0.8, patience => 1, time_budget_s => 20, families => '{{linear}}')"
    assert one(db, call) is None
    faster, accepted = one(
        db,
        "SELECT student_latency_ms < teacher_latency_ms AND student_accuracy >= teacher_accuracy, accepted"
        f" FROM distill.run_report({last('never')})",
    )
    assert (faster, accepted) == (True, False)
    assert one(db, f"SELECT student_accuracy FROM distill.run_report({last('never')})") > 0.95


# -- bad input


@pytest.mark.parametrize("value", ["NULL::float8", pytest.param("1::float8", marks=pytest.mark.extra)])
def test_a_column_that_says_nothing(db: psycopg.Connection, value: str) -> None:
    load_cancer(db)
    rest = ", ".join(name for name in names(30) if name != "x3")
    db.execute(f"CREATE VIEW flat AS SELECT {rest}, {value} AS x3, malignant FROM cancer")
    db.execute(
        f"SELECT distill_model('cancer', sample => 'flat', min_accuracy => 0, time_budget_s => 4, {EVERY_FAMILY})"
    )
    every_candidate_has_a_reason(db, "cancer")
    trained = one(
        db,
        f"SELECT count(DISTINCT family) FROM distill.candidates WHERE run_id = {last('cancer')} AND select_accuracy > 0.8",
    )
    assert trained >= 3
    name = promote_chosen(db, "cancer")
    least, most = one(
        db, "SELECT min(p), max(p) FROM (SELECT distill.predict(%s, to_jsonb(f)) AS p FROM flat f) t", name
    )
    assert 0 <= least < most <= 1


POINTS = """
CREATE TABLE points AS SELECT i::float8 AS at, sin(i)::float8 AS x, cos(i * 1.7)::float8 AS y,
    CASE WHEN i > 660 AND i % 3 = 0 THEN 2 ELSE (sin(i) > 0)::int END AS kind, (sin(i) > 0)::int AS side
    FROM generate_series(1, 1000) i;
"""


@pytest.mark.extra
def test_a_class_that_came_after_the_rows_to_fit(db: psycopg.Connection) -> None:
    """The third class is in select and test alone: the teacher knows it, no student has seen its label."""
    db.execute(POINTS)
    db.execute(
        "SELECT distill.register_sql_model('kinds', 'CASE WHEN x > 0 THEN ARRAY[0.1, 0.7, 0.2] ELSE ARRAY[0.6, 0.1, 0.3] END',"
        " '{x,y}', 'points', 'kind', task => 'multiclass', classes => '{0,1,2}')"
    )
    for metric, floor in (("accuracy", 0.6), ("roc_auc", 0.5)):
        db.execute(
            f"SELECT distill_model('kinds', time_column => 'at', metric => '{metric}', min_accuracy => 0, time_budget_s => 5,"
            f" {EVERY_FAMILY})"
        )
        every_candidate_has_a_reason(db, "kinds")
        classes = db.execute(
            f"SELECT split, count(DISTINCT r.row->>'kind') FROM distill.run_rows({last('kinds')}) r GROUP BY 1 ORDER BY 1"
        ).fetchall()
        assert classes == [("fit", 2), ("select", 3), ("test", 3)]
        teacher, student = one(
            db, f"SELECT teacher_accuracy, student_accuracy FROM distill.run_report({last('kinds')})"
        )
        assert teacher > floor
        assert student > floor


def test_a_ranking_of_one_class_is_refused(db: psycopg.Connection) -> None:
    """Nothing is trained for a metric that one class leaves undefined."""
    db.execute(POINTS)
    db.execute(
        "SELECT distill.register_sql_model('early', 'CASE WHEN x > 0 THEN 0.9 ELSE 0.1 END', '{x,y}',"
        " 'SELECT at, x, y, (at < 700 AND side = 1)::int AS early FROM points', 'early', task => 'binary', classes => '{0,1}')"
    )
    call = "SELECT distill_model('early', time_column => 'at', metric => %s, min_accuracy => 0, time_budget_s => 3, families => '{linear}')"
    for metric in ("roc_auc", "average_precision"):
        with pytest.raises(errors.DataException) as caught:
            db.execute(call, (metric,))
        assert caught.value.sqlstate == "22000"
    db.execute(call, ("accuracy",))
    assert one(db, f"SELECT student_accuracy FROM distill.run_report({last('early')})") is not None


def test_a_teacher_worse_than_chance(db: psycopg.Connection) -> None:
    """What it says is the wrong way round: labels alone win, and the run shows both figures."""
    db.execute(POINTS)
    db.execute(
        "SELECT distill.register_sql_model('wrong', 'CASE WHEN x > 0 THEN 0.1 ELSE 0.9 END', '{x,y}', 'points', 'side',"
        " task => 'binary', classes => '{0,1}')"
    )
    db.execute(
        "SELECT distill_model('wrong', min_accuracy => 0, patience => 1, families => '{linear,boosted}')"
    )
    teacher, student = one(
        db, f"SELECT teacher_accuracy, student_accuracy FROM distill.run_report({last('wrong')})"
    )
    assert teacher < 0.1
    assert student > 0.9
    # The choice is labels' work: a control is as good, if it is not the choice itself or all of a blend's parts.
    best, chosen = one(
        db,
        "SELECT max(select_accuracy) FILTER (WHERE is_control), max(select_accuracy) FILTER (WHERE chosen)"
        f" FROM distill.candidates WHERE run_id = {last('wrong')}",
    )
    assert best > chosen - 0.02


def test_a_teacher_that_fails_on_a_row(db: psycopg.Connection) -> None:
    """Its own error is what the caller gets, and there is no run."""
    db.execute(POINTS)
    db.execute(
        "SELECT distill.register_sql_model('brittle', '1 / (2 + CASE WHEN x > 0 THEN 0 ELSE y END + 0 * x)', '{x,y}', 'points', 'side',"
        " task => 'binary', classes => '{0,1}')"
    )
    db.execute(
        "UPDATE points SET y = -2 WHERE at = 500 - mod(500, 2) AND x <= 0 OR at IN (SELECT min(at) FROM points WHERE x < 0)"
    )
    with pytest.raises(errors.DivisionByZero):
        db.execute(
            "SELECT distill_model('brittle', min_accuracy => 0, time_budget_s => 4, families => '{linear}')"
        )
    assert one(db, "SELECT count(*) FROM distill.runs") == 0


def test_a_teacher_that_fails_on_augmented_rows(db: psycopg.Connection) -> None:
    """An expression that holds for the table alone fails as clearly, not after the budget has gone."""
    db.execute(POINTS)
    db.execute("UPDATE points SET x = round(x::numeric, 2), y = round(y::numeric, 2)")
    db.execute(
        "SELECT distill.register_sql_model('brittle',"
        " 'CASE WHEN abs(x * 100 - round(x * 100)) > 1e-6 THEN 1 / (x - x) WHEN x > 0 THEN 0.9 ELSE 0.1 END',"
        " '{x,y}', 'points', 'side', task => 'binary', classes => '{0,1}')"
    )
    before = one(db, "SELECT clock_timestamp()")
    with pytest.raises(errors.DivisionByZero):
        db.execute("SELECT distill_model('brittle', min_accuracy => 0, families => '{linear,mlp}')")
    assert one(db, "SELECT clock_timestamp() - %s < '60 s'", before)
    assert one(db, "SELECT count(*) FROM distill.runs") == 0


@pytest.mark.parametrize(
    "score",
    [
        "(body::jsonb->>'score')::float8",
        pytest.param("substring(body from 'score.: ([0-9.]+)')::float8", marks=pytest.mark.extra),
    ],
)
def test_a_teacher_that_fails_on_made_texts(db: psycopg.Connection, score: str) -> None:
    """Texts that were made up are none of the caller's: what cannot read them is taught by the real ones."""
    db.execute(
        """
        CREATE TABLE notes AS SELECT format('{"score": %s, "note": "it says %s and %s here"}', round(x::numeric, 3), md5(i::text), i) AS body
        FROM (SELECT i, 0.5 + 0.4 * sin(i) AS x FROM generate_series(1, 400) i) s
        """
    )
    db.execute(
        "SELECT distill.register_sql_model('reader', %s, '{body}', 'notes', task => 'regression')", (score,)
    )
    db.execute(
        "SELECT distill_model('reader', min_accuracy => 0, time_budget_s => 3, patience => 2, families => '{linear}',"
        " text_columns => '{body}')"
    )
    assert one(
        db,
        f"SELECT count(*) FROM distill.candidates WHERE run_id = {last('reader')} AND reason LIKE '%made-up texts%'",
    )


def test_a_budget_too_short_for_its_candidates(db: psycopg.Connection) -> None:
    load_cancer(db)
    db.execute("SELECT distill_model('cancer', min_accuracy => 0, time_budget_s => 0.001)")
    every_candidate_has_a_reason(db, "cancer")
    untried = one(
        db,
        f"SELECT count(*) FROM distill.candidates WHERE run_id = {last('cancer')} AND artifact IS NULL AND reason LIKE '%budget%'",
    )
    assert untried > 0
    assert one(db, f"SELECT summary FROM distill.run_report({last('cancer')})")


# -- types


def test_every_type_of_column(db: psycopg.Connection) -> None:
    """A student reads booleans, timestamps, integers and strings as the teacher does; NULLs and unseen strings have answers."""
    db.execute(
        """
        CREATE TABLE visits AS SELECT (i % 3 = 0) AS member, timestamptz '2026-01-01' + i * interval '1 hour' AS seen,
            date '2026-01-01' + i % 90 AS day, (i * 7919 % 11)::int AS visits, CASE WHEN i % 17 = 0 THEN NULL ELSE chr(97 + i * 31 % 4) END AS shop,
            0 AS bought FROM generate_series(1, 3000) i;
        UPDATE visits SET bought = (2 * member::int + (visits - 5) * 0.5 + CASE shop WHEN 'a' THEN 2 WHEN 'b' THEN -2 ELSE 0 END
            + CASE WHEN seen > '2026-03-01' THEN 1.5 ELSE -1.5 END > 0)::int;
        SELECT distill.register_sql_model('visits', '1 / (1 + exp(-(2 * member::int + (visits - 5) * 0.5 + CASE shop WHEN ''a'' THEN 2'
            ' WHEN ''b'' THEN -2 ELSE 0 END + CASE WHEN seen > ''2026-03-01'' THEN 1.5 ELSE -1.5 END)))', '{member,seen,day,visits,shop}', 'visits', 'bought',
            task => 'binary', classes => '{0,1}');
        """
    )
    db.execute(f"SELECT distill_model('visits', min_accuracy => 0, time_budget_s => 4, {EVERY_FAMILY})")
    assert one(db, f"SELECT student_accuracy FROM distill.run_report({last('visits')})") > 0.9
    moved: list[bool] = []
    for name in promote(db, "visits", "on_frontier AND form = 'predict'"):

        def predict(change: str, name: str = name) -> Any:
            """Return the mean prediction over rows with a change, and how many there are of it, and out of bounds."""
            return one(
                db,
                "SELECT avg(p), count(p), count(*) FILTER (WHERE p IS NULL OR NOT p BETWEEN 0 AND 1) FROM (SELECT distill.predict(%s,"
                f" to_jsonb(v) || '{change}') AS p FROM (SELECT * FROM visits LIMIT 200) v) t",
                name,
            )

        for change in (
            "{}",
            *(f'{{"{c}": null}}' for c in ("member", "seen", "day", "visits", "shop")),
            '{"member": null, "seen": null, "day": null, "visits": null, "shop": null}',
        ):
            assert predict(change)[1:] == (200, 0), (name, change)
        assert predict('{"shop": "unseen"}')[0] == predict('{"shop": "ungesehen"}')[0]
        assert predict('{"member": true}')[0] >= predict('{"member": false}')[0], name
        most, least = predict('{"visits": 10}')[0], predict('{"visits": 0}')[0]
        assert most >= least, name  # the smallest trees have no split to spare for it
        moved.append(most > least)
        late, early = (
            predict('{"seen": "2026-04-20T00:00:00+00:00"}'),
            predict('{"seen": "2026-01-05 00:00:00"}'),
        )
        assert late[0] >= early[0], name
    assert any(moved)


# -- weights, and the floor


def test_weights_count_in_every_figure(db: psycopg.Connection) -> None:
    load_cancer(db)
    db.execute("CREATE TABLE weighed AS SELECT *, 1 + 9 * (x0 > 14)::int + x1 / 100 AS weight FROM cancer")
    db.execute(
        "SELECT distill_model('cancer', sample => 'weighed', weight_column => 'weight', min_accuracy => 0, time_budget_s => 4,"
        " families => '{linear}')"
    )
    student = promote_chosen(db, "cancer")
    stored = one(db, f"SELECT teacher_accuracy, student_accuracy FROM distill.run_report({last('cancer')})")
    counts = []
    for name, figure in zip(("cancer:1", student), stored, strict=True):
        weighted, plain = one(
            db,
            "SELECT sum(w * hit) / sum(w), avg(hit) FROM (SELECT (r.row->>'weight')::float8 AS w,"
            " (distill.predict_class(%s, r.row) = r.row->>'malignant')::int AS hit"
            f" FROM distill.run_rows({last('cancer')}) r WHERE split = 'test') t",
            name,
        )
        assert figure == pytest.approx(weighted, abs=1e-9)
        counts.append(abs(float(plain) - weighted))
    assert max(counts) > 1e-3


@pytest.mark.extra
def test_the_summary_warns_where_the_interval_straddles_the_floor(db: psycopg.Connection) -> None:
    load_cancer(db)
    call = "SELECT distill_model('cancer', min_accuracy => %s, patience => 1, time_budget_s => 20, families => '{linear}')"
    report = f"SELECT student_accuracy, student_accuracy_low, student_accuracy_high, summary FROM distill.run_report({last('cancer')})"
    db.execute(call, (0.0,))
    accuracy, low, high, summary = one(db, report)
    assert low < accuracy < high
    assert "straddles" not in summary
    name = promote_chosen(db, "cancer")
    # Well within the first one's interval, and not beyond what the teacher has: such a floor is out of reach before anything is
    # trained.
    floor = low + (accuracy - low) / 4
    db.execute(call, (floor,))
    _, low, high, summary = one(db, report)
    assert low is not None, (floor, summary)
    assert low < floor <= high
    assert "straddles" in summary
    # The same rows and seed make the same file: no second version of it, and the run names the first one.
    same, accepted, reason = one(
        db,
        "SELECT c.sha256 = m.sha256, r.accepted, c.reason FROM distill.runs r JOIN distill.candidates c USING (run_id),"
        f" distill.models m WHERE run_id = {last('cancer')} AND chosen AND m.name || ':' || m.version = %s",
        name,
    )
    assert not (same and accepted)
    assert not same or name in reason
    assert one(db, "SELECT count(*) = count(DISTINCT sha256) FROM distill.models")
