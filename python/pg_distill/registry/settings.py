"""What an administrator may set, each with its bounds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pg_distill.database.protocol import Database, is_superuser
from pg_distill.errors import (
    InsufficientPrivilege,
    InvalidParameter,
    InvalidState,
)
from pg_distill.registry.model import MAX_NAME_BYTES
from pg_distill.text import printable

__all__ = [
    "SETTINGS",
    "TEXT_SETTINGS",
    "Setting",
    "change_setting",
    "check_setting",
    "get_setting",
    "get_text_setting",
]


@dataclass(frozen=True)
class Setting:
    """A limit that an administrator may change, with its unit and why it is what it is."""

    default: int
    low: int
    high: int
    unit: str
    description: str


SETTINGS: Mapping[str, Setting] = {
    "artifact_limit_mb": Setting(256, 1, 1000, "MB", "largest ONNX file that is registered"),
    "trainer_memory_mb": Setting(8192, 256, 1 << 20, "MB", "address space of a training process"),
    "trainer_threads": Setting(2, 1, 64, "threads", "threads of a training process"),
    "trainer_niceness": Setting(10, 0, 19, "nice", "niceness of the training process"),
    "concurrent_trainings": Setting(
        2, 1, 64, "processes", "distillations at once on this server; more are refused"
    ),
    "concurrent_inspections": Setting(
        2,
        1,
        64,
        "processes",
        "files that are checked at once on this server; more wait, and are refused after 30 s",
    ),
    "inspection_memory_mb": Setting(
        4096, 256, 1 << 20, "MB", "address space of a process that checks a file, at most trainer_memory_mb"
    ),
    "session_cache_mb": Setting(256, 1, 1 << 16, "MB", "artifacts whose sessions a backend keeps"),
    "predict_memory_mb": Setting(
        1024,
        16,
        1 << 20,
        "MB",
        "memory that one run of a model takes at most: rows are predicted in as many runs as that needs",
    ),
}


@dataclass(frozen=True)
class TextSetting:
    """A setting that is a text of a certain form, which ``form`` says in words."""

    default: str
    pattern: str
    form: str
    unit: str
    description: str


TEXT_SETTINGS: Mapping[str, TextSetting] = {
    "executor": TextSetting(
        "local",
        r"local|dask(\+tls)?://[^\s/]+:[0-9]{1,5}",
        '"local", or the address of a Dask scheduler as dask://host:port or dask+tls://host:port',
        "address",
        "where candidates are trained: the training process, or the workers of a Dask scheduler, to which rows are sent",
    ),
}


_SETTING = "select s.value from distill.settings s where s.name operator(pg_catalog.=) $1"


def get_setting(db: Database, name: str) -> int:
    """Return the value in force; InvalidState where its row holds none."""
    return int(_in_force(db, name, str(SETTINGS[name].default)))


def get_text_setting(db: Database, name: str) -> str:
    """Return the value in force; InvalidState where its row holds none."""
    return _in_force(db, name, TEXT_SETTINGS[name].default)


def _in_force(db: Database, name: str, default: str) -> str:
    rows = db.query_exact(_SETTING, ("text", name))
    if not rows:
        return default
    try:
        _check_value(name, rows[0]["value"])
    except InvalidParameter as error:
        raise InvalidState(
            f'setting "{name}" has the value "{printable(rows[0]["value"][:MAX_NAME_BYTES])}", which is none of its own',
            hint=f"Run SELECT distill.change_setting('{name}', NULL) as an administrator.",
        ) from error
    return str(rows[0]["value"])


def check_setting(db: Database, name: str, value: str | None) -> None:
    """Refuse a value that a setting does not take, or that the current role may not give it; None takes it back.

    Raises
    ------
    InvalidParameter
        There is no such setting, or it takes no such value.
    InsufficientPrivilege
        Only a superuser may change it.
    """
    _check_value(name, value)
    if name in TEXT_SETTINGS and not is_superuser(db):
        raise InsufficientPrivilege(
            f'setting "{name}" is for superusers',
            detail="Whoever names the scheduler runs code as the server.",
        )


def _check_value(name: str, value: str | None) -> None:
    setting = SETTINGS.get(name) or TEXT_SETTINGS.get(name)
    if setting is None:
        known = ", ".join([*SETTINGS, *TEXT_SETTINGS])
        raise InvalidParameter(f'setting "{name}" does not exist', hint=f"There are {known}.")
    if value is None:
        return
    if isinstance(setting, TextSetting):
        if not re.fullmatch(setting.pattern, value):
            raise InvalidParameter(f'setting "{name}" takes {setting.form}, not "{value}"')
    elif not re.fullmatch(r"[0-9]{1,9}", value) or not setting.low <= int(value) <= setting.high:
        raise InvalidParameter(
            f'setting "{name}" takes a whole number from {setting.low} to {setting.high} {setting.unit}, not "{value}"'
        )


def change_setting(db: Database, name: str, value: str | None) -> None:
    """Set a setting, or take it back to its default with None; errors as of `check_setting`."""
    check_setting(db, name, value)
    if value is None:
        db.query("delete from distill.settings s where s.name = $1", ("text", name))
        return
    db.query(
        "insert into distill.settings (name, value) values ($1, $2) on conflict (name) do update"
        " set value = excluded.value, changed_at = now(), changed_by = current_user",
        ("text", name),
        ("text", value),
    )
