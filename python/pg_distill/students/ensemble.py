"""Sums of trees: what linear students on bins and all tree students are once they are trained.

One form for all: float32 thresholds, ``x <= threshold`` goes left, NaN goes where the node says. Leaf values
are snapped to a grid on which float32 adds without error, so that ONNX Runtime, numpy and SQL give the same
sums in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pg_distill.errors import FeatureNotSupported
from pg_distill.frame import FloatArray, Frame, Task
from pg_distill.students import expression
from pg_distill.students.encoding import CategoryEncoder, look_up
from pg_distill.students.export import Graph, Numbers
from pg_distill.students.projection import TREE_NUMBERS

__all__ = [
    "ALL",
    "LEAF",
    "PREDICT_CELLS",
    "Columns",
    "Ensemble",
    "TextColumns",
    "constant_tree",
    "cut",
    "floor_float32",
    "n_outputs",
    "quantile_thresholds",
]

Float32 = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

FLOAT32_BITS = 24
"""Bits of a float32's mantissa: sums of multiples of a step stay exact below 2**24 steps."""
LEAF = -1
"""In ``Ensemble.feature``: the node is a leaf."""
ALL = -1
"""In ``Ensemble.target``: the tree's leaves have a value for every output."""
PRIOR_ROWS = 10.0
"""Rows at the overall mean that are added to each category's own, before categories are put in order."""
ROWS_A_CODE, FOLDS = 10, 5
"""Rows of a code, on average, below which training sees the order that other folds' rows give; and the number of folds."""
PREDICT_CELLS = 1 << 22
"""Rows times trees that are walked at once."""


def floor_float32(values: FloatArray) -> Float32:
    """Return the largest float32 not above each value: ``x <= value`` stays the same for every float32 x."""
    with np.errstate(over="ignore"):
        out = values.astype(np.float32)
        above = out.astype(np.float64) > values
        out[above] = np.nextafter(out[above], np.float32(-np.inf))
    return out


class TextColumns(Protocol):
    """Texts as numbers: `text_numbers.TextNumbers`."""

    @property
    def width(self) -> int:
        """The numbers of a row."""
        ...

    def transform(self, frame: Frame, *, training: bool = False) -> Float32:
        """Return them, (n, width)."""
        ...

    def add_to(self, graph: Graph) -> str:
        """Return their name in a graph."""
        ...


