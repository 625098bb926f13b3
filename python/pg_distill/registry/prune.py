"""What may go: versions that nothing names, and candidates' files."""

from __future__ import annotations

from typing import Any

from pg_distill.database.protocol import Argument, Database, Row
from pg_distill.errors import (
    InvalidParameter,
)
from pg_distill.registry.locks import lock_names
from pg_distill.registry.model import Dropped
from pg_distill.registry.rights import MAY_WRITE, current_role, writer

__all__ = ["prune"]


# Who names a version in SQL of their own: a view, or a function, in its body or in the comment of distill.create_function.
_NAMED_IN_SQL = (
    "select d.id, d.what from (select m.id, m.name || ':' || m.version as qualified,"
    "  pg_catalog.quote_literal(m.name || ':' || m.version) as literal"
    "  from distill.models m where m.id = any ($1)) n join lateral ("
    "   select n.id, 'function ' || p.oid::pg_catalog.regprocedure::pg_catalog.text as what from pg_catalog.pg_proc p"
    "    join pg_catalog.pg_language l on l.oid = p.prolang where l.lanname not in ('internal', 'c')"
    "    and (pg_catalog.strpos(coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc), n.literal) > 0"
    "         or pg_catalog.obj_description(p.oid, 'pg_proc') = 'pg_distill model ' || n.qualified)"
    "   union all select n.id, 'view ' || c.oid::pg_catalog.regclass::pg_catalog.text from pg_catalog.pg_class c"
    "    where c.relkind in ('v', 'm') and pg_catalog.strpos(pg_catalog.pg_get_viewdef(c.oid), n.literal) > 0"
    ") d on true"
)


