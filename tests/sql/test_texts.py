"""A column of texts becomes a student that reads their words, in every way that predict is called."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import psycopg
import pytest
import servers
from pg_distill.frame import Strings
from pg_distill.onnx_model.tokens import prepare
from pg_distill.students.soft_labels import softmax
from psycopg import errors
from sql.conftest import load_table, one
from text_rows import SPECIAL, tickets

ROWS = 1500


def load_tickets(db: psycopg.Connection) -> None:
    """Make the table ``tickets``: texts, a number, a category, the label ``angry`` and the teacher's answers in several forms."""
    data = tickets(ROWS, "binary", 5, columns=("body", "x", "shop"))
    p = softmax(data.teacher_logits)[:, 1]  # type: ignore[arg-type]
    assert data.y is not None
    columns: list[list[Any]] = [[*range(ROWS)]]
    for name in ("body", "x", "shop"):
        column = data.frame.columns[name]
        columns.append(column.to_objects().tolist() if isinstance(column, Strings) else column.tolist())
    says = [json.dumps({"calm": 1 - v, "angry": v}) for v in p.tolist()]
    columns += [["angry" if y else "calm" for y in data.y.tolist()], p.tolist()]
    columns += [["angry" if v > 0.5 else "calm" for v in p.tolist()], says]
    load_table(
        db,
        "tickets",
        {"id": "int", "body": "text", "x": "float8", "shop": "text", "mood": "text", "p": "float8", "said": "text",
         "scores": "jsonb"},
        list(zip(*columns, strict=True)),
    )  # fmt: skip


FEATURES = "{body,x,shop}"


def register_log(
    db: psycopg.Connection, name: str, outputs: str, more: str = "", sample: str = "tickets"
) -> str:
    return str(
        one(db, f"SELECT distill.register_logged_model(%s, %s, %s, %s, latency_ms => 20{more})", name, outputs, FEATURES, sample)
    )  # fmt: skip


def distil_texts(db: psycopg.Connection, name: str = "log", more: str = "") -> None:
    """Distil into a linear student, in a few seconds."""
    done = one(
        db,
        f"SELECT distill_model(%s, min_accuracy => 0, time_budget_s => 40, patience => 1, epochs => 2, families => '{{linear}}'{more})",
        name,
    )
    assert done is not None


@pytest.fixture(scope="module")
def texts(server: Any, template: str) -> Any:
    """A database with a student of texts, which tests only read."""
    servers.create_database(server, "texts", template)
    with server.connect("texts", autocommit=True) as connection:
        load_tickets(connection)
        register_log(connection, "log", "{p}", ", label => 'mood', classes => '{calm,angry}'")
        distil_texts(connection)
        yield connection
    servers.drop_database(server, "texts")


def test_the_search_stores_its_sql(texts: psycopg.Connection) -> None:
    texts.execute("SELECT distill.create_function('log_distilled', 'sort_ticket', as_sql => true)")
    differ = one(
        texts,
        "SELECT max(abs(sort_ticket(x => x, shop => shop, body => body) - distill.predict('log_distilled', to_jsonb(t))))"
        " FROM tickets t",
    )
    assert differ < 1e-6
    # It is no rival of what predict calls: PostgreSQL reads words several times as slowly.
    assert one(texts, "SELECT count(*) FROM distill.candidates WHERE form = 'sql'") == 0
    texts.execute("DROP FUNCTION sort_ticket; DROP TABLE sort_ticket_ngrams")


def test_the_words_are_learned(texts: psycopg.Connection) -> None:
    teacher, student, control = one(
        texts,
        "SELECT teacher_accuracy, student_accuracy, majority_accuracy FROM distill.runs WHERE teacher_name = 'log'",
    )
    assert student > control + 0.5 * (teacher - control)
    without = one(
        texts,
        "SELECT distill.predict('log_distilled', jsonb_set(to_jsonb(t), '{body}', '\"good\"')) FROM tickets t LIMIT 1",
    )
    turned = one(
        texts,
        "SELECT distill.predict('log_distilled', jsonb_set(to_jsonb(t), '{body}', '\"bad\"')) FROM tickets t LIMIT 1",
    )
    assert without != turned


