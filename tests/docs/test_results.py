"""Every figure of the documents' tables stands in the stored results, and says where it comes from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from docs.results import DOCUMENTS, RESULTS, render


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.name))
def test_tables_are_what_the_stored_results_say(path: Path) -> None:
    assert render(path.read_text()) == path.read_text(), "run `make results`"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: str(path.stem))
def test_results_say_where_they_come_from_and_are_shown(path: Path) -> None:
    found = json.loads(path.read_text())
    assert set(found) == {"command", "recorded", "machine", "source", "tables"}
    assert all(found.values())
    shown = "".join(document.read_text() for document in DOCUMENTS)
    marked = re.findall(rf"<!-- results: {path.stem}\.(\w+) -->", shown)
    assert sorted(marked) == sorted(found["tables"])
