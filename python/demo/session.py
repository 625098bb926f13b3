"""What the demos share: a session that shows what it runs, the server it runs on, and how a demo ends."""

from __future__ import annotations

import io
import json
import math
import signal
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import servers  # noqa: E402
from picture import draw_frontier  # noqa: E402

Promises = Mapping[str, tuple[float, float]]
"""What figures must be, at least and at most."""

START = time.monotonic()


def say(text: str) -> None:
    """Print a line with the time since the start."""
    seconds = time.monotonic() - START
    print(f"{int(seconds) // 60:2d}:{int(seconds) % 60:02d}  {text}", flush=True)


def heading(text: str) -> None:
    """Print what comes next."""
    print(flush=True)
    say(text)


def table(rows: Sequence[Sequence[object]], names: Sequence[str]) -> None:
    """Print rows as psql does."""
    cells = [[_text(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(names), *cells]) for i in range(len(names))]
    print("       " + " | ".join(name.center(width) for name, width in zip(names, widths, strict=True)))
    print("       " + "-+-".join("-" * width for width in widths))
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(names))]
    for row in cells:
        parts = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        )
        print("       " + " | ".join(parts).rstrip(), flush=True)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 0.1 else f"{value:.4f}"
    return str(value)


class Session:
    """A database session that shows what it runs."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        connection.add_notice_handler(lambda notice: say(f"  {notice.severity}: {notice.message_primary}"))

    def quietly(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Run a statement without showing it."""
        cursor = self._connection.execute(statement, arguments or None)
        return cursor.fetchall() if cursor.description else []

    def show(
        self, statement: str, *arguments: object, shown: str | None = None, result: bool = True
    ) -> tuple[list[tuple[Any, ...]], float]:
        """Show a statement, run it, show its result and the milliseconds that the client waited."""
        print(textwrap.indent(textwrap.dedent(shown or statement).strip("\n") + ";", "       "), flush=True)
        started = time.perf_counter()
        cursor = self._connection.execute(statement, arguments or None)
        rows = cursor.fetchall() if cursor.description else []
        milliseconds = (time.perf_counter() - started) * 1e3
        if result and cursor.description:
            table(rows, [column.name for column in cursor.description])
        print(f"       Time: {milliseconds:,.0f} ms", flush=True)
        return rows, milliseconds

    def copy_in(self, name: str, columns: str, chunks: Iterable[bytes]) -> int:
        """COPY csv, NA for NULL, into a table and return its rows."""
        cursor = self._connection.cursor()
        with cursor.copy(f"COPY {name} ({columns}) FROM STDIN (FORMAT csv, HEADER, NULL 'NA')") as copy:
            for chunk in chunks:
                copy.write(chunk)
        return cursor.rowcount

    def copy_rows(self, name: str, rows: Sequence[Sequence[object]]) -> int:
        """COPY rows into a table and return how many there are."""
        with self._connection.cursor().copy(f"COPY {name} FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        return len(rows)

    def copy_out(self, query: str, kinds: Mapping[str, str]) -> pd.DataFrame:
        """Fetch a query by COPY, its columns as pandas' ``kinds``; NULL strings come as ""."""
        text = io.BytesIO()
        with self._connection.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER)") as copy:
            for chunk in copy:
                text.write(chunk)
        text.seek(0)
        return pd.read_csv(
            text,
            dtype=dict(kinds),
            keep_default_na=False,
            na_values={n: [""] for n, k in kinds.items() if k == "float32"},
        )


@contextmanager
def opened(server_name: str, database: str) -> Iterator[Session]:
    """Start a server (pg15, pg17, local, or a connection string) and give a session in a new database with the extension."""
    # An error unwinds the stack, so that the server goes too; the signal by itself would leave it running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    heading(
        f"starting PostgreSQL ({'a container' if server_name in servers.CONTAINERS else 'a temporary cluster'})"
    )
    with servers.start(server_name) as server:
        servers.create_database(server, database)
        with server.connect(database) as connection:
            session = Session(connection)
            say(
                f"  PostgreSQL {session.quietly('SHOW server_version')[0][0]}, CREATE EXTENSION pg_distill CASCADE"
            )
            yield session


def show_frontier(session: Session, teacher: str) -> list[dict[str, Any]]:
    """Print the candidates that were measured, and the family's frontier; return the former."""
    session.show(
        f"""
        SELECT family, size_bytes, accuracy, fidelity, log_loss, avg_latency_ms, on_frontier, chosen
        FROM distill.candidates
        WHERE run_id = distill.last_run('{teacher}') AND avg_latency_ms IS NOT NULL
        ORDER BY avg_latency_ms"""
    )
    session.show(
        f"""
        SELECT name, version, accuracy, avg_latency_ms
        FROM distill.frontier
        WHERE family = '{teacher}' ORDER BY avg_latency_ms"""
    )
    rows = session.quietly(
        "SELECT to_jsonb(c) - 'artifact' - 'expression' FROM distill.candidates c"
        " WHERE run_id = distill.last_run(%s) ORDER BY candidate",
        teacher,
    )
    return [row[0] for row in rows]


def finish(
    report: dict[str, Any],
    candidates: Sequence[dict[str, Any]],
    *,
    rows: str,
    output: Path,
    promised: Promises,
) -> None:
    """Draw the frontier and keep the report in ``output``; exit with an error where a promise is not kept."""
    heading("done")
    output.mkdir(parents=True, exist_ok=True)
    machine = report["machine"]
    draw_frontier(
        report,
        candidates,
        f"{rows}; PostgreSQL {machine['postgresql'].split()[0]}, {machine['processor']}, {machine['cores']} cores",
        output / "frontier.png",
    )
    met = show_ratios(report, promised)
    (output / "summary.json").write_text(
        json.dumps({**report, "candidates": candidates}, indent=2, sort_keys=True) + "\n"
    )
    for name in ("frontier.png", "summary.json"):
        say(f"  {(output / name).relative_to(ROOT)}")
    if not met:
        raise SystemExit("the student does not hold what the demo promises; was the machine busy?")


def show_ratios(report: dict[str, Any], promised: Promises) -> bool:
    """Print and keep the figures that count beside what the demo promises; say whether all are met."""
    latency, accuracy = (
        (report[f"teacher_{name}"], report[f"student_{name}"]) for name in ("latency_ms", "accuracy")
    )
    if latency[1] is None or not report["accepted"]:
        say("  no student was accepted")
        return False
    report["ratios"] = {
        "times_faster": latency[0] / latency[1],
        "accuracy_kept": accuracy[1] / accuracy[0],
        "lift_kept": report["lift"],
        **{name: figure for name, figure in report["demo"].items() if name in promised},
        "minutes": (time.monotonic() - START) / 60,
    }
    shown, all_met = [], True
    for name, (least, most) in promised.items():
        met = is_kept(name, report["ratios"][name], promised)
        bounds = f"at least {least:g}" if most == math.inf else f"{least:.2g} to {most:.2g}"
        shown.append((name, report["ratios"][name], bounds, met))
        all_met &= met
    table(shown, ["figure", "measured", "promised", "met"])
    return all_met


def is_kept(name: str, figure: float, promised: Promises) -> bool:
    """Whether a figure is what was promised."""
    least, most = promised[name]
    return least <= figure <= most
