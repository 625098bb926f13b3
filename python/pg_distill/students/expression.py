"""A student as one SQL expression, of PostgreSQL's own operators and functions (13 and later).

SQL is not numpy: NaN is larger than every number and equal to itself, a comparison with NULL is neither true
nor false, and ``exp``, ``*`` and casts to float4 raise errors where they overflow *or underflow*. So:

- No float4: a float32 threshold becomes the float8 threshold that decides the same for every float8 (`float8_threshold`).
- A comparison is written so that NULL and NaN both fall through to ELSE.
- Leaf values are integers, multiples of one power of two, so sums are exact in any order and literals are short.
- A number that is multiplied was clipped and shifted by a constant before, so it is neither huge nor tiny.

A string that equals ``onnx_model.NULL_STRING``, which graphs read as NULL, is a value never seen before here.

Sums and trees are balanced, because the parser and the executor recurse.

Long, because trees, sums and networks share how a number, a category and an output are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pg_distill.errors import FeatureNotSupported, LimitExceeded
from pg_distill.frame import STRINGS, Feature, FloatArray, Kind, Task
from pg_distill.quoting import quote_identifier, quote_literal

__all__ = [
    "MAX_BYTES",
    "USUAL_LEAF_BYTES",
    "Categories",
    "Clipped",
    "Line",
    "Number",
    "Sums",
    "Trees",
    "balanced_sum",
    "blended",
    "canonical",
    "choose",
    "clip",
    "either",
    "float8_threshold",
    "form",
    "line_term",
    "literal",
    "of_texts",
    "output",
    "planning_ms",
    "sources",
    "stage_prefix",
    "tree_sums",
]

MAX_BYTES = 1 << 20
"""Longest expression: more than 0.1 s to plan, in every statement that holds it."""
_BY_PGVECTOR = "pgvector:"
"""Before the length of a form with pgvector, a colon, that form, and the other one: no expression starts so."""
_OF_TEXTS = "texts:"
"""Before an expression that reads numbers of texts, so that nobody takes it for one that is complete."""
LEAF = ALL = -1
"""As in ``students.ensemble``."""
EXPONENT = 700.0
"""exp() of float8 overflows at 709 and underflows at -745; a probability beyond 1e-300 is 0 or 1 to any reader."""
PLANNING_MS_PER_KB = 0.12
"""20, 50, 200, 400 kB (310, 800, 3,100 leaves, 3,100 with long lists of strings) took 1.5, 4, 12 to 30, 70 to 90
ms on PostgreSQL 15 and a busy machine, parsing included."""
LEAF_BYTES, USUAL_LEAF_BYTES = 30, 65
"""What a leaf takes at least, and usually, with its share of the splits."""
MAX_CHAIN = 4
"""Values that are compared one by one; more are halved first."""
FLOAT32_TERM = 4.0
"""Float32 rounds a term of this size by 2e-7: larger ones are rounded in SQL too, or predictions would drift apart."""
SMALLEST_SHIFT = 2.0**-10
"""Of a column's scale: what a number is shifted by at least, so that no difference from it is tiny."""
LARGEST_SCALE = 1e6
"""Scales within this, and its inverse, are left to the weights, which are float4 in a vector."""
SAFE_EXPONENT = 300.0
"""No sum of exp() of up to this overflows, whatever the number of classes, and none of their shares underflows."""
STEADY_SHIFT = 256.0
"""Added and taken off again it rounds log-odds to steps of 2**-44, of which exp() certainly tells one from the next."""
FLOAT32_LIMIT = 2.0**128 - 2.0**103
"""From here on float32 rounds to infinity."""


@dataclass(frozen=True)
class Number:
    """A column of numbers: SQL of type float8, and what the graph subtracts before it casts to float32."""

    sql: str
    centre: float = 0.0


@dataclass(frozen=True)
class Categories:
    """A column of strings: SQL of type text, and the places of its known values among trees' thresholds.

    Every other value has place 0.
    """

    sql: str
    places: Mapping[str, float]


