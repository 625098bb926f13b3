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


Key = tuple[str, str, str]
"""A module, its server or "any" for tests that are spread, and the tier: "test" or "extra"."""


def read() -> dict[Key, float]:
    """Give how long each took, in seconds."""
    rows = [line.split() for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    return {(module, server, tier): float(seconds) for seconds, module, server, tier in rows}


def write(measured: dict[Key, float]) -> None:
    """Replace what the table says of the modules and tiers that ran."""
    ran = {(module, tier) for module, _, tier in measured}
    kept = {key: seconds for key, seconds in read().items() if (key[0], key[2]) not in ran}
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("#")]
    part = TABLE.with_suffix(".part")
    for (module, server, tier), seconds in sorted({**kept, **measured}.items()):
        lines.append(f"{seconds:6.0f}  {module}  {server}  {tier}")
    part.write_text("\n".join(lines) + "\n")
    part.replace(TABLE)


def spread(candidates: Sequence[str], chosen: Sequence[str]) -> dict[str, str]:
    """Give each module of the table one of the candidates: the longest first, each to the process with the least to do.

    Tier by tier, as each runs by itself.
    """
    places: dict[str, str] = {}
    for tier in ("test", "extra"):
        load = dict.fromkeys(candidates, 0.0)
        free = []
        for (module, server, of), took in read().items():
            where = places.get(module) if server == ANY else server
            if of != tier:
                continue
            if where is None:
                free.append((took, module))
            elif where in chosen and (process := process_of(where, chosen)) in load:
                load[process] += took
        for took, module in sorted(free, reverse=True):
            places[module] = min(candidates, key=load.__getitem__)
            load[places[module]] += took
    return places


def place(module: str, places: dict[str, str], candidates: Sequence[str]) -> str:
    """Give the server of a module's tests that are spread."""
    return places.get(module) or candidates[zlib.crc32(module.encode()) % len(candidates)]
