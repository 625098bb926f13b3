"""A child process for tests of ``process``: handlers that answer, fail and die in every way."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from pg_distill.child.channel import Channel, child_main
from pg_distill.child.wire import Message
from pg_distill.errors import InvalidData


def echo(request: Message, channel: Channel) -> Message:
    return Message("echoed", request.fields, request.arrays, request.blobs)


def progress(request: Message, channel: Channel) -> Message:
    """Send large messages while the backend may still be sending."""
    for number in range(request.fields["messages"]):
        channel.send(Message("progress", {"number": number}, {"x": np.full(request.fields["size"], number)}))
    return Message("done", {"sum": float(request.arrays["x"].sum())})


def ask(request: Message, channel: Channel) -> Message:
    answers = [
        channel.ask(Message("question", {"number": number}, request.arrays)).arrays["x"].sum()
        for number in range(5)
    ]
    return Message("done", {"sums": answers})


def flood(request: Message, channel: Channel) -> Message:
    """Ask for large answers while a thread sends large messages."""
    x = request.arrays["x"]

    def send() -> None:
        for number in range(20):
            channel.send(Message("progress", {"number": number}, {"x": x}))

    thread = threading.Thread(target=send)
    thread.start()
    sums = [channel.ask(Message("question", {}, {"x": x})).arrays["x"].sum() for _ in range(5)]
    thread.join()
    return Message("done", {"sums": sums})


def refuse(request: Message, channel: Channel) -> Message:
    raise InvalidData("label has one class only", detail="It is 1.", hint="Take more rows.")


def fail(request: Message, channel: Channel) -> Message:
    raise ZeroDivisionError("a fault of ours")


def fill_memory(request: Message, channel: Channel) -> Message:
    held = []
    while True:
        held.append(np.ones(1 << 22))


def fill_memory_for_a_while(request: Message, channel: Channel) -> Message:
    """Leave not even room for a small object, in pieces of every size that Python allocates by."""
    held: list[Any] = [None]
    for size in [*(1 << n for n in range(26, 9, -1)), *range(512, 0, -16)]:
        with contextlib.suppress(MemoryError):
            while True:
                held = [held, bytes(size)]
    time.sleep(2.0)
    while held is not None:  # one by one: a chain of millions would end in a recursion
        held = held[0]
    return Message("done")


def fill_memory_in_c(request: Message, channel: Channel) -> Message:
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def fill_memory_unchecked(request: Message, channel: Channel) -> Message:
    """Write to what malloc gives, 16 MiB every 10 ms, without a look at whether it gave any."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    while True:
        ctypes.memset(libc.malloc(ctypes.c_size_t(16 << 20)), 1, 16 << 20)
        time.sleep(0.01)


def die(request: Message, channel: Channel) -> Message:
    os.kill(os.getpid(), request.fields["signal"])
    time.sleep(60)
    raise AssertionError("still here")


def crash(request: Message, channel: Channel) -> Message:
    ctypes.string_at(0)
    raise AssertionError("still here")


def leave(request: Message, channel: Channel) -> Message:
    print("last words", file=sys.stderr)
    os._exit(request.fields["status"])


def write_garbage(request: Message, channel: Channel) -> Message:
    os.write(int(sys.argv[2]), b"\x00garbage" * 100)
    time.sleep(60)
    raise AssertionError("still here")


def write_scratch(request: Message, channel: Channel) -> Message:
    descriptor = os.open("/tmp", os.O_TMPFILE | os.O_WRONLY, 0o600)
    try:
        os.write(descriptor, b"x")
    finally:
        os.close(descriptor)
    raise AssertionError("written")


def print_something(request: Message, channel: Channel) -> Message:
    os.write(1, b"a library's greeting\n" * request.fields["lines"])
    return Message("done", {"read": os.read(0, 10).decode()})


def sleep(request: Message, channel: Channel) -> Message:
    channel.send(Message("progress"))
    time.sleep(request.fields["seconds"])
    return Message("done")


def compute(request: Message, channel: Channel) -> Message:
    """Hold a processor without a look at anything, with or without the interpreter's lock."""
    channel.send(Message("progress"))
    library = (ctypes.PyDLL if request.fields["locked"] else ctypes.CDLL)(None)
    size = 1 << 16
    buffer = (ctypes.c_char * size)()
    ends = time.monotonic() + request.fields["seconds"]
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(("abs", library))
    while time.monotonic() < ends:
        # A sort of equal keys by a C function: about a tenth of a second in C alone.
        library.qsort(buffer, ctypes.c_size_t(size), ctypes.c_size_t(1), compare)
    return Message("done")


def lock_up(request: Message, channel: Channel) -> Message:
    """Sleep in C while holding the interpreter's lock: no thread of Python's moves any more."""
    channel.send(Message("progress"))
    ctypes.PyDLL(None).sleep(60)
    raise AssertionError("still here")


def describe(request: Message, channel: Channel) -> Message:
    """Tell what the process finds itself to be."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines())
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
            file.flush()
        writes = True
    except OSError:
        writes = False
    return Message(
        "described",
        {
            "pid": os.getpid(),
            "arguments": Path("/proc/self/cmdline").read_bytes().decode().split("\0"),
            "parent": os.getppid(),
            "session": os.getsid(0),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "directory": os.getcwd(),
            "environment": dict(os.environ),
            "niceness": os.nice(0),
            "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text("ascii")),
            "blocked": int(status["SigBlk"], 16),
            "ignored": int(status["SigIgn"], 16),
            "threads": int(status["Threads"]),
            "writes": writes,
        },
    )


if __name__ == "__main__":
    child_main(
        {
            handler.__name__: handler
            for handler in (
                echo,
                progress,
                ask,
                flood,
                refuse,
                fail,
                fill_memory,
                fill_memory_for_a_while,
                fill_memory_in_c,
                fill_memory_unchecked,
                die,
                crash,
                leave,
                write_garbage,
                write_scratch,
                print_something,
                sleep,
                compute,
                lock_up,
                describe,
            )
        }
    )
