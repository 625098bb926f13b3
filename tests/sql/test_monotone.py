"""Monotone constraints: students keep them on 10,000 pairs of rows, by predict and as SQL, whatever the teacher does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import servers
from conftest import create_database, drop_database
from pg_distill.cli import main
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from sql.conftest import load_table, one

DATABASE = "pg_distill_monotone"
ROWS, PAIRS = 1200, 10_000
QUICK = "time_budget_s => 15, min_accuracy => 0, patience => 2"
HELD = {"income": 1, "age": -1}
COLUMNS = {"income": "float8", "age": "int", "score": "float8", "member": "boolean", "kind": "text"}
LARGEST = 2147483647
WAVES = "(sin(3 * coalesce(income, 0)) + cos(age / 6.0) + 0.6 * coalesce(income, 0) - (age - 50.0) / 30)"
PREDICT = "distill.predict(%s, jsonb_build_object('income', income, 'age', age, 'score', score, 'member', member, 'kind', kind))"


@pytest.fixture(scope="module")
def offers(server: servers.Server, template: str) -> Iterator[psycopg.Connection]:
    """Give offers that neither a teacher of two classes nor one of values answers in order of income or age."""
    create_database(server, DATABASE, template)
    with server.connect(DATABASE, autocommit=True) as db:
        rng = np.random.default_rng(4)
        x = rng.normal(size=(ROWS, 2))
        age, kind = rng.integers(18, 80, ROWS), rng.choice(["a", "b", "c"], ROWS)
        z = (
            np.sin(3 * x[:, 0])
            + np.cos(age / 6)
            + 0.6 * x[:, 0]
            - (age - 50) / 30
            + 0.3 * rng.normal(size=ROWS)
        )
        income: list[float | None] = [
            None if u < 0.05 else v for u, v in zip(rng.random(ROWS), x[:, 0].tolist(), strict=True)
        ]
        columns = (
            income, age.tolist(), x[:, 1].tolist(), (x[:, 1] > 0).tolist(), kind.tolist(), (z > 0).astype(int).tolist(), z.tolist()
        )  # fmt: skip
        load_table(db, "offers", {**COLUMNS, "taken": "int", "amount": "float8"}, zip(*columns, strict=True))
        # The last two are for students that have to be accepted: their families have no others.
        for name, expression, label in (
            ("taker", f"1 / (1 + exp(-3 * ({WAVES})))", "taken"),
            ("amounts", WAVES, "amount"),
            ("clerk", f"1 / (1 + exp(-3 * ({WAVES})))", "taken"),
            ("surveyor", WAVES, "amount"),
        ):
            db.execute(
                "SELECT distill.register_sql_model(%s, %s, %s, 'offers', %s)",
                (name, expression, list(COLUMNS), label),
            )
        load_pairs(db)
        yield db
    drop_database(server, DATABASE)


def load_pairs(db: psycopg.Connection) -> None:
    """Create the tables low and high: rows that differ in one column alone, by what other rows have, a last bit, or all there is."""
    rng = np.random.default_rng(8)
    kinds = {name: f'"{name}" {kind}' for name, kind in COLUMNS.items()}
    for table in ("low", "high"):
        db.execute(f"CREATE TABLE {table} (pair int, moved text, {', '.join(kinds.values())})")
    known = db.execute("SELECT income, age, score, member, kind FROM offers").fetchall()
    incomes = np.array([row[0] for row in known if row[0] is not None])
    moved: list[tuple[str, Any, Any]] = []
    for i in range(PAIRS):
        if i % 4 == 3:
            ends = rng.choice([0, 17, 45, 46, 200, LARGEST, -LARGEST], 2)
            moved.append(("age", *sorted((ends if i % 8 == 3 else rng.integers(15, 85, 2)).tolist())))
            continue
        first = float(rng.choice(incomes))
        second: Any = float(rng.choice(incomes))
        if i % 4 == 1:
            second = float(np.nextafter(np.float32(first), np.float32(np.inf)))
        elif i % 8 == 2:
            second = float(np.nextafter(first, np.inf))
        elif i % 8 == 6:
            second = float(rng.choice([-np.inf, -1e300, -3.4e38, -50.0, 1e-300, 50.0, 3.4e38, 1e300, np.inf]))
        moved.append(("income", *sorted((first, second))))
    for table, place in (("low", 1), ("high", 2)):
        with db.cursor().copy(f"COPY {table} FROM STDIN") as copy:
            for i, item in enumerate(moved):
                _, age, score, member, kind = known[i % len(known)]
                row = {"income": known[(i * 7) % len(known)][0], "age": age, item[0]: item[place]}
                copy.write_row((i, item[0], row["income"], row["age"], score, member, kind))


def distil(db: psycopg.Connection, teacher: str, families: str | None, more: str = "") -> dict[str, Any]:
    named = f"families => '{{{families}}}', " if families is not None else ""
    db.execute(f"SELECT distill_model(%s, {named}{QUICK}, monotone => %s{more})", (teacher, Jsonb(HELD)))  # type: ignore[arg-type]
    with db.cursor(row_factory=dict_row) as cursor:
        run = cursor.execute(
            "SELECT * FROM distill.runs WHERE run_id = distill.last_run(%s)", (teacher,)
        ).fetchone()
    assert run is not None
    return run


def count_broken(db: psycopg.Connection, answer: str, *arguments: Any) -> tuple[int, int, float]:
    """Return how many pairs there are, how many of them break a constraint, and how far answers are apart."""
    found: Any = one(
        db,
        f"SELECT count(*), count(*) FILTER (WHERE CASE l.moved WHEN 'income' THEN h.y < l.y ELSE h.y > l.y END),"
        f" max(abs(h.y - l.y)) FROM (SELECT pair, moved, {answer} AS y FROM low) l JOIN (SELECT pair, {answer} AS y FROM high) h"
        " USING (pair)",
        *arguments,
        *arguments,
    )
    pairs, broken, apart = found
    return pairs, broken, apart


def test_the_pairs_find_a_teacher_that_goes_up_and_down(offers: psycopg.Connection) -> None:
    tame = WAVES.replace("coalesce(income, 0)", "least(greatest(coalesce(income, 0), -50), 50)")
    pairs, broken, _ = count_broken(offers, tame)
    assert pairs == PAIRS
    assert broken > 1000


@pytest.mark.parametrize(
    ("teacher", "families"),
    [("taker", None), pytest.param("amounts", "linear,tree,boosted", marks=pytest.mark.extra)],
)
def test_students_keep_them_by_predict_and_as_sql(
    offers: psycopg.Connection, teacher: str, families: str | None
) -> None:
    run = distil(offers, teacher, families)
    assert run["resolved"]["monotone"] == HELD
    assert run["figures"]["search"]["monotone"] == HELD
    candidates = offers.execute(
        "SELECT candidate, family, configuration->'monotone', artifact IS NOT NULL AND form = 'predict', form, reason, is_control"
        " FROM distill.candidates WHERE run_id = %s",
        (run["run_id"],),
    ).fetchall()
    trained = {family for _, family, held, *_ in candidates if held == HELD}
    assert trained - {"blend"} <= {"linear", "tree", "boosted"}
    left_out = {family for _, family, held, *_ in candidates if held != HELD}
    assert left_out <= {"mlp", "first_trees"}
    assert families is not None or left_out == {"mlp", "first_trees"}
    assert "cascade" not in {form for *_, form, _, _ in candidates}
    assert any(is_control and held == HELD for _, _, held, *_, is_control in candidates)
    # The last of each kind that has a file.
    kinds = {(family, is_control): n for n, family, _, has_file, *_, is_control in candidates if has_file}
    kept = sorted(kinds.values())
    most = 0.0
    for number in kept:
        student = one(offers, "SELECT distill.promote_candidate(%s, %s)", run["run_id"], number)
        name, held = one(
            offers,
            "SELECT m.name || ':' || m.version, m.input_schema->'monotone' FROM distill.models m WHERE m.id = %s",
            student,
        )
        assert held == HELD
        pairs, broken, apart = count_broken(offers, PREDICT, name)
        assert (pairs, broken) == (PAIRS, 0), name
        most = max(most, apart)
        try:
            expression = one(offers, "SELECT distill.to_sql(%s)", name)
        except psycopg.errors.ProgramLimitExceeded:
            continue
        assert count_broken(offers, expression.replace("%", "%%"))[:2] == (PAIRS, 0), name
    assert most > 0.1  # they answer something


@pytest.mark.parametrize(
    ("sqlstate", "monotone", "more"),
    [
        ("42703", {"salary": 1}, ""),
        ("42703", {"taken": 1}, ""),
        ("42703", {"INCOME": 1}, ""),
        ("22023", {"kind": 1}, ""),
        ("22023", {"kind": -1}, ", text_columns => '{kind}'"),
        ("22023", {"income": 2}, ""),
        ("22023", {"income": 0.5}, ""),
        ("22023", {"income": "1"}, ""),
        ("22023", {"income": True}, ""),
        ("22023", {"income": None}, ""),
        ("22023", {"income": {"age": 1}}, ""),
        ("22023", ["income"], ""),
        ("22023", 1, ""),
        ("0A000", {"income": 1}, ", families => '{mlp}'"),
        ("0A000", {"income": 1}, ", families => '{linear,cascade}'"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    offers: psycopg.Connection, sqlstate: str, monotone: Any, more: str
) -> None:
    before = one(offers, "SELECT count(*) FROM distill.runs")
    with pytest.raises(psycopg.Error) as refused:
        offers.execute(f"SELECT distill_model('taker', monotone => %s, {QUICK}{more})", (Jsonb(monotone),))  # type: ignore[arg-type]
    assert refused.value.sqlstate == sqlstate
    if sqlstate != "42703":
        assert refused.value.diag.message_hint
    assert one(offers, "SELECT count(*) FROM distill.runs") == before


def test_more_than_two_classes_have_no_one_answer(offers: psycopg.Connection) -> None:
    offers.execute("CREATE TABLE logged AS SELECT income, age, 0.2 AS p, 0.3 AS q, 0.5 AS r FROM offers")
    offers.execute(
        "SELECT distill.register_logged_model('three', '{p,q,r}', '{income,age}', 'logged', classes => '{a,b,c}')"
    )
    with pytest.raises(psycopg.errors.FeatureNotSupported) as refused:
        offers.execute("""SELECT distill_model('three', monotone => '{"income": 1}')""")
    assert refused.value.diag.message_hint


@pytest.mark.extra
def test_no_direction_is_no_constraint(offers: psycopg.Connection) -> None:
    offers.execute(
        f"""SELECT distill_model('taker', {QUICK}, families => '{{linear,cascade}}', monotone => '{{"income": 0}}')"""
    )
    run = one(offers, "SELECT distill.last_run('taker')")
    search, held = one(
        offers,
        "SELECT r.figures->'search'->'monotone', (SELECT count(*) FROM distill.candidates c"
        " WHERE c.run_id = r.run_id AND c.configuration ? 'monotone') FROM distill.runs r WHERE r.run_id = %s",
        run,
    )
    assert (search, held) == ({}, 0)


def test_a_file_that_knows_the_test_rows_keeps_them_and_its_card_says_so(
    offers: psycopg.Connection, server: servers.Server, tmp_path: Path
) -> None:
    run = distil(offers, "surveyor", "boosted,linear", ", refit_on_all => true, student_name => 'whole'")
    assert run["accepted"], run["summary"]
    assert run["figures"]["refit_on_all"]["reason"] is None
    assert count_broken(offers, PREDICT, "whole")[:2] == (PAIRS, 0)
    assert (
        one(offers, "SELECT input_schema->'monotone' FROM distill.models WHERE id = %s", run["student_id"])
        == HELD
    )
    dsn = server.conninfo(dbname=DATABASE)
    assert main.main(["export", "whole", "--to", str(tmp_path), "--dsn", dsn]) == 0
    [card] = [file.read_text() for file in tmp_path.iterdir() if file.suffix == ".md"]
    assert "`income`" in card.partition("## Figures")[0]
    page = tmp_path / "page.html"
    assert main.main(["report", "--run", str(run["run_id"]), "--output", str(page), "--dsn", dsn]) == 0
    assert "<dt>monotone</dt>" in page.read_text()


@pytest.mark.extra
def test_a_worker_and_the_command_line_take_them(offers: psycopg.Connection, server: servers.Server) -> None:
    dsn = server.conninfo(dbname=DATABASE)
    command = [
        "distill",
        "clerk",
        "--families",
        "linear",
        "--time-budget-s",
        "5",
        "--min-accuracy",
        "0",
        "--patience",
        "6",
    ]
    command += ["--student-name", "queued", "--monotone", '{"income": 1, "age": -1}', "--queue", "--dsn", dsn]
    assert main.main(command) == 0
    assert main.main(["worker", "--once", "--dsn", dsn]) == 0
    state, run_id, student = one(
        offers,
        "SELECT j.state, j.run_id, j.student_id FROM distill.jobs j ORDER BY j.submitted_at DESC LIMIT 1",
    )
    assert (state, student is not None) == ("done", True)
    assert one(offers, "SELECT resolved->'monotone' FROM distill.runs WHERE run_id = %s", run_id) == HELD
    assert one(offers, "SELECT input_schema->'monotone' FROM distill.models WHERE id = %s", student) == HELD
    assert count_broken(offers, PREDICT, "queued")[:2] == (PAIRS, 0)


@pytest.mark.extra
def test_times_and_large_integers_keep_them_too(offers: psycopg.Connection) -> None:
    """They are centred in double precision, where two that differ by a microsecond or by one may or may not be told apart."""
    offers.execute(
        "CREATE TABLE events AS SELECT timestamptz '2024-01-01 UTC' + i * interval '7 hours' AS opened,"
        " 4503599627370000 + (i * 7919 % 1000) * 3 AS account, sin(i / 40.0) + i / 400.0 + sin((i * 7919 % 1000) / 60.0) AS load"
        " FROM generate_series(1, 1000) i"
    )
    offers.execute(
        "SELECT distill.register_sql_model('loads', %s, '{opened,account}', 'events', 'load')",
        (
            "sin((date_part('epoch', opened) - 1704067200) / 1008000) + (date_part('epoch', opened) - 1704067200) / 10080000",
        ),
    )
    offers.execute(
        f"SELECT distill_model('loads', families => '{{linear,tree,boosted}}', {QUICK}, monotone => %s)",
        (Jsonb({"opened": 1, "account": -1}),),
    )
    kept = offers.execute(
        "SELECT DISTINCT ON (family) candidate FROM distill.candidates WHERE run_id = distill.last_run('loads')"
        " AND artifact IS NOT NULL AND form = 'predict' ORDER BY family, candidate DESC"
    ).fetchall()
    assert kept
    # Every other pair differs in one of the two: by the least, by much, or by more than there is in the rows.
    offers.execute(
        "CREATE TABLE two AS SELECT i, mod(i, 2) AS which, o, a, o + mod(i + 1, 2) * CASE mod(i, 3) WHEN 0 THEN interval '1 microsecond'"
        " WHEN 1 THEN interval '90 days' ELSE interval '400 years' END AS o2, a + mod(i, 2) * CASE mod(i, 3) WHEN 0 THEN 1 WHEN 1 THEN 900"
        " ELSE 4000000000000000 END AS a2 FROM (SELECT i, timestamptz '2023-11-01 UTC' + i * interval '53 minutes 1.7 s' AS o,"
        f" 4503599627369000 + mod(i * 31337, 4000)::bigint AS a FROM generate_series(1, {PAIRS}) i) drawn"
    )
    most = 0.0
    for (number,) in kept:
        student = one(offers, "SELECT distill.promote_candidate(distill.last_run('loads'), %s)", number)
        name = one(offers, "SELECT m.name || ':' || m.version FROM distill.models m WHERE m.id = %s", student)
        as_sql = one(offers, "SELECT distill.to_sql(%s)", name).replace("%", "%%")
        predict = "distill.predict(%s, jsonb_build_object('opened', opened, 'account', account))"
        for answer, given in ((predict, (name, name)), (as_sql, ())):
            count, broken, apart = one(
                offers,
                "SELECT count(*), count(*) FILTER (WHERE CASE l.which WHEN 0 THEN h.y < l.y ELSE h.y > l.y END), max(abs(h.y - l.y))"
                f" FROM (SELECT i, which, {answer} AS y FROM (SELECT i, which, o AS opened, a AS account FROM two) r) l"
                f" JOIN (SELECT i, {answer} AS y FROM (SELECT i, o2 AS opened, a2 AS account FROM two) r) h USING (i)",
                *given,
            )
            assert (count, broken) == (PAIRS, 0), (name, answer[:20])
            most = max(most, apart)
    assert most > 0.1
