"""One self-contained HTML page about a run: figures with their intervals, every candidate, and how it was measured.

``pg-distill report`` writes it; it needs the extra ``plot``. Rows of the test split are asked of both models again for
calibration and segments; where they cannot be had (another role's sample, a dropped model, a teacher that predicts elsewhere),
the page says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pg_distill.cli.plots import calibration_plot, frontier_plot, milliseconds
from pg_distill.cli.segments import answers_of, rows_of, segments_of, task_of
from pg_distill.errors import InvalidParameter, InvalidState, UndefinedObject
from pg_distill.measure.comparison import describe
from pg_distill.runs.summary import ending
from pg_distill.text import printable

if TYPE_CHECKING:
    import psycopg

__all__ = ["render", "write"]

TEMPLATE = Path(__file__).with_name("report.html")


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
        run_id = rows_of(connection, "SELECT distill.last_run(%s)::text AS id", teacher)[0]["id"]
        if run_id is None:
            raise UndefinedObject(f'no run has teacher "{teacher}"')
    found = rows_of(connection, "SELECT r.* FROM distill.runs r WHERE r.run_id = %s", run_id)
    if not found:
        raise UndefinedObject(f'run "{run_id}" does not exist')
    run = found[0]
    candidates = rows_of(
        connection,
        "SELECT c.candidate, c.family, c.configuration, c.is_control, c.size_bytes, c.select_accuracy, c.accuracy,"
        " c.accuracy_low, c.accuracy_high, c.fidelity, c.trainer_latency_ms, c.avg_latency_ms, c.latency_low_ms,"
        " c.latency_high_ms, c.on_frontier, c.chosen, c.reason, c.seconds,"
        " c.form, c.statement_latency_ms"
        " FROM distill.candidates c WHERE c.run_id = %s ORDER BY c.chosen DESC, c.on_frontier DESC, c.avg_latency_ms,"
        " c.select_accuracy DESC NULLS LAST, c.candidate",
        run_id,
    )
    lineage = rows_of(
        connection,
        "SELECT m.id, m.teacher_id, m.name, m.version, m.active, m.kind, m.sha256, m.size_bytes, m.owner, m.created_at,"
        " m.metric, m.accuracy, m.avg_latency_ms, m.latency_declared, m.measured_at, m.origin,"
        " coalesce(m.measured_on ? 'twin', false) AS of_twin,"
        " m.id IN (SELECT f.model_id FROM distill.frontier f) AS on_frontier"
        " FROM distill.models m JOIN distill.families a ON a.model_id = m.id"
        " WHERE a.family IN (SELECT b.family FROM distill.families b WHERE b.model_id IN (%s, %s))"
        " GROUP BY m.id ORDER BY m.teacher_id NULLS FIRST, m.name, m.created_at",
        run["teacher_id"],
        run["student_id"],
    )
    answers, missing = answers_of(connection, run)
    task = task_of(run)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    environment.filters.update(
        describe=describe, ending=ending, ms=milliseconds, figure=_figure, compact=_compact, bytes=_bytes
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    try:
        return template.render(
            run=run,
            candidates=candidates,
            lineage=lineage,
            frontier=frontier_plot(run, candidates),
            calibration=calibration_plot(answers, task)
            if answers is not None and answers.y is not None
            else None,
            segments=segments_of(answers, task) if answers is not None else [],
            missing=missing,
            asked=len(answers.rows) if answers is not None else 0,
            labelled=answers is not None and answers.y is not None,
            task=task,
        )
    except TemplateError as error:
        raise InvalidState(f'run "{run_id}" is not recorded as a run is', detail=f"{error}.") from error


# -- words ----------------------------------------------------------------------------------------------------------


def _shown(value: Any) -> Any:
    """Make visible what would turn text around or hide it; autoescaping comes after it."""
    from markupsafe import Markup

    return (
        printable(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value
    )


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
