"""Every SQL statement about models, runs and candidates, and about the settings that limit them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pg_distill import __version__
from pg_distill.database.backend import Argument, Database, Row, is_superuser, quote_identifier
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
from pg_distill.onnx_model.signature import Cost, Signature
from pg_distill.registry import places
from pg_distill.rows.canonical import stored_types
from pg_distill.rows.learned import Learned
from pg_distill.text import name_fault, printable, skeleton

__all__ = [
    "REPORTED",
    "RULES",
    "SETTINGS",
    "TEXT_SETTINGS",
    "Dropped",
    "Model",
    "Role",
    "Setting",
    "StoredSql",
    "activate",
    "admitted",
    "change_setting",
    "check_name",
    "check_setting",
    "choose_member",
    "costs_meanwhile",
    "drop",
    "family_members",
    "find_by_id",
    "find_candidate",
    "find_model",
    "find_run",
    "find_teacher",
    "get_setting",
    "get_text_setting",
    "insert_model",
    "insert_run",
    "last_run",
    "lock_family",
    "lock_names",
    "measured_on",
    "next_version",
    "note_checked",
    "predict_latency",
    "prune",
    "read_artifact",
    "read_artifacts",
    "read_learned",
    "recorded_fidelity",
    "recorded_figures",
    "require_name",
    "require_owner",
    "require_writable",
    "run_of",
    "sample_of",
    "server_figures",
    "take_place",
    "training_rows",
    "unchecked",
    "update_figures",
]

ModelKind = Literal["onnx", "sql", "logged"]
MAX_NAME_BYTES = 63  # as PostgreSQL's own names, so that a model's name can be a function's


@dataclass(frozen=True)
class StoredSql:
    """SQL that a role stored with a model or a run: whoever wants its text says that it is going to be run, or given out.

    The one gate: it asks whose the text is, whatever kind and form of model it stands under.
    """

    _text: str
    owner: str
    what: str

    def text_for_caller(self, db: Database, hint: str | None = None) -> str:
        """Return the text; InsufficientPrivilege unless the current role, or a superuser, stored it."""
        require_owner(db, self.owner, self.what, hint)
        return self._text


@dataclass(frozen=True)
class Model:
    """A registered version, without its artifact."""

    id: str
    name: str
    version: str
    task: Task
    kind: ModelKind
    expression: StoredSql | None
    """SQL of a SQL teacher, and of a student that has a SQL form."""
    columns: str | None
    """Of a logged teacher: its output columns, as a JSON array."""
    sha256: str
    signature: Signature
    sample: StoredSql | None
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
    class_threshold: float | None
    """Of two classes: the probability from which the last one is named; None: it is named where it is the more probable."""
    types: Mapping[str, str]
    """SQL type of each feature's column, where SQL is to be run over rows of them."""

    @property
    def qualified_name(self) -> str:
        """``name:version``."""
        return f"{self.name}:{self.version}"

    @property
    def is_timed_as_sql(self) -> bool:
        """Whether its latency is that of its expression in a query, and not predict's."""
        return self.kind == "sql" or self.form == "sql"


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
    "concurrent_inspections": Setting(
        2,
        1,
        64,
        "processes",
        "files that are checked at once on this server; more wait, and are refused after 30 s",
    ),
    "inspection_memory_mb": Setting(
        4096, 256, 1 << 20, "MB", "address space of a process that checks a file, at most trainer_memory_mb"
    ),
    "session_cache_mb": Setting(256, 1, 1 << 16, "MB", "artifacts whose sessions a backend keeps"),
    "predict_memory_mb": Setting(
        1024,
        16,
        1 << 20,
        "MB",
        "memory that one run of a model takes at most: rows are predicted in as many runs as that needs",
    ),
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
    """Return ``name`` if a model or version may be called so.

    No CHECK of the tables says the whole of it: models of older releases have other names, and go on being used, activated and
    restored.
    """
    fault = f"A name has 1 to {MAX_NAME_BYTES} bytes, no colon and no control characters."
    if name and len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES and not _NOT_IN_NAMES.search(name):
        found = name_fault(name)
        if found is None:
            return name
        fault = found
    raise InvalidName(f'{what} "{printable(name)}" is not valid', detail=fault)


_MODEL_COLUMNS = (
    "m.id::pg_catalog.text as id, m.name, m.version, m.task, m.kind,"
    " case when m.kind operator(pg_catalog.<>) 'logged' then m.expression end as expression,"
    " case when m.kind operator(pg_catalog.=) 'logged' then m.expression end as columns, m.sha256,"
    " m.input_schema::pg_catalog.text as input_schema,"
    " m.output_schema::pg_catalog.text as output_schema, m.sample, m.label, m.metric, m.accuracy, m.avg_latency_ms,"
    " m.latency_declared, m.teacher_id::pg_catalog.text as teacher_id, m.owner, m.form, m.threshold,"
    " m.class_threshold"
)


