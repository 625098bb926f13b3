"""Try hostile ONNX files by the thousand on a persistent child: ``make fuzz``.

Prints how many inputs were tried, what became of them, and whatever should not have: a crash, a hang, an error
without a SQLSTATE, a file outside touched. Exits 1 if there was any. Files are watched in two ways: the mutants ask
for files in a watched folder, any touch of which the kernel reports (inotify), and where strace is installed every
file that the child opens to write, makes, renames or removes is listed. Without strace, --untraced has to say so.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import student_rows
import text_graphs
import text_pipelines
import text_rows
from fuzz.mutation import mutate
from pg_distill.conversion.convert import convert
from text_files import TOKENISERS, text_file

HERE = Path(__file__).resolve().parent
MODULE = HERE.parents[1] / "python"
SEED_BYTES = 24_000  # larger exports have more of the same
HANG_SECONDS = 60.0  # a run is ended after 2 s; a session of an odd graph takes a while to be optimized
IN_ANY = 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200  # modify ... open ... create, delete
QUICK = (
    "sklearn scaled logistic",
    "sklearn random forest",
    "sklearn MLP, 3 classes",
    "sklearn pipeline, logistic",
)
WRITING = re.compile(
    r'\b(?:openat?2?\((?:\w+, )?"(?P<opened>[^"]*)", [^)]*(?:O_WRONLY|O_RDWR|O_CREAT)'
    r'|(?:creat|mkdir|mkdirat|unlink|unlinkat|rename|renameat2?|symlink|symlinkat|link|linkat|truncate)\((?:\w+, )?"(?P<made>[^"]*)")'
)
HARMLESS = ("/proc/self/clear_refs", "/dev/null")  # the former resets the peak of the child's memory


@dataclass
class Outcome:
    """What became of the inputs."""

    tried: int = 0
    results: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    traced: bool = False
    seconds: float = 0.0


class Watch:
    """What the kernel reports of a folder: every file in it that anybody opens, makes, changes or removes."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, bytes(folder), IN_ANY) < 0:
            raise OSError(ctypes.get_errno(), f"{folder} cannot be watched")

    def touched(self) -> list[str]:
        """Return the names that were touched since the last call."""
        try:
            events = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return []
        names, at = [], 0
        while at < len(events):
            *_, length = struct.unpack_from("iIII", events, at)
            names.append(events[at + 16 : at + 16 + length].rstrip(b"\0").decode())
            at += 16 + length
        return names

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._descriptor)


class Child:
    """The process that takes the files."""

    def __init__(self, folder: Path, trace: Path | None) -> None:
        command = [sys.executable, str(HERE / "child.py")]
        if trace is not None:
            command = [
                *("strace", "--follow-forks", "--seccomp-bpf", "--quiet=all", "--output-append-mode"),
                *("--trace=%file", "--output", str(trace), *command),
            ]
        environment = {**os.environ, "PYTHONPATH": str(MODULE), "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=folder, env=environment, bufsize=0, start_new_session=True,
        )  # fmt: skip

    def take(self, artifact: bytes) -> tuple[str, str]:
        """Return what became of ``artifact``; "crashed" or "hung" where there is no answer."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        try:
            request = memoryview(struct.pack("<I", len(artifact)) + artifact)
            while request:
                request = request[requests.write(request) :]
            line = b""
            while not line.endswith(b"\n"):
                if not select.select([answers], [], [], HANG_SECONDS)[0]:
                    return "hung", f"for over {HANG_SECONDS} s"
                part = os.read(answers.fileno(), 1 << 16)
                if not part:
                    return "crashed", f"exit code {self._process.wait()}"
                line += part
        except BrokenPipeError:
            return "crashed", f"exit code {self._process.wait()}"
        result, message = json.loads(line)
        return result, message

    def end(self) -> None:
        """End it, and strace with it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


def seeds(names: Sequence[str] | None = None) -> list[bytes]:
    """Return the exports to mutate: those named, or all small ones of the libraries that are installed."""
    found = []
    for name in names or models.EXPORTERS:
        try:
            artifact = models.exported(name).artifact
        except ImportError as error:
            print(f"without {name}: {error}", file=sys.stderr)
            continue
        if len(artifact) <= SEED_BYTES:
            found.append(artifact)
    return found


def text_seeds() -> list[bytes]:
    """Return files that read texts: operators of strings, a student's own, and converted pipelines."""
    found = list(text_graphs.text_seeds().values())
    found += [text_file(TOKENISERS[name]) for name in ("words", "marks", "pairs")]
    found.append(text_file(TOKENISERS["marks"], TOKENISERS["marks"]))
    tickets = text_rows.tickets(200, "binary")
    found.append(student_rows.make("linear", "binary", bins=0, epochs=1).fit(tickets, tickets).to_onnx())
    try:
        steps = text_pipelines.vectorizers()
        for name in ("everything", "hash of characters", "selected", "two"):
            model = text_pipelines.fitted(steps[name])
            found.append(convert(model, {"body": "string", "y": "integer"}, None, "y").artifact)
    except ImportError as error:
        print(f"without pipelines: {error}", file=sys.stderr)
    return found


