"""Every SQL statement about models, runs and candidates, and about the settings that limit them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pg_distill.database import Argument, Database, Row, quote_identifier
from pg_distill.errors import (
    ArtifactCorrupted,
    DependentObjects,
    DuplicateModel,
    InsufficientPrivilege,
    InvalidName,
    InvalidParameter,
    InvalidState,
    TooManyTrainings,
    UndefinedModel,
    UndefinedObject,
)
from pg_distill.frame import ModelForm, Task
from pg_distill.onnx_model import Signature

__all__ = [
    "SETTINGS",
    "TEXT_SETTINGS",
    "Model",
    "Setting",
    "activate",
    "admit_training",
    "change_setting",
    "check_name",
    "choose_member",
    "column_types",
    "drop",
    "family_members",
    "find_by_id",
    "find_candidate",
    "find_model",
    "find_run",
    "find_teacher",
    "get_setting",
    "get_text_setting",
    "insert_candidates",
    "insert_model",
    "insert_run",
    "is_inspected",
    "last_run",
    "lock_family",
    "lock_name",
    "next_version",
    "predict_latency",
    "prune",
    "read_artifact",
    "read_artifacts",
    "recorded_fidelity",
    "recorded_figures",
    "require_owner",
    "require_sample",
    "require_stored_sql",
    "require_writable",
    "run_of",
    "server_figures",
    "update_figures",
]

ModelKind = Literal["onnx", "sql", "logged"]
MAX_NAME_BYTES = 63  # as PostgreSQL's own names, so that a model's name can be a function's


@dataclass(frozen=True)
class Model:
    """A registered version, without its artifact."""

    id: str
    name: str
    version: str
    task: Task
    kind: ModelKind
    expression: str | None
    sha256: str
    signature: Signature
    sample: str | None
    label: str | None
    metric: str | None
    accuracy: float | None
    avg_latency_ms: float | None
    latency_declared: bool
    teacher_id: str | None
    owner: str
    form: ModelForm
    threshold: float | None
    """Of a cascade: the confidence from which it does not ask its teacher."""
    types: Mapping[str, str]
    """SQL type of each feature's column, where SQL is to be run over rows of them."""

    @property
    def qualified_name(self) -> str:
        """``name:version``."""
        return f"{self.name}:{self.version}"


@dataclass(frozen=True)
class Setting:
    """A limit that an administrator may change, with its unit and why it is what it is."""

    default: int
    low: int
    high: int
    unit: str
    description: str


SETTINGS: Mapping[str, Setting] = {
    "artifact_limit_mb": Setting(256, 1, 1000, "MB", "largest ONNX file that is registered"),
    "trainer_memory_mb": Setting(8192, 256, 1 << 20, "MB", "address space of a training process"),
    "trainer_threads": Setting(2, 1, 64, "threads", "threads of a training process"),
    "trainer_niceness": Setting(10, 0, 19, "nice", "how far training stands back behind queries"),
    "concurrent_trainings": Setting(
        2, 1, 64, "processes", "distillations at once on this server; more are refused"
    ),
    "session_cache_mb": Setting(256, 1, 1 << 16, "MB", "artifacts whose sessions a backend keeps"),
}


@dataclass(frozen=True)
class TextSetting:
    """A setting that is a text of a certain form, which ``form`` says in words."""

    default: str
    pattern: str
    form: str
    unit: str
    description: str


TEXT_SETTINGS: Mapping[str, TextSetting] = {
    "executor": TextSetting(
        "local",
        r"local|dask(\+tls)?://[^\s/]+:[0-9]{1,5}",
        '"local", or the address of a Dask scheduler as dask://host:port or dask+tls://host:port',
        "address",
        "where candidates are trained: the training process, or the workers of a Dask scheduler, to which rows are sent",
    ),
}

_NOT_IN_NAMES = re.compile(r"[:\x00-\x1f\x7f]")


def check_name(name: str, what: str = "model name") -> str:
    """Return ``name`` if a model or version may be called so."""
    if not name or len(name.encode()) > MAX_NAME_BYTES or _NOT_IN_NAMES.search(name):
        raise InvalidName(
            f'{what} "{name}" is not valid',
            detail=f"A name has 1 to {MAX_NAME_BYTES} bytes, no colon and no control characters.",
        )
    return name


