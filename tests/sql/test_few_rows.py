"""Few rows: what is chosen is chosen out of fold, and a file that has learned from the test rows says whose figures it has."""

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
from pg_distill.database.client import PsycopgDatabase
from pg_distill.frame import Feature
from pg_distill.rows.sample import draw_sample
from pg_distill.rows.source import resolve_source
from pg_distill.rows.split import FIT, SELECT, TEST
from psycopg.rows import dict_row
from sql.conftest import load_visits, one

DATABASE = "pg_distill_few_rows"
ROWS, GROUPS = 1500, 150
QUICK = "time_budget_s => 40, patience => 1, min_accuracy => 0, epochs => 2"
AGAIN = ", student_name => 'again', refit_on_all => true, seed => 12"
FEATURES = tuple(Feature(f"x{i}", "number") for i in range(4))


@pytest.fixture(scope="module")
def few(server: servers.Server, template: str) -> Iterator[psycopg.Connection]:
    create_database(server, DATABASE, template)
    with server.connect(DATABASE, autocommit=True) as db:
        rng = np.random.default_rng(3)
        x = rng.normal(size=(ROWS, 4)).round(3)
        x[1::10] = x[::10]  # a tenth are copies
        label = (x[:, 0] - x[:, 1] + 0.5 * rng.logistic(size=ROWS) > 0).astype(int)
        load_visits(db, x, label, GROUPS)
        register(db, "rule")
        yield db
    drop_database(server, DATABASE)


def register(db: psycopg.Connection, teacher: str) -> None:
    """Register a teacher: what must be accepted has one of its own, whose frontier no other test has moved."""
    db.execute(
        "SELECT distill.register_sql_model(%s, '1 / (1 + exp(-2 * x0))', '{x0,x1,x2,x3}', 'visits', 'ill')",
        (teacher,),
    )


def distil(
    db: psycopg.Connection, arguments: str = "", families: str = "linear,tree", teacher: str = "rule"
) -> dict[str, Any]:
    """Run a distillation; return the run."""
    db.execute(f"SELECT distill_model('{teacher}', families => '{{{families}}}', {QUICK}{arguments})")  # type: ignore[arg-type]
    with db.cursor(row_factory=dict_row) as cursor:
        run = cursor.execute(
            "SELECT * FROM distill.runs WHERE run_id = distill.last_run(%s)", (teacher,)
        ).fetchone()
    assert run is not None
    return run


def member(db: psycopg.Connection, run: dict[str, Any]) -> dict[str, Any]:
    with db.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute("SELECT * FROM distill.models WHERE id = %s", (run["student_id"],)).fetchone()
    assert found is not None
    return found


def test_what_is_not_test_chooses_out_of_fold(few: psycopg.Connection) -> None:
    run = distil(few, ", student_name => 'folded'")
    by = run["figures"]["chosen_by"]
    assert by["folds"] == 5
    assert by["rows"] == run["rows_fit"] + run["rows_select"]
    crossed = few.execute(
        "SELECT is_control, select_accuracy, accuracy, chosen FROM distill.candidates"
        " WHERE run_id = %s AND (configuration->>'folds')::int = 5 AND form = 'predict'",
        (run["run_id"],),
    ).fetchall()
    assert by["candidates"] == len(crossed)
    assert {is_control for is_control, *_ in crossed} == {False, True}
    [(chosen, tested)] = [(select, test) for _, select, test, is_chosen in crossed if is_chosen]
    # Of rows that it had not learned from, as those of test are: three standard errors of both.
    error = (0.25 / by["rows"] + 0.25 / run["rows_test"]) ** 0.5
    assert abs(chosen - tested) < 3 * error


def test_rows_that_the_teacher_knows_judge_nobody(few: psycopg.Connection) -> None:
    run = distil(
        few, ", student_name => 'known', trained_on => 'SELECT * FROM visits WHERE id < 500', seed => 7"
    )
    others = one(
        few,
        "SELECT count(*) FROM distill.run_rows(%s) r WHERE r.split IN ('fit', 'select')"
        " AND NOT EXISTS (SELECT FROM visits v WHERE v.id < 500 AND v.x0 = (r.row->>'x0')::float8 AND v.x1 = (r.row->>'x1')::float8)",
        run["run_id"],
    )
    by = run["figures"]["chosen_by"]
    assert by["folds"] == 5
    assert by["rows"] == others < run["rows_fit"] + run["rows_select"]


