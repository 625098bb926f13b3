"""Which rows a student has learned from, kept with the student: no member of a family is judged by its own rows.

A row is known by a 64-bit hash of its feature values, the same in every run, whatever its seed. Of the rows that a run
fitted to, selected on or had its teacher label, the first 32 bits of these hashes are kept, sorted: some two bytes a row.
No rule could stand for them: the seed does not tell which rows were there, had a label, or had been trained on.

Another run asks which of its rows a member knows, and what else these give away: the other rows of their groups where it
splits by group, all that is no newer where it splits by time.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Task

__all__ = [
    "IDENTITY_SEED",
    "MIN_CLASS_ROWS",
    "MIN_COMPARED_ROWS",
    "Digest",
    "Identity",
    "Learned",
    "are_enough",
    "identity_of",
    "mix",
]

IDENTITY_SEED = 0  # of the hash by which a row is known in every run
FORMAT = 1  # of what is stored: another hash, or other columns in it, is another number
MIN_COMPARED_ROWS = 100  # test rows outside a member's own: on fewer, two students cannot be told apart
MIN_CLASS_ROWS = (
    10  # of these, in each of two classes at least: where the metric is of classes or their order
)
MAX_BYTES = 64 * 2**20  # of stored hashes, unpacked: 16 million rows, more than a run may draw

Mask = npt.NDArray[np.bool_]
Identity = tuple[tuple[str, bool], ...]
"""Columns by which rows are known: name and whether it is of strings, in the order of the names."""


def identity_of(features: Sequence[tuple[str, bool]]) -> Identity:
    """Return the columns by which rows of ``features`` (name and whether it is of strings) are known."""
    return tuple(sorted(features))


def mix(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Spread 64-bit integers evenly (splitmix64's finaliser, Steele et al. 2014)."""
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


@dataclass(frozen=True)
class Digest:
    """A set of 64-bit hashes, of each its first 32 bits, sorted; of others a few in a million are taken to be in it.

    ``spared`` are some that would be so, but that are known not to be.
    """

    prints: npt.NDArray[np.uint32]
    spared: frozenset[int] = frozenset()

    @classmethod
    def of(cls, held: npt.NDArray[Any], others: npt.NDArray[Any]) -> Digest:
        """Return the set of ``held``; of ``others`` it will take none for one of them that is not."""
        digest = cls(np.unique(_first_bits(held)))
        mistaken = np.setdiff1d(others[digest.has(others)], held)
        return cls(digest.prints, frozenset(int(value) for value in mistaken))

    def has(self, hashes: npt.NDArray[Any]) -> Mask:
        """Return for each hash whether it is in the set."""
        found = np.isin(_first_bits(hashes), self.prints)
        if self.spared and found.any():
            found &= ~np.isin(hashes, np.array(sorted(self.spared), hashes.dtype))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        # Gaps between sorted numbers are small, and their upper bytes, side by side, alike.
        gaps = np.diff(self.prints, prepend=np.uint32(0)).astype("<u4")
        planes = gaps.view(np.uint8).reshape(-1, 4).T.tobytes()
        return {
            "count": len(self.prints),
            "hashes": base64.b64encode(zlib.compress(planes)).decode(),
            "spared": sorted(self.spared),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Digest:
        """Read what `to_json` gave."""
        planes = zlib.decompressobj().decompress(base64.b64decode(stored["hashes"], validate=True), MAX_BYTES)
        gaps = np.frombuffer(planes, np.uint8).reshape(4, -1).T.copy().view("<u4").reshape(-1)
        return cls(np.cumsum(gaps, dtype=np.uint32), frozenset(int(value) for value in stored["spared"]))


def _first_bits(hashes: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    return (mix(hashes) >> np.uint64(32)).astype(np.uint32)


@dataclass(frozen=True)
class Learned:
    """The rows that a student has learned from.

    Attributes
    ----------
    identity
        Columns by which its rows are known.
    rows, taught
        Rows with a label that it was fitted to or selected on, and rows without one that its teacher labelled for it.
    group_column, groups
        The groups of ``rows``, where its run split by group.
    time_column, until
        The newest time of ``rows``, where its run split by time.
    run_id, seed
        Of that run, for whoever reads this.
    """

    identity: Identity
    rows: Digest
    taught: Digest
    group_column: str | None = None
    groups: Digest | None = None
    time_column: str | None = None
    until: float | None = None
    run_id: str | None = None
    seed: int | None = None

    def knows(self, identities: npt.NDArray[np.int64]) -> Mask:
        """Return for each row, by its hash, whether the student has learned from one of the same features."""
        return self.rows.has(identities) | self.taught.has(identities)

    def outside(
        self,
        identities: npt.NDArray[np.int64],
        *,
        groups: npt.NDArray[Any] | None = None,
        times: FloatArray | None = None,
        group_column: str | None = None,
        time_column: str | None = None,
    ) -> Mask:
        """Return for each row of a run whether it may judge the student.

        Where both runs split by the same column, it decides: the same features in another group, or later, are another row.

        Parameters
        ----------
        identities
            (n,) hashes of all rows that the run drew.
        groups
            (n,) group of each, where the run splits by ``group_column``.
        times
            (n,) time by which each was put on its side, where the run splits by ``time_column``.
        """
        known, inside = self.knows(identities), self.taught.has(identities)
        if groups is None and times is None:
            return ~known
        if groups is not None:
            inside |= (
                self.groups.has(groups)
                if self.groups is not None and self.group_column == group_column
                else known
            )
            inside = np.isin(groups, np.unique(groups[inside]))
        if times is not None:
            if self.until is not None and self.time_column == time_column:
                inside |= times <= self.until
            else:
                newest = times[(inside | known) & np.isfinite(times)].max(initial=-np.inf)
                inside |= known | (times <= newest)
        return ~inside

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "format": FORMAT,
            "run_id": self.run_id,
            "seed": self.seed,
            "columns": [list(column) for column in self.identity],
            "rows": self.rows.to_json(),
            "taught": self.taught.to_json(),
            "group_column": self.group_column,
            "groups": self.groups.to_json() if self.groups is not None else None,
            "time_column": self.time_column,
            "until": self.until,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> Learned | None:
        """Read what `to_json` gave; None where that is not known, or not readable."""
        try:
            if stored is None or stored["format"] != FORMAT:
                return None
            groups, until = stored["groups"], stored["until"]
            return cls(
                tuple((str(name), bool(strings)) for name, strings in stored["columns"]),
                Digest.from_json(stored["rows"]),
                Digest.from_json(stored["taught"]),
                stored["group_column"],
                None if groups is None else Digest.from_json(groups),
                stored["time_column"],
                None if until is None else float(until),
                stored["run_id"],
                stored["seed"],
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, zlib.error, binascii.Error):
            return None


def are_enough(rows: Mask, y: npt.NDArray[Any], task: Task, *, of_classes: bool) -> bool:
    """Return whether the chosen of ``rows`` say enough of two students to compare them.

    ``of_classes``: whether the metric weighs classes or is of their order, and needs some rows of two at least.
    """
    if np.count_nonzero(rows) < MIN_COMPARED_ROWS:
        return False
    if task == "regression" or not of_classes:
        return True
    _, counts = np.unique(y[rows & (y >= 0)], return_counts=True)
    return len(counts) > 1 and int(np.sort(counts)[-2]) >= MIN_CLASS_ROWS
