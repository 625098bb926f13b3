"""Rows made up between real ones, for the teacher to label.

They stay valid: integers stay integers and inside the range that was seen, categories exist, vectors and the pattern of NULLs are
those of a real row. Texts are those of a real row too, or are made of it while all else is that row's: see `augment_text`.

Its class is long, because the ways to make rows share what is known of the real ones: ranges, deviations, places of codes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.errors import InvalidParameter
from pg_distill.frame import FloatArray, Frame, Strings
from pg_distill.students.augment_text import TEXT_KINDS, TextAugmenter
from pg_distill.students.transfer_set import usual_range

__all__ = ["KINDS", "TABLE_KINDS", "Augmenter"]

TABLE_KINDS = ("munge", "spunge", "hot_deck", "thresholds")
KINDS = (*TABLE_KINDS, *TEXT_KINDS)
"""Ways to make rows. ``thresholds`` needs a tree teacher; those of texts need a column of texts, the others one of numbers or of
categories."""
MUNGE_P, MUNGE_S = 0.3, 1.0
"""Chance of each cell to move towards the neighbour, and divisor of the deviation with which it lands there."""
SPUNGE_SHARE, SPUNGE_NOISE, SPUNGE_P = 0.1, 0.1, 0.1
"""AutoGluon's: share of columns resampled, deviation of the noise in the column's, chance of a cell to get it."""
HOT_DECK_P, HOT_DECK_LEAVES, HOT_DECK_COLUMNS = 0.3, 64, 64
"""Chance of a column to be redrawn, leaves of its tree, and the most columns that get one (a tree each)."""
THRESHOLDS_P, THRESHOLDS_STEPS = 0.3, 2
"""Chance of a cell to move to a midpoint, and how many cells of the teacher's grid it may move."""
POOL = 4096
"""Rows among which a neighbour is looked for; a fresh draw each pass, so that repeated passes meet other neighbours."""
CHUNK = 2048
PART = 4096
"""Rows that are made at once; between two parts the clock is looked at."""
FAR_QUANTILE, FAR_FACTOR = 0.995, 1.5
"""A row is far off when its nearest real row is this factor beyond that quantile of the real rows' own distances."""
CATEGORY_SPREAD = 0.7
"""Scale of one-hot columns in distances: two different categories are then about one deviation apart."""
ONE_HOT = 24
"""Most categories of a column that joins the matrix product as one-hot columns; to compare codes costs as much."""
_Maker = Callable[[Any, np.random.Generator], tuple[FloatArray, Any]]
"""Makes a row from each real row of an index."""


