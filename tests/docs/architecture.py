"""The picture of the architecture: which package of the module imports which, drawn from the imports themselves.

``python tests/docs/architecture.py`` (`make pictures`) writes extension/doc/architecture.svg. Floors are counted from the ground
up: a package stands one floor above the highest that it imports. What imports nothing is the ground, on which all stand: no lines
go there. Nor is a line drawn that follows from others.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import permutations, product
from pathlib import Path

__all__ = ["FILE", "PURPOSES", "draw", "imports"]

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "python" / "pg_distill"
FILE = ROOT / "extension" / "doc" / "architecture.svg"

PURPOSES = {
    "sqlapi": "one function per SQL function",
    "cli": "the command line, reports, init",
    "jobs": "the worker",
    "runs": "a distillation, check, remeasure",
    "teachers": "registration",
    "serving": "predict, score, timing",
    "child": "the training process, its pipe",
    "search": "which students are tried",
    "students": "the families, one a file",
    "conversion": "fitted models made ONNX",
    "registry": "models, runs, settings, queue",
    "onnx_model": "check, limits, sessions",
    "rows": "sample, split, SQL values",
    "database": "our SQL, the caller's, interrupts",
    "measure": "metrics, intervals, latency",
}
"""What a package that is no ground is for."""

WIDTH, BOX, HEIGHT, FLOOR, GAP, MARGIN = 820, 210, 42, 68, 30, 16
"""Of the picture and a box in pixels, from floor to floor, between boxes, around it all."""
WIDE = 4
"""Boxes that a floor has room for."""
CLEAR = 14
"""Pixels between a line that passes a floor and what stands on it."""

STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #59636e; text-anchor: middle; dominant-baseline: central }
  .name { font-size: 14px; font-weight: 600; fill: #1f2328 }
  rect { fill: #eef4fb; stroke: #4a7fb5 }
  .ground { fill: #f6f8fa; stroke: #818b98 }
  path { fill: none; stroke: #818b98 }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1 }
    .name { fill: #e6edf3 }
    rect { fill: #16263a; stroke: #5a9bd8 }
    .ground { fill: #21262d; stroke: #7d8590 }
    path { stroke: #7d8590 }
  }
"""


