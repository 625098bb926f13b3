"""Commands about models: register, models, predict, prune."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pg_distill.cli.connection import (
    DONE,
    connect,
    rows_of,
)
from pg_distill.cli.folders import read_folder
from pg_distill.cli.terminal import read_file, show, warn
from pg_distill.errors import (
    InvalidParameter,
)

if TYPE_CHECKING:
    import psycopg

__all__ = [
    "MODELS",
    "REGISTER",
    "find",
    "models",
    "name_option",
    "predict",
    "predict_options",
    "prune",
    "prune_options",
    "register",
    "register_options",
]


def register_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the model's name in the registry")
    from pg_distill.conversion.convert import KINDS

    parser.add_argument(
        "model", help=f"{KINDS}; or a transformer's folder, with model.onnx and tokenizer.json"
    )
    parser.add_argument("--sample", help="relation or query whose rows the model is for")
    parser.add_argument("--label", help="column of the sample that holds the truth")
    parser.add_argument(
        "--features", type=lambda text: text.split(","), help="columns in order, with commas between"
    )
    parser.add_argument("--version")
    parser.add_argument("--task", choices=("binary", "multiclass", "multilabel", "regression"))
    parser.add_argument(
        "--classes", type=lambda text: text.split(","), help="classes in order, with commas between"
    )
    parser.add_argument(
        "--expected", help="of an .onnx file: the column of the sample that holds what it is to predict"
    )
    parser.add_argument(
        "--class-threshold",
        type=float,
        help="of an .onnx file of two classes: the probability from which it names the last one",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="of an .onnx file that reads the tokens of a text: its tokenizer.json"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        help="of a text that a transformer reads (default: 256, or what its folder says)",
    )
    parser.add_argument(
        "--allow-difference",
        action="store_true",
        help="register a model that predicts otherwise than its own library, which the registry then says",
    )


REGISTER = (
    "SELECT distill.register_model(name => %s, artifact => %s, features => %s, sample => %s, label => %s, version => %s,"
    " task => %s, classes => %s, expected => %s, allow_difference => %s,"
    " class_threshold => %s, tokenizer => %s, max_tokens => coalesce(%s, 256))::text AS id"
)


def register(arguments: argparse.Namespace) -> int:
    """Register a model: ONNX, or converted to it here and held against what its own library says."""
    with connect(arguments) as connection:
        connection.add_notice_handler(
            lambda notice: warn(f"{(notice.severity or '').lower()}: {notice.message_primary}")
        )
        path = Path(arguments.model)
        if path.suffix == ".onnx" or path.is_dir():
            artifact, tokenizer = None, None
            if path.is_dir():
                folder = read_folder(path)
                artifact, tokenizer = folder.artifact, folder.tokenizer
                arguments.classes = arguments.classes or folder.classes
                arguments.task = arguments.task or folder.task
                arguments.max_tokens = arguments.max_tokens or folder.max_tokens
            if arguments.tokenizer is not None:
                tokenizer = read_file(arguments.tokenizer)
            [row] = rows_of(
                connection, REGISTER, arguments.name, artifact or read_file(path), arguments.features, arguments.sample,
                arguments.label, arguments.version, arguments.task, arguments.classes, arguments.expected,
                arguments.allow_difference, arguments.class_threshold, tokenizer, arguments.max_tokens,
            )  # fmt: skip
        else:
            if arguments.tokenizer is not None or arguments.max_tokens is not None:
                raise InvalidParameter("--tokenizer and --max-tokens are for transformers")
            if arguments.expected is not None or arguments.class_threshold is not None:
                raise InvalidParameter(
                    "--expected and --class-threshold are for .onnx files: of others the library itself is asked"
                )
            [row] = _converted(connection, arguments)
        show(arguments, rows_of(connection, MODELS + " WHERE m.id = %s", row["id"]))
    return DONE


def _converted(connection: psycopg.Connection[Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Convert a model, ask its library about rows of the sample, and register it with what the library says."""
    import psycopg

    from pg_distill.conversion import convert
    from pg_distill.conversion.asking import ask
    from pg_distill.database.client import PsycopgDatabase
    from pg_distill.rows.source import resolve_source

    model = convert.load_model(arguments.model)
    if arguments.sample is None:
        made = convert.convert(model, None, arguments.features, arguments.label)
        warn("the model was not held against its own library, because no sample is named")
        claim: tuple[Any, ...] | None = None
    else:
        with psycopg.connect(arguments.dsn or "", client_encoding="UTF8") as other:
            db = PsycopgDatabase(other)
            source = resolve_source(db, arguments.sample)
            kinds = {name: source.kinds.get(name) for name in source.types}
            made = convert.convert(model, kinds, arguments.features, arguments.label)
            for name in made.features:
                if source.kind(name) == "timestamp":
                    warn(f'column "{name}" is given to the model as seconds since 1970')
            claim = ask(db, source, made, own_classes=not arguments.classes)
    task = arguments.task or made.original.task
    classes = arguments.classes or (
        list(made.original.classes) if made.original.classes is not None else None
    )
    named = (
        arguments.name, made.artifact, list(made.features), arguments.sample, arguments.label, arguments.version, task, classes,
    )  # fmt: skip
    if claim is None:
        return rows_of(connection, REGISTER, *named, None, False, made.class_threshold, None, None)
    call = ", ".join(["%s"] * (len(named) + len(claim) + 2))
    query = f"SELECT distill._register_claimed({call})::text AS id"
    return rows_of(connection, query, *named, *claim, arguments.allow_difference, made.class_threshold)


