"""Which columns of strings are texts, whose words are read, and which are categories, whose values are told apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from pg_distill.errors import DatatypeMismatch, UndefinedColumn
from pg_distill.frame import MAX_CATEGORIES, MIN_COUNT, Frame, Strings
from pg_distill.onnx_model.tokens import prepare
from pg_distill.rows.canonical import NamedColumn

__all__ = ["Reading", "check_texts", "read_strings"]

LEAST_WORDS = 3
"""Words that half of a text column's values have at least: names of people have two, of products more."""
MOST_REPEATS = 2.0
"""Rows a value that a text column has at most, in the mean; of so many distinct values as a category keeps any number."""
LOOKED_AT = 2000
"""Values whose words are counted."""
RARE_SHARE = 0.5
"""Share of the rows whose value hardly another row has, from which a category is worth a warning."""


@dataclass(frozen=True)
class Reading:
    """How the columns of strings are read: names in order."""

    texts: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    rare: tuple[str, ...] = ()
    """Categories most of whose values are too rare to be told apart."""

    @property
    def notice(self) -> str | None:
        """What to say of it before the run, where there is something to say."""
        if not self.texts:
            return None
        said = f"read as texts: {', '.join(self.texts)}"
        return said + (f"; as categories: {', '.join(self.categories)}" if self.categories else "")

    @property
    def warnings(self) -> list[str]:
        """What may be wrong with it."""
        return [
            f'column "{name}" is read as a category, but most of its values are in fewer than {MIN_COUNT} rows, and so are not'
            f" told apart: where its words matter, name it in text_columns"
            for name in self.rare
        ]


def check_texts(features: Sequence[NamedColumn], declared: Collection[str] | None) -> None:
    """Raise UndefinedColumn or DatatypeMismatch where one that the user declared a text is no string among the features."""
    kinds = {f.name: f for f in features}
    for name in declared or ():
        if name not in kinds:
            raise UndefinedColumn(
                f'text column "{name}" is not a feature of the teacher',
                hint=f"Its features are {', '.join(list(kinds)[:30])}.",
            )
        if not kinds[name].is_string:
            raise DatatypeMismatch(f'text column "{name}" is of kind {kinds[name].kind}, not a string')


def read_strings(frame: Frame, declared: Collection[str] | None) -> Reading:
    """Decide how each column of strings is read.

    Parameters
    ----------
    declared
        Those that are texts, by the user; None leaves it to the values.

    Raises
    ------
    UndefinedColumn
        The user named one that is no feature.
    DatatypeMismatch
        The user named one that is no string.
    """
    check_texts(frame.features, declared)
    strings = [f.name for f in frame.features if f.is_string]
    chosen = {n for n in strings if _is_text(frame.strings(n))} if declared is None else set(declared)
    categories = tuple(name for name in strings if name not in chosen)
    return Reading(
        tuple(name for name in strings if name in chosen),
        categories,
        tuple(name for name in categories if _is_rare(frame.strings(name))),
    )


def _is_text(column: Strings) -> bool:
    column = column.compact()
    rows, distinct = int((column.codes >= 0).sum()), len(column.categories)
    if not distinct or (rows > MOST_REPEATS * distinct and distinct <= MAX_CATEGORIES):
        return False
    return _words(column) >= LEAST_WORDS


def _is_rare(column: Strings) -> bool:
    """Whether a category has words, but hardly a value twice; a column of ids is another doubt."""
    known = column.codes[column.codes >= 0]
    counts = np.bincount(known)
    rare = len(known) > MIN_COUNT and bool(counts[counts < MIN_COUNT].sum() > RARE_SHARE * len(known))
    return rare and _words(column) >= LEAST_WORDS


def _words(column: Strings) -> float:
    """Return how many words half of the values have at least."""
    values = column.compact().categories
    some = values[:: 1 + len(values) // LOOKED_AT]
    return float(np.median([len(prepare(text).split()) for text in some])) if some else 0.0
