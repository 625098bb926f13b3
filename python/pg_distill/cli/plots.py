"""The report's pictures, as SVG that is readable by day and by night."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pg_distill.cli.segments import Answers
from pg_distill.frame import FloatArray
from pg_distill.measure.confidence import Interval, share_interval
from pg_distill.text import printable

__all__ = ["calibration_plot", "frontier_plot", "milliseconds"]

BINS = 10  # of as many rows each


# Colours that nothing else has stand in the drawing for the page's own, which has a light and a dark one of each.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
TEACHER, STUDENT, OTHER, TARGET = "#040404", "#050505", "#060606", "#070707"


VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    TEACHER: "teacher",
    STUDENT: "student",
    OTHER: "other",
    TARGET: "target",
}


SHAPES = {"linear": "^", "tree": "v", "boosted": "s", "first_trees": "P", "mlp": "D", "blend": "X"}


SETTINGS: Mapping[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.size": 10,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are text, whatever dollars are in them
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def _draw(name: str, size: tuple[float, float], paint: Callable[[Any], None]) -> str:
    """Return a drawing as SVG that takes its colours from the page."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Ids are hashes: another salt a picture, or clip paths of two pictures would be one.
    with rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)


def frontier_plot(run: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> Any:
    """Return latency against accuracy of a run's candidates, its teacher and its target, as SVG."""
    from markupsafe import Markup

    measured = [c for c in candidates if c["avg_latency_ms"] is not None and c["accuracy"] is not None]
    teacher = (run["teacher_latency_ms"], run["teacher_accuracy"])
    if not measured or teacher[1] is None:
        return None

    def point(
        axes: Any,
        row: Mapping[str, Any],
        prefix: str,
        *,
        color: str,
        marker: str,
        size: float,
        label: str | None,
    ) -> None:
        x, y = row[f"{prefix or 'avg_'}latency_ms"], row[f"{prefix}accuracy"]
        ends = [
            row[f"{prefix}{key}"]
            for key in ("latency_low_ms", "latency_high_ms", "accuracy_low", "accuracy_high")
        ]
        low_x, high_x, low_y, high_y = (
            v if end is None else end for end, v in zip(ends, (x, x, y, y), strict=True)
        )
        axes.errorbar(
            x, y, xerr=[[max(x - low_x, 0)], [max(high_x - x, 0)]], yerr=[[max(y - low_y, 0)], [max(high_y - y, 0)]],
            fmt=marker, color=color, markersize=size, elinewidth=1.2, capsize=2, label=label,
            zorder=2 if color == OTHER else 3, markerfacecolor="none" if row.get("form") == "sql" else color,
        )  # fmt: skip

    def paint(figure: Any) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes = figure.add_subplot()
        front = [(c["avg_latency_ms"], c["accuracy"]) for c in measured if c["on_frontier"]]
        if teacher[0] is not None:
            front.append(teacher)
        best, steps = -math.inf, []
        for latency, accuracy in sorted(front):
            if accuracy > best:
                best = accuracy
                steps.append((latency, accuracy))
        xs = [c["avg_latency_ms"] for c in measured] + ([teacher[0]] if teacher[0] is not None else [])
        target = run["resolved"].get("target_latency_ms")
        limits = (
            min([*xs, *([target] if target else [])]) / 1.7,
            max([*xs, *([target] if target else [])]) * 1.7,
        )
        axes.set_xscale("log")
        axes.set_xlim(limits)
        axes.step(
            *zip(*[*steps, (limits[1], best)], strict=True), where="post", color=STUDENT, alpha=0.45, linewidth=1.5, zorder=1,
            label="frontier",
        )  # fmt: skip
        seen: set[str] = set()
        for candidate in measured:
            if not candidate["chosen"]:
                family = _family(candidate)
                point(
                    axes, candidate, "", color=OTHER, marker=SHAPES.get(candidate["family"], "o"), size=7,
                    label=None if family in seen else family,
                )  # fmt: skip
                seen.add(family)
        for candidate in measured:
            if candidate["chosen"]:
                name = "student" if run["accepted"] else "nearest candidate"
                point(
                    axes, candidate, "", color=STUDENT, marker=SHAPES.get(candidate["family"], "o"), size=10,
                    label=f"{name} ({_family(candidate)})",
                )  # fmt: skip
        if teacher[0] is not None:
            declared = ", latency declared" if run["latency_declared"] else ""
            point(axes, run, "teacher_", color=TEACHER, marker="o", size=10, label=f"teacher{declared}")
        else:
            axes.axhline(teacher[1], color=TEACHER, label="teacher, latency not known")
        if target:
            axes.axvline(target, color=TARGET, linestyle="--", linewidth=1.2, label="target", zorder=0)
        # Older runs have the floor that was asked for only.
        asked = run["figures"].get("floor") or {
            "metric": run["metric"],
            "value": run["resolved"].get("min_accuracy"),
        }
        floor = asked["value"] if asked["metric"] == run["metric"] else None
        low, high = axes.get_ylim()
        if floor is not None and low - (high - low) < floor < high:
            axes.axhline(floor, color=TARGET, linestyle=":", linewidth=1.2, label="floor", zorder=0)
        axes.margins(y=0.12)
        low, high = axes.get_xlim()
        # Labels of every 1, 2 and 5 run into each other over more decades.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: milliseconds(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("call latency: one row's predict inside a query (mean)")
        axes.set_ylabel(f"{printable(run['metric'])} on {run['rows_test']:,} test rows")
        axes.grid(alpha=0.8, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)

    return Markup(_draw("frontier", (9, 4.4), paint))


def _family(candidate: Mapping[str, Any]) -> str:
    family = printable(str(candidate["family"]))
    return f"{family} as SQL" if candidate["form"] == "sql" else family


def calibration_plot(answers: Answers, task: str) -> Any:
    """Return what was predicted against what was the case, in bins of as many rows each."""
    from markupsafe import Markup

    y = answers.y
    assert y is not None
    known = np.isfinite(y) if task == "regression" else y >= 0
    if known.sum() < 2 * BINS:
        return None

    def binned(outputs: FloatArray) -> list[tuple[float, float, float, float]]:
        truth, p = y[known], outputs[known]
        if task == "regression":
            predicted, right = p[:, 0], truth
        elif p.shape[1] == 2:
            predicted, right = p[:, 1], (truth == 1).astype(float)
        else:
            predicted, right = p.max(axis=1), (p.argmax(axis=1) == truth).astype(float)
        points = []
        for rows in np.array_split(np.argsort(predicted, kind="stable"), BINS):
            mean = float(right[rows].mean())
            if task == "regression":
                half = 1.96 * float(right[rows].std(ddof=1)) / math.sqrt(len(rows)) if len(rows) > 1 else 0.0
                interval = Interval(mean - half, mean + half)
            else:
                interval = share_interval(mean, len(rows))
            points.append((float(predicted[rows].mean()), mean, interval.low, interval.high))
        return points

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        every: list[float] = []
        for outputs, color, marker, label in (
            (answers.teacher, TEACHER, "o", "teacher"),
            (answers.student, STUDENT, "s", "student"),
        ):
            x, mean, low, high = (np.array(v) for v in zip(*binned(outputs), strict=True))
            every += [*x, *low, *high]
            axes.errorbar(
                x, mean, yerr=[mean - low, high - mean], fmt=f"{marker}-", color=color, markersize=5, linewidth=1,
                elinewidth=1.2, capsize=2, label=label,
            )  # fmt: skip
        ends = (0.0, 1.0) if task != "regression" else (min(every), max(every))
        axes.plot(ends, ends, color=MUTED, linestyle="--", linewidth=1, label="perfect", zorder=0)
        if task == "regression":
            axes.set_xlabel("predicted value, mean of a bin")
            axes.set_ylabel("actual value, mean of a bin")
        elif answers.teacher.shape[1] == 2:
            axes.set_xlabel("predicted probability of the last class, mean of a bin")
            axes.set_ylabel("share of the last class")
        else:
            axes.set_xlabel("confidence in the most probable class, mean of a bin")
            axes.set_ylabel("share that is right")
        axes.grid(alpha=0.8, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)

    return Markup(_draw("calibration", (7, 4), paint))


def milliseconds(value: float | None) -> str:
    """Return a latency as a reader takes it in."""
    if value is None:
        return "not known"
    return f"{value * 1e3:.3g} \u00b5s" if value < 1 else f"{value:.3g} ms"
