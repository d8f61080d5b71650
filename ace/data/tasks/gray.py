"""Grey pictures, and their colours back (B.2, B.3)."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.tasks.common import SEEN
from ace.data.tasks.signals import SignalTask
from ace.data.tasks.source import Rejected
from ace.data.tasks.tools import Tools
from ace.extract.exact import gray


def draw(image: np.ndarray, rng: Random, tools: Tools) -> np.ndarray | Rejected:
    """The picture without colour; a picture that has none is rejected."""
    drawn = gray(image)
    if np.abs(drawn.astype(np.int16) - image).max(2).mean() < SEEN:
        return Rejected("the picture has no colour")
    return drawn


SIGNAL = SignalTask(
    name="gray",
    names=("gray image", "grayscale image", "black and white image"),
    draw=draw,
    analysis_words=(
        "make {image} black and white",
        "convert {image} to grayscale",
        "take the colors out of {image}",
        "remove all color from {image}",
    ),
    control_words=(
        "colorize {image}",
        "give {image} natural colors",
        "add color to the old photo {image}",
        "colorize {image}: <caption>",
        "give the gray picture {image} its colors, it shows <caption>",
    ),
)
