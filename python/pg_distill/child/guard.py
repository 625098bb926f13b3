"""The process between a backend and its training process, so that nobody but us ever reaps the latter.

::

    backend --fork, exec--> guard --fork, exec--> training process

An orphan is adopted by PID 1, which in a container may be the postmaster; and a postmaster takes a child that
died by a signal for a crashed backend and restarts every session. A training process that dies of a fault, or
of the kernel's hunger for memory, just after its backend has gone would do that. So its parent is this one,
which holds no memory, runs nobody's code and always exits with 0. It kills the training process when the
backend's end of the control socket closes, which happens however a backend ends, and tells the backend how
the training process ended.

Run as ``python -m pg_distill.child.guard CONTROL``, with requests on descriptor 0, replies on 1 and a first line on
the control socket that says what to run. It imports nothing that starts threads: it forks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import select
import signal
import sys
import time
from typing import NoReturn

__all__ = ["ENDING_SIGNALS", "main"]

ENDING_SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
"""Blocked from before the start to the end; found pending, they end the process with status 0."""

POLL_SECONDS = 0.05  # between looks at whether the training process has been stopped
HANG_SECONDS = 1.0  # without a beat and without being on a processor: it hangs
OOM_SCORE = 1000  # of the training process: the kernel takes it first
FAULTS = frozenset({signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV})
"""How libraries end that do not look whether they were given the memory that they asked for."""
NEAR_LIMIT_BYTES = 64 << 20  # what they may have asked for: of OpenBLAS and malloc the largest pieces at once


def main() -> NoReturn:
    """Start the training process and wait for the end of it or of the backend."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ENDING_SIGNALS)
    control = int(sys.argv[1])
    os.set_inheritable(control, False)
    order = json.loads(os.read(control, select.PIPE_BUF) or "{}")
    beats, beat = os.pipe()
    kills = _kernel_kills()
    pid = os.fork()
    if pid == 0:
        try:
            _become(order["module"], order["limits"], beat)
        except BaseException as error:
            os.write(2, f"training process could not be started: {error!r}\n".encode())
        finally:
            os._exit(1)
    try:
        for descriptor in (0, 1, beat):
            os.close(descriptor)  # or the two others would not see each other's end
        os.write(control, f"pid {pid}\n".encode())
        memory_bytes = _allowed(resource.RLIMIT_AS, order["limits"]["memory_bytes"])
        ending = _watch(control, beats, pid, memory_bytes, kills)
        os.write(control, f"{ending}\n".encode())
    except BaseException:
        _kill(pid)
    finally:
        os._exit(0)


def _watch(control: int, beats: int, pid: int, memory_bytes: int, kills: int) -> str:
    """Wait until the training process has ended, ending it where that is due, and say how.

    It has run out of memory where it crashes near ``memory_bytes``, or is killed while the kernel's ``kills`` rise.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(beats, select.POLLIN)
    look_at = math.inf  # until it has beaten for the first time: it may take long to import
    used: int | None = None
    peak_bytes = 0
    while True:
        peak_bytes = _peak_bytes(pid) or peak_bytes
        events = dict(poll.poll(POLL_SECONDS * 1000))
        if control in events or signal.sigpending() & ENDING_SIGNALS:
            _kill(pid)
            return "ended"
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found and os.WIFSTOPPED(status):
            _kill(pid)
            return f"stopped {os.WSTOPSIG(status)}"
        if found:
            code = os.waitstatus_to_exitcode(status)
            near_limit = peak_bytes > memory_bytes - NEAR_LIMIT_BYTES
            if (-code in FAULTS and near_limit) or (-code == signal.SIGKILL and _kernel_kills() > kills):
                return "memory"
            return f"killed {-code}" if code < 0 else f"exited {code}"
        now = time.monotonic()
        if events.get(beats, 0) & select.POLLIN:
            os.read(beats, 4096)
            look_at, used = now + HANG_SECONDS / 2, None
        elif beats in events:
            time.sleep(POLL_SECONDS / 10)  # it has closed its end: it is ending
        elif now > look_at:
            # Two looks, so that a machine that stood still as a whole is not taken for a hang.
            before, used = used, _processor_ticks(pid)
            if before is not None and used == before:
                _kill(pid)
                return "hung"
            look_at = now + HANG_SECONDS / 2


def _kill(pid: int) -> None:
    """Kill and reap a child of ours; nothing where it has been reaped, as its id may be another's by now."""
    with contextlib.suppress(ChildProcessError):
        if not os.waitpid(pid, os.WNOHANG)[0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _processor_ticks(pid: int) -> int | None:
    """Return the processor ticks of a process; None where a thread runs, waits to, or waits for a disk."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            if _stat(f"/proc/{pid}/task/{thread}/stat")[0] in "RD":
                return None
        fields = _stat(f"/proc/{pid}/stat")
        return int(fields[11]) + int(fields[12])
    except OSError:
        return None


def _peak_bytes(pid: int) -> int | None:
    """Return the most address space that a process has had; None where it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("VmPeak:")), None)
    except OSError:
        return None


def _allowed(which: int, value: int) -> int:
    """Return ``value``, or the hard limit where that is lower."""
    _, hard = resource.getrlimit(which)
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _stat(path: str) -> list[str]:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def _kernel_kills() -> int:
    """Return how many processes the kernel has killed for memory since it started."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


# -- in the training process ---------------------------------------------------------------------------------


def _become(module: str, limits: dict[str, int], beat: int) -> NoReturn:
    """Confine this process and run ``module`` in it, which finds its descriptors in ``sys.argv``."""
    os.setsid()
    os.umask(0o077)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(OOM_SCORE))
    with contextlib.suppress(OSError):
        os.nice(limits["niceness"])
    most = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,  # no file of its own: Python ignores SIGXFSZ, so that a write is an OSError
    }
    for which, value in most.items():
        value = _allowed(which, value)
        resource.setrlimit(which, (value, value))
    # The wire is ours alone: what a library prints goes to stderr.
    wire = [os.dup(0), os.dup(1), beat]
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    for descriptor in wire:
        os.set_inheritable(descriptor, True)
    os.execv(sys.executable, [sys.executable, "-X", "faulthandler", "-m", module, *map(str, wire)])


if __name__ == "__main__":
    main()
