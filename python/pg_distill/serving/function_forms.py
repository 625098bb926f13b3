"""What a model's function is: its arguments, its language and its body; and the model as SQL without a function."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pg_distill.database.exact import exact, stages
from pg_distill.database.protocol import Database
from pg_distill.errors import FeatureNotSupported, InvalidName
from pg_distill.onnx_model.signature import FeatureSpec
from pg_distill.quoting import quote_identifier, quote_literal
from pg_distill.registry.model import MAX_NAME_BYTES, Model
from pg_distill.registry.models import find_model
from pg_distill.rows.canonical import base_of
from pg_distill.serving.sql_forms import (
    body_of_steps,
    chosen_form,
    expression_of,
    has_plpgsql,
    plpgsql_body,
    schema_for,
)
from pg_distill.serving.text_forms import TABLE, TextForm, read_texts
from pg_distill.students import expression as native

__all__ = [
    "MAX_ARGUMENTS",
    "ROW_TYPE",
    "Argument",
    "FunctionForm",
    "argument_of",
    "creation",
    "native_form",
    "predict_form",
    "require_room",
    "split_name",
    "to_sql",
]

MAX_ARGUMENTS = 100  # FUNC_MAX_ARGS of a server as it is usually built


ROW_TYPE = "_features"  # after the function's name: that of its argument, where it is a row


_TIMESTAMPS = {
    "date": "date",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
}


_DIGITS = {"int2": "smallint", "int4": "integer", "int8": "bigint", "numeric": "numeric"}


_CITEXT = re.compile(r'.*\."?citext"?')


@dataclass(frozen=True)
class Argument:
    """A feature as an argument: ``value`` is SQL of it as float8 (text for a string)."""

    feature: FeatureSpec
    type_name: str
    value: str


@dataclass(frozen=True)
class FunctionForm:
    """What a function is: ``text`` where a table of n-grams, ``table``, goes with it."""

    language: str
    body: str
    labels: str
    text: TextForm | None = None
    table: str = ""

    @property
    def immutable(self) -> bool:
        """Whether the same arguments have the same answer for ever."""
        return self.labels.startswith("IMMUTABLE")


def to_sql(db: Database, name: str, *, pgvector: bool | None = None, function_name: str | None = None) -> str:
    """Return a model as one SQL expression over columns of its features' names, or as a script that makes a function of it.

    Parameters
    ----------
    pgvector
        Whether in the form with pgvector; None: where this database has it, and the model such a form.
    function_name
        What the script's function is called; None: there is no script.

    Raises
    ------
    FeatureNotSupported
        It has none: it is not a student, or of a family or size without one.
    InvalidState
        pgvector is wanted, or needed, and not there.
    """
    model = find_model(db, name)
    if function_name is not None:
        return _script(db, model, function_name, pgvector)
    if model.kind == "logged" or model.expression is None:
        raise FeatureNotSupported(
            f'model "{model.qualified_name}" has no form as a SQL expression',
            hint="Students have one, unless it would be too large.",
        )
    text = model.expression.text_for_caller(db)
    if model.kind != "onnx":
        return text
    schema = schema_for(db, pgvector)
    of_texts = native.of_texts(chosen_form(text, schema, wanted=pgvector))
    if of_texts is not None:
        return read_texts(db, model, of_texts).inline()
    return expression_of(text, schema, wanted=pgvector)


def _script(db: Database, model: Model, function_name: str, pgvector: bool | None) -> str:
    """Return statements that make a model's function, and what it needs, on a PostgreSQL that has no extension."""
    schema, bare = split_name(db, function_name)
    arguments = [argument_of(f, model.types.get(f.name)) for f in model.signature.features]
    wide = len(arguments) > MAX_ARGUMENTS
    form = native_form(db, model, arguments, wide, pgvector, schema, bare)
    declared = ", ".join(f"{quote_identifier(a.feature.name)} {a.type_name}" for a in arguments)
    qualified = f"{quote_identifier(schema)}.{quote_identifier(bare)}"
    statements = []
    if form.text is not None:
        statements.append(_UTF8_ONLY)
        statements += form.text.create(form.table)
    if wide:
        row_type = f"{quote_identifier(schema)}.{quote_identifier(bare + ROW_TYPE)}"
        statements.append(f"CREATE TYPE {row_type} AS ({declared})")
        declared = f"features {row_type}"
    returns = "double precision" if model.signature.one_number else "double precision[]"
    statements.append(creation("CREATE", f"{qualified}({declared})", returns, form))
    return "".join(f"{statement};\n" for statement in statements)


