"""Time of day (B.4.3): day into night, dusk or dawn, and back, globally or in one region.

Colour grading stands in for a generator: light falls off upwards for night, warms towards the horizon for dusk. A
picture that is dark already is no day and is rejected.
"""

from __future__ import annotations

from random import Random

import cv2
import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, finish, pixels, say, within
from ace.data.tasks.masks import draw_mask
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools

TASK = "semantic_editing/time_of_day"
DARKEST_DAY = 60  # mean brightness, of 255
BACK_SHARE, REGIONAL_SHARE = 0.3, 0.2
# name -> light at the top and at the bottom (r, g, b factors), contrast, saturation
LIGHTS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], float, float]] = {
    "night": ((0.16, 0.22, 0.42), (0.26, 0.30, 0.48), 1.1, 0.6),
    "moonlight": ((0.28, 0.36, 0.55), (0.36, 0.44, 0.62), 1.2, 0.35),
    "sunset": ((0.85, 0.55, 0.52), (1.18, 0.78, 0.48), 1.1, 1.15),
    "dawn": ((0.80, 0.75, 0.95), (1.10, 0.88, 0.82), 0.85, 0.8),
}
TEMPLATES = (
    "make it <time> in {image}",
    "show {image} at <time>",
    "change the time of day in {image} to <time>",
    "what does {image} look like at <time>?",
    "relight {image} as at <time>",
)
TEMPLATES_REGION = (
    "make it <time> in the marked region of {image}",
    "only inside the mask, show {image} at <time>",
)
TEMPLATES_BACK = (
    "{image} was taken at <time>: make it bright day",
    "change {image} from <time> to daytime",
    "show the scene of {image} by day instead of <time>",
)
TEMPLATES_BACK_REGION = ("in the marked region of {image} it is <time>: make it day like the rest",)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`semantic_editing/time_of_day`."""
    image = pixels(source.image)
    if image.mean() < DARKEST_DAY:
        return Rejected("the picture is too dark to be day")
    time = rng.choice(list(LIGHTS))
    mask = draw_mask(*image.shape[:2], rng) if rng.random() < REGIONAL_SHARE else None
    lit = relight(image, time)
    lit = lit if mask is None else within(mask, lit, image)
    back = rng.random() < BACK_SHARE
    templates = (
        (TEMPLATES_BACK if mask is None else TEMPLATES_BACK_REGION)
        if back
        else (TEMPLATES if mask is None else TEMPLATES_REGION)
    )
    slots = {"time": time}
    before, after = (lit, image) if back else (image, lit)
    return finish(
        TASK,
        source,
        say(templates, slots, rng),
        after,
        images=(before,),
        masks=(mask,),
        slots=slots,
        variant=GLOBAL if mask is None else REGIONAL,
        made_by="colour grading",
    )


def relight(image: np.ndarray, time: str) -> np.ndarray:
    """A picture (H, W, 3) uint8 in another light, a name of `LIGHTS`."""
    top, bottom, contrast, saturation = LIGHTS[time]
    height = image.shape[0]
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    light = np.array(top, np.float32) * (1 - down) + np.array(bottom, np.float32) * down  # (H, 1, 3)
    values = image.astype(np.float32)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
    values = grey + (values - grey) * saturation
    values = 128 + (values - 128) * contrast
    return (values.clip(0, 255) * light).clip(0, 255).astype(np.uint8)
