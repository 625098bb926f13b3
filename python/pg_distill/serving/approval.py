"""One check for every file: a child process opens it before a backend does, however it came here.

A file that is registered or found by a search is checked on its way in. What was restored, imported into the table or offered
by a client is checked here, when it is first asked for. The children that check files are few on a server, as those that train.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pg_distill.child.process import Limits
from pg_distill.child.trainer import Trainer
from pg_distill.database.protocol import Database
from pg_distill.errors import TooManyInspections
from pg_distill.onnx_model.signature import Signature
from pg_distill.registry import checked, places, settings

__all__ = ["approve", "approve_registered", "inspector", "model_limits", "require", "trainer_limits"]

WAIT_SECONDS = (
    30.0  # for a place: many backends want files checked after a restore, and a check takes a second or so
)
POLL_SECONDS = 0.05  # between looks whether there is one, and at interrupts


def trainer_limits(db: Database) -> Limits:
    """Return the limits of a training process from the settings."""
    return Limits(
        memory_bytes=settings.get_setting(db, "trainer_memory_mb") * 2**20,
        threads=settings.get_setting(db, "trainer_threads"),
        niceness=settings.get_setting(db, "trainer_niceness"),
    )


def model_limits(db: Database) -> tuple[int, int]:
    """Return how many bytes an ONNX file may have, and a run of it for one row may take, from the settings."""
    return (
        settings.get_setting(db, "artifact_limit_mb") * 2**20,
        settings.get_setting(db, "predict_memory_mb") * 2**20,
    )


@contextmanager
def _place(db: Database) -> Iterator[bool]:
    """Hold one of the server's places for checks of files; gives whether it had to be waited for."""
    allowed = settings.get_setting(db, "concurrent_inspections")
    given_up, waited = time.monotonic() + WAIT_SECONDS, False
    while (place := places.take(places.INSPECTIONS, allowed)) is None:
        if time.monotonic() > given_up:
            raise TooManyInspections(
                f"{allowed} files are being checked already, as many as are allowed at once",
                hint="Try again later, or have an administrator change the setting concurrent_inspections.",
            )
        db.check_interrupts()
        time.sleep(POLL_SECONDS)
        waited = True
    with place:
        yield waited


def _child(db: Database) -> Trainer:
    limits = trainer_limits(db)
    memory = min(limits.memory_bytes, settings.get_setting(db, "inspection_memory_mb") * 2**20)
    return Trainer(Limits(memory, limits.threads, limits.niceness), db.check_interrupts)


@contextmanager
def inspector(db: Database) -> Iterator[Trainer]:
    """Start a child that checks files, in one of the server's places for such.

    It is not to be held while SQL of the caller's runs, which may take for ever.

    Raises
    ------
    TooManyInspections
        No place was free for long.
    """
    with _place(db), _child(db) as child:
        yield child


def approve(db: Database, models: Sequence[tuple[bytes, Signature]]) -> list[Signature]:
    """Check ONNX files and the signatures by which they are read, in a child; return these with what a run costs.

    Raises
    ------
    ArtifactCorrupted
        A signature is another file's.
    InvalidArtifact, LimitExceeded, FeatureNotSupported
        A file is not ONNX, or refused.
    TooManyInspections
        As many files are checked as may be at once.
    """
    with inspector(db) as child:
        return child.check(models, *model_limits(db))


def approve_registered(db: Database, models: Mapping[str, tuple[bytes, Signature]]) -> list[Signature]:
    """Approve registered models, by id, and note it, so that no other backend has them checked again; as of `approve`."""
    with _place(db) as waited:
        # All sessions that open one model after a restore want it checked: one does it for those that have waited.
        costs = checked.costs_meanwhile(db, list(models)) if waited else {}
        approved = {key: replace(models[key][1], cost=cost) for key, cost in costs.items()}
        left = {key: model for key, model in models.items() if key not in approved}
        if left:
            with _child(db) as child:
                approved |= zip(left, child.check(list(left.values()), *model_limits(db)), strict=True)
    for key in left:
        checked.note_checked(db, key, approved[key])
    return [approved[key] for key in models]


def require(db: Database, models: Mapping[str, tuple[bytes, Signature]]) -> None:
    """Approve those of registered models, by id, that nobody has approved yet."""
    unchecked = checked.unchecked(db, list(models))
    if unchecked:
        approve_registered(db, {key: models[key] for key in unchecked})
