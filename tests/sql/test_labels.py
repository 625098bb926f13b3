"""A label is its text: classes that look alike stay apart, and what predict_class answers can be compared with the column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import errors
from sql.conftest import load_table, one

ROWS = 600


def classifier(classes: Sequence[Any]) -> tuple[Any, Any, Any, bytes]:
    """Give rows, labels that depend on them, a fitted model's answers, and its ONNX file."""
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(7)
    x = rng.normal(size=(ROWS, 2)).astype(np.float32)
    places = np.digitize(x[:, 0], np.quantile(x[:, 0], np.arange(1, len(classes)) / len(classes)))
    y = np.array(classes)[places]
    model = LogisticRegression(C=100).fit(x, y)
    options = {id(model): {"zipmap": False}}
    graph = to_onnx(model, x[:1], target_opset={"": 17, "ai.onnx.ml": 3}, options=options)
    return x, y, model.predict(x), graph.SerializeToString()


def load(db: psycopg.Connection, name: str, kind: str, x: Any, labels: Sequence[Any]) -> None:
    rows = ([i, *map(float, row), label] for i, (row, label) in enumerate(zip(x, labels, strict=True)))
    load_table(db, name, {"id": "int", "a": "float8", "b": "float8", "y": kind}, rows)


def register(
    db: psycopg.Connection, name: str, artifact: bytes, classes: Sequence[str] | None = None
) -> None:
    db.execute(
        "SELECT distill.register_model(%s, %s, features => '{a,b}', sample => %s, label => 'y', classes => %s)",
        (name, artifact, name, classes),
    )


# Each answer stands beside the column in three ways that people write.
COMPARED = """
SELECT avg((distill.predict_class('{0}', to_jsonb(t.*)) = to_jsonb(t.*)->>'y')::int)::float8,
       avg((distill.predict_class('{0}', ARRAY[a, b]) = y::text)::int)::float8,
       (SELECT avg((s.class = r.y::text)::int)::float8 FROM distill.score_class('{0}', '{0}', 'id') s JOIN "{0}" r ON r.id::text = s.key),
       (SELECT m.accuracy FROM distill.models m WHERE m.name = '{0}')
FROM "{0}" t"""


@pytest.mark.parametrize(
    ("name", "kind", "classes"),
    [
        ("zeros", "text", ["01", "1", "2"]),
        ("decimals", "text", ["1", "1.0", "1.00"]),
        ("exponents", "text", ["100", "1E2", "7"]),
        ("truth", "text", ["1", "T", "true", "t"]),
        ("bases", "varchar(3)", ["A", "C", "F", "G", "T"]),
        ("nothing", "text", ["NULL", "", "nan"]),
        ("blanks", "text", [" a", "a", "a "]),
        ("signs", "text", ["+1", "-0", "0", "1"]),
        ("letters", "text", ["É", "é", "e"]),
    ],
)
def test_labels_that_look_alike_stay_apart(
    db: psycopg.Connection, name: str, kind: str, classes: list[str]
) -> None:
    x, y, predicted, artifact = classifier(classes)
    load(db, name, kind, x, y.tolist())
    register(db, name, artifact)
    expected = (predicted == y).mean()
    assert expected > 0.8
    assert one(db, COMPARED.format(name)) == pytest.approx((expected,) * 4, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "kind", "classes", "labels"),
    [
        ("booleans", "boolean", [0, 1], ["false", "true"]),
        ("whole", "int", [0, 1, 2], ["0", "1", "2"]),
        ("scaled", "numeric(3,1)", [0, 1, 2], ["0.0", "1.0", "2.0"]),
        ("doubles", "float8", [0, 1, 2], ["0", "1", "2"]),
        ("singles", "real", [0, 1], ["0", "1"]),
        ("letters", "text", [0, 1], ["f", "t"]),
        ("padded", "text", [1, 2, 3], ["01", "02", "03"]),
        ("ids", "bigint", [2**53, 2**53 + 1, 2**53 + 2], [str(2**53 + i) for i in range(3)]),
        ("days", "date", ["2024-01-01", "2024-02-29"], ["2024-01-01", "2024-02-29"]),
    ],
)
def test_predict_class_answers_what_the_column_holds(
    db: psycopg.Connection, name: str, kind: str, classes: list[Any], labels: list[str]
) -> None:
    x, y, predicted, artifact = classifier(classes)
    text = dict(zip(map(str, classes), labels, strict=True))
    load(db, name, kind, x, [text[str(label)] for label in y])
    db.execute("SET DateStyle = 'ISO'")
    register(db, name, artifact)
    db.execute("SET DateStyle = 'SQL, DMY'" if kind != "date" else "SET TimeZone = 'Asia/Kathmandu'")
    expected = (predicted == y).mean()
    assert one(db, COMPARED.format(name)) == pytest.approx((expected,) * 4, abs=1e-9)
    assert one(db, "SELECT output_schema->'classes' FROM distill.models") == labels


