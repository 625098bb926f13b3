"""Rules of operators that move values, and of those whose sizes depend on values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import TensorProto

from pg_distill.onnx_model.rules import (
    GATHER_NS,
    MAX_VALUES,
    ONE,
    Amount,
    Call,
    Shape,
    Tensor,
    amounts_of,
    constant,
    elements,
    followed,
    gives,
    rule,
    show_shape,
    spread,
)


@rule("Shape", why="it reads no values")
def _shape(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    start, end = call.given.get("start", 0), call.given.get("end", source.rank)
    part = source.shape[int(start) : int(end)]
    return [_of_sizes(part, (len(part),))]


def _of_sizes(sizes: Sequence[Amount], shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of sizes; those that depend on a text are values as others are."""
    dimensions = tuple(Amount(size) for size in shape)
    if any(size.at_most for size in sizes):
        return Tensor(TensorProto.INT64, dimensions)
    return Tensor(TensorProto.INT64, dimensions, False, amounts_of(sizes, shape))


@rule("Size", why="it reads no values")
def _size(call: Call) -> Sequence[Tensor]:
    return [_of_sizes([call.input(0).size], ())]


@rule("Reshape", why="the shape is a constant or comes from shapes, and has as many elements as before")
def _reshape(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    wanted = call.amounts(1)
    if not call.given.get("allowzero", 0):
        for position, size in enumerate(wanted):
            if size == Amount(0):
                if position >= source.rank:
                    call.contradict("keeps a dimension that is not there")
                wanted[position] = source.shape[position]
    open_ = [i for i, size in enumerate(wanted) if size == Amount(-1)]
    rest = elements([size for i, size in enumerate(wanted) if i not in open_])
    if len(open_) > 1:
        call.contradict("leaves two dimensions open")
    if open_:
        left = source.size.over(rest)
        if left is None:
            call.contradict(f"makes {show_shape(tuple(wanted))} of {show_shape(source.shape)}")
        wanted[open_[0]] = left
    elif rest != source.size:
        call.contradict(f"makes {show_shape(tuple(wanted))} of {show_shape(source.shape)}")
    return [_moved(source, tuple(wanted))]


def _moved(source: Tensor, shape: Shape) -> Tensor:
    """Return the tensor with its elements in another shape."""
    values, array = source.values, source.constant
    sizes = tuple(size.fixed for size in shape)
    return replace(
        source,
        shape=shape,
        values=None if values is None else values.reshape(sizes),
        constant=None if array is None else array.reshape(sizes),
    )


@rule("Flatten", why="it reads no values")
def _flatten(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    axis = int(call.given.get("axis", 1))
    if not -source.rank <= axis <= source.rank:
        call.contradict(f"has axis {axis} for {source.rank} dimensions")
    axis = axis + source.rank if axis < 0 else axis
    return [_moved(source, (elements(source.shape[:axis]), elements(source.shape[axis:])))]


def _given_axes(call: Call) -> list[int] | None:
    if call.has(1):
        return call.integers(1)
    found = call.given.get("axes")
    return None if found is None else [int(a) for a in found]


@rule("Squeeze", why="it reads no values; axes are constants")
def _squeeze(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    given = _given_axes(call)
    if given is None:
        if any(size.a_row or size.at_most for size in source.shape):
            call.refuse(
                "without axes is not supported",
                hint="It would drop the rows' dimension where there is one row.",
            )
        given = [i for i, size in enumerate(source.shape) if size == ONE]
    axes = call.axes(given, source.rank)
    for axis in axes:
        call.same(source.shape[axis], ONE, "drops a dimension that is not 1")
    return [_moved(source, tuple(size for i, size in enumerate(source.shape) if i not in axes))]


@rule("Unsqueeze", why="it reads no values; axes are constants")
def _unsqueeze(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    given = _given_axes(call) or []
    axes = call.axes(given, source.rank + len(given))
    rest = iter(source.shape)
    return [_moved(source, tuple(ONE if i in axes else next(rest) for i in range(source.rank + len(axes))))]


@rule("Transpose", ns=GATHER_NS, why="it moves values, by an attribute")
def _transpose(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    order = [int(i) for i in call.given.get("perm", range(source.rank)[::-1])]
    if sorted(order) != list(range(source.rank)):
        call.contradict("has a perm that is none")
    values = followed(call, lambda v: v.transpose(order))
    return [gives(call, source.element, [source.shape[i] for i in order], values)]


@rule("Concat", why="it moves values, along an attribute")
def _concat(call: Call) -> Sequence[Tensor]:
    parts = [t for t in call.inputs if t is not None]
    axis = call.axis(call.given["axis"], parts[0].rank)
    total = Amount(0)
    for part in parts:
        if part.rank != parts[0].rank:
            call.contradict("joins tensors of different ranks")
        for i, (size, other) in enumerate(zip(part.shape, parts[0].shape, strict=True)):
            if i != axis:
                call.same(size, other)
        total = total + part.shape[axis]
    shape = tuple(total if i == axis else size for i, size in enumerate(parts[0].shape))
    values = followed(call, lambda *v: np.concatenate(v, axis=axis))
    return [gives(call, parts[0].element, shape, values)]


@rule("Split", why="it moves values; the parts' sizes are constants")
def _split(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    axis = call.axis(call.given.get("axis", 0), source.rank)
    count = len(call.node.output)
    size = call.fixed(source.shape[axis])
    if call.has(1):
        parts = call.integers(1)
    elif "split" in call.given:
        parts = [int(v) for v in call.given["split"]]
    else:
        if int(call.given.get("num_outputs", count)) != count:
            call.contradict("has another number of outputs than it names")
        each = -(-size // count)
        parts = [min(each, size - i * each) for i in range(count)]
    if len(parts) != count or sum(parts) != size or min(parts) < 1:
        call.contradict(f"splits {size} into {parts[:20]}")
    starts = np.cumsum([0, *parts])
    found = []
    for i, part in enumerate(parts):
        shape = tuple(Amount(part) if j == axis else n for j, n in enumerate(source.shape))
        values = None
        if source.values is not None:
            values = source.values.take(range(starts[i], starts[i + 1]), axis=axis)
        found.append(gives(call, source.element, shape, values))
    return found


_FAR = 1 << 31  # beyond every dimension: how exporters write "to the end"


@rule("Slice", why="starts, ends and steps are constants or come from shapes")
def _slice(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if call.has(1):
        starts, ends = call.amounts(1), call.amounts(2)
        axes = call.integers(3) if call.has(3) else list(range(len(starts)))
        steps = call.integers(4) if call.has(4) else [1] * len(starts)
    else:
        starts = [Amount(int(v)) for v in call.given.get("starts", [])]
        ends = [Amount(int(v)) for v in call.given.get("ends", [])]
        axes = [int(v) for v in call.given.get("axes", range(len(starts)))]
        steps = [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        call.contradict("has lists of different lengths")
    shape, cut = list(source.shape), [slice(None)] * source.rank
    for axis, start, end, step in zip(call.axes(axes, source.rank), starts, ends, steps, strict=True):
        if step == 0:
            call.contradict("has a step of 0")
        size = shape[axis]
        if step == 1 and start == Amount(0) and (end == size or (not end.a_row and end.fixed >= _FAR)):
            continue
        if size.at_most:
            call.refuse("of words is not supported")
        if size.a_row:
            call.refuse("of rows is not supported", hint="Each row must be predicted for itself.")
        whole = range(*slice(call.fixed(start), call.fixed(end), step).indices(size.fixed))
        shape[axis] = Amount(len(whole))
        stop: int | None = whole.stop
        cut[axis] = slice(whole.start, None if stop is not None and stop < 0 else stop, step)
    values = None if source.values is None else source.values[tuple(cut)]
    out = gives(call, source.element, shape)
    return [replace(out, depends=source.depends, values=values)]


@rule("Expand", why="the shape is a constant or comes from shapes")
def _expand(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    wanted = tuple(call.amounts(1))
    if any(size.sign != 1 for size in wanted):
        call.contradict("makes a tensor of no size")
    shape = spread(call, [source.shape, wanted])
    values = None
    if (
        source.values is not None
        and not any(size.a_row for size in shape)
        and elements(shape).fixed <= MAX_VALUES
    ):
        values = np.broadcast_to(source.values, [size.fixed for size in shape])
    return [gives(call, source.element, shape, values)]


@rule("Tile", why="repeats are constants or come from shapes")
def _tile(call: Call) -> Sequence[Tensor]:
    source, repeats = call.input(0), call.amounts(1)
    if len(repeats) != source.rank:
        call.contradict("has repeats that do not fit")
    if any(r.sign != 1 for r in repeats):
        call.contradict("makes a tensor of no size")
    shape = tuple(size * r for size, r in zip(source.shape, repeats, strict=True))
    values = None
    if source.values is not None and not any(s.a_row for s in shape) and elements(shape).fixed <= MAX_VALUES:
        values = np.tile(source.values, [r.fixed for r in repeats])
    return [gives(call, source.element, shape, values)]


@rule("Pad", why="pads are constants, none below 0; a value that is copied from inside is inside")
def _pad(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    pads = call.integers(1) if call.has(1) else [int(v) for v in call.given.get("pads", [])]
    call.one_element(2)
    axes = call.axes(call.integers(3) if call.has(3) else range(source.rank), source.rank)
    mode = call.given.get("mode", b"constant")
    if mode not in (b"constant", b"edge", b"reflect"):
        call.refuse("of this mode is not supported")
    if len(pads) != 2 * len(axes):
        call.contradict("has pads that do not fit")
    shape = list(source.shape)
    for i, axis in enumerate(axes):
        before, after = pads[i], pads[i + len(axes)]
        if min(before, after) < 0:
            call.refuse("with pads below 0 is not supported", hint="Use Slice.")
        if before or after:
            size = call.fixed(shape[axis])
            if mode == b"reflect" and max(before, after) >= size:
                call.contradict(f"reflects {max(before, after)} of {size} values")
            shape[axis] = Amount(size + before + after)
    return [gives(call, source.element, shape)]


@rule("Range", why="start, limit and step are constants or come from shapes")
def _range(call: Call) -> Sequence[Tensor]:
    start, limit, step = (call.scalar(i) for i in range(3))
    element = call.input(0).element
    each = call.fixed(step)
    if each == 0:
        call.contradict("has a step of 0")
    if start.a_row or limit.a_row:
        size = limit - start if each == 1 else start - limit if each == -1 else None
        if size is None or size.sign != 1:
            call.refuse("over rows is not supported but by 1")
        return [gives(call, element, [size])]
    length = -((start.fixed - limit.fixed) // each)  # len() of a range takes no more than 2^63 - 1
    if not 0 < length <= _FAR:
        call.contradict(f"makes a tensor of {max(length, 0)} elements")
    values = (
        amounts_of(list(range(start.fixed, limit.fixed, each)), (length,)) if length <= MAX_VALUES else None
    )
    return [gives(call, element, [Amount(length)], values)]


@rule("ConstantOfShape", why="the shape is a constant or comes from shapes")
def _constant_of_shape(call: Call) -> Sequence[Tensor]:
    shape = tuple(call.amounts(0))
    if any(size.sign != 1 for size in shape):
        call.contradict("makes a tensor of no size")
    value = call.given.get("value", np.zeros(1, np.float32)).reshape(-1)
    if value.size != 1:
        call.contradict("has a value that is not one")
    filled = constant(value)
    values = None
    total = elements(shape)
    if filled.values is not None and not total.a_row and total.fixed <= MAX_VALUES:
        values = amounts_of([filled.values[0]] * total.fixed, [size.fixed for size in shape])
    return [Tensor(filled.element, shape, False, values)]


@rule("EyeLike", why="ones and zeros in the shape of its input")
def _eye(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if source.rank != 2:
        call.contradict("reads no matrix")
    return [Tensor(int(call.given.get("dtype", source.element)), source.shape, False)]


@rule("Constant", why="it is in the file")
def _constant(call: Call) -> Sequence[Tensor]:
    if len(call.given) != 1:
        call.contradict("holds not one value")
    [(name, value)] = call.given.items()
    if name == "value":
        return [constant(value)]
    kinds: Mapping[str, Any] = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_string": object,
        "value_strings": object,
    }
    if name not in kinds:
        call.refuse("of this kind is not supported")
    return [constant(np.asarray(value, kinds[name]))]
