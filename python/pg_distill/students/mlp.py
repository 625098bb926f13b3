"""Multi-layer perceptrons, trained in numpy float32.

Numbers are standardised, or spread over piecewise-linear encodings at quantiles (Gorishniy, Rubachev, Babenko
2022, arXiv 2203.05556), which a small graph computes as one Gemm and one Clip; strings are one-hot, which it
computes as a look-up in the first layer. AdamW (Loshchilov, Hutter 2019), a one-cycle schedule (Smith 2018),
and an exponential average of the weights, which takes the place of a long tail of small steps.

Bytes are the same with any number of threads as long as BLAS itself runs on one: OPENBLAS_NUM_THREADS=1 in
the trainer's environment; candidates run side by side instead.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Frame, Task
from pg_distill.onnx_model.signature import NULL_STRING
from pg_distill.students import expression
from pg_distill.students.encoding import MAX_CATEGORIES, CategoryEncoder
from pg_distill.students.export import Graph, Numbers
from pg_distill.students.families import Shape
from pg_distill.students.objective import Calibrated, resolve_targets
from pg_distill.students.soft_labels import distillation_loss, distillation_value_loss
from pg_distill.students.transfer_set import TransferSet, usual_range

__all__ = ["Mlp"]

Float32 = npt.NDArray[np.float32]

LEAST_BATCH, BATCH = 32, 256
"""Rows a step, at least and at most: numpy's cost of a call is a small part of the larger one."""
LEAST_STEPS = 64
"""Steps a pass below which they get smaller: 640 rows by 40 instead of 256 at a time, 10 passes: spambase's error 0.090 to
0.082, satimage's 0.161 to 0.141."""
PEAK_RATE = 2e-2
"""AdamW's learning rate at the top of the cycle, for a layer of 64; falls with the root of the width."""
FAN_IN = 256
"""Inputs of a row that are not 0 above which the first layer's rate falls with their number: steps of all its weights add
up, and with 500 columns in bins one of them would push every unit below 0 for good."""
WARM_UP = 0.2
"""Share of the steps in which the rate rises."""
WEIGHT_DECAY = 0.02
BETA_1, BETA_2, EPSILON = 0.9, 0.99, 1e-8
AVERAGE = 0.02
"""The weights' average spans about this share of all steps."""
PACE_STEPS, PACE_MARGIN = 32, 0.95
"""Steps between two looks at the clock, and the share of the time left that a shortened schedule plans for."""
PREDICT_ROWS, PREDICT_CELLS = 8192, 1 << 23
"""Rows, and rows times inputs (32 MB), that are computed at once."""
MARGIN = 0.25
"""Numbers are clipped to their usual range, widened by this share of it: infinity has an answer, outliers a sober one."""
MOST_DEVIATIONS = 32.0
"""No usual range is more deviations wide: a flag of one row in ten thousand must not arrive as 100."""
MAX_ONE_HOT = 2048
"""Inputs for categories of all columns together: each is a row of the first layer, and costs a step as much as a number."""
MAX_REPEATED_TABLE = 1 << 20
"""Cells of a look-up table that repeats rows in order to save a node."""
MAX_DENSE_ENCODING = 1 << 16
"""Cells of the matrix that spreads numbers over bins; a larger one costs more than the nodes that it saves."""


@dataclass(frozen=True)
class _Encoded:
    """Rows as the network reads them: centred, filled numbers (n, d), NULL flags (n, q), category codes (n, m)."""

    numbers: Float32
    nulls: npt.NDArray[np.bool_]
    codes: npt.NDArray[np.int64]


