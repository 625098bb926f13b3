"""What a tokenizer.json may consist of, so that a backend may run it: only the trainer's child imports this.

`check_tokenizer` is the one way in. It reads the file as plain JSON and holds each part against a list of components with their
fields; what is not on it is refused. Three things could otherwise take a backend away:

- **Regular expressions.** The library's engine goes back and forth: a pattern can take exponential time. Only patterns of
  `PATTERNS`, which take linear time, are run; what is replaced is otherwise a plain string.
- **Growth.** Normalisers may put in more than they take out, one after another. `MAX_GROWTH` bounds what all of them together
  make of a character.
- **Size.** Words that are looked at letter by letter, tokens that are searched for, steps: each has its limit.

Random tokenizers (BPE's dropout) are refused: a teacher has one answer. What passes is opened, and run on texts as long as any
that a backend reads, within `READ_SECONDS`.

Long, because the list of what is allowed stands in one place.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from pg_distill.errors import FeatureNotSupported, InvalidArtifact, LimitExceeded
from pg_distill.onnx_model.tokenizer import CHARACTERS_A_TOKEN, MAX_TOKENIZER_BYTES, Tokens, check_size

__all__ = ["MAX_GROWTH", "MAX_TOKENIZER_BYTES", "PATTERNS", "check_tokenizer", "open_tokenizer"]

MAX_VOCABULARY = 1_000_000  # tokens; Gemma's has 262,144
MAX_TOKEN_CHARACTERS = 1_000  # of one token; runs of blanks are some hundreds
MAX_ADDED = 20_000  # tokens that are searched for in every text
MAX_ADDED_CHARACTERS = (
    1_000_000  # of all of them: the automaton that finds them takes some hundred bytes each
)
MAX_WORD_CHARACTERS = 200  # of a word that WordPiece takes apart, by the square of its letters; BERT's 100
MAX_COMPONENTS = 64  # steps of a tokenizer, those in sequences counted
MAX_DEPTH = 16  # of sequences in sequences
MAX_CONTENT_BYTES = 64  # that one step puts in; real ones put in a few
MAX_GROWTH = 16  # times as many bytes as came, at most, after all normalisers but Unicode's own
MAX_CHARSMAP_BYTES = 4 << 20  # of a precompiled normaliser; SentencePiece's nmt_nfkc has 240 kB
MAX_TEMPLATE = 64  # parts of a template of special tokens
MAX_ID = 1 << 24  # of a token

START_SECONDS = 2.0  # of a processor, to open it: nobody can interrupt that
READ_SECONDS = 0.25  # of a processor, to read the longest text that is read

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = frozenset(
    {
        r"\s+",
        r"\s",
        r" {2,}",
        r"[\r\n]",
        r"\w+|[^\w\s]+",
        r"\d",
        r"[0-9]",
        # GPT-2, RoBERTa
        rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",
        # CLIP
        rf"{_CONTRACTIONS}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+",
        # GPT-4, Llama 3: numbers of up to three digits; Qwen 2: of one
        rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
        rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",
    }
)
"""Regular expressions of tokenizers in use, each of linear time in the texts that are read; a test holds them to it."""


def open_tokenizer(tokenizer: str, max_tokens: int) -> Tokens:
    """Check a tokenizer, open it, and try it on long texts.

    Raises
    ------
    InvalidArtifact
        It is not JSON, or not a tokenizer's.
    FeatureNotSupported
        It has a component, a field or a regular expression that is not on the list.
    LimitExceeded
        It is too large, grows texts too much, or takes too long.
    InvalidState
        The library is not installed here.
    """
    check_tokenizer(tokenizer)
    began = time.thread_time()
    tokens = Tokens(tokenizer, max_tokens)
    took = time.thread_time() - began
    if took > START_SECONDS:
        raise LimitExceeded(f"tokenizer takes {took:.3g} s to open, limit is {START_SECONDS:g} s")
    length = CHARACTERS_A_TOKEN * max_tokens
    for text in _LONG:
        long = (text * (length // len(text) + 1))[:length]
        began = time.thread_time()
        tokens.read(long)
        seconds = time.thread_time() - began
        if seconds > READ_SECONDS:
            raise LimitExceeded(
                f"tokenizer takes {seconds:.3g} s for a text of {length} characters, limit is {READ_SECONDS:g} s"
            )
    return tokens


_LONG = (
    "x",
    "ab ",
    "a1 ?\n",
    " ",
    " \n",
    "'",
    "é",
    "\u0130\ufdfa",  # of which Unicode makes 2 and 18 letters
    "\u4e2d\u6587",
    "\U0001f600\u200d",
    "e\u0301\u0302\u0303",
    "\u0e01\u0e33",
    "".join(map(chr, range(0x20, 0x3000, 7))),
)
"""What long texts are made of: what normalisers, words and patterns take longest over."""


# -- the list

_Check = Callable[["_Reader", Any], None]


class _Reader:
    """Counts what a tokenizer has so far."""

    def __init__(self) -> None:
        self.components = 0
        self.growth = 1.0


def check_tokenizer(tokenizer: str) -> None:
    """Hold the text of a tokenizer.json against the list; nothing is opened or run. Raises as `open_tokenizer`."""
    check_size(tokenizer.encode())
    try:
        parts = json.loads(tokenizer, object_pairs_hook=_without_repetition, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        said = "It is nested too deeply." if isinstance(error, RecursionError) else f"{error}."
        raise InvalidArtifact("tokenizer is not readable as JSON", detail=said[:300]) from error
    if not isinstance(parts, dict) or not isinstance(parts.get("model"), dict):
        raise InvalidArtifact(
            "tokenizer is not one of the library tokenizers", hint="Give it the file tokenizer.json."
        )
    reader = _Reader()
    for key, value in parts.items():
        check = _PARTS.get(key)
        if check is None:
            raise FeatureNotSupported(f'field "{key[:80]}" of the tokenizer is not supported')
        if value is not None:
            check(reader, value)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _wrong(what: str) -> NoReturn:
    raise InvalidArtifact(f"{what} of the tokenizer is not as the library writes it")


def _anything(reader: _Reader, value: Any) -> None:
    if isinstance(value, dict | list):
        _wrong("a field")


def _flag(reader: _Reader, value: Any) -> None:
    if type(value) is not bool:
        _wrong("a flag")


def _count(most: float) -> _Check:
    def check(reader: _Reader, value: Any) -> None:
        if type(value) is not int or value < 0:
            _wrong("a number")
        if value > most:
            raise LimitExceeded(f"a number of the tokenizer is {value}, limit is {most:.0f}")

    return check


def _text(most: int) -> _Check:
    def check(reader: _Reader, value: Any) -> None:
        if not isinstance(value, str):
            _wrong("a text")
        if len(value.encode(errors="surrogatepass")) > most:
            raise LimitExceeded(f"a text of the tokenizer has over {most} bytes")

    return check


def _nothing(what: str) -> _Check:
    def check(reader: _Reader, value: Any) -> None:
        if value:
            raise FeatureNotSupported(f"{what} of the tokenizer is not supported: a teacher has one answer")

    return check


_token = _text(4 * MAX_TOKEN_CHARACTERS)
_content = _text(MAX_CONTENT_BYTES)


def _pattern(reader: _Reader, value: Any) -> None:
    if not isinstance(value, dict) or len(value) != 1:
        _wrong("a pattern")
    [(kind, text)] = value.items()
    if kind not in ("String", "Regex") or not isinstance(text, str):
        _wrong("a pattern")
    if kind == "String":
        if not text:
            raise FeatureNotSupported("an empty pattern of the tokenizer is not supported")
        _token(reader, text)
    elif text not in PATTERNS:
        raise FeatureNotSupported(
            "a regular expression of the tokenizer is not one of those that are known to take linear time",
            detail=f"It is {text[:300]!r}.",
        )


def _replaces(reader: _Reader, step: Mapping[str, Any]) -> None:
    """Count by how much a replacement makes a text longer."""
    pattern, content = step.get("pattern"), step.get("content", "")
    if not isinstance(pattern, dict) or not isinstance(content, str):
        _wrong("a replacement")
    text = pattern.get("String")
    _grow(reader, len(content.encode()) / max(len(text.encode()) if isinstance(text, str) else 1, 1))


def _prepends(reader: _Reader, step: Mapping[str, Any]) -> None:
    _grow(reader, 2.0)  # each piece gets it, and a piece may be one letter; a word has some


def _grow(reader: _Reader, times: float) -> None:
    reader.growth *= max(times, 1.0)
    if reader.growth > MAX_GROWTH:
        raise LimitExceeded(f"tokenizer makes texts over {MAX_GROWTH} times longer")


def _charsmap(reader: _Reader, value: Any) -> None:
    """Demand of SentencePiece's precompiled table that no entry puts in much: it is a trie, then texts with NULs between."""
    if not isinstance(value, str):
        _wrong("a precompiled normaliser")
    if len(value) > MAX_CHARSMAP_BYTES:
        raise LimitExceeded(f"a precompiled normaliser of the tokenizer has over {MAX_CHARSMAP_BYTES} bytes")
    try:
        table = base64.b64decode(value, validate=True)
    except ValueError:
        _wrong("a precompiled normaliser")
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    if max(map(len, texts.split(b"\0"))) > MAX_CONTENT_BYTES:
        raise LimitExceeded(
            f"a precompiled normaliser of the tokenizer puts in over {MAX_CONTENT_BYTES} bytes"
        )


