"""What a model takes and gives: its features, the graph's inputs and outputs, and how one becomes the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy.typing as npt

from pg_distill.errors import (
    ArtifactCorrupted,
    InvalidData,
    LimitExceeded,
)
from pg_distill.frame import MAX_LABELS, MAX_LENGTH, Kind, OfKind, Strings, Task

__all__ = [
    "MAX_TOKENS",
    "NULL_STRING",
    "Cost",
    "Element",
    "FeatureSpec",
    "Form",
    "InputSpec",
    "Null",
    "OutputSpec",
    "Signature",
    "are_thresholds",
]

NULL_STRING = "\x1f<NULL>"
"""What a student's graph reads for a NULL string; no column holds its control character by accident."""


MAX_TOKENS = 1024
"""Most tokens of a text that any transformer reads: attention takes memory and time by the square."""

Element = Literal["float32", "float64", "int64", "int32", "bool", "string"]
Null = Literal["nan", "string", "empty", "error"]
Form = Literal["probabilities", "positive", "logits", "value", "label"]


class Reader(Protocol):
    """What makes numbers of a column of texts: a `texts.TextReader`, or a pipeline's `vectorizers.VectorReader`."""

    @property
    def target(self) -> str:
        """The graph's input that takes them."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns of texts that the file has."""

    @property
    def column(self) -> int:
        """Its own place among these."""

    @property
    def name(self) -> str:
        """The name of its own."""

    @property
    def element(self) -> Element:
        """Of which type the numbers are."""

    @property
    def width(self) -> int:
        """How many there are for one text."""

    @property
    def null(self) -> Null:
        """What it makes of NULL."""

    @property
    def entries(self) -> int:
        """How many strings it knows."""

    def read(self, text: str | None, check: Callable[[], None] = ...) -> npt.NDArray[Any]:
        """Return the numbers (w,) of one text; ``check`` is called again and again where it is long, and may raise."""

    def numbers(self, column: Strings, check: Callable[[], None] = ...) -> npt.NDArray[Any]:
        """Return the numbers (n, w) of a column; ``check`` is called again and again, and may raise."""


@dataclass(frozen=True)
class FeatureSpec(OfKind):
    """A feature as the model reads it.

    ``null`` says how NULL is encoded: "nan", "string" (`NULL_STRING`), "empty" (the empty string), or
    "error": the graph has no value for it, and NULL raises `NullNotAllowed`.
    """

    name: str
    kind: Kind
    null: Null
    length: int = 0
    """Numbers of a vector; 0 for other kinds."""


@dataclass(frozen=True)
class InputSpec:
    """A graph input: ``features`` are the positions, in the signature, of its columns.

    ``rank`` is 2 for (n, d), 1 for (n,). ``batch`` is 1 where the graph takes one row at a time, else None.
    """

    name: str
    element: Element
    rank: int
    features: tuple[int, ...]
    batch: int | None = None
    words: int = 0
    """Numbers that a column of texts is read as; 0 for columns that arrive as they are."""
    cells: int = 0
    """Numbers of its features together where some of these are vectors; 0 where each is one."""

    @property
    def columns(self) -> int:
        """How many columns it has."""
        return self.words or self.cells or len(self.features)


@dataclass(frozen=True)
class OutputSpec:
    """The tensor that is read, and its form.

    ``probabilities`` (n, K); ``positive`` (n,) or (n, 1): the probability of the last class; ``logits``
    (n, K), or (n, 1): the log-odds of the last class; ``value`` (n,) or (n, 1); ``label`` (n,): the class.
    The tensor need not be an output of the graph: that of a ZipMap is its input.
    """

    name: str
    form: Form
    width: int
    element: Literal["float32", "float64", "int64", "string"] = "float32"
    labels: tuple[str, ...] = ()
    """Of the form ``label``: the texts of what the graph gives for the classes, where these are named otherwise."""


