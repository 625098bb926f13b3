"""What make bench-few says of its runs: ranks, wins, ties and losses, and differences over sets."""

from __future__ import annotations

from typing import Any

import pytest
from bench import few_summary, publish


def run(
    name: str, split: int, teacher: str, student: float, other: float, versus: list[float]
) -> dict[str, Any]:
    return {
        "set": name,
        "split": split,
        "teacher": teacher,
        "metric": "accuracy",
        "rows": {"fit": 80, "select": 20, "test": 40},
        "scores": {"student_0.02": 0.1, "student_0.1": student, "control_0.1": other},
        "latency_ms": {},
        "seconds": {"0.02": 10.0, "0.1": 20.0},
        "ended": {},
        "versus": {"control_0.1": versus},
    }


RUNS = [
    run("one", 0, "strong", 0.9, 0.8, [0.05, 0.15]),
    run("one", 1, "strong", 0.8, 0.8, [-0.1, 0.1]),
    run("two", 0, "strong", 0.6, 0.7, [-0.2, -0.01]),
]


def test_ranks_share_a_place_and_differences_are_over_sets() -> None:
    found = few_summary.summarise(RUNS)
    assert found["student"] == "student_0.1"
    assert found["mean_rank"] == pytest.approx(
        {"student_0.02": 3.0, "student_0.1": (1 + 1.5 + 2) / 3, "control_0.1": (2 + 1.5 + 1) / 3}
    )
    control = found["against"]["control_0.1"]
    assert (control["wins"], control["ties"], control["losses"]) == (1, 1, 1)
    # Set one, of two splits, weighs as much as set two.
    assert control["mean_difference"] == pytest.approx((0.05 - 0.1) / 2)
    assert control["least"] == ["two", pytest.approx(-0.1)]
    assert control["interval"] == pytest.approx([-0.1, 0.05])
    assert found["median_seconds"] == 15.0


def test_the_tables_have_a_row_of_each() -> None:
    report = {"runs": RUNS, "summary": few_summary.summarise(RUNS), "seconds": 120.0}
    tables = publish.few(report)
    assert [row[0] for row in tables["sets"]["rows"]] == ["one", "two"]
    assert tables["sets"]["rows"][0][1] == "100"
    assert {len(row) for table in tables.values() for row in table["rows"]} == {2, 5, 6, 8}
    assert len(tables["against"]["rows"]) == 1
    # Two sets are no full run: the documents keep what they have.
    assert not publish.publish("few", report)
