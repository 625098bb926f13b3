"""``pg-distill``: the extension from a shell, over psycopg.

One subcommand is one function, listed in ``COMMANDS``: it gets the parsed arguments and returns an exit code. What a
subcommand prints goes through ``show``: tables for people, one JSON document with ``--json``. Progress and warnings go to
stderr. All of it goes through ``print_line``: names, errors and file names are others' text, which a terminal would obey.

Exit codes
    0 done; 1 refused, by the server or by a check (the SQLSTATE is shown); 2 wrong usage; 3 no connection;
    4 distilled, but no student earned a place; 6 ``check`` found a figure that no longer holds; 7 psycopg is missing:
    ``pip install 'pg_distill[client]'``; from 10 on what ``init`` found, see ``probe.FAULTS``; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

from pg_distill import __version__
from pg_distill.cli.connection import (
    INTERRUPTED,
    NO_CONNECTION,
    NOT_INSTALLED,
    REFUSED,
    USAGE,
    Misused,
    Unreachable,
)
from pg_distill.cli.exchange import export, export_options, import_, import_options
from pg_distill.cli.jobs import cancel, jobs, run_option, worker, worker_options
from pg_distill.cli.models import (
    models,
    name_option,
    predict,
    predict_options,
    prune,
    prune_options,
    register,
    register_options,
)
from pg_distill.cli.runs import (
    check,
    check_options,
    distill,
    distill_options,
    frontier,
    report,
    report_options,
    runs,
)
from pg_distill.cli.setup import init, init_options
from pg_distill.cli.terminal import print_line, warn
from pg_distill.errors import (
    PgDistillError,
)
from pg_distill.text import printable

__all__ = ["COMMANDS", "main"]


# -- subcommands ----------------------------------------------------------------------------------------------------


Command = Callable[[argparse.Namespace], int]

COMMANDS: Mapping[str, tuple[Command, Callable[[argparse.ArgumentParser], None] | None]] = {
    "init": (init, init_options),
    "register": (register, register_options),
    "models": (models, name_option),
    "distill": (distill, distill_options),
    "runs": (runs, name_option),
    "frontier": (frontier, name_option),
    "predict": (predict, predict_options),
    "export": (export, export_options),
    "import": (import_, import_options),
    "report": (report, report_options),
    "check": (check, check_options),
    "prune": (prune, prune_options),
    "jobs": (jobs, None),
    "cancel": (cancel, run_option),
    "worker": (worker, worker_options),
}
"""Each subcommand's function, and the one that adds its options."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with its arguments, which it repeats, by ``print_line``."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            print_line(message.removesuffix("\n"), file if file is not None else sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pg-distill", description="Distil models inside PostgreSQL.")
    parser.add_argument("-V", action="version", version=f"pg-distill {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--dsn", help="libpq's connection string; without it PGHOST, PGUSER ... hold")
    common.add_argument("--json", action="store_true", help="print one JSON document")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (function, add_options) in COMMANDS.items():
        said = (function.__doc__ or "").strip()
        added = commands.add_parser(name, help=said, description=said, parents=[common])
        if add_options is not None:
            add_options(added)
        added.set_defaults(function=function)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``pg-distill``; return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the terminal's encoding lacks
    parsed = _parser().parse_args(arguments)
    function: Command = parsed.function
    try:
        import psycopg
    except ImportError as error:
        warn(f"pg-distill: psycopg cannot be imported: {error}")
        warn("  Install it with what the command line needs: pip install 'pg_distill[client]'.")
        return NOT_INSTALLED
    try:
        return function(parsed)
    except Unreachable as error:
        warn(f"pg-distill: {error}")
        return NO_CONNECTION
    except Misused as error:
        warn(f"pg-distill: {error}")
        return USAGE
    except UnicodeEncodeError:
        warn("pg-distill: an argument is no text in the terminal's encoding")
        return USAGE
    except PgDistillError as error:
        _complain(error.sqlstate, error.message, error.detail, error.hint)
    except psycopg.OperationalError as error:
        if error.sqlstate is None:
            warn(f"pg-distill: {error}")
            return NO_CONNECTION
        _complain(error.sqlstate, str(error.diag.message_primary), None, error.diag.message_hint)
    except psycopg.Error as error:
        diagnostic = error.diag
        _complain(
            error.sqlstate,
            diagnostic.message_primary or str(error),
            diagnostic.message_detail,
            diagnostic.message_hint,
        )
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who reads our output has enough of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return REFUSED


def _complain(sqlstate: str | None, message: str, detail: str | None, hint: str | None) -> None:
    state = f" ({sqlstate})" if sqlstate is not None else ""
    warn(f"pg-distill: {message.removeprefix('plpy.Error: ')}{state}")
    for text in (detail, hint):
        if text:
            warn(f"  {text}")
