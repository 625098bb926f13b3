"""From a fitted student to one ONNX file: the inputs that all families share, and a small graph builder.

One row's ``session.run`` costs a few microseconds and each node up to one more, so graphs are kept short: numbers
arrive as one tensor, strings as another, texts as a third.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from pg_distill.frame import Feature, FloatArray, Frame, Task
from pg_distill.onnx_model.builder import Builder
from pg_distill.onnx_model.texts import TEXT_KEY
from pg_distill.onnx_model.tokens import WANTED, Tokeniser
from pg_distill.onnx_model.tokens_graph import TEXT_OPSET, add_reader
from pg_distill.students.families import STEADY
from pg_distill.students.projection import Projection

__all__ = ["STUDENT_KEY", "Graph", "Numbers"]

STUDENT_KEY = "pg_distill.student"
"""Key of ``metadata_props`` under which a student describes itself (JSON)."""

OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
"""The oldest that have every operator used: any ONNX Runtime of the last years opens them."""
TEXT_IR_VERSION = 9
"""The same for students that read texts: StringSplit is of 20."""

STEADY_SHIFT = 1.5 * 2.0**23 * STEADY
"""Added and taken off again it rounds a float32 of up to a third of it to a multiple of ``STEADY``: nearest, and so monotone."""

FLOAT32_INTEGERS = 2.0**24
"""Beyond this size float32 steps over integers."""


@dataclass(frozen=True)
class Numbers:
    """How the columns that are not of strings reach a student as float32: numbers, then projections of vectors.

    Most columns are simply cast. Where float32 could not carry one (timestamps, large integers), the input is double and
    each such column is centred before the cast; ``centre`` (d,) is 0 for all others. Projections are computed in double: trees
    compare what comes of them, which must not depend on the order of a sum.
    """

    features: tuple[Feature, ...]
    element: Literal["float", "double"]
    centre: FloatArray
    projections: tuple[Projection, ...] = ()

    @classmethod
    def fit(cls, frame: Frame, target: FloatArray | None = None, most: int = 0) -> Numbers:
        """Choose the element type and the centres by the rows of ``frame``.

        Of each column of vectors learn ``most`` numbers that predict ``target`` (n, K), or none.
        """
        centre = np.zeros(len(frame.number_names))
        wide = False
        kinds = {f.name: f.kind for f in frame.features}
        for position, name in enumerate(frame.number_names):
            column = frame.number(name)
            known = column[np.isfinite(column)]
            if not len(known):
                wide = wide or kinds[name] == "timestamp"
                continue
            large = np.abs(known) >= FLOAT32_INTEGERS
            if kinds[name] == "timestamp" or bool((large & (known == np.round(known))).any()):
                centre[position] = np.round(np.median(known))
                wide = True
        projections: list[Projection] = []
        if target is not None and most:
            projections = [
                Projection.learn(name, frame.vector(name), target, most=most) for name in frame.vector_names
            ]
        centre = np.pad(centre, (0, sum(p.size for p in projections)))
        return cls(frame.features, "double" if wide else "float", centre, tuple(projections))

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the columns of single numbers, which come first."""
        return tuple(f.name for f in self.features if not f.is_string and not f.is_vector)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        projected = (f"{p.name} direction {i + 1}" for p in self.projections for i in range(p.size))
        return (*self.own, *projected)

    def missing(self, frame: Frame) -> list[bool]:
        """Return which of the columns have a NULL in ``frame``."""
        found = [bool(np.isnan(frame.number(name)).any()) for name in self.own]
        for p in self.projections:
            found += [bool(np.isnan(frame.vector(p.name)[:, 0]).any())] * p.size
        return found

    def transform(self, frame: Frame) -> npt.NDArray[np.float32]:
        """Return the numbers (n, d) as the graph's first nodes compute them; NULL is NaN."""
        values = frame.numbers()
        if self.element == "double":
            values -= self.centre[: values.shape[1]]
        with np.errstate(over="ignore", invalid="ignore"):
            if not self.projections:
                return values.astype(np.float32)
            parts = [values, *(p.transform(frame.vector(p.name)) for p in self.projections)]
            return np.concatenate([part.astype(np.float32) for part in parts], axis=1)