class Trees(Protocol):
    """What `tree_sums` reads of ``students.ensemble.Ensemble``."""

    @property
    def feature(self) -> npt.NDArray[np.int32]: ...  # noqa: D102
    @property
    def threshold(self) -> npt.NDArray[np.float32]: ...  # noqa: D102
    @property
    def left(self) -> npt.NDArray[np.int32]: ...  # noqa: D102
    @property
    def right(self) -> npt.NDArray[np.int32]: ...  # noqa: D102
    @property
    def missing_left(self) -> npt.NDArray[np.bool_]: ...  # noqa: D102
    @property
    def values(self) -> FloatArray: ...  # noqa: D102
    @property
    def roots(self) -> npt.NDArray[np.int32]: ...  # noqa: D102
    @property
    def target(self) -> npt.NDArray[np.int32]: ...  # noqa: D102
    @property
    def base(self) -> FloatArray: ...  # noqa: D102


# -- columns and literals


def canonical(sql: str, kind: Kind, type_name: str | None = None) -> str:
    """Return SQL of type float8 (text, for a string) of the column ``sql``; NULL stays NULL.

    Parameters
    ----------
    sql
        SQL of the column: an identifier, a parameter, an argument's name.
    type_name
        Its SQL type, where it is known: a timestamptz is then read by immutable functions only (date_part of a
        timestamptz is stable, and so stops a function from being inlined).
    """
    if kind in STRINGS:
        return f'({sql}::text COLLATE "C")'  # an equality that no collation can change
    if kind == "boolean":
        return f"{sql}::int::float"
    if kind == "timestamp":
        if type_name == "timestamptz":
            return f"pg_catalog.date_part('epoch', pg_catalog.timezone('UTC', {sql}))"
        return f"pg_catalog.date_part('epoch', {sql})"
    return f"{sql}::float"


def sources(features: Sequence[Feature], columns: Mapping[str, str] | None) -> dict[str, str]:
    """Return each feature's SQL: `canonical` of the column of its name, or what ``columns`` has for it.

    Raises
    ------
    FeatureNotSupported
        One is a vector.
    """
    for f in features:
        if f.is_vector:
            raise FeatureNotSupported(f'feature "{f.name}" is a vector, of which there is no form in SQL')
    return {
        f.name: columns[f.name]
        if columns is not None and f.name in columns
        else canonical(quote_identifier(f.name), f.kind)
        for f in features
    }


def literal(value: float) -> str:
    """Return ``value`` as a float8 literal that reads back the same; it needs no search_path."""
    if np.isnan(value):
        return "'NaN'::float"
    if np.isinf(value):
        return "'Infinity'::float" if value > 0 else "'-Infinity'::float"
    text = repr(float(value))
    return f"'{text.removesuffix('.0')}'::float"


def float8_threshold(threshold: float, centre: float = 0.0) -> float:
    """Return the largest float8 x with ``float32(x - centre) <= threshold``, as float32 rounds to nearest even.

    Parameters
    ----------
    threshold
        A value that float32 holds, or an infinity.
    """
    single = np.float32(threshold)
    if single == np.inf:
        return float("inf")
    with np.errstate(over="ignore"):
        following = np.nextafter(single, np.float32(np.inf))
    if np.isinf(following):
        middle = FLOAT32_LIMIT
    elif np.isinf(single):
        middle = -FLOAT32_LIMIT
    else:
        middle = (float(single) + float(following)) / 2
    if int(single.view(np.uint32)) & 1:  # the tie goes to the even one, which is the one above
        middle = float(np.nextafter(middle, -np.inf))
    if centre == 0.0:
        return middle
    found = middle + centre
    while found - centre > middle:
        found = float(np.nextafter(found, -np.inf))
    while float(np.nextafter(found, np.inf)) - centre <= middle:
        found = float(np.nextafter(found, np.inf))
    return found