@dataclass(frozen=True)
class Columns:
    """A frame as the float32 matrix that trees split: the numbers, then the string columns, then texts as numbers.

    A string's entry is its place in the order of its column's means of the target (Fisher 1958: for one split
    of a convex loss no other subset is better), with OTHER at 0 and NULL as NaN. ``missing`` (d,) says which
    columns had NULLs when this was fitted; in all others NULL counts as larger than every number.
    """

    numbers: Numbers
    string_names: tuple[str, ...]
    encoders: tuple[CategoryEncoder, ...]
    tables: tuple[FloatArray, ...]
    missing: npt.NDArray[np.bool_]
    texts: TextColumns | None = None

    def with_texts(self, texts: TextColumns) -> Columns:
        """Return the same columns, and those of ``texts`` behind them."""
        if not texts.width:
            return self
        return replace(self, missing=np.append(self.missing, np.zeros(texts.width, bool)), texts=texts)

    @classmethod
    def fit(
        cls,
        frame: Frame,
        target: FloatArray,
        weight: FloatArray,
        *,
        mean: FloatArray | None = None,
        vector_numbers: int = TREE_NUMBERS,
    ) -> Columns:
        """Learn the codes and their order by ``target`` (n, K) and ``weight`` (n,).

        Vectors become ``vector_numbers`` numbers each, which predict ``mean``, by itself ``target``.
        """
        encoders, tables = [], []
        for name in frame.string_names:
            encoder = CategoryEncoder.fit(frame.strings(name))
            codes = encoder.codes(frame.strings(name))
            encoders.append(encoder)
            tables.append(_order(codes, encoder.size, target, weight))
        numbers = Numbers.fit(frame, target if mean is None else mean, vector_numbers)
        names = frame.string_names
        missing = numbers.missing(frame)
        missing += [bool((frame.strings(name).codes < 0).any()) for name in names]
        return cls(numbers, names, tuple(encoders), tuple(tables), np.array(missing, bool))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the matrix's columns."""
        return (*self.numbers.names, *self.string_names)

    @property
    def n_numbers(self) -> int:
        """How many of the columns are numbers; they come first."""
        return len(self.numbers.centre)

    def matrix(self, frame: Frame) -> Float32:
        """Return the rows (n, d) as the graph computes them, but +inf for NaN where no NULL was seen."""
        out = np.empty((len(frame), len(self.missing)), np.float32)
        out[:, : self.n_numbers] = self.numbers.transform(frame)
        parts = zip(self.string_names, self.encoders, self.tables, strict=True)
        for position, (name, encoder, table) in enumerate(parts, self.n_numbers):
            out[:, position] = table[encoder.codes(frame.strings(name))]
        if self.texts is not None:
            out[:, -self.texts.width :] = self.texts.transform(frame)
        out[np.isnan(out) & ~self.missing] = np.inf
        return out

    def training_matrix(self, frame: Frame, target: FloatArray, weight: FloatArray) -> Float32:
        """Return ``matrix`` for the rows that were fitted; many codes stand in the order that other rows give them.

        A row's own label is part of its code's mean: in the order of these means the labels of rare codes can be read
        off, and trees would read nothing else. So each fold of the rows gets the others' order.
        """
        out = self.matrix(frame)
        if self.texts is not None:
            out[:, -self.texts.width :] = self.texts.transform(frame, training=True)
        fold = np.arange(len(frame)) % FOLDS
        parts = zip(self.string_names, self.encoders, strict=True)
        for position, (name, encoder) in enumerate(parts, self.n_numbers):
            if encoder.size * ROWS_A_CODE <= len(frame):
                continue
            codes = encoder.codes(frame.strings(name))
            # On one scale: the direction and the mean are those of all rows, and so is the place that a score has.
            direction = _direction(codes, encoder.size, target, weight)
            known = np.delete(np.arange(encoder.size), CategoryEncoder.NULL)
            scores = _scores(codes, encoder.size, target, weight, direction)[known]
            ranked, table = np.argsort(scores, kind="stable"), self.tables[position - self.n_numbers]
            for number in range(FOLDS):
                own, others = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
                found = _scores(codes[others], encoder.size, target[others], weight[others], direction)
                places = np.interp(found, scores[ranked], table[known][ranked])
                places[CategoryEncoder.NULL] = np.nan
                out[own, position] = places[codes[own]]
            if not self.missing[position]:
                out[np.isnan(out[:, position]), position] = np.inf
        return out

    def to_sql(self, columns: Mapping[str, str] | None) -> list[expression.Number | expression.Categories]:
        """Return the matrix's columns as SQL; ``columns`` as in ``native.sources``."""
        if self.texts is not None:
            raise FeatureNotSupported("trees that read texts have no form in SQL")
        found = expression.sources(self.numbers.features, columns)
        out: list[expression.Number | expression.Categories] = []
        for name, centre in zip(self.names, self.numbers.centre, strict=False):
            out.append(expression.Number(found[name], float(centre)))
        for name, encoder, table in zip(self.string_names, self.encoders, self.tables, strict=True):
            places = dict(zip(encoder.values, table[encoder.FIRST :].tolist(), strict=True))
            out.append(expression.Categories(found[name], places))
        return out

    def add_to(self, graph: Graph) -> str:
        """Return the name of the matrix in ``graph``."""
        parts = [graph.read(self.numbers)] if self.n_numbers or not (self.encoders or self.texts) else []
        if self.encoders:
            parts.append(look_up(graph, self.encoders, self.tables))
        if self.texts is not None:
            parts.append(self.texts.add_to(graph))
        return graph.node("Concat", parts, axis=1) if len(parts) > 1 else parts[0]


