"""Text-guided inpainting (B.6.2): an emptied region, and words that say what belongs there.

The words are the picture's caption, or the name of an object where a set brings one, and the mask is random.
"""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import REGIONAL, caption_of, finish, pixels, say, within
from ace.data.tasks.inpainting import EMPTY
from ace.data.tasks.masks import draw_mask
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools

TEMPLATES = (
    "fill the masked region of {image} so that it shows <caption>",
    "inpaint {image}: <caption>",
    "complete the missing part of {image}; the whole picture is <caption>",
    "restore the blank area, {image} shows <caption>",
    "repaint the marked region of {image} to get <caption>",
    "the hidden part of {image} belongs to this: <caption>",
)


def make(source: Source, dice: Random, tools: Tools) -> EditSample | Rejected:
    """`repainting/text_guided_inpainting`; a picture without a caption is rejected."""
    caption = caption_of(source)
    if not caption:
        return Rejected("no caption")
    image = pixels(source.image)
    mask = draw_mask(*image.shape[:2], dice)
    slots = {"caption": caption}
    return finish(
        "repainting/text_guided_inpainting",
        source,
        say(TEMPLATES, slots, dice),
        image,
        images=(within(mask, np.full_like(image, dice.choice(EMPTY)), image),),
        masks=(mask,),
        slots=slots,
        variant=REGIONAL,
    )
