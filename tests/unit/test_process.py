"""The child process, with real processes: it may die in any way, and nothing is left."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pg_distill.child.guard import ENDING_SIGNALS
from pg_distill.child.process import ChildProcess, Limits
from pg_distill.child.wire import Message
from pg_distill.errors import DiskFull, InvalidData, OutOfMemory, PgDistillError, TrainerDied

pytestmark = pytest.mark.slow  # it trains, or waits

MODULE = "unit.child"
PR_SET_CHILD_SUBREAPER = 36


class Interrupted(Exception):
    """What check_interrupts raises when a statement is cancelled."""


def nothing() -> None:
    """Find no interrupt."""


def no_answer(message: Message) -> None:
    """Answer no message."""


def call(child: ChildProcess, kind: str, *arrays: Any, **fields: Any) -> Message:
    request = Message(kind, fields, dict(zip("x", arrays, strict=False)))
    return child.call(request, on_message=no_answer, check_interrupts=nothing)


def exists(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    given_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > given_up:
            return False
        time.sleep(0.01)
    return True


def children() -> set[int]:
    """Return the processes, dead or alive, whose parent this process is."""
    return {int(p) for t in Path("/proc/self/task").iterdir() for p in (t / "children").read_text().split()}


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before, descriptors = children(), len(os.listdir("/proc/self/fd"))
    yield
    assert children() <= before
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.fixture(scope="module")
def shared() -> Iterator[ChildProcess]:
    """Give a child for tests after which it lives on."""
    with ChildProcess(MODULE) as child:
        yield child


@pytest.fixture
def child() -> Iterator[ChildProcess]:
    with ChildProcess(MODULE) as child:
        yield child


# -- messages ---------------------------------------------------------------------------------------------------


def test_arrays_come_back_as_they_were(shared: ChildProcess) -> None:
    x = np.random.default_rng(0).normal(size=(1000, 7))
    sent = Message("echo", {"a": [1, None, "é"]}, {"x": x, "none": x[:0]}, {"b": bytes(range(256))})
    got = shared.call(sent, on_message=no_answer, check_interrupts=nothing)
    assert (got.kind, got.fields, got.blobs) == ("echoed", sent.fields, sent.blobs)
    np.testing.assert_array_equal(got.arrays["x"], x)
    assert got.arrays["none"].shape == (0, 7)


def test_a_hundred_megabytes_go_both_ways(shared: ChildProcess) -> None:
    x = np.random.default_rng(0).random(13_000_000)
    np.testing.assert_array_equal(call(shared, "echo", x).arrays["x"], x)


def test_large_messages_before_the_answer(shared: ChildProcess) -> None:
    seen = []
    got = shared.call(
        Message("progress", {"messages": 10, "size": 200_000}, {"x": np.ones(5)}),
        on_message=lambda m: seen.append((m.fields["number"], m.arrays["x"].sum())),
        check_interrupts=nothing,
    )
    assert seen == [(n, n * 200_000.0) for n in range(10)]
    assert got.fields == {"sum": 5.0}


def test_the_child_asks_and_is_answered(shared: ChildProcess) -> None:
    got = shared.call(
        Message("ask", {}, {"x": np.arange(10.0)}),
        on_message=lambda m: Message("answer", {}, {"x": m.arrays["x"] * m.fields["number"]}),
        check_interrupts=nothing,
    )
    assert got.fields["sums"] == [0.0, 45.0, 90.0, 135.0, 180.0]


def test_full_pipes_in_both_directions_do_not_lock_up(shared: ChildProcess) -> None:
    """Megabytes are on their way to the child while it sends megabytes."""
    x = np.ones(1_000_000)
    got = shared.call(
        Message("flood", {}, {"x": x}),
        on_message=lambda m: Message("answer", {}, {"x": x}) if m.kind == "question" else None,
        check_interrupts=nothing,
    )
    assert got.fields["sums"] == [1e6] * 5


def test_what_a_library_prints_is_not_on_the_wire(shared: ChildProcess) -> None:
    """And more of it than a pipe holds."""
    assert call(shared, "print_something", lines=10_000).fields == {"read": ""}


# -- errors -----------------------------------------------------------------------------------------------------


def test_an_error_arrives_as_its_class(shared: ChildProcess) -> None:
    with pytest.raises(InvalidData) as caught:
        call(shared, "refuse")
    error = caught.value
    assert (error.message, error.detail, error.hint) == (
        "label has one class only",
        "It is 1.",
        "Take more rows.",
    )
    assert call(shared, "echo").kind == "echoed"


def test_a_fault_of_ours_is_no_death(shared: ChildProcess) -> None:
    with pytest.raises(PgDistillError) as caught:
        call(shared, "fail")
    assert caught.value.sqlstate == "38000"
    assert "ZeroDivisionError" in str(caught.value.detail)
    assert call(shared, "echo").kind == "echoed"


def test_memory_is_limited_and_the_child_lives_on() -> None:
    with ChildProcess(MODULE, Limits(memory_bytes=600 << 20)) as child:
        with pytest.raises(OutOfMemory) as caught:
            call(child, "fill_memory")
        assert caught.value.sqlstate == "53200"
        assert caught.value.hint
        assert call(child, "echo", np.ones(1000)).arrays["x"].sum() == 1000


def test_a_child_without_any_memory_goes_on_beating() -> None:
    """The thread that does so finds none either."""
    with ChildProcess(MODULE, Limits(memory_bytes=600 << 20)) as child:
        assert call(child, "fill_memory_for_a_while").kind == "done"


def test_a_c_library_that_runs_out_of_memory(child: ChildProcess) -> None:
    with pytest.raises(OutOfMemory):
        call(child, "fill_memory_in_c")


def test_a_library_that_never_looks_what_it_was_given() -> None:
    """It ends by SIGSEGV, within sight of its limit."""
    with ChildProcess(MODULE, Limits(memory_bytes=600 << 20)) as child, pytest.raises(OutOfMemory) as caught:
        call(child, "fill_memory_unchecked")
    assert "Segmentation fault" in str(caught.value.detail)


def test_no_room_for_a_file_is_a_full_disk(child: ChildProcess) -> None:
    """The child may write no file at all: what tries is told so under the SQLSTATE of a full disk."""
    with pytest.raises(DiskFull):
        call(child, "write_scratch")
    call(child, "echo")


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("die", {"signal": signal.SIGKILL}, "killed by signal 9"),
        ("die", {"signal": signal.SIGSEGV}, "killed by signal 11"),
        ("die", {"signal": signal.SIGSTOP}, "stopped by signal 19"),
        ("die", {"signal": signal.SIGTERM}, "exited with status 0"),
        ("crash", {}, "killed by signal 11"),
        ("leave", {"status": 0}, "exited with status 0"),
        ("leave", {"status": 3}, "exited with status 3"),
        ("write_garbage", {}, "no message"),
        ("lock_up", {}, "hung"),
    ],
)
def test_a_death_is_noticed_within_two_seconds(
    child: ChildProcess, kind: str, fields: dict[str, int], says: str
) -> None:
    call(child, "echo")
    pid = child.pid
    started = time.monotonic()
    with pytest.raises(TrainerDied, match=says) as caught:
        call(child, kind, **fields)
    assert time.monotonic() - started < 3  # two are promised; the third is for a machine that others use
    assert caught.value.sqlstate == "58000"
    assert pid is not None and not exists(pid)
    with pytest.raises(TrainerDied, match="not running"):
        call(child, "echo")


def test_a_death_tells_the_last_words(child: ChildProcess) -> None:
    with pytest.raises(TrainerDied) as caught:
        call(child, "leave", status=3)
    assert caught.value.detail == "last words"
    with ChildProcess(MODULE) as another, pytest.raises(TrainerDied) as caught:
        call(another, "crash")
    assert "Segmentation fault" in str(caught.value.detail)
    assert "in crash" in str(caught.value.detail)


def test_a_module_that_is_missing() -> None:
    with ChildProcess("unit.no_such_module") as child, pytest.raises(TrainerDied) as caught:
        call(child, "echo")
    assert "no_such_module" in str(caught.value.detail)


def test_a_deadline_ends_the_child(child: ChildProcess) -> None:
    started = time.monotonic()
    with pytest.raises(TrainerDied, match="longer"):
        child.call(
            Message("sleep", {"seconds": 60}),
            on_message=no_answer,
            check_interrupts=nothing,
            deadline=started + 0.5,
        )
    assert time.monotonic() - started < 1


def test_work_that_holds_the_interpreters_lock_is_no_hang(shared: ChildProcess) -> None:
    assert call(shared, "compute", seconds=2.5, locked=True).kind == "done"


def test_a_message_longer_than_the_limit_is_refused() -> None:
    with (
        ChildProcess(MODULE, max_message_bytes=1 << 20) as child,
        pytest.raises(TrainerDied, match="no message"),
    ):
        call(child, "echo", np.ones(1 << 20))


# -- interrupts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields", "size"),
    [
        ("sleep", {"seconds": 60}, 1),
        ("compute", {"seconds": 60, "locked": False}, 1),
        ("compute", {"seconds": 60, "locked": True}, 1),
        ("echo", {}, 50_000_000),
    ],
)
def test_an_interrupt_returns_within_half_a_second(
    child: ChildProcess, kind: str, fields: dict[str, Any], size: int
) -> None:
    """While the child sleeps, computes with and without the lock, or is being sent 400 MB."""
    call(child, "echo")
    pid = child.pid
    started = time.monotonic()
    due = started + (0.05 if size > 1 else 0.5)
    looks = [started]

    def check() -> None:
        looks.append(time.monotonic())
        if looks[-1] > due:
            raise Interrupted

    with pytest.raises(Interrupted):
        child.call(Message(kind, fields, {"x": np.zeros(size)}), on_message=no_answer, check_interrupts=check)
    assert time.monotonic() - due < 0.5
    assert max(np.diff(looks)) < 0.2
    assert pid is not None and not exists(pid)


def test_what_an_answer_raises_ends_the_child(child: ChildProcess) -> None:
    def answer(message: Message) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        child.call(Message("ask", {}, {"x": np.ones(1)}), on_message=answer, check_interrupts=nothing)
    with pytest.raises(TrainerDied):
        call(child, "echo")


# -- what is left, and what there is ------------------------------------------------------------------------------


def test_many_calls_and_children_leave_nothing(shared: ChildProcess) -> None:
    # Other tests of this process may have left threads of their libraries.
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(50):
        call(shared, "echo", np.ones(1000))
    for _ in range(5):
        with ChildProcess(MODULE) as child:
            call(child, "echo")
        with ChildProcess(MODULE):
            pass  # ended before it has begun
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() <= threads


def test_the_child_stands_back(shared: ChildProcess) -> None:
    os.environ["PG_DISTILL_SECRET"] = "x"
    with ChildProcess(MODULE, Limits(threads=3, niceness=7)) as child:
        del os.environ["PG_DISTILL_SECRET"]
        found = call(child, "describe").fields
        assert found["pid"] == child.pid == found["session"]
    assert found["arguments"][3:5] == ["-m", MODULE]
    assert found["parent"] != os.getpid()
    assert found["niceness"] == os.nice(0) + 7
    assert found["oom_score_adj"] == 1000
    assert found["directory"] == "/"
    assert not found["writes"]
    assert found["threads"] == 2  # its own, and the one that watches
    # 0, 1, 2, requests, replies, beat, and the directory that is being listed
    assert found["descriptors"] == 7
    assert found["blocked"] == sum(1 << (number - 1) for number in ENDING_SIGNALS)
    assert "PG_DISTILL_SECRET" not in found["environment"]
    assert found["environment"]["OMP_NUM_THREADS"] == "3"
    assert found["environment"]["OPENBLAS_NUM_THREADS"] == "1"


def test_a_backend_without_an_executable_finds_its_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside PostgreSQL ``sys.executable`` is empty, or the server's own."""
    for executable in ("", "/usr/lib/postgresql/15/bin/postgres"):
        monkeypatch.setattr(sys, "executable", executable)
        with ChildProcess(MODULE) as child:
            assert call(child, "echo").kind == "echoed"


