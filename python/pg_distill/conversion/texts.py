"""scikit-learn's vectorizers of texts: their settings, which a backend runs in Python in front of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pg_distill.conversion.graph import Graph, Matrix, Numbers
from pg_distill.errors import DatatypeMismatch, FeatureNotSupported
from pg_distill.onnx_model.vectorizers import (
    LONGEST_NGRAM,
    MOST_LENGTHS,
    MOST_WIDTH,
    parse_pattern,
)

__all__ = ["VECTORIZERS", "reads_documents", "tfidf", "vectorizer", "weighted"]

VECTORIZERS = ("CountVectorizer", "TfidfVectorizer", "HashingVectorizer")
"""By the name of the class: scikit-learn's own only."""

_INSTEAD = (
    "Fit the pipeline with what scikit-learn itself has for it, or register what the model says as columns:"
    " distill.register_logged_model."
)


def reads_documents(step: Any) -> bool:
    """Return whether a step takes a list of texts where others take a table."""
    return type(step).__name__ in VECTORIZERS and type(step).__module__.startswith("sklearn.")


def vectorizer(graph: Graph, step: Any, matrix: Matrix) -> Matrix:
    """Return what a vectorizer makes of one column of texts."""
    what = type(step).__name__
    column = _column(graph, what, matrix)
    settings = {**_analyzer(step, what), **_weights(step, what)}
    return Matrix((Numbers(graph.vector(column, settings), settings["width"]),), sparse=True)


def _column(graph: Graph, what: str, matrix: Matrix) -> int:
    if matrix.width != 1:
        raise FeatureNotSupported(
            f"{what} reads one column of texts, not {matrix.width} columns",
            hint="Give each its own in a ColumnTransformer, by the column's name.",
        )
    if graph.kinds is None and isinstance(block := matrix.blocks[0], Numbers) and block.columns is not None:
        return block.columns[0]
    block = graph.resolved(matrix).blocks[0]
    if isinstance(block, Numbers):
        name = f'column "{graph.names[block.columns[0]]}"' if block.columns is not None else "what it reads"
        raise DatatypeMismatch(
            f"{what} reads texts, and {name} is of numbers", hint="Cast it to text in the sample's query."
        )
    if block.read_as:
        raise FeatureNotSupported(
            f"{what} behind another step that changes texts is not converted",
            hint="Do that step in the sample's query, for example coalesce(column, '').",
        )
    return block.column


def _analyzer(step: Any, what: str) -> dict[str, Any]:
    """Return how a vectorizer splits texts; FeatureNotSupported where Python's code of somebody else does."""

    def refuse(why: str, hint: str = _INSTEAD) -> FeatureNotSupported:
        return FeatureNotSupported(f"{what} {why}", hint=hint)

    for name in ("preprocessor", "tokenizer"):
        if getattr(step, name) is not None:
            raise refuse(f"with a {name} of your own is not converted")
    if callable(step.analyzer):
        raise refuse("with an analyzer of your own is not converted")
    if callable(step.strip_accents):
        raise refuse("with a function as strip_accents is not converted")
    if step.input != "content":
        raise refuse("that reads files is not converted", "Fit it with input='content'.")
    words = step.analyzer == "word"
    if words and parse_pattern(step.token_pattern) is None:
        raise refuse(
            f"with token_pattern {step.token_pattern!r:.100} is not converted",
            r"A run of one class of characters is, such as r'\b\w\w+\b', r'\w+' or r'[a-z0-9]{2,}'.",
        )
    least, most = (int(n) for n in step.ngram_range)
    if not 1 <= least <= most <= LONGEST_NGRAM or most - least >= MOST_LENGTHS:
        raise refuse(
            f"with ngram_range ({least}, {most}) is not converted",
            f"From 1 to {LONGEST_NGRAM}, and of at most {MOST_LENGTHS} lengths.",
        )
    stop_words = step.get_stop_words() if words else None
    return {
        "analyzer": step.analyzer,
        "lowercase": bool(step.lowercase),
        "accents": step.strip_accents or None,
        "pattern": step.token_pattern if words else None,
        "stop_words": None if stop_words is None else sorted(stop_words),
        "ngrams": [least, most],
    }


def _weights(step: Any, what: str) -> dict[str, Any]:
    """Return what a vectorizer makes of the counts of terms."""
    hashes = what == "HashingVectorizer"
    if hashes:
        width = int(step.n_features)
        terms = None
        if width > MOST_WIDTH:
            raise FeatureNotSupported(
                f"HashingVectorizer of {width} columns is not converted",
                hint=f"Fit it with n_features of at most {MOST_WIDTH}: 2 ** 18 are enough for most texts.",
            )
    else:
        places: Mapping[str, int] = step.vocabulary_
        width = len(places)
        terms = [""] * width
        for term, place in places.items():
            terms[int(place)] = str(term)
    weighted = what == "TfidfVectorizer"
    idf = np.asarray(step._tfidf.idf_, np.float64).tolist() if weighted and step.use_idf else None
    return {
        "width": width,
        "terms": terms,
        "alternate": bool(hashes and step.alternate_sign),
        "binary": bool(step.binary),
        "sublinear": bool(weighted and step.sublinear_tf),
        "idf": idf,
        "norm": step.norm if weighted or hashes else None,
    }


def weighted(graph: Graph, step: Any, x: str) -> str | None:
    """Return the tensor of a vectorizer that weighs its counts as TfidfTransformer does; None where ``x`` is of none."""
    idf = np.asarray(step.idf_, np.float64).tolist() if step.use_idf else None
    return graph.reweighted(x, {"sublinear": bool(step.sublinear_tf), "idf": idf, "norm": step.norm})


def tfidf(graph: Graph, step: Any, x: str) -> str:
    """Return what TfidfTransformer makes of any numbers, before it scales rows to one length."""
    if step.sublinear_tf:
        positive = graph.op("Greater", x, graph.constant(0.0))
        x = graph.where(positive, graph.add(graph.op("Log", graph.where(positive, x, 1.0)), 1.0), 0.0)
    if step.use_idf:
        x = graph.mul(x, np.asarray(step.idf_, np.float64))
    return x
