"""The child's end of the wire: a loop of answers, its beat, and errors that fit on it."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from pg_distill.child.guard import ENDING_SIGNALS
from pg_distill.child.process import MAX_TEXT, OUT_OF_MEMORY, OUT_OF_MEMORY_HINT, OUT_OF_MEMORY_SIGNS
from pg_distill.child.wire import Decoder, Message, encode
from pg_distill.errors import PgDistillError

__all__ = ["Channel", "child_main"]

BEAT_SECONDS = 0.25  # between the child's signs of life; see guard.HANG_SECONDS
RESERVE_BYTES = 8 << 20  # given up when memory runs out, to say so

# LightGBM looks for these, and takes along what somebody else has installed: 0.8 s and 90 MB of a process that uses none.
NOT_IMPORTED = ("cffi", "graphviz", "matplotlib", "pandas", "pyarrow", "sklearn")

# A training process may write no file (see guard): a library that tries meets EFBIG, elsewhere it would be a full disk.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Channel:
    """The child's way to its parent; a thread of a handler's may use it."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests, self._replies = requests, replies
        self._decoder = Decoder()
        self._sending = threading.Lock()
        self._asking = threading.Lock()

    def send(self, message: Message | Sequence[memoryview]) -> None:
        """Send a message, encoded or not."""
        parts = encode(message) if isinstance(message, Message) else message
        with self._sending:
            for part in parts:
                while len(part):
                    try:
                        part = part[os.write(self._replies, part) :]
                    except BrokenPipeError:
                        os._exit(0)

    def ask(self, message: Message) -> Message:
        """Send a message and wait for its answer."""
        with self._asking:
            self.send(message)
            return self.receive()

    def receive(self) -> Message:
        """Wait for the next message; the process ends, with 0, where nobody is left to send one."""
        while True:
            count = os.readv(self._requests, [self._decoder.target()])
            if not count:
                os._exit(0)
            message = self._decoder.filled(count)
            if message is not None:
                return message


def _start_watcher(requests: int, beat: int) -> None:
    """Beat, and exit with 0 when asked to or when guard or backend have gone, whatever else runs here."""

    def watch() -> None:
        poll = select.poll()
        poll.register(requests, 0)  # POLLHUP comes unasked
        poll.register(beat, 0)
        os.set_blocking(beat, False)
        pause = 0.0
        try:
            while True:
                try:
                    if poll.poll(pause) or signal.sigpending() & ENDING_SIGNALS:
                        break
                    os.write(beat, b".")
                except BlockingIOError:
                    pass
                except MemoryError:
                    # Whoever took it all is to say so, and not this thread by ending the process.
                    time.sleep(BEAT_SECONDS)
                pause = BEAT_SECONDS * 1000
        finally:
            os._exit(0)

    threading.Thread(target=watch, name="watcher", daemon=True).start()


def child_main(handlers: Mapping[str, Callable[[Message, Channel], Message]]) -> NoReturn:
    """Serve requests until the parent has gone.

    A request goes to the handler of its kind. What that returns is the answer, of any kind but "error"; what
    it raises is the error.
    """
    requests, replies, beat = map(int, sys.argv[1:])
    _start_watcher(requests, beat)
    sys.modules.update(dict.fromkeys(NOT_IMPORTED))  # type: ignore[arg-type]  # None: there is no such module
    channel = Channel(requests, replies)
    while True:
        channel.send(_answer(handlers, channel))


def _answer(
    handlers: Mapping[str, Callable[[Message, Channel], Message]], channel: Channel
) -> list[memoryview]:
    """Wait for a request, and return its answer or its error, ready to be sent."""
    request = channel.receive()
    reserve = bytearray(RESERVE_BYTES)
    try:
        reply = handlers[request.kind](request, channel)
        reply.final = True
        return encode(reply)
    except PgDistillError as error:
        return _encoded_error(error.sqlstate, error.message, error.detail, error.hint)
    except Exception as error:
        # Let go of what the handler held before anything else asks for memory.
        del reserve
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        said = "".join(traceback.format_exception(error))[-MAX_TEXT:]
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS):
            return _encoded_error("53200", OUT_OF_MEMORY, said, OUT_OF_MEMORY_HINT)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return _encoded_error("53100", "training process found no room for a file", said, None)
        return _encoded_error("38000", f"training process failed: {error!r}", said, None)


def _encoded_error(sqlstate: str, message: str, detail: str | None, hint: str | None) -> list[memoryview]:
    fields = {"sqlstate": sqlstate, "message": message, "detail": detail, "hint": hint}
    return encode(Message("error", fields, final=True))
