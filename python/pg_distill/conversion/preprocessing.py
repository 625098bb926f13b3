"""scikit-learn's transformers as nodes: each reads a `Matrix` and gives one, in float64, with NULL where the library has it.

Long, because one table is behind it: a few lines for each class.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pg_distill.conversion.encoding import category_codes, is_missing, look_up, note_null, places
from pg_distill.conversion.graph import Graph, Matrix, Numbers, Text
from pg_distill.conversion.texts import tfidf, vectorizer, weighted
from pg_distill.conversion.trees import find_intervals
from pg_distill.errors import DatatypeMismatch, FeatureNotSupported

__all__ = ["TRANSFORMERS", "add_function", "kind_of", "unsupported"]

Transformer = Callable[[Graph, Any, Matrix], Matrix]

WHAT_ELSE = (
    "Do this step in the sample's query and fit the rest, or register what the model says as columns:"
    " distill.register_logged_model."
)


def kind_of(estimator: Any) -> str:
    """Return how an error calls an estimator: its class."""
    return type(estimator).__name__


def unsupported(estimator: Any, what: str, hint: str | None = None) -> FeatureNotSupported:
    """Return the error that an estimator cannot be converted."""
    return FeatureNotSupported(f"{kind_of(estimator)} {what}", hint=hint or WHAT_ELSE)


def _one(graph: Graph, tensor: str, width: int, *, sparse: bool = False) -> Matrix:
    return Matrix((Numbers(tensor, width),), sparse)


def _numeric(make: Callable[[Graph, Any, str], str]) -> Transformer:
    """Return a transformer that gives as many columns as it takes, of numbers only; sparse stays sparse."""

    def transform(graph: Graph, estimator: Any, matrix: Matrix) -> Matrix:
        x = graph.numbers(matrix, kind_of(estimator))
        return _one(graph, make(graph, estimator, x), matrix.width, sparse=matrix.sparse)

    return transform


# -- scaling


def _standard(graph: Graph, scaler: Any, x: str) -> str:
    if scaler.with_mean:
        x = graph.sub(x, scaler.mean_)
    return graph.div(x, scaler.scale_) if scaler.with_std else x


def _min_max(graph: Graph, scaler: Any, x: str) -> str:
    x = graph.add(graph.mul(x, scaler.scale_), scaler.min_)
    if scaler.clip:
        low, high = scaler.feature_range
        x = graph.op("Clip", x, graph.constant(low), graph.constant(high))
    return x


def _max_abs(graph: Graph, scaler: Any, x: str) -> str:
    x = graph.div(x, scaler.scale_)
    return (
        graph.op("Clip", x, graph.constant(-1.0), graph.constant(1.0))
        if getattr(scaler, "clip", False)
        else x
    )


def _robust(graph: Graph, scaler: Any, x: str) -> str:
    if scaler.with_centering:
        x = graph.sub(x, scaler.center_)
    return graph.div(x, scaler.scale_) if scaler.with_scaling else x


def _normalizer(graph: Graph, normalizer: Any, x: str) -> str:
    size = graph.op("Abs", x)
    if normalizer.norm == "l1":
        size = graph.sum(size)
    elif normalizer.norm == "l2":
        size = graph.op("Sqrt", graph.sum(graph.mul(x, x)))
    else:
        size = graph.op("ReduceMax", size, axes=[1], keepdims=1)
    return graph.div(x, graph.where(graph.equal(size, 0.0), 1.0, size))


def _tfidf(graph: Graph, transformer: Any, x: str) -> str:
    found = weighted(graph, transformer, x)
    if found is not None:
        return found
    x = tfidf(graph, transformer, x)
    return _normalizer(graph, transformer, x) if transformer.norm is not None else x


def _binarizer(graph: Graph, binarizer: Any, x: str) -> str:
    graph.refuse_nan(x)
    return graph.cast(graph.op("Greater", x, graph.constant(binarizer.threshold)))


def _power(graph: Graph, power: Any, x: str) -> str:
    lambdas = np.asarray(power.lambdas_, np.float64).reshape(1, -1)
    if power.method == "box-cox":
        found = _box_cox(graph, x, lambdas)
    else:
        negative = graph.op("Less", x, graph.constant(0.0))
        up = _box_cox(graph, graph.add(graph.where(negative, 0.0, x), 1.0), lambdas)
        down = _box_cox(graph, graph.sub(1.0, graph.where(negative, x, 0.0)), 2.0 - lambdas)
        found = graph.where(negative, graph.mul(down, -1.0), up)
    return _standard(graph, power._scaler, found) if power.standardize else found


def _box_cox(graph: Graph, x: str, lambdas: Any) -> str:
    """Return (x ** lambda - 1) / lambda, the logarithm where lambda is 0."""
    zero = np.abs(lambdas) < np.spacing(1.0)
    safe = np.where(zero, 1.0, lambdas)
    logarithm = graph.op("Log", x)
    # By the exponential function, as scipy does: a power loses digits where lambda is near 0.
    power = graph.div(graph.sub(graph.op("Exp", graph.mul(logarithm, safe)), 1.0), safe)
    small = np.abs(safe) < 1e-6
    if small.any():
        series = graph.mul(logarithm, graph.add(graph.mul(logarithm, safe / 2), 1.0))
        power = graph.where(graph.constant(small, np.bool_), series, power)
    return graph.where(graph.constant(zero, np.bool_), logarithm, power) if zero.any() else power


def _quantile(graph: Graph, transformer: Any, x: str) -> str:
    """Interpolate between the quantiles, as numpy.interp does from both sides where quantiles are equal."""
    if transformer.output_distribution != "uniform":
        raise unsupported(transformer, "with output_distribution 'normal' is not converted")
    references = np.asarray(transformer.references_, np.float64)
    quantiles = np.asarray(transformer.quantiles_, np.float64)
    starts, slopes, levels, offsets, edges = [], [], [], [0], []
    for column in quantiles.T:
        # Where quantiles are equal the curve jumps; on the jump itself it has the middle of its height.
        knots, first, count = np.unique(column, return_index=True, return_counts=True)
        low, high = references[first], references[first + count - 1]
        gaps = np.diff(knots)
        slope = np.zeros(len(knots) + 1)
        slope[1:-1] = np.where(gaps > 0, (low[1:] - high[:-1]) / np.where(gaps > 0, gaps, 1.0), 0.0)
        starts.append(np.r_[knots[0], knots])
        slopes.append(slope)
        levels.append(np.r_[0.0, high[:-1], 1.0])
        edges.append(knots)
        offsets.append(offsets[-1] + len(knots) + 1)
    place = find_intervals(graph, x, edges)
    flat = graph.op("Add", place, graph.constant(offsets[:-1], np.int64))

    def at(values: Sequence[Any]) -> str:
        return graph.op("Gather", graph.constant(np.concatenate(values)), flat, axis=0)

    curve = graph.add(at(levels), graph.mul(graph.sub(x, at(starts)), at(slopes)))
    # On a knot: the mean of what comes from the left and from the right.
    middles = []
    for column in quantiles.T:
        knots, first, count = np.unique(column, return_index=True, return_counts=True)
        middle = (references[first] + references[first + count - 1]) / 2
        middle[0], middle[-1] = 0.0, 1.0 if len(knots) > 1 else 0.0
        middles.append(np.r_[np.nan, middle])
    on = graph.equal(x, at(starts))
    middle = at(middles)
    return graph.where(graph.op("And", on, graph.op("Not", graph.is_nan(middle))), middle, curve)


# -- columns


def _support(graph: Graph, selector: Any, matrix: Matrix) -> Matrix:
    return graph.select(matrix, np.flatnonzero(selector.get_support()))


def _linear_map(graph: Graph, estimator: Any, matrix: Matrix) -> Matrix:
    """PCA, IncrementalPCA, TruncatedSVD, FastICA, FactorAnalysis without noise: a product with the components."""
    x = graph.numbers(matrix, kind_of(estimator))
    components = np.asarray(estimator.components_, np.float64)
    mean = getattr(estimator, "mean_", None)
    if mean is not None:
        x = graph.sub(x, mean)
    if getattr(estimator, "whiten", False) is True:
        scale = np.sqrt(np.maximum(estimator.explained_variance_, np.finfo(float).eps))
        components = components / scale.reshape(-1, 1)
    return _one(graph, graph.product(x, components.T), len(components))


def _polynomial(graph: Graph, features: Any, matrix: Matrix) -> Matrix:
    x = graph.numbers(matrix, kind_of(features))
    graph.refuse_nan(x)
    powers = np.asarray(features.powers_)
    width = powers.shape[1]
    factors = [list(itertools.chain.from_iterable([j] * int(p) for j, p in enumerate(row))) for row in powers]
    most = max(map(len, factors), default=0)
    padded = np.array([f + [width] * (most - len(f)) for f in factors], np.int64).reshape(len(factors), most)
    source = graph.concat([x, graph.tile([1.0], x)])
    if not most:
        return _one(graph, graph.tile(np.ones(len(factors)), x), len(factors), sparse=matrix.sparse)
    found = graph.gather(source, padded[:, 0])
    for degree in range(1, most):
        found = graph.mul(found, graph.gather(source, padded[:, degree]))
    return _one(graph, found, len(factors), sparse=matrix.sparse)


def _bins(graph: Graph, discretizer: Any, matrix: Matrix) -> Matrix:
    x = graph.numbers(matrix, kind_of(discretizer))
    graph.refuse_nan(x)
    edges = [np.asarray(e[1:-1], np.float64) for e in discretizer.bin_edges_]
    place = find_intervals(graph, x, edges)
    if discretizer.encode == "ordinal":
        return _one(graph, graph.cast(place), matrix.width)
    counts = [int(n) for n in discretizer.n_bins_]
    hot = _hot(graph, [graph.gather(place, [i]) for i in range(len(counts))], counts)
    return _one(graph, hot, sum(counts), sparse=discretizer.encode == "onehot")


def _hot(graph: Graph, codes: Sequence[str], counts: Sequence[int]) -> str:
    """Return columns of 0 and 1 for codes from 0; a code beyond ``counts`` is none of them."""
    return graph.concat(
        [
            graph.cast(graph.equal(c, graph.constant([range(n)], np.int64)))
            for c, n in zip(codes, counts, strict=True)
        ]
    )


def _spline(graph: Graph, splines: Any, matrix: Matrix) -> Matrix:
    from scipy.interpolate import PPoly

    if splines.extrapolation not in ("constant", "continue", "linear"):
        raise unsupported(splines, f"with extrapolation '{splines.extrapolation}' is not converted")
    if splines.extrapolation == "linear" and splines.degree < 2:
        # It counts the degree up from column to column.
        raise unsupported(splines, f"of degree {splines.degree} with extrapolation 'linear' is not converted")
    x = graph.numbers(matrix, kind_of(splines))
    zeros = getattr(splines, "handle_missing", "error") == "zeros"
    if not zeros:
        graph.refuse_nan(x)
    parts = []
    for column, spline in enumerate(splines.bsplines_):
        own = graph.gather(x, [column])
        degree, count = spline.k, spline.c.shape[1]
        low, high = spline.t[degree], spline.t[-degree - 1]
        inside = own if splines.extrapolation == "continue" else graph.op(
            "Min", graph.op("Max", own, graph.constant(low)), graph.constant(high)
        )  # fmt: skip
        knots = spline.t[degree : len(spline.t) - degree]
        each = [PPoly.from_spline((spline.t, c, degree)).c for c in spline.c.T]
        coefficients = np.stack(each, axis=-1)[
            :, degree : degree + len(knots) - 1
        ]  # (degree + 1, intervals, splines)
        place = graph.op(
            "Squeeze", find_intervals(graph, inside, [knots[1:-1]]), graph.constant([1], np.int64)
        )
        start = graph.op("Gather", graph.constant(knots[:-1].reshape(-1, 1)), place, axis=0)
        step = graph.sub(inside, start)

        def at(values: Any, place: str = place) -> str:
            return graph.op("Gather", graph.constant(values), place, axis=0)

        found = at(coefficients[0])
        for power in range(1, degree + 1):
            found = graph.add(graph.mul(found, step), at(coefficients[power]))
        if splines.extrapolation == "linear":
            beyond = graph.sub(own, inside)
            slope = graph.where(
                graph.op("Less", beyond, graph.constant(0.0)),
                spline(low, nu=1).reshape(1, -1),
                spline(high, nu=1).reshape(1, -1),
            )
            found = graph.add(found, graph.mul(slope, beyond))
        if zeros:
            found = graph.where(graph.is_nan(own), 0.0, found)
        parts.append(graph.gather(found, range(count if splines.include_bias else count - 1)))
    width = int(splines.n_features_out_)
    return _one(graph, graph.concat(parts), width, sparse=bool(getattr(splines, "sparse_output", False)))


def _kmeans(graph: Graph, clusters: Any, matrix: Matrix) -> Matrix:
    x = graph.numbers(matrix, kind_of(clusters))
    distances = [
        graph.op("Sqrt", graph.sum(graph.op("Pow", graph.sub(x, centre), graph.constant(2.0))))
        for centre in clusters.cluster_centers_
    ]
    return _one(graph, graph.concat(distances), len(distances))


# -- functions


def add_function(graph: Graph, x: str, function: Any) -> str | None:
    """Return a function of a list that is known, applied to a tensor; None for any other."""
    if function is None or getattr(function, "__name__", "") == "check_array":
        return x
    partial_of = getattr(function, "func", None)
    if partial_of is not None and getattr(partial_of, "__name__", "") == "check_array":
        return x
    module = (getattr(function, "__module__", None) or "").partition(".")[0]
    name = getattr(function, "__name__", "")
    if not (isinstance(function, np.ufunc) or module in ("numpy", "scipy")) or name not in _FUNCTIONS:
        return None
    return _FUNCTIONS[name](graph, x)


def _log(base: float | None) -> Callable[[Graph, str], str]:
    def add(graph: Graph, x: str) -> str:
        found = graph.op("Log", x)
        return found if base is None else graph.div(found, np.log(base))

    return add


def _log1p(graph: Graph, x: str) -> str:
    # Kahan: the rounding of 1 + x is divided out, so that a small x keeps its digits.
    one_more = graph.add(x, 1.0)
    rounded = graph.sub(one_more, 1.0)
    exact = graph.equal(rounded, 0.0)
    ratio = graph.div(x, graph.where(exact, 1.0, rounded))
    found = graph.where(exact, x, graph.mul(graph.op("Log", one_more), ratio))
    return graph.where(graph.op("IsInf", x), graph.op("Log", x), found)


def _expm1(graph: Graph, x: str) -> str:
    # tanh(x / 2) has the digits of a small x: e**x - 1 = tanh(x / 2) (e**x + 1).
    exponential = graph.op("Exp", x)
    small = graph.op("Less", graph.op("Abs", x), graph.constant(1.0))
    near = graph.mul(
        graph.op("Tanh", graph.mul(graph.where(small, x, 0.0), 0.5)), graph.add(exponential, 1.0)
    )
    return graph.where(small, near, graph.sub(exponential, 1.0))


def _unary(operator: str) -> Callable[[Graph, str], str]:
    return lambda graph, x: graph.op(operator, x)


_FUNCTIONS: Mapping[str, Callable[[Graph, str], str]] = {
    "log": _log(None),
    "log2": _log(2.0),
    "log10": _log(10.0),
    "log1p": _log1p,
    "exp": _unary("Exp"),
    "expm1": _expm1,
    "sqrt": _unary("Sqrt"),
    "cbrt": lambda graph, x: graph.mul(
        graph.op("Sign", x), graph.op("Pow", graph.op("Abs", x), graph.constant(1 / 3))
    ),
    "square": lambda graph, x: graph.mul(x, x),
    "abs": _unary("Abs"),
    "absolute": _unary("Abs"),
    "fabs": _unary("Abs"),
    "negative": _unary("Neg"),
    "positive": lambda graph, x: x,
    "reciprocal": lambda graph, x: graph.div(1.0, x),
    "sign": _unary("Sign"),
    "floor": _unary("Floor"),
    "ceil": _unary("Ceil"),
    "sin": _unary("Sin"),
    "cos": _unary("Cos"),
    "tan": _unary("Tan"),
    "tanh": _unary("Tanh"),
    "arctan": _unary("Atan"),
    "arcsinh": _unary("Asinh"),
    "expit": _unary("Sigmoid"),
    "nan_to_num": lambda graph, x: graph.where(graph.is_nan(x), 0.0, x),
}


def _function(graph: Graph, transformer: Any, matrix: Matrix) -> Matrix:
    function = transformer.func
    if getattr(transformer, "kw_args", None):
        raise unsupported(transformer, "with kw_args is not converted")
    if function is None or add_function(graph, "", function) == "":
        return matrix
    x = graph.numbers(matrix, kind_of(transformer))
    found = add_function(graph, x, function)
    if found is None:
        name = getattr(function, "__name__", type(function).__name__)
        raise unsupported(transformer, f'of function "{name}" is not converted: functions of numpy are')
    return _one(graph, found, matrix.width, sparse=matrix.sparse)


# -- missing values


def _imputer(graph: Graph, imputer: Any, matrix: Matrix) -> Matrix:
    matrix = graph.resolved(matrix)
    missing = imputer.missing_values
    statistics = np.asarray(imputer.statistics_, object)
    keeps_empty = imputer.strategy == "constant" or imputer.keep_empty_features
    blocks: list[Numbers | Text] = []
    column = 0
    for block in matrix.blocks:
        own = range(column, column + block.width)
        column += block.width
        filled = [i for i in own if keeps_empty or not is_missing(statistics[i])]
        if isinstance(block, Text):
            if not filled:
                continue
            value = statistics[own[0]]
            raw = None if is_missing(missing) else str(missing)
            if not isinstance(value, str):
                raise DatatypeMismatch(
                    f'column "{graph.names[block.column]}" is of texts in the sample, but {kind_of(imputer)} learned numbers',
                    hint="Cast it in the sample's query, for example to float8.",
                )
            _note_imputed(graph, block, missing)
            blocks.append(_replaced(block, raw, value))
            continue
        if any(isinstance(statistics[i], str) for i in filled):
            name = f'column "{graph.names[block.columns[0]]}"' if block.columns else "a column"
            raise DatatypeMismatch(
                f"{name} is of numbers in the sample, but {kind_of(imputer)} learned texts",
                hint="Cast it to text in the sample's query.",
            )
        whole = graph.numbers(Matrix((block,)), kind_of(imputer))
        if len(filled) < block.width:
            whole = graph.gather(whole, [i - own[0] for i in filled])
        if not filled:
            continue
        values = np.array([statistics[i] for i in filled], np.float64).reshape(1, -1)
        if is_missing(missing):
            found = graph.where(graph.is_nan(whole), values, whole)
        else:
            graph.refuse_nan(whole)
            found = graph.where(graph.equal(whole, float(missing)), values, whole)
        blocks.append(Numbers(found, len(filled)))
    out = Matrix(tuple(blocks), matrix.sparse)
    if imputer.add_indicator:
        return Matrix.join([out, _indicator(graph, imputer.indicator_, matrix)], sparse=matrix.sparse)
    return out


def _replaced(block: Text, raw: str | None, value: str) -> Text:
    """Return a column of texts in which ``raw`` is read as ``value``."""
    read_as = {key: (value if seen == raw else seen) for key, seen in block.read_as.items()}
    read_as.setdefault(raw, value)
    return Text(block.column, read_as)


def _note_imputed(graph: Graph, block: Text, missing: Any) -> None:
    """Remember which missing object an imputer replaces, as it leaves the other."""
    if is_missing(missing) and None not in block.read_as:
        graph.nulls.setdefault(block.column, None if missing is None else float("nan"))


def _is_missing_in(graph: Graph, block: Numbers | Text, missing: Any, what: str) -> str:
    """Return (n, width) booleans: where a value is missing."""
    if isinstance(block, Text):
        raw = None if is_missing(missing) else str(missing)
        hit = {text: 1 for text in (raw, *block.read_as) if block.reading(text) == raw}
        return graph.cast(look_up(graph, [block], [hit], [0]), np.bool_)
    x = graph.numbers(Matrix((block,)), what)
    return graph.is_nan(x) if is_missing(missing) else graph.equal(x, float(missing))


def _indicator(graph: Graph, indicator: Any, matrix: Matrix) -> Matrix:
    matrix = graph.select(graph.resolved(matrix), indicator.features_)
    parts = [
        graph.cast(_is_missing_in(graph, block, indicator.missing_values, kind_of(indicator)))
        for block in matrix.blocks
    ]
    if not parts:
        return Matrix(())
    return _one(graph, graph.concat(parts), matrix.width, sparse=indicator.sparse is True or matrix.sparse)


def _iterative(graph: Graph, imputer: Any, matrix: Matrix) -> Matrix:
    from pg_distill.conversion.estimators import add_value

    if imputer.sample_posterior:
        raise unsupported(imputer, "with sample_posterior draws at random, which no conversion can repeat")
    if not is_missing(imputer.missing_values):
        raise unsupported(imputer, "of other missing_values than NaN is not converted")
    x = graph.numbers(matrix, kind_of(imputer))
    filled = graph.numbers(_imputer(graph, imputer.initial_imputer_, matrix), kind_of(imputer))
    kept = np.flatnonzero(~np.asarray(imputer._is_empty_feature) | imputer.keep_empty_features)
    missing = graph.is_nan(graph.select_tensor(x, kept, matrix.width))
    columns = [graph.gather(filled, [i]) for i in range(len(kept))]
    holes = [graph.gather(missing, [i]) for i in range(len(kept))]
    low, high = np.asarray(imputer._min_value, float), np.asarray(imputer._max_value, float)
    if imputer.n_iter_:
        for step in imputer.imputation_sequence_:
            given = Matrix(tuple(Numbers(columns[i], 1) for i in step.neighbor_feat_idx))
            guessed = add_value(graph, step.estimator, given)
            at = step.feat_idx
            guessed = graph.op(
                "Min", graph.op("Max", guessed, graph.constant(low[at])), graph.constant(high[at])
            )
            columns[at] = graph.where(holes[at], guessed, columns[at])
    out = _one(graph, graph.concat(columns), len(columns))
    if imputer.add_indicator:
        return Matrix.join([out, _indicator(graph, imputer.indicator_, matrix)])
    return out


def _neighbours_imputer(graph: Graph, imputer: Any, matrix: Matrix) -> Matrix:
    """Fill from the rows nearest by the columns that both have, as scikit-learn's nan_euclidean does."""
    if (
        not is_missing(imputer.missing_values)
        or imputer.weights != "uniform"
        or imputer.metric != "nan_euclidean"
    ):
        raise unsupported(imputer, "of other than uniform weights, NaN and nan_euclidean is not converted")
    x = graph.numbers(matrix, kind_of(imputer))
    known = np.asarray(imputer._fit_X, np.float64)
    centre = np.nan_to_num(np.nanmean(known, axis=0))
    present = (~np.isnan(known)).astype(np.float64)
    values = np.where(np.isnan(known), 0.0, known - centre)
    hole = graph.is_nan(x)
    own = graph.where(hole, 0.0, graph.sub(x, centre))
    there = graph.cast(graph.op("Not", hole))
    squares = graph.add(
        graph.op("MatMul", graph.mul(own, own), graph.constant(present.T)),
        graph.sub(
            graph.op("MatMul", there, graph.constant((values**2).T)),
            graph.mul(graph.op("MatMul", own, graph.constant(values.T)), 2.0),
        ),
    )
    shared = graph.op("MatMul", there, graph.constant(present.T))
    none = graph.equal(shared, 0.0)
    distance = graph.mul(graph.op("Max", squares, graph.constant(0.0)), float(known.shape[1]))
    distance = graph.where(none, np.inf, graph.div(distance, graph.where(none, 1.0, shared)))
    columns = []
    valid = np.asarray(imputer._valid_mask)
    for at in range(known.shape[1]):
        if not valid[at] and not imputer.keep_empty_features:
            continue
        value = graph.gather(x, [at])
        donors = np.flatnonzero(~np.isnan(known[:, at]))
        if not len(donors):
            columns.append(graph.where(graph.is_nan(value), 0.0, value))
            continue
        count = min(int(imputer.n_neighbors), len(donors))
        near = graph.gather(distance, donors)
        found, rows = graph.top(near, count)
        taken = graph.op("Gather", graph.constant(known[donors, at]), rows, axis=0)
        finite = graph.cast(graph.op("Not", graph.op("IsInf", found)))
        number = graph.sum(finite)
        alone = graph.equal(number, 0.0)
        mean = graph.div(graph.sum(graph.mul(taken, finite)), graph.where(alone, 1.0, number))
        guessed = graph.where(alone, float(np.nanmean(known[:, at])), mean)
        columns.append(graph.where(graph.is_nan(value), guessed, value))
    out = _one(graph, graph.concat(columns), len(columns))
    if imputer.add_indicator:
        return Matrix.join([out, _indicator(graph, imputer.indicator_, matrix)])
    return out


