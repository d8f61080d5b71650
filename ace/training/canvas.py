"""Canvases that ACE++ is trained on: the published trainer's item, step by step (ACEPlusDataset).

Reference and edited picture stand side by side; the target has the reference beside it too, so that the loss is over
the whole canvas. Masks are grey values, not cut at a threshold, and everything is resized to the nearest pixel.

Not here: canvases of inference (`ace.plus.canvas`), which differ in all of this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CELL_PX = 16


@dataclass(frozen=True)
class TrainingCanvas:
    """One item. target, source, change: (3, H, W) in [-1, 1]; mask: (1, H, W) in [0, 1], of source and target alike.

    change: what the mask hides of the source, for models with channels for it; else the source itself."""

    target: Tensor
    source: Tensor
    change: Tensor
    mask: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens of the canvas."""
        return self.mask.shape[1] * self.mask.shape[2] // CELL_PX**2


def training_canvas(
    target: np.ndarray,
    edit: np.ndarray | None,
    mask: np.ndarray | None,
    reference: np.ndarray | None,
    *,
    reference_height: int,
    repainting_scale: float,
    max_sequence: int,
    modify_mode: bool,
) -> TrainingCanvas:
    """Lay out an item.

    target, edit, reference: (H, W, 3) uint8; mask: (H, W) uint8 of the edit's size, None = all of it.
    reference_height: in px, drawn by the caller between a third of the target's height and all of it.
    repainting_scale: how much of the masked part is hidden; all of it beside a reference. max_sequence: cells of the
    canvas at most. modify_mode: hide all of the masked part in `source` and show it in `change`."""
    answer = _picture(target)
    height, width = answer.shape[1:]
    if edit is None:
        source, hidden = torch.ones_like(answer), torch.ones(1, height, width)
    else:
        source = _picture(edit)
        hidden = torch.ones(1, *source.shape[1:]) if mask is None else torch.from_numpy(mask).float()[None] / 255
    source = source * (1 - hidden * (1.0 if reference is not None else repainting_scale))
    source, hidden = _nearest(source, height, width), _nearest(hidden, height, width)
    if reference is not None:
        beside = _picture(reference)
        beside = _nearest(beside, reference_height, int(beside.shape[2] * reference_height / beside.shape[1]))
        missing = height - reference_height
        beside = F.pad(beside, (0, 0, missing // 2, missing - missing // 2))
        answer, source = torch.cat([beside, answer], dim=2), torch.cat([beside, source], dim=2)
        hidden = torch.cat([torch.zeros_like(beside[:1]), hidden], dim=2)
    rows, columns = answer.shape[1:]
    scale = min(1.0, math.sqrt(max_sequence / ((rows / CELL_PX) * (columns / CELL_PX))))
    size = tuple(int(side * scale) // CELL_PX * CELL_PX for side in (rows, columns))
    answer, source, hidden = (_nearest(part, *size) for part in (answer, source, hidden))
    change = source
    if modify_mode:
        change, source = source * hidden, source * (1 - hidden)
    return TrainingCanvas(answer, source, change, hidden)


def _picture(levels: np.ndarray) -> Tensor:
    return torch.from_numpy(levels).permute(2, 0, 1).float() / 127.5 - 1


def _nearest(picture: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(picture[None], size=(height, width), mode="nearest-exact")[0]
