"""One SQL value is one Python value: the mapping that every path uses, both ways.

=========  ================================================================  ===================================
kind       SQL types                                                         in Python
=========  ================================================================  ===================================
number     float4, float8, numeric                                           float64, NaN for NULL
integer    int2, int4, int8                                                  float64: whole, below 2**53
boolean    bool                                                              float64: 0 and 1
timestamp  date, timestamp (read as UTC), timestamptz                        float64: seconds since 1970 UTC
string     text, varchar, char(n), name, "char", citext, uuid, enums;        text; char(n) without its padding
           integers beyond 2**53, as their digits
vector     float4[], float8[], pgvector's vector and halfvec                 (length,) float32, float64 for float8[]; NaN
                                                                            throughout for NULL
=========  ================================================================  ===================================

A domain is its base type. A row comes as columns of a query (`to_canonical`), as JSON (`read_number`, `json_readers`), or as
arrays, which hold canonical values already; back to SQL it goes as columns of the types that were registered (`rows_sql`).
JSON has lost what the others keep (the padding of char(n), the digits of float4): the registered type gives it back.

Types are stored by schema and name, with their modifiers: no search_path decides what they mean.

Long, because the two directions of one mapping stand beside each other.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol

import numpy as np

from pg_distill.errors import ArtifactCorrupted, DatatypeMismatch, InvalidData, ValueOutOfRange
from pg_distill.frame import STRINGS, Column, FloatArray, Frame, Kind, Strings, VectorArray
from pg_distill.quoting import array_text, number_array_text, quote_identifier, quote_literal

__all__ = [
    "EXACT",
    "EXACT_SECONDS",
    "FLOAT_ARRAYS",
    "SEVERAL",
    "SPECIAL_NUMBERS",
    "TYPES_QUERY",
    "NamedColumn",
    "SqlType",
    "base_of",
    "beyond_exact",
    "check_exact",
    "constant_sql",
    "decode_row",
    "from_canonical",
    "is_single",
    "is_whole",
    "json_readers",
    "label_text",
    "match_labels",
    "number_text",
    "one_text_for_equal_numbers",
    "read_number",
    "rows_sql",
    "stored_texts",
    "stored_types",
    "to_canonical",
    "vector_text",
]

EXACT = 2.0**53
"""From here on float64 does not tell an integer from its neighbours."""
EXACT_DIGITS = 15
"""Decimal digits that float64 always holds."""
EXACT_SECONDS = 2.0**33
"""Up to here, from 1697 to 2242, float64 holds every microsecond."""

_KINDS: Mapping[str, Kind] = {
    "float4": "number",
    "float8": "number",
    "numeric": "number",
    "int2": "integer",
    "int4": "integer",
    "int8": "integer",
    "bool": "boolean",
    "date": "timestamp",
    "timestamp": "timestamp",
    "timestamptz": "timestamp",
    "text": "string",
    "varchar": "string",
    "bpchar": "string",
    "name": "string",
    "char": "string",
    "citext": "string",
    "uuid": "string",
    "enum": "string",
    "_float4": "vector",
    "_float8": "vector",
    "vector": "vector",
    "halfvec": "vector",
}

FLOAT_ARRAYS = ("_float4", "_float8")
SEVERAL = frozenset({"array", *FLOAT_ARRAYS})
"""Types of several values, read as a string where they are labels and not features: JSON, whose NULL is NULL."""

_PGVECTOR = ("vector", "halfvec", "sparsevec")

# What to write in the sample's query for a column {c} of a type that no model takes.
_ADVICE: Mapping[str, str] = {
    "interval": "extract(epoch from {c})",
    "time": "extract(epoch from {c})",
    "timetz": "extract(epoch from {c})",
    "money": "{c}::numeric",
    "json": "({c}->>'key')::float8",
    "jsonb": "({c}->>'key')::float8",
    "bytea": "length({c}), or encode({c}, 'hex')",
    "point": "{c}[0] and {c}[1]",
    "oid": "{c}::bigint",
    "tsvector": "the text that it was made of",
    "sparsevec": "{c}::vector",
    "hstore": "{c}->'key'",
    "array": "{c}::real[] where it is as many numbers in each row, else {c}[1], {c}[2] and so on, a column for each element",
    "range": "lower({c}) and upper({c})",
    "multirange": "lower({c}) and upper({c})",
    "composite": "({c}).field",
    "pseudo": "{c}::text",
}

TYPES_QUERY = (
    "with recursive base(place, oid, typmod) as ("
    "  select c.place, c.oid::pg_catalog.oid, c.typmod"
    "  from rows from (pg_catalog.unnest($1), pg_catalog.unnest($2)) with ordinality c(oid, typmod, place)"
    "  union all select b.place, t.typbasetype, t.typtypmod"
    "  from base b join pg_catalog.pg_type t on t.oid = b.oid where t.typtype = 'd')"
    " select t.typname::pg_catalog.text as name, t.typtype::pg_catalog.text as type, t.typcategory::pg_catalog.text as category,"
    "  case when n.oid = pg_catalog.pg_my_temp_schema() then 'pg_temp' else n.nspname::pg_catalog.text end as schema,"
    "  pg_catalog.format_type(b.oid, b.typmod) as shown"
    " from base b join pg_catalog.pg_type t on t.oid = b.oid join pg_catalog.pg_namespace n on n.oid = t.typnamespace"
    " where t.typtype <> 'd' order by b.place"
)
"""Rows for `SqlType.from_row`, one for each of the types $1 (oids, int8[]) with the modifiers $2 (int4[]), in their order.

