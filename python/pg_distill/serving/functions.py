"""A model as a SQL function of its own: named, typed arguments, and either predict or the student's own SQL inside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from pg_distill.database.protocol import Database, Row
from pg_distill.errors import DependentObjects, InsufficientPrivilege, InvalidState
from pg_distill.quoting import quote_identifier, quote_literal
from pg_distill.registry.model import Dropped
from pg_distill.registry.models import find_model
from pg_distill.serving.dependents import OWN, StoredResults, find_blocking, find_stored_results
from pg_distill.serving.function_forms import (
    MAX_ARGUMENTS,
    ROW_TYPE,
    Argument,
    argument_of,
    creation,
    native_form,
    predict_form,
    require_room,
    split_name,
)
from pg_distill.serving.text_forms import TABLE, drop_table, grant_as_function
from pg_distill.students import expression as native

__all__ = ["create_function", "drop_functions"]

COMMENT = "pg_distill model "  # and the model's name: what a function of a dropped model is known by
SLOW_PLANNING_MS = 5.0  # from here on planning shows beside the network's round trip
MAX_NAMED = 20  # functions that a warning names: anybody may plant thousands


def create_function(
    db: Database,
    name: str,
    function_name: str,
    *,
    as_sql: bool,
    replace: bool,
    keep_dependents: bool,
    pgvector: bool | None = None,
) -> str:
    """Create a function whose arguments are the model's features; return its signature.

    The function is the caller's object, not the extension's: pg_dump dumps it, and its comment names the model that it goes
    with when that is dropped. Only what is the caller's own is replaced, by a superuser too. ``pgvector`` as in `to_sql`.

    Raises
    ------
    InvalidName
        ``function_name`` is not a name, with or without a schema.
    FeatureNotSupported
        ``as_sql`` for a model without a SQL expression.
    InsufficientPrivilege
        The schema has a function of this name that is another role's: it could be called in place of this one.
    DependentObjects
        An index or the like holds results of a function that is to answer otherwise, without ``keep_dependents``.
    """
    model = find_model(db, name)
    if model.kind == "logged":
        raise InvalidState(f'model "{model.qualified_name}" is logged: it predicts elsewhere')
    schema, bare = split_name(db, function_name)
    wide = len(model.signature.features) > MAX_ARGUMENTS
    require_room(bare, ROW_TYPE if wide else "")
    qualified = f"{quote_identifier(schema)}.{quote_identifier(bare)}"
    # A bare name follows the active version; what is written out is one version's.
    target = model.qualified_name if as_sql else name
    comment = COMMENT + target
    arguments = [argument_of(f, model.types.get(f.name)) for f in model.signature.features]
    row_type = ""
    returns = "double precision" if model.signature.one_number else "double precision[]"
    if as_sql:
        form = native_form(db, model, arguments, wide, pgvector, schema, bare)
        cost = native.planning_ms(form.body)
        if cost > SLOW_PLANNING_MS:
            how = "each statement that calls" if form.language == "sql" else "the first call in a session of"
            db.notice(f"{how} {qualified} takes about {cost:.0f} ms more to plan")
    else:
        form = predict_form(db, model, target, arguments, wide)
    kept = _keep_or_drop(db, schema, bare, _shown(db, arguments), returns) if replace else None
    stale: Sequence[StoredResults] = ()
    if kept is not None and (kept["prosrc"], kept["immutable"]) != (form.body, form.immutable):
        stale = find_stored_results(db, kept["oid"])
        _require_told(qualified, stale, form.immutable, keep_dependents)
    if form.text is not None:
        for statement in form.text.create(form.table):
            db.query(statement, keep=False)
        db.query(f"comment on table {form.table} is {quote_literal(comment)}", keep=False)
    declared = ", ".join(f"{quote_identifier(a.feature.name)} {a.type_name}" for a in arguments)
    if wide:
        row_type = f"{quote_identifier(schema)}.{quote_identifier(bare + ROW_TYPE)}"
        if kept is None:
            db.query(f"create type {row_type} as ({declared})", keep=False)
        db.query(f"comment on type {row_type} is {quote_literal(comment)}", keep=False)
        declared = f"features {row_type}"
    create = "CREATE OR REPLACE" if kept is not None else "CREATE"
    db.query(creation(create, f"{qualified}({declared})", returns, form), keep=False)
    # After it: what another role has put here meanwhile is seen, and the function's own row is locked.
    _require_own(db, _of_name(db, schema, bare), qualified)
    signature = f"{qualified}({row_type if wide else ', '.join(a.type_name for a in arguments)})"
    db.query(f"comment on function {signature} is {quote_literal(comment)}", keep=False)
    if not as_sql or kept is not None:
        no = "no " if as_sql else ""
        db.query(f"alter function {signature} {no}depends on extension pg_distill", keep=False)
    if form.text is not None:
        grant_as_function(db, form.table, signature)
    if stale:
        db.warning(
            f"{len(stale)} object{'s hold' if len(stale) > 1 else ' holds'} results of function {qualified} as it was",
            detail=_lines(f"{found.what}: {found.command};" for found in stale),
            hint="Run these commands; until then queries may answer wrongly.",
        )
    return signature


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(parts)


def _require_told(
    qualified: str, stale: Sequence[StoredResults], immutable: bool, keep_dependents: bool
) -> None:
    """Refuse to leave stored results behind that nobody asked to keep, or that PostgreSQL takes for unchanging."""
    lost = [found for found in stale if found.needs_immutable] if not immutable else []
    if lost:
        raise DependentObjects(
            f"function {qualified} must stay IMMUTABLE because stored results depend on it",
            detail=_lines(f"{found.what} depends on it" for found in lost),
            hint="Drop these first, or replace it with as_sql => true.",
        )
    if stale and not keep_dependents:
        raise DependentObjects(
            f"function {qualified} cannot be replaced because stored results of it would stay as they are",
            detail=_lines(f"{found.what} depends on it" for found in stale),
            hint="Pass keep_dependents => true, and then run "
            + "; ".join(found.command for found in stale)
            + ".",
        )


_OWN = f"{OWN.format(owner='p.proowner')} and {OWN.format(owner='coalesce(t.typowner, p.proowner)')}"
_OURS = """
left join pg_catalog.pg_description d
    on d.classoid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objoid = p.oid and d.objsubid = 0