_MODEL_COLUMNS = (
    "m.id::pg_catalog.text as id, m.name, m.version, m.task, m.kind, m.expression, m.sha256,"
    " m.input_schema::pg_catalog.text as input_schema,"
    " m.output_schema::pg_catalog.text as output_schema, m.sample, m.label, m.metric, m.accuracy, m.avg_latency_ms,"
    " m.latency_declared, m.teacher_id::pg_catalog.text as teacher_id, m.owner, m.form, m.threshold"
)


# What format_type gives: words of the grammar, or a name, of a schema or not, that is quoted where it has to be.
_IDENTIFIER = r'(?:[a-z_][a-z0-9_]*|"(?:[^"]|"")+")'
_TYPE = re.compile(
    r"(?:double precision|(?:character|bit) varying|(?:timestamp|time) with(?:out)? time zone"
    rf"|{_IDENTIFIER}(?:\.{_IDENTIFIER})?)(?:\[\])?"
)


def column_types(input_schema: Mapping[str, Any]) -> dict[str, str]:
    """Return the SQL types of columns, which stand in SQL as they are; ArtifactCorrupted where one is no type's name."""
    types = input_schema.get("types", {})
    if not isinstance(types, dict) or not all(
        isinstance(kind, str) and _TYPE.fullmatch(kind) for kind in types.values()
    ):
        raise ArtifactCorrupted("stored types of the model's columns are not names of types")
    return types


def _model(row: Row) -> Model:
    input_schema, output_schema = json.loads(row.pop("input_schema")), json.loads(row.pop("output_schema"))
    signature = Signature.from_json(input_schema, output_schema)
    return Model(signature=signature, types=column_types(input_schema), **row)


def find_model(db: Database, model: str) -> Model:
    """Find ``name`` (its active version) or ``name:version``; UndefinedModel where there is none."""
    name, colon, version = model.partition(":")
    where = "m.version = $2" if colon else "m.active and $2 is not null"
    rows = db.query(
        f"select {_MODEL_COLUMNS} from distill.models m where m.name = $1 and {where}",
        ("text", name),
        ("text", version),
    )
    if not rows:
        raise UndefinedModel(f'model "{model}" does not exist')
    return _model(rows[0])


def read_artifacts(db: Database, models: Iterable[Model]) -> dict[str, bytes]:
    """Return ONNX files by model id, checked against their digests; what others have dropped meanwhile is left out."""
    known = {model.id: model for model in models}
    rows = db.query(
        "select m.id::pg_catalog.text as id, m.artifact from distill.models m where m.id = any ($1)",
        ("uuid[]", list(known)),
    )
    found: dict[str, bytes] = {row["id"]: row["artifact"] for row in rows}
    for key, artifact in found.items():
        if hashlib.sha256(artifact).hexdigest() != known[key].sha256:
            raise ArtifactCorrupted(
                f'artifact of model "{known[key].qualified_name}" does not match its digest'
            )
    return found


def read_artifact(db: Database, model: Model) -> bytes:
    """Return a model's ONNX file, checked against its digest; UndefinedModel where it was dropped meanwhile."""
    try:
        return read_artifacts(db, [model])[model.id]
    except KeyError:
        raise UndefinedModel(f'model "{model.qualified_name}" was dropped meanwhile') from None


def require_owner(db: Database, owner: str, what: str, hint: str | None = None) -> None:
    """Refuse to run SQL that another role stored, unless that role is a superuser.

    Otherwise a low role could plant SQL for a high one to run.
    """
    allowed = db.query(
        "select $1 = current_user or coalesce((select r.rolsuper from pg_catalog.pg_roles r where r.rolname = $1), false)"
        " as allowed",
        ("text", owner),
    )[0]["allowed"]
    if not allowed:
        raise InsufficientPrivilege(f'{what} was stored by role "{owner}" and runs only for it', hint=hint)


def require_stored_sql(db: Database, model: Model, what: str, hint: str | None = None) -> None:
    """Refuse to run SQL stored with a model by another role."""
    require_owner(db, model.owner, f'{what} of model "{model.qualified_name}"', hint)


def lock_name(db: Database, name: str) -> None:
    """Let one transaction at a time add, activate or drop versions of ``name``."""
    db.query(
        "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('pg_distill model ' || $1, 0))",
        ("text", name),
    )


