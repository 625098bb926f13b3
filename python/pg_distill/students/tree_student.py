"""What all students share that are sums of trees once they are trained: prediction, export, prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Frame
from pg_distill.students import expression
from pg_distill.students.columns import Columns, TextColumns
from pg_distill.students.ensemble import ALL, LEAF, Ensemble, n_outputs
from pg_distill.students.export import Graph
from pg_distill.students.objective import Calibrated
from pg_distill.students.transfer_set import TransferSet

__all__ = ["LEAST_ROWS", "MOST_TREES", "TreeStudent"]

MOST_TREES = 2600
"""Trees of one student: a multiclass round is a tree a class, and 100 rounds of 26 take 0.1 ms a row."""
LEAST_ROWS = 20
"""Rows in a leaf, in large samples."""
PROTOTYPE_ROWS = 2000
"""Real rows between which the trees of a prototype split."""


class TreeStudent(Calibrated):
    """A student that is the trees ``ensemble_`` over the matrix that ``columns_`` makes of a frame."""

    family: ClassVar[str]
    columns_: Columns
    ensemble_: Ensemble

    def _sharpen(self, factor: float) -> None:
        self.ensemble_ = self.ensemble_.scaled(factor, self.setup.least_step)

    def predict_logits(self, frame: Frame) -> FloatArray:
        """Return (n, K) logits, (n, 1) values for regression."""
        ensemble = self.ensemble_
        return ensemble.to_logits(ensemble.predict(self.columns_.matrix(frame)), self.task)

    def add_to(self, graph: Graph) -> str:
        """Add the trees to ``graph``; return the name of its logits or values."""
        return self.ensemble_.add_to(graph, self.columns_.add_to(graph), self.task)

    def to_onnx(self) -> bytes:
        """Return one ONNX file: the strings' codes where there are strings, and one node for all trees."""
        return self._export(self.columns_, self.ensemble_)

    def _export(self, columns: Columns, ensemble: Ensemble) -> bytes:
        graph = Graph(columns.numbers)
        output = "value" if self.task == "regression" else "probabilities"
        ensemble.add_to(graph, columns.add_to(graph), self.task, output=output)
        return graph.close(self.task, self.n_classes, self.describe())

    def to_sql(self, columns: Mapping[str, str] | None = None) -> str:
        """Return the student as one SQL expression; see ``expression``."""
        return expression.output(self.sql_sums(columns, vectors=False), self.task)

    def sql_sums(
        self, columns: Mapping[str, str] | None, *, vectors: bool, place: str = ""
    ) -> expression.Sums:
        """Return what the trees add up to, as SQL; pgvector is of no use to them."""
        return self.ensemble_.to_sql(self.columns_.to_sql(columns))

    def describe(self) -> dict[str, object]:
        """Return family, size and hyper-parameters."""
        out: dict[str, object] = {
            "family": self.family,
            "temperature": self.setup.temperature,
            "alpha": self.setup.alpha,
            "seed": self.setup.seed,
        }
        if self.setup.monotone:
            out["monotone"] = dict(self.setup.monotone)
        if hasattr(self, "sharpness_"):
            out["sharpness"] = self.sharpness_
        return out

    def random_trees(
        self,
        data: TransferSet,
        leaves: int,
        target: npt.NDArray[Any],
        texts: TextColumns | None = None,
    ) -> bytes:
        """Return balanced trees, one for each of ``target``, which split between real rows at random."""
        rng = np.random.default_rng(0)
        columns = Columns.fit(data.frame, np.zeros((len(data), 1)), np.ones(len(data)))
        columns = columns.with_texts(texts) if texts is not None else columns
        limit = np.finfo(np.float32).max
        sample = np.arange(min(len(data), PROTOTYPE_ROWS))
        matrix = np.clip(columns.matrix(data.frame.take(sample)), -limit, limit)
        count, nodes = len(target), 2 * leaves - 1
        place = np.tile(np.arange(nodes), count)
        is_leaf = place >= leaves - 1
        feature = np.where(is_leaf, LEAF, rng.integers(0, matrix.shape[1], count * nodes))
        threshold = np.nan_to_num(matrix[rng.integers(0, len(matrix), count * nodes), np.maximum(feature, 0)])
        roots = np.arange(count) * nodes
        below = np.where(is_leaf, 0, 2 * place + 1) + np.repeat(roots, nodes)
        outputs = n_outputs(self.task, self.n_classes)
        values = rng.standard_normal((count * nodes, outputs if target[0] == ALL else 1)) / count
        ensemble = Ensemble(
            feature.astype(np.int32),
            np.where(is_leaf, 0, threshold).astype(np.float32),
            below.astype(np.int32),
            (below + 1).astype(np.int32),
            np.zeros(count * nodes, bool),
            values,
            roots.astype(np.int32),
            target.astype(np.int32),
            np.zeros(outputs),
        )
        return self._export(columns, ensemble)