def _model(row: Row) -> Model:
    input_schema, output_schema = json.loads(row.pop("input_schema")), json.loads(row.pop("output_schema"))
    signature = Signature.from_json(input_schema, output_schema)
    for what in ("expression", "sample"):
        if row[what] is not None:
            said = f'the {what} of model "{row["name"]}:{row["version"]}"'
            row[what] = StoredSql(row[what], row["owner"], said)
    return Model(signature=signature, types=stored_types(input_schema), **row)


def find_model(db: Database, model: str) -> Model:
    """Find ``name`` (its active version) or ``name:version``; UndefinedModel where there is none."""
    name, colon, version = model.partition(":")
    where = "m.version operator(pg_catalog.=) $2" if colon else "m.active and $2 is not null"
    rows = db.query_exact(
        f"select {_MODEL_COLUMNS} from distill.models m where m.name operator(pg_catalog.=) $1 and {where}",
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


@dataclass(frozen=True)
class Role:
    """The current role, and whether it is above the owners of models."""

    oid: int
    name: str
    is_superuser: bool
    is_admin: bool
    """Whether it may change settings."""


def current_role(db: Database) -> Role:
    """Return the current role; to be asked before `Database.write`, in which it is another."""
    [row] = db.query(
        "select r.oid::pg_catalog.int8 as oid, r.rolname::pg_catalog.text as name, r.rolsuper as is_superuser,"
        " pg_catalog.has_function_privilege('distill.change_setting(pg_catalog.text, pg_catalog.text)', 'execute') as is_admin"
        " from pg_catalog.pg_roles r where r.rolname = current_user"
    )
    return Role(**row)


def read_learned(db: Database, ids: Iterable[str]) -> dict[str, Learned | None]:
    """Return by model id the rows that students have learned from; None where that is not known, as of older releases."""
    found: dict[str, Learned | None] = dict.fromkeys(ids)
    rows = db.query(
        "select m.id::pg_catalog.text as id, m.learned_from::pg_catalog.text as learned from distill.models m"
        " where m.id = any ($1) and m.learned_from is not null",
        ("uuid[]", list(found)),
    )
    return found | {row["id"]: Learned.from_json(json.loads(row["learned"])) for row in rows}


def training_rows(db: Database, teacher: Model) -> Row | None:
    """Return the query by which the last run that named them knows the rows that a teacher was trained on, and that run.

    Of a run of this role, or of a superuser: it is going to be run.
    """
    rows = db.query(
        "select r.resolved->>'trained_on' as query, r.run_id::pg_catalog.text as run_id from distill.runs r"
        " where r.teacher_id = $1 and r.resolved->>'trained_on' is not null and distill._is_trusted(r.owner)"
        " order by r.created_at desc, r.started_at desc limit 1",
        ("uuid", teacher.id),
    )
    return rows[0] if rows else None


def require_owner(db: Database, owner: str, what: str, hint: str | None = None) -> None:
    """Refuse to run SQL that another role stored, unless that role is a superuser.

    Otherwise a low role could plant SQL for a high one to run.
    """
    if not db.query_exact("select distill._is_trusted($1) as trusted", ("text", owner))[0]["trusted"]:
        raise InsufficientPrivilege(f'{what} was stored by role "{owner}" and runs only for it', hint=hint)


def _own_name(db: Database, role: Role) -> str:
    """Return the name under which a role owns what it stores, in `Database.write`.

    The role's own, unless another role stood for that before: names are given once.
    """
    name = role.name
    while True:
        rows = db.query(
            "select o.name from distill.owners o where o.role = $1::pg_catalog.oid", ("int8", role.oid)
        )
        if not rows:
            rows = db.query(
                "insert into distill.owners (name, role) values ($1, $2::pg_catalog.oid) on conflict do nothing returning name",
                ("text", name),
                ("int8", role.oid),
            )
        if rows:
            return str(rows[0]["name"])
        # Another session of the role has just done it; or the name is another role's.
        if db.query(
            "select from distill.owners o where o.name = $1 and o.role <> $2::pg_catalog.oid",
            ("text", name),
            ("int8", role.oid),
        ):
            name = f"{name}#{role.oid}"


# Whether a role may write a model of distill.models m: who owns it, a member of that role, who administers, a superuser.
_MAY_WRITE = "($1 or coalesce(pg_catalog.pg_has_role($2::pg_catalog.oid, distill._owner_role(m.owner), 'MEMBER'), false))"


def _writer(role: Role) -> tuple[Argument, Argument]:
    """Return the arguments of `_MAY_WRITE`."""
    return ("boolean", role.is_superuser or role.is_admin), ("int8", role.oid)


def _require_name(db: Database, name: str, role: Role, *, visible: bool) -> None:
    """Refuse to write under a name that another role has; in `Database.write`, which sees all versions.

    Raises
    ------
    InsufficientPrivilege
        It is another role's.
    DuplicateModel
        So it is, and the current role sees none of its versions.
    InvalidName
        It is new, and seen as the name of another role's models: who reads the one would take it for the other.
    """
    rows = db.query(
        f"select m.owner from distill.models m where m.name = $3 and not {_MAY_WRITE} limit 1",
        *_writer(role),
        ("text", name),
    )
    if not rows:
        _refuse_lookalike(db, name, role)
        return
    if not visible:
        raise DuplicateModel(f'model name "{name}" is taken', hint="Choose another name.")
    raise InsufficientPrivilege(
        f'model name "{name}" is another role\'s',
        detail=f'A version of it belongs to role "{rows[0]["owner"]}".',
        hint="Choose another name, or work as a member of that role.",
    )


def _refuse_lookalike(db: Database, name: str, role: Role) -> None:
    if db.query("select from distill.models m where m.name = $1 limit 1", ("text", name)):
        return
    own = skeleton(name)
    others = db.query(f"select distinct m.name from distill.models m where not {_MAY_WRITE}", *_writer(role))
    if any(skeleton(row["name"]) == own for row in others):
        raise InvalidName(
            f'model name "{printable(name)}" is seen as a name of another role\'s',
            hint="Choose another name.",
        )


def require_name(db: Database, name: str) -> None:
    """Refuse a name that is another role's, before anything is done for it; a client is told by `insert_model`."""
    if db.in_backend:
        role, visible = current_role(db), _sees_name(db, name)
        db.write(lambda: _require_name(db, name, role, visible=visible))


def _sees_name(db: Database, name: str) -> bool:
    return bool(db.query("select from distill.models m where m.name = $1 limit 1", ("text", name)))


def lock_names(db: Database, names: Iterable[str]) -> None:
    """Let one transaction at a time add, activate or drop versions of ``names``.

    All of them in one order, so that two transactions do not wait for each other. In `Database.write`: nobody else may
    lock these rows.
    """
    ordered = sorted(set(names))
    db.query(
        "insert into distill.name_locks (name) select n from pg_catalog.unnest($1) n order by n on conflict do nothing",
        ("text[]", ordered),
    )
    db.query(
        "select from distill.name_locks l where l.name = any ($1) order by l.name for update",
        ("text[]", ordered),
    )


def lock_family(db: Database, teacher: Model, names: Iterable[str]) -> None:
    """Lock the teacher and its family, before a student of it is registered or their figures are written.

    What is another role's is not written and not locked, but for a lock of the teacher's row that only its removal waits
    for: who distils somebody's teacher keeps nobody from it. A teacher of one's own is written as it is: it either is gone
    or stays for its student, and, as a row's lock does not renew the snapshot of a transaction that is REPEATABLE READ or
    SERIALIZABLE, of two who do not see each other one fails (40001).

    Raises
    ------
    UndefinedModel
        The teacher was dropped meanwhile.
    """
    role = current_role(db)

    def lock() -> None:
        taken = db.query(
            f"select distinct m.name from distill.models m where m.name = any ($3) and not {_MAY_WRITE}",
            *_writer(role),
            ("text[]", [teacher.name, *names]),
        )
        others = {row["name"] for row in taken}
        lock_names(db, {teacher.name, *names} - others)
        lock = (
            "select m.id from distill.models m where m.id = $1 for key share"
            if teacher.name in others
            else "update distill.models m set active = m.active where m.id = $1 returning m.id"
        )
        if not db.query(lock, ("uuid", teacher.id)):
            raise UndefinedModel(f'model "{teacher.qualified_name}" was dropped meanwhile')

    db.write(lock)


@contextmanager
def admitted(db: Database, run_id: str | None = None) -> Iterator[None]:
    """Hold one of the server's places for trainings; a client's connection holds it until it ends.

    Raises
    ------
    TooManyTrainings
        All are taken.
    """
    if not db.in_backend:
        db.query("select distill._take_place($1)", ("uuid", run_id))
        yield
        return
    with take_place(db):
        # For distill.metrics, until the transaction ends. It takes a place of its own, as a lock of a table is of one database.
        db.write(lambda: db.query("lock table distill.trainings in row exclusive mode"))
        yield


def take_place(db: Database) -> places.Place:
    """Take one of the server's places for trainings; TooManyTrainings where there is none."""
    allowed = get_setting(db, "concurrent_trainings")
    place = places.take(places.TRAININGS, allowed)
    if place is None:
        raise TooManyTrainings(
            f"{allowed} distillations run already, as many as are allowed at once",
            hint="Try again later, or have an administrator change the setting concurrent_trainings.",
        )
    return place


def require_writable(db: Database) -> None:
    """Let PostgreSQL refuse now what it would refuse after the training: a read-only transaction, a role that may not write."""
    if db.in_backend:
        db.write(lambda: db.query("insert into distill.models (name) select null where false"))
    else:
        db.query("update distill.job_queue set stage = stage where false")


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
    class_threshold: float | None = None,
    learned_from: Mapping[str, Any] | None = None,
    checked: bool = True,
    attested: bool = True,
) -> Model:
    """Register a version and make it the active one.

    Parameters
    ----------
    learned_from
        What ``Learned.to_json`` gives, of a student.
    checked
        Whether a child of this backend has checked the artifact together with the signature, which then has its cost.
    attested
        Whether this backend has measured, or will measure, its figures.

    Raises
    ------
    DuplicateModel
        Name and version exist, or the name is one that the current role cannot see.
    InsufficientPrivilege
        The name is another role's.
    """
    role, visible = current_role(db), _sees_name(db, name)
    content = artifact if artifact is not None else (expression or "").encode()
    input_schema, output_schema = signature.to_json()
    if types:
        input_schema["types"] = dict(types)

    def insert() -> str:
        lock_names(db, [name])
        _require_name(db, name, role, visible=visible)
        number = version
        if number is None:
            number = next_version(db, name)
        elif db.query(
            "select from distill.models m where m.name = $1 and m.version = $2",
            ("text", name),
            ("text", version),
        ):
            raise DuplicateModel(f'version "{version}" of model "{name}" already exists')
        db.query("update distill.models set active = false where name = $1 and active", ("text", name))
        [row] = db.query(
            "insert into distill.models (name, version, active, task, kind, artifact, expression, sha256, size_bytes,"
            " input_schema, output_schema, sample, label, teacher_id, form, threshold, owner, attested,"
            " learned_from, class_threshold)"
            " values ($1, $2, true, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)"
            " returning id::pg_catalog.text as id",
            ("text", name),
            ("text", number),
            ("text", task),
            ("text", kind),
            ("bytea", artifact),
            ("text", expression),
            ("text", hashlib.sha256(content).hexdigest()),
            ("int8", len(content)),
            ("jsonb", json.dumps(input_schema)),
            ("jsonb", json.dumps(output_schema)),
            ("text", sample),
            ("text", label),
            ("uuid", teacher_id),
            ("text", form),
            ("float8", threshold),
            ("text", _own_name(db, role)),
            ("boolean", attested),
            ("jsonb", _json(learned_from)),
            ("float8", class_threshold),
        )
        if checked and artifact is not None and signature.cost is not None:
            _note_checked(db, row["id"], signature.cost)
        _update_figures(db, row["id"], figures, role)
        return str(row["id"])

    return _by_id(db, db.write(insert))


