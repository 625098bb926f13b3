"""The arithmetic of a walk over a graph: amounts that depend on the rows, tensors, and what a rule says of a node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from pg_distill.errors import FeatureNotSupported, InvalidArtifact
from pg_distill.onnx_model.amounts import ONE, Amount, Shape, amount_of, elements

__all__ = [
    "COPY_NS",
    "ELEMENTS",
    "FLOATS",
    "FMOD_NS",
    "FUNCTION_NS",
    "GATHER_NS",
    "LEVEL_NS",
    "MAX_VALUES",
    "ONE",
    "PRODUCT_NS",
    "RULES",
    "SLOW_PRODUCT_NS",
    "SORT_NS",
    "STRING_BYTES",
    "TEXT_NS",
    "Amount",
    "Attributes",
    "Call",
    "NotKnown",
    "Rule",
    "Shape",
    "Tensor",
    "amount_of",
    "amounts_of",
    "cellwise",
    "constant",
    "difference",
    "elements",
    "followed",
    "gives",
    "item_bytes",
    "ml_rule",
    "rule",
    "show_shape",
    "sign",
    "spread",
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
    longest
        Of strings: so many times the longest string of a run each has bytes, at most.
    characters
        Of strings whose number depends on a text: the bytes of all of them together.
    """

    element: int
    shape: Shape
    depends: bool = True
    values: npt.NDArray[Any] | None = None
    constant: npt.NDArray[Any] | None = None
    is_map: bool = False
    longest: int = 1
    characters: Amount | None = None

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
        """Whether it has none for some number of rows, whatever a text says."""
        return any(size.sign != 1 for size in self.shape if not size.at_most)

    @property
    def is_open(self) -> bool:
        """Whether its size depends on what a text says; it may have no elements then."""
        return any(size.at_most for size in self.shape)


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
            values = amounts_of([int(v) for v in whole.reshape(-1)], array.shape)
    shape = tuple(Amount(size) for size in array.shape)
    return Tensor(element, shape, False, values, array)


def amounts_of(values: Sequence[Amount | int], shape: Sequence[int]) -> npt.NDArray[Any]:
    """Return known values of a tensor, in its shape."""
    out = np.empty(len(values), object)
    for position, value in enumerate(values):
        out[position] = amount_of(value)
    return out.reshape(tuple(shape))


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
        """Return an amount that must not depend on the number of rows, nor on what a text says."""
        if value.at_most:
            self.refuse("depends on how many words a text has in a way that is not supported")
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


def rule(names: str, *, why: str, ns: float = COPY_NS, domain: str = "") -> Callable[[_Infer], _Infer]:
    """Enter what is decorated into ``RULES`` as the rule of the operators named."""

    def register(infer: _Infer) -> _Infer:
        for name in names.split():
            assert (domain, name) not in RULES, name
            RULES[domain, name] = Rule(infer, ns, why)
        return infer

    return register


def ml_rule(names: str, *, why: str, ns: float = COPY_NS) -> Callable[[_Infer], _Infer]:
    """Enter a rule of operators of ai.onnx.ml."""
    return rule(names, why=why, ns=ns, domain="ai.onnx.ml")


def gives(
    call: Call, element: int, shape: Sequence[Amount], values: npt.NDArray[Any] | None = None
) -> Tensor:
    """Return an output that depends on what any input depends on."""
    depends = any(t is not None and t.depends for t in call.inputs)
    longest = max((t.longest for t in call.inputs if t is not None), default=1)
    if values is not None and (values.size > MAX_VALUES or depends):
        values = None
    return Tensor(element, tuple(shape), depends, values, longest=longest)


def followed(call: Call, work: Callable[..., Any]) -> npt.NDArray[Any] | None:
    """Return what ``work`` makes of the inputs' values; None where one is not known, or the result is not."""
    found = [t.values for t in call.inputs if t is not None]
    if any(v is None for v in found) or sum(v.size for v in found if v is not None) > MAX_VALUES:
        return None
    try:
        out = work(*found)
    except (NotKnown, FeatureNotSupported, ValueError, IndexError, TypeError, ZeroDivisionError):
        return None
    array = np.asarray(out, object)
    big = any(abs(a.fixed) > MAX_VALUE or abs(a.a_row) > MAX_VALUE for a in array.reshape(-1))
    return None if array.size > MAX_VALUES or big else array


class NotKnown(Exception):
    """A value depends on the number of rows in a way that is not followed."""


def cellwise(function: Callable[..., Amount]) -> Callable[..., npt.NDArray[Any]]:
    """Return a function of arrays of amounts, broadcast, of one of amounts."""

    def work(*arrays: npt.NDArray[Any]) -> npt.NDArray[Any]:
        spread = np.broadcast_arrays(*arrays)
        cells = zip(*(a.reshape(-1) for a in spread), strict=True)
        return amounts_of([function(*cell) for cell in cells], spread[0].shape)

    return work


def sign(value: Amount) -> int:
    """Return the sign that an amount has for every number of rows; raise where there is none."""
    found = value.sign
    if found is None:
        raise NotKnown
    return found


def spread(call: Call, shapes: Sequence[Shape]) -> Shape:
    """Return the shape that ``shapes`` are broadcast to."""
    rank = max(map(len, shapes))
    out = []
    for position in range(rank):
        sizes = [s[position - rank] for s in shapes if len(s) >= rank - position]
        wide = {size for size in sizes if size != ONE}
        if len(wide) > 1:
            call.contradict(f"has shapes that do not fit: {', '.join(map(show_shape, shapes))}")
        out.append(wide.pop() if wide else ONE)
    return tuple(out)


def show_shape(shape: Shape) -> str:
    """Return a shape as a message shows it."""
    return f"({', '.join(map(repr, shape))})"


def difference(one: Amount, other: Amount) -> int:
    """Return the sign of the difference of two amounts."""
    return sign(one - other)
