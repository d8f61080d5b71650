"""Human pose as a skeleton of 17 points, and the picture behind it (B.2, B.3)."""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.tasks.signals import SignalTask
from ace.data.tasks.source import Rejected
from ace.data.tasks.tools import Tools
from ace.extract.people import draw_person

LEAST_SEEN = 5  # keypoints


def draw(image: np.ndarray, rng: Random, tools: Tools) -> np.ndarray | Rejected:
    """Coloured limbs on black; a picture without a person is rejected."""
    person = tools.person(image)
    if person is None:
        return Rejected("no person found")
    if int((person.visible >= 0.5).sum()) < LEAST_SEEN:
        return Rejected("the person is hardly seen")
    return draw_person(person, *image.shape[:2])


SIGNAL = SignalTask(
    name="pose",
    names=("human pose", "pose skeleton", "body keypoints", "pose map"),
    draw=draw,
    analysis_words=(
        "how does the person in {image} stand? draw the skeleton",
        "detect the pose of the person in {image}",
    ),
    control_words=("let a person take the pose in {image}", "show <caption> in the pose of {image}"),
    made_by="BlazePose",
)
