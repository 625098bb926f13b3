"""What the demo and the tests need of the system: found, and on Debian and Ubuntu installed. Standard library only.

As a program, for `make test`: packages.py SERVER, with what pytest's --server takes; it installs as root only.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKER_TIMEOUT_S = 15
CLUSTER_SETTINGS = "/etc/postgresql-common/createcluster.conf"
# Else the package starts a server that nobody asked for, at once and with each start of the machine. As .ci/run does it.
NO_CLUSTER = f"""mkdir -p {Path(CLUSTER_SETTINGS).parent}
grep -qs '^create_main_cluster' {CLUSTER_SETTINGS} || echo 'create_main_cluster = false' >> {CLUSTER_SETTINGS}"""
OTHER_SYSTEMS = """\
Neither a Docker engine answers here, nor is this Debian or Ubuntu. Please install, by your system's means,
  PostgreSQL 15 or later with its server, PL/Python (plpython3u) and pg_config,
  the Python that this PL/Python was built with (3.11 or later) and its venv module,
  the OpenMP runtime (libgomp) and make,
or start a Docker engine; then run this again."""


def say(text: str) -> None:
    """Print at once: pip and docker write to the same terminal."""
    print(text, flush=True)


def docker_fault() -> str | None:
    """Say why no Docker engine can be used, or None."""
    if shutil.which("docker") is None:
        return "no docker command"
    try:
        answer = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"],
            capture_output=True,
            text=True,
            timeout=DOCKER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "the Docker engine does not answer"
    if answer.returncode != 0 or not answer.stdout.strip():
        return "no Docker engine answers"
    return None


def run(*command: str) -> None:
    """Run a command in the project's root, its output shown; end with its exit status where it fails."""
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")


def has_venv(python: str) -> bool:
    """Say whether ``python`` is new enough and can make virtual environments."""
    check = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def missing_packages(server: str) -> list[str]:
    """List the Debian packages that are needed and not there."""
    missing = []
    if not has_venv("/usr/bin/python3") and not (server == "docker" and has_venv("python3")):
        missing.append("python3-venv")
    if not glob.glob("/usr/lib/*/libgomp.so.1"):
        missing.append("libgomp1")
    if server == "local":
        servers = sorted(
            (Path(path).parents[1].name for path in glob.glob("/usr/lib/postgresql/*/bin/postgres")),
            key=float,
        )
        if not servers:
            missing.append("postgresql")
        major = servers[-1] if servers else default_major()
        if not Path(f"/usr/lib/postgresql/{major}/lib/plpython3.so").exists():
            missing.append(f"postgresql-plpython3-{major}")
    return missing


def default_major() -> str:
    """Return the major version of the distribution's PostgreSQL; its package lists must be there."""
    listed = subprocess.run(
        ["apt-cache", "depends", "postgresql"], capture_output=True, text=True, check=False
    ).stdout
    for word in listed.split():
        if word.startswith("postgresql-") and word.removeprefix("postgresql-").isdigit():
            return word.removeprefix("postgresql-")
    sys.exit("apt knows no package postgresql: run apt-get update and try again")


def install_packages(server: str) -> None:
    """Install what is missing by apt-get, saying so; elsewhere say what to install."""
    if shutil.which("apt-get") is None:
        if (server == "docker" or shutil.which("postgres")) and has_venv("python3"):
            return
        sys.exit(OTHER_SYSTEMS)
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    if server == "local" and not glob.glob("/usr/lib/postgresql/*/bin/postgres"):
        say("no PostgreSQL server here: reading apt's package lists first (apt-get update)")
        _need_root(as_root, "apt-get update")
        run(*as_root, "apt-get", "update", "-qq")
        say(f"no cluster of the packages' own: create_main_cluster = false in {CLUSTER_SETTINGS}")
        run(*as_root, "sh", "-c", NO_CLUSTER)
    missing = missing_packages(server)
    if not missing:
        return
    say(f"installing Debian packages: {' '.join(missing)}")
    _need_root(as_root, f"apt-get install {' '.join(missing)}")
    install = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "--yes",
               "--no-install-recommends", *missing]  # fmt: skip
    done = _quietly(install)
    if done.returncode != 0:
        say("once more, with new package lists")
        run(*as_root, "apt-get", "update", "-qq")
        done = _quietly(install)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{' '.join(install)} ended with {done.returncode}")


def _quietly(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that says much; its output is kept for when it fails."""
    return subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _need_root(as_root: list[str], command: str) -> None:
    if as_root and shutil.which("sudo") is None:
        sys.exit(f"this needs root: run `{command}` as root, then this again")


def main(server: str) -> None:
    """Install what `make test` needs for a server, as root on Debian and Ubuntu; tell anybody else there what is missing."""
    if shutil.which("apt-get") is None:
        return  # pytest says what servers it found
    if server == "auto":
        server = "local" if docker_fault() else "docker"
    for kind in {"local": ["local"], "all": ["docker", "local"]}.get(server, ["docker"]):
        if os.geteuid() == 0:
            install_packages(kind)
        elif missing := missing_packages(kind):
            sys.exit(
                f"the tests need packages: run `apt-get install {' '.join(missing)}` as root, then this again"
            )


if __name__ == "__main__":
    main(sys.argv[1])
