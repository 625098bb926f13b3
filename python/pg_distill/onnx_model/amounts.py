"""Sizes that depend on the number of rows, and those of which only a bound is known: what a text is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pg_distill.errors import FeatureNotSupported

__all__ = ["ONE", "Amount", "Shape", "amount_of", "elements"]


@dataclass(frozen=True, slots=True)
class Amount:
    """``fixed`` + rows x ``a_row``, for any number of rows from one on.

    Where a size depends on what a text says it is known as a bound, ``at_most``: it is between 0 and the amount. Then
    ``a_byte`` and ``a_row_byte`` may count it times the bytes of the longest string that the run is given.
    """

    fixed: int
    a_row: int = 0
    a_byte: int = 0
    a_row_byte: int = 0
    at_most: bool = False

    def __add__(self, other: Amount | int) -> Amount:
        other = amount_of(other)
        return Amount(
            self.fixed + other.fixed,
            self.a_row + other.a_row,
            self.a_byte + other.a_byte,
            self.a_row_byte + other.a_row_byte,
            self.at_most or other.at_most,
        )

    __radd__ = __add__

    def __neg__(self) -> Amount:
        if self.at_most:
            raise FeatureNotSupported("model has a size that depends on the features' values")
        return Amount(-self.fixed, -self.a_row)

    def __sub__(self, other: Amount | int) -> Amount:
        return self + -amount_of(other)

    def __mul__(self, other: Amount | int) -> Amount:
        other = amount_of(other)
        rows = (self.a_row or self.a_row_byte) and (other.a_row or other.a_row_byte)
        if rows or ((self.a_byte or self.a_row_byte) and (other.a_byte or other.a_row_byte)):
            grows = "the number of rows" if rows else "a text"
            raise FeatureNotSupported(
                f"model has a tensor that grows faster than {grows}",
                hint="A row's prediction must not need every pair of rows, or of words.",
            )
        if (self.at_most or other.at_most) and min(self.fixed, self.a_row, other.fixed, other.a_row) < 0:
            raise FeatureNotSupported("model has a size that depends on the features' values")
        return Amount(
            self.fixed * other.fixed,
            self.fixed * other.a_row + self.a_row * other.fixed,
            self.fixed * other.a_byte + self.a_byte * other.fixed,
            self.fixed * other.a_row_byte
            + self.a_row_byte * other.fixed
            + self.a_row * other.a_byte
            + self.a_byte * other.a_row,
            self.at_most or other.at_most,
        )

    __rmul__ = __mul__

    def at(self, rows: int, text_bytes: int = 0) -> int:
        """Return the number for so many rows, whose longest string has so many bytes."""
        return self.fixed + self.a_byte * text_bytes + rows * (self.a_row + self.a_row_byte * text_bytes)

    @property
    def sign(self) -> int | None:
        """1, 0 or -1 where it is so for every number of rows, else None."""
        if self.at_most:
            return None
        first = self.fixed + self.a_row
        if self.a_row == 0:
            return (first > 0) - (first < 0)
        if first != 0 and (first > 0) == (self.a_row > 0):
            return 1 if first > 0 else -1
        return None

    def over(self, other: Amount) -> Amount | None:
        """Return the amount that times ``other`` is this one; None where there is none."""
        if other.at_most:
            return None
        if other.a_row == 0:
            parts = (self.fixed, self.a_row, self.a_byte, self.a_row_byte)
            if other.fixed == 0 or any(part % other.fixed for part in parts):
                return None
            fixed, a_row, a_byte, a_row_byte = (part // other.fixed for part in parts)
            return Amount(fixed, a_row, a_byte, a_row_byte, self.at_most)
        if self.at_most:
            if other.fixed or self.fixed or self.a_byte:
                return None
            if self.a_row % other.a_row or self.a_row_byte % other.a_row:
                return None
            return Amount(self.a_row // other.a_row, 0, self.a_row_byte // other.a_row, 0, True)
        if self.fixed * other.a_row != self.a_row * other.fixed or self.a_row % other.a_row:
            return None
        return Amount(self.a_row // other.a_row)

    def __repr__(self) -> str:
        units = ("", "rows", "bytes", "rows x bytes")
        counts = (self.fixed, self.a_row, self.a_byte, self.a_row_byte)
        parts = [
            unit if unit and count == 1 else f"{count} x {unit}" if unit else str(count)
            for count, unit in zip(counts, units, strict=True)
            if count
        ]
        return ("at most " if self.at_most else "") + (" + ".join(parts) or "0")


ONE = Amount(1)
Shape = tuple[Amount, ...]


def amount_of(value: Amount | int) -> Amount:
    """Return a number that may depend on the rows, of one that does not."""
    return value if isinstance(value, Amount) else Amount(value)


def elements(shape: Sequence[Amount]) -> Amount:
    """Return how many elements a tensor of this shape has."""
    total = ONE
    for size in shape:
        total = total * size
    return total
