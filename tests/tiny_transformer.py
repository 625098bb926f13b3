"""A transformer small enough to be made in a test: its encoder, its tokenizer, and what they say outside the database.

One layer of attention with two heads over a vocabulary of a few hundred words, as Hugging Face exports one: input_ids,
attention_mask and token_type_ids of (batch, sequence). Weights are random: what a classifier on top of it learns is learned from
the words' embeddings.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from bench.minilm import add_head
from onnx import TensorProto, helper, numpy_helper

__all__ = ["WORDS", "Transformer", "classifier", "encoder", "reviews", "tokenizer"]

WIDTH, HEADS, POSITIONS = 32, 2, 64
GOOD = ("great", "wonderful", "lovely", "superb", "moving", "charming", "brilliant", "funny")
BAD = ("awful", "boring", "terrible", "dull", "clumsy", "tedious", "stupid", "ugly")
THINGS = ("film", "plot", "acting", "music", "ending", "dialogue")
_OTHERS = (
    "the",
    "was",
    "and",
    "i",
    "it",
    "but",
    "very",
    "a",
    "of",
    "in",
    "loved",
    "hated",
    "not",
    "un",
    "##ing",
    "##s",
)
WORDS = (*GOOD, *BAD, *THINGS, *_OTHERS)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary() -> dict[str, int]:
    """Return words, letters and marks with their ids."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'"
    tokens = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *WORDS]
    return {token: place for place, token in enumerate(dict.fromkeys(tokens))}


