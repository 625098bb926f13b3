"""The code blocks of a Markdown file, and what runs them in their order as a reader would.

A fence names its language. ``text`` is output, not code: a table below SQL has the columns that the SQL gave. A comment ``<!-- not run: WHY -->`` in the line above a fence leaves it
out; the tests hold how many there are. A block whose first line is a comment with nothing but a file's name in it
(``# train.py``, ``-- models/scored.sql``) is written to that file instead of being run.
"""

from __future__ import annotations

import os
import re
import subprocess
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

__all__ = ["LANGUAGES", "Reader", "Snippet", "indented", "snippets"]

LANGUAGES = {"ini", "jinja", "python", "shell", "sql", "text", "yaml"}

BUDGET_S = 10  # students of the documents' few rows are there in 4 s on a machine that nobody else uses
PATIENCE = 1
"""What a distillation of a document may take where the document leaves it at the default of two minutes: seconds, and trainings
that gain nothing."""

SHELL_TIMEOUT_S = 240

_FENCE = re.compile(r"^```(\w*)\s*$")
_COLUMNS = re.compile(r"^(.*)\n-[-+]*$", re.MULTILINE)
_LEFT_OUT = re.compile(r"^<!-- not run: (.+) -->$")
_FILE = re.compile(r"^(?:#|--|;|{#) (\S+\.\w+)(?: #})?$")


@dataclass(frozen=True)
class Snippet:
    """One fenced block; ``line`` is that of its fence, counted from 1, ``section`` the heading that it stands under."""

    document: str
    section: str
    line: int
    language: str
    text: str
    left_out: str | None

    @property
    def file(self) -> str | None:
        """Return the file that the block is the content of, or None."""
        named = _FILE.match(self.text.split("\n", 1)[0])
        return named[1] if named else None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def snippets(path: Path) -> list[Snippet]:
    """Return the fenced blocks of a file, in order."""
    found, block, start, before, section = [], None, (0, "", None), "", ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if block is None and fence:
            reason = _LEFT_OUT.match(before)
            block, start = [], (number, fence[1], reason[1] if reason else None)
        elif block is not None and fence:
            found.append(Snippet(path.name, section, start[0], start[1], "\n".join(block), start[2]))
            block = None
        elif block is not None:
            block.append(line)
        elif line.startswith("#"):
            section = line.lstrip("# ")
        before = line
    assert block is None, f"{path.name}:{start[0]}: the fence is not closed"
    return found


def indented(path: Path) -> list[int]:
    """Return the lines of blocks of code by indentation, which no language and no test knows."""
    found, inside, before = [], False, ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside and line.startswith("    ") and not before.strip():
            found.append(number)
        before = line
    return found


@dataclass
class Reader:
    """Follows a document on a server: SQL in one session, Python in one namespace, shell in one folder."""

    conninfo: str
    folder: Path
    environment: dict[str, str]
    replaced: dict[str, str] = field(default_factory=dict)
    namespace: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})
    columns: list[str] = field(default_factory=list)

    def follow(self, document: Path, *, only: str | None = None, without: Collection[str] = ()) -> int:
        """Run every block of the document, or of a section, that can be run here; return how many there were."""
        count = 0
        for snippet in snippets(document):
            if snippet.section in without or only not in (None, snippet.section):
                continue
            if snippet.left_out is None and snippet.language != "text":
                try:
                    self._run(snippet)
                except Exception as error:
                    error.add_note(f"{snippet}:\n{snippet.text}")
                    raise
                count += 1
            elif snippet.language == "text" and (shown := _COLUMNS.search(snippet.text)):
                assert [name.strip() for name in shown[1].split("|")] == self.columns, str(snippet)
        return count

    def _run(self, snippet: Snippet) -> None:
        text, self.columns = snippet.text, []
        for there, here in self.replaced.items():
            text = text.replace(there, here)
        if "time_budget_s" not in text:
            text = re.sub(
                r"distill_model\(('[^']*')",
                rf"distill_model(\1, time_budget_s => {BUDGET_S}, patience => {PATIENCE}",
                text,
            )
            text = re.sub(
                r"(pg-distill distill \w+)", rf"\1 --time-budget-s {BUDGET_S} --patience {PATIENCE}", text
            )
        if snippet.file is not None:
            path = self.folder / snippet.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        elif snippet.language == "sql":
            # As psql does it: each statement by itself.
            with psycopg.connect(self.conninfo, autocommit=True) as connection:
                for statement in re.split(r";[^\S\n]*(?:--[^\n]*)?(?:\n|$)", text):
                    if re.sub(r"--.*", "", statement).strip():
                        done = connection.execute(statement)  # type: ignore[arg-type]
                        self.columns = [column.name for column in done.description or ()]
        elif snippet.language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # It sees libpq's variables, as an application does.
                before = dict(os.environ)
                os.environ.update(self.environment)
                try:
                    exec(compile(text, str(snippet), "exec"), self.namespace)
                finally:
                    os.environ.clear()
                    os.environ.update(before)
        elif snippet.language == "shell":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                capture_output=True, text=True, check=False, timeout=SHELL_TIMEOUT_S,
                cwd=self.folder, env={**os.environ, **self.environment},
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        else:
            raise AssertionError(
                f"{snippet}: a block of {snippet.language} is a file: its first line names it"
            )
