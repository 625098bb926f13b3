"""The reference: what the catalog of an installed pg_distill says of itself, as Markdown.

``python tests/docs/reference.py`` writes it to extension/doc; a test holds the two together.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psycopg
import servers

__all__ = ["FILE", "reference"]

FILE = Path(__file__).resolve().parents[2] / "extension" / "doc" / "pg_distill-reference.md"

_OURS = "JOIN pg_depend d ON d.deptype = 'e' AND d.objid = {0}.oid JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_distill'"

_FUNCTIONS = f"""
SELECT CASE n.nspname WHEN 'distill' THEN 'distill.' ELSE '' END || p.proname, pg_get_function_arguments(p.oid),
       pg_get_function_result(p.oid), obj_description(p.oid, 'pg_proc')
FROM pg_proc p {_OURS.format("p")} AND d.classid = 'pg_proc'::regclass JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE p.proname !~ '^_' ORDER BY p.proname <> 'distill_model', p.proname COLLATE "C", pg_get_function_arguments(p.oid) COLLATE "C"
"""

_RELATIONS = f"""
SELECT c.oid, c.relname, obj_description(c.oid, 'pg_class')
FROM pg_class c {_OURS.format("c")} AND d.classid = 'pg_class'::regclass
WHERE c.relkind IN ('r', 'v') AND c.relname !~ '^_' ORDER BY c.relkind = 'v', c.relname COLLATE "C"
"""

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), col_description(a.attrelid, a.attnum)
FROM pg_attribute a WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""

HEAD = """# Reference

Made from the comments of the SQL objects by `make docs`; `\\df+ distill.*` and `\\d+ distill.models` say the same in psql. A model
is named by `name`, which is its active version, or by `name:version`.
"""


WIDTH = 100  # of a signature in one line


def _signature(name: str, arguments: str) -> str:
    """Write a function with its arguments, one a line where they are many."""
    plain = re.sub(r"(DEFAULT (?:NULL|'[^']*'))::[\w \[\]]+", r"\1", arguments)
    if len(plain) <= WIDTH:
        return f"{name}({plain})"
    each = re.split(r', (?=(?:(?:OUT|INOUT|VARIADIC) )?["\w]+ )', plain)
    return f"{name}(\n    " + ",\n    ".join(each) + "\n)"


def _sentence(comment: str) -> str:
    """Write a comment, which begins as a phrase of psql's, as the document's sentences."""
    return comment[0].upper() + comment[1:] + ("" if comment.endswith(".") else ".")


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def reference(connection: psycopg.Connection) -> str:
    """Return the reference of the extension that is installed in a database."""
    parts = [HEAD, "## Functions\n"]
    for name, arguments, result, comment in connection.execute(_FUNCTIONS):
        # What it gives stands in the arguments already where they are OUT ones.
        given = "" if " OUT " in f" {arguments}" or "INOUT " in arguments else f" → {result}"
        parts.append(
            f"### `{name}`\n\n{_sentence(comment)}\n\n```text\n{_signature(name, arguments)}{given}\n```\n"
        )
    parts.append(
        "## Settings\n\nRead by `distill.show_settings()`, set by `distill.change_setting(name, value)`.\n"
    )
    settings = connection.execute("SELECT name, value, unit, description FROM distill.show_settings()")
    parts.append(
        "| setting | default | unit | |\n|---|---|---|---|\n"
        + "".join(
            f"| `{name}` | {_cell(value)} | {_cell(unit)} | {_cell(text)} |\n"
            for name, value, unit, text in settings
        )
    )
    parts.append("## Tables and views\n")
    for oid, name, comment in connection.execute(_RELATIONS).fetchall():
        columns = connection.execute(_COLUMNS, (oid,)).fetchall()
        parts.append(f"### `distill.{name}`\n\n{_sentence(comment)}\n")
        rows = "".join(f"| `{column}` | {kind} | {_cell(text)} |\n" for column, kind, text in columns)
        parts.append(f"| column | type | |\n|---|---|---|\n{rows}")
    return "\n".join(parts)


def main() -> None:
    """Write the reference from the first server that can be had here."""
    usable = [name for name, fault in servers.available().items() if fault is None]
    if not usable:
        sys.exit(f"no server can be had here: {servers.available()}")
    with servers.start("local" if "local" in usable else usable[0]) as server:
        servers.create_database(server, "pg_distill_docs")
        with server.connect("pg_distill_docs") as connection:
            FILE.write_text(reference(connection))


if __name__ == "__main__":
    main()
