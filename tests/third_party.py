"""Which models of other people's software are taken, and why the others are refused: ``make third-party``.

Every pipeline of `pipelines.PIPELINES` is converted as pg-distill register does it and held against its library; every export of
`models.EXPORTERS` and every model of the onnx package's own backend tests is checked, read and tried as registration does it, the
last in a child. The tables go to extension/doc/third_party_models.md.
"""

from __future__ import annotations

import collections
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import models
import numpy as np
import onnx
import onnx.backend.test
import pipelines
from fuzz.run import Child, operator_cases, operator_seeds
from pg_distill.errors import PgDistillError
from pg_distill.frame import Column, Feature, Frame, Strings
from pg_distill.onnx_model.check import check
from pg_distill.onnx_model.derive import derive_signature
from pg_distill.onnx_model.session import Model
from pg_distill.onnx_model.trial import trial_run
from pg_distill.onnx_model.values import decode

TABLE = Path(__file__).resolve().parents[1] / "extension" / "doc" / "third_party_models.md"
TOLERANCE = 1e-4  # of probabilities, and of values relative to their spread: the graphs compute in float32


def backend_cases() -> Iterator[bytes]:
    """Yield the files in the onnx package and the operators' cases that it makes."""
    folder = Path(onnx.backend.test.__file__).parent / "data"
    for path in sorted(folder.rglob("*.onnx")):
        yield path.read_bytes()
    yield from operator_seeds()


def reference_differences() -> dict[str, float]:
    """Return, of each operator's case that is taken, how far its predictions are from the outputs that the onnx package gives."""
    found = {}
    for case in operator_cases():
        try:
            signature = derive_signature(check(case.model.SerializeToString()))
            model = Model(case.model.SerializeToString(), signature)
        except PgDistillError:
            continue
        given, expected = case.data_sets[0]
        arrays = {i.name: np.asarray(a) for i, a in zip(case.model.graph.input, given, strict=True)}
        columns: dict[str, Column] = {}
        for spec in signature.inputs:
            cells = arrays[spec.name].reshape(len(arrays[spec.name]), -1)
            for position, column in zip(spec.features, cells.T, strict=True):
                is_text = spec.element == "string"
                columns[signature.names[position]] = (
                    Strings.from_values([str(c) for c in column]) if is_text else column.astype(np.float64)
                )
        frame = Frame(tuple(Feature(f.name, f.kind) for f in signature.features), columns)
        output = [o.name for o in case.model.graph.output].index(signature.output.name)
        reference = decode(signature, np.asarray(expected[output]), len(frame))
        found[case.name] = float(np.abs(model.run_frame(frame) - reference).max())
    return found


def try_export(name: str) -> str:
    """Return what becomes of an export: that it predicts as its framework, or why it is refused."""
    exported = models.exported(name)
    try:
        signature = derive_signature(
            check(exported.artifact), features=exported.frame.features, rows=exported.frame,
            task=exported.task, classes=exported.classes or None,
        )  # fmt: skip
        found = trial_run(exported.artifact, signature, exported.frame)
    except PgDistillError as error:
        return f"refused ({error.sqlstate}): {error.message}"
    spread = max(float(np.ptp(exported.expected)), 1.0) if exported.task == "regression" else 1.0
    difference = float(np.abs(found - exported.expected).max()) / spread
    return "predicts as its framework" if difference <= TOLERANCE else "predicts otherwise"


def try_pipeline(name: str) -> tuple[str, str]:
    """Return the libraries of a pipeline with their versions, and what becomes of it."""
    tried = pipelines.try_pipeline(pipelines.fitted(name))
    found = tried.difference
    if tried.error is not None or found is None:
        return (
            tried.version or "–",
            f"refused ({tried.error.sqlstate}): {tried.error.message}" if tried.error else "–",
        )
    if not found.holds:
        return tried.version, f"refused by the check: another class in {found.classes} of {found.rows} rows"
    far = "classes alone" if found.largest is None else f"{found.largest:.0e}".replace("0e+00", "0")
    return tried.version, f"{far}"


def pipelines_table() -> str:
    """Return the table of `pipelines.PIPELINES` and of those that are refused."""
    rows = ["| pipeline | libraries | largest difference, or why refused |", "|---|---|---|"]
    for name in (*pipelines.PIPELINES, *pipelines.REFUSED):
        version, result = try_pipeline(name)
        rows.append(f"| {name} | {version} | {result} |")
    return "\n".join(rows)


def exports_table() -> str:
    """Return the table of `models.EXPORTERS`."""
    rows = [f"| {name} | {try_export(name)} |" for name in models.EXPORTERS]
    return "\n".join(["| export | result |", "|---|---|", *rows])


def backend_table() -> str:
    """Return the table of the onnx package's models: how many are taken, and refused for which reason."""
    reasons: collections.Counter[tuple[str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        child = Child(Path(folder), None)
        for artifact in backend_cases():
            result, message = child.take(artifact)
            if result in ("crashed", "hung"):
                child.end()
                child = Child(Path(folder), None)
            # One reason a row: names and numbers of the case left out.
            reason = re.sub(
                r"\d+(\.\d+)?", "n", re.sub(r'"[^"]*"', '"..."', message.splitlines()[-1] if message else "")
            )
            reasons[result, re.sub(r"\[[^\]]*\]", "[...]", reason).replace("|", "/")] += 1
        child.end()
    rows = [
        f"| {result} | {count} | {reason} |"
        for (result, reason), count in sorted(reasons.items(), key=lambda r: (-r[1], r[0]))
    ]
    return "\n".join(["| result | models | reason |", "|---|---|---|", *rows])


def _real_rows() -> str:
    """Return what `tests/real_rows.py` wrote, as it stands: it takes too long to be made again each time."""
    found = re.search(r"## Real rows\n.*?(?=^## )", TABLE.read_text(), re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


def main() -> int:
    """Write the table."""
    backend = backend_table()
    TABLE.write_text(
        "# Models of other software\n\nMade by `make third-party`; a test holds the exports' table against what it finds.\n\n"
        f"## Pipelines that pg-distill register converts\n\nEach was asked about {pipelines.ROWS} rows with NULL, texts, truth values and seconds since 1970. No class\n"
        "differs. The table has the largest difference of a probability, or of a value relative to its standard deviation. The last\n"
        "ones are refused.\n\n"
        f"{pipelines_table()}\n\n{_real_rows()}"
        f"## Exports\n\nAsked about {models.ROWS} rows. Probabilities are within {TOLERANCE:g} of the framework's own, values within as much of their spread.\n\n"
        f"{exports_table()}\n\n"
        f"## The backend test models of onnx {onnx.__version__}\n\n"
        f"Hardly any is a tabular model. Each has to end in an answer, or in an error with its SQLSTATE.\n\n{backend}\n"
    )
    return 1 if re.search(r"^\| (crashed|hung|none) ", backend, re.MULTILINE) else 0


if __name__ == "__main__":
    sys.exit(main())
