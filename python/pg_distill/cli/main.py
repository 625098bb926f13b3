"""``pg-distill``: the extension from a shell, over psycopg.

One subcommand is one function, listed in ``COMMANDS``: it gets the parsed arguments and returns an exit code. What a
subcommand prints goes through ``_show``: tables for people, one JSON document with ``--json``. Progress and warnings go to
stderr. All of it goes through ``_print``: names, errors and file names are others' text, which a terminal would obey.

Exit codes
    0 done; 1 refused, by the server or by a check (the SQLSTATE is shown); 2 wrong usage; 3 no connection;
    4 distilled, but no student earned a place; 6 ``check`` found a figure that no longer holds; 7 psycopg is missing:
    ``pip install 'pg_distill[client]'``; from 10 on what ``init`` found, see ``probe.FAULTS``; 130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from pg_distill import __version__
from pg_distill.errors import (
    FeatureNotSupported,
    InvalidArtifact,
    InvalidParameter,
    InvalidState,
    LimitExceeded,
    PgDistillError,
)
from pg_distill.text import printable, storable

if TYPE_CHECKING:
    import psycopg

__all__ = ["COMMANDS", "main"]

DONE, REFUSED, USAGE, NO_CONNECTION, NO_STUDENT = range(5)
NO_LONGER_HOLDS, NOT_INSTALLED = 6, 7
INTERRUPTED = 130

MIN_SERVER = 15
MANIFEST_FORMAT = 1  # of what `export` writes and `import` reads
MAX_FILE_BYTES = 1000 << 20  # what the setting artifact_limit_mb lets in at most
MAX_MANIFEST_BYTES = 16 << 20  # of 10,000 features with long names
BAR_SECONDS = 0.2  # between redraws
BAR_WIDTH = 24

# distill_model's optional arguments: type and help.
_OPTIONS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "target_latency_ms": (
        float,
        "mean call latency, whose upper 95 %% bound has to be within it (default 5)",
    ),
    "min_accuracy": (
        float,
        "floor of the metric on the test rows (default 0.8 where it means something, else half of what the teacher adds to"
        " the majority)",
    ),
    "temperature": (float, "the softest that the search may use (default 4)"),
    "epochs": (int, "most passes of an iterative student (default 10)"),
    "seed": (int, "of sample, split, training and bootstrap (default 42)"),
    "metric": (str, "accuracy, balanced_accuracy, roc_auc, ..., r2, agreement"),
    "sample": (str, "a relation or a query (default: the teacher's)"),
    "label": (str, "the column that holds the truth (default: the teacher's)"),
    "max_rows": (int, "labelled rows that are drawn (default 100000)"),
    "time_budget_s": (float, "of labelling and search (default 120)"),
    "student_name": (str, "default: TEACHER_distilled"),
    "families": (lambda text: text.split(","), "student families to try, with commas between (default: all)"),
    "group_column": (str, "rows of one group stay on one side of the split"),
    "time_column": (str, "the newest rows are for test"),
    "weight_column": (str, "sample weights"),
    "trained_on": (str, "a query for the rows that the teacher was trained on"),
    "prefer": (str, "accurate, knee or fast: which student within target and floor (default accurate)"),
}


# -- connection and output ------------------------------------------------------------------------------------------


class _Unreachable(Exception):
    """No connection."""


class _Misused(Exception):
    """Wrong usage that the parser does not see."""


def _connect(arguments: argparse.Namespace) -> psycopg.Connection[Any]:
    """Connect by --dsn and libpq's environment, rows as dictionaries, in autocommit mode."""
    import psycopg
    from psycopg.rows import dict_row

    try:
        return psycopg.connect(
            arguments.dsn or "",
            autocommit=True,
            row_factory=dict_row,
            fallback_application_name="pg-distill",
            client_encoding="UTF8",  # also of a database in SQL_ASCII, whose texts would be bytes here
        )
    except psycopg.OperationalError as error:
        raise _Unreachable(str(error)) from error
    except psycopg.ProgrammingError as error:
        # What libpq says quotes the part that it does not understand, which may be a part of a password.
        raise _Misused("--dsn is no connection string of libpq") from error


def _print(text: str, file: TextIO | None = None) -> None:
    """Write lines to stdout, or to ``file``: the one place where text goes to where a terminal may be."""
    out = file if file is not None else sys.stdout
    out.write(printable(text, keep="\n") + "\n")
    out.flush()


def _rows(connection: psycopg.Connection[Any], query: str, *values: Any) -> list[dict[str, Any]]:
    cursor = connection.execute(query, values or None)
    return list(cursor.fetchall()) if cursor.description is not None else []


