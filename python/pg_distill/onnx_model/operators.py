"""The operators that a model may use: of each, why no value of any feature makes it dangerous, and what it gives and costs.

`RULES` is the list, and what is not in it is refused. A rule says of a node, before anything is run, the type and the
shape of what it gives, how long it takes at most and how much it holds on the way. Two laws make that possible:

- **Sizes depend on constants and on the number of rows, and on the latter linearly.** A dimension is an `Amount`, ``fixed``
  + rows x ``a_row``. Where an operator takes its output's shape from a tensor, the tensor must be a constant, or come from
  shapes by arithmetic that is followed here (`Tensor.values`). Nothing is guessed: what cannot be told is refused.
- **No value ends the process.** Floating-point arithmetic has no traps and integers wrap, but integers are divided: by constants
  other than 0 and -1 only. Indices that are computed from features are compared with their bounds by onnxruntime itself, which
  ``tests/unit/test_onnx_operators.py`` holds it to, with the ends of each type.

Times are for a processor core some four times slower than those of 2024, and for the worst values: subnormal numbers, angles far
from zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from pg_distill.errors import FeatureNotSupported, InvalidArtifact

__all__ = [
    "MAX_VALUES",
    "ONE",
    "RULES",
    "STRING_BYTES",
    "Amount",
    "Attributes",
    "Call",
    "Rule",
    "Shape",
    "Tensor",
    "constant",
    "elements",
    "item_bytes",
    "outputs_of_linear",
]

STRING_BYTES = 32  # of a std::string, beside its text
MAX_VALUES = 4096  # of a tensor whose values are followed: shapes are short, tables of positions are longer
MAX_VALUE = 1 << 53  # what is followed stays exact in every type, or is not followed

# Nanoseconds an element, or a multiplication with its addition.
COPY_NS = 2.0  # moved, compared, added: bound by memory
GATHER_NS = 8.0  # fetched from anywhere
FUNCTION_NS = 60.0  # exp, log, sin ... of float64, where the argument is the worst
FMOD_NS = 3000.0  # bit by bit, as many as the exponents are apart
PRODUCT_NS = 0.15  # in a product of matrices, blocked for the caches
SLOW_PRODUCT_NS = 2.0  # where it is a plain loop
TEXT_NS = 800.0  # a number written or read as text, a string copied or looked up
SORT_NS = 20.0  # an element and a level
LEVEL_NS = 20.0  # a node of a tree, which is in no cache

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16})
INTEGERS = frozenset(
    {
        TensorProto.INT8,
        TensorProto.INT16,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.UINT8,
        TensorProto.UINT16,
        TensorProto.UINT32,
        TensorProto.UINT64,
    }
)
ELEMENTS = FLOATS | INTEGERS | {TensorProto.BOOL, TensorProto.STRING}
"""Types that a tensor may have."""


# -- amounts: numbers that grow with the rows


@dataclass(frozen=True, slots=True)
class Amount:
    """``fixed`` + rows x ``a_row``, for any number of rows from one on."""

    fixed: int
    a_row: int = 0

    def __add__(self, other: Amount | int) -> Amount:
        other = _amount(other)
        return Amount(self.fixed + other.fixed, self.a_row + other.a_row)

    __radd__ = __add__

    def __neg__(self) -> Amount:
        return Amount(-self.fixed, -self.a_row)

    def __sub__(self, other: Amount | int) -> Amount:
        return self + -_amount(other)

    def __mul__(self, other: Amount | int) -> Amount:
        other = _amount(other)
        if self.a_row and other.a_row:
            raise FeatureNotSupported(
                "model has a tensor that grows faster than the number of rows",
                hint="A row's prediction must not need every pair of rows.",
            )
        return Amount(self.fixed * other.fixed, self.fixed * other.a_row + self.a_row * other.fixed)

    __rmul__ = __mul__

    def at(self, rows: int) -> int:
        """Return the number for so many rows."""
        return self.fixed + rows * self.a_row

    @property
    def sign(self) -> int | None:
        """1, 0 or -1 where it is so for every number of rows, else None."""
        first = self.fixed + self.a_row
        if self.a_row == 0:
            return (first > 0) - (first < 0)
        if first != 0 and (first > 0) == (self.a_row > 0):
            return 1 if first > 0 else -1
        return None

    def over(self, other: Amount) -> Amount | None:
        """Return the amount that times ``other`` is this one; None where there is none."""
        if other.a_row == 0:
            if other.fixed == 0 or self.fixed % other.fixed or self.a_row % other.fixed:
                return None
            return Amount(self.fixed // other.fixed, self.a_row // other.fixed)
        if self.fixed * other.a_row != self.a_row * other.fixed or self.a_row % other.a_row:
            return None
        return Amount(self.a_row // other.a_row)

    def __repr__(self) -> str:
        if not self.a_row:
            return str(self.fixed)
        rows = "rows" if self.a_row == 1 else f"{self.a_row} x rows"
        return f"{self.fixed} + {rows}" if self.fixed else rows


ONE = Amount(1)
Shape = tuple[Amount, ...]


def _amount(value: Amount | int) -> Amount:
    return value if isinstance(value, Amount) else Amount(value)


def elements(shape: Sequence[Amount]) -> Amount:
    """Return how many elements a tensor of this shape has."""
    total = ONE
    for size in shape:
        total = total * size
    return total


# -- tensors before they are there


@dataclass(frozen=True, eq=False)
class Tensor:
    """What is known of a tensor before anything is run.

    Parameters
    ----------
    element
        Its type, of ``TensorProto.DataType``.
    shape
        Its dimensions.
    depends
        Whether its values depend on those of a feature.
    values
        Its values in its shape, an array of `Amount`, where they are whole numbers that come from constants and shapes; else
        None.
    constant
        Its values where it is a constant of the file; else None.
    is_map
        It is what a ZipMap gives, which nothing may read.
    """

    element: int
    shape: Shape
    depends: bool = True
    values: npt.NDArray[Any] | None = None
    constant: npt.NDArray[Any] | None = None
    is_map: bool = False

    @property
    def rank(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    @property
    def size(self) -> Amount:
        """How many elements it has."""
        return elements(self.shape)

    @property
    def is_empty(self) -> bool:
        """Whether it has none for some number of rows."""
        return any(size.sign != 1 for size in self.shape)


def item_bytes(element: int) -> int:
    """Return the bytes of one element; of a string without its text."""
    if element == TensorProto.STRING:
        return STRING_BYTES
    return int(helper.tensor_dtype_to_np_dtype(element).itemsize)


def constant(array: npt.NDArray[Any], element: int | None = None) -> Tensor:
    """Return a constant of the file as a tensor."""
    if element is None:
        element = (
            TensorProto.STRING if array.dtype.kind in "OSU" else helper.np_dtype_to_tensor_dtype(array.dtype)
        )
    values = None
    if array.size <= MAX_VALUES and array.dtype.kind in "iubf":
        whole = array.astype(object)
        if array.dtype.kind != "f" or (np.isfinite(array).all() and (array == np.floor(array)).all()):
            values = _amounts([int(v) for v in whole.reshape(-1)], array.shape)
    shape = tuple(Amount(size) for size in array.shape)
    return Tensor(element, shape, False, values, array)


def _amounts(values: Sequence[Amount | int], shape: Sequence[int]) -> npt.NDArray[Any]:
    out = np.empty(len(values), object)
    for position, value in enumerate(values):
        out[position] = _amount(value)
    return out.reshape(tuple(shape))


# -- nodes


class Attributes(Mapping[str, Any]):
    """A node's attributes as Python values, each read where it is asked for: trees have millions of numbers.

    Lists of numbers, and tensors, are arrays.
    """

    def __init__(self, node: NodeProto) -> None:
        self._fields = {attribute.name: attribute for attribute in node.attribute}
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            field_ = self._fields[name]
            if field_.floats:
                self._read[name] = np.array(field_.floats, np.float64)
            elif field_.ints:
                self._read[name] = np.array(field_.ints, np.int64)
            elif field_.HasField("t"):
                self._read[name] = numpy_helper.to_array(field_.t)
            else:
                self._read[name] = helper.get_attribute_value(field_)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


@dataclass
class Call:
    """A node, what it reads, and what a rule says of it."""

    node: NodeProto
    inputs: Sequence[Tensor | None]
    version: int
    """Of its operator set."""

    given: Mapping[str, Any] = field(init=False)
    ns: list[tuple[float, Amount]] = field(default_factory=list)
    """What a rule counts beside its operator's time an element: nanoseconds, and of how many."""
    scratch: list[Amount] = field(default_factory=list)
    """Bytes that are held while it runs, beside what it reads and gives."""

    def __post_init__(self) -> None:
        self.given = Attributes(self.node)

    @property
    def what(self) -> str:
        """The operator, for an error."""
        return f'operator "{self.node.op_type}"'

    def refuse(self, why: str, hint: str | None = None) -> NoReturn:
        """Raise FeatureNotSupported for this operator."""
        raise FeatureNotSupported(f"{self.what} {why}", hint=hint)

    def contradict(self, why: str) -> NoReturn:
        """Raise InvalidArtifact for this operator."""
        raise InvalidArtifact(f"{self.what} {why}")

    def has(self, position: int) -> bool:
        """Return whether an input is there."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def input(self, position: int) -> Tensor:
        """Return an input that must be there."""
        found = self.inputs[position] if position < len(self.inputs) else None
        if found is None:
            self.contradict(f"lacks input {position + 1}")
        return found

    def values(self, position: int) -> npt.NDArray[Any]:
        """Return an input's values, which set the size of the output."""
        found = self.input(position)
        if found.values is None:
            if found.depends:
                self.refuse("makes a tensor whose size depends on the features' values")
            self.refuse(
                "makes a tensor whose size cannot be told from the shapes of the inputs",
                hint="Export the model with fixed sizes, all but the number of rows.",
            )
        return found.values

    def amounts(self, position: int) -> list[Amount]:
        """Return an input's values as a list."""
        found = self.values(position)
        if found.ndim > 1:
            self.contradict(f"has a list of {found.ndim} dimensions")
        return list(found.reshape(-1))

    def integers(self, position: int) -> list[int]:
        """Return an input's values, which must not depend on the number of rows."""
        return [self.fixed(value) for value in self.amounts(position)]

    def scalar(self, position: int) -> Amount:
        """Return an input's only value."""
        found = self.amounts(position)
        if len(found) != 1:
            self.contradict(f"has {len(found)} values for one")
        return found[0]

    def fixed(self, value: Amount) -> int:
        """Return an amount that must not depend on the number of rows."""
        if value.a_row:
            self.refuse("depends on the number of rows in a way that is not supported")
        return value.fixed

    def axis(self, value: Any, rank: int) -> int:
        """Return an axis counted from the front."""
        axis = int(value)
        if not -rank <= axis < rank:
            self.contradict(f"has axis {axis} for {rank} dimensions")
        return axis % rank

    def axes(self, values: Sequence[Any], rank: int) -> list[int]:
        """Return axes counted from the front, no two the same."""
        found = [self.axis(value, rank) for value in values]
        if len(set(found)) != len(found):
            self.contradict("has an axis twice")
        return found

    def same(self, one: Amount, other: Amount, why: str = "has shapes that do not fit") -> None:
        """Demand that two sizes are the same for every number of rows."""
        if one != other:
            self.contradict(f"{why}: {one} and {other}")

    def one_element(self, position: int) -> None:
        """Demand an input of one element, where there is one."""
        if self.has(position):
            self.same(self.input(position).size, ONE)

    def takes(self, position: int, of: frozenset[int]) -> None:
        """Demand an input of one of these types."""
        element = self.input(position).element
        if element not in of:
            name = TensorProto.DataType.Name(element)
            self.refuse(f"of type {name} is not supported")


