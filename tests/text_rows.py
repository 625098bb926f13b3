"""Texts for tests: random Unicode that meets every rule of the tokeniser, and what is awkward about texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from pg_distill.frame import Feature, Frame, Strings, Task
from pg_distill.onnx_model.signature import NULL_STRING
from pg_distill.onnx_model.tokens import MARKS, SEPARATORS, Tokeniser
from pg_distill.students.transfer_set import TransferSet
from student_rows import CLASSES

__all__ = ["EVERYTHING", "NGRAMS", "SPECIAL", "special", "texts", "tickets"]

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


_GOOD = ("good", "lovely", "Прекрасно", "好", "schön", "😀")
_BAD = ("bad", "awful", "Ужасно", "壞", "übel", "!")
_OTHER = ("the", "film", "was", "a", "very", "this", "and", "it", "кино", "電影")


def tickets(
    n: int, task: Task, seed: int = 0, *, columns: tuple[str, ...] = ("body", "title", "x", "shop")
) -> TransferSet:
    """Give rows of two texts, a number and a category, and a teacher that reads all of them; "not" turns a word round."""
    rng = np.random.default_rng(seed)
    score = np.zeros(n)
    found: dict[str, list[str | None]] = {"body": [], "title": []}
    for i in range(n):
        for name, size in (("body", 12), ("title", 3)):
            words = []
            for _ in range(int(rng.integers(0, size))):
                kind = rng.random()
                turned = kind < 0.1
                mood = rng.random() < 0.5
                if kind < 0.35:
                    word = str(rng.choice(_GOOD if mood else _BAD))
                    words.extend(["not", word] if turned else [word])
                    score[i] += (
                        (1.0 if mood else -1.0) * (-1.0 if turned else 1.0) * (1.0 if name == "body" else 0.5)
                    )
                else:
                    words.append(str(rng.choice(_OTHER)))
            case = (str.lower, str.title, str.upper)[int(rng.integers(3))]
            text = (" ", ", ", "...", "\u3000")[int(rng.integers(4))].join(map(case, words))
            found[name].append(None if rng.random() < 0.05 else text)
            if found[name][-1] is None:
                score[i] = 0.3
    x = rng.normal(size=n)
    shops = [("north", "south")[int(i)] for i in rng.integers(0, 2, n)]
    score += 0.7 * x + np.array([0.8 if shop == "north" else -0.8 for shop in shops])
    values: dict[str, Any] = {name: Strings.from_values(texts) for name, texts in found.items()}
    values |= {"x": x, "shop": Strings.from_values(shops)}
    kinds = {"body": "text", "title": "text", "x": "number", "shop": "string"}
    frame = Frame(tuple(Feature(c, kinds[c]) for c in columns), {c: values[c] for c in columns})  # type: ignore[arg-type]
    width = CLASSES[task]
    logits = np.stack([score * np.cos(1.5 * k) + 0.3 * k for k in range(width)], axis=1)
    if task == "regression":
        return TransferSet(frame, logits, logits[:, 0] + rng.normal(size=n), None, np.zeros(n, np.uint8))
    y = (rng.gumbel(size=logits.shape) + logits).argmax(axis=1).astype(np.int64)
    return TransferSet(frame, logits, y, None, np.zeros(n, np.uint8))


EVERYTHING = ("title", "shop", "body", "x")


def special(frame: Frame) -> Frame:
    """Return the rows, and rows with every one of `SPECIAL` in each text column."""
    n = len(SPECIAL)
    other = frame.take(np.arange(n))
    texts = {name: Strings.from_values([*np.roll(SPECIAL, i)]) for i, name in enumerate(frame.text_names)}
    return Frame.concat([frame, Frame(frame.features, {**other.columns, **texts})])