def _by_id(db: Database, model_id: str) -> Model:
    model = find_by_id(db, model_id)
    if model is None:
        # A policy that lets a role register what it may not see.
        raise UndefinedModel("the model is not visible to the role that registered it")
    return model


RULES = __version__
"""Whose rules a file has passed that is noted as checked."""


def _note_checked(db: Database, model_id: str, cost: Cost) -> None:
    db.query(
        "insert into distill.checked (sha256, schema_digest, rules, cost)"
        " select m.sha256, distill._schema_digest(m.input_schema, m.output_schema), $2, $3 from distill.models m where m.id = $1"
        " on conflict do nothing",
        ("uuid", model_id),
        ("text", RULES),
        ("jsonb", json.dumps(asdict(cost))),
    )


def unchecked(db: Database, ids: Sequence[str]) -> list[str]:
    """Return which of these models no child of this server has checked yet."""
    rows = db.query(
        "select m.id::pg_catalog.text as id from distill.models m where m.id = any ($1) and m.artifact is not null"
        " and distill._run_cost(m.sha256, distill._schema_digest(m.input_schema, m.output_schema), $2) is null",
        ("uuid[]", list(ids)),
        ("text", RULES),
    )
    return [row["id"] for row in rows]


def note_checked(db: Database, model_id: str, signature: Signature) -> None:
    """Note that a child has checked a model's file and signature, so that it is not checked again; where that can be written."""
    cost = signature.cost
    assert cost is not None
    if _can_write(db):
        db.write(lambda: _note_checked(db, model_id, cost))