def test_the_backends_signals_are_as_they_were() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    handlers = {n: signal.getsignal(n) for n in ENDING_SIGNALS}
    with ChildProcess(MODULE) as child:
        call(child, "echo")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    assert {n: signal.getsignal(n) for n in ENDING_SIGNALS} == handlers


# -- the guard, and orphans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGSTOP", "SIGTERM"])
def test_a_guard_that_is_lost_is_a_death(child: ChildProcess, name: str) -> None:
    found = call(child, "describe").fields

    def strike(message: Message) -> None:
        os.kill(found["parent"], signal.Signals[name])

    started = time.monotonic()
    with pytest.raises(TrainerDied):
        child.call(Message("sleep", {"seconds": 60}), on_message=strike, check_interrupts=nothing)
    assert time.monotonic() - started < 1
    assert not exists(found["pid"])
    assert not exists(found["parent"])


def test_guard_and_child_killed_together(child: ChildProcess) -> None:
    """The child is reaped here, and not by whoever is PID 1."""
    found = call(child, "describe").fields

    def strike(message: Message) -> None:
        os.kill(found["parent"], signal.SIGSTOP)
        os.kill(found["pid"], signal.SIGKILL)
        os.kill(found["parent"], signal.SIGKILL)

    with pytest.raises(TrainerDied, match="killed by signal 9"):
        child.call(Message("sleep", {"seconds": 60}), on_message=strike, check_interrupts=nothing)


