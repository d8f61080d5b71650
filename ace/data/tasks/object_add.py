"""Object addition (B.5.2): removal, the other way round. The original picture is the answer."""

from __future__ import annotations

from random import Random

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, caption_of, finish, pixels, say
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.things import remove_one
from ace.data.tasks.tools import Tools

MASK_SHARE = 0.5
TEMPLATES = (
    "add a <object_name> to {image}",
    "put a <object_name> into {image}",
    "{image} lacks a <object_name>: add it",
    "add a <object_name> to {image} so that it shows <caption>",
)
TEMPLATES_REGION = (
    "add a <object_name> in the marked region of {image}",
    "place a <object_name> inside the mask of {image}",
    "add what is missing in the marked region of {image}, which shows <caption>, a <object_name>",
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`element_editing/object_add`."""
    image = pixels(source.image)
    removal = remove_one(source, rng, tools)
    if isinstance(removal, Rejected):
        return removal
    regional = rng.random() < MASK_SHARE
    slots = {"object_name": removal.words}
    caption = caption_of(source)
    if caption and rng.random() < 0.4:
        slots["caption"] = caption
    words = say(TEMPLATES_REGION if regional else TEMPLATES, slots, rng)
    return finish(
        "element_editing/object_add",
        source,
        words,
        image,
        images=(removal.without,),
        masks=(removal.hole if regional else None,),
        slots=slots,
        variant=REGIONAL if regional else GLOBAL,
        made_by=f"SAM 2, {tools.filler.name}",
    )
