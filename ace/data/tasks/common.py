"""What the task files share: words from templates, the finished record, and the checks that every sample must pass.

A template is a sentence with `<slot>` places; `{image}` and `{image1}` name the pictures. What was filled in is kept in
the record's provenance as `slot.<name>`, so that a check can see that the instruction says it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
from PIL import Image

from ace.conditions import ConditionUnit, LongContextConditionUnit
from ace.data.sample import EditSample
from ace.data.tasks.source import Source

GLOBAL, REGIONAL = "global", "regional"
LARGEST_FILL = 0.9  # a region that takes more of the picture is no region
SEEN = 2.0  # mean difference, of 255, from which a change counts as one


def pixels(image: Image.Image) -> np.ndarray:
    """A picture as (H, W, 3) uint8."""
    return np.asarray(image.convert("RGB"))


def picture(array: np.ndarray) -> Image.Image:
    """An (H, W, 3) uint8 array as a picture."""
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))


def as_mask(mask: np.ndarray) -> Image.Image:
    """An (H, W) bool array as a mask, white = change."""
    return Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))


def as_bool(mask: Image.Image) -> np.ndarray:
    """A mask as an (H, W) bool array."""
    return np.asarray(mask.convert("L")) > 127


def within(mask: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """`inside` where the mask is True, `outside` elsewhere; (H, W) bool and two (H, W, 3) uint8."""
    return np.where(mask[..., None], inside, outside)


def caption_of(source: Source) -> str:
    """The caption as it goes into a sentence: one line, without full stop and without the marks that templates use."""
    return " ".join(re.sub(r"[{}<>]", " ", source.caption).split()).rstrip(". ")


def say(templates: Sequence[str], slots: Mapping[str, str], rng: Random) -> str:
    """One of the templates that need exactly these slots, filled in."""
    fitting = [t for t in templates if set(re.findall(r"<(\w+)>", t)) == set(slots)]
    assert fitting, f"no template for the slots {sorted(slots)}"
    template = re.sub(r"\b(a) <(\w+)>", lambda found: f"{_article(slots[found[2]])} <{found[2]}>", rng.choice(fitting))
    return re.sub(r"<(\w+)>", lambda found: slots[found[1]], template)


def _article(words: str) -> str:
    """`a` or `an`, as it sounds before these words."""
    return "an" if words[:1].casefold() in "aeio" and not words.casefold().startswith("one") else "a"


def finish(
    task: str,
    source: Source,
    instruction: str,
    target: np.ndarray,
    *,
    images: Sequence[np.ndarray] = (),
    masks: Sequence[np.ndarray | None] = (),
    slots: Mapping[str, str] | None = None,
    variant: str = GLOBAL,
    made_by: str = "",
) -> EditSample:
    """The record of a single-turn task; its arrays become pictures.

    made_by: what changed the picture, a model's name or "" for exact image processing."""
    unit = ConditionUnit(
        instruction,
        tuple(picture(image) for image in images),
        tuple(None if mask is None else as_mask(mask) for mask in masks),
    )
    provenance: dict[str, str | int | float] = {"source": source.id, "variant": variant}
    if made_by:
        provenance["made_by"] = made_by
    provenance |= {f"slot.{name}": value for name, value in (slots or {}).items()}
    return EditSample(LongContextConditionUnit(unit), picture(target), task, provenance)


def check_sample(sample: EditSample) -> str | None:
    """What every sample must keep to; None if it does, else the reason.

    The target differs from the first picture (inside its mask, if there is one) and equals it outside that mask; every
    slot's words are in the instruction and no slot was left open."""
    return check_words(sample) or check_change(sample)


def check_words(sample: EditSample) -> str | None:
    """None if all slots are filled in and said."""
    instruction = sample.request.current.instruction
    if re.search(r"<\w+>", instruction):
        return "a slot of the instruction is open"
    said = instruction.casefold()
    for name, value in sample.provenance.items():
        if name.startswith("slot.") and str(value).casefold() not in said:
            return "a slot of the instruction is not said"
    return None


def check_change(sample: EditSample) -> str | None:
    """None if the target differs from the first picture where it may, and nowhere else."""
    unit = sample.request.current
    if not unit.images:
        return None
    before, after = unit.images[0], sample.target
    if before.size != after.size:
        return None if unit.masks[0] is None else "the target has another size than the masked picture"
    difference = np.abs(pixels(before).astype(np.int16) - pixels(after)).max(2)
    mask = unit.masks[0]
    if mask is None:
        return None if difference.mean() >= SEEN / 4 else "nothing changed"
    inside = as_bool(mask)
    if not inside.any() or difference[inside].mean() < SEEN:
        return "nothing changed inside the mask"
    if difference[~inside].any():
        return "something changed outside the mask"
    return None
