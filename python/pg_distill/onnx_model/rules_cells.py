"""Rules of operators that work cell by cell, or along an axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import TensorProto

from pg_distill.errors import FeatureNotSupported
from pg_distill.onnx_model.rules import (
    COPY_NS,
    ELEMENTS,
    FLOATS,
    FMOD_NS,
    FUNCTION_NS,
    ONE,
    PRODUCT_NS,
    SORT_NS,
    TEXT_NS,
    Amount,
    Call,
    NotKnown,
    Shape,
    Tensor,
    amounts_of,
    cellwise,
    difference,
    elements,
    followed,
    gives,
    item_bytes,
    rule,
    sign,
    spread,
)

_UNARY_CHEAP = """
    Abs Ceil Clip Floor HardSigmoid HardSwish LeakyRelu Neg Reciprocal Relu Round Sign ThresholdedRelu
"""
_UNARY_FUNCTIONS = """
    Acos Acosh Asin Asinh Atan Atanh Celu Cos Cosh Elu Erf Exp Gelu Log Mish Selu Sigmoid Sin Sinh Softplus Softsign Sqrt Swish
    Tan Tanh
"""


_SAME_VALUES: Mapping[str, Callable[[Amount], Amount]] = {
    "Abs": lambda a: a if sign(a) >= 0 else -a,
    "Ceil": lambda a: a,
    "Floor": lambda a: a,
    "Identity": lambda a: a,
    "Neg": lambda a: -a,
    "Round": lambda a: a,
}


@rule(_UNARY_CHEAP, why="one value gives one value; floating-point numbers have no traps, integers wrap")
@rule(
    _UNARY_FUNCTIONS,
    ns=FUNCTION_NS,
    why="one value gives one value; each function of numbers ends, whatever its argument is",
)
def _unary(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if source.element == TensorProto.STRING:
        call.refuse("of strings is not supported")
    for position in (1, 2):  # the bounds of Clip
        call.one_element(position)
    values = None
    if call.node.op_type in _SAME_VALUES and len(call.inputs) == 1:
        values = followed(call, cellwise(_SAME_VALUES[call.node.op_type]))
    return [gives(call, source.element, source.shape, values)]


@rule("Identity", why="it copies")
def _identity(call: Call) -> Sequence[Tensor]:
    return [call.input(0)]


@rule("IsInf IsNaN Not", why="one value gives one truth value")
def _predicate(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    values = None
    if call.node.op_type == "Not":
        values = followed(call, cellwise(lambda a: Amount(int(sign(a) == 0))))
    return [gives(call, TensorProto.BOOL, source.shape, values)]


def _equal(one: Amount, other: Amount) -> Amount:
    return Amount(int(difference(one, other) == 0))


_BINARY: Mapping[str, Callable[[Amount, Amount], Amount]] = {
    "Add": lambda a, b: a + b,
    "And": lambda a, b: Amount(int(a.fixed and b.fixed)),
    "Equal": _equal,
    "Greater": lambda a, b: Amount(int(difference(a, b) > 0)),
    "GreaterOrEqual": lambda a, b: Amount(int(difference(a, b) >= 0)),
    "Less": lambda a, b: Amount(int(difference(a, b) < 0)),
    "LessOrEqual": lambda a, b: Amount(int(difference(a, b) <= 0)),
    "Mul": lambda a, b: a * b,
    "Or": lambda a, b: Amount(int(a.fixed or b.fixed)),
    "Sub": lambda a, b: a - b,
    "Xor": lambda a, b: Amount(int(bool(a.fixed) != bool(b.fixed))),
}


_COMPARISONS = frozenset(["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"])


@rule(
    "Add And Equal Greater GreaterOrEqual Less LessOrEqual Mul Or PRelu Sub Xor",
    why="two values give one; floating-point numbers have no traps, integers wrap",
)
def _binary(call: Call) -> Sequence[Tensor]:
    name = call.node.op_type
    one, other = call.input(0), call.input(1)
    shape = spread(call, [one.shape, other.shape])
    if name == "PRelu" and shape != one.shape:
        call.contradict("has a slope that is larger than its input")
    if TensorProto.STRING in (one.element, other.element):
        if name != "Equal":
            call.refuse("of strings is not supported")
        call.ns.append((TEXT_NS, elements(shape)))
    values = followed(call, cellwise(_BINARY[name])) if name in _BINARY else None
    element = TensorProto.BOOL if name in _COMPARISONS else one.element
    return [gives(call, element, shape, values)]


def _quotient(one: Amount, other: Amount) -> Amount:
    exact = one.over(other)
    if exact is not None:
        return exact
    if one.a_row or other.a_row:
        raise NotKnown
    whole = abs(one.fixed) // abs(other.fixed)  # towards zero, as the processor divides
    return Amount(whole if (one.fixed < 0) == (other.fixed < 0) else -whole)


def _exact_quotient(one: Amount, other: Amount) -> Amount:
    exact = one.over(other)
    if exact is None:
        raise NotKnown
    return exact


def _modulo(one: Amount, other: Amount) -> Amount:
    if other.a_row or other.fixed <= 0 or one.a_row % other.fixed or one.sign not in (0, 1):
        raise NotKnown
    return Amount(one.fixed % other.fixed)


@rule(
    "Div",
    why="integers are divided only by constants, and shapes, that are neither 0 nor -1: the least integer over -1 is a fault",
)
@rule(
    "Mod",
    ns=FMOD_NS,
    why="as Div; the remainder of two numbers takes a step for each bit that their exponents are apart",
)
def _division(call: Call) -> Sequence[Tensor]:
    one, other = call.input(0), call.input(1)
    whole = one.element not in FLOATS or other.element not in FLOATS
    if whole and not _divides_safely(other):
        call.refuse(
            "divides integers by what may be 0 or -1",
            hint="Cast to a floating-point type before the division, or divide by a constant.",
        )
    if call.node.op_type == "Mod":
        values = followed(call, cellwise(_modulo)) if whole else None
    else:
        values = followed(call, cellwise(_quotient if whole else _exact_quotient))
    return [gives(call, one.element, spread(call, [one.shape, other.shape]), values)]


def _divides_safely(divisor: Tensor) -> bool:
    if divisor.constant is not None:
        return divisor.constant.dtype.kind in "iu" and not np.isin(divisor.constant, (0, -1)).any()
    if divisor.values is None:
        return False
    return all(v.sign == 1 or (not v.a_row and v.fixed < -1) for v in divisor.values.reshape(-1))


@rule("Pow", ns=2 * FUNCTION_NS, why="two values give one; what does not fit an integer becomes some integer")
def _power(call: Call) -> Sequence[Tensor]:
    one, other = call.input(0), call.input(1)
    return [gives(call, one.element, spread(call, [one.shape, other.shape]))]


def _extreme(pick: int) -> Callable[..., Amount]:
    def work(*cells: Amount) -> Amount:
        found = cells[0]
        for cell in cells[1:]:
            found = cell if difference(cell, found) * pick > 0 else found
        return found

    return work


@rule("Max Mean Min Sum", why="several values give one; floating-point numbers have no traps, integers wrap")
def _several(call: Call) -> Sequence[Tensor]:
    shape = spread(call, [t.shape for t in call.inputs if t is not None])
    call.ns.append((COPY_NS * len(call.inputs), elements(shape)))
    values = None
    if call.node.op_type in ("Max", "Min"):
        values = followed(call, cellwise(_extreme(1 if call.node.op_type == "Max" else -1)))
    return [gives(call, call.input(0).element, shape, values)]


@rule("Where", why="it chooses one of two values")
def _where(call: Call) -> Sequence[Tensor]:
    condition, one, other = (call.input(i) for i in range(3))
    shape = spread(call, [condition.shape, one.shape, other.shape])
    values = followed(call, cellwise(lambda c, a, b: a if sign(c) else b))
    return [gives(call, one.element, shape, values)]


@rule(
    "Cast CastLike",
    why="a number that does not fit an integer becomes some integer; text that is no number is an error",
)
def _cast(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    target = call.input(1).element if call.node.op_type == "CastLike" else int(call.given["to"])
    if target not in ELEMENTS:
        call.refuse(f"to type {target} is not supported")
    if TensorProto.STRING in (source.element, target):
        call.ns.append((TEXT_NS, source.size))
    values = None
    if source.values is not None and target != TensorProto.STRING:
        cells = source.values.reshape(-1)
        # What every type here holds exactly. A truth value is one of two.
        limit = (
            1
            if target == TensorProto.BOOL
            else 100
            if item_bytes(target) == 1
            else 1 << 11
            if item_bytes(target) == 2
            else 1 << 24
        )
        if target == TensorProto.INT64 or all(not c.a_row and 0 <= c.fixed <= limit for c in cells):
            values = source.values
    out = gives(call, target, source.shape)
    return [replace(out, depends=source.depends, values=values)]


@rule("Dropout", why="outside of training it copies; training, which is random, is refused")
def _dropout(call: Call) -> Sequence[Tensor]:
    if call.has(2) and [v.fixed or v.a_row for v in call.amounts(2)] != [0]:
        call.refuse("in training mode is not supported", hint="Export the model in evaluation mode.")
    source = call.input(0)
    return [gives(call, source.element, source.shape), gives(call, TensorProto.BOOL, source.shape)]


@rule("CumSum", why="the axis is a constant; sums of integers wrap")
def _cumulative(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    call.axis(call.fixed(call.scalar(1)), source.rank)
    return [gives(call, source.element, source.shape)]


@rule("Trilu", why="values are kept or become 0, whichever diagonal is named")
def _triangle(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if source.rank < 2:
        call.contradict("reads no matrix")
    call.one_element(1)
    return [gives(call, source.element, source.shape)]


@rule(
    "Hardmax LogSoftmax LpNormalization Softmax",
    ns=2 * FUNCTION_NS,
    why="as many values as it reads; a sum of 0 gives NaN, which is a number",
)
def _along(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    call.axis(
        call.given.get("axis", -1 if call.version >= 13 or call.node.op_type == "LpNormalization" else 1),
        source.rank,
    )
    call.scratch.append(source.size * (2 * item_bytes(source.element)))
    return [gives(call, source.element, source.shape)]


@rule(
    "MeanVarianceNormalization",
    ns=4 * COPY_NS,
    why="as many values as it reads, over axes that are attributes",
)
def _standardize(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    call.axes(call.given.get("axes", [0, 2, 3]), source.rank)
    call.scratch.append(source.size * (6 * item_bytes(source.element)))
    return [gives(call, source.element, source.shape)]


_REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
"""


