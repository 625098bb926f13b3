"""scikit-learn's pipelines that read texts, and rows for them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["AWKWARD", "MILLION", "amounts", "fitted", "mails", "vectorizers"]

WORDS = [
    "Refund",
    "refund",
    "REFUND",
    "broken",
    "thanks",
    "late",
    "great",
    "invoice",
    "not",
    "the",
    "a",
    "don't",
    "e-mail",
    "zürich",
    "ÉTÉ",
    "été",
    "naïve",
    "straße",
    "STRASSE",
    "İstanbul",
    "москва",
    "МОСКВА",
    "東京",
    "京都",
    "ไทย",
    "😀",
    "👩\u200d💻",
    "ﬁn",
    "x1",
    "42",
    "_under_",
    "co-op",
    "ΣΑΣ",
    "σας",
]

AWKWARD = (
    "",
    " ",
    "a",
    "\n\t\r\u3000\u00a0",
    "😀",
    "refund",
    "e\u0301te\u0301 ÉTÉ",
    "ﷺ ﬁ ½ ²",
    "don't e-mail co-op",
    "\u202erefund\u202c \ufeff",
    "\x01\x1f<NULL>",
    "İI ıi ΑΣ",
    "x" * 5000,
    "'; DROP TABLE mails; --",
)

MILLION = ("Refund not zürich 東京 " * 60_000)[: 1 << 20]
"""As many characters as are read."""


def mails(n: int = 400, seed: int = 0) -> list[str]:
    """Give texts of one to eleven words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(n)]


def amounts(texts: list[str], seed: int = 0) -> tuple[list[float], list[str], list[int]]:
    """Give a number and a category for each text, and a class that depends on the text and the number."""
    rng = np.random.default_rng(seed)
    amount = np.round(rng.gamma(2, size=len(texts)), 3)
    shops = [str(s) for s in rng.choice(["north", "south"], len(texts))]
    score = np.array([("efund" in t) + ("not" in t) - ("great" in t) for t in texts]) + (amount > 2)
    return amount.tolist(), shops, (score > 0).astype(int).tolist()


def fitted(step: Any, last: Any = None) -> Any:
    """Return a pipeline that reads one text, fitted on `mails`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = mails()
    return make_pipeline(step, last if last is not None else LogisticRegression()).fit(
        texts, amounts(texts)[2]
    )


def vectorizers() -> dict[str, Any]:
    """Give every vectorizer, and what is usual behind one."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import (
        CountVectorizer,
        HashingVectorizer,
        TfidfTransformer,
        TfidfVectorizer,
    )
    from sklearn.feature_selection import SelectKBest, chi2
    from sklearn.pipeline import FeatureUnion, make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    return {
        "tf-idf": TfidfVectorizer(),
        "everything": TfidfVectorizer(
            ngram_range=(1, 3),
            sublinear_tf=True,
            stop_words=["the", "not"],
            strip_accents="unicode",
            min_df=2,
        ),
        "english": TfidfVectorizer(stop_words="english", norm="l1", use_idf=False),
        "as it stands": CountVectorizer(lowercase=False, token_pattern=r"[\w'-]+", binary=True),
        "ascii": TfidfVectorizer(strip_accents="ascii", ngram_range=(2, 2)),
        "single characters": CountVectorizer(token_pattern=r"(?u)\b\w+\b", vocabulary=["a", "refund", "é"]),
        "characters": TfidfVectorizer(analyzer="char", ngram_range=(1, 3)),
        "inside words": CountVectorizer(analyzer="char_wb", ngram_range=(2, 4)),
        "long parts": TfidfVectorizer(analyzer="char_wb", ngram_range=(5, 9), norm=None),
        "hash": HashingVectorizer(),
        "hash of counts": HashingVectorizer(n_features=64, norm=None, alternate_sign=False),
        "hash of characters": HashingVectorizer(
            n_features=300, analyzer="char_wb", ngram_range=(1, 5), norm="l1"
        ),
        "hash, binary": HashingVectorizer(n_features=16, binary=True),
        "hash and idf": make_pipeline(
            HashingVectorizer(n_features=256, alternate_sign=False), TfidfTransformer()
        ),
        "in two steps": make_pipeline(CountVectorizer(), TfidfTransformer(sublinear_tf=True)),
        "in three steps": make_pipeline(CountVectorizer(), TfidfTransformer(norm=None), MaxAbsScaler()),
        "two": FeatureUnion(
            [("words", TfidfVectorizer()), ("parts", TfidfVectorizer(analyzer="char", ngram_range=(2, 3)))]
        ),
        "reduced": make_pipeline(TfidfVectorizer(), TruncatedSVD(5, random_state=0)),
        "selected": make_pipeline(TfidfVectorizer(), SelectKBest(chi2, k=10)),
    }
