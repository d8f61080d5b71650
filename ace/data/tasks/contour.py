"""Contours: fine line drawings, and the picture behind them (B.2, B.3)."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.tasks.signals import SignalTask
from ace.data.tasks.source import Rejected
from ace.data.tasks.tools import Tools


def draw(image: np.ndarray, rng: Random, tools: Tools) -> np.ndarray | Rejected:
    """Fine dark lines on white; a picture without edges is rejected."""
    drawn = tools.contour(image)
    return drawn if drawn.mean() < 253 else Rejected("the picture has no edges")


SIGNAL = SignalTask(
    name="contour",
    names=("contour drawing", "contour image", "line drawing"),
    draw=draw,
    analysis_words=("trace the contours of {image} with fine lines", "make a line drawing of {image}"),
    control_words=("color in the line drawing {image}", "color in the line drawing {image} as <caption>"),
    made_by="HED",
)