def _vocabulary(reader: _Reader, value: Any) -> None:
    if not isinstance(value, dict):
        _wrong("vocabulary")
    _check_tokens(list(value))
    ids = list(value.values())
    if not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) < len(ids):
        _wrong("vocabulary")
    if max(ids, default=0) > MAX_ID:
        raise LimitExceeded(f"tokenizer has an id of over {MAX_ID}")


def _check_tokens(tokens: list[Any]) -> None:
    if not tokens or not all(isinstance(token, str) for token in tokens):
        _wrong("vocabulary")
    if len(tokens) > MAX_VOCABULARY:
        raise LimitExceeded(f"tokenizer has {len(tokens)} tokens, limit is {MAX_VOCABULARY}")
    if max(map(len, tokens)) > MAX_TOKEN_CHARACTERS:
        raise LimitExceeded(f"tokenizer has a token of over {MAX_TOKEN_CHARACTERS} characters")


def _pieces(reader: _Reader, value: Any) -> None:
    if not isinstance(value, list) or not all(
        isinstance(v, list) and len(v) == 2 and type(v[1]) in (int, float) and math.isfinite(v[1])
        for v in value
    ):
        _wrong("vocabulary")
    _check_tokens([token for token, _ in value])


def _merges(reader: _Reader, value: Any) -> None:
    if not isinstance(value, list) or not all(
        isinstance(v, str) or (isinstance(v, list) and len(v) == 2 and all(isinstance(t, str) for t in v))
        for v in value
    ):
        _wrong("list of merges")
    if len(value) > 2 * MAX_VOCABULARY:
        raise LimitExceeded(f"tokenizer has {len(value)} merges, limit is {2 * MAX_VOCABULARY}")


