"""One self-contained HTML page about a run: figures with their intervals, every candidate, and how it was measured.

``pg-distill report`` writes it; it needs the extra ``plot``. Rows of the test split are asked of both models again for
calibration and segments; where they cannot be had (another role's sample, a dropped model, a teacher that predicts elsewhere),
the page says so.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pg_distill.errors import InvalidParameter, InvalidState, PgDistillError, UndefinedObject
from pg_distill.frame import FloatArray, Strings
from pg_distill.measure.comparison import describe
from pg_distill.measure.confidence import Interval, share_interval
from pg_distill.measure.metrics import decided
from pg_distill.teachers.register import positions
from pg_distill.text import printable

if TYPE_CHECKING:
    import psycopg

__all__ = ["render", "write"]

MAX_ROWS = (
    5000  # test rows that both models are asked about; they come in the order of a hash, so these are any
)
MAX_SEGMENT_FEATURES = 6
MAX_SEGMENTS = 8  # values of a feature
MIN_SEGMENT_ROWS = 20  # fewer say nothing of a segment
BINS = 10  # of as many rows each
TEMPLATE = Path(__file__).with_name("report.html")

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


@dataclass(frozen=True)
class _Segment:
    """Rows that share a value, or a range of values, of a feature; shares with their 95 % intervals."""

    feature: str
    value: str
    rows: int
    teacher: tuple[float, Interval | None]
    student: tuple[float, Interval | None]
    agreement: tuple[float, Interval | None] | None


@dataclass(frozen=True)
class _Answers:
    """What both models say of test rows: (n, K) probabilities, or (n, 1) values."""

    features: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    y: npt.NDArray[Any] | None
    teacher: FloatArray
    student: FloatArray
    class_threshold: float | None = None
    """The probability from which the student names the last of two classes."""


def write(
    connection: psycopg.Connection[Any],
    path: str | Path,
    *,
    teacher: str | None = None,
    run_id: str | None = None,
) -> Path:
    """Write the page of a run, or of a teacher's last run, to ``path``; the connection is put into autocommit mode.

    Raises
    ------
    UndefinedObject
        There is no such run.
    """
    path = Path(path)
    path.write_text(render(connection, teacher=teacher, run_id=run_id), encoding="utf-8")
    return path


def render(
    connection: psycopg.Connection[Any], *, teacher: str | None = None, run_id: str | None = None
) -> str:
    """Return the page; see ``write``."""
    from jinja2 import Environment, TemplateError

    connection.autocommit = True
    if (teacher is None) == (run_id is None):
        raise InvalidParameter("a teacher or a run must be named, one of them")
    if run_id is None:
        run_id = _rows(connection, "SELECT distill.last_run(%s)::text AS id", teacher)[0]["id"]
        if run_id is None:
            raise UndefinedObject(f'no run has teacher "{teacher}"')
    found = _rows(connection, "SELECT r.* FROM distill.runs r WHERE r.run_id = %s", run_id)
    if not found:
        raise UndefinedObject(f'run "{run_id}" does not exist')
    run = found[0]
    candidates = _rows(
        connection,
        "SELECT c.candidate, c.family, c.configuration, c.is_control, c.size_bytes, c.select_accuracy, c.accuracy,"
        " c.accuracy_low, c.accuracy_high, c.fidelity, c.trainer_latency_ms, c.avg_latency_ms, c.latency_low_ms,"
        " c.latency_high_ms, c.on_frontier, c.chosen, c.reason, c.seconds,"
        " c.form, c.statement_latency_ms"
        " FROM distill.candidates c WHERE c.run_id = %s ORDER BY c.chosen DESC, c.on_frontier DESC, c.avg_latency_ms,"
        " c.select_accuracy DESC NULLS LAST, c.candidate",
        run_id,
    )
    lineage = _rows(
        connection,
        "SELECT m.id, m.teacher_id, m.name, m.version, m.active, m.kind, m.sha256, m.size_bytes, m.owner, m.created_at,"
        " m.metric, m.accuracy, m.avg_latency_ms, m.latency_declared, m.measured_at, m.origin,"
        " m.id IN (SELECT f.model_id FROM distill.frontier f) AS on_frontier"
        " FROM distill.models m JOIN distill.families a ON a.model_id = m.id"
        " WHERE a.family IN (SELECT b.family FROM distill.families b WHERE b.model_id IN (%s, %s))"
        " GROUP BY m.id ORDER BY m.teacher_id NULLS FIRST, m.name, m.created_at",
        run["teacher_id"],
        run["student_id"],
    )
    answers, missing = _answers(connection, run)
    task = _task(run)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    environment.filters.update(
        describe=describe, ms=_milliseconds, figure=_figure, compact=_compact, bytes=_bytes
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    try:
        return template.render(
            run=run,
            candidates=candidates,
            lineage=lineage,
            frontier=_frontier_plot(run, candidates),
            calibration=_calibration_plot(answers, task)
            if answers is not None and answers.y is not None
            else None,
            segments=_segments(answers, task) if answers is not None else [],
            missing=missing,
            asked=len(answers.rows) if answers is not None else 0,
            labelled=answers is not None and answers.y is not None,
            task=task,
        )
    except TemplateError as error:
        raise InvalidState(f'run "{run_id}" is not recorded as a run is', detail=f"{error}.") from error


# -- rows -----------------------------------------------------------------------------------------------------------


def _rows(connection: psycopg.Connection[Any], statement: str, *arguments: Any) -> list[dict[str, Any]]:
    from psycopg.rows import dict_row

    with connection.cursor(row_factory=dict_row) as cursor:
        return list(cursor.execute(statement.encode(), arguments).fetchall())


def _task(run: Mapping[str, Any]) -> str:
    return "regression" if run["figures"]["teacher"].get("ece") is None else "classification"


def _answers(
    connection: psycopg.Connection[Any], run: Mapping[str, Any]
) -> tuple[_Answers | None, str | None]:
    """Ask teacher and student about test rows; or say why that cannot be done."""
    import psycopg

    if run["student_id"] is None or run["teacher_id"] is None:
        return None, "the run has no student, or a model of it has been dropped"
    teacher, student = (f"{run[f'{who}_name']}:{run[f'{who}_version']}" for who in ("teacher", "student"))
    try:
        [model] = _rows(
            connection,
            "SELECT m.task, m.output_schema->'classes' AS classes, m.input_schema->'features' AS features,"
            " (SELECT s.class_threshold FROM distill.models s WHERE s.id = %s) AS class_threshold"
            " FROM distill.models m WHERE m.id = %s",
            run["student_id"],
            run["teacher_id"],
        )
        function = (
            "ARRAY[distill.predict({}, r.row)]"
            if model["task"] == "regression"
            else ("distill.predict_proba({}, r.row)")
        )
        label = run["resolved"]["label"]
        found = _rows(
            connection,
            f"SELECT r.row, r.row->>%s AS label, {function.format('%s')} AS teacher, {function.format('%s')} AS student"
            " FROM (SELECT t.row FROM distill.run_rows(%s) t WHERE t.split = 'test' LIMIT %s) r",
            label, teacher, student, run["run_id"], MAX_ROWS,
        )  # fmt: skip
    except psycopg.Error as error:
        said = error.diag.message_primary or str(error)
        return None, f"the test rows cannot be asked about again: {said} ({error.sqlstate})"
    y: npt.NDArray[Any] | None = None
    if label is not None and found:
        texts = [row["label"] for row in found]
        try:
            y = (
                np.array([math.nan if t is None else float(t) for t in texts])
                if model["task"] == "regression"
                else positions(Strings.from_values(texts), model["task"], model["classes"])
            )
        except (ValueError, PgDistillError) as error:
            return None, f"the labels of the test rows cannot be read: {error}"
    teacher_outputs, student_outputs = (
        np.array([row[who] for row in found], np.float64).reshape(len(found), -1)
        for who in ("teacher", "student")
    )
    features = [feature["name"] for feature in model["features"]]
    rows = [row["row"] for row in found]
    return (
        _Answers(features, rows, y, teacher_outputs, student_outputs, model["class_threshold"]),
        None,
    )


def _segments(answers: _Answers, task: str) -> list[_Segment]:
    """Compare the models where a feature of the teacher has each of its values, or lies in each quarter of its range.

    Features of few values come first, then numbers; of those with the most between two segments in agreement.
    """
    if not answers.rows:
        return []
    by_feature: list[tuple[bool, float, list[_Segment]]] = []
    for name in answers.features:
        values = [row.get(name) for row in answers.rows]
        groups, few = _groups(values)
        segments = [
            _segment(answers, task, name, value, rows)
            for value, rows in groups
            if int(rows.sum()) >= MIN_SEGMENT_ROWS
        ]
        if len(segments) > 1:
            spread = [s.agreement[0] if s.agreement else s.student[0] for s in segments]
            by_feature.append((not few, min(spread) - max(spread), segments))
    by_feature.sort(key=lambda found: found[:2])
    return [s for *_, segments in by_feature[:MAX_SEGMENT_FEATURES] for s in segments]


def _groups(values: Sequence[Any]) -> tuple[list[tuple[str, npt.NDArray[np.bool_]]], bool]:
    """Return a feature's groups of rows with a name each, and whether they are its values."""
    missing = np.array([v is None for v in values])
    groups: list[tuple[str, npt.NDArray[np.bool_]]] = []
    distinct = {v for v in values if v is not None}
    few = len(distinct) <= MAX_SEGMENTS or any(isinstance(v, str) for v in distinct)
    if few:
        texts = np.array(["" if v is None else str(v) for v in values], object)
        names, counts = np.unique(texts[~missing], return_counts=True)
        most = names[np.argsort(-counts, kind="stable")][:MAX_SEGMENTS]
        groups.extend((str(name), (texts == name) & ~missing) for name in most)
    else:
        numbers = np.array([math.nan if v is None else float(v) for v in values])
        edges = np.unique(np.quantile(numbers[~missing], [0, 0.25, 0.5, 0.75, 1]))
        for low, high in itertools.pairwise(edges):
            last = high == edges[-1]
            rows = (numbers >= low) & ((numbers <= high) if last else (numbers < high))
            groups.append((f"{low:.4g} to {high:.4g}", rows))
    if missing.any():
        groups.append(("NULL", missing))
    return groups, few