def lock_family(db: Database, teacher: Model, *names: str) -> None:
    """Lock the teacher's name and the others', before a student of it is registered or their figures are written.

    In one order, so that two runs of one family wait for each other and never in a circle; and a teacher that is being
    dropped either is gone or stays for its student. An advisory lock does not renew the snapshot of a transaction that is
    REPEATABLE READ or SERIALIZABLE: the teacher's row is written, so that of two who do not see each other one fails (40001).

    Raises
    ------
    UndefinedModel
        The teacher was dropped meanwhile.
    """
    for name in sorted({teacher.name, *names}):
        lock_name(db, name)
    db.query("update distill.models m set active = m.active where m.id = $1", ("uuid", teacher.id))
    # A policy may let a role see a teacher and not write it.
    if not db.query("select from distill.models m where m.id = $1", ("uuid", teacher.id)):
        raise UndefinedModel(f'model "{teacher.qualified_name}" was dropped meanwhile')


def admit_training(db: Database) -> None:
    """Take one of the server's places for trainings, until the transaction ends, or a client's connection.

    An advisory lock is of one database, so those that the others' trainings hold are counted with it, after it was taken: of two
    that come at once, both may be refused, but never too many let in. The error gives the place back.

    Raises
    ------
    TooManyTrainings
        All are taken.
    """
    places = get_setting(db, "concurrent_trainings")
    for place in range(places):
        if db.try_lock(f"pg_distill training {place}"):
            taken = db.query(
                "select pg_catalog.count(*) as n from pg_catalog.pg_locks l where l.locktype = 'advisory' and l.granted"
                " and l.objsubid = 1 and ((l.classid::pg_catalog.int8 << 32) | l.objid::pg_catalog.int8) = any (array("
                "select pg_catalog.hashtextextended('pg_distill training ' || i, 0) from pg_catalog.generate_series(0, $1) i))",
                ("int4", SETTINGS["concurrent_trainings"].high),
            )
            if taken[0]["n"] <= places:
                return
            break
    raise TooManyTrainings(
        f"{places} distillations run already, as many as are allowed at once",
        hint="Try again later, or have an administrator change the setting concurrent_trainings.",
    )


def require_writable(db: Database) -> None:
    """Let PostgreSQL refuse now what it would refuse after the training: a read-only transaction, a role without INSERT."""
    for table, column in (("models", "name"), ("runs", "run_id"), ("candidates", "run_id")):
        db.query(f"insert into distill.{table} ({column}) select null where false")


def next_version(db: Database, name: str) -> str:
    """Return one more than the largest version that is a whole number, or "1"."""
    row = db.query(
        "select coalesce(max(m.version::pg_catalog.numeric), 0) + 1 as version from distill.models m"
        " where m.name = $1 and m.version ~ '^[0-9]{1,18}$'",
        ("text", name),
    )[0]
    return str(int(row["version"]))


def insert_model(
    db: Database,
    *,
    name: str,
    version: str | None,
    task: Task,
    kind: ModelKind,
    artifact: bytes | None,
    expression: str | None,
    signature: Signature,
    sample: str | None,
    label: str | None,
    figures: Mapping[str, Any],
    teacher_id: str | None = None,
    types: Mapping[str, str] | None = None,
    form: ModelForm = "predict",
    threshold: float | None = None,
    inspected: bool = True,
) -> Model:
    """Register a version and make it the active one; DuplicateModel where name and version exist.

    ``inspected`` says that a child of this backend has checked the artifact and the signature: see `is_inspected`.
    """
    global _inserting
    lock_name(db, name)
    if version is None:
        version = next_version(db, name)
    elif db.query(
        "select from distill.models m where m.name = $1 and m.version = $2", ("text", name), ("text", version)
    ):
        raise DuplicateModel(f'version "{version}" of model "{name}" already exists')
    db.query("update distill.models m set active = false where m.name = $1 and m.active", ("text", name))
    content = artifact if artifact is not None else (expression or "").encode()
    input_schema, output_schema = signature.to_json()
    if types:
        input_schema["types"] = dict(types)
    sha256 = hashlib.sha256(content).hexdigest()
    _inserting = (sha256, input_schema, output_schema) if inspected else None
    try:
        rows = db.query(
            "insert into distill.models (name, version, active, task, kind, artifact, expression, sha256, size_bytes,"
            " input_schema, output_schema, sample, label, teacher_id, form, threshold)"
            " values ($1, $2, true, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
            " returning id::pg_catalog.text as id",
            ("text", name),
            ("text", version),
            ("text", task),
            ("text", kind),
            ("bytea", artifact),
            ("text", expression),
            ("text", sha256),
            ("int8", len(content)),
            ("jsonb", json.dumps(input_schema)),
            ("jsonb", json.dumps(output_schema)),
            ("text", sample),
            ("text", label),
            ("uuid", teacher_id),
            ("text", form),
            ("float8", threshold),
        )
    finally:
        _inserting = None
    update_figures(db, rows[0]["id"], figures)
    return find_model(db, f"{name}:{version}")