left join pg_catalog.pg_type t on p.pronargs = 1 and t.oid = p.proargtypes[0] and t.typtype = 'c'
    and pg_catalog.obj_description(t.oid, 'pg_type') = d.description
"""

# Every function that a call of the name could find in a schema.
_OF_NAME = f"""
select p.oid, p.oid::pg_catalog.regprocedure::pg_catalog.text as signature, p.prosrc, p.provolatile = 'i' as immutable,
    o.rolname::pg_catalog.text as owner, {_OWN} as own, o.rolsuper as by_superuser,
    p.prokind = 'f' and pg_catalog.starts_with(coalesce(d.description, ''), $3) as ours,
    t.oid::pg_catalog.regtype::pg_catalog.text as row_type, pg_catalog.format_type(p.prorettype, null) as returns,
    case when t.oid is null then (
        select pg_catalog.json_agg(pg_catalog.json_build_array(a.name, pg_catalog.format_type(a.type, null)) order by a.place)
        from rows from (pg_catalog.unnest(p.proargnames), pg_catalog.unnest(p.proargtypes::pg_catalog.oid[]))
            with ordinality a(name, type, place))
    else (
        select pg_catalog.json_agg(pg_catalog.json_build_array(a.attname, pg_catalog.format_type(a.atttypid, null))
                                   order by a.attnum)
        from pg_catalog.pg_attribute a where a.attrelid = t.typrelid and not a.attisdropped)
    end::pg_catalog.text as declared
from pg_catalog.pg_proc p join pg_catalog.pg_roles o on o.oid = p.proowner {_OURS}
where p.prokind <> 'p' and p.proname = $2
    and p.pronamespace = (select n.oid from pg_catalog.pg_namespace n where n.nspname = $1)"""


def _of_name(db: Database, schema: str, bare: str) -> list[Row]:
    return db.query(_OF_NAME, ("text", schema), ("text", bare), ("text", COMMENT))


def _require_own(db: Database, found: Sequence[Row], qualified: str) -> None:
    """Refuse a name under which another role has a function: that would win some calls, or be changed by it later."""
    for row in found:
        if not row["own"] and not row["by_superuser"]:
            raise InsufficientPrivilege(
                f'function {qualified} would stand beside or replace one of role "{row["owner"]}"',
                detail=f'Role "{row["owner"]}" owns {row["signature"]}, and may change what it does.',
                hint=f"Drop it (DROP FUNCTION {row['signature']}), or choose another name or schema.",
            )


def _keep_or_drop(
    db: Database, schema: str, bare: str, declared: list[list[str]], returns: str
) -> Row | None:
    """Drop what earlier calls made under this name with other arguments; return what is left: one with the same.

    The comment tells ours from everybody else's, and is its owner's claim: what is not the caller's own is an error. Not CASCADE:
    what depends on it stays, and is an error.
    """
    found = _of_name(db, schema, bare)
    _require_own(db, found, f"{quote_identifier(schema)}.{quote_identifier(bare)}")
    drop_table(db, schema, bare, COMMENT)
    ours = [row for row in found if row["ours"] and row["own"]]
    same = [
        row for row in ours if json.loads(row["declared"] or "[]") == declared and row["returns"] == returns
    ]
    for row in ours:
        if row not in same:
            db.query(f"drop function {row['signature']}", keep=False)
            if row["row_type"] is not None:
                db.query(f"drop type {row['row_type']}", keep=False)
    return same[0] if same else None


# Whose comment claims to be of a model that is gone: the comment is the owner's word, also after a restore, which knows no other.
_CLAIMS = f"""
select p.oid, p.oid::pg_catalog.regprocedure::pg_catalog.text as signature, o.rolname::pg_catalog.text as owner, {_OWN} as own,
    t.oid as type_oid, t.typarray, t.oid::pg_catalog.regtype::pg_catalog.text as row_type,
    w.oid as table_oid, w.oid::pg_catalog.regclass::pg_catalog.text as table_name,
    pg_catalog.pg_has_role(p.proowner, 'USAGE') and coalesce(t.typowner, p.proowner) = p.proowner and exists (
        select from rows from (pg_catalog.unnest($1), pg_catalog.unnest($2)) as c(description, owner)
        where c.description = d.description and distill._owner_role(c.owner) = p.proowner) as models_owners
