"""What the documents take for granted: rows of transactions, a teacher's file, and a pooler."""

from __future__ import annotations

import configparser
import contextlib
import functools
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import servers
from docs.snippets import snippets
from psycopg.conninfo import conninfo_to_dict, make_conninfo

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / "extension" / "doc"
ROWS = 4000


@functools.cache
def fraud() -> tuple[list[tuple[object, ...]], bytes]:
    """Made-up transactions, one in six a fraud by a known noisy rule, and a forest trained on the first half as ONNX.

    Only their form is invented; what is measured on them is not.
    """
    from skl2onnx import to_onnx
    from sklearn.ensemble import RandomForestClassifier

    random = np.random.default_rng(11)
    amount = np.exp(random.normal(3.5, 1, ROWS)).round(2)
    hour = random.integers(0, 24, ROWS)
    ratio = random.random(ROWS).round(3)
    risk = np.log(amount) + 2.5 * (hour < 6) + 3 * ratio + random.logistic(size=ROWS) * 0.5
    is_fraud = (risk > np.quantile(risk, 5 / 6)).astype(int)
    x = np.column_stack([amount, hour, ratio]).astype(np.float32)
    half = ROWS // 2
    model = RandomForestClassifier(300, min_samples_leaf=3, random_state=0).fit(x[:half], is_fraud[:half])
    artifact = to_onnx(model, x[:1], target_opset={"": 17, "ai.onnx.ml": 3}).SerializeToString()
    rows = [
        (i, float(a), int(h), float(r), int(f))
        for i, (a, h, r, f) in enumerate(zip(amount, hour, ratio, is_fraud, strict=True), 1)
    ]
    return rows, artifact


COLUMNS = {
    "id": "bigint PRIMARY KEY",
    "amount": "float8",
    "hour": "int",
    "ratio": "float8",
    "is_fraud": "int",
}
FEATURES = ["amount", "hour", "ratio"]


def load_transactions(db: psycopg.Connection) -> None:
    definition = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    db.execute(f"CREATE TABLE transactions ({definition})")
    with db.cursor().copy("COPY transactions FROM STDIN") as copy:
        for row in fraud()[0]:
            copy.write_row(row)
    db.execute("ANALYZE transactions")


def register_fraud(db: psycopg.Connection) -> None:
    load_transactions(db)
    db.execute(
        "SELECT distill.register_model('fraud_detector', %s, features => %s, sample => 'transactions', label => 'is_fraud')",
        (fraud()[1], FEATURES),
    )


def distill_fraud(db: psycopg.Connection) -> None:
    register_fraud(db)
    made = db.execute(
        "SELECT distill_model('fraud_detector', families => '{linear}', patience => 1)"
    ).fetchone()
    assert made is not None and made[0] is not None


def export_reviewer(db: psycopg.Connection, folder: Path) -> None:
    """Write a transformer into a folder, as its library exports one, and load texts that it reads into a table."""
    import json

    from tiny_transformer import POSITIONS, classifier, reviews

    folder.mkdir()
    model = classifier(("negative", "positive")).logits()
    (folder / "model.onnx").write_bytes(model.artifact)
    (folder / "tokenizer.json").write_bytes(model.tokenizer)
    config = {"id2label": dict(enumerate(model.classes)), "max_position_embeddings": POSITIONS}
    (folder / "config.json").write_text(json.dumps(config))
    db.execute("CREATE TABLE reviews (body text, sentiment text)")
    with db.cursor().copy("COPY reviews FROM STDIN") as copy:
        for row in zip(*reviews(200, classes=model.classes), strict=True):
            copy.write_row(row)