def test_a_run_says_what_it_read_as_texts(texts: psycopg.Connection) -> None:
    resolved, schema = one(
        texts,
        "SELECT r.resolved, m.input_schema FROM distill.runs r JOIN distill.models m ON m.name = r.student_name",
    )
    assert resolved["text_columns"] == ["body"]
    assert {f["name"]: f["kind"] for f in schema["features"]} == {
        "body": "text",
        "x": "number",
        "shop": "string",
    }


WAYS = {
    "json": "SELECT distill.predict('log_distilled', to_jsonb(t)) FROM odd t ORDER BY id",
    "arrays": "SELECT distill.predict('log_distilled', ARRAY[x], ARRAY[body, shop]) FROM odd ORDER BY id",
    "score": "SELECT s.prediction FROM distill.score('log_distilled', 'SELECT * FROM odd', 'id') s ORDER BY s.key::int",
}


def test_every_way_gives_what_the_file_alone_gives(texts: psycopg.Connection) -> None:
    """The file, in a bare ONNX Runtime, tokenises by its own graph; predict by Python."""
    texts.execute("DROP TABLE IF EXISTS odd")
    rows = [text for text in SPECIAL if "\0" not in text] + [None, "", "Not GOOD, bad!", "x" * 1_000_000]
    load_table(
        texts, "odd", {"id": "int", "body": "text", "x": "float8", "shop": "text"},
        [(i, text, None if i % 5 == 0 else i / 7, ("north", "south", "moon", None)[i % 4]) for i, text in enumerate(rows)],
    )  # fmt: skip
    artifact = one(texts, "SELECT artifact FROM distill.models WHERE name = 'log_distilled'")
    session = ort.InferenceSession(bytes(artifact))
    found = texts.execute("SELECT body, x, shop FROM odd ORDER BY id").fetchall()
    feeds = {
        "numbers": np.array([[np.nan if x is None else x] for _, x, _ in found], np.float32),
        "strings": np.array([["\x1f<NULL>" if s is None else s] for _, _, s in found], object),
        "texts": np.array([[prepare(body)] for body, _, _ in found], object),
    }
    expected = session.run(None, feeds)[0][:, 1]
    answers = {way: [row[0] for row in texts.execute(query).fetchall()] for way, query in WAYS.items()}
    for way, given in answers.items():
        np.testing.assert_allclose(given, expected, atol=1e-6, err_msg=way)


def test_a_typed_function_and_score_take_them(texts: psycopg.Connection) -> None:
    texts.execute("SELECT distill.create_function('log_distilled', 'how_angry')")
    expected = texts.execute(
        "SELECT distill.predict('log_distilled', to_jsonb(t)) FROM tickets t ORDER BY id LIMIT 50"
    ).fetchall()
    typed = texts.execute(
        "SELECT how_angry(body => body, x => x, shop => shop) FROM tickets ORDER BY id LIMIT 50"
    ).fetchall()
    np.testing.assert_allclose(typed, expected, atol=1e-7)
    scored = texts.execute(
        "SELECT s.prediction FROM distill.score('log_distilled', 'SELECT * FROM tickets', 'id') s ORDER BY s.key::int LIMIT 50"
    ).fetchall()
    np.testing.assert_allclose(scored, expected, atol=1e-7)


def test_the_file_can_be_registered_by_itself(texts: psycopg.Connection) -> None:
    texts.execute(
        "SELECT distill.register_model('copy', artifact, features => '{x,shop,body}', sample => 'tickets', label => 'mood',"
        " classes => '{calm,angry}') FROM distill.models WHERE name = 'log_distilled'"
    )
    differing = one(
        texts,
        "SELECT count(*) FROM tickets t WHERE distill.predict('copy', to_jsonb(t)) <> distill.predict('log_distilled', to_jsonb(t))",
    )
    assert differing == 0
    with pytest.raises(errors.InvalidBinaryRepresentation):
        texts.execute(
            "SELECT distill.register_model('bent', decode(replace(encode(artifact, 'hex'), encode('\"marks\": \"', 'hex'),"
            " encode('\"marks\": \"~', 'hex')), 'hex'), features => '{x,shop,body}') FROM distill.models WHERE name = 'log_distilled'"
        )


def test_a_text_that_is_none_is_refused(texts: psycopg.Connection) -> None:
    with pytest.raises(errors.DatatypeMismatch):
        texts.execute(
            """SELECT distill.predict('log_distilled', '{"body": 7, "x": 1, "shop": "north"}'::jsonb)"""
        )
    with pytest.raises(errors.UndefinedColumn):
        texts.execute("""SELECT distill.predict('log_distilled', '{"x": 1, "shop": "north"}'::jsonb)""")


