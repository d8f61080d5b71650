"""Object removal (B.5.2): an object is found, filtered and filled in; leftovers are rejected."""

from __future__ import annotations

from random import Random

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, finish, pixels, say
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.things import remove_one
from ace.data.tasks.tools import Tools

MASK_SHARE = 0.5
TEMPLATES = (
    "remove the <object_name> from {image}",
    "take away the <object_name> in {image}",
    "erase the <object_name> in {image}",
    "get rid of the <object_name> in {image}",
    "{image} without the <object_name>",
)
TEMPLATES_REGION = (
    "remove what is in the marked region of {image}",
    "erase the object under the mask in {image}",
    "remove the <object_name> in the marked region of {image}",
    "take the <object_name> out of {image}, change only the masked area",
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`element_editing/object_remove`."""
    image = pixels(source.image)
    removal = remove_one(source, rng, tools)
    if isinstance(removal, Rejected):
        return removal
    regional = rng.random() < MASK_SHARE
    slots = {} if regional and rng.random() < 0.4 else {"object_name": removal.words}
    return finish(
        "element_editing/object_remove",
        source,
        say(TEMPLATES_REGION if regional else TEMPLATES, slots, rng),
        removal.without,
        images=(image,),
        masks=(removal.hole if regional else None,),
        slots=slots,
        variant=REGIONAL if regional else GLOBAL,
        made_by=f"SAM 2, {tools.filler.name}",
    )
