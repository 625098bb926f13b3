"""Every figure of the documents' tables stands in the stored results, and says where it comes from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bench.publish import FEW_RUNS, publish, serving
from docs.results import DOCUMENTS, RESULTS, render


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.name))
def test_tables_are_what_the_stored_results_say(path: Path) -> None:
    assert render(path.read_text()) == path.read_text(), "run `make results`"


# What a run's tables were made of stands beside them, for --merge.
TABLES = sorted(path for path in RESULTS.glob("*.json") if path.name != FEW_RUNS.name)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: str(path.stem))
def test_results_say_where_they_come_from_and_are_shown(path: Path) -> None:
    found = json.loads(path.read_text())
    assert set(found) == {"command", "recorded", "machine", "source", "tables"}
    assert all(found.values())
    shown = "".join(document.read_text() for document in DOCUMENTS)
    marked = re.findall(rf"<!-- results: {path.stem}\.(\w+) -->", shown)
    assert sorted(marked) == sorted(found["tables"])


def test_make_bench_makes_the_tables_that_the_page_shows() -> None:
    """Of any figures: the same columns and first cells; and what is no full run's changes no file."""
    families, widths = ("linear", "boosted", "mlp", "small_mlp"), (10, 20, 50, 200)
    ways = (
        "session_run",
        "predict",
        "typed_function",
        "predict_jsonb",
        "predict_batch",
        "score",
        "application",
        "sql",
    )
    one_row = ("application_one_row", "predict_one_row", "fetch_one_row")
    names = [
        "predict_minus_session_run_us",
        "linear_sql_us_per_row",
        "onnx_over_linear_sql",
        "sql_parallel_2_over_1",
        "score_over_application",
        "score_over_application_mixed",
        "cold_start_first_predict_ms",
    ]
    report = {
        "us_per_row": {
            f"{f}_rows{w}.{way}": w / 7 for f in families for w in widths for way in (*ways, *one_row)
        },
        "ratios": dict.fromkeys(names, 2.5),
        "cold_start": {"first_ms": 107.2, "loaded_mib": 33.1},
        "memory": {"300_models_256_mb_limit_mib": 44.0, "300_models_16_mb_limit_mib": 9.0},
        "pgbench": {
            f"{what}, {clients} clients": {"transactions_per_s": 5363.2, "p99_ms": 0.391}
            for what in ("predict", "sql", "nothing")
            for clients in (1, 8, 32)
        },
        "method": {"backends": 2, "rounds": 2, "rows": 50_000},
    }
    stored = json.loads((RESULTS / "serving.json").read_text())["tables"]
    for name, table in serving(report).items():
        if name == "days":
            assert len(table["rows"]) == len(stored[name]["rows"])
        else:
            assert table["columns"] == stored[name]["columns"]
            assert [row[0] for row in table["rows"]] == [row[0] for row in stored[name]["rows"]]
    before = (RESULTS / "serving.json").read_bytes()
    assert not publish("serving", report)
    assert (RESULTS / "serving.json").read_bytes() == before