def _show(arguments: argparse.Namespace, rows: Sequence[Mapping[str, Any]], empty: str = "nothing") -> None:
    """Print rows as a table, or as JSON."""
    if arguments.json:
        plain = [{key: _finite(value) for key, value in row.items()} for row in rows]
        _print(json.dumps(plain, default=_plain, indent=2, allow_nan=False).replace("\x7f", "\\u007f"))
        return
    if not rows:
        _print(empty)
        return
    titles = list(rows[0])
    cells = [[printable(_cell(row[title])) for title in titles] for row in rows]
    widths = [max(len(line[i]) for line in [titles, *cells]) for i in range(len(titles))]
    for line in [titles, *cells]:
        _print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _finite(value: Any) -> Any:
    """Write NaN and infinities as PostgreSQL's json does: JSON has none, so as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return str(value)


def _warn(text: str) -> None:
    # Indented, so that no line of it looks like one of ours.
    _print("\n    ".join(text.splitlines()), sys.stderr)


class _Bar:
    """A progress bar on a terminal; elsewhere a line each time that the stage changes."""

    def __init__(self, time_budget_s: float) -> None:
        from pg_distill.runs.progress import Progress

        self._progress = Progress(time_budget_s)
        self._terminal = sys.stderr.isatty()
        self._told = ""

    def take(self, stage: str, done: float, candidate: str | None) -> None:
        """Take in what a run says of itself."""
        self._progress.watch(stage, done, candidate)

    def draw(self, line: tuple[str, float, str | None, float] | None = None) -> None:
        """Draw how far it is: ``line`` is stage, progress (0..1), candidate and seconds left."""
        stage, part, candidate, left = line if line is not None else self._progress.now()
        what = f"{stage}{': ' + candidate if candidate else ''}"
        if self._terminal:
            full = int(part * BAR_WIDTH)
            text = printable(
                f"[{'#' * full}{'.' * (BAR_WIDTH - full)}] {part:4.0%}  {left:3.0f} s left  {what}"
            )
            _width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{text[:_width]}")
            sys.stderr.flush()
        elif stage != self._told:
            _warn(f"{part:4.0%}  {left:3.0f} s left  {what}")
        self._told = stage

    def clear(self) -> None:
        """Leave the line to what is printed next."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


# -- subcommands ----------------------------------------------------------------------------------------------------


def _init_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="look only, change nothing")
    parser.add_argument("--schema", help="where distill_model is created (default: public)")


def init(arguments: argparse.Namespace) -> int:
    """Create or update the extension, and say what is in the way and what to do; the exit code says which it is."""
    with _connect(arguments) as connection:
        doctor = _Doctor(connection)
        doctor.look_at_server()
        if not arguments.check and not doctor.faults():
            doctor.create(arguments.schema or "public")
        doctor.look_at_extension()
        doctor.look_at_module()
    _show(arguments, doctor.found)
    return min(doctor.faults(), default=DONE)


