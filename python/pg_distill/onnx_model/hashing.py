"""MurmurHash3 of 32 bits, seed 0: the hash by which scikit-learn's HashingVectorizer finds a term's column."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["murmur3"]

BYTES_A_CHECK = 1 << 15
"""Bytes of terms that are hashed between two checks, in some 10 ms."""

_BLOCK = struct.Struct("<I")
_FEW = 8
"""Terms of one length in bytes that are hashed one by one, in less time than numpy takes for the first."""
_LONG = 400
"""Bytes of a term that is hashed by itself."""


def murmur3(terms: Sequence[bytes], check: Callable[[], None]) -> npt.NDArray[np.int64]:
    """Return the hash of each term, as signed numbers; ``check`` is called again and again, and may raise."""
    out = np.zeros(len(terms), np.int64)
    groups: dict[int, list[int]] = {}
    for i, term in enumerate(terms):
        groups.setdefault(len(term), []).append(i)
    read = 0
    for length, members in groups.items():
        read += (length + 16) * len(members)
        if read > BYTES_A_CHECK:
            check()
            read = 0
        if not length or len(members) <= _FEW or length > _LONG:
            for i in members:
                if length > _LONG:
                    check()
                out[i] = _of_one(terms[i])
        else:
            out[members] = _of_many(b"".join([terms[i] for i in members]), length)
    return out


def _of_many(joined: bytes, length: int) -> npt.NDArray[np.int64]:
    """Return the hashes of terms that all have ``length`` bytes, joined; whole numbers of 32 bits wrap."""
    u32 = np.uint32
    table = np.frombuffer(joined, np.uint8).reshape(-1, length)
    value = np.zeros(len(table), u32)
    padded = np.zeros((len(table), (length + 3) // 4 * 4), np.uint8)
    padded[:, :length] = table
    blocks = padded.view("<u4").astype(u32)
    for place in range(blocks.shape[1]):
        block = blocks[:, place] * u32(0xCC9E2D51)
        block = (block << u32(15)) | (block >> u32(17))
        value ^= block * u32(0x1B873593)
        if place < length // 4:  # the rest is the tail
            value = (value << u32(13)) | (value >> u32(19))
            value = value * u32(5) + u32(0xE6546B64)
    value ^= u32(length)
    value = (value ^ (value >> u32(16))) * u32(0x85EBCA6B)
    value = (value ^ (value >> u32(13))) * u32(0xC2B2AE35)
    value ^= value >> u32(16)
    return value.view(np.int32).astype(np.int64)


def _of_one(data: bytes) -> int:
    """Return the hash of one term, as a signed number."""
    mask = 0xFFFFFFFF
    value = 0
    whole = len(data) & ~3
    for (block,) in _BLOCK.iter_unpack(data[:whole]):
        block = block * 0xCC9E2D51 & mask
        block = (block << 15 | block >> 17) & mask
        value ^= block * 0x1B873593 & mask
        value = (value << 13 | value >> 19) & mask
        value = (value * 5 + 0xE6546B64) & mask
    if whole < len(data):
        block = int.from_bytes(data[whole:], "little") * 0xCC9E2D51 & mask
        block = (block << 15 | block >> 17) & mask
        value ^= block * 0x1B873593 & mask
    value ^= len(data)
    value = (value ^ value >> 16) * 0x85EBCA6B & mask
    value = (value ^ value >> 13) * 0xC2B2AE35 & mask
    value ^= value >> 16
    return value - 2**32 if value >= 2**31 else value
