"""Commands that carry a model from one database to another: export, import."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pg_distill import __version__
from pg_distill.cli.connection import (
    DONE,
    connect,
    rows_of,
)
from pg_distill.cli.models import (
    MODELS,
    REGISTER,
    find,
)
from pg_distill.cli.terminal import file_stem, read_file, show, write_file
from pg_distill.errors import (
    FeatureNotSupported,
    InvalidArtifact,
    InvalidParameter,
    InvalidState,
)
from pg_distill.text import printable, storable

__all__ = ["export", "export_options", "import_", "import_options"]

MANIFEST_FORMAT = 1  # of what `export` writes and `import` reads
MAX_MANIFEST_BYTES = 16 << 20  # of 10,000 features with long names


def export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="NAME or NAME:VERSION")
    parser.add_argument("--to", type=Path, default=Path(), help="an existing folder (default: this one)")


def export(arguments: argparse.Namespace) -> int:
    """Write a model's ONNX file, its SQL expressions where it has any, a model card, and a manifest for import."""
    import psycopg

    with connect(arguments) as connection:
        model = find(connection, arguments.model)
        if model["kind"] == "logged":
            raise InvalidState(f'model "{arguments.model}" is logged: it predicts elsewhere')
        if model["form"] == "cascade":
            raise FeatureNotSupported(
                f'model "{arguments.model}" is a cascade: its file alone is not what it predicts',
                hint="Export its student and its teacher.",
            )
        # Without pgvector first: that runs on any server.
        expressions = {}
        for pgvector in (False, True) if model["kind"] == "onnx" else (False,):
            try:
                found = rows_of(
                    connection, "SELECT distill.to_sql(%s, %s) AS text", arguments.model, pgvector
                )
            except psycopg.Error as error:
                if error.sqlstate not in ("0A000", "54000", "55000"):
                    raise
            else:
                expressions[".pgvector.sql" if pgvector else ".sql"] = found[0]["text"]
        teacher = rows_of(
            connection, "SELECT m.name, m.version FROM distill.models m WHERE m.id = %s", model["teacher_id"]
        )
    if not arguments.to.is_dir():
        raise InvalidParameter(f'folder "{arguments.to}" does not exist')
    stem = file_stem(model["name"], model["version"])
    manifest = {
        "format": MANIFEST_FORMAT,
        "pg_distill": __version__,
        "name": model["name"],
        "version": model["version"],
        "kind": model["kind"],
        "task": model["task"],
        "features": [feature["name"] for feature in model["input_schema"]["features"]],
        "kinds": [feature["kind"] for feature in model["input_schema"]["features"]],
        "classes": model["output_schema"].get("classes") or None,
        "class_threshold": model["class_threshold"],
        "max_tokens": model["input_schema"].get("max_tokens"),
        "sha256": model["sha256"],
        "sample": model["sample"],
        "label": model["label"],
        "teacher": f"{teacher[0]['name']}:{teacher[0]['version']}" if teacher else None,
        "onnx": f"{stem}.onnx" if model["artifact"] is not None else None,
        "expression": model["expression"] if model["kind"] == "sql" else None,
    }
    files = {f"{stem}.json": json.dumps(manifest, indent=2).encode() + b"\n"}
    if model["artifact"] is not None:
        files[f"{stem}.onnx"] = bytes(model["artifact"])
    for ending, expression in expressions.items():
        files[f"{stem}{ending}"] = expression.encode() + b"\n"
    files[f"{stem}.md"] = _model_card(model, manifest, list(expressions)).encode()
    for name, content in files.items():
        write_file(arguments.to / name, content)
    show(arguments, [{"file": str(arguments.to / name), "bytes": len(c)} for name, c in files.items()])
    return DONE


_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|&~-])")


def _markdown(text: object) -> str:
    """Write text as Markdown that shows it as it is."""
    return _MARKDOWN.sub(r"\\\1", printable(str(text)))


