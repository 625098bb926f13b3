"""An ONNX graph under construction, in float64, over the columns of a table.

All numbers are one input, ``numbers`` (n, d) float64, all texts another, ``strings`` (n, m), as in a student's graph: that is the
form that a backend predicts fastest. Only columns that something reads become inputs. float64 because that is what the libraries
compute in: what casts to float32 there is cast in the graph, at the same place.

Its class is long, because it knows the table's columns from their first reading on: which become inputs of the file, what is
folded into its front, and which rows it refuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pg_distill.conversion.nodes import Array, Nodes
from pg_distill.errors import DatatypeMismatch, FeatureNotSupported, UndefinedColumn
from pg_distill.frame import Kind
from pg_distill.onnx_model.signature import NULL_STRING
from pg_distill.onnx_model.vectorizers import VECTORS_KEY

__all__ = ["Graph", "Matrix", "Numbers", "Text"]

OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
"""What the checks and ONNX Runtime's trees know."""


@dataclass(frozen=True)
class Numbers:
    """Columns of numbers: the float64 tensor (n, width), or where ``columns`` is given those of the table."""

    tensor: str
    width: int
    columns: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Text:
    """A column of texts of the table, some of which, and None for NULL, may be read as others."""

    column: int
    read_as: Mapping[str | None, str | None] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """One column."""
        return 1

    def reading(self, value: str | None) -> str | None:
        """Return what ``value`` is read as."""
        return self.read_as.get(value, value)


Block = Numbers | Text


@dataclass(frozen=True)
class Matrix:
    """What a step of a pipeline reads or gives: columns side by side.

    ``sparse`` says that the library holds it as a sparse matrix, to which some models read zeros as missing.
    """

    blocks: tuple[Block, ...]
    sparse: bool = False

    @property
    def width(self) -> int:
        """How many columns."""
        return sum(block.width for block in self.blocks)

    @property
    def has_text(self) -> bool:
        """Whether one is of texts."""
        return any(isinstance(block, Text) for block in self.blocks)

    @staticmethod
    def join(parts: Iterable[Matrix], *, sparse: bool = False) -> Matrix:
        """Put matrices side by side."""
        return Matrix(tuple(block for part in parts for block in part.blocks), sparse)

    def dense(self) -> Matrix:
        """Return the matrix as one that the library holds densely."""
        return replace(self, sparse=False)


