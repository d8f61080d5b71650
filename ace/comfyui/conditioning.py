"""A processor's canvas → what ComfyUI's sampler reads: `AcePlusConditioning` (FFT) and `AcePlusLoraConditioning`.

CONDITIONING is a list of [tensor, options], LATENT a dict with "samples".
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ace.comfyui.pictures import CATEGORY
from ace.errors import ImageError

OUTPUTS = ("CONDITIONING", "CONDITIONING", "LATENT")
OUTPUT_NAMES = ("positive", "negative", "latent")


def _inputs(*pictures: str) -> dict:
    """The inputs of a conditioning node, in the published order."""
    return {
        "required": {
            "positive": ("CONDITIONING",),
            "negative": ("CONDITIONING",),
            "vae": ("VAE",),
            **dict.fromkeys(pictures, ("IMAGE",)),
            "mask": ("MASK",),
            "noise_mask": ("BOOLEAN", {"default": True}),
        }
    }


class AcePlusConditioning:
    """Puts the FFT model's canvas into the conditioning: latents of both pictures, and the mask."""

    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = OUTPUTS
    RETURN_NAMES = OUTPUT_NAMES

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        return _inputs("ucpixels", "cpixels")

    def encode(
        self,
        positive: list,
        negative: list,
        vae: Any,
        ucpixels: Tensor,
        cpixels: Tensor,
        mask: Tensor,
        noise_mask: bool = True,
    ) -> tuple[list, list, dict]:
        """positive, negative, latent."""
        return _condition(positive, negative, vae, [ucpixels, cpixels], mask, noise_mask)


class AcePlusLoraConditioning:
    """Puts the LoRA models' canvas into the conditioning: latents of the picture, and the mask."""

    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = OUTPUTS
    RETURN_NAMES = OUTPUT_NAMES

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """As ComfyUI asks for it."""
        return _inputs("pixels")

    def encode(
        self, positive: list, negative: list, vae: Any, pixels: Tensor, mask: Tensor, noise_mask: bool = True
    ) -> tuple[list, list, dict]:
        """positive, negative, latent."""
        return _condition(positive, negative, vae, [pixels], mask, noise_mask)


def _condition(
    positive: list, negative: list, vae: Any, pictures: list[Tensor], mask: Tensor, noise_mask: bool
) -> tuple[list, list, dict]:
    height, width = pictures[0].shape[1:3]
    if any(picture.shape[1:3] != (height, width) for picture in pictures):
        raise ImageError("both pictures must have one size: connect the outputs of one processor node")
    mask = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]).float(), size=(height, width), mode="bilinear")
    top, left = height % 8 // 2, width % 8 // 2
    rows, columns = height // 8 * 8, width // 8 * 8
    mask = mask[:, :, top : top + rows, left : left + columns]
    latents = [vae.encode(p[:, top : top + rows, left : left + columns, :3]) for p in pictures]
    values = {"concat_latent_image": torch.cat(latents, dim=1), "concat_mask": mask}
    whole = (rows, columns) == (height, width)
    latent = {
        "samples": latents[0] if whole else vae.encode(pictures[0][..., :3]),
        **({"noise_mask": mask} if noise_mask else {}),
    }
    filled = ([[entry[0], {**entry[1], **values}] for entry in conditioning] for conditioning in (positive, negative))
    first, second = filled
    return first, second, latent