class _Doctor:
    """What ``init`` looks at, and what it found: ``found`` has a row for each check."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.found: list[dict[str, Any]] = []
        [self._server] = _rows(
            connection,
            "SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int / 10000 AS major,"
            " current_user::text AS role, pg_is_in_recovery() AS standby, getdatabaseencoding()::text AS encoding,"
            " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser",
        )
        available = {
            row["name"]: row
            for row in _rows(
                connection,
                "SELECT name, default_version, installed_version FROM pg_available_extensions"
                " WHERE name IN ('plpython3u', 'pg_distill')",
            )
        }
        self._has_python = "plpython3u" in available
        self._offered = available["pg_distill"]["default_version"] if "pg_distill" in available else None
        # Its files may have gone since it was created.
        installed = _rows(connection, "SELECT extversion FROM pg_extension WHERE extname = 'pg_distill'")
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
                for row in _rows(self._connection, "SELECT * FROM distill._check_server()"):
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
                [row] = _rows(self._connection, "SELECT current_setting('pg_distill.found') AS found")
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


def _register_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the model's name in the registry")
    from pg_distill.conversion.convert import KINDS

    parser.add_argument("model", help=KINDS)
    parser.add_argument("--sample", help="relation or query whose rows the model is for")
    parser.add_argument("--label", help="column of the sample that holds the truth")
    parser.add_argument(
        "--features", type=lambda text: text.split(","), help="columns in order, with commas between"
    )
    parser.add_argument("--version")
    parser.add_argument("--task", choices=("binary", "multiclass", "regression"))
    parser.add_argument(
        "--classes", type=lambda text: text.split(","), help="classes in order, with commas between"
    )
    parser.add_argument(
        "--expected", help="of an .onnx file: the column of the sample that holds what it is to predict"
    )
    parser.add_argument(
        "--class-threshold",
        type=float,
        help="of an .onnx file of two classes: the probability from which it names the last one",
    )
    parser.add_argument(
        "--allow-difference",
        action="store_true",
        help="register a model that predicts otherwise than its own library, which the registry then says",
    )


_REGISTER = (
    "SELECT distill.register_model(name => %s, artifact => %s, features => %s, sample => %s, label => %s, version => %s,"
    " task => %s, classes => %s, expected => %s, allow_difference => %s,"
    " class_threshold => %s)::text AS id"
)


def register(arguments: argparse.Namespace) -> int:
    """Register a model: ONNX, or converted to it here and held against what its own library says."""
    with _connect(arguments) as connection:
        connection.add_notice_handler(
            lambda notice: _warn(f"{(notice.severity or '').lower()}: {notice.message_primary}")
        )
        if arguments.model.endswith(".onnx"):
            [row] = _rows(
                connection, _REGISTER, arguments.name, _read(Path(arguments.model)), arguments.features, arguments.sample,
                arguments.label, arguments.version, arguments.task, arguments.classes, arguments.expected,
                arguments.allow_difference, arguments.class_threshold,
            )  # fmt: skip
        else:
            if arguments.expected is not None or arguments.class_threshold is not None:
                raise InvalidParameter(
                    "--expected and --class-threshold are for .onnx files: of others the library itself is asked"
                )
            [row] = _converted(connection, arguments)
        _show(arguments, _rows(connection, _MODELS + " WHERE m.id = %s", row["id"]))
    return DONE


def _read(path: Path, most: int = MAX_FILE_BYTES, *, beside: bool = False) -> bytes:
    """Read a file of ``most`` bytes; with ``beside``, one that another file named: no link, no device, no pipe."""
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_NOFOLLOW | os.O_NONBLOCK if beside else 0)
        with open(os.open(path, flags), "rb") as file:
            if beside and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidParameter(f'file "{path}" is no ordinary file')
            content = file.read(most + 1)
    except OSError as error:
        raise InvalidParameter(f'file "{path}" cannot be read: {error.strerror}') from error
    if len(content) > most:
        raise LimitExceeded(f'file "{path}" has more than {most} bytes')
    return content


def _converted(connection: psycopg.Connection[Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Convert a model, ask its library about rows of the sample, and register it with what the library says."""
    import psycopg

    from pg_distill.conversion import convert
    from pg_distill.conversion.asking import ask
    from pg_distill.database.client import PsycopgDatabase
    from pg_distill.rows.source import resolve_source

    model = convert.load_model(arguments.model)
    if arguments.sample is None:
        made = convert.convert(model, None, arguments.features, arguments.label)
        _warn("the model was not held against its own library, because no sample is named")
        claim: tuple[Any, ...] | None = None
    else:
        with psycopg.connect(arguments.dsn or "", client_encoding="UTF8") as other:
            db = PsycopgDatabase(other)
            source = resolve_source(db, arguments.sample)
            kinds = {name: source.kinds.get(name) for name in source.types}
            made = convert.convert(model, kinds, arguments.features, arguments.label)
            for name in made.features:
                if source.kind(name) == "timestamp":
                    _warn(f'column "{name}" is given to the model as seconds since 1970')
            claim = ask(db, source, made, own_classes=not arguments.classes)
    task = arguments.task or made.original.task
    classes = arguments.classes or (
        list(made.original.classes) if made.original.classes is not None else None
    )
    named = (
        arguments.name, made.artifact, list(made.features), arguments.sample, arguments.label, arguments.version, task, classes,
    )  # fmt: skip
    if claim is None:
        return _rows(connection, _REGISTER, *named, None, False, made.class_threshold)
    call = ", ".join(["%s"] * (len(named) + len(claim) + 2))
    query = f"SELECT distill._register_claimed({call})::text AS id"
    return _rows(connection, query, *named, *claim, arguments.allow_difference, made.class_threshold)


_MODELS = (
    "SELECT m.name, m.version, m.active, m.kind, m.task, m.metric, m.accuracy, m.avg_latency_ms, m.size_bytes,"
    " m.created_at FROM distill.models m"
)


def models(arguments: argparse.Namespace) -> int:
    """List the registry."""
    with _connect(arguments) as connection:
        rows = _rows(
            connection,
            _MODELS + " WHERE %s::text IS NULL OR m.name = %s ORDER BY m.name, m.created_at",
            arguments.name,
            arguments.name,
        )
    _show(arguments, rows, "no models")
    return DONE


def _name_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="one name only")


