"""`ACEChat`: one round of a conversation with an ACE model; its HISTORY goes into the next round."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor

from ace.comfyui.pictures import CATEGORY, from_picture, to_mask, to_picture
from ace.conditions.images import normalise_image
from ace.conditions.rules import Detail, ImageRules
from ace.conditions.units import ConditionUnit, LongContextConditionUnit, Turn
from ace.errors import MaskError

_UNNAMED = "0" * 64  # nothing is written that would name the weights


class ACEChat:
    """One round with an ACE model: makes a picture from words, or edits; hand HISTORY to the next round to go on."""

    CATEGORY = CATEGORY
    FUNCTION = "answer"
    RETURN_TYPES = ("IMAGE", "ACE_HISTORY")
    RETURN_NAMES = ("IMAGE", "HISTORY")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        return {
            "required": {
                "model": ("ACE_MODEL",),
                "instruction": ("STRING", {"default": "", "multiline": True}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32 - 1, "control_after_generate": True}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the model's own"}),
                "guidance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 100.0, "tooltip": "0: the model's own"}),
            },
            "optional": {
                "image": ("IMAGE", {"tooltip": "{image}: the picture to edit"}),
                "mask": ("MASK",),
                "image1": ("IMAGE", {"tooltip": "{image1}: a further picture"}),
                "image2": ("IMAGE", {"tooltip": "{image2}: a further picture"}),
                "history": ("ACE_HISTORY",),
                "detail": (
                    ["full", "model"],
                    {"tooltip": "full: the picture's own size and all that did not change; model: the model's picture"},
                ),
                "focus": (
                    ["auto", "off"],
                    {"tooltip": "auto: a mask of less than a quarter is worked on close up, at the model's full size"},
                ),
            },
        }

    def answer(
        self,
        model: Any,
        instruction: str,
        seed: int = 0,
        steps: int = 0,
        guidance: float = 0.0,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        image1: Tensor | None = None,
        image2: Tensor | None = None,
        history: tuple = (),
        detail: Detail = "full",
        focus: str = "auto",
    ) -> tuple[Tensor, tuple]:
        """IMAGE, HISTORY. Raises InputError."""
        from ace.conversation import Job, Settings, make
        from ace.conversation.family import open_job
        from ace.families.ace import AceFamily

        pictures = [to_picture(picture) for picture in (image, image1, image2) if picture is not None]
        masks: list[Image.Image | None] = [None] * len(pictures)
        if mask is not None:
            if image is None:
                raise MaskError("a mask needs the picture that it belongs to: connect image")
            masks[0] = to_mask(mask, pictures[0].size)
        unit = LongContextConditionUnit(ConditionUnit(instruction, tuple(pictures), tuple(masks)), tuple(history))
        settings = Settings(seed, steps or None, guidance or None, images=ImageRules(detail=detail, focus=focus))
        edited = unit.source_index
        source = None if edited is None else normalise_image(unit.frames()[edited].image)
        family = AceFamily.of(model, _UNNAMED)
        (made,) = make(family, [open_job(family, Job(unit, settings, source))])
        return from_picture(made.image), (*history, Turn(unit.current, made.image.convert("RGB"), made.latents))
