"""Texts as a transformer reads them: the tokenizer that its file carries, run by the ``tokenizers`` library.

The tokenizer.json stands in the ONNX file's metadata, so that the two are one artifact: one digest, one row of the registry,
one file of an export. `attach` puts it there without reading the file: fields of a protocol buffer that follow it belong to it.

Backends import this where a transformer predicts, the trainer's child where it labels. What a tokenizer may consist of is
decided in `tokenizer_rules`, in a child; here it is only opened and run. A text is cut before it is read, so that no call into
the library takes long: the library has no way to be stopped.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pg_distill.errors import InvalidArtifact, InvalidData, InvalidState, LimitExceeded
from pg_distill.onnx_model.protobuf import field, fields

__all__ = [
    "ATTENTION_MASK",
    "CHARACTERS_A_TOKEN",
    "DEFAULT_TOKENS",
    "HELD_A_BYTE",
    "INPUT_IDS",
    "INPUT_NAMES",
    "MAX_TOKENIZER_BYTES",
    "TOKENIZER_KEY",
    "Tokens",
    "attach",
    "check_size",
    "metadata",
]

TOKENIZER_KEY = "pg_distill.tokenizer"
"""The metadata property that holds a transformer's tokenizer.json."""

INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS = "input_ids", "attention_mask", "token_type_ids"
INPUT_NAMES = frozenset({INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS})
"""The inputs that a transformer may have, by the names of Hugging Face's exports; the first it must have."""

DEFAULT_TOKENS = 256  # of a text, unless told otherwise
CHARACTERS_A_TOKEN = 32  # of a text are read, for each token that it may have; words have some five
HELD_A_BYTE = 20  # bytes that the library holds, for each of tokenizer.json: 9 to 24 were seen
MAX_TOKENIZER_BYTES = 32 << 20  # XLM-RoBERTa's, with 250,000 tokens, has 17 MB


class Tokens:
    """A tokenizer, opened.

    Parameters
    ----------
    tokenizer
        The text of tokenizer.json; `tokenizer_rules` has passed it.
    max_tokens
        The most tokens of a text, special ones included: it is cut behind them.

    Raises
    ------
    InvalidState
        The library is not installed here.
    InvalidArtifact
        The library cannot read the file.
    """

    def __init__(self, tokenizer: str, max_tokens: int) -> None:
        try:
            library: Any = importlib.import_module("tokenizers")
        except ImportError as error:
            raise InvalidState(
                "the Python library tokenizers, which transformers need, is not installed on the server",
                hint="Run make install on the server, or install pg_distill's extra text there.",
            ) from error
        self.max_tokens = max_tokens
        self._characters = CHARACTERS_A_TOKEN * max_tokens
        try:
            self._tokenizer = library.Tokenizer.from_str(tokenizer)
            cut = self._tokenizer.truncation or {}
            padding = self._tokenizer.padding or {}
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(
                max_tokens, direction=str(cut.get("direction", "right")).lower()
            )
        except BaseException as error:
            raise _translated(
                error, InvalidArtifact("tokenizer cannot be read", detail=_line(error))
            ) from error
        self._encode = self._tokenizer.encode
        self._nothing = int(padding.get("pad_id", 0))

    def read(self, text: str) -> tuple[Sequence[int], Sequence[int]]:
        """Return a text's token ids and their types; a text that has no tokens is one token, that of padding.

        Raises
        ------
        InvalidData
            The library fails on it.
        """
        try:
            found = self._encode(text[: self._characters])
            ids, types = found.ids, found.type_ids
        except BaseException as error:
            raise _translated(
                error, InvalidData("tokenizer failed on a text", detail=_line(error))
            ) from error
        if len(ids) > self.max_tokens:
            raise InvalidData(f"tokenizer gives {len(ids)} tokens, limit is {self.max_tokens}")
        return (ids, types) if len(ids) else ([self._nothing], [0])

    def count_ids(self) -> int:
        """Return one more than the largest id that it gives; this goes through the whole vocabulary."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        return max([*ids, self._nothing], default=0) + 1

    def feed(self, text: str, inputs: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
        """Return what the graph's ``inputs``, by name with the type of each, are for a text: arrays of (1, tokens)."""
        ids, types = self.read(text)
        return self.arrays(ids, types, inputs)

    @staticmethod
    def arrays(
        ids: Sequence[int], types: Sequence[int], inputs: Mapping[str, str]
    ) -> dict[str, npt.NDArray[Any]]:
        """Return what ``inputs`` are for the tokens of one text."""
        values: dict[str, Any] = {INPUT_IDS: ids, ATTENTION_MASK: [1] * len(ids)}
        return {name: np.array([values.get(name, types)], element) for name, element in inputs.items()}


def _line(error: BaseException) -> str:
    """Return the first line of what the library says as a sentence."""
    text = (str(error).splitlines() or [type(error).__name__])[0].strip()[:300]
    return text if text.endswith(".") else text + "."


def _translated(error: BaseException, ours: Exception) -> BaseException:
    """Return ``ours`` for an error of the library; a panic of Rust is none of Python's Exceptions."""
    if isinstance(error, MemoryError):
        return error
    return ours if isinstance(error, Exception) or type(error).__name__ == "PanicException" else error


# -- in the file


def check_size(tokenizer: bytes) -> None:
    """Raise LimitExceeded where a tokenizer is larger than any is read."""
    if len(tokenizer) > MAX_TOKENIZER_BYTES:
        raise LimitExceeded(f"tokenizer has {len(tokenizer)} bytes, limit is {MAX_TOKENIZER_BYTES}")


_METADATA = 14  # ModelProto.metadata_props, of StringStringEntryProto: key 1, value 2


def attach(artifact: bytes, tokenizer: bytes) -> bytes:
    """Return the ONNX file with ``tokenizer`` among its metadata; nothing of either is parsed."""
    entry = field(1, TOKENIZER_KEY.encode()) + field(2, tokenizer)
    return artifact + field(_METADATA, entry)


def metadata(artifact: bytes, key: str = TOKENIZER_KEY) -> str | None:
    """Return a metadata property of an ONNX file; None where it has none.

    Raises
    ------
    InvalidArtifact
        Where the bytes are not a message, or have the property twice.
    """
    values = []
    try:
        for number, _, payload in fields(memoryview(artifact)):
            if number != _METADATA:
                continue
            entry: dict[int, memoryview] = {n: value for n, _, value in fields(payload)}
            if bytes(entry.get(1, b"")) == key.encode():
                values.append(str(entry.get(2, b""), "utf-8"))
    except (IndexError, UnicodeDecodeError) as error:
        raise InvalidArtifact("artifact is not readable as ONNX", detail=f"{error}.") from error
    if len(values) > 1:
        raise InvalidArtifact(
            "model has two tokenizers", hint="A file that holds one needs no argument tokenizer."
        )
    return values[0] if values else None
