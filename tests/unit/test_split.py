"""A split depends on the seed, and a sample's digest on everything that a figure depends on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pg_distill.frame import Column, Feature, Frame, Strings
from pg_distill.rows.canonical import SqlType
from pg_distill.rows.labels import Label
from pg_distill.rows.sample import Sample
from pg_distill.rows.split import FIT, LEFT_OUT, TEST, _group_hashes, split_by_hash


@pytest.mark.parametrize(
    "groups", [np.repeat(np.arange(300.0), 4), Strings.from_values([f"g{i // 4}" for i in range(1200)])]
)
def test_another_seed_splits_groups_otherwise(groups: Column) -> None:
    splits = [split_by_hash(_group_hashes(groups, seed)) for seed in (1, 1, 2)]
    assert np.array_equal(splits[0], splits[1])
    assert 0.3 < (splits[0] == splits[2]).mean() < 0.7
    for split in splits:
        assert (split.reshape(300, 4) == split[::4, None]).all()
        assert 0.5 < (split == FIT).mean() < 0.8


def test_digest_changes_with_split_label_and_weight() -> None:
    rows = 40
    frame = Frame((Feature("x", "number"),), {"x": np.arange(float(rows))})

    def label(*names: str) -> Label:
        texts = Strings.from_values(names * (rows // 2))
        return Label(texts, texts, SqlType("text", "pg_catalog.text", "text"))

    split = np.where(np.arange(rows) < 30, FIT, TEST).astype(np.uint8)
    sample = Sample(frame, label("a", "b"), {"w": np.ones(rows)}, np.arange(rows), split, rows, None)
    changed = [
        replace(sample, label=label("b", "a")),
        replace(sample, label=label("a", "c")),
        replace(sample, label=None),
        replace(sample, extra={"w": np.full(rows, 2.0)}),
        replace(sample, split=split[::-1]),
        replace(sample, hashes=np.arange(rows) + 1),
    ]
    assert len({s.digest for s in (sample, *changed)}) == 7
    assert replace(sample, label=label("a", "b")).digest == sample.digest


def test_the_first_rows_of_each_split_are_kept() -> None:
    split = np.array([FIT, TEST, FIT, TEST, FIT, LEFT_OUT], np.uint8)
    frame = Frame((Feature("x", "number"),), {"x": np.arange(6.0)})
    sample = Sample(frame, None, {}, np.arange(6), split, 6, None)
    kept = sample.keep_first({"fit": 2, "select": 0, "test": 1, "unlabelled": 0})
    assert kept.split.tolist() == [FIT, TEST, FIT, LEFT_OUT, LEFT_OUT, LEFT_OUT]
    assert sample.count(FIT) == 3
