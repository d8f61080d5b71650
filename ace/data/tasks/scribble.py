"""Scribbles: broad strokes where edges are, and the picture behind them (B.2, B.3)."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.tasks.signals import SignalTask
from ace.data.tasks.source import Rejected
from ace.data.tasks.tools import Tools
from ace.extract.sketch import draw_scribble


def draw(image: np.ndarray, rng: Random, tools: Tools) -> np.ndarray | Rejected:
    """Dark strokes on white; a picture without edges is rejected."""
    drawn = draw_scribble(tools.edges(image))
    return drawn if drawn.mean() < 252 else Rejected("the picture has no edges")


SIGNAL = SignalTask(
    name="scribble",
    names=("scribble", "scribble map", "ink scribble"),
    draw=draw,
    analysis_words=("scribble over the lines of {image} with a broad pen",),
    control_words=(
        "make something beautiful of the scribble {image}",
        "the scribble {image} shows <caption>: finish it",
    ),
    made_by="HED",
)
