"""Depth maps, bright is near, and the picture behind them (B.2, B.3)."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.tasks.signals import SignalTask
from ace.data.tasks.source import Rejected
from ace.data.tasks.tools import Tools
from ace.extract.depth import draw_depth


def draw(image: np.ndarray, rng: Random, tools: Tools) -> np.ndarray | Rejected:
    """Grey; a picture in which all is equally far is rejected."""
    near = tools.depth(image)
    return draw_depth(near) if near.std() > 0.05 else Rejected("the picture has no depth")


SIGNAL = SignalTask(
    name="depth",
    names=("depth map", "depth image", "depth estimate"),
    draw=draw,
    analysis_words=(
        "how far is everything in {image}? show it in grey, near is bright",
        "estimate the depth of {image}",
    ),
    control_words=("place the scene as far away as the depth map {image} says",),
    made_by="FastDepth",
)