def balanced_sum(terms: Sequence[str], operator: str = "+") -> str:
    """Return the sum of ``terms`` as a balanced tree of parentheses; 8,000 nested to the left overflow the stack."""
    if not terms:
        return "0"
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return f"({balanced_sum(terms[:middle], operator)} {operator} {balanced_sum(terms[middle:], operator)})"


# -- trees


def tree_sums(trees: Trees, columns: Sequence[Number | Categories]) -> tuple[list[str], float]:
    """Return each output's sum of trees, base included, as SQL of type int4, and the unit in which it counts.

    Raises
    ------
    LimitExceeded
        Where the expressions would be longer than `MAX_BYTES`.
    """
    outputs = len(trees.base)
    leaves = trees.feature == LEAF
    widths = int(leaves.sum()) * trees.values.shape[1]
    if widths * LEAF_BYTES > MAX_BYTES:
        raise LimitExceeded(f"expression of {widths} leaves is over the limit of {MAX_BYTES} bytes")
    used = np.concatenate([trees.values[leaves].ravel(), trees.base])
    unit = _unit(used)
    integers = np.round(trees.values / unit).astype(np.int64)
    base = np.round(trees.base / unit).astype(np.int64)
    writer = _Writer(trees, columns, integers)
    sums = []
    for k in range(outputs):
        column = k if trees.values.shape[1] > 1 else 0
        own = [int(root) for root, t in zip(trees.roots, trees.target, strict=True) if t in (ALL, k)]
        terms = [writer.tree(root, column) for root in own]
        terms = [term for term in terms if term != "0"]
        if base[k] or not terms:
            terms.append(str(int(base[k])))
        sums.append(balanced_sum(terms))
    return sums, unit


def _unit(values: FloatArray) -> float:
    """Return the largest power of two of which all ``values`` are multiples."""
    known = values[values != 0.0]
    if not len(known):
        return 1.0
    mantissa, exponent = np.frexp(known)
    integers = (mantissa * 2.0**53).astype(np.int64)
    zeros = np.log2((integers & -integers).astype(np.float64)).astype(np.int64)
    return float(2.0 ** int((exponent - 53 + zeros).min()))


