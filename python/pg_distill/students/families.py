"""What a student is, and which families of students there are.

A family is one class in one module of this package. Families are loaded by name and only when asked for, so that
a backend can check names without importing what training needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast

from pg_distill.errors import InvalidParameter
from pg_distill.frame import Feature, FloatArray, Frame, Task

if TYPE_CHECKING:
    from pg_distill.students.export import Graph
    from pg_distill.students.expression import Sums
    from pg_distill.students.transfer_set import TransferSet

__all__ = ["FAMILIES", "ITERATIVE", "MONOTONE", "STEADY", "Setup", "Shape", "Student", "load_family"]


@dataclass(frozen=True)
class Shape:
    """What a family may know of a problem before it chooses its sizes.

    ``n_rows`` are the real rows to fit on; ``teacher`` is the teacher's ONNX file where it has one.
    """

    task: Task
    n_classes: int
    features: tuple[Feature, ...]
    n_rows: int
    teacher: bytes | None = None

    @property
    def has_texts(self) -> bool:
        """Whether there are texts: what reads them has no form in SQL, or one that is slower than predict."""
        return any(f.kind == "text" for f in self.features)

    @property
    def only_texts(self) -> bool:
        """Whether there is nothing but texts, so that families that read none have nothing to learn from."""
        return all(f.kind == "text" for f in self.features)


@dataclass(frozen=True)
class Setup:
    """How a student is taught, whatever its family and size.

    The targets of a row mix the teacher's softened probabilities (share ``alpha``) and its label (``1 - alpha``); a row
    without a label has the teacher only, a row without teacher logits its label only (``soft_labels.targets``).
    """

    task: Task
    n_classes: int
    """1 for regression, 2 for binary."""
    temperature: float = 1.0
    alpha: float = 1.0
    epochs: int = 10
    """The most passes over its rows; sweeps of a student that is fitted by backfitting."""
    seed: int = 42
    teacher: bytes | None = None
    """The teacher's ONNX file, for families that use it."""
    monotone: Mapping[str, int] = field(default_factory=dict)
    """By column of numbers 1, the value or the last class's probability never falls when it rises, or -1, it never rises."""

    @property
    def least_step(self) -> float:
        """What sums of trees are multiples of, at least, so that a probability rises with them; see ``STEADY``."""
        return STEADY if self.monotone and self.task == "binary" else 0.0


class Student(Protocol):
    """A model small enough to serve.

    The constructor takes a setup, and the keywords of one of ``sizes()``. It only stores them. Everything that is
    learned ends in an underscore.
    """

    setup: Setup
    family: ClassVar[str]
    softens: ClassVar[bool]
    """Whether ``temperature`` changes what this family learns; where not, only T = 1 is tried."""
    uses_teacher: ClassVar[bool]
    """Whether the setup has to have the teacher's ONNX file."""

    def __init__(self, setup: Setup, **size: Any) -> None: ...

    @classmethod
    def sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return constructor keywords (JSON-able), fastest first; none where the family does not apply."""
        ...

    @classmethod
    def sql_sizes(cls, shape: Shape) -> Sequence[Mapping[str, Any]]:
        """Return sizes that are good for what a query of SQL takes, trained where that is asked for, in ``sizes()`` or not."""
        ...

    def prototype(self, data: TransferSet) -> bytes | None:
        """Return an untrained ONNX file that is as fast as the trained one will be; None where nobody can know.

        ``data`` are real rows: its columns decide about preprocessing. Cheap: well below a tenth of a second.
        """
        ...

    def fit(self, data: TransferSet, select: TransferSet, *, deadline: float | None) -> Self:
        """Learn from ``data``; ``select`` is for early stopping only.

        At ``deadline`` (``time.monotonic()`` seconds) it stops with what it has learned so far.
        """
        ...

    def calibrate(self, select: TransferSet) -> bool:
        """Multiply the logits by the factor that makes the log loss on the labels of ``select`` least.

        Classes keep their order. A later ``refit`` keeps the factor. Returns whether it is another one than 1; values
        of regression, and students without labels to calibrate on, stay as they are.
        """
        ...

    def sharpen(self, factor: float) -> None:
        """Multiply the logits by a factor, as ``calibrate`` does with the one that it finds."""
        ...

    def refit(self, data: TransferSet, *, deadline: float | None) -> Self:
        """Learn from other rows as long as ``fit`` found best; nothing is held back, and the sharpness stays."""
        ...

    def predict_logits(self, frame: Frame) -> FloatArray:
        """Return (n, K) logits, (n, 1) values for regression, by the trainer's own arithmetic."""
        ...

    def add_to(self, graph: Graph) -> str:
        """Add the student to ``graph`` and return the name of its (n, K) float tensor of logits or (n, 1) values.

        This is how blends are made; ``graph`` gives the encoded inputs and names nodes apart.
        """
        ...

    def to_onnx(self) -> bytes:
        """Return the student with its preprocessing as one ONNX file; the same bytes for the same student."""
        ...

    def to_sql(self, columns: Mapping[str, str] | None = None) -> str:
        """Return the student as SQL (see ``students.expression``).

        Raises
        ------
        FeatureNotSupported, LimitExceeded
            Where it has no form in SQL, or one that is too large.
        """
        ...

    def sql_sums(self, columns: Mapping[str, str] | None, *, vectors: bool, place: str = "") -> Sums:
        """Return its values, log-odds or logits as SQL, of which blends are made.

        ``vectors`` tells whether pgvector's type can be used, ``place`` what names of stages have behind their prefix.
        """
        ...

    def describe(self) -> dict[str, object]:
        """Return family, size and hyper-parameters as plain JSON values."""
        ...


FAMILIES: Mapping[str, str] = {
    "linear": "pg_distill.students.linear:Linear",
    "tree": "pg_distill.students.tree:Tree",
    "boosted": "pg_distill.students.boosted:Boosted",
    "first_trees": "pg_distill.students.first_trees:FirstTrees",
    "mlp": "pg_distill.students.mlp:Mlp",
}
"""Name of each family, and where its class is; the search tries them in this order."""


MONOTONE = frozenset({"linear", "tree", "boosted"})
"""Families that can be held to rise, or to fall, with a column."""

STEADY = 2.0**-16
"""Log-odds between which a probability certainly differs in the right direction. Of closer ones it may not: exp() and a quotient
are rounded, and a runtime's exp() is an approximation. Half of it moves a probability by 2e-6."""

ITERATIVE = frozenset({"mlp"})
"""Families that make passes (``epochs``) over their rows, so that repeated rows mean more steps."""


def load_family(name: str) -> type[Student]:
    """Return the class of a family.

    Raises
    ------
    InvalidParameter
        Where there is no such family.
    """
    try:
        module, _, attribute = FAMILIES[name].partition(":")
    except KeyError:
        raise InvalidParameter(
            f'student family "{name}" does not exist', hint=f"Families are {', '.join(FAMILIES)}."
        ) from None
    return cast("type[Student]", getattr(import_module(module), attribute))