class _Encoding:
    """Learned preprocessing: fill, centre, scale, bins, NULL flags and categories; ``width`` inputs in all."""

    def __init__(self, frame: Frame, bins: int) -> None:
        self.numbers = Numbers.fit(frame)
        values = self.numbers.transform(frame).astype(np.float64)
        d = values.shape[1]
        finite = np.where(np.isfinite(values), values, np.nan)
        known = np.isfinite(values).any(axis=0)
        self.fill = np.zeros(d, np.float32)
        self.scale = np.ones(d)
        self.mean = np.zeros(d)
        self.lowest, self.highest = np.zeros(d, np.float32), np.zeros(d, np.float32)
        for j in np.flatnonzero(known):
            column = finite[:, j][np.isfinite(finite[:, j])]
            self.fill[j] = np.median(column)
            low, high = usual_range(column)
            limit = float(np.finfo(np.float32).max)
            self.lowest[j] = max(low - MARGIN * (high - low), -limit)
            self.highest[j] = min(high + MARGIN * (high - low), limit)
            column = column[(column >= low) & (column <= high)]
            self.mean[j] = column.mean()
            deviation = max(column.std(), (high - low) / MOST_DEVIATIONS)
            self.scale[j] = deviation if deviation > 1e-12 * max(1.0, abs(self.mean[j])) else 1.0
        self.null_columns = np.flatnonzero(np.isnan(values).any(axis=0) & known)
        columns: list[int] = []
        lows: list[float] = []
        inverses: list[float] = []
        if bins:
            for j in np.flatnonzero(known):
                column = finite[:, j][np.isfinite(finite[:, j])]
                edges = _edges(np.clip(column, self.lowest[j], self.highest[j]), bins)
                steps = list(itertools.pairwise(edges))
                if len(edges) > 2:
                    steps.append((edges[0], edges[-1]))  # the straight line, so that bins need only bend it
                for low, high in steps:
                    columns.append(int(j))
                    lows.append(low)
                    inverses.append(1.0 / (high - low))
        self.bins = bins
        self.component = np.array(columns, np.int64)
        # Centred on the column's middle, so that low * inverse stays small and float32 keeps its digits.
        self.low = np.array(lows, np.float32) - self.fill[self.component]
        self.inverse = np.array(inverses, np.float32)
        self.string_names = frame.string_names
        self.categories = [CategoryEncoder.fit(frame.strings(name)) for name in self.string_names]
        most = MAX_CATEGORIES
        while sum(min(len(c.values), most) for c in self.categories) > MAX_ONE_HOT and most > 1:
            most = most * 3 // 4
        self.categories = [
            c if len(c.values) <= most else CategoryEncoder.fit(frame.strings(name), max_categories=most)
            for name, c in zip(self.string_names, self.categories, strict=True)
        ]
        self.category_sizes = [encoder.size for encoder in self.categories]
        self.offsets = np.concatenate([[0], np.cumsum(self.category_sizes)])[:-1].astype(np.int64)
        self.n_numbers = len(columns) if bins else d
        self.n_nulls = len(self.null_columns)
        self.n_categories = int(sum(self.category_sizes))
        self.width = self.n_numbers + self.n_nulls + self.n_categories
        self.n_inputs = self.n_numbers + self.n_nulls + len(self.categories)

    def encode(self, frame: Frame) -> _Encoded:
        values = self.numbers.transform(frame)
        missing = np.isnan(values)
        values = np.clip(np.where(missing, self.fill, values), self.lowest, self.highest)
        if self.bins:
            values -= self.fill
        else:
            values = ((values - self.mean) / self.scale).astype(np.float32)
        codes = np.empty((len(values), len(self.categories)), np.int64)
        for position, (name, encoder) in enumerate(zip(self.string_names, self.categories, strict=True)):
            codes[:, position] = encoder.codes(frame.strings(name))
        return _Encoded(values, missing[:, self.null_columns], codes + self.offsets)

    def fill_unknown(self, weights: Float32) -> None:
        """Give codes that training never met (unseen, NULL) the mean effect of their column's categories."""
        start = self.n_numbers + self.n_nulls
        for encoder, offset in zip(self.categories, self.offsets, strict=True):
            rows = weights[start + offset : start + offset + len(encoder.counts)]
            never = encoder.counts == 0
            if not never.all():
                rows[never] = np.average(rows, axis=0, weights=encoder.counts)

    def expand(self, rows: _Encoded, index: Any, out: Float32) -> None:
        """Write the rows of ``index`` into ``out`` (b, width)."""
        numbers = rows.numbers[index]
        end = self.n_numbers
        if self.bins:
            part = out[:, :end]
            np.take(numbers, self.component, axis=1, out=part, mode="clip")
            part -= self.low
            part *= self.inverse
            np.clip(part, 0.0, 1.0, out=part)
        else:
            out[:, :end] = numbers
        if self.n_nulls:
            out[:, end : end + self.n_nulls] = rows.nulls[index]
            end += self.n_nulls
        if self.n_categories:
            part = out[:, end:]
            part[:] = 0.0
            codes = rows.codes[index]
            part[np.arange(len(part))[:, None], codes] = 1.0


def _edges(column: FloatArray, bins: int) -> FloatArray:
    """Return at most bins + 1 distinct quantiles of ``column``, always with its smallest and largest value."""
    distinct = np.unique(column)
    if len(distinct) == 1:
        return np.array([distinct[0], distinct[0] + 1.0])
    edges = (
        distinct if len(distinct) <= bins + 1 else np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)))
    )
    edges = edges.astype(np.float32).astype(np.float64)
    keep = np.diff(edges, prepend=-np.inf) > 1e-6 * (edges[-1] - edges[0])
    return np.asarray(edges[keep])


