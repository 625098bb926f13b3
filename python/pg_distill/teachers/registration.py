"""What a model is registered with, whatever kind of model it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pg_distill.database.protocol import Database
from pg_distill.errors import InvalidParameter, NullNotAllowed
from pg_distill.frame import Task
from pg_distill.registry import rights
from pg_distill.registry.model import check_name

__all__ = ["Registration", "checked"]


@dataclass(frozen=True)
class Registration:
    """A model's names, and the rows that it is for.

    ``features`` is None where the model's file or the sample's columns say them.
    """

    name: str
    version: str | None
    task: Task | None
    classes: Sequence[str] | None
    features: Sequence[str] | None
    sample: str | None
    label: str | None
    text_columns: Sequence[str] | None = None
    """Columns of strings that are texts, where whoever registers it says so."""


def checked(
    db: Database,
    *,
    name: str | None,
    version: str | None,
    task: str | None,
    classes: Sequence[str | None] | None,
    features: Sequence[str] | None,
    sample: str | None,
    label: str | None,
    text_columns: Sequence[str] | None = None,
) -> Registration:
    """Return what was asked for, where a model may be registered so; the rows are not looked at yet.

    Raises
    ------
    NullNotAllowed, InvalidName, InvalidParameter
        The name, the task, the features or the classes cannot be so.
    InsufficientPrivilege
        The name is another role's.
    """
    if name is None:
        raise NullNotAllowed("name must not be NULL")
    check_name(name)
    rights.require_name(db, name)
    if version is not None:
        check_name(version, "version")
    if task not in (None, "binary", "multiclass", "multilabel", "regression"):
        raise InvalidParameter(
            f'task "{task}" does not exist', hint="Tasks are binary, multiclass, multilabel and regression."
        )
    if features is not None and not features:
        raise InvalidParameter("features must name at least one column")
    if classes is not None:
        if any(c is None for c in classes):
            raise NullNotAllowed("classes must not be NULL")
        if len(set(classes)) < len(classes):
            raise InvalidParameter("a class is named more than once")
    return Registration(
        name, version, cast(Task | None, task), cast(Sequence[str] | None, classes), features, sample, label,
        text_columns,
    )  # fmt: skip
