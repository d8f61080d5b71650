"""Text-guided inpainting (B.6.2): an emptied region, and words that say what belongs there.

Either the mask is random and the words are the picture's caption, or the mask is an object's and the words are the
object's own.
"""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import REGIONAL, caption_of, finish, pixels, say
from ace.data.tasks.inpainting import empty
from ace.data.tasks.masks import draw_mask
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.things import candidates, color_and_name, widen
from ace.data.tasks.tools import UNNAMED, Tools

TASK = "repainting/text_guided_inpainting"
LOCAL_SHARE = 0.4  # samples about one object
TEMPLATES = (
    "fill the masked region of {image} so that it shows <caption>",
    "inpaint {image}: <caption>",
    "complete the missing part of {image}; the whole picture is <caption>",
    "restore the blank area, {image} shows <caption>",
    "repaint the marked region of {image} to get <caption>",
    "the hidden part of {image} belongs to this: <caption>",
)
TEMPLATES_OBJECT = (
    "paint a <object_name> into the marked region of {image}",
    "inpaint the masked area of {image} with a <object_name>",
    "the blank area of {image} is a <object_name>: complete it",
    "fill the gap in {image}, there was a <object_name>",
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`repainting/text_guided_inpainting`; a picture without caption and without an object that can be named is
    rejected."""
    image = pixels(source.image)
    caption = caption_of(source)
    local = (
        _object(image, source.caption, rng, tools)
        if tools.can_segment and (not caption or rng.random() < LOCAL_SHARE)
        else None
    )
    if local is None and not caption:
        return Rejected("no caption")
    mask, slots, templates = local or (draw_mask(*image.shape[:2], rng), {"caption": caption}, TEMPLATES)
    return finish(
        TASK,
        source,
        say(templates, slots, rng),
        image,
        images=(empty(image, mask, rng),),
        masks=(mask,),
        slots=slots,
        variant=REGIONAL,
        made_by="SAM 2" if local else "",
    )


def _object(
    image: np.ndarray, caption: str, rng: Random, tools: Tools
) -> tuple[np.ndarray, dict[str, str], tuple[str, ...]] | None:
    """An object's mask (H, W) bool with a margin and its words; None without one that has a name."""
    things = candidates(image, tools)
    for thing in rng.sample(things, len(things)):
        name = color_and_name(image, thing.mask, tools, caption)
        if UNNAMED not in name.split():
            return widen(thing.mask), {"object_name": name}, TEMPLATES_OBJECT
    return None