# What this backend's insert_model is about to insert, where a child has inspected it.
_inserting: tuple[str, dict[str, Any], dict[str, Any]] | None = None


def is_inspected(sha256: str, input_schema: object, output_schema: object) -> bool:
    """Return whether this is what `insert_model` is inserting, after a child of this backend has inspected it."""
    return _inserting == (sha256, input_schema, output_schema)


_FIGURES: Mapping[str, str] = {
    "metric": "text",
    "accuracy": "float8",
    "accuracy_low": "float8",
    "accuracy_high": "float8",
    "avg_latency_ms": "float8",
    "latency_low_ms": "float8",
    "latency_high_ms": "float8",
    "p50_latency_ms": "float8",
    "p95_latency_ms": "float8",
    "p99_latency_ms": "float8",
    "latency_declared": "boolean",
    "measured_on": "jsonb",
    "measured_at": "timestamptz",
}


def update_figures(db: Database, model_id: str, figures: Mapping[str, Any]) -> None:
    """Store measured figures; keys are columns of ``distill.models``."""
    arguments: list[Argument] = [(_FIGURES[key], _json(value)) for key, value in figures.items()]
    assignments = ", ".join(f"{quote_identifier(key)} = ${i + 2}" for i, key in enumerate(figures))
    if assignments:
        db.query(f"update distill.models set {assignments} where id = $1", ("uuid", model_id), *arguments)


def _json(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, Mapping | list | tuple) else value


def activate(db: Database, name: str, version: str) -> str:
    """Make ``version`` the active one of ``name``; return its id."""
    lock_name(db, name)
    model = find_model(db, f"{name}:{version}")
    db.query(
        "update distill.models m set active = false where m.name = $1 and m.active and m.id <> $2",
        ("text", name),
        ("uuid", model.id),
    )
    db.query("update distill.models m set active = true where m.id = $1 and not m.active", ("uuid", model.id))
    return model.id


def drop(db: Database, model: str) -> None:
    """Remove one version, or every version of a name; DependentObjects while students depend on it.

    Of the versions that remain the newest becomes active, if the active one was removed.
    """
    name, colon, version = model.partition(":")
    lock_name(db, name)
    rows = db.query(
        "select m.id::pg_catalog.text as id, m.version, m.active from distill.models m"
        " where m.name = $1 and ($2 is null or m.version = $2)",
        ("text", name),
        ("text", version if colon else None),
    )
    if not rows:
        raise UndefinedModel(f'model "{model}" does not exist')
    ids = [row["id"] for row in rows]
    students = db.query(
        "select m.name, m.version from distill.models m where m.teacher_id = any ($1) and m.id <> all ($1)"
        " order by m.name, m.version",
        ("uuid[]", ids),
    )
    if students:
        raise DependentObjects(
            f'model "{model}" cannot be dropped because students depend on it',
            detail=f"It is the teacher of {', '.join(s['name'] + ':' + s['version'] for s in students)}.",
            hint="Drop the students first.",
        )
    db.query("delete from distill.models m where m.id = any ($1)", ("uuid[]", ids))
    if any(row["active"] for row in rows):
        newest = db.query(
            "select m.id::pg_catalog.text as id, m.version from distill.models m where m.name = $1"
            " and m.created_at = (select max(o.created_at) from distill.models o where o.name = $1)",
            ("text", name),
        )
        for row in sorted(newest, key=lambda row: _natural(row["version"]))[-1:]:
            db.query("update distill.models set active = true where id = $1", ("uuid", row["id"]))


