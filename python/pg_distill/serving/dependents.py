"""What depends on a function: results that are stored somewhere, and what keeps it from being dropped.

PostgreSQL records what depends on a function, but lets CREATE OR REPLACE change what it answers: an index, a generated column
or a materialized view then holds what it answered before, and says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pg_distill.database.protocol import Database

__all__ = ["OWN", "Blocking", "StoredResults", "find_blocking", "find_stored_results"]

OWN = (
    "case when (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user)"
    " then (select r.rolsuper from pg_catalog.pg_roles r where r.oid = {owner})"
    " else pg_catalog.pg_has_role({owner}, 'USAGE') end"
)
"""SQL: whether an owner is the current role's own. PostgreSQL takes a superuser for a member of every role; here he is one of
superusers only."""


@dataclass(frozen=True)
class StoredResults:
    """An object that holds a function's results, and a command that makes them anew."""

    what: str
    command: str
    needs_immutable: bool
    """Whether PostgreSQL lets it depend on IMMUTABLE functions only."""


@dataclass(frozen=True)
class Blocking:
    """An object that keeps a function, or the type of its argument, from being dropped."""

    oid: int
    """The function's."""
    what: str
    own: bool
    """Whether its owner is the current role's own."""


def _catalog(name: str) -> str:
    return f"'pg_catalog.{name}'::pg_catalog.regclass"


_CLASS, _PROC, _TYPE, _OPERATOR = map(_catalog, ("pg_class", "pg_proc", "pg_type", "pg_operator"))
_REWRITE, _ATTRDEF, _CONSTRAINT = map(_catalog, ("pg_rewrite", "pg_attrdef", "pg_constraint"))
_STATISTIC, _TRIGGER, _POLICY = map(_catalog, ("pg_statistic_ext", "pg_trigger", "pg_policy"))
_OPERATOR_CLASSES = f"{_catalog('pg_opclass')}, {_catalog('pg_opfamily')}"
_THEIR_PARTS = f"{_catalog('pg_amop')}, {_catalog('pg_amproc')}"

# From the function on: what depends on it, and what that is a part of (a rule of its view, an expression of its column). A
# relation is followed to what reads it only: its indexes are made anew with its rows. A body that is text leaves no trace in
# pg_depend, so that whoever names the function there is taken for a caller.
_REACHED = rf"""
with recursive reached(classid, objid, objsubid) as (
    select {_PROC}::pg_catalog.oid, $1::pg_catalog.oid, 0
    union
    select x.classid, x.objid, x.objsubid from reached r cross join lateral (
        select d.classid, d.objid, d.objsubid from pg_catalog.pg_depend d
        where d.refclassid = r.classid and d.refobjid = r.objid and d.deptype in ('n', 'a', 'i')
        and case when r.classid = {_CLASS} then d.classid in ({_REWRITE}, {_PROC})
                 and case when r.objsubid <> 0 then d.refobjsubid = r.objsubid
                     else (select c.relkind in ('v', 'm') from pg_catalog.pg_class c where c.oid = r.objid) end
            else r.classid in ({_PROC}, {_OPERATOR}, {_OPERATOR_CLASSES}) end
        union all
        select d.refclassid, d.refobjid, d.refobjsubid from pg_catalog.pg_depend d
        where d.classid = r.classid and d.objid = r.objid and d.deptype = 'i'
        and r.classid in ({_REWRITE}, {_ATTRDEF}, {_THEIR_PARTS})
        union all
        select {_PROC}, c.oid, 0
        from pg_catalog.pg_proc p, pg_catalog.pg_proc c join pg_catalog.pg_language l on l.oid = c.prolang
            join pg_catalog.pg_namespace n on n.oid = c.pronamespace
        where r.classid = {_PROC} and p.oid = r.objid and c.oid <> p.oid and c.prosqlbody is null
        and l.lanname not in ('internal', 'c') and n.nspname not in ('pg_catalog', 'information_schema', 'distill')
        and pg_catalog.strpos(pg_catalog.lower(c.prosrc), pg_catalog.lower(p.proname)) > 0
        and c.prosrc ~* ('(^|[^[:alnum:]_$])' || pg_catalog.regexp_replace(p.proname, '([^[:alnum:]_])', E'\\\\\\1', 'g')
                         || '($|[^[:alnum:]_$])')
    ) x
)"""

