"""Mutated ONNX files through SQL: each is registered and predicts, or is refused with a SQLSTATE; the backend goes on."""

from __future__ import annotations

import psycopg
from fuzz import run
from fuzz.mutation import mutate

INPUTS = 15
WITHOUT_SQLSTATE = {"38000", "XX000", None}


def test_mutants_through_sql(db: psycopg.Connection) -> None:
    seeds = run.seeds(run.QUICK)
    started = "SELECT pg_backend_pid(), pg_postmaster_start_time()"
    before = db.execute(started).fetchone()
    results: set[str | None] = set()
    for number in range(2_000_000, 2_000_000 + INPUTS):
        artifact = mutate(number, seeds, ["postgresql.conf", "PG_VERSION", "/etc/passwd"])
        width = "SELECT jsonb_array_length(input_schema -> 'features') FROM distill.models WHERE active"
        try:
            db.execute("SELECT distill.register_model('mutant', %s)", (artifact,))
            results.add("registered")
            db.execute(f"SELECT distill.predict_proba('mutant', array_fill('NaN'::float8, ARRAY[({width})]))")
        except psycopg.Error as error:
            results.add(error.sqlstate)
    assert db.execute(started).fetchone() == before
    assert not results & WITHOUT_SQLSTATE
    assert len(results) >= 3