class _Layers:
    """Weights and biases as views of one flat vector, so that the optimiser makes few calls."""

    def __init__(self, widths: Sequence[int]) -> None:
        shapes = list(itertools.pairwise(widths))
        self.flat = np.zeros(sum((i + 1) * o for i, o in shapes), np.float32)
        self.weights: list[Float32] = []
        self.biases: list[Float32] = []
        start = 0
        for i, o in shapes:
            self.weights.append(self.flat[start : start + i * o].reshape(i, o))
            start += i * o
        self.n_weights = start
        for _, o in shapes:
            self.biases.append(self.flat[start : start + o])
            start += o


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

    def __init__(
        self,
        *,
        task: Task,
        n_classes: int,
        temperature: float = 1.0,
        alpha: float = 1.0,
        epochs: int = 10,
        seed: int = 42,
        hidden: Sequence[int] = (64, 64),
        bins: int = 0,
    ) -> None:
        self.task = task
        self.n_classes = n_classes
        self.temperature = temperature
        self.alpha = alpha
        self.epochs = epochs
        self.seed = seed
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

    def _prepare(self, data: TransferSet) -> _Layers:
        self.encoding_ = _Encoding(data.frame, self.bins)
        layers = _Layers([self.encoding_.width, *self.hidden, self.n_classes])
        rng = np.random.default_rng(self.seed)
        for weights in layers.weights:
            fan_in = max(1, len(weights))
            weights[:] = rng.standard_normal(weights.shape, np.float32) * np.sqrt(
                2.0 / fan_in, dtype=np.float32
            )
        layers.weights[-1] *= np.float32(0.1)
        self.value_mean_, self.value_scale_ = 0.0, 1.0
        return layers

    def prototype(self, data: TransferSet) -> bytes:
        """Return the untrained network: its latency hangs on its shape alone."""
        twin = Mlp(**self._arguments())
        twin.layers_ = twin._prepare(data)
        return twin.to_onnx()

    def fit(self, data: TransferSet, select: TransferSet, *, deadline: float | None = None) -> Self:
        """Train for at most ``epochs`` passes over ``data``; keep the average that was best on ``select``."""
        self.sharpness_ = 1.0
        return self._train(data, select, self.epochs, deadline)

    def refit(self, data: TransferSet, *, deadline: float | None = None) -> Self:
        """Train on other rows up to the pass that ``fit`` found best; nothing is held back."""
        return self._train(data, data.take(np.arange(0)), self.epochs_kept_, deadline)

    def _sharpen(self, factor: float) -> None:
        """Fold the sharpness into the last layer."""
        self.layers_.weights[-1] *= np.float32(factor)
        self.layers_.biases[-1] *= np.float32(factor)

    def _train(self, data: TransferSet, select: TransferSet, epochs: int, deadline: float | None) -> Self:
        layers = self._prepare(data)
        self.layers_ = layers
        if self.task == "regression":
            self._standardise(data)
        fit_rows, fit_targets = self._rows(data)
        select_rows, select_targets = self._rows(select)
        trainer = _Trainer(self, layers, len(fit_rows.numbers))
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

    def _rows(self, data: TransferSet) -> tuple[_Encoded, tuple[Float32, ...]]:
        goal = resolve_targets(self, data)
        soft, hard = goal.soft, goal.hard
        if self.task == "regression":
            soft = (soft - self.value_mean_) / self.value_scale_
            hard = (hard - self.value_mean_) / self.value_scale_
        arrays = (soft, hard, goal.soft_weight, goal.hard_weight)
        return self.encoding_.encode(data.frame), tuple(np.ascontiguousarray(a, np.float32) for a in arrays)

    def _forward(self, rows: _Encoded) -> Float32:
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
        found = graph.node(
            "LabelEncoder",
            [graph.strings],
            domain="ai.onnx.ml",
            keys_strings=[*words, NULL_STRING],
            values_int64s=[*range(CategoryEncoder.FIRST, size), CategoryEncoder.NULL],
            default_int64=CategoryEncoder.OTHER,
        )
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

    def to_sql(self, columns: Mapping[str, str] | None = None) -> Any:
        """Return the network as one SQL expression of nested sub-selects; see ``native``."""
        encoding, layers = self.encoding_, self.layers_
        found = expression.sources(encoding.numbers.features, columns)
        weights = [w.astype(np.float64) for w in layers.weights]
        biases = [b.astype(np.float64) for b in layers.biases]
        if self.task == "binary":
            weights[-1], biases[-1] = np.diff(weights[-1]), np.diff(biases[-1])
        elif self.task == "regression":
            weights[-1] = weights[-1] * self.value_scale_
            biases[-1] = biases[-1] * self.value_scale_ + self.value_mean_
        names = [f.name for f in encoding.numbers.features if f.kind != "string"]
        inputs = []
        for j, (name, centre) in enumerate(zip(names, encoding.numbers.centre, strict=True)):
            slope = 1.0 if encoding.bins else 1.0 / float(encoding.scale[j])
            ends = float(encoding.fill[j]), float(encoding.lowest[j]), float(encoding.highest[j])
            column = expression.Number(found[name], float(centre))
            term, constant = expression.line_term(column, expression.Line(slope, *ends, missing=True))
            if not encoding.bins:
                constant += (ends[0] - float(encoding.mean[j])) * slope
            inputs.append(f"({term}) + {expression.literal(constant)}")
        inputs += [
            f"CASE WHEN {found[names[j]]} < 'NaN' THEN '0'::float ELSE '1'::float END"
            for j in encoding.null_columns
        ]
        ramps = zip(
            encoding.component.tolist(), encoding.low.tolist(), encoding.inverse.tolist(), strict=True
        )
        rows = encoding.n_numbers + encoding.n_nulls
        tables = []
        for name, encoder, offset in zip(
            encoding.string_names, encoding.categories, encoding.offsets, strict=True
        ):
            codes = {value: code + 1 for code, value in enumerate(encoder.values, encoder.FIRST)}
            code = expression.choose(found[name], codes, encoder.OTHER + 1, encoder.NULL + 1)
            start = rows + int(offset)
            tables.append((code, weights[0][start : start + encoder.size]))
        weights[0] = weights[0][:rows]
        return expression.perceptron(inputs, list(ramps), tables, weights, biases, self.task)

    def _arguments(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "n_classes": self.n_classes,
            "temperature": self.temperature,
            "alpha": self.alpha,
            "epochs": self.epochs,
            "seed": self.seed,
            "hidden": self.hidden,
            "bins": self.bins,
        }

    def describe(self) -> dict[str, object]:
        """Return family, size and hyper-parameters."""
        out: dict[str, object] = {
            "family": self.family,
            "hidden": list(self.hidden),
            "bins": self.bins,
            "temperature": self.temperature,
            "alpha": self.alpha,
            "epochs": self.epochs,
            "seed": self.seed,
        }
        if hasattr(self, "sharpness_"):
            out["sharpness"] = self.sharpness_
        return out


