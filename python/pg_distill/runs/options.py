"""The arguments of ``distill_model``, checked before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pg_distill.errors import FeatureNotSupported, InvalidParameter, NullNotAllowed
from pg_distill.frame import Frame
from pg_distill.registry.model import check_name
from pg_distill.students.families import FAMILIES, MONOTONE
from pg_distill.students.vocabulary import usual_width

__all__ = ["MOST_SECONDS", "PREFERENCES", "Options", "constraints_of", "usual_seconds"]

FORMS = ("sql", "cascade")  # stand among the families: how a student answers, not what it is
MOST_SECONDS = 120.0
"""What labelling and search take at most where no time budget is given."""
FEWEST_SECONDS, SECONDS_A_ROW, SECONDS_A_CELL = 15.0, 1 / 1000, 1 / 20_000
"""What a search gets then: 20 s for 5,000 rows of two columns, 34 s of 57. More rarely found a better student of so few rows."""
CELLS_A_WORD = 2
"""A word costs more than a cell: it is looked up, and its pairs and parts are n-grams too."""
CLASSES_A_CELL = 10
"""So many classes make a word cost a cell more: each of its n-grams says something of each class."""
SQL_TIMES = 1.4
"""How many times as long it takes where SQL is asked for, whose sizes are trained too: the others are then as good as without."""
PREFERENCES = ("accurate", "knee", "fast")  # which of the candidates that meet target and floor is the answer


@dataclass(frozen=True)
class Options:
    """The arguments of ``distill_model``, in its order, checked.

    ``min_accuracy`` None leaves the floor to ``verdict.floor``.

    Raises
    ------
    NullNotAllowed, InvalidParameter
        A value is missing, out of range or unknown.
    """

    teacher: str
    target_latency_ms: float = 5.0
    min_accuracy: float | None = None
    temperature: float = 4.0
    epochs: int = 10
    seed: int = 42
    metric: str | None = None
    sample: str | None = None
    label: str | None = None
    max_rows: int = 100_000
    time_budget_s: float | None = None
    student_name: str | None = None
    families: Sequence[str] | None = None
    group_column: str | None = None
    time_column: str | None = None
    weight_column: str | None = None
    trained_on: str | None = None
    prefer: str = "accurate"
    text_columns: Sequence[str] | None = None
    patience: int = 32
    refit_on_all: bool = False
    monotone: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        for name in ("teacher", "target_latency_ms", "temperature", "epochs", "seed", "max_rows",
                     "prefer", "patience", "refit_on_all"):  # fmt: skip
            if getattr(self, name) is None:
                raise NullNotAllowed(f"{name} must not be NULL")
        _require(self.target_latency_ms > 0 and np.isfinite(self.target_latency_ms), "target_latency_ms",
                 self.target_latency_ms, "above 0")  # fmt: skip
        if self.min_accuracy is not None:
            _require(0 <= self.min_accuracy <= 1, "min_accuracy", self.min_accuracy, "from 0 to 1")
        _require(0 < self.temperature <= 100, "temperature", self.temperature, "above 0 and at most 100")
        _require(1 <= self.epochs <= 10_000, "epochs", self.epochs, "from 1 to 10000")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _require(1 <= self.max_rows <= 1_000_000, "max_rows", self.max_rows, "from 1 to 1000000")
        if self.time_budget_s is not None:
            _require(
                0 < self.time_budget_s <= 86_400,
                "time_budget_s",
                self.time_budget_s,
                "above 0 and at most 86400",
            )
        _require(1 <= self.patience <= 1_000_000, "patience", self.patience, "from 1 to 1000000")
        if self.student_name is not None:
            check_name(self.student_name, "student name")
        constraints_of(self.monotone)
        if self.families is not None:
            if not self.families:
                raise InvalidParameter("families must name at least one family")
            for family in self.families:
                if family not in (*FAMILIES, *FORMS):
                    raise InvalidParameter(
                        f'student family "{family}" does not exist',
                        hint=f"Families are {', '.join(FAMILIES)}, sql (students of any in SQL form), cascade.",
                    )

            if self.constraints:
                self._require_keeping(self.families)
        _require(self.prefer in PREFERENCES, "prefer", self.prefer, f"one of {', '.join(PREFERENCES)}")

    @property
    def most_seconds(self) -> float:
        """What labelling and search may take."""
        return MOST_SECONDS if self.time_budget_s is None else self.time_budget_s

    def search_seconds(self, rows: Frame, n_classes: int, labelled_s: float) -> tuple[float, float]:
        """Return the budget of a search over a sample's rows, whose labelling took so long, and what it may grow to.

        If none is given it goes by their size, and grows on a slow or a busy machine.
        """
        left = max(self.most_seconds - labelled_s, 1.0)
        usual = usual_seconds(rows, n_classes) * (SQL_TIMES if self.sql_wanted else 1.0)
        return (left if self.time_budget_s is not None else min(left, usual)), left

    @property
    def student_families(self) -> list[str]:
        """The families to train: all, where only forms are named."""
        return [f for f in self.families or () if f in FAMILIES] or list(FAMILIES)

    @property
    def constraints(self) -> dict[str, int]:
        """By column the direction that students are to keep."""
        return constraints_of(self.monotone)

    def _require_keeping(self, families: Sequence[str]) -> None:
        """Refuse families of which none can keep monotone constraints, and a cascade: its teacher keeps none."""
        hint = f"Families that can are {', '.join(f for f in FAMILIES if f in MONOTONE)}."
        if "cascade" in families:
            raise FeatureNotSupported(
                "a cascade cannot keep monotone constraints: its teacher answers, too", hint=hint
            )
        if not MONOTONE.intersection(self.student_families):
            raise FeatureNotSupported(
                f"no family of {', '.join(families)} can keep monotone constraints", hint=hint
            )

    @property
    def cascade_wanted(self) -> bool:
        """Whether students that ask the teacher where they are not confident are candidates too."""
        if self.constraints:
            return False
        return self.families is None or "cascade" in self.families

    @property
    def sql_wanted(self) -> bool:
        """Whether the caller takes the SQL form of a student as the answer although predict would do as well."""
        return "sql" in (self.families or ())


def usual_seconds(rows: Frame, n_classes: int) -> float:
    """Return what a search over rows gets where nobody says how long it may take: students of few are found soon."""
    cells = usual_width(rows, a_word=CELLS_A_WORD + n_classes // CLASSES_A_CELL)
    return FEWEST_SECONDS + len(rows) * (SECONDS_A_ROW + SECONDS_A_CELL * cells)


def constraints_of(given: object) -> dict[str, int]:
    """Return by column 1 or -1, without those of 0; InvalidParameter where ``given`` does not say that."""
    hint = (
        """Write '{"income": 1, "age": -1}': the answer never falls with income, and never rises with age."""
    )
    if given is not None and not isinstance(given, Mapping):
        raise InvalidParameter("monotone must be an object with a direction by column", hint=hint)
    found = {}
    for name, sign in (given or {}).items():
        if isinstance(sign, bool) or not isinstance(sign, int | float) or sign not in (-1, 0, 1):
            raise InvalidParameter(
                f'monotone direction of column "{name}" must be 1, -1 or 0, not {json.dumps(sign)}', hint=hint
            )
        if sign:
            found[str(name)] = int(sign)
    return found


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise InvalidParameter(f"{name} must be {rule}, not {value}")
