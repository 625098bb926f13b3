"""A row of the registry: what a model is, and the SQL that it is stored as."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from pg_distill.database.protocol import Database, Row
from pg_distill.errors import (
    InsufficientPrivilege,
    InvalidName,
)
from pg_distill.frame import Cut, ModelForm, Task
from pg_distill.onnx_model.signature import Signature
from pg_distill.rows.canonical import stored_texts, stored_types
from pg_distill.text import name_fault, printable

__all__ = [
    "MAX_NAME_BYTES",
    "MODEL_COLUMNS",
    "Dropped",
    "MeasuredOn",
    "Model",
    "ModelKind",
    "StoredSql",
    "check_name",
    "model_of_row",
    "require_owner",
]

ModelKind = Literal["onnx", "sql", "logged"]
MAX_NAME_BYTES = 63  # as PostgreSQL's own names, so that a model's name can be a function's
MODEL_COLUMNS = (
    "m.id::pg_catalog.text as id, m.name, m.version, m.task, m.kind,"
    " case when m.kind operator(pg_catalog.<>) 'logged' then m.expression end as expression,"
    " case when m.kind operator(pg_catalog.=) 'logged' then m.expression end as columns, m.sha256,"
    " m.input_schema::pg_catalog.text as input_schema,"
    " m.output_schema::pg_catalog.text as output_schema, m.sample, m.label, m.metric, m.accuracy, m.avg_latency_ms,"
    " m.latency_declared, m.teacher_id::pg_catalog.text as teacher_id, m.owner, m.form, m.threshold,"
    " m.class_threshold"
)


class MeasuredOn(TypedDict, total=False):
    """Where a model's figures come from: the JSON of ``distill.models.measured_on``.

    ``rows`` and ``rows_test`` count rows, ``path`` is what was called so many ``calls`` in so many ``blocks``. The
    ``comparable_`` bounds are of the accuracy beside those of its family. ``accuracy_run_id`` stands where the accuracy is of
    another run than ``run_id``. ``twin`` is the SHA-256 of the file that was judged in the place of a model which learned the
    test rows afterwards, by the same recipe: its figures are that one's.
    """

    run_id: str | None
    rows: int | None
    rows_test: int
    comparable_low: float | None
    comparable_high: float | None
    accuracy_run_id: str
    twin: str
    path: str | None
    calls: int
    blocks: int
    cold_ms: float | None
    machine: Mapping[str, Any]
    predict_latency_ms: float
    predict_latency_high_ms: float


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
    text_columns: Sequence[str] | None = None
    """Columns of strings that are texts, as whoever registered it said; None: its rows say."""
    monotone: Mapping[str, int] = field(default_factory=dict)
    """By column the direction that its training held its answers to."""

    @property
    def qualified_name(self) -> str:
        """``name:version``."""
        return f"{self.name}:{self.version}"

    @property
    def cut(self) -> Cut:
        """From which probability it names the last of two classes, or each of several labels; None for one half."""
        return self.class_threshold if self.class_threshold is not None else self.signature.thresholds or None

    @property
    def is_timed_as_sql(self) -> bool:
        """Whether its latency is that of its expression in a query, and not predict's."""
        return self.kind == "sql" or self.form == "sql"


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


def require_owner(db: Database, owner: str, what: str, hint: str | None = None) -> None:
    """Refuse to run SQL that another role stored, unless that role is a superuser.

    Otherwise a low role could plant SQL for a high one to run.
    """
    if not db.query_exact("select distill._is_trusted($1) as trusted", ("text", owner))[0]["trusted"]:
        raise InsufficientPrivilege(f'{what} was stored by role "{owner}" and runs only for it', hint=hint)


def model_of_row(row: Row) -> Model:
    """Return a row of ``MODEL_COLUMNS`` as a model."""
    input_schema, output_schema = json.loads(row.pop("input_schema")), json.loads(row.pop("output_schema"))
    signature = Signature.from_json(input_schema, output_schema)
    for what in ("expression", "sample"):
        if row[what] is not None:
            said = f'the {what} of model "{row["name"]}:{row["version"]}"'
            row[what] = StoredSql(row[what], row["owner"], said)
    held = input_schema.get("monotone")
    return Model(
        signature=signature,
        types=stored_types(input_schema),
        text_columns=stored_texts(input_schema),
        monotone=held if isinstance(held, dict) else {},
        **row,
    )


@dataclass(frozen=True)
class Dropped:
    """A version that is gone; ``last`` where no version of its name is left."""

    name: str
    version: str
    owner: str
    last: bool
