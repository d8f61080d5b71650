"""Low-level analysis and its inverse, for any of the ten signals (B.2, B.3); each signal's file says how it is drawn.

Analysis shows the signal of a picture, or of one region of it. Control goes the other way: from the signal, or from a
picture whose region has been replaced by it, back to the picture, guided by its caption where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np

from ace.data.sample import EditSample
from ace.data.tasks.common import GLOBAL, LARGEST_FILL, REGIONAL, caption_of, finish, pixels, say, within
from ace.data.tasks.masks import draw_mask
from ace.data.tasks.source import Rejected, Source
from ace.data.tasks.tools import Tools

REGIONAL_SHARE = 0.4  # of the samples
CAPTION_SHARE = 0.8  # of the control samples whose source has a caption

ANALYSE = (
    "show the <signal> of {image}",
    "extract the <signal> from {image}",
    "turn {image} into its <signal>",
    "what is the <signal> of {image}?",
    "compute the <signal> for {image}",
    "give me the <signal> of {image}",
    "derive a <signal> from {image}",
)
ANALYSE_REGION = (
    "show the <signal> of the marked region of {image}",
    "extract the <signal> inside the mask of {image} and keep the rest",
    "turn the masked part of {image} into its <signal>",
    "replace the selected area of {image} by its <signal>",
    "only in the marked area of {image}, show the <signal>",
)
CONTROL = (
    "make a picture from the <signal> {image}",
    "generate an image that follows the <signal> {image}",
    "turn the <signal> {image} into a real picture",
    "{image} is a <signal>: create the picture it belongs to",
    "use {image} as the <signal> of a new picture",
    "make a picture from the <signal> {image}: <caption>",
    "following the <signal> {image}, create <caption>",
    "{image} is the <signal> of this picture: <caption>",
    "use the <signal> {image} to generate <caption>",
)
CONTROL_REGION = (
    "the marked region of {image} shows a <signal>: complete the picture",
    "turn the <signal> in the masked part of {image} back into the picture",
    "restore the selected area of {image} from its <signal>",
    "fill the marked region of {image}, following the <signal> in it: <caption>",
    "the masked part of {image} is a <signal>: complete it to <caption>",
)

# how a signal is drawn: the picture (H, W, 3) uint8 in, the signal (H, W, 3) uint8 out
Draw = Callable[[np.ndarray, Random, Tools], "np.ndarray | Rejected"]


@dataclass(frozen=True)
class Signal:
    """One of the ten.

    name: as in the task's name. names: what people call it. draw: makes it. analyse, control: further templates of its
    own, in the same slots or without `<signal>`. made_by: the model behind it, "" = exact."""

    name: str
    names: tuple[str, ...]
    draw: Draw
    analyse: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    made_by: str = ""


def analyse(signal: Signal, source: Source, dice: Random, tools: Tools) -> EditSample | Rejected:
    """Picture to signal."""
    image = pixels(source.image)
    drawn = signal.draw(image, dice, tools)
    if isinstance(drawn, Rejected):
        return drawn
    task = f"low_level_analysis/{signal.name}"
    if dice.random() < REGIONAL_SHARE:
        mask = _region(image, dice, tools)
        words, slots = _words(ANALYSE_REGION, signal, "", dice)
        target = within(mask, drawn, image)
        return finish(
            task,
            source,
            words,
            target,
            images=(image,),
            masks=(mask,),
            slots=slots,
            variant=REGIONAL,
            made_by=signal.made_by,
        )
    words, slots = _words(ANALYSE + signal.analyse, signal, "", dice)
    return finish(task, source, words, drawn, images=(image,), slots=slots, variant=GLOBAL, made_by=signal.made_by)


def control(signal: Signal, source: Source, dice: Random, tools: Tools) -> EditSample | Rejected:
    """Signal to picture."""
    image = pixels(source.image)
    drawn = signal.draw(image, dice, tools)
    if isinstance(drawn, Rejected):
        return drawn
    task = f"controllable_generation/{signal.name}"
    caption = caption_of(source) if dice.random() < CAPTION_SHARE else ""
    if dice.random() < REGIONAL_SHARE:
        mask = _region(image, dice, tools)
        words, slots = _words(CONTROL_REGION, signal, caption, dice)
        shown = within(mask, drawn, image)
        return finish(
            task,
            source,
            words,
            image,
            images=(shown,),
            masks=(mask,),
            slots=slots,
            variant=REGIONAL,
            made_by=signal.made_by,
        )
    words, slots = _words(CONTROL + signal.control, signal, caption, dice)
    return finish(task, source, words, image, images=(drawn,), slots=slots, variant=GLOBAL, made_by=signal.made_by)


def _words(templates: tuple[str, ...], signal: Signal, caption: str, dice: Random) -> tuple[str, dict[str, str]]:
    """An instruction and its slots; a template of the signal's own may leave its name out."""
    slots = {"caption": caption} if caption else {}
    bare = [t for t in templates if "<signal>" not in t and ("<caption>" in t) == bool(caption)]
    named = [t for t in templates if "<signal>" in t and ("<caption>" in t) == bool(caption)]
    template = dice.choice(bare + named)
    if "<signal>" in template:
        slots["signal"] = dice.choice(signal.names)
    return say((template,), slots, dice), slots


def _region(image: np.ndarray, dice: Random, tools: Tools) -> np.ndarray:
    """An object of the picture half the time if that is wanted, else a random mask; (H, W) bool."""
    if tools.object_regions and dice.random() < 0.5:
        objects = [o.mask for o in tools.objects(image) if 0.02 <= o.mask.mean() <= LARGEST_FILL]
        if objects:
            return dice.choice(objects)
    return draw_mask(*image.shape[:2], dice)