@dataclass(frozen=True)
class Rule:
    """How an operator is judged."""

    infer: Callable[[Call], Sequence[Tensor]]
    ns: float
    """Nanoseconds for each element that it reads or gives, whichever are more."""
    why: str
    """Why no value of a feature makes it write elsewhere, end the process, grow or run on."""


_Infer = Callable[[Call], Sequence[Tensor]]

RULES: dict[tuple[str, str], Rule] = {}
"""By domain and operator. ONNX's own domain is the empty string."""


def _rule(names: str, *, why: str, ns: float = COPY_NS, domain: str = "") -> Callable[[_Infer], _Infer]:
    def register(infer: _Infer) -> _Infer:
        for name in names.split():
            assert (domain, name) not in RULES, name
            RULES[domain, name] = Rule(infer, ns, why)
        return infer

    return register


def _ml_rule(names: str, *, why: str, ns: float = COPY_NS) -> Callable[[_Infer], _Infer]:
    return _rule(names, why=why, ns=ns, domain="ai.onnx.ml")


def _gives(
    call: Call, element: int, shape: Sequence[Amount], values: npt.NDArray[Any] | None = None
) -> Tensor:
    """Return an output that depends on what any input depends on."""
    depends = any(t is not None and t.depends for t in call.inputs)
    if values is not None and (values.size > MAX_VALUES or depends):
        values = None
    return Tensor(element, tuple(shape), depends, values)