def costs_meanwhile(db: Database, ids: Sequence[str]) -> dict[str, Cost]:
    """Return what runs of these models cost where another session has had them checked since this statement began."""
    if not _can_write(db):
        return {}
    # What `Database.write` runs has a snapshot of its own; predict has its statement's.
    rows = db.write(
        lambda: db.query(
            "select m.id::pg_catalog.text as id, c.cost from distill.models m cross join lateral (select"
            " distill._run_cost(m.sha256, distill._schema_digest(m.input_schema, m.output_schema), $2) as cost) c"
            " where m.id = any ($1) and c.cost is not null",
            ("uuid[]", list(ids)),
            ("text", RULES),
        )
    )
    return {row["id"]: Cost.from_json(json.loads(row["cost"])) for row in rows}


def _can_write(db: Database) -> bool:
    [row] = db.query_exact(
        "select not pg_catalog.pg_is_in_recovery() and pg_catalog.current_setting('transaction_read_only')"
        " operator(pg_catalog.=) 'off'::pg_catalog.text"
        " and pg_catalog.has_function_privilege('distill._write()', 'execute') as can_write"
    )
    return bool(row["can_write"]) and not db.in_parallel


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
    "attested": "boolean",
    "origin": "jsonb",
}


REPORTED = frozenset(_FIGURES) - {"attested"}
"""Columns of figures that whoever measured may say; whether they count is not for him to say."""


