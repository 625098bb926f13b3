"""A run that PostgreSQL can end in its middle.

A backend that is inside a long call of a library looks at nothing: cancel, statement_timeout and pg_terminate_backend only
set a flag there, ``InterruptPending``. onnxruntime can be asked to end a run, or the opening of a session, by another
thread. So a thread of this module looks at the flag while such a call is under way, and asks. The main thread, back from the
call, lets PostgreSQL do what it has to, which mostly raises; where it does not (a barrier, a look whether the client is
still there) the call is made again.

The thread is born with all signals blocked, at the first long call, and sleeps on a lock in between: it wants neither the
processor nor the interpreter's lock. It holds no lock of anybody's, so that nothing of it blocks a backend that forks
or exits.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pg_distill.errors import OutOfMemory

__all__ = ["POLL_SECONDS", "Watchdog"]

T = TypeVar("T")

POLL_SECONDS = 0.01  # between looks at the flag


def _find_flag() -> ctypes.c_int | None:
    """Return PostgreSQL's flag; None outside of a backend."""
    try:
        return ctypes.c_int.in_dll(ctypes.CDLL(None), "InterruptPending")
    except (OSError, TypeError, ValueError):
        return None


class Watchdog:
    """Makes long calls, and ends them where PostgreSQL has something to attend to.

    Parameters
    ----------
    check
        Lets PostgreSQL attend to it; mostly raises.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check

    def run(self, work: Callable[[], T], stop: Callable[[bool], object]) -> T:
        """Return what ``work`` returns.

        Parameters
        ----------
        stop
            With True makes ``work`` end soon, by an exception, from another thread; with False takes that back.

        Raises
        ------
        OutOfMemory
            Where no thread can be started.
        """
        patience = 0.0
        while True:
            began = time.monotonic()
            thread = _started()
            if thread is None:
                return work()
            thread.begin(stop, began + patience)
            failure: Exception | None = None
            try:
                result = work()
            except Exception as error:
                failure = error
            finally:
                stopped = thread.end()
                if stopped:
                    stop(False)
            if failure is None:
                return result
            if not stopped:
                raise failure
            self.check()
            # Nothing that ends the statement. What comes again and again must not keep the call from ever ending.
            patience = 2 * (time.monotonic() - began)


class _Thread:
    """The thread, and the locks by which it is told of a call's beginning and end."""

    def __init__(self, flag: ctypes.c_int) -> None:
        self.process = os.getpid()
        self.is_busy = False
        self._flag = flag
        self._begun, self._ended, self._seen = (_thread.allocate_lock() for _ in range(3))
        for lock in (self._begun, self._ended, self._seen):
            lock.acquire()
        self._stop: Callable[[bool], object] = bool
        self._not_before = 0.0
        self._stopped = False
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread = threading.Thread(target=self._watch, name="pg_distill interrupts", daemon=True)
            self._thread.start()
        except RuntimeError as error:
            raise OutOfMemory("no thread could be started to watch a slow model") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self.process == os.getpid()

    def begin(self, stop: Callable[[bool], object], not_before: float) -> None:
        self.is_busy = True
        self._stop, self._not_before, self._stopped = stop, not_before, False
        self._begun.release()

    def end(self) -> bool:
        """Wait until the thread sleeps again; return whether it has asked for an end."""
        self._ended.release()
        self._seen.acquire()
        self._stop = bool
        self.is_busy = False
        return self._stopped

    def _watch(self) -> None:
        while True:
            self._begun.acquire()
            try:
                while not self._ended.acquire(timeout=POLL_SECONDS):
                    if self._flag.value and time.monotonic() >= self._not_before:
                        self._stopped = True
                        self._stop(True)
                        self._ended.acquire()
                        break
            except BaseException:  # no memory, say: another thread takes over, and nothing is printed
                self._ended.acquire()
                return
            finally:
                self._seen.release()


_flag = _find_flag()
_thread_now: _Thread | None = None


def _started() -> _Thread | None:
    """Return the thread; None outside of a backend, and in a call within a call."""
    global _thread_now
    if _flag is None or (_thread_now is not None and _thread_now.is_busy and _thread_now.is_alive):
        return None
    if _thread_now is None or not _thread_now.is_alive:
        _thread_now = _Thread(_flag)
    return _thread_now