def _code(text: object) -> str:
    """Write text as code in a line of Markdown, between more backticks than it has in a row."""
    shown = printable(str(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}" if "`" in shown else f"`{shown}`"


def _model_card(model: Mapping[str, Any], manifest: Mapping[str, Any], sql: Sequence[str]) -> str:
    """Return a model card (Mitchell et al. 2019) in Markdown: what the registry knows, and nothing else."""
    from pg_distill.measure.comparison import describe

    measured = model["measured_on"] or {}

    def interval(value: Any, low: Any, high: Any, unit: str = "") -> str:
        if value is None:
            return "not measured"
        said = f"{value:.4g}{unit}"
        return said if low is None or high is None else f"{said} (95 % interval {low:.4g} to {high:.4g})"

    latency = interval(model["avg_latency_ms"], model["latency_low_ms"], model["latency_high_ms"], " ms")
    if model["latency_declared"]:
        latency += ", declared and not measured"
    machine = measured.get("machine") or {}
    what = "SQL expression" if model["form"] == "sql" else "predict"
    lines = [
        f"# {_markdown(model['name'])}, version {_markdown(model['version'])}",
        "",
        f"- Task: {model['task']}"
        + (f"; classes {', '.join(map(_markdown, manifest['classes']))}" if manifest["classes"] else ""),
        f"- Kind: {model['kind']}, {model['size_bytes']} bytes, sha256 {_code(model['sha256'])}",
        f"- Distilled from: {_markdown(manifest['teacher'] or 'none: it was registered as it is')}",
        *([f"- Predictions held against {_markdown(describe(model['origin']))}"] if model["origin"] else []),
        f"- Registered: {model['created_at']:%Y-%m-%d} by {_markdown(model['owner'])}",
        f"- As plain SQL: {'yes' if '.sql' in sql else 'no'}"
        + ("; with pgvector: yes" if ".pgvector.sql" in sql else ""),
        *_words_on_constraints(model),
        *(
            [f"- `{manifest['classes'][1]}` is named from a probability of {model['class_threshold']:.4g} on"]
            if model["class_threshold"] is not None
            else []
        ),
        *(
            f"- {_markdown(name)} is named from a probability of {threshold:.4g} on"
            for name, threshold in zip(
                manifest["classes"] or (), model["output_schema"].get("thresholds", ()), strict=False
            )
        ),
        "",
        "## Figures",
        "",
        f"- {_markdown(model['metric'] or 'accuracy')}:"
        f" {interval(model['accuracy'], model['accuracy_low'], model['accuracy_high'])}",
        f"- Call latency, one row's {what} inside a running query: {latency}",
        f"- Measured on {_markdown(measured.get('rows', 'no'))} rows"
        + (f", {model['measured_at']:%Y-%m-%d}" if model["measured_at"] else "")
        + (
            ", {}, {} cores, PostgreSQL {}".format(
                *(_markdown(machine.get(key, "unknown")) for key in ("processor", "cores", "postgresql"))
            )
            if machine
            else ""
        ),
        *(
            [
                f"- They are of its judged twin, sha256 {_code(measured['twin'])}, which has not learned from the test rows."
                " This file has, by the same recipe: no row is left to judge it"
            ]
            if measured.get("twin")
            else []
        ),
        "",
        "They hold for rows as those of the sample, and for that machine; a model carries the limits and the bias of its",
        "teacher and of the rows that it was made from.",
        "",
        "## Data",
        "",
        f"- Sample: {_code(model['sample'] or 'none')}",
        f"- Label: {_markdown(model['label'] or 'none')}",
        "",
        "## Features, in order",
        "",
        *(
            f"- {_code(feature['name'])} ({_markdown(feature['kind'])}"
            + (f" of {feature['length']} numbers)" if feature["kind"] == "vector" else ")")
            for feature in model["input_schema"]["features"]
        ),
        *_words_on_features(model),
        "",
    ]
    return "\n".join(lines)


def _words_on_constraints(model: Mapping[str, Any]) -> Sequence[str]:
    """Return how the answer goes with columns, where its training was held to that."""
    ways = {"1": "never falls", "-1": "never rises"}
    answer = "value" if model["task"] == "regression" else "probability of the last class"
    held = model["input_schema"].get("monotone")
    pairs = held.items() if isinstance(held, dict) else ()  # the row may be anybody's
    return [
        f"- Its {answer} {ways[str(sign)]} when {_code(name)} rises and all else stays"
        for name, sign in pairs
        if str(sign) in ways
    ]


def _words_on_features(model: Mapping[str, Any]) -> Sequence[str]:
    """Return what whoever runs the file has to know of the texts and vectors that it wants."""
    from pg_distill.onnx_model.texts import INPUT, TEXT_KEY
    from pg_distill.onnx_model.tokens import WANTED

    features = model["input_schema"]["features"]
    texts = [_code(feature["name"]) for feature in features if feature["kind"] == "text"]
    tokens = model["input_schema"].get("max_tokens")
    lines: list[str] = []
    if tokens is not None:
        lines += [
            "",
            "## Its text",
            "",
            f"- A transformer reads the first {_markdown(tokens)} tokens of it, special ones counted. NULL is the empty text.",
            "- Its tokenizer.json stands in the file's metadata, as `pg_distill.tokenizer`.",
            "- Give each text a run of its own, without padding: an int8 graph scales a whole batch.",
        ]
    elif texts and TEXT_KEY.encode() in bytes(model["artifact"] or b""):
        lines += [
            "",
            "## Its texts",
            "",
            f"- Input `{INPUT}`, strings of the shape (rows, {len(texts)}): {', '.join(texts)}.",
            f"- The file finds words, pairs and marks itself. It wants the first {WANTED['characters']} characters of a text,",
            "  and blanks around each emoji and each character of a script without blanks, which no operator of ONNX does.",
            f"- In Python: {_code(WANTED['python'])}. A shorter text without such characters needs nothing.",
            f"- NULL is the text {_code(WANTED['null'])}.",
        ]
    if any(feature["kind"] == "vector" for feature in features):
        lines += [
            "",
            "## Its vectors",
            "",
            "- Each is of the model that made it for the sample. Vectors of another one have other meanings.",
            "- The file has their numbers among the columns of its inputs. A vector that is NULL is NaN in all of them.",
        ]
    return lines


def import_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "manifest", type=Path, help="the .json file that export wrote, beside the model's .onnx"
    )
    parser.add_argument("--name", help="another name")
    parser.add_argument("--version", help="another version")
    parser.add_argument("--sample", help="relation or query to measure it on, here")
    parser.add_argument("--label", help="column of the sample that holds the truth")


def import_(arguments: argparse.Namespace) -> int:
    """Register what export wrote, checked and, with --sample, measured here."""
    manifest = _manifest(arguments.manifest)
    tokens = manifest.get("max_tokens")
    unclear = next((kind for kind in ("string", "vector") if kind in manifest["kinds"]), None)
    if arguments.sample is None and unclear is not None and tokens is None:
        # A graph takes one matrix of strings and one of numbers: which column is in which, and how wide, only rows can say.
        raise InvalidParameter(
            f'model "{manifest["name"]}" has features that are {unclear}s',
            hint="Pass --sample, a relation or query with its columns.",
        )
    artifact = read_file(arguments.manifest.parent / manifest["onnx"], beside=True)
    if hashlib.sha256(artifact).hexdigest() != manifest["sha256"]:
        raise InvalidArtifact(f'file "{manifest["onnx"]}" is not the one that was exported')
    with connect(arguments) as connection:
        [row] = rows_of(
            connection, REGISTER, arguments.name or manifest["name"], artifact, manifest["features"], arguments.sample,
            arguments.label, arguments.version or manifest["version"], manifest["task"], manifest["classes"], None, False,
            manifest.get("class_threshold"), None, tokens,
        )  # fmt: skip
        show(arguments, rows_of(connection, MODELS + " WHERE m.id = %s", row["id"]))
    return DONE


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value == storable(value, len(value))


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


# What `import` takes from a manifest; other keys are for people.
_MANIFEST: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "version": _is_text,
    "task": lambda value: value in ("binary", "multiclass", "multilabel", "regression"),
    "features": _is_texts,
    "kinds": _is_texts,
    "classes": lambda value: value is None or _is_texts(value),
    "sha256": lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    "onnx": lambda value: _is_text(value) and value == Path(value).name != "",
}


def _manifest(path: Path) -> dict[str, Any]:
    """Read what ``export`` wrote; whatever else is there is an error."""
    try:
        manifest = json.loads(read_file(path, MAX_MANIFEST_BYTES))
    except (ValueError, RecursionError) as error:
        raise InvalidArtifact(f'file "{path}" is no manifest of pg-distill export') from error
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        raise InvalidArtifact(f'file "{path}" is no manifest of pg-distill export')
    if manifest["format"] != MANIFEST_FORMAT:
        raise InvalidArtifact(f'file "{path}" is of another version of pg-distill')
    if manifest.get("onnx") is None:
        raise InvalidArtifact(f'file "{path}" holds no ONNX model')
    wrong = [key for key, holds in _MANIFEST.items() if key not in manifest or not holds(manifest[key])]
    if type(manifest.get("max_tokens")) not in (type(None), int):
        wrong.append("max_tokens")
    if not wrong and len(manifest["features"]) != len(manifest["kinds"]):
        wrong = ["kinds"]
    if wrong:
        raise InvalidArtifact(
            f'file "{path}" has no valid "{wrong[0]}", as a manifest of pg-distill export has'
        )
    return manifest
