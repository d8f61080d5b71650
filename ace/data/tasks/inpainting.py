"""Unconditional inpainting (B.6.1): a masked region is emptied, the picture is the answer.

The masks are LaMa's (`masks.py`). A region is emptied to grey, white or black; a picture that is flat inside it shows
nothing to learn and is rejected by the check.
"""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import REGIONAL, finish, pixels, say, within
from ace.data.tasks.masks import draw_mask
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools

EMPTY = (128, 255, 0)  # grey levels that stand for "nothing here"

TEMPLATES = (
    "fill in the masked region of {image}",
    "inpaint {image}",
    "complete the missing part of {image}",
    "restore what is hidden in {image}",
    "repair the blank area of {image} so that it fits its surroundings",
    "reconstruct the marked region of {image}",
    "fill the holes in {image} naturally",
    "paint over the empty area in {image}",
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`repainting/inpainting`."""
    image = pixels(source.image)
    mask = draw_mask(*image.shape[:2], rng)
    emptied = empty(image, mask, rng)
    return finish(
        "repainting/inpainting",
        source,
        say(TEMPLATES, {}, rng),
        image,
        images=(emptied,),
        masks=(mask,),
        variant=REGIONAL,
    )


def empty(image: np.ndarray, mask: np.ndarray, rng: Random) -> np.ndarray:
    """A picture (H, W, 3) uint8 with nothing under the mask (H, W) bool: one of the levels of `EMPTY`."""
    return within(mask, np.full_like(image, rng.choice(EMPTY)), image)
