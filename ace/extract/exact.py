"""Signals that OpenCV defines: Canny edges, grey, mosaic, as the published models were trained and are served with.

`edges.canny` and `degrade.mosaic` are the procedural world's own (numpy only, other conventions); use these for
photographs and for the published weights. All pictures are (H, W, 3) uint8, RGB. Needs opencv-python-headless.
"""

from __future__ import annotations

import cv2
import numpy as np

from ace.errors import ConfigError

CANNY_LOW, CANNY_HIGH = 100, 200
MOSAIC_FACTOR = 64


def canny(image: np.ndarray, low: int = CANNY_LOW, high: int = CANNY_HIGH) -> np.ndarray:
    """OpenCV's Canny edges of the grey picture, white on black, (H, W, 3).

    Raises ConfigError unless 0 <= low <= high."""
    if not 0 <= low <= high:
        raise ConfigError(f"edge thresholds are {low} and {high}: use 0 <= low <= high")
    return np.repeat(cv2.Canny(image, low, high)[..., None], 3, 2)


def gray(image: np.ndarray) -> np.ndarray:
    """OpenCV's grey in all three channels."""
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)


def mosaic(image: np.ndarray, factor: int = MOSAIC_FACTOR) -> np.ndarray:
    """Blocks of about `factor` px a side: reduced by cubic interpolation, enlarged again to the nearest.

    Raises ConfigError for a factor below 2."""
    if factor < 2:
        raise ConfigError(f"mosaic blocks of {factor} px change nothing: use 2 or more")
    height, width = image.shape[:2]
    small = (max(1, width // factor), max(1, height // factor))
    blocks = cv2.resize(image, small, interpolation=cv2.INTER_CUBIC)
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
