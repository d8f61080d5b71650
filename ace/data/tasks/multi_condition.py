"""Multi-condition generation (B.8.1): several signals of one picture ask for it together.

Either each signal is a picture of its own ("edges {image}, depth {image1}"), or one picture shows another signal in
each object's area, so that objects in different conditions meet.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import cv2
import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, caption_of, finish, pixels, say
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools
from ace.extract.depth import draw_depth
from ace.extract.exact import canny, gray
from ace.extract.people import draw_person
from ace.extract.sketch import draw_doodle, draw_scribble

TASK = "reference_generation/multi_condition"
MIXED_SHARE = 0.4  # one picture whose objects are in different conditions
TEMPLATES = (
    "make a picture from <conditions>",
    "follow all of these: <conditions>",
    "combine <conditions> into one picture",
    "make a picture from <conditions>: <caption>",
    "with <conditions>, generate <caption>",
)
TEMPLATES_ONE = (
    "{image} shows <conditions> in different areas: make the picture",
    "each part of {image} is given in another way (<conditions>): complete it",
    "{image} is put together from <conditions>: it shows <caption>",
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`reference_generation/multi_condition`."""
    image = pixels(source.image)
    names = rng.sample(list(CONDITIONS), len(CONDITIONS))
    drawn: dict[str, np.ndarray] = {}
    for name in names:
        condition = CONDITIONS[name](image, tools)
        if condition is not None:
            drawn[name] = condition
        if len(drawn) == 3:
            break
    if len(drawn) < 2:
        return Rejected("fewer than two conditions")
    used = list(drawn)[: rng.choice((2, 2, 3)) if len(drawn) > 2 else 2]
    caption = caption_of(source)
    slots = {"caption": caption} if caption and rng.random() < 0.6 else {}
    if tools.can_segment and rng.random() < MIXED_SHARE:
        objects = [o.mask for o in tools.objects(image) if o.share >= 0.02]
        if objects:
            canvas = drawn[used[0]].copy()
            for number, mask in enumerate(objects):
                canvas[mask] = drawn[used[(number + 1) % len(used)]][mask]
            slots["conditions"] = _join(used)
            return finish(
                TASK,
                source,
                say(TEMPLATES_ONE, slots, rng),
                image,
                images=(canvas,),
                slots=slots,
                variant=REGIONAL,
                made_by="SAM 2",
            )
    slots["conditions"] = _join([f"the {n} {{image{k or ''}}}" for k, n in enumerate(used)])
    return finish(
        TASK,
        source,
        say(TEMPLATES, slots, rng),
        image,
        images=tuple(drawn[name] for name in used),
        slots=slots,
        variant=GLOBAL,
    )


def check(sample: EditSample, tools: Tools) -> str | None:
    """At least two conditions are named, and where each has a picture, all pictures have the target's size."""
    images = sample.request.current.images
    if " and " not in str(sample.provenance["slot.conditions"]):
        return "only one condition is named"
    return None if all(i.size == sample.target.size for i in images) else "a condition has another size"


def color_map(image: np.ndarray) -> np.ndarray:
    """The picture's colours in large even squares, as a hint where which colour is."""
    height, width = image.shape[:2]
    step = max(8, min(height, width) // 12)
    small = cv2.resize(image, (max(1, width // step), max(1, height // step)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def _pose(image: np.ndarray, tools: Tools) -> np.ndarray | None:
    person = tools.person(image)
    return None if person is None else draw_person(person, *image.shape[:2])


CONDITIONS: dict[str, Callable[[np.ndarray, Tools], np.ndarray | None]] = {
    "edge map": lambda image, tools: canny(image),
    "depth map": lambda image, tools: draw_depth(tools.depth(image)),
    "color map": lambda image, tools: color_map(image),
    "gray image": lambda image, tools: gray(image),
    "contour drawing": lambda image, tools: tools.contour(image),
    "scribble": lambda image, tools: draw_scribble(tools.edges(image)),
    "doodle": lambda image, tools: draw_doodle(tools.edges(image)),
    "human pose": _pose,
}


def _join(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
