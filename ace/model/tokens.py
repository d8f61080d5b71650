"""Long-context condition units as packed tokens, and back: the only ragged code.

A request has N image frames and a target. Its visual sequence is the target's tokens followed by those of each image,
in the order of `LongContextConditionUnit.frames`; requests are concatenated without padding. A `Layout` holds
everything about a batch that does not depend on the timestep: positions, indicator rows, attention plans, the rotary
table.

Indicator rows: image k (from 0) carries `{image k}`; the target carries the row after the last image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ace.errors import ShapeError
from ace.model.attention import AttentionPlan, plan_attention
from ace.model.rope import rotary_table

MAX_INDICATORS = 10
TEXT_PADDING = 32  # text keys go in groups of equal padded length, padded by their own number only


@dataclass(frozen=True)
class RequestFrames:
    """What one request shows the model, apart from its noisy latents.

    size: (h, w) of the target in latent cells. target_mask: (1, h, w) in [0, 1], 1 = change, or None for all ones.
    images: latents (C, h_k, w_k), one per frame; image_masks: (1, h_k, w_k) or None each. texts: N + 1 text states
    (L_k, text_channels), the target's first. source: latents (C, h, w) of the image being edited, for models with
    `source_on_channels`; None for text to image."""

    size: tuple[int, int]
    texts: tuple[Tensor, ...]
    target_mask: Tensor | None = None
    images: tuple[Tensor, ...] = ()
    image_masks: tuple[Tensor | None, ...] = ()
    source: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.images) + 1 or len(self.image_masks) != len(self.images):
            raise ShapeError(
                f"{len(self.images)} images need {len(self.images)} masks and {len(self.images) + 1} texts, "
                f"got {len(self.image_masks)} and {len(self.texts)}"
            )
        if len(self.images) + 1 > MAX_INDICATORS:
            raise ShapeError(f"{len(self.images)} images, at most {MAX_INDICATORS - 1} have an indicator")


@dataclass(frozen=True)
class Layout:
    """The packed geometry of a batch of B requests with T visual and L text tokens.

    sample_index: (T,) request of each token. indicator: (T,) and text_indicator: (L,) rows of the indicator table.
    target_index: (T_target,) positions of the targets' tokens. target_sizes: per request (rows, cols) in tokens.
    rotary: (T, 1, head_dim / 2) complex. uniform_length: tokens per request if equal for all, else 0."""

    num_requests: int
    num_tokens: int
    sample_index: Tensor
    indicator: Tensor
    text_indicator: Tensor
    target_index: Tensor
    target_sizes: tuple[tuple[int, int], ...]
    self_plan: AttentionPlan
    cross_plan: AttentionPlan
    rotary: Tensor
    uniform_length: int

    def to(self, device: torch.device) -> Layout:
        """The same layout with its indices on another device."""
        return Layout(
            self.num_requests,
            self.num_tokens,
            self.sample_index.to(device),
            self.indicator.to(device),
            self.text_indicator.to(device),
            self.target_index.to(device),
            self.target_sizes,
            self.self_plan.to(device),
            self.cross_plan.to(device),
            self.rotary.to(device),
            self.uniform_length,
        )

    def spread(self, per_request: Tensor) -> Tensor:
        """Give every token its request's row. (B, D) → (B, 1, D) if all requests are equally long, else (T, D)."""
        return per_request.unsqueeze(1) if self.uniform_length else F.embedding(self.sample_index, per_request)

    def fold(self, tokens: Tensor) -> Tensor:
        """(T, …) → (B, L, …) if all requests are equally long, so that `spread` broadcasts; else unchanged."""
        return tokens.unflatten(0, (self.num_requests, self.uniform_length)) if self.uniform_length else tokens


