"""Small faults, each planted by who may write a row, a name, a file or a setting: none of them ends anything but itself."""

from __future__ import annotations

import hashlib
import html
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import servers
from faults.test_attacks_functions import Connect, Role, fails
from sql.test_privilege_matrix import GRANTS
from sql.test_serving import adder, register, value

PYTHON = Path(__file__).resolve().parents[2] / "python"
HOSTILE = "x\x1b[2J\x1b]0;owned\x07\u202eevil\u2066\u200b\x9b31m\x7f\rdone\nforged: ok\u2028z\u00ad"
REGISTER = "SELECT distill.register_sql_model(%s, '0.5 + 0 * x', '{x}', 'SELECT 1.0::float8 AS x', task => 'regression')"


@pytest.fixture
def granted(db: psycopg.Connection, role: Role) -> psycopg.Connection:
    """Give the superuser's session, with mallory and alice, engineers, and root, a distill_admin."""
    for name in ("distill_reader", "distill_predictor", "distill_engineer", "distill_admin"):
        role(name)
    for name, kind in (("mallory", "engineer"), ("alice", "engineer"), ("root", "admin")):
        role(name, grant=[f"distill_{kind}"])
    db.execute(GRANTS.read_text())
    return db


# -- rows of the queue ----------------------------------------------------------------------------------------------