def transformer_seeds() -> list[bytes]:
    """Return transformers with their tokenizers: of floats, and of products of bytes."""
    from pg_distill.onnx_model.tokenizer import attach
    from tiny_transformer import classifier

    found = [classifier(), classifier(("a", "b", "c")).logits().quantised()]
    return [attach(model.artifact, model.tokenizer) for model in found]


def operator_seeds() -> list[bytes]:
    """Return the onnx package's own models of single operators: every operator with every attribute."""
    generated = [case.model.SerializeToString() for case in operator_cases()]
    return [artifact for artifact in generated if 0 < len(artifact) <= SEED_BYTES]


def operator_cases() -> list[Any]:
    """Return the onnx package's own tests of single operators, each with a model, inputs and what it makes of them."""
    import numpy as np
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return [case for case in collect_testcases(None) if case.model is not None]


def fuzz(
    material: Sequence[bytes], inputs: int, *, first: int = 0, trace: bool = False, keep: Path | None = None
) -> Outcome:
    """Try the mutants ``first`` ... ``first + inputs``; keep those that found a fault in ``keep``."""
    outcome = Outcome(traced=trace)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pg_distill_fuzz_") as outside, watching(Path(outside)) as watch:
        folder = Path(outside, "watched")
        paths = [
            "canary",
            "./canary",
            "../watched/canary",
            str(folder / "canary"),
            "new-canary",
            str(folder / "new"),
        ]
        log = Path(outside, "trace") if trace else None
        child: Child | None = None
        for number in range(first, first + inputs):
            artifact = mutate(number, material, paths)
            if child is None:
                child = Child(folder, log)
            result, message = child.take(artifact)
            outcome.tried += 1
            if outcome.tried % 1000 == 0:
                print(f"{outcome.tried} tried: {dict(outcome.results)}", file=sys.stderr, flush=True)
            outcome.results[result] += 1
            fault = result in ("crashed", "hung", "none")
            if touched := watch.touched():
                fault, message = True, f"touched {touched}; {message}"
            if fault:
                outcome.faults.append(f"input {number}: {result}: {message}")
                print(outcome.faults[-1], file=sys.stderr, flush=True)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{number}.onnx").write_bytes(artifact)
            if result in ("crashed", "hung"):
                child.end()
                child = None
        if child is not None:
            child.end()
        if log is not None:
            outcome.faults += [f"file written: {path}" for path in written(log)]
    outcome.seconds = time.perf_counter() - started
    return outcome


@contextlib.contextmanager
def watching(outside: Path) -> Iterator[Watch]:
    """Watch a folder with a file in it, after a look at whether the watch sees anything."""
    folder = outside / "watched"
    folder.mkdir()
    (folder / "canary").write_bytes(bytes(64))
    watch = Watch(folder)
    (folder / "canary").read_bytes()
    if "canary" not in watch.touched():
        raise RuntimeError("the watch does not see a file being read")
    yield watch
    watch.close()


def written(log: Path) -> list[str]:
    """Return the files that a trace shows opened for writing, made or removed."""
    found = set()
    for line in log.read_text(errors="replace").splitlines():
        match = WRITING.search(line)
        path = match and (match["opened"] if match["opened"] is not None else match["made"])
        if path and path not in HARMLESS and " = -1 " not in line:
            found.add(path)
    return sorted(found)


def main() -> int:
    """Try as many as asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first mutant; others find other things"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path("build/fuzz"), help="folder for inputs that found a fault"
    )
    parser.add_argument("--untraced", action="store_true", help="watch the folder only, without strace")
    given = parser.parse_args()
    trace = not given.untraced
    if trace and shutil.which("strace") is None:
        parser.error("there is no strace to list the files written: install it, or say --untraced")
    material = [*seeds(), *text_seeds(), *transformer_seeds()]
    # Real exports are few beside the operators' models: as many of either, so that mutants of both reach deep.
    operators = operator_seeds()
    material = material * max(1, len(operators) // len(material)) + operators
    outcome = fuzz(material, given.inputs, first=given.first, trace=trace, keep=given.keep)
    for fault in outcome.faults:
        print(fault)
    print(", ".join(f"{result} {count}" for result, count in outcome.results.most_common()))
    print(
        f"{outcome.tried} inputs tried on {len(set(material))} seeds in {outcome.seconds:.0f} s,"
        f" {'files traced' if trace else 'no strace: files watched only'}; {len(outcome.faults)} faults"
    )
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
