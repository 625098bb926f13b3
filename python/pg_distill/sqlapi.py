"""One function per SQL function: the only room that is handed ``plpy``, and where errors become SQLSTATEs.

Long, because it lists every SQL function, each a few lines. Its path never changes: frozen install scripts name it.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

# numpy and onnxruntime start threads when they are imported. A backend's signals are for its one thread, so the others
# must be born with all of them blocked; and a matrix product of one row needs no second core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
try:
    import numpy as np  # noqa: F401
    import onnxruntime  # noqa: F401
finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask)

from pg_distill import __version__  # noqa: E402
from pg_distill.database import backend, protocol  # noqa: E402
from pg_distill.database.backend import PlpyDatabase  # noqa: E402
from pg_distill.errors import (  # noqa: E402
    ArtifactCorrupted,
    InvalidParameter,
    InvalidState,
    NullNotAllowed,
    PgDistillError,
)
from pg_distill.serving import batch, predictors  # noqa: E402
from pg_distill.serving import predict as serving  # noqa: E402

if TYPE_CHECKING:
    from pg_distill.teachers.registration import Registration

__all__ = [
    "activate_model",
    "cancel",
    "change_setting",
    "check",
    "check_changed_setting",
    "check_module",
    "check_server",
    "choose_model",
    "create_function",
    "describe_machine",
    "distill_model",
    "dominates_pareto",
    "drop_model",
    "last_run",
    "offer_models",
    "predict",
    "predict_batch",
    "predict_class",
    "predict_class_batch",
    "predict_class_mixed",
    "predict_class_vectors",
    "predict_classes",
    "predict_classes_mixed",
    "predict_classes_vectors",
    "predict_mixed",
    "predict_proba",
    "predict_proba_mixed",
    "predict_proba_vectors",
    "predict_vectors",
    "promote_candidate",
    "prune",
    "record_job",
    "register_claimed",
    "register_logged_model",
    "register_model",
    "register_model_file",
    "register_sql_model",
    "remeasure",
    "run_next_job",
    "run_pending",
    "run_report",
    "run_rows",
    "run_write",
    "score",
    "score_class",
    "show_settings",
    "statement_seconds",
    "submit",
    "take_place",
    "to_sql",
    "warm_up",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# Imports of what only some functions need stand inside them: a backend that predicts pays for predicting only.


def _raise(plpy: Any, error: PgDistillError) -> None:
    given = {key: getattr(error, key) for key in ("detail", "hint") if getattr(error, key) is not None}
    plpy.error(error.message, sqlstate=error.sqlstate, **given)


def _boundary(function: Callable[P, R]) -> Callable[P, R]:
    """Turn our exceptions into SQLSTATEs; let PostgreSQL's own, and faults of ours, pass as they are."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except PgDistillError as error:
            _raise(args[0], error)
            raise

    return wrapper


def _database(plpy: Any) -> PlpyDatabase:
    """Return the database, after a check that the extension is of the module's version.

    Files on disk change before ALTER EXTENSION UPDATE, and a session keeps the module that it has imported.
    """
    db = PlpyDatabase(plpy)
    db.check_search_path()
    installed = protocol.extension_version(db)
    if installed is not None and installed != __version__:
        raise InvalidState(
            f"extension pg_distill is of version {installed}, its Python module of {__version__}",
            hint="Run ALTER EXTENSION pg_distill UPDATE, and open a new session.",
        )
    return db


@_boundary
def check_module(plpy: Any) -> None:
    """Refuse to create an extension that is newer than this module; an older one may be on its way through upgrade scripts."""
    installed = protocol.extension_version(PlpyDatabase(plpy))
    if installed is not None and _release(installed) > _release(__version__):
        raise InvalidState(
            f"extension pg_distill is of version {installed}, its Python module of {__version__}",
            hint="Install the module of the extension's version (make install), and open a new session.",
        )


@_boundary
def check_server(plpy: Any) -> list[tuple[str, str | None, str, str | None]]:
    from pg_distill.cli import doctor

    return doctor.check_server(PlpyDatabase(plpy))


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


