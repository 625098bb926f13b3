"""Columns of texts as a few numbers each, for families that read numbers: how a linear fit scores a text, and what it is about.

All are tf-idf n-grams times a matrix (V, width), `TextEffect`'s. The scores are those of a ridge-like fit on the distillation
loss; a row that takes part in training has those of a fit without its text (five folds, as in stacking: Wolpert 1992), or a
student would read its targets off them. The topics are singular vectors (latent semantic analysis: Deerwester et al. 1990).

Sums are exact: numpy, a graph and a served model compute the same float32, so that thresholds of trees may stand on it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Frame, Strings, Task
from pg_distill.onnx_model.tokens import Tokeniser
from pg_distill.students.export import Graph
from pg_distill.students.objective import Block, Objective, Steps, backfit, resolve_targets
from pg_distill.students.soft_labels import Targets
from pg_distill.students.text_effect import NgramLines, TextEffect
from pg_distill.students.transfer_set import TransferSet
from pg_distill.students.word_features import Widened, fold, make_features

__all__ = ["TextNumbers"]

Float32 = npt.NDArray[np.float32]

TOPICS = 16
"""Singular vectors: with 64 networks read noise of 3,000 texts (reviews: divergence from the teacher 0.117 instead of 0.115)."""
PROTOTYPE_TEXTS = 100
"""Rows of whose texts a prototype learns a vocabulary: 0.05 s for texts of 2,000 characters."""
MOST_CELLS = 2_000_000
"""N-grams of all texts from which anything is learned, of a sample of the texts where there are more: some 2 s."""
OVERSAMPLING, ITERATIONS = 10, 3
"""Of the randomised singular value decomposition: further columns, and passes over the texts."""
FOLDS, SWEEPS = 4, 5
"""Parts of the texts that are scored by the fit on the others, and Newton steps of a fit."""
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
"""L2 penalties on n-grams, strongest first, from which the scores of left out texts choose."""
JUDGES = 200
"""Texts left out by whose scores the penalty is chosen, at least: folds beyond them are fitted with it alone."""
FREE = 1e-6
"""Penalty on the intercept, in rows."""
LATENESS, LEAST_SECONDS = 3.0, 10.0
"""Times what is left to the student that learns them first, and at least so long: usual columns take less, and others read them,
too. Texts of 52 classes took minutes."""
KEPT = 4
"""Columns that are remembered: students of several sizes are taught the same rows, one after the other."""


@dataclass(frozen=True)
class _Learned:
    """``effect`` (V, width) of a column, and what its distinct texts, and NULL, have for training, (t, width) float32."""

    effect: TextEffect
    training: Float32


class TextNumbers:
    """The columns of texts of a frame as numbers, ``width`` in all; each has deviation 1 on the rows it was learned from."""

    def __init__(self, learned: Sequence[_Learned]) -> None:
        self.learned = tuple(learned)

    @classmethod
    def learn(
        cls,
        frame: Frame,
        goal: Targets,
        task: Task,
        n_classes: int,
        *,
        seed: int = 42,
        deadline: float | None = None,
    ) -> TextNumbers:
        """Learn them on the rows that have a weight; ``goal`` are the targets of all.

        After ``deadline`` no other penalty is tried: the best by then scores the texts.
        """
        columns = [
            _Column(name, frame.strings(name), goal, task, n_classes, seed, deadline)
            for name in frame.text_names
        ]
        found = [_learn(column) for column in columns]
        return cls([part for part in found if part.training.shape[1]])

    @classmethod
    def prototype(cls, frame: Frame, goal: Targets, task: Task, n_classes: int) -> TextNumbers:
        """Return numbers that say nothing, and take as long to read; ``frame`` has few rows."""
        objective = Objective(task, n_classes, 1.0, goal)
        effects = [TextEffect.learn(name, frame.strings(name), objective) for name in frame.text_names]
        effects = [e for e in effects if e.tokeniser.size]
        for effect in effects:
            effect.effect = np.ones((effect.tokeniser.size, objective.outputs + TOPICS))
            effect.finish()
        return cls(
            [_Learned(effect, np.zeros((0, effect.effect.shape[1]), np.float32)) for effect in effects]
        )

    @classmethod
    def of(
        cls, student: Any, data: TransferSet, *, prototype: bool = False, deadline: float | None = None
    ) -> TextNumbers:
        """Return those for a student that is taught ``data``; with ``prototype`` ones that say nothing, soon.

        They may take longer than what is left to the student itself, for others have them, too; but not without end.
        """
        if not data.frame.text_names:
            return cls([])
        if prototype:
            data = data.take(np.arange(min(len(data), PROTOTYPE_TEXTS)))
        # At one temperature, whatever the student's: what texts say is then learned once for all of them.
        goal = resolve_targets(student, data, temperature=1.0)
        asked = data.frame, goal, student.task, student.n_classes
        if prototype:
            return cls.prototype(*asked)
        now = time.monotonic()
        until = None if deadline is None else now + max(LEAST_SECONDS, LATENESS * (deadline - now))
        return cls.learn(*asked, deadline=until)

    @classmethod
    def and_then(
        cls, student: Any, data: TransferSet, deadline: float | None
    ) -> tuple[TextNumbers, float | None]:
        """Return them, and a deadline that is later by what learning them took: who is the first to want them loses no time."""
        began = time.monotonic()
        numbers = cls.of(student, data, deadline=deadline)
        return numbers, None if deadline is None else deadline + time.monotonic() - began

    @property
    def width(self) -> int:
        """The numbers of a row."""
        return sum(part.training.shape[1] for part in self.learned)

    def transform(self, frame: Frame, *, training: bool = False) -> Float32:
        """Return the numbers (n, width) as the graph computes them.

        With ``training`` those that the texts of the rows it was learned from have for training; ``frame`` has no others.
        """
        out = np.empty((len(frame), self.width), np.float32)
        start = 0
        for part in self.learned:
            column = frame.strings(part.effect.name).compact()
            numbers = part.training
            if not training:
                every = Strings(
                    np.arange(len(column.categories) + 1, dtype=np.int32), (*column.categories, "")
                )
                every.codes[-1] = -1
                numbers = part.effect.predict(every).astype(np.float32)
            end = start + part.training.shape[1]
            out[:, start:end] = numbers[column.codes]
            start = end
        return out

    def mean(self, frame: Frame) -> Float32:
        """Return the mean (width,) over the rows that it was learned from; 0 of a prototype."""
        if not all(len(part.training) for part in self.learned):
            return np.zeros(self.width, np.float32)
        return np.asarray(self.transform(frame, training=True).mean(axis=0, dtype=np.float64), np.float32)

    def add_to(self, graph: Graph) -> str:
        """Return the name of the numbers, float (n, width), in ``graph``; the parts of a blend that agree share them."""
        return graph.joined([part.effect.add_to(graph, 0) for part in self.learned])

    def describe(self) -> dict[str, int]:
        """Return how many n-grams of each column are read."""
        return {part.effect.name: part.effect.tokeniser.size for part in self.learned}


class _Column:
    """A column's distinct texts with their targets, the mean of their rows'; equal to another where all of that is the same.

    ``deadline`` is none of it: what one student has learned in time is there for the others.
    """

    def __init__(
        self,
        name: str,
        strings: Strings,
        goal: Targets,
        task: Task,
        n_classes: int,
        seed: int,
        deadline: float | None,
    ) -> None:
        self.deadline = deadline
        self.name, self.task, self.n_classes, self.seed = name, task, n_classes, seed
        strings = strings.compact()
        self.texts = strings.categories
        size = len(self.texts) + 1  # the last is NULL
        place = np.where(strings.codes < 0, size - 1, strings.codes)

        def mean(values: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
            total: FloatArray = np.bincount(place, weights=weight, minlength=size).astype(np.float64)
            sums = [np.bincount(place, weights=weight * v, minlength=size) for v in values.T]
            return np.stack(sums, axis=1) / np.maximum(total, np.finfo(float).tiny)[:, None], total

        soft, soft_weight = mean(goal.soft, goal.soft_weight)
        hard, hard_weight = mean(goal.hard, goal.hard_weight)
        # Of 1 in the mean, so that rows that are repeated say what they say once: penalties are in rows.
        total = soft_weight + hard_weight
        unit = float(total[total > 0].mean()) if total.any() else 1.0
        self.goal = Targets(soft, hard, soft_weight / unit, hard_weight / unit)
        digest = hashlib.sha256(repr((name, task, n_classes, seed)).encode())
        for array in (soft, hard, self.goal.soft_weight, self.goal.hard_weight):
            # Sums of what is repeated differ in their last digits.
            digest.update(np.ascontiguousarray(array, np.float32).data)
        for text in strings.categories:
            digest.update(b"%d " % len(text))
            digest.update(text.encode("utf-8", "surrogatepass"))
        self.digest = digest.digest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Column) and self.digest == other.digest


_LOCKS: dict[bytes, Lock] = {}
_GUARD = Lock()


def _learn(column: _Column) -> _Learned:
    """Learn a column once: who asks for it meanwhile, in another thread, waits."""
    with _GUARD:
        lock = _LOCKS.setdefault(column.digest, Lock())
    try:
        with lock:
            return _learn_anew(column)
    finally:
        with _GUARD:
            _LOCKS.pop(column.digest, None)


@lru_cache(maxsize=KEPT)
def _learn_anew(column: _Column) -> _Learned:
    size = len(column.texts) + 1
    some = np.flatnonzero(column.goal.weight > 0)
    every = Strings(np.arange(size, dtype=np.int32), (*column.texts, ""))
    every.codes[-1] = -1
    if not len(some):
        return _Learned(
            TextEffect(column.name, Tokeniser((), "", ()), np.zeros(0), np.zeros((0, 0))),
            np.zeros((size, 0), np.float32),
        )
    objective = _objective(column, some)
    effect = TextEffect.learn(column.name, every.take(some), objective, seed=column.seed, shared=True)
    if not effect.tokeniser.size:
        return _Learned(effect, np.zeros((size, 0), np.float32))
    matrix = effect.matrix(every)
    if matrix[some].nnz > MOST_CELLS:
        order = np.random.default_rng(column.seed).permutation(some)
        some = np.sort(order[: max(FOLDS * TOPICS, len(some) * MOST_CELLS // matrix.nnz)])
    own = matrix[some]
    features, _ = make_features(effect.tokeniser, own)
    scores, left_out = _fit_scores(column, own, features, some, objective)
    topics = _singular_vectors(own, TOPICS, column.seed)
    deviation = np.asarray(own @ topics).std(axis=0)
    topics = topics[:, deviation > 1e-6] / deviation[deviation > 1e-6]
    deviation = left_out.std(axis=0)
    told = deviation > 1e-6
    effect.effect = np.concatenate([scores[:, told] / deviation[told], topics], axis=1)
    effect.finish()
    training = effect.predict(every)
    training[some, : told.sum()] = left_out[:, told] / deviation[told]
    return _Learned(effect, training.astype(np.float32))


def _objective(column: _Column, texts: npt.NDArray[np.int64], like: Objective | None = None) -> Objective:
    goal = column.goal
    own = Targets(goal.soft[texts], goal.hard[texts], goal.soft_weight[texts], goal.hard_weight[texts])
    return Objective(column.task, column.n_classes, 1.0, own, like=like)


def _fit_scores(
    column: _Column, matrix: Any, features: list[Any], texts: npt.NDArray[np.int64], objective: Objective
) -> tuple[FloatArray, FloatArray]:
    """Return the effects (V, outputs) of n-grams on the targets, and the score (t, outputs) of each text by those of others.

    The effects are the mean of those that score them. The penalty is the one with which the texts of the first folds, which did
    not take part, are scored best: of so many as ``JUDGES`` says.
    """
    outputs = objective.outputs
    fold = np.random.default_rng(column.seed).permutation(len(texts)) % min(FOLDS, max(2, len(texts)))
    folds = [np.flatnonzero(fold == number) for number in range(fold.max(initial=0) + 1)]
    if len(folds) < 2:
        return np.zeros((matrix.shape[1], outputs)), np.zeros((len(texts), outputs))
    size = matrix.shape[1] + sum(part.shape[1] for part in features)
    fits = [_Fit(column, matrix, features, texts, own, objective, size) for own in folds]
    judges = fits[: -(-JUDGES // len(folds[0]))]
    judged = np.concatenate([fit.own for fit in judges])
    judge = _objective(column, texts[judged], objective)
    best, chosen = np.inf, PENALTIES[0]
    for penalty in PENALTIES:
        if np.isfinite(best) and column.deadline is not None and time.monotonic() > column.deadline:
            break
        loss = judge.loss(np.concatenate([fit.to(penalty) for fit in judges]))
        if not loss < best:
            for fit in judges:
                fit.step_back()
            break
        best, chosen = loss, penalty
    for fit in fits[len(judges) :]:
        for penalty in dict.fromkeys((PENALTIES[0], chosen)):  # from the strongest it is not far to any other
            fit.to(penalty)
    scores = np.zeros((len(texts), outputs))
    for fit in fits:
        scores[fit.own] = fit.scores - fit.shift
    return _effect(features, np.mean([fit.weights for fit in fits], axis=0)), scores


class _Fit:
    """A fit on all texts but a fold's ``own``, whose ``scores`` (t, outputs) it gives. A penalty starts where the last ended."""

    def __init__(
        self,
        column: _Column,
        matrix: Any,
        features: list[Any],
        texts: npt.NDArray[np.int64],
        own: npt.NDArray[np.int64],
        objective: Objective,
        size: int,
    ) -> None:
        rest = np.setdiff1d(np.arange(len(texts)), own)
        self.own, self.features, self.deadline = own, features, column.deadline
        self._left_out, part = matrix[own], matrix[rest].astype(np.float32)
        self._matrix = Widened(part, features) if features else part
        self._objective = _objective(column, texts[rest], objective)
        self.weights = np.zeros((size, objective.outputs))
        self.shift = np.zeros((1, objective.outputs))
        self.scores = np.zeros((len(own), objective.outputs))
        self._before = self.weights, self.shift, self.scores

    def to(self, penalty: float) -> FloatArray:
        """Fit with a penalty; return the scores of the fold."""
        self._before = self.weights, self.shift, self.scores
        self.weights, self.shift = _fit(
            self._matrix, self._objective, penalty, self.weights, self.shift, self.deadline
        )
        self.scores = self._left_out @ _effect(self.features, self.weights) + self.shift
        return self.scores

    def step_back(self) -> None:
        """Go back to the penalty before."""
        self.weights, self.shift, self.scores = self._before


