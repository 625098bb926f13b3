"""Where pgvector is, if it is: students that are networks are several times as fast as SQL with it; nothing needs it."""

from __future__ import annotations

from pg_distill.database.protocol import Database
from pg_distill.quoting import quote_identifier

__all__ = ["pgvector_schema"]

# The extension's own objects, by their dependency on it: anybody may make a type of this name, or an operator beside them. All
# that an expression uses has to be there: the type, the inner product and the sum of two vectors, the cast from float8[].
_SCHEMA = """
select n.nspname::pg_catalog.text as name
from pg_catalog.pg_extension e
join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass and d.refobjid = e.oid
    and d.deptype = 'e' and d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
join pg_catalog.pg_type t on t.oid = d.objid and t.typname = 'vector'
join pg_catalog.pg_namespace n on n.oid = t.typnamespace
where e.extname = 'vector' and pg_catalog.has_schema_privilege(n.oid, 'USAGE')
    and pg_catalog.has_type_privilege(t.oid, 'USAGE')
    and 2 = (
        select pg_catalog.count(*) from pg_catalog.pg_operator o
        join pg_catalog.pg_depend od on od.refclassid = d.refclassid and od.refobjid = e.oid and od.deptype = 'e'
            and od.classid = 'pg_catalog.pg_operator'::pg_catalog.regclass and od.objid = o.oid
        where o.oprname in ('<#>', '+') and o.oprleft = t.oid and o.oprright = t.oid and o.oprnamespace = n.oid)
    and exists (
        select from pg_catalog.pg_cast c
        where c.castsource = 'pg_catalog.float8[]'::pg_catalog.regtype and c.casttarget = t.oid)
"""


def pgvector_schema(db: Database) -> str | None:
    """Return the schema of pgvector's types as SQL writes it; None where the database has none that the current role may use."""
    found = db.query(_SCHEMA)
    return quote_identifier(found[0]["name"]) if found else None