def _distill_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher")
    for name, (kind, text) in _OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text, default=argparse.SUPPRESS)
    parser.add_argument("--queue", action="store_true", help="leave it to a worker, and print the run's id")


def distill(arguments: argparse.Namespace) -> int:
    """Distil a teacher into a student."""
    given = {name: getattr(arguments, name) for name in _OPTIONS if hasattr(arguments, name)}
    call = ", ".join(["%s", *(f"{name} => %s" for name in given)])
    values = [arguments.teacher, *given.values()]
    with _connect(arguments) as connection:
        if arguments.queue:
            _show(arguments, _rows(connection, f"SELECT distill.submit({call})::text AS run_id", *values))
            return DONE
        bar = _Bar(float(given.get("time_budget_s", 120.0)))

        def listen(diagnostic: Any) -> None:
            text = diagnostic.message_primary or ""
            if match := _PROGRESS.fullmatch(text):
                bar.take(match["stage"], float(match["percent"]) / 100, match["candidate"])
            else:
                bar.clear()
                _warn(text)

        connection.add_notice_handler(listen)
        [place] = _rows(connection, _DISTILL_MODEL) or [
            {"name": "distill_model"}
        ]  # the server says what is missing
        query = f"SELECT {place['name'].replace('%', '%%')}({call})::text AS id"
        result = _while_drawing(connection, bar, lambda: _rows(connection, query, *values))
        student = result[0]["id"]
        [run] = _rows(connection, _RUNS + " WHERE r.run_id = distill.last_run(%s)", arguments.teacher)
        _show(arguments, [run])
    if student is None:
        _warn(f"no student: {run['summary']}")
        return NO_STUDENT
    return DONE


# The only function of the extension whose schema CREATE EXTENSION names: the role's search_path need not have it.
_DISTILL_MODEL = (
    "SELECT quote_ident(n.nspname) || '.distill_model' AS name FROM pg_extension e"
    " JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid"
    " AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'"
    " JOIN pg_proc p ON p.oid = d.objid JOIN pg_namespace n ON n.oid = p.pronamespace"
    " WHERE e.extname = 'pg_distill' AND p.proname = 'distill_model'"
)
_PROGRESS = re.compile(r"(?P<stage>[a-z]+): (?:(?P<candidate>.*), )?about \d+ s left \((?P<percent>\d+)%\)")
"""What distill_model says by NOTICE while it works."""


