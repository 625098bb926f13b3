"""A distillation reports its progress, by notices and in pg_stat_activity, and gives the session its name back."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import errors
from sql.conftest import load_cancer

Connect = Callable[..., psycopg.Connection]
DISTIL = (
    "SELECT distill_model('cancer', families => '{linear,boosted}', time_budget_s => 6, min_accuracy => 0)"
)
OWN = "nightly \u00e4 job"


def shown(db: psycopg.Connection) -> str:
    [name] = db.execute("SELECT current_setting('application_name')").fetchone() or [""]
    return str(name)


def watch(connect: Connect, pid: int, over: threading.Event) -> list[str]:
    """Return what pg_stat_activity shows of a session, until it is over."""
    seen: list[str] = []
    with connect() as observer:
        while not over.is_set():
            row = observer.execute(
                "SELECT application_name FROM pg_stat_activity WHERE pid = %s", (pid,)
            ).fetchone()
            if row is not None and (not seen or row[0] != seen[-1]):
                seen.append(row[0])
            time.sleep(0.05)
    return seen


def test_activity_and_notices(connect: Connect) -> None:
    session = connect(application_name="own name")
    load_cancer(session)
    said: list[str] = []
    details: list[dict[str, Any]] = []

    def listen(diagnostic: errors.Diagnostic) -> None:
        said.append(diagnostic.message_primary or "")
        if diagnostic.message_detail:
            details.append(json.loads(diagnostic.message_detail))

    session.add_notice_handler(listen)
    over, seen = threading.Event(), []
    observer = threading.Thread(target=lambda: seen.extend(watch(connect, session.info.backend_pid, over)))
    observer.start()
    begun = time.monotonic()
    try:
        session.execute(DISTIL)
    finally:
        seconds = time.monotonic() - begun
        over.set()
        observer.join()
    ours = [name for name in seen if name.startswith("pg_distill: ")]
    assert any(
        re.match(r"pg_distill: training \d+/\d+ \(\d+%, \d+ s left\) (linear|boosted)", n) for n in ours
    )
    assert any(name.startswith("pg_distill: timing") for name in ours)
    assert all(len(name.encode()) <= 63 for name in ours)
    parts = [int(match[1]) for name in ours if (match := re.search(r"\((\d+)%", name))]
    assert parts == sorted(parts) and parts[-1] > parts[0]
    assert shown(session) == "own name"
    assert session.info.parameter_status("application_name") == "own name"
    # What programs read of a notice: the detail, as JSON.
    assert {"screen", "sizes"} & {detail["stage"] for detail in details}
    assert all(0 <= detail["done"] <= 1 and detail["seconds_left"] >= 0 for detail in details)
    assert len(said) <= 4 + seconds  # at most one a second, and what begins and ends a run


def test_a_session_gets_its_own_name_back(connect: Connect) -> None:
    session = connect()
    load_cancer(session)
    session.execute("SELECT set_config('application_name', %s, false)", (OWN,))
    before = shown(session)
    # An error; an error that is caught; a timeout; a transaction that is rolled back, and one that is not.
    with pytest.raises(errors.UndefinedColumn):
        session.execute("SELECT distill_model('cancer', label => 'missing')")
    assert shown(session) == before
    session.execute(
        "DO $$ BEGIN PERFORM distill_model('cancer', label => 'missing'); EXCEPTION WHEN undefined_column THEN NULL; END $$"
    )
    assert shown(session) == before
    session.execute("SET statement_timeout = '2s'")
    with pytest.raises(errors.QueryCanceled):
        session.execute("SELECT distill_model('cancer', time_budget_s => 600)")
    session.execute("RESET statement_timeout")
    assert shown(session) == before
    session.execute("BEGIN")
    session.execute("SET LOCAL application_name = 'of this transaction'")
    session.execute(
        "SELECT distill_model('cancer', families => '{linear}', time_budget_s => 2, min_accuracy => 0)"
    )
    assert shown(session) == "of this transaction"
    session.execute("COMMIT")
    assert shown(session) == before
