"""Scribbles: broad strokes where edges are, and the picture behind them (B.2, B.3)."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks import signals
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools
from ace.extract.sketch import draw_scribble


def draw(image: np.ndarray, dice: Random, tools: Tools) -> np.ndarray | Rejected:
    """Dark strokes on white; a picture without edges is rejected."""
    drawn = draw_scribble(tools.edges(image))
    return drawn if drawn.mean() < 252 else Rejected("the picture has no edges")


SIGNAL = signals.Signal(
    name="scribble",
    names=("scribble", "scribble map", "ink scribble"),
    draw=draw,
    analyse=("scribble over the lines of {image} with a broad pen",),
    control=("make something beautiful of the scribble {image}", "the scribble {image} shows <caption>: finish it"),
    made_by="HED",
)


def analyse(source: Source, dice: Random, tools: Tools) -> EditSample | Rejected:
    """`low_level_analysis/scribble`."""
    return signals.analyse(SIGNAL, source, dice, tools)


def control(source: Source, dice: Random, tools: Tools) -> EditSample | Rejected:
    """`controllable_generation/scribble`."""
    return signals.control(SIGNAL, source, dice, tools)
