"""A transformer as its library exports it: a folder with a graph, a tokenizer and their settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pg_distill.cli.terminal import read_file
from pg_distill.errors import InvalidArtifact, InvalidParameter
from pg_distill.onnx_model.tokenizer import DEFAULT_TOKENS
from pg_distill.text import printable, storable

__all__ = ["Folder", "read_folder"]

GRAPHS = ("model.onnx", "onnx/model.onnx")
"""Where exporters put the graph; else it is the folder's only .onnx file."""

MAX_SETTINGS_BYTES = 16 << 20  # of config.json: 10,000 classes with long names
_UNNAMED = re.compile(r"LABEL_\d+")
"""What the library calls classes that nobody has named."""

_OFFSETS = {
    "roberta": 2, "xlm-roberta": 2, "camembert": 2, "mpnet": 2, "longformer": 2, "xlm-roberta-xl": 2,
}  # fmt: skip
"""Positions that models of these types keep for padding: RoBERTa's 514 are for texts of 512 tokens."""


@dataclass(frozen=True)
class Folder:
    """What a folder holds; ``classes`` and ``task`` are None where it does not say them."""

    artifact: bytes
    tokenizer: bytes
    classes: list[str] | None
    task: str | None
    max_tokens: int


def read_folder(path: Path) -> Folder:
    """Read model.onnx, tokenizer.json, and of config.json and tokenizer_config.json what there is.

    Raises
    ------
    InvalidParameter
        There is no graph or no tokenizer, or more than one graph.
    InvalidArtifact
        A file of settings is not readable.
    """
    tokenizer = path / "tokenizer.json"
    if not tokenizer.is_file():
        raise InvalidParameter(
            f'folder "{path}" has no tokenizer.json',
            hint="Save the fast tokenizer there: AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
        )
    config, tokens = _settings(path / "config.json"), _settings(path / "tokenizer_config.json")
    classes, task = _classes(config, path)
    if config.get("problem_type") == "multi_label_classification":
        task = "multilabel"
    return Folder(read_file(_graph(path)), read_file(tokenizer), classes, task, _max_tokens(config, tokens))


def _graph(path: Path) -> Path:
    for name in GRAPHS:
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.onnx"))
    if len(found) != 1:
        raise InvalidParameter(
            f'folder "{path}" has {len(found)} .onnx files, and none is {GRAPHS[0]}',
            hint="Name the one to take, with its tokenizer: pg-distill register NAME FILE.onnx --tokenizer tokenizer.json.",
        )
    return found[0]


def _settings(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_file(path, MAX_SETTINGS_BYTES))
    except (ValueError, RecursionError) as error:
        raise InvalidArtifact(f'file "{path}" is not readable as JSON') from error
    if not isinstance(found, dict):
        raise InvalidArtifact(f'file "{path}" holds no settings')
    return found


def _classes(config: Mapping[str, Any], path: Path) -> tuple[list[str] | None, str | None]:
    """Return the classes in the order of the graph's numbers, and the task."""
    named = config.get("id2label")
    if named is None:
        return None, "regression" if config.get("problem_type") == "regression" else None
    if not isinstance(named, dict) or {str(i) for i in range(len(named))} != set(named):
        raise InvalidArtifact(f'file "{path / "config.json"}" has no valid "id2label"')
    classes = [named[str(i)] for i in range(len(named))]
    if not all(isinstance(c, str) and c == storable(c, len(c)) for c in classes):
        raise InvalidArtifact(f'file "{path / "config.json"}" names a class {printable(str(classes)[:80])}')
    if len(classes) < 2 or config.get("problem_type") == "regression":
        return None, "regression"
    if all(map(_UNNAMED.fullmatch, classes)):
        return None, None
    return classes, None


def _max_tokens(config: Mapping[str, Any], tokens: Mapping[str, Any]) -> int:
    """Return how many tokens a text may have: `DEFAULT_TOKENS`, or as many as the model has positions for."""
    positions = config.get("max_position_embeddings")
    offset = _OFFSETS.get(str(config.get("model_type")), 0)
    bounds = [positions - offset if isinstance(positions, int) else None, tokens.get("model_max_length")]
    return min([DEFAULT_TOKENS, *(int(b) for b in bounds if isinstance(b, int | float) and 0 < b < 1e9)])