def _while_drawing(
    connection: psycopg.Connection[Any], bar: _Bar, work: Callable[[], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Draw the bar while ``work`` waits for the server; an interrupt cancels the statement."""
    over = threading.Event()

    def draw() -> None:
        while not over.wait(BAR_SECONDS):
            bar.draw()

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        return work()
    finally:
        over.set()
        thread.join()
        bar.clear()


_RUNS = (
    "SELECT r.run_id::text AS run_id, r.teacher_name AS teacher, r.student_name AS student, r.student_version AS version,"
    " r.accepted, r.metric, r.teacher_accuracy, r.student_accuracy, r.teacher_latency_ms, r.student_latency_ms,"
    " r.pareto_score, r.created_at, r.summary FROM distill.runs r"
)


def runs(arguments: argparse.Namespace) -> int:
    """List the distillations."""
    with _connect(arguments) as connection:
        rows = _rows(
            connection,
            _RUNS + " WHERE %s::text IS NULL OR r.teacher_name = %s ORDER BY r.created_at",
            arguments.name,
            arguments.name,
        )
    _show(arguments, rows, "no runs")
    return DONE


def frontier(arguments: argparse.Namespace) -> int:
    """List the models that no other of their family dominates."""
    with _connect(arguments) as connection:
        rows = _rows(
            connection,
            "SELECT f.family, f.name, f.version, f.metric, f.accuracy, f.accuracy_low, f.accuracy_high, f.avg_latency_ms,"
            " f.latency_low_ms, f.latency_high_ms FROM distill.frontier f WHERE %s::text IS NULL OR f.family IN"
            " (SELECT g.family FROM distill.families g WHERE g.name = %s) ORDER BY f.family, f.avg_latency_ms",
            arguments.name,
            arguments.name,
        )
    _show(arguments, rows, "no measured models")
    return DONE


def _report_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("teacher", nargs="?", help="whose last run it is")
    which.add_argument("--run", metavar="RUN_ID")
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), help="the file (default: report.html)"
    )


def report(arguments: argparse.Namespace) -> int:
    """Write a run as one self-contained HTML page."""
    try:
        from pg_distill.cli.report import render

        with _connect(arguments) as connection:
            page = render(connection, teacher=arguments.teacher, run_id=arguments.run)
    except ImportError as error:
        raise InvalidState(
            f"{error.name or error} is not installed",
            hint="Install it with what draws: pip install 'pg_distill[plot]'.",
        ) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A row that no distillation of ours has written.
        raise InvalidState("the run is not recorded as a run is", detail=f"{error!r}.") from error
    content = page.encode("utf-8", "backslashreplace")
    _write(arguments.output, content)
    _show(arguments, [{"file": str(arguments.output), "bytes": len(content)}])
    return DONE


def _check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="NAME or NAME:VERSION")
    parser.add_argument(
        "--sample", help="fresh rows: a relation or a query (default: the run's test split, as it is now)"
    )
    parser.add_argument("--label", help="the column that holds the truth (default: the run's)")
    parser.add_argument("--max-rows", type=int, help="rows that are drawn", default=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help="of the rows that are drawn", default=argparse.SUPPRESS)
    parser.add_argument(
        "--include-learned",
        action="store_true",
        help="also rows that the model has learned from",
        default=argparse.SUPPRESS,
    )


def check(arguments: argparse.Namespace) -> int:
    """Compare a model's figures on fresh rows with those recorded."""
    options = ("max_rows", "seed", "include_learned")
    given = {name: getattr(arguments, name) for name in options if hasattr(arguments, name)}
    call = ", ".join(["%s, sample => %s, label => %s", *(f"{name} => %s" for name in given)])
    with _connect(arguments) as connection:
        rows = _rows(
            connection,
            f"SELECT * FROM distill.check({call})",
            arguments.model,
            arguments.sample,
            arguments.label,
            *given.values(),
        )
    _show(arguments, rows)
    return NO_LONGER_HOLDS if any(row["holds"] is False for row in rows) else DONE


def _prune_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="one name only")
    parser.add_argument("--keep-versions", type=int, help="newest versions that stay")
    parser.add_argument("--older-than", metavar="INTERVAL", help="an age, such as '90 days'")
    parser.add_argument("--remove", action="store_true", help="remove them; without it they are listed only")


def prune(arguments: argparse.Namespace) -> int:
    """List what is old and what nothing depends on, or remove it."""
    with _connect(arguments) as connection:
        rows = _rows(
            connection,
            "SELECT p.kind, p.name, p.version, p.run_id::text AS run_id, p.size_bytes, p.created_at, p.pruned, p.reason"
            " FROM distill.prune(%s, %s::interval, %s, %s) p",
            arguments.keep_versions,
            arguments.older_than,
            arguments.name,
            not arguments.remove,
        )
    _show(arguments, rows, "nothing to prune")
    return DONE


def jobs(arguments: argparse.Namespace) -> int:
    """List your jobs."""
    with _connect(arguments) as connection:
        rows = _rows(
            connection,
            "SELECT j.run_id::text AS run_id, j.teacher, j.state, j.progress, j.stage, j.time_left::text AS time_left,"
            " j.attempts, j.error, j.submitted_at FROM distill.jobs j ORDER BY j.submitted_at",
        )
    _show(arguments, rows, "no jobs")
    return DONE


def _run_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_id")


def cancel(arguments: argparse.Namespace) -> int:
    """Cancel a job."""
    with _connect(arguments) as connection:
        [row] = _rows(connection, "SELECT distill.cancel(%s) AS cancelled", arguments.run_id)
    _show(arguments, [row])
    return DONE


def _predict_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="NAME or NAME:VERSION")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--row", action="append", help="a row as a JSON object; may be repeated; - reads one a line"
    )
    what.add_argument(
        "--features",
        nargs="+",
        type=float,
        metavar="NUMBER",
        help="a row of numbers, in the order of the features",
    )
    what.add_argument("--query", help="a relation or a query; give --key with it")
    parser.add_argument("--key", help="the column by which --query's rows are told apart")