class _Writer:
    """Writes trees as nested CASE."""

    def __init__(
        self, trees: Trees, columns: Sequence[Number | Categories], integers: npt.NDArray[np.int64]
    ) -> None:
        self.trees = trees
        self.columns = columns
        self.integers = integers
        self.thresholds: dict[tuple[int, float], str] = {}

    def tree(self, root: int, column: int) -> str:
        """Return the tree of ``root`` for one output."""
        return self._node(root, column, {})

    def _node(self, node: int, output: int, reach: dict[int, _Reach]) -> str:
        trees = self.trees
        feature = int(trees.feature[node])
        if feature == LEAF:
            return str(int(self.integers[node, output]))
        column = self.columns[feature]
        threshold = float(trees.threshold[node])
        missing_left = bool(trees.missing_left[node])
        if isinstance(column, Number):
            left = self._node(int(trees.left[node]), output, reach)
            right = self._node(int(trees.right[node]), output, reach)
            if left == right:
                return left
            return self._number(feature, column, threshold, missing_left, left, right)
        return self._string(node, output, reach, column)

    def _number(
        self, feature: int, column: Number, threshold: float, missing_left: bool, left: str, right: str
    ) -> str:
        key = (feature, threshold)
        if key not in self.thresholds:
            bound = literal(float8_threshold(threshold, column.centre)).removesuffix("::float")
            self.thresholds[key] = bound
        bound = self.thresholds[key]
        if missing_left:
            return f"CASE WHEN {column.sql} > {bound} AND {column.sql} < 'NaN' THEN {right} ELSE {left} END"
        return f"CASE WHEN {column.sql} <= {bound} THEN {left} ELSE {right} END"

    def _string(self, node: int, output: int, reach: dict[int, _Reach], column: Categories) -> str:
        trees = self.trees
        feature, threshold = int(trees.feature[node]), float(trees.threshold[node])
        here = reach.get(feature) or _Reach(tuple(column.places), True, True)
        low = tuple(v for v in here.values if column.places[v] <= threshold)
        high = tuple(v for v in here.values if column.places[v] > threshold)
        null_left = bool(trees.missing_left[node])
        if len(here.values) > MAX_CHAIN and self._splits_only(node, feature):
            return self._look_up(node, output, here, column)
        go_left = _Reach(low, here.other and threshold >= 0.0, here.null and null_left)
        go_right = _Reach(high, here.other and threshold < 0.0, here.null and not null_left)
        left = self._node(int(trees.left[node]), output, {**reach, feature: go_left})
        right = self._node(int(trees.right[node]), output, {**reach, feature: go_right})
        if left == right or not go_right:
            return left
        if not go_left:
            return right
        list_left = go_right.other or (not go_left.other and len(low) <= len(high))
        listed, then, otherwise = (go_left, left, right) if list_left else (go_right, right, left)
        return f"CASE WHEN {_is_one_of(column.sql, listed)} THEN {then} ELSE {otherwise} END"

    def _splits_only(self, node: int, feature: int) -> bool:
        trees = self.trees
        if trees.feature[node] == LEAF:
            return True
        return int(trees.feature[node]) == feature and all(
            self._splits_only(int(child[node]), feature) for child in (trees.left, trees.right)
        )

    def _look_up(self, node: int, output: int, here: _Reach, column: Categories) -> str:
        """Return a binary search for a subtree that splits one string column only: it names each value once."""
        trees = self.trees

        def leaf(place: float) -> int:
            at = node
            while trees.feature[at] != LEAF:
                left = (
                    bool(trees.missing_left[at]) if np.isnan(place) else place <= float(trees.threshold[at])
                )
                at = int(trees.left[at] if left else trees.right[at])
            return int(self.integers[at, output])

        other, null = leaf(0.0), leaf(np.nan)
        found = {value: leaf(column.places[value]) for value in here.values}
        return choose(column.sql, found, other, null if here.null else other)


def choose(sql: str, results: Mapping[str, int | str], other: int | str, null: int | str) -> str:
    """Return the value, SQL or an int4, that belongs to a string: a binary search that names each value once.

    Parameters
    ----------
    sql
        A string with COLLATE "C", as `canonical` gives it.
    results
        Those of the known values; ``other`` is that of any other value, ``null`` that of NULL.
    """
    # Only ASCII has the same order in Python and in every server encoding.
    plain = sorted(value for value, result in results.items() if result != other and value.isascii())
    rest = [value for value, result in results.items() if result != other and not value.isascii()]

    def chain(values: Sequence[str], otherwise: str) -> str:
        whens = " ".join(f"WHEN {quote_literal(v)} THEN {results[v]}" for v in values)
        return f"CASE {sql} {whens} ELSE {otherwise} END" if values else otherwise

    def search(values: Sequence[str]) -> str:
        if len(values) <= MAX_CHAIN:
            return chain(values, str(other))
        middle = len(values) // 2
        low, high = search(values[:middle]), search(values[middle:])
        return f"CASE WHEN {sql} < {quote_literal(values[middle])} THEN {low} ELSE {high} END"

    text = chain(rest, search(plain))
    return text if null == other else f"CASE WHEN {sql} IS NULL THEN {null} ELSE {text} END"


@dataclass(frozen=True)
class _Reach:
    """What a string column may still hold on the way to a node: known values, any other value, NULL."""

    values: tuple[str, ...]
    other: bool
    null: bool

    def __bool__(self) -> bool:
        return bool(self.values) or self.other or self.null


def _is_one_of(sql: str, reach: _Reach) -> str:
    """Return the test for the values and NULL of ``reach``; NULL is neither true nor false where it is not asked for."""
    if not reach.values:
        return f"{sql} IS NULL"
    if len(reach.values) == 1:
        test = f"{sql} = {quote_literal(reach.values[0])}"
    else:
        test = f"{sql} IN ({', '.join(quote_literal(v) for v in reach.values)})"
    return f"({test}) IS NOT FALSE" if reach.null else test


