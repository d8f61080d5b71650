"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) and its rescale (Lin et al., arXiv 2305.08891).

Notable choice: the standard deviations of the rescale are taken over one sample's own entries, each sample by itself,
so that a request gets the same result alone and in any batch. The published code takes them over the batch's
zero-padded rectangle, where a large neighbour changes a small picture; `published=True` does that too.

Not here: running the network on both branches.
"""

# torch types `tolist`, `from_numpy` and `split` only in part.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ace.errors import ShapeError


def guide(
    cond: Tensor,
    uncond: Tensor,
    guidance_scale: float | Sequence[float],
    guidance_rescale: float | Sequence[float] = 0.0,
    *,
    lengths: Sequence[int] | None = None,
    published: bool = False,
) -> Tensor:
    """Guided prediction u + g (y - u), times r std(y) / std(guided) + (1 - r) where r > 0.

    cond (y), uncond (u): (N, …), or packed rows (T, …) with lengths (N,): sample n owns the next lengths[n] rows.
    guidance_scale (g), guidance_rescale (r, 0 to 1): one number, or one per sample. g <= 1 gives back y itself: no
    guidance and no rescale, as published.
    published=True: std over the sample padded with zeros to the longest of the batch, as the published code has it (a
    dense (N, …) input already is that rectangle, so there both forms agree).
    Returns cond's shape and dtype, computed in float32. Raises ShapeError if the shapes do not fit."""
    if cond.shape != uncond.shape:
        raise ShapeError(
            f"cond {tuple(cond.shape)} and uncond {tuple(uncond.shape)} differ: run both branches on one sample"
        )
    rows = [1] * cond.shape[0] if lengths is None else [int(length) for length in lengths]
    if sum(rows) != cond.shape[0]:
        raise ShapeError(f"lengths add up to {sum(rows)} rows, there are {cond.shape[0]}")
    scales = _one_per_sample(guidance_scale, len(rows), "guidance_scale")
    rescales = _one_per_sample(guidance_rescale, len(rows), "guidance_rescale")
    longest = max(rows, default=0)
    # One sample at a time: a reduction over a sample's own slice is the same in any batch, to the last bit.
    guided = [
        _guide_one(y, u, g, r, pad_rows=longest - y.shape[0] if published else 0)
        for y, u, g, r in zip(torch.split(cond, rows), torch.split(uncond, rows), scales, rescales, strict=True)
    ]
    return torch.cat(guided).to(cond.dtype) if guided else cond


def _guide_one(cond: Tensor, uncond: Tensor, scale: float, rescale: float, pad_rows: int) -> Tensor:
    """`guide` for one sample, (rows, …); pad_rows zero rows count in the standard deviations."""
    cond, uncond = cond.float(), uncond.float()
    if scale <= 1:
        return cond
    guided = uncond + scale * (cond - uncond)
    if rescale > 0:
        factor = rescale * _std(cond, pad_rows) / (_std(guided, pad_rows) + 1e-12) + (1 - rescale)
        guided = guided * factor
    return guided


def _std(values: Tensor, pad_rows: int) -> Tensor:
    """Unbiased standard deviation over all entries, a scalar."""
    flat = values.reshape(-1)
    return F.pad(flat, (0, pad_rows * (flat.numel() // values.shape[0]))).std()


def _one_per_sample(value: float | Sequence[float], num_samples: int, name: str) -> list[float]:
    values = [float(value)] * num_samples if isinstance(value, int | float) else [float(v) for v in value]
    if len(values) != num_samples:
        raise ShapeError(f"{len(values)} values of {name} for {num_samples} samples: give one number or one per sample")
    return values
