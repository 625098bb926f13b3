"""The report page holds the run's figures, is safe whatever things are called, and looks right in a browser."""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import errors
from sql.conftest import load_cancer, survival

pytestmark = pytest.mark.extra

TEACHER = "t<script>document.title=1</script>&amp;$\\frac$"
STUDENT = "\"><img src=x onerror='document.title=2'><!-- </style>"
FEATURE = "<b>fare</b>"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
KEEP = os.environ.get("PG_DISTILL_SCREENSHOTS")
"""A folder to keep pages and screenshots in, to be looked at."""


class Page(html.parser.HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def hostile(db: psycopg.Connection) -> None:
    """Distil a real teacher whose names are those of an attacker."""
    rows, artifact = survival()
    db.execute(
        f'CREATE TABLE passengers (cabin text, port text, age float8, "{FEATURE}" numeric, survived int, passenger int)'
    )
    with db.cursor().copy("COPY passengers FROM STDIN") as copy:
        for i, (cabin, port, *rest) in enumerate(rows):
            copy.write_row((cabin, port or "<i>odd</i>", *rest, i % 2))
    db.execute(
        "SELECT distill.register_model(%s, %s, features => %s, sample => 'passengers', label => 'survived')",
        (TEACHER, artifact, ["cabin", "port", "age", FEATURE]),
    )
    db.execute(
        "SELECT distill_model(%s, min_accuracy => 0.6, time_budget_s => 8, student_name => %s)",
        (TEACHER, STUDENT),
    )


def test_the_page_holds_the_figures_and_nothing_foreign(db: psycopg.Connection, tmp_path: Path) -> None:
    from pg_distill.cli import report

    hostile(db)
    text = report.render(db, teacher=TEACHER)
    page = Page(text)
    assert {"script", "img", "iframe", "link", "object", "b", "i"} & set(page.tags) == set()
    assert page.handlers == []
    # Self-contained: what is pointed at is on the page.
    assert all(address.startswith("#") for address in page.addresses)
    assert re.findall(r"url\((?!#)", text) == []
    for name in (TEACHER, STUDENT, FEATURE, "<i>odd</i>"):
        assert " ".join(name.split()) in page.text
    assert page.tags.count("svg") == 2  # frontier and calibration
    segments = text[text.index("by segment</h2>") : text.index("<h2>Lineage")]
    assert "<td>port</td>" in segments and "<td>passenger</td>" not in segments  # no feature of the teacher
    for column in ("student_accuracy", "teacher_accuracy", "fidelity"):
        row = db.execute(f"SELECT {column} FROM distill.runs").fetchone()
        assert row is not None and f"{row[0]:.4f}" in page.text
    [candidates, reasons] = db.execute(
        "SELECT count(*), array_agg(DISTINCT reason) FROM distill.candidates"
    ).fetchone() or [0, []]
    assert page.tags.count("tr") > candidates
    assert all(" ".join(reason.split()) in page.text for reason in reasons)
    [digest, processor] = db.execute(
        "SELECT sample_digest, machine->>'processor' FROM distill.runs"
    ).fetchone() or ["", ""]
    assert digest in page.text and " ".join(processor.split()) in page.text
    _look(text, tmp_path)


def _shoot(file: Path, profile: Path, *, dark: bool) -> Any:
    from matplotlib.image import imread

    assert CHROMIUM is not None
    picture = file.with_name("dark.png" if dark else "light.png")
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--window-size=1200,3200",
            f"--screenshot={picture}",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert picture.exists(), done.stderr
    if KEEP:
        shutil.copy(picture, KEEP)
    return np.round(imread(picture)[..., :3] * 255).astype(int)


def _look(text: str, folder: Path) -> None:
    """Open the page in a browser, light and dark: each has its ground, and both models are drawn in their colours."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (package chromium)")
    file = folder / "report.html"
    file.write_text(text, encoding="utf-8")
    if KEEP:
        shutil.copy(file, KEEP)
    for dark, ground in ((False, 0xFFFFFF), (True, 0x14171B)):
        pixels = _shoot(file, folder / f"profile{dark}", dark=dark)
        colors = pixels @ (1 << 16, 1 << 8, 1)
        assert colors[5, 5] == ground
        assert (colors == ground).mean() > 0.5
        for variable in ("teacher", "student"):
            found = re.findall(rf"--{variable}: #([0-9a-f]{{6}})", text)
            color = int(found[dark], 16)
            assert (colors == color).sum() > 100


def test_what_cannot_be_had_is_said(shared: Callable[[], psycopg.Connection]) -> None:
    """A regression has other figures; a stranger's rows are not read."""
    from pg_distill.cli import report

    db = shared()
    text = report.render(db, teacher="diabetes")
    assert "Root mean squared error" in text and "neg_root_mean_squared_error" in text
    [run] = db.execute("SELECT distill.last_run('diabetes')::text").fetchone() or [""]
    db.execute("ALTER TABLE diabetes RENAME TO gone")
    try:
        assert "cannot be asked about again" in report.render(db, run_id=run)
    finally:
        db.execute("ALTER TABLE gone RENAME TO diabetes")
    with pytest.raises(report.UndefinedObject):
        report.render(db, teacher="nobody")
    with pytest.raises(report.UndefinedObject):
        report.render(db, run_id="00000000-0000-0000-0000-000000000000")
    with pytest.raises(errors.UndefinedObject):
        db.execute("SELECT * FROM distill.run_report(gen_random_uuid())")
    with pytest.raises(report.InvalidParameter):
        report.render(db)
    with pytest.raises((report.InvalidParameter, errors.InvalidTextRepresentation)):
        report.render(db, run_id="x")
    assert run in report.render(db, run_id=run)


def test_every_kind_of_run_has_a_page(db: psycopg.Connection) -> None:
    """One with a cascade, one that nothing could be timed in, one whose teacher predicts elsewhere, at no known latency."""
    from pg_distill.cli import report

    load_cancer(db)
    distil = "SELECT distill_model(%s, min_accuracy => 0, time_budget_s => 3, families => %s, target_latency_ms => %s)"
    db.execute(distil, ("cancer", ["linear", "cascade"], 1000.0))
    assert db.execute("SELECT count(*) > 0 FROM distill.candidates WHERE form = 'cascade'").fetchone() == (
        True,
    )
    page = Page(report.render(db, teacher="cancer"))
    assert page.tags.count("svg") == 2 and "cascade" in page.text

    db.execute(distil, ("cancer", ["linear"], 0.0001))
    page = Page(report.render(db, teacher="cancer"))
    assert "Not accepted" in page.text and "not trained" in page.text
    assert "svg" not in page.tags

    db.execute(
        "CREATE TABLE log AS SELECT *, distill.predict('cancer', to_jsonb(c)) AS p FROM cancer c;"
        "SELECT distill.register_logged_model('elsewhere', '{p}', (SELECT array_agg('x' || i) FROM generate_series(0, 29) i),"
        " 'log', 'malignant')"
    )
    db.execute(distil, ("elsewhere", ["linear"], 1000.0))
    page = Page(report.render(db, teacher="elsewhere"))
    assert page.tags.count("svg") == 1  # the frontier
    assert "teacher, latency not known" in page.text and "cannot be asked about again" in page.text


def test_the_command_line_writes_it(
    shared: Callable[[], psycopg.Connection], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pg_distill.cli import connection, main

    info = shared().info
    where = ["--dsn", f"{info.dsn} password={info.password}" if info.password else info.dsn, "--json"]
    file = tmp_path / "cancer.html"
    assert main.main(["report", "cancer", "--output", str(file), *where]) == connection.DONE
    assert json.loads(capsys.readouterr().out) == [{"file": str(file), "bytes": file.stat().st_size}]
    assert "cancer_distilled" in file.read_text(encoding="utf-8")
    if KEEP:
        shutil.copy(file, KEEP)
    [run] = shared().execute("SELECT distill.last_run('cancer')::text").fetchone() or [""]
    again = tmp_path / "run.html"
    assert main.main(["report", "--run", run, "--output", str(again), *where]) == connection.DONE
    assert run in again.read_text(encoding="utf-8")
    assert (
        main.main(["report", "nobody", "--output", str(tmp_path / "none.html"), *where]) == connection.REFUSED
    )
    assert (
        main.main(["report", "cancer", "--output", str(tmp_path / "no" / "x.html"), *where])
        == connection.REFUSED
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cancer.html", "run.html"]
    with pytest.raises(SystemExit) as ended:
        main.main(["report", *where])
    assert ended.value.code == connection.USAGE