# -- lines


@dataclass(frozen=True)
class Line:
    """A straight line between ``low`` and ``high``, flat beyond: ``slope * (x - centre)``, x as float32 holds it.

    NULL and NaN count as larger than every number, or where ``missing`` as ``centre``.
    """

    slope: float
    centre: float
    low: float
    high: float
    missing: bool


def line_term(column: Number, line: Line) -> tuple[str, float]:
    """Return a line's term as SQL of type float8, and the constant that has to be added to it."""
    low, high = line.low + column.centre, line.high + column.centre
    # x - shift is 0 or at least shift's own last bit, which no slope brings below float8's smallest number;
    # where all x are on one side of 0 they are large enough themselves.
    shift = 0.0
    if low * high <= 0:
        shift = next((v for v in (line.centre + column.centre, low, high) if v != 0.0), 1.0)
    x = column.sql
    if abs(line.slope) * max(abs(low), abs(high)) > FLOAT32_TERM and low * high > 0 and column.centre == 0.0:
        x = f"{x}::real"  # in range, because it is between low and high
    at_low, at_high, at_centre = (line.slope * (v - shift) for v in (low, high, line.centre + column.centre))
    inside = f"({x} - {literal(shift)}) * {literal(line.slope)}" if shift else f"{x} * {literal(line.slope)}"
    beyond = literal(at_high)
    if line.missing:
        beyond = f"CASE WHEN {column.sql} < 'NaN' THEN {beyond} ELSE {literal(at_centre)} END"
    sql, least, most = column.sql, literal(low), literal(high)
    text = (
        f"CASE WHEN {sql} <= {most} AND {sql} >= {least} THEN {inside}"
        f" WHEN {sql} < {least} THEN {literal(at_low)} ELSE {beyond} END"
    )
    return text, -at_centre


@dataclass(frozen=True)
class Clipped:
    """A number between two ends, less a shift and times a factor: SQL of type float8, neither NaN, huge nor tiny.

    Parameters
    ----------
    known
        NULL where the number is NULL or NaN.
    at_fill
        What is to stand there for it.
    shift, factor
        ``y`` being what the graph has of the number after centring, filling and clipping, this is ``(y - shift) * factor``.
    """

    column: str
    known: str
    at_fill: float
    shift: float
    factor: float

    @property
    def filled(self) -> str:
        """SQL that is never NULL."""
        return f"{self.known.removesuffix(' END')} ELSE {literal(self.at_fill)} END"

    @property
    def is_missing(self) -> str:
        """SQL of type float8: 1 where the number is NULL or NaN, 0 elsewhere."""
        return f"CASE WHEN {self.column} < 'NaN' THEN {literal(0.0)} ELSE {literal(1.0)} END"


def clip(column: Number, fill: float, low: float, high: float, scale: float) -> Clipped:
    """Return a column clipped to ``low`` .. ``high``; these and ``fill`` are of after centring.

    ``scale`` is what counts as a step of it. A difference from the shift is 0 or no less than the shift's own last bit, and so
    no product with a weight underflows; a factor brings in range what is not.
    """
    ends = [v + column.centre for v in (fill, low, high)]
    at = ends[0] if abs(ends[0]) >= SMALLEST_SHIFT * scale else SMALLEST_SHIFT * scale
    factor = 1.0 if 1.0 / LARGEST_SCALE <= scale <= LARGEST_SCALE else 1.0 / scale
    at_fill, _, at_high = ((v - at) * factor for v in ends)
    x = column.sql
    inside = f"GREATEST({x}, {literal(ends[1])})"
    if column.centre == 0.0 and ends[1] * ends[2] > 0 and max(map(abs, ends)) > FLOAT32_TERM * scale:
        inside = f"{inside}::real"  # in range, because it is between low and high
    inside = f"({inside} - {literal(at)})"
    if factor != 1.0:
        inside = f"{inside} * {literal(factor)}"
    known = f"CASE WHEN {x} <= {literal(ends[2])} THEN {inside} WHEN {x} < 'NaN' THEN {literal(at_high)} END"
    return Clipped(x, known, at_fill, at - column.centre, factor)


