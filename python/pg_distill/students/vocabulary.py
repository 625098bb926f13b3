"""The vocabulary of a column of texts, learned: which n-grams a student looks up, by what each is worth on the targets.

There is no hashing: ONNX has no hash, and a vocabulary can be read by people. An n-gram's worth is Rao's score statistic:
how much the loss would fall, to second order, if the model that knows none of the text were given this n-gram alone.
It is the chi-squared statistic of scikit-learn's SelectKBest, for soft targets and any loss with a gradient and a
curvature.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pg_distill.frame import FloatArray, Frame, Strings
from pg_distill.onnx_model.tokens import MARKS, MOST_CHARACTERS, Bags, Tokeniser, prepare, split_words

__all__ = ["MOST_NGRAMS", "learn_vocabulary", "usual_width", "usual_words"]

Ints = npt.NDArray[np.int64]

MOST_NGRAMS = 10_000
"""N-grams that a vocabulary keeps unless told otherwise: as many as the numbers of `text_numbers` make use of."""
LEAST_TEXTS = 2
"""An n-gram of one text is that text's name."""
MOST_WORDS = 10_000_000
"""Words of all texts from which a vocabulary is learned: some 10 seconds and 500 MB."""
MOST_CHARACTERS_OF_A_WORD = 100
"""A longer one is an address or a code, which no other text has; kept ones cost memory in every backend."""
MOST_FURTHER = 30_000
"""Words that a vocabulary knows besides, for what vectors say of them: those of training texts, then the most usual others."""
CHARACTERS_A_WORD = 6
"""With what separates it; English has some 5.7."""
SHRINK = 1.0
"""Curvature that every n-gram is given, in rows: a few rows that agree are no proof."""