def predict(arguments: argparse.Namespace) -> int:
    """Predict for rows given here, or for those of a query."""
    with _connect(arguments) as connection:
        [model] = _rows(
            connection,
            "SELECT m.task FROM distill.models m WHERE m.name = split_part(%s, ':', 1)"
            " AND CASE WHEN %s LIKE '%%:%%' THEN m.version = split_part(%s, ':', 2) ELSE m.active END",
            *[arguments.model] * 3,
        ) or [{"task": "regression"}]  # predict itself says that there is none
        task = model["task"]
        if arguments.query is not None:
            if arguments.key is None:
                raise InvalidParameter("--query needs --key")
            form = "score_class(%s, %s, %s)" if task == "multiclass" else "score(%s, %s, %s)"
            query = f"SELECT s.* FROM distill.{form} s"
            rows = _rows(connection, query, arguments.model, arguments.query, arguments.key)
            _show(arguments, rows, "no rows")
            return DONE
        if arguments.features is not None:
            inputs: list[Any] = [arguments.features]
            form = "float8[]"
        else:
            given: Iterable[str] = sys.stdin if arguments.row == ["-"] else arguments.row
            inputs, form = [line for line in given if line.strip()], "jsonb"
        if task == "regression":
            query = f"SELECT distill.predict(%s, %s::{form}) AS prediction"
        else:
            query = (
                f"SELECT distill.predict_class(%s, x) AS class, distill.predict_proba(m, x) AS probabilities"
                f" FROM (SELECT %s::{form} AS x, %s::text AS m) s"
            )
        rows = []
        for value in inputs:
            more = (arguments.model,) if task != "regression" else ()
            rows += _rows(connection, query, arguments.model, value, *more)
    _show(arguments, rows, "no rows")
    return DONE


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="NAME or NAME:VERSION")
    parser.add_argument("--to", type=Path, default=Path(), help="an existing folder (default: this one)")


def export(arguments: argparse.Namespace) -> int:
    """Write a model's ONNX file, its SQL expression where it has one, a model card, and a manifest for import."""
    import psycopg

    with _connect(arguments) as connection:
        model = _find(connection, arguments.model)
        if model["kind"] == "logged":
            raise InvalidState(f'model "{arguments.model}" is logged: it predicts elsewhere')
        if model["form"] == "cascade":
            raise FeatureNotSupported(
                f'model "{arguments.model}" is a cascade: its file alone is not what it predicts',
                hint="Export its student and its teacher.",
            )
        try:
            expression = _rows(connection, "SELECT distill.to_sql(%s) AS text", arguments.model)[0]["text"]
        except psycopg.Error as error:
            if error.sqlstate not in ("0A000", "54000", "55000"):
                raise
            expression = None  # it has none
        teacher = _rows(
            connection, "SELECT m.name, m.version FROM distill.models m WHERE m.id = %s", model["teacher_id"]
        )
    if not arguments.to.is_dir():
        raise InvalidParameter(f'folder "{arguments.to}" does not exist')
    stem = _stem(model["name"], model["version"])
    manifest = {
        "format": MANIFEST_FORMAT,
        "pg_distill": __version__,
        "name": model["name"],
        "version": model["version"],
        "kind": model["kind"],
        "task": model["task"],
        "features": [feature["name"] for feature in model["input_schema"]["features"]],
        "kinds": [feature["kind"] for feature in model["input_schema"]["features"]],
        "classes": model["output_schema"].get("classes") or None,
        "class_threshold": model["class_threshold"],
        "sha256": model["sha256"],
        "sample": model["sample"],
        "label": model["label"],
        "teacher": f"{teacher[0]['name']}:{teacher[0]['version']}" if teacher else None,
        "onnx": f"{stem}.onnx" if model["artifact"] is not None else None,
        "expression": model["expression"] if model["kind"] == "sql" else None,
    }
    files = {f"{stem}.json": json.dumps(manifest, indent=2).encode() + b"\n"}
    if model["artifact"] is not None:
        files[f"{stem}.onnx"] = bytes(model["artifact"])
    if expression is not None:
        files[f"{stem}.sql"] = expression.encode() + b"\n"
    files[f"{stem}.md"] = _model_card(model, manifest, expression is not None).encode()
    for name, content in files.items():
        _write(arguments.to / name, content)
    _show(arguments, [{"file": str(arguments.to / name), "bytes": len(c)} for name, c in files.items()])
    return DONE


def _stem(name: str, version: str) -> str:
    """Return how the files of a version are called: no option, no hidden file, and another for each version."""
    qualified = f"{name}-{version}"
    stem = re.sub(r"^[.-]|[^\w.-]", "_", qualified)
    return stem if stem == qualified else f"{stem}-{hashlib.sha256(qualified.encode()).hexdigest()[:8]}"


def _find(connection: psycopg.Connection[Any], model: str) -> dict[str, Any]:
    name, colon, version = model.partition(":")
    rows = _rows(
        connection,
        "SELECT m.* FROM distill.models m WHERE m.name = %s AND "
        + ("m.version = %s" if colon else "m.active AND %s::text IS NOT NULL"),
        name,
        version,
    )
    if not rows:
        from pg_distill.errors import UndefinedModel

        raise UndefinedModel(f'model "{model}" does not exist')
    return rows[0]


def _write(path: Path, content: bytes) -> None:
    """Write a whole file or none, and through nobody's link."""
    part = path.with_name(f".pg_distill.{secrets.token_hex(8)}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            file.write(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InvalidParameter(f'file "{path}" cannot be written: {error.strerror}') from error


_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|&~-])")