# -- from sums to predictions


@dataclass(frozen=True)
class Sums:
    """What a student adds up before it predicts.

    Parameters
    ----------
    sql
        SQL of one value, of the log-odds of the last class of two, or of each class's logit.
    unit
        What they count in.
    bound
        What none of them exceeds in size, in units.
    source
        The FROM clause that they read.
    prefix
        How the names of stages start: as nothing does that they read.
    reads_texts
        Whether they read numbers of texts, by names of ``tokens_sql.reference``.
    """

    sql: Sequence[str]
    unit: float = 1.0
    bound: float = float("inf")
    source: str = ""
    prefix: str = "_"
    reads_texts: bool = False


def stage_prefix(columns: Iterable[str]) -> str:
    """Return how the names of stages start, so that they are no part of the SQL of any column."""
    texts = list(columns)
    prefix = "_"
    while any(prefix in text for text in texts):
        prefix += "_"
    return prefix


def output(sums: Sums, task: Task, *, steady: bool = False) -> str:
    """Return the prediction of a student's sums.

    Parameters
    ----------
    steady
        Whether the probability of the last of two classes has to rise with its log-odds to the last bit.

    Returns
    -------
    SQL of type float8: the value, or the probability of the last of two classes; of type float8[] for more
    classes, and for several labels.

    Raises
    ------
    LimitExceeded
        Where it would be longer than `MAX_BYTES`.
    """
    scale = "" if sums.unit == 1.0 else f" * {literal(sums.unit)}"
    if task == "regression":
        text = f"({sums.sql[0]}{scale})::float"
    elif task == "binary":
        text = _sigmoid(sums, sums.sql[0], scale, steady=steady)
    elif task == "multilabel":
        text = f"ARRAY[{', '.join(_sigmoid(sums, z, scale) for z in sums.sql)}]"
    else:
        text = _softmax(sums, scale)
    if sums.source and task != "multiclass":
        text = f"(SELECT {text}{sums.source})"
    if len(text) > MAX_BYTES:
        raise LimitExceeded(f"expression of {len(text)} bytes is over the limit of {MAX_BYTES}")
    return f"{_OF_TEXTS}{text}" if sums.reads_texts else text


def _sigmoid(sums: Sums, z: str, scale: str, *, steady: bool = False) -> str:
    """Return the probability of log-odds, one of the sums; ``steady`` as in `output`."""
    z = f"({z}){scale}"
    if sums.bound * sums.unit > EXPONENT:
        z = f"GREATEST(LEAST({z}, {literal(EXPONENT)}), {literal(-EXPONENT)})"
    if steady:
        z = f"{z} + {literal(STEADY_SHIFT)} - {literal(STEADY_SHIFT)}"
    return f"({literal(1.0)} / ({literal(1.0)} + pg_catalog.exp(-({z}))))"


def _softmax(sums: Sums, scale: str) -> str:
    """Return an array of probabilities.

    What is needed in every probability is named in a sub-select; OFFSET 0 keeps the planner from writing it out again everywhere.
    The largest sum is taken off before exp() where that could overflow.
    """
    classes = range(len(sums.sql))
    p = sums.prefix
    source = sums.source
    logits = [f"({z}){scale}" for z in sums.sql]
    if sums.bound * sums.unit > SAFE_EXPONENT:
        named = ", ".join(f"({z})::float AS {p}z{k}" for k, z in zip(classes, sums.sql, strict=True))
        source = f" FROM (SELECT {named}{source} OFFSET 0) {p}s"
        largest = f"GREATEST({', '.join(f'{p}z{k}' for k in classes)})"
        source = f" FROM (SELECT {', '.join(f'{p}z{k}' for k in classes)}, {largest} AS {p}m{source} OFFSET 0) {p}s"
        logits = [f"GREATEST(({p}z{k} - {p}m){scale}, {literal(-EXPONENT)})" for k in classes]
    named = ", ".join(
        f"pg_catalog.exp(({z})::float) AS {p}e{k}" for k, z in zip(classes, logits, strict=True)
    )
    source = f" FROM (SELECT {named}{source} OFFSET 0) {p}s"
    names = [f"{p}e{k}" for k in classes]
    source = f" FROM (SELECT {', '.join(names)}, {balanced_sum(names)} AS {p}t{source} OFFSET 0) {p}s"
    return f"(SELECT ARRAY[{', '.join(f'{name} / {p}t' for name in names)}]{source})"