class Graph(Builder):
    """The graph of a student: its inputs, and its output."""

    def __init__(self, numbers: Numbers) -> None:
        super().__init__()
        self._inputs = numbers
        self._readers: list[dict[str, Any]] = []
        self._read: dict[tuple[int, Tokeniser, bytes, bytes], str] = {}

    @property
    def numbers(self) -> str:
        """Name of the (n, d) float tensor of numbers, as ``transform`` of the graph's own ``Numbers`` gives it."""
        return self.read(self._inputs)

    def read(self, numbers: Numbers) -> str:
        """Name of the (n, d) float tensor of numbers, as ``numbers.transform`` gives it.

        The parts of a blend may have learned from different rows, and so centre differently.
        """
        own = len(numbers.own)
        if not numbers.projections:
            return self._own(numbers.centre)
        parts = [self._own(numbers.centre[:own])] if own else []
        for projection in numbers.projections:
            x = self._vector(projection.name, "double")
            weights = [self.constant(projection.matrix), self.constant(projection.bias)]
            x = self.shared(("project", x, *weights), "Gemm", [x, *weights])
            parts.append(self.shared(("cast", x), "Cast", [x], to=TensorProto.FLOAT))
        return parts[0] if len(parts) == 1 else self.shared(("join", *parts), "Concat", parts, axis=1)

    def _own(self, centre: FloatArray) -> str:
        """Name of the float tensor of the numbers that are no part of a vector."""
        kinds = [f for f in self._inputs.features if not f.is_string]
        source = self._part([i for i, f in enumerate(kinds) if not f.is_vector])
        if self._inputs.element == "float":
            return source
        if centre.any():
            middle = self.constant(centre)
            source = self.shared(("centre", middle), "Sub", [source, middle])
        return self.shared(("cast", source), "Cast", [source], to=TensorProto.FLOAT)

    def vector(self, name: str) -> str:
        """Name of the float tensor (n, length) of a column of vectors."""
        return self._vector(name, "float")

    def _vector(self, name: str, element: Literal["float", "double"]) -> str:
        kinds = [f for f in self._inputs.features if not f.is_string]
        source = self._part([i for i, f in enumerate(kinds) if f.name == name])
        if self._inputs.element == element:
            return source
        to = TensorProto.FLOAT if element == "float" else TensorProto.DOUBLE
        return self.shared(("cast", source, element), "Cast", [source], to=to)

    def _part(self, features: list[int]) -> str:
        """Name of the columns of some features of the input of numbers, by their places among those that are no strings."""
        kinds = [f for f in self._inputs.features if not f.is_string]
        starts = np.cumsum([0, *(f.width for f in kinds)])
        if len(features) == len(kinds):
            return "numbers"
        places = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in features])
        if len(places) == places[-1] + 1 - places[0]:
            ends = [self.constant(np.array([n], np.int64)) for n in (places[0], places[-1] + 1, 1)]
            return self.shared(("slice", *ends), "Slice", ["numbers", *ends])
        index = self.constant(places.astype(np.int64))
        return self.shared(("gather", index), "Gather", ["numbers", index], axis=1)

    @property
    def strings(self) -> str:
        """Name of the (n, m) string tensor."""
        return "strings"

    def read_text(self, name: str, tokeniser: Tokeniser, table: FloatArray, units: FloatArray) -> str:
        """Add what reads a column of texts; return the name of its float tensor (n, w). See `texts.TextReader`."""
        column = self.texts.index(name)
        key = column, tokeniser, table.tobytes(), units.tobytes()
        if key not in self._read:  # the parts of a blend may read alike
            said = add_reader(self, column, tokeniser, table, units)
            self._readers.append(said)
            self._read[key] = str(said["output"])
        return self._read[key]

    def joined(self, parts: Sequence[str]) -> str:
        """Return the name of float tensors (n, any) side by side."""
        if len(parts) == 1:
            return parts[0]
        return self.shared(("joined", *parts), "Concat", parts, axis=1)

    @property
    def texts(self) -> list[str]:
        """The columns of texts."""
        return [f.name for f in self._inputs.features if f.kind == "text"]

    def finish(
        self,
        scores: str,
        task: Task,
        n_classes: int,
        description: Mapping[str, object],
        *,
        steady: bool = False,
    ) -> bytes:
        """Close the graph over ``scores`` (logits, or values for regression) and return the file's bytes.

        With ``steady`` a probability rises with its log-odds to the last bit: these are rounded to steps of ``STEADY``.
        """
        if steady and task == "binary":
            grid = self.constant(np.array(STEADY_SHIFT, np.float32))
            scores = self.node("Sub", [self.node("Add", [scores, grid]), grid])
        if task == "regression":
            self.nodes.append(helper.make_node("Identity", [scores], ["value"]))
            self._elide_identity(scores, "value")
        else:
            attributes: dict[str, Any] = {} if task == "multilabel" else {"axis": 1}
            link = "Sigmoid" if task == "multilabel" else "Softmax"
            self.node(link, [scores], output="probabilities", **attributes)
        return self.close(task, n_classes, description)

    def _elide_identity(self, scores: str, name: str) -> None:
        """Let the node that makes ``scores`` write ``name`` itself, where nobody else reads it: one node less a row."""
        self.nodes.pop()
        readers = [node for node in self.nodes if scores in node.input]
        makers = [node for node in self.nodes if scores in node.output]
        if readers or not makers:
            self.nodes.append(helper.make_node("Identity", [scores], [name]))
            return
        makers[0].output[list(makers[0].output).index(scores)] = name

    def close(self, task: Task, n_classes: int, description: Mapping[str, object]) -> bytes:
        """Return the file's bytes where a node already writes ``probabilities`` or ``value`` itself."""
        features = self._inputs.features
        m, t = (sum(f.kind == kind for f in features) for kind in ("string", "text"))
        d = sum(f.width for f in features if not f.is_string)
        element = TensorProto.FLOAT if self._inputs.element == "float" else TensorProto.DOUBLE
        inputs = []
        if d:
            inputs.append(helper.make_tensor_value_info("numbers", element, [None, d]))
        if m:
            inputs.append(helper.make_tensor_value_info("strings", TensorProto.STRING, [None, m]))
        if t:
            inputs.append(helper.make_tensor_value_info("texts", TensorProto.STRING, [None, t]))
        name = "value" if task == "regression" else "probabilities"
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, n_classes])
        graph = helper.make_graph(self.nodes, "student", inputs, [output], self.tensors)
        model = helper.make_model(
            graph,
            opset_imports=[
                helper.make_opsetid("", TEXT_OPSET if t else OPSET),
                helper.make_opsetid("ai.onnx.ml", ML_OPSET),
            ],
            ir_version=TEXT_IR_VERSION if t else IR_VERSION,
            producer_name="pg_distill",
        )
        properties = {STUDENT_KEY: json.dumps(description, sort_keys=True)}
        if self._readers:
            said = {**WANTED, "columns": self.texts, "readers": self._readers}
            properties[TEXT_KEY] = json.dumps(said, sort_keys=True)
        helper.set_model_props(model, properties)
        return bytes(model.SerializeToString(deterministic=True))
