"""Hostile ONNX files end in an answer or an error of ours, and touch no file: the short form of ``make fuzz``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import run

pytestmark = [pytest.mark.slow, pytest.mark.extra]  # `make fuzz` is longer still

INPUTS = 400


def test_no_mutant_crashes_hangs_or_touches_a_file() -> None:
    outcome = run.fuzz([*run.seeds(run.QUICK), *run.text_seeds()], INPUTS, first=1_000_000)
    assert outcome.faults == []
    assert outcome.tried == INPUTS
    # Both ends are reached, or the mutants test nothing but the parser.
    assert outcome.results["accepted"] > INPUTS / 20
    assert len(outcome.results) >= 5


def test_no_mutant_of_a_transformer_does() -> None:
    """Of its graph, its signature, or the tokenizer in its metadata."""
    pytest.importorskip("tokenizers")
    outcome = run.fuzz(run.transformer_seeds(), 120, first=2_000_000)
    assert outcome.faults == []
    assert outcome.tried == 120
    assert len(outcome.results) >= 4


def test_a_trace_shows_what_was_written(tmp_path: Path) -> None:
    log = tmp_path / "trace"
    log.write_text(
        '1 openat(AT_FDCWD, "/usr/lib/x.so", O_RDONLY|O_CLOEXEC) = 3\n'
        '1 openat(AT_FDCWD, "/proc/self/clear_refs", O_WRONLY|O_CREAT, 0666) = 3\n'
        '1 openat(AT_FDCWD, "weights.bin", O_RDWR|O_CREAT, 0666) = 3\n'
        '1 unlink("/tmp/gone") = 0\n'
        '1 mkdir("/tmp/not-made", 0777) = -1 EEXIST (File exists)\n'
    )
    assert run.written(log) == ["/tmp/gone", "weights.bin"]


def test_onnxruntime_keeps_no_record_of_its_use(tmp_path: Path) -> None:
    """It would keep a database of events under the home directory, and send it away."""
    code = (
        "import sys, pg_distill.onnx_model.check as g, pg_distill.onnx_model.derive as d, pg_distill.onnx_model.trial as t\nartifact = sys.stdin.buffer.read()\n"
        "t.trial_run(artifact, d.derive_signature(g.check(artifact)))\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(run.MODULE)}
    [artifact] = run.seeds(run.QUICK[:1])
    subprocess.run(
        [sys.executable, "-c", code], input=artifact, env=environment, cwd=tmp_path, check=True, timeout=120
    )
    assert list(tmp_path.rglob("*")) == []
