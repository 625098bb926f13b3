"""A teacher that gives nonsense is refused, and the first row that it gives it for is named."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

SETUP = """
CREATE TABLE rows AS SELECT i::float8 AS key, i::float8 / 100 AS x, (i % 2)::int AS label, 0.5::float8 AS p, 0.5::float8 AS q, 0.0::float8 AS r,
    'a'::text AS words FROM generate_series(1, 300) i;
UPDATE rows SET label = 1 WHERE x > 1.5;
"""
NULL, NAN = "NULL", "'NaN'::float8"
LOGGED = (
    "SELECT distill.register_logged_model('bad', %s, '{key,x}', 'rows', 'label', task => %s, classes => %s)"
)
SQL_MODEL = (
    "SELECT distill.register_sql_model('bad', %s, '{key,x}', 'rows', 'label', task => %s, classes => %s)"
)
TWO, THREE = ["0", "1"], ["0", "1", "2"]


@pytest.mark.parametrize(
    ("value", "task"),
    [
        (NAN, "binary"),
        ("'Infinity'", "binary"),
        ("1.5", "binary"),
        ("-0.5", "binary"),
        (NAN, "regression"),
    ],
)
def test_logged_value_of_one_row(db: psycopg.Connection, value: str, task: str) -> None:
    db.execute(SETUP)
    db.execute(f"UPDATE rows SET p = {value} WHERE key = 123")
    with pytest.raises(errors.DataException) as caught:
        db.execute(LOGGED, (["p"], task, TWO if task == "binary" else None))
    named_alone(db, caught.value)


@pytest.mark.parametrize(("columns", "classes"), [("p,q", TWO), ("p,q,r", THREE)])
def test_logged_probabilities_that_do_not_sum_to_one(
    db: psycopg.Connection, columns: str, classes: list[str]
) -> None:
    db.execute(SETUP)
    db.execute("UPDATE rows SET p = 0.7 WHERE key = 123")
    with pytest.raises(errors.DataException) as caught:
        db.execute(LOGGED, (columns.split(","), None, classes))
    named_alone(db, caught.value)


@pytest.mark.parametrize(
    ("outputs", "classes", "sqlstate"),
    [
        ("p", THREE, "22000"),
        ("p,q,r", TWO, "22000"),
        ("words", TWO, "22000"),
        ("nothing", TWO, "42703"),
        ("", TWO, "22023"),
    ],
)
def test_logged_columns_of_a_wrong_number_or_kind(
    db: psycopg.Connection, outputs: str, classes: list[str], sqlstate: str
) -> None:
    db.execute(SETUP)
    with pytest.raises(psycopg.Error) as caught:
        db.execute(LOGGED, (outputs.split(",") if outputs else [], None, classes))
    assert caught.value.sqlstate == sqlstate
    assert db.execute("SELECT count(*) FROM distill.models").fetchone() == (0,)


@pytest.mark.parametrize(
    ("otherwise", "bad", "classes"),
    [
        ("0.5", "NULL", TWO),
        ("0.5", "'NaN'", TWO),
        ("0.5", "1.5", TWO),
        ("ARRAY[0.2, 0.3, 0.5]", "ARRAY[0.2, 0.3, 0.6]", THREE),
        ("ARRAY[0.2, 0.3, 0.5]", "ARRAY[0.2, NULL, 0.5]", THREE),
        ("ARRAY[0.2, 0.3, 0.5]", "NULL", THREE),
        ("ARRAY[0.2, 0.3, 0.5]", "ARRAY[0.5, 0.5]", THREE),
        ("ARRAY[0.2, 0.3, 0.5]", "'{}'", THREE),
    ],
)
def test_expression_of_one_row(db: psycopg.Connection, otherwise: str, bad: str, classes: list[str]) -> None:
    db.execute(SETUP)
    expression = f"CASE WHEN key = 123 THEN {bad} ELSE {otherwise} END"
    with pytest.raises(errors.DataException) as caught:
        db.execute(SQL_MODEL, (expression, "multiclass" if classes is THREE else "binary", classes))
    named_alone(db, caught.value)


@pytest.mark.parametrize(
    ("good", "bad", "worse", "classes"),
    [
        ("0.5", "1.5", "NULL", TWO),
        ("ARRAY[0.2, 0.3, 0.5]", "ARRAY[0.2, 0.3, 0.6]", "ARRAY[0.2, NULL, 0.5]", THREE),
        ("ARRAY[0.2, 0.3, 0.5]", "ARRAY[0.2, 0.3, 0.6]", "ARRAY[0.5, 0.5]", THREE),
    ],
)
def test_the_first_of_two_bad_rows_is_named(
    db: psycopg.Connection, good: str, bad: str, worse: str, classes: list[str]
) -> None:
    """Whatever is wrong with either: which row is the first does not change when they change places."""
    db.execute(SETUP)
    named = set()
    for one, other in ((bad, worse), (worse, bad)):
        expression = f"CASE key WHEN 123 THEN {one} WHEN 45 THEN {other} ELSE {good} END"
        with pytest.raises(errors.DataException) as caught:
            db.execute(SQL_MODEL, (expression, "multiclass" if classes is THREE else "binary", classes))
        named.add((caught.value.diag.message_detail or "").partition("key = ")[2].partition(",")[0])
    assert named in ({"123.0"}, {"45.0"})


def test_expression_of_a_wrong_length_everywhere(db: psycopg.Connection) -> None:
    db.execute(SETUP)
    with pytest.raises(errors.DataException):
        db.execute(SQL_MODEL, ("ARRAY[0.5, 0.5]", "multiclass", THREE))
    assert db.execute("SELECT count(*) FROM distill.models").fetchone() == (0,)


def test_a_teacher_that_goes_wrong_after_it_was_registered(db: psycopg.Connection) -> None:
    """A log grows: what was right at registration is checked again when it is distilled."""
    db.execute(SETUP)
    db.execute(LOGGED, (["p"], None, TWO))
    db.execute("UPDATE rows SET p = 'NaN' WHERE key = 123")
    with pytest.raises(errors.DataException) as caught:
        db.execute("SELECT distill_model('bad', families => '{linear}', time_budget_s => 5)")
    assert "key = 123.0" in (caught.value.diag.message_detail or "")
    assert db.execute("SELECT count(*) FROM distill.runs").fetchone() == (0,)


SUM_OF_LOGS = "a = Constant <value = int64[1] {1}> () b = Log(x) y = ReduceSum(b, a)"


@pytest.mark.parametrize(
    ("graph", "task"),
    [
        (f"(float[N,2] x) => (float[N,1] y) {{ {SUM_OF_LOGS} }}", "regression"),
        (f"(float[N,2] x) => (float[N,2] z) {{ {SUM_OF_LOGS} p = Sigmoid(y) one = Constant <value = float[1] {{1}}> () q = Sub(one, p)"
         " z = Concat <axis = 1> (q, p) }", "binary"),
    ],
)  # fmt: skip
def test_a_graph_that_gives_nan_for_one_row(db: psycopg.Connection, graph: str, task: str) -> None:
    """It has not met such a row at its registration."""
    import onnx

    artifact = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g {graph}'
    ).SerializeToString()
    db.execute(SETUP)
    db.execute(
        "SELECT distill.register_model('bad', %s, '{key,x}', 'rows', 'label', task => %s)", (artifact, task)
    )
    db.execute("UPDATE rows SET x = -x WHERE key = 123")
    with pytest.raises(errors.DataException) as caught:
        db.execute("SELECT distill_model('bad', families => '{linear}', time_budget_s => 5)")
    assert caught.value.sqlstate == "22000"
    assert "key = 123.0" in (caught.value.diag.message_detail or "")
    assert db.execute("SELECT count(*) FROM distill.runs").fetchone() == (0,)


def named_alone(db: psycopg.Connection, error: psycopg.Error) -> None:
    """The only bad row is named by its features, the key among them; nothing is registered."""
    assert "key = 123.0" in (error.diag.message_detail or ""), error
    assert db.execute("SELECT count(*) FROM distill.models").fetchone() == (0,)
