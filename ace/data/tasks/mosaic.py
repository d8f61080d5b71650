"""Mosaics: square blocks, and the picture behind them (B.2, B.3)."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks import signals
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools
from ace.extract.exact import mosaic


def draw(image: np.ndarray, dice: Random, tools: Tools) -> np.ndarray | Rejected:
    """Blocks of a 40th to a 12th of the shorter side."""
    side = min(image.shape[:2])
    return mosaic(image, dice.randint(max(3, side // 40), max(4, side // 12)))


SIGNAL = signals.Signal(
    name="mosaic",
    names=("mosaic", "pixelated version", "mosaic image"),
    draw=draw,
    analyse=("pixelate {image}", "make {image} unrecognisable with coarse blocks", "apply a mosaic to {image}"),
    control=(
        "remove the mosaic from {image}",
        "make the pixelated picture {image} sharp",
        "remove the mosaic from {image}, it shows <caption>",
    ),
    made_by="",
)


def analyse(source: Source, dice: Random, tools: Tools) -> EditSample | Rejected:
    """`low_level_analysis/mosaic`."""
    return signals.analyse(SIGNAL, source, dice, tools)


def control(source: Source, dice: Random, tools: Tools) -> EditSample | Rejected:
    """`controllable_generation/mosaic`."""
    return signals.control(SIGNAL, source, dice, tools)
