"""Style-reference editing (B.8.2): a picture, and another one in the style that it shall get.

A styler makes the target, and the reference out of another picture of the set, in the same style: a pair of style
editing with one more picture of the style, as in the paper.
"""

from __future__ import annotations

from random import Random

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, finish, pixels, say, within
from ace.data.tasks.masks import draw_mask
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.stylers import STYLERS
from ace.data.tasks.tools import Tools

TASK = "reference_generation/style_reference"
MASK_SHARE = 0.3
TEMPLATES = (
    "give {image} the style of {image1}",
    "redraw {image} in the style of {image1}",
    "make {image} look as if it were made like {image1}",
    "transfer the style of {image1}, a <style>, to {image}",
    "turn {image} into a <style> like {image1}",
)
TEMPLATES_REGION = (
    "give the marked region of {image} the style of {image1}",
    "only inside the mask, redraw {image} as a <style> like {image1}",
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`reference_generation/style_reference`."""
    if not source.others:
        return Rejected("no second picture for the style")
    image, other = pixels(source.image), pixels(rng.choice(source.others).image)
    style = rng.choice(list(STYLERS))
    mask = draw_mask(*image.shape[:2], rng) if rng.random() < MASK_SHARE else None
    drawn = STYLERS[style](image)
    slots = {"style": style} if rng.random() < 0.4 else {}
    return finish(
        TASK,
        source,
        say(TEMPLATES if mask is None else TEMPLATES_REGION, slots, rng),
        drawn if mask is None else within(mask, drawn, image),
        images=(image, STYLERS[style](other)),
        masks=(mask, None),
        slots=slots,
        variant=GLOBAL if mask is None else REGIONAL,
        made_by=style,
    )
