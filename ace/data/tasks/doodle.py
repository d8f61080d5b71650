"""Doodles: rough drawings of the strongest edges, and the picture behind them (B.2, B.3)."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.tasks.signals import SignalTask
from ace.data.tasks.source import Rejected
from ace.data.tasks.tools import Tools
from ace.extract.sketch import draw_doodle


def draw(image: np.ndarray, rng: Random, tools: Tools) -> np.ndarray | Rejected:
    """Thick dark lines on white; a picture without edges is rejected."""
    drawn = draw_doodle(tools.edges(image))
    return drawn if drawn.mean() < 252 else Rejected("the picture has no edges")


SIGNAL = SignalTask(
    name="doodle",
    names=("doodle", "rough sketch", "simple hand drawing"),
    draw=draw,
    analysis_words=("draw {image} as a child would, with a few thick lines", "make a rough doodle of {image}"),
    control_words=("turn my doodle {image} into a picture", "my doodle {image} is meant to be <caption>: paint it"),
    made_by="HED",
)
