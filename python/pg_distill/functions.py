"""A model as a SQL function of its own: named, typed arguments, and either predict or the student's own SQL inside."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pg_distill import native
from pg_distill.database import Database, quote_identifier, quote_literal
from pg_distill.errors import FeatureNotSupported, InvalidName, InvalidState
from pg_distill.lexer import exact
from pg_distill.onnx_model import FeatureSpec
from pg_distill.registry import Dropped, Model, find_model

__all__ = ["create_function", "to_sql"]

MAX_ARGUMENTS = 100  # FUNC_MAX_ARGS of a server as it is usually built
COMMENT = "pg_distill model "  # and the model's name: what sql/61_functions.sql knows our functions by
SLOW_PLANNING_MS = 5.0  # from here on planning shows beside the network's round trip

_TIMESTAMPS = ("date", "timestamp without time zone", "timestamp with time zone")


@dataclass(frozen=True)
class _Argument:
    """A feature as an argument: ``value`` is SQL of it as float8 (text for a string)."""

    feature: FeatureSpec
    type_name: str
    value: str


def to_sql(db: Database, name: str) -> str:
    """Return a model as one SQL expression over columns of its features' names.

    Raises
    ------
    FeatureNotSupported
        It has none: it is not a student, or of a family or size without one.
    """
    model = find_model(db, name)
    if model.kind == "logged" or model.expression is None:
        raise FeatureNotSupported(
            f'model "{model.qualified_name}" has no form as a SQL expression',
            hint="Linear students, trees and small networks have one.",
        )
    text = model.expression.text_for_caller(db)
    return exact(text) if model.kind == "onnx" else text


def create_function(db: Database, name: str, function_name: str, *, as_sql: bool, replace: bool) -> str:
    """Create a function whose arguments are the model's features; return its signature.

    The function is the caller's object, not the extension's: pg_dump dumps it, and its comment names the model that it goes
    with when that is dropped.

    Raises
    ------
    InvalidName
        ``function_name`` is not a name, with or without a schema.
    FeatureNotSupported
        ``as_sql`` for a model without a SQL expression.
    """
    model = find_model(db, name)
    if model.kind == "logged":
        raise InvalidState(f'model "{model.qualified_name}" is logged: it predicts elsewhere')
    schema, bare = _function_name(db, function_name)
    qualified = f"{quote_identifier(schema)}.{quote_identifier(bare)}"
    # A bare name follows the active version; what is written out is one version's.
    target = model.qualified_name if as_sql else name
    comment = COMMENT + target
    arguments = [_argument(f, model.types.get(f.name)) for f in model.signature.features]
    wide = len(arguments) > MAX_ARGUMENTS
    row_type = ""
    returns = "double precision[]" if model.task == "multiclass" else "double precision"
    columns = [[a.feature.name, a.type_name] for a in arguments]
    kept = replace and _keep_or_drop(db, schema, bare, columns, returns)
    declared = ", ".join(f"{quote_identifier(column)} {type_name}" for column, type_name in columns)
    if wide:
        row_type = f"{quote_identifier(schema)}.{quote_identifier(bare + '_features')}"
        if not kept:
            db.query(f"create type {row_type} as ({declared})", keep=False)
        db.query(f"comment on type {row_type} is {quote_literal(comment)}", keep=False)
        declared = f"features {row_type}"
    if as_sql:
        labels, body = "IMMUTABLE PARALLEL SAFE", _native_body(db, model, arguments, wide)
        cost = native.planning_ms(body)
        if cost > SLOW_PLANNING_MS:
            db.notice(f"each statement that calls {qualified} takes about {cost:.0f} ms more to plan")
    else:
        labels, body = f"STABLE PARALLEL {_parallel_label(db)}", _predict_body(model, target, arguments, wide)
    create = "CREATE OR REPLACE" if kept else "CREATE"
    # A text body, not a parsed one: that loads into servers before 14 too.
    db.query(
        f"{create} FUNCTION {qualified}({declared}) RETURNS {returns} LANGUAGE sql {labels} AS {quote_literal(body)}",
        keep=False,
    )
    signature = f"{qualified}({row_type if wide else ', '.join(a.type_name for a in arguments)})"
    db.query(f"comment on function {signature} is {quote_literal(comment)}", keep=False)
    if not as_sql:
        db.query(f"alter function {signature} depends on extension pg_distill", keep=False)
    return signature


def _keep_or_drop(db: Database, schema: str, bare: str, declared: list[list[str]], returns: str) -> bool:
    """Drop what earlier calls made under this name with other arguments; return whether one with the same is left.

    The comment tells ours from everybody else's. Not CASCADE: what depends on it stays, and is an error.
    """
    found = db.query(
        "select p.oid::pg_catalog.regprocedure::pg_catalog.text as signature,"
        " t.oid::pg_catalog.regtype::pg_catalog.text as row_type,"
        " case when t.oid is null then (select pg_catalog.json_agg(pg_catalog.json_build_array(a.name,"
        " pg_catalog.format_type(a.type, null)) order by a.place) from rows from (pg_catalog.unnest(p.proargnames),"
        " pg_catalog.unnest(p.proargtypes::pg_catalog.oid[])) with ordinality a(name, type, place))"
        " else (select pg_catalog.json_agg(pg_catalog.json_build_array(a.attname, pg_catalog.format_type(a.atttypid, null))"
        " order by a.attnum) from pg_catalog.pg_attribute a where a.attrelid = t.typrelid and not a.attisdropped)"
        " end::pg_catalog.text as declared, pg_catalog.format_type(p.prorettype, null) as returns"
        " from pg_catalog.pg_proc p join pg_catalog.pg_description d"
        " on d.classoid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objoid = p.oid and d.objsubid = 0"
        " left join pg_catalog.pg_type t on p.pronargs = 1 and t.oid = p.proargtypes[0] and t.typtype = 'c'"
        " and pg_catalog.obj_description(t.oid, 'pg_type') = d.description"
        " where p.pronamespace = (select n.oid from pg_catalog.pg_namespace n where n.nspname = $1) and p.proname = $2"
        " and p.prokind = 'f' and pg_catalog.starts_with(d.description, $3)",
        ("text", schema),
        ("text", bare),
        ("text", COMMENT),
    )
    same = [
        row for row in found if json.loads(row["declared"] or "[]") == declared and row["returns"] == returns
    ]
    for row in found:
        if row not in same:
            db.query(f"drop function {row['signature']}", keep=False)
            if row["row_type"] is not None:
                db.query(f"drop type {row['row_type']}", keep=False)
    return bool(same)


def drop_functions(db: Database, dropped: Sequence[Dropped]) -> None:
    """Drop the functions of models that are gone, with the current role's rights.

    Anybody may write the comment that says which model a function is of, on a function of his own. So only what is the
    current role's stops the drop where something depends on it; the function of another stays then, with a warning.

    Raises
    ------
    PostgreSQL's error (2BP01)
        Something depends on a function of the current role's.
    """
    comments = {COMMENT + f"{d.name}:{d.version}" for d in dropped} | {
        COMMENT + d.name for d in dropped if d.last
    }
    found = db.query(
        "select distinct p.oid::pg_catalog.regprocedure::pg_catalog.text as signature,"
        " t.oid::pg_catalog.regtype::pg_catalog.text as row_type, r.rolname::pg_catalog.text = current_user as own,"
        " pg_catalog.pg_has_role(p.proowner, 'USAGE') and (t.oid is null or pg_catalog.pg_has_role(t.typowner, 'USAGE')) as may"
        " from pg_catalog.pg_description d join pg_catalog.pg_proc p on p.oid = d.objoid and p.prokind = 'f'"
        " join pg_catalog.pg_roles r on r.oid = p.proowner"
        " left join pg_catalog.pg_type t on p.pronargs = 1 and t.oid = p.proargtypes[0] and t.typtype = 'c'"
        " and pg_catalog.obj_description(t.oid, 'pg_type') = d.description"
        " where d.classoid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objsubid = 0 and d.description = any ($1)",
        ("text[]", sorted(comments)),
    )
    for row in found:
        statements = [f"drop function {row['signature']}"]
        if row["row_type"] is not None:
            statements.append(f"drop type {row['row_type']}")
        try:
            if row["may"]:
                with db.subtransaction():
                    for statement in statements:
                        db.query(statement, keep=False)
                continue
        except Exception as error:
            if row["own"] or getattr(error, "sqlstate", None) != "2BP01":
                raise
        db.warning(f"function {row['signature']} of a dropped model stays, as another role owns it")


_NAME = re.compile(r"""\s*(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)\s*""")


def _function_name(db: Database, name: str) -> tuple[str, str]:
    # parse_ident has SQLSTATEs of its own for what is no name.
    if not re.fullmatch(rf"{_NAME.pattern}(?:\.{_NAME.pattern})?", name):
        raise InvalidName(
            f'function name "{name}" is not valid', detail="It is a name, or a schema's name and a name."
        )
    parts = db.query_exact(
        "select pg_catalog.parse_ident($1) as parts, pg_catalog.current_schema()::pg_catalog.text as schema",
        ("text", name),
    )[0]
    if len(parts["parts"]) == 1 and parts["schema"] is None:
        raise InvalidName(f'function name "{name}" has no schema, and search_path names none that exists')
    return (parts["parts"][0] if len(parts["parts"]) == 2 else parts["schema"]), parts["parts"][-1]


def _parallel_label(db: Database) -> str:
    """Return what predict is labelled on this server."""
    row = db.query(
        "select p.proparallel = 's' as safe from pg_catalog.pg_proc p"
        " where p.oid = 'distill._predict(text, pg_catalog.float8[], bytea)'::pg_catalog.regprocedure"
    )[0]
    return "SAFE" if row["safe"] else "UNSAFE"


def _argument(feature: FeatureSpec, sql_type: str | None) -> _Argument:
    name = quote_identifier(feature.name)
    if feature.kind == "string":
        return _Argument(feature, "text", name)
    if feature.kind == "boolean":
        return _Argument(feature, "boolean", f"{name}::pg_catalog.int4::pg_catalog.float8")
    if feature.kind == "integer":
        return _Argument(feature, "bigint", f"{name}::pg_catalog.float8")
    if feature.kind == "timestamp":
        # Of unknown type: PostgreSQL refuses to pass a timestamptz for a timestamp; the other way round it would convert it
        # by the session's time zone.
        known = sql_type if sql_type in _TIMESTAMPS else "timestamp without time zone"
        return _Argument(feature, known, f"pg_catalog.date_part('epoch', {name})")
    return _Argument(feature, "double precision", name)


def _predict_body(model: Model, target: str, arguments: list[_Argument], wide: bool) -> str:
    source = [a.value if not wide else _of_row(a) for a in arguments]
    numbers = [v for v, a in zip(source, arguments, strict=True) if a.feature.kind != "string"]
    strings = [v for v, a in zip(source, arguments, strict=True) if a.feature.kind == "string"]
    given = f"ARRAY[{', '.join(numbers)}]::pg_catalog.float8[]"
    if strings:
        given += f", ARRAY[{', '.join(strings)}]::pg_catalog.text[]"
    function = "predict_proba" if model.task == "multiclass" else "predict"
    return f"SELECT distill.{function}({quote_literal(target)}, {given})"


def _of_row(argument: _Argument) -> str:
    name = quote_identifier(argument.feature.name)
    return argument.value.replace(name, f"(features).{name}")


def _native_body(db: Database, model: Model, arguments: list[_Argument], wide: bool) -> str:
    if model.kind != "onnx" or model.expression is None:
        raise FeatureNotSupported(
            f'model "{model.qualified_name}" has no form as a SQL expression of its own',
            hint="Linear students, trees and small networks have one.",
        )
    expression = model.expression.text_for_caller(db)
    for argument in arguments:
        if argument.type_name == "timestamp with time zone":
            # date_part of a timestamptz is only STABLE, as it may look at the time zone; its epoch does not.
            read = native.canonical(quote_identifier(argument.feature.name), "timestamp")
            expression = expression.replace(
                read, native.canonical(quote_identifier(argument.feature.name), "timestamp", "timestamptz")
            )
    expression = exact(expression)
    if not wide:
        return f"SELECT {expression}"
    # Names of columns, as the expression has them, of the one argument.
    return f"SELECT {expression} FROM (SELECT (features).*) AS f"