def update_figures(db: Database, model_id: str, figures: Mapping[str, Any]) -> None:
    """Store measured figures; keys are columns of ``distill.models``.

    Of a model that the current role may not write nothing is stored: figures of somebody's model are not to be had by
    distilling it on rows of one's own choice.
    """
    role = current_role(db)
    db.write(lambda: _update_figures(db, model_id, figures, role))


def _update_figures(db: Database, model_id: str, figures: Mapping[str, Any], role: Role) -> None:
    arguments: list[Argument] = [(_FIGURES[key], _json(value)) for key, value in figures.items()]
    assignments = ", ".join(f"{quote_identifier(key)} = ${i + 4}" for i, key in enumerate(figures))
    if assignments:
        db.query(
            f"update distill.models m set {assignments} where m.id = $3 and {_MAY_WRITE}",
            *_writer(role),
            ("uuid", model_id),
            *arguments,
        )


def _json(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, Mapping | list | tuple) else value


def activate(db: Database, name: str, version: str) -> str:
    """Make ``version`` the active one of ``name``; return its id.

    Raises
    ------
    InsufficientPrivilege
        The name is another role's.
    """
    model, role = find_model(db, f"{name}:{version}"), current_role(db)

    def make_active() -> None:
        lock_names(db, [name])
        _require_name(db, name, role, visible=True)
        if not db.query("select from distill.models m where m.id = $1", ("uuid", model.id)):
            raise UndefinedModel(f'model "{model.qualified_name}" was dropped meanwhile')
        db.query(
            "update distill.models m set active = false where m.name = $1 and m.active and m.id <> $2",
            ("text", name),
            ("uuid", model.id),
        )
        db.query(
            "update distill.models m set active = true where m.id = $1 and not m.active", ("uuid", model.id)
        )

    db.write(make_active)
    return model.id


def drop(db: Database, model: str) -> list[Dropped]:
    """Remove one version, or every version of a name; return what is gone.

    Of the versions that remain the newest becomes active, if the active one was removed.

    Raises
    ------
    DependentObjects
        Students depend on it, also such as the current role cannot see.
    InsufficientPrivilege
        The name is another role's.
    """
    name, colon, version = model.partition(":")
    role, visible = current_role(db), _sees_name(db, name)
    if not visible:
        raise UndefinedModel(f'model "{model}" does not exist')

    def remove() -> list[Dropped]:
        lock_names(db, [name])
        rows = db.query(
            "select m.id::pg_catalog.text as id, m.version, m.active, m.owner from distill.models m"
            # A distillation by another role holds its teacher's row, not its name: whoever comes first is seen by the other.
            " where m.name = $1 and ($2 is null or m.version = $2) order by m.id for update",
            ("text", name),
            ("text", version if colon else None),
        )
        if not rows:
            raise UndefinedModel(f'model "{model}" does not exist')
        _require_name(db, name, role, visible=True)
        ids = [row["id"] for row in rows]
        students = db.query(
            "select m.name, m.version from distill.models m where m.teacher_id = any ($1) and m.id <> all ($1)"
            " order by m.name, m.version",
            ("uuid[]", ids),
        )
        if students:
            raise _HasStudents([f"{s['name']}:{s['version']}" for s in students])
        db.query("delete from distill.models m where m.id = any ($1)", ("uuid[]", ids))
        if any(row["active"] for row in rows):
            newest = db.query(
                "select m.id::pg_catalog.text as id, m.version from distill.models m where m.name = $1"
                " and m.created_at = (select pg_catalog.max(o.created_at) from distill.models o where o.name = $1)",
                ("text", name),
            )
            for row in sorted(newest, key=lambda row: _natural(row["version"]))[-1:]:
                db.query("update distill.models set active = true where id = $1", ("uuid", row["id"]))
        gone = not db.query("select from distill.models m where m.name = $1", ("text", name))
        return [Dropped(name, row["version"], row["owner"], gone) for row in rows]

    try:
        return db.write(remove)
    except _HasStudents as error:
        seen = [s for s in error.names if _sees_model(db, s)]
        hidden = len(error.names) - len(seen)
        named = [*seen, *([f"{hidden} that you cannot see"] if hidden else [])]
        raise DependentObjects(
            f'model "{model}" cannot be dropped because students depend on it',
            detail=f"It is the teacher of {', '.join(named)}.",
            hint="Drop the students first.",
        ) from None


class _HasStudents(Exception):
    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


def _sees_model(db: Database, model: str) -> bool:
    name, _, version = model.partition(":")
    return bool(
        db.query(
            "select from distill.models m where m.name = $1 and m.version = $2",
            ("text", name),
            ("text", version),
        )
    )


