"""Who may write what: the role, its names, and what it may change of others'."""

from __future__ import annotations

from dataclasses import dataclass

from pg_distill.database.protocol import Argument, Database
from pg_distill.errors import (
    DuplicateModel,
    InsufficientPrivilege,
    InvalidName,
)
from pg_distill.text import printable, skeleton

__all__ = [
    "MAY_WRITE",
    "Role",
    "can_write",
    "current_role",
    "hold_name",
    "own_name",
    "require_name",
    "require_writable",
    "sees_name",
    "writer",
]


@dataclass(frozen=True)
class Role:
    """The current role, and whether it is above the owners of models."""

    oid: int
    name: str
    is_superuser: bool
    is_admin: bool
    """Whether it may change settings."""


def current_role(db: Database) -> Role:
    """Return the current role; to be asked before `Database.write`, in which it is another."""
    [row] = db.query(
        "select r.oid::pg_catalog.int8 as oid, r.rolname::pg_catalog.text as name, r.rolsuper as is_superuser,"
        " pg_catalog.has_function_privilege('distill.change_setting(pg_catalog.text, pg_catalog.text)', 'execute') as is_admin"
        " from pg_catalog.pg_roles r where r.rolname = current_user"
    )
    return Role(**row)


def own_name(db: Database, role: Role) -> str:
    """Return the name under which a role owns what it stores, in `Database.write`.

    The role's own, unless another role stood for that before: names are given once.
    """
    name = role.name
    while True:
        rows = db.query(
            "select o.name from distill.owners o where o.role = $1::pg_catalog.oid", ("int8", role.oid)
        )
        if not rows:
            rows = db.query(
                "insert into distill.owners (name, role) values ($1, $2::pg_catalog.oid) on conflict do nothing returning name",
                ("text", name),
                ("int8", role.oid),
            )
        if rows:
            return str(rows[0]["name"])
        # Another session of the role has just done it; or the name is another role's.
        if db.query(
            "select from distill.owners o where o.name = $1 and o.role <> $2::pg_catalog.oid",
            ("text", name),
            ("int8", role.oid),
        ):
            name = f"{name}#{role.oid}"


# Whether a role may write a model of distill.models m: who owns it, a member of that role, who administers, a superuser.
MAY_WRITE = "($1 or coalesce(pg_catalog.pg_has_role($2::pg_catalog.oid, distill._owner_role(m.owner), 'MEMBER'), false))"


def writer(role: Role) -> tuple[Argument, Argument]:
    """Return the arguments of `MAY_WRITE`."""
    return ("boolean", role.is_superuser or role.is_admin), ("int8", role.oid)


def hold_name(db: Database, name: str, role: Role, *, visible: bool) -> None:
    """Refuse to write under a name that another role has; in `Database.write`, which sees all versions.

    Raises
    ------
    InsufficientPrivilege
        It is another role's.
    DuplicateModel
        So it is, and the current role sees none of its versions.
    InvalidName
        It is new, and seen as the name of another role's models: who reads the one would take it for the other.
    """
    rows = db.query(
        f"select m.owner from distill.models m where m.name = $3 and not {MAY_WRITE} limit 1",
        *writer(role),
        ("text", name),
    )
    if not rows:
        _refuse_lookalike(db, name, role)
        return
    if not visible:
        raise DuplicateModel(f'model name "{name}" is taken', hint="Choose another name.")
    raise InsufficientPrivilege(
        f'model name "{name}" is another role\'s',
        detail=f'A version of it belongs to role "{rows[0]["owner"]}".',
        hint="Choose another name, or work as a member of that role.",
    )


def _refuse_lookalike(db: Database, name: str, role: Role) -> None:
    if db.query("select from distill.models m where m.name = $1 limit 1", ("text", name)):
        return
    own = skeleton(name)
    others = db.query(f"select distinct m.name from distill.models m where not {MAY_WRITE}", *writer(role))
    if any(skeleton(row["name"]) == own for row in others):
        raise InvalidName(
            f'model name "{printable(name)}" is seen as a name of another role\'s',
            hint="Choose another name.",
        )


def require_name(db: Database, name: str) -> None:
    """Refuse a name that is another role's, before anything is done for it; a client is told by `insert_model`."""
    if db.in_backend:
        role, visible = current_role(db), sees_name(db, name)
        db.write(lambda: hold_name(db, name, role, visible=visible))


def sees_name(db: Database, name: str) -> bool:
    """Return whether the caller may see that the name is there."""
    return bool(db.query("select from distill.models m where m.name = $1 limit 1", ("text", name)))


def require_writable(db: Database) -> None:
    """Let PostgreSQL refuse now what it would refuse after the training: a read-only transaction, a role that may not write."""
    if db.in_backend:
        db.write(lambda: db.query("insert into distill.models (name) select null where false"))
    else:
        db.query("update distill.job_queue set stage = stage where false")


def can_write(db: Database) -> bool:
    """Return whether the caller may write the registry's rows at all."""
    [row] = db.query_exact(
        "select not pg_catalog.pg_is_in_recovery() and pg_catalog.current_setting('transaction_read_only')"
        " operator(pg_catalog.=) 'off'::pg_catalog.text"
        " and pg_catalog.has_function_privilege('distill._write()', 'execute') as can_write"
    )
    return bool(row["can_write"]) and not db.in_parallel
