"""Background changes (B.4.3): a person, or the object in front, stays; what is behind becomes a plain colour, blurred,
grey, or another picture of the set.

A person's outline is BlazePose's; without a person the largest object that is not cut by the border is taken.
"""

from __future__ import annotations

from random import Random

import cv2
import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, caption_of, finish, pixels, say
from ace.data.tasks.describe import COLORS
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.things import candidates
from ace.data.tasks.tools import Tools
from ace.extract.exact import gray

TASK = "semantic_editing/background"
MASK_SHARE = 0.4
SMALLEST, LARGEST = 0.06, 0.8  # share of the picture that the subject takes
PLAIN = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "gray", "black")
TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": (
        "make the background of {image} plain <color>",
        "put the subject of {image} in front of a <color> wall",
        "change the background of {image} to <color>",
    ),
    "blur": (
        "blur the background of {image}",
        "make the background of {image} soft and out of focus",
        "take {image} with a wide aperture: only the subject sharp",
    ),
    "gray": (
        "make the background of {image} black and white, keep the colors of the subject",
        "keep only the subject of {image} in color",
    ),
    "other": (
        "put the subject of {image} in front of another scene",
        "change the background of {image} to another scene: <caption>",
    ),
}
SCENES = (
    "on a beach", "in a forest", "in the snow", "in a city street", "in a library", "in a desert", "at a lake",
    "on a mountain", "in a studio", "in a garden", "at night in the rain", "in a market",
)  # fmt: skip
REGION = ("{instruction}, change only the marked region", "in the marked region, {instruction}")


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`semantic_editing/background`."""
    image = pixels(source.image)
    caption = caption_of(source)
    if tools.generators is not None and tools.generators.can_vary and caption:  # the synthesis-based branch of B.4.3
        scene = f"{caption}, {rng.choice(SCENES)}"
        slots = {"caption": scene}
        made = tools.generators.similar(image, scene, rng.getrandbits(32))
        return finish(
            TASK, source, say(TEMPLATES["other"], slots, rng), made, images=(image,), slots=slots, made_by="IP-Adapter"
        )
    subject, made_by = find_subject(image, tools)
    if subject is None:
        return Rejected("no subject in front of a background")
    kind = rng.choice([kind for kind in TEMPLATES if kind != "other" or source.others])
    slots: dict[str, str] = {}
    if kind == "plain":
        slots["color"] = rng.choice(PLAIN)
        shade = np.linspace(1.0, 0.82, image.shape[0], dtype=np.float32)[:, None, None]
        behind = np.broadcast_to(np.array(COLORS[slots["color"]], np.float32) * shade, image.shape)
    elif kind == "blur":
        behind = _blur_behind(image, subject, rng.uniform(0.015, 0.04))
    elif kind == "gray":
        behind = gray(image)
    else:
        other = rng.choice(source.others)
        behind = cv2.resize(pixels(other.image), image.shape[1::-1], interpolation=cv2.INTER_AREA)
        if words := caption_of(other):
            slots["caption"] = words
    alpha = cv2.GaussianBlur(cv2.erode(subject.astype(np.float32), np.ones((3, 3))), (0, 0), 1.2)[..., None]
    alpha = np.where(subject[..., None], alpha, 0)
    target = (image * alpha + behind * (1 - alpha)).round().clip(0, 255).astype(np.uint8)
    instruction = say(TEMPLATES[kind], slots, rng)
    regional = rng.random() < MASK_SHARE
    if regional:
        instruction = rng.choice(REGION).replace("{instruction}", instruction)
    return finish(
        TASK,
        source,
        instruction,
        target,
        images=(image,),
        masks=((alpha[..., 0] < 1) if regional else None,),
        slots=slots,
        variant=REGIONAL if regional else GLOBAL,
        made_by=made_by,
    )


def find_subject(image: np.ndarray, tools: Tools) -> tuple[np.ndarray | None, str]:
    """(H, W) bool of what stands in front, and the model that found it; None without one."""
    person = tools.person(image)
    if person is not None and SMALLEST <= person.mask.mean() <= LARGEST:
        return person.mask, "BlazePose"
    if tools.can_segment:
        found = candidates(image, tools, SMALLEST, LARGEST)
        if found:
            return found[0].mask, "SAM 2"
    return None, ""


def _blur_behind(image: np.ndarray, subject: np.ndarray, share: float) -> np.ndarray:
    """The background blurred without the subject's colours bleeding into it."""
    sigma = max(2.0, share * min(image.shape[:2]))
    weight = (~subject).astype(np.float32)[..., None]
    total = cv2.GaussianBlur(image * weight, (0, 0), sigma)
    norm = cv2.GaussianBlur(weight[..., 0], (0, 0), sigma)[..., None]
    return total / np.maximum(norm, 1e-3)