def _added(reader: _Reader, value: Any) -> None:
    if not isinstance(value, list):
        _wrong("list of added tokens")
    if len(value) > MAX_ADDED:
        raise LimitExceeded(f"tokenizer has {len(value)} added tokens, limit is {MAX_ADDED}")
    characters = 0
    for token in value:
        if not isinstance(token, dict):
            _wrong("list of added tokens")
        _check_fields(reader, "an added token", token, _ADDED)
        if not token.get("content"):
            _wrong("an added token")
        characters += len(token["content"])
    if characters > MAX_ADDED_CHARACTERS:
        raise LimitExceeded(f"added tokens have {characters} characters, limit is {MAX_ADDED_CHARACTERS}")


_FLAGS: Mapping[str, _Check] = dict.fromkeys(
    ("single_word", "lstrip", "rstrip", "normalized", "special"), _flag
)
_ADDED: Mapping[str, _Check] = {"id": _count(MAX_ID), "content": _token, **_FLAGS}


def _check_fields(reader: _Reader, what: str, value: Mapping[str, Any], known: Mapping[str, _Check]) -> None:
    for name, field in value.items():
        if name not in known:
            raise FeatureNotSupported(f'field "{name[:80]}" of {what} of the tokenizer is not supported')
        if field is not None:
            known[name](reader, field)