def _markdown(text: object) -> str:
    """Write text as Markdown that shows it as it is."""
    return _MARKDOWN.sub(r"\\\1", printable(str(text)))


def _code(text: object) -> str:
    """Write text as code in a line of Markdown, between more backticks than it has in a row."""
    shown = printable(str(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown else f"`{shown}`"


def _model_card(model: Mapping[str, Any], manifest: Mapping[str, Any], has_sql: bool) -> str:
    """Return a model card (Mitchell et al. 2019) in Markdown: what the registry knows, and nothing else."""
    from pg_distill.measure.comparison import describe

    measured = model["measured_on"] or {}

    def interval(value: Any, low: Any, high: Any, unit: str = "") -> str:
        if value is None:
            return "not measured"
        said = f"{value:.4g}{unit}"
        return said if low is None or high is None else f"{said} (95 % interval {low:.4g} to {high:.4g})"

    latency = interval(model["avg_latency_ms"], model["latency_low_ms"], model["latency_high_ms"], " ms")
    if model["latency_declared"]:
        latency += ", declared and not measured"
    machine = measured.get("machine") or {}
    what = "SQL expression" if model["form"] == "sql" else "predict"
    lines = [
        f"# {_markdown(model['name'])}, version {_markdown(model['version'])}",
        "",
        f"- Task: {model['task']}"
        + (f"; classes {', '.join(map(_markdown, manifest['classes']))}" if manifest["classes"] else ""),
        f"- Kind: {model['kind']}, {model['size_bytes']} bytes, sha256 {_code(model['sha256'])}",
        f"- Distilled from: {_markdown(manifest['teacher'] or 'none: it was registered as it is')}",
        *([f"- Predictions held against {_markdown(describe(model['origin']))}"] if model["origin"] else []),
        f"- Registered: {model['created_at']:%Y-%m-%d} by {_markdown(model['owner'])}",
        f"- As plain SQL: {'yes' if has_sql else 'no'}",
        *(
            [f"- `{manifest['classes'][1]}` is named from a probability of {model['class_threshold']:.4g} on"]
            if model["class_threshold"] is not None
            else []
        ),
        "",
        "## Figures",
        "",
        f"- {_markdown(model['metric'] or 'accuracy')}:"
        f" {interval(model['accuracy'], model['accuracy_low'], model['accuracy_high'])}",
        f"- Call latency, one row's {what} inside a running query: {latency}",
        f"- Measured on {_markdown(measured.get('rows', 'no'))} rows"
        + (f", {model['measured_at']:%Y-%m-%d}" if model["measured_at"] else "")
        + (
            ", {}, {} cores, PostgreSQL {}".format(
                *(_markdown(machine.get(key, "unknown")) for key in ("processor", "cores", "postgresql"))
            )
            if machine
            else ""
        ),
        "",
        "They hold for rows as those of the sample, and for that machine; a model carries the limits and the bias of its",
        "teacher and of the rows that it was made from.",
        "",
        "## Data",
        "",
        f"- Sample: {_code(model['sample'] or 'none')}",
        f"- Label: {_markdown(model['label'] or 'none')}",
        "",
        "## Features, in order",
        "",
        *(
            f"- {_code(feature['name'])} ({_markdown(feature['kind'])})"
            for feature in model["input_schema"]["features"]
        ),
        "",
    ]
    return "\n".join(lines)


def _import_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "manifest", type=Path, help="the .json file that export wrote, beside the model's .onnx"
    )
    parser.add_argument("--name", help="another name")
    parser.add_argument("--version", help="another version")
    parser.add_argument("--sample", help="relation or query to measure it on, here")
    parser.add_argument("--label", help="column of the sample that holds the truth")


def import_(arguments: argparse.Namespace) -> int:
    """Register what export wrote, checked and, with --sample, measured here."""
    manifest = _manifest(arguments.manifest)
    if arguments.sample is None and "string" in manifest["kinds"]:
        # A graph takes one matrix of strings and one of numbers: which column is in which only rows can say.
        raise InvalidParameter(
            f'model "{manifest["name"]}" has features that are strings',
            hint="Pass --sample, a relation or query with its columns.",
        )
    artifact = _read(arguments.manifest.parent / manifest["onnx"], beside=True)
    if hashlib.sha256(artifact).hexdigest() != manifest["sha256"]:
        raise InvalidArtifact(f'file "{manifest["onnx"]}" is not the one that was exported')
    with _connect(arguments) as connection:
        [row] = _rows(
            connection, _REGISTER, arguments.name or manifest["name"], artifact, manifest["features"], arguments.sample,
            arguments.label, arguments.version or manifest["version"], manifest["task"], manifest["classes"], None, False,
            manifest.get("class_threshold"),
        )  # fmt: skip
        _show(arguments, _rows(connection, _MODELS + " WHERE m.id = %s", row["id"]))
    return DONE


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value == storable(value, len(value))


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


# What `import` takes from a manifest; other keys are for people.
_MANIFEST: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "version": _is_text,
    "task": lambda value: value in ("binary", "multiclass", "regression"),
    "features": _is_texts,
    "kinds": _is_texts,
    "classes": lambda value: value is None or _is_texts(value),
    "sha256": lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    "onnx": lambda value: _is_text(value) and value == Path(value).name != "",
}


