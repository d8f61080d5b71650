"""Where things stand: nine slots on a grid of 8 x 8 cells, the tokens of a 128 px picture at 16 px each.

What words place always stands on whole cells, so that a drawing is met at one phase of the token grid. What a picture
or a mask places may also stand freely (`Chance.place`). Not here: which slots a scene uses.
"""

from __future__ import annotations

from math import floor

CELLS = 8  # on each side
THING = 4  # cells on a side of a usual thing: 64 px at 128 px
WORD_ROWS = 2  # height of a letter's cell; it is half as wide

# slot -> column and row: 0 at the left or top edge, 1 in the middle, 2 at the right or bottom edge
SLOTS: dict[str, tuple[int, int]] = {
    "left": (0, 1),
    "right": (2, 1),
    "middle": (1, 1),
    "top": (1, 0),
    "bottom": (1, 2),
    "top left": (0, 0),
    "top right": (2, 0),
    "bottom left": (0, 2),
    "bottom right": (2, 2),
}


def on_grid(slot: str, cells: int = THING) -> tuple[float, float, float]:
    """Centre x, y and side of a thing in a slot, in fractions of the picture."""
    corners = (0, (CELLS - cells + 1) // 2, CELLS - cells)  # a thing between two cells stands lower and to the right
    x, y = (corners[which] + cells / 2 for which in SLOTS[slot])
    return x / CELLS, y / CELLS, cells / CELLS


def snapped(x: float, y: float, cells: int) -> tuple[float, float, float]:
    """Centre and side of the thing of so many cells on the grid, and in the picture, that is nearest to a centre."""
    left, top = (min(max(floor(v * CELLS - cells / 2 + 0.5), 0), CELLS - cells) for v in (x, y))
    return (left + cells / 2) / CELLS, (top + cells / 2) / CELLS, cells / CELLS


def word_place(num_letters: int, slot: str) -> tuple[float, float, float]:
    """Centre x, y and height of a word of at most `CELLS` letters at the top, in the middle or at the bottom."""
    left = max(0, (CELLS - num_letters) // 2)
    top = {"top": 0, "middle": (CELLS - WORD_ROWS) // 2, "bottom": CELLS - WORD_ROWS}[slot]
    return (left + num_letters / 2) / CELLS, (top + WORD_ROWS / 2) / CELLS, WORD_ROWS / CELLS


def _apart(a: str, b: str) -> bool:
    return any(abs(p - q) == 2 for p, q in zip(SLOTS[a], SLOTS[b], strict=True))


_NAMES = tuple(SLOTS)
# slots of things of at most `THING` cells that do not touch each other
PAIRS = tuple((a, b) for a in _NAMES for b in _NAMES if a < b and _apart(a, b))
TRIPLES = tuple((a, b, c) for a, b in PAIRS for c in _NAMES if b < c and _apart(a, c) and _apart(b, c))
LOW = tuple(name for name, (_, row) in SLOTS.items() if row)  # where things may stand on the ground
LOW_PAIRS = tuple(pair for pair in PAIRS if set(pair) <= set(LOW))
