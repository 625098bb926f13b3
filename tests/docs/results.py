"""The tables of measurements in the documents: what tests/bench/results holds as JSON, as Markdown.

``python tests/docs/results.py`` (`make results`) writes them between their markers; a test holds the two together. A marker
names a file, for how it was measured, or a file and one of its tables::

    <!-- results: serving -->
    <!-- results: serving.ways -->
    <!-- end of results -->

A file has the ``command`` that measured, the day it was ``recorded``, the ``machine``, the ``source`` that its figures were taken
from, and ``tables``: ``columns``, and ``rows`` of texts, because a figure keeps its last zero.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["DOCUMENTS", "render"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "bench" / "results"
DOCUMENTS = [ROOT / "README.md", ROOT / "extension" / "doc" / "pg_distill-results.md"]

_PART = re.compile(r"(<!-- results: (\w+)(?:\.(\w+))? -->\n).*?(<!-- end of results -->)", re.DOTALL)


def _measured(found: dict[str, Any]) -> str:
    return f"Measured by `{found['command']}` on {found['machine']}; recorded {found['recorded']}.\n"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    assert {len(line) for line in lines} == {len(columns)}
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def render(text: str) -> str:
    """Return a document with the parts between its markers made anew."""

    def part(match: re.Match[str]) -> str:
        head, file, table, end = match.groups()
        found = json.loads((RESULTS / f"{file}.json").read_text())
        made = _measured(found) if table is None else _table(**found["tables"][table])
        return f"{head}{made}{end}"

    return _PART.sub(part, text)


def main() -> None:
    """Write the tables into the documents."""
    for document in DOCUMENTS:
        document.write_text(render(document.read_text()))


if __name__ == "__main__":
    main()
