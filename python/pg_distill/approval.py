"""One check for every file: a child process opens it before a backend does, however it came here.

A file that is registered or found by a search is checked on its way in. What was restored, imported into the table or offered
by a client is checked here, when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pg_distill import registry
from pg_distill.database import Database
from pg_distill.onnx_model import Signature
from pg_distill.process import Limits
from pg_distill.trainer import Trainer

__all__ = ["approve", "note", "require", "trainer_limits"]


def trainer_limits(db: Database) -> Limits:
    """Return the limits of a child process from the settings."""
    return Limits(
        memory_bytes=registry.get_setting(db, "trainer_memory_mb") * 2**20,
        threads=registry.get_setting(db, "trainer_threads"),
        niceness=registry.get_setting(db, "trainer_niceness"),
    )


def approve(db: Database, models: Sequence[tuple[bytes, Signature]]) -> None:
    """Check ONNX files and the signatures by which they are read, in a child.

    Raises
    ------
    ArtifactCorrupted
        A signature is another file's.
    InvalidArtifact, LimitExceeded, FeatureNotSupported
        A file is not ONNX, or refused.
    """
    with Trainer(trainer_limits(db), db.check_interrupts) as trainer:
        trainer.check(models, registry.get_setting(db, "artifact_limit_mb") * 2**20)


def require(db: Database, models: Mapping[str, tuple[bytes, Signature]]) -> None:
    """Approve those of registered models, by id, that nobody has approved yet."""
    unchecked = registry.unchecked(db, list(models))
    if unchecked:
        approve(db, [models[key] for key in unchecked])
        for key in unchecked:
            note(db, key)


def note(db: Database, model_id: str) -> None:
    """Note that a registered model was approved, so that no other backend has it checked again."""
    registry.note_checked(db, model_id)
