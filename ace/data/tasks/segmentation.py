"""Segmentation maps: every object in a flat colour of its own, and the picture behind them (B.2, B.3)."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.tasks.signals import SignalTask
from ace.data.tasks.source import Rejected
from ace.data.tasks.tools import Tools
from ace.extract.segments import draw_objects

LEAST_OBJECTS = 2


def draw(image: np.ndarray, rng: Random, tools: Tools) -> np.ndarray | Rejected:
    """Flat colours on black; a picture with fewer than two objects is rejected."""
    objects = tools.objects(image)
    if len(objects) < LEAST_OBJECTS:
        return Rejected("fewer than two objects found", str(len(objects)))
    return draw_objects([o.mask for o in objects], *image.shape[:2])


SIGNAL = SignalTask(
    name="segmentation",
    names=("segmentation map", "segmentation", "segmentation mask", "color map of its objects"),
    draw=draw,
    analysis_words=("segment {image}", "mark every object of {image} in a different flat color"),
    control_words=(
        "each flat color of {image} is an object: paint the picture",
        "each flat color of {image} is an object: paint <caption>",
    ),
    made_by="SAM 2",
)
