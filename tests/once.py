"""What the processes of a test session share: things that are made once, and the machine, which one of them may want alone."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

FOLDER = "PG_DISTILL_TESTS_MADE"
"""The variable of the environment that names the session's folder, which xdist's processes inherit."""

T = TypeVar("T")


def begin(*, is_part: bool) -> bool:
    """Make the session's folder; say whether it was this process that did. One of xdist's processes ``is_part`` of a session.

    A session that a test starts has a folder of its own: it would wait for who waits for that test.
    """
    if is_part:
        return False
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="pg_distill_made_")
    return True


def end() -> None:
    """Remove the session's folder."""
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)


def once(name: str, make: Callable[[], T]) -> T:
    """Give what ``make`` returned the first time in this session.

    Where it raises, nothing is kept: the next who asks tries again. Outside of a session nothing is kept either.
    """
    if FOLDER not in os.environ:
        return make()
    place = Path(os.environ[FOLDER]) / name
    with Path(f"{place}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.exists():
            return pickle.loads(place.read_bytes())  # type: ignore[no-any-return]
        made = make()
        part = Path(f"{place}.part")
        part.write_bytes(pickle.dumps(made))
        part.rename(place)
        return made


@contextmanager
def machine(*, alone: bool) -> Iterator[None]:
    """Run beside the session's other processes, or once their tests are over, while their next ones wait.

    Who wants to be alone keeps the door: behind it nobody comes in, so that it is not kept waiting for ever.
    """
    if FOLDER not in os.environ:
        yield
        return
    folder = Path(os.environ[FOLDER])
    with (folder / "door.lock").open("w") as door, (folder / "room.lock").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(door, fcntl.LOCK_UN)
        yield
