"""Canny edges as OpenCV draws them, and the picture behind them (B.2, B.3)."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.tasks.signals import SignalTask
from ace.data.tasks.source import Rejected
from ace.data.tasks.tools import Tools
from ace.extract.exact import canny

THRESHOLDS = ((100, 200), (100, 200), (50, 150), (80, 160))


def draw(image: np.ndarray, rng: Random, tools: Tools) -> np.ndarray | Rejected:
    """White on black; a picture without edges is rejected."""
    drawn = canny(image, *rng.choice(THRESHOLDS))
    return drawn if drawn.mean() > 1 else Rejected("the picture has no edges")


SIGNAL = SignalTask(
    name="edge",
    names=("edge map", "canny edge map", "edges", "canny edges"),
    draw=draw,
    analysis_words=("detect the edges in {image}", "find the outlines of everything in {image} as thin white lines"),
    control_words=("turn the white lines of {image} into a photograph",),
)