def _manifest(path: Path) -> dict[str, Any]:
    """Read what ``export`` wrote; whatever else is there is an error."""
    try:
        manifest = json.loads(_read(path, MAX_MANIFEST_BYTES))
    except (ValueError, RecursionError) as error:
        raise InvalidArtifact(f'file "{path}" is no manifest of pg-distill export') from error
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        raise InvalidArtifact(f'file "{path}" is no manifest of pg-distill export')
    if manifest["format"] != MANIFEST_FORMAT:
        raise InvalidArtifact(f'file "{path}" is of another version of pg-distill')
    if manifest.get("onnx") is None:
        raise InvalidArtifact(f'file "{path}" holds no ONNX model')
    wrong = [key for key, holds in _MANIFEST.items() if key not in manifest or not holds(manifest[key])]
    if not wrong and len(manifest["features"]) != len(manifest["kinds"]):
        wrong = ["kinds"]
    if wrong:
        raise InvalidArtifact(
            f'file "{path}" has no valid "{wrong[0]}", as a manifest of pg-distill export has'
        )
    return manifest


def _worker_options(parser: argparse.ArgumentParser) -> None:
    from pg_distill.jobs.run import LEASE_SECONDS

    parser.add_argument("--once", action="store_true", help="end when no job waits")
    parser.add_argument(
        "--lease-seconds",
        type=float,
        default=LEASE_SECONDS,
        help="silence after which another worker is taken for dead (default %(default)s)",
    )


def worker(arguments: argparse.Namespace) -> int:
    """Run the jobs of the role that it logs in as, until it is told to end (SIGTERM)."""
    import psycopg

    from pg_distill.jobs.worker import Worker

    if not arguments.lease_seconds >= 1:
        raise InvalidParameter(f"--lease-seconds must be 1 or more, not {arguments.lease_seconds}")
    try:
        Worker(arguments.dsn or "", lease_s=arguments.lease_seconds, say=_warn).run(once=arguments.once)
    except psycopg.OperationalError as error:
        raise _Unreachable(str(error)) from error
    return DONE


Command = Callable[[argparse.Namespace], int]

COMMANDS: Mapping[str, tuple[Command, Callable[[argparse.ArgumentParser], None] | None]] = {
    "init": (init, _init_options),
    "register": (register, _register_options),
    "models": (models, _name_option),
    "distill": (distill, _distill_options),
    "runs": (runs, _name_option),
    "frontier": (frontier, _name_option),
    "predict": (predict, _predict_options),
    "export": (export, _export_options),
    "import": (import_, _import_options),
    "report": (report, _report_options),
    "check": (check, _check_options),
    "prune": (prune, _prune_options),
    "jobs": (jobs, None),
    "cancel": (cancel, _run_option),
    "worker": (worker, _worker_options),
}
"""Each subcommand's function, and the one that adds its options."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with its arguments, which it repeats, by ``_print``."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            _print(message.removesuffix("\n"), file if file is not None else sys.stderr)


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
        _warn(f"pg-distill: psycopg cannot be imported: {error}")
        _warn("  Install it with what the command line needs: pip install 'pg_distill[client]'.")
        return NOT_INSTALLED
    try:
        return function(parsed)
    except _Unreachable as error:
        _warn(f"pg-distill: {error}")
        return NO_CONNECTION
    except _Misused as error:
        _warn(f"pg-distill: {error}")
        return USAGE
    except UnicodeEncodeError:
        _warn("pg-distill: an argument is no text in the terminal's encoding")
        return USAGE
    except PgDistillError as error:
        _complain(error.sqlstate, error.message, error.detail, error.hint)
    except psycopg.OperationalError as error:
        if error.sqlstate is None:
            _warn(f"pg-distill: {error}")
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
    _warn(f"pg-distill: {message.removeprefix('plpy.Error: ')}{state}")
    for text in (detail, hint):
        if text:
            _warn(f"  {text}")
