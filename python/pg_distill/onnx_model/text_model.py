"""A transformer as a database serves it: one text in, a prediction out, with the interface of `session.Model`.

One text is one run. Graphs in int8 scale their numbers by all that a batch holds, so that a label would depend on its
neighbours; and texts of different lengths need padding, which other graphs let through. What a batch would save is little:
by the runtime a text of 16 tokens or more takes as long alone as among others, within some 20 %.

The library of the tokenizer is imported only where a transformer is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from pg_distill.errors import (
    FeatureNotSupported,
    InvalidData,
    UndefinedColumn,
)
from pg_distill.frame import FloatArray, Frame, Strings
from pg_distill.onnx_model.cut import prune
from pg_distill.onnx_model.session import (
    BATCH_ROWS,
    NO_GUARD,
    RUN_BYTES,
    Guard,
    Model,
    first_line,
    open_session,
    runtime_errors,
)
from pg_distill.onnx_model.signature import Signature
from pg_distill.onnx_model.tokenizer import Tokens, metadata
from pg_distill.onnx_model.values import decode, wrong_type
from pg_distill.rows import canonical

__all__ = ["TextModel", "open_model", "run_texts", "tokens_of"]


def open_model(
    artifact: bytes,
    signature: Signature,
    *,
    types: Mapping[str, str] | None = None,
    threads: int = 1,
    run_bytes: int = RUN_BYTES,
    guard: Guard = NO_GUARD,
) -> Model | TextModel:
    """Open a file of either kind, as `session.Model` does."""
    kind = Model if signature.max_tokens is None else TextModel
    return kind(artifact, signature, types=types, threads=threads, run_bytes=run_bytes, guard=guard)


def tokens_of(artifact: bytes, signature: Signature) -> Tokens:
    """Open the tokenizer that an approved file carries; InvalidData where it carries none."""
    tokenizer = metadata(artifact)
    if tokenizer is None or signature.max_tokens is None:
        raise InvalidData("model has no tokenizer")
    return Tokens(tokenizer, signature.max_tokens)


def run_texts(
    artifact: bytes, signature: Signature, frame: Frame, names: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors ``names``, outputs or not, of the texts of ``frame``, run one by one."""
    tokens = tokens_of(artifact, signature)
    session = open_session(prune(artifact, names))
    inputs = {spec.name: spec.element for spec in signature.inputs}
    try:
        parts = [
            session.run(list(names), tokens.feed(text, inputs))
            for text in frame.strings(signature.features[0].name).to_objects("")
        ]
    except runtime_errors as error:
        raise InvalidData("model fails on the rows given", detail=first_line(error)) from error
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


