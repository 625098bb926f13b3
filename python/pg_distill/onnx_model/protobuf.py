"""Fields of a serialized message, read and written without the classes of onnx, which a backend does not import."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["field", "fields", "read_integers", "write_varint"]


def read_integers(view: memoryview) -> Iterator[int]:
    """Yield the 64-bit integers of one field, packed or not."""
    at = 0
    while at < len(view):
        value, at = _varint(view, at)
        yield value - 2**64 if value >= 2**63 else value


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind it."""
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("a varint is too long")


def fields(view: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield (number, field, payload) of a serialized message; IndexError where it is none."""
    at, end = 0, len(view)
    while at < end:
        start = at
        tag, at = _varint(view, at)
        wire = tag & 7
        if wire == 0:
            payload = at
            _, at = _varint(view, at)
        elif wire in (1, 5):
            payload, at = at, at + (8 if wire == 1 else 4)
        elif wire == 2:
            size, at = _varint(view, at)
            payload, at = at, at + size
        else:
            raise IndexError(f"wire type {wire} is not used by ONNX")
        if at > end:
            raise IndexError("a field ends after its message")
        yield tag >> 3, view[start:at], view[payload:at]


def field(number: int, payload: bytes) -> bytes:
    """Return a field whose payload has a length."""
    return write_varint(number << 3 | 2) + write_varint(len(payload)) + payload


def write_varint(value: int) -> bytes:
    """Return a number of no sign as a message holds it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
