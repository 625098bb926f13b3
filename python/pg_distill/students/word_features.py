"""What words have in common, so that a rare word's effect is learned from its like: their parts, and static word vectors.

The effect of an n-gram is ``own + features @ shared``: a line over all n-grams that have a part in common, or vectors of the same
direction. What a student serves is the sum, one effect an n-gram, which takes no longer to look up (fastText's subwords,
Bojanowski et al. 2017, folded into the words).

Vectors come from the package ``wordllama`` (MIT), where it is installed: its files are read, its code is not run. A direction
learned among vectors says something of every word that has one. So words are known, too, that one training text has or none:
`vector_words`.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pg_distill.frame import FloatArray
from pg_distill.onnx_model.tokens import Tokeniser, split_words

__all__ = ["Widened", "fold", "make_features", "vector_words", "vectors_of"]

SHORTEST, LONGEST = 3, 5
"""Characters of a part; a word's first and last part have its end for one of them."""
LEAST_WORDS = 3
"""Words that have a part, at least."""
DIRECTIONS = 256
"""Of the words of all texts in which vectors differ most. With 96 divergence of Rotten Tomatoes on rows of select is 0.113, not
0.111 (means over 200 and 1,000 labels and three seeds)."""
VECTOR_SHARE = 0.25
"""Variance of vectors over texts; that of n-grams is 1, penalties are the same. With 1 divergence of Rotten Tomatoes is
0.115 on test texts, not 0.113."""
WORD_BEGINS = ("\u2581", "\u0120")
"""What stands for the blank before a word in tokenizers of SentencePiece, and in those of bytes."""
VECTORS, TOKENIZER = "weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"


class Widened:
    """A matrix (n, V) beside itself times features (V, F): ``[matrix, matrix @ features]``, which is never made.

    What no row of the matrix has takes no time: of the words that a vocabulary knows, few texts have few.
    """

    def __init__(self, matrix: Any, features: list[Any]) -> None:
        self._size = matrix.shape[1]
        self._used = np.unique(matrix.indices)
        matrix = matrix[:, self._used]
        features = [f[self._used[self._used < f.shape[0]]].astype(matrix.dtype) for f in features]
        self.matrix = matrix
        self.features = features
        self._transposed = matrix.T.tocsr()
        self._features = [f.T.tocsr() if hasattr(f, "tocsr") else np.ascontiguousarray(f.T) for f in features]
        # Of few texts it takes less time to know the vectors' sums of each.
        few = [not hasattr(f, "tocsr") and matrix.shape[0] < len(f) for f in features]
        self._of_texts = [
            np.asarray(matrix[:, : len(f)] @ f, np.float32) if own else None
            for f, own in zip(features, few, strict=True)
        ]

    def __matmul__(self, weights: FloatArray) -> FloatArray:
        start = self._size
        effect, total = weights[self._used], 0.0
        for part, of_texts in zip(self.features, self._of_texts, strict=True):
            own = weights[start : start + part.shape[1]]
            start += len(own)
            if of_texts is None:
                effect[: part.shape[0]] += _times(part, own)
            else:
                total = total + _times(of_texts, own)
        return np.asarray(self.matrix @ effect + total)

    def transposed(self, values: FloatArray) -> FloatArray:
        """Return its transpose times ``values`` (n, outputs)."""
        own = self._transposed @ values
        parts = [
            _times(part, own[: part.shape[1]]) if of_texts is None else _times(of_texts.T, values)
            for part, of_texts in zip(self._features, self._of_texts, strict=True)
        ]
        every = np.zeros((self._size, own.shape[1]), own.dtype)
        every[self._used] = own
        return np.concatenate([every, *parts])


def _times(part: Any, values: FloatArray) -> Any:
    """Return the product, of vectors in float32: half the time."""
    return part @ (values if hasattr(part, "tocsr") else values.astype(part.dtype))


def fold(features: list[Any], weights: FloatArray) -> FloatArray:
    """Return the effect (V, outputs) of ``weights`` (V + F, outputs): each n-gram's own, and what its features add."""
    start = len(weights) - sum(part.shape[1] for part in features)
    total = weights[:start].copy()
    for part in features:
        total[: part.shape[0]] += _times(part, weights[start : start + part.shape[1]])
        start += part.shape[1]
    return total