def _followed(call: Call, work: Callable[..., Any]) -> npt.NDArray[Any] | None:
    """Return what ``work`` makes of the inputs' values; None where one is not known, or the result is not."""
    found = [t.values for t in call.inputs if t is not None]
    if any(v is None for v in found) or sum(v.size for v in found if v is not None) > MAX_VALUES:
        return None
    try:
        out = work(*found)
    except (_NotKnown, FeatureNotSupported, ValueError, IndexError, TypeError, ZeroDivisionError):
        return None
    array = np.asarray(out, object)
    big = any(abs(a.fixed) > MAX_VALUE or abs(a.a_row) > MAX_VALUE for a in array.reshape(-1))
    return None if array.size > MAX_VALUES or big else array


class _NotKnown(Exception):
    """A value depends on the number of rows in a way that is not followed."""


def _cellwise(function: Callable[..., Amount]) -> Callable[..., npt.NDArray[Any]]:
    """Return a function of arrays of amounts, broadcast, of one of amounts."""

    def work(*arrays: npt.NDArray[Any]) -> npt.NDArray[Any]:
        spread = np.broadcast_arrays(*arrays)
        cells = zip(*(a.reshape(-1) for a in spread), strict=True)
        return _amounts([function(*cell) for cell in cells], spread[0].shape)

    return work


# -- elementwise

_UNARY_CHEAP = """
    Abs Ceil Clip Floor HardSigmoid HardSwish LeakyRelu Neg Reciprocal Relu Round Sign ThresholdedRelu
"""
_UNARY_FUNCTIONS = """
    Acos Acosh Asin Asinh Atan Atanh Celu Cos Cosh Elu Erf Exp Gelu Log Mish Selu Sigmoid Sin Sinh Softplus Softsign Sqrt Swish
    Tan Tanh
"""
_SAME_VALUES: Mapping[str, Callable[[Amount], Amount]] = {
    "Abs": lambda a: a if _sign(a) >= 0 else -a,
    "Ceil": lambda a: a,
    "Floor": lambda a: a,
    "Identity": lambda a: a,
    "Neg": lambda a: -a,
    "Round": lambda a: a,
}


def _sign(value: Amount) -> int:
    found = value.sign
    if found is None:
        raise _NotKnown
    return found