@pytest.mark.parametrize(
    ("columns", "state"),
    [
        ("{x}", errors.DatatypeMismatch),
        ("{nothing}", errors.UndefinedColumn),
        ("{NULL}", errors.NullValueNotAllowed),
    ],
)
def test_a_wrong_text_column_is_refused(
    texts: psycopg.Connection, columns: str, state: type[errors.Error]
) -> None:
    with pytest.raises(state):
        texts.execute("SELECT distill_model('log', text_columns => %s)", (columns,))


def test_who_wants_no_texts_is_warned(db: psycopg.Connection) -> None:
    load_tickets(db)
    register_log(db, "log", "{p}", ", label => 'mood', classes => '{calm,angry}'")
    distil_texts(db, more=", text_columns => '{}'")
    warnings, resolved = one(db, "SELECT figures -> 'warnings', resolved FROM distill.runs")
    assert resolved["text_columns"] == []
    assert any('"body"' in text for text in warnings)


def test_a_log_of_names_is_a_teacher_without_a_label(db: psycopg.Connection) -> None:
    load_tickets(db)
    db.execute("UPDATE tickets SET said = NULL WHERE id % 3 = 0")
    register_log(db, "log", "{said}")
    task, schema = one(db, "SELECT task, output_schema FROM distill.models WHERE name = 'log'")
    assert (task, schema["classes"]) == ("binary", ["angry", "calm"])
    distil_texts(db)
    metric, fit, select, test, fidelity = one(
        db, "SELECT metric, rows_fit, rows_select, rows_test, fidelity FROM distill.runs"
    )
    assert metric == "agreement"
    assert 0.6 * ROWS < fit + select + test <= 0.67 * ROWS, "only what was answered"
    assert fidelity > 0.7
    assert one(db, "SELECT distill.predict_class('log_distilled', to_jsonb(t)) FROM tickets t LIMIT 1") in (
        "angry",
        "calm",
    )


@pytest.mark.extra
def test_what_only_a_label_knows_still_teaches(db: psycopg.Connection) -> None:
    load_tickets(db)
    db.execute("UPDATE tickets SET said = NULL WHERE id % 3 = 0")
    register_log(db, "log", "{said}", ", label => 'mood'")
    distil_texts(db)
    fit, test = one(db, "SELECT rows_fit, rows_test FROM distill.runs")
    assert fit > 0.6 * ROWS, "rows with a label alone"
    assert test < 0.17 * ROWS, "rows that the teacher has answered"


@pytest.mark.extra
def test_a_log_of_objects_is_a_teacher(db: psycopg.Connection) -> None:
    load_tickets(db)
    db.execute("""
        UPDATE tickets SET scores = CASE id % 4 WHEN 0 THEN NULL WHEN 1 THEN scores - 'calm' WHEN 2 THEN 'null' ELSE scores END""")
    register_log(db, "log", "{scores}", ", label => 'mood', classes => '{calm,angry}'")
    distil_texts(db)
    lift = one(db, "SELECT lift FROM distill.runs")
    assert lift > 0.3


BAD_LOGS = {
    "one class": ("said", "'angry'", "", errors.DataException),
    "nothing": ("said", "NULL", "", errors.DataException),
    "other classes": ("said", "'refund'", ", classes => '{calm,angry}'", errors.DataException),
    "too many classes": ("said", "'class ' || id", "", errors.InvalidParameterValue),
    "no object": ("scores", "'7'", ", classes => '{calm,angry}'", errors.DataException),
    "an unknown class": (
        "scores",
        """'{"furious": 1}'""",
        ", classes => '{calm,angry}'",
        errors.DataException,
    ),
    "a text as probability": (
        "scores",
        """'{"calm": "1"}'""",
        ", classes => '{calm,angry}'",
        errors.DataException,
    ),
    "over one": (
        "scores",
        """'{"calm": 0.7, "angry": 0.7}'""",
        ", classes => '{calm,angry}'",
        errors.DataException,
    ),
    "below zero": ("scores", """'{"calm": -0.5}'""", ", classes => '{calm,angry}'", errors.DataException),
    "names for a regression": ("said", "'angry'", ", task => 'regression'", errors.InvalidParameterValue),
}


