"""Text rendering (B.5.1): a text is written into a picture that has none; OCR must read it there.

English and Chinese, with or without colour and place in the instruction, with or without a mask.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, finish, pixels, say, within
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools
from ace.data.tasks.writing import choose_text, draw_text
from ace.extract.text import same_text

TASK = "element_editing/text_add"
CHINESE_SHARE, MASK_SHARE = 0.4, 0.5
TRIES = 6
TEMPLATES = (
    'write "<text>" on {image}',
    'add the text "<text>" to {image}',
    'put the words "<text>" into {image}',
    'write "<text>" <place> of {image}',
    'add the text "<text>" <place> in {image}',
    'write "<text>" in <color> letters on {image}',
    'add "<text>" in <color> to {image}',
    'write "<text>" in <color> letters <place> in {image}',
    '{image} needs the <color> title "<text>" <place>',
)
TEMPLATES_REGION = (
    'write "<text>" into the marked region of {image}',
    'render the text "<text>" inside the mask of {image}',
    'write "<text>" in <color> letters into the marked region of {image}',
    'fill the masked area of {image} with the <color> text "<text>"',
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`element_editing/text_add`."""
    image = pixels(source.image)
    if tools.text(image):
        return Rejected("there is text already")
    for _ in range(TRIES):
        text = choose_text(rng, chinese=rng.random() < CHINESE_SHARE)
        written = draw_text(image, text, rng)
        if written is not None and tools.generators is not None and tools.generators.can_write:
            drawn = tools.generators.write(image, text, written.mask, rng.getrandbits(32))
            written = replace(written, image=within(written.mask, drawn, image))
        if written is not None and any(same_text(line.text, text) for line in tools.reader.read(written.image)):
            break
    else:
        return Rejected("no text could be written that OCR reads")
    slots = {"text": text}
    generated = tools.generators is not None and tools.generators.can_write
    if not generated and rng.random() < 0.6:
        slots["color"] = written.color
    regional = rng.random() < MASK_SHARE
    if not regional and rng.random() < 0.6:
        slots["place"] = written.place
    return finish(
        TASK,
        source,
        say(TEMPLATES_REGION if regional else TEMPLATES, slots, rng),
        written.image,
        images=(image,),
        masks=(written.mask if regional else None,),
        slots=slots,
        variant=REGIONAL if regional else GLOBAL,
        made_by=f"{'AnyText' if generated else 'rendered'}, read by PP-OCRv6",
    )


def check(sample: EditSample, tools: Tools) -> str | None:
    """OCR reads the text in the target and not before."""
    text = str(sample.provenance["slot.text"])
    if any(same_text(line.text, text) for line in tools.reader.read(pixels(sample.request.current.images[0]))):
        return "the text was there before"
    if not any(same_text(line.text, text) for line in tools.reader.read(pixels(sample.target))):
        return "the text cannot be read"
    return None
