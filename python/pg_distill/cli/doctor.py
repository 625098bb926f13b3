"""What is wrong with this server: with the module, with what it depends on, with a training process that is started as any is."""

from __future__ import annotations

import errno

from pg_distill import __version__
from pg_distill.child.process import Limits
from pg_distill.child.trainer import Trainer
from pg_distill.database import protocol
from pg_distill.database.protocol import Database
from pg_distill.errors import InvalidState, OutOfMemory, TrainerDied
from pg_distill.probe import (
    FAULTS,
    IN_BACKEND,
    REQUIREMENTS,
    Finding,
    compare_versions,
    describe_traceback,
    look_for_dependency,
)
from pg_distill.serving.approval import trainer_limits

__all__ = ["check_server"]

LEAST_BYTES = 512 << 20  # of address space: less than what all imports need with their threads


def check_server(db: Database) -> list[tuple[str, str | None, str, str | None]]:
    """Look at all that training and predictions need of this server, from a backend of it.

    Returns
    -------
    What was looked at, the fault (a key of ``FAULTS``) or None, what was found, and what to do about a fault.
    """
    installed = protocol.extension_version(db)
    findings = [_module(installed), *_dependencies(), *_search_path(db)]
    try:
        limits = trainer_limits(db) if installed is not None else Limits()
    except InvalidState as error:
        findings.append(("settings", "setting", error.message))
    else:
        findings += _training_process(db, limits)
    return [
        (check, fault, found, FAULTS[fault][1] if fault is not None else None)
        for check, fault, found in findings
    ]


def _module(installed: str | None) -> Finding:
    fault = compare_versions(__version__, installed)
    against = f"; the extension is {installed}" if fault is not None else ""
    return ("Python module", fault, f"{__version__}{against}")


def _dependencies() -> list[Finding]:
    return [look_for_dependency(r) for r in REQUIREMENTS if r.split()[0] in IN_BACKEND]


def _search_path(db: Database) -> list[Finding]:
    try:
        db.check_search_path()
    except InvalidState as error:
        return [("search_path", "search_path", error.message)]
    return []


def _training_process(db: Database, limits: Limits) -> list[Finding]:
    check = "training process"
    try:
        with Trainer(limits, db.check_interrupts) as trainer:
            own, found = trainer.look()
    except (OutOfMemory, TrainerDied) as error:
        said = f"{error.message}: {_last_line(error.detail)}" if error.detail else error.message
        return [(check, *_death(error, said, limits))]
    broken = [f for f in found if f[1] is not None]
    if broken and limits.memory_bytes < LEAST_BYTES:
        # What a library says that was given no memory is its own affair.
        return [(check, "out_of_memory", _too_little(broken[0][2], limits))]
    return [(check, None, own), *broken]


def _death(error: OutOfMemory | TrainerDied, said: str, limits: Limits) -> tuple[str, str]:
    """Return the fault of a training process that did not come as far as to answer, and what was found."""
    # Libraries that are given no memory may also crash, or try for ever.
    if isinstance(error, OutOfMemory) or limits.memory_bytes < LEAST_BYTES:
        return "out_of_memory", _too_little(said, limits)
    cause = error.__cause__
    if isinstance(cause, OSError):
        refused = cause.errno in (errno.EAGAIN, errno.ENOMEM)
        return "no_process" if refused else "python_not_runnable", said
    # Where it died while it imported, what Python said last tells.
    return describe_traceback(error.detail)[0] if error.detail else "trainer_died", said


def _too_little(said: str, limits: Limits) -> str:
    return f"{said}, with trainer_memory_mb at {limits.memory_bytes >> 20}"


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
