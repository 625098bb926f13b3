"""Graphs grown from nothing: whole numbers at their ends, shapes that depend on values, names that quote, hide and break lines.

Exports have few of these, so that mutants of them reach none. Like a mutant, a grown graph is a function of its number.
"""

from __future__ import annotations

import random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["NAMES", "grow"]

ENDS = (-(2**63), 2**63 - 1, -(2**31), 2**31 - 1, -(2**53), 2**53 + 1, -1, 0, 1, 2, 7, 63, 64, 1000)
NAMES = (
    "x", "a\nb", 'a"b', "a'b; drop table t; --", "a\\", "\u202ea", "a\x1b[2J", "$1", "%s", "{0}", "a" * 300, "ctid", "é", " ", "-1",
)  # fmt: skip
MOST_STEPS = 12

# What a step makes of whole numbers `a` and `b` of any shape. Of the second kind the size of the answer depends on values.
ARITHMETIC = (
    "Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Pow", "BitShift", "Neg", "Abs", "Sign", "Where", "Clip", "CumSum",
    "Cast32", "CastFloat", "ReduceSum", "ReduceProd", "ArgMax", "Gather", "GatherElements", "Slice", "Concat", "MatMul",
)  # fmt: skip
GROWING = (
    "NonZero", "Range", "Tile", "Expand", "ConstantOfShape", "Compress", "Unique", "TopK", "OneHot", "Reshape", "Pad", "Resize",
    "Split", "RepeatConcat",
)  # fmt: skip

# Nearly always: seldom tried, so that the rest is reached.
REFUSED = ("BitShift", "Unique", "Resize", "Mod", "Div")


def grow(number: int) -> bytes:
    """Return the graph of this ``number``: two features as whole numbers, some steps, and their sum as the answer."""
    rng = random.Random(f"growth {number}")
    return _Growth(rng).model()


