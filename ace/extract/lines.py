"""Lines: contours of masks, line drawings and scribbles of pictures, dark on white.

A scribble is thick Canny edges of a strongly smoothed picture; a pencil drawing is as dark as the colours change. All
pictures are (H, W, 3) uint8. Not here: thin edges (`edges`), learned line art.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from ace.extract.edges import canny

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
    """A pencil drawing: the darker, the more the picture changes there."""
    smooth = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(image.shape[0] / 160)), np.float32)
    p = np.pad(smooth, ((1, 1), (1, 1), (0, 0)), "edge")
    across, down = p[1:-1, 2:] - p[1:-1, :-2], p[2:, 1:-1] - p[:-2, 1:-1]
    change = np.sqrt(across * across + down * down).max(2)
    return (255 - (1.6 * change).clip(0, 255 - INK)).round().astype(np.uint8)[..., None].repeat(3, 2)


def scribble(image: np.ndarray) -> np.ndarray:
    """A rough sketch: few, thick dark lines on white, without small details."""
    size = image.shape[0]
    edges = Image.fromarray(canny(image, 40, 90, blur_px=size / 36).astype(np.uint8) * 255)
    reach = 2 * max(1, round(size / 72)) + 1
    return _ink(np.asarray(edges.filter(ImageFilter.MaxFilter(reach))) > 0)


def doodle(line_art: np.ndarray) -> np.ndarray:
    """Line art (H, W, 4) uint8 RGBA as ink on white paper."""
    alpha = line_art[..., 3:].astype(np.int32)
    return ((INK * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8).repeat(3, 2)


def _ink(lines: np.ndarray) -> np.ndarray:
    return np.where(lines, np.uint8(INK), np.uint8(255))[..., None].repeat(3, 2)