The base type of a domain, however deep. A type that the transaction's snapshot does not see yet has no row.
"""


@dataclass(frozen=True)
class SqlType:
    """The type of a column, that under its domains.

    Attributes
    ----------
    base
        The type's name where it is PostgreSQL's own or citext; else what it is: enum, array, composite ...
    name
        How it is written in SQL, whatever the search_path.
    shown
        How PostgreSQL shows it.
    """

    base: str
    name: str
    shown: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> SqlType:
        """Read a row of `TYPES_QUERY`."""
        own = row["schema"] == "pg_catalog"
        by_category = {"A": "array"}.get(row["category"])
        by_type = {"e": "enum", "c": "composite", "r": "range", "m": "multirange", "p": "pseudo"}
        base = row["name"]
        if row["type"] in by_type or not (own or base in ("citext", "hstore", *_PGVECTOR)):
            base = by_type.get(row["type"], by_category or "")
        elif by_category and base not in _KINDS:
            base = by_category
        modifier = _MODIFIER.search(row["shown"]) if own else None
        name = f"{_quoted(row['schema'])}.{_quoted(row['name'])}"
        return cls(base, name + (modifier[0] if modifier else ""), row["shown"])

    @property
    def kind(self) -> Kind | None:
        """The kind of its values; None where no model takes them."""
        return _KINDS.get(self.base)

    def refusal(self, column: str) -> DatatypeMismatch:
        """Return the error for a column that no model takes, with what to write for it."""
        written = _ADVICE.get(self.base, "{c}::text").replace("{c}", quote_identifier(column))
        return DatatypeMismatch(
            f'column "{column}" is of type {self.shown}, which no model takes',
            hint=f"In the sample's query write {written}.",
        )


_MODIFIER = re.compile(r"\([0-9]+(?:,-?[0-9]+)?\)")
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")


def _quoted(name: str) -> str:
    # After a dot every word is a name; in front of it none of PostgreSQL's own schemas is a word of the grammar.
    plain = _PLAIN.fullmatch(name) and (name.startswith("pg_") or name in _KINDS) and name != "char"
    return name if plain else quote_identifier(name)


# -- names of types, as they are stored

_IDENTIFIER = r'(?:[a-z_][a-z0-9_]*|"(?:[^"]|"")+")'
_TYPE_NAME = re.compile(
    r"(?:double precision|(?:character|bit) varying|(?:timestamp|time) with(?:out)? time zone"
    rf"|{_IDENTIFIER}(?:\.{_IDENTIFIER}(?:\([0-9]+(?:,-?[0-9]+)?\))?)?)(?:\[\])?"
)
"""A name that `SqlType` gives, or one that a release before 0.2.0 stored: it stands in SQL as it is."""

_FORMER: Mapping[str, str] = {
    "real": "float4",
    "double precision": "float8",
    "numeric": "numeric",
    "smallint": "int2",
    "integer": "int4",
    "bigint": "int8",
    "boolean": "bool",
    "date": "date",
    "timestamp without time zone": "timestamp",
    "timestamp with time zone": "timestamptz",
    "text": "text",
    "character varying": "varchar",
    "character": "bpchar",  # of any length: the modifier was not stored, and char alone is one of one character
    "name": "name",
    '"char"': '"char"',
    "uuid": "uuid",
}


def stored_types(input_schema: Mapping[str, Any]) -> dict[str, str]:
    """Return the SQL types of a model's columns, which stand in SQL as they are.

    What an earlier release stored without a schema becomes the name of today; of a type that is not PostgreSQL's own the
    schema is not known.

    Raises
    ------
    ArtifactCorrupted
        One is no type's name.
    """
    types = input_schema.get("types", {})
    if not isinstance(types, dict) or not all(
        isinstance(name, str) and _TYPE_NAME.fullmatch(name) for name in types.values()
    ):
        raise ArtifactCorrupted("stored types of the model's columns are not names of types")
    return {
        column: f"pg_catalog.{_FORMER[name]}" if name in _FORMER else name for column, name in types.items()
    }


def stored_texts(input_schema: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the columns of strings that whoever registered a model said are texts; None where nobody said.

    Raises
    ------
    ArtifactCorrupted
        One is no name.
    """
    names = input_schema.get("text_columns")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ArtifactCorrupted("stored text columns of the model are not names")
    return tuple(names)


