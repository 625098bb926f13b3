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

__all__ = ["approve", "model_limits", "note", "require", "trainer_limits"]


def trainer_limits(db: Database) -> Limits:
    """Return the limits of a child process from the settings."""
    return Limits(
        memory_bytes=registry.get_setting(db, "trainer_memory_mb") * 2**20,
        threads=registry.get_setting(db, "trainer_threads"),
        niceness=registry.get_setting(db, "trainer_niceness"),
    )


def model_limits(db: Database) -> tuple[int, int]:
    """Return how many bytes an ONNX file may have, and a run of it for one row may take, from the settings."""
    return (
        registry.get_setting(db, "artifact_limit_mb") * 2**20,
        registry.get_setting(db, "predict_memory_mb") * 2**20,
    )


def approve(db: Database, models: Sequence[tuple[bytes, Signature]]) -> list[Signature]:
    """Check ONNX files and the signatures by which they are read, in a child; return these with what a run costs.

    Raises
    ------
    ArtifactCorrupted
        A signature is another file's.
    InvalidArtifact, LimitExceeded, FeatureNotSupported
        A file is not ONNX, or refused.
    """
    with Trainer(trainer_limits(db), db.check_interrupts) as trainer:
        return trainer.check(models, *model_limits(db))


def require(db: Database, models: Mapping[str, tuple[bytes, Signature]]) -> None:
    """Approve those of registered models, by id, that nobody has approved yet."""
    unchecked = registry.unchecked(db, list(models))
    if unchecked:
        approved = approve(db, [models[key] for key in unchecked])
        for key, signature in zip(unchecked, approved, strict=True):
            note(db, key, signature)


def note(db: Database, model_id: str, signature: Signature) -> None:
    """Note that a registered model was approved, so that no other backend has it checked again."""
    registry.note_checked(db, model_id, signature)
