"""A student's SQL, as one expression or as the body of a function: with pgvector where it is, or without it."""

from __future__ import annotations

from collections.abc import Sequence

from pg_distill.database.exact import exact, needs_pgvector, stages
from pg_distill.database.pgvector import pgvector_schema
from pg_distill.database.protocol import Database
from pg_distill.errors import ArtifactCorrupted, FeatureNotSupported, InvalidState
from pg_distill.quoting import quote_identifier
from pg_distill.students import expression as native

__all__ = ["chosen_form", "expression_of", "is_inlined", "plpgsql_body", "schema_for"]

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


def is_inlined(db: Database, expression: str) -> bool:
    """Whether a function of the expression is to be of language sql, which PostgreSQL writes into the statement.

    It writes none with a sub-select, and a function of language sql that is not written out takes 20 to 100 us a call; PL/pgSQL
    takes 1 us and evaluates each step by itself.
    """
    if "(SELECT " not in expression and native.planning_ms(expression) <= INLINED_PLANNING_MS:
        return True
    return not any(row["usable"] for row in db.query(_PLPGSQL))


def plpgsql_body(form: str, schema: str | None, arguments: Sequence[tuple[str, str]], *, as_row: bool) -> str:
    """Return the body of a PL/pgSQL function that evaluates a student, each of its sub-selects as assignments.

    Parameters
    ----------
    arguments
        Names and types of the columns: the function's arguments, or ``as_row`` the columns of its only one.
    """
    steps, result = stages(form, schema)
    lines = []
    if any(needs_pgvector(text) for text in (result, *(step.sql for step in steps))):
        lines.append(
            f"-- needs pgvector (CREATE EXTENSION vector), whose types it expects in schema {schema}"
        )
    lines.append("DECLARE")
    for position, (name, type_name) in enumerate(arguments, 1):
        if as_row:
            lines.append(f"  {quote_identifier(name)} {type_name} := ($1).{quote_identifier(name)};")
        elif name == "found":  # a variable of PL/pgSQL's own
            lines.append(f"  {quote_identifier(name)} ALIAS FOR ${position};")
    lines += [f"  {step.name} {step.type_name};" for step in steps]
    lines.append("BEGIN")
    lines += [f"  {step.name} := {step.sql};" for step in steps]
    return "\n".join([*lines, f"  RETURN {result};", "END"])
