"""Condition units: what one request asks for, and what was asked before it (ACE, section 2.1.2, equations 1 and 2).

A `ConditionUnit` (CU) is an instruction with any number of images and their masks. A `Turn` is a finished round: its
unit and its answer. A `LongContextConditionUnit` (LCU) is the current unit with the turns before it.
`LongContextConditionUnit.frames` is the only place where a conversation is flattened into the ordered frames that the
model reads.

Not here: reading files, resizing, tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ace.conditions.images import check_aspect
from ace.conditions.prompt import check_references, shift_references
from ace.errors import ConditionError, MaskError

MAX_IMAGES = 9  # the indicator table has ten rows: nine images and the target
DEFAULT_MAX_HISTORY = 5  # m of equation 2


@dataclass(frozen=True)
class ConditionUnit:
    """One request (equation 1).

    instruction: plain text; `{image}`, `{image1}`, … name this unit's images in order.
    images: RGB PIL images, each of any size. masks: one entry per image, mode "L" of that image's size, white = change,
    or None for "all of it"; an empty tuple means None for every image.
    Raises ConditionError for an empty instruction, too many images or a name without an image; MaskError for a mask
    whose size differs from its image or that has no image; ImageError for an image longer than 16 to 1."""

    instruction: str
    images: tuple[Image.Image, ...] = ()
    masks: tuple[Image.Image | None, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(self.images))
        object.__setattr__(self, "masks", tuple(self.masks) or (None,) * len(self.images))
        if not self.instruction.strip():
            raise ConditionError("the instruction is empty: say what to create or change")
        if len(self.images) > MAX_IMAGES:
            raise ConditionError(
                f"{len(self.images)} images given, at most {MAX_IMAGES} fit in one request: leave some out"
            )
        if len(self.masks) != len(self.images):
            raise MaskError(
                f"{len(self.masks)} masks for {len(self.images)} images: give one per image, None for no mask"
            )
        for image in self.images:
            check_aspect(image.size)
        for number, (image, mask) in enumerate(zip(self.images, self.masks, strict=True)):
            if mask is not None and mask.size != image.size:
                raise MaskError(
                    f"mask {number} is {mask.width}x{mask.height} px, its image {image.width}x{image.height} px: "
                    "make the mask the size of the image"
                )


@dataclass(frozen=True)
class Turn:
    """A finished round of a conversation: what was asked and the answer (an RGB PIL image).

    latents: (C, h, w) float32, the answer's own latents from the model that made it (`ACEPipelineOutput.turns`), so
    that it need not be encoded again; None = the picture is encoded. A later round uses them wherever this very answer
    is shown at the size it was made at."""

    unit: ConditionUnit
    answer: Image.Image
    latents: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Frame:
    """One image of the long-context unit as the model reads it.

    image: RGB; mask: mode "L" of the same size, white = change, or None (all of it);
    instruction: the text of this frame's round; round: 0 = oldest kept round; latents: see `Turn`."""

    image: Image.Image
    mask: Image.Image | None
    instruction: str
    round: int
    latents: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class LongContextConditionUnit:
    """The current unit with its history (equation 2).

    history: oldest first. max_history: m, rounds kept before the current one.
    target_index: frame whose size, mask and content the target starts from; None = the current unit's first image, or
    the last answer if it has none. num_unopened: rounds before `history` that were not read.
    Raises ConditionError if a frame does not exist or the images of the current unit's instruction are named
    wrongly."""

    current: ConditionUnit
    history: tuple[Turn, ...] = ()
    max_history: int = DEFAULT_MAX_HISTORY
    target_index: int | None = None
    num_unopened: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "history", tuple(self.history))
        if self.max_history < 0:
            raise ConditionError(f"max_history is {self.max_history}: use 0 or more rounds")
        frames = self.frames()
        named = max(len(self.current.images), 1 if self.history else 0)  # a bare {image} may mean the last answer
        check_references(self.current.instruction, named)
        if self.target_index is not None and not 0 <= self.target_index < max(len(frames), 1):
            raise ConditionError(
                f"target_index is {self.target_index}, but there are {len(frames)} images: count from 0"
            )

    @property
    def kept_history(self) -> tuple[Turn, ...]:
        """The newest rounds that fit: at most `max_history`, and at most nine images in all."""
        kept: list[Turn] = []
        free = MAX_IMAGES - len(self.current.images)
        following = self.current
        for turn in reversed(self.history[len(self.history) - min(self.max_history, len(self.history)) :]):
            cost = len(turn.unit.images) + (0 if _continues(following, turn) else 1)
            if cost > free:
                break
            kept.append(turn)
            free -= cost
            following = turn.unit
        return tuple(reversed(kept))

    @property
    def num_dropped_rounds(self) -> int:
        """How many earlier rounds were left out (m exceeded, or more than nine images)."""
        return self.num_unopened + len(self.history) - len(self.kept_history)

    def frames(self) -> tuple[Frame, ...]:
        """All images in the model's order: each kept round's images and then its answer, then the current images.

        An answer that is also the first image of the next round (the very same object) appears once, there. Image names
        are renumbered: a unit's own `{image}` becomes the name of that frame in the whole context; in a unit without
        images it means the answer before it."""
        frames: list[Frame] = []
        turns = self.kept_history
        known = {id(turn.answer): turn.latents for turn in turns}  # an answer may be shown again, by any later unit
        for number, turn in enumerate(turns):
            unit = turn.unit
            text = _in_context(unit, len(frames))
            frames += [
                Frame(i, m, text, number, known.get(id(i))) for i, m in zip(unit.images, unit.masks, strict=True)
            ]
            following = turns[number + 1].unit if number + 1 < len(turns) else self.current
            if not _continues(following, turn):
                frames.append(Frame(turn.answer, None, text, number, turn.latents))
        text = _in_context(self.current, len(frames))
        current = zip(self.current.images, self.current.masks, strict=True)
        frames += [Frame(i, m, text, len(turns), known.get(id(i))) for i, m in current]
        return tuple(frames)

    @property
    def instruction(self) -> str:
        """The current instruction with its image names renumbered for the whole context."""
        return _in_context(self.current, len(self.frames()) - len(self.current.images))

    @property
    def source_index(self) -> int | None:
        """Index into `frames()` of the image the target starts from; None for text to image."""
        if self.target_index is not None and self.frames():
            return self.target_index
        total = len(self.frames())
        if self.current.images:
            return total - len(self.current.images)
        return total - 1 if total else None


def _continues(unit: ConditionUnit, turn: Turn) -> bool:
    """True if `unit` starts from the answer of `turn` itself, so that the answer need not appear twice."""
    return bool(unit.images) and unit.images[0] is turn.answer


def _in_context(unit: ConditionUnit, num_earlier: int) -> str:
    """The unit's instruction with `{image}` named as the frame it has in the context, after `num_earlier` frames."""
    return shift_references(unit.instruction, num_earlier if unit.images else max(num_earlier - 1, 0))