@dataclass(frozen=True)
class Cost:
    """What a run of a model takes at most, worked out by `survey` before anything was run.

    Bytes of a run are ``fixed_bytes`` + rows x (``row_bytes`` + ``row_texts`` x the longest text), and likewise its
    nanoseconds on a slow core. ``most_rows`` is how many rows fit into a run none of whose nodes takes too long to wait for;
    ``text_bytes`` is the longest text in the file, ``held_bytes`` what a session keeps beside the file. Where texts are split, a
    row takes ``byte_ns`` more for each byte of the longest one, and no more than ``most_bytes`` bytes, all rows together, fit
    into a run that can be waited for; 0 where it does not matter.
    """

    fixed_bytes: int
    row_bytes: int
    row_texts: int
    text_bytes: int
    fixed_ns: int
    row_ns: int
    most_rows: int
    held_bytes: int
    byte_ns: int = 0
    most_bytes: int = 0

    def bytes(self, rows: int, text_bytes: int = 0) -> int:
        """Return the bytes of a run of so many rows, whose longest string has ``text_bytes``."""
        return self.fixed_bytes + rows * (self.row_bytes + self.row_texts * max(text_bytes, self.text_bytes))

    def rows(self, limit_bytes: int, text_bytes: int = 0) -> int:
        """Return how many rows a run may have, none where even one takes more than ``limit_bytes``."""
        row = self.bytes(1, text_bytes) - self.fixed_bytes
        most = self.most_rows
        if self.most_bytes:
            # Each node's time is of its rows and of its bytes: no run has more of both than it could have of either.
            most = (
                int(1 / (1 / max(most, 1) + max(text_bytes, self.text_bytes) / self.most_bytes))
                if most
                else 0
            )
        return max(min(most, (limit_bytes - self.fixed_bytes) // max(row, 1)), 0)

    def require(
        self,
        limit_bytes: int,
        unit: str,
        hint: str = "An administrator may raise the setting predict_memory_mb.",
    ) -> None:
        """Raise LimitExceeded where not even one row, or text, as ``unit`` says, can be run in ``limit_bytes``."""
        if self.rows(limit_bytes) < 1:
            raise LimitExceeded(
                f"model may take {self.bytes(1)} bytes for one {unit}, limit is {limit_bytes}", hint=hint
            )

    def ns(self, rows: int, text_bytes: int = 0) -> int:
        """Return the nanoseconds of a run of so many rows, whose longest string has ``text_bytes``."""
        return self.fixed_ns + rows * (self.row_ns + self.byte_ns * max(text_bytes, self.text_bytes))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Cost:
        """Read what ``asdict`` gave.

        Raises
        ------
        ArtifactCorrupted
            Where it is something else.
        """
        # What an earlier version has noted does not say how long texts take: it knew no operator that splits them.
        fields = {"byte_ns": 0, "most_bytes": 0, **fields}
        names = cls.__dataclass_fields__
        if set(fields) != set(names) or not all(type(n) is int and n >= 0 for n in fields.values()):
            raise ArtifactCorrupted("stored cost of the model is not readable")
        return cls(**fields)


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    ``classes`` are texts, empty for regression. ``cost`` is None where nobody has worked it out; it is no part of what is
    stored with a model, but is noted where the file was checked. ``max_tokens`` is that of a transformer, which reads its one
    feature as the tokens of a text, so many of them at most; None for any other model.
    """

    features: tuple[FeatureSpec, ...]
    inputs: tuple[InputSpec, ...]
    output: OutputSpec
    task: Task
    classes: tuple[str, ...] = ()
    cost: Cost | None = field(default=None, compare=False)
    readers: Mapping[str, Reader] = field(default_factory=dict, compare=False)
    """By input those that read texts: of the file, as ``cost`` is, and not stored beside it."""
    max_tokens: int | None = None
    thresholds: tuple[float, ...] = ()
    """Of several labels the probability from which each is named, in the order of the classes; none where that is one half."""

    @property
    def one_number(self) -> bool:
        """Whether one number tells what it says of a row: the probability of the last of two classes, or a value."""
        return self.task in ("binary", "regression")

    @property
    def width(self) -> int:
        """Columns of a prediction: K, or 1 for regression."""
        return len(self.classes) or 1

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def numbers_first(self) -> tuple[FeatureSpec, ...]:
        """The features that are numbers, then the strings, both in order."""
        return tuple(sorted(self.features, key=lambda feature: feature.is_string))

    def row(self, numbers: Sequence[Any], strings: Sequence[Any]) -> tuple[Any, ...]:
        """Return a row's values in the order of `numbers_first`, those of a vector one by one.

        Raises
        ------
        InvalidData
            Where there are more or fewer than the model takes.
        """
        expected = sum(feature.is_string for feature in self.features)
        others = self.cells
        if (len(numbers), len(strings)) != (others, expected):
            raise InvalidData(
                f"expected {others} numbers and {expected} strings, not {len(numbers)} and {len(strings)}"
            )
        return (*numbers, *strings)

    @property
    def cells(self) -> int:
        """How many numbers a row has: one for each feature that is no string, and all those of a vector."""
        return sum(feature.width for feature in self.features if not feature.is_string)

    @property
    def has_vectors(self) -> bool:
        """Whether a feature is a vector."""
        return any(feature.is_vector for feature in self.features)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each feature's value begins among `numbers_first`'s, one by one."""
        position, found = 0, {}
        for feature in self.numbers_first:
            found[feature.name] = position
            position += feature.width
        return tuple(found[feature.name] for feature in self.features)

    def parts(
        self, numbers: Sequence[Any], strings: Sequence[Any], vectors: Sequence[bytes | None]
    ) -> dict[str, Any]:
        """Return a row's values by name: its other numbers, its strings and the bytes of its vectors, each given in order.

        Raises
        ------
        InvalidData
            Where there are more or fewer than the model takes.
        """
        given = (numbers, strings, vectors)
        kinds = [1 if f.is_string else 2 if f.is_vector else 0 for f in self.features]
        expected = [kinds.count(kind) for kind in range(3)]
        if [*map(len, given)] != expected:
            raise InvalidData(
                f"expected {expected[0]} other numbers, {expected[1]} strings and {expected[2]} vectors,"
                f" not {len(numbers)}, {len(strings)} and {len(vectors)}"
            )
        rest = [iter(part) for part in given]
        return {f.name: next(rest[kind]) for f, kind in zip(self.features, kinds, strict=True)}

    @property
    def is_numeric(self) -> bool:
        """Whether a row fits in an array of numbers: no feature is a string."""
        return all(not feature.is_string for feature in self.features)

    def to_json(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return ``(input_schema, output_schema)``, two values that JSON holds."""
        tokens = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return (
            {
                "features": [asdict(f) for f in self.features],
                "inputs": [asdict(i) for i in self.inputs],
                **tokens,
            },
            {"task": self.task, "classes": list(self.classes), **asdict(self.output)}
            | ({"thresholds": list(self.thresholds)} if self.thresholds else {}),
        )

    @classmethod
    def from_json(cls, input_schema: Mapping[str, Any], output_schema: Mapping[str, Any]) -> Signature:
        """Read what `to_json` wrote.

        Raises
        ------
        ArtifactCorrupted
            Where the schemas are not `to_json`'s.
        """
        try:
            output = dict(output_schema)
            task, classes = output.pop("task"), tuple(output.pop("classes"))
            inputs = [InputSpec(**{**i, "features": tuple(i["features"])}) for i in input_schema["inputs"]]
            features = tuple(FeatureSpec(**f) for f in input_schema["features"])
            output["labels"] = tuple(output.get("labels", ()))
            tokens = input_schema.get("max_tokens")
            thresholds = tuple(output.pop("thresholds", ()))
            signature = cls(
                features,
                tuple(inputs),
                OutputSpec(**output),
                task,
                classes,
                max_tokens=tokens,
                thresholds=thresholds,
            )
            valid = signature._is_valid()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ArtifactCorrupted(
                "stored signature of the model is not readable", detail=f"{error!r}."
            ) from error
        if not valid:
            raise ArtifactCorrupted("stored signature of the model is not one that registering gives")
        return signature

    def _is_valid(self) -> bool:
        """Return whether all is of its type and fits together, so that nothing that reads it meets what it does not expect."""
        features, output, width = self.features, self.output, len(self.classes)
        widths = {"probabilities": {width}, "positive": {1}, "logits": {width, 1}, "value": {1}, "label": {1}}
        two = output.form == "positive" or (output.form == "logits" and output.width == 1)
        return (
            self.task in get_args(Task)
            and all(isinstance(c, str) for c in self.classes)
            and (output.form == "value") == (self.task == "regression") == (width == 0)
            and (width == 2 if self.task == "binary" or two else width != 1)
            and self._are_labels()
            and isinstance(output.name, str)
            and output.form in widths
            and type(output.width) is int
            and output.width in widths[output.form]
            and output.element in ("float32", "float64", "int64", "string")
            and len(output.labels) in (0, width)
            and all(isinstance(c, str) for c in output.labels)
            and len(features) > 0
            and (self.max_tokens is None or self._reads_tokens())
            and all(
                isinstance(f.name, str)
                and f.kind in get_args(Kind)
                and f.null in get_args(Null)
                and type(f.length) is int
                and (0 < f.length <= MAX_LENGTH if f.is_vector else f.length == 0)
                for f in features
            )
            and all(
                isinstance(i.name, str)
                and i.element in get_args(Element)
                and type(i.rank) is int
                and i.rank in (1, 2)
                and (i.batch is None or (type(i.batch) is int and i.batch > 0))
                and len(i.features) > 0
                and type(i.words) is int
                and (
                    i.words == 0
                    or (i.words > 0 and len(i.features) == 1 and i.element in ("float32", "float64"))
                )
                and all(type(n) is int and 0 <= n < len(features) for n in i.features)
                and type(i.cells) is int
                and i.cells
                == (
                    sum(features[n].width for n in i.features)
                    if any(features[n].is_vector for n in i.features)
                    else 0
                )
                for i in self.inputs
            )
        )

    def _are_labels(self) -> bool:
        """Return whether what is said of several labels is so."""
        if self.task != "multilabel":
            return self.thresholds == ()
        form = self.output.form in ("probabilities", "logits") and self.output.width == len(self.classes)
        known = self.thresholds == () or are_thresholds(self.thresholds, len(self.classes))
        return form and known and len(self.classes) <= MAX_LABELS

    def _reads_tokens(self) -> bool:
        """Return whether inputs and features are a transformer's, so far as each of them is what it says."""
        tokens, [first, *others] = self.max_tokens, self.features
        return (
            type(tokens) is int
            and 0 < tokens <= MAX_TOKENS
            and not others
            and (first.kind, first.null) == ("string", "empty")
            and len(self.inputs) > 0
            and all((i.rank, i.batch, i.features) == (2, 1, (0,)) for i in self.inputs)
            and all(i.element in ("int64", "int32") for i in self.inputs)
        )


def are_thresholds(found: object, n_classes: int) -> bool:
    """Return whether these are a probability for each class."""
    return (
        isinstance(found, list | tuple)
        and len(found) == n_classes
        and all(isinstance(t, float) and 0.0 < t < 1.0 for t in found)
    )
