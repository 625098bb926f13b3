"""The picture of the architecture shows what the code is."""

from __future__ import annotations

import re

from docs.architecture import FILE, MODULE, draw, imports
from docs.results import ROOT


def test_the_architecture_is_drawn_from_the_imports() -> None:
    assert draw(imports()) == FILE.read_text(), "run `make pictures`"


def test_contributing_names_what_is_there() -> None:
    """Paths between backticks: of the repository, of the module, or of a package of it."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`([\w/.]+/[\w/.]*|\w+\.py)`", text)) - {
        "students/NAME.py",
        "tests/unit/test_NAME.py",
    }
    assert len(named) > 30
    known = [ROOT, MODULE, ROOT / "python"]
    assert [path for path in sorted(named) if not any((base / path).exists() for base in known)] == []
