"""init: the extension made in a database, or what keeps it from working there."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pg_distill import __version__
from pg_distill.cli.connection import (
    DONE,
    connect,
    rows_of,
)
from pg_distill.cli.terminal import show

if TYPE_CHECKING:
    import psycopg

__all__ = ["Examination", "init", "init_options"]

MIN_SERVER = 15


def init_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="look only, change nothing")
    parser.add_argument("--schema", help="where distill_model is created (default: public)")


def init(arguments: argparse.Namespace) -> int:
    """Create or update the extension, and say what blocks it and what to do; the exit code says which it is."""
    with connect(arguments) as connection:
        doctor = Examination(connection)
        doctor.look_at_server()
        if not arguments.check and not doctor.faults():
            doctor.create(arguments.schema or "public")
        doctor.look_at_extension()
        doctor.look_at_module()
    show(arguments, doctor.found)
    return min(doctor.faults(), default=DONE)


class Examination:
    """What ``init`` looks at, and what it found: ``found`` has a row for each check."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.found: list[dict[str, Any]] = []
        [self._server] = rows_of(
            connection,
            "SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int / 10000 AS major,"
            " current_user::text AS role, pg_is_in_recovery() AS standby, getdatabaseencoding()::text AS encoding,"
            " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser",
        )
        available = {
            row["name"]: row
            for row in rows_of(
                connection,
                "SELECT name, default_version, installed_version FROM pg_available_extensions"
                " WHERE name IN ('plpython3u', 'pg_distill')",
            )
        }
        self._has_python = "plpython3u" in available
        self._offered = available["pg_distill"]["default_version"] if "pg_distill" in available else None
        # Its files may have gone since it was created.
        installed = rows_of(connection, "SELECT extversion FROM pg_extension WHERE extname = 'pg_distill'")
        self._installed = installed[0]["extversion"] if installed else None

    def faults(self) -> list[int]:
        """Return the exit codes of what is wrong."""
        return [row["code"] for row in self.found if not row["ok"]]

    def _note(self, check: str, fault: str | None, found: Any, advice: str | None = None) -> None:
        from pg_distill.probe import FAULTS

        code, usual = FAULTS[fault] if fault is not None else (DONE, "")
        self.found.append(
            {
                "check": check,
                "ok": fault is None,
                "code": code,
                "found": str(found),
                "what to do": (advice or usual).replace("{major}", str(self._server["major"])),
            }
        )

    def look_at_server(self) -> None:
        """Look at what CREATE EXTENSION needs."""
        server = self._server
        self._note(
            "server",
            None if server["major"] >= MIN_SERVER else "server_old",
            f"PostgreSQL {server['version']}",
        )
        self._note("encoding", None if server["encoding"] == "UTF8" else "encoding", server["encoding"])
        self._note(
            "PL/Python",
            None if self._has_python else "no_plpython",
            "available" if self._has_python else "the server has no extension plpython3u",
        )
        if self._offered is None:
            self._note(
                "extension files", "no_extension_files", "the server has no control file of pg_distill"
            )
        else:
            same = self._offered == __version__
            client = "" if same else f"; this client is {__version__}"
            self._note("extension files", None if same else "other_release", f"{self._offered}{client}")

    def create(self, schema: str) -> None:
        """Create the extension, or update it to what its files offer."""
        import psycopg
        from psycopg import sql

        if self._installed == self._offered:
            return
        try:
            if self._installed is not None:
                self._connection.execute("ALTER EXTENSION pg_distill UPDATE")
            else:
                where = sql.SQL("CREATE EXTENSION pg_distill SCHEMA {} CASCADE").format(
                    sql.Identifier(schema)
                )
                self._connection.execute(where)
            self._installed = self._offered
        except psycopg.errors.InsufficientPrivilege:
            self._note(
                "privilege",
                "privilege",
                f'role "{self._server["role"]}" may not create the extension: PL/Python is an untrusted language',
                "Run this as a superuser.",
            )
        except psycopg.Error as error:
            # Why the module cannot be used is looked at below.
            self._look_by_probe()
            if not self.faults():
                hint = error.diag.message_hint
                self._note("create", "not_examined", error.diag.message_primary or error, hint)

    def look_at_extension(self) -> None:
        """Look at whether it is there, and of the release that its files are of."""
        if self._installed is None:
            self._note("extension", "not_created", "not created in this database")
        elif self._offered is not None and self._installed != self._offered:
            self._note("extension", "not_updated", f"{self._installed}; its files are {self._offered}")
        else:
            self._note("extension", None, self._installed)

    def look_at_module(self) -> None:
        """Look, in a backend, at the module, what it depends on, and the training process."""
        import psycopg

        from pg_distill.probe import describe_traceback

        if any(row["check"] == "Python module" for row in self.found):
            return
        if self._installed is not None:
            try:
                for row in rows_of(self._connection, "SELECT * FROM distill._check_server()"):
                    self._note(row["check"], row["fault"], row["found"], row["advice"])
                return
            except psycopg.errors.InsufficientPrivilege as error:
                role = self._server["role"]
                self._note("privilege", "privilege", f'role "{role}": {error.diag.message_primary}')
                return
            except psycopg.errors.UndefinedFunction:
                pass  # of an older release
            except psycopg.Error as error:
                if not self._server["superuser"]:
                    fault, found = describe_traceback(str(error.diag.message_primary))
                    self._note("Python module", fault, found)
                    return
        self._look_by_probe()

    def _look_by_probe(self) -> None:
        """Look where no function of the extension can: by a DO, which takes a superuser."""
        import psycopg

        from pg_distill import probe

        if not (self._server["superuser"] and self._has_python):
            return
        text = Path(probe.__file__).read_text(encoding="utf-8")
        body = _PROBE.format(text=repr(text), expected=repr(self._installed or self._offered))
        tag = "$pg_distill$"
        assert tag not in body
        try:
            # PL/Python goes again with the transaction, if this database has not had it.
            with self._connection.transaction(force_rollback=True):
                if not self._server["standby"]:
                    self._connection.execute("CREATE EXTENSION IF NOT EXISTS plpython3u")
                self._connection.execute(f"DO LANGUAGE plpython3u {tag}\n{body}{tag}")
                [row] = rows_of(self._connection, "SELECT current_setting('pg_distill.found') AS found")
        except psycopg.Error as error:
            self._note("Python module", "not_examined", error.diag.message_primary or error)
            return
        for check, fault, found in json.loads(row["found"]):
            self._note(check, fault, found)


# With the text of probe.py, which finds what the server's module is, and the version that it should have.
_PROBE = """
import json
probe = {{"__name__": "probe"}}
exec(compile({text}, "probe.py", "exec"), probe)
found = probe["look_for_module"]({expected})
if not any(fault for check, fault, what in found):
    try:
        from pg_distill import sqlapi
        found = [row[:3] for row in sqlapi.check_server(plpy)]
    except Exception as error:
        found.append(("training process", *probe["describe_import"](error)))
plan = plpy.prepare("select pg_catalog.set_config('pg_distill.found', $1, true)", ["text"])
plpy.execute(plan, [json.dumps(found)])
"""