def make_layout(requests: Sequence[RequestFrames], patch_size: int, head_dim: int) -> Layout:
    """Lay a batch of requests out as packed sequences, on the CPU.

    Raises ShapeError if a side is no multiple of the patch."""
    sample_lengths, frame_lengths, text_lengths, sizes = [], [], [], []
    positions, indicator, text_indicator, targets = [], [], [], []
    start = 0
    for request in requests:
        frames = [request.size, *(image.shape[-2:] for image in request.images)]
        length = 0
        for number, (h, w) in enumerate(frames):
            if h % patch_size or w % patch_size:
                raise ShapeError(f"a frame of {h}x{w} latent cells cannot be cut into patches of {patch_size}")
            rows, cols = h // patch_size, w // patch_size
            row = number - 1 if number else len(request.images)
            positions.append(torch.cartesian_prod(torch.tensor([number]), torch.arange(rows), torch.arange(cols)))
            indicator.append(torch.full((rows * cols,), row))
            text_indicator.append(torch.full((len(request.texts[number]),), row))
            frame_lengths.append(rows * cols)
            text_lengths.append(len(request.texts[number]))
            length += rows * cols
        sizes.append((frames[0][0] // patch_size, frames[0][1] // patch_size))
        targets.append(torch.arange(start, start + sizes[-1][0] * sizes[-1][1]))
        sample_lengths.append(length)
        start += length
    uniform = sample_lengths[0] if len(set(sample_lengths)) == 1 else 0
    return Layout(
        num_requests=len(requests),
        num_tokens=start,
        sample_index=torch.repeat_interleave(torch.tensor(sample_lengths)),
        indicator=torch.cat(indicator),
        text_indicator=torch.cat(text_indicator),
        target_index=torch.cat(targets),
        target_sizes=tuple(sizes),
        self_plan=plan_attention(sample_lengths, sample_lengths),
        cross_plan=plan_attention(frame_lengths, text_lengths, TEXT_PADDING),
        rotary=rotary_table(torch.cat(positions), head_dim),
        uniform_length=uniform,
    )


def patchify(latents: Tensor, patch_size: int) -> Tensor:
    """(C, h, w) → (h/p · w/p, C · p · p): row-major tokens, features ordered as in a convolution (C, row, col)."""
    c, h, w = latents.shape
    p = patch_size
    return latents.reshape(c, h // p, p, w // p, p).permute(1, 3, 0, 2, 4).reshape(h // p * (w // p), c * p * p)


def unpatchify(tokens: Tensor, size: tuple[int, int], patch_size: int) -> Tensor:
    """(rows · cols, p · p · C) with features in the order (row, col, C) → (C, rows · p, cols · p)."""
    rows, cols = size
    p = patch_size
    cells = tokens.reshape(rows, cols, p, p, -1)
    return cells.permute(4, 0, 2, 1, 3).reshape(cells.shape[-1], rows * p, cols * p)


@dataclass(frozen=True)
class ConditionPatches:
    """The timestep-independent patches of one request.

    target: what follows the target's latents on the channel axis, (T_0, F_rest). images: all image frames' patches,
    (T - T_0, F)."""

    target: Tensor
    images: Tensor


def condition_patches(request: RequestFrames, patch_size: int, source_channels: int) -> ConditionPatches:
    """Cut a request's masks, source and images into patches.

    source_channels: latent channels that the model expects of the source, 0 if it takes none."""
    like = request.texts[0]

    def planes(latents: Tensor | None, mask: Tensor | None, source: Tensor | None, h: int, w: int) -> Tensor:
        parts = [] if latents is None else [latents]
        parts.append(like.new_ones(1, h, w) if mask is None else mask.to(like))
        if source_channels:
            parts.append(like.new_zeros(source_channels, h, w) if source is None else source)
        return patchify(torch.cat(parts), patch_size)

    target = planes(None, request.target_mask, request.source, *request.size)
    frames = [planes(i, m, None, *i.shape[-2:]) for i, m in zip(request.images, request.image_masks, strict=True)]
    return ConditionPatches(target, torch.cat(frames) if frames else target.new_zeros(0, 0))


def pack_latents(latents: Sequence[Tensor], conditions: Sequence[ConditionPatches], patch_size: int) -> Tensor:
    """Noisy latents (C, h, w) and condition patches of every request → (T, in_channels · p · p), as laid out."""
    packed = []
    for noisy, condition in zip(latents, conditions, strict=True):
        packed.append(torch.cat([patchify(noisy, patch_size).to(condition.target), condition.target], dim=1))
        if len(condition.images):
            packed.append(condition.images)
    return torch.cat(packed)


def unpack_latents(tokens: Tensor, layout: Layout, patch_size: int, channels: int) -> list[Tensor]:
    """Predicted tokens of all targets, (T_target, p · p · C_out) → one (channels, h, w) per request.

    Channels beyond `channels` are dropped."""
    lengths = [rows * cols for rows, cols in layout.target_sizes]
    pieces = tokens.split(lengths)
    return [unpatchify(t, s, patch_size)[:channels] for t, s in zip(pieces, layout.target_sizes, strict=True)]
