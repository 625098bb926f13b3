"""A student of texts as SQL: the expression that the registry has, and the vocabularies that its file has, put together.

As one expression, a vocabulary stands in it. As a function, it stands in a table beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pg_distill.database.exact import Step, exact
from pg_distill.database.lexer import tokens
from pg_distill.database.protocol import Database
from pg_distill.errors import ArtifactCorrupted, FeatureNotSupported, LimitExceeded
from pg_distill.onnx_model.cut import cut_texts
from pg_distill.onnx_model.signature import Reader
from pg_distill.onnx_model.texts import TextReader
from pg_distill.quoting import quote_identifier
from pg_distill.registry.model import Model
from pg_distill.registry.models import read_artifact
from pg_distill.serving import approval
from pg_distill.serving.dependents import OWN
from pg_distill.students import expression as native
from pg_distill.students.tokens_sql import (
    REFERENCE,
    Inline,
    Stored,
    create_table,
    key_of,
    numbers,
    weights_of,
)

__all__ = ["TABLE", "TextForm", "drop_table", "grant_as_function", "read_texts"]

TABLE = "_ngrams"
"""After the function's name: that of the table of its vocabulary."""


@dataclass(frozen=True)
class TextForm:
    """A student's expression, and what each name in it stands for.

    ``readers`` are by the names under which ``expression`` has their numbers.
    """

    expression: str
    readers: Mapping[str, TextReader]

    @classmethod
    def of(cls, expression: str, readers: Iterable[Reader]) -> TextForm:
        """Find what each name in an expression stands for among a file's readers; KeyError where it is not there."""
        known = {key_of(r): r for r in readers if isinstance(r, TextReader)}
        names = (t.text for t in tokens(expression) if t.kind == "name")
        found = ((name, REFERENCE.fullmatch(name)) for name in dict.fromkeys(names))
        return cls(expression, {name: known[match[1]] for name, match in found if match is not None})

    def inline(self) -> str:
        """Return the student as one expression.

        Raises
        ------
        LimitExceeded
            Its vocabulary is too large for one.
        """
        found = self._put_in({name: Inline(r.tokeniser, weights_of(r)) for name, r in self.readers.items()})
        if len(found) > native.MAX_BYTES:
            raise LimitExceeded(
                f"expression of {len(found)} bytes is over the limit of {native.MAX_BYTES}",
                hint="Have a function with a table: create_function(..., as_sql => true), or to_sql(..., function_name => ...).",
            )
        return found

    def over(self, table: str) -> str:
        """Return the student as an expression over the table of `create`."""
        return self._put_in(self._stored(table))

    def create(self, table: str) -> Iterator[str]:
        """Give the statements that make the table of the vocabularies; ``table`` is SQL."""
        return create_table([*self._stored(table).values()])

    def steps(self, table: str) -> list[Step]:
        """Return what an expression's steps have before them, over the table of `create`."""
        stored = self._stored(table)
        return [
            Step(name, "pg_catalog.float8[]", f"({numbers(_text(reader), reader, stored[name])})")
            for name, reader in self.readers.items()
        ]

    def _stored(self, table: str) -> dict[str, Stored]:
        return {
            name: Stored(table, reader.tokeniser, weights_of(reader), part)
            for part, (name, reader) in enumerate(self.readers.items())
        }

    def _put_in(self, vocabularies: Mapping[str, Inline | Stored]) -> str:
        items = [
            f"({numbers(_text(reader), reader, vocabularies[name])}) AS {name}_item({name})"
            for name, reader in self.readers.items()
        ]
        return f"(SELECT {exact(self.expression)} FROM {', '.join(items)})"


def read_texts(db: Database, model: Model, expression: str) -> TextForm:
    """Return what an expression of `expression.of_texts` is put together from.

    Raises
    ------
    ArtifactCorrupted
        It does not fit the model's file.
    FeatureNotSupported
        The database is of another encoding than UTF8, in which regular expressions have other characters.
    """
    encoding = db.query("select pg_catalog.current_setting('server_encoding') as name")[0]["name"]
    if encoding != "UTF8":
        raise FeatureNotSupported(
            f"a student of texts has no form as SQL in a database of encoding {encoding}",
            hint="Its words are told apart by characters of Unicode: use a database of encoding UTF8.",
        )
    artifact = read_artifact(db, model)
    approval.require(db, {model.id: (artifact, model.signature)})
    try:
        return TextForm.of(expression, cut_texts(artifact, db.check_interrupts)[1])
    except KeyError:
        raise ArtifactCorrupted(f'the SQL of model "{model.qualified_name}" does not fit its file') from None


def _text(reader: TextReader) -> str:
    return exact(native.canonical(quote_identifier(reader.name), "text"))


_TABLE = f"""
select c.oid::pg_catalog.regclass::pg_catalog.text as name from pg_catalog.pg_class c
where c.relkind = 'r' and c.relname = $2 and c.relnamespace = (select n.oid from pg_catalog.pg_namespace n where n.nspname = $1)
    and pg_catalog.starts_with(pg_catalog.obj_description(c.oid, 'pg_class'), $3) and {OWN.format(owner="c.relowner")}"""


def drop_table(db: Database, schema: str, function_name: str, comment: str) -> None:
    """Drop the table that an earlier call made for a function of this name, where it is the caller's own.

    Not CASCADE: what depends on it stays, and is an error.
    """
    for row in db.query(_TABLE, ("text", schema), ("text", function_name + TABLE), ("text", comment)):
        db.query(f"drop table {row['name']}", keep=False)


_GRANTEES = """
select case a.grantee when 0 then 'public' else pg_catalog.quote_ident(r.rolname) end as grantee
from pg_catalog.pg_proc p cross join pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
    left join pg_catalog.pg_roles r on r.oid = a.grantee
where p.oid = $1::pg_catalog.regprocedure and a.privilege_type = 'EXECUTE' and a.grantee <> p.proowner
    and (a.grantee = 0 or r.oid is not null)"""


def grant_as_function(db: Database, table: str, signature: str) -> None:
    """Let those read a table who may call the function that reads it."""
    for row in db.query(_GRANTEES, ("text", signature)):
        db.query(f"grant select on table {table} to {row['grantee']}", keep=False)
