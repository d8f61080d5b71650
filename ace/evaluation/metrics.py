"""Scores of one picture against another, and means that say how sure they are.

Everything here is float64 over 8-bit levels, so that two machines agree; errors are on a scale where black to white is
1. "Pixels that should change" are those where the true target differs visibly from the edited input.

Not here: learned metrics (`lpips.py`), files, models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ace.conditions.images import MASK_THRESHOLD
from ace.errors import ShapeError
from ace.inference.preserve import VISIBLE_LEVELS

NUM_RESAMPLES = 2000
PSNR_CEILING = 100.0  # dB, of two equal pictures


def levels(picture: Image.Image) -> np.ndarray:
    """8-bit RGB levels of a picture, (H, W, 3) int16, so that differences fit."""
    return np.asarray(picture.convert("RGB"), dtype=np.int16)


def l1_error(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of levels, 0 to 1 (black to white).

    first, second: (H, W, 3) levels. Raises ShapeError if the pictures differ in size."""
    _check_sizes(first, second)
    return float(np.abs(first - second).mean(dtype=np.float64)) / 255


def l1_error_where(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> float | None:
    """`l1_error` over the pixels of `where`, bool (H, W); None if there are none."""
    _check_sizes(first, second)
    return l1_error(first[where], second[where]) if where.any() else None


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all levels, at most 100 (equal pictures)."""
    _check_sizes(first, second)
    squared = float(np.square(first - second, dtype=np.float64).mean()) / 255**2
    return min(PSNR_CEILING, -10 * math.log10(squared)) if squared > 0 else PSNR_CEILING


def changed_pixels(before: np.ndarray, target: np.ndarray, mask: Image.Image | None = None) -> np.ndarray:
    """Which pixels should change, bool (H, W): those that differ by more than 8 of 255 levels in some channel.

    mask: white = change; with one, only pixels inside it count. before, target: (H, W, 3) levels."""
    _check_sizes(before, target)
    changed = np.abs(before - target).max(axis=2) > VISIBLE_LEVELS
    if mask is not None:
        changed &= np.asarray(mask.convert("L")) > MASK_THRESHOLD
    return changed


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval, over `count` values."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        """Mean and interval, three digits."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(groups: Sequence[Sequence[float]]) -> Interval | None:
    """The mean of all values and its 95 % percentile bootstrap interval (Efron 1979); None if there are no values.

    groups: values by task. Tasks are fixed and their samples are the chance, so resampling stays within each group. The
    resamples are always the same ones, so a report can be made again byte for byte."""
    filled = [np.asarray(group, dtype=np.float64) for group in groups if len(group)]
    if not filled:
        return None
    rng = np.random.default_rng(0)
    sums = np.zeros(NUM_RESAMPLES)
    for group in filled:
        sums += group[rng.integers(len(group), size=(NUM_RESAMPLES, len(group)))].sum(axis=1)
    count = sum(len(group) for group in filled)
    low, high = np.percentile(sums / count, [2.5, 97.5])
    return Interval(float(sum(group.sum() for group in filled)) / count, float(low), float(high), count)


def _check_sizes(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise ShapeError(f"pictures of {first.shape} and {second.shape} cannot be compared: resize one first")
