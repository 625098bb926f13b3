"""A child process of a backend that can die in any way and harm nobody.

Four facts of PostgreSQL shape it. A backend is signalled with its process group: the child has a session of
its own. An orphan is adopted by PID 1, which in a container may be the postmaster, and that takes a child
killed by a signal for a crashed backend: a guard reaps it (see ``guard``). A terminated backend skips
Python's ``finally``: what has to happen then happens because file descriptors close. And nothing but
``check_interrupts`` ends a wait: no wait here is longer than 50 ms without it. No thread is started in the
backend.

Long, because one class holds the child from its start to its end: the descriptors that lead to it are opened, polled and
closed together, and how it ended is read from all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

from pg_distill.child.guard import ENDING_SIGNALS
from pg_distill.child.wire import MAX_MESSAGE_BYTES, Decoder, Message, WireError, encode
from pg_distill.errors import OutOfMemory, PgDistillError, TrainerDied, by_sqlstate

__all__ = ["ChildProcess", "Limits"]

POLL_SECONDS = 0.05  # between looks at interrupts, of which 0.1 s is promised
KILL_SECONDS = 2.0  # the kernel takes its time to free gigabytes
PIPE_BYTES = 1 << 20  # what Linux lets anyone have; the usual 64 KiB cost a switch each
STDERR_BYTES = 4000  # the last of it, for DETAIL
MAX_BUFFERS = 512  # in one writev; IOV_MAX is 1024
MAX_TEXT = 4000  # characters of an error's parts: what the child says is kept in bounds
PR_SET_CHILD_SUBREAPER = 36
OUT_OF_MEMORY_SIGNS = (
    "alloc failed",  # protobuf
    "bad_alloc",
    "bad allocation",
    "Cannot allocate memory",
    "Failed to allocate",
    "Memory allocation still failed",  # OpenBLAS
    "MemoryError",
    "Thread creation failed",  # libgomp
    "can't start new thread",
    "failed to map segment",  # of a library
    "out of memory",
)
OUT_OF_MEMORY = "training process ran out of memory"
OUT_OF_MEMORY_HINT = (
    "Pass a smaller max_rows, or have an administrator raise the setting trainer_memory_mb (where a file is checked, or"
    " inspection_memory_mb)."
)


@dataclass(frozen=True)
class Limits:
    """What a child may use: bytes of address space, threads, and its niceness."""

    memory_bytes: int = 8 << 30
    threads: int = 2
    niceness: int = 10


# -- the backend's side ------------------------------------------------------------------------------------


def _interpreter() -> str:
    """Return the server's Python: inside PostgreSQL ``sys.executable`` may be empty, or the server's own."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    directories = (
        sysconfig.get_config_var("BINDIR"),
        f"{sys.base_prefix}/bin",
        f"{sys.base_exec_prefix}/bin",
    )
    places = [f"{directory}/{name}" for directory in directories if directory]
    if os.path.basename(sys.executable or "").startswith("python"):
        places.append(sys.executable)
    for place in places:
        if os.access(place, os.X_OK):
            return place
    forbidden = next((place for place in places if os.path.exists(place)), None)
    if forbidden is not None:
        raise TrainerDied(
            f'"{forbidden}", which training processes are, cannot be run by the server\'s user'
        ) from PermissionError(errno.EACCES, os.strerror(errno.EACCES), forbidden)
    raise TrainerDied(
        f"no {name} was found to run the training process", detail=f"Looked for {', '.join(places)}."
    ) from FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def _environment(threads: int) -> dict[str, str]:
    """Return all of the child's environment: nothing of the server's own that it can do without."""
    # The working directory is the data directory: a relative entry would look for modules there.
    places = [p for p in sys.path if os.path.isabs(p) and os.pathsep not in p]
    return {
        **{k: os.environ[k] for k in ("LD_LIBRARY_PATH", "PYTHONHOME") if k in os.environ},
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "MALLOC_ARENA_MAX": "2",  # each would take 64 MiB of address space, which is what is limited
        "OMP_NUM_THREADS": str(threads),
        "OMP_THREAD_LIMIT": str(threads),
        # Candidates are trained side by side; and a matrix product over several threads has other last bits.
        "OPENBLAS_NUM_THREADS": "1",
        "PATH": os.defpath,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(places)),
        "PYTHONSAFEPATH": "1",
        "PYTHONUTF8": "1",
        "TZ": "UTC",
    }


_running: list[int] = []  # guards
_lingering: list[int] = []  # guards that had not ended when they were waited for


