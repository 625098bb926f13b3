"""The picture of a run: latency against accuracy, with intervals, teacher, students, frontier and target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

__all__ = ["draw_frontier"]

TEACHER, STUDENT, OTHER, TARGET = "#8a3ffc", "#0f62fe", "#8d8d8d", "#da1e28"
SHAPES = {"linear": "^", "tree": "v", "boosted": "s", "first_trees": "P", "mlp": "D", "blend": "X"}


def draw_frontier(
    report: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], subtitle: str, path: Path
) -> None:
    """Draw what a run measured.

    Parameters
    ----------
    report
        The row of ``distill.run_report``.
    candidates
        Rows of ``distill.candidates``; those without a latency measured in the backend are left out.
    subtitle
        What was measured, and where.
    path
        The PNG file to write.
    """
    measured = [c for c in candidates if c["avg_latency_ms"] is not None and c["accuracy"] is not None]
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    FigureCanvasAgg(figure)  # no display is needed
    axes = figure.add_subplot()
    front = sorted(
        [(c["avg_latency_ms"], c["accuracy"]) for c in measured if c["on_frontier"]]
        + [(report["teacher_latency_ms"], report["teacher_accuracy"])]
    )
    axes.step(
        *zip(*_improving(front), strict=True),
        where="post",
        color=STUDENT,
        alpha=0.35,
        linewidth=1.5,
        zorder=1,
    )
    seen = set()
    for candidate in measured:
        family = candidate["family"]
        chosen = candidate["chosen"]
        _point(
            axes,
            candidate["avg_latency_ms"], candidate["latency_low_ms"], candidate["latency_high_ms"],
            candidate["accuracy"], candidate["accuracy_low"], candidate["accuracy_high"],
            color=STUDENT if chosen else OTHER, marker=SHAPES.get(family, "o"), size=10 if chosen else 6,
            label=None if chosen or family in seen else family,
        )  # fmt: skip
        if not chosen:
            seen.add(family)
    teacher = (report["teacher_latency_ms"], report["teacher_accuracy"])
    _point(
        axes,
        teacher[0], report["teacher_latency_low_ms"], report["teacher_latency_high_ms"],
        teacher[1], report["teacher_accuracy_low"], report["teacher_accuracy_high"],
        color=TEACHER, marker="o", size=11, label=None,
    )  # fmt: skip
    student = (report["student_latency_ms"], report["student_accuracy"])
    _name(axes, f"teacher {report['teacher_name']}", teacher, TEACHER, away=(-10, 30))
    if student[0] is not None:
        name = (
            f"student {report['student_name']}" if report["accepted"] else "nearest candidate, not accepted"
        )
        _name(axes, name, student, STUDENT, away=(60, -40))
    target = (report.get("requested") or {}).get("target_latency_ms")
    if target:
        axes.axvline(target, color=TARGET, linestyle="--", linewidth=1, zorder=0)
        axes.annotate(
            f"target {_milliseconds(target)}", (target, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
            textcoords="offset points", color=TARGET, fontsize=9,
        )  # fmt: skip
    majority = report.get("majority_accuracy")
    if majority is not None:
        axes.axhline(majority, color=OTHER, linestyle=":", linewidth=1, zorder=0)
        axes.annotate(
            f"always the majority class: {majority:.1%}", (0.99, majority), xycoords=("axes fraction", "data"),
            xytext=(0, 4), textcoords="offset points", ha="right", color=OTHER, fontsize=9,
        )  # fmt: skip
    axes.set_xscale("log")
    points = [*(c["avg_latency_ms"] for c in measured), teacher[0], *([target] if target else [])]
    axes.set_xlim(min(points) / 1.8, max(points) * 1.8)
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _milliseconds(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.set_xlabel("call latency: one row's predict inside a query (mean, 95 % interval)")
    axes.set_ylabel(
        f"{report['metric']} on {report['rows_test']:,} rows that neither has seen (95 % interval)"
    )
    title = f"{report['teacher_name']}: {_milliseconds(teacher[0])}"
    if student[0] is not None:
        title += (
            f" → {_milliseconds(student[0])} a row, {teacher[0] / student[0]:.0f} times faster,"
            f" {student[1] / teacher[1]:.1%} of the accuracy"
        )
    axes.set_title(title + "\n", loc="left", fontsize=11.5, fontweight="bold")
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=8.5, color="#525252")
    axes.grid(which="both", alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="other candidates", loc="center right", frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _improving(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leave out what a faster point equals or beats."""
    best, kept = float("-inf"), []
    for latency, accuracy in points:
        if accuracy > best:
            best = accuracy
            kept.append((latency, accuracy))
    return kept


def _name(axes: Any, name: str, point: tuple[float, float], color: str, *, away: tuple[int, int]) -> None:
    axes.annotate(
        f"{name}\n{_milliseconds(point[0])}, {point[1]:.1%}", point, xytext=away, textcoords="offset points",
        ha="left" if away[0] > 0 else "right", va="center", color=color, fontweight="bold", fontsize=9,
        arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.4, "shrinkB": 6}, zorder=4,
    )  # fmt: skip


def _point(
    axes: Any, x: float, x_low: float | None, x_high: float | None, y: float, y_low: float | None, y_high: float | None,
    *, color: str, marker: str, size: float, label: str | None,
) -> None:  # fmt: skip
    axes.errorbar(
        x,
        y,
        xerr=[[max(x - (x_low or x), 0)], [max((x_high or x) - x, 0)]],
        yerr=[[max(y - (y_low or y), 0)], [max((y_high or y) - y, 0)]],
        fmt=marker,
        color=color,
        markersize=size,
        elinewidth=1,
        capsize=2,
        alpha=0.95,
        label=label,
        zorder=3,
    )


def _milliseconds(value: float) -> str:
    return f"{value * 1e3:.3g} µs" if value < 1 else f"{value:.3g} ms"
