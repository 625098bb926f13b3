"""Generalised linear models: lines, or steps at quantiles, of numbers; an effect of each category, n-gram and vector.

Bytes are the same with any number of threads as long as BLAS itself runs on one, as for networks.

Its class is long, because a family answers for itself: sizes, training, ONNX and SQL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Frame
from pg_distill.students import expression
from pg_distill.students.columns import Columns
from pg_distill.students.ensemble import ALL, LEAF, Ensemble, cut, n_outputs, quantile_thresholds
from pg_distill.students.export import Graph
from pg_distill.students.families import Setup, Shape
from pg_distill.students.objective import (
    Block,
    Calibrated,
    Lines,
    Objective,
    Steps,
    backfit,
    ordering,
    resolve_targets,
    take_targets,
)
from pg_distill.students.text_effect import TextEffect
from pg_distill.students.transfer_set import TransferSet
from pg_distill.students.vector_effect import VectorEffect
from pg_distill.students.vocabulary import usual_width

__all__ = ["Linear"]

Float32 = npt.NDArray[np.float32]

PENALTIES = (100.0, 10.0, 1.0)
"""L2 penalties, in rows, from which the rows of select choose; each starts from the one before."""
SMOOTHING = 8.0
"""Penalty on the jump between two neighbouring steps, in units of the penalty on a step."""
MOST_CELLS = 40_000_000
"""Rows times columns times outputs that a fit reads at most; effects of single columns need no more rows. Of texts each word is
a column."""
TEXT_PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Those on n-grams, one after the other beside ``PENALTIES``: one over scikit-learn's C, for texts are of length 1."""
SMOOTH = 0.1
"""The least of those of a student that is to be smooth: of 20 newsgroups it tells 0.776, that of the least loss (0.001) 0.748."""
VECTOR_PENALTIES = (1.0, 0.1, 0.01, 0.001)
"""The same on the numbers of vectors, where there are no texts."""
USUAL_PENALTIES = (10.0, 0.1)
"""Where there are no rows of select."""
MOST_NGRAMS, NGRAMS_AN_OUTPUT, MOST_EFFECTS = 20_000, 3_000, 1_200_000
"""N-grams of a column that are kept, whatever the classes: with 10,000 a student of BBC News, of 2,000 characters a text, is 0.2
points worse. And for each class, up to so many effects in all, which take 10 MB: of 20 newsgroups 20,000 n-grams tell 0.723,
60,000 tell 0.748."""
PROTOTYPE_TEXTS = 100
"""Rows of whose texts a prototype learns a vocabulary: 0.05 s for texts of 2,000 characters."""
FREE = 1e-6
"""Penalty on the intercept, in rows: none, but a Newton step must stay defined."""
TAILS = 0.005
"""Share of the rows on each side beyond which a line is flat: a few outliers must not tilt it."""
LEAST_CHANGE = 1e-9
"""A line that moves the sum by less over its whole range is left out."""