_UTF8_ONLY = (
    "DO $$ BEGIN IF pg_catalog.current_setting('server_encoding') OPERATOR(pg_catalog.<>) 'UTF8' THEN"
    " RAISE EXCEPTION 'a student of texts needs a database of encoding UTF8' USING ERRCODE = '0A000'; END IF; END $$"
)


def creation(create: str, declared: str, returns: str, form: FunctionForm) -> str:
    """Return the statement that makes a function."""
    # A text body, not a parsed one: that loads into servers before 14 too.
    return (
        f"{create} FUNCTION {declared} RETURNS {returns} LANGUAGE {form.language} {form.labels}"
        f" AS {quote_literal(form.body)}"
    )


_NAME = re.compile(r"""\s*(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)\s*""")


def split_name(db: Database, name: str) -> tuple[str, str]:
    """Return the schema and the bare name of a function; InvalidName where it is none."""
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


def require_room(bare: str, behind: str) -> None:
    """Refuse a function's name where PostgreSQL would cut it, or that of what goes with it, and so find another's."""
    if len((bare + behind).encode()) > MAX_NAME_BYTES:
        raise InvalidName(f'function name "{bare}" is longer than PostgreSQL takes')


def _parallel_label(db: Database) -> str:
    """Return what predict is labelled on this server."""
    row = db.query(
        "select p.proparallel = 's' as safe from pg_catalog.pg_proc p"
        " where p.oid = 'distill._predict(text, pg_catalog.float8[], bytea)'::pg_catalog.regprocedure"
    )[0]
    return "SAFE" if row["safe"] else "UNSAFE"


def argument_of(feature: FeatureSpec, sql_type: str | None) -> Argument:
    """Return a feature, whose column has a SQL type, as an argument."""
    name, base = quote_identifier(feature.name), base_of(sql_type)
    if feature.is_string:
        # What PostgreSQL passes for a text by itself is one; else the column's own type, or it could not be passed at all.
        if sql_type is None or "." not in sql_type or base in ("text", "varchar", "name", "char"):
            return Argument(feature, "text", name)
        if _CITEXT.fullmatch(sql_type):
            return Argument(feature, "text", name)
        # Without its modifier, which in a row's type is one character if nothing is said.
        known = "pg_catalog.bpchar" if base == "bpchar" else _DIGITS.get(base, sql_type)
        return Argument(feature, known, f"{name}::pg_catalog.text")
    if feature.is_vector:
        known = (
            "double precision[]" if base == "_float8" else "real[]" if base or sql_type is None else sql_type
        )
        if base == "_float8":
            return Argument(feature, known, f"distill._array_bytes({name})")
        return Argument(
            feature, known, f"distill._vector_bytes({name}{'' if base else '::pg_catalog._float4'})"
        )
    if feature.kind == "boolean":
        return Argument(feature, "boolean", f"{name}::pg_catalog.int4::pg_catalog.float8")
    if feature.kind == "integer":
        return Argument(feature, "bigint", f"{name}::pg_catalog.float8")
    if feature.kind == "timestamp":
        # Of unknown type: PostgreSQL refuses to pass a timestamptz for a timestamp; the other way round it would convert it
        # by the session's time zone.
        known = _TIMESTAMPS.get(base, "timestamp without time zone")
        return Argument(feature, known, f"pg_catalog.date_part('epoch', {name})")
    return Argument(feature, "double precision", name)


