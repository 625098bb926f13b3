"""Bad input has its SQLSTATE, and the registry is as it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors
from sql.conftest import cancer, names

FEATURES = names(30)


@pytest.fixture(scope="module")
def bench(shared: Callable[[], psycopg.Connection]) -> Iterator[psycopg.Connection]:
    """The shared database with a few more relations that are wrong in one way each."""
    connection = shared()
    connection.execute(
        """
        CREATE SCHEMA bad;
        CREATE TABLE bad.empty AS SELECT * FROM cancer LIMIT 0;
        CREATE TABLE bad.few AS SELECT * FROM cancer LIMIT 10;
        CREATE TABLE bad.one_class AS SELECT * FROM cancer WHERE malignant = 1;
        CREATE TABLE bad.other_label AS SELECT *, 'maybe' AS guess FROM cancer;
        CREATE TABLE bad.text_column AS SELECT * FROM cancer;
        ALTER TABLE bad.text_column ALTER x3 TYPE text;
        CREATE TABLE bad.json_column AS SELECT * FROM cancer;
        ALTER TABLE bad.json_column ALTER x3 TYPE jsonb USING to_jsonb(x3);
        CREATE TABLE bad.written (n int);
        CREATE TABLE bad.log AS SELECT *, 0.5::float8 AS p, 'half' AS words FROM cancer;
        CREATE FUNCTION bad.write() RETURNS int LANGUAGE sql AS 'INSERT INTO bad.written VALUES (1) RETURNING n';
        """
    )
    yield connection
    connection.execute("DROP SCHEMA bad CASCADE")


def snapshot(connection: psycopg.Connection) -> Any:
    """Return which rows the registry has, in which versions, and what the writing function has written."""
    return connection.execute(
        "SELECT (SELECT array_agg(ARRAY[id::text, ctid::text, xmin::text] ORDER BY id) FROM distill.models), (SELECT count(*) FROM distill.runs),"
        " (SELECT count(*) FROM distill.candidates), (SELECT count(*) FROM bad.written)"
    ).fetchone()


REGISTER = "SELECT distill.register_model({})"
BINARY = "task => 'binary', classes => '{{0,1}}'"
REGISTER_ONNX = (
    "SELECT distill.register_model('m', %(onnx)s, features => %(x)s, sample => '{}', label => 'malignant')"
)
REGISTER_SQL = (
    f"SELECT distill.register_sql_model('m', '0.5', '{{{{x0,x3}}}}', '{{}}', 'malignant', {BINARY})"
)
REGISTER_LOGGED = (
    f"SELECT distill.register_logged_model('m', '{{{{p}}}}', '{{{{x0,x3}}}}', '{{}}', 'malignant', {BINARY})"
)
DISTILL_KNOWN = "SELECT distill_model('cancer', trained_on => '{}')"
SCORE = "SELECT count(*) FROM distill.score('cancer', '{}', 'x0')"
WRITES = "WITH w AS (INSERT INTO bad.written VALUES (1) RETURNING n) SELECT c.* FROM bad.log c, w"
# What can be wrong with rows is wrong for everybody who reads some.
BAD_ROWS = [
    ("a missing relation", "42P01", "bad.nothing"),
    ("no SQL", "42601", "SELECT FROM WHERE"),
    ("two statements", "42601", "SELECT * FROM bad.log; SELECT 1"),
    ("an escape", "42P11", "SELECT * FROM bad.log) s; INSERT INTO bad.written VALUES (1); SELECT 1 FROM (SELECT 1"),
    ("a write", "42601", "INSERT INTO bad.written VALUES (1) RETURNING *"),
    ("a write in a CTE", "0A000", WRITES),
    ("a function that writes", "25006", "SELECT * FROM bad.log WHERE bad.write() = 1"),
    ("a missing column", "42703", "SELECT x0, malignant, 0.5 AS p FROM cancer"),
    ("a column that no model takes", "42804", "SELECT *, 0.5 AS p FROM bad.json_column"),
]  # fmt: skip
READERS = {
    "register_model": REGISTER_ONNX,
    "register_sql_model": REGISTER_SQL,
    "register_logged_model": REGISTER_LOGGED,
    "distill_model": "SELECT distill_model('cancer', sample => '{}')",
    "trained_on": DISTILL_KNOWN,
    "score": SCORE,
}
CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    # id, SQLSTATE, statement, arguments
    ("unknown teacher", "42704", "SELECT distill_model('nobody')", {}),
    ("unknown version", "42704", "SELECT distill_model('cancer:99')", {}),
    ("NULL teacher", "22004", "SELECT distill_model(NULL)", {}),
    ("target 0", "22023", "SELECT distill_model('cancer', target_latency_ms => 0)", {}),
    ("target NaN", "22023", "SELECT distill_model('cancer', target_latency_ms => 'NaN')", {}),
    ("target infinite", "22023", "SELECT distill_model('cancer', target_latency_ms => 'Infinity')", {}),
    ("target below 0", "22023", "SELECT distill_model('cancer', target_latency_ms => -1)", {}),
    ("target NULL", "22004", "SELECT distill_model('cancer', target_latency_ms => NULL)", {}),
    ("accuracy above 1", "22023", "SELECT distill_model('cancer', min_accuracy => 1.1)", {}),
    ("accuracy below 0", "22023", "SELECT distill_model('cancer', min_accuracy => -0.1)", {}),
    ("accuracy NaN", "22023", "SELECT distill_model('cancer', min_accuracy => 'NaN')", {}),
    ("temperature below 0", "22023", "SELECT distill_model('cancer', temperature => -1)", {}),
    ("temperature 0", "22023", "SELECT distill_model('cancer', temperature => 0)", {}),
    ("temperature NaN", "22023", "SELECT distill_model('cancer', temperature => 'NaN')", {}),
    ("epochs 0", "22023", "SELECT distill_model('cancer', epochs => 0)", {}),
    ("epochs below 0", "22023", "SELECT distill_model('cancer', epochs => -1)", {}),
    ("seed below 0", "22023", "SELECT distill_model('cancer', seed => -1)", {}),
    ("seed below 0 of a check", "22023", "SELECT distill.check('cancer', seed => -1)", {}),
    ("max_rows 0", "22023", "SELECT distill_model('cancer', max_rows => 0)", {}),
    ("no patience", "22023", "SELECT distill_model('cancer', patience => 0)", {}),
    ("patience below 0", "22023", "SELECT distill_model('cancer', patience => -1)", {}),
    ("patience without an end", "22023", "SELECT distill_model('cancer', patience => 1000001)", {}),
    ("patience NULL", "22004", "SELECT distill_model('cancer', patience => NULL)", {}),
    ("refit_on_all NULL", "22004", "SELECT distill_model('cancer', refit_on_all => NULL)", {}),
    ("refit_on_all no boolean", "22P02", "SELECT distill_model('cancer', refit_on_all => 'perhaps')", {}),
    ("monotone no JSON", "22P02", "SELECT distill_model('cancer', monotone => 'up')", {}),
    ("monotone in no column", "42703", """SELECT distill_model('cancer', monotone => '{"luck": 1}')""", {}),
    ("monotone by two", "22023", """SELECT distill_model('cancer', monotone => '{"luck": 2}')""", {}),
    ("monotone too deep", "22023", "SELECT distill_model('cancer', monotone => (repeat('[', 3000) || repeat(']', 3000))::jsonb)", {}),
    ("monotone a list", "22023", """SELECT distill.submit('cancer', monotone => '[1]')""", {}),
    ("no time", "22023", "SELECT distill_model('cancer', time_budget_s => 0)", {}),
    ("unknown metric", "22023", "SELECT distill_model('cancer', metric => 'luck')", {}),
    ("metric of another task", "22023", "SELECT distill_model('cancer', metric => 'r2')", {}),
    ("unknown family", "22023", "SELECT distill_model('cancer', families => '{oracle}')", {}),
    ("no family", "22023", "SELECT distill_model('cancer', families => '{}')", {}),
    ("NULL family", "22004", "SELECT distill_model('cancer', families => '{NULL}')", {}),
    ("student name with a colon", "42602", "SELECT distill_model('cancer', student_name => 'a:b')", {}),
    ("empty sample", "22000", "SELECT distill_model('cancer', sample => 'bad.empty')", {}),
    ("too few rows", "22000", "SELECT distill_model('cancer', sample => 'bad.few')", {}),
    (
        "no row with a label, by time",
        "22000",
        "SELECT distill_model('cancer', sample => 'SELECT *, now() AS t, NULL::int AS y FROM cancer', label => 'y', time_column => 't')",
        {},
    ),
    ("one class", "22000", "SELECT distill_model('cancer', sample => 'bad.one_class')", {}),
    ("label that is no class", "22000", "SELECT distill_model('cancer', sample => 'bad.other_label', label => 'guess')", {}),
    ("weights of zero", "22000", "SELECT distill_model('cancer', sample => 'SELECT *, 0 AS w FROM cancer', weight_column => 'w')", {}),
    ("weights below zero", "22023", "SELECT distill_model('cancer', sample => 'SELECT *, -1 AS w FROM cancer', weight_column => 'w')", {}),
    ("missing label", "42703", "SELECT distill_model('cancer', label => 'nothing')", {}),
    ("missing group", "42703", "SELECT distill_model('cancer', group_column => 'nothing')", {}),
    ("text for a number", "42804", "SELECT distill_model('cancer', sample => 'bad.text_column')", {}),
    ("text for a number, trained on", "42804", DISTILL_KNOWN.format("bad.text_column"), {}),
    ("text for a number, in score", "42804", SCORE.format("bad.text_column"), {}),
    ("text for a number, in a graph", "42804", REGISTER_ONNX.format("bad.text_column"), {}),
    ("ONNX on no rows", "22000", REGISTER_ONNX.format("bad.empty"), {}),
    ("ONNX with one class", "22000", REGISTER_ONNX.format("bad.one_class"), {}),
    ("ONNX without its label", "42703", REGISTER_ONNX.format(f"SELECT {', '.join(FEATURES)} FROM cancer"), {}),
    ("ONNX without features", "22023", REGISTER.format("'m', %(onnx)s, features => '{}'"), {}),
    ("SQL on no rows", "22000", REGISTER_SQL.format("bad.empty"), {}),
    ("SQL with one class", "22000", REGISTER_SQL.format("bad.one_class"), {}),
    ("SQL without its label", "42703", REGISTER_SQL.format("SELECT x0, x3 FROM cancer"), {}),
    ("SQL without features", "22023", "SELECT distill.register_sql_model('m', '0.5', '{}', 'cancer', 'malignant')", {}),
    ("SQL that calls a function that writes", "25006", REGISTER_SQL.replace("0.5", "0.5 + bad.write()").format("cancer"), {}),
    ("SQL of two statements", "42601", REGISTER_SQL.replace("0.5", "0.5; SELECT 1").format("cancer"), {}),
    ("SQL of a text", "22P02", REGISTER_SQL.replace("0.5", "''half''::text").format("cancer"), {}),
    ("logged on no rows", "22000", REGISTER_LOGGED.format("SELECT * FROM bad.log LIMIT 0"), {}),
    ("logged with one class", "22000", REGISTER_LOGGED.format("SELECT * FROM bad.log WHERE malignant = 1"), {}),
    ("logged without its label", "42703", REGISTER_LOGGED.format("SELECT x0, x3, p FROM bad.log"), {}),
    ("logged without features", "22023", "SELECT distill.register_logged_model('m', '{p}', '{}', 'bad.log', 'malignant')", {}),
    ("logged words", "22000", REGISTER_LOGGED.replace("{{p}}", "{{words}}").format("bad.log"), {}),
    ("score by a missing key", "42703", "SELECT count(*) FROM distill.score('cancer', 'cancer', 'nothing')", {}),
    ("score by nobody", "42704", "SELECT count(*) FROM distill.score('nobody', 'cancer', 'x0')", {}),
    ("classes by a missing key", "42703", "SELECT count(*) FROM distill.score_class('cancer', 'cancer', 'nothing')", {}),
    ("classes by nobody", "42704", "SELECT count(*) FROM distill.score_class('nobody', 'cancer', 'x0')", {}),
    *((f"{reader} of {what}", state, statement.format(rows), {}) for reader, statement in READERS.items() for what, state, rows in BAD_ROWS),
    ("NULL name", "22004", REGISTER.format("NULL, %(onnx)s"), {}),
    ("empty name", "42602", REGISTER.format("'', %(onnx)s"), {}),
    ("long name", "42602", REGISTER.format("repeat('n', 64), %(onnx)s"), {}),
    ("name with a colon", "42602", REGISTER.format("'a:b', %(onnx)s"), {}),
    ("NULL artifact", "22004", REGISTER.format("'m', NULL"), {}),
    ("empty artifact", "22P03", REGISTER.format("'m', ''"), {}),
    ("not ONNX", "22P03", REGISTER.format("'m', 'this is no model'"), {}),
    ("truncated", "22P03", REGISTER.format("'m', substring(%(onnx)s FROM 1 FOR 5000)"), {}),
    ("features of a wrong count", "22000", REGISTER.format("'m', %(onnx)s, features => '{x0,x1}', sample => 'cancer'"), {}),
    ("feature twice", "22000", REGISTER.format("'m', %(onnx)s, features => array_fill('x0'::text, ARRAY[30]), sample => 'cancer'"), {}),
    ("feature that is no column", "42703", REGISTER.format("'m', %(onnx)s, features => %(f)s::text[] || 'nothing'::text, sample => 'cancer'"), {}),
    ("label without a sample", "22023", REGISTER.format("'m', %(onnx)s, label => 'malignant'"), {}),
    ("unknown task", "22023", REGISTER.format("'m', %(onnx)s, task => 'guessing'"), {}),
    ("classes of a wrong count", "22023", REGISTER.format("'m', %(onnx)s, classes => '{a,b,c}'"), {}),
    ("version that exists", "42710", REGISTER.format("'cancer', %(onnx)s, version => '1'"), {}),
    ("file that does not exist", "58P01", "SELECT distill.register_model_file('m', '/nonexistent/model.onnx')", {}),
    ("activate unknown", "42704", "SELECT distill.activate_model('cancer', '99')", {}),
    ("drop unknown", "42704", "SELECT distill.drop_model('nobody')", {}),
    ("drop with students", "2BP01", "SELECT distill.drop_model('cancer')", {}),
    ("predict by nobody", "42704", "SELECT distill.predict('nobody', '{1}'::float8[])", {}),
    ("predict with NULL", "22004", "SELECT distill.predict('cancer', NULL::float8[])", {}),
    ("predict with NULL model", "22004", "SELECT distill.predict(NULL, '{1}'::float8[])", {}),
    ("predict with too few", "22000", "SELECT distill.predict('cancer', '{1,2}'::float8[])", {}),
    ("predict from a row without a column", "42703", "SELECT distill.predict('cancer', '{\"x0\": 1}'::jsonb)", {}),
    ("predict from a row with text", "42804", "SELECT distill.predict('cancer', (to_jsonb(c) || '{\"x3\": \"tall\"}')) FROM cancer c LIMIT 1", {}),
    ("predict from no object", "42804", "SELECT distill.predict('cancer', '[1]'::jsonb)", {}),
    ("strings as an array", "0A000", "SELECT distill.predict('survival', '{1,2,3,4}'::float8[])", {}),
    ("class of a regression", "0A000", "SELECT distill.predict_class('diabetes', '{1}'::float8[])", {}),
    ("report of no run", "42704", "SELECT distill.run_report(gen_random_uuid())", {}),
    ("frontier of three columns", "22023", "SELECT distill.dominates_pareto(1, 1, '{{1,2,3}}')", {}),
    ("frontier with NULL", "22004", "SELECT distill.dominates_pareto(1, 1, '{{1,NULL}}')", {}),
    ("NaN latency", "22023", "SELECT distill.dominates_pareto('NaN', 1, '{}')", {}),
    ("unknown setting", "22023", "SELECT distill.change_setting('luck', '1')", {}),
    ("setting out of range", "22023", "SELECT distill.change_setting('trainer_threads', '0')", {}),
    ("setting that is no number", "22023", "SELECT distill.change_setting('trainer_threads', 'many')", {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sqlstate", "statement", "arguments"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_refused(bench: psycopg.Connection, sqlstate: str, statement: str, arguments: dict[str, Any]) -> None:
    before = snapshot(bench)
    given = {"onnx": cancer()[2], "f": FEATURES[:29], "x": FEATURES} | arguments
    with pytest.raises(psycopg.Error) as caught:
        bench.execute(statement, given if "%(" in statement else None)  # type: ignore[arg-type]
    assert caught.value.sqlstate == sqlstate, caught.value
    assert snapshot(bench) == before


def test_nan_and_infinity_are_features_like_others(bench: psycopg.Connection) -> None:
    """A tree ensemble puts them on one side; what a model cannot stand is the model's to refuse at registration."""
    for value in ("NaN", "Infinity", "-Infinity", "1e300"):
        [p] = bench.execute(
            "SELECT distill.predict('cancer_distilled', array_fill(%s::float8, ARRAY[30]))", (value,)
        ).fetchone() or [None]
        assert p is not None
        assert 0 <= p <= 1


