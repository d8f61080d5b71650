"""Degraded pictures, and their repair (B.2, B.3): noise, blur, JPEG and low resolution, mixed as in super-resolution
training."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.tasks.signals import SignalTask
from ace.data.tasks.source import Rejected
from ace.data.tasks.tools import Tools
from ace.extract.degrade import blur, jpeg, low_resolution, noise


def draw(image: np.ndarray, rng: Random, tools: Tools) -> np.ndarray | Rejected:
    """One to three kinds of damage, in random order; noise most often, as in the paper."""
    side = min(image.shape[:2])
    damage = {
        "noise": lambda x: noise(x, rng.uniform(15, 50), rng.getrandbits(32)),
        "blur": lambda x: blur(x, rng.uniform(1.2, 1.2 + side / 100)),
        "jpeg": lambda x: jpeg(x, rng.randint(4, 18)),
        "small": lambda x: low_resolution(x, rng.choice((3, 4, 6))),
    }
    chosen = ["noise"] if rng.random() < 0.6 else []
    chosen += [name for name in rng.sample(list(damage), rng.randint(1, 2)) if name not in chosen]
    rng.shuffle(chosen)
    for name in chosen:
        image = damage[name](image)
    return image


SIGNAL = SignalTask(
    name="degradation",
    names=("degraded version", "low quality version", "damaged version"),
    draw=draw,
    analysis_words=(
        "make {image} look like a bad old photo",
        "add noise and artefacts to {image}",
        "lower the quality of {image}",
    ),
    control_words=(
        "restore {image}",
        "improve the quality of {image}",
        "remove noise and blur from {image}",
        "enhance {image} to high resolution",
        "restore the bad photo {image}: <caption>",
    ),
)