_BASE = re.compile(r'pg_catalog\."?([a-z0-9_]+)"?(?:\(.*\))?')


def base_of(name: str | None) -> str:
    """Return the name of a stored type of PostgreSQL's own without schema and modifier; of any other the empty string."""
    found = _BASE.fullmatch(name) if name is not None else None
    return found[1] if found else ""


def is_whole(name: str | None) -> bool:
    """Return whether a stored type is of integers that float64 may not hold: bigint, numeric(p, 0) of many digits."""
    modifier = _MODIFIER.search(name) if name is not None else None
    if base_of(name) != "numeric" or modifier is None:
        return base_of(name) == "int8"
    precision, _, scale = modifier[0][1:-1].partition(",")
    return int(scale or 0) <= 0 and int(precision) - int(scale or 0) > EXACT_DIGITS


# -- from SQL


def to_canonical(
    column: str,
    kind: Kind,
    sql_type: SqlType | None = None,
    as_type: str | None = None,
    *,
    null: float = math.nan,
) -> str:
    """Return SQL for a column in canonical form: float8, NULL as NaN; or text, NULL as NULL.

    Parameters
    ----------
    column
        SQL of the column.
    sql_type
        Its type, where it is known: an integer that is read as a string is its digits.
    as_type
        The type that the model has stored for it: what is char(n) there has no padding here.
    null
        What NULL becomes, where it is to be told from NaN.
    """
    if kind in STRINGS:
        base = sql_type.base if sql_type is not None else ""
        if base in SEVERAL:
            return f"pg_catalog.to_jsonb({column})::pg_catalog.text"
        if base == "numeric":
            column = f"pg_catalog.trim_scale({column})"
        text = f"({column})::pg_catalog.text"
        padded = base_of(as_type) == "bpchar" and base != "bpchar"
        return f"pg_catalog.rtrim({text}, ' '::pg_catalog.text)" if padded else text
    if kind == "vector":
        return _array_of_vector(column, sql_type, as_type)
    if kind == "boolean":
        column = f"({column})::pg_catalog.int4"
    elif kind == "timestamp":
        column = f"pg_catalog.date_part('epoch', {column})"
    number = "NaN" if math.isnan(null) else repr(null)
    return f"COALESCE(({column})::pg_catalog.float8, '{number}'::pg_catalog.float8)"


