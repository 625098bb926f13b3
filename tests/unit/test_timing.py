"""How long a call is timed, on made-up blocks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from pg_distill.frame import Feature, FloatArray, Frame
from pg_distill.serving import timing

ROWS = Frame((Feature("x", "double"),), {"x": np.zeros(1000)})


class Backend:
    """What `measure_latency` asks of a database where blocks are made up."""

    def check_interrupts(self) -> None:
        pass


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Give each contender's blocks their mean latency in milliseconds, one after the other and round again."""
    means: dict[str, Any] = {}

    def time_block(_: object, contender: timing.Contender, rows: Frame, lead: int = 0) -> FloatArray:
        n = len(rows) - lead
        return np.full(n, next(means[contender.name]) if lead else 1.0)

    monkeypatch.setattr(timing, "_time_block", time_block)
    return means


def measured(blocks: dict[str, Any], target_ms: float, **means: list[float]) -> Any:
    contenders = [timing.Contender(name, "", "", lambda rows: ("", ())) for name in means]
    blocks |= {name: itertools.cycle(values) for name, values in means.items()}
    return timing.measure_latency(Backend(), contenders, ROWS, seed=1, seconds=60, target_ms=target_ms)  # type: ignore[arg-type]


def test_what_may_meet_the_target_or_not_is_timed_longer(blocks: dict[str, Any]) -> None:
    means = {"fast": [0.3, 0.5], "near": [0.8, 1.11], "over": [0.8, 1.3], "slow": [2.0, 2.2]}
    with_target, without = (measured(blocks, target_ms, **means) for target_ms in (1.0, math.nan))
    counts = {name: timed.latency.n_blocks for name, timed in with_target.items()}
    assert counts["fast"] == counts["slow"] == timing.BLOCKS
    assert timing.BLOCKS < counts["near"] <= timing.MOST_TIMES * timing.BLOCKS
    assert with_target["near"].latency.high_ms <= 1.0 < without["near"].latency.high_ms
    assert with_target["over"].latency.high_ms > 1.0
    assert {timed.latency.n_blocks for timed in without.values()} == {timing.BLOCKS}
