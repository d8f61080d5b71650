"""Low-level analysis and its inverse, for any of the ten signals (B.2, B.3); each signal's file draws and names it.

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
LEAST_DRAWN = 4.0  # standard deviation inside a region, of 255
BLANK = "the region shows nothing of the signal"
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
class SignalTask:
    """One of the ten; `analyse` and `control` are its two tasks.

    name: as in the tasks' names. names: what people call it. draw: makes it. analysis_words, control_words: further
    templates of its own, in the same slots or without `<signal>`. made_by: the model behind it, "" = exact."""

    name: str
    names: tuple[str, ...]
    draw: Draw
    analysis_words: tuple[str, ...] = ()
    control_words: tuple[str, ...] = ()
    made_by: str = ""

    def analyse(self, source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
        """`low_level_analysis/…`: picture to signal."""
        image = pixels(source.image)
        drawn = self.draw(image, rng, tools)
        if isinstance(drawn, Rejected):
            return drawn
        mask = _region(image, rng, tools) if rng.random() < REGIONAL_SHARE else None
        if is_blank(drawn, mask):
            return Rejected(BLANK)
        templates = ANALYSE + self.analysis_words if mask is None else ANALYSE_REGION
        target = drawn if mask is None else within(mask, drawn, image)
        return self._finish("low_level_analysis", source, templates, "", (image, target), mask, rng)

    def control(self, source: Source, rng: Random, tools: Tools) -> EditSample | Rejected:
        """`controllable_generation/…`: signal to picture."""
        image = pixels(source.image)
        drawn = self.draw(image, rng, tools)
        if isinstance(drawn, Rejected):
            return drawn
        caption = caption_of(source) if rng.random() < CAPTION_SHARE else ""
        mask = _region(image, rng, tools) if rng.random() < REGIONAL_SHARE else None
        if is_blank(drawn, mask):
            return Rejected(BLANK)
        templates = CONTROL + self.control_words if mask is None else CONTROL_REGION
        shown = drawn if mask is None else within(mask, drawn, image)
        return self._finish("controllable_generation", source, templates, caption, (shown, image), mask, rng)

    def _finish(
        self,
        family: str,
        source: Source,
        templates: tuple[str, ...],
        caption: str,
        pair: tuple[np.ndarray, np.ndarray],
        mask: np.ndarray | None,
        rng: Random,
    ) -> EditSample:
        """The record of a pair of before and after."""
        words, slots = self._words(templates, caption, rng)
        return finish(
            f"{family}/{self.name}",
            source,
            words,
            pair[1],
            images=pair[:1],
            masks=(mask,),
            slots=slots,
            variant=GLOBAL if mask is None else REGIONAL,
            made_by=self.made_by,
        )

    def _words(self, templates: tuple[str, ...], caption: str, rng: Random) -> tuple[str, dict[str, str]]:
        """An instruction and its slots; a template of the signal's own may leave its name out."""
        slots = {"caption": caption} if caption else {}
        bare = [t for t in templates if "<signal>" not in t and ("<caption>" in t) == bool(caption)]
        named = [t for t in templates if "<signal>" in t and ("<caption>" in t) == bool(caption)]
        template = rng.choice(bare + named)
        if "<signal>" in template:
            slots["signal"] = rng.choice(self.names)
        return say((template,), slots, rng), slots


def is_blank(drawn: np.ndarray, mask: np.ndarray | None) -> bool:
    """Whether a region of a signal (H, W, 3) uint8 says nothing: no line of a drawing, or one grey level, is in it."""
    return mask is not None and float(drawn[mask].std()) < LEAST_DRAWN


def _region(image: np.ndarray, rng: Random, tools: Tools) -> np.ndarray:
    """An object of the picture half the time if that is wanted, else a random mask; (H, W) bool."""
    if tools.object_regions and rng.random() < 0.5:
        objects = [o.mask for o in tools.objects(image) if 0.02 <= o.mask.mean() <= LARGEST_FILL]
        if objects:
            return rng.choice(objects)
    return draw_mask(*image.shape[:2], rng)