class TextModel:
    """A session, and the tokenizer before it.

    Threads may share it.

    Parameters
    ----------
    artifact
        The ONNX file's bytes, its tokenizer among the metadata.
    signature
        Of one feature, a string, and ``max_tokens``.
    """

    words = 0
    is_slow = True  # a guard costs a hundredth of what a transformer takes

    def __init__(
        self,
        artifact: bytes,
        signature: Signature,
        *,
        types: Mapping[str, str] | None = None,
        threads: int = 1,
        run_bytes: int = RUN_BYTES,
        guard: Guard = NO_GUARD,
        tokens: Tokens | None = None,
    ) -> None:
        self.signature = signature
        if signature.cost is not None:
            signature.cost.require(run_bytes, "text")
        self._guard = guard
        guard.check()
        self._tokens = tokens_of(artifact, signature) if tokens is None else tokens
        guard.check()
        self._inputs = {spec.name: spec.element for spec in signature.inputs}
        self._outputs = [signature.output.name]
        self.session = open_session(prune(artifact, self._outputs), threads=threads, guard=guard)
        self._options = ort.RunOptions()
        self._options.log_severity_level = 4
        self._name = signature.features[0].name
        self._read = canonical.json_readers(signature.features, types or {}).get(self._name)
        self.predict_number: Callable[..., float] = lambda *row: float(self.run_mixed(*row)[-1])
        self.predict_vector: Callable[..., float] | None = None
        self.predict_position: Callable[..., int] = lambda *row: int(np.argmax(self.run_mixed(*row)))

    def _stop(self, flag: bool) -> None:
        self._options.terminate = flag

    def terminate(self) -> None:
        """End the run that another thread is in; the model is of no use after that."""
        self._options.terminate = True

    # -- one text

    def run_text(self, text: str | None, *, logits: bool = False) -> FloatArray:
        """Predict one text, NULL as the empty one; (K,) probabilities or logits, or (1,) the value.

        Raises
        ------
        InvalidData
            Where the tokenizer or the model fails on it.
        """
        return self.run_feed(self._tokens.feed(text or "", self._inputs), logits=logits)

    def run_feed(self, feed: dict[str, npt.NDArray[Any]], *, logits: bool = False) -> FloatArray:
        """Predict the tokens of one text: see `run_text`."""
        try:
            [raw] = self._guard.run(partial(self.session.run, self._outputs, feed, self._options), self._stop)
        except runtime_errors as error:
            raise InvalidData("model failed on a text", detail=first_line(error)) from error
        return cast(FloatArray, decode(self.signature, np.asarray(raw), 1, logits=logits)[0])

    def run_numbers(self, values: Sequence[Any]) -> FloatArray:
        """Raise FeatureNotSupported: a text is no number."""
        raise FeatureNotSupported(
            f'feature "{self._name}" is a string, which an array of numbers cannot hold',
            hint="Pass numbers and strings as two arrays, or the row as jsonb.",
        )

    def run_array(self, values: npt.NDArray[Any], batch: int = BATCH_ROWS) -> FloatArray:
        """Raise as `run_numbers`."""
        return self.run_numbers([])

    def run_mixed(self, numbers: Sequence[Any], strings: Sequence[Any] | None = None) -> FloatArray:
        """Predict one row given as its numbers, none, and its strings, one."""
        if strings is None:
            return self.run_numbers(numbers)
        [value] = self.signature.row(numbers, strings)
        return self.run_text(self._text(value))

    def run_parts(
        self, numbers: Sequence[Any], strings: Sequence[Any], vectors: Sequence[bytes | None]
    ) -> FloatArray:
        """Predict one row given as numbers, strings and vectors: one string, and nothing else."""
        if vectors:
            raise InvalidData(f"expected no vectors, not {len(vectors)}")
        return self.run_mixed(numbers, strings)

    def run_row(self, row: Mapping[str, Any]) -> FloatArray:
        """Predict one row given by feature name: a JSON object's values; other keys are ignored."""
        try:
            value = row[self._name]
        except KeyError:
            raise UndefinedColumn(f'feature "{self._name}" is missing from the row') from None
        return self.run_text(self._text(value if self._read is None else self._read(value)))

    def _text(self, value: Any) -> str | None:
        if value is not None and not isinstance(value, str):
            raise wrong_type(self.signature.features[0], type(value).__name__)
        return value

    # -- many

    def run_frame(self, frame: Frame, batch: int = BATCH_ROWS, *, logits: bool = False) -> FloatArray:
        """Predict the rows of ``frame``, whose column is found by name: each text that it has once.

        Returns
        -------
        (n, K) probabilities or (n, 1) values; with ``logits``, the logits of a graph that gives them.
        """
        if self._name not in {feature.name for feature in frame.features}:
            raise UndefinedColumn(f'column "{self._name}" does not exist')
        column = frame.columns[self._name]
        if not isinstance(column, Strings):
            raise wrong_type(self.signature.features[0], "number")
        texts: list[str] = column.to_objects("").tolist()
        found: dict[str, FloatArray] = {}
        out = np.empty((len(texts), self.signature.width), np.float64)
        for place, text in enumerate(texts):
            if text not in found:
                found[text] = self.run_text(text, logits=logits)
            out[place] = found[text]
        return out
