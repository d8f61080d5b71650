"""Layer decoupling (B.7): a picture to its subject alone on white, or to its background alone; and a subject that is
partly covered to the whole one.

The subject is one that can be taken out cleanly (`things.py`), rather large. Its missing parts are simulated by masking
the subject's own picture, so the answer is known.
"""

from __future__ import annotations

from random import Random

import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import finish, pixels, say, within
from ace.data.tasks.masks import draw_mask
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.things import remove_one
from ace.data.tasks.tools import Tools

TASK = "layer_editing/decouple"
SMALLEST, LARGEST = 0.03, 0.4  # share of the picture that a subject takes
MOST_HIDDEN = 0.7  # of the subject
WHITE = 255
TEMPLATES: dict[str, tuple[str, ...]] = {
    "subject": (
        "cut the <subject> out of {image} and show it alone on white",
        "extract the <subject> from {image}",
        "separate the <subject> from the background of {image}, white elsewhere",
        "give me only the <subject> of {image}",
    ),
    "whole": (
        "a part of the <subject> in {image} is hidden: show all of it on white",
        "complete the <subject> in {image} and show it alone",
        "restore the covered parts of the <subject> in {image}",
    ),
    "background": (
        "show only the background of {image}, without the <subject>",
        "separate the background of {image} from the <subject> and fill in the gap",
        "give me the background layer of {image} behind the <subject>",
    ),
    "hole": (
        "show the background of {image} with white in place of the <subject>",
        "cut the <subject> out of {image} and leave the gap white",
    ),
}


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`layer_editing/decouple`."""
    image = pixels(source.image)
    removal = remove_one(source, rng, tools, SMALLEST, LARGEST)
    if isinstance(removal, Rejected):
        return removal
    white = np.full_like(image, WHITE)
    alone = within(removal.object.mask, image, white)
    kind = rng.choice(list(TEMPLATES))
    before, target = image, alone
    if kind == "whole":
        for _ in range(20):
            cover = draw_mask(*image.shape[:2], rng)
            hidden = (cover & removal.object.mask).sum() / removal.object.mask.sum()
            if 0.1 <= hidden <= MOST_HIDDEN:
                break
        else:
            return Rejected("no mask hides a part of the subject")
        before = within(cover, white, alone)
    elif kind == "background":
        target = removal.without
    elif kind == "hole":
        target = within(removal.hole, white, image)
    slots = {"subject": removal.words}
    return finish(
        TASK,
        source,
        say(TEMPLATES[kind], slots, rng),
        target,
        images=(before,),
        slots=slots,
        made_by=f"SAM 2, {tools.filler.name}",
    )
