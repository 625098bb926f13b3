"""The search_path under which our own statements run: the caller's decides only over what the caller wrote."""

from __future__ import annotations

__all__ = ["PINNED", "PIN_FOR_GOOD", "PIN_HERE", "SCHEMAS", "SET_PATH", "is_missing"]


def is_missing(sqlstate: str | None) -> bool:
    """Whether an error says that something is not there, not allowed or not readable, whoever asks again."""
    return sqlstate is not None and sqlstate.startswith("42")


PINNED = "pg_catalog, pg_temp"
"""The search_path of statements of ours: nothing that anybody could have planted is looked up, temporary objects last."""


_PIN = (
    "select pg_catalog.current_setting('search_path') as path,"
    f" pg_catalog.set_config('search_path', '{PINNED}', {{}}) as pinned"
)


PIN_HERE, PIN_FOR_GOOD = _PIN.format("true"), _PIN.format("false")
SET_PATH = "select pg_catalog.set_config('search_path', $1, true) as path"
SCHEMAS = "select pg_catalog.current_schemas(true) as schemas"
