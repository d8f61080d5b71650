"""3-D rotary positions: image, row, column (ACE, section 2.2; Su et al. 2023).

Pairs are adjacent channels (2i, 2i+1). With s = head_dim // 6, the first (head_dim - 4s) / 2 pairs turn with the frame
index, the next s with the token row, the last s with the token column. Rows and columns start at 0 in every frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ace.model.config import PUBLISHED_ROTARY, Rotary


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels turned by (frame, row, column); they add up to `head_dim`."""
    s = head_dim // 6
    return head_dim - 4 * s, 2 * s, 2 * s


def rotary_table(positions: Tensor, head_dim: int, rotary: Rotary = PUBLISHED_ROTARY) -> Tensor:
    """Rotation of every token as unit complex numbers. positions: (T, 3) (frame, row, column).

    Returns (T, 1, head_dim / 2) complex64. Angles are computed in float64, as the published tables are."""
    angles = []
    for axis, width in enumerate(axis_widths(head_dim)):
        frequencies = rotary.theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width)
        angles.append(positions[:, axis, None].double() * (rotary.scale * frequencies))
    angle = torch.cat(angles, dim=1)  # (T, head_dim / 2)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64).unsqueeze(1)


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Rotate queries or keys. x: (T, heads, head_dim); table: from `rotary_table`. Returns x's shape and dtype."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)
