"""The rooms of `ace/` from their source: how large each is, and which imports which.

Counted are lines of Python as they stand, blank ones and comments included. An arrow goes from a room to each room that
one of its files imports, also inside functions; arrows that follow from others are left out.
"""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

ACE = Path(__file__).parents[1] / "ace"
WIDTH, HEIGHT, GAP_X, GAP_Y = 150, 54, 24, 58


def room_of(file: Path) -> str:
    """The room that a file of `ace/` belongs to; "" for the package's own two files."""
    name = file.relative_to(ACE).parts[0].removesuffix(".py")
    return "" if name.startswith("__") else name


@cache
def files() -> dict[str, tuple[Path, ...]]:
    """Room -> its files."""
    found: dict[str, list[Path]] = {}
    for file in sorted(ACE.rglob("*.py")):
        if room := room_of(file):
            found.setdefault(room, []).append(file)
    return {room: tuple(own) for room, own in found.items()}


@cache
def tree_of(file: Path) -> ast.Module:
    """A file, parsed."""
    return ast.parse(file.read_text(encoding="utf-8"))


def imports() -> dict[str, set[str]]:
    """Room -> the rooms that its files import."""
    found: dict[str, set[str]] = {}
    for room, own in files().items():
        names: set[str] = set()
        for file in own:
            for node in ast.walk(tree_of(file)):
                if isinstance(node, ast.ImportFrom) and node.module == "ace":
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ace."):
                    names.add(str(node.module).split(".")[1])
                elif isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ace.")}
        found[room] = names & files().keys() - {room}
    return found


def direct(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The edges that do not follow from others (transitive reduction)."""

    @cache
    def below(room: str) -> frozenset[str]:
        return frozenset(edges[room]).union(*(below(lower) for lower in edges[room]))

    return {
        room: {lower for lower in lowers if not any(lower in below(other) for other in lowers - {lower})}
        for room, lowers in edges.items()
    }


def longest_function() -> tuple[int, str]:
    """(lines, name) of the longest function of all rooms."""
    lengths = [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{file.relative_to(ACE.parent)}: {node.name}")
        for own in files().values()
        for file in own
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return max(lengths)


def classes_named_twice() -> dict[str, int]:
    """Class names that stand in more than one file -> in how many."""
    names = Counter(
        node.name
        for own in files().values()
        for file in own
        for node in tree_of(file).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    return {name: count for name, count in sorted(names.items()) if count > 1}


def num_lines(room: str) -> int:
    """Lines of Python of a room."""
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files()[room])


def table() -> str:
    """The rooms by size, as Markdown."""
    rows = [f"| {room} | {num_lines(room):,} | {len(files()[room])} |" for room in sorted(files())]
    total = sum(num_lines(room) for room in files())
    lines, name = longest_function()
    twice = ", ".join(classes_named_twice()) or "none"
    return "\n".join(
        [
            "| room | lines | files |",
            "|---|--:|--:|",
            *rows,
            f"| **all** | **{total:,}** | **{sum(len(own) for own in files().values())}** |",
            "",
            f"Longest function: {lines} lines (`{name}`). Public class names that exist twice: {twice}.",
            "",
        ]
    )


def picture() -> str:
    """The rooms as SVG: what imports stands above what is imported."""
    edges = imports()

    @cache
    def level(room: str) -> int:
        return 1 + max((level(lower) for lower in edges[room]), default=-1)

    rows: dict[int, list[str]] = {}
    for room in sorted(edges):
        rows.setdefault(level(room), []).append(room)
    across = max(len(row) for row in rows.values())
    width, height = across * (WIDTH + GAP_X) + GAP_X, len(rows) * (HEIGHT + GAP_Y) + GAP_X
    place: dict[str, tuple[float, float]] = {}
    for number, row in rows.items():
        left = (width - len(row) * (WIDTH + GAP_X) + GAP_X) / 2
        for column, room in enumerate(row):
            place[room] = (left + column * (WIDTH + GAP_X), (len(rows) - 1 - number) * (HEIGHT + GAP_Y) + GAP_X)
    arrows, boxes = [], []
    for room, lowers in sorted(direct(edges).items()):
        x, y = place[room]
        for lower in sorted(lowers):
            to_x, to_y = place[lower]
            arrows.append(
                f'<path d="M{x + WIDTH / 2:g} {y + HEIGHT:g} C{x + WIDTH / 2:g} {y + HEIGHT + GAP_Y / 2:g} '
                f'{to_x + WIDTH / 2:g} {to_y - GAP_Y / 2:g} {to_x + WIDTH / 2:g} {to_y - 4:g}"/>'
            )
    for room, (x, y) in sorted(place.items()):
        boxes.append(
            f'<g transform="translate({x:g} {y:g})"><rect width="{WIDTH}" height="{HEIGHT}" rx="8"/>'
            f'<text x="{WIDTH / 2:g}" y="24" class="name">{room}</text>'
            f'<text x="{WIDTH / 2:g}" y="42">{num_lines(room):,} lines</text></g>'
        )
    style = (
        "rect{fill:#eef3fb;stroke:#4a6fa5}text{font:12px sans-serif;text-anchor:middle;fill:#33415c}"
        ".name{font-weight:bold;font-size:15px}path{fill:none;stroke:#8aa0c0;stroke-width:1.4;marker-end:url(#head)}"
    )
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" style="fill:#8aa0c0;stroke:none"/></marker></defs>'
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">',
            f"<title>The rooms of ace and what each imports</title><style>{style}</style>{head}",
            f'<rect width="{width:g}" height="{height:g}" style="fill:#fff;stroke:none"/>',
            *arrows,
            *boxes,
            "</svg>",
            "",
        ]
    )
