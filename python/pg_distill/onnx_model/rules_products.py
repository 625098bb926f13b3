"""Rules of products, convolutions, pools and norms, and of quantised ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from pg_distill.onnx_model.rules import (
    COPY_NS,
    ONE,
    PRODUCT_NS,
    SLOW_PRODUCT_NS,
    Amount,
    Call,
    Tensor,
    elements,
    gives,
    item_bytes,
    rule,
    spread,
)
from pg_distill.onnx_model.rules_cells import _product


@rule("MatMul", why="sums of products over shapes that are checked; integers wrap")
def _matmul(call: Call) -> Sequence[Tensor]:
    one, other = call.input(0), call.input(1)
    shape = _product(call, one.shape, other.shape)
    if one.element not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        call.ns.append((SLOW_PRODUCT_NS, elements(shape) * one.shape[-1]))
    return [gives(call, one.element, shape)]


@rule("Gemm", why="sums of products over shapes that are checked; integers wrap")
def _gemm(call: Call) -> Sequence[Tensor]:
    one, other = call.input(0).shape, call.input(1).shape
    if len(one) != 2 or len(other) != 2:
        call.contradict("reads no matrices")
    one = one[::-1] if call.given.get("transA", 0) else one
    other = other[::-1] if call.given.get("transB", 0) else other
    shape = _product(call, one, other)
    if call.has(2) and spread(call, [shape, call.input(2).shape]) != shape:
        call.contradict("adds what is larger than the product")
    return [gives(call, call.input(0).element, shape)]


_BYTES = frozenset({TensorProto.INT8, TensorProto.UINT8})
_SHORTS = _BYTES | {TensorProto.INT16, TensorProto.UINT16}


def _fits_columns(call: Call, position: int, of: Sequence[Amount]) -> None:
    """Demand a zero point or scale that is one number, or one for each row or column."""
    if not call.has(position):
        return
    found = call.input(position)
    if found.size != ONE and (found.rank != 1 or found.shape[0] not in of):
        call.refuse("with scales of other shapes is not supported")


@rule("MatMulInteger", why="sums of products of bytes, which 32 bits hold or wrap")
def _matmul_integer(call: Call) -> Sequence[Tensor]:
    for position in range(2):
        call.takes(position, _BYTES)
    one, other = call.input(0).shape, call.input(1).shape
    shape = _product(call, one, other)
    call.one_element(2)
    _fits_columns(call, 3, other[-1:])
    call.scratch.append(elements(shape) * 8)
    return [gives(call, TensorProto.INT32, shape)]


@rule("QLinearMatMul", why="sums of products of bytes, scaled and cut to a byte")
def _matmul_bytes(call: Call) -> Sequence[Tensor]:
    for position in (0, 3):
        call.takes(position, _BYTES)
    other = call.input(3).shape
    shape = _product(call, call.input(0).shape, other)
    for position in (1, 2, 6, 7):
        call.one_element(position)
    for position in (4, 5):
        _fits_columns(call, position, other[-1:])
    call.scratch.append(elements(shape) * 8)
    return [gives(call, call.input(7).element, shape)]


@rule(
    "QuantizeLinear",
    ns=2 * COPY_NS,
    why="a number over a scale, cut to the type's ends; a scale of 0 gives one of these",
)
def _quantize(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    _check_scales(call, source)
    named = int(call.given.get("output_dtype", 0)) or TensorProto.UINT8
    element = call.input(2).element if call.has(2) else named
    if element not in _SHORTS:
        call.refuse(f"to type {element} is not supported")
    return [gives(call, element, source.shape)]


@rule("DequantizeLinear", ns=2 * COPY_NS, why="a byte times a scale")
def _dequantize(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    call.takes(0, _SHORTS | {TensorProto.INT32})
    _check_scales(call, source)
    return [gives(call, call.input(1).element, source.shape)]


def _check_scales(call: Call, source: Tensor) -> None:
    if call.given.get("block_size", 0):
        call.refuse("in blocks is not supported")
    of: Sequence[Amount] = ()
    if any(call.has(p) and call.input(p).size != ONE for p in (1, 2)):
        of = [source.shape[call.axis(call.given.get("axis", 1), source.rank)]]
    for position in (1, 2):
        _fits_columns(call, position, of)
    if call.has(2):
        call.same(call.input(1).size, call.input(2).size)


@rule(
    "DynamicQuantizeLinear",
    ns=4 * COPY_NS,
    why="numbers over their range, cut to a byte; of NaN and infinity, some byte",
)
def _quantize_by_range(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    return [
        gives(call, TensorProto.UINT8, source.shape),
        gives(call, TensorProto.FLOAT, ()),
        gives(call, TensorProto.UINT8, ()),
    ]


@rule("Einsum", why="sums of products over shapes that are checked, of two tensors at most")
def _einsum(call: Call) -> Sequence[Tensor]:
    equation = call.given["equation"].decode("ascii", "replace").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    sizes: dict[str, Amount] = {}
    if len(terms) != len(call.inputs) or len(terms) > 2:
        call.refuse("of more than two tensors is not supported")
    for position, term in enumerate(terms):
        shape = call.input(position).shape
        if not (term == "" or term.isalpha()) or len(set(term)) != len(term):
            call.refuse(f'with equation "{equation[:80]}" is not supported')
        if len(term) != len(shape):
            call.contradict(f'has {len(shape)} dimensions for "{term[:80]}"')
        for letter, size in zip(term, shape, strict=True):
            call.same(sizes.setdefault(letter, size), size)
    letters = "".join(terms)
    out = right if arrow else "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if len(set(out)) != len(out) or not set(out) <= set(sizes):
        call.refuse(f'with equation "{equation[:80]}" is not supported')
    work = elements(list(sizes.values()))
    call.ns.append((SLOW_PRODUCT_NS, work))
    item = item_bytes(call.input(0).element)
    call.scratch += [call.input(p).size * (3 * item) for p in range(len(terms))]
    call.scratch.append(elements([sizes[c] for c in out]) * (2 * item))
    return [gives(call, call.input(0).element, [sizes[c] for c in out])]


@dataclass(frozen=True)
class _Window:
    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    out: list[int]


def _window(call: Call, spatial: Sequence[Amount], kernel: Sequence[Any]) -> _Window:
    """Return how a window moves, and over how many places."""
    count = len(spatial)
    given = call.given
    sizes = [call.fixed(size) for size in spatial]
    kernel = [int(k) for k in kernel]
    strides = [int(v) for v in given.get("strides", [1] * count)]
    dilations = [int(v) for v in given.get("dilations", [1] * count)]
    pads = [int(v) for v in given.get("pads", [0] * (2 * count))]
    mode = given.get("auto_pad", b"NOTSET").decode("ascii", "replace")
    if [len(kernel), len(strides), len(dilations), len(pads)] != [count, count, count, 2 * count]:
        call.contradict(f"has windows that do not fit {count} dimensions")
    if given.get("ceil_mode", 0):
        call.refuse("with ceil_mode is not supported")
    if min([*kernel, *strides, *dilations]) < 1:
        call.contradict("has a window of no size")
    if mode != "NOTSET" and any(pads):
        call.contradict("has pads of two kinds")
    if min(pads) < 0 or any(max(pads[i], pads[i + count]) >= kernel[i] for i in range(count)):
        call.refuse("with pads below 0, or as wide as the window, is not supported")
    out = []
    for i, size in enumerate(sizes):
        reach = dilations[i] * (kernel[i] - 1) + 1
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            out.append(-(-size // strides[i]))
        elif mode in ("NOTSET", "VALID"):
            out.append((size + pads[i] + pads[i + count] - reach) // strides[i] + 1)
        else:
            call.contradict("has an unknown auto_pad")
    if min(out) < 1:
        call.contradict("has a window larger than its input")
    return _Window(kernel, strides, dilations, pads, out)


@rule("Conv", why="sums of products over windows that are checked against the shapes")
def _conv(call: Call) -> Sequence[Tensor]:
    source, weights = call.input(0), call.input(1)
    if source.rank < 3 or weights.rank != source.rank:
        call.contradict("reads no channels with dimensions")
    group = int(call.given.get("group", 1))
    kernel = [call.fixed(size) for size in weights.shape[2:]]
    if "kernel_shape" in call.given and [int(k) for k in call.given["kernel_shape"]] != kernel:
        call.contradict("has a kernel_shape that is not its weights'")
    filters, channels = call.fixed(weights.shape[0]), call.fixed(weights.shape[1])
    if group < 1 or filters % group:
        call.contradict(f"has {filters} filters for {group} groups")
    call.same(source.shape[1], Amount(channels * group))
    if call.has(2):
        call.same(call.input(2).size, Amount(filters))
    window = _window(call, source.shape[2:], kernel)
    shape = (source.shape[0], Amount(filters), *map(Amount, window.out))
    each = channels * math.prod(kernel)
    call.ns.append((2 * PRODUCT_NS, elements(shape) * each))
    call.scratch.append(Amount(each * group * math.prod(window.out) * item_bytes(source.element)))
    call.scratch.append((source.size + elements(shape)) * (2 * item_bytes(source.element)))
    return [gives(call, source.element, shape)]


@rule("AveragePool MaxPool", why="windows are checked against the shapes; none lies in the padding alone")
def _pool(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if source.rank < 3:
        call.contradict("reads no channels with dimensions")
    window = _window(call, source.shape[2:], call.given["kernel_shape"])
    shape = (*source.shape[:2], *map(Amount, window.out))
    call.ns.append((2 * COPY_NS, elements(shape) * math.prod(window.kernel)))
    call.scratch.append((source.size + elements(shape)) * (2 * item_bytes(source.element)))
    return [gives(call, source.element, shape), gives(call, TensorProto.INT64, shape)]


@rule("GlobalAveragePool GlobalMaxPool", why="one value for each channel, whose dimensions are not empty")
def _global_pool(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if source.rank < 3:
        call.contradict("reads no channels with dimensions")
    return [gives(call, source.element, (*source.shape[:2], *[ONE] * (source.rank - 2)))]


@rule(
    "BatchNormalization", ns=2 * COPY_NS, why="a line for each channel, of which the parameters have as many"
)
def _batch_norm(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if (
        call.given.get("training_mode", 0)
        or sum(map(bool, call.node.output)) > 1
        or not call.given.get("spatial", 1)
    ):
        call.refuse("in training mode is not supported", hint="Export the model in evaluation mode.")
    if source.rank < 2:
        call.contradict("reads no channels")
    for position in range(1, 5):
        call.same(call.input(position).size, source.shape[1])
    return [gives(call, source.element, source.shape)]


@rule(
    "InstanceNormalization GroupNormalization",
    ns=4 * COPY_NS,
    why="a line for each channel, of which the parameters have as many",
)
def _instance_norm(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if source.rank < 3:
        call.contradict("reads no channels with dimensions")
    of = source.shape[1]
    if call.node.op_type == "GroupNormalization":
        groups = int(call.given["num_groups"])
        if groups < 1 or call.fixed(of) % groups:
            call.contradict(f"has {groups} groups for {of} channels")
        of = of if call.version >= 21 else Amount(groups)
    for position in (1, 2):
        call.same(call.input(position).size, of)
    call.scratch.append(source.size * (6 * item_bytes(source.element)))
    return [gives(call, source.element, source.shape)]


@rule(
    "LayerNormalization RMSNormalization",
    ns=4 * COPY_NS,
    why="as many values as it reads; the parameters have the shape of the last axes",
)
def _layer_norm(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    axis = call.axis(call.given.get("axis", -1), source.rank)
    for position in (1, 2):
        if call.has(position) and call.input(position).shape != source.shape[axis:]:
            call.refuse("with parameters of another shape than the last axes is not supported")
    kept = (*source.shape[:axis], *[ONE] * (source.rank - axis))
    call.scratch.append(source.size * item_bytes(source.element))
    return [gives(call, source.element, source.shape), *[gives(call, TensorProto.FLOAT, kept)] * 2]