def _natural(version: str) -> list[Any]:
    """Return a key by which versions of one moment are ordered: "9" before "10"."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", version))]


def family_members(db: Database, teacher: Model, limit: int) -> list[Model]:
    """Return the students and other versions of a teacher's family: active ones first, then its frontier, then the newest.

    Without those whose figures are of SQL that another role stored, which is not run to measure it, and without
    cascades with another teacher behind them.
    """
    rows = db.query(
        f"select {_MODEL_COLUMNS} from distill.models m join distill.families f on f.model_id = m.id"
        " where f.family in (select f2.family from distill.families f2 where f2.model_id = $1) and m.id <> $1"
        " and m.kind = 'onnx' and m.task = $2 and (m.form <> 'cascade' or m.teacher_id = $1)"
        " and (m.form <> 'sql' or m.owner = current_user or exists"
        " (select from pg_catalog.pg_roles r where r.rolname = m.owner and r.rolsuper))"
        " order by m.active desc, exists (select from distill.frontier f3 where f3.model_id = m.id) desc,"
        " m.created_at desc, m.id limit $3",
        ("uuid", teacher.id),
        ("text", teacher.task),
        ("int4", limit),
    )
    return [_model(row) for row in rows]


def choose_member(
    db: Database, name: str, *, max_latency_ms: float | None, min_accuracy: float | None
) -> str:
    """Return ``name:version`` of the most accurate model of a family within both bounds; of equals the fastest.

    The answer is to be predict's first argument, so that a student that was chosen for its SQL form counts with what
    predict takes for it. As for a student to be accepted, it is the upper end of a latency's interval that counts.
    Accuracies compare within one metric: that of the active version of ``name``.

    Raises
    ------
    UndefinedModel
        There is no such model.
    InvalidState
        No member is within the bounds; the error names the one that is nearest to them.
    """
    metric = find_model(db, name).metric
    rows = db.query(
        "select f.name || ':' || f.version as name, f.accuracy, l.latency_ms"
        " from distill.families f join distill.models m on m.id = f.model_id,"
        " lateral (select case f.form when 'sql' then (m.measured_on->>'predict_latency_high_ms')::pg_catalog.float8"
        " else coalesce(f.latency_high_ms, f.avg_latency_ms) end as latency_ms) l"
        " where f.family in (select g.family from distill.families g where g.name = $1)"
        " and f.metric = $2 and f.accuracy is not null and l.latency_ms is not null and f.kind <> 'logged'"
        " order by f.accuracy desc, l.latency_ms, f.active desc, f.model_id",
        ("text", name.partition(":")[0]),
        ("text", metric),
    )

    def distance(row: Row) -> float:
        late = row["latency_ms"] / max_latency_ms - 1 if max_latency_ms else 0.0
        wrong = min_accuracy - row["accuracy"] if min_accuracy is not None else 0.0
        return max(late, 0.0) + max(wrong, 0.0)

    for bound, value in (("max_latency_ms", max_latency_ms), ("min_accuracy", min_accuracy)):
        if value is not None and not value > (0 if bound == "max_latency_ms" else float("-inf")):
            raise InvalidParameter(
                f"{bound} must be a number{' above 0' if bound == 'max_latency_ms' else ''}, not {value}"
            )
    best = next((row for row in rows if distance(row) == 0.0), None)
    if best is not None:
        return str(best["name"])
    wanted = [f"at most {max_latency_ms:g} ms"] if max_latency_ms is not None else []
    wanted += [f"{metric} of at least {min_accuracy:g}"] if min_accuracy is not None else []
    nearest = min(rows, key=distance, default=None)
    raise InvalidState(
        f'no model of the family of "{name}" has {" and ".join(wanted) or "measured figures"}',
        detail=None
        if nearest is None
        else f"Nearest is {nearest['name']}: {nearest['latency_ms']:.4g} ms, {metric} {nearest['accuracy']:.4g}.",
    )


def _insert(db: Database, table: str, types: Mapping[str, str], values: Mapping[str, Any]) -> None:
    columns = ", ".join(quote_identifier(key) for key in values)
    places = ", ".join(f"${i + 1}" for i in range(len(values)))
    db.query(
        f"insert into distill.{table} ({columns}) values ({places})",
        *((types[key], _json(value)) for key, value in values.items()),
    )


def _column_types(db: Database, table: str) -> Mapping[str, str]:
    rows = db.query(
        "select a.attname::pg_catalog.text as name, pg_catalog.format_type(a.atttypid, null) as type"
        " from pg_catalog.pg_attribute a"
        " where a.attrelid = $1::pg_catalog.regclass and a.attnum > 0 and not a.attisdropped",
        ("text", f"distill.{table}"),
    )
    return {row["name"]: row["type"] for row in rows}


def insert_run(db: Database, values: Mapping[str, Any]) -> None:
    """Record a run; keys are columns of ``distill.runs``."""
    _insert(db, "runs", _column_types(db, "runs"), values)


def insert_candidates(db: Database, run_id: str, candidates: Sequence[Mapping[str, Any]]) -> None:
    """Record a run's candidates; keys are columns of ``distill.candidates``."""
    types = _column_types(db, "candidates")
    for values in candidates:
        _insert(db, "candidates", types, {"run_id": run_id, **values})