def _means(
    codes: Integers, size: int, target: FloatArray, weight: FloatArray, overall: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return how far each code's shrunk means are from ``overall`` (size, K), and its weight (size,)."""
    total: FloatArray = np.bincount(codes, weights=weight, minlength=size).astype(np.float64)
    sums = np.stack([np.bincount(codes, weights=weight * t, minlength=size) for t in target.T], axis=1)
    return (sums + PRIOR_ROWS * overall) / (total + PRIOR_ROWS)[:, None] - overall, total


def _direction(
    codes: Integers, size: int, target: FloatArray, weight: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the mean target (K,) and the direction (K,) in which the codes' means differ most."""
    overall = (weight[:, None] * target).sum(axis=0) / max(float(weight.sum()), np.finfo(float).tiny)
    if target.shape[1] == 1:
        return overall, np.ones(1)
    shift, total = _means(codes, size, target, weight, overall)
    axis = np.linalg.eigh(shift.T @ (shift * total[:, None]))[1][:, -1]
    return overall, axis * np.copysign(1.0, axis[np.argmax(np.abs(axis))])


def _scores(
    codes: Integers,
    size: int,
    target: FloatArray,
    weight: FloatArray,
    direction: tuple[FloatArray, FloatArray],
) -> FloatArray:
    """Return each code's shrunk mean along a direction, less that of all rows."""
    overall, axis = direction
    scores: FloatArray = _means(codes, size, target, weight, overall)[0] @ axis
    return scores


def _order(codes: Integers, size: int, target: FloatArray, weight: FloatArray) -> FloatArray:
    """Return each code's place in the order of shrunk means; NaN for NULL, 0 for OTHER."""
    score = _scores(codes, size, target, weight, _direction(codes, size, target, weight))
    known = np.delete(np.arange(size), CategoryEncoder.NULL)
    out = np.full(size, np.nan)
    out[known[np.argsort(score[known], kind="stable")]] = np.arange(len(known), dtype=np.float64)
    shifted: FloatArray = out - out[CategoryEncoder.OTHER]
    return shifted


def n_outputs(task: Task, n_classes: int) -> int:
    """Return the number of sums: one for regression and for the log-odds of two classes, else one a class."""
    return n_classes if task == "multiclass" else 1


@dataclass(frozen=True)
class Ensemble:
    """Trees over a float32 matrix, and their sums.

    Arrays over nodes: ``feature`` (column, LEAF for a leaf), ``threshold`` (float32), ``left``, ``right``
    (nodes), ``missing_left`` (where NaN goes), ``values`` (N, W) (leaf values, W = 1 or the number of
    outputs). Arrays over trees: ``roots`` (nodes), ``target`` (the output a tree adds to, or ALL). ``base``
    has one entry for each output.
    """

    feature: npt.NDArray[np.int32]
    threshold: Float32
    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    missing_left: npt.NDArray[np.bool_]
    values: FloatArray
    roots: npt.NDArray[np.int32]
    target: npt.NDArray[np.int32]
    base: FloatArray

    @classmethod
    def join(cls, parts: Sequence[Ensemble], base: FloatArray) -> Ensemble:
        """Put the trees of several ensembles of equal W into one.

        Every output gets a tree: ONNX Runtime adds the base only to outputs that some leaf has written.
        """
        width = parts[0].values.shape[1] if parts else 1
        written = {int(k) for p in parts for k in p.target}
        bare = [k for k in range(len(base)) if k not in written] if ALL not in written else []
        parts = [*parts, *(constant_tree(k, width) for k in bare)]
        starts = np.cumsum([0, *(len(p.feature) for p in parts)])
        pairs = list(zip(parts, starts.tolist(), strict=False))

        def stack(name: str) -> Any:
            return np.concatenate([getattr(p, name) for p in parts])

        def moved(name: str) -> npt.NDArray[np.int32]:
            return np.concatenate([getattr(p, name) + start for p, start in pairs]).astype(np.int32)

        return cls(
            stack("feature"),
            stack("threshold"),
            moved("left"),
            moved("right"),
            stack("missing_left"),
            stack("values"),
            moved("roots"),
            stack("target"),
            base,
        )

    def __len__(self) -> int:
        return len(self.roots)

    def first(self, trees: int) -> Ensemble:
        """Return the first ``trees`` of them."""
        end = len(self.feature) if trees >= len(self) else int(self.roots[trees])
        own = slice(0, end)
        return Ensemble(
            self.feature[own],
            self.threshold[own],
            self.left[own],
            self.right[own],
            self.missing_left[own],
            self.values[own],
            self.roots[:trees],
            self.target[:trees],
            self.base,
        )

    @property
    def n_leaves(self) -> int:
        """Leaves of all trees."""
        return int((self.feature == LEAF).sum())

    @property
    def used(self) -> Integers:
        """Columns that any node splits, sorted."""
        return np.unique(self.feature[self.feature != LEAF]).astype(np.int64)

    def leaves(self, matrix: Float32) -> npt.NDArray[np.int32]:
        """Return the leaf (node) of each row in each tree, (n, trees)."""
        out = np.empty((len(matrix), len(self.roots)), np.int32)
        for t, root in enumerate(self.roots):
            node = np.full(len(matrix), root, np.int32)
            rows = np.arange(len(matrix))
            while True:
                rows = rows[self.feature[node[rows]] != LEAF]
                if not len(rows):
                    break
                at = node[rows]
                x = matrix[rows, self.feature[at]]
                goes_left = (x <= self.threshold[at]) | (np.isnan(x) & self.missing_left[at])
                node[rows] = np.where(goes_left, self.left[at], self.right[at])
            out[:, t] = node
        return out

    def predict(self, matrix: Float32) -> FloatArray:
        """Return the sums (n, outputs)."""
        out = np.empty((len(matrix), len(self.base)))
        step = max(1, PREDICT_CELLS // max(1, len(self.roots)))
        for start in range(0, len(matrix), step):
            rows = slice(start, start + step)
            out[rows] = self.sums(self.leaves(matrix[rows]))
        return out

    def sums(self, leaves: npt.NDArray[Any]) -> FloatArray:
        """Return the sums (n, outputs) of rows whose ``leaves`` (nodes, of all trees or of the first ones) are known."""
        out = np.empty((len(leaves), len(self.base)))
        found, target = self.values[leaves], self.target[: leaves.shape[1]]
        for k in range(len(self.base)):
            column = k if self.values.shape[1] > 1 else 0
            out[:, k] = self.base[k] + found[:, (target == k) | (target == ALL), column].sum(axis=1)
        return out

    def snapped(self) -> Ensemble:
        """Return the same trees with leaf values and base on a grid that float32 adds exactly.

        The grid's step is 2**-24 of a bound on every partial sum, so a leaf moves by less than float32
        resolves in a sum.
        """
        bound = self.bound
        if bound == 0.0:
            return self
        step = 2.0 ** (np.ceil(np.log2(bound)) + 1 - FLOAT32_BITS)
        return replace(
            self, values=np.round(self.values / step) * step, base=np.round(self.base / step) * step
        )

    def scaled(self, factor: float) -> Ensemble:
        """Return the same trees with all sums multiplied by ``factor``, snapped again."""
        return replace(self, values=self.values * factor, base=self.base * factor).snapped()

    def _bounds(self) -> FloatArray:
        """Return what no partial sum of each output exceeds in size, (outputs,)."""
        tree_of = self._tree_of()
        out = np.abs(self.base)
        for k in range(len(out)):
            column = k if self.values.shape[1] > 1 else 0
            largest = np.zeros(len(self.roots))
            np.maximum.at(largest, tree_of, np.abs(self.values[:, column]) * (self.feature == LEAF))
            out[k] += largest[(self.target == k) | (self.target == ALL)].sum()
        return out

    def _tree_of(self) -> Integers:
        """Return the tree of each node, (N,)."""
        return np.repeat(np.arange(len(self.roots)), np.diff([*self.roots, len(self.feature)]))

    def add_to(self, graph: Graph, matrix: str, task: Task, *, output: str | None = None) -> str:
        """Add the node that sums; return its (n, K) logits, or (n, 1) values.

        With ``output`` the node writes the task's result under that name: probabilities, softmax included, or
        values.
        """
        tree_of = self._tree_of()
        first = self.roots[tree_of]
        own = np.arange(len(self.feature)) - first
        is_leaf = self.feature == LEAF
        zero = np.zeros(len(own), np.int64)
        leaves = np.flatnonzero(is_leaf)
        width = self.values.shape[1]
        outputs = len(self.base)
        shift = 1 if task == "binary" else 0
        which = np.where(self.target == ALL, 0, self.target)[tree_of[leaves]]
        ids = (which[:, None] + np.arange(width)[None, :] + shift).ravel()
        weights = self.values[leaves].ravel()
        attributes: dict[str, Any] = {
            "nodes_treeids": tree_of.tolist(),
            "nodes_nodeids": own.tolist(),
            "nodes_featureids": np.where(is_leaf, zero, self.feature).tolist(),
            "nodes_values": np.where(is_leaf, np.float32(0), self.threshold).astype(np.float32).tolist(),
            "nodes_modes": np.where(is_leaf, "LEAF", "BRANCH_LEQ").tolist(),
            "nodes_truenodeids": np.where(is_leaf, zero, self.left - first).tolist(),
            "nodes_falsenodeids": np.where(is_leaf, zero, self.right - first).tolist(),
            "nodes_missing_value_tracks_true": self.missing_left.astype(np.int64).tolist(),
            "target_treeids": np.repeat(tree_of[leaves], width).tolist(),
            "target_nodeids": np.repeat(own[leaves], width).tolist(),
            "target_ids": ids.tolist(),
            "target_weights": weights.astype(np.float32).tolist(),
            "n_targets": outputs + shift,
            "base_values": [*[0.0] * shift, *self.base.astype(np.float32).tolist()],
        }
        if output is not None and task != "regression":
            attributes["post_transform"] = "SOFTMAX"
        return graph.node("TreeEnsembleRegressor", [matrix], domain="ai.onnx.ml", output=output, **attributes)

    def to_sql(self, columns: Sequence[expression.Number | expression.Categories]) -> expression.Sums:
        """Return the sums as SQL."""
        sums, unit = expression.tree_sums(self, columns)
        prefix = expression.stage_prefix(column.sql for column in columns)
        return expression.Sums(sums, unit, self.bound / unit, prefix=prefix)

    @property
    def bound(self) -> float:
        """What no sum exceeds in size."""
        return float(max(self._bounds()))

    def to_logits(self, sums: FloatArray, task: Task) -> FloatArray:
        """Return logits (n, K), or values (n, 1), of the sums (n, outputs)."""
        return np.column_stack([np.zeros(len(sums)), sums]) if task == "binary" else sums


def constant_tree(target: int, width: int = 1) -> Ensemble:
    """Return a tree of one leaf that adds nothing."""
    none = np.zeros(1, np.int32)
    return Ensemble(
        np.full(1, LEAF, np.int32),
        np.zeros(1, np.float32),
        none,
        none,
        np.zeros(1, bool),
        np.zeros((1, width)),
        none,
        np.full(1, target, np.int32),
        np.zeros(0),
    )


def quantile_thresholds(column: Float32, bins: int) -> Float32:
    """Return the thresholds, fewer than ``bins``, between steps of equally many rows."""
    limit = np.finfo(np.float32).max
    known = np.clip(column[np.isfinite(column)], -limit, limit)
    distinct = np.unique(known)
    if len(distinct) <= bins:
        # Halfway, so that a value between two that were seen goes to the nearer one.
        low, high = distinct[:-1].astype(np.float64), distinct[1:].astype(np.float64)
        return floor_float32((low + high) / 2)
    chosen = np.unique(np.quantile(known, np.arange(1, bins) / bins, method="lower"))
    return np.asarray(chosen[chosen < distinct[-1]], np.float32)


def cut(matrix: Float32, thresholds: Sequence[Float32]) -> npt.NDArray[np.int32]:
    """Return each cell's step (n, d): how many thresholds of its column lie below it; one more than all for NaN."""
    out = np.empty(matrix.shape, np.int32)
    for j, own in enumerate(thresholds):
        column = matrix[:, j]
        out[:, j] = np.searchsorted(own, column, side="left")
        out[np.isnan(column), j] = len(own) + 1
    return out