class Graph(Nodes):
    """Nodes, the table's columns that they read, and the file that they become.

    Parameters
    ----------
    names
        The columns that the model knows, in its order.
    kinds
        What the sample has: a kind for each name, None for a column of a type that no model takes; names that it lacks are not in
        it. None: no sample is known, and every column is a number.
    """

    def __init__(self, names: Sequence[str], kinds: Mapping[str, Kind | None] | None) -> None:
        super().__init__()
        self.names = tuple(names)
        self.kinds = kinds
        self.precise = False
        """Whether sums of trees are to have float64's digits: something steep reads them."""
        self.nulls: dict[int, float | None] = {}
        """Columns whose NULL an encoder learned as this object, None or NaN."""
        self._number_reads: list[int] = []
        self._text_reads: list[int] = []
        self._words: dict[str, int] = {}
        self._guards: list[str] = []
        self._vectors: dict[str, tuple[int, Mapping[str, Any]]] = {}
        self._joined: dict[str, Sequence[tuple[str, int]]] = {}

    # -- columns

    def kind(self, column: int) -> Kind:
        """Return the kind of a column; an error that says what to do where the sample has none that a model takes."""
        name = self.names[column]
        if self.kinds is None:
            return "number"
        if name not in self.kinds:
            raise UndefinedColumn(
                f'column "{name}" of the model is not among the sample\'s',
                hint="Name the sample's columns as those that the model was fitted on.",
            )
        kind = self.kinds[name]
        if kind is None:
            raise DatatypeMismatch(
                f'column "{name}" is of a type that no model takes', hint="Cast it in the sample's query."
            )
        return kind

    def table(self) -> Matrix:
        """Return all columns."""
        return Matrix(tuple(Numbers("", 1, (i,)) for i in range(len(self.names))))

    def resolved(self, matrix: Matrix) -> Matrix:
        """Return the matrix with the table's columns as what they are, numbers or texts."""
        blocks: list[Block] = []
        for block in matrix.blocks:
            if isinstance(block, Text) or block.columns is None:
                blocks.append(block)
                continue
            for column in block.columns:
                if self.kind(column) == "string":
                    blocks.append(Text(column))
                else:
                    blocks.append(Numbers("", 1, (column,)))
        return Matrix(tuple(blocks), matrix.sparse)

    def text_places(self, matrix: Matrix) -> tuple[int, ...]:
        """Return which of a matrix' columns are of texts."""
        return tuple(
            i
            for i in range(matrix.width)
            if any(isinstance(b, Text) for b in self.resolved(self.select(matrix, [i])).blocks)
        )

    def select(self, matrix: Matrix, columns: Sequence[int] | Array) -> Matrix:
        """Return some columns of a matrix, in the order given."""
        wanted = [int(c) for c in columns]
        if wanted == list(range(matrix.width)):
            return matrix
        owners: list[tuple[int, int]] = [
            (number, place) for number, block in enumerate(matrix.blocks) for place in range(block.width)
        ]
        blocks: list[Block] = []
        start = 0
        while start < len(wanted):
            owner = owners[wanted[start]][0]
            stop = start
            while stop < len(wanted) and owners[wanted[stop]][0] == owner:
                stop += 1
            places = [owners[c][1] for c in wanted[start:stop]]
            block = matrix.blocks[owner]
            if isinstance(block, Text):
                blocks.extend([block] * len(places))
            elif block.columns is not None:
                blocks.append(Numbers("", len(places), tuple(block.columns[p] for p in places)))
            elif places == list(range(block.width)):
                blocks.append(block)
            else:
                blocks.append(Numbers(self.gather(block.tensor, places), len(places)))
            start = stop
        return Matrix(tuple(blocks), matrix.sparse)

    def numbers(self, matrix: Matrix, what: str) -> str:
        """Return the float64 tensor (n, width) of a matrix; ``what`` reads it, which takes no texts."""
        matrix = self.resolved(matrix)
        parts: list[str] = []
        widths: list[int] = []
        run: list[int] = []

        def close() -> None:
            if run:
                parts.append(self._read(self._number_reads, "numbers", tuple(run)))
                widths.append(len(run))
                run.clear()

        for block in matrix.blocks:
            if isinstance(block, Text):
                raise DatatypeMismatch(
                    f'column "{self.names[block.column]}" is of texts in the sample, but {what} takes numbers',
                    hint="Cast it to float8 in the sample's query, or encode it in the pipeline.",
                )
            if block.columns is not None:
                run.extend(block.columns)
            else:
                close()
                parts.append(block.tensor)
                widths.append(block.width)
        close()
        joined = self.concat(parts)
        if len(parts) > 1 and not self._vectors.keys().isdisjoint(parts):
            self._joined[joined] = list(zip(parts, widths, strict=True))
        return joined

    def _read(self, reads: list[int], source: str, columns: tuple[int, ...]) -> str:
        key = ("read", source, columns)
        if key not in self._known:
            for column in columns:
                if column not in reads:
                    reads.append(column)

            def places() -> Array:
                order = sorted(reads)
                return np.array([order.index(c) for c in columns], np.int64)

            self._known[key] = self.op("Gather", source, self.later(places), axis=1)
        return self._known[key]

    def vector(self, column: int, settings: Mapping[str, Any]) -> str:
        """Return the float64 tensor (n, width) that a vectorizer makes of a column of texts: see `vectorizers`."""
        name = f"text{len(self._vectors)}"
        self._vectors[name] = column, settings
        return name

    def reweighted(self, x: str, settings: Mapping[str, Any]) -> str | None:
        """Return a vectorizer's tensor with these weights, where ``x`` is the counts of terms that one finds."""
        column, before = self._vectors.get(x, (0, {"terms": None}))
        if before["terms"] is None or before["sublinear"] or before["idf"] is not None or before["norm"]:
            return None
        return self.vector(column, {**before, **settings})

    def words(self, columns: Sequence[int]) -> str:
        """Return the int64 tensor (n, len(columns)) of the columns' texts as numbers: see `word`."""
        return self._read(self._text_reads, "pg_distill_words", tuple(columns))

    def word(self, text: str | None) -> int:
        """Return the number of a text, None for NULL; one that no step asked for has the number of `vocabulary`."""
        return self._words.setdefault(NULL_STRING if text is None else text, len(self._words))

    def texts(self) -> list[str | None]:
        """Return the texts by their numbers."""
        return [None if word == NULL_STRING else word for word in self._words]

    def vocabulary(self) -> int:
        """Return how many texts have a number, when the graph is finished."""
        return len(self._words)

    def product(self, x: str, weights: Any) -> str:
        """Return x @ weights; where x has texts beside other columns, as a sum of what each adds."""
        if x not in self._joined:
            return super().product(x, weights)
        found, start = "", 0
        for part, width in self._joined[x]:
            own = super().product(part, np.asarray(weights)[start : start + width])
            found = self.add(found, own) if found else own
            start += width
        return found

    # -- what a model refuses

    def refuse_nan(self, x: str) -> None:
        """Give no answer, NaN, for a row in which ``x``, a float64 tensor, holds NaN or an infinity."""
        for part, _ in self._joined.get(x, [(x, 0)]):
            if part not in self._vectors:  # whose numbers are finite
                self._guards.append(self.mul(part, 0.0))

    def refuse_where(self, condition: str) -> None:
        """Give no answer, NaN, for a row in which a condition holds anywhere."""
        self._guards.append(self.where(condition, np.nan, 0.0))

    # -- the file

    @property
    def read_columns(self) -> tuple[int, ...]:
        """The table's columns that something reads, in the model's order."""
        return tuple(
            sorted({*self._number_reads, *self._text_reads, *(c for c, _ in self._vectors.values())})
        )

    def finish(self, output: str, name: str, width: int, properties: Mapping[str, str]) -> bytes:
        """Return the file whose one output is ``output``, a float64 tensor, under ``name``."""
        properties = dict(properties)
        for guard in dict.fromkeys(self._guards):
            output = self.add(output, self.sum(guard))
        self.nodes.append(helper.make_node("Identity", [output], [name]))
        front: list[onnx.NodeProto] = []
        inputs = []
        if self._number_reads:
            shape = [None, len(self._number_reads)]
            inputs.append(helper.make_tensor_value_info("numbers", TensorProto.DOUBLE, shape))
        if self._text_reads:
            shape = [None, len(self._text_reads)]
            inputs.append(helper.make_tensor_value_info("strings", TensorProto.STRING, shape))
            words = list(self._words) or [NULL_STRING]
            front.append(
                helper.make_node(
                    "LabelEncoder",
                    ["strings"],
                    ["pg_distill_words"],
                    domain="ai.onnx.ml",
                    keys_strings=words,
                    values_int64s=list(range(len(words))),
                    default_int64=len(words),
                )
            )
        arrays = {key: make() if callable(make) else make for key, make in self._initializers.items()}
        nodes = _without_copies([*front, *self.nodes], arrays, len(self._number_reads), len(self._text_reads))
        nodes, tables = self._fold(nodes, arrays, inputs, properties)
        if not inputs:
            raise FeatureNotSupported("the model reads no column")
        used = {name for node in nodes for name in node.input} | tables
        graph = helper.make_graph(
            nodes,
            "converted",
            inputs,
            [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [None, width])],
            [numpy_helper.from_array(array, key) for key, array in arrays.items() if key in used],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
            ir_version=IR_VERSION,
            producer_name="pg_distill",
        )
        helper.set_model_props(model, dict(properties))
        return bytes(model.SerializeToString(deterministic=True))

    def _fold(
        self,
        nodes: list[onnx.NodeProto],
        arrays: dict[str, Array],
        inputs: list[onnx.ValueInfoProto],
        properties: dict[str, str],
    ) -> tuple[list[onnx.NodeProto], set[str]]:
        """Append the inputs that vectorizers fill, and say in the file how. Return the other nodes, and the tables that are read.

        Where all that reads a vectorizer is one product with a matrix, the product is the input: it is a sum over the terms of a
        text, of which there are fewer than columns.
        """
        read = {name for node in nodes for name in node.input}
        self._vectors = {name: found for name, found in self._vectors.items() if name in read}
        if not self._vectors:
            return nodes, set()
        columns = sorted({column for column, _ in self._vectors.values()})
        both = set(columns).intersection(self._text_reads)
        if both:
            raise FeatureNotSupported(
                f'column "{self.names[min(both)]}" is read as words and as a category',
                hint="Give the sample the column twice, and fit the pipeline on two columns.",
            )
        readers: list[dict[str, Any]] = []
        folded: list[onnx.NodeProto] = []
        for name, (column, settings) in self._vectors.items():
            own = [node for node in nodes if name in node.input]
            target, table, width = name, None, settings["width"]
            if len(own) == 1 and own[0].op_type == "MatMul" and own[0].input[1] in arrays:
                matrix = arrays[own[0].input[1]]
                if matrix.ndim == 2 and matrix.shape[1] < width:
                    target, table, width = own[0].output[0], own[0].input[1], matrix.shape[1]
                    folded += own
            inputs.append(helper.make_tensor_value_info(target, TensorProto.DOUBLE, [None, width]))
            settings = {**settings, "input": target, "column": columns.index(column), "table": table}
            if settings["idf"] is not None:
                arrays[f"{name}_idf"] = np.array(settings["idf"], np.float64)
                settings["idf"] = f"{name}_idf"
            readers.append(settings)
        said = {"columns": [self.names[c] for c in columns], "readers": readers}
        properties[VECTORS_KEY] = json.dumps(said, sort_keys=True)
        tables = {reader[k] for reader in readers for k in ("table", "idf") if reader[k] is not None}
        return [node for node in nodes if not any(node is other for other in folded)], tables


def _without_copies(
    nodes: Sequence[onnx.NodeProto], arrays: Mapping[str, Array], numbers: int, strings: int
) -> list[onnx.NodeProto]:
    """Leave out the Gathers that take all of an input in order, and what nothing reads."""
    same: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    for node in nodes:
        node.input[:] = [same.get(name, name) for name in node.input]
        width = {"numbers": numbers, "pg_distill_words": strings}.get(node.input[0] if node.input else "")
        if (
            node.op_type == "Gather"
            and width is not None
            and node.input[1] in arrays
            and arrays[node.input[1]].tolist() == list(range(width))
        ):
            same[node.output[0]] = node.input[0]
            continue
        kept.append(node)
    # The last node gives the output.
    needed = set(kept[-1].output)
    out = []
    for node in reversed(kept):
        if needed.intersection(node.output):
            needed.update(node.input)
            out.append(node)
    return out[::-1]
