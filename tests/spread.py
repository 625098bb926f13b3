"""Which server runs the tests that any server could run, so that the servers end about together.

A module's tests stay together: what its fixtures make is made once. How long they took is in seconds.txt, which
`--write-seconds` writes anew for the modules that ran; a module that it does not know goes by a hash of its name.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

TABLE = Path(__file__).parent / "seconds.txt"
ANY = "any"

# The last container's process runs the local cluster's tests, too: on few cores one process more makes searches under a time
# limit miss it, and takes as long.
PARTNER = {"local": "pg18"}


def process_of(server: str, chosen: Sequence[str]) -> str:
    """Name the process of xdist that runs a server's tests, by one of its servers."""
    return server if PARTNER.get(server) not in chosen else PARTNER[server]


def read() -> dict[tuple[str, str], float]:
    """Give the seconds of (module, server), where the server is "any" for tests that are spread."""
    rows = [line.split() for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    return {(module, server): float(seconds) for seconds, module, server in rows}


def write(measured: dict[tuple[str, str], float]) -> None:
    """Replace what the table says of the modules that ran."""
    ran = {module for module, _ in measured}
    kept = {key: seconds for key, seconds in read().items() if key[0] not in ran}
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("#")]
    for (module, server), seconds in sorted({**kept, **measured}.items()):
        lines.append(f"{seconds:6.0f}  {module}  {server}")
    TABLE.write_text("\n".join(lines) + "\n")


def spread(candidates: Sequence[str], chosen: Sequence[str]) -> dict[str, str]:
    """Give each module of the table one of the candidates: the longest first, each to the process with the least to do."""
    seconds = read()
    load = dict.fromkeys(candidates, 0.0)
    for (_, server), took in seconds.items():
        if server in chosen and process_of(server, chosen) in load:
            load[process_of(server, chosen)] += took
    places: dict[str, str] = {}
    longest_first = sorted(
        ((took, m) for (m, server), took in seconds.items() if server == ANY), reverse=True
    )
    for took, module in longest_first:
        places[module] = min(candidates, key=load.__getitem__)
        load[places[module]] += took
    return places


def place(module: str, places: dict[str, str], candidates: Sequence[str]) -> str:
    """Give the server of a module's tests that are spread."""
    return places.get(module) or candidates[zlib.crc32(module.encode()) % len(candidates)]
