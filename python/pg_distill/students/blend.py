"""Blends: one graph that averages the logits of several students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pg_distill.frame import FloatArray, Frame, Task
from pg_distill.students import expression
from pg_distill.students.export import Graph, Numbers
from pg_distill.students.families import Student

__all__ = ["Blend"]


class Blend:
    """The weighted mean of fitted students' logits, or of their values for regression.

    Nothing is learned here; ``weights`` are the search's choice and sum to 1, until ``calibrate`` scales them.
    """

    family = "blend"

    def __init__(
        self, students: Sequence[Student], weights: Sequence[float], *, task: Task, n_classes: int
    ) -> None:
        self.students = tuple(students)
        self.weights = tuple(float(w) for w in weights)
        self.task = task
        self.n_classes = n_classes

    @property
    def is_steady(self) -> bool:
        """Whether its parts keep monotone constraints: weights are above 0, and so a mean of them does."""
        return any(student.setup.monotone for student in self.students)

    def sharpen(self, factor: float) -> None:
        """Multiply the mean of the logits by a factor."""
        self.weights = tuple(w * factor for w in self.weights)

    def predict_logits(self, frame: Frame) -> FloatArray:
        """Return (n, K) logits, (n, 1) values for regression."""
        parts = [w * s.predict_logits(frame) for w, s in zip(self.weights, self.students, strict=True)]
        return np.asarray(sum(parts))

    def to_onnx(self, frame: Frame) -> bytes:
        """Return one ONNX file; ``frame`` gives the features and decides the inputs' element type."""
        graph = Graph(replace(Numbers.fit(frame)))
        total = ""
        for weight, student in zip(self.weights, self.students, strict=True):
            scaled = graph.node("Mul", [student.add_to(graph), graph.constant(np.array(weight, np.float32))])
            total = graph.node("Add", [total, scaled]) if total else scaled
        return graph.finish(total, self.task, self.n_classes, self.describe(), steady=self.is_steady)

    def to_sql(self, columns: Mapping[str, str] | None = None) -> str:
        """Return the blend as SQL, with pgvector or without it; see ``students.expression``."""
        return expression.either(
            lambda vectors: expression.output(
                self.sql_sums(columns, vectors=vectors), self.task, steady=self.is_steady
            )
        )

    def sql_sums(
        self, columns: Mapping[str, str] | None, *, vectors: bool, place: str = ""
    ) -> expression.Sums:
        """Return the mean of the parts' sums as SQL; no two parts name a stage alike, so that one function can hold all."""
        places = [f"{place}p{i}_" for i in range(len(self.students))]
        parts = [
            student.sql_sums(columns, vectors=vectors, place=own)
            for student, own in zip(self.students, places, strict=True)
        ]
        prefix = max(
            (part.prefix.removesuffix(own) for part, own in zip(parts, places, strict=True)), key=len
        )
        return expression.blended(parts, self.weights, prefix)

    def describe(self) -> dict[str, object]:
        """Return the parts and their weights."""
        return {
            "family": self.family,
            "weights": list(self.weights),
            "students": [s.describe() for s in self.students],
        }
