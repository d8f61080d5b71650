"""Depth maps as pictures: bright is near."""

from __future__ import annotations

import numpy as np


def draw_depth(depth: np.ndarray) -> np.ndarray:
    """depth (H, W), 0 far … 1 near, as (H, W, 3) uint8 grey."""
    return (depth.clip(0, 1) * 255).round().astype(np.uint8)[..., None].repeat(3, 2)
