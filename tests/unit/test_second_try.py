"""CI tries a failed test once more only where it is listed, and with it nothing else failed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import may_fail_once, require_listed

ROOT = Path(__file__).parents[2]
LISTED = sorted(may_fail_once())


def test_what_is_listed_is_tried_again() -> None:
    require_listed([LISTED[0], f"{LISTED[-1]}[pg17-some case]"])


@pytest.mark.parametrize(
    "failed",
    [
        [],  # the run failed, and no test did: a process died, say
        ["tests/sql/test_smoke.py::test_a_file_that_is_no_model_is_refused[local]"],
        [LISTED[0], "tests/sql/test_smoke.py::test_a_file_that_is_no_model_is_refused[local]"],
        [LISTED[0].partition("::")[0]],  # a module that cannot be read
    ],
)
def test_what_is_not_listed_fails_the_run(failed: list[str]) -> None:
    with pytest.raises(pytest.UsageError):
        require_listed(failed)


@pytest.mark.parametrize("name", LISTED)
def test_what_is_listed_exists(name: str) -> None:
    file, _, function = name.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_ci_asks_for_the_list() -> None:
    tries = [line for line in (ROOT / ".ci/run").read_text().splitlines() if "--last-failed" in line]
    assert tries
    assert all("--second-try" in line for line in tries)
