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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pg_distill.errors import FeatureNotSupported, LimitExceeded
from pg_distill.frame import STRINGS, Feature, FloatArray, Kind, Task
from pg_distill.quoting import quote_identifier, quote_literal

__all__ = [
    "MAX_BYTES",
    "Categories",
    "Line",
    "Number",
    "Trees",
    "balanced_sum",
    "canonical",
    "choose",
    "float8_threshold",
    "line_term",
    "literal",
    "output",
    "perceptron",
    "planning_ms",
    "sources",
    "tree_sums",
]

MAX_BYTES = 1 << 20
"""Longest expression: more than 0.1 s to plan, in every statement that holds it."""
LEAF = ALL = -1
"""As in ``students.ensemble``."""
EXPONENT = 700.0
"""exp() of float8 overflows at 709 and underflows at -745; a probability beyond 1e-300 is 0 or 1 to any reader."""
PLANNING_MS_PER_KB = 0.12
"""20, 50, 200, 400 kB (310, 800, 3,100 leaves, 3,100 with long lists of strings) took 1.5, 4, 12 to 30, 70 to 90
ms on PostgreSQL 15 and a busy machine, parsing included."""
INLINED_BYTES = 1 << 14
"""Longest hidden layer that is written without a sub-select: inputs are computed again for each unit, which took 12 us a row
instead of 6 (6 inputs, 8 units); but a function that is not inlined took 90."""
WEIGHT_BYTES = 20
"""What a weight takes, with the name of what it weighs."""
LEAF_BYTES = 30
"""What a leaf takes at least, with its share of the splits."""
MAX_CHAIN = 4
"""Values that are compared one by one; more are halved first."""
FLOAT32_TERM = 4.0
"""Float32 rounds a term of this size by 2e-7: larger ones are rounded in SQL too, or predictions would drift apart."""
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