class _Trainer:
    """AdamW over one network, with every buffer allocated once."""

    def __init__(self, mlp: Mlp, layers: _Layers, n: int) -> None:
        self.mlp = mlp
        self.layers = layers
        self.n = n
        self.batch = min(max(8, n), int(np.clip(n // LEAST_STEPS, LEAST_BATCH, BATCH)))
        self.n_first = layers.weights[0].size
        self.share = np.float32(min(1.0, FAN_IN / max(1, mlp.encoding_.n_inputs)))
        widths = [mlp.encoding_.width, *mlp.hidden, mlp.n_classes]
        self.activations = [np.empty((self.batch, w), np.float32) for w in widths]
        self.gradients = _Layers(widths)
        self.deltas = [np.empty((self.batch, w), np.float32) for w in widths[1:-1]]
        size = len(layers.flat)
        self.first = np.zeros(size, np.float32)
        self.second = np.zeros(size, np.float32)
        self.scratch = np.empty(size, np.float32)
        self.epochs_kept = 0
        self.complete = True

    def gradient(self, rows: _Encoded, goal: tuple[Float32, ...], index: npt.NDArray[np.int64]) -> float:
        """Fill ``self.gradients`` with the mean gradient over the rows of ``index``; return their mean loss."""
        mlp, layers = self.mlp, self.layers
        b = len(index)
        x = [a[:b] for a in self.activations]
        mlp.encoding_.expand(rows, index, x[0])
        last = len(layers.weights) - 1
        for k, (weights, biases) in enumerate(zip(layers.weights, layers.biases, strict=True)):
            np.matmul(x[k], weights, out=x[k + 1])
            x[k + 1] += biases
            if k < last:
                np.maximum(x[k + 1], 0.0, out=x[k + 1])
        soft, hard, soft_weight, hard_weight = (g[index] for g in goal)
        if mlp.task == "regression":
            loss, delta = distillation_value_loss(x[-1], soft, hard, soft_weight, hard_weight)
        else:
            loss, delta = distillation_loss(x[-1], soft, hard, soft_weight, hard_weight, mlp.temperature)
        delta *= np.float32(1.0 / b)
        for k in range(last, -1, -1):
            np.matmul(x[k].T, delta, out=self.gradients.weights[k])
            np.sum(delta, axis=0, out=self.gradients.biases[k])
            if k:
                below = self.deltas[k - 1][:b]
                np.matmul(delta, layers.weights[k].T, out=below)
                below *= x[k] > 0
                delta = below
        return loss / b

    def run(
        self,
        rows: _Encoded,
        goal: tuple[Float32, ...],
        select_rows: _Encoded,
        select_goal: tuple[Float32, ...],
        epochs: int,
        deadline: float | None,
    ) -> None:
        """Train for ``epochs`` passes of the schedule's ``mlp.epochs``; without select rows the last average stays."""
        mlp, layers = self.mlp, self.layers
        rng = np.random.default_rng([mlp.seed, 1])
        per_epoch = max(1, self.n // self.batch)
        steps = per_epoch * mlp.epochs
        width = max([*mlp.hidden, 1])
        peak = PEAK_RATE * min(1.0, (64 / width) ** 0.5)
        keep = np.float32(1.0 - 1.0 / max(1.0, AVERAGE * steps))
        average = layers.flat.copy()
        best, best_flat = np.inf, average
        watched = bool(select_goal[2].any() or select_goal[3].any())
        step, begun = 0, time.monotonic()
        for epoch in range(epochs):
            order = rng.permutation(self.n)
            for start in range(0, per_epoch * self.batch, self.batch):
                if deadline is not None and step % PACE_STEPS == PACE_STEPS - 1:
                    now = time.monotonic()
                    affordable = step + int((deadline - now) / ((now - begun) / step) * PACE_MARGIN)
                    if affordable < min(steps, per_epoch * epochs):
                        self.complete = False
                        steps = max(step, affordable)  # a whole short cycle beats half of a long one
                if step >= steps:
                    break
                self.gradient(rows, goal, order[start : start + self.batch])
                step += 1
                self._step(_one_cycle(step / steps) * peak, step)
                average *= keep
                average += (1 - keep) * layers.flat
            current = layers.flat.copy()
            layers.flat[:] = average
            loss = self._loss(select_rows, select_goal) if watched else -float(epoch)
            layers.flat[:] = current
            if loss < best:
                best, best_flat = loss, average.copy()
                self.epochs_kept = epoch + 1
            # No patience: in the middle of a cycle the loss may rise for long, and the last, small steps bring it down.
            if step >= steps:
                break
        layers.flat[:] = best_flat

    def _step(self, rate: float, step: int) -> None:
        """AdamW with bias correction; decay on weights, not on biases."""
        flat, gradient, scratch = self.layers.flat, self.gradients.flat, self.scratch
        self.first *= np.float32(BETA_1)
        np.multiply(gradient, np.float32(1 - BETA_1), out=scratch)
        self.first += scratch
        self.second *= np.float32(BETA_2)
        np.multiply(gradient, gradient, out=scratch)
        scratch *= np.float32(1 - BETA_2)
        self.second += scratch
        np.multiply(self.second, np.float32(1.0 / (1.0 - BETA_2**step)), out=scratch)
        np.sqrt(scratch, out=scratch)
        scratch += np.float32(EPSILON)
        np.divide(self.first, scratch, out=scratch)
        scratch *= np.float32(rate / (1.0 - BETA_1**step))
        scratch[: self.n_first] *= self.share
        flat[: self.layers.n_weights] *= np.float32(1.0 - rate * WEIGHT_DECAY)
        flat -= scratch

    def _loss(self, rows: _Encoded, goal: tuple[Float32, ...]) -> float:
        mlp = self.mlp
        scores = mlp._forward(rows)
        weight = float(goal[2].sum() + goal[3].sum())
        if mlp.task == "regression":
            return distillation_value_loss(scores, *goal)[0] / max(weight, 1e-12)
        soft, hard, soft_weight, hard_weight = goal
        loss, _ = distillation_loss(scores, soft, hard, soft_weight, hard_weight, mlp.temperature)
        return loss / max(weight, 1e-12)


def _one_cycle(progress: float) -> float:
    """Return the rate's share of its peak: a cosine up over ``WARM_UP``, a cosine down to 0 after it."""
    if progress < WARM_UP:
        return float(0.05 + 0.95 * 0.5 * (1 - np.cos(np.pi * progress / WARM_UP)))
    return float(0.5 * (1 + np.cos(np.pi * (progress - WARM_UP) / (1 - WARM_UP))))
