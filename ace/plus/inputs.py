"""Canvases → the tokens that a FLUX Fill transformer reads, and back.

One token is a 2 x 2 patch of 8 px latent cells. Channels before packing: noise 16, edit 16, (FFT: change 16,) mask 64;
after packing, each of them with its four patch positions: 64 | 64 | (64 |) 256, channel slowest. The mask's 64 channels
are the 8 x 8 px of one latent cell. Positions count rows and columns of the whole canvas.

Not here: the layout of a canvas (`ace/plus/canvas.py`), the loop (`plus/pipeline.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ace.errors import ShapeError

LATENT_PX = 8
PATCH = 2
LATENT_CHANNELS = 16
BASE_SHIFT, MAX_SHIFT, BASE_TOKENS, MAX_TOKENS = 0.5, 1.15, 256, 4096


def fold_mask(mask: Tensor) -> Tensor:
    """A mask (1, H, W) in px → (64, H / 8, W / 8): every 8 x 8 px become channels, row by row.

    Raises ShapeError for sides that are no multiples of 8."""
    _, height, width = mask.shape
    if height % LATENT_PX or width % LATENT_PX:
        raise ShapeError(f"a mask of {width}x{height} px: both sides must be multiples of {LATENT_PX}")
    rows, columns = height // LATENT_PX, width // LATENT_PX
    cells = mask.reshape(rows, LATENT_PX, columns, LATENT_PX)  # (h, 8, w, 8)
    return cells.permute(1, 3, 0, 2).reshape(LATENT_PX * LATENT_PX, rows, columns)


def pack(latents: Tensor) -> Tensor:
    """Latents (C, h, w) → tokens (h / 2 * w / 2, 4 C), channel slowest. Raises ShapeError for odd sides."""
    channels, height, width = latents.shape
    if height % PATCH or width % PATCH:
        raise ShapeError(f"latents of {height}x{width}: both sides must be even")
    patches = latents.reshape(channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(1, 3, 0, 2, 4).reshape(-1, channels * PATCH * PATCH)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (h / 2 * w / 2, 4 C) → latents (C, h, w); height and width in latent cells."""
    patches = tokens.reshape(height // PATCH, width // PATCH, -1, PATCH, PATCH)
    return patches.permute(2, 0, 3, 1, 4).reshape(-1, height, width)


def condition_tokens(edit: Tensor, mask: Tensor, change: Tensor | None) -> Tensor:
    """What stands beside the noise in every token: edit, change (16, h, w) and mask (1, H, W) → (T, 320 or 384)."""
    parts = [edit, *([change] if change is not None else []), fold_mask(mask).to(edit)]
    return torch.cat([pack(part) for part in parts], dim=1)


def position_ids(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """(0, row, column) of every token of a canvas of height x width latent cells: (T, 3) float32."""
    rows, columns = height // PATCH, width // PATCH
    ids = torch.zeros(rows, columns, 3, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None]
    return ids.reshape(-1, 3)


def shift_mu(num_tokens: int) -> float:
    """The logarithm of the noise schedule's shift for a canvas: linear in its tokens, also beyond 256 to 4096."""
    return BASE_SHIFT + (MAX_SHIFT - BASE_SHIFT) / (MAX_TOKENS - BASE_TOKENS) * (num_tokens - BASE_TOKENS)
