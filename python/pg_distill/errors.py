"""Exceptions, each with the SQLSTATE under which PostgreSQL reports it.

::

    PgDistillError                38000  a fault of ours, or a kind not listed
     +-- InvalidParameter         22023  option value out of range or unknown
     +-- NullNotAllowed           22004  NULL where a value is required
     +-- InvalidData              22000  features, labels or rows do not fit
     +-- ValueOutOfRange          22003  a number that double precision does not hold
     +-- UndefinedColumn          42703
     +-- DatatypeMismatch         42804
     +-- UndefinedObject          42704  a run, a job
 |    +-- UndefinedModel      42704
     +-- DuplicateModel           42710
     +-- InvalidName              42602
     +-- InvalidArtifact          22P03  not readable as ONNX
     +-- LimitExceeded            54000  refused by a limit
     +-- FeatureNotSupported      0A000  refused by a rule
     +-- InvalidState             55000  object not in the state that this needs
     +-- ReadOnlyViolation        25006  a query that only reads did more
     +-- DependentObjects         2BP01  others depend on it
     +-- InsufficientPrivilege    42501
     +-- ArtifactCorrupted        XX001  artifact does not match its digest
     +-- TrainerDied              58000  the training process ended, or sent nonsense
     +-- TooManyTrainings         53400  as many run as the administrator allows
     +-- TooManyInspections       53400  as many files are checked
     +-- OutOfMemory              53200  the training process reached its memory limit
     +-- DiskFull                 53100  the training process found no room for a file

Nothing below ``sqlapi`` knows ``plpy``; ``sqlapi`` turns these into ``plpy.error`` in one place.
"""

from __future__ import annotations

__all__ = [
    "ArtifactCorrupted",
    "DatatypeMismatch",
    "DependentObjects",
    "DiskFull",
    "DuplicateModel",
    "FeatureNotSupported",
    "InsufficientPrivilege",
    "InvalidArtifact",
    "InvalidData",
    "InvalidName",
    "InvalidParameter",
    "InvalidState",
    "LimitExceeded",
    "NullNotAllowed",
    "OutOfMemory",
    "PgDistillError",
    "ReadOnlyViolation",
    "TooManyInspections",
    "TooManyTrainings",
    "TrainerDied",
    "UndefinedColumn",
    "UndefinedModel",
    "UndefinedObject",
    "ValueOutOfRange",
    "by_sqlstate",
]


class PgDistillError(Exception):
    """Base class.

    Parameters
    ----------
    message
        The primary message: lower case, one line, no period, objects quoted with their kind.
    detail, hint
        Full sentences, only where they say something that the message does not.
    """

    sqlstate = "38000"

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint


class InvalidParameter(PgDistillError):
    sqlstate = "22023"


class NullNotAllowed(PgDistillError):
    sqlstate = "22004"


class InvalidData(PgDistillError):
    sqlstate = "22000"


class ValueOutOfRange(PgDistillError):
    sqlstate = "22003"


class UndefinedColumn(PgDistillError):
    sqlstate = "42703"


class DatatypeMismatch(PgDistillError):
    sqlstate = "42804"


class UndefinedObject(PgDistillError):
    sqlstate = "42704"


class UndefinedModel(UndefinedObject):
    pass


class DuplicateModel(PgDistillError):
    sqlstate = "42710"


class InvalidName(PgDistillError):
    sqlstate = "42602"


class InvalidArtifact(PgDistillError):
    sqlstate = "22P03"


class LimitExceeded(PgDistillError):
    sqlstate = "54000"


class FeatureNotSupported(PgDistillError):
    sqlstate = "0A000"


class InvalidState(PgDistillError):
    sqlstate = "55000"


class ReadOnlyViolation(PgDistillError):
    sqlstate = "25006"


class DependentObjects(PgDistillError):
    sqlstate = "2BP01"


class InsufficientPrivilege(PgDistillError):
    sqlstate = "42501"


class ArtifactCorrupted(PgDistillError):
    sqlstate = "XX001"


class TrainerDied(PgDistillError):
    sqlstate = "58000"


class TooManyTrainings(PgDistillError):
    sqlstate = "53400"


class TooManyInspections(PgDistillError):
    sqlstate = "53400"


class OutOfMemory(PgDistillError):
    sqlstate = "53200"


class DiskFull(PgDistillError):
    sqlstate = "53100"


def by_sqlstate(sqlstate: str) -> type[PgDistillError]:
    """Return the class that carries ``sqlstate``; the base class where none does.

    The trainer's child reports its errors as (sqlstate, message, detail, hint); this is the way back.
    """
    for cls in PgDistillError.__subclasses__():
        if cls.sqlstate == sqlstate:
            return cls
    return PgDistillError
