"""Backgrounds of the world: named so that their words decide every pixel.

A `Background` is a kind, its colours and, for landscapes, a time of day. Each kind is a function of plane
coordinates, so any window of it can be painted at any resolution, also beyond the unit square (cameras that move,
canvases that grow). Antialiased by supersampling; painted windows are cached. Not here: objects, instructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

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

BACKDROP, SKY, GROUND, WATER, BUILDING = range(5)  # classes of background pixels
HORIZON = 0.56  # where the ground meets the sky, as a fraction of the height


@dataclass(frozen=True)
class Background:
    """kind:

    of `PATTERNS`, `LANDSCAPES` or `PLACES`. colors: one name for plain, two for the other patterns, none otherwise.

    time_of_day: of `TIMES` for landscapes, "" otherwise."""

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
    """image:

    (H, W, 3) uint8. classes: (H, W) uint8, `BACKDROP` … `BUILDING`. depth: (H, W) float32, 0 far … 1 near. Read-
    only."""

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
        rgb, classes, depth = _landscape(background, u, v)
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


def _mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """a (3,), b (3,), share (H, W) in 0..1 -> (H, W, 3)."""
    return a + (b - a) * share[..., None]


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
    return _mix(first, second, share)


_SKIES = {  # time -> (top, horizon)
    "day": ((92, 170, 238), (202, 232, 250)),
    "sunset": ((112, 72, 150), (255, 170, 92)),
    "night": ((12, 16, 48), (40, 52, 104)),
}
_LIGHT = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.74, 0.62),
    "night": (0.30, 0.34, 0.52),
}
_STARS = (
    (0.08, 0.1),
    (0.22, 0.3),
    (0.37, 0.12),
    (0.5, 0.27),
    (0.63, 0.08),
    (0.9, 0.34),
    (0.94, 0.06),
    (0.12, 0.45),
    (0.7, 0.42),
)
_SPACE_STARS = (
    *_STARS,
    (0.3, 0.6),
    (0.55, 0.75),
    (0.15, 0.8),
    (0.85, 0.65),
    (0.42, 0.92),
    (0.72, 0.9),
    (0.93, 0.93),
    (0.04, 0.62),
)
_ROOFS = (0.30, 0.42, 0.20, 0.36, 0.26)


def _landscape(background: Background, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kind, time = background.kind, background.time_of_day or "day"
    light = np.array(_LIGHT[time], np.float32)
    top, low = (np.array(c, np.float32) for c in _SKIES[time])
    rgb = _mix(top, low, np.clip(v / HORIZON, 0, 1))
    classes = np.full(u.shape, SKY, np.uint8)

    def disc(x: float, y: float, radius: float) -> np.ndarray:
        return (u - x) ** 2 + (v - y) ** 2 < radius * radius

    def lay(
        where: np.ndarray,
        color: tuple[int, int, int],
        label: int | None,
        shade: np.ndarray | float = 1.0,
    ) -> None:
        paint_ = np.array(color, np.float32) * light
        rgb[where] = (paint_ * np.broadcast_to(np.asarray(shade, np.float32), u.shape)[..., None])[where]
        if label is not None:
            classes[where] = label

    if kind == "space":
        rgb[:] = (14, 12, 34)
        classes[:] = BACKDROP
        for x, y in _SPACE_STARS:
            rgb[disc(x, y, 0.014)] = (255, 250, 220)
        return rgb, classes, np.zeros_like(u)
    if kind == "underwater":
        rgb[:] = _mix(
            np.array((70, 180, 214), np.float32),
            np.array((14, 62, 128), np.float32),
            np.clip(v, 0, 1),
        )
        classes[:] = WATER
        lay(v > 0.86 + 0.02 * np.sin(u * 12), (206, 178, 120), GROUND)
        return rgb, classes, _plane(classes, v)
    if kind == "room":
        rgb[:] = (238, 222, 192)
        classes[:] = BUILDING
        lay(
            v > HORIZON + 0.06,
            (172, 116, 66),
            GROUND,
            0.92 + 0.08 * np.mod(np.floor(u * 6), 2),
        )
        lay((v > HORIZON + 0.03) & (v <= HORIZON + 0.06), (250, 246, 238), BUILDING)
        return rgb, classes, _plane(classes, v)

    if time == "day":
        rgb[disc(0.84, 0.14, 0.085)] = (255, 236, 120)
    elif time == "sunset":
        rgb[disc(0.5, HORIZON - 0.02, 0.13)] = (255, 226, 130)
    else:
        for x, y in _STARS:
            rgb[disc(x, y, 0.012)] = (250, 246, 220)
        rgb[disc(0.82, 0.16, 0.09) & ~disc(0.785, 0.135, 0.08)] = (250, 244, 200)

    nearer = 1.06 - 0.22 * np.clip((v - HORIZON) / (1 - HORIZON), 0, 1)  # a little darker towards the viewer
    ground = v > HORIZON
    if kind == "meadow":
        lay(ground, (104, 190, 82), GROUND, nearer)
    elif kind == "hills":
        lay(v > HORIZON - 0.06 + 0.09 * np.sin(u * 6.3 + 0.6), (140, 204, 100), GROUND)
        lay(v > 0.7 + 0.07 * np.sin(u * 5.0 + 3.4), (86, 166, 74), GROUND)
    elif kind == "sea":
        lay(
            ground,
            (40, 112, 190),
            WATER,
            0.95 + 0.16 * (np.sin(v * 95 + 2.0 * np.sin(u * 9)) > 0.55),
        )
    elif kind == "beach":
        lay(ground, (52, 140, 204), WATER)
        lay(v > 0.68 + 0.03 * np.sin(u * 5), (246, 246, 240), WATER)
        lay(v > 0.71 + 0.03 * np.sin(u * 5), (240, 212, 150), GROUND)
    elif kind == "desert":
        lay(v > HORIZON + 0.05 * np.sin(u * 7 + 1), (232, 184, 104), GROUND)
        lay(v > 0.72 + 0.06 * np.sin(u * 4.4 + 2.6), (214, 156, 78), GROUND)
    elif kind == "snow":
        lay(v > HORIZON + 0.03 * np.sin(u * 6), (244, 248, 255), GROUND, nearer)
    elif kind == "city":
        column = np.mod(np.floor(u * 5), 5).astype(int)
        roofs = np.array(_ROOFS, np.float32)[column]
        lay((v > roofs) & (v < 0.74), (124, 132, 150), BUILDING, 0.8 + 0.1 * np.mod(column, 3))
        across, down = np.mod(u * 10, 1), np.mod(v * 9, 1)
        pane = (np.abs(across - 0.5) < 0.24) & (np.abs(down - 0.5) < 0.26) & (v > roofs + 0.03) & (v < 0.7)
        rgb[pane] = (255, 220, 110) if time == "night" else tuple(np.array((206, 226, 240)) * light)
        lay(v >= 0.74, (96, 98, 104), GROUND)
        lay((v > 0.86) & (v < 0.885) & (np.mod(u * 4, 1) < 0.6), (240, 240, 236), GROUND)
    elif kind == "mountains":
        for x, peak, slope in ((0.2, 0.22, 1.1), (0.78, 0.26, 1.0), (0.5, 0.14, 1.2)):
            ridge = peak + slope * np.abs(u - x)
            lay(v > ridge, (118, 124, 146), GROUND, 1.0 - 0.14 * (u > x))
            lay(
                (v > ridge) & (v < peak + 0.1 + 0.02 * np.sin(u * 60)),
                (250, 252, 255),
                GROUND,
            )
        lay(v > 0.66, (96, 172, 84), GROUND)
    else:  # forest
        lay(ground, (92, 158, 72), GROUND, nearer)
        for count, peak, base, color in (
            (9, 0.26, 0.58, (38, 104, 62)),
            (7, 0.34, 0.66, (28, 84, 50)),
        ):
            across = np.abs(np.mod(u * count, 1) - 0.5)
            lay((v > peak + (base - peak) * across * 2) & (v < base), color, GROUND)
    return rgb, classes, _plane(classes, v)


def near(v: np.ndarray | float) -> np.ndarray | float:
    """Nearness (0 far … 1 near) of a ground point at height fraction v."""
    return 0.12 + 0.6 * np.clip((v - HORIZON) / (1 - HORIZON), 0, 1)


def _plane(classes: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Ground plane:

    sky far, ground and water nearer towards the lower edge, walls and buildings at a middle distance."""
    depth = np.where((classes == GROUND) | (classes == WATER), near(v), 0.0)
    return np.where(classes == BUILDING, 0.2, depth)