def most_ngrams(outputs: int) -> int:
    """Return how many n-grams of a column a student of so many outputs keeps."""
    return max(MOST_NGRAMS, min(NGRAMS_AN_OUTPUT * outputs, MOST_EFFECTS // outputs))


class Linear(Calibrated):
    """Softmax, logistic or ridge regression on the distillation loss.

    Parameters
    ----------
    bins
        Steps of each number, at quantiles; 0 for a straight line that is flat outside the range seen.
    shared
        Whether words learn from their like, too: see `word_features`. That helps where texts are short and few.
    least_penalty
        On n-grams, below which none is tried. A weaker one may have the lower loss and yet agree with the teacher less often.
    most_ngrams
        Of a column that are kept; what `most_ngrams` says where it is 0. More of them take longer to look up.
    """

    family: ClassVar[str] = "linear"
    softens: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = False

    def __init__(
        self,
        setup: Setup,
        *,
        bins: int = 16,
        shared: bool = True,
        least_penalty: float = 0.0,
        most_ngrams: int = 0,
    ) -> None:
        super().__init__(setup)
        self.bins = bins
        self.shared = shared
        self.least_penalty = least_penalty
        self.most_ngrams = most_ngrams

    @classmethod
    def sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return numbers of bins, fastest in SQL first; where there are only texts these are all the same.

        Of texts some want their words to learn from their like, and some do not. Those of many classes have more n-grams where
        there is time to look them up.
        """
        has_texts = any(f.kind == "text" for f in shape.features)
        if all(f.kind in ("text", "vector") for f in shape.features):
            if not has_texts:
                return [{"bins": 0}]
            smooth = {"bins": 0, "shared": False, "least_penalty": SMOOTH}
            if most_ngrams(n_outputs(shape.task, shape.n_classes)) > MOST_NGRAMS:
                few = {"most_ngrams": MOST_NGRAMS}
                return [{"bins": 0, **few}, {**smooth, **few}, smooth]
            return [{"bins": 0}, {"bins": 0, "shared": False}, smooth]
        apart = [{"bins": 16, "shared": False}] if has_texts else []
        return [{"bins": 0}, *apart, {"bins": 16}, {"bins": 64}]

    def prototype(self, data: TransferSet) -> bytes | None:
        """Return the model before it has learned anything but its bins: latency depends on these alone."""
        twin = Linear(self.setup, bins=self.bins, shared=self.shared, most_ngrams=self.most_ngrams)
        if data.frame.text_names:
            data = data.take(np.arange(min(len(data), PROTOTYPE_TEXTS)))
        twin._prepare(data)
        for part in twin._columns_of_many():
            part.effect += 1.0
        twin.slopes_ += 1.0
        twin._finish()
        return twin.to_onnx()

    def _prepare(self, data: TransferSet) -> tuple[Frame, Float32, Objective]:
        goal = resolve_targets(self, data)
        rows = np.flatnonzero(goal.weight > 0)
        outputs = n_outputs(self.task, self.n_classes)
        most = max(1000, MOST_CELLS // (usual_width(data.frame) * outputs))
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(self.setup.seed).choice(rows, most, replace=False))
        goal = take_targets(goal, rows)
        frame = data.frame.take(rows)
        objective = Objective(self.task, self.n_classes, self.setup.temperature, goal)
        self.base_, self.scale_ = objective.base.copy(), objective.scale
        self.columns_ = Columns.fit(frame, ordering(self.task, goal.mean), goal.weight, vector_numbers=0)
        matrix = self.columns_.matrix(frame)
        places = enumerate(self.columns_.tables, self.columns_.n_numbers)
        thresholds = {
            j: np.sort(t[~np.isnan(t)])[:-1].astype(np.float32) + np.float32(0.5) for j, t in places
        }
        for j in range(self.columns_.n_numbers):
            thresholds[j] = (
                quantile_thresholds(matrix[:, j], self.bins) if self.bins else np.zeros(0, np.float32)
            )
        self.thresholds_ = [thresholds[j] for j in range(len(thresholds))]
        steps = [len(t) + 1 + bool(m) for t, m in zip(self.thresholds_, self.columns_.missing, strict=True)]
        self.effects_ = [np.zeros((size, outputs)) for size in steps]
        d = 0 if self.bins else self.columns_.n_numbers
        self.low_, self.high_, self.centre_ = (np.zeros(d, np.float32) for _ in range(3))
        self.slopes_ = np.zeros((d, outputs))
        for j in range(d):
            self.low_[j], self.high_[j], self.centre_[j] = _range(matrix[:, j])
        learned = (
            TextEffect.learn(
                name,
                frame.strings(name),
                objective,
                most=self.most_ngrams or most_ngrams(outputs),
                seed=self.setup.seed,
                shared=self.shared,
            )
            for name in frame.text_names
        )
        self.texts_ = [text for text in learned if text.tokeniser.size]
        self.vectors_ = [VectorEffect.learn(name, frame.vector(name), outputs) for name in frame.vector_names]
        return frame, matrix, objective

    def fit(self, data: TransferSet, select: TransferSet, *, deadline: float | None = None) -> Self:
        """Backfit with each penalty, from the strongest on, while the loss on ``select`` falls; sharpen what is kept."""
        self.sharpness_ = 1.0
        self.sharpen(self._backfit(data, select, deadline))
        return self

    def refit(self, data: TransferSet, *, deadline: float | None = None) -> Self:
        """Backfit other rows down to the penalty that ``fit`` found best; nothing is held back."""
        self._backfit(data, data.take(np.arange(0)), deadline, until=self.penalties_)
        return self._sharpen_again()

    def _backfit(
        self,
        data: TransferSet,
        select: TransferSet,
        deadline: float | None,
        until: tuple[float, float] | None = None,
    ) -> float:
        """Learn with each penalty while the loss on ``select`` falls, or without such rows down to the pair ``until``.

        Return the factor by which the logits are too flat there.
        """
        frame, matrix, objective = self._prepare(data)
        signs = self.columns_.directions(self.setup.monotone)
        select_goal = resolve_targets(self, select)
        judge = None
        if select_goal.weight.any():
            judge = Objective(self.task, self.n_classes, self.setup.temperature, select_goal, like=objective)
        select_matrix = self.columns_.matrix(select.frame)
        codes, select_codes = cut(matrix, self.thresholds_), cut(select_matrix, self.thresholds_)
        dense, select_dense = self._dense(matrix), self._dense(select_matrix)
        mean = dense.mean(axis=0)
        spread = dense.std(axis=0)
        spread[spread == 0.0] = 1.0
        dense, select_dense = (dense - mean) / spread, (select_dense - mean) / spread
        weight = objective.soft_weight + objective.hard_weight
        lines: list[Callable[[float, FloatArray], Block]] = [
            t.lines(frame.strings(t.name), select.frame.strings(t.name), shared=self.shared)
            for t in self.texts_
        ]
        lines += [v.lines(frame.vector(v.name), select.frame.vector(v.name)) for v in self.vectors_]
        parts = self._columns_of_many()
        words = [part.start() if isinstance(part, TextEffect) else part.effect.copy() for part in parts]
        best, factor = np.inf, 1.0
        effects, slopes = [e.copy() for e in self.effects_], self.slopes_.copy()
        intercept = np.zeros((1, objective.outputs))
        of_many = TEXT_PENALTIES if self.texts_ else VECTOR_PENALTIES if parts else (0.0,) * len(PENALTIES)
        pairs = zip_longest(PENALTIES, of_many, fillvalue=PENALTIES[-1])
        penalties = [pair for pair in pairs if pair[1] >= self.least_penalty]
        if judge is None:
            penalties = (
                penalties[: penalties.index(until) + 1] if until in penalties else [until or USUAL_PENALTIES]
            )
        for pair in penalties:
            strength, text_strength = pair
            whole = np.zeros(len(codes), np.int32), np.zeros(len(select_codes), np.int32)
            blocks: list[Block] = [Steps(*whole, np.full(1, FREE), intercept.copy())]
            if len(slopes):
                blocks.append(
                    Lines(dense, select_dense, strength, slopes.copy(), weight, signs[: len(slopes)])
                )
            for j, effect in enumerate(effects):
                if len(effect) > 1:
                    ordered = len(self.thresholds_[j]) + 1 if j < self.columns_.n_numbers else 0
                    penalty = _penalty(len(effect), ordered, strength)
                    sign = int(signs[j])
                    blocks.append(
                        Steps(
                            codes[:, j],
                            select_codes[:, j],
                            penalty,
                            effect.copy(),
                            ordered=ordered,
                            sign=sign,
                        )
                    )
            for make, effect in zip(lines, words, strict=True):
                blocks.append(make(text_strength, effect.copy()))
            backfit(blocks, objective, judge, sweeps=max(1, self.setup.epochs), deadline=deadline)
            if judge is not None:
                on_select = np.asarray(sum(block.of(select=True) for block in blocks))
                sharpness, loss = judge.sharpened(on_select)
                if not loss < best:
                    break
                best, factor = loss, sharpness
            self.penalties_ = pair
            found = iter(blocks)
            intercept = next(found).effect
            if len(slopes):
                slopes = next(found).effect
            effects = [next(found).effect if len(e) > 1 else e for e in effects]
            words = [next(found).effect for _ in words]
        self.slopes_ = slopes / spread[:, None] * self.scale_
        self.base_ += intercept[0] * self.scale_ - mean @ self.slopes_
        self.effects_ = [e * self.scale_ for e in effects]
        for part, effect in zip(parts, words, strict=True):
            part.effect = (part.settle(effect) if isinstance(part, TextEffect) else effect) * self.scale_
        for effect, code, sign in zip(self.effects_, codes.T, signs, strict=True):
            # What no row showed (a NULL, a category) gets the mean effect, so that it moves nothing.
            count = np.bincount(code, minlength=len(effect))
            average = count @ effect / max(1, len(code))
            effect[:] = np.where((count[:, None] > 0) | bool(sign), effect - average, 0.0)
            self.base_ += average
        self._finish()
        self.complete_ = deadline is None or time.monotonic() < deadline
        return factor

    def _sharpen(self, factor: float) -> None:
        self.base_ = self.base_ * factor
        self.slopes_ = self.slopes_ * factor
        self.effects_ = [effect * factor for effect in self.effects_]
        for part in self._columns_of_many():
            part.effect = part.effect * factor
        self._finish()

    def _columns_of_many(self) -> list[TextEffect | VectorEffect]:
        """Return the effects of columns that are many numbers each: of texts, then of vectors."""
        return [*self.texts_, *self.vectors_]

    def _dense(self, matrix: Float32) -> FloatArray:
        """Return the numbers of lines, clipped and centred; NULL is 0 where it has an effect of its own."""
        d = len(self.slopes_)
        numbers = matrix[:, :d]
        clipped = np.clip(numbers, self.low_, self.high_)
        filled = np.where(np.isnan(numbers), self.centre_, clipped)
        return np.asarray(filled.astype(np.float64) - self.centre_)

    def _finish(self) -> None:
        reach = np.abs(self.slopes_).max(axis=1, initial=0.0) * (self.high_ - self.low_)
        self.slopes_[reach < LEAST_CHANGE * self.scale_] = 0.0
        parts = [
            _stairs(j, thresholds, effect)
            for j, (thresholds, effect) in enumerate(zip(self.thresholds_, self.effects_, strict=True))
            if effect.any() or not hasattr(self, "penalties_")
        ]
        self.ensemble_ = Ensemble.join(parts, self.base_).snapped(self.setup.least_step)
        for text in self.texts_:
            text.finish()

    def predict_logits(self, frame: Frame) -> FloatArray:
        """Return (n, K) logits, (n, 1) values for regression."""
        matrix = self.columns_.matrix(frame)
        sums = np.tile(self.base_, (len(frame), 1))
        for effect, code in zip(self.effects_, cut(matrix, self.thresholds_).T, strict=True):
            sums += effect[np.minimum(code, len(effect) - 1)]
        if len(self.slopes_):
            sums += self._dense(matrix) @ self.slopes_
        for text in self.texts_:
            sums += text.predict(frame.strings(text.name))
        for vector in self.vectors_:
            sums += vector.predict(frame.vector(vector.name))
        return self.ensemble_.to_logits(sums, self.task)

    def _only_trees(self) -> bool:
        return not self.slopes_.any() and not self.texts_ and not self.vectors_

    def add_to(self, graph: Graph) -> str:
        """Add one node for all steps, six for all lines, many for a text; return the name of the logits or values."""
        if self._only_trees():
            return self.ensemble_.add_to(graph, self.columns_.add_to(graph), self.task)
        shift = 1 if self.task == "binary" else 0
        vectors = list(self.vectors_)
        if len(self.ensemble_.used):
            total = self.ensemble_.add_to(graph, self.columns_.add_to(graph), self.task)
        elif vectors:
            total = vectors.pop(0).add_to(graph, shift, np.pad(self.ensemble_.base, (shift, 0)))
        else:
            total = graph.constant(np.pad(self.ensemble_.base, (shift, 0)).astype(np.float32))
        for text in self.texts_:
            total = graph.node("Add", [text.add_to(graph, shift), total])
        for vector in vectors:
            total = graph.node("Add", [vector.add_to(graph, shift), total])
        return self._add_lines(graph, total, shift) if self.slopes_.any() else total

    def _add_lines(self, graph: Graph, rest: str, shift: int) -> str:
        x = graph.read(self.columns_.numbers)
        missing = graph.shared(("isnan", x), "IsNaN", [x])
        own = self.columns_.missing[: len(self.slopes_)]
        fill = np.where(own, self.centre_, self.high_).astype(np.float32)
        y = graph.node("Max", [x, graph.constant(self.low_)])
        y = graph.node("Min", [y, graph.constant(self.high_)])
        y = graph.node("Where", [missing, graph.constant(fill), y])
        y = graph.node("Sub", [y, graph.constant(self.centre_)])
        slopes = np.pad(self.slopes_, ((0, 0), (shift, 0))).astype(np.float32)
        return graph.node("Gemm", [y, graph.constant(slopes), rest])

    def to_onnx(self) -> bytes:
        """Return the model as one ONNX file."""
        graph = Graph(self.columns_.numbers)
        if self._only_trees():
            output = "value" if self.task == "regression" else "probabilities"
            self.ensemble_.add_to(graph, self.columns_.add_to(graph), self.task, output=output)
            return graph.close(self.task, self.n_classes, self.describe())
        steady = bool(self.setup.monotone)
        return graph.finish(self.add_to(graph), self.task, self.n_classes, self.describe(), steady=steady)

    def to_sql(self, columns: Mapping[str, str] | None = None) -> str:
        """Return the student as one SQL expression; see ``expression``."""
        steady = bool(self.setup.monotone)
        return expression.output(self.sql_sums(columns, vectors=False), self.task, steady=steady)

    def sql_sums(
        self, columns: Mapping[str, str] | None, *, vectors: bool, place: str = ""
    ) -> expression.Sums:
        """Return the sums as SQL; a line is one term already, so pgvector is of no use to it."""
        found = self.columns_.to_sql(columns)
        if self._only_trees():
            return self.ensemble_.to_sql(found)
        sums, unit = expression.tree_sums(self.ensemble_, found)
        missing = self.columns_.missing
        bound = self.ensemble_.bound + sum(text.bound for text in self.texts_)
        sources = expression.sources(self.columns_.numbers.features, columns)
        prefix = expression.stage_prefix(sources.values())
        read = [text.to_sql(prefix, 1 if self.task == "binary" else 0) for text in self.texts_]
        for k, slopes in enumerate(self.slopes_.T):
            terms, constant = [f"{sums[k]} * {expression.literal(unit)}"], 0.0
            for j in np.flatnonzero(slopes):
                column = found[j]
                assert isinstance(column, expression.Number)
                ends = float(self.centre_[j]), float(self.low_[j]), float(self.high_[j])
                term, shift = expression.line_term(
                    column, expression.Line(float(slopes[j]), *ends, bool(missing[j]))
                )
                terms.append(term)
                constant += shift
                bound += abs(slopes[j]) * float(self.high_[j] - self.low_[j])
            terms += [own[k] for own in read]
            sums[k] = expression.balanced_sum([*terms, expression.literal(constant)])
        return expression.Sums(sums, bound=bound, prefix=prefix, reads_texts=bool(read))

    def describe(self) -> dict[str, object]:
        """Return family, size and hyper-parameters."""
        out: dict[str, object] = {
            "family": self.family,
            "bins": self.bins,
            "temperature": self.setup.temperature,
            "alpha": self.setup.alpha,
            "epochs": self.setup.epochs,
            "seed": self.setup.seed,
        }
        if self.setup.monotone:
            out["monotone"] = dict(self.setup.monotone)
        if getattr(self, "texts_", None):
            out["ngrams"] = {text.name: text.tokeniser.size for text in self.texts_}
            out["shared"] = self.shared
            out["least_penalty"] = self.least_penalty
            out["most_ngrams"] = self.most_ngrams
        if hasattr(self, "penalties_"):
            out["penalty"] = self.penalties_[0]
            if self._columns_of_many():
                out["text_penalty"] = self.penalties_[1]
                out["word_vectors"] = any(text.has_vectors for text in self.texts_)
        if hasattr(self, "sharpness_"):
            out["sharpness"] = self.sharpness_
        return out


def _range(column: Float32) -> tuple[float, float, float]:
    """Return where a line begins and ends, and a centre."""
    known = column[np.isfinite(column)].astype(np.float64)
    if not len(known):
        return 0.0, 0.0, 0.0
    low, high = np.quantile(known, [TAILS, 1 - TAILS], method="nearest")
    if low == high:
        low, high = known.min(), known.max()
    return float(low), float(high), float((low + high) / 2)


def _penalty(size: int, ordered: int, strength: float) -> FloatArray:
    """Return the penalty on ``size`` steps, of which the first ``ordered`` are neighbours."""
    if ordered < 3:
        return np.full(size, strength)
    jumps = np.diff(np.eye(ordered, size), axis=0)
    return strength * (SMOOTHING * jumps.T @ jumps + 0.1 * np.eye(size))


def _stairs(feature: int, thresholds: Float32, effect: FloatArray) -> Ensemble:
    """Return one balanced tree over the steps of one column; a step beyond the thresholds is NULL's."""
    nodes: list[tuple[int, float, int, int]] = []
    leaves: dict[int, int] = {}

    def grow(low: int, high: int) -> int:
        """Add the steps low..high; return the node."""
        me = len(nodes)
        nodes.append((LEAF, 0.0, 0, 0))
        if low == high:
            leaves[me] = low
            return me
        middle = (low + high) // 2
        left = grow(low, middle)
        right = grow(middle + 1, high)
        nodes[me] = (feature, float(limits[middle]), left, right)
        return me

    # Every number is at most infinity, NaN is not.
    limits = np.append(thresholds, np.float32(np.inf))
    grow(0, len(effect) - 1)
    values = np.zeros((len(nodes), effect.shape[1]))
    for node, step in leaves.items():
        values[node] = effect[step]
    features, cuts, left, right = (np.array(column) for column in zip(*nodes, strict=True))
    return Ensemble(
        features.astype(np.int32),
        cuts.astype(np.float32),
        left.astype(np.int32),
        right.astype(np.int32),
        np.zeros(len(nodes), bool),
        values,
        np.zeros(1, np.int32),
        np.full(1, ALL, np.int32),
        np.zeros(0),
    )
