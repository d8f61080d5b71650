"""Text to image (B.1): the caption asks, the picture answers."""

from __future__ import annotations

from random import Random

from ace.data.sample import EditSample
from ace.data.tasks.common import caption_of, finish, pixels, say
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools

TEMPLATES = (
    "<caption>",
    "<caption>",
    "<caption>",
    "a picture of <caption>",
    "generate an image: <caption>",
    "create a picture that shows <caption>",
    "make an image of <caption>",
    "show me <caption>",
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`text_guided_generation/text_to_image`; a picture without a caption is rejected."""
    caption = caption_of(source)
    if not caption:
        return Rejected("no caption")
    slots = {"caption": caption}
    return finish(
        "text_guided_generation/text_to_image",
        source,
        say(TEMPLATES, slots, rng),
        pixels(source.image),
        slots=slots,
    )