def test_by_time_the_select_rows_choose_alone(few: psycopg.Connection) -> None:
    run = distil(few, ", student_name => 'timed', time_column => 'seen'")
    assert run["figures"]["chosen_by"] == {
        "folds": 1,
        "rows": run["rows_select"],
        "candidates": run["figures"]["chosen_by"]["candidates"],
    }


@pytest.mark.parametrize("group", [None, "patient"])
def test_equal_rows_and_groups_share_a_fold(
    few: psycopg.Connection, server: servers.Server, group: str | None
) -> None:
    with server.connect(DATABASE) as own:
        db = PsycopgDatabase(own)
        sample = draw_sample(
            db, resolve_source(db, "public.visits"), FEATURES, label="ill", extra=["patient"], group_column=group, seed=1,
            max_rows=10_000,
        )  # fmt: skip
    assert sample.folds is not None
    same = sample.extra["patient"] if group else sample.hashes
    assert isinstance(same, np.ndarray)
    for value in np.unique(same):
        assert len(set(sample.folds[same == value].tolist())) == 1
    assert (sample.folds[sample.split == SELECT] == 1).all()
    assert (sample.folds[sample.split == TEST] == 0).all()
    assert set(sample.folds[sample.split == FIT].tolist()) == {2, 3, 4, 5}


def test_a_file_that_knows_the_test_rows_shows_the_figures_of_its_twin(
    few: psycopg.Connection, server: servers.Server, tmp_path: Path
) -> None:
    register(few, "whole_rule")
    run = distil(few, ", student_name => 'whole', refit_on_all => true, seed => 11", teacher="whole_rule")
    assert run["accepted"], run["summary"]
    made, said = member(few, run), run["figures"]["refit_on_all"]
    assert said["reason"] is None
    assert said["registered"] == made["sha256"] != said["judged"]
    judged = one(
        few, "SELECT sha256, accuracy FROM distill.candidates WHERE run_id = %s AND chosen", run["run_id"]
    )
    assert judged == (said["judged"], made["accuracy"])
    assert made["measured_on"]["twin"] == said["judged"]
    assert (
        one(few, "SELECT bool_and(of_twin) FROM distill.families WHERE model_id = %s", run["student_id"])
        is True
    )
    assert one(few, "SELECT count(*) FROM distill.families WHERE of_twin") == 1
    assert "twin" in run["summary"]  # what the notice says
    # No row of the table is left to judge it, and it says so.
    assert one(few, "SELECT learned_share FROM distill.check('whole', include_learned => true)") == 1.0
    # It answers as its twin does, but not the same.
    assert (
        main.main(["export", "whole", "--to", str(tmp_path), "--dsn", server.conninfo(dbname=DATABASE)]) == 0
    )
    [card] = [file.read_text() for file in tmp_path.iterdir() if file.suffix == ".md"]
    assert said["judged"] in card
    assert made["sha256"] in card


def test_the_same_twin_makes_no_second_version(few: psycopg.Connection) -> None:
    register(few, "again_rule")
    first = distil(few, AGAIN, "linear", "again_rule")
    assert first["accepted"], first["summary"]
    second = distil(few, AGAIN, "linear", "again_rule")
    one_file = first["figures"]["refit_on_all"]["judged"]
    judged = few.execute(
        "SELECT sha256 FROM distill.candidates WHERE run_id = %s AND chosen", (second["run_id"],)
    ).fetchall()
    assert not second["accepted"] or judged != [(one_file,)]
    # Who wants the file that was judged has it as a student of its own.
    plain = distil(few, ", student_name => 'plain', seed => 12", "linear", "again_rule")
    assert plain["figures"]["refit_on_all"] is None
    if plain["accepted"]:
        assert "twin" not in member(few, plain)["measured_on"]