def last_run(db: Database, teacher: str) -> str | None:
    """Return the latest run of the teacher's name, of the version where one is named."""
    name, colon, version = teacher.partition(":")
    rows = db.query(
        "select r.run_id::pg_catalog.text as run_id from distill.runs r where r.teacher_name = $1"
        " and ($2 is null or r.teacher_version = $2) order by r.created_at desc, r.started_at desc limit 1",
        ("text", name),
        ("text", version if colon else None),
    )
    return rows[0]["run_id"] if rows else None


def find_run(db: Database, run_id: str) -> Row:
    """Return a run's row; ``student_model_id`` is its student, jsonb columns are text."""
    rows = db.query(
        "select r.*, r.student_id as student_model_id from distill.runs r where r.run_id = $1",
        ("uuid", run_id),
    )
    if not rows:
        raise UndefinedObject(f'run "{run_id}" does not exist')
    return rows[0]


def predict_latency(db: Database, run_id: str, sha256: str) -> Row:
    """Return what predict took, in a run, for the student of this digest."""
    rows = db.query(
        "select c.avg_latency_ms as predict_latency_ms, c.latency_high_ms as predict_latency_high_ms"
        " from distill.candidates c where c.run_id = $1 and c.sha256 = $2 and c.form = 'predict'"
        " order by c.candidate limit 1",
        ("uuid", run_id),
        ("text", sha256),
    )
    return rows[0] if rows else {}


def find_candidate(db: Database, run_id: str, number: int) -> Row:
    """Return a candidate's row; jsonb columns are text."""
    rows = db.query(
        "select c.* from distill.candidates c where c.run_id = $1 and c.candidate = $2",
        ("uuid", run_id),
        ("int4", number),
    )
    if not rows:
        raise InvalidParameter(f'run "{run_id}" has no candidate {number}')
    return rows[0]


def get_setting(db: Database, name: str) -> int:
    """Return the value in force."""
    rows = db.query("select s.value from distill.settings s where s.name = $1", ("text", name))
    return int(rows[0]["value"]) if rows else SETTINGS[name].default


def get_text_setting(db: Database, name: str) -> str:
    """Return the value in force."""
    rows = db.query("select s.value from distill.settings s where s.name = $1", ("text", name))
    return str(rows[0]["value"]) if rows else TEXT_SETTINGS[name].default


def change_setting(db: Database, name: str, value: str | None) -> None:
    """Set a setting, or take it back to its default with None."""
    setting = SETTINGS.get(name) or TEXT_SETTINGS.get(name)
    if setting is None:
        known = ", ".join([*SETTINGS, *TEXT_SETTINGS])
        raise InvalidParameter(f'setting "{name}" does not exist', hint=f"There are {known}.")
    if value is None:
        db.query("delete from distill.settings s where s.name = $1", ("text", name))
        return
    if isinstance(setting, TextSetting):
        if not re.fullmatch(setting.pattern, value):
            raise InvalidParameter(f'setting "{name}" takes {setting.form}, not "{value}"')
    elif not re.fullmatch(r"[0-9]{1,9}", value) or not setting.low <= int(value) <= setting.high:
        raise InvalidParameter(
            f'setting "{name}" takes a whole number from {setting.low} to {setting.high} {setting.unit}, not "{value}"'
        )
    db.query(
        "insert into distill.settings (name, value) values ($1, $2) on conflict (name) do update"
        " set value = excluded.value, changed_at = now(), changed_by = current_user",
        ("text", name),
        ("text", value),
    )


