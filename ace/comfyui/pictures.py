"""Pictures and masks between ComfyUI's tensors, arrays and Pillow.

IMAGE is float32 (B, H, W, 3) in [0, 1], MASK (B, H, W) in [0, 1].
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ace.errors import ImageError, MaskError

CATEGORY = "ACE"  # of all nodes, in ComfyUI's menu


def to_array(image: Tensor) -> np.ndarray:
    """The first picture of an IMAGE as (3, H, W) float32 in [-1, 1]. Raises ImageError for another shape."""
    if image.ndim != 4 or image.shape[-1] < 3:
        raise ImageError(f"an IMAGE of shape {tuple(image.shape)}: connect a picture, (1, H, W, 3)")
    return np.ascontiguousarray((image[0, ..., :3].float().cpu().numpy() * 2 - 1).transpose(2, 0, 1))


def to_image(array: np.ndarray) -> Tensor:
    """(3, H, W) in [-1, 1] as an IMAGE."""
    return torch.from_numpy(np.ascontiguousarray((array.transpose(1, 2, 0) + 1) / 2))[None].float()


def to_picture(image: Tensor) -> Image.Image:
    """The first picture of an IMAGE as an RGB picture."""
    levels = (image[0, ..., :3].float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(levels)


def from_picture(picture: Image.Image) -> Tensor:
    """An RGB picture as an IMAGE."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def to_mask(mask: Tensor, size: tuple[int, int]) -> Image.Image | None:
    """The first of a MASK as an "L" picture of `size` (width, height); None if it selects nothing or everything.

    Raises MaskError for another size."""
    change = mask.reshape(-1, *mask.shape[-2:])[0].cpu().numpy() > 0.5
    if change.shape != (size[1], size[0]):
        raise MaskError(
            f"the mask is {change.shape[1]}x{change.shape[0]} px, the picture {size[0]}x{size[1]} px: "
            "make the mask the size of the picture"
        )
    return None if change.all() or not change.any() else Image.fromarray(change.astype(np.uint8) * 255)