@_rule(_UNARY_CHEAP, why="one value gives one value; floating-point numbers have no traps, integers wrap")
@_rule(
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
        values = _followed(call, _cellwise(_SAME_VALUES[call.node.op_type]))
    return [_gives(call, source.element, source.shape, values)]


@_rule("Identity", why="it copies")
def _identity(call: Call) -> Sequence[Tensor]:
    return [call.input(0)]


@_rule("IsInf IsNaN Not", why="one value gives one truth value")
def _predicate(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    values = None
    if call.node.op_type == "Not":
        values = _followed(call, _cellwise(lambda a: Amount(int(_sign(a) == 0))))
    return [_gives(call, TensorProto.BOOL, source.shape, values)]


def _spread(call: Call, shapes: Sequence[Shape]) -> Shape:
    """Return the shape that ``shapes`` are broadcast to."""
    rank = max(map(len, shapes))
    out = []
    for position in range(rank):
        sizes = [s[position - rank] for s in shapes if len(s) >= rank - position]
        wide = {size for size in sizes if size != ONE}
        if len(wide) > 1:
            call.contradict(f"has shapes that do not fit: {', '.join(map(_show, shapes))}")
        out.append(wide.pop() if wide else ONE)
    return tuple(out)


def _show(shape: Shape) -> str:
    return f"({', '.join(map(repr, shape))})"


def _difference(one: Amount, other: Amount) -> int:
    return _sign(one - other)


def _equal(one: Amount, other: Amount) -> Amount:
    return Amount(int(_difference(one, other) == 0))


_BINARY: Mapping[str, Callable[[Amount, Amount], Amount]] = {
    "Add": lambda a, b: a + b,
    "And": lambda a, b: Amount(int(a.fixed and b.fixed)),
    "Equal": _equal,
    "Greater": lambda a, b: Amount(int(_difference(a, b) > 0)),
    "GreaterOrEqual": lambda a, b: Amount(int(_difference(a, b) >= 0)),
    "Less": lambda a, b: Amount(int(_difference(a, b) < 0)),
    "LessOrEqual": lambda a, b: Amount(int(_difference(a, b) <= 0)),
    "Mul": lambda a, b: a * b,
    "Or": lambda a, b: Amount(int(a.fixed or b.fixed)),
    "Sub": lambda a, b: a - b,
    "Xor": lambda a, b: Amount(int(bool(a.fixed) != bool(b.fixed))),
}
_COMPARISONS = frozenset(["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"])


@_rule(
    "Add And Equal Greater GreaterOrEqual Less LessOrEqual Mul Or PRelu Sub Xor",
    why="two values give one; floating-point numbers have no traps, integers wrap",
)
def _binary(call: Call) -> Sequence[Tensor]:
    name = call.node.op_type
    one, other = call.input(0), call.input(1)
    shape = _spread(call, [one.shape, other.shape])
    if name == "PRelu" and shape != one.shape:
        call.contradict("has a slope that is larger than its input")
    if TensorProto.STRING in (one.element, other.element):
        if name != "Equal":
            call.refuse("of strings is not supported")
        call.ns.append((TEXT_NS, elements(shape)))
    values = _followed(call, _cellwise(_BINARY[name])) if name in _BINARY else None
    element = TensorProto.BOOL if name in _COMPARISONS else one.element
    return [_gives(call, element, shape, values)]


def _quotient(one: Amount, other: Amount) -> Amount:
    exact = one.over(other)
    if exact is not None:
        return exact
    if one.a_row or other.a_row:
        raise _NotKnown
    whole = abs(one.fixed) // abs(other.fixed)  # towards zero, as the processor divides
    return Amount(whole if (one.fixed < 0) == (other.fixed < 0) else -whole)


def _exact_quotient(one: Amount, other: Amount) -> Amount:
    exact = one.over(other)
    if exact is None:
        raise _NotKnown
    return exact


def _modulo(one: Amount, other: Amount) -> Amount:
    if other.a_row or other.fixed <= 0 or one.a_row % other.fixed or one.sign not in (0, 1):
        raise _NotKnown
    return Amount(one.fixed % other.fixed)


@_rule(
    "Div",
    why="integers are divided only by constants, and shapes, that are neither 0 nor -1: the least integer over -1 is a fault",
)
@_rule(
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
        values = _followed(call, _cellwise(_modulo)) if whole else None
    else:
        values = _followed(call, _cellwise(_quotient if whole else _exact_quotient))
    return [_gives(call, one.element, _spread(call, [one.shape, other.shape]), values)]


def _divides_safely(divisor: Tensor) -> bool:
    if divisor.constant is not None:
        return divisor.constant.dtype.kind in "iu" and not np.isin(divisor.constant, (0, -1)).any()
    if divisor.values is None:
        return False
    return all(v.sign == 1 or (not v.a_row and v.fixed < -1) for v in divisor.values.reshape(-1))


@_rule(
    "Pow", ns=2 * FUNCTION_NS, why="two values give one; what does not fit an integer becomes some integer"
)
def _power(call: Call) -> Sequence[Tensor]:
    one, other = call.input(0), call.input(1)
    return [_gives(call, one.element, _spread(call, [one.shape, other.shape]))]


def _extreme(pick: int) -> Callable[..., Amount]:
    def work(*cells: Amount) -> Amount:
        found = cells[0]
        for cell in cells[1:]:
            found = cell if _difference(cell, found) * pick > 0 else found
        return found

    return work


@_rule("Max Mean Min Sum", why="several values give one; floating-point numbers have no traps, integers wrap")
def _several(call: Call) -> Sequence[Tensor]:
    shape = _spread(call, [t.shape for t in call.inputs if t is not None])
    call.ns.append((COPY_NS * len(call.inputs), elements(shape)))
    values = None
    if call.node.op_type in ("Max", "Min"):
        values = _followed(call, _cellwise(_extreme(1 if call.node.op_type == "Max" else -1)))
    return [_gives(call, call.input(0).element, shape, values)]


@_rule("Where", why="it chooses one of two values")
def _where(call: Call) -> Sequence[Tensor]:
    condition, one, other = (call.input(i) for i in range(3))
    shape = _spread(call, [condition.shape, one.shape, other.shape])
    values = _followed(call, _cellwise(lambda c, a, b: a if _sign(c) else b))
    return [_gives(call, one.element, shape, values)]


@_rule(
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
    out = _gives(call, target, source.shape)
    return [replace(out, depends=source.depends, values=values)]


@_rule("Dropout", why="outside of training it copies; training, which is random, is refused")
def _dropout(call: Call) -> Sequence[Tensor]:
    if call.has(2) and [v.fixed or v.a_row for v in call.amounts(2)] != [0]:
        call.refuse("in training mode is not supported", hint="Export the model in evaluation mode.")
    source = call.input(0)
    return [_gives(call, source.element, source.shape), _gives(call, TensorProto.BOOL, source.shape)]


@_rule("CumSum", why="the axis is a constant; sums of integers wrap")
def _cumulative(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    call.axis(call.fixed(call.scalar(1)), source.rank)
    return [_gives(call, source.element, source.shape)]


@_rule("Trilu", why="values are kept or become 0, whichever diagonal is named")
def _triangle(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if source.rank < 2:
        call.contradict("reads no matrix")
    call.one_element(1)
    return [_gives(call, source.element, source.shape)]


# -- along axes


@_rule(
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
    return [_gives(call, source.element, source.shape)]


@_rule(
    "MeanVarianceNormalization",
    ns=4 * COPY_NS,
    why="as many values as it reads, over axes that are attributes",
)
def _standardize(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    call.axes(call.given.get("axes", [0, 2, 3]), source.rank)
    call.scratch.append(source.size * (6 * item_bytes(source.element)))
    return [_gives(call, source.element, source.shape)]


_REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
"""


@_rule(
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
        return [_gives(call, source.element, source.shape)]
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
            values = _amounts([product], (1,) if keep else ())
        except FeatureNotSupported:
            values = None
    return [_gives(call, source.element, shape, values)]


@_rule("ArgMax ArgMin", why="the place of a value along an axis that is not empty; NaN is somewhere, too")
def _argument(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    axis = call.axis(call.given.get("axis", 0), source.rank)
    keep = bool(call.given.get("keepdims", 1))
    shape = tuple(ONE if i == axis else size for i, size in enumerate(source.shape) if keep or i != axis)
    call.scratch.append(source.size * item_bytes(source.element))
    return [_gives(call, TensorProto.INT64, shape)]


@_rule(
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
    return [_gives(call, source.element, shape), _gives(call, TensorProto.INT64, shape)]


# -- products


def _product(call: Call, one: Shape, other: Shape) -> Shape:
    """Return the shape of a product of (stacks of) matrices, and count its work."""
    if not one or not other:
        call.contradict("reads a number where a matrix is expected")
    left = one if len(one) > 1 else (ONE, *one)
    right = other if len(other) > 1 else (*other, ONE)
    call.same(left[-1], right[-2])
    stack = _spread(call, [left[:-2], right[:-2]]) if len(left) > 2 or len(right) > 2 else ()
    whole = (*stack, left[-2], right[-1])
    call.ns.append((PRODUCT_NS, elements(whole) * left[-1]))
    call.scratch.append((elements(left) + elements(right)) * 8)  # packed into blocks
    shape = list(whole)
    if len(other) == 1:
        del shape[-1]
    if len(one) == 1:
        del shape[len(stack)]
    return tuple(shape)


@_rule("MatMul", why="sums of products over shapes that are checked; integers wrap")
def _matmul(call: Call) -> Sequence[Tensor]:
    one, other = call.input(0), call.input(1)
    shape = _product(call, one.shape, other.shape)
    if one.element not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        call.ns.append((SLOW_PRODUCT_NS, elements(shape) * one.shape[-1]))
    return [_gives(call, one.element, shape)]


@_rule("Gemm", why="sums of products over shapes that are checked; integers wrap")
def _gemm(call: Call) -> Sequence[Tensor]:
    one, other = call.input(0).shape, call.input(1).shape
    if len(one) != 2 or len(other) != 2:
        call.contradict("reads no matrices")
    one = one[::-1] if call.given.get("transA", 0) else one
    other = other[::-1] if call.given.get("transB", 0) else other
    shape = _product(call, one, other)
    if call.has(2) and _spread(call, [shape, call.input(2).shape]) != shape:
        call.contradict("adds what is larger than the product")
    return [_gives(call, call.input(0).element, shape)]


_BYTES = frozenset({TensorProto.INT8, TensorProto.UINT8})
_SHORTS = _BYTES | {TensorProto.INT16, TensorProto.UINT16}


def _fits_columns(call: Call, position: int, of: Sequence[Amount]) -> None:
    """Demand a zero point or scale that is one number, or one for each row or column."""
    if not call.has(position):
        return
    found = call.input(position)
    if found.size != ONE and (found.rank != 1 or found.shape[0] not in of):
        call.refuse("with scales of other shapes is not supported")


@_rule("MatMulInteger", why="sums of products of bytes, which 32 bits hold or wrap")
def _matmul_integer(call: Call) -> Sequence[Tensor]:
    for position in range(2):
        call.takes(position, _BYTES)
    one, other = call.input(0).shape, call.input(1).shape
    shape = _product(call, one, other)
    call.one_element(2)
    _fits_columns(call, 3, other[-1:])
    call.scratch.append(elements(shape) * 8)
    return [_gives(call, TensorProto.INT32, shape)]


@_rule("QLinearMatMul", why="sums of products of bytes, scaled and cut to a byte")
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
    return [_gives(call, call.input(7).element, shape)]


@_rule(
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
    return [_gives(call, element, source.shape)]


@_rule("DequantizeLinear", ns=2 * COPY_NS, why="a byte times a scale")
def _dequantize(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    call.takes(0, _SHORTS | {TensorProto.INT32})
    _check_scales(call, source)
    return [_gives(call, call.input(1).element, source.shape)]


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


@_rule(
    "DynamicQuantizeLinear",
    ns=4 * COPY_NS,
    why="numbers over their range, cut to a byte; of NaN and infinity, some byte",
)
def _quantize_by_range(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    return [
        _gives(call, TensorProto.UINT8, source.shape),
        _gives(call, TensorProto.FLOAT, ()),
        _gives(call, TensorProto.UINT8, ()),
    ]


@_rule("Einsum", why="sums of products over shapes that are checked, of two tensors at most")
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
    return [_gives(call, call.input(0).element, [sizes[c] for c in out])]


# -- windows


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


@_rule("Conv", why="sums of products over windows that are checked against the shapes")
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
    return [_gives(call, source.element, shape)]


@_rule("AveragePool MaxPool", why="windows are checked against the shapes; none lies in the padding alone")
def _pool(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if source.rank < 3:
        call.contradict("reads no channels with dimensions")
    window = _window(call, source.shape[2:], call.given["kernel_shape"])
    shape = (*source.shape[:2], *map(Amount, window.out))
    call.ns.append((2 * COPY_NS, elements(shape) * math.prod(window.kernel)))
    call.scratch.append((source.size + elements(shape)) * (2 * item_bytes(source.element)))
    return [_gives(call, source.element, shape), _gives(call, TensorProto.INT64, shape)]


@_rule("GlobalAveragePool GlobalMaxPool", why="one value for each channel, whose dimensions are not empty")
def _global_pool(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if source.rank < 3:
        call.contradict("reads no channels with dimensions")
    return [_gives(call, source.element, (*source.shape[:2], *[ONE] * (source.rank - 2)))]


# -- normalizations


@_rule(
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
    return [_gives(call, source.element, source.shape)]


@_rule(
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
    return [_gives(call, source.element, source.shape)]


@_rule(
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
    return [_gives(call, source.element, source.shape), *[_gives(call, TensorProto.FLOAT, kept)] * 2]


# -- shapes


@_rule("Shape", why="it reads no values")
def _shape(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    start, end = call.given.get("start", 0), call.given.get("end", source.rank)
    part = source.shape[int(start) : int(end)]
    return [Tensor(TensorProto.INT64, (Amount(len(part)),), False, _amounts(part, (len(part),)))]


@_rule("Size", why="it reads no values")
def _size(call: Call) -> Sequence[Tensor]:
    return [Tensor(TensorProto.INT64, (), False, _amounts([call.input(0).size], ()))]


@_rule("Reshape", why="the shape is a constant or comes from shapes, and has as many elements as before")
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
            call.contradict(f"makes {_show(tuple(wanted))} of {_show(source.shape)}")
        wanted[open_[0]] = left
    elif rest != source.size:
        call.contradict(f"makes {_show(tuple(wanted))} of {_show(source.shape)}")
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


@_rule("Flatten", why="it reads no values")
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


@_rule("Squeeze", why="it reads no values; axes are constants")
def _squeeze(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    given = _given_axes(call)
    if given is None:
        if any(size.a_row for size in source.shape):
            call.refuse(
                "without axes is not supported",
                hint="It would drop the rows' dimension where there is one row.",
            )
        given = [i for i, size in enumerate(source.shape) if size == ONE]
    axes = call.axes(given, source.rank)
    for axis in axes:
        call.same(source.shape[axis], ONE, "drops a dimension that is not 1")
    return [_moved(source, tuple(size for i, size in enumerate(source.shape) if i not in axes))]


@_rule("Unsqueeze", why="it reads no values; axes are constants")
def _unsqueeze(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    given = _given_axes(call) or []
    axes = call.axes(given, source.rank + len(given))
    rest = iter(source.shape)
    return [_moved(source, tuple(ONE if i in axes else next(rest) for i in range(source.rank + len(axes))))]


@_rule("Transpose", ns=GATHER_NS, why="it moves values, by an attribute")
def _transpose(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    order = [int(i) for i in call.given.get("perm", range(source.rank)[::-1])]
    if sorted(order) != list(range(source.rank)):
        call.contradict("has a perm that is none")
    values = _followed(call, lambda v: v.transpose(order))
    return [_gives(call, source.element, [source.shape[i] for i in order], values)]


@_rule("Concat", why="it moves values, along an attribute")
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
    values = _followed(call, lambda *v: np.concatenate(v, axis=axis))
    return [_gives(call, parts[0].element, shape, values)]


@_rule("Split", why="it moves values; the parts' sizes are constants")
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
        found.append(_gives(call, source.element, shape, values))
    return found


_FAR = 1 << 31  # beyond every dimension: how exporters write "to the end"


@_rule("Slice", why="starts, ends and steps are constants or come from shapes")
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
        if size.a_row:
            call.refuse("of rows is not supported", hint="Each row must be predicted for itself.")
        whole = range(*slice(call.fixed(start), call.fixed(end), step).indices(size.fixed))
        shape[axis] = Amount(len(whole))
        stop: int | None = whole.stop
        cut[axis] = slice(whole.start, None if stop is not None and stop < 0 else stop, step)
    values = None if source.values is None else source.values[tuple(cut)]
    out = _gives(call, source.element, shape)
    return [replace(out, depends=source.depends, values=values)]


@_rule("Gather", ns=GATHER_NS, why="onnxruntime compares each index with the axis and fails on one outside")
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
    return [_gives(call, source.element, shape, values)]


@_rule(
    "GatherElements",
    ns=GATHER_NS,
    why="onnxruntime compares each index with the axis and fails on one outside",
)
def _gather_elements(call: Call) -> Sequence[Tensor]:
    source, indices = call.input(0), call.input(1)
    if source.rank != indices.rank:
        call.contradict("has indices of another rank")
    axis = call.axis(call.given.get("axis", 0), source.rank)
    for i in range(source.rank):
        if i != axis:
            call.same(source.shape[i], indices.shape[i])
    return [_gives(call, source.element, indices.shape)]


@_rule(
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
    return [_gives(call, source.element, (*indices.shape[:-1], *source.shape[stack + depth :]))]


@_rule(
    "ScatterElements",
    ns=GATHER_NS,
    why="onnxruntime compares each index with the axis and fails on one outside",
)
def _scatter_elements(call: Call) -> Sequence[Tensor]:
    source, indices, updates = (call.input(i) for i in range(3))
    axis = call.axis(call.given.get("axis", 0), source.rank)
    if indices.shape != updates.shape or indices.rank != source.rank:
        call.contradict("has indices and updates that do not fit")
    for i in range(source.rank):
        if i != axis:
            call.same(source.shape[i], indices.shape[i])
    call.ns.append((GATHER_NS, indices.size))
    return [_gives(call, source.element, source.shape)]


@_rule(
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
    return [_gives(call, source.element, source.shape)]


@_rule("Expand", why="the shape is a constant or comes from shapes")
def _expand(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    wanted = tuple(call.amounts(1))
    if any(size.sign != 1 for size in wanted):
        call.contradict("makes a tensor of no size")
    shape = _spread(call, [source.shape, wanted])
    values = None
    if (
        source.values is not None
        and not any(size.a_row for size in shape)
        and elements(shape).fixed <= MAX_VALUES
    ):
        values = np.broadcast_to(source.values, [size.fixed for size in shape])
    return [_gives(call, source.element, shape, values)]


@_rule("Tile", why="repeats are constants or come from shapes")
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
    return [_gives(call, source.element, shape, values)]


@_rule("Pad", why="pads are constants, none below 0; a value that is copied from inside is inside")
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
    return [_gives(call, source.element, shape)]


@_rule("Range", why="start, limit and step are constants or come from shapes")
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
        return [_gives(call, element, [size])]
    length = -((start.fixed - limit.fixed) // each)  # len() of a range takes no more than 2^63 - 1
    if not 0 < length <= _FAR:
        call.contradict(f"makes a tensor of {max(length, 0)} elements")
    values = (
        _amounts(list(range(start.fixed, limit.fixed, each)), (length,)) if length <= MAX_VALUES else None
    )
    return [_gives(call, element, [Amount(length)], values)]


@_rule("ConstantOfShape", why="the shape is a constant or comes from shapes")
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
        values = _amounts([filled.values[0]] * total.fixed, [size.fixed for size in shape])
    return [Tensor(filled.element, shape, False, values)]


@_rule("EyeLike", why="ones and zeros in the shape of its input")
def _eye(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    if source.rank != 2:
        call.contradict("reads no matrix")
    return [Tensor(int(call.given.get("dtype", source.element)), source.shape, False)]


@_rule("OneHot", why="the depth is a constant; an index outside of it is nowhere one")
def _one_hot(call: Call) -> Sequence[Tensor]:
    indices, values = call.input(0), call.input(2)
    depth = call.fixed(call.scalar(1))
    if depth < 1:
        call.contradict(f"has depth {depth}")
    call.same(values.size, Amount(2))
    axis = call.axis(call.given.get("axis", -1), indices.rank + 1)
    shape = (*indices.shape[:axis], Amount(depth), *indices.shape[axis:])
    return [_gives(call, values.element, shape)]


@_rule("NonZero", why="only of a constant, or of shapes: how many there are would depend on the features")
def _non_zero(call: Call) -> Sequence[Tensor]:
    found = call.values(0)
    if any(v.sign is None for v in found.reshape(-1)):
        call.refuse("of the number of rows is not supported")
    places = np.argwhere(np.array([v.sign for v in found.reshape(-1)]).reshape(found.shape)).T
    if not places.size:
        call.contradict("makes a tensor of no size")
    shape = tuple(Amount(size) for size in places.shape)
    return [_gives(call, TensorProto.INT64, shape, _amounts(places.reshape(-1).tolist(), places.shape))]


@_rule("Compress", why="only by a constant: how many are kept would depend on the features")
def _compress(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    kept = call.integers(1)
    if "axis" not in call.given:
        call.refuse("without an axis is not supported")
    axis = call.axis(call.given["axis"], source.rank)
    if len(kept) > call.fixed(source.shape[axis]) or not any(kept):
        call.contradict("has a condition that does not fit")
    size = Amount(sum(map(bool, kept)))
    return [_gives(call, source.element, [size if i == axis else n for i, n in enumerate(source.shape)])]


@_rule("Constant", why="it is in the file")
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


# -- tables of numbers and strings: ai.onnx.ml


def _table(call: Call) -> tuple[Amount, int]:
    """Return rows and columns of the first input, which must be a matrix with a known number of columns."""
    source = call.input(0)
    if source.rank != 2:
        call.refuse(f"of {source.rank} dimensions is not supported", hint="Give it rows and columns.")
    return source.shape[0], call.fixed(source.shape[1])


def _one_or_each(call: Call, names: Sequence[str], width: int) -> None:
    """Demand attributes that have one number, or one for each column."""
    for name in names:
        count = len(call.given.get(name, ()))
        if count not in (0, 1, width):
            call.contradict(f'has {count} numbers as "{name}" for {width} columns')


@_ml_rule(
    "ArrayFeatureExtractor",
    ns=GATHER_NS,
    why="onnxruntime compares each index with the columns and fails on one outside",
)
def _extract(call: Call) -> Sequence[Tensor]:
    source, indices = call.input(0), call.input(1)
    if source.rank < 1:
        call.contradict("reads no columns")
    if source.element == TensorProto.STRING:
        call.ns.append((TEXT_NS, indices.size))
    shape = (*(source.shape[:-1] or (ONE,)), indices.size)
    return [_gives(call, source.element, shape)]


@_ml_rule("Binarizer", why="one value gives one")
def _binarizer(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    return [_gives(call, source.element, source.shape)]


@_ml_rule("FeatureVectorizer", why="it joins columns, whose numbers are checked against the inputs")
def _vectorize(call: Call) -> Sequence[Tensor]:
    widths = [int(v) for v in call.given.get("inputdimensions", [])]
    if len(widths) != len(call.inputs):
        call.contradict("has inputdimensions that do not fit")
    rows = call.input(0).shape[:1]
    for position, width in enumerate(widths):
        if call.input(position).shape != (*rows, Amount(width)):
            call.contradict("has inputdimensions that do not fit")
    return [_gives(call, TensorProto.FLOAT, (*rows, Amount(sum(widths))))]


@_ml_rule("Imputer", why="a value that is missing gives way to a constant")
def _imputer(call: Call) -> Sequence[Tensor]:
    _, width = _table(call)
    _one_or_each(call, ("imputed_value_floats", "imputed_value_int64s"), width)
    source = call.input(0)
    return [_gives(call, source.element, source.shape)]


_TABLE_ELEMENTS = {"strings": TensorProto.STRING, "int64s": TensorProto.INT64, "floats": TensorProto.FLOAT}


@_ml_rule("LabelEncoder", ns=TEXT_NS, why="a table's value, or the default: there is one for every key")
def _label_encoder(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    found: dict[str, tuple[int, int]] = {}
    for part in ("keys", "values"):
        for kind, element in _TABLE_ELEMENTS.items():
            if f"{part}_{kind}" in call.given:
                found.setdefault(part, (element, len(call.given[f"{part}_{kind}"])))
        if f"{part}_tensor" in call.given:
            array = call.given[f"{part}_tensor"]
            found.setdefault(part, (constant(array).element, array.size))
    if (
        "classes_strings" in call.given and not found
    ):  # the first version: either way between places and strings
        back = source.element != TensorProto.STRING
        return [_gives(call, TensorProto.STRING if back else TensorProto.INT64, source.shape)]
    if len(found) != 2 or found["keys"][1] != found["values"][1]:
        call.contradict("has keys and values that do not fit")
    if found["keys"][0] != source.element:
        call.contradict("has keys of another type than its input")
    return [_gives(call, found["values"][0], source.shape)]


@_ml_rule("Normalizer", ns=FUNCTION_NS, why="as many values as it reads; a row of zeros stays one")
def _normalizer(call: Call) -> Sequence[Tensor]:
    _table(call)
    return [_gives(call, TensorProto.FLOAT, call.input(0).shape)]


@_ml_rule(
    "OneHotEncoder", ns=COPY_NS, why="a place for each category; what is none of them is nowhere, or an error"
)
def _one_hot_encoder(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    counts = [len(call.given.get(name, ())) for name in ("cats_int64s", "cats_strings")]
    if sum(map(bool, counts)) != 1:
        call.contradict("has no categories, or of two types")
    if bool(counts[1]) != (source.element == TensorProto.STRING):
        call.contradict("has categories of another type than its input")
    call.ns.append((TEXT_NS, source.size))
    return [_gives(call, TensorProto.FLOAT, (*source.shape, Amount(sum(counts))))]


@_ml_rule("Scaler", why="a line for each column, of which the parameters have as many")
def _scaler(call: Call) -> Sequence[Tensor]:
    _, width = _table(call)
    _one_or_each(call, ("offset", "scale"), width)
    if not len(call.given.get("offset", ())) == len(call.given.get("scale", ())) > 0:
        call.contradict("has an offset and a scale of different lengths")
    return [_gives(call, TensorProto.FLOAT, call.input(0).shape)]


def _class_labels(call: Call) -> tuple[int, int]:
    """Return the type and the number of a classifier's labels."""
    for name, element in (
        ("classlabels_strings", TensorProto.STRING),
        ("classlabels_ints", TensorProto.INT64),
        ("classlabels_int64s", TensorProto.INT64),
    ):
        count = len(call.given.get(name, ()))
        if count:
            return element, count
    return call.contradict("has no labels")


def outputs_of_linear(given: Mapping[str, Any], classes: int) -> int:
    """Return how many lines a linear model has, of which each has a coefficient for each column."""
    return len(given.get("intercepts", ())) or classes


def _check_coefficients(call: Call, outputs: int, width: int) -> None:
    held = len(call.given.get("coefficients", ()))
    lines = outputs_of_linear(call.given, outputs)
    if held != lines * width:
        call.contradict(f"has {held} coefficients for {lines} x {width}")


@_ml_rule(
    "LinearClassifier",
    ns=FUNCTION_NS,
    why="sums of products, whose coefficients are counted; one score for each label",
)
def _linear_classifier(call: Call) -> Sequence[Tensor]:
    rows, width = _table(call)
    element, classes = _class_labels(call)
    _check_coefficients(call, classes, width)
    call.ns.append((SLOW_PRODUCT_NS, rows * (width * classes)))
    call.scratch.append(call.input(0).size * 4)
    return [_gives(call, element, [rows]), _gives(call, TensorProto.FLOAT, [rows, Amount(classes)])]


@_ml_rule("LinearRegressor", ns=FUNCTION_NS, why="sums of products, whose coefficients are counted")
def _linear_regressor(call: Call) -> Sequence[Tensor]:
    rows, width = _table(call)
    targets = int(call.given.get("targets", 1))
    _check_coefficients(call, targets, width)
    call.ns.append((SLOW_PRODUCT_NS, rows * (width * targets)))
    call.scratch.append(call.input(0).size * 4)
    return [_gives(call, TensorProto.FLOAT, [rows, Amount(targets)])]


def _vectors(call: Call, classes: int) -> tuple[int, int]:
    """Return how many support vectors, or lines, a machine has, and columns; demand as many numbers."""
    rows, width = _table(call)
    vectors = int(np.sum(call.given.get("vectors_per_class", 0))) or int(call.given.get("n_supports", 0))
    lines = vectors or classes
    held = len(call.given.get("support_vectors" if vectors else "coefficients", ()))
    if held != lines * width:
        call.contradict(f"has {held} values for {lines} x {width}")
    call.ns.append((SLOW_PRODUCT_NS, rows * (width * lines)))
    call.ns.append((FUNCTION_NS * max(1, classes - 1), rows * (lines + classes * classes)))
    call.scratch.append(rows * (8 * (lines + 2 * classes * classes)))
    return vectors, width


@_ml_rule(
    "SVMClassifier",
    why="sums of products, whose numbers are counted; one score for each label, or pair of labels",
)
def _svm_classifier(call: Call) -> Sequence[Tensor]:
    rows, _ = _table(call)
    element, classes = _class_labels(call)
    vectors, _ = _vectors(call, classes)
    pairs = classes * (classes - 1) // 2
    scores = classes if classes == 2 or not vectors or len(call.given.get("prob_a", ())) else pairs
    return [_gives(call, element, [rows]), _gives(call, TensorProto.FLOAT, [rows, Amount(scores)])]


@_ml_rule("SVMRegressor", why="sums of products, whose numbers are counted")
def _svm_regressor(call: Call) -> Sequence[Tensor]:
    rows, _ = _table(call)
    _vectors(call, 1)
    return [_gives(call, TensorProto.FLOAT, [rows, ONE])]


def _check_split_features(call: Call) -> Amount:
    """Demand that trees split columns that are there; count their levels."""
    rows, width = _table(call)
    modes = np.array(call.given["nodes_modes"], dtype="S16")
    used = np.asarray(call.given["nodes_featureids"], np.int64)[modes != b"LEAF"]
    if len(used) and used.max() >= width:
        call.contradict(f"uses feature {used.max()} of {width}")
    # A path is no longer than its tree has branches, nor than the limit of depth.
    tree = np.asarray(call.given["nodes_treeids"], np.int64)
    starts = np.flatnonzero(np.r_[True, tree[1:] != tree[:-1]])
    branches = np.add.reduceat((modes != b"LEAF").astype(np.int64), starts)
    levels = int(np.minimum(branches, _TREE_DEPTH).sum()) + len(starts)
    call.ns.append((LEVEL_NS, rows * levels))
    call.scratch.append(call.input(0).size * 8)
    return rows


_TREE_DEPTH = (
    64  # a path through a tree of an exporter is shorter on average, and the deepest that are taken are few
)


@_ml_rule(
    "TreeEnsembleClassifier",
    ns=FUNCTION_NS,
    why="ids and features are checked against the nodes and the columns; a path ends, as no node is reached twice",
)
def _tree_classifier(call: Call) -> Sequence[Tensor]:
    rows = _check_split_features(call)
    element, classes = _class_labels(call)
    call.scratch.append(rows * (16 * classes))
    return [_gives(call, element, [rows]), _gives(call, TensorProto.FLOAT, [rows, Amount(classes)])]


@_ml_rule(
    "TreeEnsembleRegressor",
    ns=FUNCTION_NS,
    why="ids and features are checked against the nodes and the columns; a path ends, as no node is reached twice",
)
def _tree_regressor(call: Call) -> Sequence[Tensor]:
    rows = _check_split_features(call)
    targets = int(call.given.get("n_targets", 1))
    call.scratch.append(rows * (16 * targets))
    return [_gives(call, TensorProto.FLOAT, [rows, Amount(targets)])]


@_ml_rule(
    "ZipMap", ns=TEXT_NS, why="a dictionary of each row, which nothing reads and no prediction asks for"
)
def _zip_map(call: Call) -> Sequence[Tensor]:
    source = call.input(0)
    return [replace(_gives(call, source.element, source.shape), is_map=True)]
