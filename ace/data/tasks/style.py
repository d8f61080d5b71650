"""Style editing (B.4.2): a picture into a style, a styled one back into a photograph, globally or in one region.

A set whose pictures share content and differ in style gives the pair itself. Else a styler makes the styled side: a
generator where there is one (`Tools.generators`), or image processing (`stylers.py`).
"""

from __future__ import annotations

from random import Random

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, finish, pixels, say, within
from ace.data.tasks.masks import draw_mask
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.stylers import STYLERS
from ace.data.tasks.tools import Tools

TASK = "semantic_editing/style"
BACK_SHARE, REGIONAL_SHARE = 0.25, 0.25
TEMPLATES = (
    "turn {image} into a <style>",
    "make {image} look like a <style>",
    "redraw {image} as a <style>",
    "convert {image} to the style of a <style>",
    "what would {image} be as a <style>?",
    "give {image} the look of a <style>",
)
TEMPLATES_REGION = (
    "turn the marked region of {image} into a <style>",
    "only in the masked area, make {image} look like a <style>",
    "redraw the selected part of {image} as a <style>, keep the rest",
)
TEMPLATES_BACK = (
    "turn the <style> {image} into a photograph",
    "make a realistic photo of the <style> {image}",
    "{image} is a <style>: what did the scene really look like?",
)
TEMPLATES_BACK_REGION = (
    "a part of {image} is a <style>: make it a photograph like the rest",
    "turn the marked <style> region of {image} back into a photo",
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`semantic_editing/style`."""
    image = pixels(source.image)
    if source.relation == "content" and source.style:
        styled = [o for o in source.others if o.style and o.style != source.style]
        if styled:
            other = rng.choice(styled)
            slots = {"style": other.style}
            return finish(TASK, source, say(TEMPLATES, slots, rng), pixels(other.image), images=(image,), slots=slots)
    style = rng.choice(list(STYLERS))
    made_by = style
    if tools.generators is not None and tools.generators.can_restyle:
        drawn, made_by = tools.generators.restyle(image, style, rng.getrandbits(32)), "instruction editor"
    else:
        drawn = STYLERS[style](image)
    slots = {"style": style}
    regional, back = rng.random() < REGIONAL_SHARE, rng.random() < BACK_SHARE and style != "photo negative"
    mask = draw_mask(*image.shape[:2], rng) if regional else None
    styled_image = drawn if mask is None else within(mask, drawn, image)
    templates = {
        (False, False): TEMPLATES,
        (True, False): TEMPLATES_REGION,
        (False, True): TEMPLATES_BACK,
        (True, True): TEMPLATES_BACK_REGION,
    }[regional, back]
    before, after = (styled_image, image) if back else (image, styled_image)
    return finish(
        TASK,
        source,
        say(templates, slots, rng),
        after,
        images=(before,),
        masks=(mask,),
        slots=slots,
        variant=REGIONAL if regional else GLOBAL,
        made_by=made_by,
    )
