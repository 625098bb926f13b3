from __future__ import annotations

import re

import numpy as np
import pytest
from pg_distill.errors import LimitExceeded
from pg_distill.students import expression
from student_rows import make, transfer


def depth(text: str) -> int:
    levels = np.cumsum([{"(": 1, ")": -1}.get(c, 0) for c in text])
    assert levels[-1] == 0
    return int(levels.max())


def test_sums_are_balanced() -> None:
    terms = [f"a{i}" for i in range(1000)]
    text = expression.balanced_sum(terms)
    assert re.findall(r"a\d+", text) == terms
    assert depth(text) <= 10
    assert expression.balanced_sum([]) == "0"


def test_literals_read_back_the_same() -> None:
    for value in [0.1, -1e300, 5e-324, 1 / 3, 7.0, float("inf"), float("-inf")]:
        text = expression.literal(value).removesuffix("::float").strip("'")
        assert float(text.replace("Infinity", "inf")) == value
    assert expression.literal(float("nan")) == "'NaN'::float"


def test_choose_finds_every_value_in_few_comparisons() -> None:
    results = {f"v{i:03}": i for i in range(500)}
    text = expression.choose("c", results, -1, -1)
    assert all(f"'{value}' THEN {code} " in text for value, code in results.items())
    assert text.count("CASE c ") * expression.MAX_CHAIN >= 500
    assert "IS NULL" not in text
    assert expression.choose("c", {}, 3, 4) == "CASE WHEN c IS NULL THEN 4 ELSE 3 END"


def test_a_large_student_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    students = [
        make("boosted", "binary", rounds=10).fit(transfer(1000, "binary"), transfer(100, "binary", 1)),
        make("linear", "binary", bins=0).fit(transfer(1000, "binary"), transfer(100, "binary", 1)),
        make("mlp", "binary", hidden=[16], epochs=1).fit(transfer(500, "binary"), transfer(100, "binary", 1)),
    ]
    for student in students:
        assert len(student.to_sql()) < expression.MAX_BYTES
    monkeypatch.setattr(expression, "MAX_BYTES", 500)
    for student in students:
        with pytest.raises(LimitExceeded):
            student.to_sql()
