"""Several labels a row: teachers that give arrays, the students that learn them, and every way to ask these."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psycopg
import pytest
import servers
from onnx import TensorProto, helper
from pg_distill.students.soft_labels import sigmoid
from psycopg import errors
from sql.conftest import load_table, one

PYTHON = Path(__file__).resolve().parents[2] / "python"
CLASSES = ("billing", "damaged", "late", "refund")
ROWS = 1200
FEATURES = "{x,y,shop}"
BUDGET = "min_accuracy => 0, time_budget_s => 5, patience => 2"


def rows(n: int = ROWS) -> list[tuple[Any, ...]]:
    """Return tickets: two numbers, a shop, the tags that they have and the probabilities that a teacher gives each.

    A row has none, some or all of the tags; every tenth has no label, and other ones no answer of the teacher.
    """
    rng = np.random.default_rng(8)
    x = rng.normal(size=(n, 2))
    shop = rng.integers(0, 3, n)
    z = np.column_stack([2 * x[:, 0], 3 * x[:, 1] - 1, x[:, 0] + x[:, 1], 2.5 * (shop == 1) - 1.5 + x[:, 0]])
    p = sigmoid(1.5 * z).round(6)
    own = rng.random(p.shape) < p
    found = []
    for i in range(n):
        tags = [name for name, has in zip(CLASSES, own[i], strict=True) if has]
        said = [name for name, share in zip(CLASSES, p[i], strict=True) if share >= 0.5]
        label = None if i % 10 == 3 else tags
        answer = None if i % 10 == 7 else said
        scores = {name: float(share) for name, share in zip(CLASSES, p[i], strict=True)}
        found.append(
            (i, *x[i].tolist(), f"s{shop[i]}", label, answer, p[i].tolist(), json.dumps(scores), tags)
        )
    return found


COLUMNS = {
    "id": "int",
    "x": "float8",
    "y": "float8",
    "shop": "text",
    "tags": "text[]",
    "said": "text[]",
    "p": "float8[]",
    "scores": "jsonb",
    "truth": "varchar[]",
}


def graph(columns: int = 2, logits: bool = False) -> bytes:
    """Return an ONNX file of a sigmoid a class, over two numbers."""
    weights = np.array([[2, 0, 1, 1], [0, 3, 1, -1]], np.float32)[:columns]
    last = [] if logits else [helper.make_node("Sigmoid", ["z"], ["out"])]
    nodes = [helper.make_node("MatMul", ["in", "w"], ["out" if logits else "z"]), *last]
    made = helper.make_graph(
        nodes,
        "labels",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, [None, columns])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel())],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def register(db: psycopg.Connection, name: str, outputs: str, more: str = "", sample: str = "tickets") -> Any:
    return one(
        db, f"SELECT distill.register_logged_model(%s, %s, %s, %s{more})", name, outputs, FEATURES, sample
    )


def register_graph(db: psycopg.Connection, name: str, more: str = "", artifact: bytes | None = None) -> Any:
    return one(
        db,
        "SELECT distill.register_model(%s, %s, features => '{x,y}', sample => 'tickets', task => 'multilabel',"
        f" classes => %s{more})",
        name,
        graph() if artifact is None else artifact,
        list(CLASSES),
    )


@pytest.fixture(scope="module")
def log(server: servers.Server, template: str) -> Iterator[psycopg.Connection]:
    """A database with the tickets, a logged teacher of names and its student, which tests only add to."""
    servers.create_database(server, "labels", template)
    with server.connect("labels", autocommit=True) as connection:
        load_table(connection, "tickets", COLUMNS, rows())
        register(connection, "log", "{said}", ", label => 'tags', latency_ms => 20")
        assert one(connection, f"SELECT distill_model('log', {BUDGET})") is not None
        yield connection
    servers.drop_database(server, "labels")


def f1(db: psycopg.Connection, model: str, truth: str = "truth") -> float:
    """Return the micro F1 of what predict_classes says of the tickets, worked out in SQL."""
    return float(
        one(
            db,
            f"""
            WITH a AS (SELECT {truth}::text[] AS t, distill.predict_classes(%s, to_jsonb(k)) AS c FROM tickets k
                       WHERE {truth} IS NOT NULL),
            n AS (SELECT cardinality(t) AS t, cardinality(c) AS c,
                         (SELECT count(*) FROM unnest(t) u WHERE u = ANY (c)) AS shared FROM a)
            SELECT 2.0 * sum(shared) / (sum(t) + sum(c)) FROM n""",
            model,
        )
    )


def test_a_log_of_arrays_becomes_a_student(log: psycopg.Connection) -> None:
    task, classes, metric = one(
        log, "SELECT task, output_schema->'classes', metric FROM distill.models WHERE name = 'log_distilled'"
    )
    assert (task, tuple(classes), metric) == ("multilabel", CLASSES, "f1_micro")
    assert f1(log, "log_distilled") > 0.75
    assert f1(log, "log_distilled", "said") > 0.85  # what the teacher names
    run = one(log, "SELECT to_jsonb(r) FROM distill.run_report(distill.last_run('log')) r")
    assert run["accepted"]


def test_the_report_has_each_class(log: psycopg.Connection) -> None:
    figures, summary = one(
        log, "SELECT figures, summary FROM distill.runs WHERE run_id = distill.last_run('log')"
    )
    for who in ("teacher", "student"):
        assert set(figures[who]["metrics"]) >= {"f1_micro", "f1_macro", "average_precision_macro"}
        assert tuple(sorted(figures[who]["average_precision"])) == CLASSES
        assert all(0 < value <= 1 for value in figures[who]["average_precision"].values())
        low, high = figures[who]["intervals"]["f1_macro"]
        assert low <= figures[who]["metrics"]["f1_macro"] <= high
    assert "average precision" in summary


def test_predictions_in_every_form(log: psycopg.Connection) -> None:
    array = one(log, "SELECT distill.predict_proba('log_distilled', ARRAY[0.5, -0.5], ARRAY['s1'])")
    row = one(
        log, """SELECT distill.predict_proba('log_distilled', '{"x": 0.5, "y": -0.5, "shop": "s1"}'::jsonb)"""
    )
    assert len(array) == len(CLASSES)
    assert array == pytest.approx(row, abs=1e-7)
    sums, most, least = one(
        log,
        "SELECT count(*) FILTER (WHERE abs(s - 1) > 0.1), max(s), min(s) FROM (SELECT (SELECT sum(u) FROM unnest(p) u) AS s"
        " FROM (SELECT distill.predict_proba('log_distilled', to_jsonb(k)) AS p FROM tickets k) a) b",
    )
    assert sums > ROWS / 2
    assert least < 0.5
    assert most > 2
    same, sizes = one(
        log,
        "SELECT bool_and(c = d), array_agg(DISTINCT cardinality(c)) FROM (SELECT"
        " distill.predict_classes('log_distilled', to_jsonb(k)) AS c,"
        " distill.predict_classes('log_distilled', ARRAY[k.x, k.y], ARRAY[k.shop]) AS d FROM tickets k) a",
    )
    assert same
    assert set(sizes) >= {0, 1, 2, 3}
    # In the order of the classes.
    assert one(log, "SELECT bool_and(c = (SELECT coalesce(array_agg(u ORDER BY u), '{}') FROM unnest(c) u)) FROM"
                    " (SELECT distill.predict_classes('log_distilled', to_jsonb(k)) AS c FROM tickets k) a")  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        "distill.predict('log_distilled', to_jsonb(k))",
        "distill.predict('log_distilled', ARRAY[k.x, k.y], ARRAY[k.shop])",
        "distill.predict_class('log_distilled', to_jsonb(k))",
        "distill.predict_class('log_distilled', ARRAY[k.x, k.y], ARRAY[k.shop])",
        "(SELECT count(*) FROM distill.score('log_distilled', 'tickets', 'id'))",
        "(SELECT count(*) FROM distill.score_class('log_distilled', 'tickets', 'id'))",
        "distill.predict_batch('log_distilled', ARRAY[[k.x, k.y]])",
        "distill.predict_class_batch('log_distilled', ARRAY[[k.x, k.y]])",
    ],
)
def test_what_cannot_tell_several_labels_says_so(log: psycopg.Connection, call: str) -> None:
    with pytest.raises(errors.FeatureNotSupported) as raised:
        log.execute(f"SELECT {call} FROM tickets k LIMIT 1")  # type: ignore[arg-type]
    assert "predict_classes" in (raised.value.diag.message_hint or "")


@pytest.mark.parametrize("asked", ["{cascade}", "{cascade,linear}", "{first_trees}"])
def test_families_that_cannot_are_refused(log: psycopg.Connection, asked: str) -> None:
    with pytest.raises(errors.FeatureNotSupported) as raised:
        log.execute("SELECT distill_model('log', families => %s)", (asked,))
    assert raised.value.diag.message_hint


def test_constraints_on_one_answer_are_refused(log: psycopg.Connection) -> None:
    with pytest.raises(errors.FeatureNotSupported):
        one(log, """SELECT distill_model('log', monotone => '{"x": 1}', time_budget_s => 5)""")


def test_a_typed_function_gives_a_number_a_class(log: psycopg.Connection) -> None:
    log.execute("SELECT distill.create_function('log_distilled', 'tag_shares')")
    differ = one(
        log,
        "SELECT count(*) FROM tickets k WHERE tag_shares(k.x, k.y, k.shop) IS DISTINCT FROM"
        " distill.predict_proba('log_distilled', to_jsonb(k))",
    )
    assert differ == 0


def test_the_file_stands_alone(log: psycopg.Connection) -> None:
    artifact = one(log, "SELECT artifact FROM distill.models WHERE name = 'log_distilled'")
    session = ort.InferenceSession(bytes(artifact))
    data = log.execute(
        "SELECT x, y, shop, distill.predict_proba('log_distilled', to_jsonb(k)) FROM tickets k LIMIT 50"
    ).fetchall()
    numbers = np.array([row[:2] for row in data])
    feeds: dict[str, Any] = {}
    for node in session.get_inputs():
        kind = np.float64 if "double" in node.type else np.float32
        feeds[node.name] = (
            np.array([[row[2]] for row in data], object) if "string" in node.type else numbers.astype(kind)
        )
    [found] = session.run(None, feeds)
    np.testing.assert_allclose(found, [row[3] for row in data], atol=1e-6)


def test_an_exported_student_keeps_its_thresholds(log: psycopg.Connection) -> None:
    log.execute(
        "SELECT distill.register_model('again', artifact, features => %s, sample => 'tickets', task => 'multilabel',"
        " classes => %s) FROM distill.models WHERE name = 'log_distilled' AND active",
        (FEATURES, list(CLASSES)),
    )
    differ = one(
        log,
        "SELECT count(*) FROM tickets k WHERE distill.predict_classes('again', to_jsonb(k)) <>"
        " distill.predict_classes('log_distilled', to_jsonb(k))",
    )
    assert differ == 0


@pytest.mark.parametrize(
    ("name", "outputs", "more"),
    [
        ("shares", "{p}", ", classes => '{billing,damaged,late,refund}'"),
        ("objects", "{scores}", ", task => 'multilabel', label => 'truth'"),
    ],
)
def test_probabilities_need_not_sum_to_one(
    log: psycopg.Connection, name: str, outputs: str, more: str
) -> None:
    register(log, name, outputs, more)
    assert one(log, f"SELECT distill_model(%s, {BUDGET}, families => '{{linear,mlp}}')", name) is not None
    off = one(
        log,
        "SELECT avg(abs(a.q - b.q)) FROM tickets k,"
        " unnest(distill.predict_proba(%s, to_jsonb(k))) WITH ORDINALITY a(q, i),"
        " unnest(k.p) WITH ORDINALITY b(q, i) WHERE a.i = b.i",
        f"{name}_distilled",
    )
    assert off < 0.12
    assert f1(log, f"{name}_distilled") > 0.75


def test_a_column_a_class(log: psycopg.Connection) -> None:
    sample = "SELECT x, y, shop, tags, p[1] AS a, p[2] AS b, p[3] AS c, p[4] AS d FROM tickets"
    more = ", task => 'multilabel', classes => '{billing,damaged,late,refund}', label => 'tags'"
    register(log, "columns", "{a,b,c,d}", more, sample)
    register(log, "arrays", "{p}", more)
    figures = "SELECT metric, accuracy FROM distill.models WHERE name = %s"
    assert one(log, figures, "columns") == one(log, figures, "arrays")
    with pytest.raises(errors.DataException) as raised:
        register(log, "bad", "{a,b,c,d}", more, sample.replace("p[4]", "p[4] + 1"))
    assert raised.value.sqlstate == "22000"
    with pytest.raises(errors.DatatypeMismatch):
        register(log, "bad", "{a}", more, sample)


def test_a_graph_of_sigmoids_is_a_teacher(log: psycopg.Connection) -> None:
    register_graph(log, "graph", ", label => 'tags'")
    register_graph(log, "graph_of_logits", artifact=graph(logits=True))
    for model in ("graph", "graph_of_logits"):
        p = one(log, "SELECT distill.predict_proba(%s, ARRAY[1, -1])", model)
        assert p == pytest.approx(sigmoid(np.array([2.0, -3.0, 0.0, 2.0])), abs=1e-6)
    assert one(log, "SELECT distill.predict_classes('graph', ARRAY[1, -1])") == ["billing", "late", "refund"]
    assert one(log, "SELECT metric FROM distill.models WHERE name = 'graph'") == "f1_micro"
    assert (
        one(
            log,
            f"SELECT distill_model('graph', {BUDGET}, metric => 'f1_macro', refit_on_all => true, families => '{{linear,boosted}}')",
        )
        is not None
    )
    report = one(log, "SELECT to_jsonb(r) FROM distill.run_report(distill.last_run('graph')) r")
    assert report["metric"] == "f1_macro"
    # Without a label by agreement with what the teacher names.
    assert (
        one(log, f"SELECT distill_model('graph_of_logits', {BUDGET}, families => '{{linear}}')") is not None
    )
    said = one(
        log,
        "SELECT avg((distill.predict_classes('graph', ARRAY[x, y]) ="
        " distill.predict_classes('graph_of_logits_distilled', ARRAY[x, y]))::int) FROM tickets",
    )
    assert said > 0.9


def test_a_sql_teacher_gives_an_array(log: psycopg.Connection) -> None:
    register = (
        "SELECT distill.register_sql_model('in_sql', 'ARRAY[1 / (1 + exp(-2 * x)), 1 / (1 + exp(1 - 3 * y)), 0.5]',"
        " features => '{x,y}', sample => 'tickets', task => 'multilabel', classes => '{billing,damaged,never}')"
    )
    log.execute(register)
    assert one(log, "SELECT distill.predict_classes('in_sql', ARRAY[1, 1])") == [
        "billing",
        "damaged",
        "never",
    ]
    # Nothing is faster than the expression itself: a student of it is not accepted, and can be registered all the same.
    log.execute(f"SELECT distill_model('in_sql', {BUDGET}, families => '{{linear}}')")  # type: ignore[arg-type]
    log.execute(
        "SELECT distill.promote_candidate(run_id, candidate) FROM distill.candidates"
        " WHERE run_id = distill.last_run('in_sql') AND artifact IS NOT NULL ORDER BY accuracy DESC LIMIT 1"
    )
    said = one(log, "SELECT distill.predict_proba('in_sql_distilled', ARRAY[1, 1])")
    assert said == pytest.approx([0.88, 0.88, 0.5], abs=0.1)


@pytest.fixture(scope="module")
def mails(log: psycopg.Connection) -> psycopg.Connection:
    """Create the table of mails: a text, a vector and the tags that these tell."""
    rng = np.random.default_rng(4)
    words = {"late": "waiting for weeks", "refund": "money back please", "damaged": "the box was broken"}
    found = []
    for i in range(900):
        own = [name for name in words if rng.random() < 0.4]
        v = rng.normal(size=6)
        rest = " ".join(rng.choice(["hello", "shop", "order", "number", "today", "and", "the"], 6))
        body = " ".join([rest, *(words[name] for name in own), str(i)])
        found.append((body, v.tolist(), [*own, *(["vip"] if v[0] + v[1] > 0.5 else [])]))
    load_table(log, "mails", {"body": "text", "v": "float4[]", "tags": "text[]"}, found)
    return log


@pytest.mark.extra
def test_texts_and_vectors_tell_several_labels(mails: psycopg.Connection) -> None:
    for family in ("linear", "mlp"):
        name = f"mails_{family}"
        mails.execute(
            "SELECT distill.register_logged_model(%s, '{tags}', '{body,v}', 'mails', latency_ms => 20)",
            (name,),
        )
        made = one(
            mails,
            f"SELECT distill_model(%s, {BUDGET}, families => %s, student_name => %s, text_columns => '{{body}}')",
            name,
            [family],
            f"{name}_student",
        )
        assert made is not None
        right = one(
            mails,
            "SELECT avg((c @> tags AND tags @> c)::int) FROM (SELECT tags, distill.predict_classes(%s, to_jsonb(m)) AS c"
            " FROM mails m) a",
            f"{name}_student",
        )
        assert right > 0.85
    same = one(
        mails,
        "SELECT bool_and(distill.predict_classes('mails_linear_student', '{}', ARRAY[body], v) ="
        " distill.predict_classes('mails_linear_student', to_jsonb(m))) FROM mails m",
    )
    assert same


def test_students_in_sql_say_the_same(log: psycopg.Connection) -> None:
    register(log, "plain", "{p}", ", classes => '{billing,damaged,late,refund}', latency_ms => 20")
    log.execute(f"SELECT distill_model('plain', {BUDGET}, families => '{{sql,linear,tree,boosted,mlp}}')")  # type: ignore[arg-type]
    found = log.execute(
        "SELECT DISTINCT ON (family) family, candidate, run_id FROM distill.candidates"
        " WHERE run_id = distill.last_run('plain') AND artifact IS NOT NULL AND expression IS NOT NULL AND form = 'predict'"
    ).fetchall()
    assert found
    for family, candidate, run_id in found:
        made = one(log, "SELECT distill.promote_candidate(%s, %s)", run_id, candidate)
        version = one(log, "SELECT version FROM distill.models WHERE id = %s", made)
        model = f"plain_distilled:{version}"
        expression = one(log, "SELECT distill.to_sql(%s)", model)
        log.execute(
            "SELECT distill.create_function(%s, 'tags_in_sql', as_sql => true, replace => true)", (model,)
        )
        differ = one(
            log,
            "SELECT max(abs(a.q - b.q) + abs(a.q - c.q)) FROM tickets s,"
            " unnest(distill.predict_proba(%s, to_jsonb(s))) WITH ORDINALITY a(q, i),"
            f" unnest(({expression.replace('%', '%%')})) WITH ORDINALITY b(q, i),"
            " unnest(tags_in_sql(s.x, s.y, s.shop)) WITH ORDINALITY c(q, i) WHERE a.i = b.i AND a.i = c.i",
            model,
        )
        assert differ < 1e-5, family


def test_texts_in_sql_tell_several_labels(mails: psycopg.Connection) -> None:
    mails.execute(
        "SELECT distill.register_logged_model('plain_mails', '{tags}', '{body}', 'mails', latency_ms => 20,"
        " text_columns => '{body}')"
    )
    assert one(mails, f"SELECT distill_model('plain_mails', {BUDGET}, families => '{{linear}}')") is not None
    mails.execute("SELECT distill.create_function('plain_mails_distilled', 'mail_tags', as_sql => true)")
    differ = one(
        mails,
        "SELECT max(abs(a.q - b.q)) FROM (SELECT * FROM mails LIMIT 100) m,"
        " unnest(distill.predict_proba('plain_mails_distilled', to_jsonb(m))) WITH ORDINALITY a(q, i),"
        " unnest(mail_tags(m.body)) WITH ORDINALITY b(q, i) WHERE a.i = b.i",
    )
    assert differ < 1e-5


def test_a_student_is_checked_against_rows(log: psycopg.Connection) -> None:
    found = log.execute("SELECT figure, recorded, fresh FROM distill.check('log_distilled')").fetchall()
    by_figure = {row[0]: row[1:] for row in found}
    assert by_figure["accuracy"][1] is not None
    assert by_figure["fidelity"][1] is not None


def test_one_label_is_not_several(log: psycopg.Connection) -> None:
    log.execute(
        "SELECT distill.register_sql_model('single', 'x / 10 + 0.5', features => '{x}', sample =>"
        " 'SELECT least(greatest(x, -4), 4) AS x, x > 0 AS label FROM tickets', label => 'label', task => 'binary')"
    )
    with pytest.raises(errors.FeatureNotSupported):
        log.execute("SELECT distill.predict_classes('single', ARRAY[1])")


@pytest.mark.parametrize("metric", ["accuracy", "roc_auc", "r2"])
def test_metrics_of_one_label_are_refused(log: psycopg.Connection, metric: str) -> None:
    with pytest.raises(errors.InvalidParameterValue):
        log.execute("SELECT distill_model('log', metric => %s)", (metric,))


@pytest.mark.parametrize(
    ("column", "value", "more", "error"),
    [
        ("said", "'{billing,unheard}'", ", classes => '{billing,damaged,late,refund}'", errors.DataException),
        ("said", "'{billing,billing}'", "", errors.DataException),
        ("said", "'{billing,NULL}'", "", errors.DataException),
        ("said", "'{{billing},{late}}'", "", errors.DataException),
        ("p", "'{0.1,0.2,0.3}'", ", classes => '{billing,damaged,late,refund}'", errors.DataException),
        ("p", "'{0.1,0.2,0.3,1.5}'", ", classes => '{billing,damaged,late,refund}'", errors.DataException),
        ("p", "'{0.1,0.2,0.3,NaN}'", ", classes => '{billing,damaged,late,refund}'", errors.DataException),
        ("p", "'{NaN,NaN,NaN,NaN}'", ", classes => '{billing,damaged,late,refund}'", errors.DataException),
        ("p", "'{NaN,NaN,NaN,NaN}'", "", errors.InvalidParameterValue),  # no class is called NaN
        ("p", "'{0.1,0.2,0.3,NULL}'", ", classes => '{billing,damaged,late,refund}'", errors.DataException),
        ("scores", "'{\"billing\": 2}'", ", task => 'multilabel'", errors.DataException),
        ("p", "p", "", errors.InvalidParameterValue),  # which class is which nobody knows
        ("p", "p", ", classes => '{a,a,b,c}'", errors.InvalidParameterValue),
        ("p", "p", ", classes => '{a}'", errors.InvalidParameterValue),
        ("said", "said", ", task => 'binary'", errors.DatatypeMismatch),
        ("p", "p", ", task => 'multiclass', classes => '{a,b,c,d}'", errors.DatatypeMismatch),
        ("shop", "shop", ", task => 'multilabel'", errors.DatatypeMismatch),
    ],
)  # fmt: skip
def test_bad_answers_are_refused(
    log: psycopg.Connection, column: str, value: str, more: str, error: type[psycopg.Error]
) -> None:
    sample = f"SELECT x, y, shop, CASE WHEN id = 5 THEN {value} ELSE {column} END AS out FROM tickets"
    with pytest.raises(error) as raised:
        register(log, "bad", "{out}", more, sample)
    if error is errors.DataException:
        assert raised.value.sqlstate == "22000"
        assert raised.value.diag.message_detail  # the row


def test_answers_that_are_all_empty_are_refused(log: psycopg.Connection) -> None:
    with pytest.raises(errors.DataException) as raised:
        register(
            log, "bad", "{out}", ", classes => '{a,b}'", "SELECT x, y, shop, '{}'::text[] AS out FROM tickets"
        )
    assert raised.value.sqlstate == "22000"
    with pytest.raises(errors.DataException):
        register(
            log, "bad", "{out}", ", classes => '{a,b}'", "SELECT x, y, shop, NULL::text[] AS out FROM tickets"
        )


def test_a_class_that_nobody_has_is_told(log: psycopg.Connection) -> None:
    notices: list[Any] = []
    log.add_notice_handler(lambda n: notices.append((n.severity_nonlocalized, n.message_primary)))
    register(log, "rare", "{said}", ", classes => '{billing,damaged,late,never,refund}'")
    assert any(n[0] == "WARNING" and "never" in n[1] for n in notices), notices
    assert one(log, f"SELECT distill_model('rare', {BUDGET}, families => '{{linear}}')") is not None
    most = one(log, "SELECT max((distill.predict_proba('rare_distilled', to_jsonb(k)))[4]) FROM tickets k")
    assert most < 0.1


@pytest.mark.parametrize(
    ("label", "error"),
    [
        ("CASE WHEN id = 5 THEN '{unheard}' ELSE tags END", errors.DataException),
        ("'{billing}'::text[]", errors.DataException),
        ("'{}'::text[]", errors.DataException),
        ("p", errors.DataException),
        ("shop", errors.DatatypeMismatch),
        ("CASE WHEN id = 5 THEN 'null' ELSE scores END", errors.DataException),
    ],
)
def test_bad_labels_are_refused(log: psycopg.Connection, label: str, error: type[psycopg.Error]) -> None:
    sample = f"SELECT x, y, {label} AS label FROM tickets"
    with pytest.raises(error) as raised:
        log.execute(
            "SELECT distill.register_model('bad', %s, features => '{x,y}', sample => %s, label => 'label',"
            " task => 'multilabel', classes => %s)",
            (graph(), sample, list(CLASSES)),
        )
    if error is errors.DataException:
        assert raised.value.sqlstate == "22000"


@pytest.mark.parametrize(
    ("task", "classes", "error"),
    [
        ("multilabel", ["a", "b", "c"], errors.InvalidParameterValue),
        ("multilabel", ["a", "a", "b", "c"], errors.InvalidParameterValue),
        (None, list(CLASSES), errors.FeatureNotSupported),
        ("multiclass", list(CLASSES), errors.FeatureNotSupported),
    ],
)
def test_a_graph_says_what_it_is(
    log: psycopg.Connection, task: str | None, classes: list[str], error: type[psycopg.Error]
) -> None:
    with pytest.raises(error):
        log.execute(
            "SELECT distill.register_model('bad', %s, features => '{x,y}', sample => 'tickets', task => %s,"
            " classes => %s)",
            (graph(), task, classes),
        )


def test_a_label_of_arrays_asks_for_the_task(log: psycopg.Connection) -> None:
    with pytest.raises(errors.DatatypeMismatch) as raised:
        log.execute(
            "SELECT distill.register_sql_model('bad', 'x / 10 + 0.5', features => '{x}', sample => 'tickets', label => 'tags')"
        )
    assert "multilabel" in (raised.value.diag.message_hint or "")


def test_what_is_expected_of_several_labels_is_no_column(log: psycopg.Connection) -> None:
    with pytest.raises(errors.FeatureNotSupported):
        register_graph(log, "bad", ", expected => 'said'")


def test_the_command_line(log: psycopg.Connection, server: servers.Server, tmp_path: Any) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pg_distill.cli",
                *arguments,
                "--dsn",
                server.conninfo(dbname="labels"),
                "--json",
            ],
            env={**os.environ, "PYTHONPATH": str(PYTHON)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    row = json.dumps({"x": 2.0, "y": -2.0, "shop": "s1"})
    assert '"classes"' in run("predict", "log_distilled", "--row", row)
    run("export", "log_distilled")
    [manifest] = tmp_path.glob("*.json")
    run("import", str(manifest), "--name", "imported", "--sample", "tickets", "--label", "tags")
    same = one(
        log,
        "SELECT bool_and(distill.predict_classes('imported', to_jsonb(k)) ="
        " distill.predict_classes('log_distilled', to_jsonb(k))) FROM tickets k",
    )
    assert same


def test_the_report_page_has_each_class(log: psycopg.Connection) -> None:
    from pg_distill.cli import report

    assert "average precision of refund" in report.render(log, teacher="log")
