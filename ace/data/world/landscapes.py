"""Landscapes and places of the world, one painter each; `paint_landscape` is the door for `backgrounds.py`.

A painter lays areas over each other on a `Landscape`, in its light, and says what each is. All are functions of plane
coordinates: the unit square is the picture, and what lies outside goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BACKDROP, SKY, GROUND, WATER, BUILDING = range(5)  # classes of background pixels
HORIZON = 0.56  # where the ground meets the sky, as a fraction of the height

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

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Landscape:
    """What is painted on. u, v: (H, W) float32, to the right and down. rgb: (H, W, 3) float32. classes: (H, W) uint8.
    time: of day."""

    u: np.ndarray
    v: np.ndarray
    rgb: np.ndarray
    classes: np.ndarray
    time: str

    def disc(self, x: float, y: float, radius: float) -> np.ndarray:
        """(H, W) bool, True inside."""
        return (self.u - x) ** 2 + (self.v - y) ** 2 < radius * radius

    def lay(self, where: np.ndarray, color: Color, label: int, shade: np.ndarray | float = 1.0) -> None:
        """Paint an area (H, W) bool in the light of the time; shade: a further factor, (H, W) or one."""
        lit = np.array(color, np.float32) * np.array(_LIGHT[self.time], np.float32)
        self.rgb[where] = (lit * np.broadcast_to(np.asarray(shade, np.float32), self.u.shape)[..., None])[where]
        self.classes[where] = label

    @property
    def ground(self) -> np.ndarray:
        """(H, W) bool, below the horizon."""
        return self.v > HORIZON

    @property
    def nearer(self) -> np.ndarray:
        """(H, W): a little darker towards the viewer."""
        return 1.06 - 0.22 * np.clip((self.v - HORIZON) / (1 - HORIZON), 0, 1)


def paint_landscape(kind: str, time: str, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours (H, W, 3) float32, classes (H, W) uint8 and nearness (H, W), 0 far … 1 near, of a kind of `PAINTERS`."""
    top, low = (np.array(color, np.float32) for color in _SKIES[time])
    sky = mix(top, low, np.clip(v / HORIZON, 0, 1))
    scene = Landscape(u, v, sky, np.full(u.shape, SKY, np.uint8), time)
    PAINTERS[kind](scene)
    return scene.rgb, scene.classes, _plane(scene.classes, v)


def mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """a (3,), b (3,), share (H, W) in 0..1 -> (H, W, 3)."""
    return a + (b - a) * share[..., None]


def near(v: np.ndarray | float) -> np.ndarray | float:
    """Nearness (0 far … 1 near) of a ground point at height fraction v."""
    return 0.12 + 0.6 * np.clip((v - HORIZON) / (1 - HORIZON), 0, 1)