def choose(sql: str, results: Mapping[str, int], other: int, null: int) -> str:
    """Return the int4 that belongs to a string: a binary search that names each value once.

    Parameters
    ----------
    sql
        A string with COLLATE "C", as `canonical` gives it.
    results
        The integers of the known values; ``other`` is that of any other value, ``null`` that of NULL.
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


# -- from sums to predictions


def output(sums: Sequence[str], task: Task, *, bound: float, unit: float = 1.0, source: str = "") -> str:
    """Return the prediction of a student's sums.

    Parameters
    ----------
    sums
        SQL of one value, of the log-odds of the last class of two, or of each class's logit.
    bound
        What none of them exceeds in size, in units.
    unit
        What the sums count in.
    source
        A FROM clause, where the sums read one.

    Returns
    -------
    SQL of type float8: the value, or the probability of the last of two classes; of type float8[] for more
    classes.

    Raises
    ------
    LimitExceeded
        Where it would be longer than `MAX_BYTES`.
    """
    scale = "" if unit == 1.0 else f" * {literal(unit)}"
    if task == "regression":
        text = f"({sums[0]}{scale})::float"
    elif task == "binary":
        z = f"({sums[0]}){scale}"
        if bound * unit > EXPONENT:
            z = f"GREATEST(LEAST({z}, {literal(EXPONENT)}), {literal(-EXPONENT)})"
        text = f"({literal(1.0)} / ({literal(1.0)} + pg_catalog.exp(-({z}))))"
    else:
        text = _softmax(sums, scale, 2 * bound * unit > EXPONENT, source)
    if source and task != "multiclass":
        text = f"(SELECT {text}{source})"
    if len(text) > MAX_BYTES:
        raise LimitExceeded(f"expression of {len(text)} bytes is over the limit of {MAX_BYTES}")
    return text


def _softmax(sums: Sequence[str], scale: str, clamped: bool, source: str) -> str:
    """Return an array of probabilities.

    Each sum is needed in every probability, so it is named in a sub-select; OFFSET 0 keeps the planner from
    writing it out again everywhere. A function with a sub-select is not inlined.
    """
    names = [f"z{k}" for k in range(len(sums))]
    first = ", ".join(f"{text} AS {name}" for text, name in zip(sums, names, strict=True))
    exponents = [f"({name} - GREATEST({', '.join(names)})){scale}" for name in names]
    if clamped:
        exponents = [f"GREATEST({e}, {literal(-EXPONENT)})" for e in exponents]
    second = ", ".join(
        f"pg_catalog.exp(({e})::float) AS {name}" for e, name in zip(exponents, names, strict=True)
    )
    total = balanced_sum(names)
    last = ", ".join(f"{name} / {total}" for name in names)
    return (
        f"(SELECT ARRAY[{last}] FROM (SELECT {second} FROM (SELECT {first}{source} OFFSET 0) s OFFSET 0) e)"
    )


# -- perceptrons


def perceptron(
    inputs: Sequence[str],
    ramps: Sequence[tuple[int, float, float]],
    tables: Sequence[tuple[str, FloatArray]],
    weights: Sequence[FloatArray],
    biases: Sequence[FloatArray],
    task: Task,
) -> str:
    """Return a network with ReLU between its layers.

    Every layer is a sub-select, for its units are read many times; a function with a sub-select is not inlined. Where one
    hidden layer is so small that its inputs can be written out for each of its units, there is none (`INLINED_BYTES`).

    Parameters
    ----------
    inputs
        SQL of type float8 that is neither NULL, NaN, huge nor tiny: first the numbers, then flags.
    ramps
        Piecewise-linear encoding: (position of a number, low, inverse); they stand in for the numbers. Empty
        for none.
    tables
        For each string column SQL of its code, from 1 on, and what each code adds to the first layer (codes,
        units).
    weights, biases
        Of each layer, (from, to) and (to,); of the last layer one output for regression and for two classes.

    Raises
    ------
    LimitExceeded
        Where it would be longer than `MAX_BYTES`.
    """
    size = sum(w.size for w in weights) + sum(table.size for _, table in tables)
    if size * WEIGHT_BYTES > MAX_BYTES:
        raise LimitExceeded(f"expression of {size} weights is over the limit of {MAX_BYTES} bytes")
    codes = [f"({sql}) AS c{m}" for m, (sql, _) in enumerate(tables)]
    keep = [f"c{m}" for m in range(len(tables))]
    names = [f"x{i}" for i in range(len(inputs))]
    stage = [f"{sql} AS {name}" for sql, name in zip(inputs, names, strict=True)] + codes
    source = f" FROM (SELECT {', '.join(stage)} OFFSET 0) l"
    written = sum(map(len, inputs)) + sum(len(sql) for sql, _ in tables)
    flat = (
        len(weights) == 2
        and weights[1].shape[1] == 1
        and not ramps
        and written * weights[0].shape[1] <= INLINED_BYTES
    )
    if flat:
        source, names, keep = "", [f"({sql})" for sql in inputs], [f"({sql})" for sql, _ in tables]
    if ramps:
        numbers = 1 + max(position for position, _, _ in ramps)
        spread = [
            f"LEAST(GREATEST((x{position} - {_short(low)}) * {_short(inverse)}, {literal(0.0)}), {literal(1.0)}) AS r{i}"
            for i, (position, low, inverse) in enumerate(ramps)
        ]
        source = f" FROM (SELECT {', '.join([*spread, *names[numbers:], *keep])}{source} OFFSET 0) l"
        names = [*(f"r{i}" for i in range(len(ramps))), *names[numbers:]]
    sums: list[str] = []
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        sums = []
        for unit in range(weight.shape[1]):
            terms = [
                f"{name} * {_short(w)}" for name, w in zip(names, weight[:, unit], strict=True) if w != 0.0
            ]
            if number == 0:
                for name, (_, table) in zip(keep, tables, strict=True):
                    entries = ",".join(f"{float(v):.8g}" for v in table[:, unit])
                    terms.append(f"('{{{entries}}}'::float[])[{name}]")
            sums.append(balanced_sum([*terms, _short(bias[unit])]))
        if number < len(weights) - 1:
            if flat:  # each unit is read once
                names = [f"GREATEST({z}, {literal(0.0)})" for z in sums]
                continue
            names = [f"h{unit}" for unit in range(weight.shape[1])]
            stage = [f"GREATEST({z}, {literal(0.0)}) AS {name}" for z, name in zip(sums, names, strict=True)]
            source = f" FROM (SELECT {', '.join(stage)}{source} OFFSET 0) l"
    return output(sums, task, bound=float("inf"), source=source)


def _short(value: float) -> str:
    """Return a literal that is as exact as float32."""
    return f"'{float(value):.9g}'::float"


# -- limits


def planning_ms(expression: str) -> float:
    """Return roughly what PostgreSQL takes to parse and plan ``expression``, in every statement that holds it."""
    return PLANNING_MS_PER_KB * len(expression) / 1000
