"""Words for places and colours, true of the picture: "on the left", "red"."""

from __future__ import annotations

import cv2
import numpy as np

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (245, 215, 40),
    "green": (50, 150, 60),
    "blue": (45, 85, 200),
    "purple": (135, 55, 165),
    "pink": (245, 150, 185),
    "brown": (120, 75, 40),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "black": (20, 20, 20),
}
PLACES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)


def name_place(x: float, y: float) -> str:
    """The words of a place given as shares of the width and the height."""
    return PLACES[min(int(y * 3), 2)][min(int(x * 3), 2)]


def name_place_of(mask: np.ndarray) -> str:
    """The words of the centre of a mask (H, W) bool."""
    rows, columns = np.nonzero(mask)
    return name_place(float(columns.mean() + 0.5) / mask.shape[1], float(rows.mean() + 0.5) / mask.shape[0])


def name_color(image: np.ndarray, mask: np.ndarray) -> str | None:
    """The colour that most of a masked area has, None if no colour takes 45 % of it. (H, W, 3) uint8, (H, W) bool."""
    names = list(COLORS)
    table = cv2.cvtColor(np.array([list(COLORS.values())], np.uint8), cv2.COLOR_RGB2LAB)[0].astype(np.float32)
    inside = image[mask]
    inside = inside[:: max(1, len(inside) // 2000)]
    lab = cv2.cvtColor(inside[None], cv2.COLOR_RGB2LAB)[0].astype(np.float32)
    weight = np.array((0.5, 1.0, 1.0), np.float32)  # light and shade matter less
    nearest = (((lab[:, None] - table[None]) * weight) ** 2).sum(2).argmin(1)
    counts = np.bincount(nearest, minlength=len(names))
    best = int(counts.argmax())
    return names[best] if counts[best] >= 0.45 * counts.sum() else None
