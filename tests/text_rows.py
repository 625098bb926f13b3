"""Texts for tests: random Unicode that meets every rule of the tokeniser, and what is awkward about texts."""

from __future__ import annotations

from hypothesis import strategies as st
from pg_distill.onnx_model.signature import NULL_STRING
from pg_distill.students.tokens import MARKS, SEPARATORS, Tokeniser

__all__ = ["NGRAMS", "SPECIAL", "texts"]

_KNOWN = (
    ("good",),
    ("not",),
    ("bad",),
    ("zürich", "Zürich", "zu\u0308rich", "ZÜRICH"),
    ("москва", "Москва", "МОСКВА"),
    ("東",),
    ("京",),
    ("😀",),
    ("e\u0301", "é"),
    ("\u0301\u0301",),
    ("null",),
    ("\x1f",),
    ("\ufeff",),
    ("a",),
    ("\\u0000",),
)
NGRAMS = Tokeniser(_KNOWN, MARKS, ((1, 0), (0, 0), (5, 6), (13, 13), (11, 10), (4, 3), (0, 14)))
"""A vocabulary of the words, marks and pairs of the texts below."""

SPECIAL = (
    "",
    " ",
    "a ",
    "A",
    "\n\n",
    "...",
    "a\n",
    ", . ; ",
    "ÀÉ",
    "İI",
    "東京",
    "ไทย",
    "😀👩\u200d💻👍🏽",
    "e\u0301",
    "\u0301\u0301",
    "\ufeff",
    "\u202e",
    "\x01\x1f",
    "\x85\u2003",
    "\U0010ffff",
    "\\u0000",
    "'; DROP TABLE x; --",
    NULL_STRING,
)
"""Texts, and what is awkward repeated a million times."""

_WORDS = (
    "good",
    "Not",
    "BAD",
    "zürich",
    "ZÜRICH",
    "zu\u0308rich",
    "Москва",
    "МОСКВА",
    "straße",
    "ﬁn",
    "x" * 120,
)


def texts(max_size: int = 40) -> st.SearchStrategy[str]:
    """Give texts of known words, separators, characters of all of Unicode (no NUL, no surrogates) and `SPECIAL`."""
    character = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
    piece = st.one_of(
        st.sampled_from(_WORDS),
        st.sampled_from(SEPARATORS),
        st.just(" "),
        st.sampled_from(SPECIAL),
        st.text(character, max_size=4),
    )
    return st.lists(piece, max_size=max_size).map("".join)