def predict_form(
    db: Database, model: Model, target: str, arguments: list[Argument], wide: bool
) -> FunctionForm:
    """Return a function that calls predict with the model ``target``."""
    body = _predict_body(model, target, arguments, wide)
    return FunctionForm("sql", body, f"STABLE PARALLEL {_parallel_label(db)}")


def _predict_body(model: Model, target: str, arguments: list[Argument], wide: bool) -> str:
    source = [a.value if not wide else _of_row(a) for a in arguments]
    numbers = [
        v
        for v, a in zip(source, arguments, strict=True)
        if not a.feature.is_string and not a.feature.is_vector
    ]
    vectors = [v for v, a in zip(source, arguments, strict=True) if a.feature.is_vector]
    strings = [v for v, a in zip(source, arguments, strict=True) if a.feature.is_string]
    given = f"ARRAY[{', '.join(numbers)}]::pg_catalog.float8[]"
    if strings:
        given += f", ARRAY[{', '.join(strings)}]::pg_catalog.text[]"
    function = "predict" if model.signature.one_number else "predict_proba"
    if vectors:
        # Their bytes, of which a list would take 40 us.
        given = (
            f"ARRAY[{', '.join(numbers)}]::pg_catalog.float8[], ARRAY[{', '.join(strings)}]::pg_catalog.text[],"
            f" ARRAY[{', '.join(vectors)}], pg_catalog.pg_snapshot_send(pg_catalog.pg_current_snapshot())"
        )
        return f"SELECT distill._{function}({quote_literal(target)}, {given})"
    return f"SELECT distill.{function}({quote_literal(target)}, {given})"


def _of_row(argument: Argument) -> str:
    name = quote_identifier(argument.feature.name)
    return argument.value.replace(name, f"(features).{name}")


def native_form(
    db: Database,
    model: Model,
    arguments: list[Argument],
    wide: bool,
    pgvector: bool | None,
    schema_name: str,
    bare: str,
) -> FunctionForm:
    """Return a function that is the student itself."""
    if model.kind != "onnx" or model.expression is None:
        raise FeatureNotSupported(
            f'model "{model.qualified_name}" has no form as a SQL expression of its own',
            hint="Students have one, unless it would be too large.",
        )
    schema = schema_for(db, pgvector)
    form = chosen_form(model.expression.text_for_caller(db), schema, wanted=pgvector)
    for argument in arguments:
        if argument.type_name == "timestamp with time zone":
            # date_part of a timestamptz is only STABLE, as it may look at the time zone; its epoch does not.
            read = native.canonical(quote_identifier(argument.feature.name), "timestamp")
            form = form.replace(
                read, native.canonical(quote_identifier(argument.feature.name), "timestamp", "timestamptz")
            )
    columns = [(a.feature.name, a.type_name) for a in arguments]
    # Names of columns, as the expression has them, of the one argument.
    source = " FROM (SELECT (features).*) AS f" if wide else ""
    of_texts = native.of_texts(form)
    if of_texts is not None:
        require_room(bare, TABLE)
        table = f"{quote_identifier(schema_name)}.{quote_identifier(bare + TABLE)}"
        text = read_texts(db, model, of_texts)
        # It reads a table, and so is not IMMUTABLE.
        labels = "STABLE PARALLEL SAFE"
        found = stages(of_texts) if has_plpgsql(db) else None
        if found is None:
            return FunctionForm("sql", f"SELECT {text.over(table)}{source}", labels, text, table)
        body = body_of_steps(found, schema, columns, as_row=wide, texts=text.steps(table))
        return FunctionForm("plpgsql", body, labels, text, table)
    labels = "IMMUTABLE PARALLEL SAFE"
    steps = plpgsql_body(db, form, schema, columns, as_row=wide)
    if steps is not None:
        return FunctionForm("plpgsql", steps, labels)
    return FunctionForm("sql", f"SELECT {exact(form, schema)}{source}", labels)
