"""What words have in common: parts and vectors teach rare words, and what is served is one effect an n-gram."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pg_distill.frame import Feature, Frame, Strings
from pg_distill.onnx_model.tokens import Tokeniser
from pg_distill.students import word_features
from pg_distill.students.transfer_set import TransferSet
from pg_distill.students.word_features import Widened, fold, make_features, vectors_of
from student_rows import difference, make


def forget() -> None:
    for known in (word_features._static, word_features.vector_words):
        known.cache_clear()


@pytest.fixture(autouse=True)
def _no_vectors(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(word_features, "find_spec", lambda name: None)
    forget()
    yield
    forget()


def rows(texts: list[str], score: Any) -> TransferSet:
    frame = Frame((Feature("body", "text"),), {"body": Strings.from_values(texts)})
    logits = np.column_stack([-np.asarray(score), np.asarray(score)])
    return TransferSet(frame, logits, None, None, np.zeros(len(texts), np.uint8))


def inflected(n: int, seed: int) -> TransferSet:
    """Texts whose mood is in the stems of words, each of which has hundreds of forms."""
    rng = np.random.default_rng(seed)
    texts, score = [], []
    for _ in range(n):
        mood = rng.integers(2)
        stems = ("wonder", "delight", "brillian") if mood else ("terribl", "disappoin", "dreadfu")
        endings = ["".join(rng.choice(list("aeiou"), 3)) for _ in range(2)]
        noise = [f"{rng.choice(['xq', 'zp', 'kv'])}{rng.integers(1000)}" for _ in range(6)]
        words = [f"{rng.choice(stems)}{ending}" for ending in endings] + noise
        texts.append(" ".join(rng.permutation(words)))
        score.append(2.0 if mood else -2.0)
    return rows(texts, score)


def test_rare_words_learn_from_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data, select, test = inflected(500, 0), inflected(150, 1), inflected(400, 2)

    def accuracy() -> float:
        student = make("linear", "binary", bins=0, alpha=1.0).fit(data, select)
        assert difference(student, test.frame.take(np.arange(50))) < 1e-6
        assert student.describe()["word_vectors"] is False
        return float(np.mean(student.predict_logits(test.frame).argmax(1) == test.teacher_logits.argmax(1)))  # type: ignore[union-attr]

    with_parts = accuracy()
    monkeypatch.setattr(word_features, "LEAST_WORDS", 10**9)
    assert with_parts > accuracy() + 0.03


def test_folded_effects_are_those_of_the_wide_matrix() -> None:
    from scipy.sparse import csr_array

    tokeniser = Tokeniser((("running",), ("runner",), ("runs",), ("cat",)), ",", ((0, 3),))
    rng = np.random.default_rng(0)
    matrix = csr_array(rng.random((20, tokeniser.size)))
    features, has_vectors = make_features(tokeniser, matrix)
    assert not has_vectors and len(features) == 1
    assert (
        features[0].toarray()[3:].any() is np.False_
    )  # a cat has no part in common, marks and pairs have none at all
    wide = Widened(matrix, features)
    weights = rng.normal(size=(tokeniser.size + features[0].shape[1], 2))
    dense = np.concatenate([matrix.toarray(), matrix.toarray() @ features[0].toarray()], axis=1)
    np.testing.assert_allclose(wide @ weights, dense @ weights)
    np.testing.assert_allclose(matrix @ fold(features, weights), dense @ weights)
    values = rng.normal(size=(20, 2))
    np.testing.assert_allclose(wide.transposed(values), dense.T @ values)


def install(folder: Path, words: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a package of word vectors in the files and the format of the real one, and let it be found."""
    tokenizers = pytest.importorskip("tokenizers")
    package = folder / "wordllama"
    (package / "weights").mkdir(parents=True)
    (package / "tokenizers").mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('its code is not run')")
    vocabulary = {word: i for i, word in enumerate(["<unk>", *words])}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")
    tokenizers.Tokenizer(model).save(str(package / word_features.TOKENIZER))
    table = np.array([[0.0] * len(next(iter(words.values()))), *words.values()], "<f2")
    header = json.dumps(
        {"embedding.weight": {"dtype": "F16", "shape": table.shape, "data_offsets": [0, table.nbytes]}}
    ).encode()
    (package / word_features.VECTORS).write_bytes(
        len(header).to_bytes(8, "little") + header + table.tobytes()
    )
    monkeypatch.undo()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    forget()


