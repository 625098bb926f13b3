"""A student's SQL, as one expression or as the body of a function: with pgvector where it is, or without it."""

from __future__ import annotations

from collections.abc import Sequence

from pg_distill.database.exact import Stages, Step, exact, needs_pgvector, stages
from pg_distill.database.pgvector import pgvector_schema
from pg_distill.database.protocol import Database
from pg_distill.errors import ArtifactCorrupted, FeatureNotSupported, InvalidState
from pg_distill.quoting import quote_identifier
from pg_distill.students import expression as native

__all__ = [
    "body_of_steps",
    "chosen_form",
    "expression_of",
    "has_plpgsql",
    "plpgsql_body",
    "schema_for",
]

INLINED_PLANNING_MS = 5.0
"""What an expression may take to plan in every statement; from here on that shows beside the network's round trip, and default
JIT compiles it. As PL/pgSQL it is planned once a session."""

_PLPGSQL = (
    "select pg_catalog.has_language_privilege(l.oid, 'USAGE') as usable from pg_catalog.pg_language l"
    " where l.lanname = 'plpgsql'"
)


def schema_for(db: Database, wanted: bool | None) -> str | None:
    """Return pgvector's schema, None where it is not there or not to be used.

    Parameters
    ----------
    wanted
        Whether the form with pgvector is; None: where the database has it.

    Raises
    ------
    InvalidState
        It is wanted, and not there.
    """
    found = pgvector_schema(db) if wanted is not False else None
    if wanted and found is None:
        raise InvalidState(
            "pgvector is not there for the current role in this database", hint="CREATE EXTENSION vector."
        )
    return found


def chosen_form(text: str, schema: str | None, *, wanted: bool | None = None) -> str:
    """Return the form of a student's stored SQL for a database that has pgvector in ``schema``, or that has none.

    Raises
    ------
    FeatureNotSupported
        The student has no such form.
    InvalidState
        It has none but with pgvector, which is not there.
    """
    try:
        by_vectors, plain = native.form(text, vectors=True), native.form(text, vectors=False)
    except ValueError:
        raise ArtifactCorrupted("the forms of a student's SQL are not readable") from None
    if wanted and by_vectors == plain:
        raise FeatureNotSupported("this student's SQL has no use for pgvector: it is no network")
    if schema is not None and by_vectors:
        return by_vectors
    if plain:
        return plain
    if wanted is False:
        raise FeatureNotSupported("this student has a form as SQL with pgvector only")
    raise InvalidState(
        "this student's form as SQL needs pgvector, which is not there for the current role in this database",
        hint="CREATE EXTENSION vector, or call distill.predict.",
    )


def expression_of(text: str, schema: str | None, *, wanted: bool | None = None) -> str:
    """Return a student's stored SQL as it is run; see `chosen_form`."""
    return exact(chosen_form(text, schema, wanted=wanted), schema)


def plpgsql_body(
    db: Database, form: str, schema: str | None, arguments: Sequence[tuple[str, str]], *, as_row: bool
) -> str | None:
    """Return the body of a PL/pgSQL function that is a student; None where one of language sql is better, or the only one.

    PostgreSQL writes a function of language sql into the statement, unless it has a sub-select: then a call takes 20 to 100 us.
    PL/pgSQL takes one or two, evaluates each step by itself, and is planned once a session.

    Parameters
    ----------
    form
        As `chosen_form` gives it.
    arguments
        Names and types of the columns: the function's arguments, or ``as_row`` the columns of its only one.
    """
    expression = exact(form, schema)
    if "(SELECT " not in expression and native.planning_ms(expression) <= INLINED_PLANNING_MS:
        return None
    steps = stages(form, schema)
    if steps is None or not has_plpgsql(db):
        return None
    return body_of_steps(steps, schema, arguments, as_row=as_row)


def has_plpgsql(db: Database) -> bool:
    """Return whether the current role may make functions in PL/pgSQL."""
    return any(row["usable"] for row in db.query(_PLPGSQL))


def body_of_steps(
    found: Stages,
    schema: str | None,
    arguments: Sequence[tuple[str, str]],
    *,
    as_row: bool,
    texts: Sequence[Step] = (),
) -> str:
    """Return the body of a PL/pgSQL function that evaluates steps; see `plpgsql_body`.

    ``texts`` are queries for numbers of texts (see ``text_forms``), which come first.
    """
    lines = []
    if texts:
        # A query's own columns have names that an argument may have too.
        lines.append("#variable_conflict use_column")
    if any(needs_pgvector(text) for text in (found.result, *(step.sql for step in found.steps))):
        lines.append(
            f"-- needs pgvector (CREATE EXTENSION vector), whose types it expects in schema {schema}"
        )
    lines.append("DECLARE")
    for position, (name, type_name) in enumerate(arguments, 1):
        if as_row:
            lines.append(f"  {quote_identifier(name)} {type_name} := ($1).{quote_identifier(name)};")
        elif name == "found":  # a variable of PL/pgSQL's own
            lines.append(f"  {quote_identifier(name)} ALIAS FOR ${position};")
    lines += [f"  {step.name} {step.type_name};" for step in (*texts, *found.steps)]
    lines.append("BEGIN")
    for step in texts:
        lines += [
            f"  {step.name} := {step.sql};",
            f"  IF pg_catalog.array_position({step.name}, NULL::pg_catalog.float8) IS NOT NULL THEN",
            "    RAISE EXCEPTION 'the table of n-grams is not the one that this function was made with'",
            "      USING ERRCODE = '55000', HINT = 'Make the function anew.';",
            "  END IF;",
        ]
    lines += [f"  {step.name} := {step.sql};" for step in found.steps]
    return "\n".join([*lines, f"  RETURN {found.result};", "END"])
