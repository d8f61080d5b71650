"""Camera view (B.4.3): zoom, pan, mirror, roll. Exact: both sides are cut from one picture. Always global.

Zooming out and panning show more than the edit picture holds, so the model has to make it up, as it should.
"""

from __future__ import annotations

from random import Random

import cv2
import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import finish, pixels, say
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools

TASK = "semantic_editing/camera"
TEMPLATES: dict[str, tuple[str, ...]] = {
    "zoom in": ("zoom in on {image}", "move the camera closer in {image}", "show the middle of {image} larger"),
    "zoom in at": ("zoom in on what is <place> in {image}", "move the camera closer to what is <place> in {image}"),
    "zoom out": ("zoom out of {image}", "move the camera further back in {image}", "show more of the scene of {image}"),
    "pan": ("pan the camera to the <side> in {image}", "show what is further to the <side> of {image}"),
    "tilt": ("tilt the camera <way> in {image}", "show what is further <way> in {image}"),
    "mirror": ("mirror {image}", "flip {image} from left to right", "show {image} as in a mirror"),
    "roll": ("roll the camera <side> in {image}", "tip the view of {image} over to the <side>"),
}


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`semantic_editing/camera`."""
    image = pixels(source.image)
    move = rng.choice(list(TEMPLATES))
    slots: dict[str, str] = {}
    before, after = image, image
    if move in ("zoom in", "zoom out"):
        closer = _crop(image, 0.5, 0.5, rng.uniform(0.5, 0.7))
        before, after = (image, closer) if move == "zoom in" else (closer, image)
    elif move == "zoom in at":
        x, y, slots["place"] = rng.choice(
            (
                (0.2, 0.5, "on the left"),
                (0.8, 0.5, "on the right"),
                (0.5, 0.2, "at the top"),
                (0.5, 0.8, "at the bottom"),
            )
        )
        after = _crop(image, x, y, rng.uniform(0.45, 0.6))
    elif move in ("pan", "tilt"):
        share = rng.uniform(0.65, 0.8)
        ends = _crop(image, 0, 0.5, share), _crop(image, 1, 0.5, share)
        if move == "tilt":
            ends = _crop(image, 0.5, 0, share), _crop(image, 0.5, 1, share)
        first = rng.random() < 0.5
        before, after = ends if first else ends[::-1]
        if move == "pan":
            slots["side"] = "right" if first else "left"
        else:
            slots["way"] = "down" if first else "up"
    elif move == "mirror":
        after = image[:, ::-1]
    else:
        angle = rng.uniform(8, 20)
        slots["side"] = rng.choice(("left", "right"))
        before, after = _upright(image), _rolled(image, angle if slots["side"] == "left" else -angle)
    return finish(TASK, source, say(TEMPLATES[move], slots, rng), after, images=(before,), slots=slots)


def _crop(image: np.ndarray, x: float, y: float, share: float) -> np.ndarray:
    """A part of the picture at its size: `share` of each side, at x, y (0 … 1) of where it can lie."""
    height, width = image.shape[:2]
    h, w = max(1, round(height * share)), max(1, round(width * share))
    top, left = round((height - h) * y), round((width - w) * x)
    return cv2.resize(image[top : top + h, left : left + w], (width, height), interpolation=cv2.INTER_CUBIC)


ROLL_SHARE = 0.66  # of each side that a roll of 20° leaves without empty corners, for sides up to 4:3


def _upright(image: np.ndarray) -> np.ndarray:
    return _crop(image, 0.5, 0.5, ROLL_SHARE)


def _rolled(image: np.ndarray, degrees: float) -> np.ndarray:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1 / ROLL_SHARE)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