# -- categories


def _tables(encoder: Any) -> tuple[list[Any], list[Any]]:
    """Return what an encoder gives for each category of each column, and for any other; NaN where that is an error.

    The encoder itself is asked: it knows of dropped, rare and missing categories.
    """
    categories = [np.asarray(c) for c in encoder.categories_]
    most = max(map(len, categories))
    known = _encoder_rows(encoder, [[c[min(r, len(c) - 1)] for r in range(most)] for c in categories])
    found = _dense(encoder, known)
    widths = _widths(encoder, found.shape[1])
    starts = np.cumsum([0, *widths])
    tables = [found[: len(c), a:b] for c, a, b in zip(categories, starts, starts[1:], strict=False)]
    if _refuses_unknown(encoder):
        return tables, [np.full(w, np.nan) for w in widths]
    # A truth value has no third to ask for: there only NULL is unknown.
    two = [c.dtype.kind == "b" and len(c) == 2 for c in categories]
    asked = [[c[0] if t else _unheard(c)] for c, t in zip(categories, two, strict=True)]
    row = _dense(encoder, _encoder_rows(encoder, asked))[0]
    unknown = [row[a:b] for a, b in itertools.pairwise(starts)]
    for place, (is_two, width) in enumerate(zip(two, widths, strict=True)):
        if is_two:
            other = getattr(encoder, "unknown_value", None)
            mean = getattr(encoder, "target_mean_", None)
            value = other if other is not None else mean if mean is not None else 0.0
            unknown[place] = np.broadcast_to(np.asarray(value, np.float64), (width,))
    return tables, unknown


