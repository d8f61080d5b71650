"""Depth maps, bright is near, and the picture behind them (B.2, B.3)."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks import signals
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools
from ace.extract.depth import draw_depth


def draw(image: np.ndarray, dice: Random, tools: Tools) -> np.ndarray | Rejected:
    """Grey; a picture in which all is equally far is rejected."""
    near = tools.depth(image)
    return draw_depth(near) if near.std() > 0.05 else Rejected("the picture has no depth")


SIGNAL = signals.Signal(
    name="depth",
    names=("depth map", "depth image", "depth estimate"),
    draw=draw,
    analyse=("how far is everything in {image}? show it in grey, near is bright", "estimate the depth of {image}"),
    control=("place the scene as far away as the depth map {image} says",),
    made_by="FastDepth",
)


def analyse(source: Source, dice: Random, tools: Tools) -> EditSample | Rejected:
    """`low_level_analysis/depth`."""
    return signals.analyse(SIGNAL, source, dice, tools)


def control(source: Source, dice: Random, tools: Tools) -> EditSample | Rejected:
    """`controllable_generation/depth`."""
    return signals.control(SIGNAL, source, dice, tools)
