"""Object replacement (B.5.2): an object gives way to one of another picture of the set, or to itself in another colour.

The newcomer is cut out, scaled to the place of the old one and matched to its brightness; the old one is filled in
first. Without a second picture the object is recoloured, which needs one that has a colour.
"""

from __future__ import annotations

from random import Random

import cv2
import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, REGIONAL, finish, pixels, say, within
from ace.data.tasks.describe import COLORS, name_color, name_place_of
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.things import candidates, color_and_name, remove_one
from ace.data.tasks.tools import Tools

TASK = "element_editing/object_replace"
MASK_SHARE = 0.5
DYES = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
TEMPLATES = (
    "replace the <old> in {image} with a <new>",
    "swap the <old> in {image} for a <new>",
    "exchange the <old> of {image}: put a <new> there",
)
TEMPLATES_REGION = (
    "replace the <old> in the marked region of {image} with a <new>",
    "in the masked area of {image}, swap the <old> for a <new>",
)


def make(source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
    """`element_editing/object_replace`."""
    image = pixels(source.image)
    made = _from_another(image, source, rng, tools) if source.others else Rejected("")
    if isinstance(made, Rejected):
        made = _dyed(image, source.caption, rng, tools)
    if isinstance(made, Rejected):
        return made
    target, mask, slots, made_by = made
    regional = rng.random() < MASK_SHARE
    words = say(TEMPLATES_REGION if regional else TEMPLATES, slots, rng)
    return finish(
        TASK,
        source,
        words,
        target,
        images=(image,),
        masks=(mask if regional else None,),
        slots=slots,
        variant=REGIONAL if regional else GLOBAL,
        made_by=made_by,
    )


Made = tuple[np.ndarray, np.ndarray, dict[str, str], str]


def _from_another(image: np.ndarray, source: Source, rng: Random, tools: Tools) -> Made | Rejected:
    """An object of another picture in the place of one of this."""
    removal = remove_one(source, rng, tools)
    if isinstance(removal, Rejected):
        return removal
    second = rng.choice(source.others)
    other = pixels(second.image)
    found = candidates(other, tools, smallest=0.03)
    if not found:
        return Rejected("no object to put in its place")
    thing = rng.choice(found)
    left, top, right, bottom = removal.object.box
    x0, y0, x1, y1 = thing.box
    scale = min((right - left) / (x1 - x0), (bottom - top) / (y1 - y0))
    size = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    cut = cv2.resize(other[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(thing.mask[y0:y1, x0:x1].astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None]
    gain = float(np.clip(image[removal.object.mask].mean() / max(other[thing.mask].mean(), 1), 0.75, 1.3))
    px, py = (left + right - size[0]) // 2, bottom - size[1]  # it stands where the old one stood
    target = removal.without.copy()
    under = target[py : py + size[1], px : px + size[0]]
    target[py : py + size[1], px : px + size[0]] = (
        (cut * gain * alpha + under * (1 - alpha)).clip(0, 255).astype(np.uint8)
    )
    mask = removal.hole.copy()
    mask[py : py + size[1], px : px + size[0]] |= alpha[..., 0] > 0
    new = f"{color_and_name(other, thing.mask, tools, second.caption)} from another picture"
    return target, mask, {"old": removal.words, "new": new}, f"SAM 2, {tools.filler.name}"


def _dyed(image: np.ndarray, caption: str, rng: Random, tools: Tools) -> Made | Rejected:
    """An object in another colour, its light and shade kept."""
    colored = [(thing, name_color(image, thing.mask)) for thing in candidates(image, tools)]
    colored = [(thing, color) for thing, color in colored if color in DYES]
    if not colored:
        return Rejected("no object of one colour")
    thing, old = rng.choice(colored)
    new = rng.choice([dye for dye in DYES if dye != old])
    target = within(thing.mask, dye(image, COLORS[new]), image)
    place = name_place_of(thing.mask)
    return (
        target,
        thing.mask,
        {"old": f"{old} {tools.word(image, thing.mask, caption)} {place}", "new": f"{new} one"},
        "SAM 2, dyed",
    )


def dye(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """A picture (H, W, 3) uint8 in the hue of a colour, its brightness and most of its saturation kept."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    to = cv2.cvtColor(np.array([[color]], np.uint8), cv2.COLOR_RGB2LAB)[0, 0].astype(np.float32)
    chroma = np.hypot(lab[..., 1] - 128, lab[..., 2] - 128)[..., None]
    direction = (to[1:] - 128) / max(float(np.hypot(*(to[1:] - 128))), 1)
    lab[..., 1:] = 128 + direction * np.maximum(chroma, 18)
    lab[..., 0] = lab[..., 0] * 0.8 + (to[0] - 128) * 0.25 + 25
    return cv2.cvtColor(lab.clip(0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)