def _refuses_unknown(encoder: Any) -> bool:
    return getattr(encoder, "handle_unknown", "ignore") == "error"


def _dense(encoder: Any, rows: Any) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = encoder.transform(rows)
    found = found.toarray() if hasattr(found, "toarray") else found
    return np.asarray(found, np.float64)


def _encoder_rows(encoder: Any, columns: Sequence[Sequence[Any]]) -> Any:
    """Return rows as the encoder takes them: by name where it knows names."""
    arrays = []
    for column, learned in zip(columns, encoder.categories_, strict=True):
        kind = np.asarray(learned).dtype
        whole = kind if kind.kind in "biuf" and not any(map(is_missing, column)) else object
        if kind.kind == "f":
            whole = kind
        array = np.empty(len(column), whole)
        array[:] = column
        arrays.append(array)
    names = getattr(encoder, "feature_names_in_", None)
    if names is None:
        if all(a.dtype.kind in "biuf" for a in arrays):
            return np.stack(arrays, axis=1)
        return np.stack([a.astype(object) for a in arrays], axis=1)
    import pandas as pd

    # With the type that is given: pandas would take objects that are texts for its own, in which None is NaN.
    return pd.DataFrame({name: pd.Series(a, dtype=a.dtype) for name, a in zip(names, arrays, strict=True)})


