"""Locks of names and families, and places of the server that only so many sessions have at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pg_distill.database.protocol import Database
from pg_distill.errors import (
    TooManyTrainings,
    UndefinedModel,
)
from pg_distill.registry import places
from pg_distill.registry.model import Model
from pg_distill.registry.rights import MAY_WRITE, current_role, writer
from pg_distill.registry.settings import get_setting

__all__ = ["admitted", "lock_family", "lock_names", "take_place"]


def lock_names(db: Database, names: Iterable[str]) -> None:
    """Let one transaction at a time add, activate or drop versions of ``names``.

    All of them in one order, so that two transactions do not wait for each other. In `Database.write`: nobody else may
    lock these rows.
    """
    ordered = sorted(set(names))
    db.query(
        "insert into distill.name_locks (name) select n from pg_catalog.unnest($1) n order by n on conflict do nothing",
        ("text[]", ordered),
    )
    db.query(
        "select from distill.name_locks l where l.name = any ($1) order by l.name for update",
        ("text[]", ordered),
    )


def lock_family(db: Database, teacher: Model, names: Iterable[str]) -> None:
    """Lock the teacher and its family, before a student of it is registered or their figures are written.

    What is another role's is not written and not locked, but for a lock of the teacher's row that only its removal waits
    for: who distils somebody's teacher keeps nobody from it. A teacher of one's own is written as it is: it either is gone
    or stays for its student, and, as a row's lock does not renew the snapshot of a transaction that is REPEATABLE READ or
    SERIALIZABLE, of two who do not see each other one fails (40001).

    Raises
    ------
    UndefinedModel
        The teacher was dropped meanwhile.
    """
    role = current_role(db)

    def lock() -> None:
        taken = db.query(
            f"select distinct m.name from distill.models m where m.name = any ($3) and not {MAY_WRITE}",
            *writer(role),
            ("text[]", [teacher.name, *names]),
        )
        others = {row["name"] for row in taken}
        lock_names(db, {teacher.name, *names} - others)
        lock = (
            "select m.id from distill.models m where m.id = $1 for key share"
            if teacher.name in others
            else "update distill.models m set active = m.active where m.id = $1 returning m.id"
        )
        if not db.query(lock, ("uuid", teacher.id)):
            raise UndefinedModel(f'model "{teacher.qualified_name}" was dropped meanwhile')

    db.write(lock)


@contextmanager
def admitted(db: Database, run_id: str | None = None) -> Iterator[None]:
    """Hold one of the server's places for trainings; a client's connection holds it until it ends.

    Raises
    ------
    TooManyTrainings
        All are taken.
    """
    if not db.in_backend:
        db.query("select distill._take_place($1)", ("uuid", run_id))
        yield
        return
    with take_place(db):
        # For distill.metrics, until the transaction ends. It takes a place of its own, as a lock of a table is of one database.
        db.write(lambda: db.query("lock table distill.trainings in row exclusive mode"))
        yield


def take_place(db: Database) -> places.Place:
    """Take one of the server's places for trainings; TooManyTrainings where there is none."""
    allowed = get_setting(db, "concurrent_trainings")
    place = places.take(places.TRAININGS, allowed)
    if place is None:
        raise TooManyTrainings(
            f"{allowed} distillations run already, as many as are allowed at once",
            hint="Try again later, or have an administrator change the setting concurrent_trainings.",
        )
    return place