BACKEND = """
import json, sys, time
from pg_distill.child.process import ChildProcess
from pg_distill.child.wire import Message
kind, fields = json.loads(sys.argv[1])
with ChildProcess("unit.child") as child:
    found = child.call(Message("describe"), on_message=lambda m: None, check_interrupts=lambda: None).fields
    print(json.dumps([found["pid"], found["parent"]]), flush=True)
    child.call(Message(kind, fields), on_message=lambda m: print("busy", flush=True), check_interrupts=lambda: None)
"""


@pytest.fixture
def _adopt_orphans() -> Iterator[None]:
    """Be what PID 1 is in a container: the one who inherits orphans and sees how they end."""
    library = ctypes.CDLL(None)
    library.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    library.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.usefixtures("_adopt_orphans")
@pytest.mark.parametrize(
    ("kind", "fields", "with_guard"),
    [
        ("sleep", {"seconds": 60}, False),
        ("compute", {"seconds": 60, "locked": False}, False),
        ("compute", {"seconds": 60, "locked": True}, False),
        ("lock_up", {}, False),
        # Without its guard a child ends itself, once it lets go of the interpreter's lock.
        ("sleep", {"seconds": 60}, True),
        ("compute", {"seconds": 60, "locked": False}, True),
        ("compute", {"seconds": 60, "locked": True}, True),
    ],
)
def test_nobody_inherits_a_child_that_died_of_a_signal(
    kind: str, fields: dict[str, Any], with_guard: bool
) -> None:
    """A backend is killed: its child is gone within a second, and PID 1 sees nothing but exits with 0."""
    work = (kind, fields)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(
        [sys.executable, "-c", BACKEND, json.dumps(work)], stdout=subprocess.PIPE, text=True, env=environment
    ) as backend:
        assert backend.stdout is not None
        pid, guard = json.loads(backend.stdout.readline())
        assert backend.stdout.readline() == "busy\n"
        if with_guard:
            os.kill(backend.pid, signal.SIGSTOP)  # so that it does not see the other's death
            os.kill(guard, signal.SIGKILL)
        backend.kill()
        backend.wait()
    assert wait_until(lambda: not exists(pid) and not exists(guard), 1.0)
    statuses = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            statuses[found[0]] = found[1]
    # The guard reaps the child; where it was killed too, the child ends itself.
    assert statuses == ({guard: int(signal.SIGKILL), pid: 0} if with_guard else {guard: 0})
