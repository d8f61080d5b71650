"""Backgrounds of the world: named so that their words decide every pixel.

A `Background` is a kind, its colours and, for landscapes, a time of day. Each kind is a function of plane
coordinates, so any window of it can be painted at any resolution, also beyond the unit square (cameras that move,
canvases that grow). Antialiased by supersampling; what is painted is cached. Landscapes are in `landscapes.py`. Not
here: objects, instructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

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


UNIT = (0.0, 0.0, 1.0)  # the window that is the picture
_WIDE = (-0.5, -0.5, 2.0)  # the window that views of landscapes are cut from
_SAMPLES = 3  # in each direction, of a pixel

Window = tuple[float, float, float]  # left, top, side


@lru_cache(maxsize=512)
def paint_image(background: Background, size_px: int, window: Window = UNIT) -> np.ndarray:
    """The window of a background, (size_px, size_px, 3) uint8, read-only. Raises ConfigError for unknown kinds."""
    if background.kind in PATTERNS:
        first = _color(background.colors[0])
        if background.kind == "plain":
            image = np.broadcast_to(first.astype(np.uint8), (size_px, size_px, 3)).copy()
        else:
            shares, places = _pattern(background.kind, size_px, window)
            image = mix(first, _color(background.colors[1]), shares).round().astype(np.uint8)[places]
    elif window == UNIT or not _inside(window):
        image = _painted(background, size_px, window)[0]
        image = (
            image.reshape(size_px, _SAMPLES, size_px, _SAMPLES, 3).mean((1, 3)).round().clip(0, 255).astype(np.uint8)
        )
    else:  # cut from a wide view, which is painted once
        wide = _wide(background, size_px)
        scale = wide.width / _WIDE[2]
        left, top, side = (window[0] - _WIDE[0]) * scale, (window[1] - _WIDE[1]) * scale, window[2] * scale
        box = (left, top, left + side, top + side)
        image = np.array(wide.resize((size_px, size_px), Image.Resampling.BOX, box=box))
    image.setflags(write=False)
    return image


@lru_cache(maxsize=256)
def paint(background: Background, size_px: int, window: Window = UNIT) -> Painted:
    """The window of a background with its classes and depth. Raises ConfigError for unknown kinds."""
    half = _SAMPLES // 2
    if background.kind in PATTERNS:
        classes = np.full((size_px, size_px), BACKDROP, np.uint8)
        depth = np.zeros((size_px, size_px), np.float32)
    else:
        _, classes, depth = _painted(background, size_px, window)
        classes, depth = classes[half::_SAMPLES, half::_SAMPLES], depth[half::_SAMPLES, half::_SAMPLES]
    painted = Painted(paint_image(background, size_px, window), classes.copy(), depth.astype(np.float32))
    for array in (painted.classes, painted.depth):
        array.setflags(write=False)
    return painted


def _plane(samples: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates u, v (samples, samples) float32 of a window, to the right and down."""
    steps = (np.arange(samples, dtype=np.float32) + 0.5) / samples * window[2]
    u, v = np.meshgrid(steps + window[0], steps + window[1])
    return u, v


def _painted(background: Background, size_px: int, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours, classes and depth of a landscape or place, `_SAMPLES` samples to a pixel's side."""
    if background.kind not in LANDSCAPES and background.kind not in PLACES:
        raise ConfigError(f"unknown background kind {background.kind!r}")
    return paint_landscape(background.kind, background.time_of_day or "day", *_plane(size_px * _SAMPLES, window))


def _inside(window: Window) -> bool:
    """True if a window lies in the wide view."""
    return all(_WIDE[axis] <= window[axis] and window[axis] + window[2] <= _WIDE[axis] + _WIDE[2] for axis in range(2))


@lru_cache(maxsize=64)
def _wide(background: Background, size_px: int) -> Image.Image:
    side = round(_WIDE[2] * size_px)
    return Image.fromarray(_painted(background, side, _WIDE)[0].round().clip(0, 255).astype(np.uint8))


def _color(name: str) -> np.ndarray:
    return np.array(COLORS[name], np.float32)


@lru_cache(maxsize=128)
def _pattern(kind: str, size_px: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the second colour, (K,) float32, and which of them each pixel has, (size_px, size_px) int."""
    u, v = _plane(size_px * _SAMPLES, window)
    if kind == "gradient":
        share = np.clip(v, 0, 1)
    elif kind == "vertical stripes":
        share = np.mod(np.floor(u * 8), 2)
    elif kind == "horizontal stripes":
        share = np.mod(np.floor(v * 8), 2)
    elif kind == "checks":
        share = np.mod(np.floor(u * 6) + np.floor(v * 6), 2)
    else:  # dots
        row = np.floor(v * 5)
        du = np.mod(u * 5 + 0.5 * np.mod(row, 2), 1) - 0.5
        dv = np.mod(v * 5, 1) - 0.5
        share = (du * du + dv * dv < 0.09).astype(np.float32)
    shares, places = np.unique(share.reshape(size_px, _SAMPLES, size_px, _SAMPLES).mean((1, 3)), return_inverse=True)
    return shares.astype(np.float32), places.reshape(size_px, size_px)
