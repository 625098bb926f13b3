"""The column of the truth: its values, and the texts by which they are compared with names of classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.frame import Column, Kind, Strings
from pg_distill.quoting import quote_identifier
from pg_distill.rows.canonical import (
    SqlType,
    label_text,
    number_text,
    one_text_for_equal_numbers,
)
from pg_distill.rows.source import Source

__all__ = ["Label", "label_wanted", "read_label"]


@dataclass(frozen=True)
class Label:
    """The column of the truth: ``values`` in canonical form, ``texts`` as they are compared with names of classes.

    ``texts`` are the server's own, whatever DateStyle, TimeZone and extra_float_digits say, one for equal numbers; None where
    nobody asked for them.
    """

    values: Column
    texts: Strings | None
    sql_type: SqlType

    def take(self, rows: npt.NDArray[Any]) -> Label:
        """Return the label of some rows."""
        values = self.values.take(rows) if isinstance(self.values, Strings) else self.values[rows]
        return Label(values, None if self.texts is None else self.texts.take(rows), self.sql_type)

    def names(self) -> list[str]:
        """Return the texts that occur, in the order of their values."""
        assert self.texts is not None
        known = np.flatnonzero(self.texts.codes >= 0)
        values = self.values.codes if isinstance(self.values, Strings) else self.values
        first = {int(self.texts.codes[row]): values[row] for row in reversed(known)}
        return [self.texts.categories[code] for code in sorted(first, key=lambda code: first[code])]


_LABEL_TEXT = object()


def label_wanted(source: Source, label: str | None, texts: bool) -> dict[Any, tuple[str, Kind]]:
    """Return what has to be read of a label, as SQL: its values, and with ``texts`` those too where they are others."""
    if label is None:
        return {}
    wanted: dict[Any, tuple[str, Kind]] = {label: source.single(label)}
    text = label_text(f"s.{quote_identifier(label)}", source.columns[label])
    if texts and text is not None and source.kind(label) != "string":
        wanted[_LABEL_TEXT] = text, "string"
    return wanted


def read_label(source: Source, label: str, columns: Mapping[Any, Column], texts: bool) -> Label:
    """Return the label from what was read as `label_wanted` says."""
    values, sql_type = columns[label], source.columns[label]
    if not texts:
        return Label(values, None, sql_type)
    if isinstance(values, Strings):
        return Label(values, values, sql_type)
    written = columns.get(_LABEL_TEXT)
    if written is None:
        known, inverse = np.unique(values, return_inverse=True)
        names = [None if np.isnan(v) else number_text(float(v), sql_type.base) for v in known]
        written = Strings.from_values(np.array(names, object)[inverse].tolist())
    assert isinstance(written, Strings)
    if sql_type.base == "numeric":
        written = one_text_for_equal_numbers(written)
    return Label(values, written, sql_type)
