"""Lines: contours of masks, line drawings and scribbles of pictures, dark on white.

Line drawings are an extended difference of Gaussians (Winnemöller 2011) with a hard threshold. All pictures are
(H, W, 3) uint8. Not here: thin edges (`edges`), learned line art.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

INK = 20  # grey level of a line


def draw_contours(masks: Sequence[np.ndarray], size_px: int) -> np.ndarray:
    """The outlines of masks, each (size_px, size_px) float 0..1, in dark lines on white."""
    reach = 2 * max(1, round(size_px / 128)) + 1
    lines = np.zeros((size_px, size_px), bool)
    for mask in masks:
        inside = Image.fromarray((mask > 0.5).astype(np.uint8) * 255)
        lines |= np.asarray(inside.filter(ImageFilter.MaxFilter(reach))) != np.asarray(inside)
    return _ink(lines)


def line_drawing(image: np.ndarray) -> np.ndarray:
    """A pencil sketch: fine dark lines on white."""
    return _ink(_dark_sides(image, sigma=image.shape[0] / 110, threshold=3.0))


def scribble(image: np.ndarray) -> np.ndarray:
    """A rough sketch: few, thick dark lines on white, without small details."""
    size = image.shape[0]
    lines = Image.fromarray(_dark_sides(image, sigma=size / 40, threshold=7.0))
    thick = lines.convert("L").filter(ImageFilter.GaussianBlur(size / 64))
    return _ink(np.asarray(thick) > 96)


def doodle(line_art: np.ndarray) -> np.ndarray:
    """Line art (H, W, 4) uint8 RGBA as ink on white paper."""
    alpha = line_art[..., 3:].astype(np.int32)
    return ((INK * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8).repeat(3, 2)


def _dark_sides(image: np.ndarray, sigma: float, threshold: float) -> np.ndarray:
    """(H, W) bool: where a picture is darker than its wider surroundings in some channel."""
    picture = Image.fromarray(image)
    fine = np.asarray(picture.filter(ImageFilter.GaussianBlur(sigma)), np.float32)
    wide = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.6 * sigma)), np.float32)
    return (wide - fine).max(2) > threshold


def _ink(lines: np.ndarray) -> np.ndarray:
    return np.where(lines, np.uint8(INK), np.uint8(255))[..., None].repeat(3, 2)
