"""What the processes of a test session share: the machine, which one test may want alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import once
import pytest

pytestmark = pytest.mark.slow


def test_who_wants_to_be_alone_waits_for_others_and_others_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(once.FOLDER, str(tmp_path))
    inside: set[str] = set()
    met: dict[str, set[str]] = {}
    order: list[str] = []

    def run(name: str, seconds: float, *, alone: bool = False) -> threading.Thread:
        def work() -> None:
            with once.machine(alone=alone):
                inside.add(name)
                order.append(name)
                met[name] = inside - {name}
                time.sleep(seconds)
                met[name] |= inside - {name}
                inside.discard(name)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.1)
        return thread

    threads = [run("first", 0.6), run("beside it", 0.4), run("alone", 0.3, alone=True), run("late", 0.1)]
    for thread in threads:
        thread.join(10)
    assert order == ["first", "beside it", "alone", "late"]
    assert met["alone"] == set()
    assert met["beside it"] == {"first"}


def test_a_session_that_a_test_starts_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for who waits for that test."""
    monkeypatch.setenv(once.FOLDER, str(tmp_path))
    assert not once.begin(is_part=True)
    assert once.once("a", lambda: 1) == once.once("a", lambda: 2) == 1
    assert once.begin(is_part=False)
    try:
        assert once.once("a", lambda: 2) == 2
    finally:
        once.end()