def test_rare_words_learn_from_words_of_like_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = list({"".join(rng.choice(letters, 9)) for _ in range(600)})
    mood = rng.normal(size=600)
    vectors = np.column_stack([mood, rng.normal(size=(600, 7))])

    def sample(n: int, seed: int) -> TransferSet:
        draw = np.random.default_rng(seed).integers(0, 600, (n, 5))
        return rows([" ".join(words[i] for i in row) for row in draw], mood[draw].sum(axis=1))

    data, select, test = sample(400, 1), sample(150, 2), sample(500, 3)

    def accuracy() -> tuple[float, Any]:
        student = make("linear", "binary", bins=0, alpha=1.0).fit(data, select)
        assert difference(student, test.frame.take(np.arange(50))) < 1e-6
        right = student.predict_logits(test.frame).argmax(1) == test.teacher_logits.argmax(1)  # type: ignore[union-attr]
        return float(right.mean()), student.describe()["word_vectors"]

    alone, without = accuracy()
    install(tmp_path, dict(zip(words, vectors.tolist(), strict=True)), monkeypatch)
    together, found = accuracy()
    assert (without, found) == (False, True)
    assert together > alone + 0.05


@pytest.mark.parametrize("family", ["linear", "mlp", "boosted"])
def test_words_that_no_training_text_has_are_read_by_their_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    rng = np.random.default_rng(0)
    words = list({"".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 9)) for _ in range(400)})
    mood = rng.normal(size=400)
    vectors = np.column_stack([mood, rng.normal(size=(400, 3))])

    def sample(n: int, seed: int, among: slice) -> TransferSet:
        draw = np.random.default_rng(seed).choice(np.arange(400)[among], (n, 5))
        return rows([" ".join(words[i] for i in row) for row in draw], mood[draw].sum(axis=1))

    data, select = sample(400, 1, slice(200)), sample(150, 2, slice(200))
    unseen = sample(300, 3, slice(200, 400))
    install(tmp_path, dict(zip(words, vectors.tolist(), strict=True)), monkeypatch)
    student = make(family, "binary", alpha=1.0, **({"bins": 0} if family == "linear" else {}))
    student = student.fit(data, select)
    right = student.predict_logits(unseen.frame).argmax(1) == unseen.teacher_logits.argmax(1)  # type: ignore[union-attr]
    assert right.mean() > 0.7
    assert difference(student, unseen.frame.take(np.arange(50))) < 1e-5


def test_many_texts_and_few_have_the_same_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.sparse import csr_array

    install(tmp_path, {"cat": [1.0, 2.0], "dog": [0.5, -1.0], "sun": [2.0, 0.0]}, monkeypatch)
    tokeniser = Tokeniser((("cat",), ("dog",), ("sun",), ("dogs",), ("suns",)), "!", ((0, 1),))
    rng = np.random.default_rng(0)
    for texts in (3, 30):  # fewer than words, and more
        matrix = csr_array(rng.random((texts, tokeniser.size)))
        features, has_vectors = make_features(tokeniser, matrix)
        assert has_vectors and features[-1].shape == (5, 2)
        wide = Widened(matrix, features)
        kinds = [part.toarray() if hasattr(part, "tocsr") else part for part in features]
        kinds = [np.pad(part, ((0, tokeniser.size - len(part)), (0, 0))) for part in kinds]
        dense = np.concatenate([matrix.toarray(), *(matrix.toarray() @ part for part in kinds)], axis=1)
        weights, values = rng.normal(size=(dense.shape[1], 2)), rng.normal(size=(texts, 2))
        before = weights.copy()
        np.testing.assert_allclose(wide @ weights, dense @ weights, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(matrix @ fold(features, weights), dense @ weights, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(wide.transposed(values), dense.T @ values, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(weights, before)


def test_words_with_a_vector_are_those_that_begin_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert word_features.vector_words() is None
    tokens = [
        "\u2581The",
        "\u2581the",
        "ing",
        "\u2581a",
        "\u2581don't",
        "\u258142",
        "\u2581été",
        "\u2581日本",
        "<s>",
    ]
    install(tmp_path, {token: [1.0] for token in tokens}, monkeypatch)
    assert word_features.vector_words() == ("the", "été")
    # Where no token is marked, all are words.
    install(tmp_path / "other", {"House": [1.0], "cat": [1.0], "x": [1.0], "c3": [1.0]}, monkeypatch)
    assert word_features.vector_words() == ("house", "cat")


@pytest.mark.parametrize("fault", ["cut", "other type", "no file", "no tokenizer"])
def test_a_package_of_another_kind_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    install(tmp_path, {"a": [1.0, 2.0], "b": [0.5, 1.0]}, monkeypatch)
    found = vectors_of(["a", "b", "c"])
    assert found is not None
    np.testing.assert_array_equal(found, [[1, 2], [0.5, 1], [0, 0]])
    file = tmp_path / "wordllama" / word_features.VECTORS
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-2])
    elif fault == "other type":
        file.write_bytes(file.read_bytes().replace(b"F16", b"I16"))
    elif fault == "no file":
        file.unlink()
    else:
        (tmp_path / "wordllama" / word_features.TOKENIZER).write_text("{}")
    forget()
    assert vectors_of(["a"]) is None
