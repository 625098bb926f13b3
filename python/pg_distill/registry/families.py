"""A family: the versions and students of a teacher, and the member that an error bound and a latency choose."""

from __future__ import annotations

from pg_distill.database.protocol import Database, Row
from pg_distill.errors import (
    InvalidParameter,
    InvalidState,
)
from pg_distill.registry.model import MODEL_COLUMNS, Model, model_of_row
from pg_distill.registry.models import find_model

__all__ = ["choose_member", "family_members"]


def family_members(db: Database, teacher: Model, limit: int) -> list[Model]:
    """Return the students and other versions of a teacher's family: active ones first, then its frontier, then the newest.

    Without those whose figures are of SQL that another role stored, which is not run to measure it, and without
    cascades with another teacher behind them.
    """
    rows = db.query(
        f"select {MODEL_COLUMNS} from distill.models m join distill.families f on f.model_id = m.id"
        " where f.family in (select f2.family from distill.families f2 where f2.model_id = $1) and m.id <> $1"
        " and m.kind = 'onnx' and m.task = $2 and (m.form <> 'cascade' or m.teacher_id = $1)"
        " and (m.form <> 'sql' or distill._is_trusted(m.owner))"
        " order by m.active desc, exists (select from distill.frontier f3 where f3.model_id = m.id) desc,"
        " m.created_at desc, m.id limit $3",
        ("uuid", teacher.id),
        ("text", teacher.task),
        ("int4", limit),
    )
    return [model_of_row(row) for row in rows]


def choose_member(
    db: Database, name: str, *, max_latency_ms: float | None, min_accuracy: float | None
) -> str:
    """Return ``name:version`` of the most accurate model of a family within both bounds; of equals the fastest.

    The answer is to be predict's first argument, so that a student that was chosen for its SQL form counts with what
    predict takes for it. As for a student to be accepted, it is the upper end of a latency's interval that counts.
    Accuracies compare within one metric, that of the active version of ``name``, and of those that the last run that measured
    the family could not measure, as they have learned from its rows, one is chosen only where no other is within the bounds.

    Raises
    ------
    UndefinedModel
        There is no such model.
    InvalidState
        No member is within the bounds; the error names the one that is nearest to them.
    """
    metric = find_model(db, name).metric
    rows = db.query_exact(
        # What was measured together first: figures of other rows do not compare with these.
        "select pg_catalog.concat(f.name, ':', f.version) as name, f.accuracy, l.latency_ms"
        " from distill.families f join distill.models m on m.id operator(pg_catalog.=) f.model_id,"
        " lateral (select case when f.form operator(pg_catalog.=) 'sql'::pg_catalog.text then"
        " (m.measured_on operator(pg_catalog.->>) 'predict_latency_high_ms'::pg_catalog.text)::pg_catalog.float8"
        " else coalesce(f.latency_high_ms, f.avg_latency_ms) end as latency_ms) l"
        " where f.family operator(pg_catalog.=) any (select g.family from distill.families g"
        " where g.name operator(pg_catalog.=) $1)"
        " and f.metric operator(pg_catalog.=) $2 and f.accuracy is not null and l.latency_ms is not null"
        " and f.kind operator(pg_catalog.<>) 'logged'::pg_catalog.text"
        " order by f.accuracy_run_id is not null, f.comparable_low desc, l.latency_ms, f.active desc, f.model_id",
        ("text", name.partition(":")[0]),
        ("text", metric),
    )

    def distance(row: Row) -> float:
        late = row["latency_ms"] / max_latency_ms - 1 if max_latency_ms else 0.0
        wrong = min_accuracy - row["accuracy"] if min_accuracy is not None else 0.0
        return max(late, 0.0) + max(wrong, 0.0)

    for bound, value in (("max_latency_ms", max_latency_ms), ("min_accuracy", min_accuracy)):
        if value is not None and not value > (0 if bound == "max_latency_ms" else float("-inf")):
            raise InvalidParameter(
                f"{bound} must be a number{' above 0' if bound == 'max_latency_ms' else ''}, not {value}"
            )
    best = next((row for row in rows if distance(row) == 0.0), None)
    if best is not None:
        return str(best["name"])
    wanted = [f"at most {max_latency_ms:g} ms"] if max_latency_ms is not None else []
    wanted += [f"{metric} of at least {min_accuracy:g}"] if min_accuracy is not None else []
    nearest = min(rows, key=distance, default=None)
    raise InvalidState(
        f'no model of the family of "{name}" has {" and ".join(wanted) or "measured figures"}',
        detail=None
        if nearest is None
        else f"Nearest is {nearest['name']}: {nearest['latency_ms']:.4g} ms, {metric} {nearest['accuracy']:.4g}.",
    )