def blended(parts: Sequence[Sums], weights: Sequence[float], prefix: str) -> Sums:
    """Return the weighted mean of the sums of several students, whose prefixes differ.

    Raises
    ------
    LimitExceeded
        Where they would be longer than `MAX_BYTES`.
    """
    classes = len(parts[0].sql)
    terms: list[list[str]] = [[] for _ in range(classes)]
    arrays: list[str] = []
    bound = 0.0
    for part, weight in zip(parts, weights, strict=True):
        factor = literal(part.unit * weight)
        bound += part.bound * part.unit * abs(weight)
        read: Sequence[str] = part.sql
        if part.source and classes == 1:
            read = [f"(SELECT {part.sql[0]}{part.source})"]
        elif part.source:
            read = [f"{prefix}a{len(arrays)}[{k + 1}]" for k in range(classes)]
            arrays.append(f"(SELECT ARRAY[{', '.join(part.sql)}]{part.source}) AS {prefix}a{len(arrays)}")
        for k, z in enumerate(read):
            terms[k].append(f"({z}) * {factor}")
    source = f" FROM (SELECT {', '.join(arrays)} OFFSET 0) {prefix}s" if arrays else ""
    if len(source) + sum(len(t) for own in terms for t in own) > MAX_BYTES:
        raise LimitExceeded(f"expression of a blend is over the limit of {MAX_BYTES} bytes")
    texts = any(part.reads_texts for part in parts)
    return Sums(
        [balanced_sum(own) for own in terms], bound=bound, source=source, prefix=prefix, reads_texts=texts
    )


# -- with pgvector, or without


def either(forms: Callable[[bool], str]) -> str:
    """Return the forms of a student with pgvector and without it as one text, of which `form` takes one.

    Parameters
    ----------
    forms
        Writes the form with pgvector, or without it; raises LimitExceeded where one is too long.

    Raises
    ------
    LimitExceeded
        Where both are.
    """
    found: dict[bool, str] = {}
    refused: LimitExceeded | None = None
    for vectors in (True, False):
        try:
            found[vectors] = forms(vectors)
        except LimitExceeded as error:
            refused = error
    if not found:
        assert refused is not None
        raise refused
    if True not in found or found.get(False) == found[True]:
        return found[False]
    return f"{_BY_PGVECTOR}{len(found[True])}:{found[True]}{found.get(False, '')}"


def form(text: str, *, vectors: bool) -> str:
    """Return what `either` was given for pgvector, or else without it; "" where there is no such form."""
    if not text.startswith(_BY_PGVECTOR):
        return text
    length, _, forms = text.removeprefix(_BY_PGVECTOR).partition(":")
    return forms[: int(length)] if vectors else forms[int(length) :]


def of_texts(form: str) -> str | None:
    """Return the expression of a form that reads numbers of texts, which its file has the rest of; None of any other."""
    return form.removeprefix(_OF_TEXTS) if form.startswith(_OF_TEXTS) else None


# -- limits


def planning_ms(expression: str) -> float:
    """Return roughly what PostgreSQL takes to parse and plan ``expression``, in every statement that holds it."""
    return PLANNING_MS_PER_KB * len(expression) / 1000