# By kind: the command that makes it anew, and whether it must be IMMUTABLE. Rows are renewed before what is made of them. Of what
# partitions and children inherit, the root is enough.
_STORED_RESULTS = f"""{_REACHED}
select pg_catalog.pg_describe_object(s.classid, s.oid, s.subid) as what, s.command, s.needs_immutable from (
    select 1 as rank, r.classid, c.oid, 0 as subid, true as needs_immutable,
        pg_catalog.format('UPDATE %I.%I SET %I = %3$I', n.nspname, c.relname, (
            select a.attname from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            and a.attgenerated = '' order by a.attnum limit 1)) as command
    from reached r join pg_catalog.pg_class c on c.oid = r.objid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where r.classid = {_CLASS} and r.objsubid = 0 and c.relkind = 'p'
    union all
    select 2, {_CLASS}, c.oid, d.adnum, true, coalesce(
        case when pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 170000 then
            pg_catalog.format('ALTER TABLE %I.%I ALTER COLUMN %I SET EXPRESSION AS (%s)', n.nspname, c.relname, a.attname,
                              pg_catalog.pg_get_expr(d.adbin, d.adrelid)) end,
        (select pg_catalog.format('UPDATE %I.%I SET %I = %3$I', n.nspname, c.relname, b.attname)
         from pg_catalog.pg_depend e join pg_catalog.pg_attribute b on b.attrelid = c.oid and b.attnum = e.refobjsubid
         where e.classid = r.classid and e.objid = d.oid and e.refclassid = {_CLASS} and e.refobjid = c.oid
         and b.attgenerated = '' order by b.attnum limit 1),
        pg_catalog.format('ALTER TABLE %I.%I DROP COLUMN %I, ADD COLUMN %3$I %s GENERATED ALWAYS AS (%s) STORED', n.nspname,
            c.relname, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), pg_catalog.pg_get_expr(d.adbin, d.adrelid)))
    from reached r join pg_catalog.pg_attrdef d on d.oid = r.objid join pg_catalog.pg_class c on c.oid = d.adrelid
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
    where r.classid = {_ATTRDEF} and a.attgenerated = 's' and not (a.attinhcount > 0 and exists (
        select from pg_catalog.pg_inherits i join pg_catalog.pg_attrdef u on u.adrelid = i.inhparent
            join reached v on v.classid = r.classid and v.objid = u.oid
            join pg_catalog.pg_attribute b on b.attrelid = u.adrelid and b.attnum = u.adnum
        where i.inhrelid = d.adrelid and b.attname = a.attname))
    union all
    select 3, r.classid, k.oid, 0, false, case when k.conrelid <> 0 then
        pg_catalog.format('ALTER TABLE %I.%I DROP CONSTRAINT %I, ADD CONSTRAINT %3$I %s', n.nspname, c.relname, k.conname,
                          pg_catalog.pg_get_constraintdef(k.oid)) else
        pg_catalog.format('ALTER DOMAIN %I.%I DROP CONSTRAINT %I; ALTER DOMAIN %1$I.%2$I ADD CONSTRAINT %3$I %s', n.nspname,
                          t.typname, k.conname, pg_catalog.pg_get_constraintdef(k.oid)) end
    from reached r join pg_catalog.pg_constraint k on k.oid = r.objid left join pg_catalog.pg_class c on c.oid = k.conrelid
        left join pg_catalog.pg_type t on t.oid = k.contypid
        join pg_catalog.pg_namespace n on n.oid = coalesce(c.relnamespace, t.typnamespace)
    where r.classid = {_CONSTRAINT} and k.contype = 'c' and k.coninhcount = 0
    union all
    select 4, r.classid, c.oid, 0, true, pg_catalog.format('REINDEX INDEX %I.%I', n.nspname, c.relname)
    from reached r join pg_catalog.pg_class c on c.oid = r.objid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where r.classid = {_CLASS} and c.relkind in ('i', 'I') and not (c.relispartition and exists (
        select from pg_catalog.pg_inherits i join reached v on v.classid = r.classid and v.objid = i.inhparent
        where i.inhrelid = c.oid))
    union all
    select 5, r.classid, c.oid, 0, false, pg_catalog.format('REFRESH MATERIALIZED VIEW %I.%I', n.nspname, c.relname)
    from reached r join pg_catalog.pg_class c on c.oid = r.objid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where r.classid = {_CLASS} and c.relkind = 'm' and r.objsubid = 0
    union all
    select 6, r.classid, e.oid, 0, false, pg_catalog.format('ANALYZE %I.%I', n.nspname, c.relname)
    from reached r join pg_catalog.pg_statistic_ext e on e.oid = r.objid join pg_catalog.pg_class c on c.oid = e.stxrelid
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where r.classid = {_STATISTIC}
) s order by s.rank, s.oid, s.subid"""


