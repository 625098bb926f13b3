"""Students as SQL against the same students as ONNX, on a PostgreSQL that has never heard of pg_distill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
import pytest
from models import EXPORTERS
from pg_distill.database.exact import exact, needs_pgvector, stages
from pg_distill.frame import Feature, FloatArray, Frame, Strings, Task
from pg_distill.onnx_model.cut import cut_texts
from pg_distill.onnx_model.signature import NULL_STRING
from pg_distill.quoting import quote_identifier
from pg_distill.serving.sql_forms import body_of_steps
from pg_distill.serving.text_forms import TextForm
from pg_distill.students import expression as native
from pg_distill.students.blend import Blend
from pg_distill.students.families import Setup
from pg_distill.students.first_trees import FirstTrees
from pg_distill.students.objective import sharpness
from pg_distill.students.soft_labels import logits_from_probabilities
from pg_distill.students.transfer_set import TransferSet
from servers import Server
from student_rows import TASKS, edge_rows, make, rows, run, transfer, unsure
from text_rows import SPECIAL, tickets

MILLION = 1_000_000
FLOAT32_MAX = float(np.finfo(np.float32).max)


@pytest.fixture
def bare(server: Server) -> Iterator[psycopg.Connection]:
    """Give a session in a database without the extension."""
    with server.connect(autocommit=True) as connection:
        connection.execute("SET jit = off")
        yield connection


def load(bare: psycopg.Connection, frame: Frame) -> None:
    """Make the table ``t``, numbers as float8, of which every other NaN is NULL; ``i`` numbers the rows."""
    kinds = [f"{quote_identifier(f.name)} {'text' if f.is_string else 'float8'}" for f in frame.features]
    bare.execute(f"CREATE TEMP TABLE t (i int, {', '.join(kinds)})")
    columns: list[Any] = []
    for feature in frame.features:
        if feature.is_string:
            # The graph's word for NULL means NULL to the graph only: native says so.
            words = frame.strings(feature.name).to_objects().tolist()
            columns.append([None if word == NULL_STRING else word for word in words])
        else:
            values: list[Any] = frame.number(feature.name).tolist()
            columns.append([None if i % 2 and v != v else v for i, v in enumerate(values)])
    with bare.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
        for i, row in enumerate(zip(*columns, strict=True)):
            copy.write_row((i, *row))


def evaluate(bare: psycopg.Connection, expression: str) -> FloatArray:
    return np.array([r[0] for r in bare.execute(f"SELECT {expression} FROM t ORDER BY i").fetchall()], float)


@pytest.fixture(params=[False, True], ids=["plain", "pgvector"])
def schema(request: pytest.FixtureRequest, bare: psycopg.Connection) -> Iterator[str | None]:
    """Give None, and in another test the schema of pgvector, which no search_path has."""
    if not request.param:
        yield None
        return
    if not bare.execute("SELECT FROM pg_available_extensions WHERE name = 'vector'").fetchall():
        pytest.skip("the server has no pgvector")
    bare.execute('CREATE SCHEMA "its own"; CREATE EXTENSION vector SCHEMA "its own"')
    yield '"its own"'
    bare.execute('DROP SCHEMA "its own" CASCADE')


def quoted(frame: Frame) -> dict[str, str]:
    """Columns that are canonical already."""
    return {f.name: quote_identifier(f.name) for f in frame.features}


def check(
    bare: psycopg.Connection,
    student: Any,
    frame: Frame,
    tolerance: float,
    schema: str | None = None,
    graph: bytes | None = None,
) -> None:
    """Compare the forms on every row; load() has put the same rows in ``t``."""
    expected = run(graph or student.to_onnx(), frame)
    text = native.form(student.to_sql(quoted(frame)), vectors=schema is not None)
    of_texts = native.of_texts(text)
    if of_texts is None:
        expression = exact(text, schema)
    else:  # its vocabulary comes from its file
        readers = cut_texts(student.to_onnx())[1]
        expression = TextForm.of(of_texts, readers).inline()
    assert needs_pgvector(expression) == (schema is not None)
    found = evaluate(bare, expression)
    if student.task == "binary":
        expected = expected[:, 1]
    elif student.task == "regression":
        expected, found = expected[:, 0], found
        tolerance *= max(1.0, float(np.abs(expected).max()))
    assert np.abs(found - expected).max() < tolerance


def at_thresholds(student: Any, frame: Frame) -> Frame:
    """Return rows whose numbers stand at splits, one float8 beside them, and halfway to the next float32."""
    ensemble = student.ensemble_
    rng = np.random.default_rng(3)
    columns = dict(frame.take(rng.integers(0, len(frame), 3000)).columns)
    for position, name in enumerate(frame.number_names):
        own = ensemble.threshold[ensemble.feature == position].astype(float)
        centre = student.columns_.numbers.centre[position]
        own = own[np.isfinite(own) & (np.abs(own) < FLOAT32_MAX)]
        if not len(own):
            continue
        with np.errstate(over="ignore"):
            next_one = np.nextafter(own.astype(np.float32), np.float32(np.inf)).astype(float)
        edges = np.concatenate([own, next_one, (own + next_one) / 2]) + centre
        edges = np.concatenate([edges, np.nextafter(edges, np.inf), np.nextafter(edges, -np.inf)])
        columns[name] = rng.choice(edges, 3000)
    return Frame.concat([edge_rows(frame), Frame(frame.features, columns)])


STUDENTS = [
    ("linear", {"bins": 0}),
    ("linear", {"bins": 16}),
    ("tree", {"leaves": 32}),
    ("boosted", {"rounds": 20, "leaves": 16}),
]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("family", "options"), STUDENTS, ids=lambda v: str(v))
@pytest.mark.parametrize("nulls", [True, False], ids=["nulls", "no nulls"])
def test_sql_and_onnx_agree_on_edges(
    bare: psycopg.Connection, family: str, options: dict[str, Any], task: Task, nulls: bool
) -> None:
    student = make(family, task, **options)
    student.fit(transfer(3000, task, nulls=nulls), transfer(500, task, 1, nulls=nulls))
    assert student.calibrate(unsure(transfer(500, task, 1, nulls=nulls))) == (task != "regression")
    frame = at_thresholds(student, rows(1000, 2))
    load(bare, frame)
    check(bare, student, frame, 1e-6)


@pytest.mark.parametrize(
    "name", ["XGBoost, regression", "LightGBM, 3 classes", "sklearn random forest, 3 classes"]
)
def test_a_teachers_first_trees_agree_too(bare: psycopg.Connection, name: str) -> None:
    if name.startswith("XGBoost"):
        pytest.importorskip("xgboost")  # of the extra frameworks
    exported = EXPORTERS[name]()
    n_classes = max(1, len(exported.classes))
    soft = (
        exported.expected if exported.task == "regression" else logits_from_probabilities(exported.expected)
    )
    data = TransferSet(exported.frame, soft, None, None, np.zeros(len(soft), np.uint8))
    student = FirstTrees(Setup(exported.task, n_classes, teacher=exported.artifact), trees=6)
    student.fit(data, data, deadline=None)
    frame = at_thresholds(student, exported.frame)
    load(bare, frame)
    check(bare, student, frame, 1e-6)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bins", [0, 8])
@pytest.mark.parametrize("hidden", [[4], [16, 8], [40, 6, 5]], ids=str)
def test_a_network_agrees_too(
    bare: psycopg.Connection, schema: str | None, task: Task, bins: int, hidden: list[int]
) -> None:
    student = make("mlp", task, hidden=hidden, bins=bins, epochs=5)
    student.fit(transfer(2000, task), transfer(300, task, 1))
    assert student.calibrate(unsure(transfer(300, task, 1))) == (task != "regression")
    frame = edge_rows(rows(1000, 2))
    load(bare, frame)
    check(bare, student, frame, 1e-5, schema)


@pytest.mark.parametrize("task", TASKS)
def test_a_blend_agrees_too(bare: psycopg.Connection, schema: str | None, task: Task) -> None:
    """Of networks and others, of members that share a family, and as the numbers of a wide column are centred."""
    data, select = transfer(2000, task), transfer(300, task, 1)
    members = [
        make("mlp", task, hidden=[8], bins=0, epochs=3),
        make("mlp", task, hidden=[6, 4], bins=4, epochs=3, seed=1),
        make("boosted", task, rounds=5, leaves=8),
        make("linear", task, bins=0),
    ]
    for member in members:
        member.fit(data, select)
    blend = Blend(members, [0.4, 0.3, 0.2, 0.1], task=task, n_classes=members[0].n_classes)
    blend.sharpen(sharpness(blend, unsure(select)))
    frame = edge_rows(rows(1000, 2))
    load(bare, frame)
    check(bare, blend, frame, 1e-5, schema, blend.to_onnx(data.frame))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", TASKS)
def test_a_million_rows_agree(bare: psycopg.Connection, schema: str | None, task: Task) -> None:
    """Cells drawn one by one from ordinary rows, edges and both sides of every split, in every combination."""
    students: list[tuple[Any, float]] = []
    found: list[Frame] = [edge_rows(rows(2000, 2))]
    for family, options in STUDENTS if schema is None else []:
        student = make(family, task, **options)
        student.fit(transfer(3000, task), transfer(500, task, 1))
        students.append((student, 1e-6))
        if family != "linear":
            found.append(at_thresholds(student, rows(1000, 2)))
    for hidden, bins in (([16, 8], 8), ([64], 0), ([32, 16], 0)):
        network = make("mlp", task, hidden=hidden, bins=bins, epochs=5)
        network.fit(transfer(3000, task), transfer(500, task, 1))
        students.append((network, 1e-5))
    cells = Frame.concat(found)
    rng = np.random.default_rng(4)
    frame = Frame(
        cells.features,
        {f.name: cells.take(rng.integers(0, len(cells), MILLION)).columns[f.name] for f in cells.features},
    )
    load(bare, frame)
    for student, tolerance in students:
        check(bare, student, frame, tolerance, schema)


@pytest.mark.every_server
@pytest.mark.parametrize("family", ["linear", "boosted"])
def test_columns_of_real_types(bare: psycopg.Connection, family: str) -> None:
    """The default form reads integers, booleans, numerics, timestamps of both kinds, dates, char(n) and enums."""
    bare.execute("CREATE TYPE pg_temp.shop AS ENUM ('a', 'b', 'c', 'd')")
    bare.execute(
        'CREATE TEMP TABLE t AS SELECT i, (sin(i) * 2)::numeric AS x, ((i * 7) % 11 - 5)::int8 AS "k", i % 3 = 0 AS flag,'
        " timestamptz '2023-11-14' + i * interval '1 hour' AS \"when\", (array['', 'b', 'c', NULL])[i % 4 + 1]::char(5) AS place,"
        " (array['a', 'b', 'c', 'd'])[i % 4 + 1]::pg_temp.shop AS shop FROM generate_series(1, 500) i"
    )
    got = bare.execute(
        "SELECT x::float8, k, flag::int, date_part('epoch', \"when\"), place::text, shop::text FROM t ORDER BY i"
    ).fetchall()
    x, k, flag, when, place, shop = (list(column) for column in zip(*got, strict=True))
    frame = rows(1)
    columns: dict[str, Any] = {
        name: Strings.from_values(values) if name in ("place", "shop") else np.array(values, float)
        for name, values in zip(
            ["x", "k", "flag", "when", "place", "shop"], [x, k, flag, when, place, shop], strict=True
        )
    }
    frame = Frame(frame.features, columns)
    student = make(family, "binary", **({"rounds": 10} if family == "boosted" else {}))
    student.fit(transfer(2000, "binary"), transfer(300, "binary", 1))
    expected = run(student.to_onnx(), frame)[:, 1]
    np.testing.assert_allclose(evaluate(bare, student.to_sql()), expected, atol=1e-6)
    for kind in ("timestamp", "date"):
        bare.execute(f'ALTER TABLE t ALTER "when" TYPE {kind}')
        assert np.isfinite(evaluate(bare, student.to_sql())).all()


def test_timestamptz_is_read_without_errors_and_immutably(bare: psycopg.Connection) -> None:
    when = native.canonical("w", "timestamp", "timestamptz")
    bare.execute("CREATE TEMP TABLE w (w timestamptz)")
    bare.execute(f"CREATE INDEX ON w (({when}))")  # an index takes immutable functions only
    far = "294276-12-31 23:59:59+00"
    moments = ["infinity", "-infinity", "2024-02-29 12:34:56.789+02", "1960-01-01+00", far, None]
    for moment in moments:
        bare.execute("INSERT INTO w VALUES (%s)", (moment,))
    pairs = bare.execute(f"SELECT {when}, date_part('epoch', w) FROM w").fetchall()
    assert all(a == b for a, b in pairs)


@pytest.mark.every_server
@pytest.mark.parametrize("task", ["binary", "regression"])
@pytest.mark.parametrize(("family", "options"), STUDENTS, ids=lambda v: str(v))
def test_the_function_is_immutable_and_inlined(
    bare: psycopg.Connection, family: str, options: dict[str, Any], task: Task
) -> None:
    student = make(family, task, **options).fit(transfer(1000, task), transfer(200, task, 1))
    frame = rows(50, 2)
    load(bare, frame)
    arguments = [
        f"{quote_identifier(f.name)} {'text' if f.kind == 'string' else 'float8'}" for f in frame.features
    ]
    expression = student.to_sql(quoted(frame))
    body = psycopg.sql.Literal(f"SELECT {expression}").as_string(bare)
    bare.execute(
        f"CREATE FUNCTION pg_temp.student({', '.join(arguments)}) RETURNS float8 IMMUTABLE PARALLEL SAFE LANGUAGE sql"
        f" AS {body}"
    )
    call = f"pg_temp.student({', '.join(quoted(frame).values())})"
    plan = json.dumps(bare.execute(f"EXPLAIN (VERBOSE, FORMAT JSON) SELECT {call} FROM t").fetchall()[0][0])
    assert "student(" not in plan
    # By the function's name: the catalog's row of an index has no room for a long expression.
    bare.execute(f"ALTER TABLE t ADD COLUMN p float8 GENERATED ALWAYS AS ({call}) STORED")
    bare.execute(f"CREATE INDEX ON t (({call}))")
    stored = [r[0] for r in bare.execute("SELECT p FROM t ORDER BY i").fetchall()]
    np.testing.assert_array_equal(stored, evaluate(bare, call))


@pytest.mark.every_server
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("as_row", [False, True], ids=["arguments", "row"])
def test_a_function_of_steps_is_immutable(
    bare: psycopg.Connection, schema: str | None, task: Task, as_row: bool
) -> None:
    """What has sub-selects is written in PL/pgSQL, whose own variables and ours hide no column."""
    names = {"x": "_v0", "place": "found", "k": "_i0", "flag": "__s", "when": "_x0", "shop": "sqlstate"}

    def renamed(data: TransferSet) -> TransferSet:
        columns = {names[name]: column for name, column in data.frame.columns.items()}
        features = tuple(Feature(names[f.name], f.kind) for f in data.frame.features)
        return replace(data, frame=Frame(features, columns))

    data, select = renamed(transfer(1000, task)), renamed(transfer(200, task, 1))
    members = [
        make("mlp", task, hidden=hidden, bins=bins, epochs=2).fit(data, select)
        for hidden, bins in (([5], 0), ([6, 4], 4))
    ]
    blend = Blend(members, [0.5, 0.5], task=task, n_classes=members[0].n_classes)
    frame = renamed(TransferSet(edge_rows(rows(200, 2)), None, None, None, np.zeros(0, np.uint8))).frame
    load(bare, frame)
    form = native.form(blend.to_sql(quoted(frame)), vectors=schema is not None)
    columns = [(f.name, "text" if f.kind == "string" else "float8") for f in frame.features]
    declared = ", ".join(f"{quote_identifier(name)} {kind}" for name, kind in columns)
    if as_row:
        bare.execute(f"CREATE TYPE pg_temp.features AS ({declared})")
    steps = stages(form, schema)
    assert steps is not None
    body = psycopg.sql.Literal(body_of_steps(steps, schema, columns, as_row=as_row)).as_string(bare)
    returns = "float8[]" if task == "multiclass" else "float8"
    bare.execute(
        f"CREATE FUNCTION pg_temp.student({'features pg_temp.features' if as_row else declared}) RETURNS {returns}"
        f" IMMUTABLE PARALLEL SAFE LANGUAGE plpgsql AS {body}"
    )
    given = ", ".join(quote_identifier(name) for name, _ in columns)
    call = f"pg_temp.student({f'ROW({given})::pg_temp.features' if as_row else given})"
    bare.execute(f"ALTER TABLE t ADD COLUMN p {returns} GENERATED ALWAYS AS ({call}) STORED")
    stored = np.array([r[0] for r in bare.execute("SELECT p FROM t ORDER BY i").fetchall()], float)
    np.testing.assert_allclose(stored, evaluate(bare, exact(form, schema)), rtol=1e-12, atol=0)
    if task != "multiclass":
        bare.execute(f"CREATE INDEX ON t (({call}))")
        bare.execute("SET enable_seqscan = off")
        plan = bare.execute(f"EXPLAIN SELECT FROM t WHERE {call} = 0.5").fetchall()
        assert "Index" in str(plan)


def test_names_and_values_are_quoted(bare: psycopg.Connection) -> None:
    data, select = transfer(1000, "binary"), transfer(200, "binary", 1)
    names = {"x": 'x"; drop', "place": "Pläce '", "k": "select", "flag": "f", "when": "when", "shop": "shop"}
    words = {"a": "it's", "b": "back\\slash", "c": 'quo"te', "d": "$$"}

    def renamed(frame: Frame) -> Frame:
        columns: dict[str, Any] = {}
        for name, column in frame.columns.items():
            if isinstance(column, Strings):
                values = [None if c is None else words.get(c, c) for c in column.to_objects()]
                column = Strings.from_values(values)
            columns[names[name]] = column
        return Frame(tuple(Feature(names[f.name], f.kind) for f in frame.features), columns)

    student = make("boosted", "binary", rounds=20)
    student.fit(replace(data, frame=renamed(data.frame)), replace(select, frame=renamed(select.frame)))
    frame = renamed(edge_rows(rows(300, 3)))
    load(bare, frame)
    check(bare, student, frame, 1e-6)
    bare.execute("SET standard_conforming_strings = off")
    check(bare, student, frame, 1e-6)


def test_many_categories(bare: psycopg.Connection) -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i:03}" for i in range(150)] + [f"é{i}" for i in range(20)]
    n = 6000
    index = rng.integers(0, len(words), n)
    effect = rng.normal(size=len(words))
    values = [None if rng.random() < 0.02 else words[i] for i in index]
    frame = Frame((Feature("word", "string"),), {"word": Strings.from_values(values)})
    y = (effect[index] + rng.logistic(size=n) > 0).astype(np.int64)
    data = TransferSet(frame, None, y, None, np.zeros(n, np.uint8))
    load(bare, frame)
    for family, options in STUDENTS:
        student = make(family, "binary", alpha=0.0, **options).fit(data, data)
        check(bare, student, frame, 1e-6)


def test_threshold_rounds_as_float32_does() -> None:
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        thresholds = np.concatenate(
            [
                rng.normal(size=300) * 10.0 ** rng.integers(-40, 38, 300),
                [0.0, -0.0, 1.0, -1.0, FLOAT32_MAX, -FLOAT32_MAX, 1e-45, -1e-45],
            ]
        ).astype(np.float32)
    for centre in (0.0, 1.7e9, -3.0):
        for threshold in thresholds.tolist():
            bound = native.float8_threshold(threshold, centre)
            for x in (bound, np.nextafter(bound, np.inf), np.nextafter(bound, -np.inf)):
                with np.errstate(over="ignore"):
                    rounded = np.float32(np.float64(x) - centre)
                assert (x <= bound) == (rounded <= np.float32(threshold)), (threshold, centre, x)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("columns", [("body",), ("title", "shop", "body", "x")], ids=["a text", "all"])
def test_texts_agree_too(bare: psycopg.Connection, task: Task, columns: tuple[str, ...]) -> None:
    def named(data: TransferSet) -> TransferSet:
        # Names that a generated query might use itself.
        names = {"title": "read", "shop": "s0", "x": "word"}
        features = tuple(Feature(names.get(f.name, f.name), f.kind) for f in data.frame.features)
        found = {names.get(name, name): column for name, column in data.frame.columns.items()}
        return replace(data, frame=Frame(features, found))

    student = make("linear", task, bins=0, epochs=3)
    student.fit(named(tickets(800, task, columns=columns)), named(tickets(200, task, 1, columns=columns)))
    student.calibrate(unsure(named(tickets(200, task, 1, columns=columns))))
    frame = named(tickets(200, task, 2, columns=columns)).frame
    other = frame.take(np.arange(len(SPECIAL)))
    texts = {name: Strings.from_values([*SPECIAL]) for name in frame.text_names}
    frame = Frame.concat([frame, Frame(frame.features, {**other.columns, **texts})])
    load(bare, frame)
    check(bare, student, frame, 1e-6)
