"""Better-matching operators, functions, aggregates, types and relations for all that our SQL uses, planted in a schema of the path.

What our SQL uses is not typed here: it is read from the module's source, the extension's scripts, the dbt package and whatever
else the caller has, with pg_distill's own lexer; PostgreSQL's catalog says which of the words are its operators and functions.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import servers
from pg_distill.database.lexer import tokens

STRUCK = "struck by"
# What stands behind words that name no operator.
UNSAID = ("=", "<>", "<", "<=", ">", ">=", "~~", "!~~", "~~*", "!~~*", "~")

# What occurs in our SQL. What users' columns are of comes to it; and polymorphic types, which take what nothing else does.
TYPES = (
    "text", "varchar", "name", '"char"', "int2", "int4", "int8", "float4", "float8", "numeric", "bool", "uuid", "oid", "regclass",
    "regnamespace", "jsonb", "bytea", "timestamptz", "timestamp", "date", "interval", "text[]", "name[]", "int8[]", "float8[]", "oid[]",
    "uuid[]", "anyelement", "anyarray", "anycompatible",
)  # fmt: skip


@dataclass(frozen=True)
class Used:
    """What SQL looks up by name."""

    operators: frozenset[str]
    functions: frozenset[str]
    types: frozenset[str]
    relations: frozenset[str]

    def __or__(self, other: Used) -> Used:
        return Used(
            self.operators | other.operators,
            self.functions | other.functions,
            self.types | other.types,
            self.relations | other.relations,
        )


def texts_of_module() -> Iterator[str]:
    """Give every string in the module's source: statements, and parts of them."""
    for path in sorted((servers.ROOT / "python" / "pg_distill").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def texts_of_scripts() -> Iterator[str]:
    """Give the scripts that install and upgrade, those that administrators run, and the dbt package."""
    folders: tuple[tuple[Path, str], ...] = (
        (servers.ROOT / "build", "pg_distill--*.sql"),
        (servers.ROOT / "extension" / "doc", "*.sql"),
        (servers.ROOT / "sql" / "dbt" / "macros", "*.sql"),
    )
    for folder, pattern in folders:
        for path in sorted(folder.glob(pattern)):
            # The bodies of functions and DO blocks are strings to PostgreSQL, too.
            yield path.read_text().replace("$$", " ")


def used(texts: Iterable[str], known: Used) -> Used:
    """Return what of ``known`` is used in the texts."""
    operators, names = set(UNSAID), set()
    for text in texts:
        for token in tokens(text):
            if token.kind == "operator":
                operators.add(token.text)
            elif token.kind in ("name", "quoted"):
                names.add(token.text.strip('"').lower())
            elif token.kind == "string" and " " in token.text:  # text that is run, or a name within one
                names |= {t.text.lower() for t in tokens(token.text[1:-1]) if t.kind == "name"}
                operators |= {t.text for t in tokens(token.text[1:-1]) if t.kind == "operator"}
    found = frozenset(names)
    return Used(
        known.operators & operators, known.functions & found, known.types & found, known.relations & found
    )


def known_to(connection: psycopg.Connection) -> Used:
    """Return the names of all that PostgreSQL itself has."""

    def names(query: str) -> frozenset[str]:
        return frozenset(row[0] for row in connection.execute(query))

    return Used(
        names("SELECT DISTINCT oprname::text FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace"),
        names("SELECT DISTINCT proname::text FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace"),
        names("SELECT typname::text FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype = 'b' AND typelem = 0"),
        names("SELECT relname::text FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')"),
    )  # fmt: skip


PLANT = r"""
DO $plant$
DECLARE
    types CONSTANT text[] := %(types)s;
    here CONSTANT text := %(schema)s;
    made bigint := 0;
    l text; r text; symbol text; result text; found record; given text[]; position int; arguments text;
BEGIN
    -- One function for each pair of types and each kind of result, behind all operators.
    FOREACH l IN ARRAY types LOOP
        FOREACH r IN ARRAY types LOOP
            EXECUTE format('CREATE FUNCTION %%1$s.planted_bool(%%2$s, %%3$s) RETURNS boolean LANGUAGE plpgsql AS %%4$L', here, l, r,
                '%(head)s operator (' || l || ', ' || r || ')'', current_user; RETURN NULL; END');
            IF l !~ '^any' THEN
                EXECUTE format('CREATE FUNCTION %%1$s.planted_left(%%2$s, %%3$s) RETURNS %%2$s LANGUAGE plpgsql AS %%4$L', here, l, r,
                    '%(head)s operator (' || l || ', ' || r || ')'', current_user; RETURN NULL; END');
            END IF;
        END LOOP;
        EXECUTE format('CREATE FUNCTION %%1$s.planted_state(text, %%2$s) RETURNS text LANGUAGE plpgsql AS %%3$L', here, l,
            '%(head)s aggregate (' || l || ')'', current_user; RETURN NULL; END');
        EXECUTE format('CREATE FUNCTION %%1$s.planted_prefix(%%2$s) RETURNS %%2$s LANGUAGE plpgsql AS %%3$L', here, l,
            '%(head)s prefix operator (' || l || ')'', current_user; RETURN $1; END');
    END LOOP;
    EXECUTE format('CREATE FUNCTION %%s.planted_state(text) RETURNS text LANGUAGE plpgsql AS %%L', here,
        '%(head)s aggregate (*)'', current_user; RETURN NULL; END');
    EXECUTE format('CREATE FUNCTION %%s.planted_here(text) RETURNS boolean LANGUAGE plpgsql AS %%L', here,
        '%(head)s %%'', current_user, $1; RETURN true; END');

    FOREACH symbol IN ARRAY %(operators)s::text[] LOOP
        SELECT CASE WHEN bool_and(o.oprresult = 'bool'::regtype) THEN 'planted_bool' ELSE 'planted_left' END INTO result
        FROM pg_operator o WHERE o.oprname = symbol AND o.oprnamespace = 'pg_catalog'::regnamespace;
        FOREACH l IN ARRAY types LOOP
            FOREACH r IN ARRAY types LOOP
                CONTINUE WHEN result = 'planted_left' AND l ~ '^any';
                EXECUTE format('CREATE OPERATOR %%s.%%s (LEFTARG = %%s, RIGHTARG = %%s, FUNCTION = %%s.%%s)', here, symbol, l, r, here, result);
                made := made + 1;
            END LOOP;
            IF symbol IN ('-', '+', '@', '~') THEN
                EXECUTE format('CREATE OPERATOR %%s.%%s (RIGHTARG = %%s, FUNCTION = %%s.planted_prefix)', here, symbol, l, here);
            END IF;
        END LOOP;
    END LOOP;

    -- Of each signature of a function its like with another type in one place, or in all.
    FOR found IN
        SELECT DISTINCT ON (p.proname, signature) p.proname, signature, p.proretset,
               CASE WHEN t.typtype = 'p' THEN 'text' ELSE format_type(p.prorettype, NULL) END AS returns
        FROM pg_proc p JOIN pg_type t ON t.oid = p.prorettype
        CROSS JOIN LATERAL (SELECT ARRAY(SELECT CASE WHEN u.type = '"any"'::regtype THEN 'text' ELSE format_type(u.type, NULL) END
                                         FROM unnest(p.proargtypes) WITH ORDINALITY u(type, place) ORDER BY place) AS signature) s
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind IN ('f', 'w') AND p.proname = ANY (%(functions)s)
          AND p.pronargs <= 4 AND NOT p.proargtypes::oid[] && ARRAY['internal'::regtype, 'cstring'::regtype, 'anyenum'::regtype,
              'anyrange'::regtype, 'anymultirange'::regtype, 'record'::regtype]::oid[]
        ORDER BY p.proname, signature
    LOOP
        FOR position IN 0 .. cardinality(found.signature) LOOP
            FOREACH l IN ARRAY CASE WHEN cardinality(found.signature) = 0 THEN ARRAY[''] ELSE types END LOOP
                given := found.signature;
                IF position = 0 THEN
                    given := array_fill(l, ARRAY[cardinality(given)]);
                ELSE
                    given[position] := l;
                END IF;
                arguments := array_to_string(given, ', ');
                BEGIN
                    EXECUTE format('CREATE FUNCTION %%s.%%I(%%s) RETURNS %%s%%s LANGUAGE plpgsql AS %%L', here, found.proname, arguments,
                        CASE WHEN found.proretset THEN 'SETOF ' END, found.returns,
                        '%(head)s ' || found.proname || '(' || arguments || ')'', current_user; RETURN'
                        || CASE WHEN found.proretset THEN '' ELSE ' NULL' END || '; END');
                    made := made + 1;
                EXCEPTION WHEN duplicate_function OR invalid_function_definition OR undefined_object THEN NULL;
                END;
            END LOOP;
        END LOOP;
    END LOOP;

    FOR found IN SELECT DISTINCT p.proname, p.pronargs FROM pg_proc p
                 WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'a' AND p.proname = ANY (%(functions)s) AND p.pronargs <= 1 LOOP
        IF found.pronargs = 0 THEN
            EXECUTE format('CREATE AGGREGATE %%s.%%I(*) (SFUNC = %%s.planted_state, STYPE = text)', here, found.proname, here);
        ELSE
            FOREACH l IN ARRAY types LOOP
                EXECUTE format('CREATE AGGREGATE %%s.%%I(%%s) (SFUNC = %%s.planted_state, STYPE = text)', here, found.proname, l, here);
                made := made + 1;
            END LOOP;
        END IF;
    END LOOP;

    -- A type, a collation and relations of the same names.
    FOREACH symbol IN ARRAY %(domains)s::text[] LOOP
        EXECUTE format('CREATE DOMAIN %%s.%%I AS pg_catalog.%%I CHECK (%%s.planted_here(''type''))', here, symbol, symbol, here);
        made := made + 1;
    END LOOP;
    EXECUTE format('CREATE COLLATION %%s."C" FROM pg_catalog."POSIX"', here);
    FOREACH symbol IN ARRAY %(relations)s::text[] LOOP
        EXECUTE format('CREATE VIEW %%1$s.%%2$I AS SELECT %%3$s FROM pg_catalog.%%2$I WHERE %%1$s.planted_here(%%2$L)', here, symbol,
            (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
             WHERE a.attrelid = ('pg_catalog.' || quote_ident(symbol))::regclass AND a.attnum > 0 AND a.atttypid <> 'anyarray'::regtype));
        made := made + 1;
    END LOOP;
    RAISE NOTICE 'planted %%', made;
END
$plant$
"""


def plant(connection: psycopg.Connection, schema: str, used: Used, types: Iterable[str]) -> int:
    """Plant the like of all that is used over all pairs of types; return how many objects."""
    said: list[str] = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))

    def array(values: Iterable[str]) -> str:
        return "ARRAY[" + ", ".join("'" + v.replace("'", "''") + "'" for v in values) + "]::text[]"

    connection.execute(
        "SET search_path = pg_catalog"
    )  # or what is planted first strikes what plants the rest
    connection.execute(
        (
            PLANT
            % {
                "types": array(types),
                "schema": f"'{schema}'",
                "head": f"BEGIN RAISE WARNING ''{STRUCK} %",
                "operators": array(sorted(used.operators)),
                "functions": array(sorted(used.functions)),
                # Made last: what is planted names PostgreSQL's own.
                "domains": array(sorted(used.types)),
                "relations": array(sorted(used.relations)),
            }
        ).encode()
    )
    connection.execute("RESET search_path")
    return int(said[-1].split()[-1])
