"""Mosaics: square blocks, and the picture behind them (B.2, B.3)."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.tasks.signals import SignalTask
from ace.data.tasks.source import Rejected
from ace.data.tasks.tools import Tools
from ace.extract.exact import mosaic


def draw(image: np.ndarray, rng: Random, tools: Tools) -> np.ndarray | Rejected:
    """Blocks of a 40th to a 12th of the shorter side."""
    side = min(image.shape[:2])
    return mosaic(image, rng.randint(max(3, side // 40), max(4, side // 12)))


SIGNAL = SignalTask(
    name="mosaic",
    names=("mosaic", "pixelated version", "mosaic image"),
    draw=draw,
    analysis_words=("pixelate {image}", "make {image} unrecognisable with coarse blocks", "apply a mosaic to {image}"),
    control_words=(
        "remove the mosaic from {image}",
        "make the pixelated picture {image} sharp",
        "remove the mosaic from {image}, it shows <caption>",
    ),
)
