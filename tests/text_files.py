"""Files that read a column of texts, without a student around the readers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pg_distill.frame import Feature
from pg_distill.onnx_model.tokens import Tokeniser
from pg_distill.students.export import Graph, Numbers
from text_rows import NGRAMS

__all__ = ["TOKENISERS", "UNITS", "text_file", "whole_table"]

TOKENISERS = {
    "all": NGRAMS,
    "words": Tokeniser(NGRAMS.words, "", ()),
    "marks": Tokeniser((), "!.,", ()),
    "pairs": Tokeniser(NGRAMS.words, "", NGRAMS.pairs),
}

UNITS = np.array([2.0**-20, 2.0**-19, 1.0])


def whole_table(tokeniser: Tokeniser, seed: int = 0) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.column_stack(
        [rng.integers(-(2**20), 2**20, (tokeniser.size, 2)), rng.integers(1, 20, tokeniser.size)]
    ).astype(np.float64)


def text_file(*tokenisers: Tokeniser) -> bytes:
    """Return a regression's file that adds up what parts read of one column of texts, as a blend does."""
    graph = Graph(Numbers((Feature("body", "text"),), "float", np.zeros(0)))
    # Equal readers are one: each has a table of its own.
    parts = [graph.read_text("body", t, whole_table(t, i), UNITS) for i, t in enumerate(tokenisers)]
    total = parts[0]
    for part in parts[1:]:
        total = graph.node("Add", [total, part])
    return graph.finish(graph.node("ReduceSum", [total]), "regression", 1, {})
