"""Real rows, real teachers and one real distillation each, which the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import copies
import numpy as np
import psycopg
import pytest
import servers
from conftest import create_database, drop_database
from once import once

DATABASE = "pg_distill_shared"
BUDGET_S = 6.0  # of a distillation: long enough for every family, short enough to be run often


@dataclass(frozen=True)
class Teacher:
    """A model trained outside, the table that it is for, and the SQL that registers it."""

    name: str
    table: str
    columns: tuple[str, ...]
    artifact: bytes
    task: str


def one(connection: psycopg.Connection, statement: str, *arguments: Any) -> Any:
    """Return the one row of a statement; of one column its value."""
    row = connection.execute(statement, arguments or None).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0] if len(row) == 1 else row


def value(connection: psycopg.Connection, statement: str, *arguments: Any) -> Any:
    """Return the first column of a statement's first row; None where it has none."""
    row = connection.execute(statement, arguments or None).fetchone()  # type: ignore[arg-type]
    return row[0] if row else None


def load_table(connection: psycopg.Connection, name: str, columns: dict[str, str], rows: Any) -> None:
    """Create a table and COPY ``rows`` into it."""
    definition = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
    connection.execute(f"CREATE TABLE {name} ({definition})")
    with connection.cursor().copy(f"COPY {name} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def load_visits(connection: psycopg.Connection, x: Any, label: Any, groups: int) -> None:
    """Create the table of visits: one each hour, numbers ``x`` (n, d), patients in turns, and whether they were ill."""
    columns = {
        "id": "int",
        **dict.fromkeys((f"x{i}" for i in range(x.shape[1])), "float8"),
        "patient": "int",
        "seen": "timestamp",
        "ill": "int",
    }
    hour = np.datetime64("2026-01-01T00:00") + np.arange(len(x)) * np.timedelta64(1, "h")
    rows = ((i, *x[i].tolist(), i % groups, str(hour[i]), int(label[i])) for i in range(len(x)))
    load_table(connection, "visits", columns, rows)


@contextmanager
def held_place(connection: psycopg.Connection) -> Iterator[None]:
    """Hold a place for trainings in a superuser's session."""
    block = "DO $$\n{}\n$$ LANGUAGE plpython3u"
    connection.execute(
        block.format("from pg_distill.registry import places\nGD['place'] = places.take(places.TRAININGS, 1)")
    )
    yield
    connection.execute(block.format("GD.pop('place').close()"))


_registered: dict[tuple[Any, ...], tuple[bytes, list[tuple[Any, ...]]]] = {}


def register(
    connection: psycopg.Connection, teacher: str, statement: str, arguments: tuple[Any, ...]
) -> None:
    """Register a teacher; once a server and role, as it takes seconds."""
    remember(connection, teacher, lambda: connection.execute(statement, arguments))  # type: ignore[arg-type]


def remember(
    connection: psycopg.Connection, name: str, make: Callable[[], Any], key: str | None = None
) -> None:
    """Register the versions of a name by ``make``, once a server and role: a process of its own checks each file.

    From then on put back what this left: the rows of the models, and that their files were checked on this server. ``key`` tells
    apart what has the same name; the name itself by default.
    """
    found = connection.execute(
        # Of other columns in another release.
        "SELECT current_user, array_agg(attname::text ORDER BY attnum) FROM pg_attribute"
        " WHERE attrelid = 'distill.models'::regclass AND attnum > 0"
    ).fetchone()
    assert found is not None
    place = (connection.info.host, connection.info.port, key or name, found[0], *found[1])
    if place in _registered:
        models, checked = _registered[place]
        with connection.cursor().copy("COPY distill.models FROM STDIN (FORMAT binary)") as copy:
            copy.write(models)
        for row in checked:
            connection.execute(
                "INSERT INTO distill.checked (sha256, schema_digest, rules, cost, checked_at)"
                " VALUES (%s, %s, %s, %s::jsonb, %s) ON CONFLICT DO NOTHING",
                row,
            )
        return
    make()
    rows = "COPY (SELECT * FROM distill.models WHERE name = %s ORDER BY created_at) TO STDOUT (FORMAT binary)"
    with connection.cursor().copy(rows, (name,)) as copy:
        models = b"".join(copy)
    checked = connection.execute(
        "SELECT sha256, schema_digest, rules, cost::text, checked_at FROM distill.checked"
        " WHERE sha256 IN (SELECT sha256 FROM distill.models WHERE name = %s)",
        (name,),
    ).fetchall()
    _registered[place] = models, checked


@cache
def cancer() -> tuple[Any, Any, bytes]:
    """Breast cancer Wisconsin (569 x 30, binary) and a forest trained on a third of it."""
    return once("cancer", _cancer)


def _cancer() -> tuple[Any, Any, bytes]:
    from skl2onnx import to_onnx
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import ExtraTreesClassifier

    x, y = load_breast_cancer(return_X_y=True)
    third = np.random.default_rng(0).permutation(len(y))[: len(y) // 3]
    model = ExtraTreesClassifier(300, random_state=0).fit(x[third].astype(np.float32), y[third])
    return (
        x,
        y,
        to_onnx(model, x[:1].astype(np.float32), target_opset={"": 17, "ai.onnx.ml": 3}).SerializeToString(),
    )


@cache
def digits() -> tuple[Any, Any, bytes]:
    """Handwritten digits (1797 x 64, ten classes) and a wide network, exported with ZipMap.

    It is slow enough for a student to be faster beyond doubt: one as quick as its students leaves the verdict to noise.
    """
    return once("digits", _digits)


def _digits() -> tuple[Any, Any, bytes]:
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    half = np.random.default_rng(0).permutation(len(y))[: len(y) // 2]
    model = MLPClassifier((1024, 512), tol=0.01, n_iter_no_change=1, random_state=0).fit(
        x[half].astype(np.float32), y[half]
    )
    return (
        x,
        y,
        to_onnx(model, x[:1].astype(np.float32), target_opset={"": 17, "ai.onnx.ml": 3}).SerializeToString(),
    )


@cache
def diabetes() -> tuple[Any, Any, bytes]:
    """Diabetes progression (442 x 10, regression) and boosted trees."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_diabetes
    from sklearn.ensemble import GradientBoostingRegressor

    x, y = load_diabetes(return_X_y=True)
    half = np.random.default_rng(0).permutation(len(y))[: len(y) // 2]
    model = GradientBoostingRegressor(n_estimators=200, random_state=0).fit(
        x[half].astype(np.float32), y[half]
    )
    return (
        x,
        y,
        to_onnx(model, x[:1].astype(np.float32), target_opset={"": 17, "ai.onnx.ml": 3}).SerializeToString(),
    )


@cache
def survival() -> tuple[list[tuple[Any, ...]], bytes]:
    """Made-up passengers with strings, integers, booleans, timestamps and NULLs; a pipeline that takes strings.

    The rule behind them is known and noisy; only its form is invented, what is measured on them is not.
    """
    import pandas as pd
    from skl2onnx import to_onnx
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rng = np.random.default_rng(5)
    n = 6000
    port = rng.choice(["Southampton", "Cherbourg", "Queenstown", ""], n, p=[0.6, 0.2, 0.15, 0.05])
    cabin = rng.choice(["first", "second", "third"], n)
    age = rng.normal(35, 15, n).clip(0, 90).round(1)
    fare = np.exp(rng.normal(3, 1, n) + (cabin == "first")).round(2)
    score = (
        (cabin == "first") * 1.5 - (cabin == "third") + (port == "Cherbourg") - age / 40 + np.log1p(fare) / 3
    )
    survived = (score + rng.logistic(size=n) * 0.7 > np.median(score)).astype(int)
    missing = rng.random(n) < 0.1
    rows = [
        (str(c), str(p) if p else None, None if m else float(a), float(f), int(s))
        for c, p, a, f, s, m in zip(cabin, port, age, fare, survived, missing, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["cabin", "port", "age", "fare", "survived"])
    table["port"] = table["port"].fillna("")
    train = table.iloc[: n // 3]
    strings, numbers = ["cabin", "port"], ["age", "fare"]
    model = make_pipeline(
        ColumnTransformer(
            [
                ("strings", OneHotEncoder(handle_unknown="ignore"), strings),
                ("numbers", SimpleImputer(strategy="median"), numbers),
            ]
        ),
        RandomForestClassifier(200, min_samples_leaf=5, random_state=0),
    ).fit(train[[*strings, *numbers]], train["survived"])
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    types = [(c, StringTensorType([None, 1])) for c in strings] + [
        (c, FloatTensorType([None, 1])) for c in numbers
    ]
    onnx = to_onnx(model, initial_types=types, target_opset={"": 17, "ai.onnx.ml": 3})
    return rows, onnx.SerializeToString()


def names(count: int) -> list[str]:
    return [f"x{i}" for i in range(count)]


def load_cancer(connection: psycopg.Connection) -> None:
    x, y, artifact = cancer()
    columns = {**dict.fromkeys(names(x.shape[1]), "float8"), "malignant": "int"}
    load_table(
        connection,
        "cancer",
        columns,
        ([*map(float, row), int(label)] for row, label in zip(x, y, strict=True)),
    )
    register(
        connection,
        "cancer",
        "SELECT distill.register_model('cancer', %s, features => %s, sample => 'cancer', label => 'malignant')",
        (artifact, names(x.shape[1])),
    )


def load_digits_table(connection: psycopg.Connection) -> None:
    x, y, artifact = digits()
    columns = {**dict.fromkeys(names(x.shape[1]), "float4"), "digit": "int"}
    load_table(
        connection,
        "digits",
        columns,
        ([*map(float, row), int(label)] for row, label in zip(x, y, strict=True)),
    )
    register(
        connection,
        "digits",
        "SELECT distill.register_model('digits', %s, features => %s, sample => 'digits', label => 'digit')",
        (artifact, names(x.shape[1])),
    )


def load_diabetes_table(connection: psycopg.Connection) -> None:
    x, y, artifact = diabetes()
    columns = {**dict.fromkeys(names(x.shape[1]), "float8"), "progression": "float8"}
    load_table(
        connection, "diabetes", columns, ([*map(float, row), float(v)] for row, v in zip(x, y, strict=True))
    )
    register(
        connection,
        "diabetes",
        "SELECT distill.register_model('diabetes', %s, features => %s, sample => 'diabetes', label => 'progression')",
        (artifact, names(x.shape[1])),
    )


def load_survival(connection: psycopg.Connection) -> None:
    rows, artifact = survival()
    columns = {"cabin": "text", "port": "text", "age": "float8", "fare": "numeric", "survived": "int"}
    load_table(connection, "passengers", columns, rows)
    register(
        connection,
        "survival",
        "SELECT distill.register_model('survival', %s, sample => 'passengers', label => 'survived')",
        (artifact,),
    )


def distil(connection: psycopg.Connection, teacher: str, arguments: str, seconds: float = 20) -> None:
    """Make a student with time enough on a busy machine; where there is none, fail with what the run says.

    One training that gains nothing ends a stage, so that a busy machine has what a quiet one has.
    """
    row = connection.execute(
        f"SELECT distill_model(%s, min_accuracy => 0, time_budget_s => %s, patience => 1, {arguments})",  # type: ignore[arg-type]
        (teacher, seconds),
    ).fetchone()
    summary = connection.execute(
        "SELECT summary FROM distill.runs WHERE run_id = distill.last_run(%s)", (teacher,)
    ).fetchone()
    assert row is not None
    assert row[0] is not None, summary


def student_of_cancer(connection: psycopg.Connection, name: str, sample: str = "cancer") -> None:
    """Register a student of the teacher "cancer", whether or not noise lets a small run's be accepted."""
    row = connection.execute(
        "SELECT distill_model('cancer', sample => %s, student_name => %s, families => '{linear}', time_budget_s => 3, patience => 1,"
        " min_accuracy => 0)",
        (sample, name),
    ).fetchone()
    if row is None or row[0] is None:
        connection.execute(
            "SELECT distill.promote_candidate(run_id, candidate) FROM distill.candidates"
            " WHERE run_id = distill.last_run('cancer') AND on_frontier AND form = 'predict' ORDER BY candidate LIMIT 1"
        )


def distil_shared(connection: psycopg.Connection) -> copies.Copy:
    """Register and distil every teacher in a fresh database; give all rows of it."""
    for load in (load_cancer, load_digits_table, load_diabetes_table, load_survival):
        load(connection)
    for teacher, floor in (("cancer", 0.8), ("digits", 0.8), ("diabetes", 0.1), ("survival", 0.6)):
        # On few rows and a busy machine a student may miss its teacher: another seed and more time then.
        for attempt in range(4):
            row = connection.execute(
                "SELECT distill_model(%s, min_accuracy => %s, time_budget_s => %s, seed => %s, patience => 4)",
                (teacher, floor, BUDGET_S * (1 + attempt), 42 + attempt),
            ).fetchone()
            if row is not None and row[0] is not None:
                break
    return copies.read(connection, ["cancer", "digits", "diabetes", "passengers"])


@pytest.fixture(scope="session")
def shared(server: servers.Server, template: str) -> Iterator[Callable[[], psycopg.Connection]]:
    """Give sessions in a database where every teacher is registered and distilled; tests leave it as it is.

    They are distilled once a test session, on whichever server is first. Others have a copy of it, restored from its rows: its
    latencies were measured on the first one.
    """
    create_database(server, DATABASE, template)
    with server.connect(DATABASE, autocommit=True) as connection:
        copied = once("shared", lambda: distil_shared(connection))
        if not copies.is_in(connection, copied):
            copies.write(connection, copied)
    opened: list[psycopg.Connection] = []

    def connect() -> psycopg.Connection:
        opened.append(server.connect(DATABASE, autocommit=True))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()
    drop_database(server, DATABASE)


@pytest.fixture
def q(shared: Callable[[], psycopg.Connection]) -> Iterator[Callable[..., Any]]:
    """Run a statement in the shared database and return its rows."""
    connection = shared()

    def run(statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        cursor = connection.execute(statement, arguments or None)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []

    yield run
    connection.close()  # a server has a hundred in all, and this fixture's users are as many
