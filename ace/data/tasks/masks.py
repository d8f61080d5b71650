"""Random masks after LaMa (Suvorov et al. 2022, section 3.3 and its training configurations): boxes, wide strokes, and
edges to extend.

LaMa draws with equal chance either polygonal chains dilated to a width, or a few boxes; its sizes for pictures of
256 px are used here as shares of the shorter side. Every mask is an (H, W) bool array, True = change.
"""

from __future__ import annotations

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw

# shares of the shorter side, from LaMa's settings at 256 px: strokes up to 200 px long and 100 px wide, up to five of
# them; boxes of 30 to 150 px, up to four, 10 px from the border
MAX_STROKES, MAX_LENGTH, MAX_WIDTH, MAX_TURN = 5, 200 / 256, 100 / 256, 4.0
MAX_BOXES, SMALLEST_BOX, LARGEST_BOX, MARGIN = 4, 30 / 256, 150 / 256, 10 / 256
SMALLEST_SHARE, LARGEST_SHARE = 0.03, 0.6  # of the picture
DIRECTIONS = ("left", "right", "top", "bottom")


def draw_mask(height_px: int, width_px: int, rng: Random) -> np.ndarray:
    """Strokes or boxes, with equal chance, covering between 3 % and 60 % of the picture."""
    while True:
        draw = draw_strokes if rng.random() < 0.5 else draw_boxes
        mask = draw(height_px, width_px, rng)
        if SMALLEST_SHARE <= mask.mean() <= LARGEST_SHARE:
            return mask


def draw_strokes(height_px: int, width_px: int, rng: Random) -> np.ndarray:
    """One to five wide bent strokes with round ends."""
    side = min(height_px, width_px)
    canvas = Image.new("L", (width_px, height_px))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(1, MAX_STROKES)):
        x, y = rng.uniform(0, width_px), rng.uniform(0, height_px)
        for number in range(1 + rng.randint(0, 4)):
            angle = 0.01 + rng.uniform(0, MAX_TURN) + (math.pi if number % 2 else 0)  # every second one turns back
            length = side * (10 / 256 + rng.uniform(0, MAX_LENGTH))
            width = max(3.0, side * (5 / 256 + rng.uniform(0, MAX_WIDTH)))
            to_x = min(max(x + length * math.sin(angle), 0), width_px)
            to_y = min(max(y + length * math.cos(angle), 0), height_px)
            pen.line((x, y, to_x, to_y), fill=255, width=round(width))
            for end_x, end_y in ((x, y), (to_x, to_y)):
                pen.ellipse(
                    (end_x - width / 2, end_y - width / 2, end_x + width / 2, end_y + width / 2),
                    fill=255,
                )
            x, y = to_x, to_y
    return np.asarray(canvas) > 127


def draw_boxes(height_px: int, width_px: int, rng: Random) -> np.ndarray:
    """One to four boxes, clear of the border."""
    side = min(height_px, width_px)
    margin = round(MARGIN * side)
    mask = np.zeros((height_px, width_px), bool)
    for _ in range(rng.randint(1, MAX_BOXES)):
        box_h, box_w = (max(2, round(side * rng.uniform(SMALLEST_BOX, LARGEST_BOX))) for _ in range(2))
        top = rng.randint(margin, max(margin, height_px - margin - box_h))
        left = rng.randint(margin, max(margin, width_px - margin - box_w))
        mask[top : top + box_h, left : left + box_w] = True
    return mask


def draw_border(height_px: int, width_px: int, rng: Random) -> tuple[np.ndarray, tuple[str, ...]]:
    """Bands along one to four borders, as when a picture is extended, and their directions in the order of
    `DIRECTIONS`. Each band takes 12 % to 40 % of its axis, two opposite ones together at most 60 %."""
    count = rng.choices((1, 2, 3, 4), weights=(5, 3, 1, 2))[0]
    chosen = set(rng.sample(DIRECTIONS, count))
    mask = np.zeros((height_px, width_px), bool)
    for first, second, size in (("left", "right", width_px), ("top", "bottom", height_px)):
        limit = 0.3 if {first, second} <= chosen else 0.4
        for direction in (first, second):
            if direction in chosen:
                band = max(1, round(size * rng.uniform(0.12, limit)))
                where = slice(0, band) if direction == first else slice(size - band, size)
                mask[(slice(None), where) if first == "left" else (where, slice(None))] = True
    return mask, tuple(direction for direction in DIRECTIONS if direction in chosen)