@pytest.fixture
def work(
    server: servers.Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    """Run a role's jobs until none waits: work("mallory") gives what the worker said."""
    from pg_distill.jobs import run
    from pg_distill.jobs import worker as jobs

    monkeypatch.setattr(run, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(run, "BUSY_SECONDS", 0.01)

    def run(user: str) -> list[str]:
        said: list[str] = []
        ended: list[BaseException] = []
        worker = jobs.Worker(
            server.conninfo(dbname=database, user=user, password=user), lease_s=1.0, say=said.append
        )

        def serve() -> None:
            try:
                worker.run(once=True)
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        thread.join(120)
        assert not thread.is_alive()
        assert ended == []
        return said

    return run


GOOD = '{"teacher": "nobody"}'  # which fails by itself: 42704
ARGUMENTS = {
    "null": '{"teacher": null}',
    "a number": '{"teacher": 5}',
    "a list": '{"teacher": ["cancer"]}',
    "an object": '{"teacher": {"a": 1}}',
    "nothing": "{}",
    "deep lists": f'{{"teacher": {"[" * 3000}{"]" * 3000}}}',
    "deep objects": '{"a":' * 2000 + "1" + "}" * 2000,
    "many keys": json.dumps({f"k{i}": i for i in range(60_000)}),
    "a long key": json.dumps({"k" * 500_000: 1}),
    "a long number": f'{{"teacher": "nobody", "seed": {"9" * 6000}}}',
    "an exponent": '{"teacher": "nobody", "seed": 1e400}',
    "beyond bigint": '{"teacher": "nobody", "seed": 9223372036854775808}',
    "true for a number": '{"teacher": "nobody", "epochs": true}',
    "a fraction": '{"teacher": "nobody", "epochs": 1.5}',
    "text for a number": '{"teacher": "nobody", "target_latency_ms": "NaN"}',
    "negative": '{"teacher": "nobody", "max_rows": -1}',
    "text for a list": '{"teacher": "nobody", "families": "linear"}',
    "numbers in a list": '{"teacher": "nobody", "families": [1]}',
    "lists in a list": '{"teacher": "nobody", "families": [["linear"]]}',
    "an empty list": '{"teacher": "nobody", "families": []}',
    "an argument of Python's": '{"self": 1}',
    "a dunder": '{"teacher": "nobody", "__class__": "x"}',
    "a property": '{"teacher": "nobody", "student_families": "x"}',
    "a hostile name": json.dumps({"teacher": HOSTILE}),
    "a long name": json.dumps({"teacher": "t" * 1_000_000}),
    "a hostile student": json.dumps({"teacher": "nobody", "student_name": HOSTILE}),
    "a sample of a number": '{"teacher": "nobody", "sample": 5}',
}
COLUMNS = {
    "attempts": ["2147483647", "-2147483648", "1000000"],
    "takeovers": ["2147483647", "-1", "1000000"],
    "not_before": ["'infinity'", "'-infinity'", "'294276-01-01'", "'4713-01-01 BC'"],
    "submitted_at": ["'infinity'", "'-infinity'", "'294276-01-01'", "'2000-01-02'"],
    "started_at": ["'-infinity'", "'294276-01-01'"],
    "finished_at": ["'infinity'", "'4713-01-01 BC'"],
    "heartbeat_at": ["'infinity'", "'-infinity'", "'294276-01-01'", "'4713-01-01 BC'"],
    "progress": ["'NaN'", "'Infinity'", "-1", "1e-320"],
    "seconds_left": ["'NaN'", "'Infinity'", "-1", "1e308", "1e9"],
    "search_path": [
        "'\"'",
        "'a..b'",
        "''",
        "'no_such_schema'",
        "'\"$user\"'",
        "repeat('a,', 4000)",
        "repeat('x', 1000000)",
    ],
    "worker": ["repeat('w', 10000000)", "E'\\x1b[2J'"],
    "stage": ["repeat('w', 10000000)", "E'\\x1b[2J'"],
    "candidate": ["repeat('w', 10000000)"],
    "summary": ["repeat('w', 10000000)"],
    "error": ["repeat('w', 10000000)"],
    "sqlstate": ["'1'", "'x; drop'", "repeat('9', 1000)"],
}
REFUSED = {"23514", "22003", "22008", "22P02"}


def plant(session: psycopg.Connection, **columns: str) -> str | None:
    """Write a row of the queue whose columns are SQL; give its id, None where the table refuses it."""
    try:
        return str(
            value(
                session,
                f"INSERT INTO distill.job_queue ({', '.join(columns)}) VALUES ({', '.join(columns.values())}) RETURNING run_id",
            )
        )
    except psycopg.Error as error:
        if error.sqlstate not in REFUSED:
            raise
        return None


def planted(session: psycopg.Connection) -> list[tuple[str, str]]:
    """Write every hostile row that the table takes; give what each is, and its id."""
    rows = [
        (what, plant(session, arguments=f"$json${arguments}$json$")) for what, arguments in ARGUMENTS.items()
    ]
    running = {
        "state": "'running'",
        "claim_id": "gen_random_uuid()",
    }  # and its worker has been silent for long
    for column, values in COLUMNS.items():
        for hostile, more in itertools.product(values, ({}, running)):
            row = {"arguments": f"'{GOOD}'", "heartbeat_at": "'2001-01-01'", **more, column: hostile}
            rows.append((f"{column} = {hostile} {list(more)}", plant(session, **row)))
    return [(what, run_id) for what, run_id in rows if run_id is not None]


def test_no_row_of_a_queue_ends_a_worker_or_a_view(
    granted: psycopg.Connection, connect: Connect, work: Callable[[str], list[str]]
) -> None:
    session = connect(user="mallory")
    rows = planted(session)
    assert len(rows) > 40
    last = value(
        session, "INSERT INTO distill.job_queue (arguments) VALUES (%s) RETURNING run_id::text", GOOD
    )
    # Whoever sees them all reads them all.
    asked = (
        "SELECT * FROM distill.jobs",
        "SELECT * FROM distill.metrics",
        "SELECT q::text FROM distill.job_queue q",
    )
    for statement in asked:
        granted.execute(statement).fetchall()  # type: ignore[arg-type]
    said = work("mallory")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", "".join(said))
    for statement in asked:
        granted.execute(statement).fetchall()  # type: ignore[arg-type]
    found = {
        row[0]: row[1:]
        for row in granted.execute("SELECT run_id::text, state, sqlstate, attempts FROM distill.jobs")
    }
    assert found[last] == ("failed", "42704", 1)
    wrong = {
        what: found[run_id] for what, run_id in rows if found[run_id][0] != "failed" or not found[run_id][1]
    }
    assert wrong == {}
    by_argument = {what: found[run_id][1] for what, run_id in rows if what in ARGUMENTS}
    assert len(by_argument) > 20
    assert {state for what, state in by_argument.items() if "name" not in what and "student" not in what} == {
        "22023"
    } | ({"22004"} if by_argument["null"] == "22004" else set())


@pytest.mark.parametrize("what", ["deep lists", "deep objects", "many keys", "a long number"])
def test_nor_what_the_table_would_not_hold(what: str) -> None:
    from pg_distill.errors import InvalidParameter
    from pg_distill.jobs.run import options_of
    from pg_distill.registry.queue import Job

    with pytest.raises(InvalidParameter) as caught:
        options_of(Job("id", ARGUMENTS[what], "", "claim", 1))
    assert len(str(caught.value)) < 1000


def test_nor_a_session_that_runs_its_next_job(granted: psycopg.Connection, connect: Connect) -> None:
    session = connect(user="mallory")
    rows = planted(session)
    granted.execute(
        "SELECT pg_sleep_until(pg_postmaster_start_time() + interval '16 s')"
    )  # a lease begins with the server
    for _ in range(2 * len(rows)):
        if value(session, "SELECT distill.run_next_job()") is None:
            break
    left = granted.execute("SELECT state, count(*) FROM distill.jobs GROUP BY state").fetchall()
    assert left == [("failed", len(rows))]


@pytest.mark.extra
def test_what_a_failed_job_says_is_recorded_whatever_it_is(
    granted: psycopg.Connection, connect: Connect, work: Callable[[str], list[str]]
) -> None:
    """Its author chooses its sample's errors, and their SQLSTATEs: one that says "busy" for ever stands back behind others."""
    session = connect(user="mallory")
    granted.execute("GRANT CREATE ON SCHEMA public TO mallory")
    session.execute(REGISTER, ("m",))
    session.execute(
        "CREATE FUNCTION says(state text, message text) RETURNS float8 LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION USING ERRCODE = state, MESSAGE = message; END$$"
    )
    made = {}
    for state in ("P0001", "40001", "53200", "57014", "58000", "08006", "XX000"):
        made[state] = value(
            session,
            "SELECT distill.submit('m', sample => format('SELECT says(%%L, %%L) AS x', %s::text, %s::text || repeat('long ', 100000)))",
            state,
            HOSTILE,
        )
    busy = value(session, "SELECT distill.submit('m', sample => 'SELECT says(''53400'', ''busy'') AS x')")
    last = value(session, "INSERT INTO distill.job_queue (arguments) VALUES (%s) RETURNING run_id", GOOD)
    granted.execute(
        "CREATE FUNCTION enough() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.sqlstate = '53400' AND EXISTS"
        " (SELECT FROM distill.job_queue q WHERE q.sqlstate = '42704') THEN NEW.not_before := '8000-01-01'; END IF; RETURN NEW; END$$;"
        "CREATE TRIGGER z BEFORE UPDATE ON distill.job_queue FOR EACH ROW EXECUTE FUNCTION enough()"
    )
    work("mallory")
    found = {
        row[0]: row[1:]
        for row in granted.execute(
            "SELECT run_id, state, sqlstate, attempts, octet_length(error) FROM distill.jobs"
        )
    }
    assert found[last][:2] == ("failed", "42704")
    assert found[busy][:2] == ("queued", "53400")
    for state, run_id in made.items():
        assert found[run_id][:2] == ("failed", state)
        assert found[run_id][2] <= 3 and found[run_id][3] < 100_000


# -- what a terminal is shown ---------------------------------------------------------------------------------------


@pytest.fixture
def run(server: servers.Server, database: str, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run pg-distill in a folder of its own: run("models", user="alice") gives its exit code, stdout and stderr."""

    def command(
        *arguments: str | bytes, dsn: str | None = None, environment: dict[str, str] | None = None
    ) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "pg_distill.cli", *arguments, *(["--dsn", dsn] if dsn is not None else [])],
            env={**os.environ, "PYTHONPATH": str(PYTHON), "LC_ALL": "C.UTF-8", **connection, **(environment or {})},
            cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, timeout=100, check=False,
        )  # fmt: skip
        out, said = done.stdout.decode(errors="surrogateescape"), done.stderr.decode(errors="surrogateescape")
        assert "Traceback" not in said, said
        return done.returncode, out, said

    parts = psycopg.conninfo.conninfo_to_dict(server.conninfo(dbname=database))
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
        "dbname": "PGDATABASE",
    }
    connection = {names[key]: str(part) for key, part in parts.items() if key in names}
    return command


def unseen(text: str) -> set[str]:
    return {
        c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn")
    }


def test_a_terminal_is_shown_nothing_that_it_obeys(
    db: psycopg.Connection, run: Callable[..., tuple[int, str, str]]
) -> None:
    db.execute(REGISTER, ("m",))
    db.execute("ALTER TABLE distill.models DISABLE TRIGGER USER")
    db.execute(
        "ALTER TABLE distill.models DROP CONSTRAINT models_name_check, DROP CONSTRAINT models_version_check"
    )
    db.execute(
        "UPDATE distill.models SET name = %s, version = %s, metric = %s, task = 'regression'",
        (HOSTILE, HOSTILE, HOSTILE),
    )
    db.execute("CREATE TABLE hostile AS SELECT 'a'::text AS key, %s::text AS t, 1.0::float8 AS x", (HOSTILE,))
    db.execute(
        "INSERT INTO distill.job_queue (arguments, state, stage, error, sqlstate) VALUES (%s, 'failed', %s, %s, '42704')",
        (json.dumps({"teacher": HOSTILE.replace("\0", "")}), HOSTILE, HOSTILE),
    )
    ran = {
        ("models",): 0,
        ("jobs",): 0,
        ("frontier",): 0,
        ("runs",): 0,
        ("prune", "--keep-versions", "0"): 0,
        ("predict", HOSTILE, "--features", "1"): 1,
        ("predict", "m", "--query", f"SELECT {HOSTILE}", "--key", "x"): 1,
        ("check", HOSTILE): 1,
        ("export", HOSTILE): 1,
        ("import", HOSTILE): 1,
        ("register", HOSTILE, "no.onnx"): 1,
        ("distill", HOSTILE): 1,
        ("cancel", HOSTILE): 1,
        ("report", HOSTILE): 1,
        (HOSTILE,): 2,
        ("models", "--" + HOSTILE.replace(" ", "")): 2,
        ("models", "--dsn", f"host=/nowhere/{HOSTILE}"): 2,
    }
    seen = ""
    for arguments, code in ran.items():
        for more in ((), ("--json",)):
            found, out, said = run(*arguments, *more)
            assert (arguments, found) == (arguments, code), said
            assert unseen(out + said) == set(), (arguments, out, said)
            assert all(line.startswith(("pg-distill", "usage", "  ")) for line in said.splitlines()), said
            if more and code == 0:
                json.loads(out)
            seen += out
    assert "\\x1b" in seen and "\\u202e" in seen  # it was there to be shown


def test_a_progress_bar_draws_no_name_that_moves_the_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from pg_distill.cli import terminal

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = terminal.Bar(10.0)
    bar.take("screen", 0.5, HOSTILE, 5.0)
    bar.draw()
    bar.draw((HOSTILE, 0.5, HOSTILE, 1.0))
    drawn = capsys.readouterr().err.replace("\r\x1b[K", "")
    assert unseen(drawn) == set() and "\\x1b[2J" in drawn


def test_a_notice_of_several_lines_forges_none_of_ours(capsys: Any) -> None:
    from pg_distill.cli import terminal

    terminal.warn("a\npg-distill: all is well\r\x85pg-distill: yes")
    assert [line.startswith(" ") for line in capsys.readouterr().err.splitlines()] == [
        False,
        True,
        True,
        True,
    ]


def test_a_terminal_without_the_letters_is_no_fault(
    db: psycopg.Connection, run: Callable[..., tuple[int, str, str]]
) -> None:
    db.execute(REGISTER, ("модель",))
    code, out, _ = run("models", environment={"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert code == 0 and "\\u043c" in out


def test_arguments_that_are_no_text(db: psycopg.Connection, run: Callable[..., tuple[int, str, str]]) -> None:
    for arguments in (
        ("models", b"\xff\xfe"),
        ("predict", b"\xff", "--features", "1"),
        ("distill", b"m\xff"),
    ):
        code, out, said = run(*arguments)
        assert code == 2 and out == "" and said.count("\n") == 1
    code, _, said = run("import", b"no\xff.json")  # a file may be called so
    assert code == 1 and said.count("\n") == 1 and unseen(said) == set()


DSNS = ["nonsense", "host", "password=two words", "postgresql://u:s3cret@h:port/d", "postgresql://u:s3cret@h/d?nonsense=s3cret",
        "hots=x password=s3cret", "host='unterminated s3cret", "port=99999999", "\x1b[2J"]  # fmt: skip


def test_a_connection_string_that_is_none_is_not_repeated(
    run: Callable[..., tuple[int, str, str]],
) -> None:
    for dsn in DSNS:
        code, out, said = run("models", dsn=dsn)
        assert code in (2, 3) and out == "" and unseen(said) == set()
        assert "s3cret" not in said and "words" not in said and "None" not in said, said


# -- files ----------------------------------------------------------------------------------------------------------

ONNX = adder(1)
MANIFEST: dict[str, Any] = {
    "format": 1,
    "name": "m",
    "version": "1",
    "kind": "onnx",
    "task": "regression",
    "features": ["x"],
    "kinds": ["number"],
    "classes": None,
    "sha256": hashlib.sha256(ONNX).hexdigest(),
    "onnx": "m.onnx",
}


def without(key: str) -> str:
    return json.dumps({name: value for name, value in MANIFEST.items() if name != key})


def with_(**changed: Any) -> str:
    return json.dumps({**MANIFEST, **changed})


MANIFESTS = {
    "empty": "",
    "binary": "\x00\x01",
    "half": with_()[:40],
    "a list": "[]",
    "null": "null",
    "a text": '"format"',
    "a number": "1",
    "deep": "[" * 100_000,
    "deep objects": '{"format":' * 50_000,
    "a long number": f'{{"format": {"9" * 5000}}}',
    **{f"without {key}": without(key) for key in MANIFEST if key != "kind"},
    "another format": with_(format=2),
    "format as text": with_(format="1"),
    "format true": with_(format=True),
    "format 1.0": with_(format=1.0),
    "format huge": with_(format=10**30),
    "name of a number": with_(name=5),
    "name of NUL": with_(name="a\0b"),
    "name of a surrogate": with_(name="\ud800"),
    "version null": with_(version=None),
    "task unknown": with_(task="magic"),
    "task of a list": with_(task=["regression"]),
    "features of a text": with_(features="x"),
    "features of numbers": with_(features=[1]),
    "features null": with_(features=None),
    "features of NUL": with_(features=["\0"]),
    "more kinds": with_(kinds=["number", "number"]),
    "kinds of an object": with_(kinds={"string": 1}),
    "kinds of a number": with_(kinds=7),
    "classes of a text": with_(classes="ab"),
    "classes of lists": with_(classes=[["a"], ["b"]]),
    "digest of a number": with_(sha256=1),
    "digest short": with_(sha256="00"),
    "digest of another": with_(sha256="0" * 64),
    "file null": with_(onnx=None),
    "file empty": with_(onnx=""),
    "file of a number": with_(onnx=1),
    "file of a list": with_(onnx=["m.onnx"]),
    "file above": with_(onnx="../m.onnx"),
    "file elsewhere": with_(onnx="/etc/passwd"),
    "file in a folder": with_(onnx="sub/m.onnx"),
    "the folder": with_(onnx="."),
    "the folder above": with_(onnx=".."),
    "file of NUL": with_(onnx="m.onnx\0"),
    "file missing": with_(onnx="no.onnx"),
    "file too long": with_(onnx="m" * 5000),
    "a link": with_(onnx="link.onnx"),
    "a pipe": with_(onnx="pipe.onnx"),
    "a device": with_(onnx="zero.onnx"),
    "a folder": with_(onnx="sub"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with an exported file, and with what is none."""
    path = tmp_path_factory.mktemp("exported")
    (path / "m.onnx").write_bytes(ONNX)
    (path / "sub").mkdir()
    (path / "sub" / "m.onnx").write_bytes(ONNX)
    (path / "link.onnx").symlink_to(path / "m.onnx")
    (path / "zero.onnx").symlink_to("/dev/zero")
    os.mkfifo(path / "pipe.onnx")
    return path


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_is_none_is_a_sentence(folder: Path, kind: str, capsys: Any) -> None:
    from pg_distill.cli import main

    manifest = folder / "m.json"
    manifest.write_text(MANIFESTS[kind], errors="surrogatepass")
    assert main.main(["import", str(manifest), "--dsn", "host=/nowhere"]) == 1
    out, said = capsys.readouterr()
    assert out == "" and said.count("\n") == 1 and re.search(r"\((22P03|22023)\)$", said.strip()), said


def test_a_manifest_of_export_is_taken(folder: Path, capsys: Any) -> None:
    from pg_distill.cli import main

    (folder / "m.json").write_text(with_())
    assert (
        main.main(["import", str(folder / "m.json"), "--dsn", "host=/nowhere"]) == 3
    )  # as far as the server


@pytest.mark.parametrize("what", ["/dev/zero", "a folder", "nothing"])
def test_a_file_without_end_is_not_read_to_its_end(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pg_distill.cli import terminal
    from pg_distill.errors import PgDistillError

    path = {"/dev/zero": Path("/dev/zero"), "a folder": tmp_path, "nothing": tmp_path / "no"}[what]
    with pytest.raises(PgDistillError) as caught:
        terminal.read_file(path, 1 << 20)
    assert caught.value.sqlstate == ("54000" if what == "/dev/zero" else "22023")


def test_what_is_written_goes_through_nobodys_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the file is to be nor beside it, whatever another user of the folder has put there."""
    from pg_distill.cli import terminal

    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "report.html").symlink_to(victim)
    (tmp_path / f".report.html.{os.getpid()}").symlink_to(victim)
    monkeypatch.setattr("secrets.token_hex", lambda count: "00")
    terminal.write_file(tmp_path / "report.html", b"page")
    assert (victim.read_text(), (tmp_path / "report.html").read_text()) == ("kept", "page")
    (tmp_path / ".pg_distill.00").symlink_to(victim)
    with pytest.raises(Exception, match="cannot be written"):
        terminal.write_file(tmp_path / "report.html", b"other")
    assert victim.read_text() == "kept"


def test_files_of_an_export_have_names_that_are_no_options_and_no_others() -> None:
    from pg_distill.cli.terminal import file_stem

    names = [
        "fraud",
        "-rf",
        "--",
        ".",
        "..",
        "../up",
        "a b",
        "a_b",
        "a/b",
        "a\\b",
        "*",
        "~",
        "$(x)",
        "\x1b",
        "модель",
    ]
    stems = [file_stem(name, "1") for name in names]
    assert file_stem("fraud", "1") == "fraud-1"
    assert len(set(stems)) == len(names)
    assert all(re.fullmatch(r"\w[\w.-]*", stem) and Path(stem).name == stem for stem in stems)


def test_a_model_card_shows_names_as_they_are(
    db: psycopg.Connection, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    name = "<b>![x](//evil)`&amp;#"
    query = "SELECT 1.0::float8 AS x /* `` <script> ```\n# Heading\n| table */"
    db.execute(
        "SELECT distill.register_sql_model(%s, '0.5 + 0 * x', '{x}', %s, task => 'regression')", (name, query)
    )
    code, out, said = run("export", name, "--json")
    assert code == 0, said
    [card] = [
        Path(tmp_path / row["file"]).read_text() for row in json.loads(out) if row["file"].endswith(".md")
    ]
    outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"\\.", "", card))
    assert not re.search(r"[<\[|]|^# Heading", outside, re.MULTILINE), outside
    assert "# Heading" in card


def test_a_forged_run_is_shown_or_refused(
    db: psycopg.Connection, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """A page with markup, turned text or figures of other kinds, in every column that takes them."""
    evil = f"<script>alert(1)</script>{HOSTILE}"
    columns = dict(
        db.execute(
            "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = 'distill.runs'::regclass AND attnum > 0"
            " AND NOT attisdropped"
        ).fetchall()  # type: ignore[arg-type]
    )
    for figures in ("{}", "[]", '"x"', '{"teacher": [], "student": 5}', '{"teacher": {"metrics": 1}}'):
        values: dict[str, Any] = {}
        for column, kind in columns.items():
            if kind == "jsonb":
                values[column] = (
                    figures if column == "figures" else json.dumps({"target_latency_ms": evil, "label": evil})
                )
            elif kind == "text":
                values[column] = evil
            elif kind in ("double precision", "bigint"):
                values[column] = 1
        values |= {"run_id": "00000000-0000-0000-0000-000000000001", "accepted": True, "latency_declared": True,
                   "started_at": "2026-01-01", "teacher_id": None, "student_id": None}  # fmt: skip
        values = {key: v for key, v in values.items() if key != "owner"}
        db.execute("DELETE FROM distill.runs")
        db.execute(
            f"INSERT INTO distill.runs ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))})",  # type: ignore[arg-type]
            list(values.values()),
        )
        code, _, said = run("report", "--run", str(values["run_id"]), "--output", "page.html")
        assert code in (0, 1) and unseen(said) == set(), said
        if code == 0:
            page = (tmp_path / "page.html").read_text()
            assert "<script>alert" not in page and unseen(html.unescape(page)) - {"\t"} == set()


# -- names ----------------------------------------------------------------------------------------------------------

NAMES = {
    "right to left": "fraud\u202eedoc",
    "an isolate": "\u2066fraud\u2069",
    "a mark of direction": "fraud\u200f",
    "zero width": "fr\u200baud",
    "a joiner": "fr\u200daud",
    "a soft hyphen": "fr\u00adaud",
    "a byte order mark": "\ufefffraud",
    "a variation selector": "fraud\ufe0f",
    "a variation selector of plane 14": "fraud\U000e0101",
    "a tag": "fraud\U000e0061",
    "a grapheme joiner": "fr\u034faud",
    "a filler": "fraud\u3164",
    "Braille's blank": "fraud\u2800",
    "a line separator": "fraud\u2028x",
    "a paragraph separator": "fraud\u2029x",
    "a control of C1": "fraud\x9bx",
    "delete": "fraud\x7f",
    "private use": "fraud\ue000",
    "not assigned": "fraud\U000e0fff",
    "a blank before": " fraud",
    "a blank after": "fraud ",
    "two blanks": "fraud  model",
    "a no-break space": "fraud\u00a0model",
    "a wide space": "fraud\u3000model",
    "decomposed": "cafe\u0301",
    "full width": "\uff46raud",
    "mathematical": "\U0001d41fraud",
    "a ligature": "\ufb01le",
    "Cyrillic in Latin": "fr\u0430ud",
    "Greek in Latin": "m\u03bfdel",
    "Armenian in Latin": "m\u0585del",
    "Cherokee in Latin": "\u13aabc",
    "many marks": "a" + "\u0335\u0336\u0337\u0338",
    "a mark alone": "\u0336fraud",
    "a colon": "fraud:1",
    "64 bytes": "f" * 64,
    "nothing": "",
}
FINE = [
    "fraud",
    "Fraud model 2.1",
    "модель",
    "λ-model",
    "نموذج_v2",
    "モデルv2",
    "한국어 모델",
    "क्षेत्र",
    "naïve",
    "a-b_c.d/e",
    "'; drop",
    "Ünïcode",
]


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_that_is_seen_as_another_is_refused(kind: str) -> None:
    from pg_distill.errors import InvalidName
    from pg_distill.registry.model import check_name
    from pg_distill.runs.options import Options

    for check in (
        check_name,
        lambda name: check_name(name, "version"),
        lambda name: Options(teacher="t", student_name=name),
    ):
        with pytest.raises(InvalidName) as caught:
            check(NAMES[kind])  # type: ignore[operator]
        assert unseen(str(caught.value)) == set()


@pytest.mark.parametrize("name", FINE)
def test_names_of_all_alphabets_are_fine(name: str) -> None:
    from pg_distill.registry.model import check_name

    assert check_name(name) == name


def test_names_are_checked_by_every_way_in(granted: psycopg.Connection, connect: Connect) -> None:
    mallory = connect(user="mallory")
    granted.execute(REGISTER, ("fraud",))
    bad = NAMES["right to left"]
    fails(mallory, "42602", REGISTER, bad)
    fails(
        mallory,
        "42602",
        "SELECT distill.register_model(%s, %s, features => '{x}', task => 'regression')",
        bad,
        ONNX,
    )
    fails(
        mallory,
        "42602",
        "SELECT distill.register_sql_model('m', '0.5 + 0 * x', '{x}', 'SELECT 1.0::float8 AS x', version => %s)",
        bad,
    )
    fails(mallory, "42602", "SELECT distill.submit('fraud', student_name => %s)", bad)
    fails(mallory, "42602", "SELECT distill_model('fraud', student_name => %s)", bad)


def test_no_name_is_seen_as_another_roles(granted: psycopg.Connection, connect: Connect) -> None:
    alice, mallory = connect(user="alice"), connect(user="mallory")
    for name in ("fraud", "Model_1O", "copy"):
        alice.execute(REGISTER, (name,))
    for name in ("Fraud", "FRAUD", "mode1_10", "model_lo", "сору", "ϲopy", "\u0131\u0131".join(["x", "y"])):
        if name.startswith("x"):
            mallory.execute(REGISTER, (name,))  # seen as nobody's
        else:
            fails(mallory, "42602", REGISTER, name)
    alice.execute(REGISTER, ("Fraud",))  # her own
    mallory.execute(REGISTER, ("fraud2",))


def test_models_of_other_names_go_on(db: psycopg.Connection) -> None:
    """What an older release has let in is used, activated, restored and dropped."""
    name = "old\u202e name\u200b "
    register(db, 1, "m")
    db.execute("ALTER TABLE distill.models DISABLE TRIGGER protect_model")
    db.execute("UPDATE distill.models SET name = %s", (name,))
    db.execute("ALTER TABLE distill.models ENABLE TRIGGER protect_model")
    copied = db.execute("SELECT m::text FROM distill.models m").fetchone()
    assert value(db, "SELECT distill.predict(%s, '{1}'::float8[])", name) == 2
    assert value(db, "SELECT distill.activate_model(%s, '1')", name) is not None
    assert (
        value(db, "SELECT distill.create_function(%s, 'old_one')::text", name) == "old_one(double precision)"
    )
    db.execute("SELECT distill.drop_model(%s)", (name,))
    assert value(db, "SELECT count(*) FROM distill.models") == 0
    db.execute("INSERT INTO distill.models SELECT (%s::distill.models).*", copied)  # as a restore does
    assert value(db, "SELECT distill.predict(%s, '{1}'::float8[])", name) == 2


# -- settings -------------------------------------------------------------------------------------------------------

DASK = "dask://evil.example.com:8786"


def test_an_administrator_names_no_scheduler(granted: psycopg.Connection, connect: Connect) -> None:
    root = connect(user="root")
    root.execute("SELECT distill.change_setting('trainer_threads', '1')")
    for statement in (
        f"SELECT distill.change_setting('executor', '{DASK}')",
        "SELECT distill.change_setting('executor', 'local')",
        "SELECT distill.change_setting('executor', NULL)",
        f"INSERT INTO distill.settings (name, value) VALUES ('executor', '{DASK}')",
        f"UPDATE distill.settings SET name = 'executor', value = '{DASK}'",
        f"INSERT INTO distill.settings (name, value) VALUES ('trainer_threads', '1') ON CONFLICT (name) DO UPDATE SET name = 'executor', value = '{DASK}'",
    ):
        fails(root, "42501", statement)
    granted.execute(f"SELECT distill.change_setting('executor', '{DASK}')")
    for statement in (
        "DELETE FROM distill.settings",
        "UPDATE distill.settings SET name = 'trainer_threads' WHERE name = 'executor'",
        "SELECT distill.change_setting('executor', NULL)",
    ):
        fails(root, "42501", statement)
    assert value(granted, "SELECT value FROM distill.settings WHERE name = 'executor'") == DASK
    fails(root, "42501", "TRUNCATE distill.settings")
    fails(root, "42501", "ALTER TABLE distill.settings DISABLE TRIGGER check_setting")


def test_no_setting_takes_what_it_does_not_mean(granted: psycopg.Connection, connect: Connect) -> None:
    root = connect(user="root")
    for hostile in ("x", "", "-1", "1e3", "99999999999999999999", " 2", "0x10", "\u0663", "2\n", HOSTILE):
        for statement in (
            "SELECT distill.change_setting('trainer_threads', %s)",
            "INSERT INTO distill.settings (name, value) VALUES ('session_cache_mb', %s)",
            "INSERT INTO distill.settings (name, value) VALUES (%s, '1')",
        ):
            fails(root, "22023", statement, hostile)
        # A superuser, who restores, may write anything: it is named where it is needed, and taken back.
        granted.execute(
            "INSERT INTO distill.settings (name, value) VALUES ('trainer_threads', %s)", (hostile,)
        )
        fails(granted, "55000", "SELECT * FROM distill.show_settings()")
        root.execute("SELECT distill.change_setting('trainer_threads', NULL)")
    granted.execute("SELECT * FROM distill.show_settings()")


# -- processes ------------------------------------------------------------------------------------------------------

BY_MODEL = "SELECT distill.register_model(%s, %s, features => %s, sample => %s, task => 'regression')"
HOLD = """
import fcntl, os, struct, sys, time
descriptor = os.open(sys.argv[1] + "/pg_distill.places", os.O_RDWR | os.O_CREAT, 0o600)
for byte in range(1024, 1024 + 64):
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_WRLCK, 0, byte, 1, 0))
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def test_the_children_of_a_server_are_few(
    granted: psycopg.Connection, connect: Connect, server: servers.Server
) -> None:
    """Whatever is asked for at once, by whom: six registrations are not six processes."""
    granted.execute("SELECT distill.change_setting('inspection_memory_mb', '1024')")
    sessions = [connect(user=user) for user in ("mallory", "alice", "root") * 2]
    failed: list[BaseException] = []

    def register_one(session: psycopg.Connection, number: int) -> None:
        try:
            session.execute(BY_MODEL, (f"m{number}", ONNX, ["x"], "SELECT 1.0::float8 AS x"))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=register_one, args=(s, n)) for n, s in enumerate(sessions)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        children = [p for p in server.processes("-m pg_distill.child.workshop") if p.state != "Z"]
        most = max(most, len(children))
        assert sum(p.rss_bytes for p in children) < 2 * 1024 << 20
    assert failed == []
    assert 1 <= most <= 2
    assert value(granted, "SELECT count(*) FROM distill.models") == 6


@pytest.mark.parametrize("features", [["x"], None])
def test_no_place_is_held_while_a_sample_runs(
    granted: psycopg.Connection, connect: Connect, features: list[str] | None
) -> None:
    """Or one role would keep all others from registering, and from predicting after a restore."""
    granted.execute("SELECT distill.change_setting('concurrent_inspections', '1')")
    granted.execute(
        "CREATE FUNCTION slow() RETURNS float8 LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_sleep(60); RETURN 1; END$$"
    )
    slow = connect(user="mallory")

    def hang() -> None:
        with suppress(psycopg.Error):
            slow.execute(BY_MODEL, ("slow", ONNX, features, "SELECT slow() AS x"))

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        busy = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        deadline = time.monotonic() + 60
        while not value(granted, busy):
            assert time.monotonic() < deadline and thread.is_alive()
            time.sleep(0.1)
        granted.execute("SET statement_timeout = '25 s'")
        register(granted, 1, "quick")
        assert value(granted, busy) == 1
    finally:
        slow.cancel_safe()
        thread.join()


def test_who_waits_for_a_place_can_be_interrupted(
    granted: psycopg.Connection, connect: Connect, server: servers.Server
) -> None:
    directory = value(granted, "SELECT current_setting('data_directory')")
    holder = threading.Thread(target=lambda: server.run("python3", "-c", HOLD, directory, "8"))
    holder.start()
    session = connect(user="mallory")
    session.execute("SELECT distill.show_settings()")  # the module is loaded
    session.execute("SET statement_timeout = '700 ms'")
    deadline = time.monotonic() + 7
    while True:  # until the places are held
        started = time.monotonic()
        with suppress(psycopg.errors.QueryCanceled), session.transaction(force_rollback=True):
            session.execute(BY_MODEL, ("m", ONNX, ["x"], None))
        took = time.monotonic() - started
        if took >= 0.7:
            break
        assert time.monotonic() < deadline
    assert took < 1.7
    session.execute("SET statement_timeout = 0")
    session.execute(BY_MODEL, ("m", ONNX, ["x"], None))  # as soon as there is one
    holder.join()


def test_who_has_waited_for_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pg_distill.errors import TooManyInspections
    from pg_distill.onnx_model.signature import OutputSpec, Signature
    from pg_distill.registry import places
    from pg_distill.serving import approval

    class Nothing:
        interrupts = 0

        def query_exact(self, sql: str, *arguments: object) -> list[dict[str, object]]:
            return []

        query = query_exact

        def check_interrupts(self) -> None:
            self.interrupts += 1

    db: Any = Nothing()
    monkeypatch.setattr(places, "take", lambda first, count: None)
    monkeypatch.setattr(approval, "WAIT_SECONDS", 0.2)
    with pytest.raises(TooManyInspections), approval.inspector(db):
        pass
    assert db.interrupts >= 2
    # Another session has had it checked meanwhile: no child is started.
    found = iter([None, None, places.Place(-1)])
    cost: Any = object()
    signature: Any = Signature((), (), OutputSpec("", "value", 1, "float64"), "regression", ())
    monkeypatch.setattr(places, "take", lambda first, count: next(found))
    monkeypatch.setattr(approval, "Trainer", lambda *given: pytest.fail("a child was started"))
    monkeypatch.setattr(
        "pg_distill.registry.checked.costs_meanwhile", lambda db, ids: dict.fromkeys(ids, cost)
    )
    [approved] = approval.approve_registered(db, {"id": (b"", signature)})
    assert approved.cost is cost


def test_sessions_that_open_one_restored_model_have_it_checked_and_answer(
    granted: psycopg.Connection, connect: Connect
) -> None:
    register(granted, 1, "m")
    granted.execute(
        "DELETE FROM distill.checked; SELECT distill.change_setting('concurrent_inspections', '1')"
    )
    answers: list[Any] = []

    def ask(session: psycopg.Connection) -> None:
        answers.append(value(session, "SELECT distill.predict('m', '{1}'::float8[])"))

    threads = [
        threading.Thread(target=ask, args=(connect(user=user),)) for user in ("mallory", "alice", "root") * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [2.0] * 6
