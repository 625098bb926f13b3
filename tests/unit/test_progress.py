"""Progress never falls, ends below 1 before the run is recorded, and knows the time that is left."""

from __future__ import annotations

import pytest
from pg_distill.runs.progress import SEARCH, Progress, latency_seconds
from pg_distill.search import budget


def test_progress_follows_the_clock_and_never_falls() -> None:
    now = [0.0]
    progress = Progress(100.0, lambda: now[0])
    seen = []
    plan = [
        ("sample", 0.0),
        ("label", 0.0),
        ("search", 0.0),
        ("screen", 0.0),
        ("screen", 0.5),
        ("sizes", 0.0),
    ]
    plan += [
        ("screen", 0.9),
        ("finish", 0.2),
        ("refit", 0.0),
        ("refit", 0.8),
        ("latency", 0.0),
        ("evaluate", 0.0),
    ]
    for step, (stage, done) in enumerate(plan):
        now[0] = 9.0 * step
        progress.watch(stage, done, None)
        seen.append(progress.now())
        now[0] += 4.0
        seen.append(progress.now())
    assert [s.progress for s in seen] == sorted(s.progress for s in seen)
    assert 0.0 <= seen[0].progress < 0.1
    assert 0.9 < seen[-1].progress < 1.0
    assert all(s.seconds_left >= 0 for s in seen)


def test_time_left_is_that_of_the_stages_to_come() -> None:
    now = [0.0]
    progress = Progress(100.0, lambda: now[0])
    progress.watch("screen", 0.0, "linear")
    whole = progress.now()
    assert (whole.stage, whole.candidate) == ("screen", "linear")
    assert whole.seconds_left == pytest.approx(100 + latency_seconds(100), abs=10)
    now[0] = 10.0
    assert progress.now().seconds_left == pytest.approx(whole.seconds_left - 10)
    # A stage that is over sooner than it might have been brings the end nearer.
    progress.watch("refit", 0.5, None)
    assert progress.now().seconds_left < whole.seconds_left / 2


def test_stages_of_the_search_are_known() -> None:
    assert set(SEARCH) == set(budget.CROSSED_END) == {*budget.STAGE_END, "cross"}
    for stage, (_, last) in list(SEARCH.items())[:-1]:
        assert last == budget.STAGE_END.get(stage, budget.CROSSED_END["cross"])
