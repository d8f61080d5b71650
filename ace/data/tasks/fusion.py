"""Layer fusion (B.7): a background and one or two subjects, each alone on a white canvas of random size, become the
picture.

Masked, the background's gap is marked; unmasked, the model has to see where the subjects belong.
"""

from __future__ import annotations

from random import Random

import cv2
import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, finish, pixels, say
from ace.data.tasks.decouple import LARGEST, SMALLEST, WHITE
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.things import candidates, describe, take_out, widen
from ace.data.tasks.tools import Tools
from ace.extract.objects import Object

TASK = "layer_editing/fusion"
MASK_SHARE = 0.5
TEMPLATES: dict[int, tuple[str, ...]] = {
    1: (
        "put the <first> of {image1} into {image}",
        "merge {image1}, a <first>, with the background {image}",
        "combine the background {image} and the subject {image1} to one picture",
    ),
    2: (
        "put the <first> of {image1} and the <second> of {image2} into {image}",
        "combine the background {image} with the subjects {image1} and {image2}",
        "merge the layers: {image} is the background, {image1} the <first>, {image2} the <second>",
    ),
}


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`layer_editing/fusion`."""
    image = pixels(source.image)
    found = candidates(image, tools, SMALLEST, LARGEST)
    if not found:
        return Rejected("no object of a fitting size and place")
    chosen = [rng.choice(found)]
    apart = [o for o in found if not (widen(o.mask) & widen(chosen[0].mask)).any()]
    if apart and rng.random() < 0.5:
        chosen.append(rng.choice(apart))
    hole = np.logical_or.reduce([widen(thing.mask) for thing in chosen])
    behind, reason = take_out(image, tuple(thing.mask for thing in chosen), hole, tools)
    if reason:
        return Rejected(reason)
    subjects = [on_canvas(image, thing, rng) for thing in chosen]
    names = [describe(image, thing.mask, tools, source.caption) for thing in chosen]
    template = rng.choice(TEMPLATES[len(chosen)])
    slots = {slot: name for slot, name in zip(("first", "second"), names, strict=False) if f"<{slot}>" in template}
    regional = rng.random() < MASK_SHARE
    return finish(
        TASK,
        source,
        say((template,), slots, rng),
        image,
        images=(behind, *subjects),
        masks=(hole if regional else None, *(None for _ in subjects)),
        slots=slots,
        variant=REGIONAL if regional else GLOBAL,
        made_by=f"SAM 2, {tools.filler.name}",
    )


def on_canvas(image: np.ndarray, thing: Object, rng: Random) -> np.ndarray:
    """An object alone on a white canvas whose sides are up to twice its own, at a random place and scale."""
    left, top, right, bottom = thing.box
    scale = rng.uniform(0.8, 1.25)
    size = max(8, round((right - left) * scale)), max(8, round((bottom - top) * scale))
    cut = cv2.resize(image[top:bottom, left:right], size, interpolation=cv2.INTER_AREA)
    inside = cv2.resize(thing.mask[top:bottom, left:right].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    canvas_w, canvas_h = (max(64, round(side * rng.uniform(1.1, 2.0))) for side in size)
    canvas_w, canvas_h = max(canvas_w, size[0]), max(canvas_h, size[1])
    canvas = np.full((canvas_h, canvas_w, 3), WHITE, np.uint8)
    x, y = rng.randint(0, canvas_w - size[0]), rng.randint(0, canvas_h - size[1])
    canvas[y : y + size[1], x : x + size[0]][inside] = cut[inside]
    return canvas
