from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pg_distill.child.wire import Decoder, Message, WireError, encode

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
arrays: st.SearchStrategy[Any] = hnp.arrays(
    dtype=st.sampled_from([np.dtype(t) for t in ["?", "i1", "u1", "<i4", ">i4", "<i8", "<f4", "<f8", ">f8"]]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
messages = st.builds(
    Message,
    st.text(max_size=10),
    st.dictionaries(st.text(), json_values, max_size=3),
    st.dictionaries(st.text(), arrays, max_size=3),
    st.dictionaries(st.text(), st.binary(max_size=200), max_size=3),
    st.booleans(),
)


def joined(message: Message) -> bytes:
    return b"".join(encode(message))


def same(a: Message, b: Message) -> None:
    assert (a.kind, a.final, a.fields, a.blobs) == (b.kind, b.final, b.fields, b.blobs)
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        np.testing.assert_array_equal(array, b.arrays[name], strict=False)
        assert array.shape == b.arrays[name].shape
        assert array.dtype.newbyteorder("<") == b.arrays[name].dtype


@given(st.lists(messages, max_size=3), st.integers(1, 300))
def test_what_is_sent_arrives_in_pieces_of_any_size(sent: list[Message], step: int) -> None:
    data = b"".join(map(joined, sent))
    decoder = Decoder()
    got = [m for start in range(0, len(data), step) for m in decoder.feed(data[start : start + step])]
    assert len(got) == len(sent)
    for a, b in zip(sent, got, strict=True):
        same(a, b)


@given(messages, st.data())
def test_a_damaged_message_is_refused_or_read_but_nothing_else(message: Message, data: Any) -> None:
    damaged = bytearray(joined(message))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        for got in Decoder(1 << 20).feed(bytes(damaged)):
            assert isinstance(got, Message)
    except WireError:
        pass


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_a_header_of_anything_is_refused_or_read_but_nothing_else(header: bytes) -> None:
    with contextlib.suppress(WireError):
        list(Decoder().feed(struct.pack("<4sIQ", b"PGD1", len(header), 0) + header))


def test_garbage_is_refused_at_its_first_bytes() -> None:
    with pytest.raises(WireError):
        list(Decoder().feed(b"Traceback (most recent call last)"))


def test_lengths_are_bounded_before_anything_is_allocated() -> None:
    for header, body in ((1 << 31, 0), (10, 1 << 62), (1, 1 << 20)):
        with pytest.raises(WireError, match="longer than the limit"):
            list(Decoder(1 << 20).feed(struct.pack("<4sIQ", b"PGD1", header, body)))


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": [["x", "<f8", [1 << 60]]]},
        {"arrays": [["x", "<f8", [-1, -2]]]},
        {"arrays": [["x", "<f8", [1.0]]]},
        {"arrays": [["x", "<f8", [True]]]},
        {"arrays": [["x", "<f8", [1] * 64]]},
        {"arrays": [["x", "|O", [2]]]},
        {"arrays": [["x", "<U4", [2]]]},
        {"arrays": [["x", ["<f8"], [2]]]},
        {"arrays": [["x", "<f8", [2]], ["x", "<f8", [2]]]},
        {"arrays": [["x", "|b1", [16]]]},
        {"arrays": []},
        {"arrays": {}},
        {"blobs": [["b", 1 << 60]]},
        {"blobs": [["b", -1]]},
        {"fields": []},
        {"kind": None},
        {"more": 1},
    ],
)
def test_a_header_that_lies_is_refused(change: dict[str, Any]) -> None:
    honest = joined(Message("k", {}, {"x": np.array([1.5, 2.5])}))
    _, size, body = struct.unpack_from("<4sIQ", honest)
    header = json.dumps(json.loads(honest[16 : 16 + size]) | change).encode()
    lie = struct.pack("<4sIQ", b"PGD1", len(header), body) + header + honest[16 + size :]
    with pytest.raises(WireError):
        list(Decoder().feed(lie))


def test_a_header_nested_too_deep_is_refused() -> None:
    header = b"[" * 1_000_000
    with pytest.raises(WireError):
        list(Decoder().feed(struct.pack("<4sIQ", b"PGD1", len(header), 0) + header))


def test_objects_and_strings_do_not_travel() -> None:
    for array in (np.array([None]), np.array(["a"]), np.array([1j])):
        with pytest.raises(TypeError):
            encode(Message("k", {}, {"x": array}))
    with pytest.raises(TypeError):
        encode(Message("k", {"x": object()}))


def test_numpy_scalars_travel_as_numbers() -> None:
    (got,) = Decoder().feed(
        joined(Message("k", {"n": np.int64(3), "x": np.float32(0.5), "b": np.bool_(True)}))
    )
    assert got.fields == {"n": 3, "x": 0.5, "b": True}


def test_large_arrays_are_not_copied_and_arrive_writable() -> None:
    x = np.arange(1_000_000.0)
    parts = encode(Message("k", {}, {"x": x}))
    assert any(np.shares_memory(np.frombuffer(part, np.uint8), x) for part in parts)
    (got,) = Decoder().feed(b"".join(parts))
    got.arrays["x"][0] = 7.0
    assert got.arrays["x"].ctypes.data % 16 == 0