def dump_fraud_pipeline(path: Path) -> Any:
    """Write a pipeline fitted on half of the transactions to a joblib file, and return it."""
    import joblib
    import pandas as pd
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    half = pd.DataFrame(fraud()[0][: ROWS // 2], columns=list(COLUMNS))
    model = make_pipeline(StandardScaler(), RandomForestClassifier(300, min_samples_leaf=3, random_state=0))
    model.fit(half[FEATURES], half["is_fraud"])
    joblib.dump(model, path)
    return model


def variables(conninfo: str) -> dict[str, str]:
    """Return a connection string as libpq's variables."""
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
        "dbname": "PGDATABASE",
    }
    return {names[key]: str(value) for key, value in conninfo_to_dict(conninfo).items() if key in names}


@dataclass(frozen=True)
class Pooler:
    """A running PgBouncer: how to reach it, and its version."""

    conninfo: str
    version: tuple[int, ...]

    @property
    def prepares(self) -> bool:
        """Whether it carries prepared statements from one server connection to another."""
        return self.version >= (1, 21)


NEWER = """
FROM debian:trixie-slim
RUN apt-get update && apt-get install --yes --no-install-recommends pgbouncer && rm -rf /var/lib/apt/lists/*
"""
"""The image of a PgBouncer that carries prepared statements, which bookworm's does not."""


@pytest.fixture
def pooler(server: servers.Server, database: str) -> Iterator[Callable[..., Pooler]]:
    """Start PgBouncer in front of the database, with the configuration that the documents show.

    It is this machine's, or, with ``newer``, that of Debian 13 in a container.
    """
    with contextlib.ExitStack() as stack:

        def start(*, newer: bool = False) -> Pooler:
            return stack.enter_context(_pooler(server, database, newer=newer))

        yield start


@contextlib.contextmanager
def _pooler(server: servers.Server, database: str, *, newer: bool) -> Iterator[Pooler]:
    program: str | None
    if newer:
        if fault := servers.available()["pg17"]:
            pytest.skip(f"no container for PgBouncer: {fault}")
        built = subprocess.run(
            ["docker", "build", "--quiet", "--network", "host", "-"],
            input=NEWER, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert built.returncode == 0, built.stderr
        image = built.stdout.strip()
        program = "pgbouncer"
        ask = ["docker", "run", "--rm", "--network", "none", image, program]
    else:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            pytest.skip("no pgbouncer is installed here (Debian's package pgbouncer)")
        ask = [program]
    said = subprocess.run([*ask, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", said)
    assert found is not None
    version = (int(found[1]), int(found[2]))
    (block,) = [s for s in snippets(DOC / "pg_distill-applications.md") if s.file == "pgbouncer.ini"]
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(block.text)
    (shown,) = config["databases"].values()
    known = conninfo_to_dict(server.conninfo(dbname=database))
    given = " ".join(
        f"{key}='{value}'" for key, value in known.items() if key in ("host", "port", "user", "password")
    )
    settings = config["pgbouncer"]
    if version < (1, 21):
        del settings["max_prepared_statements"]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgbouncer-")))
        # A socket of its own, and whoever can reach it is the tests' superuser.
        settings.update(
            {
                "listen_addr": "",
                "unix_socket_dir": str(folder),
                "auth_type": "any",
                "logfile": str(folder / "log"),
            }
        )
        settings.pop("auth_file")
        config["databases"] = {"shop": f"{given} dbname={database} {shown[shown.index('connect_query') :]}"}
        with (folder / "pgbouncer.ini").open("w") as file:
            config.write(file)
        owner = pwd.getpwuid(os.geteuid())
        if owner.pw_uid == 0:  # which PgBouncer refuses to run as
            owner = pwd.getpwnam("postgres")
            for path in (folder, folder / "pgbouncer.ini"):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        command, identity = [program, str(folder / "pgbouncer.ini")], {}
        if newer:
            # It finds its files, and the server's socket where it has one, under the names that they have here.
            places = [str(folder), *(str(v) for k, v in known.items() if k == "host" and str(v)[:1] == "/")]
            options = [option for place in places for option in ("--volume", f"{place}:{place}")]
            options += ["--name", folder.name, "--label", "pg_distill=test", "--network", "host"]
            options += ["--user", f"{owner.pw_uid}:{owner.pw_gid}"]
            command = ["docker", "run", "--rm", *options, image, *command]
        elif os.geteuid() == 0:
            identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
            **identity,  # type: ignore[call-overload]
        )  # fmt: skip

        def end() -> None:
            if newer:  # asked to terminate, it would wait for its clients
                subprocess.run(["docker", "rm", "--force", folder.name], capture_output=True, check=False)
            process.terminate()
            process.wait(timeout=30)

        stack.callback(end)
        conninfo = make_conninfo(
            host=str(folder), port=settings["listen_port"], dbname="shop", user="postgres"
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(conninfo, autocommit=True, prepare_threshold=None).close()
                break
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline or process.poll() is not None:
                    log = folder / "log"
                    raise RuntimeError(f"{error}\n{log.read_text() if log.exists() else ''}") from error
            time.sleep(0.05)
        yield Pooler(conninfo, version)
