"""Text removal (B.5.1), both ways: text that a picture has is masked and filled in, or text is written into a picture
that has none and the picture is the answer. OCR must find text before and none after."""

from __future__ import annotations

from random import Random

import cv2
import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, finish, pixels, say
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools
from ace.data.tasks.writing import choose_text, draw_text
from ace.extract.text import same_text

TASK = "element_editing/text_remove"
CHINESE_SHARE, MASK_SHARE = 0.4, 0.5
TRIES = 6
LARGEST_SHARE = 0.35  # of the picture that text may cover
TEMPLATES = (
    "remove the text from {image}",
    "erase all writing in {image}",
    "take the letters out of {image}",
    "clean {image} of any text",
    'remove the text "<text>" from {image}',
    'erase the words "<text>" in {image}',
    'remove the <color> text "<text>" from {image}',
)
TEMPLATES_REGION = (
    "remove the text in the marked region of {image}",
    "erase the writing inside the mask of {image}",
    'remove the text "<text>" in the marked region of {image}',
    'remove the <color> text "<text>" in the marked region of {image}',
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`element_editing/text_remove`."""
    image = pixels(source.image)
    lines = tools.text(image)
    slots: dict[str, str] = {}
    if lines:
        mask = np.zeros(image.shape[:2], np.uint8)
        for line in lines:
            cv2.fillPoly(mask, [line.corners.round().astype(np.int32)], 1)
        reach = max(3, min(mask.shape) // 60)
        hole = cv2.dilate(mask, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0
        if hole.mean() > LARGEST_SHARE:
            return Rejected("text covers too much of the picture")
        before, after, made_by = image, tools.fill(image, hole), f"{tools.filler.name}, read by PP-OCRv6"
        if tools.reader.read(after):
            return Rejected("OCR still reads text after filling")
        if len(lines) == 1 and '"' not in lines[0].text and "<" not in lines[0].text and rng.random() < 0.5:
            slots["text"] = lines[0].text
    else:
        for _ in range(TRIES):
            text = choose_text(rng, chinese=rng.random() < CHINESE_SHARE)
            written = draw_text(image, text, rng)
            if written is not None and any(same_text(line.text, text) for line in tools.reader.read(written.image)):
                break
        else:
            return Rejected("no text could be written that OCR reads")
        before, after, hole, made_by = written.image, image, written.mask, "rendered, read by PP-OCRv6"
        if rng.random() < 0.6:
            slots["text"] = text
            if rng.random() < 0.5:
                slots["color"] = written.color
    regional = rng.random() < MASK_SHARE
    return finish(
        TASK,
        source,
        say(TEMPLATES_REGION if regional else TEMPLATES, slots, rng),
        after,
        images=(before,),
        masks=(hole if regional else None,),
        slots=slots,
        variant=REGIONAL if regional else GLOBAL,
        made_by=made_by,
    )


def check(sample: EditSample, tools: Tools) -> str | None:
    """OCR reads text before and none after."""
    if not tools.reader.read(pixels(sample.request.current.images[0])):
        return "there was no text to remove"
    return "text is left" if tools.reader.read(pixels(sample.target)) else None
