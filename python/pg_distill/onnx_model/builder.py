"""An ONNX graph under construction: nodes, constants, names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = ["Builder"]


class Builder:
    """Nodes and constants in the order in which they are added; names are numbered, so equal graphs give equal bytes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._initializers: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0
        self._shared: dict[tuple[Any, ...], str] = {}
        self._pairs: dict[tuple[Any, ...], tuple[str, str]] = {}

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        *,
        domain: str = "",
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        """Append a node with one output and return that output's name."""
        if output is None:
            output = f"t{self._count}"
            self._count += 1
        self.nodes.append(helper.make_node(operator, list(inputs), [output], domain=domain, **attributes))
        return output

    def once(self, key: tuple[Any, ...], make: Callable[[], tuple[str, str]]) -> tuple[str, str]:
        """Return what ``make`` returns, two tensors; the second time under the same ``key`` those of the first."""
        if key not in self._pairs:
            self._pairs[key] = make()
        return self._pairs[key]

    def split(self, x: str, separator: str) -> tuple[str, str]:
        """Append a StringSplit; return the names of its parts, one axis more than ``x``, and of their counts."""
        outputs = f"t{self._count}", f"t{self._count + 1}"
        self._count += 2
        self.nodes.append(helper.make_node("StringSplit", [x], list(outputs), delimiter=separator))
        return outputs

    def constant(self, values: npt.NDArray[Any]) -> str:
        """Return the name of an initializer that holds ``values``; equal ones are stored once."""
        return self._store(np.ascontiguousarray(values))

    def scalar(self, value: int | str) -> str:
        """Return the name of an initializer without axes; equal ones are stored once."""
        return self._store(np.array(value, object if isinstance(value, str) else np.int64))

    def _store(self, values: npt.NDArray[Any]) -> str:
        if values.dtype.kind in "OU":
            key = ("str", values.shape, "\0".join(str(v) for v in values.ravel()).encode())
        else:
            key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._initializers:
            name = f"c{len(self.tensors)}"
            self._initializers[key] = name
            self.tensors.append(numpy_helper.from_array(values, name))
        return self._initializers[key]

    def shared(self, key: tuple[Any, ...], operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Like ``node``, but a node asked for twice under the same ``key`` is made once (parts of a blend share it)."""
        if key not in self._shared:
            self._shared[key] = self.node(operator, inputs, **attributes)
        return self._shared[key]