class Augmenter:
    """Makes valid rows near those of ``frame``.

    Parameters
    ----------
    frame
        Real rows.
    thresholds
        Split thresholds of a tree teacher by column name, sorted; empty for other teachers.
    """

    def __init__(self, frame: Frame, *, thresholds: Mapping[str, FloatArray] | None = None) -> None:
        self.frame = frame
        self.thresholds = dict(thresholds or {})
        self.texts: TextAugmenter | None = None
        self._numbers = frame.numbers()
        self._codes = _codes(frame)
        d = self._numbers.shape[1]
        known = np.isfinite(self._numbers)
        safe = np.where(known, self._numbers, 0.0)
        self._low = np.where(known, self._numbers, np.inf).min(axis=0, initial=np.inf)
        self._high = np.where(known, self._numbers, -np.inf).max(axis=0, initial=-np.inf)
        self._whole = np.array([bool((safe[:, j] == np.round(safe[:, j])).all()) for j in range(d)], bool)
        # Distances and noise are in units of the rows without outliers.
        self._usual = np.zeros((2, d))
        self._mean, self._deviation = np.zeros(d), np.zeros(d)
        for j in np.flatnonzero(known.any(axis=0)):
            column = self._numbers[known[:, j], j]
            low, high = self._usual[:, j] = usual_range(column)
            column = column[(column >= low) & (column <= high)]
            self._mean[j], self._deviation[j] = column.mean(), column.std()
        sizes = np.array([len(frame.strings(name).categories) + 1 for name in frame.string_names], np.int64)
        self._few, self._many = np.flatnonzero(sizes <= ONE_HOT), np.flatnonzero(sizes > ONE_HOT)
        self._places = np.cumsum(sizes[self._few]) - 1  # of each one's NULL, code -1

    def make(self, kind: str, n: int, rng: np.random.Generator, *, deadline: float | None = None) -> Frame:
        """Return the rows of `make_from` alone."""
        return self.make_from(kind, n, rng, deadline=deadline)[0]

    def make_from(
        self, kind: str, n: int, rng: np.random.Generator, *, deadline: float | None = None
    ) -> tuple[Frame, npt.NDArray[np.int64]]:
        """Return up to ``n`` rows made by one of ``KINDS``, and from which real row each was made.

        Far-off rows are dropped, and texts that came out as they were, so there may be fewer. There are none where the frame has
        no columns that a kind is for.

        At ``deadline`` (``time.monotonic()`` seconds) it returns those that it has.

        Raises
        ------
        InvalidParameter
            For a kind that does not exist.
        """
        if kind not in KINDS:
            raise InvalidParameter(
                f'transfer set "{kind}" does not exist', hint=f"There are {', '.join(KINDS)}."
            )
        if kind in TEXT_KINDS:
            return self._texts_from(kind, self._base(n, rng), rng, deadline)
        makers: dict[str, _Maker] = {
            "munge": self._munge,
            "spunge": self._spunge,
            "thresholds": self._midpoints,
        }
        if not self.frame.number_names and not self.frame.string_names:
            nothing = np.zeros(0, np.int64)
            return self.frame.take(nothing), nothing
        maker = self._hot_deck(rng, deadline) if kind == "hot_deck" else makers[kind]
        base = self._base(n, rng)
        near = self._near(rng)
        parts = [(self._numbers[:0], self._codes[:0], base[:0])]
        for start in range(0, len(base), PART):
            if deadline is not None and time.monotonic() > deadline:
                break
            part = base[start : start + PART]
            numbers, codes = maker(part, rng)
            numbers = np.where(self._whole, np.round(numbers), numbers)
            numbers = np.clip(numbers, self._low, self._high)
            numbers[np.isnan(self._numbers[part])] = np.nan
            kept = near(numbers, codes)
            parts.append((numbers[kept], codes[kept], part[kept]))
        made, made_codes, origin = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return self._to_frame(made, made_codes, origin), origin

    def _texts_from(
        self, kind: str, base: npt.NDArray[np.int64], rng: np.random.Generator, deadline: float | None
    ) -> tuple[Frame, npt.NDArray[np.int64]]:
        if self.texts is None:
            self.texts = TextAugmenter(self.frame)
        frames, origins = [self.frame.take(base[:0])], [base[:0]]
        for start in range(0, len(base) if self.frame.text_names else 0, PART):
            if deadline is not None and time.monotonic() > deadline:
                break
            frame, origin = self.texts.make_from(kind, base[start : start + PART], rng)
            frames.append(frame)
            origins.append(origin)
        return Frame.concat(frames), np.concatenate(origins)

    def _base(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Each real row equally often, in random order."""
        size = len(self.frame)
        passes = [rng.permutation(size) for _ in range(-(-n // size))]
        return np.concatenate(passes)[:n]

    def _munge(self, base: Any, rng: np.random.Generator) -> tuple[FloatArray, Any]:
        """MUNGE (Bucila, Caruana, Niculescu-Mizil 2006), vectorised; numbers are redrawn, strings swapped."""
        numbers, codes = self._numbers[base].copy(), self._codes[base].copy()
        neighbour = self._neighbours(base, rng)
        other, other_codes = self._numbers[neighbour], self._codes[neighbour]
        move = (rng.random(numbers.shape) < MUNGE_P) & np.isfinite(other) & np.isfinite(numbers)
        drawn = other + rng.standard_normal(numbers.shape) * np.abs(numbers - other) / MUNGE_S
        swap = (rng.random(codes.shape) < MUNGE_P) & (other_codes >= 0) & (codes >= 0)
        return np.where(move, drawn, numbers), np.where(swap, other_codes, codes)

    def _spunge(self, base: Any, rng: np.random.Generator) -> tuple[FloatArray, Any]:
        """AutoGluon's SPUNGE, but with at least one column resampled."""
        numbers, codes = self._numbers[base].copy(), self._codes[base].copy()
        d, m = numbers.shape[1], codes.shape[1]
        share = max(1, int(SPUNGE_SHARE * (d + m))) / (d + m)
        donor = rng.integers(0, len(self.frame), (len(base), d + m))
        draw = rng.random((len(base), d + m)) < share
        for j in range(d):
            given = self._numbers[donor[:, j], j]
            numbers[:, j] = np.where(draw[:, j] & np.isfinite(given), given, numbers[:, j])
        for j in range(m):
            taken = self._codes[donor[:, d + j], j]
            codes[:, j] = np.where(draw[:, d + j] & (taken >= 0) & (codes[:, j] >= 0), taken, codes[:, j])
        noise = rng.standard_normal(numbers.shape) * (SPUNGE_NOISE * self._deviation)
        numbers += np.where(rng.random(numbers.shape) < SPUNGE_P, noise, 0.0)
        return numbers, codes

    def _hot_deck(self, rng: np.random.Generator, deadline: float | None) -> _Maker:
        """Redraw columns within the leaf of a small tree that predicts them from the others.

        One round of the Gibbs sampling of FAST-DAD (Fakoor et al. 2020) with trees in the place of its conditionals.
        """
        import lightgbm

        table = np.column_stack([self._numbers, self._codes.astype(np.float64)])
        d, total = self._numbers.shape[1], table.shape[1]
        parameters = {
            "objective": "regression",
            "num_leaves": HOT_DECK_LEAVES,
            "min_data_in_leaf": 5,
            "learning_rate": 1.0,
            "num_threads": 1,
            "verbosity": -1,
            "seed": int(rng.integers(1 << 30)),
            "deterministic": True,
            "force_row_wise": True,
        }
        decks: list[tuple[int, Any, Any, Any]] = []
        for j in np.sort(rng.permutation(total)[:HOT_DECK_COLUMNS]).tolist():
            if deadline is not None and time.monotonic() > deadline:
                break
            known = np.flatnonzero(np.isfinite(table[:, j]) & ((j < d) | (table[:, j] >= 0)))
            if total < 2 or len(known) < 20:
                continue
            others = np.delete(table[known], j, axis=1)
            tree = lightgbm.train(parameters, lightgbm.Dataset(others, table[known, j]), 1)
            deck = _leaves(tree, others)
            order = np.argsort(deck, kind="stable")
            starts = np.searchsorted(deck[order], np.arange(deck.max() + 2))
            decks.append((j, tree, table[known[order], j], starts))

        def redraw(base: Any, rng: np.random.Generator) -> tuple[FloatArray, Any]:
            current = table[base]
            for j, tree, values, starts in decks:
                rows = np.flatnonzero(rng.random(len(base)) < HOT_DECK_P)
                if not len(rows):
                    continue  # few rows were asked for, and LightGBM cannot predict none
                leaf = _leaves(tree, np.delete(current[rows], j, axis=1))
                size = starts[leaf + 1] - starts[leaf]
                pick = starts[leaf] + (rng.random(len(rows)) * size).astype(np.int64)
                drawn = values[np.minimum(pick, len(values) - 1)]
                held = current[rows, j]
                keep = ~np.isfinite(held) if j < d else held < 0
                current[rows, j] = np.where(keep, held, drawn)
            return current[:, :d], current[:, d:].astype(self._codes.dtype)

        return redraw

    def _midpoints(self, base: Any, rng: np.random.Generator) -> tuple[FloatArray, Any]:
        """Move cells to midpoints between a tree teacher's neighbouring thresholds: one row a cell of its grid."""
        numbers, codes = self._numbers[base].copy(), self._codes[base].copy()
        for j, name in enumerate(self.frame.number_names):
            cuts = np.asarray(self.thresholds.get(name, ()), np.float64)
            cuts = cuts[(cuts > self._low[j]) & (cuts < self._high[j])]
            if not len(cuts):
                continue
            edges = np.concatenate([[self._low[j]], cuts, [self._high[j]]])
            middle = (edges[:-1] + edges[1:]) / 2
            rows = np.flatnonzero((rng.random(len(base)) < THRESHOLDS_P) & np.isfinite(numbers[:, j]))
            cell = np.searchsorted(cuts, numbers[rows, j])
            step = rng.integers(-THRESHOLDS_STEPS, THRESHOLDS_STEPS + 1, len(rows))
            numbers[rows, j] = middle[np.clip(cell + step, 0, len(middle) - 1)]
        return numbers, codes

    def _space(self, numbers: FloatArray, codes: Any) -> npt.NDArray[np.float32]:
        """Return the rows as points: standardised numbers (NULL at the mean), one-hot strings of few categories."""
        d, width = numbers.shape[1], int(self._places[-1]) + 1 if len(self._few) else 0
        scale = np.where(self._deviation > 0, self._deviation, 1.0)
        clipped = np.clip(numbers, *self._usual)
        out = np.zeros((len(numbers), d + width), np.float32)
        out[:, :d] = np.where(np.isfinite(numbers), (clipped - self._mean) / scale, 0.0)
        sizes = np.diff(self._places, prepend=-1)
        held = codes[:, self._few]
        place = d + self._places + np.where(held < 0, 0, held + 1 - sizes)
        np.put_along_axis(out, place, np.float32(CATEGORY_SPREAD), axis=1)
        return out

    def _neighbours(self, rows: Any, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Return for each row the nearest other row of a random pool."""
        pool = rng.permutation(len(self.frame))[:POOL]
        distance, nearest = self._nearest(self._numbers[rows], self._codes[rows], pool, own=rows)
        return np.where(np.isfinite(distance), pool[nearest], rows)

    def _nearest(
        self, numbers: FloatArray, codes: Any, pool: Any, own: Any | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return squared distance to, and position in ``pool`` of, the nearest pool row that is not the row itself."""
        there, there_codes = self._space(self._numbers[pool], self._codes[pool]), self._codes[pool]
        squares = (there**2).sum(axis=1)
        position = np.full(len(self.frame), -1)
        position[pool] = np.arange(len(pool))
        distance = np.empty(len(numbers), np.float32)
        nearest = np.empty(len(numbers), np.int64)
        for start in range(0, len(numbers), CHUNK):
            rows = slice(start, start + CHUNK)
            here = self._space(numbers[rows], codes[rows])
            square = squares - 2 * (here @ there.T)
            for j in self._many:
                square += np.float32(2 * CATEGORY_SPREAD**2) * (codes[rows, j, None] != there_codes[:, j])
            if own is not None:
                itself = position[own[rows]]
                inside = np.flatnonzero(itself >= 0)
                square[inside, itself[inside]] = np.inf
            best = square.argmin(axis=1)
            nearest[rows] = best
            distance[rows] = square[np.arange(len(best)), best] + (here**2).sum(axis=1)
        return distance, nearest

    def _near(self, rng: np.random.Generator) -> Callable[[FloatArray, Any], npt.NDArray[np.bool_]]:
        """Return what tells which rows lie where real rows are."""
        size = len(self.frame)
        if size < 3:
            return lambda numbers, _: np.ones(len(numbers), bool)
        pool = rng.permutation(size)[:POOL]
        probe = rng.permutation(size)[:CHUNK]
        usual, _ = self._nearest(self._numbers[probe], self._codes[probe], pool, own=probe)
        limit = np.quantile(np.sqrt(np.maximum(usual, 0)), FAR_QUANTILE) * FAR_FACTOR

        def near(numbers: FloatArray, codes: Any) -> npt.NDArray[np.bool_]:
            distance, _ = self._nearest(numbers, codes, pool)
            return np.asarray(np.sqrt(np.maximum(distance, 0)) <= max(limit, 1e-3))

        return near

    def _to_frame(self, numbers: FloatArray, codes: Any, base: Any) -> Frame:
        columns: dict[str, Any] = {
            name: np.ascontiguousarray(numbers[:, j]) for j, name in enumerate(self.frame.number_names)
        }
        for j, name in enumerate(self.frame.string_names):
            columns[name] = Strings(codes[:, j].astype(np.int32), self.frame.strings(name).categories)
        for name in self.frame.text_names:
            columns[name] = self.frame.strings(name).take(base)
        for name in self.frame.vector_names:
            columns[name] = self.frame.vector(name)[base]
        return Frame(self.frame.features, columns)


def _leaves(tree: Any, table: FloatArray) -> npt.NDArray[np.int64]:
    """Return the leaf of each row in a LightGBM model of one tree."""
    return np.asarray(tree.predict(table, pred_leaf=True), np.int64).reshape(len(table), -1)[:, 0]


def _codes(frame: Frame) -> npt.NDArray[np.int32]:
    names = frame.string_names
    out = np.empty((len(frame), len(names)), np.int32)
    for j, name in enumerate(names):
        out[:, j] = frame.strings(name).codes
    return out