def require_sample(model: Model, sample: str | None) -> str:
    """Return the sample to use; InvalidState where neither the caller nor the model has one."""
    chosen = sample if sample is not None else model.sample
    if chosen is None:
        raise InvalidState(
            f'model "{model.qualified_name}" has no sample',
            hint="Pass sample => a relation or query that gives rows.",
        )
    return chosen


def server_figures(db: Database) -> Row:
    """Return the server's version and what else of it a latency hangs on."""
    return db.query(
        "select pg_catalog.current_setting('server_version') as postgresql,"
        " pg_catalog.current_setting('jit') as jit, pg_catalog.pg_is_in_recovery() as standby"
    )[0]


def run_of(db: Database, model: Model) -> Row | None:
    """Return the run that made a student, or the last that measured a teacher; jsonb columns are text."""
    rows = db.query(
        "select r.* from distill.runs r where r.student_id = $1 or r.teacher_id = $1 or (r.teacher_id = $2 and exists"
        " (select from distill.candidates c where c.run_id = r.run_id and c.sha256 = $3))"
        " order by coalesce(r.student_id = $1, false) desc, r.created_at desc, r.started_at desc limit 1",
        ("uuid", model.id),
        ("uuid", model.teacher_id),
        ("text", model.sha256),
    )
    return rows[0] if rows else None


def find_teacher(db: Database, model: Model) -> Model | None:
    """Return the teacher of a student, where it has one that the current role can see."""
    return find_by_id(db, model.teacher_id)


def find_by_id(db: Database, model_id: str | None) -> Model | None:
    """Return a model, None where there is none of this id that the current role can see."""
    rows = db.query(f"select {_MODEL_COLUMNS} from distill.models m where m.id = $1", ("uuid", model_id))
    return _model(rows[0]) if rows else None


def recorded_figures(db: Database, ids: Sequence[str]) -> dict[str, Row]:
    """Return what is recorded of models, by id: accuracy and latency with their intervals, and ``measured_on`` as text.

    Raises
    ------
    UndefinedModel
        One of them was dropped meanwhile.
    """
    rows = db.query(
        "select m.id::pg_catalog.text as id, m.accuracy, m.accuracy_low, m.accuracy_high, m.avg_latency_ms, m.latency_low_ms,"
        " m.latency_high_ms, m.measured_on::pg_catalog.text as measured_on from distill.models m where m.id = any ($1)",
        ("uuid[]", list(ids)),
    )
    if len(rows) < len(set(ids)):
        raise UndefinedModel("a model of the family was dropped meanwhile")
    return {row["id"]: row for row in rows}


def recorded_fidelity(db: Database, student: Model) -> tuple[float | None, int]:
    """Return a student's fidelity in the run that made it, and the rows that it was measured on; None where no run did."""
    rows = db.query(
        "select c.fidelity, r.rows_test from distill.candidates c join distill.runs r using (run_id)"
        " where r.teacher_id = $1 and c.sha256 = $2 and c.fidelity is not null"
        " order by coalesce(r.student_id = $3, false) desc, r.created_at desc limit 1",
        ("uuid", student.teacher_id),
        ("text", student.sha256),
        ("uuid", student.id),
    )
    return (rows[0]["fidelity"], rows[0]["rows_test"]) if rows else (None, 0)


# Who names a version in SQL of their own: a view, or the body of a function (distill.create_function writes such).
_NAMED_IN_SQL = (
    "select d.id, d.what from (select m.id, pg_catalog.quote_literal(m.name || ':' || m.version) as literal"
    "  from distill.models m where m.id = any ($1)) n join lateral ("
    "   select n.id, 'function ' || p.oid::pg_catalog.regprocedure::pg_catalog.text as what from pg_catalog.pg_proc p"
    "    join pg_catalog.pg_language l on l.oid = p.prolang where l.lanname not in ('internal', 'c')"
    "    and pg_catalog.strpos(coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc), n.literal) > 0"
    "   union all select n.id, 'view ' || c.oid::pg_catalog.regclass::pg_catalog.text from pg_catalog.pg_class c"
    "    where c.relkind in ('v', 'm') and pg_catalog.strpos(pg_catalog.pg_get_viewdef(c.oid), n.literal) > 0"
    ") d on true"
)