MODELS = (
    "SELECT m.name, m.version, m.active, m.kind, m.task, m.metric, m.accuracy, m.avg_latency_ms, m.size_bytes,"
    " m.created_at FROM distill.models m"
)


def models(arguments: argparse.Namespace) -> int:
    """List the registry."""
    with connect(arguments) as connection:
        rows = rows_of(
            connection,
            MODELS + " WHERE %s::text IS NULL OR m.name = %s ORDER BY m.name, m.created_at",
            arguments.name,
            arguments.name,
        )
    show(arguments, rows, "no models")
    return DONE


def name_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="one name only")


def prune_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="one name only")
    parser.add_argument("--keep-versions", type=int, help="newest versions that stay")
    parser.add_argument("--older-than", metavar="INTERVAL", help="an age, such as '90 days'")
    parser.add_argument("--remove", action="store_true", help="remove them; without it they are listed only")


def prune(arguments: argparse.Namespace) -> int:
    """List what is old and what nothing depends on, or remove it."""
    with connect(arguments) as connection:
        rows = rows_of(
            connection,
            "SELECT p.kind, p.name, p.version, p.run_id::text AS run_id, p.size_bytes, p.created_at, p.pruned, p.reason"
            " FROM distill.prune(%s, %s::interval, %s, %s) p",
            arguments.keep_versions,
            arguments.older_than,
            arguments.name,
            not arguments.remove,
        )
    show(arguments, rows, "nothing to prune")
    return DONE


def predict_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="NAME or NAME:VERSION")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--row", action="append", help="a row as a JSON object; may be repeated; - reads one a line"
    )
    what.add_argument(
        "--features",
        nargs="+",
        type=float,
        metavar="NUMBER",
        help="a row of numbers, in the order of the features",
    )
    what.add_argument("--query", help="a relation or a query; give --key with it")
    parser.add_argument("--key", help="the column by which --query's rows are told apart")


def predict(arguments: argparse.Namespace) -> int:
    """Predict for rows given here, or for those of a query."""
    with connect(arguments) as connection:
        [model] = rows_of(
            connection,
            "SELECT m.task FROM distill.models m WHERE m.name = split_part(%s, ':', 1)"
            " AND CASE WHEN %s LIKE '%%:%%' THEN m.version = split_part(%s, ':', 2) ELSE m.active END",
            *[arguments.model] * 3,
        ) or [{"task": "regression"}]  # predict itself says that there is none
        task = model["task"]
        if arguments.query is not None:
            if arguments.key is None:
                raise InvalidParameter("--query needs --key")
            form = "score_class(%s, %s, %s)" if task == "multiclass" else "score(%s, %s, %s)"
            query = f"SELECT s.* FROM distill.{form} s"
            rows = rows_of(connection, query, arguments.model, arguments.query, arguments.key)
            show(arguments, rows, "no rows")
            return DONE
        if arguments.features is not None:
            inputs: list[Any] = [arguments.features]
            form = "float8[]"
        else:
            given: Iterable[str] = sys.stdin if arguments.row == ["-"] else arguments.row
            inputs, form = [line for line in given if line.strip()], "jsonb"
        if task == "regression":
            query = f"SELECT distill.predict(%s, %s::{form}) AS prediction"
        else:
            named = (
                "predict_classes(%s, x) AS classes"
                if task == "multilabel"
                else "predict_class(%s, x) AS class"
            )
            query = (
                f"SELECT distill.{named}, distill.predict_proba(m, x) AS probabilities"
                f" FROM (SELECT %s::{form} AS x, %s::text AS m) s"
            )
        rows = []
        for value in inputs:
            more = (arguments.model,) if task != "regression" else ()
            rows += rows_of(connection, query, arguments.model, value, *more)
    show(arguments, rows, "no rows")
    return DONE


def find(connection: psycopg.Connection[Any], model: str) -> dict[str, Any]:
    name, colon, version = model.partition(":")
    rows = rows_of(
        connection,
        "SELECT m.* FROM distill.models m WHERE m.name = %s AND "
        + ("m.version = %s" if colon else "m.active AND %s::text IS NOT NULL"),
        name,
        version,
    )
    if not rows:
        from pg_distill.errors import UndefinedModel

        raise UndefinedModel(f'model "{model}" does not exist')
    return rows[0]