def make_features(tokeniser: Tokeniser, matrix: Any) -> tuple[list[Any], bool]:
    """Return features (V, F) of the words of a vocabulary, none of marks and pairs, and whether vectors are among them.

    Those of vectors have the rows of words alone. ``matrix`` are the n-grams of texts, (n, V): each kind is scaled so that those
    of texts differ by 1, as n-grams do, and those of vectors by `VECTOR_SHARE`.
    """
    found: list[Any] = []
    parts = _parts(tokeniser)
    if parts is not None:
        found.append(parts)
    table = vectors_of([forms[0] for forms in tokeniser.words]) if tokeniser.words else None
    if table is not None:
        shares = np.asarray(matrix.sum(axis=0)).ravel()[: len(table)]
        table = table - shares @ table / max(float(shares.sum()), 1e-9)
        table /= np.maximum(np.sqrt((table**2).sum(axis=1, keepdims=True)), 1e-9)
        if table.shape[1] > DIRECTIONS:
            table = table @ np.linalg.eigh(table.T @ (table * shares[:, None]))[1][:, -DIRECTIONS:]
        found.append(table.astype(np.float32))
    out = []
    for kind in found:
        is_sparse = hasattr(kind, "tocsr")
        of_texts = matrix[:, : kind.shape[0]] @ kind
        sums = np.asarray(of_texts.sum(axis=0)).ravel()
        square = float(of_texts.multiply(of_texts).sum() if is_sparse else (of_texts**2).sum())
        square -= float(sums @ sums) / matrix.shape[0]
        if square > 0:
            scale = np.sqrt((1.0 if is_sparse else VECTOR_SHARE) * matrix.shape[0] / square)
            out.append(kind * (scale if is_sparse else np.float32(scale)))
    return out, table is not None


def _parts(tokeniser: Tokeniser) -> Any:
    """Return which parts each word has, (V, parts) sparse with rows of length 1; None where no part is shared."""
    from scipy.sparse import csr_array

    words = []
    for forms in tokeniser.words:
        word = f"<{forms[0]}>"
        words.append(
            {word[i : i + n] for n in range(SHORTEST, LONGEST + 1) for i in range(len(word) - n + 1)} - {word}
        )
    counts = Counter(part for parts in words for part in parts)
    index = {part: i for i, part in enumerate(sorted(p for p, n in counts.items() if n >= LEAST_WORDS))}
    if not index:
        return None
    rows = [sorted(index[part] for part in parts if part in index) for parts in words]
    sizes = np.array([len(row) for row in rows] + [0] * (tokeniser.size - len(rows)))
    columns = np.array([i for row in rows for i in row], np.int64)
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return csr_array((values, columns, starts), (tokeniser.size, len(index)))


@lru_cache(maxsize=1)
def _static() -> tuple[Any, Any] | None:
    """Return the vectors (tokens, 256) float16 and their tokenizer; None where the package is not installed."""
    found = find_spec("wordllama")
    if found is None or not found.submodule_search_locations or find_spec("tokenizers") is None:
        return None
    from tokenizers import Tokenizer

    folder = Path(next(iter(found.submodule_search_locations)))
    try:
        data = (folder / VECTORS).read_bytes()
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        size = int.from_bytes(data[:8], "little")
        (tensor,) = (t for name, t in json.loads(data[8 : 8 + size]).items() if name != "__metadata__")
        first, last = tensor["data_offsets"]
        if tensor["dtype"] != "F16":
            return None
        table = np.frombuffer(data[8 + size + first : 8 + size + last], "<f2").reshape(tensor["shape"])
    except Exception:  # of another version: as if it were not installed
        return None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return table, tokenizer


def vectors_of(words: list[str]) -> FloatArray | None:
    """Return the vector of each word, the mean of its tokens', (n, 256); None where there are none."""
    static = _static()
    if static is None:
        return None
    table, tokenizer = static
    out = np.zeros((len(words), table.shape[1]))
    for row, found in zip(out, tokenizer.encode_batch(words, add_special_tokens=False), strict=True):
        ids = [i for i in found.ids if i < len(table)]
        if ids:
            row[:] = table[ids].astype(np.float64).mean(axis=0)
    return out


@lru_cache(maxsize=1)
def vector_words() -> tuple[str, ...] | None:
    """Return the words that have a vector of their own, the most usual first; None where there are no vectors."""
    static = _static()
    if static is None:
        return None
    table, tokenizer = static
    tokens = [t for t, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]) if i < len(table)]
    # Where tokens are parts of words, those that may begin one are marked, and most of these are words.
    first = [t[1:] for t in tokens if t[:1] in WORD_BEGINS]
    words = dict.fromkeys(t.lower() for t in first or tokens)
    return tuple(w for w in words if len(w) > 1 and w.isalpha() and split_words(w) == [w])