def _adopt_orphans() -> None:
    """Reap descendants whose parent has died, while there are any of ours; only Linux has it."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(bool(_running)), 0, 0, 0)


class ChildProcess:
    """``python -m module`` with a wire to it; a context manager that leaves no process behind.

    Parameters
    ----------
    module
        A module that calls ``child_main``.
    limits
        What the child may use.
    max_message_bytes
        The longest message that is taken from the child.
    """

    def __init__(
        self, module: str, limits: Limits | None = None, *, max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        self._module = module
        self._limits = limits if limits is not None else Limits()
        self._decoder = Decoder(max_message_bytes)
        self._outgoing: deque[memoryview] = deque()
        self._guard: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._requests = self._replies = self._stderr = -1
        self._said = bytearray()
        self._status = bytearray()
        self._guards_fate: str | None = None

    @property
    def pid(self) -> int | None:
        """The id of the process that runs the module, once its guard has told it."""
        first = self._status.partition(b"\n")[0].split()
        return int(first[1]) if len(first) == 2 else None

    def __enter__(self) -> Self:
        _reap_lingering()
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            control, there = socket.socketpair()
            theirs.callback(there.close)
            ours.callback(control.close)

            def pipe(mine: int) -> tuple[int, int]:
                ends = os.pipe()
                theirs.callback(os.close, ends[1 - mine])
                ours.callback(os.close, ends[mine])
                os.set_blocking(ends[mine], False)
                return ends

            requests, replies, stderr = pipe(1), pipe(0), pipe(0)
            for descriptor in (requests[1], replies[0], stderr[0]):
                with contextlib.suppress(OSError):
                    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            control.send(json.dumps({"module": self._module, "limits": asdict(self._limits)}).encode())
            # Blocked in the new process until it is ready to take them.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
            try:
                self._guard = subprocess.Popen(
                    [_interpreter(), "-m", "pg_distill.child.guard", str(there.fileno())],
                    stdin=requests[0],
                    stdout=replies[1],
                    stderr=stderr[1],
                    pass_fds=(there.fileno(),),
                    cwd="/",
                    env=_environment(self._limits.threads),
                    start_new_session=True,
                )
            except OSError as error:
                raise TrainerDied("training process could not be started", detail=f"{error}.") from error
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            ours.pop_all()
        _running.append(self._guard.pid)
        _adopt_orphans()
        control.setblocking(False)
        self._control, self._requests, self._replies, self._stderr = (
            control,
            requests[1],
            replies[0],
            stderr[0],
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child, wait until it is gone, and close what led to it."""
        guard, control = self._guard, self._control
        if guard is None or control is None:
            return
        self._read_status()
        control.close()  # upon which the guard ends the child, and itself
        for descriptor in (self._requests, self._replies, self._stderr):
            os.close(descriptor)
        self._guard = self._control = None
        self._outgoing.clear()
        if guard.returncode is None:
            os.kill(guard.pid, signal.SIGCONT)  # should somebody have stopped it
            if not _reap(guard.pid, KILL_SECONDS):
                _lingering.append(guard.pid)  # in the kernel's hands: it ends by itself, with 0
            guard.returncode = 0  # Popen has nothing left to wait for
        # A guard that was killed leaves the child to us.
        if self.pid is not None and _is_ours(self.pid):
            os.kill(self.pid, signal.SIGKILL)
            _reap(self.pid, KILL_SECONDS)
        _running.remove(guard.pid)
        _adopt_orphans()

    def call(
        self,
        request: Message,
        *,
        on_message: Callable[[Message], Message | None],
        check_interrupts: Callable[[], None],
        deadline: float | None = None,
    ) -> Message:
        """Send ``request`` and return its answer.

        Parameters
        ----------
        on_message
            Is given every message before the answer; what it returns, if anything, is sent back.
        check_interrupts
            Called every 50 ms; may raise.
        deadline
            ``time.monotonic()`` seconds after which the child is given up.

        Raises
        ------
        PgDistillError
            What the child's handler raised; the child can be called again.
        TrainerDied, OutOfMemory
            The child died, hung, took too long, or sent what is no message. It is gone then, as it is after
            whatever ``on_message`` and ``check_interrupts`` raise.
        """
        if self._guard is None:
            raise TrainerDied("training process is not running")
        try:
            reply = self._converse(request, on_message, check_interrupts, deadline)
        except WireError as error:
            self.close()
            raise TrainerDied("training process sent what is no message", detail=f"It is {error}.") from error
        except MemoryError as error:
            self.close()
            raise OutOfMemory("no memory for what the training process sent") from error
        except BaseException:
            self.close()
            raise
        if reply.kind == "error":
            raise _remote_error(reply)
        return reply

    def _converse(
        self,
        request: Message,
        on_message: Callable[[Message], Message | None],
        check_interrupts: Callable[[], None],
        deadline: float | None,
    ) -> Message:
        assert self._guard is not None and self._control is not None
        self._outgoing.extend(encode(request))
        poll = select.poll()
        for descriptor in (self._control.fileno(), self._replies, self._stderr):
            poll.register(descriptor, select.POLLIN)
        checked = 0.0
        while True:
            if self._outgoing:
                poll.register(self._requests, select.POLLOUT)
            events = dict(poll.poll(POLL_SECONDS * 1000))
            now = time.monotonic()
            if now - checked >= POLL_SECONDS:
                check_interrupts()
                checked = time.monotonic()
                if deadline is not None and now > deadline:
                    raise TrainerDied("training process took longer than it may")
                if self._look_at_guard() is not None:
                    raise self._death(check_interrupts)
            if self._stderr in events and not self._listen():
                poll.unregister(self._stderr)
            if self._requests in events:
                self._send()
                if not self._outgoing:
                    poll.unregister(self._requests)
            if self._replies in events:
                count = self._read(self._decoder.target())
                if count == 0:
                    raise self._death(check_interrupts)
                message = self._decoder.filled(count) if count else None
                if message is not None and message.final:
                    return message
                begun = time.monotonic()
                answer = on_message(message) if message is not None else None
                if (
                    deadline is not None
                ):  # the backend's own work, such as labelling by SQL, is not the child's
                    deadline += time.monotonic() - begun
                if answer is not None:
                    self._outgoing.extend(encode(answer))
            elif self._control.fileno() in events and not self._read_status():
                raise self._death(check_interrupts)

    def _send(self) -> None:
        """Write what the pipe takes."""
        try:
            written = os.writev(
                self._requests, [self._outgoing[i] for i in range(min(len(self._outgoing), MAX_BUFFERS))]
            )
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._outgoing.clear()  # the end of the replies tells the rest
            return
        while written:
            first = self._outgoing.popleft()
            if len(first) > written:
                self._outgoing.appendleft(first[written:])
                return
            written -= len(first)

    def _read(self, target: memoryview) -> int | None:
        """Return how many bytes were read, 0 at the end, None where there are none yet."""
        try:
            return os.readv(self._replies, [target])
        except BlockingIOError:
            return None

    def _listen(self) -> bool:
        """Take in what the child wrote to stderr; False at its end."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._stderr, PIPE_BYTES):
                self._said = (self._said + data)[-STDERR_BYTES:]
                if len(data) < PIPE_BYTES:
                    return True
            return False
        return True

    def _read_status(self) -> bool:
        """Take in what the guard says; False where it has said how the child ended, or has itself."""
        assert self._control is not None
        with contextlib.suppress(BlockingIOError):
            try:
                data = self._control.recv(4096)
            except ConnectionError:
                return False
            self._status += data
            return bool(data) and self._status.count(b"\n") < 2
        return True

    def _look_at_guard(self) -> str | None:
        """Return what a signal did to the guard, if anything."""
        assert self._guard is not None
        if self._guard.returncode is None:
            found, status = _wait(self._guard.pid, os.WNOHANG | os.WUNTRACED)
            if found and os.WIFSTOPPED(status):
                self._guards_fate = f"stopped {os.WSTOPSIG(status)}"
            elif found:
                code = self._guard.returncode = os.waitstatus_to_exitcode(status)
                self._guards_fate = f"killed {-code}" if code < 0 else None
        return self._guards_fate

    def _death(self, check_interrupts: Callable[[], None]) -> PgDistillError:
        """Return the error that says how the child ended."""
        assert self._guard is not None and self._control is not None
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        given_up = time.monotonic() + KILL_SECONDS
        fate = self._look_at_guard()
        while fate is None and time.monotonic() < given_up:
            if self._read_status():
                poll.poll(POLL_SECONDS * 1000)
            elif self._status.count(b"\n") > 1 or self._guard.returncode is not None:
                break
            else:  # a killed guard's socket closes a moment before the guard can be waited for
                time.sleep(POLL_SECONDS / 10)
            check_interrupts()
            fate = self._look_at_guard()
        self._listen()
        said = self._said.decode(errors="replace").replace("\0", "").strip()
        lines = self._status.decode(errors="replace").splitlines()
        how, _, number = (lines[1] if len(lines) > 1 else fate or "").partition(" ")
        if how == "memory" or (
            how in ("killed", "exited") and any(sign in said for sign in OUT_OF_MEMORY_SIGNS)
        ):
            return OutOfMemory(OUT_OF_MEMORY, detail=said or None, hint=OUT_OF_MEMORY_HINT)
        if how in ("killed", "stopped"):
            how = f"was {how} by signal {number} ({signal.strsignal(int(number))})"
        elif how == "exited":
            how = f"exited with status {number}"
        elif how == "hung":
            how = "hung: it neither answered nor computed"
        else:
            how = "was ended"
        return TrainerDied(f"training process {how}", detail=said or None)


def _wait(pid: int, options: int) -> tuple[int, int]:
    try:
        return os.waitpid(pid, options)
    except ChildProcessError:
        return pid, 0


def _reap(pid: int, seconds: float) -> bool:
    """Wait for a process that is ending; False where it takes longer."""
    given_up, pause = time.monotonic() + seconds, 0.0005
    while not _wait(pid, os.WNOHANG)[0]:
        if time.monotonic() > given_up:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    return True


def _reap_lingering() -> None:
    _lingering[:] = [pid for pid in _lingering if not _wait(pid, os.WNOHANG)[0]]


def _is_ours(pid: int) -> bool:
    """Whether a process is our own child."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1]) == os.getpid()
    except OSError:
        return False


def _remote_error(message: Message) -> PgDistillError:
    def text(name: str) -> str | None:
        value = message.fields.get(name)
        return str(value).replace("\0", "")[:MAX_TEXT] if value else None

    said = text("message") or "training process failed"
    return by_sqlstate(text("sqlstate") or "")(said, detail=text("detail"), hint=text("hint"))