class _Growth:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []
        self._values: list[str] = []
        self._hostile = rng.random() < 0.3

    def model(self) -> bytes:
        rng = self._rng
        source = rng.choice(NAMES) if self._hostile else "x"
        kind = TensorProto.FLOAT if rng.random() < 0.7 else TensorProto.INT64
        whole = source
        if kind == TensorProto.FLOAT:
            whole = self._node("Cast", [source], to=TensorProto.INT64)
        for column in (0, 1):
            self._values.append(self._node("Gather", [whole, self._constant([column])], axis=1))
        share = rng.choice((0.0, 0.2, 0.6))
        for _ in range(rng.randint(1, MOST_STEPS)):
            way = rng.choice(GROWING if rng.random() < share else ARITHMETIC)
            if way in REFUSED and rng.random() < 0.9:
                continue
            self._values.append(self._step(way))
        total = self._node("ReduceSum", [self._values[-1]], keepdims=1)
        answer = self._node("Cast", [total], to=TensorProto.FLOAT)
        # The row's own part gives the answer a row for each of the rows.
        row = self._node("Cast", [self._values[0]], to=TensorProto.FLOAT)
        self._nodes.append(helper.make_node("Add", [row, answer], ["y"]))
        graph = helper.make_graph(
            self._nodes,
            rng.choice(NAMES) if self._hostile else "g",
            [helper.make_tensor_value_info(source, kind, ["N", 2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
            self._constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(made.SerializeToString())

    def _node(self, operator: str, inputs: list[str], **attributes: object) -> str:
        name = f"{self._rng.choice(NAMES) if self._hostile else 'v'}{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def _constant(self, values: object, kind: type = np.int64) -> str:
        name = f"k{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def _any(self) -> str:
        """Return what was made before, or a constant at an end."""
        if self._rng.random() < 0.3:
            return self._constant([[self._rng.choice(ENDS)]])
        return self._rng.choice(self._values)

    def _size(self) -> str:
        """Return a vector of one whole number that a feature says, now and then a constant."""
        if self._rng.random() < 0.2:
            return self._constant([self._rng.choice((0, 1, 3, 2**31, 2**40))])
        return self._node("Reshape", [self._rng.choice(self._values), self._constant([-1])])

    def _step(self, way: str) -> str:
        rng, a = self._rng, self._any()
        if way in ("Neg", "Abs", "Sign"):
            return self._node(way, [a])
        if way == "BitShift":
            unsigned = [self._node("Cast", [v], to=TensorProto.UINT64) for v in (a, self._any())]
            shifted = self._node(way, unsigned, direction=rng.choice(("LEFT", "RIGHT")))
            return self._node("Cast", [shifted], to=TensorProto.INT64)
        if way == "Mod":
            return self._node(way, [a, self._any()], fmod=rng.randint(0, 1))
        if way == "Where":
            return self._node(way, [self._node("Greater", [a, self._any()]), self._any(), self._any()])
        if way == "Clip":
            ends = sorted(rng.sample(ENDS, 2))
            return self._node(way, [a, *(self._constant(end) for end in ends)])
        if way == "CumSum":
            return self._node(way, [a, self._constant(0, np.int32)])
        if way in ("Cast32", "CastFloat"):
            to = rng.choice(
                (TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8, TensorProto.UINT32, TensorProto.BOOL)
            )
            kept = self._node(
                "Cast", [a], to=to if way == "Cast32" else rng.choice((TensorProto.FLOAT, TensorProto.DOUBLE))
            )
            return self._node("Cast", [kept], to=TensorProto.INT64)
        if way == "ReduceSum":
            return self._node(way, [a, self._constant([rng.choice((0, 1, -1))])], keepdims=1)
        if way == "ReduceProd":
            return self._node(way, [a], axes=[rng.choice((0, 1, -1))], keepdims=1)
        if way == "ArgMax":
            return self._node(way, [a], axis=rng.choice((0, 1, -1)), keepdims=1)
        if way in ("Gather", "GatherElements"):
            return self._node(way, [a, self._any()], axis=rng.choice((0, 1)))
        if way == "Slice":
            return self._node(way, [a, self._size(), self._size(), self._constant([rng.choice((0, 1))])])
        if way in ("Concat", "RepeatConcat"):
            parts = [a] * rng.randint(2, 6) if way == "RepeatConcat" else [a, self._any()]
            return self._node("Concat", parts, axis=rng.choice((0, 1)))
        if way == "MatMul":
            return self._node(way, [self._node("Transpose", [a]), self._any()])
        if way == "NonZero":
            return self._node("Add", [self._node(way, [a]), self._constant([1])])
        if way == "Range":
            return self._node(
                way, [self._constant(0), self._node("Squeeze", [a]), self._constant(rng.choice((0, 1, -1)))]
            )
        if way == "ConstantOfShape":
            return self._node("Cast", [self._node(way, [self._size()])], to=TensorProto.INT64)
        if way == "Compress":
            passed = self._node("Reshape", [self._node("Greater", [a, self._any()]), self._constant([-1])])
            return self._node(way, [a, passed], axis=rng.choice((0, 1)))
        if way in ("Tile", "Expand", "Reshape", "Split"):
            return self._node(way, [a, self._size()])
        if way == "TopK":
            values = self._node(way, [a, self._size()], axis=rng.choice((0, 1)))
            self._nodes[-1].output.append(f"places{len(self._nodes)}")
            return values
        if way == "OneHot":
            return self._node(way, [a, self._size(), self._constant([0, 1])])
        if way == "Pad":
            return self._node(way, [a, self._node("Concat", [self._size()] * 4, axis=0), self._constant(0)])
        if way == "Resize":
            scaled = self._node("Cast", [a], to=TensorProto.FLOAT)
            resized = self._node(way, [scaled, "", "", self._node("Concat", [self._size()] * 2, axis=0)])
            return self._node("Cast", [resized], to=TensorProto.INT64)
        if way == "Unique":
            return self._node(way, [a])
        return self._node(way, [a, self._any()])
