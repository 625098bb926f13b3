"""Places for the processes that this server starts: locks of the operating system that no statement can take.

An advisory lock is anybody's: one session of any role in any database could hold all of them. A place is a byte of a file in the
data directory, which only the server's own user can open, locked by an open file description (fcntl(2), F_OFD_SETLK): it is held
by a backend whatever its database is, and is free again when that closes the file or ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import struct
from types import TracebackType
from typing import Self

from pg_distill.errors import InvalidState

__all__ = ["FILE", "INSPECTIONS", "TRAININGS", "Place", "take"]

FILE = "pg_distill.places"
"""In the data directory, which is a backend's working directory. Empty: a lock may lie beyond a file's end."""

TRAININGS = 0
"""The first byte of the places for trainings."""

INSPECTIONS = 1024
"""The first byte of the places for processes that check files."""

# struct flock: type, whence, start, length, pid (0 for a lock of an open file description)
_FLOCK = struct.Struct("@hhqqi4x")


class Place:
    """A place that is taken, until it is closed or left as a context."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Give it back."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def take(first: int, count: int, *, file: str = FILE) -> Place | None:
    """Take one of ``count`` places from the byte ``first`` on; None where all are taken.

    Raises
    ------
    InvalidState
        The file cannot be opened.
    """
    try:
        # Not inherited by a child that is started by exec.
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InvalidState(
            f'file "{file}" in the data directory cannot be opened: {error.strerror}',
            hint="It must belong to the server's user, as all of the data directory.",
        ) from error
    for byte in range(first, first + count):
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: somebody has it
            continue
        return Place(descriptor)
    os.close(descriptor)
    return None