def usual_words(column: Strings) -> int:
    """Return how many words a usual text of a column has, about."""
    some = column.categories[:: 1 + len(column.categories) // 1000]
    characters = sum(min(len(text), MOST_CHARACTERS) for text in some)
    return characters // (CHARACTERS_A_WORD * max(1, len(some)))


def usual_width(frame: Frame, *, a_word: int = 1) -> int:
    """Return how many cells a usual row has: columns, with the numbers of its vectors; each word of its texts is ``a_word``."""
    words = sum(usual_words(frame.strings(name)) for name in frame.text_names)
    return sum(f.width for f in frame.features) + a_word * words


def learn_vocabulary(
    texts: Sequence[str | None],
    gradient: FloatArray,
    curvature: FloatArray,
    *,
    most: int = MOST_NGRAMS,
    seed: int = 42,
    further: Sequence[str] | None = None,
) -> Tokeniser:
    """Return the vocabulary of the n-grams that are worth most.

    Parameters
    ----------
    gradient, curvature
        First and second derivatives (n, K) of each text's loss by its logits, at what is known without the text.
    most
        How many n-grams are kept; words that only a kept pair needs come on top.
    seed
        Chooses the texts, where they have more than `MOST_WORDS` words.
    further
        Words, as `split_words` leaves them, that may be in no text. They are known, too, and so is each word of letters that
        any text has, up to `MOST_FURTHER`. None: only what is worth most is known.
    """
    order = np.random.default_rng(seed).permutation(len(texts)).tolist()
    forms, rows = _read([texts[i] for i in order])
    order = order[: len(rows)]
    gradient, curvature = gradient[order], curvature[order]
    keys, word_of = _merge(list(forms))
    words = word_of[np.concatenate([*rows, np.zeros(0, np.int64)])]
    owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])

    known, word_worth = _worth(owner, words, gradient, curvature)
    short = np.array([len(keys[word]) <= MOST_CHARACTERS_OF_A_WORD for word in known.tolist()], bool)
    known, word_worth = known[short], word_worth[short]
    seen = Bags.of([[j for j, mark in enumerate(MARKS) if mark in prepare(texts[i])] for i in order])
    marks, mark_worth = _worth(seen.rows, seen.ids, gradient, curvature)
    place = np.full(len(keys), -1, np.int64)
    place[known] = np.arange(len(known))
    place = place[words]
    beside = (owner[:-1] == owner[1:]) & (place[:-1] >= 0) & (place[1:] >= 0)
    width = max(1, len(known))
    pairs, pair_worth = _worth(
        owner[:-1][beside], (place[:-1] * width + place[1:])[beside], gradient, curvature
    )

    worth = np.concatenate([word_worth, mark_worth, pair_worth])
    kept = np.zeros(len(worth), bool)
    kept[np.argsort(-worth, kind="stable")[:most]] = True
    of_words, of_marks, of_pairs = np.split(kept, [len(known), len(known) + len(marks)])
    first, second = known[pairs[of_pairs] // width], known[pairs[of_pairs] % width]
    needed = np.unique(np.concatenate([known[of_words], first, second]))
    spellings: list[list[str]] = [[] for _ in keys]
    for form, word in zip(forms, word_of.tolist(), strict=True):
        spellings[word].append(form)
    chosen_words = [(keys[word], sorted(spellings[word])) for word in needed.tolist()]
    if further is not None and chosen_words:
        others = np.setdiff1d(words, needed)
        others = others[np.argsort(-np.bincount(words, minlength=len(keys))[others], kind="stable")]
        more = [(keys[i], sorted(spellings[i])) for i in others.tolist() if keys[i].isalpha()]
        more = [(key, own) for key, own in more if len(key) <= MOST_CHARACTERS_OF_A_WORD]
        index = set(keys)
        more += [
            (key, [word])
            for word in dict.fromkeys(further)
            if (key := _key(word)) == word and key not in index
        ]
        chosen_words += more[:MOST_FURTHER]
    chosen = _with_other_forms(chosen_words)
    ends = zip(*(np.searchsorted(needed, end).tolist() for end in (first, second)), strict=True)
    return Tokeniser(chosen, "".join(MARKS[j] for j in marks[of_marks].tolist()), tuple(ends))


def _read(texts: Sequence[str | None]) -> tuple[dict[str, int], list[Ints]]:
    """Return the words of the first texts, up to `MOST_WORDS`: each form's number, and the numbers of each text."""
    forms: dict[str, int] = {}
    rows: list[Ints] = []
    total = 0
    for text in texts:
        row = np.array([forms.setdefault(word, len(forms)) for word in split_words(text)], np.int64)
        rows.append(row)
        total += len(row)
        if total >= MOST_WORDS:
            break
    return forms, rows


def _key(form: str) -> str:
    """Return what forms of one word have in common."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", form).casefold())


def _merge(forms: Sequence[str]) -> tuple[list[str], Ints]:
    """Return the words, sorted, and each form's."""
    of = [form if form.isascii() else _key(form) for form in forms]
    keys = sorted(set(of))
    index = {key: i for i, key in enumerate(keys)}
    return keys, np.array([index[key] for key in of], np.int64)


def _with_other_forms(words: Sequence[tuple[str, list[str]]]) -> tuple[tuple[str, ...], ...]:
    """Return each word's forms: those that were seen, and how else it is written: title, upper case, decomposed."""
    taken = {form for _, forms in words for form in forms}
    out = []
    for key, forms in words:
        if not key.isascii():
            for case in (key, key.title(), key.upper()):
                for normal in ("NFC", "NFD"):
                    other = split_words(unicodedata.normalize(normal, case))
                    if len(other) == 1 and other[0] not in taken and _key(other[0]) == key:
                        taken.add(other[0])
                        forms.append(other[0])
        out.append(tuple(forms))
    return tuple(out)


def _worth(owner: Ints, ids: Ints, gradient: FloatArray, curvature: FloatArray) -> tuple[Ints, FloatArray]:
    """Return the ids that `LEAST_TEXTS` texts have, ascending, and what each is worth; ``owner`` is each id's text."""
    distinct, place = np.unique(ids, return_inverse=True)
    size = max(1, len(distinct))
    once = np.unique(owner * size + place)  # an n-gram counts once a text
    owner, place = once // size, once % size
    worth = np.zeros(len(distinct))
    for g, h in zip(gradient.T, curvature.T, strict=True):
        slope = np.bincount(place, weights=g[owner], minlength=len(distinct))
        bend = np.bincount(place, weights=h[owner], minlength=len(distinct))
        worth += slope**2 / (bend + SHRINK)
    keep = np.bincount(place, minlength=len(distinct)) >= LEAST_TEXTS
    return distinct[keep], worth[keep]
