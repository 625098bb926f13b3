"""How steady the choice is: ten runs of other seeds over the same rows, on an idle machine and on a busy one.

For each set the search of a distillation (its default budget, one latency target) runs ``--runs`` times with other seeds, and as
often beside ``--load`` processes that want a processor each. Two runs should differ on test by less than the standard error of the
difference between their answers, and a busy machine should find later what an idle one finds.

Prints a table; writes build/bench/steadiness.json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any

import quality  # first: it sets the threads of BLAS

# isort: split
import few
import numpy as np
from pg_distill.frame import FloatArray

SETS = "banana,segment,spambase,contraceptive,german,vehicle,phoneme,credit_data,churn,attrition"
WITHIN = 1.96  # half of a 95 % interval, in standard errors


def spin() -> None:
    """Take a processor's time until the end."""
    number = 1
    while True:
        number = number * 3 % 1_000_003


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many processes busy beside what runs within."""
    others = [
        multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(processes)
    ]
    for process in others:
        process.start()
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.join()


def runs_of(contest: quality.Contest, options: argparse.Namespace, load: int) -> list[dict[str, Any]]:
    """Return score, answers, seconds and trainings of each seed's run, beside ``load`` other processes."""
    found = []
    with busy(load):
        for seed in range(options.runs):
            options.seed = seed
            _, chosen, ended = few.chosen_within(contest, options.target, options)
            if "student" not in chosen:
                continue
            outputs = contest.outputs(chosen["student"][0])
            found.append({"seed": seed, "score": contest.score(outputs), "outputs": outputs, "ended": ended})
    return found


def standard_error(contest: quality.Contest, answers: Sequence[FloatArray]) -> float:
    """Return the mean standard error of the difference between two runs' answers, of each run and the next."""
    errors = []
    for ours, theirs in itertools.pairwise(answers):
        low, high = contest.difference(ours, theirs)
        errors.append((high - low) / (2 * WITHIN))
    return float(np.mean(errors))


def of_set(name: str, options: argparse.Namespace, timer: quality.Backend) -> dict[str, Any]:
    """Return the figures of one set."""
    contest = quality.Contest(name, 0, options, timer)
    row: dict[str, Any] = {"set": name, "metric": contest.metric, "test": len(contest.test)}
    for load in (0, options.load) if options.load else (0,):
        runs = runs_of(contest, options, load)
        scores = [run["score"] for run in runs]
        pairs = [abs(a - b) for i, a in enumerate(scores) for b in scores[i + 1 :]]
        row["busy" if load else "idle"] = {
            "runs": len(runs),
            "mean": float(np.mean(scores)),
            "deviation": float(np.std(scores, ddof=1)),
            "difference": float(np.mean(pairs)),
            "standard_error": standard_error(contest, [run["outputs"] for run in runs]),
            "seconds": float(np.median([run["ended"]["seconds"] for run in runs])),
            "trained": [run["ended"]["trained"] for run in runs],
            "by": [run["ended"]["by"] for run in runs],
        }
    return row


def say(row: dict[str, Any]) -> None:
    """Print a set's lines."""
    for state in ("idle", "busy"):
        if state in row:
            found = row[state]
            print(
                f"{row['set']:<16}{state:<6}{row['metric']:<10} mean {found['mean']:.4f}  deviation {found['deviation']:.4f}"
                f"  two runs differ by {found['difference']:.4f}, standard error {found['standard_error']:.4f}"
                f"  {found['seconds']:.0f} s, {np.median(found['trained']):.0f} trainings",
                flush=True,
            )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default=SETS, help="names with commas")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--load", type=int, default=2, help="processes of the busy machine; 0: no such runs")
    parser.add_argument("--target", type=float, default=0.1)
    parser.add_argument("--seconds", type=float, help="time budget of a search (default: by the rows)")
    options = quality.parsed(parser, "steadiness")
    options.teacher_rows = "fit"
    rows = []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with quality.backend(options.server) as timer:
        for name in options.sets.split(","):
            rows.append(of_set(name, options, timer))
            say(rows[-1])
            options.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