def tokenizer(**changes: Any) -> bytes:
    """Return a tokenizer.json as the library writes that of a BERT, with some of its parts replaced."""
    words = vocabulary()
    special = {token: {"id": token, "ids": [words[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")}
    around: list[dict[str, Any]] = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    parts: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": words[token], "content": token, **flags} for token in SPECIAL],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": around,
            "pair": [*around, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": special,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": words,
        },
    }
    return json.dumps({**parts, **changes}).encode()


def encoder(
    seed: int = 0, positions: int = POSITIONS, names: Sequence[str] = ("attention_mask", "token_type_ids")
) -> onnx.ModelProto:
    """Return the encoder's graph; its output is last_hidden_state."""
    rng = np.random.default_rng(seed)
    size = len(vocabulary())

    def normal(*shape: int, scale: float = 1.0) -> npt.NDArray[np.float32]:
        return (scale * rng.normal(size=shape)).astype(np.float32)

    inner = 2 * WIDTH
    constants: dict[str, npt.NDArray[Any]] = {
        "words": normal(size, WIDTH),
        "places": normal(positions, WIDTH, scale=0.1),
        "kinds": normal(2, WIDTH, scale=0.1),
        **{name: normal(WIDTH, WIDTH, scale=WIDTH**-0.5) for name in ("wq", "wk", "wv", "wo")},
        "w1": normal(WIDTH, inner, scale=WIDTH**-0.5),
        "w2": normal(inner, WIDTH, scale=inner**-0.5),
        "gain": np.ones(WIDTH, np.float32),
        "bias": np.zeros(WIDTH, np.float32),
        "root": np.array((WIDTH / HEADS) ** -0.5, np.float32),
        "half": np.array(0.5, np.float32),
        "one": np.array(1.0, np.float32),
        "root2": np.array(2**-0.5, np.float32),
        "low": np.array(-1e4, np.float32),
        "split": np.array([0, 0, HEADS, WIDTH // HEADS], np.int64),
        "join": np.array([0, 0, WIDTH], np.int64),
        "first": np.array([0], np.int64),
        "second": np.array([1], np.int64),
        "middle": np.array([1, 2], np.int64),
    }
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    add("Gather", ["words", "input_ids"], "embedded")
    add("Shape", ["input_ids"], "shape")
    add("Gather", ["shape", "second"], "length")
    add("Slice", ["places", "first", "length", "first"], "positions")
    found = add("Add", ["embedded", "positions"], "placed")
    if "token_type_ids" in names:
        add("Gather", ["kinds", "token_type_ids"], "kind")
        found = add("Add", [found, "kind"], "kinded")
    add("LayerNormalization", [found, "gain", "bias"], "x", axis=-1)
    for part in "qkv":
        add("MatMul", ["x", f"w{part}"], f"{part}_flat")
        add("Reshape", [f"{part}_flat", "split"], f"{part}_split")
        add("Transpose", [f"{part}_split"], part, perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3])
    add("MatMul", ["q", "k"], "pairs")
    scores = add("Mul", ["pairs", "root"], "scaled")
    if "attention_mask" in names:
        add("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        add("Sub", ["one", "mask"], "unseen")
        add("Mul", ["unseen", "low"], "lowered")
        add("Unsqueeze", ["lowered", "middle"], "masking")
        scores = add("Add", [scores, "masking"], "masked")
    add("Softmax", [scores], "weights", axis=-1)
    add("MatMul", ["weights", "v"], "seen")
    add("Transpose", ["seen"], "seen_back", perm=[0, 2, 1, 3])
    add("Reshape", ["seen_back", "join"], "seen_flat")
    add("MatMul", ["seen_flat", "wo"], "attended")
    add("Add", ["x", "attended"], "residual")
    add("LayerNormalization", ["residual", "gain", "bias"], "y", axis=-1)
    add("MatMul", ["y", "w1"], "wide")
    add("Mul", ["wide", "root2"], "narrowed")
    add("Erf", ["narrowed"], "erf")
    add("Add", ["erf", "one"], "erf_one")
    add("Mul", ["wide", "erf_one"], "twice")
    add("Mul", ["twice", "half"], "gelu")
    add("MatMul", ["gelu", "w2"], "back")
    add("Add", ["y", "back"], "residual_2")
    add("LayerNormalization", ["residual_2", "gain", "bias"], "last_hidden_state", axis=-1)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", *names)
    ]
    output = helper.make_tensor_value_info(
        "last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", WIDTH]
    )
    graph = helper.make_graph(
        nodes, "tiny", inputs, [output], [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@dataclass(frozen=True)
class Transformer:
    """A classifier, and what it says outside the database."""

    artifact: bytes
    tokenizer: bytes
    classes: tuple[str, ...]

    def tokens(self, text: str, max_tokens: int = POSITIONS) -> list[int]:
        """Return a text's token ids, by the library."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer.decode())
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        return list(tokenizer.encode(text).ids)

    def expected(
        self, texts: Sequence[str], max_tokens: int = POSITIONS, output: str = "probabilities"
    ) -> npt.NDArray[np.float64]:
        """Return the output of each text, run alone by onnxruntime: (n, K)."""
        import onnxruntime

        session = onnxruntime.InferenceSession(self.artifact, providers=["CPUExecutionProvider"])
        given = {value.name for value in session.get_inputs()}
        found = []
        for text in texts:
            ids = np.array([self.tokens(text, max_tokens)], np.int64)
            feed: Mapping[str, Any] = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
            }
            found.append(session.run([output], {name: feed[name] for name in given})[0][0])
        return np.array(found, np.float64)

    def logits(self) -> Transformer:
        """Return the same with one output, logits, as Hugging Face exports a sequence classifier."""
        model = onnx.load_from_string(self.artifact)
        head = model.graph.node[-1]
        weights, bias = (
            np.array(next(a.floats for a in head.attribute if a.name == name), np.float32)
            for name in ("coefficients", "intercepts")
        )
        model.graph.node.remove(head)
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(weights.reshape(len(self.classes), -1).T.copy(), "head_matrix"),
                numpy_helper.from_array(bias, "head_bias"),
            ]
        )
        model.graph.node.append(
            helper.make_node("Gemm", ["sentence_embedding", "head_matrix", "head_bias"], ["logits"])
        )
        del model.graph.output[:], model.opset_import[1:]
        model.graph.output.append(
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(self.classes)])
        )
        return replace(self, artifact=model.SerializeToString())

    def quantised(self) -> Transformer:
        """Return the same with products of bytes, whose scale is that of all numbers of a run."""
        from onnxruntime.quantization import quantize_dynamic

        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
            source.write_bytes(self.artifact)
            quantize_dynamic(str(source), str(target))
            return replace(self, artifact=target.read_bytes())


def reviews(
    count: int, seed: int = 0, classes: Sequence[str] = ("bad", "good")
) -> tuple[list[str], list[str]]:
    """Return texts whose words tell their class, and the classes."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(count):
        good = bool(rng.integers(2))
        words = rng.choice(GOOD if good else BAD, 2)
        thing, other = rng.choice(THINGS, 2, replace=False)
        texts.append(f"The {thing} was {words[0]}, and the {other} very {words[1]}.")
        labels.append(classes[int(good)])
    return texts, labels


@cache
def classifier(classes: tuple[str, ...] = ("bad", "good"), positions: int = POSITIONS) -> Transformer:
    """Return the encoder with a logistic regression on the mean of its last layer, fitted on `reviews`."""
    from sklearn.linear_model import LogisticRegression

    model = encoder(positions=positions)
    plain = Transformer(model.SerializeToString(), tokenizer(), classes)
    if len(classes) == 2:
        texts, labels = reviews(200, seed=1, classes=classes)
        fitted = LogisticRegression(C=10.0).fit(_pooled(plain, texts), [classes.index(c) for c in labels])
        coef, intercept = fitted.coef_, fitted.intercept_
    else:
        coef, intercept = np.random.default_rng(2).normal(size=(len(classes), WIDTH)), np.zeros(len(classes))
    add_head(model, "last_hidden_state", coef, intercept, classes)
    return replace(plain, artifact=model.SerializeToString())


def _pooled(plain: Transformer, texts: Sequence[str]) -> npt.NDArray[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(plain.artifact, providers=["CPUExecutionProvider"])
    found = []
    for text in texts:
        ids = np.array([plain.tokens(text)], np.int64)
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        mean = session.run(None, feed)[0][0].mean(axis=0)
        found.append(mean / np.linalg.norm(mean))
    return np.array(found)