def _segment(answers: _Answers, task: str, feature: str, value: str, rows: npt.NDArray[np.bool_]) -> _Segment:
    y = answers.y[rows] if answers.y is not None else None
    teacher, student = answers.teacher[rows], answers.student[rows]

    def share(right: npt.NDArray[np.bool_]) -> tuple[float, Interval | None]:
        if not len(right):
            return math.nan, None
        return float(right.mean()), share_interval(float(right.mean()), len(right))

    if task == "regression":
        truth = y if y is not None else teacher[:, 0]

        def error(outputs: FloatArray) -> tuple[float, Interval | None]:
            return float(np.sqrt(np.nanmean((outputs[:, 0] - truth) ** 2))), None

        return _Segment(feature, value, int(rows.sum()), error(teacher), error(student), None)
    named = decided(student, answers.class_threshold).argmax(axis=1)
    same = teacher.argmax(axis=1) == named
    nothing = (math.nan, None)
    return _Segment(
        feature,
        value,
        int(rows.sum()),
        share(teacher.argmax(axis=1) == y) if y is not None else nothing,
        share(named == y) if y is not None else nothing,
        share(same),
    )


# -- pictures -------------------------------------------------------------------------------------------------------


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


def _frontier_plot(run: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> Any:
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
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _milliseconds(value)))
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


def _calibration_plot(answers: _Answers, task: str) -> Any:
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


# -- words ----------------------------------------------------------------------------------------------------------


def _shown(value: Any) -> Any:
    """Make visible what would turn text around or hide it; autoescaping comes after it."""
    from markupsafe import Markup

    return (
        printable(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value
    )


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "not known"
    return f"{value * 1e3:.3g} \u00b5s" if value < 1 else f"{value:.3g} ms"


def _figure(value: float | None, digits: int = 4) -> str:
    return "\u2013" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _bytes(value: int | None) -> str:
    if value is None:
        return "\u2013"
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


def _compact(value: Any) -> str:
    """Write a JSON object as ``key value`` pairs."""
    if not isinstance(value, Mapping):
        return _json(value)
    return ", ".join(f"{key} {v if isinstance(v, str) else _json(v)}" for key, v in value.items())


def _json(value: Any) -> str:
    return json.dumps(_rounded(value), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    """Return a JSON value with four digits of each fraction: a third needs no sixteen."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