@rule(
    _REDUCTIONS,
    ns=FUNCTION_NS / 4,
    why="axes are constants, and none is empty: a mean of integers divides by their number, which is above 0",
)
def _reduce(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if call.has(1):
        given: Sequence[Any] = call.integers(1)
    else:
        given = call.given.get("axes", [])
    if len(given) == 0 and call.given.get("noop_with_empty_axes", 0):
        return [gives(call, source.element, source.shape)]
    axes = call.axes(given, source.rank) if len(given) else list(range(source.rank))
    keep = bool(call.given.get("keepdims", 1))
    shape = tuple(ONE if i in axes else size for i, size in enumerate(source.shape) if keep or i not in axes)
    call.scratch.append(
        source.size * item_bytes(source.element)
    )  # transposed, where the axes are not the last
    values = None
    if call.node.op_type == "ReduceProd" and source.rank == 1 and source.values is not None:
        try:
            product = elements(list(source.values))
            values = amounts_of([product], (1,) if keep else ())
        except FeatureNotSupported:
            values = None
    return [gives(call, source.element, shape, values)]


@rule("ArgMax ArgMin", why="the place of a value along an axis that is not empty; NaN is somewhere, too")
def _argument(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    axis = call.axis(call.given.get("axis", 0), source.rank)
    keep = bool(call.given.get("keepdims", 1))
    shape = tuple(ONE if i == axis else size for i, size in enumerate(source.shape) if keep or i != axis)
    call.scratch.append(source.size * item_bytes(source.element))
    return [gives(call, TensorProto.INT64, shape)]


@rule(
    "TopK",
    why="how many is a constant; sorting stays inside its array for any order of two values, NaN's too",
)
def _top(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    axis = call.axis(call.given.get("axis", -1), source.rank)
    most = call.fixed(call.scalar(1)) if call.has(1) else int(call.given["k"])
    size = call.fixed(source.shape[axis])
    if not 1 <= most <= size:
        call.contradict(f"takes {most} of {size}")
    shape = tuple(Amount(most) if i == axis else n for i, n in enumerate(source.shape))
    call.ns.append((SORT_NS * max(1, size.bit_length()), source.size))
    call.scratch.append(source.size * 16)
    return [gives(call, source.element, shape), gives(call, TensorProto.INT64, shape)]


def _product(call: Call, one: Shape, other: Shape) -> Shape:
    """Return the shape of a product of (stacks of) matrices, and count its work."""
    if not one or not other:
        call.contradict("reads a number where a matrix is expected")
    left = one if len(one) > 1 else (ONE, *one)
    right = other if len(other) > 1 else (*other, ONE)
    call.same(left[-1], right[-2])
    stack = spread(call, [left[:-2], right[:-2]]) if len(left) > 2 or len(right) > 2 else ()
    whole = (*stack, left[-2], right[-1])
    call.ns.append((PRODUCT_NS, elements(whole) * left[-1]))
    call.scratch.append((elements(left) + elements(right)) * 8)  # packed into blocks
    shape = list(whole)
    if len(other) == 1:
        del shape[-1]
    if len(one) == 1:
        del shape[len(stack)]
    return tuple(shape)
