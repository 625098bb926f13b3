"""Multi-layer perceptrons, trained in numpy float32.

Numbers are standardised, or spread over piecewise-linear encodings at quantiles (Gorishniy, Rubachev, Babenko
2022, arXiv 2203.05556), which a small graph computes as one Gemm and one Clip; strings are one-hot, which it
computes as a look-up in the first layer. AdamW (Loshchilov, Hutter 2019), a one-cycle schedule (Smith 2018),
and an exponential average of the weights, which takes the place of a long tail of small steps.

Bytes are the same with any number of threads as long as BLAS itself runs on one: OPENBLAS_NUM_THREADS=1 in
the trainer's environment; candidates run side by side instead.

Its class is long, because a family answers for itself: sizes, training, ONNX and SQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from pg_distill.errors import FeatureNotSupported
from pg_distill.frame import FloatArray, Frame
from pg_distill.students import expression
from pg_distill.students.encoding import CategoryEncoder, codes_of
from pg_distill.students.ensemble import n_outputs
from pg_distill.students.export import Graph
from pg_distill.students.families import Setup, Shape
from pg_distill.students.mlp_encoding import Encoded, Encoding, Float32
from pg_distill.students.network import Layers, NetworkTrainer
from pg_distill.students.network_expression import Perceptron, Table
from pg_distill.students.objective import Calibrated, resolve_targets
from pg_distill.students.text_numbers import TextNumbers
from pg_distill.students.transfer_set import TransferSet

__all__ = ["Mlp"]
PREDICT_ROWS, PREDICT_CELLS = 8192, 1 << 23
"""Rows, and rows times inputs (32 MB), that are computed at once."""
SQL_PRODUCTS = 98
"""Units and outputs of a network for SQL: by pgvector each takes some 45 ns, the array that it goes into included."""
MAX_REPEATED_TABLE = 1 << 20
"""Cells of a look-up table that repeats rows in order to save a node."""
MAX_DENSE_ENCODING = 1 << 16
"""Cells of the matrix that spreads numbers over bins; a larger one costs more than the nodes that it saves."""


class Mlp(Calibrated):
    """A perceptron with ReLU between its layers.

    Parameters
    ----------
    hidden
        Width of each hidden layer, at most three.
    bins
        Pieces of the piecewise-linear encoding of each number; 0 standardises instead.
    """

    family: ClassVar[str] = "mlp"
    softens: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = False

    def __init__(self, setup: Setup, *, hidden: Sequence[int] = (64, 64), bins: int = 0) -> None:
        super().__init__(setup)
        self.hidden = tuple(hidden)
        self.bins = bins

    @classmethod
    def sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return widths and bins, fastest first."""
        hidden = [[32], [64, 64], [128, 128], [256, 256], [512, 512]]
        numbers = any(f.kind in ("number", "integer", "timestamp") for f in shape.features)
        out = []
        for widths in hidden:
            out.append({"hidden": widths, "bins": 0})
            if numbers:
                out.append({"hidden": widths, "bins": 16})
        return out

    @classmethod
    def sql_sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return small networks without bins, which cost a query several times as much as they cost a session.

        The middle one has as many units as 5 us a row have room for.
        """
        width = max(16, (SQL_PRODUCTS - n_outputs(shape.task, shape.n_classes)) // 2 // 8 * 8)
        widths = [[32], [width, width], [64, 64]]
        return [] if shape.has_texts else [{"hidden": hidden, "bins": 0} for hidden in widths]

    def _prepare(self, data: TransferSet, texts: TextNumbers | None = None) -> Layers:
        texts = TextNumbers.of(self, data) if texts is None else texts
        target = resolve_targets(self, data).mean if data.frame.vector_names else None
        self.encoding_ = Encoding(data.frame, self.bins, texts, target)
        layers = Layers([self.encoding_.width, *self.hidden, self.n_classes])
        rng = np.random.default_rng(self.setup.seed)
        for weights in layers.weights:
            fan_in = max(1, len(weights))
            weights[:] = rng.standard_normal(weights.shape, np.float32) * np.sqrt(
                2.0 / fan_in, dtype=np.float32
            )
        layers.weights[-1] *= np.float32(0.1)
        self.value_mean_, self.value_scale_ = 0.0, 1.0
        return layers

    def prototype(self, data: TransferSet) -> bytes:
        """Return the untrained network: its latency depends on its shape alone."""
        twin = Mlp(self.setup, hidden=self.hidden, bins=self.bins)
        twin.layers_ = twin._prepare(data, TextNumbers.of(self, data, prototype=True))
        return twin.to_onnx()

    def fit(self, data: TransferSet, select: TransferSet, *, deadline: float | None = None) -> Self:
        """Train for at most ``epochs`` passes over ``data``; keep the average that was best on ``select``."""
        self.sharpness_ = 1.0
        return self._train(data, select, self.setup.epochs, deadline)

    def refit(self, data: TransferSet, *, deadline: float | None = None) -> Self:
        """Train on other rows up to the pass that ``fit`` found best; nothing is held back."""
        return self._train(data, data.take(np.arange(0)), self.epochs_kept_, deadline)

    def _sharpen(self, factor: float) -> None:
        """Fold the sharpness into the last layer."""
        self.layers_.weights[-1] *= np.float32(factor)
        self.layers_.biases[-1] *= np.float32(factor)

    def _train(self, data: TransferSet, select: TransferSet, epochs: int, deadline: float | None) -> Self:
        texts, deadline = TextNumbers.and_then(self, data, deadline)
        layers = self._prepare(data, texts)
        self.layers_ = layers
        if self.task == "regression":
            self._standardise(data)
        fit_rows, fit_targets = self._rows(data, training=True)
        select_rows, select_targets = self._rows(select)
        trainer = NetworkTrainer(self, layers, len(fit_rows.numbers))
        trainer.run(fit_rows, fit_targets, select_rows, select_targets, epochs, deadline)
        self.epochs_kept_ = trainer.epochs_kept
        self.complete_ = trainer.complete  # whether the deadline left the schedule as it was
        self.encoding_.fill_unknown(layers.weights[0])
        self._sharpen(self.sharpness_)
        return self

    def _standardise(self, data: TransferSet) -> None:
        """Learn the values' mean and deviation."""
        goal = resolve_targets(self, data)
        mean = float(np.average(goal.mean[:, 0], weights=goal.weight))
        variance = float(np.average((goal.mean[:, 0] - mean) ** 2, weights=goal.weight))
        self.value_mean_, self.value_scale_ = mean, float(np.sqrt(variance)) or 1.0

    def _rows(self, data: TransferSet, *, training: bool = False) -> tuple[Encoded, tuple[Float32, ...]]:
        goal = resolve_targets(self, data)
        soft, hard = goal.soft, goal.hard
        if self.task == "regression":
            soft = (soft - self.value_mean_) / self.value_scale_
            hard = (hard - self.value_mean_) / self.value_scale_
        arrays = (soft, hard, goal.soft_weight, goal.hard_weight)
        rows = self.encoding_.encode(data.frame, training=training)
        return rows, tuple(np.ascontiguousarray(a, np.float32) for a in arrays)

    def _forward(self, rows: Encoded) -> Float32:
        """Return the last layer's (n, K) float32 output, batch by batch."""
        n = len(rows.numbers)
        out = np.empty((n, self.n_classes), np.float32)
        layers = self.layers_
        most = max(1, min(PREDICT_ROWS, PREDICT_CELLS // max(1, self.encoding_.width)))
        buffer = np.empty((min(n, most), self.encoding_.width), np.float32)
        for start in range(0, n, most):
            index = slice(start, min(n, start + most))
            x = buffer[: index.stop - start]
            self.encoding_.expand(rows, index, x)
            for position, (weights, biases) in enumerate(zip(layers.weights, layers.biases, strict=True)):
                if position:
                    np.maximum(x, 0.0, out=x)
                x = x @ weights
                x += biases
            out[index] = x
        return out

    def predict_logits(self, frame: Frame) -> FloatArray:
        """Return (n, K) logits, (n, 1) values for regression."""
        out = self._forward(self.encoding_.encode(frame)).astype(np.float64)
        if self.task == "regression":
            out = out * self.value_scale_ + self.value_mean_
        return out

    def add_to(self, graph: Graph) -> str:
        """Add preprocessing and layers; standardisation and one-hot categories are folded into the first layer."""
        encoding, layers = self.encoding_, self.layers_
        weights = [w.astype(np.float64) for w in layers.weights]
        biases = [b.astype(np.float64) for b in layers.biases]
        if self.task == "regression":
            weights[-1] = weights[-1] * self.value_scale_
            biases[-1] = biases[-1] * self.value_scale_ + self.value_mean_
        first, bias = weights[0], biases[0]
        x = ""
        end = encoding.n_numbers
        if encoding.numbers.centre.size:
            source = graph.read(encoding.numbers)
            missing = graph.shared(("isnan", source), "IsNaN", [source])
            x = graph.node("Where", [missing, graph.constant(encoding.fill), source])
            x = graph.node("Min", [x, graph.constant(encoding.highest)])
            x = graph.node("Max", [x, graph.constant(encoding.lowest)])
            if encoding.bins:
                x = self._spread(graph, x)
            else:
                scaled = first[:end] / encoding.scale[:, None]
                if np.any(np.abs(encoding.mean) > 64 * encoding.scale):
                    x = graph.node("Sub", [x, graph.constant(encoding.mean.astype(np.float32))])
                    shift = encoding.mean.astype(np.float32) - encoding.mean
                else:
                    shift = -encoding.mean
                bias = bias + shift @ scaled
                first = np.concatenate([scaled, first[end:]])
            rows = end
            if encoding.n_nulls:
                if encoding.n_nulls < len(encoding.fill):
                    missing = graph.node("Gather", [missing, graph.constant(encoding.null_columns)], axis=1)
                flags = graph.node("Cast", [missing], to=1)
                x = graph.node("Concat", [x, flags], axis=1)
                rows += encoding.n_nulls
        else:
            rows = 0
        if encoding.n_texts:
            x = graph.joined([*([x] if x else []), encoding.texts.add_to(graph)])
            bias = bias - encoding.text_mean @ first[rows : rows + encoding.n_texts]
            rows += encoding.n_texts
        c = (
            self._look_up(graph, first[rows:], bias)
            if encoding.n_categories
            else graph.constant(bias.astype(np.float32))
        )
        x = graph.node("Gemm", [x, graph.constant(first[:rows].astype(np.float32)), c]) if rows else c
        for w, b in zip(weights[1:], biases[1:], strict=True):
            x = graph.node("Relu", [x])
            x = graph.node(
                "Gemm", [x, graph.constant(w.astype(np.float32)), graph.constant(b.astype(np.float32))]
            )
        return x

    def _look_up(self, graph: Graph, table: FloatArray, bias: FloatArray) -> str:
        """Categories' part of the first layer: one dictionary for all columns, one look-up, one sum.

        A column's codes are its own offset plus the position in the common dictionary, so that one
        LabelEncoder serves all.
        """
        encoding = self.encoding_
        words = sorted({v for c in encoding.categories for v in c.values})
        size = len(words) + CategoryEncoder.FIRST
        position = {v: code for code, v in enumerate(words, CategoryEncoder.FIRST)}
        rows = np.zeros((len(encoding.categories), size), np.int64)
        for j, (encoder, offset) in enumerate(zip(encoding.categories, encoding.offsets, strict=True)):
            rows[j] = offset + encoder.OTHER
            rows[j, encoder.NULL] = offset + encoder.NULL
            for code, value in enumerate(encoder.values, encoder.FIRST):
                rows[j, position[value]] = offset + code
        found = codes_of(graph, words)
        m = len(encoding.categories)
        if m > 1:
            offsets = np.arange(m, dtype=np.int64) * size
            found = graph.node("Add", [found, graph.constant(offsets)])
        folded = table + bias / m
        if rows.size * table.shape[1] <= MAX_REPEATED_TABLE:
            folded = folded[rows.ravel()]
        else:
            found = graph.node("Gather", [graph.constant(rows.ravel()), found], axis=0)
        found = graph.node("Gather", [graph.constant(folded.astype(np.float32)), found], axis=0)
        return graph.node("ReduceSum", [found, graph.constant(np.array([1], np.int64))], keepdims=0)

    def _spread(self, graph: Graph, x: str) -> str:
        """Piecewise-linear encoding: one Gemm with a sparse matrix while that is small, else look-ups."""
        encoding = self.encoding_
        d, p = len(encoding.fill), encoding.n_numbers
        zero, one = graph.constant(np.float32(0)), graph.constant(np.float32(1))  # type: ignore[arg-type]
        if np.any(encoding.fill != 0):
            x = graph.node("Sub", [x, graph.constant(encoding.fill)])
        if d * p <= MAX_DENSE_ENCODING:
            matrix = np.zeros((d, p), np.float32)
            matrix[encoding.component, np.arange(p)] = encoding.inverse
            x = graph.node(
                "Gemm", [x, graph.constant(matrix), graph.constant(-encoding.low * encoding.inverse)]
            )
        else:
            x = graph.node("Gather", [x, graph.constant(encoding.component)], axis=1)
            x = graph.node("Sub", [x, graph.constant(encoding.low)])
            x = graph.node("Mul", [x, graph.constant(encoding.inverse)])
        return graph.node("Clip", [x, zero, one])

    def to_onnx(self) -> bytes:
        """Return the network with its preprocessing as one ONNX file."""
        graph = Graph(self.encoding_.numbers)
        return graph.finish(self.add_to(graph), self.task, self.n_classes, self.describe())

    def to_sql(self, columns: Mapping[str, str] | None = None) -> str:
        """Return the network as SQL, with pgvector or without it; see ``students.expression``."""
        return expression.either(
            lambda vectors: expression.output(self.sql_sums(columns, vectors=vectors), self.task)
        )

    def sql_sums(
        self, columns: Mapping[str, str] | None, *, vectors: bool, place: str = ""
    ) -> expression.Sums:
        """Return the last layer as SQL; what standardises a number is folded into the first layer."""
        if self.encoding_.n_texts:
            raise FeatureNotSupported("a network that reads texts has no form in SQL")
        encoding, layers = self.encoding_, self.layers_
        found = expression.sources(encoding.numbers.features, columns)
        weights = [w.astype(np.float64) for w in layers.weights]
        biases = [b.astype(np.float64) for b in layers.biases]
        if self.task == "binary":
            weights[-1], biases[-1] = np.diff(weights[-1]), np.diff(biases[-1])
        elif self.task == "regression":
            weights[-1] = weights[-1] * self.value_scale_
            biases[-1] = biases[-1] * self.value_scale_ + self.value_mean_
        names = encoding.numbers.names
        clipped = []
        for j, (name, centre) in enumerate(zip(names, encoding.numbers.centre, strict=True)):
            ends = float(encoding.fill[j]), float(encoding.lowest[j]), float(encoding.highest[j])
            column = expression.Number(found[name], float(centre))
            clipped.append(expression.clip(column, *ends, float(encoding.scale[j])))
        ramps = []
        if encoding.bins:
            for j, low, inverse in zip(encoding.component, encoding.low, encoding.inverse, strict=True):
                own = clipped[j]
                edge = (float(low) + float(encoding.fill[j]) - own.shift) * own.factor
                ramps.append((int(j), edge, float(inverse) / own.factor))
        else:
            for j, own in enumerate(clipped):
                scale = float(encoding.scale[j])
                biases[0] += weights[0][j] * ((own.shift - float(encoding.mean[j])) / scale)
                weights[0][j] /= scale * own.factor
        rows = encoding.n_numbers + encoding.n_nulls
        tables = []
        for name, encoder, offset in zip(
            encoding.string_names, encoding.categories, encoding.offsets, strict=True
        ):
            values = {value: code for code, value in enumerate(encoder.values, encoder.FIRST)}
            start = rows + int(offset)
            tables.append(
                Table(
                    found[name],
                    values,
                    encoder.OTHER,
                    encoder.NULL,
                    weights[0][start : start + encoder.size],
                )
            )
        network = Perceptron(
            clipped,
            ramps,
            encoding.null_columns.tolist(),
            tables,
            [weights[0][:rows], *weights[1:]],
            biases,
            expression.stage_prefix(found.values()) + place,
        )
        return network.sums(vectors=vectors)

    def describe(self) -> dict[str, object]:
        """Return family, size and hyper-parameters."""
        out: dict[str, object] = {
            "family": self.family,
            "hidden": list(self.hidden),
            "bins": self.bins,
            "temperature": self.setup.temperature,
            "alpha": self.setup.alpha,
            "epochs": self.setup.epochs,
            "seed": self.setup.seed,
        }
        if hasattr(self, "encoding_") and self.encoding_.n_texts:
            out["ngrams"] = self.encoding_.texts.describe()
        if hasattr(self, "sharpness_"):
            out["sharpness"] = self.sharpness_
        return out
