"""Imports point down: each room of `ace/` knows only the rooms below it, and says so on its first line.

Every import statement counts, also inside functions and for type checkers.
"""

import ast
import re
from pathlib import Path

import pytest

ACE = Path(__file__).parents[1] / "ace"

# room -> the rooms it may import, with all that lie below those
ROOMS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "extras": ("errors",),
    "pages": ("errors", "extras"),
    "settings": ("errors",),
    "files": ("errors",),
    "lists": ("errors",),
    "adapter_files": ("errors",),
    "lesson": ("files",),
    "conditions": ("errors", "extras"),
    "model": ("conditions", "files", "adapter_files"),
    "diffusion": ("errors",),
    "extract": ("conditions",),
    "inference": ("conditions", "model", "diffusion", "extract", "files"),
    "plus": ("conditions", "model", "diffusion", "extract", "inference", "files"),
    "weights": ("conditions", "model", "inference", "plus", "files"),
    "video": ("conditions", "model", "extract", "diffusion", "inference", "files"),
    "conversation": ("conditions", "inference", "video", "files"),
    "families": (
        "conditions",
        "extract",
        "diffusion",
        "inference",
        "plus",
        "weights",
        "video",
        "conversation",
        "files",
    ),
    "tiny": ("inference", "weights"),
    "data": ("conditions", "extract", "video", "files", "lists", "pages", "settings"),
    "training": ("data", "inference", "plus", "weights", "video", "lesson", "pages", "settings"),
    "evaluation": ("inference", "video", "data", "weights", "conversation", "families", "files", "pages"),
    "server": ("conditions", "model", "conversation", "lesson"),
    "web": ("server", "extract", "lesson"),
    "comfyui": ("conditions", "inference", "plus", "weights", "conversation", "families", "video"),
    "cli": (
        *("conditions", "model", "inference", "plus", "weights", "video", "conversation", "families"),
        *("tiny", "data", "training", "evaluation", "server", "web"),
    ),
}
# `ace/__init__.py` hands out a few names on first use and `ace/__main__.py` starts the command line
TOP = ("__init__", "__main__")


def below(room: str) -> set[str]:
    """Every room that `room` may import, itself included."""
    found, todo = {room}, [room]
    while todo:
        for lower in ROOMS[todo.pop()]:
            if lower not in found:
                found.add(lower)
                todo.append(lower)
    return found


def room_of(file: Path) -> str:
    return file.relative_to(ACE).parts[0].removesuffix(".py")


def imported_rooms(source: str, module: str, is_package: bool = False) -> set[str]:
    """The rooms that the import statements of a module name; `module` is its dotted name."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{full}.{alias.name}" for alias in node.names} if full == "ace" else {full}
    return {name.split(".")[1] for name in names if name.startswith("ace.")} - {"__version__"}


FILES = [file for file in sorted(ACE.rglob("*.py")) if room_of(file) not in TOP]


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ACE)) for file in FILES])
def test_imports_point_down(file):
    module = ".".join(["ace", *file.relative_to(ACE).with_suffix("").parts]).removesuffix(".__init__")
    upward = imported_rooms(file.read_text(encoding="utf-8"), module, file.stem == "__init__") - below(room_of(file))
    assert not upward, f"{module} imports {', '.join(sorted(upward))}: move what both need to a room below"


def test_every_room_is_in_the_table():
    assert {room_of(file) for file in FILES} <= set(ROOMS)


def test_no_room_is_above_itself():
    for room, lower in ROOMS.items():
        assert all(room not in below(other) for other in lower), room


@pytest.mark.parametrize(
    "room", sorted({room_of(f) for f in FILES if f.name == "__init__.py" and f.parent.parent == ACE})
)
def test_a_room_says_on_its_first_line_what_it_imports(room):
    first = (ast.get_docstring(ast.parse((ACE / room / "__init__.py").read_text(encoding="utf-8"))) or "").split("\n")[
        0
    ]
    assert re.match(r"[^a-z]+\. Imports: ", first), f"{first!r}: write 'WHAT ENTERS → WHAT LEAVES. Imports: …'"
    named = set(re.findall(r"\b(" + "|".join(ROOMS) + r")\b", first.split("Imports: ")[1]))
    assert named <= below(room)
    assert named >= set(ROOMS[room]) or "all above" in first


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("from ace.inference.pipeline import ACEPipeline", {"inference"}),
        ("import ace.model.rope as r, json", {"model"}),
        ("from ace import cli, __version__", {"cli"}),
        ("def late():\n    from ace.training import train", {"training"}),
        ("from ..model import tokens", {"model"}),
        ("from . import ddim", {"diffusion"}),
        ("from .noise import add_noise", {"diffusion"}),
        ("import acetone, aces.model", set()),
    ],
)
def test_every_way_of_writing_an_import_is_seen(source, rooms):
    assert imported_rooms(source, "ace.diffusion.loss") == rooms
