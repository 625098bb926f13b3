"""Nodes of a graph while a model is converted: arithmetic on float64 tensors of rows, by the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = ["Array", "Nodes"]

Array = npt.NDArray[Any]


class Nodes:
    """Nodes and initializers; a method for each operator returns the name of what it gives."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, Array | Callable[[], Array]] = {}
        self._known: dict[tuple[Any, ...], str] = {}
        self._count = 0

    def constant(self, values: Any, dtype: Any = np.float64) -> str:
        """Return the name of an initializer; equal ones are stored once."""
        array = np.ascontiguousarray(np.asarray(values, dtype))
        if array.ndim == 0 and np.ndim(values) == 0:
            array = array.reshape(())
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self.later(lambda: array)
        return self._known[key]

    def later(self, make: Callable[[], Array]) -> str:
        """Return the name of an initializer that is made when the graph is finished."""
        name = f"c{len(self._initializers)}"
        self._initializers[name] = make
        return name

    def op(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Append a node of one output and return that output's name; one that is there already is not made again."""
        key = ("node", operator, inputs, repr(sorted(attributes.items()))) if not domain else None
        if key is not None and key in self._known:
            return self._known[key]
        output = self.fresh()
        self.nodes.append(helper.make_node(operator, list(inputs), [output], domain=domain, **attributes))
        if key is not None:
            self._known[key] = output
        return output

    def fresh(self) -> str:
        """Return a name that no tensor has."""
        self._count += 1
        return f"t{self._count}"

    def gather(self, x: str, columns: Sequence[int] | Array) -> str:
        """Return columns of a tensor."""
        return self.op("Gather", x, self.constant(columns, np.int64), axis=1)

    def select_tensor(self, x: str, columns: Sequence[int] | Array, width: int) -> str:
        """Return columns of a tensor of ``width`` ones; the tensor itself where they are all."""
        wanted = [int(c) for c in columns]
        return x if wanted == list(range(width)) else self.gather(x, wanted)

    def top(self, x: str, count: int, *, largest: bool = False) -> tuple[str, str]:
        """Return the smallest or largest values of each row, sorted, and their places (int64)."""
        values, at = self.fresh(), self.fresh()
        self.nodes.append(
            helper.make_node(
                "TopK",
                [x, self.constant([count], np.int64)],
                [values, at],
                axis=1,
                largest=int(largest),
                sorted=1,
            )
        )
        return values, at

    def concat(self, parts: Sequence[str]) -> str:
        """Return tensors side by side."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=1)

    def cast(self, x: str, dtype: Any = np.float64) -> str:
        """Return a tensor as another type."""
        return self.op("Cast", x, to=int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))

    def add(self, x: str, y: Any) -> str:
        """Return x + y; y may be a constant."""
        return self.op("Add", x, y if isinstance(y, str) else self.constant(y))

    def sub(self, x: Any, y: Any) -> str:
        """Return x - y."""
        return self.op("Sub", self._tensor(x), self._tensor(y))

    def mul(self, x: str, y: Any) -> str:
        """Return x * y."""
        return self.op("Mul", x, self._tensor(y))

    def div(self, x: Any, y: Any) -> str:
        """Return x / y."""
        return self.op("Div", self._tensor(x), self._tensor(y))

    def _tensor(self, x: Any) -> str:
        return x if isinstance(x, str) else self.constant(x)

    def affine(self, x: str, weights: Any, bias: Any) -> str:
        """Return x @ weights + bias."""
        product = self.product(x, weights)
        return self.add(product, bias) if np.any(bias) else product

    def product(self, x: str, weights: Any) -> str:
        """Return x @ weights."""
        return self.op("MatMul", x, self.constant(weights))

    def sum(self, x: str, axis: int = 1) -> str:
        """Return the sum over an axis, which stays with one element."""
        return self.op("ReduceSum", x, self.constant([axis], np.int64), keepdims=1)

    def where(self, condition: str, x: Any, y: Any) -> str:
        """Return x where a condition holds, else y."""
        return self.op("Where", condition, self._tensor(x), self._tensor(y))

    def equal(self, x: str, y: Any) -> str:
        """Return x == y."""
        return self.op("Equal", x, self._tensor(y))

    def is_nan(self, x: str) -> str:
        """Return where x is NaN."""
        return self.op("IsNaN", x)

    def any_of(self, conditions: Sequence[str]) -> str:
        """Return where one of several conditions holds."""
        found = conditions[0]
        for condition in conditions[1:]:
            found = self.op("Or", found, condition)
        return found

    def sigmoid(self, x: str) -> str:
        """Return the logistic function."""
        return self.op("Sigmoid", x)

    def softmax(self, x: str) -> str:
        """Return the softmax of each row."""
        return self.op("Softmax", x, axis=1)

    def pair(self, positive: str) -> str:
        """Return (n, 2) probabilities of that of the second class."""
        return self.concat([self.sub(1.0, positive), positive])

    def float32(self, x: str) -> str:
        """Return numbers as float32 holds them."""
        return self.cast(self.cast(x, np.float32))

    def tile(self, row: Any, like: str) -> str:
        """Return (n, width) of one constant row; ``like`` is a float64 tensor of n rows."""
        zero = self.mul(self.cast(self.is_nan(self.gather(like, [0]))), 0.0)
        return self.add(zero, np.asarray(row, np.float64).reshape(1, -1))

    # -- foreign graphs

    def inline(self, model: onnx.ModelProto, feeds: Mapping[str, str], output: str) -> str:
        """Put the nodes of another graph into this one; return what its tensor ``output`` is called here."""
        prefix = f"{self.fresh()}_"
        names = dict(feeds)

        def named(name: str) -> str:
            return name if not name else names.setdefault(name, prefix + name)

        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            names[tensor.name] = self.later(lambda array=array: array)  # type: ignore[misc]
        for node in model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = ""
            copy.input[:] = [named(name) for name in node.input]
            copy.output[:] = [named(name) for name in node.output]
            self.nodes.append(copy)
        return names[output]
