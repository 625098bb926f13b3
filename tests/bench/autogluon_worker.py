"""Fits and distils by AutoGluon in a folder of CSV files; runs in AutoGluon's environment, see autogluon_env.py."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

CALLS = 50  # one-row calls whose mean is its latency


def main() -> None:
    """Read train.csv, test.csv and asked.json; write found.npz."""
    import numpy as np
    import pandas as pd
    from autogluon.tabular import TabularPredictor

    folder = Path(sys.argv[1])
    asked = json.loads((folder / "asked.json").read_text())
    train, test = pd.read_csv(folder / "train.csv"), pd.read_csv(folder / "test.csv")
    predictor = TabularPredictor(
        label="target",
        problem_type=asked["task"],
        eval_metric=asked["metric"],
        path=str(folder / "models"),
        verbosity=0,
    ).fit(train, time_limit=asked["seconds"], num_cpus=2)
    students = predictor.distill(time_limit=asked["seconds"], verbosity=0)
    board = predictor.leaderboard(silent=True)
    [best] = board[board["model"].isin(students)].sort_values("score_val", ascending=False)["model"].head(1)
    if asked["task"] == "regression":
        outputs = predictor.predict(test, model=best).to_numpy(np.float64).reshape(-1, 1)
    else:
        found = predictor.predict_proba(test, model=best, as_multiclass=True)
        outputs = np.zeros((len(test), asked["classes"]))
        outputs[:, found.columns.astype(int)] = found.to_numpy(np.float64)
    rows = [test.iloc[[i]] for i in range(min(CALLS, len(test)))]
    predictor.predict(rows[0], model=best)
    start = time.perf_counter()
    for row in rows:
        predictor.predict(row, model=best)
    latency_ms = (time.perf_counter() - start) / len(rows) * 1e3
    np.savez(folder / "found.npz", outputs=outputs, latency_ms=latency_ms)


if __name__ == "__main__":
    main()
