"""The quality benchmark's frontiers as a picture: a panel a set, test metric over call latency, on the first split there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["draw"]

COLOURS = {
    "linear": "#7f7f7f",
    "tree": "#8c564b",
    "boosted": "#1f77b4",
    "first_trees": "#17becf",
    "mlp": "#d62728",
}
COLOURS |= {"blend": "#9467bd"}


def draw(runs: Sequence[Mapping[str, Any]], others: Mapping[str, Any], path: Path) -> None:
    """Draw the frontier candidates of every search, what was chosen, control, recipe, teacher and AutoGluon's figures."""
    first: dict[str, Mapping[str, Any]] = {}
    for run in sorted(runs, key=lambda r: r["split"]):
        first.setdefault(run["set"], run)
    columns = min(2, len(first))
    rows = -(-len(first) // max(columns, 1))
    figure, axes = plt.subplots(rows, columns, figsize=(6.4 * columns, 4.4 * rows), squeeze=False)
    for axis in axes.flat[len(first) :]:
        axis.set_visible(False)
    for axis, (name, run) in zip(axes.flat, first.items(), strict=False):
        _panel(axis, name, run, others.get(name, {}))
    marks = {
        label: plt.Line2D([], [], marker=marker, color=colour, linestyle="", label=label)
        for label, marker, colour in (
            *((family, "o", colour) for family, colour in COLOURS.items()),
            ("chosen", "*", "black"), ("control", "_", "black"), ("AutoGluon's recipe, same latency", "x", "#2ca02c"),
            ("teacher", "D", "black"), ("AutoGluon 1.6.3", "^", "#ff7f0e"),
        )
    }  # fmt: skip
    figure.legend(handles=list(marks.values()), loc="lower center", ncols=6, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Any, name: str, run: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    shown = []
    for student in filter(None, run["students"].values()):
        for point in student["frontier"]:
            axis.plot(
                point["latency_ms"], point["test"], "o", ms=4, alpha=0.6, color=COLOURS[point["family"]]
            )
        for kind, marker, colour in (("control", "_", "black"), ("recipe", "x", "#2ca02c")):
            if kind in student:
                axis.plot(student[kind]["latency_ms"], student[kind]["test"], marker, ms=9, color=colour)
        axis.plot(student["latency_ms"], student["test"], "*", ms=11, color="black")
        shown += [student["test"], run["teacher"]["test"], *(p["test"] for p in student["frontier"])]
    axis.plot(run["teacher"]["latency_ms"], run["teacher"]["test"], "D", ms=6, color="black")
    for accuracy, latency in others.values():
        axis.plot(latency, accuracy, "^", ms=6, color="#ff7f0e")
        shown.append(accuracy)
    # Candidates far below the rest would press everything else into one line.
    low, high = sorted(shown)[len(shown) // 4], max(shown)
    axis.set_ylim(low - 0.6 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3)
    axis.set_xscale("log")
    axis.set_title(
        f"{name}, split {run['split']}: teacher {run['teacher']['latency_ms']:.3g} ms", fontsize=10
    )
    axis.set_xlabel("call latency, ms")
    axis.set_ylabel(f"{run['metric']} on test rows")
    axis.grid(alpha=0.3)
