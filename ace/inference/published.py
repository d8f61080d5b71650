"""What the original did, its bugs included: the steps that `ACEPipeline(published=True)` runs in place of its own.

For comparison with published results only; every function here is a step that our pipeline does differently on purpose
(docs/published-model-traps.md): geometry with its crops and blanked areas, the oldest picture as the target, image
names counted by rounds, an instruction that is lost without guidance, posteriors sampled from torch's global generator,
statistics over padding, grey levels cut off instead of rounded, attention of float32 models in float16.

Not here: what the weights need in any mode (one norm for queries and keys, the target's indicator, nearest-exact masks
on the latent grid); the refiner; crashes of the original, which are errors here."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ace.conditions.images import prepare_published
from ace.conditions.prompt import IMAGE_NAMES
from ace.conditions.units import LongContextConditionUnit
from ace.diffusion import guide
from ace.errors import ConditionError, InputError
from ace.inference.inputs import Geometry, Inputs, latent_mask
from ace.model.devices import working_device
from ace.model.text import TextEncoder, tokenize
from ace.model.text_on_disk import TextEncoderOnDisk


@dataclasses.dataclass(frozen=True)
class PublishedUnit:
    """A request in the original's own terms.

    prompts: one per image, read literally (one alone for text to image). images: RGB, earlier rounds first. masks: mode
    "L", above 128 = change, or None, per image; nothing painted means everything. tasks: per image; "inpainting",
    "Inpainting" and "Try On" blank the masked area. target_index: the image that gives the target its size and mask;
    the original's default is the first, with history the oldest. Empty masks and tasks stand for none. Raises
    ConditionError for counts that do not pair."""

    prompts: tuple[str, ...]
    images: tuple[Image.Image, ...] = ()
    masks: tuple[Image.Image | None, ...] = ()
    tasks: tuple[str, ...] = ()
    target_index: int = 0
    num_dropped_rounds: int = 0

    def __post_init__(self) -> None:
        count = len(self.images)
        object.__setattr__(self, "masks", tuple(self.masks) or (None,) * count)
        object.__setattr__(self, "tasks", tuple(self.tasks) or ("",) * count)
        if not len(self.masks) == len(self.tasks) == count or len(self.prompts) != max(count, 1):
            raise ConditionError(
                f"{count} images need {max(count, 1)} prompts, {count} masks and {count} tasks: "
                f"got {len(self.prompts)}, {len(self.masks)} and {len(self.tasks)}"
            )
        if not 0 <= self.target_index < max(count, 1):
            raise ConditionError(f"target_index is {self.target_index}, but there are {count} images: count from 0")


def published_unit(unit: LongContextConditionUnit) -> PublishedUnit:
    """A long-context unit as the original's chat passes it on.

    Without history the instruction is repeated for every image. A round of history is its first image and its
    instruction; its answer is left out, since it usually is the next input, and a round without images leaves nothing.
    `{image}` in prompt i >= 1 becomes `{image i}`, other names stay as they are. Raises ConditionError for a history
    without exactly one current image."""
    current, rounds = unit.current, [turn.unit for turn in unit.kept_history if turn.unit.images]
    if not rounds:
        prompts = (current.instruction,) * max(len(current.images), 1)
        return PublishedUnit(
            prompts, current.images, current.masks, (), unit.target_index or 0, unit.num_dropped_rounds
        )
    if len(current.images) != 1:
        raise ConditionError(
            f"the original takes one image after a conversation, got {len(current.images)}: leave the history out"
        )
    rounds.append(current)
    return PublishedUnit(
        prompts=tuple(u.instruction.replace("{image}", IMAGE_NAMES[n]) for n, u in enumerate(rounds)),
        images=tuple(u.images[0] for u in rounds),
        masks=tuple(u.masks[0] for u in rounds),
        target_index=unit.target_index or 0,
        num_dropped_rounds=unit.num_dropped_rounds,
    )


def prepare_published_inputs(
    unit: LongContextConditionUnit | PublishedUnit, geometry: Geometry, size: tuple[int, int] | None
) -> Inputs:
    """The original's preparation of images, masks and segments, in place of `prepare_inputs`.

    size: (width, height) in px, for text to image only (None: a square of the budget), ignored with images. Only the
    last prompt, which segment 0 copies, is replaced for guidance. Raises InputError for a size that is not made of
    whole cells."""
    if isinstance(unit, LongContextConditionUnit):
        unit = published_unit(unit)
    last = unit.prompts[-1]
    if not unit.images:
        size = size or (geometry.side_px, geometry.side_px)
        if min(size) < geometry.cell_px or any(length % geometry.cell_px for length in size):
            raise InputError(f"size {size[0]}x{size[1]} px: both sides must be multiples of {geometry.cell_px} px")
        return Inputs(size, (last,), (True,), (), (), None, None)
    prepared = [
        prepare_published(image, mask, task=task, budget=geometry.budget, cell_px=geometry.cell_px)
        for image, mask, task in zip(unit.images, unit.masks, unit.tasks, strict=True)
    ]
    frames, masks = zip(*prepared, strict=True)
    latent_masks = tuple(latent_mask(mask, geometry) for mask in masks)
    _, height, width = frames[unit.target_index].shape
    return Inputs(
        size=(width, height),
        texts=(last, *unit.prompts),
        current=(True, *(False,) * (len(unit.prompts) - 1), True),
        frames=frames,
        frame_masks=latent_masks,
        target_mask=latent_masks[unit.target_index],
        source=unit.target_index,
    )


def lost_text_states(
    texts: Sequence[str],
    null_texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: TextEncoder,
    max_length: int,
) -> list[Tensor]:
    """Text states of a request without guidance (scale <= 1): rows of the null texts, padding included, as many as the
    real texts have tokens; so the instruction is lost but for its length. One (L_k, C) per text."""
    batch = tokenize([*texts, *null_texts], tokenizer, max_length, False)
    device = text_encoder.device
    with text_encoder.held() if isinstance(text_encoder, TextEncoderOnDisk) else contextlib.nullcontext():
        states = text_encoder(input_ids=batch.ids.to(device), attention_mask=batch.mask.to(device)).last_hidden_state
    return [null[:length] for null, length in zip(states[len(texts) :], batch.lengths, strict=False)]


def sample_posteriors(autoencoder: AutoencoderKL, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Pictures (3, H_k, W_k) in [-1, 1] → scaled latents (C, h_k, w_k), float32, each a sample of its posterior drawn
    from torch's global CPU generator: a request's own generator does not make them repeatable. Takes the place of
    `encode_pictures`."""
    latents = []
    for picture in pictures:
        posterior = autoencoder.encode(picture[None].to(working_device(autoencoder), autoencoder.dtype)).latent_dist
        noise = torch.randn(posterior.mean.shape).to(posterior.mean)
        latents.append((posterior.mean + posterior.std * noise)[0].float() * autoencoder.config.scaling_factor)
    return latents


def guide_over_padding(
    branches: Sequence[Sequence[Tensor]], scales: Sequence[float], rescales: Sequence[float]
) -> list[Tensor]:
    """Guidance whose rescale counts the zeros that pad every sample to the largest of the batch.

    branches: per sample one or two predictions (C, h, w), the conditional one first. Returns one (C, h, w) per
    sample."""
    cond, uncond = ([own[which].flatten(1).T for own in branches] for which in (0, -1))
    lengths = [len(rows) for rows in cond]
    guided = guide(torch.cat(cond), torch.cat(uncond), scales, rescales, lengths=lengths, published=True)
    return [rows.T.reshape(own[0].shape) for rows, own in zip(guided.split(lengths), branches, strict=True)]


def cut_to_levels(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) in [-1, 1] as 8-bit RGB, grey levels cut off, not rounded (the decoder bias is lost)."""
    levels = ((picture + 1) / 2).clamp(0, 1) * 255
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy().astype(np.uint8))