def is_single(name: str | None) -> bool:
    """Return whether a stored type is one of vectors in single precision or less: of all but float8[]."""
    return base_of(name) != "_float8"


def _array_of_vector(column: str, sql_type: SqlType | None, as_type: str | None) -> str:
    base = sql_type.base if sql_type is not None else ""
    if base == "_float8" and as_type is not None and is_single(as_type):
        base = ""
    return column if base in FLOAT_ARRAYS else f"({column})::pg_catalog._float4"


def label_text(column: str, sql_type: SqlType) -> str | None:
    """Return SQL of a label as text, as it is compared with names of classes; None where `number_text` writes it.

    No setting of the session changes it: dates are ISO 8601 as in JSON, timestamps with a time zone in UTC.
    """
    if sql_type.base in ("float4", "float8"):
        return None
    if sql_type.kind != "timestamp":
        return f"({column})::pg_catalog.text"
    zone = sql_type.base == "timestamptz"
    moment = f"pg_catalog.timezone('UTC', {column})" if zone else column
    text = f"pg_catalog.jsonb_extract_path_text(pg_catalog.to_jsonb({moment}), VARIADIC '{{}}'::pg_catalog.text[])"
    return f"({text} OPERATOR(pg_catalog.||) '+00:00'::pg_catalog.text)" if zone else text


def one_text_for_equal_numbers(texts: Strings) -> Strings:
    """Return a numeric column's texts, where 1, 1.0 and 1.00 are one: as most rows have it, else the shortest."""
    rows = np.bincount(texts.codes[texts.codes >= 0], minlength=len(texts.categories))
    best: dict[Any, int] = {}
    keys = [_plain_number(text) or text for text in texts.categories]
    for i, key in enumerate(keys):
        rank = (-int(rows[i]), len(texts.categories[i]))
        if key not in best or rank < (-int(rows[best[key]]), len(texts.categories[best[key]])):
            best[key] = i
    if len(best) == len(keys):
        return texts
    names = np.array([*(texts.categories[best[key]] for key in keys), None], object)
    return Strings.from_values(names[texts.codes].tolist())