def _component(what: str, known: Mapping[str, Mapping[str, _Check]], inner: str) -> _Check:
    """Return the check of a component: of a known type, with known fields; ``inner`` are those of a sequence."""

    def check(reader: _Reader, value: Any, depth: int = 0) -> None:
        if not isinstance(value, dict) or not isinstance(value.get("type"), str):
            _wrong(what)
        reader.components += 1
        if reader.components > MAX_COMPONENTS or depth > MAX_DEPTH:
            raise LimitExceeded(
                f"tokenizer has over {MAX_COMPONENTS} steps, or sequences nested over {MAX_DEPTH} deep"
            )
        kind, fields = value["type"], {name: field for name, field in value.items() if name != "type"}
        if kind == "Sequence" and inner:
            if set(fields) != {inner} or not isinstance(fields[inner], list):
                _wrong(what)
            for step in fields[inner]:
                check(reader, step, depth + 1)
            return
        if kind not in known:
            raise FeatureNotSupported(f'{what} "{kind[:80]}" of the tokenizer is not supported')
        _check_fields(reader, f'{what} "{kind}"', fields, known[kind])
        if (what, kind) in _AS_A_WHOLE:
            _AS_A_WHOLE[what, kind](reader, value)

    return check


_normalizer = _component(
    "normalizer",
    {
        "BertNormalizer": dict.fromkeys(
            ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), _flag
        ),
        "NFC": {},
        "NFD": {},
        "NFKC": {},
        "NFKD": {},
        "Nmt": {},
        "Lowercase": {},
        "StripAccents": {},
        "Strip": {"strip_left": _flag, "strip_right": _flag},
        "Prepend": {"prepend": _text(3)},
        "Replace": {"pattern": _pattern, "content": _content},
        "Precompiled": {"precompiled_charsmap": _charsmap},
        "ByteLevel": {},
    },
    "normalizers",
)

_BYTE_LEVEL: Mapping[str, _Check] = {
    "add_prefix_space": _flag,
    "trim_offsets": _flag,
    "use_regex": _flag,
}
_METASPACE: Mapping[str, _Check] = {
    "replacement": _text(4),
    "add_prefix_space": _flag,
    "prepend_scheme": _text(16),
    "split": _flag,
    "str_rep": _text(4),
}

_pre_tokenizer = _component(
    "pre-tokenizer",
    {
        "BertPreTokenizer": {},
        "Whitespace": {},
        "WhitespaceSplit": {},
        "Punctuation": {"behavior": _text(32)},
        "Digits": {"individual_digits": _flag},
        "UnicodeScripts": {},
        "CharDelimiterSplit": {"delimiter": _text(4)},
        "Metaspace": _METASPACE,
        "ByteLevel": _BYTE_LEVEL,
        "Split": {"pattern": _pattern, "behavior": _text(32), "invert": _flag},
    },
    "pretokenizers",
)


def _pair(reader: _Reader, value: Any) -> None:
    if not isinstance(value, list) or len(value) != 2:
        _wrong("a special token")
    _token(reader, value[0])
    _count(MAX_ID)(reader, value[1])


def _template(reader: _Reader, value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(v, dict) and len(v) == 1 for v in value):
        _wrong("template")
    if len(value) > MAX_TEMPLATE:
        raise LimitExceeded(f"template of the tokenizer has {len(value)} parts, limit is {MAX_TEMPLATE}")
    texts = []
    for part in value:
        [(kind, fields)] = part.items()
        if kind not in _PIECES or not isinstance(fields, dict):
            _wrong("template")
        _check_fields(reader, "a template", fields, _PIECES[kind])
        texts += [fields.get("id")] if kind == "Sequence" else []
    if len(set(texts)) < len(texts):
        raise FeatureNotSupported("template of the tokenizer repeats texts, which is not supported")


_PIECES: Mapping[str, Mapping[str, _Check]] = {
    "Sequence": {"id": _text(1), "type_id": _count(MAX_ID)},
    "SpecialToken": {"id": _token, "type_id": _count(MAX_ID)},
}