OUTPUTS_THAT_FIT_NO_TASK = [
    ("a cube", "0A000", "(float[N,30] x) => (float[N,30,1] y) { a = Constant <value = int64[1] {2}> () y = Unsqueeze(x, a) }"),
    ("one value for all rows", "22000", "(float[N,30] x) => (float[1] y) { y = ReduceSum <keepdims = 0> (x) }"),
    ("truth values", "0A000", "(float[N,30] x) => (bool[N,30] y) { y = Greater(x, x) }"),
    ("strings", "22023", "(float[N,30] x) => (string[N,30] y) { y = Cast <to = 8> (x) }"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sqlstate", "graph"),
    [c[1:] for c in OUTPUTS_THAT_FIT_NO_TASK],
    ids=[c[0] for c in OUTPUTS_THAT_FIT_NO_TASK],
)
def test_outputs_that_fit_no_task(bench: psycopg.Connection, sqlstate: str, graph: str) -> None:
    import onnx

    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {graph}').SerializeToString()
    before = snapshot(bench)
    with pytest.raises(psycopg.Error) as caught:
        bench.execute(
            "SELECT distill.register_model('m', %s, features => %s, sample => 'cancer', label => 'malignant')",
            (model, names(30)),
        )
    assert caught.value.sqlstate == sqlstate, caught.value
    assert snapshot(bench) == before


def test_label_that_is_no_finite_number(bench: psycopg.Connection) -> None:
    before = snapshot(bench)
    for value in ("NaN", "Infinity", "-Infinity"):
        with pytest.raises(errors.DataException):
            bench.execute(
                "SELECT distill_model('diabetes', min_accuracy => 0, time_budget_s => 5, sample =>"
                f" 'SELECT *, CASE WHEN x0 < 0 THEN progression ELSE ''{value}'' END AS y FROM diabetes', label => 'y')"
            )
    assert snapshot(bench) == before


def test_sample_without_any(db: psycopg.Connection) -> None:
    db.execute("SELECT distill.register_model('bare', %s)", (cancer()[2],))
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        db.execute("SELECT distill_model('bare')")


def test_artifact_limit_is_a_setting(db: psycopg.Connection) -> None:
    db.execute("SELECT distill.change_setting('artifact_limit_mb', '1')")
    with pytest.raises(errors.ProgramLimitExceeded):
        db.execute("SELECT distill.register_model('big', decode(repeat('00', 2 << 20), 'hex'))")
    db.execute("SELECT distill.change_setting('artifact_limit_mb', NULL)")
