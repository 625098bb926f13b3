"""Messages between backend and training process: JSON and raw arrays behind their lengths, never pickle.

::

    magic and version   4 bytes   b"PGD1"
    header's length     uint32, little-endian
    body's length       uint64, little-endian
    header              JSON: kind, final, fields, arrays' [name, dtype, shape], blobs' [name, length]
    body                arrays, then blobs, in the header's order, each begun at a multiple of 64 bytes

The training process opens files that strangers wrote, so the backend takes nothing that it says on trust:
whatever does not fit is a ``WireError``, and no length makes the backend allocate more than its limit.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_MESSAGE_BYTES", "Decoder", "Message", "WireError", "encode"]

MAX_MESSAGE_BYTES = 8 << 30  # rows of a sample at their most: 2 million rows of 500 columns
MAX_HEADER_BYTES = 256 << 20  # the categories of string columns travel in it
MAX_DIMENSIONS = 8  # our arrays have two at most
ALIGNMENT = 64  # bytes: a cache line

_MAGIC = b"PGD1"
_PREFIX = struct.Struct("<4sIQ")
_DTYPES = frozenset({"|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8"})


class WireError(Exception):
    """The bytes are no message."""


@dataclass
class Message:
    """A kind, JSON values, arrays of numbers, and bytes.

    ``final`` marks the answer that ends a request; ``process`` sets it.
    """

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    final: bool = False


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot travel as JSON")


def encode(message: Message) -> list[memoryview]:
    """Return the message as buffers to be written one after the other; contiguous arrays are not copied.

    Raises
    ------
    TypeError
        A field is not JSON, or an array is of objects or strings.
    """
    parts: list[memoryview] = []
    arrays: list[tuple[str, str, tuple[int, ...]]] = []
    size = 0

    def add(data: memoryview) -> None:
        nonlocal size
        if len(data):
            parts.append(data)
        if padding := _padded(len(data)) - len(data):
            parts.append(memoryview(bytes(padding)))
        size += _padded(len(data))

    for name, array in message.arrays.items():
        dense = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        if dense.dtype.str not in _DTYPES:
            raise TypeError(f'array "{name}" of {array.dtype} cannot travel')
        arrays.append((name, dense.dtype.str, array.shape))
        add(dense.reshape(-1).view(np.uint8).data)
    for blob in message.blobs.values():
        add(memoryview(blob).cast("B"))
    header = json.dumps(
        {
            "kind": message.kind,
            "final": message.final,
            "fields": message.fields,
            "arrays": arrays,
            "blobs": [(name, len(blob)) for name, blob in message.blobs.items()],
        },
        default=_plain,
    ).encode("ascii")
    return [memoryview(_PREFIX.pack(_MAGIC, len(header), size)), memoryview(header), *parts]


class Decoder:
    """Bytes in, messages out, in pieces of any size.

    A reader that wants no copy fills ``target()`` and says by ``filled(count)`` how much it wrote there;
    others ``feed`` bytes. Decoded arrays are writable and share the memory of their message.
    """

    def __init__(self, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._start()

    def _start(self) -> None:
        self._header: bytearray | None = None
        self._body = np.empty(0, np.uint8)
        self._body_size = 0
        self._section = memoryview(bytearray(_PREFIX.size))
        self._rest = self._section

    def target(self) -> memoryview:
        """Return where the next bytes go; never empty."""
        return self._rest

    def filled(self, count: int) -> Message | None:
        """Take in the first ``count`` bytes of ``target()``; return the message that they complete, if any.

        Raises
        ------
        WireError
            They are no message.
        MemoryError
            There is no memory for what they announce.
        """
        self._rest = self._rest[count:]
        if len(self._rest):
            return None
        if self._header is None:
            magic, header_size, self._body_size = _PREFIX.unpack(self._section)
            if magic != _MAGIC:
                raise WireError(f"bytes {bytes(self._section)!r} begin no message")
            if header_size > MAX_HEADER_BYTES or header_size + self._body_size > self._max_bytes:
                raise WireError(
                    f"a message of {header_size} + {self._body_size} bytes is longer than the limit"
                )
            if not header_size:
                raise WireError("a message without a header")
            self._header = bytearray(header_size)
            self._rest = memoryview(self._header)
            return None
        if self._body_size and not len(self._body):
            self._body = np.empty(self._body_size, np.uint8)
            self._rest = self._body.data
            return None
        message = _decode(self._header, self._body)
        self._start()
        return message

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take in ``data`` and yield the messages that it completes; raises as ``filled`` does."""
        rest = memoryview(data)
        while len(rest):
            target = self.target()
            count = min(len(target), len(rest))
            target[:count] = rest[:count]
            rest = rest[count:]
            message = self.filled(count)
            if message is not None:
                yield message


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise WireError(what)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _decode(header: bytearray, body: npt.NDArray[np.uint8]) -> Message:
    try:
        read = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a header that is not JSON: {error}") from error
    _require(
        isinstance(read, dict) and read.keys() == {"kind", "final", "fields", "arrays", "blobs"},
        "an unknown header",
    )
    _require(isinstance(read["kind"], str) and isinstance(read["final"], bool), "a header without a kind")
    _require(isinstance(read["fields"], dict), "fields that are no object")
    _require(
        isinstance(read["arrays"], list) and isinstance(read["blobs"], list), "a header without its lists"
    )
    message = Message(read["kind"], read["fields"], final=read["final"])
    offset = 0

    def take(size: int, name: str) -> npt.NDArray[np.uint8]:
        nonlocal offset
        _require(_padded(size) <= len(body) - offset, f'"{name}" is longer than the message')
        part = body[offset : offset + size]
        offset += _padded(size)
        return part

    for entry in read["arrays"]:
        _require(isinstance(entry, list) and len(entry) == 3, "an array without name, type and shape")
        name, dtype, shape = entry
        _require(isinstance(name, str) and name not in message.arrays, "an array without a name of its own")
        _require(isinstance(dtype, str) and dtype in _DTYPES, f'array "{name}" of an unknown type')
        _require(
            isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and all(map(_is_size, shape)),
            f'array "{name}" without a shape',
        )
        part = take(math.prod(shape) * np.dtype(dtype).itemsize, name)
        _require(
            dtype != "|b1" or not len(part) or int(part.max()) <= 1, f'array "{name}" of no truth values'
        )
        message.arrays[name] = part.view(dtype).reshape(shape)
    for entry in read["blobs"]:
        _require(isinstance(entry, list) and len(entry) == 2, "a blob without name and length")
        name, size = entry
        _require(isinstance(name, str) and name not in message.blobs, "a blob without a name of its own")
        _require(_is_size(size), f'blob "{name}" without a length')
        message.blobs[name] = take(size, name).tobytes()
    _require(offset == len(body), "a message that is longer than its parts")
    return message