def _plane(classes: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Nearness: sky far, ground and water nearer towards the lower edge, walls and buildings at a middle distance."""
    depth = np.where((classes == GROUND) | (classes == WATER), near(v), 0.0)
    return np.where(classes == BUILDING, 0.2, depth)


def _space(scene: Landscape) -> None:
    scene.rgb[:] = (14, 12, 34)
    scene.classes[:] = BACKDROP
    for x, y in _SPACE_STARS:
        scene.rgb[scene.disc(x, y, 0.014)] = (255, 250, 220)


def _underwater(scene: Landscape) -> None:
    light, dark = np.array((70, 180, 214), np.float32), np.array((14, 62, 128), np.float32)
    scene.rgb[:] = mix(light, dark, np.clip(scene.v, 0, 1))
    scene.classes[:] = WATER
    scene.lay(scene.v > 0.86 + 0.02 * np.sin(scene.u * 12), (206, 178, 120), GROUND)


def _room(scene: Landscape) -> None:
    scene.rgb[:] = (238, 222, 192)
    scene.classes[:] = BUILDING
    planks = 0.92 + 0.08 * np.mod(np.floor(scene.u * 6), 2)
    scene.lay(scene.v > HORIZON + 0.06, (172, 116, 66), GROUND, planks)
    scene.lay((scene.v > HORIZON + 0.03) & (scene.v <= HORIZON + 0.06), (250, 246, 238), BUILDING)


def _sky_lights(scene: Landscape) -> None:
    """Sun, or moon and stars."""
    if scene.time == "day":
        scene.rgb[scene.disc(0.84, 0.14, 0.085)] = (255, 236, 120)
    elif scene.time == "sunset":
        scene.rgb[scene.disc(0.5, HORIZON - 0.02, 0.13)] = (255, 226, 130)
    else:
        for x, y in _STARS:
            scene.rgb[scene.disc(x, y, 0.012)] = (250, 246, 220)
        scene.rgb[scene.disc(0.82, 0.16, 0.09) & ~scene.disc(0.785, 0.135, 0.08)] = (250, 244, 200)


def _meadow(scene: Landscape) -> None:
    _sky_lights(scene)
    scene.lay(scene.ground, (104, 190, 82), GROUND, scene.nearer)


def _hills(scene: Landscape) -> None:
    _sky_lights(scene)
    scene.lay(scene.v > HORIZON - 0.06 + 0.09 * np.sin(scene.u * 6.3 + 0.6), (140, 204, 100), GROUND)
    scene.lay(scene.v > 0.7 + 0.07 * np.sin(scene.u * 5.0 + 3.4), (86, 166, 74), GROUND)


def _sea(scene: Landscape) -> None:
    _sky_lights(scene)
    waves = 0.95 + 0.16 * (np.sin(scene.v * 95 + 2.0 * np.sin(scene.u * 9)) > 0.55)
    scene.lay(scene.ground, (40, 112, 190), WATER, waves)


def _beach(scene: Landscape) -> None:
    _sky_lights(scene)
    scene.lay(scene.ground, (52, 140, 204), WATER)
    scene.lay(scene.v > 0.68 + 0.03 * np.sin(scene.u * 5), (246, 246, 240), WATER)
    scene.lay(scene.v > 0.71 + 0.03 * np.sin(scene.u * 5), (240, 212, 150), GROUND)


def _desert(scene: Landscape) -> None:
    _sky_lights(scene)
    scene.lay(scene.v > HORIZON + 0.05 * np.sin(scene.u * 7 + 1), (232, 184, 104), GROUND)
    scene.lay(scene.v > 0.72 + 0.06 * np.sin(scene.u * 4.4 + 2.6), (214, 156, 78), GROUND)


def _snow(scene: Landscape) -> None:
    _sky_lights(scene)
    scene.lay(scene.v > HORIZON + 0.03 * np.sin(scene.u * 6), (244, 248, 255), GROUND, scene.nearer)


def _city(scene: Landscape) -> None:
    _sky_lights(scene)
    u, v = scene.u, scene.v
    column = np.mod(np.floor(u * 5), 5).astype(int)
    roofs = np.array(_ROOFS, np.float32)[column]
    scene.lay((v > roofs) & (v < 0.74), (124, 132, 150), BUILDING, 0.8 + 0.1 * np.mod(column, 3))
    across, down = np.mod(u * 10, 1), np.mod(v * 9, 1)
    pane = (np.abs(across - 0.5) < 0.24) & (np.abs(down - 0.5) < 0.26) & (v > roofs + 0.03) & (v < 0.7)
    dark = np.array((206, 226, 240)) * np.array(_LIGHT[scene.time], np.float32)
    scene.rgb[pane] = (255, 220, 110) if scene.time == "night" else tuple(dark)
    scene.lay(v >= 0.74, (96, 98, 104), GROUND)
    scene.lay((v > 0.86) & (v < 0.885) & (np.mod(u * 4, 1) < 0.6), (240, 240, 236), GROUND)


def _mountains(scene: Landscape) -> None:
    _sky_lights(scene)
    u, v = scene.u, scene.v
    for x, peak, slope in ((0.2, 0.22, 1.1), (0.78, 0.26, 1.0), (0.5, 0.14, 1.2)):
        ridge = peak + slope * np.abs(u - x)
        scene.lay(v > ridge, (118, 124, 146), GROUND, 1.0 - 0.14 * (u > x))
        scene.lay((v > ridge) & (v < peak + 0.1 + 0.02 * np.sin(u * 60)), (250, 252, 255), GROUND)
    scene.lay(v > 0.66, (96, 172, 84), GROUND)


def _forest(scene: Landscape) -> None:
    _sky_lights(scene)
    scene.lay(scene.ground, (92, 158, 72), GROUND, scene.nearer)
    for count, peak, base, color in ((9, 0.26, 0.58, (38, 104, 62)), (7, 0.34, 0.66, (28, 84, 50))):
        across = np.abs(np.mod(scene.u * count, 1) - 0.5)
        scene.lay((scene.v > peak + (base - peak) * across * 2) & (scene.v < base), color, GROUND)


PAINTERS: dict[str, Callable[[Landscape], None]] = {
    "meadow": _meadow,
    "hills": _hills,
    "sea": _sea,
    "beach": _beach,
    "desert": _desert,
    "snow": _snow,
    "city": _city,
    "mountains": _mountains,
    "forest": _forest,
    "space": _space,
    "underwater": _underwater,
    "room": _room,
}