def prune(
    db: Database, *, keep_versions: int | None, older_than: str | None, name: str | None, dry_run: bool
) -> list[dict[str, Any]]:
    """Remove old versions and the files of old runs' candidates; return what is old, and why some of it stays.

    Old is what is both beyond the newest ``keep_versions`` of its name (for candidates: runs of its student's name) and
    older than ``older_than``, an interval; where one is None the other decides. An active version, one that has students
    which stay, and one that a view or a function names stays. Runs and candidates keep their rows, as history.

    Raises
    ------
    InvalidParameter
        Neither bound is given, or one is negative.
    """
    if keep_versions is None and older_than is None:
        raise InvalidParameter("keep_versions or older_than must be given")
    if keep_versions is not None and keep_versions < 0:
        raise InvalidParameter(f"keep_versions must be 0 or more, not {keep_versions}")
    if (
        older_than is not None
        and not db.query(
            "select $1::pg_catalog.interval >= pg_catalog.make_interval() as valid", ("text", older_than)
        )[0]["valid"]
    ):
        raise InvalidParameter(f"older_than must not be negative, not {older_than}")
    bounds: tuple[Argument, ...] = (("int4", keep_versions), ("text", older_than), ("text", name))
    old = (
        "(v.newer >= coalesce($1, 0) and ($2 is null or v.created_at < now() - $2::pg_catalog.interval)"
        " and ($3 is null or v.name = $3))"
    )
    versions = (
        "select v.id::pg_catalog.text as id, v.name, v.version, v.active, v.size_bytes,"
        " v.created_at::pg_catalog.text as created_at from"
        " (select m.*, pg_catalog.row_number() over (partition by m.name order by m.created_at desc, m.id) - 1 as newer"
        f"  from distill.models m) v where {old} order by v.name, v.created_at"
    )
    found = db.query(versions, *bounds)
    if not dry_run:
        # In one order, so that two prunes do not wait for each other; then once more, as others may have been at it.
        locked = sorted({row["name"] for row in found})
        for each in locked:
            lock_name(db, each)
        found = [row for row in db.query(versions, *bounds) if row["name"] in locked]
    ids = [row["id"] for row in found]
    reasons = {row["id"]: "it is the active version" for row in found if row["active"]}
    for row in db.query(_NAMED_IN_SQL, ("uuid[]", ids)):
        reasons.setdefault(row["id"], f"{row['what']} names it")
    students = db.query(
        "select m.id::pg_catalog.text as id, m.teacher_id::pg_catalog.text as teacher_id, m.name || ':' || m.version as name"
        " from distill.models m where m.teacher_id = any ($1) order by m.created_at",
        ("uuid[]", ids),
    )
    while blocked := [
        s for s in students if s["teacher_id"] not in reasons and (s["id"] not in ids or s["id"] in reasons)
    ]:
        for student in blocked:
            reasons.setdefault(student["teacher_id"], f"it is the teacher of {student['name']}")
    gone = [key for key in ids if key not in reasons]
    rows = [
        {
            "kind": "version",
            "run_id": None,
            "pruned": not dry_run and row["id"] in gone,
            "reason": reasons.get(row["id"], "old"),
            **{key: row[key] for key in ("name", "version", "size_bytes", "created_at")},
        }
        for row in found
    ]
    files = db.query(
        "select v.run_id::pg_catalog.text as run_id, v.name, v.created_at::pg_catalog.text as created_at,"
        " sum(c.size_bytes)::pg_catalog.int8 as size_bytes from (select r.run_id, r.student_name as name, r.created_at,"
        "  pg_catalog.row_number() over (partition by r.student_name order by r.created_at desc, r.run_id) - 1 as newer"
        "  from distill.runs r) v join distill.candidates c on c.run_id = v.run_id and c.artifact is not null"
        f" where {old} group by v.run_id, v.name, v.created_at order by v.name, v.created_at",
        *bounds,
    )
    rows += [
        {"kind": "candidates", "version": None, "pruned": not dry_run, "reason": "old", **row}
        for row in files
    ]
    if not dry_run:
        db.query("delete from distill.models m where m.id = any ($1)", ("uuid[]", gone))
    if files and not dry_run:
        db.query(
            "update distill.candidates c set artifact = null, expression = null"
            " where c.run_id = any ($1) and c.artifact is not null",
            ("uuid[]", [row["run_id"] for row in files]),
        )
    return rows