@_boundary
def run_pending(plpy: Any) -> None:
    backend.run_pending()


@_boundary
def run_write(plpy: Any) -> None:
    backend.run_write()


@_boundary
def record_job(
    plpy: Any, run_id: str | None, claim_id: str | None, report: str | None, artifacts: Sequence[bytes] | None
) -> str | None:
    from pg_distill.jobs.run import record_job

    if run_id is None or claim_id is None or report is None or artifacts is None:
        raise NullNotAllowed("run_id, claim_id, report and artifacts must not be NULL")
    if not all(isinstance(artifact, bytes) for artifact in artifacts):
        raise InvalidParameter("artifacts must be a list of files, none of them NULL")
    return record_job(_database(plpy), run_id, claim_id, report, artifacts)


# Of the job that a worker trains for in this session.
_place: Any = None


@_boundary
def take_place(plpy: Any, run_id: str | None) -> None:
    from pg_distill.registry import locks, queue

    global _place
    db = _database(plpy)
    queue.find_claimed(db, _not_null(run_id, "run_id"))
    if _place is None:
        _place = locks.take_place(db)


def _not_null(value: T | None, name: str) -> T:
    if value is None:
        raise NullNotAllowed(f"{name} must not be NULL")
    return value


@_boundary
def show_settings(plpy: Any) -> list[tuple[str, str, str, bool, str]]:
    from pg_distill.registry import settings

    db = _database(plpy)
    rows = []
    for name, setting in settings.SETTINGS.items():
        value = settings.get_setting(db, name)
        rows.append((name, str(value), setting.unit, value == setting.default, setting.description))
    for name, text in settings.TEXT_SETTINGS.items():
        found = settings.get_text_setting(db, name)
        rows.append((name, found, text.unit, found == text.default, text.description))
    return rows


@_boundary
def change_setting(plpy: Any, name: str | None, value: str | None) -> None:
    from pg_distill.registry import settings

    if name is None:
        raise NullNotAllowed("name must not be NULL")
    settings.change_setting(_database(plpy), name, value)