def imports(module: Path = MODULE) -> dict[str, set[str]]:
    """Return, for each package (or single file) of the module, those that it imports."""
    files = [path for path in module.rglob("*.py") if path != module / "__init__.py"]
    rooms = {path.relative_to(module).parts[0].removesuffix(".py") for path in files}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for path in files:
        inside = path.relative_to(module).parts
        room = inside[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                package = ("pg_distill", *inside[:-1])
                base = package[: len(package) - node.level + 1] if node.level else ()
                start = ".".join([*base, *([node.module] if node.module else [])])
                names = [f"{start}.{alias.name}" for alias in node.names]
            parts = [name.split(".") for name in names]
            found[room] |= {part[1] for part in parts if part[0] == "pg_distill" and len(part) > 1} & rooms
        found[room].discard(room)
    return found


def _floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    @cache
    def floor(room: str) -> int:
        return 1 + max((floor(below) for below in graph[room]), default=-1)

    return {room: floor(room) for room in graph}


def _reduced(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Return the imports that do not follow from others."""

    @cache
    def reached(room: str) -> frozenset[str]:
        return frozenset(graph[room]).union(*(reached(below) for below in graph[room]))

    return [
        (room, below)
        for room in sorted(graph)
        for below in sorted(graph[room])
        if not any(below in reached(other) for other in graph[room] - {below})
    ]


Place = dict[str, tuple[float, float]]
"""The middle of a box's upper edge."""


def _arrangements(rows: list[list[str]]) -> Iterator[Place]:
    # Every order of every floor, but of a wide one: there are too many.
    orders = [list(permutations(row)) if len(row) <= WIDE else [tuple(row)] for row in rows]
    for chosen in product(*orders):
        place = {}
        for number, row in enumerate(reversed(chosen)):
            left = (WIDTH - len(row) * BOX - (len(row) - 1) * GAP) / 2
            for position, room in enumerate(row):
                place[room] = (left + position * (BOX + GAP) + BOX / 2, float(MARGIN + number * FLOOR))
        yield place


def _ways(place: Place, links: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Return where each line goes down past the floors between its ends, clear of what stands there."""
    taken: list[tuple[float, float]] = []
    found = {}
    for above, below in sorted(links, key=lambda link: place[link[1]][1] - place[link[0]][1]):
        (start, top), (end, bottom) = place[above], place[below]
        between = [y for _, y in set(place.values()) if top < y < bottom]
        boxes = [x for x, y in place.values() if y in between]

        passed = [x for x, y in taken if y in between]
        free = [
            x
            for x in range(0, WIDTH, 2)
            if all(abs(x - box) >= BOX / 2 + CLEAR for box in boxes)
            and all(abs(x - other) >= CLEAR for other in passed)
        ]
        way = (
            min(free, key=lambda x, start=start, end=end: (abs(x - start) + abs(x - end), abs(x - end)))
            if between
            else end
        )
        taken += [(way, y) for y in between]
        found[above, below] = way
    return found


def _cost(place: Place, links: list[tuple[str, str]]) -> float:
    ways = _ways(place, links)
    return sum(abs(place[a][0] - x) + abs(x - place[b][0]) for (a, b), x in ways.items())


def _ports(
    place: Place, links: list[tuple[str, str]], ways: dict[tuple[str, str], float], end: int
) -> dict[tuple[str, str], float]:
    """Return where on its box each line begins (0) or ends (1): side by side, in the order in which they come."""
    found = {}
    for room, (x, _) in place.items():
        own = sorted(
            (link for link in links if link[end] == room),
            key=lambda link: (ways[link], place[link[1 - end]][0]),
        )
        for position, link in enumerate(own):
            found[link] = x + (position - (len(own) - 1) / 2) * min(40, (BOX - 30) / len(own))
    return found


def draw(graph: Mapping[str, set[str]]) -> str:
    """Return the picture as SVG."""
    floors = _floors(graph)
    if unknown := {room for room, floor in floors.items() if floor} - set(PURPOSES):
        raise ValueError(f"say in PURPOSES what these are for: {', '.join(sorted(unknown))}")
    ground = sorted(room for room, floor in floors.items() if floor == 0)
    rows: list[list[str]] = [[] for _ in range(max(floors.values()))]
    for room in sorted(set(graph) - set(ground)):
        rows[floors[room] - 1].append(room)
    links = [(above, below) for above, below in _reduced(graph) if below not in ground]
    place = min(_arrangements(rows), key=lambda place: _cost(place, links))
    ways = _ways(place, links)
    starts, ends = (_ports(place, links, ways, end) for end in (0, 1))

    parts = []
    for link in links:
        y, bottom = place[link[0]][1] + HEIGHT, place[link[1]][1]
        x, way, end = starts[link], ways[link], ends[link]
        half = (FLOOR - HEIGHT) / 2
        if bottom - y < FLOOR:
            line = f"M{x:.0f} {y:.0f} C{x:.0f} {y + half:.0f} {end:.0f} {bottom - half:.0f} {end:.0f} {bottom:.0f}"
        else:
            down, up = y + 2 * half, bottom - 2 * half
            line = (
                f"M{x:.0f} {y:.0f} C{x:.0f} {y + half:.0f} {way:.0f} {down - half:.0f} {way:.0f} {down:.0f} V{up:.0f}"
                f" C{way:.0f} {up + half:.0f} {end:.0f} {bottom - half:.0f} {end:.0f} {bottom:.0f}"
            )
        parts.append(f'<path d="{line}"/>')
    for room, (x, y) in sorted(place.items()):
        parts.append(f'<rect x="{x - BOX / 2:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="5"/>')
        parts.append(f'<text class="name" x="{x:.0f}" y="{y + 14:.0f}">{room}</text>')
        parts.append(f'<text x="{x:.0f}" y="{y + 30:.0f}">{PURPOSES[room]}</text>')
    y = MARGIN + len(rows) * FLOOR
    parts.append(
        f'<rect class="ground" x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT}" rx="5"/>'
    )
    parts.append(f'<text class="name" x="{WIDTH / 2:.0f}" y="{y + 14}">{"  ·  ".join(ground)}</text>')
    parts.append(f'<text x="{WIDTH / 2:.0f}" y="{y + 30}">one file each; all rooms may import them</text>')
    height = y + HEIGHT + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">\n'
        "<title>Which package of pg_distill imports which: each stands above all that it imports</title>\n"
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def main() -> None:
    """Write the picture; the folder of the module may be named."""
    FILE.write_text(draw(imports(Path(sys.argv[1]) if sys.argv[1:] else MODULE)))


if __name__ == "__main__":
    main()
