"""How a network reads a row: numbers as shares of their range, categories as one-hot or embedding, texts as `TextNumbers`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.frame import MAX_CATEGORIES, FloatArray, Frame
from pg_distill.students.encoding import CategoryEncoder
from pg_distill.students.export import Numbers
from pg_distill.students.projection import NETWORK_NUMBERS
from pg_distill.students.text_numbers import TextNumbers
from pg_distill.students.transfer_set import usual_range

__all__ = ["Encoded", "Encoding", "Float32"]

Float32 = npt.NDArray[np.float32]
MARGIN = 0.25
"""Numbers are clipped to their usual range, widened by this share of it: infinity has an answer, outliers a sober one."""


MOST_DEVIATIONS = 32.0
"""No usual range is more deviations wide: a flag of one row in ten thousand must not arrive as 100."""


MAX_ONE_HOT = 2048
"""Inputs for categories of all columns together: each is a row of the first layer, and costs a step as much as a number."""


@dataclass(frozen=True)
class Encoded:
    """Rows as the network reads them: centred, filled numbers (n, d), NULL flags (n, q), category codes (n, m), texts (n, t)."""

    numbers: Float32
    nulls: npt.NDArray[np.bool_]
    codes: npt.NDArray[np.int64]
    texts: Float32


class Encoding:
    """Learned preprocessing: fill, centre, scale, bins, NULL flags, texts and categories; ``width`` inputs in all."""

    def __init__(self, frame: Frame, bins: int, texts: TextNumbers, target: FloatArray | None = None) -> None:
        self.texts = texts
        self.text_mean = texts.mean(frame)
        self.numbers = Numbers.fit(frame, target, NETWORK_NUMBERS)
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
        self.n_texts = texts.width
        self.n_categories = int(sum(self.category_sizes))
        self.width = self.n_numbers + self.n_nulls + self.n_texts + self.n_categories
        self.n_inputs = self.n_numbers + self.n_nulls + self.n_texts + len(self.categories)

    def encode(self, frame: Frame, *, training: bool = False) -> Encoded:
        """Return the rows as the network's first layer reads them, with ``training`` those that it was fitted on."""
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
        texts = self.texts.transform(frame, training=training) - self.text_mean
        return Encoded(values, missing[:, self.null_columns], codes + self.offsets, texts)

    def fill_unknown(self, weights: Float32) -> None:
        """Give codes that training never met (unseen, NULL) the mean effect of their column's categories."""
        start = self.n_numbers + self.n_nulls + self.n_texts
        for encoder, offset in zip(self.categories, self.offsets, strict=True):
            rows = weights[start + offset : start + offset + len(encoder.counts)]
            never = encoder.counts == 0
            if not never.all():
                rows[never] = np.average(rows, axis=0, weights=encoder.counts)

    def expand(self, rows: Encoded, index: Any, out: Float32) -> None:
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
        if self.n_texts:
            out[:, end : end + self.n_texts] = rows.texts[index]
            end += self.n_texts
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
