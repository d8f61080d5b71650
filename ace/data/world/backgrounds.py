"""Backgrounds of the world: named so that their words decide every pixel.

A `Background` is a kind, its colours and, for landscapes, a time of day. Each kind is a function of plane
coordinates, so any window of it can be painted at any resolution, also beyond the unit square (cameras that move,
canvases that grow). Antialiased by supersampling; painted windows are cached. Landscapes are in `landscapes.py`. Not
here: objects, instructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ace.data.world.landscapes import BACKDROP, mix, paint_landscape
from ace.errors import ConfigError

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (243, 146, 32),
    "yellow": (250, 214, 60),
    "green": (67, 170, 74),
    "light green": (168, 220, 138),
    "teal": (38, 150, 150),
    "light blue": (150, 205, 240),
    "blue": (44, 98, 206),
    "purple": (126, 64, 176),
    "pink": (245, 152, 190),
    "brown": (134, 86, 54),
    "gray": (140, 144, 148),
    "black": (24, 24, 28),
    "white": (250, 250, 250),
    "beige": (232, 214, 180),
}
PATTERNS = (
    "plain",
    "gradient",
    "vertical stripes",
    "horizontal stripes",
    "checks",
    "dots",
)
TIMES = ("day", "sunset", "night")
# kind -> (words, preposition); each has every time of day
LANDSCAPES: dict[str, tuple[str, str]] = {
    "meadow": ("a green meadow", "on"),
    "hills": ("green hills", "on"),
    "sea": ("the open sea", "on"),
    "beach": ("a sandy beach", "on"),
    "desert": ("a desert", "in"),
    "snow": ("a snowy field", "in"),
    "city": ("a city street", "on"),
    "mountains": ("a mountain valley", "in"),
    "forest": ("a forest", "in"),
}
# places without a time of day
PLACES: dict[str, tuple[str, str]] = {
    "space": ("outer space", "in"),
    "underwater": ("the deep sea", "in"),
    "room": ("a room with a wooden floor", "in"),
}
GROUNDED = (
    *LANDSCAPES,
    "room",
    "underwater",
)  # kinds with a floor that things stand on
_TIME_WORDS = {"day": "", "sunset": " at sunset", "night": " at night"}


@dataclass(frozen=True)
class Background:
    """A background, named.

    kind: of `PATTERNS`, `LANDSCAPES` or `PLACES`. colors: one name for plain, two for the other patterns, none
    otherwise. time_of_day: of `TIMES` for landscapes, "" otherwise."""

    kind: str
    colors: tuple[str, ...] = ()
    time_of_day: str = ""

    @property
    def words(self) -> str:
        """What it shows, as a noun phrase."""
        c = self.colors
        if self.kind == "plain":
            return f"a plain {c[0]} background"
        if self.kind == "gradient":
            return f"a gradient from {c[0]} to {c[1]}"
        if self.kind == "checks":
            return f"{c[0]} and {c[1]} checks"
        if self.kind == "dots":
            return f"{c[1]} dots on {c[0]}"
        if self.kind in PATTERNS:
            return f"{c[0]} and {c[1]} {self.kind}"
        if self.kind in LANDSCAPES:
            return LANDSCAPES[self.kind][0] + _TIME_WORDS[self.time_of_day]
        if self.kind in PLACES:
            return PLACES[self.kind][0]
        raise ConfigError(f"unknown background kind {self.kind!r}")

    @property
    def preposition(self) -> str:
        """ "on" or "in", to follow the objects of a caption."""
        if self.kind in PATTERNS:
            return "on"
        return (LANDSCAPES.get(self.kind) or PLACES[self.kind])[1]

    @property
    def has_time(self) -> bool:
        return self.kind in LANDSCAPES


@dataclass(frozen=True)
class Painted:
    """A painted window, read-only.

    image: (H, W, 3) uint8. classes: (H, W) uint8, `BACKDROP` … `BUILDING`. depth: (H, W) float32, 0 far … 1 near."""

    image: np.ndarray
    classes: np.ndarray
    depth: np.ndarray


@lru_cache(maxsize=1500)
def paint(
    background: Background,
    size_px: int,
    window: tuple[float, float, float] = (0.0, 0.0, 1.0),
) -> Painted:
    """Paint the window (left, top, side; unit-square coordinates) at size_px x size_px.

    Raises ConfigError for unknown kinds."""
    factor = 3
    n = size_px * factor
    steps = (np.arange(n, dtype=np.float32) + 0.5) / n * window[2]
    u, v = np.meshgrid(steps + window[0], steps + window[1])
    if background.kind in PATTERNS:
        rgb = _pattern(background, u, v)
        classes = np.full(u.shape, BACKDROP, np.uint8)
        depth = np.zeros_like(u)
    elif background.kind in LANDSCAPES or background.kind in PLACES:
        rgb, classes, depth = paint_landscape(background.kind, background.time_of_day or "day", u, v)
    else:
        raise ConfigError(f"unknown background kind {background.kind!r}")
    image = rgb.reshape(size_px, factor, size_px, factor, 3).mean((1, 3)).round().clip(0, 255).astype(np.uint8)
    half = factor // 2
    painted = Painted(
        image,
        classes[half::factor, half::factor].copy(),
        depth[half::factor, half::factor].astype(np.float32),
    )
    for array in (painted.image, painted.classes, painted.depth):
        array.setflags(write=False)
    return painted


def _color(name: str) -> np.ndarray:
    return np.array(COLORS[name], np.float32)


def _pattern(background: Background, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    first = _color(background.colors[0])
    if background.kind == "plain":
        return np.broadcast_to(first, (*u.shape, 3))
    second = _color(background.colors[1])
    if background.kind == "gradient":
        share = np.clip(v, 0, 1)
    elif background.kind == "vertical stripes":
        share = np.mod(np.floor(u * 8), 2)
    elif background.kind == "horizontal stripes":
        share = np.mod(np.floor(v * 8), 2)
    elif background.kind == "checks":
        share = np.mod(np.floor(u * 6) + np.floor(v * 6), 2)
    else:  # dots
        row = np.floor(v * 5)
        du = np.mod(u * 5 + 0.5 * np.mod(row, 2), 1) - 0.5
        dv = np.mod(v * 5, 1) - 0.5
        share = (du * du + dv * dv < 0.09).astype(np.float32)
    return mix(first, second, share)
