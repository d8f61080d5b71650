"""Outpainting (B.6.3): bands along some borders are emptied, the whole picture is the answer.

The instruction names the directions, or the caption, or neither.
"""

from __future__ import annotations

from random import Random

from ace.data.sample import EditSample
from ace.data.tasks.common import REGIONAL, caption_of, finish, pixels, say
from ace.data.tasks.inpainting import empty
from ace.data.tasks.masks import DIRECTIONS, draw_border
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools

TEMPLATES = (
    "outpaint {image}",
    "extend {image} beyond its borders",
    "continue the scene of {image} into the empty area",
    "extend {image} <directions>",
    "outpaint {image} <directions>",
    "make {image} larger: continue it <directions>",
    "extend {image} <directions>; it shows <caption>",
    "outpaint {image}: <caption>",
)
_WORDS = {"left": "to the left", "right": "to the right", "top": "at the top", "bottom": "at the bottom"}


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`repainting/outpainting`."""
    image = pixels(source.image)
    mask, directions = draw_border(*image.shape[:2], rng)
    caption = caption_of(source)
    slots: dict[str, str] = {}
    if rng.random() < 0.7:
        slots["directions"] = "on all sides" if directions == DIRECTIONS else _join([_WORDS[d] for d in directions])
    if caption and rng.random() < 0.5:
        slots["caption"] = caption
    return finish(
        "repainting/outpainting",
        source,
        say(TEMPLATES, slots, rng),
        image,
        images=(empty(image, mask, rng),),
        masks=(mask,),
        slots=slots,
        variant=REGIONAL,
    )


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
