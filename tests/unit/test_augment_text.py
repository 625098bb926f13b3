"""Texts that are made out of real ones: valid, new, the same for the same seed, and of use to a student."""

from __future__ import annotations

import random
import time
from itertools import accumulate

import numpy as np
import pytest
from pg_distill.frame import Feature, Frame, Strings
from pg_distill.search.budget import Budget
from pg_distill.search.problem import Config, Problem
from pg_distill.search.recipes import TEXT_TIMES, Recipes
from pg_distill.search.rows import Rows
from pg_distill.students.augment import Augmenter
from pg_distill.students.augment_text import MOST_CHARACTERS, MOST_SPAN, TEXT_KINDS
from pg_distill.students.transfer_set import REAL, TransferSet

WORDS = [
    f"{a}{b}" for a in ("ba", "co", "di", "fu", "ge") for b in ("lan", "mor", "nis", "ret", "sul", "tas")
]


def texts(n: int, *, seed: int = 0, longest: int = 20) -> list[str | None]:
    draw = random.Random(seed)
    return [
        None if i % 17 == 5 else " ".join(draw.choices(WORDS, k=draw.randint(3, longest))) for i in range(n)
    ]


def frame_of(columns: dict[str, list[str | None]], numbers: int = 0) -> Frame:
    features = [Feature(name, "text") for name in columns]
    values = {name: Strings.from_values(column) for name, column in columns.items()}
    if numbers:
        return Frame((*features, Feature("x", "number")), {**values, "x": np.arange(float(numbers))})
    return Frame(tuple(features), values)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_made_texts_are_new_and_of_words_that_there_are(kind: str) -> None:
    body = texts(300)
    frame = frame_of({"body": body}, numbers=300)
    made, origin = Augmenter(frame).make_from(kind, 1000, np.random.default_rng(0))
    assert 700 < len(made) <= 1000
    new = made.strings("body").to_objects()
    assert (made.number("x") == origin).all()  # all else is the real row's
    for text, row in zip(new, origin.tolist(), strict=True):
        real = body[row]
        assert real is not None  # a NULL stays one, and is then no new row
        assert text != real
        assert text.strip()
        assert set(text.split()) <= set(WORDS)
        if kind == "word_dropout":
            rest = iter(real.split())
            assert all(word in rest for word in text.split())  # in the order that they had
        else:
            old, words = real.split(), text.split()
            before = sum(accumulate((a == b for a, b in zip(words, old, strict=False)), min))
            after = sum(accumulate((a == b for a, b in zip(words[::-1], old[::-1], strict=False)), min))
            assert before + after >= (1 - MOST_SPAN) * len(old) - 1


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_the_same_seed_makes_the_same_texts(kind: str) -> None:
    frame = frame_of({"body": texts(200), "title": texts(200, seed=1, longest=5)})

    def made(seed: int) -> list[tuple[str | None, ...]]:
        rows = Augmenter(frame).make(kind, 300, np.random.default_rng(seed))
        return list(zip(*(rows.strings(name).to_objects() for name in rows.text_names), strict=True))

    assert made(0) == made(0)
    assert made(0) != made(1)


def test_a_span_comes_from_a_text_that_is_like_it() -> None:
    fruit, metal = ["apple pear plum fig quince lime", "iron zinc lead tin copper gold"]
    draw = random.Random(0)
    body = [" ".join(draw.sample(words.split(), 5)) for words in [fruit, metal] * 60]
    made = Augmenter(frame_of({"body": list(body)})).make("span_exchange", 500, np.random.default_rng(0))
    mixed = [
        bool(set(text.split()) & set(fruit.split())) and bool(set(text.split()) & set(metal.split()))
        for text in made.strings("body").to_objects()
    ]
    assert len(made) > 200
    assert np.mean(mixed) < 0.05


@pytest.mark.parametrize("kind", TEXT_KINDS)
@pytest.mark.parametrize(
    "column",
    [
        ["", None, "one", " ", "\t\n"],
        [
            "今天天气很好我们去公园散步吧" * 3,
            "他昨天买了一本新书给他的妹妹看" * 2,
            "我喜欢在下雨的时候喝一杯热茶" * 2,
        ],
        ["👍🏽 good 👍🏽 day 👨‍👩‍👧 yes", "naïve café déjà vu ﬁn", "no\x0bblank\u2003wide\u00a0hard blank"],
        ["word " * (MOST_CHARACTERS // 4), "other " * (MOST_CHARACTERS // 4)],
    ],
)
def test_any_text_is_taken(kind: str, column: list[str | None]) -> None:
    augmenter = Augmenter(frame_of({"body": column}))
    made = augmenter.make(kind, 60, np.random.default_rng(0))
    known = set("".join(text or "" for text in column)) | {" "}
    assert all(set(text) <= known for text in made.strings("body").to_objects())
    assert bool(len(made)) == (column[0] != "")  # nothing is made of single words and of blanks


def test_no_text_no_rows_and_none_after_the_deadline() -> None:
    number = Frame((Feature("x", "number"),), {"x": np.arange(9.0)})
    body = Augmenter(frame_of({"body": texts(100)}))
    for kind in TEXT_KINDS:
        assert len(Augmenter(number).make(kind, 10, np.random.default_rng(0))) == 0
        assert len(body.make(kind, 10, np.random.default_rng(0), deadline=time.monotonic() - 1.0)) == 0


@pytest.mark.parametrize("numbers", [0, 400])
@pytest.mark.parametrize("family", ["linear", "mlp"])
def test_recipes_have_made_texts_where_a_teacher_can_label_them(family: str, numbers: int) -> None:
    frame = frame_of({"body": texts(400)}, numbers=numbers)

    def label(rows: Frame) -> np.ndarray:
        score = np.array(
            [(t or "").count("balan") - (t or "").count("gesul") for t in rows.strings("body").to_objects()]
        )
        return np.stack([-score, score], axis=1).astype(np.float64)

    data = TransferSet(frame, label(frame), label(frame).argmax(axis=1), None, np.full(400, REAL, np.uint8))
    problem = Problem("binary", ("no", "yes"), "accuracy", data, data.take(np.arange(100)))
    config = Config(target_latency_ms=1.0, time_budget_s=20.0, threads=1)
    rows = Rows(problem, config, label, Budget(60.0))
    recipes = [
        r
        for r in Recipes(config, rows, has_label=True).to_screen(family)
        if dict(r.augment).keys() & {*TEXT_KINDS}
    ]
    assert len(recipes) >= 1
    taught = rows.transfer(recipes[0])
    made = taught.take(np.flatnonzero(taught.source != REAL))
    assert 0.5 * TEXT_TIMES * 400 < len(made) <= TEXT_TIMES * 400
    np.testing.assert_array_equal(
        made.teacher_logits, label(made.frame)
    )  # the teacher's, of the text as it was made
    logged = Rows(problem, config, None, Budget(60.0))
    assert logged.kinds() == ()  # a log answers for no other text