@pytest.mark.parametrize("what", BAD_LOGS)
def test_a_bad_log_is_refused(
    db: psycopg.Connection, what: str, connect: Callable[..., psycopg.Connection]
) -> None:
    column, value, more, state = BAD_LOGS[what]
    db.execute(
        "CREATE TABLE tickets AS SELECT i AS id, 'a text of ' || i AS body, i::float8 AS x, 'a' AS shop, NULL::text AS said,"
        " NULL::jsonb AS scores FROM generate_series(1, 200) i"
    )
    db.execute(f"UPDATE tickets SET {column} = {value}")  # type: ignore[arg-type]
    with pytest.raises(state):
        register_log(db, "log", f"{{{column}}}", more)
    assert one(db, "SELECT count(*) FROM distill.models") == 0


DOUBLES = ["Angry ", "ANGRY", "\u00a0angry", "ａｎｇｒｙ", "ang\u200bry", "angry\t"]


@pytest.mark.parametrize("column", ["said", "scores"])
def test_a_class_that_is_written_twice_is_warned_of(db: psycopg.Connection, column: str) -> None:
    """By case, blanks, width or what nobody sees; in names and in objects. What differs in a letter is not."""
    load_tickets(db)
    said: list[tuple[str | None, str]] = []
    db.add_notice_handler(lambda d: said.append((d.severity_nonlocalized, d.message_primary or "")))
    for i, written in enumerate([*DOUBLES, "angri", "an gry"]):
        db.execute("DROP TABLE IF EXISTS log; CREATE TABLE log AS SELECT * FROM tickets")
        db.execute(
            "UPDATE log SET said = %(name)s, scores = jsonb_build_object(%(name)s::text, 1.0) WHERE id < 40 AND said = 'angry'",
            {"name": written},
        )
        said.clear()
        register_log(db, f"log{i}", f"{{{column}}}", sample="log")
        warned = [
            message for severity, message in said if severity == "WARNING" and f'"{written}"' in message
        ]
        assert len(warned) == (1 if written in DOUBLES else 0), written


def test_a_label_that_is_all_one_class_is_refused(db: psycopg.Connection) -> None:
    """At registration; and when the rows have become so: of a label, of names, of objects, of what is left beside NULL."""
    load_tickets(db)
    for column, outputs in (("mood", "{p}"), ("said", "{said}"), ("scores", "{scores}")):
        more = ", label => 'mood', classes => '{calm,angry}'" if column == "mood" else ""
        register_log(db, f"by_{column}", outputs, more)
        for value in ("%s", "CASE WHEN id %% 2 = 0 THEN %s END"):
            given: Any = json.dumps({"angry": 1}) if column == "scores" else "angry"
            db.execute("DROP TABLE IF EXISTS one_sided; CREATE TABLE one_sided AS SELECT * FROM tickets")
            typed = (
                f"{value}::{'jsonb' if column == 'scores' else 'text'}"
                if value == "%s"
                else value.replace("%s END", f"%s::{'jsonb' if column == 'scores' else 'text'} END")
            )
            db.execute(f"UPDATE one_sided SET {column} = {typed}", (given,))  # type: ignore[arg-type]
            with pytest.raises(errors.DataException) as refused:
                db.execute(
                    "SELECT distill_model(%s, sample => 'one_sided', time_budget_s => 5)", (f"by_{column}",)
                )
            assert refused.value.sqlstate == "22000", (column, value)
            with pytest.raises(errors.DataException) as refused:
                register_log(
                    db, "other", outputs, ", label => 'mood'" if column == "mood" else "", "one_sided"
                )
            assert refused.value.sqlstate == "22000", (column, value)


def test_who_registers_says_what_is_a_text(db: psycopg.Connection) -> None:
    load_tickets(db)
    register_log(db, "log", "{p}", ", label => 'mood', classes => '{calm,angry}', text_columns => '{shop}'")
    distil_texts(db)
    assert one(db, "SELECT resolved -> 'text_columns' FROM distill.runs") == ["shop"]
    for columns, state in (("{x}", errors.DatatypeMismatch), ("{other}", errors.UndefinedColumn)):
        with pytest.raises(state):
            register_log(db, "other", "{p}", f", label => 'mood', text_columns => '{columns}'")