@pytest.mark.extra
def test_a_label_of_char_or_enum_can_be_recomputed_from_a_runs_rows(db: psycopg.Connection) -> None:
    """The documented way, for the kinds of column whose JSON is not their text; of a teacher in SQL and a logged one."""
    db.execute("CREATE TYPE public.stage AS ENUM ('late', 'early', 'e arly')")
    for kind, classes in (
        ("char(5)", ["a", "ab", "abc"]),
        ("public.stage", ["late", "early", "e arly"]),
        ("boolean", ["false", "true"]),
        ("numeric", ["1.50", "2"]),
    ):
        x, _, _, _ = classifier(range(len(classes)))
        places = np.digitize(x[:, 0], np.quantile(x[:, 0], np.arange(1, len(classes)) / len(classes)))
        db.execute("DROP TABLE IF EXISTS sample")
        load(db, "sample", kind, x, [classes[place] for place in places])
        cuts = np.quantile(x[:, 0], np.arange(1, len(classes)) / len(classes))
        place = " + ".join(f"(a > {float(cut)!r} + 0.2)::int" for cut in cuts)
        if len(classes) == 2:
            expression = f"0.1 + 0.8 * ({place})"
            outputs = f"{expression} AS p"
        else:
            shares = [f"0.1 + 0.7 * (({place}) = {k})::int" for k in range(3)]
            expression = f"ARRAY[{', '.join(shares)}]"
            outputs = ", ".join(f"{share} AS p{k}" for k, share in enumerate(shares))
        order = None if kind == "boolean" else classes
        db.execute(
            "SELECT distill.register_sql_model('spoken', %s, '{a,b}', 'sample', 'y', task => %s, classes => %s)",
            (expression, "binary" if len(classes) == 2 else "multiclass", order),
        )
        db.execute(
            "SELECT distill.register_logged_model('logged', %s, '{a,b}', %s, 'y', classes => %s)",
            (
                ["p"] if len(classes) == 2 else ["p0", "p1", "p2"],
                f"SELECT a, b, y, {outputs} FROM sample",
                order,
            ),
        )
        spoken, logged = (
            one(db, "SELECT accuracy FROM distill.models WHERE name = %s AND active", name)
            for name in ("spoken", "logged")
        )
        assert spoken == logged == pytest.approx((predicted_places(x, cuts) == places).mean(), abs=1e-9)
        db.execute(
            "SELECT distill_model('spoken', families => '{linear}', time_budget_s => 3, patience => 1, min_accuracy => 0)"
        )
        recomputed = one(
            db,
            "SELECT avg((distill.predict_class('spoken', r.row) = r.row->>'y')::int)::float8"
            " FROM distill.run_rows(distill.last_run('spoken')) r WHERE r.split = 'test'",
        )
        assert recomputed == pytest.approx(
            one(db, "SELECT teacher_accuracy FROM distill.runs ORDER BY created_at DESC LIMIT 1"), abs=1e-9
        )


def predicted_places(x: Any, cuts: Any) -> Any:
    return (x[:, :1] > cuts[None, :] + 0.2).sum(axis=1)