def _unheard(categories: Any) -> Any:
    """Return a value of the categories' kind that is none of them."""
    known = [c for c in categories.tolist() if not is_missing(c)]
    if any(isinstance(c, str) for c in known) or not known:
        return "\x1fpg_distill knows no such category"
    if categories.dtype.kind == "b":
        return None if len(known) == 2 else not known[0]
    return type(known[0])(max(known)) + 1


def _widths(encoder: Any, total: int) -> list[int]:
    count = len(encoder.categories_)
    if kind_of(encoder) == "OneHotEncoder":
        return [int(n) for n in encoder._n_features_outs]
    return [total // count] * count


def _encoder(graph: Graph, encoder: Any, matrix: Matrix) -> Matrix:
    matrix = graph.resolved(matrix)
    singles = [block for i in range(matrix.width) for block in graph.select(matrix, [i]).blocks]
    categories = [list(c) for c in encoder.categories_]
    if len(singles) != len(categories):
        raise unsupported(encoder, f"takes {len(categories)} columns, not {len(singles)}")
    tables, unknown = _tables(encoder)
    hot = kind_of(encoder) == "OneHotEncoder"
    parts: list[str] = []
    number = 0
    while number < len(singles):
        stop = number + 1
        block = singles[number]
        if isinstance(block, Text):
            while stop < len(singles) and isinstance(singles[stop], Text):
                stop += 1
        own = slice(number, stop)
        if isinstance(block, Text):
            texts = [b for b in singles[own] if isinstance(b, Text)]
            for text, known in zip(texts, categories[own], strict=True):
                if any(not isinstance(c, str) for c in known if not is_missing(c)):
                    category_codes(graph, text, known, kind_of(encoder))  # raises: it learned numbers
                note_null(graph, text, known)
            entries = [places(known) for known in categories[own]]
            if hot:
                parts.append(_hot_texts(graph, texts, entries, tables[own], unknown[own]))
            else:
                refuses = _refuses_unknown(encoder)
                parts.append(_table_texts(graph, texts, entries, tables[own], unknown[own], refuses))
        else:
            code = category_codes(graph, block, categories[number], kind_of(encoder))
            rows = np.concatenate([tables[number], unknown[number].reshape(1, -1)])
            flat = graph.op("Squeeze", code, graph.constant([1], np.int64))
            if _refuses_unknown(encoder):
                graph.refuse_where(
                    graph.op("Equal", code, graph.constant([len(categories[number])], np.int64))
                )
                rows[-1] = 0.0
            parts.append(graph.op("Gather", graph.constant(rows), flat, axis=0))
        number = stop
    sparse = hot and bool(getattr(encoder, "sparse_output", False))
    return _one(graph, graph.concat(parts), sum(t.shape[1] for t in tables), sparse=sparse)


def _hot_place(row: Any, start: int, none: int, refused: int) -> int:
    """Return the column in which an encoder's answer has its 1."""
    if np.isnan(row).any():
        return refused
    return start + int(np.argmax(row)) if row.any() else none


def _hot_texts(
    graph: Graph,
    texts: Sequence[Text],
    entries: Sequence[Mapping[str | None, int]],
    tables: Any,
    unknown: Any,
) -> str:
    """Return the one-hot columns of columns of texts: one look-up for all, and 1 scattered to where it belongs."""
    width = sum(t.shape[1] for t in tables)
    start = 0
    targets: list[dict[str | None, int]] = []
    others: list[int] = []
    none, refused = width, width + 1
    for entry, table, other in zip(entries, tables, unknown, strict=True):
        at = [_hot_place(row, start, none, refused) for row in (*table, other)]
        targets.append({text: at[i] for text, i in entry.items()})
        others.append(at[-1])
        start += table.shape[1]
    codes = look_up(graph, texts, targets, others)
    if any(o == refused for o in others):
        graph.refuse_where(graph.equal(codes, graph.constant([refused], np.int64)))
    if len(texts) == 1:
        return graph.cast(graph.equal(codes, graph.constant([range(width)], np.int64)))
    rows = graph.op("Shape", codes)
    first = graph.op("Gather", rows, graph.constant([0], np.int64), axis=0)
    shape = graph.op("Concat", first, graph.constant([width + 2], np.int64), axis=0)
    empty = graph.op("Expand", graph.constant(0.0), shape)
    ones = graph.op("Expand", graph.constant(1.0), rows)
    scattered = graph.op("ScatterElements", empty, codes, ones, axis=1)
    return graph.op(
        "Slice",
        scattered,
        graph.constant([0], np.int64),
        graph.constant([width], np.int64),
        graph.constant([1], np.int64),
    )


def _table_texts(
    graph: Graph,
    texts: Sequence[Text],
    entries: Sequence[Mapping[str | None, int]],
    tables: Any,
    unknown: Any,
    refuses: bool,
) -> str:
    """Return the columns that columns of texts are encoded as: rows of one table."""
    rows, start = [], 0
    targets: list[dict[str | None, int]] = []
    others = []
    widths = {t.shape[1] for t in tables}
    for entry, table, other in zip(entries, tables, unknown, strict=True):
        targets.append({text: start + i for text, i in entry.items()})
        others.append(start + len(table))
        rows.append(np.concatenate([table, other.reshape(1, -1)]))
        start += len(table) + 1
    codes = look_up(graph, texts, targets, others)
    if refuses:
        graph.refuse_where(graph.equal(codes, graph.constant([others], np.int64)))
    if widths == {1}:
        flat = np.concatenate(rows).reshape(-1)
        return graph.op("Gather", graph.constant(flat), codes, axis=0)
    found = [
        graph.op(
            "Gather",
            graph.constant(np.concatenate(rows)),
            graph.op("Squeeze", graph.gather(codes, [i]), graph.constant([1], np.int64)),
            axis=0,
        )
        for i in range(len(texts))
    ]
    return graph.concat(found)


TRANSFORMERS: Mapping[str, Transformer] = {
    "StandardScaler": _numeric(_standard),
    "MinMaxScaler": _numeric(_min_max),
    "MaxAbsScaler": _numeric(_max_abs),
    "RobustScaler": _numeric(_robust),
    "Normalizer": _numeric(_normalizer),
    "Binarizer": _numeric(_binarizer),
    "PowerTransformer": _numeric(_power),
    "QuantileTransformer": _numeric(_quantile),
    "VarianceThreshold": _support,
    "SelectKBest": _support,
    "SelectPercentile": _support,
    "SelectFpr": _support,
    "SelectFdr": _support,
    "SelectFwe": _support,
    "SelectFromModel": _support,
    "GenericUnivariateSelect": _support,
    "RFE": _support,
    "RFECV": _support,
    "SequentialFeatureSelector": _support,
    "PCA": _linear_map,
    "IncrementalPCA": _linear_map,
    "TruncatedSVD": _linear_map,
    "PolynomialFeatures": _polynomial,
    "KBinsDiscretizer": _bins,
    "SplineTransformer": _spline,
    "KMeans": _kmeans,
    "MiniBatchKMeans": _kmeans,
    "FunctionTransformer": _function,
    "SimpleImputer": _imputer,
    "MissingIndicator": _indicator,
    "IterativeImputer": _iterative,
    "KNNImputer": _neighbours_imputer,
    "OneHotEncoder": _encoder,
    "OrdinalEncoder": _encoder,
    "TargetEncoder": _encoder,
    "CountVectorizer": vectorizer,
    "TfidfVectorizer": vectorizer,
    "HashingVectorizer": vectorizer,
    "TfidfTransformer": _numeric(_tfidf),
}
"""By the name of the class: scikit-learn's own only, a class that derives from one may do anything."""
