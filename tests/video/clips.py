"""Small clips, decided by formulas: a block that moves over a ramp."""

from __future__ import annotations

import numpy as np


def ramp_clip(num_frames: int = 9, width: int = 48, height: int = 32, seed: int = 0) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    rows, columns, times = np.arange(height), np.arange(width), np.arange(num_frames)
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[..., 0] = (columns * 5 + seed * 31) % 256
    frames[..., 1] = (rows * 7)[:, None] % 256
    frames[..., 2] = (times * 20 + 40 + seed)[:, None, None] % 256
    for number in times:
        left = 4 + 2 * int(number) + seed
        frames[number, 8:20, left : left + 12] = (220, 40 + 3 * int(number), 60)
    return frames


def block_masks(num_frames: int = 9, width: int = 48, height: int = 32, seed: int = 0) -> np.ndarray:
    """(T, H, W) uint8, 255 on the block of `ramp_clip`."""
    masks = np.zeros((num_frames, height, width), np.uint8)
    for number in range(num_frames):
        left = 4 + 2 * number + seed
        masks[number, 8:20, left : left + 12] = 255
    return masks


def blob(width: int = 48, height: int = 32) -> np.ndarray:
    """(H, W) uint8 mask: an L of two blocks."""
    mask = np.zeros((height, width), np.uint8)
    mask[8:20, 14:18] = 255
    mask[16:20, 14:30] = 255
    return mask
