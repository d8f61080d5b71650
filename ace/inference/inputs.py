"""A long-context condition unit as arrays: the one preparation, for training and inference alike.

Every frame is resized to whole cells within the model's budget, whole and uncropped; the frame that the target starts
from gives the target its size and mask. Texts are listed as the model reads them: the target's (the current
instruction) first, then one per frame (ACE, section 2.2).

Not here: encoders, tensors on devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ace.conditions.images import fit_size, prepare_image, prepare_mask
from ace.conditions.units import LongContextConditionUnit
from ace.errors import InputError


@dataclass(frozen=True)
class Geometry:
    """How a model reads pictures.

    budget: cells of one picture; cell_px: autoencoder factor times patch size; latent_px: autoencoder factor; enlarge:
    small pictures are enlarged to the budget; mask_by_area: a latent cell's mask is the share of its pixels that change
    (our small model), else that of its centre pixel (published)."""

    budget: int
    cell_px: int
    latent_px: int
    enlarge: bool
    mask_by_area: bool

    @property
    def side_px(self) -> int:
        """Side of a square picture of the model's own size."""
        return int(self.budget**0.5) * self.cell_px


@dataclass(frozen=True)
class Inputs:
    """One request before the encoders.

    size: (width, height) of the target in pixels. texts: N + 1, the target's first. frames: N arrays (3, H, W) in [-1,
    1]; frame_masks and target_mask: (1, h, w) on the latent grid or None. source: index of the frame being edited, or
    None. current: True for the texts of the current round, which the empty instruction replaces for guidance.
    frame_latents: per frame the latents that came with it, (C, h, w), where they fit the size it is shown at, or
    None; empty = none at all."""

    size: tuple[int, int]
    texts: tuple[str, ...]
    current: tuple[bool, ...]
    frames: tuple[np.ndarray, ...]
    frame_masks: tuple[Tensor | None, ...]
    target_mask: Tensor | None
    source: int | None
    frame_latents: tuple[Tensor | None, ...] = ()

    @property
    def null_texts(self) -> tuple[str, ...]:
        """The texts of the unguided branch: the current round's are empty, earlier rounds' stay."""
        return tuple("" if current else text for text, current in zip(self.texts, self.current, strict=True))


def prepare_inputs(unit: LongContextConditionUnit, geometry: Geometry, size: tuple[int, int] | None = None) -> Inputs:
    """Arrays of a long-context unit.

    size: (width, height) wanted of the result, in whole cells; None = the edited image's own, or a square of the
    budget. Raises InputError for a size that is not made of whole cells."""
    frames = unit.frames()
    source = unit.source_index
    if size is not None and (min(size) < geometry.cell_px or any(side % geometry.cell_px for side in size)):
        raise InputError(f"size {size[0]}x{size[1]} px: both sides must be multiples of {geometry.cell_px} px")
    if size is None:
        side = int(geometry.budget**0.5)
        width, height = frames[source].image.size if source is not None else (side, side)
        size = fit_size(width, height, geometry.budget, geometry.cell_px, enlarge=geometry.enlarge or source is None)
    arrays, masks, latents = [], [], []
    for number, frame in enumerate(frames):
        own = size
        if number != source:
            own = fit_size(*frame.image.size, geometry.budget, geometry.cell_px, enlarge=geometry.enlarge)
        arrays.append(prepare_image(frame.image, own))
        masks.append(None if frame.mask is None else latent_mask(prepare_mask(frame.mask, own), geometry))
        known = None if frame.latents is None else torch.tensor(frame.latents)
        fits = known is not None and known.shape[1:] == (own[1] // geometry.latent_px, own[0] // geometry.latent_px)
        latents.append(known if fits else None)
    last_round = len(unit.kept_history)
    return Inputs(
        size=size,
        texts=(unit.instruction, *(frame.instruction for frame in frames)),
        current=(True, *(frame.round == last_round for frame in frames)),
        frames=tuple(arrays),
        frame_masks=tuple(masks),
        target_mask=None if source is None else masks[source],
        source=source,
        frame_latents=tuple(latents),
    )


def latent_mask(mask: np.ndarray, geometry: Geometry) -> Tensor:
    """A pixel mask (1, H, W) on the latent grid, (1, H / latent_px, W / latent_px)."""
    tensor = torch.from_numpy(mask)
    if geometry.mask_by_area:
        return F.avg_pool2d(tensor, geometry.latent_px)
    size = (mask.shape[1] // geometry.latent_px, mask.shape[2] // geometry.latent_px)
    return F.interpolate(tensor[None], size=size, mode="nearest-exact")[0]
