"""Rules of operators that move values to or from places that a tensor names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from pg_distill.onnx_model.rules import (
    GATHER_NS,
    Amount,
    Call,
    Tensor,
    amounts_of,
    gives,
    rule,
)


@rule("Gather", ns=GATHER_NS, why="onnxruntime compares each index with the axis and fails on one outside")
def _gather(call: Call) -> Sequence[Tensor]:
    source, indices = call.input(0), call.input(1)
    axis = call.axis(call.given.get("axis", 0), source.rank)
    shape = (*source.shape[:axis], *indices.shape, *source.shape[axis + 1 :])
    values = None
    if (
        source.values is not None
        and indices.values is not None
        and not any(v.a_row for v in indices.values.reshape(-1))
    ):
        places = np.array([v.fixed for v in indices.values.reshape(-1)], np.int64).reshape(
            indices.values.shape
        )
        size = source.values.shape[axis]
        if places.size and (places.min() < -size or places.max() >= size):
            call.contradict(f"reads place {places.max()} of {size}")
        values = np.asarray(source.values.take(places % max(size, 1), axis=axis), object)
    return [gives(call, source.element, shape, values)]


def _same_beside(call: Call, axis: int, source: Tensor, indices: Tensor) -> None:
    """Refuse indices whose shape differs from the source's elsewhere than along the axis; their ranks are the same."""
    for i in range(source.rank):
        if i != axis:
            call.same(source.shape[i], indices.shape[i])


@rule(
    "GatherElements",
    ns=GATHER_NS,
    why="onnxruntime compares each index with the axis and fails on one outside",
)
def _gather_elements(call: Call) -> Sequence[Tensor]:
    source, indices = call.input(0), call.input(1)
    if source.rank != indices.rank:
        call.contradict("has indices of another rank")
    axis = call.axis(call.given.get("axis", 0), source.rank)
    _same_beside(call, axis, source, indices)
    return [gives(call, source.element, indices.shape)]


@rule(
    "GatherND",
    ns=GATHER_NS,
    why="onnxruntime compares each index with its dimension and fails on one outside",
)
def _gather_nd(call: Call) -> Sequence[Tensor]:
    source, indices = call.input(0), call.input(1)
    stack = int(call.given.get("batch_dims", 0))
    if indices.rank < 1 or not 0 <= stack < min(source.rank, indices.rank):
        call.contradict("has indices that do not fit")
    depth = call.fixed(indices.shape[-1])
    if not 1 <= depth <= source.rank - stack:
        call.contradict(f"has indices of {depth} places")
    for i in range(stack):
        call.same(source.shape[i], indices.shape[i])
    return [gives(call, source.element, (*indices.shape[:-1], *source.shape[stack + depth :]))]


@rule(
    "ScatterElements",
    ns=GATHER_NS,
    why="onnxruntime compares each index with the axis and fails on one outside",
)
def _scatter_elements(call: Call) -> Sequence[Tensor]:
    source, indices, updates = (call.input(i) for i in range(3))
    axis = call.axis(call.given.get("axis", 0), source.rank)
    if indices.shape != updates.shape or indices.rank != source.rank:
        call.contradict("has indices and updates that do not fit")
    _same_beside(call, axis, source, indices)
    call.ns.append((GATHER_NS, indices.size))
    return [gives(call, source.element, source.shape)]


@rule(
    "ScatterND",
    ns=GATHER_NS,
    why="onnxruntime compares each index with its dimension and fails on one outside",
)
def _scatter_nd(call: Call) -> Sequence[Tensor]:
    source, indices, updates = (call.input(i) for i in range(3))
    if indices.rank < 1:
        call.contradict("has indices that do not fit")
    depth = call.fixed(indices.shape[-1])
    if not 1 <= depth <= source.rank:
        call.contradict(f"has indices of {depth} places")
    if updates.shape != (*indices.shape[:-1], *source.shape[depth:]):
        call.contradict("has updates that do not fit")
    call.ns.append((GATHER_NS, updates.size))
    return [gives(call, source.element, source.shape)]


@rule("OneHot", why="the depth is a constant; an index outside of it is nowhere one")
def _one_hot(call: Call) -> Sequence[Tensor]:
    indices, values = call.input(0), call.input(2)
    depth = call.fixed(call.scalar(1))
    if depth < 1:
        call.contradict(f"has depth {depth}")
    call.same(values.size, Amount(2))
    axis = call.axis(call.given.get("axis", -1), indices.rank + 1)
    shape = (*indices.shape[:axis], Amount(depth), *indices.shape[axis:])
    return [gives(call, values.element, shape)]


@rule("NonZero", why="only of a constant, or of shapes: how many there are would depend on the features")
def _non_zero(call: Call) -> Sequence[Tensor]:
    found = call.values(0)
    if any(v.sign is None for v in found.reshape(-1)):
        call.refuse("of the number of rows is not supported")
    places = np.argwhere(np.array([v.sign for v in found.reshape(-1)]).reshape(found.shape)).T
    if not places.size:
        call.contradict("makes a tensor of no size")
    shape = tuple(Amount(size) for size in places.shape)
    return [gives(call, TensorProto.INT64, shape, amounts_of(places.reshape(-1).tolist(), places.shape))]


@rule("Compress", why="only by a constant: how many are kept would depend on the features")
def _compress(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    kept = call.integers(1)
    if "axis" not in call.given:
        call.refuse("without an axis is not supported")
    axis = call.axis(call.given["axis"], source.rank)
    if len(kept) > call.fixed(source.shape[axis]) or not any(kept):
        call.contradict("has a condition that does not fit")
    size = Amount(sum(map(bool, kept)))
    return [gives(call, source.element, [size if i == axis else n for i, n in enumerate(source.shape)])]
