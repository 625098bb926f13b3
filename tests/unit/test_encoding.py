from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from pg_distill.frame import Feature, Frame, Strings
from pg_distill.onnx_model.signature import NULL_STRING
from pg_distill.students import encoding
from pg_distill.students.encoding import CategoryEncoder, look_up
from pg_distill.students.export import Graph, Numbers

COLUMN = Strings.from_values(["b"] * 5 + ["a"] * 3 + ["rare"] * 2 + [None] * 2 + [""] * 4)


def test_rare_unseen_and_null_have_codes_of_their_own() -> None:
    encoder = CategoryEncoder.fit(COLUMN, min_count=3)
    assert encoder.values == ("", "a", "b")
    assert encoder.counts.tolist() == [2, 2, 4, 3, 5]
    other = Strings.from_values(["a", "unseen", None, "", "rare", "b"])
    assert encoder.codes(other).tolist() == [3, 0, 1, 2, 0, 4]


def test_the_most_frequent_values_stay() -> None:
    encoder = CategoryEncoder.fit(COLUMN, min_count=1, max_categories=2)
    assert encoder.values == ("", "b")


def test_a_column_without_any_value() -> None:
    encoder = CategoryEncoder.fit(Strings.from_values([None, None]))
    assert encoder.values == ()
    assert encoder.codes(Strings.from_values([None, "x"])).tolist() == [1, 0]


def test_the_sentinel_as_a_value_is_null() -> None:
    column = Strings.from_values([NULL_STRING] * 5 + ["a"] * 5)
    encoder = CategoryEncoder.fit(column)
    assert encoder.values == ("a",)
    assert encoder.codes(column).tolist() == [1] * 5 + [2] * 5


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("limit", [encoding.MAX_TABLE, 0], ids=["one table", "a node each"])
def test_the_graph_agrees_with_numpy(columns: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_TABLE", limit)
    rng = np.random.default_rng(columns)
    words = ["", "a", "b", "c", "é", "'", "\\", "a b", None]
    # Columns share words, and each knows words that another does not.
    known = [
        Strings.from_values([words[i] for i in rng.integers(position, len(words), 60)])
        for position in range(columns)
    ]
    names = [f"s{i}" for i in range(columns)]
    frame = Frame(tuple(Feature(n, "string") for n in names), dict(zip(names, known, strict=True)))
    encoders = [CategoryEncoder.fit(c) for c in known]
    tables = [rng.normal(size=e.size) for e in encoders]
    tables[0][CategoryEncoder.NULL] = np.nan
    graph = Graph(Numbers.fit(frame))
    look_up(graph, encoders, tables)
    graph.nodes[-1].output[0] = "value"
    artifact = graph.close("regression", columns, {})
    rows = [[words[i] for i in rng.integers(0, len(words), columns)] for _ in range(200)]
    rows += [["unseen"] * columns]
    feed = np.array([[NULL_STRING if v is None else v for v in row] for row in rows], object)
    got = ort.InferenceSession(artifact).run(None, {"strings": feed})[0]
    for j, (encoder, table) in enumerate(zip(encoders, tables, strict=True)):
        expected = table[encoder.codes(Strings.from_values([row[j] for row in rows]))].astype(np.float32)
        np.testing.assert_array_equal(got[:, j], expected)