def find_stored_results(db: Database, oid: int) -> list[StoredResults]:
    """Return what holds results of a function, directly or through functions, operators and views, in the order to renew it.

    A function whose body is text counts as a caller where the body has the name in it. What composes the name, a body in C, and
    rows that were copied cannot be found.
    """
    rows = db.query(_STORED_RESULTS, ("oid", oid))
    return [StoredResults(row["what"], row["command"], row["needs_immutable"]) for row in rows]


# As DROP ... RESTRICT looks at it: what depends on the function or on its row type, and on neither itself.
_BLOCKING = f"""
select f.oid, pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) as what,
    coalesce({OWN.format(owner="coalesce(c.relowner, p.proowner, t.typowner, o.oprowner, e.stxowner)")}, false) as own
from pg_catalog.pg_proc f join pg_catalog.pg_depend d on d.deptype = 'n'
    and (d.refclassid = {_PROC} and d.refobjid = f.oid or d.refclassid = {_TYPE} and d.refobjid = any ($2 || array(
            select y.oid from pg_catalog.pg_type y join pg_catalog.pg_class w on y.typrelid = w.oid where w.oid = any ($3)
            union all select y.typarray from pg_catalog.pg_type y where y.typrelid = any ($3)))
        or d.refclassid = {_CLASS} and d.refobjid = any ($3))
left join pg_catalog.pg_constraint k on d.classid = {_CONSTRAINT} and k.oid = d.objid
left join pg_catalog.pg_class c on c.oid = case d.classid
    when {_CLASS} then d.objid
    when {_REWRITE} then (select r.ev_class from pg_catalog.pg_rewrite r where r.oid = d.objid)
    when {_ATTRDEF} then (select a.adrelid from pg_catalog.pg_attrdef a where a.oid = d.objid)
    when {_TRIGGER} then (select g.tgrelid from pg_catalog.pg_trigger g where g.oid = d.objid)
    when {_POLICY} then (select g.polrelid from pg_catalog.pg_policy g where g.oid = d.objid)
    else k.conrelid end
left join pg_catalog.pg_proc p on d.classid = {_PROC} and p.oid = d.objid
left join pg_catalog.pg_type t on t.oid = case d.classid when {_TYPE} then d.objid else k.contypid end
left join pg_catalog.pg_operator o on d.classid = {_OPERATOR} and o.oid = d.objid
left join pg_catalog.pg_statistic_ext e on d.classid = {_STATISTIC} and e.oid = d.objid
where f.oid = $1 and not (d.classid = {_PROC} and d.objid = f.oid) order by d.classid, d.objid"""


def find_blocking(
    db: Database, oid: int, types: Sequence[int] = (), tables: Sequence[int] = ()
) -> list[Blocking]:
    """Return what depends on a function or on the ``types`` and ``tables`` that are to go with it."""
    rows = db.query(_BLOCKING, ("oid", oid), ("oid[]", list(types)), ("oid[]", list(tables)))
    return [Blocking(row["oid"], row["what"], row["own"]) for row in rows]