def prune(
    db: Database, *, keep_versions: int | None, older_than: str | None, name: str | None, dry_run: bool
) -> tuple[list[dict[str, Any]], list[Dropped]]:
    """Remove old versions and files of old runs' candidates; return what is old, why some of it stays, and what is gone.

    Old is what is both beyond the newest ``keep_versions`` of its name (for candidates: runs of its student's name) and
    older than ``older_than``, an interval; where one is None the other decides. An active version, one that has students
    which stay, one that a view or a function names, and what is another role's stay. Runs and candidates keep their rows, as
    history.

    Raises
    ------
    InvalidParameter
        Neither bound is given, or one is negative.
    """
    if keep_versions is None and older_than is None:
        raise InvalidParameter("keep_versions or older_than must be given")
    if keep_versions is not None and keep_versions < 0:
        raise InvalidParameter(f"keep_versions must be 0 or more, not {keep_versions}")
    if (
        older_than is not None
        and not db.query(
            "select $1::pg_catalog.interval >= pg_catalog.make_interval() as valid", ("text", older_than)
        )[0]["valid"]
    ):
        raise InvalidParameter(f"older_than must not be negative, not {older_than}")
    role = current_role(db)
    bounds: tuple[Argument, ...] = (("int4", keep_versions), ("text", older_than), ("text", name))
    old = (
        "(v.newer >= coalesce($1, 0) and ($2 is null or v.created_at < now() - $2::pg_catalog.interval)"
        " and ($3 is null or v.name = $3))"
    )
    versions = (
        "select v.id::pg_catalog.text as id, v.name, v.version, v.active, v.size_bytes,"
        " v.owner, v.created_at::pg_catalog.text as created_at from"
        " (select m.*, pg_catalog.row_number() over (partition by m.name order by m.created_at desc, m.id) - 1 as newer"
        f"  from distill.models m) v where {old} order by v.name, v.created_at"
    )
    found = db.query(versions, *bounds)
    if not dry_run:
        # Then once more, as others may have been at it.
        locked = {row["name"] for row in found}
        db.write(lambda: _lock_versions(db, locked))
        found = [row for row in db.query(versions, *bounds) if row["name"] in locked]
    ids = [row["id"] for row in found]
    reasons = {row["id"]: "it is the active version" for row in found if row["active"]}
    for row in db.query(
        f"select m.id::pg_catalog.text as id, m.owner from distill.models m where m.id = any ($3) and not {MAY_WRITE}",
        *writer(role),
        ("uuid[]", ids),
    ):
        reasons.setdefault(row["id"], f"it belongs to role {row['owner']}")
    for row in db.query(_NAMED_IN_SQL, ("uuid[]", ids)):
        reasons.setdefault(row["id"], f"{row['what']} names it")
    # A policy may hide some, whose teachers stay all the same.
    students = _read_all(
        db,
        "select m.id::pg_catalog.text as id, m.teacher_id::pg_catalog.text as teacher_id, m.name || ':' || m.version as name"
        " from distill.models m where m.teacher_id = any ($1) order by m.created_at",
        ("uuid[]", ids),
    )
    seen = {row["id"] for row in db.query("select m.id::pg_catalog.text as id from distill.models m")}
    while blocked := [
        s for s in students if s["teacher_id"] not in reasons and (s["id"] not in ids or s["id"] in reasons)
    ]:
        for student in blocked:
            named = student["name"] if student["id"] in seen else "a model that you cannot see"
            reasons.setdefault(student["teacher_id"], f"it is the teacher of {named}")
    gone = [key for key in ids if key not in reasons]
    rows = [
        {
            "kind": "version",
            "run_id": None,
            "pruned": not dry_run and row["id"] in gone,
            "reason": reasons.get(row["id"], "old"),
            **{key: row[key] for key in ("name", "version", "size_bytes", "created_at")},
        }
        for row in found
    ]
    files = db.query(
        "select v.run_id::pg_catalog.text as run_id, v.name, v.created_at::pg_catalog.text as created_at,"
        " sum(c.size_bytes)::pg_catalog.int8 as size_bytes from (select r.run_id, r.student_name as name, r.created_at,"
        "  pg_catalog.row_number() over (partition by r.student_name order by r.created_at desc, r.run_id) - 1 as newer"
        f"  from distill.runs r) v join distill.candidates c on c.run_id = v.run_id and c.artifact is not null"
        f" where {old} group by v.run_id, v.name, v.created_at order by v.name, v.created_at",
        *bounds,
    )
    others = {
        row["run_id"]: row["owner"]
        for row in db.query(
            "select m.run_id::pg_catalog.text as run_id, m.owner from distill.runs m"
            f" where m.run_id = any ($3) and not {MAY_WRITE}",
            *writer(role),
            ("uuid[]", [row["run_id"] for row in files]),
        )
    }
    rows += [
        {
            "kind": "candidates",
            "version": None,
            "pruned": not dry_run and row["run_id"] not in others,
            "reason": f"it belongs to role {others[row['run_id']]}" if row["run_id"] in others else "old",
            **row,
        }
        for row in files
    ]

    def remove() -> None:
        db.query("delete from distill.models m where m.id = any ($1)", ("uuid[]", gone))
        db.query(
            "update distill.candidates c set artifact = null, expression = null"
            " where c.run_id = any ($1) and c.artifact is not null",
            ("uuid[]", [row["run_id"] for row in files if row["run_id"] not in others]),
        )

    if dry_run:
        return rows, []
    db.write(remove)
    left = {
        row["name"]
        for row in _read_all(
            db,
            "select m.name from distill.models m where m.name = any ($1)",
            ("text[]", sorted({row["name"] for row in found})),
        )
    }
    return rows, [
        Dropped(row["name"], row["version"], row["owner"], row["name"] not in left)
        for row in found
        if row["id"] in gone
    ]


def _lock_versions(db: Database, names: set[str]) -> None:
    lock_names(db, names)
    db.query(
        "select from distill.models m where m.name = any ($1) order by m.id for update",
        ("text[]", sorted(names)),
    )


def _read_all(db: Database, sql: str, *arguments: Argument) -> list[Row]:
    """Read what a policy may hide from the current role: for what is kept for others, not to be shown."""
    return db.write(lambda: db.query(sql, *arguments))
