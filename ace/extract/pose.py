"""Pose maps: a skeleton of coloured limbs on black, from the 17 COCO keypoints."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ace.errors import ShapeError

# (keypoint, keypoint, colour)
LIMBS: tuple[tuple[int, int, tuple[int, int, int]], ...] = (
    (5, 6, (255, 255, 255)),
    (11, 12, (170, 170, 170)),
    (5, 11, (110, 110, 255)),
    (6, 12, (255, 110, 255)),
    (5, 7, (0, 160, 255)),
    (7, 9, (0, 255, 255)),
    (6, 8, (255, 60, 60)),
    (8, 10, (255, 150, 0)),
    (11, 13, (0, 190, 60)),
    (13, 15, (130, 255, 90)),
    (12, 14, (230, 220, 0)),
    (14, 16, (255, 255, 120)),
    (0, 1, (255, 0, 150)),
    (0, 2, (255, 0, 150)),
    (1, 3, (190, 0, 255)),
    (2, 4, (190, 0, 255)),
)


def draw_skeleton(keypoints: np.ndarray, size_px: int) -> np.ndarray:
    """One person's skeleton on black, (size_px, size_px, 3) uint8.

    keypoints: (17, 2) x, y in fractions of the side, COCO order. Limbs end where they leave the picture; a keypoint
    that is not known is NaN and its limbs are left out. Raises ShapeError for other shapes."""
    if keypoints.shape != (17, 2):
        raise ShapeError(f"keypoints have shape {keypoints.shape}, not (17, 2)")
    factor = 3
    canvas = Image.new("RGB", (size_px * factor, size_px * factor))
    pen = ImageDraw.Draw(canvas)
    points = keypoints * (size_px * factor)
    width = max(2, round(size_px * factor * 0.028))
    neck = points[5:7].mean(0)
    for start, end, color in ((neck, points[0], (255, 0, 90)), *((points[a], points[b], c) for a, b, c in LIMBS)):
        if np.isfinite(start).all() and np.isfinite(end).all():
            pen.line((*map(float, start), *map(float, end)), fill=color, width=width)
    return np.asarray(canvas.resize((size_px, size_px), Image.Resampling.BOX))