@_boundary
def check_changed_setting(plpy: Any, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> None:
    db = PlpyDatabase(plpy)
    db.check_search_path()
    if protocol.is_superuser(db):  # who restores
        return
    from pg_distill.registry import settings

    if old is not None:
        settings.check_setting(db, old["name"], None)
    if new is not None:
        settings.check_setting(db, new["name"], new["value"])


@_boundary
def register_model(
    plpy: Any,
    name: str | None,
    artifact: bytes | None,
    features: Sequence[str] | None,
    sample: str | None,
    label: str | None,
    version: str | None,
    task: Any,
    classes: Sequence[str] | None,
    expected: str | None,
    allow_difference: bool | None,
    class_threshold: float | None,
    text_columns: Sequence[str] | None,
    tokenizer: bytes | None,
    max_tokens: int | None,
) -> str:
    from pg_distill.teachers import register

    db = _database(plpy)
    return register.register_onnx(
        db,
        _registration(db, name, features, sample, label, version, task, classes, text_columns),
        artifact=artifact,
        expected=expected,
        allow_difference=bool(allow_difference),
        class_threshold=class_threshold,
        tokenizer=tokenizer,
        max_tokens=max_tokens,
    )


@_boundary
def register_claimed(
    plpy: Any,
    name: str | None,
    artifact: bytes | None,
    features: Sequence[str] | None,
    sample: str | None,
    label: str | None,
    version: str | None,
    task: Any,
    classes: Sequence[str] | None,
    rows: Sequence[str] | None,
    arrays: Sequence[str] | None,
    expected: str | None,
    origin: str | None,
    allow_difference: bool | None,
    class_threshold: float | None,
) -> str:
    from pg_distill.teachers import claims, register

    if rows is None or expected is None or origin is None:
        raise NullNotAllowed("rows, expected and origin must not be NULL")
    db = _database(plpy)
    claim = claims.read_claim(_texts(rows, "rows") or [], _texts(arrays, "arrays"), expected, origin)
    return register.register_onnx(
        db,
        _registration(db, name, features, sample, label, version, task, classes),
        artifact=artifact,
        claim=claim,
        allow_difference=bool(allow_difference),
        class_threshold=class_threshold,
    )


@_boundary
def register_model_file(
    plpy: Any,
    name: str | None,
    path: str | None,
    features: Sequence[str] | None,
    sample: str | None,
    label: str | None,
    version: str | None,
    task: Any,
    classes: Sequence[str] | None,
    expected: str | None,
    allow_difference: bool | None,
    class_threshold: float | None,
    text_columns: Sequence[str] | None,
    tokenizer: str | None,
    max_tokens: int | None,
) -> str:
    if path is None:
        raise NullNotAllowed("path must not be NULL")
    db = _database(plpy)

    def read(file: str) -> bytes:
        # pg_read_binary_file decides who may read which file of the server.
        content: bytes = db.query("select pg_catalog.pg_read_binary_file($1) as bytes", ("text", file))[0][
            "bytes"
        ]
        return content

    return register_model(
        plpy,
        name,
        read(path),
        features,
        sample,
        label,
        version,
        task,
        classes,
        expected,
        allow_difference,
        class_threshold,
        text_columns,
        None if tokenizer is None else read(tokenizer),
        max_tokens,
    )


@_boundary
def register_sql_model(
    plpy: Any,
    name: str | None,
    expression: str | None,
    features: Sequence[str] | None,
    sample: str | None,
    label: str | None,
    version: str | None,
    task: Any,
    classes: Sequence[str] | None,
    text_columns: Sequence[str] | None,
) -> str:
    from pg_distill.teachers import register

    db = _database(plpy)
    return register.register_sql(
        db,
        _registration(db, name, features, sample, label, version, task, classes, text_columns),
        expression=expression,
    )


@_boundary
def register_logged_model(
    plpy: Any,
    name: str | None,
    outputs: Sequence[str] | None,
    features: Sequence[str] | None,
    sample: str | None,
    label: str | None,
    version: str | None,
    task: Any,
    classes: Sequence[str] | None,
    latency_ms: float | None,
    text_columns: Sequence[str] | None,
) -> str:
    from pg_distill.teachers import register

    db = _database(plpy)
    return register.register_logged(
        db,
        _registration(db, name, features, sample, label, version, task, classes, text_columns),
        outputs=_texts(outputs, "outputs"),
        latency_ms=latency_ms,
    )


def _registration(
    db: protocol.Database,
    name: str | None,
    features: Sequence[str] | None,
    sample: str | None,
    label: str | None,
    version: str | None,
    task: str | None,
    classes: Sequence[str] | None,
    text_columns: Sequence[str] | None = None,
) -> Registration:
    from pg_distill.teachers import registration

    return registration.checked(
        db,
        name=name,
        version=version,
        task=task,
        classes=_texts(classes, "classes"),
        features=_texts(features, "features"),
        sample=sample,
        label=label,
        text_columns=_texts(text_columns, "text_columns"),
    )


def _texts(values: Sequence[Any] | None, name: str) -> list[str] | None:
    """Return a text[] argument, which must be flat and without NULL."""
    if values is None:
        return None
    if any(value is None for value in values):
        raise NullNotAllowed(f"{name} must not hold NULL")
    if any(not isinstance(value, str) for value in values):
        raise InvalidParameter(f"{name} must be an array of one dimension")
    return list(values)


@_boundary
def activate_model(plpy: Any, name: str | None, version: str | None) -> str:
    from pg_distill.registry import models as registry

    if name is None or version is None:
        raise NullNotAllowed("name and version must not be NULL")
    return registry.activate(_database(plpy), name, version)


@_boundary
def drop_model(plpy: Any, model: str | None) -> None:
    from pg_distill.registry import models as registry
    from pg_distill.serving import functions

    if model is None:
        raise NullNotAllowed("model must not be NULL")
    db = _database(plpy)
    functions.drop_functions(db, registry.drop(db, model))


@_boundary
def distill_model(plpy: Any, *arguments: Any) -> str | None:
    from pg_distill.runs import distill
    from pg_distill.runs.options import Options

    outcome = distill.distill(_database(plpy), Options(**_distill_arguments(arguments)))
    if outcome.student_id is None:
        plpy.warning(
            outcome.summary, detail=f"This is run {outcome.run_id}; its candidates are in distill.candidates."
        )
    else:
        plpy.notice(outcome.summary)
    return outcome.student_id


def _distill_arguments(arguments: Sequence[Any]) -> dict[str, Any]:
    """Return distill_model's arguments by name."""
    from pg_distill.runs.options import Options

    given = dict(zip(Options.__dataclass_fields__, arguments, strict=True))
    for name in ("families", "text_columns"):
        given[name] = _texts(given[name], name)
    if given["monotone"] is not None:
        try:
            given["monotone"] = json.loads(given["monotone"])
        except (ValueError, RecursionError):  # a number of 5,000 digits, a thousand brackets
            raise InvalidParameter("monotone is not readable") from None
    return given


@_boundary
def submit(plpy: Any, *arguments: Any) -> str:
    from pg_distill.jobs.run import submit
    from pg_distill.runs.options import Options

    given = _distill_arguments(arguments)
    return submit(_database(plpy), Options(**given), given)


@_boundary
def cancel(plpy: Any, run_id: str | None) -> bool:
    from pg_distill.registry import queue

    if run_id is None:
        raise NullNotAllowed("run_id must not be NULL")
    return queue.request_cancel(_database(plpy), run_id)


@_boundary
def run_next_job(plpy: Any) -> str | None:
    from pg_distill.jobs.run import run_next

    return run_next(_database(plpy))


@_boundary
def offer_models(
    plpy: Any,
    names: Sequence[str] | None,
    artifacts: Sequence[bytes] | None,
    schemas: str | None,
    cascades: str | None,
) -> list[float]:
    from pg_distill.onnx_model.signature import Signature
    from pg_distill.serving import approval

    found = _texts(names, "names")
    if found is None or artifacts is None or schemas is None or cascades is None or None in artifacts:
        raise NullNotAllowed("names, artifacts, schemas and cascades must not be NULL")
    if not all(name.startswith(serving.OFFERED) for name in found):
        raise InvalidParameter("a model that is offered has a name that no registered model can have")
    if not all(isinstance(artifact, bytes) for artifact in artifacts):
        raise NullNotAllowed("artifacts must be a list of files, none of them NULL")
    try:
        signatures = [Signature.from_json(given, gives) for given, gives in json.loads(schemas)]
        behind = {
            name: (str(teacher), float(threshold))
            for name, (teacher, threshold) in json.loads(cascades).items()
        }
        models = list(zip(artifacts, signatures, strict=True))
        offered = dict(zip(found, models, strict=True))
    except (ArtifactCorrupted, AttributeError, TypeError, ValueError) as error:
        raise InvalidParameter(
            "names, artifacts, schemas and cascades do not fit one another", detail=f"{error!r}."
        ) from None
    db = _database(plpy)
    # They come from another process: before this one opens them, a child does.
    approved = approval.approve(db, models)
    offered = dict(zip(found, zip(artifacts, approved, strict=True), strict=True))
    return list(serving.offer_here(db, offered, behind).values())


@_boundary
def statement_seconds(plpy: Any, statement: str | None) -> float:
    from pg_distill.serving import timing

    if statement is None:
        raise NullNotAllowed("statement must not be NULL")
    return timing.statement_seconds(_database(plpy), statement)


@_boundary
def describe_machine(plpy: Any) -> str:
    from pg_distill.serving import timing

    return json.dumps(timing.describe_machine(_database(plpy)))


@_boundary
def promote_candidate(plpy: Any, run_id: str | None, candidate: int | None) -> str:
    from pg_distill.runs import promote

    if run_id is None or candidate is None:
        raise NullNotAllowed("run_id and candidate must not be NULL")
    return promote.promote(_database(plpy), run_id, candidate)


@_boundary
def last_run(plpy: Any, teacher: str | None) -> str | None:
    from pg_distill.registry import runs

    if teacher is None:
        raise NullNotAllowed("teacher must not be NULL")
    return runs.last_run(_database(plpy), teacher)


@_boundary
def run_report(plpy: Any, run_id: str | None) -> dict[str, Any]:
    from pg_distill.registry import runs

    if run_id is None:
        raise NullNotAllowed("run_id must not be NULL")
    return runs.find_run(_database(plpy), run_id)


@_boundary
def run_rows(plpy: Any, run_id: str | None) -> Iterator[tuple[str | None, str]]:
    from pg_distill.registry import models as registry
    from pg_distill.registry import runs
    from pg_distill.registry.model import require_owner
    from pg_distill.rows.split import SPLIT_NAMES
    from pg_distill.runs import material
    from pg_distill.runs.options import Options

    if run_id is None:
        raise NullNotAllowed("run_id must not be NULL")
    db = _database(plpy)
    run = runs.find_run(db, run_id)
    if run["teacher_id"] is None:
        raise InvalidState(f'the teacher of run "{run_id}" has been dropped')
    require_owner(db, run["owner"], f'the sample of run "{run_id}"')
    options = Options(**json.loads(run["resolved"]))
    sample = material.prepare(db, registry.find_model(db, options.teacher), options, with_rows=True).sample
    sample = sample.keep_first({name: run[f"rows_{name}"] for name in SPLIT_NAMES})
    if sample.digest != run["sample_digest"]:
        plpy.warning(
            f'the rows of run "{run_id}" are not as they were',
            detail="Rows, labels, groups, times or weights have changed, or the run is of a release that split them otherwise."
            " Figures recomputed from them will differ.",
        )
    assert sample.rows is not None
    names = (*SPLIT_NAMES, None)
    return iter([(names[part], row) for part, row in zip(sample.split, sample.rows, strict=True)])


@_boundary
def dominates_pareto(plpy: Any, latency: float | None, accuracy: float | None, frontier: Any) -> bool:
    from pg_distill.measure import pareto

    return pareto.dominates_pareto(latency, accuracy, frontier)


@functools.cache
def _serving(plpy: Any) -> PlpyDatabase:
    """Return the database to predict in; the version is checked at a backend's first prediction."""
    return _database(plpy)


def predict(plpy: Any, model: str | None, features: list[Any] | str | None, snapshot: bytes | None) -> float:
    # Called for each row, hence without _boundary, whose wrapper costs 0.1 us.
    try:
        predictor = serving.find(_serving(plpy), model, snapshot)
        if isinstance(features, list):
            return predictor.number(features)
        return predictor.last(features)
    except PgDistillError as error:
        _raise(plpy, error)
        raise


def _mixed(numbers: list[Any] | None, strings: list[Any] | None) -> tuple[list[Any], list[Any]]:
    if numbers is None or strings is None:
        raise NullNotAllowed("numbers and strings must not be NULL")
    return numbers, strings


def predict_mixed(
    plpy: Any, model: str | None, numbers: list[Any] | None, strings: list[Any] | None, snapshot: bytes | None
) -> float:
    try:
        predictor = serving.find(_serving(plpy), model, snapshot)
        return predictor.number(*_mixed(numbers, strings))
    except PgDistillError as error:
        _raise(plpy, error)
        raise


@_boundary
def predict_proba_mixed(
    plpy: Any, model: str | None, numbers: list[Any] | None, strings: list[Any] | None, snapshot: bytes | None
) -> list[float]:
    predictor = serving.find(_serving(plpy), model, snapshot)
    return predictor.probabilities(_mixed(numbers, strings)).tolist()  # type: ignore[no-any-return]


@_boundary
def predict_proba(
    plpy: Any, model: str | None, features: list[Any] | str | None, snapshot: bytes | None
) -> list[float]:
    return serving.find(_serving(plpy), model, snapshot).probabilities(features).tolist()  # type: ignore[no-any-return]


def predict_class(
    plpy: Any, model: str | None, features: list[Any] | str | None, snapshot: bytes | None
) -> str:
    try:
        return serving.find(_serving(plpy), model, snapshot).class_name(features)
    except PgDistillError as error:
        _raise(plpy, error)
        raise


def predict_class_mixed(
    plpy: Any, model: str | None, numbers: list[Any] | None, strings: list[Any] | None, snapshot: bytes | None
) -> str:
    try:
        predictor = serving.find(_serving(plpy), model, snapshot)
        return predictor.class_name(_mixed(numbers, strings))
    except PgDistillError as error:
        _raise(plpy, error)
        raise


def _parts(numbers: Any, strings: Any, vectors: Any) -> tuple[list[Any], list[Any], list[bytes | None]]:
    if numbers is None or strings is None or vectors is None:
        raise NullNotAllowed("numbers and strings must not be NULL")
    return numbers, strings, vectors


def predict_vectors(
    plpy: Any, model: str | None, numbers: Any, strings: Any, vectors: Any, snapshot: bytes | None
) -> float:
    try:
        return serving.find(_serving(plpy), model, snapshot).vector(*_parts(numbers, strings, vectors))
    except PgDistillError as error:
        _raise(plpy, error)
        raise


@_boundary
def predict_proba_vectors(
    plpy: Any, model: str | None, numbers: Any, strings: Any, vectors: Any, snapshot: bytes | None
) -> list[float]:
    predictor = serving.find(_serving(plpy), model, snapshot)
    return predictor.probabilities(_parts(numbers, strings, vectors)).tolist()  # type: ignore[no-any-return]


def predict_class_vectors(
    plpy: Any, model: str | None, numbers: Any, strings: Any, vectors: Any, snapshot: bytes | None
) -> str:
    try:
        return serving.find(_serving(plpy), model, snapshot).class_name(_parts(numbers, strings, vectors))
    except PgDistillError as error:
        _raise(plpy, error)
        raise


def predict_classes(
    plpy: Any, model: str | None, features: list[Any] | str | None, snapshot: bytes | None
) -> list[str]:
    try:
        return serving.find(_serving(plpy), model, snapshot).label_names(features)
    except PgDistillError as error:
        _raise(plpy, error)
        raise


def predict_classes_mixed(
    plpy: Any, model: str | None, numbers: list[Any] | None, strings: list[Any] | None, snapshot: bytes | None
) -> list[str]:
    try:
        predictor = serving.find(_serving(plpy), model, snapshot)
        return predictor.label_names(_mixed(numbers, strings))
    except PgDistillError as error:
        _raise(plpy, error)
        raise


def predict_classes_vectors(
    plpy: Any, model: str | None, numbers: Any, strings: Any, vectors: Any, snapshot: bytes | None
) -> list[str]:
    try:
        predictor = serving.find(_serving(plpy), model, snapshot)
        return predictor.label_names(_parts(numbers, strings, vectors))
    except PgDistillError as error:
        _raise(plpy, error)
        raise


@_boundary
def predict_batch(
    plpy: Any, model: str | None, features: bytes | None, snapshot: bytes | None
) -> list[float]:
    db = _serving(plpy)
    return batch.predict_batch(db, serving.find(db, model, snapshot), features)


@_boundary
def predict_class_batch(
    plpy: Any, model: str | None, features: bytes | None, snapshot: bytes | None
) -> list[str]:
    db = _serving(plpy)
    return batch.predict_class_batch(db, serving.find(db, model, snapshot), features)


@_boundary
def score(
    plpy: Any, model: str | None, query: str | None, key: str | None, snapshot: bytes | None
) -> Iterator[tuple[str | None, ...]]:
    from pg_distill.serving import score as scoring

    return _chunks(plpy, scoring.score, model, query, key, snapshot)


@_boundary
def score_class(
    plpy: Any, model: str | None, query: str | None, key: str | None, snapshot: bytes | None
) -> Iterator[tuple[str | None, ...]]:
    from pg_distill.serving import score as scoring

    return _chunks(plpy, scoring.score_class, model, query, key, snapshot)


def _chunks(
    plpy: Any,
    form: Callable[[Any, predictors.Predictor, str, str], Iterator[tuple[str | None, ...]]],
    model: str | None,
    query: str | None,
    key: str | None,
    snapshot: bytes | None,
) -> Iterator[tuple[str | None, ...]]:
    if query is None or key is None:
        raise NullNotAllowed("query and key_column must not be NULL")
    db = _serving(plpy)
    chunks = form(db, serving.find(db, model, snapshot), query, key)

    def raising() -> Iterator[tuple[str | None, ...]]:
        try:  # a generator raises where it is run
            yield from chunks
        except PgDistillError as error:
            _raise(plpy, error)

    return raising()


@_boundary
def choose_model(
    plpy: Any,
    name: str | None,
    max_latency_ms: float | None,
    min_accuracy: float | None,
    snapshot: bytes | None,
) -> str:
    from pg_distill.registry import families

    db = _serving(plpy)
    db.check_search_path()
    if name is None:
        raise NullNotAllowed("name must not be NULL")
    return serving.once(
        snapshot,
        ("choose", name, max_latency_ms, min_accuracy),
        lambda: families.choose_member(db, name, max_latency_ms=max_latency_ms, min_accuracy=min_accuracy),
    )


@_boundary
def create_function(
    plpy: Any,
    model: str | None,
    function_name: str | None,
    as_sql: bool | None,
    replace: bool | None,
    keep_dependents: bool | None,
    pgvector: bool | None,
) -> str:
    from pg_distill.serving import functions

    if model is None or function_name is None:
        raise NullNotAllowed("model and function_name must not be NULL")
    return functions.create_function(
        _database(plpy),
        model,
        function_name,
        as_sql=bool(as_sql),
        replace=bool(replace),
        keep_dependents=bool(keep_dependents),
        pgvector=pgvector,
    )


@_boundary
def to_sql(plpy: Any, model: str | None, pgvector: bool | None, function_name: str | None = None) -> str:
    from pg_distill.serving import function_forms

    if model is None:
        raise NullNotAllowed("model must not be NULL")
    return function_forms.to_sql(_database(plpy), model, pgvector=pgvector, function_name=function_name)


@_boundary
def warm_up(plpy: Any, models: Sequence[str] | None) -> list[tuple[str, float]]:
    names = _texts(models, "models")
    if names is None:
        raise NullNotAllowed("models must not be NULL")
    return serving.warm_up(_serving(plpy), names)


@_boundary
def check(
    plpy: Any,
    model: str | None,
    sample: str | None,
    label: str | None,
    max_rows: int | None,
    seed: int | None,
    include_learned: bool | None,
) -> list[dict[str, Any]]:
    from pg_distill.runs import check as fresh_rows

    if model is None or max_rows is None or seed is None or include_learned is None:
        raise NullNotAllowed("model, max_rows, seed and include_learned must not be NULL")
    return fresh_rows.check(
        _database(plpy),
        model,
        sample=sample,
        label=label,
        max_rows=max_rows,
        seed=seed,
        include_learned=include_learned,
    )


@_boundary
def remeasure(plpy: Any, model: str | None) -> list[dict[str, Any]]:
    from pg_distill.runs.remeasure import remeasure

    if model is None:
        raise NullNotAllowed("model must not be NULL")
    return remeasure(_database(plpy), model)


@_boundary
def prune(
    plpy: Any, keep_versions: int | None, older_than: str | None, model_name: str | None, dry_run: bool | None
) -> list[dict[str, Any]]:
    from pg_distill.registry.prune import prune
    from pg_distill.serving import functions

    if dry_run is None:
        raise NullNotAllowed("dry_run must not be NULL")
    db = _database(plpy)
    rows, dropped = prune(
        db, keep_versions=keep_versions, older_than=older_than, name=model_name, dry_run=dry_run
    )
    functions.drop_functions(db, dropped)
    return rows
