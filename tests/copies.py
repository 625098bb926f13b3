"""Tables and the registry's rows of a database, to be put into a database of another server.

They are what `pg_dump --data-only` carries, by COPY in its text format, which every version of PostgreSQL reads. As in a restore, a
superuser writes them, the registry's triggers settle whose they are, and a file is checked when it is first asked for.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

# The tables of the extension that pg_dump dumps.
_DUMPED = (
    "SELECT n.nspname, c.relname FROM pg_extension e, unnest(e.extconfig) t JOIN pg_class c ON c.oid = t"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE e.extname = 'pg_distill'"
)
_COLUMNS = (
    "SELECT string_agg(format('%%I %%s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum) FROM pg_attribute"
    " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
)

Copy = tuple[list[tuple[str, str]], dict[tuple[str, str], bytes]]
"""The tables to be created, each with its columns, and the rows of these and of the extension's tables."""


def read(connection: psycopg.Connection, tables: list[str]) -> Copy:
    """Give tables of the schema public, and what the registry holds."""
    defined = []
    for table in tables:
        row = connection.execute(_COLUMNS, (table,)).fetchone()
        assert row is not None and row[0] is not None
        defined.append((table, str(row[0])))
    rows = {}
    for schema, table in [("public", table) for table in tables] + connection.execute(_DUMPED).fetchall():
        with connection.cursor().copy(_copy("COPY {} TO STDOUT", schema, table)) as copy:
            rows[schema, table] = b"".join(copy)
    return defined, rows


def is_in(connection: psycopg.Connection, copied: Copy) -> bool:
    """Say whether a database has the tables already: it is the one that was read."""
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (copied[0][0][0],)).fetchone()
    return row == (True,)


def write(connection: psycopg.Connection, copied: Copy) -> None:
    """Create the tables and put all rows in."""
    defined, rows = copied
    for table, columns in defined:
        connection.execute(
            sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(table), sql.SQL(columns))  # type: ignore[arg-type]
        )
    for (schema, table), data in rows.items():
        with connection.cursor().copy(_copy("COPY {} FROM STDIN", schema, table)) as copy:
            copy.write(data)


def _copy(statement: Any, schema: str, table: str) -> sql.Composed:
    return sql.SQL(statement).format(sql.Identifier(schema, table))