def match_labels(labels: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Return the positions of the classes that labels name; a label that names none is left out.

    By their texts first. Of those left over a label names a class where both are the same number, however it is written, or
    the same truth value, and no other is: where '01' and '1' are two labels or two classes, neither is the other.
    """
    found = {text: position for position, text in enumerate(classes) if text in set(labels)}
    ours, theirs = defaultdict(list), defaultdict(list)
    for text in labels:
        if text not in found:
            ours[_plain(text)].append(text)
    for position, text in enumerate(classes):
        if text not in found:
            theirs[_plain(text)].append(position)
    for key, texts in ours.items():
        if len(texts) == 1 and len(theirs[key]) == 1:
            found[texts[0]] = theirs[key][0]
    return found


def _plain(text: str) -> object:
    stripped = text.strip()
    truth = _TRUTH.get(stripped.lower())
    return _plain_number(stripped if truth is None else truth) or text


_TRUTH = {"true": "1", "t": "1", "false": "0", "f": "0"}


def _plain_number(text: str) -> tuple[int, str, int] | None:
    """Return what equal numbers have in common, however they are written (sign, digits, exponent); None for no number."""
    if not _NUMBER.fullmatch(text):
        return None
    sign, digits, exponent = Decimal(text).as_tuple()
    significant = "".join(map(str, digits)).lstrip("0")
    stripped = significant.rstrip("0")
    if not stripped:
        return 0, "0", 0
    assert isinstance(exponent, int)
    return sign, stripped, exponent + len(significant) - len(stripped)


_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?")


def number_text(value: float, base: str) -> str:
    """Write a number as PostgreSQL writes a value of type ``base`` by default, whatever extra_float_digits says."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    shortest = str(np.float32(value)) if base == "float4" else repr(value)
    sign, digits, exponent = _parts(shortest)
    limit = 6 if base == "float4" else 15
    if not -4 <= exponent < limit:
        tail = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{tail}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    if exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
    whole, rest = digits[: exponent + 1].ljust(exponent + 1, "0"), digits[exponent + 1 :]
    return f"{sign}{whole}{'.' + rest if rest else ''}"


def _parts(number: str) -> tuple[str, str, int]:
    """Return sign, significant digits and decimal exponent of the first of them."""
    mantissa, _, exponent = number.lstrip("-").lower().partition("e")
    whole, _, rest = mantissa.partition(".")
    digits = whole + rest
    leading = len(digits) - len(digits.lstrip("0"))
    significant = digits.strip("0") or "0"
    place = int(exponent or 0) + len(whole) - 1 - (leading if significant != "0" else 0)
    return "-" if number.startswith("-") else "", significant, place if significant != "0" else 0


# -- from JSON


class NamedColumn(Protocol):
    """A feature of a frame or of a model: a column's name and kind."""

    @property
    def name(self) -> str:
        """The column's name."""

    @property
    def kind(self) -> Kind:
        """The column's kind."""

    @property
    def is_string(self) -> bool:
        """Whether its values are strings, not numbers."""


SPECIAL_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""What to_jsonb makes of the numbers that JSON lacks."""

# Without json.loads' search for blanks around the value: jsonb's text has none.
_decode = json.JSONDecoder().raw_decode


def decode_row(text: str) -> Any:
    """Decode a jsonb value's text; a number that float64 does not hold becomes one that `read_number` refuses."""
    if len(text) > _LONG_DIGITS and _LONG_NUMBER.search(text):
        return _decode_carefully(text)[0]
    return _decode(text)[0]


_LONG_DIGITS = 300  # float8 has values of up to 309 digits, and none as small as 10 ** -324
_LONG_NUMBER = re.compile(rf"[0-9]{{{_LONG_DIGITS}}}")


class _OutOfRange:
    """A number of JSON that no float64 stands for."""

    def __init__(self, text: str) -> None:
        self.text = text


def _careful_number(text: str) -> float | _OutOfRange:
    value = float(text)
    return _OutOfRange(text) if math.isinf(value) or (value == 0.0 and text.strip("-0.")) else value


def _careful_integer(text: str) -> float | _OutOfRange:
    return int(text) if len(text) < _LONG_DIGITS else _careful_number(text)


_decode_carefully = json.JSONDecoder(parse_int=_careful_integer, parse_float=_careful_number).raw_decode


def read_number(name: str, kind: Kind, value: Any) -> float:
    """Return the value of feature ``name``, as a JSON object or an array has it, as a number; NaN for NULL.

    Raises
    ------
    DatatypeMismatch
        It is no number, and for a timestamp no ISO 8601 text.
    ValueOutOfRange
        Float64 does not hold it.
    """
    if value is None:
        return math.nan
    if isinstance(value, str):
        if value in SPECIAL_NUMBERS:
            return SPECIAL_NUMBERS[value]
        if kind == "timestamp":
            return _timestamp(name, value)
        raise _wrong_type(name, kind, "string")
    try:
        return float(value)
    except OverflowError:
        raise _out_of_range(name, str(value)) from None
    except (TypeError, ValueError):
        if isinstance(value, _OutOfRange):
            raise _out_of_range(name, value.text) from None
        raise _wrong_type(name, kind, type(value).__name__) from None


def _wrong_type(name: str, kind: Kind, given: str) -> DatatypeMismatch:
    return DatatypeMismatch(f'feature "{name}" is of kind {kind}, not {given}')


def _out_of_range(name: str, text: str) -> ValueOutOfRange:
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    return ValueOutOfRange(f'feature "{name}" is out of range for double precision: {shown}')


MAX_SHOWN = 20  # characters of a value in a message


def _timestamp(name: str, text: str) -> float:
    if text.lower() in ("infinity", "-infinity"):
        return math.copysign(math.inf, -1 if text[0] == "-" else 1)
    shifted, cycles = text, 0
    # A year that Python lacks: the same day of another cycle of the calendar.
    if far := _FAR_YEAR.fullmatch(text):
        year = 1 - int(far[1]) if far[3] else int(far[1])
        cycles = year // 400 - 5
        shifted = f"{year - 400 * cycles:04d}{far[2]}"
    try:
        moment = datetime.fromisoformat(shifted)
    except ValueError:
        raise DatatypeMismatch(f'feature "{name}" is a timestamp, "{text[:MAX_SHOWN]}" is not one') from None
    passed = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    microseconds = (
        passed.days * 86400 + passed.seconds + cycles * _CYCLE_SECONDS
    ) * 1_000_000 + passed.microseconds
    seconds = float(microseconds) / 1e6  # as date_part does it, to the last bit
    if not _FIRST_SECOND <= seconds < _END_SECOND:  # a date may be; date_part fails on it
        raise ValueOutOfRange(f'feature "{name}" is out of range for a timestamp: {text[:MAX_SHOWN]}')
    return seconds


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_FAR_YEAR = re.compile(r"(\d{5,7}|\d{4,7}(?=.* BC$))(-.*?)( BC)?")
"""As to_jsonb writes the years after 9999 and before 1."""

_CYCLE_SECONDS = 146_097 * 86_400  # 400 years of the Gregorian calendar
_FIRST_SECOND, _END_SECOND = (
    -210_866_803_200,
    9_224_318_016_000,
)  # of PostgreSQL's timestamps: 4714-11-24 BC, 294277-01-01


def json_readers(
    features: Iterable[NamedColumn], types: Mapping[str, str]
) -> Mapping[str, Callable[[Any], Any]]:
    """Return, for the features that need one, what makes of a JSON value the canonical value of the feature's type."""
    found: dict[str, Callable[[Any], Any]] = {}
    for feature in features:
        base = base_of(types.get(feature.name))
        if feature.is_string and base == "bpchar":
            found[feature.name] = _without_padding
        elif feature.is_string and base in ("int2", "int4", "int8", "numeric"):
            found[feature.name] = _digits
        elif base == "float4":
            found[feature.name] = _single
    return found


def _without_padding(value: Any) -> Any:
    return value.rstrip(" ") if isinstance(value, str) else value


def _digits(value: Any) -> Any:
    """Write an integer as its digits; what is none stays what it is."""
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        value = int(value)
    return str(value) if isinstance(value, int) else value


def _single(value: Any) -> Any:
    """Round to float32, as the column's own values are: JSON has the shortest decimal that tells them apart."""
    if value.__class__ is not float and value.__class__ is not int:
        return value
    try:
        return _SINGLE.unpack(_SINGLE.pack(value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


_SINGLE = struct.Struct("f")


# -- back to SQL

_DEFAULT: Mapping[Kind, str] = {
    "string": "pg_catalog.text",
    "boolean": "pg_catalog.bool",
    "integer": "pg_catalog.int8",
    "timestamp": "pg_catalog.timestamp",
    "number": "pg_catalog.float8",
    "vector": "pg_catalog._float4",
}


def from_canonical(column: str, kind: Kind, type_name: str | None) -> str:
    """Return SQL of a canonical value in its stored type; ``column`` is SQL of what `rows_sql` sends."""
    name = type_name if type_name is not None else _DEFAULT[kind]
    base = base_of(name)
    if kind == "vector":
        return f"{column}::pg_catalog.{base or '_float4'}{'' if base else f'::{name}'}"
    if kind == "boolean":
        return f"({column} OPERATOR(pg_catalog.<>) '0'::pg_catalog.float8)::{name}"
    if kind == "timestamp":
        if name == "timestamp with time zone":
            base = "timestamptz"
        # Days and the rest by themselves: the microseconds since 1970 of a far year are more than a double holds.
        day = f"pg_catalog.floor({column} OPERATOR(pg_catalog./) '86400'::pg_catalog.float8)"
        moment = f"('1970-01-01'::pg_catalog.date OPERATOR(pg_catalog.+) {day}::pg_catalog.int4)"
        if base != "date":
            rest = (
                f"({column} OPERATOR(pg_catalog.-) ({day} OPERATOR(pg_catalog.*) '86400'::pg_catalog.float8))"
            )
            moment = (
                f"({moment}::pg_catalog.timestamp OPERATOR(pg_catalog.+)"
                f" ({rest} OPERATOR(pg_catalog.*) '00:00:01'::pg_catalog.interval))"
            )
        if base == "timestamptz":
            moment = f"pg_catalog.timezone('UTC', {moment})"
        return (
            f"(CASE WHEN {column} OPERATOR(pg_catalog.=) 'Infinity'::pg_catalog.float8 THEN 'infinity'"
            f" WHEN {column} OPERATOR(pg_catalog.=) '-Infinity'::pg_catalog.float8 THEN '-infinity' ELSE {moment} END)::{name}"
        )
    return f"{column}::{name}"


def _element(kind: Kind, type_name: str | None) -> str:
    """Return the type in which a column is sent: float8 would round a numeric to 15 digits."""
    if kind in STRINGS or kind == "vector":  # unnest would take arrays of arrays apart
        return "text"
    return "numeric" if base_of(type_name) == "numeric" else "float8"


def rows_sql(features: Iterable[NamedColumn], types: Mapping[str, str], frame: Frame) -> str:
    """Return SQL of the rows of ``frame``: a sub-select whose columns have the features' names and stored types.

    A feature that ``types`` does not have gets the type of its kind. All is in the text: a statement with text of the caller's
    has to be one text to be opened as a cursor.
    """
    names, arrays, columns = [], [], []
    for feature in features:
        name, type_name = quote_identifier(feature.name), types.get(feature.name)
        text = _array(frame.columns[feature.name])
        element = _element(feature.kind, type_name)
        names.append(name)
        arrays.append(f"pg_catalog.unnest(CAST({quote_literal(text)} AS pg_catalog.{element}[]))")
        columns.append(f"{from_canonical(f'{_ROWS}.{name}', feature.kind, type_name)} AS {name}")
    return (
        f"(SELECT {', '.join(columns)} FROM ROWS FROM ({', '.join(arrays)}) AS {_ROWS}({', '.join(names)}))"
    )


def vector_text(numbers: VectorArray) -> str | None:
    """Write a vector as the server reads an array from a text; None for NULL."""
    return None if np.isnan(numbers).all() else f"{{{','.join(map(repr, numbers.tolist()))}}}"


def _array(column: Column) -> str:
    if isinstance(column, Strings):
        return array_text(column.to_objects())
    if column.ndim == 2:
        return array_text(np.array([vector_text(row) for row in column], object))
    return number_array_text(column.tolist())


_ROWS = quote_identifier("pg_distill rows")


def constant_sql(feature: NamedColumn, types: Mapping[str, str], column: Column, position: int) -> str:
    """Return SQL of one value of a column, as a constant in the type in which `rows_sql` sends it."""
    element = f"pg_catalog.{_element(feature.kind, types.get(feature.name))}"
    if isinstance(column, Strings):
        text = column.to_objects()[position]
    elif column.ndim == 2:
        text = vector_text(column[position])
    else:
        number = float(column[position])
        text = None if math.isnan(number) else repr(number)
    return f"NULL::{element}" if text is None else f"{quote_literal(text)}::{element}"


def check_exact(name: str, values: FloatArray, type_name: str | None) -> None:
    """Raise InvalidData where an integer is beyond what float64 tells from its neighbours: for who compares it exactly.

    Parameters
    ----------
    values
        (n,) canonical values of the feature ``name``.
    type_name
        Its stored type; only one of integers is looked at, as float64 rounds every fraction.
    """
    if not is_whole(type_name):
        return
    beyond = (np.abs(values) >= EXACT) & np.isfinite(values)
    if beyond.any():
        raise beyond_exact(name, f"{values[int(np.argmax(beyond))]:.0f}")


def beyond_exact(name: str, shown: str) -> InvalidData:
    """Return the error for an integer of feature ``name`` that float64 does not tell from its neighbours."""
    return InvalidData(
        f'feature "{name}" has the integer {shown}, and from 2**53 on double precision cannot tell one from its neighbours',
        hint="Register the model on rows that have such integers, or cast the column to text:"
        f" {quote_identifier(name)}::text.",
    )
