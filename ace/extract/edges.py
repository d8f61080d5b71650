"""Edges after Canny (1986): Gaussian smoothing, Sobel gradients, thinning, two thresholds joined by hysteresis.

The gradient is that of the colour channel in which it is strongest, so equally bright colours still have an edge
between them. Not here: learned edges.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from ace.errors import ConfigError


def canny(image: np.ndarray, low: float = 60.0, high: float = 140.0, blur_px: float = 0.6) -> np.ndarray:
    """Thin edges of image (H, W, 3) uint8 as (H, W) bool.

    low, high: thresholds of the Sobel magnitude (0 … about 1442). blur_px: standard deviation of the smoothing.
    Raises ConfigError unless 0 <= low <= high."""
    if not 0 <= low <= high:
        raise ConfigError(f"edge thresholds are {low} and {high}: use 0 <= low <= high")
    smooth = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(blur_px)), np.float32)
    p = np.pad(smooth, ((1, 1), (1, 1), (0, 0)), "edge")
    column = p[:-2] + 2 * p[1:-1] + p[2:]  # (H, W + 2, 3)
    row = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]  # (H + 2, W, 3)
    gx, gy = column[:, 2:] - column[:, :-2], row[2:] - row[:-2]
    strength = gx * gx + gy * gy
    channel = strength.argmax(2)[..., None]
    gx, gy = np.take_along_axis(gx, channel, 2)[..., 0], np.take_along_axis(gy, channel, 2)[..., 0]
    magnitude = np.sqrt(np.take_along_axis(strength, channel, 2)[..., 0])

    # thinning: a pixel stays if no neighbour along its gradient, rounded to eight directions, is stronger
    m = np.pad(magnitude, 1)
    sector = np.round(np.arctan2(gy, gx) * (4 / np.pi)).astype(int) % 4
    ahead = np.choose(sector, (m[1:-1, 2:], m[2:, 2:], m[2:, 1:-1], m[2:, :-2]))
    behind = np.choose(sector, (m[1:-1, :-2], m[:-2, :-2], m[:-2, 1:-1], m[:-2, 2:]))
    thin = (magnitude >= ahead) & (magnitude > behind)

    weak, edges = thin & (magnitude > low), thin & (magnitude > high)
    count = -1
    while count != (count := int(edges.sum())):  # grow the strong edges along weak ones until nothing joins
        e = np.pad(edges, 1)
        wide = e[:, :-2] | e[:, 1:-1] | e[:, 2:]
        edges = weak & (wide[:-2] | wide[1:-1] | wide[2:])
    return edges


def draw_edges(image: np.ndarray) -> np.ndarray:
    """Canny edges of image (H, W, 3) uint8, white on black, (H, W, 3) uint8."""
    return np.repeat(canny(image)[..., None].astype(np.uint8) * 255, 3, 2)