from pg_catalog.pg_proc p join pg_catalog.pg_roles o on o.oid = p.proowner {_OURS}
left join pg_catalog.pg_class w on w.relnamespace = p.pronamespace and w.relname = p.proname || '{TABLE}' and w.relkind = 'r'
    and w.relowner = p.proowner and pg_catalog.obj_description(w.oid, 'pg_class') = d.description
where p.prokind = 'f' and d.description = any ($1) order by p.oid"""


def drop_functions(db: Database, dropped: Sequence[Dropped]) -> None:
    """Drop the functions of models that are gone, with the current role's rights: its own, and those of the model's owner.

    Anybody may write the comment that says which model a function is of, on a function of his own: such a function stays, and
    nothing that depends on it keeps a model.

    Raises
    ------
    DependentObjects
        Something of the caller's own depends on a function that would go.
    """
    claims = [(f"{COMMENT}{d.name}:{d.version}", d.owner) for d in dropped]
    claims += [(COMMENT + d.name, d.owner) for d in dropped if d.last]
    found = db.query(
        _CLAIMS, ("text[]", [claim for claim, _ in claims]), ("text[]", [owner for _, owner in claims])
    )
    drops: list[Row] = []
    stays: list[str] = []
    blocked: dict[str, list[str]] = {}
    for row in found:
        if not (row["own"] or row["models_owners"]):
            stays.append(f'{row["signature"]} is of role "{row["owner"]}"')
            continue
        types = [row["type_oid"], row["typarray"]] if row["type_oid"] is not None else []
        tables = [row["table_oid"]] if row["table_oid"] is not None else []
        blocking = find_blocking(db, row["oid"], types, tables)
        if any(found.own for found in blocking):
            blocked[row["signature"]] = [found.what for found in blocking if found.own]
        elif blocking:
            stays.append(f"{blocking[0].what} depends on {row['signature']}")
        else:
            drops.append(row)
    if blocked:
        raise DependentObjects(
            f"function {next(iter(blocked))} goes with its model, and cannot be dropped because other objects depend on it",
            detail=_lines(
                f"{what} depends on {signature}" for signature, found in blocked.items() for what in found
            ),
            hint="Drop these first, or keep the function: "
            + "; ".join(f"COMMENT ON FUNCTION {signature} IS NULL" for signature in blocked)
            + ".",
        )
    for row in drops:
        db.query(f"drop function {row['signature']}", keep=False)
        if row["row_type"] is not None:
            db.query(f"drop type {row['row_type']}", keep=False)
        if row["table_name"] is not None:
            db.query(f"drop table {row['table_name']}", keep=False)
    if stays:
        more = [f"and {len(stays) - MAX_NAMED} more"] if len(stays) > MAX_NAMED else []
        db.warning(
            f"{len(stays)} function{'s' if len(stays) > 1 else ''} of a dropped model stay{'' if len(stays) > 1 else 's'}",
            detail=_lines([*stays[:MAX_NAMED], *more]),
        )


def _shown(db: Database, arguments: list[Argument]) -> list[list[str]]:
    """Return the arguments' names and types, these as the server shows them."""
    rows = db.query(
        "select pg_catalog.format_type(t.name::pg_catalog.regtype, null) as shown"
        " from pg_catalog.unnest($1) with ordinality t(name, place) order by t.place",
        ("text[]", [a.type_name for a in arguments]),
    )
    return [[a.feature.name, row["shown"]] for a, row in zip(arguments, rows, strict=True)]
