"""What the command line reads and writes: tables, JSON, a bar of progress, files."""

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
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pg_distill.errors import (
    InvalidParameter,
    LimitExceeded,
)
from pg_distill.text import printable

if TYPE_CHECKING:
    import psycopg

__all__ = ["Bar", "file_stem", "print_line", "read_file", "show", "warn", "while_drawing", "write_file"]

MAX_FILE_BYTES = 1000 << 20  # what the setting artifact_limit_mb lets in at most
BAR_SECONDS = 0.2  # between redraws
BAR_WIDTH = 24


def print_line(text: str, file: TextIO | None = None) -> None:
    """Write lines to stdout, or to ``file``: the one place where text goes to where a terminal may be."""
    out = file if file is not None else sys.stdout
    out.write(printable(text, keep="\n") + "\n")
    out.flush()


def show(arguments: argparse.Namespace, rows: Sequence[Mapping[str, Any]], empty: str = "nothing") -> None:
    """Print rows as a table, or as JSON."""
    if arguments.json:
        plain = [{key: _finite(value) for key, value in row.items()} for row in rows]
        print_line(json.dumps(plain, default=_plain, indent=2, allow_nan=False).replace("\x7f", "\\u007f"))
        return
    if not rows:
        print_line(empty)
        return
    titles = list(rows[0])
    cells = [[printable(_cell(row[title])) for title in titles] for row in rows]
    widths = [max(len(line[i]) for line in [titles, *cells]) for i in range(len(titles))]
    for line in [titles, *cells]:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


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


def warn(text: str) -> None:
    # Indented, so that no line of it looks like one of ours.
    print_line("\n    ".join(text.splitlines()), sys.stderr)


class Bar:
    """A progress bar on a terminal; elsewhere a line each time that the stage changes."""

    def __init__(self, time_budget_s: float) -> None:
        from pg_distill.runs.progress import Progress

        self._progress = Progress(time_budget_s)
        self._terminal = sys.stderr.isatty()
        self._told = ""

    def take(self, stage: str, done: float, candidate: str | None, seconds_left: float) -> None:
        """Take in what a run says of itself."""
        self._progress.watch(stage, done, candidate, seconds_left)

    def draw(self, line: tuple[str, float, str | None, float] | None = None) -> None:
        """Draw the progress: ``line`` is stage, progress (0..1), candidate and seconds left."""
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
            warn(f"{part:4.0%}  {left:3.0f} s left  {what}")
        self._told = stage

    def clear(self) -> None:
        """Leave the line to what is printed next."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def read_file(path: Path, most: int = MAX_FILE_BYTES, *, beside: bool = False) -> bytes:
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


def while_drawing(
    connection: psycopg.Connection[Any], bar: Bar, work: Callable[[], list[dict[str, Any]]]
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


def file_stem(name: str, version: str) -> str:
    """Return how the files of a version are called: no option, no hidden file, and another for each version."""
    qualified = f"{name}-{version}"
    stem = re.sub(r"^[.-]|[^\w.-]", "_", qualified)
    return stem if stem == qualified else f"{stem}-{hashlib.sha256(qualified.encode()).hexdigest()[:8]}"


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file or none, and through nobody's link."""
    part = path.with_name(f".pg_distill.{secrets.token_hex(8)}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb") as file:
            file.write(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InvalidParameter(f'file "{path}" cannot be written: {error.strerror}') from error