def _specials(reader: _Reader, value: Any) -> None:
    if not isinstance(value, dict):
        _wrong("template")
    if len(value) > MAX_TEMPLATE:
        raise LimitExceeded(f"template of the tokenizer has over {MAX_TEMPLATE} special tokens")
    for special in value.values():
        if not isinstance(special, dict):
            _wrong("template")
        _check_fields(
            reader,
            "a special token",
            special,
            {"id": _token, "ids": _list(_count(MAX_ID)), "tokens": _list(_token)},
        )


def _list(of: _Check) -> _Check:
    def check(reader: _Reader, value: Any) -> None:
        if not isinstance(value, list):
            _wrong("a list")
        if len(value) > MAX_TEMPLATE:
            raise LimitExceeded(f"a list of the tokenizer has over {MAX_TEMPLATE} tokens")
        for item in value:
            of(reader, item)

    return check


def _knows_its_tokens(reader: _Reader, step: Mapping[str, Any]) -> None:
    """Demand that a template's special tokens are among those that it names: the library panics otherwise."""
    known = step.get("special_tokens") or {}
    for part in (*(step.get("single") or ()), *(step.get("pair") or ())):
        if "SpecialToken" in part and part["SpecialToken"].get("id") not in known:
            _wrong("template")


_post_processor = _component(
    "post-processor",
    {
        "BertProcessing": {"sep": _pair, "cls": _pair},
        "RobertaProcessing": {"sep": _pair, "cls": _pair, "trim_offsets": _flag, "add_prefix_space": _flag},
        "ByteLevel": _BYTE_LEVEL,
        "TemplateProcessing": {"single": _template, "pair": _template, "special_tokens": _specials},
    },
    "processors",
)

_AS_A_WHOLE: Mapping[tuple[str, str], Callable[[_Reader, Mapping[str, Any]], None]] = {
    ("normalizer", "Replace"): _replaces,
    ("normalizer", "Prepend"): _prepends,
    ("normalizer", "ByteLevel"): lambda reader, step: _grow(reader, 2.0),
    ("post-processor", "TemplateProcessing"): _knows_its_tokens,
}

# It is read with the rest, and never run.
_decoder = _component(
    "decoder",
    {
        "WordPiece": {"prefix": _content, "cleanup": _flag},
        "ByteLevel": _BYTE_LEVEL,
        "Metaspace": _METASPACE,
        "BPEDecoder": {"suffix": _content},
        "CTC": {"pad_token": _content, "word_delimiter_token": _content, "cleanup": _flag},
        "Replace": {"pattern": _pattern, "content": _content},
        "Strip": {"content": _text(4), "start": _count(MAX_ID), "stop": _count(MAX_ID)},
        "Fuse": {},
        "ByteFallback": {},
    },
    "decoders",
)

_model = _component(
    "model",
    {
        "WordPiece": {
            "unk_token": _token,
            "continuing_subword_prefix": _content,
            "max_input_chars_per_word": _count(MAX_WORD_CHARACTERS),
            "vocab": _vocabulary,
        },
        "WordLevel": {"unk_token": _token, "vocab": _vocabulary},
        "BPE": {
            "dropout": _nothing("dropout"),
            "unk_token": _token,
            "continuing_subword_prefix": _content,
            "end_of_word_suffix": _content,
            "fuse_unk": _flag,
            "byte_fallback": _flag,
            "ignore_merges": _flag,
            "vocab": _vocabulary,
            "merges": _merges,
        },
        "Unigram": {
            "unk_id": _count(MAX_ID),
            "byte_fallback": _flag,
            "vocab": _pieces,
            "alpha": _nothing("sampling"),
            "nbest_size": _nothing("sampling"),
        },
    },
    "",
)


def _settings(reader: _Reader, value: Any) -> None:
    """Of cutting and padding, which are ours to decide: it has to be small, and is not used but for the side."""
    if not isinstance(value, dict) or len(json.dumps(value)) > MAX_TOKEN_CHARACTERS:
        _wrong("a setting")


_PARTS: Mapping[str, _Check] = {
    "version": _anything,
    "truncation": _settings,
    "padding": _settings,
    "added_tokens": _added,
    "normalizer": _normalizer,
    "pre_tokenizer": _pre_tokenizer,
    "post_processor": _post_processor,
    "decoder": _decoder,
    "model": _model,
}