def test_classes_that_are_given_stay_and_are_compared_by_value(db: psycopg.Connection) -> None:
    x, y, predicted, artifact = classifier([0, 1])
    load(db, "given", "boolean", x, [bool(label) for label in y])
    register(db, "given", artifact, ["0", "1"])
    classes, accuracy = one(db, "SELECT output_schema->'classes', accuracy FROM distill.models")
    assert classes == ["0", "1"]
    assert accuracy == pytest.approx((predicted == y).mean(), abs=1e-9)


@pytest.mark.parametrize(
    ("classes", "labels", "unknown"),
    [
        (["0", "1"], ["0", "1", "01"], "01"),  # 1 is taken
        (["0", "1"], ["0", "01", "1.0"], "01"),  # two would be 1
        (["01", "1", "0"], ["0", "1.0"], "1.0"),  # it could be either
        (["no", "yes"], ["no", "Yes"], "Yes"),
        (["0", "1"], ["0", "1", "9007199254740993"], "9007199254740993"),
        (["9007199254740992", "0"], ["9007199254740993", "0"], "9007199254740993"),
    ],
)
def test_an_unknown_label_is_named(
    db: psycopg.Connection, classes: list[str], labels: list[str], unknown: str
) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    load(db, "sample", "text", x, [labels[i % len(labels)] for i in range(60)])
    expression, task = "0.5 + a * 0", "binary"
    if len(classes) > 2:
        expression, task = "ARRAY[0.2, 0.3, 0.5 + a * 0]", "multiclass"
    with pytest.raises(errors.DataException) as refused:
        db.execute(
            "SELECT distill.register_sql_model('m', %s, '{a}', 'sample', 'y', task => %s, classes => %s)",
            (expression, task, classes),
        )
    assert f'"{unknown}"' in (refused.value.diag.message_primary or "")


def test_equal_numbers_of_a_numeric_column_are_one_class(db: psycopg.Connection) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    load(db, "sample", "numeric", x, [("1", "1.0", "2.50", "2.5")[i % 4] for i in range(60)])
    db.execute(
        "SELECT distill.register_sql_model('m', '0.5 + a * 0.01', '{a}', 'sample', 'y', task => 'binary')"
    )
    assert one(db, "SELECT output_schema->'classes' FROM distill.models") in (["1", "2.5"],)


def test_a_graph_that_gives_labels_answers_as_the_column_does(db: psycopg.Connection) -> None:
    """Without probabilities: the graph's own label is looked up among the classes."""
    import onnx

    x, y, predicted, artifact = classifier([0, 1])
    graph = onnx.load_from_string(artifact)
    del graph.graph.output[1:]
    load(db, "booleans", "boolean", x, [bool(label) for label in y])
    register(db, "booleans", graph.SerializeToString())
    form, agreement = one(
        db,
        "SELECT (SELECT output_schema->>'form' FROM distill.models),"
        " avg((distill.predict_class('booleans', ARRAY[a, b]) = y::text)::int)::float8 FROM booleans",
    )
    assert form == "label"
    assert agreement == pytest.approx((predicted == y).mean(), abs=1e-9)


def test_a_label_by_any_setting_of_the_session(
    db: psycopg.Connection, connect: Callable[..., psycopg.Connection]
) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    load(db, "sample", "timestamptz", x, [f"2024-01-0{1 + i % 2} 12:00:00+00" for i in range(60)])
    found = set()
    for zone, style in (("UTC", "ISO"), ("Asia/Kathmandu", "German"), ("America/St_Johns", "SQL, DMY")):
        db.execute(f"SET TimeZone = '{zone}'; SET DateStyle = '{style}'")  # type: ignore[arg-type]
        db.execute(
            "SELECT distill.register_sql_model('m', '0.5 + a * 0.01', '{a}', 'sample', 'y', task => 'binary')"
        )
        found.add(str(one(db, "SELECT output_schema->'classes' FROM distill.models WHERE active")))
    assert len(found) == 1
