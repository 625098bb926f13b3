"""Quality against budget: the same search with 5, 10, 20, ... seconds, on each set, and what the longest has beyond each.

`make bench-quality BENCH_FLAGS="--curve 5,10,20,40,80,120"`; the sets are those of `make bench-few` unless ``--sets`` names others.
Leaves build/bench/curve.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pg_distill.search.problem import Config
from pg_distill.search.stages import search

__all__ = ["run", "summarise"]

TARGET_MS = 0.1


def run_set(contest: Any, budgets: Sequence[float], target: float, seed: int) -> dict[str, Any]:
    """Return, of each budget, the test score of the student that it chose, and the seconds that its search took."""
    points: dict[str, Any] = {}
    for seconds in budgets:
        config = Config(
            target, call_overhead_ms=contest.overhead_ms, seed=seed, time_budget_s=seconds, threads=2
        )
        ended: dict[str, Any] = {}

        def told(said: dict[str, Any], ended: dict[str, Any] = ended) -> None:
            ended.update(said.get("ended", {}))

        start = time.monotonic()
        found = search(contest.problem, config, contest.label, report=told)
        took = time.monotonic() - start
        chosen = contest.choose({"student": found}, target).get("student")
        points[str(seconds)] = {
            "test": None if chosen is None else contest.score(contest.outputs(chosen[0])),
            "seconds": took,
            **{key: ended[key] for key in ("by", "trained")},
        }
    return points


def summarise(runs: Sequence[dict[str, Any]], budgets: Sequence[float]) -> list[dict[str, Any]]:
    """Return, of each budget, the median and the worst difference to the longest one over sets, and the median seconds."""
    longest = str(max(budgets))
    out = []
    for seconds in sorted(budgets):
        pairs = [(r["points"][str(seconds)], r["points"][longest]) for r in runs]
        known = [(p["test"], q["test"]) for p, q in pairs if p["test"] is not None and q["test"] is not None]
        less = [ours - theirs for ours, theirs in known]
        out.append(
            {
                "budget_s": seconds,
                "sets": len(less),
                "median_difference": float(np.median(less)) if less else None,
                "mean_difference": float(np.mean(less)) if less else None,
                "least_difference": float(min(less)) if less else None,
                "median_seconds": float(np.median([p["seconds"] for p, _ in pairs])),
                "ended_by_patience": float(np.mean([p["by"] == "patience" for p, _ in pairs])),
            }
        )
    return out


def run(
    options: argparse.Namespace, names: Sequence[str], contest: Callable[[str, int], Any], output: Path
) -> None:
    """Run the sets, and print and write the curve as it grows."""
    budgets = [float(s) for s in options.curve.split(",")]
    runs: list[dict[str, Any]] = []
    for number in map(int, options.splits.split(",")):
        for name in names:
            points = run_set(contest(name, number), budgets, TARGET_MS, seed=42)
            runs.append({"set": name, "split": number, "points": points})
            cells = "  ".join(
                f"{s} s: {'none' if p['test'] is None else format(p['test'], '.4f')} after {p['seconds']:.0f} ({p['by']})"
                for s, p in points.items()
            )
            print(f"{name:<18}{number:>2}  {cells}", flush=True)
            report = {"target_ms": TARGET_MS, "runs": runs, "curve": summarise(runs, budgets)}
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(report, indent=1))
    for line in summarise(runs, budgets):
        print(json.dumps(line))
