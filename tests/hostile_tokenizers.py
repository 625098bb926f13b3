"""Tokenizers that nobody should run, and the SQLSTATE by which each is refused."""

from __future__ import annotations

import json
from typing import Any

from tiny_transformer import tokenizer, vocabulary

__all__ = ["TOKENIZERS"]


def changed(**fields: Any) -> bytes:
    """Return a tokenizer.json whose model has other fields."""
    model = json.loads(tokenizer())["model"]
    return tokenizer(model={**model, **fields})


def nested(kind: str, depth: int) -> dict[str, Any]:
    step: dict[str, Any] = {"type": kind}
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


def replacing(pattern: Any, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def added(count: int, content: str = "t{}", start: int = 100) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return [{"id": start + i, "content": content.format(i), **flags} for i in range(count)]


def template(*parts: str) -> dict[str, Any]:
    single = [
        {"Sequence": {"id": "A", "type_id": 0}} if p == "A" else {"SpecialToken": {"id": p, "type_id": 0}}
        for p in parts
    ]
    special = {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}


WORDS = vocabulary()
EXPLODING = {"Regex": "(a+)+$"}
TOKENIZERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "22P03"),
    "no JSON": (b'{"model": ', "22P03"),
    "no UTF-8": (b'{"model": "\xff"}', "22P03"),
    "another JSON": (b"[1, 2]", "22P03"),
    "a config": (b'{"model_type": "bert"}', "22P03"),
    "nested without end": (b'{"model": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "22P03"),
    "a name twice": (tokenizer()[:-1] + b', "model": null}', "22P03"),
    "a number that is none": (changed(max_input_chars_per_word=float("nan")), "22P03"),
    "a model that the library refuses": (
        tokenizer(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}),
        "22P03",
    ),
    "a word for what is unknown that is unknown": (changed(unk_token="[NOTHING]"), "22000"),
    "an unknown model": (changed(type="Neural"), "0A000"),
    "an unknown field": (tokenizer(plugin={"path": "/etc/passwd"}), "0A000"),
    "random answers": (
        tokenizer(model={"type": "BPE", "dropout": 0.5, "vocab": {"a": 0}, "merges": []}),
        "0A000",
    ),
    "a million added tokens": (tokenizer(added_tokens=added(100_000)), "54000"),
    "added tokens of megabytes": (tokenizer(added_tokens=added(2_000, "x" * 900 + "{}")), "54000"),
    "an exploding pattern, splitting": (
        tokenizer(
            pre_tokenizer={"type": "Split", "pattern": EXPLODING, "behavior": "Isolated", "invert": False}
        ),
        "0A000",
    ),
    "an exploding pattern, replacing": (tokenizer(normalizer=replacing(EXPLODING, "")), "0A000"),
    "an exploding pattern, decoding": (tokenizer(decoder=replacing(EXPLODING, "")), "0A000"),
    "normalisers nested deeply": (tokenizer(normalizer=nested("NFC", 60)), "54000"),
    "normalisers by the thousand": (tokenizer(normalizer=sequence(*[{"type": "NFKC"}] * 1000)), "54000"),
    "normalisers that multiply": (
        tokenizer(normalizer=sequence(*[replacing({"String": "a"}, "aaaaaaaa")] * 10)),
        "54000",
    ),
    "one that puts in a megabyte": (
        tokenizer(normalizer=replacing({"String": "a"}, "a" * 1_000_000)),
        "54000",
    ),
    "a table that is none": (
        tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "!!"}),
        "22P03",
    ),
    "a template that repeats the text": (tokenizer(post_processor=template(*["A"] * 30)), "0A000"),
    "a template without end": (tokenizer(post_processor=template(*["[CLS]"] * 3000, "A")), "54000"),
    "words taken apart by the square": (changed(max_input_chars_per_word=10**9), "54000"),
    "an id past any table": (changed(vocab={**WORDS, "more": 1 << 40}), "54000"),
    "an id below zero": (changed(vocab={**WORDS, "more": -1}), "22P03"),
    "an id past the model's": (changed(vocab={**WORDS, "more": len(WORDS)}), "22000"),
    "an added token past the model's": (
        tokenizer(added_tokens=added(3, start=len(WORDS))),
        "22000",
    ),
}
