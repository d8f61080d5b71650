"""Segmentation maps: one flat colour per class, always the same."""

from __future__ import annotations

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
