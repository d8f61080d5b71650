"""Segmentation maps: one flat colour per class, always the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ace.errors import ConfigError

PALETTE: dict[str, tuple[int, int, int]] = {
    "backdrop": (0, 0, 0),
    "sky": (70, 130, 180),
    "ground": (107, 142, 35),
    "water": (28, 60, 160),
    "building": (128, 128, 128),
    "food": (255, 165, 0),
    "animals": (190, 90, 40),
    "plants": (0, 220, 90),
    "people": (220, 20, 60),
    "smileys": (255, 240, 60),
    "objects": (170, 60, 220),
    "travel": (0, 230, 230),
    "activities": (255, 105, 180),
}
CLASSES = tuple(PALETTE)
_COLORS = np.array(list(PALETTE.values()), np.uint8)


def draw_segments(classes: np.ndarray) -> np.ndarray:
    """classes (H, W) of indices into `CLASSES` as (H, W, 3) uint8 colours.

    Raises ConfigError for an index outside it."""
    if classes.size and not 0 <= int(classes.min()) <= int(classes.max()) < len(CLASSES):
        raise ConfigError(f"class {int(classes.max())} has no colour: use 0 to {len(CLASSES) - 1}")
    return _COLORS[classes]


# colours that are told apart easily, for objects without a class; more objects start over, darker
OBJECT_COLORS = (
    (230, 60, 60), (60, 180, 75), (255, 225, 25), (67, 99, 216), (245, 130, 49), (145, 30, 180), (70, 240, 240),
    (240, 50, 230), (188, 246, 12), (250, 190, 190), (0, 128, 128), (230, 190, 255), (154, 99, 36), (255, 250, 200),
    (128, 0, 0), (170, 255, 195), (128, 128, 0), (255, 216, 177), (0, 0, 117), (128, 128, 128),
)  # fmt: skip


def draw_objects(masks: Sequence[np.ndarray], height_px: int, width_px: int) -> np.ndarray:
    """Objects as flat colours on black, (height_px, width_px, 3) uint8; masks (H, W) bool, later ones lie on top."""
    canvas = np.zeros((height_px, width_px, 3), np.uint8)
    for number, mask in enumerate(masks):
        turn, color = divmod(number, len(OBJECT_COLORS))
        canvas[mask] = np.array(OBJECT_COLORS[color]) >> min(turn, 2)
    return canvas