def _effect(features: list[Any], weights: FloatArray) -> FloatArray:
    return fold(features, weights) if features else weights


def _fit(
    matrix: Any,
    objective: Objective,
    penalty: float,
    weights: FloatArray,
    shift: FloatArray,
    deadline: float | None,
) -> tuple[FloatArray, FloatArray]:
    whole = np.zeros(len(objective.soft), np.int32)
    blocks: list[Block] = [
        Steps(whole, whole[:0], np.full(1, FREE), shift.copy()),
        NgramLines(matrix, matrix, penalty, weights.copy()),
    ]
    backfit(blocks, objective, None, sweeps=SWEEPS, deadline=deadline)
    return blocks[1].effect, blocks[0].effect


def _singular_vectors(matrix: Any, width: int, seed: int) -> FloatArray:
    """Return up to ``width`` right singular vectors (V, w) of a sparse matrix, by random projection.

    Halko, Martinsson, Tropp 2011.
    """
    texts, size = matrix.shape
    width = min(width, texts - 1, size)
    if width < 1:
        return np.zeros((size, 0))
    transposed = matrix.T.tocsr()
    start = np.random.default_rng(seed).normal(size=(size, min(width + OVERSAMPLING, texts, size)))
    basis = np.linalg.qr(matrix @ start)[0]
    for _ in range(ITERATIONS):
        basis = np.linalg.qr(matrix @ np.linalg.qr(transposed @ basis)[0])[0]
    right = np.linalg.svd(np.asarray((transposed @ basis).T), full_matrices=False)[2]
    vectors = np.asarray(right[:width].T)
    # A vector's sign is free: its largest entry is above 0.
    vectors *= np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(width)] < 0, -1.0, 1.0)
    return vectors