@dataclass(frozen=True)
class Dropped:
    """A version that is gone; ``last`` where no version of its name is left."""

    name: str
    version: str
    owner: str
    last: bool


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
        " and (m.form <> 'sql' or distill._is_trusted(m.owner))"
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
    Accuracies compare within one metric, that of the active version of ``name``, and of those that the last run that measured
    the family could not measure, as they have learned from its rows, one is chosen only where no other is within the bounds.

    Raises
    ------
    UndefinedModel
        There is no such model.
    InvalidState
        No member is within the bounds; the error names the one that is nearest to them.
    """
    metric = find_model(db, name).metric
    rows = db.query_exact(
        # What was measured together first: figures of other rows do not compare with these.
        "select pg_catalog.concat(f.name, ':', f.version) as name, f.accuracy, l.latency_ms"
        " from distill.families f join distill.models m on m.id operator(pg_catalog.=) f.model_id,"
        " lateral (select case when f.form operator(pg_catalog.=) 'sql'::pg_catalog.text then"
        " (m.measured_on operator(pg_catalog.->>) 'predict_latency_high_ms'::pg_catalog.text)::pg_catalog.float8"
        " else coalesce(f.latency_high_ms, f.avg_latency_ms) end as latency_ms) l"
        " where f.family operator(pg_catalog.=) any (select g.family from distill.families g"
        " where g.name operator(pg_catalog.=) $1)"
        " and f.metric operator(pg_catalog.=) $2 and f.accuracy is not null and l.latency_ms is not null"
        " and f.kind operator(pg_catalog.<>) 'logged'::pg_catalog.text"
        " order by f.accuracy_run_id is not null, f.comparable_low desc, l.latency_ms, f.active desc, f.model_id",
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
    if surplus := set(values) - set(types):
        raise InvalidParameter(f'table distill.{table} has no column "{min(surplus)}"')
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


def insert_run(
    db: Database, values: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], *, attested: bool = True
) -> None:
    """Record a run of the current role and its candidates; keys are columns of ``distill.runs`` and ``distill.candidates``."""
    role = current_role(db)

    def insert() -> None:
        given = {**values, "owner": _own_name(db, role), "attested": attested}
        _insert(db, "runs", _column_types(db, "runs"), given)
        types = _column_types(db, "candidates")
        for candidate in candidates:
            _insert(db, "candidates", types, {**candidate, "run_id": values["run_id"]})

    db.write(insert)


def last_run(db: Database, teacher: str) -> str | None:
    """Return the latest run of the teacher's name, of the version where one is named."""
    name, colon, version = teacher.partition(":")
    rows = db.query(
        "select r.run_id::pg_catalog.text as run_id from distill.runs r where r.teacher_name = $1"
        " and ($2 is null or r.teacher_version = $2) and (r.attested or distill._is_trusted(r.owner))"
        " order by r.created_at desc, r.started_at desc limit 1",
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


_SETTING = "select s.value from distill.settings s where s.name operator(pg_catalog.=) $1"


def get_setting(db: Database, name: str) -> int:
    """Return the value in force; InvalidState where its row holds none."""
    return int(_in_force(db, name, str(SETTINGS[name].default)))


def get_text_setting(db: Database, name: str) -> str:
    """Return the value in force; InvalidState where its row holds none."""
    return _in_force(db, name, TEXT_SETTINGS[name].default)


def _in_force(db: Database, name: str, default: str) -> str:
    rows = db.query_exact(_SETTING, ("text", name))
    if not rows:
        return default
    try:
        _check_value(name, rows[0]["value"])
    except InvalidParameter as error:
        raise InvalidState(
            f'setting "{name}" has the value "{printable(rows[0]["value"][:MAX_NAME_BYTES])}", which is none of its own',
            hint=f"Run SELECT distill.change_setting('{name}', NULL) as an administrator.",
        ) from error
    return str(rows[0]["value"])


def check_setting(db: Database, name: str, value: str | None) -> None:
    """Refuse a value that a setting does not take, or that the current role may not give it; None takes it back.

    Raises
    ------
    InvalidParameter
        There is no such setting, or it takes no such value.
    InsufficientPrivilege
        Only a superuser may change it.
    """
    _check_value(name, value)
    if name in TEXT_SETTINGS and not is_superuser(db):
        raise InsufficientPrivilege(
            f'setting "{name}" is for superusers',
            detail="Whoever names the scheduler runs code as the server.",
        )


def _check_value(name: str, value: str | None) -> None:
    setting = SETTINGS.get(name) or TEXT_SETTINGS.get(name)
    if setting is None:
        known = ", ".join([*SETTINGS, *TEXT_SETTINGS])
        raise InvalidParameter(f'setting "{name}" does not exist', hint=f"There are {known}.")
    if value is None:
        return
    if isinstance(setting, TextSetting):
        if not re.fullmatch(setting.pattern, value):
            raise InvalidParameter(f'setting "{name}" takes {setting.form}, not "{value}"')
    elif not re.fullmatch(r"[0-9]{1,9}", value) or not setting.low <= int(value) <= setting.high:
        raise InvalidParameter(
            f'setting "{name}" takes a whole number from {setting.low} to {setting.high} {setting.unit}, not "{value}"'
        )


def change_setting(db: Database, name: str, value: str | None) -> None:
    """Set a setting, or take it back to its default with None; errors as of `check_setting`."""
    check_setting(db, name, value)
    if value is None:
        db.query("delete from distill.settings s where s.name = $1", ("text", name))
        return
    db.query(
        "insert into distill.settings (name, value) values ($1, $2) on conflict (name) do update"
        " set value = excluded.value, changed_at = now(), changed_by = current_user",
        ("text", name),
        ("text", value),
    )


def sample_of(db: Database, model: Model, sample: str | None) -> str:
    """Return the sample to use: the caller's, or that which was stored with the model.

    Raises
    ------
    InvalidState
        There is neither.
    InsufficientPrivilege
        It was stored by another role.
    """
    if sample is not None:
        return sample
    if model.sample is None:
        raise InvalidState(
            f'model "{model.qualified_name}" has no sample',
            hint="Pass sample => a relation or query that gives rows.",
        )
    return model.sample.text_for_caller(db, hint="Pass sample => ... .")


def server_figures(db: Database) -> Row:
    """Return the server's version and what else of it a latency hangs on."""
    return db.query(
        "select pg_catalog.current_setting('server_version') as postgresql,"
        " pg_catalog.current_setting('jit') as jit, pg_catalog.pg_is_in_recovery() as standby"
    )[0]


def run_of(db: Database, model: Model) -> Row | None:
    """Return the run that made a student, or the last that measured a teacher; jsonb columns are text."""
    rows = db.query(
        "select r.* from distill.runs r where (r.student_id = $1 or r.teacher_id = $1 or (r.teacher_id = $2 and exists"
        " (select from distill.candidates c where c.run_id = r.run_id and c.sha256 = $3)))"
        " and (r.attested or distill._is_trusted(r.owner))"
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
        " m.latency_high_ms, m.metric, m.measured_on::pg_catalog.text as measured_on from distill.models m"
        " where m.id = any ($1)",
        ("uuid[]", list(ids)),
    )
    if len(rows) < len(set(ids)):
        raise UndefinedModel("a model of the family was dropped meanwhile")
    return {row["id"]: row for row in rows}


def measured_on(db: Database, ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """Return where models were measured, by id; what others have dropped meanwhile, and what never was, is left out."""
    rows = db.query(
        "select m.id::pg_catalog.text as id, m.measured_on::pg_catalog.text as measured_on from distill.models m"
        " where m.id = any ($1) and m.measured_on is not null",
        ("uuid[]", list(ids)),
    )
    return {row["id"]: json.loads(row["measured_on"]) for row in rows}


def recorded_fidelity(db: Database, student: Model) -> tuple[float | None, int]:
    """Return a student's fidelity in the run that made it, and the rows that it was measured on; None where no run did."""
    rows = db.query(
        "select c.fidelity, r.rows_test from distill.candidates c join distill.runs r using (run_id)"
        " where r.teacher_id = $1 and c.sha256 = $2 and c.fidelity is not null and (r.attested or distill._is_trusted(r.owner))"
        " order by coalesce(r.student_id = $3, false) desc, r.created_at desc limit 1",
        ("uuid", student.teacher_id),
        ("text", student.sha256),
        ("uuid", student.id),
    )
    return (rows[0]["fidelity"], rows[0]["rows_test"]) if rows else (None, 0)


# Who names a version in SQL of their own: a view, or a function, in its body or in the comment of distill.create_function.
_NAMED_IN_SQL = (
    "select d.id, d.what from (select m.id, m.name || ':' || m.version as qualified,"
    "  pg_catalog.quote_literal(m.name || ':' || m.version) as literal"
    "  from distill.models m where m.id = any ($1)) n join lateral ("
    "   select n.id, 'function ' || p.oid::pg_catalog.regprocedure::pg_catalog.text as what from pg_catalog.pg_proc p"
    "    join pg_catalog.pg_language l on l.oid = p.prolang where l.lanname not in ('internal', 'c')"
    "    and (pg_catalog.strpos(coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc), n.literal) > 0"
    "         or pg_catalog.obj_description(p.oid, 'pg_proc') = 'pg_distill model ' || n.qualified)"
    "   union all select n.id, 'view ' || c.oid::pg_catalog.regclass::pg_catalog.text from pg_catalog.pg_class c"
    "    where c.relkind in ('v', 'm') and pg_catalog.strpos(pg_catalog.pg_get_viewdef(c.oid), n.literal) > 0"
    ") d on true"
)


def prune(
    db: Database, *, keep_versions: int | None, older_than: str | None, name: str | None, dry_run: bool
) -> tuple[list[dict[str, Any]], list[Dropped]]:
    """Remove old versions and files of old runs' candidates; return what is old, why some of it stays, and what is gone.

    Old is what is both beyond the newest ``keep_versions`` of its name (for candidates: runs of its student's name) and
    older than ``older_than``, an interval; where one is None the other decides. An active version, one that has students
    which stay, one that a view or a function names, and what is another role's stay. Runs and candidates keep their rows, as
    history.

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
    role = current_role(db)
    bounds: tuple[Argument, ...] = (("int4", keep_versions), ("text", older_than), ("text", name))
    old = (
        "(v.newer >= coalesce($1, 0) and ($2 is null or v.created_at < now() - $2::pg_catalog.interval)"
        " and ($3 is null or v.name = $3))"
    )
    versions = (
        "select v.id::pg_catalog.text as id, v.name, v.version, v.active, v.size_bytes,"
        " v.owner, v.created_at::pg_catalog.text as created_at from"
        " (select m.*, pg_catalog.row_number() over (partition by m.name order by m.created_at desc, m.id) - 1 as newer"
        f"  from distill.models m) v where {old} order by v.name, v.created_at"
    )
    found = db.query(versions, *bounds)
    if not dry_run:
        # Then once more, as others may have been at it.
        locked = {row["name"] for row in found}
        db.write(lambda: _lock_versions(db, locked))
        found = [row for row in db.query(versions, *bounds) if row["name"] in locked]
    ids = [row["id"] for row in found]
    reasons = {row["id"]: "it is the active version" for row in found if row["active"]}
    for row in db.query(
        f"select m.id::pg_catalog.text as id, m.owner from distill.models m where m.id = any ($3) and not {_MAY_WRITE}",
        *_writer(role),
        ("uuid[]", ids),
    ):
        reasons.setdefault(row["id"], f"it belongs to role {row['owner']}")
    for row in db.query(_NAMED_IN_SQL, ("uuid[]", ids)):
        reasons.setdefault(row["id"], f"{row['what']} names it")
    # A policy may hide some, whose teachers stay all the same.
    students = _read_all(
        db,
        "select m.id::pg_catalog.text as id, m.teacher_id::pg_catalog.text as teacher_id, m.name || ':' || m.version as name"
        " from distill.models m where m.teacher_id = any ($1) order by m.created_at",
        ("uuid[]", ids),
    )
    seen = {row["id"] for row in db.query("select m.id::pg_catalog.text as id from distill.models m")}
    while blocked := [
        s for s in students if s["teacher_id"] not in reasons and (s["id"] not in ids or s["id"] in reasons)
    ]:
        for student in blocked:
            named = student["name"] if student["id"] in seen else "a model that you cannot see"
            reasons.setdefault(student["teacher_id"], f"it is the teacher of {named}")
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
        f"  from distill.runs r) v join distill.candidates c on c.run_id = v.run_id and c.artifact is not null"
        f" where {old} group by v.run_id, v.name, v.created_at order by v.name, v.created_at",
        *bounds,
    )
    others = {
        row["run_id"]: row["owner"]
        for row in db.query(
            "select m.run_id::pg_catalog.text as run_id, m.owner from distill.runs m"
            f" where m.run_id = any ($3) and not {_MAY_WRITE}",
            *_writer(role),
            ("uuid[]", [row["run_id"] for row in files]),
        )
    }
    rows += [
        {
            "kind": "candidates",
            "version": None,
            "pruned": not dry_run and row["run_id"] not in others,
            "reason": f"it belongs to role {others[row['run_id']]}" if row["run_id"] in others else "old",
            **row,
        }
        for row in files
    ]

    def remove() -> None:
        db.query("delete from distill.models m where m.id = any ($1)", ("uuid[]", gone))
        db.query(
            "update distill.candidates c set artifact = null, expression = null"
            " where c.run_id = any ($1) and c.artifact is not null",
            ("uuid[]", [row["run_id"] for row in files if row["run_id"] not in others]),
        )

    if dry_run:
        return rows, []
    db.write(remove)
    left = {
        row["name"]
        for row in _read_all(
            db,
            "select m.name from distill.models m where m.name = any ($1)",
            ("text[]", sorted({row["name"] for row in found})),
        )
    }
    return rows, [
        Dropped(row["name"], row["version"], row["owner"], row["name"] not in left)
        for row in found
        if row["id"] in gone
    ]


def _lock_versions(db: Database, names: set[str]) -> None:
    lock_names(db, names)
    db.query(
        "select from distill.models m where m.name = any ($1) order by m.id for update",
        ("text[]", sorted(names)),
    )


def _read_all(db: Database, sql: str, *arguments: Argument) -> list[Row]:
    """Read what a policy may hide from the current role: for what is kept for others, not to be shown."""
    return db.write(lambda: db.query(sql, *arguments))
